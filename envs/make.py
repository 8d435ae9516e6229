"""An environment by its name."""

from __future__ import annotations

from typing import Any

from core.options import build, nearest
from core.spec import Env
from envs.catalog import names


def make(name: str, **options: Any) -> Env:
    """The environment `atari/GAME`, `dmc/TASK`, `mdp/NAME`, `toy/NAME` or `gym/ID`; options as its file's Settings.

    Only the simulator that is asked for gets imported. Raises ValueError, one line, for an unknown name or option.
    """
    family, _, rest = name.partition("/")
    if not (family == "gym" and rest) and name not in names():
        raise ValueError(f"env: {name} given; {nearest(name, names())}")
    if family == "atari":
        from envs import atari

        return atari.Atari(rest, build(atari.Settings, options, "env"))
    if family == "dmc":
        from envs import dmc

        return dmc.DMC(rest, build(dmc.Settings, options, "env"))
    if family == "mdp":
        from envs import mdp

        return mdp.MDP(rest, build(mdp.Settings, options, "env"))
    if options:
        raise ValueError(f"env.{next(iter(options))}: no such setting; {name} has none")
    if family == "gym":
        from envs.gymnasium_env import GymnasiumEnv

        return GymnasiumEnv(rest)
    from envs.toy import TOYS

    return TOYS[rest]()
