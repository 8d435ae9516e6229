"""The bookkeeping of a recorded update, with a graph that is played on the CPU: the operations written down, again and
again on the same tensors, results into the same places. (On a GPU: python -m benchmarks.gpu.)"""

from contextlib import contextmanager

import pytest
import torch
from learners import CONTROL, FRAMES, batch_for, dqn, engine, equal, run, sac
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from core.captured import WARM_UP, Captured
from core.clock import Clock
from core.when import When
from interventions.hare_and_tortoise import HareAndTortoise
from interventions.redo import ReDo
from interventions.reset import Reset


class Graph(TorchDispatchMode):
    """Writes down operations. CUDA only writes; here they also run, so the first replay has happened already."""

    def __init__(self):
        super().__init__()
        self.operations, self.replays = [], 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        self.operations.append((operation, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self):
        self.replays += 1
        if self.replays == 1:
            return
        for operation, args, kwargs, out in self.operations:
            again = operation(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.fixture
def recorder(monkeypatch):
    @contextmanager
    def graph(recording):
        with recording:
            yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)


def events():
    return [
        Reset(where=("output",), when=When(every=5)),
        ReDo(when=When(every=3)),
        HareAndTortoise(when=When(every=4)),
    ]


@pytest.mark.parametrize("make", [dqn, sac])
def test_a_replayed_update_is_the_update_also_after_events_and_beside_a_frozen_member(recorder, make):
    plain, recorded = engine(make(events()), (0, 1)), engine(make(events()), (0, 1))
    recorded._run = Captured(recorded._run)
    clocks = [run(e, WARM_UP + 6) for e in (plain, recorded)]
    assert recorded._run._graph.replays == 6
    assert equal(plain.states, recorded.states)
    for e, clock in zip((plain, recorded), clocks, strict=True):
        e.alive[0] = False
        run(e, 3, clock)
    assert equal(plain.states, recorded.states)


@pytest.mark.parametrize("make, spec", [(dqn, FRAMES), (sac, CONTROL)])
def test_a_report_outlives_the_next_replay(recorder, make, spec):
    plain, recorded = engine(make(), (0, 1)), engine(make(), (0, 1))
    recorded._run = Captured(recorded._run)
    reports = []
    for e in (plain, recorded):
        clock, mine = Clock(steps=10**9), []
        for _ in range(WARM_UP + 4):
            mine.append(e.update(batch_for(spec, e.seeds, clock.updates), clock))
            clock.update()
        reports.append(mine)
    for expected, found in zip(*reports, strict=True):
        assert expected.keys() == found.keys()
        assert equal(expected, {name: found[name] for name in expected})


def test_what_is_recorded_is_given_tensors_laid_out_as_in_the_warm_up(recorder):
    """Else the compiler would compile again while the graph is recorded: one number for all seeds, `expand`ed, is laid
    out otherwise than its copy."""
    seen = []

    def function(states, batch, count):
        seen.append([(leaf.data_ptr(), leaf.stride()) for leaf in tree_leaves((batch, count))])
        return {"q/loss": batch["update"].float()}

    captured = Captured(function)
    for number in range(WARM_UP + 2):
        count = torch.full((), number)
        report = captured({}, {"obs": torch.ones(2, 3), "update": count.expand(2)}, count)
        assert report["q/loss"].tolist() == [number, number]
    assert len(seen) == WARM_UP + 1 and all(layout == seen[0] for layout in seen)
