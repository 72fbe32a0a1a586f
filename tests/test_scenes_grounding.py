"""The scores of where: a method that knows every patch gets everything, one that knows nothing gets chance."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from polymodal.data.loader import Reader
from polymodal.data.processor import fit_processor
from polymodal.evaluation.tasks.grounding import grounding_scores
from polymodal.recipes.dual_encoders import clip


class Oracle(nn.Module):
    """Patch vectors and name vectors made from the truth, or at random."""

    def __init__(self, corpus, split, processor, knows: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.knows, self.processor, self.next = knows, processor, 0
        self.examples = [corpus[row] for row in corpus.rows(split)]
        names = sorted({region.name.lower() for example in self.examples for region in example["regions"]})
        self.numbers = {name: number for number, name in enumerate(names)}

    def embed(self, batch):
        texts = self.processor.tokenizer.decode(batch["text"])
        return {"text": F.one_hot(torch.tensor([self.numbers[text] for text in texts]), len(self.numbers)).float()}

    def encode_patches(self, image):
        vectors = torch.zeros(len(image), 64, len(self.numbers))
        for vector in vectors:
            example, self.next = self.examples[self.next], self.next + 1
            if not self.knows:
                vector.copy_(F.normalize(torch.randn(vector.shape), dim=-1))
                continue
            for number, region in enumerate(example["regions"], start=1):
                covered = torch.from_numpy(example["mask"] == number).float()[None, None]
                share = F.adaptive_avg_pool2d(covered, 8).flatten()
                vector[:, self.numbers[region.name.lower()]] = share
        return vectors


@pytest.fixture(scope="module")
def few_scenes(scenes):
    return scenes.with_splits({"train": scenes.rows("train")[:200], "test": scenes.rows("test")[:60]})


@pytest.mark.parametrize("knows", [True, False])
def test_grounding_scores_of_an_oracle_and_of_noise(few_scenes, knows):
    torch.manual_seed(0)
    processor = fit_processor(clip.Recipe(), few_scenes)
    oracle = Oracle(few_scenes, "test", processor, knows)
    found = grounding_scores(oracle, processor, Reader(few_scenes, processor), "test")
    scores = {score.name: score for score in found}
    overlap, pointing = scores["test/segmentation/mIoU"], scores["test/pointing_game/accuracy"]
    region = scores["test/phrase_grounding/R@1"]
    if knows:
        assert overlap.value > 0.8
        assert pointing.value > 0.9
        assert region.value > 0.9
    else:
        assert overlap.value == pytest.approx(overlap.chance, abs=0.06)
        assert pointing.value == pytest.approx(pointing.chance, abs=0.08)
        assert region.value < 0.1
    assert len(overlap.clusters) == 60
    assert not np.isnan(overlap.clusters).any()
