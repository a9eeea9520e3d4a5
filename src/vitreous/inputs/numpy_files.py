"""NPY and NPZ files as volumes, NPZ files also as images. They say neither axes nor spacing: the study must.

Axes: N volume or image of an array that stacks several; the others are D, H, W in the order that the study
declares, or H, W and C (channel) of an image.
"""

import threading
import tokenize
import zipfile
import zlib
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from vitreous.core.errors import CircumstanceError, InputError
from vitreous.inputs.image import Image, check_declared_pixels, checked_image
from vitreous.inputs.library_messages import library_messages
from vitreous.inputs.volume import DeclaredAxes, Facts, Volume, check_declared_size, checked_volume

_NUMERIC_KINDS = "biuf"
_CHUNK = 1 << 20
_MAX_NAMES_SHOWN = 8
#: What zipfile raises on damaged, encrypted or exotic archives.
_ZIP_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,
    NotImplementedError,
)


def decode_npy(path: Path, *, declared: DeclaredAxes, max_bytes: int) -> Volume:
    """Read a .npy file of three axes as one volume.

    Raises:
        InputError: the file is damaged, not of numbers, has not three axes, the study declares no axes, or it
            takes more than `max_bytes`.
    """
    with library_messages() as messages, path.open("rb") as file:
        shape, dtype, is_fortran = _read_npy_header(file)
        _check_three_axes(shape)
        check_declared_size(shape, bytes_per_value=dtype.itemsize, max_bytes=max_bytes)
        array = _read_npy_values(file, shape, dtype, is_fortran)
        if file.read(1):
            raise InputError("the NPY file holds more than one array, or bytes that do not belong to it.")
    return _declared_volume(array, declared, {"format": "NPY", "warnings": "; ".join(messages)})


def decode_only_array(path: Path, *, declared: DeclaredAxes, max_bytes: int) -> Volume:
    """Read a .npz file that holds exactly one array, of three axes.

    Raises:
        InputError: it holds several arrays (which one must then be stated), or the array cannot be read as a
            volume.
    """
    arrays = NpzArrays(path, declared, max_bytes=max_bytes)
    if len(arrays.names) != 1:
        shown = ", ".join(arrays.names[:_MAX_NAMES_SHOWN])
        raise InputError(f"the NPZ file holds {len(arrays.names)} arrays ({shown}); say which one is the volume.")
    return arrays.volume(arrays.names[0])


