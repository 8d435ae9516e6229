"""Soft actor-critic (Haarnoja et al. 2018) with the settings of jaxrl, on which the reset papers stand.

    critic:  y = r + gamma (min_i Q_target_i(s', a') - alpha log pi(a' | s')),  a' ~ pi(s');   loss = sum_i (Q_i - y)^2
    actor:   alpha log pi(a | s) - min_i Q_i(s, a),  a ~ pi(s)
    alpha:   alpha (entropy - target entropy),  alpha = exp(log alpha)

Order: critic, target, actor (with the new critic), temperature, in every update (verified in rl_with_resets and
high_replay_ratio_continuous_control). The policy is a tanh-Gaussian with log-deviations squashed into [-10, 2].

Its descendants differ in numbers, and are named in configs/agent/: the critics' mean instead of their minimum (BRO,
verified), the least of a random few in the target and the mean of all for the actor (REDQ, Chen et al. 2021; RLPD,
verified), the actor before the critic (SimBa, verified).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
from core.state import Batch, State, States, Tensors, weights, where
from nets.body import Frames
from nets.mlp import Critics, GaussianActor, Temperature
from nets.value import least

LOG_STD_LOW, LOG_STD_HIGH = -10.0, 2.0


@dataclass(frozen=True)
class SACSettings:
    """Hyperparameters of SAC."""

    learning_rate: float = option(3e-4, above=0, help="Adam's step size, for critic, actor and temperature")
    weight_decay: float = option(0.0, low=0, help="decoupled (AdamW), on weights of critic and actor")
    decays: Literal["matrices", "all"] = option("matrices", help="what decays: weight matrices, or all their tensors")
    batch_size: int = option(256, low=1, high=65_536, help="samples per update")
    discount: float = option(0.99, low=0, high=1, help="gamma")
    n_step: int = option(1, low=1, help="rewards summed before bootstrapping")
    critics: int = option(2, low=1, high=1_000, help="independent critics")
    target_value: Literal["min", "mean"] = option("min", help="of the critics, in the target")
    actor_value: Literal["min", "mean"] = option("min", help="of the critics, for the actor")
    subset: int = option(0, low=0, high=1_000, help="critics drawn at random for each target; 0: all")
    order: Literal["critic_first", "actor_first"] = option("critic_first", help="who moves first in an update")
    tau: float = option(0.005, low=0, high=1, help="share of the critic the target takes in per update")
    initial_temperature: float = option(1.0, above=0, help="alpha at birth")
    temperature_b1: float = option(0.9, low=0, high=1, help="Adam's beta 1 for the temperature")
    target_entropy: float = option(-0.5, help="wanted entropy per action dimension")
    standardise: bool = option(False, help="observations by mean and deviation of all that were seen")
    act_with: str = option("params", help="weights that act in training: params or a slow copy of the actor")
    evaluate_with: str = option("auto", help="weights that are evaluated; auto: a tortoise's, else act_with's")


class SAC:
    """The learner; parts `critic`, `actor` and `alpha`."""

    Settings = SACSettings

    def __init__(
        self, settings: SACSettings, spec: EnvSpec, net: NetSpec, value, interventions: Sequence[Intervention] = ()
    ) -> None:
        self.check(spec, net)
        if settings.subset > settings.critics:
            raise ValueError(f"agent.subset: {settings.subset} given; expected at most critics={settings.critics}")
        if settings.standardise and spec.is_image:
            raise ValueError(f"agent.standardise: env={spec.name} shows frames; only vectors have moments")
        self.settings, self.spec, self.value = settings, spec, value
        self.interventions = tuple(interventions)
        self.target_entropy = settings.target_entropy * spec.action_dim
        optim = Adam(lr=settings.learning_rate, decay=settings.weight_decay, decays=settings.decays)
        self.critic = critic_part(self.critics, net, self.critic_loss, value, optim, interventions)
        self.actor = Part(
            "actor",
            self.policy,
            net,
            self.actor_loss,
            optim=optim,
            decode=lambda out: out[:, 0].tanh(),  # the mean action
            interventions=interventions,
        )
        self.alpha = Part(
            "alpha",
            lambda blueprint: Temperature(settings.initial_temperature),
            net,
            self.alpha_loss,
            optim=Adam(lr=settings.learning_rate, b1=settings.temperature_b1),
            inputs=lambda b: (),
            interventions=interventions,
        )
        self.parts = {part.name: part for part in (self.critic, self.actor, self.alpha)}
        self.acting_part = self.actor

    @staticmethod
    def check(spec: EnvSpec, net: NetSpec) -> None:
        """Raises ValueError if the agent cannot live there, or not with this network."""
        if spec.is_discrete:
            raise ValueError(f"agent=sac needs continuous actions; env={spec.name} has not; use agent=dqn")
        if spec.is_image:
            raise ValueError(
                f"agent=sac needs vectors; env={spec.name} shows frames; use agent=drq_sac, or env.pixels=0"
            )
        if isinstance(net, Frames):
            raise ValueError("net: agent=sac takes vectors; use net=mlp, simba or bro")

    def critics(self, blueprint: NetSpec) -> nn.Module:
        """A new critic network."""
        (obs_dim,) = self.spec.obs_shape
        o = self.settings
        return Critics(o.critics, obs_dim, self.spec.action_dim, self.value.bins, blueprint, o.standardise)

    def policy(self, blueprint: NetSpec) -> nn.Module:
        """A new actor network."""
        (obs_dim,) = self.spec.obs_shape
        return GaussianActor(obs_dim, self.spec.action_dim, blueprint.acting(), self.settings.standardise)

    # learning

    def noise(self, batch_size: int) -> dict[str, Noise]:
        action = Noise("normal", (batch_size, self.spec.action_dim))
        subset = {"subset": Noise("uniform", (self.settings.critics,), shared=True)} if self.settings.subset else {}
        return {"critic": action, "actor": action} | subset

    def critic_loss(self, params: Tensors, s: States, b: Batch, noise: Tensors) -> Outcome:
        alpha, _ = self.alpha(weights(s["alpha"]))
        action, log_prob, _ = self.sample(weights(s["actor"]), b["next_obs"], noise["critic"])
        next_out, _ = self.critic(s["critic"].copies["target"], b["next_obs"], action)
        if self.settings.subset:
            next_out = next_out[noise["subset"].argsort()[: self.settings.subset]]
        reward = b["reward"] - b["discount"] * alpha * log_prob
        joined = least(self.value, next_out) if self.settings.target_value == "min" else self.value.mixture(next_out)
        return toward(self.critic, self.value, params, b, reward, joined)

    def actor_loss(self, params: Tensors, s: States, b: Batch, noise: Tensors) -> Outcome:
        alpha, _ = self.alpha(weights(s["alpha"]))
        action, log_prob, feats = self.sample(params, b["obs"], noise["actor"])
        out, _ = self.critic(weights(s["critic"]), b["obs"], action)
        q = self.value.decode(out)
        loss = (alpha * log_prob - (q.amin(0) if self.settings.actor_value == "min" else q.mean(0))).mean()
        return Outcome(loss, feats, {"actor/entropy": -log_prob.mean()})

    def alpha_loss(self, params: Tensors, s: States, b: Batch, noise: Tensors) -> Outcome:
        """b["entropy"] is the policy's, as the actor's step has just seen it (jaxrl); an event has to ask the actor."""
        alpha, _ = self.alpha(params)
        if "entropy" not in b:
            b = b | {"entropy": -self.sample(weights(s["actor"]), b["obs"], noise["actor"])[1].mean()}
        loss = alpha * (b["entropy"] - self.target_entropy)
        return Outcome(loss, {}, {"alpha/value": alpha})

    def update(self, s: States, b: Batch, noise: Tensors) -> tuple[States, Tensors]:
        if self.settings.standardise:
            told = standardised(s, {"standardise.mean": b["obs_mean"], "standardise.var": b["obs_var"]})
            s = where(b["alive"], told, s) if "alive" in b else told
        if self.settings.order == "actor_first":
            s, acting = self.update_policy(s, b, noise)
            s, critic = self.update_critic(s, b, noise)
        else:
            s, critic = self.update_critic(s, b, noise)
            s, acting = self.update_policy(s, b, noise)
        return s, critic.info | acting | {"priority": critic.values["priority"]}

    def update_critic(self, s: States, b: Batch, noise: Tensors) -> tuple[States, Outcome]:
        s, outcome = descend(self.critic, s, b, noise)
        return follow(self.critic, s, self.settings.tau, b), outcome

    def update_policy(self, s: States, b: Batch, noise: Tensors) -> tuple[States, Tensors]:
        s, actor = descend(self.actor, s, b, noise)
        s, alpha = descend(self.alpha, s, b | {"entropy": actor.info["actor/entropy"]}, noise)
        return s, actor.info | alpha.info

    def sample(self, params: Tensors, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensors]:
        """A reparametrised action. -> action [B, a] in (-1, 1), log-probability [B], features of the actor."""
        mean, log_std, feats = self.gaussian(params, obs)
        u = mean + log_std.exp() * noise
        log_normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        log_jacobian = 2 * (math.log(2) - u - F.softplus(-2 * u))  # log(1 - tanh(u)^2), stable for large |u|
        return u.tanh(), (log_normal - log_jacobian).sum(-1), feats

    def gaussian(self, params: Tensors, obs: Tensor) -> tuple[Tensor, Tensor, Tensors]:
        out, feats = self.actor(params, obs)
        mean, raw = out.unbind(-2)
        log_std = LOG_STD_LOW + 0.5 * (LOG_STD_HIGH - LOG_STD_LOW) * (1 + raw.tanh())
        return mean, log_std, feats

    # acting

    def explore(self, clock: Clock) -> float:
        """1: sample the policy."""
        return 1.0

    @property
    def explore_eval(self) -> float:
        """0: the mean, through tanh."""
        return 0.0

    def act_noise(self, episodes: int) -> dict[str, Noise]:
        return {"policy": Noise("normal", (episodes, self.spec.action_dim))}

    def act(self, s: States, obs: Tensor, explore: float, noise: Tensors, role: str) -> Tensor:
        """obs [E, d] -> actions [E, a] in (-1, 1)."""
        mean, log_std, _ = self.gaussian(weights(s["actor"], role), obs)
        return torch.tanh(mean + explore * log_std.exp() * noise["policy"])


def standardised(s: States, moments: Tensors) -> States:
    """Every network that standardises what it sees does so by these moments, slow copies too: they describe data."""

    def told(state: State) -> State:
        copies = {role: copy | moments for role, copy in state.copies.items()}
        return state._replace(buffers=state.buffers | moments, copies=copies)

    return s | {name: told(state) for name, state in s.items() if moments.keys() <= state.buffers.keys()}
