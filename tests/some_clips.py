"""Some clips as those of the corpus `clips`, of emoji in the place of stamps, which are a large download."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from polymodal.corpora import Corpus
from polymodal.corpora.clips import MOTIONS, Actor, film
from polymodal.corpora.corpus import About
from polymodal.corpora.scenes import sprites_of
from polymodal.modalities import Questions, Regions, Text, Video
from polymodal.modalities.video import encode


def some_clips() -> Corpus:
    sprites, rows = sprites_of("google")[:12], []
    for number in range(112):
        rng = np.random.default_rng(number)
        chosen = rng.choice(len(sprites), size=2, replace=False)
        actors = [Actor("a", sprites[place].name, sprites[place].image, None) for place in chosen]
        motions = [str(motion) for motion in rng.choice(list(MOTIONS), size=2, replace=False)]
        frames, boxes = film(actors, motions, rng)
        said = [f"a {actor.name} {motion}" for actor, motion in zip(actors, motions, strict=True)]
        rows.append(
            {
                "video": encode(frames, 8),
                "captions": [{"text": " and ".join(said), "language": "en"}],
                "regions": [{"name": actor.name, "box": box} for actor, box in zip(actors, boxes, strict=True)],
                "questions": [
                    {"question": f"What {motions[0]}?", "answer": actors[0].name, "kind": "object", "rationale": ""},
                    {"question": "How many things are there?", "answer": "2", "kind": "count", "rationale": ""},
                ],
            }
        )
    return Corpus(
        about=About("some clips", "clips", "none", "here", ("video", "text")),
        table=pa.Table.from_pylist(rows),
        columns={"video": Video(16), "captions": Text(), "regions": Regions(), "questions": Questions()},
        splits={"train": np.arange(80), "validation": np.arange(80, 96), "test": np.arange(96, 112)},
    )
