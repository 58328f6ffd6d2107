"""Measured comparisons, runnable where only PyTorch, transformers, peft and accelerate are installed."""

from benchmarks import bare_machine  # noqa: F401 - before anything that reads YAML is imported
