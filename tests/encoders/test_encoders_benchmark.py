"""The benchmark of the forward pass runs and counts what the published figure counts."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/encoder_forward.py"


def test_full_size_is_4_7_tflop() -> None:
    spec = importlib.util.spec_from_file_location("encoder_forward", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        spec.loader.exec_module(module)
    assert module.forward_flop(9216, 12) / 1e12 == pytest.approx(4.7, abs=0.05)


@pytest.mark.slow
def test_all_variants_run_and_agree(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(SCRIPT),
        "--repeats",
        "1",
        "--size",
        "8",
        "64",
        "64",
        "--depth",
        "1",
        "--json",
        str(tmp_path / "out.json"),
    ]
    subprocess.run(command, check=True, capture_output=True)
    result = json.loads((tmp_path / "out.json").read_text())
    assert len(result["runs"]) == 4
    assert result["tokens"]["vitreous-fp32"]["relative_distance"] < 1e-5
    assert 0 < result["tokens"]["vitreous-bf16"]["relative_distance"] < 0.02
