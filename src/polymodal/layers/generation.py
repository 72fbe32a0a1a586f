"""The loop that writes a text token by token, for any decoder that gives the next token's logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polymodal.layers.decoding import Beams, Decoding, sample, truncate_at_eos

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
    """Tokens of every row up to the end token, which is not among them: greedy, sampled, or by beam search.

    logits: of the first new token. step: takes the token that was chosen in every row, and gives the logits of the next
    one. select: makes the rows of the cache behind `step` those of these indices; called with beam search only.
    """
    if decoding.num_beams > 1:
        return _beam_search(logits, step, select, end, decoding)
    finished = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    written: list[Tensor] = []
    while True:
        token = sample(logits, decoding, generator).masked_fill(finished, end)
        written.append(token)
        finished |= token == end
        if len(written) == decoding.max_new_tokens or bool(finished.all()):
            return truncate_at_eos(torch.stack(written, dim=1), end)
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
