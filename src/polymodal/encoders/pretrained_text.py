"""Pretrained text encoders: those of CLIP and SigLIP, and any encoder or decoder of transformers (BERT, Qwen ...).

The tokenizer comes from the source. Encoders are pooled as their sentence-transformers folder says, else by the mean
over tokens; decoders by their last token.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from polymodal.encoders.encoder import Encoder
from polymodal.encoders.pretrained import (
    PretrainedConfig,
    PretrainedModel,
    configuration_from,
    folder_of,
    read_configuration,
    settings_of,
    transformers,
)
from polymodal.encoders.text import PoolType, TextEncoderConfig, pool
from polymodal.errors import UserError
from polymodal.layers.transformer import Packing
from polymodal.modalities.text import Tokenizer, Tokens

MAX_CONTEXT_LENGTH = 512  # maximum tokens per text, where a source has no limit or a larger one
TOKENIZER = "tokenizer"  # folder of a run


class PretrainedTokenizer:
    """Tokenizer of a pretrained model, with the special tokens of its training; no text becomes one of them."""

    def __init__(self, tokenizer: Any, context_length: int):
        self.tokenizer = tokenizer
        self.context_length = context_length
        if tokenizer.pad_token is None:  # decoders have none; padding is masked anyway
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "right"
        split_special_tokens(tokenizer, True)
        self.special_tokens = _special_tokens(tokenizer)
        self._special_ids = torch.tensor([id for id in tokenizer.all_special_ids if id != tokenizer.unk_token_id])

    @classmethod
    def read(cls, folder: Path, context_length: int) -> PretrainedTokenizer:
        """Read the tokenizer of a folder. Raises UserError when there is none."""
        try:
            return cls(transformers().AutoTokenizer.from_pretrained(folder, trust_remote_code=False), context_length)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise UserError(f"{folder} has no tokenizer that can be read ({type(error).__name__}).") from error

    @property
    def vocab_size(self) -> int:
        return len(self.tokenizer)

    def __call__(self, texts: list[str]) -> Tokens:
        """Tokenize, truncated to `context_length` with special tokens, padded to the longest text of this batch."""
        # The tokenizers of SigLIP and SigLIP 2 return no attention mask by themselves.
        encoded = self.tokenizer(
            texts,
            truncation=True,
            max_length=self.context_length,
            padding=True,
            return_tensors="pt",
            return_attention_mask=True,
        )
        tokens = Tokens(encoded["input_ids"], encoded["attention_mask"].sum(1).clamp(min=1), self.special_tokens)
        return dataclasses.replace(tokens, ids=self.without_special_ids(tokens.ids, tokens.content_mask))

    def without_special_ids(
        self, ids: Int[Tensor, "*batch length"], content: Bool[Tensor, "*batch length"]
    ) -> Int[Tensor, "*batch length"]:
        """Replace special tokens inside of texts by the unknown token.

        Unigram models (T5, SigLIP) have special tokens among their ordinary pieces.
        """
        unknown = self.tokenizer.unk_token_id
        return ids if unknown is None else ids.masked_fill(content & torch.isin(ids, self._special_ids), unknown)

    def mark_ids(self, mark: str) -> list[int]:
        added = self.tokenizer.get_added_vocab().get(mark)
        return self.tokenizer(mark, add_special_tokens=False)["input_ids"] if added is None else [added]

    def decode(self, tokens: Tokens) -> list[str]:
        """Decode to texts without special tokens and padding, as far as the tokenizer is lossless."""
        rows = [ids[:length] for ids, length in zip(tokens.ids.tolist(), tokens.lengths.tolist(), strict=True)]
        return self.tokenizer.batch_decode(rows, skip_special_tokens=True)

    def save(self, directory: Path) -> None:
        self.tokenizer.save_pretrained(directory / TOKENIZER)

    @classmethod
    def load(cls, directory: Path, context_length: int) -> PretrainedTokenizer:
        return cls.read(directory / TOKENIZER, context_length)


class TextFamily(NamedTuple):
    """Transformers class of a model type, and conversion of ids and mask to token vectors and a pooled vector.

    pooled: None where the tokens are pooled here.
    """

    class_name: str
    encode: Callable[[Any, Tokens, int], tuple[Tensor, Tensor | None]]


def _masked(model: Any, text: Tokens, context: int) -> tuple[Tensor, None]:
    return model(input_ids=text.ids, attention_mask=text.mask.long()).last_hidden_state, None


def _with_pooler(model: Any, text: Tokens, context: int) -> tuple[Tensor, Tensor]:
    """Encode by CLIP, which pools at the end token."""
    encoded = model(input_ids=text.ids, attention_mask=text.mask.long())
    return encoded.last_hidden_state, encoded.pooler_output


def _padded(model: Any, text: Tokens, context: int) -> tuple[Tensor, Tensor]:
    """Encode by SigLIP, which attends to padding and pools at the last position: texts are padded to full length."""
    ids = text.ids.masked_fill(~text.mask, model.config.pad_token_id)
    ids = F.pad(ids, (0, context - ids.shape[1]), value=model.config.pad_token_id)
    encoded = model(input_ids=ids)
    return encoded.last_hidden_state[:, : text.ids.shape[1]], encoded.pooler_output


FAMILIES = {
    "clip_text_model": TextFamily("CLIPTextModel", _with_pooler),
    "aimv2_text_model": TextFamily("Aimv2TextModel", _with_pooler),
    "siglip_text_model": TextFamily("SiglipTextModel", _padded),
    "siglip2_text_model": TextFamily("Siglip2TextModel", _padded),
}
ANY = TextFamily("AutoModel", _masked)


@dataclass(frozen=True)
class PretrainedTextConfig(PretrainedConfig, TextEncoderConfig):
    """Configuration of a pretrained text encoder; `read` fills in everything."""

    @classmethod
    def read(cls, name: str) -> PretrainedTextConfig:
        """Read the text encoder of a model on the hub or in a folder. Raises UserError when it has none."""
        configuration = read_configuration(name)
        tower = getattr(configuration, "text_config", configuration)
        library = transformers()
        has_family = tower.model_type in FAMILIES
        if not has_family and (type(tower) not in library.MODEL_MAPPING or not getattr(tower, "vocab_size", None)):
            raise UserError(f"'{name}' ({configuration.model_type}) has no text tower.")
        if not has_family and getattr(tower, "is_encoder_decoder", False):
            raise UserError(
                f"'{name}' ({configuration.model_type}) is an encoder with a decoder; use one or the other alone."
            )
        decoder = not has_family and type(tower) in library.MODEL_FOR_CAUSAL_LM_MAPPING and not _is_bidirectional(tower)
        return cls(
            vocab_size=tower.vocab_size,
            context_length=min(_context_of(tower), MAX_CONTEXT_LENGTH),
            width=tower.projection_size if tower.model_type.startswith("siglip") else tower.hidden_size,
            depth=tower.num_hidden_layers,
            num_heads=tower.num_attention_heads,
            causal=decoder or tower.model_type == "clip_text_model",
            pool_type="eos" if decoder else _pooling_of(folder_of(name)),
            source=name,
            settings=settings_of(tower) | _padding_of(name, tower),
        )

    def tokenizer(self, texts: Iterable[str]) -> PretrainedTokenizer:
        """Return the source's tokenizer; `texts`, on which others are trained, are ignored."""
        return PretrainedTokenizer.read(folder_of(self.source), self.context_length)

    def load_tokenizer(self, directory: Path) -> PretrainedTokenizer:
        return PretrainedTokenizer.load(directory, self.context_length)

    def build(self, vocab_size: int) -> PretrainedTextEncoder:
        return PretrainedTextEncoder(self)


