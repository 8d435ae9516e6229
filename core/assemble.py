"""From a configuration to the things it names. Rooms are found by name (core/rooms.py)."""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Callable
from typing import Any

import torch

from core import rooms
from core.config import Config, Prioritised
from core.engine import Engine
from core.options import nearest
from core.spec import Env, EnvSpec


def environments(config: Config, task: str) -> Callable[[], Env]:
    """How to open one environment of a task. Games of a stream take the full action set, so that one network fits."""
    make = importlib.import_module("envs.make").make
    options = dict(config.env_options)
    if len(config.tasks) > 1 and task.startswith("atari/"):
        options["full_actions"] = True
    return lambda: make(task, **options)


def agent(config: Config, spec: EnvSpec) -> Any:
    """The learner that a configuration describes, for environments that look like `spec`."""
    make = rooms.classes("agent")[config.agent_kind]
    return make(config.agent, spec, config.net, config.value, config.interventions)


def replay_options(config: Config, spec: EnvSpec) -> dict[str, Any]:
    """What the replay's constructor takes. It never holds more than the run can fill: two slots per agent step."""
    settings = config.replay
    least = config.agent.n_step + spec.stack + 2  # a window, the frames before it, and the two ends of its episode
    if settings.capacity < least:
        raise ValueError(f"replay.capacity: {settings.capacity} given; expected at least {least}, to hold one window")
    fillable = 2 * -(-config.steps // spec.action_repeat)  # two: an episode may end with every step
    return dataclasses.asdict(settings) | {
        "capacity": min(settings.capacity, fillable),
        "prioritised": isinstance(settings, Prioritised),
        "standardise": getattr(config.agent, "standardise", False),
    }


def check_role(learner: Any, role: str, option: str) -> None:
    """Raises ValueError if the network that acts has no slow copy of that role."""
    known = ("params", *learner.acting_part.copies)
    if role not in known:
        raise ValueError(f"agent.{option}: {role} given; {nearest(role, known)}")


def evaluated_role(learner: Any) -> str:
    """Whose weights are evaluated: agent.evaluate_with, or the slow copy that an intervention is about, or those that
    act in training."""
    role = learner.settings.evaluate_with
    if role != "auto":
        check_role(learner, role, "evaluate_with")
        return role
    part = learner.acting_part
    acting = getattr(learner.settings, "act_with", "params")  # a classifier does not act
    return next((i.evaluates for i in part.interventions if i.evaluates in part.copies), acting)


usual_threads: list[int] = []  # torch's number before a run of this process was given one thread; empty: none was


def choose_threads(engine: Engine) -> None:
    """Eager dense networks on a CPU get one thread: their operations are too small to be shared. `OMP_NUM_THREADS`
    goes before; all others have torch's choice, also after such a run in the same process, as in a sweep."""
    if "OMP_NUM_THREADS" in os.environ:
        return
    if engine.device.type == "cpu" and not (engine.compiled or engine.convolutional):
        if not usual_threads:
            usual_threads.append(torch.get_num_threads())
        torch.set_num_threads(1)
    elif usual_threads:
        torch.set_num_threads(usual_threads.pop())


def choose_arithmetic(precision: str) -> None:
    """How this process computes from now on; before the first tensor of a run, since threads inherit it at their birth.

    A GPU multiplies and convolves in float32 unless tf32 is asked for (torch itself would convolve in tf32), and by
    algorithms that give the same bits each time. A CPU takes numbers below 1.2e-38 for zero, as XLA does: Adam's
    moments of units without a gradient decay into them and stay there, and each costs it a hundred cycles
    (benchmarks/denormals.py).
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.deterministic = True
    torch.set_flush_denormal(True)


def compiler_found() -> bool:
    """Whether torch can compile for this machine: it needs a C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        return bool(get_cpp_compiler())
    except InvalidCxxCompiler:
        return False
