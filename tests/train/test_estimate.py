"""Memory and days: by hand for a matrix, against real tensors for a small autoencoder, and the paper's configs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from text2layer_core.autoencoder import AutoencoderConfig
from train import train_autoencoder, train_diffusion
from train.config import load_config
from train.data import DataConfig
from train.engine import Objective
from train.estimate import GPUS, Rehearsal, estimate, parse_gpus, report
from train.train_autoencoder import AutoencoderTrainingConfig, LossConfig, rehearse
from train.training_config import TrainingConfig

CONFIGS = Path(__file__).parents[2] / "train" / "configs"
TRAINING = TrainingConfig(images=1000, batch_size=8, accumulation=2, learning_rate=0.1, ema_half_life=10)


class Product(nn.Module):
    """x W and its square: (n, 16) -> (n, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(16, 8))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": (x @ self.weight).square().mean()}


def rehearse_product() -> Rehearsal:
    module = Product()
    return Rehearsal((Objective("product", module),), module, lambda count: torch.zeros(count, 16), (nn.Linear(4, 4),))


def test_a_product_by_hand() -> None:
    """2 n 16 8 operations forwards, as many for the weight's gradient; four bytes a number."""
    found = estimate(rehearse_product, TRAINING, processes=2)
    assert found.count == 2  # eight samples in two parts on two processes
    assert found.operations == 2 * 2 * 16 * 8
    assert found.parameters == {"product": 128}
    assert found.weights == 4 * (128 + 4 * 4 + 4)
    assert (found.gradients, found.optimizer, found.ema) == (512, 1024, 512)
    assert found.memory == found.weights + 512 + 1024 + 512 + found.activations
    # The input (2 x 16), the product and its square (2 x 8 each) are held before the way back.
    assert 4 * (32 + 16 + 16) <= found.activations <= 3000
    assert estimate(rehearse_product, replace(TRAINING, ema_device="cpu"), 1).ema == 0
    with pytest.raises(ValueError, match="batch_size must be a multiple of accumulation x processes = 6, got 8"):
        estimate(rehearse_product, TRAINING, 3)


def test_days_by_hand() -> None:
    """256 operations an image at a hundredth of 312 TFLOP/s."""
    found = replace(estimate(rehearse_product, TRAINING, 2), operations=256e12)
    config = replace(TRAINING, images=86_400, precision="bf16")
    _, operations, days, fsdp, note = report(found, config, "2xA100", utilisation=0.5, seen=43_200, notes=["left out"])
    assert operations.startswith("256.000 TFLOP an image")
    assert found.days(GPUS["A100"], 2, 43_200, 0.5, "bf16") == pytest.approx(256 * 43_200 / (2 * 312 * 0.5) / 86_400)
    assert days.startswith("0.4 days for 43,200 images on 2 A100 at 50% of 312 TFLOP/s")
    assert fsdp.startswith("FSDP (fsdp.yaml) is not counted")
    assert note == "left out"


def small(*, checkpointing: bool) -> AutoencoderTrainingConfig:
    return AutoencoderTrainingConfig(
        run="-", data=DataConfig(source="icons", size=32),
        autoencoder=AutoencoderConfig(block_out_channels=(32, 32), norm_num_groups=4, head_channels=8),
        training=replace(TRAINING, gradient_checkpointing=checkpointing),
        losses=LossConfig(perceptual="gradient", adversarial=0.0),
    )


def test_fake_tensors_count_what_real_ones_do() -> None:
    config = small(checkpointing=False)
    found = estimate(lambda: rehearse(config), config.training, 1)
    made = rehearse(config)
    counter = FlopCounterMode(display=False)
    with counter:
        made.objectives[0].module(made.batch(4))["loss"].backward()
    # The attention's products on a CPU are not known to the plain counter.
    assert counter.get_total_flops() / 4 <= found.operations <= 1.1 * counter.get_total_flops() / 4


def test_checkpointing_takes_less_memory_and_more_operations() -> None:
    plain, checkpointing = (estimate(lambda c=config: rehearse(c), config.training, 1)
                            for config in (small(checkpointing=False), small(checkpointing=True)))
    assert checkpointing.activations < 0.7 * plain.activations
    assert 1.1 * plain.operations < checkpointing.operations < 1.4 * plain.operations


@pytest.mark.parametrize("gpus", ["8", "0xA100", "8xABACUS", "8 x A100"])
def test_gpus_must_be_known(gpus: str) -> None:
    with pytest.raises(ValueError, match=f"^--gpus must be like 8xA100, of A10G, .*, got {gpus}$"):
        parse_gpus(gpus)
    assert parse_gpus("8xh100") == (8, "H100")


def test_the_command_needs_no_data(capsys: pytest.CaptureFixture[str]) -> None:
    """SD's autoencoder at 64 px a side; the parameters are those of test_configs."""
    arguments = ["--config", str(CONFIGS / "cat2i_ae_256.yaml"), "--set", "data.size=64"]
    assert train_autoencoder.main([*arguments, "--dry-run", "--gpus", "32xA100"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "autoencoder: 83.96 M parameters"
    assert "days for 64,000,000 images on 32 A100 at 35% of 312 TFLOP/s" in lines[4]
    for extra, message in (
        (["--gpus", "32xA100"], "error: --gpus must come with --dry-run of a trainer that has estimates, got "),
        (["--dry-run", "--gpus", "32xA100", "--utilisation", "2"], "error: --utilisation must be in (0, 1], got 2.0"),
        (["--dry-run", "--gpus", "32xA100", "--seen", "64000000"], "error: --seen must be in [0, 64000000), got "),
    ):
        assert train_autoencoder.main([*arguments, *extra]) == 2
        assert capsys.readouterr().err.startswith(message)


@pytest.mark.slow
def test_the_papers_unet_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SD v1's UNet has 859,520,964 parameters, CLIP ViT-L/14's text model 123,060,480 (by their own weights)."""
    nowhere = tmp_path / "none.safetensors"
    arguments = ["--config", str(CONFIGS / "cat2i_sd_256.yaml"), "--set", f"autoencoder={nowhere}"]
    assert train_diffusion.main([*arguments, "--dry-run", "--gpus", "32xA100"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "diffusion: 982.58 M parameters"
    assert any("days for 76,800,000 images on 32 A100 at 35% of 312 TFLOP/s" in line for line in lines)
    assert f"no autoencoder at {nowhere}: the shape of Stable Diffusion's is assumed" in lines


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cat2i_sd_256", "cat2i_sd_512"])
def test_the_papers_unet(name: str) -> None:
    """339 GMAC a pass at 512 px (BK-SDM, Kim et al. 2023, SD v1.4's UNet, attention's own products not counted).

    Three passes in training; attention's products grow with the square of the pixels, CLIP-L's pass comes on top.
    """
    config = load_config(CONFIGS / f"{name}.yaml", [], train_diffusion.DiffusionTrainingConfig)
    encoded = replace(config, cached=1)
    found = estimate(lambda: train_diffusion.rehearse(encoded), config.training, 32)
    expected = 3 * 2 * 0.339e12 * (config.data.size / 512) ** 2
    print(name, found.operations / expected, found.memory / 2**30)
    assert expected <= found.operations <= 1.5 * expected
    assert found.memory / 2**30 < 80
