"""ComfyUI's own LoRA loader takes what the diffusion trainer saves."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from tests.host.comfyui import Server
from tests.host.graphs import psnr_of
from tests.host.test_stock_nodes import draw_with
from text2layer_core.checkpoint import bundled_model_path, read_header

if TYPE_CHECKING:
    from headless.client import ComfyClient

pytestmark = pytest.mark.comfy


def train_lora(folder: Path) -> Path:
    """Two steps on the bundled model with drawn icons, at a learning rate that shows."""
    from accelerate import Accelerator

    from tests.train.conftest import SYNONYMS, THINGS, draw
    from train.config import parse
    from train.engine import Run
    from train.icons.sprites import SpriteCache, save_sprites
    from train.icons.vocabulary import Thing
    from train.train_diffusion import DiffusionTrainingConfig, make_task

    things = tuple(Thing(key, key, SYNONYMS.get(key, ())) for key in THINGS)
    levels = {side: torch.stack([torch.stack([draw(key, style, side) for style in range(2)]) for key in THINGS])
              for side in (16, 32, 64)}
    save_sprites(folder / "icons.safetensors", SpriteCache(things, ("fluent", "noto"), levels))
    model, header = str(bundled_model_path()), read_header(bundled_model_path())
    assert header.unet is not None
    schedule = {key: value for key, value in asdict(header.schedule).items() if key != "latent_scale"}
    values: dict[str, Any] = {
        "run": str(folder / "run"), "autoencoder": model, "unet": asdict(header.unet), "text": {"pretrained": model},
        "schedule": schedule, "lora": {"base": model, "rank": 4, "alpha": 4.0},
        "data": {"source": "icons", "size": 64, "icons": {"cache": str(folder / "icons.safetensors")}},
        "training": {"images": 8, "batch_size": 4, "learning_rate": 0.02},
    }
    config = parse(values, DiffusionTrainingConfig, "lora")
    task = make_task(config, torch.device("cpu"))
    run = Run(folder / "run", config.training, Accelerator(cpu=True), task)
    run.step()
    run.step()
    run.save()
    return folder / "run" / "lora.safetensors"


def test_a_trained_lora_loads_and_shows(server: Server, client: ComfyClient, tmp_path: Path) -> None:
    """No key is left over; it changes what the MODEL draws, and the CLIP, which it does not touch, does not."""
    (none, clip, model, both), unread = draw_with(server, client, load_file(train_lora(tmp_path)))
    assert unread == set()
    assert torch.equal(clip, none)
    assert torch.equal(both, model)
    assert psnr_of(model, none) < 50
