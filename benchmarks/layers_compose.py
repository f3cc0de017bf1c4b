"""Composing two layers against `torch.lerp` and a round trip through PIL: `python -m benchmarks.layers_compose`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.common import BUSY, Goal, machine_is_idle, make_parser, positive, print_table, report, seconds_in_turns
from text2layer_core.compositing import compose
from text2layer_core.layers import TwoLayerImage

LERP_GOAL = Goal(1.3)
PIL_GOAL = Goal(5.0, at_least=True)


def through_pil(image: TwoLayerImage) -> Tensor:
    """What layer nodes do: each picture to 8 bits, `Image.alpha_composite`, and back to float; (N, 3, H, W)."""
    composed: list[Tensor] = []
    for index in range(len(image)):
        one = image[index]
        foreground, background = _to_pil(one.rgba), _to_pil(one.background).convert("RGBA")
        flat = Image.alpha_composite(background, foreground).convert("RGB")
        composed.append(torch.from_numpy(np.asarray(flat, dtype=np.float32) / 255).movedim(-1, 0))
    return torch.stack(composed)


def measure(batch: int, size: int, repeats: int) -> dict[str, float]:
    """Prints the medians; seconds of each variant."""
    foreground, background = torch.rand(batch, 3, size, size), torch.rand(batch, 3, size, size)
    image = TwoLayerImage(foreground, background, torch.rand(batch, 1, size, size))
    variants: dict[str, Callable[[], object]] = {
        "compose": lambda: compose(image),
        "torch.lerp": lambda: torch.lerp(image.background, image.foreground, image.mask),
        "through PIL": lambda: through_pil(image),
    }
    with torch.inference_mode():
        seconds = seconds_in_turns(variants, repeats)
        difference = (compose(image) - through_pil(image)).abs().max().item() * 255
    print(f"batch {batch}, {size} px, float32, median of {repeats}; "
          f"largest difference between compose and PIL {difference:.2f}/255")
    print_table([(name, f"{value * 1000:.1f} ms") for name, value in seconds.items()])
    return seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark: 0 if both goals are met, 1 if one is missed, 2 if nothing was measured."""
    parser = make_parser("layers_compose", __doc__ or "", repeats=11)
    parser.add_argument("--batch", type=int, default=8, help="pictures (default: 8)")
    parser.add_argument("--size", type=int, default=1024, help="pixels a side (default: 1024)")
    arguments = parser.parse_args(argv)
    positive(parser, arguments, "repeats", "batch", "size")
    if not machine_is_idle(force=arguments.force):
        return BUSY
    torch.manual_seed(0)
    seconds = measure(arguments.batch, arguments.size, arguments.repeats)
    missed = report({"compose / torch.lerp": seconds["compose"] / seconds["torch.lerp"]}, LERP_GOAL)
    return report({"through PIL / compose": seconds["through PIL"] / seconds["compose"]}, PIL_GOAL) or missed


def _to_pil(picture: Tensor) -> Image.Image:
    """(1, 3 or 4, H, W) in [0, 1] in 8 bits."""
    values = (picture[0].movedim(0, -1).numpy() * 255).round().clip(0, 255).astype(np.uint8)
    return Image.fromarray(values)


if __name__ == "__main__":
    raise SystemExit(main())
