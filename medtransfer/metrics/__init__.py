"""Statistics of predictions: pure functions of arrays, with NumPy, SciPy and nothing heavier.

A quantity that the data do not define is ``nan`` inside these functions and becomes *not defined*
(an :class:`~medtransfer.metrics.intervals.Estimate` whose value is None, with a note) in an evaluation.
"""
