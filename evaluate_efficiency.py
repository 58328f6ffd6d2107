"""Time to first token, time per token and peak memory of one model, at batch 1.

    python evaluate_efficiency.py --cfg-path configs/demo/stage2.yaml --ckpt outputs/demo/stage2/best

Every figure is defined at the head of efficiency/timing.py, the roofline limits next to them at the head of
efficiency/limits.py. Writes `<output_dir>/efficiency.json`; prints a table of it and one with the published systems.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from configs.schema import Config, add_config_arguments, config_from_arguments
from data.prompts import load_prompts
from support import command_line
from support.command_line import UserError, number, require_writable
from support.files import write_json

if TYPE_CHECKING:
    from efficiency.timing import TimedClip


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description="Measure TTFT, TPOT and peak memory of a model at batch 1.")
    add_config_arguments(result)
    count = number(int, 1)
    seconds = number(float, 0.001, 3600)
    result.add_argument("--ckpt", help="adapter folder or file to measure, in place of model.ckpt")
    result.add_argument("--clip", help="audio file to measure on, as long as it is (default: a synthetic clip)")
    result.add_argument("--clip-seconds", type=seconds, default=10.0, help="length of the synthetic clip (default: 10)")
    result.add_argument("--task", default="asr", help="task whose test prompt is used (default: asr)")
    result.add_argument("--decode-steps", type=count, default=64, help="decode steps an iteration (default: 64)")
    result.add_argument("--iterations", "--num_it", type=count, default=10, help="timed iterations (default: 10)")
    result.add_argument(
        "--warmup", "--num_warmup", type=number(int, 0), default=3, help="untimed iterations before them (default: 3)"
    )
    result.add_argument("--device", help="over run.device")
    result.add_argument("--out", help="JSON file to write (default: <output_dir>/efficiency.json)")
    return result


def workload(arguments: argparse.Namespace, config: Config) -> TimedClip:
    """The clip and prompt that the arguments name.

    Raises:
        UserError: there is no test prompt for the task, or the clip cannot be read.
    """
    from data.audio import load_waveform
    from efficiency.timing import TimedClip, synthetic_clip

    if arguments.clip and not Path(arguments.clip).exists():
        raise UserError(f"--clip {arguments.clip}: no such file; expected an audio file")
    prompts = load_prompts(config.model.test_prompt_path)
    if arguments.task not in prompts:
        raise UserError(
            f"--task {arguments.task}: no such task in {config.model.test_prompt_path}; it has {', '.join(prompts)}"
        )
    prompt = prompts[arguments.task]
    waveform = load_waveform(arguments.clip) if arguments.clip else synthetic_clip(arguments.clip_seconds)
    return TimedClip(
        waveform=waveform,
        prompt=(prompt if isinstance(prompt, str) else prompt[0]).replace("{}", ""),
        decode_steps=arguments.decode_steps,
        iterations=arguments.iterations,
        warmup=arguments.warmup,
    )


def run(arguments: argparse.Namespace, config: Config) -> dict[str, object]:
    """Build the model, measure it, write and return the report."""
    from efficiency.gauges import Memory
    from efficiency.report import comparison, summary
    from efficiency.timing import measure
    from models.build import build_model
    from models.device import pick_device
    from models.sizes import part_sizes
    from support import provenance
    from training.dated_folder import dated, moment_to_evaluate, with_moment

    config.require_paths("model", "model.test_prompt_path")
    work = workload(arguments, config)
    device = pick_device(arguments.device or config.run.device)
    if dated(config):
        config = with_moment(config, moment_to_evaluate(config))
    path = Path(arguments.out) if arguments.out else Path(config.run.output_dir) / "efficiency.json"
    if path.is_dir():
        raise UserError(f"--out {path} is a folder; expected a file to write")
    require_writable(str(path.parent), "--out")
    path.parent.mkdir(parents=True, exist_ok=True)
    memory = Memory(device)
    before_load = memory.now_gib()
    memory.reset()
    start = time.perf_counter()
    model = build_model(config.model, device, aligning=config.run.stage == "align")
    lora = model.merge_for_serving()
    load_s = time.perf_counter() - start
    load_peak, loaded = memory.peak_gib(), memory.now_gib()
    print(f"language model's weights: {model.llm.kernel}; LoRA: {lora}")

    figures = measure(model, work, asdict(config.generate), memory)
    report = {
        "model": config.model.ckpt or config.path,
        **figures,
        "load_peak_gib": load_peak,
        "loaded_gib": loaded,
        "before_load_gib": before_load,
        "contest_peak_gib": max(load_peak, figures["peak_gib"]),
        "load_s": load_s,
        "memory_kind": memory.kind if memory.resettable else f"{memory.kind}, peak since it began",
        "clip": {"source": arguments.clip or "synthetic", "seconds": work.seconds, "window": config.model.window},
        "prompt": work.prompt,
        "decode_steps": work.decode_steps,
        "warmup": work.warmup,
        "iterations": work.iterations,
        "kernel": model.llm.kernel,
        "lora": lora,
        "parts": [asdict(row) for row in part_sizes(model)],
        "machine": provenance.machine(device),
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        "config": config.to_dict(),
    }
    write_json(path, report)
    print(summary(report), comparison(report), f"written to {path}", sep="\n\n")
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit status."""
    return command_line.run(work, parser(), argv)


def work(arguments: argparse.Namespace) -> None:
    """Measure the model that the arguments name."""
    config = config_from_arguments(arguments)
    if arguments.ckpt:
        config = config.with_adapter(arguments.ckpt)
    with config.named():
        run(arguments, config)


if __name__ == "__main__":
    sys.exit(main())
