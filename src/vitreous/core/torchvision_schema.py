"""Lets torchvision be imported beside a torch without CUDA.

torchvision's usual wheel is linked against CUDA. With a CPU build of torch its native library cannot load, the
operators `nms` and `qnms` are then unknown, and the import of torchvision fails and takes timm with it.
Declaring the two schemas is enough: nothing here runs them.
"""

import importlib.util
from functools import cache
from pathlib import Path

import torch

_SCHEMAS = ("nms", "qnms")
_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_libraries: list[torch.library.Library] = []  # a Library takes its schemas back when it is collected


@cache
def declare_torchvision_schemas() -> bool:
    """Declare `nms` and `qnms` where torchvision's native library cannot load; before any import of timm.

    Returns:
        True where the schemas were declared, False where nothing was needed.
    """
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return False
    for library in sorted(Path(found.origin).parent.glob("_C*")):
        try:
            torch.ops.load_library(library)  # type: ignore[no-untyped-call]
        except OSError:  # libcudart and its like are absent
            continue
        return False
    fragment = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in _SCHEMAS:
        if not hasattr(torch.ops.torchvision, name):
            fragment.define(name + _SIGNATURE)  # type: ignore[no-untyped-call]
    _libraries.append(fragment)
    return True
