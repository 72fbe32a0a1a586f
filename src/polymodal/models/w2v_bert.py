"""w2v-BERT (Chung et al. 2021): self-supervised losses of masked speech, for an encoder of two blocks.

The context that the first block gives a masked frame is contrasted with the quantized features of other masked frames;
from the second block, the code of the frame is predicted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from polymodal.constraints import NonNegativeFloat, PositiveInt, UnitInterval
from polymodal.encoders.speech_text import EncodedSpeech
from polymodal.layers.quantize import GumbelQuantizer
from polymodal.objectives.masked_modeling import masked_cross_entropy
from polymodal.objectives.wav2vec2_contrastive import wav2vec2_contrastive_loss


@dataclass(frozen=True)
class W2vBertConfig:
    """Configuration of the quantizer and of the contrastive loss."""

    embed_dim: PositiveInt = 64
    """Dimension in which contexts are contrasted with quantized features."""
    num_codevector_groups: PositiveInt = 1
    """Codebooks of the product quantizer."""
    num_codevectors_per_group: PositiveInt = 64
    """Codes per codebook."""
    gumbel_temperature_decay: UnitInterval = 0.999
    """Factor of the Gumbel temperature per step, from 2.0 down to 0.5."""
    num_negatives: PositiveInt = 100
    """Distractors: other masked frames of the same utterance."""
    diversity_loss_weight: NonNegativeFloat = 1.0
    """Weight of the code diversity loss. The paper has 0.1, with which nearly all frames get one code here."""

    def build(self, width: int) -> W2vBertHeads:
        """Build the heads. width: of the encoder."""
        return W2vBertHeads(self, width)


class W2vBertOutput(NamedTuple):
    """Losses, and the codes of the masked frames, one per codebook."""

    losses: dict[str, Tensor]
    codes: Int[Tensor, "masked codebooks"]


class W2vBertHeads(nn.Module):
    """Quantizer of speech features, projection of contexts, and prediction of codes."""

    def __init__(self, config: W2vBertConfig, width: int):
        super().__init__()
        self.config = config
        codes = config.num_codevector_groups, config.num_codevectors_per_group
        self.quantizer = GumbelQuantizer(
            width, *codes, config.embed_dim, temperature_decay=config.gumbel_temperature_decay
        )
        self.project_context = nn.Linear(width, config.embed_dim)
        self.code_head = nn.Sequential(nn.Linear(width, codes[0] * codes[1]), nn.Unflatten(1, codes))

    def forward(self, speech: EncodedSpeech, mask: Bool[Tensor, "batch frames"]) -> W2vBertOutput:
        """Compute the losses of encoded masked speech: contrastive, diversity, and masked prediction (w2v_bert)."""
        config = self.config
        # Targets are quantized from the features of the convolutions, which are not masked.
        quantized = self.quantizer(speech.features[mask])
        context = self.project_context(speech.contrastive[mask])
        losses = {
            "contrastive": wav2vec2_contrastive_loss(context, quantized.vectors, mask.sum(1), config.num_negatives),
            "diversity": config.diversity_loss_weight * quantized.diversity,
            "w2v_bert": self.masked_prediction_loss(speech.multimodal[mask], quantized.codes),
        }
        return W2vBertOutput(losses, quantized.codes)

    def masked_prediction_loss(
        self, hidden_states: Float[Tensor, "masked width"], codes: Int[Tensor, "masked codebooks"]
    ) -> Float[Tensor, ""]:
        """Compute the cross-entropy of the codes of masked frames; no gradient reaches the quantizer."""
        return masked_cross_entropy(self.code_head(hidden_states).flatten(0, 1), codes.flatten())
