"""Round a language model to GPTQ folders, read them back, and compare each with the model as it was."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from transformers import AutoConfig

from configs.parsing import ConfigError
from configs.schema import Config, load_config
from configs.sections import ModelConfig
from data.annotations import Annotation, load_annotations
from data.batch import BadClip, Sample
from data.prompts import load_prompts
from dataset import AudioTextDataset
from evaluation.hypotheses import evaluate_annotations
from evaluation.processes import Processes
from models.build import build_model
from models.checkpoint.adapter_folder import adapter_state_dict, write_adapter
from models.device import pick_device
from models.hub import located
from models.quantization import backends
from models.quantization.gptq import GPTQSettings
from models.quantization.gptq_folder import save_folder
from models.quantization.gptq_solver import Rounded
from models.salmonn import SALMONN
from models.sizes import part_sizes
from support.command_line import UserError, require_writable
from support.files import write_json
from support.tables import format_table
from tools.calibration import LinearReport, audio_sequences, quantize_layers, text_sequences

REPORT = "report.json"
EQUAL = 1e-4
"""Largest difference, over the largest logit, that a folder read back may show: the order of sums, nothing else."""
PRESETS = {
    "nf4": ("model.quantization=nf4",),
    "int8": ("model.quantization=int8",),
    "torchao_int8": ("model.quantization=torchao_int8",),
    "torchao_int4": ("model.quantization=torchao_int4", "model.dtype=bfloat16"),
    "int8-encoders": ("model.encoder_quantization=int8",),
}
NOT_COPIED = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack", "*.index.json", "config.json")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One row of the report."""

    name: str
    kernel: str
    llm_mib: float
    """Language model with LoRA, as loaded."""
    total_mib: float
    loss: float
    """Nats a target token, on the held-out clips."""
    flips: float | None
    """Share of their target tokens for which another token is the likeliest than unquantised; None for that row."""
    scores: dict[str, float | None]
    changed: float | None
    """Share of the scored clips whose text changes; None for the unquantised row, and where nothing was scored."""


class Bench:
    """Measures models on the same held-out clips, against the first one measured."""

    def __init__(self, config: Config, held_out: Sequence[Sample], scored: Sequence[Annotation]) -> None:
        self.config = config
        self.held_out = held_out
        self.scored = scored
        self._tokens: list[torch.Tensor] | None = None
        self._texts: list[str] | None = None

    @property
    def target_tokens(self) -> int:
        """What shares of flips are shares of; known once a model was measured."""
        return sum(len(part) for part in self._tokens or ())

    @torch.no_grad()
    def loss(self, model: SALMONN) -> tuple[float, list[torch.Tensor]]:
        """Nats a target token, and the likeliest token at each target, clip by clip."""
        total, count, likeliest = 0.0, 0, []
        for sample in self.held_out:
            text = model.text.batch([sample.prompt], [sample.text])
            output = model(sample.waveform[None], torch.tensor([len(sample.waveform)]), text_batch=text)
            total, count = total + output.loss_sum.item(), count + output.target_tokens
            likeliest.append(output.logits.argmax(-1).cpu())
        return total / max(1, count), likeliest

    def measure(self, name: str, model: SALMONN) -> Measured:
        """A row for `model`; others are compared with the first model measured."""
        loss, tokens = self.loss(model)
        texts, scores = self._score(model)
        first = self._tokens is None
        if first:
            self._tokens, self._texts = tokens, texts
        other = sum(int((one != two).sum()) for one, two in zip(self._tokens, tokens, strict=True))
        changed = sum(one != two for one, two in zip(self._texts, texts, strict=True))
        sizes = {row.part: row.bytes / 2**20 for row in part_sizes(model)}
        row = Measured(
            name=name,
            kernel=model.llm.kernel,
            llm_mib=round(sizes["llm"] + sizes.get("lora", 0), 3),
            total_mib=round(sizes["total"], 3),
            loss=loss,
            flips=None if first else other / max(1, self.target_tokens),
            scores=scores,
            changed=None if first or not texts else changed / len(texts),
        )
        print(f"{name}: {_words(row)}", flush=True)
        return row

    def _score(self, model: SALMONN) -> tuple[list[str], dict[str, float | None]]:
        if not self.scored:
            return [], {}
        prompts = load_prompts(self.config.model.test_prompt_path or self.config.model.prompt_path or "")
        result = evaluate_annotations(model, self.scored, prompts, self.config, processes=Processes(), java=False)
        scores = {f"{task}.{row.primary}": row.values.get(row.primary) for task, row in result.tasks.items()}
        return [prediction.hypothesis for prediction in result.predictions], scores


