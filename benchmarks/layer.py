"""What the plasticity layer costs: where nothing of it is used, and with interventions that are always on."""

from __future__ import annotations

from collections.abc import Callable

import torch

from agents import SAC
from benchmarks import cases
from benchmarks.timing import interleaved
from core import compiling
from core.copies import follow
from core.part import Part
from core.state import States, Tensors
from interventions.hare_and_tortoise import HareAndTortoise
from interventions.l2_init import L2Init
from interventions.layer_norm import LayerNorm
from interventions.soft_weight_rescaling import SoftWeightRescaling
from nets import Scalar, Vectors


def overhead(blocks: int, seconds: float) -> list[list[str]]:
    """A compiled SAC update (256 x 256, batch 256): written out by hand, through the layer, and with four always on."""
    four = [LayerNorm(), L2Init(), SoftWeightRescaling(), HareAndTortoise()]
    for intervention in four:
        intervention.name = type(intervention).__module__.rpartition(".")[2]
    with_four = SAC(SAC.Settings(), cases.CONTROL, Vectors(), Scalar("mse"), four)
    updates: dict[str, Callable[[], object]] = {
        "written out": written_out(cases.sac()),
        "no intervention": cases.update_of(cases.sac()),
        "layer_norm, l2_init, soft_weight_rescaling, hare_and_tortoise": cases.update_of(with_four),
    }
    found = interleaved(updates, blocks, seconds)
    rows = [["update", "ms", "time / written out"]]
    rows += [[name, f"{t.ms:.2f}", f"{t.median / found['written out'].median:.3f}"] for name, t in found.items()]
    return rows


def written_out(agent: SAC) -> Callable[[], object]:
    """The same losses, optimizer and target in one compiled function that knows no intervention, guard or member."""
    states = {name: part.birth(0) for name, part in agent.parts.items()}
    batch = {k: v[0] for k, v in cases.batch_for(agent, 1).items()}
    noise = {k: torch.randn(1, *n.shape)[0] for k, n in agent.noise(256).items()}

    def step(part: Part, states: States, batch: Tensors) -> tuple[States, Tensors]:
        def objective(params: Tensors) -> tuple[torch.Tensor, Tensors]:
            outcome = part.loss(params, states, batch, noise)
            return outcome.loss, outcome.info

        s = states[part.name]
        grads, info = torch.func.grad(objective, has_aux=True)(s.params)
        params, optim = part.optim.step(s.params, grads, s.optim)
        return states | {part.name: s._replace(params=params, optim=optim)}, info

    def whole() -> None:
        new, _ = step(agent.critic, states, batch)
        new = follow(agent.critic, new, agent.settings.tau, batch)
        new, info = step(agent.actor, new, batch)
        new, _ = step(agent.alpha, new, batch | {"entropy": info["actor/entropy"]})
        for name, state in states.items():
            for field in ("params", "optim", "copies"):
                _copy(getattr(state, field), getattr(new[name], field))

    return torch.compile(whole, fullgraph=True, options=compiling.options(torch.device("cpu")))


def _copy(old: dict, new: dict) -> None:
    for name, value in old.items():
        if isinstance(value, dict):
            _copy(value, new[name])
        else:
            value.copy_(new[name])
