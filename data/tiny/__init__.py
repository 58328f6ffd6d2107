"""The corpus of the tiny recipe: annotation files over openly licensed recordings; no audio is copied."""
