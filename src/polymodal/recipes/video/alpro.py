"""ALPRO: video-text pre-training with contrastive alignment before fusion and prompting entity modeling.

A first model, the prompter, learns from pairs of videos and texts alone. Then it is frozen and labels random crops with
the entities of text prompts ("a video of a dog"). The method itself sees the whole video, fused with its text, and
predicts these pseudo-labels from the fused patches of the crop (prompting entity modeling), beside contrast before
fusion, matching after it, and masked language modeling (section 3). No detector is needed, and any noun can be an
entity.

Terms: VTC (video-text contrastive) = losses.itc, VTM (video-text matching) = losses.itm, MLM = losses.mlm, PEM
(prompting entity modeling) = losses.pem, prompter = ALPRO.prompter.

Differs from the paper in: encoders and fusion are pre-norm (BERT is post-norm) and start from random weights; stages
share one batch size, number of frames and gradient clipping (released: prompter 512 clips; fine-tuning 8 or 16 frames,
clipped at 5); color jitter in place of RandAugment, and random crops of clips as of images (released: a random square);
a frame of each of equal segments (released: half of the frames from each half of the clip); what surrounds the
prompter's crop is gray, not black; images are clips of one frame, not of repeated frames; one stage fine-tunes for
retrieval and answers; equal texts are positives of each other, and no negatives of VTM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from polymodal.constraints import AtLeastTwo, NonNegativeFloat, NonNegativeInt, PositiveInt, UnitInterval, UnitRange
from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.questions import AnswersColumn
from polymodal.data.columns.regions import EntityRegionsColumn
from polymodal.data.columns.text import TextColumn
from polymodal.data.columns.video import SingleFrameColumn, VideoColumn
from polymodal.data.entities import article_prompts, entity_prompts, frequent_nouns
from polymodal.data.masked_input import MaskedTexts, mask_texts
from polymodal.data.processor import Declared, Processor, SharedColumn, Sparse
from polymodal.data.video_text import FinetuneBatch, VideoTextBatch, check_pairs, sample_pairs, sample_questions
from polymodal.encoders.text import TextEncoderConfig
from polymodal.encoders.video import VideoEncoderConfig
from polymodal.errors import UserError
from polymodal.layers.projection_head import ProjectionHead
from polymodal.modalities.boxes import boxes_to_patch_mask, keep_patches, mean_over_patches, random_boxes
from polymodal.modalities.image_augmentation import ImageAugmentation
from polymodal.modalities.text import Tokens
from polymodal.models.align_before_fuse import AlignBeforeFuse, clips_of
from polymodal.models.prompted_classifier import PromptedClassifier
from polymodal.objectives.distillation import confident_cross_entropy
from polymodal.rng import ExampleRNG
from polymodal.training.grad_cache import whole_batch
from polymodal.training.optimizer import OptimizerConfig
from polymodal.training.recipe import TrainingRecipe
from polymodal.types import Batch, Example, Paper, Stage

paper = Paper(
    slug="alpro",
    title="Align and Prompt: Video-and-Language Pre-training with Entity Prompts",
    year=2021,
    arxiv="2112.09583",
    modalities=("video", "image", "text"),
    code="salesforce/ALPRO@4ff61636b0956ca0391b3d1df6d04db3d1a546b9",
    parameters={"video_encoder.*": 121.4e6},  # TimeSformer-B/16 of the released code without its classifier
)

METHOD = ("video_*", "text_*", "logit_scale.*", "fusion*", "itm_head.*", "mlm_head.*", "pem_head.*", "answer_head.*")


class VideoMLMBatch(VideoTextBatch, MaskedTexts):
    """box: PEM's crop, as fractions of the frame."""

    box: Float[Tensor, "batch 4"]


