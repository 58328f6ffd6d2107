"""`train.py --dryrun`: how large the model is, how much memory training needs, what the first batch looks like."""

from collections import Counter

import torch

from configs.schema import Config
from data.audio import SAMPLE_RATE
from dataset import AudioTextDataset, Batch
from models.salmonn import SALMONN
from provenance import GIB

ADAM_BYTES = 8  # two float32 moments a trained parameter
GRADIENT_BYTES = 4
SHOWN_CHARACTERS = 160


def describe(
    config: Config, model: SALMONN, train_data: AudioTextDataset, valid_data: AudioTextDataset | None, first: Batch
) -> str:
    """The dry run's report; `first` is the first training batch."""
    sections = [
        f"{config.path} -> {config.run.output_dir}",
        _parameters(model),
        _data("training", train_data),
        *([_data("validation", valid_data)] if valid_data is not None else []),
    ]
    if len(first):
        text, shapes = _first_batch(model, first)
        sections += [_memory(config, model, shapes), text]
    else:
        reasons = "\n".join(f"  {clip.path}: {clip.reason}" for clip in first.bad)
        sections.append(f"first batch: no clip of it can be read\n{reasons}")
    return "\n\n".join(sections)


def _parameters(model: SALMONN) -> str:
    lines = [f"{'part':<12}{'parameters':>16}{'trainable':>16}{'MiB':>12}"]
    lines += [
        f"{row.part:<12}{row.parameters:>16,}{row.trainable:>16,}{row.bytes / 2**20:>12,.1f}"
        for row in model.parameter_table()
    ]
    lines.append(f"language model's weights: {model.llm.kernel}")
    return "\n".join(lines)


def _data(name: str, data: AudioTextDataset) -> str:
    tasks = Counter(annotation.task for annotation in data.annotations)
    return f"{name}: {len(data):,} clips ({', '.join(f'{task} {count:,}' for task, count in tasks.most_common())})"


def _first_batch(model: SALMONN, batch: Batch) -> tuple[str, dict[str, int]]:
    """Run the first batch up to the language model's input; the text, and the sizes that memory depends on."""
    with torch.no_grad():
        tokens, mask = model.encode_audio(batch.waveforms, batch.lengths)
        assembled = model.assemble(tokens, mask, batch.text_batch)
    frames = max(model.encoders.frame_count(samples) for samples in batch.lengths.tolist())
    shapes = {"B": len(batch), "N": frames, "A": tokens.shape[1], "L": assembled.embeds.shape[1]}
    seconds = ", ".join(f"{samples / SAMPLE_RATE:.2f}" for samples in batch.lengths.tolist())
    lines = [
        "first batch:",
        f"  waveforms    [B, T]    {list(batch.waveforms.shape)}, {seconds} s",
        f"  audio tokens [B, A, H] {list(tokens.shape)}, of them {mask.sum(dim=1).tolist()}",
        f"  sequences    [B, L, H] {list(assembled.embeds.shape)}, {batch.text_batch.target_tokens} target tokens",
    ]
    for task, prompt, reference in zip(batch.tasks, batch.prompts, batch.references, strict=True):
        lines.append(f"  {task}: {_short(model.text.in_template(prompt))!r} -> {_short(reference)!r}")
    lines += [f"  not readable: {clip.path}: {clip.reason}" for clip in batch.bad]
    return "\n".join(lines), shapes


def _memory(config: Config, model: SALMONN, shapes: dict[str, int]) -> str:
    """Weights as loaded, gradients, optimiser, and a rough figure for the activations at the first batch."""
    total = model.parameter_table()[-1]
    rows = {
        "weights": total.bytes,
        "gradients": GRADIENT_BYTES * total.trainable,
        "AdamW": ADAM_BYTES * total.trainable,
        "activations (rough)": _activation_bytes(config, model, shapes),
    }
    rows["together"] = sum(rows.values())
    lines = [f"{'memory for training':<24}{'GiB':>10}"]
    return "\n".join(lines + [f"{name:<24}{size / GIB:>10.3f}" for name, size in rows.items()])


def _activation_bytes(config: Config, model: SALMONN, shapes: dict[str, int]) -> int:
    """What the backward pass keeps: about 8 H + 3 F numbers a token and layer of the LLM (F: its feed-forward width),
    its logits in float32 twice, 4 widths a frame and layer of the Q-Former, and 16 widths a frame and layer of each
    trained encoder."""
    size = 2 if config.run.amp else 4
    llm = model.llm.config
    per_token = 8 * llm.hidden_size + 3 * llm.intermediate_size
    tokens = shapes["B"] * shapes["L"]
    language = tokens * llm.num_hidden_layers * per_token * size + 2 * 4 * tokens * model.llm.vocab_size
    frames = shapes["B"] * shapes["N"]
    connector = frames * config.model.qformer_layers * 4 * config.model.qformer_hidden_size * size
    encoders = 0
    for name, encoder in model.encoders.encoders.items():
        blocks = max((len(part) for part in encoder.modules() if isinstance(part, torch.nn.ModuleList)), default=1)
        encoders += frames * encoder.dim * 16 * size * (1 if model.encoders.frozen[name] else blocks)
    return language + connector + encoders


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} …"
