"""Buckets against batches sampled at random: training steps on speech of mixed length, whose convolutions need padding.

mSLAM on the corpus `speech`, 64 sounds a batch; the same 32 batches' worth of examples either way, forward and
backward, in turn.

    pip install -e ".[corpora]" && python benchmarks/bucketing.py
"""

from __future__ import annotations

import torch

from in_turn import median_ratio, seconds_in_turn
from polymodal import corpora
from polymodal.data.loader import Reader, TrainingData
from polymodal.data.processor import fit_processor
from polymodal.recipes.speech_audio import mslam

BATCHES, WINDOW, ROUNDS = 32, 16, 3


def main() -> None:
    corpus = corpora.speech()
    recipe = mslam.Recipe(pool_fractions=(1, 0, 0))
    processor = fit_processor(recipe, corpus)
    torch.manual_seed(0)
    model = recipe.build(processor)
    steps, fill = {}, {}
    for label, bucket in (("at random", 0), ("in buckets", WINDOW)):
        data = TrainingData(
            Reader(corpus, processor),
            recipe.batch_size,
            0,
            recipe.training_batch,
            length_bucketing=bucket,
            length_modality=recipe.length_modality,
        )
        batches = [data.batch(number)[0] for number in range(BATCHES)]
        sounds = [batch["sound"] for batch in batches]
        fill[label] = sum(int(s.lengths.sum()) for s in sounds) / sum(s.mask.numel() for s in sounds)
        steps[label] = lambda batches=batches: [sum(model.losses(batch).values()).backward() for batch in batches]
    times = seconds_in_turn(steps, ROUNDS)
    for label, found in times.items():
        ratio = median_ratio(times["at random"], found)
        print(f"{label:<12} {fill[label]:.1%} of the frames are sound   {ratio:.2f} x as fast")


if __name__ == "__main__":
    main()
