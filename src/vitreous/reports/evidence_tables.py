"""Evidence of rows as tables: calibration, operating points, subgroups, and the points of every curve."""

from collections.abc import Iterator, Sequence

from vitreous.core.undefined import Undefined
from vitreous.evidence.curves import Band
from vitreous.evidence.operating_points import OperatingPoint
from vitreous.evidence.subgroups import MIN_CLASS_PATIENTS, MIN_GROUP_PATIENTS
from vitreous.reports.leaderboard import Leaderboard
from vitreous.reports.result_tables import Column, ResultCell, ResultTable
from vitreous.reports.row_evidence import FIXED, NUM_BINS, OperatingSetting, RowEvidence

_ROW = (Column("encoder", "encoder"), Column("recipe", "recipe"))
_RULES = {
    "youden": "sensitivity + specificity",
    "at_specificity": f"{FIXED:.0%} specificity",
    "at_sensitivity": f"{FIXED:.0%} sensitivity",
}


def evidence_tables(evidence: Sequence[RowEvidence], leaderboard: Leaderboard) -> tuple[ResultTable, ...]:
    """Every table of the evidence, in the order of the report; the leaderboard itself first."""
    return (
        leaderboard_table(leaderboard),
        discrimination_table(evidence, leaderboard),
        _curve_table("roc", "false_positive_rate", "sensitivity", evidence, leaderboard),
        _curve_table("precision_recall", "recall", "precision", evidence, leaderboard),
        calibration_table(evidence, leaderboard),
        _reliability_table(evidence, leaderboard),
        operating_table(evidence, leaderboard),
        _decision_table(evidence, leaderboard),
        abstention_table(evidence, leaderboard),
        subgroup_table(evidence, leaderboard),
    )


def leaderboard_table(leaderboard: Leaderboard) -> ResultTable:
    """The main columns; ``leaderboard.csv`` has all."""
    metric, scores = leaderboard.metric, leaderboard.scores
    others = [name for name in scores.beside if name != metric]
    columns = (
        *_ROW, Column("letters", ""), Column(f"val_{metric}", f"val {leaderboard.metric_title}", "number"),
        Column(f"test_{metric}", f"test {leaderboard.metric_title}", "interval"),
        *(Column(f"test_{name}", scores.metrics[name].title, "interval") for name in others),
    )  # fmt: skip
    rows = tuple(
        (row.encoder, row.recipe, row.letters, row.val, row.test[metric], *(row.test[name] for name in others))
        for row in leaderboard.rows
    )
    caption = (
        f"Means over seeds on {leaderboard.test_size}, with {_percent(leaderboard)} intervals. Rows that share a "
        "letter cannot be told apart."
    )
    return ResultTable("leaderboard", caption, columns, rows)


def discrimination_table(evidence: Sequence[RowEvidence], leaderboard: Leaderboard) -> ResultTable:
    """AUROC and average precision of each class or label."""
    noun = leaderboard.scores.noun
    columns = (
        *_ROW, Column(noun, noun), Column("share", "share of test", "number"), Column("auroc", "AUROC", "interval"),
        Column("average_precision", "average precision", "interval"),
    )  # fmt: skip
    rows = tuple(
        (one.encoder, one.recipe, target.positive, target.share,
         leaderboard.row(one.name).test[f"auroc_{target.positive}"], target.average_precision)
        for one in evidence for target in one.targets
    )  # fmt: skip
    caption = (
        f"Discrimination of each {noun} on {leaderboard.test_size}. A useless score has an AUROC of 0.5 and, as "
        "average precision, the share."
    )
    return ResultTable("discrimination", caption, columns, rows)


