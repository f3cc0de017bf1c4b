"""What every data source gives."""

from __future__ import annotations

from dataclasses import dataclass

from text2layer_core.layers import TwoLayerImage
from torch import Tensor


@dataclass(frozen=True)
class LayeredBatch:
    """n samples: stack [F, B, m] (n, 7, H, W) in [0, 1], and their captions."""

    stack: Tensor
    captions: list[str]

    @property
    def image(self) -> TwoLayerImage:
        """The stack as layers."""
        return TwoLayerImage.from_stack(self.stack)
