"""Transfer of whole runs to other cohorts of real files. Oracles: scikit-learn on the kept predictions, the files."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cohorts import CLASSES, contents, study_values, write_cohort, write_study
from safetensors.numpy import load_file
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from typer.testing import CliRunner

from vitreous.cli import app
from vitreous.config.compose import validate_study
from vitreous.core.errors import ConfigError, SampleError, StudyMismatchError, UserError
from vitreous.core.predictions import Predictions
from vitreous.recipes.probe_logits import probe_logits
from vitreous.study.run import run_study
from vitreous.study.transfer import run_transfer
from vitreous.study.transfer_cohort import CohortOptions, check_names, parse_label_map, parse_place

RECIPES = {
    "linear": {"kind": "linear_probe", "epochs": 8, "warmup_epochs": 1, "lr": 1e-2},
    "knn": {"kind": "knn", "k": [3]},
}


def write_other(folder: Path, *, participants: int = 30, keep: tuple[str, ...] = tuple(CLASSES)) -> Path:
    """Another clinic: other ids, other noise, the classes `keep` alone."""
    write_cohort(folder, participants=participants, seed=7)
    for path in sorted(folder.rglob("*.npy")):
        np.save(path, np.load(path) * 1.3 + 20)
        new = folder / path.relative_to(folder).parent.parent / f"B{path.parent.name}" / f"B{path.name}"
        new.parent.mkdir(parents=True, exist_ok=True)
        path.rename(new)
    table = pd.read_csv(folder / "participants.tsv", sep="\t", dtype=str)
    table["participant_id"] = "B" + table["participant_id"]
    table = table[table["study_group"].isin(keep)]
    table = table.drop(columns=["clinical_site"]).rename(columns={"study_group": "diagnosis"})
    table.to_csv(folder / "participants.tsv", sep="\t", index=False)
    return folder


@pytest.fixture(scope="module", autouse=True)
def id_key(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITREOUS_ID_KEY", str(tmp_path_factory.mktemp("key") / "id_key"))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_cohort(tmp_path_factory.mktemp("source"))
    values = study_values(root, recipes=RECIPES, intervals={"resamples": 200})
    del values["encoders"]["second"]
    return run_study(validate_study(values)).run_dir


@pytest.fixture
def run_dir(trained: Path, tmp_path: Path) -> Path:
    """A copy of the finished run: each test has its own ledger."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_other(tmp_path_factory.mktemp("other"))


def on(other: Path, name: str = "clinic") -> list[str]:
    return [f"{name}:{other / 'participants.tsv'}:{other}"]


LABEL = CohortOptions(label="diagnosis")


def test_a_transfer_leaves_predictions_scores_gaps_shifts_and_a_report(run_dir: Path, other: Path) -> None:
    (target,) = run_transfer(run_dir, on(other), options=LABEL, ordered=True)
    assert {row.name for row in target.rows} == {"first / linear", "first / knn", "floor / majority"}
    assert (target.num_source, target.num_target) == (12, 30)
    folder = run_dir / "transfer" / "clinic"
    for name in (
        "settings.yaml",
        "heads.json",
        "data_errors.csv",
        "account.json",
        "scores.csv",
        "gap.csv",
        "shifts.json",
    ):
        assert (folder / name).is_file(), name
    for name in ("transfer.csv", "transfer.md", "transfer.html", "heat_map.svg", "gap_against_source.svg"):
        assert (run_dir / "transfer" / name).is_file(), name
    # the numbers, by scikit-learn on the kept predictions
    kept = [Predictions.read(folder / "first" / "linear" / f"seed{seed}.parquet", CLASSES) for seed in (0, 1)]
    scores = pd.read_csv(folder / "scores.csv").set_index(["encoder", "recipe", "metric"])
    for metric, score in (("balanced_accuracy", balanced_accuracy_score), ("accuracy", accuracy_score)):
        patients = [one.per_patient() for one in kept]
        expected = np.mean([score(one.y_true_N, one.y_pred_N) for one in patients])
        assert scores.loc[("first", "linear", metric), "target"] == pytest.approx(expected, abs=1e-6)
    leaderboard = pd.read_csv(run_dir / "leaderboard.csv").set_index(["encoder", "recipe"])
    source = scores.loc[("first", "linear", "balanced_accuracy")]
    assert source["source"] == pytest.approx(leaderboard.loc[("first", "linear"), "test_balanced_accuracy"], abs=1e-6)
    assert source["source_low"] == pytest.approx(
        leaderboard.loc[("first", "linear"), "test_balanced_accuracy_low"], abs=1e-6
    ), "the source's interval is that of the leaderboard"
    gaps = pd.read_csv(folder / "gap.csv").set_index(["encoder", "recipe", "metric"])
    assert gaps.loc[("first", "linear", "accuracy"), "gap"] == pytest.approx(
        scores.loc[("first", "linear", "accuracy"), "source"] - scores.loc[("first", "linear", "accuracy"), "target"],
        abs=2e-6,
    )
    assert not np.isnan(scores.loc[("first", "linear", "quadratic_weighted_kappa"), "target"])
    assert json.loads((folder / "account.json").read_text())["encoded"] == 45


