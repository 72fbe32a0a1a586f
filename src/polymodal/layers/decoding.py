"""How the next token is chosen from its logits: the likeliest, at random, or several continuations at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from polymodal.constraints import NonNegativeFloat, PositiveInt, PositiveUnitInterval, validate_constraints
from polymodal.errors import UserError


@dataclass(frozen=True)
class Decoding:
    """How a text is written."""

    max_new_tokens: PositiveInt = 48
    """Most tokens that are written."""
    temperature: NonNegativeFloat = 0.0
    """Of the distribution that tokens are drawn from; 0 takes the likeliest."""
    top_p: PositiveUnitInterval = 1.0
    """Tokens are drawn among the likeliest that together have this probability (Holtzman et al. 2020)."""
    num_beams: PositiveInt = 1
    """Continuations that are kept at once (beam search)."""
    length_penalty: float = 1.0
    """Beams are compared by log-probability / length ** this."""

    def __post_init__(self) -> None:
        validate_constraints(self)
        if self.num_beams > 1 and self.temperature > 0:
            raise UserError("Beams are not sampled at random; leave out --num-beams or --temperature.")


def sample(
    logits: Float[Tensor, "batch vocabulary"], decoding: Decoding, generator: torch.Generator | None = None
) -> Int[Tensor, " batch"]:
    """One token a row."""
    if decoding.temperature == 0:
        return logits.argmax(1)
    probabilities = (logits.float() / decoding.temperature).softmax(1)
    if decoding.top_p < 1:
        probabilities = top_p_filter(probabilities, decoding.top_p)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(1)


def top_p_filter(probabilities: Float[Tensor, "batch vocabulary"], top_p: float) -> Float[Tensor, "batch vocabulary"]:
    """The fewest likeliest tokens that have this mass together, with their probabilities; 0 for all others."""
    ordered, order = probabilities.sort(dim=1, descending=True)
    beyond = ordered.cumsum(1) - ordered >= top_p
    return torch.zeros_like(probabilities).scatter(1, order, ordered.masked_fill(beyond, 0))


class Beams:
    """Beam search over a batch: the likeliest beginnings that go on, and the likeliest texts that have ended.

    A text's score is its log-probability / length ** penalty, the end mark among its tokens. A row is done when none of
    its beginnings, as long as it is now, beats its worst ended text (the rule of transformers).
    """

    def __init__(self, rows: int, decoding: Decoding, end: int, like: Tensor):
        self.decoding, self.end = decoding, end
        beams = decoding.num_beams
        self.total = like.new_full((rows, beams), -torch.inf, dtype=torch.float32)
        self.total[:, 0] = 0.0  # all beams are the same yet
        self.written = torch.empty(rows, beams, 0, dtype=torch.long, device=like.device)
        self.scores = torch.full_like(self.total, -torch.inf)
        self.ended = torch.full((rows, beams, decoding.max_new_tokens), end, dtype=torch.long, device=like.device)
        self.done = torch.zeros(rows, dtype=torch.bool, device=like.device)

    def advance(
        self, logits: Float[Tensor, "rows beams vocabulary"]
    ) -> tuple[Int[Tensor, "rows beams"], Int[Tensor, "rows beams"]]:
        """One more token: which beam each of the new ones goes on from, and with which token."""
        beams, vocabulary = logits.shape[1:]
        length = self.written.shape[2] + 1
        every = self.total[:, :, None] + logits.float().log_softmax(2)
        total, place = every.flatten(1).topk(min(2 * beams, every[0].numel()), dim=1)
        origin, token = place // vocabulary, place % vocabulary
        written = torch.cat([_taken(self.written, origin), token[:, :, None]], dim=2)
        ends = (token == self.end) | (length == self.decoding.max_new_tokens)

        ending = ends & (torch.arange(total.shape[1], device=token.device) < beams) & ~self.done[:, None]
        score = (total / length**self.decoding.length_penalty).masked_fill(~ending, -torch.inf)
        padded = F.pad(written, (0, self.decoding.max_new_tokens - length), value=self.end)
        self.scores, best = torch.cat([self.scores, score], dim=1).topk(beams, dim=1)
        self.ended = _taken(torch.cat([self.ended, padded], dim=1), best)

        self.total, going = total.masked_fill(ends, -torch.inf).topk(beams, dim=1)
        self.written = _taken(written, going)
        self.done |= self.scores[:, -1] >= self.total[:, 0] / length**self.decoding.length_penalty
        return origin.gather(1, going), token.gather(1, going)

    @property
    def best(self) -> Int[Tensor, "rows longest"]:
        """The text of the largest score of each row, filled up with end marks."""
        return self.ended[:, 0]


def _taken(
    texts: Int[Tensor, "rows some length"], which: Int[Tensor, "rows others"]
) -> Int[Tensor, "rows others length"]:
    return texts.gather(1, which[:, :, None].expand(-1, -1, texts.shape[2]))


def truncate_at_eos(tokens: Int[Tensor, "batch length"], eos_id: int) -> list[list[int]]:
    """The tokens of each row before its first end mark."""
    rows = tokens.tolist()
    return [row[: row.index(eos_id)] if eos_id in row else row for row in rows]
