"""What only a CUDA device can show: the same pictures as on the CPU, training steps under autocast, peak memory."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

from text2layer_core.autoencoder import AUTOENCODER_PRESETS, AutoencoderConfig, CaT2IAutoencoder
from text2layer_core.checkpoint import CheckpointError, Text2LayerModel, bundled_model_path, save_checkpoint
from text2layer_core.metrics import psnr
from text2layer_core.pipeline import PipelineOutput, Text2LayerPipeline
from text2layer_core.schedule import ScheduleConfig
from text2layer_core.text_encoder import TextEncoder, TextEncoderConfig, train_tokenizer
from text2layer_core.unet import UNET_PRESETS, UNetConfig, build_unet

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from train.engine import Run, Task, TrainingConfig

DEVICE = "cuda"
CAPTIONS = ["a red fox on a beach", "a glass teapot on a wooden floor", "a small owl at night", "a red fox on snow"]
TINY_AUTOENCODER = AutoencoderConfig(
    latent_channels=4, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8, patch_size=2,
    head_channels=32,
)
TINY_UNET = UNetConfig(
    in_channels=4, block_out_channels=(32, 64), layers_per_block=1, attention_levels=(False, True), num_heads=2,
    cross_attention_dim=32,
)
TINY_TEXT = TextEncoderConfig(
    vocab_size=560, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2, max_length=16
)
CLIP_L_TEXT = TextEncoderConfig(
    vocab_size=49_408, hidden_size=768, intermediate_size=3072, num_layers=12, num_heads=12, max_length=77
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, torch finds none here"),
]


# The same pictures on both devices


@pytest.fixture(scope="module")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, the heads' last layer so large that the pictures use their whole range."""
    torch.manual_seed(0)
    autoencoder = CaT2IAutoencoder(TINY_AUTOENCODER)
    with torch.no_grad():
        autoencoder(torch.rand(4, 7, 64, 64))  # one training pass gives BatchNorm statistics that are not 0 and 1
        for head in autoencoder.heads.values():
            head.conv2.weight.mul_(4)
    tokenizer = train_tokenizer(CAPTIONS, TINY_TEXT.vocab_size).to_str()
    model = Text2LayerModel(
        autoencoder, build_unet(TINY_UNET), TextEncoder(TINY_TEXT, tokenizer), ScheduleConfig(), {"resolution": 64}
    )
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_checkpoint(path, model, dtype=torch.float32)
    return path


@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 40.0), (torch.bfloat16, 30.0)], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["tiny", "bundled"])
def test_pictures_are_those_of_the_cpu(
    kind: str, dtype: torch.dtype, least: float, request: pytest.FixtureRequest
) -> None:
    """The bounds are the project's; the CPU's float32 is the reference, TF32 is as torch sets it."""
    if kind == "tiny":
        path: Path = request.getfixturevalue("tiny_checkpoint")
    else:
        try:
            path = bundled_model_path()
        except CheckpointError as error:
            pytest.skip(str(error))
    expected = _pictures(Text2LayerPipeline.from_pretrained(path))
    found = _pictures(Text2LayerPipeline.from_pretrained(path, device=DEVICE, dtype=dtype))
    assert expected.std() > 0.1  # not a grey that agrees with everything
    assert psnr(found, expected).min() >= least


def _pictures(pipeline: Text2LayerPipeline) -> torch.Tensor:
    """Foreground, background, mask and composed picture of two prompts as (8, 3, H, W), 50 steps of DDIM."""
    guidance_scale = pipeline.model.card.get("guidance_scale", 7.5)
    output: PipelineOutput = pipeline(CAPTIONS[:2], seed=3, steps=50, guidance_scale=guidance_scale)
    layers = output.layers
    pictures = (layers.foreground, layers.background, layers.mask.expand(-1, 3, -1, -1), output.composed)
    return torch.cat(pictures).cpu()


# One training step of each trainer


