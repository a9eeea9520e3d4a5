"""A whole study as one validated, immutable object."""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    field_validator,
    model_serializer,
    model_validator,
)

from vitreous.config.attentive_probe import AttentiveProbe
from vitreous.config.clip_data import MaskData
from vitreous.config.data_kinds import Data
from vitreous.config.ensembles import Ensemble, ensemble_problems
from vitreous.config.losses import loss_problem
from vitreous.config.metrics import METRICS_OF, MetricName
from vitreous.config.model import Frozen
from vitreous.config.pixel_recipes import Augment
from vitreous.config.probe_recipes import Knn, LinearProbe, LogisticRegression, MlpProbe
from vitreous.config.recipes import Recipe
from vitreous.config.search import SearchConfig
from vitreous.config.search_space import Search, resolve_search
from vitreous.core.errors import ConfigError
from vitreous.core.label_sets import Task
from vitreous.core.leak import NEVER_ACCEPTED, LeakCode

# names become folders of the run directory
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]


# what every result must rise above; on by default, taken off by name
Floor = Literal["majority", "shuffled", "untrained", "pixels", "columns"]

_FOLDERS = ("receipts", "transfer", "domains", "tables", "figures")
_OF_CHECKPOINTS = ("which", "key_prefix")


class EncoderConfig(Frozen):
    """One encoder: a family, and a checkpoint, a name at the family's own source, or a random architecture.

    `input` overrides single fields of the InputSpec, ImageSpec or ClipSpec of the weights; the report names them.
    `options` are those of the family, such as `num_slices` of litemedsam. `layer` is the number of the block, from 1,
    that features are made of, where it is not the last.
    """

    family: str
    checkpoint: str | None = None
    hub: str | None = None
    random: dict[str, Any] | None = None
    which: Literal["context", "target"] = "context"
    key_prefix: str | None = None
    input: dict[str, Any] = Field(default_factory=dict)
    options: dict[str, Any] = Field(default_factory=dict)
    layer: Annotated[int, Field(gt=0)] | None = None

    @model_serializer(mode="wrap")
    def _effective(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what says how to read a checkpoint where there is none."""
        without = {name for name in ("checkpoint", "hub", "random", "layer") if getattr(self, name) is None}
        without |= set(_OF_CHECKPOINTS) if self.checkpoint is None else set()
        return {name: value for name, value in dump(self).items() if name not in without}

    @model_validator(mode="after")
    def _one_source(self) -> "EncoderConfig":
        if sum(source is not None for source in (self.checkpoint, self.hub, self.random)) != 1:
            raise ValueError(
                "an encoder has either `checkpoint: PATH`, `hub: NAME` or `random: {architecture}`; give exactly one"
            )
        if self.checkpoint is None:
            what = "random weights have none" if self.hub is None else "a hub name has none"
            for key in _OF_CHECKPOINTS:
                if key in self.model_fields_set:
                    raise ValueError(f"`{key}` says what to read from a checkpoint; {what}")
        return self


class Features(Frozen):
    """What is kept of the tokens of a volume, image or clip.

    Args:
        pooling: to one vector; `grid` keeps a coarser grid of tokens, `tokens` every token. Recipes on tokens read the
            cells or the tokens, recipes on vectors the flattened cells or the mean of the tokens.
        views: augmented views of each training sample whose tokens are kept too, changed by `augment`.
    """

    pooling: Literal["mean", "max", "cls", "grid", "tokens"] = "mean"
    grid: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]] | None = None
    dtype: Literal["fp32", "bf16"] = "fp32"
    views: Annotated[int, Field(ge=0, le=64)] = 0
    augment: Augment = Augment()

    @property
    def vector_pooling(self) -> Literal["mean", "max", "cls", "grid"]:
        """How tokens become the vector that recipes on vectors read."""
        return "mean" if self.pooling == "tokens" else self.pooling

    @property
    def keeps_tokens(self) -> bool:
        """Whether recipes on tokens find any."""
        return self.pooling in ("tokens", "grid")

    @model_serializer(mode="wrap")
    def _effective(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without views where there are none."""
        without = {"views", "augment"} if self.views == 0 else set()
        return {name: value for name, value in dump(self).items() if name not in without}

    @model_validator(mode="after")
    def _views_differ(self) -> "Features":
        if (self.views > 0) == self.augment.is_off:
            raise ValueError("features.views, a number, and features.augment, what changes them, go together")
        if self.views and not self.keeps_tokens:
            raise ValueError("features.views are views of tokens; set features.pooling to tokens or grid")
        return self

    @model_validator(mode="after")
    def _grid_given(self) -> "Features":
        if (self.pooling == "grid") != (self.grid is not None):
            raise ValueError("features.grid, such as [2, 3, 3], goes with features.pooling: grid, and only with it")
        return self


class KFolds(Frozen):
    """Stratified K-fold grouped by patient, in place of `data.split`.

    Fold j is the test split of round j and fold j + 1 its val split, so that choosing never sees the fold
    that is scored. With `nested` every fold but fold j chooses once, trained on the others.
    """

    k: Annotated[int, Field(ge=3, le=50)]
    nested: bool = False
    seed: Annotated[int, Field(ge=0)] = 0


class LeaveOut(Frozen):
    """One round for each value of a domain column, which is its test split; val is a part of the other domains."""

    leave_out: str
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.15
    seed: Annotated[int, Field(ge=0)] = 0

    @property
    def column(self) -> str:
        """The domain column."""
        return self.leave_out


class EachDomain(Frozen):
    """One round for each value of a domain column, which trains and chooses; all domains are tested in every round."""

    each: str
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.15
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.3
    seed: Annotated[int, Field(ge=0)] = 0

    @property
    def column(self) -> str:
        """The domain column."""
        return self.each

    @model_validator(mode="after")
    def _leaves_train(self) -> "EachDomain":
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"val_fraction and test_fraction leave nothing to train on: {self.val_fraction:g} + "
                f"{self.test_fraction:g}"
            )
        return self


