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
    """The training loop. Shapes lead with [n] seeds; units are those of core/clock.py."""
    clock, agent, engine, replay = run.clock, run.agent, run.engine, run.replay

    while run.going and not run.stop.requested:
        if clock.running and run.stream.at(clock.env_steps).index != run.task.index:  # the world changes
            run.enter_task()

        if not clock.updates_due():  # else the run was stopped among them, or begins with them
            if clock.warm:
                seen = run.envs.observation[:, None]  # one episode per seed: [n, 1, ...]
                action = engine.act(seen, agent.explore(clock), "act", clock.agent_steps, agent.settings.act_with)[:, 0]
            else:
                action = run.random_action()
            frame = run.envs.frame
            step = run.envs.step(action)
            replay.add(frame, action, step.reward, step.terminal, step.ended, step.next_obs)
            clock.step()
            run.note_episodes(step.episodes)

        for left in reversed(range(clock.updates_due())):
            if run.stop.requested:
                break
            batch = run.sample("replay", clock.updates)
            metrics = engine.update(batch, clock)
            replay.update_priorities(batch["index"], metrics.pop("priority"))
            clock.update()
            run.note(metrics)
            run.observe()
            if left:
                run.intervene("updates")
            if left and left % LONG == 0:
                run.log()
                run.save()
        if clock.updates_due():
            continue

        # evaluation comes before the step's events (of its last update): a score is not taken within a recovery
        if clock.passed(config.eval_every, "env_steps") or not clock.running or not clock.agent_steps:
            run.evaluate()
        run.intervene("updates", "agent_steps", "env_steps")
        if clock.running and clock.passed(config.log_every, "env_steps"):
            run.log()
        if clock.running and clock.passed(config.save_every, "env_steps"):
            run.save()
        run.progress.step()

    run.close()


if __name__ == "__main__":
    main(train)
