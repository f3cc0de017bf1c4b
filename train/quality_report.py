"""How well a quality filter judges held-out samples: precision, recall, ROC."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


@dataclass(frozen=True)
class RocCurve:
    """What every threshold gives, from the highest down, after "nothing is called good".

    Attributes:
        thresholds: (n,), scores at or above are called good; the first is infinite.
        false_positives: (n,), share of the bad ones called good.
        true_positives: (n,), share of the good ones called good (recall).
        precision: (n,), share of good ones among those called good; 1 where there are none.
    """

    thresholds: Values
    false_positives: Values
    true_positives: Values
    precision: Values

    @property
    def area(self) -> float:
        """Under the curve: the chance that a good sample scores above a bad one, ties counting half."""
        return float(np.trapezoid(self.true_positives, self.false_positives))


def roc_curve(scores: Values, labels: NDArray[np.bool_]) -> RocCurve:
    """The ROC of scores.

    Args:
        scores: (n,), higher is better.
        labels: (n,), True is good.

    Raises:
        ValueError: the labels are all alike, or not as many as the scores.
    """
    good, bad = int(labels.sum()), int((~labels).sum())
    if scores.shape != labels.shape or not good or not bad:
        raise ValueError(f"a ROC needs good and bad samples and a score of each, "
                         f"got {good} good, {bad} bad and {len(scores)} scores")
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # of each group of equal scores
    hits = np.cumsum(labels[order])[last]
    called = last + 1.0
    return RocCurve(
        np.concatenate([[np.inf], ranked[last]]), np.concatenate([[0.0], (called - hits) / bad]),
        np.concatenate([[0.0], hits / good]), np.concatenate([[1.0], hits / called]),
    )


def best_threshold(curve: RocCurve, beta: float) -> float:
    """The threshold with the best F_beta = (1 + beta^2) P R / (beta^2 P + R); a beta below 1 weighs precision more.

    The paper is silent about its threshold. Pictures are plenty and bad ones spoil, hence precision. It lies halfway to
    the next lower score, so that rounding moves nothing across it.
    """
    precision, recall = curve.precision[1:], curve.true_positives[1:]
    measure = (1 + beta**2) * precision * recall / np.maximum(beta**2 * precision + recall, 1e-12)
    best = int(np.argmax(measure)) + 1
    below = curve.thresholds[best + 1] if best + 1 < len(curve.thresholds) else 0.0
    return float((curve.thresholds[best] + below) / 2)


def quality_figures(scores: Values, labels: NDArray[np.bool_], beta: float) -> tuple[float, dict[str, Any]]:
    """A threshold, and what it gives on samples that it was not chosen on.

    Every second sample chooses the threshold, the others give precision, recall and share kept; the ROC's area is of
    all of them.

    Returns:
        The threshold, and the figures: "samples", "good" (share; the precision without a filter), "threshold",
        "precision" (None where nothing is kept), "recall", "kept", "auc".

    Raises:
        ValueError: a half of the samples is all good or all bad.
    """
    threshold = best_threshold(roc_curve(scores[::2], labels[::2]), beta)
    called, good = scores[1::2] >= threshold, labels[1::2]
    roc_curve(scores[1::2], good)
    figures: dict[str, Any] = {
        "samples": len(scores), "good": float(labels.mean()), "threshold": threshold,
        "precision": float(good[called].mean()) if called.any() else None, "recall": float(called[good].mean()),
        "kept": float(called.mean()), "auc": roc_curve(scores, labels).area,
    }
    return threshold, figures


def draw_roc(path: Path, scores: Values, labels: NDArray[np.bool_], threshold: float, title: str) -> None:
    """The ROC with the chosen threshold, and precision over recall, as a PNG."""
    from matplotlib.figure import Figure

    curve = roc_curve(scores, labels)
    chosen = int((curve.thresholds >= threshold).sum()) - 1
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    roc, precision = figure.subplots(1, 2)
    roc.plot(curve.false_positives, curve.true_positives, label=f"area {curve.area:.3f}")
    roc.plot([0, 1], [0, 1], color="0.7", linestyle=":")
    roc.set(xlabel="bad samples kept", ylabel="good samples kept (recall)", title=title)
    precision.plot(curve.true_positives[1:], curve.precision[1:])
    precision.axhline(float(labels.mean()), color="0.7", linestyle=":", label="no filter")
    precision.set(xlabel="recall", ylabel="precision", ylim=(0, 1.03))
    for axes, x, y in ((roc, curve.false_positives, curve.true_positives),
                       (precision, curve.true_positives, curve.precision)):
        axes.plot([x[chosen]], [y[chosen]], "o", color="tab:red", label=f"threshold {threshold:.3f}")
        axes.legend(loc="lower right" if axes is roc else "lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
