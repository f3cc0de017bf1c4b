"""What the paper's criteria say of masks and fillings whose faults are known, and of the tables' broken samples."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from text2layer_core.layers import TwoLayerImage
from train.baselines import DEFECTS, UnfilteredSource
from train.icons.source import IconsConfig, IconSource
from train.icons.sprites import SpriteCache
from train.quality_labels import (
    DOES_NOT_FIT,
    HOLDS_BACKGROUND,
    HOLDS_OBJECT,
    INCOMPLETE,
    TOO_SMALL,
    QualityCriteria,
    inpainting_defects,
    mask_defects,
)

CRITERIA = QualityCriteria()
SIDE = 40


def square(left: int, right: int, top: int = 10, bottom: int = 30) -> Tensor:
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., top:bottom, left:right] = 1
    return mask


TRUTH = square(10, 30)


@pytest.mark.parametrize(("mask", "wanted"), [
    (TRUTH, []),
    (square(10, 26), []),  # a fifth is missing
    (square(10, 24), [INCOMPLETE]),  # three tenths
    (square(10, 34), []),  # a sixth lies beside
    (square(10, 36), [HOLDS_BACKGROUND]),  # six of 26 columns
    (square(18, 38), [INCOMPLETE, HOLDS_BACKGROUND]),
    (square(10, 15, 10, 15), [INCOMPLETE, TOO_SMALL]),  # 25 of 1,600 pixels
    (0 * TRUTH, [INCOMPLETE, TOO_SMALL]),
    (0.8 * TRUTH, []),  # soft everywhere
])
def test_masks_by_hand(mask: Tensor, wanted: list[str]) -> None:
    assert mask_defects(TRUTH, mask, CRITERIA) == [wanted]


def test_a_small_object_is_bad_however_well_it_is_found() -> None:
    small = square(10, 15, 10, 15)
    assert mask_defects(small, small, CRITERIA) == [[TOO_SMALL]]
    assert mask_defects(small, small, QualityCriteria(least_area=0.01)) == [[]]


def layers(object_colour: float = 0.9, ground: float = 0.3) -> TwoLayerImage:
    return TwoLayerImage(torch.full((1, 3, SIDE, SIDE), object_colour), torch.full((1, 3, SIDE, SIDE), ground), TRUTH)


@pytest.mark.parametrize(("shown", "wanted"), [
    (0.0, []), (0.1, []), (0.3, [DOES_NOT_FIT]), (0.4, [HOLDS_OBJECT, DOES_NOT_FIT]),
    (1.0, [HOLDS_OBJECT, DOES_NOT_FIT]),
])
def test_how_much_of_the_object_is_left(shown: float, wanted: list[str]) -> None:
    """Of b = B + t (F - B) under the mask, |F - B| = 0.6, t is found; the misfit is 0.6 t but for the rim."""
    truth = layers()
    background = torch.lerp(truth.background, truth.foreground, shown * TRUTH)
    assert inpainting_defects(truth, background, CRITERIA) == [wanted]


def test_another_colour_does_not_fit_and_holds_no_object() -> None:
    truth = layers()
    darker = truth.background - 0.2 * TRUTH
    assert inpainting_defects(truth, darker, CRITERIA) == [[DOES_NOT_FIT]]


def test_another_texture_of_the_same_colour_fits() -> None:
    """Single pixels up and down by 0.2: nothing is left of it after the blur."""
    truth = layers()
    chequered = torch.ones(SIDE, SIDE)
    chequered[::2, ::2] = chequered[1::2, 1::2] = -1
    assert inpainting_defects(truth, truth.background + 0.2 * chequered * TRUTH, CRITERIA) == [[]]
    strict = QualityCriteria(blur=0)
    assert inpainting_defects(truth, truth.background + 0.2 * chequered * TRUTH, strict) == [[DOES_NOT_FIT]]


def test_an_object_that_nobody_sees_cannot_be_left() -> None:
    truth = layers(object_colour=0.32)
    assert inpainting_defects(truth, truth.foreground, CRITERIA) == [[]]


def test_samples_are_judged_one_by_one() -> None:
    masks = torch.cat([TRUTH, square(10, 24)])
    assert mask_defects(TRUTH.expand(2, -1, -1, -1), masks, CRITERIA) == [[], [INCOMPLETE]]


def test_bad_numbers_and_shapes() -> None:
    with pytest.raises(ValueError, match=r"most_object must lie in \[0, 1\], got 2"):
        QualityCriteria(most_object=2)
    with pytest.raises(ValueError, match="mask must"):
        mask_defects(TRUTH, TRUTH[..., 1:], CRITERIA)
    with pytest.raises(ValueError, match=r"background must have shape \(1, 3, 40, 40\), got \(1, 3, 40, 39\)"):
        inpainting_defects(layers(), layers().background[..., 1:], CRITERIA)


def test_the_broken_samples_of_the_tables(sprites: SpriteCache, sprite_file: Path) -> None:
    """Most samples of each kind of defect fail the criterion of its name; those without one fail none."""
    source = IconSource(sprites, IconsConfig(cache=str(sprite_file), effect_share=0.0), 64, 0)
    unfiltered = UnfilteredSource(source, 0.8, 0)
    truth, found = source.batch(0, 160).stack, unfiltered.batch(0, 160).stack
    named = [mask + fill for mask, fill in zip(
        mask_defects(truth[:, 6:], found[:, 6:], CRITERIA),
        inpainting_defects(TwoLayerImage.from_stack(truth), found[:, 3:6], CRITERIA), strict=True)]
    defects = [unfiltered.defect(index) for index in range(160)]
    assert {None, *DEFECTS} == set(defects)
    for defect in DEFECTS:
        rows = [row for row, each in zip(named, defects, strict=True) if each == defect]
        assert sum(defect in row for row in rows) > 0.6 * len(rows), defect
    assert [row for row, each in zip(named, defects, strict=True) if each is None and row] == []
