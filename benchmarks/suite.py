"""What the comparisons share: jobs, each measured in a process of its own, and one report.

A benchmark is a list of jobs and what its table shows of them. `Suite` runs a job within the time that is left, prints
its figures at once, and writes the report, with machine, versions and commit, after every job: an interrupted run loses
nothing it measured. PyTorch is not imported here, so that `--help` is fast.
"""

from __future__ import annotations

import importlib.util
import json
import math
import pickle
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from configs.sections import ModelConfig
from support.command_line import quieten_libraries, require_writable
from support.files import write_json

if TYPE_CHECKING:
    from models.quantization.backends import Backend

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PROMPT = "<Speech><SpeechHere></Speech> Recognize the speech and give me the transcription."
MODEL = ModelConfig(
    llama_path="Qwen/Qwen2.5-0.5B-Instruct",
    whisper_path="openai/whisper-large-v3-turbo",
    beats_path="BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt",
    end_sym="<|im_end|>",
    bos_token="<|im_start|>",
    dtype="float32",
)
"""What is measured where no configuration is named."""
MODEL_NAME = "Whisper-large-v3-turbo, BEATs, Qwen2.5-0.5B-Instruct"
SMALL: dict[str, Any] = {
    "clip_s": 0.5,
    "decode_steps": 2,
    "iterations": 1,
    "warmup": 0,
    "calibration_s": 0.01,
    "reference_decode_steps": 2,
    "reference_iterations": 1,
    "clips": 2,
    "shortest_s": 0.5,
    "longest_s": 1.0,
    "evaluated_tokens": 2,
    "num_beams": 2,
    "evaluation_batch": 2,
    "training_batch": 1,
    "batches": (1, 2),
    "clips_s": (0.5, 1.0),
}
"""What `--small` puts in the place of a benchmark's sizes."""
SHOWN = {"ttft_s": "TTFT", "tpot_s": "TPOT", "seconds": "took"}


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a process measures."""

    name: str
    side: Literal["ours", "reference"]
    task: Literal["latency", "grid", "evaluation", "training"]
    config: ModelConfig
    """With paths of files that exist."""
    device: str = "cpu"
    clip_s: float = 10.0
    decode_steps: int = 32
    iterations: int = 3
    warmup: int = 1
    calibration_s: float = 0.3
    """For each rate of the device; ours only."""
    annotations: str | None = None
    """Of the clips to evaluate; a grid is then scored as well."""
    prefix: str | None = None
    """Folder that their paths start from."""
    prompt: str = PROMPT
    batch: int = 1
    """Clips at once, in evaluation and training."""
    num_beams: int = 1
    """In evaluation."""
    batches: tuple[int, ...] = ()
    clips_s: tuple[float, ...] = ()
    """Of the grid: every number of clips with every length."""
    point_s: float = 60.0
    """Points of the grid that would take longer, judging by smaller ones, are left out."""


def run_apart(job: Any, *, timeout_s: float | None = None, program: str = "benchmarks.jobs") -> dict[str, Any]:
    """The job's figures, measured by `program` (`run_here`) in a process of its own; `{"error": why}` where it failed
    or took longer than `timeout_s`."""
    with tempfile.TemporaryDirectory(prefix="job_") as folder:
        made = Path(folder, "result.json")
        command = [sys.executable, "-m", program, str(made)]
        try:
            status = subprocess.run(command, cwd=ROOT, input=pickle.dumps(job), timeout=timeout_s).returncode
        except subprocess.TimeoutExpired:
            return {"error": f"stopped after {timeout_s:.0f} s, the time it was given"}
        if not made.exists():
            return {"error": f"its process ended with status {status} and no result (memory?)"}
        return json.loads(made.read_text(encoding="utf-8"))


def run_here(argv: Sequence[str], run: Callable[[Any], dict[str, Any]]) -> int:
    """The other side of `run_apart`: the job from the standard input, its result into the file that `argv` names."""
    (made,) = argv
    quieten_libraries()
    try:
        result = run(pickle.load(sys.stdin.buffer))
    except Exception as error:  # the parent continues with other jobs and reports this one as failed
        traceback.print_exc()
        result = {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"}
    Path(made).write_text(json.dumps(result), encoding="utf-8")
    return int("error" in result)


Runner = Callable[..., dict[str, Any]]
"""`run_apart`, or what a test puts in its place."""


class Suite:
    """One run of a benchmark: its sizes, its clock, the report so far, and the file it is written to.

    `about` begins the report, `size` says how much is measured at full shape; `small` replaces what `SMALL` names.

    Raises:
        UserError: the file cannot be written there.
    """

    def __init__(
        self,
        out: Path,
        about: Mapping[str, Any],
        size: Mapping[str, Any],
        *,
        device: str = "cpu",
        small: bool = False,
        seconds: float = math.inf,
        run_job: Runner = run_apart,
    ) -> None:
        require_writable(str(out.parent), "--out")
        self.out, self.device, self.small, self.run_job = out, device, small, run_job
        self.size = {name: SMALL.get(name, value) if small else value for name, value in size.items()}
        self.report: dict[str, Any] = {**about, **origin(device), "size": self.size}
        if small:
            self.report["shapes"] = "small, for trying out"
        self.start = time.monotonic()
        self.end = self.start + seconds

    def spent_s(self) -> float:
        return time.monotonic() - self.start

    def left_s(self) -> float:
        return self.end - time.monotonic()

    def say(self, text: str) -> None:
        print(f"[{self.spent_s():6.0f} s] {text}", flush=True)

    def run(self, job: Job, *, timeout_s: float | None = None) -> dict[str, Any]:
        """The job's figures or its error, printed at once."""
        self.say(f"{job.name} …" if timeout_s is None else f"{job.name}, in at most {timeout_s:.0f} s …")
        result = self.run_job(job, timeout_s=timeout_s)
        self.say(f"{job.name}: {in_a_line(result)}")
        return result

    def write(self) -> None:
        write_report(self.out, self.report)


