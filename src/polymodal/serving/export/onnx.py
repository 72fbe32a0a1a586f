"""Export of the encoders of a run as two ONNX graphs for onnxruntime, without torch: image and text to embeddings."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polymodal.errors import needs
from polymodal.serving.export.preprocessing import exported_tokenizer, write_image_settings
from polymodal.serving.export.samples import sample_pixels, sample_texts, tokenized_samples
from polymodal.serving.export.transformers import remote_dual_encoder
from polymodal.training import Run

IMAGE, TEXT = "image.onnx", "text.onnx"


class _Images(nn.Module):
    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model.get_image_features(pixel_values)


class _Texts(nn.Module):
    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model.get_text_features(input_ids, attention_mask)


def to_onnx(run: Run, folder: Path) -> tuple[str, float]:
    """Write image.onnx and text.onnx, with dynamic batch size and text length; return the maximum difference."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise needs(error.name or "onnxruntime", "export", "Export to ONNX") from error
    model = remote_dual_encoder(run)
    tokenizer = exported_tokenizer(run)
    pixels, text, given = sample_pixels(run, 3), sample_texts(run), tokenized_samples(tokenizer)
    batch = torch.export.Dim("batch", min=1, max=65536)
    length = torch.export.Dim("length", min=2, max=run.recipe.text.context_length)
    _write(_Images(model), {"pixel_values": pixels}, {"pixel_values": {0: batch}}, "image_embeds", folder / IMAGE)
    shapes = {name: {0: batch, 1: length} for name in given}
    _write(_Texts(model), given, shapes, "text_embeds", folder / TEXT)
    tokenizer.save_pretrained(folder)
    write_image_settings(run, folder)

    method: Any = run.model.cpu().eval()
    expected = method.embed({"image": pixels[:2], "text": text})  # a batch size other than that of the export
    found = {}
    for name, file, inputs in (("image", IMAGE, {"pixel_values": pixels[:2]}), ("text", TEXT, given)):
        session = onnxruntime.InferenceSession(folder / file, providers=["CPUExecutionProvider"])
        found[name] = session.run(None, {key: value.numpy() for key, value in inputs.items()})[0]
    difference = max(float((torch.from_numpy(found[name]) - expected[name]).abs().max()) for name in found)
    return f"{IMAGE} and {TEXT}", difference


def _write(module: nn.Module, inputs: dict[str, Tensor], shapes: dict[str, Any], output: str, path: Path) -> None:
    """Write one file that contains the weights, without the exporter's messages."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (),
            path,
            kwargs=inputs,
            input_names=list(inputs),
            output_names=[output],
            dynamic_shapes=shapes,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
