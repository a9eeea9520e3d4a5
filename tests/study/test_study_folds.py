"""Folds, nested and plain: who chooses, what choosing cost, and the scores of each round.

Oracles: the members fitted once more by hand on the inner rounds, scikit-learn on kept predictions.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cohorts import CLASSES, contents, study_values, write_cohort
from sklearn.metrics import balanced_accuracy_score

from vitreous.config.compose import validate_study
from vitreous.core.errors import ConfigError, UserError
from vitreous.reports.folds import read_folds
from vitreous.study.plan import make_plan
from vitreous.study.run import Result, run_study

K = 3
RECIPES = {
    "knn": {"kind": "knn", "k": [1, 3, 9]},
    "linear": {"kind": "linear_probe", "epochs": 6, "warmup_epochs": 1, "grid": {"lr": [1e-4, 1e-2]}},
}


@pytest.fixture(autouse=True)
def id_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITREOUS_ID_KEY", str(tmp_path / "id_key"))


def values(root: Path, **changes: Any) -> dict[str, Any]:
    study = study_values(root, recipes=RECIPES, floors=["majority"], **changes)
    study["encoders"].pop("second")
    return study


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_cohort(tmp_path_factory.mktemp("cohort"))
    table = pd.read_csv(root / "participants.tsv", sep="\t", dtype=str)
    table.drop(columns="recommended_split").to_csv(root / "participants.tsv", sep="\t", index=False)
    return root


@pytest.fixture(scope="module")
def nested(cohort: Path) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITREOUS_ID_KEY", str(cohort / "id_key"))
        return run_study(validate_study(values(cohort, folds={"k": K, "nested": True})))


@pytest.fixture(scope="module")
def plain(cohort: Path) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITREOUS_ID_KEY", str(cohort / "id_key"))
        return run_study(validate_study(values(cohort, name="plain", folds={"k": K})))


def features_of(cohort: Path, result: Result) -> tuple[np.ndarray, pd.DataFrame]:
    """Features and samples of the run, read from its own store by the run's own doors."""
    from vitreous.study.data import open_data
    from vitreous.study.encode import encode_study
    from vitreous.study.encoders import open_encoders
    from vitreous.study.run_directory import RunDirectory, kept_study
    from vitreous.study.runtime import resolve_runtime

    config = kept_study(RunDirectory(result.run_dir))
    runtime = resolve_runtime(config)
    data = open_data(config)
    encoders = open_encoders(config, runtime, data.cache, data.modality)
    features = encode_study(config, runtime, data, encoders)
    return features.features["first"], features.samples


def neighbours_score(x_ND: np.ndarray, patient_N: np.ndarray, y_N: np.ndarray, rounds: list, k: int) -> float:
    """Balanced accuracy of k nearest neighbours over rounds of (train, val) rows, patients pooled; loops alone."""
    probs: dict[str, list[np.ndarray]] = {}
    for train, val in rounds:
        patients, counts = np.unique(patient_N[train], return_counts=True)
        weight = dict(zip(patients, 1.0 / counts))
        w = np.array([weight[name] for name in patient_N[train]])
        mean = np.average(x_ND[train], axis=0, weights=w)
        std = np.sqrt(np.average((x_ND[train] - mean) ** 2, axis=0, weights=w))
        z = (x_ND - mean) / np.where(std == 0, 1, std)
        z /= np.linalg.norm(z, axis=1, keepdims=True)
        for row in val:
            near = np.argsort(-(z[train] @ z[row]), kind="stable")[:k]
            votes = np.bincount(y_N[train][near], weights=w[near], minlength=3)
            probs.setdefault(patient_N[row], []).append((k * votes / votes.sum() + 1 / 3) / (k + 1))
    truth = dict(zip(patient_N, y_N))
    names = sorted(probs)
    predicted = [int(np.mean(probs[name], axis=0).argmax()) for name in names]
    return float(balanced_accuracy_score([truth[name] for name in names], predicted))


