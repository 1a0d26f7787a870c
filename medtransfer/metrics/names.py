"""What a reader calls each estimate, in the order of a table."""

from __future__ import annotations

LABELS = {
    "auroc": "AUROC",
    "macro_auroc": "AUROC, macro one-versus-rest",
    "fold_auroc": "AUROC, mean of the folds",
    "average_precision": "Average precision",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "ppv": "PPV",
    "npv": "NPV",
    "lr_positive": "LR+",
    "lr_negative": "LR−",
    "balanced_accuracy": "Balanced accuracy",
    "mcc": "Matthews correlation",
    "brier": "Brier score",
    "scaled_brier": "Scaled Brier score",
    "log_loss": "Log loss",
    "calibration_slope": "Calibration slope",
    "calibration_intercept": "Calibration in the large",
    "observed_expected": "Observed / expected",
    "ece": "ECE, 10 equal-width bins (secondary)",
    "f1": "F1 (secondary)",
    "accuracy": "Accuracy (secondary)",
}
