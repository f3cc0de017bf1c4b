"""Layers judged: the numbers of `metrics` with their names, and a picture for the eye."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from .compositing import blend, check_mask_shape, compose
from .layers import TwoLayerImage
from .metrics import consistency_psnr, fringe, ghost, mask_statistics, masked_psnr

_GREYS = (0.63, 0.82)
_CELLS = 16


def layer_figures(
    image: TwoLayerImage, *, predicted_composed: Tensor | None = None, true_background: Tensor | None = None
) -> list[dict[str, float | None]]:
    """The figures of each picture; what cannot be said is None.

    Args:
        image: the layers.
        predicted_composed: (N, 3, H, W), the model's own picture, for `consistency_psnr`.
        true_background: (N, 3, H, W), for `hidden_psnr`: the background's PSNR under the mask.

    Returns:
        One dict per picture: area (share), softness (share), components, fringe (in 1/255), ghost (1 is no trace),
        consistency_psnr and hidden_psnr (dB, None if not asked for; infinite for equal pictures).

    Raises:
        ValueError: a picture has another shape.
    """
    statistics = mask_statistics(image.mask)
    columns: dict[str, Tensor | None] = {
        "area": statistics.area, "softness": statistics.softness, "components": statistics.components,
        "fringe": fringe(image.foreground, image.mask), "ghost": ghost(image.background, image.mask),
        "consistency_psnr": None, "hidden_psnr": None,
    }
    if predicted_composed is not None:
        columns["consistency_psnr"] = consistency_psnr(predicted_composed, compose(image))
    if true_background is not None:
        columns["hidden_psnr"] = masked_psnr(image.background, true_background, image.mask)
    return [{name: None if column is None else _number(column[index]) for name, column in columns.items()}
            for index in range(len(image))]


def format_figures(figures: list[dict[str, float | None]]) -> str:
    """The figures as text, one picture a line."""
    return "\n".join(", ".join(f"{name} {value:.4g}" for name, value in row.items() if value is not None)
                     for row in figures)


def layer_thumbnails(image: TwoLayerImage, side: int = 256) -> Tensor:
    """Composed, foreground on a checkerboard, background and mask side by side, (N, 3, h, 4 w), at most `side` pixels.

    Raises:
        ValueError: a side below 1.
    """
    if side < 1:
        raise ValueError(f"side must be at least 1 pixel, got {side}")
    panels = [compose(image), on_checkerboard(image.foreground, image.mask), image.background,
              image.mask.expand(-1, 3, -1, -1)]
    scale = min(1.0, side / max(image.height, image.width))
    size = (max(1, round(image.height * scale)), max(1, round(image.width * scale)))
    if size != (image.height, image.width):
        panels = [functional.interpolate(panel, size=size, mode="bilinear", antialias=True) for panel in panels]
    return torch.cat(panels, dim=3).clamp(0, 1)


def on_checkerboard(foreground: Tensor, mask: Tensor) -> Tensor:
    """The foreground over a grey checkerboard of 16 cells along the shorter side, (N, 3, H, W).

    Raises:
        ValueError: the shapes do not belong together.
    """
    check_mask_shape(mask, foreground)
    height, width = mask.shape[-2:]
    cell = max(1, math.ceil(min(height, width) / _CELLS))
    rows = torch.arange(height, device=mask.device)[:, None] // cell
    columns = torch.arange(width, device=mask.device) // cell
    board = torch.where((rows + columns) % 2 == 0, _GREYS[0], _GREYS[1]).to(foreground.dtype)
    return blend(foreground, board.expand_as(foreground), mask)


def _number(value: Tensor) -> float | None:
    number = float(value)
    return None if math.isnan(number) else number
