"""How trainers and judges end: one line and a status for what stops them, before training where that can be known."""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from accelerate import Accelerator

from tests.train.evaluators import make_evaluator, training_values
from tests.train.test_engine import CONFIG, LineTask, names
from tests.train.test_shards import sample
from tests.train.test_shards import write as write_shard
from tests.train.test_train_autoencoder import values  # noqa: F401 - a fixture
from tests.train.test_train_autoencoder import write as write_config
from train import check, check_evaluator, data, gallery, release, train_autoencoder, train_evaluator
from train.commands import STOPPED, Interrupted, exit_status
from train.engine import Run
from train.evaluator import save_evaluator
from train.icons.sprites import SpriteCache
from train.samples import epoch_rows


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


@contextmanager
def small_disk(most: int) -> Generator[None]:
    """No file longer than so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def raises(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize(("work", "status", "line"), [
    (lambda: None, 0, ""), (raises(ValueError("wrong")), 2, "error: wrong\n"),
    (raises(OSError("gone")), 2, "error: gone\n"),
    (raises(FloatingPointError("infinite")), 1, "error: infinite\n"), (raises(Interrupted("name")), 130, ""),
    (lambda: signal.raise_signal(signal.SIGINT), 130, "stopped; the same command goes on from there\n"),
])
def test_statuses(work: Callable[[], None], status: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status(work) == status
    assert capsys.readouterr().err == line


def test_programming_errors_keep_their_traceback() -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        exit_status(raises(RuntimeError("a bug")))


@pytest.mark.parametrize(("command", "reads", "arguments"), [
    (check, "load_checkpoint", []), (check_evaluator, "load_evaluator", []),
    (gallery, "load_checkpoint", ["--out", "page.jpg"]),
    (release, "load_checkpoint", ["--model", "a", "--hardware", "b", "--out", "c"]),
])
def test_ctrl_c_where_nothing_is_kept(
    command: Any, reads: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that does not say that the same command goes on."""

    def stopped(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(command, reads, stopped)
    assert command.main(arguments) == 130
    assert capsys.readouterr().err == "stopped\n"


@pytest.mark.parametrize(("part", "content", "message"), [
    ("mask.png", b"no picture", "must hold readable pictures, got "),
    ("txt", b"caf\xe9", "must hold a txt in UTF-8, got "),
])
def test_a_sample_that_cannot_be_read(
    values: dict[str, Any], part: str, content: bytes, message: str, tmp_path: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The seventh of eight, in the second step."""
    samples = {f"{index:04}": sample(index, 32, 32) for index in range(8)}
    samples[f"{epoch_rows(0, 0, 8, 8)[6]:04}"][part] = content
    write_shard(tmp_path / "a.tar", samples)
    values["data"] = {"source": "shards", "size": 32, "shards": {"files": str(tmp_path / "a.tar")}}
    assert train_autoencoder.main(write_config(values, tmp_path / "a.yaml")) == 1
    line = last_line(capsys)
    assert line.startswith("error: sample ./")
    assert message in line


def test_a_full_disk(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]  # noqa: F811
) -> None:
    """A real limit on the size of files: the state does not fit; nothing half is left."""
    values["training"] |= {"trackers": []}
    arguments = write_config(values, tmp_path / "a.yaml")
    with small_disk(2000):
        assert train_autoencoder.main(arguments) == 1
    assert last_line(capsys).startswith(f"error: cannot write {tmp_path / 'run' / 'states' / '0000000008.pt'}, ")
    assert names(tmp_path / "run" / "states") == []


def test_an_export_that_does_not_fit(sprites: SpriteCache, tmp_path: Path) -> None:
    path = tmp_path / "evaluator.safetensors"
    with small_disk(2000), pytest.raises(OSError, match=rf"^cannot write {path}: "):
        save_evaluator(path, make_evaluator(sprites))
    assert names(tmp_path) == []


def test_ctrl_c_while_a_cache_fills(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The second call goes on behind the first block."""
    arguments = write_config({**values, "cached": 80}, tmp_path / "a.yaml")
    rows: list[int] = []
    store = data.ArrayCache.store

    def stopped(self: data.ArrayCache, block: dict[str, np.ndarray]) -> None:
        store(self, block)
        rows.append(len(block["stack"]))
        if len(rows) == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(data.ArrayCache, "store", stopped)
    assert train_autoencoder.main(arguments) == 130
    assert last_line(capsys) == STOPPED
    assert train_autoencoder.main(arguments) == 0
    assert rows == [64, 16]


def test_validation_figures_without_a_held_out_split(
    tmp_path: Path, sprite_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused before training starts."""
    monkeypatch.setattr(train_evaluator, "_TOKENIZER_CAPTIONS", 200)
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(training_values(tmp_path, sprite_file)))
    assert train_evaluator.main(["--config", str(path), "--set", "training.validation_images=8"]) == 2
    assert last_line(capsys) == "error: validation_images must be 0 for a task without a held-out split, got 8"
    assert not (tmp_path / "run").exists()


def test_validation_samples_for_every_process(tmp_path: Path) -> None:
    class Held(LineTask):
        validation_batch = LineTask.batch

    accelerator = Accelerator(cpu=True)
    accelerator.state._shared_state["num_processes"] = 4
    config = replace(CONFIG, validation_images=8, validation_samples=3)
    with pytest.raises(ValueError, match="validation_samples must be at least the 4 processes, got 3"):
        Run(tmp_path, config, accelerator, Held())
