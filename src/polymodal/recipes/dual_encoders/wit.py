"""WIT: a dual encoder of images and the several texts that pages give them, in many languages.

Pages give an image texts of different kinds: the caption under it (reference), the description of its own media page
(attribution), the alternative text (alt), and around it the texts of page and section (context). `polymodal curate wit
PAGES` makes rows of 17 columns from pages, one for an image at a place of a page; a step takes one field of a row,
sampled by weights over the fields that it has. Rows of one image are positives of each other, and texts of it in two
languages may be compared, too (MURAL). `field_retrieval` measures each field and language, averaged over languages.

Differs from the paper in: pages are HTML files, with or without media pages, in place of Wikipedia's dumps; thresholds,
weights of fields and towers of `paper()` are ours, as the repository has columns and counts, and no code; Daft parses
pages, the steps after that are on one machine; `page_changed_recently` is null. Left out: ratings of samples by people,
models that find offensive images and personal data (flagged words are dropped), tests on Flickr30k and COCO.

Terms: text types = text_fields.FIELDS, row = image_text_rows.page_row, filters = image_text_rows.RowFilters, split
by image = _splits.connected_groups, attribution_passes_lang_id = image_text_rows.in_language, L_text-text =
losses.text_text, field sampling = Recipe.sample_field.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NotRequired

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polymodal.constraints import NonNegativeFloat, NonNegativeInt
from polymodal.corpora.corpus import Corpus
from polymodal.corpora.text_fields import CAPTIONS, LANGUAGE, PASSES_LANG_ID, field_rows, fields_of, has_fields, is_true
from polymodal.curation.image_text_rows import ImageTextRows, RowFilters, rows_of_pages
from polymodal.data.columns.fields import FieldsColumn, FieldTexts
from polymodal.data.processor import Declared, Processor
from polymodal.data.subsets import nested_subset
from polymodal.encoders.presets import bert, vit
from polymodal.errors import UserError, unknown
from polymodal.layers.distributed import all_gather
from polymodal.modalities.text import Tokens, text_ids
from polymodal.modalities.text_augmentation import without_words
from polymodal.objectives.multi_positive import multi_positive_info_nce, soft_target_contrastive
from polymodal.recipes.dual_encoders._base import DualEncoder, DualEncoderRecipe, ImageTextBatch
from polymodal.rng import ExampleRNG
from polymodal.training.grad_cache import two_halves
from polymodal.training.optimizer import OptimizerConfig
from polymodal.types import Example, Paper, Stage

paper = Paper(
    slug="wit",
    title="WIT: Wikipedia-based Image Text Dataset for Multimodal Multilingual Machine Learning",
    year=2021,
    arxiv="2103.01913",
    modalities=("image", "text"),
    code="google-research-datasets/wit@68b38670d984a7ddfb9e131596d56568ac987313",
)
SEPARATOR = " | "


class FieldBatch(ImageTextBatch):
    """image_id: equal for rows of one image. other_text: a text of the image in another language, or the row's own text
    again where has_other is 0; left out without a text-text loss."""

    image_id: Float[Tensor, " batch"]
    other_text: NotRequired[Tokens]
    has_other: NotRequired[Float[Tensor, " batch"]]


class WIT(DualEncoder):
    def __init__(self, recipe: Recipe, vocabulary: int):
        super().__init__(recipe, vocabulary)
        self.text_text_weight = recipe.text_text_weight

    def encode(self, batch: FieldBatch) -> dict[str, Tensor]:  # type: ignore[override]
        encoded = self.embed(batch) | {"image_id": batch["image_id"]}
        if "other_text" in batch:
            encoded |= {"other_text": self.encode_text(batch["other_text"]), "has_other": batch["has_other"]}
        return encoded

    def contrastive_losses(self, encoded: dict[str, Tensor]) -> dict[str, Tensor]:
        """contrastive: InfoNCE in which rows of one image are positives of each other. text_text: of texts of the image
        in two languages, over rows that have such texts, with its weight."""
        image, text, image_id, scale = encoded["image"], encoded["text"], encoded["image_id"], self.logit_scale()
        losses = {"contrastive": multi_positive_info_nce(image, text, image_id, scale)}
        if "other_text" in encoded:
            same = (image_id[:, None] == all_gather(image_id)).to(text)
            targets = same * encoded["has_other"][:, None].to(text)
            text_text = soft_target_contrastive(text, encoded["other_text"], targets, scale, targets)
            losses["text_text"] = self.text_text_weight * text_text
        return losses

    @two_halves("encode", "contrastive_losses")
    def losses(self, batch: FieldBatch) -> dict[str, Tensor]:  # type: ignore[override]
        return self.contrastive_losses(self.encode(batch))


@dataclass(frozen=True)
class Recipe(DualEncoderRecipe):
    reference_weight: NonNegativeFloat = 0.5
    """Sampling weight of the caption under the image (REF), relative to those of the other fields that a row has."""
    attribution_weight: NonNegativeFloat = 0.3
    """Sampling weight of the description on the image's own media page (ATTR)."""
    alt_weight: NonNegativeFloat = 0.2
    """Sampling weight of the alternative text (ALT)."""
    page_weight: NonNegativeFloat = 0.0
    """Sampling weight of the first text of the page, as one more field."""
    section_weight: NonNegativeFloat = 0.0
    """Sampling weight of the text of the section, as one more field."""
    combine: Literal["sample", "concatenate"] = "sample"
    """Take one field of a row at a step, or all that have a weight, in one text with separators."""
    context_words: NonNegativeInt = 0
    """Number of words of the section's text, else of the page's, that follow the text behind a separator in training;
    queries are without."""
    checked_attribution: bool = False
    """Take attributions only where language identification confirmed the language of the page; others are often in
    several languages."""
    text_text_weight: NonNegativeFloat = 0.0
    """Weight of the loss between texts of an image in two languages (MURAL); 0: images and texts alone."""
    train_languages: tuple[str, ...] = ()
    """Languages of the rows that are trained on (the column language); empty: all."""
    max_rows: NonNegativeInt = 0
    """Maximum number of training rows, a uniform sample; 0: all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not any(self.field_weights.values()):
            raise UserError("All fields have weight 0; give one a weight, such as --reference-weight 1.")

    @staticmethod
    def rows_of_pages(pages: Iterable[Mapping[str, str]], filters: RowFilters, **sources: Any) -> ImageTextRows:
        """Rows of pages, as `curation.image_text_rows.rows_of_pages` makes them."""
        return rows_of_pages(pages, filters, **sources)

    @property
    def field_weights(self) -> dict[str, float]:
        return {
            "reference": self.reference_weight,
            "attribution": self.attribution_weight,
            "alt": self.alt_weight,
            "page": self.page_weight,
            "section": self.section_weight,
        }

    def build(self, processor: Processor) -> WIT:
        return WIT(self, processor.tokenizer.vocab_size)

    def columns(self) -> Declared:
        return {**super().columns(), "fields": FieldsColumn(self.text_text_weight > 0)}

    def stages(self) -> tuple[Stage, ...]:
        lacks = self.checked_attribution or not all(self.field_weights[field] for field in CAPTIONS)
        selects = self.train_languages or self.max_rows or lacks
        return (Stage("training", rows="training_rows" if selects else None),)

    def training_corpora(self, corpus: Corpus) -> list[Corpus]:
        """The corpus. Raises UserError, before anything is trained, where its rows cannot be selected."""
        if any(has_fields(part) for part in getattr(corpus, "corpora", ())):
            raise UserError("Fields are read of one source; name a single folder or corpus.")
        if self.stages()[0].rows:
            self.training_rows(corpus)
        return [corpus]

    def training_rows(self, corpus: Corpus, processor: Processor | None = None) -> np.ndarray:
        """The training rows with a field to sample, in the languages that are trained on, of which `max_rows`.

        Raises UserError where nothing is left, and for languages of data without fields.
        """
        rows = corpus.rows("train")
        if has_fields(corpus):
            records = list(field_rows(corpus, rows))
            spoken = {str(record.get(LANGUAGE)) for record in records}
            if missing := {*self.train_languages} - spoken:
                raise unknown("language of the training rows", min(missing), spoken)
            there = [self._is_trained(record) for record in records]
            rows = rows[np.array(there, dtype=bool)]
        elif self.train_languages:
            raise UserError("--train-languages selects rows of WIT's columns; take --language for other data.")
        elif not self.reference_weight:
            raise UserError("Captions of these data count as references; give --reference-weight a value above 0.")
        if not len(rows):
            raise UserError("No training row has a field with a weight above 0; change the weights.")
        if not 0 < self.max_rows < len(rows):
            return rows
        return rows[nested_subset([corpus.key(row) for row in rows.tolist()], self.max_rows / len(rows), 0)]

    def _is_trained(self, record: Mapping[str, Any]) -> bool:
        if self.train_languages and record.get(LANGUAGE) not in self.train_languages:
            return False
        refused = {"attribution"} if self.checked_attribution and not is_true(record.get(PASSES_LANG_ID)) else set()
        return any(self.field_weights[field] for field in fields_of(record).keys() - refused)

    def sample_field(self, texts: FieldTexts, processor: Processor, rng: np.random.Generator) -> str:
        """A text of one sampled field, or of all fields; behind it the first words of the context."""
        probabilities = texts.probabilities(self.field_weights, self.checked_attribution)
        if self.combine == "concatenate":
            chosen = list(probabilities)
        else:
            places = np.cumsum(list(probabilities.values()))
            chosen = [list(probabilities)[min(int(np.searchsorted(places, rng.random())), len(places) - 1)]]
        parts = [processor.text.sample_caption(texts.fields[field], rng) for field in chosen]
        context = texts.fields.get("section") or texts.fields.get("page")
        if self.context_words and context:
            parts.append(" ".join(context[0].text.split()[: self.context_words]))
        return SEPARATOR.join(parts)

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> FieldBatch:
        """An augmented view of each image and a text of one of its fields; with it, one in another language."""
        of_rows, rngs = [example["fields"] for example in examples], example_rng.generators
        captions = [[caption for texts in row.fields.values() for caption in texts] for row in of_rows]
        images = [example["image"] for example in examples]
        image = processor.image.augmented(images, self.augmentation, example_rng, captions)
        texts = [self.sample_field(row, processor, rng) for row, rng in zip(of_rows, rngs, strict=True)]
        texts = [without_words(text, self.word_dropout, rng) for text, rng in zip(texts, rngs, strict=True)]
        ids = text_ids([row.image for row in of_rows])
        batch = FieldBatch(image=image, text=processor.text(texts), image_id=ids)
        if self.text_text_weight:
            others = [
                processor.text.sample_caption(row.translations, rng) if row.translations else text
                for row, text, rng in zip(of_rows, texts, rngs, strict=True)
            ]
            batch["other_text"] = processor.text(others)
            batch["has_other"] = torch.tensor([float(bool(row.translations)) for row in of_rows])
        return batch

    @classmethod
    def tiny(cls) -> Recipe:
        return dataclasses.replace(super().tiny(), text_text_weight=0.5, context_words=2)

    @classmethod
    def paper(cls) -> Recipe:
        """ViT-B/16 and multilingual BERT base of 119,547 tokens; the repository names no model, these are ours."""
        return cls(
            image=vit("B"),
            text=dataclasses.replace(bert("base", 128), vocab_size=119_547),
            embed_dim=512,
            word_dropout=0.0,
            batch_size=4096,
            optimizer=OptimizerConfig(learning_rate=5e-4, weight_decay=0.2, warmup_ratio=0.02),
        )