def calibration_table(evidence: Sequence[RowEvidence], leaderboard: Leaderboard) -> ResultTable:
    """ECE, Brier score and NLL before and after a temperature fitted on val."""
    columns = (
        *_ROW, Column("of", "probability of"), Column("ece", "ECE", "interval"),
        Column("ece_by_chance", "ECE by chance", "number"), Column("brier", "Brier score", "interval"),
        Column("nll", "NLL", "interval"), Column("temperature", "temperature", "number"),
        Column("ece_scaled", "ECE, scaled", "interval"), Column("brier_scaled", "Brier score, scaled", "interval"),
        Column("nll_scaled", "NLL, scaled", "interval"),
    )  # fmt: skip
    rows = tuple(
        (
            one.encoder, one.recipe, part.of, part.measures["ece"], part.chance_error, part.measures["brier"],
            part.measures["nll"], part.temperature,
            *(part.scaled if isinstance(part.scaled, Undefined) else part.scaled[name]
              for name in ("ece", "brier", "nll")),
        )
        for one in evidence for part in one.calibration
    )  # fmt: skip
    caption = (
        f"Calibration on {leaderboard.test_size}: expected calibration error over {NUM_BINS} bins of equal mass, the "
        "error that a perfectly calibrated model would show by chance, Brier score and negative log-likelihood; then "
        "with logits divided by the temperature fitted on val (mean over seeds)."
    )
    return ResultTable("calibration", caption, columns, rows)


def operating_table(evidence: Sequence[RowEvidence], leaderboard: Leaderboard) -> ResultTable:
    """Thresholds frozen on val, and what they give on test."""
    noun = leaderboard.scores.noun
    columns = (
        *_ROW, Column(noun, noun), Column("rule", "threshold chosen for"), Column("target", "asked", "number"),
        Column("threshold", "threshold", "number"), Column("val_sensitivity", "val sensitivity", "number"),
        Column("val_specificity", "val specificity", "number"), Column("sensitivity", "sensitivity", "interval"),
        Column("specificity", "specificity", "interval"), Column("ppv", "PPV", "interval"),
        Column("npv", "NPV", "interval"), Column("called", "called positive", "interval"),
    )  # fmt: skip
    rows = tuple(
        (one.encoder, one.recipe, target.positive, _RULES[setting.rule], setting.target, *_point_cells(setting))
        for one in evidence for target in one.targets for setting in target.operating
    )  # fmt: skip
    caption = (
        f"Operating points: each seed's threshold is chosen on val and frozen, then applied to {leaderboard.test_size} "
        "(means over seeds). Predictive values are at the prevalence of this cohort."
    )
    return ResultTable("operating_points", caption, columns, rows)


def _point_cells(setting: OperatingSetting) -> tuple[ResultCell, ...]:
    point = setting.point
    if isinstance(point, Undefined):
        return (point,) * 8
    return (
        *(_mean_of(point, name) for name in ("value", "val_sensitivity", "val_specificity")),
        point.sensitivity, point.specificity, point.ppv, point.npv, point.called,
    )  # fmt: skip


def _mean_of(point: OperatingPoint, name: str) -> float:
    values: list[float] = [getattr(threshold, name) for threshold in point.thresholds]
    return sum(values) / len(values)


def abstention_table(evidence: Sequence[RowEvidence], leaderboard: Leaderboard) -> ResultTable:
    """The metric on the rows that a model is surest of."""
    columns = (
        *_ROW, Column("of", "decision on"), Column("metric", "metric"), Column("asked", "share asked for", "number"),
        Column("coverage", "share answered", "number"), Column("value", "value", "interval"),
    )  # fmt: skip
    rows = tuple(
        (one.encoder, one.recipe, part.of, part.metric, point.asked, point.coverage, point.metric)
        for one in evidence for part in one.abstention for point in part.points
    )  # fmt: skip
    caption = f"Abstention: the metric on the share of {leaderboard.test_size} that a model is surest of."
    return ResultTable("abstention", caption, columns, rows, in_latex=False)


