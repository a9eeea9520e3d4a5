"""The table stage of the leak gate: what can be said before a file is opened."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vitreous.core.leak import Leak
from vitreous.samples.cohort import Cohort
from vitreous.samples.leak_columns import find_ordered_ids, find_telling_columns
from vitreous.samples.leak_files import find_same_files
from vitreous.samples.leak_names import find_fellow_eyes, find_label_in_path, find_same_recordings

_KNOWN_COLUMNS = ("laterality", "device", "region")


def find_table_leaks(
    cohort: Cohort, y_N: npt.NDArray[np.int64], *, columns: Sequence[str] = (), names_are_labels: bool = False
) -> list[Leak]:
    """Everything that the table, the names and the listing give away; the loaders have refused contradictions before.

    Args:
        y_N: class index, or number of the set of labels, of each sample of train and val, -1 for others: labels of
            test decide nothing.
        columns: to be judged beside the domains.
        names_are_labels: the study reads labels from the paths, so that they are no secret.
    """
    samples = cohort.samples
    known = [column for column in _KNOWN_COLUMNS if column in samples.columns]
    columns = [column for column in dict.fromkeys([*cohort.domains, *columns, *known]) if column in samples.columns]
    leaks = [*find_fellow_eyes(samples), *find_same_recordings(samples), *find_same_files(samples, y_N)]
    match cohort.task:
        case "multi_class":
            leaks += find_telling_columns(samples, y_N, cohort.classes, columns)
            leaks += find_ordered_ids(samples, y_N, len(cohort.classes))
            leaks += [] if names_are_labels else find_label_in_path(samples, y_N, cohort.classes)
        case "multi_label":
            for position, label in enumerate(cohort.classes):
                has_N = np.where(y_N < 0, -1, (y_N >> position) & 1)
                leaks += find_telling_columns(samples, has_N, (f"no {label}", label), columns)
    return leaks
