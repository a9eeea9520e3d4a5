"""What the catalog knows of a family of encoders."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from vitreous.core.input_spec import InputSpec


class Architecture(BaseModel):
    """Plain values that build a backbone; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Inferred:
    """An architecture read from a file, and where each value that tensors do not show came from."""

    architecture: Architecture
    sources: dict[str, str] = field(default_factory=dict)


Infer = Callable[[str, Mapping[str, torch.Tensor], Mapping[str, Any], Mapping[str, Any]], Inferred]


@dataclass(frozen=True)
class Family:
    """One row of the catalog.

    Args:
        architecture: fields, defaults and checks of the family's architecture.
        build: architecture → backbone (see `encoder.Backbone`), weights not yet meaningful.
        infer: (file, tensors, stored config, options) → architecture.
        default_spec: what the weights were trained on.
        anchor: name that every encoder of the family has.
        prefixes: which encoder → what may stand in front of its names, tried in order.
        rules: which encoder → rule → beginnings of names that the load leaves out.
        options: fields of the architecture that a study may set.
    """

    architecture: type[Architecture]
    build: Callable[[Any], nn.Module]
    infer: Infer
    default_spec: Callable[[Any], InputSpec]
    anchor: str
    prefixes: Mapping[str, tuple[str, ...]]
    rules: Mapping[str, Mapping[str, tuple[str, ...]]]
    options: frozenset[str]
