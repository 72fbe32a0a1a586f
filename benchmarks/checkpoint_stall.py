"""What checkpoints cost the training: paired runs with one every 20 steps and with none, and the time inside `save`.

python benchmarks/checkpoint_stall.py
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from polymodal import corpora
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.encoders.text import TextEncoderConfig
from polymodal.recipes.dual_encoders import clip
from polymodal.training import train
from polymodal.training.loop import Trainer
from polymodal.training.runtime import RuntimeConfig
from polymodal.types import Budget

RECIPE = clip.Recipe(
    image=ImageEncoderConfig(image_size=64, patch_size=8, width=256, depth=3), text=TextEncoderConfig(width=256)
)
STEPS, EVERY, ROUNDS = 41, 20, 3


def run(every: int) -> tuple[float, list[float]]:
    """Wall seconds of all steps with their checkpoints, and of each call of `save`."""
    saves: list[float] = []
    plain_save = Trainer.save

    def timed(self: Trainer) -> None:
        begin = time.perf_counter()
        plain_save(self)
        saves.append(time.perf_counter() - begin)

    Trainer.save = timed  # type: ignore[method-assign]
    stamps: list[float] = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            options = RuntimeConfig(save_interval=f"{every}steps", logger="none")
            train(
                RECIPE,
                corpora.emoji(),
                Budget(steps=STEPS),
                out=Path(folder) / "run",
                runtime=options,
                on_step=lambda *_: stamps.append(time.perf_counter()),
            )
    finally:
        Trainer.save = plain_save  # type: ignore[method-assign]
    return stamps[-1] - stamps[0], saves


def main() -> None:
    run(EVERY)  # reads and decodes the corpus
    pairs = [(run(10 * STEPS)[0], run(EVERY)) for _ in range(ROUNDS)]
    without = statistics.median(seconds for seconds, _ in pairs)
    slower = statistics.median(seconds / plain - 1 for plain, (seconds, _) in pairs)
    inside = statistics.median(second for _, (_, saves) in pairs for second in saves)
    step = without / (STEPS - 1)
    print(f"a step takes {1e3 * step:.0f} ms; a checkpoint every {EVERY} steps")
    print(f"inside save: {1e3 * inside:.1f} ms, {inside / (EVERY * step):.2%} of the time")
    print(f"whole run: {slower:+.2%} against none")


if __name__ == "__main__":
    main()
