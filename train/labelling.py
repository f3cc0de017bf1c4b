"""What a person does while labelling samples: good, bad, skip, undo, look around; saved after every step."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from text2layer_core.report import on_checkerboard
from train.quality_samples import SampleFiles, read_labels, write_labels
from train.samples import KNOWN_ABOVE

VIEWS = ("image", "overlay", "foreground", "background")
QUESTIONS = {
    "mask": "Bad if the object is largely incomplete, if the mask holds background, or if the object is too small.",
    "inpainting": "Look at the background. Bad if its hole holds an object or an artifact, or does not fit what is "
    "around it.",
}
ACTIONS = ("start", "good", "bad", "skip", "undo", "back", "forward")
_DARKER = 0.25


@dataclass
class Session:
    """One person's labelling of one kind, its state all in the CSV.

    Attributes:
        samples: what is labelled, in the order of its keys.
        path: of the CSV.
        kind: "mask" or "inpainting".
        labels: key -> good, in the order in which they were given; samples of other data stay in it.
    """

    samples: SampleFiles
    path: Path
    kind: str
    labels: dict[str, bool] = field(default_factory=dict[str, bool])
    _given: list[tuple[str, bool | None]] = field(default_factory=list[tuple[str, bool | None]])
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Reads the labels that are there; ValueError where the file cannot be read or its folder is not there."""
        if self.path.exists():
            self.labels = read_labels(self.path)
        elif not self.path.parent.is_dir():
            raise ValueError(f"labels must be a file in a folder that is there, got {self.path}")

    def act(self, action: str, index: int) -> dict[str, Any]:
        """Does what a key stands for at the sample of that index, saves, and tells where to go.

        Raises:
            ValueError: an unknown action, or no sample of that index.
            OSError: the labels cannot be written; nothing has changed then.
        """
        if action not in ACTIONS:
            raise ValueError(f"action must be one of {', '.join(ACTIONS)}, got {action!r}")
        self._check(index)
        with self._lock:
            return self._state(self._next(action, index))

    def view(self, index: int, view: str) -> Tensor:
        """A picture of a sample, (1, 3, H, W) in [0, 1]; see VIEWS.

        Raises:
            ValueError: there is none, or the sample cannot be read.
        """
        self._check(index)
        if view not in VIEWS:
            raise ValueError(f"view must be one of {', '.join(VIEWS)}, got {view!r}")
        key = self.samples.keys[index]
        if view in ("image", "background"):
            return self.samples.picture(key, f"{view}.png")
        image, mask = (self.samples.picture(key, part) for part in ("image.png", "mask.png"))
        if image.shape[2:] != mask.shape[2:]:
            raise ValueError(f"sample {key} must have an image and a mask of one size")
        if view == "overlay":
            return image * (_DARKER + (1 - _DARKER) * mask)
        own = self.samples.read(key, "foreground.png") is not None
        colour = self.samples.picture(key, "foreground.png") if own else image
        return on_checkerboard(colour, torch.where(mask > KNOWN_ABOVE, mask, 0))

    def _check(self, index: int) -> None:
        if not 0 <= index < len(self.samples.keys):
            raise ValueError(f"index must lie in [0, {len(self.samples.keys)}), got {index}")

    def _next(self, action: str, index: int) -> int:
        count, key = len(self.samples.keys), self.samples.keys[index]
        if action == "start":
            return self._unlabelled(0, count - 1)
        if action in ("good", "bad"):
            before = self.labels.get(key)
            self._store({**self.labels, key: action == "good"})
            self._given.append((key, before))
            return self._unlabelled(index + 1, min(index + 1, count - 1))
        if action == "undo":
            return self._undo(index)
        if action == "skip":
            return self._unlabelled(index + 1, min(index + 1, count - 1))
        return min(max(index + (1 if action == "forward" else -1), 0), count - 1)

    def _undo(self, index: int) -> int:
        """Takes the last label back that was given since the page's server started; that sample's index."""
        if not self._given:
            return index
        key, before = self._given[-1]
        labels = {name: good for name, good in self.labels.items() if name != key}
        self._store(labels if before is None else {**labels, key: before})
        self._given.pop()
        return self.samples.keys.index(key)

    def _store(self, labels: dict[str, bool]) -> None:
        write_labels(self.path, labels)
        self.labels = labels

    def _unlabelled(self, first: int, otherwise: int) -> int:
        """The next sample without a label from `first` on."""
        keys = self.samples.keys
        return next((index for index in range(first, len(keys)) if keys[index] not in self.labels), otherwise)

    def _state(self, index: int) -> dict[str, Any]:
        key = self.samples.keys[index]
        label, caption = self.labels.get(key), self.samples.read(key, "txt") or b""
        return {
            "kind": self.kind, "question": QUESTIONS[self.kind], "index": index, "count": len(self.samples.keys),
            "key": key, "label": None if label is None else "good" if label else "bad",
            "labelled": sum(name in self.labels for name in self.samples.keys),
            "caption": caption.decode("utf-8", "replace").strip(),
        }
