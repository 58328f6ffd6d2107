"""Pretraining of the shipped stand-in checkpoints; `tools.pretrain_standins` is the command."""
