"""Classifiers of a label on image towers and on CLIP's: a linear head, prompts, or image and caption together."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import NotRequired, TypedDict

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.encoders.encoder import Encoder
from polymodal.evaluation.classification import prompt_ensemble
from polymodal.layers.projection_head import ProjectionHead
from polymodal.modalities.text import Caption, Tokens
from polymodal.modalities.text_augmentation import without_these_words
from polymodal.recipes.dual_encoders._base import DualEncoderRecipe
from polymodal.recipes.dual_encoders.clip import CLIP


class FewShotBatch(TypedDict):
    """text: captions, only for those that read them."""

    image: Float[Tensor, "batch 3 size size"]
    label: Int[Tensor, " batch"]
    text: NotRequired[Tokens]


class LabelClassifier(nn.Module):
    """Cross-entropy of the label; validation selects by the task that is named."""

    validation_task = "label_classification"

    def classification_losses(self, batch: FewShotBatch) -> dict[str, Tensor]:
        return {"classification": F.cross_entropy(self.class_logits(batch), batch["label"])}

    def class_logits(self, batch: FewShotBatch) -> Float[Tensor, "batch classes"]:
        raise NotImplementedError


def linear_head(width: int, classes: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(width, classes))


class TowerClassifier(LabelClassifier):
    """An image tower without text and a linear head, and a second head for categories to pre-train on."""

    def __init__(self, tower: Callable[[], Encoder], width: int, classes: int, dropout: float, categories: int = 0):
        """tower: builds the untrained tower. categories: number of them, 0 for none."""
        super().__init__()
        self.tower = tower
        self.image_encoder = tower()
        self.head = linear_head(width, classes, dropout)
        self.category_head = nn.Linear(width, categories) if categories else None

    def from_scratch(self) -> None:
        """Forget what the tower began with, such as the weights of `--init`."""
        self.image_encoder.load_state_dict(self.tower().state_dict())

    def losses(self, batch: FewShotBatch) -> dict[str, Tensor]:
        """category: cross-entropy of the category, in the place of the label."""
        if self.category_head is None:
            return self.classification_losses(batch)
        logits = self.category_head(self.image_encoder.pooled(batch["image"]))
        return {"category": F.cross_entropy(logits, batch["label"])}

    def class_logits(self, batch: FewShotBatch) -> Float[Tensor, "batch classes"]:
        return self.head(self.image_encoder.pooled(batch["image"]))

    classify = class_logits


class CLIPClassifier(LabelClassifier, CLIP):
    """A linear head on the pooled vector of CLIP's image tower."""

    def __init__(self, recipe: DualEncoderRecipe, vocabulary: int, classes: int, dropout: float):
        super().__init__(recipe, vocabulary)
        self.head = linear_head(recipe.image.width, classes, dropout)

    def class_logits(self, batch: FewShotBatch) -> Float[Tensor, "batch classes"]:
        return self.head(self.image_encoder.pooled(batch["image"]))

    classify = class_logits


class PromptClassifier(LabelClassifier, CLIP):
    """s cos(f_img(x), f_txt(prompt_c)), for zero-shot classification and its tuning; no text of an example is read."""

    prompt_ids: Tensor
    prompt_lengths: Tensor

    def __init__(self, recipe: DualEncoderRecipe, vocabulary: int, prompts: Tokens, per_class: int):
        """prompts: of all classes, one class after the other."""
        super().__init__(recipe, vocabulary)
        self.per_class, self.special_tokens = per_class, prompts.special_tokens
        self.register_buffer("prompt_ids", prompts.ids, persistent=False)
        self.register_buffer("prompt_lengths", prompts.lengths, persistent=False)

    def class_logits(self, batch: FewShotBatch) -> Float[Tensor, "batch classes"]:
        prompts = self.encode_text(Tokens(self.prompt_ids, self.prompt_lengths, self.special_tokens))
        return self.logits(self.encode_image(batch["image"]), prompt_ensemble(prompts.split(self.per_class)))

    classify = class_logits


class MultimodalClassifier(LabelClassifier, CLIP):
    """z = [f_img(x) ; f_txt(caption of x)] -> MLP."""

    validation_task = "caption_classification"

    def __init__(self, recipe: DualEncoderRecipe, vocabulary: int, classes: int, masked: Set[str]):
        """masked: words that captions are read without."""
        super().__init__(recipe, vocabulary)
        sizes = [2 * recipe.embed_dim, recipe.embed_dim, classes]
        self.head = ProjectionHead(sizes, norm=None, activation="relu", bias=True)
        self.masked_words = masked

    def class_logits(self, batch: FewShotBatch) -> Float[Tensor, "batch classes"]:
        return self.head(torch.cat([self.encode_image(batch["image"]), self.encode_text(batch["text"])], 1))

    classify_with_captions = class_logits

    def caption_of(self, captions: Sequence[Caption]) -> str:
        """The first caption, without the masked words."""
        return without_these_words(captions[0].text, self.masked_words)
