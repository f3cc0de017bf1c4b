"""What models raise."""

from __future__ import annotations

import sys
from importlib import import_module


def model_errors() -> tuple[type[BaseException], ...]:
    """Errors that a model may raise on one picture; out of memory is one of them.

    OpenCV's and ONNX Runtime's derive from Exception alone, so their classes are listed.
    """
    found: list[type[BaseException]] = [RuntimeError, ValueError, ArithmeticError]
    if "cv2" in sys.modules:
        found.append(sys.modules["cv2"].error)
    if "onnxruntime" in sys.modules:
        state = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
        kinds = [value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)]
        found.extend(kinds)
    return tuple(found)
