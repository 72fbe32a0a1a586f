"""mSLAM: a Conformer for speech and text, hidden speech told apart, CTC, and what a shared space lets one ask."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn import functional as F

import polymodal as pm
from polymodal.corpora import Corpus
from polymodal.corpora.corpus import About
from polymodal.corpora.mixture import mix_corpora
from polymodal.data.masks import mask_time_spans
from polymodal.data.processor import Processor, fit_processor
from polymodal.encoders.speech_text import SpeechTextEncoder, SpeechTextEncoderConfig, num_output_frames
from polymodal.errors import UserError
from polymodal.evaluation.evaluate import evaluate
from polymodal.evaluation.tasks.transcription import CanTranscribe, error_rate
from polymodal.layers.conformer import Conformer
from polymodal.layers.quantize import GumbelQuantizer, perplexity
from polymodal.modalities import Audio, Category, Text
from polymodal.modalities.audio import encoded
from polymodal.modalities.padding import Padded
from polymodal.modalities.text import TextTokenizer, Tokens
from polymodal.objectives.ctc import ctc_greedy_decode, ctc_loss
from polymodal.objectives.wav2vec2_contrastive import wav2vec2_contrastive_loss
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
    embed_dim=16,
    num_codevectors_per_group=16,
    num_negatives=20,
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


# Parts


def test_padding_has_no_influence_on_a_conformer() -> None:
    torch.manual_seed(0)
    conformer = Conformer(16, 2, 2, 5).eval()
    x = torch.randn(2, 9, 16)
    mask = torch.arange(9) < torch.tensor([[9], [5]])
    whole = conformer(x, mask)
    assert torch.allclose(conformer(x[1:, :5], mask[1:, :5])[0], whole[1, :5], atol=1e-5)
    x[1, 5:] = 99.0
    assert torch.allclose(conformer(x, mask)[1, :5], whole[1, :5], atol=1e-5)
    assert not torch.allclose(conformer(x[:, :8], mask[:, :8])[0], whole[0, :8], atol=1e-3)


def test_a_conformer_sees_order() -> None:
    torch.manual_seed(0)
    conformer = Conformer(16, 1, 2, 1).eval()  # without a convolution that would tell neighbours
    x, mask = torch.randn(1, 6, 16), torch.ones(1, 6, dtype=torch.bool)
    turned = conformer(x.flip(1), mask).flip(1)
    assert not torch.allclose(turned, conformer(x, mask), atol=1e-3)


def test_padded_speech_is_heard_as_it_is_alone(processor: Processor, tones: Corpus) -> None:
    """Frames behind the end reach neither convolutions nor the codes' features."""
    encoder = SpeechTextEncoder(SMALL, 20).eval()
    for frames in (37, 38, 39, 40):
        long, short = torch.randn(61, 40), torch.randn(frames, 40)
        both = Padded(torch.stack([long, F.pad(short, (0, 0, 0, 61 - frames), value=50.0)]), torch.tensor([61, frames]))
        alone = encoder.encode_speech(Padded(short[None], torch.tensor([frames])))
        count = int(num_output_frames(torch.tensor([frames])))
        heard = encoder.encode_speech(both)
        assert heard.lengths.tolist() == [16, count]
        for part in ("features", "own", "shared"):
            assert torch.allclose(getattr(heard, part)[1, :count], getattr(alone, part)[0], atol=1e-5), (frames, part)


def test_both_in_one_sequence_are_as_if_nothing_was_padded() -> None:
    torch.manual_seed(0)
    encoder = SpeechTextEncoder(SMALL, 20).eval()
    speech = Padded(torch.randn(2, 7, 32), torch.tensor([7, 4]))
    text = encoder.embed_text(Tokens(torch.tensor([[1, 5, 6, 2], [1, 7, 2, 0]]), torch.tensor([4, 3])))
    said, read = encoder.encode_pair(speech, text)
    assert said.shape == (11, 32)
    assert read.shape == (7, 32)
    alone = torch.cat([speech.values[1:, :4], text.values[1:, :3]], dim=1)
    whole = encoder.shared(alone, torch.ones(1, 7, dtype=torch.bool))[0]
    assert torch.allclose(said[7:], whole[:4], atol=1e-5)
    assert torch.allclose(read[4:], whole[4:], atol=1e-5)


