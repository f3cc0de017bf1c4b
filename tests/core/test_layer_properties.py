"""What holds for every document, tried on generated ones (hypothesis)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from text2layer_core.blending import BlendMode
from text2layer_core.composition import compose_stack
from text2layer_core.metrics import psnr
from text2layer_core.placement import rasterise
from text2layer_core.stack import Layer, LayerStack
from text2layer_core.transform import transform_layer

QUARTER = math.pi / 2
CANVAS = (9, 8)
SIDE = 96

quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)
whole = st.integers(-12, 12)


@st.composite
def layers(draw: st.DrawFn, *, modes: tuple[BlendMode, ...] = tuple(BlendMode), exact: bool = False) -> Layer:
    """A small random layer; an exact one is not resampled."""
    height, width = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    picture = torch.rand(1, draw(st.sampled_from([3, 4])), height, width, generator=generator)
    mask = torch.rand(1, 1, height, width, generator=generator).sub(0.3).mul(2).clamp(0, 1)
    geometry: dict[str, Any] = {"x": float(draw(whole)), "y": float(draw(whole)), "rotation": draw(whole) * QUARTER}
    if not exact:
        geometry = {"x": draw(st.floats(-12, 12)), "y": draw(st.floats(-12, 12)), "rotation": draw(st.floats(-7, 7)),
                    "width": draw(st.floats(0.3, 20)), "height": draw(st.floats(0.3, 20))}
    return Layer(
        name="layer", picture=picture, mask=mask if draw(st.booleans()) else None, opacity=draw(st.floats(0, 1)),
        blend_mode=draw(st.sampled_from(modes)), flip_horizontal=draw(st.booleans()),
        flip_vertical=draw(st.booleans()), visible=draw(st.booleans()), **geometry,
    )


def composed(*parts: Layer, canvas: tuple[int, int] = CANVAS) -> Tensor:
    return compose_stack(LayerStack(canvas=canvas, layers=parts))


def premultiplied(picture: Tensor) -> Tensor:
    return torch.cat([picture[:, :3] * picture[:, 3:], picture[:, 3:]], dim=1)


@quick
@given(st.lists(layers(), min_size=1, max_size=4), layers(), st.data())
def test_opacity_0_is_identity(below: list[Layer], top: Layer, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(below)))
    with_it = [*below[:at], replace(top, opacity=0.0), *below[at:]]
    assert torch.equal(composed(*with_it), composed(*below))


@quick
@given(st.lists(layers(), min_size=1, max_size=5))
def test_everything_stays_in_range(parts: list[Layer]) -> None:
    found = composed(*parts)
    assert bool(found.isfinite().all())
    assert found.min() >= 0
    assert found.max() <= 1


@quick
@given(*[layers(modes=(BlendMode.NORMAL,))] * 3)
def test_normal_blending_is_associative(bottom: Layer, middle: Layer, top: Layer) -> None:
    """(bottom + middle) + top and bottom + (middle + top), premultiplied."""
    lower = Layer(name="lower", picture=composed(bottom, middle))
    upper = Layer(name="upper", picture=composed(middle, top))
    whole = premultiplied(composed(bottom, middle, top))
    torch.testing.assert_close(premultiplied(composed(lower, top)), whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(premultiplied(composed(bottom, upper)), whole, atol=1e-5, rtol=0)


@quick
@given(layers(exact=True), whole, whole, st.integers(-5, 5), st.booleans(), st.booleans(),
       st.tuples(whole.map(float), whole.map(float)))
def test_whole_moves_flips_and_quarter_turns_have_exact_inverses(
    layer: Layer, x: int, y: int, quarters: int, flip_horizontal: bool, flip_vertical: bool, anchor: tuple[float, float]
) -> None:
    """Of the layer, and bit for bit of its pixels, even when each step is worked into them."""
    flips = {"flip_horizontal": flip_horizontal, "flip_vertical": flip_vertical}
    there = transform_layer(layer, **flips, rotation=quarters * QUARTER, anchor=anchor)
    there = transform_layer(there, move=(x, y))
    back = transform_layer(transform_layer(there, move=(-x, -y)), rotation=-quarters * QUARTER, anchor=anchor)
    back = transform_layer(back, **flips, anchor=anchor)
    assert back.box == pytest.approx(layer.box)
    assert torch.equal(composed(back), composed(layer))
    pixels, pixels_there = rasterise(layer), rasterise(there)
    assert pixels is not None and pixels_there is not None
    again = rasterise(transform_layer(
        transform_layer(transform_layer(pixels_there, move=(-x, -y)), rotation=-quarters * QUARTER), **flips
    ))
    assert again is not None
    assert torch.equal(again.colour, pixels.colour)
    assert again.coverage is pixels.coverage is None or torch.equal(again.coverage, pixels.coverage)


def band_limited(seed: int) -> Tensor:
    """Waves no shorter than 12 pixels, RGBA, alpha 0 towards the border."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    planes = torch.zeros(1, 4, SIDE, SIDE)
    for _ in range(6):
        frequency = (torch.rand(1, 4, 2, generator=generator) * 2 - 1) / 17
        phase = torch.rand(1, 4, generator=generator)
        angle = frequency[..., 0, None, None] * x + frequency[..., 1, None, None] * y + phase[..., None, None]
        planes += torch.sin(2 * math.pi * angle) / 12
    window = torch.hann_window(SIDE, periodic=False)
    planes = planes + 0.5
    planes[:, 3:] = planes[:, 3:] * (4 * torch.outer(window, window)).clamp_max(1)
    return planes.clamp(0, 1)


@quick
@given(st.integers(0, 100), st.floats(-3.2, 3.2), st.floats(1.0, 1.7), st.floats(1.0, 1.7), st.floats(-9, 9),
       st.booleans())
def test_other_transforms_are_undone_to_35_db(
    seed: int, rotation: float, wide: float, high: float, move: float, flip: bool
) -> None:
    """Worked into the pixels on the way there and on the way back; compared premultiplied."""
    layer = Layer(name="waves", picture=band_limited(seed))
    there = transform_layer(layer, flip_horizontal=flip, scale=(wide, high), move=(move, -move / 3), rotation=0.0)
    pixels = rasterise(transform_layer(there, rotation=rotation, anchor=(48.0, 48.0)))
    assert pixels is not None
    back = rasterise(transform_layer(pixels, rotation=-rotation, anchor=(48.0, 48.0)))
    assert back is not None
    back = transform_layer(back, move=(-move, move / 3))
    back = transform_layer(back, scale=(1 / wide, 1 / high), flip_horizontal=flip, anchor=(48.0, 48.0))
    found, expected = (premultiplied(composed(each, canvas=(SIDE, SIDE))) for each in (back, layer))
    assert float(psnr(found, expected)) >= 35