def write_report(out: Path, report: Mapping[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, report)


def origin(device: str) -> dict[str, Any]:
    """Where figures come from: machine, package versions, commit."""
    import torch

    from support import provenance

    return {
        "machine": provenance.machine(torch.device(device)),
        "versions": provenance.versions(),
        "commit": provenance.commit(),
    }


def back_ends(device: str) -> dict[str, Backend]:
    """Quantisations that run on this kind of device, whether or not their packages are installed here."""
    from models.quantization.backends import BACKENDS

    return {name: row for name, row in BACKENDS.items() if name != "none" and device in row.devices}


def is_installed(row: Backend) -> bool:
    return row.package is None or importlib.util.find_spec(row.package) is not None


@contextmanager
def weights_folder(kept: str | None) -> Iterator[Path]:
    """Where random weights are written: the folder that was asked for, or one that is deleted at the end."""
    with tempfile.TemporaryDirectory(prefix="random_weights_") as temporary:
        yield Path(kept or temporary)


def measured_points(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The points of a grid that were not left out."""
    return [point for point in result.get("points", []) if "ttft_s" in point]


def in_a_line(result: dict[str, Any]) -> str:
    """A job's main figures, or why there are none."""
    if "error" in result:
        return result["error"]
    line = ""
    if "points" in result:
        done = measured_points(result)
        if not done:
            return result["points"][0]["left_out"]
        result = done[-1]
        line = f"{len(done)} points, the largest (batch {result['batch']}, {result['clip_s']:g} s): "
    shown = [f"{label} {result[name]:.4f} s" for name, label in SHOWN.items() if name in result]
    line += ", ".join([*shown, f"peak {result['peak_gib']:.2f} GiB"])
    limit = result.get("limits", {}).get("figures", {}).get("tpot_s")
    return line + (f", TPOT {limit['ratio']:.1f} times the bandwidth's limit" if limit else "")


def ratio(slow: dict[str, Any] | None, fast: dict[str, Any] | None, figure: str) -> float | None:
    """How many times smaller `figure` is in `fast`; None where one of the two was not measured."""
    if not slow or not fast or slow.get(figure) is None or not fast.get(figure):
        return None
    return slow[figure] / fast[figure]
