"""The whole recipe: corpus, training, both evaluations, efficiency; ends with one table.

    python -m tools.demo                                          # the synthetic corpus (make demo PART=train)
    python -m tools.demo --short                                  # the same with a few training steps (make demo-short)
    python -m tools.demo --recipe real --prefix /path/to/recordings      # real recordings (make real)

The trained model's scores are compared with those of the same model with audio swapped between clips, and those of an
untrained connector: a model that only guesses what texts look like scores alike in all three. Where the recipe
quantises its language model, the same adapter is evaluated and measured on float32 weights too, in a second table.
Scores are fractions: a WER of 0.05 is 5 %. Writes `outputs/<recipe>/summary.json` (`outputs/<recipe>-short/` for a
short run). Every run starts from the beginning: what an earlier one left in the folders of stages and evaluations is
deleted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from configs.schema import load_config
from support import command_line
from support.command_line import UserError
from support.files import write_json
from support.tables import format_table

ROOT = Path(__file__).resolve().parent.parent
TASKS = {"asr": ("submission_asr", "wer"), "aac": ("submission_aac", "cider_d")}
"""Task -> the evaluation's mode and the figure that is shown."""
ANNOTATIONS = ("train_ann_path", "valid_ann_path", "test_ann_path_asr", "test_ann_path_aac")
MOST_PROCESSES = 2
"""Training processes on a CPU: the recipes' times are for two."""
VARIANTS = {"": "trained", "_swapped": "audio swapped between clips", "_untrained": "untrained connector"}
FLOAT32 = ("model.quantization=none", "model.dtype=float32")
"""Overrides for the language model as its folder holds it, which quantised weights are compared with."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to run, one YAML per training stage; the last one's model is evaluated."""

    name: str
    stages: tuple[str, ...]
    synthetic: bool = False
    """Whether the corpus is synthesised; else the recordings are given."""
    short: tuple[str, ...] = ()
    """Overrides for a run of a few steps."""


RECIPES = {
    "demo": Recipe(
        name="demo",
        stages=("configs/demo/stage1.yaml", "configs/demo/stage2.yaml"),
        synthetic=True,
        short=(
            "run.epoch_based=false",
            "run.iters_per_epoch=12",
            "run.optims.max_epoch=1",
            "run.optims.warmup_steps=4",
        ),
    ),
    "real": Recipe(
        name="real",
        stages=("configs/real/train.yaml",),
        short=("run.epoch_based=false", "run.iters_per_epoch=4", "run.optims.max_epoch=1", "run.optims.warmup_steps=2"),
    ),
}


@dataclass
class Run:
    """One run of a recipe: its folder, and its results so far."""

    recipe: Recipe
    output: Path
    overrides: tuple[str, ...]
    """For every command: `section.key=value`."""
    short: bool
    scores: dict[str, dict[str, float | None]] = field(default_factory=lambda: {task: {} for task in TASKS})
    efficiency: dict[str, float] = field(default_factory=dict)
    precisions: dict[str, dict[str, float | str | None]] = field(default_factory=dict)
    """Back-end, or `float32` -> scores and costs of the trained adapter on them; empty unless there are two."""
    files: dict[str, Path] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def step(self, name: str, work: Callable[[], object]) -> object:
        """Run a step under a headline and keep its time; a step that returns a status other than 0 ends the run."""
        print(f"\n── {name} ", "─" * max(0, 110 - len(name)), flush=True)
        start = time.monotonic()
        result = work()
        self.seconds[name] = round(time.monotonic() - start, 1)
        if isinstance(result, int) and result != 0:
            raise SystemExit(f"tools.demo: the step {name!r} failed with status {result}; its message is above")
        return result

    def command(self, name: str, *words: str, environment: Mapping[str, str] | None = None) -> None:
        """Run a command of the README in a process of its own, as a step."""
        command = [sys.executable, *words]
        self.step(
            name, lambda: subprocess.run(command, check=False, env={**os.environ, **(environment or {})}).returncode
        )

    def stage_output(self, config: str) -> Path:
        return self.output / Path(config).stem

    def options(self, *more: str) -> list[str]:
        chosen = [*self.overrides, *more]
        return ["--options", *chosen] if chosen else []


