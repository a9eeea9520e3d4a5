"""Few-shot curves. Oracles: scikit-learn on the kept logits, counts of the patients drawn, the ledger."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cohorts import CLASSES, contents, study_values, write_cohort
from sklearn.metrics import balanced_accuracy_score

from vitreous.config.compose import validate_study
from vitreous.core.errors import ConfigError, SampleError, UserError
from vitreous.core.undefined import Undefined
from vitreous.reports.few_shot import read_few_shot_scores
from vitreous.study.few_shot import draw_patients
from vitreous.study.plan import make_plan, print_plan
from vitreous.study.run import Result, run_study

RECIPES = {
    "linear": {"kind": "linear_probe", "epochs": 6, "warmup_epochs": 1, "grid": {"lr": [1e-4, 1e-2]}},
    "knn": {"kind": "knn", "k": [9, 12]},
}


@pytest.fixture(autouse=True)
def id_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITREOUS_ID_KEY", str(tmp_path / "id_key"))


def values(root: Path, **changes: Any) -> dict[str, Any]:
    more = {"few_shot": {"patients": [2, 6], "draws": 3}, "floors": ["majority", "shuffled", "untrained", "columns"]}
    study = study_values(root, **{"recipes": RECIPES, **more, **changes})
    study["encoders"].pop("second")
    return study


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    root = write_cohort(tmp_path_factory.mktemp("cohort"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITREOUS_ID_KEY", str(root / "id_key"))
        return root, run_study(validate_study(values(root)))


def test_rows_on_features_have_a_curve_and_floors_without_an_encoder_have_none(finished: tuple[Path, Result]) -> None:
    scores = read_few_shot_scores(finished[1].run_dir)
    names = {one.name for one in scores}
    assert names == {f"{encoder} / {recipe}" for encoder in ("first", "untrained") for recipe in RECIPES}
    points = [(one.patients, one.draw) for one in scores if one.name == "first / linear"]
    assert points == [(n, draw) for n in (2, 6) for draw in (0, 1, 2, None)] + [(None, None)]


def test_a_point_is_the_metric_of_the_kept_logits(finished: tuple[Path, Result]) -> None:
    _, result = finished
    row = result.run_dir / "first" / "linear"
    frame = pd.read_parquet(row / "few_shot_logits.parquet")
    assert "y_true" not in frame.columns
    truth = pd.read_parquet(row / "seed0" / "test_preds.parquet").set_index("sample_id")
    scores = {
        (one.patients, one.draw): one for one in read_few_shot_scores(result.run_dir) if one.name == "first / linear"
    }
    for n in (2, 6):
        tests = []
        for draw in range(3):
            of_head = frame[(frame["patients"] == n) & (frame["draw"] == draw)].set_index("sample_id")
            logits = of_head.loc[truth.index, [f"logit_{name}" for name in CLASSES]].to_numpy()
            probs = pd.DataFrame(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), index=truth["patient_id"])
            by_patient = probs.groupby(level=0).mean()
            y = truth.groupby("patient_id")["y_true"].first().loc[by_patient.index]
            tests.append(balanced_accuracy_score(y, by_patient.to_numpy().argmax(1)))
            assert scores[n, draw].test == pytest.approx(tests[-1], abs=1e-6)
            assert isinstance(scores[n, draw].low, Undefined)
        mean = scores[n, None]
        assert mean.test == pytest.approx(np.mean(tests), abs=1e-6)
        assert mean.draw_sd == pytest.approx(np.std(tests, ddof=1), abs=1e-6)
        assert mean.num_train == 3 * n
        assert mean.low <= mean.test <= mean.high
    whole, board = scores[None, None], result.leaderboard.set_index(["encoder", "recipe"]).loc[("first", "linear")]
    assert whole.test == pytest.approx(board["test_balanced_accuracy"], abs=2e-6)
    assert whole.num_train == 24


def test_neighbours_that_a_small_draw_lacks_are_told(finished: tuple[Path, Result]) -> None:
    scores = {(s.patients, s.draw): s for s in read_few_shot_scores(finished[1].run_dir) if s.name == "first / knn"}
    facts = json.loads((finished[1].run_dir / "first" / "knn" / "few_shot.json").read_text())["heads"]
    few = [one for one in facts if one["patients"] == 2]
    for one in few:
        if one["val"] is None:
            assert "fewer than the fewest neighbours (9)" in one["val_undefined"]
    assert any(one["val"] is None for one in few), "six patients have at most a dozen volumes"
    assert isinstance(scores[2, None].test, Undefined)
    assert isinstance(scores[6, None].test, float)


def test_the_one_look_covers_the_curves(finished: tuple[Path, Result]) -> None:
    root, result = finished
    assert len((result.run_dir / "ledger.jsonl").read_text().splitlines()) == 1
    wanted = ("*.parquet", "few_shot.*", "ledger.jsonl", "leaderboard.csv")
    before = contents(result.run_dir, *wanted)
    (result.run_dir / "first" / "linear" / "few_shot.json").unlink()
    run_study(validate_study(values(root)))
    assert contents(result.run_dir, *wanted) == before


def test_draws_are_of_each_class_and_nested() -> None:
    has_PC = np.eye(3, dtype=bool)[np.arange(60) % 3]
    for draw in range(4):
        small, large = (draw_patients(has_PC, n, np.random.default_rng(draw)) for n in (3, 8))
        assert has_PC[small].sum(axis=0).tolist() == [3, 3, 3]
        assert has_PC[large].sum(axis=0).tolist() == [8, 8, 8]
        assert set(small) < set(large)
    assert not np.array_equal(*(draw_patients(has_PC, 3, np.random.default_rng(seed)) for seed in (0, 1)))
    labels_PC = np.random.default_rng(0).random((80, 2)) < [0.2, 0.7]
    drawn = draw_patients(labels_PC, 5, np.random.default_rng(0), "multi_label")
    assert (labels_PC[drawn].sum(axis=0) >= 5).all()
    assert (~labels_PC[drawn]).sum(axis=0).min() >= 5
    assert len(drawn) <= 20


def test_with_folds_the_rounds_of_a_draw_are_put_together(tmp_path: Path) -> None:
    root = write_cohort(tmp_path, participants=36)
    table = pd.read_csv(root / "participants.tsv", sep="\t", dtype=str).drop(columns="recommended_split")
    table.to_csv(root / "participants.tsv", sep="\t", index=False)
    study = values(root, folds={"k": 3}, few_shot=[3], floors=[], recipes={"knn": {"kind": "knn", "k": [3]}})
    result = run_study(validate_study(study))
    scores = read_few_shot_scores(result.run_dir)
    assert [(one.patients, one.draw) for one in scores] == [*((3, draw) for draw in range(5)), (3, None), (None, None)]
    assert scores[5].num_train == 9
    assert scores[6].num_train == 12


def test_plan_says_what_the_curves_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cohorts import write_study

    root = write_cohort(tmp_path)
    plan = make_plan(validate_study(values(root)))
    assert plan.few_shot is not None
    assert (plan.few_shot.num_rows, plan.few_shot.num_heads) == (4, 2 * 2 * 3 * (2 + 2))
    assert plan.few_shot.flops > 0
    print_plan(str(write_study(tmp_path / "s.yaml", values(root))), [])
    assert "Few-shot curves of 4 rows, 2 numbers of patients, 3 draws each: 48 heads" in capsys.readouterr().out


def test_more_than_there_are_is_refused_before_anything_is_encoded(tmp_path: Path) -> None:
    root = write_cohort(tmp_path)
    study = validate_study(values(root, few_shot=[2, 9]))
    for start in (make_plan, run_study):
        with pytest.raises(
            SampleError, match="asks for 9 of each class, but 'healthy' has 8 training patients; 'early' has"
        ):
            start(study)
    assert not (root / "runs").exists()


@pytest.mark.parametrize(
    ("few_shot", "message"),
    [([5, 5], "give each number once, rising"), ([10, 5], "rising"), ([0], "greater than 0"), ([], "at least 1 item"),
     ({"patients": [3], "draw": 2}, "few_shot.draw: unknown key; did you mean 'draws'"),
     ({"patients": [3], "draws": 0}, "greater than or equal to 1")],
)  # fmt: skip
def test_wrong_keys(tmp_path: Path, few_shot: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate_study(values(tmp_path, few_shot=few_shot))


def test_a_study_on_pixels_alone_has_no_curve(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="few_shot: trains heads on pooled features, and every recipe here reads"):
        validate_study(values(tmp_path, recipes={"full": {"kind": "finetune"}}))


def test_a_run_without_curves_has_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no few_shot\.csv"):
        read_few_shot_scores(tmp_path)
