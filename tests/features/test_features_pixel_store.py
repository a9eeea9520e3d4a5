"""Prepared inputs kept for training on pixels. Oracle: the file decoded and prepared by itself."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

from vitreous.core.errors import RunError
from vitreous.core.input_spec import ImageSpec, InputSpec
from vitreous.features.encode import PixelTask, Request, Staged, encode_missing
from vitreous.features.pixel_store import PixelSpace, PixelStore
from vitreous.inputs.image import Image
from vitreous.inputs.image_files import decode_image
from vitreous.inputs.prepare import finish_input, prepare_input

SPEC = ImageSpec(size=(12, 16))


def store(root: Path, spec: ImageSpec | InputSpec = SPEC) -> PixelStore:
    return PixelStore(root, PixelSpace(spec, {"decoder": 1}, {}))


def write_images(folder: Path, count: int) -> list[Request]:
    rng = np.random.default_rng(0)
    for index in range(count):
        pixels = rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)
        PillowImage.fromarray(pixels).save(folder / f"{index:02d}.png")
    return [Request(f"id{index:02d}", folder / f"{index:02d}.png") for index in range(count)]


def stage(requests: Sequence[Request]) -> Iterator[Staged]:
    for request in requests:
        yield request, request.source


def load(request: Request, path: Path) -> Image:
    return decode_image(path, max_bytes=10**6)


def prepare(root: Path, requests: Sequence[Request]) -> PixelStore:
    kept = store(root)
    missing = frozenset(request.file_id for request in requests) - kept.known_files()
    encode_missing(requests, [PixelTask("pixels", SPEC, kept, missing)], stage=stage, load_input=load)
    return kept


def test_what_is_kept_is_the_prepared_file(tmp_path: Path) -> None:
    requests = write_images(tmp_path, 5)
    kept = prepare(tmp_path / "store", requests)
    assert kept.known_files() == {request.file_id for request in requests}
    for request, facts in zip(requests, kept.read_facts([r.file_id for r in requests]), strict=True):
        expected = prepare_input(load(request, request.source), SPEC)
        assert torch.equal(kept.read(request.file_id), expected)
        assert kept.read(request.file_id).dtype == torch.uint8
        assert finish_input(kept.read(request.file_id), SPEC).shape == (3, 1, 12, 16)
        assert facts is not None
        assert facts.exception == ""
        assert (facts.statistics["height"], facts.statistics["width"]) == (20, 24)


def test_a_bad_file_is_kept_as_its_error_and_not_asked_again(tmp_path: Path) -> None:
    requests = write_images(tmp_path, 3)
    requests[1].source.write_bytes(b"\x89PNG\r\n\x1a\n no image")
    kept = prepare(tmp_path / "store", requests)
    facts = kept.read_facts(["id00", "id01", "id02", "id99"])
    assert [fact and fact.exception for fact in facts] == ["", "InputError", "", None]
    assert kept.known_files() == {"id00", "id01", "id02"}
    with pytest.raises(RunError, match=r"id01\.npy: a prepared input cannot be read"):
        kept.read("id01")


def test_mean_and_standard_deviation_are_no_part_of_the_key_but_the_size_is(tmp_path: Path) -> None:
    same = store(tmp_path, ImageSpec(size=(12, 16), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)))
    other = store(tmp_path, ImageSpec(size=(16, 16)))
    assert same.folder == store(tmp_path).folder != other.folder
    assert store(tmp_path, InputSpec(size=(1, 12, 16))).folder != other.folder


def test_a_file_cut_short_is_named_with_its_remedy(tmp_path: Path) -> None:
    requests = write_images(tmp_path, 1)
    kept = prepare(tmp_path / "store", requests)
    path = next(kept.folder.rglob("*.npy"))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(RunError, match=r"Remove the file and its \.json"):
        kept.read("id00")
    assert json.loads((kept.folder / "space.json").read_text())["spec"]["size"] == [12, 16]
