"""The multiway encoder: BEiT-3's released code, modalities apart, drop path."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from polymodal.encoders.multiway import MultiwayEncoder, MultiwayEncoderConfig
from polymodal.layers.multiway import MultiwayTransformer
from polymodal.layers.transformer import Transformer
from polymodal.modalities.text import Tokens

GOLDEN = Path(__file__).parent / "golden" / "beit3.npz"


@pytest.fixture(scope="module")
def encoder() -> MultiwayEncoder:
    model = MultiwayEncoderConfig(16, 8, 20, 6, 8, 2, 2).build(20).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(parameter.shape))
            parameter.copy_(0.3 * torch.from_numpy(values))
    return model


def test_tokens_are_those_of_the_released_code(encoder: MultiwayEncoder) -> None:
    golden = {name: torch.from_numpy(value) for name, value in np.load(GOLDEN).items()}
    text, mask = Tokens(golden["ids"], golden["lengths"]), Tokens(golden["ids"], golden["lengths"]).mask
    for joint in (True, False):
        token, patches, words = encoder(golden["image"], text, joint)
        image, other = (
            (golden["joint"][:, :5], golden["joint"][:, 5:]) if joint else (golden["image_alone"], golden["text_alone"])
        )
        assert torch.allclose(torch.cat([token[:, None], patches], 1), image, atol=1e-5)
        assert torch.allclose(words[mask], other[mask], atol=1e-5)


def test_every_parameter_is_of_one_modality(encoder: MultiwayEncoder) -> None:
    """Without attention between them, a change of the text's parameters leaves the image's tokens as they are."""
    image, text = torch.randn(2, 3, 16, 16), Tokens(torch.randint(20, (2, 6)), torch.tensor([6, 3]))
    before, state = encoder(image, text, joint=False), {k: v.clone() for k, v in encoder.state_dict().items()}
    changed = 0
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if ".text." in name or "word" in name:
                parameter.add_(0.3)
                changed += parameter.numel()
    after = encoder(image, text, joint=False)
    encoder.load_state_dict(state)
    assert torch.equal(before[1], after[1])
    assert not torch.allclose(before[2], after[2])
    own = sum(p.numel() for name, p in encoder.named_parameters() if ".image." in name)
    assert changed > own, "and there are no shared ones in the blocks"


def test_dropped_paths_keep_the_mean() -> None:
    torch.manual_seed(0)
    for transformer in (MultiwayTransformer(8, 2, 2, drop_path_rate=0.5), Transformer(8, 2, 2, drop_path_rate=0.5)):
        assert [block.drop_path.rate for block in transformer.blocks] == [0.0, 0.5]
        drop_path = transformer.blocks[1].drop_path.train()
        kept = torch.stack([drop_path(torch.ones(400, 1, 1)) for _ in range(5)])
        assert set(kept.unique().tolist()) == {0.0, 2.0}
        assert float(kept.mean()) == pytest.approx(1, abs=0.1)
        assert torch.equal(drop_path.eval()(torch.ones(4, 1, 1)), torch.ones(4, 1, 1))


def test_the_published_size() -> None:
    """BEiT-3 base of 640 px in patches of 32: 222 million, as torchscale counts with 20 positions of words."""
    with torch.device("meta"):
        model = MultiwayEncoderConfig(640, 32, 64_010, 20, 768, 12, 12).build(64_010)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(222e6, rel=0.005)
