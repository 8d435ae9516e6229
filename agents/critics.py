"""What actor-critic agents share: a part that is an ensemble of critics with a target, and its step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from core.blueprint import NetSpec
from core.intervention import Intervention
from core.optim import Adam
from core.part import LossFn, Outcome, Part
from core.state import Batch, Tensors


def critic_part(
    make: Callable[[NetSpec], nn.Module],
    net: NetSpec,
    loss: LossFn,
    value,
    optim: Adam,
    interventions: Sequence[Intervention],
) -> Part:
    """Networks of (observation, action) -> [critics, B, bins], with a slow copy to bootstrap from."""
    return Part(
        "critic",
        make,
        net,
        loss,
        optim=optim,
        inputs=lambda b: (b["obs"], b["action"]),
        logits=value.logits,
        decode=lambda out: value.decode(out).movedim(0, -1),
        copies=("target",),
        interventions=interventions,
    )


def toward(critic: Part, value, params: Tensors, b: Batch, reward: Tensor, next_out: Tensor) -> Outcome:
    """Every critic's loss towards reward + discount * next_out, summed. reward [B], next_out [B, bins]."""
    target = value.backup(reward, b["discount"], next_out)
    out, feats = critic(params, b["obs"], b["action"])
    error = value.loss(out, target.expand(len(out), *target.shape))
    loss = (b["weight"] * error).sum(0).mean()
    q = value.decode(out)
    clipped = value.clipped(reward, b["discount"], next_out)
    values = {"q": q[0], "target": value.expected(target), "priority": error.mean(0), "clipped": clipped}
    return Outcome(loss, feats, {"critic/q_mean": q.mean()}, values)
