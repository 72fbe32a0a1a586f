"""Images of recipes at work, drawn from what `polymodal reproduce` left in a folder.

python docs/recipes/images.py tip reproduce/tip
"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any, cast

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

from polymodal import corpora
from polymodal.attacks.evaluate import Pairs, perturb_pairs
from polymodal.claims import mslam as mslam_claims
from polymodal.claims import set_level_attack as set_level_attack_claims
from polymodal.corpora._wordnet import wordnet
from polymodal.corpora.saved import open_saved
from polymodal.data.columns.image import denormalize_pixels
from polymodal.data.conversation import DESCRIBE
from polymodal.data.instructions import chain_of_thought_prompt
from polymodal.data.loader import Reader
from polymodal.evaluation.chair import Chair
from polymodal.evaluation.hallucination import cases, scenes_of
from polymodal.evaluation.tasks.region_classification import first_frame
from polymodal.evaluation.tasks.vqa_captioning import question_scores
from polymodal.layers.decoding import Decoding
from polymodal.modalities import Words
from polymodal.modalities.boxes import boxes_to_patch_mask, keep_patches
from polymodal.modalities.image import to_rgb
from polymodal.recipes.metrics import aloha as aloha_recipe
from polymodal.rng import ExampleRNG
from polymodal.serving.attack import attack_sheet
from polymodal.serving.image_generation import generate_images
from polymodal.serving.vqa import answer_about
from polymodal.training import load_run

HERE = Path(__file__).parent
RATES = (0, 30, 50, 70, 90)


def tip(results: Path) -> None:
    """Plot the area under the ROC curve by the rate of missing cells, for every arm; bars are 95 % intervals."""
    scores = json.loads((results / "results.json").read_text())["scores"]
    task = next("/".join(name.split("/")[:2]) for name in scores if name.startswith("test/classify_"))
    names = [f"{task}/AUC", *(f"{task}/random_values_{rate}%/AUC" for rate in RATES[1:])]
    figure, axes = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
    for place, arm in enumerate(scores[names[0]]["arms"]):
        found = [scores[name]["arms"][arm] for name in names]
        values = [100 * one["value"] for one in found]
        errors = [
            [100 * (one["value"] - one["low"]) for one in found],
            [100 * (one["high"] - one["value"]) for one in found],
        ]
        axes.errorbar([rate + 0.8 * place for rate in RATES], values, errors, marker="o", capsize=2, lw=1.4, label=arm)
    axes.set(xlabel="table cells that are missing, %", ylabel="AUC, %", xticks=RATES)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(HERE / "tip.png", dpi=130)


def dgvae(results: Path) -> None:
    """What each prototype of one person recommends, and the words that explain it."""
    run: Any = load_run(results / "runs" / "treatment" / "seed-0")
    viewers = corpora.viewers()
    row = max(viewers.rows("test").tolist(), key=lambda row: -abs(len(viewers.value(row, "liked")) - 40))
    history = viewers.value(row, "liked")
    catalogue = run.processor.history.catalogue
    (prototypes,) = run.model.eval().explain(run.processor(history=[history]), count=6)
    columns = [("liked before", [catalogue[item].title for item in history[-12:]], [])]
    columns += [
        (f"prototype {number}", [catalogue[item].title for item in items], words)
        for number, (items, words) in enumerate(prototypes, start=1)
    ]
    figure, every = plt.subplots(1, len(columns), figsize=(11, 2.5), layout="constrained")
    for axes, (title, films, words) in zip(every, columns, strict=True):
        axes.axis("off")
        axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
        lines = [line for film in films for line in textwrap.wrap(film, 28, subsequent_indent="   ")[:2]]
        axes.text(0, 1, "\n".join(lines), va="top", fontsize=7.5, transform=axes.transAxes)
        axes.text(
            0,
            0,
            textwrap.fill(", ".join(words), 28),
            va="bottom",
            fontsize=8,
            color="#a03a13",
            transform=axes.transAxes,
        )
    figure.savefig(HERE / "dgvae.png", dpi=130)


def inductive_moment_matching(results: Path) -> None:
    """The same noise for all arms: four images of each class in 1, 4 and 32 steps."""
    steps, each = (1, 4, 32), 4
    runs = {path.name: load_run(path / "seed-0") for path in sorted((results / "runs").iterdir())}
    figure, every = plt.subplots(len(runs), len(steps), figsize=(9.5, 1.35 * len(runs)), layout="constrained")
    for axes_row, (arm, run) in zip(every, runs.items(), strict=True):
        model: Any = run.model.eval()
        processor: Any = run.processor
        labels = torch.arange(len(processor.label.names)).repeat(each)
        for axes, count in zip(axes_row, steps, strict=True):
            made = processor.image.shown(
                model.generate_images({"label": labels}, count, torch.Generator().manual_seed(0))
            )
            grid = made.unflatten(0, (each, -1)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
            axes.imshow((grid * 255).byte().numpy(), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            if arm == next(iter(runs)):
                axes.set_title(f"{count} step{'s' * (count > 1)}", fontsize=9)
        name = {"baseline": "one particle (consistency)", "treatment": "four particles"}.get(arm, arm.replace("_", " "))
        axes_row[0].set_ylabel(name.replace(" ", "\n", 1), fontsize=8, rotation=0, ha="right", va="center")
    figure.savefig(HERE / "inductive_moment_matching.png", dpi=130)


def layoutlmv3(results: Path) -> None:
    """A test page as it is, what is hidden of it, what the codes of hidden patches are taken for, and its fields."""
    run: Any = load_run(results / "runs" / "treatment" / "seed-0")
    model, processor, recipe = run.model.eval(), run.processor, run.recipe
    documents = corpora.documents()
    kinds = documents.columns["kind"].names
    rows = [row for row in documents.rows("test").tolist() if documents.value(row, "kind") == kinds.index("invoice")]
    example = processor.load_example(documents, rows[3])
    example["words"] = processor.words.windows(example["words"])[0]
    batch = recipe.training_batch([example], processor, ExampleRNG.of(1, 0, 1))
    with torch.no_grad():
        tokens, patches = model.encoder(batch["words"], batch["image"], batch["masked_words"], batch["masked_patches"])
        codes = model.tokenizer.encode(batch["image"])
        decoded = model.tokenizer.decode(codes)
        guessed = torch.where(batch["masked_patches"], model.mim_head(patches[:, 1:]).argmax(-1), codes)
        filled = model.tokenizer.decode(guessed)
        in_sight = model.wpa_head(tokens).squeeze(-1).sigmoid()[0]
        tagged = model.classify_tokens(processor(words=[example["words"]], image=[example["image"]])).argmax(1).tolist()
    grid = recipe.encoder.grid
    gone = batch["masked_patches"][0].view(grid, grid).repeat_interleave(recipe.encoder.patch_size, 0)
    gone = gone.repeat_interleave(recipe.encoder.patch_size, 1)
    page = processor.image.shown(batch["image"])[0].permute(1, 2, 0)
    shown = torch.where(gone[..., None], torch.tensor([0.75, 0.8, 0.9]), page)
    figure, every = plt.subplots(1, 5, figsize=(14, 3.4), layout="constrained")
    images = [page, shown, *(processor.image.shown(one)[0].permute(1, 2, 0) for one in (decoded, filled))]
    titles = [
        "page",
        "hidden patches; words: is my patch\nin sight? green yes, red no",
        "codes of the whole page",
        "codes of hidden patches, guessed",
    ]
    for axes, image, title in zip(every, images, titles, strict=False):
        axes.imshow(image.numpy(), extent=(0, 1000, 1000, 0), interpolation="nearest")
        axes.set_title(title, fontsize=9)
    for word, hidden, box, sure in zip(
        batch["words"].word[0], batch["masked_words"][0], batch["words"].boxes[0].tolist(), in_sight, strict=True
    ):
        if word >= 0 and not hidden:
            color = (1 - float(sure), float(sure) * 0.7, 0.1)
            every[1].plot([(box[0] + box[2]) / 2], [(box[1] + box[3]) / 2], "o", ms=3, color=color)
    fields = [processor.words.fields[number] for number in tagged]
    processor_words = documents.value(rows[3], "words")[: len(fields)]
    Words(processor.words.fields).plot(
        [w._replace(field=f) for w, f in zip(processor_words, fields, strict=True)], every[4]
    )
    every[4].set_title("fields, as the run tags them", fontsize=9)
    for axes in every:
        axes.set(xticks=[], yticks=[])
    figure.savefig(HERE / "layoutlmv3.png", dpi=120)


def set_level_attack(results: Path) -> None:
    """Images and captions before and after, and who falls with whom under which attack."""
    victim = next(iter(sorted((results / "victims").glob("*/runs/*/seed-0"))))
    emoji = corpora.emoji()
    attack, source = set_level_attack_claims.claim.treatment, load_run(victim)
    pairs = Pairs.of(emoji, source, "train", 48)
    attack_sheet(pairs, perturb_pairs(attack, source, emoji, pairs)).save(HERE / "set_level_attack.png")


def aloha(results: Path) -> None:
    """Spoilt captions of three scenes, each object in the colour of its score, beside what CHAIR says of them."""
    scenes, lexicon = corpora.scenes(), wordnet("picture")
    of_scenes = scenes_of(scenes, "test", 400)
    found = cases(of_scenes, lexicon, seed=0)
    rows = scenes.sample("test", 400).tolist()
    figure, every = plt.subplots(3, 2, figsize=(11, 5.2), width_ratios=(1, 5.5), layout="constrained")
    metric, chair = aloha_recipe.Recipe(), Chair()
    for (image, told), number in zip(every, (2, 40, 111), strict=True):
        scene = of_scenes[number]
        image.imshow(scenes.value(rows[number], "image"))
        told.text(0, 1.0, f"references: {scene.references[1]}", fontsize=7.5, color="#666666", va="top")
        own = [case for case in found if case.references == scene.references and case.kind not in ("added", "similar")]
        for line, case in enumerate(own, start=1):
            judged = metric.score(case.caption, case.references)
            height = 1.0 - 0.17 * line
            told.text(0, height, f"{case.kind.replace('_', ' ')}:", fontsize=8, va="top")
            told.text(0.1, height, case.caption, fontsize=7.3, va="top")
            for place, (phrase, score) in enumerate(judged.objects.items()):
                color = (0.85 * (1 - score), 0.6 * score, 0.1)
                told.text(
                    0.6 + 0.145 * place,
                    height,
                    f"{phrase.split()[-1]} {score:.2f}",
                    fontsize=7.5,
                    va="top",
                    color=color,
                )
            told.text(
                1.06, height, f"CHAIR {chair.score(case.caption, case.references).value:.2f}", fontsize=7.5, va="top"
            )
        image.axis("off")
        told.axis("off")
    figure.savefig(HERE / "aloha.png", dpi=120)


def mono_internvl(results: Path) -> None:
    """Scenes of the test split, what both arms say of them, and what they answer."""
    arms = {arm: load_run(results / "runs" / arm / "seed-0") for arm in ("baseline", "treatment")}
    scenes = corpora.scenes()
    figure, every = plt.subplots(4, 2, figsize=(11, 7.4), width_ratios=(1, 5), layout="constrained")
    for (image, told), row in zip(every, scenes.rows("test")[[0, 7, 21, 33]].tolist(), strict=True):
        pixels = scenes.value(row, "image")
        image.imshow(pixels)
        lines = [f"there is: {scenes.value(row, 'long')[0].text}"]
        for arm, run in arms.items():
            said = answer_about(run, [pixels], DESCRIBE, Decoding(max_new_tokens=60))[0]
            lines += textwrap.wrap(f"{arm}: {said}", 125, subsequent_indent="    ")
        kinds = {question.kind: question for question in scenes.value(row, "questions")}
        for kind in ("count", "presence", "place", "relation"):
            if (question := kinds.get(kind)) is not None:
                given = [
                    f"{arm} {answer_about(run, [image], question.question, Decoding())[0]}" for arm, run in arms.items()
                ]
                lines.append(f"{question.question} {question.answer}   ({', '.join(given)})")
        told.text(0, 1, "\n".join(lines), fontsize=7.5, va="top", linespacing=1.4)
        image.axis("off")
        told.axis("off")
    figure.savefig(HERE / "mono_internvl.png", dpi=120)


def mpo(results: Path) -> None:
    """Answers with and without working, of the model at the start and of every arm; and what they write of images."""
    recorded = json.loads((results / "results.json").read_text())["scores"]
    counting = corpora.counting()
    starts = [load_run(folder) for folder in sorted((results / "start").glob("seed-*"))]
    found: dict[str, list[float]] = {"start": [0.0, 0.0]}
    for run in starts:
        reader = Reader(counting, run.processor)
        scores = {one.name: one.value for one in question_scores(run.model, run.processor, reader, "test")}
        worked, gain = scores["test/cot/accuracy"], scores["test/cot/gain_over_direct"]
        found["start"] = [sum(pair) for pair in zip(found["start"], (worked - gain, worked), strict=True)]
    found["start"] = [value / len(starts) for value in found["start"]]
    worked_by_arm, gains = (recorded[f"test/cot/{name}"]["arms"] for name in ("accuracy", "gain_over_direct"))
    for arm in worked_by_arm:
        worked = worked_by_arm[arm]["value"]
        found[arm] = [worked - gains[arm]["value"], worked]
    figure, (bars, told) = plt.subplots(1, 2, figsize=(12, 4.6), width_ratios=(2, 3), layout="constrained")
    for shift, name in ((-0.2, "direct"), (0.2, "with working")):
        values = [100 * pair[shift > 0] for pair in found.values()]
        bars.bar([place + shift for place in range(len(found))], values, 0.38, label=name)
    names = {"baseline": "generation\nalone", "treatment": "MPO", "DPO alone": "DPO\nalone"}
    bars.set_xticks(range(len(found)), [names.get(name, name) for name in found])
    bars.axhline(100 * recorded["test/cot/accuracy"]["chance"], color="#888888", ls=":", lw=1, label="chance")
    bars.set(ylabel="right answers to the same questions, %")
    bars.legend(frameon=False, fontsize=8, loc="upper right")
    arms = {"start": starts[0]}
    arms |= {arm: load_run(results / "runs" / arm / "seed-0") for arm in ("baseline", "treatment")}
    told.axis("off")
    for place, row in enumerate(counting.rows("test")[[3, 5, 8]].tolist()):
        image, questions = counting.value(row, "image"), counting.value(row, "questions")
        inset = told.inset_axes((0.0, 0.68 - 0.34 * place, 0.22, 0.3))
        inset.imshow(image)
        inset.axis("off")
        question = next(one for one in questions if one.kind == ("count", "sum", "compare")[place])
        lines = [question.question, f"right: {question.rationale} {question.answer}"]
        for arm, run in arms.items():
            said = answer_about(run, [image], chain_of_thought_prompt(question.question), Decoding(max_new_tokens=40))[
                0
            ]
            lines += textwrap.wrap(f"{arm}: {said}", 80, subsequent_indent="    ")
        told.text(0.25, 0.98 - 0.34 * place, "\n".join(lines), fontsize=8, va="top", linespacing=1.4)
    figure.savefig(HERE / "mpo.png", dpi=120)


def moma(results: Path) -> None:
    """Training loss by operations, and images that two arms make of captions of the test split."""
    figure = plt.figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(2, 3))
    axes = left.subplots()
    curves = {}
    for folder in sorted((results / "runs").iterdir()):
        runs = [load_run(seed) for seed in sorted(folder.glob("seed-*"))]
        every = np.arange(70, runs[0].record["steps"] + 1, 10)
        smooth = []
        for run in runs:
            logged = [entry for entry in run.history if "losses" in entry]
            losses = [entry["losses"]["text"] + entry["losses"]["image"] for entry in logged]
            smooth.append(
                np.interp(every, [entry["step"] for entry in logged[6:]], np.convolve(losses, np.ones(7) / 7, "valid"))
            )
        curves[folder.name] = (every, np.mean(smooth, axis=0))
        axes.plot(*curves[folder.name], lw=1.3, label=folder.name.replace("_", " "))
    goal = curves["baseline"][1][-1]
    last = curves["baseline"][0][-1]
    for name, (steps_of, losses_of) in curves.items():
        reached = next((step for step, loss in zip(steps_of, losses_of, strict=True) if loss <= goal), None)
        factor = f"{last / reached:.2f}" if reached is not None else "below 1"
        print(f"{name}: the baseline's last loss with {factor} times fewer operations")
    axes.axhline(goal, color="#888888", ls=":", lw=1)
    axes.set(xlabel="steps of equal operations", ylabel="nats per token while training, mean of 70 steps")
    axes.legend(frameon=False, fontsize=8)
    scenes = corpora.scenes()
    rows = scenes.rows("test")[[0, 7, 21, 33, 40]].tolist()
    words = [scenes.value(row, "long")[0].text for row in rows]
    columns = {"there is": [scenes.value(row, "image").resize((64, 64)) for row in rows]}
    for arm in ("baseline", "treatment"):
        run = load_run(results / "runs" / arm / "seed-0")
        columns[arm] = [made[0] for made in generate_images(run, words, 1, 1)]
    panels = right.subplots(len(rows), 4, width_ratios=(1, 1, 1, 3.4))
    for line, panel in enumerate(panels):
        for place, (name, images) in enumerate(columns.items()):
            panel[place].imshow(images[line])
            panel[place].axis("off")
            if line == 0:
                panel[place].set_title(name, fontsize=8)
        panel[3].text(0, 0.5, textwrap.fill(words[line], 52), fontsize=7.5, va="center")
        panel[3].axis("off")
    figure.savefig(HERE / "moma.png", dpi=120)


def simvg(results: Path) -> None:
    """What is meant, in images of the test split: the truth, and the boxes of both branches."""
    run = load_run(results / "runs" / "treatment" / "seed-0")
    processor, model = cast(Any, run.processor), cast(Any, run.model.eval())
    colors = {"decoder": "#0082c8", "token": "#f58231"}
    corpus = corpora.referring()
    figure, every = plt.subplots(2, 6, figsize=(13, 5.0), layout="constrained")
    rows = corpus.rows("test")[[0, 1, 3, 5, 8, 13, 21, 34, 41, 55, 67, 80]].tolist()
    for number, (axes, row) in enumerate(zip(every.flat, rows, strict=True)):
        single = [one for one in corpus.value(row, "expressions") if len(one.boxes) == 1]
        said = sorted(single, key=lambda one: -one.clauses)[number % len(single)]
        axes.imshow(corpus.value(row, "image"))
        boxes = {"truth": (said.boxes[0], "#111111", ":")}
        found = model.predict_boxes(processor(image=[processor.load_example(corpus, row)["image"]], text=[said.text]))
        for branch, color in colors.items():
            corners, likely = found[branch]
            box = 96 * corners[0, int(likely[0].argmax())].detach()
            boxes[branch] = (tuple(box.tolist()), color, "-")
        for label, ((left, top, right, bottom), color, style) in boxes.items():
            axes.plot(
                [left, right, right, left, left],
                [top, top, bottom, bottom, top],
                style,
                color=color,
                label=label,
                lw=2,
            )
        axes.set_title(textwrap.fill(said.text, 30), fontsize=8)
        axes.set(xticks=[], yticks=[], xlim=(0, 96), ylim=(96, 0))
    names = {"truth": "what is meant", "decoder": "decoder branch", "token": "token branch"}
    handles, labels = every[0, 0].get_legend_handles_labels()
    figure.legend(handles, [names[label] for label in labels], loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(HERE / "simvg.png", dpi=110)


def ulip_2(results: Path) -> None:
    """The clouds of the test split that words find, and a training model's views with the captions written of them."""
    run, models = load_run(results / "runs" / "treatment" / "seed-0"), corpora.furniture()
    reader = Reader(models, run.processor)
    _, examples = reader.read_split("test")
    clouds = run.embed(points=[example["points"] for example in examples])["points"]
    queries = ("brown chair", "red car", "tall green plant", "white washbasin")
    asked = run.embed(text=list(queries))["text"]
    figure = plt.figure(figsize=(12, 10), layout="constrained")
    found, told = figure.subfigures(2, 1, height_ratios=(4, 3.2))
    for line, query, similar in zip(found.subplots(4, 6), queries, asked @ clouds.T, strict=True):
        for place, (axes, number) in enumerate(zip(line, similar.topk(6).indices.tolist(), strict=True)):
            models.columns["points"].plot(examples[number]["points"], axes)
            name = next(c.text for c in examples[number]["text"] if c.language == "en")
            axes.set_title(f'"{query}"' if place == 0 else "", fontsize=9, loc="left")
            axes.set_xlabel(textwrap.shorten(name, 26), fontsize=7, color="#666666")
    made = open_saved(results / "made" / "seed-0")
    for line, row in zip(told.subplots(3, 6), made.rows("train")[[3, 40, 200]].tolist(), strict=True):
        name = next(c.text for c in made.value(row, "captions") if c.language == "en")
        views = made.value(row, "views")
        for axes, caption in zip(line, made.value(row, "view_captions"), strict=False):
            axes.imshow(views[caption.view])
            axes.set_xlabel(textwrap.fill(caption.text, 28), fontsize=7)
            axes.set(xticks=[], yticks=[])
        line[0].set_title(name, fontsize=9, loc="left")
    figure.savefig(HERE / "ulip_2.png", dpi=90)


