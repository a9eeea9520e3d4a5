"""``power.json``: the smallest difference that a cohort can show, and how many patients another would take, in words.

Read the numbers as rough: the standard error they start from is itself an estimate, of these two rows.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitreous.core.errors import UserError
from vitreous.core.files import write_json
from vitreous.core.undefined import Undefined
from vitreous.evidence.leaderboard_reach import LeaderboardReach, PairReach
from vitreous.evidence.power import Reach
from vitreous.evidence.task_scores import TASK_SCORES

SCHEMA_VERSION = 1
FILE = "power.json"
_MANY = 1_000_000


@dataclass(frozen=True)
class PowerSummary:
    """``power.json`` read back.

    Args:
        sentences: for reports and the terminal.
    """

    reach: LeaderboardReach
    sentences: tuple[str, ...]


def power_sentences(reach: LeaderboardReach) -> list[str]:
    """One sentence on what could be found, one on what the observed difference would take; or why there is none."""
    pair = None if reach.runner_up is None else reach.pair(reach.runner_up)
    if pair is None:
        return []
    titles = {name: one.title for scores in reversed(TASK_SCORES.values()) for name, one in scores.metrics.items()}
    title = titles.get(reach.metric, reach.metric)
    alone, among = pair.alone.smallest, pair.among_all.smallest
    if isinstance(alone, Undefined) or isinstance(among, Undefined):
        missing = alone if isinstance(alone, Undefined) else among
        assert isinstance(missing, Undefined)
        return [f"What difference {reach.num_patients} test patients can show cannot be said: {missing.reason}."]
    said = [
        f"With {reach.num_patients} test patients, two rows like the best two are told apart with {reach.power:.0%} "
        f"probability if they truly differ by {_shown(among)} in {title}"
        + (f" ({_shown(alone)} if they were the only two compared)." if reach.num_pairs > 1 else ".")
    ]
    needed = pair.among_all.needed_for_observed
    if pair.is_apart or isinstance(pair.among_all.observed, Undefined):
        return said
    if isinstance(needed, Undefined):
        return [*said, f"Between {pair.row} and {pair.other} no difference was observed."]
    many = "more than a million" if needed > _MANY else f"about {_rounded(needed):,}"
    return [
        *said,
        f"If {pair.row} and {pair.other} truly differ by the {pair.among_all.observed:.3f} observed here, {many} test "
        "patients would be needed to tell them apart.",
    ]


def write_power(reach: LeaderboardReach, run_dir: Path) -> None:
    """Write ``power.json``: best row against every other, and the sentences."""
    write_json(
        run_dir / FILE,
        {
            "schema_version": SCHEMA_VERSION,
            "metric": reach.metric,
            "num_patients": reach.num_patients,
            "power": reach.power,
            "alpha": reach.alpha,
            "num_pairs": reach.num_pairs,
            "best": reach.best,
            "runner_up": reach.runner_up,
            "pairs": [
                {
                    "row": pair.row,
                    "other": pair.other,
                    "is_apart": pair.is_apart,
                    "alone": _plain(pair.alone),
                    "among_all": _plain(pair.among_all),
                }
                for pair in reach.pairs
            ],
            "sentences": power_sentences(reach),
        },
    )


def read_power(run_dir: Path) -> PowerSummary:
    """What :func:`write_power` wrote.

    Raises:
        UserError: the run has no such file.
    """
    path = run_dir / FILE
    if not path.exists():
        raise UserError(f"{run_dir}: no {FILE}; `vitreous report {run_dir}` writes it.")
    kept = json.loads(path.read_text())
    pairs = tuple(
        PairReach(pair["row"], pair["other"], _reach(pair["alone"]), _reach(pair["among_all"]), pair["is_apart"])
        for pair in kept["pairs"]
    )
    reach = LeaderboardReach(
        kept["metric"],
        kept["num_patients"],
        kept["power"],
        kept["alpha"],
        kept["num_pairs"],
        kept["best"],
        kept["runner_up"],
        pairs,
    )
    return PowerSummary(reach, tuple(kept["sentences"]))


def _plain(reach: Reach) -> dict[str, Any]:
    """Numbers as they are; what is undefined as null with its reason beside it."""
    plain: dict[str, Any] = {}
    for name, value in vars(reach).items():
        plain[name] = None if isinstance(value, Undefined) else value
        if isinstance(value, Undefined):
            plain[f"{name}_undefined"] = value.reason
    return plain


def _reach(plain: Mapping[str, Any]) -> Reach:
    def read(name: str) -> Any:
        return Undefined(plain[f"{name}_undefined"]) if plain[name] is None else plain[name]

    return Reach(
        plain["num_patients"],
        read("observed"),
        read("standard_error"),
        read("smallest"),
        read("needed_for_observed"),
        plain["power"],
        plain["alpha"],
    )


def _shown(difference: float) -> str:
    """Two digits.

    >>> _shown(0.1), _shown(0.0042)
    ('0.10', '0.0042')
    """
    return f"{difference:.2f}" if difference >= 0.095 else f"{difference:.2g}"


def _rounded(count: int) -> int:
    """To two digits: more would promise what the estimate cannot hold.

    >>> _rounded(9_347)
    9300
    """
    digits = max(0, len(str(count)) - 2)
    return round(count, -digits)
