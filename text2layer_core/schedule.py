"""The diffusion process on latents: noise levels, training targets and loss weights (paper, eq. 5)."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction"]
BetaSchedule = Literal["scaled_linear", "linear"]


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The forward process q(z_t | z_0) and what the UNet predicts; the defaults are Stable Diffusion v1's.

    The process runs on scaled latents: the autoencoder's latents times ``latent_scale``. The paper gives none of these
    numbers, it says only that it follows Stable Diffusion.

    Attributes:
        prediction_type: What the UNet predicts, the noise (paper, eq. 5) or v (Salimans and Ho 2022, section 4).
        num_train_timesteps: Number of noise levels T; timesteps are 0 .. T - 1, larger means noisier.
        beta_start: Variance added at the first timestep.
        beta_end: Variance added at the last timestep.
        beta_schedule: Between the two, linear in sqrt(beta) (``scaled_linear``) or in beta (``linear``).
        latent_scale: Factor on the autoencoder's latents that brings them near unit variance.
    """

    prediction_type: PredictionType = "epsilon"
    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: BetaSchedule = "scaled_linear"
    latent_scale: float = 0.18215

    def __post_init__(self) -> None:
        """Checks every value.

        Raises:
            ValueError: A choice is unknown or a number out of range.
        """
        _check_choice("prediction_type", self.prediction_type, get_args(PredictionType))
        _check_choice("beta_schedule", self.beta_schedule, get_args(BetaSchedule))
        if self.num_train_timesteps < 1:
            raise ValueError(f"num_train_timesteps must be at least 1, got {self.num_train_timesteps}")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"betas must satisfy 0 < beta_start <= beta_end < 1, got {self.beta_start} and {self.beta_end}"
            )
        if not (math.isfinite(self.latent_scale) and self.latent_scale > 0):
            raise ValueError(f"latent_scale must be finite and above 0, got {self.latent_scale}")


def alphas_cumprod(config: ScheduleConfig) -> Tensor:
    """Gives the signal's share of the variance at each timestep, (T,) float32 on the CPU, falling within (0, 1).

    Computed as diffusers' schedulers do it, so that training and sampling see the same numbers.
    """
    steps = config.num_train_timesteps
    if config.beta_schedule == "linear":
        betas = torch.linspace(config.beta_start, config.beta_end, steps, dtype=torch.float32)
    else:
        betas = torch.linspace(config.beta_start**0.5, config.beta_end**0.5, steps, dtype=torch.float32) ** 2
    return torch.cumprod(1.0 - betas, dim=0)


def add_noise(config: ScheduleConfig, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Draws z_t = sqrt(a_t) z_0 + sqrt(1 - a_t) noise, the forward process (Ho et al. 2020, eq. 4).

    Args:
        config: The schedule.
        latents: Scaled latents z_0, (N, ...), floating point.
        noise: Standard normal noise, the shape of ``latents``.
        timesteps: (N,) integers in [0, T). They may stay on the CPU; only there is the range checked.

    Returns:
        Noisy latents with the shape, dtype and device of ``latents``.

    Raises:
        ValueError: Shapes or types do not fit, or a timestep on the CPU is out of range.
    """
    signal, sigma = _signal_and_sigma(config, latents, noise, timesteps)
    return signal * latents + sigma * noise


def training_target(config: ScheduleConfig, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Gives what the UNet must predict for the output of ``add_noise`` on the same arguments.

    The noise itself for ``epsilon`` (paper, eq. 5); v = sqrt(a_t) noise - sqrt(1 - a_t) z_0 for ``v_prediction``
    (Salimans and Ho 2022, appendix D).

    Args:
        config: The schedule.
        latents: Scaled latents z_0, (N, ...), floating point.
        noise: The noise that was added, the shape of ``latents``.
        timesteps: (N,) integers in [0, T), as in ``add_noise``.

    Returns:
        The target, the shape of ``latents``.

    Raises:
        ValueError: As ``add_noise``.
    """
    signal, sigma = _signal_and_sigma(config, latents, noise, timesteps)
    return noise if config.prediction_type == "epsilon" else signal * noise - sigma * latents


def min_snr_weight(config: ScheduleConfig, timesteps: Tensor, gamma: float = 5.0) -> Tensor:
    """Gives the Min-SNR-gamma weight of each sample's squared error (Hang et al. 2023, section 3.4).

    With SNR = a_t / (1 - a_t): min(SNR, gamma) / SNR for ``epsilon``, min(SNR, gamma) / (SNR + 1) for
    ``v_prediction``. Not in the paper of the method, which weights all timesteps equally.

    Args:
        config: The schedule.
        timesteps: (N,) integers in [0, T), as in ``add_noise``.
        gamma: The truncation of the SNR, above 0; its authors recommend 5.

    Returns:
        Weights (N,) float32 in (0, 1] for ``epsilon`` and below 1 for ``v_prediction``, on the device of ``timesteps``.

    Raises:
        ValueError: ``gamma`` or ``timesteps`` is out of range.
    """
    if not (math.isfinite(gamma) and gamma > 0):
        raise ValueError(f"gamma must be finite and above 0, got {gamma}")
    alphas = _alphas_at(config, timesteps)
    snr = alphas / (1.0 - alphas)
    return snr.clamp(max=gamma) / (snr if config.prediction_type == "epsilon" else snr + 1.0)


def _signal_and_sigma(
    config: ScheduleConfig, latents: Tensor, noise: Tensor, timesteps: Tensor
) -> tuple[Tensor, Tensor]:
    """Checks the arguments; gives sqrt(a_t) and sqrt(1 - a_t), shaped (N, 1, ...), in the latents' dtype and place."""
    if not latents.is_floating_point():
        raise ValueError(f"latents must be floating point, got {latents.dtype}")
    if noise.shape != latents.shape:
        raise ValueError(f"noise must have shape {tuple(latents.shape)} to match latents, got {tuple(noise.shape)}")
    if timesteps.shape != latents.shape[:1]:
        raise ValueError(
            f"timesteps must have shape {tuple(latents.shape[:1])} to match latents, got {tuple(timesteps.shape)}"
        )
    alphas = _alphas_at(config, timesteps).view(-1, *[1] * (latents.ndim - 1))
    return alphas.sqrt().to(latents), (1.0 - alphas).sqrt().to(latents)


def _alphas_at(config: ScheduleConfig, timesteps: Tensor) -> Tensor:
    """Looks up a_t for (N,) timesteps, on their device."""
    if timesteps.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"timesteps must be int32 or int64, got {timesteps.dtype}")
    if timesteps.ndim != 1:
        raise ValueError(f"timesteps must have shape (N,), got {tuple(timesteps.shape)}")
    last = config.num_train_timesteps - 1
    if timesteps.device.type == "cpu" and timesteps.numel():
        low, high = int(timesteps.min()), int(timesteps.max())
        if low < 0 or high > last:
            raise ValueError(f"timesteps must lie in [0, {last}], got {low} to {high}")
    return alphas_cumprod(config).to(timesteps.device)[timesteps]


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
