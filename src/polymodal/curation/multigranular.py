"""Multigranular descriptions: five fields in a fixed order, from metadata, regions of interest and knowledge.

The fields are those of MedTrinity (Xie et al. 2025): modality, organ and tissue detection, ROI location and
description, disease-related color and texture, and region relationship. `write_description` is a rule-based writer,
`prompt` the request to a language model; what a writer returns goes through `reformat`, which rejects incomplete texts.
`statements` reads the facts of a description, whose precision against a known scene is measured.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from polymodal.corpora.scenes import relate
from polymodal.curation.regions_of_interest import RegionOfInterest
from polymodal.modalities.region import Region

HEADINGS = ("Modality", "Structure", "ROI", "Texture", "Relation")
NO_MODALITY, NO_STRUCTURE = "The modality is not given.", "The structure is not given."
NOT_LOCATED, NOTHING_FOUND = "The region is not located.", "No abnormality is located."
NO_TEXTURE, NO_RELATION = "No texture of a region is given.", "No relation of regions is given."
MAX_RELATIONS = 3
_HEADING = re.compile(rf"\b({'|'.join(HEADINGS)})\s*:\s*", re.I)  # captioners may write lower case alone


class Description(NamedTuple):
    """The five fields of a description, from global to local."""

    modality: str
    structure: str
    roi: str
    texture: str
    relation: str

    def __str__(self) -> str:
        return " ".join(f"{heading}: {text}" for heading, text in zip(HEADINGS, self, strict=True))


def reformat(text: str) -> Description | None:
    """Return the fields of a text in their fixed order, whatever the text's own; None unless each is there once."""
    parts = _HEADING.split(text)
    fields = {heading.lower(): " ".join(value.split()) for heading, value in zip(parts[1::2], parts[2::2], strict=True)}
    ordered = [fields.get(heading.lower(), "") for heading in HEADINGS]
    if len(parts) != 1 + 2 * len(HEADINGS) or parts[0].strip() or not all(ordered):
        return None
    return Description(*ordered)


@dataclass(frozen=True)
class Metadata:
    """What is known of an image before anyone looks: of its data set, and its label."""

    modality: str = "image"
    structure: str = ""
    findings: tuple[str, ...] = ()

    def coarse_caption(self, with_findings: bool = True) -> str:
        """Return 'a MODALITY of STRUCTURE with FINDINGS', of what is given.

        with_findings: False in a query for knowledge where the findings are the answer to a question.
        """
        caption = f"a {self.modality}" + (f" of {self.structure}" if self.structure else "")
        return f"{caption} with {listed(self.findings)}" if self.findings and with_findings else caption


@dataclass(frozen=True)
class Sources:
    """The three sources of a description beside the image: metadata, regions, and retrieved snippets.

    regions: None where none were looked for; empty where none were found.
    """

    image: UInt8[np.ndarray, "height width 3"]
    metadata: Metadata
    regions: Sequence[RegionOfInterest] | None = None
    snippets: Sequence[str] = ()


Writer = Callable[[Sources], str]


