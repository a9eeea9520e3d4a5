"""The model card of an exported model: what it is for, what it learned from, how good it is, what it is not for.

Nothing of a patient stands in it: counts, metrics and classes alone, no ids, no places of files.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from vitreous.core.errors import UserError
from vitreous.core.input_spec import item_noun
from vitreous.core.undefined import Undefined
from vitreous.evidence.intervals import Interval
from vitreous.evidence.task_scores import TASK_SCORES
from vitreous.reports.leaderboard import Leaderboard, LeaderboardRow
from vitreous.study.account import read_account
from vitreous.study.model_folder import ModelFolder
from vitreous.study.report import leaderboard_of
from vitreous.study.run_directory import RunDirectory

_SPLITS = ("train", "val", "test", "")


def render_model_card(model: ModelFolder, config: Mapping[str, Any]) -> str:
    """Markdown for ``README.md``.

    Args:
        config: what ``config.json`` holds.
    """
    sections = [
        _head(model, config),
        _use(model),
        _input(model, config),
        _data(model),
        _results(model),
        _limits(model),
        _loading(config),
        _provenance(config),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def _head(model: ModelFolder, config: Mapping[str, Any]) -> list[str]:
    facts, encoder = model.facts, model.facts["encoder"]
    kind = "trained on pixels" if model.recipe is not None else "trained on kept features; the encoder is unchanged"
    start = "from random weights" if facts.get("from_scratch") or "random" in encoder else "from pretrained weights"
    parameters = facts.get("parameters")
    learned = f" ({parameters['trainable']:,} of {parameters['total']:,} parameters trained)" if parameters else ""
    return [
        f"# {config['study']}: {encoder['name']} / {config['recipe']['name']}",
        "",
        f"Tells {item_noun(model.modality)} apart into {len(model.classes)} classes: {', '.join(model.classes)}."
        if model.task == "multi_class"
        else f"Says of {item_noun(model.modality)} which of {len(model.classes)} labels they have: "
        f"{', '.join(model.classes)}.",
        f"Encoder `{encoder['name']}` (family {encoder['family']}, {start}), recipe `{config['recipe']['name']}` "
        f"({config['recipe']['kind']}), seed {facts['seed']}; {kind}{learned}. Complete weights in fp32.",
    ]


def _use(model: ModelFolder) -> list[str]:
    return [
        "## Intended use",
        "",
        f"Research on {item_noun(model.modality)} of the kind it was trained on: comparing encoders and recipes, and "
        "studying how well the classes above can be read. Its scores rank and sort; they are not calibrated "
        "probabilities unless that was checked on the data at hand.",
        "",
        "**Not for** diagnosis, triage or treatment of any person, nor as a medical device; not for devices, sites or "
        "populations that the data below do not hold; "
        + (
            "not for classes that are not listed: every input is given one of them, whatever it shows."
            if model.task == "multi_class"
            else "not for labels that are not listed: nothing is said of them, whatever an input shows."
        ),
    ]


def _input(model: ModelFolder, config: Mapping[str, Any]) -> list[str]:
    spec = config["model"]["spec"]
    shape = " × ".join(map(str, config["input"]["shape"]))
    lines = ["## Input", "", f"Batches of {shape}, prepared and normalised as trained:", ""]
    lines += [f"- {name}: {json.dumps(value)}" for name, value in spec.items() if value not in (None, [], ())]
    lines += ["", "The standardiser is folded into the weights; the output is logits, in the order of the classes."]
    return lines


def _data(model: ModelFolder) -> list[str]:
    lines = ["## Data", ""]
    if model.run is None:
        return [*lines, "Not known: the model was exported from a copy outside its run."]
    path = model.run.root / "counts.csv"
    if not path.exists():
        return [*lines, "Not known: the run is not finished."]
    counts = pd.read_csv(path, dtype={"value": str, "split": str}, keep_default_na=False)
    counts = counts[counts["column"] == "class"]
    splits = [split for split in _SPLITS if split in set(counts["split"])]
    cells = {(row.value, row.split): f"{row.patients} ({row.volumes})" for row in counts.itertuples(index=False)}
    head = ["class", *(split or "all, split by folds" for split in splits)]
    body = [[name, *(cells.get((name, split), "0 (0)") for split in splits)] for name in model.classes]
    lines += [f"Patients ({item_noun(model.modality)}) of study `{model.config.name}`, {model.config.data.kind} data:"]
    account = read_account(model.run)
    return [
        *lines,
        "",
        *_table(head, body),
        "",
        f"{account['rows']} rows = {account['encoded']} used + {account['quarantined']} unreadable + "
        f"{account['excluded']} excluded by rule.",
    ]


def _results(model: ModelFolder) -> list[str]:
    lines = ["## Results", ""]
    own = _own_metrics(model)
    if model.run is None:
        lines += ["Intervals are not known: the model was exported from a copy outside its run.", ""]
        return [*lines, *(_own_table(model, own) if own else ["No metrics lie beside the model."])]
    try:
        leaderboard = leaderboard_of(model.run, model.config)
    except UserError as error:
        return [*lines, f"Intervals are not known: {error}"]
    row = next(
        row
        for row in leaderboard.rows
        if (row.encoder, row.recipe) == (model.facts["encoder"]["name"], model.recipe_name)
    )
    return [*lines, *_row_table(leaderboard, row, own), "", *_floors(leaderboard, row)]


def _own_metrics(model: ModelFolder) -> Mapping[str, Any]:
    path = model.path / "metrics.json"
    values: Mapping[str, Any] = json.loads(path.read_text())["test"] if path.exists() else {}
    return values


def _own_table(model: ModelFolder, own: Mapping[str, Any]) -> list[str]:
    body = [[metric.title, _number(own.get(name))] for name, metric in TASK_SCORES[model.task].metrics.items()]
    return _table(["metric", "test, this model"], body)


def _row_table(leaderboard: Leaderboard, row: LeaderboardRow, own: Mapping[str, Any]) -> list[str]:
    several = f"mean of {len(row.seeds)} seeds" if len(row.seeds) > 1 else "this seed"
    body = [
        [metric.title, _interval(row.test[name]), _number(own.get(name))]
        for name, metric in leaderboard.scores.metrics.items()
        if name in row.test
    ]
    return [
        f"On {leaderboard.test_size}; {leaderboard.level:.0%} intervals from resampled patients. Chosen on val by "
        f"{leaderboard.metric_title}.",
        "",
        *_table(["metric", f"test, {several} [{leaderboard.level:.0%}]", "test, this model"], body),
    ]


def _floors(leaderboard: Leaderboard, row: LeaderboardRow) -> list[str]:
    lines = []
    if row.cleared:
        lines.append(f"It is significantly above these floors: {', '.join(row.cleared)}.")
    if row.not_cleared:
        lines.append(
            f"**It is not shown to be above these floors: {', '.join(row.not_cleared)}.** On this evidence it must not "
            "be called better than them."
        )
    if row.is_floor:
        lines.append("It is itself a floor that other models must clear.")
    equals = [other.name for other in leaderboard.rows if other is not row and set(other.letters) & set(row.letters)]
    if equals:
        lines.append(f"It cannot be told apart from: {', '.join(equals)}.")
    return lines or ["The run has no floors to compare with."]


def _limits(model: ModelFolder) -> list[str]:
    lines = ["## Limits", ""]
    lines += [f"- {finding['title']}" for finding in model.facts.get("findings", [])]
    if model.run is not None and (model.run.root / "account.json").exists():
        lines += [f"- {finding['title']}" for finding in read_account(model.run)["findings"]]
    lines += _transferred(model.run)
    precision = model.facts["feature_space"]["precision"]
    if precision != "fp32":
        lines.append(f"- It was trained and scored in {precision}; in fp32 its logits differ in the last digits.")
    return [*lines, "- Intervals say what resampling the same patients shows; they do not cover other places or times."]


def _transferred(run: RunDirectory | None) -> list[str]:
    path = None if run is None else run.root / "transfer" / "transfer.csv"
    if path is None or not path.exists():
        return ["- It was not tested on another cohort."]
    cohorts = sorted(set(pd.read_csv(path, dtype=str)["cohort"]))
    return [f"- It was tested on other cohorts ({', '.join(cohorts)}); what was lost there stands in transfer.md."]


def _loading(config: Mapping[str, Any]) -> list[str]:
    needs = "timm and safetensors alone" if config["form"] == "timm" else "Vitreous (`vitreous.load_exported`)"
    lines = ["## Loading", "", f"`load_example.py` loads it with {needs}."]
    if (parity := config["parity"]["onnx"]) is not None:
        lines.append(f"`model.onnx` takes `input`, gives `logits`; its largest difference to torch is {parity:.1e}.")
    return lines


def _provenance(config: Mapping[str, Any]) -> list[str]:
    hashes = [[name, f"`{value}`"] for name, value in config["hashes"].items() if value]
    versions = ", ".join(f"{name} {version}" for name, version in config["versions"].items())
    return ["## Provenance", "", *_table(["of", "SHA-256"], hashes), "", f"Exported with {versions}."]


def _interval(found: Interval) -> str:
    if isinstance(found.value, Undefined):
        return f"undefined: {found.value.reason}"
    if isinstance(found.low, Undefined) or isinstance(found.high, Undefined):
        return f"{found.value:.3f}, no interval"
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in [head, *body]]
    lines = [f"| {' | '.join(row)} |" for row in escaped]
    return [lines[0], "|" + " --- |" * len(head), *lines[1:]]
