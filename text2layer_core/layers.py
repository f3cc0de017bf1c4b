"""The two-layer image: foreground, background and layer mask (paper: "Two-layer image", eq. 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

STACK_CHANNELS = 7


@dataclass(frozen=True, eq=False)
class TwoLayerImage:
    """A batch of two-layer images (F, B, m): stored sRGB values in [0, 1], straight alpha.

    The mask is soft and is 1 where the foreground shows. All three tensors share one floating
    dtype and one device; the values are checked once, when the image is made.

    Attributes:
        foreground: F, (N, 3, H, W), in [0, 1]; where the mask is 0 it carries extended colour.
        background: B, (N, 3, H, W), in [0, 1], complete behind the foreground.
        mask: m, (N, 1, H, W), in [0, 1].

    Raises:
        ValueError: a part is no floating tensor, has another shape, dtype or device than its
            fellows, or holds a value that is not finite or outside [0, 1].
    """

    foreground: Tensor
    background: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        """Checks types, shapes, dtypes, devices and values of the three parts."""
        parts = {"foreground": self.foreground, "background": self.background, "mask": self.mask}
        for name, part in parts.items():
            check_float_tensor(name, part)
        _check_foreground_shape(self.foreground)
        count, _, height, width = self.foreground.shape
        _check_matches("background", self.background, self.foreground, (count, 3, height, width))
        _check_matches("mask", self.mask, self.foreground, (count, 1, height, width))
        for name, part in parts.items():
            check_range(name, part)

    @property
    def rgba(self) -> Tensor:
        """The foreground with the mask as straight alpha, (N, 4, H, W)."""
        return torch.cat([self.foreground, self.mask], dim=1)

    @property
    def batch_size(self) -> int:
        """Number of images N."""
        return self.foreground.shape[0]

    @property
    def height(self) -> int:
        """Height H in pixels."""
        return self.foreground.shape[2]

    @property
    def width(self) -> int:
        """Width W in pixels."""
        return self.foreground.shape[3]

    def __len__(self) -> int:
        """Number of images N."""
        return self.batch_size

    def __getitem__(self, index: int | slice) -> TwoLayerImage:
        """One image as a batch of one, or a slice of the batch; the tensors share memory.

        Raises:
            IndexError: the integer is outside [-N, N).
            ValueError: the slice selects nothing.
        """
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"index must lie in [-{len(self)}, {len(self)}), got {index}")
            start = index % len(self)
            index = slice(start, start + 1)
        return TwoLayerImage(self.foreground[index], self.background[index], self.mask[index])

    def to(self, *args: Any, **kwargs: Any) -> TwoLayerImage:  # noqa: ANN401
        """The image on another device or in another floating dtype; arguments as for `Tensor.to`."""
        return TwoLayerImage(
            self.foreground.to(*args, **kwargs),
            self.background.to(*args, **kwargs),
            self.mask.to(*args, **kwargs),
        )

    def pad(self, stride: int) -> TwoLayerImage:
        """The image continued below and on the right by its border pixels, to multiples of the stride; see `crop`."""
        padding = (0, -self.width % stride, 0, -self.height % stride)
        return TwoLayerImage.from_stack(functional.pad(self.stack(), padding, mode="replicate"))

    def crop(self, height: int, width: int) -> TwoLayerImage:
        """The upper left `height` x `width` pixels, which undoes a padding below and on the right.

        Raises:
            ValueError: the size is not between 1x1 and the image's own.
        """
        if not (1 <= height <= self.height and 1 <= width <= self.width):
            raise ValueError(
                f"crop must lie between 1x1 and {self.height}x{self.width} (height x width), got {height}x{width}"
            )
        window = (..., slice(height), slice(width))
        return TwoLayerImage(self.foreground[window], self.background[window], self.mask[window])

    def stack(self) -> Tensor:
        """The autoencoder's input X = [F, B, m] (paper: "CaT2I-AE"), (N, 7, H, W) in [0, 1]."""
        return torch.cat([self.foreground, self.background, self.mask], dim=1)

    @classmethod
    def from_stack(cls, stack: Tensor) -> TwoLayerImage:
        """The inverse of `stack`: (N, 7, H, W) in [0, 1], in the order F, B, m; nothing is clamped.

        Raises:
            ValueError: the tensor has no 7 channels, or its parts are not valid layers.
        """
        check_float_tensor("stack", stack)
        if stack.ndim != 4 or stack.shape[1] != STACK_CHANNELS:
            raise ValueError(f"stack must have shape (N, {STACK_CHANNELS}, H, W), got {tuple(stack.shape)}")
        return cls(stack[:, :3], stack[:, 3:6], stack[:, 6:])


def check_float_tensor(name: str, value: object) -> None:
    """Raises ValueError unless the value is a tensor of a floating dtype."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a torch tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise ValueError(f"{name} must have a floating dtype, got {value.dtype}")


def _check_foreground_shape(foreground: Tensor) -> None:
    if foreground.ndim != 4 or foreground.shape[1] != 3 or foreground.numel() == 0:
        raise ValueError(f"foreground must have shape (N, 3, H, W), none of them 0, got {tuple(foreground.shape)}")


def _check_matches(name: str, part: Tensor, foreground: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(part.shape) != shape:
        raise ValueError(f"{name} must have shape {shape} to match foreground, got {tuple(part.shape)}")
    if part.dtype != foreground.dtype:
        raise ValueError(f"{name} must have dtype {foreground.dtype} to match foreground, got {part.dtype}")
    if part.device != foreground.device:
        raise ValueError(f"{name} must be on {foreground.device} to match foreground, got {part.device}")


def check_range(name: str, part: Tensor) -> None:
    """Raises ValueError unless all values are finite and in [0, 1]; a tensor without values passes."""
    if part.is_meta:
        return
    low, high = (float(value) for value in torch.aminmax(part.detach()))
    if not (low >= 0.0 and high <= 1.0):
        raise ValueError(f"{name} must be finite and in [0, 1], got values from {low:g} to {high:g}")