def test_nested_choice_is_made_on_every_fold_but_the_tested_one(cohort: Path, nested: Result) -> None:
    x_ND, samples = features_of(cohort, nested)
    x_ND = x_ND.astype(np.float64)
    patient_N = samples["patient_id"].to_numpy(str)
    labels = pd.read_csv(cohort / "participants.tsv", sep="\t", dtype=str).set_index("participant_id")["study_group"]
    y_N = np.array([CLASSES.index(labels[name]) for name in patient_N])
    row = nested.run_dir / "first" / "knn"
    tested = [pd.read_parquet(row / f"fold{j}" / "seed0" / "test_preds.parquet")["patient_id"] for j in range(K)]
    fold_N = np.array([next(j for j in range(K) if name in set(tested[j])) for name in patient_N])
    for j in range(K):
        grid = pd.read_csv(row / f"fold{j}" / "grid.csv").set_index("k")["val_score"]
        rounds = [
            (np.flatnonzero((fold_N != j) & (fold_N != v)), np.flatnonzero(fold_N == v)) for v in range(K) if v != j
        ]
        for k in (1, 3, 9):
            assert grid[k] == pytest.approx(neighbours_score(x_ND, patient_N, y_N, rounds, k), abs=1e-9), (j, k)
        chosen = json.loads((row / f"fold{j}" / "selection.json").read_text())["setting"]["k"]
        assert chosen == max((1, 3, 9), key=lambda k: (grid[k], k)), "on a tie more neighbours"


def test_the_best_of_grid_is_one_setting_for_all_folds(plain: Result) -> None:
    row = plain.run_dir / "first" / "knn"
    kept = json.loads((row / "best_of_grid" / "best_of_grid.json").read_text())
    frame = pd.read_parquet(row / "best_of_grid" / "seed0_val_preds.parquet")
    assert len(frame) == frame["patient_id"].nunique() == 48
    assert kept["num_settings"] == 3
    assert kept["val_score"] == pytest.approx(balanced_accuracy_score(frame["y_true"], frame["y_pred"]), abs=1e-9)
    board = plain.leaderboard.set_index(["encoder", "recipe"]).loc[("first", "knn")]
    assert board["best_of_grid"] == pytest.approx(kept["val_score"], abs=1e-6)
    assert board["grid_corrected"] == pytest.approx(board["test_balanced_accuracy"], abs=1e-6)
    assert board["grid_optimism"] == pytest.approx(kept["val_score"] - board["test_balanced_accuracy"], abs=1e-6)
    assert board["grid_optimism_low"] <= board["grid_optimism"] <= board["grid_optimism_high"]
    assert not (plain.run_dir / "floor" / "majority" / "best_of_grid").exists()


def test_optimism_is_val_minus_test(nested: Result, plain: Result) -> None:
    for result in (nested, plain):
        for _, row in result.leaderboard.iterrows():
            lost = row["val_balanced_accuracy"] - row["test_balanced_accuracy"]
            assert row["optimism"] == pytest.approx(lost, abs=1e-6)
            assert row["optimism_low"] - 1e-9 <= lost <= row["optimism_high"] + 1e-9
    floor = plain.leaderboard.set_index("recipe").loc["majority"]
    assert floor["grid_settings"] == 1
    assert np.isnan(floor["grid_optimism"])


def test_scores_of_each_round_and_of_all(plain: Result) -> None:
    scores = read_folds(plain.run_dir)
    of_row = [one for one in scores if (one.encoder, one.recipe) == ("first", "linear")]
    assert [one.scope for one in of_row] == ["fold"] * 2 * K + ["pooled"] * 2 + ["mean"]
    row = plain.run_dir / "first" / "linear"
    for one in of_row[: 2 * K]:
        frame = pd.read_parquet(row / f"fold{one.fold}" / f"seed{one.seed}" / "test_preds_patient.parquet")
        assert one.num_test == len(frame) == 16
        assert one.test["accuracy"] == pytest.approx((frame["y_true"] == frame["y_pred"]).mean(), abs=1e-6)
        assert set(one.setting) >= {"learning_rate", "weight_decay"}
    for one in of_row[2 * K : 2 * K + 2]:
        frames = [
            pd.read_parquet(row / f"fold{fold}" / f"seed{one.seed}" / "test_preds_patient.parquet") for fold in range(K)
        ]
        frame = pd.concat(frames)
        expected = balanced_accuracy_score(frame["y_true"], frame["y_pred"])
        assert one.test["balanced_accuracy"] == pytest.approx(expected, abs=1e-6)
        assert one.num_test == 48
    board = plain.leaderboard.set_index(["encoder", "recipe"]).loc[("first", "linear")]
    assert of_row[-1].test["balanced_accuracy"] == pytest.approx(board["test_balanced_accuracy"], abs=2e-6)
    assert of_row[-1].seed is None


