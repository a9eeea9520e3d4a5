"""How far an encoder's weights are from those a fresh initialisation would have."""

from collections import defaultdict
from collections.abc import Mapping

import torch

_VALUES_PER_TENSOR = 16384


def distance_from_random(weights: Mapping[str, torch.Tensor], fresh: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Per layer, how far its values would have to move to be distributed as freshly initialised ones.

    The 1-Wasserstein distance between the sorted values of each tensor and of its fresh twin, summed over the
    layer's tensors by size, over the summed mean magnitude of the fresh values: 0 for another draw of the same
    initialisation (up to sampling noise, about 0.02 for 4,096 values), 1 where values have moved as far as they
    were large. It compares distributions, not single values, since the seed of a training run is not known; a
    layer that is only rotated or permuted looks fresh. At most 16,384 evenly spaced values of a tensor are seen.

    Args:
        weights: floating tensors by name; others are passed over.
        fresh: the same names and shapes, newly initialised.
    """
    moved: dict[str, float] = defaultdict(float)
    magnitude: dict[str, float] = defaultdict(float)
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            continue
        value_N, fresh_N = _sorted_sample(tensor), _sorted_sample(fresh[name])
        layer = layer_of(name)
        moved[layer] += tensor.numel() * float((value_N - fresh_N).abs().mean())
        magnitude[layer] += tensor.numel() * float(fresh_N.abs().mean())
    return {layer: moved[layer] / magnitude[layer] for layer in moved if magnitude[layer] > 0}


def layer_of(name: str) -> str:
    """The name up to its block's number, or up to its module.

    >>> layer_of("blocks.3.attn.qkv.weight"), layer_of("layers.1.blocks.0.conv1.c.weight"), layer_of("pos_embed")
    ('blocks.3', 'layers.1.blocks.0', 'pos_embed')
    """
    parts = name.split(".")
    numbers = [index for index, part in enumerate(parts) if part.isdigit() and index <= 3]
    if numbers and parts[0] not in ("neck", "patch_embed"):
        return ".".join(parts[: numbers[-1] + 1])
    return parts[0]


def _sorted_sample(tensor: torch.Tensor) -> torch.Tensor:
    values_N = tensor.detach().flatten().float()
    step = max(1, values_N.numel() // _VALUES_PER_TENSOR)
    return values_N[::step].sort().values
