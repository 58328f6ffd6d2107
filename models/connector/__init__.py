"""Encoder outputs to audio tokens: windows, Q-Former, projection."""
