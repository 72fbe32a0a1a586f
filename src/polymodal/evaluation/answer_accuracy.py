"""Accuracy of a written answer against one or several references, by the rules of the published benchmarks.

VQA accuracy (Antol et al. 2015, Goyal et al. 2017) with the normalization of the official evaluation code
(github.com/GT-Vision-Lab/VQA); ANLS of DocVQA (Mathew et al. 2021); relaxed accuracy of ChartQA (Masry et al. 2022).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

VQA_ANSWERS = 10  # references of a question of VQA v2
ARTICLES = {"a", "an", "the"}
NUMBER_WORDS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"} | {
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# Words without or with wrong apostrophes, as the official code lists them, and what they become.
_CONTRACTIONS = """
aint:ain't arent:aren't cant:can't couldve:could've couldnt:couldn't couldn'tve:couldn't've couldnt've:couldn't've
didnt:didn't doesnt:doesn't dont:don't hadnt:hadn't hadnt've:hadn't've hadn'tve:hadn't've hasnt:hasn't havent:haven't
hed:he'd hed've:he'd've he'dve:he'd've hes:he's howd:how'd howll:how'll hows:how's Id've:I'd've I'dve:I'd've Im:I'm
Ive:I've isnt:isn't itd:it'd itd've:it'd've it'dve:it'd've itll:it'll let's:let's maam:ma'am mightnt:mightn't
mightnt've:mightn't've mightn'tve:mightn't've mightve:might've mustnt:mustn't mustve:must've neednt:needn't
notve:not've oclock:o'clock oughtnt:oughtn't ow's'at:'ow's'at 'ows'at:'ow's'at 'ow'sat:'ow's'at shant:shan't
shed've:she'd've she'dve:she'd've she's:she's shouldve:should've shouldnt:shouldn't shouldnt've:shouldn't've
shouldn'tve:shouldn't've somebody'd:somebodyd somebodyd've:somebody'd've somebody'dve:somebody'd've
somebodyll:somebody'll somebodys:somebody's someoned:someone'd someoned've:someone'd've someone'dve:someone'd've
someonell:someone'll someones:someone's somethingd:something'd somethingd've:something'd've
something'dve:something'd've somethingll:something'll thats:that's thered:there'd thered've:there'd've
there'dve:there'd've therere:there're theres:there's theyd:they'd theyd've:they'd've they'dve:they'd've theyll:they'll
theyre:they're theyve:they've twas:'twas wasnt:wasn't wed've:we'd've we'dve:we'd've weve:we've werent:weren't
whatll:what'll whatre:what're whats:what's whatve:what've whens:when's whered:where'd wheres:where's whereve:where've
whod:who'd whod've:who'd've who'dve:who'd've wholl:who'll whos:who's whove:who've whyll:why'll whyre:why're whys:why's
wont:won't wouldve:would've wouldnt:wouldn't wouldnt've:wouldn't've wouldn'tve:wouldn't've yall:y'all yall'll:y'all'll
y'allll:y'all'll yall'd've:y'all'd've y'alld've:y'all'd've y'all'dve:y'all'd've youd:you'd youd've:you'd've
you'dve:you'd've youll:you'll youre:you're youve:you've
"""
CONTRACTIONS = dict(pair.split(":") for pair in _CONTRACTIONS.split())
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MAX_PERIODS = 32  # what the official code passes as flags is the number of replacements
MIN_SIMILARITY = 0.5  # threshold of ANLS
VQA_ACCURACY = "VQA accuracy: min(matches / 3, 1) averaged over leaving out each reference; official normalization"
TOLERANCE = 0.05  # relative, of numbers in ChartQA


def vqa_normalized(answer: str) -> str:
    """Normalize an answer as the official VQA code does: punctuation, case, number words, articles, contractions."""
    normalized = answer
    for mark in PUNCTUATION:
        # A mark beside a space, or in an answer with a number such as 1,000, is removed; others become a space.
        beside_space = f"{mark} " in answer or f" {mark}" in answer
        normalized = normalized.replace(mark, "" if beside_space or _COMMA_IN_NUMBER.search(answer) else " ")
    normalized = _PERIOD.sub("", normalized, count=_MAX_PERIODS)
    words = (NUMBER_WORDS.get(word, word) for word in normalized.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """Return min(matches / 3, 1), averaged over leaving out each of the references (usually 10).

    Answers are normalized only where the references differ, as in the official code.
    """
    answer, *others = (text.replace("\n", " ").replace("\t", " ").strip() for text in (answer, *references))
    if len(set(others)) > 1:
        answer, *others = map(vqa_normalized, (answer, *others))
    matches = others.count(answer)
    without_each = [min((matches - (other == answer)) / 3, 1.0) for other in others]
    return sum(without_each) / len(without_each)


def anls(answer: str, references: Sequence[str]) -> float:
    """Return the largest normalized Levenshtein similarity to a reference, 0 below 0.5, ignoring case and spacing."""
    written = _plain(answer)
    similarity = max(Levenshtein.normalized_similarity(written, _plain(reference)) for reference in references)
    return similarity if similarity >= MIN_SIMILARITY else 0.0


def relaxed_accuracy(answer: str, references: Sequence[str]) -> float:
    """Return 1.0 for a number within 5 % of a reference, or for the same text in any case; otherwise 0.0.

    A number that ends in % is a hundredth of it. A reference of 0 has no relative error and is compared as text.
    """
    return float(any(_is_close(answer.strip(), reference.strip()) for reference in references))


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _is_close(answer: str, reference: str) -> bool:
    number, target = _number(answer), _number(reference)
    if number is not None and target:
        return abs(number - target) <= TOLERANCE * abs(target)
    return answer.lower() == reference.lower()


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
