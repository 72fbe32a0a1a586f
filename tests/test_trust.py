"""Runs, indexes and packages from strangers: nothing of theirs is executed unless the user says so."""

import ast
import functools
import json
import os
import shutil
import stat
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from PIL import Image as PILImage

import polymodal as pm
from polymodal.errors import UserError
from polymodal.recipes import clip
from polymodal.training import load_run, train, trust
from polymodal.training.recipe_record import dataclass_from, recipe_from_record
from polymodal.training.run import read_record
from polymodal.types import Budget

SOURCE = Path(pm.__file__).parent
SMALL = replace(clip.Recipe(), batch_size=8)
MINE = '''"""A method of somebody's own."""

from dataclasses import dataclass
from pathlib import Path

from polymodal.recipes.dual_encoders.clip import Recipe as Clip

{marker}

@dataclass(frozen=True)
class Recipe(Clip):
    batch_size: int = 8
'''


@dataclass(frozen=True)
class OwnRecipe(clip.Recipe):
    """A recipe of a module outside the package: this one."""

    batch_size: int = 8


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for place in range(30):
        PILImage.new("RGB", (16, 16), (place * 8, 0, 255 - place * 8)).save(folder / f"{place}.png")
    lines = [json.dumps({"image": f"{place}.png", "text": f"shade {place}"}) for place in range(30)]
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    train(SMALL, pm.corpora.from_path(images / "pairs.jsonl"), Budget.parse("1steps"), out=out)
    return out


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "marker"


@pytest.fixture
def strange(trained: Path, tmp_path: Path, marker: Path) -> Path:
    """A run from elsewhere whose recipe file writes a marker when it is executed."""
    run = tmp_path / "strange"
    shutil.copytree(trained, run)
    (run / "recipe.py").write_text(MINE.format(marker=f"Path({str(marker)!r}).touch()"))
    changed(run, **{"class": "recipe.py:Recipe"})
    return run


def changed(run: Path, **recipe: object) -> None:
    """Another recipe in a run's record."""
    record = read_record(run)
    record["recipe"] |= recipe
    (run / "run.json").write_text(json.dumps(record))


def with_values(run: Path, **values: object) -> None:
    changed(run, values=read_record(run)["recipe"]["values"] | values)


