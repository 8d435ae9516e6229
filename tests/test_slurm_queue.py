"""What the Slurm launcher makes of answers of `squeue`, and of none. (On a real Slurm: tests/test_cluster.py.)"""

import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from core.launchers import slurm


@pytest.fixture
def answers(monkeypatch):
    """Texts that squeue says one after the other; None: it fails. The last one stays."""
    texts: list[str | None] = []

    def run(command, **_):
        text = texts.pop(0) if len(texts) > 1 else texts[0]
        return SimpleNamespace(returncode=int(text is None), stdout=text or "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(slurm, "PAUSE", 0.0)
    return texts


def job(folder: Path, queue: slurm.Queue, result=None):
    pickle = folder / "result.pkl"
    if result is not None:
        pickle.write_text("")
    paths = SimpleNamespace(result_pickle=pickle, stderr=folder / "err")
    ended = SimpleNamespace(job_id="7", paths=paths, exception=lambda: None, result=lambda: result)
    return slurm.SlurmJob(ended, queue)


def test_a_job_waits_runs_and_ends_with_the_runs_exit_code(tmp_path, answers):
    answers[:] = ["7 PENDING\n8 RUNNING\n", "7 RUNNING\n", "7 RUNNING\n", ""]
    mine = job(tmp_path, slurm.Queue(), result=3)
    assert mine.waiting()
    assert not mine.waiting() and mine.code() is None
    assert mine.code() == 3 and mine.cause() == ""


def test_a_controller_that_does_not_answer_has_not_lost_the_jobs(tmp_path, answers):
    answers[:] = [None]
    mine = job(tmp_path, slurm.Queue())
    assert mine.code() is None and mine.waiting()


def test_jobs_of_an_earlier_launch_are_not_started_again_because_nobody_answers(tmp_path, answers):
    pytest.importorskip("submitit")
    answers[:] = [None]
    (tmp_path / "logs" / "slurm").mkdir(parents=True)
    (tmp_path / "logs" / "slurm" / "jobs.jsonl").write_text('{"cell": "a on b", "job": "7"}\n')
    with pytest.raises(ValueError, match="squeue does not answer"):
        slurm.Slurm(None, tmp_path).standing()


def test_what_left_the_queue_without_a_result_has_failed(tmp_path, answers):
    answers[:] = [""]
    mine = job(tmp_path, slurm.Queue())
    assert mine.code() == slurm.WITHOUT_RESULT and "job 7 left the queue" in mine.cause()


def test_an_answer_from_before_the_submission_is_no_answer(tmp_path, answers, monkeypatch):
    monkeypatch.setattr(slurm, "PAUSE", 60.0)
    answers[:] = ["", "7 PENDING\n"]
    queue = slurm.Queue()
    assert queue.states() == {}
    time.sleep(0.01)
    assert job(tmp_path, queue).code() is None
