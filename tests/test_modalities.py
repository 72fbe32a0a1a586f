"""Images and texts as users really have them: damaged, huge, transparent, empty, in every script."""

import io
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from polymodal.errors import UnreadableExample
from polymodal.modalities import Category, Image, Text
from polymodal.modalities.image import to_rgb, to_square
from polymodal.modalities.image_augmentation import STRONG, ImageAugmentation, augment, gaussian_blur, to_grayscale
from polymodal.modalities.text import Caption, TextTokenizer
from polymodal.modalities.text_augmentation import (
    STOP_WORDS,
    TextAugmentation,
    augment_text,
    without_stop_words,
    without_words,
)
from polymodal.rng import ExampleRNG


def encoded(image: PILImage.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


def test_image_forms_decode_to_the_same(tmp_path):
    data = encoded(PILImage.new("RGB", (5, 4), (10, 20, 30)))
    (tmp_path / "a.png").write_bytes(data)
    for value in (data, {"bytes": data, "path": None}, {"bytes": None, "path": "a.png"}, "a.png"):
        assert np.asarray(to_rgb(Image(tmp_path).decode(value)))[0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"not an image", "no format"),
        (b"", "no format"),
        (None, "no image"),
        ("missing.png", "cannot be read"),
        (encoded(PILImage.new("L", (30_000, 30_000))), "pixels"),
    ],
)
def test_unreadable_images_say_why(value, reason, tmp_path):
    with pytest.raises(UnreadableExample, match=reason):
        Image(tmp_path).decode(value)


