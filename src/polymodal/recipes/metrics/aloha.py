"""ALOHa: a metric of object hallucination in captions, matching objects to references by semantic similarity.

A fixed list of objects, as in CHAIR, finds only what is on the list. Here an object parser lists the objects of the
caption, and those of the references and of a detector, in any words; they are matched one to one by the similarity of
their embeddings (Hungarian algorithm), and the worst match is the score. Objects that a caption is uncertain of are not
judged, and of alternatives the best choice counts (section 3 of the paper). Differs from the released code: objects
left without a reference score 0 also in the caption's score (there only in the list of matches), a caption without
objects scores 1 (there 0), the parser is a noun-phrase grammar or a local chat model in place of gpt-3.5-turbo, and
detections are given, not computed.

Terms: LLM object extraction = evaluation.object_parser.ChatModelParser, noun chunks =
evaluation.object_parser.NounPhraseParser, Hungarian matching = match_objects, ALOHa_o = CaptionScore.objects, ALOHa =
CaptionScore.value, CHAIR = evaluation.chair.Chair, localization accuracy = evaluation.hallucination.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

from polymodal.constraints import UnitInterval
from polymodal.corpora._wordnet import wordnet
from polymodal.encoders.static_text import static_text
from polymodal.errors import UserError, needs
from polymodal.evaluation.caption_metric import CaptionScore
from polymodal.evaluation.coco import COCO_CLASSES
from polymodal.evaluation.object_parser import object_parser, root
from polymodal.types import Paper

paper = Paper(
    slug="aloha",
    title="ALOHa: A New Measure for Hallucination in Captioning Models",
    year=2024,
    arxiv="2404.02904",
    modalities=("text",),
    code="DavidMChan/aloha@7da6b90ebe392228ea532a84d78eab830c2b3cb2",
)
WANTED_BY = "metric 'aloha'"
Entry = tuple[str, ...]  # an object, or several alternatives for one
MAX_CHOICES = 512  # of alternatives, that are matched one by one


def parse_objects(lines: str, reference: bool) -> list[Entry]:
    """Parse lines of "- object" (section 3.1): alternatives apart, in lower case, each entry once.

    Objects with "possibly" are left out of a caption's objects, and kept among those of references.
    """
    entries: dict[Entry, None] = {}
    for line in lines.lower().splitlines():
        line = line.strip()
        if len(line) < 3 or not line.startswith("-") or ("possibly" in line and not reference):
            continue
        text = line.lstrip("- ").partition("(")[0].replace("possibly", "")
        parts = tuple(part for one in re.split(r",| or ", text) if (part := " ".join(one.split())))
        if parts:
            entries[parts] = None
    return list(entries)


def _distinct(entries: Sequence[Entry]) -> list[Entry]:
    """Leave out repeated entries, but for those with alternatives, of which each may stand for another object."""
    return [entry for n, entry in enumerate(entries) if len(entry) > 1 or entry not in entries[:n]]


def match_objects(similarity: Float[np.ndarray, "targets references"]) -> Float[np.ndarray, " targets"]:
    """Return the similarity of each target to its reference in the maximum matching; 0 without one (equation 2)."""
    scores = np.zeros(len(similarity))
    targets, references = linear_sum_assignment(similarity, maximize=True)
    scores[targets] = similarity[targets, references]
    return scores


@dataclass(frozen=True)
class Recipe:
    similarity_model: str = "static"
    """Similarity of two objects: static (static token embeddings), exact (the same phrase or noun), or the name or
    folder of a sentence-transformers model."""
    object_parser: str = "noun_phrases"
    """Object parser: noun_phrases (a grammar over WordNet), or the name or folder of a chat model, which is a causal
    language model with a chat template."""
    matching: Literal["hungarian", "nearest"] = "hungarian"
    """Whether a reference object is matched with one object of the caption, or with all that it is nearest to."""
    reduction: Literal["min", "mean"] = "min"
    """Reduction of the objects' scores to that of the caption."""
    add_root_nouns: bool = True
    """Whether the noun alone stands beside every reference phrase, "car" beside "red car"."""
    coco_only: bool = False
    """Whether only the 80 classes of COCO count, on both sides, as with CHAIR."""
    empty_score: UnitInterval = 1.0
    """Score of a caption without objects; 0 in the released code."""

    def score(self, caption: str, references: Sequence[str], detections: Sequence[str] = ()) -> CaptionScore:
        """Return scores in 0 (hallucinated) to 1, of the caption and of each of its objects.

        references: captions of the same image. detections: class names from an object detector (in the paper DETR, with
        a threshold of 0.9). A caption without objects has no object scores.
        """
        parser = object_parser(self.object_parser, WANTED_BY)
        return self.score_lines(parser.parse_caption(caption), parser.parse_references(references), detections)

    def score_lines(self, caption: str, references: str, detections: Sequence[str] = ()) -> CaptionScore:
        """Score lines of "- object", as any object parser writes them.

        references: of all reference captions together.
        """
        targets = parse_objects(caption, reference=False)
        if self.coco_only:
            targets = self._with_roots(targets)
        reference_objects = self._with_roots(parse_objects(references, reference=True))
        return self.compare(targets, [*reference_objects, *((name.lower(),) for name in detections)])

    def _with_roots(self, references: list[Entry]) -> list[Entry]:
        """Add to each entry one of its root nouns; to those of the references, or "red car" would be two objects.

        "dog or cat" thereby stands twice and has references for a dog and a cat, as in the released code.
        """
        if not self.add_root_nouns:
            return references
        lexicon = wordnet(WANTED_BY)
        nouns = [tuple(dict.fromkeys(root(part, lexicon) for part in entry)) for entry in references]
        return [one for pair in zip(references, nouns, strict=True) for one in pair]

    def compare(self, targets: Sequence[Entry], references: Sequence[Entry]) -> CaptionScore:
        """Score the choice of alternatives with the highest caption score, in 0-1.

        With `coco_only` a choice may leave no object. As in the released code it then comes last in the minimum, and in
        the mean it has `empty_score`; otherwise "dog or violin" would never be a hallucinated dog.
        Where there are more than `MAX_CHOICES` choices, the most similar alternatives of two entries are compared.
        """
        targets, references = [*dict.fromkeys(targets)], _distinct(references)
        if math.prod(map(len, [*targets, *references])) > MAX_CHOICES:
            sides = [
                [kept for entry in side if (kept := tuple(filter(self._counts, entry)))]
                for side in (targets, references)
            ]
            similarity = [[self._similarity(one, other).max() for other in sides[1]] for one in sides[0]]
            shape = len(sides[0]), len(sides[1])
            scores = self._matched([" or ".join(entry) for entry in sides[0]], np.reshape(similarity, shape))
            return CaptionScore(self._reduced([*scores.values()]), scores)
        best, highest = CaptionScore(self.empty_score, {}), (False, -1.0)
        for chosen in itertools.product(*targets):
            for others in itertools.product(*references):
                # Duplicates are removed before matching.
                phrases, reference_objects = ([*dict.fromkeys(filter(self._counts, side))] for side in (chosen, others))
                scores_by_phrase = self._matched(phrases, self._similarity(tuple(phrases), tuple(reference_objects)))
                value = self._reduced([*scores_by_phrase.values()])
                if (rank := (bool(scores_by_phrase) or self.reduction == "mean", value)) > highest:
                    highest = rank
                    pairs = zip(targets, chosen, strict=True)
                    best = CaptionScore(
                        value,
                        {" or ".join(entry): scores_by_phrase[one] for entry, one in pairs if one in scores_by_phrase},
                    )
        return best

    def _counts(self, phrase: str) -> bool:
        return not self.coco_only or phrase in COCO_CLASSES

    def _reduced(self, scores: Sequence[float]) -> float:
        if not scores:
            return self.empty_score
        return float(min(scores) if self.reduction == "min" else np.mean(scores))

    def _matched(self, names: Sequence[str], similarity: Float[np.ndarray, "targets references"]) -> dict[str, float]:
        if not similarity.size:
            return dict.fromkeys(names, 0.0)
        matched = match_objects(similarity) if self.matching == "hungarian" else similarity.max(axis=1)
        return dict(zip(names, matched.clip(0, 1).tolist(), strict=True))

    def _similarity(self, one: Entry, other: Entry) -> Float[np.ndarray, "targets references"]:
        """Return the similarity of all pairs of phrases, the cosine of their embeddings."""
        if not one or not other:
            return np.zeros((len(one), len(other)))
        if self.similarity_model == "exact":
            lexicon = wordnet(WANTED_BY)
            return np.array([[float(b in (a, root(a, lexicon))) for b in other] for a in one])
        vectors = [np.concatenate([embed_phrases(self.similarity_model, (a,)) for a in side]) for side in (one, other)]
        return vectors[0] @ vectors[1].T

    @classmethod
    def paper(cls) -> Recipe:
        """Return the released configuration but for its object parser, gpt-3.5-turbo, which is no local model.

        Give `object_parser` a chat model for parsing as in the paper.
        """
        return cls(similarity_model="all-mpnet-base-v2")


@functools.lru_cache(maxsize=50_000)
def embed_phrases(similarity_model: str, entry: Entry) -> Float[np.ndarray, "alternatives dim"]:
    """Return L2-normalized embeddings of phrases."""
    return np.asarray(_model(similarity_model)(list(entry)))


@functools.lru_cache(maxsize=2)
def _model(similarity_model: str) -> Any:
    if similarity_model == "static":
        return static_text(WANTED_BY)
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise needs("sentence-transformers", "export", f"--similarity-model {similarity_model}") from error
    try:
        model = SentenceTransformer(similarity_model, trust_remote_code=False, model_kwargs={"use_safetensors": True})
    except (OSError, ValueError) as error:
        raise UserError(
            f"'{similarity_model}' is no sentence-transformers model that can be read: {str(error).splitlines()[0]}"
        ) from error
    return functools.partial(model.encode, normalize_embeddings=True, show_progress_bar=False)
