"""Figures and page of explanations. Oracle: what a figure draws, read back; the same numbers give the same bytes."""

import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitreous.reports.explain_figures import (
    ShownInput,
    ShownMap,
    _aspect,
    enlarged,
    entropy_png,
    grey,
    overview_png,
    slices_png,
)
from vitreous.reports.explain_page import PageSample, write_page


def shown(kind: str, shape: tuple[int, int, int, int], extent: tuple[float, float, float] | None = None) -> ShownInput:
    picture = np.random.default_rng(0).random(shape, dtype=np.float32)
    return ShownInput(picture, kind, extent, "a1b2c3: late 0.91")  # type: ignore[arg-type]


def shown_map(grid: tuple[int, int, int], failures: tuple[str, ...] = ()) -> ShownMap:
    values = np.arange(np.prod(grid), dtype=np.float32).reshape(grid)
    curve = np.linspace(0.9, 0.2, 5)
    share = np.linspace(0, 1, 5)
    return ShownMap("rollout", values, failures, 0.3, 0.8, (0.5, 0.4, 0.6), share, curve, curve[::-1], curve)


@pytest.mark.parametrize(
    ("kind", "shape", "grid"),
    [("image", (1, 32, 32, 3), (1, 4, 4)), ("volume", (8, 32, 32, 1), (4, 4, 4)), ("clip", (8, 32, 32, 3), (4, 4, 4))],
)
def test_an_overview_is_a_picture_and_again_the_same_bytes(
    kind: str, shape: tuple[int, int, int, int], grid: tuple[int, int, int]
) -> None:
    maps = [shown_map(grid), shown_map(grid, ("deletion",))]
    first = overview_png(shown(kind, shape), maps)
    assert first == overview_png(shown(kind, shape), maps)
    assert first != overview_png(shown(kind, shape), maps[::-1])
    with Image.open(io.BytesIO(first)) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300


def test_every_slice_up_to_24_is_shown() -> None:
    sizes = []
    for count in (1, 6, 24, 60):
        with Image.open(io.BytesIO(slices_png(shown("volume", (count, 8, 8, 1)), shown_map((1, 2, 2))))) as picture:
            sizes.append(picture.size)
    assert sizes[2] == sizes[3]
    assert sizes[0][0] < sizes[1][0] == sizes[2][0]


def test_what_failed_is_said() -> None:
    assert shown_map((1, 2, 2)).verdict == "passes its checks"
    assert shown_map((1, 2, 2), ("deletion", "random head")).verdict == "NOT FAITHFUL: deletion, random head"


def test_a_map_is_enlarged_over_its_own_cells() -> None:
    large = enlarged(np.array([[[0.0, 1.0], [0.0, 3.0]]], np.float32), (1, 4, 8))
    assert large.shape == (1, 4, 8)
    assert large[0, 3, 7] == pytest.approx(1.0)
    assert large[0, :, 0].max() == 0.0
    assert large[0, 0, 7] == pytest.approx(1 / 3)
    assert enlarged(np.full((1, 2, 2), 5.0, np.float32), (1, 4, 4)).max() == 0.0, "a map of one value marks nothing"


def test_grey_is_the_luminance() -> None:
    assert grey(np.array([[[[1.0, 0.0, 0.0]]]], np.float32)) == pytest.approx(0.299)
    assert grey(np.array([[[[0.4]]]], np.float32)) == pytest.approx(0.4)


def test_projections_keep_their_extent_but_never_become_a_hair() -> None:
    even = shown("volume", (8, 32, 32, 1), (6.0, 6.0, 6.0))
    assert _aspect(even, 0) == pytest.approx(1.0)
    assert _aspect(even, 1) == pytest.approx(32 / 8), "eight slices over the same millimetres"
    thin = shown("volume", (8, 32, 32, 1), (6.0, 0.1, 6.0))
    assert _aspect(thin, 0) == pytest.approx(0.5)


def test_entropies_of_one_state_or_two() -> None:
    values = [[0.9, 0.8], [0.5, 0.4], [0.6, 0.7]]
    one = entropy_png([("frozen", values)], 1, "Attention of vit / linear")
    two = entropy_png([("frozen", values), ("adapted", values)], 3, "Attention of vit / lora")
    widths = []
    for content in (one, two):
        with Image.open(io.BytesIO(content)) as picture:
            widths.append(picture.size[0])
    assert widths[0] < widths[1]


class _Images(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag in ("img", "link", "script", "a"):
            self.found.append(dict(attributes))


def test_the_page_is_offline_and_counts_what_passes(tmp_path: Path) -> None:
    row = {
        "method": "rollout", "verdict": "not faithful", "failed": "insertion", "deletion": 0.3, "insertion": 0.5,
        "random_mean": 0.5, "random_low": 0.4, "random_high": 0.6, "encoder_correlation": 0.1, "head_correlation": None,
    }  # fmt: skip
    good = {**row, "method": "gradcam", "verdict": "faithful", "failed": "", "head_correlation": 0.2}
    sample = PageSample("a1b2", "val", "<late>", 0.9, [row, good], ["gradcam_slices.png"])
    write_page(tmp_path / "index.html", model="vit / linear, seed 0", samples=[sample], attention=True)
    text = (tmp_path / "index.html").read_text()
    assert "1 of 2 maps pass" in text
    assert "&lt;late&gt;" in text
    assert "not asked" in text
    parser = _Images()
    parser.feed(text)
    places = [one.get("src") or one.get("href") for one in parser.found]
    assert places == ["attention.png", "a1b2/overview.png", "a1b2/gradcam_slices.png"]
    assert all(one.get("alt") for one in parser.found if "src" in one)
