"""LayoutLMv3's released weights: the configuration and tokenizer of a folder, or of a name on the hub."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from polymodal.data.columns.text import TokenizerSource
from polymodal.encoders.page import FIRST_POSITION, PageEncoderConfig
from polymodal.encoders.pretrained import folder_of, read_configuration, transformers
from polymodal.encoders.pretrained_image import image_mean_std
from polymodal.encoders.pretrained_text import PretrainedTokenizer
from polymodal.errors import UserError
from polymodal.modalities.text import Tokenizer


@dataclass(frozen=True)
class PretrainedPageConfig(PageEncoderConfig):
    """Configuration of released weights; `read` fills in everything."""

    source: str = ""
    """Folder, or name on the hub."""
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Mean of red, green and blue (0-1) for normalization."""
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Standard deviation of red, green and blue."""

    @classmethod
    def read(cls, name: str) -> PretrainedPageConfig:
        """Read the configuration. Raises UserError when it is not of a LayoutLMv3 that can be built."""
        settings = read_configuration(name)
        if settings.model_type != "layoutlmv3":
            raise UserError(
                f"'{name}' ({settings.model_type}) is no LayoutLMv3; take hf:microsoft/layoutlmv3-base or -large."
            )
        mean, std = image_mean_std(name) or (cls.image_mean, cls.image_std)
        return cls(
            context_length=settings.max_position_embeddings - FIRST_POSITION,
            image_size=settings.input_size,
            patch_size=settings.patch_size,
            width=settings.hidden_size,
            depth=settings.num_hidden_layers,
            num_heads=settings.num_attention_heads,
            dropout=settings.hidden_dropout_prob,
            source=name,
            image_mean=mean,
            image_std=std,
        )

    @property
    def image_mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self.image_mean, self.image_std

    def tokenizer_source(self, vocab_size: int) -> TokenizerSource:
        """Return this configuration, whose tokenizer comes from the source."""
        return self

    def tokenizer(self, texts: Iterable[str]) -> Tokenizer:
        """Read the tokenizer of the source, which is RoBERTa's; each word begins with a space."""
        return self._read(folder_of(self.source))

    def load_tokenizer(self, directory: Path) -> Tokenizer:
        """Load the tokenizer that was saved in a run."""
        return PretrainedTokenizer.load(directory, self.context_length)

    def _read(self, folder: Path) -> Tokenizer:
        try:
            library = transformers()
            words = library.RobertaTokenizer.from_pretrained(folder, add_prefix_space=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder} has no tokenizer that can be read ({type(error).__name__}).") from error
        return PretrainedTokenizer(words, self.context_length)
