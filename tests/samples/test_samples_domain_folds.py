"""Rounds by domain: who trains, chooses and is tested. Oracles: counts, and the sets the definitions name."""

from collections import Counter

import pandas as pd
import pytest

from vitreous.core.errors import SampleError
from vitreous.samples.cohort import EXCLUDED_COLUMNS, Cohort, seal
from vitreous.samples.folds import each_domain_cohorts, fold_cohorts, leave_one_out_cohorts, patient_domains

CLASSES = ("healthy", "ill")


def made(patients_each: int = 20, domains: tuple[str, ...] = ("A", "B", "C"), **changes: object) -> Cohort:
    """Two samples a patient; classes alternate in every domain."""
    rows = [
        {
            "sample_id": f"{domain}{n}/{k}", "patient_id": f"{domain}{n}", "relative": f"{domain}{n}/{k}", "item": -1,
            "size": 1, "etag": "", "split": "", "y": n % 2, "weight": 1.0, "site": domain,
        }
        for domain in domains for n in range(patients_each) for k in range(2)
    ]  # fmt: skip
    samples = pd.DataFrame(rows)
    for column, change in changes.items():
        samples[column] = change(samples)  # type: ignore[operator]
    excluded = pd.DataFrame(columns=list(EXCLUDED_COLUMNS), dtype="str")
    return seal(samples, excluded, CLASSES, (), ("site",), (), where="made")


def splits(cohort: Cohort) -> dict[str, str]:
    return dict(zip(cohort.samples["patient_id"], cohort.samples["split"]))


def test_each_domain_is_left_out_once_and_val_keeps_the_classes() -> None:
    rounds = leave_one_out_cohorts(made(), "site", val_fraction=0.2, seed=0)
    assert list(rounds) == ["A", "B", "C"]
    for domain, cohort in rounds.items():
        split_of = splits(cohort)
        assert {p for p, split in split_of.items() if split == "test"} == {f"{domain}{n}" for n in range(20)}
        val = [p for p, split in split_of.items() if split == "val"]
        assert Counter(int(p[1:]) % 2 for p in val) == {0: 4, 1: 4}, "a fifth of 20 patients of each class"
        assert (cohort.samples.loc[cohort.samples["split"] == "test", "y"] == -1).all(), "test labels are sealed"
        assert (cohort.samples.loc[cohort.samples["split"] != "test", "y"] >= 0).all()


def test_the_draw_depends_on_the_seed_alone() -> None:
    first = leave_one_out_cohorts(made(), "site", val_fraction=0.2, seed=0)["A"]
    again = leave_one_out_cohorts(made(), "site", val_fraction=0.2, seed=0)["A"]
    other = leave_one_out_cohorts(made(), "site", val_fraction=0.2, seed=1)["A"]
    assert splits(first) == splits(again) != splits(other)


def test_each_domain_trains_alone_and_all_are_tested_on_the_same_patients() -> None:
    rounds = each_domain_cohorts(made(), "site", val_fraction=0.2, test_fraction=0.3, seed=0)
    tested = [{p for p, split in splits(one).items() if split == "test"} for one in rounds.values()]
    assert tested[0] == tested[1] == tested[2]
    assert Counter(p[0] for p in tested[0]) == {"A": 6, "B": 6, "C": 6}
    for domain, cohort in rounds.items():
        split_of = splits(cohort)
        assert {p[0] for p, split in split_of.items() if split in ("train", "val")} == {domain}
        assert Counter(split for p, split in split_of.items() if p[0] == domain) == {"train": 10, "val": 4, "test": 6}
        assert {split for p, split in split_of.items() if p[0] != domain} == {"", "test"}
        unused = cohort.samples["split"] == ""
        assert (cohort.samples.loc[unused, "y"] == -1).all(), "who takes no part shows no label"


def test_domains_that_cannot_be_rounds_are_refused() -> None:
    two_sites = made(site=lambda s: s["site"].where(s["sample_id"] != "A3/1", "B"))
    with pytest.raises(SampleError, match="1 patients are in several domains: 'A3'"):
        leave_one_out_cohorts(two_sites, "site", val_fraction=0.2, seed=0)
    with pytest.raises(SampleError, match="2 patients have no value: 'A0', 'A1'"):
        patient_domains(made(site=lambda s: s["site"].where(~s["patient_id"].isin(["A0", "A1"]), "unknown")), "site")
    with pytest.raises(SampleError, match="all patients have the same value 'A'"):
        patient_domains(made(domains=("A",)), "site")
    with pytest.raises(SampleError, match="no domain 'camera'"):
        patient_domains(made(), "camera")


def test_too_few_patients_of_a_class_are_listed() -> None:
    rare = made(domains=("A", "B"), y=lambda s: ((s["site"] == "A") & (s["patient_id"] != "A0")).astype(int))
    with pytest.raises(SampleError) as refused:
        leave_one_out_cohorts(rare, "site", val_fraction=0.2, seed=0)
    assert "without 'A', class 'ill' has 0 patients" in str(refused.value)
    assert "without 'B', class 'healthy' has 1 patients" in str(refused.value)
    with pytest.raises(
        SampleError, match="'A' has 1 patients of the class 'healthy'; train, val and test need one each"
    ):
        each_domain_cohorts(rare, "site", val_fraction=0.2, test_fraction=0.3, seed=0)


def test_three_patients_of_a_class_serve_one_split_each() -> None:
    small = made(patients_each=6, domains=("A", "B"))
    rounds = each_domain_cohorts(small, "site", val_fraction=0.45, test_fraction=0.5, seed=0)
    own = Counter(split for patient, split in splits(rounds["A"]).items() if patient[0] == "A")
    assert own == {"train": 2, "val": 2, "test": 2}


def test_a_class_without_patients_is_refused_when_folds_are_drawn() -> None:
    absent = made(y=lambda s: 0)
    with pytest.raises(SampleError, match="no patient with a file has the class 'ill'"):
        fold_cohorts(absent, num_folds=3, seed=0)
    with pytest.raises(SampleError, match="no patient with a file has the class 'ill'"):
        leave_one_out_cohorts(absent, "site", val_fraction=0.2, seed=0)


def test_a_target_is_all_test_and_may_lack_a_class() -> None:
    target = made(y=lambda s: 0).as_target(only_test=False)
    assert set(target.samples["split"]) == {"test"}
    assert (target.samples["y"] == -1).all()
    assert set(target.open_test_labels().values()) == {0}
    split = leave_one_out_cohorts(made(), "site", val_fraction=0.2, seed=0)["B"].as_target(only_test=True)
    assert set(split.samples["patient_id"].str[0]) == {"B"}
    assert split.excluded["rule"].value_counts().to_dict() == {"not in test": 80}
