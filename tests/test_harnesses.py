"""Runs and exports in the evaluation packages of others, called as these packages call them.

CLIP_benchmark: github.com/LAION-AI/CLIP_benchmark at 48de38c1. MTEB 2.26. lmms-eval 0.7. Where a loop is repeated here
in plain code, it is that of the package.
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from torch.nn import functional as F
from torch.utils.data import DataLoader

import synthetic
from polymodal.corpora import Corpus
from polymodal.corpora.user_files import from_path
from polymodal.errors import UserError
from polymodal.evaluation.benchmark import score_on_benchmark
from polymodal.layers.decoding import Decoding
from polymodal.recipes.dual_encoders import clip
from polymodal.recipes.language_models import mono_internvl
from polymodal.serving.export import export
from polymodal.serving.harnesses import clip_benchmark, lmms_eval
from polymodal.serving.harnesses.mteb import MtebEncoder
from polymodal.serving.vqa import answer_about
from polymodal.training import Run, train
from polymodal.training.run import load_run
from polymodal.types import Budget

IMAGES, CAPTIONS = 24, 3


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of pairs beside its images, which are not square."""
    folder = tmp_path_factory.mktemp("pairs")
    lines = []
    for number in range(IMAGES):
        row = synthetic.row(number)
        drawn = synthetic.scene(row["label"], "square", np.random.default_rng(number))[0]
        PILImage.fromarray(drawn).convert("RGB").resize((40 + number % 3, 36)).save(folder / f"{number}.png")
        texts = [f"{row['text'][0]['text']} {word} {number % 5}" for word in ("here", "there", "again")]
        lines.append(json.dumps({"image": f"{number}.png", "text": texts}))
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    return folder / "pairs.jsonl"


