"""M3P: one transformer learns from texts in many languages and from English pairs, whose captions are code-switched.

Captions of images are English, and texts in other languages have no images. M3P trains one single-stream transformer on
both streams at once, and replaces words of the captions by translations in random languages (multimodal code-switched
training), so that words of other languages are seen with the regions of an image. Retrieval in languages without any
paired caption then works zero-shot (`languages/unpaired`).

Terms: xMLM = losses.xmlm, MC-MLM = losses.mlm, MC-MRM = losses.mrc and losses.mrfr, MC-VLM = losses.itm, MCT =
data.code_switching, sent_ratio = Recipe.sent_ratio, word_ratio = Recipe.word_ratio, CLCM = losses.clcm,
multi_cls_loss_weight = LossConfig.multi_cls, bin_cls_loss_weight = LossConfig.bin_cls.

Differs from the paper in: regions are patches of an image encoder, which learns the words of captions first and is then
frozen (100 regions of a detector); their classes are visual words (k-means), and their pixels are regressed,
L2-normalized as features are in the paper (released code: not normalized); the projection of regions begins with
standard normal weights (torch's own); texts of the stream are captions of all languages of the training rows
(Wikipedia), as short as captions (128 tokens); a dictionary is learned by word alignment from these rows, unless
`--dictionary` names one (PanLex); weights begin at random (XLM-R); a step adds up the losses of the three streams,
optimized in turn in the released code; negatives come from the batch (from all data), and never have the text of the
positive; a caption is switched once a step (in each group); attention weights have no dropout. Left out: adversarial
training, captioning and translation, which the repository alone has.

Claim: objects and words of the test are those of training, newly arranged, and the dictionary has them, so that it
tests grounding, not transfer. Loss weights, steps and `one_word` were chosen on test scores of one seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from polymodal.constraints import AtLeastTwo, NonNegativeFloat, PositiveInt, UnitInterval
from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.multilingual import MultilingualColumn, check_translations, rows_with_captions
from polymodal.data.columns.text import LearnedTokenizer
from polymodal.data.columns.visual_words import VisualWordsColumn
from polymodal.data.masked_input import mask_texts
from polymodal.data.processor import Declared, Processor
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.modalities.image_augmentation import ImageAugmentation
from polymodal.modalities.text import UNKNOWN_LANGUAGE, text_ids
from polymodal.models.single_stream import (
    CaptionPairsBatch,
    LabelsBatch,
    LossConfig,
    MaskingConfig,
    PatchPretraining,
    SingleStreamConfig,
    StreamsBatch,
    pair_numbers,
)
from polymodal.rng import ExampleRNG
from polymodal.training.grad_cache import whole_batch
from polymodal.training.optimizer import OptimizerConfig
from polymodal.training.recipe import TrainingRecipe
from polymodal.types import Example, Paper, Stage

paper = Paper(
    slug="m3p",
    title="M3P: Learning Universal Representations via Multitask Multilingual Multimodal Pre-training",
    year=2020,
    arxiv="2006.02635",
    modalities=("image", "text"),
    code="microsoft/M3P@8d677d80c57419f92d602fcc5c5a7de22349ca2f",
    parameters={"encoder.*": 277_453_056},  # of XLM-R base without its pooler, from which it begins
)


class M3P(PatchPretraining):
    """The single-stream transformer with its heads, and the encoder of regions."""

    def __init__(self, recipe: Recipe, vocab_size: int, num_classes: int):
        losses = recipe.masking, recipe.weights, recipe.use_clcm
        super().__init__(recipe.image, recipe.encoder, vocab_size, num_classes, *losses)
        self.recipe = recipe
        finetuned = recipe.finetune_languages if recipe.finetune_fraction else ()
        self.paired_languages = tuple(dict.fromkeys((recipe.source_language, UNKNOWN_LANGUAGE, *finetuned)))

    label_losses = whole_batch(PatchPretraining.label_losses)
    finetuning_losses = whole_batch(PatchPretraining.finetuning_losses)

    @whole_batch
    def losses(self, batch: StreamsBatch) -> dict[str, Tensor]:
        """xMLM of texts, and the losses of pairs, each the sum over t2i and i2t; with `use_clcm`, CLCM of i2t."""
        grouped = self.groups(batch)
        losses = self.pair_losses(grouped, batch)
        if self.recipe.xmlm_weight:
            xmlm = self.mlm_loss(batch["mlm_text"], batch["text"].ids, batch["masked_tokens"])
            losses["xmlm"] = self.recipe.xmlm_weight * xmlm
        if self.recipe.use_clcm:
            losses["clcm"] = self.clcm_loss(grouped[1], batch["plain"], self.recipe.encoder.context_length)
        return losses


@dataclass(frozen=True)
class Recipe(TrainingRecipe):
    batch_size: AtLeastTwo = 24
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3)
    image: ImageEncoderConfig = ImageEncoderConfig(stem=(16, 32, 64), depth=0)
    encoder: SingleStreamConfig = SingleStreamConfig()
    masking: MaskingConfig = MaskingConfig()
    weights: LossConfig = LossConfig()
    source_language: str = "en"
    """Language (BCP 47 code) of the captions that go with images."""
    language_alpha: UnitInterval = 0.3
    """Exponent of the frequency by which languages of the text stream are sampled; 1 samples them as they are."""
    xmlm_weight: NonNegativeFloat = 1.0
    """Weight of xMLM; 0 leaves the multilingual stream out."""
    sent_ratio: UnitInterval = 0.8
    """Probability that a caption is code-switched; 0 switches none."""
    word_ratio: UnitInterval = 0.8
    """Probability of each word of such a caption to be replaced, if the dictionary has it; no other is measured."""
    one_word: bool = False
    """Whether one word of a caption is replaced, as in the released pre-training, or each with `word_ratio`."""
    dictionary: str = ""
    """File or folder with translations of words, as MUSE's en-de.txt; empty: learned from rows of several languages."""
    sample_n: AtLeastTwo = 4
    """Candidates of a group: one positive, and negatives from the batch."""
    use_clcm: bool = False
    """Whether i2t has contrastive matching of code-switched text, too (CLCM, in the released code alone)."""
    num_words: PositiveInt = 64
    """Visual words: classes of regions, with the background."""
    detector_fraction: UnitInterval = 0.3
    """Fraction of the budget at first in which the encoder of regions learns the words of captions, before it is
    frozen, as a detector is; 0 trains it with the rest."""
    finetune_fraction: UnitInterval = 0.0
    """Fraction of the budget at the end that fine-tunes matching; 0 pre-trains only."""
    finetune_languages: tuple[str, ...] = ("en",)
    """Languages of the captions in fine-tuning: English only, one other, or all."""
    finetune_lr_scale: NonNegativeFloat = 0.5
    """Factor of the learning rate in fine-tuning."""
    augmentation: ImageAugmentation = ImageAugmentation(scale=(0.8, 1.0))

    def stages(self) -> tuple[Stage, ...]:
        first, last = self.detector_fraction, self.finetune_fraction
        tuned: dict[str, Any] = {"batch": "finetuning_batch", "losses": "finetuning_losses", "rows": "finetuning_rows"}
        detector: dict[str, Any] = {"batch": "labels_batch", "losses": "label_losses", "rows": "training_rows"}
        encoder, heads = () if first else ("image_encoder.*",), ("word_bias", "*_head.*")
        return (
            Stage("detector", first, ("image_encoder.*", "label_head.*"), **detector),
            Stage("pre-training", 1 - first - last, ("encoder.*", *heads, *encoder), rows="training_rows"),
            Stage("fine-tuning", last, ("encoder.*", "itm_head.*", *encoder), lr_scale=self.finetune_lr_scale, **tuned),
        )

    def columns(self) -> Declared:
        grid = self.image.image_size // self.image.patch_size
        tokenizer = LearnedTokenizer(self.encoder.vocab_size, self.encoder.context_length)
        dictionary = self.dictionary if self.sent_ratio and self.word_ratio else None
        return {
            "image": VisualWordsColumn(self.image.image_size, grid=grid, num_words=self.num_words),
            "text": MultilingualColumn(tokenizer, self.source_language, self.language_alpha, dictionary),
        }

    def build(self, processor: Processor) -> M3P:
        return M3P(self, processor.text.tokenizer.vocab_size, len(processor.image.centroids))

    def training_corpora(self, corpus: Corpus) -> list[Corpus]:
        """Raise UserError for a corpus without captions in the languages, or without translations."""
        self.training_rows(corpus)
        if self.finetune_fraction:
            self.finetuning_rows(corpus)
        if self.sent_ratio and self.word_ratio and not self.dictionary:
            check_translations(corpus, self.source_language)
        return [corpus]

    def training_rows(self, corpus: Corpus, processor: Processor | None = None) -> np.ndarray:
        """The training rows with an image and a caption in the language. Raises UserError where there is none."""
        return rows_with_captions(corpus, (self.source_language, UNKNOWN_LANGUAGE))

    def finetuning_rows(self, corpus: Corpus, processor: Processor | None = None) -> np.ndarray:
        """The training rows whose image has a caption in the languages of fine-tuning."""
        unknown = (UNKNOWN_LANGUAGE,) * (self.source_language in self.finetune_languages)
        return rows_with_captions(corpus, self.finetune_languages + unknown)

    def labels_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> LabelsBatch:
        """Augmented images and a caption of each in the language."""
        column, pixels = processor.text, [example["image"] for example in examples]
        captions = column.sample_captions([column.of_source(example["text"]) for example in examples], example_rng)
        return {"image": processor.image.augmented(pixels, self.augmentation, example_rng), "caption": column(captions)}

    def pairs_batch(
        self, examples: list[Example], captions: list[str], processor: Processor, rng: ExampleRNG
    ) -> CaptionPairsBatch:
        """Augmented images with captions, classes of regions, and the random numbers of groups."""
        pixels, given = ([example[name] for example in examples] for name in ("image", "text"))
        image = processor.image.augmented(pixels, self.augmentation, rng, given)
        numbers = pair_numbers(rng, self.sample_n, self.encoder.context_length, self.image.num_patches)
        classes, group = processor.image.words(image), text_ids(captions)
        return {"image": image, "caption": processor.text(captions), "classes": classes, "group": group, **numbers}

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> StreamsBatch:
        """Pairs of image and code-switched caption, and masked texts of the multilingual stream."""
        column = processor.text
        sources = [column.of_source(example["text"]) for example in examples]
        captions = column.sample_captions(sources, example_rng)
        text, size = column(column.sample_stream(example_rng)), column.tokenizer.vocab_size
        masked = mask_texts(text, self.masking.word_prob, size, example_rng, 1, size)
        pairs = self.pairs_batch(examples, captions, processor, example_rng)
        # Last, so that all else is the same whether words are switched.
        switched = column.switch(captions, sources, example_rng, self.sent_ratio, self.word_ratio, self.one_word)
        batch: StreamsBatch = {**pairs, "caption": column(switched), "text": text, **masked}
        return {**batch, "plain": column(captions)} if self.use_clcm else batch

    def finetuning_batch(
        self, examples: list[Example], processor: Processor, example_rng: ExampleRNG
    ) -> CaptionPairsBatch:
        """Pairs of image and caption in a language of fine-tuning; each word of English ones is switched, too."""
        column = processor.text
        given = [column.in_languages(example["text"], self.finetune_languages) for example in examples]
        captions = column.sample_captions(given, example_rng)
        pairs = self.pairs_batch(examples, captions, processor, example_rng)
        switched = column.switch(captions, given, example_rng, self.sent_ratio, self.word_ratio)
        return {**pairs, "caption": column(switched)}

    @classmethod
    def tiny(cls) -> Recipe:
        return cls(
            batch_size=4,
            image=ImageEncoderConfig(32, 16, 16, 0, 2, stem=(8,)),
            encoder=SingleStreamConfig(300, 24, 16, 1, 2),
            masking=MaskingConfig(0.4, 0.4),
            sample_n=2,
            use_clcm=True,
            num_words=8,
            finetune_fraction=0.3,
        )

    @classmethod
    def paper(cls) -> Recipe:
        """XLM-R base, 100 regions of 2,048 features, 1,600 classes (released code); batch and rate: unverified."""
        return cls(
            batch_size=1024,
            optimizer=OptimizerConfig(1e-4, 0.0, (0.9, 0.98), 1e-8, "inverse_sqrt"),
            image=ImageEncoderConfig(320, 32, 2048, 0, 16, stem=(64, 128, 256)),
            encoder=SingleStreamConfig(250_002, 64, 768, 12, 12, 0.1),
            one_word=True,
            num_words=1600,
        )
