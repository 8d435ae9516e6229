"""Whether this machine can run a configuration, and how long it would take.

    python -m core.doctor [OPTION=VALUE ...]        the options of train.py

One line per check. Nothing is written. A fault has an exit code of its own; of several the first one counts.
"""

from __future__ import annotations

import importlib
import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from core import assemble
from core.clock import Clock
from core.config import BadConfig, Config, check_device, clock_of, load, setting_up
from core.engine import Engine
from core.memory import GIB, free_memory, networks_size, size
from core.options import one_line, told
from core.randomness import host_generator
from core.replay import Replay
from core.watchdog import FAILURES, EnvironmentFailed

PACKAGES = {"dmc": ("dm-control", "mujoco"), "atari": ("ale-py",), "gym": ("gymnasium",), "toy": ()}
BACKENDS = ("egl", "osmesa", "glfw")
SECONDS = 3.0  # for which each stage is timed
SLOTS = 1_024  # of the small replay that tells the size of the full one


class Fault(Exception):
    """What is wrong, and what to do about it, in one line."""


# checks: configuration -> what was found. Raises Fault.


def simulator(config: Config) -> str:
    """Every task of the stream opens: package versions fit each other, ROMs are there."""
    for task in config.tasks:
        try:
            assemble.environments(config, task)().reset(0)
        except FAILURES as error:  # whatever a simulator raises is what is wrong with it
            words = one_line(error) if isinstance(error, ValueError | OSError) else told(error)
            raise Fault(f"{task} does not open: {words}") from error
    packages = PACKAGES.get(config.tasks[0].partition("/")[0], ())
    return ", ".join([*config.tasks, *(f"{name} {version(name)}" for name in packages)])


def drawing(config: Config) -> str:
    """MuJoCo's ways to draw: pixels and films need one, training from states does not."""
    if not config.tasks[0].startswith("dmc/"):
        return "not needed"
    asked = os.environ.get("MUJOCO_GL", "")
    draw = "from dm_control import suite; suite.load('cartpole', 'swingup').physics.render(48, 48)"
    untouched = {name: value for name, value in os.environ.items() if name != "PYOPENGL_PLATFORM"}  # set by envs.dmc
    works = []
    for backend in BACKENDS:
        environment = untouched | {"MUJOCO_GL": backend}
        with suppress(subprocess.TimeoutExpired):  # one that hangs does not work
            done = subprocess.run([sys.executable, "-c", draw], env=environment, capture_output=True, timeout=120)
            works += [backend] if done.returncode == 0 else []
    if asked not in ("", "disabled", *works):
        raise Fault(f"MUJOCO_GL={asked} cannot draw here; expected one of: {', '.join(works) or 'none works'}")
    if config.env_options.get("pixels") and not works:
        raise Fault("nothing draws, and env.pixels needs it; install libegl1 and libgl1, or libosmesa6")
    return ", ".join(works) or "nothing draws; films need libegl1, or libosmesa6 with MUJOCO_GL=osmesa"


def compiler(config: Config) -> str:
    if not config.compile:
        return "not asked for: updates run eagerly"
    if not assemble.compiler_found():
        raise Fault("no C++ compiler found, updates would take up to 1.7 times as long; install g++")
    return "found"


def device(config: Config) -> str:
    if config.device == "cpu":
        return f"cpu, {torch.get_num_threads()} threads"
    try:
        check_device(config.device)
    except ValueError as error:
        raise Fault(str(error)) from error
    return torch.cuda.get_device_name(config.device)


def memory(config: Config) -> str:
    """The replay when full, beside the networks and torch itself."""
    replay, networks = _sizes(config)
    needed = networks + max(replay, networks) + GIB  # newborn networks are there twice: they are stacked
    free = free_memory(config.device)
    if needed > free:
        fix = "lower replay.capacity" if replay > networks else "use a smaller network"
        raise Fault(f"{size(needed)} needed, {size(free)} free; {fix}, or use fewer seeds")
    return f"{size(needed)} needed when the replay is full, {size(free)} free"


def folder(config: Config) -> str:
    """The run folder can be made, and its disk holds the replay and two checkpoints."""
    home = Path(config.run_dir).resolve()
    while not home.exists():
        home = home.parent
    if not home.is_dir() or not os.access(home, os.W_OK):
        raise Fault(f"{home} cannot be written to; choose another run_dir")
    replay, networks = _sizes(config)
    needed = replay + 2 * networks
    free = shutil.disk_usage(home).free
    if needed > free:
        raise Fault(f"{home}: up to {size(needed)} needed, {size(free)} free; choose another run_dir")
    return f"{config.run_dir}: up to {size(needed)} needed, {size(free)} free"


