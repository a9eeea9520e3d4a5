"""The folder of one trained head: written whole, recognised when a run is continued, read by everything after.

``model.json`` is written last; a folder that has it is finished.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import yaml
from safetensors.numpy import load_file, save

from vitreous.core.errors import RunError
from vitreous.core.files import replacing, write_bytes, write_json, write_text
from vitreous.core.fingerprints import fingerprint, hash_file
from vitreous.core.predictions import Predictions

SCHEMA_VERSION = 1
TEST_LOGITS = "test_logits.parquet"


@dataclass(frozen=True)
class Head:
    """One trained head.

    Args:
        seed: of the training.
        setting: what was chosen, as plain values.
        write_weights: writes ``best.safetensors`` (and what belongs to it) into the folder it is given.
        history: one row per epoch; empty for recipes without epochs.
        best_epoch: the epoch whose weights are kept, 0 for recipes without epochs.
        val_score: the study's metric on val.
        val: predictions of the val samples.
        test_logits: sample ids and logits (N, C) of the test samples, without labels, where predicting needs the model.
    """

    seed: int
    setting: Mapping[str, Any]
    write_weights: Callable[[Path], None]
    history: Sequence[Mapping[str, Any]]
    best_epoch: int
    val_score: float
    val: Predictions
    test_logits: tuple[npt.NDArray[np.str_], npt.NDArray[np.float64]] | None = None


def write_tensors(tensors: Mapping[str, npt.NDArray[Any]], folder: Path) -> None:
    """Weights and standardiser of a head on features, as ``best.safetensors``."""
    arrays = {name: np.ascontiguousarray(value) for name, value in sorted(tensors.items())}
    write_bytes(folder / "best.safetensors", save(arrays))


def write_head(folder: Path, head: Head, *, unit: str, model: Mapping[str, Any], recipe: Mapping[str, Any]) -> None:
    """Write the folder of one head.

    Args:
        unit: fingerprint of all that decided the head; a later run continues only from the same.
        model: what `predict` needs besides the tensors: encoder, input spec, pooling, …
        recipe: the recipe as the study has it.
    """
    classes = head.val.classes
    spelt = {"learning_rate": "lr", "metric": "distance"}  # the study file's names of what was chosen
    chosen = {spelt.get(name, name): value for name, value in head.setting.items()}
    keys = {*recipe, *recipe.get("grid", {})} - {"grid"}
    effective = {**recipe, **{name: value for name, value in chosen.items() if name in keys}}
    effective.pop("grid", None)
    write_text(folder / "config.yaml", yaml.safe_dump(effective, sort_keys=True))
    write_json(folder / "class_to_idx.json", {name: index for index, name in enumerate(classes)})
    with replacing(folder / "history.csv") as aside:
        pd.DataFrame(head.history).to_csv(aside, index=False)
    head.val.write(folder / "val_preds.parquet")
    head.write_weights(folder)
    if head.test_logits is not None:
        ids, logits_NC = head.test_logits
        columns = {f"logit_{name}": logits_NC[:, index] for index, name in enumerate(classes)}
        with replacing(folder / TEST_LOGITS) as aside:
            pd.DataFrame({"sample_id": ids, **columns}).to_parquet(aside, index=False)
    write_json(
        folder / "model.json",
        {
            **model,
            "schema_version": SCHEMA_VERSION,
            "unit": unit,
            "classes": list(classes),
            **_labels_facts(head.val),
            "seed": head.seed,
            "setting": dict(head.setting),
            "best_epoch": head.best_epoch,
            "val_score": head.val_score,
        },
    )


def _labels_facts(val: Predictions) -> dict[str, Any]:
    """What predicting several labels a row needs besides the weights: the thresholds that were chosen on val."""
    if val.task == "multi_class":
        return {}
    if val.thresholds_NC is None or not len(val.thresholds_NC):
        raise RunError("a model of several labels has no thresholds; please report this with the study file.")
    return {"task": val.task, "thresholds": dict(zip(val.classes, val.thresholds_NC[0].tolist(), strict=True))}


def read_test_logits(folder: Path, sample_ids: Sequence[str], classes: Sequence[str]) -> npt.NDArray[np.float64]:
    """Logits (N, C) kept with a model on pixels, in the order of `sample_ids`."""
    frame = pd.read_parquet(folder / TEST_LOGITS).set_index("sample_id").loc[list(sample_ids)]
    return frame[[f"logit_{name}" for name in classes]].to_numpy(np.float64)


def is_finished(folder: Path, unit: str) -> bool:
    """Whether the folder holds a whole head made by the same settings."""
    path = folder / "model.json"
    return path.exists() and json.loads(path.read_text())["unit"] == unit


def hash_model(folder: Path) -> str:
    """Fingerprint of what predicts: head and changed weights, and adapters where they lie apart."""
    adapters = sorted((folder / "adapter").glob("*"))
    return fingerprint([hash_file(file) for file in [folder / "best.safetensors", *adapters]])


def read_model(folder: Path) -> dict[str, Any]:
    """``model.json`` of a finished head."""
    model: dict[str, Any] = json.loads((folder / "model.json").read_text())
    return model


def read_tensors(folder: Path) -> dict[str, npt.NDArray[Any]]:
    """Weights and standardiser of a finished head."""
    tensors: dict[str, npt.NDArray[Any]] = load_file(folder / "best.safetensors")
    return tensors


def read_history(folder: Path) -> pd.DataFrame:
    """Training curves; empty for recipes without epochs."""
    path = folder / "history.csv"
    return pd.read_csv(path) if path.stat().st_size > 1 else pd.DataFrame()
