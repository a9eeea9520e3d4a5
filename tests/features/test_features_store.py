"""The feature store and pooling. Oracles: torch's own bfloat16, einops-free loops, pyarrow as an open reader."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from vitreous.core.errors import UserError
from vitreous.core.input_spec import InputSpec
from vitreous.encoders.encoder import Tokens
from vitreous.features.pooling import pool_tokens
from vitreous.features.store import EncodedFile, FeatureSpace, FeatureStore


def space(**changes: object) -> FeatureSpace:
    values: dict[str, object] = {
        "weights_hash": "w",
        "encoder_options": {"family": "vit3d"},
        "spec": InputSpec(size=(4, 8, 8)),
        "pooling": "mean",
        "grid": None,
        "precision": "fp32",
        "dtype": "fp32",
        "versions": {"decoder": 1, "preprocessing": 1},
        "declared": {"axes": None, "spacing_mm": None},
    }
    return FeatureSpace(**(values | changes))  # type: ignore[arg-type]


def rows(count: int, width: int = 5, start: int = 0) -> list[EncodedFile]:
    rng = np.random.default_rng(start)
    return [EncodedFile(f"f{start + i}", rng.normal(size=width).astype(np.float32), {"D": 4}) for i in range(count)]


def test_rows_come_back_in_the_order_asked_for(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, space())
    first, second = rows(3), rows(2, start=3)
    quarantined = EncodedFile("bad", None, {}, "InputError", "empty file")
    store.write_shard(first)
    store.write_shard([*second, quarantined])
    assert store.known_files() == {"f0", "f1", "f2", "f3", "f4", "bad"}
    back = store.read(["f4", "bad", "absent", "f0"])
    np.testing.assert_array_equal(back[0].features_D, second[1].features_D)
    assert (back[1].exception, back[1].message, back[1].features_D) == ("InputError", "empty file", None)
    assert back[2] is None
    np.testing.assert_array_equal(back[3].features_D, first[0].features_D)
    assert back[3].statistics == {"D": 4}


def test_shards_are_open_files(tmp_path: Path) -> None:
    path = FeatureStore(tmp_path, space()).write_shard(rows(2))
    table = pq.read_table(path)
    assert table["file_id"].to_pylist() == ["f0", "f1"]
    np.testing.assert_array_equal(
        np.array(table["features"].to_pylist(), np.float32), np.stack([row.features_D for row in rows(2)])
    )


def test_bf16_rounds_as_torch_does(tmp_path: Path) -> None:
    values = np.concatenate(
        [
            np.random.default_rng(0).normal(size=500) * 10.0 ** np.arange(-20, 30)[:, None].repeat(10, 1).reshape(-1),
            [0.0, -0.0, 1.00390625, 1.01171875],
        ]
    ).astype(np.float32)
    store = FeatureStore(tmp_path, space(dtype="bf16"))
    store.write_shard([EncodedFile("x", values)])
    expected = torch.from_numpy(values).bfloat16().float().numpy()
    np.testing.assert_array_equal(store.read(["x"])[0].features_D, expected)
    assert not np.array_equal(expected, values)


def test_a_shard_of_quarantined_files_only(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, space())
    store.write_shard([EncodedFile("bad", None, {}, "InputError", "truncated")])
    assert store.read(["bad"])[0].message == "truncated"


@pytest.mark.parametrize(
    "change",
    [
        {"weights_hash": "v"},
        {"spec": InputSpec(size=(4, 8, 16))},
        {"pooling": "max"},
        {"precision": "bf16"},
        {"dtype": "bf16"},
        {"versions": {"decoder": 2, "preprocessing": 1}},
        {"declared": {"axes": "HWD"}},
        {"encoder_options": {"family": "vit3d", "num_slices": 8}},
    ],
)
def test_every_part_of_the_space_changes_the_key(change: dict[str, object]) -> None:
    assert space(**change).key != space().key


def test_a_broken_shard_is_named_with_its_remedy(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, space())
    path = store.write_shard(rows(2))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"cannot be read .* Remove the file"):
        store.known_files()


def test_features_of_two_widths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"one width; got \[5, 6\]"):
        FeatureStore(tmp_path, space()).write_shard([*rows(1), *rows(1, width=6)])


def test_pooling_equals_loops() -> None:
    tokens = torch.randn(2, 2 * 4 * 6, 3, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(pool_tokens(Tokens(tokens, (2, 4, 6)), "mean"), tokens.numpy().mean(1), atol=1e-6)
    np.testing.assert_array_equal(pool_tokens(Tokens(tokens, (2, 4, 6)), "max"), tokens.numpy().max(1))
    volume = tokens.numpy().reshape(2, 2, 4, 6, 3)
    cells = [
        volume[:, t : t + 1, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2].mean((1, 2, 3))
        for t in range(2)
        for h in range(2)
        for w in range(3)
    ]
    pooled = pool_tokens(Tokens(tokens, (2, 4, 6)), "grid", (2, 2, 3))
    np.testing.assert_allclose(pooled, np.concatenate(cells, 1), atol=1e-6)


def test_pooling_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="7 tokens do not fill the grid"):
        pool_tokens(Tokens(torch.zeros(1, 7, 2), (2, 2, 2)), "mean")
    with pytest.raises(ValueError, match="not be finer than the token grid"):
        pool_tokens(Tokens(torch.zeros(1, 8, 2), (2, 2, 2)), "grid", (1, 1, 3))
