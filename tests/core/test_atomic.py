"""Files as one set: all or nothing, whatever fails, and what was there before stays."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from text2layer_core.atomic import write_bytes, write_file, write_files

NAMES = ["a", "b", "c"]


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text("utf-8") for path in folder.iterdir()}


def save(folder: Path, text: str) -> list[Path]:
    return write_files({folder / name: lambda path: path.write_text(text, "utf-8") and None for name in NAMES})


@pytest.fixture(params=["none", "one", "all"])
def before(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """What the folder holds: nothing, one file of the set, all of it."""
    for name in {"none": [], "one": ["b"], "all": NAMES}[request.param]:
        (tmp_path / name).write_text("old", "utf-8")
    return contents(tmp_path)


@pytest.fixture(params=["links", "no links"])
def _links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """File systems with and without a second name for a file."""
    if request.param == "no links":

        def refuse(*_: object) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)


@pytest.mark.usefixtures("_links", "before")
def test_a_set_is_written(tmp_path: Path) -> None:
    assert save(tmp_path, "new") == [tmp_path / name for name in NAMES]
    assert contents(tmp_path) == dict.fromkeys(NAMES, "new")


def locked(place: int) -> Callable[..., None]:
    """`os.replace` that fails for the file at that place, as Windows does for one that is open elsewhere."""
    replace = os.replace

    def fail(source: str | Path, target: str | Path) -> None:
        if NAMES[place] in (Path(source).name, Path(target).name):
            raise PermissionError(errno.EACCES, "Permission denied", str(source), None, str(target))
        replace(source, target)

    return fail


@pytest.mark.usefixtures("_links")
@pytest.mark.parametrize("place", range(3))
def test_a_rename_that_fails_takes_the_others_back(
    tmp_path: Path, before: dict[str, str], place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "replace", locked(place))
    with pytest.raises(PermissionError) as error:
        save(tmp_path, "new")
    assert error.value.filename == str(tmp_path / NAMES[place])
    assert contents(tmp_path) == before


def test_a_folder_in_the_way_takes_the_others_back(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old", "utf-8")
    (tmp_path / "c").mkdir()
    with pytest.raises(OSError, match=str(tmp_path / "c")):
        save(tmp_path, "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c"]
    assert (tmp_path / "a").read_text("utf-8") == "old"


@pytest.mark.parametrize("place", range(1, 10))
def test_ctrl_c_while_renaming_ends_with_a_whole_set(
    tmp_path: Path, before: dict[str, str], place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, calls = os.replace, iter(range(1, 100))

    def interrupted(source: str, target: str) -> None:
        if next(calls) == place:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    try:
        save(tmp_path, "new")
    except KeyboardInterrupt:
        assert place <= 3
    assert contents(tmp_path) == dict.fromkeys(NAMES, "new")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_nothing(tmp_path: Path, before: dict[str, str], error: BaseException) -> None:
    def fail(path: Path) -> None:
        path.write_text("half", "utf-8")
        raise error

    writers = {tmp_path / "a": lambda path: path.write_text("new", "utf-8") and None, tmp_path / "b": fail}
    with pytest.raises(type(error)) as raised:
        write_files(writers)
    assert contents(tmp_path) == before
    if isinstance(raised.value, OSError):
        assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(tmp_path / "b"))
        assert str(raised.value) == f"[Errno 28] No space left on device: '{tmp_path / 'b'}'"


def test_a_real_full_disk(tmp_path: Path) -> None:
    """Linux's device that is always full."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full")
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path / 'a'}'"):
        write_file(tmp_path / "a", lambda _: full.write_bytes(b"x") and None)
    assert not list(tmp_path.iterdir())


def test_a_long_name(tmp_path: Path) -> None:
    """255 bytes is what most file systems take; the temporary name is short."""
    path = tmp_path / ("x" * 255)
    write_file(path, lambda temporary: temporary.write_text("new", "utf-8") and None)
    assert contents(tmp_path) == {path.name: "new"}


def test_content_is_on_the_disk_before_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the folder after it: the order in which a power cut leaves the old file or the new one."""
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        events.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def renamed(source: str, target: str) -> None:
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    write_bytes(tmp_path / "a", b"new")
    assert events == ["file", "rename", "folder"] if os.name != "nt" else ["file", "rename"]
    assert contents(tmp_path) == {"a": "new"}


@pytest.fixture(autouse=True)
def _nothing_left(tmp_path: Path) -> Iterator[None]:
    yield
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
