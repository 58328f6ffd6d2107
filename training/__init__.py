"""One optimiser step, and all that a run keeps."""
