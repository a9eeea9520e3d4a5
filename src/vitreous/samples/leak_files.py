"""One file under two samples, as the listing tells it: equal content tag and size, before a byte is read."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitreous.core.leak import Leak


def find_same_files(samples: pd.DataFrame, y_N: npt.NDArray[np.int64]) -> Iterator[Leak]:
    """Files of equal ETag and size: across splits (without splits: across patients), or under two labels.

    Stretches of one video may have labels of their own, but stand in one split. A local file has its inode and time of
    change for a tag, which hard links and links share.

    Args:
        y_N: class index of each sample; below 0 where it may not be seen.
    """
    # items of one file are others' (npz), unless they are stretches of one video
    is_own = (samples["item"] < 0) | ("start_s" in samples.columns)
    own = samples.assign(known=y_N)[is_own & (samples["etag"] != "") & (samples["size"] > 0)]
    groups = [group for _, group in own.groupby(["etag", "size"], sort=True) if len(group) > 1]
    has_splits = bool((samples["split"] != "").any())
    column = "split" if has_splits else "patient_id"
    apart = [group for group in groups if group[column].nunique() > 1]
    if apart:
        where = "in different splits" if has_splits else "under different patients, whom folds put apart"
        yield Leak(
            "same_file",
            True,
            f"{len(apart)} files stand {where}.",
            "Keep one row of each file.",
            tuple(_named(group) for group in apart),
            "equal content tag (ETag) and size",
        )
    labelled = [group[(group["known"] >= 0) & (group["item"] < 0)] for group in groups]
    conflicts = [group for group in labelled if group["known"].nunique() > 1]
    if conflicts:
        yield Leak(
            "conflicting_labels",
            True,
            f"{len(conflicts)} files have two labels.",
            "One of the two is wrong; ask who labelled them.",
            tuple(_named(group) for group in conflicts),
            "equal content tag (ETag) and size",
        )


def _named(group: pd.DataFrame) -> str:
    return " = ".join(
        f"{name}{f' ({split})' if split else ''}"
        for name, split in zip(group["sample_id"], group["split"], strict=True)
    )
