"""SimVG: the encoder itself fuses picture and words, with a token for the object that is meant; a head reads its box.

Patches, words and one object token go through one transformer, which has learned from captions before. Two branches
then find boxes: a decoder whose queries are made of the words, and a perceptron on the object token alone, which is
fast. They learn together; the surer the decoder is of boxes that are right, the more the token learns from it and the
less from the truth (dynamic weight-balance distillation, section 3.3).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.corpora.corpus import Corpus
from polymodal.data.instructions import one_of
from polymodal.data.masking import hidden_spans
from polymodal.data.referring import Referred, ReferringProcessor
from polymodal.draws import Draws
from polymodal.encoders.multiway import MultiwayEncoderConfig
from polymodal.errors import UserError
from polymodal.layers.detection import BoxHead, QueryDecoder, keep_signal
from polymodal.layers.positions import sine_positions, sine_positions_2d
from polymodal.layers.processes import gather
from polymodal.layers.word_head import WordHead
from polymodal.modalities.boxes import BoxSets, intersection_over_union, to_corners
from polymodal.modalities.padding import Padded
from polymodal.modalities.text import TextTokenizer, Tokenizer, Tokens
from polymodal.objectives.contrastive import info_nce
from polymodal.objectives.detection import OBJECT, detection_loss, match
from polymodal.objectives.masked import mean_cross_entropy
from polymodal.ranges import BelowOne, Count, NotNegative, Share
from polymodal.training.optimiser import Optimisation
from polymodal.types import Batch, Budget, Claim, Example, Paper, Stage

paper = Paper(
    slug="simvg",
    title="SimVG: A Simple Framework for Visual Grounding with Decoupled Multi-modal Fusion",
    year=2024,
    arxiv="2409.17531",
    modalities=("image", "text", "boxes"),
)

Found = tuple[Float[Tensor, "*shape 2"], Float[Tensor, "*shape 4"]]  # logits of object and none; centre, width, height


@torch.no_grad()
def taught(
    logits: Float[Tensor, "batch queries 2"], boxes: Float[Tensor, "batch queries 4"], targets: BoxSets
) -> tuple[BoxSets, Float[Tensor, ""]]:
    """The teacher's own boxes for the objects that there are, and how good they are: from 0 to 1 (section 3.3).

    How good: the mean over all objects of the batch that have a query of its score times the IoU of its box; 0 without
    any.
    """
    example, query, target = match(logits, boxes, targets)
    own = boxes[example, query]
    overlap, _ = intersection_over_union(to_corners(own), to_corners(targets.boxes[example, target]))
    good = overlap * logits.softmax(-1)[example, query, OBJECT]
    counts = torch.bincount(example, minlength=len(targets))
    taken = torch.zeros_like(targets.boxes)
    taken[example, torch.arange(len(example), device=example.device) - (counts.cumsum(0) - counts)[example]] = own
    total, pairs = gather(torch.stack([good.sum(), good.new_tensor(float(len(good)))])[None]).sum(0)
    return BoxSets(taken, counts), total / pairs.clamp(min=1)


class TextGuidedQueries(nn.Module):
    """Learned queries that read the words, plus the largest value of each channel over them (section 3.2)."""

    def __init__(self, dim: int, queries: int, heads: int, dropout: float = 0.1):
        super().__init__()
        self.learned = nn.Parameter(0.02 * torch.randn(queries, dim))
        self.decoder = QueryDecoder(dim, 2, heads, 2 * dim, dropout)

    def forward(
        self, words: Float[Tensor, "batch length dim"], mask: Bool[Tensor, "batch length"]
    ) -> Float[Tensor, "batch queries dim"]:
        """mask: False for padding."""
        most = words.masked_fill(~mask[..., None], -math.inf).amax(1, keepdim=True)
        places = sine_positions(words.shape[1], words.shape[2], words)
        learned = self.learned.expand(len(words), -1, -1)
        return self.decoder(learned, words, places, ~mask)[-1] + most + learned


class SimVG(nn.Module):
    """The encoder, what it learns from captions with, and the two branches."""

    places: Tensor

    def __init__(self, recipe: Recipe, vocabulary: int):
        super().__init__()
        width, dim = recipe.encoder.width, recipe.dim
        self.recipe = recipe
        self.queries = recipe.queries
        self.encoder = recipe.encoder.build(vocabulary)
        self.word_head = WordHead(width, vocabulary)
        self.image_projection = nn.Linear(width, dim, bias=False)
        self.text_projection = nn.Linear(width, dim, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.memory, self.words, self.object = (nn.Linear(width, dim) for _ in range(3))
        heads, hidden, dropout = recipe.decoder_heads, recipe.decoder_hidden, recipe.dropout
        self.guided = TextGuidedQueries(dim, recipe.queries, heads, dropout)
        self.decoder = QueryDecoder(dim, recipe.decoder_depth, heads, hidden, dropout)
        self.decoder_head = BoxHead(dim)
        self.token = nn.Sequential(nn.Linear(dim, dim), nn.ReLU())
        keep_signal(self.token)
        self.token_head = BoxHead(dim)
        self.register_buffer("places", sine_positions_2d(recipe.encoder.grid, dim, 2 * math.pi), persistent=False)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Of captions, whose words are hidden in part, or of the boxes that expressions mean."""
        if "hidden" in batch:
            return self._caption_losses(batch["image"], batch["text"], batch["asked"], batch["hidden"])
        targets, distillation = batch["expressions"], self.recipe.distillation
        o, memory = self.fused(batch["image"], batch["text"])
        found, box = self.token_head(self.token(o))
        truth = 2 * detection_loss(found, box, targets)
        if distillation == "none":
            return {"token": truth}
        logits, boxes = self.decoder_head(self.decoder(o, memory, self.places))
        teacher, quality = taught(logits[-1], boxes[-1], targets)
        weight = quality if distillation == "dynamic" else 0.5
        layers = zip(logits, boxes, strict=True)
        return {
            "decoder": torch.stack([detection_loss(*layer, targets=targets) for layer in layers]).sum(),
            "token": (1 - weight) * truth,
            "distillation": weight * detection_loss(found, box, teacher),
        }

    def fused(
        self, image: Float[Tensor, "batch 3 size size"], text: Tokens
    ) -> tuple[Float[Tensor, "batch queries dim"], Float[Tensor, "batch patches dim"]]:
        """Object queries, which hold the object token and the words, and the patches that the decoder reads."""
        token, patches, words = self.encoder(image, text, self.recipe.fusion == "encoder")
        return self.object(token)[:, None] + self.guided(self.words(words), text.mask), self.memory(patches)

    def locate(
        self, batch: Batch
    ) -> dict[str, tuple[Float[Tensor, "batch queries 4"], Float[Tensor, "batch queries"]]]:
        """Corners, and the probability that they are of an object, by both branches."""
        o, memory = self.fused(batch["image"], batch["text"])
        found: dict[str, Found] = {"token": self.token_head(self.token(o))}
        if self.recipe.distillation != "none":
            found["decoder"] = self.decoder_head(self.decoder(o, memory, self.places)[-1])
        return {
            branch: (to_corners(boxes).clamp(0, 1), logits.softmax(-1)[..., OBJECT])
            for branch, (logits, boxes) in found.items()
        }

    def _caption_losses(
        self,
        image: Float[Tensor, "batch 3 size size"],
        text: Tokens,
        asked: Bool[Tensor, "batch length"],
        hidden: Bool[Tensor, "batch length"],
    ) -> dict[str, Tensor]:
        """Whose caption is it, told without fusion; and what are the words asked for, told with it where there is any.

        hidden: those that are not in sight.
        """
        _, patches, read = self.encoder(image, text, joint=False)
        mean = Padded(read, text.lengths).mean()
        seen = self.image_projection(patches.mean(1))  # of patches, so that each of them tells what it shows
        pair = (F.normalize(seen, dim=-1), F.normalize(self.text_projection(mean), dim=-1))
        _, _, fused = self.encoder(image, text, self.recipe.fusion == "encoder", hidden)
        named = self.word_head(fused[asked], self.encoder.word.weight)
        return {
            "contrastive": info_nce(*pair, self.log_scale.exp().clamp(max=100.0)),
            "words": mean_cross_entropy(named, text.ids[asked]),
        }


