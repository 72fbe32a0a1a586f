"""Tokenizer and image settings of a run, as transformers reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from polymodal.data.conversation import SPECIAL_TOKENS, TiledImageColumn
from polymodal.encoders.pretrained import transformers
from polymodal.encoders.pretrained_language_model import DecoderTokenizer
from polymodal.encoders.pretrained_text import PretrainedTokenizer, split_special_tokens
from polymodal.errors import UserError
from polymodal.modalities.text import END, PAD, START, Tokenizer, bos_eos
from polymodal.training import Run


def exported_tokenizer(run: Run, end_last: bool = False, ends: bool = True) -> Any:
    """Return the run's tokenizer as one of transformers.

    Texts that name special tokens are tokenized as ordinary text, as in the run. end_last: give the end token the
    highest id. ends: append the end token; not for prompts, which are continued, and are written with special tokens.
    """
    tokenizer: Tokenizer = run.processor.tokenizer
    if isinstance(tokenizer, DecoderTokenizer):
        return _decoder_tokenizer(tokenizer, ends)
    if isinstance(tokenizer, PretrainedTokenizer):
        tokenizer.tokenizer.model_max_length = tokenizer.context_length
        split_special_tokens(tokenizer.tokenizer, ends)
        return tokenizer.tokenizer
    from tokenizers import Tokenizer as Backend
    from tokenizers.processors import TemplateProcessing

    settings = json.loads(tokenizer.tokenizer.to_str())  # type: ignore[attr-defined]
    if end_last:
        numbers = settings["model"]["vocab"]
        last = max(numbers, key=numbers.__getitem__)
        numbers[END], numbers[last] = numbers[last], numbers[END]
        for mark in settings["added_tokens"]:
            mark["id"] = numbers[mark["content"]]
        settings["added_tokens"].sort(key=lambda mark: mark["id"])
    backend = Backend.from_str(json.dumps(settings))
    marks = [(mark, backend.token_to_id(mark)) for mark in (START, END)]
    backend.post_processor = TemplateProcessing(single=f"{START} $A" + f" {END}" * ends, special_tokens=marks)
    return transformers().PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=START,
        eos_token=END,
        model_max_length=tokenizer.context_length,
        split_special_tokens=ends,
    )


def _decoder_tokenizer(tokenizer: DecoderTokenizer, ends: bool) -> Any:
    """Return a copy of a decoder's tokenizer with the special tokens of the run in place of its own.

    Qwen's tokenizers add no start token, and Llama's no end token, but a run has both. The marks of a conversation are
    tokenized apart from the words beside them. Raises UserError for a tokenizer written in Python.
    """
    from tokenizers import Regex, pre_tokenizers
    from tokenizers import Tokenizer as Backend
    from tokenizers.processors import TemplateProcessing

    source = tokenizer.tokenizer
    if not hasattr(source, "backend_tokenizer"):
        raise UserError(
            f"A tokenizer of the class {type(source).__name__} cannot be exported: it has no tokenizer.json."
        )
    settings = json.loads(source.backend_tokenizer.to_str())
    _prepend_to_each_part(settings["pre_tokenizer"])
    backend = Backend.from_str(json.dumps(settings))
    marks = "|".join(SPECIAL_TOKENS)
    apart = [pre_tokenizers.Split(Regex(marks), "isolated")]
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        apart + [backend.pre_tokenizer] * (backend.pre_tokenizer is not None)
    )
    start, end = bos_eos(tokenizer)
    names = {"start": source.convert_ids_to_tokens(start), "end": source.convert_ids_to_tokens(end)}
    template = [names["start"], "$A", *[names["end"]] * ends]
    special = list({names["start"]: start, names["end"]: end}.items())
    backend.post_processor = TemplateProcessing(single=template, special_tokens=special)
    return transformers().PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=names["start"],
        eos_token=names["end"],
        pad_token=source.pad_token,
        unk_token=source.unk_token,
        model_max_length=tokenizer.context_length,
        split_special_tokens=ends,
    )


def _prepend_to_each_part(pre_tokenizer: Any) -> None:
    """Let Metaspace prepend its space to every part, as a run tokenizes each by itself, and not to the first alone."""
    for one in (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer or {}]):
        if one.get("prepend_scheme") == "first":
            one["prepend_scheme"] = "always"


def write_image_settings(run: Run, folder: Path, whole: bool = False) -> None:
    """Write the settings of CLIPImageProcessor: resize the shorter side (bicubic), then center crop.

    whole: resize to a square without cropping.
    """
    processor: Any = run.processor
    image = processor.image
    size = image.tile_size if isinstance(image, TiledImageColumn) else image.size
    settings = {
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
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
