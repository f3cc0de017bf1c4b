"""How close a document's layers are to the true ones: the layer-wise edit metric of LayerD (arXiv 2509.25134).

Documents rarely agree on how many layers there are. Layers are therefore aligned in order, by dynamic time warping,
and the figures are given for 0, 1 ... merges of neighbouring layers, as an editor would merge them before going on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from .compositing import widen
from .layers import check_float_tensor, check_range

_FEWEST = 2  # a document of so few layers is not merged further


@dataclass(frozen=True, kw_only=True)
class StackDistance:
    """The means over aligned pairs of layers after a number of merges.

    Attributes:
        edits: merges so far; in a mean over documents what they needed on average.
        rgb_l1: mean |RGB - RGB'| in [0, 1] where the true layer's alpha is above 0; lower is better.
        alpha_iou: soft IOU of the alphas in [0, 1]; higher is better.
    """

    edits: float
    rgb_l1: float
    alpha_iou: float


def stack_distance(
    prediction: Sequence[Tensor], target: Sequence[Tensor], *, max_edits: int = 5
) -> list[StackDistance]:
    """LayerD's figures for one document.

    In either document, layers that nothing covers are first joined to one, then those that only the joined ones cover,
    and so on: the order of layers that do not touch is not judged. Each edit is the merge, in either document, that
    gains most, judged by the mean of rgb_l1 and 1 - alpha_iou; all is aligned anew after it.

    Args:
        prediction: layers on the whole canvas, bottom first, each (4, H, W) in [0, 1], straight alpha. One of a
            `LayerStack` is placed on its canvas by `compose_stack` of it alone.
        target: the true layers, of the same size; as many or not.
        max_edits: merges at most.

    Returns:
        One entry for each number of edits from 0; fewer than max_edits + 1 once no merge gains anything.

    Raises:
        ValueError: no layer, layers of other shapes or values, or max_edits below 0.
    """
    if max_edits < 0:
        raise ValueError(f"max_edits must be at least 0, got {max_edits}")
    _check("prediction", prediction, target)
    _check("target", target, target)
    predicted, true = _joined(prediction), _joined(target)
    found: list[StackDistance] = []
    while True:
        fits = [[_fit(layer, reference) for reference in true] for layer in predicted]
        path = _aligned([[fit.cost for fit in row] for row in fits])
        pairs = [fits[i][j] for i, j in path]
        found.append(
            StackDistance(
                edits=len(found),
                rgb_l1=sum(pair.rgb_l1 for pair in pairs) / len(pairs),
                alpha_iou=sum(pair.alpha_iou for pair in pairs) / len(pairs),
            )
        )
        if len(found) > max_edits:
            return found
        gain, position = _best_merge(predicted, _partners(path, true))
        true_gain, true_position = _best_merge(true, _partners([(j, i) for i, j in path], predicted))
        if max(gain, true_gain) <= 0:
            return found
        if gain > true_gain:
            predicted = _merged(predicted, position)
        else:
            true = _merged(true, true_position)


def mean_stack_distance(documents: Sequence[Sequence[StackDistance]]) -> list[StackDistance]:
    """The means of `stack_distance` over documents, as LayerD prints them: one that needs fewer edits keeps its last.

    Raises:
        ValueError: no document.
    """
    if not documents:
        raise ValueError("documents must be at least 1, got 0")
    means: list[StackDistance] = []
    for edits in range(max(len(each) for each in documents)):
        entries = [each[min(edits, len(each) - 1)] for each in documents]
        means.append(
            StackDistance(
                edits=sum(entry.edits for entry in entries) / len(entries),
                rgb_l1=sum(entry.rgb_l1 for entry in entries) / len(entries),
                alpha_iou=sum(entry.alpha_iou for entry in entries) / len(entries),
            )
        )
    return means


class _Fit(NamedTuple):
    rgb_l1: float
    alpha_iou: float

    @property
    def cost(self) -> float:
        return (self.rgb_l1 + 1 - self.alpha_iou) / 2


def _fit(layer: Tensor, reference: Tensor) -> _Fit:
    """Two empty alphas have IOU 0, as in LayerD."""
    shown = reference[3] > 0
    difference = (layer[:3] - reference[:3]).abs().mean(dim=0)
    rgb_l1 = torch.where(shown, difference, 0).sum() / shown.sum().clamp_min(1)
    union = torch.maximum(layer[3], reference[3]).sum()
    overlap = torch.minimum(layer[3], reference[3]).sum()
    return _Fit(float(rgb_l1), float(torch.where(union > 0, overlap / union, 0)))


def _aligned(costs: list[list[float]]) -> list[tuple[int, int]]:
    """The cheapest path from the first pair to the last; each step goes on in one document or in both."""
    total: dict[tuple[int, int], float] = {}
    origin: dict[tuple[int, int], tuple[int, int]] = {}
    for i, row in enumerate(costs):
        for j, cost in enumerate(row):
            before = [pair for pair in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if pair in total]
            total[i, j] = cost
            if before:
                origin[i, j] = min(before, key=total.__getitem__)
                total[i, j] += total[origin[i, j]]
    path = [(len(costs) - 1, len(costs[0]) - 1)]
    while path[-1] in origin:
        path.append(origin[path[-1]])
    return path[::-1]


def _partners(path: list[tuple[int, int]], others: list[Tensor]) -> list[list[Tensor]]:
    """For each layer of a path's first document those of the other that it is aligned with."""
    return [[others[j] for i, j in path if i == layer] for layer in range(path[-1][0] + 1)]


