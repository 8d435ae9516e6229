"""An ablation file: what it means, and what it answers to a mistake."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from core.ablation import read
from core.config import clock_of

SMALL = """
tasks: [toy/chain, toy/lives]
seeds: [0, 3]
settings: {agent: dqn, steps: 700, agent.batch_size: 8}
arms:
  base: []
  ln: [layer_norm]
  both: [layer_norm, {name: reset, on: [q], where: [output], when: {every: 50}}]
  settings: {value: hl_gauss, net: {width: 16}, interventions: [l2]}
"""


def written(tmp_path, text: str = SMALL) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(text)
    return path


def test_every_arm_meets_every_task_with_all_seeds(tmp_path):
    ablation = read(written(tmp_path), tmp_path / "out")
    assert ablation.arms == ("base", "ln", "both", "settings") and ablation.base == "base"
    assert [(cell.arm, cell.task) for cell in ablation.cells] == [
        (arm, task) for arm in ablation.arms for task in ("toy/chain", "toy/lives")
    ]
    for cell in ablation.cells:
        config = cell.config
        assert config.seeds == (0, 3) and config.steps == 700 and config.agent.batch_size == 8
        assert cell.folder == tmp_path / "out" / cell.arm / cell.task
    assert len({cell.folder for cell in ablation.cells}) == 8


def test_an_arm_is_a_list_of_interventions_in_order_or_a_diff_of_settings(tmp_path):
    arms = {cell.arm: cell.config for cell in read(written(tmp_path)).cells}
    assert [i.name for i in arms["base"].interventions] == []
    norm, reset = arms["both"].interventions
    assert (norm.name, reset.name) == ("layer_norm", "reset")
    assert (reset.on, reset.where, reset.when.every) == (("q",), ("output",), 50)
    assert type(arms["settings"].value).__name__ == "HLGauss" and arms["settings"].net.width == 16
    assert [i.name for i in arms["settings"].interventions] == ["l2"]


def test_controls_are_arms_of_their_own_behind_the_arm_they_control(tmp_path):
    ablation = read(written(tmp_path, SMALL + "controls: {both: [optimizer_only, identity]}\n"))
    assert ablation.arms == ("base", "ln", "both", "both-optimizer_only", "both-identity", "settings")
    arms = {cell.arm: cell.config for cell in ablation.cells}
    assert [i.control for i in arms["both-identity"].interventions] == ["none", "identity"]
    assert [i.control for i in arms["both"].interventions] == ["none", "none"]
    assert arms["both-identity"].interventions[1].where == ("output",)


def test_without_out_the_runs_go_into_a_folder_of_the_files_name(tmp_path):
    assert read(written(tmp_path)).out == Path("runs/small")


def test_a_size_is_a_diff_of_tasks_seeds_and_settings(tmp_path):
    sizes = "sizes: {smoke: {seeds: [7], tasks: [toy/chain], settings: {steps: 600}}}\n"
    ablation = read(written(tmp_path, SMALL + sizes), size="smoke")
    assert ablation.out == Path("runs/small-smoke") and ablation.tasks == ("toy/chain",)
    assert {(c.config.seeds, c.config.steps, c.config.agent.batch_size) for c in ablation.cells} == {((7,), 600, 8)}
    assert "sizes" not in ablation.tree and ablation.tree["settings"]["steps"] == 600
    with pytest.raises(ValueError, match="size=smok given; did you mean smoke?"):
        read(written(tmp_path, SMALL + sizes), size="smok")
    with pytest.raises(ValueError, match="sizes: smoke: seed: no such key; did you mean seeds?"):
        read(written(tmp_path, SMALL + sizes.replace("seeds", "seed")), size="smoke")


def test_an_overlay_goes_over_the_arms_that_choose_what_it_sets(tmp_path):
    overlay = "overlay: {interventions.reset.when.every: 60, agent.batch_size: 4}\n"
    arms = {cell.arm: cell.config for cell in read(written(tmp_path, SMALL + overlay)).cells}
    assert arms["both"].interventions[1].when.every == 60 and {c.agent.batch_size for c in arms.values()} == {4}
    with pytest.raises(ValueError, match="interventions.redo.threshold: no arm chooses it"):
        read(written(tmp_path, SMALL + "overlay: {interventions.redo.threshold: 0.5}\n"))


def test_the_base_can_be_named(tmp_path):
    assert read(written(tmp_path, SMALL + "base: ln\n")).base == "ln"


MISTAKES = {
    "arm: {}": "arm: no such key; did you mean arms?",
    "base: lnn": "base: lnn given; did you mean ln?",
    "controls: {lnn: [identity]}": "controls: lnn given; did you mean ln?",
    "controls: {ln: [identity]}": "controls: ln: has no intervention that acts by events",
    "controls: {ln: identity}": "controls: ln: identity given; expected a list, as in [identity]",
    "controls: {ln: }": "controls: ln: null given; expected a list, as in [identity]",
    "overlay: {run_dir: elsewhere}": "run_dir: set by ablate.py",
    "controls: {both: [identty]}": "arm both-identty on toy/chain: interventions.reset.control: identty given; exp",
}


@pytest.mark.parametrize(("line", "answer"), MISTAKES.items())
def test_a_mistake_is_one_line_that_names_the_file_and_the_key(tmp_path, line, answer):
    with pytest.raises(ValueError) as error:
        read(written(tmp_path, SMALL + line + "\n"))
    assert str(error.value).startswith(f"{tmp_path / 'small.yaml'}: {answer}") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "answer"),
    [
        ("ln: [layer_norm]", "ln: [layer_nrm]", "arm ln on toy/chain: interventions: layer_nrm given; did you mean"),
        ("ln: [layer_norm]", "ln: layer_norm", "arms: ln: layer_norm given; expected a list of interventions"),
        ("ln: [layer_norm]", "ln: [{name: [layer_norm]}]", "arms: ln: {name:[layer_norm]} given; expected an"),
        ("ln: [layer_norm]", "ln: [{where: [all]}]", "arms: ln: "),
        ("ln: [layer_norm]", "null: [layer_norm]", "arms: null given; expected a name that can be a folder's"),
        ("ln: [layer_norm]", "a/b: [layer_norm]", "arms: a/b given; expected a name that can be a folder's"),
        ("toy/lives", "toy/live", "arm base on toy/live: env: toy/live given; did you mean toy/lives?"),
        ("seeds: [0, 3]", "seeds: [0, 0]", "seeds: [0,0] given; expected a list without repetitions"),
        ("seeds: [0, 3]", "seeds: 3", "seeds: 3 given; expected a list"),
        ("steps: 700", "stepz: 700", "arm base on toy/chain: stepz: no such setting; did you mean steps?"),
        ("tasks: [toy/chain, toy/lives]", "tasks: [", "line 4: expected ',' or ']'"),
        ("tasks: [toy/chain, toy/lives]", "tasks: [toy/chain]\nseeds: [4]", "line 4: seeds stands there twice"),
    ],
)
def test_a_mistake_in_a_line_is_told_with_its_place(tmp_path, old, new, answer):
    with pytest.raises(ValueError) as error:
        read(written(tmp_path, SMALL.replace(old, new)))
    assert str(error.value).startswith(f"{tmp_path / 'small.yaml'}: {answer}") and "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ValueError, match="nowhere.yaml: cannot be read"):
        read(tmp_path / "nowhere.yaml")


READY_MADE = sorted([*Path("configs/ablations").glob("*.yaml"), *Path("configs/testbeds").glob("*.yaml")])


@pytest.mark.parametrize("path", READY_MADE, ids=lambda path: path.stem)
def test_ready_made_ablations_can_be_run_in_all_their_sizes(path, tmp_path):
    """On the first of their tasks: every cell is composed and checked to the end, which takes its time."""
    tree = yaml.safe_load(path.read_text())
    for part in (tree, *tree.get("sizes", {}).values()):
        if "tasks" in part:
            part["tasks"] = part["tasks"][:1]
    copy = tmp_path / path.name
    copy.write_text(yaml.safe_dump(tree, sort_keys=False))
    for size in ["", *tree.get("sizes", {})]:
        assert len(read(copy, tmp_path, size).arms) > 1


@pytest.mark.parametrize(
    ("name", "task", "arm", "wanted"),
    [  # in env steps
        ("drq_dmc_resets", "dmc/hopper-hop", "reset", range(200_000, 2_000_000, 200_000)),  # action repeat 2
        ("drq_dmc_resets", "dmc/cheetah-run", "reset", range(400_000, 2_000_000, 400_000)),  # action repeat 4
        ("resets_by_replay_ratio", "dmc/walker-run", "rr1_reset", range(200_000, 1_000_000, 200_000)),
        ("resets_by_replay_ratio", "dmc/walker-run", "rr32_reset", range(200_000, 1_000_000, 200_000)),
        ("drq_resets", "atari/pong", "head_reset_20k", range(12_000, 100_000, 10_000)),  # replay ratio 2, warm-up 2,000
        ("drq_resets", "atari/pong", "head_reset_40k", range(22_000, 100_000, 20_000)),
    ],
)
def test_resets_are_counted_in_the_unit_of_their_source(tmp_path, name, task, arm, wanted):
    """DrQ from pixels counts agent steps, SAC env steps, and DrQ on Atari updates, which begin behind warm-up."""
    tree = yaml.safe_load(Path(f"configs/ablations/{name}.yaml").read_text())
    copy = written(tmp_path, yaml.safe_dump(tree | {"tasks": [task], "sizes": {}}, sort_keys=False))
    (config,) = [cell.config for cell in read(copy, tmp_path).cells if cell.arm == arm]
    (reset,) = config.interventions
    clock = clock_of(config, config.env_options.get("action_repeat", 1))

    def at(step: int) -> dict[str, int]:
        return {"env_steps": step, "agent_steps": step // clock.action_repeat, "updates": clock.updates_within(step)}

    steps = range(1_000, config.steps + 1, 1_000)
    due = [step for step in steps if reset.when.due(replace(clock, **at(step), last=at(step - 1_000)))]
    assert due == list(wanted)
