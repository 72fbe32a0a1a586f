"""mSLAM: a Conformer for speech and text, hidden speech told apart, CTC, and what a shared space lets one ask."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from polymodal.corpora import Corpus
from polymodal.corpora.corpus import About
from polymodal.corpora.mixture import mix_corpora
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor, fit_processor
from polymodal.encoders.speech_text import SpeechTextEncoderConfig
from polymodal.errors import UserError
from polymodal.evaluation.evaluate import evaluate
from polymodal.evaluation.tasks.transcription import CanTranscribe, transcription_scores
from polymodal.layers.quantize import perplexity
from polymodal.modalities import Audio, Category, Text
from polymodal.modalities.audio import encoded
from polymodal.modalities.text import Caption
from polymodal.models.w2v_bert import W2vBertConfig
from polymodal.recipes.speech_audio import mslam
from polymodal.rng import ExampleRNG
from polymodal.training import Run, load_run, train
from polymodal.training.runtime import RuntimeConfig
from polymodal.types import Budget

QUIET = RuntimeConfig(logger="none")
SMALL = SpeechTextEncoderConfig(num_mel_bins=40, width=32, speech_depth=1, shared_depth=1, num_heads=2, vocab_size=60)
TINY = mslam.Recipe(
    batch_size=24,
    optimizer=dataclasses.replace(mslam.Recipe.optimizer, learning_rate=5e-3),
    encoder=SMALL,
    w2v_bert=W2vBertConfig(embed_dim=16, num_codevectors_per_group=16, num_negatives=20),
)
RATE = 16_000
LETTERS = {"a": 300.0, "b": 600.0, "c": 1200.0, "d": 2400.0, "e": 4800.0, " ": 0.0}


def sung(text: str, rng: np.random.Generator) -> np.ndarray:
    """A tone for every letter: a language of which one can tell what is right."""
    parts = []
    for letter in text:
        time = np.arange(int(RATE * rng.uniform(0.10, 0.14))) / RATE
        parts.append(0.4 * np.sin(2 * math.pi * LETTERS[letter] * time) * np.hanning(len(time)))
    return (np.concatenate(parts) + 0.002 * rng.standard_normal(sum(map(len, parts)))).astype(np.float32)


def corpus_of(number: int, count: int) -> Corpus:
    rng, rows = np.random.default_rng(number), []
    for _ in range(count):
        low = rng.random() < 0.5
        letters = "abc" if low else "cde"  # two languages, which share one letter
        text = "".join(rng.choice(list(letters), size=rng.integers(3, 8)))
        language = "low" if low else "high"
        rows.append(
            {
                "sound": encoded(sung(text, rng), RATE),
                "captions": [{"text": text, "language": language}],
                "language": language,
            }
        )
    return Corpus(
        about=About("tones", "tones", "none", "here", ("audio", "text")),
        table=pa.Table.from_pylist(rows),
        columns={"sound": Audio(RATE), "captions": Text(), "language": Category(("low", "high"))},
        splits={
            "train": np.arange(count * 7 // 10),
            "validation": np.arange(count * 7 // 10, count * 8 // 10),
            "test": np.arange(count * 8 // 10, count),
        },
        label="language",
    )


@pytest.fixture(scope="module")
def tones() -> Corpus:
    return corpus_of(0, 300)


@pytest.fixture(scope="module")
def processor(tones: Corpus) -> Processor:
    return fit_processor(TINY, tones)


@pytest.fixture(scope="module")
def run(tones: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("mslam") / "run"
    recipe = dataclasses.replace(TINY, finetune_encoder=True, ctc_finetune_fraction=0.5, pool_fractions=(0.2, 0.2, 0.6))
    return train(recipe, tones, Budget(steps=300), out=out, runtime=QUIET)


def method(processor: Processor, **changes: object) -> mslam.MSLAM:
    torch.manual_seed(0)
    return dataclasses.replace(TINY, **changes).build(processor).eval()


def batch_of(processor: Processor, corpus: Corpus, recipe: mslam.Recipe = TINY, count: int = 24) -> dict:
    examples = [processor.load_example(corpus, row) for row in corpus.rows("train")[:count].tolist()]
    return recipe.training_batch(examples, processor, ExampleRNG.of(0, 0, count))


def test_text_leaves_speechs_own_blocks_alone(processor: Processor, tones: Corpus) -> None:
    model = method(processor)
    batch = batch_of(processor, tones, dataclasses.replace(TINY, pool_fractions=(0.0, 1.0, 0.0)))
    losses = model.losses(batch)
    assert all(losses[name].item() == 0.0 for name in ("contrastive", "w2v_bert", "tlm", "ctc"))
    losses["span_bert"].backward()
    speech = [
        *model.encoder.contrastive_block.parameters(),
        *model.encoder.first.parameters(),
        *model.w2v_bert.parameters(),
    ]
    assert all(parameter.grad is None for parameter in speech)
    assert all(parameter.grad is not None for parameter in model.encoder.multimodal_block.parameters())


def test_arms_have_the_same_speech_and_their_own_losses(processor: Processor, tones: Corpus) -> None:
    batch = batch_of(processor, tones)
    wanted = {
        ("none", False): {"contrastive", "diversity", "w2v_bert"},
        ("none", True): {"contrastive", "diversity", "w2v_bert", "span_bert"},
        ("tlm", True): {"contrastive", "diversity", "w2v_bert", "span_bert", "tlm"},
        ("tlm+ctc", True): {"contrastive", "diversity", "w2v_bert", "span_bert", "tlm", "ctc"},
        ("ctc", False): {"contrastive", "diversity", "w2v_bert", "ctc"},
    }
    for (pairs, text), names in wanted.items():
        torch.manual_seed(3)
        losses = method(processor, paired_losses=pairs, unpaired_text=text).losses(batch)
        assert set(losses) == names
        assert all(float(losses[name].detach()) > 0 for name in names)


def test_pairs_are_found_again_among_all_speech(processor: Processor, tones: Corpus) -> None:
    """The codes that the joint sequence is to name are those of the pairs' own hidden moments."""
    model, batch = method(processor), batch_of(processor, tones)
    heard = model.encoder.encode_speech(batch["sound"], batch["masked_sound"])
    quantizer, seen = model.w2v_bert.quantizer, []
    codes = quantizer(heard.features[batch["masked_sound"]]).codes
    model.w2v_bert.masked_prediction_loss = lambda states, codes: seen.append(codes) or torch.zeros(())
    model.tlm_loss(heard, codes, batch)
    by_hand = torch.cat(
        [quantizer(heard.features[row][batch["masked_sound"][row]]).codes for row in batch["pairs"].tolist()]
    )
    assert torch.equal(seen[0], by_hand)


