"""Expected values: DDIM and DPM-Solver++ written out by hand from their papers, on a tiny random UNet."""

import dataclasses
import inspect
import math
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, UNet2DConditionModel
from torch import Tensor

from text2layer_core.sampling import SAMPLERS, Sampler, initial_noise, sample_ddim, sample_dpmpp
from text2layer_core.schedule import ScheduleConfig, add_noise, alphas_cumprod
from text2layer_core.unet import UNetConfig, build_unet

Arguments = dict[str, Any]
Loop = Callable[..., list[Tensor]]

SCHEDULES = [ScheduleConfig(), ScheduleConfig(prediction_type="v_prediction", num_train_timesteps=100, beta_end=0.1)]


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    config = UNetConfig(
        in_channels=3,
        block_out_channels=(32, 32),
        layers_per_block=1,
        attention_levels=(True, False),
        num_heads=2,
        cross_attention_dim=16,
    )
    return build_unet(config).eval()


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def arguments() -> Arguments:
    return {
        "noise": draw(2, 3, 4, 8, seed=1),
        "context": draw(2, 5, 16, seed=2),
        "unconditional": draw(1, 5, 16, seed=3),
    }


@torch.no_grad()
def guided(unet: UNet2DConditionModel, x: Tensor, t: int, context: Tensor, unconditional: Tensor, w: float) -> Tensor:
    """Guidance with one call for each half."""
    conditional = unet(x, torch.tensor(t), context).sample
    free = unet(x, torch.tensor(t), unconditional.expand_as(context)).sample
    return (1 - w) * free + w * conditional


def split(schedule: ScheduleConfig, alpha: Tensor, x: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor]:
    """The prediction as an estimate of z_0 and of the noise."""
    if schedule.prediction_type == "epsilon":
        return (x - (1 - alpha).sqrt() * prediction) / alpha.sqrt(), prediction
    return alpha.sqrt() * x - (1 - alpha).sqrt() * prediction, alpha.sqrt() * prediction + (1 - alpha).sqrt() * x


def ddim_by_hand(
    unet: UNet2DConditionModel, schedule: ScheduleConfig, steps: int, w: float, a: Arguments
) -> list[Tensor]:
    alphas = alphas_cumprod(schedule)
    ratio = schedule.num_train_timesteps // steps
    x, trace = a["noise"], []
    for t in range(1 + ratio * (steps - 1), 0, -ratio):
        z_0, noise = split(schedule, alphas[t], x, guided(unet, x, t, a["context"], a["unconditional"], w))
        previous = alphas[max(t - ratio, 0)]
        x = previous.sqrt() * z_0 + (1 - previous).sqrt() * noise
        trace.append(x)
    return trace


def dpmpp_by_hand(
    unet: UNet2DConditionModel, schedule: ScheduleConfig, steps: int, w: float, a: Arguments
) -> list[Tensor]:
    """Algorithm 2 of DPM-Solver++ in the form of k-diffusion's sample_dpmpp_2m, on x scaled by sqrt(1 + sigma^2)."""
    alphas = alphas_cumprod(schedule)
    timesteps = [round((schedule.num_train_timesteps - 1) * k / steps) for k in range(steps, 0, -1)]
    sigmas = [((1 - alphas[t]) / alphas[t]).sqrt() for t in timesteps] + [torch.tensor(0.0)]
    x, trace, old = a["noise"] * (1 + sigmas[0] ** 2).sqrt(), [], None
    for k, t in enumerate(timesteps):
        scaled = x / (1 + sigmas[k] ** 2).sqrt()
        z_0, _ = split(schedule, alphas[t], scaled, guided(unet, scaled, t, a["context"], a["unconditional"], w))
        if sigmas[k + 1] == 0:
            x = z_0
        else:
            h = (sigmas[k] / sigmas[k + 1]).log()
            estimate = z_0
            if old is not None:
                r = (sigmas[k - 1] / sigmas[k]).log() / h
                estimate = (1 + 1 / (2 * r)) * z_0 - 1 / (2 * r) * old
            x = (sigmas[k + 1] / sigmas[k]) * x - torch.expm1(-h) * estimate
        old = z_0
        trace.append(x / (1 + sigmas[k + 1] ** 2).sqrt())
    return trace