def _form_of_folds(folds: Any) -> str | None:
    """Which kind of folds a value is, so that errors speak of that one alone."""
    if isinstance(folds, KFolds | LeaveOut | EachDomain):
        return type(folds).__name__
    forms = {"k": "KFolds", "leave_out": "LeaveOut", "each": "EachDomain"}
    named = [form for key, form in forms.items() if key in folds] if isinstance(folds, dict) else []
    return named[0] if len(named) == 1 else None


Folds = Annotated[
    Annotated[KFolds, Tag("KFolds")] | Annotated[LeaveOut, Tag("LeaveOut")] | Annotated[EachDomain, Tag("EachDomain")],
    Discriminator(
        _form_of_folds,
        custom_error_type="folds_form",
        custom_error_message="folds are {k: 5}, {leave_out: COLUMN} or {each: COLUMN}, one of them; the column is one "
        "of data.domains",
    ),
]


class Leaks(Frozen):
    """The leak gate: what it finds and may pass all the same, and when files are looked at.

    `pixels: before` decodes every file once before encoders begin, and keeps what it saw beside the features; `during`
    spares that pass and looks while encoders run, so that a leak in the pixels is refused only after them.
    """

    accept: tuple[LeakCode, ...] = ()
    pixels: Literal["before", "during"] = "before"

    @field_validator("accept", mode="before")
    @classmethod
    def _may_be_accepted(cls, codes: Any) -> Any:
        named = codes if isinstance(codes, list | tuple) else []
        if never := [code for code in named if code in NEVER_ACCEPTED]:
            raise ValueError(f"{never} contradict the study itself and cannot be accepted; mend the table")
        return codes


class FewShot(Frozen):
    """How much training patients matter: heads on features trained once more on a few patients of each class.

    `few_shot: [5, 10, 25]` is short for `{patients: [5, 10, 25]}`.
    """

    patients: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)]
    draws: Annotated[int, Field(ge=1, le=100)] = 5
    seed: Annotated[int, Field(ge=0)] = 0

    @field_validator("patients")
    @classmethod
    def _rising(cls, patients: tuple[int, ...]) -> tuple[int, ...]:
        if list(patients) != sorted(set(patients)):
            raise ValueError(f"give each number once, rising; got {list(patients)}")
        return patients


class Intervals(Frozen):
    """The patient-clustered bootstrap."""

    resamples: Annotated[int, Field(ge=200, le=100_000)] = 2000
    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    method: Literal["percentile", "bca"] = "percentile"
    seed: Annotated[int, Field(ge=0)] = 0


class S3(Frozen):
    """Where an S3-compatible store answers. Keys come from the environment, never from a study.

    `etags_are_md5: false` is for buckets encrypted with own keys (SSE-KMS, SSE-C): their ETags are no checksums.
    """

    endpoint: str | None = None
    region: str | None = None
    etags_are_md5: bool = True


class Cache(Frozen):
    """Local copies of remote files, bounded."""

    dir: str = "~/.cache/vitreous/files"
    max_gb: Annotated[float, Field(gt=0)] = 50


