"""The leak gate: what is planted is refused under its name, clean cohorts pass, what is accepted is told.

Oracles: what the benchmark planted; files on disk.
"""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cohorts import study_values, write_cohort, write_study

from vitreous import cli
from vitreous.config.compose import load_study, validate_study
from vitreous.core.errors import ConfigError, LeakError
from vitreous.core.leak import ACCEPTABLE
from vitreous.features.sightings import SightingStore
from vitreous.study.data import OpenedData, open_data
from vitreous.study.encode import print_encode
from vitreous.study.leak_gate import look_at_files, pass_gate_before_encoding
from vitreous.study.plan import make_plan
from vitreous.study.run import run_study

SCRIPT = Path(__file__).parents[2] / "benchmarks/leaks.py"


def _benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("leak_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["leak_benchmark"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


BENCHMARK = _benchmark()


@pytest.fixture(autouse=True)
def _id_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITREOUS_ID_KEY", str(tmp_path / "id_key"))


@pytest.mark.parametrize("kind", [*BENCHMARK.KINDS, BENCHMARK.SHARED_SLICES])
def test_each_kind_is_refused_before_anything_is_encoded(kind: str) -> None:
    assert BENCHMARK.is_refused(kind, 1000)


@pytest.mark.parametrize("seed", [1000, 1004])
def test_clean_cohorts_pass_all_three_stages(seed: int) -> None:
    assert BENCHMARK.clean_refusal(seed) == ()


def test_every_code_that_may_be_accepted_is_planted_somewhere() -> None:
    planted = {*BENCHMARK.KINDS, BENCHMARK.SHARED_SLICES, "near_features"}  # the last in tests/features
    assert set(ACCEPTABLE) <= planted


def spoil(root: Path, sample: str = "2009") -> tuple[Path, Path]:
    """A test volume becomes a copy of a training volume."""
    source = root / "retinal_oct" / "structural_oct" / "device0" / "2000" / "2000_0.npy"
    target = root / "retinal_oct" / "structural_oct" / "device0" / sample / f"{sample}_0.npy"
    target.write_bytes(source.read_bytes())
    return source, target


def test_a_refused_run_writes_nothing_and_is_taken_up_when_accepted(tmp_path: Path) -> None:
    root = write_cohort(tmp_path / "cohort", participants=24)
    source, target = spoil(root)
    values = study_values(root, seeds=[0], floors=["majority"])
    values["encoders"].pop("second")
    with pytest.raises(LeakError) as caught:
        run_study(validate_study(values))
    assert caught.value.codes == ("exact_duplicates",)
    assert source.name in str(caught.value)
    assert target.name in str(caught.value)
    assert "leaks: {accept: [exact_duplicates]}" in str(caught.value)
    assert not (root / "runs").exists()
    assert not list((root / "features").glob("??/*/shard-*.parquet")), "no encoder has run"
    result = run_study(validate_study(values | {"leaks": {"accept": ["exact_duplicates"]}}))
    kept = json.loads((result.run_dir / "leaks.json").read_text())
    assert kept["accepted"] == ["1 pairs across splits hold the same values: a leak."]
    assert source.name not in (result.run_dir / "leaks.json").read_text(), "files that name nobody"
    for name in ("leaderboard.md", "report.html"):
        assert "Leak accepted by the study: 1 pairs across splits" in (result.run_dir / name).read_text()
    # what is tolerated decides no number: the same run goes on under another list
    more = values | {"leaks": {"accept": ["exact_duplicates", "near_duplicates"]}}
    assert run_study(validate_study(more)).run_dir == result.run_dir


def test_a_file_is_looked_at_once_and_tried_again_only_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_cohort(tmp_path / "cohort", participants=24)
    config = validate_study(study_values(root))
    decoded: list[str] = []
    load_input = OpenedData.load_input

    def counting(self: OpenedData, request: Any, path: Path) -> Any:
        decoded.append(request.source)
        return load_input(self, request, path)

    monkeypatch.setattr(OpenedData, "load_input", counting)
    first = look_at_files(config, open_data(config), 1)
    assert len(decoded) == len(first) == 36
    decoded.clear()
    again = look_at_files(config, open_data(config), 1)
    assert decoded == []
    for file_id, one in first.items():
        other = again[file_id]
        assert (one.digest, dict(one.statistics)) == (other.digest, dict(other.statistics))
        np.testing.assert_array_equal(one.slices_D, other.slices_D)
        assert one.bits_B is not None
        np.testing.assert_array_equal(one.bits_B, other.bits_B)
    spoil(root)
    look_at_files(config, open_data(config), 1)
    assert [Path(name).name for name in decoded] == ["2009_0.npy"]


def test_a_pass_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_cohort(tmp_path / "cohort", participants=24)
    config = validate_study(study_values(root))
    monkeypatch.setattr("vitreous.features.sightings.SHARD_SIZE", 10)
    write, shards = SightingStore.write, []

    def dying(self: SightingStore, seen: Any) -> None:
        if len(shards) == 2:
            raise KeyboardInterrupt
        shards.append(len(seen))
        write(self, seen)

    with monkeypatch.context() as patch:
        patch.setattr(SightingStore, "write", dying)
        with pytest.raises(KeyboardInterrupt):
            look_at_files(config, open_data(config), 1)
    count = 0

    def progress(files: int) -> None:
        nonlocal count
        count += files

    assert len(look_at_files(config, open_data(config), 1, progress=progress)) == 36
    assert count == 16


def test_during_looks_while_encoders_run_and_refuses_after(tmp_path: Path) -> None:
    root = write_cohort(tmp_path / "cohort", participants=24)
    spoil(root)
    values = study_values(root, floors=["majority"], leaks={"pixels": "during"})
    config = validate_study(values)
    gate = pass_gate_before_encoding(config, open_data(config), [], 1)
    assert gate.sightings == {}
    with pytest.raises(LeakError, match="exact_duplicates"):
        print_encode(str(write_study(tmp_path / "study.yaml", values)), [])
    assert list((root / "features").glob("??/*/shard-*.parquet")), "features were encoded meanwhile"
    assert list((root / "features" / "seen").glob("*/shard-*.parquet"))


def test_plan_refuses_on_the_table_with_exit_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_cohort(tmp_path / "cohort")
    table = (root / "participants.tsv").read_text()
    for grade, site in (("healthy", "A"), ("early", "B"), ("late", "C")):
        for other in ("site0", "site1"):
            table = table.replace(f"{other}\t{grade}", f"{site}\t{grade}")
    (root / "participants.tsv").write_text(table)
    values = study_values(root)
    with pytest.raises(LeakError, match="domain_tells_label: The column 'clinical_site' determines the label"):
        make_plan(validate_study(values))
    monkeypatch.setattr(sys, "argv", ["vitreous", "plan", str(write_study(tmp_path / "study.yaml", values))])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert "healthy 12" in " ".join(capsys.readouterr().err.split()), "the rows are named: train and val alone"
    accepted = validate_study(values | {"leaks": {"accept": ["domain_tells_label"]}})
    assert any("Leak accepted" in finding.title for finding in make_plan(accepted).findings)


@pytest.mark.parametrize(
    ("accept", "message"),
    [
        (["near_duplicate"], "leaks.accept.0"),
        (["patient_in_two_splits"], "cannot be accepted; mend the table"),
        (["label_column"], "cannot be accepted; mend the table"),
    ],
)
def test_what_cannot_be_accepted(tmp_path: Path, accept: list[str], message: str) -> None:
    root = write_cohort(tmp_path / "cohort", participants=24)
    with pytest.raises(ConfigError, match=message):
        validate_study(study_values(root, leaks={"accept": accept}))


def test_spelling_is_accepted_by_name(tmp_path: Path) -> None:
    root = write_cohort(tmp_path / "cohort", participants=24)
    table = (root / "participants.tsv").read_text()
    (root / "participants.tsv").write_text(table + table.splitlines()[1].replace("2000", "P2000", 1) + "\n")
    path = write_study(tmp_path / "study.yaml", study_values(root))
    with pytest.raises(Exception, match=r"differ only in spelling.*leak: spelling_variants"):
        open_data(load_study(str(path), []))
    assert len(open_data(load_study(str(path), ["leaks.accept=[spelling_variants]"])).cohort.samples) == 36
