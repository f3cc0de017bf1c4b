"""The losses of CaT2I-AE (paper: "CaT2I-AE", eq. 3, 4, 7, 8 and appendix III).

The paper writes sums; every loss here is a mean over batch and pixels (our choice: it keeps the
weights 1/2/3 independent of the image size), except `kl_loss`, which is Latent Diffusion's. Pictures
and masks are in [0, 1]; a loss is a scalar in float32 or better, whatever the inputs' dtype.
"""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from .compositing import blend, check_mask_pair, check_mask_shape, check_pair, widen

MASK_L1_WEIGHT, COMPOSITION_WEIGHT, LAPLACIAN_WEIGHT = 1.0, 2.0, 3.0
LAPLACIAN_LEVELS = 3
COMPOSITION_EPS = 1e-6


class PerceptualNetwork(Protocol):
    """What `lpips.LPIPS` offers: a distance per sample between pictures in [0, 1] (`normalize=True`)."""

    def __call__(self, in0: Tensor, in1: Tensor, *, normalize: bool) -> Tensor:
        """Distances of (N, 3, H, W) pictures, one number per sample."""
        ...


def reconstruction_l1(prediction: Tensor, target: Tensor) -> Tensor:
    """The L1 term of L_img (eq. 3), for F, B or I: mean |x^ - x| over all values.

    Raises:
        ValueError: the shapes differ or are not (N, C, H, W).
    """
    check_pair(prediction, target)
    return _absolute_difference(prediction, target).mean()


def masked_l1(
    prediction: Tensor, target: Tensor, mask: Tensor, *, floor: float = 0.05, scales: int = 1
) -> Tensor:
    """L1 normalised by the mask's area: sum m |F^ - F| / sum m per sample and channel; of F or of what B hides.

    Not in the paper: over the whole picture a small thing hardly counts, so that F comes out in one hue, and B keeps a
    trace of it. Such a trace is faint and wide, and texture that cannot be had outweighs it pixel by pixel; where the
    error m (B^ - B) is averaged over 2x2, 4x4, ... pixels first, texture cancels out and the trace stays.

    Args:
        prediction: F^ or B^, (N, C, H, W).
        target: F or B, (N, C, H, W).
        mask: the true m, (N, 1, H, W).
        floor: the least area, as a share of the picture, that is divided by: keeps the loss of an
            almost empty mask from exploding; above 0, at most 1.
        scales: at least 1; the mean over this many is returned: single pixels, 2x2 means, 4x4 means, ...

    Raises:
        ValueError: the shapes do not belong together, the floor or the scales are out of range, or a side is no
            multiple of 2^(scales - 1) pixels.
    """
    check_pair(prediction, target)
    check_mask_shape(mask, target)
    if not 0 < floor <= 1:
        raise ValueError(f"floor must be above 0 and at most 1, got {floor}")
    if scales < 1 or any(side % 2 ** (scales - 1) for side in prediction.shape[-2:]):
        raise ValueError("scales must be at least 1 and pictures (N, C, H, W) with H and W multiples of "
                         f"2^(scales - 1), got scales {scales} and {tuple(prediction.shape)}")
    weight = widen(mask)
    error = weight * (widen(prediction) - widen(target))
    area = weight.mean(dim=(1, 2, 3)).clamp_min(floor)
    terms: list[Tensor] = []
    for scale in range(scales):
        pooled = functional.avg_pool2d(error, 2**scale) if scale else error
        terms.append((pooled.abs().mean(dim=(1, 2, 3)) / area).mean())
    return torch.stack(terms).mean()