def built(config: Config, model: ModelConfig, device: torch.device) -> SALMONN:
    """The model, with the same fresh adapter each time where no checkpoint is named."""
    torch.manual_seed(config.run.seed)
    return build_model(dataclasses.replace(model, allow_slow_kernels=True), device)


def samples_of(config: Config, annotations: Sequence[Annotation], count: int, *, skip: int = 0) -> list[Sample]:
    """`count` readable clips, drawn at random from the annotations, after the `skip` first of the draw."""
    prompts = load_prompts(config.model.prompt_path or config.model.test_prompt_path or "")
    dataset = AudioTextDataset(
        annotations, prompts, seed=config.run.seed, training=True, max_audio_s=config.datasets.max_audio_s
    )
    generator = torch.Generator().manual_seed(config.run.seed)
    order = torch.randperm(len(annotations), generator=generator).tolist()[skip:]
    samples: list[Sample] = []
    for index in order:
        if len(samples) == count:
            break
        sample = dataset[(0, index)]
        if not isinstance(sample, BadClip):
            samples.append(sample)
    return samples


def round_model(
    bench: Bench, model: SALMONN, arguments: argparse.Namespace, settings: GPTQSettings, samples: Sequence[Sample]
) -> tuple[dict[str, Rounded], list[dict]]:
    """Calibrate and round; prints a line a layer. Returns what files hold, and the layers' rows of the report."""
    lines = [sample.text for sample in samples]
    if arguments.text:
        lines = Path(arguments.text).read_text(encoding="utf-8").splitlines()
    sequences = audio_sequences(model, samples)
    sequences += text_sequences(model, lines, arguments.text_samples, arguments.text_length)
    kinds = [sequence.kind for sequence in sequences]
    tokens = sum(sequence.embeds.shape[1] for sequence in sequences)
    print(f"calibrating on {kinds.count('audio')} clips and {kinds.count('text')} texts, {tokens:,} tokens", flush=True)
    before, _ = bench.loss(model)
    rows: list[dict] = []

    def after_layer(index: int, reports: list[LinearReport]) -> None:
        loss, _ = bench.loss(model)
        errors = ", ".join(f"{row.name} {row.error:.4f} ({row.nearest:.4f})" for row in reports)
        print(f"layer {index}: loss {loss:.4f} ({loss - before:+.4f}); outputs move by {errors}", flush=True)
        rows.append({"layer": index, "loss": loss, "linears": [dataclasses.asdict(row) for row in reports]})

    print(f"loss {before:.4f}; in brackets: rounded to the nearest", flush=True)
    rounded = quantize_layers(model.llm, sequences, settings, damp=arguments.damp, after_layer=after_layer)
    return rounded, rows


def write_gptq(model: SALMONN, rounded: dict[str, Rounded], settings: GPTQSettings, source: str, out: Path) -> None:
    """Write the folder: packed layers, everything else in the type that the source's files have, tokenizer files."""
    network = model.llm.model
    name, revision = located(source)
    stored_type = AutoConfig.from_pretrained(name, revision=revision, token=model.config.token).dtype
    if isinstance(stored_type, torch.dtype):
        network.to(stored_type)
    for wrapped, layer in rounded.items():
        owner = wrapped.removesuffix(".base_layer")
        bias = network.get_submodule(wrapped).bias
        network.set_submodule(owner, layer.stored(settings, None if bias is None else bias.detach()))
    for owner, lora in [(name, module) for name, module in network.named_modules() if hasattr(module, "base_layer")]:
        network.set_submodule(owner, lora.base_layer)  # LoRA on what was not rounded
    save_folder(network, out, settings)
    origin = Path(name)
    if not origin.is_dir():
        files = snapshot_download(name, revision=revision, token=model.config.token, ignore_patterns=list(NOT_COPIED))
        origin = Path(files)
    for path in sorted(origin.iterdir()):
        known = any(path.match(pattern) for pattern in NOT_COPIED)
        if path.is_file() and not known and not (out / path.name).exists():
            shutil.copyfile(path, out / path.name)


