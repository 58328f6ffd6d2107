"""`train.py --dryrun`: how large the model is, how much memory it takes, what the first batch looks like.

The plan needs neither weights nor data: the model is built from configs/architectures on the meta device.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from configs import augmentation
from configs.known_weights import bringing_command, cached_weights
from configs.paths import PROGRAM, program_file
from configs.schema import Config, load_config
from configs.sections import GenerateConfig, ModelConfig
from data.batch import Batch
from data.prompts import PromptError, load_prompts
from dataset import AudioTextDataset
from efficiency.memory_plan import InferencePlan, PlannedClip, TrainingPlan, plan_inference, plan_training
from efficiency.report import published_rows, published_variants
from models.build import build_model
from models.device import pick_device
from models.encoders.table import ENCODERS
from models.salmonn import SALMONN
from models.sizes import part_sizes
from support.units import GIB, SAMPLE_RATE
from training.precision import training_model_config

SHOWN_CHARACTERS = 160
CHARACTERS_A_TOKEN = 4  # of English, roughly; used without a tokenizer
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def missing_weights(model: ModelConfig) -> dict[str, str]:
    """Key -> path of the language model, encoders and adapter that are neither on disk nor in the hub's cache."""
    keys = ["llama_path", *(entry.path_key for entry in ENCODERS.values()), "ckpt", "speech_llama_proj_model"]
    named = {f"model.{key}": getattr(model, key) for key in keys}
    return {key: path for key, path in named.items() if path and not _is_available(path)}


def _is_available(path: str) -> bool:
    if Path(path).exists() or cached_weights(path) is not None:
        return True
    name, _, revision = path.partition("@")
    try:
        found = (try_to_load_from_cache(name, file, revision=revision or None) for file in WEIGHT_FILES)
        return any(isinstance(file, str) for file in found)
    except HFValidationError:  # a path, not a hub name
        return False


def how_to_bring(weights: Mapping[str, str]) -> str:
    """Which commands bring missing weights, a line each; '' where none does."""
    commands = dict.fromkeys(filter(None, map(bringing_command, weights.values())))
    return "".join(f"\n{command} brings those that are known to it" for command in commands)


def missing_data(config: Config) -> list[str]:
    """Annotation and prompt files that training needs and that do not exist: `key = path`."""
    datasets = config.datasets
    absent = [] if datasets.train_ann_path else ["datasets.train_ann_path is not set: planned for inference alone"]
    for key in ("train_ann_path", "valid_ann_path"):
        value = getattr(datasets, key) or ()
        for path in (value,) if isinstance(value, str) else value:
            places = [Path(path), Path(datasets.prefix or "") / path]
            if not any(place.exists() for place in places):
                absent.append(f"datasets.{key} = {path}")
    if config.model.prompt_path and not program_file(config.model.prompt_path).is_file():
        absent.append(f"model.prompt_path = {config.model.prompt_path}")
    return absent


def planned_device(config: Config) -> torch.device:
    """The device that the file names, whether it exists or not; `auto` is one that does."""
    named = config.run.device
    return pick_device() if named == "auto" else torch.device(named.partition(":")[0])


def plan(config: Config, device: torch.device, model: SALMONN | None = None) -> str:
    """The memory plan for `device`: parts, a clip's inference, a training step, the published figure.

    `model` is the one to train, where its weights are available; None takes sizes from the architecture facts. A file
    that names nothing to train on is planned for inference alone.

    Raises:
        UserError: the architecture of a part is unknown.
    """
    aligning = config.run.stage == "align"
    serving = training = build_model(config.model, device, weights=False)
    workload = ten_second_clip(config, model)
    training_config = training_model_config(config, device) if config.datasets.train_ann_path else config.model
    if training_config != config.model or aligning:
        training = build_model(training_config, device, weights=False, aligning=aligning)
    serving_plan = plan_inference(serving, workload)
    sections = [
        f"{config.path} -> {config.run.output_dir}",
        _parameters(model or training, planned=model is None),
        _inference(config, serving, serving_plan, workload, device),
    ]
    if config.datasets.train_ann_path and aligning:
        sections.append(
            "training: the alignment stage loads no language model, and takes less than the stages after it"
        )
    elif config.datasets.train_ann_path:
        half = torch.bfloat16 if config.model.dtype == "bfloat16" else torch.float16
        amp = half if config.run.amp and device.type == "cuda" else None
        sections.append(
            _training(plan_training(training, workload, batch=config.run.batch_size_train, amp=amp), workload)
        )
    if config.datasets.train_ann_path:
        sections.append(_augmentation(config))
    published = published_for(config)
    if published is None:
        sections.append("no figure is published for these networks")
    else:
        sections.append(_beside_published(published, config, workload, serving_plan))
    return "\n\n".join(sections)


