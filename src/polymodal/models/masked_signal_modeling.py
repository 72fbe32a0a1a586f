"""Masked signal modeling of pairs: one multiway encoder sees visible patches and masked texts, and predicts the rest.

EVE (Chen et al. 2024, section 3.2): a light decoder reconstructs masked patches (MAE), a head predicts masked tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from polymodal.data.masked_input import MaskedTexts, mask_texts
from polymodal.data.masks import mask_patches, restore_indices, visible_indices
from polymodal.encoders.multiway_moe import MultiwayMoEConfig, MultiwayTokens
from polymodal.layers.masked_lm_head import MaskedLMHead
from polymodal.layers.patches import patchify_nd
from polymodal.modalities.text import Tokens
from polymodal.models.masked_autoencoder import MaskedAutoencoderConfig, MaskedDecoder
from polymodal.models.multiway_pairs import MultiwayPairs, PairsBatch
from polymodal.objectives.masked_modeling import masked_lm_loss, masked_patch_loss, normalize_patches
from polymodal.rng import ExampleRNG
from polymodal.types import Batch


class MaskedPairs(MaskedTexts):
    """masked_patches: True for patches that are reconstructed, as many of each image."""

    masked_patches: Bool[Tensor, "batch patches"]


class MaskedPairsBatch(PairsBatch, MaskedPairs):
    """Pairs, and what masked signal modeling is given of them."""


class MaskedErrors(NamedTuple):
    """Of every pair. correct: masked tokens whose prediction is the most probable one. ids: padded with -1."""

    nll: Float[Tensor, " batch"]
    correct: Float[Tensor, " batch"]
    ids: Int[Tensor, "batch length"]
    squared_error: Float[Tensor, " batch"]
    variance: Float[Tensor, " batch"]


def mask_pairs(
    text: Tokens, num_patches: int, mask_id: int, mlm_probability: float, mask_ratio: float, rng: ExampleRNG
) -> MaskedPairs:
    """Mask tokens, at least one of each text, and patches; a masked token is always replaced by the mask token."""
    masked = mask_texts(text, mlm_probability, mask_id, rng, min_masked=1, keep_prob=0.0, random_prob=0.0)
    return {**masked, "masked_patches": mask_patches(num_patches, mask_ratio, rng)}


class MaskedSignalModeling(MultiwayPairs):
    """A multiway encoder for pairs, with the head and the decoder of masked signal modeling."""

    def __init__(
        self,
        config: MultiwayMoEConfig,
        decoder: MaskedAutoencoderConfig,
        vocab_size: int,
        embed_dim: int,
        num_answers: int,
        mlm_probability: float,
    ):
        """decoder: of the patches, which names the ratio of masked ones, too. mlm_probability: fraction of masked
        tokens. vocab_size, embed_dim, num_answers: see `MultiwayPairs`."""
        super().__init__(config, vocab_size, embed_dim, num_answers)
        self.mlm_probability, self.mlm_head = mlm_probability, MaskedLMHead(config.width, vocab_size)
        self.decoder = MaskedDecoder(decoder, config.width)

    def masked_losses(self, batch: MaskedPairsBatch, joint: bool) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Return MLM and MIM, and the balance loss of each pass.

        joint: whether one pass sees visible patches and masked texts; else one sees all patches with masked texts, and
        another visible patches with all words.
        """
        image, kept = batch["image"], visible_indices(batch["masked_patches"])
        of_text = of_image = self.encoder(image, batch["mlm_text"], kept if joint else None)
        passes = [of_text]
        if not joint:
            of_image = self.encoder(image, batch["text"], kept)
            passes.append(of_image)
        ids, embedding, patches = batch["text"].ids, self.encoder.word.weight, self._patches(image)
        predicted = self._reconstructed(of_image, batch["masked_patches"])
        losses = {
            "mlm": masked_lm_loss(self.mlm_head, of_text.text, embedding, ids, batch["masked_tokens"]),
            "mim": masked_patch_loss(predicted, patches, batch["masked_patches"]),
        }
        return losses, [one.balance_loss for one in passes]

    def masked_errors(self, batch: Batch) -> MaskedErrors:
        """Return the errors at positions that are masked at random, the same ones of the same batch."""
        text, image, mask_id = batch["text"], batch["image"], len(self.mlm_head.bias)
        config, rng = self.decoder.config, ExampleRNG.of(0, 0, len(image))
        num_patches, ratios = config.num_patches, (self.mlm_probability, config.mask_ratio)
        masked = mask_pairs(text.to("cpu"), num_patches, mask_id, *ratios, rng)
        words, mask = masked["mlm_text"].to(image.device), masked["masked_tokens"].to(image.device)
        patch_mask = masked["masked_patches"].to(image.device)
        tokens = self.encoder(image, words, visible_indices(patch_mask))
        logits, targets = self.mlm_head(tokens.text[mask], self.encoder.word.weight), text.ids[mask]
        nll, correct = torch.zeros(2, *mask.shape, device=mask.device)
        nll[mask] = F.cross_entropy(logits.float(), targets, reduction="none")
        correct[mask] = (logits.argmax(1) == targets).float()
        goal = normalize_patches(self._patches(image))
        errors = (self._reconstructed(tokens, patch_mask) - goal).square().mean(-1)
        count = patch_mask.sum(1).clamp(min=1)
        error, variance = ((each * patch_mask).sum(1) / count for each in (errors, goal.square().mean(-1)))
        return MaskedErrors(nll.sum(1), correct.sum(1), text.ids.masked_fill(~mask, -1), error, variance)

    def expert_choices(
        self, batch: Batch
    ) -> tuple[Int[Tensor, "layers total"], Int[Tensor, " total"], Int[Tensor, " total"]]:
        """Return the first expert of every token in each mixture, the token's modality, and its example."""
        layout, routings = self.encoder.routings(batch["image"], batch["text"])
        first = [routing.expert[0] for routing in routings]
        chosen = torch.stack(first) if first else layout.modality.new_zeros(0, len(layout.modality))
        return chosen, layout.modality, layout.example

    def _reconstructed(
        self, tokens: MultiwayTokens, mask: Bool[Tensor, "batch patches"]
    ) -> Float[Tensor, "batch patches values"]:
        return self.decoder(tokens.image, restore_indices(mask))

    def _patches(self, image: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch patches values"]:
        return patchify_nd(image, self.decoder.config.patch_size)
