"""The benchmark of training runs, and its figures agree with one another and with closed forms; no time is judged."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks/finetune.py"
# 6 blocks, 64 wide, three times as wide inside, patches of 16: 2 × 2 tokens and the class token
TINY = ["--model", "test_vit", "--size", "32", "--images", "8", "--batch", "4", "--epochs", "1"]
DEPTH, WIDTH, TOKENS, PATCHES, PATCH_VALUES, CLASSES = 6, 64, 5, 4, 3 * 16 * 16, 2
ADAPTATIONS = ["finetune", "lora", "partial", "partial, cached"]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("finetune_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        spec.loader.exec_module(module)
    return module


def call(function: Any, *options: str) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(SCRIPT), *options])
        return function()


@pytest.fixture(scope="module")
def measured(benchmark: ModuleType) -> dict[str, dict[str, Any]]:
    arguments = call(benchmark.parse_arguments, *TINY)
    return {name: benchmark.measure_adaptation(name, arguments) for name in ADAPTATIONS}


def test_parameters_that_train_are_those_of_the_closed_forms(measured: dict[str, dict[str, Any]]) -> None:
    head = (WIDTH + 1) * CLASSES
    block = 10 * WIDTH**2 + 12 * WIDTH
    stem = PATCH_VALUES * WIDTH + WIDTH + WIDTH + TOKENS * WIDTH
    whole = DEPTH * block + stem + 2 * WIDTH + head
    assert measured["finetune"]["trainable"] == measured["finetune"]["total"] == whole
    assert measured["lora"]["trainable"] == DEPTH * 8 * (WIDTH + 3 * WIDTH) + head
    for name in ("partial", "partial, cached"):
        assert measured[name]["trainable"] == 2 * block + 2 * WIDTH + head


def test_flops_of_a_step_are_those_of_the_closed_forms(measured: dict[str, dict[str, Any]]) -> None:
    flops = {name: row["flops_per_image"] for name, row in measured.items()}
    forward = 2 * TOKENS * 10 * WIDTH**2 + 4 * TOKENS**2 * WIDTH  # with weights, and of attention
    stem = 2 * PATCHES * PATCH_VALUES * WIDTH
    head = 2 * WIDTH * CLASSES
    # the way back takes each product twice, for what went in and for the weights, but images have no gradient
    assert flops["finetune"] == 3 * (DEPTH * forward + head) + 2 * stem
    assert flops["partial, cached"] == 3 * (2 * forward + head)
    assert flops["partial"] - flops["partial, cached"] == stem + (DEPTH - 2) * forward
    assert flops["partial"] < flops["lora"] < flops["finetune"]


def test_prefix_is_charged_to_the_cached_variant_alone(measured: dict[str, dict[str, Any]]) -> None:
    assert [name for name, row in measured.items() if row["prefix_s"]] == ["partial, cached"]
    cached = measured["partial, cached"]
    assert 0 < cached["prefix_s"] < cached["call_s"]
    assert cached["amortised_epoch_s"] == cached["epoch_s"] + cached["prefix_s"]
    assert all(row["images_per_s"] == pytest.approx(8 / row["epoch_s"]) for row in measured.values())


def test_overhead_compares_as_many_steps_of_every_loop(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(benchmark.main, *TINY, "--part", "overhead", "--repeats", "2", "--json", str(tmp_path / "out.json"))
    overhead = json.loads((tmp_path / "out.json").read_text())["overhead"]
    names = [row["name"] for row in overhead["rows"]]
    assert names == ["timm", "bare", "engine", "engine, augmented"]
    bare = overhead["rows"][1]
    for row in overhead["rows"]:
        # two epochs of two steps, and what lies between the ends of the two
        (first_s, first_cpu_s), (second_s, second_cpu_s) = overhead["wall_and_cpu_s_per_step"][row["name"]]
        assert row["least_ms"] == pytest.approx(1e3 * min(first_s, second_s))
        assert row["median_cpu_ms"] == pytest.approx(500 * (first_cpu_s + second_cpu_s))
        assert row["median_ms_over_bare"] == pytest.approx(row["median_ms"] / bare["median_ms"] - 1)
    assert "| engine, augmented |" in capsys.readouterr().out


@pytest.mark.slow  # five processes
def test_every_adaptation_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), *TINY, "--part", "adaptations", "--json", str(tmp_path / "out.json")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    rows = json.loads((tmp_path / "out.json").read_text())["adaptations"]["rows"]
    assert [row["name"] for row in rows] == ADAPTATIONS
    assert all(f"| {name} |" in done.stdout for name in ADAPTATIONS)
    assert all(row["peak_memory_mb"] > 0 for row in rows)
    assert all(value == 1 for key, value in rows[0].items() if key.endswith("_ratio"))
    # beside weights and their gradients the optimiser keeps two numbers for each that trains
    assert rows[0]["peak_memory_mb"] > max(row["peak_memory_mb"] for row in rows[1:])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_gpu_preset_is_refused_without_cuda(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        call(benchmark.parse_arguments, "--gpu")
    assert "torch finds no CUDA here" in capsys.readouterr().err


@pytest.mark.parametrize("images", ["4", "9"])
def test_images_that_do_not_fill_two_batches_are_refused(
    benchmark: ModuleType, images: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        call(benchmark.parse_arguments, "--images", images, "--batch", "4")
    assert f"got {images} and 4" in capsys.readouterr().err
