"""The training loop on a line fitted by gradient descent; expected values by hand or from the uninterrupted run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from train.engine import Objective, Part, Run, TrainingConfig, ema_decay, fit, learning_rate, resume, update_ema
from train.pictures import save_grid

CONFIG = TrainingConfig(images=40, batch_size=4, learning_rate=0.1, ema_half_life=8, save_images=16, sheet_images=20)


class Line(nn.Module):
    """A line in float64, its error as loss."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1, 3), start, dtype=torch.float64))
        self.bias = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        error = batch @ self.weight.T + self.bias - batch.sum(1, keepdim=True)
        return {"loss": error.square().mean(), "error": error.abs().mean()}


class LineTask:
    """Two objectives on the same numbers, each sample's drawn from its index."""

    def __init__(self, folder: Path | None = None) -> None:
        lines = Line(0.0), Line(2.0)
        self.objectives: Sequence[Objective] = (Objective("line", lines[0]), Objective("other", lines[1], 0.5))
        self.ema_of: nn.Module = lines[0]
        self.seen: list[int] = []
        self.exported: list[float] = []
        self._folder = folder

    def batch(self, part: Part, device: torch.device) -> Tensor:
        indices = range(part.start, part.start + part.count)
        self.seen += indices
        rows = [torch.randn(3, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in indices]
        return torch.stack(rows).to(device)

    def sheet(self, path: Path, images: int, device: torch.device) -> None:
        assert not self.ema_of.training
        save_grid(path, [torch.full((1, 3, 2, 2), images / 40)])

    def export(self, path: Path, images: int) -> None:
        assert not self.ema_of.training
        self.exported.append(self.ema_of.bias.item())


def make(folder: Path, config: TrainingConfig = CONFIG) -> tuple[Run, LineTask]:
    task = LineTask()
    return Run(folder, config, Accelerator(cpu=True), task), task


def weights(task: LineTask) -> Tensor:
    return torch.cat([p.detach().flatten() for o in task.objectives for p in o.module.parameters()])


def test_learning_rate_by_hand() -> None:
    config = TrainingConfig(images=1000, batch_size=10, learning_rate=0.2, final_learning_rate=0.1, warmup_images=100)
    # Warm-up: the first step has (0 + 10) / 100 of the peak; the cosine is almost 1 there.
    assert learning_rate(config, 0) == pytest.approx(0.2 * 0.1)
    # Half way: 0.1 + 0.9 / 2 of the peak. A third of the way: cos 60 degrees = 1/2.
    assert learning_rate(config, 500) == pytest.approx(0.2 * 0.55)
    assert learning_rate(replace(config, images=1500), 500) == pytest.approx(0.2 * (0.1 + 0.9 * 0.75))
    assert learning_rate(config, 1000) == learning_rate(config, 2000) == pytest.approx(0.2 * 0.1)
    # A run that starts at 500 images warms up anew on the same cosine.
    assert learning_rate(config, 500, start=500) == pytest.approx(0.2 * 0.55 * 0.1)
    assert learning_rate(replace(config, warmup_images=0), 0) == pytest.approx(0.2)


def test_ema_decay_by_hand() -> None:
    config = TrainingConfig(images=1000, batch_size=10, learning_rate=0.1, ema_half_life=50)
    assert ema_decay(config, 1000) == pytest.approx(0.5 ** (10 / 50))
    assert ema_decay(config, 200) == pytest.approx(0.5 ** (10 / 20))  # a tenth of the images seen
    assert ema_decay(config, 0) == pytest.approx(0.5**10)


def test_ema_averages_parameters_and_copies_buffers() -> None:
    ema, model = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    with torch.no_grad():
        model.weight.fill_(3.0)
        model(torch.tensor([[0.0, 4.0], [2.0, 8.0]]))
    update_ema(ema, model, 0.75)
    assert ema.weight.tolist() == [1.5, 1.5]  # 0.75 * 1 + 0.25 * 3
    assert torch.equal(ema.running_mean, model.running_mean)  # type: ignore[arg-type]
    assert ema.num_batches_tracked == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"images": 0, "learning_rate": float("nan")},
            "images must be above 0, got 0; learning_rate must be above 0, got nan",
        ),
        ({"accumulation": 3}, "batch_size must be a multiple of accumulation=3, got 4"),
        ({"beta2": 1.0}, r"beta2 must be in \[0, 1\), got 1.0"),
        (
            {"seed": -1, "warmup_images": -2},
            "warmup_images must not be negative, got -2; seed must not be negative, got -1",
        ),
        (
            {"save_images": 0, "sheet_images": -1},
            "save_images must be above 0, got 0; sheet_images must be above 0, got -1",
        ),
    ],
)
def test_config_tells_every_problem_at_once(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        replace(CONFIG, **changes)


def test_parts_are_shared_out_without_overlap(tmp_path: Path) -> None:
    run, task = make(tmp_path, replace(CONFIG, accumulation=2))
    run.step()
    run.step()
    assert task.seen == list(range(8))


def test_batch_must_fit_the_processes(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    accelerator.state._shared_state["num_processes"] = 3
    with pytest.raises(ValueError, match="batch_size must be a multiple of accumulation x processes = 3, got 4"):
        Run(tmp_path, CONFIG, accelerator, LineTask())


def test_one_step_by_hand(tmp_path: Path) -> None:
    """AdamW's first step moves every weight by the learning rate against its gradient's sign."""
    run, task = make(tmp_path)
    report = run.step()
    line, other = (o.module for o in task.objectives)
    batch = LineTask().batch(Part(0, 4), torch.device("cpu"))
    assert report["loss"] == pytest.approx(float(batch.sum(1).square().mean()))  # the line starts as 0
    rate = learning_rate(CONFIG, 0)
    assert line.weight.abs().flatten().tolist() == pytest.approx([rate] * 3, rel=1e-5)
    assert (other.weight - 2).abs().flatten().tolist() == pytest.approx([rate / 2] * 3, rel=1e-5)  # scaled by 0.5
    assert list(report) == ["gradient", "loss", "error", "other.gradient", "other.loss", "other.error"]
    assert run.images == 4


def test_accumulation_changes_nothing_but_memory(tmp_path: Path) -> None:
    """Without BatchNorm, the mean of two halves' gradients is the whole batch's."""
    whole, whole_task = make(tmp_path / "1")
    halves, halves_task = make(tmp_path / "2", replace(CONFIG, accumulation=2))
    for _ in range(5):
        expected, found = whole.step(), halves.step()
        assert found == pytest.approx(expected, rel=1e-9)
    assert torch.allclose(weights(whole_task), weights(halves_task), rtol=1e-9)


def test_weight_decay_spares_vectors(tmp_path: Path) -> None:
    run, _ = make(tmp_path, replace(CONFIG, weight_decay=0.1))
    decayed = {g["weight_decay"]: [p.ndim for p in g["params"]] for g in run.optimizers[0].param_groups}
    assert decayed == {0.1: [2], 0.0: [1]}


def test_resumed_run_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    straight, straight_task = make(tmp_path / "a")
    reports = [straight.step() for _ in range(6)]
    first, _ = make(tmp_path / "b")
    for _ in range(3):
        first.step()
    first.save()
    second, second_task = make(tmp_path / "b")
    resume(second, "auto")
    assert second.images == 12
    assert [second.step() for _ in range(3)] == reports[3:]
    assert torch.equal(weights(second_task), weights(straight_task))
    assert straight.ema is not None
    assert second.ema is not None
    assert all(map(torch.equal, second.ema.state_dict().values(), straight.ema.state_dict().values()))


def test_start_from_counts_on_and_warms_up_anew(tmp_path: Path) -> None:
    config = replace(CONFIG, warmup_images=8)
    run, task = make(tmp_path, config)
    with torch.no_grad():
        task.ema_of.bias.fill_(5.0)
    with pytest.raises(ValueError, match=f"training.images must be above the {config.images} images that --init-from"):
        run.start_from(config.images)
    run.start_from(20)
    run.step()
    assert task.seen == [20, 21, 22, 23]
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(learning_rate(config, 20, 20))
    run.save()
    again, _ = make(tmp_path, config)
    resume(again, "auto")
    assert (again.images, again.start) == (24, 20)
    assert again.ema is not None
    assert again.ema.bias.item() == pytest.approx(5.0, abs=0.1)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_states_are_pruned_and_replaced(tmp_path: Path) -> None:
    run, _ = make(tmp_path)
    states = tmp_path / "states"
    for _ in range(4):
        run.step()
        run.save()
    assert names(states) == ["0000000012.pt", "0000000016.pt"]
    (states / ".text2layer-0.tmp").write_text("left by a killed process")
    (states / "best.pt").write_text("kept by the user")
    # Going back to 12 images makes those of 16 a future that did not happen.
    back, _ = make(tmp_path)
    resume(back, str(states / "0000000012.pt"))
    back.save()
    assert names(states) == ["0000000012.pt", "best.pt"]


def test_resume_none_starts_anew_and_keeps_the_old_state_until_the_first_new_one(tmp_path: Path) -> None:
    run, _ = make(tmp_path)
    run.step()
    run.step()
    run.save()
    fresh, _ = make(tmp_path)
    resume(fresh, "none")
    assert fresh.images == 0
    assert names(tmp_path / "states") == ["0000000008.pt"]
    fresh.step()
    fresh.save()
    assert names(tmp_path / "states") == ["0000000004.pt"]


def test_resume_says_what_does_not_fit(tmp_path: Path) -> None:
    run, _ = make(tmp_path)
    resume(run, "auto")  # nothing there yet
    assert run.images == 0
    with pytest.raises(ValueError, match=r"--resume must be auto, none or a state file, got .*absent.pt"):
        resume(run, str(tmp_path / "absent.pt"))
    run.save()
    state = tmp_path / "states" / "0000000000.pt"
    for name, content in {"text.pt": b"no state", "cut.pt": state.read_bytes()[:300], "empty.pt": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"^--resume must name a state of this config, got [^\n]*{name}: [^\n]*$"):
            resume(run, str(tmp_path / name))
    found = torch.load(state, weights_only=True)
    found["modules"]["line"]["weight"] = torch.zeros(1, 4)
    torch.save(found, tmp_path / "wide.pt")
    with pytest.raises(ValueError, match=r"--resume must name a state of this config, got .*size mismatch for weight"):
        resume(run, str(tmp_path / "wide.pt"))
    without_ema, _ = make(tmp_path, replace(CONFIG, ema_half_life=0))
    without_ema.save()
    with pytest.raises(ValueError, match="--resume must name a state of this config"):
        resume(run, "auto")


def test_averaged_weights_come_and_go(tmp_path: Path) -> None:
    run, task = make(tmp_path)
    for _ in range(3):
        run.step()
    assert run.ema is not None
    before = task.ema_of.bias.clone()
    with pytest.raises(RuntimeError, match="drawing failed"), run.averaged_weights():
        assert torch.equal(task.ema_of.bias, run.ema.bias)
        assert not torch.equal(task.ema_of.bias, before)
        raise RuntimeError("drawing failed")
    assert torch.equal(task.ema_of.bias, before)
    assert task.ema_of.training
    run.save()
    assert task.exported == [run.ema.bias.item()]


def test_a_gradient_that_is_no_number_leaves_the_weights(tmp_path: Path) -> None:
    """The square root of 0 is finite, its slope is not."""
    run, task = make(tmp_path)
    before = weights(task)
    module = task.objectives[0].module
    forward = module.forward
    module.forward = lambda batch: {
        name: value + (0 * next(module.parameters()).sum()).sqrt() for name, value in forward(batch).items()
    }
    with pytest.raises(FloatingPointError, match=r"the gradient of the .* must stay finite, got nan after 0 images"):
        run.step()
    assert torch.equal(weights(task), before)


def test_a_loss_that_is_no_number_leaves_weights_and_states(tmp_path: Path) -> None:
    run, task = make(tmp_path)
    run.step()
    before = weights(task)
    with torch.no_grad():
        task.objectives[1].module.bias.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="the loss of the other must stay finite, got inf after 4 images"):
        run.step()
    assert torch.isfinite(task.ema_of.bias).all()
    assert torch.equal(weights(task)[4:7], before[4:7])
    assert not (tmp_path / "states").exists()


def test_fit_logs_saves_and_draws(tmp_path: Path) -> None:
    run, task = make(tmp_path)
    fit(run, log_every=0.0)
    assert run.images == 40
    assert task.seen == list(range(40))
    assert names(tmp_path / "states") == ["0000000032.pt", "0000000040.pt"]  # every 16 images and at the end
    assert names(tmp_path / "sheets") == ["0000000020.png", "0000000040.png"]
    assert len(task.exported) == 3
    header, *lines = (tmp_path / "log.csv").read_text().splitlines()
    assert header == "images,gradient,loss,error,other.gradient,other.loss,other.error"
    assert [int(line.split(",")[0]) for line in lines] == list(range(4, 44, 4))
    assert float(lines[-1].split(",")[2]) < float(lines[0].split(",")[2])


def test_a_task_is_told_what_the_next_step_reads(tmp_path: Path) -> None:
    class Reading(LineTask):
        def read_ahead(self, indices: Sequence[int]) -> None:
            told.append((len(self.seen), list(indices)))

    told: list[tuple[int, list[int]]] = []
    task = Reading()
    run = Run(tmp_path, replace(CONFIG, accumulation=2), Accelerator(cpu=True), task)
    fit(run, until=12)
    assert told == [(4, [4, 5, 6, 7]), (8, [8, 9, 10, 11]), (12, [12, 13, 14, 15]), (12, [])]
    fit(run)
    assert told[-2:] == [(40, []), (40, [])]
    assert task.seen == list(range(40))


def test_fit_of_a_finished_run_trains_no_further(tmp_path: Path) -> None:
    run, _ = make(tmp_path)
    fit(run)
    again, task = make(tmp_path)
    resume(again, "auto")
    fit(again)
    assert (again.images, task.seen) == (40, [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_step_end_and_saves(
    tmp_path: Path, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupting(LineTask):
        def batch(self, part: Part, device: torch.device) -> Tensor:
            if part.start == 8:
                signal.raise_signal(number)
            return super().batch(part, device)

    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run = Run(tmp_path, CONFIG, Accelerator(cpu=True), Interrupting())
    fit(run)
    assert run.images == 12
    assert names(tmp_path / "states") == ["0000000012.pt"]
    assert "stopped at 12 images" in capsys.readouterr().err
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


def test_a_second_ctrl_c_while_saving_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    run, _ = make(tmp_path)
    run.save()
    run.step()
    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.save()
    assert names(tmp_path / "states") == ["0000000000.pt"]


TWO_PROCESSES = """
import sys
from pathlib import Path
import torch
from accelerate import Accelerator
sys.path.insert(0, {here!r})
from test_engine import CONFIG, LineTask, weights
from train.engine import Run, fit
task, accelerator = LineTask(), Accelerator(cpu=True)
assert accelerator.num_processes == 2
fit(Run(Path({folder!r}), CONFIG, accelerator, task))
torch.save((task.seen, weights(task)), Path({folder!r}) / f"rank{{accelerator.process_index}}.pt")
"""


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Gloo, two processes: every sample is seen once, and the weights are the single process's."""
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES.format(here=str(Path(__file__).parent), folder=str(tmp_path)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    (seen_0, weights_0), (seen_1, weights_1) = (torch.load(tmp_path / f"rank{i}.pt", weights_only=True) for i in (0, 1))
    assert seen_0 == [i for i in range(40) if i % 4 < 2]
    assert seen_1 == [i for i in range(40) if i % 4 >= 2]
    alone, task = make(tmp_path / "alone")
    fit(alone)
    assert torch.equal(weights_0, weights_1)
    assert torch.allclose(weights_0, weights(task), rtol=1e-9)
    assert names(tmp_path / "states") == ["0000000032.pt", "0000000040.pt"]
