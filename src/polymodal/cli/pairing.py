"""`curate` with a recipe that pairs the images of documents with texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from polymodal import source
from polymodal.cli._flags import Arguments, TrustOptions
from polymodal.cli._printing import print_table, say_of_paths, split_sizes, terminal
from polymodal.cli._recipe_flags import parse_with_recipe
from polymodal.errors import UserError

if TYPE_CHECKING:
    from polymodal.corpora.corpus import Corpus
    from polymodal.curation.document_pairs import PairingModels


@dataclass(frozen=True)
class PairingOptions(TrustOptions):
    """Models and data of a pipeline of image-text pairs."""

    encoder: str | None = None
    """Run that embeds images and texts in one space, such as one of clip; needed."""
    out: str = "pairs"
    """Output folder; `--data FOLDER` opens it."""
    images: str | None = None
    """Corpus or file of images that are paired with the documents' sentences instead of the documents' own images."""
    captioner: str | None = None
    """Run that captions images for the synthetic texts; without one, they have tags alone."""
    merger: str | None = None
    """hf:NAME or folder of a chat model that fuses sentence, caption and tags; by default a template does."""
    perplexity_model: str | None = None
    """hf:NAME or folder of a causal language model; by default n-gram models of the sentences. Give
    --perplexity-quantile 0 with GPT-2 large, which the interval belongs to."""
    tags: str | None = None
    """File with one tag per line, the first ones of the tag vocabulary."""
    exclude: str | None = None
    """File with one text per line, or built-in corpus, of evaluations: such sentences, and near-duplicates of them, are
    left out."""


def curate_pairs(
    spec: str, kind: type[Any], path: str, arguments: Arguments, command: Callable[[Arguments], None]
) -> None:
    """Curate interleaved documents to image-text pairs."""
    parsed = parse_with_recipe({"options": PairingOptions}, kind, arguments, f"curate {spec} DOCUMENTS", command)
    options: PairingOptions = parsed.options
    if options.encoder is None:
        raise UserError(
            "Give --encoder RUN, a run that embeds images and texts; `polymodal train clip --corpus emoji --out clip` "
            "makes one."
        )
    from polymodal.curation.document_pairs import write_pairs
    from polymodal.training import Interrupted

    say_of_paths(path, options.exclude, options.images)
    recipe, corpus = source.real(parsed.recipe), open_corpus(path)
    models = _models(options)
    others = {"tags": options.tags, "exclude": options.exclude, "images": options.images}
    names = others | {"merger": options.merger, "perplexity_model": options.perplexity_model}
    try:
        written, counts = write_pairs(
            recipe,
            corpus,
            options.out,
            models,
            recipe.language,
            open_corpus(options.images) if options.images else None,
            names,
        )
    except KeyboardInterrupt as stopped:
        raise Interrupted("Stopped; the same command goes on behind what the models have computed.") from stopped
    _print_counts(counts)
    sizes = split_sizes(written)
    terminal().print(
        f"Wrote {len(written):,} images with texts ({sizes}) to {options.out}.\n"
        f"Next: polymodal train clip --data {options.out}",
        highlight=False,
    )


def open_corpus(path: str, **columns: Any) -> Corpus:
    """Open a built-in corpus, or a user's data. columns: of these, by modality."""
    from polymodal.corpora import registry
    from polymodal.corpora.about import is_built_in
    from polymodal.corpora.sources import from_path

    return registry.load_corpus(path) if is_built_in(path) else from_path(path, **columns)


def _models(options: PairingOptions) -> PairingModels:
    from polymodal.curation.document_pairs import PairingModels, captioned_by, embedded_by, run_version
    from polymodal.curation.hub_language_models import CausalPerplexity, ChatModelMerger
    from polymodal.curation.merged_texts import template_merger
    from polymodal.curation.quality import lines_of_file
    from polymodal.training import load_run

    encoder = load_run(options.encoder or "", options.trust_code)
    captioner = load_run(options.captioner, options.trust_code) if options.captioner else None
    embed_images, embed_texts = embedded_by(encoder)
    return PairingModels(
        embed_images,
        embed_texts,
        perplexity=CausalPerplexity(options.perplexity_model) if options.perplexity_model else None,
        captions=captioned_by(captioner) if captioner else None,
        merge=ChatModelMerger(options.merger) if options.merger else template_merger,
        tags=[line.strip() for line in lines_of_file(options.tags) if line.strip()] if options.tags else (),
        excluded=texts_of(options.exclude) if options.exclude else (),
        version=run_version(encoder, captioner),
    )


def texts_of(name: str, training: bool = False) -> list[str]:
    """Return the lines of a file, or the captions of all splits of a built-in corpus but the training split.

    training: whether those of the training split are wanted instead.
    """
    from polymodal.corpora import registry
    from polymodal.corpora.about import is_built_in
    from polymodal.curation.quality import lines_of_file
    from polymodal.modalities import Text

    if not is_built_in(name):
        return [line for line in lines_of_file(name) if line.strip()]
    corpus = registry.load_corpus(name)
    column = corpus.column_with(Text)
    rows = [row for split, rows in corpus.splits.items() if (split == "train") is training for row in rows.tolist()]
    return [caption.text for row in rows for caption in corpus.value(row, column)]


def _print_counts(counts: Mapping[str, Mapping[str, float]]) -> None:
    """Print what each step left, a column for each split."""
    names = list(dict.fromkeys(name for of_split in counts.values() for name in of_split))
    rows = [
        [name, *(_number(of_split[name]) if name in of_split else "–" for of_split in counts.values())]
        for name in names
    ]
    print_table(["", *counts], rows, right=tuple(range(1, len(counts) + 1)))


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"