def _augmentation(config: Config) -> str:
    """What is done to waveforms in training, in the order in which it is done; the file's loading has checked it."""
    lines = []
    for step in augmentation.read(config.datasets.augmentation or {}).steps:
        settings = ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(step).items() if value != ())
        lines.append(f"  {augmentation.name_of(step)}: {settings}")
    return "\n".join(["augmentation:", *lines]) if lines else "augmentation: none"


def describe(model: SALMONN, train_data: AudioTextDataset, valid_data: AudioTextDataset | None, first: Batch) -> str:
    """Clips and first training batch of a run that has its weights and data."""
    sections = [describe_data(train_data, valid_data)]
    if len(first):
        sections.append(_first_batch(model, first))
    else:
        reasons = "\n".join(f"  {clip.path}: {clip.reason}" for clip in first.bad)
        sections.append(f"first batch: no clip of it can be read\n{reasons}")
    return "\n\n".join(sections)


def describe_data(train_data: AudioTextDataset, valid_data: AudioTextDataset | None) -> str:
    """Numbers of clips, task by task."""
    lines = []
    for name, data in (("training", train_data), ("validation", valid_data)):
        if data is not None:
            tasks = Counter(annotation.task for annotation in data.annotations)
            counts = ", ".join(f"{task} {count:,}" for task, count in tasks.most_common())
            parts = sum(annotation.part is not None for annotation in data.annotations)
            also = f", {parts:,} of them parts of recordings" if parts else ""
            lines.append(f"{name}: {len(data):,} clips ({counts}){also}")
    return "\n".join(lines)


def published_for(config: Config) -> dict | None:
    """The row of efficiency/published.json for the system that a configuration describes: by its folder's name, where
    its networks are those of the folder's evaluate.yaml; else the folder's variant with the same networks."""
    folder = Path(config.path).resolve().parent
    row = next((row for row in published_rows() if _plain_name(row["name"]) == _plain_name(folder.name)), None)
    main = folder / "evaluate.yaml"
    if row is not None and main.is_file() and _networks(load_config(main).model) == _networks(config.model):
        return row
    for variant in published_variants():
        file = PROGRAM / variant["config"]
        if file.parent == folder and _stored(load_config(file, variant["options"]).model) == _stored(config.model):
            return variant
    return None


def _stored(model: ModelConfig) -> tuple:
    """What its weights take: networks and quantisation."""
    return (*_networks(model), model.quantization)


def _networks(model: ModelConfig) -> list[str | None]:
    return [model.llama_path, *(getattr(model, entry.path_key) for entry in ENCODERS.values())]


def plan_as_published(config: ModelConfig, workload: PlannedClip) -> InferencePlan:
    """The plan for the published programs: every encoder in float32, 30 s for Whisper, one decode step."""
    released = dataclasses.replace(config, legacy="weights", ckpt=None)
    model = build_model(released, "cuda", weights=False, encoder_dtype=torch.float32)
    step = GenerateConfig(num_beams=1, max_new_tokens=2)
    return plan_inference(model, dataclasses.replace(workload, generate=step))


