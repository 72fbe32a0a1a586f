"""EgMM-Corpus: CLIP that is trained on pairs of culture-specific concepts which people have validated.

A corpus is made of a list of concepts of a culture (`polymodal collect`): names and aliases, images by concept with
source and license, texts, copies by perceptual hashes. Of every entry, annotators check that it is authentic and that
image and text agree (`polymodal review`, a local page). The result is a benchmark, on which CLIP finds few names, and a
small training set. `--pairs` chooses validated or unchecked pairs of such a corpus; training starts from a base with
`--init`. The evaluation `cultural_gap` is the paper's zero-shot accuracy over all concepts, top-1 and top-5, in total
and by category, with the gap to equally many general concepts.

The abstract and summaries of the paper were read, no full text, and there is no code: the steps of the collection, both
questions, adjudication of two annotators with Cohen's kappa, prompts, the gap and training are ours.

Differs from the paper in: its concepts and images do not come with the package; images are searched for by the user,
as are texts of an encyclopedia; watermarks are not detected; nested names, such as a mosque and its square, are for
aliases of the list and the note that annotators see, and there is no list of confusions; few-shot adapters and a linear
probe by concept are left out, for which the mean of a concept's training images stands, as are the accuracy of
categories by their names and prompts with background texts. A score of image and text orders the queue and drops
nothing. `paper()` is ViT-B/32: the paper's CLIP is not named where it was read. The claim calls emoji of foods and
places a culture, with one number of pairs, 200; defects are injected, and annotators simulated. The tokenizer is
learned on all names, for base and arms alike.

Terms: concept list = curation.concepts.merge_concepts, automatic cleaning = curation.concepts.without_copies, dual
human verification = curation.annotation.adjudicated, validated pairs = Recipe.pairs, cultural gap =
evaluation.cultural_gap.gap_score, purity after n passes = curation.annotation.expected_purity.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from polymodal.corpora.corpus import Corpus
from polymodal.corpora.mixture import Mixture
from polymodal.data.processor import Processor
from polymodal.errors import UserError, unknown
from polymodal.recipes.dual_encoders import clip
from polymodal.types import Paper, Stage

paper = Paper(
    slug="egmm-corpus",
    title="EgMM-Corpus: A Multimodal Vision-Language Dataset for Egyptian Culture",
    year=2025,
    arxiv="2510.16198",
    modalities=("image", "text"),
)
STATUS, CULTURE = "status", "culture"


@dataclass(frozen=True)
class Recipe(clip.Recipe):
    pairs: tuple[str, ...] = ("validated",)
    """Values of the column `status` of pairs that are trained on, such as validated, or unchecked; empty takes all.
    Pairs without a value, and all pairs of a corpus without this column, are trained on, too."""
    cultures: tuple[str, ...] = ()
    """Values of the column `culture` of pairs that are trained on, such as general for a base; empty takes all."""

    def stages(self) -> tuple[Stage, ...]:
        return (Stage("training", rows="training_rows"),)

    def training_corpora(self, corpus: Corpus) -> list[Corpus]:
        """The corpus. Raises UserError, before anything is trained, where none of its pairs is left."""
        self.training_rows(corpus)
        return [corpus]

    def training_rows(self, corpus: Corpus, processor: Processor | None = None) -> np.ndarray:
        """Return the training pairs of these cultures and of this status. Raises UserError where there are none."""
        rows = corpus.splits.get("train", np.zeros(0, dtype=np.int64))
        if not len(rows):
            raise UserError(f"The training split of '{corpus.name}' has no pair.{corpus.hint}")
        if self.cultures:
            rows = rows[_having(corpus, CULTURE, self.cultures)[rows]]
            if not len(rows):
                raise UserError(f"No training pair is of the cultures {', '.join(self.cultures)}.{corpus.hint}")
        if self.pairs:
            rows = rows[_having(corpus, STATUS, self.pairs)[rows]]
        if not len(rows):
            raise UserError(
                f"No training pair is {' or '.join(self.pairs)}; `polymodal review FOLDER` checks pairs, its --out "
                "writes the validated ones, and --pairs unchecked trains on those that nobody has checked."
            )
        return rows

    @classmethod
    def paper(cls) -> Recipe:
        """The hyper-parameters of CLIP ViT-B/32; what the paper evaluates is a released CLIP."""
        return cls(**vars(clip.Recipe.paper()))


def _having(corpus: Corpus, column: str, wanted: tuple[str, ...]) -> np.ndarray:
    """Return for each row whether its value is wanted. A pair without a status is; the column of cultures is needed.

    Raises UserError for a corpus without cultures, and for shards that are streamed, where values are not known.
    """
    from polymodal.corpora.stream import Stream

    if isinstance(corpus, Mixture):
        return np.concatenate([_having(part, column, wanted) for part in corpus.corpora])
    if isinstance(corpus, Stream):
        if column == CULTURE or column in corpus.blocks.shards.schema.names:
            raise UserError(f"Pairs are selected by the column '{column}' before training; leave out --stream.")
        return np.ones(len(corpus), dtype=bool)
    if column not in corpus.table.column_names:
        if column == CULTURE:
            raise unknown("column", column, corpus.table.column_names)
        return np.ones(len(corpus), dtype=bool)
    values = corpus.raw_values(np.arange(len(corpus)), column)
    none = column == STATUS
    return np.array([none if value is None else str(value) in wanted for value in values], dtype=bool)