def test_logits_are_those_of_the_kept_head_on_the_stored_features(run_dir: Path, other: Path, monkeypatch) -> None:
    """Oracle: one volume encoded alone, by the encoder loaded anew, through the head's own tensors."""
    import torch

    from vitreous.encoders.catalog import load_encoder
    from vitreous.features.pooling import pool_tokens
    from vitreous.inputs.decode import decode_volume
    from vitreous.inputs.prepare import finish_input, prepare_input
    from vitreous.inputs.volume import DeclaredAxes
    from vitreous.study.run_directory import RunDirectory, kept_study

    run_transfer(run_dir, on(other), options=LABEL, rows=["first/linear"])
    made = Predictions.read(run_dir / "transfer" / "clinic" / "first" / "linear" / "seed1.parquet", CLASSES)
    config = kept_study(RunDirectory(run_dir))
    encoder = load_encoder(config.encoders["first"].checkpoint, "vit3d", precision="fp32", device="cpu")
    path = other / made.sample_id_N[3]
    volume = decode_volume(path, declared=DeclaredAxes(axes="DHW", spacing_mm=None), max_bytes=10**9)
    x_CDHW = finish_input(prepare_input(volume, encoder.spec), encoder.spec)
    with torch.inference_mode():
        pooled_1D = pool_tokens(encoder(x_CDHW[None]), "mean", None).numpy()
    expected = probe_logits(load_file(run_dir / "first" / "linear" / "seed1" / "best.safetensors"), pooled_1D)
    np.testing.assert_allclose(made.scores_NC[3], expected[0], rtol=1e-3, atol=1e-4)


def test_the_same_command_changes_nothing_and_looks_once(run_dir: Path, other: Path, monkeypatch) -> None:
    run_transfer(run_dir, on(other), options=LABEL, rows=["first/knn"])
    before = contents(run_dir, "*")
    looks = (run_dir / "ledger.jsonl").read_text().splitlines()
    assert [json.loads(line)["purpose"] for line in looks][1:] == ["transfer to clinic"]
    assert json.loads(looks[1])["num_patients"] == 30

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a known file was encoded again")

    monkeypatch.setattr("vitreous.study.encode.encode_missing", never)
    run_transfer(run_dir, on(other), options=LABEL, rows=["first/knn"])
    assert contents(run_dir, "*") == before


def test_rows_may_come_later_and_cohorts_stand_together(run_dir: Path, other: Path, tmp_path: Path) -> None:
    (first,) = run_transfer(run_dir, on(other), options=LABEL, rows=["first/linear"])
    assert [row.name for row in first.rows] == ["first / linear"]
    (more,) = run_transfer(run_dir, on(other), options=LABEL, rows=["first/knn", "untrained/knn"])
    assert {row.name for row in more.rows} == {"first / linear", "first / knn", "untrained / knn"}
    second = write_other(tmp_path / "second", participants=24)
    both = run_transfer(run_dir, on(second, "a_second"), options=LABEL, rows=["first/knn"])
    assert [target.name for target in both] == ["a_second", "clinic"]
    table = pd.read_csv(run_dir / "transfer" / "transfer.csv")
    assert table["cohort"].value_counts().to_dict() == {"clinic": 3, "a_second": 1}


def test_other_settings_under_the_same_name_are_refused(run_dir: Path, other: Path) -> None:
    run_transfer(run_dir, on(other), options=LABEL, rows=["first/linear"])
    with pytest.raises(StudyMismatchError, match=r"different: fit_share \(0\.5 then, 0\.3 now\)"):
        run_transfer(run_dir, on(other), options=LABEL, fit_share=0.3)
    with pytest.raises(StudyMismatchError, match=r"split \('all' then, 'test' now\)"):
        run_transfer(run_dir, on(other), options=CohortOptions(label="diagnosis", split="test"))


