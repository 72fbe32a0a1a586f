"""FuseLIP: one transformer embeds an image, a text, or both, as a sequence of discrete image and text tokens.

Dual encoders embed an image with a text by fusing two finished vectors. Here a frozen tokenizer turns the image into
codes, text tokens of the same vocabulary follow, and one bidirectional transformer encodes the joint sequence, so that
both interact in every layer; the end token is the embedding. Left and right sides of pairs (caption, transformation,
region, question) are compared by the sigmoid loss; masked tokens of both modalities are predicted in the same pass.

Differs from the paper in: the image tokenizer is a VQ-VAE with a code for each patch, which is trained first, not
TiTok with 128 codes of the whole image; every image has as many pairs in a batch, one of them its caption, where the
released code samples groups of 2 to 9 pairs, and for nine of ten images the caption alone; regions and questions are
those of the corpus; the first image code can be masked. Edited images (HQ-Edit), questions written by an LLM, the
end-of-image token (off in the released configuration), SugarCrepe and MMEB are left out.

Terms: joint vocabulary = FuseLIP.vocabulary, MMM (masked multimodal modeling) = losses.mmm, SigLIP loss =
losses.sigmoid, SF (score fusion) = models.late_fusion.LateFusion, MLF (MagicLens fusion) =
models.late_fusion.FusionModule, combined sampling = pairs_per_image, TGIT =
evaluation.tasks.composed_retrieval.transformation_scores, OI-Pos =
evaluation.tasks.composed_retrieval.region_scores, cc3m-aug = modalities.image_transformations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from polymodal.constraints import AtLeastTwo, ContextLength, NonNegativeFloat, PositiveFloat, PositiveInt, UnitInterval
from polymodal.data.columns.image import ImageColumn
from polymodal.data.columns.questions import QuestionsColumn
from polymodal.data.columns.regions import RegionsColumn
from polymodal.data.columns.text import TextColumn
from polymodal.data.composed_pairs import InstructionTokenizer, masked_sides, sample_groups, transformed
from polymodal.data.processor import Declared, Optional, Processor, Sparse
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.encoders.image_tokenizer import ImageTokenizerConfig, TokenizerBatch
from polymodal.encoders.text import TextEncoder, TextEncoderConfig
from polymodal.errors import UserError
from polymodal.layers.masked_lm_head import MaskedLMHead
from polymodal.modalities.text import Tokens, bos_eos
from polymodal.models.joint_vocabulary import JointVocabulary, codes_before_text, mask_of_sides, values_of_sides
from polymodal.models.late_fusion import FusionModule, LateFusion, PairBatch, PairEncoder, SidesBatch
from polymodal.objectives.masked_modeling import masked_cross_entropy
from polymodal.rng import ExampleRNG
from polymodal.training.grad_cache import whole_batch
from polymodal.training.optimizer import OptimizerConfig
from polymodal.training.recipe import TrainingRecipe
from polymodal.types import Example, Paper, Stage

paper = Paper(
    slug="fuselip",
    title="FuseLIP: Multimodal Embeddings via Early Fusion of Discrete Tokens",
    year=2025,
    arxiv="2506.03096",
    modalities=("image", "text"),
    code="chs20/fuselip@6a5766e6e8d70b0ad3255c440b236291ec781464",
    parameters={"* !tokenizer.*": 67_734_787},  # of the released code's FuseLIP-B, without TiTok
)

TEXT, IMAGE = "text", "image"


class FuseLIP(PairEncoder):
    """Image tokenizer, and a bidirectional transformer over one vocabulary of text tokens and image codes."""

    def __init__(self, recipe: Recipe, vocab_size: int, marks: tuple[int, int]):
        """vocab_size: of text. The mask token is the last entry of text."""
        super().__init__(marks, recipe.logit_scale_init, recipe.logit_bias_init)
        self.recipe, self.mask_id = recipe, vocab_size
        self.tokenizer = recipe.tokenizer.build(recipe.patch_size)
        self.vocabulary = JointVocabulary({TEXT: vocab_size + 1, IMAGE: recipe.tokenizer.codebook_size})
        self.encoder = TextEncoder(recipe.tower(recipe.context_length), self.vocabulary.total)
        self.mlm_head = MaskedLMHead(recipe.width, self.vocabulary.total) if recipe.mlm_probability else None

    def tokenizer_losses(self, batch: TokenizerBatch) -> dict[str, Tensor]:
        """Return the losses of the image tokenizer."""
        return self.tokenizer.losses(batch["image"])

    def sequences(self, batch: SidesBatch) -> Tokens:
        """Joint sequences; where one is longer than the context, the end token is its last."""
        text, has_image, codes = batch["text"], batch["has_image"], batch["text"].ids[:, :0]
        if len(batch["image"]):
            codes = values_of_sides(self.vocabulary.encode(IMAGE, self.tokenizer.encode(batch["image"])), has_image)
        return codes_before_text(codes, text, has_image, self.recipe.context_length)

    def encode_sides(self, batch: SidesBatch) -> Float[Tensor, "sides dim"]:
        return F.normalize(self.encoder.pooled(self.sequences(batch)), dim=-1)

    @whole_batch
    def losses(self, batch: PairBatch) -> dict[str, Tensor]:
        """sigmoid: of left and right sides. mmm: cross-entropy of masked tokens, of left plus of right sides."""
        if self.mlm_head is None:
            return self.contrastive_losses(batch)
        tokens = self.sequences(batch)
        mask = mask_of_sides(batch["masked_codes"], batch["masked_text"], batch["has_image"], tokens)
        x, packing = self.encoder.hidden_states(Tokens(tokens.ids.masked_fill(mask, self.mask_id), tokens.lengths))
        # The same forward pass gives the embedding of the masked input, and before the last norm the predictions.
        sides = F.normalize(self.encoder.pooled_states(x, packing), dim=-1)
        is_masked, targets = packing.pack(mask), packing.pack(tokens.ids)
        is_left = packing.indices < len(mask) // 2 * mask.shape[1]
        embedding, mmm = self.encoder.embedding.weight, x.new_zeros(())
        for part in (is_masked & is_left, is_masked & ~is_left):
            mmm = mmm + masked_cross_entropy(self.mlm_head(x[part], embedding), targets[part])
        return {"sigmoid": self.contrast(sides), "mmm": self.recipe.mmm_weight * mmm}


class TwoTowers(LateFusion):
    """The paper's baselines: a ViT and a text transformer, fused by a sum or by a module."""

    losses = whole_batch(LateFusion.contrastive_losses)


