"""MoMa: early-fusion pre-training on image and text tokens, with mixture-of-experts blocks specific to a modality.

A frozen tokenizer turns images into codes, which share one vocabulary with the words; a decoder predicts the next
token, whichever it is. In every block a token can go only to its own modality's experts, and each expert takes the
tokens that it scores highest in the whole batch (section 2.2), so that a token costs as many FLOPs as in a dense model.
Such a choice sees later tokens; auxiliary routers learn at the end to predict it from a token alone (section 2.4), and
likelihoods and generation go by them: a recipe without their stage is refused. As in Chameleon, a norm follows
attention and MLP (Swin V2): it cancels the gate of a token that a single expert takes, so that the router learns only
from tokens of two experts or more (`--no-post-norm` compares).

Terms: expert choice = ExpertChoice, Gumbel-Sigmoid = gumbel_sigmoid, auxiliary router = AuxiliaryRouter, upcycling
(1t1i to ntni) = upcycle, MoD = MixtureOfDepths, moe_8x = --no-modality-aware, eta =
reproduce.curves.speed_up_factor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polymodal.constraints import NonNegativeFloat, NonNegativeInt, PositiveInt, UnitInterval
from polymodal.data.columns.tiled_image import TiledImageColumn
from polymodal.data.conversation import IMAGE
from polymodal.data.instructions import sample_document, sample_images
from polymodal.data.processor import Declared, Processor
from polymodal.data.sequence import TEXT, SequenceBatch
from polymodal.encoders.image_tokenizer import ImageTokenizerConfig, TokenizerBatch
from polymodal.encoders.language_model import LanguageModel, LanguageModelConfig
from polymodal.encoders.pretrained import PretrainedConfig
from polymodal.errors import UserError
from polymodal.layers import expert_choice
from polymodal.layers.decoder import DecoderBlock, PostSubLayerNormBlock
from polymodal.layers.decoding import Decoding
from polymodal.layers.mixture_of_depths import route_alternate_blocks
from polymodal.models.discrete_token_decoder import DiscreteTokenDecoder, GuidedPromptBatch
from polymodal.models.joint_vocabulary import CodeFormat, JointVocabulary
from polymodal.objectives.reduction import mean_over
from polymodal.recipes.language_models._base import ConversationRecipe
from polymodal.rng import ExampleRNG
from polymodal.training.optimizer import OptimizerConfig
from polymodal.types import Example, Paper, Stage

paper = Paper(
    slug="moma",
    title="MoMa: Efficient Early-Fusion Pre-training with Mixture of Modality-Aware Experts",
    year=2024,
    arxiv="2407.21770",
    modalities=("image", "text"),
    # Table 1: four experts of each modality. Its sizes give 7.11 billion, and 7.21 with auxiliary routers.
    parameters={"language_model.* !*.auxiliary.*": 7.1e9},
)

LEARNED = tuple(  # the parameters of the language model but for the auxiliary routers
    f"language_model.{part}"
    for part in ("embedding.*", "head.*", "*.attention.*", "*norm*", "*.router.*", "*.gate_up*", "*.down*")
)


class MoMa(DiscreteTokenDecoder):
    """An image tokenizer, and a decoder over text tokens and image codes with experts of each."""

    def __init__(self, recipe: Recipe, vocab_size: int, image_format: CodeFormat, end: int):
        """vocab_size: of text. end: the token after a document."""
        config, counts = recipe.language_model, recipe.experts
        vocabulary = JointVocabulary({TEXT: vocab_size, IMAGE: recipe.tokenizer.codebook_size})

        def mlp(modality: str) -> nn.Module:
            return expert_choice.swiglu_experts(config.width, config.mlp_dim, counts[modality], recipe.router_noise)

        block = PostSubLayerNormBlock if recipe.post_norm else DecoderBlock
        language_model = LanguageModel(config, vocabulary.total, tuple(counts), mlp, block)
        if recipe.post_norm:  # sublayers add vectors of norm 1: beside them, embeddings of std 0.02 would vanish
            nn.init.normal_(language_model.embedding.weight)
        if recipe.mod_capacity:
            route_alternate_blocks(language_model.decoder, recipe.mod_capacity)
        tokenizers = {IMAGE: recipe.tokenizer.build(recipe.patch_size)}
        experts = (IMAGE,) if recipe.modality_aware else ()
        super().__init__(language_model, vocabulary, tokenizers, {IMAGE: image_format}, end, experts=experts)
        self.image_decoding = recipe.image_decoding

    @mean_over("loss_counts")
    def losses(self, batch: SequenceBatch) -> dict[str, Tensor]:
        """text and image, which add up to the mean over all tokens; and routers (BCE), while auxiliary ones learn."""
        losses, routers = super().losses(batch), expert_choice.auxiliary_losses(self)
        return losses | ({"routers": torch.stack(routers).mean()} if routers else {})

    def token_nll(self, batch: SequenceBatch) -> dict[str, tuple[Tensor, Tensor]]:
        """By modality and of `all`: sums of -log p and counts by row; none before auxiliary routers have learned.

        NAME_by_whole_batch: with the choice among the batch, which sees later tokens, as in training.
        """
        causal, whole = expert_choice.with_both_choices(self, lambda: super(MoMa, self).token_nll(batch))
        return causal | {f"{name}_by_whole_batch": own for name, own in whole.items()}

    def generate_images(
        self, batch: GuidedPromptBatch, steps: int = 0, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch 3 size size"]:
        """Normalized images that follow each prompt's text, sampled code by code. steps: has no effect."""
        return self.generate_items(batch, IMAGE, self.image_decoding, generator)


