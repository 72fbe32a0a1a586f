"""Swin transformer: against that of transformers, sizes that windows do not divide, and resized relative positions."""

from __future__ import annotations

import pytest
import torch

from polymodal.encoders.swin import SwinEncoderConfig
from polymodal.layers.swin import from_windows, relative_position_index, resize_relative_positions, to_windows

SIDE, WINDOW = 32, 4


def test_the_encoder_is_that_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    depths, heads = [2, 2], [2, 4]
    config = transformers.SwinConfig(
        image_size=SIDE,
        patch_size=2,
        embed_dim=8,
        depths=depths,
        num_heads=heads,
        window_size=WINDOW,
        drop_path_rate=0.0,
    )
    theirs = transformers.SwinModel(config).eval()
    ours = SwinEncoderConfig(SIDE, 2, 8, (2, 2), (2, 4), WINDOW).build().eval()
    state = theirs.state_dict()
    renamed = {
        "patch_embedding": "embeddings.patch_embeddings.projection",
        "norm_pre": "embeddings.norm",
        "norm_post": "layernorm",
        "merging.0.norm": "encoder.layers.0.downsample.norm",
        "merging.0.reduction": "encoder.layers.0.downsample.reduction",
    }
    # Names of newer and of older versions.
    inside = {
        "norm1": ("layernorm_before",),
        "norm2": ("layernorm_after",),
        "attention.out": ("attention.o_proj", "attention.output.dense"),
        "mlp.0": ("mlp.fc1", "intermediate.dense"),
        "mlp.2": ("mlp.fc2", "output.dense"),
        "attention": ("attention.relative_position_bias", "attention.self"),
    }

    def value(prefix: str, names: tuple[str, ...], kind: str) -> torch.Tensor:
        return next(state[name] for name in (f"{prefix}.{one}.{kind}" for one in names) if name in state)

    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            module, _, kind = name.rpartition(".")
            if module in renamed:
                parameter.copy_(state[f"{renamed[module]}.{kind}"])
                continue
            _, stage, block, rest = module.split(".", 3)
            prefix = f"encoder.layers.{stage}.blocks.{block}"
            if rest == "attention.qkv":
                pairs = [(f"attention.{part[0]}_proj", f"attention.self.{part}") for part in ("query", "key", "value")]
                parameter.copy_(torch.cat([value(prefix, pair, kind) for pair in pairs]))
            else:
                kind = kind.replace("relative_positions", "relative_position_bias_table")
                parameter.copy_(value(prefix, inside[rest], kind))
        for side in (SIDE, 28):  # 14 x 14 patches are no whole windows
            image = torch.randn(2, 3, side, side)
            expected = theirs(image, interpolate_pos_encoding=True).last_hidden_state
            assert torch.allclose(ours(image)[0], expected, atol=1e-5), side


def test_windows_are_cut_and_put_together_again() -> None:
    x = torch.arange(2 * 6 * 9 * 1.0).reshape(2, 6, 9, 1)
    windows = to_windows(x, 3)
    assert windows.shape == (2, 6, 9, 1)
    assert windows[0, 1, :, 0].tolist() == [x[0, row, column, 0] for row in range(3) for column in range(3, 6)]
    assert torch.equal(from_windows(windows, 3, 2), x)


def test_relative_positions_follow_the_size_of_a_window() -> None:
    """A bias that is linear in the offset stays so; that of a smaller window is of the same offsets."""
    offset = torch.arange(-3.0, 4.0)
    table = (10 * offset[:, None] + offset).flatten()[:, None]
    assert resize_relative_positions(table, 4) is table
    index = relative_position_index(2)
    smaller = resize_relative_positions(table, 2)[:, 0]
    assert smaller[index].tolist() == [[0, -1, -10, -11], [1, 0, -9, -10], [10, 9, 0, -1], [11, 10, 1, 0]]
    larger = resize_relative_positions(table, 6)[:, 0].reshape(11, 11)
    assert bool((larger.diff(dim=0) > 0).all() and (larger.diff(dim=1) > 0).all())
    assert torch.allclose(larger, -larger.flip(0, 1), atol=1e-4)
    assert float(larger[0, 0]) == pytest.approx(-33, abs=2)
