"""Augmentation of images and stacked frames: a random shift, a random mirror image, a random brightness.

    shift        edge-replicate `shift` pixels on each side, then crop the old size at a random place
    flip         mirror left to right, every second time
    intensity    frames (1 + intensity clip(N(0, 1), -2, 2))

One draw per stack of frames: what moves, moves together. Source: DrQ (Kostrikov et al. 2021, section 3.1) for the
shift; SPR and the Atari agents for the brightness, as in BBF's `drq_image_aug` (verified: pad 4, scale 0.05). Where
sources differ: crops start at 0..2 shift inclusive, as kornia has it; BBF's code never draws the last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.options import option
from core.randomness import Noise
from core.state import Batch, Tensors

SEEN = ("obs", "next_obs")  # what agents augment


@dataclass(frozen=True)
class Augmentation:
    """What happens to the frames of a batch before the loss sees them; nothing by default."""

    shift: int = option(0, low=0, help="pixels a stack of frames may move in each direction; 4 as published")
    intensity: float = option(0.0, low=0, help="deviation of a stack's brightness; 0.05 as published on Atari")
    flip: bool = option(False, help="every second image is mirrored, left to right; for labelled images")

    def __bool__(self) -> bool:
        return bool(self.shift or self.intensity or self.flip)

    def check(self, env: str, is_image: bool, agent: bool = True) -> None:
        """Raises ValueError where there is nothing to augment, or it would change what an action means."""
        if self and not is_image:
            chosen = " ".join(f"agent.augment.{name}" for name, value in vars(self).items() if value)
            raise ValueError(f"agent.augment: {env} shows vectors, not frames; leave out {chosen}")
        if self.flip and agent:
            raise ValueError("agent.augment.flip: actions of a mirrored frame would be others; leave it out")

    def noise(self, batch_size: int, seen: Sequence[str] = SEEN) -> dict[str, Noise]:
        """Random numbers one update takes; `seen`: what of the batch is augmented, each with a draw of its own."""
        drawn = {}
        for name in seen:
            if self.shift:
                drawn[f"shift/{name}"] = Noise("uniform", (batch_size, 2))
            if self.intensity:
                drawn[f"intensity/{name}"] = Noise("normal", (batch_size,))
            if self.flip:
                drawn[f"flip/{name}"] = Noise("uniform", (batch_size,))
        return drawn

    def __call__(self, batch: Batch, noise: Tensors, seen: Sequence[str] = SEEN) -> Batch:
        """The batch with other frames: uint8 [B, stack, H, W], or float32 in the same units where brightness varies."""
        changed = {}
        for name in seen if self else ():
            frames = batch[name]
            if self.shift:
                frames = shifted(frames, noise[f"shift/{name}"], self.shift)
            if self.flip:
                frames = torch.where(noise[f"flip/{name}"][:, None, None, None] < 0.5, frames, frames.flip(-1))
            if self.intensity:
                factor = 1 + self.intensity * noise[f"intensity/{name}"].clamp(-2, 2)
                frames = frames * factor[:, None, None, None]
            changed[name] = frames
        return batch | changed


def shifted(frames: Tensor, fraction: Tensor, pixels: int) -> Tensor:
    """Each stack moved by up to so many pixels, its edges repeated. [B, C, H, W], fraction [B, 2] -> [B, C, H, W].

    The fraction, in (0, 1), chooses among 2 pixels + 1 places of the crop, rows first; pixels are copied, never mixed.
    """
    count, channels, height, width = frames.shape
    place = (fraction * (2 * pixels + 1)).long()
    device = frames.device
    rows = (torch.arange(height, device=device) + place[:, :1] - pixels).clamp(0, height - 1)
    left, right = (frames[..., edge, None].expand(count, channels, height, pixels) for edge in (0, -1))
    crops = torch.cat([left, frames, right], -1).unfold(-1, width, 1)  # a view: [B, C, H, places, W]
    sample = torch.arange(count, device=device)[:, None, None]
    channel = torch.arange(channels, device=device)[:, None]
    return crops[sample, channel, rows[:, None], place[:, 1, None, None]]  # whole rows are copied
