"""From a file to a volume: the content decides which decoder reads it."""

from pathlib import Path

from vitreous.inputs.file_format import recognise_volume_format
from vitreous.inputs.volume import DeclaredAxes, Volume


def decode_volume(path: Path, *, declared: DeclaredAxes, max_bytes: int) -> Volume:
    """Read one file as one volume. The format is that of the content, whatever the name.

    Error messages name neither the path nor a tag of the patient: the caller knows which sample it asked for.

    Args:
        declared: axes and spacing from the study, used where the file does not state them.
        max_bytes: the most that the decoded volume (as float32), the stored values, and a DICOM file itself
            may take; checked on the declared size, before anything is allocated or inflated.
    Raises:
        InputError: the file cannot be used as one volume; the message says why and what to do.
    """
    match recognise_volume_format(path):
        case "dicom":
            from vitreous.inputs.dicom import decode_dicom

            return decode_dicom(path, declared=declared, max_bytes=max_bytes, is_headless=False)
        case "dicom without preamble":
            from vitreous.inputs.dicom import decode_dicom

            return decode_dicom(path, declared=declared, max_bytes=max_bytes, is_headless=True)
        case "nifti" | "gzipped nifti":
            from vitreous.inputs.nifti import decode_nifti

            return decode_nifti(path, declared=declared, max_bytes=max_bytes)
        case "npy":
            from vitreous.inputs.numpy_files import decode_npy

            return decode_npy(path, declared=declared, max_bytes=max_bytes)
        case "npz":
            from vitreous.inputs.numpy_files import decode_only_array

            return decode_only_array(path, declared=declared, max_bytes=max_bytes)
