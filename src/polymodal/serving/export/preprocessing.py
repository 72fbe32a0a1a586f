"""Tokenizer and image settings of a run, as transformers reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from polymodal.data.conversation import TiledImageColumn
from polymodal.encoders.pretrained import transformers
from polymodal.encoders.pretrained_text import PretrainedTokenizer, split_special_tokens
from polymodal.modalities.text import END, PAD, START, Tokenizer
from polymodal.training import Run


def exported_tokenizer(run: Run, end_last: bool = False, ends: bool = True) -> Any:
    """Return the run's tokenizer as one of transformers.

    Texts that name special tokens are tokenized as ordinary text, as in the run. end_last: give the end token the
    highest id. ends: append the end token; not for prompts, which are continued, and are written with special tokens.
    """
    tokenizer: Tokenizer = run.processor.tokenizer
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
