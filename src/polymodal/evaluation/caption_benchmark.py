"""Generated captions of a split against its references: BLEU and CIDEr-D."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polymodal.data.conversation import DESCRIBE
from polymodal.errors import UserError
from polymodal.evaluation.caption_metrics import MAX_N, bleu, bleu_statistics, caption_tokens, cider
from polymodal.evaluation.question_answering import written_texts
from polymodal.evaluation.statistics import Score
from polymodal.evaluation.task import TaskInputs


def caption_benchmark_scores(inputs: TaskInputs) -> list[Score]:
    """BLEU-1 to BLEU-4 and CIDEr-D of every test split."""
    return [score for split in inputs.test_splits for score in _split_scores(inputs, split)]


def _split_scores(inputs: TaskInputs, split: str) -> list[Score]:
    _, examples = inputs.reader.read_split(split)
    if len(examples) < 2:
        raise UserError(f"The split '{split}' has one readable image; CIDEr needs the captions of several.")
    images = [example["image"] for example in examples]
    texts = written_texts(inputs.method, inputs.processor, images, [DESCRIBE] * len(images))
    references = [[caption.text for caption in example["text"]] for example in examples]
    return caption_metric_scores(f"{split}/captions", texts, references)


def caption_metric_scores(name: str, captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[Score]:
    """Score the caption of each image, at least two. Chance: the caption of another image, the next one.

    The unit is an image. BLEU is no mean of images: its interval is that of leaving out one image after the other. That
    of CIDEr-D takes the document frequencies as given.
    """
    written = [caption_tokens(caption) for caption in captions]
    right = [[caption_tokens(one) for one in of_image] for of_image in references]
    shifted = [*written[1:], written[0]]
    statistics, by_chance = (
        np.stack([bleu_statistics(one, of_image) for one, of_image in zip(texts, right, strict=True)])
        for texts in (written, shifted)
    )
    total = statistics.sum(0)
    scores = [
        Score.from_jackknife(
            f"{name}/BLEU-{n}",
            float(bleu(total, n)),
            bleu(total - statistics, n),
            float(bleu(by_chance.sum(0), n)),
        )
        for n in range(1, MAX_N + 1)
    ]
    return [*scores, Score(f"{name}/CIDEr", cider(written, right), float(cider(shifted, right).mean()))]


def caption_benchmark_protocol(inputs: TaskInputs) -> Mapping[str, Any]:
    """What the scores depend on."""
    counts = [len(example["text"]) for split in inputs.test_splits for example in inputs.reader.read_split(split)[1]]
    return {
        "prompt": DESCRIBE,
        "metrics": "BLEU-1 to BLEU-4 and CIDEr-D (n = 1 to 4, sigma = 6), as pycocoevalcap computes them",
        "normalization": "Penn Treebank tokens in lower case, without punctuation",
        "references_per_image": [min(counts), max(counts)],
        "chance": "the caption of another image",
    }
