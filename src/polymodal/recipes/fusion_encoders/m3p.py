"""M3P: one transformer learns from texts in many languages and from English pairs, whose captions are code-switched.

Captions of images are English, and texts in other languages have no images. M3P trains one single-stream transformer on
both streams at once, and replaces words of the captions by translations in random languages (multimodal code-switched
training), so that words of other languages are seen with the regions of an image. Retrieval in languages without any
paired caption then works zero-shot (`languages/unpaired`).

Terms: xMLM = losses.xmlm, MC-MLM = losses.mlm, MC-MRM = losses.mrc and losses.mrfr, MC-VLM = losses.itm, MCT =
data.code_switching, sent_ratio = Recipe.sent_ratio, word_ratio = Recipe.word_ratio, CLCM = losses.clcm,
multi_cls_loss_weight = LossConfig.multi_cls, bin_cls_loss_weight = LossConfig.bin_cls.

Differs from the paper in: regions are the patches of an image encoder that is trained with the rest (paper: up to 100
regions of a frozen detector), whose classes are visual words (k-means) and whose regression target is its own feature,
detached and L2-normalized, as the paper has it (released code: not normalized); texts of the stream are captions of all
languages of the training rows (Wikipedia in 100 languages); a dictionary is learned by word alignment from these rows,
unless `--dictionary` names one (PanLex); weights begin at random (XLM-R); a step adds up the losses of the three
streams, which the released code optimizes one after the other; negatives come from the batch (from all data), and never
have the text of the positive; a caption is switched once a step; attention weights have no dropout. Left out: the
adversarial training and the captioning and translation tasks of the repository, which the paper does not have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NotRequired

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from polymodal.constraints import AtLeastTwo, NonNegativeFloat, PositiveInt, UnitInterval
from polymodal.corpora.corpus import Corpus
from polymodal.data.code_switching import code_switch, code_switch_word
from polymodal.data.columns.multilingual import MultilingualColumn, rows_with_captions
from polymodal.data.columns.text import LearnedTokenizer
from polymodal.data.columns.visual_words import VisualWordsColumn
from polymodal.data.masked_input import MaskedTexts, mask_texts
from polymodal.data.processor import Declared, Processor
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.layers.distributed import all_gather, all_gather_tokens, all_gather_with_grad, rank
from polymodal.modalities.image_augmentation import ImageAugmentation
from polymodal.modalities.text import UNKNOWN_LANGUAGE, Tokens, text_ids
from polymodal.models.single_stream import (
    LossConfig,
    MaskingConfig,
    PairNumbers,
    Pairs,
    SingleStreamConfig,
    SingleStreamPretraining,
    grid_boxes,
    join_halves,
    select_texts,
)
from polymodal.objectives.image_text_matching import ITMGroups, itm_group_loss, positive_mask, sample_itm_groups
from polymodal.rng import ExampleRNG
from polymodal.training.grad_cache import whole_batch
from polymodal.training.optimizer import OptimizerConfig
from polymodal.training.recipe import TrainingRecipe
from polymodal.types import Batch, Example, Paper, Stage

paper = Paper(
    slug="m3p",
    title="M3P: Learning Universal Representations via Multitask Multilingual Multimodal Pre-training",
    year=2020,
    arxiv="2006.02635",
    modalities=("image", "text"),
    code="microsoft/M3P@8d677d80c57419f92d602fcc5c5a7de22349ca2f",
    parameters={"encoder.*": 277_453_056},  # of XLM-R base without its pooler, from which it begins
)


class PairsBatch(PairNumbers):
    """caption: code-switched, or as it is. classes: of each region. group: id of each caption before it is switched;
    equal ones are no negatives of each other. plain: the captions as they are, for CLCM."""

    image: Float[Tensor, "batch 3 size size"]
    caption: Tokens
    classes: Int[Tensor, "batch regions"]
    group: Float[Tensor, " batch"]
    plain: NotRequired[Tokens]


class StreamsBatch(PairsBatch, MaskedTexts):
    """text: of the multilingual stream, which has no images."""

    text: Tokens


class M3P(SingleStreamPretraining):
    """The single-stream transformer with its heads, and the encoder of regions."""

    def __init__(self, recipe: Recipe, vocab_size: int, num_classes: int):
        image = recipe.image
        sizes = vocab_size, image.num_patches, image.width, num_classes
        super().__init__(recipe.encoder, *sizes, recipe.masking, recipe.weights, recipe.use_clcm)
        self.recipe = recipe
        self.image_encoder = image.build()
        self.register_buffer("boxes", grid_boxes(image.image_size // image.patch_size), persistent=False)
        finetuned = recipe.finetune_languages if recipe.finetune_fraction else ()
        self.paired_languages = tuple(dict.fromkeys((recipe.language, UNKNOWN_LANGUAGE, *finetuned)))

    def groups(self, batch: PairsBatch) -> list[tuple[Pairs, ITMGroups, Int[Tensor, " pairs"]]]:
        """Return the pairs of t2i (a text among images), then of i2t (an image among texts); with the text's example of
        each group's positive."""
        features = all_gather_with_grad(self.image_encoder(batch["image"])[0])
        captions = all_gather_tokens(batch["caption"], self.recipe.encoder.context_length)
        classes, count = all_gather(batch["classes"]), len(batch["image"])
        own = torch.arange(count, device=features.device) + count * rank()
        positive = positive_mask(count, len(features), own, batch["group"])
        directions = []
        for direction in range(2):
            groups = sample_itm_groups(own, positive, batch["slots"][:, direction])
            query = own.repeat_interleave(groups.candidates.shape[1])
            texts, images = (query, groups.candidates.flatten())[:: 1 if direction == 0 else -1]
            pairs = Pairs(select_texts(captions, texts), features[images], self.boxes, classes[images])
            directions.append((pairs, groups, query - count * rank()))
        return directions

    @whole_batch
    def losses(self, batch: StreamsBatch) -> dict[str, Tensor]:
        """xMLM of texts, and the losses of pairs, each the sum over t2i and i2t; with `use_clcm`, CLCM of i2t."""
        losses: dict[str, Tensor] = {}
        if self.recipe.xmlm_weight:
            xmlm = self.mlm_loss(batch["mlm_text"], batch["text"].ids, batch["masked_tokens"])
            losses["xmlm"] = self.recipe.xmlm_weight * xmlm
        for direction, (pairs, groups, query) in enumerate(self.groups(batch)):
            numbers = (batch[name][:, direction] for name in ("mask_kind", "word_numbers", "region_numbers"))
            masked = self.mask_pairs(pairs, *numbers)
            for name, loss in self.masked_losses(pairs, masked, groups).items():
                losses[name] = losses[name] + loss if name in losses else loss
            if direction == 1 and self.recipe.use_clcm:
                halves = join_halves(
                    select_texts(batch["plain"], query), pairs.text, self.recipe.encoder.context_length
                )
                scores = self.clcm_scores(pairs._replace(text=halves)).view_as(groups.candidates)
                losses["clcm"] = itm_group_loss(scores, groups, 0.0, 1.0)
        return losses

    @whole_batch
    def finetuning_losses(self, batch: PairsBatch) -> dict[str, Tensor]:
        """Matching of each pair without masking, over t2i and i2t."""
        weights = self.recipe.finetune_multi_cls, 1.0
        of_directions = [
            itm_group_loss(self.match_scores(pairs).view_as(groups.candidates), groups, *weights)
            for pairs, groups, _ in self.groups(batch)
        ]
        return {"itm": of_directions[0] + of_directions[1]}

    def itm_logits(self, batch: Batch) -> Float[Tensor, "items texts"]:
        """Return the logit that each text matches each image."""
        text, features = batch["text"], self.image_encoder(batch["image"])[0]
        classes = features.new_zeros(len(text.ids), features.shape[1], dtype=torch.long)
        pairs = (Pairs(text, one.expand(len(text.ids), -1, -1), self.boxes, classes) for one in features)
        return torch.stack([self.match_scores(each) for each in pairs])


