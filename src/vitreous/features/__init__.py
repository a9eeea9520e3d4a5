"""The feature store and the one pass that fills it."""