def test_hidden_stretches_hide_about_half_and_something_of_everything() -> None:
    hidden = mask_time_spans([400] * 50, 0.065, 10, ExampleRNG.of(0, 0, 50))
    assert float(hidden.float().mean()) == pytest.approx(1 - (1 - 0.065) ** 10, abs=0.03)
    short = mask_time_spans([3, 1, 40], 0.0, 10, ExampleRNG.of(1, 0, 3))
    assert short.any(1).all()
    assert not short[0, 3:].any()
    assert not short[1, 1:].any()


def test_characters_are_tokens_and_come_back() -> None:
    tokenizer = TextTokenizer.characters(["Abc मुर", "a ж"], 60, 12)
    tokens = tokenizer(["aж म", "", "ab?"])
    assert tokens.lengths.tolist() == [6, 2, 5]
    assert tokenizer.decode(tokens) == ["aж म", "", "ab"], "what is not known is left out"
    few = TextTokenizer.characters(["aab"], 5, 12)
    assert few.vocab_size == 5
    assert few.decode(few(["ab"])) == ["a"]


# Losses


def test_the_contrast_by_hand() -> None:
    """Two places of one sequence have each other for the only distractor; a third sequence is alone."""
    torch.manual_seed(0)
    context, targets = torch.randn(3, 4), torch.randn(3, 4)
    found = wav2vec2_contrastive_loss(context, targets, torch.tensor([2, 1]), num_negatives=5)
    near = F.cosine_similarity(context[:, None], targets[None], dim=2) / 0.1
    by_hand = [math.log(1 + 5 * math.exp(near[i, 1 - i] - near[i, i])) for i in (0, 1)] + [0.0]
    assert float(found) == pytest.approx(np.mean(by_hand), abs=1e-5)
    assert float(wav2vec2_contrastive_loss(context[:0], targets[:0], torch.tensor([0, 0]))) == 0.0
    same = targets[:1].expand(3, 4)
    assert float(wav2vec2_contrastive_loss(context, same, torch.tensor([3]))) == pytest.approx(0.0), (
        "equals are no distractors"
    )


def test_distractors_are_of_the_same_sequence() -> None:
    context, targets = torch.randn(40, 4), torch.randn(40, 4).requires_grad_()
    wav2vec2_contrastive_loss(context[:10], targets[:10], torch.tensor([4, 6])).backward()
    assert torch.count_nonzero(targets.grad[10:]) == 0
    assert torch.count_nonzero(targets.grad[:10]) > 0


def test_the_quantizer_passes_gradients_cools_and_counts_its_codes() -> None:
    torch.manual_seed(0)
    quantizer = GumbelQuantizer(8, 2, 6, 10, temperature_decay=0.5)
    x = torch.randn(50, 8, requires_grad=True)
    chosen = quantizer(x)
    assert chosen.vectors.shape == (50, 10)
    assert chosen.codes.shape == (50, 2)
    chosen.vectors.sum().backward()
    assert torch.count_nonzero(x.grad) > 0
    assert float(quantizer.temperature) == 2.0, "one for all micro-batches of a step"
    quantizer.after_step(0.0)
    assert float(quantizer.temperature) == 1.0
    for _ in range(3):
        quantizer.after_step(0.0)
    assert float(quantizer.temperature) == 0.5, "not colder than that"
    quantizer.eval()
    one, two = quantizer(x), quantizer(x)
    assert torch.equal(one.vectors, two.vectors)
    by_code = quantizer.codebook[0, one.codes[:, 0]]
    assert torch.allclose(one.vectors[:, :5], by_code)
    assert 0 < one.diversity.item() < 1
    quantizer.logits.weight.data.zero_()
    assert quantizer(x).diversity.item() == pytest.approx(0, abs=1e-5), "all alike often"
    quantizer.logits.bias.data[0] = quantizer.logits.bias.data[6] = 50.0
    assert quantizer(x).diversity.item() == pytest.approx(1 - 1 / 6, abs=1e-4), "one code each"
    assert quantizer(x[:0]).diversity.item() == 0
    x.grad = None
    quantizer.logits.bias.data[0] = 500.0  # so sure that the shares of all others are 0
    quantizer(x).diversity.backward()
    assert torch.isfinite(quantizer.logits.bias.grad).all()


