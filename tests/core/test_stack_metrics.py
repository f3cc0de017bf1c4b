"""The distance of documents by hand and against LayerD's own code (tests/reference)."""

import pytest
import torch
from torch import Tensor

from tests.reference.inputs import STACK_SIZES, recorded, stacks
from text2layer_core.stack_metrics import mean_stack_distance, stack_distance

REFERENCE = recorded("layerd")
CLOSE = 1e-4  # LayerD merges in 8 bit


def given(name: str) -> tuple[list[Tensor], list[Tensor]]:
    prediction, target = ([torch.from_numpy(layer).permute(2, 0, 1) / 255 for layer in each] for each in stacks(name))
    return prediction, target


def layer(colour: float, alpha: list[float]) -> Tensor:
    """One row of pixels."""
    return torch.tensor([[[colour] * len(alpha)]] * 3 + [[alpha]], dtype=torch.float32)


@pytest.mark.parametrize("name", STACK_SIZES)
def test_distances_are_those_of_layerd(name: str) -> None:
    expected = REFERENCE["each"][name]
    found = stack_distance(*given(name))
    assert [each.edits for each in found] == [each["edits"] for each in expected]
    assert [each.rgb_l1 for each in found] == pytest.approx([each["rgb_l1"] for each in expected], abs=CLOSE)
    assert [each.alpha_iou for each in found] == pytest.approx([each["alpha_iou"] for each in expected], abs=CLOSE)


def test_means_over_documents_are_those_of_layerd() -> None:
    found = mean_stack_distance([stack_distance(*given(name)) for name in STACK_SIZES])
    expected = REFERENCE["mean"]
    assert [each.edits for each in found] == pytest.approx([each["avg_edits"] for each in expected])
    assert [each.rgb_l1 for each in found] == pytest.approx([each["avg_rgb_l1"] for each in expected], abs=CLOSE)
    assert [each.alpha_iou for each in found] == pytest.approx([each["avg_alpha_iou"] for each in expected], abs=CLOSE)


def test_one_document_is_itself() -> None:
    _, target = given("apart")
    before = [each.clone() for each in target]
    (found,) = stack_distance(target, target)
    assert (found.edits, found.rgb_l1, found.alpha_iou) == (0, 0, pytest.approx(1))
    assert all(map(torch.equal, before, target))


def test_a_layer_cut_in_two_is_mended_by_one_merge() -> None:
    """The cut disc is aligned twice; its halves touch, so that they are two layers, and merged they are the disc."""
    ground, disc = layer(0.2, [1, 1, 1, 1]), layer(0.8, [0, 1, 1, 0])
    halves = [layer(0.8, [0, 1, 0, 0]), layer(0.8, [0, 1, 1, 0])]
    none, one = stack_distance([ground, *halves], [ground, disc])
    assert (none.rgb_l1, none.alpha_iou) == (0, pytest.approx((1 + 0.5 + 1) / 3))
    assert (one.edits, one.rgb_l1, one.alpha_iou) == (1, 0, 1)
    assert len(stack_distance([ground, *halves], [ground, disc], max_edits=0)) == 1


def test_layers_side_by_side_have_no_order() -> None:
    ground, left, right = layer(0, [1, 1]), layer(0.5, [1, 0]), layer(0.9, [0, 1])
    found = stack_distance([ground, left, right], [ground, right, left])
    assert [(each.rgb_l1, each.alpha_iou) for each in found] == [(0, 1)]


def test_what_is_no_document_is_refused() -> None:
    ground = layer(0, [1, 1])
    with pytest.raises(ValueError, match="prediction and target must have at least 1 layer each, got 0"):
        stack_distance([], [ground])
    with pytest.raises(ValueError, match=r"first \(4, 1, 2\), got \(4, 1, 3\) in prediction"):
        stack_distance([layer(0, [1, 1, 1])], [ground])
    with pytest.raises(ValueError, match=r"target must be finite and in \[0, 1\], got values from 0 to 2"):
        stack_distance([ground], [ground * 2])
    with pytest.raises(ValueError, match="max_edits must be at least 0, got -1"):
        stack_distance([ground], [ground], max_edits=-1)
    with pytest.raises(ValueError, match="documents must be at least 1, got 0"):
        mean_stack_distance([])
