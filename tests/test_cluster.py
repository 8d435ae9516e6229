"""An ablation on a real Slurm of one node and a real Ray of two: cells, nodes and launchers die on the way."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.ablation import read
from core.run import main as run_command

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
FILE = """
tasks: [toy/chain]
seeds: [0, 1]
settings: {agent: dqn, steps: 4_000, warmup: 40, compile: false, eval_every: 1_000, eval_episodes: 2, save_every: 200}
arms: {base: [], ln: [layer_norm]}
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cluster") / "small.yaml"
    path.write_text(FILE)
    return path


@pytest.fixture(scope="module")
def undisturbed(file) -> list[str]:
    out = file.parent / "undisturbed"
    assert launch(file, out).wait() == 0
    return digests(file, out)


def launch(file: Path, out: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "ablate.py", str(file), f"out={out}", *options]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True)


def digests(file: Path, out: Path) -> list[str]:
    command = [sys.executable, "-m", "core.run", "digest"]
    return [
        subprocess.run([*command, str(cell.folder)], check=True, capture_output=True, text=True).stdout
        for cell in read(file, out).cells
    ]


def saved(out: Path, arm: str, step: int = 200, seconds: float = 180) -> Path:
    """Wait until a cell has a checkpoint at `step` or beyond. -> its folder"""
    folder, end = out / arm / "toy" / "chain", time.monotonic() + seconds
    while not any(int(path.name[:12]) >= step for path in folder.glob("checkpoints/0*")):
        assert time.monotonic() < end, f"no checkpoint in {folder}"
        time.sleep(0.2)
    return folder


def owner(folder: Path) -> int:
    return int((folder / ".lock").read_text().split()[1])


def causes(out: Path) -> str:
    path = out / "attempts.jsonl"
    return path.read_text() if path.exists() else ""


needs_slurm = pytest.mark.skipif(
    not shutil.which("sinfo"),
    reason="these tests submit jobs, and no Slurm is installed here; docs/cluster.md sets up one of one node",
)


@needs_slurm
def test_slurm_cells_are_found_again_requeued_and_restarted_and_end_in_the_same_bits(file, undisturbed):
    out = file.parent / "slurm"
    launcher = launch(file, out, "launcher=slurm", "launcher.cpus_per_task=1", "launcher.timeout_min=10")
    os.kill(owner(saved(out, "base")), signal.SIGKILL)  # the run dies
    while "exit code -9" not in causes(out):
        time.sleep(0.2)
    launcher.kill()  # the launcher dies, its jobs go on
    launcher.wait()
    queued = subprocess.run(["squeue", "-h", "-o", "%i"], capture_output=True, text=True).stdout.split()
    assert queued
    again = launch(file, out, "launcher=slurm", "launcher.cpus_per_task=1", "launcher.timeout_min=10")
    assert again.wait() == 0
    assert digests(file, out) == undisturbed


@needs_slurm
def test_a_slurm_job_that_is_preempted_saves_and_queues_itself_again(file, undisturbed):
    out = file.parent / "preempted"
    launcher = launch(file, out, "launcher=slurm", "launcher.cpus_per_task=1", "launcher.timeout_min=10")
    saved(out, "base", 400)
    jobs = subprocess.run(["squeue", "-h", "-t", "R", "-o", "%i"], capture_output=True, text=True).stdout.split()
    for job in jobs:
        subprocess.run(["scancel", "--signal=USR2", job], check=True)  # what submitit has Slurm send before the end
    assert launcher.wait() == 0
    assert '"code": 1' not in causes(out)
    assert digests(file, out) == undisturbed


def test_ray_cells_go_on_elsewhere_when_their_node_dies(file, undisturbed, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    first = cluster.add_node(num_cpus=1)
    out = file.parent / "ray"
    launcher = launch(file, out, "launcher=ray", f"launcher.address={cluster.address}", "launcher.num_cpus=1")
    try:
        saved(out, "base", 400)
        cluster.remove_node(first)
        cluster.add_node(num_cpus=2)
        assert launcher.wait() == 0
    finally:
        launcher.kill()
        cluster.shutdown()
    assert "base on toy/chain" in causes(out) and '"code": 1' in causes(out)
    assert digests(file, out) == undisturbed


def test_the_digests_that_are_compared_are_of_finished_runs(undisturbed, file):
    assert len(undisturbed) == 2
    assert run_command(["verify", str(read(file, file.parent / "undisturbed").cells[0].folder)]) == 0
