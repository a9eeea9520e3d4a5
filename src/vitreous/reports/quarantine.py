"""The list of quarantined files for the report: keyed ids only, also inside the messages."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

import pandas as pd

from vitreous.core.privacy import keyed_id


@dataclass(frozen=True)
class QuarantinedRow:
    """One file that could not be used.

    Args:
        patient: keyed id.
        file: keyed id of the sample.
        exception: name of the error.
        message: without the file's path, the sample's and the patient's id.
    """

    patient: str
    file: str
    exception: str
    message: str


def keyed_rows(quarantined: pd.DataFrame, key: bytes) -> tuple[QuarantinedRow, ...]:
    """Bring ``data_errors.csv`` into the form that a report may show.

    Args:
        quarantined: columns patient_id, sample_id, relative, exception, message, all strings.
        key: of :func:`vitreous.core.privacy.load_id_key`.
    Raises:
        KeyError: a column is missing.
    """
    columns = quarantined[["patient_id", "sample_id", "relative", "exception", "message"]].astype(str)
    return tuple(
        QuarantinedRow(keyed_id(patient, key), keyed_id(sample, key), exception,
                       _without_ids(message, patient, sample, relative, key))
        for patient, sample, relative, exception, message in columns.itertuples(index=False)
    )  # fmt: skip


def _without_ids(message: str, patient: str, sample: str, relative: str, key: bytes) -> str:
    """Replace paths first, then whole words, so that no part of an id is left standing."""
    path = PurePosixPath(relative.lstrip("/"))
    whole = sorted({relative.strip("/"), path.name, path.stem} - {""}, key=len, reverse=True)
    for name in whole:
        # with the folders before it: the message may hold the full path of a local file
        message = re.sub(rf"[^\s:'\"]*{re.escape(name)}", f"file {keyed_id(sample, key)}", message)
    for identifier in sorted({sample, patient}, key=len, reverse=True):
        message = re.sub(rf"(?<!\w){re.escape(identifier)}(?!\w)", keyed_id(identifier, key), message)
    return message
