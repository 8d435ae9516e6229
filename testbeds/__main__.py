"""Train one supervised learner on one stream of stages, all seeds at once.

    python -m testbeds env=testbed/permuted_pixels seeds=[0,1,2] interventions=[l2_init]
    python -m testbeds --help

The same command again goes on where it stopped; a finished run says so.
"""

from __future__ import annotations

from core.config import Config, main, setting_up


def train(config: Config) -> int:
    """Run `config` to its end, from the newest checkpoint of its folder if there is one. -> exit code"""
    from testbeds.session import TestbedSession  # torch is imported only now

    with setting_up():
        if not config.env.startswith("testbed/"):
            raise ValueError(f"env: {config.env} given; agents are trained by python train.py, here env=testbed/...")
        session = TestbedSession(config)
    with session as run:
        if not run.finished:
            loop(config, run)
    return run.exit_code


def loop(config: Config, run) -> None:
    """The training loop: one update per step, stage after stage."""
    clock = run.clock

    while run.going and not run.stop.requested:
        if run.stage_is_over:  # the world changes
            run.enter_stage()

        batch = run.sample("data", clock.updates)
        clock.step()
        metrics = run.engine.update(batch, clock)
        clock.update()
        run.note(batch, metrics)
        run.rest()
        run.observe()  # also what time has moved on to

        if run.stage_is_over or not clock.running or clock.passed(config.eval_every, "env_steps"):
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
