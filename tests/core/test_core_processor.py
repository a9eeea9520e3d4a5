"""Which processors gain from bfloat16. Oracle: descriptions as Linux and Windows give them."""

import pytest
import torch

from vitreous.core import processor
from vitreous.core.processor import multiplies_bfloat16_faster


@pytest.mark.parametrize(
    ("has_tiles", "has_avx512", "description", "expected"),
    [
        (True, True, "vendor_id\t: GenuineIntel", True),
        (False, True, "vendor_id\t: AuthenticAMD", True),
        (False, True, "vendor_id\t: GenuineIntel", False),
        (False, True, "Intel64 Family 6 Model 143 Stepping 8, GenuineIntel", False),
        (False, False, "vendor_id\t: AuthenticAMD", False),
        (False, False, "arm", False),
    ],
)
def test_bfloat16_pays_with_tiles_or_full_throughput(
    has_tiles: bool, has_avx512: bool, description: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_tiles)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_avx512)
    monkeypatch.setattr(processor, "_describe_processor", lambda: description)
    assert multiplies_bfloat16_faster.__wrapped__() is expected


def test_this_processor_is_described() -> None:
    assert processor._describe_processor()