def quantized(
    bench: Bench,
    arguments: argparse.Namespace,
    settings: GPTQSettings,
    samples: Sequence[Sample],
    device: torch.device,
    *,
    merge: bool,
    out: Path,
) -> tuple[Measured, dict]:
    """One folder: rounded, written, read back, compared with what was written, and measured as it will run."""
    config = bench.config
    plain = dataclasses.replace(config.model, quantization="none")
    model = built(config, plain, device)
    served = dataclasses.replace(plain, quantization="gptq", llama_path=str(out))
    if merge:
        adapter = {name: value for name, value in adapter_state_dict(model).items() if "lora_" not in name}
        model.llm.merge_lora()
        for name, layer in [(n, m) for n, m in model.llm.model.named_modules() if hasattr(m, "base_layer")]:
            model.llm.model.set_submodule(name, layer.base_layer)
        served = dataclasses.replace(served, lora=False, ckpt=str(out / "adapter"))
    print(f"\n{out}: {settings.bits} bits, groups of {settings.group_size}, LoRA {'merged' if merge else 'beside'}")
    rounded, layers = round_model(bench, model, arguments, settings, samples)
    expected = _logits(model, bench.held_out)
    write_gptq(model, rounded, settings, plain.llama_path, out)
    if merge:
        write_adapter(adapter, out / "adapter", config=dataclasses.replace(config, model=served))
    del model, rounded
    exact = built(config, dataclasses.replace(served, gptq_kernel="dequantize"), device)
    difference = (_logits(exact, bench.held_out) - expected).abs().max() / expected.abs().max()
    print(f"read back: logits differ by {difference:.1e} of the largest")
    if not difference <= EQUAL and exact.llm.dtype == torch.float32:
        raise RuntimeError(f"{out} does not give what was rounded: logits differ by {difference:.1e} of the largest")
    del exact
    name = f"gptq, LoRA {'merged' if merge else 'beside'}" if plain.lora else "gptq"
    row = bench.measure(name, built(config, served, device))
    return row, {"folder": str(out), "read_back": float(difference), "layers": layers}


@torch.no_grad()
def _logits(model: SALMONN, samples: Sequence[Sample]) -> torch.Tensor:
    sample = samples[0]
    text = model.text.batch([sample.prompt], [sample.text])
    return model(sample.waveform[None], torch.tensor([len(sample.waveform)]), text_batch=text).logits.float().cpu()


def compared_config(wanted: str, arguments: argparse.Namespace) -> Config:
    """The configuration of one `--compare`."""
    options = PRESETS.get(wanted) or tuple(wanted.split(","))
    if not all("=" in option for option in options):
        raise ConfigError(f"--compare {wanted}: expected {', '.join(PRESETS)} or section.key=value")
    return load_config(arguments.cfg_path, [*arguments.options, "model.quantization=none", *options])


def compare(bench: Bench, wanted: str, arguments: argparse.Namespace, device: torch.device) -> Measured | None:
    """The row of another choice; None, with the reason on the screen, where it does not run here."""
    config = compared_config(wanted, arguments)
    try:
        model = built(config, config.model, device)
    except UserError as error:
        print(f"{wanted}: left out: {error}", flush=True)
        return None
    return bench.measure(wanted, model)


def check(arguments: argparse.Namespace, config: Config) -> None:
    """Raise a UserError, before minutes of work, for what would end it later."""
    for wanted in arguments.compare:
        compared_config(wanted, arguments)
    if arguments.text and not Path(arguments.text).is_file():
        raise ConfigError(f"--text {arguments.text}: no such file; expected lines of plain text")
    if Path(arguments.out).resolve() == Path(config.model.llama_path).resolve():
        raise ConfigError(f"--out {arguments.out}: is the folder of the model itself; give another one")
    require_writable(arguments.out, "--out")
    for folder in folders(arguments, config).values():
        if (folder / "config.json").exists() and not arguments.overwrite:
            raise ConfigError(f"--out {arguments.out}: {folder} holds a model already; give another, or --overwrite")


