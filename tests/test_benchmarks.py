"""Benchmarks on small compositions: what is scored, by which protocol, and what is refused."""

import dataclasses
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

import synthetic
from polymodal import cli
from polymodal.corpora.about import About
from polymodal.corpora.corpus import Corpus
from polymodal.corpora.user_files import from_path
from polymodal.data.processor import fit_processor
from polymodal.errors import UserError
from polymodal.evaluation import benchmarks, evaluate_with_protocols
from polymodal.evaluation.benchmark import find_benchmark, score_on_benchmark
from polymodal.evaluation.capabilities import CanEmbed
from polymodal.evaluation.prompt_templates import CORPUS, IMAGENET, checked_templates, imagenet_templates
from polymodal.evaluation.zero_shot import class_prompts
from polymodal.modalities import Audio, Category, Expressions, Image, Questions, Text
from polymodal.recipes.dual_encoders import clip
from polymodal.recipes.grounding import simvg
from polymodal.recipes.language_models import mono_internvl
from polymodal.recipes.speech_audio import mslam
from polymodal.training.run import Run
from test_docs import status_of_main

ROWS = 16
TYPES = {
    "image": pa.binary(),
    "text": pa.list_(pa.string()),
    "label": pa.string(),
    "questions": pa.list_(
        pa.struct(
            {"question": pa.string(), "answer": pa.string(), "kind": pa.string(), "answers": pa.list_(pa.string())}
        )
    ),
    "expressions": Expressions().arrow_type,
    "sound": pa.binary(),
}
COLORS = tuple(synthetic.COLORS)
WORDNET_IDS = ("n01440764", "n01443537", "n01484850", "n01491361")


def stored(number: int) -> dict[str, Any]:
    """An image with seven captions, two questions with ten answers each, an expression and a sound."""
    row = synthetic.row(number)
    color, caption = row["label"], row["text"][0]["text"]
    reds = 10 if color == "red" else 1
    return {
        "image": row["image"],
        "text": [f"{caption} seen {view} in image {number}" for view in ("once", "twice", "again", "here", "there")]
        + ["too many", "captions"],
        "label": color,
        "questions": [
            {
                "question": "What color?",
                "answer": color,
                "kind": "other",
                "answers": ["red"] * reds + [color] * (10 - reds),
            },
            {"question": "Is it red?", "answer": "no", "kind": "yes/no", "answers": ["No"] * 9 + ["yes"]},
        ],
        "expressions": row["expressions"],
        "sound": row["sound"],
    }


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    rows = [stored(number) for number in range(ROWS)]
    table = pa.table({name: pa.array([row[name] for row in rows], kind) for name, kind in TYPES.items()})
    columns = {"image": Image(), "text": Text(), "label": Category(COLORS), "questions": Questions()}
    columns |= {"expressions": Expressions(), "sound": Audio(synthetic.RATE)}
    everything = np.arange(ROWS)
    splits = {"train": everything, "validation": everything[:4], "testA": everything[:6], "testB": everything[6:]}
    about = About("composed", "for tests", "CC0-1.0", "tests", ("image", "text"))
    return Corpus(about, table, columns, splits, label="label", choices={"data": "composed"})


def only(corpus: Corpus, *names: str) -> Corpus:
    """The corpus with these columns alone, all of its rows in `test`."""
    return dataclasses.replace(
        corpus,
        columns={name: corpus.columns[name] for name in names},
        splits={"test": np.arange(ROWS)},
        label="label" if "label" in names else None,
    )


def run_of(recipe: Any, corpus: Corpus, model: Callable[[Any], nn.Module] | None = None) -> Run:
    torch.manual_seed(0)
    processor = fit_processor(recipe, corpus)
    made = recipe.build(processor) if model is None else model(processor)
    return Run(recipe, made.eval(), processor, {"runtime": {"cache_features": False}, "recipe": {"name": "composed"}})


@pytest.fixture(scope="module")
def embedding(corpus: Corpus) -> Run:
    return run_of(clip.Recipe.tiny(), corpus)


