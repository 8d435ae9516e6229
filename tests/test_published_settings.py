"""The numbers of the named agents that play from pixels, against their sources: Dopamine's gin files, PLASTIC's and
rl_with_resets' configurations. Those that see vectors, and DrQ-v2, are beside the tests of their agents."""

import dataclasses

import pytest

from core.config import load
from nets.augmentation import Augmentation
from nets.body import DrQ, Nature
from nets.value import C51, Scalar

DOPAMINE = {  # what DER.gin, DrQ_eps.gin, full_rainbow.gin and dqn.gin have in common
    "discount": 0.99,
    "adam_eps": 1.5e-4,
    "weight_decay": 0,
    "batch_size": 32,
    "epsilon_eval": 0.001,
    "target": "copy",
    "streams": "shared",
    "encoder_gradient": 1,
    "clip_norm": 0,
    "act_with": "params",
    "evaluate_with": "auto",
}
PLAIN = Augmentation()
MOVED = Augmentation(shift=4, intensity=0.05)
DQN = {
    "der": {"learning_rate": 1e-4, "n_step": 10, "double": True, "dueling": True, "noisy": 0.1, "augment": PLAIN}
    | {"target_period": 2_000, "epsilon_final": 0.01, "epsilon_decay": 1},
    "drq_eps": {"learning_rate": 1e-4, "n_step": 10, "double": True, "dueling": True, "noisy": 0, "augment": MOVED}
    | {"target_period": 1, "epsilon_final": 0.01, "epsilon_decay": 5_000},
    "rainbow": {"learning_rate": 6.25e-5, "n_step": 3, "double": True, "dueling": True, "noisy": 0.1, "augment": PLAIN}
    | {"target_period": 8_000 // 4, "epsilon_final": 0, "epsilon_decay": 1},
    "dqn_nature": {"learning_rate": 6.25e-5, "n_step": 1, "double": False, "dueling": False, "noisy": 0}
    | {"augment": PLAIN, "target_period": 8_000 // 4, "epsilon_final": 0.01, "epsilon_decay": 250_000},
}
PLASTIC = {  # of which `target_tau` is the share that stays
    "learning_rate": 1.414e-4,
    "n_step": 10,
    "double": True,
    "dueling": True,
    "streams": "separate",
    "noisy": 0.5,
    "augment": MOVED,
    "encoder_gradient": 0.7071,
    "clip_norm": 10,
    "target": "ema",
    "tau": pytest.approx(1 - 0.99),
    "epsilon_final": 0,
    "epsilon_decay": 1,
    "act_with": "target",
}
RUN = {  # replay ratio, warm-up, steps that fill it in a long run
    "der": (1, 1_600, 100_000),
    "drq_eps": (1, 1_600, 100_000),
    "rainbow": (1 / 4, 20_000, 1_000_000),
    "dqn_nature": (1 / 4, 20_000, 1_000_000),
    "drq": (2, 2_000, 100_000),
}


@pytest.mark.parametrize("name", [*DQN, "drq"])
def test_dqn_and_its_descendants_are_configured_as_their_sources(name):
    ratio, warmup, steps = RUN[name]
    config = load([f"agent={name}", "env=atari/pong", f"steps={steps}"])
    numbers = dataclasses.asdict(config.agent) | {"augment": config.agent.augment}
    numbers.pop("target_period") if numbers["target"] == "ema" else numbers.pop("tau")
    assert numbers == DOPAMINE | (PLASTIC if name == "drq" else DQN[name])
    assert (config.agent_kind, config.replay_ratio, config.warmup) == ("dqn", ratio, warmup)
    assert config.interventions == ()


@pytest.mark.parametrize(("name", "value"), [("drq_eps", Scalar("huber")), ("dqn_nature", Scalar("mse"))])
def test_values_are_numbers_where_the_source_regresses(name, value):
    config = load([f"agent={name}", "env=atari/pong"])
    assert config.value == value and not hasattr(config.replay, "alpha")


@pytest.mark.parametrize(("name", "beta", "final"), [("der", 0.5, None), ("rainbow", 0.5, None), ("drq", 0.4, 1)])
def test_categorical_agents_sample_by_priority(name, beta, final):
    config = load([f"agent={name}", "env=atari/pong"])
    value, replay = config.value, config.replay
    assert isinstance(value, C51) and (value.low, value.high, value.bins) == (-10, 10, 51)
    assert (replay.alpha, replay.beta, replay.beta_final) == (0.5, beta, final)


@pytest.mark.parametrize("name", [*DQN, "drq"])
def test_their_network_is_the_nature_dqns(name):
    net = load([f"agent={name}", "env=atari/pong"]).net
    assert isinstance(net, Nature) and (net.width, net.depth) == (512, 1)
    assert (net.padding, net.init) == (("valid", "torch") if name == "drq" else ("same", "xavier"))


def test_drq_on_deepmind_control_is_configured_as_its_source():
    config = load(["agent=drq_sac", "env=dmc/walker-walk", "steps=500_000"])
    o, net, env = config.agent, config.net, config.env_options
    assert (o.learning_rate, o.batch_size, o.discount, o.tau) == (3e-4, 512, 0.99, 0.005)
    assert (o.initial_temperature, o.target_entropy, o.critics) == (0.1, -1.0, 2)
    assert isinstance(net, DrQ) and (net.width, net.depth, net.bottleneck) == (256, 2, 50)
    assert (net.channels, net.strides, net.padding) == ((32, 64, 128, 256), (2, 2, 2, 2), "same")
    assert (config.replay_ratio, config.warmup, config.replay.capacity) == (1, 1_000, 100_000)
    assert (env["pixels"], env["colours"], env["action_repeat"]) == (64, "gray", 2)
