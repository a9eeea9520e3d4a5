"""NIfTI-1 and NIfTI-2 files (.nii, .nii.gz) as volumes.

Axes: the nearest anatomical axes of the file's affine decide. D inferior → superior, H anterior → posterior,
W right → left, as axial DICOM slices lie, whatever the order in the file; so flipped or permuted copies of an image,
with their affines, give equal volumes. A file that states no orientation (sform_code and qform_code are 0) needs the
study's `data.axes`, read as the order of the file's i, j, k.
"""

import gzip
import logging
import zlib
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from nibabel import orientations
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError

from vitreous.core.errors import InputError
from vitreous.inputs.library_messages import library_messages, without_values
from vitreous.inputs.volume import (
    DeclaredAxes,
    Facts,
    Spacing,
    Volume,
    check_declared_size,
    checked_volume,
    is_length,
)

#: Code in the lowest three bits of xyzt_units → mm: metre, millimetre, micrometre.
_MM_PER_UNIT = {1: 1000.0, 2: 1.0, 3: 0.001}
_NIFTI1_BYTES, _NIFTI2_BYTES = 348, 540
_NIFTI2_MAGIC = b"n+2\x00\r\n\x1a\n"
#: nibabel reports what it repairs in a header at these levels; from 40 on it is an error
_ERROR_LEVEL = 40
_NUMERIC_KINDS = "iuf"


def decode_nifti(path: Path, *, declared: DeclaredAxes, max_bytes: int) -> Volume:
    """Read a NIfTI file as one volume.

    Args:
        declared: axes where the file states no orientation; spacing where its unit of length is unknown.
    Raises:
        InputError: the file is damaged, has several time points or no grey values, does not state orientation
            or unit, or declares more than `max_bytes`.
    """
    with library_messages() as messages:
        try:
            with gzip.open(path) if _is_gzipped(path) else path.open("rb") as file:
                header = _read_header(file, messages)
                stored_IJK = _read_values(file, header, max_bytes)
            with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused with the whole volume
                values_IJK = _rescaled(stored_IJK, header)
                voxels_DHW, axes_source, order = _oriented(values_IJK, header, declared)
                spacing_mm, spacing_source = _spacing(header, order, declared)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(
                f"the gzip stream of the NIfTI file is damaged or truncated ({type(error).__name__})."
            ) from None
        except (HeaderDataError, ValueError, OverflowError) as error:
            raise InputError(f"the NIfTI header is damaged ({without_values(str(error))}).") from None
    facts: Facts = {
        "format": "NIfTI-2" if isinstance(header, Nifti2Header) else "NIfTI-1",
        "stored_type": str(header.get_data_dtype()),
        "axes_source": axes_source,
        "spacing_source": spacing_source,
        "warnings": "; ".join(messages),
    }
    return checked_volume(voxels_DHW, spacing_mm, facts)


def read_decoded_affine(path: Path) -> npt.NDArray[np.float64]:
    """Where the voxels of the decoded volume lie: (w, h, d, 1) → millimetres right, anterior, superior.

    Args:
        path: of a file that :func:`decode_nifti` oriented by its own affine.
    """
    with gzip.open(path) if _is_gzipped(path) else path.open("rb") as file:
        header = _read_header(file, [])
    affine = np.asarray(header.get_best_affine(), np.float64)
    affine[:3] *= _MM_PER_UNIT.get(int(header["xyzt_units"]) & 0b111, 1.0)
    shape = tuple(int(length) for length in header.get_data_shape()[:3])
    nibabel: Any = orientations
    orientation = nibabel.io_orientation(affine)
    to_canonical = nibabel.inv_ornt_aff(orientation, shape)
    extents = np.abs(np.linalg.inv(to_canonical)[:3, :3]) @ np.array(shape)  # along right, anterior, superior
    flipped = np.diag([-1.0, -1.0, 1.0, 1.0])
    flipped[:2, 3] = extents[:2] - 1
    placed: npt.NDArray[np.float64] = affine @ to_canonical @ flipped
    return placed


