"""The diffusion trainer on a tiny model and drawn icons; expected values by hand or from uninterrupted runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors import safe_open
from torch import Tensor

from text2layer_core.autoencoder import AutoencoderConfig, CaT2IAutoencoder
from text2layer_core.checkpoint import CLIP_L, Text2LayerModel, load_checkpoint, save_checkpoint
from text2layer_core.conversion import to_diffusers
from text2layer_core.pipeline import Text2LayerPipeline
from text2layer_core.schedule import ScheduleConfig
from text2layer_core.text_encoder import TextEncoder, TextEncoderConfig, train_tokenizer
from text2layer_core.unet import build_unet
from train import train_diffusion
from train.config import parse
from train.data import open_source, sample_noise
from train.engine import Part, Run, fit, resume
from train.samples import epoch_rows
from train.train_diffusion import DiffusionTask, DiffusionTrainingConfig, main, make_task

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def few_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough for a tokenizer here."""
    monkeypatch.setattr(train_diffusion, "_TOKENIZER_CAPTIONS", 100)


def save_autoencoder(path: Path, seed: int = 0, channels: int = 4) -> Path:
    torch.manual_seed(seed)
    config = AutoencoderConfig(latent_channels=channels, block_out_channels=(8, 16), layers_per_block=1,
                               norm_num_groups=4, patch_size=2, head_channels=8)
    save_checkpoint(path, Text2LayerModel(CaT2IAutoencoder(config), None, None, ScheduleConfig()))
    return path


@pytest.fixture(scope="session")
def autoencoder_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_autoencoder(tmp_path_factory.mktemp("autoencoder") / "autoencoder.safetensors")


@pytest.fixture
def values(tmp_path: Path, sprite_file: Path, autoencoder_file: Path) -> dict[str, Any]:
    """A config file's content: 32 px, latents (4, 8, 8), four steps of four samples."""
    return {
        "run": str(tmp_path / "run"),
        "autoencoder": str(autoencoder_file),
        "data": {"source": "icons", "size": 32, "icons": {"cache": str(sprite_file)}},
        "unet": {"in_channels": 4, "block_out_channels": [32, 32], "layers_per_block": 1,
                 "attention_levels": [False, True], "num_heads": 2, "cross_attention_dim": 32},
        "text": {"encoder": {"vocab_size": 600, "hidden_size": 32, "intermediate_size": 32, "num_layers": 1,
                             "num_heads": 2, "max_length": 16}},
        "latent_scale": 0.5,
        "training": {"images": 16, "batch_size": 4, "accumulation": 2, "learning_rate": 0.002, "ema_half_life": 8,
                     "warmup_images": 8, "save_images": 8, "sheet_images": 16},
    }


def config_of(values: dict[str, Any]) -> DiffusionTrainingConfig:
    return parse(values, DiffusionTrainingConfig, "test")


def make(config: DiffusionTrainingConfig, precision: str = "no") -> tuple[Run, DiffusionTask]:
    AcceleratorState._reset_state(True)
    torch.manual_seed(config.training.seed)
    task = make_task(config, CPU)
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    return Run(Path(config.run), config.training, accelerator, task), task


def state_of(run: Run) -> dict[str, Any]:
    assert run.ema is not None
    parts = {"model": run.task.ema_of, "ema": run.ema}
    return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[key], b[key]) if isinstance(a[key], Tensor) else a[key] == b[key] for key in a
    )