def test_a_truncated_image_is_found_when_it_is_decoded():
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = encoded(PILImage.fromarray(noise))
    with pytest.raises(UnreadableExample, match="damaged"):
        to_square(Image().decode(data[: len(data) // 2]), 16)


def test_transparency_is_laid_on_white_and_every_mode_becomes_rgb():
    clear = PILImage.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert np.asarray(to_rgb(clear)).min() == 255
    for mode in ("1", "L", "P", "LA", "CMYK", "I;16", "F"):
        assert to_square(PILImage.new(mode, (9, 6)), 4).shape == (4, 4, 3)


def test_to_square_keeps_the_center():
    image = np.zeros((10, 30, 3), dtype=np.uint8)
    image[:, 10:20] = 200
    assert (to_square(PILImage.fromarray(image), 10) == 200).mean() > 0.75


def test_augmentation_is_seeded_stays_in_range_and_flips_only_where_allowed():
    image = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    one, again = (augment(image, STRONG, ExampleRNG.of(1, 0, 6)) for _ in range(2))
    torch.testing.assert_close(one, again)
    half = augment(image[3:], STRONG, ExampleRNG.of(1, 3, 3))
    torch.testing.assert_close(one[3:], half)
    assert one.min() >= 0
    assert one.max() <= 1
    only_flip = ImageAugmentation(scale=(1.0, 1.0), hflip_prob=1.0)
    allowed = torch.tensor([True, False] * 3)
    flipped = augment(image, only_flip, ExampleRNG.of(2, 0, 6), allowed)
    closer_to_mirror = (flipped - image.flip(3)).abs().mean((1, 2, 3)) < (flipped - image).abs().mean((1, 2, 3))
    assert closer_to_mirror.tolist() == allowed.tolist()


def test_gray_images_keep_their_color_under_hue_rotation():
    image = torch.full((4, 3, 8, 8), 0.5)
    jittered = augment(image, ImageAugmentation(scale=(1.0, 1.0), color_jitter_prob=1.0), ExampleRNG.of(0, 0, 4))
    torch.testing.assert_close(jittered, to_grayscale(jittered).expand_as(jittered), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [112, 224])
def test_blur_has_a_standard_deviation_of_up_to_two_of_224_pixels(size):
    image, offsets = torch.zeros(200, 3, size, size), torch.arange(size) - size // 2
    image[..., size // 2, size // 2] = 1
    blurred = gaussian_blur(image, ExampleRNG.of(0, 0, 200))
    for row in blurred[:, 0].sum(1), blurred[:, 0].sum(2):
        sigma = 224 / size * (row * offsets**2).sum(1).sqrt()
        assert 1.9 < sigma.max() <= 2.0
        assert abs(sigma.median() - 1.05) < 0.15
    assert bool((sigma.sort().values[20:40] < 0.6).all())


def test_captions_in_every_stored_form():
    assert Text().decode("a cat") == [Caption("a cat")]
    assert Text().decode(["a cat", "", None, "pet"]) == [Caption("a cat"), Caption("pet")]
    assert Text().decode([{"text": "Katze", "language": "de"}]) == [Caption("Katze", "de")]
    for empty in ("", "  ", [], None, [None], [""]):
        with pytest.raises(UnreadableExample, match="empty"):
            Text().decode(empty)


def test_languages_are_drawn_by_their_shares():
    captions = [Caption("cat", "en"), Caption("pet", "en"), Caption("Katze", "de")]
    rng = np.random.default_rng(0)
    drawn = [Text({"en": 0.75, "de": 0.25}).choose(captions, rng) for _ in range(4000)]
    assert drawn.count("Katze") / 4000 == pytest.approx(0.25, abs=0.03)
    assert drawn.count("cat") / 4000 == pytest.approx(0.375, abs=0.03)


def test_category_refuses_an_unknown_name():
    assert Category(("a", "b")).decode("b") == 1
    with pytest.raises(UnreadableExample, match="'c'"):
        Category(("a", "b")).decode("c")


def test_tokenizer_round_trip_in_every_language_of_the_corpus(emoji):
    rows = emoji.rows("train")[:300]
    captions = [caption for row in rows for caption in emoji.value(row, "captions")]
    tokenizer = TextTokenizer.train((caption.text.lower() for caption in captions), 3000, context_length=512)
    unseen = [caption for row in emoji.rows("test")[:60] for caption in emoji.value(row, "captions")]
    assert len({caption.language for caption in unseen}) == 20
    texts = [caption.text for caption in unseen] + ["  two  spaces ", "naïve café", "\u0e01\u0e33", "👩‍🚒 \t x"]
    expected = [unicodedata.normalize("NFC", text.lower()) for text in texts]
    assert tokenizer.decode(tokenizer(texts)) == expected


def test_tokens_are_cut_to_the_context_and_padded_to_the_longest_of_the_batch(tmp_path):
    tokenizer = TextTokenizer.train(["a cat and a dog"] * 3, 300, context_length=8)
    tokens = tokenizer(["cat", "a cat and a dog and a horse and a cow"])
    assert tokens.ids.shape[1] == 8
    assert tokens.lengths[1] == 8
    assert (tokens.ids[:, 0] == tokenizer.start).all()
    assert tokens.ids[range(2), (tokens.lengths - 1).tolist()].tolist() == [tokenizer.end] * 2
    assert tokenizer(["cat"]).ids.shape[1] == tokens.lengths[0]
    assert tokens.content_mask.sum(1).tolist() == (tokens.lengths - 2).tolist()
    tokenizer.save(tmp_path)
    assert torch.equal(TextTokenizer.load(tmp_path, 8)(["cat"]).ids, tokenizer(["cat"]).ids)


def test_words_are_left_out_by_their_share_and_one_stays():
    rng = np.random.default_rng(0)
    words = [str(number) for number in range(50)]
    kept = [without_words(" ".join(words), 0.3, rng).split() for _ in range(200)]
    assert np.mean([len(some) for some in kept]) == pytest.approx(35, abs=1)
    assert all(sorted(some, key=int) == some for some in kept)  # in their order
    assert without_words("a  red fruit", 0.0, rng) == "a  red fruit"
    assert {without_words("one two", 1.0, rng) for _ in range(50)} == {"one", "two"}
    assert without_words("", 0.5, rng) == ""


def test_text_augmentation_keeps_a_content_word_and_adds_none():
    rng = np.random.default_rng(0)
    always = TextAugmentation(remove_stop_words=1.0, swap_weight=1.0, delete_weight=1.0)
    for text in ("cat", "the cat", "a cat of the sea", "of the", "Katze", "猫"):
        for _ in range(30):
            words = augment_text(text, always, rng).split()
            assert words
            assert set(words) <= set(text.split())
            if set(text.split()) - STOP_WORDS:
                assert set(words) - STOP_WORDS


def test_a_caption_gets_exactly_one_operation_as_often_as_the_released_code_says():
    rng, text = np.random.default_rng(0), "one two three four"
    augmentation = TextAugmentation(remove_stop_words=0.0, synonym_weight=0.4)
    results = [
        augment_text(text, augmentation, rng, lambda word: ["TWO"] if word == "two" else []) for _ in range(3000)
    ]
    replaced = [result == "one TWO three four" for result in results]
    swapped = [result != text and sorted(result.split()) == sorted(text.split()) for result in results]
    assert np.mean(replaced) == pytest.approx(0.4, abs=0.03)
    assert np.mean(swapped) == pytest.approx(0.4, abs=0.03)
    rest = [result for result, one, two in zip(results, replaced, swapped, strict=True) if not one and not two]
    assert len(rest) / 3000 == pytest.approx(0.2, abs=0.03)
    assert np.mean([result == text for result in rest]) == pytest.approx(0.9**4, abs=0.05)  # each word stays with 0.9
    assert all(set(result.split()) <= set(text.split()) for result in rest)
    assert without_stop_words("a cat of the sea", 1.0, rng) == "cat sea"
    assert without_stop_words("of the", 1.0, rng) == "of the"


def test_random_numbers_belong_to_the_example_and_look_uniform():
    all_of_it, part = ExampleRNG.of(7, 0, 4000), ExampleRNG.of(7, 1000, 1000)
    for _ in range(3):
        numbers = all_of_it.uniform(-1, 3)
        torch.testing.assert_close(numbers[1000:2000], part.uniform(-1, 3))
        assert -1 <= numbers.min() < -0.99
        assert 2.99 < numbers.max() < 3
        assert abs(numbers.mean() - 1) < 0.1
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.05
    assert not torch.equal(ExampleRNG.of(7, 0, 10).uniform(), ExampleRNG.of(8, 0, 10).uniform())
    assert len({generator.random() for generator in all_of_it.generators[:50]}) == 50
