"""Packing against padding: useful tokens a second of one decoder on interleaved sequences of mixed length.

The decoder is GPT-2's (6 layers x 384) with the same weights throughout: in transformers on padded batches, in
transformers on rows that polymodal packed, and in polymodal on these rows. Sequences are one to forty captions of the
emoji corpus, half of them with the 16 patches of an image; and pages of manuals with 16 patches where a figure stands.
Forward and backward, in one process, in turn; hidden states are compared first.

    pip install "transformers>=5" && python benchmarks/packing.py
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2Model

from in_turn import median_ratio, seconds_in_turn
from polymodal import corpora
from polymodal.data.sequence import PackedSequences, Span, SpanSequence, pack
from polymodal.layers.transformer import Packing, Transformer
from polymodal.modalities.text import TextTokenizer

WIDTH, DEPTH, HEADS, ROUNDS = 384, 6, 6, 5
VOCABULARY, PATCHES = 4000, 16


class Decoder(nn.Module):
    """polymodal's transformer with GPT-2's positions and last norm."""

    def __init__(self, capacity: int):
        super().__init__()
        self.positions = nn.Embedding(capacity, WIDTH)
        self.transformer = Transformer(WIDTH, DEPTH, HEADS, causal=True)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, packed: PackedSequences) -> Tensor:
        """x: (rows, length, width). Returns the hidden states of all tokens in reading order."""
        packing = Packing.of_segments(packed.document)
        tokens = packing.pack(x + self.positions(packed.position))
        return self.norm(self.transformer(tokens, packing))


@torch.no_grad()
def take_weights(ours: Decoder, theirs: GPT2Model) -> None:
    """GPT-2 keeps its linear layers transposed."""
    ours.positions.load_state_dict(theirs.wpe.state_dict())
    ours.norm.load_state_dict(theirs.ln_f.state_dict())
    for block, other in zip(ours.transformer.blocks, theirs.h, strict=True):
        for norm, its in ((block.norm1, other.ln_1), (block.norm2, other.ln_2)):
            norm.load_state_dict(its.state_dict())
        pairs = {
            block.attention.qkv: other.attn.c_attn,
            block.attention.out: other.attn.c_proj,
            block.fc1: other.mlp.c_fc,
            block.fc2: other.mlp.c_proj,
        }
        for linear, its in pairs.items():
            linear.weight.copy_(its.weight.T)
            linear.bias.copy_(its.bias)


def image() -> Span:
    return Span("image", torch.zeros(PATCHES, dtype=torch.long), predicted=False)


def captions(count: int) -> list[SpanSequence]:
    emoji, rng = corpora.emoji(), np.random.default_rng(0)
    texts = [caption.text for row in emoji.rows("train")[:200] for caption in emoji.value(row, "captions")]
    tokenizer = TextTokenizer.train(texts, VOCABULARY, 512)
    made = []
    for _ in range(count):
        words = tokenizer([" ".join(rng.choice(texts, size=int(np.exp(rng.uniform(0, np.log(40))))))])
        made.append([Span("text", words.ids[0])] + [image()] * bool(rng.random() < 0.5))
    return made


def pages(count: int) -> list[SpanSequence]:
    manuals = corpora.manuals()
    rows = np.random.default_rng(0).choice(manuals.rows("train"), count, replace=False)
    documents = [manuals.value(int(row), "document") for row in rows]
    tokenizer = TextTokenizer.train([piece.text for page in documents for piece in page], VOCABULARY, 1024)
    return [
        [image() if piece.kind == "figure" else Span("text", tokenizer([piece.text]).ids[0]) for piece in page]
        for page in documents
    ]


def main() -> None:
    for name, make, few, many, capacity in (("captions", captions, 48, 400, 512), ("pages", pages, 24, 400, 1024)):
        print(
            f"\n{name}; {many} of them packed: "
            f"{pack(make(many), capacity).packing_efficiency:.1%} of the places are tokens"
        )
        compare(make(few), capacity)


def compare(made: list[SpanSequence], capacity: int) -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=WIDTH,
        n_layer=DEPTH,
        n_head=HEADS,
        n_positions=capacity,
        vocab_size=8,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        activation_function="gelu",
        attn_implementation="sdpa",
        bos_token_id=None,
        eos_token_id=None,
    )
    theirs, ours = GPT2Model(config), Decoder(capacity)
    take_weights(ours, theirs)
    packed = pack(made, capacity)
    lengths = torch.tensor([min(sum(map(len, sequence)), capacity) for sequence in made])
    table = nn.Embedding(VOCABULARY, WIDTH)
    padded_ids = torch.zeros(len(made), int(lengths.max()), dtype=torch.long)
    for row, sequence in enumerate(made):
        padded_ids[row, : lengths[row]] = torch.cat([segment.values for segment in sequence])[:capacity]
    mask = torch.arange(padded_ids.shape[1]) < lengths[:, None]
    same = packed.document[:, :, None] == packed.document[:, None, :]
    documents = torch.where(same.tril(), 0.0, torch.finfo(torch.float32).min)[:, None]

    def padded_in_transformers() -> Tensor:
        return theirs(inputs_embeds=table(padded_ids), attention_mask=mask.long()).last_hidden_state[mask]

    def packed_in_transformers() -> Tensor:
        out = theirs(
            inputs_embeds=table(packed.ids), attention_mask=documents, position_ids=packed.position, use_cache=False
        )
        return out.last_hidden_state[packed.document > 0]

    def packed_in_polymodal() -> Tensor:
        return ours(table(packed.ids), packed)

    ways: dict[str, Callable[[], Tensor]] = {
        "padded, transformers": padded_in_transformers,
        "packed, transformers": packed_in_transformers,
        "packed, polymodal": packed_in_polymodal,
    }
    with torch.no_grad():
        hidden = {label: way() for label, way in ways.items()}
    difference = (hidden["packed, polymodal"] - hidden["packed, transformers"]).abs().max()
    sums = [float(value.double().pow(2).sum()) for value in hidden.values()]  # the order of tokens differs from padded
    print(f"{len(made)} sequences of {int(lengths.min())} to {int(lengths.max())} tokens, {int(lengths.sum())} in all")
    print(f"fill: padded {float(lengths.sum() / mask.numel()):.1%}, packed {packed.packing_efficiency:.1%}")
    print(f"hidden states: largest difference {difference:.1e}; sums of squares {', '.join(f'{s:.2f}' for s in sums)}")
    steps = {label: lambda way=way: way().square().mean().backward() for label, way in ways.items()}
    times = seconds_in_turn(steps, ROUNDS)
    base = times["padded, transformers"]
    for label, found in times.items():
        ratio = median_ratio(base, found)
        rate = int(lengths.sum()) / statistics.median(found)
        print(f"{label:<22} {rate:8,.0f} useful tokens/s   {ratio:.2f} x padded")


if __name__ == "__main__":
    main()
