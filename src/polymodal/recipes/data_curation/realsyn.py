"""RealSyn: image-text pairs from interleaved documents, by retrieved real sentences and one synthetic text an image.

Documents are broken into a pool of images and a pool of sentences, which are cleaned (section 3.1). For each image, the
nearest of K clusters of sentences is searched for the k most similar ones, for K + N/K similarities in place of N
(section 3.2). The first of them is fused with a caption and with tags of the image into a synthetic text (section 3.3).
Images whose synthetic text fits too little or, as text in an image does, too well are left out, and clusters of images
are capped (section 3.4). CLIP is trained on the result, with one of an image's texts sampled at each step:
`polymodal train clip --data pairs`.

Differs from the paper in: encoder, captioner, perplexity model and merging model are those that the user names, and
stand-ins without (n-gram models; tags by zero-shot classification in place of RAM++; a template); thresholds that
belong to the paper's models are quantiles by default; CAT's semantic parse is approximated by function words, for
English, as is the template; in more than 20,000 images or sentences, near-duplicates are looked for within clusters;
K-means does not quantize; pools are in the memory of one machine, and steps run there, not on Daft. Left out:
fine-tuning the merging model on answers of GPT-4, and the analyses of topics, entities and scaling.

The claim's documents hold emoji, sentences of three templates, four fifths of which are in another document than their
image (a fraction of ours: with fewer, the nearest sentence of an image's own document would often be a true one), and
real definitions, so that no knowledge is in true sentences that is not in names and keywords. Its encoder is
trained on names and keywords of the same images, as encoders that had seen other drawings alone retrieved a true
sentence for 2 to 4 % of the images: no test concept is among them, but the result is that of an encoder that has seen
the images that it pairs. At most 1.07 times the mean number of images are kept of a cluster, as in RealSyn100M.

Terms: entropy = UnigramModel.entropy, perplexity = perplexity_filter.in_interval, semantic deduplication =
unique_rows, hierarchical retrieval = ClusterIndex, semantic balance sampling = cluster_capped, text generation
= merged_texts.template_merger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float

from polymodal.constraints import (
    NonNegativeFloat,
    NonNegativeInt,
    NonNegativeRange,
    PositiveFloat,
    PositiveInt,
    TailFraction,
    UnitRange,
)
from polymodal.curation.cluster_cap import cluster_capped
from polymodal.curation.document_pairs import NOT_KEPT, DocumentPools, Kept, Paired, PairingModels
from polymodal.curation.hierarchical_retrieval import (
    ClusterIndex,
    Retrieved,
    cluster_centers,
    cluster_number,
    flat_search,
    nearest_center,
    recall_of_flat_search,
)
from polymodal.curation.merged_texts import mine_tags, top_tags
from polymodal.curation.perplexity_filter import cross_fitted_perplexities, in_interval
from polymodal.curation.semantic_duplicates import centered, near_any, unique_rows
from polymodal.curation.sentences import SentencePool, SentenceRules, UnigramModel, first_of_each
from polymodal.types import Paper

paper = Paper(
    slug="realsyn",
    title="RealSyn: An Effective and Scalable Multimodal Interleaved Document Transformation Paradigm",
    year=2025,
    arxiv="2502.12513",
    modalities=("image", "text"),
)


@dataclass(frozen=True)
class Recipe:
    language: str = "en"
    """Language code that the texts of the corpus get."""
    min_side: PositiveInt = 100
    """Minimum length of an image's shorter side in pixels (section 3.1)."""
    max_aspect_ratio: PositiveFloat = 3.0
    """Maximum ratio of an image's longer to its shorter side (section 3.1)."""
    dedup_similarity: PositiveFloat = 0.97
    """Cosine similarity at which images, and sentences, are linked as near-duplicates; above 1, none are. The paper
    names no value."""
    center_embeddings: bool = True
    """Subtract the mean embedding before near-duplicates are linked: small encoders put all vectors into a narrow
    cone, where everything is similar; the paper's does not."""
    min_words: PositiveInt = 3
    """Minimum number of words of a sentence (section 3.1)."""
    max_words: PositiveInt = 81
    """Maximum number of words of a sentence (section 3.1)."""
    min_complexity: NonNegativeInt = 0
    """Minimum number of relations of a word of an English sentence (CAT); 1 in the paper, 0 asks for none."""
    require_action: bool = False
    """Keep English sentences with a verb form alone (CAT), as the paper does."""
    min_entropy: NonNegativeFloat = 0.3
    """Minimum of -sum p(x_i) log p(x_i) over the words of a sentence, with p in all sentences (section 3.1)."""
    perplexity: NonNegativeRange = (30.0, 200.0)
    """Interval of perplexities that are kept, of GPT-2 large (section 3.1)."""
    perplexity_quantile: TailFraction = 0.02
    """Fraction of the sentences with the lowest, and with the highest perplexity that is left out, in place of the
    interval, for other language models; 0 takes the interval."""
    num_text_clusters: NonNegativeInt = 0
    """Number K of clusters of sentences (section 3.2); 0: the square root of the number of sentences N."""
    num_probed: PositiveInt = 1
    """Number of nearest clusters that are searched for an image; 1 in the paper."""
    retrieval: Literal["hierarchical", "flat"] = "hierarchical"
    """Search of the nearest clusters of sentences, or of all sentences."""
    num_retrieved: PositiveInt = 3
    """Number k of real sentences of an image (section 3.2)."""
    num_tags: NonNegativeInt = 3
    """Number of tags of an image that its synthetic text gets."""
    tag_vocabulary: NonNegativeInt = 400
    """Number of tags to choose from: those that are given, and words of the sentences (section 3.3)."""
    similarity: UnitRange = (0.51, 0.61)
    """Interval of cosine similarities of image and synthetic text that are kept, of EVA02-CLIP-E (section 3.4)."""
    similarity_quantile: TailFraction = 0.05
    """Fraction of the images with the lowest, and with the highest similarity that is left out, in place of the
    interval, for other encoders; 0 takes the interval."""
    num_image_clusters: NonNegativeInt = 0
    """Number of clusters of images (section 3.4); 0: the square root of the number of images."""
    cluster_cap: NonNegativeInt = 20
    """Maximum number of images of a cluster: 20, 35 and 180 for 15, 30 and 100 million pairs, of clusters of 168 images
    on average; 0: no maximum."""
    seed: NonNegativeInt = 0
    """Random seed of clusters and of the images that are kept of them."""

    @classmethod
    def paper(cls) -> Recipe:
        """RealSyn15M, with the paper's models: thresholds as they are, 2 million and 1 million clusters."""
        return cls(
            center_embeddings=False,
            min_complexity=1,
            require_action=True,
            perplexity_quantile=0.0,
            num_text_clusters=2_000_000,
            tag_vocabulary=8000,
            similarity_quantile=0.0,
            num_image_clusters=1_000_000,
        )

    def rejects(self, width: int, height: int) -> str | None:
        """Return why an image is left out by its size, or None."""
        if min(width, height) < self.min_side:
            return "too small"
        return "aspect ratio" if max(width, height) > self.max_aspect_ratio * min(width, height) else None

    def clean_sentences(self, sentences: Sequence[str], models: PairingModels, kept: Kept = NOT_KEPT) -> SentencePool:
        """Filter and deduplicate the pool of sentences (section 3.1)."""
        pool = SentencePool([*sentences])
        pool.apply(SentenceRules(self.min_words, self.max_words, self.min_complexity, self.require_action))
        unigrams = UnigramModel.fit(pool.texts)
        pool.keep("entropy", [unigrams.entropy(sentence) >= self.min_entropy for sentence in pool.texts])
        given = kept.shards("perplexity", pool.texts, models.perplexity) if models.perplexity else None
        values = np.asarray(cross_fitted_perplexities(pool.texts) if given is None else given)
        pool.keep("perplexity", in_interval(values, *self.perplexity, self.perplexity_quantile))
        first = {*first_of_each(pool.texts, models.excluded)}
        pool.keep("repeated", [place in first for place in range(len(pool.texts))])
        vectors = kept.embed("sentences", pool.texts, models.embed_texts)
        if pool.texts and models.excluded:
            test = kept.embed("excluded", models.excluded, models.embed_texts)
            sentence_vectors, test_vectors = self._centered(vectors, test)
            apart = ~near_any(sentence_vectors, test_vectors, self.dedup_similarity)
            vectors = vectors[apart]
            pool.keep("in evaluation", apart)
        unique = self._unique(vectors)
        pool.keep("near-duplicate", unique)
        return replace(pool, embeddings=vectors[unique])

    def retrieve(
        self, images: Float[np.ndarray, "images dim"], sentences: Float[np.ndarray, "sentences dim"]
    ) -> Retrieved:
        """Return the k most similar sentences of each image (section 3.2)."""
        if self.retrieval == "flat":
            return flat_search(images, sentences, self.num_retrieved)
        index = ClusterIndex.fit(sentences, self.num_text_clusters, self.seed)
        return index.search(images, self.num_retrieved, self.num_probed)

    def pair_documents(
        self, pools: DocumentPools, models: PairingModels, kept: Kept = NOT_KEPT, balance: bool = True
    ) -> Paired:
        """Clean both pools, retrieve real sentences, make synthetic texts, and balance the images."""
        vectors = kept.embed(
            "images", pools.images, lambda images: models.embed_images([pools.data(image) for image in images])
        )
        unique = np.flatnonzero(self._unique(vectors))
        vectors = vectors[unique]
        pool = self.clean_sentences([sentence.text for sentence in pools.sentences], models, kept)
        counts: dict[str, float] = {
            "images": len(pools.images),
            "images without near-duplicates": len(unique),
            "sentences": len(pools.sentences),
            **{f"sentences left out: {reason}": n for reason, n in pool.rejected.items()},
            "clean sentences": len(pool.texts),
        }
        if not pool.texts:
            return Paired([], [], [], np.zeros(0, int), counts)
        retrieved = self.retrieve(vectors, pool.embeddings)
        real = [[pool.texts[row] for row in rows if row >= 0] for rows in retrieved.rows.tolist()]
        names = mine_tags(pool.texts, self.tag_vocabulary, models.tags, stop_words=self.language == "en")
        tags = top_tags(vectors, kept.embed("tags", names, models.embed_texts), names, self.num_tags)
        parts = [(pools.images[row], texts[0], names) for row, texts, names in zip(unique, real, tags, strict=True)]
        synthetic = kept.texts("synthetic", parts, lambda some: models.merged(pools, some))
        fit = np.einsum("id,id->i", vectors, kept.embed("synthetic", synthetic, models.embed_texts))
        # Above the interval: text that can be read in the image; below: texts that do not fit.
        inside = np.flatnonzero(in_interval(fit, *self.similarity, self.similarity_quantile))
        counts |= {
            "similarities an image": float(retrieved.computed.mean()),
            "similarities an image, flat": len(pool.texts),
            "recall of flat search": recall_of_flat_search(retrieved, vectors, pool.embeddings),
            "images that share their first sentence": 1 - len({one[0] for one in real}) / max(len(real), 1),
            "mean similarity of synthetic texts": float(fit.mean()),
            "images inside the similarity interval": len(inside),
        }
        balanced = self.balance(vectors[inside]) if balance and self.cluster_cap else np.arange(len(inside))
        counts["pairs"] = len(balanced)
        return Paired(
            [int(unique[place]) for place in inside],
            [real[place] for place in inside],
            [synthetic[place] for place in inside],
            balanced,
            counts,
        )

    def balance(self, images: Float[np.ndarray, "images dim"]) -> np.ndarray:
        """Return the images that are kept of each cluster (section 3.4)."""
        if not len(images):
            return np.zeros(0, int)
        centers = cluster_centers(images, cluster_number(len(images), self.num_image_clusters), self.seed)
        return cluster_capped(nearest_center(images, centers), self.cluster_cap, self.seed)

    def _unique(self, vectors: Float[np.ndarray, "rows dim"]) -> np.ndarray:
        """Return the first of near-duplicates."""
        return unique_rows(self._centered(vectors)[0], self.dedup_similarity, self.seed)

    def _centered(self, vectors: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
        return centered(vectors, *others) if self.center_embeddings else [vectors, *others]
