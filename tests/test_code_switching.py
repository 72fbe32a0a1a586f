"""Code-switching of texts, dictionaries that are learned and read, groups of candidates, masking by given numbers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from polymodal.corpora import Corpus
from polymodal.data.code_switching import code_switch, code_switch_word, learn_dictionary, read_dictionary
from polymodal.data.columns.multilingual import MultilingualColumn
from polymodal.data.columns.text import LearnedTokenizer
from polymodal.data.masked_input import mask_regions, mask_tokens_by
from polymodal.errors import UserError
from polymodal.modalities.text import Caption, Tokens
from polymodal.objectives.image_text_matching import ITMGroups, itm_group_loss, positive_mask, sample_itm_groups

WORDS = {"red": {"de": ["rot"], "fr": ["rouge", "rousse"]}, "cat": {"zh": ["猫"]}}


def test_every_known_word_is_replaced_at_ratios_of_one_and_none_at_zero() -> None:
    rng, text = np.random.default_rng(0), "Red cat, red-hot (cat)"
    assert code_switch(text, WORDS, 0.0, 1.0, rng) == code_switch(text, WORDS, 1.0, 0.0, rng) == text
    firsts = Counter(code_switch(text, WORDS, 1.0, 1.0, rng) for _ in range(600))
    assert {one.split(" ", 1)[1] for one in firsts} == {"猫, red-hot (猫)"}  # a hyphenated word is another one
    count = {word: sum(n for one, n in firsts.items() if one.startswith(word)) for word in ("rot", "rouge", "rousse")}
    # First a language, then one of its translations, both uniformly.
    assert abs(count["rot"] - 300) < 50
    assert abs(count["rouge"] - 150) < 50
    assert abs(count["rousse"] - 150) < 50
    replaced = sum(code_switch("cat", WORDS, 0.8, 0.5, rng) == "猫" for _ in range(1000))
    assert abs(replaced - 400) < 60


def test_one_word_is_replaced_and_none_where_none_is_known() -> None:
    rng = np.random.default_rng(0)
    found = Counter(code_switch_word("a cat and a cat", WORDS, 1.0, rng) for _ in range(400))
    assert found.keys() == {"a 猫 and a cat", "a cat and a 猫"}
    assert min(found.values()) > 150
    assert code_switch_word("a dog", WORDS, 1.0, rng) == code_switch("a dog", WORDS, 1.0, 1.0, rng) == "a dog"


def row(**texts: str) -> list[Caption]:
    return [Caption(text, language) for language, text in texts.items()]


def test_a_dictionary_is_learned_from_aligned_rows_alone() -> None:
    names = {
        "en": ("red", "blue", "cat", "dog"),
        "de": ("Rot", "Blau", "Katze", "Hund"),
        "zh": ("红", "蓝", "猫", "狗"),
    }
    rows = [
        row(
            en=f"the {names['en'][a]} {names['en'][b]}",
            de=f"{names['de'][b]}, {names['de'][a]}",
            zh="、".join((names["zh"][a], names["zh"][b])),
        )
        for a in (0, 1)
        for b in (2, 3)
    ]
    learned = learn_dictionary([*rows, row(en="a tree"), row(de="Baum")], "en")
    for place, word in enumerate(names["en"]):
        assert learned[word] == {"de": [names["de"][place]], "zh": [names["zh"][place]]}
    assert "tree" not in learned  # its row has no other language
    assert learned.keys() <= {*names["en"], "the"}
    assert learn_dictionary([row(en="red")], "en") == {}


def test_dictionaries_of_muse_and_of_three_columns_are_read(tmp_path: Path) -> None:
    (tmp_path / "en-de.0-5000.txt").write_text("cat Katze\ncat\tKater\nCat Katze\n\n")
    (tmp_path / "fr-de.txt").write_text("chat Katze\n")
    (tmp_path / "more.tsv").write_text("cat\tzh\t猫\nhot dog\tde\tWürstchen\n")
    found = read_dictionary(tmp_path, "en")
    assert found == {"cat": {"de": ["Katze", "Kater"], "zh": ["猫"]}, "hot dog": {"de": ["Würstchen"]}}
    for name, text in {"en-fr.txt": "cat\n", "words.txt": "cat chat\n"}.items():
        (tmp_path / "bad").mkdir(exist_ok=True)
        (tmp_path / "bad" / name).write_text(text)
        with pytest.raises(UserError, match="line 1 is no entry"):
            read_dictionary(tmp_path / "bad" / name, "en")
    with pytest.raises(UserError, match="no translation of a word in 'es'"):
        read_dictionary(tmp_path / "fr-de.txt", "es")
    with pytest.raises(UserError):
        read_dictionary(tmp_path / "nowhere.txt", "en")


def test_without_a_second_language_a_dictionary_is_needed(corpus: Corpus, tmp_path: Path) -> None:
    source = LearnedTokenizer(300, 24)
    with pytest.raises(UserError, match="--sent-ratio 0"):
        MultilingualColumn(source).fit([corpus], {})
    assert MultilingualColumn(source, dictionary=None).fit([corpus], {}).dictionary == {}
    (tmp_path / "en-de.txt").write_text("Red rot\nred rote\n")
    given = MultilingualColumn(source, dictionary=str(tmp_path)).fit([corpus], {})
    assert given.dictionary == {"red": {"de": ["rot", "rote"]}}


def test_slots_and_negatives_of_groups_are_uniform_and_distinct() -> None:
    torch.manual_seed(0)
    own = torch.arange(5).repeat(2000)
    positive = positive_mask(len(own), 5, own) | (own[:, None] == 0) & (torch.arange(5) == 1)  # 0 and 1 are alike
    groups = sample_itm_groups(own, positive, torch.rand(len(own), 4))
    assert torch.equal(groups.candidates.gather(1, groups.slot[:, None])[:, 0], own)
    assert (torch.bincount(groups.slot) / len(own)).sub(1 / 4).abs().max() < 0.02
    fewer = own == 0
    assert groups.valid[~fewer].all()
    assert (groups.valid[fewer].sum(1) == 4).all()
    assert all(len({*one}) == 4 for one in groups.candidates.tolist())
    counts = torch.bincount(groups.candidates[own == 3].flatten(), minlength=5) / 2000
    torch.testing.assert_close(counts, torch.tensor([0.75, 0.75, 0.75, 1.0, 0.75]), atol=0.05, rtol=0)
    alike = sample_itm_groups(own[:5], torch.ones(5, 5, dtype=torch.bool), torch.rand(5, 3))
    assert (alike.valid.sum(1) == 1).all()  # no candidate is a negative


def test_group_loss_is_that_of_plain_loops() -> None:
    torch.manual_seed(0)
    scores, slot = torch.randn(3, 4), torch.tensor([2, 0, 3])
    valid = torch.tensor([[True] * 4, [True, True, False, True], [True] * 4])
    groups = ITMGroups(torch.zeros(3, 4, dtype=torch.long), slot, valid)
    among, each = [], []
    for row_scores, place, there in zip(scores, slot.tolist(), valid, strict=True):
        among.append(torch.logsumexp(row_scores[there], 0) - row_scores[place])
        for column in there.nonzero().flatten().tolist():
            sign = 1 if column == place else -1
            each.append(-F.logsigmoid(sign * row_scores[column]))
    expected = 2 * torch.stack(among).mean() + 3 * torch.stack(each).mean()
    torch.testing.assert_close(itm_group_loss(scores, groups, 2.0, 3.0), expected)
    constant = itm_group_loss(torch.zeros(3, 4), groups, 1.0, 0.0)  # a head that prefers no slot is at chance
    assert abs(float(constant) - (2 * np.log(4) + np.log(3)) / 3) < 1e-6


def test_masking_by_given_numbers() -> None:
    torch.manual_seed(0)
    tokens = Tokens(torch.full((4000, 10), 7), torch.full((4000,), 9))
    masked = mask_tokens_by(tokens, torch.rand(4000, 8, 3), 0.15, 50, 50)
    assert not masked.mask[:, [0, 8, 9]].any()  # marks, padding
    assert masked.mask.any(1).all()
    given = masked.ids[masked.mask]
    fractions = [float((given == 50).float().mean()), float((given == 7).float().mean())]
    assert abs(fractions[0] - 0.8) < 0.03
    assert abs(fractions[1] - 0.1) < 0.03
    assert abs(float(masked.mask[:, 1:8].float().mean()) - (0.15 + 0.85**7 / 7)) < 0.01  # one where none would be
    has_class = torch.rand(4000, 6) < 0.5
    regions = mask_regions(has_class, torch.rand(4000, 6, 2), 0.15)
    assert regions.predicted.any(1).all()
    assert (regions.zeroed <= (regions.predicted & has_class)).all()
    drawn = (regions.predicted & has_class)[:, :-1]
    assert abs(float(drawn.float().sum() / has_class[:, :-1].sum()) - 0.15) < 0.02
    assert abs(float(regions.zeroed[:, :-1].sum() / drawn.sum()) - 0.9) < 0.03
