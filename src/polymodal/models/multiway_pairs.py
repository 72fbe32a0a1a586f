"""One multiway encoder for retrieval and questions: images and texts alone are contrasted, and pairs are classified.

The fine-tuning of VLMo (Bao et al. 2022, section 3.3) and EVE (Chen et al. 2024, released code): ITC of images and
texts alone, ITM of pairs with hard negatives by ITC's similarities, and answers from the first token of a question that
is encoded with its image.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.data.processor import Processor
from polymodal.data.video_text import QuestionBatch, sample_captions
from polymodal.encoders.multiway_moe import MultiwayMoEConfig
from polymodal.layers.distributed import all_gather, all_gather_tokens
from polymodal.layers.logit_scale import LogitScale
from polymodal.modalities.image_augmentation import ImageAugmentation
from polymodal.modalities.text import Tokens, text_ids
from polymodal.models.dual_encoder import ImageTextBatch
from polymodal.objectives.answers import binary_answer_loss
from polymodal.objectives.contrastive import info_nce
from polymodal.objectives.image_text_matching import itm_loss, sample_itm_pairs
from polymodal.rng import ExampleRNG
from polymodal.types import Batch, Example


class PairsBatch(ImageTextBatch):
    """group: id of each text; equal texts are positives of each other. uniform: chooses the negatives of ITM."""

    group: Float[Tensor, " batch"]
    uniform: Float[Tensor, "batch 2"]


class PairsQuestionBatch(PairsBatch, QuestionBatch):
    """Pairs, and questions about the images where the corpus has any."""


def sample_image_pairs(
    examples: list[Example], processor: Processor, augmentation: ImageAugmentation, example_rng: ExampleRNG
) -> PairsBatch:
    """Return augmented images and one of each one's captions, and what chooses the negatives of ITM."""
    images, captions = ([example[name] for example in examples] for name in ("image", "text"))
    image = processor.image.augmented(images, augmentation, example_rng, captions)
    texts = sample_captions(examples, processor, example_rng)
    uniform = torch.stack([example_rng.uniform(), example_rng.uniform()], dim=1)
    return {"image": image, "text": processor.text(texts), "group": text_ids(texts), "uniform": uniform}


class MultiwayPairs(nn.Module):
    """A multiway encoder with projections into one space, and heads of ITM and answers."""

    def __init__(self, config: MultiwayMoEConfig, vocab_size: int, embed_dim: int, num_answers: int = 0):
        """vocab_size: entries of the tokenizer. embed_dim: dimensions in which images and texts are contrasted.
        num_answers: classes of question answering; 0: no head for it."""
        super().__init__()
        width, self.context_length = config.width, config.context_length
        self.encoder = config.build(vocab_size)
        self.image_projection = nn.Linear(width, embed_dim, bias=False)
        self.text_projection = nn.Linear(width, embed_dim, bias=False)
        self.logit_scale = LogitScale(max=1 / 0.001, min=1 / 0.5)  # bounds of the temperature in EVE's released code
        self.itm_head = nn.Linear(width, 2)
        if num_answers:
            last = nn.Linear(2 * width, num_answers)
            nn.init.constant_(last.bias, -math.log(num_answers))  # the probability of every answer at the start
            self.answer_head = nn.Sequential(nn.Linear(width, 2 * width), nn.LayerNorm(2 * width), nn.GELU(), last)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """L2-normalized embeddings of images alone and of texts alone."""
        return {name: self._embedded(name, batch[name])[0] for name in ("image", "text") if name in batch}

    def pair_losses(self, batch: PairsBatch) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Return ITC and ITM, and the balance loss of each of five passes."""
        image, text, group, scale = batch["image"], batch["text"], batch["group"], self.logit_scale()
        (a, balance_a), (b, balance_b) = self._embedded("image", image), self._embedded("text", text)
        balances, logits = [balance_a, balance_b], []
        # Negatives come from the batch of all processes.
        to_texts, to_images = ((scale * one @ all_gather(other).T).detach() for one, other in ((a, b), (b, a)))
        pairs = sample_itm_pairs(to_texts, group, to_images, uniform=batch["uniform"])
        images, texts = all_gather(image), all_gather_tokens(text, self.context_length)
        # The pairs themselves, images with negative texts, texts with negative images.
        for of_image, of_text in zip(pairs.image.chunk(3), pairs.text.chunk(3), strict=True):
            some = replace(texts, ids=texts.ids[of_text], lengths=texts.lengths[of_text])
            first, balance = self._first_token(images[of_image], some)
            logits.append(self.itm_head(first))
            balances.append(balance)
        itc = info_nce(a, b, scale, labels=group)
        return {"itc": itc, "itm": itm_loss(torch.cat(logits), pairs)}, balances

    def answer_losses(self, batch: PairsQuestionBatch) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Return the binary cross-entropy, summed over all answers, and the balance loss of the pass."""
        first, balance = self._first_token(batch["image"], batch["question"])
        return {"vqa": binary_answer_loss(self.answer_head(first), batch["answer"])}, [balance]

    def itm_logits(self, batch: Batch) -> Float[Tensor, "items texts"]:
        """Return the logit that each text matches each image."""
        text, rows = batch["text"], []
        for image in batch["image"]:
            first, _ = self._first_token(image.expand(len(text.ids), -1, -1, -1), text)
            negative, positive = self.itm_head(first).unbind(1)
            rows.append(positive - negative)
        return torch.stack(rows)

    def answer_logits(self, batch: Batch) -> Float[Tensor, "batch answers"]:
        """Return the logits of the answers to one question about each image."""
        return self.answer_head(self._first_token(batch["image"], batch["question"])[0])

    def _embedded(self, name: str, value: Tensor | Tokens) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, ""]]:
        """The embedding of an image or a text, by its first token, and the balance loss."""
        tokens = self.encoder(**{name: value})
        projection = self.get_submodule(f"{name}_projection")
        return F.normalize(projection(getattr(tokens, name)[:, 0]), dim=-1), tokens.balance_loss

    def _first_token(
        self, image: Float[Tensor, "batch 3 size size"], text: Tokens
    ) -> tuple[Float[Tensor, "batch width"], Float[Tensor, ""]]:
        """The first token of texts that are encoded with images, and the balance loss."""
        tokens = self.encoder(image, text)
        return tokens.text[:, 0], tokens.balance_loss
