"""`realsyn`: documents to image-text pairs, by real and synthetic texts."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as PILImage

import polymodal as pm
from polymodal.claims import realsyn as claims
from polymodal.corpora import from_path
from polymodal.curation.document_pairs import PairingModels, pools_of
from polymodal.data.columns.text import LearnedTokenizer, TextColumn
from polymodal.errors import UserError
from polymodal.modalities.text import Caption
from polymodal.recipes.data_curation.realsyn import Recipe
from polymodal.rng import ExampleRNG

COLORS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 70, 220)}
OPEN = Recipe(min_side=16, min_entropy=0.0, perplexity_quantile=0.0, perplexity=(0.0, 1e9), similarity_quantile=0.0,
              similarity=(0.0, 1.0), cluster_cap=0, dedup_similarity=1.1, num_tags=1)  # fmt: skip


def square(color: str, shade: int, size: tuple[int, int] = (32, 32)) -> bytes:
    buffer = io.BytesIO()
    PILImage.new("RGB", size, tuple(max(part - shade, 0) for part in COLORS[color])).save(buffer, "PNG")
    return buffer.getvalue()


def embed_texts(texts) -> np.ndarray:
    return np.array([[text.lower().count(color) + 1e-3 for color in COLORS] + [0.1] for text in texts])


def embed_images(images) -> np.ndarray:
    pixels = [np.asarray(PILImage.open(io.BytesIO(data)))[0, 0].astype(float) for data in images]
    return np.array([[*(pixel == pixel.max()), 0.1] for pixel in pixels]) * 1.0


MODELS = PairingModels(embed_images, embed_texts, perplexity=lambda texts: [50.0] * len(texts), tags=["red", "green"])


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty documents; the sentence about an image's color is in the next document."""
    folder, names, rows = tmp_path_factory.mktemp("documents"), list(COLORS), []
    for number in range(60):
        other = names[(number + 1) % 3]
        texts = [f"Here is a {other} thing of number {number}. See www.example.org for {other} things.", None, None]
        images = [None, square(names[number % 3], number // 3), square("red", 0, (32, 120) if number % 2 else (9, 9))]
        rows.append({"texts": texts, "images": images})
    pq.write_table(pa.Table.from_pylist(rows), folder / "documents.parquet")
    return folder


def test_the_paper_has_the_published_thresholds() -> None:
    published = Recipe.paper()
    assert (published.perplexity, published.perplexity_quantile, published.min_entropy) == ((30, 200), 0, 0.3)
    assert (published.similarity, published.similarity_quantile, published.num_retrieved) == ((0.51, 0.61), 0, 3)
    assert (published.num_text_clusters, published.num_image_clusters, published.cluster_cap) == (
        2_000_000,
        1_000_000,
        20,
    )
    assert [published.rejects(*size) for size in ((99, 200), (100, 301), (300, 100), (100, 100))] == [
        "too small", "aspect ratio", None, None,
    ]  # fmt: skip


def test_texts_come_from_the_whole_pool_and_one_cluster_equals_flat_search(documents: Path) -> None:
    corpus = from_path(documents)
    pools = pools_of(corpus, range(60), OPEN.rejects)
    assert dict(pools.rejected) == {"too small": 30, "aspect ratio": 30}
    paired = OPEN.pair_documents(pools, MODELS)
    assert paired.counts["sentences left out: url"] == 60
    for place, texts, synthetic in zip(paired.images, paired.real, paired.synthetic, strict=True):
        color = list(COLORS)[pools.images[place].row % 3]
        assert len(texts) == 3
        assert [f"a {color} thing" in text for text in (*texts, synthetic)] == [True] * 4, (color, texts, synthetic)
    flat = replace(OPEN, retrieval="flat").pair_documents(pools, MODELS)
    one = replace(OPEN, num_text_clusters=1).pair_documents(pools, MODELS)
    assert (one.real, one.counts["recall of flat search"]) == (flat.real, 1)
    assert one.counts["similarities an image"] == flat.counts["similarities an image"] + 1 == 61
    excluded = [text for text in paired.real[0] if "red" in text][:1]
    without = OPEN.clean_sentences([s.text for s in pools.sentences], replace(MODELS, excluded=excluded))
    assert excluded[0] not in without.texts
    capped = replace(OPEN, cluster_cap=4, num_image_clusters=3).pair_documents(pools, MODELS)
    assert len(capped.balanced) == 12
    assert (
        replace(OPEN, similarity=(0.0, 0.9), cluster_cap=1).pair_documents(pools, MODELS).images == []
    )  # all fit better


def test_arms_of_the_claim_differ_in_texts_or_images_alone() -> None:
    arms = {"baseline": claims.claim.baseline, **claims.claim.further}
    for arm in arms.values():
        assert replace(arm, texts=claims.claim.treatment.texts, subset="balanced") == claims.claim.treatment
    texts = [Caption(tag, tag) for tag in (claims.LOCAL, *claims.REAL, claims.SYNTHETIC)]

    column, examples = TextColumn(LearnedTokenizer(300, 24)), [{"text": texts}] * 40
    chosen = replace(arms["T_r1-3"], word_dropout=0.0).sample_captions(examples, column, ExampleRNG.of(0, 0, 40))
    assert {*chosen} == {*claims.REAL}
    with pytest.raises(UserError, match="trains nothing; use it with: polymodal curate realsyn DOCUMENTS"):
        pm.recipes.find_method("realsyn")
