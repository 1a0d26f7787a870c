"""What the frozen part of a network says about each case, computed once and not once an epoch."""

from __future__ import annotations

import os
import secrets
import shutil
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medtransfer.capacity import at_once
from medtransfer.dataset import Prepared
from medtransfer.errors import DataError, MedTransferWarning
from medtransfer.fastform import Features, features_of
from medtransfer.memory import available
from medtransfer.tuned import faster

if TYPE_CHECKING:
    from medtransfer.augment import Augment, Variation
    from medtransfer.model import Model

Rows = dict[tuple[int, int], int]
MEMORY_BYTES = 2 * 2**30
DISK_BYTES = 50 * 2**30


def generator_of(*numbers: int) -> torch.Generator:
    """A random source for a place in training, such as (seed, fold, epoch, step), untouched by what came before."""
    from medtransfer.cache import fingerprint

    seed = int(fingerprint(",".join(map(str, numbers)))[:15], 16)
    return torch.Generator().manual_seed(seed)


class Views:
    """Prepared images as they are, and varied: view 0 is the image itself, view v is always the same variation."""

    def __init__(self, prepared: Prepared, augment: Augment, seed: int) -> None:
        self.prepared, self.augment, self.seed = prepared, augment, seed
        self._sampled = lru_cache(4)(self._sample)

    def _sample(self, view: int, dims: int) -> Variation:
        images = len(self.prepared.cases) * max(1, self.prepared.most)
        return self.augment.sample(images, dims, generator_of(self.seed, view))

    def images(self, indices: NDArray[np.int64], view: int) -> Tensor:
        """Images of these cases ``[n, channels, ...]`` in a view."""
        batch = self.prepared.batch(indices)
        if not view or not self.augment.active:
            return batch
        each = torch.from_numpy(indices)
        most = self.prepared.most
        if most:  # every image of a bag varies in its own way
            each = (each[:, None] * most + torch.arange(most)).flatten()
            bags, batch = len(batch), batch.transpose(1, 2).flatten(0, 1)
        batch = self._sampled(view, batch.ndim - 2)[each](batch)
        return batch.reshape(bags, most, *batch.shape[1:]).transpose(1, 2) if most else batch


