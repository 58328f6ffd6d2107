"""Writes `docs/configuration.md` from the schema: `python -m configs.reference > docs/configuration.md`."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import sys
import typing
from typing import Any

from configs import augmentation, compat
from configs.parsing import described, field_types
from configs.schema import Config

INTRODUCTION = """# Configuration

One YAML file describes a model, its data and its run. It has the sections {sections};
each key is named below with its default.
*This page is made from the schema: `python -m configs.reference > docs/configuration.md`.*

```bash
python train.py --cfg-path configs/demo/stage1.yaml --options run.seed=1 model.lora_rank=16
```

- `--options` takes any number of `section.key=value`, which override the file.
- Keys that do not exist, values of the wrong type or out of range, paths that do not exist: one error for all of them,
  each with its line or `--options`, the key, what was found and the nearest valid name, before anything is loaded.
- A path to a model may be a folder or a hub name, `org/name` or `org/name@revision`: a folder of that name comes
  first, then the weights that `python -m tools.weights` brought ([weights.md](weights.md)), then the hub.
- Values may refer to others: `${{run.seed}}`; to the environment: `${{oc.env:DATA}}`.
- `null` (and, where null is allowed, an empty text) means "not given".
- Secrets (`model.token`, `wandb.key`) are never written, logged or exported; better give them as `HF_TOKEN` and
  `WANDB_API_KEY`, in the environment or in a file `.env` in the working folder, which every command reads (lines
  `NAME=value`; the environment comes first; the family's `HF_KEY` and `WANDB_KEY` are read as these two).
"""

FAMILY = """## Files of the SALMONN family

YAML files of SALMONN, of the 3B baseline's trainer and of the programs made from them load unchanged.

These keys have another name here:

| there | here |
|---|---|
{renamed}

`run.output_dir` and `run.optims` may have both stages (`stage1_output_dir`, `stage2_output_dir`; `optims_1`,
`optims_2`): the second one's become `run.output_dir_stage2` and `run.optims_stage2`. The sections `model_S` and
`model_T`, student and teacher, are `model` and `distillation.teacher`; what is said of `model` below applies to both.
Further switches:

| there | here |
|---|---|
| `model.qlora: true` | `model.quantization: nf4` |
| `model.low_resource: true` (`Low_resource`, `load_in_8bit`) | `model.quantization: int8` |
| `model.load_in_4bit: true` (`quant_4bit`) | `model.quantization: nf4` |
| `model.low_resource: true`, with `prune`, `whisper_lora`, `adapter` or `lora_16bit` | `model.quantization: nf4` |
| `model.quant_method: qlora` (`nf4`, `int8`, `gptq`), unless `low_resource` is false | `model.quantization` |
| `model.kd: true`, or `ckpt_teacher` | `distillation.teacher`, with the paths `teacher_…` and `ckpt_teacher` |
| `model.alpha`, `temperature`, with these | `distillation.labels`; `logits` is the rest; `temperature` |
| `model.ckpt_student` | `model.ckpt` |
| `model.pruned_path` | `model.llama_path` |
| `model.model_type: llama3` and `llama3_path` | `model.llama_path` |
| `model.use_bf16: true` | `model.dtype: bfloat16` |
| `datasets.test_ann_path_1` and `_2` | `datasets.test_ann_path`, a list |
| relative paths to `train_prompt.json`, `test_prompt.json` that do not exist | `prompts/train.json`, `test.json` |
| `model.qlora` (true or false), without `lora_target_modules` | all seven, as in cv-16's code |
| `model.qwen_path`, or a Qwen and `ced_path: ced_small` | nlp-07's BOS and LoRA on `gate_proj` too, unless given |
| `model.use_beats: false` | `model.beats_path: null` |
| `model.ced_path: ced_small` (`ced_tiny`, `ced_mini`, `ced_base`) | `mispeech/ced-small` and so on |
| `model.freeze_beats`, with CED and without BEATs | `model.freeze_ced` |
| `model.canary_path` | `model.parakeet_path`, `whisper_path: null`, and `freeze_whisper` is `freeze_parakeet` |
| `model.legacy: true` | `model.legacy: exact` |
| `wandb.log: true` | `wandb.mode: online` if a key is set, else `offline` |

These have no effect here; a run lists those in its file once, at its start:

| key | why it is ignored |
|---|---|
{ignored}

These switch on features that are not here: fine while they are off, an error where they are on.

| switch | its settings |
|---|---|
{absent}

`datasets.augmentation` also takes names, settings and defaults of audiomentations; `use: false` switches an entry off:

| there | here |
|---|---|
{augmentation}
"""


def docstrings(cls: type) -> dict[str, str]:
    """Field name -> the docstring under it, read from the source: a dataclass does not keep it."""
    body = ast.parse(inspect.getsource(cls)).body[0].body
    found: dict[str, str] = {}
    for statement, following in itertools.pairwise(body):
        if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
            value = following.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                found[statement.target.id] = " ".join(value.value.split())
    return found


def _default(field: dataclasses.Field) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return ""
    return f"`{_yaml(field.default)}`"


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value.replace("\n", "\\n") if value else '""'
    if isinstance(value, tuple):
        return f"[{', '.join(value)}]"
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _accepts(annotation: Any, metadata: Any) -> str:
    words = {"minimum": "at least", "above": "above", "maximum": "at most", "below": "below"}
    limits = [f"{text} {metadata[name]}" for name, text in words.items() if name in metadata]
    return ", ".join([described(annotation), *limits])


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def table(cls: type, title: str) -> str:
    """One section as Markdown."""
    texts, types = docstrings(cls), field_types(cls)
    rows = [
        _row(f"`{field.name}`", _default(field), _accepts(types[field.name], field.metadata), texts[field.name])
        for field in dataclasses.fields(cls)
    ]
    heading = f"## `{title}`\n\n{' '.join((cls.__doc__ or '').split())}\n"
    return "\n".join([heading, "| key | default | accepts | meaning |", "|---|---|---|---|", *rows, ""])


def with_mappings(tables: dict[str, type]) -> dict[str, type]:
    """Sections, each followed by its nested mappings that have keys of their own and did not come before."""
    found: dict[str, type] = {}
    for name, section in tables.items():
        found[name] = section
        for key, annotation in field_types(section).items():
            for kind in (annotation, *typing.get_args(annotation)):
                if dataclasses.is_dataclass(kind) and kind not in (*found.values(), *tables.values()):
                    found[f"{name}.{key}"] = kind
    return found


def markdown() -> str:
    """The whole page."""
    types = {name: kind for name, kind in field_types(Config).items() if dataclasses.is_dataclass(kind)}
    parts = [INTRODUCTION.format(sections=", ".join(f"`{name}`" for name in types))]
    parts += [table(kind, name) for name, kind in with_mappings(types).items()]
    parts.append(
        FAMILY.format(
            renamed="\n".join(f"| `{theirs}` | `{ours}` |" for theirs, ours in compat.RENAMED.items()),
            absent="\n".join(
                f"| `{switch}` | {', '.join(f'`{key}`' for key in absent.settings)} |"
                for switch, absent in compat.ABSENT.items()
            ),
            augmentation="\n".join(
                f"| `{name}` | `{library.kind}` |" for name, library in augmentation.LIBRARY.items()
            ),
            ignored="\n".join(f"| `{key}` | {why} |" for key, why in compat.IGNORED.items()),
        )
    )
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(markdown())
