"""Mask operations by hand, in their limits, and against brute force."""

import math

import pytest
import torch
from torch import Tensor

from text2layer_core import masks


def noise(count: int = 2, height: int = 23, width: int = 31) -> Tensor:
    return torch.rand(count, 1, height, width, generator=torch.Generator().manual_seed(0))


def drawn(*rows: str) -> Tensor:
    """'.' is 0, '#' 1, digits are tenths."""
    values = {".": 0.0, "#": 1.0, **{str(digit): digit / 10 for digit in range(10)}}
    return torch.tensor([[values[each] for each in row] for row in rows])[None, None]


@pytest.mark.parametrize("radius", [0.0, 1.0, 1.5, 4.0, 6.7, 40.0])
def test_the_disc_maximum_is_the_maximum_over_a_disc(radius: float) -> None:
    """Every pixel of the picture at most `radius` away, one by one."""
    values = noise(2, 9, 12)
    y, x = torch.meshgrid(torch.arange(9), torch.arange(12), indexing="ij")
    expected = torch.empty_like(values)
    for row in range(9):
        for column in range(12):
            near = (y - row) ** 2 + (x - column) ** 2 <= radius**2
            expected[:, :, row, column] = values[:, :, near].amax(-1)
    before = values.clone()
    assert torch.equal(masks.grow_mask(values, radius), expected)
    assert torch.equal(values, before)


def test_shrinking_is_growing_what_is_not_there_and_the_border_does_not_count() -> None:
    values = noise()
    assert torch.equal(masks.grow_mask(values, -3), 1 - masks.grow_mask(1 - values, 3))
    full = torch.ones_like(values)
    assert torch.equal(masks.grow_mask(full, -5), full)
    assert masks.grow_mask(values.half(), 2).dtype == torch.float16


def test_box_means_leave_out_what_lies_beyond_the_border() -> None:
    values = drawn("04", "84")
    assert masks.box_mean(values, 1).flatten().tolist() == pytest.approx([0.4] * 4)
    assert masks.box_mean(drawn("036"), 1).flatten().tolist() == pytest.approx([0.15, 0.3, 0.45])


def test_a_feathered_step_is_the_normal_distribution() -> None:
    """Half way at the step; 0.841 one sigma away."""
    step = torch.zeros(1, 1, 40, 80)
    step[..., 40:] = 1
    soft = masks.feather_mask(step, 4.0)
    middle = (soft[0, 0, 20, 39] + soft[0, 0, 20, 40]) / 2
    assert float(middle) == pytest.approx(0.5, abs=1e-5)
    assert float((soft[0, 0, 20, 43] + soft[0, 0, 20, 44]) / 2) == pytest.approx(0.841, abs=5e-3)
    assert torch.equal(masks.feather_mask(step, 0), step)
    assert torch.allclose(masks.feather_mask(torch.ones_like(step), 3), torch.ones_like(step))


def test_threshold_by_hand() -> None:
    assert masks.threshold_mask(drawn("0456#"), 0.5).flatten().tolist() == [0, 0, 1, 1, 1]
    assert masks.threshold_mask(drawn("0456#").double(), 0.5).dtype == torch.float64


def test_the_band_is_what_lies_near_the_contour_or_is_soft() -> None:
    """A step between columns 9 and 10: contour pixels 9 and 10, radius 3 reaches 6 to 13; 0.3 in the corner is soft."""
    step = torch.zeros(2, 1, 5, 20)
    step[..., 10:] = 1
    step[1, 0, 0, 0] = 0.3
    band = masks.refinement_band(step, 3)
    expected = torch.zeros(2, 1, 5, 20, dtype=torch.bool)
    expected[..., 6:14] = True
    expected[1, 0, 0, 0] = True
    assert torch.equal(band, expected)
    for value in (0.0, 1.0):
        assert not masks.refinement_band(torch.full((1, 1, 5, 5), value), 3).any()


def flooded(shape: Tensor, diagonal: bool) -> Tensor:
    """Components by a stack, one pixel after the other."""
    labels = torch.zeros(shape.shape, dtype=torch.long)
    steps = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if diagonal or 0 in (y, x)]
    number = 0
    for row, column in shape.nonzero().tolist():
        if labels[row, column]:
            continue
        number += 1
        todo = [(row, column)]
        while todo:
            y, x = todo.pop()
            inside = 0 <= y < shape.shape[0] and 0 <= x < shape.shape[1]
            if inside and bool(shape[y, x]) and not labels[y, x]:
                labels[y, x] = number
                todo += [(y + dy, x + dx) for dy, dx in steps]
    return labels


