"""Every config in train/configs against its trainer's schema, and the paper's numbers against the paper's."""

from __future__ import annotations

import re
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
import yaml

from text2layer_core.autoencoder import AUTOENCODER_PRESETS, CaT2IAutoencoder
from text2layer_core.quality import QualityConfig
from text2layer_core.unet import UNET_PRESETS, build_unet
from train.compare_alignment import AlignmentConfig
from train.config import load_config
from train.shards import matching
from train.synthesis.config import SynthesisConfig
from train.tables import TablesConfig
from train.train_autoencoder import AutoencoderTrainingConfig
from train.train_diffusion import DiffusionTrainingConfig
from train.train_evaluator import EvaluatorTrainingConfig
from train.train_quality import QualityTrainingConfig
from train.train_text_encoder import TextTrainingConfig

FOLDER = Path(__file__).parents[2] / "train" / "configs"
OTHERS = ("tables.yaml", "alignment.yaml", "synthesize.yaml")
NAMES = sorted(path.name for path in FOLDER.glob("*.yaml") if path.name not in OTHERS)
SD_AUTOENCODER = 83_653_863  # parameters of Stable Diffusion v1's autoencoder
SD_UNET = 859_520_964
PAIRS = [("mini_autoencoder", "mini_diffusion"), ("debug_cpu_autoencoder", "debug_cpu_diffusion"),
         ("cat2i_ae_256", "cat2i_sd_256"), ("cat2i_ae_256", "cat2i_sd_512")]


def autoencoder_config(name: str) -> AutoencoderTrainingConfig:
    return load_config(FOLDER / f"{name}.yaml", [], AutoencoderTrainingConfig)


def diffusion_config(name: str) -> DiffusionTrainingConfig:
    return load_config(FOLDER / f"{name}.yaml", [], DiffusionTrainingConfig)


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_all_are_there() -> None:
    assert {f"{name}.yaml" for pair in PAIRS for name in pair} <= set(NAMES)


