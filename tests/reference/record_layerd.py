"""Records LayerD's layer-wise edit metric: python -m tests.reference.record_layerd CHECKOUT.

LayerD is on no package index; CHECKOUT is a clone of github.com/CyberAgentAILab/LayerD. Its `evaluation` package is
loaded without the models that the rest of it imports.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import numpy as np
from PIL import Image

from tests.reference.inputs import STACK_SIZES, stacks
from tests.reference.recording import write


def layers_edit_distance(checkout: Path) -> type:
    for name in ("layerd", "layerd.data"):
        package = ModuleType(name)
        package.__path__ = [str(checkout.joinpath("src", *name.split(".")))]
        sys.modules[name] = package
    for name in ("layerd.data.renderer", "layerd.models", "layerd.models.helpers", "layerd.models.inpaint"):
        sys.modules[name] = MagicMock()
    from layerd.evaluation import LayersEditDist

    return LayersEditDist


def opened(layers: list[np.ndarray]) -> list[Image.Image]:
    return [Image.fromarray(layer) for layer in layers]


def plain(entry: dict[str, float]) -> dict[str, float]:
    return {key: float(value) for key, value in entry.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkout", type=Path)
    metric = layers_edit_distance(parser.parse_args().checkout)
    documents = {name: metric()(*(opened(each) for each in stacks(name))) for name in STACK_SIZES}
    figures = {
        "each": {name: [plain(each) for each in found] for name, found in documents.items()},
        "mean": [plain(each) for each in metric.aggregate(list(documents.values()))],
    }
    write("layerd", figures, source="CyberAgentAILab/LayerD at 6b95bc5", packages=("numpy", "pillow", "scikit-image"))


if __name__ == "__main__":
    main()
