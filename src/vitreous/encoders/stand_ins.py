"""Inert stand-ins for the classes that a pickled training config names.

Weights-only loading builds these instead of the real classes: they keep what they were given and do nothing.
:func:`plain_value` then reads the values out of them.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from vitreous.core.errors import CheckpointError

_ALLOWED_MODULES = ("omegaconf", "argparse", "pathlib", "typing", "collections")
_ALLOWED_NUMPY = re.compile(
    r"numpy\.(?:(?:core|_core)\.multiarray\.scalar|dtype|dtypes\.\w+DType"
    r"|(?:bool_?|u?int(?:8|16|32|64)|float(?:16|32|64)|complex(?:64|128)))"
)
_ALLOWED_BUILTINS = frozenset(  # types that a config names as the type of a field
    f"builtins.{name}"
    for name in (
        "bool",
        "bytes",
        "complex",
        "dict",
        "float",
        "frozenset",
        "int",
        "list",
        "object",
        "set",
        "str",
        "tuple",
    )
)
_NUMERIC_DTYPE = re.compile(r"[<>|=]?[biufc]\d+")


class StandIn:
    """Keeps constructor arguments and state of an object whose class is not imported."""

    qualified_name = ""

    def __new__(cls, *args: Any) -> "StandIn":
        instance = super().__new__(cls)
        instance.__dict__.update(args=args, state=None)
        return instance

    def __init__(self, *args: Any) -> None:
        """Arguments are kept by `__new__`, which both ways of unpickling call."""

    def __setstate__(self, state: Any) -> None:
        self.__dict__["state"] = state

    def __repr__(self) -> str:
        return f"<{self.qualified_name}>"


def _empty_dict(*_arguments: Any) -> dict[Any, Any]:
    return {}  # items of a defaultdict follow, and may be set on a plain dict only


def _plain_list(items: Any = (), *_arguments: Any) -> list[Any]:
    return list(items)


_CONTAINERS: dict[str, Callable[..., Any]] = {
    "collections.defaultdict": _empty_dict,
    "collections.deque": _plain_list,
    "builtins.frozenset": _plain_list,
}


def is_allowed_global(name: str) -> bool:
    """Whether `name` (``module.attribute``) may be replaced by a stand-in.

    >>> is_allowed_global("omegaconf.dictconfig.DictConfig"), is_allowed_global("os.system")
    (True, False)
    """
    return (
        name.partition(".")[0] in _ALLOWED_MODULES
        or name in _ALLOWED_BUILTINS
        or _ALLOWED_NUMPY.fullmatch(name) is not None
    )


def make_stand_in(name: str) -> Callable[..., Any]:
    """The inert replacement for an allowed global."""
    return _CONTAINERS.get(name) or type(name.rpartition(".")[2], (StandIn,), {"qualified_name": name})


def plain_value(value: Any, _inside: tuple[int, ...] = ()) -> Any:
    """Nested dicts, lists, strings, numbers, booleans and None, from what weights-only loading returned.

    Raises:
        CheckpointError: an object contains itself.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if id(value) in _inside:
        raise CheckpointError("the stored config contains itself; save it as plain values.")
    inside = (*_inside, id(value))
    if isinstance(value, Mapping):
        return {str(plain_value(key, inside)): plain_value(item, inside) for key, item in value.items()}
    if isinstance(value, torch.Tensor):
        return value.item() if value.numel() == 1 else f"tensor of shape {tuple(value.shape)}"
    if isinstance(value, list | tuple | set | frozenset):
        return [plain_value(item, inside) for item in value]
    if isinstance(value, StandIn):
        return _plain_stand_in(value, inside)
    return _class_name(value) if isinstance(value, type) else str(value)


def _class_name(value: type) -> str:
    return value.qualified_name if issubclass(value, StandIn) else value.__qualname__


def _plain_stand_in(value: StandIn, inside: tuple[int, ...]) -> Any:
    module, _, attribute = value.qualified_name.rpartition(".")
    args, state = value.__dict__["args"], value.__dict__["state"]
    if module.startswith("numpy"):
        return _numpy_value(args) if attribute == "scalar" else repr(value)
    if module.startswith("pathlib"):
        return "/".join(str(part) for part in args).replace("//", "/")
    if isinstance(state, Mapping):
        for key in ("_content", "_val"):  # omegaconf containers, then its leaves
            if key in state:
                return plain_value(state[key], inside)
        if value.qualified_name == "argparse.Namespace":
            return plain_value(state, inside)
    return repr(value)


def _numpy_value(args: tuple[Any, ...]) -> bool | int | float | str:
    dtype, data = args
    spelling = str(dtype.__dict__["args"][0]) if isinstance(dtype, StandIn) else ""
    if _NUMERIC_DTYPE.fullmatch(spelling) is None or not isinstance(data, bytes):
        return f"<numpy scalar of type {spelling!r}>"
    state = dtype.__dict__["state"]
    order = state[1] if isinstance(state, tuple) and state[1] in ("<", ">") else ""
    value = np.frombuffer(data, dtype=np.dtype(order + spelling.lstrip("<>|=")))[0].item()
    return str(value) if isinstance(value, complex) else value
