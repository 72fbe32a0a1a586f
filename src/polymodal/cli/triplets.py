"""`curate` with a recipe that describes images without paired text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polymodal import source
from polymodal.cli._flags import Arguments, TrustOptions, parse_together
from polymodal.cli._printing import print_table, say_of_paths, split_sizes, terminal
from polymodal.cli.pairing import open_corpus

if TYPE_CHECKING:
    from polymodal.curation.knowledge import KnowledgeBase
    from polymodal.curation.triplets import Generators


@dataclass(frozen=True)
class DescribingOptions(TrustOptions):
    """Models and data of a pipeline of image, regions and description."""

    out: str = "triplets"
    """Output folder; `--data FOLDER` opens it."""
    image_column: str | None = None
    """Column of images, if it cannot be inferred."""
    label_column: str | None = None
    """Column of class names, which are what an image is known to show, if it cannot be inferred."""
    knowledge: str | None = None
    """Text file with one snippet per line, or built-in corpus of texts such as glosses, to retrieve facts from."""
    retriever: str | None = None
    """Run that embeds texts, for the retrieval; by default TF-IDF."""
    writer: str | None = None
    """hf:NAME or folder of a chat model that writes the descriptions; by default templates do."""
    captioner: str | None = None
    """Run that learned from such descriptions, and describes the training images beyond --instruct-fraction (B3)."""


def curate_triplets(
    spec: str, kind: type[Any], path: str, arguments: Arguments, command: Callable[[Arguments], None]
) -> None:
    """Describe the images of a corpus in five fields."""
    options_kind = source.find("polymodal.curation.triplets", "TripletOptions")
    kinds = {"options": DescribingOptions, "triplets": options_kind}
    parsed = parse_together(kinds, arguments, f"curate {spec} IMAGES", command)
    options: DescribingOptions = parsed.options
    from polymodal import recipes

    say_of_paths(path, options.knowledge)
    generators, triplets = _generators(options), source.real(parsed.triplets)
    columns = {"image": options.image_column, "label": options.label_column}
    named = {name: column for name, column in columns.items() if column}
    annotate: Any = recipes.find(spec)
    written, counts = annotate.annotate_images(open_corpus(path, **named), Path(options.out), triplets, generators)
    facts = {
        "described by the writer (B1)": counts.described["B1"],
        "described by the captioner (B3)": counts.described["B3"],
        "rejected, as a field was missing": sum(counts.rejected.values()),
        "training images that an evaluation split has, too": counts.duplicates,
        "without a region": counts.unlocated,
        "unreadable": len(counts.unreadable),
    }
    print_table(["", "images"], [[name, f"{number:,}"] for name, number in facts.items()], right=(1,))
    sizes = split_sizes(written)
    terminal().print(
        f"Wrote {len(written):,} triplets ({sizes}) to {options.out}.\n"
        f"Next: polymodal train {spec} --data {options.out}",
        highlight=False,
    )


def _generators(options: DescribingOptions) -> Generators:
    from polymodal.curation.multigranular import Sources, prompt, write_description
    from polymodal.curation.triplets import Generators
    from polymodal.evaluation.language_models import ChatModel
    from polymodal.training import load_run

    write: Callable[[Sources], str] = write_description
    if options.writer:
        chat = ChatModel(options.writer, f"--writer {options.writer}", 400)

        def write(sources: Sources) -> str:
            return chat.answer(prompt(sources))

    captioner = load_run(options.captioner, options.trust_code) if options.captioner else None
    return Generators(_knowledge(options), write=write, captioner=captioner)


def _knowledge(options: DescribingOptions) -> KnowledgeBase | None:
    from polymodal.cli.pairing import texts_of
    from polymodal.curation.knowledge import KnowledgeBase
    from polymodal.errors import UserError
    from polymodal.evaluation.capabilities import CanEmbed
    from polymodal.training import load_run

    if options.knowledge is None:
        if options.retriever:
            raise UserError("--retriever searches --knowledge; name a text file with one snippet per line, too.")
        return None
    snippets = texts_of(options.knowledge, training=True)
    if options.retriever is None:
        return KnowledgeBase.fit(snippets)
    run = load_run(options.retriever, options.trust_code)
    if not (isinstance(run.model, CanEmbed) and "text" in run.processor.columns):
        raise UserError(f"The run '{run.name}' does not embed texts; a method that does is clip.")

    def embed(texts: Sequence[str]) -> Any:
        return run.embed(text=list(texts))["text"].float().numpy()

    return KnowledgeBase.fit(snippets, embed)
