"""The only place that wires rooms together: one file per verb."""
