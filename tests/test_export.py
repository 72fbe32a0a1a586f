"""Exports: other libraries give the outputs of the run, from the folder alone."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from polymodal import evaluation
from polymodal.corpora import Corpus
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.encoders.language_model import LanguageModelConfig
from polymodal.encoders.text import TextEncoderConfig
from polymodal.errors import UserError
from polymodal.layers.decoding import Decoding
from polymodal.modalities.image import to_rgb
from polymodal.recipes.dual_encoders import clip, improved_clip, siglip
from polymodal.recipes.dual_encoders._base import DualEncoder
from polymodal.recipes.language_models import mono_internvl
from polymodal.serving.export import FORMATS, export, push
from polymodal.training import Run, train
from polymodal.training.initialization import with_encoders
from polymodal.training.optimizer import OptimizerConfig
from polymodal.types import Budget
from tiny_checkpoints import IMAGE_MODELS, save, save_tokenizer

evaluate = evaluation.evaluate
TEXTS = ["a red fruit", "Σίσυφος", "smiling face, big eyes", "x", "press <end> now, <start> </s> <|endoftext|> <pad>"]

CLIP_SHAPED = clip.Recipe(
    image=ImageEncoderConfig(pool_type="cls"),
    text=TextEncoderConfig(depth=2, causal=True, pool_type="eos"),
    batch_size=32,
)
OWN = {
    "default": clip.Recipe(batch_size=32),
    "mean with blocks": siglip.Recipe(
        image=ImageEncoderConfig(pos_embed="sine", registers=2),
        text=TextEncoderConfig(depth=1, context_length=12),
        batch_size=32,
    ),
    "as CLIP": CLIP_SHAPED,
}


@pytest.fixture(autouse=True)
def quick_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without figures, which take longer than everything else about an export; one card has its own."""
    monkeypatch.setattr(evaluation, "evaluate", lambda run, corpus: [])


@pytest.fixture(scope="session")
def trained(small_emoji: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], Run]:
    """A few steps of a recipe, once a session."""
    runs: dict[str, Run] = {}

    def run(recipe: Any) -> Run:
        key = str(recipe)
        if key not in runs:
            runs[key] = train(recipe, small_emoji, Budget(steps=3), out=tmp_path_factory.mktemp("runs") / "run")
        return runs[key]

    return run


def own_logits(run: Run, pixels: torch.Tensor) -> torch.Tensor:
    method: Any = run.model
    vectors = method.embed({"image": pixels, "text": run.processor(text=TEXTS)["text"]})
    return method.logits(vectors["image"], vectors["text"])


