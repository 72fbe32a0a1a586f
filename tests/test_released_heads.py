"""Heads and losses of recipes against numbers of the released code, which golden/*.txt describe."""

from __future__ import annotations

import dataclasses
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from polymodal.encoders.multiway import MultiwayEncoderConfig
from polymodal.encoders.video import VideoEncoderConfig
from polymodal.modalities.boxes import PaddedBoxes
from polymodal.modalities.text import Tokens
from polymodal.recipes.grounding import simvg
from polymodal.recipes.video import alpro

GOLDEN = Path(__file__).parent / "golden"


def weights(name: str, *shape: int) -> torch.Tensor:
    return 0.3 * torch.from_numpy(np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)).float()


def test_losses_and_pseudo_labels_of_alpro(monkeypatch: pytest.MonkeyPatch) -> None:
    golden = {name: torch.from_numpy(value) for name, value in np.load(GOLDEN / "alpro.npz").items()}
    table, text = weights("table", 20, 8), Tokens(golden["ids"], golden["lengths"])
    templates = [golden["prompts"], golden["prompts"].flip(0)]
    prompts = [[Tokens(p.view(3, 4, 4)[:, e], torch.full((3,), 4)) for e in range(4)] for p in templates]
    video, words = VideoEncoderConfig(1, 4, 2, 8, 1, 2), dataclasses.replace(alpro.Recipe.tiny().text, width=8)
    recipe = dataclasses.replace(
        alpro.Recipe.tiny(), use_pem=True, pseudo_label_threshold=0.0, video=video, text=words, embed_dim=6
    )
    model = alpro.ALPRO(recipe, 20, prompts, 0).eval()
    visual, text_weight = weights("video_projection.weight", 6, 8), weights("text_projection.weight", 6, 8)

    def embedded(ids: torch.Tensor) -> torch.Tensor:
        return F.normalize(table[ids][:, 0] @ text_weight.T, dim=-1)

    def fuse(words: torch.Tensor, mask: torch.Tensor, visual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, mask = torch.cat([words, visual], 1), torch.cat([mask, mask.new_ones(visual.shape[:2])], 1)[..., None]
        fused = torch.tanh(x + (x * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True))
        return fused[:, : words.shape[1]], fused[:, words.shape[1] :]

    embeddings = F.normalize(golden["visual"][:, 0] @ visual.T, dim=-1)
    monkeypatch.setattr(model, "video_tokens", lambda _: (golden["visual"], embeddings))
    monkeypatch.setattr(model, "text_tokens", lambda text: (table[text.ids], embedded(text.ids)))
    monkeypatch.setattr(model, "fuse", fuse)
    crop = F.normalize(golden["crop"][:, 0] @ visual.T, dim=-1)
    monkeypatch.setattr(model.prompter, "encode_video", lambda _: crop)
    monkeypatch.setattr(model.prompter, "encode_text", lambda text: embedded(text.ids))
    with torch.no_grad():
        for head in ("itm_head", "pem_head"):
            for name, parameter in model.get_submodule(head).named_parameters():
                parameter.copy_(weights(f"{head}.{name}", *parameter.shape))
    labels = [model.prompter.probabilities(torch.zeros(2, frames, 3, 4, 4)) for frames in (2, 1)]
    for ours, bank, theirs in zip(labels, ("video", "image"), ("pseudo_labels", "image_pseudo_labels"), strict=True):
        assert torch.allclose(model.prompter.prompt_embeddings[int(bank == "image")], golden[f"{bank}_prompt_feat"])
        assert torch.allclose(ours, golden[theirs], atol=1e-5)
    # Boxes of the golden masks: all patches but the first, and all but the bottom left one, are in no rectangle.
    monkeypatch.setattr(alpro, "boxes_to_patch_mask", lambda *_: golden["outside"].flatten(1) == 0)
    monkeypatch.setattr(model, "mlm_loss", lambda *_: torch.zeros(()))
    zeros = {"video": torch.zeros(2, 2, 3, 4, 4), "box": torch.zeros(2, 4), "mlm_text": text}
    losses = model.losses({**zeros, "text": text, "group": torch.arange(2.0), "masked_tokens": text.mask})
    for name in ("itc", "itm", "pem"):
        assert float(losses[name].detach()) == pytest.approx(float(golden[name]), rel=1e-5), name


def test_boxes_and_losses_of_simvg(monkeypatch: pytest.MonkeyPatch) -> None:
    golden = {name: torch.from_numpy(value) for name, value in np.load(GOLDEN / "simvg.npz").items()}
    encoder = MultiwayEncoderConfig(32, 16, 20, 5, 12, 1, 2)
    recipe = simvg.Recipe(encoder=encoder, embed_dim=16, num_queries=2, decoder_layers=2, decoder_attention_heads=8)
    model = simvg.SimVG(dataclasses.replace(recipe, decoder_ffn_dim=2048), 20).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights(name, *parameter.shape))
    encoded = (golden["object_token"], golden["patches"], golden["words"])
    monkeypatch.setattr(model.encoder, "forward", lambda *_: encoded)
    sets = golden["boxes"].split(golden["box_counts"].tolist())
    text = Tokens(torch.zeros(3, 5, dtype=torch.long), golden["lengths"])
    image = torch.zeros(3, 3, 32, 32)
    query, object_query, memory = model.queries(image, text)
    for branch, (logits, boxes) in {
        "token": model.token_head(model.token(object_query)),
        "decoder": model.decoder_head(model.decoder(query, memory, model.patch_positions())),
    }.items():
        assert torch.allclose(logits, golden[f"{branch}_logits"], atol=1e-5)
        assert torch.allclose(boxes, golden[f"{branch}_boxes"], atol=1e-5)
    targets = PaddedBoxes.of([boxes.tolist() for boxes in sets])
    losses = model.losses({"image": image, "text": text, "expressions": targets})
    for ours, theirs in (("decoder_branch", "decoder"), ("token_branch", "token"), ("distillation", "distill")):
        assert float(losses[ours].detach()) == pytest.approx(float(golden[f"loss_{theirs}"]), rel=1e-5)
