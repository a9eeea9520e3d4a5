"""Reads checkpoint files without ever executing what is in them."""

import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vitreous.core.errors import CheckpointError
from vitreous.core.fingerprints import fingerprint, hash_file
from vitreous.encoders.stand_ins import is_allowed_global, make_stand_in, plain_value

_TENSOR_KEYS = ("model_state_dict", "state_dict", "model", "teacher")
_NETWORKS = ("encoder", "target_encoder", "predictor")  # side by side, as joint-embedding pretraining leaves them
_CONFIG_FILE = "config.json"
_CONFIG_KEYS = ("config", "cfg", "args", "hyper_parameters")
_MALFORMED = (  # what the weights-only unpickler raises on bytes that are not what they claim
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    struct.error,
    zipfile.BadZipFile,
    OSError,
)


@dataclass(frozen=True)
class CheckpointFile:
    """What a checkpoint file holds.

    Args:
        sha256: of the whole file; of a folder, of its files' names and digests.
        file_format: ``torch-zip``, ``torch-legacy`` or ``safetensors``.
        tensors: the weights by their stored names.
        container: top-level key under which the weights lay; empty where they lie bare.
        config: the stored configuration as plain values; empty where there is none.
        facts: other plain values at the top, such as epoch, step and loss.
        left_aside: top-level keys that hold training state, such as the optimizer's.
    """

    path: Path
    sha256: str
    file_format: str
    tensors: dict[str, torch.Tensor]
    container: str
    config: dict[str, Any]
    facts: dict[str, Any]
    left_aside: tuple[str, ...]


def read_checkpoint(path: str | Path) -> CheckpointFile:
    """Read a .pt, .pth, .ckpt, .bin or .safetensors file; the content decides, not the name. Or a folder in
    transformers' layout: config.json beside one or several .safetensors files.

    Globals of a pickled file are listed before anything is built. Those that a config names (omegaconf, argparse,
    pathlib, typing, collections, numpy scalars) become inert stand-ins; any other refuses the file.

    Raises:
        CheckpointError: the file is absent, empty, damaged, of another kind, or names other globals.
    """
    path = Path(path).expanduser()
    if (path / _CONFIG_FILE).is_file():
        return _read_folder(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise CheckpointError(
            f"{path}: the checkpoint {what}. Give the path of one file, or of a folder with config.json and "
            "safetensors."
        )
    with path.open("rb") as file:
        head = file.read(64)
    match _file_format(head):
        case "torch-zip":
            return _sort_payload(path, "torch-zip", _load_zip(path))
        case "torch-legacy":
            return _sort_payload(path, "torch-legacy", _load_weights_only(path, globals_found=[], mmap=False))
        case "safetensors":
            return _read_safetensors(path)
        case _:
            raise CheckpointError(f"{path}: {_describe_unknown(head)}")


def _file_format(head: bytes) -> str:
    if head.startswith(b"PK\x03\x04"):
        return "torch-zip"
    if head[:1] == b"\x80" and len(head) > 2 and head[1] in (2, 3, 4, 5):
        return "torch-legacy"
    if len(head) > 9 and head[8:9] == b"{":
        return "safetensors"
    return ""


def _describe_unknown(head: bytes) -> str:
    if not head:
        return "the checkpoint is empty (0 bytes). Copy it again."
    if head.startswith(b"version https://git-lfs"):
        return "this is a Git LFS pointer, not the weights. Fetch the file itself with `git lfs pull`."
    return f"neither a torch nor a safetensors file; it begins with {head[:12]!r}. Give the weights file itself."


def _load_zip(path: Path) -> Any:
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except _MALFORMED as error:
        raise CheckpointError(
            f"{path}: the file is damaged or not made by torch.save ({error}). Copy it again, or save its state "
            "dict as safetensors."
        ) from error
    if refused := sorted(name for name in found if not is_allowed_global(name)):
        raise CheckpointError(
            f"{path}: refused, and nothing in it was executed. It names {', '.join(refused)}, which is not needed to "
            "read weights. Save the state dict and a plain config anew, as safetensors."
        )
    return _load_weights_only(path, globals_found=found, mmap=True)


def _load_weights_only(path: Path, *, globals_found: list[str], mmap: bool) -> Any:
    stand_ins: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        (make_stand_in(name), name) for name in globals_found
    ]
    try:
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except _MALFORMED as error:
        first_line = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{path}: weights-only reading failed, and nothing in the file was executed ({first_line}). Copy it "
            "again, or save its state dict as safetensors."
        ) from error


