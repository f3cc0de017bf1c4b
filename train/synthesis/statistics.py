"""What the paper reports of its data ("Data", appendix): counts that add up, shard by shard."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from train.synthesis.layers import AREA_THRESHOLDS
from train.synthesis.rows import Sample

BINS = 20  # of histograms over [0, 1]
PERCENTILES = (1, 10, 25, 50, 75, 90, 99)
SCORES = ("mask_score", "inpainting_score")


@dataclass
class Statistics:
    """Counts over samples.

    Attributes:
        words: words of a caption -> samples. The paper counts CLIP tokens; words need no tokenizer and are fewer.
        components: connected parts of the mask -> samples.
        areas: for each threshold, samples per twentieth of the picture that the mask covers.
        scores: of each classifier, samples per twentieth of its score.
        clip: number, sum and sum of squares of CLIP scores.
    """

    words: Counter[int] = field(default_factory=Counter)
    components: Counter[int] = field(default_factory=Counter)
    areas: list[list[int]] = field(default_factory=lambda: [[0] * BINS for _ in AREA_THRESHOLDS])
    scores: dict[str, list[int]] = field(default_factory=lambda: {name: [0] * BINS for name in SCORES})
    clip: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])

    def add(self, sample: Sample) -> None:
        """Counts one sample."""
        self.words[len((sample.caption or "").split())] += 1
        if "components" in sample.facts:
            self.components[sample.facts["components"]] += 1
            for histogram, area in zip(self.areas, sample.facts["areas"], strict=True):
                histogram[_bin(area)] += 1
        for name in SCORES:
            if name in sample.facts:
                self.scores[name][_bin(sample.facts[name])] += 1
        score = sample.facts.get("clip_score")
        if score is not None:
            self.clip = [total + part for total, part in zip(self.clip, (1, score, score**2), strict=True)]

    def merge(self, other: Statistics) -> None:
        """Adds another's counts."""
        self.words += other.words
        self.components += other.components
        self.areas = [_sums(*pair) for pair in zip(self.areas, other.areas, strict=True)]
        self.scores = {name: _sums(counts, other.scores[name]) for name, counts in self.scores.items()}
        self.clip = [first + second for first, second in zip(self.clip, other.clip, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"words": dict(sorted(self.words.items())), "components": dict(sorted(self.components.items())),
                "areas": self.areas, "scores": self.scores, "clip": self.clip}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Statistics:
        """Undoes `to_json`."""
        counters = ({int(key): count for key, count in values[name].items()} for name in ("words", "components"))
        words, components = (Counter(counts) for counts in counters)
        return cls(words, components, values["areas"], values["scores"], values["clip"])

    def word_percentiles(self) -> list[int]:
        """Words below which 1, 10, 25, 50, 75, 90, 99 % of the captions stay (nearest rank); empty without captions."""
        total = self.words.total()
        if not total:
            return []
        lengths = sorted(self.words)
        reached = np.cumsum([self.words[length] for length in lengths])
        return [lengths[int(np.searchsorted(reached, share / 100 * total))] for share in PERCENTILES]

    def clip_score(self) -> tuple[float, float] | None:
        """Mean and standard deviation; None where CLIP was not asked."""
        count, total, squares = self.clip
        if not count:
            return None
        mean = total / count
        return mean, max(squares / count - mean**2, 0.0) ** 0.5


def _bin(share: float) -> int:
    return min(int(share * BINS), BINS - 1)


def _sums(first: list[int], second: list[int]) -> list[int]:
    return [a + b for a, b in zip(first, second, strict=True)]
