"""Where captioned pictures are: folders and tars, cut into shards; a shard is what a run finishes or repeats."""

from __future__ import annotations

import hashlib
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from train.csv_files import open_csv
from train.shards import Piece, folder_members, matching, tar_members
from train.synthesis.images import SUFFIXES, Refused
from train.synthesis.rows import Sample

if TYPE_CHECKING:
    from train.synthesis.config import InputConfig

MOST_BYTES = 1 << 30  # of a file: more than any picture within `config.PILLOW_MEGAPIXELS` needs
LAYERED = ("image.png", "background.png", "mask.png")  # what a layered sample must have
_LAYERED_PARTS = {"image.png": "picture", "background.png": "background", "mask.png": "mask",
                  "foreground.png": "foreground", "txt": "txt", "json": "json"}


class Row(NamedTuple):
    """A sample of a folder, as short as can be: a million of them are held at once.

    Attributes:
        name: path in the folder; of layered samples without what follows the key.
        caption: from a CSV; None reads the text beside it.
        parts: of layered samples: the files that are there.
    """

    name: str
    caption: str | None = None
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class InputShard:
    """A part of the input.

    Attributes:
        number: of the shard.
        path: of the folder, or of the tar.
        rows: of a folder; None of a tar, which whoever reads it indexes.
    """

    number: int
    path: str
    rows: tuple[Row, ...] | None = None

    @property
    def name(self) -> str:
        """The tar, or the folder and the shard's first sample."""
        return f"{self.path}: {self.rows[0].name}" if self.rows else self.path

    def fingerprint(self) -> str:
        """Changes when the shard's list of files does (of a tar: its name and size)."""
        if self.rows is None:
            path = Path(self.path)
            return hashlib.sha256(f"{path.name} {path.stat().st_size}".encode()).hexdigest()[:16]
        return hashlib.sha256(json.dumps(self.rows).encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """As text, for the workers."""
        return json.dumps([self.number, self.path, self.rows])

    @classmethod
    def from_json(cls, text: str) -> InputShard:
        """Undoes `to_json`."""
        number, path, rows = json.loads(text)
        return cls(number, path, rows and tuple(Row(name, caption, tuple(parts)) for name, caption, parts in rows))


def list_shards(config: InputConfig) -> list[InputShard]:
    """The shards in their order, the same in every run over the same files.

    Raises:
        ValueError: nothing there, or no CSV, or one without the columns.
    """
    root = Path(config.path).expanduser()
    if config.kind == "shards" or (config.kind == "layered" and not root.is_dir()):
        paths = [path for path in matching(config.path) if path.is_file()]
        if not paths:
            raise ValueError(f"input: path must be a glob of tar files, found none for {config.path!r}")
        return [InputShard(number, str(path.absolute())) for number, path in enumerate(paths)]
    if not root.is_dir():
        raise ValueError(f"input: path must be a folder of pictures, found none at {root}")
    rows = _layered_rows(root) if config.kind == "layered" else _picture_rows(root, config)
    if not rows:
        raise ValueError(f"input: path must hold {'layered samples' if config.kind == 'layered' else 'pictures'}, "
                         f"found none in {root}")
    size = config.samples_per_shard
    return [InputShard(number, str(root.absolute()), tuple(rows[start : start + size]))
            for number, start in enumerate(range(0, len(rows), size))]


def plan(shard: InputShard, config: InputConfig) -> list[Sample]:
    """The samples of a shard, not read yet; at least one, so that an empty or broken shard is seen to be done."""
    samples = _tar_samples(shard, config) if shard.rows is None else [
        _layered_sample(row.name, {part: Piece(f"{shard.path}/{row.name}.{part}") for part in row.parts})
        if config.kind == "layered" else _picture_sample(shard.path, row, config) for row in shard.rows
    ]
    for index, sample in enumerate(samples):
        sample.shard, sample.index, sample.total = shard.number, index, len(samples)
    return samples


def read(sample: Sample, part: str) -> bytes:
    """A part's bytes.

    Raises:
        Refused: "missing_file", "too_large" (above `MOST_BYTES`) or "corrupt" (cut off).
    """
    piece = sample.pieces[part]
    try:
        if max(piece.length, Path(piece.path).stat().st_size if piece.length < 0 else 0) > MOST_BYTES:
            raise Refused("too_large")
        data = piece.read()
    except OSError as error:
        raise Refused("missing_file") from error
    if piece.length >= 0 and len(data) < piece.length:
        raise Refused("corrupt")
    return data


def read_caption(sample: Sample) -> str:
    """The caption: from the CSV, the text, or the JSON's key caption; whatever comes of it is UTF-8.

    Raises:
        Refused: "missing_caption".
    """
    caption = sample.caption
    if caption is None and "txt" in sample.pieces:
        caption = _text(sample)
    if caption is None and "json" in sample.pieces:
        caption = _record(sample).get("caption")
    caption = " ".join(caption.split()).encode(errors="replace").decode() if isinstance(caption, str) else ""
    if not caption:
        raise Refused("missing_caption")
    return caption


def read_origin(sample: Sample) -> dict[str, Any]:
    """What a sample's own JSON says of where it is from (img2dataset: url, key, licence, ...); empty without one."""
    record = _record(sample) if "json" in sample.pieces else {}
    return {name: value for name, value in record.items() if name not in ("caption", "exif")}


def _text(sample: Sample) -> str | None:
    try:
        return read(sample, "txt").decode("utf-8", errors="replace")
    except Refused:
        return None


def _record(sample: Sample) -> dict[str, Any]:
    try:
        found = json.loads(read(sample, "json"))
    except (ValueError, RecursionError, Refused):
        return {}
    return found if isinstance(found, dict) else {}


def _picture_rows(root: Path, config: InputConfig) -> list[Row]:
    names = {path.relative_to(root).as_posix() for path in root.rglob("*")
             if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()}
    if config.captions is None:
        return [Row(name) for name in sorted(names)]
    captions = _read_csv(Path(config.captions).expanduser(), config)
    return [Row(name, caption) for name in sorted(names | captions.keys()) for caption in captions.get(name, [""])]


def _read_csv(path: Path, config: InputConfig) -> dict[str, list[str]]:
    """Path -> its captions; a picture with two rows makes two samples."""
    if not path.is_file():
        raise ValueError(f"input: captions must be a CSV file, found none at {path}")
    found: dict[str, list[str]] = {}
    with open_csv(path) as rows:
        for column in (config.path_column, config.caption_column):
            if column not in (rows.fieldnames or ()):
                raise ValueError(f"input: {path.name} must have a column {column}, "
                                 f"has {', '.join(rows.fieldnames or ())}")
        for row in rows:
            if row[config.path_column]:
                name = Path(row[config.path_column]).as_posix()
                found.setdefault(name, []).append(row[config.caption_column] or "")
    return found


def _picture_sample(root: str, row: Row, config: InputConfig) -> Sample:
    path = Path(root) / row.name
    sample = Sample(shard=0, index=0, total=0, name=row.name, pieces={"picture": Piece(str(path))})
    sample.caption = row.caption
    if config.captions is None:
        sample.pieces["txt"] = Piece(str(path.with_suffix(".txt")))
    return sample


def _layered_rows(root: Path) -> list[Row]:
    """Samples by key; files of another kind are passed over."""
    samples: dict[str, list[str]] = {}
    for name, part, _ in folder_members(root):
        if part in _LAYERED_PARTS:
            samples.setdefault(name, []).append(part)
    return [Row(name.removeprefix("./"), None, tuple(parts)) for name, parts in samples.items()
            if any(part in LAYERED for part in parts)]


def _layered_sample(name: str, parts: dict[str, Piece]) -> Sample:
    if any(part not in parts for part in LAYERED):
        return _refused(name, "incomplete")
    pieces = {_LAYERED_PARTS[part]: piece for part, piece in parts.items() if part in _LAYERED_PARTS}
    return Sample(shard=0, index=0, total=0, name=name, pieces=pieces)


def _tar_samples(shard: InputShard, config: InputConfig) -> list[Sample]:
    members: dict[str, dict[str, Piece]] = {}
    broken = False
    try:
        for key, part, piece in tar_members(Path(shard.path)):
            members.setdefault(key.removeprefix("./"), {})[part.lower()] = piece
    except (tarfile.TarError, OSError):
        broken = True
    make = _layered_sample if config.kind == "layered" else _tar_sample
    samples = [make(name, parts) for name, parts in members.items()]
    if broken or not samples:
        samples.append(_refused(Path(shard.path).name, "corrupt_shard" if broken else "empty_shard"))
    return samples


def _tar_sample(name: str, parts: dict[str, Piece]) -> Sample:
    picture = next((parts[kind] for kind in ("jpg", "jpeg", "png", "webp") if kind in parts), None)
    if picture is None:
        return _refused(name, "missing_picture")
    pieces = {"picture": picture} | {kind: parts[kind] for kind in ("txt", "json") if kind in parts}
    return Sample(shard=0, index=0, total=0, name=name, pieces=pieces)


def _refused(name: str, cause: str) -> Sample:
    return Sample(shard=0, index=0, total=0, name=name, refused=cause)
