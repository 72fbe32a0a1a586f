"""Mixtures, languages by temperature, and shards larger than memory."""

import dataclasses
import io
import json
import tarfile

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from polymodal import corpora
from polymodal.corpora.stream import BLOCKS_TOGETHER, BlockOrder
from polymodal.data.batch_order import batch_order
from polymodal.errors import UnreadableExample, UserError
from polymodal.modalities import Text
from polymodal.recipes.dual_encoders import clip
from polymodal.training import train
from polymodal.training.runtime import RuntimeConfig
from polymodal.types import Budget
from test_corpora import png

QUIET = RuntimeConfig(logger="none")


def test_a_mixture_of_every_column_has_none_where_a_part_has_none(small_emoji, scenes):
    mixed = corpora.mix_corpora([(small_emoji, 1.0), (scenes, 1.0)], every_column=True)
    assert {"image", "captions", "category", "vendor", "short", "long", "questions", "regions"} <= set(mixed.columns)
    first = len(small_emoji)
    assert mixed.raw(0, "questions") is None
    assert mixed.raw(first, "questions") == scenes.raw(0, "questions")
    assert mixed.raw(first, "captions") == scenes.raw(0, "caption"), "the first text of each is one column"
    assert mixed.raw(first, "long") == scenes.raw(0, "long")
    with pytest.raises(UnreadableExample, match="there is no questions"):
        mixed.value(0, "questions")
    assert set(mixed[0]) == {"image", "captions", "category", "vendor"}
    again = corpora.reopen(corpora.load_mixture("scenes,digits", every_column=True).choices)
    assert {"long", "questions", "digit"} <= set(again.columns), "a run's record opens the same columns"
    assert "questions" not in corpora.reopen(corpora.load_mixture("scenes,digits").choices).columns
    labels = corpora.mix_corpora([(small_emoji, 1.0), (corpora.digits(), 1.0)], every_column=True)
    assert {"category", "digit"} <= set(labels.columns), "classes of different names are no one column"


def test_a_mixture_is_drawn_by_weight_and_every_part_by_epochs(small_emoji, scenes):
    mixed = corpora.mix_corpora([(small_emoji, 3.0), (scenes, 1.0)])
    assert len(mixed) == len(small_emoji) + len(scenes)
    assert set(mixed.columns) == {"image", "captions"}
    first_scene = len(small_emoji)
    assert mixed.value(first_scene, "captions") == scenes.value(0, "caption")
    assert mixed.key(first_scene).startswith("scenes/")
    order = batch_order(mixed, 40, seed=0)
    rows = np.concatenate([order[batch] for batch in range(50)])
    assert (rows < first_scene).mean() == pytest.approx(0.75, abs=0.01)
    train_rows = small_emoji.rows("train")
    assert set(rows[rows < first_scene][: len(train_rows)]) == set(train_rows)
    assert set(rows) <= set(mixed.rows("train"))


def test_rows_that_a_stage_selects_of_a_mixture_are_those_that_it_trains_on(small_emoji, scenes):
    mixed = corpora.mix_corpora([(small_emoji, 3.0), (scenes, 1.0)])
    train = mixed.rows("train")
    emoji, some = train[train < len(small_emoji)][:6], train[train >= len(small_emoji)][:2]
    selected = mixed.with_splits({**mixed.splits, "train": np.concatenate([emoji, np.tile(some, 2)])})
    order = batch_order(selected, 5, seed=0)
    rows = np.concatenate([order[batch] for batch in range(40)])
    assert set(rows) == {*emoji, *some}
    assert np.isin(rows, some).mean() == pytest.approx(0.25, abs=0.02)
    assert sum(len(part.rows) for part in selected.parts("train")) == 10, "rows that fill a batch again are kept"
    assert len(mixed.with_splits({"train": emoji}).parts("train")) == 1


@pytest.mark.usefixtures("emoji_is_small")
def test_a_mixture_trains_and_is_opened_again(polymodal, tmp_path):
    done = polymodal("train", "clip", "--corpus", "emoji:3,scenes:1", "--budget", "3steps", "--out", "run")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    again = corpora.reopen(record["corpus"])
    assert again.name == "emoji+scenes"
    assert again.weights == (3.0, 1.0)
    for wrong, said in (
        ("emoji:three", "no part of a mixture"),
        ("emojy:1", "did you mean 'emoji'"),
        ("emoji:0", "no part of a mixture"),
    ):
        done = polymodal("train", "clip", "--corpus", wrong)
        assert done.returncode == 2
        assert said in done.stderr


