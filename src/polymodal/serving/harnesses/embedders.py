"""Image and text embeddings of a run or of its export, under the names of CLIP's code: encode_image, encode_text."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor, nn

from polymodal.data.columns.image import ImageColumn
from polymodal.encoders.pretrained import transformers
from polymodal.errors import UserError
from polymodal.evaluation.capabilities import CanEmbed
from polymodal.modalities.image import to_rgb
from polymodal.serving.export.transformers import ENCODERS, REMOTE_CODE
from polymodal.training.run import Run, load_run
from polymodal.training.run_files import RECORD

CONFIG = "config.json"  # of an export to transformers


class RunEmbedder(nn.Module):
    """The method of a run."""

    def __init__(self, method: nn.Module):
        super().__init__()
        self.method: Any = method

    def encode_image(self, images: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch dim"]:
        """Embed images that were transformed, L2-normalized."""
        return self.method.embed({"image": images})["image"]

    def encode_text(self, tokens: Any) -> Float[Tensor, "batch dim"]:
        """Embed tokenized texts, L2-normalized."""
        return self.method.embed({"text": tokens})["text"]


class ExportEmbedder(nn.Module):
    """The model of an export to transformers."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def encode_image(self, images: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch dim"]:
        """Embed images that were transformed, L2-normalized."""
        return _normalized(self.model.get_image_features(pixel_values=images))

    def encode_text(self, tokens: Any) -> Float[Tensor, "batch dim"]:
        """Embed tokenized texts, L2-normalized."""
        return _normalized(self.model.get_text_features(**tokens))


@dataclass(frozen=True)
class Embedder:
    """A model with `encode_image` and `encode_text`, and what makes its inputs.

    transform: from a Pillow image to its pixels, normalized. tokenizer: from texts to what `encode_text` takes, which
    has `to(device)`. kinds: of "image" and "text", what it embeds. weights: their file or files, for a revision.
    """

    name: str
    model: nn.Module
    transform: Callable[[PILImage.Image], Tensor]
    tokenizer: Callable[[list[str]], Any]
    kinds: tuple[str, ...]
    weights: tuple[Path, ...]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def embed_images(self, images: list[PILImage.Image]) -> Float[Tensor, "batch dim"]:
        """Embed Pillow images; the result is on the CPU."""
        with torch.no_grad():
            pixels = torch.stack([self.transform(image) for image in images])
            return self.model.encode_image(pixels.to(self.device)).float().cpu()  # type: ignore[operator]

    def embed_texts(self, texts: list[str]) -> Float[Tensor, "batch dim"]:
        """Embed texts; the result is on the CPU."""
        with torch.no_grad():
            tokens = self.tokenizer(list(texts)).to(self.device)
            return self.model.encode_text(tokens).float().cpu()  # type: ignore[operator]


def load_embedder(path: Path | str, device: str | torch.device | None = None, trust_code: bool = False) -> Embedder:
    """Load the folder of a run, or of an export to transformers; a file in it stands for its folder.

    device: by default a GPU when there is one. trust_code: whether code in the folder may be executed that is neither
    trusted (see `load_run`) nor what this version of polymodal writes beside exports. Raises UserError for a folder
    that is neither, for untrusted code, and for a run that embeds neither images nor texts.
    """
    folder = Path(path).parent if Path(path).is_file() else Path(path)
    if (folder / RECORD).is_file() or not (folder / CONFIG).is_file():
        embedder = embedder_of_run(load_run(folder, trust_code))
    else:
        embedder = _embedder_of_export(folder, trust_code)
    embedder.model.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return embedder


def embedder_of_run(run: Run) -> Embedder:
    """The run as an embedder. Raises UserError for a run that embeds neither images nor texts."""
    columns = getattr(run.processor, "columns", {})
    kinds = ["image"] if isinstance(columns.get("image"), ImageColumn) else []
    kinds += ["text"] if "text" in columns else []
    if not isinstance(run.model, CanEmbed) or not kinds or run.processor.formats:
        raise UserError(f"The run '{run.name}' embeds neither images nor texts, which this benchmark compares.")
    weights = tuple(run.directory.glob("*.safetensors")) if run.directory else ()
    return Embedder(
        run.name,
        RunEmbedder(run.model),
        functools.partial(_pixels_of_run, run.processor),
        functools.partial(_tokens_of_run, run.processor),
        tuple(kinds),
        weights,
    )


def _embedder_of_export(folder: Path, trust_code: bool) -> Embedder:
    library = transformers()
    code = sorted(folder.glob("*.py"))
    if not trust_code and (foreign := [file.name for file in code if not _is_own_code(file)]):
        raise UserError(
            f"{folder / foreign[0]} is not what this version of polymodal writes beside exports, and loading the "
            "export would run it: read the file, then allow it with --trust-code, or trust_code=True in Python."
        )
    model = library.AutoModel.from_pretrained(folder, trust_remote_code=bool(code))
    if not hasattr(model, "get_image_features") or not hasattr(model, "get_text_features"):
        raise UserError(f"{folder} is no export of a dual encoder: its model has no get_image_features.")
    tokenizer = library.AutoTokenizer.from_pretrained(folder, trust_remote_code=bool(code))
    images = library.CLIPImageProcessorPil.from_pretrained(folder)  # of exports; the others need torchvision
    padded = type(model).__name__.startswith("Siglip")
    return Embedder(
        folder.name,
        ExportEmbedder(model),
        functools.partial(_pixels_of_export, images),
        functools.partial(_tokens_of_export, tokenizer, padded),
        ("image", "text"),
        tuple(folder.glob("*.safetensors")),
    )


def _is_own_code(file: Path) -> bool:
    return any(file.name == code.name and file.read_bytes() == code.read_bytes() for code in (REMOTE_CODE, ENCODERS))


def _pixels_of_run(processor: Any, image: PILImage.Image) -> Tensor:
    return processor(image=[image])["image"][0]


def _tokens_of_run(processor: Any, texts: list[str]) -> Any:
    return processor(text=list(texts))["text"]


def _pixels_of_export(images: Any, image: PILImage.Image) -> Tensor:
    return images(to_rgb(image), return_tensors="pt")["pixel_values"][0]


def _tokens_of_export(tokenizer: Any, padded: bool, texts: list[str]) -> Any:
    """padded: to the full length and without a mask, as SigLIP was trained."""
    tokens = tokenizer(list(texts), truncation=True, return_tensors="pt", padding="max_length" if padded else True)
    for name in {*tokens} - ({"input_ids"} if padded else {"input_ids", "attention_mask"}):
        del tokens[name]
    return tokens


def _normalized(features: Any) -> Tensor:
    """Return the features L2-normalized; in newer versions of transformers they are the pooled output of a class."""
    vectors = features if isinstance(features, Tensor) else features.pooler_output
    return nn.functional.normalize(vectors, dim=-1)
