"""The autoencoder's trainer on a tiny model and drawn icons; expected values come from uninterrupted runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from text2layer_core import losses
from text2layer_core.autoencoder import AutoencoderConfig
from text2layer_core.checkpoint import Text2LayerModel, load_checkpoint, save_checkpoint
from text2layer_core.compositing import blend
from text2layer_core.schedule import ScheduleConfig
from train.config import load_config, parse
from train.engine import Part, Run, fit, resume
from train.train_autoencoder import AutoencoderTask, AutoencoderTrainingConfig, LossConfig, _inexact, main, make_task

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def values(tmp_path: Path, sprite_file: Path) -> dict[str, Any]:
    """A config file's content: a few thousand weights, 32 px, four steps of four samples."""
    return {
        "run": str(tmp_path / "run"),
        "data": {"source": "icons", "size": 32, "icons": {"cache": str(sprite_file)}},
        "autoencoder": {"latent_channels": 4, "block_out_channels": [8, 16], "layers_per_block": 1,
                        "norm_num_groups": 4, "patch_size": 2, "head_channels": 8},
        "losses": {"perceptual": "gradient", "adversarial": 0.0, "foreground_by_area": True, "composition": 1.0,
                   "consistency": 0.2, "kl": 1e-3},
        "training": {"images": 16, "batch_size": 4, "accumulation": 2, "learning_rate": 0.002, "ema_half_life": 8,
                     "warmup_images": 8, "save_images": 8},
    }


def config_of(values: dict[str, Any]) -> AutoencoderTrainingConfig:
    return parse(values, AutoencoderTrainingConfig, "test")


def make(config: AutoencoderTrainingConfig) -> tuple[Run, AutoencoderTask]:
    torch.manual_seed(config.training.seed)
    task = make_task(config, CPU)
    return Run(Path(config.run), config.training, Accelerator(cpu=True), task), task


def state_of(run: Run) -> dict[str, Tensor]:
    parts = {o.name: o.module for o in run.task.objectives} | ({"ema": run.ema} if run.ema is not None else {})
    return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("adversarial", [0.0, 0.5])
@pytest.mark.parametrize("cached", [0, 6])
def test_resume_is_exact(values: dict[str, Any], tmp_path: Path, adversarial: float, cached: int) -> None:
    values["losses"]["adversarial"] = adversarial
    config = replace(config_of(values), cached=cached)
    straight, _ = make(config)
    reports = [straight.step() for _ in range(4)]
    elsewhere = replace(config, run=str(tmp_path / "other"))
    first, _ = make(elsewhere)
    assert [first.step() for _ in range(2)] == reports[:2]
    first.save()
    torch.manual_seed(99)  # a new process's random state is its own
    second, _ = make(elsewhere)
    resume(second, "auto")
    assert [second.step() for _ in range(2)] == reports[2:]
    assert equal(state_of(second), state_of(straight))
    assert any(key.startswith("discriminator.") for key in state_of(second)) == bool(adversarial)


def test_training_lowers_the_loss(values: dict[str, Any]) -> None:
    values["training"] |= {"images": 96, "accumulation": 1, "learning_rate": 0.01}
    run, _ = make(replace(config_of(values), cached=4))
    reports = [run.step() for _ in range(24)]
    assert reports[-1]["loss"] < 0.7 * reports[0]["loss"]


@torch.no_grad()
def test_terms_by_hand(values: dict[str, Any]) -> None:
    """Every term against `text2layer_core.losses` on the same outputs; the loss is their sum."""
    config = config_of(values)
    task = make_task(config, CPU)
    batch = task.batch(Part(0, 2), CPU)
    found = task.objectives[0].module(batch)
    foreground, background, mask = batch.stack.split([3, 3, 1], dim=1)
    distribution, outputs = task.autoencoder(batch.stack, lambda d: d.mean + torch.exp(0.5 * d.logvar) * batch.noise)
    ends = outputs["mask"].clamp(0, 1)
    outputs["mask"] = ends + 0.1 * (outputs["mask"] - ends)  # overshooting the ends costs a tenth
    composed = blend(foreground, background, mask)
    predicted = blend(outputs["foreground"], outputs["background"], outputs["mask"])
    expected = {
        "foreground": losses.masked_l1(outputs["foreground"], foreground, mask)
        + 0.1 * (outputs["foreground"] - foreground).abs().mean(),
        "background": (outputs["background"] - background).abs().mean(),
        "composed": (outputs["composed"] - composed).abs().mean(),
        "perceptual": losses.gradient_loss(outputs["foreground"] * mask, foreground * mask)
        + losses.gradient_loss(outputs["background"], background) + losses.gradient_loss(outputs["composed"], composed),
        "mask": losses.mask_loss(outputs["mask"], mask, foreground, background),
        "kl": 1e-3 * losses.kl_loss(distribution.mean, distribution.logvar) / (3 * 32 * 32),
        "composition": (predicted - composed).abs().mean(),
        "consistency": 0.2 * (outputs["composed"] - predicted).abs().mean(),
    }
    assert found.keys() == {"loss", *expected}
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(float(value), rel=1e-5), name
    assert float(found["loss"]) == pytest.approx(sum(float(value) for value in expected.values()), rel=1e-5)


