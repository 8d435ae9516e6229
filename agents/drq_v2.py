"""DrQ-v2 (Yarats et al. 2022): deterministic policy gradient from frames, with n-step returns and a noise schedule.

    critic:  y = R_n + gamma^n min_i Q_target_i(e(s_n), a'),  a' = pi(e(s_n)) + clip(sigma eps, -c, c);  sum (Q_i - y)^2
    actor:   -min_i Q_i(e(s), a),  a = pi(e(s)) + clip(sigma eps, -c, c)
    sigma:   from noise_initial to noise_final, linear in agent steps

Actions are clipped to [-1, 1]. e is the encoder of the critics as it is now, also for s_n, and learns from their loss
alone; the target has none that is used (verified in facebookresearch/drqv2). Order: critic, actor, target. Where we
differ: the actor sees the encoder that the critics have just moved to, theirs what the old one made of the batch;
frames move by whole pixels (theirs are interpolated at offsets that are whole but for rounding); replay draws steps
alike (theirs draws episodes first, and no window that the end of its episode cuts short); layer normalisation has eps
1e-6 (theirs 1e-5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from agents.critics import critic_part, toward
from agents.drq import check_pixels, shared
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
from nets.body import DrQ as DrQNet
from nets.mlp import MLP
from nets.pixel_control import PixelActor, PixelCritics
from nets.value import least


@dataclass(frozen=True)
class DrQV2Settings:
    """Hyperparameters of DrQ-v2."""

    learning_rate: float = option(1e-4, above=0, help="Adam's step size")
    weight_decay: float = option(0.0, low=0, help="decoupled (AdamW), on weight matrices and kernels")
    batch_size: int = option(256, low=1, high=65_536, help="samples per update")
    discount: float = option(0.99, low=0, high=1, help="gamma")
    n_step: int = option(3, low=1, help="rewards summed before bootstrapping")
    critics: int = option(2, low=1, high=1_000, help="independent critics; their minimum is used")
    tau: float = option(0.01, low=0, high=1, help="share of the critic the target takes in per update")
    noise_initial: float = option(1.0, low=0, help="deviation of the exploration noise at first")
    noise_final: float = option(0.1, low=0, help="and after noise_steps")
    noise_steps: int = option(100_000, low=1, help="agent steps between the two; 500_000 for medium tasks")
    noise_clip: float = option(0.3, low=0, help="largest noise in a loss")
    augment: Augmentation = option(Augmentation(shift=4))
    act_with: str = option("params", help="weights that act in training: params or a slow copy of the actor")
    evaluate_with: str = option("auto", help="weights that are evaluated; auto: a tortoise's, else act_with's")


class DrQV2:
    """The learner; parts `critic` (with the encoder) and `actor`."""

    Settings = DrQV2Settings

    def __init__(
        self, settings: DrQV2Settings, spec: EnvSpec, net: NetSpec, value, interventions: Sequence[Intervention] = ()
    ) -> None:
        check_pixels("drq_v2", spec, net)
        settings.augment.check(f"env={spec.name}", spec.is_image)
        self.settings, self.spec, self.value = settings, spec, value
        self.interventions = tuple(interventions)
        optim = Adam(lr=settings.learning_rate, decay=settings.weight_decay)
        self.critic = critic_part(self.critics, net, self.critic_loss, value, optim, interventions)
        self.actor = Part(
            "actor",
            self.policy,
            net,
            self.actor_loss,
            optim=optim,
            decode=torch.tanh,
            interventions=interventions,
        )
        self.parts = {"critic": self.critic, "actor": self.actor}
        self.acting_part = self.actor

    def critics(self, blueprint: NetSpec) -> nn.Module:
        count, spec = self.settings.critics, self.spec
        return PixelCritics(count, spec.seen_shape, spec.action_dim, self.value.bins, cast(DrQNet, blueprint))

    def policy(self, blueprint: NetSpec) -> nn.Module:
        own, critics = cast(DrQNet, blueprint), cast(DrQNet, self.critic.spec)
        return PixelActor(critics, MLP(own.bottleneck, self.spec.action_dim, own), self.spec.seen_shape, own)

    # learning

    def noise(self, batch_size: int) -> dict[str, Noise]:
        action = Noise("normal", (batch_size, self.spec.action_dim))
        return {"critic": action, "actor": action} | self.settings.augment.noise(batch_size)

    def critic_loss(self, params: Tensors, s: States, b: Batch, noise: Tensors) -> Outcome:
        b = self.settings.augment(b, noise)
        encoded, _ = self.critic(weights(s["critic"]), b["next_obs"])
        action = self.explored(weights(s["actor"]), encoded, b["step"], noise["critic"])
        next_out, _ = self.critic(s["critic"].copies["target"], encoded, action)
        return toward(self.critic, self.value, params, b, b["reward"], least(self.value, next_out))

    def actor_loss(self, params: Tensors, s: States, b: Batch, noise: Tensors) -> Outcome:
        b = self.settings.augment(b, noise)
        encoded, _ = self.critic(weights(s["critic"]), b["obs"])
        out, feats = self.actor(params, encoded)
        action = self.noised(out.tanh(), b["step"], noise["actor"])
        loss = -self.value.decode(self.critic(weights(s["critic"]), encoded, action)[0]).amin(0).mean()
        return Outcome(loss, feats, {})

    def update(self, s: States, b: Batch, noise: Tensors) -> tuple[States, Tensors]:
        s, critic = descend(self.critic, s, b, noise)
        s, actor = descend(self.actor, shared(s), b, noise)
        s = follow(self.critic, s, self.settings.tau, b)
        return s, critic.info | actor.info | {"priority": critic.values["priority"]}

    def tied(self, s: States, newborn: bool) -> States:
        return shared(s, newborn)

    def explored(self, params: Tensors, seen: Tensor, step: Tensor, noise: Tensor) -> Tensor:
        return self.noised(self.actor(params, seen)[0].tanh(), step, noise)

    def noised(self, mean: Tensor, step: Tensor, noise: Tensor) -> Tensor:
        """Actions in a loss. Gradient passes as if nothing were clipped at the border (as theirs does)."""
        clip = self.settings.noise_clip
        action = mean + (self.deviation(step) * noise).clamp(-clip, clip)
        inside = action.clamp(-1 + 1e-6, 1 - 1e-6)
        return action + (inside - action).detach()

    def deviation(self, step):
        """sigma after so many agent steps; a number or a tensor."""
        o = self.settings
        progress = step / o.noise_steps
        progress = progress.clamp(max=1.0) if isinstance(progress, Tensor) else min(1.0, progress)
        return o.noise_initial + (o.noise_final - o.noise_initial) * progress

    # acting

    def explore(self, clock: Clock) -> float:
        """Deviation of the noise. Counts from the run's start."""
        return self.deviation(clock.agent_steps)

    @property
    def explore_eval(self) -> float:
        return 0.0

    def act_noise(self, episodes: int) -> dict[str, Noise]:
        return {"policy": Noise("normal", (episodes, self.spec.action_dim))}

    def act(self, s: States, obs: Tensor, explore: float, noise: Tensors, role: str) -> Tensor:
        """obs [E, *seen_shape] -> actions [E, a] in [-1, 1]."""
        mean = self.actor(weights(s["actor"], role), obs)[0].tanh()
        return (mean + explore * noise["policy"]).clamp(-1, 1)
