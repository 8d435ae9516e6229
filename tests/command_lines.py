"""Command lines to try what reads them: made of every option there is, with values that fit, hardly fit, or do not."""

from __future__ import annotations

import dataclasses
import re
import string
import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Literal, NamedTuple

import yaml
from hypothesis import strategies as st

from core import rooms
from core.options import settings, show
from core.run_options import REPLAYS, Run

ENVS = ["toy/chain", "toy/pixels", "toy/reach", "toy/lives", "mdp/true_label", "mdp/sparse", "gym/CartPole-v1"]
ENVS += ["gym/Pendulum-v1", "dmc/pendulum-swingup", "dmc/cartpole-balance", "atari/pong"]
ENVS += [f"testbed/{name}" for name in rooms.streams()]
TEXTS = {  # options of free text: what may stand there
    "device": ["cpu", "cuda", "cuda:0", "cuda:99", "cpu:1", "CPU", "cuda:"],
    "run_dir": ["here", "/tmp/a b", "..", "~", "a\tb"],
    "data": ["digits", "mnist", "nowhere.npz", "/", "tests"],
    "folder": ["", "/", "tests"],
    "act_with": ["params", "target", "tortoise", "slow", "auto"],
    "evaluate_with": ["auto", "params", "target", "tortoise", "ema"],
    "metric": ["dormant", "dormant@0.1", "srank", "grad_norm", "nothing", "dormant@x", "dormant@", "@"],
    "yoke": ["", "/", "nowhere", "tests"],
    "on": ["*", "critic", "actor", "q", "alpha", "target", "[", "**"],
    "where": ["all", "encoder", "trunk", "head", "output", "*weight", "[", "0.weight"],
    "tasks": ENVS,
}
ODD = [
    *("", "''", '"', "'", "null", "true", "False", "on", "None", ".", "-", "--", " ", "\t", "\n", "\r", "???"),
    *("0", "-1", "-0", "1_0", "007", "0x10", "1e3", "1.0", "0.5", "1e309", "1e-320", "nan", "-inf", "'nan'", "1e300"),
    *("2147483648", "9223372036854775808", "1" + "0" * 30, "1" + "0" * 400, "1" * 5_000, "1e30", "٣"),
    *("[]", "[[]]", "[1,[2]]", "[null]", "[true]", "[a,,b]", "[0,1", "[0, 1]", "['']"),
    *("{}", "{a:1}", "{a:{b:[1]}}", "{1:2}", "{name:sac}", "{kind:x}", "{name:[x]}"),
    *("${steps}", "${seeds}", "${agent}", "${nowhere}", "${", "${}", "${.}", "${steps}${steps}", "${env.name}"),
    *("${oc.env:HOME}", "${oc.env:NOWHERE}", "${nothing:1}", "${oc.decode:'['}", "${now:%Y}", "${hydra:job.num}"),
    *("${at_most:1,2}", "${at_most:a,b,c}", "${at_most:1e300,1e300,3}", "${by_task:3,1,{}}", "${by_task:a,1,[b]}"),
    *("a,b", "1,2", "choice(1,2)", "range(1,3)", "range(0,1000000000000)", "interval(0,1)", "glob(*)", "tag(a)"),
    *("sort(3,1)", "shuffle([1,2])", "int(3.5)", "int(a)", "float(nan)", "bool(x)", "extend_list(1)", "str(3)"),
    *("a=b", "a:b", "a b", "a\nb", "#", "%", "\\", "\\'", "@", "~", "+", "$", "*", "?", "!", "&a", "*a", "|", ">"),
    *("../x", "/", "a/b", "~", "gym/", "gym/x", "gym/../x", "toy", "toy/", "dmc/x-y", "testbed/"),
    *("ü", "日本", "😀", "\u202e", "\u2028", "\x00", "\x1b[31m", "\udcff", "é" * 30),
    *("!!python/object/apply:os.system [x]", "$(touch x)", "`touch x`", "; touch x"),
]
NAMED = st.sampled_from(string.ascii_letters + string.digits + "._-/[]{}(),:=$@~+ '\"ü\u202e")


class Option(NamedTuple):
    """A setting that a command line may have."""

    key: str
    hint: Any  # its type
    limits: Mapping[str, Any]


def options_of(cls: type, key: str = "") -> Iterator[Option]:
    """The settings of a dataclass, those of dataclasses within included."""
    hints = typing.get_type_hints(cls)
    for name, field in settings(cls).items():
        here = f"{key}.{name}" if key else name
        if dataclasses.is_dataclass(hints[name]):
            yield from options_of(hints[name], here)
        else:
            yield Option(here, hints[name], field.metadata)