def task_and_batch(values: dict[str, Any]) -> tuple[AutoencoderTask, Any]:
    _, task = make(config_of(values))
    return task, task.batch(Part(0, 4), CPU)


@torch.no_grad()
def test_hidden_background_is_its_l1_under_the_mask(values: dict[str, Any]) -> None:
    values["losses"] |= {"hidden_background": 2.0, "hidden_scales": 2}
    task, batch = task_and_batch(values)
    _, outputs = task.autoencoder(batch.stack, lambda d: d.mean + torch.exp(0.5 * d.logvar) * batch.noise)
    background, mask = batch.stack[:, 3:6], batch.stack[:, 6:]
    error = mask * (outputs["background"] - background)
    area = mask.mean((1, 2, 3)).clamp_min(0.05)
    means = error.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).mean((3, 5))
    expected = (error.abs().mean((1, 2, 3)) / area).mean() + (means.abs().mean((1, 2, 3)) / area).mean()
    assert float(task.objectives[0].module(batch)["hidden_background"]) == pytest.approx(float(expected), rel=1e-5)


@torch.no_grad()
def test_latent_noise_has_the_configured_levels_and_adds_to_the_posteriors(values: dict[str, Any]) -> None:
    """By hand: independent Gaussians add in variance; a level of 0 leaves the posterior's draw as it was."""
    task, batch = task_and_batch({**values, "latent_noise": 0.5})
    assert batch.noise_level.flatten().tolist() == pytest.approx([0, 0.309017, 0.118034, 0.427051], abs=1e-5)
    seen: list[Tensor] = []
    distribution = task.autoencoder(batch.stack, lambda d: seen.append(_inexact(d, batch)) or seen[0])[0]
    spread = distribution.mean.std(dim=(1, 2, 3), keepdim=True)
    variance = torch.exp(distribution.logvar) + (batch.noise_level * spread) ** 2
    assert torch.allclose(seen[0], distribution.mean + variance.sqrt() * batch.noise, atol=1e-6)
    assert config_of(values).latent_noise == 0


def test_uncertainty_weighs_by_learnt_scales(values: dict[str, Any]) -> None:
    """At s = 0 every term counts as without it; where a term is small its weight grows (d/ds (exp(-s) L + s) > 0)."""
    plain, batch = task_and_batch(values)
    values["losses"]["uncertainty"] = True
    run, task = make(config_of(values))
    task.autoencoder.load_state_dict(plain.autoencoder.state_dict())
    weighed, unweighed = (some.objectives[0].module(batch)["loss"].item() for some in (task, plain))
    assert weighed == pytest.approx(unweighed, rel=1e-5)
    scales = dict(task.objectives[0].module.log_scales.items())
    for _ in range(3):
        run.step()
    assert all(scales[name].item() < 0 for name in ("foreground", "background", "composed"))


def test_defaults_are_the_papers_weights_and_the_winner_of_the_tables() -> None:
    """L1, LPIPS, half an adversarial term and LDM's KL; F by area, composition and consistency are ours."""
    assert LossConfig() == LossConfig(mask=1.0, perceptual="lpips", perceptual_weight=1.0, adversarial=0.5, kl=1e-6,
                                      foreground_by_area=True, hidden_background=0.0, composition=1.0,
                                      consistency=0.2, uncertainty=False)


