"""The structure of a compiled update: few kernels, as many for eight seeds as for one, one compilation, no way out."""

import re

import pytest
import torch
from learners import CONTROL, FRAMES, VECTOR, batch_for, dqn, engine, largest_difference, run, sac
from torch._dynamo.utils import counters
from torch._inductor.graph import GraphLowering

from core import compiling
from core.clock import Clock
from core.state import clone, member
from core.when import When
from interventions.batch_norm import BatchNorm
from interventions.ema import EMA
from interventions.hare_and_tortoise import HareAndTortoise
from interventions.l2 import L2
from interventions.l2_init import L2Init
from interventions.redo import ReDo
from interventions.reset import Reset
from interventions.shrink_and_perturb import ShrinkAndPerturb
from nets.mlp import Critics

CALL = re.compile(r"^\s+(?:cpp_fused\w*|triton_\w+\.run|extern_kernels\.\w+)\(", re.MULTILINE)
WAY_OUT = re.compile(r"\.item\(|_local_scalar_dense|\.tolist\(|\.cpu\(")


def code_of(update, monkeypatch) -> str:
    """The program that the compiler makes of an update: what would run when it is called."""
    programs = []

    def keep(program: str) -> None:
        programs.append(program)
        raise InterruptedError("its kernels need not be compiled")

    monkeypatch.setattr(GraphLowering, "save_output_code", staticmethod(keep))
    with (
        torch._inductor.config.patch(force_disable_caches=True),
        pytest.raises(Exception, match="need not be compiled"),
    ):
        update()
    (program,) = programs
    return program[program.index("def call(") :]


@pytest.mark.timeout(600)
def test_sacs_whole_update_is_at_most_fifty_kernels_for_one_seed_and_for_eight(monkeypatch):
    """In the form that a GPU runs, compiled here for the CPU."""
    monkeypatch.setattr(Critics, "launches_cost", staticmethod(lambda x: True))
    monkeypatch.setattr(compiling, "options", lambda device: {"cpp_wrapper": False})
    found = {}
    for seeds in (range(1), range(8)):
        e, batch = engine(sac(), seeds, compile=True), batch_for(CONTROL, seeds)
        code = code_of(lambda e=e, batch=batch: e.update(batch, Clock(steps=10)), monkeypatch)
        assert not WAY_OUT.search(code), "the update waits for the device"
        found[len(seeds)] = len(CALL.findall(code))
    assert 20 < found[1] <= 50
    assert found[8] <= found[1]


EVENTS = [
    Reset(where=("output",), when=When(every=2)),
    ShrinkAndPerturb(when=When(every=3)),
    ReDo(when=When(every=2)),
    HareAndTortoise(when=When(every=4)),
    L2Init(),
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("make, spec", [(lambda i: dqn(i, VECTOR), VECTOR), (lambda i: dqn(i), FRAMES)])
def test_an_update_is_compiled_once_and_never_again_whatever_happens_between(make, spec, monkeypatch):
    """Events, acting, observing and frozen members leave the compiled region as it is. With a graph break the first
    update would raise; with a reason to compile again, the second or a later one. Here all that was read is watched."""
    monkeypatch.setattr(compiling, "watched", lambda guards: [True for _ in guards])
    torch._dynamo.reset()
    counters.clear()
    e = engine(make(EVENTS), (0, 1), compile=True)
    clock = run(e, 1)
    compiled = counters["stats"]["unique_graphs"]
    assert compiled == 1 and not counters["graph_break"]
    with torch._dynamo.config.patch(error_on_recompile=True):
        run(e, 4, clock)
        seen = batch_for(spec, e.seeds)["obs"][:, :1].numpy()
        e.act(seen, e.learner.explore_eval, "act", 0)
        e.alive[0] = False
        run(e, 4, clock)
    assert counters["stats"]["unique_graphs"] == compiled and not counters["graph_break"]
    assert len(e.diverged()) == 2


@pytest.mark.timeout(600)
@pytest.mark.parametrize("make, spec", [(lambda i: dqn(i, VECTOR), VECTOR), (lambda i: dqn(i), FRAMES)])
def test_a_loss_that_overflows_freezes_its_member_in_a_compiled_update_too(make, spec):
    """Its batch is finite, so that only the network's own verdict can tell."""
    e = engine(make([]), (0, 1), compile=True)
    before, clock = clone(e.states), Clock(steps=10**9)
    batch = batch_for(spec, e.seeds)
    batch["weight"][0] = torch.finfo(torch.float32).max
    info = e.update(batch, clock)
    assert info["q/loss"].isfinite().tolist() == e.alive.tolist() == [False, True]
    frozen, trained = (largest_difference(member(e.states, i), member(before, i)) for i in (0, 1))
    assert frozen == 0 < trained


class Sum:
    """Something to compile."""

    def of(self, states, batch):
        return {name: value + batch["x"] for name, value in states.items()}


@pytest.mark.parametrize("other", [torch.ones(5, 4), torch.ones(4, 4).t(), torch.ones(8, 4)[::2], torch.ones(4, 1)])
def test_what_is_not_watched_is_refused_where_it_lies_otherwise(other):
    """The learner's numbers are not asked for at each call; the code that was made for them must not misread others."""
    of = compiling.compiled(Sum().of, torch.device("cpu"))
    row = {"x": torch.ones(1)}
    assert of({"w": torch.ones(4, 4)}, row)["w"].sum() == 32
    with pytest.raises((AssertionError, RuntimeError), match="expected size"):
        of({"w": other}, row)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("make, spec", [(lambda i: dqn(i, VECTOR), VECTOR), (lambda i: dqn(i), FRAMES)])
def test_a_batch_of_another_size_is_compiled_anew(make, spec):
    """Shapes are watched in every run."""
    found = []
    for compile in (False, True):
        e, clock = engine(make([]), (0, 1), compile=compile), Clock(steps=10**9)
        for size in (8, 5):
            e.update({k: v[:, :size] for k, v in batch_for(spec, e.seeds).items()}, clock)
            clock.update()
        found.append(e.states)
    assert largest_difference(*found) < 1e-5


@pytest.mark.timeout(600)
def test_an_update_with_patterns_in_where_compiles_to_what_it_is_without_the_compiler():
    """A pattern is matched before the update is traced: the compiler cannot follow how."""
    where = ("trunk.*.1.*", "value.weight")
    found = []
    for compile in (False, True):
        e = engine(dqn([BatchNorm(), L2(weight=0.1, where=where), EMA(where=where)], VECTOR), (0, 1), compile=compile)
        run(e, 2)
        found.append(e.states)
    assert largest_difference(*found) < 1e-5


def test_a_graph_break_is_an_error():
    class Printing(L2Init):
        def penalty(self, part, params, s, step):
            print("what the compiler cannot take along")
            return super().penalty(part, params, s, step)

    with pytest.raises(Exception, match="(?i)print|graph break|fullgraph"):
        run(engine(dqn([Printing()], VECTOR), compile=True), 1)
