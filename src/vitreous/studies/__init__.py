"""Packaged study files, each headed by command, hardware, minutes and expected result."""
