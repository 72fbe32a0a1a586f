"""Hybrid captions: CLIP on AltText and synthetic captions, of which one is sampled for each image and step.

Synthetic captions fit their images better than AltText, but name fewer entities and are less diverse. One captioner
writes several formats: short (SSC), descriptive (DSC), dense (DSC+) and AltText-fused (AFC) captions. A model is
trained on the same images with captions c ~ Categorical(r), and AltText beside synthetic captions is better than either
alone; which format is best depends on the model: short for CLIP, dense for a language model that sees, descriptive for
image generation. Captions are those of one column whose languages have a private subtag (`en-x-ssc`, `en-x-dsc`,
`en-x-dscplus`, `en-x-afc`), or of columns with the names `alt_text`, `ssc`, `dsc`, `dsc_plus` and `afc`; anything else
is AltText. The fraction of each format that the context length truncates is in `processor.json`, and in a warning.

Terms: control prompt = curation.caption_formats.CONTROL_PROMPTS, AFC = curation.caption_formats.write_formats, ANA =
curation.caption_quality.average_assertions, diversity = curation.caption_quality.format_reports, mixing ratio =
Recipe.synthetic_ratio, c ~ Categorical(r) = caption_mixing.sample_formats.

Differs from the paper in: no code and no model was released, so that the captioner is any finished run that answers
questions about images (`polymodal caption RUN --formats ssc dsc`), fine-tuned in two stages on control prompts
(`curation.caption_formats.write_control_prompts`), or a template over scenes that are known, whose hallucinations grow
with the length; assertions are split by rules for English or by a chat model, and their accuracy is that of the
template, or of a judge that the user gives; an image that lacks the sampled format takes another one; the tokenizer is
learned on all formats, whatever the ratios. Retrieval asks by all captions of a test image, in whatever formats it has
some. Left out: OCR texts in the captioner's first stage; interleaved documents and texts of MM1's pre-training, and its
evaluation with few examples; GenEval, as no generated image is checked for its attributes. The same sampler is in
`mono_internvl` and `inductive_moment_matching` as `polymodal.claims.hybrid_captions:MixedMonolith` and
`:MixedGeneration`, which match samples between formats, not tokens. Which format is best for them is not measured here:
a language model from scratch does not learn to see in the minutes of a claim, so that no format could win.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from polymodal.constraints import UnitInterval
from polymodal.corpora.corpus import Corpus
from polymodal.data.caption_mixing import mixing_ratios, sample_formats
from polymodal.data.columns.caption_formats import CaptionFormatsColumn, formats_of_rows
from polymodal.data.columns.text import TextColumn
from polymodal.data.processor import Declared
from polymodal.encoders.presets import clip as clip_sizes
from polymodal.errors import MissingModality, UserError
from polymodal.recipes.dual_encoders import clip
from polymodal.rng import ExampleRNG
from polymodal.types import Example, Paper

paper = Paper(
    slug="hybrid-captions",
    title="Revisit Large-Scale Image-Caption Data in Pre-training Multimodal Foundation Models",
    year=2024,
    arxiv="2410.02740",
    modalities=("image", "text"),
)
MAX_CHECKED = 20_000  # training rows whose formats are read before training

SyntheticFormat = Literal["ssc", "dsc", "dsc_plus", "afc"]


@dataclass(frozen=True)
class Recipe(clip.Recipe):
    synthetic_ratio: UnitInterval = 0.5
    """Probability of a synthetic caption; 0 is AltText alone. The best of CLIP is between 0.4 and 0.5."""
    synthetic_formats: tuple[SyntheticFormat, ...] = ("ssc",)
    """Formats of synthetic captions, each as frequent."""
    combination: Literal["sample", "concatenate"] = "sample"
    """Whether one caption is sampled, or AltText and a synthetic caption are one text, which the paper found no better.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if len({*self.synthetic_formats}) != len(self.synthetic_formats) or not self.synthetic_formats:
            raise UserError("--synthetic-formats names one format or more, each once.")
        if self.combination == "concatenate" and self.synthetic_ratio in (0, 1):
            raise UserError("AltText alone, or synthetic captions alone, cannot be concatenated; take another ratio.")

    @property
    def ratios(self) -> dict[str, float]:
        """The sampling probability of each format."""
        return mixing_ratios(self.synthetic_ratio, self.synthetic_formats)

    def columns(self) -> Declared:
        return {**super().columns(), "text": CaptionFormatsColumn(self.text, used=[*self.ratios])}

    def training_corpora(self, corpus: Corpus) -> list[Corpus]:
        """Raise UserError where a format is missing altogether, or examples have none of the formats."""
        if hasattr(corpus, "blocks"):  # shards that are read where they lie
            return [corpus]
        spoken = formats_of_rows(corpus, corpus.sample("train", MAX_CHECKED))
        missing = [name for name in self.ratios if not any(name in formats for formats in spoken)]
        if missing and len(spoken):
            message = (
                f"The corpus '{corpus.name}' has no captions of the format {missing[0]}; give them a column of this "
                "name or a language such as en-x-ssc (see curation), or choose others by --synthetic-ratio and "
                f"--synthetic-formats.{corpus.hint}"
            )
            raise MissingModality(message, f"captions of the format {missing[0]}")
        without = sum(bool(formats) and not {*self.ratios} & formats for formats in spoken)
        if without:
            raise UserError(
                f"{without} of {len(spoken)} training examples have no caption of {' or '.join(self.ratios)}; leave "
                f"these out, or choose other formats.{corpus.hint}"
            )
        return [corpus]

    def sample_captions(self, examples: list[Example], text: TextColumn, example_rng: ExampleRNG) -> list[str]:
        """One caption of each, of a format that the ratios sample."""
        concatenate = self.combination == "concatenate"
        return super().sample_captions(
            sample_formats(examples, self.ratios, example_rng, concatenate), text, example_rng
        )

    @classmethod
    def paper(cls) -> Recipe:
        """ViT-B/16 with texts of 77 tokens. Optimizer and batch are those of CLIP, which the paper's may not be."""
        return cls(**vars(clip.Recipe.paper()) | clip_sizes("ViT-B/16")._asdict())
