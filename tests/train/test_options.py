"""Options of every trainer: gradient checkpointing, EMA on the CPU, validation figures, trackers."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from tests.train.test_engine import CONFIG, LineTask
from tests.train.test_train_autoencoder import values as autoencoder_values  # noqa: F401 - a fixture
from tests.train.test_train_diffusion import autoencoder_file, randomised  # noqa: F401 - a fixture
from tests.train.test_train_diffusion import values as diffusion_values  # noqa: F401 - a fixture
from train import train_diffusion
from train.config import parse
from train.data import open_source
from train.engine import Part, Run, fit
from train.tracking import chosen_trackers, trackers
from train.train_autoencoder import AutoencoderTrainingConfig
from train.train_autoencoder import make_task as make_autoencoder_task
from train.train_diffusion import DiffusionTrainingConfig
from train.train_diffusion import make_task as make_diffusion_task

CPU = torch.device("cpu")
KINDS: dict[str, tuple[type[Any], Callable[[Any, torch.device], Any]]] = {
    "autoencoder": (AutoencoderTrainingConfig, make_autoencoder_task),
    "diffusion": (DiffusionTrainingConfig, make_diffusion_task),
}



class HeldOutTask(LineTask):
    """With a held-out split, the same numbers."""

    def validation_batch(self, part: Part, device: torch.device) -> Any:
        return self.batch(part, device)


@pytest.fixture(autouse=True)
def few_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough for a tokenizer here."""
    monkeypatch.setattr(train_diffusion, "_TOKENIZER_CAPTIONS", 100)


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> tuple[Any, Callable[..., Any]]:
    """A trainer's config, and what makes its task."""
    schema, make_task = KINDS[request.param]
    return parse(request.getfixturevalue(f"{request.param}_values"), schema, "test"), make_task


def with_training(config: Any, **changes: Any) -> Any:
    return replace(config, training=replace(config.training, **changes))


def make(config: Any, make_task: Callable[..., Any]) -> tuple[Run, Any]:
    torch.manual_seed(0)
    task = make_task(config, CPU)
    return Run(Path(config.run), config.training, Accelerator(cpu=True), task), task


def kept_bytes(module: torch.nn.Module, batch: Any) -> tuple[int, list[torch.Tensor]]:
    """What a forward pass keeps for the way back, and the gradients."""
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = module(batch)["loss"]
    loss.backward()
    return sum(kept.values()), [p.grad for p in module.parameters() if p.grad is not None]


def test_checkpointing_changes_nothing_but_memory(kind: tuple[Any, Callable[..., Any]]) -> None:
    """The same gradients; less is kept, the inputs of blocks apart, which checkpointing holds itself."""
    config, make_task = kind
    found: list[tuple[int, list[torch.Tensor]]] = []
    for checkpointing in (False, True):
        run, task = make(with_training(config, gradient_checkpointing=checkpointing), make_task)
        found.append(kept_bytes(run.modules[0], task.batch(Part(0, 2), CPU)))
    assert found[1][0] < 0.6 * found[0][0]
    assert len(found[0][1]) == len(found[1][1]) > 10
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)


def test_an_ema_on_the_cpu_is_the_same(kind: tuple[Any, Callable[..., Any]]) -> None:
    """On the CPU both are; that it follows a model elsewhere shows in the device of what is saved."""
    config, make_task = kind
    means: list[dict[str, Any]] = []
    for device in ("model", "cpu"):
        run, _ = make(with_training(config, ema_device=device), make_task)
        run.step()
        assert run.ema is not None
        assert {parameter.device for parameter in run.ema.parameters()} == {CPU}
        means.append({key: value for key, value in run.ema.state_dict().items() if isinstance(value, torch.Tensor)})
    assert all(torch.equal(means[0][key], means[1][key]) for key in means[0])


def test_validation_is_the_mean_over_held_out_samples(kind: tuple[Any, Callable[..., Any]]) -> None:
    """Against one batch of all of them, with the EMA's weights in eval mode; the same figure every time."""
    config, make_task = kind
    run, task = make(with_training(config, validation_images=8, validation_samples=5), make_task)
    run.step()
    found = run.validate()
    assert run.validate() == found
    held_out = open_source(config.data, "held_out")
    assert held_out.captions(0, 5) != open_source(config.data).captions(0, 5)
    with run.averaged_weights(), torch.no_grad():
        expected = task.objectives[0].module(task.validation_batch(Part(0, 5), CPU))
    assert found == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-4)


def test_without_a_held_out_split(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="validation_images must be 0 for a task without a held-out split, got 8"):
        Run(tmp_path, replace(CONFIG, validation_images=8), Accelerator(cpu=True), LineTask())


