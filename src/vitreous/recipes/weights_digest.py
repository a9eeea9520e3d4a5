"""Which tensors changed: a digest for each, so that no copy of the weights is kept."""

import hashlib
from collections.abc import Mapping

import torch


def digest_tensor(tensor: torch.Tensor) -> bytes:
    """SHA-256 of shape, dtype and bytes; empty for a tensor on the meta device, which has no bytes."""
    if tensor.is_meta:
        return b""
    digest = hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.digest()


def digest_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, bytes]:
    """:func:`digest_tensor` of each, by name."""
    return {name: digest_tensor(tensor) for name, tensor in tensors.items()}
