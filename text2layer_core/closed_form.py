"""Closed-form matting (Levin, Lischinski and Weiss 2008), solved for the unknown pixels alone."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_EPSILON = 1e-7  # the paper's and PyMatting's, for colours in [0, 1]
_TOLERANCE = 3e-4
_MOST_ITERATIONS = 400
_WINDOW = 9


def solve_alpha(picture: Tensor, mask: Tensor, unknown: Tensor) -> Tensor:
    """The alpha that minimises a^T L a (eq. 13) with the known pixels fixed to 0 or 1.

    Fixed for good, where the paper penalises; sought by conjugate gradients from the given mask on.

    Args:
        picture: (N, 3, H, W) in [0, 1], float32.
        mask: (N, 1, H, W) in [0, 1], float32: rounded, what is known; as it is, where the search starts.
        unknown: (N, 1, H, W), bool.

    Returns:
        (N, 1, H, W) in [0, 1]; the mask where nothing is unknown.
    """
    return torch.stack([
        _solve_one(colour, alpha[0], region[0]).unsqueeze(0)
        for colour, alpha, region in zip(picture, mask, unknown, strict=True)
    ])


def _solve_one(colour: Tensor, alpha: Tensor, unknown: Tensor) -> Tensor:
    known = torch.where(unknown, 0.0, (alpha > 0.5).to(alpha.dtype))
    if not bool(unknown.any()) or min(alpha.shape) < 3:
        return torch.where(unknown, alpha, known)
    pixels, terms = window_laplacians(colour, unknown)
    pull = -(terms @ known.flatten()[pixels].unsqueeze(2)).squeeze(2)
    target = torch.zeros_like(known).flatten().index_add_(0, pixels.flatten(), pull.flatten())
    inside = unknown.flatten().nonzero().flatten()
    number = torch.full((alpha.numel(),), -1, device=alpha.device)
    number[inside] = torch.arange(len(inside), device=alpha.device)
    matrix, columns = _rows(number[pixels], terms, len(inside))
    result = known.flatten()
    result[inside] = conjugate_gradients(matrix, columns, target[inside], alpha.flatten()[inside]).clamp(0, 1)
    return result.view(alpha.shape)


def _rows(number: Tensor, terms: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The Laplacian's rows: a pixel meets those of the 5x5 around it, so 25 values and their columns (count, 25)."""
    offset = torch.arange(3, device=terms.device)
    down, across = offset.repeat_interleave(3), offset.repeat(3)
    slot = (down - down.unsqueeze(1) + 2) * 5 + across - across.unsqueeze(1) + 2
    row, column = (index.expand(-1, _WINDOW, _WINDOW) for index in (number.unsqueeze(2), number.unsqueeze(1)))
    both = (row >= 0) & (column >= 0)
    place = (row * 25 + slot)[both]
    values = terms.new_zeros(count * 25).index_add_(0, place, terms[both])
    columns = torch.zeros(count * 25, dtype=torch.long, device=terms.device).index_copy_(0, place, column[both])
    return values.view(count, 25), columns.view(count, 25)


def window_laplacians(colour: Tensor, unknown: Tensor) -> tuple[Tensor, Tensor]:
    """The terms of the matting Laplacian (eq. 12) of each 3x3 window that holds an unknown pixel.

    Args:
        colour: (3, H, W).
        unknown: (H, W), bool.

    Returns:
        The windows' pixels (W, 9), and their terms (W, 9, 9), which add up to L.
    """
    height, width = unknown.shape
    touched = functional.max_pool2d(unknown[None, None].float(), 3, 1)[0, 0] > 0
    top, left = touched.nonzero().unbind(1)
    offset = torch.arange(3, device=colour.device)
    down, across = offset.repeat_interleave(3), offset.repeat(3)
    pixels = (top.unsqueeze(1) + down) * width + left.unsqueeze(1) + across
    values = colour.flatten(1)[:, pixels].movedim(0, 2).double()
    centred = values - values.mean(dim=1, keepdim=True)
    covariance = centred.mT @ centred / _WINDOW
    covariance = covariance + _EPSILON / _WINDOW * torch.eye(3, dtype=torch.double, device=colour.device)
    affinity = (1 + centred @ torch.linalg.solve(covariance, centred.mT)) / _WINDOW
    identity = torch.eye(_WINDOW, dtype=torch.double, device=colour.device)
    return pixels, (identity - affinity).to(colour.dtype)


def conjugate_gradients(matrix: Tensor, columns: Tensor, target: Tensor, start: Tensor) -> Tensor:
    """Solves A x = b for a symmetric, positive A, given by rows, with Jacobi's preconditioner.

    Stops early on purpose: from the given mask on, the first few hundred steps find the edge, those after them carry
    alpha far along colours that both layers share.
    """
    scale = 1 / matrix[:, 12].clamp_min(torch.finfo(target.dtype).eps)
    found = start.clone()
    residual = target - (matrix * found[columns]).sum(1)
    direction = scale * residual
    power, limit = residual @ direction, (_TOLERANCE * target.norm()).square()
    for _ in range(_MOST_ITERATIONS):
        if residual @ residual <= limit:
            break
        image = (matrix * direction[columns]).sum(1)
        step = power / (direction @ image)
        found = found + step * direction
        residual = residual - step * image
        smoothed = scale * residual
        before, power = power, residual @ smoothed
        direction = smoothed + power / before * direction
    return found