class PretrainedTextEncoder(Encoder, PretrainedModel):
    """Pretrained text transformer; returns packed tokens, their packing, and the pooled vector."""

    def __init__(self, config: PretrainedTextConfig):
        family = FAMILIES.get(configuration_from(config.settings).model_type, ANY)
        super().__init__(config.source, config.settings, family.class_name)
        self.config = config
        self.encode = family.encode

    def forward(self, text: Tokens) -> tuple[Float[Tensor, "total width"], Packing, Float[Tensor, "batch width"]]:
        """Encode texts. Returns the packed tokens of all texts, their packing, and the pooled vectors."""
        packing = Packing.of(text.mask)
        groups = length_buckets(text.lengths)
        encoded = [self.encode(self.model, _rows(text, group), self.config.context_length) for group in groups]
        inverse = torch.cat(groups).argsort()
        longest = text.ids.shape[1]
        padded = [F.pad(tokens, (0, 0, 0, longest - tokens.shape[1])) for tokens, _ in encoded]
        packed = packing.pack(torch.cat(padded)[inverse])
        pooled_groups = [pooled for _, pooled in encoded if pooled is not None]
        return (
            packed,
            packing,
            torch.cat(pooled_groups)[inverse] if pooled_groups else pool(packed, packing, self.config.pool_type),
        )