def kl_loss(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) of the latent, in nats: summed per sample, mean over the batch.

    As in Latent Diffusion (`DiagonalGaussianDistribution.kl`), whose L1 is summed over the picture
    as well: beside our means, its weight 1e-6 becomes 1e-6 / (3 H W). Its pictures lie in [-1, 1],
    where an L1 is twice ours; the paper gives no weight, and we leave it at that.

    Args:
        mean: (N, C, h, w).
        logvar: (N, C, h, w), natural logarithm of the variance.

    Raises:
        ValueError: the shapes differ or are not (N, C, H, W).
    """
    check_pair(mean, logvar)
    mean, logvar = widen(mean), widen(logvar)
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(dim=1).mean()


def mask_l1(prediction: Tensor, target: Tensor) -> Tensor:
    """The first term of L_mask (appendix III): mean |m^ - m|, masks (N, 1, H, W).

    Raises:
        ValueError: the shapes differ or are not those of masks.
    """
    check_mask_pair(prediction, target)
    return _absolute_difference(prediction, target).mean()


def composition_loss(predicted_mask: Tensor, mask: Tensor, foreground: Tensor, background: Tensor) -> Tensor:
    """l_comp (eq. 7): sqrt((C - C^)^2 + eps^2), the true layers composed with the predicted mask.

    C = m F + (1 - m) B, C^ = m^ F + (1 - m^) B, eps = 1e-6 (Deep Image Matting). The paper sums over
    pixels; here it is the mean over batch, channels and pixels. A perfect mask gives eps.

    Args:
        predicted_mask: m^, (N, 1, H, W).
        mask: m, (N, 1, H, W).
        foreground: the true F, (N, 3, H, W).
        background: the true B, (N, 3, H, W).

    Raises:
        ValueError: the shapes do not belong together.
    """
    check_mask_pair(predicted_mask, mask)
    composed = blend(widen(foreground), widen(background), widen(mask))
    predicted = blend(widen(foreground), widen(background), widen(predicted_mask))
    return ((composed - predicted).square() + COMPOSITION_EPS**2).sqrt().mean()


def laplacian_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """l_lap (eq. 8): sum over j = 1..3 of 2^(j-1) ||phi_j(m^) - phi_j(m)||_1, masks (N, 1, H, W).

    Each norm is divided by N H W of the full-sized mask, so the levels keep the ratio of eq. 8. The
    paper is silent about the pyramid: ours holds three band-pass levels (no residue, so a constant
    offset costs nothing here) with the binomial filter [1, 3, 3, 1] / 8, borders replicated.

    Raises:
        ValueError: the shapes differ or are not those of masks.
    """
    check_mask_pair(prediction, target)
    # The pyramid is linear: the levels of the difference are the differences of the levels.
    levels = laplacian_pyramid(widen(prediction) - widen(target), LAPLACIAN_LEVELS)
    norms = [2**level * band.abs().sum() for level, band in enumerate(levels)]
    return torch.stack(norms).sum() / target.numel()


def mask_loss(predicted_mask: Tensor, mask: Tensor, foreground: Tensor, background: Tensor) -> Tensor:
    """L_mask (eq. 4, appendix III) = L1(m^, m) + 2 l_comp + 3 l_lap; arguments as for `composition_loss`.

    Raises:
        ValueError: the shapes do not belong together.
    """
    return (
        MASK_L1_WEIGHT * mask_l1(predicted_mask, mask)
        + COMPOSITION_WEIGHT * composition_loss(predicted_mask, mask, foreground, background)
        + LAPLACIAN_WEIGHT * laplacian_loss(predicted_mask, mask)
    )


def lpips_loss(network: PerceptualNetwork, prediction: Tensor, target: Tensor) -> Tensor:
    """The perceptual term of L_img (eq. 3): LPIPS of pictures (N, 3, H, W) in [0, 1], mean over the batch.

    The network is passed in, as `lpips.LPIPS(net="vgg")`: its weights are not always to be had, and
    whoever has none calls `gradient_loss` and says so.

    Raises:
        ValueError: the shapes differ or are not (N, C, H, W).
    """
    check_pair(prediction, target)
    return network(prediction, target, normalize=True).mean()


def gradient_loss(prediction: Tensor, target: Tensor, *, scales: int = 3) -> Tensor:
    """The stated substitute for LPIPS where its weights are missing: L1 of image gradients at several scales.

    Not in the paper. Mean |d(x^ - x)| of horizontal and of vertical neighbours, added, averaged
    over the scales 1, 1/2, 1/4, ... (2x2 means).

    Args:
        prediction: (N, C, H, W).
        target: (N, C, H, W).
        scales: number of scales, at least 1.

    Raises:
        ValueError: the shapes differ or are not (N, C, H, W), or the picture is smaller than 2^scales pixels.
    """
    check_pair(prediction, target)
    least = 2**scales
    if scales < 1 or min(prediction.shape[-2:]) < least:
        raise ValueError(
            f"scales must be at least 1 and pictures (N, C, H, W) with H and W at least 2^scales = {least}, "
            f"got scales {scales} and {tuple(prediction.shape)}"
        )
    error = widen(prediction) - widen(target)
    terms: list[Tensor] = []
    for _ in range(scales):
        terms.append(error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean())
        error = functional.avg_pool2d(error, 2)
    return torch.stack(terms).mean()


def discriminator_hinge_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Latent Diffusion's patch-adversarial loss of the discriminator: (E[1 - D(x)]+ + E[1 + D(x^)]+) / 2."""
    real = functional.relu(1 - widen(real_logits)).mean()
    fake = functional.relu(1 + widen(fake_logits)).mean()
    return 0.5 * (real + fake)