def test_tensorboard_has_losses_sheets_and_figures(kind: tuple[Any, Callable[..., Any]]) -> None:
    """The numbers of log.csv and validation.csv at the same counts, and the sheet."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config, make_task = kind
    run, _ = make(with_training(config, validation_images=8, validation_samples=4, sheet_images=16), make_task)
    fit(run, log_every=0.0)
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert tags["images"] == ["sheet"]
    assert [event.step for event in events.Images("sheet")] == [16]
    for file, group in (("log", "train"), ("validation", "validation")):
        header, *lines = (run.folder / f"{file}.csv").read_text().splitlines()
        column = header.split(",").index("loss")
        rows = [(int(line.split(",")[0]), float(line.split(",")[column])) for line in lines]
        assert [count for count, _ in rows] == ([4, 8, 12, 16] if file == "log" else [8, 16])
        shown = [(event.step, event.value) for event in events.Scalars(f"{group}/loss")]
        assert shown == [(count, pytest.approx(value, rel=1e-4)) for count, value in rows]


class FakeWandb(ModuleType):
    """What is called of wandb, under the names and options of wandb 0.31."""

    Error = RuntimeError

    def __init__(self, mode: str = "online", logged_in: bool = False) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None, origin="wandb/__init__.py")
        self.calls: list[dict[str, Any]] = []
        self._mode, self._logged_in = mode, logged_in

    def setup(self) -> Any:
        return SimpleNamespace(settings=SimpleNamespace(mode=self._mode))

    def login(self, prompt: bool = True, verify: bool = True) -> bool:
        assert (prompt, verify) == (False, False), "it would ask, or go online"
        return self._logged_in

    def init(self, **options: Any) -> Any:
        self.calls.append(options)
        return SimpleNamespace(finish=lambda: None)


def test_wandb_goes_on_with_the_run_that_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its id, which `wandb.init` resumes by; training that begins anew is another run."""
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    Accelerator(cpu=True)
    for images in (0, 40, 80, 0):
        with trackers(tmp_path, ["wandb"], images):
            pass
    first, second, third, anew = (call["id"] for call in module.calls)
    assert first == second == third != anew
    assert {call["resume"] for call in module.calls} == {"allow"}


@pytest.mark.parametrize(("mode", "logged_in", "given"), [
    ("online", False, "offline"), ("online", True, None), ("offline", False, None), ("disabled", False, None)])
def test_wandb_without_a_login_stays_offline(
    mode: str, logged_in: bool, given: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it is as WANDB_MODE and the like say."""
    module = FakeWandb(mode, logged_in)
    monkeypatch.setitem(sys.modules, "wandb", module)
    Accelerator(cpu=True)
    with trackers(tmp_path, ["wandb"], 0):
        pass
    assert [call["mode"] for call in module.calls] == [given]


def test_wandb_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = FakeWandb()
    monkeypatch.setattr(module, "init", lambda **_: (_ for _ in ()).throw(RuntimeError("no\nnetwork")), raising=False)
    monkeypatch.setitem(sys.modules, "wandb", module)
    Accelerator(cpu=True)
    with (pytest.raises(ValueError, match=r"^wandb must start, got no network; WANDB_MODE=offline keeps it on this "),
          trackers(tmp_path, None, 0)):
        pass


@pytest.fixture
def wandb_without_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The real package; it reads the environment once."""
    wandb = pytest.importorskip("wandb")
    wandb.teardown()
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    yield
    wandb.teardown()


@pytest.mark.usefixtures("wandb_without_login")
def test_wandb_gets_losses_sheets_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Offline, since nobody is logged in: the summary that it prints at the end, and its pictures."""
    run = Run(tmp_path / "run", replace(CONFIG, validation_images=20, validation_samples=4), Accelerator(cpu=True),
              HeldOutTask())
    fit(run, log_every=0.0)
    printed = capsys.readouterr().err.rpartition("Run summary:")[2]
    summary = {name: float(value) for name, value in re.findall(r"([\w/.]+) (-?[\d.]+)$", printed, flags=re.MULTILINE)}
    for file, group in (("log", "train"), ("validation", "validation")):
        header, *_, last = (run.folder / f"{file}.csv").read_text().splitlines()
        for name, value in zip(header.split(",")[1:], last.split(",")[1:], strict=True):
            assert summary[f"{group}/{name}"] == pytest.approx(float(value), rel=1e-3)
    (folder,) = (run.folder / "wandb").glob("offline-run-*")
    shown = {path.name.split("_")[1]: path for path in (folder / "files" / "media" / "images").glob("sheet_*.png")}
    assert sorted(shown) == ["20", "40"]
    for images, path in shown.items():
        drawn = Image.open(run.folder / "sheets" / f"{int(images):010d}.png").convert("RGB")
        assert np.array_equal(np.asarray(Image.open(path).convert("RGB")), np.asarray(drawn))


@pytest.mark.parametrize(("found", "chosen"), [
    (None, ["tensorboard"]),
    (ModuleSpec("wandb", None), ["tensorboard"]),  # a folder of that name
    (ModuleSpec("wandb", None, origin="wandb/__init__.py"), ["tensorboard", "wandb"]),
])
def test_wandb_is_used_where_it_is_installed(
    found: ModuleSpec | None, chosen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless the config names its trackers."""
    monkeypatch.setattr("train.tracking.find_spec", lambda name: found)
    assert chosen_trackers(CONFIG.trackers) == chosen
    assert chosen_trackers(()) == []
    assert chosen_trackers(("tensorboard",)) == ["tensorboard"]


def test_a_tracker_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = ModuleSpec("tensorboard", None, origin="tensorboard/__init__.py")
    monkeypatch.setattr("train.tracking.find_spec", lambda name: None if name == "wandb" else there)
    config = replace(CONFIG, trackers=("tensorboard", "wandb"))
    with pytest.raises(ValueError, match=r"^training: trackers must be installed \(pip install wandb\), or leave "):
        Run(tmp_path, config, Accelerator(cpu=True), LineTask())
