"""Does a metric see what a caption makes up? Captions of composed scenes, true and spoilt in known ways.

In the design of HAT and nocaps-FOIL (Petryk et al. 2024, section 4): one object of a true caption is exchanged for one
that is not there, on the list of COCO's classes or outside of it; one is added, any absent one or the one most similar
to what is there, which one-to-one matching is for; one is called by another right name, which is no mistake; one is
added with doubt, which is none, either.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from polymodal.corpora._wordnet import WordNet, wordnet
from polymodal.corpora.corpus import Corpus
from polymodal.errors import UserError
from polymodal.evaluation.caption_metric import CaptionScore, Metric
from polymodal.evaluation.coco import COCO_CLASSES
from polymodal.evaluation.object_parser import root
from polymodal.evaluation.statistics import Score, ratio
from polymodal.modalities import Regions, Text

Kind = Literal["true", "in_list", "out_of_list", "added", "similar", "synonym", "doubted"]
WRONG: tuple[Kind, ...] = ("in_list", "out_of_list", "added", "similar")
KINDS: tuple[Kind, ...] = ("true", *WRONG, "synonym", "doubted")
PERSON = "person"


def listed_class(name: str, lexicon: WordNet) -> str | None:
    """The class of COCO that a noun is, or is a kind of in its most frequent sense; None outside the list.

    A person is only what is one in most senses, because WordNet puts the tiger in a man before the animal.
    """
    if name in COCO_CLASSES:
        return COCO_CLASSES[name]
    noun = lexicon.noun(name)
    if noun is None:
        return None
    if noun.replace("_", " ") in COCO_CLASSES:
        return COCO_CLASSES[noun.replace("_", " ")]
    listed = next((one for one in lexicon.kinds(noun) if one in COCO_CLASSES.values()), None)
    return None if listed == PERSON and lexicon.share_of_senses(noun, PERSON) <= 0.5 else listed


@dataclass(frozen=True)
class Case:
    """A caption to judge. objects: how many it names. wrong: the one that it makes up; None where it is right.

    scene: the number of its scene.
    """

    kind: Kind
    caption: str
    references: tuple[str, ...]
    objects: int
    wrong: str | None = None
    scene: int = 0


@dataclass(frozen=True)
class Scene:
    """The names of an image's objects, a caption that has them in this order, and other captions of the image."""

    names: tuple[str, ...]
    caption: str
    references: tuple[str, ...]


def scenes_of(corpus: Corpus, split: str, max_images: int) -> list[Scene]:
    """Images with named objects whose sizes are in one caption. Raises UserError for any other corpus."""
    texts = [name for name, modality in corpus.columns.items() if isinstance(modality, Text)]
    if len(texts) < 2:
        raise UserError(f"A test of made-up objects needs several captions an image; '{corpus.name}' has none.")
    regions = corpus.column_with(Regions)
    scenes = []
    for row in corpus.sample(split, max_images).tolist():
        captions = [corpus.value(row, column)[0].text for column in texts]
        names = tuple(region.name.partition(" ")[2] for region in corpus.value(row, regions))
        scenes.append(Scene(names, captions[0], tuple(captions[1:])))
    return scenes


def cases(scenes: Sequence[Scene], lexicon: WordNet, seed: int) -> list[Case]:
    """Every kind of every scene that has one, in the order of `KINDS`; what is exchanged is sampled with the seed."""
    nouns_of_corpus = sorted({name for scene in scenes for name in scene.names if lexicon.noun(name)})
    listed = [name for name in nouns_of_corpus if listed_class(name, lexicon)]
    others = [name for name in nouns_of_corpus if not listed_class(name, lexicon)]
    rng = np.random.default_rng(seed)
    all_cases = []
    for number, scene in enumerate(scenes):
        nouns = [name for name in scene.names if lexicon.noun(name)]
        if not nouns:
            continue
        name = str(rng.choice(nouns))
        absent: dict[Kind, list[str]] = {
            "in_list": _absent(listed, scene, lexicon),
            "out_of_list": _absent(others, scene, lexicon),
        }
        if not all(absent.values()):
            continue
        drawn = {kind: str(rng.choice(names)) for kind, names in absent.items()}
        extra = drawn["in_list" if rng.random() < 0.5 else "out_of_list"]
        count, more = len(scene.names), len(scene.names) + 1
        all_cases.append(Case("true", scene.caption, scene.references, count, scene=number))
        for kind, other in drawn.items():
            all_cases.append(Case(kind, _exchanged(scene.caption, name, other), scene.references, count, other, number))
        all_cases.append(Case("added", f"{scene.caption} and a {extra}", scene.references, more, extra, number))
        similar = _nearest_absent(nouns, [*absent["in_list"], *absent["out_of_list"]], lexicon)
        all_cases.append(Case("similar", f"{scene.caption} and a {similar}", scene.references, more, similar, number))
        if right := {noun: names for noun in nouns if (names := _other_names(noun, lexicon))}:
            noun = str(rng.choice(list(right)))
            renamed = _exchanged(scene.caption, noun, str(rng.choice(right[noun])))
            all_cases.append(Case("synonym", renamed, scene.references, count, scene=number))
        all_cases.append(
            Case("doubted", f"{scene.caption} and possibly a {extra}", scene.references, more, scene=number)
        )
    return sorted(all_cases, key=lambda case: KINDS.index(case.kind))


