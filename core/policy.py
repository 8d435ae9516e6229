"""A trained policy out of a run folder.

    from core.policy import load_policy
    policy = load_policy("runs/dmc/cartpole-swingup/sac-1a2b3c4d")
    action = policy.act(observation)

It is the network the run is evaluated with, greedy or at the mean of its distribution.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np

from core import assemble, checkpoint
from core.config import Config
from core.engine import Engine
from core.evaluation import LANES, Result, evaluate
from core.run_folder import CONFIG, config_of


class Policy:
    """The newest checkpoint of a run, for all its seeds."""

    def __init__(self, config: Config, saved: dict) -> None:
        self.config, self.step = config, saved["clock"]["env_steps"]
        self.task = config.tasks[min(saved["clock"]["tasks"], len(config.tasks) - 1)]
        self._make = assemble.environments(config, self.task)
        env = self._make()
        self.spec = env.spec
        env.close()
        self.agent = assemble.agent(config, self.spec)
        self.engine = Engine(self.agent, config.seeds, self.agent.settings.batch_size, compile=False)
        self.engine.load_state_dict(saved["engine"] | {"states": saved["states"]})
        self._evaluated = assemble.evaluated_role(self.agent)
        self._decisions = 0

    def act(self, observation: np.ndarray, seed: int | None = None) -> np.ndarray:
        """Decide on one observation [*seen_shape] as the member of `seed` (the first by default) -> [*action_shape]."""
        seeds = self.config.seeds
        if seed is not None and seed not in seeds:
            raise ValueError(f"seed: {seed} given; this run has {list(seeds)}")
        shape = self.spec.seen_shape
        if np.shape(observation) != shape:
            raise ValueError(f"observation: shape {np.shape(observation)} given; {self.task} has {shape}")
        self._decisions += 1
        seen = np.broadcast_to(np.asarray(observation), (len(seeds), 1, *shape)).copy()
        actions = self.engine.act(seen, self.agent.explore_eval, "policy", self._decisions, self._evaluated)
        return actions[seeds.index(seeds[0] if seed is None else seed), 0]

    def evaluate(self, episodes: int, stream: str = "policy/evaluate") -> list[Result]:
        """Play that many episodes with every seed's network; equal names of `stream` give equal episodes."""
        vector = importlib.import_module("envs.vector").Vector
        lanes = [
            vector([self._make() for _ in self.config.seeds], self.config.seeds, f"{stream}/{lane}")
            for lane in range(min(LANES, episodes))
        ]
        greedy = self.agent.explore_eval
        return evaluate(self.engine, lanes, episodes, explore=greedy, role=self._evaluated, stream=stream)

    def film(self, path: Path) -> None:
        """Write one episode of the first seed as MP4. Raises ValueError where the environment cannot be drawn."""
        import cv2

        env = self._make()
        if not hasattr(env, "render"):
            raise ValueError(f"video: {self.spec.name} cannot be drawn; leave video out")
        vector = importlib.import_module("envs.vector").Vector([env], self.config.seeds[:1], "policy/film")
        vector.reset()
        picture = env.render()
        aside = path.with_name(f".{path.name}")  # an interrupted film leaves none
        writer = cv2.VideoWriter(str(aside), cv2.VideoWriter.fourcc(*"mp4v"), 15, (picture.shape[1], picture.shape[0]))
        if not writer.isOpened():
            raise ValueError(f"video: {path} cannot be written; expected a file such as film.mp4")
        done = False
        while not done:
            writer.write(np.ascontiguousarray(picture[..., ::-1]))
            done = bool(vector.step(self.act(vector.observation[0])[None]).ended[0])
            picture = env.render()
        writer.release()
        aside.replace(path)


def load_policy(run_dir: str | Path) -> Policy:
    """The policy of a run, from its newest whole checkpoint. Raises ValueError if there is none, or it does not fit."""
    folder = Path(run_dir)
    if not (folder / CONFIG).exists():
        raise ValueError(f"{folder}: no run here; expected a folder with {CONFIG}")
    newest, saved = checkpoint.of_newest(folder, checkpoint.load)
    config = config_of(folder)
    with checkpoint.fitting(newest):
        return Policy(config, saved)
