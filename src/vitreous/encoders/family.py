"""What the catalog knows of a family of encoders."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from vitreous.core.input_spec import AnySpec, Modality

Size3 = tuple[int, int, int]


class Architecture(BaseModel):
    """Plain values that build a backbone; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Inferred:
    """An architecture read from a file, and where each value that tensors do not show came from.

    Args:
        tensors: those of the encoder under its own names, where they are not the file's as they stand.
        ignored: names of the file by the rule that leaves them out, where it takes the architecture to know them.
    """

    architecture: Architecture
    sources: dict[str, str] = field(default_factory=dict)
    tensors: Mapping[str, torch.Tensor] | None = None
    ignored: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Fetched:
    """Weights from a family's own source, under their names there, where they lay, and the config beside them."""

    tensors: Mapping[str, torch.Tensor]
    location: str
    config: Mapping[str, Any] = field(default_factory=dict)


Infer = Callable[[str, Mapping[str, torch.Tensor], Mapping[str, Any], Mapping[str, Any]], Inferred]


@dataclass(frozen=True)
class Family:
    """One row of the catalog.

    Args:
        architecture: fields, defaults and checks of the family's architecture.
        build: architecture → backbone (see `encoder.Backbone`), weights not yet meaningful.
        infer: (file, tensors, stored config, options) → architecture.
        default_specs: for each modality the family takes, what the weights were trained on; the first is the usual one.
        anchor: name that every encoder of the family has (of several layouts one each), or how it follows from the
            options.
        prefixes: which encoder → what may stand in front of its names, tried in order.
        rules: which encoder → rule → beginnings of names that the load leaves out.
        options: fields of the architecture that a study may set.
        fixed: for a modality, fields that it decides; a study may not set them.
        holder: what stands before the names of the weights inside the backbone.
        set_input_size: brings a loaded backbone to another size of input and says what it changed; without it, the
            weights fit what `grid_of` takes.
        fetch: name of a model → its published weights, from the family's own source.
        frame_by_frame: whether clips go through the backbone frame by frame, as it takes images.
    """

    architecture: type[Architecture]
    build: Callable[[Any], nn.Module]
    infer: Infer
    default_specs: Mapping[Modality, Callable[[Any], AnySpec]]
    anchor: str | tuple[str, ...] | Callable[[Mapping[str, Any]], str]
    prefixes: Mapping[str, tuple[str, ...]]
    rules: Mapping[str, Mapping[str, tuple[str, ...]]]
    options: frozenset[str]
    fixed: Mapping[Modality, Mapping[str, Any]] = field(default_factory=dict)
    holder: str = ""
    set_input_size: Callable[[Any, Size3], str | None] | None = None
    fetch: Callable[[str], Fetched] | None = None
    frame_by_frame: bool = False
