"""VESL: noun phrases of captions, found in images by a detector."""

import dataclasses
from pathlib import Path

import pytest
import torch
from PIL import Image as PILImage

from polymodal.corpora._wordnet import WordNet
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


def test_forms_of_verbs_and_function_words_are_no_nouns(monkeypatch: pytest.MonkeyPatch) -> None:
    nouns = ["plate", "holding", "building", "play", "dog", "bus", "while", "s", "ball", "topping", "man"]
    uses = {("holding", "n"): 1, ("hold", "v"): 345, ("building", "n"): 52, ("build", "v"): 139, ("top", "v"): 3}
    uses |= {("play", "n"): 61, ("play", "v"): 246, ("top", "n"): 53}
    lexicon = WordNet({noun: [0] for noun in nouns}, {}, {}, frozenset({"red", "tall", "all", "through"}), uses)
    monkeypatch.setattr(vesl, "wordnet", lambda wanted_by: lexicon)
    tag = vesl.lexical_tagger()
    found = [noun_phrases(caption, tag) for caption in (
        "A red plate holding all dogs while the man's dog plays with a ball",
        "a tall building, red topping through both buses",
    )]  # fmt: skip
    assert found == [["red plate", "dogs", "dog", "ball"], ["tall building", "red topping", "buses"]]


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
    regions = [written.value(row, column) for row in written.rows("train").tolist()]
    assert {one.name for some in regions for one in some} == {"red square"}
    # Images without a detection stay, as lambda is the fraction of those with one.
    assert len(regions) == len(corpus.rows("train"))
    assert 0 < sum(map(bool, regions)) < len(regions)
    assert len(written.rows("test")) == len(corpus.rows("test"))
    with pytest.raises(UserError, match="No phrase of a caption was detected"):
        write_regions(corpus, tmp_path / "none", lambda image, phrases: [], nouns)
    with pytest.raises(UserError, match="no OWLv2"):
        vesl.OWLv2Detector(str(tmp_path))


@pytest.fixture(scope="module")
def owlv2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny OWLv2 as the hub holds it, with 8 positions of text."""
    transformers = pytest.importorskip("transformers")
    from tiny_checkpoints import save_tokenizer

    folder = tmp_path_factory.mktemp("owlv2")
    save_tokenizer(folder, ["dog", "red bus"] * 20)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, model_max_length=8)
    images = transformers.Owlv2ImageProcessor(size={"height": 32, "width": 32})
    transformers.Owlv2Processor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = tower | {"vocab_size": 300, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 3}
    vision = tower | {"image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    config = transformers.Owlv2Config(text_config=text, vision_config=vision, projection_dim=16)
    transformers.Owlv2ForObjectDetection(config).save_pretrained(folder)
    return folder


def test_boxes_of_owlv2_are_those_of_its_own_post_processing(owlv2_folder: Path) -> None:
    detector, image = vesl.OWLv2Detector(str(owlv2_folder)), PILImage.new("RGB", (40, 24), (200, 30, 40))
    found = detector(image, ["dog", "bus"])
    with torch.no_grad():
        outputs = detector.model(**detector.processor(text=[["dog", "bus"]], images=[image], return_tensors="pt"))
    processor = detector.processor.image_processor
    expected = processor.post_process_object_detection(outputs, 0.0, torch.tensor([[24, 40]]))[0]
    torch.testing.assert_close(torch.tensor([one.box for one in found]), expected["boxes"], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(torch.tensor([one.confidence for one in found]), expected["scores"])
    assert [one.phrase for one in found] == expected["labels"].tolist()


def test_a_phrase_longer_than_the_text_tower_is_truncated(owlv2_folder: Path) -> None:
    image = PILImage.new("RGB", (40, 24), (200, 30, 40))
    assert len(vesl.OWLv2Detector(str(owlv2_folder))(image, ["dog", "red bus " * 9])) == 4
