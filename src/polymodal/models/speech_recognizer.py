"""Speech-text encoder with a CTC head: transcribes speech, and embeds speech and text."""

from __future__ import annotations

from typing import TypedDict

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.data.processor import Processor
from polymodal.data.speech_text import silence
from polymodal.encoders.speech_text import SpeechTextEncoder
from polymodal.modalities.padding import Padded
from polymodal.modalities.text import Tokens
from polymodal.objectives.ctc import ctc_greedy_decode, ctc_loss
from polymodal.objectives.reduction import mean_over
from polymodal.rng import ExampleRNG
from polymodal.types import Batch, Example


class CTCBatch(TypedDict):
    """Speech and its transcripts. num_pairs: 0 where an empty pair stands in."""

    sound: Padded
    transcript: Tokens
    num_pairs: Int[Tensor, ""]


def ctc_batch(pairs: list[Example], processor: Processor, example_rng: ExampleRNG, num_mel_bins: int) -> CTCBatch:
    """Collate examples with `sound` and `text`; an empty one stands in for none."""
    drawn = zip(pairs, example_rng.generators, strict=True)
    texts = [processor.text.sample_caption(example["text"], rng) for example, rng in drawn]
    return {
        "sound": processor.sound([example["sound"] for example in pairs] or [silence(num_mel_bins)]),
        "transcript": processor.text(texts or [""]),
        "num_pairs": torch.tensor(len(pairs)),
    }


class SpeechRecognizer(nn.Module):
    """A speech-text encoder and a linear head of characters."""

    def __init__(self, encoder: SpeechTextEncoder, vocab_size: int):
        super().__init__()
        self.encoder = encoder
        self.asr_head = nn.Linear(encoder.config.width, vocab_size)

    def num_characters(self, batch: CTCBatch) -> dict[str, Tensor]:
        """Count the characters of the transcripts."""
        return {"ctc_finetune": (batch["transcript"].lengths - 2).sum()}

    @mean_over("num_characters")
    def ctc_finetuning_losses(self, batch: CTCBatch) -> dict[str, Tensor]:
        """Compute the CTC loss of fine-tuning for speech recognition (ASR)."""
        speech = self.encoder.encode_speech(batch["sound"])
        loss = ctc_loss(self.asr_head(speech.multimodal), speech.lengths, batch["transcript"])
        return {"ctc_finetune": loss * (batch["num_pairs"] > 0)}

    def encode(self, batch: Batch) -> dict[str, Padded]:
        """Return the last hidden states of each modality that the batch has."""
        encoded = {}
        if "sound" in batch:
            speech = self.encoder.encode_speech(batch["sound"])
            encoded["sound"] = Padded(speech.multimodal, speech.lengths)
        if "text" in batch:
            encoded["text"] = self.encoder.encode_text(batch["text"])
        return encoded

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Return L2-normalized means of the last hidden states of speech and of text."""
        return {name: F.normalize(states.mean(), dim=1) for name, states in self.encode(batch).items()}

    def transcribe(self, batch: Batch) -> list[list[int]]:
        """Return the characters of each sound; or of each text, which the head for speech has never seen."""
        (states,) = self.encode(batch).values()
        logits = self.asr_head(states.values)
        return [ctc_greedy_decode(row[:length]) for row, length in zip(logits, states.lengths.tolist(), strict=True)]
