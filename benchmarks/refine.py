"""Refined masks, edge colour and paste-back on scenes with exact layers: `python -m benchmarks.refine`."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.common import BUSY, Goal, machine_is_idle, make_parser, positive, print_table, report
from text2layer_core.compositing import compose
from text2layer_core.decompose import paste_back, prepare_inpaint
from text2layer_core.foreground import estimate_foreground
from text2layer_core.layers import TwoLayerImage
from text2layer_core.masks import grow_mask, refinement_band
from text2layer_core.metrics import SOFT_BAND, sad
from text2layer_core.refine import RefineMethod, RefineOptions, refine_mask, trimap
from train.icons.source import IconsConfig, IconSource
from train.icons.sprites import load_sprites

CACHE = "~/runs/icons.safetensors"
_RADIUS = 0.03


class Scenes:
    """Held-out icon scenes, drawn one at a time."""

    def __init__(self, cache: Path, size: int, effect_share: float) -> None:
        """Opens the cache; `effect_share` of the scenes have soft edges on purpose."""
        config = IconsConfig(cache=str(cache), effect_share=effect_share)
        self._source = IconSource(load_sprites(cache), config, size, 0, "held_out")

    def layers(self, count: int) -> list[TwoLayerImage]:
        """The first `count` scenes."""
        return [self._source.batch(index, 1).image for index in range(count)]


def coarse(mask: Tensor) -> Tensor:
    """Downsampled by 8 (means) and enlarged again, bilinear."""
    return functional.interpolate(functional.avg_pool2d(mask, 8), scale_factor=8, mode="bilinear").clamp(0, 1)


def guided(scenes: Sequence[TwoLayerImage], degrade: Callable[[Tensor], Tensor]) -> tuple[float, float, float]:
    """Median SAD before, median SAD after, and the share of scenes that are worse after."""
    before: list[float] = []
    after: list[float] = []
    for truth in scenes:
        given = degrade(truth.mask)
        before.append(float(sad(given, truth.mask)))
        after.append(float(sad(refine_mask(compose(truth), given), truth.mask)))
    worse = sum(new > old for old, new in zip(before, after, strict=True)) / len(scenes)
    return statistics.median(before), statistics.median(after), worse


def run_guided(cache: Path, count: int) -> bool:
    """The two rows of the guided filter."""
    scenes = Scenes(cache, 512, 0.2).layers(count)
    rows: list[tuple[str, str]] = []
    before, after, worse = guided(scenes, coarse)
    met = report({"median SAD": after / before}, Goal(0.5)) | report({"scenes that are worse": worse}, Goal(0.1))
    rows.append(("guided, mask downsampled by 8", f"median SAD {before:.0f} -> {after:.0f}, worse in {worse:.0%}"))
    before, after, worse = guided(scenes, lambda mask: grow_mask(mask, -4))
    met |= report({"scenes that are better": 1 - worse}, Goal(0.8, at_least=True))
    rows.append(("guided, mask eroded by 4 px", f"median SAD {before:.0f} -> {after:.0f}, worse in {worse:.0%}"))
    print_table(rows)
    return met == 0


def run_closed_form(cache: Path, count: int) -> bool:
    """Ours against pymatting's, the same trimap from a mask downsampled by 8."""
    from pymatting import estimate_alpha_cf

    ours: list[float] = []
    theirs: list[float] = []
    seconds = [0.0, 0.0]
    warm = False
    for truth in Scenes(cache, 512, 0.2).layers(2 * count + 1):
        image, given = compose(truth), coarse(truth.mask)
        known = trimap(given, refinement_band(given, _RADIUS * 512))
        if not bool((known == 1).any()) or len(ours) == count:
            continue  # pymatting takes no trimap without a known 1, as a pane of glass has it
        arrays = _array(image[0]).astype(np.float64), known[0, 0].double().numpy()
        began = time.perf_counter()
        refined = refine_mask(image, given, RefineOptions(method=RefineMethod.CLOSED_FORM, radius=_RADIUS))
        middle = time.perf_counter()
        alpha = torch.from_numpy(estimate_alpha_cf(*arrays)).to(truth.mask)[None, None]
        ended = time.perf_counter()
        if not warm:  # the first call compiles
            warm = True
            continue
        seconds[0] += middle - began
        seconds[1] += ended - middle
        ours.append(float(sad(refined, truth.mask)))
        theirs.append(float(sad(alpha, truth.mask)))
    print_table([
        ("closed_form", f"SAD {sum(ours):.0f} (median {statistics.median(ours):.0f}), {seconds[0]:.1f} s"),
        ("pymatting", f"SAD {sum(theirs):.0f} (median {statistics.median(theirs):.0f}), {seconds[1]:.1f} s"),
    ])
    met = report({"SAD": sum(ours) / sum(theirs), "median SAD": statistics.median(ours) / statistics.median(theirs)},
                 Goal(1.1))
    return not (met | report({"time": seconds[0] / seconds[1]}, Goal(1.0)))


