"""Records pysodmetrics' figures, one map at a time and of all: python -m tests.reference.record_pysodmetrics."""

from __future__ import annotations

from typing import Any

import numpy as np
from py_sod_metrics import MAE, Emeasure, FmeasureHandler, FmeasureV2, Smeasure

from tests.reference.inputs import saliency_maps
from tests.reference.recording import write


def judged(maps: np.ndarray, things: np.ndarray) -> dict[str, Any]:
    handler = FmeasureHandler(beta=0.3, with_adaptive=True, with_dynamic=True)
    measures = [MAE(), Smeasure(), Emeasure(), FmeasureV2({"fm": handler})]
    for measure in measures:
        for each, thing in zip(maps, things, strict=True):
            measure.step(each, thing)
    mae, structure, alignment, fmeasure = [measure.get_results() for measure in measures]
    found = {"mae": float(mae["mae"]), "s": float(structure["sm"])}
    for name, measure in (("e", alignment["em"]), ("f", fmeasure["fm"])):
        curve = measure.get("curve", measure.get("dynamic"))
        adaptive = measure.get("adp", measure.get("adaptive"))
        found[name] = {"adaptive": float(adaptive), "mean": float(curve.mean()), "maximum": float(curve.max())}
    return found


def main() -> None:
    maps, things = saliency_maps()
    figures = {
        "each": [judged(maps[i : i + 1], things[i : i + 1]) for i in range(len(maps))],
        "all": judged(maps, things),
    }
    write("pysodmetrics", figures, source="pysodmetrics", packages=("pysodmetrics", "numpy", "scipy", "scikit-image"))


if __name__ == "__main__":
    main()
