"""What a run says to the kinds of evidence that checklists ask for; None where it has none to give."""

from vitreous.core.input_spec import item_noun
from vitreous.core.undefined import Undefined
from vitreous.reports.answer import listed
from vitreous.reports.checklists import Answer
from vitreous.reports.power import power_sentences
from vitreous.reports.report import ReportData


def checklist_answers(data: ReportData) -> dict[str, Answer | None]:
    """Kind of evidence → answer, for :func:`~vitreous.reports.checklists.fill_checklists`."""
    return {**_about_data(data), **_about_models(data), **_about_results(data)}


def _about_data(data: ReportData) -> dict[str, Answer | None]:
    facts, board, flow = data.facts, data.leaderboard, data.flow
    items = item_noun(board.modality)
    excluded = sum(flow.excluded.values())
    if facts is None:
        return dict.fromkeys(
            ("sources", "eligibility", "subset", "outcome", "partition", "acquisition", "predictors", "differences")
        ) | {"preprocessing": _preprocessing(data), "missing": None, "flow": None, "partition_level": None}
    splits = ", ".join(f"{count:,} patients in {split}" for split, count in facts.split_patients.items())
    counted = f"{flow.rows_in:,} {items}: {flow.encoded:,} used, {flow.quarantined:,} unreadable, {excluded:,} excluded"
    return {
        "sources": Answer(f"Data of kind '{facts.source}'; table and files are named in the settings. Their origin and "
                          "how typical they are: add.", "settings"),
        "eligibility": Answer(f"Rules of the study: {facts.eligibility}. {counted}. Clinical criteria: add.", "data")
        if facts.eligibility else None,
        "subset": Answer(f"{counted}; the rules stand with their counts.", "data") if excluded else None,
        "outcome": Answer(f"Label: {facts.label}; {board.scores.noun} names: {listed(board.classes)}. How labels were "
                          "made: add.", "data"),
        "partition": Answer(f"{facts.split[0].upper()}{facts.split[1:]}" + (f"; {splits}." if splits else "."), "data"),
        "partition_level": Answer("Disjoint by patient" + (
            ": identity, exact and near duplicates across splits were looked for before training."
            if facts.gate else "; splits were checked by patient id."), "data"),
        "acquisition": Answer(f"Counts by {listed(facts.domains)}. Acquisition parameters: add.", "data")
        if facts.domains else None,
        "predictors": Answer(f"The {items} themselves; no predictor was selected beforehand.", "data"),
        "differences": Answer("The gap to the other cohorts, and the shift in their classes, stand in the report.",
                              "generalisation") if facts.transfers or facts.domain_rounds else None,
        "preprocessing": _preprocessing(data),
        "missing": Answer(f"Unreadable files ({flow.quarantined:,}) were left out with their reasons, never replaced.",
                          "data"),
        "flow": Answer(f"{counted}; counts by class, split and domain.", "data"),
    }  # fmt: skip


def _preprocessing(data: ReportData) -> Answer | None:
    if not data.encoders:
        return None
    return Answer("Each encoder is given its input as its weights were trained on it (size, spacing, normalisation).",
                  "encoders")  # fmt: skip


