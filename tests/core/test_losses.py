"""The losses by hand-computed values and in their limits: m = 0, m = 1, F = B, prediction = truth."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from text2layer_core import losses

Pair = Callable[[Tensor, Tensor], Tensor]


def picture(*values: float, channels: int = 3) -> Tensor:
    """One row of grey pixels, (1, channels, 1, W)."""
    return torch.tensor(values, dtype=torch.float32).view(1, 1, 1, -1).repeat(1, channels, 1, 1)


def mask(*values: float) -> Tensor:
    return picture(*values, channels=1)


def random_layers(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Predicted mask, mask, foreground, background: two samples of 9x12."""
    generator = torch.Generator().manual_seed(0)
    sizes = (1, 1, 3, 3)
    return tuple(torch.rand(2, c, 9, 12, generator=generator).to(dtype) for c in sizes)  # type: ignore[return-value]


def test_reconstruction_l1_by_hand() -> None:
    """(0.5 + 0.1) / 2."""
    loss = losses.reconstruction_l1(picture(0.5, 0.3), picture(0.0, 0.4))
    assert loss.item() == pytest.approx(0.3)


def test_masked_l1_by_hand() -> None:
    """Sample 1: (1 * 0.4 + 0.5 * 0.2) / 1.5; sample 2: an empty mask costs nothing."""
    truth = picture(0.0, 0.0, 0.0, 0.0).repeat(2, 1, 1, 1)
    prediction = picture(0.4, 0.2, 0.9, 0.9).repeat(2, 1, 1, 1)
    masks = torch.cat([mask(1, 0.5, 0, 0), mask(0, 0, 0, 0)])
    assert losses.masked_l1(prediction, truth, masks).item() == pytest.approx(0.5 / 1.5 / 2)


def test_masked_l1_does_not_depend_on_the_area_above_the_floor() -> None:
    """An error of 0.4 under the mask gives 0.4 for every area, and less below the floor: 0.4 * 0.25 / 0.5."""
    truth, prediction = picture(0, 0, 0, 0), picture(0.4, 0.4, 0.4, 0.4)
    for m in (mask(1, 1, 1, 1), mask(1, 1, 0, 0), mask(1, 0, 0, 0)):
        assert losses.masked_l1(prediction, truth, m).item() == pytest.approx(0.4)
    assert losses.masked_l1(prediction, truth, mask(1, 0, 0, 0), floor=0.5).item() == pytest.approx(0.2)


def test_masked_l1_of_means_keeps_a_trace_and_lets_texture_cancel() -> None:
    """A checkerboard of 0.4 costs 0.4 pixel by pixel and nothing in 2x2 means; an even 0.4 costs 0.4 in both."""
    truth, rows, columns = torch.zeros(1, 3, 4, 4), *torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    checkered = (0.4 * (-1.0) ** (rows + columns)).expand(1, 3, 4, 4)
    whole = torch.ones(1, 1, 4, 4)
    assert losses.masked_l1(checkered, truth, whole, scales=1).item() == pytest.approx(0.4)
    assert losses.masked_l1(checkered, truth, whole, scales=3).item() == pytest.approx(0.4 / 3)
    assert losses.masked_l1(truth + 0.4, truth, whole, scales=3).item() == pytest.approx(0.4)
    half = torch.cat([torch.ones(1, 1, 4, 2), torch.zeros(1, 1, 4, 2)], dim=3)  # means across its outline: 4x4 only
    assert losses.masked_l1(truth + 0.4, truth, half, scales=3).item() == pytest.approx(0.4)
    with pytest.raises(ValueError, match=r"multiples of 2\^\(scales - 1\), got scales 4"):
        losses.masked_l1(truth, truth, whole, scales=4)


def test_kl_loss_by_hand() -> None:
    """N(0, 1) costs 0; mean 2, variance 1: 2 nats a value; variance e: (e - 2) / 2; mean over the batch of sums."""
    zero = torch.zeros(2, 3, 1, 1)
    assert losses.kl_loss(zero, zero).item() == 0
    assert losses.kl_loss(zero + 2, zero).item() == pytest.approx(3 * 2)
    assert losses.kl_loss(zero, zero + 1).item() == pytest.approx(3 * (math.e - 2) / 2)
    mean = torch.zeros(2, 3, 1, 1)
    mean[0] = 2
    assert losses.kl_loss(mean, zero).item() == pytest.approx(3 * 2 / 2)


def test_kl_loss_agrees_with_torch_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, logvar = torch.randn(2, 2, 4, 3, 3, generator=generator)
    normal = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    reference = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum() / 2
    torch.testing.assert_close(losses.kl_loss(mean, logvar), reference)


def test_mask_l1_by_hand() -> None:
    assert losses.mask_l1(mask(1, 0), mask(0.5, 0.25)).item() == pytest.approx(0.375)


def test_composition_loss_by_hand() -> None:
    """|m^ - m| |F - B| = 0.5 * 0.6 in one of two pixels; eps in the other."""
    loss = losses.composition_loss(mask(0.5, 1), mask(1, 1), picture(0.8, 0.8), picture(0.2, 0.2))
    assert loss.item() == pytest.approx((0.3 + 1e-6) / 2, abs=1e-7)


