"""Draw the figures of the documentation: `python tools/figures.py` writes docs/*.svg."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2937; text-anchor: middle }
  .title { font-weight: 600 } .label { font-size: 11px; fill: #4b5563 }
  .panel { fill: #ffffff } .box { fill: #e8eaf6; stroke: #3f51b5 } .data { fill: #fff3e0; stroke: #ef6c00 }
  path { fill: none; stroke: #4b5563; stroke-width: 1.5 } marker path { fill: #4b5563; stroke: none }
"""


@dataclass(frozen=True)
class Box:
    """x, y: of the upper left corner. is_data: data or a file, not code."""

    x: int
    y: int
    title: str
    lines: tuple[str, ...] = ()
    is_data: bool = False
    width: int = 210
    height: int = 66

    def drawn(self) -> str:
        kind, center = "data" if self.is_data else "box", self.x + self.width // 2
        first = self.y + self.height // 2 + 5 - 8 * len(self.lines)
        texts = [f'<text class="title" x="{center}" y="{first}">{escape(self.title)}</text>']
        for number, line in enumerate(self.lines, 1):
            texts.append(f'<text class="label" x="{center}" y="{first + 16 * number}">{escape(line)}</text>')
        frame = f'<rect class="{kind}" x="{self.x}" y="{self.y}" width="{self.width}" height="{self.height}" rx="6"/>'
        return frame + "".join(texts)


@dataclass(frozen=True)
class Arrow:
    points: tuple[tuple[int, int], ...]
    label: str = ""
    at: tuple[int, int] = (0, 0)

    def drawn(self) -> str:
        way = " ".join(f"{'L' if number else 'M'}{x},{y}" for number, (x, y) in enumerate(self.points))
        text = (
            f'<text class="label" x="{self.at[0]}" y="{self.at[1]}">{escape(self.label)}</text>' if self.label else ""
        )
        return f'<path d="{way}" marker-end="url(#tip)"/>{text}'


def figure(title: str, width: int, height: int, boxes: list[Box], arrows: list[Arrow]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
    tip = '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    tip += '<path d="M0,0 L8,4 L0,8 z"/></marker></defs>'
    panel = f'<rect class="panel" width="{width}" height="{height}" rx="8"/>'
    parts = [head, f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>", tip, panel]
    return "\n".join([*parts, *(one.drawn() for one in [*boxes, *arrows]), "</svg>", ""])


def architecture() -> str:
    boxes = [
        Box(20, 20, "your data", ("files, tables in memory, the hub,", "shards at URLs"), is_data=True),
        Box(270, 20, "corpora/", ("rows in Arrow, splits,", "columns typed by modalities/")),
        Box(550, 20, "curation/", ("web pages to documents,", "captions, preferences")),
        Box(270, 130, "data/", ("rows to examples to batches:", "decode, tokenize, collate, shuffle")),
        Box(20, 240, "layers/ encoders/", ("objectives/ models/", "plain PyTorch modules and losses")),
        Box(270, 240, "recipes/", ("one file a method: settings,", "batches, model, losses")),
        Box(270, 350, "training/", ("stages, optimizer, processes,", "mixed precision, checkpoints")),
        Box(270, 460, "run", ("weights, processor, record, curves",), is_data=True),
        Box(550, 350, "evaluation/ attacks/", ("scores with intervals", "and chance levels")),
        Box(550, 240, "reproduce/", ("comparisons, claims,", "reports, recipe pages")),
        Box(20, 460, "serving/", ("embeddings, index, JSON API,", "web page, export")),
        Box(
            20,
            560,
            "cli/ and api.py",
            ("a function for each command; what `import polymodal as pm` offers",),
            width=740,
        ),
    ]
    arrows = [
        Arrow(((230, 53), (270, 53))),
        Arrow(((550, 53), (480, 53))),
        Arrow(((375, 86), (375, 130)), "rows", (395, 112)),
        Arrow(((375, 196), (375, 240)), "batches", (402, 222)),
        Arrow(((230, 273), (270, 273))),
        Arrow(((375, 306), (375, 350)), "losses", (399, 332)),
        Arrow(((375, 416), (375, 460))),
        Arrow(((480, 163), (512, 163), (512, 371), (550, 371)), "test splits", (546, 158)),
        Arrow(((480, 493), (532, 493), (532, 396), (550, 396)), "capabilities", (570, 488)),
        Arrow(((655, 350), (655, 306)), "paired seeds", (695, 332)),
        Arrow(((270, 493), (230, 493))),
    ]
    return figure("Architecture: folders of the package, and how data flows through them", 780, 646, boxes, arrows)


def data_flow() -> str:
    middle = [
        ("global order", "data/batch_order.py"),
        ("rows of this process", "TrainingData"),
        ("decode, resize", "Reader, processor.load_example"),
        ("augment, tokenize, collate", "recipe.training_batch"),
        ("device", "micro-batches"),
        ("method.losses", "accumulated or cached gradients"),
        ("project conflicting gradients", "optional, gradient_harmonization.py"),
        ("all-reduce, clip", "non-finite steps are skipped"),
        ("AdamW, EMA", "training/optimizer.py"),
    ]
    boxes = [Box(270, 20 + 90 * row, title, (line,), width=250, height=60) for row, (title, line) in enumerate(middle)]
    boxes += [
        Box(20, 20, "shard or Arrow table", ("corpora/",), is_data=True, height=60),
        Box(570, 20, "seed", is_data=True, height=60),
        Box(570, 200, "skipped.jsonl", ("unreadable examples; replaced by", "those of the next batch"), True, 210, 66),
        Box(20, 290, "random stream", ("of seed and index of the example", "rng.py"), height=66),
        Box(570, 470, "rows of other processes", ("layers/distributed.py",), height=60),
        Box(570, 740, "asynchronous checkpoint", ("training/checkpoint.py",), is_data=True, height=60),
    ]
    arrows = [Arrow(((395, 80 + 90 * row), (395, 110 + 90 * row))) for row in range(len(middle) - 1)]
    arrows += [
        Arrow(((230, 50), (270, 50))),
        Arrow(((570, 50), (520, 50))),
        Arrow(((520, 230), (570, 230))),
        Arrow(((230, 320), (270, 320))),
        Arrow(((570, 490), (520, 490))),
        Arrow(((520, 512), (570, 512))),
        Arrow(((520, 770), (570, 770))),
    ]
    return figure("Data flow of a training step, from the stored row to the optimizer", 800, 820, boxes, arrows)


FIGURES = {"architecture.svg": architecture, "data-flow.svg": data_flow}


if __name__ == "__main__":
    for name, draw in FIGURES.items():
        (DOCS / name).write_text(draw(), encoding="utf-8")
