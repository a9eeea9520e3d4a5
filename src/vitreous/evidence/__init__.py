"""Predictions → metrics with intervals → paired comparison → plain findings. NumPy and statistics, no torch."""