class ALPRO(AlignBeforeFuse):
    """Encoders, fusion and heads of the method, and the frozen prompter."""

    def __init__(self, recipe: Recipe, vocab_size: int, prompts: Sequence[Sequence[Tokens]], num_answers: int):
        """prompts: for clips and for images, the prompts of each entity; none without entities."""
        super().__init__(recipe.video, recipe.text, recipe.embed_dim, vocab_size, recipe.fusion_depth, num_answers)
        self.recipe, self.pseudo_label_threshold = recipe, recipe.pseudo_label_threshold
        if prompts:
            self.prompter = PromptedClassifier(recipe.video, recipe.text, recipe.embed_dim, vocab_size, prompts)
            width = recipe.text.width
            self.pem_head = ProjectionHead([width, 2 * width, len(prompts[0])], norm=None, bias=True)

    @whole_batch
    def prompter_losses(self, batch: VideoTextBatch) -> dict[str, Tensor]:
        """The prompter's VTC."""
        self.prompter.train(self.training)
        return {"prompter": self.prompter.contrast(batch)}

    finetuning_losses = whole_batch(AlignBeforeFuse.finetuning_losses)

    @whole_batch
    def losses(self, batch: VideoMLMBatch) -> dict[str, Tensor]:
        """VTC, VTM, MLM and PEM."""
        losses, visual, fused_visual = self.pair_losses(batch, self.recipe.use_itc)
        losses["mlm"] = self.mlm_loss(batch["mlm_text"], batch["text"], batch["masked_tokens"], visual)
        if self.recipe.use_pem:
            # The prompter sees the crop; the method predicts from the crop's patches after fusion of the whole video.
            crop = boxes_to_patch_mask(batch["box"], self.recipe.video.grid)
            pseudo_labels = self.prompter.probabilities(keep_patches(batch["video"], crop))
            logits = self.pem_head(mean_over_patches(fused_visual[:, 1:], crop))  # without the class token
            losses["pem"] = confident_cross_entropy(logits, pseudo_labels, self.pseudo_label_threshold)
        return losses

    def classify_regions(self, batch: Batch) -> Float[Tensor, "batch entities"]:
        """Return the prompter's pseudo-labels of the crop in a box of each clip or image."""
        crop = boxes_to_patch_mask(batch["box"], self.recipe.video.grid)
        return self.prompter.probabilities(keep_patches(clips_of(batch), crop))


