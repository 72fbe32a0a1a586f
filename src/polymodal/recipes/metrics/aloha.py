"""ALOHa: a metric of object hallucination in captions, matching objects to references by semantic similarity.

A fixed list of objects, as CHAIR has it, finds only what is on the list. Here every object of the caption is compared
with every object of the references and of a detector, in any words; each reference object may stand for one of the
caption's only (Hungarian matching). What a caption says with doubt is not judged, and of alternatives the better one
counts (section 3 of the paper).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

from polymodal.corpora._wordnet import WordNet, wordnet
from polymodal.encoders.static_text import static_text
from polymodal.errors import UserError, needs
from polymodal.evaluation.caption_metric import CaptionScore
from polymodal.recipes.metrics._objects import object_lines, root
from polymodal.types import Paper

paper = Paper(
    slug="aloha",
    title="ALOHa: A New Measure for Hallucination in Captioning Models",
    year=2024,
    arxiv="2404.02904",
    modalities=("text",),
)
WANTED_BY = "metric 'aloha'"
Entry = tuple[str, ...]  # an object, or several alternatives for one


def parse_objects(lines: str, reference: bool) -> list[Entry]:
    """The objects in lines of "- object" (section 3.1): alternatives apart, in lower case, each entry once.

    What is "(possibly)" there is left out of a caption's objects, and stays among those of a reference.
    """
    entries: dict[Entry, None] = {}
    for line in lines.lower().splitlines():
        line = line.strip()
        if len(line) < 3 or not line.startswith("-") or ("possibly" in line and not reference):
            continue
        said = line.lstrip("- ").partition("(")[0].replace("possibly", "")
        parts = tuple(part for one in re.split(r",| or ", said) if (part := " ".join(one.split())))
        if parts:
            entries[parts] = None
    return list(entries)


def match_objects(similarity: Float[np.ndarray, "targets references"]) -> Float[np.ndarray, " targets"]:
    """The similarity of each target's own reference in the best matching of all; 0 for those left over (equation 2)."""
    found = np.zeros(len(similarity))
    targets, references = linear_sum_assignment(similarity, maximize=True)
    found[targets] = similarity[targets, references]
    return found


@dataclass(frozen=True)
class Recipe:
    similarity_model: str = "static"
    """What compares two objects: static (fixed token vectors), exact (the same phrase or noun), or the name or folder
    of a sentence-transformers model, such as all-mpnet-base-v2, which the paper uses."""
    matching: Literal["hungarian", "nearest"] = "hungarian"
    """Whether a reference object stands for one object of the caption, or for all that it is the nearest of."""
    reduction: Literal["min", "mean"] = "min"
    """What the score of a caption is of its objects' scores."""
    add_root_nouns: bool = True
    """Whether the noun alone stands beside every reference phrase, "car" beside "red car"."""

    def score(self, caption: str, references: Sequence[str], detections: Sequence[str] = ()) -> CaptionScore:
        """Between 0 (made up) and 1 for the caption and for each of its objects.

        references: captions of the same image. detections: names of objects that a detector found. A caption without
        an object gets 1, and has no objects to look at.
        """
        lexicon = wordnet(WANTED_BY)
        targets = parse_objects(object_lines(caption, lexicon), reference=False)
        known = self._references(references, detections, lexicon)
        if not targets:
            return CaptionScore(1.0, {})
        scores = self.compare(targets, known)
        objects = {" or ".join(entry): float(score) for entry, score in zip(targets, scores, strict=True)}
        return CaptionScore(float(scores.min() if self.reduction == "min" else scores.mean()), objects)

    def _references(self, captions: Sequence[str], detections: Sequence[str], lexicon: WordNet) -> list[Entry]:
        found = parse_objects("\n".join(object_lines(caption, lexicon) for caption in captions), reference=True)
        nouns = (
            [tuple(dict.fromkeys(root(part, lexicon) for part in entry)) for entry in found]
            if self.add_root_nouns
            else []
        )
        return list(dict.fromkeys([*found, *nouns, *((name.lower(),) for name in detections)]))

    def compare(self, targets: Sequence[Entry], references: Sequence[Entry]) -> Float[np.ndarray, " targets"]:
        """The score of each target, 0 to 1. Of alternatives on either side, the most similar two count."""
        if not references:
            return np.zeros(len(targets))
        similarity = np.array([[self._similar(target, other) for other in references] for target in targets])
        scores = match_objects(similarity) if self.matching == "hungarian" else similarity.max(axis=1)
        return scores.clip(0, 1)

    def _similar(self, one: Entry, other: Entry) -> float:
        if self.similarity_model == "exact":
            lexicon = wordnet(WANTED_BY)
            return float(bool({*one, *(root(part, lexicon) for part in one)} & set(other)))
        return float((self._vectors(one) @ self._vectors(other).T).max())

    def _vectors(self, entry: Entry) -> Float[np.ndarray, "alternatives dim"]:
        return embed_phrases(self.similarity_model, entry)

    @classmethod
    def paper(cls) -> Recipe:
        """With the sentence embeddings of the released code."""
        return cls(similarity_model="all-mpnet-base-v2")


@functools.lru_cache(maxsize=50_000)
def embed_phrases(similarity_model: str, entry: Entry) -> Float[np.ndarray, "alternatives dim"]:
    """Unit vectors of an entry's alternatives."""
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