def length_buckets(lengths: Int[Tensor, " batch"], min_size: int = 8, ratio: float = 1.5) -> list[Int[Tensor, " rows"]]:
    """Group rows by length (length bucketing), to compute little padding: transformers' models cannot pack.

    The longest text of a group is at most `ratio` times the shortest, unless the group would have fewer than `min_size`
    rows.
    """
    order = lengths.argsort()
    sizes = lengths[order].tolist()
    starts = [0]
    for index, size in enumerate(sizes):
        enough = index - starts[-1] >= min_size and len(sizes) - index >= min_size
        if enough and size > ratio * sizes[starts[-1]]:
            starts.append(index)
    return [order[begin:end] for begin, end in itertools.pairwise([*starts, len(sizes)])]


def _rows(text: Tokens, rows: Tensor) -> Tokens:
    lengths = text.lengths[rows]
    return Tokens(text.ids[rows][:, : int(lengths.max())], lengths)


def split_special_tokens(tokenizer: Any, split: bool) -> None:
    """Make a tokenizer of transformers take the names of special tokens in texts as ordinary text, or as the tokens;
    saved with it."""
    tokenizer.split_special_tokens = tokenizer.init_kwargs["split_special_tokens"] = split


def _special_tokens(tokenizer: Any) -> tuple[int, int]:
    """Return the number of special tokens that a tokenizer adds at the start and at the end of a text."""
    content, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    size = len(content)
    start = next((n for n in range(len(whole) - size + 1) if whole[n : n + size] == content), 0)
    return start, len(whole) - start - size


def _padding_of(name: str, tower: Any) -> dict[str, int]:
    """Return the padding id of the tokenizer for SigLIP, which attends to padding; SigLIP 2's configuration has
    another."""
    if not tower.model_type.startswith("siglip"):
        return {}
    return {"pad_token_id": PretrainedTokenizer.read(folder_of(name), MAX_CONTEXT_LENGTH).tokenizer.pad_token_id}


def _context_of(tower: Any) -> int:
    """Return the maximum number of tokens; RoBERTa's positions start after the padding index."""
    places = getattr(tower, "max_position_embeddings", None) or MAX_CONTEXT_LENGTH
    return places - (tower.pad_token_id + 1 if tower.model_type in ("roberta", "xlm-roberta", "camembert") else 0)


def _is_bidirectional(tower: Any) -> bool:
    """Return whether a model is trained as an encoder; BERT and its relatives also have a causal class."""
    masked = transformers().MODEL_FOR_MASKED_LM_MAPPING
    return type(tower) in masked and not getattr(tower, "is_decoder", False)


def _pooling_of(folder: Path) -> PoolType:
    """Read the pooling of a sentence-transformers folder. Raises UserError for an unsupported one."""
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return "avg"
    settings = json.loads(path.read_text(encoding="utf-8"))
    supported: dict[str, PoolType] = {"mean": "avg", "mean_tokens": "avg", "cls": "cls", "cls_token": "cls"}
    supported |= {"lasttoken": "eos"}
    if "pooling_mode" in settings:
        modes = [settings["pooling_mode"]]
    else:
        modes = [key.removeprefix("pooling_mode_") for key, value in settings.items() if value is True]
    modes_used = [mode for mode in modes if mode != "include_prompt"]
    if len(modes_used) == 1 and modes_used[0] in supported:
        return supported[modes_used[0]]
    raise UserError(f"The pooling of {folder} is {' and '.join(modes_used)}; only {', '.join(supported)} are built.")


def mask_token_id(tokenizer: Tokenizer) -> int:
    """Return the id of the mask token: a pretrained tokenizer's own, or the one after the vocabulary.

    Raises UserError for a pretrained tokenizer without one, such as CLIP's.
    """
    if not isinstance(tokenizer, PretrainedTokenizer):
        return tokenizer.vocab_size
    if tokenizer.tokenizer.mask_token_id is None:
        raise UserError(
            "Masked language modeling needs a text encoder whose tokenizer has a mask token, such as --text-encoder "
            "hf:roberta-base."
        )
    return tokenizer.tokenizer.mask_token_id
