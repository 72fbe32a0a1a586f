"""Abn-BLIP: a Q-Former with a query of its own for each abnormality that a report may mention.

Every query reads tokens of five scales of a volume and has to match the sentence about its abnormality, and to write
it; a classifier predicts presence. Contrast is made abnormality by abnormality, with soft targets from the predicted
presence, so that two normal studies are not pushed apart. The sentences are assembled to a report by region.

Terms: ITC = losses.itc, LM = losses.lm, classification loss = losses.cls, abnormality-wise contrast =
objectives.query_contrastive.attribute_contrastive_loss, presence-soft targets =
objectives.query_contrastive.presence_targets, multi-scale tokens = layers.multi_scale_tokens, balanced sampling =
data.columns.findings.sample_captions, template negatives = data.reports.TEMPLATES, report assembly =
data.reports.assemble, frozen vision = Recipe.stages.

Differs from the paper in: the classifier of the first stage, trained by cross-entropy, goes on in the second (the
released code has a new one, and not how the encoder was trained); features are not exported; weights begin at random
(Q-Former: variance 1 / width), not with BERT base and ResNet-152; six templates of absence; no minimum length of beams;
a region's paragraph is its sentences, unless `assemble` is given a model that rewrites them; no rotations by default.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import PositiveFloat, PositiveInt, UnitInterval
from polymodal.data.columns.findings import FindingsColumn, sample_captions
from polymodal.data.columns.text import LearnedTokenizer
from polymodal.data.columns.volume import VolumeAugmentation, VolumeColumn
from polymodal.data.processor import Declared, Processor
from polymodal.encoders.volume_resnet import Maps, VolumeResNet, VolumeResNetConfig
from polymodal.errors import UserError
from polymodal.layers.decoding import Decoding
from polymodal.layers.multi_scale_tokens import MultiScaleTokens, MultiScaleTokensConfig
from polymodal.layers.qformer import QFormerConfig
from polymodal.modalities.text import Tokens, text_ids
from polymodal.models.qformer_pretraining import QFormerPretraining
from polymodal.objectives.query_contrastive import attribute_contrastive_loss, query_contrastive_loss
from polymodal.rng import ExampleRNG
from polymodal.training.grad_cache import whole_batch
from polymodal.training.optimizer import OptimizerConfig
from polymodal.training.recipe import TrainingRecipe
from polymodal.types import Batch, Example, Paper, Stage

paper = Paper(
    slug="abn-blip",
    title="Abn-BLIP: Abnormality-aligned Bootstrapping Language-Image Pre-training for Pulmonary Embolism Diagnosis "
    "and Report Generation from CTPA",
    year=2025,
    arxiv="2503.02034",
    modalities=("volume", "findings"),
    code="zzs95/abn-blip@fe494a28e0c1ea5fccf821099f6daac743bac027",
    parameters={"* !image_encoder.*": 251_614_876},  # of the released model, which reads exported features
)


Logits = Float[Tensor, "batch findings"]
States = Float[Tensor, "batch findings width"]


class StudyBatch(TypedDict):
    volume: Float[Tensor, "batch contrasts deep high wide"]
    labels: Float[Tensor, "batch findings"]


class SentenceBatch(StudyBatch):
    """text: a sentence of each finding, study by study. captioned: the rows of `text` that are written (LM)."""

    text: Tokens
    captioned: Int[Tensor, " captions"]


class ReportBatch(StudyBatch):
    """text: whole reports. group: equal for equal reports."""

    text: Tokens
    group: Float[Tensor, " batch"]


class AbnBLIP(QFormerPretraining):
    def __init__(self, recipe: Recipe, findings: FindingsColumn, num_contrasts: int):
        count, volume = len(findings.names), recipe.volume
        qformer = replace(recipe.qformer, num_queries=count, media_width=recipe.tokens.width)
        super().__init__(qformer, recipe.embed_dim, findings, with_itm=False)
        self.recipe = recipe
        self.image_encoder = VolumeResNet(volume, num_contrasts)
        self.classifier = nn.Linear(volume.channels[-1], count)
        self.multi_scale_tokens = MultiScaleTokens(recipe.tokens, volume.channels, volume.last_size)
        self.presence_token = nn.Linear(count, recipe.tokens.width)

    def encode_volume(self, volume: Float[Tensor, "batch _ _ _ _"]) -> tuple[list[Maps], Logits]:
        """Return the five feature maps, and logits of presence: a linear layer of the pooled last map."""
        maps = self.image_encoder(volume)
        return maps, self.classifier(maps[-1].mean((2, 3, 4)))

    def encode_queries(self, maps: list[Maps], presence: Logits) -> tuple[States, list[States]]:
        """Return states of the queries and their prefix; the image is a token of presence, then those of all scales."""
        media = torch.cat([self.presence_token(presence)[:, None], self.multi_scale_tokens(maps)], dim=1)
        return self.qformer.encode_queries(media, separate=self.recipe.alignment == "abnormality")

    @whole_batch
    def classification_losses(self, batch: StudyBatch) -> dict[str, Tensor]:
        """cls: binary cross-entropy of presence; batch norm looks at the whole batch."""
        return {"cls": F.binary_cross_entropy_with_logits(self.finding_logits(dict(batch)), batch["labels"])}

    @whole_batch
    def losses(self, batch: SentenceBatch) -> dict[str, Tensor]:
        """cls, itc and lm, of weight 1 each; itc and lm of each finding's own query and sentence."""
        maps, logits = self.encode_volume(batch["volume"])
        presence, text, rows = logits.sigmoid(), batch["text"], batch["captioned"]
        states, prefix = self.encode_queries(maps, presence)
        sentences = self.encode_text(text).unflatten(0, states.shape[:2])  # study by study, as the queries
        image, target_temperature = self.project_queries(states), self.recipe.target_temperature
        targets = presence.detach() if self.recipe.detach_targets else presence
        of_rows = [one.flatten(0, 1)[rows, None] for one in prefix]
        return {
            "cls": F.binary_cross_entropy_with_logits(logits, batch["labels"]),
            "itc": attribute_contrastive_loss(image, sentences, self.temperature, targets, target_temperature),
            "lm": self.lm_loss(of_rows, Tokens(text.ids[rows], text.lengths[rows], text.special_tokens)),
        }

    @whole_batch
    def report_losses(self, batch: ReportBatch) -> dict[str, Tensor]:
        """cls, itc and lm of BLIP-2: image and report by the most similar query, and the report by all queries."""
        maps, logits = self.encode_volume(batch["volume"])
        states, prefix = self.encode_queries(maps, logits.sigmoid())
        image, report = self.project_queries(states), self.encode_text(batch["text"])
        return {
            "cls": F.binary_cross_entropy_with_logits(logits, batch["labels"]),
            "itc": query_contrastive_loss(image, report, self.temperature, labels=batch["group"]),
            "lm": self.lm_loss(prefix, batch["text"]),
        }

    def finding_logits(self, batch: Batch) -> Logits:
        """Return logits of presence by the classifier."""
        return self.encode_volume(batch["volume"])[1]

    def write_findings(self, batch: Batch) -> list[list[list[int]]]:
        """Return token ids of what is written about each volume: a sentence of each finding, or one report."""
        maps, logits = self.encode_volume(batch["volume"])
        _, prefix = self.encode_queries(maps, logits.sigmoid())
        if self.recipe.alignment == "abnormality":
            prefix = [states.flatten(0, 1)[:, None] for states in prefix]
        texts = self.write(prefix, Decoding(self.recipe.max_new_tokens, num_beams=self.recipe.num_beams))
        each = len(texts) // len(logits)
        return [texts[start : start + each] for start in range(0, len(texts), each)]


