"""Multiway encoder for retrieval and questions: the released code's models of fine-tuning."""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np
import torch

from polymodal.encoders.multiway_moe import MultiwayMoEConfig
from polymodal.modalities.text import Tokens
from polymodal.models.multiway_pairs import MultiwayPairs

GOLDEN = Path(__file__).parent / "golden" / "eve.npz"


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