@pytest.fixture
def accelerator() -> Iterator[Any]:
    """bf16 autocast; accelerate keeps its state per process, so it is reset before and after, as its own tests do."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(mixed_precision="bf16", cpu=DEVICE == "cpu")
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def icons(tmp_path: Path) -> Path:
    """A sprite cache of eight discs in different colours."""
    from train.icons.sprites import SpriteCache, save_sprites
    from train.icons.vocabulary import Thing

    axis = torch.linspace(-1, 1, 48)
    alpha = ((0.9 - torch.hypot(axis[:, None], axis[None])) * 24).clamp(0, 1)
    colours = torch.rand(8, 1, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    sprites = torch.cat([colours * alpha, alpha.expand(8, 1, 1, 48, 48)], dim=2)
    things = tuple(Thing(f"disc-{k}", f"disc {k}", ()) for k in range(8))
    path = tmp_path / "icons.safetensors"
    save_sprites(path, SpriteCache(things, ("fluent",), {48: (sprites * 255).round().byte()}))
    return path


def _training() -> TrainingConfig:
    from train.engine import TrainingConfig

    return TrainingConfig(images=64, batch_size=4, learning_rate=1e-3, ema_half_life=16, precision="bf16", seed=1)


def _data(icons: Path) -> Any:
    from train.data import DataConfig
    from train.icons.source import IconsConfig

    return DataConfig(source="icons", size=64, seed=1, icons=IconsConfig(cache=str(icons)))


def _step(task: Task, training: TrainingConfig, accelerator: Any, folder: Path) -> tuple[Run, dict[str, float]]:
    """One step on the device: the weights stay float32, finite, and move."""
    from train.engine import Run

    modules = [objective.module for objective in task.objectives]
    before = copy.deepcopy([list(module.parameters()) for module in modules])
    run = Run(folder, training, accelerator, task)
    losses = run.step()
    for old, module in zip(before, modules, strict=True):
        weights = list(module.parameters())
        assert {(weight.device.type, weight.dtype) for weight in weights} == {(DEVICE, torch.float32)}
        assert all(weight.isfinite().all() for weight in weights)
        assert any(not torch.equal(was, now.cpu()) for was, now in zip(old, weights, strict=True))
    assert all(math.isfinite(value) for value in losses.values())
    return run, losses


def test_autoencoder_trains_under_autocast(accelerator: Any, icons: Path, tmp_path: Path) -> None:
    """The reference losses are those of the same batch and weights in float32 on the CPU."""
    from train.engine import Part
    from train.train_autoencoder import AutoencoderTrainingConfig, LossConfig, make_task

    torch.manual_seed(1)
    config = AutoencoderTrainingConfig(
        run=str(tmp_path), data=_data(icons), autoencoder=TINY_AUTOENCODER, training=_training(),
        losses=LossConfig(perceptual="gradient"),
    )
    task = make_task(config, accelerator.device)
    reference, _ = copy.deepcopy([objective.module for objective in task.objectives])
    expected = reference(task.batch(Part(0, 4), torch.device("cpu")))
    _, losses = _step(task, config.training, accelerator, tmp_path)
    for term in ("foreground", "background", "composed", "mask", "perceptual"):
        assert losses[term] == pytest.approx(expected[term].item(), rel=0.01)
    assert "discriminator.loss" in losses


def test_diffusion_trains_under_autocast(accelerator: Any, icons: Path, tmp_path: Path) -> None:
    """The reference loss is that of the same batch and weights in float32 on the CPU."""
    from train.engine import Part
    from train.train_diffusion import DiffusionTrainingConfig, TextConfig, make_task

    torch.manual_seed(1)
    autoencoder = tmp_path / "autoencoder.safetensors"
    save_checkpoint(autoencoder, Text2LayerModel(CaT2IAutoencoder(TINY_AUTOENCODER), None, None, ScheduleConfig()))
    config = DiffusionTrainingConfig(
        run=str(tmp_path), autoencoder=str(autoencoder), data=_data(icons), unet=TINY_UNET,
        text=TextConfig(encoder=TINY_TEXT), training=_training(), latent_scale=1.0, cached=8,
    )
    task = make_task(config, accelerator.device)
    with torch.no_grad():
        task.model.unet.conv_out.weight.normal_(std=0.1)  # it starts at 0, and 0 agrees with everything
    expected = copy.deepcopy(task.model).cpu()(task.batch(Part(0, 4), torch.device("cpu")))
    run, losses = _step(task, config.training, accelerator, tmp_path)
    assert losses["loss"] == pytest.approx(expected["loss"].item(), rel=0.01)
    assert run.ema is not None
    assert next(run.ema.parameters()).device.type == DEVICE


# Memory at the paper's size


@pytest.mark.parametrize(
    ("dtype", "most_gib"), [(torch.float32, 10.0), (torch.bfloat16, 6.0)], ids=["fp32", "bf16"]
)
def test_peak_memory_at_preset_sd(dtype: torch.dtype, most_gib: float, record_property: Any) -> None:
    """One picture of 512 px with guidance, all parts on the device: within a card of 12 GB in fp32, of 8 GB in bf16."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    tokenizer = train_tokenizer(CAPTIONS, TINY_TEXT.vocab_size).to_str()
    with torch.device(DEVICE):
        autoencoder = CaT2IAutoencoder(AUTOENCODER_PRESETS["sd"]).to(dtype)
        unet = build_unet(UNET_PRESETS["sd"]).to(dtype)
    text_encoder = TextEncoder(CLIP_L_TEXT, tokenizer).to(dtype)
    pipeline = Text2LayerPipeline(Text2LayerModel(autoencoder, unet, text_encoder, ScheduleConfig()), DEVICE)
    weights = torch.cuda.memory_allocated() - before
    torch.cuda.reset_peak_memory_stats()
    output = pipeline("a red fox on a beach", width=512, height=512, steps=2)
    peak = torch.cuda.max_memory_allocated() - before
    record_property("weights_gib", weights / 2**30)
    record_property("peak_gib", peak / 2**30)
    print(f"{dtype}: weights {weights / 2**30:.2f} GiB, peak {peak / 2**30:.2f} GiB")
    assert output.layers.foreground.shape == (1, 3, 512, 512)
    assert peak / 2**30 <= most_gib


def test_preset_sd_fits_the_goals_of_its_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    """512 px in half precision: below 4 GB with offload, below 8 GB without."""
    from benchmarks.speed_cuda import measure_cuda

    assert measure_cuda(1, sizes=(512,))
    assert "512 px, with offload" in capsys.readouterr().out
