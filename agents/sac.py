"""Soft actor-critic (Haarnoja et al. 2018) with the settings of jaxrl, on which the reset papers stand.

    critic:  y = r + gamma (min_i Q_target_i(s', a') - alpha log pi(a' | s')),  a' ~ pi(s');   loss = sum_i (Q_i - y)^2
    actor:   alpha log pi(a | s) - min_i Q_i(s, a),  a ~ pi(s)
    alpha:   alpha (entropy - target entropy),  alpha = exp(log alpha)

Order: critic, target, actor (with the new critic), temperature, in every update (verified in rl_with_resets and
high_replay_ratio_continuous_control). The policy is a tanh-Gaussian with log-deviations squashed into [-10, 2].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

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
from nets.body import Vectors
from nets.mlp import Critics, GaussianActor, Temperature

LOG_STD_LOW, LOG_STD_HIGH = -10.0, 2.0


@dataclass(frozen=True)
class SACSettings:
    """Hyperparameters of SAC."""

    learning_rate: float = option(3e-4, above=0, help="Adam's step size, for critic, actor and temperature")
    weight_decay: float = option(0.0, low=0, help="decoupled (AdamW), on weight matrices of critic and actor")
    batch_size: int = option(256, low=1, high=65_536, help="samples per update")
    discount: float = option(0.99, low=0, high=1, help="gamma")
    n_step: int = option(1, low=1, help="rewards summed before bootstrapping")
    critics: int = option(2, low=1, help="independent critics; their minimum is used")
    tau: float = option(0.005, low=0, high=1, help="share of the critic the target takes in per update")
    initial_temperature: float = option(1.0, above=0, help="alpha at birth")
    target_entropy: float = option(-0.5, help="wanted entropy per action dimension")
    act_with: str = option("params", help="weights that act in training: params or a slow copy of the actor")
    evaluate_with: str = option("auto", help="weights that are evaluated; auto: a tortoise's, else params")


class SAC:
    """The learner; parts `critic`, `actor` and `alpha`."""

    Settings = SACSettings

    def __init__(
        self, settings: SACSettings, spec: EnvSpec, net: NetSpec, value, interventions: Sequence[Intervention] = ()
    ) -> None:
        if spec.is_discrete or spec.is_image:
            raise ValueError(f"agent=sac needs vectors and continuous actions; env={spec.name} has not; use agent=dqn")
        if not isinstance(net, Vectors):
            raise ValueError("net: agent=sac takes vectors; use net=mlp")
        self.settings, self.spec, self.value = settings, spec, value
        self.interventions = tuple(interventions)
        (obs_dim,), action_dim = spec.obs_shape, spec.action_dim
        self.target_entropy = settings.target_entropy * action_dim
        optim = Adam(lr=settings.learning_rate, decay=settings.weight_decay)
        self.critic = Part(
            "critic",
            lambda blueprint: Critics(settings.critics, obs_dim, action_dim, value.bins, blueprint),
            net,
            self.critic_loss,
            optim=optim,
            inputs=lambda b: (b["obs"], b["action"]),
            logits=value.bins > 1,
            decode=lambda out: value.decode(out).movedim(0, -1),
            copies=("target",),
            interventions=interventions,
        )
        self.actor = Part(
            "actor",
            lambda blueprint: GaussianActor(obs_dim, action_dim, blueprint),
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
            optim=optim,
            inputs=lambda b: (),
            interventions=interventions,
        )
        self.parts = {part.name: part for part in (self.critic, self.actor, self.alpha)}
        self.acting_part = self.actor

    # learning

    def noise(self, batch_size: int) -> dict[str, Noise]:
        draw = Noise("normal", (batch_size, self.spec.action_dim))
        return {"critic": draw, "actor": draw}

    def critic_loss(self, params: Tensors, s: States, b: Batch, noise: Tensors) -> Outcome:
        alpha, _ = self.alpha(weights(s["alpha"]))
        action, log_prob, _ = self.sample(weights(s["actor"]), b["next_obs"], noise["critic"])
        next_out, _ = self.critic(s["critic"].copies["target"], b["next_obs"], action)
        reward = b["reward"] - b["discount"] * alpha * log_prob
        worst = self.worst(next_out)
        target = self.value.backup(reward, b["discount"], worst)
        out, feats = self.critic(params, b["obs"], b["action"])
        error = self.value.loss(out, target.expand(self.settings.critics, *target.shape))
        loss = (b["weight"] * error).sum(0).mean()
        q = self.value.decode(out)
        clipped = self.value.clipped(reward, b["discount"], worst)
        values = {"q": q[0], "target": self.value.expected(target), "priority": error.mean(0), "clipped": clipped}
        return Outcome(loss, feats, {"critic/loss": loss, "critic/q_mean": q.mean()}, values)

    def actor_loss(self, params: Tensors, s: States, b: Batch, noise: Tensors) -> Outcome:
        alpha, _ = self.alpha(weights(s["alpha"]))
        action, log_prob, feats = self.sample(params, b["obs"], noise["actor"])
        out, _ = self.critic(weights(s["critic"]), b["obs"], action)
        loss = (alpha * log_prob - self.value.decode(out).amin(0)).mean()
        return Outcome(loss, feats, {"actor/loss": loss, "actor/entropy": -log_prob.mean()})

    def alpha_loss(self, params: Tensors, s: States, b: Batch, noise: Tensors) -> Outcome:
        """b["entropy"] is the policy's, as the actor's step has just seen it (jaxrl); an event has to ask the actor."""
        alpha, _ = self.alpha(params)
        if "entropy" not in b:
            b = b | {"entropy": -self.sample(weights(s["actor"]), b["obs"], noise["actor"])[1].mean()}
        loss = alpha * (b["entropy"] - self.target_entropy)
        return Outcome(loss, {}, {"alpha/value": alpha})

    def update(self, s: States, b: Batch, noise: Tensors) -> tuple[States, Tensors]:
        s, critic = descend(self.critic, s, b, noise)
        s = follow(self.critic, s, self.settings.tau)
        s, actor = descend(self.actor, s, b, noise)
        s, alpha = descend(self.alpha, s, b | {"entropy": actor.info["actor/entropy"]}, noise)
        info = critic.info | actor.info | alpha.info
        return s, info | {"priority": critic.values["priority"]}

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

    def worst(self, out: Tensor) -> Tensor:
        """The output of the critic with the smallest value, sample by sample. [critics, B, bins] -> [B, bins]."""
        index = self.value.decode(out).argmin(0)
        return out.gather(0, index[None, :, None].expand(1, -1, out.shape[-1])).squeeze(0)

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
