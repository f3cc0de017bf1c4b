"""scripts/comfyui.py on folders that look like checkouts of ComfyUI."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scripts import comfyui


def checkout(folder: Path, version: str, python: str = ".venv/bin/python") -> Path:
    """What tells a checkout: main.py, custom_nodes and its version; and a Python that can be run."""
    (folder / "custom_nodes").mkdir(parents=True)
    (folder / "main.py").write_text("import sys; sys.exit(len(sys.argv))", encoding="utf-8")
    (folder / "comfyui_version.py").write_text(f'__version__ = "{version}"', encoding="utf-8")
    if python:
        program = folder / python
        program.parent.mkdir(parents=True)
        program.write_text('#!/bin/sh\nexec python3 "$@"\n', encoding="utf-8")
        program.chmod(0o755)
    return folder


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("COMFYUI_PATH", "COMFYUI_PYTHON"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)


def test_named_ones_come_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [checkout(tmp_path / "b", "0.4.0", "venv/bin/python"), checkout(tmp_path / "a", "0.3.70")]
    names = [str(folders[0]), str(tmp_path / "absent"), str(folders[1])]
    monkeypatch.setenv("COMFYUI_PATH", os.pathsep.join(names))
    found = comfyui.find_hosts()
    assert [(host.folder, host.version_tuple) for host in found] == [(folders[0], (0, 4, 0)), (folders[1], (0, 3, 70))]
    assert [host.python.relative_to(host.folder).parts[0] for host in found] == ["venv", ".venv"]


@pytest.mark.parametrize("python", [".venv/Scripts/python.exe", "../python_embeded/python.exe"])
def test_pythons_of_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python: str) -> None:
    folder = checkout(tmp_path / "portable" / "ComfyUI", "0.33.0", python)
    monkeypatch.setenv("COMFYUI_PATH", str(folder))
    assert [host.python for host in comfyui.find_hosts()] == [folder / python]


def test_those_of_comfy_cli_are_found_by_default(tmp_path: Path) -> None:
    folders = [checkout(tmp_path / "comfy" / name, "0.33.0") for name in ("ComfyUI", "ComfyUI-0.3.64")]
    assert [host.folder for host in comfyui.find_hosts()] == folders


def test_the_one_around_the_pack_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    around = checkout(tmp_path / "mine", "0.33.0")
    checkout(tmp_path / "comfy" / "ComfyUI", "0.33.0")
    monkeypatch.setattr(comfyui, "PACK", around / "custom_nodes" / "pack")
    assert [host.folder for host in comfyui.find_hosts()] == [around]


def test_one_without_a_python_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkout(tmp_path / "comfy" / "ComfyUI", "0.33.0", python="")
    assert comfyui.find_hosts() == []
    message = f"{folder} has no Python of its own (.venv): name one in COMFYUI_PYTHON"
    assert comfyui.missing_pythons() == [message]
    assert comfyui.main([]) == 1
    assert capsys.readouterr().err.startswith(f"{message}\nno ComfyUI found (COMFYUI_PATH, ")
    named = checkout(tmp_path / "other", "0.33.0") / ".venv" / "bin" / "python"
    monkeypatch.setenv("COMFYUI_PYTHON", str(named))
    assert [host.python for host in comfyui.find_hosts()] == [named]
    assert comfyui.missing_pythons() == []


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for Python is a shell script")
def test_it_links_the_pack_and_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = checkout(tmp_path / "comfy" / "ComfyUI", "0.33.0")
    assert comfyui.main(["--list"]) == 0
    assert capsys.readouterr().out == f"0.33.0 {folder}\n"
    assert comfyui.main(["--cpu", "--quick-test-for-ci"]) == 3  # the stand-in for main.py counts what it is given
    link = folder / "custom_nodes" / comfyui.LINK
    assert link.resolve() == comfyui.PACK
    link.unlink()
    link.mkdir()
    assert comfyui.main([]) == 1
    assert capsys.readouterr().err == f"error: {link} is another copy of this pack: move it away first\n"
