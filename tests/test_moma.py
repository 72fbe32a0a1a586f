"""MoMa: experts that choose tokens, routers that predict it, blocks that some tokens pass by, images from words."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from polymodal.corpora import About, Corpus
from polymodal.corpora.saved import save_corpus
from polymodal.data.conversation import IMAGE, IMAGE_START
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor, fit_processor
from polymodal.data.sequence import TEXT, pad_sequences
from polymodal.encoders.image_tokenizer import ImageTokenizerConfig
from polymodal.encoders.language_model import LanguageModelConfig
from polymodal.evaluation.capabilities import CanGenerateText
from polymodal.evaluation.evaluate import evaluate, validation
from polymodal.evaluation.tasks.image_generation import CanGenerateImages
from polymodal.evaluation.tasks.token_likelihood import CanScoreTokens, document_scores
from polymodal.layers.decoder import Decoder, ModalityExperts, PostSubLayerNormBlock, SwiGLU
from polymodal.layers.decoding import Decoding
from polymodal.layers.expert_choice import AuxiliaryRouter, ExpertChoice, gumbel_sigmoid
from polymodal.layers.mixture_of_depths import MixtureOfDepths
from polymodal.modalities import Interleaved, Text
from polymodal.modalities.text import stored_texts
from polymodal.recipes.any_to_any import moma
from polymodal.rng import ExampleRNG
from polymodal.training import Run, load_run, train
from polymodal.training.optimizer import OptimizerConfig
from polymodal.training.runtime import RuntimeConfig
from polymodal.training.stages import active_stages
from polymodal.types import Budget

QUIET = RuntimeConfig(logger="none")
SMALL = LanguageModelConfig(
    vocab_size=400, context_length=120, width=32, depth=2, num_heads=4, num_kv_heads=4, mlp_dim=48
)
TINY = moma.Recipe(
    language_model=SMALL,
    tokenizer=ImageTokenizerConfig(codebook_size=32, codebook_dim=4, width=16),
    tile_size=32,
    batch_size=8,
    optimizer=OptimizerConfig(learning_rate=1e-2),
    stage_fractions=(0.3, 0.5, 0.2),
)


@pytest.fixture(scope="module")
def few_scenes(scenes: Corpus) -> Corpus:
    few = {name: rows[:64] if name == "train" else rows[:12] for name, rows in scenes.splits.items()}
    return scenes.with_splits(few)


@pytest.fixture(scope="module")
def processor(few_scenes: Corpus) -> Processor:
    return fit_processor(TINY, few_scenes)


@pytest.fixture(scope="module")
def run(few_scenes: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(TINY, few_scenes, Budget(steps=60), out=tmp_path_factory.mktemp("moma") / "run", runtime=QUIET)


def method(processor: Processor, **changes: object) -> moma.MoMa:
    torch.manual_seed(0)
    return dataclasses.replace(TINY, **changes).build(processor)


def batch_of(processor: Processor, corpus: Corpus) -> dict:
    _, examples = Reader(corpus, processor).read_all(corpus.rows("train")[:8])
    return TINY.training_batch(examples, processor, ExampleRNG.of(0, 0, 8))


# Experts that choose


def tokens(count: int = 20, width: int = 8) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(0))


def test_every_expert_takes_its_share_and_each_token_the_sum_of_those_that_took_it() -> None:
    torch.manual_seed(0)
    experts, x = ExpertChoice(8, 16, 4).eval(), tokens()
    scores = experts.router(x).sigmoid()
    expected = torch.zeros_like(x)
    for number in range(4):
        for token in scores[:, number].topk(5).indices.tolist():
            gate, up = (x[token] @ experts.gate_up[number]).chunk(2)
            done = (torch.nn.functional.silu(gate) * up) @ experts.down[number]
            expected[token] += scores[token, number] * done
    torch.testing.assert_close(experts(x), expected)
    chosen_by_none = (expected == 0).all(1)
    assert chosen_by_none.any(), "some tokens are left out"
    assert len(experts(tokens(7))) == 7
    assert experts(tokens(0)).shape == (0, 8)


def test_alone_the_first_expert_is_a_plain_mlp_and_upcycled_ones_are_its_copies() -> None:
    torch.manual_seed(0)
    experts, x = ExpertChoice(8, 16, 3).eval(), tokens()
    experts.single_expert.fill_(True)
    plain = SwiGLU(8, 16)
    plain.gate_up.weight.data, plain.down.weight.data = experts.gate_up[0].T.clone(), experts.down[0].T.clone()
    torch.testing.assert_close(experts(x), plain(x))
    experts.upcycle()
    torch.nn.init.zeros_(experts.router.weight)  # every score is a half, and every expert takes the same third
    done = experts(x)
    taken = done.abs().sum(1) > 0
    torch.testing.assert_close(done[taken], 3 * plain(x)[taken])


def test_noise_is_the_difference_of_two_gumbel_samples_and_of_training_alone() -> None:
    torch.manual_seed(0)
    logits = torch.full((40_000,), 0.7)
    noisy = gumbel_sigmoid(logits).logit() - 0.7
    assert noisy.mean().abs() < 0.03
    assert noisy.std().item() == pytest.approx(math.pi / math.sqrt(3), rel=0.03), "logistic"
    experts = ExpertChoice(8, 16, 4, noise=True)
    x = tokens()
    assert not torch.equal(experts(x), experts(x))
    experts.eval()
    assert torch.equal(experts(x), experts(x))


def test_scores_learn_through_what_they_weigh() -> None:
    experts = ExpertChoice(8, 16, 4)
    experts(tokens()).square().sum().backward()
    assert experts.router.weight.grad is not None
    assert experts.router.weight.grad.abs().sum() > 0


def test_an_auxiliary_router_learns_the_choice_and_nothing_else_does() -> None:
    torch.manual_seed(0)
    experts, x = ExpertChoice(8, 16, 4), tokens(256)
    for name, parameter in experts.named_parameters():
        parameter.requires_grad_(name.startswith("auxiliary."))
    optimizer = torch.optim.AdamW(experts.auxiliary.parameters(), 3e-2)
    losses = []
    for _ in range(150):
        experts(x)
        loss = experts.auxiliary_loss
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(2), abs=0.1)
    assert losses[-1] < 0.35
    assert experts.router.weight.grad is None
    experts.use_predictor.fill_(True)
    experts.eval()
    scores = experts.router(x).sigmoid()
    best = scores.topk(64, dim=0).indices
    right = (experts.auxiliary(x) > 0) == torch.zeros(256, 4, dtype=torch.bool).scatter(0, best, True)
    assert right.float().mean() > 0.85
    assert AuxiliaryRouter(8, 4).requires_grad_(False).loss(x, right) is None


def test_a_foretold_choice_asks_no_other_token() -> None:
    torch.manual_seed(0)
    experts, x = ExpertChoice(8, 16, 4).eval(), tokens()
    experts.use_predictor.fill_(True)
    with torch.no_grad():
        together = experts(x)
        alone = torch.cat([experts(one[None]) for one in x])
        torch.testing.assert_close(together, alone)
        chosen_among_few = experts(x[:10])
    torch.testing.assert_close(chosen_among_few, together[:10])


# Blocks that some tokens pass by


def decoder(share: float = 0.5) -> Decoder:
    torch.manual_seed(0)
    stack = Decoder(16, 2, 4, 4, lambda: ModalityExperts({TEXT: SwiGLU(16, 24)}), block=PostSubLayerNormBlock)
    stack.blocks[0] = MixtureOfDepths(stack.blocks[0], 16, share)
    return stack.eval()


def rows(batch: int = 3, length: int = 10) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.randn(batch, length, 16, generator=torch.Generator().manual_seed(1))
    return x, torch.arange(length).expand(batch, -1), torch.ones(batch, length, dtype=torch.long)


def test_where_all_go_in_the_block_is_weighed_by_the_score() -> None:
    stack, (x, position, document) = decoder(share=1.0), rows()
    deep = stack.blocks[0]
    expected = []
    deep.block.register_forward_hook(lambda _, given, found: expected.append((given[0], found)))
    found = {}
    deep.register_forward_hook(lambda _, given, out: found.update(x=given[0], y=out))
    stack(x, position, document)
    given, done = expected[0]
    torch.testing.assert_close(given, x)
    torch.testing.assert_close(found["y"], x + deep.router(x).sigmoid() * (done - x))


def test_those_left_out_stay_as_they_are_and_are_not_computed() -> None:
    stack, (x, position, document) = decoder(share=0.25), rows()
    deep = stack.blocks[0]
    places = []
    deep.block.register_forward_hook(lambda _, given, __: places.append(given[0].shape[1]))
    found = {}
    deep.register_forward_hook(lambda _, given, out: found.update(y=out))
    stack(x, position, document)
    changed = (found["y"] != x).any(2)
    best = deep.router(x).flatten().topk(math.ceil(0.25 * 30)).indices
    assert set(changed.flatten().nonzero().squeeze(1).tolist()) == set(best.tolist())
    assert places == [int(changed.sum(1).max())], "no row is longer than the most that one has"


def test_word_by_word_is_as_at_once_where_the_choice_is_foretold() -> None:
    stack, (x, position, document) = decoder(), rows()
    deep = stack.blocks[0]
    deep.use_predictor.fill_(True)
    with torch.no_grad():
        chosen = deep.auxiliary(x.flatten(0, 1)) > 0
        assert 0 < int(chosen.sum()) < 30
        at_once = stack(x, position, document)
        cache = stack.cache(3, 10)
        first = stack(x[:, :4], position[:, :4], document[:, :4], None, cache)
        rest = [
            stack(x[:, n : n + 1], position[:, n : n + 1], document[:, n : n + 1], None, cache) for n in range(4, 10)
        ]
        torch.testing.assert_close(torch.cat([first, *rest], dim=1), at_once, atol=1e-5, rtol=1e-5)
        later = x.clone()
        later[:, 7:] += 1
        torch.testing.assert_close(stack(later, position, document)[:, :7], at_once[:, :7], atol=1e-5, rtol=1e-5)


def test_padding_never_goes_in() -> None:
    stack, (x, position, document) = decoder(share=0.5), rows()
    document = document.clone()
    document[:, 6:] = 0
    there = (document > 0).flatten().nonzero().squeeze(1)
    found = {}
    stack.blocks[0].register_forward_hook(lambda _, given, out: found.update(y=out))
    stack(x, position, document, [there])
    assert torch.equal(found["y"][:, 6:], x[:, 6:])
    assert int((found["y"] != x).any(2).sum()) == math.ceil(0.5 * len(there))


# The method


def test_a_document_holds_texts_and_whole_images_in_their_order(processor: Processor) -> None:
    image = np.full((32, 32, 3), 200, np.uint8)
    made = pad_sequences([processor.conversation.document(["a red cat", image, "and a dog"])])
    assert int(made.of(IMAGE).sum()) == processor.image.tokens_per_tile == 16
    assert made.predicted[0].tolist() == [False] + [True] * (made.ids.shape[1] - 1)
    assert processor.texts([made.ids[0][~made.of(IMAGE)[0]].tolist()])[0] == "a red cat and a dog"
    crowded = processor.conversation.document([image] * 9)
    assert sum(map(len, crowded)) <= processor.conversation.context
    assert sum(len(segment) for segment in crowded if segment.modality == IMAGE) % 16 == 0, "no image is cut"
    prompt = processor(text=["a red cat"])["prompts"]
    assert prompt.ids[0, -1].item() == processor.conversation.marks[IMAGE_START][-1]


def test_documents_of_a_corpus_are_read_in_their_order(few_scenes: Corpus, tmp_path: Path) -> None:
    """Pages of several texts and figures, as those of manuals, some without any."""
    pages = []
    for number in range(40):
        figures = [few_scenes.raw(row, "image") for row in few_scenes.rows("train")[number : number + number % 3]]
        texts = [piece("paragraph", f"page {number}"), piece("item", "of several")]
        pages.append(
            {
                "key": f"page {number}",
                "split": "train" if number < 24 else "validation" if number < 32 else "test",
                "document": [*texts, *(piece("figure", "", one) for one in figures), piece("paragraph", "the end")],
                "title": stored_texts(f"title {number}"),
            }
        )
    about = About("book", "forty pages", "ours", "scenes", ("interleaved", "text"))
    book = save_corpus(tmp_path / "book", about, {"document": Interleaved(), "title": Text()}, pages)
    run = train(TINY, book, Budget(steps=12), runtime=QUIET, validate=validation(book))
    parts = run.processor.load_example(book, 2)["document"]
    assert [part if isinstance(part, str) else part.shape for part in parts] == [
        "page 2\nof several",
        (32, 32, 3),
        (32, 32, 3),
        "the end",
    ]
    scores = {score.name: score for score in evaluate(run, book)}
    assert len(scores["test/text/nll_per_token"].clusters) == 8
    figures = scores["test/image/nll_per_token"]
    assert figures.weights.tolist() == [16 * (number % 3) for number in range(32, 40)]
    assert np.isfinite(figures.value)
    texts = TINY.image_batch([{"document": ["no figure"]}], run.processor, ExampleRNG.of(0, 0, 1))
    assert texts[IMAGE].shape == (1, 3, 32, 32)


def piece(kind: str, text: str, figure: bytes | None = None) -> dict:
    return {"kind": kind, "text": text, "figure": figure}


def test_losses_of_the_modalities_add_up_to_the_mean_over_tokens(processor: Processor, few_scenes: Corpus) -> None:
    model = method(processor, router_noise=False).train().requires_grad_(False)
    batch = batch_of(processor, few_scenes)
    losses = model.losses(batch)
    assert set(losses) == {TEXT, IMAGE}
    sums = model.token_nll(batch)
    everything = sums["all"][0].sum() / sums["all"][1].sum()
    torch.testing.assert_close(losses[TEXT] + losses[IMAGE], everything, atol=1e-4, rtol=1e-4)
    assert int(sums[IMAGE][1].sum()) == 8 * 16
    images = TINY.image_batch(
        Reader(few_scenes, processor).read_all(few_scenes.rows("train")[:8])[1], processor, ExampleRNG.of(0, 0, 8)
    )
    assert set(model.tokenizer_losses(images)) == {"pixels", "codebook", "commitment"}


def test_codes_in_a_document_are_those_of_its_images(processor: Processor, few_scenes: Corpus) -> None:
    model = method(processor)
    rows = few_scenes.rows("train")[:3]
    images = [processor.image.open(few_scenes.value(row, "image")) for row in rows]
    sequences = processor(document=[["a cat", image] for image in images])["sequences"]
    _, _, ids = model._read(sequences)
    examples = [{IMAGE: image} for image in images]
    codes = model.tokenizer.encode(TINY.image_batch(examples, processor, ExampleRNG.of(0, 0, 3))[IMAGE])
    assert torch.equal(ids[sequences.of(IMAGE)].view(3, 16) - model.vocabulary, codes)
    assert torch.equal(ids[~sequences.of(IMAGE)], sequences.ids[~sequences.of(IMAGE)])


def test_a_image_sends_no_gradient_to_experts_of_the_words(processor: Processor, few_scenes: Corpus) -> None:
    model = method(processor).train()
    seen = {TEXT: [], IMAGE: []}
    for experts in model.language_model.decoder.experts():
        for name in (TEXT, IMAGE):
            experts.get_submodule(name).register_forward_hook(
                lambda _, given, __, to=seen[name]: to.append(len(given[0]))
            )
    batch = batch_of(processor, few_scenes)
    model.losses(batch)
    words = int((batch["sequences"].document > 0).sum()) - 8 * 16
    assert seen == {TEXT: [words] * 2, IMAGE: [8 * 16] * 2}, "padding is nobody's"
    image = np.full((32, 32, 3), 120, np.uint8)
    vectors, routes, _ = model._read(processor(document=[[image]])["sequences"])
    experts = model.language_model.decoder.experts()[0]
    experts(vectors, routes)[0, 3:10].sum().backward()
    own = {name: p.grad for name, p in experts.named_parameters() if "auxiliary" not in name}
    assert all(grad is None or not grad.any() for name, grad in own.items() if name.startswith("text."))
    assert any(grad is not None and grad.any() for name, grad in own.items() if name.startswith("image."))


def test_what_is_foretold_of_a_token_does_not_hang_on_what_follows(run: Run, few_scenes: Corpus) -> None:
    model, processor = run.model, run.processor
    image = processor.image.open(few_scenes.value(0, "image"))
    sequences = processor(document=[["a cat and a bus", image], ["a cat and a tree", image]])["sequences"]
    with torch.no_grad():
        vectors, routes, _ = model._read(sequences)
        states = model.language_model(vectors, sequences.position, sequences.document, routes)
    same = int((sequences.ids[0] == sequences.ids[1]).long().cumprod(0).sum())
    assert same >= 4
    torch.testing.assert_close(states[0, :same], states[1, :same], atol=1e-5, rtol=1e-5)


def test_stages_learn_what_they_are_for(few_scenes: Corpus, run: Run) -> None:
    assert [stage.name for stage in active_stages(TINY)] == ["tokenizer", "experts", "routers"]
    assert all(one.use_predictor for one in run.model.choosing())
    history = [entry for entry in run.history if "losses" in entry]
    assert set(history[0]["losses"]) == {"pixels", "codebook", "commitment"}
    assert set(history[-1]["losses"]) == {TEXT, IMAGE, "routers"}
    main = [entry["losses"][TEXT] + entry["losses"][IMAGE] for entry in history if entry["stage"] == "experts"]
    assert main[-1] < main[0]
    learned = {name for stage in TINY.stages() for name in matched(run.model, stage.trainable)}
    assert learned == {name for name, _ in run.model.named_parameters()}, "no parameter is forgotten"
    of_main = matched(run.model, moma.LEARNED)
    assert not any("auxiliary" in name or name.startswith("tokenizer.") for name in of_main)
    dense = dataclasses.replace(TINY, modality_aware=False, num_text_experts=1, num_image_experts=0)
    assert [stage.name for stage in active_stages(dense)] == ["tokenizer", "experts"]


def matched(model: torch.nn.Module, patterns: tuple[str, ...]) -> set[str]:
    from fnmatch import fnmatchcase

    return {name for name, _ in model.named_parameters() if any(fnmatchcase(name, pattern) for pattern in patterns)}


@pytest.mark.parametrize(
    "changes",
    [
        {"modality_aware": False},
        {"modality_aware": False, "num_text_experts": 1, "num_image_experts": 0},
        {"num_text_experts": 1, "num_image_experts": 1},
        {"upcycling_fraction": 0.5},
        {"mod_capacity": 0.5},
    ],
)
def test_other_arms_train_and_foretell(changes: dict, few_scenes: Corpus) -> None:
    recipe = dataclasses.replace(TINY, **changes)
    found = train(recipe, few_scenes, Budget(steps=12), runtime=QUIET)
    reader = Reader(few_scenes, found.processor)
    scores = {score.name: score.value for score in document_scores(found.model, found.processor, reader, "test")}
    assert all(math.isfinite(value) for value in scores.values())
    assert ("test/all_by_whole_batch/nll_per_token" in scores) == bool(found.model.choosing())
    if "upcycling_fraction" in changes:
        assert not any(one.single_expert for one in found.model.choosing())


def test_arms_have_equal_operations(processor: Processor, few_scenes: Corpus) -> None:
    """By torch's own count of the forward pass; the routers are what is more."""
    from torch.utils.flop_counter import FlopCounterMode

    batch, flops = batch_of(processor, few_scenes), {}
    wide = dataclasses.replace(SMALL, width=64, mlp_dim=192)
    for name, changes in {
        "dense": {"modality_aware": False, "num_text_experts": 1, "num_image_experts": 0},
        "one expert each": {"num_text_experts": 1, "num_image_experts": 1},
        "mixed": {"modality_aware": False},
        "moma": {},
    }.items():
        model = method(processor, language_model=wide, **changes).requires_grad_(False)
        with FlopCounterMode(display=False) as counter:
            model.losses(batch)
        flops[name] = counter.get_total_flops()
    assert all(count == pytest.approx(flops["dense"], rel=0.02) for count in flops.values()), flops


