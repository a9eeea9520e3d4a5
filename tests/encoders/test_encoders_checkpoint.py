"""Reading files without executing them; the files are made by the real libraries on the spot."""

import argparse
import collections
import os
import pathlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from vitreous.core.errors import CheckpointError
from vitreous.encoders.checkpoint import read_checkpoint

WEIGHTS = {"w": torch.arange(6.0).reshape(2, 3)}


def save(path: Path, payload: Any, **options: Any) -> Path:
    torch.save(payload, path, **options)
    return path


def test_omegaconf_config_is_read_as_plain_values(tmp_path: Path) -> None:
    stored = {
        "image_size": [64, 384, 384],
        "patch_size": [4, 16, 16],
        "model": {"num_heads": 12, "name": "vit", "dropout": 0.1, "flag": True, "none": None, "nested": [{"a": [1]}]},
    }
    config = OmegaConf.create(stored)
    path = save(
        tmp_path / "a.pt",
        {
            "epoch": 3,
            "loss": 0.5,
            "model_state_dict": WEIGHTS,
            "config": config,
            "optimizer_state_dict": {"state": {}, "param_groups": []},
        },
    )
    with pytest.raises(pickle.UnpicklingError):  # the reason for the stand-ins
        torch.load(path, weights_only=True)
    file = read_checkpoint(path)
    assert file.config == stored
    assert file.facts == {"epoch": 3, "loss": 0.5}
    assert file.left_aside == ("optimizer_state_dict",)
    assert file.container == "model_state_dict"
    assert torch.equal(file.tensors["w"], WEIGHTS["w"])


def test_other_allowed_objects_become_plain_values(tmp_path: Path) -> None:
    config = {
        "namespace": argparse.Namespace(lr=1e-3, out=pathlib.PosixPath("/runs/a")),
        "double": np.float64(2.5),
        "long": np.int64(-3),
        "bool": np.bool_(True),
        "half": np.float32(0.1),
        "defaultdict": collections.defaultdict(list, {"a": [1, 2]}),
        "deque": collections.deque([1, 2]),
        "ordered": collections.OrderedDict(b=1),
        "dtype": torch.float16,
        "set": {1},
        "relative": Path("a/b"),
        "mixed": {"inner": OmegaConf.create({"x": 1})},
    }
    read = read_checkpoint(save(tmp_path / "a.pt", {"state_dict": WEIGHTS, "config": config})).config
    assert read["namespace"] == {"lr": 1e-3, "out": "/runs/a"}
    assert (read["double"], read["long"], read["bool"]) == (2.5, -3, True)
    assert read["half"] == pytest.approx(0.1, abs=1e-7)
    assert read["defaultdict"] == {"a": [1, 2]}
    assert read["deque"] == [1, 2]
    assert (read["ordered"], read["dtype"], read["set"]) == ({"b": 1}, "torch.float16", [1])
    assert read["relative"] == "a/b"
    assert read["mixed"] == {"inner": {"x": 1}}


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_a_file_that_would_run_a_command_is_refused_by_name(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    path = save(tmp_path / "bad.pt", {"state_dict": WEIGHTS, "config": Malicious(marker)})
    with pytest.raises(CheckpointError, match=r"nothing in it was executed. It names (posix|nt)\.system"):
        read_checkpoint(path)
    assert not marker.exists()


def test_a_legacy_file_that_would_run_a_command_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    path = save(
        tmp_path / "bad.pth", {"state_dict": WEIGHTS, "config": Malicious(marker)}, _use_new_zipfile_serialization=False
    )
    with pytest.raises(CheckpointError, match="nothing in the file was executed"):
        read_checkpoint(path)
    assert not marker.exists()


@pytest.mark.parametrize("attribute", ["getattr", "eval", "exec", "__import__", "open"])
def test_builtin_functions_are_no_config_types(tmp_path: Path, attribute: str) -> None:
    function = __builtins__[attribute] if isinstance(__builtins__, dict) else getattr(__builtins__, attribute)
    path = save(tmp_path / "bad.pt", {"state_dict": WEIGHTS, "config": function})
    with pytest.raises(CheckpointError, match=attribute if attribute != "open" else r"io\.open"):
        read_checkpoint(path)


def test_a_class_of_the_training_code_is_refused_by_name(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", {"state_dict": WEIGHTS, "config": Malicious})
    with pytest.raises(CheckpointError, match=r"test_encoders_checkpoint\.Malicious"):
        read_checkpoint(path)


def test_legacy_bare_and_safetensors_files(tmp_path: Path) -> None:
    legacy = read_checkpoint(save(tmp_path / "a.pth", WEIGHTS, _use_new_zipfile_serialization=False))
    bare = read_checkpoint(save(tmp_path / "b.bin", WEIGHTS))
    save_file(WEIGHTS, tmp_path / "c.safetensors", metadata={"config": '{"image_size": [8, 32, 32]}', "epoch": "3"})
    plain = read_checkpoint(tmp_path / "c.safetensors")
    assert [file.file_format for file in (legacy, bare, plain)] == ["torch-legacy", "torch-zip", "safetensors"]
    assert all(torch.equal(file.tensors["w"], WEIGHTS["w"]) for file in (legacy, bare, plain))
    assert plain.config == {"image_size": [8, 32, 32]}
    assert plain.facts == {"epoch": 3}


def test_the_content_decides_not_the_name(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "a.pt")
    assert read_checkpoint(tmp_path / "a.pt").file_format == "safetensors"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "neither a torch nor a safetensors file"),
        (b"PK\x03\x04 and nothing more", "damaged or not made by torch.save"),
        (b"\x80\x02}q\x00(X", "weights-only reading failed"),
        (b'\x40\x00\x00\x00\x00\x00\x00\x00{"w": 1}', "safetensors file is damaged"),
    ],
)
def test_files_that_are_not_what_they_claim(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


@pytest.mark.parametrize("kept", [0.3, 0.9, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: float) -> None:
    path = save(tmp_path / "a.pt", {"state_dict": {"w": torch.randn(100, 100)}})
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ([1, 2], "holds a list"),
        ({"epoch": 1, "config": {}}, "no weights found"),
        ({"state_dict": WEIGHTS, "model": WEIGHTS}, r"\['state_dict', 'model'\]; which is meant"),
        ({"state_dict": WEIGHTS | {"_extra_state": 3}}, "no tensors: .*_extra_state"),
    ],
)
def test_payloads_without_plain_weights_are_refused(tmp_path: Path, payload: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(save(tmp_path / "a.pt", payload))


def test_absent_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        read_checkpoint(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match="is a folder"):
        read_checkpoint(tmp_path)
