"""The metrics by hand, in their limits, and on a vocabulary of drawn shapes."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from text2layer_core import metrics

Pair = Callable[[Tensor, Tensor], Tensor]


def row(*values: float, channels: int = 1) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, 1, 1, -1).repeat(1, channels, 1, 1)


def test_psnr_by_hand() -> None:
    """Errors of 0.1 and 0.01 everywhere are 20 and 40 dB; equal pictures are infinite."""
    truth = torch.zeros(3, 3, 4, 5)
    prediction = torch.zeros_like(truth)
    prediction[0], prediction[1] = 0.1, 0.01
    assert metrics.psnr(prediction, truth).tolist() == pytest.approx([20, 40, math.inf], abs=1e-4)
    assert torch.equal(metrics.consistency_psnr(prediction, truth), metrics.psnr(prediction, truth))


def test_masked_psnr_sees_only_what_the_mask_shows() -> None:
    """Errors 0.1 inside; 0.9 outside does not count, m = 0.5 is outside; no pixel inside gives NaN."""
    truth, prediction = row(0, 0, 0, 0, channels=3), row(0.1, 0.1, 0.9, 0.9, channels=3)
    assert metrics.masked_psnr(prediction, truth, row(1, 0.6, 0.5, 0)).tolist() == pytest.approx([20], abs=1e-4)
    assert metrics.masked_psnr(prediction, truth, row(0, 0, 0, 0)).isnan().all()


def test_masked_psnr_of_a_full_mask_is_psnr() -> None:
    generator = torch.Generator().manual_seed(0)
    one, two = torch.rand(2, 4, 3, 6, 6, generator=generator)
    torch.testing.assert_close(metrics.masked_psnr(one, two, torch.ones(4, 1, 6, 6)), metrics.psnr(one, two))


def test_soft_iou_by_hand() -> None:
    """(0.5 + 0.2) / (1 + 0.4); disjoint masks 0; equal and empty masks 1."""
    assert metrics.soft_iou(row(0.5, 0.4), row(1, 0.2)).tolist() == pytest.approx([0.5])
    assert metrics.soft_iou(row(1, 0), row(0, 1)).tolist() == [0]
    assert metrics.soft_iou(row(0.3, 0.7), row(0.3, 0.7)).tolist() == [1]
    assert metrics.soft_iou(row(0, 0), row(0, 0)).tolist() == [1]


def test_a_hard_iou_cuts_both_masks() -> None:
    """0.6 everywhere against 1: the same once cut, 0.6 of it soft. Half of it below the cut: half."""
    prediction, target = torch.full((1, 1, 4, 4), 0.6), torch.ones(1, 1, 4, 4)
    assert float(metrics.iou(prediction, target)) == 1
    assert float(metrics.soft_iou(prediction, target)) == pytest.approx(0.6)
    prediction[..., :2] = 0.4
    assert float(metrics.iou(prediction, target)) == 0.5


def test_sad_by_hand() -> None:
    """0.5 + 0.25 + 0 + 1 pixels; the band, 0.02 < m < 0.98 of the truth, holds the second and third alone."""
    prediction, truth = row(0.5, 0.25, 0.5, 0), row(0, 0.5, 0.5, 1)
    assert metrics.sad(prediction, truth).tolist() == pytest.approx([1.75])
    assert metrics.soft_band_sad(prediction, truth).tolist() == pytest.approx([0.25])
    assert metrics.soft_band_sad(truth, truth).tolist() == [0]


def test_every_metric_is_per_sample_and_wide() -> None:
    generator = torch.Generator().manual_seed(0)
    one, two = torch.rand(2, 3, 1, 5, 5, generator=generator).half()
    before = one.clone(), two.clone()
    for metric in (metrics.psnr, metrics.soft_iou, metrics.sad, metrics.soft_band_sad):
        batch = metric(one, two)
        assert batch.shape == (3,)
        assert batch.dtype == torch.float32
        torch.testing.assert_close(batch[1:2], metric(one[1:2], two[1:2]))
        torch.testing.assert_close(batch, metric(one.float(), two.float()))
    assert torch.equal(one, before[0])
    assert torch.equal(two, before[1])


@pytest.mark.parametrize("metric", [metrics.psnr, metrics.soft_iou, metrics.sad, metrics.soft_band_sad])
def test_shapes_that_would_broadcast_are_refused(metric: Pair) -> None:
    with pytest.raises(ValueError, match=r"one shape \(N, C, H, W\), got \(2, 1, 4, 4\) and \(1, 1, 4, 4\)"):
        metric(torch.zeros(2, 1, 4, 4), torch.zeros(1, 1, 4, 4))


@pytest.mark.parametrize("metric", [metrics.soft_iou, metrics.sad, metrics.soft_band_sad])
def test_mask_metrics_refuse_pictures(metric: Pair) -> None:
    with pytest.raises(ValueError, match=r"masks must have shape \(N, 1, H, W\), got \(2, 3, 4, 4\)"):
        metric(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4))


def test_masked_psnr_refuses_a_mask_that_does_not_match() -> None:
    with pytest.raises(ValueError, match=r"mask must have shape \(2, 1, 4, 4\) to match, got \(1, 1, 4, 4\)"):
        metrics.masked_psnr(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), torch.zeros(1, 1, 4, 4))


def sprites() -> Tensor:
    """Six things, straight RGBA 48x48: disc, bar and L in red, disc and bar in blue, a square of two colours."""
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
    disc = ((x - 23.5).square() + (y - 23.5).square()).sqrt() < 20
    bar = ((y - 23.5).abs() < 6) & ((x - 23.5).abs() < 22)
    corner = ((x < 14) | (y > 33)) & (x > 2) & (y < 45)
    square = ((x - 23.5).abs() < 18) & ((y - 23.5).abs() < 18)
    red, blue = torch.tensor([0.9, 0.2, 0.1]), torch.tensor([0.1, 0.2, 0.9])
    plain = [(disc, red), (bar, red), (corner, red), (disc, blue), (bar, blue)]
    drawn = [torch.cat([colour.view(3, 1, 1).expand(3, 48, 48), shape[None].float()]) for shape, colour in plain]
    halves = torch.where(x < 24, red.view(3, 1, 1), blue.view(3, 1, 1))
    return torch.stack([*drawn, torch.cat([halves, square[None].float()])])


LABELS = torch.tensor([10, 11, 12, 13, 14, 15])


def placed(
    *, angle: float = 0.0, size: float = 0.5, opacity: float = 1.0, mirrored: bool = False
) -> tuple[Tensor, Tensor]:
    """The sprites, off the centre of a 96x80 picture, as (foreground, mask)."""
    straight = sprites()
    given = torch.cat([straight[:, :3] * straight[:, 3:], straight[:, 3:]], dim=1)
    if mirrored:
        given = given.flip(-1)
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    aspect = 96 / 80
    matrix = torch.tensor([[c, -s * aspect, 0.1], [s, c * aspect, -0.15]]) / size
    grid = functional.affine_grid(matrix.expand(len(given), 2, 3), [len(given), 4, 96, 80], align_corners=False)
    scene = functional.grid_sample(given, grid, align_corners=False)
    alpha = scene[:, 3:]
    colour = torch.where(alpha > 0, scene[:, :3] / alpha.clamp_min(1e-6), 0).clamp(0, 1)
    return colour, (alpha * opacity).clamp(0, 1)


@pytest.mark.parametrize(
    "change",
    [{}, {"size": 0.3}, {"angle": 13.0}, {"angle": -6.0}, {"mirrored": True}, {"opacity": 0.3}],
    ids=["as is", "small", "turned", "turned back", "mirrored", "glass"],
)
def test_nearest_sprite_knows_a_placed_thing(change: dict[str, float]) -> None:
    """The truth is the sprite that was placed."""
    bank = metrics.sprite_bank(sprites(), LABELS)
    foreground, mask = placed(**change)  # type: ignore[arg-type]
    before = foreground.clone(), mask.clone()
    found = metrics.nearest_sprite(foreground, mask, bank)
    assert found.dtype == torch.long
    assert torch.equal(found, LABELS)
    assert torch.equal(foreground, before[0])
    assert torch.equal(mask, before[1])


def test_nearest_sprite_ignores_colour_and_halo_outside_the_thing() -> None:
    """A tenth of the mask all over the picture is below half of its maximum and leaves the box as it is."""
    bank = metrics.sprite_bank(sprites(), LABELS)
    foreground, mask = placed()
    noise = torch.rand(foreground.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(metrics.nearest_sprite(torch.where(mask > 0, foreground, noise), mask, bank), LABELS)
    assert torch.equal(metrics.nearest_sprite(foreground, mask.clamp_min(0.1), bank), LABELS)


def test_nearest_sprite_of_an_empty_mask_is_no_label() -> None:
    bank = metrics.sprite_bank(sprites(), LABELS)
    foreground, mask = placed()
    mask[2] = 0
    expected = LABELS.clone()
    expected[2] = -1
    assert torch.equal(metrics.nearest_sprite(foreground, mask, bank), expected)


def test_a_bank_may_hold_several_sprites_of_one_label() -> None:
    bank = metrics.sprite_bank(sprites(), torch.tensor([0, 1, 2, 0, 1, 3]))
    assert bank.features.shape == (6, 4 * 32 * 32)
    assert metrics.nearest_sprite(*placed(), bank).tolist() == [0, 1, 2, 0, 1, 3]


def test_sprites_refuse_bad_arguments() -> None:
    given = sprites()
    with pytest.raises(ValueError, match=r"sprites must be floats \(S, 4, h, w\), got torch.float32 \(6, 3, 48, 48\)"):
        metrics.sprite_bank(given[:, :3], LABELS)
    with pytest.raises(ValueError, match=r"labels must be long \(6,\), got torch.int64 \(5,\)"):
        metrics.sprite_bank(given, LABELS[:5])
    with pytest.raises(ValueError, match=r"labels must be long \(6,\), got torch.int32 \(6,\)"):
        metrics.sprite_bank(given, LABELS.int())
    empty = given.clone()
    empty[4, 3] = 0
    with pytest.raises(ValueError, match="every sprite must show something, sprite 4 is transparent"):
        metrics.sprite_bank(empty, LABELS)
    bank = metrics.sprite_bank(given, LABELS)
    foreground, mask = placed()
    with pytest.raises(ValueError, match=r"mask must have shape \(6, 1, 96, 80\) to match, got \(1, 1, 96, 80\)"):
        metrics.nearest_sprite(foreground, mask[:1], bank)
    with pytest.raises(ValueError, match=r"foreground must have shape \(N, 3, H, W\), got \(6, 1, 96, 80\)"):
        metrics.nearest_sprite(mask, mask, bank)
    with pytest.raises(ValueError, match="foreground must be on the sprites' cpu, got meta"):
        metrics.nearest_sprite(foreground.to("meta"), mask.to("meta"), bank)
