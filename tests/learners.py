"""Small learners and batches that many tests share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils._pytree import tree_leaves

from agents import DQN, SAC
from core.blueprint import NetSpec
from core.clock import Clock
from core.engine import Engine
from core.intervention import Intervention
from core.spec import EnvSpec
from core.state import Batch
from nets import Nature, Scalar, Vectors
from testbeds import Classifier

VECTOR = EnvSpec("toy/vector", (5,), "float32", num_actions=3)
FRAMES = EnvSpec("toy/frames", (36, 36), "uint8", num_actions=3, stack=2)
CONTROL = EnvSpec("toy/control", (5,), "float32", action_dim=2)
BATCH = 8


def dqn(
    interventions: Sequence[Intervention] = (),
    spec: EnvSpec = FRAMES,
    value=None,
    net: NetSpec | None = None,
    **settings,
) -> DQN:
    """A DQN of a few thousand weights, convolutional unless `spec` gives vectors."""
    net = net or (Nature(width=16, padding="valid") if spec.is_image else Vectors(width=16))
    settings = DQN.Settings(batch_size=BATCH, **settings)
    return DQN(settings, spec, net, value or Scalar(), named(interventions))


def sac(interventions: Sequence[Intervention] = (), value=None, net: NetSpec | None = None, **settings) -> SAC:
    """A SAC of a few thousand weights."""
    settings = SAC.Settings(batch_size=BATCH, **settings)
    return SAC(settings, CONTROL, net or Vectors(width=16), value or Scalar("mse"), named(interventions))


def classifier(interventions: Sequence[Intervention] = (), net: NetSpec | None = None, **settings) -> Classifier:
    """A classifier of a few hundred weights, on the observations of VECTOR."""
    settings = Classifier.Settings(batch_size=BATCH, **settings)
    return Classifier(settings, VECTOR, net or Vectors(width=16), None, named(interventions))


def named(interventions: Sequence[Intervention]) -> Sequence[Intervention]:
    """Interventions with the names a configuration would give them."""
    for intervention in interventions:
        intervention.name = intervention.name or type(intervention).__module__.rpartition(".")[2]
    return interventions


def engine(learner, seeds: Sequence[int] = (0,), compile: bool = False) -> Engine:
    return Engine(learner, seeds, BATCH, compile=compile)


def batch_for(spec: EnvSpec, seeds: Sequence[int], count: int = 0) -> Batch:
    """A made-up batch; member k's part depends on its seed and `count` alone. Leaves [n, BATCH, ...]."""
    members = []
    for seed in seeds:
        g = torch.Generator().manual_seed(1000 * seed + count)

        def see(g=g):
            if spec.is_image:
                return torch.randint(0, 256, (BATCH, *spec.seen_shape), generator=g, dtype=torch.uint8)
            return torch.randn(BATCH, *spec.seen_shape, generator=g)

        discrete = spec.is_discrete
        members.append(
            {
                "obs": see(),
                "next_obs": see(),
                "action": torch.randint(0, spec.num_actions, (BATCH,), generator=g)
                if discrete
                else torch.rand(BATCH, spec.action_dim, generator=g) * 2 - 1,
                "reward": torch.randn(BATCH, generator=g),
                "discount": 0.99 * (torch.rand(BATCH, generator=g) > 0.2).float(),
                "weight": torch.ones(BATCH),
                "label": torch.randint(0, spec.num_actions or 2, (BATCH,), generator=g),
            }
        )
    return {key: torch.stack([m[key] for m in members]) for key in members[0]}


def run(engine: Engine, updates: int, clock: Clock | None = None) -> Clock:
    """Train on made-up batches, with the events that fall due."""
    clock = clock or Clock(steps=10**9)
    spec = engine.learner.spec

    def sample(stream: str, count: int, size: int) -> Batch:
        return batch_for(spec, engine.seeds, count=10**6 + count)

    for _ in range(updates):
        engine.update(batch_for(spec, engine.seeds, clock.updates), clock)
        clock.update()
        engine.intervene(clock, ("updates",), sample)
    return clock


def largest_difference(a, b) -> float:
    """Over all leaves of two trees; of a leaf with entries beyond 1, relative to the greatest."""
    pairs = [(x, y) for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True) if x.numel()]
    return max((float((x - y).abs().max() / x.abs().max().clamp_min(1)) for x, y in pairs), default=0.0)


def equal(a, b) -> bool:
    """Bit by bit."""
    return all(torch.equal(x, y) for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True))
