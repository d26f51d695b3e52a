"""Comparisons on equal terms: the same data, budget and seed for every candidate, of whatever domain."""

from mamba_recipes.compare.budget import Budget
from mamba_recipes.compare.candidate import Candidate, Panel

__all__ = ["Budget", "Candidate", "Panel"]