def remove(path: Path) -> None:
    """Delete a file or a folder, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def require_recordings(run: Run, prefix: str | Path | None) -> None:
    """Before anything of an earlier run is deleted: check that the recordings are there, and the recipe's weights.

    Raises:
        UserError: for the first that is missing.
    """
    if run.recipe.synthetic:
        return
    if prefix and not Path(prefix).expanduser().is_dir():
        raise UserError(f"--prefix {prefix}: no such folder; expected the recordings' (see configs/{run.recipe.name})")
    for config in run.recipe.stages:
        loaded = load_config(config, run.overrides)
        data = [f"datasets.{key}" for key in ANNOTATIONS if getattr(loaded.datasets, key)]
        loaded.require_paths("model", "model.prompt_path", *data)


def make_corpus(run: Run) -> None:
    """Write the synthetic corpus, where the recipe has one."""
    if run.recipe.synthetic:
        small = ["--small"] if run.short else []
        run.command("corpus", "-m", "data.prepare", "demo", "--out", str(run.output / "corpus"), *small)


def encode_clips(run: Run) -> None:
    """Fill the cache of encoder outputs on all cores; in a short run training fills what it needs by itself."""
    caches: dict[str, dict[str, list[str]]] = {}
    for config in run.recipe.stages:
        datasets = load_config(config).datasets
        if datasets.cache_encoder_outputs and not run.short:
            paths = datasets.train_ann_path
            paths = [paths] if isinstance(paths, str) else list(paths)
            caches.setdefault(datasets.cache_encoder_outputs, {})[config] = paths
    for folder, stages in caches.items():  # stages share most of their clips
        paths = json.dumps(list(dict.fromkeys(path for paths in stages.values() for path in paths)))
        command = ["-m", "tools.cache_encoder_outputs", "--cfg-path", next(iter(stages))]
        command += ["--processes", str(len(os.sched_getaffinity(0)))]
        command += run.options(f"datasets.train_ann_path={paths}")
        run.command(f"encoder outputs, {Path(folder).name}", *command)


def train_stage(run: Run, config: str, options: Sequence[str]) -> None:
    """Train one stage; where that is faster, in a process a core, which share each batch.

    Models this small gain nothing from a second thread, and nearly everything from a second process.
    """
    from models.device import pick_device

    name = f"training, {Path(config).stem}"
    settings = load_config(config, [*run.overrides, *options]).run
    batch, on_cpu = settings.batch_size_train, pick_device(settings.device).type == "cpu"
    processes = min(MOST_PROCESSES, len(os.sched_getaffinity(0)))
    if not on_cpu or processes == 1 or batch % processes:
        run.command(name, "train.py", "--cfg-path", config, *run.options(*options))
        return
    launch = ["-m", "tools.launch", "--standalone", "--nproc-per-node", str(processes)]
    shared = f"run.batch_size_train={batch // processes}"
    command = [*launch, "train.py", "--cfg-path", config, *run.options(shared, *options)]
    run.command(name, *command, environment={"OMP_NUM_THREADS": "1"})


def train_stages(run: Run) -> Path:
    """Train stage after stage, each from the best adapter of the one before; the last one's best adapter."""
    from training.run_folder import RunFolder

    adapter: Path | None = None
    for config in run.recipe.stages:
        output = run.stage_output(config)
        options = [f"run.output_dir={output}"]
        if adapter is not None:
            options.append(f"model.ckpt={adapter}")
        if run.short:
            options += run.recipe.short
        train_stage(run, config, options)
        folder = RunFolder(output)
        adapter = folder.best() or folder.last()  # a recipe without validation has no best
        run.files[f"{Path(config).stem}: adapter, log, loss curve"] = output
    assert adapter is not None, "a recipe has a stage"
    return adapter


def read_scores(output: Path, variant: str = "") -> dict[str, float | None]:
    """Each task's figure, by the metric's name, of the evaluations in a folder."""
    scores = {}
    for mode, metric in TASKS.values():
        folder = output / "eval" / (f"{mode}_swapped" if variant == "_swapped" else mode)
        scores[metric] = json.loads((folder / "scores.json").read_text(encoding="utf-8"))["scores"][metric]
    return scores


def evaluate(run: Run, name: str, overrides: Sequence[str], *, swapped: bool = False, java: bool) -> None:
    """What `evaluate.py` does, in this process: importing the libraries for each variant would take longer."""
    from evaluation.modes import chosen_modes
    from evaluation.run import evaluate_modes

    config = load_config(run.recipe.stages[-1], [*run.overrides, *overrides])
    run.step(f"evaluation, {name}", lambda: evaluate_modes(config, chosen_modes(config), swapped=swapped, java=java))


