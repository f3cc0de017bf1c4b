"""Latents that a UNet has redrawn, against the sampler called by hand, and the decoder's training on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.test_check import make_model
from text2layer_core.checkpoint import Text2LayerModel, load_checkpoint, save_checkpoint
from text2layer_core.sampling import sample_ddim
from train.config import parse
from train.data import DataConfig, open_source, sample_noise
from train.engine import Part
from train.redrawn import RedrawConfig, RedrawnLatents
from train.train_autoencoder import AutoencoderTrainingConfig, make_task

CPU = torch.device("cpu")
COUNT = 6


@pytest.fixture
def model_file(tmp_path: Path, sprite_file: Path) -> Path:
    save_checkpoint(tmp_path / "model.safetensors", make_model(sprite_file))
    return tmp_path / "model.safetensors"


@pytest.fixture
def values(tmp_path: Path, sprite_file: Path, model_file: Path) -> dict[str, Any]:
    return {
        "run": str(tmp_path / "run"),
        "data": {"source": "icons", "size": 32, "icons": {"cache": str(sprite_file)}},
        "autoencoder": {"latent_channels": 4, "block_out_channels": [8, 16], "layers_per_block": 1,
                        "norm_num_groups": 4, "patch_size": 2, "head_channels": 8},
        "losses": {"perceptual": "gradient", "adversarial": 0.0},
        "training": {"images": 16, "batch_size": 4, "learning_rate": 0.002},
        "cached": COUNT, "frozen_encoder": True,
        "redraw": {"model": str(model_file), "steps": 4, "most_steps": 2},
    }


@torch.no_grad()
def test_each_sample_has_its_number_of_steps(values: dict[str, Any], model_file: Path) -> None:
    """Samples 0, 3 are the encoder's own, 1, 4 have the last step of four, 2, 5 the last two."""
    config = parse(values, AutoencoderTrainingConfig, "test")
    found = make_task(config, CPU)._redrawn
    assert found is not None
    model = load_checkpoint(model_file)
    assert model.unet is not None
    assert model.text_encoder is not None
    batch, scale = open_source(config.data).batch(0, COUNT), model.schedule.latent_scale
    latents = model.autoencoder.eval().encode_stack(batch.stack).mode()
    for row, steps in enumerate([0, 1, 2] * 2):
        expected = latents[row : row + 1]
        if steps:
            expected = sample_ddim(
                model.unet.eval(), model.schedule, sample_noise(config.data.seed, [row], tuple(latents.shape[1:])),
                model.text_encoder.encode(batch.captions[row : row + 1]), model.text_encoder.encode(""), steps=4,
                guidance_scale=2.0, init_latents=expected * scale, strength=steps / 4) / scale
            assert float((expected - latents[row : row + 1]).abs().mean()) > 0.05
        assert float((found[[row]] - expected).abs().mean()) < (0.03 if steps else 0.002)  # bfloat16, float16


def test_the_decoder_gets_them_in_the_order_of_the_pictures(values: dict[str, Any], model_file: Path) -> None:
    task = make_task(parse(values, AutoencoderTrainingConfig, "test"), CPU)
    task.load_weights(model_file)
    assert task._redrawn is not None
    batch = task.batch(Part(COUNT, 4), CPU)  # of the second epoch
    cached = open_source(parse(values["data"], DataConfig, "test")).batch(0, COUNT).stack
    rows = [int((cached - stack).abs().mean(dim=(1, 2, 3)).argmin()) for stack in batch.stack]
    assert rows != sorted(rows)
    assert batch.redrawn is not None
    assert torch.equal(batch.redrawn, task._redrawn[rows])
    objective = task.objectives[0].module
    assert not torch.equal(objective(batch)["loss"], objective(replace(batch, redrawn=None))["loss"])


def test_the_cache_goes_on_and_knows_its_model(
    values: dict[str, Any], model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse(values, AutoencoderTrainingConfig, "test")
    whole = make_task(config, CPU)._redrawn
    assert whole is not None
    monkeypatch.setattr("train.redrawn._BLOCK", 2)
    assert config.redraw is not None
    source, folder = open_source(config.data), tmp_path / "again"

    def made(section: RedrawConfig) -> RedrawnLatents:
        return RedrawnLatents(section, source, config.data, folder, COUNT, CPU)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="stop"):
        patch.setattr("train.redrawn.sample_noise", lambda seed, indices, shape: sample_noise(seed, indices, shape)
                      if indices[0] < 4 else (_ for _ in ()).throw(RuntimeError("stop")))
        made(config.redraw)
    assert '"filled": 4' in (folder / "state.json").read_text()
    rows = range(COUNT)
    assert float((made(config.redraw)[rows] - whole[rows]).abs().mean()) < 0.03
    other = made(replace(config.redraw, most_steps=1))[rows]
    assert float((other[2] - whole[rows][2]).abs().mean()) > 0.05


def test_what_does_not_fit_is_refused(values: dict[str, Any], sprite_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"redraw needs frozen_encoder: true and cached samples, got false and 6"):
        parse({**values, "frozen_encoder": False}, AutoencoderTrainingConfig, "test")
    with pytest.raises(ValueError, match=r"most_steps must lie in \[1, steps=4\], got 5"):
        parse({**values, "redraw": {**values["redraw"], "most_steps": 5}}, AutoencoderTrainingConfig, "test")
    model = make_model(sprite_file)
    bare = Text2LayerModel(model.autoencoder, None, None, model.schedule, model.card)
    save_checkpoint(tmp_path / "bare.safetensors", bare)
    values["redraw"]["model"] = str(tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match=r"redraw: model must hold a UNet and a text encoder, got .*bare"):
        make_task(parse(values, AutoencoderTrainingConfig, "test"), CPU)


def test_another_encoder_is_refused(values: dict[str, Any], model_file: Path, tmp_path: Path) -> None:
    task = make_task(parse(values, AutoencoderTrainingConfig, "test"), CPU)
    model = load_checkpoint(model_file)
    with torch.no_grad():
        model.autoencoder.quant_conv.weight.mul_(2)
    save_checkpoint(tmp_path / "other.safetensors", model)
    with pytest.raises(ValueError, match="--init-from must hold the encoder of redraw's model, got another in"):
        task.load_weights(tmp_path / "other.safetensors")