@dataclass(frozen=True)
class Recipe(TrainingRecipe):
    batch_size: AtLeastTwo = 48
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1.5e-3)
    video: VideoEncoderConfig = VideoEncoderConfig(frames=3, image_size=48)
    text: TextEncoderConfig = TextEncoderConfig(vocab_size=2000, context_length=48, depth=1, pool_type="cls")
    fusion_depth: NonNegativeInt = 2
    """Number of blocks of the fusion transformer."""
    embed_dim: PositiveInt = 64
    """Dimensions in which videos and texts are contrasted."""
    use_itc: bool = True
    """Whether pre-training has VTC, by whose similarities VTM's negatives are sampled."""
    use_pem: bool = True
    """Whether pre-training has PEM; needs an English corpus and WordNet (11 MB, once)."""
    pem_weight: NonNegativeFloat = 1.0
    """Weight of PEM; 0 trains the prompter and pre-trains without it, in as many steps."""
    num_entities: PositiveInt = 1000
    """Number of entities: the most frequent nouns of the texts."""
    video_prompts: tuple[str, ...] = ("a {}",)
    """Prompts of an entity in a clip, whose embeddings are averaged; words that the corpus' texts have."""
    image_prompts: tuple[str, ...] = ("a {}",)
    """Prompts of an entity in an image."""
    crop_scale: UnitRange = (0.3, 0.5)
    """Minimum and maximum area of PEM's crop, as fractions of the frame."""
    pseudo_label_threshold: UnitInterval = 0.2
    """PEM leaves out crops in which the prompter gives no entity this probability (the paper's rule; the released code
    compares the entity's index with it)."""
    mlm_probability: UnitInterval = 0.4
    """Fraction of a text's tokens that MLM predicts; 0.15 in the paper, whose texts are longer."""
    prompter_fraction: UnitInterval = 0.35
    """Fraction of the budget that trains the prompter first, with PEM."""
    finetune_fraction: UnitInterval = 0.25
    """Fraction of the budget at the end that fine-tunes VTC, VTM and answers; 0 pre-trains only."""
    finetune_lr_scale: NonNegativeFloat = 1.0
    """Factor of the learning rate in fine-tuning."""
    num_answers: PositiveInt = 1500
    """Number of answers: the most frequent ones of the training questions."""
    augmentation: ImageAugmentation = ImageAugmentation(scale=(0.6, 1.0), hflip_prob=0.5)

    size_fields: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {"embed_dim": 128},
        "base": {"embed_dim": 256, "fusion_depth": 6},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.video.width != self.text.width:
            raise UserError("Words and patches are fused: --video.width and --text.width are the same.")
        if type(self.text) is not TextEncoderConfig:
            raise UserError("alpro names hidden words, which pretrained text towers have no place for here.")
        if not all("{}" in prompt for prompt in self.video_prompts + self.image_prompts):
            raise UserError("Every prompt has {} where the entity stands, such as 'a video of a {}'.")

    def stages(self) -> tuple[Stage, ...]:
        first, last = self.prompter_fraction * self.use_pem, self.finetune_fraction
        finetuning: dict[str, Any] = {"batch": "finetuning_batch", "losses": "finetuning_losses"}
        return (
            Stage("prompter", first, ("prompter.*",), batch="paired_batch", losses="prompter_losses"),
            Stage("pre-training", 1 - first - last, METHOD, loss_weights={"pem": self.pem_weight}),
            Stage("fine-tuning", last, METHOD, lr_scale=self.finetune_lr_scale, **finetuning),
        )

    def columns(self) -> Declared:
        entities = partial(frequent_nouns, max_nouns=self.num_entities if self.use_pem else 0)
        return {
            "video": Sparse(VideoColumn(self.video.frames, self.video.image_size)),
            "image": Sparse(SingleFrameColumn(self.video.image_size)),
            "text": Sparse(TextColumn(self.text)),
            "questions": Sparse(AnswersColumn(self.num_answers if self.finetune_fraction else 0)),
            "regions": Sparse(EntityRegionsColumn(entities)),
            "question": SharedColumn("text"),
            "answer": SharedColumn("questions"),
            "box": SharedColumn("regions"),
        }

    def training_corpora(self, corpus: Corpus) -> list[Corpus]:
        """Raise UserError: the corpus has neither clips nor images, or no texts."""
        check_pairs(corpus, "alpro")
        return [corpus]

    def build(self, processor: Processor) -> ALPRO:
        prompts = entity_prompts(processor, self.video_prompts, self.image_prompts)
        return ALPRO(self, processor.tokenizer.vocab_size, prompts, len(processor.answers))

    def paired_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> VideoTextBatch:
        """Frames of each clip, augmented alike, and one of its texts."""
        return sample_pairs(examples, processor, self.augmentation, example_rng)

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> VideoMLMBatch:
        """Pairs, masked texts (BERT's 80/10/10), and a crop of each clip."""
        batch, vocab_size = self.paired_batch(examples, processor, example_rng), processor.tokenizer.vocab_size
        masked = mask_texts(batch["text"], self.mlm_probability, vocab_size, example_rng, 1, vocab_size)
        return {**batch, **masked, "box": random_boxes(self.video.grid, self.crop_scale, example_rng)}

    def finetuning_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> FinetuneBatch:
        """Pairs, and a question about each clip with its answer, where the corpus has questions."""
        batch = self.paired_batch(examples, processor, example_rng)
        return {**batch, **sample_questions(examples, processor, example_rng)}

    @classmethod
    def tiny(cls) -> Recipe:
        return cls(
            batch_size=4,
            video=VideoEncoderConfig(2, 32, 16, 16, 1, 2),
            text=TextEncoderConfig(300, 24, 16, 1, 2, pool_type="cls"),
            fusion_depth=1,
            embed_dim=16,
            use_pem=False,
            num_answers=16,
        )

    @classmethod
    def paper(cls) -> Recipe:
        """TimeSformer-B/16 and BERT-base cut in half (section 4.1, released configuration)."""
        return cls(
            video=VideoEncoderConfig(4, 224, 16, 768, 12, 12, "divided", "cls", drop_path_rate=0.1),
            text=TextEncoderConfig(30_522, 30, 768, 6, 12, pool_type="cls", dropout=0.1),
            fusion_depth=6,
            mlm_probability=0.15,
            embed_dim=256,
            batch_size=256,
            finetune_lr_scale=0.25,
            optimizer=OptimizerConfig(1e-4, 1e-3, (0.9, 0.98), lr_scheduler="linear", max_grad_norm=20.0),
            augmentation=ImageAugmentation(scale=(0.2, 1.0), hflip_prob=0.5, color_jitter_prob=0.5),
            video_prompts=article_prompts("footage", "video", "portrait", "video footage"),
            image_prompts=article_prompts("photo", "picture", "good photo", "good picture"),
        )
