"""Quantised weights: the language model's and the encoders'."""
