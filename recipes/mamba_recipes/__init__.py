"""What a person runs: the `mamba-apps` command, its recipes, comparisons, benchmarks and reports."""
