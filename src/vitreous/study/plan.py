"""`vitreous plan STUDY`: what would be read, encoded and trained; counts, time, bytes, memory. Writes nothing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vitreous.config.attentive_probe import AttentiveProbe
from vitreous.config.compose import load_study
from vitreous.config.pixel_recipes import PixelRecipe
from vitreous.config.probe_recipes import LinearProbe, MlpProbe
from vitreous.config.study import KFolds, StudyConfig
from vitreous.core.finding import Finding
from vitreous.core.input_spec import PictureSpec, item_noun
from vitreous.encoders.encoder import Encoder
from vitreous.recipes.attentive_probe import estimate_attentive_flops, member_bytes, split_members
from vitreous.recipes.probe_cost import GridSize, estimate_probe_flops, estimate_probe_memory
from vitreous.study.account import count_participants, pivot_counts
from vitreous.study.adapt import grid_members, probe_settings, shape_of
from vitreous.study.adapt_pixels import check_pixel_recipes, check_pixel_rows
from vitreous.study.clip_findings import describe_clips, name_agreement
from vitreous.study.cost import EncoderCost, estimate_cost, measure_matmul_flops
from vitreous.study.data import OpenedData, open_data
from vitreous.study.encode import feature_store, feature_width, token_stores, training_files
from vitreous.study.encoders import OpenedEncoder, open_encoders
from vitreous.study.few_shot import check_few_shot, few_shot_rows
from vitreous.study.floors import plan_floors
from vitreous.study.grid_choice import count_settings, is_nested
from vitreous.study.leak_gate import LeakGate
from vitreous.study.partitions import make_partitions
from vitreous.study.pixel_cost import PixelPlan, plan_pixel_rows
from vitreous.study.row import Row, encoders_on_pixels, encoders_on_tokens, frozen_encoders, rows_of
from vitreous.study.runtime import Runtime, resolve_runtime

_LISTED = 10
_BYTES_PER_FEATURE = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class EncoderPlan:
    """What one encoder has to do.

    Args:
        num_known: files whose features are kept already.
        num_missing: files to encode; each augmented view of a file counts.
        feature_bytes: of the features and tokens still to be kept, before compression.
    """

    name: str
    family: str
    size: tuple[int, int, int]
    parameters: int
    matched: str
    num_known: int
    num_missing: int
    cost: EncoderCost
    feature_bytes: int
    is_floor: bool

    @property
    def seconds(self) -> float:
        """Estimated time to encode what is missing."""
        return self.num_missing * self.cost.seconds


@dataclass(frozen=True)
class RecipePlan:
    """What one recipe trains, for each encoder."""

    name: str
    kind: str
    num_members: int
    flops: int
    memory_bytes: int


@dataclass(frozen=True)
class FewShotPlan:
    """What the few-shot curves train, over all rows.

    Args:
        num_heads: members of all grids, draws, numbers of patients and rounds.
        flops: of those that are counted.
    """

    num_rows: int
    num_sizes: int
    num_draws: int
    num_heads: int
    flops: int


@dataclass(frozen=True)
class Plan:
    """A study looked at before it is run.

    Args:
        counts: patients and volumes per class, split and domain.
        excluded: rule → rows left out.
        patients_without_files: labelled participants of whom no file was found.
        num_files, num_bytes: what would be read, at most.
        on_pixels: rows that train on pixels.
        pixel_bytes: of the prepared inputs that these keep, before it is known which files can be used.
        few_shot: what the curves take, where the study asks for them.
        run_dir: where the run would be.
        agreement: by length, how many clips have frames that all have the same labels; None where samples are no clips.
    """

    counts: pd.DataFrame
    excluded: dict[str, int]
    findings: tuple[Finding, ...]
    patients_without_files: tuple[str, ...]
    num_samples: int
    num_patients: int
    num_files: int
    num_bytes: int
    encoders: tuple[EncoderPlan, ...]
    recipes: tuple[RecipePlan, ...]
    on_pixels: tuple[PixelPlan, ...]
    pixel_bytes: int
    few_shot: FewShotPlan | None
    runtime: Runtime
    run_dir: Path
    agreement: pd.DataFrame | None = None


def make_plan(config: StudyConfig) -> Plan:
    """Check everything that can be checked without reading a volume or image.

    Raises:
        UserError: what `run` would refuse.
    """
    runtime = resolve_runtime(config)
    data = open_data(config, keep_listing=False)
    gate = LeakGate(config, data)
    gate.check_table()
    encoders = open_encoders(config, runtime, data.cache, data.modality)
    check_pixel_recipes(config, data.modality)
    floors = plan_floors(config, data.cohort, data.modality)
    rows = rows_of(config, encoders, floors.columns)
    check_pixel_rows(config, rows, encoders)
    speed = measure_matmul_flops(runtime)
    costs = _costs(encoders, runtime, speed)
    num_train, num_val, num_folds = _split_sizes(config, data)
    samples = data.cohort.samples
    return Plan(
        count_participants(data.cohort),
        {str(rule): int(count) for rule, count in data.cohort.excluded["rule"].value_counts().items()},
        (*data.cohort.findings, *gate.findings(with_ids=True), *floors.findings, *describe_clips(data, encoders)),
        data.cohort.patients_without_files,
        len(samples),
        int(samples["patient_id"].nunique()),
        len(data.files),
        sum(data.files.values()),
        tuple(
            _plan_encoder(config, runtime, data, opened, costs, rows)
            for opened in encoders
            if opened.name in frozen_encoders(rows) | encoders_on_tokens(rows)
        ),
        tuple(_plan_recipes(config, data, encoders)),
        tuple(
            plan_pixel_rows(
                config,
                runtime,
                rows,
                encoders,
                num_train=num_train,
                num_val=num_val,
                num_folds=num_folds,
                matmul_flops=speed,
            )
        ),
        _pixel_bytes(data, [opened for opened in encoders if opened.name in encoders_on_pixels(rows)]),
        _plan_few_shot(config, data, encoders, rows),
        runtime,
        Path(config.runs).expanduser() / config.name,
        None if data.agreement is None else name_agreement(data.agreement, config.data.classes),
    )


def _split_sizes(config: StudyConfig, data: OpenedData) -> tuple[int, int, int]:
    """Training and val samples of a round, and the number of rounds."""
    split = data.cohort.samples["split"]
    if config.folds is None:
        return int((split == "train").sum()), int((split == "val").sum()), 1
    if isinstance(config.folds, KFolds):
        folds = config.folds.k
        return len(split) * (folds - 2) // folds, len(split) // folds, folds
    rounds = make_partitions(data.cohort, config.folds)
    sizes = [(len(one.rows("train")), len(one.rows("val"))) for one in rounds]
    return max(train for train, _ in sizes), max(val for _, val in sizes), len(rounds)


def _pixel_bytes(data: OpenedData, encoders: Sequence[OpenedEncoder]) -> int:
    """Encoders of one input share their prepared inputs; images have a byte a value, volumes four."""
    specs = {opened.encoder.spec.model_dump_json(): opened.encoder.spec for opened in encoders}
    each = [
        math.prod(spec.size_DHW) * spec.channels * (1 if isinstance(spec, PictureSpec) else 4)
        for spec in specs.values()
    ]
    return len(data.requests) * sum(each)


def _costs(encoders: Sequence[OpenedEncoder], runtime: Runtime, speed: float) -> dict[str, EncoderCost]:
    """By encoder name; encoders of one architecture and input are counted once."""
    by_kind: dict[str, EncoderCost] = {}
    costs = {}
    for opened in encoders:
        encoder = opened.encoder
        kind = f"{encoder.family}{encoder.architecture}{encoder.spec.size_DHW}{dict(opened.options)}{encoder.layer}"
        if kind not in by_kind:
            by_kind[kind] = estimate_cost(opened.encoder, runtime, speed)
        costs[opened.name] = by_kind[kind]
    return costs


def _plan_encoder(
    config: StudyConfig,
    runtime: Runtime,
    data: OpenedData,
    opened: OpenedEncoder,
    costs: dict[str, EncoderCost],
    rows: Sequence[Row],
) -> EncoderPlan:
    asked = {request.file_id for request in data.requests}
    each = _BYTES_PER_FEATURE[config.features.dtype]
    known, num_bytes, num_views = set(asked), 0, 0
    if opened.name in frozen_encoders(rows):
        found = asked & feature_store(config, runtime, data, opened).known_files()
        known &= found
        num_bytes += (len(asked) - len(found)) * feature_width(config, opened.encoder) * each
    if opened.name in encoders_on_tokens(rows):
        plain, *views = token_stores(config, runtime, data, opened)
        found, trained = asked & plain.known_files(), training_files(data)
        known &= found
        num_views = sum(len(trained - store.known_files()) for store in views)
        tokens = _num_tokens(config, opened.encoder) * opened.encoder.width
        num_bytes += (len(asked) - len(found) + num_views) * tokens * each
    receipt = opened.encoder.receipt
    return EncoderPlan(
        opened.name,
        opened.encoder.family,
        opened.encoder.spec.size_DHW,
        num_parameters(opened.encoder),
        f"{receipt.tensors_matched}/{receipt.tensors_total}",
        len(known),
        len(asked) - len(known) + num_views,
        costs[opened.name],
        num_bytes,
        opened.is_floor,
    )


def num_parameters(encoder: Encoder) -> int:
    """Numbers in the encoder's weights."""
    return sum(tensor.numel() for tensor in encoder.parameters())


