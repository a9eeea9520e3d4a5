"""Atomic files, fingerprints, streams, keyed ids. Oracles: the operating system, hashlib, hmac."""

import hashlib
import hmac
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitreous.core.errors import UserError
from vitreous.core.files import remove_partial_files, replacing, write_json, write_text
from vitreous.core.fingerprints import canonical_json, fingerprint, hash_file
from vitreous.core.privacy import keyed_id, load_id_key
from vitreous.core.streams import numpy_stream, stream_seed, torch_stream


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_text(path, "old")

    def write_half() -> None:
        with replacing(path) as aside:
            aside.write_text("half")
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["metrics.json"]


def test_a_killed_write_leaves_no_file_of_that_name(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from vitreous.core.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as aside:\n    aside.write_text('half'); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "x.csv")], check=False)
    assert done.returncode == -9
    assert not (tmp_path / "x.csv").exists()
    assert len(os.listdir(tmp_path)) == 1
    remove_partial_files(tmp_path)
    assert os.listdir(tmp_path) == []


def test_json_cannot_hold_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "x.json", {"auroc": float("nan")})
    assert os.listdir(tmp_path) == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_fingerprint_ignores_the_order_of_keys(value: dict[str, object]) -> None:
    assert fingerprint(value) == fingerprint(dict(reversed(value.items())))
    assert fingerprint(value) == hashlib.sha256(canonical_json(value).encode()).hexdigest()


def test_fingerprint_refuses_what_json_cannot_say() -> None:
    with pytest.raises(TypeError, match="plain values; got ndarray"):
        fingerprint({"weights": np.zeros(2)})


def test_hash_file_equals_hashlib(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(os.urandom(3_000_001))
    assert hash_file(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_stream_depends_on_its_name_alone() -> None:
    alone = numpy_stream(3, "order", 7).permutation(10)
    numpy_stream(3, "dropout", 7).random(100)
    assert np.array_equal(numpy_stream(3, "order", 7).permutation(10), alone)
    names = [("order", 1), ("order", 11), ("order", "1"), ("order1",), ("order", 1, 1)]
    assert len({stream_seed(0, *name) for name in names}) == len(names)
    assert torch_stream(0, "init").initial_seed() == stream_seed(0, "init")


def test_keyed_ids_are_hmacs_and_the_key_is_private(tmp_path: Path) -> None:
    key = load_id_key(tmp_path / "key")
    assert load_id_key(tmp_path / "key") == key
    assert (tmp_path / "key").stat().st_mode & 0o077 == 0
    assert keyed_id("1001", key) == hmac.new(key, b"1001", "sha256").hexdigest()[:10]
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(UserError, match="may be read by others; run chmod 600"):
        load_id_key(tmp_path / "key")


def test_a_short_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"abc")
    (tmp_path / "key").chmod(0o600)
    with pytest.raises(UserError, match="has 3 bytes, needs 32"):
        load_id_key(tmp_path / "key")
