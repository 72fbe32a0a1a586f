"""`egmm_corpus`: concepts, annotators, and which pairs are trained on."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as PILImage

from polymodal.corpora.corpus import Corpus
from polymodal.corpora.mixture import mix_corpora
from polymodal.corpora.sources import from_path
from polymodal.corpora.stream import from_shards
from polymodal.curation.annotation import adjudicated, expected_purity, simulated_answers
from polymodal.curation.concepts import Concept, merge_concepts, normalize_name
from polymodal.errors import UserError
from polymodal.modalities.image import encoded
from polymodal.recipes.dual_encoders.egmm_corpus import Recipe


def test_names_are_merged_by_aliases_and_transliterations() -> None:
    listed = [
        Concept("Koshari", ("Koshary",)), Concept("Karnak"), Concept("Kushari", ("Koshary dish",)),
        Concept("El-Karnák", background="history"), Concept("kushari!", ("koshary",)), Concept("Pizza", specific=False),
        Concept("Bread", culture="general", specific=False),
    ]  # fmt: skip
    merged, counts = merge_concepts(listed)
    assert [one.name for one in merged] == ["Koshari", "Karnak", "Bread"]
    assert merged[0].aliases == ("Koshary", "Kushari", "Koshary dish", "kushari!", "koshary")
    assert merged[1].background == "history"
    assert [(one.taken, one.left) for one in counts] == [(7, 4), (4, 3)]
    assert len({normalize_name(name) for name in ("かき", "がき", "किताब", "कतब", "كِتاب")}) == 5
    assert normalize_name("كِتَاب") == normalize_name("كتاب")
    assert normalize_name("Al-Azhar  Mosque") == normalize_name("azhar mosque") != normalize_name("Altar mosque")


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_purity_of_simulated_annotators_is_that_of_the_formula(passes: int) -> None:
    rng, count = np.random.default_rng(passes), 200_000
    authentic, coherent = rng.random(count) < 0.8, rng.random(count) < 0.75
    left = np.ones(count, dtype=bool)
    for _ in range(passes):
        answers = simulated_answers(authentic, coherent, 0.2, rng)
        left &= answers[0] & answers[1]
    right = authentic & coherent
    assert right[left].mean() == pytest.approx(expected_purity(float(right.mean()), 0.2, passes), abs=0.01)
    assert left[right].mean() == pytest.approx(0.8**passes, abs=0.01)


def test_a_third_annotator_decides_where_two_differ() -> None:
    statuses = {votes: adjudicated(votes) for n in range(4) for votes in itertools.product((True, False), repeat=n)}
    assert statuses[()] == statuses[(True,)] == "unchecked"
    assert statuses[(True, False)] == statuses[(False, True)] == "disputed"
    three = {votes: status for votes, status in statuses.items() if len(votes) == 3}
    assert all(status == ("validated" if sum(votes) > 1 else "rejected") for votes, status in three.items())


def test_unchecked_pairs_are_trained_on_only_when_they_are_named(tmp_path: Path) -> None:
    import test_review
    from polymodal.corpora.saved import open_saved

    test_review.write_collected(tmp_path / "collected")
    corpus = open_saved(tmp_path / "collected")
    with pytest.raises(UserError, match="No training pair is validated; `polymodal review FOLDER` checks pairs"):
        Recipe().training_corpora(corpus)
    assert len(Recipe(pairs=("unchecked",)).training_rows(corpus)) == 3
    with pytest.raises(UserError, match="of the cultures general"):
        Recipe(cultures=("general",)).training_rows(corpus)
    with pytest.raises(UserError, match="The training split of 'collected' has no pair"):
        Recipe().training_rows(corpus.with_splits({"train": np.zeros(0, dtype=int)}))
    own = pairs_of(tmp_path, "own", None)
    mixed = mix_corpora([(own, 1), (corpus, 1)])
    assert Recipe().training_rows(mixed).tolist() == own.rows("train").tolist()
    assert len(Recipe(pairs=()).training_rows(mixed)) == len(own.rows("train")) + 3


def pairs_of(folder: Path, name: str, status: str | None) -> Corpus:
    """Open a user's own table, in which a column of texts is no modality."""
    stored = {"bytes": encoded(PILImage.new("RGB", (32, 32))), "path": None}
    rows = [{"image": stored, "caption": f"text {n}", **({"status": status} if status else {})} for n in range(40)]
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    return from_path(folder / f"{name}.parquet")


def test_a_status_in_a_users_own_table_counts_and_is_not_streamed(tmp_path: Path) -> None:
    corpus = pairs_of(tmp_path, "own", "unchecked")
    with pytest.raises(UserError, match="No training pair is validated"):
        Recipe().training_corpora(corpus)
    assert len(Recipe(pairs=("unchecked",)).training_rows(corpus)) == len(corpus.rows("train")) > 0
    with pytest.raises(UserError, match="by the column 'status' before training; leave out --stream"):
        Recipe().training_corpora(from_shards(str(tmp_path / "own.parquet")))


def test_arms_of_the_claim_have_as_many_pairs_of_the_same_concepts() -> None:
    from polymodal.claims import egmm_corpus as claims

    pairs = [claims.RawPair(f"c{n}", n, (f"c{n}",)) for n in range(260)]
    pairs += [claims.RawPair(f"c{n}", n + 1, (f"c{n}",), "wrong image") for n in range(0, 260, 2)]
    accepted = np.array([2] * 240 + [1] * 20 + [0] * 130)
    checked = claims.Checked(pairs, np.ones(len(pairs), dtype=bool), accepted)
    arms = claims.chosen_pairs(checked, np.random.default_rng(0))
    assert {len(arm) for arm in arms.values()} == {claims.PAIRS}
    same = [[pair.concept for pair in arms[name]] for name in ("validated", "one pass", "unvalidated")]
    assert same[0] == same[1] == same[2]
    assert len({*same[0]}) == claims.PAIRS
    assert {pair.kind for pair in arms["validated"]} == {"right"}
    assert 20 < sum(pair.kind == "wrong image" for pair in arms["unvalidated"]) < 80
    assert checked.counts()["expected purity"]["2 passes"] == expected_purity(260 / 390, claims.ERROR_RATE)
    assert claims.claim.baseline == dataclasses.replace(claims.claim.treatment, pairs=("unvalidated",))
