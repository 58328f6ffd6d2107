"""Adapter folders: written whole or not at all, loaded strictly, with a report.

    <folder>/adapter.safetensors   every trained parameter, and all that is in no base checkpoint (connector, LoRA)
             config.yaml           the configuration, without secrets
             metrics.json          scores at the time of saving
             manifest.json         bytes and SHA-256 of the files above: a truncated file is noticed

Names in `adapter.safetensors` are the model's parameter names; those of LoRA are
`llm.layers.N.self_attn.q_proj.lora_A.weight` and so on, whatever wrappers the libraries put around the layers.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from configs.recorded import CONFIG_FILE, RUN_POINTERS
from configs.schema import Config, dump_config
from models.checkpoint.adapter_tensors import (
    ALIGNMENT_IDS,
    CheckpointError,
    LoadReport,
    added_encoders,
    compare,
    loaded_names,
    misfit,
    named_tensors,
    with_added_encoders,
)
from models.checkpoint.pad_rows import append_pad_rows, split_pad_rows
from models.checkpoint.released import own_entries, read_released
from support.file_kinds import mistaken
from support.files import new_folder, recover
from support.pointers import pointed

logger = logging.getLogger(__name__)

ADAPTER_FILE = "adapter.safetensors"
METRICS_FILE = "metrics.json"
MANIFEST_FILE = "manifest.json"
LEGACY_SUFFIXES = (".pth", ".pt", ".bin")
FORMAT = {"format": "smolt-adapter", "version": "1"}


def adapter_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The adapter by its file names: trained parameters, and everything that is in no base checkpoint.

    The latter are connector and LoRA, frozen or not, tensors that an adapter loaded earlier brought along, and the
    buffers of modules that train.
    """
    return {name: tensor for name, (tensor, in_adapter) in named_tensors(model).items() if in_adapter}


def save_adapter(
    model: nn.Module,
    folder: str | Path,
    *,
    config: Config | None = None,
    metrics: dict | None = None,
    extra: Callable[[Path], None] | None = None,
) -> Path:
    """Write the adapter folder. Whenever it is stopped, `folder` contains the previous checkpoint or this one, whole.

    `extra` may write further files (a trainer's state) into the folder that it is given; they appear together with the
    adapter. Returns `folder`.
    """
    return write_adapter(adapter_state_dict(model), folder, config=config, metrics=metrics, extra=extra)


def write_adapter(
    state: Mapping[str, Tensor],
    folder: str | Path,
    *,
    config: Config | None = None,
    metrics: dict | None = None,
    extra: Callable[[Path], None] | None = None,
) -> Path:
    """`save_adapter` for tensors that are not in a model; `state` has the names of the file."""
    folder = Path(folder)
    with new_folder(folder) as draft:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        try:
            safetensors.torch.save_file(tensors, draft / ADAPTER_FILE, metadata=FORMAT)
        except SafetensorError as error:  # how the library reports a full disk
            raise OSError(f"{draft / ADAPTER_FILE}: not written whole; is the disk full? ({error})") from error
        if config is not None:
            dump_config(config, draft / CONFIG_FILE)
        if metrics is not None:
            text = json.dumps(metrics, indent=2, ensure_ascii=False)
            (draft / METRICS_FILE).write_text(text + "\n", encoding="utf-8")
        _write_manifest(draft)
        if extra is not None:
            extra(draft)
    return folder


def load_adapter(model: nn.Module, source: str | Path, *, add_encoders: bool = False) -> LoadReport:
    """Load the adapter of a folder, or of a `.safetensors` file, into the model.

    Every tensor of the file must have its place, and every part of the adapter its tensor. One exception: an encoder
    that was frozen when the file was written and trains now keeps its base weights; the report names it.

    With `add_encoders` the model may have encoders that the adapter was trained without: the Q-Former's weights for
    their frames (`model.fusion: concat`), or their projections (`project`), become zeros, so that audio tokens are
    those of before, and training takes it from there. (An encoder with a faster frame rate than any before it changes
    where windows begin, and so the tokens.) The report names them, and a warning.

    Raises:
        CheckpointError: the source is absent or damaged, or does not fit; the model is then unchanged.
    """
    path = _adapter_file(Path(source))
    state = _read_tensors(path)
    aligned_before = getattr(model, "alignment", None)
    _align(model, state)
    own = named_tensors(model)
    pad_rows = split_pad_rows(state, own)
    added = added_encoders(state, own) if add_encoders else ()
    if added:
        state, own = with_added_encoders(state, own, added)
    table_alone = getattr(getattr(model, "llm", None), "is_table", False)
    report = replace(compare(state, own, table_alone=table_alone), added=added)
    if not report.fits:
        if hasattr(model, "take_alignment"):
            model.take_alignment(aligned_before)
        raise CheckpointError(misfit(path, report))
    with torch.no_grad():
        for name in report.matched:
            own[name][0].copy_(state[name])
    if pad_rows:
        append_pad_rows(model.llm, pad_rows)
    # Parts that this stage freezes may be in the file: they differ from the base checkpoint, and are saved again.
    model._loaded_adapter_names = loaded_names(model) | set(report.matched)
    logger.log(logging.WARNING if added else logging.INFO, "%s: %s", path, report.summary())
    return report


