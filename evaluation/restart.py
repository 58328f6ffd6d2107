"""What a text depends on, as digests: by them a line of an earlier run is known to be right, or is made again.

A line's digest covers the adapter's tensors, the model's files and settings, how text is generated, the program and its
libraries, the clip's prompt, the content of its audio files and its entry. Paths and times of clips do not count, nor
do references, nor how texts are scored: with other references or metrics nothing is decoded again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from configs.schema import Config
from configs.sections import ANNOTATION_PATHS
from data.annotations import Annotation
from evaluation.model_files import file_hashes
from evaluation.processes import Processes
from models.checkpoint.adapter_folder import LEGACY_SUFFIXES, adapter_state_dict
from models.released_rules import rules_of
from models.salmonn import SALMONN
from support import provenance
from support.content_hash import ContentHashes, digest_of

BY_CONTENT = frozenset({"ckpt", "prompt_path", "test_prompt_path", "speech_llama_proj_model"})
"""Keys of `model` whose files are read into what is hashed."""
WITHOUT_EFFECT = frozenset(
    {
        *ANNOTATION_PATHS,
        "prefix",
        "long_clips",
        "max_bad_fraction",
        "cache_encoder_outputs",
        "augmentation",
        "join_clips",
        "bucket_batches",
        "task_weights",
    }
)
"""Keys of `datasets` that change nothing in an evaluation's texts; a key that is not known here counts."""
NOT_ENCODED = frozenset({"path", "expand_wav", "text", "texts", "testset_id", "source", "index"})
"""Fields of an annotation that do not count: its files do by their content, the others are not given to the model."""
PROGRAM = ("data", "models", "evaluation", "dataset.py", "scoring/words.py")
"""What turns clips into texts; the last one cleans them."""


@dataclass(frozen=True, kw_only=True)
class Digests:
    """Of one evaluation."""

    parts: dict[str, str]
    """What all lines depend on, and all prompts and all clips, by names for messages."""
    lines: list[str]
    """One for each annotation."""


def digests(
    model: SALMONN,
    config: Config,
    annotations: Sequence[Annotation],
    prompts: Mapping[str, object],
    *,
    contents: ContentHashes | None = None,
    processes: Processes | None = None,
) -> Digests:
    """The digests of an evaluation; every process must call it, and all get those of the first one's files."""
    contents, processes = contents or ContentHashes(), processes or Processes()
    shared = _shared_parts(model, config, contents) if processes.is_main else None
    shared = processes.gather(shared)[0]
    files = [path for annotation in annotations for path in (annotation.path, *annotation.expand_wav)]
    audio: dict[str, str] = {}
    for part in processes.gather(contents.of_files(files[processes.rank :: processes.size])):
        audio |= part
    clips = [_digest([audio[a.path], [audio[path] for path in a.expand_wav], _entry(a)]) for a in annotations]
    asked = {task: _digest(prompts.get(task)) for task in {a.task for a in annotations}}
    parts = shared | {"prompts": digest_of(asked), "clips": digest_of(clips)}
    common = digest_of(parts if _depends_on_batch(config) else shared)
    return Digests(
        parts=parts,
        lines=[digest_of((common, asked[a.task], clip)) for a, clip in zip(annotations, clips, strict=True)],
    )


def _shared_parts(model: SALMONN, config: Config, contents: ContentHashes) -> dict[str, str]:
    settings = config.to_dict()
    files = file_hashes(config.model, contents)
    of_model = {name: value for name, value in settings["model"].items() if name not in (*BY_CONTENT, *files)}
    reading = {name: value for name, value in settings["datasets"].items() if name not in WITHOUT_EFFECT}
    seed = config.run.seed if config.generate.do_sample else None
    batch = config.run.batch_size_eval if _depends_on_batch(config) else None
    program = [provenance.source_digest(PROGRAM), provenance.versions(), model.device.type, model.llm.kernel]
    return {
        "adapter": _adapter(model, config, contents),
        "model": _digest([of_model, files]),
        "generation settings": _digest([settings["generate"], reading, seed, batch]),
        "program": _digest(program),
    }


def _depends_on_batch(config: Config) -> bool:
    return rules_of(config.model).encoders.depends_on_batch


def _adapter(model: SALMONN, config: Config, contents: ContentHashes) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(adapter_state_dict(model).items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    for path in (config.model.ckpt, config.model.speech_llama_proj_model):
        if path and path.endswith(LEGACY_SUFFIXES):  # such a file may replace the vocabulary, too
            digest.update(contents.of_file(path).encode())
    return digest.hexdigest()


def _entry(annotation: Annotation) -> dict[str, object]:
    """All of an entry that may change what is encoded or asked; of unknown fields that is not known."""
    fields = {field.name for field in dataclasses.fields(annotation)} - NOT_ENCODED
    return {name: getattr(annotation, name) for name in sorted(fields)}


def _digest(value: object) -> str:
    return digest_of([json.dumps(value, sort_keys=True, default=str)])
