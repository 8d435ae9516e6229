"""The clock's counters and schedules, against plain counting."""

from __future__ import annotations

from fractions import Fraction

import pytest

from core.clock import Clock
from core.when import When


def walk(clock: Clock, when: When) -> list[int]:
    """The counts, in the schedule's unit, at which it is due in a whole run."""
    found = []
    while clock.running:
        clock.step()
        if when.unit in ("agent_steps", "env_steps") and when.due(clock):
            found.append(clock.now(when.unit))
        for _ in range(clock.updates_due()):
            clock.update()
            if when.unit == "updates" and when.due(clock):
                found.append(clock.now("updates"))
    return found


def updates_by_step(clock: Clock, steps: int) -> list[int]:
    """Updates made after each of the next agent steps."""
    made = []
    for _ in range(steps):
        clock.step()
        made.append(clock.updates_due())
        for _ in range(made[-1]):
            clock.update()
    return made


# counters


def test_an_agent_step_is_action_repeat_env_steps():
    clock = Clock(steps=100, action_repeat=4)
    for _ in range(3):
        clock.step()
    assert (clock.agent_steps, clock.env_steps, clock.updates) == (3, 12, 0)


def test_a_run_ends_at_its_length_even_inside_an_action_repeat():
    clock = Clock(steps=10, action_repeat=4)
    taken = 0
    while clock.running:
        clock.step()
        taken += 1
    assert taken == 3 and clock.env_steps == 10
    assert clock.total("agent_steps") == 3 and clock.total("env_steps") == 10


def test_a_saved_clock_goes_on_as_if_nothing_had_happened():
    a = Clock(steps=1000, replay_ratio=0.3, warmup=5, action_repeat=2)
    updates_by_step(a, 20)
    a.enter_task()
    updates_by_step(a, 9)
    b = Clock(steps=1000, replay_ratio=0.3, warmup=5, action_repeat=2)
    b.load_state_dict(a.state_dict())
    assert a == b and a.last is not b.last
    when = When(every=3)
    for _ in range(20):
        assert updates_by_step(a, 1) == updates_by_step(b, 1)
        assert when.due(a) == when.due(b)
    assert a == b


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"replay_ratio": 4}, {"replay_ratio": 1}),
        ({"replay_ratio": 1}, {"replay_ratio": 4}),
        ({"warmup": 5}, {"warmup": 30}),
        ({"warmup": 30}, {"warmup": 5}),
        ({"primed": 40}, {"primed": 80}),
    ],
)
def test_another_schedule_holds_from_here_on(before, after):
    """Neither a burst nor a pause makes up for the past; what was owed is owed."""
    a = Clock(steps=1000, **before)
    updates_by_step(a, 40)
    a.step()
    owed = a.updates_due()
    b = Clock(steps=1000, **after)
    b.load_state_dict(a.state_dict())
    assert b.updates_due() == owed > 0
    for _ in range(owed):
        b.update()
    assert updates_by_step(b, 5) == [after.get("replay_ratio", 1)] * 5
    c = Clock(steps=1000, **after)
    c.load_state_dict(b.state_dict())
    assert c == b and updates_by_step(c, 3) == [after.get("replay_ratio", 1)] * 3


def test_a_saved_clock_is_plain_data():
    clock = Clock(steps=10)
    clock.step()
    assert all(type(v) in (int, dict) for v in clock.state_dict().values())


# replay ratio


@pytest.mark.parametrize("ratio", [0.25, 0.29, 1 / 3, 0.7, 1.0, 1.5, 8.0])
def test_updates_keep_to_the_replay_ratio_at_every_step(ratio):
    made = updates_by_step(Clock(steps=10**6, replay_ratio=ratio), 600)
    exact = Fraction(ratio).limit_denominator(1000)
    for step in range(600):
        assert sum(made[: step + 1]) == int(exact * (step + 1))


def test_a_quarter_means_one_update_every_fourth_step():
    assert updates_by_step(Clock(steps=100, replay_ratio=0.25), 9) == [0, 0, 0, 1, 0, 0, 0, 1, 0]


def test_one_and_a_half_means_one_and_two_in_turn():
    assert updates_by_step(Clock(steps=100, replay_ratio=1.5), 6) == [1, 2, 1, 2, 1, 2]


@pytest.mark.parametrize("ratio", [0.25, 1.0, 1.5, 8.0])
def test_no_update_falls_into_warm_up_and_none_is_caught_up_afterwards(ratio):
    clock = Clock(steps=10**6, replay_ratio=ratio, warmup=50)
    assert updates_by_step(clock, 50) == [0] * 50
    assert updates_by_step(clock, 12) == updates_by_step(Clock(steps=10**6, replay_ratio=ratio), 12)


def test_a_clock_is_warm_after_warm_up():
    clock = Clock(steps=100, warmup=3)
    warm = []
    for _ in range(5):
        warm.append(clock.warm)  # before each step: whether its action is the policy's
        clock.step()
    assert warm == [False, False, False, True, True]


@pytest.mark.parametrize("ratio", [0.25, 0.29, 1.0, 1.5, 8.0])
def test_the_foretold_number_of_updates_is_the_number_made(ratio):
    clock = Clock(steps=400, replay_ratio=ratio, warmup=100, action_repeat=2)
    updates_by_step(clock, 200)
    assert not clock.running
    assert clock.total("updates") == clock.updates == int(Fraction(str(ratio)) * 100)


# task switches


