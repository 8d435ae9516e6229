"""Atari 2600 games under the protocol of Atari-100k.

Frame skip 4, maximum over the last two frames, grayscale, 84 x 84 by area, no sticky actions, minimal action set, 1 to
30 no-op frames, 27,000 agent steps per episode, a life loss told to the learner alone (Dopamine's Atari-100k and BBF,
read in their source; no-ops counted in raw frames as in Gymnasium and SPR).
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from core.options import nearest, option, told
from core.spec import EnvSpec, Transition
from envs.catalog import OTHER_ATARI_GAMES, games

if TYPE_CHECKING:
    from ale_py import Action

FRAMES = 4  # raw frames per agent step
LIMIT = 27_000  # agent steps per episode: half an hour of play
SIZE = (84, 84)
OPENCV = "pip install --force-reinstall --no-deps opencv-python-headless"
PACKAGE = "pip install --force-reinstall --no-deps 'ale-py>=0.12,<0.13'"


@dataclass(frozen=True)
class Settings:
    """Options of an Atari game."""

    full_actions: bool = option(False, help="all 18 actions instead of the game's own, so that games share a network")
    noop_max: int = option(30, low=0, help="an episode begins with 1 to this many raw frames without action; 0: none")


DEFAULTS = Settings()


class Atari:
    """One game. Observations are single frames, uint8 [84, 84]; rewards are raw.

    Raises ValueError for an unknown game, or an emulator or OpenCV that is not whole.
    """

    def __init__(self, game: str, settings: Settings = DEFAULTS) -> None:
        cartridge, ale_py, cv2 = insert(game), load_emulator(), _load_opencv()
        self.settings = settings
        self._rom = cartridge.rom
        self._actions = cartridge.all_actions if settings.full_actions else cartridge.actions
        self._screens = np.zeros((2, *cartridge.screen), np.uint8)  # the last two raw frames
        self._shrink = functools.partial(cv2.resize, dsize=SIZE, interpolation=cv2.INTER_AREA)
        self._noop = ale_py.Action.NOOP
        self._ale = ale_py.ALEInterface()
        self._ale.setFloat("repeat_action_probability", 0.0)
        self.spec = EnvSpec(f"atari/{game}", SIZE, "uint8", num_actions=len(self._actions), stack=4, clip_rewards=True)

    def reset(self, seed: int) -> np.ndarray:
        """Power on, then no-ops.

        Only loading the ROM anew clears all that an earlier episode left in the emulator (seen: restoring a saved
        state fails on Amidar and Qbert); it takes 0.09 s. The seed decides the number of no-ops and what memory and
        timer hold at power-on: Assault, Hero, Seaquest and a few more take their randomness from it. Elsewhere that
        differs between episodes as well, but by all that was played before; to seed it is our choice.
        """
        self._ale.setInt("random_seed", seed)
        self._ale.setInt("system_random_seed", seed)
        self._ale.loadROM(self._rom)
        if self.settings.noop_max:
            for _ in range(np.random.default_rng(seed).integers(1, self.settings.noop_max + 1)):
                self._ale.act(self._noop)
        self._lives = self._ale.lives()  # after the no-ops: some games count their lives late
        self._steps = 0
        self._ale.getScreenGrayscale(self._screens[1])
        self._screens[0] = self._screens[1]
        return self._frame()

    def step(self, action: np.ndarray) -> Transition:
        """Four frames of one action. Past the game's end the emulator stands still and gives no reward."""
        pressed = self._actions[action]
        reward = 0.0
        for frame in range(FRAMES):
            reward += self._ale.act(pressed)
            if frame >= FRAMES - 2:
                self._ale.getScreenGrayscale(self._screens[frame % 2])
        before, self._lives = self._lives, self._ale.lives()
        self._steps += 1
        terminated = self._ale.game_over()
        truncated = self._steps >= LIMIT and not terminated
        life_lost = self._lives < before and not terminated
        return Transition(self._frame(), reward, terminated, truncated, life_lost)

    def render(self) -> np.ndarray:
        """The screen in colour, uint8 [210, 160, 3] in most games."""
        return self._ale.getScreenRGB()

    def close(self) -> None:
        """Nothing is held open."""

    def _frame(self) -> np.ndarray:
        return self._shrink(self._screens.max(axis=0))


class Cartridge(NamedTuple):
    """What a game tells about itself once it is loaded."""

    rom: Path
    actions: list[Action]  # the minimal set
    all_actions: list[Action]
    screen: tuple[int, int]


@functools.cache
def insert(game: str) -> Cartridge:
    """Load a game once per process to ask for its actions; loading takes a tenth of a second."""
    known = [*games(), *OTHER_ATARI_GAMES]
    if game not in known:
        raise ValueError(f"env: atari/{game} given; {nearest(game, known)}")
    ale_py = load_emulator()
    try:
        rom = ale_py.roms.get_rom_path(game)
    except OSError as error:
        fix = "correct ALE_ROMS_DIR, or unset it" if os.environ.get("ALE_ROMS_DIR") else PACKAGE
        raise ValueError(f"env: the ROM of atari/{game} cannot be read ({told(error)}); {fix}") from error
    assert rom, "the catalog lists only games that ale-py ships"
    ale = ale_py.ALEInterface()
    ale.loadROM(rom)
    return Cartridge(rom, ale.getMinimalActionSet(), ale.getLegalActionSet(), ale.getScreenDims())


def load_emulator() -> ModuleType:
    """ale_py, imported only where a game is opened. Raises ValueError if the package is not whole."""
    try:
        import ale_py
        import ale_py.roms

        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    except Exception as error:  # whatever half a package raises
        raise ValueError(f"env: ale_py cannot be loaded ({told(error)}); {PACKAGE}") from error
    return ale_py


def _load_opencv() -> ModuleType:
    """cv2, likewise: other builds of it than the headless one want a screen's libraries."""
    try:
        import cv2
    except Exception as error:
        raise ValueError(f"env: cv2 cannot be loaded ({told(error)}); {OPENCV}") from error
    return cv2