def _absent(names: Sequence[str], scene: Scene, lexicon: WordNet) -> list[str]:
    """Names of what is not in the scene under any name: neither a kind of what is there, nor the other way round."""
    here = [noun for name in scene.names if (noun := lexicon.noun(name))]
    kinds_here = {word for noun in here for word in lexicon.kinds(noun)}
    classes = {listed_class(name, lexicon) for name in scene.names} - {None}
    return [
        name
        for name in names
        if (noun := lexicon.noun(name))
        and noun not in kinds_here
        and not set(lexicon.kinds(noun)) & set(here)
        and listed_class(name, lexicon) not in classes
    ]


def _nearest_absent(names: Sequence[str], absent: Sequence[str], lexicon: WordNet) -> str:
    """Return the absent object that shares most hypernyms with one of the names, as a wolf with a dog."""

    def shared(name: str) -> float:
        noun = lexicon.noun(name)
        hypernyms = {*lexicon.kinds(noun)} if noun else set()
        kinds = [{*lexicon.kinds(here)} for one in names if (here := lexicon.noun(one))]
        return max(len(hypernyms & other) / len(hypernyms | other) for other in kinds)

    return max(sorted(absent), key=shared)


def _other_names(name: str, lexicon: WordNet) -> list[str]:
    noun = lexicon.noun(name)
    if noun is None:
        return []
    names = [*lexicon.synonyms(noun), *lexicon.hypernyms(noun)]
    return [word.replace("_", " ") for word in names if lexicon.noun(word) and lexicon.is_thing(word)]


def _exchanged(caption: str, name: str, other: str) -> str:
    return re.sub(rf"\b{re.escape(name)}\b", lambda _: other, caption, count=1)


def hallucination_scores(metric: Metric, corpus: Corpus, max_images: int, seed: int) -> list[Score]:
    """How well the metric ranks captions that make something up below true ones, and names what is made up.

    The threshold below which a caption is flagged is chosen on scenes of the validation split. Raises UserError when
    there are too few scenes for captions of every kind.
    """
    lexicon = wordnet("metric's test")
    tuning, test = (cases(scenes_of(corpus, split, max_images), lexicon, seed) for split in ("validation", "test"))
    if any({case.kind for case in tested} < {*KINDS} for tested in (tuning, test)):
        raise UserError(f"{max_images} images have too few objects to exchange; test metrics on 30 or more.")
    threshold = _threshold(_by_kind(tuning, _judged(metric, tuning)))
    judged = _judged(metric, test)
    values = _by_kind(test, judged)
    scenes = {kind: np.array([case.scene for case in test if case.kind == kind]) for kind in KINDS}

    def together(kinds: Sequence[Kind]) -> tuple[np.ndarray, np.ndarray]:
        """Values and scenes of captions of several kinds."""
        return np.concatenate([values[kind] for kind in kinds]), np.concatenate([scenes[kind] for kind in kinds])

    scores = []
    correct: dict[str, tuple[Kind, ...]] = {
        "average_precision": ("true",),
        "average_precision_among_synonyms": ("true", "synonym"),
    }
    for name, kinds in correct.items():
        right, scenes_of_right = together(kinds)
        scores += [
            average_precision(f"{kind}/{name}", values[kind], right, scenes[kind], scenes_of_right) for kind in WRONG
        ]
    (wrong, scenes_of_wrong), (right, scenes_of_right) = together(WRONG), together(("true", "synonym"))
    scores.append(average_precision("mixed/average_precision", wrong, right, scenes_of_wrong, scenes_of_right))
    scores.append(f1("mixed/F1", wrong <= threshold, right <= threshold, scenes_of_wrong, scenes_of_right))
    for kind in WRONG:
        those = [(case, one) for case, one in zip(test, judged, strict=True) if case.kind == kind and case.wrong]
        localized = np.array([_localized(one, case.wrong or "", lexicon) for case, one in those], dtype=float)
        guess = float(np.mean([1 / case.objects for case, _ in those]))
        scores.append(Score(f"{kind}/localisation", localized, guess))
    flagged = (values["synonym"] <= threshold).astype(float)
    scores.append(Score("synonym/false_alarms", flagged, None, higher_is_better=False))
    changed = (values["doubted"] != values["true"]).astype(float)
    scores.append(Score("doubted/changed_scores", changed, None, higher_is_better=False))
    return scores


