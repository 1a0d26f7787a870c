"""The report: an Evaluation as one HTML file, with its numbers, predictions and model card beside it."""

from __future__ import annotations

from medtransfer.report.write import write_report

__all__ = ["write_report"]
