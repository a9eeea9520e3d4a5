"""Finds an encoder's tensors among a file's names; all of them, or the load is refused."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from vitreous.core.errors import CheckpointError

_WRAPPERS = frozenset({"module", "_orig_mod"})  # of DataParallel and torch.compile, stacked in any order
_SHOWN = 10


@dataclass(frozen=True)
class Selection:
    """Tensors by the encoder's own names, and what was left out.

    Args:
        prefix: what stood in front of the names, wrappers removed.
        ignored: stored names by the rule that leaves them out.
    """

    tensors: dict[str, torch.Tensor]
    prefix: str
    ignored: dict[str, tuple[str, ...]]


def strip_wrappers(tensors: Mapping[str, torch.Tensor], where: str) -> dict[str, torch.Tensor]:
    """Names without `module.` and `_orig_mod.`, wherever they stand.

    Raises:
        CheckpointError: two names become one.
    """
    stripped = {name: _strip(name) for name in tensors}
    if twice := [name for name, count in Counter(stripped.values()).items() if count > 1]:
        raise CheckpointError(
            f"{where}: {_listed(twice)} stand in the file with and without a module. or _orig_mod. wrapper. Save one."
        )
    return {stripped[name]: tensor for name, tensor in tensors.items()}


def _strip(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def select_tensors(
    tensors: Mapping[str, torch.Tensor],
    *,
    where: str,
    anchor: str | Sequence[str],
    prefixes: Sequence[str],
    rules: Mapping[str, tuple[str, ...]],
    key_prefix: str | None,
    wanted: str,
) -> Selection:
    """Take the tensors below the first prefix that holds `anchor`.

    Args:
        where: the file, for messages.
        anchor: name that every encoder of the family has; of several layouts one each, tried in order.
        prefixes: tried in order where `key_prefix` is None.
        rules: rule → beginnings of names that it leaves out, before or after the prefix.
        key_prefix: taken as it stands; all other names are then left out by that rule.
        wanted: what is being looked for, for messages.

    Raises:
        CheckpointError: no prefix holds the anchor.
    """
    stripped = strip_wrappers(tensors, where)
    candidates = prefixes if key_prefix is None else [_joined(key_prefix)]
    anchors = [anchor] if isinstance(anchor, str) else list(anchor)
    prefix = next((start for one in anchors for start in candidates if start + one in stripped), None)
    if prefix is None:
        there = next((one for one in anchors if any(name.endswith(one) for name in stripped)), anchors[0])
        raise CheckpointError(f"{where}: no {wanted} found; {_prefix_remedy(stripped, there, candidates)}")
    selected: dict[str, torch.Tensor] = {}
    ignored: dict[str, list[str]] = {}
    for name, tensor in stripped.items():
        own = name.removeprefix(prefix)
        rule = _rule_of(name, own, rules)
        if rule is None and not name.startswith(prefix) and key_prefix is not None:
            rule = f"outside key_prefix {key_prefix!r}"
        if rule is not None:
            ignored.setdefault(rule, []).append(name)
        else:
            selected[own if name.startswith(prefix) else name] = tensor
    return Selection(selected, prefix, {rule: tuple(sorted(names)) for rule, names in ignored.items()})


def _joined(key_prefix: str) -> str:
    bare = _strip(key_prefix.strip("."))
    return f"{bare}." if bare else ""


def _rule_of(name: str, own: str, rules: Mapping[str, tuple[str, ...]]) -> str | None:
    return next((rule for rule, begins in rules.items() if name.startswith(begins) or own.startswith(begins)), None)


def _prefix_remedy(stripped: Mapping[str, torch.Tensor], anchor: str, tried: Sequence[str]) -> str:
    found = sorted(name.removesuffix(anchor) for name in stripped if name.endswith("." + anchor))
    if anchor in stripped:
        found.insert(0, "")
    if found:
        choices = " or ".join(f"key_prefix={prefix!r}" for prefix in found)
        return f"{anchor} lies behind {', '.join(map(repr, found))}. Set {choices}."
    begins = Counter(name.partition(".")[0] for name in stripped).most_common(_SHOWN)
    return (
        f"no name ends in {anchor} (tried the prefixes {list(tried)}); names begin with "
        f"{', '.join(f'{begin!r} ({count})' for begin, count in begins)}. Is this another family?"
    )


def check_complete(
    where: str, selection: Selection, expected: Mapping[str, torch.Size], architecture: Mapping[str, object]
) -> None:
    """Every expected tensor is there in its shape, nothing else is, and every value is finite.

    Raises:
        CheckpointError: names what is missing, unexpected, of another shape or not finite.
    """
    found = selection.tensors
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    shapes = [
        f"{name}: file {tuple(found[name].shape)}, encoder {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and found[name].shape != shape
    ]
    problems = [
        f"{len(names)} {what}: {_listed(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if problems:
        matched = len(expected) - len(missing) - len(shapes)
        raise CheckpointError(
            f"{where}: {matched} of {len(expected)} encoder tensors matched below prefix {selection.prefix!r}; "
            f"{'; '.join(problems)}. Architecture read from the file: {dict(architecture)}. Take the family these "
            "weights belong to, or set key_prefix."
        )
    broken = [name for name, tensor in found.items() if tensor.is_floating_point() and not _is_finite(tensor)]
    if broken:
        raise CheckpointError(
            f"{where}: {len(broken)} tensors hold NaN or infinity: {_listed(broken)}. The training diverged or the "
            "file is damaged; take an earlier checkpoint."
        )


def _is_finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