class Difference(nn.Module):
    """Stands where LPIPS's network stands: pictures (n, 3, H, W) in [0, 1] -> (n, 1, 1, 1)."""

    def forward(self, in0: Tensor, in1: Tensor, normalize: bool) -> Tensor:
        assert normalize
        return (in0 - in1).square().mean((1, 2, 3), keepdim=True)


@torch.no_grad()
def test_perceptual_network_is_passed_in_and_not_trained(values: dict[str, Any]) -> None:
    values["losses"] = {"perceptual": "lpips", "perceptual_weight": 2.0, "adversarial": 0.0,
                        "foreground_by_area": False}
    config = config_of(values)
    source = make_task(config_of({**values, "losses": {"perceptual": "none", "adversarial": 0.0}}), CPU)._source
    task = AutoencoderTask(config, source, Difference())
    batch = task.batch(Part(0, 2), CPU)
    found = task.objectives[0].module(batch)
    _, outputs = task.autoencoder(batch.stack, lambda d: d.mean + torch.exp(0.5 * d.logvar) * batch.noise)
    foreground, background, mask = batch.stack.split([3, 3, 1], dim=1)
    truths = {"foreground": foreground, "background": background, "composed": blend(foreground, background, mask)}
    expected = 2 * sum(float((outputs[name] - truth).square().mean()) for name, truth in truths.items())
    assert float(found["perceptual"]) == pytest.approx(expected, rel=1e-5)
    assert {name.partition(".")[0] for name, _ in task.objectives[0].module.named_parameters()} == {"autoencoder"}


def test_no_composed_head_is_the_no_sup_variant(values: dict[str, Any]) -> None:
    values["autoencoder"]["composed_head"] = False
    values["losses"]["adversarial"] = 0.5
    run, _ = make(config_of(values))
    report = run.step()
    assert "composed" not in report
    assert "consistency" not in report
    assert report["discriminator.loss"] > 0


def test_adversarial_terms_set_in_where_configured(values: dict[str, Any]) -> None:
    values["losses"] |= {"adversarial": 0.5, "adversarial_from": 4}
    run, task = make(config_of(values))
    critic = task.objectives[1].module
    before = [parameter.clone() for parameter in critic.parameters()]
    report = run.step()
    assert report["adversarial"] == report["discriminator.loss"] == 0
    assert all(map(torch.equal, before, critic.parameters()))
    report = run.step()
    assert report["adversarial"] != 0
    assert report["discriminator.loss"] > 0
    assert not any(map(torch.equal, before, critic.parameters()))
    assert all(parameter.requires_grad for parameter in critic.parameters())


@pytest.mark.parametrize("background_decoder", [False, True])
def test_frozen_encoder_keeps_the_latents(values: dict[str, Any], background_decoder: bool) -> None:
    values["autoencoder"]["background_decoder"] = background_decoder
    run, task = make(config_of({**values, "frozen_encoder": True}))
    before = {name: value.clone() for name, value in task.autoencoder.state_dict().items()}
    for _ in range(2):
        run.step()
    kept = {name for name, value in task.autoencoder.state_dict().items() if torch.equal(value, before[name])}
    trained = {name for name, parameter in task.autoencoder.named_parameters() if parameter.requires_grad}
    frozen = {name for name in before if name.startswith(("encoder.", "quant_conv."))}
    assert kept == frozen
    assert trained.isdisjoint(frozen)


@pytest.mark.parametrize(("scales", "message"), [
    (0, "losses: hidden_scales must be at least 1, got 0"),
    (7, r"size must be a multiple of 2\^\(losses.hidden_scales - 1\), got 32 and 7"),
])
def test_scales_that_do_not_fit_are_refused_before_anything_is_drawn(
    values: dict[str, Any], scales: int, message: str
) -> None:
    values["losses"]["hidden_scales"] = scales
    with pytest.raises(ValueError, match=message):
        config_of(values)


