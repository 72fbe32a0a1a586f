"""Metrics of published benchmarks against numbers that the official code gave for the same inputs.

VQA: github.com/GT-Vision-Lab/VQA at a013f004. BLEU, CIDEr and tokens: pycocoevalcap 1.2. Retrieval and zero-shot
classification: github.com/LAION-AI/CLIP_benchmark at 48de38c1. Error rates: jiwer 4.0.0.
"""

import random

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from polymodal.evaluation.answer_accuracy import anls, relaxed_accuracy, vqa_accuracy, vqa_normalized
from polymodal.evaluation.benchmarks.imagenet_zeroshot import class_names
from polymodal.evaluation.benchmarks.librispeech import normalized_words
from polymodal.evaluation.caption_benchmark import caption_metric_scores
from polymodal.evaluation.caption_metrics import bleu, bleu_statistics, caption_tokens, cider
from polymodal.evaluation.caption_retrieval import caption_recalls
from polymodal.evaluation.classification import prompt_ensemble, zero_shot_scores
from polymodal.evaluation.prompt_templates import imagenet_templates, prompts_of
from polymodal.evaluation.tasks.transcription import error_rate

NORMALIZED = {
    "It's a T-shirt.": "it's t shirt",
    "1,000 dollars": "1000 dollars",
    "dont know": "don't know",
    "the U.S. flag": "us flag",
    "none": "0",
    "two red/white stripes": "2 red white stripes",
    "10:30": "10:30",
    "3.5": "3.5",
    "Yes!": "yes",
    "somebody'd": "somebodyd",
    "[left] side": "left side",
    "a an the": "",
    "4 , 5": "4 5",
}
VQA = [
    ("two dogs", ["2 dogs"] * 2 + ["dogs"] * 8, 0.6),
    ("Yes.", ["yes"] * 7 + ["no"] * 3, 1.0),
    ("yes.", ["yes"] * 10, 0.0),  # where all references agree, the official code normalizes nothing
    ("a blue", ["blue"] * 3 + ["Blue-ish"] * 7, 0.9),
    ("red", ["red"] + ["blue"] * 9, 0.3),
    ("dont", ["don't"] * 3 + ["do not"] * 7, 0.9),
]
TOKENS = {
    "A man's dog isn't on the street.": "a man 's dog is n't on the street",
    "Two red-and-white buses, parked; they're waiting...": "two red-and-white buses parked they 're waiting",
    "There are 1,000 people (maybe 3.5 per room)!": "there are 1,000 people -lrb- maybe 3.5 per room -rrb-",
    "I can't, won't & shouldn't've done it; we'll see: yes?": "i ca n't wo n't & should n't 've done it we 'll see yes",
    "cannot gonna wanna the cats' tails o'clock": "can not gon na wan na the cats tails o'clock",
    "A sign reads 'STOP' at 10:30 p.m. on Dr. Smith's lawn.": "a sign reads stop at 10:30 p.m. on dr. smith 's lawn",
    "black/white photo of T-shirt #1 -- 50% off": "black/white photo of t-shirt # 1 50 % off",
    "a man with 2 dogs' leashes and an 80's style": "a man with 2 dogs leashes and an 80 's style",
    "A plate w/ food. A glass.": "a plate w / food a glass",
    "“quoted” and it’s fine": "quoted and it 's fine",
}


@pytest.mark.parametrize(("answer", "normalized"), NORMALIZED.items())
def test_answers_are_normalized_as_by_the_official_vqa_code(answer: str, normalized: str) -> None:
    assert vqa_normalized(answer) == normalized


@pytest.mark.parametrize(("answer", "references", "accuracy"), VQA)
def test_vqa_accuracy_is_that_of_the_official_code(answer: str, references: list[str], accuracy: float) -> None:
    assert vqa_accuracy(answer, references) == pytest.approx(accuracy)


