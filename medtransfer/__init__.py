"""medtransfer: from DICOM or NIfTI files and a table of labels to a fine-tuned model and a report that can be trusted.

Every name below is loaded when it is first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOME = {
    "audit": "medtransfer.audit",
    "Augment": "medtransfer.augment",
    "calibrate": "medtransfer.evaluate",
    "Case": "medtransfer.cohort",
    "Cohort": "medtransfer.cohort",
    "compare": "medtransfer.evaluate",
    "deidentify": "medtransfer.deid",
    "evaluate": "medtransfer.evaluate",
    "Evaluation": "medtransfer.evaluate",
    "export": "medtransfer.export",
    "fit": "medtransfer.fit",
    "Geometry": "medtransfer.image",
    "Head": "medtransfer.model",
    "Image": "medtransfer.image",
    "load_model": "medtransfer.model",
    "MedTransferError": "medtransfer.errors",
    "MedTransferWarning": "medtransfer.errors",
    "Model": "medtransfer.model",
    "Predictions": "medtransfer.predictions",
    "Prepare": "medtransfer.prepare",
    "read": "medtransfer.io",
    "Recipe": "medtransfer.recipe",
    "Run": "medtransfer.run",
    "scan": "medtransfer.io.scan",
    "search": "medtransfer.search",
    "sensitivity_at_least": "medtransfer.evaluate",
    "share": "medtransfer.share",
    "specificity_at_least": "medtransfer.evaluate",
    "Split": "medtransfer.split",
    "split_by_patient": "medtransfer.split",
    "TransferClassifier": "medtransfer.estimators",
    "TransferRegressor": "medtransfer.estimators",
    "write_report": "medtransfer.report",
    "youden": "medtransfer.evaluate",
}

__all__ = ["__version__", *sorted(_HOME)]

if TYPE_CHECKING:
    from medtransfer.audit import audit as audit
    from medtransfer.augment import Augment as Augment
    from medtransfer.cohort import Case as Case
    from medtransfer.cohort import Cohort as Cohort
    from medtransfer.deid import deidentify as deidentify
    from medtransfer.errors import MedTransferError as MedTransferError
    from medtransfer.errors import MedTransferWarning as MedTransferWarning
    from medtransfer.estimators import TransferClassifier as TransferClassifier
    from medtransfer.estimators import TransferRegressor as TransferRegressor
    from medtransfer.evaluate import Evaluation as Evaluation
    from medtransfer.evaluate import calibrate as calibrate
    from medtransfer.evaluate import compare as compare
    from medtransfer.evaluate import evaluate as evaluate
    from medtransfer.evaluate import sensitivity_at_least as sensitivity_at_least
    from medtransfer.evaluate import specificity_at_least as specificity_at_least
    from medtransfer.evaluate import youden as youden
    from medtransfer.export import export as export
    from medtransfer.fit import fit as fit
    from medtransfer.image import Geometry as Geometry
    from medtransfer.image import Image as Image
    from medtransfer.io import read as read
    from medtransfer.io.scan import scan as scan
    from medtransfer.model import Head as Head
    from medtransfer.model import Model as Model
    from medtransfer.model import load_model as load_model
    from medtransfer.predictions import Predictions as Predictions
    from medtransfer.prepare import Prepare as Prepare
    from medtransfer.recipe import Recipe as Recipe
    from medtransfer.report import write_report as write_report
    from medtransfer.run import Run as Run
    from medtransfer.search import search as search
    from medtransfer.share import share as share
    from medtransfer.split import Split as Split
    from medtransfer.split import split_by_patient as split_by_patient


class _Package(ModuleType):
    """Importing ``medtransfer.fit`` must not put the module where the function of that name belongs."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'medtransfer' has no attribute '{name}'")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
