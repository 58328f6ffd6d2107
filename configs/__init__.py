"""Recipes (`*.yaml`) and their schema."""
