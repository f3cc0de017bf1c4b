"""Refined masks: what may change, whether it comes nearer to the truth, and each method's own limits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from text2layer_core import closed_form, refine
from text2layer_core.guided import guided_mask
from text2layer_core.masks import grow_mask, refinement_band
from text2layer_core.refine import RefineMethod, RefineOptions, refine_mask
from text2layer_core.vitmatte import VitMatte, load_vitmatte

METHODS = [RefineMethod.GUIDED, RefineMethod.CLOSED_FORM]


def scene(height: int = 120, width: int = 160, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """A disc and a bar in warm colours on a blue ramp, anti-aliased: picture and true mask, two of each."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    disc = (height / 3 - ((y - height / 2) ** 2 + (x - width / 2) ** 2).sqrt()).add(0.5).clamp(0, 1)
    bar = (height / 4 - (y - height / 2).abs()).add(0.5).clamp(0, 1) * (width / 3 - (x - width / 2).abs()).clamp(0, 1)
    mask = torch.stack([disc, bar])[:, None]
    warm = torch.tensor([0.9, 0.4, 0.1]).view(1, 3, 1, 1)
    ramp = torch.tensor([0.1, 0.3, 0.9]).view(1, 3, 1, 1) * (0.6 + 0.4 * x / width)
    return (mask * warm + (1 - mask) * ramp).to(dtype), mask.to(dtype)


def coarse(mask: Tensor) -> Tensor:
    """Downsampled eightfold and back."""
    return functional.interpolate(functional.avg_pool2d(mask, 8), scale_factor=8, mode="bilinear")


def error(mask: Tensor, truth: Tensor) -> Tensor:
    return (mask - truth).abs().sum(dim=(1, 2, 3))


@pytest.mark.parametrize("method", METHODS)
def test_a_coarse_mask_comes_nearer_to_the_truth(method: RefineMethod) -> None:
    image, truth = scene()
    given = coarse(truth)
    refined = refine_mask(image, given, RefineOptions(method=method, radius=0.08))
    assert (error(refined, truth) < 0.4 * error(given, truth)).all()


def test_an_eroded_mask_comes_nearer_to_the_truth() -> None:
    image, truth = scene()
    given = grow_mask(truth, -4)
    assert (error(refine_mask(image, given, RefineOptions(radius=0.1)), truth) < 0.7 * error(given, truth)).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_only_the_band_changes_bit_for_bit(method: RefineMethod, dtype: torch.dtype) -> None:
    image, truth = scene(dtype=dtype)
    given = coarse(truth)
    given[:, :, :10] += 0.01  # neither 0 nor soft
    given[:, :, 50:70, 70:90] -= 0.013
    given = given.clamp(0, 1)
    before = image.clone(), given.clone()
    refined = refine_mask(image, given, RefineOptions(method=method))
    band = refinement_band(given, 0.03 * 120)
    assert refined.dtype == dtype
    assert torch.equal(refined[~band], given[~band])
    assert not torch.equal(refined[band], given[band])
    assert 0 <= refined.min() <= refined.max() <= 1
    assert torch.equal(image, before[0])
    assert torch.equal(given, before[1])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 1.0, 0.01, 0.99])
def test_masks_without_an_edge_stay(method: RefineMethod, value: float) -> None:
    image, truth = scene()
    given = torch.full_like(truth, value)
    assert torch.equal(refine_mask(image, given, RefineOptions(method=method)), given)


@pytest.mark.parametrize("method", METHODS)
def test_samples_are_apart(method: RefineMethod) -> None:
    image, truth = scene()
    given = coarse(truth)
    options = RefineOptions(method=method)
    whole = refine_mask(image, given, options)
    each = torch.cat([refine_mask(image[i : i + 1], given[i : i + 1], options) for i in range(2)])
    torch.testing.assert_close(whole, each, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (1, 40), (33, 7)])
