"""Records clean-fid's distances of features and its resized pictures: python -m tests.reference.record_cleanfid."""

from __future__ import annotations

import numpy as np
from cleanfid.fid import frechet_distance, kernel_distance
from cleanfid.resize import build_resizer

from tests.reference.inputs import FEATURE_SETS, PICTURE_SIZES, SAMPLED, features, picture
from tests.reference.recording import write


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    statistics = [(each.mean(axis=0), np.cov(each, rowvar=False)) for each in (first, second)]
    return float(frechet_distance(*statistics[0], *statistics[1]))


def main() -> None:
    resize = build_resizer("clean")
    figures = {
        "frechet": {name: frechet(*features(name)) for name in FEATURE_SETS},
        "kernel": {"equal": kernel_distance(*features("equal"))},
        "resized": {name: resize(picture(name))[SAMPLED].tolist() for name in PICTURE_SIZES},
    }
    write("cleanfid", figures, source="clean-fid", packages=("clean-fid", "torch", "numpy", "scipy", "pillow"))


if __name__ == "__main__":
    main()
