"""WebLI-100B: SigLIP on nested random subsets of image-text pairs, which equal examples seen compare by unique data.

What grows is the number of unique pairs: a run sees as many examples, of which those of a small subset are repeated
(section 3). Scale helps the tail (cultures, low-resource languages) where benchmarks of the head no longer improve; a
quality filter does the opposite, and low-resource languages can be sampled more often (section 5). SigLIP's towers are
of one size, and half of the image tokens are dropped in training. The evaluation `head_tail` is the inclusive panel:
head against tail of concepts, languages and other tags, with the disparity between their values. `polymodal scaling`
reads comparisons at several budgets: the power law error(x) = alpha x^-c + eps of each arm, and Wilcoxon's test between
arms. The audit of a filter is `curation.alignment.diversity_audit`. The tokenizer is learned on all pairs, for all
arms.

Differs from the paper in: the panel's data sets (ImageNet, COCO, Dollar Street, GeoDE, Landmarks, Crossmodal-3600) do
not come with the package, and of its tasks retrieval alone is divided into head and tail; AdamW; checkpoints are not
cooled down from one run, each budget is a run with a cool-down of its own; scores of a vision-language model as filter
are read from a column and not computed; there is no filter of harmful images and of personal data, and duplicates of
evaluation images are reported (`polymodal data`) and not removed; representation and association bias need images of
faces and are not measured, nor is transfer to a generative model. The claim about the filter chooses among all
languages, the paper's experiment among English pairs.

Terms: data scale = Recipe.unique_fraction, quality filter = Recipe.quality_filter, language rebalancing =
data.subsets.rebalanced, image-token dropping = Recipe.mask_ratio, power law = evaluation.scaling.fit_power_law, panel =
evaluation.head_tail.tier_scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired

import numpy as np
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from polymodal.constraints import DecayRate, NonNegativeInt, PositiveUnitInterval
from polymodal.corpora.corpus import Corpus
from polymodal.corpora.languages import ByLanguage, row_languages
from polymodal.curation.alignment import alignment_scores, column_scores, filtered
from polymodal.data.masks import mask_patches, visible_indices
from polymodal.data.processor import Processor
from polymodal.data.subsets import epochs_by_group, grouped_order, nested_subset, rebalanced
from polymodal.encoders.presets import vit
from polymodal.encoders.pretrained_image import PretrainedImageConfig
from polymodal.encoders.text import TextEncoderConfig
from polymodal.errors import UserError, unknown
from polymodal.modalities.image_augmentation import NONE
from polymodal.recipes.dual_encoders import siglip
from polymodal.recipes.dual_encoders._base import ImageTextBatch
from polymodal.rng import ExampleRNG
from polymodal.training.optimizer import OptimizerConfig
from polymodal.training.run import load_run
from polymodal.types import Example, Paper, Stage

paper = Paper(
    slug="webli-100b",
    title="Scaling Pre-training to One Hundred Billion Data for Vision Language Models",
    year=2025,
    arxiv="2502.07617",
    modalities=("image", "text"),
)
LOW_RESOURCE = ("bn", "fil", "hi", "he", "mi", "sw", "te")  # languages that the paper samples more often
LANGUAGE = "language"


class DroppedTokensBatch(ImageTextBatch):
    """kept: image tokens that the encoder sees; left out if it sees all."""

    kept: NotRequired[Int[Tensor, "batch kept"]]


class WebLISigLIP(siglip.SigLIP):
    """SigLIP whose image encoder sees a random part of the tokens in training."""

    def encode(self, batch: DroppedTokensBatch) -> dict[str, Tensor]:  # type: ignore[override]
        encoded = {"text": self.encode_text(batch["text"])}
        if (kept := batch.get("kept")) is None:
            return {"image": self.encode_image(batch["image"])} | encoded
        pooled = self.image_encoder(batch["image"], kept)[-1]
        return {"image": F.normalize(self.image_projection(pooled), dim=-1)} | encoded


@dataclass(frozen=True)
class Recipe(siglip.Recipe):
    unique_fraction: PositiveUnitInterval = 1.0
    """Fraction of the training pairs that are used, a uniform sample; of one seed, a smaller one is part of a larger
    one. 0.01 and 0.1 in the paper, of 100 billion."""
    subset_seed: NonNegativeInt = 0
    """Seed of the sample; other seeds give independent samples."""
    where: tuple[str, ...] = ()
    """Only pairs with these values of columns, such as language=en vendor=google; applied after the sample."""
    quality_filter: str = ""
    """What scores pairs: a column of numbers, or the folder of a finished run that embeds images and texts, by their
    cosine similarity (CLIP filter). Empty: no filter."""
    quality_fraction: PositiveUnitInterval = 0.5
    """Fraction of the pairs that the quality filter keeps, those with the highest scores."""
    low_resource_languages: tuple[str, ...] = ()
    """Languages (BCP 47 codes) that are sampled with a probability of their own; others keep their ratios. Bengali,
    Filipino, Hindi, Hebrew, Maori, Swahili and Telugu in the paper."""
    low_resource_probability: PositiveUnitInterval = 0.01
    """Sampling probability of each of them."""
    mask_ratio: DecayRate = 0.0
    """Fraction of the image tokens that are dropped in training; 0.5 in the paper. Needs an image encoder without a
    convolutional stem."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if strange := [one for one in self.where if not all(one.partition("="))]:
            raise UserError(f"--where takes COLUMN=VALUE, such as language=en, not '{strange[0]}'.")
        if self.mask_ratio and isinstance(self.image, PretrainedImageConfig):
            raise UserError("A pretrained image encoder sees all tokens; take --mask-ratio 0.")
        if self.mask_ratio and round(self.mask_ratio * self.image.num_patches) == self.image.num_patches:
            raise UserError(f"--mask-ratio {self.mask_ratio:g} leaves no image token; take a smaller one.")
        if self.mask_ratio and self.image.stem:
            raise UserError("Image tokens cannot be dropped behind a convolutional stem; leave it out (--image.stem).")

    def build(self, processor: Processor) -> WebLISigLIP:
        return WebLISigLIP(self, processor.tokenizer.vocab_size)

    def stages(self) -> tuple[Stage, ...]:
        order = "language_order" if self.low_resource_languages else ""
        rows = "training_rows" if self.unique_fraction < 1 or self.where or self.quality_filter else None
        return (Stage("training", rows=rows, order=order),)

    def cacheable_encoders(self) -> tuple[str, ...]:
        return super().cacheable_encoders() if not self.mask_ratio else ("text_encoder",)

    def training_corpora(self, corpus: Corpus) -> list[Corpus]:
        """The corpus. Raises UserError, before anything is trained, where its rows cannot be selected or ordered."""
        selects = self.stages()[0].rows or self.low_resource_languages
        if selects and (hasattr(corpus, "blocks") or hasattr(corpus, "corpora")):
            raise UserError("Subsets are made of one source whose rows are known; name a single one, without --stream.")
        if self.low_resource_languages and isinstance(corpus, ByLanguage):
            raise UserError("--low-resource-languages and --language-temperature both sample languages; give one.")
        if self.low_resource_languages:
            self.language_rows(corpus)
        return [corpus]

    def training_rows(self, corpus: Corpus, processor: Processor | None = None) -> np.ndarray:
        """The sample, of it what `where` names, and of that what the quality filter keeps.

        Samples are made before anything is known of a pair (section 3), so that all arms sample alike. Raises UserError
        where nothing is left.
        """
        rows = corpus.rows("train")
        if self.unique_fraction < 1:
            names = corpus.raw_values(rows, corpus.keys) if corpus.keys else rows.tolist()
            rows = rows[nested_subset([str(name) for name in names], self.unique_fraction, self.subset_seed)]
        for condition in self.where:
            rows = rows[_having(corpus, rows, *condition.split("=", 1))]
        if not len(rows):
            raise UserError(f"No training pair has {' and '.join(self.where)}; take other values of --where.")
        return rows[filtered(self._quality(corpus, rows), self.quality_fraction)] if self.quality_filter else rows

    def _quality(self, corpus: Corpus, rows: np.ndarray) -> np.ndarray:
        if (name := self.quality_filter) in corpus.table.column_names:
            return column_scores(corpus, rows, name)
        if not Path(name).is_dir():
            raise UserError(f"--quality-filter names a column of the data or the folder of a run; '{name}' is neither.")
        return alignment_scores(load_run(name), corpus, rows)

    def language_rows(self, corpus: Corpus) -> dict[str, np.ndarray]:
        """The training rows of each language. Raises UserError for rows with captions in several languages."""
        rows = corpus.rows("train")
        spoken = [{*languages} for languages in row_languages(corpus, rows)]
        if several := [row for row, languages in zip(rows, spoken, strict=True) if len(languages) > 1]:
            raise UserError(
                f"{len(several)} examples have captions in several languages, the first of them "
                f"{corpus.key(int(several[0]))}; --low-resource-languages samples examples of one language each."
            )
        only = np.array([next(iter(languages), "") for languages in spoken])
        missing = {*self.low_resource_languages} - {*only}
        if missing:
            raise unknown("language of the training pairs", min(missing), {*only.tolist()})
        return {language: rows[only == language] for language in np.unique(only).tolist()}

    def language_order(self, corpus: Corpus, mined: np.ndarray | None, seed: int) -> Any:
        """An endless order of rows in which each low-resource language has its probability."""
        groups = self.language_rows(corpus)
        probabilities = self.language_probabilities(groups)
        return grouped_order(list(groups.values()), [probabilities[name] for name in groups], seed)

    def language_probabilities(self, groups: dict[str, np.ndarray]) -> dict[str, float]:
        counts = {name: len(rows) for name, rows in groups.items()}
        return rebalanced(counts, self.low_resource_languages, self.low_resource_probability)

    def epochs_by_language(self, corpus: Corpus, examples: int) -> dict[str, float]:
        """How often each pair of a language is seen among so many examples: repetition is what up-sampling costs."""
        groups = self.language_rows(corpus.with_splits({**corpus.splits, "train": self.training_rows(corpus)}))
        counts = {name: len(rows) for name, rows in groups.items()}
        return epochs_by_group(counts, self.language_probabilities(groups), examples)

    def training_batch(
        self, examples: list[Example], processor: Processor, example_rng: ExampleRNG
    ) -> DroppedTokensBatch:
        """As SigLIP's, with the image tokens that are kept, sampled for each image."""
        batch = DroppedTokensBatch(**super().training_batch(examples, processor, example_rng))
        if self.mask_ratio:
            batch["kept"] = visible_indices(mask_patches(self.image.num_patches, self.mask_ratio, example_rng))
        return batch

    @classmethod
    def tiny(cls) -> Recipe:
        return cls(**vars(super().tiny()) | {"mask_ratio": 0.5})

    @classmethod
    def paper(cls) -> Recipe:
        """ViT-H/14 as image and text tower at 224 px, texts of 64 tokens, batch 32,768 (section 3).

        The tokenizer is mT5's, of 250,112 tokens. Warmup and cool-down are 200 million of 100 billion examples. Weight
        decay and betas are those of `siglip`. The time scale of the inverse square root is not in the paper: it is the
        warmup here, 10,000 steps by default in big_vision.
        """
        image = vit("H", 14, pooling="map")
        return cls(
            image=image,
            text=TextEncoderConfig(
                250_112, context_length=64, width=image.width, depth=image.depth, num_heads=image.num_heads,
                pool_type="eos",
            ),
            embed_dim=image.width,
            augmentation=NONE,
            word_dropout=0.0,
            batch_size=32768,
            logit_bias_init=-10.0,
            mask_ratio=0.5,
            optimizer=OptimizerConfig(
                learning_rate=1e-3, weight_decay=1e-4 / 1e-3, betas=(0.9, 0.95), lr_scheduler="inverse_sqrt_cooldown",
                warmup_ratio=0.002, cooldown_ratio=0.002,
            ),
        )  # fmt: skip


def _having(corpus: Corpus, rows: np.ndarray, column: str, value: str) -> np.ndarray:
    """Whether each row has a value in a column; `language` is that of its captions unless there is such a column."""
    if column == LANGUAGE and column not in corpus.table.column_names:
        return np.array([value in languages for languages in row_languages(corpus, rows)], dtype=bool)
    if column not in corpus.table.column_names:
        raise unknown("column", column, [*corpus.table.column_names, LANGUAGE])
    return np.array([str(one) == value for one in corpus.raw_values(rows, column)], dtype=bool)