def randomised(task: DiffusionTask) -> DiffusionTask:
    """The task with no weight at zero, so that its prediction depends on everything."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return task


@pytest.mark.parametrize(("cached", "precision"), [(0, "no"), (6, "bf16")])
def test_resume_is_exact(values: dict[str, Any], tmp_path: Path, cached: int, precision: str) -> None:
    config = replace(config_of(values), cached=cached)
    straight, _ = make(config, precision)
    reports = [straight.step() for _ in range(4)]
    elsewhere = replace(config, run=str(tmp_path / "other"))
    first, _ = make(elsewhere, precision)
    assert [first.step() for _ in range(2)] == reports[:2]
    first.save()
    torch.manual_seed(99)  # a new process's random state is its own
    second, _ = make(elsewhere, precision)
    resume(second, "auto")
    assert [second.step() for _ in range(2)] == reports[2:]
    assert equal(state_of(second), state_of(straight))


def test_latent_scale_is_measured_once(values: dict[str, Any]) -> None:
    """1 / standard deviation, by numpy; a resumed run keeps it, whatever it would measure now."""
    config = replace(config_of(values), latent_scale=0.0, cached=8)
    run, task = make(config)
    unscaled = task._latents.draw(Part(0, 512), CPU)[0]
    assert float(task.model.latent_scale) == pytest.approx(1 / unscaled.numpy().std(ddof=1), rel=1e-5)
    scaled = task.batch(Part(0, 512), CPU).latents
    assert float(scaled.std()) == pytest.approx(1, rel=1e-5)
    task.model.latent_scale.fill_(0.25)
    run.start_from(0)
    run.save()
    assert load_checkpoint(run.folder / "model.safetensors").schedule.latent_scale == 0.25
    resumed, again = make(config)
    resume(resumed, "auto")
    assert float(again.model.latent_scale) == 0.25
    torch.testing.assert_close(again.batch(Part(0, 4), CPU).latents, 0.25 * unscaled[:4])


def test_captions_are_dropped_to_the_empty_one(values: dict[str, Any]) -> None:
    task = make_task(replace(config_of(values), cached=8), CPU)
    encoder = task.model.text_encoder
    ids = task.batch(Part(0, 1000), CPU).ids
    empty = encoder.tokenize("")
    assert empty.tolist() == [[encoder.start_id, *[encoder.end_id] * 15]]
    dropped = (ids == empty).all(1)
    assert int(dropped.sum()) == pytest.approx(100, abs=3)  # caption_dropout is 0.1, spread evenly
    captions = task._latents.captions(Part(0, 1000))
    assert torch.equal(ids[~dropped], encoder.tokenize([c for c, d in zip(captions, dropped, strict=True) if not d]))
    first = int(dropped.nonzero()[0])
    with torch.no_grad():
        torch.testing.assert_close(encoder(ids[first : first + 1]), encoder.encode(""))


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (1.0, 200)])
def test_caption_dropout_at_its_ends(values: dict[str, Any], share: float, count: int) -> None:
    task = make_task(replace(config_of(values), cached=8, caption_dropout=share), CPU)
    ids = task.batch(Part(0, 200), CPU).ids
    assert int((ids == task.model.text_encoder.tokenize("")).all(1).sum()) == count


def test_timesteps_are_uniform(values: dict[str, Any]) -> None:
    task = make_task(replace(config_of(values), cached=8), CPU)
    timesteps = task.batch(Part(0, 2000), CPU).timesteps
    assert timesteps.dtype == torch.int64
    assert 0 <= int(timesteps.min()) < 5
    assert 995 <= int(timesteps.max()) < 1000
    counts = torch.histc(timesteps.float(), bins=20, min=0, max=1000)
    assert (counts - 100).abs().max() <= 4
    empty = (task.batch(Part(0, 2000), CPU).ids == task.model.text_encoder.tokenize("")).all(1)
    assert float(timesteps[empty].float().mean()) == pytest.approx(500, abs=25)  # dropped at every level alike


def test_a_batch_is_a_function_of_the_index(values: dict[str, Any]) -> None:
    """However it is cut into parts; another seed gives other noise."""
    task = make_task(replace(config_of(values), cached=8), CPU)
    whole, parts = task.batch(Part(6, 6), CPU), [task.batch(Part(start, 2), CPU) for start in (6, 8, 10)]
    for name in ("latents", "noise", "timesteps", "ids"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts])), name
    assert len({float(noise.sum()) for noise in whole.noise}) == 6
    values["training"]["seed"] = 1
    other = make_task(replace(config_of(values), cached=8), CPU).batch(Part(6, 6), CPU)
    assert not torch.equal(whole.noise, other.noise)
    assert not torch.equal(whole.timesteps, other.timesteps)


def test_cached_latents_equal_fresh_ones(values: dict[str, Any], tmp_path: Path) -> None:
    """Sample k is row k of the epoch's order; encoded here by hand, drawn with its own noise."""
    config = replace(config_of(values), cached=8)
    task = make_task(config, CPU)
    rows = epoch_rows(0, 0, 8, 8)
    assert sorted(rows) == list(range(8))
    source = open_source(config.data)
    autoencoder = load_checkpoint(config.autoencoder).autoencoder
    with torch.no_grad():
        found = autoencoder.encode_stack(torch.cat([source.batch(int(row), 1).stack for row in rows]))
    noise = sample_noise(0, [2 * index + 1 for index in range(8)], (4, 8, 8))
    expected = found.mean + torch.exp(0.5 * found.logvar) * noise
    latents = task._latents.draw(Part(0, 8), CPU)[0]
    torch.testing.assert_close(latents, expected, rtol=2e-3, atol=2e-3)
    assert task._latents.captions(Part(0, 8)) == [source.captions(int(row), 1)[0] for row in rows]
    fresh = make_task(replace(config, cached=0), CPU)._latents
    in_order = fresh.draw(Part(0, 8), CPU)[0] - torch.exp(0.5 * found.logvar[np.argsort(rows)]) * noise
    torch.testing.assert_close(in_order, found.mean[np.argsort(rows)], rtol=1e-4, atol=1e-4)
    assert not list((tmp_path / "run").glob("*.tmp"))


