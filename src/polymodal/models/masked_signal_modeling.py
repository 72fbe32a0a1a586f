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
from polymodal.layers.patches import patchify_nd, unpatchify_nd
from polymodal.modalities.text import Tokens
from polymodal.models.masked_autoencoder import MaskedAutoencoderConfig, MaskedDecoder
from polymodal.models.multiway_pairs import MultiwayPairs, PairsBatch
from polymodal.objectives.masked_modeling import (
    masked_lm_loss,
    masked_patch_loss,
    normalize_patches,
    patch_mean_std,
)
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


class MaskedViews(NamedTuple):
    """Of every pair. visible: image with masked patches in the mean color. reconstructed: with what is predicted of
    them. ids: tokens that are predicted at masked positions, -1 elsewhere."""

    visible: Float[Tensor, "batch 3 size size"]
    reconstructed: Float[Tensor, "batch 3 size size"]
    ids: Int[Tensor, "batch length"]


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
        tokens, mask, patch_mask = self._masked_at_random(batch)
        targets, logits = batch["text"].ids[mask], self._token_logits(tokens, mask)
        nll, correct = torch.zeros(2, *mask.shape, device=mask.device)
        nll[mask] = F.cross_entropy(logits.float(), targets, reduction="none")
        correct[mask] = (logits.argmax(1) == targets).float()
        goal = normalize_patches(self._patches(batch["image"]))
        errors = (self._reconstructed(tokens, patch_mask) - goal).square().mean(-1)
        count = patch_mask.sum(1).clamp(min=1)
        error, variance = ((each * patch_mask).sum(1) / count for each in (errors, goal.square().mean(-1)))
        ids = batch["text"].ids.masked_fill(~mask, -1)
        return MaskedErrors(nll.sum(1), correct.sum(1), ids, error, variance)

    def masked_views(self, batch: Batch) -> MaskedViews:
        """Return what `masked_errors` masks, and what is predicted there."""
        tokens, mask, patch_mask = self._masked_at_random(batch)
        patches, config = self._patches(batch["image"]), self.decoder.config
        mean, std = patch_mean_std(patches)
        predicted = self._reconstructed(tokens, patch_mask) * std + mean  # of the true patch, as the goal is normalized
        pasted = torch.where(patch_mask[..., None], predicted, patches)
        visible = torch.where(patch_mask[..., None], torch.zeros_like(patches), patches)
        shown, whole = (unpatchify_nd(each, config.patch_size, config.grid) for each in (visible, pasted))
        ids = torch.full_like(batch["text"].ids, -1)
        ids[mask] = self._token_logits(tokens, mask).argmax(1)
        return MaskedViews(shown, whole, ids)

    def _masked_at_random(
        self, batch: Batch
    ) -> tuple[MultiwayTokens, Bool[Tensor, "batch length"], Bool[Tensor, "batch patches"]]:
        """Encode pairs that are masked at random, and return which tokens and patches are."""
        image, config, rng = batch["image"], self.decoder.config, ExampleRNG.of(0, 0, len(batch["image"]))
        ratios, mask_id = (self.mlm_probability, config.mask_ratio), len(self.mlm_head.bias)
        masked = mask_pairs(batch["text"].to("cpu"), config.num_patches, mask_id, *ratios, rng)
        patch_mask = masked["masked_patches"].to(image.device)
        tokens = self.encoder(image, masked["mlm_text"].to(image.device), visible_indices(patch_mask))
        return tokens, masked["masked_tokens"].to(image.device), patch_mask

    def _token_logits(
        self, tokens: MultiwayTokens, mask: Bool[Tensor, "batch length"]
    ) -> Float[Tensor, "masked vocab_size"]:
        assert tokens.text is not None
        return self.mlm_head(tokens.text[mask], self.encoder.word.weight)

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
