"""What must hold on a GPU before its speed means anything. Each check says what it saw, or raises AssertionError."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.utils._pytree import tree_leaves

from agents import DQN, SAC
from benchmarks import cases, kills
from benchmarks.victim import Victim, Workload
from core import assemble
from core.averages import Averages
from core.captured import WARM_UP
from core.clock import Clock
from core.engine import Engine
from core.faults import Watch
from core.intervention import Intervention
from core.state import States, member
from core.when import When
from interventions.hare_and_tortoise import HareAndTortoise
from interventions.redo import ReDo
from interventions.reset import Reset
from interventions.shrink_and_perturb import ShrinkAndPerturb
from nets import Impala, Nature, Scalar, Vectors

UPDATES = 12  # beyond the first ones, which run before the graph is recorded
SEEDS = 4  # made-up batches are for so many; each seed takes its own
CLOSE = 5e-4  # between weights after so many updates that multiply in another order, Adam's steps being 1e-4 and 3e-4


def small_sac(interventions: Sequence[Intervention] = ()) -> SAC:
    return SAC(SAC.Settings(batch_size=64), cases.CONTROL, Vectors(width=64), Scalar("mse"), interventions)


def small_dqn(interventions: Sequence[Intervention] = ()) -> DQN:
    return DQN(DQN.Settings(batch_size=8), cases.FRAMES, Nature(width=32), Scalar(), interventions)


def small_impala(interventions: Sequence[Intervention] = ()) -> DQN:
    return DQN(DQN.Settings(batch_size=8), cases.FRAMES, Impala(width=64, scale=1), Scalar(), interventions)


LEARNERS: dict[str, Callable[..., DQN | SAC]] = {"sac": small_sac, "dqn": small_dqn, "impala": small_impala}


def events() -> list[Intervention]:
    made: list[Intervention] = [
        Reset(where=("output",), when=When(every=5)),
        ShrinkAndPerturb(when=When(every=4)),
        ReDo(when=When(every=3)),
        HareAndTortoise(when=When(every=6)),
    ]
    for number, intervention in enumerate(made):
        intervention.name = f"event{number}"
    return made


def trained(learner: DQN | SAC, seeds: Sequence[int], device: str, compile: bool, poison: bool = False) -> Engine:
    """An engine after `UPDATES` updates on made-up batches, one per seed; with `poison` the first member's are nan."""
    assemble.choose_arithmetic("float32")
    engine = Engine(learner, seeds, learner.settings.batch_size, device, compile)
    clock = Clock(steps=10**9)

    def batch(count: int) -> dict[str, torch.Tensor]:
        every = cases.batch_for(learner, SEEDS, "cpu", count)
        mine = {name: values[list(seeds)].to(device) for name, values in every.items()}
        if poison:
            mine["reward"][0] = torch.nan
        return mine

    for _ in range(UPDATES):
        engine.update(batch(clock.updates), clock)
        clock.update()
        engine.intervene(clock, ("updates",), lambda stream, count, size: batch(10**6 + count))
    return engine


def difference(a: object, b: object) -> float:
    """Over all leaves, relative to the greatest entry of each if that is beyond 1."""
    pairs = [(x.cpu(), y.cpu()) for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True) if x.numel()]
    return max(float((x - y).abs().max() / x.abs().max().clamp_min(1)) for x, y in pairs)


def weights(states: States) -> dict[str, object]:
    """What networks run on. (Moments differ more: a gradient's last bits grow from update to update.)"""
    return {name: (s.params, s.copies) for name, s in states.items()}


def fast_equals_eager(device: str) -> str:
    """Compiled and captured against eager: the same networks after the same updates."""
    return _compared(device, lambda: ())


def events_under_graphs(device: str) -> str:
    """The same with resets, Shrink & Perturb, ReDo and Hare & Tortoise in between."""
    return _compared(device, events)


def _compared(device: str, interventions: Callable[[], Sequence[Intervention]]) -> str:
    found = {}
    for name, make in LEARNERS.items():
        fast, plain = (trained(make(interventions()), (0, 1), device, compile) for compile in (True, False))
        found[name] = difference(weights(fast.states), weights(plain.states))
    return _judged(found)


def seeds_do_not_meet(device: str) -> str:
    """Member 2 of four against the same seed alone."""
    found = {}
    for name, make in LEARNERS.items():
        four, one = trained(make(), (0, 1, 2, 3), device, True), trained(make(), (2,), device, True)
        found[name] = difference(member(weights(four.states), 2), member(weights(one.states), 0))
    return _judged(found)


def a_diverging_member_is_frozen_alone(device: str) -> str:
    """Rewards of nan for member 0: it stops, and its neighbour's bits are as they are without."""
    for make in LEARNERS.values():
        ill, well = (trained(make(), (0, 1), device, True, poison) for poison in (True, False))
        found = ill.diverged(), well.diverged()
        assert found == ([True, False], [False, False]), f"diverged: {found}"
        assert difference(member(ill.states, 1), member(well.states, 1)) == 0.0, "the neighbour has changed"
        assert all(leaf.isfinite().all() for leaf in tree_leaves(ill.states)), "what is frozen is not finite"
    return "frozen at once, neighbours bit for bit"


def nothing_waits(device: str) -> str:
    """Updates with their reports under torch's guard against synchronisation."""
    if not device.startswith("cuda"):
        return "only on a GPU"
    for make in LEARNERS.values():
        learner = make()
        engine, clock = Engine(learner, (0, 1), learner.settings.batch_size, device), Clock(steps=10**9)
        batch = cases.batch_for(learner, 2, device)
        averages, watch = Averages(2), Watch(engine)
        try:
            for k in range(WARM_UP + 8):
                if k == WARM_UP + 2:
                    torch.cuda.set_sync_debug_mode("error")
                averages.add(engine.update(batch, clock))
                watch.look(batch, clock.updates, 0)
                clock.update()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return "no synchronisation"


def pixels(device: str) -> str:
    """dm_control draws without a screen."""
    code = (
        "from dm_control import suite; e = suite.load('walker', 'walk', task_kwargs={'random': 0}); e.reset();"
        "x = e.physics.render(84, 84, camera_id=0); assert x.std() > 5, x.std(); print(f'std {x.std():.1f}')"
    )
    backend = "egl" if device.startswith("cuda") else os.environ.get("MUJOCO_GL", "egl")
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"MUJOCO_GL": backend}, capture_output=True, text=True
    )
    assert not done.returncode, f"{backend}: {done.stderr.strip().splitlines()[-1]}"
    return f"{backend}: {done.stdout.strip()}"


def resume(device: str) -> str:
    """A run that is killed and started again ends in the digests of one that was not."""
    arguments = ["agent=dqn", "env=toy/chain", f"device={device}", "seeds=[0,1]", "steps=1_500", "save_every=100"]
    work = Workload("resume", (sys.executable, "train.py", *arguments))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = kills.Table(folder / "kills.csv")
        try:
            same = kills.study(work, 2, folder, table)
        finally:
            Victim(work, folder, []).kill("all")  # of a study that was cut off
        last = table.ends(work.name)[-1]
    assert same, last["outcome"]
    return f"{last['digests']} digests equal"


def _judged(found: dict[str, float]) -> str:
    text = ", ".join(f"{name} {value:.0e}" for name, value in found.items())
    assert max(found.values()) <= CLOSE, text
    return f"largest difference: {text}"


CHECKS: tuple[Callable[[str], str], ...] = (
    fast_equals_eager,
    events_under_graphs,
    seeds_do_not_meet,
    a_diverging_member_is_frozen_alone,
    nothing_waits,
    resume,
    pixels,
)
