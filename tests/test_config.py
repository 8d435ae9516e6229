"""The configuration: what a command line means, and what it answers to a mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from core import rooms
from core.command_line import jobs
from core.config import BadConfig, Config, from_plain, identity, load, main, resolved, setting_up

ROOT = Path(__file__).parents[1]
ATARI = ["agent=dqn", "env=atari/breakout"]
COMMAND = [*ATARI, "interventions=[layer_norm,reset]", "interventions.reset.when.every=10_000", "seeds=[0,1,2]"]
COMMAND += ["replay_ratio=2", "steps=100_000"]


def refusal(*argv: str, multirun: bool = False) -> str:
    with pytest.raises(BadConfig) as caught:
        jobs(argv, multirun)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# what a command line means


def test_a_command_line_becomes_settings_objects():
    config = load(COMMAND)
    assert (config.env, config.seeds, config.steps, config.replay_ratio) == ("atari/breakout", (0, 1, 2), 100_000, 2.0)
    assert type(config.agent) is rooms.classes("agent")["dqn"].Settings
    assert type(config.net) is rooms.classes("net")["nature"]
    assert [i.name for i in config.interventions] == ["layer_norm", "reset"]
    assert config.interventions[1].when.every == 10_000


def test_no_arguments_are_a_small_sac_run_with_several_seeds():
    config = load([])
    assert config.agent_kind == "sac" and config.env.startswith("dmc/") and len(config.seeds) > 1
    assert config.steps <= 50_000


def test_another_environment_leaves_nothing_of_the_small_run():
    default, chosen = load([]), load([f"env={load([]).env}"])
    assert chosen.steps == 500_000 > default.steps
    assert chosen.warmup == 10_000 and chosen.seeds == (0,)
    assert (chosen.eval_every, chosen.eval_episodes) == (5_000, 10)


def test_atari_runs_by_the_atari_100k_protocol():
    config = load(["env=atari/pong"])
    assert (config.agent_kind, config.steps, config.final_episodes) == ("dqn", 100_000, 100)
    assert type(config.net) is rooms.classes("net")["nature"]


def test_the_command_line_has_the_last_word():
    config = load(["env=atari/pong", "agent=der", "steps=5_000", "warmup=100", "value=scalar", "agent.n_step=3"])
    assert (config.steps, config.warmup, config.agent.n_step) == (5_000, 100, 3)
    assert type(config.value) is rooms.classes("value")["scalar"]


def test_a_yaml_names_a_variant_of_an_agent():
    config = load(["env=atari/pong", "agent=der"])
    assert (config.agent_name, config.agent_kind) == ("der", "dqn")
    assert type(config.value) is rooms.classes("value")["c51"]
    assert type(config.replay) is rooms.classes("replay")["prioritised"]
    assert config.replay.capacity == 200_000  # the protocol speaks to whichever replay is chosen


def test_settings_under_a_choices_name_hold_only_if_it_is_chosen():
    assert load([]).value.error == "mse"  # configs/agent/sac.yaml: value.scalar.error
    assert load(["value=hl_gauss"]).value.high == 120  # configs/protocol/dmc.yaml
    assert load(["value=hl_gauss", "value.hl_gauss.bins=7"]).value.bins == 7
    assert load(["value.hl_gauss.bins=7"]) == load([])
    assert load(["value=hl_gauss", "value.hl_gauss.bins=7", "value.bins=9"]).value.bins == 9


def test_interventions_act_in_the_order_of_the_list():
    for order in (["l2", "layer_norm"], ["layer_norm", "l2"]):
        assert [i.name for i in load([f"interventions=[{','.join(order)}]"]).interventions] == order


def test_an_intervention_has_its_default_schedule():
    config = load(["env=atari/pong", "interventions=[hare_and_tortoise]"])
    assert config.interventions[0].when.every > 0


def test_the_same_intervention_may_act_twice_under_two_names():
    argv = [*ATARI, "interventions=[reset]", "+interventions@interventions.reset_again=reset"]
    first, second = load([*argv, "interventions.reset_again.where=[output]"]).interventions
    assert type(first) is type(second) and (first.name, second.name) == ("reset", "reset_again")
    assert first.where == ("head",) and second.where == ("output",)


def test_any_gymnasium_id_is_an_environment():
    assert load(["env=gym/CartPole-v1", "agent=dqn"]).env == "gym/CartPole-v1"
    assert load(["env='gym/CartPole-v1'", "agent=dqn"]).env == "gym/CartPole-v1"
    assert load(["env=gym/my_module:Own-v0", "agent=dqn"]).env == "gym/my_module:Own-v0"
    assert load(["env=gym/ALE/Pong-v5", "agent=dqn"]).run_dir.startswith("runs/gym/ALE/Pong-v5/")


def test_a_stream_has_tasks():
    config = load(["env=dmc/walker-walk", "stream.tasks=[dmc/walker-walk,dmc/walker-run]", "stream.steps=50_000"])
    assert config.tasks == ("dmc/walker-walk", "dmc/walker-run")
    assert load([]).tasks == (load([]).env,)


def test_a_sweep_is_every_combination():
    runs = jobs(["env=dmc/walker-walk,dmc/walker-run", "seeds=[0],[1]", "interventions=[l2]"], multirun=True)
    assert [(run.env, run.seeds) for run in runs] == [
        ("dmc/walker-walk", (0,)),
        ("dmc/walker-walk", (1,)),
        ("dmc/walker-run", (0,)),
        ("dmc/walker-run", (1,)),
    ]


def composed(names: list[str]) -> list[str]:
    return [run.env for run in jobs(["env=" + ",".join(names)], multirun=True)]


def test_environments_of_every_family_compose():
    names = rooms.env_names()
    families = {name.partition("/")[0]: name for name in names}
    sample = [*families.values(), *names[::16]]
    assert composed(sample) == sample


@pytest.mark.slow
def test_every_environment_composes():
    assert composed(rooms.env_names()) == rooms.env_names()


def test_every_yaml_composes():
    for group in ("agent", "net", "value", "replay", "env", "interventions"):
        for path in (ROOT / "configs" / group).glob("*.yaml"):
            name = f"[{path.stem}]" if group == "interventions" else path.stem
            assert load([f"{group}={name}", "steps=1_000_000"]).steps == 1_000_000
    families = {name.partition("/")[0] for name in rooms.env_names()} | {"gym"}
    assert {path.stem for path in (ROOT / "configs/protocol").glob("*.yaml")} == families


def test_every_choice_composes():
    for group in ("agent", "net", "value", "replay"):
        assert set(rooms.names(group)) == set(rooms.classes(group))
        for name in rooms.choices(group):
            load([f"{group}={name}"])
    for name in rooms.interventions():
        for learner in (["agent=sac"], ["agent=dqn", "env=atari/pong"]):  # with its default schedule and length
            assert load([*learner, f"interventions=[{name}]"]).interventions[0].name == name


@pytest.mark.parametrize(("steps", "every"), [(5_000, 2_000), (20_000, 8_000), (100_000, 40_000), (1_000_000, 40_000)])
def test_a_default_schedule_fits_itself_to_a_short_run_and_a_chosen_one_does_not(steps, every):
    run = ["interventions=[reset]", f"steps={steps}"]
    assert load(run).interventions[0].when.every == every
    assert load([*run, "interventions.reset.when.every=1_234"]).interventions[0].when.every == 1_234


# the run's name


def test_a_configuration_survives_as_plain_data():
    argv = [*COMMAND, "+interventions@interventions.a_reset=reset", "value=two_hot"]
    config = load(argv)
    tree = yaml.safe_load(yaml.safe_dump(resolved(config)))  # safe_dump sorts keys: order may not depend on them
    assert from_plain(tree) == config
    assert json.loads(json.dumps(tree)) == tree


def test_the_run_folder_follows_from_the_configuration():
    config = load(COMMAND)
    assert load(list(reversed(COMMAND))).run_dir == config.run_dir
    assert config.run_dir.startswith("runs/atari/breakout/dqn-layer_norm-reset-")
    assert load([*COMMAND, "run_dir=elsewhere"]).run_dir == "elsewhere"


@pytest.mark.parametrize("same", ["save_every=1", "log_every=7", "resume=force", "agent.n_step=10", "device=cpu"])
def test_what_changes_no_result_changes_no_folder(same):
    assert load([*ATARI, same]).run_dir == load(ATARI).run_dir


@pytest.mark.parametrize(
    "other",
    ["seeds=[1]", "steps=99_999", "eval_every=1", "agent.n_step=3", "interventions=[l2]", "compile=false", "value=c51"],
)
def test_what_changes_a_result_changes_the_folder(other):
    assert load([*ATARI, other]).run_dir != load(ATARI).run_dir


def test_the_order_of_interventions_is_part_of_a_runs_identity():
    there, back = load(["interventions=[l2,layer_norm]"]), load(["interventions=[layer_norm,l2]"])
    assert identity(there) != identity(back) and there.run_dir != back.run_dir


# mistakes

MISTAKES = {
    "agent.lrr=3": "agent.lrr: no such setting; did you mean agent.learning_rate?",
    "stepz=10": "stepz: no such setting; did you mean steps?",
    "+stepz=10": "stepz: no such setting; did you mean steps?",
    "stream.task=[dmc/walker-run]": "stream.task: no such setting; did you mean stream.tasks?",
    "agent=dqnn": "agent: dqnn given; did you mean dqn?",
    "net=natur": "net: natur given; did you mean nature?",
    "value=hlgauss": "value: hlgauss given; did you mean hl_gauss?",
    "replay=priority": "replay: priority given; did you mean prioritised?",
    "env=atari/pongg": "env: atari/pongg given; did you mean atari/pong?",
    "env=pong": "env: pong given; did you mean atari/pong?",
    "env.name=dmc/walker-runn": "env: dmc/walker-runn given; did you mean dmc/walker-run?",
    "env=gym/": "env: gym/ given; expected the ID of a Gymnasium environment, as in env=gym/CartPole-v1",
    "interventions=[resett]": "interventions: resett given; did you mean reset?",
    "interventions=reset": "interventions: reset is not a list; write interventions=[reset]",
    "interventions=": "interventions: '' is not a list; write interventions=[NAME], or [] for none",
    "interventions=null": "interventions: null is not a list; write interventions=[NAME], or [] for none",
    "interventions=[reset,reset]": "interventions: reset is chosen twice; name the second, as in "
    "+interventions@interventions.reset_again=reset",
    "interventions=[l2] +interventions@interventions.l2=l2": "interventions: l2 is chosen twice",
    "interventions.reset.x=1": "interventions.reset.x: reset is not chosen; add it, as in interventions=[reset]",
    "interventions.reset=1": "interventions.reset: 1 given; expected interventions.reset.SETTING=VALUE",
    "interventions=[reset] interventions.reset.wher=[head]": "interventions.reset.wher: no such setting; "
    "did you mean interventions.reset.where?",
    "interventions=[reset] interventions.reset.when.every=0": "interventions.reset.when.every: reset acts by events",
    "interventions=[reset] interventions.reset.when.every=1_000_000": "interventions.reset.when.every=1000000: no "
    "event with a full interval after it (when.skip_last) falls within this run's",
    "interventions=[reset] interventions.reset.when.every=1 interventions.reset.when.unit=tasks": "interventions.reset."
    "when.every=1: no event with a full interval after it (when.skip_last) falls within this run's 0 task switches",
    "interventions=[reset] interventions.reset.when.every=-3": "interventions.reset.when.every: -3 given; expected at "
    "least 0",
    "interventions=[redo] interventions.redo.when.at=[200,500_000]": "interventions.redo.when.at=[500000]: beyond "
    "start, stop or this run's 15000 updates",
    "interventions=[redo] interventions.redo.when.metric=dormant interventions.redo.when.above=0.3 "
    "interventions.redo.when.measure_every=50_000": "interventions.redo.when.measure_every=50000: no look falls within "
    "this run's 15000 updates",
    "interventions=[redo] interventions.redo.when.metric=dormant": "interventions.redo.when: above is not set",
    "interventions=[redo] interventions.redo.when.metric=dormant interventions.redo.when.falling=true "
    "interventions.redo.when.above=0.3": "interventions.redo.when: below is not set",
    "interventions=[redo] interventions.redo.when.yoke=/nowhere": "interventions.redo.when.yoke=/nowhere given; "
    "expected a run folder",
    "precision=float16": "precision: float16 given; expected float32 | tf32 | bfloat16",
    "interventions=[l2] interventions.l3.weight=3": "interventions.l3.weight: no such intervention in this run; there "
    "is l2",
    "value=hl_gauss value.scalar.eror=mse": "value.scalar.eror: no such setting; did you mean value.scalar.error?",
    "hydra.run.dir=/tmp/x": "hydra.run.dir: the folder of a run is set by run_dir",
    "steps=5_000 replay_ratio=0.0001": "replay_ratio: 0.0001 given; with steps=5000",
    "stream.tasks=[atari/pong,atari/breakout] stream.steps=100_000": "stream.steps: 100000 given; with steps=16000 the "
    "last of 2 tasks would never begin",
    "agent=simba env=dmc/walker-walk value=hl_gauss": "value.high: 120 given; with agent.discount=0.99 and "
    "env.action_repeat=2 values reach 200; set value.high=240",
    "agent=sac env=dmc/walker-walk steps=30_000 stream.tasks=[dmc/walker-walk,dmc/walker-run] stream.steps=2_000": ""
    "stream.steps: 2000 given; every task warms up anew, and with warmup=3000 no update is due within one of 2000",
    "agent=simba env=dmc/walker-walk stream.tasks=[dmc/walker-walk,dmc/walker-run] stream.steps=20_001": ""
    "stream.steps: 20001 given; expected a multiple of env.action_repeat=2",
    "interventions=[l2] interventions.l2.when.every=5": "interventions.l2.when: l2 has no event",
    "steps=0": "steps: 0 given; expected at least 1",
    "steps=ten": "steps: ten given; expected a whole number",
    "steps.x=1": "steps.x: steps is an option without settings; write steps=VALUE",
    "stream.tasks.x=1": "stream.tasks.x: stream.tasks is an option without settings; write stream.tasks=VALUE",
    "replay_ratio=0": "replay_ratio: 0 given; expected more than 0",
    "warmup=1_000_000": "warmup: 1000000 given; expected less than steps=",
    "resume=yes": "resume: yes given; expected strict | exact | force",
    "seeds=0": "seeds: 0 is not a list; write seeds=[0]",
    "seeds=": "seeds: '' is not a list; write seeds=[0]",
    "seeds=null": "seeds: null is not a list; write seeds=[0]",
    "seeds=ten": "seeds: ten is not a list; write seeds=[0]",
    "seeds={a:1}": "seeds: settings given; expected a list, as in seeds=[VALUE]",
    "stream=[1]": "stream: a list given; expected settings, as in stream.SETTING=VALUE",
    "stream.tasks=": "stream.tasks: '' is not a list; write stream.tasks=[]",
    "seeds=[]": "seeds: [] given; expected at least one seed",
    "seeds=[0,0]": "seeds: [0, 0] given; expected at least one seed, and each once",
    "seeds=[-1]": "seeds: -1 given; expected at least 0",
    "device=": "device: '' given; expected cpu | cuda | cuda:N",
    "device=gpu": "device: gpu given; expected cpu | cuda | cuda:N",
    "agent.learning_rate=-1": "agent.learning_rate: -1 given; expected more than 0",
    "value=c51 value.low=200": "value: low=200.0 must be below high=",
    "agent=sac,dqn": "agent: several values given; write a list as [a,b], or add -m",
    "agent=[sac]": "agent: [sac] given; expected one choice, as in agent=NAME",
    "agent": "agent: no value given; expected OPTION=VALUE",
    "=3": "=3: no value given; expected OPTION=VALUE",
    "seeds=[0": "seeds=[0: cannot be read",
    "seeds=[0, 1]": "1]: no value given; expected OPTION=VALUE, as in agent=sac env=dmc/walker-walk",
    "agent.n_step=${nowhere}": "agent.n_step: Interpolation key 'nowhere' not found; write agent.n_step=VALUE",
    "steps=${nowhere}": "steps: Interpolation key 'nowhere' not found; write steps=VALUE",
    "seeds=[1,${nowhere}]": "seeds: Interpolation key 'nowhere' not found; write seeds=[VALUE]",
    "steps=${steps}": "steps: Recursive interpolation detected; write steps=VALUE",
    "steps=${oc.env:NOWHERE}": "steps: Environment variable 'NOWHERE' not found; write steps=VALUE",
    "steps=???": "steps: Missing mandatory value: steps; write steps=VALUE",
    "+agent=dqn": "+agent: agent is there already; write agent=dqn",
    "++agent=dqn": "++agent: agent is there already; write agent=dqn",
    "+steps=30": "+steps: steps is there already; write steps=30",
    "+stream.steps=3": "+stream.steps: stream.steps is there already; write stream.steps=3",
    "agent@x=dqn": "agent@x: no such place; write agent=dqn",
    "interventions@x=[l2]": "interventions@x: no such place; write +interventions@interventions.x=NAME",
    "steps=600 ~steps": "~steps: cannot be deleted; leave steps out, and it has its default",
    "~stream.steps": "~stream.steps: cannot be deleted; leave stream.steps out",
    "~agent": "~agent: cannot be deleted; leave agent out",
    "env=toy/chain env={}": "env: given 2 times, the last would hide the others; write settings as env.SETTING=VALUE",
    "hydra.foo=1": "hydra.foo: Key 'foo' not in 'HydraConf'; --cfg hydra shows what is there",
    "hydra/foo=bar": "hydra/foo: Key 'hydra/foo' is not in struct; --cfg hydra shows what is there",
    "hydra=3": "hydra: no settings named; write hydra.SETTING=VALUE",
    "env=tòy/chain": "env: tòy/chain given; did you mean toy/chain?",
    "interventions=[spéctral]": "interventions: spéctral given; --help lists them all",
    "ключ=1": "ключ: no such setting; --cfg job shows them all",
    "run_dir=é": "run_dir: é can be read only in quotes; write \"run_dir='é'\"",
    "run_dir='é": "run_dir='é: cannot be read (a character or a quote out of place); expected OPTION=VALUE",
    "\t": "an empty word: no value given; expected OPTION=VALUE",
    "env=": "env: '' given; --help lists them all",
    "env.name=x": "env: x given; --help lists them all",
    "stream.steps=10": "stream: steps=10 given without tasks; name them, as in stream.tasks=[TASK,TASK]",
    "value=quantiles value.quantiles=0": "value.quantiles: 0 given; expected value.quantiles.bins=",
    "stream.tasks=[dmc/walker-walk,dmc/walker-run]": "stream: steps=0 given; expected the env steps per task",
    "stream.tasks=[dmc/walker-runn]": "stream.tasks: dmc/walker-runn given; did you mean dmc/walker-run?",
    "stream.tasks=[atari/pong]": "stream.tasks: atari/pong given; expected dmc/..., or start with env=atari/pong",
}


@pytest.mark.parametrize(("command", "line"), MISTAKES.items())
def test_a_mistake_is_answered_in_one_line_and_writes_nothing(command, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(*command.split(" ")).startswith(line)
    assert not any(tmp_path.iterdir())


def test_one_bad_run_of_a_sweep_refuses_the_sweep():
    assert refusal("seeds=[0],[1]", "steps=5_000,0", multirun=True).startswith("steps: 0 given")
    assert refusal("agent=sac,dqnn", multirun=True) == "agent: dqnn given; did you mean dqn?"
    assert "share a folder" in refusal("seeds=[0],[1]", "run_dir=here", multirun=True)


# the process


def run(config: Config) -> int | None:
    with setting_up():
        if config.seeds == (7,):
            raise ValueError("interventions.l2.on: nobody matches no part;\nthere is critic, actor")
    if config.seeds == (8,):
        raise ValueError("a bug")
    if config.seeds == (9,):
        return 143
    print(config.env, config.seeds)
    return 0


@pytest.fixture
def start(monkeypatch, tmp_path, capfd):
    """main(run) with these arguments. -> exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def start(*argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["train.py", *argv])
        try:
            main(run)
            code = 0
        except SystemExit as end:
            code = end.code
        return code, *capfd.readouterr()

    return start


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["agent.lrr=3"], "agent.lrr: no such setting; did you mean agent.learning_rate?"),
        (["--agent", "sac"], "--agent: options are written without dashes, as in agent=VALUE; see --help"),
        (["--seeds=[0]"], "--seeds=[0]: options are written without dashes, as in seeds=VALUE; see --help"),
        (["--cfg", "nothing"], "argument --cfg/-c: invalid choice"),
        (["hydra/launcher=nowhere"], "hydra/launcher: nowhere given; there is basic"),
        (["-m", "seeds=[0],[1]", "steps=0,5_000"], "steps: 0 given; expected at least 1"),
        (["seeds=[7]"], "interventions.l2.on: nobody matches no part; there is critic, actor\n"),
    ],
)
def test_a_mistake_ends_the_process_with_one_line_and_exit_code_2(start, tmp_path, argv, line):
    code, out, err = start(*argv)
    assert (code, out) == (2, "") and err.startswith(line) and err.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_a_bug_is_not_taken_for_a_mistake(start):
    with pytest.raises(ValueError, match="a bug") as caught:
        start("seeds=[8]")
    assert not isinstance(caught.value, BadConfig)


