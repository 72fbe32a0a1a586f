"""The README of an export (model card): usage, metrics, data with license, and command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jinja2

import polymodal
from polymodal import evaluation
from polymodal.corpora.registry import reopen
from polymodal.errors import UserError
from polymodal.evaluation import Score
from polymodal.training import Run

USAGE = {
    "CLIPModel": """from transformers import AutoTokenizer, CLIPModel

model = CLIPModel.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
texts = tokenizer(["a red fruit"], padding=True, truncation=True, return_tensors="pt")
vectors = model.get_text_features(**texts).pooler_output
# images: model.get_image_features(pixel_values).pooler_output""",
    "SiglipModel": """from transformers import AutoTokenizer, SiglipModel

model = SiglipModel.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
texts = tokenizer(["a red fruit"], padding="max_length", truncation=True, return_tensors="pt")
vectors = model.get_text_features(texts["input_ids"]).pooler_output
# images: model.get_image_features(pixel_values).pooler_output""",
    "AutoModelForCausalLM": """from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPImageProcessor

model = AutoModelForCausalLM.from_pretrained("FOLDER", trust_remote_code=True)  # modeling_polymodal_language.py
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
pixels = CLIPImageProcessor.from_pretrained("FOLDER")(Image.open("image.png"), return_tensors="pt").pixel_values
image = "<image>" + "<cell>" * model.config.image_tokens + "</image>"
asked = tokenizer(image + "<user>How many things are there?<assistant>", return_tensors="pt")
written = model.generate(**asked, pixel_values=pixels, max_new_tokens=20)
print(tokenizer.decode(written[0, asked.input_ids.shape[1] :], skip_special_tokens=True))""",
    "AutoModel": """from transformers import AutoModel, AutoTokenizer

model = AutoModel.from_pretrained("FOLDER", trust_remote_code=True)  # the code is modeling_polymodal.py
tokenizer = AutoTokenizer.from_pretrained("FOLDER", trust_remote_code=True)
texts = tokenizer(["a red fruit"], padding=True, truncation=True, return_tensors="pt")
vectors = model.get_text_features(texts["input_ids"], texts.get("attention_mask"))
# images: model.get_image_features(pixel_values), normalised as preprocessor_config.json says""",
    "image.onnx": """import onnxruntime
from transformers import AutoTokenizer

texts = AutoTokenizer.from_pretrained("FOLDER")(["a red fruit"], padding=True, truncation=True, return_tensors="np")
inputs = {name: texts[name] for name in ("input_ids", "attention_mask")}
vectors = onnxruntime.InferenceSession("FOLDER/text.onnx").run(None, inputs)[0]
# images: FOLDER/image.onnx with pixel_values [batch, 3, size, size], normalised as preprocessor_config.json says""",
    "SentenceTransformer": """from sentence_transformers import SentenceTransformer

model = SentenceTransformer("FOLDER"TRUST)
vectors = model.encode(["a red fruit"])""",
}
LIBRARIES = {"transformers": "transformers", "onnx": "onnx", "sentence-transformers": "sentence-transformers"}


def write_card(run: Run, folder: Path, to: str, what: str, difference: float, command: str) -> None:
    """Evaluate the run on the test splits of its corpus, where that can be opened, and write README.md."""
    record, recipe = run.record, run.recipe
    scores, unmeasured, about = _measured(run)
    paper = getattr(sys.modules[type(recipe).__module__], "paper", None)
    towers = (getattr(recipe, name, None) for name in ("image", "text", "language_model"))
    sources = list(dict.fromkeys(source for tower in towers if (source := getattr(tower, "source", ""))))
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    template = environment.from_string(Path(__file__).with_name("model_card.md.j2").read_text(encoding="utf-8"))
    card = template.render(
        library=LIBRARIES[to],
        task=_task(to, what),
        recipe=record["recipe"]["name"],
        sources=sources,
        base_models=[source for source in sources if not Path(source).expanduser().exists()],  # the hub takes no paths
        frozen=", ".join(recipe.freeze),
        name=run.name,
        title=paper.title if paper else type(run.model).__name__,
        arxiv=paper.arxiv if paper else "",
        corpus=about.name if about else "data that are no longer there",
        steps=f"{record['steps']:,}",
        examples=f"{record['examples']:,}",
        seconds=f"{record['seconds']:.0f}",
        seed=record["seed"],
        parameters=f"{record['parameters']:,}",
        usage=_usage(what),
        scores=[_row(score) for score in scores],
        unmeasured=unmeasured,
        what=what,
        difference=f"{difference:.1e}",
        description=about.description if about else unmeasured,
        license=(about.license if about else "") or "not known to polymodal; say it here",
        source_of_data=(about.source if about else "") or "not known to polymodal; say it here",
        composed=about.composed if about else "",
        train_command=record["command"],
        command=command,
        version=polymodal.__version__,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _task(to: str, what: str) -> str:
    """Return the hub's name of the task."""
    if to == "sentence-transformers":
        return "sentence-similarity"
    return "image-text-to-text" if what.startswith("AutoModelForCausalLM") else "zero-shot-image-classification"


def _measured(run: Run) -> tuple[list[Score], str, Any]:
    """Return the scores, the reason if there are none, and metadata of the dataset."""
    try:
        corpus = reopen(run.record["corpus"])
    except UserError as error:
        return [], f"the data could not be opened again ({error})", None
    scores = evaluation.evaluate(run, corpus)
    return scores, "" if scores else "the corpus has no test split that this method can be tested on.", corpus.about


def _usage(what: str) -> str:
    usage = next(text for start, text in USAGE.items() if what.startswith(start))
    return usage.replace("TRUST", ", trust_remote_code=True" if "trust_remote_code" in what else "")


def _row(score: Score) -> dict[str, str]:
    return dict(zip(("name", "value", "interval", "chance"), (score.name, *score.shown()), strict=True))
