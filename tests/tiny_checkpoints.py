"""Tiny random checkpoints as the hub holds them, written by the tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
IMAGE = SMALL | {"image_size": 32, "patch_size": 8}
DINO = {name: value for name, value in IMAGE.items() if name != "intermediate_size"}
WORDS = SMALL | {"vocab_size": 300, "bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0}

IMAGE_MODELS: dict[str, Callable[[], Any]] = {
    "clip": lambda: transformers.CLIPConfig(vision_config=IMAGE, text_config=WORDS, projection_dim=16),
    "siglip": lambda: transformers.SiglipConfig(
        vision_config=IMAGE, text_config=WORDS | {"projection_size": 32, "max_position_embeddings": 16}
    ),
    "siglip2": lambda: transformers.Siglip2VisionConfig(**SMALL, num_patches=16, patch_size=8),
    "dinov2": lambda: transformers.Dinov2Config(**DINO),
    "dinov2_with_registers": lambda: transformers.Dinov2WithRegistersConfig(**DINO, num_register_tokens=3),
    "dinov3_vit": lambda: transformers.DINOv3ViTConfig(**IMAGE, num_register_tokens=3),
    "vit": lambda: transformers.ViTConfig(**IMAGE),
    "aimv2": lambda: transformers.Aimv2Config(vision_config=IMAGE, text_config=WORDS, projection_dim=16),
    "aimv2_vision_model": lambda: transformers.Aimv2VisionConfig(**IMAGE, use_head=False),
}
TEXT_MODELS: dict[str, Callable[[], Any]] = {
    "bert": lambda: transformers.BertConfig(**WORDS),
    "xlm-roberta": lambda: transformers.XLMRobertaConfig(**WORDS | {"pad_token_id": 1, "bos_token_id": 0}),
    "modernbert": lambda: transformers.ModernBertConfig(**WORDS, cls_token_id=1, sep_token_id=3),
    "qwen3": lambda: transformers.Qwen3Config(**WORDS, head_dim=8, num_key_value_heads=2),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4),
}


def save(model: Any, folder: Path) -> Path:
    """Weights drawn wide enough that nothing is near zero, so that equality says something."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter == 1))
    model.eval().save_pretrained(folder)
    return folder


def save_tokenizer(folder: Path, texts: list[str]) -> Path:
    """A small BPE with CLIP's kind of marks: start 1, end 3, padding 0."""
    marked = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 3)])
    return _save_tokenizer(folder, texts, marked, bos_token="<s>", pad_token="<pad>")


def save_siglip_tokenizer(folder: Path, texts: list[str]) -> Path:
    """A small BPE with SigLIP's kind of marks: no start, end 3, which is also the padding, and no attention mask."""
    marked = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 3)])
    return _save_tokenizer(folder, texts, marked, pad_token="</s>", model_input_names=["input_ids"])


def save_decoder_tokenizer(folder: Path, texts: list[str], starts: bool, **settings: Any) -> Path:
    """A small BPE as language models have it: no end is added, and a start only where asked for (Llama)."""
    marked = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)]) if starts else None
    return _save_tokenizer(folder, texts, marked, **settings)


def _save_tokenizer(folder: Path, texts: list[str], marked: Any, **settings: Any) -> Path:
    tokenizer = Tokenizer(models.BPE(unk_token="<pad>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    marks = ["<pad>", "<s>", "<mask>", "</s>"]
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=300, special_tokens=marks, initial_alphabet=alphabet, show_progress=False)
    )
    if marked is not None:
        tokenizer.post_processor = marked
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", **settings).save_pretrained(
        folder
    )
    return folder
