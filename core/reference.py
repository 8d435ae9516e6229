"""Writes docs/interventions.md from the method cards and docs/diagnostics.md from the docstrings.

python -m core.reference
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

from core import controls, diagnostics, rooms
from core.intervention import Intervention
from core.options import plain, settings, show

DOCS = Path(__file__).parents[1] / "docs"
MOMENTS = {
    "build": "before birth",
    "tune": "before birth",
    "forward": "before birth",
    "remember": "at birth",
    "carry": "at birth",
    "penalty": "in the loss",
    "after_step": "after every step",
    "event": "now and then",
}


def interventions() -> str:
    """The page about all interventions: when each acts, its card, its settings."""
    lines = [
        "# Interventions",
        "",
        "Written from the method cards by `python -m core.reference`. "
        "Each is chosen by its name, `interventions=[NAME]`, and set by `interventions.NAME.SETTING=VALUE`.",
        "How to write one: [writing_interventions.md](writing_interventions.md).",
        "",
        "All take `on` (the parts they act on: names or patterns; `*` is every network with layers) and `where` (the "
        "parameters: `all`, `encoder`, `trunk`, `head`, `output` or patterns).",
        "",
        *settings_table("Those that act by events also take `when` (core/when.py):", plain_when()),
        *settings_table("and `control`, one of their matched controls:", [control()]),
        "```text",
        inspect.getdoc(controls) or "",
        "```",
        "",
        "| name | idea | acts |",
        "|---|---|---|",
    ]
    names = list(rooms.interventions())
    for name in names:
        moments = [words for method, words in MOMENTS.items() if made(name).overrides(method)]
        lines.append(f"| [{name}](#{name}) | {rooms.interventions()[name]} | {', '.join(dict.fromkeys(moments))} |")
    for name in names:
        card = inspect.getdoc(inspect.getmodule(type(made(name)))) or ""
        lines += ["", f"## {name}", "", "```text", card, "```", ""]
        lines += settings_table("", own_settings(name))
    return "\n".join(lines).rstrip() + "\n"


def made(name: str) -> Intervention:
    return rooms.intervention(name)()


def own_settings(name: str) -> Iterator[tuple[str, str, str]]:
    """Setting, default and meaning, of what an intervention has beyond all others, or has another default for."""
    fields, shared = settings(type(made(name))), plain(Intervention())
    for field, value in plain(made(name)).items():
        if field not in shared or (field in ("on", "where") and value != shared[field]):
            yield field, show(value), fields[field].metadata.get("help", "")


def plain_when() -> Iterator[tuple[str, str, str]]:
    when = Intervention().when
    for field, value in plain(when).items():
        yield f"when.{field}", show(value), settings(type(when))[field].metadata["help"]


def control() -> tuple[str, str, str]:
    field = settings(Intervention)["control"]
    return "control", show(field.default), field.metadata["help"]


def settings_table(title: str, rows) -> list[str]:
    rows = [f"| `{name}` | `{default}` | {help} |" for name, default, help in rows]
    head = [title, ""] if title else []
    return [*head, "| setting | default | meaning |", "|---|---|---|", *rows, ""] if rows else []


def diagnostics_page() -> str:
    """The page about all diagnostics: tier, name, definition."""
    lines = [
        "# Diagnostics",
        "",
        "Written from the docstrings by `python -m core.reference`. Each is logged as `PART/NAME`, and per layer as "
        "`PART/NAME/LAYER`; any of them can be the metric of a schedule (`when.metric`).",
        "",
        "They come in tiers, each with a batch and a cadence of its own; 0 switches a tier off. Training is the same "
        "to the last bit with or without them. What share of the time they took is said at the end of a run and is "
        "`observing` in `timing.jsonl`.",
    ]
    for tier in diagnostics.TIERS:
        lines += ["", f"## Every `{tier.every}` updates, on {tier.batch:,} samples"]
        for function in tier.diagnostics:
            lines += ["", f"### {function.__name__}", "", inspect.getdoc(function) or ""]
    return "\n".join(lines) + "\n"


PAGES = {"interventions.md": interventions, "diagnostics.md": diagnostics_page}


def main() -> None:
    for name, write in PAGES.items():
        (DOCS / name).write_text(write())
        print(f"docs/{name}")


if __name__ == "__main__":
    main()