@pytest.mark.parametrize("cached", [0, 4])
def test_coverage_is_the_mask_averaged_over_each_cell(values: dict[str, Any], cached: int) -> None:
    """From the source's own masks, by slicing; the cache holds it in half precision."""
    config = replace(config_of(values), cached=cached)
    task = make_task(config, CPU)
    source = open_source(config.data)
    rows = epoch_rows(config.data.seed, 0, 4, cached) if cached else range(4)
    cell = load_checkpoint(config.autoencoder).autoencoder.config.downscale
    masks = torch.cat([source.batch(int(row), 1).image.mask for row in rows])
    expected = torch.stack([masks[:, :, i::cell, j::cell] for i in range(cell) for j in range(cell)]).mean(0)
    assert 0 < expected.mean() < 1
    torch.testing.assert_close(task.batch(Part(0, 4), CPU).coverage, expected, rtol=0, atol=1e-3)


def test_the_cache_belongs_to_the_encoder(values: dict[str, Any], tmp_path: Path) -> None:
    """The same encoder reads it, another decoder too, another encoder fills it anew."""
    config = replace(config_of(values), cached=4)
    state, mean = (tmp_path / "run" / "cache" / name for name in ("state.json", "mean.npy"))
    make_task(config, CPU)
    before = state.stat().st_mtime_ns, mean.read_bytes()
    make_task(config, CPU)
    assert (state.stat().st_mtime_ns, mean.read_bytes()) == before
    model = load_checkpoint(config.autoencoder)
    other = tmp_path / "other.safetensors"
    for part, same in (("post_quant_conv", True), ("quant_conv", False)):
        with torch.no_grad():
            getattr(model.autoencoder, part).weight.mul_(2)
        save_checkpoint(other, model)
        make_task(replace(config, autoencoder=str(other)), CPU)
        assert ((state.stat().st_mtime_ns, mean.read_bytes()) == before) == same, part


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("gamma", "weight"), [(0.0, 0.0), (5.0, 0.0), (0.0, 4.0)])
def test_loss_by_hand(values: dict[str, Any], prediction_type: str, gamma: float, weight: float) -> None:
    """Ho et al. 2020 (eq. 4, 14), Salimans and Ho 2022 (v), Hang et al. 2023 (weights), in float64."""
    values |= {"schedule": {"prediction_type": prediction_type}, "min_snr_gamma": gamma, "cached": 6,
               "foreground_weight": weight}
    task = randomised(make_task(config_of(values), CPU))
    batch = task.batch(Part(0, 6), CPU)
    signal = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)[batch.timesteps.numpy()]
    a, b = (torch.from_numpy(x).view(6, 1, 1, 1) for x in (np.sqrt(signal), np.sqrt(1 - signal)))
    noisy = (a * batch.latents + b * batch.noise).float()
    with torch.no_grad():
        context = task.model.text_encoder(batch.ids)
        prediction = task.model.unet(noisy, batch.timesteps, context).sample.double()
        found = task.model(batch)
    target = batch.noise if prediction_type == "epsilon" else a * batch.noise - b * batch.latents
    errors = ((1 + weight * batch.coverage) * (prediction - target).square()).mean((1, 2, 3)).numpy()
    snr = signal / (1 - signal)
    if gamma:
        errors = errors * np.minimum(snr, gamma) / (snr if prediction_type == "epsilon" else snr + 1)
    assert found.keys() == {"loss"}
    assert float(found["loss"]) == pytest.approx(errors.mean(), rel=1e-4)


