"""The pipeline on a whole tiny model: sizes, seeds, img2img, cancelling, and bad input refused before any work."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from text2layer_core.checkpoint import CLIP_L, CheckpointError, Text2LayerModel, load_checkpoint, save_checkpoint
from text2layer_core.conversion import to_diffusers
from text2layer_core.layers import TwoLayerImage
from text2layer_core.pipeline import PipelineOutput, Text2LayerPipeline
from text2layer_core.sampling import initial_noise
from text2layer_core.schedule import ScheduleConfig, alphas_cumprod

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


@pytest.fixture
def pipeline(tiny_model: Text2LayerModel) -> Text2LayerPipeline:
    """Stride 8, 32 pixels by default."""
    return Text2LayerPipeline(tiny_model)


def _layers(count: int = 1, height: int = 32, width: int = 32) -> TwoLayerImage:
    return TwoLayerImage.from_stack(torch.rand(count, 7, height, width, generator=torch.Generator().manual_seed(3)))


def _assert_close(actual: PipelineOutput, expected: PipelineOutput) -> None:
    torch.testing.assert_close(actual.layers.stack(), expected.layers.stack(), atol=1e-5, rtol=0)
    torch.testing.assert_close(actual.predicted_composed, expected.predicted_composed, atol=1e-5, rtol=0)


def test_output(pipeline: Text2LayerPipeline) -> None:
    rng = torch.get_rng_state()
    output = pipeline("a red fox", steps=2)
    assert torch.equal(torch.get_rng_state(), rng)
    assert (output.layers.height, output.layers.width) == (32, 32)  # the card's resolution
    assert output.layers.foreground.dtype == torch.float32
    assert output.predicted_composed is not None
    assert output.predicted_composed.shape == (1, 3, 32, 32)
    assert output.seeds == (0,)
    layers = output.layers
    eq1 = layers.mask * layers.foreground + (1 - layers.mask) * layers.background
    torch.testing.assert_close(output.composed, eq1, atol=1e-6, rtol=0)
    assert layers.foreground.std() > 0.01
    assert not output.composed.requires_grad


def test_same_arguments_same_picture_other_arguments_another(pipeline: Text2LayerPipeline) -> None:
    base: dict[str, Any] = {"prompt": "a red fox on a beach", "steps": 3, "seed": 4}
    first = pipeline(**base)
    assert torch.equal(pipeline(**base).layers.stack(), first.layers.stack())
    for change in (
        {"prompt": "a small owl at night"},
        {"negative_prompt": "snow"},
        {"seed": 5},
        {"steps": 2},
        {"guidance_scale": 1.0},
        {"sampler": "dpmpp"},
    ):
        assert not torch.equal(pipeline(**{**base, **change}).layers.stack(), first.layers.stack()), change


def test_a_picture_of_a_batch_is_the_picture_of_its_seed(pipeline: Text2LayerPipeline) -> None:
    prompts = ["a red fox on a beach", "a red fox on a beach", "a glass teapot"]
    batch = pipeline(prompts, seed=7, steps=3)
    assert batch.seeds == (7, 8, 9)
    assert len(batch.layers) == 3
    for index, prompt in enumerate(prompts):
        single = pipeline(prompt, seed=7 + index, steps=3)
        assert batch.predicted_composed is not None
        part = PipelineOutput(batch.layers[index], batch.predicted_composed[index : index + 1], single.seeds)
        _assert_close(part, single)


def test_odd_size_is_the_crop_of_the_padded_one(pipeline: Text2LayerPipeline) -> None:
    assert pipeline.stride == 8  # patch 2, two autoencoder levels, two UNet levels
    odd = pipeline("a red fox", width=250, height=190, steps=1)
    assert odd.layers.stack().shape == (1, 7, 190, 250)
    assert odd.predicted_composed is not None
    assert odd.predicted_composed.shape == (1, 3, 190, 250)
    padded = pipeline("a red fox", width=256, height=192, steps=1)
    assert torch.equal(odd.layers.stack(), padded.layers.stack()[..., :190, :250])


def test_smallest_size(pipeline: Text2LayerPipeline) -> None:
    assert pipeline("a red fox", width=1, height=1, steps=1).layers.stack().shape == (1, 7, 1, 1)


def test_default_size_without_a_card(tiny_model: Text2LayerModel) -> None:
    output = Text2LayerPipeline(replace(tiny_model, card={}))("a red fox", steps=1)
    assert (output.layers.width, output.layers.height) == (256, 256)


def test_encode_and_decode(pipeline: Text2LayerPipeline, tiny_model: Text2LayerModel) -> None:
    layers = _layers(2, 21, 30)
    before = layers.stack().clone()
    latents = pipeline.encode(layers)
    assert latents.shape == (2, 4, 24 // 4, 32 // 4)
    assert torch.equal(layers.stack(), before)
    rows, columns = (torch.arange(size).clamp(max=last) for size, last in ((24, 20), (32, 29)))
    by_hand = before[:, :, rows][..., columns]  # border pixels repeated below and on the right
    with torch.no_grad():
        mode = tiny_model.autoencoder.encode_stack(by_hand).mode()
        expected = tiny_model.autoencoder.decode(mode)
    torch.testing.assert_close(latents, mode * tiny_model.schedule.latent_scale)
    decoded = pipeline.decode(latents, height=21, width=30)
    torch.testing.assert_close(decoded.layers.stack(), expected.layers.crop(21, 30).stack())
    assert decoded.predicted_composed is not None
    assert decoded.predicted_composed.shape == (2, 3, 21, 30)
    assert pipeline.decode(latents).layers.stack().shape == (2, 7, 24, 32)


def test_img2img_has_the_closed_form_of_a_unet_that_predicts_no_noise(tiny_model: Text2LayerModel) -> None:
    """With eps = 0 a DDIM step is z * sqrt(a_next / a_now), so the end is known: from t = 251 to a_0 in two steps."""
    assert tiny_model.unet is not None
    torch.nn.init.zeros_(tiny_model.unet.conv_out.weight)
    torch.nn.init.zeros_(tiny_model.unet.conv_out.bias)
    schedule = ScheduleConfig(latent_scale=0.5)
    pipeline = Text2LayerPipeline(replace(tiny_model, schedule=schedule))
    layers = _layers(1, 30, 21)
    before = layers.stack().clone()
    seen: list[tuple[int, int, Tensor]] = []
    output = pipeline("a red fox", layers=layers, strength=0.5, steps=4, seed=3, callback=lambda *a: seen.append(a))
    assert [(step, total) for step, total, _ in seen] == [(1, 2), (2, 2)]
    alphas = alphas_cumprod(schedule)
    noise = initial_noise(3, (1, 4, 32 // 4, 24 // 4))
    start = alphas[251].sqrt() * pipeline.encode(layers) + (1 - alphas[251]).sqrt() * noise
    end = start * (alphas[0] / alphas[251]).sqrt()
    torch.testing.assert_close(seen[-1][2], end, atol=1e-5, rtol=1e-5)
    expected = pipeline.decode(end, height=30, width=21)
    torch.testing.assert_close(output.layers.stack(), expected.layers.stack(), atol=1e-5, rtol=0)
    assert torch.equal(layers.stack(), before)


def test_img2img_of_one_picture_for_several_prompts(pipeline: Text2LayerPipeline) -> None:
    layers = _layers()
    batch = pipeline(["a red fox", "a small owl"], layers=layers, strength=0.6, steps=3, seed=1)
    single = pipeline("a small owl", layers=layers, strength=0.6, steps=3, seed=2)
    torch.testing.assert_close(batch.layers[1].stack(), single.layers.stack(), atol=1e-5, rtol=0)


class _StopHere(Exception):
    """What a caller's own cancelling may raise."""


