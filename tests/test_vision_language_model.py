"""The vision-language skeleton: equal to transformers' LLaVA, unchanged by packing; losses by plain loops."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn

from polymodal.data.sequence import TEXT, PackedSequences, Span, pack, pad_sequences
from polymodal.encoders.image import ImageEncoder, ImageEncoderConfig
from polymodal.encoders.language_model import LanguageModel, LanguageModelConfig
from polymodal.encoders.pretrained_image import PretrainedImageConfig
from polymodal.encoders.pretrained_language_model import read_language_model
from polymodal.errors import UserError
from polymodal.layers.decoding import Decoding
from polymodal.modalities.image import patchify
from polymodal.models.connector import ConnectorConfig
from polymodal.models.vision_language_model import (
    LossReduction,
    VisionLanguageModel,
    VisionLanguageModelConfig,
    freeze,
    reduce_token_losses,
    vision_tokens,
)
from tiny_checkpoints import IMAGE_MODELS, TEXT_MODELS, save

END = 2


def model(
    kind: str = "pixel_shuffle", experts: tuple[str, ...] = (), average: LossReduction = "token"
) -> VisionLanguageModel:
    torch.manual_seed(0)
    encoder = ImageEncoder(ImageEncoderConfig(width=16, depth=1))  # 32 px in patches of 8: 4 x 4
    connector = ConnectorConfig(kind, num_queries=4, depth=1)  # type: ignore[arg-type]
    language_model = LanguageModel(
        LanguageModelConfig(width=24, depth=2, num_heads=4, num_kv_heads=2), 30, (TEXT, *experts)
    )
    return VisionLanguageModelConfig(connector, average).build(encoder, language_model, END, experts).eval()


def text(*ids: int, predicted: bool = False) -> Span:
    return Span(TEXT, torch.tensor(ids), predicted)


def image_segment(image: Tensor, cell: int = 16) -> Span:
    return Span("image", patchify(image[None], cell)[0], predicted=False)


def examples() -> list[list[Span]]:
    torch.manual_seed(1)
    first, second = torch.randn(2, 3, 32, 32)
    return [
        [text(1), image_segment(first), text(5, 6), text(7, 8, END, predicted=True)],
        [text(1, 9), text(11, END, predicted=True)],
        [text(1), image_segment(second), text(12), text(4, 4, 3, 9, END, predicted=True)],
    ]


def test_splicing_is_what_transformers_llava_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    llama_settings = transformers.LlamaConfig(
        **sizes, vocab_size=40, num_key_value_heads=2, bos_token_id=1, eos_token_id=2
    )
    settings = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**sizes | {"hidden_size": 16}, image_size=16, patch_size=4),
        text_config=llama_settings,
        image_token_index=39,
    )
    llava = transformers.LlavaForConditionalGeneration(settings).eval()
    llama = transformers.LlamaForCausalLM(settings.text_config)
    save(llama, tmp_path)
    llava.model.language_model.load_state_dict(llama.model.state_dict())
    llava.lm_head.load_state_dict(llama.lm_head.state_dict())

    class Tower(nn.Module):
        """transformers' CLIP, of which LLaVA takes the last layer but one without the class token."""

        config, grid = ImageEncoderConfig(width=16), 4

        def __init__(self) -> None:
            super().__init__()
            self.tower = llava.model.vision_tower

        def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
            states = self.tower(image, output_hidden_states=True).hidden_states[-2]
            return states[:, 1:], states[:, 0]

    tokens = vision_tokens(Tower(), ConnectorConfig("mlp"), 32)
    projector = llava.model.multi_modal_projector
    tokens.connector.projection[0].load_state_dict(projector.linear_1.state_dict())
    tokens.connector.projection[2].load_state_dict(projector.linear_2.state_dict())
    language_model = read_language_model(str(tmp_path)).build(40)
    language_model.load_pretrained()
    own = VisionLanguageModel({"image": tokens}, language_model, END).eval()

    image = torch.randn(1, 3, 16, 16)
    sequence = [text(1, 5), image_segment(image[0], 4), text(7), text(9, 11, END, predicted=True)]
    ids = torch.tensor([[1, 5, *[39] * 16, 7, 9, 11, END]])
    labels = torch.where(torch.arange(ids.shape[1]) >= ids.shape[1] - 3, ids, -100)
    with torch.no_grad():
        expected = llava(input_ids=ids, pixel_values=image, labels=labels)
        batch = {"sequences": pad_sequences([sequence])}
        logits = own.language_model.logits(own.hidden_states(batch))
        torch.testing.assert_close(logits, expected.logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(own.losses(batch)["lm"], expected.loss, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "experts"), [("pixel_shuffle", ()), ("perceiver_resampler", ("image",))])
def test_packing_changes_nothing(kind: str, experts: tuple[str, ...]) -> None:
    own = model(kind, experts)
    alone = [own.token_losses({"sequences": pad_sequences([sequence])}).nats for sequence in examples()]
    packed = pack(examples(), 20)
    assert len(packed) < 3
    found = own.token_losses({"sequences": packed})
    for sample in found.samples.unique():
        nats = found.nats[found.samples == sample]
        torch.testing.assert_close(nats, next(one for one in alone if len(one) == len(nats)), rtol=1e-4, atol=1e-5)
    together = own.log_likelihood({"sequences": pad_sequences(examples())})
    torch.testing.assert_close(together, -torch.stack([one.sum() for one in alone]), rtol=1e-4, atol=1e-5)