def test_a_fresh_unet_predicts_its_last_bias(values: dict[str, Any]) -> None:
    """Which is 0, as in Latent Diffusion: the first loss is the variance of the noise, 1."""
    task = make_task(replace(config_of(values), cached=8), CPU)
    batch = task.batch(Part(0, 64), CPU)
    unet = task.model.unet
    with torch.no_grad():
        prediction = unet(batch.latents, batch.timesteps, task.model.text_encoder(batch.ids)).sample
        assert torch.equal(prediction, unet.conv_out.bias.view(1, -1, 1, 1).expand_as(prediction))
        assert not prediction.any()
        assert float(task.model(batch)["loss"]) == pytest.approx(1, abs=0.05)


def test_plain_attention_computes_what_the_fused_one_does(values: dict[str, Any]) -> None:
    from diffusers.models.attention_processor import AttnProcessor

    task = randomised(make_task(config_of(values), CPU))
    assert {type(processor) for processor in task.model.unet.attn_processors.values()} == {AttnProcessor}
    batch = task.batch(Part(0, 2), CPU)
    unet = build_unet(task._config.unet)
    unet.load_state_dict(task.model.unet.state_dict())
    assert AttnProcessor not in {type(processor) for processor in unet.attn_processors.values()}
    encoder = TextEncoder(task.model.text_encoder.config, task.model.text_encoder.tokenizer_json)
    encoder.load_state_dict(task.model.text_encoder.state_dict())
    implementations = [part.text_model.config._attn_implementation for part in (task.model.text_encoder, encoder)]
    assert implementations == ["eager", "sdpa"]
    with torch.no_grad():
        context = encoder(batch.ids)
        torch.testing.assert_close(task.model.text_encoder(batch.ids), context, rtol=0, atol=1e-5)
        expected = unet(batch.latents, batch.timesteps, context).sample
        found = task.model.unet(batch.latents, batch.timesteps, context).sample
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_training_lowers_the_loss(values: dict[str, Any]) -> None:
    values["training"] |= {"images": 160, "batch_size": 8, "accumulation": 1, "learning_rate": 0.005}
    run, _ = make(replace(config_of(values), cached=4))
    losses = [run.step()["loss"] for _ in range(20)]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_the_whole_run_and_its_export(values: dict[str, Any], sprite_file: Path) -> None:
    """The export holds the EMA's weights, halved in precision; the pipeline draws with it."""
    run, task = make(config_of(values))
    fit(run)
    assert run.ema is not None
    written = {path.name for path in run.folder.iterdir()} - {"log.csv"}
    assert written == {"model.safetensors", "sheets", "states", "tensorboard"}
    assert sorted(path.name for path in (run.folder / "sheets").iterdir()) == ["0000000016.png", "0000000016.txt"]
    held_out = open_source(config_of(values).data, "held_out").captions(0, 8)
    assert (run.folder / "sheets" / "0000000016.txt").read_text(encoding="utf-8").splitlines() == held_out
    exported = load_checkpoint(run.folder / "model.safetensors")
    assert exported.unet is not None
    assert exported.text_encoder is not None
    assert exported.schedule == ScheduleConfig(latent_scale=0.5)
    assert exported.text_encoder.tokenizer_json == task.model.text_encoder.tokenizer_json
    card = {"images": 16, "resolution": 32, "seed": 0, "stage": "diffusion", "guidance_scale": 7.5}
    assert card.items() <= exported.card.items()
    assert exported.card["data"]["icons"]["cache"] == str(sprite_file)
    for part, found in (("unet", exported.unet), ("text_encoder", exported.text_encoder)):
        ema = getattr(run.ema, part).state_dict()
        for key, value in found.state_dict().items():
            assert torch.equal(value, ema[key].half().float() if ema[key].ndim > 1 else ema[key]), key
    live = task.model.unet.state_dict()
    assert not torch.equal(live["conv_out.weight"], run.ema.state_dict()["unet.conv_out.weight"])
    pipeline = Text2LayerPipeline.from_pretrained(run.folder / "model.safetensors")
    output = pipeline(["a ball", "a box on the beach"], steps=2)
    assert output.layers.stack().shape == (2, 7, 32, 32)
    assert output.predicted_composed is not None


