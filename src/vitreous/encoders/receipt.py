"""The load receipt: what of a file became the encoder, what was left out by which rule, and what was inferred."""

from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Receipt:
    """Proof of a load.

    Args:
        path: the checkpoint's path, or the place at the hub; None for random weights.
        file_sha256: of the whole file; None for random weights and those of a hub.
        modality: ``image``, ``volume`` or ``clip``, what the encoder is given.
        origin: ``checkpoint``, ``hub NAME``, or ``random, seed N``.
        which: ``context``, ``target``, or ``only`` where the file holds one encoder.
        container: top-level key of the file under which the weights lay.
        key_prefix: what stood in front of the encoder's own names.
        tensors_matched, tensors_total: of the encoder's tensors (parameters and stored statistics).
        bytes_matched, bytes_total: of the same, as stored.
        missing, unexpected: names; both are empty, or there would be no encoder.
        ignored_by_rule: names left out, by the rule that says so.
        inferred: architecture read from the tensors, and where each other value came from.
        config: the configuration stored in the file.
        facts: other plain values of the file, such as epoch and loss.
        parameters: number of learned values of the encoder.
        weights_hash: of the encoder, whatever the file.
        distance_from_random: per layer, see :func:`vitreous.encoders.distance.distance_from_random`.
        spec: the InputSpec or ImageSpec in force.
        spec_override: the family's own one where the study replaced it, else None.
        positions: which learned positions were interpolated for another size of input; None where none were.
        layer: number of the block, from 1, that the tokens are made of; None is the last.
        precision: ``fp32`` or ``bf16`` matrix products.
    """

    family: str
    modality: str
    origin: str
    path: str | None
    file_sha256: str | None
    which: str
    container: str
    key_prefix: str
    tensors_matched: int
    tensors_total: int
    bytes_matched: int
    bytes_total: int
    parameters: int
    weights_hash: str
    inferred: dict[str, Any]
    config: dict[str, Any]
    facts: dict[str, Any]
    spec: dict[str, Any]
    spec_override: dict[str, Any] | None
    precision: str
    distance_from_random: dict[str, float]
    positions: str | None = None
    layer: int | None = None
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    ignored_by_rule: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def matched_share(self) -> float:
        """Matched tensors over the encoder's tensors, 0 to 1."""
        return self.tensors_matched / self.tensors_total if self.tensors_total else 1.0

    def to_json(self) -> dict[str, Any]:
        """Plain values for `receipts/<encoder>.json`."""
        return {"schema_version": SCHEMA_VERSION, "matched_share": self.matched_share, **asdict(self)}
