"""A CaT2I model from Stable Diffusion's weights; expected values by diffusers' own classes on the same weights."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from tests.train.sd_models import save_file_of_sd, save_folder
from tests.train.test_train_diffusion import save_clip
from text2layer_core.autoencoder import AUTOENCODER_PRESETS, Head
from text2layer_core.checkpoint import CLIP_L, load_checkpoint, read_header
from text2layer_core.schedule import ScheduleConfig
from text2layer_core.unet import UNET_PRESETS, UNetConfig, build_unet
from train import train_autoencoder, train_diffusion
from train.init_from_sd import autoencoder_from_sd, cat2i_from_sd, main, start_head_as
from train.sd_weights import read_sd, widen_unet

Saved = tuple[Path, AutoencoderKL, UNet2DConditionModel]


@pytest.fixture(params=["folder", "file"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Saved:
    """A tiny pipeline: where it is, and what it is."""
    path = tmp_path / ("sd" if request.param == "folder" else "sd.safetensors")
    return path, *(save_folder(path) if request.param == "folder" else save_file_of_sd(path))


def test_the_command_writes_a_checkpoint(saved: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, vae, unet = saved
    assert main(["--sd", str(path), "--out", str(tmp_path / "out.safetensors"), "--dtype", "fp32"]) == 0
    model = load_checkpoint(tmp_path / "out.safetensors")
    assert model.external_text_encoder == CLIP_L
    assert model.text_encoder is None
    assert model.schedule == ScheduleConfig(prediction_type="epsilon", latent_scale=0.18215)
    assert model.unet is not None
    found = model.unet.state_dict()
    assert found.keys() == unet.state_dict().keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in unet.state_dict().items())
    state = model.autoencoder.state_dict()
    for key, tensor in vae.state_dict().items():
        if key not in ("encoder.conv_in.weight", "decoder.conv_out.weight", "decoder.conv_out.bias"):
            assert torch.equal(state[key], tensor), key
    printed = capsys.readouterr().out.splitlines()
    count = sum(tensor.numel() for tensor in unet.state_dict().values())
    assert f"unet: copied {len(found)} tensors, {count / 1e6:.3f} M values" in printed
    assert any(line.startswith("autoencoder: new 9 tensors") and "heads.mask.conv1" in line for line in printed)


@torch.no_grad()
@pytest.mark.parametrize("channels", [4, 8])
def test_it_starts_as_the_vae(saved: Saved, channels: int) -> None:
    """F = B: the latent is the VAE's of that picture, whatever the mask; F, B and I decode to its reconstruction."""
    path, vae, _ = saved
    model, _ = cat2i_from_sd(read_sd(path), latent_channels=channels)
    torch.manual_seed(1)
    picture, mask = torch.rand(2, 3, 32, 32), torch.rand(2, 1, 32, 32)
    distribution = model.autoencoder.encode_stack(torch.cat([picture, picture, mask], dim=1))
    expected = vae.encode(picture * 2 - 1).latent_dist
    for part in range(0, channels, 4):
        torch.testing.assert_close(distribution.mean[:, part : part + 4], expected.mean, atol=1e-4, rtol=0)
        torch.testing.assert_close(distribution.logvar[:, part : part + 4], expected.logvar, atol=1e-4, rtol=0)
    outputs = model.autoencoder.decode_heads(distribution.mean)
    truth = vae.decode(expected.mean).sample / 2 + 0.5
    assert truth.std() > 0.05
    for name in ("foreground", "background", "composed"):
        torch.testing.assert_close(outputs[name], truth, atol=1e-4, rtol=0)
    assert not torch.allclose(outputs["mask"], truth[:, :1], atol=0.05)


