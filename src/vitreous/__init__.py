"""Vitreous adapts pretrained vision encoders to clinical classification and says, with evidence, which to trust.

Names are loaded when first used, so that ``import vitreous`` and ``vitreous --help`` cost nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitreous.core.errors import CheckpointError as CheckpointError
    from vitreous.core.errors import ConfigError as ConfigError
    from vitreous.core.errors import InputError as InputError
    from vitreous.core.errors import SampleError as SampleError
    from vitreous.core.errors import UserError as UserError
    from vitreous.core.errors import VitreousError as VitreousError
    from vitreous.core.finding import Finding as Finding
    from vitreous.core.input_spec import InputSpec as InputSpec
    from vitreous.core.predictions import Predictions as Predictions
    from vitreous.core.undefined import Undefined as Undefined
    from vitreous.encoders.catalog import build_random_encoder as build_random_encoder
    from vitreous.encoders.catalog import fetch_encoder as fetch_encoder
    from vitreous.encoders.catalog import load_encoder as load_encoder
    from vitreous.encoders.encoder import Encoder as Encoder
    from vitreous.evidence.scores import score_predictions as score_predictions
    from vitreous.inputs.decode import decode_volume as decode_volume
    from vitreous.inputs.preprocessing import preprocess_volume as preprocess_volume
    from vitreous.inputs.volume import Volume as Volume
    from vitreous.recipes.exported_files import load_exported as load_exported
    from vitreous.study.study import Result as Result
    from vitreous.study.study import Study as Study

__version__ = "0.1.0"

_HOMES = {
    "CheckpointError": "core.errors",
    "ConfigError": "core.errors",
    "Encoder": "encoders.encoder",
    "Finding": "core.finding",
    "InputError": "core.errors",
    "InputSpec": "core.input_spec",
    "Predictions": "core.predictions",
    "Result": "study.study",
    "SampleError": "core.errors",
    "Study": "study.study",
    "Undefined": "core.undefined",
    "UserError": "core.errors",
    "VitreousError": "core.errors",
    "Volume": "inputs.volume",
    "build_random_encoder": "encoders.catalog",
    "decode_volume": "inputs.decode",
    "fetch_encoder": "encoders.catalog",
    "load_encoder": "encoders.catalog",
    "load_exported": "recipes.exported_files",
    "preprocess_volume": "inputs.preprocessing",
    "score_predictions": "evidence.scores",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vitreous' has no attribute {name!r}")
    return getattr(importlib.import_module(f"vitreous.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
