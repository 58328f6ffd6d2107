"""Clips to hypotheses, files and scores."""
