"""lmms-eval (github.com/EvolvingLMMs-Lab/lmms-eval, 0.7) on runs that answer questions about images.

The entry point `lmms_eval.models` of this package names `manifest`, so that lmms-eval finds the model `polymodal`:

    python -m lmms_eval --model polymodal --model_args pretrained=runs/seeing --tasks vqav2_val_lite
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image as PILImage
from torch.nn import functional as F

from polymodal.errors import UserError
from polymodal.evaluation.capabilities import CanClassifyAnswers, CanGenerateText
from polymodal.evaluation.question_answering import answered
from polymodal.evaluation.task import has_names
from polymodal.layers.decoding import Decoding
from polymodal.models.vision_language_model import VisionLanguageModel
from polymodal.serving.missing_capability import lacks
from polymodal.training.run import Run, evaluating, load_run, to_device

base: Any = object
with contextlib.suppress(ImportError):  # the class can be made without lmms-eval, which alone calls it
    from lmms_eval.api.model import lmms

    base = lmms

IMAGE_TOKEN = "<image>"  # where some tasks have an image in the text
MODEL = f"{__name__}.Polymodal"


def manifest() -> Any:
    """What lmms-eval registers: the name of the model, and where its class is."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="polymodal", simple_class_path=MODEL)


class Polymodal(base):
    """A run as lmms-eval asks it: `generate_until` and `loglikelihood`."""

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        seed: int = 0,
        trust_code: bool = False,
        **_: Any,
    ):
        """pretrained: the folder of a run. device: by default the GPU of this process. seed: for sampling. trust_code:
        of a run with a recipe of its own. Raises UserError for a run that answers no questions."""
        super().__init__()
        self.run: Run = load_run(Path(pretrained), trust_code)
        self.classifies = isinstance(self.run.model, CanClassifyAnswers) and has_names(self.run.processor, "answers")
        if not self.classifies and not isinstance(self.run.model, CanGenerateText):
            raise lacks(self.run, "answer", "generate_text", "answer_logits")
        self.batch_size = int(batch_size) if str(batch_size).isdigit() else 1
        gpu = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device or gpu)
        self.run.model.eval().to(self.device)
        self.generator = torch.Generator(self.device).manual_seed(int(seed))

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer each request up to the first of its `until`; a run with a closed set of answers gives the likeliest.

        The arguments of a request: text, options of generation, images of a document, its number, task and split.
        """
        texts: dict[int, str] = {}
        documents = [self._read(*request.args) for request in requests]
        keys = [(len(images) > 0, self._decoding(options)) for _, options, images in documents]
        for (with_image, decoding), places in self._batches(keys):
            columns = {"question": [documents[place][0] for place in places]}
            if with_image:
                columns["image"] = [documents[place][2][0] for place in places]
            for place, text in zip(places, self._answers(columns, decoding), strict=True):
                context, options, _ = documents[place]
                texts[place] = cut_at(text, options.get("until"))
                if hasattr(self, "cache_hook"):
                    self.cache_hook.add_partial("generate_until", (context, options), texts[place])
        return [texts[place] for place in range(len(requests))]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """For each request, -log p of a token of the answer on average, and whether greedy decoding writes the answer.

        The first is a loss, as in lmms-eval's own models: it chooses the answer of the lowest. The arguments of a
        request: text, answer, images of a document, its number, task and split. Raises UserError for a method that is
        no language model.
        """
        if not isinstance(self.run.model, VisionLanguageModel):
            raise UserError(f"The run '{self.run.name}' gives no likelihoods of answers; choose tasks that generate.")
        losses: dict[int, tuple[float, bool]] = {}
        documents = [self._read(*request.args) for request in requests]
        for with_image, places in self._batches([len(images) > 0 for _, _, images in documents]):
            columns: dict[str, list[Any]] = {
                "question": [documents[place][0] for place in places],
                "answer": [documents[place][1] for place in places],
            }
            if with_image:
                columns["image"] = [documents[place][2][0] for place in places]
            losses |= dict(zip(places, _losses(self.run, columns), strict=True))
        return [losses[place] for place in range(len(requests))]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Raise UserError: a run answers one question about an image."""
        raise UserError(f"The run '{self.run.name}' cannot be scored on tasks of several rounds.")

    def _read(
        self, context: str, given: Any, doc_to_visual: Any, doc_id: Any, task: str, split: str
    ) -> tuple[str, Any, list[Any]]:
        """The text without image tokens, the options or the answer, and the images of a request."""
        document = self.task_dict[task][split][doc_id]
        images = list((doc_to_visual(document) if doc_to_visual else None) or ())
        if len(images) > 1 or not all(isinstance(image, PILImage.Image) for image in images):
            kinds = ", ".join(type(image).__name__ for image in images)
            raise UserError(
                f"The run '{self.run.name}' answers about one image; document {doc_id} of {task} has {len(images)} "
                f"({kinds}). Choose other tasks."
            )
        return context.replace(IMAGE_TOKEN, "").strip(), given(document) if callable(given) else given, images

    def _decoding(self, options: dict[str, Any]) -> Decoding:
        """Decoding with lmms-eval's options: greedy unless a temperature is asked for."""
        samples = options.get("do_sample", True)
        return Decoding(
            max_new_tokens=int(options.get("max_new_tokens") or Decoding.max_new_tokens),
            temperature=float(options.get("temperature") or 0) if samples else 0.0,
            top_p=float(options.get("top_p") or 1),
            num_beams=int(options.get("num_beams") or 1),
        )

    def _batches(self, keys: Sequence[Hashable]) -> Iterator[tuple[Any, list[int]]]:
        """Places of requests with equal keys, at most `batch_size` together."""
        for key in dict.fromkeys(keys):
            places = [place for place, other in enumerate(keys) if other == key]
            for start in range(0, len(places), self.batch_size):
                yield key, places[start : start + self.batch_size]

    def _answers(self, columns: dict[str, list[Any]], decoding: Decoding) -> list[str]:
        run = self.run
        if self.classifies:
            if "image" not in columns:
                raise UserError(f"The run '{run.name}' answers about images, and this task has questions without one.")
            return answered(run.model, run.processor, "image", columns["image"], columns["question"])
        method: Any = run.model
        with evaluating(method), torch.no_grad():
            batch = to_device(run.processor(**columns), self.device)
            return run.processor.texts(method.generate_text(batch, decoding, self.generator))


def cut_at(text: str, until: str | Sequence[str] | None) -> str:
    """Return the text up to the first of the strings that end an answer."""
    for stop in [until] if isinstance(until, str) else until or ():
        text = text.split(stop)[0] if stop else text
    return text


def _losses(run: Run, columns: dict[str, list[Any]]) -> list[tuple[float, bool]]:
    """-log p of a token on average and whether all are the likeliest, of each answer with its end."""
    method: Any = run.model
    device = next(method.parameters()).device
    with evaluating(method), torch.no_grad():
        batch = to_device(run.processor(**columns), device)
        sequences = batch["sequences"]
        rows, positions, _ = method.predictions(sequences)
        logits = method.language_model.logits(method.hidden_states(batch)[rows, positions - 1]).float()
        ids = sequences.ids[rows, positions]
        nats, likeliest = F.cross_entropy(logits, ids, reduction="none"), logits.argmax(-1) == ids
    return [
        (float(nats[rows == row].mean()), bool(likeliest[rows == row].all())) for row in range(len(columns["answer"]))
    ]
