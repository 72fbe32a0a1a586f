"""ULIP-2: triplets of cloud, view and captions, the loss of the official code, and the frozen CLIP."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn import functional as F

from golden_points import GOLDEN, SMALL, checkpoint
from polymodal.claim import Claim
from polymodal.claims import ulip_2 as claims
from polymodal.corpora import Corpus
from polymodal.corpora.saved import open_saved
from polymodal.data.loader import Reader
from polymodal.data.processor import fit_processor
from polymodal.encoders.points import PointEncoder
from polymodal.errors import UnreadableExample, UserError
from polymodal.modalities.points import GRAY
from polymodal.recipes.dual_encoders import clip
from polymodal.recipes.three_d import ulip_2
from polymodal.rng import ExampleRNG
from polymodal.training import train
from polymodal.training.initialization import copy_matching_weights
from polymodal.types import Budget

TINY = dataclasses.replace(ulip_2.Recipe.tiny(), num_captions=2)


@pytest.fixture(scope="module")
def corpus(corpus: Corpus) -> Corpus:
    """Captions say their view; the last view has none, and there are no single images."""
    columns = {name: kind for name, kind in corpus.columns.items() if name not in ("image", "video")}
    return dataclasses.replace(corpus, columns=columns)


def test_point_bert_weights_are_loaded_from_a_checkpoint(corpus: Corpus, tmp_path: Path) -> None:
    plain = {f"module.transformer_q.{name}": weight for name, weight in checkpoint("plain").items()}
    torch.save({"base_model": plain, "epoch": 300}, tmp_path / "point_bert_pretrained.pt")
    recipe = dataclasses.replace(
        TINY, points=dataclasses.replace(SMALL, channels=3), point_weights=str(tmp_path / "point_bert_pretrained.pt")
    )
    run = train(dataclasses.replace(recipe, optimizer=dataclasses.replace(recipe.optimizer, learning_rate=0.0)), corpus,
                Budget(steps=2))  # fmt: skip
    torch.testing.assert_close(run.model.point_encoder.cls_pos, plain["module.transformer_q.cls_pos"])
    with pytest.raises(UserError, match=r"first_conv.0.weight has shape \(128, 6\) here.*--points.channels 3"):
        train(dataclasses.replace(recipe, points=SMALL), corpus, Budget(steps=2))


def test_the_loss_is_that_of_the_official_code(corpus: Corpus) -> None:
    model = TINY.build(fit_processor(TINY, corpus))
    model.point_logit_scale.logit_scale.data.fill_(np.log(9.0))
    names = {"points": "pc_embed", "text": "text_embed", "image": "image_embed"}
    vectors = {own: F.normalize(torch.from_numpy(GOLDEN[name]), dim=1) for own, name in names.items()}
    losses = model.contrastive_losses({**vectors, "group": torch.arange(7, dtype=torch.float64)})
    assert float(sum(losses.values()).detach()) == pytest.approx(float(GOLDEN["loss"]), rel=1e-5)
    one_group = model.contrastive_losses({**vectors, "group": torch.zeros(7, dtype=torch.float64)})
    assert one_group["points_text"] != losses["points_text"]  # objects with equal texts are no negatives


def test_image_and_captions_are_of_the_same_view(corpus: Corpus) -> None:
    processor = fit_processor(TINY, corpus)
    examples = Reader(corpus, processor).read_split("train")[1][:6]
    said = [[caption._replace(view=v, text=f"{v} {n}") for v in (0, 1) for n in range(3)]
            for caption in (example["captions"][0] for example in examples)]  # fmt: skip
    examples = [example | {"captions": captions} for example, captions in zip(examples, said, strict=True)]
    seen = set()
    for seed in range(4):
        batch = TINY.training_batch(examples, processor, ExampleRNG.of(seed, 0, 6))
        texts = [text.split() for text in processor.tokenizer.decode(batch["text"])]
        for number, example in enumerate(examples):
            (view, first), (same, second) = texts[2 * number : 2 * number + 2]
            assert (view, first, second) == (same, "0", "1")  # the best two
            shown = processor(image=[example["views"][int(view)]])["image"][0]
            assert torch.equal(batch["image"][number], shown)
            seen.add(view)
        centers = batch["points"][..., :3].mean(1)
        assert float(centers.abs().max()) > 0.05
    assert seen == {"0", "1"}
    one = dataclasses.replace(TINY, num_views=1).training_batch(examples, processor, ExampleRNG.of(0, 0, 6))
    assert all(text.startswith("0") for text in processor.tokenizer.decode(one["text"]))


def test_clouds_are_centered_and_gray_and_views_have_their_own_colors(corpus: Corpus) -> None:
    processor = fit_processor(TINY, corpus)
    cloud = np.random.default_rng(0).normal(5, 3, (200, 3)).astype(np.float32)
    points = processor(points=[cloud])["points"]
    torch.testing.assert_close(points[0, :, :3].mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    assert points[0, :, :3].norm(dim=1).max() == pytest.approx(1, abs=1e-5)
    assert bool((points[..., 3:] == np.float32(GRAY)).all())
    views = np.concatenate([v for e in Reader(corpus, processor).read_split("train")[1] for v in e["views"]])
    np.testing.assert_allclose(processor.views.mean, views.reshape(-1, 3).mean(0) / 255, atol=0.02)


def test_what_an_object_lacks_is_said_in_a_sentence(corpus: Corpus) -> None:
    rows = corpus.rows("train")[:20].tolist()
    place = corpus.table.column_names.index("views")
    values = [None if row in rows else value for row, value in enumerate(corpus.table.column("views").to_pylist())]
    views = pa.chunked_array([pa.array(values, type=corpus.table.field(place).type)])
    lacking = dataclasses.replace(corpus, table=corpus.table.set_column(place, corpus.table.field(place), views))
    with pytest.raises(UserError, match="reads the column 'views' of every example"):
        train(TINY, lacking, Budget(steps=8))
    processor = fit_processor(TINY, corpus)
    with pytest.raises(UserError, match="no captions of its views"):
        processor.captions.sample([], [0, 1], 1, np.random.default_rng(0))
    with pytest.raises(UserError, match="Groups of 4 points need as many per cloud, not 3"):
        PointEncoder(TINY.points)(torch.randn(2, 3, 6))
    with pytest.raises(UnreadableExample, match="no finite numbers"):
        processor.points.prepared(np.full((9, 3), np.nan, dtype=np.float32))


def test_only_points_and_their_temperature_are_trained(corpus: Corpus, synthetic_folder: Path, tmp_path: Path) -> None:
    towers = {"image": TINY.image, "text": TINY.text, "embed_dim": TINY.embed_dim, "batch_size": 4}
    with_images = open_saved(synthetic_folder / "corpus")
    first = train(clip.Recipe(**towers), with_images, Budget(steps=2), out=tmp_path / "clip")
    frozen = dataclasses.replace(TINY, clip_fraction=0.0, batch_size=4)
    run = train(frozen, corpus, Budget(steps=3), init=tmp_path / "clip")
    before = dict(first.model.named_parameters())
    after = {name: weight for name, weight in run.model.named_parameters() if not name.startswith("point_")}
    assert len(after) == len(before)
    assert all(torch.equal(before[name], weight) for name, weight in after.items())
    model = run.model.train()
    texts = run.processor.text(["a red bar", "a blue disk", "a red disk", "a cross"])
    batch = {"text": texts, "image": torch.randn(2, 3, 32, 32), "group": torch.arange(2.0).double()}
    vectors = model.encode_text(texts)
    wanted = F.normalize(vectors[::2] + vectors[1::2], dim=1)  # normalized before and after the mean
    torch.testing.assert_close(model.encode(batch)["text"], wanted)
    again = frozen.build(run.processor)
    assert copy_matching_weights(run.model, again) == len(list(again.parameters()))
    statistics = [one.point_encoder.first_conv[1].running_var for one in (run.model, again)]
    assert torch.equal(*statistics)
    assert not torch.equal(statistics[0], torch.ones_like(statistics[0]))
    with pytest.raises(UserError, match="not trained: load them with --init"):
        train(frozen, corpus, Budget(steps=1))


def test_pretrained_encoders_stay_as_they_are(clip_folder: Path, corpus: Corpus) -> None:
    recipe = TINY.with_pretrained(str(clip_folder))
    assert recipe.clip_fraction == 0
    batch_norm_free = dataclasses.replace(TINY.points, norm="layer")
    assert not any(isinstance(module, torch.nn.BatchNorm1d) for module in PointEncoder(batch_norm_free).modules())
    columns = {name: kind for name, kind in corpus.columns.items() if name != "view_captions"}
    with pytest.raises(UserError, match="no captions of views; write some with polymodal caption"):
        fit_processor(TINY, dataclasses.replace(corpus, columns=columns))


@pytest.mark.parametrize(("claim", "field"), [(claims.claim, "num_views"), (claims.captions, "text_source")])
def test_baselines_of_the_claims_differ_in_the_idea_alone(claim: Claim, field: str) -> None:
    value = getattr(claim.treatment, field)
    assert dataclasses.replace(claim.baseline, **{field: value}) == claim.treatment != claim.baseline
    for arm in claim.further.values():
        assert dataclasses.replace(arm, **{field: value}, num_captions=1) == claim.treatment


@pytest.mark.parametrize(("batch", "source"), [("image_batch", "captions"), ("training_batch", "names")])
def test_an_object_without_texts_is_a_sentence(corpus: Corpus, batch: str, source: str) -> None:
    recipe = dataclasses.replace(TINY, text_source=source)
    processor = fit_processor(recipe, corpus)
    examples = Reader(corpus, processor).read_all(corpus.rows("train")[:2])[1]
    examples[1]["text"] = []
    with pytest.raises(UserError, match="a text of every example, and one has none"):
        getattr(recipe, batch)(examples, processor, ExampleRNG.of(0, 0, 2))
