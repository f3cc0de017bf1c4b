"""Expected values: diffusers' DDPMScheduler, and hand-computed ones for min-SNR."""

import dataclasses
import math
import re
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from text2layer_core.schedule import ScheduleConfig, add_noise, alphas_cumprod, min_snr_weight, training_target

SCHEDULES = [ScheduleConfig(), ScheduleConfig(beta_schedule="linear", num_train_timesteps=50, beta_end=0.3)]


def reference(config: ScheduleConfig) -> DDPMScheduler:
    return DDPMScheduler(
        num_train_timesteps=config.num_train_timesteps,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        beta_schedule=config.beta_schedule,
    )


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def two_levels(snr: float) -> ScheduleConfig:
    """A schedule of one timestep with a chosen SNR: a = 1 - beta = snr / (1 + snr)."""
    beta = 1 / (1 + snr)
    return ScheduleConfig(num_train_timesteps=1, beta_start=beta, beta_end=beta, beta_schedule="linear")


@pytest.mark.parametrize("config", SCHEDULES)
def test_alphas_equal_diffusers(config: ScheduleConfig) -> None:
    alphas = alphas_cumprod(config)
    assert alphas.shape == (config.num_train_timesteps,)
    assert alphas.dtype == torch.float32
    assert torch.equal(alphas, reference(config).alphas_cumprod)


def test_defaults_are_those_of_stable_diffusion_v1() -> None:
    # Its published scheduler: alphas_cumprod runs from 0.99915 to 0.0047, so that sigma ends at 14.6146.
    alphas = alphas_cumprod(ScheduleConfig())
    assert alphas[0].item() == pytest.approx(1 - 0.00085)
    assert ((1 - alphas[-1]) / alphas[-1]).sqrt().item() == pytest.approx(14.6146, abs=1e-3)


@pytest.mark.parametrize("config", SCHEDULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noisy_latents_equal_diffusers(config: ScheduleConfig, dtype: torch.dtype) -> None:
    latents, noise = draw(4, 3, 2, 2).to(dtype), draw(4, 3, 2, 2, seed=1).to(dtype)
    timesteps = torch.tensor([0, 7, 30, config.num_train_timesteps - 1])
    copies = latents.clone(), noise.clone(), timesteps.clone()
    noisy = add_noise(config, latents, noise, timesteps)
    torch.testing.assert_close(noisy, reference(config).add_noise(latents, noise, timesteps), rtol=1e-6, atol=1e-6)
    assert noisy.dtype == dtype
    assert all(torch.equal(a, b) for a, b in zip(copies, (latents, noise, timesteps), strict=True))


def test_epsilon_target_is_the_noise() -> None:
    latents, noise = draw(2, 3, 2, 2), draw(2, 3, 2, 2, seed=1)
    assert torch.equal(training_target(ScheduleConfig(), latents, noise, torch.tensor([0, 999])), noise)


@pytest.mark.parametrize("config", SCHEDULES)
def test_v_target_equals_diffusers(config: ScheduleConfig) -> None:
    config = dataclasses.replace(config, prediction_type="v_prediction")
    latents, noise, timesteps = draw(3, 2, 2, 2), draw(3, 2, 2, 2, seed=1), torch.tensor([0, 20, 49])
    target = training_target(config, latents, noise, timesteps)
    torch.testing.assert_close(target, reference(config).get_velocity(latents, noise, timesteps), rtol=0, atol=1e-6)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_target_leads_back_to_the_latents(prediction_type: Any) -> None:
    # DDIMScheduler's own estimate of z_0 from a perfect prediction must be z_0.
    config = ScheduleConfig(prediction_type=prediction_type)
    latents, noise, timestep = draw(1, 2, 2, 2), draw(1, 2, 2, 2, seed=1), torch.tensor([400])
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type=prediction_type,
    )
    scheduler.set_timesteps(10)
    noisy = add_noise(config, latents, noise, timestep)
    target = training_target(config, latents, noise, timestep)
    estimate = scheduler.step(target, 400, noisy).pred_original_sample
    torch.testing.assert_close(estimate, latents, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("snr", "epsilon", "v_prediction"),
    [(20.0, 0.25, 5 / 21), (5.0, 1.0, 5 / 6), (1.0, 1.0, 0.5), (0.25, 1.0, 0.2)],
)
def test_min_snr_weights_by_hand(snr: float, epsilon: float, v_prediction: float) -> None:
    # gamma = 5: min(SNR, 5) / SNR and min(SNR, 5) / (SNR + 1).
    config, timesteps = two_levels(snr), torch.tensor([0, 0])
    assert min_snr_weight(config, timesteps).tolist() == pytest.approx([epsilon] * 2, rel=1e-4)
    config = dataclasses.replace(config, prediction_type="v_prediction")
    assert min_snr_weight(config, timesteps).tolist() == pytest.approx([v_prediction] * 2, rel=1e-4)