def test_only_answers_are_predicted_and_images_matter() -> None:
    own = model()
    batch = {"sequences": pad_sequences(examples())}
    assert len(own.token_losses(batch).nats) == 3 + 2 + 5
    before = own.log_likelihood(batch)
    batch["sequences"].features["image"] += 1
    changed = (own.log_likelihood(batch) != before).tolist()
    assert changed == [True, False, True]


def test_tiles_may_come_beside_the_sequences() -> None:
    own = model()
    sequences = pad_sequences(examples())
    cells = sequences.features["image"]
    expected = own.log_likelihood({"sequences": sequences})
    torch.manual_seed(1)
    images = torch.randn(2, 3, 32, 32)
    without = dataclasses.replace(sequences, features={})
    torch.testing.assert_close(own.log_likelihood({"sequences": without, "image": images}), expected)
    with pytest.raises(UserError, match="4 tokens of image do not fill the 8 positions"):
        own.log_likelihood({"sequences": without, "image": images[:1]})
    assert cells.shape == (8, 3 * 16**2)


@pytest.mark.parametrize("average", ["token", "sample", "square"])
def test_averages_weigh_tokens_by_the_length_of_their_sample(average: LossReduction) -> None:
    nats, samples = torch.rand(10), torch.tensor([3, 3, 3, 3, 3, 3, 4, 7, 7, 7])
    length = {3: 6, 4: 1, 7: 3}
    weights = [
        {"token": 1, "sample": 1 / n, "square": 1 / math.sqrt(n)}[average] for n in map(length.get, samples.tolist())
    ]
    expected = sum(w * x for w, x in zip(weights, nats.tolist(), strict=True)) / sum(weights)
    assert reduce_token_losses(nats, samples, average).item() == pytest.approx(expected, rel=1e-5)
    nothing = reduce_token_losses(nats[:0].requires_grad_(), samples[:0], average)
    assert nothing.item() == 0


def test_a_sample_is_a_sequence_wherever_it_is_packed() -> None:
    own = model(average="sample")
    expected = torch.stack([own.token_losses({"sequences": pad_sequences([s])}).nats.mean() for s in examples()]).mean()
    for sequences in (pad_sequences(examples()), pack(examples(), 20), pack(examples(), 40)):
        torch.testing.assert_close(own.losses({"sequences": sequences})["lm"], expected, rtol=1e-4, atol=1e-5)


def test_generation_is_the_likeliest_token_step_by_step() -> None:
    own = model()
    prompts = [[text(1), examples()[0][1], text(5, 6)], [text(1, 9)]]
    batch = {"prompts": pad_sequences(prompts, pad_left=True)}
    written = own.generate_text(batch, Decoding(5))
    for prompt, found in zip(prompts, written, strict=True):
        expected: list[int] = []
        while len(expected) < 5:
            so_far: PackedSequences = pad_sequences([[*prompt, text(*expected)] if expected else prompt])
            logits = own.language_model.logits(own.hidden_states({"sequences": so_far}))[0, -1]
            if int(logits.argmax()) == END:
                break
            expected.append(int(logits.argmax()))
        assert found == expected
    drawn = [
        own.generate_text(batch, Decoding(5, temperature=1.0), torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_pretrained_encoders_and_language_models_take_their_places(tmp_path: Path) -> None:
    for folder, source in {"image": IMAGE_MODELS["dinov2"](), "language": TEXT_MODELS["qwen3"]()}.items():
        kind = transformers.AutoModel if folder == "image" else transformers.AutoModelForCausalLM
        save(kind.from_config(source), tmp_path / folder)
    encoder = PretrainedImageConfig.read(str(tmp_path / "image")).build()  # 32 px in patches of 8
    language_model = read_language_model(str(tmp_path / "language")).build(300)
    tokens = vision_tokens(encoder, ConnectorConfig("pixel_shuffle"), 32, grid=4)
    own = VisionLanguageModel({"image": tokens}, language_model, 3).eval()
    alone = torch.cat([own.log_likelihood({"sequences": pad_sequences([sequence])}) for sequence in examples()])
    torch.testing.assert_close(
        own.log_likelihood({"sequences": pad_sequences(examples())}), alone, rtol=1e-4, atol=1e-4
    )
    prompts = pad_sequences([[text(1), examples()[0][1], text(5, 6)], [text(1, 9)]], pad_left=True)
    written = own.generate_text({"prompts": prompts}, Decoding(4))
    assert [len(row) <= 4 for row in written] == [True, True]
    assert any(written)


def test_experts_get_the_tokens_of_their_modality() -> None:
    own = model(experts=("image",))
    before = own.log_likelihood({"sequences": pad_sequences(examples())})
    with torch.no_grad():
        for name, weight in own.language_model.named_parameters():
            if ".image." in name:
                weight.add_(1.0)
    assert (own.log_likelihood({"sequences": pad_sequences(examples())}) != before).tolist() == [True, False, True]


def test_what_is_frozen_does_not_learn() -> None:
    own = model().train()
    names = freeze(own, "language_model.*", "image_encoder.encoder.*")
    own.losses({"sequences": pack(examples(), 40)})["lm"].backward()
    trained = {name for name, weight in own.named_parameters() if weight.grad is not None}
    assert trained == {name for name, _ in own.named_parameters()} - set(names)
    assert all(name.startswith("image_encoder.connector") for name in trained)
    with pytest.raises(UserError, match="matches 'vision"):
        freeze(own, "vision.*")
