"""Writing with kept keys and values, against transformers' `generate` with the same weights.

A Llama of 6 blocks x 384 with random weights writes 64 tokens after prompts of 32, greedily and with 4 beams, for
batches of 1 and 16. Both write in turn, in one process, on the same prompts; what they write is compared first. The
end mark is one that is never written, so that both write all tokens.

    pip install "transformers>=5" && python benchmarks/generate.py
"""

from __future__ import annotations

import statistics
import tempfile

import torch
import transformers

from in_turn import median_ratio, seconds_in_turn
from polymodal.encoders.language_model import LanguageModel
from polymodal.encoders.pretrained_language_model import read_language_model
from polymodal.layers.decoding import Decoding

VOCABULARY, PROMPT, WRITTEN, ROUNDS = 4000, 32, 64, 5
NEVER = VOCABULARY - 1


def models() -> tuple[transformers.LlamaForCausalLM, LanguageModel]:
    """The same weights in both."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
    )
    theirs = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        theirs.lm_head.weight.mul_(5)  # wide enough that a rounding error does not choose another word
        theirs.lm_head.weight[NEVER] = 0
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = read_language_model(folder).build(VOCABULARY).eval()
        ours.load_pretrained()
    return theirs, ours


def main() -> None:
    theirs, ours = models()
    theirs.generation_config.eos_token_id = None
    for beams in (1, 4):
        for batch in (1, 16):
            ids = torch.randint(VOCABULARY - 1, (batch, PROMPT))
            position, document = torch.arange(PROMPT).expand_as(ids), torch.ones_like(ids)
            decoding = Decoding(max_new_tokens=WRITTEN, num_beams=beams)

            def in_polymodal(
                ids: torch.Tensor = ids,
                position: torch.Tensor = position,
                document: torch.Tensor = document,
                decoding: Decoding = decoding,
            ) -> list[list[int]]:
                with torch.inference_mode():
                    return ours.generate(ours.embedding(ids), position, document, None, NEVER, decoding)

            def in_transformers(ids: torch.Tensor = ids, beams: int = beams) -> list[list[int]]:
                named = {"max_new_tokens": WRITTEN, "do_sample": False, "num_beams": beams, "pad_token_id": NEVER}
                return theirs.generate(ids, attention_mask=torch.ones_like(ids), **named)[:, PROMPT:].tolist()

            same = in_polymodal() == in_transformers()
            times = seconds_in_turn({"transformers": in_transformers, "polymodal": in_polymodal}, ROUNDS)
            ratio = median_ratio(times["transformers"], times["polymodal"])
            rates = [batch * WRITTEN / statistics.median(times[label]) for label in ("polymodal", "transformers")]
            print(
                f"{beams} beam{'s' if beams > 1 else ' '}, batch {batch:>2}: {rates[0]:7,.0f} tokens/s against "
                f"{rates[1]:7,.0f} ({ratio:.2f} x); the same texts: {same}"
            )


if __name__ == "__main__":
    main()