def test_exported_ema_decodes_as_the_ema(values: dict[str, Any]) -> None:
    """The export holds the EMA's weights, halved in precision, and BatchNorm's statistics of the last step."""
    run, task = make(config_of(values))
    fit(run)
    assert run.ema is not None
    exported = load_checkpoint(run.folder / "model.safetensors")
    assert exported.card["images"] == 16
    assert exported.card["stage"] == "autoencoder"
    found, live, ema = exported.autoencoder.state_dict(), task.autoencoder.state_dict(), run.ema.state_dict()
    statistics = [key for key in live if "running" in key]
    assert len(statistics) == 8  # mean and variance of four heads
    for key in statistics:
        assert torch.equal(found[key], live[key])
        assert not torch.equal(found[key], torch.full_like(found[key], float("var" in key))), "they have moved"
    matrices = [key for key in ema if ema[key].ndim > 1]
    assert all(torch.equal(found[key], ema[key].half().float()) for key in matrices)
    assert not any(torch.equal(found[key], live[key].half().float()) for key in matrices)
    expected = run.ema.eval()
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found_layers, layers = exported.autoencoder.decode(latents).layers, expected.decode(latents).layers
    assert (found_layers.stack() - layers.stack()).abs().max() < 0.01


def write(values: dict[str, Any], path: Path) -> list[str]:
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return ["--config", str(path)]


def run_main(arguments: list[str]) -> int:
    AcceleratorState._reset_state(True)
    return main(arguments)


def test_command_trains_resumes_and_goes_on_elsewhere(values: dict[str, Any], tmp_path: Path) -> None:
    arguments = write(values, tmp_path / "a.yaml")
    assert run_main([*arguments, "--set", "training.images=8"]) == 0
    run = tmp_path / "run"
    written = {path.name for path in run.iterdir()} - {"log.csv"}
    assert written == {"model.safetensors", "sheets", "states", "tensorboard"}
    assert run_main(arguments) == 0  # the same command, a longer run
    assert sorted(path.name for path in (run / "states").iterdir()) == ["0000000008.pt", "0000000016.pt"]
    assert load_checkpoint(run / "model.safetensors").card["images"] == 16
    new = ["--set", f"run={tmp_path / 'new'}", "--set", "training.images=24"]
    new += ["--init-from", str(run / "model.safetensors")]
    assert run_main([*arguments, *new]) == 0
    state = torch.load(tmp_path / "new" / "states" / "0000000024.pt", weights_only=True)
    assert (state["images"], state["start"]) == (24, 16)
    assert state["optimizers"]["autoencoder"]["state"][0]["step"] == 2  # a new optimiser: two steps of four samples
    assert load_checkpoint(tmp_path / "new" / "model.safetensors").card["images"] == 24
    # The same command again goes on with the run and does not start over.
    assert run_main([*arguments, *new, "--set", "training.images=28"]) == 0
    state = torch.load(tmp_path / "new" / "states" / "0000000028.pt", weights_only=True)
    assert (state["images"], state["start"]) == (28, 16)


def test_a_decoder_for_the_background_starts_as_the_shared_one(values: dict[str, Any], tmp_path: Path) -> None:
    run, _ = make(config_of(values))
    fit(run)
    values["run"] = str(tmp_path / "new")
    values["autoencoder"]["background_decoder"] = True
    _, task = make(config_of(values))
    assert task.load_weights(run.folder / "model.safetensors") == 16
    before = load_checkpoint(run.folder / "model.safetensors").autoencoder
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = before.decode_heads(latents), task.autoencoder.eval().decode_heads(latents)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    save_checkpoint(tmp_path / "with.safetensors", Text2LayerModel(task.autoencoder, None, None, ScheduleConfig()))
    _, task = make(config_of({**values, "autoencoder": values["autoencoder"] | {"background_decoder": False}}))
    with pytest.raises(ValueError, match="--init-from must hold the configured autoencoder"):
        task.load_weights(tmp_path / "with.safetensors")


def test_init_from_takes_the_weights(values: dict[str, Any], tmp_path: Path) -> None:
    run, _ = make(config_of(values))
    fit(run)
    values["run"] = str(tmp_path / "new")
    values["training"] |= {"seed": 7, "images": 24}
    fresh, task = make(config_of(values))
    images = task.load_weights(run.folder / "model.safetensors")
    fresh.start_from(images)
    assert images == fresh.images == fresh.start == 16
    exported = load_checkpoint(run.folder / "model.safetensors").autoencoder.state_dict()
    assert fresh.ema is not None
    assert equal(task.autoencoder.state_dict(), exported)
    assert equal(fresh.ema.state_dict(), exported)