def _about_models(data: ReportData) -> dict[str, Answer | None]:
    facts, board = data.facts, data.leaderboard
    recipes = "" if facts is None else listed([f"{name} ({kind})" for name, kind in facts.recipes.items()] or ["none"])
    software = data.methods[-1] if data.provenance and data.methods else None
    return {
        "architecture": Answer("Family, architecture and parameters of every encoder stand in its load receipt.",
                               "encoders") if data.encoders else None,
        "software": Answer(software, "provenance") if software else None,
        "initialisation": Answer("Weights by name and hash, all tensors matched, in the load receipts.", "encoders")
        if data.encoders else None,
        "training": Answer(f"Recipes {recipes}, with all settings; training curves with the kept epochs.", "settings")
        if facts else None,
        "selection": Answer(f"Settings by {board.metric_title} on val, mean over seeds; what choosing cost is shown as "
                            "optimism.", "leaderboard"),
        "ensembles": Answer(f"{listed(facts.ensembles)}: probabilities averaged over rows.", "leaderboard")
        if facts and facts.ensembles else None,
        "imbalance": Answer("; ".join(facts.balancing) + ". Calibration after it is measured.", "calibration")
        if facts and facts.balancing else None,
        "output": Answer("Probabilities; thresholds were chosen on val by three stated rules and frozen before test.",
                         "operating") if data.evidence else None,
        "recalibration": Answer("A temperature fitted on val; measures before and after it.", "calibration")
        if data.evidence else None,
        "prediction": Answer("The kept model of each seed, through the same preprocessing; `vitreous predict` does the "
                             "same on new files.", "provenance"),
        "model_files": Answer("`vitreous export` writes weights, settings and a model card. Terms of use: add.",
                              "provenance"),
        "settings": Answer("Every setting with its value, seeds and hashes.", "settings"),
        "code": Answer(software + " Where code and data can be had: add.", "provenance") if software else None,
        "audit": Answer("Predictions of every patient are kept in the run directory, and each look at test is in the "
                        "ledger.", "provenance"),
        "blinding": Answer("Test labels were sealed until every choice was written down (ledger).", "provenance")
        if data.looks else None,
        "explanations": Answer("Maps with deletion, insertion and weight-randomisation checks: run directory.",
                               "provenance") if facts and facts.has_explanations else None,
    }  # fmt: skip


def _about_results(data: ReportData) -> dict[str, Answer | None]:
    facts, board = data.facts, data.leaderboard
    best = board.rows[0]
    found = best.test[board.metric]
    number = "" if isinstance(found.value, Undefined) else f"{best.name}: {board.metric_title} {found.value:.3f}"
    if number and not isinstance(found.low, Undefined) and not isinstance(found.high, Undefined):
        number += f" [{found.low:.3f}, {found.high:.3f}]"
    power = power_sentences(board.reach)
    has_groups = any(not isinstance(one.groups, Undefined) for row in data.evidence for one in row.subgroups)
    if facts and facts.domain_rounds:
        compared = Answer("Domains against each other: train × test matrix.", "generalisation")
    else:
        compared = Answer("Metrics within groups of every domain column.", "subgroups")
    return {
        "sample_size": Answer(" ".join(power) + " How the size was planned: add.", "leaderboard") if power else None,
        "metrics": Answer("Discrimination, calibration, operating points, net benefit and abstention; rows compared in "
                          "pairs.", "methods"),
        "uncertainty": Answer(data.methods[2] if len(data.methods) > 2 else "See the methods.", "methods"),
        "clusters": compared if has_groups or (facts and facts.domain_rounds) else None,
        "subgroups": Answer("Metrics within groups of every domain column, small groups left out.", "subgroups")
        if has_groups else None,
        "internal": Answer(f"{board.test_size}, opened after all choices.", "leaderboard"),
        "external": Answer(f"Other cohorts: {listed(facts.transfers)}.", "generalisation")
        if facts and facts.transfers else None,
        "characteristics": Answer("Patients by class, split and domain. Demographic and clinical characteristics: add.",
                                  "data") if data.counts else None,
        "performance": Answer(f"{number}; all rows with intervals" + (", and subgroups." if has_groups else "."),
                              "leaderboard") if number else None,
        "accuracy": Answer(f"{number}; per {board.scores.noun}, ROC and precision-recall curves, operating points.",
                           "curves") if number else None,
        "failures": Answer("Confusion matrices of every row. Single cases in clinical context: add.", "confusion"),
        "limits": Answer("Findings and banners of this report name small cohorts, overfitting, leaks and missing data. "
                         "Their discussion: add.", "answer"),
    }  # fmt: skip