class Writer(nn.Module):
    """Answers everything with the same word."""

    def __init__(self, processor: Any, word: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.ids = processor.tokenizer([word]).ids[0, 1:-1].tolist()

    def generate_text(self, batch: Any, decoding: Any = None, generator: Any = None) -> list[list[int]]:
        return [self.ids] * len(batch["prompts"])


class LikelyWriter(Writer):
    """As a language model, it has likelihoods as well."""

    def log_likelihood(self, batch: Any) -> torch.Tensor:
        return torch.zeros(len(batch["prompts"]))


def test_benchmarks_are_the_files_of_the_folder() -> None:
    folder = Path(benchmarks.__file__).parent
    assert benchmarks.names() == sorted(file.stem.replace("_", "-") for file in folder.glob("[!_]*.py"))
    for name in benchmarks.names():
        benchmark = find_benchmark(name)
        assert benchmark.title
        assert benchmark.source
        assert benchmark.data
        assert benchmark.task.metrics
        assert benchmark.task.headline
    with pytest.raises(UserError, match="There is no benchmark 'vqa2'; did you mean 'vqav2'"):
        find_benchmark("vqa2")


def test_the_help_of_evaluate_names_every_benchmark(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["polymodal", "evaluate", "--help"])
    assert status_of_main() == 0
    shown = capsys.readouterr().out
    assert all(name in " ".join(shown.split()) for name in benchmarks.names())


def test_retrieval_takes_five_captions_an_image_in_both_directions(embedding: Run, corpus: Corpus) -> None:
    scores = score_on_benchmark("coco-retrieval", embedding, corpus)
    names = [f"test/{way}/R@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
    assert [one.score.name for one in scores] == names
    protocol = scores[0].protocol
    assert protocol["benchmark"] == "COCO retrieval"
    assert protocol["captions_per_image"] == {"test": 5.0}
    assert protocol["max_captions_per_image"] == 5
    assert protocol["examples"] == ROWS
    chance = {one.score.name: one.score.chance for one in scores}
    assert chance["test/text_to_image/R@5"] == pytest.approx(5 / ROWS)
    wrong = 1 - np.prod([(80 - 5 - place) / (80 - place) for place in range(5)])
    assert chance["test/image_to_text/R@5"] == pytest.approx(wrong)
    assert len(scores[3].score.clusters) == ROWS


def test_rows_of_one_image_with_a_caption_each_are_one_image(embedding: Run, corpus: Corpus) -> None:
    """As in CSV files of pairs, where an image stands in five rows."""
    rows = [
        {"image": stored(number)["image"], "text": [text]}
        for number in range(ROWS)
        for text in stored(number)["text"][:5]
    ]
    table = pa.table({name: pa.array([row[name] for row in rows], TYPES[name]) for name in ("image", "text")})
    columns = {name: corpus.columns[name] for name in ("image", "text")}
    pairs = dataclasses.replace(corpus, table=table, columns=columns, label=None, splits={})
    found = score_on_benchmark("coco-retrieval", embedding, pairs)
    wanted = score_on_benchmark("coco-retrieval", embedding, corpus)
    assert [one.score.value for one in found] == pytest.approx([one.score.value for one in wanted])
    assert found[0].protocol["images"] == {"test": ROWS}
    assert found[0].protocol["captions_per_image"] == {"test": 5.0}


def test_a_benchmark_scores_the_split_that_is_named(embedding: Run, corpus: Corpus) -> None:
    assert score_on_benchmark("flickr30k", embedding, corpus, "testA")[0].protocol["examples"] == 6
    assert score_on_benchmark("flickr30k", embedding, corpus, "all")[0].protocol["examples"] == ROWS
    with pytest.raises(UserError, match="has no split 'testC'; it has"):
        score_on_benchmark("flickr30k", embedding, corpus, "testC")


def test_imagenet_takes_the_names_and_templates_of_clip(embedding: Run, corpus: Corpus) -> None:
    by_id = pa.array([WORDNET_IDS[COLORS.index(name)] for name in corpus.table.column("label").to_pylist()])
    table = corpus.table.set_column(corpus.table.column_names.index("label"), "label", by_id)
    folders = dataclasses.replace(corpus, table=table, columns={**corpus.columns, "label": Category(WORDNET_IDS)})
    scores = score_on_benchmark("imagenet-zeroshot", embedding, only(folders, "image", "label"))
    assert [one.score.name for one in scores] == ["test/zero_shot_label/top-1", "test/zero_shot_label/accuracy"]
    protocol = scores[0].protocol
    assert (protocol["templates"], protocol["prompts_per_class"]) == (IMAGENET, 80)
    assert protocol["class_names"] == "CLIP's, by WordNet id"
    assert scores[0].score.chance == 1 / 4
    from polymodal.data.loader import Reader
    from polymodal.evaluation.benchmarks.imagenet_zeroshot import with_templates
    from polymodal.evaluation.task import TaskInputs

    inputs = with_templates(TaskInputs(embedding.model, embedding.processor, Reader(folders, embedding.processor)))
    assert class_prompts(inputs, "label")["n01443537"][0] == "a bad photo of a goldfish."


def test_a_labelled_folder_is_classified_with_templates(embedding: Run, corpus: Corpus) -> None:
    folder = only(corpus, "image", "label")
    scores = {one.score.name: one for one in evaluate_with_protocols(embedding, folder)}
    assert set(scores) == {"test/zero_shot_label/accuracy", "test/zero_shot_label/top-1"}
    assert scores["test/zero_shot_label/top-1"].protocol["templates"] == IMAGENET
    own = evaluate_with_protocols(embedding, folder, templates=["the color {}"])
    assert own[0].protocol["templates"] == ["the color {}"]
    assert own[0].protocol["prompts_per_class"] == 1
    described = dataclasses.replace(folder, prompts={name: (f"something {name}",) for name in COLORS})
    assert evaluate_with_protocols(embedding, described)[0].protocol["templates"] == CORPUS
    built_in = dataclasses.replace(folder, choices={"corpus": "pages"})
    assert evaluate_with_protocols(embedding, built_in) == [], "templates of photos do not fit every built-in label"


def test_zero_shot_vectors_are_means_of_normalized_prompts(embedding: Run, corpus: Corpus) -> None:
    from polymodal.data.loader import Reader
    from polymodal.evaluation.task import TaskInputs
    from polymodal.evaluation.zero_shot import class_vectors

    inputs = TaskInputs(
        embedding.model, embedding.processor, Reader(corpus, embedding.processor), None, imagenet_templates()
    )
    names, vectors = class_vectors(inputs, "label")
    prompts = [template.replace("{}", "blue") for template in imagenet_templates()]
    mean = embedding.embed(text=prompts)["text"].mean(0)
    torch.testing.assert_close(vectors[names.index("blue")], mean / mean.norm())


def test_templates_are_read_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "templates.txt"
    file.write_text("a photo of a {}.\n\n  a drawing of {c}\n", encoding="utf-8")
    assert checked_templates(["the {}"], str(file)) == ("the {}", "a photo of a {}.", "a drawing of {c}")
    with pytest.raises(UserError, match=r"has no \{\} for the class name"):
        checked_templates(["a photo"])
    with pytest.raises(UserError, match="one template a line"):
        checked_templates([], str(tmp_path / "none.txt"))
    file.write_text("\n", encoding="utf-8")
    with pytest.raises(UserError, match="has no template"):
        checked_templates([], str(file))


def test_vqa_scores_all_questions_against_ten_answers(corpus: Corpus) -> None:
    run = run_of(mono_internvl.Recipe.tiny(), corpus, lambda processor: Writer(processor, "red"))
    scores = {one.score.name: one for one in score_on_benchmark("vqav2", run, corpus)}
    assert list(scores) == ["test/vqa/accuracy", "test/vqa/yes or no/accuracy", "test/vqa/other/accuracy"]
    other = 1 / 4 * 1 + 3 / 4 * 0.3  # ten of ten, or one of ten references
    assert scores["test/vqa/other/accuracy"].score.value == pytest.approx(other)
    assert scores["test/vqa/yes or no/accuracy"].score.value == 0
    assert scores["test/vqa/accuracy"].score.value == pytest.approx(other / 2)
    assert scores["test/vqa/accuracy"].score.chance == pytest.approx(1 / 2)  # always "no"
    assert len(scores["test/vqa/accuracy"].score.clusters) == ROWS
    protocol = scores["test/vqa/accuracy"].protocol
    assert protocol["references_per_question"] == [10]
    assert "official normalization" in protocol["accuracy"]
    (anls,) = (one.score for one in score_on_benchmark("docvqa", run, corpus) if one.score.name == "test/vqa/ANLS")
    assert anls.value == pytest.approx(1 / 2)  # "red" is a reference of every other question
    (relaxed, *_) = score_on_benchmark("chartqa", run, corpus)
    assert relaxed.score.value == pytest.approx(1 / 2)


def test_questions_are_scored_without_captions_and_without_training_examples(corpus: Corpus) -> None:
    run = run_of(mono_internvl.Recipe.tiny(), corpus, lambda processor: LikelyWriter(processor, "red"))
    questions = only(corpus, "image", "questions")
    scores = {one.score.name: one for one in evaluate_with_protocols(run, questions)}
    accuracy = scores["test/vqa/other/accuracy"]
    assert accuracy.score.value == pytest.approx(1 / 4 * 1 + 3 / 4 * 0.3)
    assert scores["test/vqa/yes/no/accuracy"].score.chance == 1
    assert "leaving out each reference" in accuracy.protocol["ten_references"]
    assert not any("captions" in name for name in scores)


def test_captions_are_scored_against_all_references(corpus: Corpus) -> None:
    run = run_of(mono_internvl.Recipe.tiny(), corpus, lambda processor: Writer(processor, "a red square"))
    scores = score_on_benchmark("coco-captions", run, corpus)
    assert [one.score.name.rpartition("/")[2] for one in scores] == ["CIDEr", "BLEU-4", "BLEU-3", "BLEU-2", "BLEU-1"]
    assert scores[0].score.unit == "CIDEr"
    assert scores[0].score.shown()[0] == f"{scores[0].score.value:.3f}"
    assert scores[0].protocol["references_per_image"] == [7, 7]
    assert 0 < scores[-1].score.value < 1


def test_referring_expressions_are_scored_on_each_of_their_splits(corpus: Corpus) -> None:
    run = run_of(simvg.Recipe.tiny(), corpus)
    scores = score_on_benchmark("refcoco", run, corpus)
    assert scores[0].score.name.endswith("acc@0.5")
    assert {one.score.name.split("/")[0] for one in scores} == {"test_validation", "test_testA", "test_testB"}
    assert scores[0].protocol["examples"] == {"test_validation": 4, "test_testA": 6, "test_testB": 10}


def test_splits_that_are_made_are_no_published_splits(corpus: Corpus) -> None:
    made = corpus.with_splits({"train": np.arange(10), "validation": np.arange(10, 12), "test": np.arange(12, 16)})
    refcoco = find_benchmark("refcoco")
    assert {name: len(rows) for name, rows in refcoco.on(made).splits.items()} == {"test": ROWS}
    assert {name: len(rows) for name, rows in refcoco.on(made, "test").splits.items()} == {"test": 4}
    stated = corpus.with_splits({"train": np.arange(10), "testB": np.arange(10, 16)})
    assert {name: len(rows) for name, rows in refcoco.on(stated).splits.items()} == {"test": 6}


def test_speech_is_scored_against_raw_transcripts(corpus: Corpus) -> None:
    class Transcriber(nn.Module):
        def __init__(self, processor: Any) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))
            self.ids = processor.tokenizer(["a red square seen once in"]).ids[0].tolist()

        def transcribe(self, batch: Any) -> list[list[int]]:
            return [self.ids] * 16

    run = run_of(mslam.Recipe.tiny(), corpus, Transcriber)
    (words, characters) = score_on_benchmark("librispeech", run, corpus)
    assert words.score.name == "test/transcripts/word_error_rate"
    said = ["a", "red", "square", "seen", "once", "in"]
    truth = [stored(number)["text"][0].split() for number in range(ROWS)]
    edits = sum(2 + sum(one != other for one, other in zip(said, text, strict=False)) for text in truth)
    assert words.score.value == pytest.approx(edits / sum(map(len, truth)))
    assert characters.score.chance == 1


