"""Latents kept near a flat model's, and the command that measures what that is worth, at a tiny size."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator

from tests.train.sd_models import save_folder
from tests.train.test_tables import command  # noqa: F401 - a fixture
from tests.train.test_train_autoencoder import config_of, values  # noqa: F401 - a fixture
from text2layer_core.autoencoder import AutoencoderConfig, CaT2IAutoencoder
from text2layer_core.compositing import blend
from train import compare_alignment, tables
from train.alignment import AlignLatents, LatentReference, open_reference, save_image_autoencoder, start_as_flat
from train.baselines import ImageAutoencoder
from train.compare_alignment import images_to_reach, main
from train.data import open_source
from train.engine import Part, Run
from train.train_autoencoder import AutoencoderTrainingConfig, make_task

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def few_reconstructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough for a figure here."""
    monkeypatch.setattr(tables, "_RECONSTRUCTIONS", 16)


@pytest.fixture
def flat() -> ImageAutoencoder:
    """Random weights, none of them zero."""
    torch.manual_seed(3)
    autoencoder = ImageAutoencoder(AutoencoderConfig(latent_channels=4, block_out_channels=(8, 16), layers_per_block=1,
                                                     norm_num_groups=4, patch_size=2, head_channels=8))
    with torch.no_grad():
        for parameter in autoencoder.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return autoencoder.eval()


@torch.no_grad()
def test_the_term_by_hand(values: dict[str, Any], flat: ImageAutoencoder, tmp_path: Path) -> None:  # noqa: F811
    """Weight times the squared distance in variances of the flat latents; the loss has it on top."""
    save_image_autoencoder(tmp_path / "flat.safetensors", flat)
    config = config_of(values)
    section = AlignLatents(weight=0.5, autoencoder=str(tmp_path / "flat.safetensors"))
    torch.manual_seed(0)
    plain = make_task(config, CPU)
    torch.manual_seed(0)
    task = make_task(replace(config, align_latents=section), CPU)
    batch = task.batch(Part(0, 3), CPU)
    found = task.objectives[0].module(batch)
    expected = plain.objectives[0].module(batch)
    composed = blend(*batch.stack.split([3, 3, 1], dim=1))
    first = open_source(config.data).batch(0, 64).stack
    deviation = flat.encode_pictures(blend(*first.split([3, 3, 1], dim=1))).mean.std()
    errors = plain.autoencoder.encode_stack(batch.stack).mean - flat.encode_pictures(composed).mean
    term = 0.5 * (errors / deviation).square().mean()
    assert float(found["alignment"]) == pytest.approx(float(term), rel=1e-3)
    assert float(found["loss"] - expected["loss"]) == pytest.approx(float(term), rel=1e-2)
    assert not any(p.requires_grad for p in task.objectives[0].module._reference.autoencoder.parameters())


def test_training_brings_the_latents_near(
    values: dict[str, Any], flat: ImageAutoencoder, tmp_path: Path  # noqa: F811
) -> None:
    save_image_autoencoder(tmp_path / "flat.safetensors", flat)
    values["training"] |= {"images": 160, "learning_rate": 0.01, "accumulation": 1}
    section = AlignLatents(weight=1.0, autoencoder=str(tmp_path / "flat.safetensors"))
    config: AutoencoderTrainingConfig = replace(config_of(values), align_latents=section, cached=8)
    run = Run(tmp_path / "run", config.training, Accelerator(cpu=True), make_task(config, CPU))
    found = [run.step()["alignment"] for _ in range(40)]
    assert found[-1] < 0.6 * found[0]


