"""Methods in words, from what a run really did: every clause is a setting, a count or a version on record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vitreous.core.input_spec import item_noun
from vitreous.evidence.subgroups import MIN_CLASS_PATIENTS, MIN_GROUP_PATIENTS
from vitreous.reports.answer import listed
from vitreous.reports.leaderboard import Leaderboard
from vitreous.reports.row_evidence import CURVE_RESAMPLES, FIXED, NUM_BINS, RowEvidence

_METHODS = {"percentile": "percentiles of the resamples", "bca": "bias-corrected and accelerated (BCa)"}
_KINDS = {
    "linear_probe": "a linear probe", "mlp_probe": "a multi-layer perceptron on features",
    "logistic_regression": "logistic regression on features", "knn": "nearest neighbours of features",
    "attentive_probe": "an attentive probe on tokens", "finetune": "fine-tuning of all weights",
    "partial": "fine-tuning of the last blocks", "staged": "fine-tuning in stages",
    "lora": "low-rank adapters (LoRA)", "from_scratch": "training from random weights",
}  # fmt: skip


@dataclass(frozen=True)
class RunFacts:
    """What a study asked for, in plain values.

    Args:
        source: the kind of data, as in the study.
        split: how patients came into splits, a clause.
        eligibility: rules of the study, as written; empty where there is none.
        label: column or columns.
        encoders: name → whether its weights are random.
        recipes: name → kind.
        balancing: what was done about rare classes, one clause a recipe.
        ensembles: their names.
        pooling: of features; `dtype` they are kept in.
        split_patients: split → patients, as counted before anything was read.
        domains: columns.
        gate: what the leak gate looked at; None for a run from before there was one.
        accepted_leaks: codes that the study accepted by name.
        folds: whether there are rounds; `domain_rounds` by domain.
        transfers: other cohorts.
        has_explanations: whether attention or other maps were made.
    """

    source: str
    split: str
    label: str
    encoders: Mapping[str, bool]
    recipes: Mapping[str, str]
    eligibility: str = ""
    balancing: tuple[str, ...] = ()
    ensembles: tuple[str, ...] = ()
    pooling: str = ""
    dtype: str = ""
    split_patients: Mapping[str, int] = field(default_factory=dict)
    domains: tuple[str, ...] = ()
    gate: bool = False
    accepted_leaks: tuple[str, ...] = ()
    folds: bool = False
    domain_rounds: str | None = None
    transfers: tuple[str, ...] = ()
    has_explanations: bool = False


def methods_paragraphs(
    facts: RunFacts,
    leaderboard: Leaderboard,
    *,
    rows_in: int,
    encoded: int,
    quarantined: int,
    excluded: int,
    num_looks: int,
    evidence: Sequence[RowEvidence],
    provenance: Mapping[str, Any] | None,
) -> tuple[str, ...]:
    """Data, models, statistics, further measures, software: a paragraph each, in the past tense."""
    items = item_noun(leaderboard.modality)
    counts = ", ".join(f"{count:,} in {split}" for split, count in facts.split_patients.items())
    data = (
        f"Of {rows_in:,} {items}, {encoded:,} were used; {quarantined:,} could not be read, {excluded:,} left out by "
        f"rule. {facts.split[0].upper()}{facts.split[1:]}; no patient was in two splits"
        + (f" (patients: {counts})." if counts else ".")
    )
    if facts.gate:
        data += " Before anything was trained, a gate looked for leaks between splits"
        data += (
            f"; accepted by name: {listed(facts.accepted_leaks)}." if facts.accepted_leaks else "; nothing was refused."
        )
    return tuple(
        paragraph
        for paragraph in (
            data,
            _models(facts, leaderboard, num_looks),
            _statistics(leaderboard),
            _further(facts, leaderboard, evidence),
            _software(provenance),
        )
        if paragraph
    )


def _models(facts: RunFacts, leaderboard: Leaderboard, num_looks: int) -> str:
    pretrained = [name for name, is_random in facts.encoders.items() if not is_random]
    said = (
        f"{len(pretrained)} pretrained encoder{'s' if len(pretrained) != 1 else ''} ({listed(pretrained)})"
        if pretrained
        else "Encoders of random weights"
    )
    kinds = [_KINDS.get(kind, kind.replace("_", " ")) for kind in facts.recipes.values()]
    said += (
        f" {'were' if len(pretrained) != 1 else 'was'} adapted by {listed(list(dict.fromkeys(kinds)))}."
        if kinds
        else "."
    )
    seeds = sorted({seed for row in leaderboard.rows for seed in row.seeds})
    said += (
        f" Every trained row is the mean over {len(seeds)} seed{'s' if len(seeds) != 1 else ''} "
        f"({', '.join(map(str, seeds))}); settings and epochs were chosen on validation patients alone, settings by "
        f"{leaderboard.metric_title}."
    )
    floors = [row.name for row in leaderboard.rows if row.is_floor]
    if floors:
        said += f" {len(floors)} trivial or untrained references ({listed(floors)}) had to be exceeded."
    looks = "once" if num_looks == 1 else f"{num_looks} times"
    return f"{said} Test labels were opened {looks}, after all choices had been written down."


def _statistics(leaderboard: Leaderboard) -> str:
    items = item_noun(leaderboard.modality)
    unit = (
        f"Every {items[:-1]} was scored by itself, and patients were resampled with all of theirs"
        if leaderboard.aggregate == "none"
        else f"Probabilities were averaged over a patient's {items}, and metrics count patients"
    )
    pairs = len(leaderboard.rows) * (len(leaderboard.rows) - 1) // 2
    tests = {"delong": "DeLong's test", "mcnemar": "McNemar's test"}
    also = [name for key, name in tests.items() if any(test.test == key for test in leaderboard.paired)]
    return (
        f"{unit}. Intervals ({leaderboard.level * 100:g}%) come from {leaderboard.num_resamples:,} bootstrap resamples "
        f"of {leaderboard.rows[0].num_test_patients:,} test patients, the same for all rows and seeds "
        f"({_METHODS[leaderboard.method]}). All {pairs} pairs of rows were compared in {leaderboard.num_compared:,} "
        f"common resamples, two-sided, with Holm's correction at {leaderboard.alpha:g}"
        + (f"; {listed(also)} stood beside as a check and decided nothing." if also else ".")
    )


def _further(facts: RunFacts, leaderboard: Leaderboard, evidence: Sequence[RowEvidence]) -> str:
    if not evidence:
        return ""
    noun = leaderboard.scores.noun
    said = (
        f"For each {noun}, decision thresholds were chosen on val (highest sensitivity + specificity; {FIXED:.0%} "
        f"specificity; {FIXED:.0%} sensitivity), frozen, and applied to test. Calibration was measured by the expected "
        f"calibration error over {NUM_BINS} bins of equal mass, the Brier score and the negative log-likelihood, "
        "before and after a temperature fitted on val. Net benefit was compared with treating all and treating none. "
        f"Bands and curves of many points use the first {min(CURVE_RESAMPLES, leaderboard.num_resamples):,} resamples."
    )
    if facts.folds:
        said += (
            " With folds, thresholds and temperatures were chosen on the val predictions of all rounds together, whose "
            "patients are tested in other rounds, so that they are slightly optimistic."
        )
    if facts.domains:
        said += (
            f" Subgroups by {listed(facts.domains)} are described and not compared; groups of fewer than "
            f"{MIN_GROUP_PATIENTS} patients are not shown, nor means over classes with fewer than {MIN_CLASS_PATIENTS} "
            "patients of one."
        )
    return said


def _software(provenance: Mapping[str, Any] | None) -> str:
    if not provenance or not provenance.get("starts"):
        return ""
    start = provenance["starts"][-1]
    environment, code = start["environment"], start["code"]
    packages = environment["packages"]
    named = [f"{name} {packages[name]}" for name in ("torch", "numpy", "scipy", "scikit-learn") if name in packages]
    commit = f", commit {code['git_sha'][:12]}" if code.get("git_sha") else ""
    changed = " with uncommitted changes" if code.get("uncommitted_changes") else ""
    return (
        f"Computed with Vitreous {packages.get('vitreous', '')}{commit}{changed}, Python {environment['python']}, "
        f"{listed(named)}, on {environment['device']} in {environment['precision']}."
    )
