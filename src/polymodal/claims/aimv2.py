"""The claims of `aimv2`, for `polymodal reproduce aimv2`: against CLIP at a small batch; as `--claim larger_batch` at
four times that batch; and as `--claim dense_signal` patches predicted or not where few images have captions.

In 9,600 examples AIMv2 is probed as an untrained encoder is (one seed), hence the longer budgets; of `claim` that
encoder is an arm.
"""

from __future__ import annotations

from dataclasses import replace

from polymodal.claim import Claim
from polymodal.encoders.prefix_image import PrefixImageEncoderConfig
from polymodal.encoders.swiglu_text import SwiGLUTextEncoderConfig
from polymodal.models.multimodal_decoder import MultimodalDecoderConfig
from polymodal.recipes.captioning.aimv2 import Recipe
from polymodal.types import Budget

_aimv2 = Recipe(
    batch_size=16,
    image=PrefixImageEncoderConfig(image_size=48, patch_size=8, width=96, depth=4, num_heads=4, mlp_dim=256),
    decoder=MultimodalDecoderConfig(width=96, depth=2, num_heads=4, mlp_dim=256),
    text=SwiGLUTextEncoderConfig(2000, 32, width=96, depth=2, num_heads=4, causal=True, pool_type="eos", mlp_dim=256),
    embed_dim=96,
    lit_fraction=0.0,
)
_clip = replace(_aimv2, objective="contrastive")
_probes = (
    "test/attentive_probe_category/accuracy",
    "test/attentive_probe_category/AUC",
    "test/linear_probe_category/accuracy",
    "test_twitter/attentive_probe_category/accuracy",
    "test_twitter/attentive_probe_category/AUC",
)
claim = Claim(
    sentence="At a batch of 16, an encoder that AIMv2 has trained is probed better than the same encoder that CLIP has "
    "trained on as many examples.",
    baseline=_clip,
    treatment=_aimv2,
    further={"untrained": _aimv2},
    corpus="emoji",
    languages=("en",),
    budget=Budget(examples=25600),
    seeds=3,
    metrics=_probes,
    tuning={"learning_rate": (5e-4, 1e-3, 2e-3)},
    tuning_fraction=0.25,
    tuned_like={"untrained": "treatment"},
    budget_fractions={"untrained": 1e-3},
    paper_results="ImageNet, attentive probe, ViT-L on 2 billion pairs: 85.6 against 84.6 (CLIP, batch 8k) and 85.2 "
    "(16k)",
)
larger_batch = replace(
    claim,
    sentence="At a batch of 64, an encoder that AIMv2 has trained is probed better, too, than the same one that CLIP "
    "has trained on as many examples.",
    baseline=replace(_clip, batch_size=64),
    treatment=replace(_aimv2, batch_size=64),
    further={},
    tuned_like={},
    budget_fractions={},
)
_few = replace(_aimv2, batch_size=32, caption_fraction=0.25)
_captioner = replace(_few, image_loss_weight=0.0)
dense_signal = Claim(
    sentence="Where a quarter of the images have captions, the prediction of patches makes the encoder better: it is "
    "probed better than that of a captioner with the same prefix attention.",
    baseline=_captioner,
    treatment=_few,
    further={
        "patches alone": replace(_few, text_loss_weight=0.0),
    },
    corpus="emoji",
    languages=("en",),
    budget=Budget(examples=19200),
    seeds=3,
    metrics=(*_probes, "test/captions/bits_per_byte", "test/patches/mse_without_flat"),
    tuning={"learning_rate": (5e-4, 1e-3)},
    tuning_fraction=0.2,
    tuned_like={"patches alone": "treatment"},
    paper_results="ImageNet 85.4 without and 85.6 with the prediction of patches, TextVQA 36.5 and 37.5; patches alone "
    "(AIM) 72.0; bidirectional captioner 85.1 (ViT-L, 2 billion pairs)",
)