def test_hydras_launcher_runs_every_combination_until_one_returns_an_exit_code(start):
    code, out, _ = start("seeds=[0],[9],[1]", "-m", "env=gym/CartPole-v1,gym/Acrobot-v1", "agent=dqn")
    assert code == 143
    assert out.splitlines() == ["gym/CartPole-v1 (0,)", "gym/Acrobot-v1 (0,)"]


def process(tmp_path: Path, *argv: str) -> subprocess.CompletedProcess:
    script = "import sys; from core.config import main; main(print); print('torch' in sys.modules)"
    (tmp_path / "train.py").write_text(script)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "train.py", *argv]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert [path.name for path in tmp_path.iterdir()] == ["train.py"]
    return done


@pytest.mark.parametrize("flag", ["--help", "-h", "help"])
def test_help_shows_every_choice_and_needs_no_torch(tmp_path, flag):
    done = process(tmp_path, flag)
    assert done.returncode == 0 and done.stdout.endswith("False\n")
    for name in ["dqn", "hl_gauss", "prioritised", "nature", "gym/", "walker-run", "pong", "replay_ratio=1.0"]:
        assert name in done.stdout
    for name, line in rooms.interventions().items():
        assert f"{name} " in done.stdout and line in done.stdout


def test_a_wrong_word_is_answered_by_a_real_process(tmp_path):
    done = process(tmp_path, "interventions=[resett]")
    assert done.returncode == 2 and done.stderr == "interventions: resett given; did you mean reset?\n"


