"""Tokens and vectors out of one pass, stopped anywhere and run again. Oracle: the encoder on each file by itself."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from test_features_encode import encoder, load_volume, stage, store_for, write_volumes

from vitreous.core.errors import InputError, UserError
from vitreous.features import token_store
from vitreous.features.encode import EncoderTask, Request, encode_missing
from vitreous.features.token_store import TokenRows, TokenSpace, TokenStore, View, files_per_shard
from vitreous.inputs.preprocessing import preprocess_volume

ENCODER = encoder(0)


def token_store_at(root: Path, view: View | None = None) -> TokenStore:
    return TokenStore(root, TokenSpace(store_for(root, ENCODER).space, None, view))


def run(root: Path, requests: Sequence[Request], *, views: int = 0, vectors: bool = True, **options: object) -> int:
    """Files that were decoded."""
    asked = frozenset(request.file_id for request in requests)
    store, tokens = store_for(root, ENCODER), token_store_at(root)
    missing = asked - store.known_files() if vectors else frozenset()
    tasks = [EncoderTask("e", ENCODER, store if vectors else None, missing, 3, tokens, asked - tokens.known_files())]
    for number in range(1, views + 1):
        kept = token_store_at(root, View(number, {"flip": 0.5, "flip_axes": ("H", "W"), "noise": 0.1}))
        tasks.append(EncoderTask(f"e {number}", ENCODER, None, frozenset(), 3, kept, asked - kept.known_files()))
    settings = {"stage": stage, "load_input": load_volume, "shard_size": 4, **options}
    return encode_missing(requests, tasks, **settings).num_files  # type: ignore[arg-type]


def digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.suffix in (".npy", ".parquet"))
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_tokens_and_vectors_come_out_of_one_pass(tmp_path: Path) -> None:
    requests = write_volumes(tmp_path, 10)
    assert run(tmp_path / "s", requests) == 10
    ids = [request.file_id for request in requests]
    tokens_NTD = TokenRows([token_store_at(tmp_path / "s")], ids).read(np.arange(10))
    for row, request in enumerate(requests):
        with torch.inference_mode():
            expected = ENCODER(preprocess_volume(load_volume(request, request.source), ENCODER.spec)[None]).tokens_BND
        torch.testing.assert_close(tokens_NTD[[row]], expected, atol=1e-5, rtol=0)
    vectors = store_for(tmp_path / "s", ENCODER).read(ids)
    np.testing.assert_allclose(np.stack([one.features_D for one in vectors]), tokens_NTD.mean(1), atol=1e-5)
    assert run(tmp_path / "s", requests) == 0
    # vectors that are wanted later are the same ones
    run(tmp_path / "t", requests, vectors=False)
    run(tmp_path / "t", requests)
    assert digests(tmp_path / "t") == digests(tmp_path / "s")


@pytest.mark.parametrize("stop_after", [1, 4, 5, 9])
def test_a_pass_stopped_anywhere_and_run_again_ends_in_the_same_bytes(tmp_path: Path, stop_after: int) -> None:
    requests = write_volumes(tmp_path, 10)
    run(tmp_path / "whole", requests, views=2)
    count = 0

    def stopping(done: int = 1) -> None:
        nonlocal count
        count += done
        if count == stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", requests, views=2, progress=stopping)
    run(tmp_path / "stopped", requests, views=2)
    assert digests(tmp_path / "stopped") == digests(tmp_path / "whole")


def test_views_depend_on_number_and_file_alone(tmp_path: Path) -> None:
    requests = write_volumes(tmp_path, 5)
    run(tmp_path / "a", requests, views=1)
    run(tmp_path / "b", requests[2:], views=2)
    ids = [request.file_id for request in requests[2:]]
    augment = {"flip": 0.5, "flip_axes": ("H", "W"), "noise": 0.1}
    first = TokenRows([token_store_at(tmp_path / "a", View(1, augment))], ids).read(np.arange(3))
    again = TokenRows([token_store_at(tmp_path / "b", View(1, augment))], ids).read(np.arange(3))
    other = TokenRows([token_store_at(tmp_path / "b", View(2, augment))], ids).read(np.arange(3))
    torch.testing.assert_close(first, again, atol=1e-5, rtol=0)
    assert not torch.allclose(first, other, atol=1e-3)


def test_a_file_that_cannot_be_read_has_its_reason_and_no_tokens(tmp_path: Path) -> None:
    requests = write_volumes(tmp_path, 6)

    def load(request: Request, path: Path):
        if request.file_id == "id002":
            raise InputError("no volume")
        return load_volume(request, path)

    run(tmp_path / "s", requests, load_input=load)
    store = token_store_at(tmp_path / "s")
    facts = store.read_facts(["id002", "id003", "other"])
    assert facts[0].message == "no volume"
    assert facts[1].exception == ""
    assert facts[2] is None
    assert "id002" in store.known_files()
    assert set(store.places()) == {f"id{n:03d}" for n in (0, 1, 3, 4, 5)}


def test_a_broken_shard_is_named_with_its_remedy(tmp_path: Path) -> None:
    requests = write_volumes(tmp_path, 2)
    run(tmp_path / "s", requests)
    store = token_store_at(tmp_path / "s")
    [array] = store.folder.glob("*.npy")
    array.write_bytes(b"no array")
    with pytest.raises(UserError, match="Remove the file and its"):
        TokenRows([store], ["id000"]).read(np.array([0]))


def test_shards_stay_within_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [files_per_shard(2048, 1024), files_per_shard(9216, 1408), files_per_shard(4, 64)] == [32, 4, 64]
    monkeypatch.setattr(token_store, "SHARD_BYTES", 1)
    assert files_per_shard(2048, 1024) == 1
