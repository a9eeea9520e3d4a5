"""A head that attends to the kept tokens of a frozen encoder."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vitreous.config.probe_recipes import PositiveInt, Probe


class AttentiveProbe(Probe):
    """Learned queries, multi-head cross-attention over tokens, norm, and a linear or MLP head.

    Args:
        heads, hidden: of the attention; `hidden` is a multiple of `heads`.
        queries: one for all classes or labels, or one per label, each with a head of its own.
        blocks: 1 is the cross-attention alone; more are self-attention blocks before it, as in the evaluation of
            V-JEPA 2 (4): all at the width of the tokens, with an MLP of four times that.
        head: a linear layer, or one hidden layer of `head_width`.
        max_member_gb: members of the grid are trained together up to so much memory.
    """

    kind: Literal["attentive_probe"]
    epochs: PositiveInt = 20
    batch_size: PositiveInt = 16
    lr: Annotated[float, Field(gt=0)] = 1.0e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    heads: PositiveInt = 8
    hidden: PositiveInt = 512
    queries: Literal["shared", "per_label"] = "shared"
    blocks: Annotated[int, Field(ge=1, le=12)] = 1
    head: Literal["linear", "mlp"] = "linear"
    head_width: PositiveInt = 512
    max_member_gb: Annotated[float, Field(gt=0)] = 2.0

    @property
    def _without_effect(self) -> set[str]:
        without = {"head_width"} if self.head == "linear" else set()
        return super()._without_effect | without | ({"hidden"} if self.blocks > 1 else set())

    @model_validator(mode="after")
    def _used(self) -> "AttentiveProbe":
        problems = []
        if self.hidden % self.heads and self.blocks == 1:
            problems.append(f"hidden ({self.hidden}) must be a multiple of heads ({self.heads})")
        if "hidden" in self.model_fields_set and self.blocks > 1:
            problems.append("hidden has no effect with blocks, which have the width of the tokens")
        if "head_width" in self.model_fields_set and self.head == "linear":
            problems.append("head_width has no effect with head: linear")
        if problems:
            raise ValueError("; ".join(problems))
        return self
