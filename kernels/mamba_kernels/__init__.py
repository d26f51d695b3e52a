"""Operators of selective state space models on tensors, and the routes they read grids along."""
