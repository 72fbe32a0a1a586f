"""The commands as a user types them."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as PILImage

from polymodal import cli, recipes
from polymodal.claim import RECORDED, verdict_of
from polymodal.cli import comparing
from polymodal.cli._printing import waiting
from polymodal.errors import UserError
from polymodal.serving import installation
from test_corpora import pairs

SMALL = ("--batch-size", "16", "--budget", "4steps")


@pytest.fixture(scope="module")
def own_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    pq.write_table(pa.Table.from_pylist(pairs(60)), folder / "pairs.parquet")
    return folder / "pairs.parquet"


@pytest.fixture(params=["polymodal", pytest.param("polymodal_process", marks=pytest.mark.slow)])
def command_line(request):
    """In this process; `make test-slow` also starts a process for every command."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def a_run(command_line, own_data, tmp_path):
    cache = {"POLYMODAL_CACHE": str(tmp_path / "c")}
    done = command_line("train", "clip", "--data", str(own_data), *SMALL, "--out", "run", **cache)
    assert done.returncode == 0, done.stderr
    return "run"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trian"], "did you mean 'train'"),
        (["train", "clpi", "--corpus", "emoji"], "did you mean 'clip'"),
        (["train", "clip", "--corpus", "emojo"], "did you mean 'emoji'"),
        (["train", "clip"], "Say which data to use"),
        (["train"], "Usage: polymodal train RECIPE"),
        (["train", "clip", "--corpus", "emoji", "--data", "x"], "not both"),
        (["train", "clip", "--corpus", "emoji", "--budget", "soon"], "is not a budget"),
        (
            ["compare", "clip", "siglip", "--corpus", "emoji", "--budget", "9steps", "--steps-from", "r.json"],
            "Give --budget or --steps-from, not both: r.json holds the budget of its steps.",
        ),
        (
            ["reproduce", "clip", "--budget", "9steps", "--steps-from", "r.json"],
            "Give --budget or --steps-from, not both",
        ),
        (["train", "clip", "--data", "none.parquet"], "There is no file or folder none.parquet"),
        (["train", "clip", "--data", "emoji"], "emoji is a built-in corpus: give --corpus emoji"),
        (["evaluate", "nowhere"], "is not a run"),
        (["compare", "--corpus", "emoji"], "Name the recipes"),
        (["compare", "clip", "--corpus", "emoji", "--seeds", "0"], "at least 1"),
        (["compare", "clip", "clip", "--corpus", "emoji"], "'clip' is there more than once"),
        (["compare", "clip 'x", "--corpus", "emoji"], "no closing quotation"),
        (["compare", "", "--corpus", "emoji"], "There is no recipe ''"),
        (["compare", "--family", "dual_encoder", "--corpus", "emoji"], "did you mean 'dual_encoders'"),
        (["train", "moma", "--corpus", "emoji", "--num-image-experts", "0"], "--num-image-experts is at least 1"),
        (["reproduce", "polymodal.recipes.dual_encoders._base:DualEncoderRecipe"], "makes no claim"),
        (["corpora", "fetsh"], "did you mean 'fetch'"),
        (["corpora", "fetch", "emojy"], "did you mean 'emoji'"),
        (["corpora", "fetch"], "Say which corpus"),
        (["new", "my-method"], "letters, digits and _"),
        (["show", "sparq"], "did you mean 'sparc'"),
        (["runs", "--root", "nowhere"], "There is no folder"),
        (["train", "./none.py", "--corpus", "emoji"], "There is no file none.py"),
    ],
)
def test_errors_end_in_one_sentence(polymodal, words, expected):
    done = polymodal(*words)
    assert done.returncode == 2
    assert expected in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_a_mistyped_flag_suggests(polymodal_process):
    done = polymodal_process("train", "clip", "--corpus", "emoji", "--learning-rat", "1")
    assert done.returncode == 2
    assert "--learning-rate" in done.stderr + done.stdout