def _plain_name(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def ten_second_clip(config: Config, model: SALMONN | None = None) -> PlannedClip:
    """A clip of 10 s under the template and a middling instruction."""
    try:
        prompts = load_prompts(config.model.test_prompt_path or config.model.prompt_path or "")
        texts = sorted((text for task in prompts for text in prompts.choices(task)), key=len)
        prompt = texts[len(texts) // 2]
    except PromptError:
        return PlannedClip(generate=config.generate)
    if model is not None:
        text = model.text.batch([prompt])
        count = len(text.before[0]) + len(text.after[0])
    else:
        written = config.model.prompt_template.replace("{}", prompt).replace("<SpeechHere>", "")
        count = 1 + round(len(written) / CHARACTERS_A_TOKEN)
    return PlannedClip(prompt_tokens=count, generate=config.generate)


def _parameters(model: SALMONN, *, planned: bool) -> str:
    lines = [f"{'part':<12}{'parameters':>16}{'trainable':>16}{'MiB as loaded':>16}"]
    lines += [
        f"{row.part:<12}{row.parameters:>16,}{row.trainable:>16,}{row.bytes / 2**20:>16,.1f}"
        for row in part_sizes(model)
    ]
    if planned:
        lines.append("(from architecture facts, no weight was read)")
    lines.append(f"language model's weights: {model.llm.kernel}")
    return "\n".join(lines)


def _inference(
    config: Config, model: SALMONN, planned: InferencePlan, workload: PlannedClip, device: torch.device
) -> str:
    generate = config.generate
    lines = [
        f"memory for inference on {device.type}, compute {str(model.llm.dtype).removeprefix('torch.')}: one clip of "
        f"{workload.seconds:g} s, {planned.audio_tokens} audio tokens, {planned.sequence} tokens before the answer; "
        f"{generate.num_beams} beam{'s' * (generate.num_beams > 1)} of up to {generate.max_new_tokens} tokens",
        f"{'':<32}{'GiB':>10}",
        _row("weights", planned.weights),
    ]
    for name, size in planned.activations.items():
        lines.append(_row(f"activations, {name}", size))
    lines.append(_row("  of it keys and values", planned.cache))
    return "\n".join([*lines, _row("expected peak", planned.peak)])


def _training(planned: TrainingPlan, workload: PlannedClip) -> str:
    rows = {
        "weights": planned.weights,
        "gradients": planned.gradients,
        "AdamW": planned.optimizer,
        "activations": planned.activations,
        "expected peak": planned.peak,
    }
    lines = [
        f"memory for training: batches of {planned.batch} clips of {workload.seconds:g} s, {planned.sequence} tokens "
        "each",
        f"{'':<32}{'GiB':>10}",
    ]
    return "\n".join(lines + [_row(name, size) for name, size in rows.items()])


def _row(name: str, size: int) -> str:
    return f"{name:<32}{size / GIB:>10.3f}"


def _beside_published(row: dict, config: Config, workload: PlannedClip, ours: InferencePlan) -> str:
    theirs = plan_as_published(config.model, workload)
    note = [f"note: {row['note']}"] if "note" in row else []
    return "\n".join(
        [
            f"next to the published system {row['name']} ({row['parts']})",
            f"{'':<32}{'GiB':>10}",
            _row("this program, expected", ours.peak),
            _row("its encoders in fp32, 30 s", theirs.peak),
            f"{'published, ' + row['device']:<32}{row['peak_gb']:>10.3f}",
            *note,
        ]
    )


def _first_batch(model: SALMONN, batch: Batch) -> str:
    """Run the first batch up to the language model's input."""
    with torch.no_grad():
        tokens, mask = model.encode_audio(batch.waveforms, batch.lengths)
        assembled = model.assemble(tokens, mask, batch.text_batch)
    seconds = ", ".join(f"{samples / SAMPLE_RATE:.2f}" for samples in batch.lengths.tolist())
    lines = [
        "first batch:",
        f"  waveforms    [B, T]    {list(batch.waveforms.shape)}, {seconds} s",
        f"  audio tokens [B, A, H] {list(tokens.shape)}, of them {mask.sum(dim=1).tolist()}",
        f"  sequences    [B, L, H] {list(assembled.embeds.shape)}, {batch.text_batch.target_tokens} target tokens",
    ]
    for task, prompt, reference in zip(batch.tasks, batch.prompts, batch.references, strict=True):
        lines.append(f"  {task}: {_short(model.text.in_template(prompt))!r} -> {_short(reference)!r}")
    return "\n".join(lines + [f"  not readable: {clip.path}: {clip.reason}" for clip in batch.bad])


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} …"
