"""Approximate search in an index against faiss's HNSW in memory: recall@10, time of a query, memory.

A million vectors of 256 dimensions, drawn from a mixture of Gaussians that was fitted to the vectors of a run's
images and captions. LanceDB searches from disk, with polymodal's settings; faiss has its graph and all vectors in
memory, and the smallest efSearch that reaches a recall of 0.95. One thread, one query at a time, in turn.

    pip install -e ".[index,bench]" && python benchmarks/search.py [--vectors 1000000]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from sklearn.mixture import GaussianMixture

from polymodal import corpora
from polymodal.recipes.dual_encoders import clip
from polymodal.serving.index import Index
from polymodal.serving.index_table import ann_index
from polymodal.training import train
from polymodal.types import Budget

DIM, QUERIES, TOP = 256, 1000, 10


def memory() -> float:
    """Of this process at its peak, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def drawn(count: int, seed: int) -> np.ndarray:
    """Normalised vectors from the mixture."""
    emoji = corpora.emoji()
    run = train(clip.Recipe(embed_dim=DIM), emoji, Budget(steps=200))
    rows = emoji.rows("train")
    texts = [caption.text for row in rows for caption in emoji.value(int(row), "captions")][:20_000]
    real = np.concatenate(
        [run.embed(image=emoji.raw_values(rows, "image"))["image"].numpy(), run.embed(text=texts)["text"].numpy()]
    )
    mixture = GaussianMixture(64, covariance_type="diag", random_state=seed, max_iter=30).fit(real)
    vectors = mixture.sample(count)[0].astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.random.default_rng(seed).permutation(vectors)


def nearest(queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    found = [torch.from_numpy(some) @ torch.from_numpy(vectors).T for some in np.array_split(queries, 50)]
    return np.concatenate([similar.topk(TOP).indices.numpy() for similar in found])


def recall(found: list[list[int]], exact: np.ndarray) -> float:
    return float(np.mean([len({*own} & {*right}) / TOP for own, right in zip(found, exact.tolist(), strict=True)]))


def timed(search, queries: np.ndarray) -> tuple[list[list[int]], float, float]:
    """What was found, the median and the 99th percentile of a query in milliseconds."""
    found, times = [], []
    for query in queries:
        begin = time.perf_counter()
        found.append(search(query))
        times.append(1e3 * (time.perf_counter() - begin))
    return found, statistics.median(times), statistics.quantiles(times, n=100)[98]


def main() -> None:
    import faiss
    import lancedb

    parser = argparse.ArgumentParser()
    parser.add_argument("--vectors", type=int, default=1_000_000)
    count = parser.parse_args().vectors
    faiss.omp_set_num_threads(1)
    made = drawn(count + QUERIES, 0)
    vectors, queries = made[:count], made[count:]
    exact = nearest(queries, vectors)
    print(f"{count:,} vectors of {DIM}; {memory():.1f} GiB so far")
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), DIM)
        rows = pa.table({"key": pa.array(range(count)), "vector": flat})
        table = lancedb.connect(folder).create_table("examples", rows)
        written = time.perf_counter() - begin
        begin = time.perf_counter()
        ann_index(table)
        built, size = time.perf_counter() - begin, sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())
        print(f"LanceDB: written in {written:.0f} s, index built in {built:.0f} s, {size / 2**30:.2f} GiB on disk")

        def in_lance(query: np.ndarray) -> list[int]:
            return Index.nearest(table, query, TOP).select(["key", "_distance"]).to_arrow()["key"].to_pylist()

        timed(in_lance, queries[:50])
        found, p50, p99 = timed(in_lance, queries)
        print(f"LanceDB: recall@10 {recall(found, exact):.3f}, p50 {p50:.2f} ms, p99 {p99:.2f} ms; {memory():.1f} GiB")
    begin, before = time.perf_counter(), memory()
    graph = faiss.IndexHNSWFlat(DIM, 32, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = 100
    graph.add(vectors)
    print(f"faiss: built in {time.perf_counter() - begin:.0f} s; {memory():.1f} GiB, {memory() - before:.1f} more")
    for wide in (64, 256, 512, 1024, 2048, 4096, 8192):
        graph.hnsw.efSearch = wide
        found, own, own99 = timed(lambda query: graph.search(query[None], TOP)[1][0].tolist(), queries)
        print(f"faiss, efSearch {wide}: recall@10 {recall(found, exact):.3f}, p50 {own:.2f} ms, p99 {own99:.2f} ms")
        if recall(found, exact) >= 0.95:
            break
    print(f"LanceDB takes {p50 / own:.1f} x the time of a query of faiss")


if __name__ == "__main__":
    main()