def generator_hinge_loss(fake_logits: Tensor) -> Tensor:
    """Latent Diffusion's patch-adversarial loss of the autoencoder: -E[D(x^)]."""
    return -widen(fake_logits).mean()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_weight: Tensor) -> Tensor:
    """Latent Diffusion's weight of the adversarial term: ||grad L_rec|| / (||grad L_adv|| + 1e-4), at most 1e4.

    Both gradients are taken with respect to the last layer's weight; the graph is kept for the
    step itself. Latent Diffusion multiplies the result by 0.5.

    Args:
        reconstruction: scalar loss that depends on `last_weight`.
        adversarial: `generator_hinge_loss` of the same output.
        last_weight: weight of the decoder's (or a head's) last layer.

    Returns:
        A detached scalar.
    """
    (rec_gradient,) = torch.autograd.grad(reconstruction, last_weight, retain_graph=True)
    (adv_gradient,) = torch.autograd.grad(adversarial, last_weight, retain_graph=True)
    return (rec_gradient.norm() / (adv_gradient.norm() + 1e-4)).clamp(0, 1e4).detach()


class PatchDiscriminator(nn.Module):
    """Latent Diffusion's `NLayerDiscriminator` (PatchGAN of pix2pix): one logit per overlapping patch.

    Strided 4x4 convolutions, BatchNorm, LeakyReLU 0.2, weights drawn from N(0, 0.02). It sees
    [0, 1] where Latent Diffusion's sees [-1, 1]; its first bias takes up the difference.

    Args:
        in_channels: channels of the picture.
        width: channels after the first layer; doubled per layer, up to eightfold.
        layers: number of strided layers, each halving the picture.

    Raises:
        ValueError: a number is below 1.
    """

    def __init__(self, in_channels: int = 3, width: int = 64, layers: int = 3) -> None:
        """Builds the layers and draws their weights."""
        super().__init__()
        if min(in_channels, width, layers) < 1:
            raise ValueError(
                f"in_channels, width and layers must be at least 1, got {in_channels}, {width} and {layers}"
            )
        self.in_channels = in_channels
        self.least_size = 3 * 2**layers
        widths = [width * min(2**index, 8) for index in range(layers + 1)]
        modules: list[nn.Module] = [nn.Conv2d(in_channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for index in range(1, layers + 1):
            stride = 2 if index < layers else 1
            modules += [
                nn.Conv2d(widths[index - 1], widths[index], 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(widths[index]),
                nn.LeakyReLU(0.2),
            ]
        modules.append(nn.Conv2d(widths[-1], 1, 4, stride=1, padding=1))
        self.main = nn.Sequential(*modules)
        self.apply(_draw_weights)

    def forward(self, picture: Tensor) -> Tensor:
        """Logits (N, 1, H / 2^layers - 2, W / 2^layers - 2) of pictures (N, C, H, W) in [0, 1].

        Raises:
            ValueError: the picture has other channels or is too small for one patch.
        """
        if picture.ndim != 4 or picture.shape[1] != self.in_channels or min(picture.shape[-2:]) < self.least_size:
            raise ValueError(
                f"picture must have shape (N, {self.in_channels}, H, W) with H and W at least {self.least_size}, "
                f"got {tuple(picture.shape)}"
            )
        return cast(Tensor, self.main(picture))


def laplacian_pyramid(picture: Tensor, levels: int) -> list[Tensor]:
    """The band-pass levels of (N, C, H, W), finest first, any size; level j has ceil(H / 2^j) rows."""
    bands: list[Tensor] = []
    for _ in range(levels):
        coarse = _halve(picture)
        height, width = picture.shape[-2:]
        fine = functional.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
        bands.append(picture - fine[..., :height, :width])
        picture = coarse
    return bands


def _halve(picture: Tensor) -> Tensor:
    """Every second pixel after the filter [1, 3, 3, 1] / 8: three 2x2 means, which autocast leaves in float32."""
    height, width = picture.shape[-2:]
    padded = functional.pad(picture, (1, 1 + width % 2, 1, 1 + height % 2), mode="replicate")
    smooth = functional.avg_pool2d(functional.avg_pool2d(padded, 2, stride=1), 2, stride=1)
    return functional.avg_pool2d(smooth, 2)


def _draw_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def _absolute_difference(prediction: Tensor, target: Tensor) -> Tensor:
    return (widen(prediction) - widen(target)).abs()
