"""The floors of a run: which rows there are, what they are fed, and what is said of one that cannot be had.

Oracles: scikit-learn on the table's columns, the labels permuted by hand, a cohort that a column gives away.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cohorts import CLASSES, study_values, write_cohort
from sklearn.linear_model import LogisticRegression

from vitreous.config.compose import validate_study
from vitreous.core.errors import ConfigError, SampleError, UserError
from vitreous.recipes.floors import typed_columns, why_not_a_column
from vitreous.study.model_folder import open_model_folder
from vitreous.study.plan import make_plan
from vitreous.study.rows import read_kept_rows
from vitreous.study.run import Result, run_study
from vitreous.study.run_directory import RunDirectory
from vitreous.study.transfer import run_transfer

ALL = ["majority", "shuffled", "untrained", "pixels", "columns"]


@pytest.fixture(autouse=True)
def id_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITREOUS_ID_KEY", str(tmp_path / "id_key"))


def values(root: Path, *, columns: list[str], **changes: Any) -> dict[str, Any]:
    study = study_values(root, floors=ALL, **changes)
    study["encoders"].pop("second", None)
    study["data"]["columns"] = columns
    return study


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Column `clinic` is the label for all but every eighth participant; `age` says nothing."""
    root = write_cohort(tmp_path_factory.mktemp("cohort"))
    table = pd.read_csv(root / "participants.tsv", sep="\t", dtype=str)
    grades = table["study_group"].map(CLASSES.index)
    table["clinic"] = [f"clinic{(grade + (row % 8 == 0)) % 3}" for row, grade in enumerate(grades)]
    table.loc[5, "age"] = "n/a"
    table.to_csv(root / "participants.tsv", sep="\t", index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITREOUS_ID_KEY", str(root / "id_key"))
        return root, run_study(validate_study(values(root, columns=["clinic", "age"])))


def test_every_floor_is_a_row(finished: tuple[Path, Result]) -> None:
    board = finished[1].leaderboard
    floors = board.loc[board["is_floor"] == 1, ["encoder", "recipe"]]
    assert set(map(tuple, floors.to_numpy())) == {
        *(("floor", name) for name in ("majority", "shuffled", "pixels", "columns")),
        ("untrained", "linear"),
    }
    notes = board.set_index(["encoder", "recipe"])["notes"]
    assert "labels permuted between training patients" in notes["floor", "shuffled"]
    assert "logistic regression on clinical_site, device, clinic, age" in notes["floor", "columns"]
    assert "floor / columns" in notes["first", "linear"], "the clinic gives the class away: nothing else clears it"


def test_the_floor_of_columns_is_logistic_regression_on_the_table(finished: tuple[Path, Result]) -> None:
    root, result = finished
    folder = result.run_dir / "floor" / "columns" / "seed0"
    model = json.loads((folder / "model.json").read_text())
    kept = pd.concat([pd.read_parquet(folder / f"{split}_preds.parquet") for split in ("val", "test")])
    table = pd.read_csv(root / "participants.tsv", sep="\t", dtype=str, keep_default_na=False)
    table = table.set_index("participant_id")
    people = [name for name in table.index for _ in range(1 + int(name) % 2)]  # one or two volumes each
    rows = table.loc[people].assign(device=[f"device{k}" for name in table.index for k in range(1 + int(name) % 2)])
    age = pd.to_numeric(rows["age"], errors="coerce")
    is_train = (rows["recommended_split"] == "train").to_numpy()
    columns = {"age": age.fillna(age[is_train].mean())}
    if age[is_train].isna().any():
        columns["age missing"] = age.isna().astype(float)
    for name in ("clinical_site", "device", "clinic"):
        columns |= {f"{name}={value}": (rows[name] == value).astype(float) for value in sorted(set(rows[name]))}
    x_ND = pd.DataFrame(columns).to_numpy(np.float64)
    weight_N = 1.0 / rows.groupby(level=0)["age"].transform("size").to_numpy()
    mean_D = np.average(x_ND[is_train], axis=0, weights=weight_N[is_train])
    std_D = np.sqrt(np.average((x_ND[is_train] - mean_D) ** 2, axis=0, weights=weight_N[is_train]))
    scaled_ND = (x_ND - mean_D) / np.where(std_D == 0, 1, std_D)
    y_N = rows["study_group"].map(CLASSES.index).to_numpy()
    oracle = LogisticRegression(C=model["setting"]["C"], max_iter=1000, tol=1e-4)
    per_class = np.bincount(y_N[is_train], weights=weight_N[is_train])
    balanced_N = weight_N * (per_class.sum() / (3 * per_class))[y_N]
    oracle.fit(scaled_ND[is_train], y_N[is_train], sample_weight=balanced_N[is_train])
    expected = pd.DataFrame(oracle.predict_proba(scaled_ND), index=people)
    logits = kept[[f"logit_{name}" for name in CLASSES]].to_numpy()
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    volume = kept["sample_id"].str.extract(r"_(\d)\.npy$")[0].astype(int).to_numpy()
    position = [people.index(name) + k for name, k in zip(kept["patient_id"], volume)]
    np.testing.assert_allclose(probs, expected.to_numpy()[position], atol=2e-3)


def test_shuffled_labels_learn_nothing_that_test_knows(finished: tuple[Path, Result]) -> None:
    _, result = finished
    board = result.leaderboard.set_index(["encoder", "recipe"])
    assert board.loc[("floor", "shuffled"), "seeds"] == "0 1"
    own, shuffled = (board.loc[row, "test_balanced_accuracy"] for row in [("first", "linear"), ("floor", "shuffled")])
    assert own > shuffled + 0.2
    weights = [
        (result.run_dir / "floor" / "shuffled" / f"seed{seed}" / "best.safetensors").read_bytes() for seed in (0, 1)
    ]
    assert weights[0] != weights[1], "each seed permutes anew"


@pytest.mark.parametrize(("floor", "why"), [("shuffled", "learned from shuffled labels"), ("columns", "reads no file")])
def test_no_floor_predicts(finished: tuple[Path, Result], floor: str, why: str) -> None:
    with pytest.raises(UserError, match=f"the floor {floor} {why}"):
        open_model_folder(finished[1].run_dir / "floor" / floor / "seed0")


def test_the_floor_of_columns_does_not_travel(finished: tuple[Path, Result]) -> None:
    root, result = finished
    place = f"other:{root / 'participants.tsv'}:{root}"
    with pytest.raises(UserError, match="floor/columns reads no files"):
        run_transfer(result.run_dir, [place], rows=["first/linear", "floor/columns"])


def write_npz(path: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 24), ("val", 12), ("test", 12)):
        labels = np.arange(count) % 2
        images = rng.integers(0, 100, size=(count, 8, 20, 20)).astype(np.uint8)
        images[labels == 1, :, :10] += 100
        arrays |= {f"{split}_images": images, f"{split}_labels": labels[:, None].astype(np.uint8)}
    np.savez(path, **arrays)
    return {"kind": "npz", "table": str(path), "classes": ["no", "yes"], "axes": "DHW"}


