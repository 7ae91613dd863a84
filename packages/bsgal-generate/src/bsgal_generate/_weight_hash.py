"""A fingerprint of the weights a pipeline really holds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch


def weight_hash(components: Mapping[str, Any]) -> str:
    """Hash every tensor of every model in a pipeline.

    The same files loaded in another dtype give another hash: it names the numbers that draw the
    images. One pass over the weights, about a second per GB.

    Args:
        components: The pipeline's parts by name; those that are not `torch.nn.Module` are skipped.

    Returns:
        `"sha256:"` and 64 hexadecimal digits.

    Raises:
        ValueError: Some weights are not in memory, so there is nothing to hash.
    """
    digest = hashlib.sha256()
    for part, module in sorted(components.items()):
        if not isinstance(module, torch.nn.Module):
            continue
        for name, tensor in sorted(module.state_dict().items()):
            if tensor.is_meta:
                raise ValueError(
                    f"weights of {part}.{name} are not in memory (offloaded); make the "
                    "`ImagePipeline` before enabling offload"
                )
            digest.update(f"{part}.{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return f"sha256:{digest.hexdigest()}"