@cache
def known(group: str, name: str = "") -> tuple[Option, ...]:
    """The settings under `group` if `name` is what is chosen there; those of the run for group ""."""
    if group == "":
        return tuple(options_of(Run))
    if group == "env":
        cls = rooms.env_settings(name)
        return tuple(options_of(cls, "env")) if cls else ()
    if group == "interventions":
        path = rooms.CONFIGS / group / f"{name}.yaml"
        kind = (yaml.safe_load(path.read_text()) or {}).get("kind", name) if path.exists() else name
        cls = rooms.intervention(kind)
        found = tuple(options_of(cls, f"interventions.{name}"))
        acts = cls().overrides("event")
        return tuple(option for option in found if acts or not re.search(r"\.(when|control)\b", option.key))
    if group == "agent":
        path = rooms.CONFIGS / group / f"{name}.yaml"
        tree = yaml.safe_load(path.read_text()) if path.exists() else None
        kind = ((tree or {}).get("agent") or {}).get("kind", name)
        return tuple(options_of(rooms.classes("agent")[kind].Settings, "agent"))
    table = REPLAYS if group == "replay" else rooms.classes(group)
    return tuple(options_of(table[name], group))


def fitting(option: Option, most: float = 1e6) -> st.SearchStrategy[str]:
    """Values that the option takes, as a command line has them; limits among them. most: the greatest number."""
    return _fits(option.hint, option, most).map(show)


def _fits(hint: Any, option: Option, most: float) -> st.SearchStrategy:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    low, high, above = (option.limits.get(name) for name in ("low", "high", "above"))
    if origin is tuple:
        return st.lists(_fits(inner[0], option, most), max_size=3)
    if origin is types.UnionType:
        return st.none() | _fits(inner[0], option, most)
    if origin is Literal:
        return st.sampled_from(inner)
    if hint is bool:
        return st.booleans()
    if hint is int:
        least = int(low if low is not None else above + 1 if above is not None else -most)
        greatest = max(least, int(min(high if high is not None else most, most)))
        return st.integers(least, min(least + 10, greatest)) | st.integers(least, greatest)
    if hint is float:
        least = float(low if low is not None else above if above is not None else -most)
        greatest = float(min(high if high is not None else most, most))
        return st.floats(least, max(least, greatest), exclude_min=above is not None, allow_subnormal=False)
    name = option.key.rpartition(".")[2]
    return st.sampled_from(list(option.limits.get("choices", ())) or TEXTS.get(name, ["", "x"]))


def suiting(env: str) -> list[str]:
    """The agents that can learn in an environment."""
    if env.startswith("testbed/"):
        return ["regressor"] if env.endswith(("regression", "means")) else ["classifier"]
    if env in ("toy/reach", "gym/Pendulum-v1") or env.startswith("dmc/"):
        return ["sac", "sac", "simba", "bro", "rlpd", "iql"]
    return ["dqn", "dqn", "rainbow", "der", "drq_eps"] if env in ("toy/pixels", "atari/pong") else ["dqn"]


@st.composite
def chosen(draw: st.DrawFn, envs: list[str] = ENVS, short: bool = False) -> tuple[list[str], list[Option]]:
    """Choices of a command line, and the options that follow from them."""
    argv, options = [], [*known("")]
    picked = {"env": draw(st.sampled_from(envs))}
    if short or draw(st.booleans()):
        picked["agent"] = draw(st.sampled_from(suiting(picked["env"]) if short else rooms.choices("agent")))
    for group in ("net", "value", "replay")[short:]:
        if draw(st.integers(0, 3)) == 0:
            picked[group] = draw(st.sampled_from(rooms.choices(group)))
    if short and picked["env"] == "toy/pixels":
        picked["net"] = "nature"
    for group, name in picked.items():
        argv.append(f"{group}={name}")
        if group not in ("net", "value", "replay") or name in rooms.names(group):
            options += known(group, name)
    listed = draw(st.lists(st.sampled_from(rooms.choices("interventions")), max_size=3, unique=True))
    if listed:
        argv.append(f"interventions=[{','.join(listed)}]")
        options += [option for name in listed for option in known("interventions", name)]
        if draw(st.integers(0, 5)) == 0:
            argv.append(f"+interventions@interventions.again={listed[0]}")
            options += [
                option._replace(key=option.key.replace(listed[0], "again", 1))
                for option in known("interventions", listed[0])
            ]
    return argv, options


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """Any command line: choices, settings, and up to two mistakes."""
    argv, options = draw(chosen())
    roots = {option.key.rpartition(".")[0] for option in options} - {""} | {"net", "value", "replay"}
    options += [Option(f"{root}.{name}", str, {}) for root in sorted(roots) for name in ("name", "kind")]
    for option in draw(st.lists(st.sampled_from(options), max_size=5)):
        value = draw(fitting(option) if draw(st.integers(0, 5)) else odd())
        argv.append(f"{option.key}={value}")
    for _ in range(draw(st.integers(0, 2))):
        position = draw(st.integers(0, len(argv)))
        if position == len(argv):
            argv.append(draw(st.text(NAMED, max_size=12) | odd()))
        else:
            argv[position] = draw(spoilt(argv[position]))
    return argv


