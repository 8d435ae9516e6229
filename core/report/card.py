"""The protocol card of a run: what its score means. Scores under different cards are not compared."""

from __future__ import annotations

from typing import Any

from core.ablation import Cell
from core.report.scores import scale

SHOWN_ONLY = ("network",)  # an intervention may be about which network is evaluated


def card(cell: Cell) -> dict[str, Any]:
    """Everything about a cell's evaluation but its task and its arm."""
    config = cell.config
    return {
        "scale": scale(cell.task),
        "family": cell.task.partition("/")[0],
        "budget": f"{config.steps} env steps",
        **{f"env.{name}": value for name, value in config.env_options.items()},
        "episodes": config.eval_episodes,
        "last episodes": config.final_episodes or config.eval_episodes,
        "epsilon": getattr(config.agent, "epsilon_eval", 0.0),
        "network": config.agent.evaluate_with,
        "stream": list(config.stream.tasks),
    }


def check_cards(cells: tuple[Cell, ...]) -> dict[str, Any]:
    """The card of all these cells. Raises ValueError, one line, where they differ."""
    cards = {cell.name: card(cell) for cell in cells}
    (first, common), *others = cards.items()
    for name, other in others:
        differing = [key for key in common if common[key] != other.get(key) and key not in SHOWN_ONLY]
        if differing:
            lines = "; ".join(f"{key} {common[key]} and {other.get(key)}" for key in differing)
            raise ValueError(f"{first} and {name} do not mean the same by a score ({lines}); report them apart")
    return common