def align_as(model: nn.Module, source: str | Path) -> None:
    """Give the model a CTC head over the pieces of an adapter folder's; nothing where it has none."""
    _align(model, read_adapter(source))


def _align(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give the model the CTC head that the file's tensors are of; one with the same pieces is kept, since an optimiser
    may have its parameters."""
    ids = state.get(ALIGNMENT_IDS)
    if ids is None or not hasattr(model, "align_to"):
        return
    if model.alignment is None or not torch.equal(model.alignment.ids.cpu(), ids):
        model.align_to(ids)


def read_adapter(source: str | Path) -> dict[str, Tensor]:
    """The tensors of an adapter folder or file, by their names in it."""
    return _read_tensors(_adapter_file(Path(source)))


def load_projection(model: nn.Module, source: str | Path) -> LoadReport:
    """Load only the projection to the language model (`model.speech_llama_proj_model`) into the model.

    The source is an adapter folder or file of ours, or a SALMONN `.pth` with `speech_llama_proj.weight` and `.bias`.
    """
    path = Path(source)
    if path.suffix in LEGACY_SUFFIXES:
        entries = own_entries(read_released(path)["model"])
        state = {name: tensor for name, tensor in entries.items() if name.startswith("connector.to_llm.")}
    else:
        path = _adapter_file(path)
        state = {name: tensor for name, tensor in _read_tensors(path).items() if name.startswith("connector.to_llm.")}
    own = {name: entry for name, entry in named_tensors(model).items() if name.startswith("connector.to_llm.")}
    report = compare(state, own)
    if not report.fits:
        raise CheckpointError(misfit(path, report))
    with torch.no_grad():
        for name in report.matched:
            own[name][0].copy_(state[name])
    return report


def _adapter_file(source: Path) -> Path:
    """The adapter's file in `source`, checked against the folder's manifest."""
    if source.suffix in LEGACY_SUFFIXES:
        raise CheckpointError(
            f"{source} is a {source.suffix} file, as the SALMONN family released them; expected an adapter folder, "
            f"with {ADAPTER_FILE}. Name it in model.ckpt, or make a folder of it by tools/convert_checkpoint.py."
        )
    source = checkpoint_of(source)
    path = source / ADAPTER_FILE if source.is_dir() else source
    if not path.is_file():
        what = f"holds no {ADAPTER_FILE}" if source.is_dir() else "does not exist"
        raise CheckpointError(
            f"{source} {what}; expected an adapter folder that training wrote, such as outputs/<run>/best."
        )
    verify_folder(path.parent, (path.name, CONFIG_FILE))
    return path


def checkpoint_of(source: Path) -> Path:
    """The checkpoint that `source` names: itself, or in a run's folder its `best`, else its `last`."""
    recover(source.resolve())
    if not source.is_dir() and (not source.exists() or pointed(source).is_dir()):
        source = pointed(source) if pointed(source).exists() else source  # a file in place of a link, or below one
    if source.is_dir() and not (source / ADAPTER_FILE).exists():
        for name in RUN_POINTERS:
            checkpoint = pointed(source / name)
            recover(checkpoint)
            if (checkpoint / ADAPTER_FILE).is_file():
                logger.info("%s is a run's folder: taking its %s checkpoint", source, name)
                return source / name if (source / name).is_dir() else checkpoint
    return source


def verify_folder(folder: Path, names: tuple[str, ...] = (ADAPTER_FILE, CONFIG_FILE, METRICS_FILE)) -> None:
    """Check files against the folder's manifest; a folder without one, made by hand, passes.

    Raises:
        CheckpointError: a file is absent, truncated or altered.
    """
    manifest_file = folder / MANIFEST_FILE
    if not manifest_file.is_file():
        return
    try:
        listed: dict[str, dict] = json.loads(manifest_file.read_text(encoding="utf-8"))["files"]
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        _require_real(manifest_file, text=True)
        raise CheckpointError(f"{manifest_file} is damaged ({error}); use another checkpoint.") from error
    for name in names:
        if name not in listed:
            continue
        path, expected = folder / name, listed[name]
        if not path.is_file():
            raise CheckpointError(f"{path} is missing, though the manifest lists it; use another checkpoint.")
        size = path.stat().st_size
        if size != expected["bytes"]:
            _require_real(path, text=path.suffix != ".safetensors")
            raise CheckpointError(
                f"{path} has {size} bytes, the manifest says {expected['bytes']}: it is truncated or was altered; "
                "use another checkpoint."
            )
        if _sha256(path) != expected["sha256"]:
            raise CheckpointError(f"{path} is damaged: its checksum is not the manifest's; use another checkpoint.")


def _require_real(path: Path, *, text: bool) -> None:
    """Name a file that is a git-lfs pointer, a web page and the like, for which there are better remedies."""
    found = mistaken(path, text_is_right=text)
    if found:
        raise CheckpointError(f"{path} {found}.")


def _write_manifest(folder: Path) -> None:
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.iterdir())
        if path.is_file()
    }
    (folder / MANIFEST_FILE).write_text(json.dumps({**FORMAT, "files": files}, indent=2) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        found = mistaken(path) or f"cannot be read as safetensors ({error}); it is truncated or another format."
        raise CheckpointError(f"{path} {found}") from error