def realsyn(results: Path) -> None:
    """Images of documents with the nearest sentence of their document, retrieved sentences and the synthetic text."""
    made = open_saved(results / "made" / "seed-0")
    names = {"en-x-local": "own document", "en-x-real1": "$T_{r1}$", "en-x-real2": "$T_{r2}$", "en-x-real3": "$T_{r3}$"}
    names["en-x-syn"] = "$T_{s1}$"
    rows = np.linspace(0, len(made) - 1, 8).astype(int).tolist()
    figure, every = plt.subplots(4, 4, figsize=(12.5, 6.6), layout="constrained", width_ratios=(1, 4.4) * 2)
    for (drawn, beside), row in zip(every.reshape(-1, 2), rows, strict=True):
        drawn.imshow(to_rgb(made.value(row, "image")))
        drawn.axis("off")
        beside.axis("off")
        texts = {caption.language: caption.text for caption in made.value(row, "text")}
        lines = [f"{name}: {textwrap.shorten(texts[tag], 70)}" for tag, name in names.items() if tag in texts]
        beside.text(0, 0.95, "\n".join(lines), fontsize=8, va="top", linespacing=1.5)
    figure.savefig(HERE / "realsyn.png", dpi=90)


def wasm(results: Path) -> None:
    """Good Arabic paragraphs that are kept, and noise of each kind that is left, with the limits of each arm."""
    scores = json.loads((results / "results.json").read_text())["scores"]
    kinds = [name.split("/")[1] for name in scores if name.startswith("noise/") and name.count("/") == 2]
    figure, (kept, left) = plt.subplots(1, 2, figsize=(11, 3.4), width_ratios=(2, 7), layout="constrained")
    arms = list(scores["good/kept"]["arms"])
    names = {"baseline": "OBELICS", "treatment": "Wasm"}
    for place, arm in enumerate(arms):
        shift, label = 0.2 * (place - (len(arms) - 1) / 2), names.get(arm, arm)
        good = [scores[name]["arms"][arm]["value"] for name in ("good/kept_after_paragraph", "good/kept")]
        kept.bar(np.arange(2) + shift, [100 * value for value in good], 0.18)
        bad = [1 - scores[f"noise/{kind}/dropped"]["arms"][arm]["value"] for kind in kinds]
        left.bar(np.arange(len(kinds)) + shift, [100 * value for value in bad], 0.18, label=label)
    kept.set(
        ylabel="good paragraphs kept, %", xticks=range(2), xticklabels=["text by\ntext", "whole\npages"], ylim=(0, 100)
    )
    left.set(
        ylabel="noise that is left, %", xticks=range(len(kinds)), xticklabels=[k.replace("_", "\n") for k in kinds]
    )
    left.legend(frameon=False, fontsize=8)
    for axes in (kept, left):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / "wasm.png", dpi=110)


