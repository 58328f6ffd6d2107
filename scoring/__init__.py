"""References and hypotheses to figures; knows no model and no file."""
