"""Look at a run folder from the command line.

python -m core.run digest RUN_DIR    one line "component sha256" each: are two runs the same run?
python -m core.run verify RUN_DIR    one line per file that is not as it was written; exit code 1 if there is one
                                     (checkpoints, replay, records and done.json by digest, config.yaml by the
                                     checkpoint; timing.jsonl and tensorboard/, of the wall clock, are not compared)
python -m core.run evaluate RUN_DIR [episodes=10] [video=FILE.mp4]    play the trained policy
python -m core.run export RUN_DIR [to=FILE.npz]    write what its replay holds, for offline.data=FILE.npz of another run
python -m core.run difference RUN_DIR [other=RUN_DIR]    the first number in which runs with trace=true differ; without
                                     `other`: what one did twice, before and after it was resumed. 1 if there is one
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path

from core import checkpoint, files, run_folder, verification
from core.config import WITHOUT_EFFECT
from core.digest import digest as digest_of
from core.options import nearest
from core.run_folder import CONFIG

STREAMS = ("clock", "engine", "envs", "pending")  # what the coming steps are drawn from, beside the networks
FIELDS = {
    "parameters": "params",
    "birth": "birth",
    "copies": "copies",
    "moments": "optim",
    "buffers": "buffers",
    "memories": "memory",
}


def digest(folder: Path) -> int:
    """Hashes of the newest checkpoint's components, and of the records up to it."""
    last, state = checkpoint.of_newest(folder, checkpoint.load)  # every file it needs has been read and compared
    with checkpoint.fitting(last):
        for component, field in FIELDS.items():
            print(component, digest_of({part: fields[field] for part, fields in state["states"].items()}))
        print("replay", state["replay"]["digest"])
        print("streams", digest_of({name: state.get(name) for name in STREAMS}))
        records = {name: files.sha256(folder / name, size) for name, size in state["records"].items()}
        print("records", digest_of(records))
    return 0


def verify(folder: Path) -> int:
    """Say which files are not as they were written."""
    problems, looked_at = verification.problems(folder)
    for line in problems:
        print(line)
    if not problems:
        print(f"{folder}: {looked_at} checkpoints, every file as it was written")
    return 1 if problems else 0


def evaluate(folder: Path, episodes: str = "10", video: str = "") -> int:
    """Play the trained policy on its last task; one line per seed, and a film of one episode where one is asked for."""
    from core.policy import load_policy  # torch and the simulators, only here

    if not episodes.isdecimal() or int(episodes) < 1:
        raise ValueError(f"episodes: {episodes or 'nothing'} given; expected a whole number, at least 1")
    policy = load_policy(folder)
    if video:  # first: it may turn out that nothing can be drawn here
        policy.film(Path(video))
        print(f"film: {video}")
    results = policy.evaluate(int(episodes))
    for seed in policy.config.seeds:
        scores = [result.score for result in results if result.seed == seed]
        spread = f"least {min(scores):.1f}, greatest {max(scores):.1f}"
        print(
            f"{policy.task} at step {policy.step}, seed {seed}: mean return {sum(scores) / len(scores):.1f} ({spread})"
        )
    return 0


def export(folder: Path, to: str = "data.npz") -> int:
    """Write the transitions of all seeds' replays, as of the newest checkpoint."""
    from core import offline  # torch and the simulators, only here

    if not to:
        raise ValueError("to: nothing given; expected a file, as in to=data.npz")
    found = offline.export(folder, Path(to))
    count, episodes = len(found["ends"]), int(found["ends"].sum())
    score = found["rewards"].sum() / episodes
    print(f"{to}: {count:,} transitions, {episodes:,} episodes (cut ones among them), mean return {score:.1f}")
    return 0


def difference(folder: Path, other: str = "") -> int:
    """Name the first number in which two runs differ, or one run before and after it was resumed."""
    from core import trace  # torch, only here

    if other:
        check_run(Path(other))
    found, compared, alone = trace.difference(folder, Path(other) if other else None)
    if other:
        mine, theirs = (run_folder.read_config(path) for path in (folder, Path(other)))
        for line in run_folder.differing(mine, theirs, WITHOUT_EFFECT):
            print(f"from {folder} to {other}: {line}")
    more = f"; {alone:,} more in one of them alone" if alone else ""
    print(f"first difference: {found}" if found else f"no difference in {compared:,} steps, updates and events{more}")
    return 1 if found else 0


COMMANDS: dict[str, Callable[..., int]] = {
    "digest": digest,
    "verify": verify,
    "evaluate": evaluate,
    "export": export,
    "difference": difference,
}


def check_run(folder: Path) -> None:
    """Raises ValueError if this is not the folder of a run."""
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder}: no run folder ({CONFIG} is missing)")


def main(argv: list[str]) -> int:
    """COMMAND RUN_DIR [OPTION=VALUE ...]. -> exit code; 2, after one line, for a mistake in it."""
    if {"--help", "-h"} & set(argv):
        print(__doc__)
        return 0
    try:
        if len(argv) < 2:
            raise ValueError(f"expected python -m core.run {' | '.join(COMMANDS)} RUN_DIR")
        name, folder, *options = argv
        if name not in COMMANDS:
            raise ValueError(f"{name}: no such command; {nearest(name, COMMANDS)}")
        check_run(Path(folder))
        known = list(inspect.signature(COMMANDS[name]).parameters)[1:]
        given = {option: value for option, _, value in (text.partition("=") for text in options)}
        for option in given:
            if option not in known:
                raise ValueError(f"{option}: no such option of {name}; expected {', '.join(known) or 'none'}")
        return COMMANDS[name](Path(folder), **given)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
