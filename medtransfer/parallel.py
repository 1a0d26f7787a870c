"""Where many files are read and prepared: in threads of this process, in processes, or on a cluster, by joblib.

A setting, and not an argument of every function: ``with computing("loky"): mt.scan(folder)``; in a config
``backend: loky``. The results are the same bytes and in the same order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import TypeVar

from medtransfer.errors import ConfigError, MissingPackage, require

Item = TypeVar("Item")
Result = TypeVar("Result")
NAMES = ("threads", "loky", "dask", "ray")
_chosen: ContextVar[str] = ContextVar("backend", default="threads")


def check_backend(text: str) -> str:
    """A backend as it stands in a config: ``threads``, ``loky``, ``dask=ADDRESS``, ``ray`` or ``ray=ADDRESS``."""
    name, _, address = text.partition("=")
    if name not in NAMES or (address and name in NAMES[:2]):
        raise ValueError("a backend is threads, loky, dask=ADDRESS or ray=ADDRESS")
    return text


@contextmanager
def computing(backend: str) -> Iterator[None]:
    """Read and prepare there while the block runs; processes of this machine end with it.

    Parameters
    ----------
    backend : str
        ``'threads'``; ``'loky'``: processes of this machine; ``'dask=ADDRESS'`` of a scheduler (``'dask'``: the client
        that the script has made); ``'ray=ADDRESS'`` (``'ray'``: a ray that runs, or one of this machine). The workers
        of a cluster see the same files under the same paths and have medtransfer installed.

    Raises
    ------
    ConfigError
        For another name.

    Examples
    --------
    >>> with computing("threads"):
    ...     list(spread(abs, [-1, 2, -3], workers=2))
    [1, 2, 3]
    """
    try:
        token = _chosen.set(check_backend(backend))
    except ValueError as error:
        raise ConfigError(str(error), where="backend", got=repr(backend)) from None
    try:
        yield
    finally:
        _chosen.reset(token)
        if backend == "loky" != _chosen.get():
            _end_processes()


def in_threads() -> bool:
    """Whether work stays in this process."""
    return _chosen.get() == "threads"


def spread(function: Callable[[Item], Result], items: Sequence[Item], *, workers: int) -> Iterator[Result]:
    """Results in the order of the items, as they come; 0 workers compute in this thread.

    Parameters
    ----------
    function : function
        Of the module level where the work leaves this process, as are its items.
    workers : int
        Threads, or processes of this machine; a cluster takes all that it has.
    """
    if not workers or not items:
        yield from map(function, items)
    elif in_threads():
        with ThreadPoolExecutor(workers) as pool:
            yield from pool.map(function, items)
    else:
        yield from _by_joblib(function, items, workers)


def _by_joblib(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Result]:
    from joblib import Parallel, delayed, effective_n_jobs, parallel_config

    name, _, address = _chosen.get().partition("=")
    options: dict[str, str] = {}
    if name == "dask":
        require("distributed", "cluster")
        options = {"scheduler_host": address} if address else {}
    with ExitStack() as stack:
        try:
            if name == "ray":
                _start_ray(address)
            workers = workers if name == "loky" else -1
            stack.enter_context(parallel_config(backend=name, n_jobs=workers, **options))
        except OSError as error:
            fix = "start its scheduler (and for ray, set RAY_AUTH_MODE as there), or backend: threads"
            raise ConfigError(
                "the cluster cannot be reached", where="backend", got=type(error).__name__, fix=fix
            ) from error
        if name != "ray":
            yield from Parallel(return_as="generator")(delayed(function)(item) for item in items)
            return
        with Parallel() as parallel:  # ray's backend gives lists alone: a few items a worker at a time
            size = 8 * effective_n_jobs()
            for start in range(0, len(items), size):
                yield from parallel(delayed(function)(item) for item in items[start : start + size])


def _end_processes() -> None:
    """They would stay for five minutes, and a process that :mod:`multiprocessing` started could not end before them."""
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor(reuse=True).shutdown(wait=True)


def _start_ray(address: str) -> None:
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError as error:
        raise MissingPackage("ray cannot be used", got=str(error), fix="pip install ray") from error
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers about the cluster
        ray.init(address=address or None, log_to_driver=False, include_dashboard=None if address else False)
    register_ray()
