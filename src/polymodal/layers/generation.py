"""Autoregressive generation loop for any decoder that returns the logits of the next token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polymodal.layers.decoding import Beams, Decoding, current_listener, sample, truncate_at_eos
from polymodal.modalities.text import Tokens

Step = Callable[[Int[Tensor, " rows"]], Float[Tensor, "rows vocabulary"]]


@torch.no_grad()
def generate_tokens(
    logits: Float[Tensor, "batch vocabulary"],
    step: Step,
    select: Callable[[Int[Tensor, " rows"]], None],
    end: int,
    decoding: Decoding,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """Generate tokens up to the end token (excluded): greedy, sampled, or by beam search.

    logits: of the first new token. step: maps the selected token of every row to the logits of the next one. select:
    reindexes the rows of the cache behind `step`; called for beam search only.
    """
    if decoding.num_beams > 1:
        return _beam_search(logits, step, select, end, decoding)
    finished = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    generated: list[Tensor] = []
    listener = current_listener()
    while True:
        token = sample(logits, decoding, generator).masked_fill(finished, end)
        generated.append(token)
        finished |= token == end
        if listener is not None:
            listener(truncate_at_eos(torch.stack(generated, dim=1), end))
        if len(generated) == decoding.max_new_tokens or bool(finished.all()):
            return truncate_at_eos(torch.stack(generated, dim=1), end)
        logits = step(token)


def generate_by_rereading(
    next_logits: Callable[[Tokens, list[Tensor]], Float[Tensor, "rows vocabulary"]],
    context: Sequence[Float[Tensor, "batch tokens width"]],
    end: int,
    max_length: int,
    decoding: Decoding,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """Generate texts that are short enough to be read again at every step, of at most `max_length` tokens.

    next_logits: from texts so far and the context of each, such as image tokens, the logits of the next token. Texts
    begin with a token 0, which counts and which `next_logits` may replace.
    """
    written = _Reread(next_logits, context, end, max_length)
    return generate_tokens(written.logits(), written.step, written.select, end, decoding, generator)


class _Reread:
    """Texts so far, and the context of each."""

    def __init__(
        self,
        next_logits: Callable[[Tokens, list[Tensor]], Tensor],
        context: Sequence[Tensor],
        end: int,
        max_length: int,
    ):
        self.next_logits, self.context, self.end, self.max_length = next_logits, list(context), end, max_length
        self.ids = torch.zeros(len(context[0]), 1, dtype=torch.long, device=context[0].device)

    def logits(self) -> Tensor:
        # Beyond the maximum length, the last token is predicted over and over, and the text ends.
        kept = self.ids[:, : self.max_length]
        text = Tokens(kept, torch.full((len(kept),), kept.shape[1], device=kept.device))
        logits = self.next_logits(text, self.context)
        if kept.shape[1] < self.ids.shape[1]:
            logits = torch.full_like(logits, -torch.inf)
            logits[:, self.end] = 0.0
        return logits

    def step(self, token: Tensor) -> Tensor:
        self.ids = torch.cat([self.ids, token[:, None]], dim=1)
        return self.logits()

    def select(self, rows: Tensor) -> None:
        self.ids, self.context = self.ids[rows], [each[rows] for each in self.context]


def _beam_search(
    logits: Tensor, step: Step, select: Callable[[Tensor], None], end: int, decoding: Decoding
) -> list[list[int]]:
    rows, beams = len(logits), decoding.num_beams
    of_row = torch.arange(rows, device=logits.device).repeat_interleave(beams)
    select(of_row)
    logits = logits[of_row]
    search = Beams(rows, decoding, end, logits)
    first = beams * torch.arange(rows, device=logits.device)[:, None]
    for _ in range(decoding.max_new_tokens - 1):
        origin, token = search.advance(logits.unflatten(0, (rows, beams)))
        if bool(search.done.all()):
            break
        select((first + origin).flatten())
        logits = step(token.flatten())
    else:
        search.advance(logits.unflatten(0, (rows, beams)))
    return truncate_at_eos(search.best, end)
