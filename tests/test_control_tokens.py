"""Users' texts that name special tokens: ordinary text for every tokenizer, which comes back as the same words."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers

from polymodal.curation.ngrams import NGramModel
from polymodal.data.columns.captions import CaptionsColumn
from polymodal.data.columns.tiled_image import TiledImageColumn
from polymodal.data.conversation import SPECIAL_TOKENS, MarkedTokenizer, Turn
from polymodal.data.conversation_format import ConversationFormat
from polymodal.encoders.language_model import LanguageModelConfig
from polymodal.encoders.pretrained_language_model import DecoderTokenizer
from polymodal.encoders.pretrained_text import PretrainedTokenizer
from polymodal.encoders.static_text import StaticText
from polymodal.modalities.molecule import smiles_tokenizer
from polymodal.modalities.text import TextTokenizer
from tiny_checkpoints import save_siglip_tokenizer, save_tokenizer

OWN = ["press <end> now", "<start>a<pad>", "<image> of <user>", "say <assistant>", "<unknown></image>", "<END>"]
HUB = ["press </s> now", "<s>a<pad>", "<mask> of a cat", "</s>"]
LEARNED = [*OWN, *HUB, "a cat on a mat", "the colour of the sky"] * 3


def check(tokenizer: Any, texts: list[str], special: set[int]) -> None:
    """No special token is inside of a text, and the words come back."""
    tokens = tokenizer(texts)
    content = [row[keep].tolist() for row, keep in zip(tokens.ids, tokens.content_mask, strict=True)]
    assert not special & {piece for row in content for piece in row}
    assert [text.strip() for text in tokenizer.decode(tokens)] == [text.lower() for text in texts]


def ids_of(tokenizer: TextTokenizer) -> set[int]:
    return {tokenizer.tokenizer.token_to_id(mark) for mark in tokenizer.marks}


@pytest.mark.parametrize("learn", [TextTokenizer.train, TextTokenizer.characters])
def test_own_tokenizers_also_when_loaded(learn: Any, tmp_path: Path) -> None:
    marked = {"marks": SPECIAL_TOKENS} if learn == TextTokenizer.train else {}
    tokenizer = learn(LEARNED, 400, 64, **marked)
    tokenizer.save(tmp_path)
    for one in (tokenizer, TextTokenizer.load(tmp_path, 64), pickle.loads(pickle.dumps(tokenizer))):
        check(one, OWN, ids_of(one))
        ids, _ = one.pieces("a <end>")
        assert one.end not in ids


def test_a_molecule_that_names_a_special_token() -> None:
    tokenizer = smiles_tokenizer(["CCO", "C<end>"], 16)
    check(tokenizer, ["<end>"], ids_of(tokenizer) - {tokenizer.tokenizer.token_to_id("<unknown>")})


@pytest.mark.parametrize("write", [save_tokenizer, save_siglip_tokenizer])
@pytest.mark.parametrize("kind", [PretrainedTokenizer, DecoderTokenizer])
def test_tokenizers_of_the_hub(write: Any, kind: Any, tmp_path: Path) -> None:
    tokenizer = kind.read(write(tmp_path / "hub", LEARNED), 64)
    tokenizer.save(tmp_path)
    for one in (tokenizer, kind.load(tmp_path, 64)):
        one.tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
        check(one, HUB, set(one.tokenizer.all_special_ids))
    library = transformers.AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert library(HUB, add_special_tokens=False)["input_ids"] == encode_without_special_tokens_of(tokenizer)


def encode_without_special_tokens_of(tokenizer: Any) -> list[list[int]]:
    tokens = tokenizer(HUB)
    return [row[keep].tolist() for row, keep in zip(tokens.ids, tokens.content_mask, strict=True)]


def test_unigram_pieces_that_are_special_become_unknown(tmp_path: Path) -> None:
    """SentencePiece models have their special tokens among the pieces, which no option of a tokenizer excludes."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁press", -2.0), ("▁now", -2.0), ("▁", -3.0)]
    backend = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=2))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    fast.save_pretrained(tmp_path)
    tokenizer = PretrainedTokenizer.read(tmp_path, 16)
    ids = tokenizer(["press </s> now"]).ids[0].tolist()
    assert not {0, 1} & set(ids)
    assert {2, 3, 4} <= set(ids)


def test_marks_of_conversations_enter_by_id_alone() -> None:
    source = LanguageModelConfig(vocab_size=500, context_length=96, width=16, depth=1, num_heads=1, mlp_dim=16)
    tokenizer = MarkedTokenizer(source).tokenizer(LEARNED)
    image = TiledImageColumn(tile_size=32, token_size=16, max_tiles=1, largest=32)
    form = ConversationFormat(96, {"image": image, "text": CaptionsColumn(MarkedTokenizer(source), tokenizer)})
    assert sorted(ids for (ids,) in form.marks.values()) == [3, 4, 5, 6]
    said = form.sequence(np.zeros((32, 32, 3), np.uint8), [Turn("one <end> two", "is <assistant> <image> there?")])
    ids = [int(piece) for span in said if span.modality == "text" for piece in span.values]
    assert [ids.count(mark) for mark in (form.start, form.end, 3, 4, 5, 6)] == [1] * 6
    assert ids[-1] == form.end  # the answer ends at its end, not in its middle
    answer = [int(piece) for span in said if span.modality == "text" and span.predicted for piece in span.values]
    assert tokenizer.tokenizer.decode(answer).strip() == "one <end> two"


def test_other_uses_of_tokenizers() -> None:
    model = NGramModel.fit(["a <pad> b", "a cat"] * 4, pieces=300)
    assert model.perplexity("a <pad> b") < 40
    backend = TextTokenizer.train(LEARNED, 400, 16).tokenizer
    backend.encode_special_tokens = False
    vectors = np.random.default_rng(0).normal(size=(backend.get_vocab_size(), 8)).astype(np.float32)
    embed = StaticText(vectors, backend)
    assert not np.allclose(embed(["<end>"])[0], vectors[2] / np.linalg.norm(vectors[2]))
