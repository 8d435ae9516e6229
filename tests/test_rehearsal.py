"""What can never work is said before a run begins, in one line; what can work is rehearsed without a trace."""

import json

import pytest
import torch
from learners import CONTROL, FRAMES, VECTOR, batch_for, classifier, dqn, engine, equal, run, sac

from core import rooms
from core.clock import Clock
from core.rehearsal import blank, rehearse, shaken
from core.state import clone, member
from core.when import When
from interventions.fire import FIRE
from interventions.hare_and_tortoise import HareAndTortoise
from interventions.optimizer_reset import OptimizerReset
from interventions.redo import ReDo
from interventions.reset import Reset
from interventions.shrink_and_perturb import ShrinkAndPerturb

OFTEN = When(every=3)


def on(metric: str) -> When:
    return When(metric=metric, above=0.5, measure_every=1)


REFUSED = {
    "a misspelt metric": (
        lambda: sac([ReDo(when=on("dormantt"))]),
        r"redo.when.metric=dormantt.*did you mean dormant\?",
    ),
    "a logged name": (lambda: sac([ReDo(when=on("critic/dormant"))]), r"redo.when.metric=critic/dormant.*none"),
    "a matrix": (lambda: sac([ReDo(when=on("entk_image"))]), r"redo.when.metric=entk_image.*none"),
    "a part without layers": (lambda: sac([Reset(on=("alpha",), where=("all",), when=on("dormant"))]), "alpha.*`on`"),
    "a metric of another part": (lambda: sac([Reset(when=on("target_mean"))]), "target_mean.*part actor"),
    "no target to control": (
        lambda: sac([ShrinkAndPerturb(when=OFTEN, control="target_only")]),
        "shrink_and_perturb.control=target_only.*part actor",
    ),
    "no slots to control": (
        lambda: dqn([HareAndTortoise(when=OFTEN, control="optimizer_only")], VECTOR),
        "hare_and_tortoise.control=optimizer_only",
    ),
    "a control that is the event": (
        lambda: dqn([OptimizerReset(when=OFTEN, control="same_norm")], VECTOR),
        "optimizer_reset.control=same_norm.*all that the event does",
    ),
    "a birth that is the event": (
        lambda: dqn([Reset(when=OFTEN, toward="birth", control="birth")], VECTOR),
        "reset.control=birth.*all that the event does",
    ),
    "a birth that nobody draws": (lambda: dqn([FIRE(when=OFTEN, control="birth")], VECTOR), "fire.control=birth"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_never_work_is_refused_in_one_line(case):
    make, message = REFUSED[case]
    e = engine(make())
    spec = e.learner.spec
    with pytest.raises(ValueError, match=message) as error:
        rehearse(e, blank(spec, 8))
    assert "\n" not in str(error.value) and str(error.value).startswith("interventions.")


@pytest.mark.parametrize("repeat, unit, at, first", [(1, "agent_steps", 2, 11), (4, "env_steps", 4, 44)])
def test_an_event_that_looks_at_data_comes_when_there_are_some(repeat, unit, at, first):
    def agent(event):
        return engine(dqn([event], VECTOR, n_step=10))

    early, clock = {"unit": unit, "every": 2}, Clock(steps=1_000, action_repeat=repeat)
    with pytest.raises(ValueError, match=f"redo.when: it looks .* at {at} {unit}, .* {first} there may be none"):
        rehearse(agent(ReDo(when=When(**early))), blank(VECTOR, 8), clock)
    rehearse(agent(ReDo(when=When(**early, start=first))), blank(VECTOR, 8), clock)
    rehearse(agent(Reset(where=("head",), when=When(**early))), blank(VECTOR, 8), clock)  # it looks at none


@pytest.mark.parametrize("at, none", [(399, False), (404, True), (440, True), (444, False), (840, False)])
def test_nor_does_it_come_just_after_a_switch_that_clears_the_replay(at, none):
    """Steps 404 to 440 are the first ten of task 1; step 840 is within the last task, that of the run's end."""
    clock = Clock(steps=900, action_repeat=4, task_length=400, switches=1)
    e = engine(dqn([ReDo(when=When(unit="env_steps", at=(at,)))], VECTOR, n_step=10))
    rehearse(e, blank(VECTOR, 8), clock)
    if none:
        with pytest.raises(ValueError, match=f"redo.when: .* at {at} env_steps, and before 444 .* task 1; .*keep"):
            rehearse(e, blank(VECTOR, 8), clock, cleared=True)
    else:
        rehearse(e, blank(VECTOR, 8), clock, cleared=True)


EVENTS = [name for name in rooms.interventions() if rooms.intervention(name)().overrides("event")]


@pytest.mark.parametrize("make, spec", [(dqn, FRAMES), (sac, CONTROL), (classifier, VECTOR)])
@pytest.mark.parametrize("name", EVENTS)
def test_every_event_passes_its_rehearsal_which_leaves_no_trace(name, make, spec):
    kind = rooms.intervention(name)
    e, untouched = (engine(make([kind(when=OFTEN)]), (0, 1)) for _ in range(2))
    generator = torch.get_rng_state()
    batch = blank(spec, 8)
    rehearse(e, batch | {"label": torch.zeros(1, 8, dtype=torch.int64)})
    assert torch.equal(generator, torch.get_rng_state())
    run(e, 4)
    run(untouched, 4)
    assert equal(e.states, untouched.states)


@pytest.mark.parametrize(
    "metric", ["dormant", "srank", "parameter_norm", "gradient_norm", "value_churn", "target_mean"]
)
def test_a_metric_that_the_part_has_passes(metric):
    rehearse(engine(dqn([Reset(when=on(metric))], VECTOR)), batch_for(VECTOR, (0,)))


def test_a_shaken_state_is_nobodys_birth_target_or_first_step():
    e = engine(dqn(spec=VECTOR))
    before = clone(e.states)
    s = shaken(member(e.states, 0))["q"]
    for k, p in s.params.items():
        assert not torch.equal(p, s.birth[k]) and not torch.equal(p, s.copies["target"][k])
        assert (s.optim["t"][k] == 3).all() and (s.optim["v"][k] > 0).all()
    assert equal(before, e.states)


def test_a_yoke_to_parts_that_this_agent_lacks_is_refused(tmp_path):
    row = {"intervention": "reset", "part": "critic", "touched": 5, "seed": 0, "updates": 3}
    (tmp_path / "ledger.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "done.json").touch()
    rehearse(engine(sac([Reset(when=When(yoke=str(tmp_path)))])), blank(CONTROL, 8))
    with pytest.raises(ValueError, match="acted on critic there, and acts on q here"):
        rehearse(engine(dqn([Reset(when=When(yoke=str(tmp_path)))], VECTOR)), blank(VECTOR, 8))
