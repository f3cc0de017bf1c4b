"""The output folder: its lock, what is finished in it, and manifest.json."""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from text2layer_core.atomic import write_text
from train.synthesis.statistics import Statistics

if TYPE_CHECKING:
    from train.synthesis.config import SynthesisConfig
    from train.synthesis.inputs import InputShard

FORMAT = 1
_PACKAGES = ("torch", "ray", "webdataset", "pillow", "numpy", "opencv-python-headless", "rembg", "onnxruntime",
             "transformers", "diffusers")
_COUNTS = ("refused", "converted", "dropped")


class Output:
    """A run's folder.

    Attributes:
        folder: where it is.
        done: shard number -> its entry, without statistics and thumbnails, which stay on disk.
    """

    def __init__(self, folder: Path, config: SynthesisConfig, shards: Sequence[InputShard]) -> None:
        """Takes up what another run has finished there and deletes what it has left unfinished.

        Args:
            folder: locked by `locked`.
            config: must be that of the earlier run, but for `engine`.
            shards: must list the same files.

        Raises:
            ValueError: another config, another input, or shards that no run has left there.
        """
        self.folder = folder
        self._entries = folder / "entries"
        self._config = config.fixed()
        self._check_config()
        self._entries.mkdir(exist_ok=True)
        self.done: dict[int, dict[str, Any]] = {}
        self._look()
        self._check_input(shards)
        self._tidy()

    def shard_path(self, number: int) -> Path:
        """Of an output shard."""
        return self.folder / f"shard-{number:06d}.tar"

    def finish(self, entry: dict[str, Any]) -> None:
        """Notes that a shard is done; its tar is in place by now."""
        write_text(self._entries / f"{entry['shard']:06d}.json", json.dumps(entry))
        self.done[entry["shard"]] = _light(entry)

    def entries(self) -> Iterator[dict[str, Any]]:
        """Of finished shards, whole and in their order, read one after the other."""
        for number in sorted(self.done):
            yield json.loads((self._entries / f"{number:06d}.json").read_text(encoding="utf-8"))

    def write_manifest(self, shards: int) -> dict[str, Any]:
        """Writes manifest.json: counts by cause and reason, the shards, config and versions."""
        self._look()  # Ctrl-C may have come between an entry's rename and its note here
        entries = [self.done[number] for number in sorted(self.done)]
        totals = {name: dict(sorted(sum((Counter(entry[name]) for entry in entries), Counter()).items()))
                  for name in _COUNTS}
        manifest: dict[str, Any] = {
            "format": FORMAT, "complete": len(entries) == shards, "input_shards": shards,
            "samples": sum(entry["samples"] for entry in entries), "kept": sum(entry["kept"] for entry in entries),
            **totals,
            "shards": [{name: entry[name] for name in ("shard", "file", "source", "samples", "kept")}
                       for entry in entries],
            "config": self._config, "versions": versions(),
        }
        write_text(self.folder / "manifest.json", json.dumps(manifest, indent=1))
        return manifest

    def statistics(self) -> dict[str, Statistics]:
        """Of kept and dropped samples over all finished shards."""
        found = {"kept": Statistics(), "dropped": Statistics()}
        for entry in self.entries():
            for group, total in found.items():
                total.merge(Statistics.from_json(entry["statistics"][group]))
        return found

    def _look(self) -> None:
        """Notes entries that are on disk and not known yet."""
        for path in sorted(self._entries.glob("[0-9]*.json")):
            if int(path.stem) not in self.done:
                self.done[int(path.stem)] = _light(json.loads(path.read_text(encoding="utf-8")))

    def _check_config(self) -> None:
        path = self.folder / "config.json"
        if not path.is_file():
            if strangers := sorted(self.folder.glob("shard-*.tar")):  # `_tidy` would delete them
                raise ValueError(f"output: {self.folder} must be new or hold an earlier run, found {strangers[0].name} "
                                 "without a config.json; take another folder")
            write_text(path, json.dumps(self._config, indent=1))
            return
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = sorted(_differing(before, self._config, ""))
        if changed:
            raise ValueError(f"output: {self.folder} holds a run with another {', '.join(changed)}; "
                             "take another folder, or the same config")

    def _check_input(self, shards: Sequence[InputShard]) -> None:
        known = {shard.number: shard for shard in shards}
        for number, entry in self.done.items():
            if number not in known or known[number].fingerprint() != entry["fingerprint"]:
                raise ValueError(f"input: shard {number} must hold the files that it held when the run began "
                                 f"({entry['source']}); files were added or removed: take another output folder")

    def _tidy(self) -> None:
        """Deletes what was being written when a run was killed."""
        kept = {entry["file"] for entry in self.done.values()}
        for path in [*self.folder.glob(".*.tmp"), *self.folder.glob(".part-*"), *self._entries.glob(".*.tmp"),
                     *self.folder.glob("shard-*.tar")]:
            if path.name not in kept:
                path.unlink()


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """Holds the folder for this process alone; the system takes the lock back when the process dies.

    Raises:
        ValueError: another process has it.
        OSError: the folder cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+b") as file:
        try:
            _lock(file)
        except OSError as error:
            raise ValueError(f"output: {folder} must not be in use by another run, got a lock that is held") from error
        yield


def versions() -> dict[str, str]:
    """Of Python and the packages that make the samples."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _light(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name not in ("statistics", "thumbnails")}


def _lock(file: BinaryIO) -> None:
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        return
    import fcntl

    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _differing(first: Any, second: Any, where: str) -> Iterator[str]:  # noqa: ANN401 - any JSON
    if isinstance(first, dict) and isinstance(second, dict):
        for key in first.keys() | second.keys():
            yield from _differing(first.get(key), second.get(key), f"{where}.{key}" if where else str(key))
    elif first != second:
        yield where