def test_composition_loss_is_eps_for_a_true_mask_and_for_equal_layers() -> None:
    predicted, true, foreground, background = random_layers(torch.float64)
    assert losses.composition_loss(true, true, foreground, background).item() == pytest.approx(1e-6)
    assert losses.composition_loss(predicted, true, foreground, foreground).item() == pytest.approx(1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_composition_loss_has_finite_gradients_at_its_minimum(value: float) -> None:
    _, _, foreground, background = random_layers()
    true = torch.full((2, 1, 9, 12), value)
    predicted = true.clone().requires_grad_()
    losses.composition_loss(predicted, true, foreground, background).backward()
    assert predicted.grad is not None
    assert predicted.grad.isfinite().all()


def test_laplacian_pyramid_by_hand() -> None:
    """Row 0, 0, 8, 0 of height 1, filter [1, 3, 3, 1] / 8 at every second pixel, replicated borders.

    Halved: (0 + 0 + 0 + 8) / 8 = 1 and (0 + 3 * 8 + 0 + 0) / 8 = 3, then 3/4, 1/4 interpolation gives
    1, 1.5, 2.5, 3. The height of 1 is replicated and changes nothing.
    """
    first, second = losses.laplacian_pyramid(mask(0, 0, 8, 0), 2)
    assert first.flatten().tolist() == pytest.approx([-1, -1.5, 5.5, -3])
    # Halving 1, 3: (1 + 3 * 1 + 3 * 3 + 3) / 8 = 2.
    assert second.flatten().tolist() == pytest.approx([-1, 1])


def test_laplacian_loss_by_hand() -> None:
    """The row above: 1 * (1 + 1.5 + 5.5 + 3) + 2 * (1 + 1) + 4 * 0, over 4 pixels; eighths, to stay in [0, 1]."""
    loss = losses.laplacian_loss(mask(0, 0, 1, 0), mask(0, 0, 0, 0))
    assert loss.item() == pytest.approx((11 + 4) / 8 / 4)


def test_laplacian_loss_weighs_three_levels_by_1_2_4() -> None:
    """A blob of 8x8 pixels has something on each level, of 16, 8 and 4 rows."""
    empty = torch.zeros(1, 1, 16, 16)
    blob = empty.clone()
    blob[..., 4:12, 4:12] = 1
    levels = losses.laplacian_pyramid(blob, 3)
    expected = sum(2**j * level.abs().sum().item() for j, level in enumerate(levels)) / 256
    assert losses.laplacian_loss(blob, empty).item() == pytest.approx(expected)
    assert all(level.abs().sum() > 0.1 for level in levels)
    assert [level.shape[-1] for level in levels] == [16, 8, 4]


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 13), (16, 16)])
def test_laplacian_levels_rebuild_any_size_and_see_no_constant(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.rand(2, 1, *size, generator=generator, dtype=torch.float64)
    assert losses.laplacian_loss(true, true).item() == 0
    assert losses.laplacian_loss(true + 0.25, true).item() == pytest.approx(0, abs=1e-12)
    shapes = [tuple(level.shape[-2:]) for level in losses.laplacian_pyramid(true, 3)]
    assert shapes == [tuple(math.ceil(side / 2**j) for side in size) for j in range(3)]


def test_mask_loss_adds_its_terms_with_the_papers_weights() -> None:
    predicted, true, foreground, background = random_layers()
    expected = (
        losses.mask_l1(predicted, true)
        + 2 * losses.composition_loss(predicted, true, foreground, background)
        + 3 * losses.laplacian_loss(predicted, true)
    )
    torch.testing.assert_close(losses.mask_loss(predicted, true, foreground, background), expected)
    assert losses.mask_loss(true, true, foreground, background).item() == pytest.approx(2e-6)


def test_mask_loss_is_the_same_under_autocast() -> None:
    arguments = random_layers()
    expected = losses.mask_loss(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(losses.mask_loss(*arguments), expected)


class SquaredDistance(nn.Module):
    """Stands where `lpips.LPIPS` stands: a distance (N, 1, 1, 1), told that pictures are in [0, 1]."""

    def forward(self, in0: Tensor, in1: Tensor, *, normalize: bool) -> Tensor:
        scale = 2.0 if normalize else 1.0
        return (scale * (in0 - in1)).square().mean(dim=(1, 2, 3), keepdim=True)


def test_lpips_loss_passes_pictures_on_and_averages_the_batch() -> None:
    """(2 * 0.5)^2 = 1 for one sample, 0 for the other."""
    prediction = torch.cat([picture(0.5, 0.5), picture(0, 0)])
    assert losses.lpips_loss(SquaredDistance(), prediction, torch.zeros_like(prediction)).item() == pytest.approx(0.5)


def test_gradient_loss_by_hand() -> None:
    """A vertical edge of 1 in 4x4: scale 1 has 4 of 12 horizontal steps, scale 1/2 has 2 of 2: (1/3 + 1) / 2."""
    edge = torch.zeros(1, 1, 4, 4)
    edge[..., 2:] = 1
    flat = torch.zeros_like(edge)
    assert losses.gradient_loss(edge, flat, scales=2).item() == pytest.approx((1 / 3 + 1) / 2)
    assert losses.gradient_loss(edge.mT, flat, scales=2).item() == pytest.approx((1 / 3 + 1) / 2)
    assert losses.gradient_loss(edge, edge, scales=2).item() == 0
    assert losses.gradient_loss(flat + 0.5, flat, scales=2).item() == 0


def test_hinge_losses_by_hand() -> None:
    """Real logits 2, 0 cost 0 and 1; fake logits -3, 1 cost 0 and 2: (0.5 + 1) / 2. Generator: -(-3 + 1) / 2."""
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 1.0])
    assert losses.discriminator_hinge_loss(real, fake).item() == pytest.approx(0.75)
    assert losses.generator_hinge_loss(fake).item() == pytest.approx(1.0)