class StudyConfig(Frozen):
    """The question: data × encoders × recipes × seeds."""

    name: Name
    data: Data
    encoders: Annotated[dict[Name, EncoderConfig], Field(min_length=1)]
    recipes: Annotated[dict[Name, Recipe], Field(min_length=1)]
    ensembles: dict[Name, Ensemble] = Field(default_factory=dict)
    baseline: str | None = None
    floors: tuple[Floor, ...] = ("majority", "shuffled", "untrained", "pixels", "columns")
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0, 1, 2)
    folds: Folds | None = None
    few_shot: FewShot | None = None
    metric: MetricName = "balanced_accuracy"
    features: Features = Features()
    intervals: Intervals = Intervals()
    search: SearchConfig | None = None
    device: Literal["auto", "cpu", "cuda", "mps", "xla"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    batch_size: Annotated[int, Field(gt=0)] | Literal["auto"] = "auto"
    workers: Annotated[int, Field(gt=0)] | Literal["auto"] = "auto"
    tracker: Literal["tensorboard", "wandb", "mlflow"] | None = None
    leaks: Leaks = Leaks()
    s3: S3 = S3()
    runs: str = "runs"
    store: str = "~/.cache/vitreous/features"
    cache: Cache = Cache()

    @model_serializer(mode="wrap")
    def _effective(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the split that folds replace, and without a search where there is none."""
        values: dict[str, Any] = dump(self)
        if self.search is None:
            values.pop("search", None)
        for name in ("ensembles", "baseline"):
            if not getattr(self, name):
                values.pop(name, None)
        if self.folds is not None:
            values["data"].pop("split", None)
        return values

    @model_validator(mode="before")
    @classmethod
    def _metric_of_labels(cls, values: Any) -> Any:
        """Several labels a sample are judged by mAP unless the study says otherwise."""
        data = values.get("data") if isinstance(values, dict) else None
        label = data.get("label") if isinstance(data, dict) else getattr(data, "label", None)
        if isinstance(label, list | tuple) and "metric" not in values:
            return {**values, "metric": METRICS_OF["multi_label"][0]}
        return values

    @field_validator("few_shot", mode="before")
    @classmethod
    def _patients_alone(cls, value: Any) -> Any:
        return {"patients": value} if isinstance(value, list | tuple) else value

    @field_validator("seeds", "floors")
    @classmethod
    def _distinct(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) != len(values):
            raise ValueError(f"lists a value twice: {list(values)}")
        return values

    @model_validator(mode="after")
    def _names(self) -> "StudyConfig":
        problems = ["encoders.floor: the name is taken by the floor rows"] if "floor" in self.encoders else []
        problems += [
            f"encoders.{name}: the name is taken by a folder of the run directory"
            for name in self.encoders
            if name in _FOLDERS
        ]
        if self.baseline is not None and self.baseline not in (known := self._row_names()):
            problems.append(f"baseline: {self.baseline!r} is no row encoder/recipe of this study; {', '.join(known)}")
        problems += ensemble_problems(self.ensembles, dict(self.encoders), dict(self.recipes))
        problems += [
            f"recipes.{name}: fold and seed names are taken"
            for name in self.recipes
            if re.fullmatch(r"(fold|seed)\d+", name)
        ]
        on_tokens = [name for name, recipe in self.recipes.items() if isinstance(recipe, AttentiveProbe)]
        if on_tokens and not self.features.keeps_tokens:
            problems.append(
                f"recipes.{on_tokens[0]}: reads tokens, and features.pooling: {self.features.pooling} keeps one "
                "vector; set it to tokens, or to grid with features.grid"
            )
        if self.features.views and not on_tokens:
            problems.append("features.views has no effect: no recipe reads tokens; leave it out")
        task = self.data.task
        if self.metric not in METRICS_OF[task]:
            kind = "one class a sample" if task == "multi_class" else "several labels a sample"
            problems.append(f"metric: {self.metric!r} is not for {kind}; known are {', '.join(METRICS_OF[task])}")
        problems += [problem for name, recipe in self.recipes.items() for problem in _task_problems(name, recipe, task)]
        masks = getattr(self.data, "masks", None)
        problems += [problem for name, one in self.recipes.items() for problem in _mask_problems(name, one, masks)]
        for name, recipe in self.recipes.items():
            weights = [recipe.class_weights] if hasattr(recipe, "class_weights") else []
            weights += list(recipe.grid.class_weights or ()) if hasattr(recipe, "grid") else []
            problems += [
                f"recipes.{name}.class_weights: {len(given)} weights for {len(self.data.classes)} classes"
                for given in weights
                if isinstance(given, tuple) and len(given) != len(self.data.classes)
            ]
        if isinstance(self.folds, LeaveOut | EachDomain):
            domains = getattr(self.data, "domains", ())
            if self.folds.column not in domains:
                problems.append(
                    f"folds: {self.folds.column!r} is no domain; data.domains "
                    + (f"are {list(domains)}" if domains else "names none")
                )
        has_choice = any(getattr(recipe, "num_settings", 1) > 1 for recipe in self.recipes.values())
        if isinstance(self.folds, KFolds) and self.folds.nested and not has_choice:
            problems.append(
                "folds.nested: no recipe has more than one setting to choose between, so nesting would change nothing; "
                "leave it out, or give a recipe a grid"
            )
        on_features = (LinearProbe, MlpProbe, LogisticRegression, Knn)
        if self.few_shot is not None and not any(isinstance(one, on_features) for one in self.recipes.values()):
            problems.append(
                "few_shot: trains heads on pooled features, and every recipe here reads pixels or tokens; leave it out"
            )
        if self.folds is not None and "split" in self.data.model_fields_set:
            problems.append("folds and data.split both say who is in test; leave one of them out")
        if self.folds is not None and self.data.kind == "npz":
            problems.append("data.kind npz comes with its own splits; folds cannot replace them")
        if (
            self.data.kind == "frames"
            and self.folds is None
            and self.data.split is None
            and "{split}" not in self.data.pattern
        ):
            problems.append(
                "data.split: required where the pattern of the frames names no {split}: a column, {fractions: […]}, or "
                "a file of ids of videos for each split; or set folds"
            )
        if self.data.kind == "csv":
            is_split = self.data.split is not None or isinstance(self.data.table, dict)
            if self.folds is None and not is_split:
                problems.append(
                    "data.split: required with one table: a column, {fractions: […]}, or a file of ids for each split; "
                    "or set folds"
                )
            if self.folds is not None and isinstance(self.data.table, dict):
                problems.append("data.table is given for each split; folds need one table of everybody")
        if self.search is not None:
            problems += self._resolve_search(self.search)[1]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _row_names(self) -> list[str]:
        """Rows of encoders and ensembles; floors come and go by what the data allow."""
        rows = [f"{encoder}/{recipe}" for encoder in self.encoders for recipe in self.recipes]
        return rows + [f"ensemble/{name}" for name in self.ensembles]

    def resolved_search(self) -> Search:
        """What `vitreous search` searches; a study without `search` takes the defaults.

        Raises:
            ConfigError: with every reason why it cannot be searched.
        """
        search, problems = self._resolve_search(self.search or SearchConfig())
        if search is None:
            raise ConfigError(problems)
        return search

    def _resolve_search(self, settings: SearchConfig) -> tuple[Search | None, list[str]]:
        return resolve_search(
            settings,
            encoders={name: encoder.random is not None for name, encoder in self.encoders.items()},
            recipes=self.recipes,
            num_seeds=len(self.seeds),
            num_classes=len(self.data.classes),
            has_folds=self.folds is not None,
        )


def _mask_problems(name: str, recipe: Recipe, masks: MaskData | None) -> list[str]:
    """What of a recipe's segmentation does not go with the study's masks."""
    segmentation = getattr(recipe, "segmentation", None)
    if segmentation is None:
        return []
    if masks is None:
        return [f"recipes.{name}.segmentation: the study names no masks; give data.masks (kind frames)"]
    given = segmentation.class_weights
    if isinstance(given, tuple) and len(given) != len(masks.classes):
        return [
            f"recipes.{name}.segmentation.class_weights: {len(given)} weights for {len(masks.classes)} classes of masks"
        ]
    return []


def _task_problems(name: str, recipe: Recipe, task: Task) -> list[str]:
    """What of a recipe does not go with this kind of label."""
    problems = []
    monitor = getattr(recipe, "monitor", None)
    if monitor is not None and monitor not in METRICS_OF[task]:
        problems.append(f"recipes.{name}.monitor: {monitor!r}; known are {', '.join(METRICS_OF[task])}")
    loss = getattr(recipe, "loss", None)
    if loss is not None and (problem := loss_problem(loss, is_of_labels=task == "multi_label")):
        problems.append(f"recipes.{name}: {problem}")
    return problems


# Keys that change no number, each with why: a run continues under other values of them, and says so.
PLACES = {
    "runs": "where run directories lie",
    "store": "where features are kept",
    "cache": "where copies of remote files are kept",
    "tracker": "where the leaderboard is shown once more",
    "workers": "how many threads decode files",
    "leaks": "which leaks are accepted by name; a refusal or the report says so",
}
