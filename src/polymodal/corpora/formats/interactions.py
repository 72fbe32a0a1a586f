"""Interactions of users with items: MovieLens (`ratings.csv`, `ratings.dat`, `u.data`), RecBole, CSV or JSON lines.

A row is a user, with the items that they liked, oldest first; a table of items beside the interactions describes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polymodal.corpora.corpus import Skipped
from polymodal.corpora.formats._data_files import DataFiles, Match
from polymodal.corpora.formats._delimited import head_lines, read_delimited
from polymodal.corpora.formats._items import ITEM, column_of, headings_of, items_of, plain, read_rows
from polymodal.corpora.formats._tables import concatenated
from polymodal.corpora.rows import Rows
from polymodal.corpora.schemas._tabular import numbers
from polymodal.errors import UserError
from polymodal.modalities import History
from polymodal.modalities.history import Item

description = "interactions: user, item, rating and time (MovieLens, RecBole, CSV), and a table of items"
USER = ("user", "userid", "uid", "customerid", "reviewerid", "visitorid", "memberid")
RATING = ("rating", "ratings", "score", "stars", "overall", "label", "playcount", "count")
TIME = ("timestamp", "time", "unixreviewtime", "ts", "date", "datetime", "eventtime")
PLAIN = {"u.data": "\t", "ratings.dat": "::"}  # files without headings -> delimiter
MOVIELENS = ("user", "item", "rating", "timestamp")
LIKED = 0.8  # of the highest rating: 4 of 5 stars
MAX_RATING = 10  # larger values are no ratings but counts
MIN_ITEMS = 5  # of a user, as in the 5-core sets of the field


def matches(data: DataFiles) -> Match:
    """Look for files whose headings name users and items, with a rating or a time."""
    return Match.CONTENT if _interactions(data) else Match.NO


def read(data: DataFiles) -> Rows:
    """Group the interactions by user. Liked is what has at least 80 % of the highest rating, or all without ratings.

    Users with less than 5 liked items are skipped. Raises UserError where none is left.
    """
    files = _interactions(data)
    if not files:
        raise UserError(f"{data.given[0]} has no file with the headings user and item (or user_id and item_id).")
    tables: list[pa.Table] = []
    skipped: list[Skipped] = []
    for file in files:
        table, left_out = _read(file)
        tables.append(table)
        skipped += left_out
    table = concatenated(tables)
    if not table.num_rows:
        raise UserError(f"{files[0]} has no rows.")
    user, item = column_of(table, USER), column_of(table, ITEM)
    assert user is not None
    assert item is not None
    keep = pc.and_(table.column(user).is_valid(), table.column(item).is_valid())
    if not pc.all(keep).as_py():
        skipped.append(Skipped(table.num_rows - pc.sum(keep).as_py(), "has no user or no item", str(files[0])))
        table = table.filter(keep)
    liked, note = _liked(table)
    users, items = (pc.cast(table.column(name), pa.string()).combine_chunks() for name in (user, item))
    order = np.lexsort((np.arange(len(table)), _times(table)))
    order = order[liked[order]]
    histories, names, catalogue_keys, few = _grouped(users.take(order), items.take(order))
    if not names:
        raise UserError(
            f"{files[0]} has no user with {MIN_ITEMS} items or more that they liked ({note}); recommenders need some."
        )
    if few:
        skipped.append(Skipped(len(few), f"is a user with fewer than {MIN_ITEMS} liked items", few[0]))
    items_described = items_of(data.files, files)
    catalogue = tuple(items_described.get(key, Item(key, "")) for key in catalogue_keys)
    undescribed = sum(key not in items_described for key in catalogue_keys)
    notes = [note, f"{len(catalogue):,} items are in the catalogue; {undescribed:,} of them have no description."]
    if len(files) > 1:
        listed = ", ".join(file.name for file in files)
        notes.append(f"The interactions of {len(files)} files are read as one: {listed}.")
    columns = {"user": pa.array(names, pa.string()), "liked": pa.array(histories, pa.list_(pa.int32()))}
    return Rows(
        pa.table(columns),
        data.root,
        {"liked": History(catalogue)},
        keys="user",
        skipped=tuple(skipped),
        notes=(*notes,),
    )


def _interactions(data: DataFiles) -> list[Path]:
    """Return the files of interactions: those with ratings where there are some, all with the same headings."""
    candidates = [(file, _headings(file)) for file in data.files]
    candidates = [(file, names) for file, names in candidates if _are_interactions(names)]
    rated = [(file, names) for file, names in candidates if {*names} & {*RATING}] or candidates
    return [file for file, names in rated if names == rated[0][1]]


def _headings(file: Path) -> list[str]:
    delimiter = PLAIN.get(file.name)
    if delimiter is None:
        return [plain(name) for name in headings_of(file)]
    first = next(iter(head_lines(file, 1)), "")
    return list(MOVIELENS) if first.count(delimiter) == len(MOVIELENS) - 1 else []


def _are_interactions(names: Sequence[str]) -> bool:
    both = bool({*names} & {*USER} and {*names} & {*ITEM})
    return both and (len(names) == 2 or bool({*names} & {*RATING, *TIME}))


def _read(file: Path) -> tuple[pa.Table, tuple[Skipped, ...]]:
    delimiter = PLAIN.get(file.name)
    return read_rows(file) if delimiter is None else read_delimited(file, delimiter, MOVIELENS)


def _liked(table: pa.Table) -> tuple[np.ndarray, str]:
    """Return for each row whether the user liked the item, and the sentence that says what that is."""
    rating = column_of(table, RATING)
    if rating is None:
        return np.ones(len(table), bool), "There are no ratings, so that every interaction counts."
    values = numbers(table.column(rating)).to_numpy()
    highest = np.nanmax(values, initial=0)
    if highest > MAX_RATING:
        return values > 0, f"'{rating}' has counts, so that every interaction above 0 counts."
    threshold = LIKED * highest
    return values >= threshold - 1e-9, f"Liked are items with a '{rating}' of {threshold:g} or more."


def _times(table: pa.Table) -> np.ndarray:
    """Return numbers in the order of time; those of the rows where there is no time. Raises UserError for dates whose
    order is not that of their letters."""
    name = column_of(table, TIME)
    if name is None:
        return np.arange(len(table))
    column = table.column(name)
    if pa.types.is_temporal(column.type):
        return np.nan_to_num(pc.cast(pc.cast(column, pa.timestamp("us")), pa.int64()).to_numpy())
    values = numbers(column)
    if values.null_count <= len(values) / 2:
        return values.fill_null(0).to_numpy()
    texts = pc.fill_null(pc.cast(column, pa.string()).combine_chunks(), "")
    unordered = texts.filter(pc.invert(pc.match_substring_regex(texts, r"^(\d{4}[-/.]?\d\d[-/.]?\d\d|$)")))
    if len(unordered):  # ISO 8601 sorts as text
        raise UserError(
            f"The column '{name}' has '{unordered[0]}', which does not sort by time; write dates as 2018-12-31, or "
            "seconds as numbers."
        )
    return pc.rank(texts, tiebreaker="dense").to_numpy()


def _grouped(users: pa.Array, items: pa.Array) -> tuple[list[np.ndarray], list[str], list[str], list[str]]:
    """Return the items of each user by index, once each; the users; the items; and the users with too few items."""
    user = users.dictionary_encode()
    item = items.dictionary_encode()
    user_ids, item_ids = user.indices.to_numpy(), item.indices.to_numpy()
    pairs = user_ids.astype(np.int64) * max(len(item.dictionary), 1) + item_ids
    first = np.sort(np.unique(pairs, return_index=True)[1])
    user_ids, item_ids = user_ids[first], item_ids[first]
    enough = np.bincount(user_ids, minlength=len(user.dictionary)) >= MIN_ITEMS
    few = user.dictionary.filter(pa.array(~enough)).to_pylist()
    kept = enough[user_ids]
    user_ids, item_ids = user_ids[kept], item_ids[kept]
    used, item_ids = np.unique(item_ids, return_inverse=True)
    order = np.argsort(user_ids, kind="stable")
    present, starts = np.unique(user_ids[order], return_index=True)
    histories = np.split(item_ids[order], starts[1:]) if len(present) else []
    return histories, user.dictionary.take(present).to_pylist(), item.dictionary.take(used).to_pylist(), few