def test_ctc_sums_over_all_ways_to_say_it() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 4, 3)
    text = Tokens(torch.tensor([[1, 1, 2, 2]]), torch.tensor([4]))  # a mark, "1", "2", a mark
    shares = logits[0].softmax(1)
    total = 0.0
    for way in itertools.product(range(3), repeat=4):
        said = [number for number, _ in itertools.groupby(way) if number]
        if said == [1, 2]:
            total += float(torch.stack([shares[place, number] for place, number in enumerate(way)]).prod())
    found = ctc_loss(logits, torch.tensor([4]), text)
    assert float(found) == pytest.approx(-math.log(total) / 2, abs=1e-5)
    assert float(ctc_loss(logits[:, :1], torch.tensor([1]), text)) == 0.0, "too long for its speech"
    likely = F.one_hot(torch.tensor([1, 1, 0, 1, 2, 2, 0]), 3).float()
    assert ctc_greedy_decode(likely) == [1, 1, 2]


def test_text_leaves_speechs_own_blocks_alone(processor: Processor, tones: Corpus) -> None:
    model = method(processor)
    batch = batch_of(processor, tones, dataclasses.replace(TINY, pool_fractions=(0.0, 1.0, 0.0)))
    losses = model.losses(batch)
    assert all(losses[name].item() == 0.0 for name in ("contrastive", "w2v_bert", "tlm", "ctc"))
    losses["span_bert"].backward()
    speech = [*model.encoder.own.parameters(), *model.encoder.first.parameters(), *model.quantizer.parameters()]
    assert all(parameter.grad is None for parameter in speech)
    assert all(parameter.grad is not None for parameter in model.encoder.shared.parameters())


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
    chosen = model.quantizer(heard.features[batch["masked_sound"]])
    seen: list[torch.Tensor] = []
    model._code_loss = lambda tokens, codes: seen.append(codes) or torch.zeros(())
    model._tlm_loss(heard, chosen, batch)
    by_hand = torch.cat(
        [model.quantizer(heard.features[row][batch["masked_sound"][row]]).codes for row in batch["pairs"].tolist()]
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


# A trained run


def test_it_learns_to_hear_and_is_read_again(run: Run, tones: Corpus) -> None:
    def mean(name: str, part: slice) -> float:
        entries = [entry["losses"][name] for entry in run.history if name in entry.get("losses", {})]
        return float(np.mean(entries[part]))

    for name in ("contrastive", "span_bert", "ctc", "ctc_finetune"):
        assert mean(name, slice(-2, None)) < mean(name, slice(0, 1)), name
    model = run.model.eval()
    batch = run.processor(sound=[tones.value(0, "sound")])
    codes = model.quantizer(model.encoder.encode_speech(batch["sound"]).features[0]).codes
    assert perplexity(codes, TINY.num_codevectors_per_group) > 1
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


def test_error_rates_by_hand() -> None:
    score = error_rate("x", ["abd", "", "aaaa"], ["abc", "ab", "a"])
    assert score.value == pytest.approx((1 + 2 + 3) / (3 + 2 + 1))
    assert not score.higher_is_better
    assert error_rate("x", [["a", "b"]], [["a", "c"]]).value == 0.5
    assert error_rate("x", [""], ["abc"]).value == error_rate("x", [""], ["abc"]).chance == 1.0


def test_what_does_not_fit_is_refused(tones: Corpus) -> None:
    with pytest.raises(UserError, match="three shares"):
        mslam.Recipe(pool_fractions=(0.0, 0.0, 0.0))
    with pytest.raises(UserError, match="--ctc-finetune-fraction is from 0 to 1"):
        train(mslam.Recipe(ctc_finetune_fraction=2.0), tones, Budget(steps=1))
    with pytest.raises(UserError, match="no audio column"):
        fit_processor(TINY, dataclasses.replace(tones, columns={"captions": Text()}))


def test_the_paper_preset_has_the_papers_size() -> None:
    with torch.device("meta"):
        model = mslam.MSLAM(mslam.Recipe.paper(), 4096)
    assert 560e6 < sum(parameter.numel() for parameter in model.parameters()) < 680e6


def test_the_mean_leaves_padding_out() -> None:
    sequence = Padded(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([2]))
    assert sequence.mean().item() == 2.0
    assert "mslam" in pm.recipes.entries()