def test_class_folders_named_by_wordnet_ids_are_imagenet(embedding: Run, tmp_path: Path) -> None:
    for number in range(ROWS):
        folder = tmp_path / "val" / WORDNET_IDS[number % 4]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"ILSVRC2012_val_{number:08}.png").write_bytes(stored(number)["image"])
    folders = from_path(tmp_path / "val")
    scores = score_on_benchmark("imagenet-zeroshot", embedding, folders)
    assert scores[0].score.name == "test/zero_shot_label/top-1"
    assert scores[0].protocol["examples"] == ROWS
    assert scores[0].protocol["classes"] == 4
    assert scores[0].protocol["class_names"] == "CLIP's, by WordNet id"


def test_json_lines_of_captions_and_of_ten_answers_are_read(embedding: Run, corpus: Corpus, tmp_path: Path) -> None:
    lines = []
    for number in range(ROWS):
        row = stored(number)
        (tmp_path / f"{number}.png").write_bytes(row["image"])
        lines.append({"image": f"{number}.png", "captions": row["text"], "questions": row["questions"]})
    file = tmp_path / "dataset.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    read = from_path(file)
    found = score_on_benchmark("coco-retrieval", embedding, read)
    wanted = score_on_benchmark("coco-retrieval", embedding, corpus)
    assert [one.score.value for one in found] == pytest.approx([one.score.value for one in wanted])
    run = run_of(mono_internvl.Recipe.tiny(), corpus, lambda processor: Writer(processor, "red"))
    (accuracy, *_) = score_on_benchmark("vqav2", run, read)
    assert accuracy.score.value == pytest.approx((1 / 4 * 1 + 3 / 4 * 0.3) / 2)
    assert accuracy.protocol["references_per_question"] == [10]


