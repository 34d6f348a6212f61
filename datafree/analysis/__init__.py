"""Analyses of finished runs, behind the notebooks."""
