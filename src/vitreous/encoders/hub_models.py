"""Models in the layout of transformers: their config.json, and their folder at the hub."""

import difflib
from collections.abc import Mapping
from typing import Any

from vitreous.core.errors import CheckpointError, ConfigError, StorageError
from vitreous.encoders.family import Fetched


def read_config(where: str, config: Mapping[str, Any], seen: Mapping[str, Any], *, model_type: str) -> dict[str, Any]:
    """The values of a ``config.json``, once it is clear that it belongs to these tensors.

    Args:
        seen: what the tensors say, under the config's names.

    Raises:
        CheckpointError: it is the config of another kind of model, or contradicts the tensors.
    """
    if config["model_type"] != model_type:
        raise CheckpointError(
            f"{where}: config.json is of model_type {config['model_type']!r}; this family reads {model_type!r}. Set "
            "the family that fits."
        )
    for name, value in seen.items():
        stated = config.get(name, value)
        stated = stated[0] if isinstance(stated, list | tuple) and len(set(stated)) == 1 else stated
        if stated != value:
            raise CheckpointError(
                f"{where}: {name} is {stated} in config.json, but the tensors say {value}. The config belongs to other "
                "weights."
            )
    return dict(config)


def fetch_from_hub(name: str) -> Fetched:
    """The published weights and config of a model by its name at the hub of transformers; only safetensors.

    Raises:
        ConfigError: it is no name of a model there.
        StorageError: it could not be fetched.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    from vitreous.encoders.checkpoint import read_checkpoint

    location = f"hf-hub:{name}"
    try:
        folder = snapshot_download(name, allow_patterns=["config.json", "*.safetensors", "*.safetensors.index.json"])
    except (HFValidationError, RepositoryNotFoundError) as error:
        first_line = str(error).partition("\n")[0]
        near = difflib.get_close_matches(name, _PUBLISHED, n=3, cutoff=0.4)
        raise ConfigError(
            f"hub: {name!r} is no model at the hub ({first_line}). Near are {', '.join(near) or 'none'}; for files of "
            "your own give `checkpoint`."
        ) from error
    except (LocalEntryNotFoundError, HTTPError, OSError) as error:
        first_line = str(error).partition("\n")[0]
        raise StorageError(
            f"{location}: the weights could not be fetched ({type(error).__name__}: {first_line}). Check the network, "
            "or give a local folder as `checkpoint`."
        ) from error
    file = read_checkpoint(folder)
    return Fetched(file.tensors, location, file.config)


_PUBLISHED = (
    "facebook/vjepa2-vitl-fpc64-256",
    "facebook/vjepa2-vith-fpc64-256",
    "facebook/vjepa2-vitg-fpc64-256",
    "facebook/vjepa2-vitg-fpc64-384",
    "facebook/vjepa2-vitl-fpc16-256-ssv2",
    "facebook/vjepa2-vitg-fpc64-384-ssv2",
    "MCG-NJU/videomae-base",
    "MCG-NJU/videomae-large",
)
