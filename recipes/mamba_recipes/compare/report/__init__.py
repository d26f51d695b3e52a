"""A comparison as one HTML file that needs nothing else."""

from mamba_recipes.compare.report.page import render, write

__all__ = ["render", "write"]
