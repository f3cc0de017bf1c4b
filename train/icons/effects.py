"""Soft edges made on purpose, each with exact colour and alpha: all on premultiplied RGBA."""

from __future__ import annotations

from collections.abc import Callable

import torch
from kornia.filters import gaussian_blur2d, motion_blur
from torch import Tensor
from torch.nn import functional


def _blurred(sprite: Tensor, sigma: Tensor, most: float) -> Tensor:
    """Gaussian blur; sigma (n,) in pixels, at most `most`."""
    kernel = 2 * int(3 * most + 0.5) + 1
    return gaussian_blur2d(sprite, (kernel, kernel), sigma.view(-1, 1).expand(-1, 2), "constant")


def out_of_focus(sprite: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Blur with sigma 1 to 2.5 % of the picture's height."""
    height = sprite.shape[-2]
    return _blurred(sprite, height * (0.010 + 0.015 * strength), height * 0.025)


def moving(sprite: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Blur along a line within 30 degrees of the horizontal, 11 % of the picture long."""
    kernel = 2 * max(1, int(sprite.shape[-2] * 0.055)) + 1
    return motion_blur(sprite, kernel, strength * 60 - 30, torch.zeros_like(strength), "constant")


def glass(sprite: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Opacity 30 to 80 %, the colour a third towards pale blue."""
    colour, alpha = sprite[:, :3], sprite[:, 3:]
    tint = torch.tensor([0.80, 0.92, 1.0], device=sprite.device).view(1, 3, 1, 1)
    opacity = (0.3 + 0.5 * strength).view(-1, 1, 1, 1)
    return torch.cat([torch.lerp(colour, tint * alpha, 0.35), alpha], 1) * opacity


def glow(sprite: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """A warm halo around the thing, fading over about 6 % of the picture's height."""
    height = sprite.shape[-2]
    alpha = sprite[:, 3:]
    spread = _blurred(alpha, height * (0.035 + 0.025 * strength), height * 0.06)
    halo = (1.5 * spread).clamp(0, 0.85) * (1 - alpha)
    warm = torch.tensor([1.0, 0.93, 0.62], device=sprite.device).view(1, 3, 1, 1)
    return torch.cat([sprite[:, :3] + warm * halo, alpha + halo], 1)


def mist(sprite: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Patches of mist in front, thicker towards the foot: alpha falls to between 90 and 15 %."""
    rows = torch.linspace(0, 1, sprite.shape[-2], device=sprite.device).view(1, 1, -1, 1)
    thick = (0.25 + 0.35 * strength.view(-1, 1, 1, 1) + 0.3 * torch.tanh(noise) + 0.35 * rows - 0.15).clamp(0.1, 0.85)
    return sprite * (1 - thick)


def fur(sprite: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """The rim frayed by a fine displacement of up to about 3 % of the picture."""
    count, _, height, width = sprite.shape
    identity = torch.eye(2, 3, device=sprite.device).expand(count, -1, -1)
    grid = functional.affine_grid(identity, [count, 1, height, width], align_corners=False)
    fine = functional.interpolate(noise[..., ::2, ::2], size=(height, width), mode="nearest") - noise
    shift = torch.cat([fine, noise.roll(height // 3, 2) - noise.roll(height // 5, 3)], 1).permute(0, 2, 3, 1)
    amount = (0.010 + 0.014 * strength).view(-1, 1, 1, 1)
    return functional.grid_sample(sprite, grid + amount * shift, align_corners=False)


EFFECT_FUNCTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "out of focus": out_of_focus, "motion blur": moving, "glass": glass, "glow": glow, "mist": mist, "fur": fur,
}


def apply_effect(name: str, sprite: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Applies one effect to n things.

    Args:
        name: a key of EFFECT_FUNCTIONS.
        sprite: (n, 4, H, W) premultiplied RGBA in [0, 1].
        strength: (n,) in [0, 1].
        noise: (n, 1, H, W), about standard normal; coarse for mist, fine for fur.

    Returns:
        (n, 4, H, W) premultiplied RGBA in [0, 1].
    """
    return EFFECT_FUNCTIONS[name](sprite, strength, noise).clamp(0, 1)