def odd() -> st.SearchStrategy[str]:
    """Values that hardly any option takes."""
    return st.sampled_from(ODD) | st.text(max_size=8) | st.integers().map(str) | st.floats().map(str)


@st.composite
def spoilt(draw: st.DrawFn, arg: str) -> str:
    """An argument with something wrong in its key, its value, or between them."""
    key, _, value = arg.partition("=")
    how = draw(st.integers(0, 9))
    if how == 0:  # a slip of the finger
        at = draw(st.integers(0, len(key)))
        return f"{key[:at]}{draw(NAMED)}{key[at + draw(st.integers(0, 1)) :]}={value}"
    if how == 1:  # too deep
        return f"{key}.{draw(st.sampled_from(DEEPER))}={value}"
    if how == 2:  # not deep enough
        return f"{key.rpartition('.')[0]}={value}"
    if how == 3:
        return f"{draw(st.sampled_from(PREFIXES))}{key}={value}"
    if how == 4:
        return f"{key}@{draw(st.sampled_from(PACKAGES))}={value}"
    if how == 5:
        return draw(st.sampled_from([key, f"~{key}", f"{key}=", f"={value}", f"{key}==", f"{key}:{value}"]))
    if how == 6:  # a list, a dict, text where something else is wanted
        return f"{key}={draw(st.sampled_from(WRAPPED)).replace('x', value)}"
    return f"{key}={draw(odd())}"


DEEPER = ["x", "name", "kind", "when", "every", "0", "", "on", "true", "null"]
PREFIXES = ["+", "++", "~", "-", "--", "@", " ", "hydra.", "+hydra.", "a@", "/"]
PACKAGES = ["x", "agent", "", "_global_", "a:b", "interventions", "interventions.l2", "interventions.a.b"]
WRAPPED = ["[x]", "[[x]]", "[x,x]", "{a:x}", "'x'", "x1"]
SMALL = {"width": 8, "actor_width": 8, "dim": 12, "depth": 1, "actor_depth": 1, "blocks": 1, "scale": 1, "capacity": 60}
SMALL |= {"batch_size": 4, "n_step": 1, "images": 50, "stage": 7, "bins": 5, "heads": 2}
LENGTHS = ["steps=20", "warmup=8", "eval_episodes=1", "final_episodes=1", "save_every=10", "compile=false"]
OURS = (
    "seeds",
    "steps",
    "device",
    "compile",
    "run_dir",
    "resume",
    "eval_every",
    "eval_episodes",
    "final_episodes",
    "probe_every",
)
CONDITIONS = (
    ".above",
    ".below",
    ".falling",
    ".cooldown",
    ".metric",
    ".yoke",
    ".start",
    ".tasks",
    ".unit",
)  # go in pairs
QUICK = [name for name in ENVS if name != "atari/pong"] + ["toy/chain", "toy/reach", "gym/CartPole-v1"]


@st.composite
def short_runs(draw: st.DrawFn) -> list[str]:
    """Command lines of runs that are over within seconds, with settings that each fit for themselves."""
    argv, options = draw(chosen(QUICK, short=True))
    testbed = argv[0].startswith("env=testbed/")
    sizes = {o.key: o.key.rpartition(".")[2] for o in options if not o.key.startswith("interventions")}
    argv += [f"{key}={SMALL[name]}" for key, name in sizes.items() if name in SMALL]
    argv += [f"net.width={SMALL['width']}"] * (not any(arg.startswith("net=") for arg in argv))
    argv += [f"{o.key}={draw(st.integers(1, 5))}" for o in options if o.key.endswith(".when.every")]
    free = [option for option in options if option.key not in OURS and not option.key.endswith(CONDITIONS)]
    if draw(st.integers(0, 7)) == 0:
        free = [option for option in options if option.key not in OURS]
    for option in draw(st.lists(st.sampled_from(free), max_size=5, unique_by=lambda option: option.key)):
        argv.append(f"{option.key}={draw(fitting(option, most=9))}")
    every = draw(st.integers(0, 12)) if argv[0].startswith(("env=toy", "env=testbed")) else 0
    lengths = [length for length in LENGTHS if not (testbed and length.startswith("warmup"))]
    return [*argv, *lengths, f"seeds={draw(st.sampled_from(['[0]', '[3,1]']))}", f"eval_every={every}"]
