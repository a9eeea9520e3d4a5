"""A volume as a multi-frame DICOM file, byte for byte decided by its content.

Axes: D frame, H row, W column.
"""

import warnings
from dataclasses import dataclass
from datetime import date
from io import BytesIO

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEGLSLossless, RLELossless

from vitreous.core.fingerprints import hash_bytes
from vitreous.demo.scanners import Scanner

OPHTHALMIC_TOMOGRAPHY = UID("1.2.840.10008.5.1.4.1.1.77.1.5.4")
IMPLEMENTATION_UID = UID("2.25.188305284902473127513690274610585014231")
"""Written into the file meta of every synthetic file, whatever the version of pydicom."""

RESCALE_SLOPE, RESCALE_INTERCEPT = 0.0625, -64.0
"""16-bit files: stored value = (output value - intercept) / slope, where output is 4 * grey * 255 - 64."""

_SYNTAX = {"none": ExplicitVRLittleEndian, "rle": RLELossless, "jpeg-ls": JPEGLSLossless}
_PLUGIN = {"rle": "pylibjpeg", "jpeg-ls": "pyjpegls"}


@dataclass(frozen=True)
class FileFacts:
    """What the header says besides the pixels.

    Args:
        names: decide the file's UIDs; equal names give equal UIDs.
    """

    participant_id: str
    laterality: str
    visit: date
    names: tuple[str, ...]


def derived_uid(*names: str) -> UID:
    """A UID under 2.25 from the SHA-256 of the names.

    >>> derived_uid("a") == derived_uid("a") != derived_uid("b")
    True
    """
    return UID(f"2.25.{int(hash_bytes(chr(31).join(names).encode())[:31], 16)}")


def stored_values(grey_DHW: npt.NDArray[np.float32], bits: int) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    """Grey values in [0, 1] as the integers of the file."""
    if bits == 8:
        return np.round(grey_DHW * 255).astype(np.uint8)
    return np.round((4 * 255 * grey_DHW - 64 - RESCALE_INTERCEPT) / RESCALE_SLOPE).astype(np.uint16)


def encode_dicom(grey_DHW: npt.NDArray[np.float32], scanner: Scanner, facts: FileFacts) -> bytes:
    """The file's bytes: Ophthalmic Tomography Image Storage with shared and per-frame functional groups."""
    stored_DHW = stored_values(grey_DHW, scanner.bits)
    data = _header(scanner, facts)
    data.PixelData = stored_DHW.tobytes()
    data["PixelData"].VR = "OW"
    if scanner.compression != "none":
        data.compress(
            _SYNTAX[scanner.compression],
            stored_DHW,
            encoding_plugin=_PLUGIN[scanner.compression],
            generate_instance_uid=False,
        )
    buffer = BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def encode_oversized(scanner: Scanner, facts: FileFacts) -> bytes:
    """A small file whose header declares 4,000 frames of 60,000 x 60,000 pixels."""
    data = _header(scanner, facts)
    data.Rows, data.Columns, data.NumberOfFrames = 60_000, 60_000, 4_000
    data.PixelData = bytes(4096)
    data["PixelData"].VR = "OW"
    buffer = BytesIO()
    with warnings.catch_warnings():
        # pydicom says that the pixel data are too short, which is the purpose
        warnings.simplefilter("ignore", UserWarning)
        data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _header(scanner: Scanner, facts: FileFacts) -> FileDataset:
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = OPHTHALMIC_TOMOGRAPHY
    meta.MediaStorageSOPInstanceUID = derived_uid(*facts.names, "instance")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = IMPLEMENTATION_UID
    meta.ImplementationVersionName = "VITREOUS_DEMO"
    data = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    data.SpecificCharacterSet = "ISO_IR 192"
    data.ImageType = ["ORIGINAL", "PRIMARY"]
    data.SOPClassUID = OPHTHALMIC_TOMOGRAPHY
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID = derived_uid(*facts.names[:-1], "study")
    data.SeriesInstanceUID = derived_uid(*facts.names, "series")
    data.FrameOfReferenceUID = derived_uid(*facts.names, "frame of reference")
    visit = facts.visit.strftime("%Y%m%d")
    data.StudyDate = data.SeriesDate = data.ContentDate = visit
    data.StudyTime = data.SeriesTime = data.ContentTime = "120000"
    data.AcquisitionDateTime = visit + "120000"
    data.Modality = "OPT"
    data.Manufacturer, data.ManufacturerModelName = scanner.manufacturer, scanner.model
    data.PatientName, data.PatientID, data.PatientBirthDate, data.PatientSex = "", facts.participant_id, "", ""
    data.ImageLaterality = facts.laterality
    data.InstanceNumber = 1
    data.BurnedInAnnotation = "NO"
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.NumberOfFrames, data.Rows, data.Columns = scanner.num_frames, scanner.num_rows, scanner.num_columns
    data.BitsAllocated = data.BitsStored = scanner.bits
    data.HighBit, data.PixelRepresentation = scanner.bits - 1, 0
    data.SharedFunctionalGroupsSequence = Sequence([_shared_groups(scanner, facts.laterality)])
    data.PerFrameFunctionalGroupsSequence = Sequence(
        [_frame_groups(scanner, frame) for frame in range(scanner.num_frames)]
    )
    return data


def _one(**elements: object) -> Sequence:
    """A sequence of one item."""
    item = Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return Sequence([item])


def _shared_groups(scanner: Scanner, laterality: str) -> Dataset:
    spacing_d, spacing_h, spacing_w = scanner.spacing_mm
    groups = Dataset()
    groups.PixelMeasuresSequence = _one(
        PixelSpacing=[spacing_h, spacing_w], SliceThickness=spacing_d, SpacingBetweenSlices=spacing_d
    )
    # patient axes are left, posterior, up: rows run across, columns into the eye, frames upwards
    groups.PlaneOrientationSequence = _one(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    groups.FrameAnatomySequence = _one(
        FrameLaterality=laterality,
        AnatomicRegionSequence=_one(CodeValue="5665001", CodingSchemeDesignator="SCT", CodeMeaning="Retina"),
    )
    if scanner.bits == 16:
        groups.PixelValueTransformationSequence = _one(
            RescaleIntercept=RESCALE_INTERCEPT, RescaleSlope=RESCALE_SLOPE, RescaleType="US"
        )
    return groups


def _frame_groups(scanner: Scanner, frame: int) -> Dataset:
    groups = Dataset()
    groups.FrameContentSequence = _one(StackID="1", InStackPositionNumber=frame + 1, DimensionIndexValues=[frame + 1])
    groups.PlanePositionSequence = _one(ImagePositionPatient=[0, 0, round(frame * scanner.spacing_mm[0], 6)])
    return groups
