"""Draws the figures of ``docs/synthetic_cohort.md``: B-scans of every scanner, and the retina seen from above.

python -m vitreous.demo.figure --out DIR
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitreous.core.files import replacing
from vitreous.demo.acquisition import FloatArray, ScanGeometry, scan_eye
from vitreous.demo.anatomy import LAYERS, Eye, draw_eye, draw_person
from vitreous.demo.scanners import SCANNERS, SITES

ROWS = (("severity 0", 0.0, False), ("severity 0, boundaries", 0.0, True), ("severity 3", 3.0, False))


def _scan(severity: float, device: str) -> tuple[Eye, FloatArray, FloatArray, ScanGeometry]:
    eye = draw_eye(draw_person(severity, 60, 0, "figure"), "R", 0, "figure")
    return eye, *scan_eye(eye, "R", SCANNERS[device], SITES["harbour"], 0, "figure")


def _lesion_frame(eye: Eye, geometry: ScanGeometry) -> int:
    """The frame that lies nearest to most lesions of an eye; the foveal one where there are none."""
    lesion_y = eye.lesions.centre_L3[:, 1]
    near_D = [float(np.sum(np.abs(lesion_y - y) < 0.1)) - 0.5 * abs(y) for y in geometry.y_DW.mean(axis=1)]
    return int(np.argmax(near_D))


def _save(figure: Any, path: Path) -> None:
    """Write a figure as PNG of 64 colours; speckle does not compress, so fewer colours keep the file small."""
    from PIL import Image

    figure.set_dpi(80)
    figure.canvas.draw()
    picture = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3]).quantize(64)
    with replacing(path) as aside:
        picture.save(aside, format="PNG", optimize=True)


def draw_bscans(path: Path) -> None:
    """One B-scan per scanner: healthy, with layer boundaries, and at severity 3; PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(ROWS), len(SCANNERS), figsize=(12, 5.6), layout="constrained")
    colours = plt.get_cmap("turbo")(np.linspace(0.05, 0.95, len(LAYERS) + 1))
    for row, (title, severity, has_lines) in enumerate(ROWS):
        for column, (device, scanner) in enumerate(SCANNERS.items()):
            eye, grey, _, geometry = _scan(severity, device)
            frame = _lesion_frame(eye, geometry) if severity else scanner.num_frames // 2
            axis = axes[row, column]
            extent = (0, scanner.width_mm, scanner.depth_mm, 0)
            axis.imshow(grey[frame], cmap="gray", vmin=0, vmax=1, extent=extent, aspect="auto")
            if has_lines:
                across = (np.arange(scanner.num_columns) + 0.5) * scanner.spacing_mm[2]
                for boundary, colour in zip(geometry.boundaries_KDW[:, frame], colours):
                    axis.plot(across, boundary, color=colour, linewidth=0.6)
                axis.set_ylim(scanner.depth_mm, 0)
            axis.set_title(f"{device}, {title}", fontsize=8)
            axis.tick_params(labelsize=6)
    figure.supxlabel("fast scan (mm)", fontsize=8)
    figure.supylabel("depth (mm), stretched", fontsize=8)
    _save(figure, path)
    plt.close(figure)


def draw_enface(path: Path) -> None:
    """Mean log reflectivity over depth, noiseless, of the same eye at severity 0 and 3; PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(12, 3.6), layout="constrained")
    for axis, (device, severity) in zip(axes, [("aurora", 0.0), ("aurora", 3.0), ("delta", 0.0), ("delta", 3.0)]):
        scanner = SCANNERS[device]
        _, _, light, _ = _scan(severity, device)
        extent = (0, scanner.width_mm, 0, scanner.height_mm)
        axis.imshow(np.log10(light).mean(axis=1), cmap="gray", origin="lower", extent=extent)
        axis.set_title(f"{device}, severity {severity:g}", fontsize=8)
        axis.tick_params(labelsize=6)
    figure.supxlabel("fast scan (mm)", fontsize=8)
    figure.supylabel("slow scan (mm)", fontsize=8)
    _save(figure, path)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: write both figures."""
    parser = argparse.ArgumentParser(prog="python -m vitreous.demo.figure", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the figures")
    out = parser.parse_args(arguments).out
    draw_bscans(out / "synthetic_bscans.png")
    draw_enface(out / "synthetic_enface.png")


if __name__ == "__main__":
    main()
