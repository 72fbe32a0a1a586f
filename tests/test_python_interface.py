"""`polymodal` in scripts and notebooks: names and strings, progress, folders, representations, other platforms."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

import polymodal as pm
from polymodal.errors import UserError
from polymodal.evaluation.scores import Scores
from polymodal.evaluation.statistics import Score
from polymodal.recipes.dual_encoders import clip
from polymodal.reproduce.result import Arm, ComparisonResult, Trial
from polymodal.training import Run
from polymodal.training.optimizer import OptimizerConfig
from polymodal.training.recipe import TrainingRecipe
from polymodal.training.training_rows import trained_on

SMALL = replace(clip.Recipe(), batch_size=8)


@pytest.fixture(scope="module")
def run(corpus: pm.corpora.Corpus) -> Run:
    return pm.train(SMALL, corpus, "2steps", progress=False)


# Names and strings


@pytest.mark.parametrize("recipe", ["clip", clip, clip.Recipe])
def test_a_recipe_is_also_a_name_a_module_or_a_class(recipe: Any) -> None:
    from polymodal.api import as_recipe

    assert as_recipe(recipe) == clip.Recipe()


def test_train_takes_words(corpus: pm.corpora.Corpus) -> None:
    alike = pm.train(SMALL, corpus, pm.Budget(steps=1), progress=False).model.state_dict()
    for name, tensor in pm.train(SMALL, corpus, "1step", progress=False).model.state_dict().items():
        torch.testing.assert_close(tensor, alike[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("clpi", "2s"), "did you mean 'clip'"),
        ((5, "2s"), "A recipe is a name such as"),
        (("clip", "2 moons"), "is not a budget"),
        (("clip", 20), "A budget is a text such as"),
        (("wasm", "2s"), "trains nothing"),
        ((pm, "2s"), "has no class Recipe"),
    ],
)
def test_what_is_none_of_these_is_one_sentence(
    arguments: tuple[Any, Any], said: str, corpus: pm.corpora.Corpus
) -> None:
    recipe, budget = arguments
    with pytest.raises(UserError, match=said):
        pm.train(recipe, corpus, budget)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"batch_size": "x"}, "batch_size takes a whole number, not 'x'"),
        ({"batch_size": 8.5}, "batch_size takes a whole number"),
        ({"image": 5}, r"image takes .*, not 5 \(int\)"),
        ({"optimizer": OptimizerConfig(learning_rate="x")}, "optimizer.learning_rate takes a number"),  # type: ignore
        ({"optimizer": OptimizerConfig(lr_scheduler="cos")}, "optimizer.lr_scheduler takes one of cosine"),  # type: ignore
        ({"optimizer": OptimizerConfig(betas=(0.9,))}, "optimizer.betas takes a tuple of 2"),  # type: ignore
    ],
)
def test_a_field_of_a_wrong_kind_is_refused_by_its_name(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        clip.Recipe(**values)


def test_a_text_is_no_tuple_of_texts() -> None:
    with pytest.raises(UserError, match="freeze takes a tuple, each a text, not 'text'"):
        TrainingRecipe(freeze="text")  # type: ignore[arg-type]


def test_numbers_of_numpy_and_whole_numbers_for_numbers_are_right() -> None:
    clip.Recipe(batch_size=np.int64(8), optimizer=OptimizerConfig(learning_rate=np.float32(1e-3), weight_decay=0))  # type: ignore
    with pytest.raises(UserError, match="weight_decay takes a number"):
        clip.Recipe(optimizer=OptimizerConfig(weight_decay=True))


def test_every_recipe_has_fields_of_the_kinds_that_it_declares() -> None:
    from polymodal.api import as_recipe

    for name in dir(pm.recipes):
        kind = pm.recipes.find(name)
        if hasattr(kind, "build"):
            as_recipe(kind)
            as_recipe(kind.paper())


# Progress


def test_training_says_how_far_it_is(corpus: pm.corpora.Corpus, capfd: pytest.CaptureFixture[str]) -> None:
    pm.train(SMALL, corpus, "20steps")
    said = capfd.readouterr().err
    assert said.count("clip on synthetic: ") == 10
    assert "100%" in said
    pm.train(SMALL, corpus, "2steps", progress=False)
    assert capfd.readouterr().err == ""


def test_a_notebook_gets_a_bar_below_the_cell(
    corpus: pm.corpora.Corpus, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shown: list[str] = []

    def display(value: str, display_id: bool) -> Any:
        shown.append(value)
        return SimpleNamespace(update=shown.append)

    ipython: Any = ModuleType("IPython")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=None)
    ipython.display = ModuleType("IPython.display")
    ipython.display.HTML, ipython.display.display = str, display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", ipython.display)
    pm.train(SMALL, corpus, "2steps")
    assert len(shown) >= 2
    assert "<progress value='1.0000'" in shown[-1]
    assert "contrastive" in shown[-1]
    assert capfd.readouterr().err == ""


# Folders


def plain(value: Any) -> Any:
    """A value as JSON keeps it."""
    return json.loads(json.dumps(value))


def test_a_run_in_memory_is_saved(run: Run, corpus: pm.corpora.Corpus, tmp_path: Path) -> None:
    mine = replace(run, directory=None)
    assert mine.save(tmp_path / "kept" / "run") == mine.directory == tmp_path / "kept" / "run"
    loaded = pm.load_run(tmp_path / "kept" / "run")
    assert (loaded.record, loaded.history) == (plain(run.record), plain(run.history))
    torch.testing.assert_close(loaded.embed(text="a red disk")["text"], run.embed(text="a red disk")["text"])
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["run"]
    loaded.save(tmp_path / "copy")
    assert loaded.directory == tmp_path / "kept" / "run"
    assert len(pm.evaluate(tmp_path / "copy", corpus)) > 0


def test_a_run_is_not_saved_over_anything(run: Run, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    for place in (tmp_path, tmp_path / "note"):
        with pytest.raises(UserError, match="is there already"):
            run.save(place)
    assert (tmp_path / "note").read_text() == "mine"


def test_a_run_without_a_folder_says_how_it_is_kept(run: Run) -> None:
    assert run.directory is None
    for save in (run.save_result, run.save_record, run.save_history, lambda: run.save_skipped({})):
        with pytest.raises(UserError, match="keep it with"):
            save()


# Embeddings


def photograph(width: int = 90, height: int = 60) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 2, y * 3, (x + y) % 256], axis=-1).astype(np.uint8)


def test_a_single_value_is_a_list_of_one(run: Run) -> None:
    one, several = run.embed(text="a red disk")["text"], run.embed(text=["a red disk", "a bar"])["text"]
    assert one.shape[0] == 1
    torch.testing.assert_close(one[0], several[0])


def test_an_image_is_the_same_as_array_pillow_image_bytes_and_path(run: Run, tmp_path: Path) -> None:
    pixels = photograph()
    image = PILImage.fromarray(pixels)
    image.save(tmp_path / "a.png")
    file = (tmp_path / "a.png").read_bytes()
    given = [pixels, image, file, tmp_path / "a.png", str(tmp_path / "a.png")]
    together = run.embed(image=given)["image"]
    assert len(together) == 5
    for value, expected in zip(given, together, strict=True):
        torch.testing.assert_close(run.embed(image=value)["image"][0], together[0])
        torch.testing.assert_close(expected, together[0])
    torch.testing.assert_close(run.embed(image=np.stack([pixels, pixels]))["image"], together[:2])
    assert run.embed(image=pixels[..., 0])["image"].shape == together[:1].shape


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("text", 5, "text takes a text .*, not int"),
        ("text", ["a", None], "text takes a text .*, not NoneType"),
        ("text", [], "list is empty"),
        ("image", 5, "image takes an image .*, not int"),
        ("image", [object()], "An image is a path, bytes, a Pillow image or an array of uint8, not object"),
        ("image", np.zeros((3, 4, 5)), "height x width x 3 of uint8 .* not 3 x 4 x 5 of float64"),
        ("image", "nowhere.png", "The image nowhere.png cannot be read"),
        ("image", b"no image", "in no format"),
        ("smell", "roses", "does not take smell"),
    ],
)
def test_a_value_that_cannot_be_embedded_is_one_sentence(run: Run, column: str, value: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        run.embed(**{column: value})


def test_an_array_of_any_size_is_an_image_for_a_method_with_tiles() -> None:
    from polymodal.data.columns.tiled_image import TiledImageColumn

    column = TiledImageColumn(tile_size=16, token_size=8, max_tiles=4, largest=32)
    pixels = photograph()
    (array,), (image,) = column([pixels]), column([PILImage.fromarray(pixels)])
    np.testing.assert_array_equal(array, image)
    assert max(array.shape) == 32
    np.testing.assert_array_equal(column([array])[0], array)


# Representations


def scores() -> list[Score]:
    rng = np.random.default_rng(0)
    return [
        Score("test/text_to_image/R@10", rng.uniform(size=50), 0.1, is_fraction=True),
        Score("test/text_to_image/R@1", rng.uniform(size=50), 0.01, headline=0, is_fraction=True),
        Score("test/image_to_text/median rank", rng.integers(1, 9, 50), None, False, "median", unit="rank"),
    ]


def comparison(corpus: pm.corpora.Corpus, run: Run, arms: int) -> ComparisonResult:
    named = [Arm(f"arm {number}", SMALL) for number in range(arms)]
    by_name = {score.name: score for score in scores()}
    trials = [Trial(arm, seed, run, by_name) for seed in range(3) for arm in named]
    return ComparisonResult(named, corpus, pm.Budget(steps=2), [0, 1, 2], trials)


def test_scores_are_a_data_frame_and_a_table() -> None:
    some = Scores(scores())
    frame = some.to_frame()
    assert list(frame["metric"]) == ["R@10", "R@1", "median rank"]
    assert list(frame["task"]) == ["text_to_image", "text_to_image", "image_to_text"]
    np.testing.assert_allclose(frame["value"], [score.value for score in some])
    assert (frame["low"] <= frame["value"]).all()
    assert repr(some).splitlines()[2].startswith("test/text_to_image/R@1 ")
    assert some._repr_html_().count("<tr>") == 4
    assert len(repr(Scores(scores() * 20)).splitlines()) < 20
    assert Scores([]).to_frame().empty


def test_a_score_is_a_short_line() -> None:
    score = scores()[0]
    assert repr(score) == f"test/text_to_image/R@10: {' ['.join(score.shown()[:2])}], chance 10.0 %, 50 units"
    assert len(score._repr_html_()) < 500


def test_evaluation_gives_them(run: Run, corpus: pm.corpora.Corpus) -> None:
    found = pm.evaluate(run, corpus)
    assert isinstance(found, Scores)
    assert len(found.to_frame()) == len(found) > 0
    with pytest.raises(UserError, match="evaluate takes a run"):
        pm.evaluate(5, corpus)  # type: ignore[arg-type]


@pytest.mark.parametrize("arms", [1, 2, 19])
def test_a_comparison_is_shorter_than_a_screen(corpus: pm.corpora.Corpus, run: Run, arms: int) -> None:
    result = comparison(corpus, run, arms)
    lines = repr(result).splitlines()
    assert len(lines) < 20
    assert max(map(len, lines)) < 120
    assert "arm 0" in lines[2]
    assert len(repr(result.trials[0])) < 300
    frame = result.to_frame()
    assert len(frame) == 3 * arms
    assert (frame["difference"] == 0).all()
    assert result._repr_html_().count("<tr>") == arms + 2


def test_compare_takes_words(monkeypatch: pytest.MonkeyPatch, corpus: pm.corpora.Corpus) -> None:
    from polymodal import api

    monkeypatch.setattr(api, "compare_arms", lambda arms, data, budget, *rest: (arms, budget))
    arms, budget = pm.compare(["clip", Arm("mine", SMALL)], corpus, "20m")  # type: ignore[misc]
    assert [arm.label for arm in arms] == ["clip", "mine"]
    assert budget == pm.Budget(seconds=1200)
    with pytest.raises(UserError, match="takes a list of recipes"):
        pm.compare("clip", corpus, "20m")


def test_a_run_and_a_corpus_are_small_html(run: Run, corpus: pm.corpora.Corpus) -> None:
    assert "CLIP" in run._repr_html_()
    assert len(run._repr_html_()) < 2000
    page = corpus._repr_html_()
    assert page.count("<img src='data:image/png;base64,") == 4
    assert len(page) < 100_000
    assert "train 24" in page
    escaped = replace(corpus, about=replace(corpus.about, description="<script>"))._repr_html_()
    assert "<script>" not in escaped


# Completion and types


def test_completion_offers_what_exists() -> None:
    assert {"train", "evaluate", "load_run", "compare", "Run", "RuntimeConfig", "corpora", "recipes"} <= {*dir(pm)}
    assert not {"annotations", "importlib", "TYPE_CHECKING", "Any"} & {*dir(pm)}
    assert all(hasattr(pm, name) for name in dir(pm))
    assert {*dir(pm.recipes)} == {*pm.recipes.entries()}
    assert {*dir(pm.corpora)} == {*pm.corpora.__all__}


@pytest.mark.slow
def test_a_type_checker_follows_the_model(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import polymodal as pm\nfrom polymodal.recipes.dual_encoders import clip\n"
        "corpus = pm.corpora.emoji()\n"
        "reveal_type(pm.train(clip.Recipe(), corpus, '2s').model)\n"
        "reveal_type(pm.train(clip.Recipe, corpus, '2s').model)\n"
        "reveal_type(pm.train('clip', corpus, '2s').model)\n"
        "reveal_type(pm.evaluate('runs/a', corpus))\n"
    )
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), "--follow-imports=silent"]
    source = str(Path(pm.__file__).parents[1])
    done = subprocess.run(
        [*command, "--config-file=", "--ignore-missing-imports", str(program)],
        capture_output=True,
        text=True,
        check=False,
        env={"MYPYPATH": source, "PATH": ""},
    )
    revealed = [line.partition('"')[2].rstrip('"') for line in done.stdout.splitlines() if "Revealed" in line]
    of_clip = "polymodal.recipes.dual_encoders.clip.CLIP"
    module = "torch.nn.modules.module.Module"
    assert revealed == [of_clip, of_clip, module, "polymodal.evaluation.scores.Scores"], done.stdout + done.stderr


# Other platforms

WITHOUT = """
import importlib, pkgutil, signal, sys
import torch, datasets, fsspec, filelock, transformers, pandas, grain, scipy.stats, matplotlib.figure, tyro
for name in ("SIGHUP", "SIGKILL", "SIGUSR1", "SIGALRM"):
    delattr(signal, name)
