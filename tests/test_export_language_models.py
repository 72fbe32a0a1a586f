"""Exports of runs with a published language model: ids and logits are those of the run, whichever tokens it adds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from polymodal.corpora import Corpus
from polymodal.data.conversation import TiledImageColumn
from polymodal.data.processor import Processor
from polymodal.data.sequence import pad_sequences
from polymodal.modalities.image import unpatchify
from polymodal.recipes.language_models import mono_internvl
from polymodal.serving.export.folder import export
from polymodal.serving.export.language_model import prompt_text
from polymodal.training import Run, train
from polymodal.training.initialization import with_encoders
from polymodal.training.runtime import RuntimeConfig
from polymodal.types import Budget
from tiny_checkpoints import save, save_decoder_tokenizer

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 160}
TEXTS = ["a large cat and a small bus", "how many things", "is the cat left of the bus"] * 20
MODELS: dict[str, tuple[Any, bool, dict[str, str]]] = {
    "llama": (transformers.LlamaConfig(**SIZES), True, {"bos_token": "<s>"}),
    "qwen2": (transformers.Qwen2Config(**SIZES), False, {}),
    "qwen3": (transformers.Qwen3Config(**SIZES, head_dim=8, tie_word_embeddings=True), False, {}),
    "gpt2": (
        transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=160, vocab_size=300),
        False,
        {"bos_token": "</s>"},
    ),
}
AS_IT_IS = ("qwen3", "gpt2")


def trained_run(kind: str, scenes: Corpus, folder: Path) -> Run:
    config, starts, names = MODELS[kind]
    source = save(transformers.AutoModelForCausalLM.from_config(config), folder / kind)
    save_decoder_tokenizer(source, TEXTS, starts, **names)
    recipe = mono_internvl.Recipe(
        tile_size=48, patch_size=8, patch_embed_dim=16, batch_size=4, max_turns=2, stage_fractions=(0, 1, 1, 1, 1)
    )
    if kind in AS_IT_IS:
        recipe = dataclasses.replace(recipe, visual_experts=False, freeze_llm=False)
    few = scenes.with_splits({name: rows[:16] for name, rows in scenes.splits.items()})
    tuned = with_encoders(recipe, {"lm": f"hf:{source}"})
    return train(tuned, few, Budget(steps=4), out=folder / "run", runtime=RuntimeConfig(logger="none"))


@pytest.mark.slow  # half a minute each: a run, its export, and transformers' reading of it
@pytest.mark.parametrize("kind", [*MODELS])
def test_ids_and_logits_of_the_export_are_those_of_the_run(kind: str, scenes: Corpus, tmp_path: Path) -> None:
    run = trained_run(kind, scenes, tmp_path)
    processor, method = run.processor, run.model
    assert isinstance(processor, Processor)
    texts = ["a cat", "a <s> </s> b", "<user>"]
    before = processor.tokenizer(texts).ids.tolist(), processor.tokenizer.vocab_size
    written = export(run, "transformers", tmp_path / "export")
    assert written.difference < 1e-4
    assert (processor.tokenizer(texts).ids.tolist(), processor.tokenizer.vocab_size) == before

    model = transformers.AutoModelForCausalLM.from_pretrained(written.folder, trust_remote_code=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(written.folder, trust_remote_code=True)
    start = 1 if kind == "llama" else 3
    assert tokenizer("a cat")["input_ids"] == [start, *processor.tokenizer(["a cat"]).ids[0, 1:-1].tolist()]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (start, 3)

    assert isinstance(processor.image, TiledImageColumn)
    image = processor.image.open(scenes.value(0, "image"))
    image = torch.nn.functional.interpolate(torch.tensor(image).permute(2, 0, 1)[None].float(), (48, 48))[0]
    image = image.permute(1, 2, 0).byte().numpy()
    for question in ("How many things are there?", "a bus", "Is the cat left of the bus?"):
        prompt = pad_sequences([processor.conversation.prompt(image, question)])
        with torch.no_grad():
            vectors, routes = method.embed_sequences(prompt, {})
            states = method.language_model(vectors, prompt.position, prompt.document, routes)
            ours = method.language_model.logits(states)
            given = tokenizer(prompt_text(processor, question), return_tensors="pt")
            pixels = unpatchify(processor.image.patchify_tiles(image, 1)[None], processor.image.token_size)
            theirs = model(given["input_ids"], given["attention_mask"], pixel_values=pixels).logits
        torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)
    padded = torch.cat([torch.full_like(given["input_ids"][:, :3], 3), given["input_ids"]], 1)
    mask = torch.cat([torch.zeros(1, 3, dtype=torch.long), given["attention_mask"]], 1)
    with torch.no_grad():
        torch.testing.assert_close(model(padded, mask, pixel_values=pixels).logits[:, 3:], ours, atol=1e-4, rtol=1e-4)
        said = model.generate(**given, pixel_values=pixels, max_new_tokens=3, do_sample=False)
    assert said.shape[1] <= given["input_ids"].shape[1] + 3