COMMANDS = {
    "evaluate": ("evaluate", "RUN"),
    "embed": ("embed", "RUN", "--out", "vectors.parquet"),
    "index": ("index", "RUN", "--out", "index"),
    "search": ("search", "RUN", "a shade", "--split", "all"),
    "search an index": ("search", "INDEX", "a shade"),
    "export": ("export", "RUN", "--to", "onnx", "exported"),
    "resume": ("resume", "RUN"),
    "init": (
        "train",
        "clip",
        "--data",
        "DATA",
        "--budget",
        "1steps",
        "--batch-size",
        "8",
        "--init",
        "RUN",
        "--out",
        "o",
    ),
    "attack": ("attack", "set_level_attack", "RUN", "--examples", "4", "--split", "train"),
    "serve": ("serve", "RUN"),
    "serve beside": ("serve", "TRAINED", "--page", "--extra-index", "INDEX"),
    "generate": ("generate", "RUN"),
    "ask": ("ask", "RUN", "IMAGE"),
    "locate": ("ground", "RUN", "IMAGE", "a shade"),
    "tag": ("extract", "RUN", "--out", "fields.jsonl"),
    "prefer": ("sample-preferences", "RUN", "--out", "preferred"),
    "caption": ("caption", "RUN", "--out", "captioned"),
    "caption rank": ("caption", "TRAINED", "--score-with", "RUN", "--out", "captioned"),
    "train finished": ("train", "FILE", "--data", "DATA", "--budget", "1steps", "--out", "RUN"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_executes_the_code_of_a_run_from_elsewhere(
    name, strange, trained, images, marker, polymodal, tmp_path, monkeypatch
):
    words = {"RUN": strange, "TRAINED": trained, "DATA": images / "pairs.jsonl", "IMAGE": images / "3.png"}
    if "INDEX" in COMMANDS[name]:
        words["INDEX"] = index_of(trained, images, tmp_path)
        shutil.copytree(trained, tmp_path / "kept")
        shutil.rmtree(trained)
        shutil.copytree(strange, trained)  # where the index says that its run lies
    if "FILE" in COMMANDS[name]:
        words["FILE"] = tmp_path / "mine.py"
        words["FILE"].write_text(MINE.format(marker="# as the author of the run showed it"))
        record = read_record(strange)
        record["recipe"]["name"] = "mine"
        record["corpus"]["data"] = [str(images / "pairs.jsonl")]
        (strange / "run.json").write_text(json.dumps(record))
    arguments = [str(words.get(word, word)) for word in COMMANDS[name]]
    monkeypatch.setattr("polymodal.cli.using._listen", lambda *_: None)
    try:
        done = polymodal(*arguments)
        assert not marker.exists()
        assert done.returncode == 2
        said = [line for line in done.stderr.splitlines() if line.startswith("polymodal:")]
        assert len(said) == 1, done.stderr
        assert "Traceback" not in done.stderr
        assert "--trust-code" in said[0]
        assert f"recipe.py (SHA-256 {trust.digest((strange / 'recipe.py').read_bytes())[:12]})" in said[0]
        done = polymodal(*arguments, "--trust-code")
        assert marker.exists(), done.stderr
        assert "Traceback" not in done.stderr
    finally:
        if (tmp_path / "kept").exists():
            shutil.rmtree(trained)
            shutil.copytree(tmp_path / "kept", trained)


def index_of(run: Path, images: Path, folder: Path) -> Path:
    from polymodal.serving.index_build import build_index

    build_index(load_run(run), pm.corpora.from_path(images / "pairs.jsonl"), str(folder / "index"))
    return folder / "index"


def test_in_python_code_is_trusted_by_an_argument(strange, marker):
    with pytest.raises(UserError, match="trust_code=True in Python"):
        load_run(strange)
    assert not marker.exists()
    assert type(load_run(strange, trust_code=True).recipe).__name__ == "Recipe"
    assert marker.exists()
    with pytest.raises(UserError, match="--trust-code"):  # it was said of that one time
        load_run(strange)


def test_a_cache_of_python_does_not_stand_in_for_the_file(trained, tmp_path, marker, images):
    """The digest is of the source, so it is the source that is executed."""
    import importlib.util
    import py_compile

    mine = tmp_path / "mine.py"
    mine.write_text(MINE.format(marker=""))
    run = tmp_path / "run"
    kind = pm.recipes.find(str(mine))
    train(kind(), pm.corpora.from_path(images / "pairs.jsonl"), Budget.parse("1steps"), out=run)
    evil = tmp_path / "evil.py"
    evil.write_text(MINE.format(marker=f"Path({str(marker)!r}).touch()"))
    cached = importlib.util.cache_from_source(str(run / "recipe.py"))
    py_compile.compile(str(evil), cached, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    load_run(run)
    assert not marker.exists()


@pytest.mark.parametrize(
    "named",
    [
        "torch:load",
        "os:system",
        "builtins:eval",
        "subprocess:Popen",
        "transformers:TrainingArguments",
        "antigravity:Recipe",
        "ctypes.wintypes:Recipe",
        "polymodal.cli:main",
        "polymodal.training.run:Run",
        "polymodal.training.run:json",
        "polymodal:cli",
        "polymodal.no.such:Recipe",
        "../evil.py:Recipe",
        "recipe.py",
        "",
        ["os", "system"],
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_a_record_names_no_code_outside_the_package(named, nested, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    where = {"class": named, "f": "evil.pt", "weights_only": False}
    if nested:
        with_values(run, image=where)
    else:
        changed(run, **{"class": named}, values={"f": "evil.pt", "weights_only": False})
    before = set(sys.modules)
    with pytest.raises(UserError) as error:
        load_run(run)
    assert len(str(error.value).splitlines()) == 1
    new = {name for name in set(sys.modules) - before if not name.startswith("polymodal.")}
    assert not new & {"antigravity", "ctypes.wintypes", "transformers"}


@pytest.mark.parametrize("named", ["torch:load", "os:system", "builtins:eval", "subprocess:Popen"])
def test_functions_and_other_classes_are_refused_even_of_a_trusted_run(named, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    changed(run, **{"class": named}, values={})
    with pytest.raises(UserError, match=r"no dataclass of that module|cannot be imported"):
        load_run(run, trust_code=True)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"batch_size": "8"}, "has '8' for values.batch_size, which is no int"),
        ({"batch_size": True}, "values.batch_size"),
        ({"batch_size": None}, "values.batch_size"),
        ({"optimizer": {"learning_rate": "fast"}}, "values.optimizer.learning_rate"),
        ({"optimizer": {"betas": [0.9]}}, "values.optimizer.betas"),
        ({"optimizer": {"betas": [0.9, "0.98"]}}, r"values.optimizer.betas\[1\]"),
        ({"optimizer": {"lr_scheduler": "never"}}, "values.optimizer.lr_scheduler"),
        ({"no_such": 1}, "has no field 'no_such'"),
        ({"image": 3}, "values.image"),
        ({"image": {"width": "wide"}}, "values.image.width"),
        ({"image": {"class": "polymodal.training.runtime:RuntimeConfig"}}, "which is no ImageEncoderConfig"),
    ],
)
def test_values_fit_the_fields_of_the_recipe(values, said, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    with_values(run, **values)
    with pytest.raises(UserError, match=said) as error:
        load_run(run)
    assert str(run / "run.json") in str(error.value)


def test_records_of_all_recipes_read_as_they_were():
    from polymodal.recipes import entries, find
    from polymodal.training.recipe_record import recipe_record

    for name in entries():
        kind = find(name)
        for recipe in [kind()] + ([kind.paper()] if hasattr(kind, "paper") else []):
            record = json.loads(json.dumps(recipe_record(recipe)))
            assert dataclass_from(kind, record["values"], Path("run"), "values") == recipe
            if hasattr(kind, "columns"):
                assert recipe_from_record(record, Path("run")) == recipe


def test_a_recipe_of_a_module_is_remembered_by_the_file_of_the_module(images, tmp_path, monkeypatch, polymodal):
    corpus = pm.corpora.from_path(images / "pairs.jsonl")
    train(OwnRecipe(), corpus, Budget.parse("1steps"), out=tmp_path / "run")
    assert read_record(tmp_path / "run")["recipe"]["class"].endswith("test_trust:OwnRecipe")
    assert isinstance(load_run(tmp_path / "run").recipe, OwnRecipe)

    monkeypatch.syspath_prepend(tmp_path)
    module, marker = tmp_path / "own_module.py", tmp_path / "marker"
    module.write_text(MINE.format(marker=""))
    kind = pm.recipes.find("own_module:Recipe")
    train(kind(), corpus, Budget.parse("1steps"), out=tmp_path / "other")
    monkeypatch.delitem(sys.modules, "own_module")  # as in another process
    assert type(load_run(tmp_path / "other").recipe).__module__ == "own_module"
    monkeypatch.delitem(sys.modules, "own_module")
    module.write_text(MINE.format(marker=f"Path({str(marker)!r}).touch()"))
    done = polymodal("evaluate", "other")
    assert (done.returncode, marker.exists()) == (2, False)
    assert "would import the module own_module" in done.stderr
    assert polymodal("evaluate", "other", "--trust-code").returncode == 0
    assert marker.exists()


def test_what_is_trusted_is_the_users_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMODAL_STATE", str(tmp_path / "state"))
    code = b"print('never seen before')"
    assert not trust.is_trusted(code)
    trust.remember({Path("mine.py"): code})
    trust.remember({Path("other.py"): b"# another"})
    assert trust.is_trusted(code)
    file = tmp_path / "state" / "trusted.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(json.loads(file.read_text())) == 2
    file.chmod(0o666)  # anybody may have written it
    assert not trust.is_trusted(code)
    file.chmod(0o600)
    file.write_text("[damaged")
    assert not trust.is_trusted(code)


def test_where_nothing_can_be_remembered_training_goes_on(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("POLYMODAL_STATE", str(tmp_path / "file" / "state"))
    trust.remember({Path("mine.py"): b"# mine"})
    assert "--trust-code" in capsys.readouterr().err


def test_tests_write_nothing_into_the_users_own_state():
    from platformdirs import user_state_path

    assert os.environ["POLYMODAL_STATE"] not in ("", str(user_state_path("polymodal")))


@functools.cache
def trees() -> dict[str, ast.Module]:
    """The files of the package, parsed."""
    files = SOURCE.rglob("*.py")
    return {file.relative_to(SOURCE).as_posix(): ast.parse(file.read_text(encoding="utf-8")) for file in files}


def calls(*names: str) -> list[tuple[str, ast.Call]]:
    """Calls of these functions or methods in the package."""
    found = []
    for file, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
                called = ast.unparse(node.func)
                if called in names or called.rpartition(".")[2] in names:
                    found.append((file, node))
    return found


def given(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(word.value) for word in call.keywords if word.arg == name), None)


def test_no_pickle_is_read():
    assert {given(call, "weights_only") for _, call in calls("torch.load")} <= {"True"}
    assert {given(call, "allow_pickle") for _, call in calls("np.load", "numpy.load", "read_array")} == {"False"}
    assert not calls("pd.read_pickle", "read_pickle", "joblib.load", "hub.load", "load_state_dict_from_url")
    pickles, files = {"pickle", "marshal", "shelve", "dill"}, set()
    for file, tree in trees().items():
        for node in ast.walk(tree):
            names = {name.name for name in node.names} if isinstance(node, ast.Import) else set()
            if names & pickles or (isinstance(node, ast.ImportFrom) and node.module in pickles):
                files.add(file)
    assert files == {"reproduce/parallel.py"}  # between processes that it has started itself


def test_no_code_or_pickle_of_a_pretrained_model_is_loaded():
    """Exceptions are what `export` has just written, and exports whose code is compared with what it writes."""
    loads = calls("from_pretrained", "from_config", "AutoConfig.for_model", "SentenceTransformer")
    assert any(file.startswith("encoders/") for file, _ in loads)
    for file, call in loads:
        if not file.startswith("serving/export/"):
            passed_on = {ast.unparse(word.value) for word in call.keywords if word.arg is None}
            assert given(call, "trust_remote_code") == "False" or "named" in passed_on, (file, call.lineno)
    text = (SOURCE / "encoders" / "pretrained.py").read_text()
    assert '{"use_safetensors": True, "trust_remote_code": False}' in text
    for file in SOURCE.rglob("*.py"):
        if "trust_remote_code=True" in file.read_text() or '"trust_remote_code": True' in file.read_text():
            assert file.is_relative_to(SOURCE / "serving" / "export"), file


def test_a_pretrained_model_of_pickles_is_refused(tmp_path, clip_folder):
    import torch

    folder = tmp_path / "pickled"
    shutil.copytree(clip_folder, folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    recipe = SMALL
    from polymodal.training.initialization import load_pretrained, with_encoders

    recipe = with_encoders(recipe, {"vision": f"hf:{folder}"})
    with pytest.raises(UserError, match=r"no \.safetensors file"):
        load_pretrained(recipe.image.build())