def alpro(results: Path) -> None:
    """Test clips, a crop of each with what the prompter takes it for, and questions with the method's answers."""
    run: Any = load_run(results / "runs" / "treatment" / "seed-0")
    model, processor, clips = run.model.eval(), run.processor, corpora.clips()
    figure, every = plt.subplots(4, 6, figsize=(12.5, 7.4), layout="constrained", width_ratios=(1, 1, 1, 1, 1.5, 2.6))
    for axes, row in zip(every, clips.rows("test")[[3, 4, 10, 12]].tolist(), strict=True):
        example = processor.load_example(clips, row)
        frames, region = example["video"], example["regions"][0]
        box = tuple(edge / 96 for edge in region.box)
        batch = processor(video=[first_frame(frames)], box=[box])
        with torch.no_grad():
            named = model.classify_regions(batch)[0].topk(4)
            cropped = keep_patches(batch["video"], boxes_to_patch_mask(batch["box"], run.recipe.video.grid))
        for place, number in enumerate((0, 7, 15)):
            axes[place].imshow(frames[number])
        shown = denormalize_pixels(cropped[0], processor.video.mean, processor.video.std)
        axes[3].imshow(shown[0].permute(1, 2, 0))
        axes[3].set_title(f"crop: {region.name}", fontsize=7)
        names = [processor.entities[number] for number in named.indices.tolist()]
        axes[4].barh(range(4), named.values.tolist(), color="#7a9fc9")
        axes[4].set(yticks=range(4), yticklabels=names, xlim=(0, 1))
        axes[4].invert_yaxis()
        axes[4].tick_params(labelsize=7)
        axes[4].spines[["top", "right"]].set_visible(False)
        lines = [f'"{textwrap.fill(example["text"][0].text, 44)}"', ""]
        for one in [one for one in example["questions"] if one.kind != "check"][:4]:
            logits = model.answer_logits(processor(video=[frames], question=[one.question]))
            answer = processor.answers[int(logits.argmax())]
            lines.append(f"{one.question} {answer}{'' if answer == one.answer else f'  (is: {one.answer})'}")
        axes[5].text(0, 0.5, "\n".join(lines), fontsize=7.5, va="center")
        for one in (*axes[:4], axes[5]):
            one.set(xticks=[], yticks=[])
            one.spines[:].set_visible(False)
    every[0][0].set_title("first frame", fontsize=7)
    every[0][2].set_title("last frame", fontsize=7)
    every[0][4].set_title("what the prompter takes it for", fontsize=7)
    figure.savefig(HERE / "alpro.png", dpi=100)


