"""Export of vision-language models to transformers, with custom code beside the weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from polymodal.data.conversation import ASSISTANT, IMAGE_END, IMAGE_START, USER
from polymodal.data.processor import Processor
from polymodal.data.sequence import pad_sequences
from polymodal.encoders.image_embedding import ImageEmbedding
from polymodal.encoders.language_model import LanguageModel
from polymodal.encoders.pretrained import transformers
from polymodal.encoders.pretrained_language_model import PretrainedLanguageModel
from polymodal.errors import UserError
from polymodal.modalities.image import unpatchify
from polymodal.models.vision_language_model import VisionLanguageModel
from polymodal.serving.export.preprocessing import exported_tokenizer, write_image_settings
from polymodal.training import Run

REMOTE_CODE = Path(__file__).with_name("modeling_polymodal_language.py")
CELL = "<cell>"  # placeholder of an image token in a text
QUESTIONS = ("How many things are there?", "Was ist das?")


def language_to_transformers(run: Run, folder: Path) -> tuple[str, float]:
    """Export weights, tokenizer and image settings; return the class, and the maximum difference of logits."""
    model, tokenizer = exported_language_model(run)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_image_settings(run, folder, whole=True)
    shutil.copyfile(REMOTE_CODE, folder / REMOTE_CODE.name)
    library = transformers()
    loaded = library.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    tokenizer = library.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    return "AutoModelForCausalLM, with trust_remote_code=True", _difference(run, loaded, tokenizer)


def exported_language_model(run: Run) -> tuple[Any, Any]:
    """Return the method as `modeling_polymodal_language.py` builds it, and its tokenizer with an image placeholder."""
    method = run.model
    assert isinstance(method, VisionLanguageModel)
    language, seeing = method.language_model, method.image_encoder
    if not isinstance(language, LanguageModel | PretrainedLanguageModel) or not isinstance(seeing, ImageEmbedding):
        raise UserError(
            f"'{run.name}' has a language model or an image encoder that cannot be exported to transformers yet."
        )
    transformers()
    from polymodal.serving.export.modeling_polymodal_language import PolymodalLanguageConfig, PolymodalLanguageModel

    tokenizer = exported_tokenizer(run, ends=False)
    vocabulary: int = language.embedding.num_embeddings  # type: ignore[assignment]
    tokenizer.add_special_tokens({"additional_special_tokens": [CELL]})
    configuration = PolymodalLanguageConfig(
        vocab_size=vocabulary,
        **_architecture(language),
        cell_id=tokenizer.convert_tokens_to_ids(CELL),
        image_size=run.recipe.tile_size,
        patch_size=run.recipe.patch_size,
        patch_embed_dim=run.recipe.patch_embed_dim,
        visual_experts=bool(method.experts),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        auto_map={
            "AutoConfig": f"{REMOTE_CODE.stem}.PolymodalLanguageConfig",
            "AutoModelForCausalLM": f"{REMOTE_CODE.stem}.PolymodalLanguageModel",
        },
    )
    model = PolymodalLanguageModel(configuration)
    weights = method.state_dict()
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return model.eval(), tokenizer


def _architecture(language: LanguageModel | PretrainedLanguageModel) -> dict[str, Any]:
    """Return the sizes of our decoder, or the settings of one of transformers."""
    if isinstance(language, PretrainedLanguageModel):  # tied weights are written twice
        settings = {**language.config.settings, "tie_word_embeddings": False}
        return {"width": language.config.width, "pretrained": settings}
    config = language.config
    names = ("width", "depth", "num_heads", "num_kv_heads", "mlp_dim", "rope_theta", "norm_eps", "attention_bias")
    return {name: getattr(config, name) for name in names} | {"tied": config.tie_word_embeddings}


def prompt_text(processor: Processor, question: str) -> str:
    """Return the prompt of a question about a one-tile image for the exported tokenizer."""
    return f"{IMAGE_START}{CELL * processor.image.tokens_per_tile}{IMAGE_END}{USER}{question}{ASSISTANT}"


def _difference(run: Run, loaded: Any, tokenizer: Any) -> float:
    """Return the maximum difference of logits after an image and a question."""
    method, processor = run.model, run.processor
    assert isinstance(method, VisionLanguageModel)
    assert isinstance(processor, Processor)
    size = processor.image.tile_size
    images = np.random.default_rng(0).integers(0, 256, (len(QUESTIONS), size, size, 3), dtype=np.uint8)
    worst = 0.0
    for image, question in zip(images, QUESTIONS, strict=True):
        prompt = pad_sequences([processor.conversation.prompt(image, question)])
        vectors, routes = method.embed_sequences(prompt, {})
        ours = method.language_model.logits(
            method.language_model(vectors, prompt.position, prompt.document, routes)[:, -1]
        )
        ids = tokenizer(prompt_text(processor, question), return_tensors="pt")["input_ids"]
        pixels = unpatchify(processor.image.patchify_tiles(image, 1)[None], processor.image.token_size)
        theirs = loaded(ids, pixel_values=pixels).logits[:, -1]
        worst = max(worst, float((ours - theirs).abs().max()))
    return worst
