"""Placing layers: whole-pixel ones by indexing the input, resampled ones by hand, in limits and by what they keep."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from text2layer_core.placement import Interpolation, Placed, cosine_and_sine, layer_bounds, place, rasterise
from text2layer_core.stack import Layer

QUARTER = math.pi / 2


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def layer(picture: Tensor, **changes: Any) -> Layer:
    return Layer(name="hat", picture=picture, **changes)


def placed(*arguments: Any, **options: Any) -> Placed:
    result = place(*arguments, **options)
    assert result is not None
    return result


def test_whole_pixels_are_views_of_the_layer() -> None:
    hat = layer(random(2, 3, 4, 6), mask=random(2, 1, 4, 6, seed=1), x=-2, y=3)
    found = placed(hat, (10, 5))
    assert found.window == (0, 3, 4, 5)
    assert torch.equal(found.colour, hat.picture[:, :, :2, 2:])
    assert found.colour.untyped_storage().data_ptr() == hat.picture.untyped_storage().data_ptr()
    assert hat.mask is not None and found.coverage is not None
    assert torch.equal(found.coverage, hat.mask[:, :, :2, 2:])
    assert placed(hat).window == layer_bounds(hat) == (-2, 3, 4, 7)


@pytest.mark.parametrize(("x", "y"), [(-6, 0), (10, 0), (0, -4), (0, 5), (1e9, -1e9)])
@pytest.mark.parametrize("rotation", [0, QUARTER * 2])
def test_off_the_canvas_is_nothing(x: float, y: float, rotation: float) -> None:
    hat = layer(random(1, 4, 4, 6), x=x, y=y, rotation=rotation)
    assert place(hat, (10, 5)) is None
    assert rasterise(hat, (10, 5)) is None


def test_a_turned_layer_off_the_canvas_is_nothing() -> None:
    assert place(layer(random(1, 4, 4, 6), x=-20, rotation=0.3, width=11.5), (10, 5)) is None


@pytest.mark.parametrize(("quarters", "expected"), [
    (0, [[1, 2, 3], [4, 5, 6]]), (1, [[4, 1], [5, 2], [6, 3]]), (2, [[6, 5, 4], [3, 2, 1]]),
    (3, [[3, 6], [2, 5], [1, 4]]), (-1, [[3, 6], [2, 5], [1, 4]]), (5, [[4, 1], [5, 2], [6, 3]]),
])
def test_quarter_turns_go_clockwise(quarters: int, expected: list[list[int]]) -> None:
    """By hand; a box of 3x2 has its centre at (1.5, 1), so that 2x3 begins at (0.5, -0.5): up and left to (0, -1)."""
    picture = torch.tensor([[1, 2, 3], [4, 5, 6]]).div(8).expand(1, 3, 2, 3)
    found = placed(layer(picture, rotation=quarters * QUARTER))
    assert torch.equal(found.colour[0, 0] * 8, torch.tensor(expected, dtype=torch.float32))
    assert found.coverage is None
    assert found.window == ((0, -1, 2, 2) if quarters % 2 else (0, 0, 3, 2))


def test_flips_come_before_the_turn() -> None:
    """By hand: mirrored left to right gives 321 / 654, then a quarter turn clockwise."""
    picture = torch.tensor([[1, 2, 3], [4, 5, 6]]).div(8).expand(1, 3, 2, 3)
    found = placed(layer(picture, flip_horizontal=True, rotation=QUARTER)).colour[0, 0] * 8
    assert found.tolist() == [[6, 3], [5, 2], [4, 1]]
    found = placed(layer(picture, flip_vertical=True)).colour[0, 0] * 8
    assert found.tolist() == [[4, 5, 6], [1, 2, 3]]


def test_half_a_pixel_covers_half() -> None:
    """By hand: an opaque 2x1 box at x = 0.5 covers halves of its first and last pixel."""
    found = placed(layer(torch.full((1, 3, 1, 2), 0.25), x=0.5, y=0))
    assert found.window == (0, 0, 3, 1)
    assert found.coverage is not None
    assert found.coverage.flatten().tolist() == pytest.approx([0.5, 1, 0.5], abs=1e-6)
    assert found.colour.unique().tolist() == pytest.approx([0.25], abs=1e-6)


def test_a_box_thinner_than_a_pixel_covers_its_area() -> None:
    """By hand: 0.4 x 1 at x = 0.8 lies with half of it in either pixel."""
    found = placed(layer(torch.ones(1, 3, 1, 1), x=0.8, y=0, width=0.4))
    assert found.window == (0, 0, 2, 1)
    assert found.coverage is not None
    assert found.coverage.flatten().tolist() == pytest.approx([0.2, 0.2], abs=1e-6)


@pytest.mark.parametrize("rotation", [0.3, 2.0, -1.1])
@pytest.mark.parametrize("size", [(40, 24), (7.3, 90.2)])
def test_a_turned_box_covers_its_area(rotation: float, size: tuple[float, float]) -> None:
    hat = layer(torch.ones(1, 3, 12, 20), x=30, y=40.5, width=size[0], height=size[1], rotation=rotation)
    coverage = placed(hat).coverage
    assert coverage is not None
    assert coverage.sum().item() == pytest.approx(size[0] * size[1], rel=0.01)
    assert coverage.max() == 1


def test_a_turned_layer_that_covers_the_canvas_is_opaque_there() -> None:
    found = placed(layer(random(1, 3, 9, 9), x=-200, y=-200, width=500, height=500, rotation=0.5), (64, 48))
    assert found.window == (0, 0, 64, 48)
    assert found.coverage is not None
    assert torch.equal(found.coverage, torch.ones_like(found.coverage))


@pytest.mark.parametrize("rotation", [0.0, 0.4, QUARTER])
@pytest.mark.parametrize("size", [(40.0, 40.0), (31.3, 8.0), (5.0, 5.0)])
@pytest.mark.parametrize("interpolation", Interpolation)
def test_hidden_colour_never_shows(rotation: float, size: tuple[float, float], interpolation: Interpolation) -> None:
    """A red disc whose transparent pixels are blue: what shows after resampling is red alone."""
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(20.0), indexing="ij")
    alpha = (6 - torch.hypot(x - 9.5, y - 9.5)).clamp(0, 1).view(1, 1, 20, 20)
    red, blue = (torch.tensor(colour).view(1, 3, 1, 1) for colour in ([0.8, 0.1, 0.0], [0.0, 0.0, 1.0]))
    picture = torch.cat([torch.where(alpha > 0, red, blue), alpha], dim=1)
    hat = layer(picture, x=3.25, width=size[0], height=size[1], rotation=rotation)
    found = placed(hat, interpolation=interpolation)
    assert found.coverage is not None
    shows = (found.coverage > 1 / 510).expand_as(found.colour)
    assert (found.colour - red).abs()[shows].max() < 0.02
    flat = rasterise(hat, interpolation=interpolation)
    assert flat is not None
    assert (flat.colour - red).abs().max() < 0.02, "colour goes on under alpha 0"


def test_shrinking_averages() -> None:
    """A checkerboard of single pixels becomes grey, not one of its two colours."""
    board = ((torch.arange(64).view(-1, 1) + torch.arange(64)) % 2).float().expand(1, 3, 64, 64)
    for rotation in (0.0, 0.2):
        found = placed(layer(board, width=16, height=16, rotation=rotation))
        inside = slice(None) if found.coverage is None else (found.coverage == 1).expand_as(found.colour)
        assert (found.colour[inside] - 0.5).abs().max() < 0.02
    assert placed(layer(board, width=16, height=16)).window == (0, 0, 16, 16)
    assert placed(layer(board, width=16, height=16)).coverage is None


def test_growing_reaches_the_edges() -> None:
    found = placed(layer(torch.full((1, 3, 2, 2), 0.5), width=300, height=200), (300, 200))
    assert found.coverage is None
    assert torch.allclose(found.colour, torch.tensor(0.5))


def test_a_ramp_is_scaled_exactly() -> None:
    """A linear ramp is reproduced by both interpolations away from its ends: value (x + 0.5) / 4 at pixel x."""
    ramp = (torch.arange(16.0) / 16).expand(1, 3, 8, 16)
    for interpolation in Interpolation:
        found = placed(layer(ramp, width=64, height=8), interpolation=interpolation).colour[0, 0, 0]
        expected = ((torch.arange(64.0) + 0.5) / 4 - 0.5) / 16
        assert (found - expected)[8:-8].abs().max() < 1 / 255


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("changes", [{}, {"rotation": 0.3}, {"width": 3.0}, {"x": 0.5, "flip_vertical": True}])
def test_a_batch_keeps_dtype_and_range_and_changes_nothing(dtype: torch.dtype, changes: dict[str, Any]) -> None:
    picture, mask = random(3, 4, 6, 7, dtype=dtype), random(3, 1, 6, 7, dtype=dtype, seed=1)
    before = picture.clone(), mask.clone()
    hat = layer(picture, mask=mask, **changes)
    found = placed(hat)
    assert found.coverage is not None
    for part in (found.colour, found.coverage):
        assert part.dtype == dtype
        assert part.shape[0] == 3
        assert part.min() >= 0
        assert part.max() <= 1
    single = placed(layer(picture[1:2], mask=mask[1:2], **changes))
    torch.testing.assert_close(found.colour[1:2], single.colour)
    assert torch.equal(picture, before[0])
    assert torch.equal(mask, before[1])


def test_resampling_carries_gradients() -> None:
    picture = random(1, 4, 6, 7).requires_grad_()
    found = placed(layer(picture, rotation=0.3, width=5.5))
    assert found.coverage is not None
    (found.colour.sum() + found.coverage.sum()).backward()
    assert picture.grad is not None
    assert bool(picture.grad.isfinite().all())
    assert picture.grad.abs().sum() > 0


def test_rasterise_works_the_geometry_into_the_pixels() -> None:
    hat = layer(random(1, 4, 6, 8), x=2, y=1, rotation=QUARTER, flip_horizontal=True, opacity=0.5, visible=False)
    flat = rasterise(hat)
    assert flat is not None
    assert (flat.x, flat.y, flat.width, flat.rotation, flat.flip_horizontal) == (3, 0, None, 0, False)
    assert (flat.name, flat.opacity, flat.visible) == ("hat", 0.5, False)
    assert torch.equal(flat.picture, placed_picture(hat)), "colour under alpha 0 is the layer's own"
    again = rasterise(flat)
    assert again is not None
    assert again.picture is flat.picture


def placed_picture(hat: Layer) -> Tensor:
    found = placed(hat)
    return found.colour if found.coverage is None else torch.cat([found.colour, found.coverage], dim=1)


def test_rasterise_keeps_what_is_off_the_canvas_unless_told() -> None:
    hat = layer(random(1, 3, 6, 8), x=-3.5, y=2)
    whole, cut = rasterise(hat), rasterise(hat, (10, 10))
    assert whole is not None and cut is not None
    assert (whole.x, whole.picture.shape) == (-4, (1, 4, 6, 9))
    assert (cut.x, cut.picture.shape) == (0, (1, 4, 6, 5))
    torch.testing.assert_close(cut.picture, whole.picture[..., 4:])


def test_a_layer_stays_as_it_is_where_nothing_is_to_do() -> None:
    hat = layer(random(1, 3, 6, 8), mask=random(1, 1, 6, 8), x=-3, y=2)
    flat = rasterise(hat)
    assert flat is not None
    assert flat.picture is hat.picture
    assert flat.mask is hat.mask


def test_cosine_and_sine_are_exact_at_quarters() -> None:
    assert [cosine_and_sine(k * QUARTER) for k in range(-1, 4)] == [(0, -1), (1, 0), (0, 1), (-1, 0), (0, -1)]
    assert cosine_and_sine(0.3) == (math.cos(0.3), math.sin(0.3))


def test_refuses_unknown_interpolations() -> None:
    for function in (place, rasterise):
        with pytest.raises(ValueError, match="interpolation must be one of bicubic, bilinear, got lanczos"):
            function(layer(random(1, 3, 2, 2), x=0.5), interpolation="lanczos")