def test_min_snr_takes_gamma() -> None:
    assert min_snr_weight(two_levels(20.0), torch.tensor([0]), gamma=1.0).item() == pytest.approx(0.05, rel=1e-4)
    assert min_snr_weight(two_levels(20.0), torch.tensor([0]), gamma=1e9).item() == 1


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_weights_are_float32_one_a_sample(dtype: torch.dtype) -> None:
    weights = min_snr_weight(ScheduleConfig(), torch.tensor([0, 500, 999], dtype=dtype))
    assert weights.dtype == torch.float32
    assert weights.shape == (3,)
    assert weights[0] < weights[1] == weights[2] == 1


def test_gradients_reach_the_latents() -> None:
    latents = draw(1, 2, 2, 2).requires_grad_()
    add_noise(ScheduleConfig(), latents, draw(1, 2, 2, 2, seed=1), torch.tensor([10])).sum().backward()
    gradient = latents.grad
    assert gradient is not None
    expected = math.sqrt(alphas_cumprod(ScheduleConfig())[10].item())
    torch.testing.assert_close(gradient, torch.full_like(gradient, expected))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prediction_type": "sample"}, "prediction_type must be one of epsilon, v_prediction, got 'sample'"),
        ({"beta_schedule": "cosine"}, "beta_schedule must be one of scaled_linear, linear, got 'cosine'"),
        ({"num_train_timesteps": 0}, "num_train_timesteps must be at least 1, got 0"),
        ({"beta_start": 0.0}, "betas must satisfy 0 < beta_start <= beta_end < 1, got 0.0 and 0.012"),
        ({"beta_end": math.nan}, "betas must satisfy 0 < beta_start <= beta_end < 1, got 0.00085 and nan"),
        ({"latent_scale": math.inf}, "latent_scale must be finite and above 0, got inf"),
        ({"latent_scale": 0.0}, "latent_scale must be finite and above 0, got 0.0"),
    ],
)
def test_wrong_configurations_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ScheduleConfig(**values)


@pytest.mark.parametrize("function", [add_noise, training_target])
@pytest.mark.parametrize(
    ("latents", "noise", "timesteps", "message"),
    [
        (
            torch.zeros(2, 1, dtype=torch.int64),
            torch.zeros(2, 1),
            torch.zeros(2, dtype=torch.int64),
            "latents must be floating point, got torch.int64",
        ),
        (
            torch.zeros(2, 1),
            torch.zeros(1, 1),
            torch.zeros(2, dtype=torch.int64),
            "noise must have shape (2, 1) to match latents, got (1, 1)",
        ),
        (
            torch.zeros(2, 1),
            torch.zeros(2, 1),
            torch.zeros(3, dtype=torch.int64),
            "timesteps must have shape (2,) to match latents, got (3,)",
        ),
        (
            torch.zeros(2, 1),
            torch.zeros(2, 1),
            torch.zeros(2),
            "timesteps must be int32 or int64, got torch.float32",
        ),
        (
            torch.zeros(2, 1),
            torch.zeros(2, 1),
            torch.tensor([-1, 1000]),
            "timesteps must lie in [0, 999], got -1 to 1000",
        ),
    ],
)
def test_wrong_tensors_are_named(
    function: Any, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        function(ScheduleConfig(), latents, noise, timesteps)


def test_wrong_weights_are_named() -> None:
    with pytest.raises(ValueError, match=r"^gamma must be finite and above 0, got nan$"):
        min_snr_weight(ScheduleConfig(), torch.tensor([0]), gamma=math.nan)
    with pytest.raises(ValueError, match=r"^timesteps must have shape \(N,\), got \(1, 1\)$"):
        min_snr_weight(ScheduleConfig(), torch.tensor([[0]]))