def save_clip(folder: Path) -> Path:
    """A CLIP text model of 32 numbers with random weights, as transformers' folders are."""
    config = TextEncoderConfig(vocab_size=600, hidden_size=32, intermediate_size=32, num_layers=1, num_heads=2,
                               max_length=16)
    torch.manual_seed(3)
    encoder = TextEncoder(config, train_tokenizer(["a ball on the beach"] * 3, 600).to_str())
    model = Text2LayerModel(CaT2IAutoencoder(AutoencoderConfig(latent_channels=4, block_out_channels=(4,),
                            layers_per_block=1, norm_num_groups=1, head_channels=1)), None, encoder, ScheduleConfig())
    to_diffusers(model, folder)
    return folder


def test_clip_stays_frozen_and_out_of_the_checkpoint(values: dict[str, Any], tmp_path: Path) -> None:
    values["text"] = {"clip": str(save_clip(tmp_path / "clip"))}
    run, task = make(config_of(values))
    encoder = task.model.text_encoder
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    optimised = {id(p) for group in run.optimizers[0].param_groups for p in group["params"]}
    assert not any(parameter.requires_grad or id(parameter) in optimised for parameter in encoder.parameters())
    assert {id(parameter) for parameter in task.model.unet.parameters()} == optimised
    unet = {key: value.clone() for key, value in task.model.unet.state_dict().items()}
    fit(run)
    assert equal(before, encoder.state_dict())
    assert not equal(unet, task.model.unet.state_dict())
    path = run.folder / "model.safetensors"
    with safe_open(path, "pt") as file:
        assert {key.partition(".")[0] for key in file.keys()} == {"autoencoder", "unet"}  # noqa: SIM118
    assert load_checkpoint(path).external_text_encoder == CLIP_L
    drawn = Text2LayerPipeline.from_pretrained(path, text_encoder=tmp_path / "clip")("a ball", steps=1)
    assert drawn.layers.stack().shape == (1, 7, 32, 32)
    resumed, _ = make(config_of(values))
    resume(resumed, "auto")
    assert equal(state_of(resumed), state_of(run))


def write(values: dict[str, Any], path: Path) -> list[str]:
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return ["--config", str(path)]


def run_main(arguments: list[str]) -> int:
    AcceleratorState._reset_state(True)
    return main(arguments)