def test_help_and_list_import_nothing_heavy():
    program = "import sys; sys.argv = ['polymodal', sys.argv[1]]; from polymodal.cli import main; main(); "
    program += "sys.exit(bool({'torch', 'datasets', 'matplotlib', 'grain'} & set(sys.modules)))"
    for word in ("--help", "list", "--version"):
        done = subprocess.run([sys.executable, "-c", program, word], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "polymodal" in done.stdout or "clip" in done.stdout


def test_training_and_evaluation_import_no_library_that_few_need():
    few = ("sklearn", "scipy.stats", "pandas", "transformers", "datasets", "matplotlib", "daft")
    program = f"import sys, polymodal.training, polymodal.evaluation; print([*filter(sys.modules.get, {few})])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr


def test_list_and_show_as_json(polymodal):
    listed = json.loads(polymodal("list", "--json").stdout)
    assert {"clip", "siglip", "sparc", "improved_clip"} <= {entry["name"] for entry in listed}
    assert all(entry["claim"] for entry in listed)
    for entry in listed:
        if (file := RECORDED / f"{entry['name']}.json").is_file():
            assert entry["verdict"] == verdict_of(json.loads(file.read_text(encoding="utf-8")))
        assert entry["lines"] == len(recipes.entries()[entry["name"]].file.read_text(encoding="utf-8").splitlines())
        assert entry["checked"] is None or re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{7,40}.*", entry["checked"])
    shown = json.loads(polymodal("show", "sparc", "--json").stdout)
    flags = {row["flag"]: row for row in shown["hyper_parameters"]}
    assert flags["--grouping"]["type"] == "sparse | no_threshold | softmax"
    assert "section" in flags["--local-weight"]["meaning"] or "paper" in flags["--local-weight"]["meaning"]


@pytest.mark.parametrize("name", cli.COMMANDS)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_of_a_command_needs_nothing_else(name, flag, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["polymodal", name, flag])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    said = capsys.readouterr().out
    assert f"usage: polymodal {name}" in said
    assert " ".join(cli.COMMANDS[name].__doc__.split())[:30] in " ".join(said.split())


def test_help_of_search_has_the_flags_of_runs_and_of_indexes(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["polymodal", "search", "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    said = capsys.readouterr().out
    assert "--split" in said
    assert "--where" in said


def test_every_command_explains_itself(polymodal):
    for command in ("list", "corpora", "runs", "compare"):
        done = polymodal(command, "--help")
        assert done.returncode == 0
        assert "usage" in done.stdout.lower()
    done = polymodal("train", "sparc", "--help")
    assert "--local-weight" in done.stdout
    assert "--image.width" in done.stdout


def test_train_evaluate_embed_search_runs(command_line, a_run, own_data, tmp_path):
    cache = {"POLYMODAL_CACHE": str(tmp_path / "c")}
    found = json.loads(command_line("runs", "--json").stdout)
    assert [(run["run"], run["state"], run["recipe"]) for run in found] == [("run", "finished", "clip")]
    scores = json.loads(command_line("evaluate", a_run, "--json", **cache).stdout)
    assert {"test/text_to_image/R@10", "test/image_to_text/median_rank"} <= {score["name"] for score in scores}
    assert all(score["low"] <= score["value"] <= score["high"] for score in scores)
    done = command_line("embed", a_run, "--data", str(own_data), "--out", "x.parquet", **cache)
    assert done.returncode == 0, done.stderr
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.num_rows == 60
    assert table.schema.field("image").type.list_size == 128
    done = command_line("search", a_run, "a thing", "--top", "5", "--out", "sheet.png", **cache)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip().splitlines()) == 1 + 1 + 5 + 1
    assert PILImage.open(tmp_path / "sheet.png").width > 400
    done = command_line("search", a_run, " ", **cache)
    assert (done.returncode, "query is empty" in done.stderr) == (2, True)


def test_own_method_is_written_and_compared(polymodal, own_data, tmp_path):
    assert polymodal("new", "my_method", "--from", "clip").returncode == 0
    text = (tmp_path / "my_method.py").read_text()
    assert len(text.splitlines()) < 60
    done = polymodal("new", "my_method")
    assert (done.returncode, "is there already" in done.stderr) == (2, True)
    arms = ("clip --batch-size 16", "./my_method.py --batch-size 16 --uniformity 0.5")
    options = ("--data", str(own_data), "--budget", "3steps", "--seeds", "1", "--out", "c", "--jobs", "2")
    done = polymodal("compare", *arms, *options, POLYMODAL_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "c" / "results.json").read_text())
    assert list(results["arms"]) == ["clip --batch-size 16", "my_method --batch-size 16 --uniformity 0.5"]
    run = next((tmp_path / "c" / "runs").glob("my_method*/seed-0"))
    (tmp_path / "my_method.py").unlink()  # a run keeps its recipe's file
    done = polymodal("evaluate", str(run), "--json", POLYMODAL_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_stopping_saves_and_says_how_to_go_on(polymodal, own_data, tmp_path, number):
    environment = os.environ | {"POLYMODAL_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "polymodal", "train", "clip", "--data", str(own_data)]
    command += ["--batch-size", "16", "--budget", "60steps", "--out", "run"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if (tmp_path / "run" / "run.json").exists():
            break
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "go on with: polymodal resume run" in said.strip().splitlines()[-1]
    done = polymodal("resume", "run", POLYMODAL_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["steps"] == 60


@pytest.mark.parametrize("jobs", [pytest.param("1", marks=pytest.mark.slow), "2"])
def test_a_stopped_comparison_goes_on_with_the_same_command(polymodal, own_data, tmp_path, jobs):
    environment = os.environ | {"POLYMODAL_CACHE": str(tmp_path / "cache")}
    words = ["compare", "clip --batch-size 16", "siglip --batch-size 16", "--data", str(own_data)]
    words += ["--budget", "30steps", "--seeds", "1", "--out", "c", "--jobs", jobs]
    command = [sys.executable, "-m", "polymodal", *words]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    for _ in range(600):
        if list(tmp_path.glob("c/runs/clip*/seed-0/run.json")):
            break
        time.sleep(0.05)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal's Ctrl-C, which reaches all processes
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "the same command goes on where it was" in said or "stopped" in said
    done = polymodal(*words, POLYMODAL_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "c" / "results.json").read_text())["seeds"] == [0]


def test_only_training_uses_several_processes(polymodal):
    done = polymodal("compare", "clip", "--corpus", "emoji", WORLD_SIZE="2", RANK="0")
    assert done.returncode == 2
    assert "start compare without torchrun" in done.stderr
    assert "start tune without torchrun" in polymodal("tune", "clip", WORLD_SIZE="2", RANK="0").stderr


def test_the_papers_preset_is_a_flag():
    from polymodal.recipes.dual_encoders import clip

    found = comparing._recipe_with_flags("clip --paper --batch-size 8")
    assert found == dataclasses.replace(clip.Recipe.paper(), batch_size=8)
    assert comparing._recipe_with_flags("clip --batch-size 8") == clip.Recipe(batch_size=8)


def test_the_optimizer_s_flags_need_no_prefix():
    from polymodal.recipes.dual_encoders import clip

    for flag in ("--learning-rate", "--optimizer.learning-rate"):
        found = comparing._recipe_with_flags(f"clip {flag} 0.5")
        assert found.optimizer == dataclasses.replace(clip.Recipe.optimizer, learning_rate=0.5)


def test_help_begins_with_the_method_s_own_flags(capsys):
    with pytest.raises(SystemExit):
        comparing._recipe_with_flags("sparc --help")
    printed = capsys.readouterr().out
    places = [printed.index(flag) for flag in ("--local-weight", "--batch-size", "--freeze", "--vision")]
    assert places == sorted(places)


def test_a_recipe_without_a_preset_says_so(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        "from dataclasses import dataclass\n\n\n@dataclass(frozen=True)\nclass Recipe:\n    def build(self): ...\n"
    )
    with pytest.raises(UserError, match="no preset"):
        comparing._recipe_with_flags(f"{path} --paper")


def test_doctor_says_what_is_there_and_what_is_missing(polymodal, tmp_path, monkeypatch):
    told = polymodal("doctor", POLYMODAL_CACHE=str(tmp_path / "none"))
    assert told.returncode == 0
    assert f"Cache {tmp_path / 'none'}: -;" in told.stdout
    record = json.loads(polymodal("doctor", "--json").stdout)
    assert record["versions"]["torch"]
    assert record["missing"]["video"] == [], "the tests have it"
    needed = ['av>=14; extra == "video"', 'nothing-such>=2; extra == "video"', 'numpy<1; extra == "export"', "torch>=2"]
    needed.append('polymodal[video]; extra == "export"')
    monkeypatch.setattr(installation.importlib.metadata, "requires", lambda name: needed)
    missing = {part.name: part.missing for part in installation.extras()}
    assert missing["video"] == ("nothing-such>=2",)
    assert missing["export"] == ("nothing-such>=2", "numpy<1"), "also of the extra that it names"
    assert missing["hub"] == ()
    assert set(missing) == set(installation.WHAT_FOR), "every extra says what it is for"


def test_a_sign_of_life_is_for_terminals_and_stays_out_of_what_is_printed(capsys, monkeypatch):
    with waiting("Scoring [one] run"):
        print("a score")
    assert capsys.readouterr() == ("a score\n", "")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes anything for a terminal
    with waiting("Scoring [one] run"):
        pass
    said, shown = capsys.readouterr()
    assert (said, "Scoring [one] run" in shown) == ("", True)
