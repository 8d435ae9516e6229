"""Options: what a field accepts, and the one line it answers to anything else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest

from core.options import build, option, plain


@dataclass(frozen=True)
class Inner:
    every: int = option(0, low=0)
    stop: int = 0

    def __post_init__(self) -> None:
        if self.stop and self.stop < self.every:
            raise ValueError(f"stop={self.stop} is before every={self.every}")


@dataclass(frozen=True)
class Outer:
    learning_rate: float = option(1e-3, above=0, high=1, help="step size")
    width: int = option(256, low=1)
    double: bool = option(True)
    mode: Literal["copy", "ema"] = option("copy")
    on: tuple[str, ...] = option(("*",))
    at: tuple[int, ...] = option((), low=1)
    source: str = option("replay", choices=("replay", "stream"))
    inner: Inner = option(Inner())


@dataclass
class Schedule:
    every: int = 0


@dataclass
class Mutable:
    schedule: Schedule = option(Schedule(every=7))
    name: str = field(default="", init=False)


def refusal(values: dict, key: str = "agent") -> str:
    with pytest.raises(ValueError) as caught:
        build(Outer, values, key)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_not_given_has_its_default():
    assert build(Outer, {}) == Outer(1e-3, 256, True, "copy", ("*",), (), "replay", Inner(0, 0))


@pytest.mark.parametrize(
    ("name", "given", "meant"),
    [
        ("learning_rate", 1, 1.0),
        ("learning_rate", "1e-4", 1e-4),
        ("width", 1e5, 100_000),
        ("double", False, False),
        ("mode", "ema", "ema"),
        ("on", ["critic", "actor"], ("critic", "actor")),
        ("at", [1, 2.0], (1, 2)),
        ("source", "stream", "stream"),
        ("inner", {"every": 5}, Inner(5, 0)),
    ],
)
def test_plain_data_becomes_the_declared_type(name, given, meant):
    value = getattr(build(Outer, {name: given}), name)
    assert value == meant and type(value) is type(meant)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"learning_rat": 1}, "agent.learning_rat: no such setting; did you mean agent.learning_rate?"),
        ({"lr": 1}, "agent.lr: no such setting; did you mean agent.learning_rate?"),
        ({"inner": {"evry": 1}}, "agent.inner.evry: no such setting; did you mean agent.inner.every?"),
        ({"inner": {"xyz": 1}}, "agent.inner.xyz: no such setting; there is every, stop"),
        ({"learning_rate": 0}, "agent.learning_rate: 0 given; expected more than 0 and at most 1"),
        ({"learning_rate": 2}, "agent.learning_rate: 2 given; expected more than 0 and at most 1"),
        ({"learning_rate": "fast"}, "agent.learning_rate: fast given; expected a number"),
        ({"learning_rate": float("nan")}, "agent.learning_rate: nan given; expected a number"),
        ({"learning_rate": True}, "agent.learning_rate: true given; expected a number"),
        ({"width": 0}, "agent.width: 0 given; expected at least 1"),
        ({"width": 1.5}, "agent.width: 1.5 given; expected a whole number"),
        ({"width": True}, "agent.width: true given; expected a whole number"),
        ({"width": None}, "agent.width: null given; expected a whole number"),
        ({"double": 1}, "agent.double: 1 given; expected true or false"),
        ({"mode": "emma"}, "agent.mode: emma given; expected copy | ema; did you mean ema?"),
        ({"on": "critic"}, "agent.on: critic is not a list; write agent.on=[critic]"),
        ({"on": ""}, "agent.on: '' is not a list; write agent.on=[*]"),
        ({"at": 0}, "agent.at: 0 is not a list; write agent.at=[]"),
        ({"at": 3}, "agent.at: 3 is not a list; write agent.at=[3]"),
        ({"on": [1]}, "agent.on: 1 given; expected text"),
        ({"at": [0]}, "agent.at: 0 given; expected at least 1"),
        ({"source": "replai"}, "agent.source: replai given; expected replay | stream; did you mean replay?"),
        ({"inner": 3}, "agent.inner: 3 given; expected agent.inner.every= | agent.inner.stop="),
        ({"inner": {"every": 5, "stop": 2}}, "agent.inner: stop=2 is before every=5"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_that_names_the_key(values, line):
    assert refusal(values) == line


def test_yaml_may_read_the_key_on_as_true():
    assert build(Outer, {True: ["critic"]}).on == ("critic",)


def test_plain_data_and_the_dataclass_are_inverses():
    settings = Outer(0.5, 3, False, "ema", ("a", "b"), (4, 5), "stream", Inner(1, 2))
    data = plain(settings)
    assert data["inner"] == {"every": 1, "stop": 2} and data["at"] == [4, 5]
    assert build(Outer, data) == settings


def test_instances_do_not_share_a_default():
    first, second = build(Mutable, {}), build(Mutable, {})
    first.schedule.every = 1
    assert second.schedule.every == 7


def test_fields_outside_the_constructor_are_no_settings():
    with pytest.raises(ValueError, match="l2.name: no such setting"):
        build(Mutable, {"name": "x"}, "l2")
    assert plain(Mutable()) == {"schedule": {"every": 7}}
