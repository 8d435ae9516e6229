"""When an event happens: conditions on a diagnostic with two thresholds, and yokes; schedules are in test_clock.py."""

from __future__ import annotations

import json

import pytest
import torch
from learners import VECTOR, batch_for, dqn, engine, run

from core.clock import Clock
from core.config import load
from core.when import When, happenings
from interventions.redo import ReDo
from interventions.reset import Reset


def happened(when: When, values: dict[int, float]) -> list[int]:
    """Counts at which a condition lets an event happen, given the metric's value at each look."""
    memory, counts = when.memory({"w": torch.zeros(1)}), []
    for count, value in values.items():
        happens, memory = when.judge(value, memory, Clock(steps=10**9, updates=count))
        counts += [count] * happens
    return counts


def test_an_event_happens_above_the_threshold_and_waits_until_the_metric_has_fallen_back():
    when = When(metric="dormant", above=0.3, below=0.2)
    values = {10: 0.3, 20: 0.31, 30: 0.5, 40: 0.25, 50: 0.4, 60: 0.2, 70: 0.4, 80: 0.9}
    assert happened(when, values) == [20, 70]


def test_without_a_lower_threshold_falling_back_to_the_upper_one_is_enough():
    assert happened(When(metric="dormant", above=0.3), {1: 0.4, 2: 0.4, 3: 0.3, 4: 0.4}) == [1, 4]


def test_falling_happens_below_and_waits_for_above():
    when = When(metric="srank", above=8.0, below=4.0, falling=True)
    assert happened(when, {1: 9, 2: 4.0, 3: 3.9, 4: 2, 5: 7.9, 6: 3, 7: 8.0, 8: 3}) == [3, 8]


def test_two_events_are_at_least_a_cooldown_apart():
    when = When(metric="dormant", above=0.3, cooldown=25)
    assert happened(when, {10: 0.4, 20: 0.1, 30: 0.4, 34: 0.4, 35: 0.4, 40: 0.1, 50: 0.4, 60: 0.4}) == [10, 35, 60]


def test_a_condition_is_looked_at_every_so_many_units_and_not_outside_start_and_stop():
    when = When(metric="dormant", above=0.3, measure_every=10, start=20, stop=40)
    looked = [u for u in range(1, 61) if when.due(Clock(steps=10**9, updates=u, last={"updates": u - 1}))]
    assert looked == [20, 30, 40]


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"metric": "dormant", "above": 0.1, "below": 0.2}, "above=0.1"),
        ({"above": 0.1}, "belong to a metric"),
        ({"cooldown": 5}, "belong to a metric"),
        ({"metric": "dormant", "measure_every": 0}, "measure_every=0"),
        ({"metric": "dormant", "above": 0.1, "yoke": "runs/x"}, "metric and yoke"),
        ({"yoke": "runs/x", "unit": "env_steps"}, "unit=env_steps.*goes by updates"),
        ({"metric": "dormant"}, "above is not set"),
        ({"metric": "dormant", "falling": True, "above": 0.3}, "below is not set"),
        ({"every": -1}, "positive"),
        ({"at": (0,)}, "positive"),
    ],
)
def test_contradictions_are_refused(settings, key):
    with pytest.raises(ValueError, match=key):
        When(**settings)


def plant_dormant(e, member: int) -> None:
    """Kill nearly all units of one member's first layer."""
    e.states["q"].params["trunk.layers.0.bias"][member, 1:] = -1e3


def test_each_seed_meets_the_condition_by_itself_and_the_ledger_says_at_which_value():
    when = When(metric="dead", measure_every=1, above=0.2)
    e = engine(dqn([ReDo(when=when)], spec=VECTOR), seeds=(3, 4))
    plant_dormant(e, member=1)
    clock = Clock(steps=10**9, updates=1, last={"updates": 0})
    rows = e.intervene(clock, ("updates",), lambda stream, count, size: batch_for(VECTOR, e.seeds, 10**6 + count))
    assert [row["seed"] for row in rows] == [4]
    assert rows[0]["dead"] > 0.2 and rows[0]["touched"] > 0
    assert e.states["q"].memory["redo"]["happened"].tolist() == [-1, 1]
    assert e.states["q"].memory["redo"]["armed"].tolist() == [1, 0]