@torch.no_grad()
def test_the_encoder_sees_the_layers_by_coverage(tmp_path: Path) -> None:
    """A convolution is linear: that of a quarter of F and three of B."""
    vae, _ = save_folder(tmp_path)
    autoencoder, _ = autoencoder_from_sd(read_sd(tmp_path), coverage=0.25)
    foreground, background, mask = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16), torch.rand(1, 1, 16, 16)
    found = autoencoder.encode_stack(torch.cat([foreground, background, mask], dim=1)).mean
    expected = vae.encode((0.25 * foreground + 0.75 * background) * 2 - 1).latent_dist.mean
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_head_in_training_mode_is_nearly_the_convolution() -> None:
    """On outputs with photographs' mean and deviation; BatchNorm with its plain start would double the contrast."""
    torch.manual_seed(0)
    head = Head(8, 16, 3, 1, torch.nn).train()
    weight, bias = torch.zeros(3, 8, 3, 3), torch.tensor([-0.03, -0.09, -0.19])
    for channel in range(3):
        weight[channel, channel, 1, 1] = 0.45
    start_head_as(head, weight, bias)
    features = torch.randn(4, 8, 32, 32)
    expected = torch.nn.functional.conv2d(features, weight, bias, padding=1)
    assert (head(features) - expected).square().mean().sqrt() < 0.05 * expected.std()
    assert torch.equal(head.conv2.weight[:, 6:], torch.zeros_like(head.conv2.weight[:, 6:]))


@torch.no_grad()
def test_a_widened_unet_answers_as_the_narrow_one(tmp_path: Path) -> None:
    """On the same latent twice, in the file's own precision."""
    _, unet = save_folder(tmp_path)
    model, report = cat2i_from_sd(read_sd(tmp_path), latent_channels=8)
    assert model.unet is not None
    latents, text = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 32)
    expected = unet(latents, 10, text).sample
    found = model.unet(latents.repeat(1, 2, 1, 1), 10, text).sample
    torch.testing.assert_close(found, expected.repeat(1, 2, 1, 1), atol=1e-4, rtol=1e-4)
    assert report["unet"]["names"]["widened"] == ["conv_in.weight", "conv_out.weight", "conv_out.bias"]


@torch.no_grad()
def test_a_widened_unet_starts_as_the_narrow_one() -> None:
    """Three times the same latent in gives three times the narrow network's answer."""
    torch.manual_seed(0)
    config = {"block_out_channels": (32, 32), "layers_per_block": 1, "attention_levels": (False, True),
              "num_heads": 2, "cross_attention_dim": 32}
    narrow, wide = (build_unet(UNetConfig(in_channels=channels, **config)).eval() for channels in (4, 12))
    widen_unet(wide, narrow)
    latents, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 32)
    expected = narrow(latents, 10, text, return_dict=False)[0]
    found = wide(latents.repeat(1, 3, 1, 1), 10, text, return_dict=False)[0]
    torch.testing.assert_close(found, expected.repeat(1, 3, 1, 1), atol=1e-4, rtol=1e-4)


def without(path: Path, prefix: str, extra: dict[str, Any]) -> Path:
    """The single file with tensors left out or replaced."""
    tensors = {key: tensor for key, tensor in load_file(path).items() if not key.startswith(prefix)}
    other = path.with_name("other.safetensors")
    save_file(tensors | extra, other)
    return other


UNET = "model.diffusion_model."