def test_a_new_task_warms_up_again_and_owes_no_updates_for_it():
    clock = Clock(steps=10**6, replay_ratio=1.5, warmup=3)
    assert updates_by_step(clock, 6) == [0, 0, 0, 1, 2, 1]
    clock.enter_task()
    assert (clock.tasks, clock.task_steps, clock.warm) == (1, 0, False)
    assert updates_by_step(clock, 6) == [0, 0, 0, 1, 2, 1]  # the half that was owed is forgotten
    assert (clock.agent_steps, clock.updates, clock.task_steps) == (12, 8, 6)


def test_a_schedule_in_tasks_fires_at_task_switches():
    clock, when, found = Clock(steps=10**6), When(every=2, unit="tasks"), []
    for _ in range(6):
        clock.enter_task()
        if when.due(clock):
            found.append(clock.tasks)
    assert found == [2, 4, 6]


# schedules


def test_an_empty_schedule_is_never_due():
    assert not When()
    assert walk(Clock(steps=50), When()) == []
    assert When(every=1) and When(at=(1,))


@pytest.mark.parametrize("unit", ["updates", "agent_steps", "env_steps"])
def test_every_means_all_multiples_and_not_zero(unit):
    assert walk(Clock(steps=35), When(every=10, unit=unit)) == [10, 20, 30]


def test_at_means_these_counts():
    assert walk(Clock(steps=50), When(at=(1, 7, 50))) == [1, 7, 50]
    assert walk(Clock(steps=50), When(every=20, at=(7, 20))) == [7, 20]  # instead


def test_start_and_stop_are_themselves_inside_the_schedule():
    assert walk(Clock(steps=60), When(every=10, start=20, stop=40)) == [20, 30, 40]
    assert walk(Clock(steps=60), When(at=(5, 25, 45), start=15, stop=44)) == [25]
    assert walk(Clock(steps=60), When(every=10, start=21)) == [30, 40, 50, 60]


def test_a_hundred_thousand_steps_with_a_reset_every_twenty_thousand_have_four():
    """None at the end, where a score would be taken within a recovery; 80k has one full interval left."""
    when = When(every=20_000, unit="agent_steps", skip_last=True)
    assert walk(Clock(steps=100_000, replay_ratio=0), when) == [20_000, 40_000, 60_000, 80_000]


@pytest.mark.parametrize(
    "steps, expected", [(100, [20, 40, 60, 80]), (99, [20, 40, 60]), (119, [20, 40, 60, 80]), (19, [])]
)
@pytest.mark.parametrize("unit", ["updates", "agent_steps", "env_steps"])
def test_skip_last_leaves_out_what_has_less_than_one_interval_left(steps, expected, unit):
    assert walk(Clock(steps=steps), When(every=20, unit=unit, skip_last=True)) == expected


def test_skip_last_in_updates_knows_warm_up_and_replay_ratio():
    """2 (1,000 - 100) = 1,800 updates in all: after 1,600 one interval is left, after 1,800 none."""
    when = When(every=200, skip_last=True)
    found = walk(Clock(steps=1000, replay_ratio=2, warmup=100), when)
    assert found == list(range(200, 1601, 200))


@pytest.mark.parametrize("every", [8, 10, 3])
def test_multiples_that_fall_inside_an_action_repeat_are_due_once_at_its_end(every):
    expected = [n for n in range(4, 101, 4) if any(k % every == 0 for k in range(n - 3, n + 1))]
    assert walk(Clock(steps=100, action_repeat=4), When(every=every, unit="env_steps")) == expected


def test_counts_that_fall_inside_an_action_repeat_are_due_at_its_end():
    assert walk(Clock(steps=40, action_repeat=4), When(at=(5, 8, 15), unit="env_steps")) == [8, 16]


def test_a_schedule_in_agent_steps_fires_once_though_many_updates_follow():
    clock, when, found = Clock(steps=10, replay_ratio=4), When(every=5, unit="agent_steps"), []
    while clock.running:
        clock.step()
        found.append(when.due(clock))
        for _ in range(clock.updates_due()):
            clock.update()
    assert [i + 1 for i, due in enumerate(found) if due] == [5, 10]


@pytest.mark.parametrize("wrong", [{"every": -1}, {"start": -1}, {"stop": -1}, {"at": (0,)}])
def test_negative_counts_are_refused_in_one_line(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))) as error:
        When(**wrong)
    assert "\n" not in str(error.value)


def test_passed_asks_about_the_latest_advance_alone():
    clock = Clock(steps=100, action_repeat=4)
    seen = []
    for _ in range(5):
        clock.step()
        seen.append(clock.passed(6, "env_steps"))
    assert seen == [False, True, True, False, True]  # 4, 8 (6), 12, 16, 20 (18)
    assert not clock.passed(0, "env_steps")


def test_the_updates_of_a_stream_count_every_tasks_warm_up():
    """Ten tasks of 10,000 steps with 1,000 random ones each; and a run that ends within its second task."""
    stream = {"warmup": 1_000, "task_length": 10_000, "switches": 9}
    assert Clock(steps=100_000, **stream).total("updates") == 10 * 9_000
    assert Clock(steps=10_500, **stream).total("updates") == 9_000
    assert Clock(steps=10_000, **stream).total("updates") == 9_000
    assert Clock(steps=25_000, **stream | {"switches": 1}).total("updates") == 9_000 + 14_000


def test_a_run_reaches_as_many_tasks_as_begin_within_it():
    stream = {"task_length": 10_000, "switches": 9}
    reached = {steps: Clock(steps=steps, **stream) for steps in (10_000, 10_001, 500_000)}
    assert [clock.total("tasks") for clock in reached.values()] == [1, 2, 10]
    assert [clock.greatest("tasks") for clock in reached.values()] == [0, 1, 9]
    assert reached[10_001].greatest("env_steps") == 10_001