def _sort_payload(path: Path, file_format: str, payload: Any) -> CheckpointFile:
    if not isinstance(payload, Mapping):
        raise CheckpointError(f"{path}: holds a {type(payload).__name__}, not a dict. Save model.state_dict().")
    containers = [key for key in _TENSOR_KEYS if _holds_tensors(payload.get(key))]
    if len(containers) > 1:
        raise CheckpointError(f"{path}: weights lie under {containers}; which is meant? Save one of them alone.")
    container = containers[0] if containers else ""
    tensors = payload[container] if container else payload
    networks = [] if container or _holds_tensors(payload) else [k for k in _NETWORKS if _holds_tensors(payload.get(k))]
    if networks:
        container = ", ".join(networks)
        tensors = {f"{network}.{name}": value for network in networks for name, value in payload[network].items()}
    if not _holds_tensors(tensors):
        raise CheckpointError(
            f"{path}: no weights found at the top or under {list(_TENSOR_KEYS)}; top-level keys: "
            f"{[str(key) for key in payload][:10]}. Save the weights under 'state_dict'."
        )
    config: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    left_aside: list[str] = []
    for key, value in payload.items() if container else ():
        if key in _CONFIG_KEYS and isinstance(stored := plain_value(value), dict):
            config = config or stored
        elif value is None or isinstance(value, bool | int | float | str):
            facts[str(key)] = value
        elif key != container and key not in networks:
            left_aside.append(str(key))
    return CheckpointFile(
        path, hash_file(path), file_format, _only_tensors(path, tensors), container, config, facts, tuple(left_aside)
    )


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(item, torch.Tensor) for item in value.values())


def _only_tensors(path: Path, stored: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    if others := [str(key) for key, value in stored.items() if not isinstance(value, torch.Tensor)]:
        raise CheckpointError(
            f"{path}: {len(others)} entries among the weights are no tensors: {others[:10]}. Put the weights alone "
            "under 'state_dict'."
        )
    return {str(name): tensor.detach() for name, tensor in stored.items()}


def _read_folder(folder: Path) -> CheckpointFile:
    """All .safetensors files of a folder as one, with its config.json.

    Raises:
        CheckpointError: there is none, the config is no object, or two files hold a tensor of one name.
    """
    config = _parse_json((folder / _CONFIG_FILE).read_text(encoding="utf-8", errors="replace"))
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder}: config.json is damaged: it is no JSON object. Copy the folder again.")
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise CheckpointError(
            f"{folder}: has a config.json and no .safetensors file. Save the model anew with save_pretrained."
        )
    files = [_read_safetensors(path) for path in paths]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        listed = _parse_json(index.read_text(encoding="utf-8", errors="replace"))
        named = set(listed["weight_map"].values()) if isinstance(listed, dict) and "weight_map" in listed else set()
        if absent := sorted(named - {path.name for path in paths}):
            raise CheckpointError(f"{folder}: the index names {', '.join(absent)}, which is not there. Copy it too.")
        files = [file for file in files if not named or file.path.name in named]
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        if twice := sorted(set(tensors) & set(file.tensors)):
            raise CheckpointError(
                f"{folder}: {len(twice)} tensors lie in several files, such as {twice[0]}. Leave those of one model."
            )
        tensors |= file.tensors
    digest = fingerprint([[file.path.name, file.sha256] for file in files] + [hash_file(folder / _CONFIG_FILE)])
    return CheckpointFile(folder, digest, "safetensors", tensors, "", config, {}, ())


def _read_safetensors(path: Path) -> CheckpointFile:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path}: the safetensors file is damaged ({error}). Copy it again.") from error
    values = {key: _parse_json(text) for key, text in metadata.items() if key != "format"}
    config = values.pop("config", None)
    if not isinstance(config, dict):
        config, values = values, {}
    return CheckpointFile(path, hash_file(path), "safetensors", tensors, "", config, values, ())


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
