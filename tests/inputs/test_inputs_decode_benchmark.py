"""The benchmark of decoding reads the same frames by every reader; no time is judged."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/video_decode.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("video_decode", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_job_and_reader_stands_in_the_table(benchmark: ModuleType, tmp_path: Path) -> None:
    result = benchmark.run(tmp_path, num_frames=130, sizes=[48], repeats=1)
    readers, why = benchmark.available_readers()
    found = {(row["key_every"], row["job"], row["reader"]) for row in result["rows"]}
    jobs = [(job, name) for job in ("whole", "clip") for name in readers if (job, name) != ("whole", "PyAV, seek")]
    assert found == {(key_every, *one) for key_every in (25, 250) for one in jobs}
    assert all(row["frames_per_s"] > 0 for row in result["rows"])
    assert ("torchcodec is left out" in benchmark.as_table(result)) == (why is not None)


def test_a_reader_that_reads_other_frames_is_found(benchmark: ModuleType, tmp_path: Path) -> None:
    path = benchmark.write_mp4(tmp_path / "a.mp4", num_frames=130, size_px=48, key_every=25)
    readers, _ = benchmark.available_readers()
    benchmark.check_equal(path, readers)
    late = {**readers, "vitreous": lambda file, chosen: np.roll(readers["vitreous"](file, chosen), 1, axis=0)}
    with pytest.raises(ValueError, match="vitreous reads other frames"):
        benchmark.check_equal(path, late)
