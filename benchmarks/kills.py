"""Kill runs again and again, start the same command again each time, and compare them with undisturbed ones.

    python -m benchmarks.kills kills=200 out=FOLDER [only=dqn,sac,testbed,ablation] [workers=2]
    python -m benchmarks.kills kills=20 out=FOLDER agent=dqn env=atari/pong steps=3_000 save_every=200

The second form tries train.py with these arguments in place of the workloads below, which are small networks run
eagerly (compile=false): a start takes seconds, not the compiler's half a minute. Each is run once undisturbed, then
in rounds: SIGKILL, the same command again, killed again, until it ends. Of twelve kills five fall at a random moment;
four before a random operation on files within saving and one on entering the folder (benchmarks/die_at.py); two
shortly after a save is seen to begin. Of an ablation the launcher dies, or one of its cells, or all.

FOLDER/kills.csv gets a row for each kill as it happens, and one for each round's end: are all digests, all rows of the
records and the verdict of `verify` those of the undisturbed run? The same command again goes on; exit code 1: no.
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.victim import OPERATIONS, Victim, Workload, resumed_from, strike
from core.randomness import host_generator
from core.records import EXACT

OPTIONS = ("kills", "out", "only", "workers")
COLUMNS = ("workload", "round", "kill", "moment", "inside_saving", "resumed_from", "outcome", "digests")
END, SAME = "end", "same"
AIMS = ("moment", "saving", "watch", "moment", "saving", "moment", "entering", "saving", "moment", "watch", "saving")
AIMS += ("moment",)

SMALL = ["compile=false", "net.width=32", "agent.batch_size=32", "eval_episodes=1", "observe_every=300", "rank_every=0"]
TRAIN = (sys.executable, "train.py", *SMALL)
DQN = ["agent=dqn", "env=atari/pong", "steps=1_500", "warmup=200", "replay=prioritised", "replay.capacity=1_200"]
DQN += ["replay_ratio=0.1", "eval_every=0", "final_episodes=1", "save_every=100", "log_every=50"]
DQN += ["interventions=[reset]", "interventions.reset.when.every=30"]
SAC = ["agent=sac", "env=dmc/cartpole-swingup", "seeds=[0,1]", "steps=1_300", "warmup=200", "replay.capacity=1_100"]
SAC += ["replay_ratio=0.5", "eval_every=500", "save_every=100", "log_every=50", "interventions=[shrink_and_perturb]"]
SAC += ["interventions.shrink_and_perturb.when.every=100"]
TESTBED = ["env=testbed/permuted_pixels", "seeds=[0,1]", "steps=4_000", "env.stage=700", "save_every=300"]
TESTBED += ["log_every=100", "interventions=[redo]", "interventions.redo.when.every=700"]
ABLATION = """tasks: [toy/reach]
seeds: [0, 1]
settings: {agent: sac, steps: 1_300, warmup: 100, compile: false, net.width: 32, agent.batch_size: 16, save_every: 100,
           log_every: 50, eval_every: 500, eval_episodes: 1, observe_every: 300, rank_every: 0, replay.capacity: 1_100}
