"""Bodies of the JSON API, as pydantic models."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from polymodal.serving.filter_syntax import MAX_CHARACTERS
from polymodal.serving.limits import check_characters


class RequestModel(BaseModel):
    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="after")
    def _no_surrogates(self) -> Self:
        for name, value in self:
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str):
                    check_characters(text, f"{name}: ")
        return self


class EmbedRequest(RequestModel):
    text: list[str] = Field([], description="Texts.")
    image: list[str] = Field([], description="Encoded images (PNG, JPEG, WebP ...) in base64.")
    sound: list[str] = Field([], description="Encoded sounds (WAV, FLAC, Ogg ...) in base64.")


CONDITION = (
    "A condition on key, split and metadata, such as price < 10 AND shop IN ('north', 'south'): comparisons of a "
    "column with numbers, 'strings' ('' is a quote), true or false by =, !=, <, <=, >, >=, IN, BETWEEN, LIKE and "
    "IS NULL, joined by AND, OR, NOT and parentheses."
)


class SearchRequest(RequestModel):
    text: str | None = None
    image: str | None = Field(None, description="Query image in base64, instead of text.")
    sound: str | None = Field(None, description="Query sound in base64, instead of text.")
    top: int = Field(10, ge=1, le=100)
    where: str | None = Field(None, max_length=MAX_CHARACTERS, description=CONDITION)
    hybrid: bool = Field(False, description="Hybrid search: also match the words in the captions.")
    thumbnails: bool = Field(False, description="Include thumbnails, JPEG in base64.")


class ClassifyRequest(RequestModel):
    image: list[str] = []
    sound: list[str] = []
    labels: list[str] = Field(min_length=1)
    template: str = Field("{}", description="Prompt template, in which {} is the label.")


class GenerateRequest(RequestModel):
    image: list[str] = Field([], description="Images to caption or to answer a question about, in base64.")
    question: str = Field("", description="Question about each image; without it, a caption.")
    words: list[str] = Field([], description="Class names or text prompts of images to generate.")
    count: int = Field(1, ge=1, le=16, description="Number of images per class or prompt.")
    steps: int = Field(8, ge=1, le=100)
    seed: int = Field(0, ge=0, lt=2**63)


class OpenAIEmbeddingRequest(RequestModel):
    model_config = ConfigDict(extra="ignore")
    input: str | list[str]
    model: str = ""
    encoding_format: Literal["float", "base64"] = "float"
