"""How much faster are boxes from the object token than from the decoder, when the encoder has done its part?

SimVG's two branches (`recipes/grounding/simvg.py`) with the paper's sizes, on the fused tokens of one image and of
sixteen: queries made of the words, then an MLP or three decoder layers, then boxes. Both begin with the same
queries, which are timed by themselves. In turn, in one process.

    python benchmarks/grounding_heads.py
"""

from __future__ import annotations

import statistics

import torch

from in_turn import median_ratio, seconds_in_turn
from polymodal.layers.detection import BoxHead, DETRDecoder, TextGuidedQueries
from polymodal.layers.positions import sine_positions_2d
from polymodal.recipes.grounding.simvg import Recipe

WORDS, ROUNDS = 20, 40


@torch.inference_mode()
def main() -> None:
    torch.manual_seed(0)
    recipe = Recipe.paper()
    dim, grid = recipe.embed_dim, recipe.encoder.grid
    guided = TextGuidedQueries(dim, recipe.num_queries, recipe.decoder_attention_heads).eval()
    decoder = DETRDecoder(dim, recipe.decoder_layers, recipe.decoder_attention_heads, recipe.decoder_ffn_dim).eval()
    token = torch.nn.Linear(dim, dim)
    of_decoder, of_token = BoxHead(dim), BoxHead(dim)
    places = sine_positions_2d(grid, dim, 6.28)
    for batch in (1, 16):
        words, mask = torch.randn(batch, WORDS, dim), torch.ones(batch, WORDS, dtype=torch.bool)
        patches = torch.randn(batch, grid**2, dim)
        queries = guided(words, mask)
        ways = {
            "queries of the words": lambda words=words, mask=mask: guided(words, mask),
            "token branch": lambda queries=queries: of_token(token(queries)),
            "decoder branch": lambda queries=queries, patches=patches: of_decoder(
                decoder(queries, patches, places)[-1]
            ),
        }
        times = seconds_in_turn(ways, ROUNDS)
        said = ", ".join(f"{label} {1000 * statistics.median(found):.2f} ms" for label, found in times.items())
        alone = median_ratio(times["decoder branch"], times["token branch"])
        by_queries, by_token, by_decoder = times.values()
        heads = [[sum(pair) for pair in zip(by_queries, own, strict=True)] for own in (by_decoder, by_token)]
        print(
            f"{batch} at a time: {said}; decoder / token {alone:.0f} x, with the queries {median_ratio(*heads):.1f} x"
        )


if __name__ == "__main__":
    main()