def test_images_are_made_of_words_and_words_of_images(run: Run, few_scenes: Corpus, polymodal, tmp_path: Path) -> None:
    assert all(isinstance(run.model, kind) for kind in (CanGenerateText, CanGenerateImages, CanScoreTokens))
    prompts = run.processor(text=["a cat", "a small bus and a large tree"])
    made = run.model.generate_images(prompts, 8, torch.Generator().manual_seed(0))
    assert made.shape == (2, 3, 32, 32)
    assert torch.equal(made, run.model.generate_images(prompts, 8, torch.Generator().manual_seed(0)))
    fresh = method(
        run.processor
    ).eval()  # whose codes have not collapsed, as a few steps of so small a tokenizer may do
    drawn = [fresh.generate_images(prompts, 8, torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    assert not torch.equal(*drawn)
    texts = run.model.generate_text(run.processor(image=[few_scenes.value(0, "image")]), Decoding(max_new_tokens=5))
    assert all(token < run.model.vocabulary for token in texts[0])
    painted = polymodal("generate", str(run.directory), "a cat", "--count", "3")
    assert painted.returncode == 0, painted.stderr
    assert (tmp_path / "generated.png").is_file()
    unsaid = polymodal("generate", str(run.directory))
    assert unsaid.returncode == 2
    assert "in words" in unsaid.stderr


def test_a_run_reads_again_as_it_was(run: Run, few_scenes: Corpus) -> None:
    again = load_run(run.directory)
    reader = Reader(few_scenes, run.processor)
    before, after = (
        {score.name: score.value for score in document_scores(one.model, one.processor, reader, "test")}
        for one in (run, again)
    )
    assert before == after
    assert before["test/all/nll_per_token"] < math.log(again.model.vocab_sizes["all"])


def test_the_pretrained_size(processor: Processor) -> None:
    """Table 1: 1.4B dense and 7.1B with four experts of each modality."""
    recipe = moma.Recipe.paper()
    dense = dataclasses.replace(recipe, modality_aware=False, num_text_experts=1, num_image_experts=0)
    counts = {}
    for name, one in (("moma", recipe), ("dense", dense)):
        with torch.device("meta"):
            model = moma.MoMa(one, one.language_model.vocab_size, 0)
        weights = model.language_model.named_parameters()
        counts[name] = sum(parameter.numel() for key, parameter in weights if "auxiliary" not in key)
    assert counts["dense"] == pytest.approx(1.4e9, rel=0.06)
    assert counts["moma"] == pytest.approx(7.1e9, rel=0.02)
    assert recipe.tokens_per_tile == 1024
