"""Export of the text encoder of a run to sentence-transformers: transformer, pooling, projection, normalization."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from polymodal.encoders.pretrained import transformers
from polymodal.encoders.pretrained_text import PretrainedTextEncoder
from polymodal.errors import UserError, needs
from polymodal.serving.export.preprocessing import exported_tokenizer
from polymodal.serving.export.samples import SAMPLES
from polymodal.serving.export.transformers import REMOTE_CODE, copy_remote_code, text_transformer_sizes
from polymodal.training import Run

POOLING = {"avg": "mean", "eos": "lasttoken", "cls": "cls"}


def to_sentence_transformers(run: Run, folder: Path) -> tuple[str, float]:
    """Write a folder for `SentenceTransformer`; return the maximum difference of embeddings."""
    transformers()
    try:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
    except ImportError as error:
        raise needs("sentence-transformers", "export", "Export to sentence-transformers") from error
    method: Any = run.model.cpu().eval()
    remote = not isinstance(method.text_encoder, PretrainedTextEncoder)
    tower = _own_tower(run) if remote else _pretrained_tower(run)
    with tempfile.TemporaryDirectory() as aside:
        tower.save_pretrained(aside)
        exported_tokenizer(run).save_pretrained(aside)
        trust = {}
        if remote:
            copy_remote_code(Path(aside))
            trust = {"trust_remote_code": True}
        words = Transformer(
            aside,
            max_seq_length=run.recipe.text.context_length,
            model_kwargs=trust,
            processor_kwargs=trust,
            config_kwargs=trust,
        )
        pooling = Pooling(run.recipe.text.width, pooling_mode=POOLING[_pooling(run)])
        projection = Dense(run.recipe.text.width, run.recipe.embed_dim, bias=False, activation_function=nn.Identity())
        projection.linear.weight.copy_(method.text_projection.weight)
        model = SentenceTransformer(modules=[words, pooling, projection, Normalize()], device="cpu")
        model.save(str(folder), create_model_card=False)
    if remote:
        copy_remote_code(folder)
    loaded = SentenceTransformer(str(folder), device="cpu", trust_remote_code=remote)
    found = torch.from_numpy(loaded.encode(list(SAMPLES), show_progress_bar=False))
    expected = method.embed({"text": run.processor(text=list(SAMPLES))["text"]})["text"]
    note = ", trust_remote_code=True" if remote else ""
    return f"SentenceTransformer(FOLDER{note})", float((found - expected).abs().max())


def _pooling(run: Run) -> str:
    """Return the pooling; CLIP always pools at the end token."""
    settings = getattr(run.recipe.text, "settings", {})
    return "eos" if settings.get("model_type") in ("clip_text_model", "aimv2_text_model") else run.recipe.text.pool_type


def _pretrained_tower(run: Run) -> Any:
    method: Any = run.model
    encoder: Any = method.text_encoder
    if encoder.config.settings["model_type"].startswith("siglip"):
        raise UserError("SigLIP's text tower pools over padding, which sentence-transformers cannot express.")
    return encoder.model


def _own_tower(run: Run) -> Any:
    method: Any = run.model
    from polymodal.serving.export.modeling_polymodal import PolymodalTextConfig, PolymodalTextModel

    configuration = PolymodalTextConfig(
        sizes=text_transformer_sizes(run),
        auto_map={
            "AutoConfig": f"{REMOTE_CODE.stem}.PolymodalTextConfig",
            "AutoModel": f"{REMOTE_CODE.stem}.PolymodalTextModel",
        },
    )
    tower = PolymodalTextModel(configuration)
    tower.text_encoder.load_state_dict(method.text_encoder.state_dict())
    return tower.eval()