@dataclass(frozen=True)
class Recipe(TrainingRecipe):
    batch_size: AtLeastTwo = 24
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3)
    image: ImageEncoderConfig = ImageEncoderConfig(stem=(16, 32, 64), depth=0)
    encoder: SingleStreamConfig = SingleStreamConfig()
    masking: MaskingConfig = MaskingConfig()
    weights: LossConfig = LossConfig()
    language: str = "en"
    """Language (BCP 47 code) of the captions that go with images."""
    language_alpha: UnitInterval = 0.3
    """Exponent of the frequency by which languages of the text stream are sampled; 1 samples them as they are."""
    xmlm_weight: NonNegativeFloat = 1.0
    """Weight of xMLM; 0 leaves the multilingual stream out."""
    sent_ratio: UnitInterval = 0.8
    """Probability that a caption is code-switched; 0 switches none."""
    word_ratio: UnitInterval = 0.8
    """Probability of each word of such a caption to be replaced, if the dictionary has it."""
    code_switch: Literal["words", "word"] = "words"
    """Whether each word is replaced with `word_ratio`, or one word of a caption (the released pre-training)."""
    dictionary: str = ""
    """File or folder with translations of words, such as MUSE's en-de.txt; empty: learned from training rows that have
    captions in several languages."""
    sample_n: AtLeastTwo = 4
    """Candidates of a group: one positive, and negatives from the batch."""
    use_clcm: bool = False
    """Whether i2t has contrastive matching of code-switched text, too (CLCM, in the released code alone)."""
    num_words: PositiveInt = 64
    """Visual words: classes of regions, with the background."""
    finetune_fraction: UnitInterval = 0.0
    """Fraction of the budget at the end that fine-tunes matching; 0 pre-trains only."""
    finetune_languages: tuple[str, ...] = ("en",)
    """Languages of the captions in fine-tuning: English only, one other, or all."""
    finetune_multi_cls: NonNegativeFloat = 0.0
    """Weight of matching among the candidates of a group in fine-tuning; that of each pair has 1."""
    finetune_lr_scale: NonNegativeFloat = 0.5
    """Factor of the learning rate in fine-tuning."""
    augmentation: ImageAugmentation = ImageAugmentation(scale=(0.8, 1.0))

    size_fields: ClassVar[dict[str, dict[str, Any]]] = {"small": {"num_words": 256}, "base": {"num_words": 1600}}

    def stages(self) -> tuple[Stage, ...]:
        last = self.finetune_fraction
        tuned: dict[str, Any] = {"batch": "finetuning_batch", "losses": "finetuning_losses", "rows": "finetuning_rows"}
        matching = ("encoder.*", "image_encoder.*", "itm_head.*")
        return (
            Stage("pre-training", 1 - last, rows="training_rows"),
            Stage("fine-tuning", last, matching, lr_scale=self.finetune_lr_scale, **tuned),
        )

    def columns(self) -> Declared:
        grid = self.image.image_size // self.image.patch_size
        tokenizer = LearnedTokenizer(self.encoder.vocab_size, self.encoder.context_length)
        dictionary = self.dictionary if self.sent_ratio and self.word_ratio else None
        return {
            "image": VisualWordsColumn(self.image.image_size, grid=grid, num_words=self.num_words),
            "text": MultilingualColumn(tokenizer, self.language, self.language_alpha, dictionary),
        }

    def build(self, processor: Processor) -> M3P:
        return M3P(self, processor.text.tokenizer.vocab_size, len(processor.image.centroids))

    def training_corpora(self, corpus: Corpus) -> list[Corpus]:
        """Raise UserError for a corpus without images that have captions in the languages."""
        self.training_rows(corpus)
        if self.finetune_fraction:
            self.finetuning_rows(corpus)
        return [corpus]

    def training_rows(self, corpus: Corpus, processor: Processor | None = None) -> np.ndarray:
        """The training rows whose image has a caption in the language. Raises UserError where there is none."""
        return rows_with_captions(corpus, (self.language, UNKNOWN_LANGUAGE))

    def finetuning_rows(self, corpus: Corpus, processor: Processor | None = None) -> np.ndarray:
        """The training rows whose image has a caption in the languages of fine-tuning."""
        return rows_with_captions(corpus, self.finetune_languages)

    def pairs_batch(
        self, examples: list[Example], captions: list[str], texts: list[str], processor: Processor, rng: ExampleRNG
    ) -> PairsBatch:
        """Augmented images with texts, the random numbers of their groups, and classes of regions.

        captions: what texts were before they were switched.
        """
        pixels, given = ([example[name] for example in examples] for name in ("image", "text"))
        image = processor.image.augmented(pixels, self.augmentation, rng, given)
        regions, length = self.image.num_patches, self.encoder.context_length
        shapes = {"slots": (), "mask_kind": (), "word_numbers": (length, 3), "region_numbers": (regions, 2)}
        numbers: dict[str, Any] = {name: rng.numbers(2, self.sample_n, *of) for name, of in shapes.items()}
        classes, group = processor.image.words(image), text_ids(captions)
        return {"image": image, "caption": processor.text(texts), "classes": classes, "group": group, **numbers}

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> StreamsBatch:
        """Pairs of image and code-switched caption, and masked texts of the multilingual stream."""
        column, rngs = processor.text, example_rng.generators
        captions = column.sample_captions([column.of_source(example["text"]) for example in examples], example_rng)
        text = column(column.sample_stream(example_rng))
        size = column.tokenizer.vocab_size
        masked = mask_texts(text, self.masking.word_prob, size, example_rng, 1, size)
        # Switching comes last, so that all else is the same whether there is any.
        pairs = self.pairs_batch(examples, captions, captions, processor, example_rng)
        switched = [self.switched(caption, processor, rng) for caption, rng in zip(captions, rngs, strict=True)]
        batch: StreamsBatch = {**pairs, "caption": column(switched), "text": text, **masked}
        if self.use_clcm:
            batch["plain"] = column(captions)
        return batch

    def switched(self, caption: str, processor: Processor, rng: np.random.Generator) -> str:
        """The caption with words replaced by translations."""
        words = processor.text.dictionary
        if self.code_switch == "word":
            return code_switch_word(caption, words, self.sent_ratio, rng)
        return code_switch(caption, words, self.sent_ratio, self.word_ratio, rng)

    def finetuning_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> PairsBatch:
        """Pairs of image and caption in one of the languages of fine-tuning."""
        column, languages = processor.text, self.finetune_languages
        given = [column.in_languages(example["text"], languages) for example in examples]
        captions = column.sample_captions(given, example_rng)
        return self.pairs_batch(examples, captions, captions, processor, example_rng)

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
        """XLM-R base and 100 regions of 2,048 features with 1,600 classes, as the released code has them; batches and
        learning rate of pre-training were not read in the repository."""
        return cls(
            batch_size=1024,
            optimizer=OptimizerConfig(1e-4, 0.0, (0.9, 0.98), 1e-8, "inverse_sqrt"),
            image=ImageEncoderConfig(320, 32, 2048, 0, 16, stem=(64, 128, 256)),
            encoder=SingleStreamConfig(250_002, 64, 768, 12, 12, 0.1),
            code_switch="word",
            num_words=1600,
        )
