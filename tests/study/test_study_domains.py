"""Studies with rounds by domain, on small cohorts of real files. Oracle: scikit-learn on the kept predictions."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cohorts import CLASSES, contents, study_values, write_cohort
from sklearn.metrics import balanced_accuracy_score

from vitreous.config.compose import validate_study
from vitreous.core.errors import ConfigError
from vitreous.core.predictions import Predictions
from vitreous.study.plan import make_plan
from vitreous.study.report import write_outputs
from vitreous.study.run import run_study
from vitreous.study.run_directory import RunDirectory


@pytest.fixture(autouse=True)
def id_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITREOUS_ID_KEY", str(tmp_path / "id_key"))


def values_of(root: Path, **changes: object) -> dict:
    values = study_values(root, recipes={"knn": {"kind": "knn", "k": [3]}}, floors=["majority"], **changes)
    del values["encoders"]["second"]
    return values


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = write_cohort(tmp_path / "cohort")
    table = pd.read_csv(root / "participants.tsv", sep="\t", dtype=str).drop(columns="recommended_split")
    table.to_csv(root / "participants.tsv", sep="\t", index=False)
    return root


def patients_of(path: Path) -> Predictions:
    return Predictions.read(path, CLASSES).per_patient()


def test_one_site_left_out_at_a_time(root: Path) -> None:
    config = validate_study(values_of(root, folds={"leave_out": "clinical_site"}))
    assert make_plan(config) is not None
    result = run_study(config)
    sites = pd.read_csv(root / "participants.tsv", sep="\t", dtype=str).set_index("participant_id")["clinical_site"]
    folder = result.run_dir / "first" / "knn"
    for fold, site in enumerate(("site0", "site1")):
        tested = patients_of(folder / f"fold{fold}" / "seed0" / "test_preds.parquet")
        assert set(sites[tested.patient_id_N]) == {site}
        val = patients_of(folder / f"fold{fold}" / "seed0" / "val_preds.parquet")
        assert site not in set(sites[val.patient_id_N])
    assert result.leaderboard["n_test_patients"].tolist() == [48, 48]
    matrix = pd.read_csv(result.run_dir / "domains" / "matrix.csv").set_index(["encoder", "train", "test"])
    tested = patients_of(folder / "fold1" / "seed0" / "test_preds.parquet")
    expected = balanced_accuracy_score(tested.y_true_N, tested.y_pred_N)
    assert matrix.loc[("first", "all but site1", "site1"), "score"] == pytest.approx(expected, abs=1e-6)
    assert np.isnan(matrix.loc[("first", "all but site1", "site0"), "score"])
    assert "they trained it" in matrix.loc[("first", "all but site1", "site0"), "undefined"]
    assert "left out of training" in (result.run_dir / "domains" / "matrix.svg").read_text()
    before = contents(result.run_dir, "*")
    write_outputs(RunDirectory(result.run_dir))
    assert contents(result.run_dir, "*") == before


def test_each_site_alone_gives_the_full_matrix(root: Path) -> None:
    folds = {"each": "clinical_site", "val_fraction": 0.25, "test_fraction": 0.5}
    result = run_study(validate_study(values_of(root, folds=folds)))
    folder = result.run_dir / "first" / "knn"
    tests = [patients_of(folder / f"fold{fold}" / "seed0" / "test_preds.parquet") for fold in (0, 1)]
    assert np.array_equal(tests[0].patient_id_N, tests[1].patient_id_N)
    assert len(tests[0].patient_id_N) == 24
    # the leaderboard is of each patient by the model of the own site
    assert result.leaderboard["n_test_patients"].tolist() == [24, 24]
    sites = pd.read_csv(root / "participants.tsv", sep="\t", dtype=str).set_index("participant_id")["clinical_site"]
    own = [np.array(sites[one.patient_id_N] == f"site{fold}") for fold, one in enumerate(tests)]
    truth = np.concatenate([one.y_true_N[rows] for one, rows in zip(tests, own)])
    predicted = np.concatenate([one.y_pred_N[rows] for one, rows in zip(tests, own)])
    row = result.leaderboard.set_index("encoder").loc["first"]
    assert row["test_balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, predicted))
    matrix = pd.read_csv(result.run_dir / "domains" / "matrix.csv").set_index(["encoder", "train", "test"])
    for fold, one in enumerate(tests):
        for site in ("site0", "site1"):
            rows = np.array(sites[one.patient_id_N] == site)
            expected = balanced_accuracy_score(one.y_true_N[rows], one.y_pred_N[rows])
            cell = matrix.loc[("first", f"site{fold}", site)]
            assert cell["score"] == pytest.approx(expected, abs=1e-6)
            assert cell["n_patients"] == 12
    assert (result.run_dir / "domains" / "matrix.first.knn.svg").is_file()


@pytest.mark.parametrize(
    ("folds", "said"),
    [
        ({"leave_out": "camera"}, r"folds: 'camera' is no domain; data\.domains are \['clinical_site', 'device'\]"),
        ({"leave_out": "clinical_site", "k": 3}, r"folds are \{k: 5\}, \{leave_out: COLUMN\} or \{each: COLUMN\}"),
        ({}, r"folds are \{k: 5\}"),
        ({"each": "clinical_site", "val_fraction": 0.5, "test_fraction": 0.5}, "leave nothing to train on"),
        ({"leave_out": "clinical_site", "test_fraction": 0.5}, "test_fraction: unknown key"),
        ({"k": 2}, "folds.k"),
    ],
)
def test_folds_that_make_no_sense_are_refused(tmp_path: Path, folds: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        validate_study(values_of(tmp_path, folds=folds))


def test_names_of_folders_are_taken(tmp_path: Path) -> None:
    values = values_of(tmp_path)
    values["encoders"]["transfer"] = values["encoders"].pop("first")
    with pytest.raises(ConfigError, match=r"encoders\.transfer: the name is taken by a folder"):
        validate_study(values)
