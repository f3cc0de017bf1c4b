"""The measures of saliency maps by hand and against pysodmetrics (tests/reference)."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.reference.inputs import recorded, saliency_maps
from text2layer_core.saliency_metrics import ThresholdedMeasure, e_measure, f_measure, s_measure, saliency_mae

REFERENCE = recorded("pysodmetrics")
CLOSE = 1e-9


def given() -> tuple[Tensor, Tensor]:
    maps, things = (torch.from_numpy(each)[:, None].float() / 255 for each in saliency_maps())
    return maps, things


@pytest.mark.parametrize(("name", "measure"), [("mae", saliency_mae), ("s", s_measure)])
def test_plain_measures_are_those_of_pysodmetrics(name: str, measure: Callable[[Tensor, Tensor], Tensor]) -> None:
    maps, things = given()
    before = maps.clone(), things.clone()
    found = measure(maps, things)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([each[name] for each in REFERENCE["each"]], abs=CLOSE)
    assert float(found.mean()) == pytest.approx(REFERENCE["all"][name], abs=CLOSE)
    assert all(map(torch.equal, before, (maps, things)))


@pytest.mark.parametrize(("name", "measure"), [("e", e_measure), ("f", f_measure)])
def test_thresholded_measures_are_those_of_pysodmetrics(
    name: str, measure: Callable[[Tensor, Tensor], ThresholdedMeasure]
) -> None:
    maps, things = given()
    found = measure(maps, things)
    assert found.curve.shape == (len(maps), 256)
    expected: list[dict[str, Any]] = [each[name] for each in REFERENCE["each"]]
    assert found.adaptive.tolist() == pytest.approx([each["adaptive"] for each in expected], abs=CLOSE)
    assert found.mean.tolist() == pytest.approx([each["mean"] for each in expected], abs=CLOSE)
    assert found.curve.amax(dim=1).tolist() == pytest.approx([each["maximum"] for each in expected], abs=CLOSE)
    whole = {"adaptive": found.adaptive.mean(), "mean": found.mean.mean(), "maximum": found.maximum}
    for key, value in whole.items():
        assert float(value) == pytest.approx(REFERENCE["all"][name][key], abs=CLOSE)


def test_f_measure_by_hand() -> None:
    """Three pixels shown, two of them among the thing's four: 1.3 * 2/3 * 1/2 / (0.3 * 2/3 + 1/2)."""
    thing = torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0, 0, 0]).view(1, 1, 2, 5)
    shown = torch.tensor([1.0, 1, 0, 0, 1, 0, 0, 0, 0, 0]).view(1, 1, 2, 5)
    assert f_measure(shown, thing).adaptive.tolist() == pytest.approx([1.3 / 3 / 0.7])
    assert saliency_mae(shown, thing).tolist() == pytest.approx([0.3])


def test_a_thing_in_the_lowest_row_leaves_two_quarters() -> None:
    """There pysodmetrics prints NaN; a map that is the truth has the measure 1 all the same."""
    thing = torch.zeros(1, 1, 6, 6)
    thing[..., 5, 1:4] = 1
    assert s_measure(thing, thing).tolist() == pytest.approx([1])


@pytest.mark.parametrize("measure", [saliency_mae, s_measure, e_measure, f_measure])
def test_what_is_no_pair_of_maps_is_refused(measure: Callable[[Tensor, Tensor], object]) -> None:
    mask = torch.zeros(2, 1, 4, 4)
    with pytest.raises(ValueError, match=r"prediction must have target's shape \(1, 1, 4, 4\), got \(2, 1, 4, 4\)"):
        measure(mask, mask[:1])
    with pytest.raises(ValueError, match=r"mask must have shape \(N, 1, H, W\), none of them 0, got \(2, 3, 4, 4\)"):
        measure(torch.zeros(2, 3, 4, 4), mask)
    with pytest.raises(ValueError, match=r"mask must be finite and in \[0, 1\], got values from 2 to 2"):
        measure(mask, mask + 2)
