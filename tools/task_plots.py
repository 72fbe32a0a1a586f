"""Train small runs on built-in corpora, and write the plots of tasks that the documentation shows.

`python tools/task_plots.py RUNS [NAME ...]`: RUNS is the folder that runs are trained in; those that are there are not
trained again. NAME: only these tasks. The plots are written to `docs/tasks/plots`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polymodal as pm
from polymodal import corpora, recipes
from polymodal.claims import cloc, fdt, map_uncertainty, uknow
from polymodal.claims import inductive_moment_matching as imm
from polymodal.corpora.corpus import Corpus
from polymodal.evaluation import write_plots
from polymodal.recipes.language_models import mono_internvl
from polymodal.recipes.video import alpro
from polymodal.training import Run, load_run

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import synthetic

PLOTS = ROOT / "docs" / "tasks" / "plots"
MAX_BYTES = 100_000


@dataclass(frozen=True)
class Example:
    """A run whose plots are shown. seconds: of training. options: fields of the recipe; start: the whole recipe."""

    recipe: str
    corpus: str
    tasks: tuple[str, ...]
    seconds: float = 120
    options: Mapping[str, Any] = field(default_factory=dict)
    start: Any = None

    def opened(self, folder: Path) -> Corpus:
        """The corpus; the synthetic one of the tests is written to the folder."""
        if self.corpus != "synthetic":
            return corpora.load_corpus(self.corpus)
        place = folder / "synthetic"
        return synthetic.open_corpus(place) if place.is_dir() else synthetic.corpus(place)

    def run(self, folder: Path) -> Run:
        """The run of this name in the folder, which is trained if it is not there."""
        place = folder / f"{self.recipe}-{self.corpus}"
        if not (place / "model.safetensors").is_file():
            shutil.rmtree(place, ignore_errors=True)
            recipe = self.start or recipes.find(self.recipe)(**self.options)
            pm.train(recipe, self.opened(folder), pm.Budget(seconds=self.seconds), out=place)
        return load_run(place)


_tiny = mono_internvl.Recipe.tiny()
CAPTIONER = replace(
    _tiny, batch_size=16, freeze_llm=False, language_model=replace(_tiny.language_model, width=48, depth=2, mlp_dim=96)
)
LOCALIZER = replace(cloc.claim.treatment, prompter_pool_type="prompt", grounding_weight=1.0)
EXAMPLES = (
    Example("siglip", "emoji", ("cross_modal_retrieval",), 100),
    Example(
        "activity_clip",
        "emoji_activities",
        ("label_classification",),
        40,
        {"pretraining": "none", "batch_size": 32},
    ),
    Example("clippings", "emoji_records", ("linking",), 60),
    Example("uknow", "emoji_vendors", ("link_prediction",), 60, start=uknow.reasoning.treatment),
    Example("simvg", "referring", ("referring",), 200),
    Example("inductive_moment_matching", "digits", ("image_generation",), 240, start=imm.claim.treatment),
    Example("dgvae", "viewers", ("recommendation", "item_prototypes", "prototype_words"), 40),
    Example("layoutlmv3", "documents", ("entity_extraction", "page_patches"), 200),
    Example("alpro", "synthetic", ("answer_classification",), 75, start=alpro.Recipe.tiny()),
    Example("mono_internvl", "synthetic", ("vqa_captioning",), 75, start=CAPTIONER),
    Example("sparc", "scenes", ("grounding",), 120),
    Example("cloc", "scenes", ("region_retrieval",), 180, start=LOCALIZER),
    Example("uniqa", "rated_images", ("score_prediction",), 120),
    Example("fdt", "scenes", ("discrete_tokens",), 60, start=fdt.claim.treatment),
    Example(
        "map_uncertainty",
        "emoji_keywords",
        ("ambiguity", "calibration"),
        60,
        start=map_uncertainty.claim.treatment,
    ),
    Example("mqdd", "function_posts", ("duplicate_detection",), 120),
    Example("abn_blip", "studies", ("findings",), 180),
)


def plots(runs: Path, names: set[str]) -> Iterator[Path]:
    """Write the plots of the tasks, or of all without names, one after the other."""
    PLOTS.mkdir(exist_ok=True)
    for example in EXAMPLES:
        if wanted := set(example.tasks) & (names or set(example.tasks)):
            with tempfile.TemporaryDirectory() as folder:
                for path in write_plots(example.run(runs), example.opened(runs), Path(folder)):
                    if path.stem in wanted:
                        assert path.stat().st_size < MAX_BYTES, path
                        yield Path(shutil.copy(path, PLOTS / path.name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME")
    options = parser.parse_args()
    for path in plots(options.runs, set(options.names)):
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
