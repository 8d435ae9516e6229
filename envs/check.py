"""Does an environment keep the contract of core.spec.Env?

    python -m envs.check gym/CartPole-v1

prints one line per check. Exit code 0: it does; 1: it does not; 2: there is no such environment, or it cannot be used.
python train.py --help lists the environments; any ID of Gymnasium can be checked beside them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from core.options import one_line, told
from core.randomness import host_generator
from core.spec import Env, EnvSpec, Transition
from core.watchdog import FAILURES
from envs.make import make
from envs.vector import Vector

STEPS = 1_000  # agent steps played by most checks
END = 30_000  # agent steps within which an episode has to end
Open = Callable[[], Env]


class Finding(NamedTuple):
    """One check's outcome."""

    check: str
    problem: str  # empty: passed


def check(open_env: Open) -> Iterator[Finding]:
    """Run all checks, each on environments of its own."""
    for sentence, find_problem in CHECKS.items():
        try:
            problem = find_problem(open_env)
        except FAILURES as error:  # whatever foreign code raises is a finding
            problem = f"raised {told(error)}"
        yield Finding(sentence, problem)


def declared(open_env: Open) -> str:
    env = open_env()
    for obs, transition in play(env, STEPS):
        if obs.dtype != env.spec.obs_dtype or obs.shape != env.spec.obs_shape:
            return f"observed {obs.dtype} {obs.shape}; declared {env.spec.obs_dtype} {env.spec.obs_shape}"
        if not np.isfinite(obs).all():
            return "an observation is not finite"
        if transition and not np.isfinite(transition.reward):
            return f"a reward is {transition.reward}"
    return ""


def repeats_first(open_env: Open) -> str:
    env = open_env()
    first = env.reset(1).copy()
    for _ in play(env, 50):
        pass
    return "" if np.array_equal(first, env.reset(1)) else "reset with the same seed gave another observation"


def repeats_all(open_env: Open) -> str:
    used = open_env()
    for _ in play(used, 200, stream="other"):
        pass
    for step, (one, other) in enumerate(zip(play(open_env(), STEPS), play(used, STEPS), strict=True)):
        if not same(one, other):
            return f"after {step} steps the two differ"
    return ""


def ends(open_env: Open) -> str:
    for _, transition in play(open_env(), END):
        if transition and (transition.terminated or transition.truncated):
            return ""
    return f"no end within {END} steps; register it with max_episode_steps"


def resumes(open_env: Open) -> str:
    whole, resumed = (Vector([open_env()], [0], "check") for _ in range(2))
    whole.reset()
    actions = random_actions(whole.spec, STEPS, "check")[:, None]
    for action in actions[: STEPS // 2]:
        whole.step(action)
    resumed.load_state_dict(whole.state_dict())
    for step, action in enumerate(actions[STEPS // 2 :]):
        one, other = whole.step(action), resumed.step(action)
        if not all(np.array_equal(a, b) for a, b in zip(one[:4], other[:4], strict=True)):
            return f"{step + 1} steps after resuming the two differ"
    return ""


def play(env: Env, steps: int, stream: str = "check") -> Iterator[tuple[np.ndarray, Transition | None]]:
    """Random play through as many episodes as it takes: every observation, with the transition that led to it."""
    episode = 0
    yield env.reset(episode), None
    for action in random_actions(env.spec, steps, stream):
        transition = env.step(action)
        yield transition.obs, transition
        if transition.terminated or transition.truncated:
            episode += 1
            yield env.reset(episode), None


def random_actions(spec: EnvSpec, steps: int, stream: str) -> np.ndarray:
    """[steps, *action_shape]"""
    generator = host_generator(0, stream)
    if spec.is_discrete:
        return generator.integers(spec.num_actions, size=steps)
    return generator.uniform(-1, 1, (steps, spec.action_dim)).astype(np.float32)


def same(one: tuple[np.ndarray, Transition | None], other: tuple[np.ndarray, Transition | None]) -> bool:
    rest, other_rest = (transition and transition[1:] for _, transition in (one, other))
    return np.array_equal(one[0], other[0]) and rest == other_rest


CHECKS: dict[str, Callable[[Open], str]] = {
    "observations and rewards are of the declared kind": declared,
    "a seed decides the first observation, whatever was played before": repeats_first,
    "equal seeds and actions give equal episodes, in another instance as well": repeats_all,
    "episodes end": ends,
    "an episode that was cut off goes on where it was, by playing its actions again": resumes,
}


def main(argv: list[str]) -> int:
    if argv in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    if len(argv) != 1:
        print("expected one environment, as in python -m envs.check gym/CartPole-v1", file=sys.stderr)
        return 2
    try:
        spec = make(argv[0]).spec
    except FAILURES as error:  # whatever a constructor raises: it cannot be used
        known = isinstance(error, ValueError)
        print(one_line(error) if known else f"env: {argv[0]} cannot be made: {told(error)}", file=sys.stderr)
        return 2
    acts = f"{spec.num_actions} actions" if spec.is_discrete else f"a {spec.action_dim}-d action in [-1, 1]"
    print(f"      {spec.name}: observes {spec.obs_dtype} {list(spec.obs_shape)}, takes {acts}")
    findings = []
    for finding in check(lambda: make(argv[0])):
        findings.append(finding)
        print(f"{'FAIL' if finding.problem else 'ok':<6}{finding.check}{': ' * bool(finding.problem)}{finding.problem}")
    return int(any(finding.problem for finding in findings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
