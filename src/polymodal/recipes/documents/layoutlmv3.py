"""LayoutLMv3: document pre-training with masked language modeling, masked image modeling and word-patch alignment.

One transformer encodes the words of a page with their layout and linear patch embeddings of its image. Words are masked
in spans and predicted from the vocabulary; patches are masked in blocks and predicted as the codes of a frozen image
tokenizer; and for every unmasked word a binary classifier predicts whether its patches are unmasked (section 2). Then
the encoder is fine-tuned to classify words by field, after which the scores of patches are of both; those of
pre-training alone need `--finetune-fraction 0`. `--init hf:microsoft/layoutlmv3-base` loads the released encoder.

Terms: MLM = losses.mlm, MIM = losses.mim, WPA (word-patch alignment) = losses.wpa, 1-D and 2-D relative position bias =
encoder.bias, layout embedding = encoder.layout.

Differs from the paper: pre-training starts from random weights, not RoBERTa's; the image tokenizer is a VQ-VAE that is
trained first, not DiT's; question answering (DocVQA) and layout analysis with a detector (PubLayNet) are left out.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import PositiveFloat, PositiveInt, UnitInterval
from polymodal.data.columns.image import ImageColumn
from polymodal.data.columns.words import WordsColumn
from polymodal.data.masks import expand_words, in_masked_patch, mask_blocks, mask_spans
from polymodal.data.pages import LabelledPageBatch, MaskedPageBatch, PageImageBatch, labelled_pages, page_windows
from polymodal.data.processor import Declared, Processor
from polymodal.encoders.image_tokenizer import ImageTokenizerConfig
from polymodal.encoders.page import PageEncoderConfig
from polymodal.encoders.pretrained_page import PretrainedPageConfig
from polymodal.errors import UserError
from polymodal.layers.masked_lm_head import MaskedLMHead
from polymodal.models.page_classifier import PageClassifier
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
    code="microsoft/unilm@768a3c873f598bb9b4d4dfb9267b099e35f8fe56",
    parameters={"encoder.*": 126e6},  # the released base model, without heads
)


class LayoutLMv3(PageClassifier):
    """Encoder of words and patches, image tokenizer, and the heads of MLM, MIM, WPA and token classification."""

    def __init__(self, recipe: Recipe, vocabulary: int, fields: int):
        """fields: number of classes of fields."""
        super().__init__()
        width, codes = recipe.encoder.width, recipe.tokenizer.codebook_size
        self.recipe = recipe
        self.tokenizer = recipe.tokenizer.build(recipe.encoder.patch_size)
        self.encoder = recipe.encoder.build(vocabulary)
        self.mlm_head = MaskedLMHead(width, vocabulary)
        self.mim_head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, codes))
        self.wpa_head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))
        self.field_head = nn.Sequential(nn.Dropout(recipe.encoder.dropout), nn.Linear(width, fields))
        self.has_learned_fields = recipe.finetune_fraction > 0

    def tokenizer_losses(self, batch: PageImageBatch) -> dict[str, Tensor]:
        """Return the losses of the image tokenizer."""
        return self.tokenizer.losses(batch["image"])

    def pretraining_counts(self, batch: MaskedPageBatch) -> dict[str, Tensor]:
        """Masked words, masked patches, and visible words, which have an alignment."""
        masked_words = batch["masked_words"]
        visible = (batch["words"].word >= 0) & ~masked_words
        return {"mlm": masked_words.sum(), "mim": batch["masked_patches"].sum(), "wpa": visible.sum()}

    @mean_over("pretraining_counts")
    def losses(self, batch: MaskedPageBatch) -> dict[str, Tensor]:
        """Return the losses of MLM, MIM and WPA, which have equal weights (section 2.2)."""
        words, image = batch["words"], batch["image"]
        masked_words, masked_patches = batch["masked_words"], batch["masked_patches"]
        tokens, patches = self.encoder(words, image, masked_words, masked_patches)
        embedding = self.encoder.word.weight
        losses = {"mlm": masked_lm_loss(self.mlm_head, tokens, embedding, words.tokens.ids, masked_words)}
        if self.recipe.use_mim:
            codes = self.tokenizer.encode(image)[masked_patches]
            losses["mim"] = masked_cross_entropy(self.mim_head(patches[:, 1:][masked_patches]), codes)
        if self.recipe.use_wpa:
            aligned = ~in_masked_patch(words.boxes, masked_patches, self.recipe.encoder.grid)
            visible = (words.word >= 0) & ~masked_words  # masked words are left out (section 2.2, WPA)
            logits = self.wpa_head(tokens[visible]).squeeze(-1)
            loss = F.binary_cross_entropy_with_logits(logits, aligned[visible].float(), reduction="sum")
            losses["wpa"] = global_mean(loss, len(logits))
        return losses


@dataclass(frozen=True)
class Recipe(TrainingRecipe):
    batch_size: PositiveInt = 32
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-3)
    encoder: PageEncoderConfig = PageEncoderConfig()
    tokenizer: ImageTokenizerConfig = ImageTokenizerConfig()
    """Image tokenizer whose codes MIM predicts; trained first, then frozen."""
    vocab_size: PositiveInt = 2048
    """Vocabulary size of the byte-level BPE tokenizer that is trained on the corpus."""
    mlm_probability: UnitInterval = 0.3
    """Fraction of a page's words that are masked."""
    mean_span_length: PositiveFloat = 3.0
    """Mean length of a masked span in words (Poisson)."""
    image_mask_ratio: UnitInterval = 0.4
    """Fraction of a page's patches that are masked."""
    use_mim: bool = True
    """Whether patches are masked and their codes predicted (MIM); without, there is no image tokenizer."""
    use_wpa: bool = True
    """Whether word-patch alignment (WPA) is predicted; needs MIM."""
    segment_level_layout: bool = True
    """Whether a word has the box of its segment, as an OCR engine gives for a line, instead of its own."""
    max_words: PositiveInt = 64
    """Maximum number of consecutive words of a page in a training batch."""
    tokenizer_fraction: UnitInterval = 0.1
    """Fraction of the budget that trains the image tokenizer."""
    finetune_fraction: UnitInterval = 0.4
    """Fraction of the budget for fine-tuning on the fields of words; 0 pre-trains only; 1 with --init hf:."""

    size_fields: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {"vocab_size": 8000, "max_words": 128},
        "base": {"vocab_size": 32_000, "max_words": 320},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.use_wpa and not self.use_mim:
            raise UserError("--use-wpa needs masked patches, and there are none with --no-use-mim.")

    def stages(self) -> tuple[Stage, ...]:
        codes = self.tokenizer_fraction if self.use_mim and self.finetune_fraction < 1 else 0.0
        body = ("encoder.*", "mlm_head.*", "mim_head.*", "wpa_head.*")
        tuned, fields = ("encoder.*", "field_head.*"), "token_classification"
        return (
            Stage("image tokenizer", codes, ("tokenizer.*",), {}, 3.0, batch="image_batch", losses="tokenizer_losses"),
            Stage("pre-training", 1 - codes - self.finetune_fraction, body),
            Stage("fine-tuning", self.finetune_fraction, tuned, batch=f"{fields}_batch", losses=f"{fields}_losses"),
        )

    def columns(self) -> Declared:
        mean, std = self.encoder.image_mean_std or ((), ())
        image = ImageColumn(self.encoder.image_size, mean, std, stretch=True)
        tokenizer = self.encoder.tokenizer_source(self.vocab_size)
        return {"words": WordsColumn(tokenizer, self.segment_level_layout), "image": image}

    def with_pretrained(self, name: str) -> Recipe:
        """Return the recipe with a released encoder and its tokenizer, which is fine-tuned on whole pages."""
        encoder = PretrainedPageConfig.read(name)
        return dataclasses.replace(self, encoder=encoder, finetune_fraction=1.0, max_words=encoder.context_length)

    def build(self, processor: Processor) -> LayoutLMv3:
        return LayoutLMv3(self, processor.words.tokenizer.vocab_size, len(processor.words.fields))

    def image_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> PageImageBatch:
        """Return the page images."""
        return processor(image=[example["image"] for example in examples])

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> MaskedPageBatch:
        """Return a window of words of each page, its image, and the masks of both."""
        batch = page_windows(examples, processor, self.max_words, example_rng)[1]
        of_word = batch["words"].word
        counts = (of_word.max(1).values + 1).tolist()
        spans = mask_spans(counts, self.mlm_probability, example_rng, self.mean_span_length)
        patches = mask_blocks(self.encoder.grid, self.image_mask_ratio * self.use_mim, example_rng)
        return {**batch, "masked_words": expand_words(spans, of_word), "masked_patches": patches}

    def token_classification_batch(
        self, examples: list[Example], processor: Processor, example_rng: ExampleRNG
    ) -> LabelledPageBatch:
        """Return a window of words of each page, its image, and the fields of the words."""
        return labelled_pages(examples, processor, self.max_words, example_rng)

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
        """LayoutLMv3-base, pre-trained on IIT-CDIP for 500,000 steps (section 3.1, released model configuration).

        The image tokenizer is not DiT's but a VQ-VAE with as many codes, to be trained first.
        """
        return cls(
            encoder=PageEncoderConfig(context_length=512, image_size=224, width=768, depth=12, num_heads=12),
            tokenizer=ImageTokenizerConfig(codebook_size=8192, codebook_dim=32, width=256),
            vocab_size=50_265,
            max_words=512,
            finetune_fraction=0.0,
            batch_size=2048,
            optimizer=OptimizerConfig(learning_rate=1e-4, weight_decay=1e-2, betas=(0.9, 0.98), warmup_ratio=0.048),
        )
