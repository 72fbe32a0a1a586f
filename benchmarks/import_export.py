"""How far outputs move when weights come from transformers, and when a run goes to other libraries.

    python benchmarks/import_export.py

Import: models of transformers in their published sizes (random weights, so that nothing is downloaded), read as towers,
against transformers itself on the same input. Export: short runs on `emoji`, written in each format, loaded again, and
compared with the run. Differences are the largest absolute ones over all values; 1e-4 is what an export may have.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

import polymodal as pm
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.encoders.pretrained_image import PretrainedImageConfig
from polymodal.encoders.pretrained_text import PretrainedTextConfig
from polymodal.encoders.text import TextEncoderConfig
from polymodal.modalities.text import Tokens
from polymodal.recipes.dual_encoders import clip, siglip
from polymodal.serving.export import FORMATS, export

IMAGE_MODELS: dict[str, Callable[[], Any]] = {
    "CLIP ViT-B/32": lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig()),
    "SigLIP B/16": lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig()),
    "DINOv2 B/14": lambda: transformers.Dinov2Model(transformers.Dinov2Config(image_size=224, patch_size=14)),
    "DINOv3 S/16": lambda: transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(num_register_tokens=4)),
    "ViT B/16": lambda: transformers.ViTModel(transformers.ViTConfig()),
    "AIMv2 L/14": lambda: transformers.Aimv2VisionModel(transformers.Aimv2VisionConfig()),
}
TEXT_MODELS: dict[str, Callable[[], Any]] = {
    "BERT base": lambda: transformers.BertModel(transformers.BertConfig()),
    "XLM-R base": lambda: transformers.XLMRobertaModel(transformers.XLMRobertaConfig()),
    "ModernBERT base": lambda: transformers.ModernBertModel(transformers.ModernBertConfig()),
    "GPT-2": lambda: transformers.GPT2Model(transformers.GPT2Config()),
}
CLIP_SHAPED = clip.Recipe(
    image=ImageEncoderConfig(pool_type="cls"), text=TextEncoderConfig(depth=2, causal=True, pool_type="eos")
)
RUNS = {"clip": clip.Recipe(), "siglip": siglip.Recipe(), "clip, of CLIP's shape": CLIP_SHAPED}


def image_difference(model: Any, folder: Path) -> float:
    model.eval().save_pretrained(folder)
    tower: Any = PretrainedImageConfig.read(str(folder)).build().eval()
    tower.load_pretrained()
    pixels = torch.randn(4, 3, tower.config.image_size, tower.config.image_size)
    found = tower(pixels)[0]
    expected = model(pixel_values=pixels).last_hidden_state[:, -found.shape[1] :]
    if isinstance(model, transformers.CLIPVisionModel):  # its normalisation stands behind the class token alone
        found, expected = tower(pixels)[1], model(pixel_values=pixels).pooler_output
    return float((found - expected).abs().max())


def text_difference(model: Any, folder: Path) -> float:
    model.eval().save_pretrained(folder)
    tower: Any = PretrainedTextConfig.read(str(folder)).build(model.config.vocab_size).eval()
    tower.load_pretrained()
    lengths = torch.tensor([40, 12, 25, 3])
    text = Tokens(torch.randint(5, model.config.vocab_size, (4, 40)), lengths)
    tokens, packing, _ = tower(text)
    found = packing.pad(tokens)
    alone = [
        model(input_ids=ids[None, :length]).last_hidden_state[0] for ids, length in zip(text.ids, lengths, strict=True)
    ]
    return max(float((own[: len(one)] - one).abs().max()) for own, one in zip(found, alone, strict=True))


def main() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(f"{'import':<24}{'parameters':>12}{'difference':>12}")
    for models, difference in ((IMAGE_MODELS, image_difference), (TEXT_MODELS, text_difference)):
        for name, build in models.items():
            torch.manual_seed(0)
            model = build()
            with tempfile.TemporaryDirectory() as folder, torch.no_grad():
                largest = difference(model, Path(folder))
            print(f"{name:<24}{sum(p.numel() for p in model.parameters()) / 1e6:>10.0f} M{largest:>12.1e}", flush=True)
    corpus = pm.corpora.emoji()
    print(f"\n{'export':<24}{'to':<24}{'MB':>6}{'difference':>12}  as")
    for name, recipe in RUNS.items():
        with tempfile.TemporaryDirectory() as directory:
            folder = Path(directory)
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                run = pm.train(recipe, corpus, pm.Budget(steps=20), out=folder / "run")
            for to in FORMATS:
                written = export(run, to, folder / to)
                size = sum(file.stat().st_size for file in written.folder.rglob("*") if file.is_file()) / 1e6
                print(f"{name:<24}{to:<24}{size:>6.1f}{written.difference:>12.1e}  {written.what}", flush=True)


if __name__ == "__main__":
    main()
