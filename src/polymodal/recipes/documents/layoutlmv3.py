"""LayoutLMv3: document pre-training with masked language modeling, masked image modeling and word-patch alignment.

Words are hidden in spans and patches in blocks; words are predicted from the vocabulary, patches from the codes of a
frozen image tokenizer. A third loss ties the two: for every word in sight, is its own patch in sight, too? There is no
convolution and no detector below, and the same body then tags words, classifies pages and sees regions (section 2).

Terms: MLM = losses.mlm, MIM = losses.mim, WPA (word-patch alignment) = losses.wpa.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import PositiveFloat, PositiveInt, UnitInterval
from polymodal.data.columns.image import ImageColumn
from polymodal.data.columns.text import LearnedTokenizer
from polymodal.data.columns.words import NO_FIELD, WordsColumn, first_pieces, random_windows
from polymodal.data.masks import expand_words, mask_blocks, mask_spans
from polymodal.data.processor import Declared, Processor
from polymodal.encoders.image_tokenizer import ImageTokenizerConfig
from polymodal.encoders.page import PageEncoderConfig
from polymodal.errors import UserError
from polymodal.layers.masked_lm_head import MaskedLMHead
from polymodal.modalities.document import BOX_SCALE, PageTokens, Word
from polymodal.objectives.masked_modeling import masked_cross_entropy, masked_lm_loss
from polymodal.objectives.reduction import global_mean, mean_over
from polymodal.rng import ExampleRNG
from polymodal.training.optimizer import OptimizerConfig
from polymodal.training.recipe import TrainingRecipe
from polymodal.types import Example, Paper, Stage

paper = Paper(
    slug="layoutlmv3",
    title="LayoutLMv3: Pre-training for Document AI with Unified Text and Image Masking",
    year=2022,
    arxiv="2204.08387",
    modalities=("image", "words"),
    parameters={"encoder.*": 126e6},  # the released base model, without heads
)


def in_masked_patch(
    boxes: Int[Tensor, "batch length 4"], masked: Bool[Tensor, "batch patches"], grid: int
) -> Bool[Tensor, "batch length"]:
    """Whether any of the patches that a box touches is hidden. boxes: in thousandths of the page."""
    first = (boxes[..., :2] * grid // BOX_SCALE).clamp(max=grid - 1)
    last = ((boxes[..., 2:] - 1).maximum(boxes[..., :2]) * grid // BOX_SCALE).clamp(max=grid - 1)
    # Summed over all patches above and to the left, four corners tell how many are hidden inside a rectangle.
    sums = F.pad(masked.unflatten(1, (grid, grid)).long().cumsum(1).cumsum(2), (1, 0, 1, 0))
    page = torch.arange(len(boxes), device=boxes.device)[:, None]
    (left, top), (right, bottom) = first.unbind(-1), (last + 1).unbind(-1)
    inside = sums[page, bottom, right] - sums[page, top, right] - sums[page, bottom, left] + sums[page, top, left]
    return inside > 0


class ImageBatch(TypedDict):
    image: Float[Tensor, "batch 3 size size"]


class PageBatch(ImageBatch):
    words: PageTokens


class MaskedPageBatch(PageBatch):
    """masked_words, masked_patches: True where masked."""

    masked_words: Bool[Tensor, "batch length"]
    masked_patches: Bool[Tensor, "batch patches"]


class LabelledPageBatch(PageBatch):
    """fields: class of the field at the first token of each word, `NO_FIELD` elsewhere."""

    fields: Int[Tensor, "batch length"]


class LayoutLMv3(nn.Module):
    """The encoder of words and patches, and the heads that name what is hidden."""

    def __init__(self, recipe: Recipe, vocabulary: int, fields: int):
        """fields: kinds of field that words are tagged with."""
        super().__init__()
        width = recipe.encoder.width
        self.recipe = recipe
        self.tokenizer = recipe.tokenizer.build(recipe.encoder.patch_size)
        self.encoder = recipe.encoder.build(vocabulary)
        self.mlm_head = MaskedLMHead(width, vocabulary)
        self.patch_head = nn.Linear(width, recipe.tokenizer.codebook_size)
        self.alignment_head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))
        self.field_head = nn.Sequential(nn.Dropout(recipe.encoder.dropout), nn.Linear(width, fields))

    def tokenizer_losses(self, batch: ImageBatch) -> dict[str, Tensor]:
        """Return the losses of the image tokenizer."""
        return self.tokenizer.losses(batch["image"])

    @mean_over("num_tagged")
    def token_classification_losses(self, batch: LabelledPageBatch) -> dict[str, Tensor]:
        """Return the cross-entropy of the fields of tagged words."""
        tokens, _ = self.encoder(batch["words"], batch["image"])
        tagged = batch["fields"] != NO_FIELD
        loss = masked_cross_entropy(self.field_head(tokens)[tagged], batch["fields"][tagged])
        return {"token_classification": loss}

    def num_tagged(self, batch: LabelledPageBatch) -> dict[str, Tensor]:
        """Tokens with a field."""
        return {"token_classification": (batch["fields"] != NO_FIELD).sum()}

    def pretraining_counts(self, batch: MaskedPageBatch) -> dict[str, Tensor]:
        """Masked words, masked patches, and visible words, which have an alignment."""
        masked_words = batch["masked_words"]
        visible = (batch["words"].word >= 0) & ~masked_words
        return {"mlm": masked_words.sum(), "mim": batch["masked_patches"].sum(), "wpa": visible.sum()}

    @mean_over("pretraining_counts")
    def losses(self, batch: MaskedPageBatch) -> dict[str, Tensor]:
        """Hidden words, hidden patches, and whether words in sight lie on patches in sight; equal weights."""
        words, image = batch["words"], batch["image"]
        masked_words, masked_patches = batch["masked_words"], batch["masked_patches"]
        tokens, patches = self.encoder(words, image, masked_words, masked_patches)
        embedding = self.encoder.word.weight
        losses = {"mlm": masked_lm_loss(self.mlm_head, tokens, embedding, words.tokens.ids, masked_words)}
        if self.recipe.use_mim:
            codes = self.tokenizer.encode(image)[masked_patches]
            losses["mim"] = masked_cross_entropy(self.patch_head(patches[:, 1:][masked_patches]), codes)
        if self.recipe.use_wpa:
            aligned = ~in_masked_patch(words.boxes, masked_patches, self.recipe.encoder.grid)
            asked = (words.word >= 0) & ~masked_words  # or the model would link hidden words to hidden patches
            guess = self.alignment_head(tokens[asked]).squeeze(-1)
            loss = F.binary_cross_entropy_with_logits(guess, aligned[asked].float(), reduction="sum")
            losses["wpa"] = global_mean(loss, len(guess))
        return losses

    def classify_tokens(self, batch: PageBatch) -> Float[Tensor, "words fields"]:
        """Logits of the fields of all words of the batch, page by page."""
        tokens, _ = self.encoder(batch["words"], batch["image"])
        return self.field_head(tokens[first_pieces(batch["words"])])

    def features(self, batch: PageBatch) -> dict[str, Float[Tensor, "batch width"]]:
        """The start mark after it has read words and image, and the mean of the patches of the image alone."""
        tokens, _ = self.encoder(batch["words"], batch["image"])
        return {"page": tokens[:, 0], "image": self.encoder.encode_image(batch["image"])[:, 1:].mean(1)}


@dataclass(frozen=True)
class Recipe(TrainingRecipe):
    batch_size: PositiveInt = 32
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-3)
    encoder: PageEncoderConfig = PageEncoderConfig()
    tokenizer: ImageTokenizerConfig = ImageTokenizerConfig()
    """What gives patches their codes; trained first, then frozen."""
    vocab_size: PositiveInt = 2048
    """Entries of the byte-level BPE tokenizer."""
    mlm_probability: UnitInterval = 0.3
    """Share of a page's words that are hidden."""
    mean_span_length: PositiveFloat = 3.0
    """Mean length of a hidden span, in words (Poisson)."""
    image_mask_ratio: UnitInterval = 0.4
    """Share of a page's patches that are hidden."""
    use_mim: bool = True
    """Whether the codes of hidden patches are predicted; without, there is no image tokenizer and patches stay in
    sight."""
    use_wpa: bool = True
    """Whether every word in sight tells if its patch is in sight; needs hidden patches."""
    segment_level_layout: bool = True
    """Whether a word stands in the box of its whole segment, as with an OCR engine's lines, or in its own."""
    max_words: PositiveInt = 64
    """Words in a row that training takes of a page."""
    tokenizer_fraction: UnitInterval = 0.1
    """Share of the budget that trains the image tokenizer."""
    finetune_fraction: UnitInterval = 0.4
    """Share of the budget that learns the corpus's fields with all weights; 0 pre-trains only."""

    def __post_init__(self) -> None:
        if self.use_wpa and not self.use_mim:
            raise UserError("--use-wpa asks for hidden patches, and there are none with --no-use-mim.")

    def stages(self) -> tuple[Stage, ...]:
        codes = self.tokenizer_fraction if self.use_mim and self.finetune_fraction < 1 else 0.0
        body = ("encoder.*", "mlm_head.*", "patch_head.*", "alignment_head.*")
        return (
            Stage(
                "image tokenizer",
                codes,
                ("tokenizer.*",),
                lr_scale=3.0,
                batch="image_batch",
                losses="tokenizer_losses",
            ),
            Stage("pre-training", 1 - codes - self.finetune_fraction, body),
            Stage(
                "fine-tuning",
                self.finetune_fraction,
                ("encoder.*", "field_head.*"),
                batch="token_classification_batch",
                losses="token_classification_losses",
            ),
        )

    def columns(self) -> Declared:
        tokenizer = LearnedTokenizer(self.vocab_size, self.encoder.context_length)
        image = ImageColumn(self.encoder.image_size, stretch=True)
        return {"words": WordsColumn(tokenizer, self.segment_level_layout), "image": image}

    def build(self, processor: Processor) -> LayoutLMv3:
        return LayoutLMv3(self, processor.words.tokenizer.vocab_size, len(processor.words.fields))

    def image_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> ImageBatch:
        """Images alone."""
        return processor(image=[example["image"] for example in examples])

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> MaskedPageBatch:
        """A window of every page's words, the image, and what is hidden of both."""
        batch = self._windows(examples, processor, example_rng)[1]
        of_word = batch["words"].word
        spans = mask_spans(
            (of_word.max(1).values + 1).tolist(), self.mlm_probability, example_rng, self.mean_span_length
        )
        hidden = expand_words(spans, of_word)
        patches = mask_blocks(self.encoder.grid, self.image_mask_ratio * self.use_mim, example_rng)
        return {**batch, "masked_words": hidden, "masked_patches": patches}

    def token_classification_batch(
        self, examples: list[Example], processor: Processor, example_rng: ExampleRNG
    ) -> LabelledPageBatch:
        """A window of every page's words with their fields, and the image."""
        pages, batch = self._windows(examples, processor, example_rng)
        return {**batch, "fields": processor.words.field_numbers(pages, batch["words"])}

    def _windows(
        self, examples: list[Example], processor: Processor, example_rng: ExampleRNG
    ) -> tuple[list[list[Word]], PageBatch]:
        pages = random_windows([example["words"] for example in examples], self.max_words, example_rng)
        return pages, processor(words=pages, image=[example["image"] for example in examples])

    @classmethod
    def tiny(cls) -> Recipe:
        """Return the smallest preset, for tests."""
        return cls(
            encoder=PageEncoderConfig(context_length=24, image_size=32, width=16, depth=1, num_heads=2),
            tokenizer=ImageTokenizerConfig(codebook_size=16, width=16),
            vocab_size=300,
            max_words=8,
            batch_size=4,
        )

    @classmethod
    def paper(cls) -> Recipe:
        """LayoutLMv3-base on IIT-CDIP (section 3.1, released model configuration)."""
        return cls(
            encoder=PageEncoderConfig(context_length=512, image_size=224, width=768, depth=12, num_heads=12),
            tokenizer=ImageTokenizerConfig(codebook_size=8192, codebook_dim=32, width=256),
            vocab_size=50_265,
            max_words=512,
            batch_size=2048,
            optimizer=OptimizerConfig(learning_rate=1e-4, weight_decay=1e-2, betas=(0.9, 0.98), warmup_ratio=0.048),
        )
