"""Routes of the JSON API of a run: embeddings, scores, classes, search and generation."""

import base64
from typing import Annotated, Any

from fastapi import Body, FastAPI
from PIL import Image as PILImage

from polymodal.errors import UserError
from polymodal.evaluation.capabilities import CanClassifyAnswers, CanGenerateText
from polymodal.evaluation.tasks.image_generation import CanGenerateImages
from polymodal.layers.decoding import Decoding
from polymodal.modalities.image import encoded
from polymodal.serving.http_errors import HTTPError
from polymodal.serving.image_generation import generate_images
from polymodal.serving.request_models import (
    ClassifyRequest,
    EmbedRequest,
    GenerateRequest,
    OpenAIEmbeddingRequest,
    SearchRequest,
)
from polymodal.serving.service import Service
from polymodal.serving.vqa import answer_about
from polymodal.training.run import Run


def add_routes(app: FastAPI, service: Service) -> None:
    """Add the routes of the JSON API, with example requests for this run."""
    examples = {name: Body(openapi_examples=of) for name, of in example_requests(service.run).items()}
    _add_embedding(app, service, examples)
    _add_classification(app, service, examples)
    _add_search(app, service, examples)
    _add_openai_embeddings(app, service, examples)
    _add_generation(app, service, examples)


def _add_embedding(app: FastAPI, service: Service, examples: dict[str, Any]) -> None:
    @app.post("/embed")
    async def embed(request: Annotated[EmbedRequest, examples["embed"]]) -> dict[str, list[list[float]]]:
        """L2-normalized embeddings, in the order of the inputs."""
        vectors = await service.vectors(**request.model_dump())
        return {name: rows.tolist() for name, rows in vectors.items()}

    @app.post("/score")
    async def score(request: Annotated[EmbedRequest, examples["score"]]) -> dict[str, list[list[float]]]:
        """Cosine similarities of every text (rows) with every image or sound (columns)."""
        if not request.text or bool(request.image) == bool(request.sound):
            raise HTTPError(400, "invalid_request", "Give texts, and images or sounds to compare them with.")
        vectors = await service.vectors(**request.model_dump())
        return {"similarity": (vectors["text"] @ vectors["image" if request.image else "sound"].T).tolist()}


def _add_classification(app: FastAPI, service: Service, examples: dict[str, Any]) -> None:
    @app.post("/classify")
    async def classify(
        request: Annotated[ClassifyRequest, examples["classify"]],
    ) -> dict[str, list[dict[str, float]]]:
        """Zero-shot classification: probabilities of the labels per image or sound.

        They are a softmax over the labels, and of a method with a sigmoid loss each label's own: they need not add up
        to 1.
        """
        if bool(request.image) == bool(request.sound):
            raise HTTPError(400, "invalid_request", "Give images or sounds to classify.")
        column = "image" if request.image else "sound"
        probabilities = await service.likely(column, getattr(request, column), request.labels, request.template)
        return {"probabilities": probabilities}


def _add_search(app: FastAPI, service: Service, examples: dict[str, Any]) -> None:
    @app.post("/search", include_in_schema=service.index is not None)
    async def search(request: Annotated[SearchRequest, examples["search"]]) -> dict[str, list[dict[str, Any]]]:
        """The examples of the index most similar to a text, an image or a sound, best first."""
        given = {name: value for name in ("text", "image", "sound") if (value := getattr(request, name)) is not None}
        if len(given) != 1 or (request.hybrid and request.text is None):
            raise HTTPError(400, "invalid_request", "Give a text, an image or a sound; hybrid search needs a text.")
        ((column, value),) = given.items()
        hits = await service.found(column, value, request.top, request.where, request.hybrid)
        return {"results": [hit.record(request.thumbnails) for hit in hits]}


def _add_openai_embeddings(app: FastAPI, service: Service, examples: dict[str, Any]) -> None:
    @app.post("/v1/embeddings")
    async def openai_embeddings(
        request: Annotated[OpenAIEmbeddingRequest, examples["openai"]],
    ) -> dict[str, Any]:
        """Text embeddings, compatible with OpenAI's API."""
        texts = [request.input] if isinstance(request.input, str) else request.input
        vectors = (await service.vectors(text=texts))["text"].astype("<f4")
        packed = request.encoding_format == "base64"
        listed = [base64.b64encode(vector.tobytes()).decode() if packed else vector.tolist() for vector in vectors]
        data = [{"object": "embedding", "index": n, "embedding": vector} for n, vector in enumerate(listed)]
        tokenizer = getattr(service.run.processor, "tokenizer", None)
        count = int(tokenizer(texts).lengths.sum()) if tokenizer is not None else 0
        usage = {"prompt_tokens": count, "total_tokens": count}
        return {"object": "list", "data": data, "model": service.run.name, "usage": usage}


def _add_generation(app: FastAPI, service: Service, examples: dict[str, Any]) -> None:
    run = service.run

    @app.post(
        "/generate", include_in_schema=isinstance(run.model, CanGenerateText | CanClassifyAnswers | CanGenerateImages)
    )
    async def generate(request: Annotated[GenerateRequest, examples["generate"]]) -> dict[str, Any]:
        """Generated texts about images, or generated images, depending on the run's method."""
        if bool(request.image) == bool(request.words):
            raise HTTPError(400, "invalid_request", "Give images to say something of, or words to make images of.")
        ends = service.ends
        if request.words:
            if not isinstance(run.model, CanGenerateImages):
                raise UserError(f"The run '{run.name}' cannot generate.")
            async with service.decoder.decoded({"text": request.words}, ends) as given:
                words = given["text"]
                made = await service.call(
                    lambda: generate_images(run, words, request.count, request.steps, request.seed), ends
                )
            return {"images": [[_png(image) for image in row] for row in made]}
        if not isinstance(run.model, CanGenerateText | CanClassifyAnswers):
            raise UserError(f"The run '{run.name}' cannot answer.")
        async with service.decoder.decoded({"image": request.image}, ends) as given:
            images = given["image"]
            texts = await service.call(
                lambda: answer_about(run, images, request.question, Decoding(), request.seed), ends
            )
        return {"texts": texts}


def _png(image: PILImage.Image) -> str:
    return base64.b64encode(encoded(image)).decode()


def example_requests(run: Run) -> dict[str, dict[str, Any]]:
    """Return example requests for this run, for the documentation at /docs."""
    columns = getattr(run.processor, "columns", {"text": None, "image": None})
    image = _png(PILImage.new("RGB", (32, 32), (200, 30, 30)))
    shown = {"image": [image]} if "image" in columns else {}
    text = {"text": ["a red fruit"]} if "text" in columns else {}
    made = (
        {"image": [image], "question": "What is it?"}
        if isinstance(run.model, CanGenerateText | CanClassifyAnswers)
        else {}
    )
    if isinstance(run.model, CanGenerateImages):
        made = {"words": ["a red fruit"]}
    values = {
        "embed": text | shown,
        "score": text | shown,
        "classify": shown | {"labels": ["fruit", "animal"], "template": "a picture of {}"},
        "search": {"text": "a red fruit", "top": 5},
        "openai": {"input": ["a red fruit"], "model": run.name},
        "generate": made,
    }
    return {name: {"one": {"value": value}} for name, value in values.items()}