def test_anls_forgives_misspellings_only() -> None:
    assert anls("Invoice  NO 12", ["invoice no 12"]) == 1
    assert anls("invoise", ["receipt", "invoice"]) == pytest.approx(1 - 1 / 7)
    assert anls("ab", ["xb"]) == 0.5  # as the official code, which sets what is below 0.5 to 0
    assert anls("abc", ["xyc"]) == 0
    assert anls("", ["x"]) == 0


def test_relaxed_accuracy_forgives_five_percent_of_numbers() -> None:
    assert [relaxed_accuracy(one, ["100"]) for one in ("105", "94.9", "100.0", "a 100")] == [1, 0, 1, 0]
    assert relaxed_accuracy("50%", ["0.5"]) == 1
    assert relaxed_accuracy("0.01", ["0"]) == 0
    assert relaxed_accuracy("Blue", ["red", "blue"]) == 1


@pytest.mark.parametrize(("caption", "tokens"), TOKENS.items())
def test_tokens_of_captions_are_those_of_pycocoevalcap(caption: str, tokens: str) -> None:
    assert " ".join(caption_tokens(caption)) == tokens


def captions() -> tuple[list[list[str]], list[list[list[str]]]]:
    """Twelve images with one, three or five references and a caption each, two of them nearly empty."""
    rng = random.Random(1)
    subjects = ["a man", "two dogs", "the red bus", "a woman in a hat", "several people"]
    verbs = ["is riding", "sits on", "stands near", "looks at", "are waiting for"]
    objects = ["a surfboard", "the street", "a bench in the park", "an old train", "the table with food"]

    def one() -> str:
        return f"{rng.choice(subjects)} {rng.choice(verbs)} {rng.choice(objects)}" + rng.choice(
            ["", " at night", " , smiling"]
        )

    references = [[one() for _ in range(rng.choice([1, 3, 5]))] for _ in range(12)]
    written = [rng.choice([one(), of_image[0], " ".join(of_image[0].split()[:3])]) for of_image in references]
    written[4], written[5] = "", "man"
    return [text.split() for text in written], [[text.split() for text in of_image] for of_image in references]


def test_bleu_and_cider_are_those_of_pycocoevalcap() -> None:
    written, references = captions()
    total = sum(bleu_statistics(one, of_image) for one, of_image in zip(written, references, strict=True))
    found = [float(bleu(total, n)) for n in (1, 2, 3, 4)]
    np.testing.assert_allclose(found, [0.62254226, 0.60519382, 0.58915876, 0.57761541], atol=1e-8)
    official = [0.04813107, 0.89455316, 3.98832202, 0, 0, 0, 3.44629907, 10, 2.40552619, 3.36300337, 0.28359443]
    np.testing.assert_allclose(cider(written, references), [*official, 3.9755855], atol=1e-7)


