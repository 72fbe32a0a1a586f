"""Causal language models of transformers, and chats with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from polymodal.errors import UserError, needs, one_line


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
        raise UserError(f"'{name}' is no causal language model that can be read ({one_line(error)}).") from error
    return tokenizer, model.eval()


class ChatModel:
    """A language model that was tuned for chats, decoded greedily."""

    def __init__(self, name: str, used_for: str, max_new_tokens: int):
        """name, used_for: see `load_language_model`. Raises UserError for a model without a chat template."""
        self.tokenizer, self.model = load_language_model(name, used_for)
        if not self.tokenizer.chat_template:
            raise UserError(f"'{name}' has no chat template; name a language model that was tuned for chats.")
        self.max_new_tokens = max_new_tokens

    def answer(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return the answer to a conversation. messages: role (system, user, assistant) and content of each."""
        inputs: Any = self.tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        tokens = self.model.generate(**inputs, do_sample=False, max_new_tokens=self.max_new_tokens)
        return str(self.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