for name in ("resource", "fcntl", "pwd", "grp", "termios", "pty", "tty", "syslog"):
    sys.modules[name] = None
import polymodal
imported = 0
for module in pkgutil.walk_packages(polymodal.__path__, "polymodal."):
    if module.name.startswith(("polymodal.serving.", "polymodal.curation.")) or module.name.endswith("__main__"):
        continue
    importlib.import_module(module.name)
    imported += 1
from polymodal.training.progress_bar import memory_in_use
print(imported > 200, torch.cuda.is_available() or memory_in_use())
"""


def test_nothing_needs_modules_of_unix_when_imported() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True", "0"], done.stderr[-2000:]


def test_no_process_is_signalled_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """There, `os.kill` stops a process whatever the signal."""
    from polymodal.training import run_index

    record = {"state": "running", "process": {"host": run_index.socket.gethostname(), "pid": -5}}
    monkeypatch.setattr(run_index, "os", SimpleNamespace(name="nt", kill=None))
    assert run_index.state_of(record) == "running"


def test_budgets_in_epochs_count_the_training_rows(corpus: pm.corpora.Corpus) -> None:
    rows = len(corpus.rows("train"))
    trained = pm.train(SMALL, corpus, "1epoch", progress=False)
    assert trained.record["budget"] == f"{rows}examples"


@pytest.mark.parametrize("values", [(["a red disk"],), ("a red disk",), ()])
def test_values_without_a_column_are_a_sentence(values: tuple[Any, ...], run: Run) -> None:
    with pytest.raises(UserError, match="Name what is embedded"):
        run.embed(*values)


def test_a_run_that_was_saved_knows_its_training_rows(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number in range(40):
        PILImage.new("RGB", (8, 8), (number, 0, 0)).save(data / f"{number}.png")
        (data / f"{number}.txt").write_text(f"thing {number}")
    trained = pm.train(SMALL, data, "1step", progress=False)
    folder = trained.save(tmp_path / "run")
    again = pm.corpora.from_path(data)
    found = trained_on(folder, again, np.arange(40))
    assert found.tolist() == sorted(again.rows("train").tolist())
    copied = pm.load_run(folder).save(tmp_path / "copy")
    assert trained_on(copied, again, np.arange(40)).tolist() == found.tolist()