def test_cfg_job_shows_the_whole_configuration_the_same_in_every_process(tmp_path):
    done = process(tmp_path, *COMMAND, "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert from_plain(yaml.safe_load(done.stdout.rpartition("True")[0])) == load(COMMAND)


def test_a_length_that_is_no_number_is_named():
    with pytest.raises(BadConfig, match="steps: many given; expected a whole number"):
        load(["env=dmc/walker-run", "steps=many"])


def test_options_of_a_family_hold_for_its_environments_alone_and_give_way_to_the_users():
    """SimBa repeats actions on DeepMind Control; elsewhere there is nothing to repeat."""
    assert load(["agent=simba", "env=dmc/walker-run"]).env_options["action_repeat"] == 2
    assert load(["agent=simba", "env=dmc/walker-run", "env.action_repeat=3"]).env_options["action_repeat"] == 3
    assert load(["agent=simba", "env=toy/reach"]).env_options == {}
    assert load(["env=dmc/walker-run", "env.dmc.action_repeat=4"]).env_options["action_repeat"] == 4
    with pytest.raises(BadConfig, match="env.dmc.action_repeats: no such setting; did you mean env.dmc.action_repeat?"):
        load(["env=dmc/walker-run", "env.dmc.action_repeats=4"])
    with pytest.raises(BadConfig, match="env.dmc.action_repeats: no such setting"):
        load(["env=toy/reach", "env.dmc.action_repeats=4"])
    with pytest.raises(BadConfig, match="env.dmc: 3 given; expected env.dmc.action_repeat="):
        load(["env=toy/reach", "env.dmc=3"])
