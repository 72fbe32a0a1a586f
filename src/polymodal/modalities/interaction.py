"""Ratings of an item: by whom, when, and how high."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Int


class Ratings(NamedTuple):
    """Ratings of an item. users: indices. ratings: 1 to 5. times: Unix seconds. rank: recency for the user, 0 is the
    latest."""

    users: Int[np.ndarray, " ratings"]
    ratings: Int[np.ndarray, " ratings"]
    times: Int[np.ndarray, " ratings"]
    rank: Int[np.ndarray, " ratings"]


@dataclass(frozen=True)
class Interactions:
    """Column of the ratings of an item. users: total number of users."""

    users: int

    @property
    def arrow_type(self) -> pa.DataType:
        kinds = {"user": pa.int32(), "rating": pa.int32(), "time": pa.int64(), "rank": pa.int32()}
        return pa.list_(pa.struct(kinds))

    def decode(self, value: list[Mapping[str, int]]) -> Ratings:
        return Ratings(
            *(np.array([record[name] for record in value], np.int64) for name in ("user", "rating", "time", "rank"))
        )

    def describe(self, value: Ratings) -> str:
        mean = f", {value.ratings.mean():.1f} on average" if len(value.ratings) else ""
        return f"rated by {len(value.users)} of {self.users} people{mean}"

    def plot(self, value: Ratings, axes: Any) -> None:
        """Plot the histogram of ratings."""
        axes.bar(range(1, 6), np.bincount(value.ratings, minlength=6)[1:6], color="#e09f3e")
        axes.tick_params(labelsize=6)
        axes.set_xlabel("rating", fontsize=6)
