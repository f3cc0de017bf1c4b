"""LoRA of a tiny UNet; expected values from peft's own layers and the base's weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.train.test_train_diffusion import (
    autoencoder_file,  # noqa: F401 - a fixture
    config_of,
    equal,
    make,
    run_main,
    state_of,
    values,  # noqa: F401 - a fixture
    write,
)
from text2layer_core.checkpoint import load_checkpoint
from train import train_diffusion
from train.engine import fit, resume

RANK, ALPHA = 3, 6.0


@pytest.fixture(autouse=True)
def few_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough for a tokenizer here."""
    monkeypatch.setattr(train_diffusion, "_TOKENIZER_CAPTIONS", 100)


@pytest.fixture
def adapting(values: dict[str, Any], tmp_path: Path) -> dict[str, Any]:  # noqa: F811
    """A base after four steps, and the config of an adapter on it."""
    base, _ = make(config_of({**values, "run": str(tmp_path / "base")}))
    fit(base)
    path = str(tmp_path / "base" / "model.safetensors")
    return {**values, "text": {"pretrained": path}, "latent_scale": 0.0,
            "lora": {"base": path, "rank": RANK, "alpha": ALPHA}}


def test_only_the_adapter_is_trained(adapting: dict[str, Any]) -> None:
    """It starts as no change; the base stays; the adapter's file and the merged checkpoint say the same."""
    run, task = make(config_of(adapting))
    base = load_checkpoint(adapting["lora"]["base"])
    assert base.unet is not None
    untouched = task.checkpoint(0)
    assert untouched.unet is not None
    assert equal(untouched.unet.state_dict(), base.unet.state_dict())
    assert float(task.model.latent_scale) == 0.5
    trained = sum(p.numel() for group in run.optimizers[0].param_groups for p in group["params"])
    layers = [module for name, module in base.unet.named_modules()
              if name.endswith(("to_q", "to_k", "to_v", "to_out.0"))]
    assert trained == sum(RANK * (layer.in_features + layer.out_features) for layer in layers)
    fit(run)
    weights = load_file(run.folder / "lora.safetensors")
    merged = load_checkpoint(run.folder / "model.safetensors").unet
    assert merged is not None
    assert len(weights) == 3 * len(layers)
    changed = 0
    for name, tensor in merged.state_dict().items():
        before = base.unet.state_dict()[name]
        flat = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        if f"{flat}.alpha" in weights:
            up, down = (weights[f"{flat}.lora_{kind}.weight"] for kind in ("up", "down"))
            assert float(weights[f"{flat}.alpha"]) == ALPHA
            torch.testing.assert_close(tensor, before + ALPHA / RANK * up @ down, rtol=0, atol=1e-3)  # half precision
            changed += bool(up.any())
        else:
            assert torch.equal(tensor, before), name
    assert changed == len(layers)
    with safe_open(run.folder / "lora.safetensors", "pt") as file:
        assert json.loads(file.metadata()["text2layer.lora"])["rank"] == RANK


def test_diffusers_reads_the_file(adapting: dict[str, Any]) -> None:
    """Its own loader gives the base what the merged checkpoint has."""
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers

    run, _ = make(config_of(adapting))
    fit(run)
    weights = load_file(run.folder / "lora.safetensors")
    converted, alphas = _convert_non_diffusers_lora_to_diffusers(dict(weights))
    base, merged = load_checkpoint(adapting["lora"]["base"]).unet, load_checkpoint(run.folder / "model.safetensors")
    assert base is not None
    assert merged.unet is not None
    base.load_lora_adapter(converted, network_alphas=alphas, prefix="unet")
    latents, text = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 32)
    with torch.no_grad():
        found, expected = (unet(latents, 5, text).sample for unet in (base, merged.unet))
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-3)  # half precision on disk


def test_resume_is_exact(adapting: dict[str, Any], tmp_path: Path) -> None:
    straight, _ = make(config_of(adapting))
    reports = [straight.step() for _ in range(4)]
    first, _ = make(config_of({**adapting, "run": str(tmp_path / "other")}))
    for _ in range(2):
        first.step()
    first.save()
    second, _ = make(config_of({**adapting, "run": str(tmp_path / "other")}))
    resume(second, "auto")
    assert [second.step() for _ in range(2)] == reports[2:]
    assert equal(state_of(second), state_of(straight))


@pytest.mark.parametrize(("override", "extra", "message"), [
    ("lora.rank=0", [], "lora must have a rank of at least 1, an alpha above 0 and targets, got rank 0, alpha 6.0"),
    ("lora.targets=[to_nowhere]", [], "lora: targets must name layers of the UNet, got ['to_nowhere']"),
    ("seed", ["--init-from"], "--init-from must be left out with lora, whose base is the start, got "),
])
def test_bad_input_is_one_line(
    adapting: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, extra: list[str],
    message: str,
) -> None:
    override = override if "=" in override else "data.seed=0"
    arguments = [*write(adapting, tmp_path / "a.yaml"), "--set", override]
    capsys.readouterr()
    assert run_main([*arguments, *(f for flag in extra for f in (flag, adapting["lora"]["base"]))]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