def _is_gzipped(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _read_header(file: Any, messages: list[str]) -> Any:
    block = file.read(_NIFTI2_BYTES)
    is_nifti2 = block[4:12] == _NIFTI2_MAGIC
    length = _NIFTI2_BYTES if is_nifti2 else _NIFTI1_BYTES
    if len(block) < length:
        raise InputError(f"the NIfTI file is truncated: {len(block)} bytes, less than a header.")
    kind: Any = Nifti2Header if is_nifti2 else Nifti1Header
    header = kind(block[:length], check=False)
    # a logger of our own: nibabel's writes to the terminal
    logger = logging.Logger("vitreous.inputs.nifti", level=logging.WARNING)
    logger.addHandler(_Collector(messages))
    header.check_fix(logger=logger, error_level=_ERROR_LEVEL)
    return header


class _Collector(logging.Handler):
    def __init__(self, messages: list[str]) -> None:
        super().__init__()
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.append(without_values(record.getMessage()))


def _read_values(file: Any, header: Any, max_bytes: int) -> npt.NDArray[np.generic]:
    """The stored values, in the file's axes I, J, K; nothing beyond the declared size is inflated."""
    shape = tuple(int(length) for length in header.get_data_shape())
    dtype = header.get_data_dtype()
    if dtype.kind not in _NUMERIC_KINDS or dtype.itemsize > 8:
        raise InputError(f"the NIfTI file holds values of type {dtype}; a volume needs one real number per voxel.")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > 3:
        raise InputError(
            f"the NIfTI file holds {prod(shape[3:])} volumes (shape {shape}): time points or channels; "
            "give one volume per file."
        )
    shape += (1,) * (3 - len(shape))
    check_declared_size(shape, bytes_per_value=dtype.itemsize, max_bytes=max_bytes)
    num_bytes = prod(shape) * dtype.itemsize
    offset = header.get_data_offset()
    if not 0 <= offset <= max_bytes:
        raise InputError(f"the NIfTI header places the values at byte {offset}, which cannot be.")
    file.seek(offset)
    data = file.read(num_bytes)
    if len(data) < num_bytes:
        raise InputError(f"the NIfTI file is truncated: {len(data):,} of {num_bytes:,} bytes of values are there.")
    file.read(1)  # the end of a gzip stream is where its checksum is compared
    return np.frombuffer(data, dtype=dtype).reshape(shape, order="F")


def _rescaled(stored_IJK: npt.NDArray[np.generic], header: Any) -> npt.NDArray[np.float32]:
    """Values after scl_slope and scl_inter; as stored where the slope is 0, as the standard says."""
    slope, intercept = header.get_slope_inter()
    if slope in (None, 1.0) and intercept in (None, 0.0):
        return stored_IJK.astype(np.float32)
    values_IJK = np.empty(stored_IJK.shape, dtype=np.float32, order="F")
    for k in range(stored_IJK.shape[2]):
        values_IJK[:, :, k] = stored_IJK[:, :, k].astype(np.float64) * slope + intercept
    return values_IJK


def _oriented(
    values_IJK: npt.NDArray[np.float32], header: Any, declared: DeclaredAxes
) -> tuple[npt.NDArray[np.float32], str, tuple[int, int, int]]:
    """The volume in D, H, W; where its axes come from; and which of I, J, K each one was."""
    if int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
        if declared.axes is None:
            raise InputError(
                "the NIfTI file states no orientation (sform_code and qform_code are 0); set the study key "
                "data.axes to the order of "
                "its axes i, j, k, e.g. `data.axes: WHD`."
            )
        order = declared.transpose_to_DHW()
        return np.ascontiguousarray(values_IJK.transpose(order)), "study", order
    affine = header.get_best_affine()
    columns_mm = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.all(np.isfinite(affine)) or columns_mm.min() <= 0 or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise InputError("the NIfTI file's orientation (affine) is singular or not finite.")
    nibabel: Any = orientations  # its functions are untyped
    orientation = nibabel.io_orientation(affine)
    canonical_RAS = nibabel.apply_orientation(values_IJK, orientation)
    source = [int(np.flatnonzero(orientation[:, 0] == axis)[0]) for axis in (2, 1, 0)]
    axial_DHW = canonical_RAS.transpose(2, 1, 0)[:, ::-1, ::-1]
    return np.ascontiguousarray(axial_DHW), "affine", (source[0], source[1], source[2])


def _spacing(header: Any, order: tuple[int, int, int], declared: DeclaredAxes) -> tuple[Spacing | None, str]:
    unit = int(header["xyzt_units"]) & 0b111
    if unit not in _MM_PER_UNIT:
        if declared.spacing_mm is None:
            raise InputError(
                "the NIfTI file does not say the unit of its spacing (xyzt_units is unknown); set the "
                "study key data.spacing_mm, "
                "e.g. `data.spacing_mm: [1.0, 1.0, 1.0]` along D, H, W."
            )
        return declared.spacing_mm, "study"
    zooms = [float(zoom) * _MM_PER_UNIT[unit] for zoom in header.get_zooms()[:3]]
    zooms += [0.0] * (3 - len(zooms))
    spacing = zooms[order[0]], zooms[order[1]], zooms[order[2]]
    if all(map(is_length, spacing)):
        return spacing, "pixdim"
    return declared.spacing_mm, "study" if declared.spacing_mm else "none"
