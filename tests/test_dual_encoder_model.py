"""The dual encoder skeleton: CLIP's and SigLIP's losses by their formulas, for any modalities."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from polymodal.encoders.image import ImageEncoder, ImageEncoderConfig
from polymodal.encoders.points import PointEncoder, PointEncoderConfig
from polymodal.encoders.text import TextEncoder, TextEncoderConfig
from polymodal.errors import UserError
from polymodal.modalities.text import Tokens
from polymodal.models.dual_encoder import DualEncoderConfig, DualEncoderModel

TEXTS = Tokens.of([[1, 5, 6, 2], [1, 7, 2], [1, 9, 8, 4, 2]])


def model(with_points: bool = False, **settings: object) -> DualEncoderModel:
    torch.manual_seed(0)
    encoders = {
        "image": ImageEncoder(ImageEncoderConfig(width=32, depth=1)),
        "text": TextEncoder(TextEncoderConfig(width=16, depth=1), 20),
    }
    points = {"points": PointEncoder(PointEncoderConfig())} if with_points else {}
    return DualEncoderModel(points | encoders, DualEncoderConfig(embed_dim=24, **settings)).eval()  # type: ignore[arg-type]


def batch() -> dict[str, object]:
    torch.manual_seed(1)
    return {"image": torch.randn(3, 3, 32, 32), "text": TEXTS}


def test_losses_are_those_of_clip_and_siglip() -> None:
    for bias in (None, -5.0):
        own = model(logit_scale_init=7.0, logit_bias_init=bias)
        vectors = own.encode(batch())
        cosine = torch.tensor(
            [[F.cosine_similarity(a, b, dim=0).item() for b in vectors["text"]] for a in vectors["image"]]
        )
        logits = 7.0 * cosine + (bias or 0.0)
        if bias is None:
            target = torch.arange(3)
            expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        else:
            pairs = [F.logsigmoid(logits[i, j] if i == j else -logits[i, j]) for i in range(3) for j in range(3)]
            expected = -torch.stack(pairs).sum() / 3
        losses = own.losses(batch())
        assert list(losses) == ["image_text"]
        torch.testing.assert_close(losses["image_text"], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(own.logits(vectors["image"], vectors["text"]), logits, rtol=1e-4, atol=1e-4)


def test_embeddings_are_the_projected_pooled_vectors() -> None:
    own = model()
    image = batch()["image"]
    pooled = own.get_submodule("image_encoder")(image)[-1]
    expected = pooled @ own.get_parameter("image_projection.weight").T
    torch.testing.assert_close(own.encode_image(image), expected / expected.norm(dim=1, keepdim=True))
    assert own.encode_text(TEXTS).shape == (3, 24)
    assert list(own.embed({"text": TEXTS})) == ["text"]


def test_tokens_come_out_padded_beside_the_embedding() -> None:
    own = model()
    found = own.encode_tokens("text", TEXTS)
    assert torch.equal(found.mask, TEXTS.mask)
    torch.testing.assert_close(found.pooled, own.encode_text(TEXTS))
    alone = own.encode_tokens("text", Tokens.of([[1, 7, 2]]))
    torch.testing.assert_close(found.tokens[1, :3], alone.tokens[0])
    patches = own.encode_tokens("image", batch()["image"])
    assert patches.tokens.shape == (3, 16, 24)
    assert bool(patches.mask.all())
    torch.testing.assert_close(own.encode_patches(batch()["image"]), F.normalize(patches.tokens, dim=-1))


def test_every_pair_of_three_modalities_has_a_loss_and_missing_ones_have_none() -> None:
    own = model(with_points=True)
    examples = batch() | {"points": torch.randn(3, 128, 6)}
    assert list(own.losses(examples)) == ["points_image", "points_text", "image_text"]
    losses = own.losses({"points": examples["points"], "text": TEXTS})
    assert list(losses) == ["points_text"]
    losses["points_text"].backward()
    trained = {name.partition(".")[0] for name, weight in own.named_parameters() if weight.grad is not None}
    assert trained == {"points_encoder", "points_projection", "text_encoder", "text_projection", "logit_scale"}


def test_the_logit_scale_is_bounded_after_a_step() -> None:
    own = model(logit_scale_init=90.0)
    with torch.no_grad():
        own.logit_scale.logit_scale.add_(3.0)
    own.logit_scale.clamp_()
    assert own.logit_scale().item() == pytest.approx(100.0)
    assert model(logit_scale_init=5.0).logit_scale().item() == pytest.approx(5.0)


def test_the_same_encoder_may_serve_two_modalities() -> None:
    encoder = ImageEncoder(ImageEncoderConfig(width=24, depth=1))
    own = DualEncoderModel({"image": encoder, "sketch": encoder}, DualEncoderConfig(24, "identity"))
    image = batch()["image"]
    torch.testing.assert_close(own.encode_modality("sketch", image), own.encode_image(image))
    assert sum(weight.numel() for weight in own.parameters()) == sum(w.numel() for w in encoder.parameters()) + 1


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="no encoder of audio"):
        model().encode_audio(torch.zeros(1))
    with pytest.raises(UserError, match="embed_dim of 32"):
        model(projection="identity")
    with pytest.raises(UserError, match="two modalities"):
        DualEncoderModel({"image": ImageEncoder(ImageEncoderConfig())})
