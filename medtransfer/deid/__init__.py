"""De-identification of DICOM after PS3.15 Annex E: series for sharing, and the objects that the package writes."""

from medtransfer.deid.files import Deidentified, deidentify

__all__ = ["Deidentified", "deidentify"]
