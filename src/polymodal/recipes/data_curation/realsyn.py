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
English; K-means does not quantize; pools are in the memory of one machine. Left out: fine-tuning the merging model on
answers of GPT-4, and the analyses of topics, entities and scaling.

Terms: entropy = UnigramModel.entropy, perplexity = perplexity_filter.in_interval, semantic deduplication =
duplicate_components, hierarchical retrieval = ClusterIndex, semantic balance sampling = cluster_capped, text generation
= merged_texts.template_merger.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from polymodal.constraints import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, UnitInterval
from polymodal.curation.cluster_cap import cluster_capped
from polymodal.curation.document_pairs import NOT_KEPT, DocumentPools, Kept, Paired, PairingModels
from polymodal.curation.hierarchical_retrieval import (
    ClusterIndex,
    Retrieved,
    cluster_centers,
    cluster_number,
    flat_search,
    nearest_center,
    normalized,
    retrieval_recall,
)
from polymodal.curation.merged_texts import mine_tags, top_tags
from polymodal.curation.perplexity_filter import cross_fitted_perplexities, in_interval
from polymodal.curation.semantic_duplicates import duplicate_components, first_of_components, near_any
from polymodal.curation.sentences import SentenceRules, UnigramModel, first_of_each
from polymodal.types import Paper

paper = Paper(
    slug="realsyn",
    title="RealSyn: An Effective and Scalable Multimodal Interleaved Document Transformation Paradigm",
    year=2025,
    arxiv="2502.12513",
    modalities=("image", "text"),
)
RECALL_IMAGES = 500  # images whose retrieval is compared with flat search
COMPARED = 20_000  # rows from which near-duplicates are looked for within clusters alone


class SentencePool(NamedTuple):
    """Clean sentences with their embeddings. rejected: sentences that were left out, by reason."""

    texts: list[str]
    embeddings: Float[np.ndarray, "sentences dim"]
    rejected: Counter[str]


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
    perplexity: tuple[NonNegativeFloat, NonNegativeFloat] = (30.0, 200.0)
    """Interval of perplexities that are kept, of GPT-2 large (section 3.1)."""
    perplexity_quantile: UnitInterval = 0.02
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
    similarity: tuple[UnitInterval, UnitInterval] = (0.51, 0.61)
    """Interval of cosine similarities of image and synthetic text that are kept, of EVA02-CLIP-E (section 3.4)."""
    similarity_quantile: UnitInterval = 0.05
    """Fraction of the images with the lowest, and with the highest similarity that is left out, in place of the
    interval, for other encoders; 0 takes the interval."""
    num_image_clusters: NonNegativeInt = 0
    """Number of clusters of images (section 3.4); 0: the square root of the number of images."""
    cluster_cap: NonNegativeInt = 20
    """Maximum number of images of a cluster: 20, 35 and 180 for 15, 30 and 100 million pairs; 0: no maximum."""
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
        rejected, left = Counter[str](), list[str]()
        rules = SentenceRules(self.min_words, self.max_words, self.min_complexity, self.require_action)
        for sentence in sentences:
            if reason := rules.why_not(sentence):
                rejected[reason] += 1
            else:
                left.append(sentence)

        def reduce(reason: str, keeps: Sequence[bool] | np.ndarray) -> None:
            nonlocal left
            rejected[reason] += len(left) - int(np.sum(keeps))
            left = [sentence for sentence, keep in zip(left, keeps, strict=True) if keep]

        unigrams = UnigramModel.fit(left)
        reduce("entropy", [unigrams.entropy(sentence) >= self.min_entropy for sentence in left])
        perplexities = kept.shards("perplexity", left, models.perplexity) if models.perplexity else None
        values = np.asarray(cross_fitted_perplexities(left)) if perplexities is None else perplexities
        reduce("perplexity", in_interval(values, *self.perplexity, self.perplexity_quantile))
        first = {*first_of_each(left, models.excluded)}
        reduce("repeated", [place in first for place in range(len(left))])
        vectors = kept.embed("sentences", left, models.embed_texts)
        if left and models.excluded:
            test = kept.embed("excluded", models.excluded, models.embed_texts)
            centered, centered_test = self._centered(vectors, test)
            apart = ~near_any(centered, centered_test, self.dedup_similarity)
            vectors = vectors[apart]
            reduce("in evaluation", apart)
        unique = self._unique(vectors)
        reduce("near-duplicate", unique)
        return SentencePool(left, vectors[unique], rejected)

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

        def merged(places: Sequence[int]) -> list[str]:
            data = [pools.data(pools.images[unique[place]]) for place in places] if models.captions else []
            captions = models.captions(data) if models.captions else [""] * len(places)
            return [
                models.merge(real[place][0], caption, tags[place])
                for place, caption in zip(places, captions, strict=True)
            ]

        synthetic = kept.texts("synthetic", range(len(unique)), merged)
        fit = np.einsum("id,id->i", vectors, kept.embed("synthetic", synthetic, models.embed_texts))
        # Above the interval: text that can be read in the image; below: texts that do not fit.
        inside = np.flatnonzero(in_interval(fit, *self.similarity, self.similarity_quantile))
        sample = slice(None, None, max(len(vectors) // RECALL_IMAGES, 1))
        exact = flat_search(vectors[sample], pool.embeddings, self.num_retrieved)
        counts |= {
            "similarities an image": float(retrieved.computed.mean()),
            "similarities an image, flat": len(pool.texts),
            "recall of flat search": retrieval_recall(Retrieved(*(part[sample] for part in retrieved)), exact),
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
        """Return the first of near-duplicates; in large sets, they are looked for within clusters."""
        within = None
        if len(vectors) > COMPARED:
            within = nearest_center(vectors, cluster_centers(vectors, cluster_number(len(vectors), 0), self.seed))
        (centered,) = self._centered(vectors)
        return first_of_components(duplicate_components(centered, self.dedup_similarity, within))

    def _centered(self, vectors: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
        """Return vectors without the mean of the first ones, L2-normalized, where they are to be centered."""
        if not self.center_embeddings or len(vectors) < 2:
            return [vectors, *others]
        return [normalized(some - vectors.mean(axis=0)) for some in (vectors, *others)]