def _cells(config: StudyConfig) -> int:
    t, h, w = config.features.grid or (1, 1, 1)
    return t * h * w


def _plan_recipes(config: StudyConfig, data: OpenedData, encoders: Sequence[OpenedEncoder]) -> list[RecipePlan]:
    num_train, num_val, folds = _split_sizes(config, data)
    width = max(opened.encoder.width for opened in encoders) * _cells(config)
    num_targets = 1 if config.data.task == "multi_class" else len(config.data.classes)
    size = GridSize(num_train, num_val, width, len(config.data.classes), num_targets=num_targets)
    plans = []
    for name, recipe in config.recipes.items():
        if isinstance(recipe, PixelRecipe):
            continue
        # nested: every fold but the one that is tested chooses once
        times = folds * (folds - 1) if is_nested(config, recipe) else folds
        if isinstance(recipe, AttentiveProbe):
            plans.append(_plan_attentive(config, name, recipe, encoders, num_train, num_val, times))
        elif isinstance(recipe, LinearProbe | MlpProbe):
            members, settings = grid_members(recipe, config.seeds), probe_settings(recipe)
            plans.append(
                RecipePlan(
                    name,
                    recipe.kind,
                    len(members) * times,
                    times * estimate_probe_flops(members, settings, size),
                    estimate_probe_memory(members, settings, size),
                )
            )
        else:
            plans.append(RecipePlan(name, recipe.kind, recipe.num_settings * times, 0, 0))
    return plans


