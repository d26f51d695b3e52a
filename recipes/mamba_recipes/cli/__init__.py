"""The `mamba-apps` command; torch is imported only once a command starts to work."""

from mamba_recipes.cli.front import main

__all__ = ["main"]
