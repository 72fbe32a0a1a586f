"""The entities that a corpus' texts name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from polymodal.corpora._wordnet import wordnet
from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.column import MAX_ROWS
from polymodal.data.processor import Processor
from polymodal.errors import UserError
from polymodal.modalities import Text
from polymodal.modalities.text import Tokens


def frequent_nouns(corpus: Corpus, max_nouns: int) -> list[str]:
    """Return the most frequent nouns for physical objects in texts of the training split, one word each.

    They are the entities of ALPRO's prompter (Li et al. 2022, section 3.3). max_nouns: 0 for none; others need WordNet,
    a download of 11 MB. Raises UserError where there are fewer than two, as without English texts.
    """
    if not max_nouns:
        return []
    column, lexicon = corpus.column_with(Text), wordnet("alpro")
    modality: Any = corpus.columns[column]
    counts: Counter[str] = Counter()
    for raw in corpus.raw_values(corpus.sample("train", MAX_ROWS), column):
        for caption in modality.in_main_language(modality.decode(raw)):
            counts.update(re.findall(r"[^\W\d_]+", caption.text.lower()))
    nouns = [word for word, _ in counts.most_common() if lexicon.is_mostly_thing(word)][:max_nouns]
    if len(nouns) < 2:
        raise UserError(f"Texts of '{corpus.name}' name no things in English; take --no-use-pem.")
    return nouns


def article_prompts(*kinds: str) -> tuple[str, ...]:
    """Return templates such as "A photo of the {}.", for each kind with a, the and one (ALPRO, released code)."""
    return tuple(f"A {kind} of {article} {{}}." for kind in kinds for article in ("a", "the", "one"))


def entity_prompts(processor: Processor, *templates: Sequence[str]) -> list[list[Tokens]]:
    """Return, for each set of templates, the prompts of every entity; nothing without entities."""
    return [
        [processor.text([template.format(entity) for template in some]) for entity in processor.entities]
        for some in templates
        if processor.entities
    ]