@pytest.fixture(scope="module")
def embedding(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("embedding") / "pairs"
    return train(clip.Recipe(batch_size=8), from_path(pairs), Budget(steps=12), out=out)


@pytest.fixture(scope="module")
def exported(embedding: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "clip"
    export(embedding, "transformers", folder)
    return folder


class FlickrLike:
    """Images opened as CLIP_benchmark's data sets open them, with their captions."""

    def __init__(self, file: Path, transform: Callable[[PILImage.Image], torch.Tensor]):
        self.rows = [json.loads(line) for line in file.read_text().splitlines()]
        self.folder, self.transform = file.parent, transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, list[str]]:
        row = self.rows[index]
        return self.transform(PILImage.open(self.folder / row["image"]).convert("RGB")), row["text"]


def zero_shot_retrieval(pairs: Path, path: Path) -> dict[str, float]:
    """CLIP_benchmark's loop of zero-shot retrieval, and its recalls for every query by itself."""
    model, transform, tokenizer = clip_benchmark.load(
        model_name="any", pretrained=str(path), cache_dir=None, device="cpu"
    )
    model.eval()
    loader = DataLoader(
        FlickrLike(pairs, transform),  # type: ignore[arg-type]
        batch_size=7,
        collate_fn=lambda rows: (torch.stack([image for image, _ in rows]), [texts for _, texts in rows]),
    )
    image_parts, text_parts, owners, first = [], [], [], 0
    for images, texts in loader:
        tokens = tokenizer([text for of_image in texts for text in of_image]).to("cpu")
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            image_parts.append(F.normalize(model.encode_image(images.to("cpu")), dim=-1))
            text_parts.append(F.normalize(model.encode_text(tokens), dim=-1))
        owners += [first + number for number, of_image in enumerate(texts) for _ in of_image]
        first += len(images)
    scores = torch.cat(text_parts) @ torch.cat(image_parts).T
    owner = torch.tensor(owners)
    recalls = {}
    for k in (1, 5, 10):
        found = [owner[row] in scores[row].topk(k).indices for row in range(len(scores))]
        recalls[f"text_to_image/R@{k}"] = float(np.mean(found))
        hits = [bool((owner[column.topk(k).indices] == image).any()) for image, column in enumerate(scores.T)]
        recalls[f"image_to_text/R@{k}"] = float(np.mean(hits))
    return recalls


def test_clip_benchmark_gives_the_recalls_of_evaluate(embedding: Run, pairs: Path) -> None:
    ours = {
        one.score.name.removeprefix("test/"): one.score.value
        for one in score_on_benchmark("flickr30k", embedding, from_path(pairs), "all")
    }
    assert embedding.directory is not None
    theirs = zero_shot_retrieval(pairs, embedding.directory)
    assert theirs == pytest.approx(ours)
    assert 0 < theirs["text_to_image/R@5"] < 1


def test_an_export_embeds_as_its_run(embedding: Run, exported: Path, pairs: Path) -> None:
    assert embedding.directory is not None
    image = PILImage.open(pairs.parent / "3.png")
    vectors = []
    for path in (embedding.directory, exported):
        encoder = MtebEncoder(path)
        vectors.append([encoder.embedder.embed_texts(["a red square", "a"]), encoder.embedder.embed_images([image])])
    assert torch.allclose(vectors[0][0], vectors[1][0], atol=1e-4)
    assert float((vectors[0][1] * vectors[1][1]).sum()) > 0.95  # transformers resizes otherwise
    assert zero_shot_retrieval(pairs, exported / "model.safetensors").keys()


def test_code_beside_an_export_is_executed_only_where_it_is_ours(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "changed")
    code = tmp_path / "changed" / "modeling_polymodal.py"
    code.write_text(code.read_text() + "\nraise SystemExit('executed')\n")
    with pytest.raises(UserError, match=r"modeling_polymodal.py is not what this version of polymodal writes"):
        MtebEncoder(tmp_path / "changed")
    with pytest.raises(UserError, match="not a run"):
        MtebEncoder(tmp_path / "nothing")


def test_the_command_of_clip_benchmark_knows_the_model_type(
    embedding: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def evaluate() -> None:
        model, _, _ = models.TYPE2FUNC["polymodal"](
            model_name="polymodal", pretrained=sys.argv[3], cache_dir=None, device="cpu"
        )
        print(type(model).__name__, sys.argv[1:])

    models = SimpleNamespace(TYPE2FUNC={}, MODEL_TYPES=["open_clip"])
    package = SimpleNamespace(models=models, cli=SimpleNamespace(main=evaluate))
    monkeypatch.setitem(sys.modules, "clip_benchmark", package)
    monkeypatch.setattr(sys, "argv", ["clip_benchmark", "eval", "--pretrained", str(embedding.directory)])
    assert clip_benchmark.main() == 0
    printed = capsys.readouterr().out
    assert printed.startswith("RunEmbedder")
    for expected in (f"{embedding.directory}/model.safetensors", "'--model_type', 'polymodal'", "{dataset}_"):
        assert expected in printed
    assert models.MODEL_TYPES == ["open_clip", "polymodal"]
    assert clip_benchmark.arguments(["eval", "--output=a.json", "--model", "b"])[4:] == ["--model_type", "polymodal"]
    assert clip_benchmark.arguments(["build", "a.json"]) == ["build", "a.json"]
    monkeypatch.setitem(sys.modules, "clip_benchmark", None)
    assert clip_benchmark.main() == 2
    assert "pip install clip-benchmark" in capsys.readouterr().err


def test_mteb_embeds_texts_images_and_both(embedding: Run, pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert embedding.directory is not None
    encoder = MtebEncoder(str(embedding.directory), None, device="cpu")
    image = PILImage.open(pairs.parent / "1.png")
    task = {"task_metadata": None, "hf_split": "test", "hf_subset": "default", "prompt_type": None, "batch_size": 2}
    own = embedding.embed(text=["a", "b", "c"], image=[image] * 3)
    texts = encoder.encode([{"text": ["a", "b"], "title": ["", ""]}, {"text": ["c"]}], **task)
    assert texts == pytest.approx(own["text"].numpy(), abs=1e-5)
    both = encoder.encode([{"text": ["a"], "image": [image]}], **task)
    fused = F.normalize(own["text"][:1] + own["image"][:1], dim=-1)
    assert both == pytest.approx(fused.numpy(), abs=1e-5)
    assert encoder.similarity(texts, 3 * texts).diag().numpy() == pytest.approx(1)
    assert encoder.similarity_pairwise(texts, -texts).numpy() == pytest.approx(-1)
    with pytest.raises(UserError, match="embeds image and text, and this task has audio"):
        encoder.encode([{"audio": [None]}], **task)

    meta = SimpleNamespace(ModelMeta=SimpleNamespace, ScoringFunction=SimpleNamespace(COSINE="cosine"))
    monkeypatch.setitem(sys.modules, "mteb.models.model_meta", meta)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "mteb.models", ModuleType("mteb.models"))
    monkeypatch.setitem(sys.modules, "mteb", ModuleType("mteb"))
    assert encoder.mteb_model_meta.modalities == ["image", "text"]
    assert encoder.mteb_model_meta.name == f"polymodal/{embedding.name}"


def test_the_revision_follows_the_weights(embedding: Run, exported: Path, tmp_path: Path) -> None:
    assert embedding.directory is not None
    first, again = MtebEncoder(exported)._revision(), MtebEncoder(exported)._revision()
    assert first == again
    assert len(first) == 40
    assert first != MtebEncoder(embedding.directory)._revision()


@dataclass
class Instance:
    """A request of lmms-eval."""

    args: tuple[Any, ...]


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module with a stand-in of lmms-eval: its base class, and the class of its registry."""

    class Lmms:
        def __init__(self) -> None:
            self.task_dict: dict[str, Any] = {}
            self.added: list[tuple[Any, ...]] = []
            self.cache_hook = SimpleNamespace(add_partial=lambda *given: self.added.append(given))

    @dataclass(frozen=True)
    class ModelManifest:
        model_id: str
        simple_class_path: str | None = None

    for name, members in {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.model": {"lmms": Lmms},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    }.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    yield importlib.reload(lmms_eval)
    monkeypatch.undo()
    importlib.reload(lmms_eval)


@pytest.fixture(scope="module")
def seeing(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("seeing") / "run"
    train(mono_internvl.Recipe.tiny(), corpus, Budget(steps=4), out=out)
    return out


def documents() -> list[dict[str, Any]]:
    made = [synthetic.scene(color, "square", np.random.default_rng(0))[0] for color in ("red", "blue", "green")]
    return [{"image": PILImage.fromarray(pixels).convert("RGB")} for pixels in made]


def asked(text: str, options: Any, number: int, images: Callable[[Any], list[Any]] | None = None) -> Instance:
    return Instance((text, options, images or (lambda document: [document["image"]]), number, "task", "test"))


def test_lmms_eval_finds_the_model(harness: Any) -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    module, name = project["entry-points"]["lmms_eval.models"]["polymodal"].split(":")
    manifest = getattr(importlib.import_module(module), name)()
    module, name = manifest.simple_class_path.rsplit(".", 1)
    kind = getattr(importlib.import_module(module), name)
    assert issubclass(kind, sys.modules["lmms_eval.api.model"].lmms)
    assert manifest.model_id == "polymodal"
    assert kind.is_simple


def test_lmms_eval_generates(harness: Any, seeing: Path, embedding: Run) -> None:
    model = harness.Polymodal(pretrained=str(seeing), batch_size="2", device="cpu", max_batch_size=None)
    shown = documents()
    model.task_dict = {"task": {"test": shown}}
    requests = [
        asked("<image>\nWhat color?", {"max_new_tokens": 6, "temperature": 0, "top_p": None}, 0),
        asked("What color?", {"max_new_tokens": 6, "until": ["\n\n"]}, 1, lambda document: []),
        asked("Where?", {"max_new_tokens": 3, "do_sample": False, "temperature": 0.7}, 1),
        asked("What color?", {"max_new_tokens": 6, "temperature": 0}, 2),
    ]
    texts = model.generate_until(requests)
    run = load_run(seeing)
    for number, question, tokens in ((0, "What color?", 6), (2, "Where?", 3), (3, "What color?", 6)):
        image = shown[{0: 0, 2: 1, 3: 2}[number]]["image"]
        assert texts[number] == answer_about(run, [image], question, Decoding(tokens))[0]
    assert any(texts)
    assert len(model.added) == 4
    with pytest.raises(UserError, match="answers about one image; document 0 of task has 2"):
        model.generate_until([asked("?", {}, 0, lambda document: [document["image"]] * 2)])
    with pytest.raises(UserError, match="cannot answer"):
        harness.Polymodal(pretrained=str(embedding.directory))


def test_texts_end_at_the_first_stop() -> None:
    assert lmms_eval.cut_at("a b\nc. d", ["\n", "."]) == "a b"
    assert lmms_eval.cut_at("a. b", ".") == "a"
    assert lmms_eval.cut_at("a", None) == lmms_eval.cut_at("a", [""]) == "a"


def test_lmms_eval_has_losses_of_answers(harness: Any, seeing: Path) -> None:
    model = harness.Polymodal(pretrained=str(seeing), batch_size=3, device="cpu")
    shown = documents()
    model.task_dict = {"task": {"test": shown}}
    run: Any = load_run(seeing)
    columns = {"image": [shown[1]["image"]], "question": ["What color?"]}
    (ids,) = run.model.generate_text(run.processor(**columns), Decoding(8))
    written = run.processor.texts([ids])[0]
    choices = ["red", "a green disk", written]
    found = model.loglikelihood([asked("What color?", choice, 1) for choice in choices])
    for choice, (loss, greedy) in zip(choices, found, strict=True):
        batch = run.processor(**columns, answer=[choice])
        with torch.no_grad():
            total = -float(run.model.log_likelihood(batch))
        assert loss == pytest.approx(total / int(batch["sequences"].predicted.sum()), rel=1e-3)
        assert not greedy or choice == written
    (function,) = model.loglikelihood([asked("What color?", lambda document: "red", 1)])
    assert function[0] == pytest.approx(found[0][0], rel=1e-3)