@torch.no_grad()
@pytest.mark.parametrize("background_decoder", [False, True])
def test_it_starts_as_the_flat_one(flat: ImageAutoencoder, background_decoder: bool) -> None:
    """F = B: latents and pictures are the flat autoencoder's, by the patch stem too."""
    autoencoder = CaT2IAutoencoder(replace(flat.config, background_decoder=background_decoder)).eval()
    start_as_flat(autoencoder, flat, 0.3)
    picture, mask = torch.rand(2, 3, 16, 16), torch.rand(2, 1, 16, 16)
    found = autoencoder.encode_stack(torch.cat([picture, picture, mask], dim=1))
    expected = flat.encode_pictures(picture)
    torch.testing.assert_close(found.mean, expected.mean, atol=1e-5, rtol=1e-4)
    outputs = autoencoder.decode_heads(found.mean)
    for name in ("foreground", "background", "composed"):
        torch.testing.assert_close(outputs[name], flat.decode_pictures(expected.mean), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_stable_diffusion_as_reference(values: dict[str, Any], tmp_path: Path) -> None:  # noqa: F811
    """The latents that diffusers itself gives of the composed picture, and SD's known scale."""
    vae, _ = save_folder(tmp_path / "sd")
    config = AutoencoderConfig(latent_channels=4, block_out_channels=(32, 64))
    source = open_source(config_of(values).data)
    section = AlignLatents(weight=1.0, autoencoder=str(tmp_path / "sd"))
    reference = open_reference(section, config, source, CPU)
    assert reference.latent_scale == 0.18215
    stack = torch.rand(2, 7, 16, 16)
    expected = vae.encode(blend(*stack.split([3, 3, 1], dim=1)) * 2 - 1).latent_dist.mean
    torch.testing.assert_close(reference.latents(stack), expected, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match=r"must have latent channels and stride \(8, 2\), got \(4, 2\)"):
        open_reference(section, replace(config, latent_channels=8), source, CPU)
    with pytest.raises(ValueError, match=r"must be a diffusers folder or a .safetensors file, found neither at "):
        open_reference(replace(section, autoencoder="/nowhere"), config, source, CPU)
    assert LatentReference(reference.autoencoder, 2.0, 3.0).loss(stack, expected) < 1e-6


@pytest.mark.slow
def test_the_comparison(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    """Three systems and all their counts; stopped in between it goes on; a third call trains nothing."""
    path = tmp_path / "tables.yaml"
    loaded = yaml.safe_load(path.read_text())
    loaded |= {"seeds": [1], "weight": 1.0, "aligned_images": 16, "judged_at": [0, 16, 32]}
    path.write_text(yaml.safe_dump(loaded))
    counts: list[tuple[str, int]] = []
    fit = compare_alignment.fit

    def noted(run: Any, until: int) -> None:
        counts.append((run.folder.name, until))
        if len(counts) == 2:
            raise FloatingPointError("stopped here")
        fit(run, until=until)

    monkeypatch.setattr(compare_alignment, "fit", noted)
    assert main(command) == 1
    assert main(command) == 0
    assert counts == [("scratch", 16), ("scratch", 32), ("scratch", 32), ("unaligned", 16), ("unaligned", 32),
                      ("aligned", 16), ("aligned", 32)]
    page = (tmp_path / "tables.md").read_text()
    for title in compare_alignment.TITLES.values():
        assert page.count(f"| {title} | 1 |") >= 3
    assert main(command) == 0
    assert len(counts) == 7
    assert (tmp_path / "tables.md").read_text() == page


def test_a_wrong_count(command: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:  # noqa: F811
    path = tmp_path / "tables.yaml"
    path.write_text(path.read_text() + "weight: 1.0\naligned_images: 16\njudged_at: [0, 12]\n")
    assert main(command) == 2
    assert capsys.readouterr().err == (
        "error: tables.yaml: judged_at must be rising multiples of the batch of 8, got [0, 12]\n")


def test_the_folder_of_the_page_is_made_before_training(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]  # noqa: F811
) -> None:
    """Stopped as soon as training begins."""
    path = tmp_path / "tables.yaml"
    path.write_text(path.read_text() + "weight: 1.0\naligned_images: 16\njudged_at: [0, 16]\n")
    monkeypatch.setattr(compare_alignment.AlignmentShop, "autoencoders", lambda _: signal.raise_signal(signal.SIGINT))
    assert main([*command, "--out", str(tmp_path / "new" / "page.md")]) == 130
    assert capsys.readouterr().err == "stopped; the same command goes on from there\n"
    assert (tmp_path / "new").is_dir()


@pytest.mark.parametrize(("values_at", "sign", "goal", "expected"), [
    ({0: 5.0, 100: 3.0, 200: 1.0}, -1, 2.0, 150.0), ({0: 1.0, 100: 0.5}, -1, 2.0, 0),
    ({0: 5.0, 100: 3.0}, -1, 2.0, None), ({100: 0.2, 200: 0.6}, 1, 0.3, 125.0),
])
def test_images_to_reach_by_hand(values_at: dict[int, float], sign: int, goal: float, expected: float | None) -> None:
    found = {count: {"figure": {"value": value}} for count, value in values_at.items()}
    reached = images_to_reach(found, "figure", goal, sign)
    assert reached is None if expected is None else reached == pytest.approx(expected)
