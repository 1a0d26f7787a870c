"""The exception tree. Every refusal in the package is a :class:`MedTransferError`.

A message says four things, in this order: *where* it happened, *what* is wrong, what was *found*, and
how to *fix* it. It never holds a patient identifier: name rows, pseudonyms, tags and file suffixes.
"""

from __future__ import annotations

import importlib
from types import ModuleType


class MedTransferError(Exception):
    """Base of all errors raised on purpose.

    Parameters
    ----------
    what : str
        What is wrong, one sentence without a full stop.
    where : str
        File, row, tag or configuration key.
    got : object
        What was found instead of what was wanted.
    fix : str
        What the user can do about it.

    Examples
    --------
    >>> print(MedTransferError("no spacing", where="a.dcm", got="''", fix="pass spacing_mm"))
    a.dcm: no spacing; found ''; fix: pass spacing_mm
    """

    exit_code = 1

    def __init__(self, what: str, *, where: object = "", got: object = "", fix: str = "") -> None:
        self.what, self.where, self.got, self.fix = what, str(where), str(got), fix
        text = f"{self.where}: {what}" if self.where else what
        if self.got:
            text += f"; found {self.got}"
        if fix:
            text += f"; fix: {fix}"
        super().__init__(text)


class ConfigError(MedTransferError):
    """A configuration, option or argument is wrong (exit code 2)."""

    exit_code = 2


class MissingPackage(ConfigError):
    """An optional package is not installed."""


class RunError(ConfigError):
    """The run folder cannot be used: not writable, of another configuration, or incomplete."""


class DataError(MedTransferError):
    """The data cannot be used as they are (exit code 3)."""

    exit_code = 3


class ReadError(DataError):
    """A file or series cannot be read rightly."""


class CohortError(DataError):
    """A table of cases is wrong: missing, duplicate or contradictory rows."""


class SplitError(DataError):
    """A split is impossible, or leaks."""


class LeakageError(SplitError):
    """The same patient, study or image stands in two parts of a split."""


class PrepareError(DataError):
    """An image cannot be prepared as asked."""


class MetricError(DataError):
    """Predictions cannot be evaluated as asked."""


class PacsError(DataError):
    """An archive does not give, or does not take, what it was asked for."""


class PacsUnavailable(PacsError):
    """An archive cannot be reached or stops answering; the same call goes on where this one ended (exit code 75)."""

    exit_code = 75


class PacsRefused(ConfigError):
    """An archive refuses the connection: address, credentials, certificate or application entity title."""


class WeightsError(MedTransferError):
    """Weights are missing, damaged, or do not fit (exit code 4)."""

    exit_code = 4


class GateError(MedTransferError):
    """A quality gate that the user set was not met (exit code 5)."""

    exit_code = 5


class Interrupted(MedTransferError):
    """Stopped by a signal after a checkpoint; the same command resumes (exit code 75)."""

    exit_code = 75


class MedTransferWarning(UserWarning):
    """Something the user may accept, but must be told."""


def require(package: str, extra: str) -> ModuleType:
    """Import an optional package, or say which extra brings it.

    Examples
    --------
    >>> require("json", "codecs").__name__
    'json'
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingPackage(
            f"this needs the package '{package}', which is not installed",
            fix=f"pip install 'medtransfer[{extra}]'",
        ) from error
