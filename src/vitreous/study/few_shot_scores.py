"""The points of few-shot curves, from what the run left on disk: test labels are those of its own predictions."""

from collections.abc import Sequence

import numpy as np

from vitreous.config.study import FewShot, StudyConfig
from vitreous.core.predictions import Predictions, join_predictions
from vitreous.core.streams import numpy_stream
from vitreous.core.undefined import Undefined
from vitreous.evidence.calibration import restrict
from vitreous.evidence.intervals import bootstrap_intervals, resample_weights
from vitreous.evidence.task_scores import score_rows
from vitreous.reports.few_shot import FewShotScore
from vitreous.reports.leaderboard import Leaderboard
from vitreous.study.domains import read_rounds
from vitreous.study.few_shot import Drawn, read_few_shot, read_num_train
from vitreous.study.rows import KeptRow, read_kept_rows
from vitreous.study.run_directory import RunDirectory

_Heads = Sequence[tuple[Drawn, Predictions | None]]


def few_shot_scores(directory: RunDirectory, config: StudyConfig, leaderboard: Leaderboard) -> list[FewShotScore]:
    """For each row with a curve: every draw of every size, their mean with bounds, then the row's own result."""
    if config.few_shot is None:
        return []
    scores = []
    for kept in read_kept_rows(directory):
        heads = _read_row(directory, config, kept)
        if heads:
            for patients in config.few_shot.patients:
                scores += _of_size(config, config.few_shot, kept, patients, heads)
            scores.append(_of_all(directory, config, kept, leaderboard))
    return scores


def _read_row(directory: RunDirectory, config: StudyConfig, kept: KeptRow) -> list[_Heads]:
    """Heads by round."""
    rounds = read_rounds(directory)
    by_round: list[_Heads] = []
    for fold in kept.folds:
        folder = directory.unit(kept.encoder, kept.recipe, kept.seeds[0], fold)
        test = Predictions.read(folder / "test_preds.parquet", config.data.classes)
        heads = read_few_shot(directory.round(kept.encoder, kept.recipe, fold), test)
        if rounds is not None and rounds.kind == "each" and fold is not None:
            own = np.array(rounds.own_patients(fold), dtype=np.str_)
            heads = [(drawn, None if one is None else restrict(one, own)) for drawn, one in heads]
        if heads:
            by_round.append(heads)
    return by_round


def _of_size(
    config: StudyConfig, settings: FewShot, kept: KeptRow, patients: int, by_round: Sequence[_Heads]
) -> list[FewShotScore]:
    alone = Undefined("a single draw; the mean over draws has bounds")
    scores, pooled = [], []
    for draw in range(settings.draws):
        heads = [
            next(pair for pair in heads if (pair[0].patients, pair[0].draw) == (patients, draw)) for heads in by_round
        ]
        tests = [one for _, one in heads if one is not None]
        missing = [drawn.val for drawn, _ in heads if isinstance(drawn.val, Undefined)]
        defined = [drawn.val for drawn, _ in heads if not isinstance(drawn.val, Undefined)]
        num_train = float(np.mean([drawn.num_train for drawn, _ in heads]))
        val: float | Undefined = missing[0] if missing else float(np.mean(defined))
        test: float | Undefined = missing[0] if missing else Undefined("no head could be trained")
        if not missing:
            scored = join_predictions(tests).scored(config.data.aggregate)
            pooled.append(scored)
            test = score_rows(scored)[config.metric]
        scores.append(
            FewShotScore(
                kept.encoder, kept.recipe, config.metric, patients, draw, num_train, val, test, alone, alone, alone
            )
        )
    return [*scores, _mean(config, scores, pooled)]


def _mean(config: StudyConfig, scores: Sequence[FewShotScore], pooled: Sequence[Predictions]) -> FewShotScore:
    """Over the draws; patients of test are resampled, draws are not."""
    first, val = scores[0], [one.val for one in scores]
    num_train = float(np.mean([one.num_train for one in scores]))
    head = (first.encoder, first.recipe, first.metric, first.patients, None, num_train)
    missing = [one for one in [*val, *(one.test for one in scores)] if isinstance(one, Undefined)]
    if missing:
        return FewShotScore(*head, missing[0], missing[0], missing[0], missing[0], missing[0])
    weights_RN = resample_weights(
        pooled[0].patient_id_N,
        num_resamples=config.intervals.resamples,
        rng=numpy_stream(config.intervals.seed, "bootstrap"),
    )
    found = bootstrap_intervals(pooled, weights_RN, config.intervals.level, [config.metric])[config.metric]
    tests = [float(one.test) for one in scores if not isinstance(one.test, Undefined)]
    spread: float | Undefined = float(np.std(tests, ddof=1)) if len(tests) > 1 else Undefined("one draw has no spread")
    mean = float(np.mean([float(one) for one in val if not isinstance(one, Undefined)]))
    return FewShotScore(*head, mean, found.value, found.low, found.high, spread)


def _of_all(directory: RunDirectory, config: StudyConfig, kept: KeptRow, leaderboard: Leaderboard) -> FewShotScore:
    row = leaderboard.row(f"{kept.encoder} / {kept.recipe}")
    found = row.test[config.metric]
    return FewShotScore(
        kept.encoder, kept.recipe, config.metric, None, None, _num_train(directory, kept), row.val, found.value,
        found.low, found.high, row.seed_sd,
    )  # fmt: skip


def _num_train(directory: RunDirectory, kept: KeptRow) -> float:
    """Training patients of a round, on average."""
    return float(np.mean([read_num_train(directory.round(kept.encoder, kept.recipe, fold)) for fold in kept.folds]))
