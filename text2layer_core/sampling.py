"""Samplers with classifier-free guidance, through diffusers' schedulers (paper, section on CaT2I-AE-SD).

All of them work on scaled latents (``ScheduleConfig.latent_scale``), in float32 whatever the UNet's own precision.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from .schedule import ScheduleConfig, add_noise

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

Callback = Callable[[int, int, Tensor], None]
"""Called after each step with its number from 1, their total, and the latents, not to be edited. To cancel, raise."""


class Sampler(Protocol):
    """The signature that all samplers share; ``sample_ddim`` describes it."""

    def __call__(
        self,
        unet: "UNet2DConditionModel",
        schedule: ScheduleConfig,
        noise: Tensor,
        context: Tensor,
        unconditional: Tensor | None,
        *,
        steps: int,
        guidance_scale: float,
        callback: Callback | None = None,
        init_latents: Tensor | None = None,
        strength: float = 1.0,
    ) -> Tensor:
        """Draws latents."""
        ...


def sample_ddim(
    unet: "UNet2DConditionModel",
    schedule: ScheduleConfig,
    noise: Tensor,
    context: Tensor,
    unconditional: Tensor | None,
    *,
    steps: int,
    guidance_scale: float,
    callback: Callback | None = None,
    init_latents: Tensor | None = None,
    strength: float = 1.0,
) -> Tensor:
    """Draws latents by DDIM with eta = 0 (Song et al. 2021, eq. 12), the paper's sampler (50 steps, guidance 7.5).

    Configured as Stable Diffusion does it: timesteps k * (T // steps) + 1, and the last step goes to the noise of
    timestep 0. Where ``steps`` is T, so that no timestep is left for the offset of 1, they are T - 1 .. 0. The first
    timestep is near T only where ``steps`` nearly divides T: 501 steps of 1000 start at 501, as they do in ComfyUI.

    Args:
        unet: Predicts what ``schedule.prediction_type`` says.
        schedule: The schedule that it was trained with.
        noise: Standard normal noise (N, C, h, w), float32, on the UNet's device.
        context: The encoded prompts, (N, L, D).
        unconditional: The encoded negative prompts, (N, L, D) or (1, L, D); the paper's is the empty string. Not read,
            and may be None, where ``guidance_scale`` is 1.
        steps: Denoising steps in [1, T].
        guidance_scale: w in unconditional + w (conditional - unconditional) (Ho and Salimans 2022, written as Stable
            Diffusion writes it), at least 0. Both are predicted in one call of the UNet; 1 skips the unconditional one.
        callback: Called after each step; an exception that it raises ends the sampling and reaches the caller.
        init_latents: Scaled latents (N, C, h, w) to start from instead of pure noise (SDEdit, Meng et al. 2022). They
            are noised to the first timestep, and only the last int(steps * strength) steps are run.
        strength: In (0, 1], how far ``init_latents`` are noised; 1 without them.

    Returns:
        Scaled latents (N, C, h, w), float32.

    Raises:
        ValueError: A number is out of range, or a tensor's shape, dtype, device or values do not fit.
    """
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    _check_steps(schedule, steps)
    scheduler = DDIMScheduler(
        **_beta_arguments(schedule),
        clip_sample=False,
        set_alpha_to_one=False,
        timestep_spacing="leading",
        steps_offset=1 if steps < schedule.num_train_timesteps else 0,
    )
    scheduler.set_timesteps(steps)
    return _sample(
        scheduler, unet, schedule, noise, context, unconditional, guidance_scale, callback, init_latents, strength
    )


def sample_dpmpp(
    unet: "UNet2DConditionModel",
    schedule: ScheduleConfig,
    noise: Tensor,
    context: Tensor,
    unconditional: Tensor | None,
    *,
    steps: int,
    guidance_scale: float,
    callback: Callback | None = None,
    init_latents: Tensor | None = None,
    strength: float = 1.0,
) -> Tensor:
    """Draws latents by DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), good from about 20 steps on.

    Not in the paper. Timesteps are spread evenly from T - 1 down, which is a choice: the noise then has the level that
    the UNet was trained on, and the last step goes to no noise at all.

    Arguments, result and errors are those of ``sample_ddim``.
    """
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    _check_steps(schedule, steps)
    scheduler = DPMSolverMultistepScheduler(**_beta_arguments(schedule), timestep_spacing="linspace")
    if steps < schedule.num_train_timesteps:
        scheduler.set_timesteps(steps)
    else:  # rounding would repeat a timestep
        scheduler.set_timesteps(timesteps=list(range(steps - 1, -1, -1)))
    return _sample(
        scheduler, unet, schedule, noise, context, unconditional, guidance_scale, callback, init_latents, strength
    )


SAMPLERS: dict[str, Sampler] = {"ddim": sample_ddim, "dpmpp": sample_dpmpp}
"""The samplers by the names that the command line gives them."""


def initial_noise(seed: int, shape: tuple[int, int, int, int]) -> Tensor:
    """Draws a picture's noise as ComfyUI does for a batch of one: a CPU generator seeded, then one randn.

    The global generator is neither read nor changed, and the result is the same on every device.

    Args:
        seed: In [0, 2^64).
        shape: (1, C, h, w). Picture k of a batch has its own noise, of seed + k.

    Returns:
        Standard normal noise of that shape, float32 on the CPU.

    Raises:
        ValueError: The seed is out of range.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must lie in [0, 2^64), got {seed}")
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32)


