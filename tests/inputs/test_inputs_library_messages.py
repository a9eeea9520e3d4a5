"""Warnings of the reading libraries become facts of the volume that caused them, and reach nobody else."""

import logging
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inputs_dicom_files import image_dataset, smooth_volume, write_dicom
from pydicom.uid import ImplicitVRLittleEndian

from vitreous.inputs.decode import decode_volume
from vitreous.inputs.library_messages import library_messages, without_values
from vitreous.inputs.volume import DeclaredAxes

#: Warns and logs from within pydicom, as its reading functions do.
_PYDICOM: dict[str, Any] = {"__name__": "pydicom.filereader"}
exec("from pydicom.misc import warn_and_log\ndef say(*args): warn_and_log(*args)", _PYDICOM)
say = _PYDICOM["say"]


def test_a_warning_of_pydicom_is_collected_once_without_its_values(recwarn: pytest.WarningsRecorder) -> None:
    with library_messages() as messages:
        say("Invalid value for VR PN: 'Zebrowski^Quirin' doesn't fit")
        say("Invalid value for VR PN: 'Zebrowski^Anna' doesn't fit")
    assert messages == ["Invalid value for VR PN: … doesn't fit"]
    assert len(recwarn) == 0


def test_afterwards_everything_is_as_before() -> None:
    before, show = list(warnings.filters), warnings.showwarning
    with library_messages(), library_messages():
        pass
    assert warnings.filters == before
    assert warnings.showwarning is show
    with pytest.warns(UserWarning, match="as loud as ever"):
        say("as loud as ever")


def test_inner_blocks_collect_for_themselves() -> None:
    with library_messages() as outer:
        with library_messages() as inner:
            say("inner")
        say("outer")
    assert (outer, inner) == (["outer"], ["inner"])


def test_deprecations_are_not_swallowed() -> None:
    with library_messages() as messages, pytest.raises(DeprecationWarning, match="soon gone"):
        say("soon gone", DeprecationWarning)
    assert messages == ["soon gone"]  # from the log; the warning itself stays an error of this test suite


def test_threads_collect_their_own_and_others_still_hear_theirs(caplog: pytest.LogCaptureFixture) -> None:
    together = threading.Barrier(4, timeout=20)

    def read(number: int) -> list[str]:
        with library_messages() as messages:
            together.wait()
            for _ in range(50):
                say(f"file {number}")
            together.wait()
        return messages

    def listen() -> None:
        together.wait()
        logging.getLogger("pydicom").warning("of another thread")
        together.wait()

    with ThreadPoolExecutor(4) as pool, caplog.at_level(logging.WARNING):
        readers = [pool.submit(read, number) for number in range(3)]
        pool.submit(listen).result()
        assert [reader.result() for reader in readers] == [["file 0"], ["file 1"], ["file 2"]]
    assert [record.message for record in caplog.records] == ["of another thread"]


def test_a_volume_carries_the_warnings_of_its_file(tmp_path: Path) -> None:
    """A dataset in implicit form whose header says explicit: pydicom warns and reads it as it is."""
    written = smooth_volume((2, 9, 9), "uint16", 16)
    path = write_dicom(tmp_path / "a.dcm", image_dataset(written), ImplicitVRLittleEndian)
    stated, claimed = b"UI\x12\x00" + b"1.2.840.10008.1.2\x00", b"UI\x14\x00" + b"1.2.840.10008.1.2.1\x00"
    path.write_bytes(path.read_bytes().replace(stated, claimed))
    volume = decode_volume(path, declared=DeclaredAxes(), max_bytes=1 << 20)
    np.testing.assert_array_equal(volume.voxels_DHW, written)
    assert volume.facts["warnings"] == "Expected explicit VR, but found implicit VR - using implicit VR for reading"


def test_messages_are_one_line_and_short() -> None:
    assert without_values("a\n  b 'c d' \"e\" isn't") == "a b … … isn't"
    assert len(without_values("x" * 1000)) == 160
