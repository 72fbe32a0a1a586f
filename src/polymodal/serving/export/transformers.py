"""Export of a run to transformers: as CLIPModel or SiglipModel where possible, else as AutoModel with custom code.

The custom code is `modeling_polymodal.py` beside the weights.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polymodal.data.conversation import TiledImageColumn
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.encoders.pretrained import transformers
from polymodal.encoders.pretrained_image import PretrainedImageConfig, PretrainedImageEncoder
from polymodal.encoders.pretrained_text import PretrainedTextConfig, PretrainedTextEncoder, PretrainedTokenizer
from polymodal.encoders.text import TextEncoderConfig
from polymodal.errors import UserError
from polymodal.modalities.text import END, PAD, START, Tokenizer, Tokens
from polymodal.training import Run

REMOTE_CODE = Path(__file__).with_name("modeling_polymodal.py")
SAMPLES = ("a red fruit", "Flagge: Frankreich", "smiling face with heart-eyes", "?")


def to_transformers(run: Run, folder: Path) -> tuple[str, float]:
    """Write weights, tokenizer and image settings; return the class, and the maximum difference of logits."""
    model, tokenizer = exported(run)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_image_settings(run, folder)
    kind = type(model).__name__
    if kind.startswith("Polymodal"):
        shutil.copyfile(REMOTE_CODE, folder / REMOTE_CODE.name)
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
    like_clip = not _has_bias(run) and not hasattr(run.model, "image_head")
    if kinds == ("clip_vision_model", "clip_text_model") and like_clip:
        return _pretrained_clip(run), exported_tokenizer(run)
    if kinds == ("siglip_vision_model", "siglip_text_model") and _projects_nothing(run):
        return _pretrained_siglip(run), exported_tokenizer(run)
    if not pretrained and _is_clip(image, text) and like_clip:
        return _own_clip(run)
    return remote_dual_encoder(run), exported_tokenizer(run)


def remote_dual_encoder(run: Run) -> Any:
    """Return the method as `modeling_polymodal.py` builds it."""
    method: Any = run.model
    transformers()
    from polymodal.serving.export.modeling_polymodal import PolymodalConfig, PolymodalDualEncoder

    weights = method.state_dict() | {"logit_scale": _log_scale(run)}
    configuration = PolymodalConfig(
        image=_image_sizes(run) | {"pooled_width": run.recipe.image.width},
        text=_text_sizes(run) | {"pooled_width": run.recipe.text.width},
        dim=run.recipe.embed_dim,
        bias="logit_bias" in weights,
        head="image_head.0.weight" in weights,
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


def _pretrained_towers(method: Any) -> dict[str, Tensor]:
    """Return the weights of both encoders under the names of CLIPModel and SiglipModel."""
    towers = {"vision_model": method.image_encoder, "text_model": method.text_encoder}
    return {
        f"{part}.{name}": tensor for part, tower in towers.items() for name, tensor in tower.model.state_dict().items()
    }


def _pretrained_clip(run: Run) -> Any:
    method: Any = run.model
    library, image, text = transformers(), run.recipe.image, run.recipe.text
    configuration = library.CLIPConfig(
        vision_config=dict(image.settings), text_config=dict(text.settings), projection_dim=run.recipe.embed_dim
    )
    weights = _pretrained_towers(method)
    weights |= {
        "visual_projection.weight": method.image_projection.weight,
        "text_projection.weight": method.text_projection.weight,
        "logit_scale": _log_scale(run),
    }
    return _filled(library.CLIPModel(configuration), weights)


def _pretrained_siglip(run: Run) -> Any:
    method: Any = run.model
    library, image, text = transformers(), run.recipe.image, run.recipe.text
    configuration = library.SiglipConfig(vision_config=dict(image.settings), text_config=dict(text.settings))
    weights = _pretrained_towers(method)
    bias = method.logit_bias.detach() if _has_bias(run) else torch.zeros(())
    weights |= {"logit_scale": _log_scale(run).reshape(1), "logit_bias": bias.reshape(1)}
    return _filled(library.SiglipModel(configuration), weights)


def _has_bias(run: Run) -> bool:
    """Return whether the logits have a bias, as in SigLIP."""
    method: Any = run.model
    return method.logit_bias is not None


def _projects_nothing(run: Run) -> bool:
    """Return whether the projections are the identity, as SiglipModel has none."""
    method: Any = run.model
    if hasattr(method, "image_head"):
        return False
    projections = (method.image_projection.weight, method.text_projection.weight)
    return all(torch.equal(weight, torch.eye(*weight.shape)) for weight in projections)


def _is_clip(image: ImageEncoderConfig, text: TextEncoderConfig) -> bool:
    """Return whether encoders have CLIP's architecture: CLS token, causal text blocks, pooling at the end token."""
    own = not isinstance(image, PretrainedImageConfig) and not isinstance(text, PretrainedTextConfig)
    if not own or image.registers or image.stem or image.pos_embed == "rotary":
        return False
    return image.pool_type == "cls" and text.causal and text.pool_type == "eos" and text.depth > 0