def test_transcripts_cannot_be_copied(processor: Processor, tones: Corpus) -> None:
    """The CTC loss reads speech alone: another transcript in the batch's joint sequence changes nothing in it."""
    model, batch = method(processor), batch_of(processor, tones)
    hidden = batch["masked_transcript"]
    share = hidden.sum() / (batch["transcript"].lengths - 2).sum()
    assert float(share) == pytest.approx(0.5, abs=0.1)
    before = model.losses(batch)["ctc"]
    after = model.losses(batch | {"masked_transcript": torch.zeros_like(hidden)})["ctc"]
    assert torch.equal(before, after)


def test_pools_do_not_share_a_text(processor: Processor, tones: Corpus) -> None:
    pools: dict[str, set[str]] = {}
    counts: dict[str, int] = {}
    for row in range(len(tones)):
        example = processor.load_example(tones, row)
        pool = TINY.pool(example)
        pools.setdefault(pool, set()).add(example["text"][0].text)
        counts[pool] = counts.get(pool, 0) + 1
    assert not any(one & other for one, other in itertools.combinations(pools.values(), 2))
    assert counts["pairs"] / len(tones) == pytest.approx(0.4, abs=0.07)
    assert TINY.pool({"sound": 0}) == "speech"
    assert TINY.pool({"text": []}) == "text"


def test_transcripts_of_sounds_that_are_cut_off_are_not_used(processor: Processor) -> None:
    recipe = dataclasses.replace(TINY, pool_fractions=(0.0, 0.0, 1.0), max_audio_seconds=0.5)
    column = dataclasses.replace(processor.sound, max_audio_seconds=0.5)
    waveforms = [np.zeros(int(seconds * RATE), dtype=np.float32) for seconds in (0.3, 0.49, 0.6)]
    examples = [{"sound": column.frames(waveform), "text": [Caption("ab", "low")]} for waveform in waveforms]
    assert [recipe.pool(example) for example in examples] == ["pairs", "pairs", "speech"]
    assert int(recipe.ctc_finetuning_batch(examples, processor, ExampleRNG.of(0, 0, 3))["num_pairs"]) == 2


def test_a_sound_that_is_cut_off_is_not_scored_by_what_cannot_be_heard(processor: Processor, tones: Corpus) -> None:
    """At 0.6 s about half of the sounds are cut off; the others have the error rate that they have alone."""
    column = dataclasses.replace(processor.sound, max_audio_seconds=0.6)
    deaf = Processor(TINY.columns(), processor.columns | {"sound": column})
    rows = tones.rows("test")
    whole = [row for row in rows.tolist() if len(tones.value(row, "sound")) < 0.6 * RATE]
    assert 0 < len(whole) < len(rows)
    model = method(processor)
    with pytest.warns(
        UserWarning, match=f"{len(rows) - len(whole)} of {len(rows)} sounds of 'test' are cut off at 0.6 s"
    ):
        scores = transcription_scores(model, deaf, Reader(tones, deaf), "test")
    few = tones.with_splits({**tones.splits, "test": np.array(whole)})
    alone = transcription_scores(model, processor, Reader(few, processor), "test")
    assert [score.name for score in scores] == [score.name for score in alone]
    for one, other in zip(scores, alone, strict=True):
        np.testing.assert_allclose(one.clusters, other.clusters)
    short = dataclasses.replace(tones, columns=dict(tones.columns) | {"sound": Audio(RATE, longest=0.2)})
    with pytest.warns(UserWarning, match="are cut off"):
        assert transcription_scores(model, processor, Reader(short, processor), "test") == []