def evaluate_variant(run: Run, variant: str, adapter: Path) -> None:
    """Score every task: with the trained model, with swapped audio, or with an untrained connector."""
    output = run.output / "untrained" if variant == "_untrained" else run.output
    overrides = (f"run.output_dir={output}", "model.ckpt=" if variant == "_untrained" else f"model.ckpt={adapter}")
    java = not (variant or run.short)  # METEOR is for the model's own scores
    evaluate(run, VARIANTS[variant], overrides, swapped=variant == "_swapped", java=java)
    scores = read_scores(output, variant)
    for task, (mode, metric) in TASKS.items():
        run.scores[task][metric + variant] = scores[metric]
        if not variant:
            run.files[f"{task}: submission.csv, predictions.jsonl, scores.json"] = output / "eval" / mode


def measure_efficiency(run: Run, adapter: Path, report: Path, name: str, overrides: Sequence[str] = ()) -> dict:
    """The efficiency report."""
    arguments = ["--cfg-path", run.recipe.stages[-1], "--out", str(report), "--ckpt", str(adapter)]
    if run.short:
        arguments += ["--iterations", "2", "--warmup", "1", "--decode-steps", "8"]
    run.command(name, "evaluate_efficiency.py", *arguments, *run.options(*overrides))
    return json.loads(report.read_text(encoding="utf-8"))


def measure_trained(run: Run, adapter: Path) -> None:
    """What the trained model costs; where its language model is quantised, also its scores and costs in float32.

    A folder of GPTQ weights has no unquantised ones to compare with.
    """
    path = run.output / "efficiency.json"
    report = measure_efficiency(run, adapter, path, "efficiency")
    run.efficiency = {name: report[name] for name in ("ttft_s", "tpot_s", "peak_gib", "rtfx")}
    run.files["efficiency: every figure, its spread, the machine"] = path
    backend = load_config(run.recipe.stages[-1], list(run.overrides)).model.quantization
    if backend in ("none", "gptq"):
        return
    own = {metric: run.scores[task].get(metric) for task, (_, metric) in TASKS.items()}
    run.precisions[backend] = {**own, **costs(report)}
    output = run.output / "float32"
    evaluate(run, "trained, float32", (f"run.output_dir={output}", f"model.ckpt={adapter}", *FLOAT32), java=False)
    report = measure_efficiency(run, adapter, output / "efficiency.json", "efficiency, float32", FLOAT32)
    run.precisions["float32"] = {**read_scores(output), **costs(report)}
    run.files["the same adapter on float32 weights: scores, efficiency"] = output


def costs(report: dict) -> dict[str, float | str]:
    """Of an efficiency report: what the weights take as they are loaded, times, memory, and what ran."""
    sizes = {row["part"]: row["bytes"] for row in report["parts"]}
    times = {name: report[name] for name in ("ttft_s", "tpot_s", "peak_gib", "kernel", "lora")}
    return {"llm_bytes": sizes["llm"], "model_bytes": sizes["total"], **times}


def precision_table(run: Run) -> str:
    """Quantised weights and float32 ones in one table, and how to read it."""
    rows: list[list[str | None]] = []
    for name, label in {
        "wer": "ASR: WER",
        "cider_d": "captions: CIDEr-D",
        "llm_bytes": "LLM's weights as loaded, bytes",
        "model_bytes": "all weights, bytes",
        "ttft_s": "TTFT, s, 10 s clip",
        "tpot_s": "TPOT, s, 10 s clip",
        "peak_gib": "peak memory, GiB, 10 s clip",
    }.items():
        values = [figures[name] for figures in run.precisions.values()]
        rows.append([label, *(f"{value:.4f}" if isinstance(value, float) else value for value in values)])
    figures = format_table(["one adapter, two precisions of the LLM", *run.precisions], rows)
    kernels = [f"{figures['kernel']}; LoRA: {figures['lora']}" for figures in run.precisions.values()]
    notes = ["float32: the weights in the LLM's folder, with an adapter that was trained on the quantised ones."]
    if ", cpu," in kernels[0]:
        notes += [
            "On a CPU, at this size, fewer bits save little and cost time: their kernels are slower than float32's,",
            "embeddings and output head are not quantised, and most of the peak is Python and its libraries.",
        ]
    return "\n".join([figures, *(f"  {kernel}" for kernel in kernels), *notes])


