"""Contact sheets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor


def save_grid(path: Path, rows: Sequence[Tensor]) -> None:
    """Writes rows of pictures, each (n, 3, H, W) in [0, 1], as one PNG."""
    lines = [torch.cat(list(row.detach().float().cpu().clamp(0, 1)), dim=2) for row in rows]
    pixels = (torch.cat(lines, dim=1) * 255).round().byte().permute(1, 2, 0).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