class NpzArrays:
    """Arrays of an .npz file, read as volumes or images one at a time. May be used from several threads.

    The array last used stays in memory, decompressed: MedMNIST stacks all volumes of a split in one array,
    and a compressed array can only be read from its beginning.

    Args:
        declared: axes and spacing of one volume, or axes of one image; a stack has one more axis in front.
        max_bytes: the most that one array may take, and one volume or image as float32.
    Raises:
        InputError: the archive is damaged or holds no array.
    """

    def __init__(self, path: Path, declared: DeclaredAxes, *, max_bytes: int) -> None:
        self._path = path
        self._declared = declared
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._kept: tuple[str, npt.NDArray[np.generic]] | None = None
        try:
            with zipfile.ZipFile(path) as archive:
                names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        except _ZIP_DAMAGE as error:
            raise InputError(f"the NPZ file is damaged or truncated ({type(error).__name__}).") from None
        if not names:
            raise InputError("the NPZ file holds no array.")
        #: Names of the arrays, in the order of the archive.
        self.names: tuple[str, ...] = tuple(names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an array, from its header alone.

        Raises:
            InputError: there is no such array, or its header is damaged.
        """
        with self._open(name) as member:
            return _read_npy_header(member)[0]

    def volume(self, name: str, index: int = -1) -> Volume:
        """One volume.

        Args:
            name: of the array, e.g. ``train_images``.
            index: of the volume along the first axis of a stack; -1 if the array itself is the volume.
        Raises:
            InputError: the array or index is absent, the array is damaged, or it is not made of volumes.
        """
        with library_messages() as messages:
            array = self._array(name)
        if index < 0:
            _check_three_axes(array.shape)
            voxels = array
        else:
            if array.ndim != 4:
                raise InputError(
                    f"the array {name} has the shape {array.shape}; a stack of volumes has four axes (N and D, H, W)."
                )
            if index >= len(array):
                raise InputError(f"the array {name} holds {len(array)} volumes; there is none with index {index}.")
            voxels = array[index]
        facts: Facts = {"format": "NPZ", "array": name, "index": index, "warnings": "; ".join(messages)}
        check_declared_size(voxels.shape, bytes_per_value=voxels.itemsize, max_bytes=self._max_bytes)
        return _declared_volume(voxels, self._declared, facts)

    def image(self, name: str, index: int = -1) -> Image:
        """One image of 8 or 16 bits, grey or colour (red, green, blue).

        Args:
            name: of the array, e.g. ``train_images``.
            index: of the image along the first axis of a stack; -1 if the array itself is the image.
        Raises:
            InputError: the array or index is absent, the array is damaged, or it is not made of images.
        """
        axes = self._declared.axes
        if axes not in ("HW", "HWC"):
            raise InputError(f"images have the axes HW or HWC; the study declares data.axes: {axes}.")
        with library_messages() as messages:
            array = self._array(name)
        if array.ndim != len(axes) + (index >= 0):
            stack = "N and " if index >= 0 else ""
            raise InputError(
                f"the array {name} has the shape {array.shape}; with data.axes: {axes} its axes are "
                f"{stack}{', '.join(axes)}."
            )
        if index >= len(array):
            raise InputError(f"the array {name} holds {len(array)} images; there is none with index {index}.")
        stored = array if index < 0 else array[index]
        pixels_HWC = stored[..., None] if axes == "HW" else stored
        if pixels_HWC.shape[-1] not in (1, 3):
            raise InputError(
                f"an image of the array {name} has {pixels_HWC.shape[-1]} channels on its last axis; 1 (grey) or 3 "
                "(red, green, blue) are read."
            )
        if pixels_HWC.dtype.kind != "u" or pixels_HWC.dtype.itemsize > 2:
            raise InputError(
                f"the array {name} holds values of type {array.dtype}; an image needs uint8 or uint16, whose range is "
                "known."
            )
        check_declared_pixels(*pixels_HWC.shape, max_bytes=self._max_bytes)
        facts = {"format": "NPZ", "array": name, "index": index, "bits": 8 * array.dtype.itemsize}
        facts |= {"axes_source": "study", "warnings": "; ".join(messages)}
        # a copy: a stack stays in memory, and an image must not be a window into it
        return checked_image(np.array(pixels_HWC, dtype=f"u{array.dtype.itemsize}", order="C"), facts)

    def _array(self, name: str) -> npt.NDArray[np.generic]:
        with self._lock:
            if self._kept is None or self._kept[0] != name:
                self._kept = None  # before the next one is read: never two at once
                self._kept = (name, self._read(name))
            return self._kept[1]

    def _read(self, name: str) -> npt.NDArray[np.generic]:
        with self._open(name) as member:
            shape, dtype, is_fortran = _read_npy_header(member)
            num_bytes = prod(shape) * dtype.itemsize
            if num_bytes > self._max_bytes:
                raise CircumstanceError(
                    f"the array {name} declares {num_bytes:,} bytes; at most {self._max_bytes:,} are allowed. "
                    "Check the file, or allow more bytes."
                )
            return _read_npy_values(member, shape, dtype, is_fortran)

    def _open(self, name: str) -> "_Member":
        if name not in self.names:
            raise InputError(
                f"the NPZ file holds no array {name}; it holds {', '.join(self.names[:_MAX_NAMES_SHOWN])}."
            )
        return _Member(self._path, f"{name}.npy")


class _Member:
    """A member of an archive as a readable file, whose damage is an InputError."""

    def __init__(self, path: Path, name: str) -> None:
        try:
            self._archive = zipfile.ZipFile(path)
            self._file = self._archive.open(name)
        except (*_ZIP_DAMAGE, KeyError) as error:
            raise self._damaged(error) from None

    def read(self, size: int = -1) -> bytes:
        try:
            return self._file.read(size)
        except _ZIP_DAMAGE as error:
            raise self._damaged(error) from None

    def __enter__(self) -> "_Member":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._archive.close()

    @staticmethod
    def _damaged(error: Exception) -> InputError:
        return InputError(f"an array of the NPZ file is damaged, truncated or encrypted ({type(error).__name__}).")


def _read_npy_header(file: IO[bytes] | _Member) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """Shape, type and order of an array, without its values; objects, which could run code, are refused."""
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if read is None:
            raise InputError(f"the NPY header has version {version[0]}.{version[1]}; 1.0 and 2.0 are read.")
        shape, is_fortran, dtype = read(file)
    except (ValueError, TypeError, SyntaxError, EOFError, OverflowError, tokenize.TokenError) as error:
        raise InputError(f"the NPY header is damaged or truncated ({type(error).__name__}).") from None
    if dtype.kind not in _NUMERIC_KINDS or dtype.itemsize > 8:
        raise InputError(f"the array holds values of type {dtype}; a volume needs one real number per voxel.")
    if any(length < 1 for length in shape):
        raise InputError(f"the array is empty: its shape is {shape}.")
    return shape, dtype, is_fortran


def _read_npy_values(
    file: IO[bytes] | _Member, shape: tuple[int, ...], dtype: np.dtype[Any], is_fortran: bool
) -> npt.NDArray[np.generic]:
    """Values of the declared size, read into place; the caller has checked that size."""
    num_bytes = prod(shape) * dtype.itemsize
    values = np.empty(prod(shape), dtype=dtype)
    into = values.view(np.uint8).data
    done = 0
    while done < num_bytes and (chunk := file.read(min(_CHUNK, num_bytes - done))):
        into[done : done + len(chunk)] = chunk
        done += len(chunk)
    if done < num_bytes:
        raise InputError(f"the array is truncated: {done:,} of {num_bytes:,} bytes are there.")
    return values.reshape(shape, order="F" if is_fortran else "C")


def _check_three_axes(shape: tuple[int, ...]) -> None:
    if len(shape) != 3:
        raise InputError(
            f"the array has the shape {shape}; a volume has three axes, without channels. State an index "
            "if it stacks several."
        )


def _declared_volume(array: npt.NDArray[np.generic], declared: DeclaredAxes, facts: Facts) -> Volume:
    with np.errstate(over="ignore"):  # an overflow becomes infinite, which is refused with the whole volume
        voxels_DHW = np.ascontiguousarray(array.transpose(declared.transpose_to_DHW()), dtype=np.float32)
    if voxels_DHW.base is not None or voxels_DHW is array:
        voxels_DHW = voxels_DHW.copy()  # a stack stays in memory; a volume must not be a window into it
    sources: Facts = {"axes_source": "study", "spacing_source": "study" if declared.spacing_mm else "none"}
    return checked_volume(voxels_DHW, declared.spacing_mm, {**facts, "stored_type": str(array.dtype), **sources})