def test_a_floor_that_cannot_be_had_is_told_in_plan_and_run(tmp_path: Path) -> None:
    study = study_values(tmp_path, data=write_npz(tmp_path / "volumes.npz"), floors=ALL, seeds=[0])
    config = validate_study(study)
    told = [finding for finding in make_plan(config).findings if finding.code == "floor_not_run"]
    assert [finding.title for finding in told] == [
        "The floor columns was not run: data of kind npz have no table of columns."
    ]
    assert "floors: [majority, shuffled, untrained, pixels]" in told[0].remedy
    result = run_study(config)
    assert "columns" not in set(result.leaderboard["recipe"])
    assert told[0].title in result.report.read_text()
    quiet = validate_study(study | {"floors": ["majority"]})
    assert not [finding for finding in make_plan(quiet).findings if finding.code == "floor_not_run"]


def test_columns_that_are_of_no_use(tmp_path: Path) -> None:
    root = write_cohort(tmp_path)
    table = pd.read_csv(root / "participants.tsv", sep="\t", dtype=str)
    many = [f"n{row // 2}" for row in range(104)]
    table = pd.concat([table] * 3).head(104).assign(participant_id=[f"{3000 + row}" for row in range(104)], code=many)
    table["empty"] = ""
    table.to_csv(root / "participants.tsv", sep="\t", index=False)
    files = sorted(root.rglob("*.npy"))
    for row, name in enumerate(table["participant_id"]):
        place = root / "retinal_oct" / "structural_oct" / "device0" / name / f"{name}_0.npy"
        place.parent.mkdir(parents=True)
        place.write_bytes(files[row % len(files)].read_bytes())
    for path in files:
        path.unlink()
    study = values(root, columns=["code", "empty"])
    with pytest.raises(SampleError) as caught:
        make_plan(validate_study(study))
    assert "data.columns: 'code' has 52 different values as text, more than 50" in str(caught.value)
    assert "data.columns: 'empty' has no value" in str(caught.value)
    study["data"] |= {"columns": ["agee"]}
    with pytest.raises(SampleError, match=r"neither the table nor the files have 'agee'. Did you mean 'age'\?"):
        make_plan(validate_study(study))
    study["data"] |= {"columns": [], "domains": ["clinical_site", "code"]}
    titles = [finding.title for finding in make_plan(validate_study(study)).findings]
    assert any(title.startswith("The floor columns leaves out the domain code: it has 52") for title in titles)


