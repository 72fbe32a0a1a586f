"""BLIP-2's first stage: a Q-Former learns from images and texts by contrast (ITC), matching (ITM) and captioning (ITG).

One transformer (Li et al. 2023, section 3.1): queries alone and text alone for ITC, both with bidirectional
self-attention for ITM, and texts after the states of the queries, with causal self-attention, for captioning. Images
are tokens of any encoder here.
"""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.data.columns.text import TokenizedColumn
from polymodal.layers.cross_attention import init_transformer
from polymodal.layers.decoding import Decoding
from polymodal.layers.generation import generate_by_rereading
from polymodal.layers.masked_lm_head import MaskedLMHead
from polymodal.layers.qformer import QFormer, QFormerConfig
from polymodal.modalities.text import END, Tokens
from polymodal.objectives.autoregressive import text_token_losses
from polymodal.objectives.image_text_matching import itm_loss, sample_itm_pairs
from polymodal.objectives.query_contrastive import max_query_similarity, query_contrastive_loss
from polymodal.objectives.reduction import global_mean

INITIAL_TEMPERATURE = 0.07
Media = Float[Tensor, "batch tokens media_width"]
Prefix = list[Float[Tensor, "batch prefix width"]]


class QFormerPretraining(nn.Module):
    """Q-Former with the projections and heads of BLIP-2's losses."""

    def __init__(self, config: QFormerConfig, embed_dim: int, texts: TokenizedColumn, with_itm: bool = True):
        """config: its vocab_size is that of the tokenizer of `texts`, with [DEC] behind, in place of its own."""
        super().__init__()
        self.bos = texts.tokenizer.vocab_size  # [DEC], the first token of texts that are written
        (self.end,) = texts.tokenizer.mark_ids(END)
        self.qformer = QFormer(dataclasses.replace(config, vocab_size=self.bos + 1))
        # Outputs as large as inputs at any width: with the 0.02 of BERT's 768 dimensions, images hardly change the
        # states of queries at small widths, and captioning does not come to read them.
        init_transformer(self.qformer, config.width**-0.5)
        self.qformer.copy_text_branch()
        self.vision_proj = nn.Linear(config.width, embed_dim)
        self.text_proj = nn.Linear(config.width, embed_dim)
        self.temperature = nn.Parameter(INITIAL_TEMPERATURE * torch.ones(()))
        self.itm_head = nn.Linear(config.width, 2) if with_itm else None
        self.lm_head = MaskedLMHead(config.width, self.bos + 1, config.norm_eps)

    def project_queries(self, states: Float[Tensor, "batch queries width"]) -> Float[Tensor, "batch queries dim"]:
        """Return L2-normalized embeddings of queries."""
        return F.normalize(self.vision_proj(states), dim=-1)

    def encode_text(self, text: Tokens) -> Float[Tensor, "batch dim"]:
        """Return L2-normalized embeddings, by the first token of texts alone."""
        _, states = self.qformer(ids=text.ids, text_mask=text.mask)
        return F.normalize(self.text_proj(states[:, 0]), dim=-1)

    def match(
        self, text: Tokens, media: Media, media_mask: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch 2"]:
        """Return logits of "does not match" and "matches": the mean over queries that attend to the text (ITM)."""
        assert self.itm_head is not None
        queries, _ = self.qformer(media, media_mask, text.ids, text.mask, mode="itm")
        return self.itm_head(queries).mean(1)

    def next_token_logits(self, prefix: Prefix, text: Tokens) -> Float[Tensor, "batch length entries"]:
        """Return the logits of the token after each position of texts, of which [DEC] replaces the first token."""
        ids = torch.cat([torch.full_like(text.ids[:, :1], self.bos), text.ids[:, 1:]], dim=1)
        states = self.qformer.decode_text(prefix, ids, text.mask)
        assert self.qformer.token_embedding is not None
        logits = self.lm_head(states.flatten(0, 1), self.qformer.token_embedding.weight)
        return logits.unflatten(0, states.shape[:2])

    def lm_loss(self, prefix: Prefix, text: Tokens, label_smoothing: float = 0.1) -> Float[Tensor, ""]:
        """Return the mean cross-entropy of all tokens but the first; the end token counts, padding does not.

        label_smoothing: 0.1 in BLIP-2's released code.
        """
        nats, predicted = text_token_losses(self.next_token_logits(prefix, text), text, label_smoothing)
        return global_mean(nats[predicted].sum(), predicted.sum())

    def trio_losses(
        self,
        media: Media,
        text: Tokens,
        group: Float[Tensor, " batch"],
        media_mask: Bool[Tensor, "batch tokens"] | None = None,
        uniform: Float[Tensor, "batch 2"] | None = None,
    ) -> dict[str, Tensor]:
        """Return itc, itm and lm, of weight 1 each.

        group: equal for texts that are equal, which are no negatives of each other. uniform: see `sample_itm_pairs`.
        """
        states, prefix = self.qformer.encode_queries(media, media_mask)
        image, written = self.project_queries(states), self.encode_text(text)
        similarity = (max_query_similarity(image, written) / self.temperature).detach()
        losses = {"itc": query_contrastive_loss(image, written, self.temperature, labels=group)}
        if self.itm_head is not None:
            pairs = sample_itm_pairs(similarity, group, uniform=uniform)
            paired = Tokens(text.ids[pairs.text], text.lengths[pairs.text], text.special_tokens)
            mask = None if media_mask is None else media_mask[pairs.image]
            losses["itm"] = itm_loss(self.match(paired, media[pairs.image], mask), pairs)
        return losses | {"lm": self.lm_loss(prefix, text)}

    def write(
        self, prefix: Prefix, decoding: Decoding | None = None, generator: torch.Generator | None = None
    ) -> list[list[int]]:
        """Generate a text after each prefix, up to the context length."""
        length = self.qformer.config.context_length

        def next_logits(text: Tokens, context: Prefix) -> Float[Tensor, "rows entries"]:
            logits = self.next_token_logits(context, text)[:, -1].clone()
            logits[:, self.bos] = -torch.inf  # never written
            return logits

        return generate_by_rereading(next_logits, prefix, self.end, length, decoding or Decoding(), generator)