def folders(arguments: argparse.Namespace, config: Config) -> dict[bool, Path]:
    """Whether LoRA is merged before rounding -> the folder that is written so."""
    out = Path(arguments.out)
    if not config.model.lora or arguments.lora == "beside":
        return {False: out}
    return {True: out} if arguments.lora == "merge" else {False: out, True: out.with_name(f"{out.name}-merged")}


def run(arguments: argparse.Namespace) -> dict:
    """Everything; the report."""
    config = load_config(arguments.cfg_path, arguments.options)
    check(arguments, config)
    if backends.stored_backend(_llm_config(config.model)) is not None:
        raise ConfigError(f"{config.path}: model.llama_path: {config.model.llama_path} is quantised already")
    if not config.datasets.train_ann_path:
        raise ConfigError(f"{config.path}: datasets.train_ann_path: not given; the model is calibrated on its clips")
    device = pick_device(config.run.device)
    settings = GPTQSettings(
        bits=arguments.bits, group_size=arguments.group_size, desc_act=arguments.act_order, sym=not arguments.asym
    )
    training = load_annotations(config.datasets.train_ann_path, config.datasets.prefix)
    samples = samples_of(config, training, arguments.samples)
    scored_on = arguments.score_on or config.datasets.valid_ann_path
    if scored_on:
        others = load_annotations(scored_on, config.datasets.prefix)
        held_out = samples_of(config, others, arguments.held_out)
    else:
        others, held_out = [], samples_of(config, training, arguments.held_out, skip=arguments.samples)
    if not samples or not held_out:
        raise ConfigError(f"{config.path}: no clip can be read, or too few for --samples and --held-out")
    count = min(arguments.score_samples, len(others))
    bench = Bench(config, held_out, [others[index * len(others) // count] for index in range(count)])

    rows = [bench.measure("unquantised", built(config, dataclasses.replace(config.model, quantization="none"), device))]
    details = []
    for merge, out in folders(arguments, config).items():
        row, detail = quantized(bench, arguments, settings, samples, device, merge=merge, out=out)
        rows.append(row)
        details.append(detail)
    rows += [row for wanted in arguments.compare if (row := compare(bench, wanted, arguments, device)) is not None]
    report = {
        "config": config.path,
        "settings": settings.to_config(),
        "calibration": {"clips": len(samples), "held_out": len(held_out), "scored": len(bench.scored)},
        "target_tokens": bench.target_tokens,
        "rows": [dataclasses.asdict(row) for row in rows],
        "folders": details,
    }
    for detail in details:
        write_json(Path(detail["folder"]) / REPORT, report)
    print("\n" + table(rows))
    print(f"flips: of {bench.target_tokens:,} target tokens; texts and scores: of {len(bench.scored):,} clips")
    return report


def _llm_config(model: ModelConfig) -> object:
    if not model.llama_path:
        raise ConfigError("model.llama_path is not set")
    name, revision = located(model.llama_path)
    try:
        return AutoConfig.from_pretrained(name, revision=revision, token=model.token)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.llama_path: {model.llama_path!r} cannot be read: {error}") from error


def table(rows: Sequence[Measured]) -> str:
    """The rows as text."""
    names = list(dict.fromkeys(name for row in rows for name in row.scores))
    head = ["", "LLM MiB", "all MiB", "loss", "flips", "texts changed", *names]
    cells = []
    for row in rows:
        shares = ["" if share is None else f"{100 * share:.2f} %" for share in (row.flips, row.changed)]
        scores = ["" if row.scores.get(name) is None else f"{row.scores[name]:.4f}" for name in names]
        cells.append([row.name, f"{row.llm_mib:.2f}", f"{row.total_mib:.2f}", f"{row.loss:.4f}", *shares, *scores])
    return format_table(head, cells)


def _words(row: Measured) -> str:
    scores = ", ".join(f"{name} {value:.4f}" for name, value in row.scores.items() if value is not None)
    flips = "" if row.flips is None else f", {100 * row.flips:.2f} % of tokens flip"
    return f"{row.kernel}; loss {row.loss:.4f}{flips}{f'; {scores}' if scores else ''}"