def test_the_readme_names_every_config() -> None:
    table = (FOLDER.parents[1] / "README.md").read_text(encoding="utf-8").partition("| config | what |")[2]
    cells = re.findall(r"^\| (.+?) \|", table.partition("\n\n")[0], flags=re.MULTILINE)
    named = [name for cell in cells for name in re.findall(r"`([\w/*]+)`", cell)]
    files = [path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml")]
    assert [file for file in files if not any(fnmatch(file, name) for name in named)] == []
    assert [name for name in named if not any(fnmatch(file, name) for file in files)] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_config_fits_its_schema_and_builds(name: str) -> None:
    path = FOLDER / name
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    schemas = {"unet": DiffusionTrainingConfig, "encoder": TextTrainingConfig, "losses": AutoencoderTrainingConfig,
               "evaluator": EvaluatorTrainingConfig, "kind": QualityTrainingConfig}
    config = load_config(path, [], next(schema for key, schema in schemas.items() if key in values))
    assert Path(config.run).expanduser().is_absolute()
    assert FOLDER.parents[1] not in Path(config.run).expanduser().parents, "a run is outside the checkout"
    assert config.training.images % config.training.batch_size == 0
    assert config.training.images > config.training.warmup_images
    with torch.device("meta"):
        if isinstance(config, DiffusionTrainingConfig):
            assert parameters(build_unet(config.unet)) > 0
        elif isinstance(config, AutoencoderTrainingConfig):
            assert parameters(CaT2IAutoencoder(config.autoencoder)) > 0
            assert config.data.size % config.autoencoder.downscale == 0


@pytest.mark.parametrize(("autoencoder", "diffusion"), PAIRS)
def test_a_unet_fits_its_autoencoder(autoencoder: str, diffusion: str) -> None:
    first, second = autoencoder_config(autoencoder), diffusion_config(diffusion)
    assert second.unet.in_channels == first.autoencoder.latent_channels
    assert second.data.size % (first.autoencoder.downscale * 2 ** (len(second.unet.block_out_channels) - 1)) == 0
    if first.data.icons is not None:
        assert second.data == first.data
    if second.text.pretrained is not None:
        text = load_config(FOLDER / autoencoder.replace("autoencoder", "text_encoder.yaml"), [], TextTrainingConfig)
        assert second.text.pretrained == f"{text.run}/model.safetensors"
        assert (text.autoencoder, text.data) == (second.autoencoder, second.data)
        assert text.encoder.hidden_size == second.unet.cross_attention_dim
    elif second.text.encoder is not None:
        assert second.text.encoder.hidden_size == second.unet.cross_attention_dim
    else:
        assert second.unet.cross_attention_dim == 768  # CLIP ViT-L/14's width


def test_the_evaluator_sees_what_the_bundled_model_draws() -> None:
    """The same things at the same places, but placed freely."""
    judge = load_config(FOLDER / "mini_evaluator.yaml", [], EvaluatorTrainingConfig).data.icons
    drawn = autoencoder_config("mini_autoencoder").data.icons
    assert judge is not None
    assert replace(judge, rotation=0.0, snap=24) == drawn


def test_the_papers_autoencoder() -> None:
    """SD's, its input 7 channels instead of 3, its last layer replaced by four heads conv-bn-relu-conv."""
    config = autoencoder_config("cat2i_ae_256")
    assert config.autoencoder == AUTOENCODER_PRESETS["sd"]
    stem = 4 * 128 * 9
    last = 128 * 3 * 9 + 3
    first_of_head = 128 * 64 * 9 + 64 + 2 * 64
    heads = 4 * first_of_head + 3 * (64 * 3 * 9 + 3) + (64 * 9 + 1)
    with torch.device("meta"):
        assert parameters(CaT2IAutoencoder(config.autoencoder)) == SD_AUTOENCODER + stem - last + heads
    assert config.data.size == 256
    assert config.training.images // config.training.batch_size == 250_000
    assert (config.losses.mask, config.losses.perceptual, config.losses.foreground_by_area) == (1.0, "lpips", False)


@pytest.mark.parametrize(("name", "size", "steps"), [("cat2i_sd_256", 256, 75_000), ("cat2i_sd_512", 512, 150_000)])
def test_the_papers_unet(name: str, size: int, steps: int) -> None:
    """75,000 steps at 256 px, and 75,000 more at 512 px: images are counted on."""
    config = diffusion_config(name)
    assert config.unet == UNET_PRESETS["sd"]
    with torch.device("meta"):
        assert parameters(build_unet(config.unet)) == SD_UNET
    assert config.data.size == size
    assert config.training.images // config.training.batch_size == steps
    assert config.schedule.prediction_type == "epsilon"
    assert (config.min_snr_gamma, config.guidance_scale, config.caption_dropout) == (0.0, 7.5, 0.1)
    assert config.text.clip is not None
    assert config.autoencoder == f"{autoencoder_config('cat2i_ae_256').run}/model.safetensors"


def test_the_512_model_goes_on_with_the_256_one() -> None:
    first, second = diffusion_config("cat2i_sd_256"), diffusion_config("cat2i_sd_512")
    assert (first.unet, first.text, first.schedule) == (second.unet, second.text, second.schedule)
    assert first.training.batch_size == second.training.batch_size
    assert f"--init-from {first.run}/model.safetensors" in (FOLDER / "cat2i_sd_512.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("cat2i_", "walk_"))])
def test_every_shard_of_a_synthesis_is_trained_on_or_held_out(name: str, tmp_path: Path) -> None:
    """Of 25, numbered as tests/train/test_synthesis_output.py has them: by hand 0, 10 and 20 are held out.

    The trial of docs/training.md makes four (104 pictures, 26 a shard): its last is held out.
    """
    count, held_out = (4, [3]) if name.startswith("walk_") else (25, [0, 10, 20])
    values = yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))["data"]["shards"]
    names = [f"shard-{number:06d}.tar" for number in range(count)]
    for file in (*names, "manifest.json", "report.html"):
        (tmp_path / file).touch()
    found = {split: [path.name for path in matching(str(tmp_path / Path(values[split]).name))]
             for split in ("files", "held_out")}
    assert found["held_out"] == [names[number] for number in held_out]
    assert found["files"] == [name for name in names if name not in found["held_out"]]


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("cat2i_", "walk_"))])
def test_what_is_held_out_has_figures(name: str) -> None:
    """Also at the end, and always due after a whole step."""
    schema = AutoencoderTrainingConfig if "_ae_" in name or "autoencoder" in name else DiffusionTrainingConfig
    training = load_config(FOLDER / name, [], schema).training
    assert training.validation_images > 0
    assert training.images % training.validation_images == 0
    assert training.validation_images % training.batch_size == 0


