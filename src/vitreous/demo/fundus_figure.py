"""Draws the figure of ``docs/synthetic_fundus.md``: the five grades as each camera sees them.

python -m vitreous.demo.fundus_figure --out DIR
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitreous.core.files import replacing
from vitreous.demo.fundus import CAMERAS, draw_fundus_eye, photograph
from vitreous.demo.fundus_lesions import GRADES

_SIZE_PX = 224


def draw_grades() -> npt.NDArray[np.uint8]:
    """One row a camera, one column a grade; the same eye in a column."""
    rows = []
    for camera in CAMERAS.values():
        row = np.zeros((_SIZE_PX, _SIZE_PX * len(GRADES), 3), np.uint8)
        for grade in GRADES:
            eye = draw_fundus_eye(float(grade), "right", 0, "figure", grade)
            picture_HWC = photograph(eye, camera, size_px=_SIZE_PX, seed=0, names=("figure", grade))
            height, width = picture_HWC.shape[:2]
            top, left = (_SIZE_PX - height) // 2, (_SIZE_PX - width) // 2
            row[top : top + height, grade * _SIZE_PX + left : grade * _SIZE_PX + left + width] = picture_HWC
        rows.append(row)
    return np.concatenate(rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Write ``synthetic_fundus.png``, in 128 colours to keep it small, into the folder given by ``--out``."""
    from PIL import Image

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder, made where it is missing")
    out: Path = parser.parse_args(argv).out
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / "synthetic_fundus.png") as aside:
        Image.fromarray(draw_grades()).quantize(128).save(aside, format="PNG", optimize=True)


if __name__ == "__main__":
    main()