def _judged(metric: Metric, tested: Sequence[Case]) -> list[CaptionScore]:
    return [metric.score(case.caption, case.references) for case in tested]


def _by_kind(tested: Sequence[Case], judged: Sequence[CaptionScore]) -> dict[Kind, Float[np.ndarray, " cases"]]:
    return {
        kind: np.array([one.value for case, one in zip(tested, judged, strict=True) if case.kind == kind])
        for kind in KINDS
    }


def average_precision(
    name: str,
    wrong: Float[np.ndarray, " wrong"],
    right: Float[np.ndarray, " right"],
    scenes_of_wrong: Int[np.ndarray, " wrong"],
    scenes_of_right: Int[np.ndarray, " right"],
) -> Score:
    """The mean over wrong captions of the fraction of wrong ones among all that score no higher; chance is their part
    of all. The unit is a scene with all of its captions, left out in turn.
    """
    every = np.concatenate([scenes_of_wrong, scenes_of_right])
    numbers, places = np.unique(every, return_inverse=True)
    of_wrong, of_right = (np.eye(len(numbers))[part] for part in np.split(places, [len(wrong)]))
    lower_wrong = (wrong[None] <= wrong[:, None]) @ of_wrong  # by scene
    lower_right = (right[None] <= wrong[:, None]) @ of_right
    all_wrong, all_right = lower_wrong.sum(1), lower_right.sum(1)
    value = float((all_wrong / (all_wrong + all_right)).mean())
    # Without a scene, its captions are in no count, and its wrong ones are no rows of the mean.
    rest_wrong, rest_right = all_wrong[:, None] - lower_wrong, all_right[:, None] - lower_right
    precision = ratio(rest_wrong, rest_wrong + rest_right) * (1 - of_wrong)
    left_out = ratio(precision.sum(0), (1 - of_wrong).sum(0))
    return Score.from_jackknife(name, value, left_out, len(wrong) / len(every))


def f1(
    name: str,
    flagged_wrong: Bool[np.ndarray, " wrong"],
    flagged_right: Bool[np.ndarray, " right"],
    scenes_of_wrong: Int[np.ndarray, " wrong"],
    scenes_of_right: Int[np.ndarray, " right"],
) -> Score:
    """Twice the flagged wrong captions, divided by all flagged and all wrong ones; chance is that of flagging all. The
    unit is a scene with all of its captions, left out in turn.
    """
    numbers, places = np.unique(np.concatenate([scenes_of_wrong, scenes_of_right]), return_inverse=True)
    of_wrong, of_right = np.split(places, [len(scenes_of_wrong)])
    detected, missed, alarms = (
        np.bincount(of, weights=flags, minlength=len(numbers))
        for of, flags in ((of_wrong, flagged_wrong), (of_wrong, ~flagged_wrong), (of_right, flagged_right))
    )

    # The first row counts all scenes; each other one leaves a scene out.
    detected, missed, alarms = (np.r_[counts.sum(), counts.sum() - counts] for counts in (detected, missed, alarms))
    value, *left_out = ratio(2 * detected, 2 * detected + missed + alarms)
    wrong, right = len(scenes_of_wrong), len(scenes_of_right)
    return Score.from_jackknife(name, float(value), np.array(left_out), 2 * wrong / (2 * wrong + right))


def _threshold(values: Mapping[Kind, Float[np.ndarray, " cases"]]) -> float:
    """Where the fraction of flagged wrong captions, of all kinds, less that of flagged right ones is largest.

    Captions with a synonym are right, too: without them a threshold just below the score of true captions is best.
    """
    wrong, right = (np.concatenate([values[kind] for kind in kinds]) for kinds in (WRONG, ("true", "synonym")))
    places = np.unique(np.concatenate([wrong, right]))
    gains = [(wrong <= place).mean() - (right <= place).mean() for place in places]
    return float(places[int(np.argmax(gains))])


def _localized(judged: CaptionScore, wrong: str, lexicon: WordNet) -> bool:
    """Whether the object with the lowest score, and no other, is the one that was made up, in singular or plural."""
    if not judged.objects:
        return False
    lowest = min(judged.objects.values())
    worst = [phrase for phrase, score in judged.objects.items() if score == lowest]
    return len(worst) == 1 and lexicon.noun(root(worst[0], lexicon)) == lexicon.noun(wrong)
