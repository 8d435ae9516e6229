"""DQN (Mnih et al. 2015) with the parts the field has added since, each an option.

    y = R_n + gamma^n Q_target(s_n, a*),   a* = argmax_a Q(s_n, a)          double (van Hasselt et al. 2016)

R_n is the n-step return; replay hands over `reward` = R_n and `discount` = gamma^k, 0 past a terminal, so nothing here
knows n. What Q's output means (a number, two-hot, HL-Gauss, C51) is the value object's business.

Defaults are DrQ(eps) of Dopamine's Atari-100k agents without its augmentation (verified in DrQ_eps.gin); the other
members of the family are named in configs/agent/. With noisy layers the loss, the choice of a* and the target each take
a draw of their own, so does every decision in training; evaluation takes none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
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
from nets.augmentation import Augmentation
from nets.noisy import noise_of, with_noise
from nets.q_network import QNetwork


@dataclass(frozen=True)
class DQNSettings:
    """Hyperparameters of DQN."""

    learning_rate: float = option(1e-4, above=0, help="Adam's step size")
    adam_eps: float = option(1.5e-4, above=0, help="Adam's epsilon; large, as all Atari-100k agents have it")
    weight_decay: float = option(0.0, low=0, help="decoupled (AdamW), on tensors with more than one axis")
    batch_size: int = option(32, low=1, high=65_536, help="samples per update")
    discount: float = option(0.99, low=0, high=1, help="gamma")
    n_step: int = option(10, low=1, help="rewards summed before bootstrapping")
    double: bool = option(True, help="the online network chooses the action the target evaluates")
    dueling: bool = option(True, help="separate streams for value and advantage")
    streams: Literal["shared", "separate"] = option("shared", help="dueling: one set of hidden layers, or one each")
    noisy: float = option(0.0, low=0, help="sigma_0 of noisy layers behind the encoder; 0: plain ones")
    encoder_gradient: float = option(1.0, above=0, help="factor on the gradient that enters the encoder")
    clip_norm: float = option(0.0, low=0, help="longest gradient; longer ones are scaled down; 0: none is")
    augment: Augmentation = option(Augmentation())
    target: Literal["copy", "ema"] = option("copy", help="hard copy every target_period updates, or an average")
    target_period: int = option(1, low=1, help="updates between hard copies")
    tau: float = option(0.005, low=0, high=1, help="share of the online weights an average takes in per update")
    epsilon_final: float = option(0.01, low=0, high=1, help="exploration after the decay")
    epsilon_decay: int = option(5_000, low=1, help="agent steps from 1 to epsilon_final, after warm-up")
    epsilon_eval: float = option(0.001, low=0, high=1, help="exploration in evaluation")
    act_with: str = option("params", help="weights that act in training: params, target or a slow copy")
    evaluate_with: str = option("auto", help="weights that are evaluated; auto: a tortoise's, else act_with's")


class Exploration(NamedTuple):
    """How an action departs from the greedy one."""

    epsilon: float  # share of random actions
    noisy: bool  # noisy layers draw


class DQN:
    """The learner; one part, `q`."""

    Settings = DQNSettings

    def __init__(
        self, settings: DQNSettings, spec: EnvSpec, net: NetSpec, value, interventions: Sequence[Intervention] = ()
    ) -> None:
        if not spec.is_discrete:
            raise ValueError(f"agent=dqn needs discrete actions; env={spec.name} has continuous ones; use agent=sac")
        settings.augment.check(f"env={spec.name}", spec.is_image)
        self.settings, self.spec, self.value = settings, spec, value
        self.interventions = tuple(interventions)
        self.q = Part(
            "q",
            self.network,
            net,
            self.q_loss,
            optim=Adam(
                lr=settings.learning_rate,
                eps=settings.adam_eps,
                decay=settings.weight_decay,
                clip_norm=settings.clip_norm,
            ),
            logits=value.logits,
            decode=value.decode,
            greedy=True,
            copies=("target",),
            averaged=settings.target == "ema",
            interventions=interventions,
        )
        self.parts = {"q": self.q}
        self.acting_part = self.q

    def network(self, blueprint: NetSpec) -> QNetwork:
        o = self.settings
        return QNetwork(
            self.spec.seen_shape,
            self.spec.num_actions,
            self.value.bins,
            o.dueling,
            blueprint,
            streams=o.streams,
            noisy=o.noisy,
            encoder_gradient=o.encoder_gradient,
        )

    # learning

    def noise(self, batch_size: int) -> dict[str, Noise]:
        return self.settings.augment.noise(batch_size) | self.layers_noise("target") | self.layers_noise("choice")

    def layers_noise(self, which: str) -> dict[str, Noise]:
        """What the noisy layers take in one pass."""
        return {f"{which}/{key}": noise for key, noise in noise_of(self.q.net).items()}

    def q_loss(self, params: Tensors, s: States, b: Batch, noise: Tensors) -> Outcome:
        b = self.settings.augment(b, noise)
        next_out, _ = self.q(with_noise(s["q"].copies["target"], noise, "target"), b["next_obs"])
        choosing = next_out
        if self.settings.double:
            choosing, _ = self.q(with_noise(weights(s["q"]), noise, "choice"), b["next_obs"])
        best = self.value.decode(choosing).argmax(-1)
        next_taken = pick(next_out, best)
        target = self.value.backup(b["reward"], b["discount"], next_taken)
        out, feats = self.q(params, b["obs"])
        taken = pick(out, b["action"])
        error = self.value.loss(taken, target)
        loss = (b["weight"] * error).mean()
        q = self.value.decode(taken)
        clipped = self.value.clipped(b["reward"], b["discount"], next_taken)
        values = {"q": q, "target": self.value.expected(target), "priority": error, "clipped": clipped}
        return Outcome(loss, feats, {"q/mean": q.mean()}, values)

    def update(self, s: States, b: Batch, noise: Tensors) -> tuple[States, Tensors]:
        s, outcome = descend(self.q, s, b, noise)
        if self.settings.target == "ema":
            s = follow(self.q, s, self.settings.tau, b)
        else:
            due = b["update"] % self.settings.target_period == 0
            s = follow(self.q, s, due.to(torch.float32), b)
        return s, outcome.info | {"priority": outcome.values["priority"]}

    # acting

    def explore(self, clock: Clock) -> Exploration:
        """Epsilon is 1 until warm-up ends, then linear to epsilon_final. Counts from the task's start."""
        progress = (clock.task_steps - clock.warmup) / self.settings.epsilon_decay
        return Exploration(1.0 + (self.settings.epsilon_final - 1.0) * min(1.0, max(0.0, progress)), noisy=True)

    @property
    def explore_eval(self) -> Exploration:
        return Exploration(self.settings.epsilon_eval, noisy=False)

    def act_noise(self, episodes: int) -> dict[str, Noise]:
        drawn = {"explore": Noise("uniform", (episodes,)), "action": Noise("uniform", (episodes,))}
        return drawn | self.layers_noise("layers")

    def act(self, s: States, obs: Tensor, explore: Exploration, noise: Tensors, role: str) -> Tensor:
        """Epsilon-greedy. obs [E, *seen_shape] -> actions [E] int64."""
        numbers = weights(s["q"], role)
        out, _ = self.q(with_noise(numbers, noise, "layers") if explore.noisy else numbers, obs)
        random = (noise["action"] * self.spec.num_actions).long()
        return torch.where(noise["explore"] < explore.epsilon, random, self.value.decode(out).argmax(-1))


def pick(out: Tensor, action: Tensor) -> Tensor:
    """Outputs of the chosen actions. [B, actions, bins], [B] -> [B, bins]."""
    return out.gather(-2, action[..., None, None].expand(*action.shape, 1, out.shape[-1])).squeeze(-2)
