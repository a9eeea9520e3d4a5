"""The benchmarks on clips: the study on one token cache, and the real clips; no time is judged."""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SHARED = Path(os.environ.get("VITREOUS_SHARED_DATA", Path(__file__).parents[3] / "shared/data"))


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_study_is_compared_with_encoding_in_every_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = load("video_study")
    monkeypatch.setattr(sys, "argv", ["video_study", "--quick"])
    arguments = benchmark.parse_arguments()
    found = benchmark.measure(tmp_path, arguments)
    assert found["clips"] == 160  # every second of eight frames of 40 videos
    assert found["plain_s"] == pytest.approx(found["plain_epoch_s"] * 2 * 4)
    board = pd.read_csv(tmp_path / "runs" / "known_tokens" / "leaderboard.csv")
    assert set(board["recipe"]) == {*benchmark.ROWS, "majority"}


def test_a_clip_of_unknown_fate_is_refused() -> None:
    benchmark = load("real_clips")
    manifest = pd.DataFrame({"fate": ["encoded", "encoded", "excluded"]})
    assert benchmark.account_of(manifest) == {"encoded": 2, "quarantined": 0, "excluded": 1}
    with pytest.raises(ValueError, match="of 3 clips 2 are accounted for"):
        benchmark.account_of(manifest.replace("excluded", "lost"))


@pytest.mark.real
def test_all_real_clips_are_accounted_for(tmp_path: Path) -> None:
    if not (SHARED / "pocus").is_dir():
        pytest.skip("the POCUS clips are not beside the project")
    found = load("real_clips").run_real_clips(SHARED / "pocus", tmp_path, is_quick=True)
    assert found["rows_of_the_table"] == found["clips"] == 44
    assert found["encoded"] + found["quarantined"] + found["excluded"] == 44
    assert found["encoded"] == 44
    assert found["figures"]
    assert all((tmp_path / figure).stat().st_size > 1000 for figure in found["figures"])
