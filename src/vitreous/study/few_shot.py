"""Few-shot curves: heads on kept features, trained once more on a few patients of each class, several draws each.

Patients are drawn from train; val chooses as ever; logits of test are kept before any test label is read, so that the
one look of the ledger serves them too. Axes: N row, P patient, C class.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitreous.config.probe_recipes import Knn, LinearProbe, LogisticRegression, MlpProbe
from vitreous.config.study import FewShot, StudyConfig
from vitreous.core.errors import SampleError, UserError
from vitreous.core.files import replacing, write_json
from vitreous.core.fingerprints import fingerprint, hash_bytes, hash_file
from vitreous.core.label_sets import Task, memberships
from vitreous.core.predictions import Predictions
from vitreous.core.progress import progress_bar
from vitreous.core.streams import numpy_stream
from vitreous.core.undefined import Undefined
from vitreous.evidence.task_scores import with_chosen_thresholds
from vitreous.recipes.attentive_probe import FittedAttentive
from vitreous.recipes.feature_set import FeatureSet
from vitreous.recipes.selection import select_member
from vitreous.study.adapt import TRAINING_VERSION, fit_row, predict_val, score_on_val
from vitreous.study.adapt_pixels import PixelRun
from vitreous.study.floors import row_features
from vitreous.study.partitions import Partition, feature_set
from vitreous.study.row import Row
from vitreous.study.run_directory import RunDirectory

SCHEMA_VERSION = 1
_FACTS, _LOGITS = "few_shot.json", "few_shot_logits.parquet"


@dataclass(frozen=True)
class Drawn:
    """One head of a curve.

    Args:
        patients: asked for of each class.
        draw: number of the draw; draws of one number are nested, the smaller in the larger.
        num_train: patients trained on.
        setting: chosen on val.
        val: the study's metric; undefined where no head could be trained, with the reason.
        thresholds: of labels, chosen on val.
    """

    patients: int
    draw: int
    num_train: int
    setting: Mapping[str, Any] | None
    val: float | Undefined
    thresholds: Mapping[str, float] | None = None


def few_shot_rows(config: StudyConfig, rows: Sequence[Row]) -> list[Row]:
    """Rows that have a curve: those on features of an encoder, floors `untrained` and `pixels` among them."""
    if config.few_shot is None:
        return []
    return [
        row
        for row in rows
        if isinstance(row.recipe, LinearProbe | MlpProbe | LogisticRegression | Knn)
        and row.features_of is not None
        and not row.is_shuffled
    ]


def check_few_shot(config: StudyConfig, partitions: Sequence[Partition], usable: Collection[str] | None = None) -> None:
    """Every class must have as many training patients as the largest draw asks for.

    Args:
        usable: ids of the samples that could be encoded; all of the cohort if left out.
    Raises:
        SampleError: naming each class, and fold, that has fewer.
    """
    if config.few_shot is None:
        return
    most, problems = max(config.few_shot.patients), []
    for partition in partitions:
        where = "" if partition.fold is None else f" in fold {partition.fold}"
        train = partition.cohort.samples.query("split == 'train'")
        train = train if usable is None else train[train["sample_id"].isin(list(usable))]
        has_NC = memberships(train["y"].to_numpy(np.int64), len(config.data.classes), config.data.task)
        for name, has_N in zip(config.data.classes, has_NC.T, strict=True):
            count = train.loc[has_N, "patient_id"].nunique()
            if count < most:
                problems.append(f"{name!r} has {count} training patients{where}")
    if problems:
        raise SampleError(f"few_shot.patients asks for {most} of each class, but {'; '.join(problems)}. Lower it.")


def draw_patients(
    has_PC: npt.NDArray[np.bool_], count: int, rng: np.random.Generator, task: Task = "multi_class"
) -> npt.NDArray[np.int64]:
    """Positions of the patients drawn: in a random order, the first `count` who have each class.

    Of labels, of which a patient may have any number, likewise the first `count` who lack each, as far as there are
    any. The same stream gives draws that are nested: those of a smaller `count` are among those of a larger one.
    """
    order = rng.permutation(len(has_PC))
    columns = [*has_PC.T, *~has_PC.T] if task == "multi_label" else list(has_PC.T)
    return np.unique(np.concatenate([order[has_P[order]][:count] for has_P in columns])).astype(np.int64)


def adapt_few_shot(
    run: PixelRun,
    rows: Sequence[Row],
    partitions: Sequence[Partition],
    models: Mapping[str, Mapping[str, Any]],
    columns: Sequence[str],
) -> None:
    """Train what is not finished yet, and keep the chosen heads' test logits.

    Args:
        models: per encoder, what its ``model.json`` says of it.
        columns: of the table, for the floor `columns`, which has no curve.
    """
    if run.config.few_shot is None:
        return
    work = [(row, partition) for row in few_shot_rows(run.config, rows) for partition in partitions]
    with progress_bar("Few-shot curves", len(work)) as advance:
        for row, partition in work:
            matrix_ND = row_features(row, partition, run.features, columns)
            assert isinstance(matrix_ND, np.ndarray)  # rows on tokens have no curve
            _adapt_row(run, row, run.config.few_shot, partition, matrix_ND, models[row.features_of or ""])
            advance(1)


def hash_few_shot(directory: RunDirectory, rows: Sequence[Row], partitions: Sequence[Partition]) -> dict[str, str]:
    """What is chosen and predicted before test is opened, for the ledger: folder → hash of its logits."""
    folders = [directory.round(row.encoder, row.recipe_name, one.fold) for row in rows for one in partitions]
    return {str((folder / _LOGITS).relative_to(directory.root)): hash_file(folder / _LOGITS) for folder in folders}


def read_few_shot(folder: Path, test: Predictions) -> list[tuple[Drawn, Predictions | None]]:
    """Every head of one round's curve with its test predictions; none where nothing could be trained.

    Args:
        folder: of the round.
        test: any test predictions of the round, for the labels.
    """
    if not (folder / _FACTS).exists():
        return []
    facts = json.loads((folder / _FACTS).read_text())
    frame = pd.read_parquet(folder / _LOGITS)
    found: list[tuple[Drawn, Predictions | None]] = []
    for one in facts["heads"]:
        val = Undefined(one["val_undefined"]) if one["val"] is None else float(one["val"])
        drawn = Drawn(one["patients"], one["draw"], one["num_train"], one["setting"], val, one["thresholds"])
        if isinstance(val, Undefined):
            found.append((drawn, None))
            continue
        of_head = frame[(frame["patients"] == drawn.patients) & (frame["draw"] == drawn.draw)].set_index("sample_id")
        logits_NC = of_head.loc[test.sample_id_N.tolist(), [f"logit_{name}" for name in test.classes]]
        predicted = replace(test, scores_NC=logits_NC.to_numpy(np.float64), is_per_patient=False)
        if drawn.thresholds is not None:
            predicted = predicted.with_thresholds([drawn.thresholds[name] for name in test.classes])
        found.append((drawn, predicted))
    return found


def read_num_train(folder: Path) -> int:
    """Training patients of a round that has a curve."""
    count: int = json.loads((folder / _FACTS).read_text())["num_train"]
    return count


def _adapt_row(
    run: PixelRun,
    row: Row,
    settings: FewShot,
    partition: Partition,
    matrix_ND: npt.NDArray[np.float32],
    model: Mapping[str, Any],
) -> None:
    config, samples = run.config, run.features.samples
    folder = run.directory.round(row.encoder, row.recipe_name, partition.fold)
    seen = partition.split_N != "test"
    assert row.recipe is not None
    unit = fingerprint(
        {
            "version": TRAINING_VERSION,
            "model": dict(model),
            "recipe": row.recipe.model_dump(mode="json"),
            "few_shot": settings.model_dump(mode="json"),
            "seed": row.seeds[0],
            "metric": config.metric,
            "samples": samples["sample_id"].tolist(),
            "split": partition.split_N.tolist(),
            "y": partition.y_N[seen].tolist(),
            "features": hash_bytes(np.ascontiguousarray(matrix_ND).tobytes()),
        }
    )
    if (folder / _FACTS).exists() and json.loads((folder / _FACTS).read_text())["unit"] == unit:
        return
    train, val = (
        feature_set(partition, split, samples, matrix_ND, config.data.aggregate) for split in ("train", "val")
    )
    ids_N = samples["sample_id"].to_numpy(np.str_)
    test_rows = partition.rows("test")
    heads: list[Drawn] = []
    frames: list[pd.DataFrame] = []
    for patients in settings.patients:
        for draw in range(settings.draws):
            rng = numpy_stream(settings.seed, "few shot", -1 if partition.fold is None else partition.fold, draw)
            drawn_set, num_train = _drawn_set(train, patients, rng, len(config.data.classes))
            drawn, logits_NC = _fit_one(
                run, row, drawn_set, val, ids_N[partition.rows("val")], matrix_ND[test_rows],
                Drawn(patients, draw, num_train, None, Undefined("not trained")),
            )  # fmt: skip
            heads.append(drawn)
            if logits_NC is not None:
                logits = {f"logit_{name}": logits_NC[:, c] for c, name in enumerate(config.data.classes)}
                frames.append(
                    pd.DataFrame({"patients": patients, "draw": draw, "sample_id": ids_N[test_rows], **logits})
                )
    nothing = pd.DataFrame({"patients": [], "draw": [], "sample_id": []})
    with replacing(folder / _LOGITS) as aside:
        (pd.concat(frames, ignore_index=True) if frames else nothing).to_parquet(aside, index=False)
    write_json(
        folder / _FACTS,
        {
            "schema_version": SCHEMA_VERSION,
            "unit": unit,
            "num_train": len(np.unique(train.patient_id_N)),
            "heads": [_plain(drawn) for drawn in heads],
        },
    )


def _drawn_set(train: FeatureSet, patients: int, rng: np.random.Generator, num_classes: int) -> tuple[FeatureSet, int]:
    """The rows of the patients drawn, and how many patients these are."""
    ids_P, patient_N = np.unique(train.patient_id_N, return_inverse=True)
    has_NC = memberships(train.y_N, num_classes, train.task)
    has_PC = np.zeros((len(ids_P), num_classes), dtype=np.bool_)
    np.logical_or.at(has_PC, patient_N, has_NC)  # where rows are scored, a patient may have several classes
    chosen = draw_patients(has_PC, patients, rng, train.task)
    is_drawn_N = np.isin(patient_N, chosen)
    return replace(
        train,
        features_ND=train.features_ND[is_drawn_N],
        y_N=train.y_N[is_drawn_N],
        patient_id_N=train.patient_id_N[is_drawn_N],
        weight_N=train.weight_N[is_drawn_N],
    ), len(chosen)


def _fit_one(
    run: PixelRun,
    row: Row,
    train: FeatureSet,
    val: FeatureSet,
    val_ids: npt.NDArray[np.str_],
    test_ND: npt.NDArray[np.float32],
    drawn: Drawn,
) -> tuple[Drawn, npt.NDArray[np.float64] | None]:
    """The chosen head of one draw with its test logits; undefined where nothing could be trained."""
    config, classes = run.config, run.config.data.classes
    recipe = row.recipe
    if isinstance(recipe, Knn):
        fitting = tuple(k for k in recipe.k if k <= len(train.y_N))
        if not fitting:
            why = f"{len(train.y_N)} training rows, fewer than the fewest neighbours ({min(recipe.k)})"
            return replace(drawn, val=Undefined(why)), None
        recipe = recipe.model_copy(update={"k": fitting})
    one_seed = replace(row, recipe=recipe, seeds=row.seeds[:1])
    try:
        fitted = fit_row(one_seed, train, val, len(classes), run.runtime.device)
        preds = [predict_val(one, val, val_ids, classes) for one in fitted]
        scores = [score_on_val(one, config.metric, config.data.aggregate) for one in preds]
        position = select_member(fitted, scores).best_member_idx
    except UserError as error:  # every member diverged
        return replace(drawn, val=Undefined(str(error))), None
    chosen, predicted, score = fitted[position], preds[position], scores[position]
    assert predicted is not None
    assert not isinstance(score, Undefined)
    cut = with_chosen_thresholds(predicted, predicted.scored(config.data.aggregate))
    thresholds = None if cut.thresholds_NC is None else dict(zip(classes, cut.thresholds_NC[0].tolist(), strict=True))
    told = replace(drawn, setting=chosen.settings, val=float(score), thresholds=thresholds)
    assert not isinstance(chosen, FittedAttentive)  # rows on tokens have no curve
    return told, chosen.predict_logits(test_ND)


def _plain(drawn: Drawn) -> dict[str, Any]:
    values = dict(vars(drawn))
    if isinstance(drawn.val, Undefined):
        values |= {"val": None, "val_undefined": drawn.val.reason}
    return values
