"""Which task is played when."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.spec import EnvSpec
from envs.stream import Stream, Task, check_spaces

WALKER = EnvSpec("dmc/walker-walk", (24,), "float32", action_dim=6)
PONG = EnvSpec("atari/pong", (84, 84), "uint8", num_actions=6, stack=4)


def test_one_task_lasts_for_ever():
    for stream in (Stream(["dmc/walker-walk"]), Stream(["dmc/walker-walk"], 100)):
        assert stream.at(0) == stream.at(10**9) == Task(0, "dmc/walker-walk", 0, 0)


def test_tasks_follow_one_another_and_the_last_stays():
    stream = Stream(["a", "b", "a"], 100)
    assert [stream.at(step).index for step in (0, 99, 100, 199, 200, 299, 300, 10_000)] == [0, 0, 1, 1, 2, 2, 2, 2]
    assert stream.at(150) == Task(1, "b", 100, 100)
    assert stream.at(10_000) == Task(2, "a", 200, 0)


def test_the_answer_depends_on_nothing_but_the_step():
    stream = Stream(["a", "b"], 10)
    forwards = [stream.at(step) for step in range(30)]
    assert [stream.at(step) for step in reversed(range(30))] == forwards[::-1]


@pytest.mark.parametrize(("tasks", "steps"), [([], 0), (["a", "b"], 0), (["a", "b"], -5)])
def test_a_stream_without_tasks_or_without_their_length_is_refused(tasks, steps):
    with pytest.raises(ValueError, match=r"^stream\.(tasks|steps): "):
        Stream(tasks, steps)


def test_tasks_of_equal_spaces_share_a_network():
    check_spaces([WALKER])
    check_spaces([WALKER, replace(WALKER, name="dmc/walker-run")])


def test_games_of_different_actions_are_told_to_take_them_all():
    with pytest.raises(ValueError) as error:
        check_spaces([PONG, replace(PONG, name="atari/breakout", num_actions=4)])
    assert str(error.value) == (
        "stream.tasks: atari/pong has 6 actions, atari/breakout has 4 actions; set env.full_actions=true"
    )


def test_other_differences_are_named():
    with pytest.raises(
        ValueError, match=r"dmc/walker-walk observes float32 \[24\], dmc/dog-run observes float32 \[223\]"
    ):
        check_spaces([WALKER, replace(WALKER, name="dmc/dog-run", obs_shape=(223,))])
    with pytest.raises(ValueError, match="has a 6-d action, dmc/x has a 7-d action; expected tasks with equal actions"):
        check_spaces([WALKER, replace(WALKER, name="dmc/x", action_dim=7)])
