"""The loop around a run's steps: log, sheets, states, validation, and how it is stopped."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from train.tracking import trackers

if TYPE_CHECKING:
    from accelerate import Accelerator

    from train.engine import Run


def fit(run: Run, *, log_every: float = 2.0, until: int | None = None) -> None:
    """Trains to the configured number of images; Ctrl-C or SIGTERM lets the step end, saves the state and returns.

    Losses go to `log.csv` in the run folder, figures of the held-out split to `validation.csv`, and both, with the
    sheets, to the configured trackers.

    Args:
        run: fresh or resumed.
        log_every: least seconds between two lines of the log.
        until: count of images to stop at before the end; the schedule stays that of the whole run.
    """
    config, main = run.config, run.accelerator.is_main_process
    end = config.images if until is None else min(until, config.images)
    run.folder.mkdir(parents=True, exist_ok=True)
    last_log, saved, drawn = time.monotonic(), -1, -1
    with (
        closing(run),
        _interrupts() as interrupted,
        trackers(run.folder, config.trackers if main else (), run.images) as tracked,
        tqdm(total=end, initial=run.images, unit="image", file=sys.stderr, disable=not main) as bar,
    ):
        while run.images < end and not _anywhere(run.accelerator, interrupted()):
            before = run.images
            report = run.step()
            bar.update(config.batch_size)
            if main and time.monotonic() - last_log >= log_every:
                last_log = time.monotonic()
                bar.set_postfix_str(f"loss {report['loss']:.4f}")
                _log(run.folder / "log.csv", run.images, report)
                tracked.figures("train", report, run.images)
            if _crossed(before, run.images, config.save_images):
                run.save()
                saved = run.images
            if _crossed(before, run.images, config.sheet_images):
                tracked.picture("sheet", run.sheet(), run.images)
                drawn = run.images
            if config.validation_images and _crossed(before, run.images, config.validation_images):
                figures = run.validate()
                if main:
                    _log(run.folder / "validation.csv", run.images, figures)
                    tracked.figures("validation", figures, run.images)
        if saved != run.images:
            run.save()
        if drawn != run.images:
            tracked.picture("sheet", run.sheet(), run.images)
    if main and run.images < end:
        print(f"stopped at {run.images} images; the same command goes on from there", file=sys.stderr)


def _anywhere(accelerator: Accelerator, flag: bool) -> bool:
    """Whether the flag is up in any process, so that all of them stop after the same step."""
    if accelerator.num_processes == 1:
        return flag
    if flag:
        accelerator.set_trigger()
    return accelerator.check_trigger()


def _crossed(before: int, after: int, every: int) -> bool:
    return before // every != after // every


def _log(path: Path, images: int, report: Mapping[str, float]) -> None:
    header = "" if path.is_file() else ",".join(["images", *report]) + "\n"
    with path.open("a", encoding="utf-8") as file:
        file.write(header + ",".join([str(images), *(f"{value:.6g}" for value in report.values())]) + "\n")


@contextmanager
def _interrupts() -> Generator[Callable[[], bool]]:
    """Lets the current step finish on SIGINT and SIGTERM; a second SIGINT stops at once."""
    caught: list[int] = []

    def note(number: int, _frame: object) -> None:
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(caught)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
