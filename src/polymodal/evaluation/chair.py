"""CHAIR: object hallucination by a fixed list of objects (Rohrbach et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from polymodal.corpora._wordnet import wordnet
from polymodal.evaluation.caption_metric import CaptionScore
from polymodal.evaluation.hallucination import listed_class
from polymodal.evaluation.object_parser import object_lines, root

WANTED_BY = "metric 'CHAIR'"


@dataclass(frozen=True)
class Chair:
    """Mentions of the 80 classes of COCO, or of their hyponyms, that no reference has; other objects are not seen."""

    def score(self, caption: str, references: Sequence[str], detections: Sequence[str] = ()) -> CaptionScore:
        """Return 1 - CHAIR_i: the fraction of mentions that are right, 1 without any; an object's score is 0 or 1."""
        present = {one for text in references for one in self._classes(text).values()}
        present |= {listed for name in detections if (listed := listed_class(name.lower(), wordnet(WANTED_BY)))}
        objects = {phrase: float(one in present) for phrase, one in self._classes(caption).items()}
        return CaptionScore(sum(objects.values()) / len(objects) if objects else 1.0, objects)

    def _classes(self, text: str) -> dict[str, str]:
        """The class of every mention that has one."""
        lexicon = wordnet(WANTED_BY)
        phrases = [line.removeprefix("- ").partition(" (")[0] for line in object_lines(text, lexicon).splitlines()]
        listed = ((phrase, listed_class(root(phrase, lexicon), lexicon)) for phrase in phrases)
        return {phrase: one for phrase, one in listed if one}
