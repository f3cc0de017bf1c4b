"""The errors of mattes by hand, in their limits, and against SciPy and scikit-image (tests/reference)."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.reference.inputs import mattes, recorded
from text2layer_core.matting_metrics import connectivity_error, gradient_error, mse

ERRORS: dict[str, Callable[..., Tensor]] = {"mse": mse, "gradient": gradient_error, "connectivity": connectivity_error}
REFERENCE = recorded("matting")


def given(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    prediction, target, unknown = (torch.from_numpy(np.array(each))[:, None] for each in mattes())
    return prediction.to(dtype), target.to(dtype), unknown


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_errors_are_those_of_the_reference(name: str, dtype: torch.dtype) -> None:
    prediction, target, unknown = given(dtype)
    before = prediction.clone(), target.clone(), unknown.clone()
    found = ERRORS[name](prediction, target)
    assert found.dtype == dtype
    close = 1e-9 if dtype == torch.float64 else 1e-5
    assert found.tolist() == pytest.approx(REFERENCE[name]["everywhere"], rel=close)
    assert ERRORS[name](prediction, target, unknown).tolist() == pytest.approx(REFERENCE[name]["unknown"], rel=close)
    assert all(map(torch.equal, before, (prediction, target, unknown)))


@pytest.mark.parametrize("name", ERRORS)
def test_equal_mattes_have_no_error(name: str) -> None:
    _, target, unknown = given()
    assert ERRORS[name](target, target).tolist() == [0] * 4
    assert ERRORS[name](target, target, unknown).tolist() == [0] * 4


def test_errors_by_hand() -> None:
    """0.25 of four pixels squared; a matte that is flat has no gradient; two pixels of 0.5 that no body holds."""
    target = torch.tensor([[[[0.0, 0.0, 0.5, 1.0]]]])
    prediction = torch.tensor([[[[0.0, 0.0, 0.0, 1.0]]]])
    assert mse(prediction, target).tolist() == pytest.approx([0.0625])
    assert mse(prediction, target, target == 0.5).tolist() == pytest.approx([0.25])
    flat = torch.full((1, 1, 9, 9), 0.3)
    assert gradient_error(flat, torch.zeros(1, 1, 9, 9)).tolist() == pytest.approx([0], abs=1e-9)
    assert connectivity_error(prediction, target).tolist() == pytest.approx([0.5e-3])
    half = target.half()
    assert mse(prediction.half(), half).dtype == torch.float32


@pytest.mark.parametrize("error", ERRORS.values())
def test_what_is_no_pair_of_mattes_is_refused(error: Callable[..., Tensor]) -> None:
    matte = torch.zeros(2, 1, 4, 4)
    with pytest.raises(ValueError, match=r"target must have shape \(2, 1, 4, 4\) to match prediction, got \(1, 1, 4"):
        error(matte, matte[:1])
    with pytest.raises(ValueError, match=r"mattes must have shape \(N, 1, H, W\), got \(2, 3, 4, 4\)"):
        error(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"unknown must have shape \(2, 1, 4, 4\) to match prediction, got \(1, 1, 4"):
        error(matte, matte, matte[:1] > 0)
    with pytest.raises(ValueError, match=r"unknown must be bool, got torch.float32"):
        error(matte, matte, matte)