def test_thresholds_may_be_zero_or_negative_and_the_other_one_is_optional():
    assert happened(When(metric="x", above=0.5, below=0.0), {1: 0.6, 2: 0.1, 3: 0.6, 4: 0.0, 5: 0.6}) == [1, 5]
    assert happened(When(metric="x", above=-1.0), {1: -2.0, 2: -0.5, 3: -0.5, 4: -1.0, 5: 0.0}) == [2, 5]
    assert happened(When(metric="x", below=30.0, falling=True), {1: 40.0, 2: 20.0, 3: 10.0, 4: 30.0, 5: 29.0}) == [2, 5]


def test_a_metric_that_does_not_exist_names_the_nearest():
    e = engine(dqn([Reset(when=When(metric="dormnt", measure_every=1, above=0.1))], spec=VECTOR))
    with pytest.raises(ValueError, match=r"when.metric=dormnt.*dormant"):
        run(e, 1)


def write_ledger(folder, rows) -> str:
    folder.mkdir()
    (folder / "done.json").touch()
    lines = [{"intervention": "reset", "part": "q", "touched": 1} | row for row in rows]
    (folder / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def test_a_yoked_event_happens_whenever_it_did_in_the_other_run_seed_by_seed(tmp_path):
    rows = [{"seed": 3, "updates": 2}, {"seed": 4, "updates": 3}, {"seed": 4, "updates": 4, "touched": 0}]
    other = write_ledger(tmp_path / "other", rows)
    e = engine(dqn([Reset(when=When(yoke=other))], spec=VECTOR), seeds=(3, 4))
    found, clock = [], Clock(steps=10**9)
    for _ in range(5):
        clock.update()
        sample = lambda stream, count, size: batch_for(VECTOR, e.seeds, 10**6 + count)  # noqa: E731
        found += [(row["seed"], row["updates"]) for row in e.intervene(clock, ("updates",), sample)]
    assert found == [(3, 2), (4, 3)]


def test_a_yoke_to_what_came_after_this_runs_end_is_refused(tmp_path):
    other = write_ledger(tmp_path / "other", [{"seed": 0, "updates": 5_000}])
    words = ["env=toy/chain", "agent=dqn", "interventions=[reset]", f"interventions.reset.when.yoke={other}"]
    assert load([*words, "steps=10_000"]).interventions[0].when.yoke == other
    with pytest.raises(ValueError, match="interventions.reset.when.yoke=.*came after this run's"):
        load([*words, "steps=1_000"])


def test_seeds_the_other_run_lacks_are_matched_by_position(tmp_path):
    other = write_ledger(tmp_path / "other", [{"seed": 0, "updates": 7}, {"seed": 1, "updates": 9}])
    when = When(yoke=other)
    at = {
        u: [when.yoked("reset", "q", s, p, Clock(steps=99, updates=u)) for p, s in enumerate((5, 6, 7))] for u in (7, 9)
    }
    assert at == {7: [True, False, True], 9: [False, True, False]}


def test_a_yoke_to_a_run_that_goes_on_is_refused(tmp_path):
    other = write_ledger(tmp_path / "other", [{"seed": 0, "updates": 7}])
    (tmp_path / "other" / "done.json").unlink()
    with pytest.raises(ValueError, match="expected a run that is over"):
        happenings(other, "reset")


def test_a_yoke_to_a_run_without_such_an_event_is_refused(tmp_path):
    other = write_ledger(tmp_path / "other", [{"seed": 0, "updates": 7}])
    with pytest.raises(ValueError, match="no redo happened"):
        happenings(other, "redo")
    with pytest.raises(ValueError, match=r"ledger.jsonl is missing"):
        happenings(str(tmp_path / "nowhere"), "redo")


def test_the_command_line_takes_conditions():
    words = ["agent=dqn", "env=toy/chain", "interventions=[redo]", "interventions.redo.when.metric=dormant"]
    words += ["interventions.redo.when.above=0.3", "interventions.redo.when.below=0.2", "steps=2000"]
    words += ["interventions.redo.when.cooldown=5_000"]
    (redo,) = load(words).interventions
    assert redo.when.metric == "dormant" and redo.when.cooldown == 5_000
