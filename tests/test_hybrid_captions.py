"""Hybrid captions: pure arms to the bit, columns of formats, the other models of the claims."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from PIL import Image

from polymodal.claims import hybrid_captions as claims
from polymodal.corpora import from_path
from polymodal.corpora.corpus import Corpus
from polymodal.data.caption_mixing import by_format
from polymodal.data.loader import Reader
from polymodal.data.processor import fit_processor
from polymodal.errors import UserError
from polymodal.recipes.dual_encoders import clip
from polymodal.recipes.dual_encoders.hybrid_captions import Recipe
from polymodal.rng import ExampleRNG

TINY = Recipe.tiny()


def with_texts(corpus: Corpus, change: Any) -> Corpus:
    """The corpus with the captions of each example changed."""
    place, kind = corpus.table.column_names.index("text"), corpus.table.schema.field("text").type
    texts = pa.array([change(some) for some in corpus.table.column("text").to_pylist()], kind)
    return dataclasses.replace(corpus, table=corpus.table.set_column(place, "text", texts))


def short(some: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{"text": f"short: {some[0]['text']}", "language": "en-x-ssc"}]


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_ratios_of_zero_and_one_are_the_pure_arms_to_the_bit(corpus: Corpus, ratio: float) -> None:
    mixed = with_texts(corpus, lambda some: some + short(some))
    alone = with_texts(corpus, short) if ratio else corpus
    recipe = dataclasses.replace(TINY, synthetic_ratio=ratio)
    plain = clip.Recipe(**{name: value for name, value in vars(recipe).items() if hasattr(clip.Recipe, name)})
    processor, weights = fit_processor(recipe, mixed), []
    for method, data in ((recipe, mixed), (plain, alone)):
        torch.manual_seed(0)
        model = method.build(processor).train()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for step in range(3):
            examples = Reader(data, processor).read_all(data.rows("train")[4 * step : 4 * step + 4])[1]
            batch = method.training_batch(examples, processor, ExampleRNG.of(0, 4 * step, 4))
            optimizer.zero_grad()
            sum(model.losses(batch).values(), torch.zeros(())).backward()
            optimizer.step()
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_columns_of_formats_and_what_is_missing(tmp_path: Path) -> None:
    table = ["file_name,alt_text,ssc,dsc"]
    for number in range(12):
        Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(tmp_path / f"{number}.png")
        long = f"there is a very long red wall with many holes number {number}"
        table.append(f"{number}.png,shop {number},a red {number},{long}")
    (tmp_path / "metadata.csv").write_text("\n".join(table))
    photos = from_path(tmp_path)
    text = dataclasses.replace(TINY.text, context_length=12)  # of 12 words, and start and end
    recipe = dataclasses.replace(TINY, text=text, synthetic_formats=("ssc", "dsc"))
    with pytest.warns(UserWarning, match=r"truncated to 12 tokens: 100% of dsc\.$"):
        column = fit_processor(recipe, photos).text
    grouped = by_format(column.load(photos, 0))
    assert {name: [one.text[:6] for one in some] for name, some in grouped.items()} == {
        "alt_text": ["shop 0"],
        "ssc": ["a red "],
        "dsc": ["there "],
    }
    assert column.settings()["truncated"] == {"alt_text": 0.0, "ssc": 0.0, "dsc": 1.0}
    with pytest.raises(UserError, match="no captions of the format afc; give them a column"):
        dataclasses.replace(TINY, synthetic_formats=("afc",)).training_corpora(photos)
    with pytest.raises(UserError, match="names one format or more"):
        dataclasses.replace(TINY, synthetic_formats=())
    with pytest.raises(UserError, match="cannot be concatenated"):
        dataclasses.replace(TINY, synthetic_ratio=1.0, combination="concatenate")


@pytest.mark.parametrize("mixed", [claims.MixedMonolith, claims.MixedGeneration])
def test_other_models_of_the_claims_train_on_the_sampled_format(corpus: Corpus, mixed: Any) -> None:
    written = with_texts(corpus, lambda some: some + short(some))
    recipe = dataclasses.replace(mixed.tiny(), synthetic_ratio=1.0, synthetic_formats=("ssc",))
    processor = fit_processor(recipe, written)
    examples = Reader(written, processor).read_all(written.rows("train")[:4])[1]
    kept = [example | {"text": example["text"][-1:]} for example in examples]
    make = "semantic_batch" if mixed is claims.MixedMonolith else "training_batch"
    arms = ((recipe, examples), (mixed.__base__.tiny(), kept))
    batches = [getattr(one, make)(given, processor, ExampleRNG.of(0, 0, 4)) for one, given in arms]
    tokens = [(batch["sequences"] if "sequences" in batch else batch["text"]).ids for batch in batches]
    assert torch.equal(*tokens)
