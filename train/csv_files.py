"""CSV files of captions and labels, as people and spreadsheets write them."""

from __future__ import annotations

import csv
import io
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def open_csv(path: Path) -> Generator[csv.DictReader[str]]:
    """The rows of a CSV in UTF-8, with or without a byte order mark.

    Args:
        path: of the file.

    Raises:
        ValueError: another encoding, or no CSV; file and line are named.
        OSError: the file cannot be read.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: a CSV must be in UTF-8, got the byte "
                         f"0x{error.object[error.start]:02x}") from error
    rows = csv.DictReader(io.StringIO(text, newline=""))
    try:
        yield rows
    except csv.Error as error:
        raise ValueError(f"{path}, line {rows.reader.line_num}: must be a row of a CSV, got {error}") from error