def _plan_few_shot(
    config: StudyConfig, data: OpenedData, encoders: Sequence[OpenedEncoder], rows: Sequence[Row]
) -> FewShotPlan | None:
    if (settings := config.few_shot) is None:
        return None
    check_few_shot(config, make_partitions(data.cohort, config.folds))
    _, num_val, folds = _split_sizes(config, data)
    widths = {opened.name: feature_width(config, opened.encoder) for opened in encoders}
    curves, num_heads, flops = few_shot_rows(config, rows), 0, 0
    each = data.cohort.samples.groupby("patient_id").size().mean()
    for row in curves:
        times = settings.draws * folds
        if not isinstance(row.recipe, LinearProbe | MlpProbe):
            num_heads += times * len(settings.patients) * count_settings(row.recipe)
            continue
        members, how = grid_members(row.recipe, row.seeds[:1]), probe_settings(row.recipe)
        num_heads += times * len(settings.patients) * len(members)
        for patients in settings.patients:
            num_train = max(2, round(patients * len(config.data.classes) * each))
            size = GridSize(num_train, num_val, widths[row.features_of or ""], len(config.data.classes))
            flops += times * estimate_probe_flops(members, how, size)
    return FewShotPlan(len(curves), len(settings.patients), settings.draws, num_heads, flops)


