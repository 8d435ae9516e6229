"""From runs to a table: what is missing or broken is counted, shown and scored as documented."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import report
from core.ablation import Ablation, read
from core.cells import Attempts, over
from core.config import load
from core.report.board import ReportBoard, measured
from core.report.card import card, check_cards
from core.report.comparison import NotYet, _pairs, compare, curve
from core.report.scores import matrix, normalise, reached, runs
from core.statistics import iqm
from core.storage import Storage

FILE = """
tasks: [dmc/walker-walk, dmc/walker-run]
seeds: [0, 1]
settings: {steps: 3_000, eval_every: 1_000, warmup: 100}
arms: {base: [], ln: [layer_norm]}
"""


@pytest.mark.parametrize(
    ("options", "network"),
    [
        ([], "params"),
        (["agent.target=ema", "agent.act_with=target"], "target"),
        (["interventions=[ema]", "agent.target=ema", "agent.act_with=target"], "average"),
        (["interventions=[ema]", "agent.evaluate_with=params"], "params"),
    ],
)
def test_the_card_says_whose_weights_are_evaluated(options, network):
    config = load(["agent=dqn", "env=toy/chain", *options])
    assert card(SimpleNamespace(config=config, task="toy/chain"))["network"] == network


def score(arm: str, task: str, seed: int, step: int) -> float:
    """A made-up mean return: ln is better by 100, walker-run half as easy, seeds 10 apart, growing with steps."""
    return (0.1 * step + 10 * seed + (100 if arm == "ln" else 0)) * (1.0 if task.endswith("walk") else 0.5)


@pytest.fixture
def ablation(tmp_path) -> Ablation:
    """Finished runs of two arms on two tasks with two seeds, two episodes per evaluation."""
    (tmp_path / "ablation.yaml").write_text(FILE)
    made = read(tmp_path / "ablation.yaml", tmp_path)
    for cell in made.cells:
        cell.folder.mkdir(parents=True)
        (cell.folder / "config.yaml").write_text("{}")
        lines = ["step,task,seed,episode,return,length,updates,network"]
        for step in (1_000, 2_000, 3_000):
            for seed in (0, 1):
                mean = score(cell.arm, cell.task, seed, step)
                lines += [f"{step},{cell.task},{seed},{k},{mean + (k - 0.5) * 8},1000,{step},params" for k in (0, 1)]
        (cell.folder / "eval.csv").write_text("\n".join(lines) + "\n")
        (cell.folder / "done.json").write_text("{}")
        rows = [
            {"step": s, "updates": s, "critic/dormant@0.1": [0.1, 0.3], "q/x/layer": [1.0, 1.0]} for s in (500, 900)
        ]
        (cell.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


def cell_of(ablation: Ablation, arm: str, task: str):
    return next(cell for cell in ablation.cells if (cell.arm, cell.task) == (arm, task))


LAST = np.array([3_000])


def test_scores_are_means_of_episodes_normalised_by_task(ablation):
    scores = matrix(runs(ablation), "ln", ablation.tasks, np.array([1_000, 3_000]), "worst")
    assert scores.shape == (2, 2, 2)
    assert scores[1] == pytest.approx(np.array([[0.400, 0.200], [0.410, 0.205]]))
    assert scores[0, 0] == pytest.approx([0.200, 0.100])


def test_normalisation_is_human_random_on_atari_a_thousandth_on_dmc_and_none_elsewhere():
    assert normalise("atari/pong", np.array([-20.7, 14.6])) == pytest.approx([0.0, 1.0])
    assert normalise("dmc/walker-run", np.array([500.0])) == 0.5
    assert normalise("gym/CartPole-v1", np.array([77.0])) == 77.0


def test_the_table_holds_the_statistics_and_the_comparison_with_the_base(ablation):
    base, ln = compare(ablation, runs(ablation), reps=200)
    assert (base.arm, base.runs, base.improvement, base.gain) == ("base", 2, None, None)
    assert ln.statistics["IQM"].value == pytest.approx(float(iqm(np.array([0.4, 0.41, 0.2, 0.205]))))
    assert ln.improvement.value == 1.0
    assert (ln.gain.value, ln.gain.low, ln.gain.high) == pytest.approx((0.075, 0.075, 0.075))  # pairs: no scatter


def test_a_missing_run_scores_the_worst_of_its_task_over_all_arms_and_is_counted(ablation):
    (cell_of(ablation, "ln", "dmc/walker-run").folder / "eval.csv").unlink()
    found = runs(ablation)
    scores = matrix(found, "ln", ablation.tasks, LAST, "worst")[0]
    assert scores == pytest.approx(np.array([[0.4, 0.0], [0.41, 0.0]]))  # at most 0
    assert compare(ablation, found, reps=50)[1].statuses == {"finished": 2, "missing": 2}


def test_where_the_worst_is_below_zero_a_missing_run_gets_it(ablation):
    cell = cell_of(ablation, "base", "dmc/walker-run")
    (cell.folder / "eval.csv").write_text(f"step,task,seed,return\n3000,{cell.task},0,-50\n3000,{cell.task},1,20\n")
    (cell_of(ablation, "ln", "dmc/walker-run").folder / "eval.csv").unlink()
    assert matrix(runs(ablation), "ln", ablation.tasks, LAST, "worst")[0, :, 1] == pytest.approx([-0.05, -0.05])


def test_dropped_runs_leave_their_seed_out_of_every_task(ablation):
    cell = cell_of(ablation, "ln", "dmc/walker-run")
    lines = (cell.folder / "eval.csv").read_text().splitlines()
    (cell.folder / "eval.csv").write_text("\n".join(line for line in lines if line.split(",")[2] != "1") + "\n")
    scores = matrix(runs(ablation), "ln", ablation.tasks, LAST, "drop")[0]
    assert scores == pytest.approx(np.array([[0.4, 0.2]]))


def test_a_diverged_run_scores_the_worst_from_the_step_of_its_divergence(ablation):
    cell = cell_of(ablation, "ln", "dmc/walker-walk")
    (cell.folder / "ledger.jsonl").write_text('{"step": 1500, "updates": 1400, "diverged": 1}\n')
    (cell.folder / "done.json").write_text('{"diverged": [1]}')
    found = runs(ablation)
    scores = matrix(found, "ln", ablation.tasks, np.array([1_000, 2_000, 3_000]), "worst")[:, 1, 0]
    assert scores == pytest.approx([0.21, 0.0, 0.0])
    assert compare(ablation, found, reps=50)[1].statuses == {"finished": 3, "diverged": 1}


def test_a_diverged_run_counts_at_every_look_too(ablation):
    before = compare(ablation, runs(ablation), reps=50)[1].watched
    cell = cell_of(ablation, "ln", "dmc/walker-walk")
    (cell.folder / "done.json").write_text('{"diverged": [0, 1]}')
    for seed in (0, 1):
        with (cell.folder / "ledger.jsonl").open("a") as ledger:
            ledger.write(json.dumps({"step": 1_500, "diverged": seed}) + "\n")
    after = compare(ablation, runs(ablation), reps=50)[1].watched
    assert before.value > 0 > after.value  # half of the pairs: 0 against 0.3


def test_a_pair_counts_when_both_cells_have_ended_and_never_changes_again(ablation):
    """Those that diverge would else be the first to count. Of a lost run the pair knows what either has scored."""
    cell = cell_of(ablation, "ln", "dmc/walker-walk")
    (cell.folder / "ledger.jsonl").write_text(json.dumps({"step": 1_500, "diverged": 0}) + "\n")
    (cell.folder / "done.json").unlink()
    assert _pairs(runs(ablation), "ln", "base") == pytest.approx([0.05, 0.05])  # of walker-run alone
    (cell.folder / "done.json").write_text('{"diverged": [0]}')
    pairs = [-0.3, 0.1, 0.05, 0.05]
    assert _pairs(runs(ablation), "ln", "base") == pytest.approx(pairs)
    with (cell_of(ablation, "base", "dmc/walker-walk").folder / "eval.csv").open("a") as scores:
        scores.write("3000,dmc/walker-walk,1,2,-90000,1000,3000,params\n")  # of the other seed
    assert _pairs(runs(ablation), "ln", "base")[0] == pytest.approx(pairs[0])


def test_with_missing_drop_seeds_are_compared_with_themselves(ablation):
    for arm, seed in (("base", "0"), ("ln", "1")):
        path = cell_of(ablation, arm, "dmc/walker-run").folder / "eval.csv"
        kept = [line for line in path.read_text().splitlines() if line.split(",")[2] != seed]
        path.write_text("\n".join(kept) + "\n")
    assert compare(ablation, runs(ablation), "drop", reps=50)[1].gain is None  # 1 against 0: no pair
    path = cell_of(ablation, "base", "dmc/walker-run").folder / "eval.csv"
    path.write_text(path.read_text() + "3000,dmc/walker-run,0,0,120,1000,3000,params\n3000,dmc/walker-run,0,1,9")
    gain = compare(ablation, runs(ablation), "drop", reps=50)[1].gain  # the last line was cut short by a full disk
    assert gain.value == pytest.approx((0.1 + 0.08) / 2)  # seed 0, once on each task


def test_a_cell_that_was_given_up_holds_nobody_back(ablation, capsys, monkeypatch):
    """It scores up to its last evaluation, and the worst from there on; nobody waits for it."""
    cell = cell_of(ablation, "ln", "dmc/walker-run")
    path = cell.folder / "eval.csv"
    path.write_text("\n".join(line for line in path.read_text().splitlines() if line[0] in "s1") + "\n")
    (cell.folder / "done.json").unlink()
    assert reached(runs(ablation), ablation.tasks).tolist() == [1_000] and not over(ablation)
    attempts = Attempts(ablation.out)
    with attempts.noting(Storage()):
        attempts.add(cell, 1, "exit code 1: out of memory")  # once is not enough
        attempts.add(cell, 143, "")
        assert reached(runs(ablation), ablation.tasks).tolist() == [1_000] and not over(ablation)
        attempts.add(cell, 1, "exit code 1: out of memory", given_up=True)
    assert len(_pairs(runs(ablation), "ln", "base")) == 2  # none with what may be started again
    found = runs(ablation)
    assert reached(found, ablation.tasks).tolist() == [1_000, 2_000, 3_000] and over(ablation)
    scores = matrix(found, "ln", ablation.tasks, np.array([1_000, 3_000]), "worst")
    assert scores[:, :, 1] == pytest.approx(np.array([[0.1, 0.105], [0.0, 0.0]]))
    assert matrix(found, "ln", ablation.tasks, LAST, "drop").size == 0
    monkeypatch.setattr(report.time, "sleep", lambda seconds: pytest.fail("there is nothing to wait for"))
    assert report.main([str(ablation.out), "--watch"]) == 0
    assert "ln: 2 given up" in capsys.readouterr().out
    with attempts.noting(Storage()):  # it is tried again
        assert reached(runs(ablation), ablation.tasks).tolist() == [1_000] and not over(ablation)
    assert not Attempts(ablation.out).given_up


def test_in_a_stream_every_episode_is_normalised_by_its_own_game(tmp_path):
    (tmp_path / "ablation.yaml").write_text(
        "tasks: [atari/pong]\nseeds: [0]\narms: {base: []}\n"
        "settings: {agent: der, stream.tasks: [atari/pong, atari/breakout], stream.steps: 500, steps: 1_000}\n"
    )
    made = read(tmp_path / "ablation.yaml", tmp_path)
    folder = made.cells[0].folder
    folder.mkdir(parents=True)
    human = {"atari/pong": 14.6, "atari/breakout": 30.5}
    rows = [f"{step},{task},0,0,{score}" for step, (task, score) in zip((500, 1_000), human.items(), strict=True)]
    (folder / "eval.csv").write_text("step,task,seed,episode,return\n" + "\n".join(rows) + "\n")
    assert runs(made)[0].normalised == pytest.approx([1.0, 1.0])


def test_what_a_diverged_run_logged_is_left_out_of_the_diagnostics(ablation):
    cell = cell_of(ablation, "ln", "dmc/walker-walk")
    row = {"step": 500, "updates": 500, "critic/loss": ["NaN", 2.0], "critic/dormant@0.1": ["Infinity", 0.5]}
    (cell.folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert measured([cell]) == {"critic/loss": [(500, 2.0)], "critic/dormant@0.1": [(500, 0.5)]}


def test_every_point_of_a_diagnostic_is_a_mean_over_all_cells(ablation):
    """One measures twice as often as the other, and both began and stopped where they did."""
    cells = [cell for cell in ablation.cells if cell.arm == "ln"]
    for cell, steps, value in zip(cells, ([2, 4, 6, 8], [4, 8, 12]), (1.0, 3.0), strict=True):
        (cell.folder / "done.json").unlink()
        rows = [{"step": step, "updates": step, "critic/loss": [value]} for step in steps]
        (cell.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert measured(cells)["critic/loss"] == [(4, 2.0), (6, 2.0), (8, 2.0)]
    (cells[0].folder / "done.json").write_text("{}")  # what has ended holds nobody back: its last number stays
    assert measured(cells)["critic/loss"] == [(4, 2.0), (6, 2.0), (8, 2.0), (12, 2.0)]


def test_what_not_all_runs_have_reached_is_not_compared_yet(ablation):
    cell = cell_of(ablation, "ln", "dmc/walker-walk")
    (cell.folder / "done.json").unlink()
    lines = (cell.folder / "eval.csv").read_text().splitlines()
    (cell.folder / "eval.csv").write_text("\n".join(line for line in lines if not line.startswith("3000")) + "\n")
    found = runs(ablation)
    assert reached(found, ablation.tasks).tolist() == [1_000, 2_000]
    assert reached(found, ("dmc/walker-run",)).tolist() == [1_000, 2_000, 3_000]
    assert compare(ablation, found, reps=50)[1].statistics["mean"].value == pytest.approx(
        np.mean([score("ln", task, seed, 2_000) for task in ablation.tasks for seed in (0, 1)]) / 1000
    )


def test_a_curve_is_the_iqm_at_every_step_within_its_band(ablation):
    found = curve(ablation, runs(ablation), "base", ablation.tasks, reps=200)
    assert found.steps.tolist() == [1_000, 2_000, 3_000]
    by_hand = (matrix(runs(ablation), "base", ablation.tasks, np.array([s]), "worst")[0] for s in found.steps)
    wanted = [float(iqm(scores)) for scores in by_hand]
    assert found.value == pytest.approx(wanted)
    assert (found.low <= found.value).all() and (found.value <= found.high).all()


def test_runs_that_do_not_mean_the_same_by_a_score_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_text(FILE.replace("[layer_norm]", "{eval_episodes: 3}"))
    with pytest.raises(ValueError, match=r"base on dmc/walker-walk and ln on dmc/walker-walk .*episodes 10 and 3"):
        check_cards(read(tmp_path / "a.yaml").cells)


def test_tasks_may_have_action_repeats_of_their_own_and_arms_may_not(tmp_path):
    text = FILE.replace("warmup: 100", "warmup: 100, agent: drq_sac").replace("dmc/walker-run", "dmc/cheetah-run")
    (tmp_path / "ablation.yaml").write_text(text)
    assert check_cards(read(tmp_path / "ablation.yaml", tmp_path).cells)["env.action_repeat"] == "each task's own"
    (tmp_path / "ablation.yaml").write_text(text.replace("ln: [layer_norm]", "twice: {env.action_repeat: 2}"))
    with pytest.raises(ValueError, match="env.action_repeat 4 and 2; |env.action_repeat 4 and 2"):
        check_cards(read(tmp_path / "ablation.yaml", tmp_path).cells)


def test_the_command_writes_table_csvs_figures_and_tensorboard_twice_the_same(ablation, capsys):
    out = ablation.out
    assert report.main([str(out), "published=sac_500k"]) == 0
    table = capsys.readouterr().out
    assert "| ln | 2 | 0.302" in table and "| sac_500k, published |" in table and "\\*" not in table
    first = {path.name: path.read_bytes() for path in (out / "report").glob("*.[mc]*")}
    assert set(first) == {"report.md", "scores.csv", "curves.csv"}
    rows = list(csv.DictReader((out / "report" / "scores.csv").open()))
    assert len(rows) == 2 * 2 * 2 * 3 and float(rows[0]["normalised"]) == pytest.approx(0.1)
    assert report.main([str(out), "published=sac_500k"]) == 0
    assert first == {path.name: path.read_bytes() for path in (out / "report").glob("*.[mc]*")}


def test_tensorboard_has_a_folder_per_arm_with_curves_bands_and_diagnostics(ablation):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert report.main([str(ablation.out)]) == 0
    folder = ablation.out / "report" / "tensorboard"
    assert sorted(path.name for path in folder.iterdir()) == ["base", "ln"]
    events = EventAccumulator(str(folder / "ln"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {f"iqm/{task}/{end}" for task in ("all tasks", *ablation.tasks) for end in ("iqm", "low", "high")} <= set(
        tags
    )
    assert [(e.step, round(e.value, 4)) for e in events.Scalars("measured/critic/dormant@0.1")] == [
        (500, 0.2),
        (900, 0.2),
    ]
    assert "measured/q/x/layer" not in tags  # layers are on the runs' own pages


def test_arms_may_be_compared_with_another_base(ablation, capsys):
    assert report.main([str(ablation.out), "base=ln"]) == 0
    shown = capsys.readouterr().out
    assert "gain over ln, paired" in shown and "-0.075 [" in shown  # 0.1 on one task, 0.05 on the other


def test_a_report_made_again_shows_what_holds_now_also_to_who_is_looking_on(ablation):
    """A cell that has not begun scores the worst: until it has."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cells = [cell for cell in ablation.cells if cell.arm == "ln"]
    kept = {
        cell.folder / name: (cell.folder / name).read_text() for cell in cells for name in ("eval.csv", "done.json")
    }
    for path in kept:
        path.unlink()
    folder = ablation.out / "report" / "board"
    folder.mkdir(parents=True)
    board = ReportBoard(folder, ablation)
    report.report(ablation, board, "worst", [])
    looking = EventAccumulator(str(folder / "ln"))
    looking.Reload()
    assert [e.value for e in looking.Scalars("iqm/all tasks/iqm")] == [0.0] * 3
    for path, text in kept.items():
        path.write_text(text)
    for _ in range(2):  # the second time nothing is new
        report.report(ablation, board, "worst", [])
    board.close()
    anew = EventAccumulator(str(folder / "ln"))
    for events in (looking, anew):
        events.Reload()
        found = events.Scalars("iqm/all tasks/iqm")
        wanted = curve(ablation, runs(ablation), "ln", ablation.tasks)
        assert [e.step for e in found] == wanted.steps.tolist()
        assert [e.value for e in found] == pytest.approx(wanted.value.tolist())


