"""The encode pass. Oracles: each encoder run alone on each file; an undisturbed pass."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from vitreous.core.errors import StorageError
from vitreous.core.input_spec import InputSpec
from vitreous.encoders.catalog import build_random_encoder
from vitreous.encoders.encoder import Encoder, Tokens
from vitreous.features.encode import EncoderTask, PassSummary, Request, Staged, encode_missing
from vitreous.features.store import FeatureSpace, FeatureStore
from vitreous.inputs.decode import decode_volume
from vitreous.inputs.preprocessing import preprocess_volume
from vitreous.inputs.volume import DeclaredAxes, Volume

DECLARED = DeclaredAxes(axes="DHW", spacing_mm=None)
SHAPE = {"img_size": [4, 16, 16], "patch_size": [2, 8, 8], "embed_dim": 64, "depth": 1, "num_heads": 1}


def encoder(seed: int) -> Encoder:
    return build_random_encoder("vit3d", architecture=SHAPE, seed=seed)


def store_for(root: Path, one: Encoder) -> FeatureStore:
    return FeatureStore(
        root,
        FeatureSpace(
            weights_hash=one.weights_hash,
            encoder_options={},
            spec=one.spec,
            pooling="mean",
            grid=None,
            precision="fp32",
            dtype="fp32",
            versions={},
            declared={},
        ),
    )


def write_volumes(folder: Path, count: int) -> list[Request]:
    rng = np.random.default_rng(0)
    for index in range(count):
        np.save(folder / f"{index:03d}.npy", rng.normal(size=(5, 20, 18)).astype(np.float32))
    return [Request(f"id{index:03d}", folder / f"{index:03d}.npy") for index in range(count)]


def stage(requests: Sequence[Request]) -> Iterator[Staged]:
    for request in requests:
        yield request, request.source


def load_volume(request: Request, path: Path) -> Volume:
    return decode_volume(path, declared=DECLARED, max_bytes=10**6)


def tasks(
    root: Path, encoders: Sequence[Encoder], requests: Sequence[Request], batch_size: int = 3
) -> list[EncoderTask]:
    made = []
    for index, one in enumerate(encoders):
        store = store_for(root, one)
        missing = frozenset(request.file_id for request in requests) - store.known_files()
        made.append(EncoderTask(f"e{index}", one, store, missing, batch_size))
    return made


def run(root: Path, encoders: Sequence[Encoder], requests: Sequence[Request], **options: object) -> PassSummary:
    return encode_missing(
        requests,
        tasks(root, encoders, requests),
        **{  # type: ignore[arg-type]
            "stage": stage,
            "load_input": load_volume,
            "shard_size": 4,
            **options,
        },
    )


def shard_bytes(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*.parquet"))
    }


def test_one_pass_equals_each_encoder_alone(tmp_path: Path) -> None:
    requests = write_volumes(tmp_path, 7)
    encoders = [encoder(0), encoder(1)]
    decoded: list[str] = []

    def counting(request: Request, path: Path) -> Volume:
        decoded.append(request.file_id)
        return load_volume(request, path)

    summary = run(tmp_path / "store", encoders, requests, load_input=counting)
    assert sorted(decoded) == [request.file_id for request in requests], "each file is decoded once for all encoders"
    assert summary.num_encoded == {"e0": 7, "e1": 7}
    for one in encoders:
        rows = store_for(tmp_path / "store", one).read([request.file_id for request in requests])
        for request, row in zip(requests, rows, strict=True):
            tensor = preprocess_volume(load_volume(request, request.source), one.spec)
            expected = one(tensor[None]).tokens_BND.mean(1)[0].numpy()
            assert row is not None
            np.testing.assert_allclose(row.features_D, expected, atol=1e-5)
            assert (row.statistics["depth"], row.statistics["height"], row.statistics["width"]) == (5, 20, 18)


def test_a_second_pass_encodes_nothing(tmp_path: Path) -> None:
    requests = write_volumes(tmp_path, 5)
    run(tmp_path / "store", [encoder(0)], requests)

    def never(request: Request, path: Path) -> Volume:
        raise AssertionError(f"{request} was decoded again")

    assert run(tmp_path / "store", [encoder(0)], requests, load_input=never).num_encoded == {"e0": 0}


@pytest.mark.parametrize("stop_after", range(1, 11))
def test_a_pass_stopped_anywhere_and_run_again_ends_in_the_same_bytes(tmp_path: Path, stop_after: int) -> None:
    requests = write_volumes(tmp_path, 10)
    encoders = [encoder(0), encoder(1)]
    run(tmp_path / "whole", encoders, requests)
    count = 0

    def stopping(done: int = 1) -> None:
        nonlocal count
        count += done
        if count == stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", encoders, requests, progress=stopping)
    run(tmp_path / "stopped", encoders, requests)
    assert shard_bytes(tmp_path / "stopped") == shard_bytes(tmp_path / "whole")


def test_a_bad_file_is_a_row_with_its_reason(tmp_path: Path) -> None:
    requests = write_volumes(tmp_path, 4)
    Path(requests[1].source).write_bytes(b"")
    run(tmp_path / "store", [encoder(0)], requests)
    rows = store_for(tmp_path / "store", encoder(0)).read([request.file_id for request in requests])
    assert [row is not None and row.features_D is not None for row in rows] == [True, False, True, True]
    assert rows[1] is not None
    assert rows[1].exception == "InputError"
    assert "empty" in rows[1].message


def test_a_file_that_one_spec_cannot_use_is_quarantined_for_that_encoder_alone(tmp_path: Path) -> None:
    requests = write_volumes(tmp_path, 2)
    needs_spacing = build_random_encoder(
        "vit3d", architecture=SHAPE, seed=0, spec_override={"spacing_mm": [1.0, 1.0, 1.0]}
    )
    encoders = [encoder(1), needs_spacing]
    run(tmp_path / "store", encoders, requests)
    ids = [request.file_id for request in requests]
    plain, spaced = (store_for(tmp_path / "store", one).read(ids) for one in encoders)
    assert all(row is not None and row.features_D is not None for row in plain)
    assert all(row is not None and "spacing" in row.message for row in spaced)


def test_an_unreachable_file_is_asked_for_again(tmp_path: Path) -> None:
    requests = write_volumes(tmp_path, 3)

    def failing(asked: Sequence[Request]) -> Iterator[Staged]:
        for request in asked:
            yield request, StorageError("no answer") if request.file_id == "id001" else request.source

    summary = run(tmp_path / "store", [encoder(0)], requests, stage=failing)
    assert list(summary.unusable) == ["id001"]
    assert store_for(tmp_path / "store", encoder(0)).known_files() == {"id000", "id002"}
    assert run(tmp_path / "store", [encoder(0)], requests).num_encoded == {"e0": 1}


def test_features_that_are_not_finite_are_quarantined(tmp_path: Path) -> None:
    requests = write_volumes(tmp_path, 2)
    broken = encoder(0)
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    run(tmp_path / "store", [broken], requests)
    rows = store_for(tmp_path / "store", broken).read(["id000"])
    assert rows[0] is not None
    assert rows[0].exception == "NonFiniteFeatures"


def test_the_wrong_normalisation_changes_the_features(tmp_path: Path) -> None:
    request = write_volumes(tmp_path, 1)[0]
    right = encoder(0)
    wrong = build_random_encoder(
        "vit3d", architecture=SHAPE, seed=0, spec_override={"normalisation": {"kind": "percentile-minmax-gamma"}}
    )
    assert isinstance(wrong.spec, InputSpec)
    assert wrong.weights_hash == right.weights_hash
    run(tmp_path / "store", [right, wrong], [request])
    one, other = (store_for(tmp_path / "store", which).read(["id000"])[0] for which in (right, wrong))
    assert one is not None
    assert other is not None
    assert np.abs(one.features_D - other.features_D).max() > 0.05


def test_a_file_beyond_the_limit_is_tried_again_when_the_limit_is_raised(tmp_path: Path) -> None:
    requests = write_volumes(tmp_path, 3)

    def strict(request: Request, path: Path) -> Volume:
        return decode_volume(path, declared=DECLARED, max_bytes=100)

    summary = run(tmp_path / "store", [encoder(0)], requests, load_input=strict)
    assert len(summary.unusable) == 3
    assert "allow more bytes per volume" in str(summary.unusable["id000"])
    assert run(tmp_path / "store", [encoder(0)], requests).num_encoded == {"e0": 3}


def test_a_pass_with_too_many_bad_files_stops_early(tmp_path: Path) -> None:
    requests = write_volumes(tmp_path, 12)
    for request in requests[:6]:
        Path(request.source).write_bytes(b"no volume")
    summary = run(tmp_path / "store", [encoder(0)], requests, max_bad=2)
    assert summary.is_stopped
    assert summary.num_files == 3
    assert len(store_for(tmp_path / "store", encoder(0)).known_files()) == 3


def test_a_bad_file_does_not_move_the_batches_of_its_neighbours(tmp_path: Path) -> None:
    requests = write_volumes(tmp_path, 7)
    run(tmp_path / "whole", [encoder(0)], requests)
    sizes = []

    class Watched(Encoder):
        def forward(self, x_BCDHW: torch.Tensor) -> Tokens:
            sizes.append(len(x_BCDHW))
            return super().forward(x_BCDHW)

    Path(requests[1].source).write_bytes(b"")
    watched = encoder(0)
    watched.__class__ = Watched
    run(tmp_path / "store", [watched], requests)
    assert sizes == [2, 1, 3], "batches of three files, cut at the shard of four"
