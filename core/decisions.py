"""What n members do next: one after the other, or side by side.

Dense networks of many members decide side by side: `vmap` takes as long to set up as about six decisions of a small
network, and then hardly longer for sixteen members than for one. Few are quicker one after the other, and convolutions
always go one by one, as in updates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.func import vmap

from core.state import States, Tensors, member

MANY = 8  # members
Decide = Callable[[Tensor, Any, Tensors, str], Tensor]


class Decides(Protocol):
    """An agent, for one seed: obs [E, *seen_shape] -> actions [E, *action_shape]."""

    def act(self, s: States, obs: Tensor, explore: Any, noise: Tensors, role: str) -> Tensor: ...


def decisions(agent: Decides, states: States, members: Sequence[States], together: bool) -> Decide:
    """(seen [n, E, *seen_shape], explore, noise [n, ...] by name, role) -> actions [n, E, *action_shape]

    states: of all members, members: views of each, storage that never moves; together: whether networks of this kind
    can.
    """
    return _side_by_side(agent, states) if together and len(members) >= MANY else _one_by_one(agent, members)


def _one_by_one(agent: Decides, members: Sequence[States]) -> Decide:
    def decide(seen: Tensor, explore: Any, noise: Tensors, role: str) -> Tensor:
        rows = [agent.act(mine, seen[i], explore, member(noise, i), role) for i, mine in enumerate(members)]
        return torch.stack(rows)

    return decide


def _side_by_side(agent: Decides, states: States) -> Decide:
    # what decides nothing is left out: `vmap` takes microseconds for every tensor
    deciding = {name: s._replace(birth={}, optim={}, memory={}) for name, s in states.items()}

    def decide(seen: Tensor, explore: Any, noise: Tensors, role: str) -> Tensor:
        def act(mine: States, obs: Tensor, drawn: Tensors) -> Tensor:
            return agent.act(mine, obs, explore, drawn, role)

        return vmap(act)(deciding, seen, noise)

    return decide
