"""Distances of sets by hand, in their limits, and against clean-fid (tests/reference); CLIP at tiny size."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from tests.core.clip import tiny_clip
from tests.reference.inputs import FEATURE_SETS, PICTURE_SIZES, SAMPLED, features, picture, recorded
from text2layer_core.distribution import (
    clip_score,
    frechet_distance,
    inception_features,
    kernel_distance,
    resize_for_inception,
)

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPProcessor

REFERENCE = recorded("cleanfid")


def given(name: str) -> tuple[Tensor, Tensor]:
    first, second = features(name)
    return torch.from_numpy(first), torch.from_numpy(second)


def shown(name: str) -> Tensor:
    return torch.from_numpy(picture(name)).permute(2, 0, 1) / 255


def whitened(count: int, dimensions: int) -> Tensor:
    """Features whose mean is 0 and whose unbiased covariance is the unit matrix, up to rounding."""
    random = torch.randn(count, dimensions, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return torch.linalg.qr(random - random.mean(dim=0)).Q * (count - 1) ** 0.5


@pytest.mark.parametrize("name", FEATURE_SETS)
def test_frechet_distance_is_that_of_clean_fid(name: str) -> None:
    """Of 20 and 16 samples in 24 dimensions clean-fid takes the root of a singular matrix: less exact, not ours."""
    close = 1e-7 if name == "few" else 1e-9
    assert frechet_distance(*given(name)) == pytest.approx(REFERENCE["frechet"][name], rel=close)


def test_frechet_distance_of_shifted_and_scaled_gaussians() -> None:
    """|shift|^2 where both covariances are the unit matrix, and sum (s - 1)^2 for standard deviations s and 1."""
    unit = whitened(50, 6)
    shift = torch.tensor([1.0, -2, 0, 0.5, 0, 3], dtype=torch.float64)
    assert frechet_distance(unit + shift, unit) == pytest.approx(14.25)
    deviations = torch.tensor([1.0, 2, 0.5, 3, 0, 1], dtype=torch.float64)
    assert frechet_distance(unit * deviations, unit) == pytest.approx(1 + 0.25 + 4 + 1)


@pytest.mark.parametrize("name", FEATURE_SETS)
def test_a_set_is_no_distance_from_itself(name: str) -> None:
    first, _ = given(name)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(first, first.flip(0)) == pytest.approx(0, abs=1e-9)


def test_kernel_distance_is_that_of_clean_fid() -> None:
    """Of sets of one size below 1000 clean-fid's subsets are the sets."""
    assert kernel_distance(*given("equal")) == pytest.approx(REFERENCE["kernel"]["equal"], rel=1e-9)


def test_kernel_distance_by_hand() -> None:
    """k(0, 0) = 1, k(1, 1) = 8, k(0, 1) = 1: pairs of [0, 1] and of [1, 1] mean 1 and 8, across (1 + 8) / 2."""
    zero_one, ones = torch.tensor([[0.0], [1]]), torch.tensor([[1.0], [1]])
    assert kernel_distance(zero_one, ones) == pytest.approx(1 + 8 - 9)
    assert kernel_distance(torch.zeros(3, 1), ones) == pytest.approx(1 + 8 - 2)


def test_distances_are_computed_in_float64() -> None:
    first, second = (each.float() for each in given("equal"))
    for distance in (frechet_distance, kernel_distance):
        assert distance(first, second) == pytest.approx(distance(first.double(), second.double()), rel=1e-12)


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_what_are_no_features_is_refused(distance: Callable[[Tensor, Tensor], float]) -> None:
    good = torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"features must have shape \(N, D\) with N at least 2, got \(1, 4\)"):
        distance(good[:1], good)
    with pytest.raises(ValueError, match=r"reference must have shape \(N, D\) with N at least 2, got \(3, 4, 1\)"):
        distance(good, good[..., None])
    with pytest.raises(ValueError, match="features must have the 4 dimensions of reference, got 3"):
        distance(good[:, :3], good)
    with pytest.raises(ValueError, match=r"features must have a floating dtype, got torch\.int64"):
        distance(good.long(), good)


@pytest.mark.parametrize("name", PICTURE_SIZES)
def test_resized_pictures_are_those_of_clean_fid(name: str) -> None:
    given_picture = shown(name)
    before = given_picture.clone()
    found = resize_for_inception(given_picture)
    assert found.shape == (3, 299, 299)
    assert found.dtype == torch.float32
    expected = torch.tensor(REFERENCE["resized"][name])
    torch.testing.assert_close(found.permute(1, 2, 0)[SAMPLED], expected, rtol=0, atol=1e-4)
    assert torch.equal(given_picture, before)


def test_pictures_reach_the_network_in_batches_and_in_order() -> None:
    sizes: list[int] = []

    def network(batch: Tensor) -> Tensor:
        sizes.append(len(batch))
        return batch.mean(dim=(2, 3), keepdim=True)

    grey = [torch.full((3, 8, 9), level / 255) for level in range(5)]
    found = inception_features(network, iter(grey), batch_size=2)
    assert sizes == [2, 2, 1]
    torch.testing.assert_close(found, torch.arange(5.0)[:, None].expand(5, 3))


def test_what_are_no_pictures_is_refused() -> None:
    with pytest.raises(ValueError, match="pictures must be at least 1, got 0"):
        inception_features(lambda batch: batch, [])
    with pytest.raises(ValueError, match=r"picture must have shape \(3, H, W\), none of them 0, got \(1, 3, 8, 8\)"):
        resize_for_inception(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"picture must be finite and in \[0, 1\], got values from 0 to 255"):
        resize_for_inception(torch.tensor([0.0, 255, 0]).view(3, 1, 1))


@pytest.fixture(scope="module")
def clip() -> tuple[CLIPModel, CLIPProcessor]:
    return tiny_clip()


def test_clip_score_is_the_cosine_of_both_embeddings(clip: tuple[CLIPModel, CLIPProcessor]) -> None:
    """Against each pair by itself, through the towers rather than the whole model; long captions are cut."""
    model, processor = clip
    pictures = [shown("small"), shown("wide")]
    captions = ["red fox", "a caption of many more than twelve letters"]
    found = clip_score(model, processor, pictures, captions)
    assert found.shape == (2,)
    assert bool((found.abs() <= 1).all())
    for score, name, caption in zip(found, ("small", "wide"), captions, strict=True):
        inputs = processor.image_processor(Image.fromarray(picture(name)), return_tensors="pt")
        text = processor.tokenizer(caption, truncation=True, return_tensors="pt")
        with torch.no_grad():
            seen = model.visual_projection(model.vision_model(**inputs).pooler_output)
            read = model.text_projection(model.text_model(**text).pooler_output)
        torch.testing.assert_close(score, functional.cosine_similarity(seen, read)[0])
    whole = torch.stack([shown("small"), shown("small").flip(-1)])
    torch.testing.assert_close(clip_score(model, processor, whole, ["red fox", "red fox"])[0], found[0])


def test_clip_score_refuses_other_counts(clip: tuple[CLIPModel, CLIPProcessor]) -> None:
    with pytest.raises(ValueError, match="pictures and captions must be as many, at least 1, got 1 and 2"):
        clip_score(*clip, [shown("small")], ["red", "fox"])
    with pytest.raises(ValueError, match="pictures and captions must be as many, at least 1, got 0 and 0"):
        clip_score(*clip, [], [])
