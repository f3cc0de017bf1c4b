"""The errors that matting papers print, per matte: Rhemann et al. 2009, "A Perceptually Motivated Online Benchmark".

Mattes are (N, 1, H, W) in [0, 1]; each error is (N,) in float32 or better, over the whole matte or, as matting from
trimaps is judged, over its unknown region. SAD is `metrics.sad`; papers print thousands of it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from .compositing import widen
from .masks import component_areas, connected_components

_SIGMA = 1.4
_KERNEL_CUT = 0.01  # the authors' script leaves out where the Gaussian is below
_STEPS = 10
_THETA = 0.15
_UNIT = 1000


def mse(prediction: Tensor, target: Tensor, unknown: Tensor | None = None) -> Tensor:
    """Mean squared error, (N, 1, H, W) -> (N,); papers print it as it is or times 1000.

    Args:
        prediction: (N, 1, H, W) in [0, 1].
        target: the true matte, of that shape.
        unknown: (N, 1, H, W) bool, where errors count; None for everywhere. Nowhere gives NaN.

    Raises:
        ValueError: the shapes differ or are not those of mattes.
    """
    _check(prediction, target, unknown)
    error = _within((widen(prediction) - widen(target)).square(), unknown)
    count = error[0].numel() if unknown is None else unknown.sum(dim=(1, 2, 3))
    return error.sum(dim=(1, 2, 3)) / count


def gradient_error(prediction: Tensor, target: Tensor, unknown: Tensor | None = None) -> Tensor:
    """Sum of squared differences of the gradients' lengths, in thousands, (N, 1, H, W) -> (N,).

    Gradients are those of a Gaussian of 1.4 pixels, with kernels of L2 norm 1 and borders continued, as in the
    authors' script. It stretches either matte to [0, 1] first; we do not, which is the same where both reach 0 and 1.

    Args:
        prediction: (N, 1, H, W) in [0, 1].
        target: the true matte, of that shape.
        unknown: (N, 1, H, W) bool, where errors count; None for everywhere.

    Raises:
        ValueError: the shapes differ or are not those of mattes.
    """
    _check(prediction, target, unknown)
    error = (_gradient(widen(prediction)) - _gradient(widen(target))).square()
    return _within(error, unknown).sum(dim=(1, 2, 3)) / _UNIT


def connectivity_error(prediction: Tensor, target: Tensor, unknown: Tensor | None = None) -> Tensor:
    """Sum of differences in how far pixels are connected to the matte's body, in thousands, (N, 1, H, W) -> (N,).

    The body at a level is the largest 4-connected part where both mattes reach the level; a pixel's own level l is the
    last of 0, 0.1 ... 1 before it leaves the body. A matte's degree of connection is 1 - d where d = m - l is at
    least 0.15, else 1.

    Args:
        prediction: (N, 1, H, W) in [0, 1].
        target: the true matte, of that shape.
        unknown: (N, 1, H, W) bool, where errors count; None for everywhere.

    Raises:
        ValueError: the shapes differ or are not those of mattes.
    """
    _check(prediction, target, unknown)
    prediction, target = widen(prediction), widen(target)
    connected = torch.ones_like(target, dtype=torch.bool)
    levels = torch.zeros_like(target)
    common = torch.minimum(prediction, target)
    for step in range(1, _STEPS + 1):
        connected = connected & _largest_part(common >= step / _STEPS)
        levels[connected] = step / _STEPS
    error = (_degree(prediction - levels) - _degree(target - levels)).abs()
    return _within(error, unknown).sum(dim=(1, 2, 3)) / _UNIT


def _gradient(matte: Tensor) -> Tensor:
    """Length of the gradient of (N, 1, H, W)."""
    reach = math.ceil(_SIGMA * math.sqrt(-2 * math.log(math.sqrt(2 * math.pi) * _SIGMA * _KERNEL_CUT)))
    offsets = torch.arange(-reach, reach + 1, dtype=matte.dtype, device=matte.device)
    smooth = (-(offsets / _SIGMA).square() / 2).exp()
    smooth, slope = functional.normalize(smooth, dim=0), functional.normalize(offsets * smooth, dim=0)
    padded = functional.pad(matte, (reach, reach, reach, reach), mode="replicate")
    right = functional.conv2d(padded, torch.outer(smooth, slope)[None, None])
    down = functional.conv2d(padded, torch.outer(slope, smooth)[None, None])
    return torch.hypot(right, down)


def _largest_part(shape: Tensor) -> Tensor:
    """The largest part of each shape (N, 1, H, W) bool; of several the first in reading order."""
    labels = connected_components(shape, diagonal=False)
    first = component_areas(labels).flatten(1).argmax(dim=1, keepdim=True)
    return shape & (labels == labels.flatten(1).gather(1, first).view(-1, 1, 1, 1))


def _degree(difference: Tensor) -> Tensor:
    return 1 - torch.where(difference >= _THETA, difference, 0)


def _within(error: Tensor, unknown: Tensor | None) -> Tensor:
    return error if unknown is None else torch.where(unknown, error, 0)


def _check(prediction: Tensor, target: Tensor, unknown: Tensor | None) -> None:
    for name, value in (("target", target), ("unknown", unknown)):
        if value is not None and value.shape != prediction.shape:
            raise ValueError(
                f"{name} must have shape {tuple(prediction.shape)} to match prediction, got {tuple(value.shape)}"
            )
    if unknown is not None and unknown.dtype != torch.bool:
        raise ValueError(f"unknown must be bool, got {unknown.dtype}")
    if prediction.ndim != 4 or prediction.shape[1] != 1:
        raise ValueError(f"mattes must have shape (N, 1, H, W), got {tuple(prediction.shape)}")
