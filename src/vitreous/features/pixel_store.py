"""Prepared inputs kept by content, for recipes that train on pixels: decoding happens once, not once an epoch.

Axes: C channel, D slice, H row, W column.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitreous.core.errors import RunError
from vitreous.core.files import remove_partial_files, replacing, write_json
from vitreous.core.fingerprints import fingerprint
from vitreous.core.input_spec import AnySpec, PictureSpec
from vitreous.features.store import EncodedFile

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class PixelSpace:
    """All that decides a prepared input, apart from the file.

    Args:
        spec: of the encoder; mean and standard deviation of an image or a clip come later and are no part of the key.
        versions: of decoder and preprocessing.
        declared: axes and spacing the study states for files that do not say.
    """

    spec: AnySpec
    versions: Mapping[str, int]
    declared: Mapping[str, Any]

    def describe(self) -> dict[str, Any]:
        """Plain values, as written to ``space.json``."""
        later = {"mean", "std"} if isinstance(self.spec, PictureSpec) else set()
        return {
            "spec": self.spec.model_dump(mode="json", exclude=later),
            "versions": dict(self.versions),
            "declared": dict(self.declared),
            "schema_version": SCHEMA_VERSION,
        }

    @property
    def key(self) -> str:
        """Fingerprint of :meth:`describe`; names the folder."""
        return fingerprint(self.describe())


class PixelStore:
    """Two files per input: ``<file_id>.npy``, and after it ``<file_id>.json``, its statistics or why there is none.

    Args:
        root: folder of the feature store; prepared inputs lie under ``pixels``.
    """

    def __init__(self, root: Path, space: PixelSpace) -> None:
        self.space = space
        self.root = root
        self.folder = root / "pixels" / space.key

    def known_files(self) -> set[str]:
        """Ids that need no decoding: prepared before, or refused before by the same decoder."""
        return {path.stem for path in self.folder.glob("*/*.json")}

    def write(self, file_id: str, prepared_CDHW: torch.Tensor, statistics: Mapping[str, Any]) -> None:
        """Keep one input."""
        self._make_folder()
        with replacing(self._path(file_id, ".npy")) as aside, aside.open("wb") as file:
            np.save(file, prepared_CDHW.numpy(), allow_pickle=False)
        self._write_facts(file_id, statistics, "", "")

    def write_error(self, file_id: str, statistics: Mapping[str, Any], exception: str, message: str) -> None:
        """Keep why a file has no input."""
        self._make_folder()
        self._write_facts(file_id, statistics, exception, message)

    def read(self, file_id: str) -> torch.Tensor:
        """What :meth:`write` kept, (C, D, H, W).

        Raises:
            RunError: it is not there, or not whole.
        """
        path = self._path(file_id, ".npy")
        try:
            return torch.from_numpy(np.load(path, allow_pickle=False))
        except (OSError, ValueError, EOFError) as error:
            raise RunError(
                f"{path}: a prepared input cannot be read ({error}). Remove the file and its .json; the next run makes "
                "both again."
            ) from error

    def read_facts(self, file_ids: Sequence[str]) -> list[EncodedFile | None]:
        """Statistics, or error, of these files in the order asked for; None for a file not prepared yet."""
        return [self._read_facts(file_id) for file_id in file_ids]

    def remove_partial(self) -> None:
        """Remove what a killed process left half-written."""
        for folder in self.folder.glob("*/"):
            remove_partial_files(folder)

    def _read_facts(self, file_id: str) -> EncodedFile | None:
        path = self._path(file_id, ".json")
        if not path.exists():
            return None
        return EncodedFile(file_id, None, **json.loads(path.read_text()))

    def _write_facts(self, file_id: str, statistics: Mapping[str, Any], exception: str, message: str) -> None:
        facts = {"statistics": dict(statistics), "exception": exception, "message": message}
        write_json(self._path(file_id, ".json"), facts)

    def _make_folder(self) -> None:
        # images are patient data: a store that is made here is its owner's alone
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        description = self.folder / "space.json"
        if not description.exists():
            write_json(description, self.space.describe())

    def _path(self, file_id: str, suffix: str) -> Path:
        return self.folder / file_id[:2] / f"{file_id}{suffix}"
