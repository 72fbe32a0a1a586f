"""Parts of batches that several recipes share: augmented images, sampled captions, pools, sentences and rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from polymodal.data.columns.image import ImageColumn
from polymodal.data.columns.text import LearnedTokenizer, TextColumn
from polymodal.data.masks import sample_visible
from polymodal.data.pools import in_first_pool
from polymodal.encoders.prefix_image import sample_prefix
from polymodal.errors import UserError
from polymodal.modalities.image_augmentation import NONE, STRONG, ImageAugmentation
from polymodal.modalities.table import TableRows, drop_values_at_random_rate
from polymodal.modalities.text import Caption
from polymodal.modalities.text_augmentation import report_sentences, sample_sentence
from polymodal.objectives.diffusion import check_sampling_times
from polymodal.rng import ExampleRNG

COLUMN = ImageColumn(8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
IMAGES = list(np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8))
RNG = ExampleRNG.of(0, 0, 40)


def test_a_fraction_of_the_images_is_augmented() -> None:
    plain = COLUMN(IMAGES)
    torch.testing.assert_close(COLUMN.augmented(IMAGES, NONE, ExampleRNG.of(0, 0, 40)), plain)
    unchanged = (COLUMN.augmented(IMAGES, STRONG, ExampleRNG.of(0, 0, 40), rate=0.5) == plain).flatten(1).all(1)
    assert 8 < int(unchanged.sum()) < 32
    assert not (COLUMN.augmented(IMAGES, STRONG, ExampleRNG.of(0, 0, 40)) == plain).flatten(1).all(1).any()


def test_no_flip_contradicts_a_caption() -> None:
    flips, plain = ImageAugmentation(scale=(1.0, 1.0), hflip_prob=1.0), COLUMN(IMAGES)
    captions = [[Caption("a cat on the left" if number % 2 else "a cat", "en")] for number in range(40)]
    sides = [COLUMN.augmented(IMAGES, flips, ExampleRNG.of(0, 0, 40), some) for some in (captions, None)]
    kept = torch.tensor([(ours - one).abs().max() < 0.2 for ours, one in zip(sides[0], plain, strict=True)])
    assert kept[1::2].sum() > kept[::2].sum()
    torch.testing.assert_close(sides[0][::2], sides[1][::2])


def test_a_caption_of_each_example_is_sampled_or_the_empty_text() -> None:
    column = TextColumn(LearnedTokenizer(300, 24))
    captions = [[Caption("one", "en"), Caption("two", "en")], [], [Caption("three", "en")]]
    sampled = [column.sample_captions(captions, ExampleRNG.of(seed, 0, 3), optional=True) for seed in range(20)]
    assert {texts[0] for texts in sampled} == {"one", "two"}
    assert {tuple(texts[1:]) for texts in sampled} == {("", "three")}
    with pytest.raises(UserError, match="a text of every example, and one has none"):
        column.sample_captions(captions, ExampleRNG.of(0, 0, 3))


def test_pools_hold_a_fraction_of_the_captions_and_no_image_without_any() -> None:
    captions = [[Caption(f"caption {number}", "en")] for number in range(400)]
    first = in_first_pool([*captions, []], 0.3)
    assert 80 < int(first.sum()) < 160
    assert not first[-1]
    assert torch.equal(first[:-1], in_first_pool(captions, 0.3))


def test_as_many_patches_as_asked_are_visible_and_others_in_each_image() -> None:
    visible = sample_visible(16, 5, RNG)
    assert visible.shape == (40, 5)
    assert (visible.diff(dim=1) > 0).all()
    assert len({tuple(row) for row in visible.tolist()}) > 30


def test_prefixes_leave_a_patch_to_predict() -> None:
    patches = torch.tensor([16, 2] * 20)
    sampled = sample_prefix(patches, "prefix", RNG)
    assert ((sampled >= 1) & (sampled < patches)).all()
    assert len(set(sampled[::2].tolist())) > 5
    assert torch.equal(sample_prefix(patches, "bidirectional", RNG), patches)
    assert (sample_prefix(patches, "causal", RNG) == 1).all()


def test_a_sentence_of_a_report_is_sampled() -> None:
    report = "The heart is of normal size. There is no focal consolidation at all. Fine."
    sampled = {sample_sentence(report, np.random.default_rng(seed)) for seed in range(20)}
    assert sampled == {*report_sentences(report)}
    assert len(sampled) == 2


def test_each_rate_of_missing_cells_is_as_frequent() -> None:
    rows = TableRows(torch.zeros(40, 30), torch.zeros(40, 0, dtype=torch.long))
    missing = drop_values_at_random_rate(rows, (0.0, 1.0), RNG).missing.float().mean(1)
    assert set(missing.tolist()) == {0.0, 1.0}
    assert 8 < int(missing.sum()) < 32


@pytest.mark.parametrize(
    ("t_max", "t_min", "mid_nt"), [(0.1, 0.9, ()), (0.9, 0.1, (0.01,)), (0.9, 0.1, (1.0, 2.0)), (0.9, 0.1, (100.0,))]
)
def test_times_of_a_sampler_that_do_not_decrease_are_refused(
    t_max: float, t_min: float, mid_nt: tuple[float, ...]
) -> None:
    check_sampling_times(0.9, 0.1, "fm", (2.0, 1.0))
    with pytest.raises(UserError, match=r"--t-min|--mid-nt"):
        check_sampling_times(t_max, t_min, "fm", mid_nt)
