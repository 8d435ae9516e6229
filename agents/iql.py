"""Implicit Q-learning (Kostrikov et al. 2022): learning from data without asking what the policy would do there.

    value:   L_tau(min_i Q_target_i(s, a) - V(s)),   L_tau(u) = |tau - 1(u < 0)| u^2          expectile regression
    actor:   -exp(beta (min_i Q_target_i(s, a) - V(s))) log pi(a | s),   weights at most 100
    critic:  sum_i (r + gamma V(s') - Q_i(s, a))^2

Order: value, actor (with the new value), critic (with the new value), target, in every update, as in the authors'
code (verified in ikostrikov/implicit_q_learning). The policy is a Gaussian around tanh(mean) whose deviations do not
depend on the state. Pre-trained on a file of transitions (offline.data, priming.after=0) it goes on online: the rival
of starting anew with the data (RLPD). The deviations belong to no section of the actor: where=[all] means them too.
Where we differ: the actor's step size stays, theirs decays by a cosine in offline training; the rewards of a file are
taken as they are, theirs of MuJoCo tasks scaled so that best and worst return lie 1,000 apart (to which scale beta
belongs); online, agent=iql begins with five random steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from agents.critics import critic_part, toward
from core.blueprint import NetSpec
from core.clock import Clock
from core.copies import follow
from core.intervention import Intervention
from core.optim import Adam
from core.options import option
from core.part import Outcome, Part, descend
from core.randomness import Noise
from core.spec import EnvSpec
from core.state import Batch, States, Tensors, weights
from nets.body import Frames
from nets.mlp import MLP, Critics, FixedDeviationActor
from nets.value import least

LOG_STD_LOW, LOG_STD_HIGH = -5.0, 2.0
LARGEST_WEIGHT = 100.0


@dataclass(frozen=True)
class IQLSettings:
    """Hyperparameters of IQL; those of its MuJoCo tasks."""

    learning_rate: float = option(3e-4, above=0, help="Adam's step size, for all three networks")
    weight_decay: float = option(0.0, low=0, help="decoupled (AdamW), on weight matrices")
    batch_size: int = option(256, low=1, high=65_536, help="samples per update")
    discount: float = option(0.99, low=0, high=1, help="gamma")
    n_step: int = option(1, low=1, help="rewards summed before bootstrapping")
    critics: int = option(2, low=1, high=1_000, help="independent critics; their minimum is used")
    tau: float = option(0.005, low=0, high=1, help="share of the critic the target takes in per update")
    expectile: float = option(0.7, above=0, high=1, help="of the critics' values that V aims at; 0.9 for sparse mazes")
    beta: float = option(3.0, low=0, help="how much better actions weigh; 0 clones the data, 10 for sparse mazes")
    act_with: str = option("params", help="weights that act in training: params or a slow copy of the actor")
    evaluate_with: str = option("auto", help="weights that are evaluated; auto: a tortoise's, else act_with's")


class IQL:
    """The learner; parts `critic`, `value` and `actor`."""

    Settings = IQLSettings

    def __init__(
        self, settings: IQLSettings, spec: EnvSpec, net: NetSpec, value, interventions: Sequence[Intervention] = ()
    ) -> None:
        if spec.is_discrete:
            raise ValueError(f"agent=iql needs continuous actions; env={spec.name} has not; use agent=dqn")
        if spec.is_image or isinstance(net, Frames):
            raise ValueError(f"agent=iql needs vectors; use net=mlp and env.pixels=0, or agent=drq_sac on {spec.name}")
        if value.bins > 1:
            raise ValueError("value: agent=iql regresses on numbers; use value=scalar")
        self.settings, self.spec, self.value = settings, spec, value
        self.interventions = tuple(interventions)
        (obs_dim,), actions = spec.obs_shape, spec.action_dim
        optim = Adam(lr=settings.learning_rate, decay=settings.weight_decay)
        self.critic = critic_part(
            lambda blueprint: Critics(settings.critics, obs_dim, actions, 1, blueprint),
            net,
            self.critic_loss,
            value,
            optim,
            interventions,
        )
        self.state_value = Part(
            "value",
            lambda blueprint: MLP(obs_dim, 1, blueprint),
            net,
            self.value_loss,
            optim=optim,
            interventions=interventions,
        )
        self.actor = Part(
            "actor",
            lambda blueprint: FixedDeviationActor(obs_dim, actions, blueprint.acting()),
            net,
            self.actor_loss,
            decode=lambda out: out[:, 0].tanh(),
            optim=optim,
            interventions=interventions,
        )
        self.parts = {part.name: part for part in (self.critic, self.state_value, self.actor)}
        self.acting_part = self.actor

    # learning

    def noise(self, batch_size: int) -> dict[str, Noise]:
        return {}

    def advantage(self, params: Tensors, s: States, b: Batch) -> tuple[Tensor, Tensors]:
        """Of the batch's actions, by the target and by V with these weights. -> [B], features of V."""
        out, _ = self.critic(s["critic"].copies["target"], b["obs"], b["action"])
        v, feats = self.state_value(params, b["obs"])
        return self.value.decode(least(self.value, out)) - v[:, 0], feats

    def value_loss(self, params: Tensors, s: States, b: Batch, noise: Tensors) -> Outcome:
        ahead, feats = self.advantage(params, s, b)
        share = (self.settings.expectile - (ahead < 0).to(ahead.dtype)).abs()
        loss = (share * ahead.square()).mean()
        return Outcome(loss, feats, {"value/advantage": ahead.mean()})

    def actor_loss(self, params: Tensors, s: States, b: Batch, noise: Tensors) -> Outcome:
        ahead, _ = self.advantage(weights(s["value"]), s, b)
        weight = (self.settings.beta * ahead).exp().clamp(max=LARGEST_WEIGHT)
        mean, log_std, feats = self.gaussian(params, b["obs"])
        off = (b["action"] - mean) / log_std.exp()
        log_prob = (-0.5 * off.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)
        loss = -(weight * log_prob).mean()
        return Outcome(loss, feats, {"actor/deviation": log_std.exp().mean()})

    def critic_loss(self, params: Tensors, s: States, b: Batch, noise: Tensors) -> Outcome:
        v, _ = self.state_value(weights(s["value"]), b["next_obs"])
        return toward(self.critic, self.value, params, b, b["reward"], v)

    def update(self, s: States, b: Batch, noise: Tensors) -> tuple[States, Tensors]:
        s, value = descend(self.state_value, s, b, noise)
        s, actor = descend(self.actor, s, b, noise)
        s, critic = descend(self.critic, s, b, noise)
        s = follow(self.critic, s, self.settings.tau, b)
        return s, value.info | actor.info | critic.info | {"priority": critic.values["priority"]}

    def gaussian(self, params: Tensors, obs: Tensor) -> tuple[Tensor, Tensor, Tensors]:
        out, feats = self.actor(params, obs)
        mean, raw = out.unbind(-2)
        return mean.tanh(), raw.clamp(LOG_STD_LOW, LOG_STD_HIGH), feats

    # acting

    def explore(self, clock: Clock) -> float:
        """1: sample the policy."""
        return 1.0

    @property
    def explore_eval(self) -> float:
        """0: the mean."""
        return 0.0

    def act_noise(self, episodes: int) -> dict[str, Noise]:
        return {"policy": Noise("normal", (episodes, self.spec.action_dim))}

    def act(self, s: States, obs: Tensor, explore: float, noise: Tensors, role: str) -> Tensor:
        """obs [E, d] -> actions [E, a] in [-1, 1]."""
        mean, log_std, _ = self.gaussian(weights(s["actor"], role), obs)
        return (mean + explore * log_std.exp() * noise["policy"]).clamp(-1, 1)
