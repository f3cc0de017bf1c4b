"""Losses, figures and sample sheets for TensorBoard and Weights & Biases, through accelerate's trackers."""

from __future__ import annotations

import secrets
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from text2layer_core.atomic import write_text
from text2layer_core.checkpoint import one_line


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


def chosen_trackers(names: Sequence[str] | None) -> list[str]:
    """The trackers that a config's `trackers` means: None is TensorBoard, and wandb where it is installed."""
    if names is not None:
        return list(names)
    return ["tensorboard", "wandb"] if _installed("wandb") else ["tensorboard"]


def check_trackers(names: Sequence[str] | None) -> None:
    """Raises ValueError where a tracker is asked for whose package is not installed."""
    chosen = chosen_trackers(names)
    missing = [name for name in chosen if not _installed(name)]
    if missing:
        raise ValueError(f"training: trackers must be installed (pip install {' '.join(missing)}), or leave them out "
                         f"(--set training.trackers=[]), got {chosen}")


@contextmanager
def trackers(folder: Path, names: Sequence[str] | None, images: int) -> Generator[Tracked]:
    """Opens trackers for the span of a call.

    Args:
        folder: of the run; TensorBoard's files go to `tensorboard` in it, wandb's project is "text2layer",
            its run the run folder's name. Wandb's id of the run is kept in `wandb-id.txt` in it, so that a resumed run
            goes on with the same curves. Where nobody has logged in to wandb the run stays in the folder (offline).
        names: "tensorboard", "wandb", see `chosen_trackers`; the main process's alone.
        images: count to begin at. TensorBoard drops what an earlier run, that went further, wrote beyond.

    Raises:
        ValueError: a package is not installed, or wandb does not start.
    """
    check_trackers(names)
    backends: list[Any] = []
    try:
        for name in chosen_trackers(names):
            backends.append(_wandb(folder, images) if name == "wandb" else _tensorboard(folder, images))
        yield Tracked(backends)
    finally:
        for backend in backends:
            backend.finish()


def _installed(name: str) -> bool:
    """Whether a package is there; a mere folder of its name, as wandb leaves where it runs, is none."""
    found = find_spec(name)
    return found is not None and found.origin is not None


def _tensorboard(folder: Path, images: int) -> Any:  # noqa: ANN401 - accelerate's tracker
    """Started."""
    from accelerate.tracking import TensorBoardTracker

    tracker = TensorBoardTracker("tensorboard", folder, purge_step=images + 1)
    tracker.start()
    return tracker


def _wandb(folder: Path, images: int) -> Any:  # noqa: ANN401 - accelerate's tracker
    """Started; ValueError where wandb does not start (a wrong key, no network)."""
    from accelerate.tracking import WandBTracker

    wandb: Any = import_module("wandb")
    try:
        offline = wandb.setup().settings.mode == "online" and not _logged_in(wandb)
        tracker = WandBTracker("text2layer", name=folder.name, dir=str(folder), resume="allow",
                               id=_wandb_id(folder / "wandb-id.txt", images), mode="offline" if offline else None)
        tracker.start()
    except wandb.Error as error:
        raise ValueError(f"wandb must start, got {one_line(error)}; WANDB_MODE=offline keeps it on this machine, "
                         "--set training.trackers=[tensorboard] leaves it out") from error
    return tracker


def _logged_in(wandb: Any) -> bool:  # noqa: ANN401 - the module
    """Without asking: `wandb.init` would, and wait for an answer, or fail where there is no terminal."""
    if "prompt" in signature(wandb.login).parameters:
        return wandb.login(prompt=False, verify=False)
    return wandb.api.api_key is not None  # older releases


def _wandb_id(path: Path, images: int) -> str:
    """A run's id from its file; a new one where training begins, since wandb takes no step twice."""
    if not images or not path.is_file():
        write_text(path, secrets.token_hex(8))
    return path.read_text(encoding="utf-8")
