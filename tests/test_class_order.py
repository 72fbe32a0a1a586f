"""Orders of rows by class: m rows of each, no replacement, groups of hard negatives."""

from __future__ import annotations

import numpy as np
import pytest

from polymodal.data.class_order import ClassOrder
from polymodal.errors import UserError


def test_every_batch_has_m_rows_of_a_class_and_a_class_gives_all_rows_before_it_repeats_one() -> None:
    sizes = (7, 3, 2, 6, 1)
    classes = [np.arange(10 * number, 10 * number + size) for number, size in enumerate(sizes)]
    order = ClassOrder(classes, 3, 6, seed=4)
    assert [order.length, 5 * 3] == [12, 15]
    rows = np.array([order[place] for place in range(12 * 40)])
    assert (rows == [ClassOrder(classes, 3, 6, 4)[place] for place in range(12 * 40)]).all()
    batches = rows.reshape(-1, 2, 3) // 10
    assert (batches == batches[..., :1]).all()  # whole classes
    assert (batches[:, 0, 0] != batches[:, 1, 0]).all()
    assert len({tuple(np.unique(batch)) for batch in batches[::2]}) > 3  # passes differ
    for number, size in enumerate(sizes):
        visits = [order._rows(number, visit) for visit in range(-(-size // 3))]
        assert {*np.concatenate(visits).tolist()} == {*classes[number].tolist()}
    with pytest.raises(UserError, match="less than one batch of 18"):
        ClassOrder(classes, 3, 18, 0)
    groups = np.array([[0, 1, -1], [2, 3, 4]])
    hard = ClassOrder(classes, 3, 15, 0, groups)
    passes = {tuple(hard[15 * number + place] // 10 for place in range(0, 15, 3)) for number in range(9)}
    assert passes == {(0, 1, 2, 3, 4), (2, 3, 4, 0, 1)}  # confusable classes meet
