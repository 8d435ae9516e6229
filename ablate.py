"""Run every cell of an ablation: each arm on each task, all seeds in one process.

    python ablate.py docs/ablation.yaml [size=NAME] [out=runs/ablation] [workers=2] [retries=2]
    python ablate.py docs/ablation.yaml launcher=slurm launcher.slurm_partition=gpu    # or ray: docs/cluster.md

Finished cells are skipped, broken ones go on where they were, what dies is tried again; the same command again goes on.
Then, or meanwhile: python report.py OUT [--watch]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from core import files
from core.ablation import read
from core.campaign import Campaign
from core.cell_table import Table
from core.cells import alone, check
from core.config import check_device
from core.launchers import launcher
from core.report.card import check_cards
from core.signals import Stop
from core.terminal import forgiving

OPTIONS = ("size", "out", "workers", "retries", "launcher")


def main(argv: list[str]) -> int:
    """-> exit code: 0 all cells finished, 1 some were given up, 2 a mistake in the command or the file."""
    if not argv or {"-h", "--help"} & set(argv):
        print(__doc__)
        return 0 if argv else 2
    stop = Stop()
    try:
        with _campaign(Path(argv[0]), argv[1:]) as campaign, stop:
            campaign.run(stop, Table(campaign.ablation))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    if stop.requested:
        for name, state in campaign.not_saved.items():
            print(f"{name}: {state}", file=sys.stderr)
        ended = "stopped" if campaign.not_saved else "every cell has saved"
        left = "the jobs go on" if campaign.launcher.outlived else ended
        print(f"{stop.requested}: {left}; the same command goes on", file=sys.stderr)
        return stop.exit_code
    for name, cause in campaign.given_up.items():
        print(f"{name}: given up ({cause})", file=sys.stderr)
    print(f".venv/bin/python report.py {campaign.ablation.out}")
    return 1 if campaign.given_up else 0


@contextmanager
def _campaign(path: Path, arguments: list[str]) -> Iterator[Campaign]:
    """Everything checked, and no other launcher at work, before anything is written. Raises ValueError, one line."""
    for argument in arguments:
        if "=" not in argument:
            raise ValueError(f"{argument}: expected OPTION=VALUE")
    given = dict(argument.split("=", 1) for argument in arguments)
    settings = {name.partition(".")[2]: given.pop(name) for name in list(given) if name.startswith("launcher.")}
    if unknown := given.keys() - set(OPTIONS):
        raise ValueError(f"{min(unknown)}: no such option; expected {', '.join(OPTIONS[:-1])} or {OPTIONS[-1]}")
    retries = _count("retries", given.get("retries", "2"))
    workers = _count("workers", given["workers"]) if "workers" in given else None
    ablation = read(path, Path(given["out"]) if "out" in given else None, given.get("size", ""))
    try:
        check_cards(ablation.cells)
    except ValueError as error:  # they may be meant for another evaluation than report.py's
        print(f"report.py will not compare them: {error}", file=sys.stderr)
    for cell in ablation.cells:
        check(cell)
        if given.get("launcher", "local") == "local":
            check_device(cell.config.device)
    chosen = launcher(given.get("launcher", "local"), ablation.out, settings)
    if ablation.out.exists() and not ablation.out.is_dir():
        raise ValueError(f"out: {ablation.out} is a file; choose a folder")
    ablation.out.mkdir(parents=True, exist_ok=True)
    with alone(ablation.out):
        files.write(ablation.out / "ablation.yaml", yaml.safe_dump(ablation.tree, sort_keys=False))
        yield Campaign(ablation, chosen, workers or chosen.workers, retries)


def _count(name: str, text: str) -> int:
    least = 1 if name == "workers" else 0
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"{name}: {text} given; expected a whole number, at least {least}")
    return int(text)


if __name__ == "__main__":
    forgiving()
    sys.exit(main(sys.argv[1:]))
