"""Two-layer samples as files, and the labels that people gave them."""

from __future__ import annotations

import csv
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from torch import Tensor

from text2layer_core.atomic import write_file
from train.csv_files import open_csv
from train.shards import Piece, decode_picture, folder_members, matching, tar_members

NEEDED = ("image.png", "mask.png", "background.png")
_MODES = {"image.png": "RGB", "background.png": "RGB", "foreground.png": "RGB", "mask.png": "L"}
_LABELS = {"good": True, "1": True, "bad": False, "0": False}


class SampleFiles:
    """Samples by key, in a folder or in tar files: KEY.image.png, KEY.mask.png, KEY.background.png, KEY.txt, KEY.json.

    Attributes:
        keys: of the complete samples, sorted. In a folder a key holds the subfolder; it ends at the name's first dot.
    """

    def __init__(self, data: str | Path) -> None:
        """Lists them.

        Args:
            data: a folder, searched with its subfolders for such files and for .tar, or a glob of .tar files.

        Raises:
            ValueError: there is no complete sample, a tar file cannot be read, or two hold one key.
        """
        self._members: dict[str, dict[str, Piece]] = {}
        root = Path(data).expanduser()
        if root.is_dir():
            for key, part, piece in folder_members(root):
                if piece.path.endswith(".tar"):
                    self._add_tar(Path(piece.path))
                else:
                    self._add(key, part, piece)
        else:
            for path in matching(str(data)):
                if path.suffix == ".tar":
                    self._add_tar(path)
        self.keys = sorted(key for key, parts in self._members.items() if parts.keys() >= set(NEEDED))
        if not self.keys:
            raise ValueError(f"data must hold samples with {', '.join(NEEDED)}, found none in {data}")

    def read(self, key: str, part: str) -> bytes | None:
        """The bytes of one file of a sample ("mask.png"), None where it has none.

        Raises:
            ValueError: it cannot be read any more.
        """
        piece = self._members.get(key, {}).get(part)
        if piece is None:
            return None
        try:
            return piece.read()
        except OSError as error:
            raise ValueError(f"sample {key} must hold a readable {part}, got {error}") from error

    def picture(self, key: str, part: str) -> Tensor:
        """A picture of a sample, (1, 3 or 1, H, W) in [0, 1].

        Raises:
            ValueError: it is not there or cannot be read.
        """
        data = self.read(key, part)
        if data is None:
            raise ValueError(f"sample {key} must hold {part}, found none")
        try:
            return decode_picture(data, _MODES[part])
        except ValueError as error:
            raise ValueError(f"sample {key} must hold a readable {part}, got {error}") from error

    def _add_tar(self, path: Path) -> None:
        before = set(self._members)
        try:
            for key, part, piece in tar_members(path):
                name = key.removeprefix("./")
                if name in before:
                    raise ValueError(f"every key must be in one shard, got {name}.{part} again in {path}")
                self._add(key, part, piece)
        except tarfile.TarError as error:
            raise ValueError(f"a shard must be an uncompressed tar file, got {path}: {error}") from error

    def _add(self, key: str, part: str, piece: Piece) -> None:
        if part and not key.endswith("/"):
            self._members.setdefault(key.removeprefix("./"), {})[part] = piece


def read_labels(path: Path) -> dict[str, bool]:
    """Labels of a CSV: key -> whether the sample is good, in the file's order; a later row counts.

    Columns `key,label`, or `path,label` where a path names any file of the sample (`cats/0001.image.png`); others are
    left alone. A label is good, bad, 1 or 0.

    Raises:
        ValueError: no such file, no CSV, a column is missing, or a label is something else; the line is named.
    """
    if not path.is_file():
        raise ValueError(f"labels must be a CSV file, found none at {path}")
    found: dict[str, bool] = {}
    with open_csv(path) as rows:
        columns = rows.fieldnames or []
        name = next((each for each in ("key", "path") if each in columns), None)
        if name is None or "label" not in columns:
            raise ValueError(f"{path} must have the columns key,label or path,label, got {','.join(columns) or 'none'}")
        for row in rows:
            label = (row["label"] or "").strip().lower()
            if label not in _LABELS or not row[name]:
                raise ValueError(f"{path}, line {rows.line_num}: label must be good, bad, 1 or 0 of a named sample, "
                                 f"got {row[name]!r}, {row['label']!r}")
            place = PurePosixPath(row[name])
            key = str(place.parent / place.name.partition(".")[0]) if name == "path" else row[name]
            found.pop(key, None)
            found[key] = _LABELS[label]
    return found


def write_labels(path: Path, labels: Mapping[str, bool]) -> None:
    """Writes `key,label` with good and bad; not even a power cut leaves half a file."""
    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["key", "label"])
            rows.writerows([key, "good" if good else "bad"] for key, good in labels.items())

    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, write)
