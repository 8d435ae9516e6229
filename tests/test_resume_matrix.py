"""Stopped and gone on with, everything ends in the bits of a run that was left alone: every agent, every intervention,
every stream of stages, every kind of environment."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_session import digests

import testbeds.__main__ as supervised
import train
from core.agent_session import AgentSession
from core.config import load
from core.rooms import choices
from testbeds.session import TestbedSession

SHORT = ["warmup=20", "eval_every=25", "eval_episodes=1", "log_every=20", "save_every=15", "replay.capacity=100"]
SHORT += ["observe_every=20", "rank_every=0", "seeds=[0,1]", "agent.batch_size=4"]
VECTORS = ["env=toy/reach", "net.width=8"]
FRAMES = ["env=toy/pixels", "net=nature", "net.width=8", "net.padding=valid"]
AGENTS = {
    "dqn": FRAMES,
    "sac": VECTORS,
    "iql": [*VECTORS, "priming.updates=0"],
    "simba": ["env=toy/reach", "net.width=8", "net.actor_width=8"],
    "bro": ["env=toy/reach", "net.width=8", "net.actor_width=8"],
    "sr_sac": [*VECTORS, "replay_ratio=2"],
    "rlpd": [*VECTORS, "replay_ratio=1", "agent.critics=3"],
    **{name: FRAMES for name in ("dqn_nature", "rainbow", "der", "drq_eps", "drq")},
}
QUICK = ("dqn", "sac", "iql", "simba", "der")  # the others are made of the same parts
ENVIRONMENTS = {
    "toy/chain": ["agent=dqn", "net.width=8"],
    "toy/lives": ["agent=dqn", "net=nature", "net.width=8", "net.padding=valid"],
    "gym/CartPole-v1": ["agent=dqn", "net.width=8"],
    "mdp/true_label": ["agent=dqn", "net.width=8"],
    "dmc/cartpole-swingup": ["agent=sac", "net.width=8", "steps=120"],
    "atari/pong": ["agent=dqn", "net=nature", "net.width=8", "eval_every=0"],
}
STREAMS = ("chunks", "class_incremental", "large_means", "permuted_pixels", "random_labels", "shifted_labels")
STREAMS += ("slow_regression", "warm_start")
STAGES = ["steps=60", "env.stage=20", "net.width=8", "seeds=[0,1]", "eval_every=7", "log_every=9", "save_every=11"]
STAGES += ["observe_every=10", "rank_every=0", "agent.batch_size=8"]


def check(arguments: list[str], tmp_path: Path, capsys, compile: bool = False, step: int = 37) -> None:
    """Stopped within one step, and once more in the one after."""
    arguments = [*arguments, f"compile={str(compile).lower()}"]
    staged = any(argument.startswith("env=testbed/") for argument in arguments)
    session, script = (TestbedSession, supervised) if staged else (AgentSession, train)
    for name, stops in (("whole", ()), ("parts", (step, step + 1))):
        for stop in (*stops, None):
            run = session(load([*arguments, f"run_dir={tmp_path / name}"]))
            turn = run.progress.step
            run.progress.step = lambda run=run, turn=turn, stop=stop: (
                turn(),
                stop and run.clock.env_steps >= stop and run.stop.ask("enough", 9),
            )
            with run:
                script.loop(run.config, run)
            assert run.exit_code == (9 if stop else 0)
    assert digests(tmp_path / "parts", capsys) == digests(tmp_path / "whole", capsys)


@pytest.mark.parametrize(
    "agent", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in AGENTS]
)
def test_every_agent(agent, tmp_path, capsys):
    check([f"agent={agent}", *SHORT, *AGENTS[agent], "steps=60"], tmp_path, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("name", choices("interventions"))
def test_every_intervention(name, tmp_path, capsys):
    agent = ["agent=sac", *VECTORS] if name != "crelu" else ["agent=dqn", *FRAMES]
    when = [f"interventions.{name}.when.every=10", f"interventions.{name}.when.unit=updates"]
    chosen = [f"interventions=[{name}]"]
    try:
        load([*agent, *chosen, *when])
        chosen += when
    except ValueError:
        pass  # always on: it has no schedule
    check([*agent, *SHORT, *chosen, "steps=60"], tmp_path, capsys)


@pytest.mark.parametrize(
    "env", [pytest.param(env, marks=pytest.mark.slow) if env == "atari/pong" else env for env in ENVIRONMENTS]
)
def test_every_kind_of_environment(env, tmp_path, capsys):
    check([f"env={env}", *SHORT, "steps=60", *ENVIRONMENTS[env]], tmp_path, capsys)


@pytest.mark.parametrize("stream", STREAMS)
def test_every_stream_of_stages(stream, tmp_path, capsys):
    agent = "regressor" if stream in ("large_means", "slow_regression") else "classifier"
    check([f"env=testbed/{stream}", f"agent={agent}", *STAGES], tmp_path, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("agent", AGENTS)
def test_every_agent_compiled(agent, tmp_path, capsys):
    check([f"agent={agent}", *SHORT, *AGENTS[agent], "steps=60"], tmp_path, capsys, compile=True)
