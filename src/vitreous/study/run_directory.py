"""The run directory: who it belongs to, and where each artefact lies."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vitreous.config.compose import validate_study
from vitreous.config.study import PLACES, StudyConfig
from vitreous.core.errors import StudyMismatchError, UserError
from vitreous.core.files import write_json, write_text

_REFRESH = "data.refresh_listing"


@dataclass(frozen=True)
class RunDirectory:
    """Paths of one run. See the contract in docs/run_directory.md."""

    root: Path

    def unit(self, encoder: str, recipe: str, seed: int, fold: int | None = None) -> Path:
        """Folder of one trained head."""
        return self.round(encoder, recipe, fold) / f"seed{seed}"

    def round(self, encoder: str, recipe: str, fold: int | None = None) -> Path:
        """Folder of the heads of one row, or with folds of one round of it."""
        middle = () if fold is None else (f"fold{fold}",)
        return self.root.joinpath(encoder, recipe, *middle)

    def best_of_grid(self, encoder: str, recipe: str) -> Path:
        """Folder of the val predictions of the setting that is best over all folds."""
        return self.root.joinpath(encoder, recipe, "best_of_grid")

    @property
    def study_yaml(self) -> Path:
        return self.root / "study.yaml"

    @property
    def provenance(self) -> Path:
        return self.root / "provenance.json"

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.jsonl"

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.parquet"

    @property
    def data_errors(self) -> Path:
        return self.root / "data_errors.csv"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    def receipt(self, encoder: str) -> Path:
        """Load receipt of one encoder."""
        return self.root / "receipts" / f"{encoder}.json"


def claim(directory: RunDirectory, config: StudyConfig, provenance: Mapping[str, Any]) -> list[str]:
    """Make the directory this study's, or check that it already is.

    Returns:
        A sentence for each key that differs from the first start and changes no number, with why.

    Args:
        directory: where the run lives.
        config: resolved study.
        provenance: its `hashes` (of the cohort and of each encoder's weights, and where is computed) must be the
            same on every later run; its `starts` are added to those before, where code or environment changed.

    Raises:
        StudyMismatchError: other settings or other data made the directory; names the keys that differ.
    """
    settings = resolved_settings(config)
    idle: list[str] = []
    if directory.study_yaml.exists():
        first = yaml.safe_load(directory.study_yaml.read_text())
        idle = idle_differences(first, settings)
        kept, now = comparable_settings(first), comparable_settings(settings)
        if directory.provenance.exists():
            kept |= flatten_keys(json.loads(directory.provenance.read_text())["hashes"], "content")
            now |= flatten_keys(provenance["hashes"], "content")
        if different := differing_keys(kept, now):
            raise StudyMismatchError(
                f"{directory.root}: this run was made by other settings; different: {', '.join(different)}. "
                "Give the study another name (name=…), or remove the folder to start over."
            )
    else:
        write_text(directory.study_yaml, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
    kept_starts = json.loads(directory.provenance.read_text())["starts"] if directory.provenance.exists() else []
    starts = [*kept_starts, *(start for start in provenance["starts"] if start not in kept_starts)]
    write_json(directory.provenance, {**provenance, "starts": starts})
    return idle


def kept_study(directory: RunDirectory) -> StudyConfig:
    """The study a run was made by.

    Raises:
        UserError: the folder is no run directory.
    """
    if not directory.study_yaml.exists():
        raise UserError(f"{directory.root}: no run directory (it has no study.yaml); give runs/<study>.")
    return validate_study(yaml.safe_load(directory.study_yaml.read_text()), where=str(directory.study_yaml))


def resolved_settings(config: StudyConfig) -> dict[str, Any]:
    """Every key of the study with the value it took, as plain values; not `search`, which a run does not read."""
    return config.model_dump(mode="json", exclude={"search"})


def different_settings(one: StudyConfig, other: StudyConfig) -> list[str]:
    """Keys of two studies that differ, with both values, apart from their names and what says where things are kept."""
    first, second = (comparable_settings(resolved_settings(config)) for config in (one, other))
    names = sorted((first.keys() | second.keys()) - {"name"})
    return [
        f"{name} ({first.get(name, 'absent')!r} and {second.get(name, 'absent')!r})"
        for name in names
        if first.get(name, "absent") != second.get(name, "absent")
    ]


def comparable_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key → value of all that decides a run's numbers."""
    flat = flatten_keys({key: value for key, value in settings.items() if key not in PLACES})
    flat.pop(_REFRESH, None)
    return flat


def idle_differences(kept: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A sentence for each key that differs and changes no number, with why it does not."""
    reasons = {**PLACES, _REFRESH: "whether a bucket is listed again; other files found there are another cohort"}
    before, after = flatten_keys(kept), flatten_keys(now)
    said = []
    for name, why in reasons.items():
        keys = [key for key in sorted(before.keys() | after.keys()) if key == name or key.startswith(f"{name}.")]
        if any(before.get(key) != after.get(key) for key in keys):
            said.append(f"{name} differs from the first start and changes no number: it says {why}.")
    return said


def flatten_keys(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted key → value."""
    if isinstance(value, Mapping) and value:
        flat: dict[str, Any] = {}
        for key, item in value.items():
            flat |= flatten_keys(item, f"{prefix}.{key}" if prefix else str(key))
        return flat
    return {prefix: value}


def differing_keys(kept: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """``key (a then, b now)`` for every key whose value differs, or that one side lacks."""
    names = sorted(kept.keys() | now.keys())
    return [
        f"{name} ({kept.get(name, 'absent')!r} then, {now.get(name, 'absent')!r} now)"
        for name in names
        if kept.get(name, "absent") != now.get(name, "absent")
    ]
