"""The benchmark of V-JEPA 2's forward pass: one set of weights in all variants, and the published size; no time is
judged."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks/vjepa2_forward.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("vjepa2_forward", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        spec.loader.exec_module(module)
    return module


def test_full_size_is_1_65_tflop(benchmark: ModuleType) -> None:
    assert benchmark.forward_flop(2048, 24, 1024, benchmark.PATCH_VALUES) / 1e12 == pytest.approx(1.65, abs=0.01)


def test_all_kinds_give_the_same_tokens(benchmark: ModuleType) -> None:
    size = (4, 32, 32)
    clip_BCDHW = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        eager, sdpa, own = (
            benchmark.build_model(kind, size, benchmark.QUICK).eval()(clip_BCDHW) for kind in benchmark.KINDS
        )
    assert eager.shape == (1, 8, 96)
    torch.testing.assert_close(sdpa, eager, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(own, eager, atol=1e-5, rtol=1e-5)