@dataclass(frozen=True)
class Recipe(TrainingRecipe):
    volume: VolumeResNetConfig = VolumeResNetConfig()
    tokens: MultiScaleTokensConfig = MultiScaleTokensConfig()
    qformer: QFormerConfig = QFormerConfig(depth=3, cross_attention_frequency=1, vocab_size=800, context_length=96)
    """The Q-Former; it has as many queries as there are findings, and image tokens of `tokens.width`."""
    embed_dim: PositiveInt = 64
    """Dimensions of the projections for ITC."""
    alignment: Literal["abnormality", "report"] = "abnormality"
    """abnormality: each finding has its own query, contrast and sentence; report: as many queries share one contrast of
    image and report, and write the whole report (BLIP-2)."""
    target_temperature: PositiveFloat = 1.0
    """Temperature of soft targets; at 1, as released, they are almost uniform whatever is present."""
    detach_targets: bool = False
    """Whether soft targets have no gradient, so that predicted presence cannot move to lower the contrastive loss."""
    captions_per_batch: PositiveInt = 96
    """Sentences of a batch of a process that are written, half of them of absent findings."""
    max_txt_len: PositiveInt = 96
    """Maximum length of texts in tokens, at most the positions of the Q-Former."""
    max_new_tokens: PositiveInt = 30
    """Maximum length in tokens of each text that is written; whole reports need more than sentences."""
    num_beams: PositiveInt = 1
    """Beams of generation."""
    classifier_fraction: UnitInterval = 0.4
    """Fraction of the budget for the encoder and the classifier; the encoder is frozen after it."""
    augmentation: VolumeAugmentation = VolumeAugmentation()
    batch_size: PositiveInt = 16
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-3, weight_decay=0.05)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.augmentation.rotate_prob and self.volume.image_size[0] != self.volume.image_size[1]:
            raise UserError("Rotations need two equal first sides of --volume.image-size; leave them out.")

    def stages(self) -> tuple[Stage, ...]:
        is_report = self.alignment == "report"
        more: dict[str, Any] = {"batch": "report_batch", "losses": "report_losses"} if is_report else {}
        return (
            Stage("classifier", self.classifier_fraction, ("image_encoder.*", "classifier.*"), batch="study_batch",
                  losses="classification_losses"),
            Stage("alignment", 1 - self.classifier_fraction, ("[!i]*",), **more),
        )  # fmt: skip

    def columns(self) -> Declared:
        texts = LearnedTokenizer(self.qformer.vocab_size, min(self.max_txt_len, self.qformer.context_length))
        return {"volume": VolumeColumn(self.volume.image_size), "findings": FindingsColumn(texts)}

    def build(self, processor: Processor) -> AbnBLIP:
        return AbnBLIP(self, processor.findings, len(processor.volume.contrasts))

    def study_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> StudyBatch:
        """Return augmented volumes and labels of presence."""
        volume = processor.volume.augmented([one["volume"] for one in examples], self.augmentation, example_rng)
        return {"volume": volume, "labels": processor.findings.labels([one["findings"] for one in examples])}

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> SentenceBatch:
        """Return also a sentence of each finding, and which of them are written."""
        batch = self.study_batch(examples, processor, example_rng)
        sentences = processor.findings.sentences([one["findings"] for one in examples], example_rng)
        present, rng = batch["labels"].flatten().bool().numpy(), example_rng.generators[0]
        captioned = sample_captions(present, self.captions_per_batch, rng)
        return {**batch, "text": processor.findings.tokenizer(sentences), "captioned": torch.from_numpy(captioned)}

    def report_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> ReportBatch:
        """Return also the whole reports."""
        reports = processor.findings.reports([one["findings"] for one in examples])
        batch = self.study_batch(examples, processor, example_rng)
        return {**batch, "text": processor.findings.tokenizer(reports), "group": text_ids(reports)}

    @classmethod
    def tiny(cls) -> Recipe:
        """Return the smallest preset, for tests."""
        return cls(
            volume=VolumeResNetConfig((16, 16, 16), width=4), tokens=MultiScaleTokensConfig(2, 8, 16, 8, 2),
            qformer=QFormerConfig(16, 2, 2, 32, vocab_size=400, context_length=32), embed_dim=16, captions_per_batch=8,
            max_txt_len=32, max_new_tokens=8, classifier_fraction=0.5, batch_size=4,
        )  # fmt: skip

    @classmethod
    def paper(cls) -> Recipe:
        """Return the values of blip2_qformer.py and pretrain_stage1.yaml (27 epochs with 5000 steps of warmup)."""
        return cls(
            volume=VolumeResNetConfig((224, 224, 160), 64, (3, 8, 36, 3), (7, 7, 3), (2, 2, 1)),
            tokens=MultiScaleTokensConfig(4, 512, 1408, 256, 32),
            qformer=QFormerConfig(768, 12, 12, 3072, vocab_size=30_522, context_length=512, dropout=0.1),
            embed_dim=256, captions_per_batch=300, max_txt_len=40, max_new_tokens=30, num_beams=3, batch_size=22,
            augmentation=VolumeAugmentation(rotate_prob=0.9),
            optimizer=OptimizerConfig(1e-5, 0.05, (0.9, 0.999), 1e-8, max_grad_norm=0.0),
        )  # fmt: skip
