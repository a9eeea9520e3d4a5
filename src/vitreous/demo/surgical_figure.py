"""Draws the figure of ``docs/synthetic_surgical.md``: the criteria one by one, as planted and in plain sight.

python -m vitreous.demo.surgical_figure --out DIR
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitreous.core.files import replacing
from vitreous.demo.surgical import PlantedBlindness, draw_surgical_video, film_frame

_SIZE_PX = 176
_MET = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1))


def draw_criteria() -> npt.NDArray[np.uint8]:
    """One row as planted, one with C2 in plain sight; a column none, C1, C2, C3 and all three of one operation."""
    video = draw_surgical_video(0, "figure")
    rows = []
    for blindness in (PlantedBlindness(), PlantedBlindness(looks_like_c1=0.0, plate_contrast=1.0)):
        row = []
        for c1, c2, c3 in _MET:
            onsets = (2.0 - 3.0 * c1, 2.0 - 3.0 * c2, 2.0 - 3.0 * c3)
            shown = dataclasses.replace(video, onset_L=onsets)
            row.append(film_frame(shown, 0.5, size_px=_SIZE_PX, blindness=blindness, seed=0, names=("figure",))[0])
        rows.append(np.concatenate(row, axis=1))
    return np.concatenate(rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Write ``synthetic_surgical.png``, in 128 colours to keep it small, into the folder given by ``--out``."""
    from PIL import Image

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder, made where it is missing")
    out: Path = parser.parse_args(argv).out
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / "synthetic_surgical.png") as aside:
        Image.fromarray(draw_criteria()).quantize(128).save(aside, format="PNG", optimize=True)


if __name__ == "__main__":
    main()
