"""VESL: noun phrases of captions, found in images by a detector."""

import dataclasses
from pathlib import Path

import pytest
import torch
from PIL import Image as PILImage

from polymodal.corpora.corpus import Corpus
from polymodal.curation import vesl
from polymodal.curation.vesl import Detection, detect_regions, noun_phrases, write_regions
from polymodal.errors import UserError
from polymodal.modalities import Regions

WORDS = {"red": "adjective", "big": "adjective", "dog": "noun", "bus": "noun", "tail": "noun", "stop": "noun"}


def tag(word: str) -> vesl.PartOfSpeech:
    return "determiner" if word in vesl.DETERMINERS else WORDS.get(word, "other")  # type: ignore[return-value]


def test_phrases_are_adjectives_and_nouns() -> None:
    caption = "Stock photo: a big red dog, the bus stop and a Dog's tail; the red dog runs. A big"
    assert noun_phrases(caption, tag) == ["big red dog", "bus stop", "tail", "red dog"]
    assert noun_phrases(caption, tag, 2) == ["big red dog", "bus stop"]
    assert noun_phrases("free download, click here", tag) == []


def test_boxes_keep_their_most_confident_phrase() -> None:
    image = PILImage.new("RGB", (40, 20))
    found = [
        Detection(0, (1.2, 2.0, 9.8, 30.0), 0.3),
        Detection(1, (1.1, 2.1, 9.9, 25.0), 0.6),
        Detection(0, (5.0, 5.0, 9.0, 9.0), 0.1),
        Detection(0, (50.0, 5.0, 60.0, 9.0), 0.9),
    ]
    regions = detect_regions(image, ["dog", "red dog"], lambda image, phrases: found)
    assert regions == [{"name": "red dog", "box": [1, 2, 10, 20]}]
    assert detect_regions(image, [], lambda image, phrases: found) == []


def test_a_corpus_gets_regions(corpus: Corpus, tmp_path: Path) -> None:
    corpus = dataclasses.replace(corpus, columns={name: corpus.columns[name] for name in ("image", "text")}, label=None)

    def detector(image: PILImage.Image, phrases: list[str]) -> list[Detection]:
        return [Detection(0, (1.0, 1.0, 9.0, 9.0), 0.5)] if "red square" in phrases else []

    nouns: vesl.Tagger = lambda word: "noun" if word in ("red", "square") else "other"  # noqa: E731
    written = write_regions(corpus, tmp_path / "out", detector, nouns)
    column = written.column_with(Regions)
    assert 0 < len(written.rows("train")) < len(corpus.rows("train"))
    assert {written.value(row, column)[0].name for row in written.rows("train").tolist()} == {"red square"}
    assert len(written.rows("test")) == len(corpus.rows("test"))
    with pytest.raises(UserError, match="No phrase of a caption was detected"):
        write_regions(corpus, tmp_path / "none", lambda image, phrases: [], nouns)
    with pytest.raises(UserError, match="no OWLv2"):
        vesl.OWLv2Detector(str(tmp_path))


def test_boxes_of_owlv2_are_those_of_its_own_post_processing() -> None:
    transformers = pytest.importorskip("transformers")
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = tower | {"vocab_size": 50, "max_position_embeddings": 8}
    vision = tower | {"image_size": 32, "patch_size": 16}
    config = transformers.Owlv2Config(text_config=text, vision_config=vision, projection_dim=16)
    torch.manual_seed(0)
    images = transformers.Owlv2ImageProcessor(size={"height": 32, "width": 32})

    class Inputs(dict[str, torch.Tensor]):
        def to(self, device: str) -> "Inputs":
            return self

    def processor(text: list[list[str]], images: list[PILImage.Image], return_tensors: str) -> Inputs:
        ids = torch.tensor([[1, 2 + number, 49] for number in range(len(text[0]))])
        pixels = of_images(images=images, return_tensors=return_tensors)["pixel_values"]
        return Inputs(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels)

    of_images = images
    detector = vesl.OWLv2Detector.__new__(vesl.OWLv2Detector)
    detector.processor, detector.device = processor, "cpu"
    detector.model = transformers.Owlv2ForObjectDetection(config).eval()
    image = PILImage.new("RGB", (40, 24), (200, 30, 40))
    found = detector(image, ["dog", "bus"])
    with torch.no_grad():
        outputs = detector.model(**processor([["dog", "bus"]], [image], "pt"))
    expected = images.post_process_object_detection(outputs, 0.0, torch.tensor([[24, 40]]))[0]
    torch.testing.assert_close(torch.tensor([one.box for one in found]), expected["boxes"], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(torch.tensor([one.confidence for one in found]), expected["scores"])
    assert [one.phrase for one in found] == expected["labels"].tolist()
