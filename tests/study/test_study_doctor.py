"""`vitreous doctor`: before a run, after it, on two runs; and the three stories that this tool was made for, replayed.

Oracles: what was planted; arithmetic of the first story (17 of 65, F1 = 2·p / (1 + p)).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from cohorts import CLASSES, study_values, write_checkpoint, write_cohort, write_study

from vitreous.config.compose import validate_study
from vitreous.core.finding import Finding
from vitreous.core.predictions import Predictions
from vitreous.core.privacy import keyed_id, load_id_key
from vitreous.study.doctor import print_doctor
from vitreous.study.doctor_run import examine_run
from vitreous.study.doctor_runs import examine_two_runs
from vitreous.study.doctor_study import examine_study
from vitreous.study.report import write_outputs
from vitreous.study.run import Result, run_study
from vitreous.study.run_directory import RunDirectory

LINEAR = {"kind": "linear_probe", "epochs": 8, "warmup_epochs": 1, "lr": 1e-2}


@pytest.fixture(scope="module", autouse=True)
def _id_key(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITREOUS_ID_KEY", str(tmp_path_factory.mktemp("key") / "id_key"))
        yield


def by_code(findings: Any) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    for finding in findings:
        found.setdefault(finding.code, []).append(finding)
    return found


def values_of(root: Path, **changes: Any) -> dict[str, Any]:
    values = study_values(
        root, seeds=[0], floors=["majority"], intervals={"resamples": 200}, recipes={"linear": LINEAR}
    )
    values["encoders"].pop("second")
    return values | changes


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A run in which site tells part of the label, and one label in train is wrong."""
    root = write_cohort(tmp_path_factory.mktemp("cohort"), participants=96)
    table = pd.read_csv(root / "participants.tsv", sep="\t", dtype=str)
    rng = np.random.default_rng(0)
    follows = rng.random(len(table)) < 0.8
    table["clinical_site"] = np.where(follows & (table["study_group"] == "late"), "siteB", "siteA")
    table.loc[~follows, "clinical_site"] = rng.choice(["siteA", "siteB"], int((~follows).sum()))
    for patient in table.loc[table["clinical_site"] == "siteB", "participant_id"]:
        for path in root.rglob(f"{patient}_*.npy"):  # the other site's scanner has a gradient of its own
            voxels = np.load(path)
            np.save(path, voxels + np.linspace(0, 40, voxels.shape[2], dtype=np.float32))
    wrong = table.index[(table["recommended_split"] == "train") & (table["study_group"] == "healthy")][0]
    table.loc[wrong, "study_group"] = "late"
    table.to_csv(root / "participants.tsv", sep="\t", index=False)
    (root / "wrong").write_text(table.at[wrong, "participant_id"])
    return root, run_study(validate_study(values_of(root)))


def test_a_run_is_examined_down_to_its_features(finished: tuple[Path, Result]) -> None:
    root, result = finished
    directory = RunDirectory(result.run_dir)
    found = by_code(examine_run(directory))
    assert "features_not_there" not in found
    [shortcut] = [finding for finding in found["shortcut"] if finding.title.startswith("clinical_site")]
    assert "shortcut" in shortcut.title
    assert "clinical_site alone predicts the label" in shortcut.evidence
    assert "scaler_not_of_train" not in found
    assert found["features_spread"]
    review = pd.read_csv(result.run_dir / "label_review.csv", dtype={"patient_id": str})
    assert (root / "wrong").read_text() in set(review["patient_id"])
    assert found["suspected_label_errors"][0].evidence.count("late → healthy")


def test_findings_reach_the_report_without_ids(
    finished: tuple[Path, Result], capsys: pytest.CaptureFixture[str]
) -> None:
    _, result = finished
    assert print_doctor(str(result.run_dir), []) is False
    assert "a shortcut" in capsys.readouterr().out
    text = (result.run_dir / "findings.json").read_text()
    patients = set(pd.read_parquet(result.run_dir / "manifest.parquet")["patient_id"])
    assert not [patient for patient in patients if f"{patient}_" in text or f"/{patient}/" in text]
    write_outputs(RunDirectory(result.run_dir))
    assert "tells part of the label: a shortcut" in (result.run_dir / "report.html").read_text()


def test_outliers_are_named_by_keyed_ids_in_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_cohort(tmp_path)
    path = next(root.rglob("2005_0.npy"))
    np.save(path, np.load(path) * 40)
    result = run_study(validate_study(values_of(root)))
    print_doctor(str(result.run_dir), [])
    name = str(path.relative_to(root))
    assert name in capsys.readouterr().out
    text = (result.run_dir / "findings.json").read_text()
    assert name not in text
    assert keyed_id(name, load_id_key()) in text


