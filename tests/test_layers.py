"""Imports go down only: core <- nets, images <- agents, envs, interventions, testbeds <- the scripts."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ALLOWED = {
    "core": {"core"},
    "nets": {"core", "nets"},
    "agents": {"core", "nets", "agents"},
    "interventions": {"core", "interventions"},
    "images": {"core", "images"},
    "envs": {"core", "images", "envs"},
    "testbeds": {"core", "images", "nets", "testbeds"},
}
ROOMS = {*ALLOWED, "train", "benchmarks", "tests"}
FILES = [path for room in ALLOWED for path in sorted(Path(room).rglob("*.py"))]


def imported_rooms(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module or "")
    return {module.partition(".")[0] for module in modules} & ROOMS


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_imports_only_from_its_own_room_or_below(path):
    assert imported_rooms(path) <= ALLOWED[path.parts[0]]


@pytest.mark.parametrize("path", [p for p in FILES if p.parts[0] == "interventions"], ids=str)
def test_interventions_do_not_know_each_other(path):
    others = {p.stem for p in Path("interventions").glob("*.py")} - {path.stem, "__init__"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("interventions."):
            assert node.module.split(".")[1] not in others


def test_no_file_is_longer_than_three_hundred_lines():
    long = {str(path): len(path.read_text().splitlines()) for path in [*FILES, Path("train.py")]}
    assert {path: lines for path, lines in long.items() if lines > 300} == {}
