"""Which volumes are read, whose they are, their labels and splits; the table stage of the leak gate."""