CHECKS: dict[str, tuple[int, Callable[[Config], str]]] = {
    "simulator": (10, simulator),
    "device": (11, device),
    "compiler": (12, compiler),
    "memory": (13, memory),
    "folder": (14, folder),
    "drawing": (15, drawing),
}
NEEDS = {"memory": ("simulator", "device"), "folder": ("simulator",)}
UNTOLD = {"simulator": "before the task opens", "device": "without the device"}


def projection(config: Config) -> str:
    """Time one env step, one decision and one update, and say what a run comes to."""
    assemble.choose_arithmetic(config.precision)
    make = assemble.environments(config, config.tasks[0])
    envs = importlib.import_module("envs.vector").Vector([make() for _ in config.seeds], config.seeds, "train")
    envs.reset()
    agent, settings = assemble.agent(config, envs.spec), config.agent
    compile = config.compile and assemble.compiler_found()
    engine = Engine(agent, config.seeds, settings.batch_size, config.device, compile, config.precision)
    assemble.choose_threads(engine)
    replay = Replay(envs.spec, config.seeds, device=config.device, **assemble.replay_options(config, envs.spec))
    explore = agent.explore_eval
    action = engine.act(envs.observation[:, None], explore, "act", 0)[:, 0]
    generator, count = host_generator(0, "doctor"), itertools.count()

    def step() -> None:
        frame = envs.frame
        drawn = generator.integers(envs.spec.num_actions, size=len(action)) if envs.spec.is_discrete else action
        done = envs.step(drawn)
        replay.add(frame, drawn, done.reward, done.terminal, done.ended, done.next_obs)

    for _ in range(2 * settings.n_step + envs.spec.stack + 2):
        step()
    clock = Clock(steps=10**9)

    def update() -> None:
        batch = replay.sample(settings.batch_size, clock.updates, settings.n_step, settings.discount)
        engine.update(batch, clock)
        clock.update()

    began = time.perf_counter()
    update()
    _wait(config)
    first = time.perf_counter() - began
    costs = {
        "env step": _seconds(step, config),
        "decision": _seconds(lambda: engine.act(envs.observation[:, None], explore, "act", next(count)), config),
        "update": _seconds(update, config),
    }
    whole = clock_of(config, envs.spec.action_repeat)
    updates, steps = whole.total("updates"), whole.total("agent_steps")
    seconds = first + steps * (costs["env step"] + costs["decision"]) + updates * costs["update"]
    named = ", ".join(f"{name} {1000 * cost:.2f} ms" for name, cost in costs.items())
    return (
        f"{named} for {len(config.seeds)} seeds, the first update {first:.0f} s; {steps:,} agent steps and "
        f"{updates:,} updates come to {_readable(seconds)}, evaluations on top"
    )


def examine(config: Config) -> int:
    """Run every check and print its line. -> 0, or the code of the first fault. Raises BadConfig."""
    faults: list[str] = []
    for name, (_, check) in CHECKS.items():
        if missing := [UNTOLD[need] for need in NEEDS.get(name, ()) if need in faults]:
            print(f"        {name:<10} cannot be told {missing[0]}")
            continue
        try:
            print(f"ok      {name:<10} {check(config)}", flush=True)
        except BadConfig:
            raise
        except FAILURES as fault:  # a Fault, or what the machine makes of the question
            print(f"FAULT   {name:<10} {fault if isinstance(fault, Fault) else told(fault)}", flush=True)
            faults.append(name)
    if not {"simulator", "device", "memory"} & set(faults):
        print("        timing, after the first update has compiled ...", flush=True)
        try:
            print(f"        {'time':<10} {projection(config)}")
        except EnvironmentFailed as fault:
            print(f"FAULT   {'time':<10} {fault}", flush=True)
            faults.append("simulator")
    return CHECKS[faults[0]][0] if faults else 0


def main(argv: list[str]) -> int:
    if {"--help", "-h"} & set(argv):
        print(__doc__)
        return 0
    try:
        return examine(load(argv))
    except (BadConfig, ValueError) as error:
        print(one_line(error), file=sys.stderr)
        return 2


def _sizes(config: Config) -> tuple[int, int]:
    """Bytes of the full replay and of the networks. Neither is made: they may be more than the machine holds.

    Raises BadConfig if agent, replay and task do not fit each other.
    """
    with setting_up():
        spec = assemble.environments(config, config.tasks[0])().spec
        options = assemble.replay_options(config, spec)
        learner = assemble.agent(config, spec)
    small = Replay(spec, config.seeds, **options | {"capacity": SLOTS})
    return small.nbytes * options["capacity"] // SLOTS, networks_size(learner, config.seeds)


def _seconds(run: Callable[[], object], config: Config) -> float:
    """The median of ten blocks, per call."""
    blocks = []
    for _ in range(10):
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < SECONDS / 10:
            run()
            count += 1
        _wait(config)
        blocks.append((time.perf_counter() - began) / count)
    return float(np.median(blocks))


def _wait(config: Config) -> None:
    if config.device != "cpu":
        torch.cuda.synchronize(config.device)


def _readable(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
