"""Two CPU processes (gloo) against one with twice the batch, and states that go from one number to the other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.state import AcceleratorState

from tests.train.test_train_diffusion import save_autoencoder
from train.config import load_config
from train.engine import Run, resume
from train.launch import prepare
from train.train_autoencoder import AutoencoderTrainingConfig
from train.train_autoencoder import make_task as make_autoencoder_task
from train.train_diffusion import DiffusionTrainingConfig
from train.train_diffusion import make_task as make_diffusion_task

CONFIGS = Path(__file__).parents[2] / "train" / "configs" / "accelerate"
TRAINERS: dict[str, tuple[type[Any], Any]] = {
    "autoencoder": (AutoencoderTrainingConfig, make_autoencoder_task),
    "diffusion": (DiffusionTrainingConfig, make_diffusion_task),
}
STEPS, STOP = 4, 2


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_accelerate_reads_its_configs(name: str) -> None:
    """With its own class, which refuses unknown keys."""
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert config.num_processes == 8
    assert config.mixed_precision == "bf16"
    assert config.distributed_type == {"ddp": "MULTI_GPU", "fsdp": "FSDP"}[name]


@pytest.fixture
def configs(tmp_path: Path, sprite_file: Path) -> dict[str, Path]:
    """Both trainers at 32 px, four samples a step, no BatchNorm in training mode."""
    training = {"images": 4 * STEPS, "batch_size": 4, "learning_rate": 0.002, "ema_half_life": 8, "warmup_images": 8,
                "validation_images": 8, "validation_samples": 6}
    data = {"source": "icons", "size": 32, "icons": {"cache": str(sprite_file)}}
    values: dict[str, dict[str, Any]] = {
        "autoencoder": {
            "autoencoder": {"latent_channels": 4, "block_out_channels": [8, 16], "layers_per_block": 1,
                            "norm_num_groups": 4, "patch_size": 2, "head_channels": 8},
            "losses": {"perceptual": "gradient", "adversarial": 0.0}, "frozen_batch_norm": True,
        },
        "diffusion": {
            "autoencoder": str(save_autoencoder(tmp_path / "autoencoder.safetensors")), "latent_scale": 0.5,
            "unet": {"in_channels": 4, "block_out_channels": [32, 32], "layers_per_block": 1,
                     "attention_levels": [False, True], "num_heads": 2, "cross_attention_dim": 32},
            "text": {"encoder": {"vocab_size": 600, "hidden_size": 32, "intermediate_size": 32, "num_layers": 1,
                                 "num_heads": 2, "max_length": 16}},
        },
    }
    paths: dict[str, Path] = {}
    for name, value in values.items():
        paths[name] = tmp_path / f"{name}.yaml"
        paths[name].write_text(yaml.safe_dump(value | {"training": training, "data": data, "run": "-"}))
    return paths


def open_run(name: str, config: Path, folder: Path, *, shard: bool) -> Run:
    schema, make_task = TRAINERS[name]
    parsed = load_config(config, [f"run={folder}"], schema)
    accelerator = Accelerator(cpu=True)
    _, task = prepare(parsed, accelerator, make_task)
    run = Run(folder, parsed.training, accelerator, task, shard=shard)
    resume(run, "auto")
    return run


def train(name: str, config: Path, folder: Path, end: int, *, shard: bool = False) -> list[dict[str, float]]:
    """Losses of the steps up to `end`, resumed where a state is, and the validation figures after them; saved."""
    run = open_run(name, config, folder, shard=shard)
    found = [run.step() for _ in range(run.images // run.config.batch_size, end)]
    run.save()
    return [*found, run.validate()]


def main() -> None:
    """What each of two processes runs: both trainers, from scratch to the stop, and on from one process's state."""
    arguments = json.loads(sys.argv[1])
    found: dict[str, Any] = {}
    folder = Path(arguments["folder"])
    for name, config in arguments["configs"].items():
        if name == "diffusion":
            found["shards"] = {"first": train(name, Path(config), folder / "two-shards", STOP, shard=True),
                               "second": train(name, Path(config), folder / "one-shards", STEPS, shard=True)}
        found[name] = {"first": train(name, Path(config), folder / f"two-{name}", STOP),
                       "second": train(name, Path(config), folder / f"one-{name}", STEPS)}
    if Accelerator(cpu=True).is_main_process:
        (Path(arguments["folder"]) / "found.json").write_text(json.dumps(found))


def assert_same(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=2e-4, abs=1e-6)


def environment() -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    return {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": root}


@pytest.mark.slow
def test_accelerate_launches_its_config(configs: dict[str, Path], tmp_path: Path) -> None:
    """As docs/training.md has it, with two processes and, by the environment, CPUs: --cpu would start one alone.

    What it trained loses on held-out samples what one process's model does.
    """
    torch.set_num_threads(1)
    expected = train("diffusion", configs["diffusion"], tmp_path / "one", STEPS)[-1]
    command = ["accelerate.commands.launch", "--config_file", str(CONFIGS / "ddp.yaml"), "--num_processes", "2",
               "--main_process_port", "0", "--tee", "3", "--log_dir", str(tmp_path / "logs"),
               "-m", "train.train_diffusion", "--config", str(configs["diffusion"]), "--set", f"run={tmp_path / 'two'}"]
    done = subprocess.run([sys.executable, "-m", *command], env=environment(), cwd=tmp_path, capture_output=True,
                          text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "logs").rglob("stderr.log"))) == 2
    AcceleratorState._reset_state(True)
    assert_same(train("diffusion", configs["diffusion"], tmp_path / "two", STEPS), [expected])


@pytest.mark.slow
def test_two_processes_lose_what_one_does_and_resume_each_other(configs: dict[str, Path], tmp_path: Path) -> None:
    """DDP for both trainers, and FSDP's shards for the UNet; in between the states are the same."""
    torch.set_num_threads(1)
    straight = {name: train(name, path, tmp_path / f"straight-{name}", STEPS) for name, path in configs.items()}
    halves = {name: train(name, path, tmp_path / f"one-{name}", STOP) for name, path in configs.items()}
    arguments = json.dumps({"configs": {name: str(path) for name, path in configs.items()}, "folder": str(tmp_path)})
    program = "from tests.train.test_processes import main; main()"
    (tmp_path / "two.py").write_text(program)
    shutil.copytree(tmp_path / "one-diffusion", tmp_path / "one-shards")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         str(tmp_path / "two.py"), arguments],
        env=environment(), capture_output=True, text=True, timeout=900, check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    for name, trainer in (("autoencoder", "autoencoder"), ("diffusion", "diffusion"), ("shards", "diffusion")):
        path, straight[name], halves[name] = configs[trainer], straight[trainer], halves[trainer]
        assert len({round(losses["loss"], 6) for losses in straight[name]}) == STEPS + 1  # they differ at all
        assert_same(found[name]["first"][:STOP], straight[name][:STOP])
        assert_same(found[name]["first"][STOP:], halves[name][STOP:])
        assert_same(found[name]["second"], straight[name][STOP:])  # one process, then two
        AcceleratorState._reset_state(True)
        assert_same(train(trainer, path, tmp_path / f"two-{name}", STEPS), straight[name][STOP:])  # two, then one