def test_labels_that_changed_since_the_look_are_refused(run_dir: Path, tmp_path: Path) -> None:
    mine = write_other(tmp_path / "mine")
    run_transfer(run_dir, on(mine), options=LABEL, rows=["first/knn"])
    table = pd.read_csv(mine / "participants.tsv", sep="\t", dtype=str)
    table["diagnosis"] = np.random.default_rng(0).permutation(table["diagnosis"])
    table.to_csv(mine / "participants.tsv", sep="\t", index=False)
    with pytest.raises(StudyMismatchError, match="other samples or labels"):
        run_transfer(run_dir, on(mine), options=LABEL, rows=["first/knn"])


def test_heads_that_changed_since_are_refused(run_dir: Path, other: Path) -> None:
    run_transfer(run_dir, on(other), options=LABEL, rows=["first/knn"])
    shutil.copy(run_dir / "first" / "linear" / "seed0" / "best.safetensors", run_dir / "first" / "knn" / "seed0")
    with pytest.raises(StudyMismatchError, match=r"first/knn/seed0 changed since"):
        run_transfer(run_dir, on(other), options=LABEL, rows=["first/knn"])


def test_only_the_own_test_split_of_the_cohort(run_dir: Path, other: Path) -> None:
    (target,) = run_transfer(
        run_dir, on(other), options=CohortOptions(label="diagnosis", split="test"), rows=["first/knn"]
    )
    table = pd.read_csv(other / "participants.tsv", sep="\t", dtype=str)
    assert target.num_target == (table["recommended_split"] == "test").sum()
    account = json.loads((run_dir / "transfer" / "clinic" / "account.json").read_text())
    assert account["excluded_by_rule"]["not in test"] > 0
    assert account["rows"] == account["encoded"] + sum(account["excluded_by_rule"].values())


def test_a_cohort_described_by_a_study_file(run_dir: Path, other: Path, tmp_path: Path) -> None:
    values = study_values(other, name="described")["data"] | {"label": "diagnosis", "domains": ["device"]}
    del values["classes"]
    study = write_study(tmp_path / "described.yaml", {"data": values})
    (by_study,) = run_transfer(run_dir, [f"described:{study}"], rows=["first/knn"])
    direct = run_transfer(run_dir, on(other), options=LABEL, rows=["first/knn"])[0]
    assert by_study.rows[0].gaps["accuracy"].target.value == direct.rows[0].gaps["accuracy"].target.value
    wrong = write_study(tmp_path / "wrong.yaml", {"data": values | {"classes": ["late", "early", "healthy"]}})
    with pytest.raises(UserError, match=r"its classes are .* leave classes out"):
        run_transfer(run_dir, [f"wrong:{wrong}"])
    empty = write_study(tmp_path / "empty.yaml", {"name": "x"})
    with pytest.raises(UserError, match="no data section"):
        run_transfer(run_dir, [f"empty:{empty}"])


def test_a_class_that_the_cohort_lacks_is_a_finding_and_undefined(run_dir: Path, tmp_path: Path) -> None:
    lacking = write_other(tmp_path / "lacking", keep=("healthy", "early"))
    (target,) = run_transfer(run_dir, on(lacking), options=LABEL, rows=["first/knn"])
    assert "class_absent" in [finding.code for finding in target.findings]
    gaps = target.rows[0].gaps
    assert gaps["recall_late"].target.value.reason == "the class 'late' does not occur"
    assert isinstance(gaps["recall_early"].gap.value, float)
    assert "The cohort clinic has no patient of 1 class(es)." in (run_dir / "transfer" / "transfer.html").read_text()


def test_unreadable_files_are_quarantined_under_keyed_ids(run_dir: Path, tmp_path: Path) -> None:
    damaged = write_other(tmp_path / "damaged")
    bad = sorted(damaged.rglob("*.npy"))[2]
    bad.write_bytes(b"")
    (target,) = run_transfer(run_dir, on(damaged), options=LABEL, rows=["first/knn"])
    errors = pd.read_csv(run_dir / "transfer" / "clinic" / "data_errors.csv", dtype=str)
    assert len(errors) == 1
    assert errors["key"][0].endswith(bad.name)
    text = (run_dir / "transfer" / "transfer.html").read_text()
    assert "1 file could not be used" in text
    ids = pd.read_csv(damaged / "participants.tsv", sep="\t", dtype=str)["participant_id"]
    assert not [name for name in ids if re.search(rf"\b{name}\b", text)]
    assert target.num_target == 29
    lost = next(finding for finding in target.findings if finding.code == "lost_patients")
    assert lost.title == "1 of 30 patients of clinic have no usable file, so no prediction was made for them."


