"""Where layered files lie in the host's folders, and what is told of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.v0_0_2 import io

_EXTENSIONS = (".psd", ".ora")
_BLOCK = 2**20


@dataclass(frozen=True)
class SavePlace:
    """Where the next file goes.

    Attributes:
        folder: it exists.
        subfolder: the same within the output folder, as the host's pages name it.
        stem: the file's name without its extension, with the counter.
    """

    folder: Path
    subfolder: str
    stem: str


def save_place(prefix: str, canvas: tuple[int, int]) -> SavePlace:
    """The host's own counter names.

    Raises:
        ValueError: the prefix leads out of the output folder, or holds no name.
    """
    output = folder_paths.get_output_directory()
    root = Path(os.path.abspath(output))  # noqa: PTH100 - as the host does, which follows no links
    if not Path(os.path.abspath(root / prefix)).is_relative_to(root):  # noqa: PTH100
        raise ValueError(f"filename_prefix must stay within the output folder, got {prefix!r}")
    if not prefix or prefix.endswith(("/", "\\")) or Path(prefix).name in ("", "."):
        raise ValueError(f"filename_prefix must hold a name, got {prefix!r}")
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, output, *canvas)
    return SavePlace(Path(folder), subfolder, f"{name}_{counter:05}_")


def metadata(cls: type[io.ComfyNode]) -> dict[str, str]:
    """The prompt and the workflow, as core's Save Image stores them; nothing with --disable-metadata."""
    from comfy.cli_args import args

    if args.disable_metadata:
        return {}
    prompt, more = cls.hidden.prompt, cls.hidden.extra_pnginfo or {}
    values = {"prompt": prompt, **more} if prompt is not None else dict(more)
    return {key: json.dumps(value) for key, value in values.items()}


def shown(paths: Sequence[Path], subfolder: str, cls: type[io.ComfyNode]) -> dict[str, Any]:
    """The files, for the history; pictures are shown, all names are written on the node."""
    from server import PromptServer

    files = [{"filename": path.name, "subfolder": subfolder, "type": "output"} for path in paths]
    text = "\n".join(path.name for path in paths)
    PromptServer.instance.send_progress_text(text, cls.hidden.unique_id)
    pictures = [file for file in files if file["filename"].endswith(".png")]
    return {"files": files, "text": (text,), **({"images": pictures} if pictures else {})}


def document_names() -> list[str]:
    """The layered files in the input folder itself."""
    folder = Path(folder_paths.get_input_directory())
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.suffix.lower() in _EXTENSIONS and path.is_file())


def document_path(name: str) -> Path:
    """Where a file of `document_names` is.

    Raises:
        ValueError: for any other name; a path that leads out of the folder is never in the list.
    """
    folder = folder_paths.get_input_directory()
    if name not in document_names():
        raise ValueError(f"file must be a .psd or .ora file in {folder}, got {name!r}")
    return Path(folder) / name


def fingerprint(path: Path) -> str:
    """Of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