def mslam(results: Path) -> None:
    """Test speech as frames, what was said, what the transcribing head hears, and what it reads in the text itself."""
    runs: dict[str, Any] = {arm: load_run(results / "runs" / arm / "seed-0") for arm in ("baseline", "treatment")}
    speech = corpora.in_languages(corpora.speech(), mslam_claims.claim.languages)
    processor = runs["treatment"].processor
    rows = [row for row in speech.rows("test").tolist() if len(speech.value(row, "captions")[0].text) < 40]
    chosen = np.random.default_rng(1).permutation(rows)[:6].tolist()
    figure, every = plt.subplots(3, 2, figsize=(12, 6.4), layout="constrained")
    for axes, row in zip(every.flat, chosen, strict=True):
        example = processor.load_example(speech, row)
        text = example["text"][0]
        axes.imshow(
            example["sound"].T,
            origin="lower",
            aspect="auto",
            cmap="magma",
            extent=(0, len(example["sound"]) / 100, 0, 1),
        )
        lines = [f"{text.language}: {text.text}"]
        for arm, run in runs.items():
            with torch.no_grad():
                asked = (run.processor(sound=[example["sound"]]), run.processor(text=[text.text]))
                heard, read = (run.processor.texts(run.model.eval().transcribe(batch))[0] for batch in asked)
            lines.append(f"{'speech alone' if arm == 'baseline' else 'mSLAM'} hears: {heard}   reads: {read}")
        axes.set_title("\n".join(lines), fontsize=7.5, loc="left")
        axes.set(yticks=[])
        axes.tick_params(labelsize=6)
    figure.savefig(HERE / "mslam.png", dpi=100)


