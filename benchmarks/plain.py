"""SAC and DQN as a single file of plain PyTorch writes them: modules, torch.optim.Adam, one loop per target network.

What most of the field runs, in the manner of CleanRL (nothing of it is copied), and the peer that is always there.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim

from core.state import Batch


def dense(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_in, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, n_out))


def sac_update(batch: Batch) -> Callable[[], None]:
    """batch: leaves [B, ...]."""
    obs, act = batch["obs"].shape[-1], batch["action"].shape[-1]
    actor, critics = dense(obs, 2 * act), [dense(obs + act, 1) for _ in range(2)]
    targets = [copy.deepcopy(critic) for critic in critics]
    log_alpha = torch.zeros(1, requires_grad=True)
    critic_optimizer = optim.Adam([p for critic in critics for p in critic.parameters()], lr=3e-4)
    actor_optimizer, alpha_optimizer = optim.Adam(actor.parameters(), lr=3e-4), optim.Adam([log_alpha], lr=3e-4)

    def sample(seen: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = actor(seen).chunk(2, -1)
        log_std = -5 + 3.5 * (1 + torch.tanh(log_std))
        normal = torch.distributions.Normal(mean, log_std.exp())
        u = normal.rsample()
        log_prob = normal.log_prob(u) - 2 * (math.log(2) - u - F.softplus(-2 * u))
        return torch.tanh(u), log_prob.sum(-1)

    def update() -> None:
        alpha = log_alpha.exp().item()
        with torch.no_grad():
            action, log_prob = sample(batch["next_obs"])
            x = torch.cat([batch["next_obs"], action], 1)
            worst = torch.min(*[target(x).squeeze(-1) for target in targets])
            y = batch["reward"] + batch["discount"] * (worst - alpha * log_prob)
        x = torch.cat([batch["obs"], batch["action"]], 1)
        loss = sum(F.mse_loss(critic(x).squeeze(-1), y) for critic in critics)
        critic_optimizer.zero_grad()
        loss.backward()
        critic_optimizer.step()

        action, log_prob = sample(batch["obs"])
        x = torch.cat([batch["obs"], action], 1)
        loss = (alpha * log_prob - torch.min(*[critic(x).squeeze(-1) for critic in critics])).mean()
        actor_optimizer.zero_grad()
        loss.backward()
        actor_optimizer.step()

        with torch.no_grad():
            _, log_prob = sample(batch["obs"])
        loss = (-log_alpha.exp() * (log_prob - act)).mean()
        alpha_optimizer.zero_grad()
        loss.backward()
        alpha_optimizer.step()
        for critic, target in zip(critics, targets, strict=True):
            polyak(critic, target, 0.005)

    return update


def dqn_update(batch: Batch) -> Callable[[], None]:
    """Double DQN with the Nature network. batch: leaves [B, ...]."""
    net = nn.Sequential(
        *(nn.Conv2d(4, 32, 8, stride=4), nn.ReLU(), nn.Conv2d(32, 64, 4, stride=2), nn.ReLU()),
        *(nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 6)),
    )
    target = copy.deepcopy(net)
    optimizer = optim.Adam(net.parameters(), lr=1e-4)

    def update() -> None:
        with torch.no_grad():
            seen = batch["next_obs"].float() / 255
            best = net(seen).argmax(1, keepdim=True)
            y = batch["reward"] + batch["discount"] * target(seen).gather(1, best).squeeze(1)
        q = net(batch["obs"].float() / 255).gather(1, batch["action"][:, None]).squeeze(1)
        loss = F.smooth_l1_loss(q, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        polyak(net, target, 0.005)

    return update


def polyak(net: nn.Module, target: nn.Module, tau: float) -> None:
    for p, t in zip(net.parameters(), target.parameters(), strict=True):
        t.data.copy_(tau * p.data + (1 - tau) * t.data)
