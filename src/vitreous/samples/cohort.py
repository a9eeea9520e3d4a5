"""A checked cohort: one row a sample, the labels of the test split sealed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd

from vitreous.core.errors import SampleError
from vitreous.core.finding import Finding
from vitreous.core.label_sets import Task, memberships
from vitreous.samples.patients import patient_classes
from vitreous.samples.problems import Problems

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
SAMPLE_COLUMNS = ("sample_id", "patient_id", "relative", "item", "size", "etag", "split", "y", "weight")
EXCLUDED_COLUMNS = ("sample_id", "patient_id", "relative", "rule", "detail")
SEALED = -1


@dataclass(frozen=True)
class SealedLabels:
    """Labels by sample, kept out of sight: they show in no print and no comparison."""

    _by_sample: Mapping[str, int] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Cohort:
    """What a study reads, after every check of the table.

    Args:
        samples: one row a sample, sorted by (patient_id, sample_id): ``sample_id``; ``patient_id``; ``relative``, the
            path below the root (for arrays the array's name); ``item``, the index inside the file or -1 for the whole
            file; ``size`` in bytes (-1: not known); ``etag``; ``split``, empty until folds
            give one; ``y``, the class index or the number of the set of labels, -1 for test rows and where there is
            no split;
            ``weight``, 1 / (samples of its patient); then domain columns as strings, and laterality, device, region
            where known.
        excluded: rows left out, each with its rule and a detail.
        classes: names of the classes, or of the labels, in index order.
        findings: what was put right or deserves a look; they name no patient.
        domains: the domain columns of `samples`.
        patients_without_files: labelled patients of the table with no file, or none that the rules let in.
        task: whether a sample has one class, or any number of labels.
    """

    samples: pd.DataFrame
    excluded: pd.DataFrame
    classes: tuple[str, ...]
    findings: tuple[Finding, ...]
    domains: tuple[str, ...]
    patients_without_files: tuple[str, ...]
    sealed: SealedLabels
    task: Task = "multi_class"

    @cached_property
    def counts(self) -> pd.DataFrame:
        """Patients and volumes per split, class and every combination of the domains (test labels as counts only).

        A patient with volumes on two devices is counted for each: for totals use :meth:`count_by`.
        """
        return self.count_by(["split", "class", *self.domains])

    def count_by(self, columns: Sequence[str]) -> pd.DataFrame:
        """Patients and volumes for each combination of `columns`: ``split``, ``class`` and columns of `samples`.

        A sample with several labels is counted for each of them under ``class``, and one with none for none.
        """
        has_NC = memberships(self._all_labels().to_numpy(), len(self.classes), self.task)
        row, c = np.nonzero(has_NC) if "class" in columns else (np.arange(len(has_NC)), np.zeros(len(has_NC), np.int64))
        frame = self.samples.iloc[row].assign(**{"class": np.array(self.classes, dtype=object)[c]})
        frame["class"] = pd.Categorical(frame["class"], categories=self.classes, ordered=True)
        frame["split"] = pd.Categorical(frame["split"], categories=[*SPLITS, ""], ordered=True)
        groups = frame.groupby(list(columns), observed=True, sort=True)["patient_id"]
        table = groups.agg(patients="nunique", volumes="size").reset_index()
        return table.astype(dict.fromkeys(columns, "str"))

    def open_test_labels(self) -> dict[str, int]:
        """Sample → class index of the test split. Called by the ledger alone, which writes down each look."""
        test = self.samples.loc[self.samples["split"] == "test", "sample_id"]
        labels = self.sealed._by_sample
        return {sample_id: labels[sample_id] for sample_id in test}

    def resplit(self, split_of: Mapping[str, str]) -> "Cohort":
        """The same samples under another split by patient; labels of the new test split are sealed.

        Raises:
            SampleError: a patient has no split, a split is empty, or a class has no training patient.
        """
        split = self.samples["patient_id"].map(split_of)
        if split.isna().any():
            raise SampleError(f"{split.isna().sum()} samples belong to patients without a split; give one for each.")
        return seal(
            self.samples.assign(split=split.astype("str"), y=self._all_labels()),
            self.excluded,
            self.classes,
            self.findings,
            self.domains,
            self.patients_without_files,
            where="the new split",
            task=self.task,
        )

    def as_target(self, *, only_test: bool) -> "Cohort":
        """The same samples as a cohort that models are transferred to: all are tested, all labels sealed.

        Nobody trains here, so that no split may be empty and no class absent.

        Args:
            only_test: keep the cohort's own test split; the rest is excluded by the rule ``not in test``.
        """
        samples, excluded = self.samples, self.excluded
        if only_test:
            is_kept = samples["split"] == "test"
            left_out = samples.loc[~is_kept, ["sample_id", "patient_id", "relative"]]
            left_out = left_out.assign(rule="not in test", detail="only the cohort's test split is scored")
            excluded = pd.concat([excluded, left_out], ignore_index=True) if len(left_out) else excluded
            samples = samples.loc[is_kept].reset_index(drop=True)
        return replace(self, samples=samples.assign(split="test", y=SEALED), excluded=excluded)

    def patient_labels(self) -> pd.Series:
        """Class index by patient, the test split's included: for splitting only, which needs every label.

        Of a patient whose samples differ it is the highest class, or all labels of any sample; see
        :func:`~vitreous.samples.patients.patient_classes`.
        """
        return patient_classes(self.samples.assign(y=self._all_labels()), self.task).astype("int64").rename_axis(None)

    def mixed_labels(self) -> pd.Series:
        """Class index by sample, of the patients whose samples differ: for fingerprints only; empty where none do."""
        labels = self._all_labels().set_axis(self.samples["sample_id"])
        several = self.samples.assign(y=labels.to_numpy()).groupby("patient_id")["y"].transform("nunique") > 1
        return labels[several.to_numpy()]

    def _all_labels(self) -> pd.Series:
        labels = self.sealed._by_sample
        return self.samples["sample_id"].map(labels).astype("int64")


def seal(
    samples: pd.DataFrame,
    excluded: pd.DataFrame,
    classes: Sequence[str],
    findings: Sequence[Finding],
    domains: Sequence[str],
    patients_without_files: Sequence[str],
    *,
    where: str,
    task: Task = "multi_class",
) -> Cohort:
    """Check splits and classes, weigh the samples and seal the labels of the test split.

    Args:
        samples: `y` holds every label, `split` one of train, val, test.
        where: names the source in error texts.
    Raises:
        SampleError: a split is empty, or a class has no training patient.
    """
    if not len(samples) or (samples["split"] != "").any():  # folds give a split later, and check it then
        findings = [*findings, *_check_splits(samples, classes, where, task)]
    samples = samples.sort_values(["patient_id", "sample_id"], kind="stable", ignore_index=True)
    volumes = samples.groupby("patient_id")["sample_id"].transform("size")
    labels = dict(zip(samples["sample_id"], samples["y"].astype("int64").tolist(), strict=True))
    samples["weight"] = 1.0 / volumes
    is_seen = samples["split"].isin(["train", "val"])
    samples["y"] = np.where(is_seen, samples["y"], SEALED).astype("int64")
    rest = [column for column in samples.columns if column not in SAMPLE_COLUMNS]
    return Cohort(
        samples=samples[[*SAMPLE_COLUMNS, *rest]],
        excluded=excluded.reset_index(drop=True),
        classes=tuple(classes),
        findings=tuple({finding.code + finding.title: finding for finding in findings}.values()),
        domains=tuple(domains),
        patients_without_files=tuple(patients_without_files),
        sealed=SealedLabels(labels),
        task=task,
    )


def _check_splits(samples: pd.DataFrame, classes: Sequence[str], where: str, task: Task) -> list[Finding]:
    """Refuse what no study can use; tell what makes metrics undefined."""
    problems = Problems(where)
    findings: list[Finding] = []
    noun = "class" if task == "multi_class" else "label"
    for split in SPLITS:
        has_NC = memberships(samples.loc[samples["split"] == split, "y"].to_numpy(), len(classes), task)
        if not len(has_NC):
            problems.add(f"the split {split!r} has no patient with a file; every split needs some.")
            continue
        absent = [name for name, has_N in zip(classes, has_NC.T, strict=True) if not has_N.any()]
        if absent and split in ("train", "val"):
            why = "" if split == "train" else ", so nothing could be chosen on val"
            problems.add(
                f"no patient of the split {split!r} has the {noun} {', '.join(map(repr, absent))}{why}; remove it from "
                f"{'classes' if noun == 'class' else 'data.label'} or choose another split."
            )
        elif absent:
            findings.append(
                Finding(
                    "class_absent",
                    "warning",
                    f"The {split} split has no patient of {len(absent)} {noun}{'(es)' if noun == 'class' else '(s)'}.",
                    f"{', '.join(absent)}: {split} metrics of these {noun}{'es' if noun == 'class' else 's'} will be "
                    "undefined",
                    f"Choose another split if these {noun}{'es' if noun == 'class' else 's'} matter.",
                )
            )
        everywhere = [name for name, has_N in zip(classes, has_NC.T, strict=True) if has_N.all()]
        if task == "multi_label" and everywhere and split in ("train", "val"):
            problems.add(
                f"every sample of the split {split!r} has the label {', '.join(map(repr, everywhere))}, so there is "
                "nothing to tell apart; remove it from data.label or choose another split."
            )
    problems.check_none()
    return findings
