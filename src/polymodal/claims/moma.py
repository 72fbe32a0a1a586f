"""The claims of `moma`, for `polymodal reproduce moma`."""

from __future__ import annotations

from dataclasses import replace

from polymodal.claim import Claim
from polymodal.encoders.language_model import LanguageModelConfig
from polymodal.recipes.any_to_any.moma import Recipe
from polymodal.types import Budget

MAIN, ROUTERS = 0.9, 0.1
TUNING = {"learning_rate": (2.5e-3, 5e-3, 1e-2)}
_decoder = LanguageModelConfig(
    vocab_size=1000, width=64, depth=4, num_heads=4, num_kv_heads=4, mlp_dim=176, tie_word_embeddings=False
)
# A third of the tokens are text: two text and four image experts get about as many each, as the paper arranges its mix.
_moma = Recipe(
    batch_size=16,
    language_model=_decoder,
    num_text_experts=2,
    num_image_experts=4,
    stage_fractions=(0.0, MAIN, ROUTERS),
)
_tokenizer = replace(_moma, batch_size=32, stage_fractions=(1.0, 0.0, 0.0))
_metrics = (
    "test/all/nll_per_token",
    "test/image/nll_per_token",
    "test/text/nll_per_token",
    "test/all_by_whole_batch/nll_per_token",
    "test/image_by_whole_batch/nll_per_token",
    "test/text_by_whole_batch/nll_per_token",
    "test_twitter/image/nll_per_token",
    "test_twitter/text/nll_per_token",
)
claim = Claim(
    sentence="Experts that choose among the tokens of their own modality reach a lower loss than a dense model of as "
    "many operations a token, over all tokens and on images.",
    baseline=replace(_moma, modality_aware=False, num_text_experts=1, num_image_experts=0),
    treatment=_moma,
    further={
        "1t1i": replace(_moma, num_text_experts=1, num_image_experts=1),
        "moe_6x": replace(_moma, modality_aware=False),
        # Four of seven blocks for a quarter of the tokens: the operations of four blocks for all.
        "MoMa + MoD": replace(_moma, mod_capacity=0.25, language_model=replace(_decoder, depth=7)),
    },
    start=_tokenizer,
    start_budget=Budget(steps=200),
    corpus="scenes",
    budget=Budget(steps=300),
    seeds=5,
    # Arms with a single expert have no stage of routers, which trains no weight that another arm trains: the decoder
    # is trained for as many steps in all arms.
    budget_fractions={"baseline": MAIN, "1t1i": MAIN},
    deciding=("test/all/nll_per_token", "test/image/nll_per_token"),
    metrics=_metrics,
    tuning=TUNING,
    tuning_fraction=0.5,
    tuned_like={"1t1i": "treatment", "moe_6x": "treatment", "MoMa + MoD": "treatment"},
    paper_results="at 1.4B, the loss of a dense model with 3.7 times fewer operations (text 2.6, image 5.2) with four "
    "experts each; 3 times with eight mixed ones; 4.2 times with MoD, which loses the gain with auxiliary routers",
)
upcycling = Claim(
    sentence="Experts that begin as copies of one that was trained first reach a lower loss than experts from scratch.",
    baseline=_moma,
    treatment=replace(_moma, upcycling_fraction=0.15),
    further={
        "without noise": replace(_moma, upcycling_fraction=0.15, router_noise=False),
        "norms before attention and MLP": replace(_moma, upcycling_fraction=0.15, post_norm=False),
    },
    start=_tokenizer,
    start_budget=Budget(steps=200),
    corpus="scenes",
    budget=Budget(steps=350),
    seeds=5,
    metrics=_metrics,
    tuning=TUNING,
    tuning_fraction=0.5,
    tuned_like={"without noise": "treatment", "norms before attention and MLP": "treatment"},
    paper_results="the loss of experts from scratch with 1.2 times fewer operations after 10,000 steps of one expert",
)