def run_foreground(cache: Path, count: int, size: int, repeats: int) -> bool:
    """Edge colour of soft scenes from the true mask, against pymatting's; total SAD, median time of every scene."""
    from pymatting import estimate_foreground_ml

    errors, seconds = [0.0, 0.0], [0.0, 0.0]
    for index, truth in enumerate(Scenes(cache, size, 1.0).layers(count)):
        image, band = compose(truth), ((truth.mask > SOFT_BAND[0]) & (truth.mask < SOFT_BAND[1]))
        arrays = _array(image[0]), truth.mask[0, 0].contiguous().numpy()
        if index == 0:
            estimate_foreground_ml(*arrays)  # compiles
        times: list[list[float]] = [[], []]
        found: list[Tensor] = []
        for _ in range(repeats):
            began = time.perf_counter()
            ours, _ = estimate_foreground(image, truth.mask)
            middle = time.perf_counter()
            theirs = estimate_foreground_ml(*arrays)
            times[0].append(middle - began)
            times[1].append(time.perf_counter() - middle)
            found = [ours, torch.from_numpy(theirs).movedim(-1, 0)[None]]
        for side in (0, 1):
            errors[side] += float(torch.where(band, (found[side] - truth.foreground).abs(), 0).sum())
            seconds[side] += statistics.median(times[side])
    print_table([(name, f"SAD {error:.0f}, {spent:.2f} s")
                 for name, error, spent in zip(("estimate_foreground", "pymatting"), errors, seconds, strict=True)])
    met = report({"SAD": errors[0] / errors[1]}, Goal(1.05))
    return not (met | report({"time": seconds[0] / seconds[1]}, Goal(1.0)))


def run_paste(cache: Path, count: int) -> bool:
    """Pixels outside the hole that a paste-back changes."""
    changed = 0
    for truth in Scenes(cache, 512, 0.2).layers(count):
        image = compose(truth)
        crop = prepare_inpaint(image, truth.mask)
        pasted = paste_back(image, torch.rand_like(crop.image), crop.blend, crop.x, crop.y)
        outside = torch.ones_like(truth.mask, dtype=torch.bool)
        height, width = crop.hole.shape[-2:]
        outside[..., crop.y : crop.y + height, crop.x : crop.x + width] = crop.hole == 0
        changed += int(((pasted != image) & outside).sum())
    return report({"pixels changed outside the hole": changed}, Goal(0)) == 0


def _array(picture: Tensor) -> np.ndarray:
    return picture.movedim(0, -1).contiguous().numpy()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark: 0 if every goal is met, 1 if one is missed, 2 if nothing was measured."""
    parser = make_parser("refine", __doc__ or "", repeats=3)
    parser.add_argument("--icons", type=Path, default=Path(CACHE), help=f"sprite cache (default: {CACHE})")
    parser.add_argument("--case", choices=["guided", "closed_form", "foreground", "paste"], help="one row alone")
    parser.add_argument("--scenes", type=int, help="scenes a row (default: 60, 24, 6, 8)")
    parser.add_argument("--size", type=int, default=2048, help="pixels a side of row foreground (default: 2048)")
    arguments = parser.parse_args(argv)
    positive(parser, arguments, "repeats", "size", *(["scenes"] if arguments.scenes is not None else []))
    if not machine_is_idle(force=arguments.force):
        return BUSY
    cache, count = arguments.icons.expanduser(), arguments.scenes
    cases: dict[str, Callable[[], bool]] = {
        "guided": lambda: run_guided(cache, count or 60),
        "closed_form": lambda: run_closed_form(cache, count or 24),
        "foreground": lambda: run_foreground(cache, count or 6, arguments.size, arguments.repeats),
        "paste": lambda: run_paste(cache, count or 8),
    }
    try:
        with torch.inference_mode():
            met = [run() for name, run in cases.items() if arguments.case in (None, name)]
    except (ImportError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BUSY
    return 0 if all(met) else 1


if __name__ == "__main__":
    raise SystemExit(main())
