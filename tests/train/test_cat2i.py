"""The paper's configs made small by --set, one after another through the trainers' commands, on shards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from tests.train.quality_files import random_stacks, write_shard
from tests.train.sd_models import save_folder
from tests.train.test_train_diffusion import save_clip
from text2layer_core.checkpoint import CLIP_L, load_checkpoint
from text2layer_core.pipeline import Text2LayerPipeline
from train import init_from_sd, train_autoencoder, train_diffusion

CONFIGS = Path(__file__).parents[2] / "train" / "configs"
BATCH = 8  # the 512 config cuts a step into eight parts
TINY = ("{block_out_channels: [8, 16], layers_per_block: 1, norm_num_groups: 4, patch_size: 2, head_channels: 8}",
        "{in_channels: 4, block_out_channels: [32, 32], layers_per_block: 1, attention_levels: [false, true], "
        "num_heads: 2, cross_attention_dim: 32}")
OF_SD = ("{block_out_channels: [32, 64], head_channels: 8}",
         "{in_channels: 4, block_out_channels: [32, 64], layers_per_block: 1, attention_levels: [true, false], "
         "num_heads: 8, cross_attention_dim: 32}")
"""Shapes of autoencoder and UNet: quick ones, and those of sd_models."""


@pytest.fixture
def shards(tmp_path: Path) -> None:
    """Four shards of three samples, named as train.synthesize names them; 000000 is held out by the configs."""
    folder = tmp_path / "ll2i-e"
    folder.mkdir()
    stacks = random_stacks(12, 64)
    for number in range(4):
        keys = [f"{row:08d}" for row in range(3 * number, 3 * number + 3)]
        write_shard(folder / f"shard-{number:06d}.tar", stacks[3 * number : 3 * number + 3], keys)


def run(name: str, folder: Path, shapes: tuple[str, str], *arguments: str, **settings: object) -> Path:
    """The config with few images and small pictures; the exported model."""
    trainer = train_autoencoder if name.startswith("cat2i_ae") else train_diffusion
    AcceleratorState._reset_state(True)
    small = {
        "run": folder / name, "training.batch_size": BATCH, "training.warmup_images": BATCH,
        "training.ema_half_life": BATCH, "training.save_images": 2 * BATCH, "training.sheet_images": 2 * BATCH,
        "training.validation_images": BATCH, "training.validation_samples": BATCH,
        "data.shards.files": folder / "ll2i-e" / "shard-*[!0].tar",
        "data.shards.held_out": folder / "ll2i-e" / "shard-*0.tar", **settings,
    }
    if trainer is train_autoencoder:
        small |= {"autoencoder": shapes[0], "losses.perceptual": "gradient"}
    else:
        small |= {"unet": shapes[1], "text.clip": folder / "clip"}
    overrides = [part for key, value in small.items() for part in ("--set", f"{key}={value}")]
    assert trainer.main(["--config", str(CONFIGS / f"{name}.yaml"), *overrides, *arguments]) == 0
    return folder / name / "model.safetensors"


def validated_at(model: Path) -> list[int]:
    """The counts of images that have figures on the shard held out."""
    rows = (model.parent / "validation.csv").read_text(encoding="utf-8").splitlines()[1:]
    return [int(row.split(",")[0]) for row in rows]


@pytest.mark.slow
@pytest.mark.usefixtures("shards")
def test_autoencoder_then_256_then_512(tmp_path: Path) -> None:
    """At 32 and 64 px: images count on, the latent scale stays, the picture is twice as large."""
    torch.set_num_threads(1)
    save_clip(tmp_path / "clip")
    settings = {"data.size": 32, "training.images": 2 * BATCH}
    autoencoder = run("cat2i_ae_256", tmp_path, TINY, **settings)
    first_path = run("cat2i_sd_256", tmp_path, TINY, autoencoder=autoencoder, **settings)
    second_path = run("cat2i_sd_512", tmp_path, TINY, "--init-from", str(first_path), autoencoder=autoencoder,
                      **{"data.size": 64, "training.images": 4 * BATCH})
    assert validated_at(autoencoder) == validated_at(first_path) == [BATCH, 2 * BATCH]
    assert validated_at(second_path) == [3 * BATCH, 4 * BATCH]
    first, second = load_checkpoint(first_path), load_checkpoint(second_path)
    assert (first.card["images"], first.card["resolution"]) == (2 * BATCH, 32)
    assert (second.card["images"], second.card["resolution"]) == (4 * BATCH, 64)
    assert second.schedule == first.schedule
    assert second.external_text_encoder == CLIP_L
    state = torch.load(second_path.parent / "states" / f"{4 * BATCH:010d}.pt", weights_only=True)
    assert state["start"] == 2 * BATCH
    assert first.unet is not None
    assert second.unet is not None
    before, after = (unet.get_parameter("down_blocks.0.resnets.0.conv1.weight").detach()
                     for unet in (first.unet, second.unet))
    assert 0 < float((after - before).norm() / before.norm()) < 0.1  # of two fresh ones about sqrt(2)
    layers = Text2LayerPipeline.from_pretrained(second_path, text_encoder=tmp_path / "clip")("a ball", steps=1).layers
    assert layers.stack().shape == (1, 7, 64, 64)


@pytest.mark.slow
@pytest.mark.usefixtures("shards")
def test_from_stable_diffusions_weights(tmp_path: Path) -> None:
    """The three commands of docs/training.md."""
    torch.set_num_threads(1)
    save_clip(tmp_path / "clip")
    save_folder(tmp_path / "sd")
    start = tmp_path / "sd.safetensors"
    assert init_from_sd.main(["--sd", str(tmp_path / "sd"), "--out", str(start), "--head-channels", "8"]) == 0
    settings = {"data.size": 32, "training.images": 2 * BATCH}
    autoencoder = run("cat2i_ae_256_from_sd", tmp_path, OF_SD, "--init-from", str(start), **settings, **{
        "align_latents.autoencoder": tmp_path / "sd"})
    path = run("cat2i_sd_256", tmp_path, OF_SD, "--init-from", str(start), autoencoder=autoencoder, **settings)
    model = load_checkpoint(path)
    assert model.card["images"] == 2 * BATCH
    assert model.schedule.latent_scale == pytest.approx(0.18215)
    assert validated_at(autoencoder) == validated_at(path) == [BATCH, 2 * BATCH]
