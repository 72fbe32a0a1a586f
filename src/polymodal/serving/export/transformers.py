"""Export of a run to transformers: as CLIPModel or SiglipModel where possible, else as AutoModel with custom code.

The custom code is `modeling_polymodal.py` beside the weights.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from polymodal.encoders.pretrained import transformers
from polymodal.encoders.pretrained_image import PretrainedImageConfig, PretrainedImageEncoder
from polymodal.encoders.pretrained_text import PretrainedTextConfig, PretrainedTextEncoder
from polymodal.errors import UserError
from polymodal.serving.export.clip_and_siglip import (
    is_clip,
    log_scale,
    own_clip,
    pretrained_clip,
    pretrained_siglip,
    projects_nothing,
)
from polymodal.serving.export.preprocessing import exported_tokenizer, write_image_settings
from polymodal.serving.export.samples import SAMPLES, sample_pixels, sample_texts, tokenized_samples
from polymodal.training import Run

REMOTE_CODE = Path(__file__).with_name("modeling_polymodal.py")
ENCODERS = Path(__file__).with_name("modeling_polymodal_encoders.py")  # which it imports


def to_transformers(run: Run, folder: Path) -> tuple[str, float]:
    """Write weights, tokenizer and image settings; return the class, and the maximum difference of logits."""
    model, tokenizer = exported(run)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_image_settings(run, folder)
    kind = type(model).__name__
    if kind.startswith("Polymodal"):
        copy_remote_code(folder)
        loaded = transformers().AutoModel.from_pretrained(folder, trust_remote_code=True)
        tokenizer = transformers().AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        kind = "AutoModel, with trust_remote_code=True"
    else:
        loaded = type(model).from_pretrained(folder)
        tokenizer = transformers().AutoTokenizer.from_pretrained(folder)
    return kind, _difference(run, loaded.eval(), tokenizer)


def exported(run: Run) -> tuple[Any, Any]:
    """Return the method as a transformers model, and its tokenizer."""
    image, text = run.recipe.image, run.recipe.text
    pretrained = isinstance(image, PretrainedImageConfig) and isinstance(text, PretrainedTextConfig)
    kinds = (image.settings["model_type"], text.settings["model_type"]) if pretrained else None
    like_clip = run.model.logit_bias is None and not hasattr(run.model, "image_head")
    if kinds == ("clip_vision_model", "clip_text_model") and like_clip:
        return pretrained_clip(run), exported_tokenizer(run)
    if kinds == ("siglip_vision_model", "siglip_text_model") and projects_nothing(run):
        return pretrained_siglip(run), exported_tokenizer(run)
    if not pretrained and is_clip(image, text) and like_clip:
        return own_clip(run)
    return remote_dual_encoder(run), exported_tokenizer(run)


def copy_remote_code(folder: Path) -> None:
    """Write the custom code beside the weights."""
    for file in (REMOTE_CODE, ENCODERS):
        shutil.copyfile(file, folder / file.name)


def remote_dual_encoder(run: Run) -> Any:
    """Return the method as `modeling_polymodal.py` builds it."""
    method: Any = run.model
    transformers()
    from polymodal.serving.export.modeling_polymodal import PolymodalConfig, PolymodalDualEncoder

    weights = method.state_dict() | {"logit_scale": log_scale(run)}
    configuration = PolymodalConfig(
        image=_image_sizes(run) | {"pooled_width": run.recipe.image.width},
        text=_text_sizes(run) | {"pooled_width": run.recipe.text.width},
        dim=run.recipe.embed_dim,
        bias="logit_bias" in weights,
        head="image_head.0.weight" in weights,
        residual_head=getattr(run.recipe, "residual_head", False),
        auto_map={
            "AutoConfig": f"{REMOTE_CODE.stem}.PolymodalConfig",
            "AutoModel": f"{REMOTE_CODE.stem}.PolymodalDualEncoder",
        },
    )
    model = PolymodalDualEncoder(configuration)
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return model.eval()


def _image_sizes(run: Run) -> dict[str, Any]:
    method: Any = run.model
    config, encoder = run.recipe.image, method.image_encoder
    if not isinstance(encoder, PretrainedImageEncoder):
        if config.pos_embed == "rotary":
            raise UserError("An image tower with rotary positions cannot be exported yet.")
        return dataclasses.asdict(config) | {"stem": list(config.stem), "pooled_by": config.pool_type}
    if not encoder.pooled_by:
        raise UserError(f"An image tower of type {config.settings['model_type']} cannot be exported yet.")
    return {"pretrained": _pretrained_part(encoder), "pooled_by": encoder.pooled_by}


def _text_sizes(run: Run) -> dict[str, Any]:
    method: Any = run.model
    config, encoder = run.recipe.text, method.text_encoder
    if not isinstance(encoder, PretrainedTextEncoder):
        return text_transformer_sizes(run) | {"pooled_by": config.pool_type}
    has_pooler = config.settings["model_type"] in ("clip_text_model", "aimv2_text_model")
    padded = {"padded_to": config.context_length} if config.settings["model_type"].startswith("siglip") else {}
    by = "pooler" if has_pooler or padded else config.pool_type
    return {"pretrained": _pretrained_part(encoder), "pooled_by": by} | padded


def text_transformer_sizes(run: Run) -> dict[str, Any]:
    """Return the arguments of `modeling_polymodal.TextEncoder`."""
    method: Any = run.model
    sizes = dataclasses.asdict(run.recipe.text)
    sizes.pop("dropout")
    return sizes | {"vocab_size": method.text_encoder.embedding.num_embeddings}


def _pretrained_part(encoder: PretrainedImageEncoder | PretrainedTextEncoder) -> dict[str, Any]:
    return {
        "settings": dict(encoder.config.settings),
        "class_name": encoder.kind.__name__,
        "options": encoder.options,
    }


def _difference(run: Run, model: Any, tokenizer: Any) -> float:
    """Return the maximum difference of logits, over noise images and sample texts."""
    pixels, text = sample_pixels(run, 3), sample_texts(run)
    method: Any = run.model.cpu().eval()
    vectors = method.embed({"image": pixels, "text": text})
    own = method.logits(vectors["image"], vectors["text"])
    given = tokenized_samples(tokenizer)
    if type(model).__name__ == "SiglipModel":  # trained with padding to the full length, without a mask
        given = tokenizer(list(SAMPLES), padding="max_length", max_length=run.recipe.text.context_length,
                          truncation=True, return_tensors="pt")  # fmt: skip
        given = {"input_ids": given["input_ids"]}
    return float((model(**given, pixel_values=pixels).logits_per_image - own).abs().max())
