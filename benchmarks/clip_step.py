"""One training step of CLIP against open_clip: same architecture, weights, images and captions, in one process.

    pip install --no-deps --target peers "open_clip_torch>=3.3,<4" torchvision timm ftfy wcwidth regex
    PYTHONPATH=peers python benchmarks/clip_step.py

ViT 6 x 384 with patches of 32 px at 224 px; text 6 x 256, vocabulary 49,408, captions of 8 to 16 tokens; batch 64.
Two opponents: open_clip as it comes (captions padded to 77 tokens, AdamW of a loop over parameters), and tuned by hand
(captions cut to the batch's longest, fused AdamW). The three take turns, step by step; printed are medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.encoders.image import ImageEncoderConfig
from polymodal.encoders.text import TextEncoderConfig
from polymodal.modalities.text import Tokens
from polymodal.recipes.dual_encoders import clip
from polymodal.training.grad_cache import backward
from polymodal.training.optimizer import OptimizerConfig, adamw, clip_gradients

CONTEXT, VOCABULARY, START, END = 77, 49408, 49406, 49407
RECIPE = clip.Recipe(
    image=ImageEncoderConfig(image_size=224, patch_size=32, width=384, depth=6, num_heads=6, pool_type="cls"),
    text=TextEncoderConfig(VOCABULARY, CONTEXT, width=256, depth=6, num_heads=4, causal=True, pool_type="eos"),
    embed_dim=256,
    optimizer=OptimizerConfig(learning_rate=1e-4, weight_decay=0.2),
)


def declare_torchvision() -> torch.library.Library:
    """open_clip imports torchvision, whose compiled operators need not be there: their names are enough."""
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d"):
        library.define(f"{operator}(Tensor x) -> Tensor")
    return library


def open_clip_model(context: int) -> nn.Module:
    from open_clip.model import CLIP

    text = {"context_length": context, "vocab_size": VOCABULARY, "width": 256, "heads": 4, "layers": 6}
    image = {"image_size": 224, "patch_size": 32, "width": 384, "head_width": 64, "layers": 6}
    return CLIP(embed_dim=256, vision_cfg=image, text_cfg=text)


def copy_weights(theirs: nn.Module, ours: nn.Module) -> None:
    """open_clip's weights under our names."""
    renamed = {
        "visual.class_embedding": "image_encoder.class_token",
        "visual.positional_embedding": "image_encoder.positions",
        "visual.conv1.weight": "image_encoder.patch_embedding.weight",
        "visual.ln_pre": "image_encoder.norm_pre",
        "visual.ln_post": "image_encoder.norm_post",
        "visual.transformer": "image_encoder.transformer",
        "visual.proj": "image_projection.weight",
        "token_embedding": "text_encoder.embedding",
        "positional_embedding": "text_encoder.positions",
        "ln_final": "text_encoder.norm_post",
        "text_projection": "text_projection.weight",
        "logit_scale": "logit_scale.logit_scale",
    }
    inside = {
        "resblocks": "blocks",
        "ln_1": "norm1",
        "ln_2": "norm2",
        "attn.in_proj_": "attention.qkv.",
        "attn.out_proj": "attention.out",
        "mlp.c_fc": "fc1",
        "mlp.c_proj": "fc2",
    }
    state = {}
    for name, value in theirs.state_dict().items():
        if name == "attn_mask":
            continue
        start = max((prefix for prefix in renamed if name.startswith(prefix)), key=len, default="")
        new = renamed[start] + name.removeprefix(start) if start else f"text_encoder.{name}"
        for old, own in inside.items():
            new = new.replace(old, own)
        if new.endswith("projection.weight"):
            value = value.T
        state[new] = value.flatten(1) if "patch_embedding" in new else value
    ours.load_state_dict(state)


def data(batch: int) -> tuple[Tensor, Tensor, Tokens]:
    """Images, captions padded with zeros to 77 tokens, and the same captions as Tokens."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, 224, 224, generator=generator)
    lengths = torch.randint(8, 17, (batch,), generator=generator)
    padded = torch.randint(1, START, (batch, CONTEXT), generator=generator)
    place = torch.arange(CONTEXT)
    padded[place >= lengths[:, None]] = 0
    padded[:, 0] = START
    padded[torch.arange(batch), lengths - 1] = END
    return images, padded, Tokens(padded[:, : int(lengths.max())], lengths)


def open_clip_step(model: nn.Module, images: Tensor, captions: Tensor, fused: bool) -> Callable[[], float]:
    """Forward, loss, backward, AdamW with open_clip's decay groups; the loss is that of its ClipLoss on one process."""
    small = [p for p in model.parameters() if p.ndim < 2]
    large = [p for p in model.parameters() if p.ndim >= 2]
    groups = [{"params": small, "weight_decay": 0.0}, {"params": large, "weight_decay": 0.2}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.98), eps=1e-6, fused=fused, foreach=None)

    def step() -> float:
        optimizer.zero_grad()
        image, text, scale = model(images, captions)
        logits, labels = scale * image @ text.T, torch.arange(len(image))
        loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)
        return float(loss.detach())

    return step


def our_step(model: nn.Module, images: Tensor, captions: Tokens) -> Callable[[], float]:
    optimizer = adamw(model, RECIPE.optimizer)
    batch = {"image": images, "text": captions}

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        losses = backward(model, model.losses, [batch], {}, lambda _: nullcontext())
        clip_gradients(model.parameters(), RECIPE.optimizer.max_grad_norm)
        optimizer.step()
        return float(sum(losses.values()))

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    images, padded, tokens = data(options.batch)
    torch.manual_seed(0)
    library = declare_torchvision()  # its operators last as long as it does
    longest = tokens.ids.shape[1]
    default, tuned = open_clip_model(CONTEXT), open_clip_model(longest)
    state = default.state_dict()
    tuned.load_state_dict(state | {"positional_embedding": state["positional_embedding"][:longest]})
    ours = clip.CLIP(RECIPE, VOCABULARY)
    copy_weights(default, ours)
    steps = {
        "open_clip, default": open_clip_step(default, images, padded, fused=False),
        "open_clip, tuned": open_clip_step(tuned, images, padded[:, :longest], fused=True),
        "polymodal": our_step(ours, images, tokens),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    losses: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(options.steps + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            losses[name].append(step())
            if number:  # the first step allocates
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name in steps:
        print(
            f"{name:<20} {options.batch / medians[name]:7.1f} samples/s   first loss {losses[name][0]:.6f}   "
            f"last loss {losses[name][-1]:.6f}   polymodal is {medians[name] / medians['polymodal']:.2f} times as fast"
        )
    apart = max(abs(values[0] - losses["polymodal"][0]) for values in losses.values())
    print(f"first losses equal to {apart:.1e}")
    del library


if __name__ == "__main__":
    main()
