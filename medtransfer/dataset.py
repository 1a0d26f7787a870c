"""Cases as tensors: a cohort prepared once, kept in memory or in the cache."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from medtransfer.cache import Cache, file_digest, fingerprint
from medtransfer.errors import MedTransferError, MedTransferWarning, PrepareError
from medtransfer.image import Image
from medtransfer.parallel import in_threads, spread
from medtransfer.prepare import Prepare

if TYPE_CHECKING:
    from torch import Tensor

CACHE_FORMAT = "prepared-1"  # raise it whenever preparation changes its results


class Readable(Protocol):
    """What a case must offer to be prepared."""

    @property
    def alias(self) -> str: ...
    @property
    def image(self) -> object: ...
    def read(self) -> Image: ...
    def pieces(self) -> Sequence[Readable]: ...


def content(case: Readable) -> str | None:
    """A digest of the files behind a case; None for an array in memory."""
    image = case.image
    files = getattr(image, "files", None) or ([image] if isinstance(image, Path) else None)
    if files is None or any(Path(f).is_dir() for f in files):
        return None
    return fingerprint(*(file_digest(Path(f)) for f in files))


class Prepared:
    """The prepared images of a cohort, as arrays or tensors ``[n, channels, ...]``.

    Where cases are bags of images: ``[n, channels, images, ...]``, as many as the largest bag has, absent ones NaN.

    Parameters
    ----------
    cases : sequence of Case
        In cohort order; indices below count in it.
    prepare : Prepare
        The same for all.
    cache : Cache or None
        Where prepared images are kept; None keeps nothing.
    memory_bytes : int
        Below this size all images stay in memory; above it they are read from the cache when asked for.
    workers : int
        Threads that prepare; 0 prepares in the calling one. The results are the same bytes.
    progress : bool
        Show a bar with rate and time left (never when piped).
    """

    def __init__(
        self,
        cases: Sequence[Readable],
        prepare: Prepare,
        *,
        cache: Cache | None = None,
        memory_bytes: int = 4 * 2**30,
        workers: int = 2,
        progress: bool = True,
    ) -> None:
        self.workers = workers
        self.cases, self.prepare, self.cache, self.progress = cases, prepare, cache, progress
        self.memory_bytes = memory_bytes
        self.most = max((len(c.image) for c in cases if isinstance(c.image, tuple)), default=0)
        self._kept: NDArray[np.float32] | None = None
        self._ready = np.zeros(len(cases), dtype=bool)

    def one(self, index: int) -> NDArray[np.float32]:
        """The prepared image of one case, ``[channels, ...]`` in [0, 1]."""
        if self._kept is not None and self._ready[index]:
            kept: NDArray[np.float32] = self._kept[index]
            return kept
        return self._joined([array for _, array in self._named(index)])

    def _named(self, index: int) -> list[tuple[str, NDArray[np.float32]]]:
        """The prepared images of a case, each with its name in the cache, empty where it has none."""
        return [self._image(piece) for piece in (self.cases[index].pieces() if self.most else [self.cases[index]])]

    def _joined(self, found: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        if not self.most:
            return found[0]
        images = np.stack(found, axis=1)
        whole = np.full((images.shape[0], self.most, *images.shape[2:]), np.nan, np.float32)
        whole[:, : images.shape[1]] = images
        return whole

    def _image(self, case: Readable) -> tuple[str, NDArray[np.float32]]:
        digest = content(case) if self.cache is not None else None
        name = fingerprint(CACHE_FORMAT, digest, self.prepare.model_dump_json()) if digest else ""
        if name and self.cache is not None and (found := self.cache.get(name)) is not None:
            return name, found.astype(np.float32, copy=False)
        try:
            array = self.prepare(case.read(), where=case.alias)
        except MedTransferError:
            raise
        except MemoryError as error:
            raise PrepareError("the image does not fit into memory", where=case.alias) from error
        if name and self.cache is not None:
            self.cache.put(name, array)
        return name, array

    def load(self, indices: Sequence[int]) -> None:
        """Prepare cases ahead, as many at a time as there are workers, into memory or at least into the cache."""
        from tqdm import tqdm

        wanted = [i for i in dict.fromkeys(indices) if not self._ready[i]]
        if not wanted:
            return
        first = self.one(wanted[0])
        if self._kept is None and first.nbytes * len(self.cases) <= self.memory_bytes:
            self._kept = np.empty((len(self.cases), *first.shape), np.float32)

        size = first.nbytes * len(wanted)
        if self.cache is not None and content(self.cases[wanted[0]]) is not None and size > self.cache.room():
            warnings.warn(
                f"{size / 2**30:.1f} GiB of prepared images do not fit where {self.cache.room() / 2**30:.1f} GiB may "
                "be written; they are not kept and are prepared again the next time",
                MedTransferWarning,
                stacklevel=2,
            )
            self.cache = None

        def keep(index: int, array: NDArray[np.float32]) -> None:
            if array.shape != first.shape:
                raise PrepareError(
                    "images differ in their channels",
                    where=self.cases[index].alias,
                    got=f"{array.shape[0]} where the first case has {first.shape[0]}",
                    fix="set gray: true in prepare",
                )
            if self._kept is not None:
                self._kept[index] = array
                self._ready[index] = True

        def receive(index: int, found: list[tuple[str, NDArray[np.float32]]]) -> None:
            for name, array in found:
                if name and self.cache is not None and name not in self.cache:  # it was made beside another cache
                    self.cache.put(name, array)
            keep(index, self._joined([array for _, array in found]))

        made: Iterator[object]
        if in_threads():  # each is put where it belongs as soon as it is there
            made = spread(lambda index: keep(index, self.one(index)), wanted, workers=self.workers)
        else:
            alone = [Prepared([self.cases[i]], self.prepare, cache=self.cache, progress=False) for i in wanted]
            made = map(receive, wanted, spread(_elsewhere, alone, workers=self.workers))
        with tqdm(total=len(wanted), desc=f"prepare, {size / 2**20:,.0f} MiB", unit="case",
                  disable=None if self.progress else True) as bar:  # fmt: skip
            for _ in made:
                bar.update()

    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """Prepared images of these cases as one tensor ``[n, channels, ...]``."""
        import torch

        return torch.from_numpy(np.stack([self.one(int(i)) for i in indices]))


def _elsewhere(alone: Prepared) -> list[tuple[str, NDArray[np.float32]]]:
    """The prepared images of a cohort of one case, in whatever process this is."""
    return alone._named(0)


def prepare_ahead(cases: Sequence[Readable], prepare: Prepare, *, workers: int, progress: bool) -> None:
    """Prepare cases into the cache, from which whoever needs them reads, where :func:`computing` says."""
    Prepared(cases, prepare, cache=Cache(), workers=workers, progress=progress).load(range(len(cases)))
