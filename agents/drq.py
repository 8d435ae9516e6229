"""DrQ (Yarats et al. 2021), `agent=drq_sac`: soft actor-critic from frames, shifted at random before every loss.

(`agent=drq` is the DrQ of Atari, a DQN: configs/agent/drq.yaml.)

Losses, order and policy are those of agents/sac.py. What differs, as in jaxrl's drq_learner (verified in
rl_with_resets):

* the encoder is the critics' and learns from their loss alone; the actor reads a copy of it, renewed when the critics
  have moved, and trains only what stands behind;
* the target network has an encoder of its own, which follows as all of it does;
* both observations of a batch are shifted, each by its own draw, once per update (K = M = 1).

`where=[head]` in an intervention means everything behind the convolutions. A reset of it together with the temperature
(`on=["*", alpha]`) keeps the encoder, its moments and the target's: the reset of Nikishin et al. 2022 from pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from torch import nn

from agents.sac import SAC, SACSettings
from core.blueprint import NetSpec
from core.intervention import Intervention
from core.options import option
from core.part import Outcome
from core.randomness import Noise
from core.spec import EnvSpec
from core.state import Batch, States, Tensors, weights
from nets.augmentation import Augmentation
from nets.body import DrQ as DrQNet
from nets.mlp import GaussianActor
from nets.pixel_control import PixelActor, PixelCritics

ENCODER = "encoder."


@dataclass(frozen=True)
class DrQSettings(SACSettings):
    """Hyperparameters of DrQ, as jaxrl has them."""

    batch_size: int = option(512, low=1, high=65_536, help="samples per update")
    initial_temperature: float = option(0.1, above=0, help="alpha at birth")
    target_entropy: float = option(-1.0, help="wanted entropy per action dimension")
    augment: Augmentation = option(Augmentation(shift=4))


class DrQ(SAC):
    """The learner; parts `critic` (with the encoder), `actor` and `alpha`."""

    Settings = DrQSettings
    settings: DrQSettings

    def __init__(
        self, settings: DrQSettings, spec: EnvSpec, net: NetSpec, value, interventions: Sequence[Intervention] = ()
    ) -> None:
        super().__init__(settings, spec, net, value, interventions)
        settings.augment.check(f"env={spec.name}", spec.is_image)

    @staticmethod
    def check(spec: EnvSpec, net: NetSpec) -> None:
        check_pixels("drq_sac", spec, net)

    def critics(self, blueprint: NetSpec) -> nn.Module:
        count, spec = self.settings.critics, self.spec
        return PixelCritics(count, spec.seen_shape, spec.action_dim, self.value.bins, cast(DrQNet, blueprint))

    def policy(self, blueprint: NetSpec) -> nn.Module:
        own, critics = cast(DrQNet, blueprint), cast(DrQNet, self.critic.spec)
        behind = GaussianActor(own.bottleneck, self.spec.action_dim, own)
        return PixelActor(critics, behind, self.spec.seen_shape, own)

    # learning

    def noise(self, batch_size: int) -> dict[str, Noise]:
        return super().noise(batch_size) | self.settings.augment.noise(batch_size)

    def critic_loss(self, params: Tensors, s: States, b: Batch, noise: Tensors) -> Outcome:
        return super().critic_loss(params, s, self.settings.augment(b, noise), noise)

    def actor_loss(self, params: Tensors, s: States, b: Batch, noise: Tensors) -> Outcome:
        b = self.settings.augment(b, noise)
        encoded, _ = self.critic(weights(s["critic"]), b["obs"])  # once, for the actor and for its critics
        return super().actor_loss(params, s, b | {"obs": encoded}, noise)

    def update_critic(self, s: States, b: Batch, noise: Tensors) -> tuple[States, Outcome]:
        s, outcome = super().update_critic(s, b, noise)
        return shared(s), outcome

    def tied(self, s: States, newborn: bool) -> States:
        return shared(s, newborn)


def check_pixels(agent: str, spec: EnvSpec, net: NetSpec) -> None:
    """Raises ValueError if an agent from pixels cannot live there, or not with this network."""
    if spec.is_discrete:
        raise ValueError(f"agent={agent} needs continuous actions; env={spec.name} has not; use agent=dqn")
    if not spec.is_image:
        raise ValueError(f"agent={agent} needs frames; env={spec.name} shows vectors; use env.pixels=84, or agent=sac")
    if not isinstance(net, DrQNet):
        raise ValueError(f"net: agent={agent} has an encoder that actor and critics share; use net=drq")


def shared(s: States, newborn: bool = False) -> States:
    """The actor carries the critics' encoder as it is now; those of newborn slow copies begin as it, too."""
    encoder = {k: value for k, value in weights(s["critic"]).items() if k.startswith(ENCODER)}
    actor = s["actor"]
    copies = {role: copy | encoder for role, copy in actor.copies.items()} if newborn else actor.copies
    return s | {"actor": actor._replace(buffers=actor.buffers | encoder, copies=copies)}
