"""A model speaks: probabilities for prepared cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medtransfer.dataset import Prepared

if TYPE_CHECKING:
    import torch

    from medtransfer.model import Model


def probabilities(
    model: Model,
    prepared: Prepared,
    indices: Sequence[int],
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 32,
    progress: bool = False,
) -> NDArray[np.float64]:
    """Probabilities, or a regression's values, ``[n, classes]`` of these cases, in evaluation mode, in float32.

    The result does not depend on ``batch_size`` beyond rounding.
    """
    from tqdm import tqdm

    from medtransfer.capacity import at_once

    prepared.load(indices)
    model = model.to(device).eval()
    indices, parts = list(indices), []
    if indices:
        batch_size = at_once(model, prepared.one(indices[0]).shape, device, most=batch_size)
    bar = tqdm(total=len(indices), desc="predict", unit="case", disable=None if progress else True)
    with bar:
        for start in range(0, len(indices), batch_size):
            batch = [prepared.one(i) for i in indices[start : start + batch_size]]
            parts.append(speak(model, np.stack(batch), device=device))
            bar.update(len(batch))
    return np.concatenate(parts) if parts else np.zeros((0, model.description.classes))


def speak(model: Model, images: NDArray[np.float32], *, device: torch.device | str = "cpu") -> NDArray[np.float64]:
    """What a model in evaluation mode says of prepared images ``[n, channels, ...]``: ``[n, classes]``."""
    import torch

    from medtransfer.heads import task_probabilities

    with torch.inference_mode():
        logits = model(torch.from_numpy(images).to(device)).double()
        said: NDArray[np.float64] = task_probabilities(model.description.task)(logits).cpu().numpy()
        return said
