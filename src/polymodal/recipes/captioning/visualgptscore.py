"""VisualGPTScore: the likelihood of a caption as the score of an image and a text, with the language prior divided out.

Contrastive and matching heads score a caption almost as a bag of words; the likelihood P(t | i) of an
image-conditioned language model depends on the order of words, so that a captioner is a matcher without further
training. It carries the model's prior P(t), which helps where wrong captions are implausible, and harms where all are
plausible: so P(t | i) is divided by P(t)^alpha at test time, with P(t) estimated by the same model on images of noise.

The score is of evaluation (`evaluation.pair_scores`), and any method with likelihoods has it in `polymodal evaluate`.
This recipe trains the model that the paper takes it from, BLIP, whose ITC and ITM heads are the paper's baselines.

Terms: VisualGPTScore = evaluation.pair_scores.PairScorer.debiased, alpha = MatchingScore.alpha, P_train(t) =
evaluation.caption_prior.CaptionPrior, null images = caption_prior.noise_images, blind language model = foils.blind,
scenario 1 = foils.alpha_0, scenario 2 = foils.alpha_1, alpha* = foils.alpha_cross_fitted, ITC = losses.itc, ITM =
losses.itm, LM = losses.lm.

Differs from the paper in: the official repository has no code, so that the formula is checked against plain loops and
the text transformer against BLIP's in transformers; scores are divided by the number of tokens, with the end token;
alpha is tuned on halves of the items in steps of 0.05; captions are chosen among foils, not retrieved from all captions
by likelihood; blind baselines are P(t) of the model itself, not BART, Flan-T5,
Vera or Grammar; of ImageNet and of the published benchmarks there are generators of foils in place of data. Of BLIP,
momentum encoder, queue, soft labels, RandAugment and the filtering of captions (CapFilt) are left out, the decoder
shares the layer norm after self-attention with the encoder, and the ViT starts from random weights unless --vision
names others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from polymodal.constraints import AtLeastTwo, DecayRate, NonNegativeFloat, PositiveInt
from polymodal.data.columns.image import ImageColumn
from polymodal.data.columns.text import LearnedTokenizer, TextColumn
from polymodal.data.processor import Declared, Processor, SharedColumn
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.errors import UserError
from polymodal.evaluation.pair_scores import MatchingScore
from polymodal.modalities.image_augmentation import ImageAugmentation
from polymodal.models.blip import BLIP, BLIPBatch, blip_batch
from polymodal.models.fusion_encoder import MultimodalTextEncoderConfig
from polymodal.rng import ExampleRNG
from polymodal.training.grad_cache import whole_batch
from polymodal.training.optimizer import OptimizerConfig
from polymodal.training.recipe import TrainingRecipe
from polymodal.types import Example, Paper

paper = Paper(
    slug="visualgptscore",
    title="Revisiting the Role of Language Priors in Vision-Language Models",
    year=2023,
    arxiv="2306.01879",
    modalities=("image", "text"),
    # BLIP with ViT-L for retrieval, without its decoder: BlipForImageTextRetrieval of transformers with these sizes.
    parameters={"* !lm_head.* !text_encoder.causal_attention.*": 445.7e6},
)


class VisualGPTScore(BLIP):
    """BLIP, and the score of an image and a text that it is to be used with."""

    def __init__(self, recipe: Recipe, processor: Processor):
        super().__init__(recipe.image, recipe.text, recipe.embed_dim, processor)
        self.recipe, self.matching_score = recipe, recipe.score

    @whole_batch
    def losses(self, batch: BLIPBatch) -> dict[str, Tensor]:
        """itc, itm and lm, with their weights."""
        losses = self.trio_losses(batch, self.recipe.label_smoothing)
        weights = {"itc": self.recipe.itc_weight, "itm": self.recipe.itm_weight, "lm": self.recipe.lm_weight}
        return {name: weights[name] * loss for name, loss in losses.items()}


@dataclass(frozen=True)
class Recipe(TrainingRecipe):
    batch_size: AtLeastTwo = 48
    """Pairs of a step, over all processes."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3)
    image: ImageEncoderConfig = ImageEncoderConfig(
        image_size=64, patch_size=8, stem=(32, 64), width=64, depth=2, pool_type="cls"
    )
    text: MultimodalTextEncoderConfig = MultimodalTextEncoderConfig(
        width=64, depth=2, vocab_size=2000, context_length=48, causal_attention=True
    )
    """Text transformer of all three losses; causal_attention: the decoder's self-attention has weights of its own."""
    embed_dim: PositiveInt = 64
    """Dimensions in which images and texts are contrasted."""
    score: MatchingScore = MatchingScore()
    """The score that `evaluate` reports as the method's own, beside all others that it has."""
    label_smoothing: DecayRate = 0.0
    """Of the captioning loss; scores are without."""
    itc_weight: NonNegativeFloat = 1.0
    """Weight of the contrastive loss, by whose similarities hard negatives are sampled."""
    itm_weight: NonNegativeFloat = 1.0
    """Weight of the matching loss."""
    lm_weight: NonNegativeFloat = 1.0
    """Weight of the captioning loss."""
    augmentation: ImageAugmentation = ImageAugmentation(scale=(0.7, 1.0))

    size_fields: ClassVar[dict[str, dict[str, Any]]] = {"small": {"embed_dim": 128}, "base": {"embed_dim": 256}}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text.fusion_depth not in (0, self.text.depth):
            raise UserError("All blocks of BLIP's text transformer read the image; leave out --text.fusion-depth.")

    def columns(self) -> Declared:
        image = ImageColumn.of(self.image.image_size, self.image.image_mean_std)
        text = TextColumn(LearnedTokenizer(self.text.vocab_size, self.text.context_length))
        return {"image": image, "text": text, "answer": SharedColumn("text"), "question": SharedColumn("text")}

    def build(self, processor: Processor) -> VisualGPTScore:
        return VisualGPTScore(self, processor)

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> BLIPBatch:
        """One augmented view of each image and one of its captions."""
        return blip_batch(examples, processor, self.augmentation, example_rng)

    @classmethod
    def tiny(cls) -> Recipe:
        return cls(
            batch_size=4,
            image=ImageEncoderConfig(32, 16, 16, 1, 2, pool_type="cls"),
            text=MultimodalTextEncoderConfig(
                width=16, depth=1, num_heads=2, vocab_size=300, context_length=24, causal_attention=True
            ),
            embed_dim=16,
        )

    @classmethod
    def paper(cls) -> Recipe:
        """BLIP with ViT-L/16 and BERT-base, pre-trained for 20 epochs of 129 million pairs (Li et al. 2022, 4.1)."""
        return cls(
            image=ImageEncoderConfig(224, 16, 1024, 24, 16, pool_type="cls"),
            text=MultimodalTextEncoderConfig(
                width=768, depth=12, num_heads=12, vocab_size=30_522, context_length=30, causal_attention=True
            ),
            embed_dim=256,
            batch_size=2400,
            label_smoothing=0.1,
            # Of 129 million pairs; the learning rate falls to 0.9 of itself after each epoch, here linearly to 0.9^19.
            optimizer=OptimizerConfig(
                2e-4, 0.05, (0.9, 0.999), 1e-8, "linear", min_lr_ratio=0.135, warmup_ratio=3000 / 1_075_000
            ),
            augmentation=ImageAugmentation(scale=(0.2, 1.0), hflip_prob=0.5),
        )
