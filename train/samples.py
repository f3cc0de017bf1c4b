"""What every data source gives."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch import Tensor

from text2layer_core.layers import TwoLayerImage

KNOWN_ABOVE = 0.1  # the paper's F is the picture's colour where m > 0.1


@dataclass(frozen=True)
class LayeredBatch:
    """n samples: stack [F, B, m] (n, 7, H, W) in [0, 1], and their captions."""

    stack: Tensor
    captions: list[str]

    @property
    def image(self) -> TwoLayerImage:
        """The stack as layers."""
        return TwoLayerImage.from_stack(self.stack)


def epoch_rows(seed: int, start: int, count: int, rows: int) -> np.ndarray:
    """Rows of samples start, ..., start + count - 1 where `rows` samples are seen in a new order every epoch."""
    epochs, offsets = np.divmod(np.arange(start, start + count), rows)
    pairs = zip(epochs, offsets, strict=True)
    return np.array([_epoch_order(seed, int(epoch), rows)[offset] for epoch, offset in pairs], dtype=np.int64)


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, rows: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(rows)
