"""The last step before the report: every choice is made, test is opened once, every chosen head is scored.

Axes: N row, D feature.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitreous.config.data_kinds import Data
from vitreous.config.study import StudyConfig
from vitreous.core.files import write_json, write_text
from vitreous.core.input_spec import item_noun
from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.task_scores import co_occurrence, score_rows, true_co_occurrence
from vitreous.features.token_store import TokenRows
from vitreous.recipes.probe_outputs import kept_logits
from vitreous.reports.figures import confusion_matrix_svg
from vitreous.study.encode import StudyFeatures
from vitreous.study.ensembles import average_test_logits, member_folders
from vitreous.study.few_shot import few_shot_rows, hash_few_shot
from vitreous.study.floors import row_features
from vitreous.study.heads import hash_model, read_model, read_tensors, read_test_logits
from vitreous.study.ledger import Ledger
from vitreous.study.partitions import Partition
from vitreous.study.row import Row, is_on_pixels
from vitreous.study.run_directory import RunDirectory
from vitreous.study.segmentation import TEST_MAPS, mask_classes, score_test_maps


def evaluate_all(
    config: StudyConfig,
    directory: RunDirectory,
    rows: Sequence[Row],
    partitions: Sequence[Partition],
    features: StudyFeatures,
    columns: Sequence[str],
    read_mask: Callable[[str, str, tuple[int, int]], npt.NDArray[np.uint8] | None],
) -> None:
    """Predict and score the test split with every chosen head.

    The look is written to the ledger with a fingerprint of all choices before a label is handed out.

    Args:
        columns: of the table, for the floor `columns`.
        read_mask: class map of a sample by encoder and relative path, at a size; asked after the look alone, of rows
            that segment.
    """
    units = [(row, partition, seed) for row in rows for partition in partitions for seed in row.seeds]
    folders = [directory.unit(row.encoder, row.recipe_name, seed, partition.fold) for row, partition, seed in units]
    choices = {str(folder.relative_to(directory.root)): hash_model(folder) for folder in folders}
    choices |= hash_few_shot(directory, few_shot_rows(config, rows), partitions)
    labels = Ledger(directory.ledger).open_test_labels(
        [partition.cohort for partition in partitions],
        features.samples["sample_id"].tolist(),
        purpose=f"final evaluation of {len(rows)} rows",
        choices=choices,
    )
    samples = features.samples
    # an ensemble averages what its members predict, so that it comes after them
    order = sorted(zip(units, folders, strict=True), key=lambda unit: unit[0][0].ensemble is not None)
    for (row, partition, seed), folder in order:
        test_rows = partition.rows("test")
        ids = samples["sample_id"].to_numpy(np.str_)[test_rows]
        test = Predictions(
            ids,
            samples["patient_id"].to_numpy(np.str_)[test_rows],
            np.array([labels[name] for name in ids], dtype=np.int64),
            average_test_logits(
                folder, member_folders(directory, rows, row.ensemble, seed, partition.fold), config.data.classes
            )
            if row.ensemble is not None
            else _test_logits(row, partition, folder, features, columns, ids.tolist(), config.data.classes),
            config.data.classes,
            task=config.data.task,
        )
        maps = {}
        if (folder / TEST_MAPS).exists():
            relatives = samples["relative"].to_numpy()[test_rows].tolist()
            masks = partial(_read_mask, read_mask, row.encoder, relatives)
            maps = {"segmentation": score_test_maps(folder, mask_classes(config.data), masks)}
        _write_scores(folder, test, config.data, maps)


def _test_logits(
    row: Row,
    partition: Partition,
    folder: Path,
    features: StudyFeatures,
    columns: Sequence[str],
    sample_ids: Sequence[str],
    classes: Sequence[str],
) -> npt.NDArray[np.float64]:
    if is_on_pixels(row.recipe):
        return read_test_logits(folder, sample_ids, classes)
    inputs = row_features(row, partition, features, columns)
    test_rows = partition.rows("test")
    of_test = inputs.select(test_rows) if isinstance(inputs, TokenRows) else inputs[test_rows]
    return kept_logits(read_tensors(folder), of_test)


def _read_mask(
    read: Callable[[str, str, tuple[int, int]], npt.NDArray[np.uint8] | None],
    encoder: str,
    relatives: Sequence[str],
    row: int,
    size: tuple[int, int],
) -> npt.NDArray[np.uint8] | None:
    return read(encoder, relatives[row], size)


def _write_scores(folder: Path, test: Predictions, data: Data, maps: Mapping[str, Any]) -> None:
    thresholds = read_model(folder).get("thresholds")
    test = test if thresholds is None else test.with_thresholds([thresholds[name] for name in test.classes])
    scored = test.scored(data.aggregate)
    val = Predictions.read(folder / "val_preds.parquet", test.classes).scored(data.aggregate)
    test.write(folder / "test_preds.parquet")
    patients = {}
    if scored.is_per_patient:
        scored.write(folder / "test_preds_patient.parquet")
    else:
        patients = {
            f"n_{split}_patients": len(np.unique(one.patient_id_N)) for split, one in (("val", val), ("test", scored))
        }
    matrix_CC = co_occurrence(scored)
    write_text(folder / "confusion_matrix.svg", confusion_matrix_svg(matrix_CC.tolist(), test.classes))
    write_json(
        folder / "metrics.json",
        {
            "schema_version": 1,
            "unit": "participants" if scored.is_per_patient else item_noun(data.modality),
            "n_val": len(val.y_true_N),
            "n_test": len(scored.y_true_N),
            **patients,
            "val": _plain(score_rows(val)),
            "test": _plain(score_rows(scored)),
            "test_confusion": matrix_CC.tolist(),
            **({} if thresholds is None else _of_labels(thresholds, val, scored)),
            **maps,
        },
    )


def _of_labels(thresholds: Mapping[str, float], val: Predictions, test: Predictions) -> dict[str, Any]:
    """What only several labels a row have: the thresholds chosen on val, and which labels come together."""
    return {
        "thresholds": dict(thresholds),
        "classes": list(test.classes),
        "val_co_occurrence": true_co_occurrence(val).tolist(),
        "test_co_occurrence": true_co_occurrence(test).tolist(),
    }


def _plain(scores: Mapping[str, float | Undefined]) -> dict[str, Any]:
    """Numbers as they are; an undefined metric as null with its reason beside it."""
    plain: dict[str, Any] = {}
    for name, score in scores.items():
        if isinstance(score, Undefined):
            plain[name] = None
            plain[f"{name}_undefined"] = score.reason
        else:
            plain[name] = score
    return plain
