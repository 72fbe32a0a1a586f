"""CLOC's parts: the Prompter, the contrast of regions with its conflict filter, and regions of a batch."""

import math

import pytest
import torch
from torch.nn import functional as F

from polymodal.data.columns.regions import PhraseBox
from polymodal.data.regions import flip_boxes, sample_regions
from polymodal.layers.positions import sine_points
from polymodal.layers.prompter import Prompter, PrompterPoolType
from polymodal.objectives.region_contrastive import region_text_contrastive
from polymodal.rng import ExampleRNG

SCALE = torch.tensor(7.0)


def vectors(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_region_contrast_is_its_formula_in_plain_loops() -> None:
    regions, texts = (F.normalize(vectors(6, 5, seed=seed), dim=-1).float() for seed in (1, 2))
    texts[3] = texts[1]  # an equal phrase
    mask = torch.tensor([True, True, False, True, True, True])
    total = 0.0
    for i in range(6):
        if not mask[i]:
            continue
        others = [j for j in range(6) if mask[j] and (j == i or float(texts[i] @ texts[j]) <= 0.9)]
        for a, b in ((regions, texts), (texts, regions)):
            logits = {j: 7.0 * float(a[i] @ b[j]) for j in others}
            total -= 0.5 * (logits[i] - math.log(sum(map(math.exp, logits.values()))))
    assert float(region_text_contrastive(regions, texts, SCALE, mask)) == pytest.approx(total / 5, rel=1e-5)
    assert float(region_text_contrastive(regions, texts, SCALE, mask, None)) > total / 5  # the equal one is a negative


def test_equal_phrases_cost_nothing_and_no_region_costs_nothing() -> None:
    regions, texts = F.normalize(vectors(4, 5), dim=-1).float(), F.normalize(torch.ones(4, 5), dim=-1)
    assert float(region_text_contrastive(regions, texts, SCALE, torch.ones(4, dtype=torch.bool))) == 0
    assert float(region_text_contrastive(regions, texts, SCALE, torch.zeros(4, dtype=torch.bool))) == 0


def test_the_filter_has_no_gradient_but_what_it_leaves_has() -> None:
    regions = F.normalize(vectors(4, 5), dim=-1).float()
    texts = F.normalize(vectors(4, 5, seed=1), dim=-1).float().requires_grad_()
    mask = torch.ones(4, dtype=torch.bool)
    gradients = []
    for threshold in (0.9, 0.999, None):  # no pair is above any of them
        loss = region_text_contrastive(regions, texts, SCALE, mask, threshold)
        gradients.append(torch.autograd.grad(loss, texts)[0])
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(gradients[0], gradients[2])
    torch.testing.assert_close(gradients[1], gradients[2])


@pytest.mark.parametrize("pool_type", ["avg", "prompt"])
def test_each_prompt_is_a_sequence_of_its_own_with_its_image(pool_type: PrompterPoolType) -> None:
    torch.manual_seed(0)
    prompter, tokens = Prompter(16, 8, 3, pool_type), torch.randn(3, 9, 16)
    corners = torch.rand(3, 2, 2, 2).sort(dim=2).values.flatten(2)
    block = prompter.transformer.blocks[0]
    center = (torch.arange(3) + 0.5) / 3
    positions = sine_points(torch.stack([center.repeat(3), center.repeat_interleave(3)], dim=-1), 16, 3)
    for prompts in (prompter.box_prompts(corners), prompter.text_prompts(torch.randn(3, 2, 8))):
        together = prompter(prompts, tokens)
        for image in range(3):
            for number in range(2):
                place = tokens[image] + (positions if pool_type == "prompt" else 0)
                sequence = torch.cat([prompts[image, number], place])
                query, key, value = block.attention.qkv(block.norm1(sequence)).chunk(3, -1)
                x = sequence + block.attention.out((query @ key.T / 4).softmax(-1) @ value)
                x = prompter.norm_post(x + block.fc2(F.gelu(block.fc1(block.norm2(x)))))
                read = x if pool_type == "avg" else x[: len(prompts[image, number])]
                torch.testing.assert_close(together[image, number], read.mean(0))


def test_a_box_is_a_token_for_each_corner() -> None:
    boxes = torch.tensor([[[0.05, 0.5, 0.45, 0.9], [0.5, 0.05, 0.9, 0.45]]])
    prompts = Prompter(64, 8, 10).box_prompts(boxes)
    assert prompts.shape == (1, 2, 2, 64)
    for number, box in enumerate(boxes[0]):
        torch.testing.assert_close(prompts[0, number, 0], sine_points(box[:2], 64, 10))
        torch.testing.assert_close(prompts[0, number, 1], sine_points(box[2:], 64, 10))


def test_a_box_of_one_token_is_nearest_to_the_positions_of_its_center() -> None:
    boxes = torch.tensor([[0.05, 0.5, 0.45, 0.9], [0.5, 0.05, 0.9, 0.45], [0.3, 0.3, 0.7, 0.7]])
    prompter = Prompter(64, 8, 10, "prompt")
    prompts = prompter.box_prompts(boxes)
    assert prompts.shape == (3, 1, 64)
    assert prompter.positions is not None
    nearest = (prompts[:, 0] @ prompter.positions.T).argmax(1)
    center = torch.stack([(boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2], dim=1)
    found = torch.stack([nearest % 10 + 0.5, nearest // 10 + 0.5], dim=1) / 10
    assert (found - center).abs().max() < 0.15
    # A point is its own center.
    points = torch.tensor([[0.05, 0.05], [0.95, 0.55]])
    torch.testing.assert_close(sine_points(points, 64, 10), prompter.positions[[0, 59]])


def test_regions_are_sampled_without_replacement_and_padded() -> None:
    regions = [PhraseBox(f"thing {number}", (0.1 * number, 0.2, 0.1 * number + 0.1, 0.7)) for number in range(6)]
    examples = [{"regions": regions}, {"regions": regions[:1]}, {"regions": None}]
    boxes, phrases, mask = sample_regions(examples, 4, ExampleRNG.of(0, 0, 3))
    assert boxes.shape == (3, 4, 4)
    assert mask.sum(1).tolist() == [4, 1, 0]
    assert len({*phrases[:4]}) == 4
    assert phrases[4:] == ["thing 0", *[""] * 7]
    draws = {sample_regions(examples[:1], 1, ExampleRNG.of(0, step, 1)).phrases[0] for step in range(40)}
    assert draws == {region.phrase for region in regions}
    flipped = flip_boxes(boxes, torch.tensor([True, False, False]))
    torch.testing.assert_close(flipped[0, :, 0], 1 - boxes[0, :, 2])
    torch.testing.assert_close(flipped[0, :, 2], 1 - boxes[0, :, 0])
    torch.testing.assert_close(flipped[0, :, 1::2], boxes[0, :, 1::2])
    torch.testing.assert_close(flipped[1:], boxes[1:])