def test_every_size_works(method: RefineMethod, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    image, mask = torch.rand(2, 3, *size, generator=generator), torch.rand(2, 1, *size, generator=generator)
    refined = refine_mask(image, mask, RefineOptions(method=method, radius=0.5))
    assert refined.shape == mask.shape
    assert refined.isfinite().all()


def test_glass_keeps_its_opacity() -> None:
    """A pane of 40 % far from its own edge, in a picture of one colour pair."""
    pane = torch.zeros(1, 1, 120, 120)
    pane[..., 30:90, 30:90] = 0.4
    colour = torch.tensor([0.2, 0.9, 0.3]).view(1, 3, 1, 1)
    refined = refine_mask(pane * colour + (1 - pane) * 0.5, pane)
    assert (refined[..., 45:75, 45:75] - 0.4).abs().max() < 0.01


def test_a_picture_of_one_colour_leaves_a_soft_edge_where_it_is() -> None:
    """The fit has nothing to go by: the contour moves by no more than the smoothing."""
    _, truth = scene()
    given = coarse(truth)
    refined = guided_mask(torch.full((2, 3, 120, 160), 0.5), given, 6.0)
    assert ((refined > 0.5) != (given > 0.5)).float().mean() < 0.02


def test_the_edits_are_those_of_masks_in_their_order() -> None:
    image, truth = scene()
    options = RefineOptions(method="none", threshold=0.5, grow=2.0, feather=1.5)
    expected = refine.feather_mask(grow_mask((truth >= 0.5).float(), 2.0), 1.5)
    assert torch.equal(refine_mask(image, truth, options), expected)
    speckled = truth.clone()
    speckled[..., 2, 2], speckled[..., 60, 80] = 1, 0
    clean = refine_mask(image, speckled, RefineOptions(method="none", drop_specks=4, fill_holes=math.inf))
    assert torch.equal(clean, truth)


def dense_laplacian(image: Tensor) -> Tensor:
    """Levin et al., eq. 12, window by window in float64, (H * W, H * W)."""
    _, height, width = image.shape
    total = torch.zeros(height * width, height * width, dtype=torch.double)
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            colours = image[:, y - 1 : y + 2, x - 1 : x + 2].flatten(1).double()
            places = torch.tensor([v * width + u for v in (y - 1, y, y + 1) for u in (x - 1, x, x + 1)])
            centred = colours - colours.mean(dim=1, keepdim=True)
            covariance = centred @ centred.T / 9 + 1e-7 / 9 * torch.eye(3, dtype=torch.double)
            block = torch.eye(9, dtype=torch.double) - (1 + centred.T @ covariance.inverse() @ centred) / 9
            total[places[:, None], places] += block
    return total


def test_closed_form_solves_the_matting_laplacian() -> None:
    """The dense system of the paper, solved directly."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 14, 17, generator=generator).double()
    trimap = torch.full((1, 1, 14, 17), 0.5).double()
    trimap[..., :4], trimap[..., 12:] = 0, 1
    trimap[..., 0, 8] = 1
    laplacian, known = dense_laplacian(image[0]), (trimap != 0.5).flatten()
    expected = trimap.flatten().clone()
    right = -laplacian[~known][:, known] @ expected[known]
    expected[~known] = torch.linalg.solve(laplacian[~known][:, ~known], right)
    for multiply in ("sparse", "gathered"):
        with pytest.MonkeyPatch.context() as patch:
            if multiply == "gathered":
                patch.setattr(torch.backends.mkl, "is_available", lambda: False)
            found = closed_form.solve_matting(image, trimap, trimap, tolerance=1e-10, most_steps=5000)
        torch.testing.assert_close(found.flatten(), expected.clamp(0, 1), atol=1e-6, rtol=0)


def test_colours_on_one_line_are_no_trouble() -> None:
    """Windows of two colours, anti-aliased in between: their covariance has rank 1, and epsilon is below rounding."""
    _, truth = scene(90, 90)
    pair = torch.tensor([[0.987, 0.123, 0.456], [0.111, 0.999, 0.777]]).view(2, 3, 1, 1)
    image = torch.lerp(pair[:1], pair[1:], truth)
    refined = refine_mask(image, coarse_any(truth), RefineOptions(method="closed_form", radius=0.1))
    assert (error(refined, truth) < 0.1 * error(coarse_any(truth), truth)).all()


def coarse_any(mask: Tensor) -> Tensor:
    """As `coarse`, for sides that are no multiples of 8."""
    return functional.interpolate(functional.avg_pool2d(mask, 6), size=mask.shape[-2:], mode="bilinear")


def test_closed_form_without_a_known_pixel_keeps_the_guess() -> None:
    image, guess = torch.rand(1, 3, 8, 8), torch.rand(1, 1, 8, 8)
    assert torch.equal(closed_form.solve_matting(image, torch.full_like(guess, 0.5), guess), guess)


def tiny_vitmatte() -> Any:
    from transformers import VitDetConfig, VitMatteConfig, VitMatteForImageMatting

    torch.manual_seed(0)
    backbone = VitDetConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=64, patch_size=16,
                            num_channels=4, window_size=0, window_block_indices=[], residual_block_indices=[],
                            out_features=["stage1"], use_relative_position_embeddings=False)
    return VitMatteForImageMatting(VitMatteConfig(
        backbone_config=backbone, hidden_size=16, convstream_hidden_sizes=[8, 8, 8], fusion_hidden_sizes=[16, 8, 8, 8],
    )).eval()


def test_vitmatte_gets_what_its_own_processor_gives(tmp_path: Path) -> None:
    """The image processor of transformers on 8-bit pictures, the same network called directly."""
    from transformers import VitMatteImageProcessor

    tiny_vitmatte().save_pretrained(tmp_path)
    model = load_vitmatte(tmp_path)
    image, truth = scene(50, 70)
    image, trimap = (image * 255).round() / 255, refine.trimap(truth, refinement_band(truth, 4))
    grey = torch.where(trimap == 0.5, 128, trimap * 255).byte()
    processor = VitMatteImageProcessor(size_divisor=32)
    inputs = processor(images=[(each * 255).byte().permute(1, 2, 0).numpy() for each in image],
                       trimaps=[each[0].numpy() for each in grey], return_tensors="pt")
    with torch.no_grad():
        expected = model.model(**inputs).alphas[..., :50, :70]
    torch.testing.assert_close(model(image, trimap), expected, atol=5e-3, rtol=0)  # 128 / 255 is not quite 0.5
    refined = refine_mask(image.half(), truth.half(), RefineOptions(method="vitmatte"), matting_model=model)
    band = refinement_band(truth.half(), 0.03 * 50)
    assert refined.dtype == torch.float16
    assert torch.equal(refined[~band], truth.half()[~band])


def test_vitmatte_refuses_other_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"must hold config.json and model.safetensors, got weights"):
        load_vitmatte(tmp_path / "weights")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="must hold a model of type vitmatte, got bert"):
        load_vitmatte(tmp_path)
    monkeypatch.setattr("text2layer_core.vitmatte.vitmatte_available", lambda: False)
    with pytest.raises(ValueError, match="must have the package transformers, got an environment without it"):
        load_vitmatte(tmp_path)
    assert isinstance(VitMatte(torch.nn.Linear(1, 1)), VitMatte)


@pytest.mark.parametrize(("changes", "message"), [
    ({"method": "magic"}, "method must be one of none, guided, closed_form, vitmatte, got magic"),
    ({"radius": 0}, "radius must lie above 0 and be at most 0.5 of the shorter side, got 0"),
    ({"radius": math.nan}, "radius must lie above 0 .* got nan"),
    ({"threshold": 2}, "threshold must lie in .0, 1., got 2"),
    ({"drop_specks": -1}, "drop_specks must be at least 0 pixels, got -1"),
    ({"fill_holes": math.nan}, "fill_holes must be at least 0 pixels, got nan"),
    ({"grow": math.inf}, "grow must be finite, got inf"),
    ({"feather": -1}, "feather must be at least 0 pixels and finite, got -1"),
])
def test_options_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RefineOptions(**changes)


def test_bad_masks_are_refused() -> None:
    image, truth = scene()
    with pytest.raises(ValueError, match="mask must have the size of image, 160x120, got 80x120"):
        refine_mask(image, truth[..., :80])
    with pytest.raises(ValueError, match=r"mask must be finite and in .0, 1., got values from nan to nan"):
        refine_mask(image, truth * math.nan)
    with pytest.raises(ValueError, match="method vitmatte must be given a matting_model, got none"):
        refine_mask(image, truth, RefineOptions(method="vitmatte"))
