"""Reading tables and ids. Oracle: pandas for well-formed tables; ids grouped by hand."""

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitreous.core.errors import SampleError
from vitreous.samples.identifiers import find_spelling_variants, match_spelling
from vitreous.samples.tables import read_table


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(("suffix", "mark"), [(".tsv", "\t"), (".csv", ",")])
def test_as_pandas_reads_it(tmp_path: Path, suffix: str, mark: str) -> None:
    frame = pd.DataFrame({"id": ["01", "2"], "text": [f'say "a{mark}b"', "é"], "empty": ["", "NA"]}, dtype="str")
    frame.to_csv(tmp_path / f"t{suffix}", sep=mark, index=False)
    table = read_table(tmp_path / f"t{suffix}")
    pd.testing.assert_frame_equal(table.frame.reset_index(drop=True), frame)
    assert list(table.frame.index) == [2, 3]
    assert table.findings == ()


def test_spaces_byte_order_mark_and_empty_columns(tmp_path: Path) -> None:
    text = "\ufeffparticipant_id\t label \t\t\n\n01001\ta \t\t\n01002\tb\n"
    table = read_table(write(tmp_path / "t.tsv", text), "s3://eye/t.tsv")
    assert list(table.frame.columns) == ["participant_id", "label"]
    assert table.frame["label"].to_dict() == {3: "a", 4: "b"}
    assert [finding.code for finding in table.findings] == ["empty_columns", "stray_spaces", "stray_spaces"]
    assert all("s3://eye/t.tsv" in finding.title for finding in table.findings)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.xlsx", "a", r"a table ends in \.tsv or \.csv; got '\.xlsx'"),
        ("t.tsv", "", "the file is empty"),
        ("t.tsv", "a\tb\n1\t2\n3\n4\t5\t6\n", r"lines 3 \(1\), 4 \(3\) do not have the 2 fields.*2 lines in all"),
        ("t.tsv", "a\tb\ta\n1\t2\t3\n", "columns appear twice: 'a'"),
        ("t.tsv", "a\t\tb\n1\t2\t3\n", "columns 2 have content but no name"),
        ("t.tsv", 'a\tb\n"1\t2\n', "line 2: .*mend the line or its quotes"),
    ],
)
def test_bad_tables(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(SampleError, match=message):
        read_table(write(tmp_path / name, text))


def test_other_encoding_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match=r"is not UTF-8 text \(byte 2\); save it as UTF-8"):
        read_table(write(tmp_path / "t.csv", "a\né\n", "latin-1"))
    with pytest.raises(SampleError, match=r"none\.csv: No such file"):
        read_table(tmp_path / "none.csv")


def test_spelling_variants() -> None:
    ids = ["1001", "01001", "P1001", "1002", "A7", "B7", "b07", "x", "X", "2001", "2001.0", "12001"]
    assert find_spelling_variants(ids) == [("01001", "1001", "P1001"), ("2001", "2001.0"), ("B7", "b07"), ("X", "x")]
    assert match_spelling(["P1001", "C7", "b7", "9"], ["1001", "B7"]) == [("P1001", "1001"), ("b7", "B7")]


@given(st.integers(1, 10**6), st.integers(0, 3), st.sampled_from(["", "P", "sub-", "S_"]), st.integers(1, 10**6))
def test_spelling_of_any_number(number: int, zeros: int, prefix: str, other: int) -> None:
    spelled = prefix + "0" * zeros + str(number)
    assert bool(find_spelling_variants([str(number), spelled])) == (spelled != str(number))
    assert bool(find_spelling_variants([str(other), spelled])) == (other == number and spelled != str(other))
