"""How well a map says where the salient thing is: MAE, S-, E- and F-measure, the figures of salient object detection.

They follow pysodmetrics, which today's papers use. A map is brought to 8 bit and then stretched to its own range; the
truth is the thing where its 8-bit value is above 128. All figures are computed in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .masks import check_mask

_BETA_SQUARED = 0.3
_OBJECT_SHARE = 0.5
_LEVELS = 256
_TINY = torch.finfo(torch.double).eps


@dataclass(frozen=True, eq=False, kw_only=True)
class ThresholdedMeasure:
    """A measure of maps that are cut into thing and rest.

    Attributes:
        adaptive: (N,), cut at twice the map's mean, at most 1.
        curve: (N, 256), cut at 255 / 255, 254 / 255 ... 0.
    """

    adaptive: Tensor
    curve: Tensor

    @property
    def mean(self) -> Tensor:
        """(N,), the mean over the thresholds."""
        return self.curve.mean(dim=1)

    @property
    def maximum(self) -> Tensor:
        """Of all maps: the mean curve's greatest value, one threshold for all of them, as papers print it."""
        return self.curve.mean(dim=0).amax()


def saliency_mae(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error (Perazzi et al. 2012), (N, 1, H, W) twice -> (N,).

    Raises:
        ValueError: not two batches of masks of one shape.
    """
    prediction, thing = _prepared(prediction, target)
    return (prediction - thing.double()).abs().mean(dim=1)


def s_measure(prediction: Tensor, target: Tensor) -> Tensor:
    """Structure measure (Fan et al. 2017), alpha = 0.5: likeness of thing and rest, and of four quarters.

    The quarters meet at the true thing's centre of mass; one without pixels does not count (pysodmetrics prints NaN).

    Args:
        prediction: (N, 1, H, W) in [0, 1].
        target: (N, 1, H, W) in [0, 1].

    Returns:
        (N,), at least 0, 1 for equal hard masks.

    Raises:
        ValueError: not two batches of masks of one shape.
    """
    maps, things = (value.view(target.shape[0], *target.shape[2:]) for value in _prepared(prediction, target))
    return torch.stack([_structure(each, thing) for each, thing in zip(maps, things, strict=True)])


def e_measure(prediction: Tensor, target: Tensor) -> ThresholdedMeasure:
    """Enhanced alignment measure (Fan et al. 2018).

    Args:
        prediction: (N, 1, H, W) in [0, 1].
        target: (N, 1, H, W) in [0, 1].

    Raises:
        ValueError: not two batches of masks of one shape.
    """
    return _thresholded(_alignment, *_prepared(prediction, target))


def f_measure(prediction: Tensor, target: Tensor) -> ThresholdedMeasure:
    """Weighted harmonic mean of precision and recall, beta^2 = 0.3 (Achanta et al. 2009).

    Args:
        prediction: (N, 1, H, W) in [0, 1].
        target: (N, 1, H, W) in [0, 1].

    Raises:
        ValueError: not two batches of masks of one shape.
    """
    return _thresholded(_harmonic, *_prepared(prediction, target))


def _structure(prediction: Tensor, thing: Tensor) -> Tensor:
    share = thing.double().mean()
    if share == 0:
        return 1 - prediction.mean()
    if share == 1:
        return prediction.mean()
    likeness = share * _object_score(prediction[thing]) + (1 - share) * _object_score(1 - prediction[~thing])
    quarters = _quarter_score(prediction, thing)
    return (_OBJECT_SHARE * likeness + (1 - _OBJECT_SHARE) * quarters).clamp_min(0)


def _object_score(values: Tensor) -> Tensor:
    mean = values.mean()
    deviation = values.std() if values.numel() > 1 else 0
    return 2 * mean / (mean.square() + 1 + deviation + _TINY)


def _quarter_score(prediction: Tensor, thing: Tensor) -> Tensor:
    """Structural similarity of the four quarters, weighted by their pixels."""
    height, width = thing.shape
    row, column = (int(each) + 1 for each in thing.nonzero().double().mean(dim=0).round())
    score = prediction.new_zeros(())
    for rows in (slice(None, row), slice(row, height)):
        for columns in (slice(None, column), slice(column, width)):
            quarter = thing[rows, columns].double()
            if quarter.numel():
                score += quarter.numel() / thing.numel() * _similarity(prediction[rows, columns], quarter)
    return score


def _similarity(prediction: Tensor, target: Tensor) -> Tensor:
    """The structural similarity of two pictures (H, W) as one window, 1 where both are flat and one is black."""
    first, second = prediction - prediction.mean(), target - target.mean()
    less_one = target.numel() - 1 + _TINY
    common = 4 * prediction.mean() * target.mean() * (first * second).sum() / less_one
    most = prediction.mean().square() + target.mean().square()
    most = most * (first.square().sum() + second.square().sum()) / less_one
    return torch.where((common == 0) & (most == 0), 1.0, common / (most + _TINY))


def _thresholded(
    measure: Callable[[Tensor, Tensor, Tensor, int], Tensor], prediction: Tensor, thing: Tensor
) -> ThresholdedMeasure:
    """A measure of the counts (N, thresholds): pixels that are shown and thing, are shown, are thing, and are."""
    things = _count(thing)
    cut = prediction >= (2 * prediction.mean(dim=1, keepdim=True)).clamp_max(1)
    adaptive = measure(_count(cut & thing), _count(cut), things, thing.shape[1])
    hits, shown = _counts(prediction, thing), _counts(prediction, torch.ones_like(thing))
    return ThresholdedMeasure(adaptive=adaptive[:, 0], curve=measure(hits, shown, things, thing.shape[1]))


def _count(among: Tensor) -> Tensor:
    return among.sum(dim=1, keepdim=True, dtype=torch.double)


def _counts(prediction: Tensor, among: Tensor) -> Tensor:
    """How many pixels reach each of the 256 levels, the highest first, (N, 256) double."""
    counts = prediction.new_zeros(prediction.shape[0], _LEVELS)
    counts.scatter_add_(1, ((_LEVELS - 1) * prediction).long(), among.to(counts.dtype))
    return counts.flip(1).cumsum(dim=1)


def _harmonic(hits: Tensor, shown: Tensor, things: Tensor, _: int) -> Tensor:
    return (1 + _BETA_SQUARED) * hits / (_BETA_SQUARED * things + shown).clamp_min(_TINY)


def _alignment(hits: Tensor, shown: Tensor, things: Tensor, pixels: int) -> Tensor:
    shown_share, thing_share = shown / pixels, things / pixels
    total = torch.zeros_like(shown_share)
    for count, here, there in (
        (hits, 1 - shown_share, 1 - thing_share),
        (shown - hits, 1 - shown_share, -thing_share),
        (things - hits, -shown_share, 1 - thing_share),
        (pixels - shown - things + hits, -shown_share, -thing_share),
    ):
        aligned = 2 * here * there / (here.square() + there.square() + _TINY)
        total += count * (aligned + 1).square() / 4
    total = torch.where(things == 0, pixels - shown, torch.where(things == pixels, shown, total))
    return total / (pixels - 1 + _TINY)


def _prepared(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The map in [0, 1] in float64 and where the thing is, bool, both (N, H * W)."""
    check_mask(prediction)
    check_mask(target)
    if prediction.shape != target.shape:
        raise ValueError(f"prediction must have target's shape {tuple(target.shape)}, got {tuple(prediction.shape)}")
    level = (255 * prediction.double()).round().flatten(1) / 255
    low, high = level.amin(dim=1, keepdim=True), level.amax(dim=1, keepdim=True)
    stretched = torch.where(high > low, (level - low) / (high - low).clamp_min(_TINY), level)
    return stretched, (255 * target.double()).round().flatten(1) > 128