def test_adaptive_weight_is_the_ratio_of_gradients() -> None:
    """Gradients (3, 4) and (0, 0.5) of norms 5 and 0.5; without an adversarial gradient the ceiling 1e4."""
    weight = nn.Parameter(torch.zeros(2))
    reconstruction, adversarial = (weight * torch.tensor([3.0, 4.0])).sum(), 0.5 * weight[1]
    ratio = losses.adaptive_weight(reconstruction, adversarial, weight)
    assert ratio.item() == pytest.approx(5 / 0.5001)
    assert not ratio.requires_grad
    assert losses.adaptive_weight(reconstruction, 0 * adversarial, weight).item() == 1e4
    (reconstruction + ratio * adversarial).backward()


def test_discriminator_is_latent_diffusions() -> None:
    """Its parameters by hand: 3*64*16+64, 64*128*16+256, 128*256*16+512, 256*512*16+1024, 512*16+1."""
    by_hand = 3136 + 131328 + 524800 + 2098176 + 8193
    network = losses.PatchDiscriminator()
    assert sum(p.numel() for p in network.parameters()) == by_hand


def test_discriminator_judges_patches() -> None:
    network = losses.PatchDiscriminator(width=4)
    logits = network(torch.rand(2, 3, 64, 48))
    assert logits.shape == (2, 1, 6, 4)
    assert network(torch.rand(2, 3, 24, 24)).shape == (2, 1, 1, 1)
    losses.generator_hinge_loss(logits).backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32_and_inputs_stay(dtype: torch.dtype) -> None:
    arguments = random_layers(dtype)
    before = [part.clone() for part in arguments]
    predicted, true, foreground, background = arguments
    results = {
        "mask": losses.mask_loss(*arguments),
        "l1": losses.reconstruction_l1(foreground, background),
        "foreground": losses.masked_l1(foreground, background, true),
        "gradient": losses.gradient_loss(foreground, background),
        "kl": losses.kl_loss(foreground, background),
        "hinge": losses.discriminator_hinge_loss(predicted, true),
    }
    wide = [part.float() for part in arguments]
    assert {name: loss.dtype for name, loss in results.items()} == dict.fromkeys(results, torch.float32)
    torch.testing.assert_close(results["mask"], losses.mask_loss(*wide))
    assert all(torch.equal(part, old) for part, old in zip(arguments, before, strict=True))


@pytest.mark.parametrize(
    "loss",
    [losses.reconstruction_l1, losses.kl_loss, losses.mask_l1, losses.laplacian_loss, losses.gradient_loss],
)
def test_shapes_that_would_broadcast_are_refused(loss: Pair) -> None:
    with pytest.raises(ValueError, match=r"one shape \(N, C, H, W\), got \(2, 1, 8, 8\) and \(1, 1, 8, 8\)"):
        loss(torch.zeros(2, 1, 8, 8), torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize("loss", [losses.mask_l1, losses.laplacian_loss])
def test_mask_losses_refuse_pictures(loss: Pair) -> None:
    with pytest.raises(ValueError, match=r"masks must have shape \(N, 1, H, W\), got \(2, 3, 8, 8\)"):
        loss(torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8))


def test_other_bad_arguments_are_refused() -> None:
    one = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match="floor must be above 0 and at most 1, got 0"):
        losses.masked_l1(one, one, one[:, :1], floor=0)
    with pytest.raises(ValueError, match=r"mask must have shape \(1, 1, 8, 8\) to match, got \(1, 3, 8, 8\)"):
        losses.masked_l1(one, one, one)
    with pytest.raises(ValueError, match=r"H and W at least 2\^scales = 16, got scales 4 and \(1, 3, 8, 8\)"):
        losses.gradient_loss(one, one, scales=4)
    with pytest.raises(ValueError, match=r"scales must be at least 1 .* got scales 0"):
        losses.gradient_loss(one, one, scales=0)
    with pytest.raises(ValueError, match="both tensors must have one shape"):
        losses.lpips_loss(SquaredDistance(), one, one[..., :4])
    with pytest.raises(ValueError, match="at least 1, got 3, 0 and 3"):
        losses.PatchDiscriminator(width=0)
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\) with H and W at least 24, got \(1, 3, 8, 8\)"):
        losses.PatchDiscriminator(width=4)(one)
