"""Train one agent on one stream of tasks, all seeds at once.

    python train.py agent=sac env=dmc/cheetah-run seeds=[0,1,2] steps=100_000
    python train.py --help

The same command again goes on where it stopped; a finished run says so.
"""

from __future__ import annotations

from core.config import Config, main, setting_up

LONG = 10_000  # updates at one step after which a run is saved among them


def train(config: Config) -> int:
    """Run `config` to its end, from the newest checkpoint of its folder if there is one. -> exit code"""
    from core.agent_session import AgentSession  # torch is imported only now: --help and a wrong word answer at once

    with setting_up():
        if config.env.startswith("testbed/"):
            raise ValueError(f"env: {config.env} given; supervised streams run by python -m testbeds")
        session = AgentSession(config)
    with session as run:
        if not run.finished:
            loop(config, run)
    return run.exit_code


def loop(config: Config, run) -> None:
    """The training loop. Units are those of core/clock.py."""
    clock = run.clock

    while run.going and not run.stop.requested:
        if not run.evaluating:  # else the run was stopped in an evaluation, and begins with it
            if not clock.updates_due():  # else it was stopped among updates, or begins with them
                act(run)
            learn(run)
            if clock.updates_due():  # told to stop
                break

        # evaluation comes before the step's events (of its last update): a score is not taken within a recovery
        due = clock.passed(config.eval_every, "env_steps") or not clock.running or not clock.agent_steps
        if (due or run.evaluating) and not run.evaluate():  # told to stop
            break
        run.intervene("updates", "agent_steps", "env_steps")
        if clock.running and clock.passed(config.log_every, "env_steps"):
            run.log()
        if clock.running and clock.passed(config.save_every, "env_steps"):
            run.save()
        run.progress.step()

    run.close()


def act(run) -> None:
    """One agent step in every environment. Shapes lead with [n] seeds."""
    clock, agent = run.clock, run.agent
    if run.stream.at(clock.env_steps).index != run.task.index:  # the world changes
        run.enter_task()
    if clock.warm:
        seen = run.envs.observation[:, None]  # one episode per seed: [n, 1, ...]
        explore = agent.explore(clock)
        action = run.engine.act(seen, explore, "act", clock.agent_steps, agent.settings.act_with)[:, 0]
    else:
        action = run.random_action()
    frame = run.envs.frame
    step = run.envs.step(action)
    run.replay.add(frame, step.action, step.reward, step.terminal, step.ended, step.next_obs, step.failed)
    clock.step()
    run.note_step(action, step)


def learn(run) -> None:
    """The updates that are due after a step, or those of priming."""
    for left in reversed(range(run.clock.updates_due())):
        if run.stop.requested:
            return
        batch = run.sample("replay", run.clock.updates)
        metrics = run.engine.update(batch, run.clock)
        run.replay.update_priorities(batch["index"], metrics.pop("priority"))
        run.clock.update()
        run.note(batch, metrics)
        run.observe()
        if left:
            run.intervene("updates")
        if left and left % LONG == 0:
            run.log()
            run.save()


if __name__ == "__main__":
    main(train)
