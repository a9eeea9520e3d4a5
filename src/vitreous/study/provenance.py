"""Where a run's numbers come from: code, environment, seeds, files."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitreous.config.study import StudyConfig
from vitreous.core.fingerprints import fingerprint
from vitreous.samples.cohort import SAMPLE_COLUMNS, Cohort
from vitreous.study.runtime import Runtime

SCHEMA_VERSION = 1
_PACKAGES = (
    "vitreous",
    "torch",
    "numpy",
    "pandas",
    "pyarrow",
    "scikit-learn",
    "scipy",
    "timm",
    "pydicom",
    "nibabel",
    "obstore",
    "safetensors",
    "hydra-core",
    "pydantic",
)


def cohort_fingerprint(cohort: Cohort) -> str:
    """Names the samples, their files' identity, split, columns and the train and val labels; test labels are sealed."""
    columns = ["sample_id", "patient_id", "relative", "item", "size", "etag", "split", "y"]
    columns += [column for column in cohort.samples.columns if column not in SAMPLE_COLUMNS]
    values = {name: cohort.samples[name].tolist() for name in columns}
    if (cohort.samples["split"] == "").all():
        # with folds every label trains in some round
        values["labels"] = cohort.patient_labels().tolist()
        if len(mixed := cohort.mixed_labels()):
            values["mixed_labels"] = [mixed.index.tolist(), mixed.tolist()]
    return fingerprint(values)


def describe_run(config: StudyConfig, runtime: Runtime, cohort: Cohort, hashes: Mapping[str, str]) -> dict[str, Any]:
    """Plain values for ``provenance.json``."""
    return {
        "schema_version": SCHEMA_VERSION,
        "study": config.name,
        "seeds": list(config.seeds),
        # what must be the same on every later start, beside the study itself
        "hashes": {**hashes, "device": runtime.device, "precision": runtime.precision},
        "key_manifest": {
            "files": int(cohort.samples["relative"].nunique()),
            "bytes": int(cohort.samples.drop_duplicates("relative")["size"].sum()),
            "sha256": cohort_fingerprint(cohort),
        },
        "starts": [_describe_start(runtime)],
    }


def _describe_start(runtime: Runtime) -> dict[str, Any]:
    """Code and environment of one start; a run that is continued by other code says so."""
    import torch

    return {
        "code": _git_state(Path(__file__)),
        "environment": {
            "python": sys.version.split()[0],
            "platform": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "device": runtime.device,
            "precision": runtime.precision,
            "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        },
    }


def _git_state(file: Path) -> dict[str, Any]:
    """Commit of the code and whether it was changed; says so where the code is not what a git checkout tracks."""
    try:
        _git(file.parent, "ls-files", "--error-unmatch", file.name)
        commit = _git(file.parent, "rev-parse", "HEAD")
        changed = _git(file.parent, "status", "--porcelain", "--", "..")
    except (OSError, subprocess.CalledProcessError):
        return {"git_sha": None, "why": "the code is not tracked by a git checkout"}
    return {"git_sha": commit, "uncommitted_changes": bool(changed)}


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()
