"""Whole runs on small cohorts of real files. Oracles: a run alone, scikit-learn, the files themselves."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from cohorts import CLASSES, contents, study_values, write_checkpoint, write_cohort
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from vitreous.config.compose import validate_study
from vitreous.core.errors import ConfigError, RunError, SampleError, StudyMismatchError, TooManyQuarantinedError
from vitreous.core.privacy import load_id_key
from vitreous.study.report import write_outputs
from vitreous.study.run import Result, run_study
from vitreous.study.run_directory import RunDirectory

RESULTS = ("*.parquet", "metrics.json", "leaderboard.*", "*.safetensors", "model.json", "grid.csv", "*.svg")


@pytest.fixture(autouse=True)
def id_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    monkeypatch.setenv("VITREOUS_ID_KEY", str(tmp_path / "id_key"))
    return load_id_key()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    root = write_cohort(tmp_path_factory.mktemp("cohort"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITREOUS_ID_KEY", str(root / "id_key"))
        return root, run_study(validate_study(study_values(root)))


def test_the_run_directory_holds_what_the_contract_says(finished: tuple[Path, Result]) -> None:
    _, result = finished
    folder = result.run_dir
    for name in (
        "study.yaml",
        "provenance.json",
        "ledger.jsonl",
        "manifest.parquet",
        "data_errors.csv",
        "leaderboard.csv",
        "leaderboard.md",
        "report.html",
        "receipts/first.json",
        "receipts/untrained.json",
        "tables/operating_points.csv",
        "tables/operating_points.tex",
        "figures/first.linear.roc.svg",
    ):
        assert (folder / name).is_file(), name
    head = folder / "first" / "linear" / "seed0"
    for name in (
        "config.yaml",
        "class_to_idx.json",
        "model.json",
        "best.safetensors",
        "history.csv",
        "val_preds.parquet",
        "test_preds.parquet",
        "test_preds_patient.parquet",
        "metrics.json",
        "confusion_matrix.svg",
    ):
        assert (head / name).is_file(), name
    assert list(result.leaderboard.columns[:12]) == [
        "rank",
        "letters",
        "encoder",
        "recipe",
        "seeds",
        "n_test_patients",
        "val_balanced_accuracy",
        "test_balanced_accuracy",
        "test_balanced_accuracy_low",
        "test_balanced_accuracy_high",
        "seed_sd",
        "test_auroc",
    ]
    preds = pd.read_parquet(head / "test_preds.parquet")
    assert list(preds.columns) == ["sample_id", "patient_id", "y_true", "y_pred", *(f"logit_{c}" for c in CLASSES)]
    patients = pd.read_parquet(head / "test_preds_patient.parquet")
    assert list(patients.columns) == ["patient_id", "y_true", "y_pred", *(f"prob_{c}" for c in CLASSES)]
    assert json.loads((head / "class_to_idx.json").read_text()) == {"healthy": 0, "early": 1, "late": 2}


def test_rows_of_the_leaderboard(finished: tuple[Path, Result]) -> None:
    _, result = finished
    table = result.leaderboard.set_index("encoder")
    assert set(table.index) == {"first", "second", "untrained", "floor"}
    assert table.loc["floor", "recipe"] == "majority"
    assert table.loc["floor", "test_balanced_accuracy"] == pytest.approx(1 / 3)
    assert table.loc["first", "test_balanced_accuracy"] > 0.6, "the planted signal is strong"


def test_metrics_equal_scikit_learn_on_the_kept_predictions(finished: tuple[Path, Result]) -> None:
    _, result = finished
    head = result.run_dir / "first" / "linear" / "seed1"
    patients = pd.read_parquet(head / "test_preds_patient.parquet")
    truth, probs = patients["y_true"], patients[[f"prob_{c}" for c in CLASSES]].to_numpy()
    metrics = json.loads((head / "metrics.json").read_text())["test"]
    assert metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, probs.argmax(1)), abs=1e-12)
    assert metrics["auroc"] == pytest.approx(roc_auc_score(truth, probs, multi_class="ovr"), abs=1e-12)
    volumes = pd.read_parquet(head / "test_preds.parquet")
    logits = volumes[[f"logit_{c}" for c in CLASSES]].to_numpy()
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = pd.DataFrame(softmax).groupby(volumes["patient_id"].to_numpy()).mean()
    np.testing.assert_allclose(probs, expected.loc[patients["patient_id"]].to_numpy(), atol=1e-12)


def test_every_sample_is_accounted_for(finished: tuple[Path, Result]) -> None:
    _, result = finished
    account = json.loads((result.run_dir / "account.json").read_text())
    manifest = pd.read_parquet(result.run_dir / "manifest.parquet")
    assert account["rows"] == len(manifest) == 72
    assert account["encoded"] + account["quarantined"] + account["excluded"] == account["rows"]
    assert manifest["volume_depth"].unique().tolist() == [5]
    assert not {"y", "label", "study_group"} & set(manifest.columns), "test labels are sealed"
    assert manifest["domain_clinical_site"].value_counts().to_dict() == {"site1": 48, "site0": 24}
    groups = pd.read_csv(result.run_dir / "tables" / "subgroups.csv")
    assert set(groups["group"]) == {"site0", "site1", "device0", "device1"}
    assert groups["balanced_accuracy"].isna().all(), "12 test patients are too few for groups"


def test_the_look_at_test_is_written_once(finished: tuple[Path, Result]) -> None:
    root, result = finished
    lines = (result.run_dir / "ledger.jsonl").read_text().splitlines()
    assert len(lines) == 1
    assert json.loads(lines[0])["num_patients"] == 12
    before = contents(result.run_dir, *RESULTS)
    run_study(validate_study(study_values(root)))
    assert contents(result.run_dir, *RESULTS) == before, "the same command again changes nothing"
    assert len((result.run_dir / "ledger.jsonl").read_text().splitlines()) == 1


def test_the_report_is_rebuilt_to_the_same_bytes_and_names_nobody(finished: tuple[Path, Result]) -> None:
    root, result = finished
    before = result.report.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITREOUS_ID_KEY", str(root / "id_key"))
        write_outputs(RunDirectory(result.run_dir))
    assert result.report.read_bytes() == before
    text = before.decode()
    participants = pd.read_csv(root / "participants.tsv", sep="\t", dtype=str)["participant_id"]
    assert not [name for name in participants if f">{name}<" in text or f"{name}_" in text]
    assert "http://" not in text.replace("http://www.w3.org", "")


def test_a_second_study_on_the_same_files_encodes_nothing(
    finished: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = finished

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a known file was encoded again")

    monkeypatch.setattr("vitreous.study.encode.encode_missing", never)
    changes = {
        "name": "second",
        "recipes": {"knn": {"kind": "knn", "k": [3]}, "logistic": {"kind": "logistic_regression", "C": [0.1, 1.0]}},
    }
    table = run_study(validate_study(study_values(root, **changes))).leaderboard
    assert set(table["recipe"]) == {"knn", "logistic", "majority"}


def test_other_settings_in_the_same_directory_are_refused(finished: tuple[Path, Result]) -> None:
    root, _ = finished
    with pytest.raises(StudyMismatchError, match=r"different: seeds \(\[0, 1\] then, \[0\] now\)"):
        run_study(validate_study(study_values(root, seeds=[0])))


def test_other_weights_under_the_same_path_are_refused(tmp_path: Path) -> None:
    root = write_cohort(tmp_path)
    values = study_values(root)
    run_study(validate_study(values))
    write_checkpoint(root / "checkpoints" / "a.safetensors", 9)
    with pytest.raises(StudyMismatchError, match=r"content\.encoders\.first\.weights"):
        run_study(validate_study(values))


def test_randomised_test_labels_change_nothing_before_the_last_step(tmp_path: Path) -> None:
    before_test = (
        "val_preds.parquet",
        "model.json",
        "*.safetensors",
        "grid.csv",
        "selection.json",
        "history.csv",
        "manifest.parquet",
        "study.yaml",
        "config.yaml",
    )
    seen = []
    for name in ("honest", "poisoned"):
        root = write_cohort(tmp_path / "same")
        table = pd.read_csv(root / "participants.tsv", sep="\t", dtype=str)
        if name == "poisoned":
            is_test = table["recommended_split"] == "test"
            table.loc[is_test, "study_group"] = np.random.default_rng(1).permutation(table.loc[is_test, "study_group"])
            table.to_csv(root / "participants.tsv", sep="\t", index=False)
        result = run_study(validate_study(study_values(root)))
        files = contents(result.run_dir, *before_test)
        seen.append(dict(files.items()))
        (root / "runs").rename(tmp_path / name)
    # the volumes are written anew with a new time stamp, so the manifest's etags differ and nothing else may
    manifests = [
        pd.read_parquet(tmp_path / name / "small" / "manifest.parquet").drop(columns="etag")
        for name in ("honest", "poisoned")
    ]
    pd.testing.assert_frame_equal(*manifests)
    for files in seen:
        files.pop("manifest.parquet")
    assert seen[0] == seen[1]
    scores = [
        pd.read_csv(tmp_path / name / "small" / "leaderboard.csv")["test_accuracy"].tolist()
        for name in ("honest", "poisoned")
    ]
    assert scores[0] != scores[1]


def test_folds_score_every_patient_once_for_each_seed(tmp_path: Path) -> None:
    root = write_cohort(tmp_path)
    table = pd.read_csv(root / "participants.tsv", sep="\t", dtype=str).drop(columns="recommended_split")
    table.to_csv(root / "participants.tsv", sep="\t", index=False)
    result = run_study(validate_study(study_values(root, folds={"k": 4})))
    assert result.leaderboard["n_test_patients"].tolist() == [48] * 4
    tested = [
        pd.read_parquet(result.run_dir / "first" / "linear" / f"fold{fold}" / "seed0" / "test_preds_patient.parquet")
        for fold in range(4)
    ]
    assert sorted(pd.concat(tested)["patient_id"]) == sorted(table["participant_id"])
    val = pd.read_parquet(result.run_dir / "first" / "linear" / "fold0" / "seed0" / "val_preds.parquet")
    assert not set(val["patient_id"]) & set(tested[0]["patient_id"])


def test_bad_files_are_quarantined_and_too_many_stop_the_run(tmp_path: Path) -> None:
    root = write_cohort(tmp_path)
    files = sorted(root.rglob("*.npy"))
    files[0].write_bytes(b"")
    np.save(files[3], np.full((5, 40, 36), 7.0))
    result = run_study(validate_study(study_values(root)))
    errors = pd.read_csv(result.run_dir / "data_errors.csv", dtype=str)
    assert list(errors.columns[:2]) == ["participant_id", "key"]
    assert len(errors) == 2
    assert errors["message"].str.contains("empty|of one colour").all(), errors["message"].tolist()
    account = json.loads((result.run_dir / "account.json").read_text())
    assert account["quarantined"] == 2
    for path in files[5:15]:
        path.write_bytes(b"not a volume")
    with pytest.raises(TooManyQuarantinedError, match=r"6 of 72 samples \(8.3%\) cannot be used, and the pass was"):
        run_study(validate_study(study_values(root, name="worse")))
    assert len(pd.read_csv(root / "runs" / "worse" / "data_errors.csv")) == 6


def test_an_overridden_input_is_named_in_leaderboard_and_report(tmp_path: Path) -> None:
    root = write_cohort(tmp_path)
    values = study_values(root)
    values["encoders"] = {
        "first": values["encoders"]["first"] | {"input": {"normalisation": {"kind": "percentile-minmax-gamma"}}}
    }
    result = run_study(validate_study(values))
    notes = result.leaderboard.set_index("encoder").loc["first", "notes"]
    assert "input overridden by the study: normalisation" in notes
    assert "overridden" in result.report.read_text()
    assert json.loads((result.run_dir / "receipts" / "first.json").read_text())["overridden"] == ["normalisation"]


def test_all_encoder_problems_come_at_once(tmp_path: Path) -> None:
    root = write_cohort(tmp_path)
    values = study_values(root)
    values["encoders"]["first"]["checkpoint"] = str(root / "participants.tsv")
    values["encoders"]["second"]["which"] = "target"
    values["encoders"]["third"] = {"family": "vit4d", "checkpoint": "x"}
    with pytest.raises(ConfigError) as caught:
        run_study(validate_study(values))
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "encoders.first",
        "encoders.second",
        "encoders.third",
    ]
    assert not (root / "runs").exists(), "nothing was written"


def test_a_label_outside_the_classes_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    root = write_cohort(tmp_path)
    values = study_values(root)
    values["data"]["classes"] = ["healthy", "early"]
    with pytest.raises(SampleError, match="late"):
        run_study(validate_study(values))
    assert not (root / "runs").exists()


def test_a_collapsed_head_is_named(tmp_path: Path) -> None:
    root = write_cohort(tmp_path)
    for path in root.rglob("*.npy"):
        rng = np.random.default_rng(len(path.name))
        np.save(path, rng.normal(size=(5, 40, 36)).astype(np.float32))
    values = study_values(root, leaks={"accept": ["exact_duplicates", "conflicting_labels"]})  # two pictures in all
    values["recipes"] = {"linear": {"kind": "linear_probe", "epochs": 2, "warmup_epochs": 1, "lr": 1e-8, "patience": 1}}
    result = run_study(validate_study(values))
    text = result.report.read_text()
    assert "identical predictions" in text or "collapsed head" in text


def test_resolved_settings_are_a_study_that_runs(finished: tuple[Path, Result]) -> None:
    _, result = finished
    assert validate_study(yaml.safe_load((result.run_dir / "study.yaml").read_text())).name == "small"


def test_a_split_that_quarantine_empties_stops_the_run_before_test_is_opened(tmp_path: Path) -> None:
    root = write_cohort(tmp_path)
    table = pd.read_csv(root / "participants.tsv", sep="\t", dtype=str)
    is_val_late = (table["recommended_split"] == "val") & (table["study_group"] == "late")
    for name in table.loc[is_val_late, "participant_id"]:
        for path in root.rglob(f"{name}_*.npy"):
            path.write_bytes(b"")
    values = study_values(root)
    values["data"]["max_quarantined"] = 0.5
    with pytest.raises(RunError, match="no usable patient of class 'late' is left in val"):
        run_study(validate_study(values))
    assert not (root / "runs" / "small" / "ledger.jsonl").exists()
    assert len(pd.read_csv(root / "runs" / "small" / "data_errors.csv")) > 0


def test_seeds_in_any_order_stand_in_their_own_folders(finished: tuple[Path, Result]) -> None:
    root, result = finished
    turned = run_study(validate_study(study_values(root, name="turned", seeds=[1, 0])))
    for seed in (0, 1):
        head = Path("first") / "linear" / f"seed{seed}"
        assert json.loads((turned.run_dir / head / "model.json").read_text())["seed"] == seed
        for name in ("best.safetensors", "test_preds.parquet"):
            assert (turned.run_dir / head / name).read_bytes() == (result.run_dir / head / name).read_bytes()


def test_a_raised_limit_takes_effect(tmp_path: Path) -> None:
    root = write_cohort(tmp_path)
    values = study_values(root)
    values["data"] |= {"max_volume_gb": 1e-6}
    with pytest.raises(TooManyQuarantinedError, match="allow more bytes per volume"):
        run_study(validate_study(values))
    values["data"] |= {"max_volume_gb": 1.0}
    account = run_study(validate_study(values | {"name": "raised"})).run_dir / "account.json"
    assert json.loads(account.read_text())["quarantined"] == 0


def write_npz(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    arrays = {}
    for split, count in (("train", 24), ("val", 12), ("test", 12)):
        labels = np.arange(count) % 2
        images = rng.integers(0, 100, size=(count, 8, 20, 20)).astype(np.uint8)
        images[labels == 1, :, :10] += 100
        arrays |= {f"{split}_images": images, f"{split}_labels": labels[:, None].astype(np.uint8)}
    np.savez(path, **arrays)


def test_an_npz_study_runs_and_another_file_under_the_same_path_is_another_cohort(tmp_path: Path) -> None:
    write_npz(tmp_path / "volumes.npz", 0)
    data = {"kind": "npz", "table": str(tmp_path / "volumes.npz"), "classes": ["no", "yes"], "axes": "DHW"}
    values = study_values(tmp_path, data=data)
    result = run_study(validate_study(values))
    assert result.leaderboard.set_index("encoder").loc["first", "test_balanced_accuracy"] > 0.7
    assert "no patient ids" in result.report.read_text()
    write_npz(tmp_path / "volumes.npz", 1)
    with pytest.raises(StudyMismatchError, match=r"content\.cohort"):
        run_study(validate_study(values))


def test_a_participant_without_a_file_is_a_row_with_its_rule(tmp_path: Path) -> None:
    root = write_cohort(tmp_path)
    (root / "retinal_oct" / "structural_oct" / "device0" / "2000" / "2000_0.npy").unlink()
    result = run_study(validate_study(study_values(root)))
    account = json.loads((result.run_dir / "account.json").read_text())
    assert account["excluded_by_rule"] == {"participant without a file": 1}
    assert account["rows"] == account["encoded"] + 1
    manifest = pd.read_parquet(result.run_dir / "manifest.parquet")
    assert manifest.loc[manifest["fate"] == "excluded", "patient_id"].tolist() == ["2000"]


def test_a_head_s_config_is_a_recipe(finished: tuple[Path, Result]) -> None:
    _, result = finished
    recipe = yaml.safe_load((result.run_dir / "first" / "linear" / "seed0" / "config.yaml").read_text())
    config = validate_study(study_values(finished[0], recipes={"again": recipe}))
    assert config.recipes["again"].kind == "linear_probe"
    assert recipe["lr"] in (1e-3, 1e-2)


def test_a_grid_finer_than_the_tokens_is_refused_first(tmp_path: Path) -> None:
    root = write_cohort(tmp_path)
    with pytest.raises(
        ConfigError, match=r"features.grid \[4, 4, 4\] is finer than this encoder's token grid \[2, 2, 2\]"
    ):
        run_study(validate_study(study_values(root, features={"pooling": "grid", "grid": [4, 4, 4]})))
