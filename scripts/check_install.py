"""What `pip install -r requirements.txt` would bring into two environments: `python -m scripts.check_install`.

Only pip's dry run is made, so nothing is changed; the second environment is made in a temporary folder. What pip would
install must be absent there: a pack that changes the version of a package breaks others.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.host.comfyui import PACK, find_hosts

REQUIREMENTS = PACK / "requirements.txt"
PINNED = {
    "transformers": "4.51.3",
    "huggingface_hub": "0.30.2",
    "numpy": "1.26.4",
    "safetensors": "0.5.3",
    "kornia": "0.8.0",
}
"""Of a host in spring 2025."""
ALONE = ("kornia",)  # without what it needs: that is PyTorch, which has no part in this


class PipError(RuntimeError):
    """pip failed; the message is what it printed."""


@dataclass(frozen=True)
class Environment:
    """A Python with packages.

    Attributes:
        name: for the report.
        python: its interpreter.
    """

    name: str
    python: Path

    def packages(self) -> dict[str, str]:
        """Name -> version of what is installed."""
        listed = json.loads(pip(self.python, "list", "--format", "json"))
        return {canonical(package["name"]): package["version"] for package in listed}

    def planned(self) -> dict[str, str]:
        """Name -> version of what pip would install."""
        found = pip(self.python, "install", "--dry-run", "--quiet", "--report", "-", "-r", str(REQUIREMENTS))
        packages = [package["metadata"] for package in json.loads(found)["install"]]
        return {canonical(package["name"]): package["version"] for package in packages}


def canonical(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pip(python: Path, *arguments: str) -> str:
    """What an environment's own pip prints.

    Raises:
        PipError: it fails.
    """
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(  # noqa: S603
        [str(python), "-m", "pip", *arguments], capture_output=True, text=True, check=False, env=kept
    )
    if done.returncode:
        raise PipError(done.stderr.strip())
    return done.stdout


@contextmanager
def pinned_environment() -> Iterator[Environment]:
    """One with the packages of `PINNED`, gone afterwards."""
    with TemporaryDirectory(prefix="text2layer-install-") as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / ("Scripts" if os.name == "nt" else "bin") / "python"
        pins = {name: f"{name}=={version}" for name, version in PINNED.items()}
        pip(python, "install", "--quiet", *(pin for name, pin in pins.items() if name not in ALONE))
        pip(python, "install", "--quiet", "--no-deps", *(pins[name] for name in ALONE))
        yield Environment("pinned", python)


def host_environment() -> Environment | None:
    """That of the newest ComfyUI found."""
    hosts = find_hosts()
    return Environment(f"ComfyUI {hosts[-1].version}", hosts[-1].python) if hosts else None


def changes_nothing(environment: Environment) -> bool:
    """Prints what pip would install; whether none of it is there already."""
    packages, planned = environment.packages(), environment.planned()
    python = subprocess.run(  # noqa: S603
        [str(environment.python), "--version"], capture_output=True, text=True, check=True
    ).stdout.strip()
    named = ", ".join(f"{name} {packages[canonical(name)]}" for name in PINNED if canonical(name) in packages)
    print(f"{environment.name}: {python}, {len(packages)} packages, among them {named or 'none of those checked'}")
    changed = {name: version for name, version in planned.items() if name in packages}
    print(f"  absent, would be installed: {_listed({n: v for n, v in planned.items() if n not in changed})}")
    print(f"  present, would be changed:  {_listed({n: f'{packages[n]} -> {v}' for n, v in changed.items()})}")
    return not changed


def _listed(packages: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(packages.items())) or "none"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the check: 0 if nothing would be changed, 1 if something would, 2 if it could not be made."""
    parser = argparse.ArgumentParser(prog="python -m scripts.check_install", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", choices=("host", "pinned"), help="one environment alone (default: both)")
    only = parser.parse_args(argv).only
    unchanged: list[bool] = []
    try:
        if only != "pinned":
            host = host_environment()
            if host is None:
                print("error: a ComfyUI with its own Python must be there (COMFYUI_PATH, COMFYUI_PYTHON), found none",
                      file=sys.stderr)
                return 2
            unchanged.append(changes_nothing(host))
        if only != "host":
            with pinned_environment() as pinned:
                unchanged.append(changes_nothing(pinned))
    except PipError as error:
        print(f"error: pip failed: {error}", file=sys.stderr)
        return 2
    return 0 if all(unchanged) else 1


if __name__ == "__main__":
    raise SystemExit(main())