def test_scores_of_captions_have_intervals_and_the_chance_of_another_image() -> None:
    texts = [f"a {color} {thing} on the {place}" for color in ("red", "blue") for thing, place in THINGS]
    scores = {one.name.rpartition("/")[2]: one for one in caption_metric_scores("x", texts, [[t] for t in texts])}
    assert set(scores) == {"BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "CIDEr"}
    assert scores["BLEU-4"].value == pytest.approx(1)
    assert scores["CIDEr"].value == pytest.approx(10)
    assert all(score.chance < 0.7 * score.value for score in scores.values())
    worse = caption_metric_scores("x", [*texts[:-2], "nothing", "a cat"], [[t] for t in texts])[3]
    low, high = worse.estimate()[1:]
    assert low < worse.value < high


THINGS = [("bus", "street"), ("cup", "table"), ("dog", "grass"), ("boat", "water")]


def test_recalls_with_several_captions_are_those_of_clip_benchmark() -> None:
    rng = np.random.default_rng(7)
    images = rng.normal(size=(30, 8)).astype(np.float32)
    counts = [5] * 24 + [6, 7, 5, 4, 5, 1]
    texts = [
        image * 0.6 + rng.normal(size=(count, 8)).astype(np.float32)
        for image, count in zip(images, counts, strict=True)
    ]
    first = [of_image[:5] for of_image in texts]
    owner = np.repeat(np.arange(30), [len(of_image) for of_image in first])
    items, vectors = (F.normalize(torch.tensor(one), dim=-1) for one in (images, np.concatenate(first)))
    found = {one.name: one.value for one in caption_recalls("test", "image", items, vectors, owner)}
    official = {
        "test/image_to_text/R@1": 0.2666666805744171,
        "test/image_to_text/R@5": 0.7333333492279053,
        "test/image_to_text/R@10": 0.8666666746139526,
        "test/text_to_image/R@1": 0.2689655125141144,
        "test/text_to_image/R@5": 0.634482741355896,
        "test/text_to_image/R@10": 0.8137931227684021,
    }
    assert found == pytest.approx(official, abs=1e-6)


def test_an_equal_caption_of_another_image_is_no_hit() -> None:
    images = torch.eye(3)
    captions_of = images[[0, 1, 1]]  # the caption of the third image is that of the second
    found = {one.name: one for one in caption_recalls("", "image", images, captions_of, np.arange(3))}
    assert found["/text_to_image/R@1"].value == pytest.approx(2 / 3)
    assert found["/text_to_image/R@1"].chance == pytest.approx(1 / 3)
    assert found["/image_to_text/R@1"].value == pytest.approx(1 / 3)  # a tie counts as ranked before


def test_zero_shot_accuracies_are_those_of_clip_benchmark() -> None:
    rng = np.random.default_rng(11)
    offsets = {(c, k): rng.normal(size=8).astype(np.float32) * 0.7 for c in range(8) for k in range(3)}
    base = rng.normal(size=(8, 8)).astype(np.float32)
    labels = rng.integers(0, 8, size=40)
    images = F.normalize(torch.tensor((base[labels] + 2.5 * rng.normal(size=(40, 8))).astype(np.float32)), dim=-1)
    prompts = [
        F.normalize(torch.tensor(np.stack([base[c] + offsets[c, k] for k in range(3)])), dim=-1) for c in range(8)
    ]
    found = {one.name: one.value for one in zero_shot_scores("x", images, labels, prompt_ensemble(prompts))}
    assert found == pytest.approx({"x/accuracy": 0.3171130952380953, "x/top-1": 0.35, "x/top-5": 0.875})
    chance = [one.chance for one in zero_shot_scores("x", images, labels, prompt_ensemble(prompts))]
    assert chance == [1 / 8, 1 / 8, 5 / 8]


def test_a_broken_vector_is_never_right() -> None:
    images = torch.tensor([[1.0, 0.0], [float("nan"), 0.0]])
    found = zero_shot_scores("x", images, np.array([0, 0]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert [one.name for one in found] == ["x/accuracy", "x/top-1"]  # of two classes, any is among the five
    assert found[1].value == 0.5


def test_error_rates_are_those_of_jiwer() -> None:
    references = ["the cat sat on the mat", "hello world", "it is not mine"]
    written = ["the cat sit on mat", "hello there big world", ""]
    words = error_rate("x", [one.split() for one in written], [one.split() for one in references])
    assert words.value == pytest.approx(0.6666666666666666)
    assert error_rate("x", written, references).value == pytest.approx(0.6170212765957447)
    assert normalized_words("DON'T stop, 'til Mr. X’s -- done.") == ["don't", "stop", "til", "mr", "x's", "done"]


def test_the_templates_and_names_of_classes_are_those_of_clip() -> None:
    templates = imagenet_templates()
    assert (len(templates), len(set(templates))) == (80, 80)
    assert all(template.count("{}") == 1 for template in templates)
    assert (templates[0], templates[-1]) == ("a bad photo of a {}.", "a tattoo of the {}.")
    assert prompts_of("tench", ["a {} or {c}"]) == ("a tench or tench",)
    names = class_names()
    assert len(names) == 1000
    assert list(names) == sorted(names)
    assert (names["n01440764"], names["n02012849"], names["n03126707"]) == ("tench", "crane bird", "construction crane")
