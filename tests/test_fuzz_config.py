"""Whatever is typed or written into a configuration: it is a run, or refused in one line that says what is wrong."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest
import torch
import yaml
from command_lines import command_lines, short_runs
from hypothesis import example, given, settings
from spoilers import FUZZ, bomb, refused, spoilt_bytes, spoilt_trees

import train
from core.ablation import read
from core.config import BadConfig, Config, from_plain, load, resolved
from core.options import printable
from core.run_folder import CONFIG, read_config
from testbeds import __main__ as testbeds

COMMAND = ["env=toy/chain", "agent=der", "interventions=[reset,layer_norm]", "stream.tasks=[toy/chain,toy/lives]"]
COMMAND += ["stream.steps=2_000", "agent.augment.shift=2", "interventions.reset.when.at=[7]"]
TREE = resolved(load(COMMAND))
ABLATION = {
    "tasks": ["toy/chain"],
    "seeds": [0, 1],
    "settings": {"agent": "dqn", "steps": 700, "net": {"width": 8}},
    "arms": {"base": [], "reset": [{"name": "reset", "on": ["q"], "when": {"every": 100}}, "l2"]},
    "controls": {"reset": ["identity"]},
    "base": "base",
    "overlay": {"interventions.l2.weight": 0.1},
    "sizes": {"smoke": {"seeds": [3], "settings": {"steps": 600}}},
}


def words(argv: list[str]) -> set[str]:
    """What a refusal may name: an argument, its key, its value, or a word in them, as a terminal can show them."""
    found = {printable(word) for arg in argv for word in (*arg.partition("="), *re.split(r"\W+", arg)) if word}
    found |= {"an empty word"} if "" in argv else set()
    return found if "=" in argv else found - {"="}


def answered(argv: list[str]) -> Config | None:
    """The run that a command line asks for, or None: it was refused as it should be."""
    try:
        config = load(argv)
    except BadConfig as error:
        line = str(error)
        assert line and line.isprintable() and any(word in line for word in words(argv)), f"{argv!r}: {line!r}"
        return None
    tree = yaml.safe_load(yaml.safe_dump(resolved(config), sort_keys=False))
    assert from_plain(resolved(config)) == from_plain(tree) == config
    return config


REFUSED = [  # what no default of ours and no search is likely to meet
    "agent.kind=[dqn]",
    "agent.name=null",
    "net.name=3",
    "env.name=3",
    "~agent",
    "~net.name",
    "~env.name",
    "net.mlp=3",
    "value.hl_gauss=null",
    "stream.tasks.x=1",
    "stream.tasks.x.y=1",
    "interventions=[critic_norm] interventions.critic_norm.on.when.every=1",
    "interventions=[reset] interventions.reset.kind=foo",
    "interventions=[reset] interventions.reset.kind=__init__",
    "interventions=[reset] interventions.reset.name=null",
    "interventions=[reset,l2] interventions.reset.name=l2",
    f"replay_ratio=1{'0' * 400}",
    "steps=1e308 replay_ratio=1e308",
    "agent.learning_rate=\x1b[31m",
    "device=cpu\u202e",
    "agent=dqn ",
    "\udcff@=",
]


@pytest.mark.parametrize("command", REFUSED, ids=ascii)
def test_a_name_or_number_that_means_nothing_is_refused(command):
    assert answered(command.split(" ")) is None


@settings(max_examples=75, **FUZZ)
@given(command_lines())
def test_a_command_line_is_a_run_or_refused_in_one_line_that_names_what_is_wrong(argv):
    answered(argv)


@pytest.mark.slow
@pytest.mark.timeout(7_200)
@settings(max_examples=10_000, **FUZZ)
@given(command_lines())
def test_ten_thousand_command_lines_are_runs_or_refused(argv):
    answered(argv)


@settings(max_examples=300, **FUZZ)
@given(spoilt_trees(TREE))
@example(10**30)
def test_a_spoilt_tree_of_plain_data_is_a_run_or_refused_in_one_line(tree):
    """What `from_plain` reads came from a file, and may be anything that yaml can hold."""
    if not refused(from_plain, tree):
        assert from_plain(resolved(from_plain(tree))) == from_plain(tree)


@settings(max_examples=300, **FUZZ)
@given(spoilt_bytes(yaml.safe_dump(TREE, sort_keys=False).encode()))
def test_a_damaged_config_yaml_is_a_run_or_refused_in_one_line(content):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / CONFIG
        path.write_bytes(content)
        if not refused(read_config, path.parent, naming=path.name):
            refused(from_plain, read_config(path.parent))


@settings(max_examples=20, **FUZZ)
@given(spoilt_trees(ABLATION))
def test_a_spoilt_ablation_is_read_or_refused_in_one_line_that_names_the_file(tree):
    is_read(yaml.safe_dump(tree, sort_keys=False).encode())


@settings(max_examples=20, **FUZZ)
@given(spoilt_bytes(yaml.safe_dump(ABLATION, sort_keys=False).encode()))
def test_a_damaged_ablation_is_read_or_refused_in_one_line_that_names_the_file(content):
    is_read(content)


@pytest.mark.slow
@pytest.mark.timeout(3_600)
@settings(max_examples=1_000, **FUZZ)
@given(spoilt_trees(ABLATION) | spoilt_bytes(yaml.safe_dump(ABLATION, sort_keys=False).encode()))
def test_a_thousand_ablations_are_read_or_refused(given):
    is_read(given if isinstance(given, bytes) else yaml.safe_dump(given, sort_keys=False).encode())


def is_read(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "small.yaml"
        path.write_bytes(content)
        for size in ("", "smoke"):
            refused(read, path, Path(name), size, naming=path.name)


STRANGE = {  # yaml that is not what it seems
    "a key that is a list": b"? [a, b]\n: 1\n",
    "a key that is a mapping": b"? {a: b}\n: 1\n",
    "a mapping within itself": b"&a\nseeds: [0]\nnet: *a\n",
    "a list within itself": b"seeds: &a [*a]\n",
    "deeper than Python can go": b"net: " + b"[" * 20_000,
    "a date": b"seeds: 2024-01-01\ntasks: [2024-01-01]\n",
    "a control character": b"seeds: [\x01]\n",
    "half of a letter": b"seeds: [\xc3]\n",
    "a number of 5,000 digits": b"seeds: [" + b"1" * 5_000 + b"]\n",
    "two documents": b"seeds: [0]\n---\nseeds: [1]\n",
    "a tag that runs a command": b"seeds: !!python/object/apply:os.system ['touch MARKER']\n",
    "a set": b"seeds: !!set {0, 1}\n",
    "a pickle": bomb(Path("MARKER")),
    "nothing": b"",
}


@pytest.mark.parametrize("what", STRANGE)
def test_strange_yaml_is_refused_and_runs_nothing(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (CONFIG, "small.yaml"):
        Path(name).write_bytes(STRANGE[what])
    assert refused(lambda: from_plain(read_config(tmp_path)))
    assert refused(read, Path("small.yaml"), naming="small.yaml")
    assert not Path("MARKER").exists()


@pytest.mark.slow
@pytest.mark.timeout(3_600)
@settings(max_examples=200, **FUZZ)
@given(short_runs())
def test_what_is_accepted_trains_to_its_end_or_is_refused_before_anything_is_written(argv):
    """Settings that fit each for themselves may not fit together: that is said at the start, never later."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        config = answered([*argv, f"run_dir={folder}"])
        if config is None:
            return
        run = testbeds.train if config.env.startswith("testbed/") else train.train
        try:
            assert run(config) == 0 and (folder / "done.json").exists()
        except BadConfig as error:
            line = " ".join(str(error).split())  # as `main` shows it
            assert line and line.isprintable() and not (folder / CONFIG).exists(), f"{argv}: {line}"
        finally:
            torch.set_flush_denormal(False)  # hypothesis draws such numbers, and looks whether it can