def test_init_from_takes_weights_tokenizer_and_scale_and_counts_on(values: dict[str, Any], tmp_path: Path) -> None:
    run, _ = make(config_of(values))
    fit(run)
    path = run.folder / "model.safetensors"
    exported = load_checkpoint(path)
    # Elsewhere the captions differ and with them the tokenizer; one more step of four samples.
    values |= {"run": str(tmp_path / "new"), "latent_scale": 0.0, "cached": 4}
    values["data"]["icons"]["things"] = ["box", "cone", "egg", "unicorn"]
    values["training"] |= {"images": 20, "seed": 7}
    fresh, task = make(config_of(values))
    assert exported.text_encoder is not None
    assert exported.unet is not None
    assert task.model.text_encoder.tokenizer_json != exported.text_encoder.tokenizer_json
    fresh.start_from(task.load_weights(path))
    assert fresh.images == fresh.start == 16
    assert equal(task.model.unet.state_dict(), exported.unet.state_dict())
    assert equal(task.model.text_encoder.state_dict(), exported.text_encoder.state_dict())
    prompts = ["a red ball", ""]
    assert torch.equal(task.model.text_encoder.tokenize(prompts), exported.text_encoder.tokenize(prompts))
    assert float(task.model.latent_scale) == 0.5
    assert fresh.ema is not None
    assert equal(task.model.state_dict(), fresh.ema.state_dict())
    arguments = write(values, tmp_path / "a.yaml")
    assert run_main([*arguments, "--init-from", str(path)]) == 0
    again = load_checkpoint(tmp_path / "new" / "model.safetensors")
    assert again.card["images"] == 20
    assert again.schedule.latent_scale == 0.5
    assert again.text_encoder is not None
    assert again.text_encoder.tokenizer_json == exported.text_encoder.tokenizer_json
    # The same command again goes on with the run and its tokenizer.
    assert run_main([*arguments, "--init-from", str(path), "--set", "training.images=24"]) == 0
    state = torch.load(tmp_path / "new" / "states" / "0000000024.pt", weights_only=True)
    assert (state["images"], state["start"]) == (24, 16)
    assert state["modules"]["diffusion"]["_extra_state"] == exported.text_encoder.tokenizer_json


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("unet.block_out_channels=[32, 64]", "--init-from must hold the configured UNet, got "),
        ("text.encoder.num_layers=2", "--init-from must hold the configured text encoder, got "),
        ("schedule.prediction_type=v_prediction", "--init-from must be trained with the configured schedule, got "),
    ],
)
def test_init_from_must_fit(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    run, _ = make(config_of(values))
    run.save()
    model = str(run.folder / "model.safetensors")
    elsewhere = ["--set", f"run={tmp_path / 'new'}", "--set", override, "--init-from", model]
    assert run_main([*write({**values, "schedule": {}}, tmp_path / "a.yaml"), *elsewhere]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_dry_run_reports_and_writes_nothing(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = write({**values, "cached": 64}, tmp_path / "a.yaml")
    before = sorted(tmp_path.rglob("*"))
    assert run_main([*arguments, "--dry-run"]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    first, memory, second = capsys.readouterr().out.splitlines()
    assert memory.startswith("memory estimate ")
    count = sum(p.numel() for p in make_task(config_of(values), CPU).model.parameters())
    assert first == f"diffusion: {count / 1e6:.2f} M parameters"
    assert second.endswith(" images/s on cpu")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("caption_dropout=1.5", "a.yaml: caption_dropout must be in [0, 1], got 1.5"),
        ("latent_scale=-1", "a.yaml: latent_scale must not be negative, got -1.0"),
        ("min_snr_gamma=-5", "a.yaml: min_snr_gamma must not be negative, got -5.0"),
        ("foreground_weight=-1", "a.yaml: foreground_weight must not be negative, got -1.0"),
        ("cached=-1", "a.yaml: cached must not be negative, got -1"),
        ("guidance_scale=.nan", "a.yaml: guidance_scale must not be negative, got nan"),
        ("schedule.latent_scale=1.0", "a.yaml: latent_scale must not stand under schedule, got 1.0 there"),
        ("text.clip=there", "a.yaml: text: text must have one of encoder, pretrained and clip"),
        ("unet.in_channels=8", "unet: in_channels must be the autoencoder's latent channels 4, got 8"),
        ("unet.cross_attention_dim=64", "unet: cross_attention_dim must be the text encoder's hidden_size 32, got 64"),
        ("data.size=36", "data: size must be a multiple of the stride 8, got 36"),
        ("autoencoder=/nowhere.safetensors", "no such model: /nowhere.safetensors"),
        ("guidance=4", "a.yaml has an unknown key guidance (nearest: guidance_scale)"),
    ],
)
def test_bad_configs_are_one_line(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    assert run_main([*write({**values, "schedule": {}}, tmp_path / "a.yaml"), "--set", override]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not (tmp_path / "run").exists()