def test_callback_reports_and_cancels(pipeline: Text2LayerPipeline) -> None:
    seen: list[tuple[int, int]] = []

    def callback(step: int, total: int, latents: Tensor) -> None:
        assert latents.shape == (1, 4, 8, 8)
        seen.append((step, total))
        if step == 2:
            raise _StopHere

    with pytest.raises(_StopHere):
        pipeline("a red fox", steps=5, callback=callback)
    assert seen == [(1, 5), (2, 5)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "width must be an integer in [1, 4096], got 0"),
        ({"height": -8}, "height must be an integer in [1, 4096], got -8"),
        ({"height": 4097}, "height must be an integer in [1, 4096], got 4097"),
        ({"width": 64.0}, "width must be an integer in [1, 4096], got 64.0"),
        ({"steps": 0}, "steps must be an integer in [1, 1000], got 0"),
        ({"steps": 1001}, "steps must be an integer in [1, 1000], got 1001"),
        ({"steps": 2.5}, "steps must be an integer in [1, 1000], got 2.5"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be finite and at least 0, got nan"),
        ({"guidance_scale": float("inf")}, "guidance_scale must be finite and at least 0, got inf"),
        ({"guidance_scale": -1.0}, "guidance_scale must be finite and at least 0, got -1.0"),
        ({"sampler": "euler"}, "sampler must be one of ddim, dpmpp, got 'euler'"),
        ({"seed": -1}, "seed must be an integer in [0, 18446744073709551615], got -1"),
        ({"seed": 2**64}, "seed must be an integer in [0, 18446744073709551615], got 18446744073709551616"),
        (
            {"prompt": ["a", "b"], "seed": 2**64 - 1},
            "seed must be an integer in [0, 18446744073709551614], got 18446744073709551615",
        ),
        ({"prompt": []}, "prompt must be a string or a list of them, got []"),
        ({"prompt": ["a", 3]}, "prompt must be a string or a list of them, got ['a', 3]"),
        ({"prompt": None}, "prompt must be a string or a list of them, got None"),
        ({"negative_prompt": None}, "negative_prompt must be a string, got NoneType"),
        ({"strength": 0.5}, "strength must be 1 without layers to start from, got 0.5"),
        ({"layers": _layers(), "strength": 0.0}, "strength must lie in (0, 1], got 0.0"),
        ({"layers": _layers(), "strength": float("nan")}, "strength must lie in (0, 1], got nan"),
        ({"layers": _layers(), "strength": 0.2, "steps": 4}, "steps * strength must be at least 1, got 4 * 0.2"),
        ({"layers": _layers(2)}, "layers must hold one picture, or one per prompt (1), got 2"),
        ({"layers": _layers(), "width": 40}, "layers must have the size asked for, 40x32 (width x height), got 32x32"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    pipeline: Text2LayerPipeline, arguments: dict[str, Any], message: str
) -> None:
    def fail(*_: object) -> None:
        pytest.fail("work began")

    model = pipeline.model
    for part in (model.autoencoder.encoder, model.unet, model.text_encoder):
        assert part is not None
        part.register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        pipeline(**{"prompt": "a red fox", **arguments})


def test_layers_that_are_too_large_to_encode(pipeline: Text2LayerPipeline) -> None:
    with pytest.raises(ValueError, match=r"^width must be an integer in \[1, 4096\], got 4097$"):
        pipeline.encode(_layers(1, 1, 4097))


def test_decode_refuses_other_sizes_and_channels(pipeline: Text2LayerPipeline) -> None:
    with pytest.raises(ValueError, match=r"crop must lie between 1x1 and 8x8 \(height x width\), got 9x8"):
        pipeline.decode(torch.zeros(1, 4, 2, 2), height=9)
    with pytest.raises(ValueError, match=r"got 0x8"):
        pipeline.decode(torch.zeros(1, 4, 2, 2), height=0)
    with pytest.raises(ValueError, match=r"latents must have shape \(N, 4, h, w\), got \(1, 3, 2, 2\)"):
        pipeline.decode(torch.zeros(1, 3, 2, 2))


def test_half_precision_gives_float32_layers(tiny_model: Text2LayerModel, tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    save_checkpoint(path, tiny_model)
    pipeline = Text2LayerPipeline.from_pretrained(path, dtype=torch.bfloat16)
    output = pipeline("a red fox", steps=2, layers=_layers(), strength=0.5)
    assert output.layers.foreground.dtype == torch.float32
    assert output.predicted_composed is not None
    assert output.predicted_composed.dtype == torch.float32


def test_model_without_a_composed_head(tiny_model: Text2LayerModel) -> None:
    """The paper's no-sup variant."""
    from text2layer_core.autoencoder import CaT2IAutoencoder

    autoencoder = CaT2IAutoencoder(replace(tiny_model.autoencoder.config, composed_head=False))
    output = Text2LayerPipeline(replace(tiny_model, autoencoder=autoencoder))("a red fox", steps=1)
    assert output.predicted_composed is None


def test_from_pretrained_draws_what_the_saved_model_did(tiny_model: Text2LayerModel, tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    save_checkpoint(path, tiny_model, dtype=torch.float32)
    expected = Text2LayerPipeline(tiny_model)("a red fox", steps=2)
    _assert_close(Text2LayerPipeline.from_pretrained(path)("a red fox", steps=2), expected)
    with pytest.raises(ValueError, match=r"^text_encoder must be left out for .*, which has its own, got clip$"):
        Text2LayerPipeline.from_pretrained(path, text_encoder="clip")
    with pytest.raises(CheckpointError, match="no such model"):
        Text2LayerPipeline.from_pretrained(tmp_path / "nowhere.safetensors")


def test_an_autoencoder_alone_is_refused(tiny_model: Text2LayerModel, tmp_path: Path) -> None:
    path = tmp_path / "autoencoder.safetensors"
    save_checkpoint(path, Text2LayerModel(tiny_model.autoencoder, None, None, tiny_model.schedule, {}))
    expected = "the model must have a UNet, got the autoencoder alone, which cannot draw from a prompt"
    with pytest.raises(ValueError, match=f"^{expected}$"):
        Text2LayerPipeline(load_checkpoint(path))
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))}: {expected}$"):
        Text2LayerPipeline.from_pretrained(path)


