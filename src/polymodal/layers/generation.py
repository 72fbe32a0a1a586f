"""Autoregressive generation loop for any decoder that returns the logits of the next token."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polymodal.layers.decoding import Beams, Decoding, current_listener, sample, truncate_at_eos

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
