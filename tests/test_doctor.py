"""Each planted fault gives its own line and its own exit code; a healthy machine gives a projection and 0."""

import re
import shutil
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import mujoco
import pytest
from ale_py import roms
from torch.utils._pytree import tree_leaves

from core import assemble, doctor
from core.agent_session import AgentSession
from envs.atari import insert
from envs.toy import Chain

TINY = ["env=toy/chain", "agent=dqn", "compile=false", "net.width=16", "agent.batch_size=8", "steps=600", "warmup=50"]
TINY_DMC = ["net.width=16", "agent.batch_size=8", "compile=false"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(doctor, "SECONDS", 0.05)


@pytest.fixture
def examine(capsys):
    def run(*argv: str) -> tuple[int, dict[str, str], str]:
        code = doctor.main(list(argv))
        out, err = capsys.readouterr()
        faults = {line.split()[1]: line for line in out.splitlines() if line.startswith("FAULT")}
        return code, faults, out + err

    return run


def test_a_healthy_machine_has_no_fault_and_a_projection(examine):
    code, faults, out = examine(*TINY)
    assert code == 0 and not faults
    assert out.count("\nok") == len(doctor.CHECKS) - 1
    found = re.search(
        r"env step (\S+) ms, decision (\S+) ms, update (\S+) ms for 1 seeds.*600 agent steps and 550", out
    )
    assert found and all(float(cost) > 0 for cost in found.groups())


def test_a_mujoco_that_cannot_load_the_tasks(examine, monkeypatch):
    monkeypatch.setattr(mujoco, "__version__", "4.0.0")
    code, faults, _ = examine("env=dmc/walker-walk", *TINY_DMC)
    assert code == 10 and "mujoco 4.0.0" in faults["simulator"] and "pip install" in faults["simulator"]


def test_a_missing_rom(examine, monkeypatch):
    def missing(name):
        raise FileNotFoundError(f"Unable to find rom {name}")

    monkeypatch.setattr(roms, "get_rom_path", missing)
    insert.cache_clear()  # another test may have opened the game
    code, faults, _ = examine("env=atari/pong", "agent=dqn", "compile=false")
    assert code == 10 and "atari/pong does not open" in faults["simulator"]
    assert "the ROM of atari/pong cannot be read" in faults["simulator"] and "pip install" in faults["simulator"]


def test_an_emulator_that_is_not_whole(examine, monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py", ModuleType("ale_py"))
    monkeypatch.delitem(sys.modules, "ale_py.roms")
    insert.cache_clear()
    code, faults, _ = examine("env=atari/pong", "agent=dqn", "compile=false")
    assert code == 10 and set(faults) == {"simulator"}
    assert "ale_py cannot be loaded" in faults["simulator"] and "pip install" in faults["simulator"]


def test_no_compiler(examine, monkeypatch):
    monkeypatch.setattr(assemble, "compiler_found", lambda: False)
    code, faults, out = examine(*TINY, "compile=true")
    assert code == 12 and "install g++" in faults["compiler"] and "update" in out


def test_too_little_memory(examine, monkeypatch):
    monkeypatch.setattr(doctor, "free_memory", lambda device: 2**20)
    code, faults, _ = examine(*TINY)
    assert code == 13 and "1 MiB free" in faults["memory"] and "replay.capacity" in faults["memory"]


@pytest.mark.parametrize(
    ("beyond", "key"),
    [
        (["replay.capacity=1_000_000_000_000", "steps=1_000_000_000_000"], "lower replay.capacity"),
        (["net.width=1_000_000"], "use a smaller network"),
    ],
)
def test_more_than_any_machine_holds_is_told_and_not_made(examine, monkeypatch, beyond, key):
    monkeypatch.setattr(assemble, "compiler_found", lambda: False)  # a first fault, after which there would be timing
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**80))
    code, faults, _ = examine(*TINY, "compile=true", *beyond)
    assert code == 12 and set(faults) == {"compiler", "memory"}
    assert re.search(rf"[\d,.]+ GiB needed, [\d,.]+ [GM]iB free; {key}", faults["memory"])


