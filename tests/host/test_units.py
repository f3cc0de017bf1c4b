"""`scripts/units.py` on each host: its checks as tests, and what they compare with."""

from __future__ import annotations

import ast
import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.host.comfyui import PACK, Host, environment
from tests.host.models import four_level_model
from text2layer_core.checkpoint import save_checkpoint
from text2layer_core.schedule import alphas_cumprod

if TYPE_CHECKING:
    from text2layer_core.checkpoint import Text2LayerModel

pytestmark = pytest.mark.comfy

SCRIPT = Path(__file__).parent / "scripts" / "units.py"
CHECKS = [node.name for node in ast.parse(SCRIPT.read_text(encoding="utf-8")).body
          if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")]
MISSING = "unet.mid_block.resnets.0.conv1.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A host's base directory with models in two places, beside files that are none."""
    base = tmp_path_factory.mktemp("units")
    models, extra = base / "models" / "text2layer", base / "extra"
    model = four_level_model()
    whole = models / "four-level.safetensors"
    save_checkpoint(whole, model, torch.float32)
    with safe_open(whole, "pt") as handle:
        metadata = handle.metadata()
    tensors = load_file(whole)
    tensors.pop(MISSING)
    save_file(tensors, models / "broken.safetensors", metadata)
    (extra / "sub").mkdir(parents=True)
    for path in (extra / "sub" / "mine.safetensors", base / "outside.safetensors"):
        path.write_bytes(whole.read_bytes())
    for name in ("notes.txt", "pickled.ckpt"):
        (models / name).write_text("no model", encoding="utf-8")
    save_file(reference(model), base / "reference.safetensors")
    return base


def reference(model: Text2LayerModel) -> dict[str, torch.Tensor]:
    """What diffusers' UNet, transformers' text model and our autoencoder make of random numbers."""
    assert model.unet is not None
    assert model.text_encoder is not None
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 8, 16, 16, generator=generator)
    stack = torch.rand(2, 7, 64, 64, generator=generator)
    timesteps = torch.tensor([30.0, 700.0])
    with torch.no_grad():
        context = model.text_encoder.encode(["a red fox on snow", "an owl"])
        decoded = model.autoencoder.decode(latents)
        tensors = {
            "latents": latents, "stack": stack, "timesteps": timesteps, "context": context,
            "predicted": model.unet(latents, timesteps, encoder_hidden_states=context).sample,
            "unscaled": latents / model.schedule.latent_scale,
            "alphas_cumprod": alphas_cumprod(model.schedule),
            "encoded": model.autoencoder.encode_stack(stack).mode(),
            "decoded": decoded.layers.stack(), "predicted_composed": decoded.predicted_composed,
        }
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def results(host: Host, folder: Path) -> dict[str, str]:
    command = [str(host.python), str(SCRIPT), str(PACK), str(folder)]
    done = subprocess.run(
        command, cwd=host.folder, env=environment(), capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", CHECKS)
def test_unit(results: dict[str, str], name: str) -> None:
    assert results[name] == "", results[name]