@dataclass(frozen=True)
class Recipe(TrainingRecipe):
    batch_size: AtLeastTwo = 24
    """Images in a step, over all processes, each with `pairs_per_image` pairs."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-3)
    fusion: Literal["early", "sum", "module"] = "early"
    """Joint sequence of one transformer; or two towers, whose vectors are added (SF) or fused by a module (MLF)."""
    image_size: PositiveInt = 32
    """Side of an image in pixels."""
    patch_size: PositiveInt = 8
    """Side in pixels of what a code, or a patch of the baselines' ViT, stands for."""
    tokenizer: ImageTokenizerConfig = ImageTokenizerConfig(codebook_size=512)
    """Image tokenizer, which is trained first and then frozen."""
    tokenizer_fraction: UnitInterval = 0.2
    """Fraction of the budget that trains the image tokenizer; the baselines have none."""
    vocab_size: PositiveInt = 2000
    """Vocabulary size of the byte-level BPE tokenizer, learned from captions and instructions."""
    context_length: ContextLength = 80
    """Maximum length of a joint sequence in tokens."""
    width: PositiveInt = 64
    """Width of the transformer, and of the embedding, as there is no projection."""
    depth: PositiveInt = 3
    """Blocks of the transformer, or of each tower."""
    num_heads: PositiveInt = 4
    """Attention heads of the transformer, or of each tower."""
    fusion_depth: PositiveInt = 4
    """Blocks of the fusion module (MLF)."""
    mlm_probability: UnitInterval = 0.1
    """Probability that a token is masked, of images and texts, on both sides; 0: no MMM."""
    mmm_weight: NonNegativeFloat = 0.25
    """Weight of MMM beside the sigmoid loss."""
    pairs_per_image: AtLeastTwo = 4
    """Pairs of an image in a batch: its caption, and others that are each other's negatives; at most 20."""
    logit_scale_init: PositiveFloat = 10.0
    """Initial factor of the similarities (SigLIP's t)."""
    logit_bias_init: float = -10.0
    """Initial value that is added to them (SigLIP's b)."""

    size_fields: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {"image_size": 96, "patch_size": 16, "context_length": 120, "width": 192, "depth": 6},
        "base": {"image_size": 256, "patch_size": 32, "context_length": 180, "width": 384, "depth": 12},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.context_length <= self.codes_per_image + 2:
            raise UserError(f"The codes of an image need --context-length above {self.codes_per_image + 2}.")
        if self.pairs_per_image > 20:
            raise UserError("--pairs-per-image is at most 20, as an image has no more different pairs.")

    @property
    def codes_per_image(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    def tower(self, context_length: int) -> TextEncoderConfig:
        """The configuration of a bidirectional transformer whose end token is the embedding."""
        return TextEncoderConfig(
            self.vocab_size, context_length, self.width, self.depth, self.num_heads, pool_type="eos"
        )

    def stages(self) -> tuple[Stage, ...]:
        if self.fusion != "early":
            return (Stage("pairs"),)
        names, first = ("encoder.*", "mlm_head.*", "logit_*"), self.tokenizer_fraction
        return (
            Stage("image tokenizer", first, ("tokenizer.*",), {}, 3.0, batch="image_batch", losses="tokenizer_losses"),
            Stage("pairs", 1 - first, names),
        )

    def columns(self) -> Declared:
        return {
            IMAGE: ImageColumn(self.image_size, stretch=True),
            TEXT: TextColumn(InstructionTokenizer(self.vocab_size, self.context_length)),
            "regions": Optional(Sparse(RegionsColumn())),
            "questions": Optional(Sparse(QuestionsColumn())),
        }

    def build(self, processor: Processor) -> PairEncoder:
        vocab_size, marks = processor.tokenizer.vocab_size, bos_eos(processor.tokenizer)
        if self.fusion == "early":
            return FuseLIP(self, vocab_size, marks)
        image = ImageEncoderConfig(self.image_size, self.patch_size, self.width, self.depth, self.num_heads).build()
        module = FusionModule(self.width, self.fusion_depth, self.num_heads) if self.fusion == "module" else None
        text = self.tower(self.context_length).build(vocab_size)
        return TwoTowers(image, text, module, marks, self.logit_scale_init, self.logit_bias_init)

    def image_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> TokenizerBatch:
        """Images for the tokenizer, and a transformation of each, as targets are."""
        images = [example[IMAGE] for example in examples]
        return {"image": processor.image([*images, *transformed(images, example_rng)])}

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> PairBatch:
        """The pairs of all images, left sides before right ones, with the tokens that are masked."""
        pairs = sample_groups(examples, processor, self.pairs_per_image, example_rng)
        return masked_sides(pairs, processor, self.codes_per_image, self.mlm_probability, example_rng)

    @classmethod
    def tiny(cls) -> Recipe:
        return cls(
            patch_size=16,
            tokenizer=ImageTokenizerConfig(codebook_size=16, codebook_dim=4, width=16),
            vocab_size=300,
            width=16,
            depth=1,
            batch_size=4,
            tokenizer_fraction=0.5,
        )

    @classmethod
    def paper(cls) -> Recipe:
        """FuseLIP-B on CC3M+MM: 8 x 256 pairs, 8 epochs, warm-up of 12,000 steps (scripts/train-fuselip-cc3m.sh).

        The tokenizer has as many codes as TiTok-BL-128 (8192), of 64 patches of 32 px, to be trained first.
        """
        return cls(
            image_size=256,
            patch_size=32,
            tokenizer=ImageTokenizerConfig(codebook_size=8192, codebook_dim=64, width=256),
            vocab_size=49_408,
            context_length=180,
            width=512,
            depth=12,
            num_heads=8,
            batch_size=512,
            optimizer=OptimizerConfig(1e-3, 1.0, (0.9, 0.98), eps=1e-8, warmup_ratio=0.2, max_grad_norm=1.0),
        )