def test_temperature_evens_out_parts_and_languages(small_emoji, scenes):
    sizes = [len(corpus.rows("train")) for corpus in (small_emoji, scenes)]
    parts = [(small_emoji, 1.0), (scenes, 1.0)]
    plain, even = (np.array(corpora.mix_corpora(parts, temperature=t).weights) for t in (1.0, 1e6))
    np.testing.assert_allclose(plain / plain.sum(), np.array(sizes) / sum(sizes))
    np.testing.assert_allclose(even / even.sum(), 0.5, atol=1e-3)
    captions = [[{"text": "cat", "language": "en"}] * 9 + [{"text": "Katze", "language": "de"}]] * 5
    small = dataclasses.replace(
        small_emoji,
        table=pa.table({"captions": captions}),
        splits={"train": np.arange(5)},
        columns={"captions": Text()},
    )
    for temperature, english in ((1.0, 0.9), (2.0, 0.75), (1e6, 0.5)):
        drawn = corpora.with_language_temperature(small, temperature).columns["captions"].language_shares
        assert drawn["en"] == pytest.approx(english, abs=1e-4)
        assert sum(drawn.values()) == pytest.approx(1)
    corpus = corpora.with_language_temperature(small_emoji, 5.0)
    again = corpora.reopen(corpus.choices).columns["captions"].language_shares
    assert again == pytest.approx(corpus.columns["captions"].language_shares, rel=0.01)
    with pytest.raises(UserError, match="is positive"):
        corpora.with_language_temperature(small_emoji, 0)


def test_examples_in_a_single_language_are_drawn_by_temperature(small_emoji):
    texts = [[{"text": f"{number}", "language": "en" if number % 10 else "sw"}] for number in range(200)]
    spoken = dataclasses.replace(
        small_emoji, table=pa.table({"captions": texts}), splits={"train": np.arange(200)}, columns={"captions": Text()}
    )
    for temperature, rare in ((1.0, 0.1), (2.0, 0.25), (1e6, 0.5)):
        corpus = corpora.with_language_temperature(spoken, temperature)
        rows = np.concatenate([batch_order(corpus, 20, seed=0)[batch] for batch in range(40)])
        assert np.mean(rows % 10 == 0) == pytest.approx(rare, abs=0.02)
        assert set(rows.tolist()) == set(range(200)), "all of each, in turn"


def test_only_some_languages(small_emoji, scenes):
    german = corpora.in_languages(small_emoji, ["de", "ja"])
    captions = german.value(int(german.rows("train")[0]), "captions")
    assert {caption.language for caption in captions} == {"de", "ja"}
    assert german.columns["captions"].main_language in ("de", "ja"), "evaluation asks in a language that is there"
    again = corpora.reopen(corpora.with_language_temperature(german, 100.0).choices)
    assert again.columns["captions"].language_shares == pytest.approx({"de": 0.5, "ja": 0.5}, abs=0.01)
    with pytest.raises(UserError, match="no language 'dee'; did you mean 'de'"):
        corpora.in_languages(small_emoji, ["dee"])
    mixed = corpora.in_languages(corpora.mix_corpora([(small_emoji, 1.0), (scenes, 1.0)]), ["de"])
    assert len(mixed.rows("train")) == len(german.rows("train")), "scenes are described in English alone"
    reopened = corpora.reopen(mixed.choices)
    assert {caption.language for caption in reopened[int(reopened.rows("train")[0])]["captions"]} == {"de"}


def test_examples_without_the_language_are_left_out(small_emoji):
    texts = [[{"text": f"{number}", "language": "en" if number % 10 else "sw"}] for number in range(200)]
    spoken = dataclasses.replace(
        small_emoji,
        table=pa.table({"captions": [*texts, None]}),
        splits={"train": np.arange(151), "test": np.arange(151, 160), "validation": np.arange(160, 201)},
        columns={"captions": Text()},
    )
    rare = corpora.in_languages(spoken, ["sw"])
    assert rare.rows("train").tolist() == list(range(0, 151, 10))
    assert rare.rows("validation").tolist() == [160, 170, 180, 190]
    assert "test" not in rare.splits, "a split of which nothing is left"