def test_the_sizes_are_those_of_what_is_made(tmp_path):
    config = doctor.load([*TINY, "steps=40_000", "replay=prioritised", "replay.capacity=10_000", f"run_dir={tmp_path}"])
    replay, networks = doctor._sizes(config)
    with AgentSession(config) as run:
        made = sum(leaf.nbytes for leaf in tree_leaves(run.engine.states))
        assert replay == pytest.approx(run.replay.nbytes, rel=0.02) and networks == pytest.approx(made, rel=0.02)


def test_what_does_not_fit_each_other_is_no_fault_of_the_machine(examine):
    code, faults, out = examine("env=toy/chain", "agent=sac", "compile=false")
    assert code == 2 and not faults and "agent=sac needs continuous actions" in out


def test_a_full_disk(examine, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    code, faults, _ = examine(*TINY)
    assert code == 14 and "0 MiB free" in faults["folder"] and "run_dir" in faults["folder"]


def test_a_run_folder_that_cannot_be_made(examine, tmp_path):
    (tmp_path / "file").write_text("")
    code, faults, _ = examine(*TINY, f"run_dir={tmp_path}/file/run")
    assert code == 14 and "run_dir" in faults["folder"]


def test_a_way_to_draw_that_does_not_work(examine, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    monkeypatch.setattr(doctor, "BACKENDS", ())
    config = doctor.load(["env=dmc/walker-walk"])
    with pytest.raises(doctor.Fault, match="MUJOCO_GL=nonsense cannot draw here"):
        doctor.drawing(config)
    assert doctor.CHECKS["drawing"][0] == 15


def test_a_way_to_draw_that_hangs_does_not_work(monkeypatch):
    def hang(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    assert doctor.drawing(doctor.load(["env=dmc/walker-walk"])).startswith("nothing draws")
    with pytest.raises(doctor.Fault, match="nothing draws, and env.pixels needs it"):
        doctor.drawing(doctor.load(["agent=drq_v2", "env=dmc/walker-walk"]))


@pytest.mark.parametrize("error", [RuntimeError("no licence left"), SystemExit("no licence left")])
def test_a_simulator_that_opens_and_fails_later(examine, monkeypatch, error):
    def fail(self, *_):
        raise error

    monkeypatch.setattr(Chain, "step", fail)
    code, faults, _ = examine(*TINY)
    assert code == 10 and "toy/chain, seed 0, episode 0" in faults["time"] and "no licence left" in faults["time"]
    monkeypatch.setattr(Chain, "reset", fail)
    code, faults, _ = examine(*TINY)
    assert code == 10 and "toy/chain does not open" in faults["simulator"] and "no licence left" in faults["simulator"]


@pytest.mark.slow
def test_backends_are_tried_for_real(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    found = doctor.drawing(doctor.load(["env=dmc/walker-walk"]))
    assert found and set(found.split(", ")) <= set(doctor.BACKENDS), "no backend draws on this machine"
    monkeypatch.setenv("PYOPENGL_PLATFORM", "glx")  # what this process draws by is not what is asked of the others
    assert doctor.drawing(doctor.load(["env=dmc/walker-walk"])) == found


def test_a_device_that_is_not_there_and_a_misspelt_option(examine):
    code, faults, out = examine(*TINY, "device=cuda:7")
    assert code == 11 and "cuda:7 given; this machine has" in faults["device"] and set(faults) == {"device"}
    assert re.search("memory +cannot be told without the device", out)
    code, _, out = examine("agnet=sac")
    assert code == 2 and "agent" in out and out.count("\n") == 1


def test_several_faults_are_all_told_and_the_first_one_counts(examine, monkeypatch):
    monkeypatch.setattr(doctor, "free_memory", lambda device: 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    code, faults, _ = examine(*TINY)
    assert code == 13 and set(faults) == {"memory", "folder"}


def test_nothing_is_written(examine, tmp_path):
    examine(*TINY, f"run_dir={tmp_path}/run")
    assert not list(tmp_path.iterdir())