def subgroup_table(evidence: Sequence[RowEvidence], leaderboard: Leaderboard) -> ResultTable:
    """Metrics by the groups of each domain column, small cells left out."""
    metrics = leaderboard.scores.metrics
    names = _subgroup_metrics(evidence)
    columns = (
        *_ROW, Column("column", "column"), Column("group", "group"), Column("n_patients", "patients", "count"),
        *(Column(name, metrics[name].title, "interval") for name in names),
    )  # fmt: skip
    rows: list[tuple[ResultCell, ...]] = []
    for one in evidence:
        for column in one.subgroups:
            if isinstance(column.groups, Undefined):
                rows.append((one.encoder, one.recipe, column.column, "", *[column.groups] * (len(names) + 1)))
                continue
            rows += [
                (one.encoder, one.recipe, column.column, group.name, group.num_patients,
                 *(group.metrics[name] for name in names))
                for group in column.groups
            ]  # fmt: skip
    caption = (
        f"Subgroups of {leaderboard.test_size}: groups are described, not compared. Below {MIN_GROUP_PATIENTS} "
        f"patients a group shows nothing, and a mean over classes needs {MIN_CLASS_PATIENTS} patients of each."
    )
    return ResultTable("subgroups", caption, columns, tuple(rows))


def _subgroup_metrics(evidence: Sequence[RowEvidence]) -> list[str]:
    for one in evidence:
        for column in one.subgroups:
            if not isinstance(column.groups, Undefined) and column.groups:
                return list(column.groups[0].metrics)
    return []


def _curve_table(kind: str, x: str, y: str, evidence: Sequence[RowEvidence], leaderboard: Leaderboard) -> ResultTable:
    noun = leaderboard.scores.noun
    columns = (
        *_ROW, Column(noun, noun), Column(x, x.replace("_", " "), "number"),
        Column(y, y.replace("_", " "), "interval"),
    )  # fmt: skip
    rows = tuple(
        (one.encoder, one.recipe, target.positive, *point)
        for one in evidence
        for target in one.targets
        for point in _band_points(getattr(target, kind))
    )
    caption = f"Mean curve over seeds with pointwise bounds, on {leaderboard.test_size}."
    return ResultTable(kind, caption, columns, rows, in_latex=False)


def _band_points(band: Band | Undefined | None) -> Iterator[tuple[ResultCell, ResultCell]]:
    if isinstance(band, Undefined):
        yield None, band
    elif band is not None:
        yield from zip(band.x_T.tolist(), band.bounds, strict=True)


def _reliability_table(evidence: Sequence[RowEvidence], leaderboard: Leaderboard) -> ResultTable:
    columns = (
        *_ROW, Column("of", "probability of"), Column("low", "from", "number"), Column("high", "to", "number"),
        Column("n_patients", "patients", "count"), Column("mean_probability", "mean probability", "number"),
        Column("observed", "observed", "interval"),
    )  # fmt: skip
    rows: list[tuple[ResultCell, ...]] = []
    for one in evidence:
        for part in one.calibration:
            if isinstance(part.bins, Undefined):
                rows.append((one.encoder, one.recipe, part.of, *[part.bins] * 5))
                continue
            rows += [
                (one.encoder, one.recipe, part.of, each.low, each.high, each.num_patients, each.mean_probability,
                 each.observed)
                for each in part.bins
            ]  # fmt: skip
    caption = f"Reliability: {NUM_BINS} bins of equal mass on {leaderboard.test_size}, seeds pooled."
    return ResultTable("reliability", caption, columns, tuple(rows), in_latex=False)


def _decision_table(evidence: Sequence[RowEvidence], leaderboard: Leaderboard) -> ResultTable:
    noun = leaderboard.scores.noun
    columns = (
        *_ROW, Column(noun, noun), Column("threshold", "threshold probability", "number"),
        Column("net_benefit", "net benefit", "interval"), Column("treat_all", "treat all", "interval"),
        Column("gain", "gain over the better of treating all and none", "interval"),
    )  # fmt: skip
    rows = tuple(
        (one.encoder, one.recipe, target.positive, point.threshold, point.model, point.treat_all, point.gain)
        for one in evidence for target in one.targets for point in target.decision
    )  # fmt: skip
    caption = f"Net benefit on {leaderboard.test_size}, in true positives per row; treating nobody has 0."
    return ResultTable("decision_curve", caption, columns, rows, in_latex=False)


def _percent(leaderboard: Leaderboard) -> str:
    return f"{leaderboard.level * 100:g}%"
