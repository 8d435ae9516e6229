"""Updates stay on their device and never wait for it, seen without a GPU: on torch's `meta` device tensors have no
numbers, so whoever asks for one raises, and every operation is watched for tensors of the host."""

import pytest
import torch
import torch.nn.functional as F
from learners import BATCH, batch_for
from test_contract import LEARNERS, SPECS, TABLE, make
from test_every_agent import AGENTS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import nets.layers
import nets.noisy
from core.clock import Clock
from core.engine import Engine


class Guard(TorchDispatchMode):
    """Raises where an operation takes or makes tensors of two devices. Numbers of the host are free: a kernel takes
    them as arguments."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor) and x.ndim]
        devices = {x.device.type for x in tensors}
        assert len(devices) <= 1, f"{operation} meets {devices}"
        return out


@pytest.fixture(autouse=True)
def without_autocast(monkeypatch):
    """torch knows none for this device."""
    for module in (nets.layers, nets.noisy):
        monkeypatch.setattr(module, "exact", F.linear)


def updated(learner, spec) -> dict[str, torch.Tensor]:
    engine, clock = Engine(learner, (0, 1), BATCH, device="meta", compile=False), Clock(steps=10)
    batch = {name: values.to("meta") for name, values in batch_for(spec, engine.seeds).items()}
    with Guard():
        return engine.update(batch, clock)


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize("name", [None, *TABLE])
def test_an_update_stays_on_its_device_and_waits_for_nothing(name, learner):
    report = updated(LEARNERS[learner]([make(name)] if name else ()), SPECS[learner])
    assert {value.device.type for value in report.values()} == {"meta"}


@pytest.mark.parametrize("agent", AGENTS)
def test_so_does_every_other_agents(agent):
    spec, build = AGENTS[agent]
    assert {value.device.type for value in updated(build(()), spec).values()} == {"meta"}


class Stray:
    """An intervention that brings numbers from the host, or asks for one."""

    def __init__(self, waits: bool) -> None:
        self.waits = waits

    def __call__(self, part, params, s, step):
        if self.waits:
            return step.outcome.loss * float(step.outcome.loss)
        return (step.outcome.loss + torch.ones(1)).sum()


@pytest.mark.parametrize("waits, said", [(True, "item"), (False, "meets|device")])
def test_the_guard_sees_both(monkeypatch, waits, said):
    intervention = make("l2")
    monkeypatch.setattr(intervention, "penalty", Stray(waits))
    with pytest.raises((AssertionError, RuntimeError), match=said):
        updated(LEARNERS["classifier"]([intervention]), SPECS["classifier"])
