"""Data that learned quality filters let through (paper, data step 5), in place of labels that only a test bed knows."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from text2layer_core.atomic import write_text
from text2layer_core.compositing import blend
from text2layer_core.quality import QualityFilter, decide_quality, load_quality_filter, score_samples
from train.data import Source, expand, fingerprint
from train.latents import weights_digest
from train.samples import LayeredBatch

_BLOCK = 64
_MOST_BLOCKS = 50


@dataclass(frozen=True, kw_only=True)
class FilterFiles:
    """The two filters' files, as `python -m train.train_quality` makes them."""

    mask: str
    inpainting: str


def load_filters(files: FilterFiles, device: torch.device | str = "cpu") -> dict[str, QualityFilter]:
    """Kind -> filter.

    Raises:
        ValueError: a file is no filter, or one of the other kind.
    """
    return {kind: load_quality_filter(expand(path), device, kind=kind) for kind, path in vars(files).items()}


class FilteredSource:
    """The samples of a source that every filter calls good, in the source's order.

    Which index of the source sample i is depends on the source and the filters alone: it is found once, as far as it
    is asked for, and kept in a file.
    """

    def __init__(
        self, source: Source, filters: Mapping[str, QualityFilter], cache: Path, device: torch.device | str = "cpu"
    ) -> None:
        """Nothing is judged yet.

        Args:
            source: what is filtered; without end.
            filters: kind -> filter.
            cache: JSON file of the indices found so far; one of other samples or filters starts afresh.
            device: where samples are drawn and judged.
        """
        self._source, self._filters, self._path, self._device = source, dict(filters), cache, device
        self.size = source.size
        self._key: list[Any] = [fingerprint(source), source.size,
                                {kind: [f.threshold, weights_digest(f)] for kind, f in filters.items()}]
        self._kept, self._seen = self._stored()

    @property
    def share(self) -> float:
        """Of the samples judged so far, those kept; 1 before the first."""
        return len(self._kept) / self._seen if self._seen else 1.0

    def batch(self, start: int, count: int, device: torch.device | str = "cpu") -> LayeredBatch:
        """Samples start, ..., start + count - 1."""
        rows, first, last = self._span(start, count)
        batch = self._source.batch(first, last - first, device)
        chosen = [row - first for row in rows]
        return LayeredBatch(batch.stack[chosen], [batch.captions[row] for row in chosen])

    def captions(self, start: int, count: int) -> list[str]:
        """Their captions alone."""
        rows, first, last = self._span(start, count)
        captions = self._source.captions(first, last - first)
        return [captions[row - first] for row in rows]

    def index(self, sample: int) -> int:
        """Which of the source's samples it is."""
        self._fill(sample + 1)
        return self._kept[sample]

    def _span(self, start: int, count: int) -> tuple[list[int], int, int]:
        """The source's indices, and the range that holds them."""
        self._fill(start + count)
        rows = self._kept[start : start + count]
        return rows, rows[0], rows[-1] + 1

    def _fill(self, count: int) -> None:
        """Judges until that many are kept.

        Raises:
            ValueError: the filters keep nothing of very many samples in a row.
        """
        if len(self._kept) >= count:
            return
        since = 0
        with tqdm(total=count, initial=len(self._kept), desc="filters", unit="image", file=sys.stderr) as bar:
            while len(self._kept) < count:
                found = self._judged(self._seen)
                self._kept += found
                self._seen += _BLOCK
                since = 0 if found else since + 1
                bar.update(len(found))
                if since == _MOST_BLOCKS:
                    raise ValueError(f"filters must keep some samples, got none of {_MOST_BLOCKS * _BLOCK}")
        self._store()

    def _judged(self, start: int) -> list[int]:
        """Indices of a block that are kept."""
        stack = self._source.batch(start, _BLOCK, self._device).stack
        foreground, background, mask = stack.split([3, 3, 1], dim=1)
        scores = score_samples(blend(foreground, background, mask), mask, background, self._filters)
        thresholds = {kind: each.threshold for kind, each in self._filters.items()}
        return [start + row for row in range(_BLOCK)
                if decide_quality({kind: found[row] for kind, found in scores.items()}, thresholds).keep]

    def _stored(self) -> tuple[list[int], int]:
        try:
            stored: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
            if stored["key"] == json.loads(json.dumps(self._key)):
                return list(stored["kept"]), int(stored["seen"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return [], 0

    def _store(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self._path, json.dumps({"key": self._key, "seen": self._seen, "kept": self._kept}))
