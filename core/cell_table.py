"""What a person sees of an ablation that is running."""

from __future__ import annotations

import sys

from core.ablation import Ablation
from core.cells import Progress


class Table:
    """What a person sees: a line per cell that has changed its state, and how far all of them are."""

    def __init__(self, ablation: Ablation) -> None:
        self.ablation = ablation
        self.before: dict[str, str] = {}
        self.live = sys.stderr.isatty()
        self.lines = 0

    def show(self, standing: dict[str, Progress], given_up: dict[str, str]) -> None:
        states = {name: "failed" if name in given_up else p.status for name, p in standing.items()}
        if self.live:
            self._redraw(standing, states, given_up)
            return
        for name, state in states.items():
            if self.before.get(name, "planned") != state:
                why = f": {given_up[name]}" if name in given_up else ""
                print(f"{name}: {state}{why}   ({self._counts(states)})", file=sys.stderr, flush=True)
        self.before = states

    def say(self, line: str) -> None:
        """A line that stays; the table goes on below it."""
        print(line, file=sys.stderr, flush=True)
        self.lines = 0

    def _redraw(self, standing: dict[str, Progress], states: dict[str, str], given_up: dict[str, str]) -> None:
        width = max(map(len, states))
        rows = []
        for name, state in states.items():
            left = standing[name].seconds_left
            more = (
                f", {left / 60:.0f} min left" if left is not None else f": {given_up[name]}" if name in given_up else ""
            )
            rows.append(f"{name:<{width}}  {state:<9} {standing[name].share:4.0%}{more}")
        rows.append(self._counts(states))
        print(f"\033[{self.lines}A\033[J" * bool(self.lines) + "\n".join(rows), file=sys.stderr, flush=True)
        self.lines = len(rows)

    def _counts(self, states: dict[str, str]) -> str:
        kinds = ("planned", "running", "broken", "finished", "diverged", "failed")
        counts = {kind: sum(state == kind for state in states.values()) for kind in kinds}
        return ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
