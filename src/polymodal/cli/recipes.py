"""Commands about recipes and the installation: list, show, new, doctor."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from polymodal.cli._flags import Arguments, JsonOptions, parse, positional
from polymodal.cli._printing import megabytes, print_json, print_table, table_console, terminal


def list_(arguments: Arguments) -> None:
    """list the recipes, with family, modalities, idea and the state of their claim"""
    from polymodal.recipes import entries

    options = parse(JsonOptions, arguments, "list", list_)
    from polymodal.claim import recorded_results, verdict_of

    results = recorded_results()
    rows = [
        dataclasses.asdict(entry)
        | {"verdict": verdict_of(results[name]) if name in results else None}
        | {"claim": verdict_of(results[name]) if name in results else "not yet run" if entry.has_claim else "-"}
        for name, entry in entries().items()
    ]
    if options.json:
        print_json(rows)
        return
    print_table(
        ["recipe", "family", "modalities", "year", "idea", "claim"],
        [[e["name"], e["family"], " + ".join(e["modalities"]), str(e["year"]), e["idea"], e["claim"]] for e in rows],
    )


def show(arguments: Arguments) -> None:
    """show a recipe: its paper, its hyper-parameters with types, defaults and sources, its claim"""
    spec, rest = positional(arguments, "show RECIPE [--json]")

    options = parse(JsonOptions, rest, "show RECIPE", show)
    from polymodal.claim import recorded_results
    from polymodal.recipes import describe

    about = describe(spec)
    recorded = recorded_results()
    result = recorded.get(spec)
    if options.json:
        print_json(about | {"result": result})
        return
    console = table_console()
    console.print(f"[bold]{about['title']}[/bold] ({about['year']}, arXiv {about['arxiv']})\n\n{about['about']}\n")
    print_table(
        ["hyper-parameter", "type", "default", "meaning and source"],
        [[row["flag"], row["type"], row["default"], row["meaning"]] for row in about["hyper_parameters"]],
    )
    if about["claim"]:
        _print_claim("Claim", about["claim"], result)
    for name, sentence in about["further_claims"].items():
        _print_claim(f"Claim {name}", sentence, recorded.get(f"{spec}-{name}"))


def _print_claim(title: str, sentence: str, result: dict[str, Any] | None) -> None:
    console = table_console()
    console.print(f"\n[bold]{title}[/bold]: {sentence}")
    if result:
        from polymodal.reproduce.claim_text import decision_sentence

        console.print(
            f"[bold]Here[/bold], with {len(result['seeds'])} seeds of {result['budget']}: "
            f"{decision_sentence(result, '', '')}"
        )


def new(arguments: Arguments) -> None:
    """write the file of your own method, ready to run, from a recipe"""
    name, rest = positional(arguments, "new NAME --from RECIPE")
    if "--from" in rest:  # a keyword of Python cannot be a field
        rest = ["--source" if word == "--from" else word for word in rest]

    @dataclass(frozen=True)
    class Options:
        source: str = "clip"
        """Recipe to start from (--from)."""

    options = parse(Options, rest, "new NAME", new)
    from polymodal.recipes import command_of, entries, find
    from polymodal.recipes.new import write_starting_point

    path = write_starting_point(name, options.source)
    entry, kind = entries()[options.source], find(options.source)
    corpus = "emoji" if entry.family == "dual_encoders" else entry.corpus
    command = f"compare {options.source} ./{path} --corpus {corpus} --budget 25s"
    if not hasattr(kind, "build"):
        command = command_of(kind, f"./{path}")
    terminal().print(f"Wrote {path}. Run it as it is: polymodal {command}", highlight=False)


def doctor(arguments: Arguments) -> None:
    """report this installation: versions, devices, cache, optional packages"""

    options = parse(JsonOptions, arguments, "doctor", doctor)
    from polymodal.serving import installation

    cache, held, free = installation.disk()
    extras, programs = installation.extras(), installation.programs()
    if options.json:
        parts = {part.name: list(part.missing) for part in [*extras, *programs]}
        disk = {"cache": str(cache), "bytes": held, "free": free}
        print_json(
            {"versions": installation.versions(), "devices": installation.devices(), "disk": disk, "missing": parts}
        )
        return
    console = table_console()
    console.print(", ".join(f"{name} {version}" for name, version in installation.versions().items()), highlight=False)
    console.print("; ".join(installation.devices()), highlight=False)
    console.print(f"Cache {cache}: {megabytes(held)}; {megabytes(free)} free.", highlight=False, soft_wrap=True)
    print_table(
        ["optional", "state", "for"],
        [
            [name, "missing: " + ", ".join(part.missing) if part.missing else "ready", part.what_for]
            for kind, parts in (("polymodal[{}]", extras), ("{}", programs))
            for part in parts
            for name in [kind.format(part.name)]
        ],
    )