def test_it_learns_to_hear_and_is_read_again(run: Run, tones: Corpus) -> None:
    def mean(name: str, part: slice) -> float:
        entries = [entry["losses"][name] for entry in run.history if name in entry.get("losses", {})]
        return float(np.mean(entries[part]))

    for name in ("contrastive", "span_bert", "ctc", "ctc_finetune"):
        assert mean(name, slice(-2, None)) < mean(name, slice(0, 1)), name
    model = run.model.eval()
    batch = run.processor(sound=[tones.value(0, "sound")])
    codes = model.w2v_bert.quantizer(model.encoder.encode_speech(batch["sound"]).features[0]).codes
    assert perplexity(codes, TINY.w2v_bert.num_codevectors_per_group) > 1
    again = load_run(run.directory)
    assert again.model.transcribe(batch) == model.transcribe(batch)
    assert isinstance(model, CanTranscribe)


def test_everything_is_asked_of_it(run: Run, tones: Corpus) -> None:
    scores = {score.name: score for score in evaluate(run, tones)}
    wanted = ("transcripts/character_error_rate", "transcripts/word_error_rate", "text_probe/character_error_rate")
    wanted += ("text_to_sound/R@1", "sound_to_text/R@1", "linear_probe_language/accuracy")
    assert {f"test/{name}" for name in wanted} <= set(scores)
    assert scores["test/transcripts/character_error_rate"].value < 0.6
    assert scores["test/transcripts/gain_by_order"].value > 0.1
    assert scores["test/linear_probe_language/accuracy"].value > 0.8


def test_speech_and_texts_of_different_corpora_are_mixed(tones: Corpus) -> None:
    speech = dataclasses.replace(tones, columns={"sound": Audio(RATE)}, label=None)
    texts = dataclasses.replace(tones, columns={"captions": Text()}, label=None)
    both = mix_corpora([(speech, 2.0), (texts, 1.0)], every_column=True)
    recipe = dataclasses.replace(TINY, ctc_finetune_fraction=0.0)
    run = train(recipe, both, Budget(steps=4), runtime=QUIET)
    losses = next(entry["losses"] for entry in run.history if "losses" in entry)
    assert losses["contrastive"] > 0
    assert losses["span_bert"] > 0
    assert losses["ctc"] == losses["tlm"] == 0


def test_batches_without_pairs_still_train_the_head(processor: Processor, tones: Corpus) -> None:
    recipe = dataclasses.replace(TINY, pool_fractions=(1.0, 0.0, 0.0))
    examples = [processor.load_example(tones, row) for row in range(4)]
    batch = recipe.ctc_finetuning_batch(examples, processor, ExampleRNG.of(0, 0, 4))
    loss = method(processor).ctc_finetuning_losses(batch)["ctc_finetune"]
    loss.backward()
    assert loss.item() == 0
    assert method(processor).losses(batch_of(processor, tones, recipe))["ctc"].item() == 0


def test_what_does_not_fit_is_refused(tones: Corpus) -> None:
    with pytest.raises(UserError, match="three relative sizes"):
        mslam.Recipe(pool_fractions=(0.0, 0.0, 0.0))
    with pytest.raises(UserError, match="--ctc-finetune-fraction is from 0 to 1"):
        train(mslam.Recipe(ctc_finetune_fraction=2.0), tones, Budget(steps=1))
    with pytest.raises(UserError, match="no audio column"):
        fit_processor(TINY, dataclasses.replace(tones, columns={"captions": Text()}))


def test_voices_of_the_test_are_in_no_other_split() -> None:
    speech = importlib.import_module("polymodal.corpora.speech")  # the package has the function of this name
    assert not {*speech.VARIANTS} & {*speech.TEST_VARIANTS}
    spoken = {split: [] for split in ("train", "test")}
    for split, voices in spoken.items():
        for number in range(30):  # without espeak-ng, there is no sound but the choice of a voice
            utterance = speech.Utterance("a", "es", "name", split)
            voices.append(speech.synthesize("false", utterance, number)[2].removeprefix("es"))
    assert {*spoken["train"]} == {*speech.VARIANTS}
    assert {*spoken["test"]} == {*speech.TEST_VARIANTS}


def test_the_published_preset_has_the_published_batch_and_schedule() -> None:
    recipe = mslam.Recipe.paper()
    assert sum(recipe.pool_fractions) == recipe.batch_size
    sound = np.zeros((1, 80), dtype=np.float32)
    pools = [recipe.pool({"sound": sound, "text": [Caption(str(n), "en")]}) for n in range(4000)]
    assert pools.count("pairs") / 4000 == pytest.approx(0.024, abs=0.01)
    assert pools.count("text") / 4000 == pytest.approx(0.78, abs=0.03)
    assert recipe.optimizer.lr_scheduler == "inverse_sqrt"
    assert [stage.name for stage in recipe.stages() if stage.fraction] == ["pre-training"]
