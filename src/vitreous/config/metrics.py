"""Names of the metrics that a study may choose by."""

from typing import Literal

from vitreous.core.label_sets import Task

MetricName = Literal["balanced_accuracy", "accuracy", "macro_f1", "auroc", "map", "exact_match"]
METRICS_OF: dict[Task, tuple[MetricName, ...]] = {  # the first is the default
    "multi_class": ("balanced_accuracy", "accuracy", "macro_f1", "auroc"),
    "multi_label": ("map", "auroc", "balanced_accuracy", "macro_f1", "exact_match"),
}