@dataclass(frozen=True)
class Recipe(Optimisation):
    batch_size: Count = 64
    weight_decay: NotNegative = 0.0
    encoder: MultiwayEncoderConfig = MultiwayEncoderConfig()
    dim: Count = 64
    """Channels of the branches; a multiple of 4."""
    queries: Count = 1
    """Boxes an expression may have: 1 for a single object, more for several or none (generalised grounding)."""
    decoder_depth: Count = 3
    """Blocks of the decoder branch."""
    decoder_heads: Count = 4
    """Attention heads of the branches."""
    decoder_hidden: Count = 128
    """Channels of the perceptrons of the decoder branch."""
    dropout: BelowOne = 0.0
    """Of the branches."""
    fusion: Literal["encoder", "head"] = "encoder"
    """Where picture and words meet: in all blocks of the encoder, or only in the queries and the decoder."""
    distillation: Literal["dynamic", "fixed", "none"] = "dynamic"
    """What the token branch learns from: the truth and the decoder, weighted by the decoder's quality or half and half;
    or the truth alone, without a decoder."""
    hidden_words: Share = 0.5
    """Share of a caption's words that are asked for (BEiT-3, section 2.2)."""
    shown_words: Share = 0.2
    """Share of the words asked for that stay in sight, or what is read of such would be left to chance (BERT)."""
    contrastive: NotNegative = 0.1
    """Weight of telling whose caption it is, beside naming hidden words."""
    captions: Share = 0.4
    """Share of the budget that learns from captions."""
    encoder_rate: NotNegative = 1.0
    """Factor of the encoder's learning rate after captions; 0.1 in the paper, which begins with a published encoder."""
    decoder_first: Share = 0.0
    """Share of the budget that trains the decoder branch alone, before both learn (two-stage variant)."""

    def __post_init__(self) -> None:
        if self.distillation == "none" and self.decoder_first:
            raise UserError("--decoder-first asks for a decoder, and there is none with --distillation none.")
        if self.captions + self.decoder_first > 1:
            raise UserError("--captions and --decoder-first are shares of the budget, together at most 1.")

    def stages(self) -> tuple[Stage, ...]:
        alone, slower = {"token": 0.0, "distillation": 0.0}, {"encoder.*": self.encoder_rate}
        stages = (
            Stage(
                "captions",
                self.captions,
                loss_weights={"contrastive": self.contrastive},
                training_batch=self.caption_batch,
            ),
            Stage("decoder", self.decoder_first, loss_weights=alone, learning_rates=slower),
            Stage("grounding", 1 - self.captions - self.decoder_first, learning_rates=slower),
        )
        return tuple(stage for stage in stages if stage.share > 0)

    def processor(self, corpus: Corpus) -> ReferringProcessor:
        return ReferringProcessor.fit(corpus, self.encoder.size, self._learn_words)

    def _learn_words(self, texts: Iterable[str]) -> Tokenizer:
        return TextTokenizer.train(texts, self.encoder.vocabulary, self.encoder.context)

    def load_processor(self, directory: Path) -> ReferringProcessor:
        return ReferringProcessor.load(directory, TextTokenizer.load(directory, self.encoder.context))

    def build(self, processor: ReferringProcessor) -> SimVG:
        return SimVG(self, processor.text.tokenizer.vocabulary)

    def caption_batch(self, examples: list[Example], processor: ReferringProcessor, draws: Draws) -> Batch:
        """Pictures, captions, which tokens are asked for, and which of them are hidden."""
        captions = [processor.text.draw(e["text"], rng) for e, rng in zip(examples, draws.generators, strict=True)]
        batch = processor(image=[example["image"] for example in examples], text=captions)
        lengths = (batch["text"].lengths - 2).tolist()
        asked = hidden_spans(lengths, self.hidden_words, draws, mean_span=1.0)
        shown = np.stack([rng.random(asked.shape[1]) for rng in draws.generators]) < self.shown_words
        hidden = asked & ~torch.from_numpy(shown)
        return batch | {"asked": F.pad(asked, (1, 1)), "hidden": F.pad(hidden, (1, 1))}

    def training_batch(self, examples: list[Example], processor: ReferringProcessor, draws: Draws) -> Batch:
        """Pictures, an expression about each, and the boxes that it means."""
        chosen = [self._drawn(e["expressions"], rng) for e, rng in zip(examples, draws.generators, strict=True)]
        pictures, texts = [example["image"] for example in examples], [one.text for one in chosen]
        return processor(image=pictures, text=texts, expressions=[one.boxes for one in chosen])

    def _drawn(self, expressions: list[Referred], rng: np.random.Generator) -> Referred:
        """Of a single object where only one can be found."""
        fitting = [one for one in expressions if self.queries > 1 or len(one.boxes) == 1] or expressions
        return one_of(fitting, rng)

    @classmethod
    def paper(cls) -> Recipe:
        """ViT-B/32 on the RefCOCO family (released configuration); Adam's amsgrad and the steps down are left out."""
        return cls(
            encoder=MultiwayEncoderConfig(
                size=640, patch=32, vocabulary=64_010, context=20, width=768, depth=12, heads=12, drop_path=0.1
            ),
            dim=256,
            encoder_rate=0.1,
            decoder_heads=8,
            decoder_hidden=2048,
            dropout=0.1,
            batch_size=32,
            learning_rate=5e-4,
            betas=(0.9, 0.98),
            warmup=0.1,
            clip_norm=0.15,
        )


_base = Recipe()
claim = Claim(
    sentence="Fusing picture and words in the encoder finds what is meant better than fusing them in the head.",
    baseline=dataclasses.replace(_base, fusion="head"),
    treatment=_base,
    further={"token branch alone": dataclasses.replace(_base, distillation="none")},
    corpus="referring",
    budget=Budget(steps=3000),
    seeds=3,
    metrics=(
        "test/expressions/token/accuracy",
        "test/expressions/decoder/accuracy",
        "test/expressions/token/mean_IoU",
        "test/expressions/token/gain_by_picture",
        "test/expressions/decoder/gain_by_picture",
        *(f"test/expressions/token/{count}_clauses/accuracy" for count in (1, 2, 3, 4)),
        "test_twitter/expressions/token/accuracy",
    ),
    paper_figures="RefCOCO val 90.5 % with the decoder branch of ViT-L/32; token branch after distillation 93.0",
)