@pytest.mark.parametrize("diagonal", [False, True])
def test_components_are_those_of_a_flood_fill(diagonal: bool) -> None:
    """The same partition: equal labels where equal, different where different."""
    shapes = noise(4, 24, 31) > 0.45
    shapes[2], shapes[3] = False, True
    labels = masks.connected_components(shapes, diagonal=diagonal)
    for index in range(4):
        expected = flooded(shapes[index, 0], diagonal)
        pairs = {tuple(pair) for pair in torch.stack([labels[index, 0], expected], -1).flatten(0, 1).tolist()}
        assert len(pairs) == len({pair[0] for pair in pairs}) == len({pair[1] for pair in pairs})
        assert torch.equal(labels[index, 0] > 0, shapes[index, 0])


def test_component_areas_by_hand() -> None:
    labels = masks.connected_components(drawn("##.#", "..##", "#...") > 0, diagonal=False)
    assert masks.component_areas(labels)[0, 0].tolist() == [[2, 2, 0, 3], [0, 0, 3, 3], [1, 0, 0, 0]]


def test_holes_are_filled_with_their_soft_rims_and_glass_stays() -> None:
    given = drawn(
        "###########",
        "#565###777#",
        "#5.5###777#",
        "#565###777#",
        "###########",
    )
    filled = masks.fill_holes(given)
    expected = given.clone()
    expected[..., 1:4, 1:4] = 1
    assert torch.equal(filled, expected)
    assert torch.equal(masks.fill_holes(given, 8), given)
    assert torch.equal(masks.fill_holes(given, 9), expected)
    open_hole = given.clone()
    open_hole[..., 2, 0] = 0
    assert torch.equal(masks.fill_holes(open_hole), open_hole)


def test_specks_are_dropped_by_the_sum_of_their_mask() -> None:
    given = drawn("#..55", "...5.", "##...", "##...")
    dropped = masks.drop_specks(given, 1.2)
    expected = given.clone()
    expected[..., 0, 0] = 0
    assert torch.equal(dropped, expected)
    assert not masks.drop_specks(given, 5).any()


def test_every_operation_is_per_sample_and_keeps_the_dtype() -> None:
    values = noise(3)
    operations = (lambda m: masks.grow_mask(m, 2), lambda m: masks.grow_mask(m, -2), masks.fill_holes,
                  lambda m: masks.drop_specks(m, 3), lambda m: masks.threshold_mask(m, 0.5))
    for operation in operations:
        before = values.clone()
        whole = operation(values)
        assert torch.equal(whole, torch.cat([operation(each[None]) for each in values]))
        assert torch.equal(values, before)
        assert operation(values.double()).dtype == torch.float64


@pytest.mark.parametrize(("call", "message"), [
    (lambda: masks.check_mask(torch.full((1, 1, 2, 2), math.nan)), "mask must be finite and in .0, 1., got .* nan"),
    (lambda: masks.check_mask(torch.ones(1, 2, 2)), r"mask must have shape \(N, 1, H, W\), none of them 0, got"),
    (lambda: masks.check_mask(torch.ones(1, 1, 2, 2).long()), "mask must have a floating dtype"),
    (lambda: masks.grow_mask(noise(), math.inf), "radius must be finite, got inf"),
    (lambda: masks.feather_mask(noise(), -1), "sigma must be at least 0 pixels and finite, got -1"),
    (lambda: masks.threshold_mask(noise(), 0), "threshold must lie above 0 and be at most 1, got 0"),
    (lambda: masks.fill_holes(noise(), 0), "most must be above 0 pixels, got 0"),
    (lambda: masks.drop_specks(noise(), -2), "least must be above 0 pixels, got -2"),
    (lambda: masks.check_picture_and_mask(torch.rand(1, 3, 4, 6), torch.ones(1, 1, 4, 5)),
     r"mask must have the size of image, 6x4, got 5x4 \(width x height\)"),
    (lambda: masks.check_picture_and_mask(torch.rand(2, 3, 4, 6), torch.ones(1, 1, 4, 6)),
     r"there must be one mask per picture \(2\), got 1"),
    (lambda: masks.check_picture_and_mask(torch.rand(1, 4, 4, 6), torch.ones(1, 1, 4, 6)),
     r"image must have shape \(N, 3, H, W\), none of them 0, got \(1, 4, 4, 6\)"),
    (lambda: masks.check_picture_and_mask(torch.rand(1, 3, 4, 6).double(), torch.ones(1, 1, 4, 6)),
     "mask must be torch.float64 on cpu as image, got torch.float32 on cpu"),
    (lambda: masks.check_picture_and_mask(torch.rand(1, 3, 4, 6) + 1, torch.ones(1, 1, 4, 6)),
     "image must be finite and in .0, 1."),
])
def test_bad_arguments_are_refused(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=message):
        call()