def _plan_attentive(
    config: StudyConfig,
    name: str,
    recipe: AttentiveProbe,
    encoders: Sequence[OpenedEncoder],
    num_train: int,
    num_val: int,
    folds: int,
) -> RecipePlan:
    """Of the widest encoder; memory of the largest part of the grid and of the batches that are read ahead."""
    width = max(one.encoder.width for one in encoders if one.encoder.family != "pixels")
    most = max(_num_tokens(config, one.encoder) for one in encoders if one.encoder.family != "pixels")
    shape, settings = shape_of(recipe, width, len(config.data.classes)), probe_settings(recipe)
    members = grid_members(recipe, config.seeds)
    parts = split_members(len(members), settings, shape, most)
    part = max(map(len, parts)) * member_bytes(settings, shape, most)
    batches = 4 * 4 * (settings.batch_size or num_train) * most * width
    flops = estimate_attentive_flops(shape, most, num_train, num_val, settings.epochs) * len(members)
    return RecipePlan(name, recipe.kind, len(members) * folds, folds * flops, part + batches)


def _num_tokens(config: StudyConfig, encoder: Encoder) -> int:
    return math.prod(config.features.grid or encoder.grid)


def print_plan(study: str, overrides: Sequence[str]) -> None:
    """Show the plan in the terminal."""
    config = load_study(study, overrides)
    plan = make_plan(config)
    noun = item_noun(config.data.modality)
    console = Console()
    console.print(
        f"[bold]{config.name}[/]  {plan.num_patients} participants, {plan.num_samples} {noun}, "
        f"{plan.num_files} files, {_size(plan.num_bytes)}",
        highlight=False,
    )
    for table in _counts_tables(plan.counts, noun):
        console.print(table)
    if plan.excluded:
        console.print(_excluded_table(plan.excluded))
    if plan.agreement is not None and len(plan.agreement):
        console.print(_agreement_table(plan.agreement))
    for finding in plan.findings:
        console.print(
            f"[yellow]{finding.severity}[/] {escape(f'{finding.title} {finding.evidence} {finding.remedy}'.strip())}",
            highlight=False,
        )
    if plan.patients_without_files:
        shown = escape(", ".join(plan.patients_without_files[:_LISTED]))
        more = len(plan.patients_without_files) - _LISTED
        console.print(
            f"Participants without a file: {shown}{f' and {more} more' if more > 0 else ''}.", highlight=False
        )
    if plan.encoders:
        console.print(_encoders_table(plan))
    if plan.recipes:
        console.print(_recipes_table(plan))
    if plan.on_pixels:
        console.print(_pixels_table(plan))
        console.print(
            f"Training on pixels about {_duration(sum(row.seconds for row in plan.on_pixels))}; prepared inputs "
            f"{_size(plan.pixel_bytes)}, the frozen-prefix cache up to "
            f"{_size(max(row.prefix_bytes for row in plan.on_pixels))} at a time, removed after each stage.",
            highlight=False,
        )
    for name, ensemble in config.ensembles.items():
        chosen = "" if ensemble.choose == "all" else ", chosen on val"
        console.print(f"Ensemble {name}: mean probability of {', '.join(ensemble.members)}{chosen}.", highlight=False)
    if plan.few_shot is not None:
        few = plan.few_shot
        console.print(
            f"Few-shot curves of {few.num_rows} rows, {few.num_sizes} numbers of patients, {few.num_draws} draws each: "
            f"{few.num_heads:,} heads on kept features, {few.flops / 1e9:.3g} GFLOP.",
            highlight=False,
        )
    seconds = sum(encoder.seconds for encoder in plan.encoders)
    console.print(
        f"Encoding about {_duration(seconds)} on {plan.runtime.device} in {plan.runtime.precision}, estimated "
        f"from counted operations and this machine's matrix products. Features "
        f"{_size(sum(encoder.feature_bytes for encoder in plan.encoders))} in {escape(config.store)}. "
        f"The run would be in {escape(str(plan.run_dir))}. Nothing was written "
        f"(copies of remote tables and checkpoints are in {escape(config.cache.dir)}).",
        highlight=False,
    )


