"""Decoding strategies for text generation: greedy, temperature and top-p sampling, beam search."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from polymodal.constraints import NonNegativeFloat, PositiveInt, PositiveUnitInterval, validate_constraints
from polymodal.errors import UserError

Listener = Callable[[list[list[int]]], None]
_listener: ContextVar[Listener | None] = ContextVar("generation_listener", default=None)


@contextmanager
def generation_listener(listener: Listener) -> Iterator[None]:
    """Inside the block, call the listener at each step of greedy decoding or sampling, with the tokens of each row so
    far; beam search tells nothing, as its best beam changes."""
    before = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(before)


def current_listener() -> Listener | None:
    """Return the listener of the enclosing block in this thread."""
    return _listener.get()


@dataclass(frozen=True)
class Decoding:
    """Parameters of text generation."""

    max_new_tokens: PositiveInt = 48
    """Maximum number of generated tokens."""
    temperature: NonNegativeFloat = 0.0
    """Softmax temperature of sampling; 0 is greedy decoding."""
    top_p: PositiveUnitInterval = 1.0
    """Nucleus sampling: sample from the smallest set of tokens with this total probability (Holtzman et al. 2020)."""
    num_beams: PositiveInt = 1
    """Number of beams of beam search; 1 is greedy decoding or sampling."""
    length_penalty: float = 1.0
    """Exponent of the length normalization of beam scores: log-probability / length ** length_penalty."""

    def __post_init__(self) -> None:
        validate_constraints(self)
        if self.num_beams > 1 and self.temperature > 0:
            raise UserError("Beam search does not sample; leave out --num-beams or --temperature.")


def sample(
    logits: Float[Tensor, "batch vocabulary"], decoding: Decoding, generator: torch.Generator | None = None
) -> Int[Tensor, " batch"]:
    """Select the next token of each row: the most probable, or sampled with temperature and top-p."""
    if decoding.temperature == 0:
        return logits.argmax(1)
    probabilities = (logits.float() / decoding.temperature).softmax(1)
    if decoding.top_p < 1:
        probabilities = top_p_filter(probabilities, decoding.top_p)
    if generator is None:
        return torch.multinomial(probabilities, 1).squeeze(1)
    drawn = torch.multinomial(probabilities.to(generator.device), 1, generator=generator)
    return drawn.squeeze(1).to(logits.device)


def top_p_filter(probabilities: Float[Tensor, "batch vocabulary"], top_p: float) -> Float[Tensor, "batch vocabulary"]:
    """Keep the smallest set of most probable tokens with a total of at least `top_p`; others become 0 (not
    renormalized)."""
    ordered, order = probabilities.sort(dim=1, descending=True)
    # A token is dropped if the tokens before it already have a total of top_p.
    beyond = ordered.cumsum(1) - ordered >= top_p
    return torch.zeros_like(probabilities).scatter(1, order, ordered.masked_fill(beyond, 0))


class Beams:
    """Beam search over a batch.

    The score of a hypothesis is its log-probability / length ** length_penalty, including the end token. A row is done
    when none of its live beams, at the current length, beats its worst finished hypothesis (the rule of transformers).
    """

    def __init__(self, rows: int, decoding: Decoding, end: int, like: Tensor):
        self.decoding, self.end = decoding, end
        beams = decoding.num_beams
        self.total = like.new_full((rows, beams), -torch.inf, dtype=torch.float32)
        self.total[:, 0] = 0.0  # all beams are identical at the first step: expand one only
        self.written = torch.empty(rows, beams, 0, dtype=torch.long, device=like.device)
        self.scores = torch.full_like(self.total, -torch.inf)
        self.ended = torch.full((rows, beams, decoding.max_new_tokens), end, dtype=torch.long, device=like.device)
        self.done = torch.zeros(rows, dtype=torch.bool, device=like.device)

    def advance(
        self, logits: Float[Tensor, "rows beams vocabulary"]
    ) -> tuple[Int[Tensor, "rows beams"], Int[Tensor, "rows beams"]]:
        """Extend the beams by one token. Returns, for each new beam, the index of its parent beam and its token."""
        beams, vocabulary = logits.shape[1:]
        length = self.written.shape[2] + 1
        candidates = self.total[:, :, None] + logits.float().log_softmax(2)
        # 2 * num_beams candidates: even if num_beams of them end, enough live beams remain.
        total, flat_index = candidates.flatten(1).topk(min(2 * beams, candidates[0].numel()), dim=1)
        origin, token = flat_index // vocabulary, flat_index % vocabulary
        written = torch.cat([_taken(self.written, origin), token[:, :, None]], dim=2)
        # A hypothesis ends with the end token, or at the maximum length.
        ends = (token == self.end) | (length == self.decoding.max_new_tokens)

        ending = ends & (torch.arange(total.shape[1], device=token.device) < beams) & ~self.done[:, None]
        score = (total / length**self.decoding.length_penalty).masked_fill(~ending, -torch.inf)
        padded = F.pad(written, (0, self.decoding.max_new_tokens - length), value=self.end)
        # Merge with the finished hypotheses and keep the best num_beams.
        self.scores, best = torch.cat([self.scores, score], dim=1).topk(beams, dim=1)
        self.ended = _taken(torch.cat([self.ended, padded], dim=1), best)

        self.total, live = total.masked_fill(ends, -torch.inf).topk(beams, dim=1)
        self.written = _taken(written, live)
        # Stop a row when its best live beam cannot beat its worst finished hypothesis.
        self.done |= self.scores[:, -1] >= self.total[:, 0] / length**self.decoding.length_penalty
        return origin.gather(1, live), token.gather(1, live)

    @property
    def best(self) -> Int[Tensor, "rows longest"]:
        """The best hypothesis of each row, padded with the end token."""
        return self.ended[:, 0]


def _taken(
    texts: Int[Tensor, "rows some length"], which: Int[Tensor, "rows others"]
) -> Int[Tensor, "rows others length"]:
    return texts.gather(1, which[:, :, None].expand(-1, -1, texts.shape[2]))


def truncate_at_eos(tokens: Int[Tensor, "batch length"], eos_id: int) -> list[list[int]]:
    """Return the tokens of each row before its first end token."""
    rows = tokens.tolist()
    return [row[: row.index(eos_id)] if eos_id in row else row for row in rows]
