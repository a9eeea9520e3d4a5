"""DICOM files as volumes: one multi-frame (or single-frame) grey image, rescaled and in spatial order.

Axes: D frame, H row, W column. Values are `slope * stored + intercept`, per frame where the file says so.
MONOCHROME1 is inverted within the range that the stored bits can hold: `low + high - value`, with `low` and
`high` the ends of that range after the rescale (which equals inverting the stored value first). Stored
integers above 2^24 are rounded to float32.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitreous.core.errors import InputError
from vitreous.inputs.dicom_geometry import FrameGeometry, FrameGroups, Rescale, frame_geometry, frame_rescale
from vitreous.inputs.dicom_header import damage_as_input_error, read_header
from vitreous.inputs.dicom_pixels import PixelLayout, iterate_frames, pixel_layout, read_pixel_element
from vitreous.inputs.library_messages import library_messages
from vitreous.inputs.volume import DeclaredAxes, Facts, Volume, check_declared_size, checked_volume


def decode_dicom(path: Path, *, declared: DeclaredAxes, max_bytes: int, is_headless: bool = False) -> Volume:
    """Read a DICOM file as one volume; at most the file, the volume and one frame are in memory.

    Args:
        declared: its spacing is used where the file states none.
        is_headless: the file lacks the preamble; it counts as DICOM only if it parses strictly as an image.
    Raises:
        InputError: the file is damaged, holds no grey image, declares more than `max_bytes`, or cannot be
            decoded.
    """
    size = path.stat().st_size
    if size > max_bytes:
        raise InputError(
            f"the file has {size:,} bytes; at most {max_bytes:,} are allowed. Allow more bytes per volume."
        )
    # what overflows becomes infinite, which is refused by name further on
    with library_messages() as messages, np.errstate(over="ignore", invalid="ignore"):
        header = read_header(path.read_bytes(), is_headless=is_headless, max_bytes=max_bytes)
        with damage_as_input_error("the DICOM header is damaged"):
            layout = pixel_layout(header)
            shape = (layout.num_frames, layout.rows, layout.columns)
            check_declared_size(shape, bytes_per_value=layout.bits_allocated // 8, max_bytes=max_bytes)
            groups = FrameGroups(header.elements, layout.num_frames)
            geometry, rescale = frame_geometry(groups), frame_rescale(groups)
        with damage_as_input_error("the DICOM pixel data is damaged"):
            frames = iterate_frames(read_pixel_element(header), layout, header)
            voxels_DHW = _place_frames(frames, layout, geometry, rescale)
    spacing_mm = geometry.spacing_mm or declared.spacing_mm
    facts: Facts = {
        "format": "DICOM",
        "transfer_syntax": header.transfer_syntax.name,
        "photometric": layout.photometric,
        "bits_allocated": layout.bits_allocated,
        "bits_stored": layout.bits_stored,
        "is_signed": int(layout.is_signed),
        "frame_order": geometry.order_source,
        "spacing_source": geometry.spacing_source if geometry.spacing_mm else "study" if spacing_mm else "none",
        "warnings": "; ".join([*messages, *geometry.notes]),
    }
    return checked_volume(voxels_DHW, spacing_mm, facts)


def _place_frames(
    frames: Iterator[npt.NDArray[np.generic]], layout: PixelLayout, geometry: FrameGeometry, rescale: Rescale
) -> npt.NDArray[np.float32]:
    """Rescale each decoded frame straight into its slice."""
    voxels_DHW = np.empty((layout.num_frames, layout.rows, layout.columns), dtype=np.float32)
    exact_HW = np.empty((layout.rows, layout.columns), dtype=np.float64)
    num_frames = 0
    for index, frame_HW in enumerate(frames):
        slope, intercept = rescale.slopes[index], rescale.intercepts[index]
        if layout.photometric == "MONOCHROME1":
            low, high = layout.stored_range
            slope, intercept = -slope, slope * (low + high) + intercept
        slice_HW = voxels_DHW[geometry.rank[index]]
        if slope == 1.0 and intercept == 0.0:
            slice_HW[...] = frame_HW
        else:
            np.multiply(frame_HW, slope, out=exact_HW)
            exact_HW += intercept
            slice_HW[...] = exact_HW
        num_frames += 1
    if num_frames != layout.num_frames:
        raise InputError(f"the DICOM header declares {layout.num_frames} frames, its pixel data holds {num_frames}.")
    return voxels_DHW