def test_the_synthesis_config_is_the_papers_and_needs_no_weights() -> None:
    """512 pixels, copied colours, plain dilation; every key of the file is one that the schema has."""
    config = load_config(FOLDER / "synthesize.yaml", [], SynthesisConfig)
    assert (config.picture.size, config.layers.foreground) == (512, "copied")
    assert (config.layers.jpeg_rim, config.layers.shadow_reach) == (False, 0.0)
    assert (config.saliency.path, config.inpainting.path) == (None, None)


def test_the_tables_config() -> None:
    """Whole steps, latents that the UNet can halve, and no loss of ours in the paper's systems."""
    config = load_config(FOLDER / "tables.yaml", [], TablesConfig)
    for training in (config.autoencoder_training, config.diffusion_training):
        assert training.images % training.batch_size == 0
    assert config.data.size % (config.autoencoder.downscale * 2 ** (len(config.unet.block_out_channels) - 1)) == 0
    assert len(set(config.seeds)) >= 2
    paper = config.losses
    assert not (paper.foreground_by_area or paper.composition or paper.consistency)


def test_the_alignment_config() -> None:
    """The tables' recipe: its runs of the flat and the balanced system can be taken over."""
    config = load_config(FOLDER / "alignment.yaml", [], AlignmentConfig)
    tables = load_config(FOLDER / "tables.yaml", [], TablesConfig)
    for key in ("data", "cached", "autoencoder", "losses", "balanced", "autoencoder_training", "unet",
                "diffusion_training", "schedule", "foreground_weight", "text"):
        assert getattr(config, key) == getattr(tables, key), key
    assert config.aligned_images % config.autoencoder_training.batch_size == 0


@pytest.mark.parametrize("kind", ["mask", "inpainting"])
def test_the_papers_quality_filters(kind: str) -> None:
    """EfficientNet-b0, its last layer alone trained for 100 epochs of 5,000 samples, 1,000 held out."""
    config = load_config(FOLDER / f"quality_{kind}.yaml", [], QualityTrainingConfig)
    assert (config.kind, config.network, config.trained) == (kind, QualityConfig(), "last")
    assert (config.cached, config.held_out, config.training.images) == (5000, 1000, 100 * 5000)
    assert config.pretrained is not None
    assert config.files is not None


@pytest.mark.parametrize("kind", ["mask", "inpainting"])
def test_the_tables_filters_see_scenes_like_the_tables(kind: str) -> None:
    """The same scenes of another seed, so that no picture of the tables is judged by what has seen it."""
    config = load_config(FOLDER / f"tables_quality_{kind}.yaml", [], QualityTrainingConfig)
    tables = load_config(FOLDER / "tables.yaml", [], TablesConfig)
    assert config.truth is not None
    assert replace(config.truth.data, seed=tables.data.seed) == tables.data
    assert not {config.truth.data.seed, config.truth.data.seed + 1} & {tables.data.seed, tables.data.seed + 1}
