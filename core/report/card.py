"""The protocol card of a run: what its score means. Scores under different cards are not compared."""

from __future__ import annotations

from typing import Any

from core.ablation import Cell
from core.config import Config
from core.report.scores import scale

SHOWN_ONLY = ("network",)  # an intervention may be about which network is evaluated
BY_TASK = ("env.action_repeat",)  # benchmarks from pixels give each task its own


def card(cell: Cell) -> dict[str, Any]:
    """Everything about a cell's evaluation but its task and its arm."""
    config = cell.config
    return {
        "scale": " and ".join(dict.fromkeys(scale(task) for task in config.tasks)),
        "family": cell.task.partition("/")[0],
        "budget": f"{config.steps} env steps",
        **{f"env.{name}": value for name, value in config.env_options.items()},
        "episodes": config.eval_episodes,
        "last episodes": config.final_episodes or config.eval_episodes,
        "epsilon": getattr(config.agent, "epsilon_eval", 0.0),
        "network": _network(config),
        "stream": list(config.stream.tasks),
    }


def _network(config: Config) -> str:
    """Whose weights are evaluated, as core/assemble.py chooses: of those that are on, an intervention's come first."""
    if config.agent.evaluate_with != "auto":
        return config.agent.evaluate_with
    acting = getattr(config.agent, "act_with", "params")
    return next((i.evaluates for i in config.interventions if i.evaluates), acting)


def check_cards(cells: tuple[Cell, ...]) -> dict[str, Any]:
    """The card of all these cells. Raises ValueError, one line, where they differ."""
    cards = {cell.name: card(cell) for cell in cells}
    common = cards[cells[0].name]
    for cell in cells[1:]:
        other = cards[cell.name]
        for known in (cells[0], next(c for c in cells if c.task == cell.task)):
            free = SHOWN_ONLY + (BY_TASK if known.task != cell.task else ())
            mine = cards[known.name]
            differing = [key for key in mine if mine[key] != other.get(key) and key not in free]
            if differing:
                lines = "; ".join(f"{key} {mine[key]} and {other.get(key)}" for key in differing)
                raise ValueError(
                    f"{known.name} and {cell.name} do not mean the same by a score ({lines}); report them apart"
                )
    own = [key for key in BY_TASK if len({str(found.get(key)) for found in cards.values()}) > 1]
    return common | {key: "each task's own" for key in own}
