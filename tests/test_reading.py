"""What a model reads of documents: words are told from marks, images from texts, and arms read the same words."""

from __future__ import annotations

import dataclasses
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PILImage

from polymodal.claim import CuratedTrainingClaim, CurationClaim
from polymodal.corpora import About, Corpus
from polymodal.corpora.saved import save_corpus
from polymodal.curation.page_sources import images_of, pages_of
from polymodal.curation.pipeline import curate_pages, plain_texts
from polymodal.curation.web import PageBlock, blocks_of, visible
from polymodal.data.conversation import IMAGE
from polymodal.data.processor import Processor, fit_processor
from polymodal.data.sequence import TEXT
from polymodal.encoders.image_tokenizer import ImageTokenizerConfig
from polymodal.encoders.language_model import LanguageModelConfig
from polymodal.errors import UserError
from polymodal.evaluation.interleaved_documents import ParagraphChoice, document_reading_scores, image_paragraph_choice
from polymodal.modalities import Interleaved, Text
from polymodal.modalities.text import stored_texts
from polymodal.recipes import claims
from polymodal.recipes.any_to_any import moma
from polymodal.recipes.data_curation import wasm
from polymodal.reproduce.claim import claim_of
from polymodal.reproduce.curation import compare_training_on_curated
from polymodal.reproduce.result import Arm
from polymodal.types import Budget
from test_wasm import PAGE

OPEN = wasm.Recipe(
    paragraph_filters=wasm.QualityFilters(min_words=2),
    document_filters=wasm.QualityFilters(),
    perplexity_quantile=0.0,
    language="en",
)
TINY = moma.Recipe(
    language_model=LanguageModelConfig(
        vocab_size=400, context_length=120, width=16, depth=1, num_heads=2, num_kv_heads=2, mlp_dim=24
    ),
    tokenizer=ImageTokenizerConfig(codebook_size=8, codebook_dim=2, width=8),
    tile_size=16,
    batch_size=4,
    num_text_experts=1,
    num_image_experts=1,
    stage_fractions=(0.2, 0.8, 0.0),
)


def png(color: str) -> bytes:
    written = io.BytesIO()
    PILImage.new("RGB", (20, 20), color).save(written, "PNG")
    return written.getvalue()


def test_what_is_seen_of_a_block_is_its_text() -> None:
    for block in blocks_of(PAGE):
        if not block.image:
            shown = visible(block.markdown, block.text)
            assert "".join(one for one, seen in zip(block.markdown, shown, strict=True) if seen) == block.text
    heading = PageBlock("heading", "# 1", "## # 1")
    assert visible(heading.markdown, heading.text).count(True) == 3


