"""Which model files the loader offers, and where they are."""

from __future__ import annotations

from pathlib import Path

import folder_paths

FOLDER = "text2layer"
BUNDLED = "text2layer-mini (bundled)"
NO_FILTER = "none"
_EXTENSIONS = {".safetensors"}


def register_model_folder() -> None:
    """Adds `models/text2layer` to the folders that extra_model_paths.yaml may have set, for safetensors alone."""
    default = str(Path(folder_paths.models_dir) / FOLDER)
    folder_paths.add_model_folder_path(FOLDER, default)
    folder_paths.folder_names_and_paths[FOLDER] = (folder_paths.get_folder_paths(FOLDER), set(_EXTENSIONS))


def model_names() -> list[str]:
    """The bundled model and every file in the model folders."""
    return [BUNDLED, *folder_paths.get_filename_list(FOLDER)]


def model_path(name: str) -> Path:
    """Where a model of `model_names` is.

    Raises:
        ValueError: for any other name; a path that leads out of the folders is never in the list.
    """
    if name == BUNDLED:
        from ..text2layer_core.checkpoint import bundled_model_path

        return bundled_model_path()
    return _listed_path("model", BUNDLED, name)


def filter_names() -> list[str]:
    """No filter, and every file in the model folders: which of them are quality filters is seen when they are read."""
    return [NO_FILTER, *folder_paths.get_filename_list(FOLDER)]


def filter_path(what: str, name: str) -> Path | None:
    """Where a filter of `filter_names` is; None for no filter.

    Raises:
        ValueError: for any other name; `what` is the input's.
    """
    return None if name == NO_FILTER else _listed_path(what, NO_FILTER, name)


def _listed_path(what: str, other: str, name: str) -> Path:
    """Where a file of the host's list is; a path that leads out of the folders is never in it."""
    if name not in folder_paths.get_filename_list(FOLDER):
        folders = ", ".join(folder_paths.get_folder_paths(FOLDER))
        raise ValueError(f"{what} must be {other!r} or a .safetensors file in {folders}, got {name!r}")
    return Path(folder_paths.get_full_path_or_raise(FOLDER, name))
