"""EVE: the released code's models of fine-tuning, what the masked passes see, and stages."""

from __future__ import annotations

import dataclasses
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from polymodal.corpora import Corpus
from polymodal.data.processor import Processor, fit_processor
from polymodal.encoders.multiway_moe import MultiwayMoEConfig
from polymodal.errors import UserError
from polymodal.modalities.text import Tokens
from polymodal.models.multiway_pairs import MultiwayPairs
from polymodal.recipes.fusion_encoders import eve
from polymodal.rng import ExampleRNG
from polymodal.training.stages import active_stages

GOLDEN = Path(__file__).parent / "golden" / "eve.npz"
TINY = eve.Recipe.tiny()


@pytest.fixture(scope="module")
def processor(corpus: Corpus) -> Processor:
    return fit_processor(TINY, corpus)


def built(processor: Processor, **changes: object) -> eve.EVE:
    torch.manual_seed(0)
    return dataclasses.replace(TINY, **changes).build(processor).eval()


def batch_of(processor: Processor, corpus: Corpus, name: str = "training_batch", count: int = 4) -> dict:
    examples = [processor.load_example(corpus, row) for row in corpus.rows("train").tolist()[:count]]
    return getattr(TINY, name)(examples, processor, ExampleRNG.of(0, 0, len(examples)))


def test_retrieval_and_answers_are_those_of_the_released_code() -> None:
    """tests/golden/eve.txt."""
    golden = {name: torch.from_numpy(value) for name, value in np.load(GOLDEN).items()}
    model = MultiwayPairs(MultiwayMoEConfig(16, 8, 20, 6, 8, 3, 2, 1, num_experts=4), 20, 6, 3128).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(parameter.shape))
            factor = 0.9 if name.endswith(("moe.router.weight", "modality_embedding")) else 0.3
            parameter.copy_(factor * torch.from_numpy(values))
        model.logit_scale.logit_scale.fill_(math.log(1 / 0.07))
    image, full = golden["image"], Tokens(golden["ids"], torch.tensor([6, 6]))
    padded = Tokens(golden["ids"], golden["padded/lengths"])
    close = {"atol": 1e-5, "rtol": 1e-5}
    joint, words = model.encoder(image, padded), model.encoder(text=padded).text[padded.mask]
    torch.testing.assert_close(joint.image, golden["padded/joint"][:, :5], **close)
    torch.testing.assert_close(joint.text[padded.mask], golden["padded/joint"][:, 5:][padded.mask], **close)
    torch.testing.assert_close(words, golden["padded/text"][padded.mask], **close)
    torch.testing.assert_close(model.encoder(image).image, golden["full/image"], **close)
    vqa = {"image": image, "question": padded, "answer": golden["vqa/answer"]}
    torch.testing.assert_close(model.answer_logits(vqa)[:, :16], golden["vqa/logits"], **close)
    torch.testing.assert_close(model.answer_losses(vqa)[0]["vqa"], golden["vqa/loss"], **close)
    for block in model.encoder.blocks[2:]:
        block.moe.eval_capacity_factor = 1.0
    pairs = {"image": image, "text": full, "group": torch.arange(2.0), "uniform": torch.full((2, 2), 0.5)}
    losses, balances = model.pair_losses(pairs)
    for name, value in (losses | {"balance": torch.stack(balances).mean()}).items():
        torch.testing.assert_close(value, golden[f"retrieval/{name}"], **close)


def test_losses_are_of_masked_positions_alone_and_text_reaches_patches(processor: Processor, corpus: Corpus) -> None:
    model, batch = built(processor), batch_of(processor, corpus)
    losses = model.losses(batch)
    text, mask = batch["text"], batch["masked_tokens"]
    ids = torch.where(mask, text.ids, 5)
    assert torch.equal(model.losses(batch | {"text": dataclasses.replace(text, ids=ids)})["mlm"], losses["mlm"])
    image = batch["image"].unfold(2, 16, 16).unfold(3, 16, 16).clone()  # 2 x 2 patches
    image[batch["masked_patches"].view(-1, 1, 2, 2).expand(-1, 3, -1, -1)] *= -1
    other = {**batch, "image": image.permute(0, 1, 2, 4, 3, 5).flatten(4).flatten(2, 3)}
    assert torch.equal(model.losses(other)["mlm"], losses["mlm"])  # masked patches are not seen
    assert not torch.equal(model.losses(other)["mim"], losses["mim"])  # but are what is predicted
    words = {**batch, "mlm_text": dataclasses.replace(batch["mlm_text"], ids=batch["mlm_text"].ids.flip(0))}
    assert not torch.equal(model.losses(words)["mim"], losses["mim"])
    whole = torch.arange(4).expand(4, -1)
    torch.testing.assert_close(model.encoder(batch["image"], kept=whole).image, model.encoder(batch["image"]).image)
    apart = built(processor, joint_masking=False)  # MLM sees all patches, MIM all words
    assert not torch.equal(apart.losses(other)["mlm"], apart.losses(batch)["mlm"])
    assert torch.equal(apart.losses(words)["mim"], apart.losses(batch)["mim"])
    assert built(processor, use_itc_itm=True).losses(batch).keys() == {*losses, "itc", "itm"}


def test_stages_and_what_is_fine_tuned(processor: Processor, corpus: Corpus) -> None:
    batch = batch_of(processor, corpus, "finetuning_batch")
    for kind, names in {"both": {"itc", "itm", "vqa"}, "retrieval": {"itc", "itm"}, "vqa": {"vqa"}}.items():
        recipe = dataclasses.replace(TINY, finetuning=kind)
        given = batch if kind != "retrieval" else {name: batch[name] for name in batch if name != "question"}
        model = recipe.build(processor).eval()
        assert model.finetuning_losses(given).keys() == {*names, "balance"}
        assert ("itm_head.*" in active_stages(recipe)[1].trainable) is (kind != "vqa")
    images_alone = dataclasses.replace(corpus, columns={"image": corpus.columns["image"]})
    with pytest.raises(UserError, match="write --finetuning retrieval"):
        dataclasses.replace(TINY, finetuning="vqa").training_corpora(images_alone)
