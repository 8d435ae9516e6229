"""Break the interventions, one small thing at a time, and see whether the tests notice.

    python -m benchmarks.mutants [only=redo,dash] [workers=2]

Every operator, comparison, constant, boolean and statement of interventions/NAME.py is changed once, in a process of
its own; tests/test_NAME.py and NAME's rows of the contract must fail. Prints the survivors and the share killed.
"""

from __future__ import annotations

import ast
import copy
import importlib
import os
import signal
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PATIENCE = 240  # seconds for the tests of one mutant
SWAPS: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.MatMult: ast.Mult,
    ast.Lt: ast.GtE,
    ast.LtE: ast.Gt,
    ast.Gt: ast.LtE,
    ast.GtE: ast.Lt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}


def changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Every small change of one node: what it is, and the node in its place."""
    if isinstance(node, ast.BinOp) and type(node.op) in SWAPS:
        yield "operator", ast.BinOp(node.left, SWAPS[type(node.op)](), node.right)
    elif isinstance(node, ast.BoolOp):
        yield "and/or", ast.BoolOp(SWAPS[type(node.op)](), node.values)
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        yield "comparison", ast.Compare(node.left, [SWAPS[type(node.ops[0])]()], node.comparators)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield "sign", node.operand
    elif isinstance(node, ast.IfExp):
        yield "branches", ast.IfExp(node.test, node.orelse, node.body)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "boolean", ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield "number", ast.Constant(node.value + 1)
    elif isinstance(node, ast.Assign | ast.AugAssign):
        yield "deleted", ast.Pass()
    elif isinstance(node, ast.If):
        yield "never", ast.If(ast.Constant(False), node.body, node.orelse)


def mutants(source: str) -> Iterator[tuple[str, str]]:
    """-> (what was changed and where, the source with it). Docstrings, help texts, imports and hints stay."""
    tree = ast.parse(source)
    for number, node in enumerate(ast.walk(tree)):
        if not hasattr(node, "lineno") or _is_declaration(tree, node):
            continue
        for kind, new in changes(node):
            mutated = copy.deepcopy(tree)
            old = next(n for k, n in enumerate(ast.walk(mutated)) if k == number)
            for parent in ast.walk(mutated):
                for field, value in ast.iter_fields(parent):
                    if value is old:
                        setattr(parent, field, new)
                    elif isinstance(value, list) and old in value:
                        value[[x is old for x in value].index(True)] = new
            line = source.splitlines()[node.lineno - 1].strip()
            yield f"{node.lineno}: {kind}: {line}", ast.unparse(ast.fix_missing_locations(mutated))


def _is_declaration(tree: ast.Module, node: ast.AST) -> bool:
    """Whether it belongs to a decorator, a hint, a limit or a help text: nothing that runs in training."""
    for parent in ast.walk(tree):
        if isinstance(parent, ast.AnnAssign) and node is not parent.value and node in ast.walk(parent.annotation):
            return True
        limits = isinstance(parent, ast.keyword) and parent.arg in ("help", "low", "high", "above", "kw_only")
        if limits and node in ast.walk(parent):
            return True
        if isinstance(parent, ast.FunctionDef):
            hints = [a.annotation for a in parent.args.args + parent.args.kwonlyargs] + [parent.returns]
            if any(hint is not None and node in ast.walk(hint) for hint in hints):
                return True
    return False


def survives(name: str, source: str) -> bool:
    """In a process of its own: do the tests of an intervention pass with this source in its place?"""
    module = types.ModuleType(f"interventions.{name}")
    sys.modules[module.__name__] = module
    try:
        exec(compile(source, f"{name}.py", "exec"), module.__dict__)
    except Exception:  # a mutant may fail in any way there is; one that cannot be loaded is dead
        return False
    setattr(importlib.import_module("interventions"), name, module)
    command = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:timeout", "-o", "addopts="]
    command += ["-m", "not slow and not gpu", "-W", "ignore"]
    own = [str(path) for path in (ROOT / "tests").glob("test_*.py") if f"interventions.{name} " in path.read_text()]
    if own and pytest.main([*command, *own]) != 0:
        return False
    return pytest.main([*command, "-k", f"{name} and not together", "tests/test_contract.py"]) == 0


def in_a_child(name: str, source: str) -> int:
    """Start `survives` in a fork, which has torch loaded already. -> its process; it ends with 1 if the mutant does."""
    if child := os.fork():
        return child
    signal.alarm(PATIENCE)  # an endless loop is noticed too
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os._exit(int(survives(name, source)))


def check(name: str, workers: int) -> tuple[int, list[str]]:
    """-> (number of mutants of an intervention, those that no test noticed)."""
    waiting, running, survivors = list(mutants((ROOT / "interventions" / f"{name}.py").read_text())), {}, []
    total = len(waiting)
    while waiting or running:
        while waiting and len(running) < workers:
            where, source = waiting.pop(0)
            running[in_a_child(name, source)] = where
        child, status = os.wait()
        where = running.pop(child)
        if os.waitstatus_to_exitcode(status) == 1:
            survivors.append(where)
    return total, survivors


def main() -> None:
    given = dict(argument.split("=") for argument in sys.argv[1:])
    names = sorted(path.stem for path in (ROOT / "interventions").glob("[!_]*.py"))
    names = given["only"].split(",") if "only" in given else names
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT / "tests"))
    torch.set_num_threads(1)  # before the forks: threads do not survive them
    importlib.import_module("learners")
    killed = total = 0
    for name in names:
        if in_a_child_passes(name):
            count, survivors = check(name, int(given.get("workers", 2)))
            killed, total = killed + count - len(survivors), total + count
            print(f"{name}: {count - len(survivors)} of {count} killed", *sorted(survivors), sep="\n  ", flush=True)
        else:
            print(f"{name}: its tests fail as it is", flush=True)
    print(f"{killed} of {total} killed, {100 * killed / max(total, 1):.1f} %")


def in_a_child_passes(name: str) -> bool:
    """Whether the unchanged intervention passes its tests: without that, a kill means nothing."""
    child = in_a_child(name, (ROOT / "interventions" / f"{name}.py").read_text())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


if __name__ == "__main__":
    main()