@pytest.mark.parametrize(("change", "message"), [
    (lambda _: Path("/nowhere"), "must be a diffusers folder or a .safetensors file, found neither at /nowhere"),
    (lambda path: without(path, UNET, {}), "must hold Stable Diffusion's UNet under model.diffusion_model., found "),
    (lambda path: without(path, UNET + "out.2", {}), "UNet under model.diffusion_model., found no out.2.weight"),
    (lambda path: without(path, "first_stage_model.", {}), "must hold Stable Diffusion's autoencoder, found no "),
    (lambda path: without(path, "-", {UNET + "input_blocks.0.0.weight": torch.zeros(32, 9, 3, 3)}),
     "must hold a text-to-image UNet of Stable Diffusion 1.x, got one with 9 channels in, 4 out"),
    (lambda path: without(path, UNET + "middle_block.1.norm", {}), "missing (2): mid_block.attentions.0.norm.bias"),
])
def test_what_is_no_sd_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Path], Path], message: str
) -> None:
    save_file_of_sd(tmp_path / "sd.safetensors")
    path = change(tmp_path / "sd.safetensors")
    assert main(["--sd", str(path), "--out", str(tmp_path / "out.safetensors")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(("arguments", "message"), [
    (["--latent-channels", "6"], "latent channels must be a multiple of SD's 4, got 6"),
    (["--head-channels", "5", "--coverage", "2"],
     "head channels must be at least 6, for SD's last layer and its negative, got 5; coverage must be in [0, 1], "),
])
def test_numbers_out_of_range(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    save_folder(tmp_path / "sd")
    assert main(["--sd", str(tmp_path / "sd"), "--out", str(tmp_path / "out.safetensors"), *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_both_trainers_go_on_from_it(tmp_path: Path, sprite_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SD -> checkpoint -> aligned autoencoder -> UNet, two steps each, with SD's latent scale."""
    monkeypatch.setattr(train_diffusion, "_TOKENIZER_CAPTIONS", 100)
    save_folder(tmp_path / "sd")
    start = str(tmp_path / "sd.safetensors")
    assert main(["--sd", str(tmp_path / "sd"), "--out", start]) == 0
    data = {"source": "icons", "size": 32, "icons": {"cache": str(sprite_file)}}
    training = {"images": 8, "batch_size": 4, "learning_rate": 0.0001, "gradient_checkpointing": True}
    files = {
        "autoencoder": {
            "data": data, "training": training, "run": str(tmp_path / "autoencoder"),
            "autoencoder": {"block_out_channels": [32, 64]}, "frozen_batch_norm": True,
            "losses": {"perceptual": "gradient", "adversarial": 0.0},
            "align_latents": {"weight": 1.0, "autoencoder": str(tmp_path / "sd")},
        },
        "diffusion": {
            "data": data, "training": training, "run": str(tmp_path / "diffusion"),
            "autoencoder": str(tmp_path / "autoencoder" / "model.safetensors"),
            "text": {"clip": str(save_clip(tmp_path / "clip"))},
            "unet": {"in_channels": 4, "block_out_channels": [32, 64], "layers_per_block": 1,
                     "attention_levels": [True, False], "num_heads": 8, "cross_attention_dim": 32},
        },
    }
    for name, trainer in (("autoencoder", train_autoencoder), ("diffusion", train_diffusion)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(files[name]))
        AcceleratorState._reset_state(True)
        assert trainer.main(["--config", str(tmp_path / f"{name}.yaml"), "--init-from", start]) == 0
    AcceleratorState._reset_state(True)
    model = load_checkpoint(tmp_path / "diffusion" / "model.safetensors")
    assert model.schedule.latent_scale == pytest.approx(0.18215)
    assert model.card["images"] == 8
    assert [path.name for path in (tmp_path / "diffusion" / "states").iterdir()] == ["0000000008.pt"]


@pytest.mark.slow
def test_sd_v1_at_its_size(tmp_path: Path) -> None:
    """Random half-precision weights of SD v1's shapes; the process stays under 8 GB, the sizes are the presets'."""
    folder = tmp_path / "sd"
    with torch.device("meta"):
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, norm_num_groups=32, latent_channels=4)
        unet = build_unet(UNET_PRESETS["sd"])
    for name, part in (("vae", vae), ("unet", unet)):
        part.save_config(folder / name)
        tensors = {key: torch.randn(tensor.shape).mul_(0.02).half() for key, tensor in part.state_dict().items()}
        save_file(tensors, folder / name / "diffusion_pytorch_model.fp16.safetensors")
        del tensors
    out = tmp_path / "out.safetensors"
    program = ("import resource, sys; from train.init_from_sd import main; code = main(sys.argv[1:]); "
               "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)")
    done = subprocess.run([sys.executable, "-c", program, "--sd", str(folder), "--out", str(out)],
                          cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    *report, peak = done.stdout.splitlines()
    assert int(peak) * 1024 < 8e9, f"{int(peak) / 2**20:.2f} GiB"
    print(*report, f"peak {int(peak) / 2**20:.2f} GiB", sep="\n")
    assert "unet: copied 686 tensors, 859.521 M values" in report
    header = read_header(out)
    assert header.unet == UNET_PRESETS["sd"]
    assert header.autoencoder == AUTOENCODER_PRESETS["sd"]
    assert out.stat().st_size < 2e9
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < 8e9
