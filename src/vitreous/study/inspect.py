"""`vitreous inspect CHECKPOINT`: the load receipt, in the terminal."""

import json
from collections.abc import Sequence
from typing import Any, Literal

import yaml
from rich.console import Console
from rich.table import Table

from vitreous.core.errors import ConfigError
from vitreous.core.input_spec import Modality
from vitreous.encoders.catalog import FAMILIES, load_encoder
from vitreous.encoders.encoder import Encoder

_SHOWN_NAMES = 4


def print_receipt(
    checkpoint: str,
    family: str,
    *,
    which: Literal["context", "target"],
    key_prefix: str | None,
    modality: Modality | None,
    options: Sequence[str],
    as_json: bool,
) -> None:
    """Load a checkpoint as `run` would and show what became of each of its tensors.

    Args:
        modality: whose InputSpec is shown; None is the family's usual one.

    Raises:
        CheckpointError: the load is refused.
        ConfigError: the family or one of its options is unknown, or it does not take the modality.
    """
    if family not in FAMILIES:
        raise ConfigError(f"--family {family}: unknown; known are {', '.join(FAMILIES)}.")
    encoder = load_encoder(
        checkpoint, family, which=which, key_prefix=key_prefix, modality=modality, **_parse_options(options)
    )
    console = Console()
    if as_json:
        console.print_json(json.dumps(encoder.receipt.to_json()))
    else:
        console.print(_receipt_table(checkpoint, encoder))


def _parse_options(options: Sequence[str]) -> dict[str, Any]:
    parsed = {}
    for option in options:
        name, separator, value = option.partition("=")
        if not separator:
            raise ConfigError(f"--option {option}: is not of the form key=value.")
        parsed[name] = yaml.safe_load(value)
    return parsed


def _receipt_table(checkpoint: str, encoder: Encoder) -> Table:
    receipt = encoder.receipt
    table = Table(title=f"{checkpoint}: {receipt.family}", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    share = receipt.tensors_matched / receipt.tensors_total
    table.add_row(
        "matched",
        f"{receipt.tensors_matched} of {receipt.tensors_total} tensors ({share:.0%}), "
        f"{receipt.bytes_matched} of {receipt.bytes_total} bytes",
    )
    table.add_row("parameters", f"{receipt.parameters / 1e6:.1f} M")
    table.add_row("encoder", receipt.which)
    for rule, names in receipt.ignored_by_rule.items():
        more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
        table.add_row("ignored", f"{rule}: {', '.join(names[:_SHOWN_NAMES])}{more}")
    for name, value in receipt.inferred.items():
        table.add_row("inferred", f"{name}: {value}")
    table.add_row("input", yaml.safe_dump(encoder.spec.model_dump(mode="json"), default_flow_style=None).strip())
    if receipt.layer is not None:
        table.add_row("layer", f"tokens of block {receipt.layer}")
    if receipt.positions is not None:
        table.add_row("positions", receipt.positions)
    distances = receipt.distance_from_random
    if distances:
        farthest = max(distances, key=lambda layer: distances[layer])
        nearest = min(distances, key=lambda layer: distances[layer])
        table.add_row(
            "distance from random", f"{nearest} {distances[nearest]:.3f} … {farthest} {distances[farthest]:.3f}"
        )
    table.add_row("file sha256", str(receipt.file_sha256))
    table.add_row("weights hash", encoder.weights_hash)
    return table