def _best_merge(layers: list[Tensor], partners: list[list[Tensor]]) -> tuple[float, int]:
    """The most that a merge gains, and the lower of the two layers; (0, 0) where no merge is allowed."""
    if len(layers) <= _FEWEST:
        return 0.0, 0
    gains = [_merge_gain(layers, partners, lower) for lower in range(len(layers) - 1)]
    best = max(gains)
    return best, gains.index(best)


def _merge_gain(layers: list[Tensor], partners: list[list[Tensor]], lower: int) -> float:
    """How much closer partners get when the merged layer takes the first's, and it or the next layer one of both's."""
    first, second = partners[lower], partners[lower + 1]
    merged = _over(layers[lower], layers[lower + 1])
    options = [_closeness(merged, second)]
    options += [_closeness(layer, group) for layer in layers[lower + 2 : lower + 3] for group in (first, second)]
    before = _closeness(layers[lower], first) + _closeness(layers[lower + 1], second)
    return _closeness(merged, first) + max(options) - before


def _closeness(layer: Tensor, references: list[Tensor]) -> float:
    return sum(1 - _fit(layer, reference).cost for reference in references)


def _merged(layers: list[Tensor], lower: int) -> list[Tensor]:
    return [*layers[:lower], _over(layers[lower], layers[lower + 1]), *layers[lower + 2 :]]


def _joined(layers: Sequence[Tensor]) -> list[Tensor]:
    """Layers of which each touches the one above: those that nothing left covers joined to one, again and again."""
    left, groups = [widen(layer) for layer in layers], list[Tensor]()
    while left:
        covered = torch.zeros_like(left[0][3], dtype=torch.bool)
        top: list[Tensor] = []
        rest: list[Tensor] = []
        for layer in reversed(left):
            shape = layer[3] > 0
            (rest if bool((shape & covered).any()) else top).insert(0, layer)
            covered |= shape
        groups.insert(0, reduce(_over, top))
        left = rest
    return groups


def _over(below: Tensor, above: Tensor) -> Tensor:
    """Source-over of straight RGBA (4, H, W); colour stays where the upper layer's alpha is 0."""
    alpha = above[3:] + below[3:] * (1 - above[3:])
    weight = torch.where(above[3:] > 0, above[3:] / torch.where(alpha > 0, alpha, 1), 0)
    return torch.cat([torch.lerp(below[:3], above[:3], weight), alpha])


def _check(name: str, layers: Sequence[Tensor], target: Sequence[Tensor]) -> None:
    if not layers or not target:
        raise ValueError("prediction and target must have at least 1 layer each, got 0")
    for layer in layers:
        check_float_tensor(name, layer)
        if layer.ndim != 3 or layer.shape[0] != 4 or layer.shape != target[0].shape:
            raise ValueError(
                f"every layer must have shape (4, H, W) and the size of target's first {tuple(target[0].shape)}, "
                f"got {tuple(layer.shape)} in {name}"
            )
        check_range(name, layer)