def test_a_scaler_that_knows_of_test_is_found(finished: tuple[Path, Result]) -> None:
    from safetensors.numpy import load_file, save_file

    _, result = finished
    path = result.run_dir / "first" / "linear" / "seed0" / "best.safetensors"
    kept, tensors = path.read_bytes(), load_file(path)
    tensors["standardiser.mean"] = tensors["standardiser.mean"] + 0.1 * tensors["standardiser.std"]
    save_file(tensors, path)
    try:
        found = by_code(examine_run(RunDirectory(result.run_dir)))
    finally:
        path.write_bytes(kept)
    assert found["scaler_not_of_train"][0].severity == "error"


def test_without_features_the_rest_is_examined(finished: tuple[Path, Result], tmp_path: Path) -> None:
    root, result = finished
    (root / "features").rename(root / "moved")
    try:
        found = by_code(examine_run(RunDirectory(result.run_dir)))
    finally:
        (root / "moved").rename(root / "features")
    assert "lacks" in found["features_not_there"][0].evidence
    assert "account" in found


def test_before_a_run(finished: tuple[Path, Result]) -> None:
    root, _ = finished
    found = by_code(examine_study(validate_study(values_of(root))))
    for code in ("device", "credentials", "disk", "memory", "reachable", "labels", "keys", "receipt", "one_volume",
                 "input_on_spec", "probe_learns", "leak_gate"):  # fmt: skip
        assert code in found, code
    assert "table and pixels" in found["leak_gate"][0].title, "the run has looked at the files"
    assert {finding.severity for finding in found["disk"]} == {"info"}


def test_before_a_run_leaks_are_shown_with_rows(tmp_path: Path) -> None:
    root = write_cohort(tmp_path, participants=24)
    source, target = (next(root.rglob(f"{name}_0.npy")) for name in ("2000", "2009"))
    target.unlink()
    target.hardlink_to(source)
    found = by_code(examine_study(validate_study(values_of(root))))
    assert found["same_file"][0].severity == "error"
    assert "2009_0.npy" in found["same_file"][0].evidence
    assert "pixels_not_looked_at" in found
    accepted = by_code(examine_study(validate_study(values_of(root, leaks={"accept": ["same_file"]}))))
    assert accepted["same_file"][0].severity == "warning"


def test_with_folds_each_choice_is_told_once(tmp_path: Path) -> None:
    root = write_cohort(tmp_path)
    recipe = LINEAR | {"grid": {"lr": [1e-3, 1e-2]}}
    recipe.pop("lr")
    values = values_of(root, folds={"k": 3}, recipes={"linear": recipe})
    found = by_code(examine_run(RunDirectory(run_study(validate_study(values)).run_dir)))
    edges = [(finding.title, finding.evidence.split(":")[0]) for finding in found.get("edge_of_grid", [])]
    assert len(edges) == len(set(edges))
    assert found["features_spread"], "the first round is looked at"


# ---- the three stories


def write_predictions(folder: Path, logits_NC: np.ndarray) -> None:
    kept = Predictions.read(folder / "test_preds.parquet", CLASSES)
    Predictions(kept.sample_id_N, kept.patient_id_N, kept.y_true_N, logits_NC, kept.classes).write(
        folder / "test_preds.parquet"
    )


def story_cohort(root: Path) -> Path:
    """65 test participants, 17 of them healthy; one volume each."""
    rng = np.random.default_rng(3)
    rows = []
    for number in range(65 + 36):
        split = "test" if number < 65 else "val" if number < 77 else "train"
        grade = (0 if number < 17 else 1 + number % 2) if split == "test" else number % 3
        name = f"{3000 + number}"
        rows.append((name, f"site{number % 2}", CLASSES[grade], split, "TRUE"))
        folder = root / "retinal_oct" / "structural_oct" / "device0" / name
        folder.mkdir(parents=True)
        voxels = rng.normal(100, 10, size=(5, 40, 36))
        voxels[:, : 12 * grade] += 25
        np.save(folder / f"{name}_0.npy", voxels.astype(np.float32))
    columns = ["participant_id", "clinical_site", "study_group", "recommended_split", "retinal_oct"]
    pd.DataFrame(rows, columns=columns).to_csv(root / "participants.tsv", sep="\t", index=False)
    return root


