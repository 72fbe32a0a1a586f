"""The released code of Abn-BLIP at small widths: its weights and inputs, made again from the seed of the golden run."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polymodal.data.columns.findings import FindingsColumn
from polymodal.data.columns.text import LearnedTokenizer
from polymodal.layers.multi_scale_tokens import MultiScaleTokens, MultiScaleTokensConfig
from polymodal.layers.qformer import QFormerConfig
from polymodal.modalities.text import TextTokenizer
from polymodal.recipes.captioning.abn_blip import AbnBLIP, Recipe

GOLDEN = np.load(Path(__file__).with_name("golden") / "abn_blip.npz")
SHAPES = ((6, 16, 16, 16), (10, 8, 8, 8), (8, 4, 4, 4), (7, 2, 2, 2), (9, 7, 7, 10))
NAMES: tuple[tuple[str, Any], ...] = (  # the released code's -> ours, in this order
    (r"^Qformer\.bert\.encoder\.layer\.", "qformer.blocks."),
    (r"^Qformer\.bert\.embeddings\.LayerNorm", "qformer.norm"),
    (r"^Qformer\.bert\.embeddings\.word_embeddings", "qformer.token_embedding"),
    (r"^Qformer\.bert\.embeddings\.position_embeddings", "qformer.pos_embed"),
    (r"\.crossattention\.output\.LayerNorm", ".norm_cross"),
    (r"\.attention\.output\.LayerNorm", ".norm1"),
    (r"\.crossattention\.(self|output)\.", ".cross_attention."),
    (r"\.attention\.(self|output)\.", ".attention."),
    (r"attention\.dense", "attention.out"),
    (r"\.intermediate_query\.dense", ".query_mlp.0"),
    (r"\.intermediate\.dense", ".text_mlp.0"),
    (r"\.output(_query)?\.LayerNorm", r".output\1_norm"),
    (r"\.output_query\.dense", ".query_mlp.2"),
    (r"\.output\.dense", ".text_mlp.2"),
    (r"\.output_query_norm", ".query_norm"),
    (r"\.output_norm", ".text_norm"),
    (r"^Qformer\.cls\.predictions\.transform\.LayerNorm", "lm_head.norm"),
    (r"^Qformer\.cls\.predictions\.(transform\.)?", "lm_head."),
    (r"^classifier\.1", "classifier"),
    (r"^cls_embedder\.0", "presence_token"),
    (r"^layer4\.5", "multi_scale_tokens.mix4"),
    (r"^layer5\.(5|7)", lambda found: f"multi_scale_tokens.mix5.{int(found[1]) - 5}"),
    (r"^layer(\d)", lambda found: f"multi_scale_tokens.scales.{int(found[1]) - 1}"),
    (r"^query_tokens", "qformer.queries"),
    (r"^temp$", "temperature"),
)


class Released(AbnBLIP):
    """The method with feature maps as its input."""

    def encode_volume(self, volume: Any) -> tuple[list[torch.Tensor], torch.Tensor]:
        return volume, self.classifier(volume[-1].mean((2, 3, 4)))


def released() -> tuple[Released, list[torch.Tensor]]:
    """The method with the weights of the golden run, and its feature maps."""
    recipe = dataclasses.replace(
        Recipe.tiny(), qformer=QFormerConfig(16, 3, 2, 24, context_length=16), embed_dim=12, max_txt_len=16,
        tokens=MultiScaleTokensConfig(4, 8, 20, 12, 32),
    )  # fmt: skip
    tokenizer = TextTokenizer.characters(["abc"], 49, 16)
    findings = FindingsColumn(LearnedTokenizer(49, 16), tokenizer, list("abcde"), ["r"] * 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextTokenizer, "vocab_size", 49)
        model = Released(recipe, findings, 1)
    model.classifier = torch.nn.Linear(9, 5)
    model.multi_scale_tokens = MultiScaleTokens(recipe.tokens, [shape[0] for shape in SHAPES], SHAPES[-1][1:])
    model, rng, weights = model.double(), np.random.RandomState(0), {}
    for name, shape in zip(GOLDEN["names"].tolist(), GOLDEN["shapes"].tolist(), strict=True):
        drawn = 0.2 * rng.standard_normal(ast.literal_eval(shape)) + ("LayerNorm.weight" in name)
        weights[name] = torch.from_numpy(np.asarray(0.3 if name == "temp" else drawn))
    joined = {}
    for name, weight in weights.items():
        for pattern, new in NAMES:
            name = re.sub(pattern, new, name)
        joined[name] = weight
    for name in [name for name in joined if ".key." in name]:
        pair = [joined.pop(name), joined.pop(name.replace(".key.", ".value."))]
        joined[name.replace(".key.", ".key_value.")] = torch.cat(pair)
    own = {name: weight for name, weight in model.named_parameters() if not name.startswith("image_encoder")}
    assert own.keys() == joined.keys()
    for name, weight in own.items():
        weight.data = joined[name].reshape(weight.shape)
    return model, [torch.from_numpy(rng.standard_normal((3, *shape))) for shape in SHAPES]
