"""ALPRO: video-text pre-training with contrastive alignment before fusion and prompting entity modeling.

The first model, the prompter, learns from pairs of videos and texts alone. Then it is frozen, and says of a crop how
likely it shows each of many things ("a video of a dog"). The method itself sees the whole video, fused with its text,
and must say the same of the crop's place (prompting entity modelling), beside telling pairs before fusion, telling
them after it, and naming hidden words (section 3). No detector is needed, and any noun can be a thing.

Terms: VTC = losses.itc, VTM = losses.itm, MLM = losses.mlm, PEM (prompting entity modeling) = losses.pem.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NotRequired, TypedDict

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import AtLeastTwo, NonNegativeInt, PositiveInt, UnitInterval, UnitRange
from polymodal.corpora._wordnet import wordnet
from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.column import MAX_ROWS
from polymodal.data.columns.questions import UNKNOWN_ANSWER, AnswersColumn
from polymodal.data.columns.regions import EntityRegionsColumn
from polymodal.data.columns.text import TextColumn
from polymodal.data.columns.video import SingleFrameColumn, VideoColumn
from polymodal.data.instructions import choice
from polymodal.data.masks import mask_spans
from polymodal.data.processor import Declared, Processor, SharedColumn, Sparse
from polymodal.encoders.text import TextEncoderConfig
from polymodal.encoders.video import VideoEncoderConfig
from polymodal.errors import UserError
from polymodal.layers.logit_scale import LogitScale
from polymodal.layers.masked_lm_head import MaskedLMHead
from polymodal.layers.transformer import Packing, Transformer
from polymodal.modalities import Image, Text, Video
from polymodal.modalities.boxes import boxes_to_patch_mask, random_boxes
from polymodal.modalities.image_augmentation import ImageAugmentation, may_flip
from polymodal.modalities.text import Tokens, text_ids
from polymodal.objectives.contrastive import info_nce
from polymodal.objectives.image_text_matching import itm_loss, sample_itm_pairs
from polymodal.objectives.masked_modeling import masked_cross_entropy, masked_lm_loss
from polymodal.objectives.reduction import global_mean
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
)

VIDEO, STILL = ("video", "clip", "footage", "recording"), ("photo", "picture", "rendering", "painting")
PROMPTS = tuple(
    tuple(f"{article} {kind} of a {{}}" for article in ("a", "the", "one") for kind in kinds)
    for kinds in (VIDEO, STILL)
)


def pem_loss(
    logits: Float[Tensor, "batch entities"], pseudo_labels: Float[Tensor, "batch entities"], threshold: float
) -> Float[Tensor, ""]:
    """Cross-entropy with soft labels, over the examples whose likeliest entity has at least probability `threshold`.

    The paper's rule; the released code compares the entity's number with it instead. 0 where no example is sure.
    """
    sure = pseudo_labels.amax(1) >= threshold
    each = -(pseudo_labels * logits.log_softmax(1)).sum(1)
    return global_mean((each * sure).sum(), sure.sum())


def _no_entities(corpus: Corpus) -> list[str]:
    return []


def frequent_things(corpus: Corpus, most: int) -> list[str]:
    """The nouns for things that texts of the training split have most often, one word each.

    Raises UserError where there are fewer than two, as without English texts.
    """
    column, lexicon = corpus.column_with(Text), wordnet("alpro")
    modality: Any = corpus.columns[column]
    counts: Counter[str] = Counter()
    for raw in corpus.raw_values(corpus.sample("train", MAX_ROWS), column):
        for caption in modality.in_main_language(modality.decode(raw)):
            counts.update(re.findall(r"[^\W\d_]+", caption.text.lower()))
    things = [word for word, _ in counts.most_common() if lexicon.is_mostly_thing(word)][:most]
    if len(things) < 2:
        raise UserError(f"Texts of '{corpus.name}' name no things in English; take --no-use-pem.")
    return things


class VideoTextBatch(TypedDict):
    """group: id of each text (`text_ids`); equal texts are no negatives of each other."""

    video: Float[Tensor, "batch frames 3 size size"]
    text: Tokens
    group: Float[Tensor, " batch"]


class VideoMLMBatch(VideoTextBatch):
    """masked_tokens: True for tokens of MLM. box: the crop of PEM, as fractions of the frame."""

    masked_tokens: Bool[Tensor, "batch length"]
    box: Float[Tensor, "batch 4"]


class FinetuneBatch(VideoTextBatch):
    """answer: class of the answer to the question; both where the corpus has questions."""

    question: NotRequired[Tokens]
    answer: NotRequired[Int[Tensor, " batch"]]


class Towers(nn.Module):
    """A video tower and a text tower with projections into one space."""

    def __init__(self, recipe: Recipe, vocabulary: int):
        super().__init__()
        width = recipe.video.width
        self.video_encoder = recipe.video.build()
        self.text_encoder = recipe.text.build(vocabulary)
        self.video_projection = nn.Linear(width, recipe.embed_dim)
        self.text_projection = nn.Linear(width, recipe.embed_dim)
        self.logit_scale = LogitScale(max=1 / 0.001, min=1 / 0.5)  # temperatures of the released code

    def encode_video(
        self, video: Float[Tensor, "batch frames 3 size size"]
    ) -> tuple[Float[Tensor, "batch patches width"], Float[Tensor, "batch dim"]]:
        """Patches of one frame, which are means over all, and L2-normalised vectors."""
        tokens, pooled = self.video_encoder(video)
        patches = tokens.unflatten(1, (video.shape[1], -1)).mean(1)
        return patches, F.normalize(self.video_projection(pooled), dim=-1)

    def encode_text(self, text: Tokens) -> tuple[Float[Tensor, "batch length width"], Float[Tensor, "batch dim"]]:
        """Words with their padding, and L2-normalised vectors."""
        packed, packing, pooled = self.text_encoder(text)
        return packing.pad(packed), F.normalize(self.text_projection(pooled), dim=-1)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """L2-normalised vectors of the modalities that the batch has."""
        shown = {name: value for name, value in batch.items() if name in ("video", "image")}
        vectors = {name: self.encode_video(value)[1] for name, value in shown.items()}
        return vectors | ({"text": self.encode_text(batch["text"])[1]} if "text" in batch else {})


class Prompter(Towers):
    """The first model: towers, and the vectors of what things are called, made once they have learned."""

    bank: Tensor
    made: Tensor

    def __init__(self, recipe: Recipe, vocabulary: int, prompts: Sequence[Sequence[Tokens]]):
        """prompts: for clips and for stills, the texts of each entity."""
        super().__init__(recipe, vocabulary)
        self.prompts = prompts
        self.register_buffer("bank", torch.zeros(len(prompts), len(prompts[0]), recipe.embed_dim))
        self.register_buffer("made", torch.tensor(False))

    @torch.no_grad()
    def entity_probabilities(self, video: Float[Tensor, "batch frames 3 size size"]) -> Float[Tensor, "batch entities"]:
        """How likely each entity is what is seen; by the prompts of stills for clips of one frame. Rows sum to 1."""
        self.eval()
        if not self.made:
            for bank, prompts in zip(self.bank, self.prompts, strict=True):
                vectors = [self.encode_text(own.to(bank.device))[1].mean(0) for own in prompts]
                bank.copy_(torch.stack(vectors))  # not normalised again
            self.made.fill_(True)
        return (self.logit_scale() * self.encode_video(video)[1] @ self.bank[int(video.shape[1] == 1)].T).softmax(1)


class ALPRO(Towers):
    """Towers, their fusion in one sequence of words and patches, the heads, and the frozen prompter."""

    def __init__(self, recipe: Recipe, vocabulary: int, prompts: Sequence[Sequence[Tokens]], num_answers: int):
        """prompts: for clips and for stills, the texts of each entity; none without entities."""
        super().__init__(recipe, vocabulary + 1)  # the last word stands for hidden ones
        width = recipe.video.width
        self.recipe = recipe
        self.hidden_word = vocabulary
        self.fusion = Transformer(width, recipe.fusion_depth, recipe.text.num_heads)
        self.fusion_norm = nn.LayerNorm(width)
        self.match_head = nn.Linear(width, 2)
        self.mlm_head = MaskedLMHead(width, vocabulary)
        if prompts:
            self.prompter = Prompter(recipe, vocabulary, prompts)
            self.entity_head = _mlp(width, len(prompts[0]))
        if num_answers:
            self.answer_head = _mlp(width, num_answers)

    def fuse(
        self,
        words: Float[Tensor, "batch length width"],
        mask: Bool[Tensor, "batch length"],
        patches: Float[Tensor, "batch patches width"],
    ) -> tuple[Float[Tensor, "batch length width"], Float[Tensor, "batch patches width"]]:
        """Words and patches after they have read each other. mask: False for padding."""
        whole = Packing.of(torch.cat([mask, mask.new_ones(patches.shape[:2])], dim=1))
        packed = self.fusion(whole.pack(torch.cat([words, patches], dim=1)), whole)
        fused = whole.pad(self.fusion_norm(packed))
        return fused[:, : words.shape[1]], fused[:, words.shape[1] :]

    @whole_batch
    def prompter_losses(self, batch: VideoTextBatch) -> dict[str, Tensor]:
        """Of the prompter alone."""
        self.prompter.train(self.training)
        vectors = self.prompter.embed(batch)
        return {
            "prompter": info_nce(vectors["video"], vectors["text"], self.prompter.logit_scale(), labels=batch["group"])
        }

    @whole_batch
    def losses(self, batch: VideoMLMBatch) -> dict[str, Tensor]:
        """Of pre-training: which belong together (before fusion and after it), hidden words, and entities in crops."""
        text, video = batch["text"], batch["video"]
        losses, patches, fused = self._paired_losses(batch, self.recipe.use_itc)
        shown = Tokens(text.ids.masked_fill(batch["masked_tokens"], self.hidden_word), text.lengths)
        words, _ = self.fuse(self.encode_text(shown)[0], text.mask, patches)
        embedding = self.text_encoder.get_parameter("embedding.weight")
        losses["mlm"] = masked_lm_loss(self.mlm_head, words, embedding, text.ids, batch["masked_tokens"])
        if self.recipe.use_pem:
            inside = boxes_to_patch_mask(batch["box"], self.recipe.video.grid)
            taught = self.prompter.entity_probabilities(self._cropped(video, inside))
            mean = (fused * inside[..., None]).sum(1) / inside.sum(1, keepdim=True)
            losses["pem"] = pem_loss(self.entity_head(mean), taught, self.recipe.pseudo_label_threshold)
        return losses

    @whole_batch
    def finetuning_losses(self, batch: FinetuneBatch) -> dict[str, Tensor]:
        """Of retrieval, and of answers where the corpus has questions."""
        losses, patches, _ = self._paired_losses(batch, use_itc=True)
        if "question" in batch:
            asked = batch["question"]
            words, _ = self.fuse(self.encode_text(asked)[0], asked.mask, patches)
            known = batch["answer"] != UNKNOWN_ANSWER
            losses["vqa"] = masked_cross_entropy(self.answer_head(words[known, 0]), batch["answer"][known])
        return losses

    def _paired_losses(
        self, batch: VideoTextBatch, use_itc: bool
    ) -> tuple[dict[str, Tensor], Float[Tensor, "batch patches width"], Float[Tensor, "batch patches width"]]:
        """Which belong together, told before fusion and after it; patches before, and after with their own text.

        What is alike before fusion is the harder negative after it; without contrast, negatives are at random.
        """
        text, group = batch["text"], batch["group"]
        (patches, seen), (words, read) = self.encode_video(batch["video"]), self.encode_text(text)
        similarity = (self.logit_scale() * seen @ read.T).detach() * float(use_itc)
        losses = {"itc": info_nce(seen, read, self.logit_scale(), labels=group)} if use_itc else {}
        pairs = sample_itm_pairs(similarity, group)
        fused_words, fused = self.fuse(words[pairs.text], text.mask[pairs.text], patches[pairs.image])
        losses["itm"] = itm_loss(self.match_head(fused_words[:, 0]), pairs)
        return losses, patches, fused[: len(words)]

    def _cropped(
        self, video: Float[Tensor, "batch frames 3 size size"], inside: Bool[Tensor, "batch patches"]
    ) -> Float[Tensor, "batch frames 3 size size"]:
        """Pixels keep their place, and are zero outside some patches."""
        grid, patch = self.recipe.video.grid, self.recipe.video.patch_size
        kept = inside.unflatten(1, (grid, grid)).repeat_interleave(patch, 1).repeat_interleave(patch, 2)
        return video * kept[:, None, None]

    def itm_logits(self, batch: Batch) -> Float[Tensor, "items texts"]:
        """The logit that each text belongs to each clip or image, told after fusion."""
        patches, _ = self.encode_video(_shown(batch))
        words, _ = self.encode_text(batch["text"])
        rows = []
        for own in patches:
            fused, _ = self.fuse(words, batch["text"].mask, own.expand(len(words), -1, -1))
            no, yes = self.match_head(fused[:, 0]).unbind(1)
            rows.append(yes - no)
        return torch.stack(rows)

    def answer_logits(self, batch: Batch) -> Float[Tensor, "batch answers"]:
        """Logits of the known answers to one question about each clip or image."""
        words, _ = self.fuse(
            self.encode_text(batch["question"])[0], batch["question"].mask, self.encode_video(_shown(batch))[0]
        )
        return self.answer_head(words[:, 0])

    def classify_regions(self, batch: Batch) -> Float[Tensor, "batch entities"]:
        """How likely each entity is what a box holds; that is what the prompter teaches."""
        inside = boxes_to_patch_mask(batch["box"], self.recipe.video.grid)
        return self.prompter.entity_probabilities(self._cropped(_shown(batch), inside))


def _mlp(width: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, classes))


def _shown(batch: Batch) -> Float[Tensor, "batch frames 3 size size"]:
    return batch["video"] if "video" in batch else batch["image"]


@dataclass(frozen=True)
class Recipe(TrainingRecipe):
    batch_size: AtLeastTwo = 48
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1.5e-3)
    video: VideoEncoderConfig = VideoEncoderConfig(frames=3, image_size=48)
    text: TextEncoderConfig = TextEncoderConfig(vocab_size=2000, context_length=48, depth=1, pool_type="cls")
    fusion_depth: NonNegativeInt = 2
    """Blocks in which words and patches read each other."""
    embed_dim: PositiveInt = 64
    """Dimensions in which videos and texts are contrasted."""
    use_itc: bool = True
    """Whether pairs are told before fusion in pre-training, too, which also finds harder negatives."""
    use_pem: bool = True
    """Whether crops are named as the prompter names them; needs an English corpus and WordNet (11 MB, once)."""
    num_entities: PositiveInt = 1000
    """Things that a crop may show: the most frequent nouns of the texts."""
    crop_scale: UnitRange = (0.3, 0.5)
    """Smallest and largest share of a frame that a crop has."""
    pseudo_label_threshold: UnitInterval = 0.2
    """Crops are left out when the prompter gives no thing at least this probability."""
    mlm_probability: UnitInterval = 0.4
    """Share of a text's tokens that are hidden and named; 0.15 in the paper, whose texts are longer."""
    prompter_fraction: UnitInterval = 0.35
    """Share of the budget that trains the prompter first, when crops are named."""
    finetune_fraction: UnitInterval = 0.25
    """Share of the budget at the end that learns retrieval (contrast and matching) and answers; 0 pre-trains only."""
    num_answers: PositiveInt = 1500
    """Answers that can be given: the most frequent ones of the training questions."""
    augmentation: ImageAugmentation = ImageAugmentation(scale=(0.6, 1.0), hflip_prob=0.5)

    def __post_init__(self) -> None:
        if self.video.width != self.text.width:
            raise UserError("Words and patches are fused: --video.width and --text.width are the same.")
        if type(self.text) is not TextEncoderConfig:
            raise UserError("alpro names hidden words, which pretrained text towers have no place for here.")

    def stages(self) -> tuple[Stage, ...]:
        first = self.prompter_fraction * self.use_pem
        return (
            Stage("prompter", first, ("prompter.*",), batch="paired_batch", losses="prompter_losses"),
            Stage("pre-training", 1 - first - self.finetune_fraction, OWN),
            Stage("fine-tuning", self.finetune_fraction, OWN, batch="finetuning_batch", losses="finetuning_losses"),
        )

    def columns(self) -> Declared:
        entities = partial(frequent_things, most=self.num_entities) if self.use_pem else _no_entities
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
        """Raise UserError: the corpus has neither clips nor images."""
        if not corpus.has_modality(Video):
            corpus.column_with(Image)
        return [corpus]

    def build(self, processor: Processor) -> ALPRO:
        prompts = [
            [processor.text([prompt.format(entity) for prompt in kind]) for entity in processor.entities]
            for kind in PROMPTS
            if processor.entities
        ]
        return ALPRO(self, processor.tokenizer.vocab_size, prompts, len(processor.answers))

    def paired_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> VideoTextBatch:
        """Some frames of each clip, changed alike, one of its texts, and which texts are the same."""
        clips = [example["video"] if "video" in example else example["image"][None] for example in examples]
        flip = may_flip([example["text"] for example in examples])
        video = processor.video.changed(clips, self.augmentation, example_rng, flip)
        texts = [
            processor.text.sample_caption(e["text"], rng)
            for e, rng in zip(examples, example_rng.generators, strict=True)
        ]
        return {"video": video, "text": processor.text(texts), "group": text_ids(texts)}

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> VideoMLMBatch:
        """Pairs, the tokens that are hidden, and a box of each clip."""
        batch = self.paired_batch(examples, processor, example_rng)
        lengths = (batch["text"].lengths - 2).tolist()
        hidden = mask_spans(lengths, self.mlm_probability, example_rng, mean_length=1.0)
        box = random_boxes(self.video.grid, self.crop_scale, example_rng)
        return {**batch, "masked_tokens": F.pad(hidden, (1, 1)), "box": box}

    def finetuning_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> FinetuneBatch:
        """Pairs, and a question about each clip with the number of its answer, where the corpus has questions."""
        batch = self.paired_batch(examples, processor, example_rng)
        if not processor.answers:
            return {**batch}
        asked = [choice(e["questions"], rng) for e, rng in zip(examples, example_rng.generators, strict=True)]
        questions, answers = [one.question for one in asked], [one.answer for one in asked]
        return {**batch, "question": processor.text(questions), "answer": processor.questions(answers)}

    @classmethod
    def tiny(cls) -> Recipe:
        """Return the smallest preset, for tests."""
        return cls(
            video=VideoEncoderConfig(frames=2, patch_size=16, width=16, depth=1, num_heads=2),
            text=TextEncoderConfig(300, context_length=24, width=16, depth=1, num_heads=2, pool_type="cls"),
            fusion_depth=1,
            embed_dim=16,
            use_pem=False,
            num_answers=16,
            batch_size=4,
        )

    @classmethod
    def paper(cls) -> Recipe:
        """TimeSformer-B/16 and BERT-base cut in half (section 4.1, released configuration)."""
        return cls(
            video=VideoEncoderConfig(
                frames=4,
                image_size=224,
                patch_size=16,
                width=768,
                depth=12,
                num_heads=12,
                attention="divided",
                pool_type="cls",
            ),
            text=TextEncoderConfig(30_522, context_length=30, width=768, depth=6, num_heads=12, pool_type="cls"),
            fusion_depth=6,
            mlm_probability=0.15,
            embed_dim=256,
            batch_size=256,
            optimizer=OptimizerConfig(
                learning_rate=1e-4,
                weight_decay=1e-3,
                betas=(0.9, 0.98),
                warmup_ratio=0.05,
                lr_scheduler="wsd",
                cooldown_ratio=0.95,
                max_grad_norm=20.0,
            ),
            augmentation=ImageAugmentation(scale=(0.2, 1.0), hflip_prob=0.5, color_jitter_prob=0.5),
        )


OWN = ("video_*", "text_*", "logit_scale.*", "fusion*", "match_head.*", "mlm_head.*", "entity_head.*", "answer_head.*")
