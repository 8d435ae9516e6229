"""The list of environments, and opening one by its name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from envs.catalog import DMC_TASKS, OTHER_ATARI_GAMES, TOYS, games, names
from envs.make import make


def test_atari_100k_has_its_26_games_with_scores():
    assert len(games()) == 26
    pacman = games()["ms_pacman"]
    assert (pacman.ale_name, pacman.actions, pacman.random, pacman.human) == ("MsPacman", 9, 307.3, 6951.6)
    assert all(game.human > game.random for game in games().values())


@pytest.mark.slow
def test_every_action_count_is_what_the_emulator_says():
    from envs.atari import insert

    assert {name: len(insert(name).actions) for name in games()} == {g.name: g.actions for g in games().values()}


def test_every_ale_name_is_what_gymnasium_calls_the_game():
    from ale_py.registration import rom_id_to_name

    assert {game.name: game.ale_name for game in games().values()} == {name: rom_id_to_name(name) for name in games()}


def test_all_single_player_games_of_the_emulator_are_listed_once():
    from ale_py.roms import get_all_rom_ids

    two_players = {"combat", "joust", "maze_craze", "warlords"}  # to load one of these ends the process
    listed = [*games(), *OTHER_ATARI_GAMES]
    assert sorted(listed) == sorted(set(get_all_rom_ids()) - two_players)


def test_all_tasks_of_the_control_suite_are_listed():
    from envs.dmc import load_suite

    assert sorted(DMC_TASKS) == sorted(f"{domain}-{task}" for domain, task in load_suite().ALL_TASKS)


def test_all_toys_are_listed():
    from envs import toy

    assert list(toy.TOYS) == TOYS


def test_the_list_needs_neither_a_simulator_nor_torch():
    heavy = {"torch", "numpy", "ale_py", "dm_control"}
    code = f"import sys, envs.catalog; envs.catalog.names(); print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_atari_does_not_import_the_control_suite_nor_the_other_way_round():
    code = "import sys; from envs.make import make; make('{}'); print('{}' in sys.modules)"
    for name, other in (("atari/pong", "dm_control"), ("dmc/cartpole-balance", "ale_py")):
        done = subprocess.run([sys.executable, "-c", code.format(name, other)], capture_output=True, text=True)
        assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", ["atari/pong", "dmc/cartpole-swingup", "toy/reach", "gym/CartPole-v1"])
def test_an_environment_knows_the_name_it_was_made_by(name):
    env = make(name)
    assert env.spec.name == name
    obs = env.reset(0)
    assert (obs.shape, obs.dtype.name) == (env.spec.obs_shape, env.spec.obs_dtype)


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("atari/mspacman", {}, "env: atari/mspacman given; did you mean atari/ms_pacman?"),
        ("dmc/walker_walk", {}, "env: dmc/walker_walk given; did you mean dmc/walker-walk?"),
        ("walker-walk", {}, "env: walker-walk given; did you mean dmc/walker-walk?"),
        (
            "dmc/walker-walk",
            {"action_repeats": 2},
            "env.action_repeats: no such setting; did you mean env.action_repeat?",
        ),
        ("dmc/walker-walk", {"action_repeat": 0}, "env.action_repeat: 0 given; expected at least 1 and at most 100"),
        ("toy/chain", {"length": 3}, "env.length: no such setting; toy/chain has none"),
    ],
)
def test_what_cannot_be_made_is_told_in_one_line(name, options, line):
    with pytest.raises(ValueError) as error:
        make(name, **options)
    assert str(error.value) == line


def test_names_are_unique_and_by_family():
    assert len(set(names())) == len(names()) == 104 + 51 + 3 + 4
