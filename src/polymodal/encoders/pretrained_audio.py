"""Pretrained audio towers: Whisper's encoder, wav2vec 2.0, HuBERT, WavLM and w2v-BERT 2.0, on waveforms of 16 kHz."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from polymodal.encoders.audio import AudioEncoderConfig
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
from polymodal.errors import UserError
from polymodal.layers.transformer import Packing, mean_pool
from polymodal.modalities.padding import Padded

RATE = 16_000  # samples a second, of all these models


class Family(NamedTuple):
    """The transformers class, the feature extractor, and how features become token vectors with their lengths.

    part: of the class that is used; the rest is not built.
    """

    class_name: str
    extractor: str
    encode: Callable[[Any, Mapping[str, Tensor]], tuple[Tensor, Tensor]]
    part: str = ""


def _whisper(model: Any, features: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Log-mel frames of 30 s, padding included, as it was trained; two frames of 10 ms a token."""
    tokens = model(features["input_features"]).last_hidden_state
    return tokens, -(-features["attention_mask"].sum(1) // 2)


def _convolved(model: Any, features: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """wav2vec 2.0 and its kin: convolutions on the waveform itself, about 20 ms a token.

    Models whose convolutions are normalized over time were trained without a mask, on zeros behind a sound.
    """
    sees_mask = model.config.feat_extract_norm == "layer"
    mask = features["attention_mask"]
    tokens = model(features["input_values"], attention_mask=mask if sees_mask else None).last_hidden_state
    return tokens, model._get_feat_extract_output_lengths(mask.sum(1))


def _stacked(model: Any, features: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """w2v-BERT 2.0: two mel frames of 10 ms stacked in a token."""
    mask = features["attention_mask"]
    return model(features["input_features"], attention_mask=mask).last_hidden_state, mask.sum(1)


FAMILIES = {
    "whisper": Family("WhisperModel", "WhisperFeatureExtractor", _whisper, part="encoder"),
    "wav2vec2": Family("Wav2Vec2Model", "Wav2Vec2FeatureExtractor", _convolved),
    "hubert": Family("HubertModel", "Wav2Vec2FeatureExtractor", _convolved),
    "wavlm": Family("WavLMModel", "Wav2Vec2FeatureExtractor", _convolved),
    "wav2vec2-bert": Family("Wav2Vec2BertModel", "SeamlessM4TFeatureExtractor", _stacked),
}


@dataclass(frozen=True)
class PretrainedAudioConfig(PretrainedConfig, AudioEncoderConfig):
    """An audio tower with pretrained weights; `read` fills in everything."""

    preprocessing: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """The settings of its feature extractor."""

    @classmethod
    def read(cls, name: str) -> PretrainedAudioConfig:
        """The encoder of a model on the hub, or in a folder. Raises UserError when it is of no type known here."""
        whole = read_configuration(name)
        if whole.model_type not in FAMILIES:
            raise UserError(f"'{name}' ({whole.model_type}) has no audio tower; use one of: {', '.join(FAMILIES)}.")
        if whole.model_type == "whisper":
            whole.decoder_layers = 0
        path = folder_of(name) / "preprocessor_config.json"
        said = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if "num_mel_bins" in (settings := settings_of(whole)):
            said.setdefault("feature_size", settings["num_mel_bins"])
        named = ("feature_extractor_type", "processor_class", "image_processor_type")
        return cls(
            width=whole.hidden_size,
            depth=whole.num_hidden_layers,
            num_heads=whole.num_attention_heads,
            source=name,
            settings=settings,
            preprocessing={key: value for key, value in said.items() if key not in named},
        )

    def build(self) -> PretrainedAudioEncoder:
        return PretrainedAudioEncoder(self)


class PretrainedAudioEncoder(Encoder, PretrainedModel):
    """A pretrained speech encoder; one token about every 20 ms, and their mean."""

    def __init__(self, config: PretrainedAudioConfig):
        family = FAMILIES[configuration_from(config.settings).model_type]
        super().__init__(config.source, config.settings, family.class_name, family.part)
        self.config = config
        self.encode = family.encode
        self.extractor = getattr(transformers(), family.extractor)(**config.preprocessing)

    def forward(self, sound: Padded) -> tuple[Padded, Float[Tensor, "batch width"]]:
        """sound: waveforms of 16 kHz [batch, samples], in -1 to 1. Returns the tokens, and their means."""
        waves = [wave[:length].cpu().numpy() for wave, length in zip(sound.values, sound.lengths, strict=True)]
        features = self.extractor(
            waves, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True, padding=self._padding
        )
        device = sound.values.device
        tokens, lengths = self.encode(self.model, {name: value.to(device) for name, value in features.items()})
        padded = Padded(tokens, lengths.clamp(min=1, max=tokens.shape[1]))
        packing = Packing.of(padded.mask)
        return padded, mean_pool(packing.pack(tokens), packing)

    @property
    def _padding(self) -> str:
        return "max_length" if hasattr(self.extractor, "chunk_length") else "longest"