def table(run: Run) -> str:
    """The figures, and the path of each file."""

    def shown(value: float | None) -> str | None:
        return None if value is None else f"{value:.4f}"

    rows: list[list[str | None]] = []
    for task, label in (
        ("asr", "ASR: WER, 1 = 100 %, lower is better"),
        ("aac", "captions: CIDEr-D, higher is better"),
    ):
        metric = TASKS[task][1]
        rows.append([label, *(shown(run.scores[task].get(metric + variant)) for variant in VARIANTS)])
    units = {"ttft_s": "TTFT, s", "tpot_s": "TPOT, s", "peak_gib": "peak memory, GiB", "rtfx": "RTFx"}
    for name, label in units.items():
        rows.append([f"{label}, 10 s clip", shown(run.efficiency.get(name)), None, None])
    figures = format_table(["figure", *VARIANTS.values()], rows)
    places = "\n".join(f"  {path}  ({what})" for what, path in run.files.items())
    precisions = f"\n\n{precision_table(run)}" if run.precisions else ""
    return f"{figures}{precisions}\n\nFiles:\n{places}"


def write_summary(run: Run, seconds: float) -> Path:
    """Write summary.json; its scores are fractions."""
    path = run.output / "summary.json"
    run.files["summary: these figures"] = path
    content = {
        **run.scores,
        "efficiency": run.efficiency,
        "precisions": run.precisions,
        "seconds": round(seconds, 1),
        "seconds_by_step": run.seconds,
        "short": run.short,
        "about": "wer is a fraction; *_swapped: audio swapped between clips; *_untrained: fresh connector; "
        "precisions: the trained adapter on quantised weights and on the LLM's own in float32",
        "files": {what: str(place) for what, place in run.files.items()},
    }
    write_json(path, content)
    return path


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="python -m tools.demo", description="Train, evaluate and measure one recipe.")
    result.add_argument("--recipe", choices=RECIPES, default="demo", help="what to run (default: demo)")
    result.add_argument("--prefix", help="folder of the recordings, for recipes that are given theirs")
    result.add_argument("--output", help="folder to write to (default: outputs/<recipe>)")
    result.add_argument("--short", action="store_true", help="a few steps: shows that it runs, not what it reaches")
    result.add_argument("--options", nargs="*", default=[], help="section.key=value, for every command")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit status."""
    return command_line.run(work, parser(), argv)


def work(arguments: argparse.Namespace) -> None:
    """Run the recipe that the arguments name, step by step."""
    if arguments.recipe == "real" and not arguments.prefix:
        parser().error("--recipe real needs --prefix, the folder that holds the recordings (see configs/real)")
    start = time.monotonic()
    recipe = RECIPES[arguments.recipe]
    output = Path(arguments.output or f"outputs/{recipe.name}{'-short' if arguments.short else ''}")
    prefix = output / "corpus" if recipe.synthetic else arguments.prefix and Path(arguments.prefix)
    if Path.cwd() != ROOT:  # recipes and commands name files from there
        output, prefix = output.absolute(), prefix and prefix.absolute()
        print(f"tools.demo: continuing in {ROOT}, which the recipe's paths and those in --options start from")
        os.chdir(ROOT)
    overrides = [f"datasets.prefix={prefix}"] if prefix else []
    if load_config(recipe.stages[0]).datasets.cache_encoder_outputs:
        overrides.append(f"datasets.cache_encoder_outputs={output / 'frames'}")
    run = Run(recipe=recipe, output=output, overrides=(*overrides, *arguments.options), short=arguments.short)
    require_recordings(run, prefix)
    run.output.mkdir(parents=True, exist_ok=True)
    for stale in ("eval", "untrained", "float32", "summary.json", *(Path(config).stem for config in recipe.stages)):
        remove(run.output / stale)
    make_corpus(run)
    encode_clips(run)
    adapter = train_stages(run)
    for variant in VARIANTS:
        evaluate_variant(run, variant, adapter)
    measure_trained(run, adapter)
    seconds = time.monotonic() - start
    write_summary(run, seconds)
    print(f"\n{table(run)}\n\n{recipe.name}: done in {seconds / 60:.1f} minutes")
    if run.short:
        print("This was a short run: its scores show that everything runs, not what the recipe reaches.")


if __name__ == "__main__":
    sys.exit(main())