def test_story_1_a_collapsed_head_is_no_finding_about_checkpoints(tmp_path: Path) -> None:
    """17 of 65 right on two checkpoints, 26.15 %, F1 of the first class 0.41: every case was called healthy."""
    root = story_cohort(tmp_path)
    values = study_values(root, seeds=[0], floors=["majority"], recipes={"linear": LINEAR})
    values["recipes"]["linear"] = {"kind": "linear_probe", "epochs": 1, "warmup_epochs": 0, "lr": 1e-12}
    result = run_study(validate_study(values))
    for encoder in ("first", "second"):
        folder = result.run_dir / encoder / "linear" / "seed0"
        # a head of which only the bias learned: the same for any encoder, since it does not look at the features
        rows = len(pd.read_parquet(folder / "test_preds.parquet"))
        noise = np.random.default_rng(len(encoder)).normal(0, 1e-3, (rows, 3))
        write_predictions(folder, np.array([2.0, 0.1, 0.0]) + noise)
    write_outputs(RunDirectory(result.run_dir))
    table = pd.read_csv(result.run_dir / "leaderboard.csv").set_index("encoder")
    p = 17 / 65
    for encoder in ("first", "second"):
        assert table.loc[encoder, "test_accuracy"] == pytest.approx(p, abs=1e-6)
        assert table.loc[encoder, "test_f1_healthy"] == pytest.approx(2 * p / (1 + p), abs=1e-6)
    found = by_code(examine_run(RunDirectory(result.run_dir)))
    named = [finding for finding in found["collapsed"] if "'healthy' for all 65 test participants" in finding.title]
    assert len(named) == 2
    assert all("no finding about the checkpoint" in finding.title for finding in named)
    assert "65 of 65 predictions are one class" in named[0].evidence
    assert any(finding.code == "same_decisions" for finding in found.get("same_decisions", []))


def test_story_2_an_option_that_was_never_read(tmp_path: Path) -> None:
    """Two rows of one study, then two runs: what was meant to differ did not reach them."""
    root = write_cohort(tmp_path, participants=24)
    checkpoint = write_checkpoint(root / "checkpoints" / "a.safetensors", 1)
    twin = root / "checkpoints" / "copy.safetensors"
    twin.write_bytes(checkpoint.read_bytes())  # the "other" checkpoint of the experiment
    values = values_of(root)
    values["encoders"]["other"] = {"family": "vit3d", "checkpoint": str(twin)}
    result = run_study(validate_study(values))
    found = by_code(examine_run(RunDirectory(result.run_dir)))
    [same] = found["same_settings"]
    assert same.severity == "error"
    assert same.title.startswith("first / linear and other / linear are one experiment under two names")
    assert "identical predictions" in same.evidence

    again = run_study(validate_study(values | {"name": "again"}))
    first, second = RunDirectory(result.run_dir), RunDirectory(again.run_dir)
    [nothing] = by_code(examine_two_runs(first, second))["same_settings"]
    assert "small and again have the same settings" in nothing.title
    # `max_quarantined` takes effect on files that cannot be read, and there are none
    values["data"] = values["data"] | {"max_quarantined": 0.2}
    third = RunDirectory(run_study(validate_study(values | {"name": "third"})).run_dir)
    without = by_code(examine_two_runs(first, third))["option_without_effect"]
    assert without[0].severity == "warning", "it may be that nothing called for it"
    assert "data.max_quarantined (0.05 and 0.2)" in without[0].evidence


def test_story_3_a_difference_of_0_08_points_is_within_noise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two rows less than a point apart on 24 test participants: the doctor says so, with the interval."""
    root = write_cohort(tmp_path, participants=96)
    result = run_study(validate_study(study_values(
        root, seeds=[0, 1], floors=["majority"], metric="auroc", recipes={"linear": LINEAR},
        intervals={"resamples": 200},
    )))  # fmt: skip
    rng = np.random.default_rng(5)
    for encoder in ("first", "second"):
        for seed in (0, 1):
            folder = result.run_dir / encoder / "linear" / f"seed{seed}"
            kept = Predictions.read(folder / "test_preds.parquet", CLASSES)
            if encoder == "first":
                logits_NC = np.eye(3)[kept.y_true_N] * 1.2 + rng.normal(0, 1, (len(kept.y_true_N), 3))
                np.save(tmp_path / f"{seed}.npy", logits_NC)
            else:
                logits_NC = np.load(tmp_path / f"{seed}.npy") + rng.normal(0, 0.05, (len(kept.y_true_N), 3))
            write_predictions(folder, logits_NC)
    write_outputs(RunDirectory(result.run_dir))
    table = pd.read_csv(result.run_dir / "leaderboard.csv").set_index("encoder")
    points = 100 * abs(table.loc["first", "test_auroc"] - table.loc["second", "test_auroc"])
    assert 0 < points < 1
    [noise] = by_code(examine_run(RunDirectory(result.run_dir)))["within_noise"]
    assert f"+{points:.2f} points above" in noise.title
    assert "within noise, not a finding" in noise.title
    assert "[" in noise.evidence
    assert "would show a true difference of" in noise.evidence


def test_the_study_file_of_a_run_is_what_the_doctor_reads(finished: tuple[Path, Result], tmp_path: Path) -> None:
    root, result = finished
    assert yaml.safe_load((result.run_dir / "study.yaml").read_text())["name"] == "small"
    assert print_doctor(str(write_study(tmp_path / "study.yaml", values_of(root))), []) is False
    assert json.loads((result.run_dir / "leaks.json").read_text())["accepted"] == []