def run_usage(folder: Path) -> dict[str, Any]:
    """Run the lines of an export's README as they are, with its folder in the place of FOLDER."""
    (lines,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert "FOLDER" in lines
    names: dict[str, Any] = {}
    with torch.no_grad(), contextlib.chdir(folder):
        exec(lines.replace("FOLDER", str(folder)), names)
    return names


def test_rotary_positions_are_refused_with_a_sentence(trained: Callable[[Any], Run], tmp_path: Path) -> None:
    recipe = clip.Recipe(
        image=ImageEncoderConfig(pool_type="cls", pos_embed="rotary"), text=CLIP_SHAPED.text, batch_size=32
    )
    with pytest.raises(UserError, match="rotary positions cannot be exported yet"):
        export(trained(recipe), "transformers", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", OWN)
def test_transformers_gives_the_logits_of_own_towers(
    kind: str, trained: Callable[[Any], Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(OWN[kind])
    written = export(run, "transformers", tmp_path / "out")
    assert "custom code" not in capsys.readouterr().out  # it would ask, and wait for an answer
    native = kind == "as CLIP"
    kinds = transformers.CLIPModel if native else transformers.AutoModel
    trust = {} if native else {"trust_remote_code": True}
    model = kinds.from_pretrained(tmp_path / "out", **trust).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", **trust)
    given = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    pixels = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        logits = model(
            input_ids=given["input_ids"], attention_mask=given["attention_mask"], pixel_values=pixels
        ).logits_per_image
        torch.testing.assert_close(logits, own_logits(run, pixels), atol=1e-4, rtol=1e-4)
    assert written.difference < 1e-4
    assert "trust_remote_code" in (tmp_path / "out" / "README.md").read_text() or native
    vectors = run_usage(tmp_path / "out")["vectors"]
    expected = run.embed(text=["a red fruit"])["text"]
    torch.testing.assert_close(torch.nn.functional.normalize(vectors, dim=1), expected, atol=1e-4, rtol=1e-4)


def test_a_card_says_what_was_measured(
    trained: Callable[[Any], Run], small_emoji: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "evaluate", lambda run, corpus: evaluate(run, small_emoji))
    export(trained(OWN["default"]), "transformers", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for said in ("License of the data", "text_to_image/R@10", "steps", "polymodal"):
        assert said in card


def test_the_exported_image_settings_give_the_pixels_of_the_run(
    trained: Callable[[Any], Run], small_emoji: Corpus, tmp_path: Path
) -> None:
    run = trained(OWN["default"])
    export(run, "transformers", tmp_path / "out")
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    except ImportError:  # older versions of transformers want torchvision for it
        processor = transformers.CLIPImageProcessorPil.from_pretrained(tmp_path / "out")
    row = int(small_emoji.splits["test"][0])
    image = small_emoji.value(row, "image")
    given = processor(to_rgb(image), return_tensors="pt")["pixel_values"]
    own = run.processor(image=[image])["image"]
    assert (given - own).abs().mean() < 0.02  # Pillow rounds between the two passes of its resampling, torch does not
    assert given.shape == own.shape


def test_exported_code_needs_no_polymodal(trained: Callable[[Any], Run], tmp_path: Path) -> None:
    export(trained(OWN["default"]), "transformers", tmp_path / "out")
    code = f"""
import sys
sys.modules["polymodal"] = None  # importing it fails
from transformers import AutoModel, AutoTokenizer
model = AutoModel.from_pretrained({str(tmp_path / "out")!r}, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained({str(tmp_path / "out")!r}, trust_remote_code=True)
texts = tokenizer(["a red fruit"], return_tensors="pt")
print(tuple(model.get_text_features(texts["input_ids"], texts["attention_mask"]).shape))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stdout.strip() == "(1, 128)", done.stderr


def test_a_tuned_pretrained_clip_becomes_a_clip_again(clip_folder: Path, small_emoji: Corpus, tmp_path: Path) -> None:
    from polymodal.training.initialization import with_pretrained

    recipe = with_pretrained(
        clip.Recipe(batch_size=16, optimizer=OptimizerConfig(learning_rate=1e-4)), f"hf:{clip_folder}"
    )
    run = train(recipe, small_emoji, Budget(steps=2), init=f"hf:{clip_folder}", out=tmp_path / "run")
    written = export(run, "transformers", tmp_path / "out")
    assert written.what == "CLIPModel"
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"pretrained weights of {clip_folder}" in card
    assert "base_model" not in card  # which the hub takes for names only
    model = transformers.CLIPModel.from_pretrained(tmp_path / "out").eval()
    pixels = torch.randn(2, 3, 32, 32)
    given = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(
            input_ids=given["input_ids"], attention_mask=given["attention_mask"], pixel_values=pixels
        ).logits_per_image
        torch.testing.assert_close(logits, own_logits(run, pixels), atol=1e-4, rtol=1e-4)
    settings = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert settings["image_mean"] == [0.48, 0.45, 0.4]
    again = with_pretrained(clip.Recipe(), f"hf:{tmp_path / 'out'}")  # and in again
    assert again.image.settings == recipe.image.settings


@pytest.mark.parametrize("kind", ["dinov2", "siglip", "vit"])
def test_pretrained_towers_of_other_kinds_are_exported_with_code(
    kind: str, bert_folder: Path, small_emoji: Corpus, tmp_path: Path
) -> None:
    save(transformers.AutoModel.from_config(IMAGE_MODELS[kind]()), tmp_path / "image")
    text = save_tokenizer(tmp_path / "image", ["a red fruit"] * 20) if kind == "siglip" else bert_folder
    recipe = with_encoders(
        siglip.Recipe(batch_size=16, optimizer=OptimizerConfig(learning_rate=1e-4)),
        {"vision": f"hf:{tmp_path / 'image'}", "text_encoder": f"hf:{text}"},
    )
    run = train(recipe, small_emoji, Budget(steps=2), out=tmp_path / "run")
    assert export(run, "transformers", tmp_path / "out").what.startswith("AutoModel")


@pytest.mark.parametrize("kind", OWN)
def test_onnxruntime_gives_the_vectors(kind: str, trained: Callable[[Any], Run], tmp_path: Path) -> None:
    import onnxruntime

    run = trained(OWN[kind])
    export(run, "onnx", tmp_path / "out")
    assert run_usage(tmp_path / "out")["vectors"].shape[0] == 1
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    pixels = torch.randn(5, 3, 32, 32)
    for texts in (TEXTS, ["a"]):  # other batch sizes and lengths than the graph was made with
        given = tokenizer(texts, padding=True, truncation=True, return_tensors="np")
        session = onnxruntime.InferenceSession(tmp_path / "out" / "text.onnx")
        found = session.run(None, {name: given[name] for name in ("input_ids", "attention_mask")})[0]
        np.testing.assert_allclose(found, run.embed(text=texts)["text"].numpy(), atol=1e-4)
    found = onnxruntime.InferenceSession(tmp_path / "out" / "image.onnx").run(None, {"pixel_values": pixels.numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(found, run.model.embed({"image": pixels})["image"].numpy(), atol=1e-4)


@pytest.mark.parametrize("towers", ["own", "bert", "clip"])
def test_sentence_transformers_gives_the_vectors(
    towers: str,
    trained: Callable[[Any], Run],
    clip_folder: Path,
    bert_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from sentence_transformers import SentenceTransformer

    folder = {"bert": bert_folder, "clip": clip_folder}.get(towers)
    recipe = OWN["mean with blocks"]
    if folder is not None:
        recipe = with_encoders(dataclasses.replace(recipe, freeze=("text",)), {"text_encoder": f"hf:{folder}"})
    run = trained(recipe)
    export(run, "sentence-transformers", tmp_path / "out")
    assert "custom code" not in capsys.readouterr().out  # it would ask, and wait for an answer
    assert run_usage(tmp_path / "out")["vectors"].shape[0] == 1
    model = SentenceTransformer(str(tmp_path / "out"), device="cpu", trust_remote_code=folder is None)
    np.testing.assert_allclose(model.encode(TEXTS), run.embed(text=TEXTS)["text"].numpy(), atol=1e-4)


def test_what_cannot_be_exported_says_so(trained: Callable[[Any], Run], tmp_path: Path) -> None:
    run = trained(OWN["default"])
    with pytest.raises(UserError, match="did you mean 'transformers'"):
        export(run, "transformer", tmp_path / "out")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    with pytest.raises(UserError, match="exists already"):
        export(run, "transformers", tmp_path / "there")
    other = dataclasses.replace(run, model=torch.nn.Linear(2, 2))
    with pytest.raises(
        UserError, match="cannot be exported to transformers so far; dual encoders and language models that see can"
    ):
        export(other, "transformers", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_export_that_differs_is_not_kept(
    trained: Callable[[Any], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polymodal.serving.export import folder

    monkeypatch.setitem(folder.FORMATS["transformers"], DualEncoder, lambda run, into: ("CLIPModel", 0.01))
    with pytest.raises(UserError, match="differ from the run"):
        export(trained(OWN["default"]), "transformers", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_push_uploads_the_folder_and_refusals_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalTokenNotFoundError

    uploaded = []

    class Api:
        def create_repo(self, name: str, exist_ok: bool) -> str:
            if name.startswith("nobody"):
                raise LocalTokenNotFoundError("Token is required")
            return f"https://hub/{name}"

        def upload_folder(self, **given: Any) -> None:
            uploaded.append(given)

    from polymodal.serving.export import folder

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(folder, "hub_answers", lambda: True)
    assert push(tmp_path, "me/model") == "https://hub/me/model"
    assert uploaded[0]["repo_id"] == "me/model"
    with pytest.raises(UserError, match=r"Token is required.*hf auth login"):
        push(tmp_path, "nobody/model")
    monkeypatch.setattr(folder, "hub_answers", lambda: False)
    with pytest.raises(UserError, match="cannot be reached"):
        push(tmp_path, "me/model")


def test_the_command_writes_an_export(polymodal: Any, trained: Callable[[Any], Run], tmp_path: Path) -> None:
    run = trained(OWN["default"])
    done = polymodal("export", str(run.directory), "--to", "transformers", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "differ from the run's by at most" in done.stdout
    assert (tmp_path / "out" / "modeling_polymodal.py").is_file()
    done = polymodal("export", str(run.directory), "--to", "gguf", str(tmp_path / "other"))
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)


SEEING = mono_internvl.Recipe(
    language_model=LanguageModelConfig(
        vocab_size=600, context_length=160, width=32, depth=2, num_heads=4, num_kv_heads=2, mlp_dim=48
    ),
    tile_size=32,
    patch_embed_dim=16,
    batch_size=16,
)


@pytest.fixture(scope="module")
def few_scenes(scenes: Corpus) -> Corpus:
    return scenes.with_splits({name: rows[:32] for name, rows in scenes.splits.items()})


@pytest.mark.parametrize("changes", [{}, {"visual_experts": False}], ids=["experts", "shared"])
def test_transformers_writes_what_a_language_model_that_sees_writes(
    changes: dict[str, Any], few_scenes: Corpus, tmp_path: Path
) -> None:
    run = train(dataclasses.replace(SEEING, **changes), few_scenes, Budget(steps=6), out=tmp_path / "run")
    with torch.no_grad():  # so that what is written hangs on the image
        run.model.image_encoder.project[-1].weight *= 40
    done = export(run, "transformers", tmp_path / "out")
    assert done.difference < 1e-4
    few_scenes.value(0, "image").save(tmp_path / "out" / "image.png")
    run_usage(tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    images = [few_scenes.value(int(row), "image") for row in few_scenes.rows("test")[:3]]
    said = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    processor = transformers.CLIPImageProcessorPil(**said)
    seen = "<image>" + "<cell>" * model.config.image_tokens + "</image>"
    questions = ["How many?", "What is left of the ship?", "Is there a cat?"]
    asked = tokenizer(
        [f"{seen}<user>{question}<assistant>" for question in questions],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    assert (asked["attention_mask"] == 0).any()
    pixels = processor([to_rgb(image) for image in images], return_tensors="pt")["pixel_values"]
    written = model.generate(**asked, pixel_values=pixels, max_new_tokens=12, do_sample=False)
    theirs = [row[asked["input_ids"].shape[1] :].tolist() for row in written]
    end = run.processor.conversation.end
    theirs = [row[: row.index(end)] if end in row else row for row in theirs]
    batch = run.processor(image=[to_rgb(image) for image in images], question=questions)
    assert theirs == run.model.generate_text(batch, Decoding(max_new_tokens=12))
    other = model(**{name: value[:1] for name, value in asked.items()}, pixel_values=1 - pixels[:1]).logits
    assert not torch.allclose(other, model(**{n: v[:1] for n, v in asked.items()}, pixel_values=pixels[:1]).logits)


def test_a_language_model_goes_to_transformers_alone(few_scenes: Corpus, tmp_path: Path) -> None:
    run = train(SEEING, few_scenes, Budget(steps=2), out=tmp_path / "run")
    with pytest.raises(UserError, match="cannot be exported to onnx so far; dual encoders can"):
        export(run, "onnx", tmp_path / "out")


@pytest.mark.parametrize("to", FORMATS)
def test_a_run_of_the_local_projector_is_refused_before_anything_is_exported(
    to: str, small_emoji: Corpus, tmp_path: Path
) -> None:
    recipe = improved_clip.Recipe(batch_size=8, projector_hidden_dim=16, eval_projector="h")
    run = train(recipe, small_emoji, Budget(steps=1))
    with pytest.raises(UserError, match="--eval-projector z"):
        export(run, to, tmp_path / "export")
