"""What the documentation has beside its own files: a page a corpus, a page a module, and where they stand."""

from __future__ import annotations

import io
import re
import shutil
import sys
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files
from PIL import Image

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "polymodal"
sys.path.insert(0, str(ROOT / "tools"))
import site_pages

SEARCHED = ("data", "layers", "encoders", "objectives", "models", "training", "evaluation")
KEPT = re.compile(r"(<(?:pre|script|style|textarea)\b.*?</(?:pre|script|style|textarea)>)", re.S)
FOLDERS = ("modalities", "corpora", "data", "layers", "encoders", "objectives", "models", "training", "evaluation")
FOLDERS += ("curation", "recipes", "reproduce", "serving")


def modules() -> list[PurePosixPath]:
    """Public modules, such as objectives/contrastive, those of no folder first."""
    found = [PurePosixPath("types")]
    for folder in FOLDERS:
        for file in sorted((SOURCE / folder).rglob("*.py")):
            place = file.relative_to(SOURCE).with_suffix("")
            if not any(part.startswith("_") for part in place.parts) and "results" not in place.parts:
                found.append(PurePosixPath(place.as_posix()))
    return found


def folders() -> dict[str, list[PurePosixPath]]:
    """The modules of each page of the reference, which is that of a folder, such as recipes.dual_encoders."""
    found: dict[str, list[PurePosixPath]] = {}
    for module in modules():
        found.setdefault(".".join(module.parts[:-1]) or "polymodal", []).append(module)
    return found


def recipe_names() -> list[str]:
    return sorted(file.stem for file in (ROOT / "docs" / "recipes").glob("*.md"))


def on_config(config: Any) -> Any:
    """The pages that are written here, in the navigation."""
    from polymodal.corpora import built_in

    families: dict[str, list[dict[str, str]]] = {}
    for name in recipe_names():
        family = next(SOURCE.glob(f"recipes/*/{name}.py")).parent.name
        families.setdefault(family.replace("_", " "), []).append({name: f"recipes/{name}.md"})
    recipes = {"Methods": ["methods.md", *({family: pages} for family, pages in sorted(families.items()))]}
    corpora = {"Corpora": ["corpora.md", *({name: f"corpora/{name}.md"} for name in built_in())]}
    api = [{_title(text): f"api/{name}.md"} for name, text in site_pages.api_pages().items()]
    modules_of = {"Modules": [{folder: f"reference/{folder}.md"} for folder in folders()]}
    how = next(index for index, entry in enumerate(config.nav) if "How it works" in entry)
    config.nav[how:how] = [
        recipes,
        corpora,
        {"Reference": [{"Command line": "command-line.md"}, {"Python": api}, modules_of]},
    ]
    config.nav[-1]["How it works"].append({"Changes": "changes.md"})
    return config


def _title(text: str) -> str:
    return text.splitlines()[0].removeprefix("# ")


def on_files(files: Files, config: Any) -> Files:
    """The pages themselves."""
    from polymodal.corpora import built_in

    for folder, of_folder in folders().items():
        searched = folder in SEARCHED
        lines = [] if searched else ["---", "search:", "  exclude: true", "---"]
        lines += [f"# {folder}", ""]
        for module in of_folder:
            options = ["show_root_heading: true", "show_root_toc_entry: true", "heading_level: 2"]
            options.append("show_root_full_path: false")
            lines += [
                f"::: polymodal.{'.'.join(module.parts)}",
                "    options:",
                *(f"      {one}" for one in options),
                "",
            ]
        files.append(File.generated(config, f"reference/{folder}.md", content="\n".join(lines)))
    files.append(File.generated(config, "command-line.md", content=site_pages.command_line()))
    for name, text in site_pages.api_pages().items():
        files.append(File.generated(config, f"api/{name}.md", content=text))
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "changes.md", content=changes))
    for name in built_in():
        text, sheet = corpus_page(name)
        files.append(File.generated(config, f"corpora/{name}.md", content=text))
        if sheet is not None:
            files.append(File.generated(config, f"corpora/{name}.png", content=sheet))
    return files


def corpus_page(name: str) -> tuple[str, bytes | None]:
    """What is known of a corpus and, where it is prepared, its contact sheet."""
    from polymodal import corpora
    from polymodal.corpora._cache import is_prepared
    from polymodal.corpora.contact_sheet import plot_contact_sheet, some_rows

    about = corpora.built_in()[name]
    lines = [f"# `{name}`", "", f"{about.description[0].upper()}{about.description[1:]}.", ""]
    lines += [f"- Licence: {about.license}", f"- Source: {about.source}"]
    if about.composed:
        lines.append(f"- Made by us: {about.composed}")
    sheet = None
    if is_prepared(about.folder):
        corpus = corpora.load_corpus(name)
        lines.append(f"- Splits: {', '.join(f'{split} {len(rows):,}' for split, rows in corpus.splits.items())}")
        lines += ["", "| column | modality |", "|---|---|"]
        lines += [f"| `{column}` | {type(kind).__name__.lower()} |" for column, kind in corpus.columns.items()]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "sheet.png"
            plot_contact_sheet(corpus, some_rows(corpus, 3), path)
            sheet = path.read_bytes()
        lines += ["", f"![Examples of {name}]({name}.png)"]
    else:
        lines += ["", f"`polymodal corpora show {name}` prints its columns and draws examples."]
    return "\n".join([*lines, "", f"```console\n$ polymodal corpora show {name}\n```", ""]), sheet


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """A link to a source file leads to its page of the reference."""
    up = "../" * page.file.src_uri.count("/")

    def moved(link: re.Match[str]) -> str:
        module = PurePosixPath(link[1])
        folder = ".".join(module.parts[:-1]) or "polymodal"
        return f"]({up}reference/{folder}.md#polymodal.{'.'.join(module.parts)})"

    return re.sub(r"\]\((?:\.\./)+src/polymodal/([\w/]+)\.py\)", moved, markdown)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """A page without the blank space between elements, most of its size; code and scripts stay as they are."""
    if page.file.src_uri.startswith("reference/"):  # colors of signatures would be half of these pages
        output = re.sub(r'<span class="\w{1,3}">([^<]*)</span>', r"\1", output)
        output = output.replace(' title="Permanent link"', "").replace('<span class="md-ellipsis">', "<span>")
    parts = KEPT.split(output)
    return "".join(part if KEPT.fullmatch(part) else re.sub(r"\s*\n\s*", "\n", part) for part in parts)


def on_post_build(config: Any) -> None:
    """Leave out what no page loads: source maps, and stemmers of other languages than the site's; images are smaller
    with a palette of 256 colors."""
    site = Path(config.site_dir)
    for file in site.rglob("*.png"):
        packed = io.BytesIO()
        with Image.open(file) as image:
            if image.convert("RGBA").getchannel("A").getextrema()[0] < 255:
                continue  # transparent
            image.convert("RGB").quantize(256).save(packed, "PNG", optimize=True)
        if len(packed.getvalue()) < file.stat().st_size:
            file.write_bytes(packed.getvalue())
    for file in [*site.rglob("*.map"), *site.glob("sitemap.xml*")]:
        file.unlink()
    shutil.rmtree(site / "assets" / "javascripts" / "lunr", ignore_errors=True)
