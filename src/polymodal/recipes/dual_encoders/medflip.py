"""MedFLIP: contrast of masked images and report sentences, by soft targets from the entities that both name.

A random part of the patches of an image is dropped before the encoder (FLIP), which makes a step cheaper; the text is
whole. Images and sentences match by the softmax of the inner products of their entity vectors (MedCLIP), not one to
one, and a loss of the largest singular value of the batch's similarities ("Medical-SVD") keeps their structure. The
last steps see whole images (FLIP's unmasked tuning), and so do all uses of a run.

No code and no full text of the paper could be read: mask ratio, form, sign and weight of the SVD loss are choices of
this package; patch dropping and pooling are those of FLIP's code (facebookresearch/flip@9bf6bf8), soft targets and
sentences those of MedCLIP's (RyanWangZf/MedCLIP@9c3396f). Differs from them in: a norm before the blocks of the image
encoder; text vectors of the last layer alone (MedCLIP averages layers 1, 2 and the last); a class has the mean of its
prompts (MedCLIP takes the most similar); no unpaired images and sentences, no color jitter or random turns; and an
image or text of which no entity is known has its own pair as the target.

Terms: masking module = Recipe.masked_batch, fusion module =
objectives.multi_positive.entity_targets, Medical-SVD loss = losses.svd, unmasked tuning = Recipe.stages, semantic
matching loss = losses.contrastive.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, NotRequired

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from polymodal.constraints import DecayRate, NonNegativeFloat, PositiveFloat, PositiveInt, UnitInterval
from polymodal.data.columns.entities import CHEXPERT, EntitiesColumn
from polymodal.data.masks import sample_visible
from polymodal.data.processor import Declared, Processor
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.encoders.presets import bert, vit
from polymodal.encoders.pretrained_image import PretrainedImageConfig
from polymodal.errors import UserError
from polymodal.modalities.image_augmentation import ImageAugmentation
from polymodal.modalities.text import Tokens
from polymodal.modalities.text_augmentation import TextAugmentation, augment_text, sample_sentence, without_words
from polymodal.models.masked_autoencoder import MaskedAutoencoderConfig, MaskedDecoder
from polymodal.objectives.multi_positive import semantic_matching_loss
from polymodal.objectives.spectral import singular_value_loss
from polymodal.recipes.dual_encoders._base import DualEncoder, DualEncoderRecipe, ImageTextBatch
from polymodal.rng import ExampleRNG
from polymodal.training.grad_cache import two_halves
from polymodal.training.optimizer import OptimizerConfig
from polymodal.types import Example, Paper, Stage

paper = Paper(
    slug="medflip",
    title="MedFLIP: Medical Vision-and-Language Self-supervised Fast Pre-Training with Masked Autoencoder",
    year=2024,
    arxiv="2403.04626",
    modalities=("image", "text"),
)


class EntityBatch(ImageTextBatch):
    """kept: patches that the encoder sees; left out if it sees all. augmented_text: another view of the sentences.

    Entities are -1 (absent), 0 (unknown) or 1 (present).
    """

    kept: NotRequired[Int[Tensor, "batch kept"]]
    augmented_text: NotRequired[Tokens]
    image_entities: Float[Tensor, "batch entities"]
    text_entities: Float[Tensor, "batch entities"]


class MedFLIP(DualEncoder):
    def __init__(self, recipe: Recipe, vocabulary: int):
        super().__init__(recipe, vocabulary)
        self.recipe = recipe
        if recipe.reconstruction_weight:
            size, patch = (recipe.image.image_size,) * 2, (recipe.image.patch_size,) * 2
            self.decoder = MaskedDecoder(MaskedAutoencoderConfig(size, patch), recipe.image.width)

    def encode(self, batch: EntityBatch) -> dict[str, Tensor]:  # type: ignore[override]
        """Embeddings of masked images and of texts, beside the entities of both."""
        encoded = {name: batch[name] for name in ("image_entities", "text_entities")}
        encoded["text"] = self.encode_text(batch["text"])
        if "augmented_text" in batch:
            encoded["augmented_text"] = self.encode_text(batch["augmented_text"])
        if (kept := batch.get("kept")) is None:
            return encoded | {"image": self.encode_image(batch["image"])}
        tokens, pooled = self.image_encoder(batch["image"], kept)
        encoded["image"] = F.normalize(self.image_projection(pooled), dim=-1)
        if self.recipe.reconstruction_weight:
            # The pooled vector stands for the class token.
            visible = torch.cat([pooled[:, None], tokens], 1)
            encoded["reconstruction"] = self.decoder.reconstruction_errors(batch["image"], visible, kept)
        return encoded

    def contrastive_losses(self, encoded: dict[str, Tensor]) -> dict[str, Tensor]:
        """contrastive: cross-entropy with entity targets, the mean over both views of texts; InfoNCE without entities.
        svd: the Medical-SVD loss. reconstruction: of the masked patches (MAE). The last two with their weights."""
        recipe, image = self.recipe, encoded["image"]
        texts = [encoded[name] for name in ("text", "augmented_text") if name in encoded]
        entities, scale = (encoded["image_entities"], encoded["text_entities"]), recipe.target_scale
        contrasts = [semantic_matching_loss(image, text, *entities, self.logit_scale(), scale) for text in texts]
        losses = {"contrastive": torch.stack(contrasts).mean()}
        if recipe.svd_weight:
            losses["svd"] = recipe.svd_weight * singular_value_loss(image, texts[0], recipe.svd_loss)
        if "reconstruction" in encoded:
            losses["reconstruction"] = recipe.reconstruction_weight * encoded["reconstruction"].mean()
        return losses

    @two_halves("encode", "contrastive_losses")
    def losses(self, batch: EntityBatch) -> dict[str, Tensor]:  # type: ignore[override]
        return self.contrastive_losses(self.encode(batch))


@dataclass(frozen=True)
class Recipe(DualEncoderRecipe):
    image: ImageEncoderConfig = ImageEncoderConfig(
        image_size=64, patch_size=8, width=64, depth=4, pool_type="avg_all", pos_embed="sine"
    )
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3)
    word_dropout: UnitInterval = 0.0
    """Probability with which a word of a text is left out while training."""
    mask_ratio: DecayRate = 0.5
    """Fraction of the patches that are dropped (FLIP, section 3); of N patches, int(N (1 - ratio)) are encoded."""
    unmasked_fraction: UnitInterval = 0.03
    """Fraction of the budget at its end for unmasked tuning; about 0.01 in FLIP."""
    unmasked_lr_scale: PositiveFloat = 0.1
    """Factor of the learning rate of unmasked tuning; 0.01 in FLIP."""
    sentences: bool = True
    """Whether a text is one sentence of the caption, of more than four tokens where there are any (MedCLIP)."""
    second_text: bool = False
    """Whether a second, augmented text is compared with the image, too (MedCLIP)."""
    text_augmentation: TextAugmentation = TextAugmentation(remove_stop_words=0.0, swap_weight=1.0, delete_weight=1.0)
    entity_source: Literal["captions", "table", "label", "none"] = "captions"
    """What says which entities an image has: all its captions, a table (1 present, 0 absent, else unknown, as in
    CheXpert), or its class, which its text shares; none: no soft targets."""
    entities: tuple[str, ...] = ()
    """Names of the entities, in words of texts; by default frequent words, columns of the table, or classes."""
    max_entities: PositiveInt = 256
    """Number of words that are learned as entities at most."""
    default_entity: str = ""
    """Entity of a text that mentions none, and of an image whose captions state none as present or uncertain, such as
    "No Finding" (MedCLIP); empty: their target is the own pair."""
    target_scale: PositiveFloat = 3.0
    """Factor of the inner products of entity vectors before the softmax; 1 in MedCLIP, whose targets are then almost
    uniform where few entities are known."""
    svd_loss: Literal["spread", "align"] = "spread"
    """spread: s_1 / sum s_k, against a dominant direction; align: 1 - s_1 / |C|, the opposite."""
    svd_weight: NonNegativeFloat = 0.1
    """Weight of the loss of the singular values of the batch's similarities."""
    reconstruction_weight: NonNegativeFloat = 0.0
    """Weight of the reconstruction of masked patches (MAE); 0: contrast alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask_ratio and isinstance(self.image, PretrainedImageConfig):
            raise UserError("A pretrained image encoder sees all patches; take --mask-ratio 0.")
        if self.mask_ratio and self.num_kept < 1:
            raise UserError("This --mask-ratio leaves no patch; take a smaller one, or smaller patches.")
        if self.reconstruction_weight and not self.mask_ratio:
            raise UserError("Without masked patches nothing is reconstructed; take --reconstruction-weight 0.")

    @property
    def num_kept(self) -> int:
        """Patches that the encoder sees of an image."""
        return int(self.image.num_patches * (1 - self.mask_ratio))

    def build(self, processor: Processor) -> MedFLIP:
        return MedFLIP(self, processor.tokenizer.vocab_size)

    def stages(self) -> tuple[Stage, ...]:
        if not self.mask_ratio:
            return (Stage("pre-training"),)
        return (
            Stage("masked pre-training", 1 - self.unmasked_fraction, batch="masked_batch"),
            Stage("unmasked tuning", self.unmasked_fraction, lr_scale=self.unmasked_lr_scale),
        )

    def cacheable_encoders(self) -> tuple[str, ...]:
        return super().cacheable_encoders() if not self.mask_ratio else ("text_encoder",)

    def columns(self) -> Declared:
        entities = EntitiesColumn(self.entity_source, self.entities, self.max_entities, self.default_entity)
        return {**super().columns(), "entities_of_image": entities}

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> EntityBatch:
        """An augmented view of each whole image, a sentence of one of its captions, and the entities of both."""
        names = ("image", "text", "entities_of_image")
        images, captions, entities = ([example[name] for example in examples] for name in names)
        image = processor.image.augmented(images, self.augmentation, example_rng, captions)
        texts, rngs = processor.text.sample_captions(captions, example_rng), example_rng.generators
        if self.sentences:
            texts = [sample_sentence(text, rng) for text, rng in zip(texts, rngs, strict=True)]
        of_image, of_text = processor.entities_of_image.of_pairs(entities, texts)
        inputs = [without_words(text, self.word_dropout, rng) for text, rng in zip(texts, rngs, strict=True)]
        text = processor.text(inputs)
        batch = EntityBatch(image=image, text=text, image_entities=of_image, text_entities=of_text)
        if self.second_text:
            views = [augment_text(text, self.text_augmentation, rng) for text, rng in zip(texts, rngs, strict=True)]
            batch["augmented_text"] = processor.text(views)
        return batch

    def masked_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> EntityBatch:
        """The same batch, of which the encoder sees a random part of the patches of every image, sampled each time."""
        batch = self.training_batch(examples, processor, example_rng)
        return batch | {"kept": sample_visible(self.image.num_patches, self.num_kept, example_rng)}

    @classmethod
    def tiny(cls) -> Recipe:
        tiny = super().tiny()
        image = dataclasses.replace(tiny.image, pool_type="avg_all", pos_embed="sine")
        return dataclasses.replace(
            tiny, image=image, second_text=True, reconstruction_weight=0.1, unmasked_fraction=0.5
        )

    @classmethod
    def paper(cls) -> Recipe:
        """FLIP's ViT-B/16 and BERT base, with the values of MedCLIP: batches of 100, 10 epochs, entities of CheXpert.

        MedFLIP's own values could not be read. MedCLIP's image encoders are Swin-tiny and ResNet-50, which cannot drop
        patches; its text encoder is Bio_ClinicalBERT (--text-encoder).
        """
        image = dataclasses.replace(vit("B"), pool_type="avg_all", pos_embed="sine")
        return cls(
            image=image,
            text=dataclasses.replace(bert("base", 77), vocab_size=28_996, pool_type="avg"),
            embed_dim=512,
            augmentation=ImageAugmentation(scale=(0.77, 0.77), hflip_prob=0.5),  # 224 px of 256
            batch_size=100,
            second_text=True,
            unmasked_fraction=0.01,
            unmasked_lr_scale=0.01,
            entities=CHEXPERT,
            default_entity="No Finding",
            target_scale=1.0,
            optimizer=OptimizerConfig(learning_rate=2e-5, weight_decay=1e-4, betas=(0.9, 0.999), warmup_ratio=0.1),
        )
