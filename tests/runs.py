"""Runs of tiny projects for tests: a runner from a YAML, and what its log holds."""

import json
from pathlib import Path

import torch

import train
from configs.schema import load_config
from models import build_model
from runner import Runner


def make_runner(config_path: Path, *options: str, resume: Path | None = None) -> Runner:
    config = load_config(config_path, list(options))
    train_data, valid_data = train.load_data(config)
    torch.manual_seed(config.run.seed)
    model = build_model(config.model, device="cpu")
    return train.make_runner(config, model, train_data, valid_data, resume=resume)


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses_of(folder: Path) -> list[tuple[int, float, float]]:
    return [(line["step"], line["loss"], line["grad_norm"]) for line in log_of(folder) if "loss" in line]
