"""`vitreous search`. Oracles: a score in closed form; an undisturbed search; the best study, run."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from cohorts import study_values, write_cohort, write_study

from vitreous.config.compose import load_study, validate_study
from vitreous.config.search_space import Search, put_values
from vitreous.core.errors import ConfigError, RunError, SampleError, StudyMismatchError
from vitreous.storage.locks import exclusive
from vitreous.study.search import run_search
from vitreous.study.search_outputs import SearchResult, render_search
from vitreous.study.search_storage import TrialStore
from vitreous.study.search_trials import assign_val_folds, open_problem, run_trial

LR = {"low": 1e-6, "high": 1e-1, "log": True}
PROBE = {"kind": "linear_probe", "epochs": 6, "batch_size": "full"}
SPACE = {"lr": LR, "weight_decay": {"low": 0, "high": 0.1}, "dropout": {"choices": [0.0, 0.2, 0.4]}}
FINETUNE = {"kind": "finetune", "epochs": 4, "batch_size": 16, "warmup_epochs": 0}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohort"), participants=48)


def values(cohort: Path, runs: Path, search: Mapping[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    study = study_values(cohort, runs=str(runs), recipes={"probe": PROBE}, intervals={"resamples": 200})
    study["encoders"].pop("second")
    study["search"] = {"trials": 12, "space": SPACE, **(search or {})}
    return study | changes


def run(study: dict[str, Any], **options: Any) -> SearchResult:
    return run_search(validate_study(study, where="test"), **options)


@pytest.fixture(scope="module")
def finished(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    return run(values(cohort, tmp_path_factory.mktemp("whole")))


def trials_of(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "trials.csv")


# ---- what is found


def search_of(**settings: Any) -> Search:
    space = {"lr": LR, "dropout": {"low": 0, "high": 0.5}, "weight_decay": {"low": 1e-7, "high": 1e-1, "log": True}}
    study = study_values_without_files(search={"space": space, **settings})
    return validate_study(study, where="test").resolved_search()


def study_values_without_files(**changes: Any) -> dict[str, Any]:
    return {
        "name": "small",
        "data": {
            "kind": "csv",
            "table": "table.csv",
            "files": "images",
            "image": "image",
            "label": "grade",
            "classes": ["a", "b"],
            "split": "split",
        },
        "encoders": {"cnn": {"family": "timm", "random": {"model": "resnet10t"}}},
        "recipes": {"probe": {"kind": "linear_probe"}},
    } | changes


def fill(store: TrialStore, num_trials: int, score: Callable[[Mapping[str, Any]], float]) -> None:
    while not isinstance(claimed := store.claim(num_trials), str):
        store.complete(claimed, [score(claimed.values)])


def planted(tried: Mapping[str, Any]) -> float:
    """Highest, 1, at lr 1e-3, weight_decay 1e-4 and dropout 0.2."""
    far = [np.log10(tried["lr"]) + 3, np.log10(tried["weight_decay"]) + 4, 6 * (tried["dropout"] - 0.2)]
    return float(1 - np.square(far).sum() / 10)


def test_a_planted_optimum_is_found_beyond_the_random_start(tmp_path: Path) -> None:
    gains = []
    for seed in range(2):
        store = TrialStore(tmp_path / str(seed), search_of(seed=seed))
        fill(store, 30, planted)
        trials = store.finished()
        store.close()
        assert [trial.position for trial in trials] == list(range(30))
        scores = np.array([trial.score for trial in trials])
        assert scores[10:].mean() > scores[:10].mean() + 0.1
        assert scores.max() > 0.9
        gains.append(scores[10:].max() - scores[:10].max())
    assert np.mean(gains) > 0.05


def test_the_outputs_agree_with_the_trials(finished: SearchResult, cohort: Path) -> None:
    folder = finished.folder
    table = trials_of(folder)
    assert table["trial"].tolist() == list(range(12))
    assert (table["outcome"] == "complete").all()
    assert table["lr"].between(1e-6, 1e-1).all()
    assert set(table["dropout"]) <= {0.0, 0.2, 0.4}
    best = json.loads((folder / "best_params.json").read_text())
    row = table.loc[table["val_balanced_accuracy"].idxmax()]
    assert best["trial"] == row["trial"]
    assert best["val_balanced_accuracy"] == row["val_balanced_accuracy"]
    assert best["params"] == {key: row[key] for key in SPACE}
    assert best["num_trials"] == {"complete": 12, "pruned": 0, "failed": 0}
    assert "optimistic" in best["note"]
    assert table["val_balanced_accuracy"].min() < best["val_balanced_accuracy"], (
        "a learning rate of 1e-6 learns nothing"
    )
    assert sum(best["importance"].values()) == pytest.approx(1)
    assert max(best["importance"], key=best["importance"].__getitem__) == "lr"
    for figure in ("history.svg", "importance.svg"):
        assert (folder / figure).read_text().startswith("<svg")
    assert len(render_search(finished).columns) == 1 + 5
    assert not (folder / "training").exists()


def test_the_best_study_is_the_study_with_the_best_values(finished: SearchResult, cohort: Path, tmp_path: Path) -> None:
    from vitreous.study.run import run_study

    best = load_study(str(finished.folder / "best_study.yaml"), ["seeds=[0]", "floors=[majority]"])
    assert best.name == "small_best"
    assert best.search is None
    recipe = best.recipes["probe"]
    assert {key: getattr(recipe, key) for key in SPACE} == dict(finished.best.values)
    assert recipe == put_values(finished.search.recipe, finished.best.values)
    result = run_study(best)
    board = result.leaderboard.set_index("recipe")
    assert board.loc["probe", "val_balanced_accuracy"] == finished.best.score, "the trial is what the study trains"


def test_a_study_with_a_search_runs_with_its_own_values(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vitreous.study.run import run_study

    study = values(cohort, tmp_path, seeds=[0], floors=["majority"])
    first = run_study(validate_study(study, where="test"))
    assert "read by `vitreous search` alone" in " ".join(capsys.readouterr().err.split())
    assert first.leaderboard["recipe"].tolist() == ["probe", "majority"]
    again = run_study(validate_study({key: value for key, value in study.items() if key != "search"}, where="test"))
    assert again.leaderboard.equals(first.leaderboard), "a run directory is the same run with and without a search"


# ---- test is not read


def test_test_files_may_be_broken(cohort: Path, finished: SearchResult, tmp_path: Path) -> None:
    broken = write_cohort(tmp_path / "cohort", participants=48)
    table = pd.read_csv(broken / "participants.tsv", sep="\t", dtype=str)
    tested = table.loc[table["recommended_split"] == "test", "participant_id"]
    paths = [path for name in tested for path in broken.rglob(f"{name}_*.npy")]
    assert len(paths) > 10
    for path in paths[3:]:
        path.write_bytes(f"not an array: {path.name}".encode())
    for path in paths[:3]:
        path.unlink()
    store = tmp_path / "features"
    result = run(values(broken, tmp_path / "runs", store=str(store), data=None) | {"data": data_of(broken)})
    assert pd.read_csv(result.folder / "data_errors.csv").empty
    pd.testing.assert_frame_equal(trials_of(result.folder), trials_of(finished.folder))
    encoded = sum(len(pd.read_parquet(path)) for path in store.glob("??/*/shard-*.parquet"))
    assert encoded == len(list(broken.rglob("*.npy"))) - len(paths[3:])
    assert not list(tmp_path.rglob("ledger.jsonl")), "test labels were not opened"


def data_of(cohort: Path) -> dict[str, Any]:
    data: dict[str, Any] = study_values(cohort)["data"]
    return data


# ---- going on


def test_killed_and_resumed_it_is_the_undisturbed_search(cohort: Path, finished: SearchResult, tmp_path: Path) -> None:
    study = write_study(tmp_path / "study.yaml", values(cohort, tmp_path / "runs"))
    journal = tmp_path / "runs" / "small" / "search" / "trials.journal"
    process = subprocess.Popen(
        [sys.executable, "-m", "vitreous.cli", "search", str(study), "--trials", "500"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 120
    while not journal.exists() or journal.read_text().count('"outcome"') < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = journal.read_text().count('"outcome"')
    assert done < 12, "killed in the middle of the search"
    with journal.open("ab") as file:
        file.write(b'{"op_code": 4, "wor')  # a writer that died in the middle of a line
    resumed = run(values(cohort, tmp_path / "runs"))
    pd.testing.assert_frame_equal(trials_of(resumed.folder), trials_of(finished.folder))
    assert resumed.best == finished.best


def test_a_trial_of_a_dead_process_is_given_out_again(tmp_path: Path) -> None:
    search = search_of()
    whole = TrialStore(tmp_path / "whole", search)
    fill(whole, 14, planted)
    disturbed = TrialStore(tmp_path / "disturbed", search)
    fill(disturbed, 11, planted)
    lost = disturbed.claim(14)
    other = TrialStore(tmp_path / "disturbed", search)
    assert other.claim(12) == "wait", "its process lives"
    disturbed.close()
    again = other.claim(14)
    assert not isinstance(again, str)
    assert not isinstance(lost, str)
    assert (again.position, again.values) == (lost.position, lost.values)
    other.complete(again, [planted(again.values)])
    fill(other, 14, planted)
    assert other.finished() == whole.finished()
    assert other.claim(14) == "done"


def test_more_trials_prolong_a_search(cohort: Path, finished: SearchResult, tmp_path: Path) -> None:
    short = run(values(cohort, tmp_path, {"trials": 4}))
    assert [finding.code for finding in short.findings if finding.code == "few_trials"]
    assert "undefined: 4 completed trials" in (short.folder / "importance.svg").read_text()
    longer = run(values(cohort, tmp_path))
    pd.testing.assert_frame_equal(trials_of(longer.folder), trials_of(finished.folder))


def test_two_workers_share_one_storage_and_sigterm_keeps_what_is_finished(
    cohort: Path, finished: SearchResult, tmp_path: Path
) -> None:
    study = write_study(tmp_path / "study.yaml", values(cohort, tmp_path / "runs"))
    folder = tmp_path / "runs" / "small" / "search"
    journal = folder / "trials.journal"
    process = subprocess.Popen(
        [sys.executable, "-m", "vitreous.cli", "search", str(study), "--trials", "5000", "--workers", "2"],
        env=os.environ | {"OMP_WAIT_POLICY": "passive"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 200

    def wait(reached: Callable[[], bool]) -> None:
        while not reached():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def outcomes_by_owner() -> dict[str, int]:
        lines = [json.loads(line) for line in journal.read_text().splitlines(keepends=True) if line.endswith("\n")]
        said = [line["user_attr"] | {"trial": line["trial_id"]} for line in lines if "user_attr" in line]
        ended = {one["trial"] for one in said if "outcome" in one}
        owners = [one["owner"] for one in said if "owner" in one and one["trial"] in ended]
        return {owner: owners.count(owner) for owner in owners}

    wait(lambda: (folder / "worker0.log").exists())
    with exclusive(folder / ".claim.lock"):  # nobody begins before both are there
        wait(lambda: len(list((folder / ".workers").iterdir())) == 3)
    wait(lambda: len(outcomes_by_owner()) == 2)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=100)
    assert process.returncode == 130, told.decode()
    assert b"the same command continues" in told
    done = sum(outcomes_by_owner().values())
    time.sleep(0.2)
    assert sum(outcomes_by_owner().values()) == done, "no worker is left"
    result = run(values(cohort, tmp_path / "runs", {"trials": done + 2}))
    assert trials_of(result.folder)["trial"].tolist() == list(range(done + 2))


def test_another_search_in_the_folder_is_refused(cohort: Path, tmp_path: Path) -> None:
    run(values(cohort, tmp_path, {"trials": 2}))
    with pytest.raises(StudyMismatchError, match=r"search\.space\.lr\.high \(0\.1 then, 0\.01 now\)"):
        run(values(cohort, tmp_path, {"trials": 2, "space": {**SPACE, "lr": {**LR, "high": 1e-2}}}))
    with pytest.raises(StudyMismatchError, match=r"metric \('balanced_accuracy' then, 'accuracy' now\)"):
        run(values(cohort, tmp_path, {"trials": 2}, metric="accuracy"))


# ---- folds, seeds, other recipes


def test_cross_validation_scores_every_patient_of_train_and_val(cohort: Path, tmp_path: Path) -> None:
    study = values(cohort, tmp_path, {"trials": 3, "cross_validate": 3, "seeds_per_trial": 2})
    result = run(study)
    assert all(len(trial.scores) == 6 for trial in result.trials)
    assert result.best.score == pytest.approx(np.mean(result.best.scores))
    table = trials_of(result.folder)
    assert table["sd"][0] == pytest.approx(np.std(result.trials[0].scores, ddof=1))


def test_folds_keep_patients_together_and_the_shares_of_classes() -> None:
    samples = pd.DataFrame({"patient_id": [f"p{i // 2}" for i in range(60)], "y": [(i // 2) % 3 for i in range(60)]})
    fold_of = assign_val_folds(samples, ["a", "b", "c"], 5, seed=0)
    assert len(fold_of) == 30
    counts = pd.crosstab(pd.Series(fold_of), samples.drop_duplicates("patient_id").set_index("patient_id")["y"])
    assert (counts == 2).all().all()
    assert fold_of != assign_val_folds(samples, ["a", "b", "c"], 5, seed=1)
    with pytest.raises(SampleError, match=r"11 folds need as many patients of every class.*'a', 'b', 'c'"):
        assign_val_folds(samples, ["a", "b", "c"], 11, seed=0)


@pytest.mark.parametrize(
    ("recipe", "space"),
    [
        ({"kind": "logistic_regression"}, None),
        ({"kind": "knn"}, {"k": {"low": 1, "high": 20}}),
        ({"kind": "mlp_probe", "epochs": 3}, {"hidden": {"choices": [[8], [16, 8]]}, "lr": LR}),
    ],
)
def test_other_probes(cohort: Path, tmp_path: Path, recipe: dict[str, Any], space: dict[str, Any] | None) -> None:
    result = run(values(cohort, tmp_path, {"trials": 3, "space": space}, recipes={"other": recipe}))
    assert result.best.score is not None
    assert result.best.score > 0.3
    best = load_study(str(result.folder / "best_study.yaml"))
    assert best.recipes["other"] == put_values(result.search.recipe, result.best.values)


def test_trials_of_a_recipe_on_pixels_are_pruned(cohort: Path, tmp_path: Path) -> None:
    space = {"lr_encoder": {"choices": [1e-9, 1e-3, 2e-3]}, "lr_head": {"choices": [1e-9, 1e-2, 2e-2]}}
    study = values(cohort, tmp_path, {"trials": 12, "space": space, "prune": True}, recipes={"full": FINETUNE})
    result = run(study)
    table = trials_of(result.folder)
    pruned = table[table["outcome"] == "pruned"]
    assert len(pruned)
    assert (pruned["epochs"] < 4).all()
    assert pruned["val_balanced_accuracy"].isna().all()
    assert (table.loc[table["outcome"] == "complete", "epochs"] == 4).all()
    assert table["outcome"].iloc[:5].eq("complete").all(), "nothing to compare with before"
    curves = pd.read_csv(result.folder / "curves.csv").groupby("trial")["val_score"]
    assert curves.max()[result.best.position] == result.best.score
    assert "pruned after epoch" in (result.folder / "curves.svg").read_text()
    assert not (result.folder / "training").exists()


class CutOffError(Exception):
    """Ends a training from outside."""


def test_a_training_that_was_cut_off_goes_on_where_it_stood(cohort: Path, tmp_path: Path) -> None:
    search = {"trials": 2, "space": {"lr_head": {"low": 1e-3, "high": 1e-2}, "augment.flip": {"low": 0, "high": 1}}}
    recipes = {"full": {**FINETUNE, "monitor": "auroc"}}
    whole = run(values(cohort, tmp_path / "whole", search, recipes=recipes))
    study = validate_study(values(cohort, tmp_path / "cut", search, recipes=recipes), where="test")
    folder = tmp_path / "cut" / "small" / "search"
    problem = open_problem(study, study.resolved_search(), folder)
    store = TrialStore(folder, problem.search)
    claimed = store.claim(2)
    assert not isinstance(claimed, str)
    seen = []

    def cut_off(epoch: int, score: float, num_epochs: int) -> None:
        seen.append((epoch, score))
        if epoch == 2:
            raise CutOffError

    with pytest.raises(CutOffError):
        run_trial(problem, claimed.values, claimed.position, cut_off)
    store.close()
    [state] = (folder / "training").iterdir()
    (folder / "training" / "0-of_other_values").mkdir()
    resumed = run_search(study)
    assert resumed.trials == whole.trials
    assert dict(seen) == {epoch: whole.trials[0].curve[epoch] for epoch in (1, 2)}
    assert not state.exists()
    assert (resumed.best.score or 0) <= 1, "balanced accuracy, though training stopped on auroc"
    assert resumed.best.score not in resumed.best.curve.values() or resumed.best.score == 1


def test_an_early_trial_that_diverges_is_told(cohort: Path, tmp_path: Path) -> None:
    space = {"lr": {"choices": [1e-2, 1e25]}}
    result = run(values(cohort, tmp_path, {"trials": 8, "space": space}))
    table = trials_of(result.folder)
    assert set(table.loc[table["outcome"] == "failed", "lr"]) == {1e25}
    assert table.loc[table["outcome"] == "failed", "reason"].str.contains("diverged").all()
    assert result.best.values["lr"] == 1e-2
    assert "failed_trials" in [finding.code for finding in result.findings]
    with pytest.raises(RunError, match=r"none of 3 trials has a score: 2× all 1 members of the grid diverged"):
        run(values(cohort, tmp_path, {"trials": 3, "space": {"lr": {"choices": [1e25, 1e26]}}}, name="other"))


def test_findings_of_edges_and_of_a_collapse(tmp_path: Path, cohort: Path) -> None:
    space = {"lr": {"low": 1e-12, "high": 1e-10, "log": True}}
    collapsed = run(values(cohort, tmp_path, {"trials": 11, "space": space}, recipes={"probe": {**PROBE, "epochs": 1}}))
    codes = [finding.code for finding in collapsed.findings]
    assert "collapsed" in codes
    assert "few_trials" not in codes
    assert "same score" in (collapsed.folder / "importance.svg").read_text()
    space = {"batch_size": {"choices": [8, 16, 32]}}
    edge = run(
        values(
            cohort, tmp_path, {"trials": 6, "space": space}, name="edge", recipes={"probe": {"kind": "linear_probe"}}
        )
    )
    found = [finding for finding in edge.findings if finding.code == "edge_of_range"]
    assert bool(found) == (edge.best.values["batch_size"] in (8, 32))


# ---- what is refused


BAD_SEARCHES: list[tuple[dict[str, Any], str]] = [
    ({"encoder": "none"}, r"search\.encoder: 'none' is none of the study's first"),
    ({"recipe": "none"}, r"search\.recipe: 'none' is none of the study's probe"),
    ({"space": {"rank": {"choices": [4, 8]}}}, r"space\.rank: recipes\.probe \(linear_probe\) has no such key; known"),
    ({"space": {"weight_decoy": {"low": 0, "high": 1}}}, r"did you mean 'weight_decay'"),
    ({"space": {"lr": {"low": 0, "high": 1, "log": True}}}, r"log: true needs low above 0"),
    ({"space": {"lr": {"low": 1, "high": 0.1}}}, r"low \(1\) must be below high"),
    ({"space": {"lr": {"low": 1}}}, r"needs choices: \[a, b, …\], or low: a and high: b"),
    ({"space": {"lr": {"low": 1, "high": 2, "choices": [1, 2]}}}, r"either choices, or low and high"),
    ({"space": {"lr": {"choices": [1, 1]}}}, r"lists a value twice"),
    ({"space": {"lr": {"choices": [1]}}}, r"at least 2 items"),
    ({"space": {"lr": {"low": -1, "high": 1}}}, r"lr=-1: input should be greater than 0"),
    ({"space": {"dropout": {"low": 0, "high": 1}}}, r"dropout=1: input should be less than 1"),
    ({"space": {"patience": {"low": 1.5, "high": 3}}}, r"takes whole numbers; got low 1\.5"),
    ({"space": {"class_weights": {"low": 0, "high": 1}}}, r"class_weights=0: "),
    ({"space": {"class_weights": {"choices": ["none", [1, 2]]}}}, r"2 weights for 3 classes"),
    ({"space": {"epochs": {"low": 1, "high": 5}}}, r"space\.epochs: stands in recipes\.probe with a value of its own"),
    ({"space": {"warmup_epochs": {"low": 0, "high": 9}}}, r"warmup_epochs \(9\) must be fewer than epochs \(6\)"),
    ({"space": {"grid": {"choices": [1, 2]}}}, r"cannot be searched as a whole"),
    ({"space": {}}, r"at least 1 item"),
    ({"trials": 0}, r"search\.trials"),
    ({"prune": True}, r"search\.prune has no effect"),
    ({"seeds_per_trial": 3}, r"the study has 2 seeds; got 3"),
    ({"cross_validate": 1}, r"search\.cross_validate"),
    ({"trails": 3}, r"did you mean 'trials'"),
]


@pytest.mark.parametrize(("search", "message"), BAD_SEARCHES)
def test_bad_searches_are_refused(cohort: Path, tmp_path: Path, search: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate_study(values(cohort, tmp_path, search), where="test")


def test_all_problems_of_a_search_are_told_at_once(cohort: Path, tmp_path: Path) -> None:
    space = {"rank": {"choices": [1, 2]}, "dropout": {"low": 0, "high": 2}, "epochs": {"low": 1, "high": 2}}
    with pytest.raises(ConfigError) as told:
        validate_study(values(cohort, tmp_path, {"space": space, "encoder": "none"}), where="test")
    for part in ("search.encoder", "space.rank", "dropout=2", "space.epochs"):
        assert part in str(told.value)


def test_what_the_rest_of_the_study_makes_impossible(cohort: Path, tmp_path: Path) -> None:
    def refused(message: str, study: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=message):
            run(study)

    two = {"probe": PROBE, "other": PROBE}
    refused(r"search\.recipe: required, since the study has probe, other", values(cohort, tmp_path, recipes=two))
    grid = {"probe": {"kind": "linear_probe", "grid": {"lr": [1e-3]}}}
    refused(r"recipes\.probe\.grid \(lr\) and search both choose", values(cohort, tmp_path, recipes=grid))
    refused(r"with folds every patient is tested", values(cohort, tmp_path, folds={"k": 3}))
    knn = {"near": {"kind": "knn"}}
    space = {"space": {"k": {"low": 1, "high": 500}}}
    refused(r"training samples have no 500 neighbours", values(cohort, tmp_path, space, recipes=knn))
    refused(r"nothing about knn is random", values(cohort, tmp_path, space | {"seeds_per_trial": 2}, recipes=knn))
    lora = {"lora": {"kind": "lora"}}
    space = {"space": {"targets": {"choices": [["qkv"], ["query"]]}}}
    refused(r"targets: query matches no linear", values(cohort, tmp_path, space, recipes=lora))
    space = {"space": {"augment.color": {"low": 0, "high": 0.5}}}
    refused(r"augment\.color is for images", values(cohort, tmp_path, space, recipes=lora))
    space = {"space": {"head": {"choices": ["linear", "mlp"]}, "head_width": {"choices": [16, 32]}}}
    refused(r"head_width has no effect with head: linear", values(cohort, tmp_path, space, recipes=lora))


def test_defaults_leave_out_what_the_recipe_fixes(cohort: Path, tmp_path: Path) -> None:
    search = validate_study(values(cohort, tmp_path, {"space": None}), where="test").resolved_search()
    assert list(search.space) == ["lr", "weight_decay", "dropout", "class_weights"]
    study = values(cohort, tmp_path, recipes={"lora": {"kind": "lora", "augment": {"rotate": 10}}})
    study.pop("search")
    search = validate_study(study, where="test").resolved_search()
    assert "augment.rotate" not in search.space
    assert {"rank", "alpha", "lr_encoder", "augment.crop", "batch_size", "head"} <= set(search.space)


def test_nested_keys_and_lists() -> None:
    study = study_values_without_files(recipes={"lora": {"kind": "lora", "loss": {"kind": "focal"}}})
    recipe = validate_study(study, where="test").recipes["lora"]
    made = put_values(recipe, {"loss.gamma": 3.0, "augment.color": 0.2, "targets": "proj", "rank": 4})
    assert yaml.safe_dump(made.model_dump(mode="json", exclude_unset=True)) == yaml.safe_dump(
        {
            "kind": "lora",
            "loss": {"kind": "focal", "gamma": 3.0},
            "augment": {"color": 0.2},
            "targets": ["proj"],
            "rank": 4,
        }
    )
    assert made.model_copy(update={}) == type(recipe).model_validate(made.model_dump(exclude_unset=True))