def _own_clip(run: Run) -> tuple[Any, Any]:
    """Build a CLIPModel. With eos_token_id 2 it pools at the highest id, so the end token becomes the last entry."""
    method: Any = run.model
    library, image, text = transformers(), run.recipe.image, run.recipe.text
    tokenizer = exported_tokenizer(run, end_last=True)
    vocabulary = method.text_encoder.embedding.num_embeddings
    sizes = {"hidden_act": "gelu", "layer_norm_eps": 1e-5}
    configuration = library.CLIPConfig(
        vision_config=sizes
        | _clip_sizes(image.width, image.depth, image.num_heads)
        | {"image_size": image.image_size, "patch_size": image.patch_size},
        text_config=sizes
        | _clip_sizes(text.width, text.depth, text.num_heads)
        | {
            "vocab_size": vocabulary,
            "max_position_embeddings": text.context_length,
            "pad_token_id": tokenizer.pad_token_id,
        }
        | {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id},
        projection_dim=run.recipe.embed_dim,
    )
    images, words = method.image_encoder, method.text_encoder
    embedding = words.embedding.weight.clone()
    end, last = run.processor.tokenizer.end, vocabulary - 1  # type: ignore[attr-defined]
    embedding[[end, last]] = embedding[[last, end]]
    kernel = images.patch_embedding.weight.unflatten(1, (3, image.patch_size, image.patch_size))
    weights = {
        "vision_model.embeddings.class_embedding": images.class_token,
        "vision_model.embeddings.patch_embedding.weight": kernel,
        "vision_model.embeddings.position_embedding.weight": images.positions,
        **_norm("vision_model.pre_layrnorm", images.norm_pre),
        **_norm("vision_model.post_layernorm", images.norm_post),
        **_clip_blocks("vision_model", images.transformer.blocks),
        "text_model.embeddings.token_embedding.weight": embedding,
        "text_model.embeddings.position_embedding.weight": words.positions,
        **_norm("text_model.final_layer_norm", words.norm_post),
        **_clip_blocks("text_model", words.transformer.blocks),
        "visual_projection.weight": method.image_projection.weight,
        "text_projection.weight": method.text_projection.weight,
        "logit_scale": _log_scale(run),
    }
    return _filled(library.CLIPModel(configuration), weights), tokenizer


def _clip_sizes(width: int, depth: int, num_heads: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": depth,
        "num_attention_heads": num_heads,
    }


def _clip_blocks(tower: str, blocks: Any) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for number, block in enumerate(blocks):
        name = f"{tower}.encoder.layers.{number}"
        for kind, weight, bias in zip(
            "qkv", block.attention.qkv.weight.chunk(3), block.attention.qkv.bias.chunk(3), strict=True
        ):
            weights |= {f"{name}.self_attn.{kind}_proj.weight": weight, f"{name}.self_attn.{kind}_proj.bias": bias}
        for theirs, own in (
            ("self_attn.out_proj", block.attention.out),
            ("layer_norm1", block.norm1),
            ("layer_norm2", block.norm2),
            ("mlp.fc1", block.fc1),
            ("mlp.fc2", block.fc2),
        ):
            weights |= _norm(f"{name}.{theirs}", own)
    return weights


def _norm(name: str, module: Any) -> dict[str, Tensor]:
    return {f"{name}.weight": module.weight, f"{name}.bias": module.bias}


def _filled(model: Any, weights: dict[str, Tensor]) -> Any:
    model.load_state_dict(weights)
    return model.eval()


def _log_scale(run: Run) -> Tensor:
    method: Any = run.model
    return method.logit_scale.logit_scale.detach()


def exported_tokenizer(run: Run, end_last: bool = False, ends: bool = True) -> Any:
    """Return the run's tokenizer as one of transformers.

    end_last: give the end token the highest id. ends: append the end token; not for prompts, which are continued.
    """
    own: Tokenizer = run.processor.tokenizer  # type: ignore[attr-defined]
    if isinstance(own, PretrainedTokenizer):
        own.tokenizer.model_max_length = own.context_length
        return own.tokenizer
    from tokenizers import Tokenizer as Backend
    from tokenizers.processors import TemplateProcessing

    said = json.loads(own.tokenizer.to_str())  # type: ignore[attr-defined]
    if end_last:
        numbers = said["model"]["vocab"]
        last = max(numbers, key=numbers.__getitem__)
        numbers[END], numbers[last] = numbers[last], numbers[END]
        for mark in said["added_tokens"]:
            mark["id"] = numbers[mark["content"]]
        said["added_tokens"].sort(key=lambda mark: mark["id"])
    backend = Backend.from_str(json.dumps(said))
    marks = [(mark, backend.token_to_id(mark)) for mark in (START, END)]
    backend.post_processor = TemplateProcessing(single=f"{START} $A" + f" {END}" * ends, special_tokens=marks)
    return transformers().PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, bos_token=START, eos_token=END, model_max_length=own.context_length
    )


def write_image_settings(run: Run, folder: Path, whole: bool = False) -> None:
    """Write the settings of CLIPImageProcessor: resize the shorter side (bicubic), then center crop.

    whole: resize to a square without cropping.
    """
    processor: Any = run.processor
    image = processor.image
    size = image.tile_size if isinstance(image, TiledImageColumn) else image.size
    said = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": size, "width": size} if whole else {"shortest_edge": size},
        "resample": 3,
        "do_center_crop": not whole,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(processor.image.mean),
        "image_std": list(processor.image.std),
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def sample_pixels(run: Run, count: int) -> Tensor:
    """Return images of random noise, always the same."""
    size = run.recipe.image.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def sample_texts(run: Run) -> Tokens:
    """Return sample texts, tokenized by the run."""
    processor: Any = run.processor
    return processor.tokenizer(list(SAMPLES))


def tokenized_samples(tokenizer: Any) -> dict[str, Tensor]:
    """Return the same texts, tokenized by an exported tokenizer."""
    given = tokenizer(list(SAMPLES), padding=True, truncation=True, return_tensors="pt", return_attention_mask=True)
    return {name: given[name] for name in ("input_ids", "attention_mask")}


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
