"""References and hypotheses to scores; independent of models and files."""
