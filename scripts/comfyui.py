"""Finds ComfyUI and starts it with this pack linked in: `python -m scripts.comfyui [options of ComfyUI's main.py]`.

A ComfyUI is looked for in COMFYUI_PATH (several, separated as PATH is), else in the folder whose custom_nodes/ holds
this pack, else where comfy-cli puts one. `--list` prints what was found. Needs nothing but the standard library.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PACK = Path(__file__).resolve().parents[1]
LINK = "ComfyUI-Text2Layer"
_PYTHONS = (".venv/bin/python", "venv/bin/python", ".venv/Scripts/python.exe", "venv/Scripts/python.exe",
            "../python_embeded/python.exe")
"""Where a checkout has one of its own, the last in Windows' portable ComfyUI."""


@dataclass(frozen=True)
class Host:
    """A checkout of ComfyUI and the Python to run it with."""

    folder: Path
    python: Path

    @property
    def version(self) -> str:
        """As its own file says."""
        text = (self.folder / "comfyui_version.py").read_text(encoding="utf-8")
        found = re.search(r'__version__ = "(.+)"', text)
        return found[1] if found else "unknown"

    @property
    def version_tuple(self) -> tuple[int, ...]:
        """For comparisons."""
        return tuple(int(part) for part in re.findall(r"\d+", self.version)[:3])


def find_hosts() -> list[Host]:
    """Every checkout that has a Python, in the order in which they are looked for."""
    return [Host(folder, python) for folder in _checkouts() if (python := _python(folder)) is not None]


def missing_pythons() -> list[str]:
    """One line for every checkout that has none."""
    return [f"{folder} has no Python of its own (.venv): name one in COMFYUI_PYTHON"
            for folder in _checkouts() if _python(folder) is None]


def _checkouts() -> list[Path]:
    named = os.environ.get("COMFYUI_PATH")
    if named:
        candidates = [Path(name).expanduser() for name in named.split(os.pathsep) if name]
    elif PACK.parent.name == "custom_nodes":
        candidates = [PACK.parent.parent]
    else:
        home = Path.home() / "comfy"
        candidates = [home / "ComfyUI", *sorted(home.glob("ComfyUI-*"))]
    return [path.resolve() for path in candidates if (path / "main.py").is_file() and (path / "custom_nodes").is_dir()]


def _python(folder: Path) -> Path | None:
    named = os.environ.get("COMFYUI_PYTHON")
    candidates = [Path(named)] if named else [folder / name for name in _PYTHONS]
    return next((path for path in candidates if path.is_file()), None)


def _link(folder: Path) -> None:
    """Puts the pack into the host's custom nodes, if it is not there.

    Raises:
        OSError: there is another copy of it, or links are not allowed.
    """
    link = folder / "custom_nodes" / LINK
    if PACK.parent == link.parent:
        return
    if link.exists() and not link.is_symlink():
        raise OSError(f"{link} is another copy of this pack: move it away first")
    link.unlink(missing_ok=True)
    try:
        link.symlink_to(PACK, target_is_directory=True)
    except OSError as error:
        raise OSError(f"cannot link {PACK} to {link} ({error.strerror}): clone the pack there") from error


def main(arguments: list[str]) -> int:
    """Starts the first that is found and returns its exit status; 1 with one line where there is none."""
    hosts = find_hosts()
    for line in missing_pythons():
        print(line, file=sys.stderr)
    if arguments == ["--list"]:
        print("\n".join(f"{host.version} {host.folder}" for host in hosts))
        return 0
    if not hosts:
        print("no ComfyUI found (COMFYUI_PATH, an enclosing custom_nodes/, ~/comfy/ComfyUI); to get one: "
              "pip install comfy-cli && comfy install", file=sys.stderr)
        return 1
    try:
        _link(hosts[0].folder)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    try:
        return subprocess.call([str(hosts[0].python), "main.py", *arguments], cwd=hosts[0].folder)  # noqa: S603
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