arms: {base: [], reset: [{name: reset, when: {every: 200}}]}
"""


def workloads(out: Path, only: Sequence[str], arguments: Sequence[str]) -> list[Workload]:
    """What is tried: those named in `only`, or all, or train.py with these arguments."""
    if arguments:
        return [Workload("train", (sys.executable, "train.py", *arguments))]
    (out / "ablation.yaml").write_text(ABLATION)
    ablation = (sys.executable, "ablate.py", str(out / "ablation.yaml"), "workers=2", "retries=99")
    known = {
        "dqn": Workload("dqn", (*TRAIN, *DQN)),
        "sac": Workload("sac", (*TRAIN, *SAC)),
        "testbed": Workload("testbed", (sys.executable, "-m", "testbeds", *SMALL[:3], *TESTBED)),
        "ablation": Workload("ablation", ablation, "out"),
    }
    return [known[name] for name in only or known]


class Table:
    """kills.csv: what has happened so far, this time and earlier."""

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, threading.Lock()
        if not path.exists():
            path.write_text(",".join(COLUMNS) + "\n")

    def add(self, *values: object) -> None:
        with self._lock, self.path.open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(values)
            os.fsync(file.fileno())
        print("  ".join(str(value) for value in values if value != ""), flush=True)

    def rows(self, workload: str) -> list[dict[str, str]]:
        with self._lock:
            found = list(csv.DictReader(self.path.read_text().splitlines()))
        return [row for row in found if row["workload"] == workload]

    def ends(self, workload: str) -> list[dict[str, str]]:
        """Of rounds; the first is the undisturbed one."""
        return [row for row in self.rows(workload) if row["kill"] == END]

    def kills(self, workload: str) -> list[dict[str, str]]:
        return [row for row in self.rows(workload) if row["kill"] != END]


def shown(command: str, run: Path) -> tuple[int, list[str]]:
    """-> exit code and lines of python -m core.run COMMAND RUN_DIR."""
    done = subprocess.run([sys.executable, "-m", "core.run", command, str(run)], capture_output=True, text=True)
    return done.returncode, (done.stdout + done.stderr).splitlines()


def compare(whole: Path, folder: Path) -> tuple[str, str]:
    """-> (what differs between a folder and the undisturbed one, how many of the digests are equal)."""
    equal = total = 0
    wrong = []
    for run in runs_in(whole):
        other = folder / run.relative_to(whole)
        digests, found = shown("digest", run)[1], shown("digest", other)[1]
        total, equal = total + len(digests), equal + len(set(digests) & set(found))
        wrong += [f"{line.split()[0]} of {other.name}" for line in digests if line not in found]
        code, lines = shown("verify", other)
        wrong += lines if code else []
        for name in EXACT:
            mine, theirs = ((place / name).read_bytes() for place in (run, other))
            if mine != theirs:
                wrong.append(f"{name}: {len(theirs.splitlines())} rows for {len(mine.splitlines())}")
    return "; ".join(wrong) or SAME, f"{equal} of {total}"


def runs_in(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.rglob("config.yaml"))


def study(work: Workload, quota: int, home: Path, table: Table) -> bool:
    """Kill a workload until there are so many kills, and let it end. -> whether all rounds were as the undisturbed."""
    whole = home / work.name / "whole"
    whole.parent.mkdir(parents=True, exist_ok=True)
    if not table.ends(work.name):
        began, undisturbed = time.monotonic(), Victim(work, whole, [])
        undisturbed.kill("all")  # half a run, left by a study that was stopped itself, is no reference
        shutil.rmtree(whole, ignore_errors=True)
        undisturbed.start()
        while undisturbed.code() is None:
            time.sleep(0.1)
        if undisturbed.code():
            raise RuntimeError(f"{work.name} fails undisturbed: {whole.with_suffix('.log').read_text()[-2000:]}")
        table.add(work.name, 0, END, f"{time.monotonic() - began:.1f} s", "", "", SAME, "")
    seconds = float(table.ends(work.name)[0]["moment"].split()[0])
    while all(row["outcome"] == SAME for row in table.ends(work.name)):
        rounds, kills = len(table.ends(work.name)), table.kills(work.name)
        if len(kills) >= quota and int(kills[-1]["round"]) < rounds:
            return True
        folder = whole.with_name(f"round-{rounds:04d}")
        victim = Victim(work, folder, [folder / run.relative_to(whole) for run in runs_in(whole)])
        missed = rounds - 1 - len({row["round"] for row in kills})  # the machine has become faster since the first run
        wrong = one_round(victim, rounds, quota, seconds * 0.7**missed, table)
        outcome, digests = compare(whole, folder) if not wrong else (wrong, "")
        table.add(work.name, rounds, END, "", "", "", outcome, digests)
        if outcome == SAME:
            shutil.rmtree(folder)
    return False


def one_round(victim: Victim, number: int, quota: int, seconds: float, table: Table) -> str:
    """Kill and start again until it ends. -> what went wrong on the way"""
    name, ended = victim.work.name, False
    victim.kill("all")  # if the study itself was stopped, it goes on here
    while not ended and (count := len(table.kills(name))) < quota:
        rng = host_generator(0, f"kills/{name}", number, count)
        aim = AIMS[count % len(AIMS)]
        if aim in OPERATIONS and (victim.others() or victim.process and victim.code() is None):
            aim = "watch" if aim == "saving" else "moment"  # what runs already takes no orders
        before, struck = victim.left_behind(), strike(victim, aim, rng, seconds)
        if ended := struck is None:
            break
        moment, inside = struck
        inside |= aim != "entering" and bool(victim.left_behind() - before)
        step, wrong = resumed_from(victim)
        table.add(name, number, count + 1, moment, "yes" if inside else "no", step, wrong or "killed", "")
        if wrong:
            return wrong
    if victim.process is None or (not ended and victim.code() is not None):
        victim.start()
    assert victim.process is not None
    if code := victim.process.wait():
        return f"exit code {code}: {victim.folder.with_suffix('.log').read_text().splitlines()[-1:]}"
    return ""


def main(argv: list[str]) -> int:
    given = {name: value for name, _, value in (argument.partition("=") for argument in argv) if name in OPTIONS}
    arguments = [argument for argument in argv if argument.partition("=")[0] not in OPTIONS]
    if "out" not in given:
        print(__doc__)
        return 2
    out = Path(given["out"]).resolve()  # processes are found by it
    out.mkdir(parents=True, exist_ok=True)
    works = workloads(out, given["only"].split(",") if "only" in given else [], arguments)
    table, quota = Table(out / "kills.csv"), -(-int(given.get("kills", 200)) // len(works))
    with ThreadPoolExecutor(int(given.get("workers", 2))) as pool:
        same = all(list(pool.map(lambda work: study(work, quota, out, table), works)))
    for work in works:
        kills, rounds = table.kills(work.name), len(table.ends(work.name)) - 1
        inside = sum(row["inside_saving"] == "yes" for row in kills)
        print(f"{work.name}: {len(kills)} kills in {rounds} rounds, {inside} of them within saving")
    total = sum(len(table.kills(work.name)) for work in works)
    print(f"{total} kills, {'every run ended as the undisturbed one' if same else 'something differs'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