def test_files_the_run_trained_on_are_refused_and_shared_ids_are_told(
    run_dir: Path, trained: Path, tmp_path: Path
) -> None:
    source = Path(validate_study_of(run_dir)["data"]["files"])
    with pytest.raises(UserError, match=r"again: \d+ of 72 files are files that the run trained or chose on"):
        run_transfer(run_dir, [f"again:{source / 'participants.tsv'}:{source}"])
    own_test = run_transfer(
        run_dir,
        [f"own:{source / 'participants.tsv'}:{source}"],
        options=CohortOptions(split="test"),
        rows=["first/knn"],
    )
    assert own_test[0].rows[0].gaps["accuracy"].gap.value == 0.0, "the same patients lose nothing"
    assert "same_files" in [finding.code for finding in own_test[0].findings]
    namesakes = write_cohort(tmp_path / "namesakes", participants=24, seed=3)
    (_, target) = run_transfer(run_dir, [f"sakes:{namesakes / 'participants.tsv'}:{namesakes}"], rows=["first/knn"])
    assert "same_patient_ids" in [finding.code for finding in target.findings]


def validate_study_of(run_dir: Path) -> dict:
    import yaml

    return yaml.safe_load((run_dir / "study.yaml").read_text())


def test_wrong_inputs_each_have_one_clear_error(run_dir: Path, other: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run directory \(it has no study\.yaml\)"):
        run_transfer(tmp_path / "nowhere", on(other))
    with pytest.raises(SampleError, match="'study_group'"):
        run_transfer(run_dir, on(other))
    with pytest.raises(UserError, match=r"no row 'first/linaer'.*Did you mean 'first/linear'"):
        run_transfer(run_dir, on(other), rows=["first/linaer"])
    with pytest.raises(UserError, match="no row with an encoder"):
        run_transfer(run_dir, on(other), rows=["floor/majority"])
    with pytest.raises(UserError, match="name clinic is given twice"):
        run_transfer(run_dir, on(other) * 2)
    with pytest.raises(UserError, match="must be NAME:TABLE:FILES"):
        run_transfer(run_dir, [str(other)])
    with pytest.raises(UserError, match=r"--image has no meaning for data of kind participants"):
        run_transfer(run_dir, on(other), options=CohortOptions(image="x"))
    with pytest.raises(UserError, match=r"--fit-share must lie between 0 and 1; got 1"):
        run_transfer(run_dir, on(other), fit_share=1.0)
    table = pd.read_csv(other / "participants.tsv", sep="\t", dtype=str)
    table.loc[0, "diagnosis"] = "very late"
    table.to_csv(tmp_path / "labels.tsv", sep="\t", index=False)
    with pytest.raises(SampleError, match=r"unknown label 'very late'.*Nearest class: 'late'"):
        run_transfer(run_dir, [f"clinic:{tmp_path / 'labels.tsv'}:{other}"], options=LABEL)
    assert len((run_dir / "ledger.jsonl").read_text().splitlines()) == 1, "nothing was looked at"


def test_a_cohort_of_another_modality_is_refused(run_dir: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = rng.integers(0, 255, (6, 28, 28, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(6) % 3
    np.savez(tmp_path / "images.npz", **arrays)
    data = {"kind": "npz", "table": str(tmp_path / "images.npz"), "axes": "HWC"}
    study = write_study(tmp_path / "images.yaml", {"data": data})
    with pytest.raises(UserError, match="photos: the cohort holds images, and the run's encoders read volumes"):
        run_transfer(run_dir, [f"photos:{study}"])


def test_a_run_that_never_finished_is_refused(run_dir: Path, other: Path) -> None:
    (run_dir / "rows.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        run_transfer(run_dir, on(other))


def test_weights_that_are_not_the_runs_are_refused(run_dir: Path, other: Path) -> None:
    provenance = json.loads((run_dir / "provenance.json").read_text())
    provenance["hashes"]["encoders.first.weights"] = "0" * 64
    (run_dir / "provenance.json").write_text(json.dumps(provenance))
    with pytest.raises(StudyMismatchError, match=r"encoders\.first: the weights are not those of the run"):
        run_transfer(run_dir, on(other), options=LABEL)


def test_folds_are_transferred_model_by_model(tmp_path: Path, other: Path) -> None:
    root = write_cohort(tmp_path / "folded")
    table = pd.read_csv(root / "participants.tsv", sep="\t", dtype=str).drop(columns="recommended_split")
    table.to_csv(root / "participants.tsv", sep="\t", index=False)
    values = study_values(root, recipes={"knn": RECIPES["knn"]}, folds={"k": 3}, floors=[])
    del values["encoders"]["second"]
    run = run_study(validate_study(values)).run_dir
    (target,) = run_transfer(run, on(other), options=LABEL)
    assert (target.num_source, target.num_target) == (48, 30)
    parts = [
        Predictions.read(run / "transfer" / "clinic" / "first" / "knn" / f"fold{fold}" / "seed0.parquet", CLASSES)
        for fold in range(3)
    ]
    expected = np.mean([accuracy_score(one.y_true_N, one.y_pred_N) for one in (p.per_patient() for p in parts)])
    assert target.rows[0].gaps["accuracy"].target.value == pytest.approx(expected)


def test_the_verb_prints_a_table_and_where_the_report_is(run_dir: Path, other: Path, capfd) -> None:
    arguments = ["transfer", str(run_dir), "--on", on(other)[0], "--label", "diagnosis", "--rows", "first/knn"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "first / knn" in result.output
    assert "transfer.html" in result.output


def test_names_and_label_maps() -> None:
    assert parse_place("a:C:/x/t.csv:D:\\imgs").locations == ("C:/x/t.csv", "D:\\imgs")
    assert parse_place("a:gs://b/t.csv:/data/images").locations == ("gs://b/t.csv", "/data/images")
    assert parse_place("a:one.npz").locations == ("one.npz",)
    for wrong in ("a", "s3://bucket/x", "a:", ":x:y", "a b:c:d", "a:b:c:d", "a::b"):
        with pytest.raises(UserError, match="--on"):
            parse_place(wrong)
    with pytest.raises(UserError, match="twice"):
        check_names([parse_place("A:x:y"), parse_place("a:x:y")])
    assert parse_label_map("0=healthy, 1 = early") == {"0": "healthy", "1": "early"}
    for wrong in ("0", "0=", "=x", "0=a,0=b", "0=a,,1=b"):
        with pytest.raises(UserError, match="--label-map"):
            parse_label_map(wrong)


def test_a_label_map_that_names_an_unknown_class_is_refused(run_dir: Path, other: Path, tmp_path: Path) -> None:
    data = {
        "kind": "csv", "table": str(tmp_path / "t.csv"), "files": str(tmp_path), "image": "id", "label": "grade",
    }  # fmt: skip
    study = write_study(tmp_path / "photos.yaml", {"data": data})
    options = CohortOptions(label_map={"0": "healthy", "1": "early", "2": "latest"})
    with pytest.raises(ConfigError, match=r"label_map names \['latest'\], which are not among the classes"):
        run_transfer(run_dir, [f"photos:{study}"], options=options)


def test_rows_trained_on_pixels_are_predicted_by_the_kept_model(tmp_path: Path, other: Path) -> None:
    """Oracle: transferred to the source's own test files, kept models give the run's own test predictions."""
    root = write_cohort(tmp_path / "pixels", participants=24)
    training = {"epochs": 1, "batch_size": 8, "lr_encoder": 1e-3, "lr_head": 1e-2}
    recipes = {
        "full": {"kind": "finetune", **training},
        "lora": {"kind": "lora", "rank": 2, "targets": ["qkv"], **training},
        "scratch": {"kind": "from_scratch", **training},
    }
    values = study_values(root, recipes=recipes, seeds=[1], floors=[], intervals={"resamples": 200})
    del values["encoders"]["second"]
    run = run_study(validate_study(values)).run_dir
    run_transfer(run, [f"own:{root / 'participants.tsv'}:{root}"], options=CohortOptions(split="test"))
    for recipe in recipes:
        made = Predictions.read(run / "transfer" / "own" / "first" / recipe / "seed1.parquet", CLASSES)
        kept = Predictions.read(run / "first" / recipe / "seed1" / "test_preds.parquet", CLASSES)
        assert np.array_equal(made.sample_id_N, kept.sample_id_N)
        np.testing.assert_allclose(made.scores_NC, kept.scores_NC, rtol=1e-6, atol=1e-6)
    targets = run_transfer(run, on(other), options=LABEL)
    assert {row.name for row in targets[0].rows} == {"first / full", "first / lora", "first / scratch"}