def test_dry_run_reports_and_writes_nothing(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = write({**values, "cached": 64}, tmp_path / "a.yaml")
    before = sorted(tmp_path.rglob("*"))
    assert run_main([*arguments, "--dry-run"]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    count = sum(p.numel() for p in make_task(config_of(values), CPU).autoencoder.parameters())
    first, memory, second = capsys.readouterr().out.splitlines()
    assert memory.startswith("memory estimate ")
    assert first == f"autoencoder: {count / 1e6:.2f} M parameters"
    assert second.startswith("peak memory ")
    assert second.endswith(" images/s on cpu")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.batchsize=4", "a.yaml: training has an unknown key batchsize (nearest: batch_size)"),
        ("data.size=30", "data: size must be a multiple of the autoencoder's stride 4, got 30"),
        ("data.icons.cache=/nowhere", "the sprite cache must exist (python -m train.rasterise --out /nowhere), found"),
        ("training.batch_size=3", "batch_size must be a multiple of accumulation=2, got 3"),
        ("cached=-1", "cached must not be negative, got -1"),
        ("losses.perceptual=lpips", "set losses.perceptual=gradient for the stated substitute"),
    ],
)
def test_bad_configs_are_one_line(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    override: str, message: str,
) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)  # also where it is installed
    assert run_main([*write(values, tmp_path / "a.yaml"), "--set", override]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_bad_files_are_one_line(values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = write(values, tmp_path / "a.yaml")
    assert run_main([*arguments, "--resume", "there.pt"]) == 2
    assert capsys.readouterr().err == "error: --resume must be auto, none or a state file, got there.pt\n"
    assert run_main([*arguments, "--init-from", str(tmp_path / "absent.safetensors")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    wide, _ = make(replace(config_of(values), autoencoder=AutoencoderConfig(
        latent_channels=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, patch_size=2,
        head_channels=8), run=str(tmp_path / "wide")))
    wide.save()
    assert run_main([*arguments, "--init-from", str(tmp_path / "wide" / "model.safetensors")]) == 2
    assert "error: --init-from must hold the configured autoencoder, got AutoencoderConfig(" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert run_main([*arguments, "--set", f"run={tmp_path / 'file' / 'run'}"]) == 2
    assert "Not a directory" in capsys.readouterr().err


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}


def test_interrupt_leaves_a_state_that_loads_and_no_temporary_file(values: dict[str, Any], tmp_path: Path) -> None:
    values["training"] |= {"images": 10**9, "save_images": 20}
    arguments = write(values, tmp_path / "a.yaml")
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "train.train_autoencoder", *arguments], env=environment(), cwd=tmp_path,
        stderr=subprocess.PIPE, text=True,
    )
    try:
        deadline = time.monotonic() + 1200
        while not (run / "model.safetensors").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=1200)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert not [path for path in run.rglob("*") if "tmp" in path.name]
    resumed, _ = make(config_of(values))
    resume(resumed, "auto")
    assert resumed.images > 0
    assert f"stopped at {resumed.images} images" in errors
    assert load_checkpoint(run / "model.safetensors").card["images"] == resumed.images
    resumed.step()


@pytest.mark.slow
def test_two_processes_train_the_debug_config(tmp_path: Path, sprite_file: Path) -> None:
    """Gloo, with a cache to fill and a discriminator: BatchNorm's buffers are the main process's."""
    config = ROOT / "train" / "configs" / "debug_cpu_autoencoder.yaml"
    overrides = [f"run={tmp_path / 'run'}", f"data.icons.cache={sprite_file}", "data.size=32", "training.images=32",
                 "cached=16", "losses.adversarial=0.5", "losses.adversarial_from=8", "training.warmup_images=8"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m",
               "train.train_autoencoder", "--config", str(config), *(x for o in overrides for x in ("--set", o))]
    done = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=1800,
                          check=False)
    assert done.returncode == 0, done.stderr
    exported = load_checkpoint(tmp_path / "run" / "model.safetensors")
    assert exported.card["images"] == 32
    settings = load_config(config, overrides, AutoencoderTrainingConfig)
    alone, _ = make(replace(settings, run=str(tmp_path / "alone")))
    resume(alone, str(tmp_path / "run" / "states" / "0000000032.pt"))
    assert alone.images == 32
    together, once = (tmp_path / name / "cache" / "stack.npy" for name in ("run", "alone"))
    assert together.read_bytes() == once.read_bytes()
