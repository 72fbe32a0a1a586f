"""Zero-shot classifier of clips and images by the embeddings of prompts (CLIP, Radford et al. 2021, section 3.1.4).

ALPRO's prompter (Li et al. 2022, section 3.3) is one whose classes are entities.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from polymodal.data.video_text import VideoTextBatch
from polymodal.encoders.text import TextEncoderConfig
from polymodal.encoders.video import VideoEncoderConfig
from polymodal.modalities.text import Tokens
from polymodal.models.align_before_fuse import Clips, VideoTextEncoders
from polymodal.objectives.contrastive import info_nce


class PromptedClassifier(VideoTextEncoders):
    """Encoders, and the embeddings of prompts, which are computed at the first call, from trained weights.

    Until then, train the encoders with a contrastive loss; afterwards they are frozen.
    """

    prompt_embeddings: Tensor
    prompts_embedded: Tensor

    def __init__(
        self,
        video: VideoEncoderConfig,
        text: TextEncoderConfig,
        embed_dim: int,
        vocab_size: int,
        prompts: Sequence[Sequence[Tokens]],
    ):
        """prompts: for clips and for images, the prompts of each class, whose embeddings are averaged."""
        super().__init__(video, text, embed_dim, vocab_size)
        self.prompts = prompts
        self.register_buffer("prompt_embeddings", torch.zeros(len(prompts), len(prompts[0]), embed_dim))
        self.register_buffer("prompts_embedded", torch.tensor(False))

    def contrast(self, batch: VideoTextBatch) -> Float[Tensor, ""]:
        """Return the loss that trains the encoders: InfoNCE, in which equal texts are no negatives of each other."""
        video, text = self.embed(batch).values()
        return info_nce(video, text, self.logit_scale(), labels=batch["group"])

    @torch.no_grad()
    def probabilities(self, video: Clips) -> Float[Tensor, "batch classes"]:
        """Return the probabilities of classes; for clips of one frame, by the prompts of images."""
        self.eval()
        if not self.prompts_embedded:
            for embeddings, prompts in zip(self.prompt_embeddings, self.prompts, strict=True):
                ensembles = [self.encode_text(templates.to(embeddings.device)).mean(0) for templates in prompts]
                embeddings.copy_(torch.stack(ensembles))  # not normalized again (ALPRO, released code)
            self.prompts_embedded.fill_(True)
        embeddings = self.prompt_embeddings[int(video.shape[1] == 1)]
        return (self.logit_scale() * self.encode_video(video) @ embeddings.T).softmax(1)
