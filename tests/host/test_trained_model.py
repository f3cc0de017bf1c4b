"""The checkpoint that the trial of docs/training.md ends in, as the trainers write it, in ComfyUI."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from tests.host.comfyui import Server
from tests.host.graphs import Graph, as_saved, generate, psnr_of, show

if TYPE_CHECKING:
    from headless.client import ComfyClient

pytestmark = pytest.mark.comfy

CONFIGS = Path(__file__).parents[2] / "train" / "configs"
MIN_PSNR = 45  # between the terminal and Generate, as in test_parity.py
PROMPT = "a ball on the beach"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The walk's configs, two steps each on a shard of noise."""
    from accelerate.state import AcceleratorState

    from tests.train.quality_files import random_stacks, write_shard
    from train import train_autoencoder, train_diffusion

    folder = tmp_path_factory.mktemp("walk")
    write_shard(folder / "shard-000000.tar", random_stacks(8, 64), [f"{row:08d}" for row in range(8)])
    settings = {"data.shards.files": folder / "shard-000000.tar", "training.images": 32, "training.batch_size": 16,
                "training.warmup_images": 16, "training.validation_images": 0, "cached": 8,
                "data.shards.held_out": folder / "shard-000000.tar"}
    for main, name, more in (
        (train_autoencoder.main, "autoencoder", {}),
        (train_diffusion.main, "diffusion", {"autoencoder": folder / "autoencoder" / "model.safetensors"}),
    ):
        AcceleratorState._reset_state(True)
        pairs = {"run": folder / name, **settings, **more}.items()
        overrides = [part for key, value in pairs for part in ("--set", f"{key}={value}")]
        assert main(["--config", str(CONFIGS / f"walk_{name}.yaml"), *overrides]) == 0
    return folder / "diffusion" / "model.safetensors"


def test_a_trained_model_loads_and_draws(server: Server, client: ComfyClient, trained: Path) -> None:
    """The same picture as in the terminal."""
    from text2layer_core.pipeline import Text2LayerPipeline

    path = server.folder / "models" / "text2layer" / "trained.safetensors"
    path.write_bytes(trained.read_bytes())
    graph = Graph()
    node = generate(graph, graph("Text2LayerModelLoader", model=path.name), prompt=PROMPT)
    sample = show(client, graph, node).sample
    path.unlink()
    drawn = Text2LayerPipeline.from_pretrained(trained)(PROMPT, width=64, height=64, seed=0, steps=2,
                                                        guidance_scale=4.0)
    assert sample.composed.shape == (1, 3, 64, 64)
    assert float(sample.composed.std()) > 0.01
    for found, expected in ((sample.composed, drawn.composed), (sample.background, drawn.layers.background),
                            (sample.mask, drawn.layers.mask)):
        assert torch.isfinite(expected).all()
        assert psnr_of(found, as_saved(expected)) >= MIN_PSNR