def test_external_text_encoder_comes_from_a_folder(tiny_model: Text2LayerModel, tmp_path: Path) -> None:
    """The tiny encoder stands for CLIP-L: it is in the folder, not in the file."""
    path = tmp_path / "sd.safetensors"
    folder = tmp_path / "clip"
    to_diffusers(tiny_model, folder)
    save_checkpoint(path, replace(tiny_model, external_text_encoder=CLIP_L), dtype=torch.float32)
    with pytest.raises(CheckpointError, match=rf"sd.safetensors needs {CLIP_L}: text_encoder must be"):
        Text2LayerPipeline.from_pretrained(path)
    with pytest.raises(ValueError, match=f"must have a text encoder, got none; it was trained with {CLIP_L}$"):
        Text2LayerPipeline(load_checkpoint(path))
    expected = Text2LayerPipeline(tiny_model)("a red fox", steps=2)
    _assert_close(Text2LayerPipeline.from_pretrained(path, text_encoder=folder)("a red fox", steps=2), expected)


def test_devices(tiny_model: Text2LayerModel) -> None:
    with pytest.raises(ValueError, match=r"^device must be one that torch knows, got 'gpu'$"):
        Text2LayerPipeline(tiny_model, "gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"^device must be one that this machine has, got 'cuda'$"):
            Text2LayerPipeline(tiny_model, "cuda")
