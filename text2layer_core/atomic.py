"""Files that appear whole or not at all, alone or as a set; one that has appeared outlasts a power cut."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from torch import Tensor

Writer = Callable[[Path], None]
TEMPORARY = ".text2layer-*.tmp"  # what a process that was killed while it wrote leaves beside its files


def write_files(writers: Mapping[Path, Writer]) -> list[Path]:
    """Writes some files as one set: all of them, or none.

    Each is written onto the disk under a temporary name beside its own; at the end all are renamed together. If a
    rename fails (on Windows, a file that another program has open), those already renamed are taken back.

    Args:
        writers: what writes the file of each path, given the name to write to; the folders exist.

    Returns:
        The paths.

    Raises:
        OSError: a file cannot be written; it names the file. What was there before is there still.
    """
    paths = list(writers)
    with _staged(paths) as temporaries:
        for temporary, path in zip(temporaries, paths, strict=True):
            with _naming(path):
                writers[path](temporary)
                _sync(temporary)
    for folder in {path.parent for path in paths}:
        _sync_folder(folder)
    return paths


def write_file(path: str | Path, write: Writer) -> None:
    """Writes one file; see `write_files`."""
    write_files({Path(path): write})


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes one file; see `write_files`."""

    def write(file: Path) -> None:
        file.write_bytes(data)

    write_file(path, write)


def write_text(path: str | Path, text: str) -> None:
    """Writes one UTF-8 file; see `write_files`."""
    write_bytes(path, text.encode())


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes one safetensors file, contiguous tensors on the CPU; see `write_files`. Its folder is made if need be."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(file: Path) -> None:
        file.touch()
        mode = file.stat().st_mode  # safetensors' own is for the owner alone
        save_file(dict(tensors), file, dict(metadata))
        file.chmod(mode)

    try:
        write_file(path, write)
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from error


@contextmanager
def _staged(paths: Sequence[Path]) -> Generator[list[Path], None, None]:
    """Temporary names beside the paths, renamed together at the end, removed on an error or Ctrl-C."""
    temporaries = [_beside(path) for path in paths]
    try:
        yield temporaries
        _rename_all(temporaries, paths)
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Else a power cut could leave the new name with none of the content."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Makes renames in it last, where the system has that: Windows and some network file systems have not."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _beside(path: Path) -> Path:
    return path.with_name(TEMPORARY.replace("*", secrets.token_hex(8)))


@contextmanager
def _naming(path: Path) -> Generator[None, None, None]:
    """Errors of the operating system name the file that was asked for, not a temporary one, or none at all."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def _rename_all(temporaries: Sequence[Path], paths: Sequence[Path]) -> None:
    kept: dict[Path, Path] = {}
    renamed: list[Path] = []
    try:
        for temporary, path in zip(temporaries, paths, strict=True):
            with _naming(path):
                if len(paths) > 1 and path.is_file():
                    kept[path] = _keep(path)
                temporary.replace(path)
            renamed.append(path)
    except OSError:
        _undo(renamed, kept)
        raise
    except KeyboardInterrupt:  # every file is complete by now: end with the whole set, not with a part of it
        for temporary, path in zip(temporaries, paths, strict=True):
            if temporary.exists():
                temporary.replace(path)
        _forget(kept)
        raise
    _forget(kept)


def _keep(path: Path) -> Path:
    """A second name of an old file; where the file system has no such thing, the file goes there."""
    backup = _beside(path)
    try:
        backup.hardlink_to(path)
    except OSError:
        path.replace(backup)
    return backup


def _undo(renamed: Sequence[Path], kept: Mapping[Path, Path]) -> None:
    """As it was before, as far as the system lets us; an old file that cannot go back stays under its second name."""
    for path in renamed:
        if path not in kept:
            with suppress(OSError):
                path.unlink()
    for path, backup in kept.items():
        with suppress(OSError):
            if path in renamed or not path.exists():
                backup.replace(path)
            else:
                backup.unlink()


def _forget(kept: Mapping[Path, Path]) -> None:
    for backup in kept.values():
        backup.unlink(missing_ok=True)