def pairs(count):
    return [
        {"key": f"k{row}", "image": png((row % 256, row // 256, 0)), "caption": f"thing {row}"} for row in range(count)
    ]


def write_parquet(folder, rows, shards, group):
    folder.mkdir(exist_ok=True)
    for number, part in enumerate(np.array_split(np.arange(len(rows)), shards)):
        table = pa.Table.from_pylist([rows[row] for row in part])
        pq.write_table(table, folder / f"part-{number}.parquet", row_group_size=group)


def write_tars(folder, rows, shards):
    folder.mkdir(exist_ok=True)
    for number, part in enumerate(np.array_split(np.arange(len(rows)), shards)):
        with tarfile.open(folder / f"part-{number}.tar", "w") as tar:
            for row in part:
                for suffix, data in (("png", rows[row]["image"]), ("txt", rows[row]["caption"].encode())):
                    member = tarfile.TarInfo(f"{rows[row]['key']}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_shards_are_read_where_they_lie(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path / "cache"))
    rows = pairs(300)
    write_parquet(tmp_path / "data", rows, 3, 20) if kind == "parquet" else write_tars(tmp_path / "data", rows, 3)
    corpus = corpora.from_shards(str(tmp_path / "data"))
    assert len(corpus) == 300
    texts = [corpus.value(row, corpus.column_with(Text))[0].text for row in (0, 299, 150)]
    assert texts == ["thing 0", "thing 299", "thing 150"]
    splits = [set(corpus.rows(split).tolist()) for split in ("train", "validation", "test")]
    assert sum(map(len, splits)) == len(set().union(*splits)) == 300
    assert all(splits)
    run = train(clip.Recipe(batch_size=32), corpus, Budget(steps=4), runtime=QUIET)
    twice = train(clip.Recipe(batch_size=32), corpora.reopen(corpus.choices), Budget(steps=4), runtime=QUIET)
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(tensor, twice.model.state_dict()[name])
    assert not list((tmp_path / "cache").rglob("*.arrow"))


def test_shards_at_a_url(tmp_path):
    write_parquet(tmp_path / "data", pairs(60), 2, 10)
    memory = fsspec.filesystem("memory")
    for file in (tmp_path / "data").iterdir():
        memory.pipe(f"/bucket/{file.name}", file.read_bytes())
    corpus = corpora.from_shards("memory://bucket/*.parquet")
    assert len(corpus) == 60
    assert corpus.value(59, "caption")[0].text == "thing 59"
    memory.rm("/bucket", recursive=True)
    for wrong, said in (
        ("memory://nowhere/*.parquet", "no .parquet or .tar shard"),
        ("nosuch://bucket", "cannot be opened"),
    ):
        with pytest.raises(UserError, match=said):
            corpora.from_shards(wrong)


def test_an_epoch_of_blocks_has_every_row_once_and_few_blocks_at_a_time(tmp_path):
    write_parquet(tmp_path / "data", pairs(307), 3, 10)
    corpus = corpora.from_shards(str(tmp_path / "data"))
    blocks = corpus.blocks.blocks
    order = BlockOrder(blocks, 251, seed=3)
    epochs = [[int(order[251 * epoch + place]) for place in range(251)] for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(251))
    assert epochs[0] != epochs[1]
    assert [int(BlockOrder(blocks, 251, seed=3)[place]) for place in (700, 5)] == [epochs[2][198], epochs[0][5]]
    in_window = [corpus.blocks.of(row).first for row in epochs[0][: 10 * BLOCKS_TOGETHER - 9]]
    assert len(set(in_window)) <= BLOCKS_TOGETHER + 1
    assert epochs[0] != sorted(epochs[0])


def test_a_shard_that_goes_missing_is_one_sentence_and_the_run_goes_on(polymodal, tmp_path, monkeypatch):
    write_parquet(tmp_path / "data", pairs(400), 8, 10)
    options = ["--budget", "40steps", "--batch-size", "16", "--save-interval", "1000steps"]
    monkeypatch.chdir(tmp_path)

    def hide(progress, reached, losses):
        if progress.step == 6:
            for file in (tmp_path / "data").glob("*.parquet"):
                file.rename(file.with_suffix(".hidden"))

    corpus, recipe = corpora.from_shards("data"), clip.Recipe(batch_size=16)
    with pytest.raises(UserError, match=r"(?s)cannot be read any more.*go on with: polymodal resume run"):
        train(recipe, corpus, Budget(steps=40), out="run", on_step=hide)
    assert list((tmp_path / "run").glob("checkpoint-*"))
    for file in (tmp_path / "data").glob("*.hidden"):
        file.rename(file.with_suffix(".parquet"))
    done = polymodal("resume", "run")
    assert done.returncode == 0, done.stderr
    whole = polymodal("train", "clip", "--data", "data", "--stream", *options, "--out", "whole")
    assert whole.returncode == 0, whole.stderr
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()
