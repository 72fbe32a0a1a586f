"""Commands that make a checked corpus of a list of concepts: collect, review."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polymodal import source
from polymodal.cli._flags import Arguments, TrustOptions, parse, parse_together, positional
from polymodal.cli._printing import print_table, say_of_paths, split_sizes, terminal
from polymodal.constraints import Port
from polymodal.errors import UserError, needs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from polymodal.corpora.corpus import Corpus
    from polymodal.curation.annotation import Judgements

REVIEW_PORT = 8010


def collect(arguments: Arguments) -> None:
    """collect candidate pairs for a list of concepts, with counts of every step; `review` checks them"""
    usage = "collect CONCEPTS.csv IMAGES --out FOLDER [--score-with RUN]"
    listed, rest = positional(arguments, usage)
    path, rest = positional(rest, usage)

    @dataclass(frozen=True)
    class Options(TrustOptions):
        out: str = "collected"
        """Output folder, for `review`; `--data FOLDER` opens it."""
        score_with: str | None = None
        """Run that embeds images and texts: pairs that it finds to fit least are checked first; none is dropped."""

    kinds = {"options": Options, "collected": source.find("polymodal.curation.concepts", "CollectOptions")}
    parsed = parse_together(kinds, rest, "collect CONCEPTS.csv IMAGES", collect)
    from polymodal.curation.concepts import open_images, read_concepts, write_candidates

    options = parsed.options
    say_of_paths(listed, path)
    concepts, images = read_concepts(listed), open_images(path)
    fit = _fit_of(options.score_with, options.trust_code) if options.score_with else None
    written, counts = write_candidates(concepts, images, options.out, source.real(parsed.collected), fit)
    print_table(
        ["step", "in → out", "why others went"],
        [
            [one.step, f"{one.taken:,} → {one.left:,}", ", ".join(f"{why} {n:,}" for why, n in one.reasons.items())]
            for one in counts
        ],
        right=(1,),
    )
    splits = split_sizes(written)
    noted = sum(bool(written.raw(row, "note")) for row in range(len(written)))
    terminal().print(
        f"Wrote {len(written):,} candidate pairs ({splits}) to {options.out}; {noted:,} are under several names.\n"
        f"{_lack_of(written)}Next: polymodal review {options.out}",
        highlight=False,
    )


def _lack_of(written: Corpus) -> str:
    """Return a line that says that a split has no pair, and why; nothing where each has some."""
    lacking = [split for split in ("train", "test") if not len(written.splits.get(split, ()))]
    if not lacking:
        return ""
    sources = len({written.raw(row, "source") or written.key(row) for row in range(len(written))})
    return (
        f"No pair is for {' or '.join(lacking)}: images of one source are in one split, and "
        f"{'there is one' if sources == 1 else f'there are {sources:,}'}. Give each image the address of its page as "
        "source, or choose --test-fraction.\n"
    )


def _fit_of(run: str, trust_code: bool) -> Callable[[Sequence[bytes], Sequence[str]], np.ndarray]:
    """Return the cosine similarity of images and names by a run."""
    from polymodal.curation.document_pairs import embedded_by
    from polymodal.curation.hierarchical_retrieval import normalized
    from polymodal.training import load_run

    embed_images, embed_texts = embedded_by(load_run(run, trust_code))
    return lambda images, names: (normalized(embed_images(images)) * normalized(embed_texts(names))).sum(axis=1)


@dataclass(frozen=True)
class ReviewOptions:
    """What is done with a folder of `collect`, other than showing the page."""

    port: Port = REVIEW_PORT
    """Port of the page, at this machine only; if the default is in use, a free one is chosen."""
    summary: bool = False
    """Print how far the review is, and the agreement of annotators, and end."""
    out: str | None = None
    """Write the validated pairs, with a data card, to this folder, and end; `--data FOLDER` opens it."""


def review(arguments: Arguments) -> None:
    """check collected pairs on a local page: two questions a pair, two annotators, a third where they differ"""
    path, rest = positional(arguments, "review FOLDER [--summary | --out FOLDER] [--port 8010]")
    options = parse(ReviewOptions, rest, "review FOLDER", review)
    from polymodal.corpora.saved import open_saved
    from polymodal.curation.annotation import ANSWERS, Judgements
    from polymodal.curation.validated_pairs import is_collected, review_counts, write_validated
    from polymodal.training.folder_lock import lock_folder

    corpus = open_saved(path)
    if not is_collected(corpus):
        raise UserError(f"{path} has no candidate pairs; `polymodal collect CONCEPTS.csv IMAGES` makes such a folder.")
    answers = Path(path) / ANSWERS
    if options.summary or options.out is not None:
        judgements = Judgements(answers)
        if options.out is not None:
            written, counts = write_validated(corpus, judgements, options.out)
            splits = split_sizes(written)
            _print_counts(counts)
            terminal().print(
                f"Wrote {len(written):,} validated pairs ({splits}) to {options.out}, with a data card, README.md.\n"
                f"Next: polymodal train egmm_corpus --data {options.out} --init RUN",
                highlight=False,
            )
        else:
            _print_counts(review_counts(corpus, judgements))
        return
    with lock_folder(Path(path), "reviewed", "take the page that it shows"):
        _show_page(corpus, Judgements(answers), options.port)


def _print_counts(counts: Mapping[str, Any]) -> None:
    """Print the state of a review."""
    kappa = ((name, "-" if value is None else f"{value:.2f}") for name, value in counts["kappa"].items())
    facts = {
        **{f"{status} pairs": f"{count:,}" for status, count in counts["pairs"].items()},
        "annotators": ", ".join(counts["annotators"]) or "none",
        "answers": f"{counts['looks']:,}",
        "answers a validated pair": str(counts["looks a validated pair"] or "-"),
        "Cohen's kappa": ", ".join(f"{name} {value}" for name, value in kappa),
    }
    print_table(["", ""], [[name, value] for name, value in facts.items()])


def _show_page(corpus: Corpus, judgements: Judgements, port: int) -> None:
    """Serve the page at the loopback address until Ctrl-C, SIGTERM or SIGHUP."""
    try:
        from polymodal.serving.limits import Limits
        from polymodal.serving.protocol import answer_at
        from polymodal.serving.review import create_review
    except ImportError as error:
        raise needs(error.name or "fastapi", "serve", "A page") from error
    from polymodal.cli.using import listener_at

    listener = listener_at("127.0.0.1", port, REVIEW_PORT)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    sentence = f"Review {len(corpus):,} pairs at {address}; {judgements.file} keeps every answer. Ctrl-C ends it."
    terminal().print(sentence, highlight=False, soft_wrap=True)
    answer_at(listener, create_review(corpus, judgements), Limits(connections=64))
