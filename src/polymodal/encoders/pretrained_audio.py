"""Pretrained audio encoders on 16 kHz waveforms: Whisper, wav2vec 2.0, HuBERT, WavLM and w2v-BERT 2.0."""

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

RATE = 16_000  # sampling rate of all these models in Hz


class AudioFamily(NamedTuple):
    """Transformers class, feature extractor, and conversion of features to token vectors with lengths.

    part: submodule that is used; the rest is not built.
    """

    class_name: str
    extractor: str
    encode: Callable[[Any, Mapping[str, Tensor]], tuple[Tensor, Tensor]]
    part: str = ""


def _whisper(model: Any, features: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Encode log-mel spectrograms padded to 30 s, as Whisper was trained; one token per two frames of 10 ms."""
    tokens = model(features["input_features"]).last_hidden_state
    return tokens, -(-features["attention_mask"].sum(1) // 2)


def _convolved(model: Any, features: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Encode waveforms by wav2vec 2.0 and its relatives; one token per 20 ms.

    Models with group norm over time were trained without an attention mask, on zero padding.
    """
    sees_mask = model.config.feat_extract_norm == "layer"
    mask = features["attention_mask"]
    tokens = model(features["input_values"], attention_mask=mask if sees_mask else None).last_hidden_state
    return tokens, model._get_feat_extract_output_lengths(mask.sum(1))


def _stacked(model: Any, features: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Encode by w2v-BERT 2.0; two mel frames of 10 ms are stacked per token."""
    mask = features["attention_mask"]
    return model(features["input_features"], attention_mask=mask).last_hidden_state, mask.sum(1)


FAMILIES = {
    "whisper": AudioFamily("WhisperModel", "WhisperFeatureExtractor", _whisper, part="encoder"),
    "wav2vec2": AudioFamily("Wav2Vec2Model", "Wav2Vec2FeatureExtractor", _convolved),
    "hubert": AudioFamily("HubertModel", "Wav2Vec2FeatureExtractor", _convolved),
    "wavlm": AudioFamily("WavLMModel", "Wav2Vec2FeatureExtractor", _convolved),
    "wav2vec2-bert": AudioFamily("Wav2Vec2BertModel", "SeamlessM4TFeatureExtractor", _stacked),
}


@dataclass(frozen=True)
class PretrainedAudioConfig(PretrainedConfig, AudioEncoderConfig):
    """Configuration of a pretrained audio encoder; `read` fills in everything."""

    preprocessing: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Settings of the feature extractor."""

    @classmethod
    def read(cls, name: str) -> PretrainedAudioConfig:
        """Read the encoder of a model on the hub or in a folder. Raises UserError for an unsupported type."""
        configuration = read_configuration(name)
        if configuration.model_type not in FAMILIES:
            raise UserError(
                f"'{name}' ({configuration.model_type}) has no audio tower; use one of: {', '.join(FAMILIES)}."
            )
        if configuration.model_type == "whisper":
            configuration.decoder_layers = 0
        path = folder_of(name) / "preprocessor_config.json"
        preprocessing = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if "num_mel_bins" in (settings := settings_of(configuration)):
            preprocessing.setdefault("feature_size", settings["num_mel_bins"])
        excluded = ("feature_extractor_type", "processor_class", "image_processor_type")
        return cls(
            width=configuration.hidden_size,
            depth=configuration.num_hidden_layers,
            num_heads=configuration.num_attention_heads,
            source=name,
            settings=settings,
            preprocessing={key: value for key, value in preprocessing.items() if key not in excluded},
        )

    def build(self) -> PretrainedAudioEncoder:
        return PretrainedAudioEncoder(self)


class PretrainedAudioEncoder(Encoder, PretrainedModel):
    """Pretrained speech encoder; one token per 20 ms or so, and their mean."""

    def __init__(self, config: PretrainedAudioConfig):
        family = FAMILIES[configuration_from(config.settings).model_type]
        super().__init__(config.source, config.settings, family.class_name, family.part)
        self.config = config
        self.encode = family.encode
        self.extractor = getattr(transformers(), family.extractor)(**config.preprocessing)

    def forward(self, sound: Padded) -> tuple[Padded, Float[Tensor, "batch width"]]:
        """Encode sounds. sound: 16 kHz waveforms [batch, samples] in [-1, 1]. Returns tokens and their means."""
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