def record(trace: list[Tensor]) -> Callable[[int, int, Tensor], None]:
    return lambda step, total, latents: trace.append(latents.clone())


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 7, 20])
@pytest.mark.parametrize(("sampler", "by_hand"), [(sample_ddim, ddim_by_hand), (sample_dpmpp, dpmpp_by_hand)])
def test_every_step_equals_the_written_out_loop(
    unet: UNet2DConditionModel,
    arguments: Arguments,
    schedule: ScheduleConfig,
    steps: int,
    sampler: Sampler,
    by_hand: Loop,
) -> None:
    expected, trace = by_hand(unet, schedule, steps, 3.0, arguments), []
    result = sampler(unet, schedule, **arguments, steps=steps, guidance_scale=3.0, callback=record(trace))
    assert len(trace) == steps
    for got, wanted in zip(trace, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4 * wanted.abs().max().item())
    assert torch.equal(result, trace[-1])
    assert result.dtype == torch.float32
    assert result.shape == (2, 3, 4, 8)


@pytest.mark.parametrize("sampler", SAMPLERS.values())
def test_picture_k_of_a_batch_is_the_single_one(unet: UNet2DConditionModel, sampler: Sampler) -> None:
    noise = torch.cat([initial_noise(seed, (1, 3, 4, 8)) for seed in (5, 6, 7)])
    context, free = draw(3, 5, 16, seed=2), draw(1, 5, 16, seed=3)
    together = sampler(unet, SCHEDULES[1], noise, context, free, steps=6, guidance_scale=5.0)
    single = sampler(
        unet, SCHEDULES[1], initial_noise(6, (1, 3, 4, 8)), context[1:2], free, steps=6, guidance_scale=5.0
    )
    torch.testing.assert_close(together[1:2], single, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", SAMPLERS.values())
def test_inputs_stay_as_they_were_and_results_repeat(
    unet: UNet2DConditionModel, arguments: Arguments, sampler: Sampler
) -> None:
    arguments["init_latents"] = draw(2, 3, 4, 8, seed=4).requires_grad_()
    copies = {name: value.clone() for name, value in arguments.items()}
    first = sampler(unet, SCHEDULES[0], **arguments, steps=4, guidance_scale=2.0, strength=0.5)
    again = sampler(unet, SCHEDULES[0], **arguments, steps=4, guidance_scale=2.0, strength=0.5)
    assert torch.equal(first, again)
    assert not first.requires_grad
    assert all(torch.equal(copies[name], value) for name, value in arguments.items())


@pytest.mark.parametrize(("guidance_scale", "rows"), [(1.0, 2), (7.5, 4), (0.0, 4)])
@pytest.mark.parametrize("sampler", SAMPLERS.values())
def test_the_unet_is_called_once_a_step(
    unet: UNet2DConditionModel, arguments: Arguments, sampler: Sampler, guidance_scale: float, rows: int
) -> None:
    sizes: list[int] = []
    handle = unet.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    sampler(unet, SCHEDULES[0], **arguments, steps=3, guidance_scale=guidance_scale)
    handle.remove()
    assert sizes == [rows] * 3


@pytest.mark.parametrize("sampler", SAMPLERS.values())
def test_guidance_1_and_0_are_the_two_plain_predictions(
    unet: UNet2DConditionModel, arguments: Arguments, sampler: Sampler
) -> None:
    noise, context, free = arguments["noise"], arguments["context"], arguments["unconditional"].expand(2, 5, 16)
    guided_by_0 = sampler(unet, SCHEDULES[0], noise, context, free, steps=4, guidance_scale=0.0)
    plain = sampler(unet, SCHEDULES[0], noise, free, None, steps=4, guidance_scale=1.0)
    torch.testing.assert_close(guided_by_0, plain, rtol=1e-4, atol=1e-3)
    # Against itself guidance has no effect, whatever its scale.
    guided_by_9 = sampler(unet, SCHEDULES[0], noise, context, context, steps=4, guidance_scale=9.0)
    plain = sampler(unet, SCHEDULES[0], noise, context, None, steps=4, guidance_scale=1.0)
    torch.testing.assert_close(guided_by_9, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sampler", SAMPLERS.values())
@pytest.mark.parametrize("schedule", [dataclasses.replace(schedule, num_train_timesteps=30) for schedule in SCHEDULES])
@pytest.mark.parametrize("steps", [1, 14, 15, 16, 29, 30])
def test_all_step_counts_up_to_the_timesteps_run(
    unet: UNet2DConditionModel, arguments: Arguments, sampler: Sampler, schedule: ScheduleConfig, steps: int
) -> None:
    timesteps: list[int] = []
    handle = unet.register_forward_pre_hook(lambda module, inputs: timesteps.append(inputs[1]))
    latents = sampler(unet, schedule, **arguments, steps=steps, guidance_scale=2.0)
    handle.remove()
    assert latents.isfinite().all()
    assert len(timesteps) == steps
    assert timesteps == sorted(set(timesteps), reverse=True)
    assert 0 <= timesteps[-1] <= timesteps[0] <= 29


def test_ddim_visits_the_timesteps_of_stable_diffusion(unet: UNet2DConditionModel, arguments: Arguments) -> None:
    # 50 steps of 1000, leading spacing, offset 1: 981, 961, ..., 1.
    timesteps: list[int] = []
    handle = unet.register_forward_pre_hook(lambda module, inputs: timesteps.append(inputs[1]))
    sample_ddim(unet, ScheduleConfig(), **arguments, steps=50, guidance_scale=1.0)
    handle.remove()
    assert timesteps == list(range(981, 0, -20))


@pytest.mark.parametrize(("steps", "strength"), [(10, 0.3), (10, 0.75), (50, 0.58), (7, 1.0)])
@pytest.mark.parametrize("sampler", SAMPLERS.values())
def test_img2img_runs_the_timesteps_of_diffusers(
    unet: UNet2DConditionModel, arguments: Arguments, sampler: Sampler, steps: int, strength: float
) -> None:
    timesteps: list[int] = []
    handle = unet.register_forward_pre_hook(lambda module, inputs: timesteps.append(inputs[1]))
    sampler(unet, SCHEDULES[0], **arguments, steps=steps, guidance_scale=1.0)
    full = timesteps.copy()
    timesteps.clear()
    init = draw(2, 3, 4, 8, seed=4)
    sampler(unet, SCHEDULES[0], **arguments, steps=steps, guidance_scale=1.0, init_latents=init, strength=strength)
    handle.remove()
    stand_in: Any = SimpleNamespace(scheduler=SimpleNamespace(timesteps=full, order=1))
    expected, count = StableDiffusionImg2ImgPipeline.get_timesteps(stand_in, steps, strength, "cpu")
    assert timesteps == expected
    assert len(timesteps) == count


@pytest.mark.parametrize("sampler", SAMPLERS.values())
def test_img2img_is_the_end_of_a_run_from_the_noised_latents(
    unet: UNet2DConditionModel, arguments: Arguments, sampler: Sampler
) -> None:
    # At strength 1 it is a full run whose start is the noised latents, in place of pure noise.
    init, schedule = draw(2, 3, 4, 8, seed=4), SCHEDULES[0]
    first = {"ddim": 801, "dpmpp": 999}["ddim" if sampler is sample_ddim else "dpmpp"]
    start = add_noise(schedule, init, arguments["noise"], torch.tensor([first] * 2))
    expected = sampler(unet, schedule, **{**arguments, "noise": start}, steps=5, guidance_scale=2.0)
    got = sampler(unet, schedule, **arguments, steps=5, guidance_scale=2.0, init_latents=init)
    assert torch.equal(got, expected)


def test_img2img_equals_the_written_out_last_steps(unet: UNet2DConditionModel, arguments: Arguments) -> None:
    # 10 steps at strength 0.2: timesteps 101 and 1.
    init, schedule, w = draw(2, 3, 4, 8, seed=4), SCHEDULES[0], 2.0
    alphas = alphas_cumprod(schedule)
    x = alphas[101].sqrt() * init + (1 - alphas[101]).sqrt() * arguments["noise"]
    for t, previous in ((101, alphas[1]), (1, alphas[0])):
        prediction = guided(unet, x, t, arguments["context"], arguments["unconditional"], w)
        z_0, noise = split(schedule, alphas[t], x, prediction)
        x = previous.sqrt() * z_0 + (1 - previous).sqrt() * noise
    got = sample_ddim(unet, schedule, **arguments, steps=10, guidance_scale=w, init_latents=init, strength=0.2)
    torch.testing.assert_close(got, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", SAMPLERS.values())
def test_a_perfect_prediction_gives_the_latents_back(sampler: Sampler) -> None:
    # A UNet that knows z_0: whatever the steps, DPM-Solver++ ends at z_0, and DDIM at z_0 with the noise of timestep 0,
    # that noise being the one that leads from z_0 to the start, which 10 steps take at timestep 901.
    schedule, truth = ScheduleConfig(), draw(1, 3, 4, 4, seed=9)
    alphas = alphas_cumprod(schedule)

    class Oracle(UNet2DConditionModel):
        def forward(self, sample: Tensor, timestep: int, **_: Any) -> tuple[Tensor]:
            return ((sample - alphas[timestep].sqrt() * truth) / (1 - alphas[timestep]).sqrt(),)

    oracle = Oracle(
        in_channels=3,
        block_out_channels=(32,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        cross_attention_dim=16,
    )
    noise, context = draw(1, 3, 4, 4, seed=1), draw(1, 5, 16, seed=2)
    result = sampler(oracle, schedule, noise, context, None, steps=10, guidance_scale=1.0)
    implied = (noise - alphas[901].sqrt() * truth) / (1 - alphas[901]).sqrt()
    expected = add_noise(schedule, truth, implied, torch.tensor([0])) if sampler is sample_ddim else truth
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("sampler", SAMPLERS.values())
def test_the_callback_counts_and_cancels(unet: UNet2DConditionModel, arguments: Arguments, sampler: Sampler) -> None:
    calls: list[tuple[int, int]] = []

    def cancel(step: int, total: int, latents: Tensor) -> None:
        calls.append((step, total))
        assert latents.shape == (2, 3, 4, 8)
        if step == 3:
            raise InterruptedError("enough")

    with pytest.raises(InterruptedError, match=r"^enough$"):
        sampler(unet, SCHEDULES[0], **arguments, steps=5, guidance_scale=1.0, callback=cancel)
    assert calls == [(1, 5), (2, 5), (3, 5)]
    assert torch.is_grad_enabled()


def test_a_half_precision_unet_samples_in_float32(unet: UNet2DConditionModel, arguments: Arguments) -> None:
    half = build_unet(
        UNetConfig(
            in_channels=3,
            block_out_channels=(32, 32),
            layers_per_block=1,
            attention_levels=(True, False),
            num_heads=2,
            cross_attention_dim=16,
        )
    )
    half.load_state_dict(unet.state_dict())
    half.to(torch.bfloat16)
    options: Arguments = {"steps": 8, "guidance_scale": 2.0}
    expected = sample_ddim(unet, SCHEDULES[1], **arguments, **options)
    result = sample_ddim(half, SCHEDULES[1], **arguments, **options)
    assert result.dtype == torch.float32
    assert (result - expected).square().mean() < 1e-3 * expected.square().mean()


def test_initial_noise_is_comfyuis() -> None:
    # There: generator = torch.manual_seed(seed); torch.randn(size, generator=generator, device="cpu").
    torch.manual_seed(1)
    before = torch.get_rng_state()
    noise = initial_noise(2**64 - 1, (1, 4, 3, 5)), initial_noise(0, (1, 4, 3, 5))
    assert torch.equal(torch.get_rng_state(), before)
    for seed, drawn in zip((2**64 - 1, 0), noise, strict=True):
        torch.manual_seed(seed)
        assert torch.equal(drawn, torch.randn(1, 4, 3, 5))


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_wrong_seed_is_named(seed: int) -> None:
    with pytest.raises(ValueError, match=rf"^seed must lie in \[0, 2\^64\), got {seed}$"):
        initial_noise(seed, (1, 1, 1, 1))


def test_all_samplers_have_one_signature() -> None:
    assert set(SAMPLERS) == {"ddim", "dpmpp"}
    assert inspect.signature(sample_ddim) == inspect.signature(sample_dpmpp)


NAN_LATENTS = torch.zeros(2, 3, 4, 8)
NAN_LATENTS[0, 0, 0, :2] = math.nan


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps must lie in [1, 1000], got 0"),
        ({"steps": -3}, "steps must lie in [1, 1000], got -3"),
        ({"steps": 1001}, "steps must lie in [1, 1000], got 1001"),
        ({"guidance_scale": math.nan}, "guidance_scale must be finite and at least 0, got nan"),
        ({"guidance_scale": math.inf}, "guidance_scale must be finite and at least 0, got inf"),
        ({"guidance_scale": -1.0}, "guidance_scale must be finite and at least 0, got -1.0"),
        ({"strength": math.nan}, "strength must lie in (0, 1], got nan"),
        ({"strength": 0.0}, "strength must lie in (0, 1], got 0.0"),
        ({"strength": 1.5}, "strength must lie in (0, 1], got 1.5"),
        ({"strength": 0.5}, "strength below 1 needs init_latents, got 0.5 without them"),
        (
            {"strength": 0.3, "init_latents": torch.zeros(2, 3, 4, 8)},
            "steps * strength must be at least 1, got 2 * 0.3",
        ),
        (
            {"noise": torch.zeros(2, 4, 4, 8)},
            "noise must be float32 of shape (N, 3, h, w), got torch.float32 (2, 4, 4, 8)",
        ),
        (
            {"noise": torch.zeros(2, 3, 4, 8).half()},
            "noise must be float32 of shape (N, 3, h, w), got torch.float16 (2, 3, 4, 8)",
        ),
        (
            {"noise": torch.zeros(0, 3, 4, 8)},
            "noise must be float32 of shape (N, 3, h, w), got torch.float32 (0, 3, 4, 8)",
        ),
        (
            {"noise": torch.zeros(2, 3, 4, 8, device="meta")},
            "noise must be on the UNet's device cpu, got meta",
        ),
        ({"noise": NAN_LATENTS}, "noise must be finite, got 2 values that are not"),
        ({"init_latents": NAN_LATENTS}, "init_latents must be finite, got 2 values that are not"),
        (
            {"init_latents": torch.zeros(2, 3, 8)},
            "init_latents must be float32 of shape (N, 3, h, w), got torch.float32 (2, 3, 8)",
        ),
        (
            {"init_latents": torch.zeros(1, 3, 4, 8)},
            "init_latents must have shape (2, 3, 4, 8) to match noise, got (1, 3, 4, 8)",
        ),
        ({"context": torch.zeros(1, 5, 16)}, "context must have shape (2, L, 16), got (1, 5, 16)"),
        ({"context": torch.zeros(2, 5, 15)}, "context must have shape (2, L, 16), got (2, 5, 15)"),
        ({"context": torch.zeros(2, 16)}, "context must have shape (2, L, 16), got (2, 16)"),
        ({"unconditional": None}, "unconditional must be given unless guidance_scale is 1, got None at 2.0"),
        (
            {"unconditional": torch.zeros(1, 4, 16)},
            "unconditional must have shape (2, 5, 16) to match context, got (1, 4, 16)",
        ),
        (
            {"unconditional": torch.zeros(3, 5, 16)},
            "unconditional must have shape (2, 5, 16) to match context, got (3, 5, 16)",
        ),
    ],
)
@pytest.mark.parametrize("sampler", SAMPLERS.values())
def test_wrong_arguments_are_named(
    unet: UNet2DConditionModel, arguments: Arguments, sampler: Sampler, values: Arguments, message: str
) -> None:
    given = {"steps": 2, "guidance_scale": 2.0, **arguments, **values}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        sampler(unet, ScheduleConfig(), **given)
