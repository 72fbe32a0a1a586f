"""Language models of transformers for curation: perplexity, and merging texts by instruction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from polymodal.errors import UserError, needs

MERGE_INSTRUCTION = """You get a sentence from a web page, a caption and tags of one image. Write one fluent sentence
that describes the image. Keep names, places and facts of the web sentence that fit the image, and its style. Correct it
by caption and tags. Do not put the three after each other, add nothing that none of them says, and write nothing else.
"""


def load_language_model(name: str, used_for: str) -> tuple[Any, Any]:
    """Return tokenizer and causal language model of a name on the hub or a folder. used_for: what errors begin with.

    Raises UserError without transformers, and when the model cannot be read.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise needs("transformers", "hub", used_for) from error
    name = name.removeprefix("hf:")
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=False, use_safetensors=True)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"'{name}' is no causal language model that can be read: {str(error).splitlines()[0]}"
        ) from error
    return tokenizer, model.eval()


class CausalPerplexity:
    """Perplexity exp(-(1/t) sum_i log p(x_i | x_<i)) of each text by a causal language model, such as GPT-2 large.

    The first token has no context, and counts only where the tokenizer begins texts with a start token.
    """

    def __init__(self, name: str, max_tokens: int = 512):
        self.tokenizer, self.model = load_language_model(name, f"--perplexity-model {name}")
        self.max_tokens = max_tokens

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> list[float]:
        """Return infinity for texts of fewer than two tokens."""
        return [self._of(text) for text in texts]

    def _of(self, text: str) -> float:
        ids = self.tokenizer(text, return_tensors="pt")["input_ids"][:, : self.max_tokens]
        if ids.shape[1] < 2:
            return math.inf
        logs = self.model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
        return float(torch.exp(-logs.gather(1, ids[0, 1:, None]).mean()))


class ChatModelMerger:
    """A chat model that fuses sentence, caption and tags, decoded greedily (RealSyn, section 3.3)."""

    def __init__(self, name: str, max_new_tokens: int = 77):
        """Raises UserError for a model without a chat template."""
        self.tokenizer, self.model = load_language_model(name, f"--merger {name}")
        if not self.tokenizer.chat_template:
            raise UserError(f"'{name}' has no chat template; name a language model that was tuned for chats.")
        self.max_new_tokens = max_new_tokens

    def __call__(self, sentence: str, caption: str, tags: Sequence[str]) -> str:
        request = f"Sentence: {sentence}\nCaption: {caption}\nTags: {', '.join(tags)}"
        messages = [{"role": "system", "content": MERGE_INSTRUCTION}, {"role": "user", "content": request}]
        inputs: Any = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        tokens = self.model.generate(**inputs, do_sample=False, max_new_tokens=self.max_new_tokens)
        text = self.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return " ".join(str(text).split()) or sentence
