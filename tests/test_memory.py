"""How much memory a process may take: what the machine has left, or its control groups grant it."""

import math
from pathlib import Path

import pytest

from core import memory

V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "total_active_file")
V2 = ("memory.max", "memory.current", "inactive_file", "active_file")


def group(folder: Path, names: tuple[str, ...], limit: str, used: int, idle: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {idle // 2}\n{names[3]} {idle - idle // 2}\n")


def test_a_group_leaves_what_its_limit_and_those_above_it_leave(tmp_path):
    group(tmp_path / "slurm" / "job_7" / "step_0", V2, "max", 500, 0)
    group(tmp_path / "slurm" / "job_7", V2, "1000", 700, 150)
    group(tmp_path / "slurm", V2, "2000", 1_900, 400)
    membership = "0::/slurm/job_7/step_0\n"
    assert memory.granted(membership, tmp_path) == 1_000 - 700 + 150
    group(tmp_path / "slurm", V2, "2000", 1_900, 0)
    assert memory.granted(membership, tmp_path) == 100


def test_the_first_version_has_a_tree_of_its_own_for_memory(tmp_path):
    group(tmp_path / "memory" / "job", V1, "1000", 600, 50)
    group(tmp_path / "cpu" / "job", V1, "10", 0, 0)
    membership = "9:name=systemd:/\n5:cpuacct,cpu:/job\n4:hugetlb,memory:/job\n0::/\n"
    assert memory.granted(membership, tmp_path) == 450


@pytest.mark.parametrize(("top", "names", "membership"), [("", V2, "0::/"), ("memory", V1, "4:memory:/docker/3f9a")])
def test_a_container_sees_its_group_as_the_top(tmp_path, top, names, membership):
    group(tmp_path / top, names, "4096", 96, 0)
    assert memory.granted(membership, tmp_path) == 4_000


@pytest.mark.parametrize("membership", ["", "0::/", "0::/gone", "5:cpu:/job"])
def test_no_limit(tmp_path, membership):
    group(tmp_path, V2, "max", 10, 0)
    assert memory.granted(membership, tmp_path) == math.inf


def test_the_lesser_of_both_is_free(tmp_path, monkeypatch):
    (tmp_path / "cgroup").write_text("0::/job")
    monkeypatch.setattr(memory, "MEMBERSHIP", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "granted", lambda membership: 2**20 if membership == "0::/job" else math.inf)
    assert memory.free_memory() == 2**20
    monkeypatch.setattr(memory, "MEMBERSHIP", tmp_path / "elsewhere")  # no such file on macOS
    assert 2**20 < memory.free_memory() < 2**50
