"""The environments that have a name of their own. Plain data: neither simulators nor torch are imported."""

from __future__ import annotations

import csv
import functools
from pathlib import Path
from typing import NamedTuple

OTHER_ATARI_GAMES = """
    adventure air_raid asteroids atlantis atlantis2 backgammon basic_math beam_rider berzerk blackjack bowling
    carnival casino centipede crossbow darkchambers defender donkey_kong double_dunk earthworld elevator_action
    enduro entombed et fishing_derby flag_capture frogger galaxian gravitar hangman haunted_house human_cannonball
    ice_hockey journey_escape kaboom keystone_kapers king_kong klax koolaid laser_gates lost_luggage mario_bros
    miniature_golf montezuma_revenge mr_do name_this_game othello pacman phoenix pitfall pitfall2 pooyan riverraid
    robotank sir_lancelot skiing solaris space_invaders space_war star_gunner superman surround tennis tetris
    tic_tac_toe_3d time_pilot trondead turmoil tutankham venture video_checkers video_chess video_cube video_pinball
    wizard_of_wor word_zapper yars_revenge zaxxon
""".split()  # noqa: SIM905

DMC_TASKS = """
    acrobot-swingup acrobot-swingup_sparse ball_in_cup-catch cartpole-balance cartpole-balance_sparse
    cartpole-swingup cartpole-swingup_sparse cartpole-two_poles cartpole-three_poles cheetah-run dog-stand dog-walk
    dog-trot dog-run dog-fetch finger-spin finger-turn_easy finger-turn_hard fish-upright fish-swim hopper-stand
    hopper-hop humanoid-stand humanoid-walk humanoid-run humanoid-run_pure_state humanoid_CMU-stand
    humanoid_CMU-walk humanoid_CMU-run lqr-lqr_2_1 lqr-lqr_6_2 manipulator-bring_ball manipulator-bring_peg
    manipulator-insert_ball manipulator-insert_peg pendulum-swingup point_mass-easy point_mass-hard quadruped-walk
    quadruped-run quadruped-escape quadruped-fetch reacher-easy reacher-hard stacker-stack_2 stacker-stack_4
    swimmer-swimmer6 swimmer-swimmer15 walker-stand walker-walk walker-run
""".split()  # noqa: SIM905

MDPS = ["true_label", "random_label", "sparse"]
TOYS = ["chain", "pixels", "reach", "lives"]


class Game(NamedTuple):
    """A game of Atari-100k."""

    name: str  # as in env=atari/ms_pacman
    ale_name: str  # as papers and Gymnasium write it: MsPacman
    actions: int  # size of the minimal action set
    random: float  # score of a random policy
    human: float  # score of a human: 1 after normalisation


@functools.cache
def games() -> dict[str, Game]:
    """The 26 games of Atari-100k by name, from atari_games.csv. The other games of the emulator have no scores here."""
    lines = (Path(__file__).parent / "atari_games.csv").read_text().splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    found = [Game(r["game"], r["ale_name"], int(r["actions"]), float(r["random"]), float(r["human"])) for r in rows]
    return {game.name: game for game in found}


def names() -> list[str]:
    """Every environment but anyone's own: atari/..., dmc/..., mdp/..., toy/... . Gymnasium's go by gym/ID besides."""
    families = {"atari": [*games(), *OTHER_ATARI_GAMES], "dmc": DMC_TASKS, "mdp": MDPS, "toy": TOYS}
    return [f"{family}/{name}" for family, members in families.items() for name in members]