def listed(names: Iterable[str]) -> str:
    """Return 'cat, bus and pear'."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def region_in_words(region: RegionOfInterest) -> str:
    """Say where a region is, as the viewer sees it, how large it is, and its fraction of the area in percent."""
    return (
        f"The {region.name} is at the {region.place}, {region.extent}, and covers {max(round(100 * region.area), 1)} % "
        "of the image."
    )


def write_description(sources: Sources) -> str:
    """Write the five fields by templates.

    A snippet is used where it has the name of a finding among its words; what no source says is not said.
    """
    metadata, regions = sources.metadata, sources.regions
    shown = [f"It shows {listed(f'a {name}' for name in metadata.findings)}."] if metadata.findings else []
    if metadata.structure:
        shown.insert(0, f"The structure is {metadata.structure}.")
    shown += relevant(sources.snippets, metadata.findings or (metadata.structure,))
    relations = relations_of(regions or ())
    return str(
        Description(
            f"This is a {metadata.modality}." if metadata.modality else NO_MODALITY,
            " ".join(shown) or NO_STRUCTURE,
            NOT_LOCATED if regions is None else " ".join(map(region_in_words, regions)) or NOTHING_FOUND,
            " ".join(f"The {one.name} is mostly {one.color(sources.image)}." for one in regions or ()) or NO_TEXTURE,
            " ".join(f"The {one} is {how} the {other}." for one, how, other in relations) or NO_RELATION,
        )
    )


def relevant(snippets: Sequence[str], names: Iterable[str]) -> list[str]:
    """Return the first snippet that has a name among its words, for each name, as a sentence."""
    facts = []
    for name in filter(None, names):
        word = re.compile(rf"\b{re.escape(name)}\b", re.I)
        facts += [f"{one.rstrip(' .')}." for one in [next(filter(word.search, snippets), None)] if one]
    return list(dict.fromkeys(facts))


def relations_of(regions: Sequence[RegionOfInterest]) -> list[tuple[str, str, str]]:
    """Return the first relations 'left of' and 'above' of regions whose boxes do not overlap along that axis."""
    edges = relate([[*region.box] for region in regions])[:MAX_RELATIONS]
    return [(regions[edge["source"]].name, edge["relation"], regions[edge["target"]].name) for edge in edges]


INSTRUCTION = """You describe an image from what is given about it: a coarse caption, its regions of interest in words
(left and right as the viewer sees them), and retrieved knowledge. Write five fields, each once, in this order and with
these headings: "Modality:", "Structure:" (what is in the whole image), "ROI:" (where the regions are, how large, what
is abnormal), "Texture:" (color and texture of the regions), "Relation:" (of regions to each other and to what is around
them). Use knowledge only where it is about something in the image. Where nothing is given for a field, say so in it.
"""


def prompt(sources: Sources) -> list[dict[str, str]]:
    """Return the messages that ask a language model for a description: three sources and the fields."""
    regions = sources.regions
    located = NOT_LOCATED if regions is None else " ".join(map(region_in_words, regions)) or NOTHING_FOUND
    knowledge = "\n".join(f"- {snippet}" for snippet in sources.snippets) or "- none"
    request = f"Caption: {sources.metadata.coarse_caption()}\nRegions: {located}\nKnowledge:\n{knowledge}"
    return [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": request}]


def option_question(options: Sequence[str], label: str) -> dict[str, str]:
    """Return the question which of numbered labels an image has, with the label's text as the answer."""
    numbered = " \n ".join(f"{number}: {option}" for number, option in enumerate(options, 1))
    question = f"Options:\n{numbered} \n Which options correspond to the image?"
    return {"question": question, "answer": label, "kind": "label", "rationale": ""}


class Statement(NamedTuple):
    """A fact that a field states: its kind (shows, place, size, color, relation or knowledge) and its words."""

    kind: str
    words: tuple[str, ...]


_PATTERNS = {
    "place": (2, re.compile(r"The ([^.]+?) is at the ([a-z ]+?), (?:large|small), and covers", re.I)),
    "size": (2, re.compile(r"The ([^.]+?) is at the [a-z ]+?, (large|small), and covers", re.I)),
    "color": (3, re.compile(r"The ([^.]+?) is mostly (\w+)\.", re.I)),
    "relation": (4, re.compile(r"The ([^.]+?) is (left of|above) the ([^.]+?)\.", re.I)),
}


def statements(description: Description) -> list[Statement]:
    """Return the facts of a description in the templates' words; a sentence in other words states nothing."""
    facts = []
    for sentence in re.findall(r"[^.]+\.", description.structure):
        if shown := re.fullmatch(r"It shows (.+)\.", sentence.strip(), re.I):
            names = re.split(r", | and ", shown[1])
            facts += [Statement("shows", (name.removeprefix("a "),)) for name in names]
        elif not sentence.strip().lower().startswith("the structure is"):
            facts.append(Statement("knowledge", (sentence.strip(),)))
    for kind, (place, pattern) in _PATTERNS.items():
        facts += [Statement(kind, words) for words in pattern.findall(description[place])]
    return facts


def scene_facts(regions: Sequence[Region], colors: Mapping[str, str], side: int) -> set[Statement]:
    """Return the facts of a composed scene, whose regions are named by size and object ('small cat').

    colors: of every object. Knowledge is not among them.
    """
    from polymodal.corpora.scenes import place_name

    facts: set[Statement] = set()
    names = [region.name.partition(" ")[2] for region in regions]
    for name, region in zip(names, regions, strict=True):
        facts |= {
            Statement("shows", (name,)),
            Statement("size", (name, region.name.partition(" ")[0])),
            Statement("place", (name, place_name([*region.box], side))),
            Statement("color", (name, colors[name])),
        }
    edges = relate([[*region.box] for region in regions])
    return facts | {
        Statement("relation", (names[edge["source"]], edge["relation"], names[edge["target"]])) for edge in edges
    }


def factual_precision(pairs: Iterable[tuple[Iterable[Statement], set[Statement]]]) -> dict[str, float]:
    """Return the fraction of stated facts that are true, by their kind. pairs: of stated and true facts, an image each.

    Facts of the image and retrieved ones have kinds of their own, as retrieved ones may be true and not visible.
    """
    right: dict[str, list[bool]] = {}
    for stated, true in pairs:
        for statement in stated:
            right.setdefault(statement.kind, []).append(statement in true)
    return {kind: sum(values) / len(values) for kind, values in right.items()}
