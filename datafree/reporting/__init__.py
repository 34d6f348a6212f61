"""Finished runs: read back, tabulated, drawn, reported."""
