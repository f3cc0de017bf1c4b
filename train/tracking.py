"""Losses, figures and sample sheets for TensorBoard and Weights & Biases, through accelerate's trackers."""

from __future__ import annotations

import secrets
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from text2layer_core.atomic import write_text


class Tracked:
    """What is written to every tracker; with none it does nothing."""

    def __init__(self, backends: Sequence[Any]) -> None:
        """`backends` are accelerate's trackers, started."""
        self._backends = backends

    def figures(self, group: str, values: Mapping[str, float], images: int) -> None:
        """Scalars under "group/name" at a count of images."""
        for backend in self._backends:
            backend.log({f"{group}/{name}": float(value) for name, value in values.items()}, step=images)

    def picture(self, name: str, path: Path | None, images: int) -> None:
        """A picture file at a count of images; None where this process drew none."""
        if path is None or not self._backends:
            return
        with Image.open(path) as opened:
            pixels = np.asarray(opened.convert("RGB"))[None]
        for backend in self._backends:
            options = {"dataformats": "NHWC"} if backend.name == "tensorboard" else {}
            backend.log_images({name: pixels}, step=images, **options)


def check_trackers(names: Sequence[str]) -> None:
    """Raises ValueError where a tracker is asked for whose package is not installed."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise ValueError(f"training: trackers must be installed (pip install {' '.join(missing)}), or leave them out "
                         f"(--set training.trackers=[]), got {list(names)}")


@contextmanager
def trackers(folder: Path, names: Sequence[str], images: int) -> Generator[Tracked]:
    """Opens trackers for the span of a call.

    Args:
        folder: of the run; TensorBoard's files go to `tensorboard` in it, wandb's project is "text2layer",
            its run the run folder's name. Wandb's id of the run is kept in `wandb-id.txt` in it, so that a resumed run
            goes on with the same curves.
        names: "tensorboard", "wandb"; the main process's alone.
        images: count to begin at. TensorBoard drops what an earlier run, that went further, wrote beyond.
    """
    from accelerate.tracking import TensorBoardTracker, WandBTracker

    check_trackers(names)
    backends: list[Any] = []
    for name in names:
        if name == "tensorboard":
            backends.append(TensorBoardTracker("tensorboard", folder, purge_step=images + 1))
        else:
            backends.append(WandBTracker("text2layer", name=folder.name, dir=str(folder), resume="allow",
                                         id=_wandb_id(folder / "wandb-id.txt", images)))
        backends[-1].start()
    try:
        yield Tracked(backends)
    finally:
        for backend in backends:
            backend.finish()


def _wandb_id(path: Path, images: int) -> str:
    """A run's id from its file; a new one where training begins, since wandb takes no step twice."""
    if not images or not path.is_file():
        write_text(path, secrets.token_hex(8))
    return path.read_text(encoding="utf-8")
