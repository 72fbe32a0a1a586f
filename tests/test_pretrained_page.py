"""Released weights of LayoutLMv3 against transformers, and the task for patches of pages; without any download."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from torch.nn import functional as F

from polymodal.corpora import Corpus
from polymodal.data.loader import Reader
from polymodal.data.masks import patch_range
from polymodal.data.processor import Processor, fit_processor
from polymodal.errors import UserError
from polymodal.evaluation.task import TaskInputs
from polymodal.evaluation.tasks.page_patches import page_patch_scores
from polymodal.modalities.text import Tokens
from polymodal.training import load_run, train
from polymodal.types import Batch, Budget
from tiny_pages import PATCHES, TINY


@pytest.fixture(scope="module")
def processor(corpus: Corpus) -> Processor:
    return fit_processor(TINY, corpus)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    """A tiny LayoutLMv3 as the hub holds it, with weights that would not hide a mistake."""
    from transformers import LayoutLMv3Config, LayoutLMv3ForTokenClassification

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("layoutlmv3") / "released"
    tokenizer = ByteLevelBPETokenizer(add_prefix_space=True)
    marks = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(["a red square there is a blue cross here"] * 9, 300, special_tokens=marks)
    tokenizer.add_special_tokens(["<mask>"])
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192}
    sizes |= {"coordinate_size": 8, "shape_size": 8, "input_size": 32, "patch_size": 8, "visual_bbox_size": 4}
    sizes |= {"vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": 66}
    model = LayoutLMv3ForTokenClassification(LayoutLMv3Config(**sizes)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.add_(0.3 * torch.randn_like(weight))
            if "rel_pos" in name:
                weight.normal_()
    model.save_pretrained(folder)
    tokenizer.save_model(str(folder))
    return folder, model.layoutlmv3


def test_released_weights_give_what_transformers_gives(
    released: tuple[Path, torch.nn.Module], corpus: Corpus, tmp_path: Path
) -> None:
    folder, theirs = released
    recipe = TINY.with_pretrained(str(folder))
    assert (recipe.finetune_fraction, recipe.max_words) == (1.0, 64)
    frozen = dataclasses.replace(recipe, optimizer=dataclasses.replace(recipe.optimizer, learning_rate=0.0))
    train(frozen, corpus, Budget(steps=1), init=f"hf:{folder}", out=tmp_path / "run")
    run = load_run(tmp_path / "run")
    ours, processor = run.model.encoder.eval(), run.processor
    assert tuple(processor.image.mean) == (0.5, 0.5, 0.5)
    examples = [processor.load_example(corpus, row) for row in corpus.rows("train")[:3].tolist()]
    made = processor(words=[e["words"][: 4 - n] for n, e in enumerate(examples)], image=[e["image"] for e in examples])
    words, image, mask = made["words"], made["image"], made["words"].tokens.mask
    first = processor.tokenizer.decode(Tokens(words.tokens.ids[:1], words.tokens.lengths[:1]))[0]
    assert first.split() == [word.text for word in examples[0]["words"][:4]]
    ids = words.tokens.ids.masked_fill(~mask, 1)  # <pad>, from which transformers counts positions
    with torch.no_grad():
        tokens, patches = ours(words, image)
        wanted = theirs(input_ids=ids, bbox=words.boxes, attention_mask=mask.long(), pixel_values=image)[0]
        alone = theirs(pixel_values=image).last_hidden_state
    length = ids.shape[1]
    torch.testing.assert_close(tokens[mask], wanted[:, :length][mask], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(patches, wanted[:, length:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours.encode_image(image), alone, atol=1e-5, rtol=1e-4)
    with pytest.raises(UserError, match="no weights of LayoutLMv3: embeddings"):
        ours.load_layoutlmv3({"word.weight": torch.zeros(3, 48)})


def test_what_is_no_layoutlmv3_is_refused(clip_folder: Path) -> None:
    with pytest.raises(UserError, match="is no LayoutLMv3; take hf:microsoft/layoutlmv3-base"):
        TINY.with_pretrained(str(clip_folder))


class Oracle(torch.nn.Module):
    """Patch tokens say where they are, on pages of one layout; a word's token is that of the first patch of its box."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1))

    def encode_page(self, batch: Batch) -> dict[str, torch.Tensor]:
        first, _ = patch_range(batch["words"].boxes, TINY.encoder.grid)
        text = F.one_hot(first[..., 1] * TINY.encoder.grid + first[..., 0], PATCHES).float()
        patches = torch.eye(PATCHES).expand(len(text), -1, -1)
        return {"text": text, "patches": patches, "image": patches}


def test_a_method_that_knows_points_at_every_word(corpus: Corpus, processor: Processor) -> None:
    inputs = TaskInputs(Oracle(), processor, Reader(corpus, processor))
    scores = {score.name: score for score in page_patch_scores(inputs)}
    pointing, probe = scores["test/word_to_patch/hit_rate"], scores["test/patch_fields/accuracy"]
    assert pointing.value == 1
    assert 1 / PATCHES <= pointing.chance < 0.3
    assert probe.value == 1
    place = corpus.table.column_names.index("words")
    test = {*corpus.rows("test").tolist()}
    values = [[] if row in test else value for row, value in enumerate(corpus.table.column("words").to_pylist())]
    words = pa.chunked_array([pa.array(values, type=corpus.table.field(place).type)])
    blank = dataclasses.replace(corpus, table=corpus.table.set_column(place, corpus.table.field(place), words))
    assert page_patch_scores(TaskInputs(Oracle(), processor, Reader(blank, processor))) == []  # nothing to score
    assert probe.chance == 0.5  # "color" or "other": four by four patches are coarser than words
