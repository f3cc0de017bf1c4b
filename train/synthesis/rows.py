"""One sample on its way through the stages, and tables of samples as Ray Data passes them on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

import numpy as np

from train.shards import Piece

Table: TypeAlias = Any  # pyarrow.Table, which has no types

PARTS = ("image", "mask", "hole", "blend", "background", "foreground", "thumbnail")


@dataclass(kw_only=True)
class Sample:
    """A sample and what is known of it so far.

    Attributes:
        shard: number of the input shard, and of the output shard.
        index: place in the shard.
        total: samples in the shard.
        name: of the source, for provenance.
        pieces: where its files are: part -> bytes of a file.
        caption: of the picture.
        refused: why it could not be read; "" where it could.
        dropped: why it is not kept; "" so far.
        converted: what decoding had to convert.
        window: (x, y) of the crop that is inpainted.
        facts: figures and provenance for the sample's JSON.
        began: when its first model began, seconds of the clock; 0 before.
        parts: name of `PARTS` -> (H, W) or (H, W, 3) uint8, or the bytes of an encoded file.
    """

    shard: int
    index: int
    total: int
    name: str = ""
    pieces: dict[str, Piece] = field(default_factory=dict)
    caption: str | None = None
    refused: str = ""
    dropped: str = ""
    converted: list[str] = field(default_factory=list)
    window: tuple[int, int] = (0, 0)
    facts: dict[str, Any] = field(default_factory=dict)
    began: float = 0.0
    parts: dict[str, np.ndarray | bytes] = field(default_factory=dict)

    @property
    def alive(self) -> bool:
        """Whether further stages have work with it."""
        return not (self.refused or self.dropped)

    @property
    def key(self) -> str:
        """Its name in the output, unique in the folder."""
        return f"{self.shard:06d}{self.index:06d}"

    def array(self, part: str) -> np.ndarray:
        """A decoded part.

        Raises:
            TypeError: it is not there, or encoded.
        """
        found = self.parts.get(part)
        if not isinstance(found, np.ndarray):
            raise TypeError(f"part {part} must be an array by now, got {type(found).__name__}")
        return found


_FIELDS = tuple(item.name for item in fields(Sample) if item.name != "parts")


def to_table(samples: Sequence[Sample]) -> Table:
    """A table of one row a sample: a JSON text, and a binary column for each part."""
    import pyarrow as pa

    columns: dict[str, Any] = {"sample": pa.array([_described(sample) for sample in samples], pa.large_string())}
    for part in PARTS:
        values = [_bytes(sample.parts.get(part)) for sample in samples]
        columns[part] = pa.array(values, pa.large_binary())
    return pa.table(columns)


def from_table(table: Table) -> list[Sample]:
    """The samples of a table; arrays are views of its memory, not to be written to."""
    columns = {part: table.column(part) for part in PARTS}
    samples: list[Sample] = []
    for row, text in enumerate(table.column("sample")):
        described = json.loads(text.as_py())
        shapes: dict[str, list[int] | None] = described.pop("shapes")
        described["window"] = tuple(described["window"])
        described["pieces"] = {name: Piece(*piece) for name, piece in described["pieces"].items()}
        parts: dict[str, np.ndarray | bytes] = {}
        for part, shape in shapes.items():
            buffer = columns[part][row].as_buffer()
            parts[part] = buffer.to_pybytes() if shape is None else np.frombuffer(buffer, np.uint8).reshape(shape)
        samples.append(Sample(**described, parts=parts))
    return samples


def _described(sample: Sample) -> str:
    values = {name: getattr(sample, name) for name in _FIELDS}
    shapes = {name: list(part.shape) if isinstance(part, np.ndarray) else None for name, part in sample.parts.items()}
    return json.dumps(values | {"shapes": shapes})


def _bytes(part: np.ndarray | bytes | None) -> bytes | None:
    """As bytes, not the array's memoryview: pyarrow (seen with 26.0) never lets go of one."""
    return part.tobytes() if isinstance(part, np.ndarray) else part
