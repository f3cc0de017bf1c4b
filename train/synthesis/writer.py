"""Finished samples into WebDataset shards; a shard appears whole, then its entry, and only then it counts as done."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from text2layer_core.atomic import write_file
from train.synthesis.manifest import Output
from train.synthesis.statistics import Statistics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from train.synthesis.inputs import InputShard
    from train.synthesis.rows import Sample

_FILES = ("image", "background", "mask", "foreground")
_OWNER = "text2layer"


@dataclass
class _Kept:
    """A sample in the spool: its caption and facts, and where its files are."""

    key: str
    caption: str
    facts: dict[str, Any]
    spans: dict[str, tuple[int, int]]


@dataclass
class _OpenShard:
    """A shard whose samples arrive, in any order; their files wait on disk, not in memory."""

    spool: Path
    seen: set[int] = field(default_factory=set)
    kept: dict[int, _Kept] = field(default_factory=dict)
    counts: dict[str, Counter[str]] = field(
        default_factory=lambda: {name: Counter() for name in ("refused", "converted", "dropped")})
    statistics: dict[str, Statistics] = field(default_factory=lambda: {"kept": Statistics(), "dropped": Statistics()})
    thumbnails: dict[str, dict[int, bytes]] = field(default_factory=dict)


class ShardWriter:
    """Collects samples and writes a shard as soon as it is whole; shards come out the same in whatever order."""

    def __init__(self, output: Output, shards: Sequence[InputShard], sheet: int) -> None:
        """Writes into a folder.

        Args:
            output: the folder.
            shards: the input.
            sheet: pictures that the report shows of each reason.
        """
        self._output, self._sheet = output, sheet
        self._shards = {shard.number: shard for shard in shards}
        self._open: dict[int, _OpenShard] = {}

    def add(self, sample: Sample) -> bool:
        """Takes a sample; whether it is a new one (a worker that died may deliver twice).

        Raises:
            OSError: the disk is full, or otherwise unwilling.
        """
        number = sample.shard
        if number in self._output.done:
            return False
        shard = self._open.get(number)
        if shard is None:
            shard = self._open[number] = _OpenShard(self._output.folder / f".part-{number:06d}")
        if sample.index in shard.seen:
            return False
        self._take(shard, sample)
        shard.seen.add(sample.index)
        if len(shard.seen) == sample.total:
            self._finish(number, shard)
        return True

    def _take(self, shard: _OpenShard, sample: Sample) -> None:
        if sample.refused:
            shard.counts["refused"][sample.refused] += 1
            return
        shard.counts["converted"].update(sample.converted)
        shard.statistics["dropped" if sample.dropped else "kept"].add(sample)
        if sample.dropped:
            shard.counts["dropped"][sample.dropped] += 1
        else:
            facts = {**sample.facts, "caption": sample.caption}
            shard.kept[sample.index] = _Kept(sample.key, sample.caption or "", facts, _spool(shard.spool, sample))
        picture = sample.parts.get("thumbnail")
        if isinstance(picture, bytes):
            self._keep_thumbnail(shard.thumbnails.setdefault(sample.dropped or "kept", {}), sample.index, picture)

    def _keep_thumbnail(self, thumbnails: dict[int, bytes], index: int, picture: bytes) -> None:
        """The first ones of the shard, in whatever order they come."""
        thumbnails[index] = picture
        if len(thumbnails) > self._sheet:
            del thumbnails[max(thumbnails)]

    def _finish(self, number: int, shard: _OpenShard) -> None:
        import base64

        path = self._output.shard_path(number)
        if shard.kept:
            write_file(path, lambda file: _write_tar(file, shard))
        source = self._shards[number]
        self._output.finish({
            "shard": number, "source": source.name, "fingerprint": source.fingerprint(),
            "file": path.name if shard.kept else None, "samples": len(shard.seen), "kept": len(shard.kept),
            **{name: dict(sorted(counts.items())) for name, counts in shard.counts.items()},
            "statistics": {group: figures.to_json() for group, figures in shard.statistics.items()},
            "thumbnails": {reason: [base64.b64encode(pictures[index]).decode() for index in sorted(pictures)]
                           for reason, pictures in sorted(shard.thumbnails.items())},
        })
        shard.spool.unlink(missing_ok=True)
        del self._open[number]


def _spool(path: Path, sample: Sample) -> dict[str, tuple[int, int]]:
    """Appends a sample's files; where they lie."""
    spans: dict[str, tuple[int, int]] = {}
    with path.open("ab") as file:
        for name in _FILES:
            data = sample.parts.get(name)
            if isinstance(data, bytes):
                spans[name] = (file.tell(), len(data))
                file.write(data)
    return spans


def _utf8(text: str) -> bytes:
    """With "?" for what UTF-8 has not: half a surrogate pair, as JSON and file names of other encodings hold."""
    return text.encode(errors="replace")


def _write_tar(path: Path, shard: _OpenShard) -> None:
    """In the input's order, without times and owners: the same samples give the same bytes."""
    webdataset: Any = import_module("webdataset")
    with shard.spool.open("rb") as spool, path.open("wb") as file, webdataset.TarWriter(
            file, user=_OWNER, group=_OWNER, mtime=0, encoder=False) as tar:
        for index in sorted(shard.kept):
            kept = shard.kept[index]
            members: dict[str, Any] = {"__key__": kept.key}
            for name, (offset, length) in kept.spans.items():
                spool.seek(offset)
                members[f"{name}.png"] = spool.read(length)
            facts = json.dumps(kept.facts, ensure_ascii=False)
            members |= {"txt": _utf8(kept.caption), "json": _utf8(facts)}
            tar.write(members)
