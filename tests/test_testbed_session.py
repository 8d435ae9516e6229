"""Runs on supervised streams: the same engine, events, folder and resume as for agents."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from core import rooms
from core.agent_session import AgentSession
from core.command_line import load
from core.config import main
from core.optim import SGD
from core.run import main as run_command
from core.state import member
from testbeds import __main__ as testbeds
from testbeds.examples import Examples
from testbeds.session import TestbedSession
from testbeds.streams.warm_start import Settings as WarmStart

SMALL = ["compile=false", "net.width=32", "env.stage=40", "steps=120", "log_every=20", "agent.batch_size=32"]
PIXELS = ["env=testbed/permuted_pixels", *SMALL, "seeds=[0,1]"]


def rows(folder: Path) -> list[dict]:
    return list(csv.DictReader((folder / "eval.csv").open()))


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def digest(capsys, folder: Path) -> str:
    capsys.readouterr()
    assert run_command(["digest", str(folder)]) == 0
    return capsys.readouterr().out


def test_every_stage_is_evaluated_at_its_end_with_all_three_scores(tmp_path):
    assert testbeds.train(load([*PIXELS, f"run_dir={tmp_path}"])) == 0
    found = rows(tmp_path)
    assert [(r["step"], r["seed"], r["episode"], r["length"]) for r in found] == [
        (str(40 * (stage + 1)), str(seed), str(stage), "40") for stage in range(3) for seed in (0, 1)
    ]
    stages = [row for row in metrics(tmp_path) if "stage/online" in row]
    assert len(stages) == 3
    for row, pair in zip(stages, zip(found[::2], found[1::2], strict=True), strict=True):
        assert row["stage/online"] == [float(r["return"]) for r in pair]  # permuted pixels report online accuracy
        assert all(0.1 < online < train for online, train in zip(row["stage/online"], row["stage/train"], strict=True))


CHUNKED = ["env=testbed/chunks", *SMALL, "env.chunks=3", "env.images=100", "seeds=[3,4]"]
DASH = ["interventions=[dash]", "interventions.dash.when={every: 1, unit: tasks, skip_last: false}"]


def test_chunks_are_handed_out_whole_in_order_of_arrival(tmp_path):
    with TestbedSession(load([*CHUNKED, f"run_dir={tmp_path}"])) as session:
        for stage in range(3):
            assert session.chunks == stage + 1
            batches = [session.sample(f"chunk/{number}", 0) for number in range(stage + 1)]
            assert [batch["label"].shape for batch in batches] == [(2, 33), (2, 33), (2, 34)][: stage + 1]
            for i, seed in enumerate((3, 4)):
                at = session.stream.at(seed, stage)
                assert torch.cat([batch["label"][i] for batch in batches]).tolist() == at.targets.tolist()
                pixels = torch.cat([batch["obs"][i] for batch in batches])
                assert torch.equal(pixels, torch.from_numpy(at.inputs).flatten(1).float() / 255)
            session.clock.enter_task()
            session._enter(session.clock.tasks)


def test_dash_by_chunks_is_another_dash_and_refused_where_data_do_not_come_in_chunks(tmp_path):
    found = {}
    for chunks in ("false", "true"):
        folder = tmp_path / chunks
        assert testbeds.train(load([*CHUNKED, *DASH, f"interventions.dash.chunks={chunks}", f"run_dir={folder}"])) == 0
        assert len([line for line in (folder / "ledger.jsonl").read_text().splitlines() if '"dash"' in line]) == 2 * 2
        found[chunks] = [row["return"] for row in rows(folder)]
    assert found["true"][:2] == found["false"][:2] and found["true"] != found["false"]
    with pytest.raises(ValueError, match="interventions.dash.chunks=true: no data arrive in chunks here"):
        TestbedSession(load([*PIXELS, *DASH, "interventions.dash.chunks=true", f"run_dir={tmp_path / 'no'}"]))


@pytest.mark.parametrize("name", rooms.streams())
def test_every_stream_can_be_learned_from(tmp_path, name):
    agent = "regressor" if name in ("large_means", "slow_regression") else "classifier"
    arguments = [f"agent={agent}", f"env=testbed/{name}", *SMALL, f"run_dir={tmp_path}"]
    assert testbeds.train(load(arguments)) == 0
    losses = [row[f"{agent}/loss"][0] for row in metrics(tmp_path) if f"{agent}/loss" in row]
    assert len(rows(tmp_path)) == 3 and losses[1] < losses[0]  # the first forty updates are one stage


@pytest.mark.parametrize(
    "network",
    [
        ["net=cnn", "net.width=16", "agent.augment.shift=1", "agent.augment.flip=true", "seeds=[0,1]"],
        pytest.param(
            ["net=resnet18", "interventions=[shrink_and_perturb]", "interventions.shrink_and_perturb.when.every=2"],
            marks=pytest.mark.slow,
        ),
        pytest.param(["net=vgg16", "interventions=[shrink_and_perturb]"], marks=pytest.mark.slow),
        pytest.param(["net=vit", "net.patch=2", "interventions=[l2_init]"], marks=pytest.mark.slow),
    ],
    ids=lambda network: network[0],
)
def test_every_network_of_images_can_be_trained(tmp_path, network):
    arguments = ["env=testbed/warm_start", "compile=false", "env.stage=3", "steps=6", "agent.batch_size=8"]
    assert testbeds.train(load([*arguments, "log_every=1", *network, f"run_dir={tmp_path}"])) == 0
    losses = [row["classifier/loss"] for row in metrics(tmp_path) if "classifier/loss" in row]
    assert len(losses) == 6 and not (tmp_path / "faults").exists()


def test_online_accuracy_is_the_mean_of_what_updates_report(tmp_path):
    with TestbedSession(load([*PIXELS, f"run_dir={tmp_path}"])) as run:
        reported = []
        note = run.note
        run.note = lambda batch, found: (reported.append(found["classifier/accuracy"].clone()), note(batch, found))
        testbeds.loop(run.config, run)
    second = torch.stack(reported[40:80]).mean(0)
    (row,) = [row for row in metrics(tmp_path) if "stage/online" in row and row["step"] == 80]
    assert row["stage/online"] == pytest.approx(second.tolist(), abs=1e-6)


@pytest.mark.parametrize("extra", [[], ["env.until=0.6"]])
def test_a_run_that_was_stopped_ends_in_the_same_bits(tmp_path, capsys, extra):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    events = ["interventions=[shrink_and_perturb]", "interventions.shrink_and_perturb.when.unit=tasks"]
    events += ["interventions.shrink_and_perturb.when.every=1", "interventions.shrink_and_perturb.when.skip_last=false"]
    arguments = [*PIXELS, *events, *extra, "env.stage=60", "steps=180"]
    assert testbeds.train(load([*arguments, f"run_dir={whole}"])) == 0
    for at in (25, 85, 140):
        with TestbedSession(load([*arguments, f"run_dir={broken}"])) as run:
            step = run.clock.step

            def stop_there(run=run, at=at, step=step):
                step()
                run.stop.requested = "SIGTERM" if run.clock.env_steps >= at else None

            run.clock.step = stop_there
            testbeds.loop(run.config, run)
    assert testbeds.train(load([*arguments, f"run_dir={broken}"])) == 0
    assert digest(capsys, broken) == digest(capsys, whole)


def test_a_seed_that_is_right_rests_and_time_moves_on_when_all_do(tmp_path):
    arguments = ["env=testbed/warm_start", *SMALL, "seeds=[0,1,2]", "steps=800", "env.stage=400", "env.until=0.9"]
    arguments += ["observe_every=400"]
    with TestbedSession(load([*arguments, f"run_dir={tmp_path}"])) as run:
        resting: dict[int, dict] = {}
        rest = run.rest

        def watched():
            rest()
            for i, taken in enumerate(run._taken):
                params = member(run.engine.states, i)["classifier"].params
                if taken and run.task.index == 0:
                    before = resting.setdefault(i, {k: v.clone() for k, v in params.items()})
                    assert all(torch.equal(before[k], v) for k, v in params.items())

        run.rest = watched
        testbeds.loop(run.config, run)
        assert resting.keys() == {0, 1, 2} and run.averages._count == 0
    taken = [int(r["length"]) for r in rows(tmp_path)]
    assert len(taken) == 6 and max(taken) < 400 and len(set(taken)) > 1
    assert all(count % 22 == 0 for count in taken[:3])  # whole epochs of 718 images
    train = [value for row in metrics(tmp_path) if "stage/train" in row for value in row["stage/train"]]
    assert min(train) > 0.85
    observed = [row["step"] for row in metrics(tmp_path) if "classifier/dead" in row]
    assert observed == [400, 800]  # although nobody learned up to there


def test_a_first_stage_may_be_shorter_and_the_second_is_what_it_would_be_without_the_pause(tmp_path):
    """Ten updates of half of the data, then a stage of 40: as if a stage had ten updates, up to where that ends."""
    found = {}
    for name, extra in {"shorter": ["steps=80", "env.first=0.25"], "alone": ["steps=20", "env.stage=10"]}.items():
        with TestbedSession(load(["env=testbed/warm_start", *SMALL, *extra, f"run_dir={tmp_path / name}"])) as run:
            enter, seen = run.enter_stage, []

            def entered(run=run, enter=enter, seen=seen):
                seen.append({k: v.clone() for k, v in run.engine.states["classifier"].params.items()})
                enter()

            run.enter_stage = entered
            testbeds.loop(run.config, run)
        (found[name],) = seen
    assert all(torch.equal(found["shorter"][k], v) for k, v in found["alone"].items())
    assert [int(row["length"]) for row in rows(tmp_path / "shorter")] == [10, 40]
    assert [int(row["step"]) for row in rows(tmp_path / "shorter")] == [40, 80]


def test_a_cold_start_is_a_reset_at_the_change(tmp_path):
    reset = ["interventions=[reset]", "interventions.reset.where=[all]", "interventions.reset.when.unit=tasks"]
    reset += ["interventions.reset.when.every=1", "interventions.reset.when.skip_last=false"]
    config = load(["env=testbed/warm_start", *SMALL, *reset, "steps=80", f"run_dir={tmp_path}"])
    with TestbedSession(config) as run:
        born = {k: v.clone() for k, v in run.engine.states["classifier"].params.items()}
        seen = []
        enter = run.enter_stage

        def entered():
            enter()
            seen.append({k: v.clone() for k, v in run.engine.states["classifier"].params.items()})

        run.enter_stage = entered
        testbeds.loop(run.config, run)
    (after,) = seen
    weight = "trunk.layers.0.weight"
    assert not torch.equal(after[weight], born[weight])  # another draw,
    assert after[weight].norm() == pytest.approx(float(born[weight].norm()), rel=0.01)  # of the same initialiser
    assert [json.loads(line)["intervention"] for line in (tmp_path / "ledger.jsonl").read_text().splitlines()] == [
        "reset"
    ]


def test_testbeds_and_agents_share_the_intervention_itself(tmp_path):
    act = ["interventions=[redo]", "interventions.redo.when.every=50", "compile=false"]
    supervised = TestbedSession(load([*PIXELS, *act, f"run_dir={tmp_path / 'a'}"]))
    agent = AgentSession(load(["agent=dqn", "env=toy/chain", "steps=300", *act, f"run_dir={tmp_path / 'b'}"]))
    (one,), (other,) = supervised.engine.learner.interventions, agent.engine.learner.interventions
    assert type(one) is type(other)
    for run in (supervised, agent):
        run.folder.close()


def test_an_epoch_shows_every_example_once_and_the_next_in_another_order():
    stage = WarmStart().at(0, 1)
    examples = Examples(stage, 0, "1", True, "cpu")
    per = examples.per_epoch(100)
    first = [examples.in_turn(u, 100) for u in range(per)]
    assert per == 14 and len(set(torch.tensor(first).flatten().tolist())) == 1_400
    second = [examples.in_turn(u, 100) for u in range(per, 2 * per)]
    assert not (first[0] == second[0]).all()
    again = Examples(stage, 0, "1", True, "cpu").in_turn(per + 3, 100)
    assert (again == second[3]).all()  # whatever was asked for before


def test_a_batch_larger_than_the_data_repeats_them():
    examples = Examples(WarmStart(share=0.01).at(0, 0), 0, "0", True, "cpu")
    rows_of_batch = examples.in_turn(0, 32)
    assert len(examples) == 14 and len(rows_of_batch) == 32 and set(rows_of_batch) == set(range(14))


@pytest.mark.parametrize("fused", [False, True])
def test_sgd_is_torchs(fused):
    torch.manual_seed(0)
    params = {"w": torch.randn(4, 3), "b": torch.randn(4)}
    theirs = {k: p.clone().requires_grad_() for k, p in params.items()}
    reference = torch.optim.SGD(theirs.values(), lr=0.1, momentum=0.9)
    optim = SGD(lr=0.1, b1=0.9)
    slots = optim.start(params)
    for _ in range(5):
        grads = {k: torch.randn_like(p) for k, p in params.items()}
        for k, p in theirs.items():
            p.grad = grads[k]
        reference.step()
        if fused:
            optim.step_(params, grads, slots, torch.tensor(True))
        else:
            params, slots = optim.step(params, grads, slots)
    for k in params:
        torch.testing.assert_close(params[k], theirs[k].detach())
    optim.step_(params, grads, slots, torch.tensor(False))
    for k in params:
        torch.testing.assert_close(params[k], theirs[k].detach())  # a skipped step is none
    assert float(slots["t"]["w"]) == 5


@pytest.mark.parametrize("name", ["warm_start", "class_incremental"])
def test_a_seed_that_rests_is_what_it_would_be_alone(tmp_path, name):
    """Events leave it alone, and its epochs are its own: classes are not equally many."""
    act = ["interventions=[shrink_and_perturb]", "interventions.shrink_and_perturb.when.every=30"]
    arguments = [f"env=testbed/{name}", *SMALL, *act, "env.until=0.8", "env.stage=150", "steps=300"]
    arguments += ["agent.batch_size=4"]
    together, alone = tmp_path / "together", tmp_path / "alone"
    assert testbeds.train(load([*arguments, "seeds=[0,1,2]", f"run_dir={together}"])) == 0
    assert testbeds.train(load([*arguments, "seeds=[1]", f"run_dir={alone}"])) == 0
    mine = [row for row in rows(together) if row["seed"] == "1"]
    assert [row["length"] for row in mine] == [row["length"] for row in rows(alone)]
    assert [row["return"] for row in mine] == [row["return"] for row in rows(alone)]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["agent=regressor", "env=testbed/large_means", "value=c51"], "value: c51 given; it learns from distributions"),
        (
            ["agent=regressor", "env=testbed/large_means", "value=hl_gauss", "env.stage=100", "steps=300"],
            r"value.low, value.high: -10 and 10 given; targets of stage 1 lie between",
        ),
        (["agent=regressor", "env=testbed/large_means", "env.until=0.9"], "env.until: 0.9 given; there is no accuracy"),
        (["env=testbed/chunks", "stream.tasks=[testbed/chunks]"], "stream.tasks: a supervised stream has stages"),
        (["env=testbed/chunks", "env.chunks=2_000"], "env.chunks: 2000 given; there are 1437 images"),
        (["env=testbed/chunks", "agent.optimizer=sgd", "agent.adam_eps=0.1"], "adam_eps=0.1 given; optimizer=sgd"),
        (["env=testbed/large_means"], "agent: classifier given; env=testbed/large_means needs agent=regressor"),
        (["env=toy/chain", "agent=dqn"], "env: toy/chain given; agents are trained by python train.py"),
        (["env=testbed/chunks", "env.data=mnist"], "env.folder: none given"),
        (["env=testbed/chunks", "replay_ratio=2"], "env=testbed/chunks: has no replay; leave replay_ratio"),
        (["env=testbed/chunks", "env.images=9_999"], "env.images: 9999 given; digits has 1437"),
    ],
)
def test_what_does_not_fit_is_one_line_and_writes_nothing(tmp_path, arguments, line):
    with pytest.raises(ValueError, match=line):
        testbeds.train(load([*arguments, "compile=false", f"run_dir={tmp_path / 'run'}"]))
    assert not (tmp_path / "run").exists()


def test_an_agent_that_does_not_act_is_one_line(tmp_path):
    with pytest.raises(
        ValueError, match="agent: classifier given; it does not act; supervised learners take env=testbed"
    ):
        AgentSession(load(["agent=classifier", "env=toy/chain", "compile=false", f"run_dir={tmp_path / 'run'}"]))
    assert not (tmp_path / "run").exists()


def test_the_help_page_of_testbeds_speaks_of_testbeds(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/testbeds/__main__.py", "--help"])
    main(testbeds.train)
    page = capsys.readouterr().out
    assert page.startswith("usage: python -m testbeds [") and "env=testbed/warm_start" in page
