"""Two finished runs beside each other: has what differs an effect, and is the effect more than noise?"""

from collections.abc import Iterator
from dataclasses import replace

from vitreous.core.finding import Finding
from vitreous.diagnosis.differences import find_within_noise
from vitreous.diagnosis.sameness import find_option_without_effect
from vitreous.study.doctor_run import decided, observed_differences
from vitreous.study.report import leaderboard_from
from vitreous.study.rows import read_kept_rows, read_rows
from vitreous.study.run_directory import RunDirectory, different_settings, kept_study


def examine_two_runs(first: RunDirectory, second: RunDirectory) -> Iterator[Finding]:
    """Settings, then predictions row by row, then differences in one leaderboard.

    Raises:
        UserError: a run is not finished.
    """
    directories = {_label(first, second): first, _label(second, first): second}
    decisions = {}
    for label, directory in directories.items():
        config = kept_study(directory)
        kept, rows = read_kept_rows(directory), read_rows(directory, config)
        decisions[label] = [decided(directory, config, one, row) for one, row in zip(kept, rows, strict=True)]
    one, other = directories
    different = different_settings(kept_study(first), kept_study(second))
    yield from find_option_without_effect(decisions[one], decisions[other], different, (one, other))
    rows_of_both = [
        replace(row, recipe=f"{row.recipe} [{label}]")
        for label, directory in directories.items()
        for row in read_rows(directory, kept_study(directory))
    ]
    try:
        leaderboard = leaderboard_from(rows_of_both, kept_study(first))
    except ValueError as error:
        yield Finding(
            "not_comparable",
            "warning",
            "The runs are not about the same test patients, so that their numbers cannot be compared.",
            str(error),
            "Run both on one split; compare cohorts with vitreous transfer.",
        )
        return
    yield from find_within_noise(observed_differences(leaderboard), leaderboard.metric_title)


def _label(directory: RunDirectory, other: RunDirectory) -> str:
    """The folder's name, with its parent's where both have the same."""
    root = directory.root.resolve()
    return root.name if root.name != other.root.resolve().name else f"{root.parent.name}/{root.name}"
