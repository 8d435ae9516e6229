"""Every intervention runs by its bare name, with its default schedule, in a whole run of default length."""

from __future__ import annotations

import json

import pytest

import train
from core import rooms
from core.agent_session import AgentSession
from core.config import load

AGENTS = {
    "dqn": ["agent=dqn", "env=toy/lives", "net=nature", "net.width=16", "net.padding=valid"],
    "sac": ["agent=sac", "env=toy/reach", "net.width=16"],
}
SMALL = ["agent.batch_size=8", "compile=false", "warmup=40", "observe_every=0", "rank_every=0", "eval_every=0"]


@pytest.mark.slow
@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("name", rooms.interventions())
def test_it_trains_and_its_event_comes_by_default(name, agent, tmp_path, monkeypatch):
    config = load([*AGENTS[agent], *SMALL, "steps=100_000", f"interventions=[{name}]", f"run_dir={tmp_path}"])
    (intervention,) = config.interventions
    every = intervention.when.every
    with AgentSession(config) as run:
        turns = 0

        def step():
            """After some updates jump to just before the first event, and stop some updates after it."""
            nonlocal turns
            turns += 1
            if turns == 50 and every:
                at = {"updates": every - 3, "agent_steps": every + 37, "env_steps": every + 37}
                run.clock.load_state_dict(run.clock.state_dict() | at | {"last": {}})
            if turns == 60:
                run.stop.requested = "enough"

        monkeypatch.setattr(run.progress, "step", step)
        train.loop(config, run)
        assert run.clock.running and run.engine.alive.all()
        assert run.clock.updates == (every + 7 if every else 20)
    rows = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert {row["intervention"] for row in rows} == ({name} if every else set())