@torch.no_grad()
def _sample(
    scheduler: "DDIMScheduler | DPMSolverMultistepScheduler",
    unet: "UNet2DConditionModel",
    schedule: ScheduleConfig,
    noise: Tensor,
    context: Tensor,
    unconditional: Tensor | None,
    guidance_scale: float,
    callback: Callback | None,
    init_latents: Tensor | None,
    strength: float,
) -> Tensor:
    """Runs the scheduler's timesteps, which are set, or for img2img their last part."""
    _check_latents("noise", noise, unet)
    text = _guidance_text(unet, noise, context, unconditional, guidance_scale)
    timesteps: list[int] = scheduler.timesteps.tolist()
    timesteps = timesteps[_first_step(len(timesteps), strength, init_latents is not None) :]
    latents = noise if init_latents is None else _noised(unet, schedule, init_latents, noise, timesteps[0])
    for step, timestep in enumerate(timesteps, start=1):
        prediction = _predict(unet, latents, timestep, text, guidance_scale)
        latents: Tensor = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
        if callback is not None:
            callback(step, len(timesteps), latents)
    return latents


def _noised(
    unet: "UNet2DConditionModel", schedule: ScheduleConfig, init_latents: Tensor, noise: Tensor, timestep: int
) -> Tensor:
    """Checks the latents that img2img starts from and noises them to its first timestep."""
    _check_latents("init_latents", init_latents, unet)
    if init_latents.shape != noise.shape:
        raise ValueError(
            f"init_latents must have shape {tuple(noise.shape)} to match noise, got {tuple(init_latents.shape)}"
        )
    return add_noise(schedule, init_latents, noise, torch.full((len(noise),), timestep))


def _predict(
    unet: "UNet2DConditionModel", latents: Tensor, timestep: int, text: Tensor, guidance_scale: float
) -> Tensor:
    """Predicts with guidance; ``text`` is (N, L, D), or (2N, L, D) with the unconditional half first."""
    batch = latents.repeat(len(text) // len(latents), 1, 1, 1).to(unet.dtype)
    prediction: Tensor = unet(batch, timestep, encoder_hidden_states=text, return_dict=False)[0].float()
    if len(batch) == len(latents):
        return prediction
    unconditional, conditional = prediction.chunk(2)
    return unconditional + guidance_scale * (conditional - unconditional)


def _beta_arguments(schedule: ScheduleConfig) -> dict[str, Any]:
    """The schedule in the words of diffusers' schedulers."""
    return {
        "num_train_timesteps": schedule.num_train_timesteps,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "beta_schedule": schedule.beta_schedule,
        "prediction_type": schedule.prediction_type,
    }


def _check_steps(schedule: ScheduleConfig, steps: int) -> None:
    if not 1 <= steps <= schedule.num_train_timesteps:
        raise ValueError(f"steps must lie in [1, {schedule.num_train_timesteps}], got {steps}")


def _check_latents(name: str, latents: Tensor, unet: "UNet2DConditionModel") -> None:
    channels: int = unet.config["in_channels"]
    if latents.dtype != torch.float32 or latents.ndim != 4 or latents.shape[1] != channels or not latents.numel():
        raise ValueError(
            f"{name} must be float32 of shape (N, {channels}, h, w), got {latents.dtype} {tuple(latents.shape)}"
        )
    if latents.device != unet.device:
        raise ValueError(f"{name} must be on the UNet's device {unet.device}, got {latents.device}")
    if not bool(latents.isfinite().all()):
        raise ValueError(f"{name} must be finite, got {int((~latents.isfinite()).sum())} values that are not")


def _guidance_text(
    unet: "UNet2DConditionModel", noise: Tensor, context: Tensor, unconditional: Tensor | None, guidance_scale: float
) -> Tensor:
    """Checks guidance and text; gives what the UNet attends to, the unconditional half first, in its dtype."""
    if not (math.isfinite(guidance_scale) and guidance_scale >= 0):
        raise ValueError(f"guidance_scale must be finite and at least 0, got {guidance_scale}")
    width: int = unet.config["cross_attention_dim"]
    if context.ndim != 3 or len(context) != len(noise) or context.shape[2] != width:
        raise ValueError(f"context must have shape ({len(noise)}, L, {width}), got {tuple(context.shape)}")
    if guidance_scale == 1:
        return context.to(unet.dtype)
    if unconditional is None:
        raise ValueError(f"unconditional must be given unless guidance_scale is 1, got None at {guidance_scale}")
    if unconditional.shape[1:] != context.shape[1:] or len(unconditional) not in (1, len(context)):
        raise ValueError(
            f"unconditional must have shape {tuple(context.shape)} to match context, got {tuple(unconditional.shape)}"
        )
    return torch.cat([unconditional.expand_as(context), context]).to(unet.dtype)


def _first_step(steps: int, strength: float, has_latents: bool) -> int:
    """The steps that img2img leaves out, by the rule of diffusers' pipelines: all but int(steps * strength)."""
    if not 0 < strength <= 1:
        raise ValueError(f"strength must lie in (0, 1], got {strength}")
    if strength < 1 and not has_latents:
        raise ValueError(f"strength below 1 needs init_latents, got {strength} without them")
    if int(steps * strength) < 1:
        raise ValueError(f"steps * strength must be at least 1, got {steps} * {strength}")
    return steps - int(steps * strength)
