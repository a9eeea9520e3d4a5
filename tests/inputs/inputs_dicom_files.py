"""DICOM files made on the spot for the tests of the inputs room, and python-gdcm as a second reader.

Axes: D frame, H row, W column.
"""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    JPEGLSNearLossless,
    OphthalmicTomographyImageStorage,
    RLELossless,
)

PATIENT_NAME = "Zebrowski^Quirin"
PATIENT_ID = "PAT-77113"

_ENCODERS = {
    RLELossless: ("pylibjpeg", {}),
    JPEGLSLossless: ("pyjpegls", {}),
    JPEGLSNearLossless: ("pyjpegls", {"jls_error": 2}),
    JPEG2000Lossless: ("pylibjpeg", {}),
}


def smooth_volume(shape: tuple[int, int, int], dtype: str, bits_stored: int, seed: int = 0) -> npt.NDArray[Any]:
    """Smooth values with noise that fill the range of the stored bits, ends included."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(0, 3, n) for n in shape), indexing="ij"))
    values = np.sin(grid).sum(axis=0) + 0.1 * rng.standard_normal(shape)
    unit = (values - values.min()) / (values.max() - values.min())
    low = -(1 << (bits_stored - 1)) if dtype.startswith("int") else 0
    return np.round(low + unit * ((1 << bits_stored) - 1)).astype(dtype)


def image_dataset(
    stored_DHW: npt.NDArray[Any],
    *,
    bits_stored: int | None = None,
    photometric: str = "MONOCHROME2",
    **elements: Any,
) -> Dataset:
    """A dataset around stored values, uncompressed; `elements` are set last."""
    dataset = Dataset()
    dataset.SOPClassUID = OphthalmicTomographyImageStorage
    dataset.SOPInstanceUID = pydicom.uid.generate_uid()
    dataset.PatientName, dataset.PatientID = PATIENT_NAME, PATIENT_ID
    dataset.PatientBirthDate = "19470203"
    dataset.Modality = "OPT"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, photometric
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = stored_DHW.shape
    dataset.BitsAllocated = stored_DHW.dtype.itemsize * 8
    dataset.BitsStored = bits_stored or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(stored_DHW.dtype.kind == "i")
    data = stored_DHW.tobytes()
    dataset.PixelData = data + b"\x00" * (len(data) % 2)
    dataset["PixelData"].VR = "OB" if stored_DHW.dtype.itemsize == 1 else "OW"
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def write_dicom(path: Path, dataset: Dataset, syntax: str = ExplicitVRLittleEndian) -> Path:
    """Write the dataset in a transfer syntax, encoding its pixel data where that asks for it."""
    syntax = pydicom.uid.UID(syntax)
    stored_DHW = _stored(dataset)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = (
        dataset.SOPClassUID,
        dataset.SOPInstanceUID,
    )
    meta.TransferSyntaxUID = syntax
    meta.FileMetaInformationGroupLength = 0  # present, so that it is written right
    if syntax == JPEGBaseline8Bit:
        dataset.PixelData = encapsulate([jpeg_frame(frame) for frame in stored_DHW])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
    elif syntax in _ENCODERS:
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta = meta
        plugin, options = _ENCODERS[syntax]
        dataset.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False, **options)
        meta = dataset.file_meta
    elif syntax == ExplicitVRBigEndian and stored_DHW is not None:
        # 8-bit values stay in byte words (OB); wider ones are swapped
        dataset.PixelData = stored_DHW.astype(stored_DHW.dtype.newbyteorder(">")).tobytes()
    file = FileDataset(str(path), dataset, file_meta=meta, preamble=b"\x00" * 128)
    pydicom.dcmwrite(
        path,
        file,
        implicit_vr=syntax == ImplicitVRLittleEndian,
        little_endian=syntax != ExplicitVRBigEndian,
        force_encoding=True,
        enforce_file_format=False,
    )
    return path


def jpeg_frame(frame_HW: npt.NDArray[np.uint8]) -> bytes:
    """One JPEG baseline stream, by Pillow."""
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(frame_HW).save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


def group(**items: Any) -> Dataset:
    """A functional group: sequence name = dict of its one item's elements."""
    result = Dataset()
    for name, elements in items.items():
        item = Dataset()
        for keyword, value in elements.items():
            setattr(item, keyword, value)
        setattr(result, name, [item])
    return result


def plane_groups(positions_mm: Sequence[Sequence[float]], orientation: Sequence[float]) -> list[Dataset]:
    """Per-frame groups that place each frame."""
    return [
        group(
            PlanePositionSequence={"ImagePositionPatient": list(position)},
            PlaneOrientationSequence={"ImageOrientationPatient": list(orientation)},
        )
        for position in positions_mm
    ]


def gdcm_stored(path: Path) -> npt.NDArray[Any]:
    """Stored values (D, H, W) as python-gdcm decodes them, in stored order."""
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read(), f"gdcm cannot read {path.name}"
    image = reader.GetImage()
    pixel_format = image.GetPixelFormat()
    kind = "i" if pixel_format.GetPixelRepresentation() else "u"
    lengths = [image.GetDimension(axis) for axis in range(image.GetNumberOfDimensions())]
    if pixel_format.GetBitsAllocated() == 1:
        packed = np.frombuffer(image.GetBuffer().encode("utf-8", "surrogateescape"), dtype=np.uint8)
        bits = np.unpackbits(packed, bitorder="little")[: int(np.prod(lengths))]
        return bits.reshape(lengths[::-1]).reshape(-1, lengths[1], lengths[0])
    dtype = np.dtype(f"{kind}{pixel_format.GetBitsAllocated() // 8}")
    values = np.frombuffer(image.GetBuffer().encode("utf-8", "surrogateescape"), dtype=dtype)
    unused = dtype.itemsize * 8 - pixel_format.GetBitsStored()
    if unused and kind == "i":  # gdcm leaves the sign of JPEG-LS, which knows none, to its caller
        values = np.right_shift(np.left_shift(values, unused), unused)
    return values.reshape(-1, lengths[1], lengths[0])


def _stored(dataset: Dataset) -> Any:
    if "PixelData" not in dataset or dataset.get("BitsAllocated") not in (8, 16, 32):
        return None
    dtype = f"{'i' if dataset.PixelRepresentation else 'u'}{dataset.BitsAllocated // 8}"
    shape = (int(dataset.get("NumberOfFrames", 1)), dataset.Rows, dataset.Columns)
    num_bytes = int(np.prod(shape)) * dataset.BitsAllocated // 8
    if num_bytes == 0 or num_bytes > len(dataset.PixelData):
        return None
    return np.frombuffer(dataset.PixelData[:num_bytes], dtype=dtype).reshape(shape)
