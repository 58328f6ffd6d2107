"""Recipes (`*.yaml`) and the schema that says what they may hold."""