def gradient_harmonization(results: Path) -> None:
    """What the gradients of both losses say of the data: with and without misaligned triplets, over training."""
    arms = {"treatment": "40 % of the triplets misaligned", "aligned_both": "all triplets aligned"}
    said = {"gradient_cosine": "cosine of both gradients", "conflict_rate": "fraction of triplets that conflict"}
    said["skip_rate"] = "fraction of triplets skipped"
    figure, every = plt.subplots(1, 3, figsize=(12, 3.2), layout="constrained")
    for axes, (name, title) in zip(every, said.items(), strict=True):
        for number, (arm, label) in enumerate(arms.items()):
            for seed in range(3):
                run = load_run(results / "runs" / arm / f"seed-{seed}")
                seen = [
                    (entry["step"], entry["gradient_harmonization"][name])
                    for entry in run.history
                    if "gradient_harmonization" in entry
                ]
                steps, values = zip(*seen, strict=True)
                smooth = np.convolve(values, np.ones(5) / 5, "same")[2:-2]
                axes.plot(steps[2:-2], smooth, color=f"C{number}", alpha=0.7, label=label if seed == 0 else None)
        axes.set(title=title, xlabel="step")
        axes.axhline(0, color="#999999", linewidth=0.5)
    every[0].legend(fontsize=8)
    figure.savefig(HERE / "gradient_harmonization.png", dpi=100)


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