def test_what_a_run_or_its_data_lack_is_said(embedding: Run, corpus: Corpus) -> None:
    with pytest.raises(UserError, match="its method has no `generate_text` or `answer_logits`"):
        score_on_benchmark("vqav2", embedding, corpus)
    with pytest.raises(UserError, match="with columns of image and text that the run takes; it has image"):
        score_on_benchmark("coco-retrieval", embedding, only(corpus, "image", "label"))
    assert isinstance(embedding.model, CanEmbed)


def test_the_command_prints_and_writes_the_protocol(
    embedding: Run,
    corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = importlib.import_module("polymodal.cli.evaluating")
    monkeypatch.setattr(module, "run_and_corpus", lambda path, options: (embedding, only(corpus, "image", "label")))
    out = tmp_path / "folder" / "scores.json"
    words = ["evaluate", "runs/x", "--template", "a {} thing", "--template", "the {}", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["polymodal", *words])
    assert status_of_main() == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert "Protocol: templates: a {} thing, the {}; prompts per class: 2" in shown
    (record, *_) = json.loads(out.read_text(encoding="utf-8"))
    assert record["protocol"]["templates"] == ["a {} thing", "the {}"]
    assert record.keys() >= {"name", "value", "low", "high", "chance", "interval", "test_units", "unit"}
    benchmark = ["--benchmark", "imagenet-zeroshot", "--data", "x", "--template", "a {}"]
    monkeypatch.setattr(sys, "argv", ["polymodal", "evaluate", "runs/x", *benchmark])
    assert status_of_main() == 0, capsys.readouterr().err
    assert "\n  templates: a {}\n  prompts per class: 1\n" in capsys.readouterr().out
    for arguments, message in {
        ("--benchmark", "imagenet"): "There is no benchmark 'imagenet'",
        ("--benchmark", "vqav2"): "--benchmark vqav2 --data PATH",
        ("--split", "test"): "--split is of a benchmark",
    }.items():
        given = ["--data", "x.parquet"] if arguments[1] == "imagenet" else []
        monkeypatch.setattr(sys, "argv", ["polymodal", "evaluate", "runs/x", *arguments, *given])
        assert status_of_main() == 2
        assert message in capsys.readouterr().err
    assert cli.COMMANDS["evaluate"] is module.evaluate
