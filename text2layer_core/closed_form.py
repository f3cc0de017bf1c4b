"""The matting Laplacian solved in a band (Levin et al., "A Closed-Form Solution to Natural Image Matting", 2008)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_WINDOW = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
_REACH = 2  # windows of 3x3 pixels link pixels up to two apart
_SIDE = 2 * _REACH + 1
_EPSILON = 1e-7
_TOLERANCE = 4e-4
_MOST_STEPS = 300


@torch.no_grad()
def solve_matting(
    image: Tensor, trimap: Tensor, start: Tensor, *, tolerance: float = _TOLERANCE, most_steps: int = _MOST_STEPS
) -> Tensor:
    """Alpha in the unknown pixels such that it is, in every 3x3 window, as nearly as possible linear in colour.

    The known pixels are held exactly. Conjugate gradients with the diagonal as preconditioner start from a guess, as a
    rule the guided filter's, and stop early: what is left then is far below the model's own error. It carries no
    gradients.

    Args:
        image: (N, 3, H, W) in [0, 1].
        trimap: (N, 1, H, W); 0 and 1 are known, everything else is unknown.
        start: (N, 1, H, W), the guess for the unknown pixels.
        tolerance: of the residual, relative to the right side.
        most_steps: of conjugate gradients.

    Returns:
        (N, 1, H, W) float32 or better, in [0, 1]; the trimap where it is known.
    """
    wide = torch.promote_types(trimap.dtype, torch.float32)
    solved = trimap.to(wide).clone()
    for index in range(len(trimap)):
        unknown = (trimap[index, 0] > 0) & (trimap[index, 0] < 1)
        if bool(unknown.any()):
            system = _assemble(image[index].to(wide), solved[index, 0], unknown)
            guess = start[index, 0].to(wide)[unknown]
            solved[index, 0, unknown] = _conjugate_gradients(system, guess, tolerance, most_steps).clamp(0, 1)
    return solved


@dataclass(frozen=True, eq=False)
class _System:
    """Rows of the Laplacian for the n unknown pixels.

    Attributes:
        values: (n, 25), one per neighbour of the 5x5 around; 0 towards known pixels.
        columns: (n, 25) long, which unknown pixel that is.
        right: (n,), what the known pixels contribute.
    """

    values: Tensor
    columns: Tensor
    right: Tensor

    @property
    def diagonal(self) -> Tensor:
        return self.values[:, _SIDE * _SIDE // 2].clamp_min(torch.finfo(self.values.dtype).eps)

    def product(self) -> Callable[[Tensor], Tensor]:
        """Multiplies vectors (n,); as a sparse matrix where PyTorch can, which is ten times faster on a CPU."""
        count, width = self.columns.shape
        flat = self.columns.flatten()
        if not (self.values.is_cuda or (self.values.device.type == "cpu" and torch.backends.mkl.is_available())):
            return lambda vector: (self.values * vector.index_select(0, flat).view(count, width)).sum(dim=1)
        starts = torch.arange(0, count * width + 1, width, device=flat.device)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support", category=UserWarning)
            matrix = torch.sparse_csr_tensor(
                starts, flat, self.values.flatten(), (count, count), check_invariants=False
            )
        return lambda vector: matrix @ vector


def _assemble(image: Tensor, alpha: Tensor, unknown: Tensor) -> _System:
    """The system of one picture: image (3, H, W), alpha (H, W) with the known values, unknown (H, W) bool."""
    height, width = unknown.shape
    device = unknown.device
    rows, columns = unknown.nonzero(as_tuple=True)
    centres, blocks = _window_blocks(image, unknown)
    window = torch.full((height + 2, width + 2), len(centres), device=device)  # one pixel wider on each side
    window[centres[:, 0] + 1, centres[:, 1] + 1] = torch.arange(len(centres), device=device)
    values = image.new_zeros(len(rows), _SIDE * _SIDE)
    for place, (y, x) in enumerate(_WINDOW):  # the pixel is at this place of the window whose centre is at -(y, x)
        block = blocks[window[rows - y + 1, columns - x + 1], place]
        for other, (v, u) in enumerate(_WINDOW):
            values[:, (v - y + _REACH) * _SIDE + (u - x + _REACH)] += block[:, other]
    number = torch.full((height + 2 * _REACH, width + 2 * _REACH), -1, device=device)
    number[rows + _REACH, columns + _REACH] = torch.arange(len(rows), device=device)
    steps = torch.arange(_SIDE, device=device)
    around = (rows[:, None, None] + steps[:, None], columns[:, None, None] + steps)
    neighbour = number[around].flatten(1)
    padded = functional.pad(torch.where(unknown, 0, alpha), (_REACH, _REACH, _REACH, _REACH))
    right = -(values * padded[around].flatten(1)).sum(dim=1)
    return _System(torch.where(neighbour >= 0, values, 0), neighbour.clamp_min(0), right)


def _window_blocks(image: Tensor, unknown: Tensor) -> tuple[Tensor, Tensor]:
    """Centres (k, 2) of the windows that hold an unknown pixel, and their 9x9 blocks, (k + 1, 9, 9), the last 0.

    Windows lie wholly in the picture; a picture narrower than 3 pixels has none.
    """
    touched = functional.max_pool2d(unknown[None].to(image.dtype), 3, 1, 1)[0] > 0
    touched[[0, -1]] = False
    touched[:, [0, -1]] = False
    centres = touched.nonzero()
    offsets = torch.tensor(_WINDOW, device=image.device)
    places = centres[:, None] + offsets  # (k, 9, 2)
    colours = image.movedim(0, -1)[places[..., 0], places[..., 1]].double()  # epsilon is below float32's rounding
    colours = colours - colours.mean(dim=1, keepdim=True)
    covariance = colours.mT @ colours / 9 + _EPSILON / 9 * torch.eye(3, dtype=colours.dtype, device=image.device)
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), colours.mT, upper=False)
    blocks = torch.eye(9, dtype=colours.dtype, device=image.device) - (1 + whitened.mT @ whitened) / 9
    blocks = blocks.to(image.dtype)
    return centres, torch.cat([blocks, blocks.new_zeros(1, 9, 9)])


def _conjugate_gradients(system: _System, solution: Tensor, tolerance: float, most_steps: int) -> Tensor:
    """Solves system @ x = right from a guess (Hestenes and Stiefel, 1952, with Jacobi's preconditioner)."""
    multiply = system.product()
    residual = system.right - multiply(solution)
    limit = tolerance * float(system.right.norm())
    scaled = residual / system.diagonal
    direction, energy = scaled, residual @ scaled
    for _ in range(most_steps if limit > 0 else 0):  # nothing known: every smooth answer is as good as the guess
        if float(residual.norm()) <= limit:
            break
        image = multiply(direction)
        step = energy / (direction @ image)
        solution = solution + step * direction
        residual = residual - step * image
        scaled = residual / system.diagonal
        before, energy = energy, residual @ scaled
        direction = scaled + energy / before * direction
    return solution