def test_broken_cells_have_a_footnote(ablation, capsys):
    (cell_of(ablation, "ln", "dmc/walker-run").folder / "eval.csv").unlink()
    assert report.main([str(ablation.out)]) == 0
    shown = capsys.readouterr().out
    assert "| ln | 2* |" in shown and "\\* ln: 2 missing." in shown and "scores the worst of its task" in shown


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere"], "nowhere/ablation.yaml: cannot be read"),
        (["OUT", "missing=best"], "missing=best: expected base=ARM, published=NAME"),
        (["OUT", "base=lnn"], "base=lnn given; did you mean ln?"),
        (["OUT", "published=drq_epss"], "published=drq_epss given; did you mean drq_eps?"),
        (["OUT", "published=der"], "published=der: has no dmc/walker-walk"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(ablation, capsys, arguments, line):
    assert report.main([str(ablation.out) if word == "OUT" else word for word in arguments]) == 2
    assert capsys.readouterr().err.startswith(line)


def test_nothing_to_report_yet_is_told(tmp_path, capsys):
    Path(tmp_path / "ablation.yaml").write_text(FILE)
    assert report.main([str(tmp_path)]) == 2
    assert "no run has been evaluated yet" in capsys.readouterr().err


def test_a_task_without_any_evaluation_has_no_curve_yet_and_stops_nothing(ablation, capsys):
    for arm in ablation.arms:
        cell = cell_of(ablation, arm, "dmc/walker-run")
        (cell.folder / "eval.csv").unlink()
        (cell.folder / "done.json").unlink()
    found = runs(ablation)
    assert len(curve(ablation, found, "ln", ("dmc/walker-run",)).steps) == 0
    assert len(curve(ablation, found, "ln", ("dmc/walker-walk",)).steps) == 3
    assert report.main([str(ablation.out)]) == 0
    assert "ln: 2 missing" in capsys.readouterr().out


def test_dropping_all_of_an_arm_is_told(ablation, capsys):
    (cell_of(ablation, "ln", "dmc/walker-run").folder / "eval.csv").unlink()
    with pytest.raises(NotYet, match="missing=drop leaves no seed of arm ln"):
        compare(ablation, runs(ablation), "drop")
    assert report.main([str(ablation.out), "missing=drop"]) == 2
    assert "missing=drop leaves no seed of arm ln; use missing=worst" in capsys.readouterr().err


def test_watching_waits_for_the_first_evaluation(ablation, capsys, monkeypatch):
    kept = {}
    for cell in ablation.cells:
        for name in ("eval.csv", "done.json"):
            kept[cell.folder / name] = (cell.folder / name).read_text()
            (cell.folder / name).unlink()

    def later(seconds):
        for path, text in kept.items():
            path.write_text(text)

    monkeypatch.setattr(report.time, "sleep", later)
    assert report.main([str(ablation.out), "--watch"]) == 0
    out = capsys.readouterr().out
    assert "no run has been evaluated yet" in out and "| ln | 2 |" in out


def test_watching_goes_on_past_what_cannot_be_read_or_written_for_a_moment(ablation, capsys, monkeypatch):
    away = OSError(5, "Input/output error", "report.md")

    def once(*arguments):
        monkeypatch.undo()
        monkeypatch.setattr(report.time, "sleep", lambda seconds: None)
        raise away

    monkeypatch.setattr(report.files, "write", once)
    assert report.main([str(ablation.out)]) == 2
    assert "report.md" in capsys.readouterr().err
    monkeypatch.setattr(report.files, "write", once)
    assert report.main([str(ablation.out), "--watch"]) == 0
    out = capsys.readouterr().out
    assert "Input/output error" in out and "| ln | 2 |" in out


def test_what_has_died_is_told_with_its_cause(ablation, capsys):
    cell = cell_of(ablation, "ln", "dmc/walker-run")
    attempts = Attempts(ablation.out)
    with attempts.noting(Storage()):
        attempts.add(cell, -9, "exit code -9: no output")
    report.main([str(ablation.out)])
    assert f"{cell.name} has died 1 times; at last: exit code -9: no output." in capsys.readouterr().out


def test_too_few_pairs_for_an_always_valid_interval_are_told(ablation):
    report.main([str(ablation.out)])
    assert "too few pairs" in (ablation.out / "report" / "report.md").read_text()