def test_the_label_is_no_column(tmp_path: Path) -> None:
    for column, what in (("study_group", "the label"), ("participant_id", "the patient id")):
        with pytest.raises(ConfigError, match=f"columns: '{column}' is {what}"):
            validate_study(values(tmp_path, columns=[column]))


def test_text_becomes_numbers_only_where_it_counts() -> None:
    ages = [str(40 + row) for row in range(11)]
    table = pd.DataFrame({
        "age": [*ages, "n/a"], "site": ["1", "2", "3", "4"] * 3, "mixed": [*ages, "old"],
        "flag": ["TRUE", "", "FALSE"] * 4, "none": [""] * 12,
    })  # fmt: skip
    typed = typed_columns(table, list(table))
    assert typed["age"].tolist()[:11] == [float(age) for age in ages]
    assert np.isnan(typed["age"].iloc[11])
    assert typed["site"].tolist() == ["1", "2", "3", "4"] * 3
    assert typed["mixed"].iloc[11] == "old"
    assert typed["flag"].tolist() == ["TRUE", None, "FALSE"] * 4
    assert why_not_a_column(typed["none"]) == "has no value"
    assert why_not_a_column(typed["age"]) is None


def test_values_that_training_never_saw_are_told(tmp_path: Path) -> None:
    root = write_cohort(tmp_path)
    table = pd.read_csv(root / "participants.tsv", sep="\t", dtype=str)
    table["clinic"] = np.where(table["recommended_split"] == "test", "elsewhere", "here")
    table.to_csv(root / "participants.tsv", sep="\t", index=False)
    told = make_plan(validate_study(values(root, columns=["clinic"]))).findings
    (finding,) = [one for one in told if one.code == "unseen_category"]
    assert finding.title == "Column clinic has values in val or test that training never saw."
    volumes = 1 + table["participant_id"].astype(int) % 2
    tested, rest = (volumes[table["recommended_split"].isin(parts)].sum() for parts in (["test"], ["val", "test"]))
    assert finding.evidence.startswith(f"{tested} of {rest} rows")


def test_rows_of_an_earlier_version_are_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([{"encoder": "first", "recipe": "linear", "notes": []}]))
    with pytest.raises(UserError, match="was written by an earlier version of Vitreous"):
        read_kept_rows(RunDirectory(tmp_path))
