"""Train CLIP on image-caption pairs with a loop in plain PyTorch: data, model, training, evaluation.

python examples/train_clip.py [STEPS]    (300 steps on the corpus `emoji` take about a minute on two cores)
"""

from __future__ import annotations

import sys

import numpy as np
import torch

import polymodal as pm
from polymodal.corpora.corpus import Corpus
from polymodal.data.loader import Reader
from polymodal.data.processor import fit_processor
from polymodal.recipes.dual_encoders import clip
from polymodal.rng import ExampleRNG


def train(corpus: Corpus, recipe: clip.Recipe, steps: int, seed: int = 0) -> tuple[clip.CLIP, Reader]:
    """Data, model and loop. Returns the model and the reader of the corpus."""
    torch.manual_seed(seed)
    processor = fit_processor(recipe, corpus)  # the tokenizer, and the mean color of the training images
    model = recipe.build(processor)  # an image and a text encoder, each with a projection, and a logit scale
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.optimizer.learning_rate, weight_decay=recipe.optimizer.weight_decay
    )
    reader, order = Reader(corpus, processor), np.random.default_rng(seed)
    for step in range(steps):
        rows = order.choice(corpus.rows("train"), recipe.batch_size, replace=False)
        _, examples = reader.read_all(rows)  # decoded and resized, kept in memory; unreadable ones are left out
        example_rng = ExampleRNG.of(seed, first=step * recipe.batch_size, count=len(examples))
        batch = recipe.training_batch(examples, processor, example_rng)  # augmented images, one caption each
        losses = model.losses(batch)  # {"contrastive": symmetric InfoNCE of the batch}
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: " + ", ".join(f"{name} {loss.item():.3f}" for name, loss in losses.items()))
    return model.eval(), reader


@torch.no_grad()
def recall(model: clip.CLIP, reader: Reader, k: int = 10) -> tuple[float, float]:
    """Text-to-image R@k of the test split, and chance: each example's first caption against all test images."""
    _, examples = reader.read_split("test")
    images, texts = [example["image"] for example in examples], [example["text"][0].text for example in examples]
    embeddings = model.embed(reader.processor(image=images, text=texts))
    similarity = embeddings["text"] @ embeddings["image"].T
    rank = (similarity >= similarity.diagonal()[:, None]).sum(dim=1)
    return (rank <= k).float().mean().item(), k / len(examples)


if __name__ == "__main__":
    trained, test_reader = train(pm.corpora.emoji(), clip.Recipe(), steps=int(sys.argv[1]) if sys.argv[1:] else 300)
    found, chance = recall(trained, test_reader)
    print(f"text-to-image R@10 {found:.1%}, chance {chance:.1%}")