def test_rounds_by_domain_are_named(cohort: Path) -> None:
    folds = {"leave_out": "clinical_site", "val_fraction": 0.5}
    result = run_study(validate_study(values(cohort, name="sites", metric="accuracy", folds=folds)))
    scores = read_folds(result.run_dir)
    assert {one.domain for one in scores if one.scope == "fold"} == {"site0", "site1"}
    board = result.leaderboard.set_index("recipe").loc["knn"]
    lucks = [
        json.loads((result.run_dir / "first" / "knn" / f"fold{fold}" / "selection.json").read_text())["optimism"]
        for fold in (0, 1)
    ]
    assert board["grid_optimism"] == pytest.approx(np.mean([luck["optimism"] for luck in lucks]), abs=1e-6)


def test_a_kill_between_heads_and_best_of_grid_changes_nothing(cohort: Path, plain: Result) -> None:
    wanted = ("*_preds*.parquet", "*.safetensors", "model.json", "best_of_grid.json", "leaderboard.csv", "folds.csv")
    before = contents(plain.run_dir, *wanted)
    for path in (plain.run_dir / "first" / "linear" / "best_of_grid").iterdir():
        path.unlink()
    (plain.run_dir / "first" / "linear" / "fold2" / "seed1" / "model.json").unlink()
    run_study(validate_study(values(cohort, name="plain", folds={"k": K})))
    assert contents(plain.run_dir, *wanted) == before


def test_nothing_to_choose_makes_nesting_idle(cohort: Path) -> None:
    study = values(cohort, folds={"k": K, "nested": True})
    study["recipes"] = {"linear": {"kind": "linear_probe", "epochs": 2, "warmup_epochs": 1}}
    with pytest.raises(ConfigError, match=r"folds\.nested: no recipe has more than one setting to choose between"):
        validate_study(study)


def test_plan_counts_the_inner_rounds(cohort: Path) -> None:
    heads = {
        nested: {
            recipe.name: recipe.num_members
            for recipe in make_plan(validate_study(values(cohort, folds={"k": K, "nested": nested}))).recipes
        }
        for nested in (False, True)
    }
    assert heads[False] == {"knn": 3 * K, "linear": 4 * K}
    assert heads[True] == {"knn": 3 * K * (K - 1), "linear": 4 * K * (K - 1)}


def test_a_run_without_folds_has_no_rounds(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folds\.csv"):
        read_folds(tmp_path)


def test_without_folds_the_luck_of_val_is_told_by_val_alone(tmp_path: Path) -> None:
    """Oracle: the members' val scores in grid.csv, and no test label read before they are written."""
    root = write_cohort(tmp_path, participants=96)
    result = run_study(validate_study(values(root, seeds=[0])))
    for recipe, settings in (("knn", 3), ("linear", 2)):
        kept = json.loads((result.run_dir / "first" / recipe / "selection.json").read_text())["optimism"]
        grid = pd.read_csv(result.run_dir / "first" / recipe / "grid.csv")
        assert kept["num_settings"] == settings
        assert kept["best_of_grid"] == pytest.approx(grid["val_score"].max(), abs=1e-9)
        assert kept["optimism"] == pytest.approx(kept["best_of_grid"] - kept["corrected"], abs=1e-12)
        board = result.leaderboard.set_index(["encoder", "recipe"]).loc[("first", recipe)]
        assert board["grid_optimism"] == pytest.approx(kept["optimism"], abs=1e-6)
        assert pd.isna(board["grid_optimism_low"])
