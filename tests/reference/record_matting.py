"""Records the errors of mattes by SciPy and scikit-image, after the benchmark's MATLAB scripts.

python -m tests.reference.record_matting
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from scipy import ndimage
from skimage import measure

from tests.reference.inputs import mattes
from tests.reference.recording import write

SIGMA = 1.4


def gradient_length(matte: np.ndarray) -> np.ndarray:
    """By a full two-dimensional kernel, as `gaussgradient.m`."""
    half = int(np.ceil(SIGMA * np.sqrt(-2 * np.log(np.sqrt(2 * np.pi) * SIGMA * 0.01))))
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    kernel = -x / SIGMA**2 * np.exp(-(x**2 + y**2) / (2 * SIGMA**2)) / (2 * np.pi * SIGMA**2)
    kernel /= np.sqrt((kernel**2).sum())
    along, across = (ndimage.convolve(matte, each, mode="nearest") for each in (kernel, kernel.T))
    return np.sqrt(along**2 + across**2)


def connectivity(prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
    levels = np.full(prediction.shape, -1.0)
    steps = np.arange(11) / 10
    for before, step in pairwise(steps):
        labels, count = measure.label((prediction >= step) & (target >= step), connectivity=1, return_num=True)
        body = labels == 1 + np.argmax(np.bincount(labels.ravel(), minlength=2)[1:]) if count else labels > 0
        levels[(levels == -1) & ~body] = before
    levels[levels == -1] = 1
    degrees = [1 - (matte - levels) * (matte - levels >= 0.15) for matte in (prediction, target)]
    return np.abs(degrees[0] - degrees[1])


def main() -> None:
    predictions, targets, unknown = mattes()
    pairs = list(zip(predictions, targets, strict=True))
    errors = {
        "mse": [(prediction - target) ** 2 for prediction, target in pairs],
        "gradient": [
            (gradient_length(prediction) - gradient_length(target)) ** 2 / 1000 for prediction, target in pairs
        ],
        "connectivity": [connectivity(prediction, target) / 1000 for prediction, target in pairs],
    }
    figures = {}
    for name, maps in errors.items():
        total = np.mean if name == "mse" else np.sum
        figures[name] = {
            "everywhere": [float(total(each)) for each in maps],
            "unknown": [float(total(each[where])) for each, where in zip(maps, unknown, strict=True)],
        }
    write("matting", figures, source="record_matting.py", packages=("numpy", "scipy", "scikit-image"))


if __name__ == "__main__":
    main()