@given(st.lists(st.one_of(st.just(0), st.integers(1, 50)), max_size=20), st.integers(4, 40))
def test_a_page_is_cut_between_blocks_and_nothing_is_lost(sizes: list[int], longest: int) -> None:
    blocks = [
        PageBlock("paragraph", "x" * size, "") if size else PageBlock("figure", "", "", "a.png") for size in sizes
    ]
    parts = wasm.cut(blocks, longest)
    assert [block for part in parts for block in part] == blocks
    for part in parts:
        taken = sum(longest // 4 if block.image else len(block.text) for block in part)
        assert taken <= longest or len(part) == 1


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Twelve pages with a heading, an image and two texts, as a corpus that keeps them as they were found."""

    def page(number: int) -> dict[str, Any]:
        color = ("red", "blue")[number % 2]
        html = (
            f"<h1>Page of number {number}</h1><p>It speaks <b>of</b> many things</p>"
            f"<img src='{color}.png'><p>This is the {color} image</p>"
        )
        pieces = [{"kind": "figure", "text": "", "figure": png(color)}]
        split = "train" if number < 8 else "validation" if number < 9 else "test"
        row = {"key": f"page-{number}", "split": split, "html": html, "addresses": [f"{color}.png"]}
        return row | {"document": pieces, "title": stored_texts("a page")}

    about = About("site", "pages", "none", "the test", ("interleaved",))
    columns = {"document": Interleaved(), "title": Text(), "html": Text(), "addresses": Text()}
    types = {"html": pa.string(), "addresses": pa.list_(pa.string())}
    folder = tmp_path_factory.mktemp("site") / "corpus"
    corpus = save_corpus(folder, about, columns, map(page, range(12)), types=types)
    return dataclasses.replace(corpus, columns={"document": Interleaved(), "title": Text()})


@pytest.fixture(scope="module")
def documents(site: Corpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Corpus, Path]]:
    root = tmp_path_factory.mktemp("curated")
    made = {}
    for layout in ("markdown", "flat"):
        recipe = dataclasses.replace(OPEN, layout=layout)
        corpus, _ = curate_pages(recipe, pages_of(site), root / layout, recipe.fit(()), figures=images_of(site))
        made[layout] = corpus, root / layout
    return made


def test_figures_of_a_corpus_go_into_its_curated_documents(documents: dict[str, tuple[Corpus, Path]]) -> None:
    kept, flat = (
        [(piece.kind, piece.text, piece.figure is not None) for piece in corpus.value(0, "document")]
        for corpus, _ in documents.values()
    )
    assert kept == [
        ("heading", "# Page of number 0", False),
        ("paragraph", "It speaks **of** many things", False),
        ("figure", "", True),
        ("paragraph", "This is the red image", False),
    ]
    assert [figure for *_, figure in flat] == [True, False, False, False]
    assert documents["markdown"][0].value(1, "document")[2].figure.getpixel((3, 3)) == (0, 0, 255)


def test_the_text_behind_a_image_is_asked_for_or_that_before_it(
    documents: dict[str, tuple[Corpus, Path]], tmp_path: Path
) -> None:
    corpus, _ = documents["markdown"]
    assert image_paragraph_choice(corpus, "test") == [ParagraphChoice(f"page-{number}", 0, 2) for number in (9, 10, 11)]
    pieces = [{"kind": "paragraph", "text": text, "figure": None} for text in ("one text", "another")]
    pieces.append({"kind": "figure", "text": "", "figure": png("red")})
    about = About("last", "", "", "", ("interleaved",))
    rows = [{"key": "a", "split": "test", "document": pieces}]
    last = save_corpus(tmp_path / "last", about, {"document": Interleaved()}, rows)
    assert image_paragraph_choice(last, "test") == [ParagraphChoice("a", 0, 1)]


class Evenly(torch.nn.Module):
    """Takes every token to be as likely, but for texts about a red image behind one."""

    def __init__(self, vocabulary: int, red: int | None = None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.vocabulary, self.red = vocabulary, red
        self.vocab_sizes = {TEXT: vocabulary}

    def token_nll(self, batch: dict[str, Any]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        sequences = batch["sequences"]
        count = (sequences.predicted & sequences.of(TEXT)).sum(1).float()
        nats = count * math.log(self.vocabulary)
        if self.red is not None and IMAGE in sequences.modalities:
            nats -= ((sequences.ids == self.red).any(1) & sequences.of(IMAGE).any(1)).float()
        return {TEXT: (nats, count)}


def scores_of(method: torch.nn.Module, made: tuple[Corpus, Path], asked: list[ParagraphChoice]) -> dict[str, Any]:
    corpus, folder = made
    processor = fit_processor(TINY, corpus)
    found = document_reading_scores(method, processor, corpus, plain_texts(folder), visible, asked, "test")
    return {score.name: score for score in found}


def test_bits_are_those_of_words_with_their_marks_and_without(documents: dict[str, tuple[Corpus, Path]]) -> None:
    asked = image_paragraph_choice(documents["markdown"][0], "test")
    for layout, (corpus, folder) in documents.items():
        processor = fit_processor(TINY, corpus)
        assert isinstance(processor, Processor)
        scores = scores_of(Evenly(256), documents[layout], asked)
        plain = plain_texts(folder)["page-9"]
        size = sum(map(len, plain))
        assert plain == ["Page of number 9", "It speaks of many things", "This is the blue image"]
        texts = ["Page of number 9\nIt speaks of many things\nThis is the blue image"]
        if layout == "markdown":
            texts = ["# Page of number 9\nIt speaks **of** many things", "This is the blue image"]
        whole = sum(len(processor.tokenizer.pieces(text)[0]) for text in texts)
        assert scores["test/words_and_marks/bits_per_byte"].clusters[2] == pytest.approx(8 * whole / size)
        words = scores["test/words/bits_per_byte"].clusters[2] * size / 8
        assert words == pytest.approx(round(words))
        assert words < whole  # "#", "**" and the ends of lines
        np.testing.assert_array_equal(scores["test/words/bits_per_byte"].weights, [62, 63, 62])  # 10, 11, 9


def test_a_text_is_chosen_by_what_the_image_says_of_it(documents: dict[str, tuple[Corpus, Path]]) -> None:
    made = documents["markdown"]
    asked = image_paragraph_choice(made[0], "test")
    (red,) = fit_processor(TINY, made[0]).tokenizer.pieces("red")[0]
    score = scores_of(Evenly(256, red), made, asked)["test/image_paragraph_choice/accuracy"]
    # page-10 is red; of the others, whose texts the image makes no likelier, the first is taken
    assert sorted(score.clusters.tolist()) == [0.0, 0.0, 1.0]
    assert score.chance == pytest.approx(1 / 3)


def test_a_claim_trains_one_model_on_what_each_arm_makes(site: Corpus, tmp_path: Path) -> None:
    claim = CuratedTrainingClaim(
        sentence="",
        baseline=dataclasses.replace(OPEN, layout="flat"),
        treatment=OPEN,
        model=TINY,
        corpus="site",
        budget=Budget(steps=4),
        seeds=1,
        metrics=("test/words/bits_per_byte",),
    )
    arms = [Arm("baseline", claim.baseline), Arm("treatment", claim.treatment)]
    first, again = (compare_training_on_curated(arms, claim, site, claim.budget, 1, tmp_path / "out") for _ in range(2))
    for arm in arms:
        score, same = (one.of(arm)[0].scores["test/words/bits_per_byte"] for one in (first, again))
        assert 0 < score.value < 16
        np.testing.assert_allclose(score.clusters, same.clusters, rtol=1e-5)
        assert first.cost(arm) == again.cost(arm)  # nothing was trained again
    assert "layout" in str(first.to_json()["arms"]["baseline"]["values"])


def test_arms_that_leave_other_pages_are_paired_by_those_that_all_have(site: Corpus, tmp_path: Path) -> None:
    claim = CuratedTrainingClaim(
        sentence="",
        baseline=OPEN,
        treatment=dataclasses.replace(OPEN, max_characters=82),  # page 11 becomes two documents
        model=TINY,
        corpus="site",
        budget=Budget(steps=2),
        seeds=2,
        metrics=("test/words/bits_per_byte",),
    )
    arms = [Arm("baseline", claim.baseline), Arm("treatment", claim.treatment)]
    compared = compare_training_on_curated(arms, claim, site, claim.budget, 2, tmp_path / "out")
    name = "test/words/bits_per_byte"
    assert [len(trial.scores[name].clusters) for trial in compared.trials] == [2] * 4, "of three pages, two are left"
    weights = [trial.scores[name].weights for trial in compared.trials]
    np.testing.assert_array_equal(weights[0], weights[1])
    assert np.isfinite(compared.difference(arms[1], name)).all()


def test_arms_of_a_claim_about_documents_begin_with_the_same_start(site: Corpus, tmp_path: Path) -> None:
    claim = CuratedTrainingClaim(
        sentence="",
        baseline=dataclasses.replace(OPEN, layout="flat"),
        treatment=OPEN,
        model=TINY,
        start=TINY,
        start_budget=Budget(steps=2),
        corpus="site",
        budget=Budget(steps=2),
        seeds=1,
        metrics=("test/words/bits_per_byte",),
    )
    arms = [Arm("baseline", claim.baseline), Arm("treatment", claim.treatment)]
    compared = compare_training_on_curated(arms, claim, site, claim.budget, 1, tmp_path / "out")
    start = tmp_path / "out" / "runs" / "start" / "seed-0"
    assert (start / "model.safetensors").is_file()
    assert all(compared.of(arm)[0].run.record["init"] == str(start) for arm in arms)


def test_a_recipe_may_make_several_claims() -> None:
    assert list(claims("wasm")) == ["claim", "structure"]
    assert isinstance(claim_of("wasm"), CurationClaim)
    assert isinstance(claim_of("wasm", "structure"), CuratedTrainingClaim)
    with pytest.raises(UserError, match="no claim of this recipe named 'strukture'; did you mean 'structure'"):
        claim_of("wasm", "strukture")