@dataclass(frozen=True)
class Recipe(ConversationRecipe):
    batch_size: PositiveInt = 32
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-2)
    language_model: LanguageModelConfig = LanguageModelConfig(1000, num_kv_heads=4, tie_word_embeddings=False)
    tokenizer: ImageTokenizerConfig = ImageTokenizerConfig()
    tile_size: PositiveInt = 64
    """Side of an image in pixels."""
    patch_size: PositiveInt = 8
    """Side in pixels of what a code stands for."""
    num_text_experts: PositiveInt = 2
    """Experts of text tokens; a single one is a plain MLP without router."""
    num_image_experts: NonNegativeInt = 2
    """Experts of image codes."""
    modality_aware: bool = True
    """Restrict a token to its own modality's experts; without, all experts choose among all tokens."""
    router_noise: bool = True
    """Gumbel-Sigmoid noise on the scores while routers train (equation 5)."""
    post_norm: bool = True
    """Norms after attention and MLP, as in Chameleon; without, before them, as in Llama."""
    mod_capacity: UnitInterval = 0.0
    """Mixture of depths (MoD): fraction of tokens that pass every other block; 0: off (section 2.3: 0.25)."""
    upcycling_fraction: UnitInterval = 0.0
    """Fraction of the main stage with one expert per modality, before all become its copies (section 2.5)."""
    stage_fractions: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] = (0.15, 0.75, 0.1)
    """Fractions of the budget: image tokenizer, language model, auxiliary routers."""
    image_decoding: Decoding = Decoding(top_p=0.95, temperature=1.0)
    """Decoding of image codes."""

    size_fields: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {"tile_size": 96},
        "base": {"tile_size": 256, "patch_size": 16, "optimizer": OptimizerConfig(learning_rate=1e-3)},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.modality_aware and not self.num_image_experts:
            raise UserError("--num-image-experts is at least 1; with --no-modality-aware alone it may be 0.")
        if self.upcycling_fraction == 1:
            raise UserError("--upcycling-fraction is below 1: after it, the copies of the one expert are trained.")
        _, main, routers = self.stage_fractions
        if main and not routers and self.selects_tokens:
            raise UserError(
                "Without auxiliary routers, evaluation too would choose tokens by later ones of the batch; let the "
                "third of --stage-fractions be above 0."
            )
        if isinstance(self.language_model, PretrainedConfig):
            raise UserError(
                "moma trains its decoder from scratch: its vocabulary, norms and experts are those of no published "
                "language model. Leave --lm out."
            )

    @property
    def tokens_per_tile(self) -> int:
        """Codes of an image."""
        return (self.tile_size // self.patch_size) ** 2

    @property
    def experts(self) -> Mapping[str, int]:
        """Number of experts of each modality, text first; or of all together."""
        if self.modality_aware:
            return {TEXT: self.num_text_experts, IMAGE: self.num_image_experts}
        return {"all": self.num_text_experts + self.num_image_experts}

    @property
    def selects_tokens(self) -> bool:
        """Whether experts or blocks of MoD select tokens among a batch."""
        return max(self.experts.values()) > 1 or self.mod_capacity > 0

    def stages(self) -> tuple[Stage, ...]:
        tokenizer, main, routers = self.stage_fractions
        single = self.upcycling_fraction * main
        batch, losses = "image_batch", "tokenizer_losses"
        stages = [
            Stage("tokenizer", tokenizer, ("image_tokenizer.*",), lr_scale=0.3, batch=batch, losses=losses),
            Stage("one expert", single, LEARNED, on_start=expert_choice.use_single_expert),
            Stage("experts", main - single, LEARNED, on_start=expert_choice.upcycle if single else None),
        ]
        if self.selects_tokens:
            alone, start = {TEXT: 0.0, IMAGE: 0.0}, expert_choice.use_auxiliary_routers
            stages.append(Stage("routers", routers, ("*.auxiliary.*",), loss_weights=alone, on_start=start))
        return tuple(stages)

    def columns(self) -> Declared:
        return self.conversation(TiledImageColumn(self.tile_size, self.patch_size, 1, self.tile_size))

    def build(self, processor: Processor) -> MoMa:
        image_format = CodeFormat.of_images(processor.conversation, self.tokens_per_tile)
        return MoMa(self, processor.tokenizer.vocab_size, image_format, processor.conversation.end)

    def image_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> TokenizerBatch:
        """Images for the tokenizer: of the examples, or one of each document that has any."""
        return {"image": processor.image.single_tiles(sample_images(examples, example_rng))}

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> SequenceBatch:
        """Packed documents: the examples' own, or an image and one of its captions in either order."""
        form, each = processor.conversation, zip(examples, example_rng.generators, strict=True)
        return {"sequences": form.pack([form.document(sample_document(*one)) for one in each])}

    @classmethod
    def tiny(cls) -> Recipe:
        """Return the smallest preset, for tests."""
        return cls(
            language_model=LanguageModelConfig(300, 96, width=16, depth=2, num_heads=2, num_kv_heads=2, mlp_dim=32),
            tokenizer=ImageTokenizerConfig(codebook_size=16, codebook_dim=4, width=16),
            tile_size=32,
            patch_size=16,
            upcycling_fraction=0.5,
            stage_fractions=(0.25, 0.5, 0.25),
            batch_size=4,
        )

    @classmethod
    def paper(cls) -> Recipe:
        """The 1.4B model with four experts of each modality, 7.1B parameters in all (section 3.1, table 1).

        SwiGLU's 5504 hidden channels give the sizes of the table's 8192 of an MLP without gate. 1T tokens are 159k
        steps of 6.3M tokens, of which 4k warm up and 10k train one expert. Adam's constants are Chameleon's.
        """
        size: dict[str, Any] = {"width": 2048, "depth": 24, "num_heads": 16, "num_kv_heads": 16, "mlp_dim": 5504}
        return cls(
            language_model=LanguageModelConfig(65_536 - 8192, 4096, **size, tie_word_embeddings=False),
            tokenizer=ImageTokenizerConfig(codebook_size=8192, codebook_dim=256, width=128),
            tile_size=512,
            patch_size=16,
            num_text_experts=4,
            num_image_experts=4,
            upcycling_fraction=0.063,
            stage_fractions=(0.0, 0.95, 0.05),
            batch_size=1536,
            optimizer=OptimizerConfig(
                1e-4, betas=(0.9, 0.95), eps=1e-5, lr_scheduler="linear", min_lr_ratio=0.01, warmup_ratio=0.025
            ),
        )