class Boundary:
    """Inputs of the part that learns: pooled features of the frozen stages and the activation where they end.

    Parameters
    ----------
    model : Model
        Its first stages are frozen.
    views : Views
    first : int
        How many stages are frozen: all of them means that only pooled features are left.
    half : bool
        Keep, and compute with, activations rounded to float16.
    device : torch.device or str
    """

    def __init__(self, model: Model, views: Views, first: int, *, half: bool, device: torch.device | str) -> None:
        self.model, self.views, self.first, self.half, self.device = model, views, first, half, device
        self.names, self.whole = list(model.stages)[:first], first == len(model.stages)
        self.rows: Rows = {}
        self._pooled: NDArray[np.float32] | None = None
        self._kept: NDArray[Any] | None = None
        self._features: Features | None = None

    def at(self, indices: Sequence[int] | NDArray[np.int64], view: int) -> tuple[Tensor, Tensor]:
        """Pooled features ``[n, width]`` and activations of these cases in a view, on the device."""
        index = np.asarray(indices, dtype=np.int64)
        view = view if self.views.augment.active else 0
        if all((i, view) in self.rows for i in index.tolist()):
            rows = [self.rows[i, view] for i in index.tolist()]
            assert self._pooled is not None
            pooled = torch.from_numpy(self._pooled[rows]).to(self.device)
            if self._kept is None:
                return pooled, pooled.new_zeros(len(rows), 0)
            kept = torch.from_numpy(np.ascontiguousarray(self._kept[rows])).to(self.device).float()
            return pooled, dense(kept)
        return self._compute(index, view)

    def _compute(self, index: NDArray[np.int64], view: int) -> tuple[Tensor, Tensor]:
        images = dense(self.views.images(index, view).to(self.device))
        if not self.first:
            return images.new_zeros(len(images), 0), images
        if self.whole:
            with torch.inference_mode():
                self._features = self._features or features_of(self.model, images)
                pooled = self._features(images).float()
            pooled = pooled.clone()  # outside: what learns from it needs a tensor that autograd may keep
            return pooled, pooled.new_zeros(len(index), 0)
        with torch.no_grad():
            pooled, x = self.model.walk(images, self.names)
        pooled = pooled.float()
        x = x.half() if self.half else x
        if not torch.isfinite(x).all():
            raise DataError(
                "an activation is too large to be kept" if self.half else "an activation is not finite",
                where=self.views.prepared.cases[int(index[0])].alias,
                fix="cache: float32" if self.half else "check the weights and the preparation",
            )
        return pooled, x.float()

    def keep(self, wanted: Sequence[tuple[int, int]], folder: Path, *, progress: bool, batch_size: int = 32) -> bool:
        """Compute these (case, view) ahead, in memory or in a file of ``folder``; False where they fit neither.

        Values do not depend on where they are kept.
        """
        from tqdm import tqdm

        wanted = [(i, v if self.views.augment.active else 0) for i, v in wanted]
        wanted = [pair for pair in dict.fromkeys(wanted) if pair not in self.rows]
        if not wanted:
            return True
        self.views.prepared.load(sorted({i for i, _ in wanted}))
        wanted.sort(key=lambda pair: pair[::-1])
        case = self.views.images(np.array(wanted[0][:1]), wanted[0][1])
        batch_size = at_once(self.model, case.shape[1:], self.device, most=batch_size)
        shape = () if self.whole else self._compute(np.array(wanted[0][:1]), wanted[0][1])[1].shape[1:]
        dtype = np.dtype(np.float16 if self.half else np.float32)
        size = len(wanted) * int(np.prod(shape)) * dtype.itemsize if shape else 0
        where = "in memory"
        if size > min(MEMORY_BYTES, available() // 4):
            where = "on disk"
            if size > min(DISK_BYTES, shutil.disk_usage(folder).free * 0.8):
                warnings.warn(
                    f"activations of {size / 2**30:.1f} GiB are too large to be kept and are computed every epoch",
                    MedTransferWarning,
                    stacklevel=2,
                )
                return False
        kept = self._room((len(wanted), *shape), dtype, where, folder) if shape else None
        pooled = np.zeros((0, 0), np.float32)
        starts = [j for j in range(len(wanted)) if not j or wanted[j][1] != wanted[j - 1][1]] + [len(wanted)]
        name = f"activations, {size / 2**20:,.0f} MiB {where}" if shape else "features"
        bar = tqdm(total=len(wanted), desc=name, unit="case", disable=None if progress else True)
        with bar, nullcontext() if self.whole else faster(self.model.eval()):  # the fast form folds by itself
            for low, high in pairwise(starts):  # a batch holds one view
                for start in range(low, high, batch_size):
                    part = wanted[start : min(high, start + batch_size)]
                    p, x = self._compute(np.array([i for i, _ in part]), part[0][1])
                    if not start:
                        pooled = np.empty((len(wanted), *p.shape[1:]), np.float32)
                    pooled[start : start + len(part)] = p.cpu().numpy()
                    if kept is not None:
                        kept[start : start + len(part)] = x.cpu().numpy()
                    bar.update(len(part))
        self._pooled, self._kept = pooled, kept
        self.rows = {pair: row for row, pair in enumerate(wanted)}
        return True

    def _room(self, shape: tuple[int, ...], dtype: np.dtype[Any], where: str, folder: Path) -> NDArray[Any]:
        if where == "in memory":
            return np.empty(shape, dtype)
        path = folder / f".activations.{secrets.token_hex(4)}"
        try:
            with open(path, "wb+") as file:
                os.posix_fallocate(file.fileno(), 0, int(np.prod(shape)) * dtype.itemsize)  # a full disk says so here
                return np.memmap(file, dtype, "r+", shape=shape)
        finally:
            path.unlink(missing_ok=True)  # it lives as long as it is mapped, and no killed run leaves it behind


def dense(x: Tensor) -> Tensor:
    """Channels last for images, where convolutions on the CPU are faster; the values stay."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def tail(model: Model, first: int, pooled: Tensor, x: Tensor) -> Tensor:
    """Logits from what :meth:`Boundary.at` gives."""
    if not first:
        return model(x)  # type: ignore[no-any-return]
    if first < len(model.stages):
        pooled = torch.cat([pooled, model.walk(x, list(model.stages)[first:])[0]], 1)
    return model.head(pooled)  # type: ignore[no-any-return]
