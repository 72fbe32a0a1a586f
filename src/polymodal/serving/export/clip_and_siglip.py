"""Dual encoders as CLIPModel or SiglipModel of transformers: which ones are, and their weights by its names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from polymodal.encoders.image import ImageEncoderConfig
from polymodal.encoders.pretrained import transformers
from polymodal.encoders.pretrained_image import PretrainedImageConfig
from polymodal.encoders.pretrained_text import PretrainedTextConfig
from polymodal.encoders.text import TextEncoderConfig
from polymodal.serving.export.preprocessing import exported_tokenizer
from polymodal.training import Run


def _pretrained_towers(method: Any) -> dict[str, Tensor]:
    """Return the weights of both encoders under the names of CLIPModel and SiglipModel."""
    towers = {"vision_model": method.image_encoder, "text_model": method.text_encoder}
    return {
        f"{part}.{name}": tensor for part, tower in towers.items() for name, tensor in tower.model.state_dict().items()
    }


def pretrained_clip(run: Run) -> Any:
    method: Any = run.model
    library, image, text = transformers(), run.recipe.image, run.recipe.text
    configuration = library.CLIPConfig(
        vision_config=dict(image.settings), text_config=dict(text.settings), projection_dim=run.recipe.embed_dim
    )
    weights = _pretrained_towers(method)
    weights |= {
        "visual_projection.weight": method.image_projection.weight,
        "text_projection.weight": method.text_projection.weight,
        "logit_scale": log_scale(run),
    }
    return _filled(library.CLIPModel(configuration), weights)


def pretrained_siglip(run: Run) -> Any:
    method: Any = run.model
    library, image, text = transformers(), run.recipe.image, run.recipe.text
    configuration = library.SiglipConfig(vision_config=dict(image.settings), text_config=dict(text.settings))
    weights = _pretrained_towers(method)
    bias = torch.zeros(()) if method.logit_bias is None else method.logit_bias
    weights |= {"logit_scale": log_scale(run).reshape(1), "logit_bias": bias.detach().reshape(1)}
    return _filled(library.SiglipModel(configuration), weights)


def projects_nothing(run: Run) -> bool:
    """Return whether the projections are the identity, as SiglipModel has none."""
    method: Any = run.model
    if hasattr(method, "image_head"):
        return False
    projections = (method.image_projection.weight, method.text_projection.weight)
    return all(torch.equal(weight, torch.eye(*weight.shape)) for weight in projections)


def is_clip(image: ImageEncoderConfig, text: TextEncoderConfig) -> bool:
    """Return whether encoders have CLIP's architecture: CLS token, causal text blocks, pooling at the end token."""
    trained_here = not isinstance(image, PretrainedImageConfig) and not isinstance(text, PretrainedTextConfig)
    if not trained_here or image.registers or image.stem or image.pos_embed == "rotary":
        return False
    return image.pool_type == "cls" and text.causal and text.pool_type == "eos" and text.depth > 0


def own_clip(run: Run) -> tuple[Any, Any]:
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
        "logit_scale": log_scale(run),
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
        for theirs, module in (
            ("self_attn.out_proj", block.attention.out),
            ("layer_norm1", block.norm1),
            ("layer_norm2", block.norm2),
            ("mlp.fc1", block.fc1),
            ("mlp.fc2", block.fc2),
        ):
            weights |= _norm(f"{name}.{theirs}", module)
    return weights


def _norm(name: str, module: Any) -> dict[str, Tensor]:
    return {f"{name}.weight": module.weight, f"{name}.bias": module.bias}


def _filled(model: Any, weights: dict[str, Tensor]) -> Any:
    model.load_state_dict(weights)
    return model.eval()


def log_scale(run: Run) -> Tensor:
    method: Any = run.model
    return method.logit_scale.logit_scale.detach()