def _counts_tables(counts: pd.DataFrame, noun: str) -> list[Table]:
    tables = []
    for heads, rows in pivot_counts(counts):
        title = f"Participants ({noun}) by {heads[0]}"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        table.add_column(heads[0], overflow="fold")
        for split in heads[1:]:
            table.add_column(split, justify="right")
        for row in rows:
            table.add_row(*map(escape, row))
        tables.append(table)
    return tables


def _agreement_table(agreement: pd.DataFrame) -> Table:
    """Shares of the clips of train and val whose frames agree, by length."""
    labels = [name for name in agreement.columns if name not in ("frames", "clips", "agreeing", "share")]
    table = Table(title="Frames of a clip that agree (train and val)", title_justify="left")
    for name in ("frames", "clips", "agree fully", *labels):
        table.add_column(name, justify="right")
    for row in agreement.to_dict("records"):
        shares = [f"{row['share']:.1%}", *(f"{row[label]:.1%}" for label in labels)]
        table.add_row(str(row["frames"]), str(row["clips"]), *shares)
    return table


def _excluded_table(excluded: dict[str, int]) -> Table:
    table = Table(title="Excluded by rule", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("rule")
    table.add_column("rows", justify="right")
    for rule, count in excluded.items():
        table.add_row(escape(rule), str(count))
    return table


def _encoders_table(plan: Plan) -> Table:
    table = Table(title="Encoders", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("encoder", overflow="fold")
    table.add_column("input")
    for name in ("weights", "tensors", "known", "to do", "GFLOP", "s each"):
        table.add_column(name, justify="right")
    for encoder in plan.encoders:
        table.add_row(
            f"{encoder.name} ({encoder.family})",
            "×".join(map(str, encoder.size)),
            f"{encoder.parameters / 1e6:.1f} M",
            encoder.matched,
            str(encoder.num_known),
            str(encoder.num_missing),
            f"{encoder.cost.flops / 1e9:.4g}",
            f"{encoder.cost.seconds:.2g}",
        )
    return table


def _recipes_table(plan: Plan) -> Table:
    table = Table(title="Recipes, for each encoder", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("recipe", overflow="fold")
    table.add_column("kind")
    for name in ("heads", "GFLOP", "memory"):
        table.add_column(name, justify="right")
    for recipe in plan.recipes:
        flops = f"{recipe.flops / 1e9:.3g}" if recipe.flops else "–"
        memory = _size(recipe.memory_bytes) if recipe.memory_bytes else "–"
        table.add_row(recipe.name, recipe.kind, str(recipe.num_members), flops, memory)
    return table


def _pixels_table(plan: Plan) -> Table:
    title = "Recipes on pixels: runs × epochs, operations of a run, what the frozen-prefix cache saves and needs"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("encoder / recipe", overflow="fold", min_width=18)
    table.add_column("kind", no_wrap=True)
    for name in ("runs", "trainable", "TFLOP", "cache", "time"):
        table.add_column(name, justify="right")
    for row in plan.on_pixels:
        saved = f"−{1 - row.flops / row.plain_flops:.0%}, {_size(row.prefix_bytes)}" if row.prefix_bytes else "–"
        table.add_row(
            escape(f"{row.encoder} / {row.recipe}"),
            row.kind,
            f"{row.num_runs} × {row.epochs}",
            f"{row.trainable / 1e6:.3g} of {row.total / 1e6:.3g} M",
            f"{row.flops / 1e12:.3g}",
            saved,
            _duration(row.seconds),
        )
    return table


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
