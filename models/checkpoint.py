"""Adapter folders: written whole or not at all, loaded strictly, with a report.

    <folder>/adapter.safetensors   every trained parameter, and all that no base checkpoint holds (connector, LoRA)
             config.yaml           the configuration, without secrets
             metrics.json          scores at the time of saving
             manifest.json         bytes and SHA-256 of the files above: a truncated file is noticed

Names in `adapter.safetensors` are the model's parameter names; those of LoRA are
`llm.layers.N.self_attn.q_proj.lora_A.weight` and so on, whatever wrappers the libraries put around the layers.
"""

import ctypes
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from configs.schema import Config, dump_config

logger = logging.getLogger(__name__)

ADAPTER_FILE = "adapter.safetensors"
CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.json"
MANIFEST_FILE = "manifest.json"
RUN_POINTERS = ("best", "last")  # links in a run's folder, in the order of preference
LEGACY_SUFFIXES = (".pth", ".pt", ".bin")
FORMAT = {"format": "smolt-adapter", "version": "1"}
NAMES_SHOWN = 12  # per kind, in an error

_LLM_BLOCK = re.compile(r"^llm\.model\.(?:[a-z_]+\.)*?(layers\.\d+\.)")
_STREAM_NORM = re.compile(r"^connector\.norms\.(.+)\.weight$")
_READS_FRAMES = re.compile(r"^connector\.qformer\.layers\.\d+\.cross_attention\.(?:key|value)\.weight$")
_ENCODER = re.compile(r"^encoders\.encoders\.[^.]+\.")


class CheckpointError(ValueError):
    """A checkpoint is absent, damaged, or does not fit the model."""


@dataclass(frozen=True)
class LoadReport:
    """What loading an adapter did. After a load that succeeded, `missing`, `unexpected` and `misshapen` are empty."""

    matched: tuple[str, ...]
    """Tensors taken from the file."""
    missing: tuple[str, ...]
    """Tensors the model needs and the file lacks."""
    unexpected: tuple[str, ...]
    """Tensors of the file with no place in the model."""
    misshapen: tuple[str, ...]
    """Tensors of another shape, `name: file [2, 3], model [4, 3]`."""
    from_base: tuple[str, ...] = ()
    """Encoders trained from now on that the file has nothing of; they start from their own base checkpoint."""
    added: tuple[str, ...] = ()
    """Encoders that the adapter was trained without: a fresh LayerNorm, and zeros where the Q-Former reads them."""

    @property
    def fits(self) -> bool:
        return not (self.missing or self.unexpected or self.misshapen)

    def summary(self) -> str:
        """One line on what was loaded, and what was not."""
        base = f"; {', '.join(self.from_base)}: from the base checkpoint" if self.from_base else ""
        added = f"; {', '.join(self.added)}: new to this adapter, not heard until trained" if self.added else ""
        return f"{len(self.matched)} tensors loaded{base}{added}"


def adapter_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The adapter by its file names: trained parameters, and everything that no base checkpoint could give back.

    The latter are connector and LoRA, frozen or not, tensors that an adapter loaded earlier brought along, and the
    buffers of modules that train.
    """
    return {name: tensor for name, (tensor, in_adapter) in _named_tensors(model).items() if in_adapter}


def save_adapter(
    model: nn.Module,
    folder: str | Path,
    *,
    config: Config | None = None,
    metrics: dict | None = None,
    extra: Callable[[Path], None] | None = None,
) -> Path:
    """Write the adapter folder. Whatever stops it, `folder` holds the previous checkpoint or this one, whole.

    `extra` may write further files (a trainer's state) into the folder that it is given; they appear together with the
    adapter. Returns `folder`.
    """
    folder = Path(folder)
    with new_folder(folder) as draft:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter_state_dict(model).items()}
        try:
            safetensors.torch.save_file(tensors, draft / ADAPTER_FILE, metadata=FORMAT)
        except SafetensorError as error:  # how the library reports a full disk
            raise OSError(f"{draft / ADAPTER_FILE}: {error}") from error
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
    """Put the adapter of a folder, or of a `.safetensors` file, into the model.

    Every tensor of the file must have its place, and every part of the adapter its tensor. One exception: an encoder
    that was frozen when the file was written and trains now keeps its base weights; the report names it.

    With `add_encoders` a model of `model.fusion: concat` may have encoders that the adapter was trained without: the
    Q-Former's weights for their frames become zeros, so that (at an equal frame rate) audio tokens are those of before,
    and training takes it from there. The report names them, and a warning.

    Raises:
        CheckpointError: the source is absent or damaged, or does not fit; the model is then unchanged.
    """
    path = _adapter_file(Path(source))
    state = _read_tensors(path)
    own = _named_tensors(model)
    added = _added_encoders(state, own) if add_encoders else ()
    if added:
        state, own = _with_added_encoders(state, own, added)
    report = replace(_compare(state, own), added=added)
    if not report.fits:
        raise CheckpointError(_misfit(path, report))
    with torch.no_grad():
        for name in report.matched:
            own[name][0].copy_(state[name])
    # The file may hold parts that this stage freezes: being no longer the base checkpoint's, they are saved again.
    model._loaded_adapter_names = _loaded_names(model) | set(report.matched)
    logger.log(logging.WARNING if added else logging.INFO, "%s: %s", path, report.summary())
    return report


def load_projection(model: nn.Module, source: str | Path) -> LoadReport:
    """Put only the projection to the language model (`model.speech_llama_proj_model`) into the model.

    The source is an adapter folder or file of ours, or a SALMONN `.pth` with `speech_llama_proj.weight` and `.bias`.
    """
    path = Path(source)
    if path.suffix in LEGACY_SUFFIXES:
        entries = _read_legacy(path).items()
        state = {
            name.replace("speech_llama_proj.", "connector.to_llm."): tensor
            for name, tensor in entries
            if name.startswith("speech_llama_proj.")
        }
    else:
        path = _adapter_file(path)
        state = {name: tensor for name, tensor in _read_tensors(path).items() if name.startswith("connector.to_llm.")}
    own = {name: entry for name, entry in _named_tensors(model).items() if name.startswith("connector.to_llm.")}
    report = _compare(state, own)
    if not report.fits:
        raise CheckpointError(_misfit(path, report))
    with torch.no_grad():
        for name in report.matched:
            own[name][0].copy_(state[name])
    return report


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A draft folder that takes `folder`'s name once all in it is on disk. After an error or a kill nothing changed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _recover(folder)
    draft = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)  # debris of a killed save
    draft.mkdir()
    try:
        yield draft
        for path in sorted(draft.rglob("*"), reverse=True):
            _sync(path)
        _sync(draft)
        _put_in_place(draft, folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _named_tensors(model: nn.Module) -> dict[str, tuple[Tensor, bool]]:
    """File name -> (tensor, whether the adapter holds it), for all parameters and stored buffers."""
    loaded = _loaded_names(model)
    named: dict[str, tuple[Tensor, bool]] = {}
    for prefix, module in model.named_modules():
        own_parameters = list(module.named_parameters(prefix, recurse=False))
        module_trains = any(parameter.requires_grad for _, parameter in own_parameters)
        buffers = [
            (name, buffer)
            for name, buffer in module.named_buffers(prefix, recurse=False)
            if name.rpartition(".")[2] not in module._non_persistent_buffers_set
        ]
        for name, tensor in (*own_parameters, *buffers):
            file_name = _file_name(name)
            if file_name is None:
                continue
            trained = tensor.requires_grad or (module_trains and not isinstance(tensor, nn.Parameter))
            assert file_name not in named, f"two tensors are called {file_name}"
            named[file_name] = (tensor, trained or _has_no_base(file_name) or file_name in loaded)
    return _without_repeats(named)


def _without_repeats(named: dict[str, tuple[Tensor, bool]]) -> dict[str, tuple[Tensor, bool]]:
    """A tensor that several modules share stands under its first name only."""
    seen: set[int] = set()
    kept = {}
    for name, entry in named.items():
        if id(entry[0]) not in seen:
            seen.add(id(entry[0]))
            kept[name] = entry
    return kept


def _file_name(name: str) -> str | None:
    """A tensor's name in the file. None for the language model's own, never trained weights."""
    if not name.startswith("llm."):
        return name
    if "lora_" not in name:
        return None
    return _LLM_BLOCK.sub(r"llm.\1", name).replace(".default.", ".")


def _has_no_base(name: str) -> bool:
    return name.startswith("connector.") or ".lora_" in name


def _loaded_names(model: nn.Module) -> set[str]:
    return getattr(model, "_loaded_adapter_names", set())


def _compare(state: dict[str, Tensor], own: dict[str, tuple[Tensor, bool]]) -> LoadReport:
    misshapen = {
        name: f"{name}: file {list(tensor.shape)}, model {list(own[name][0].shape)}"
        for name, tensor in state.items()
        if name in own and tensor.shape != own[name][0].shape
    }
    file_parts = {match[0] for name in state if (match := _ENCODER.match(name))}
    missing, from_base = [], set()
    for name, (_, in_adapter) in own.items():
        if not in_adapter or name in state:
            continue
        part = _ENCODER.match(name)
        if part and part[0] not in file_parts:  # the file has nothing of this encoder
            from_base.add(part[0].removesuffix("."))
        else:
            missing.append(name)
    return LoadReport(
        matched=tuple(sorted(name for name in state if name in own and name not in misshapen)),
        missing=tuple(sorted(missing)),
        unexpected=tuple(sorted(name for name in state if name not in own)),
        misshapen=tuple(misshapen[name] for name in sorted(misshapen)),
        from_base=tuple(sorted(from_base)),
    )


def _added_encoders(state: dict[str, Tensor], own: dict[str, tuple[Tensor, bool]]) -> tuple[str, ...]:
    """Encoders of a concatenating connector whose frames the file knows nothing of."""
    if any(name.startswith("connector.projections.") for name in own):
        return ()
    return tuple(match[1] for name in own if (match := _STREAM_NORM.match(name)) and name not in state)


def _with_added_encoders(
    state: dict[str, Tensor], own: dict[str, tuple[Tensor, bool]], added: tuple[str, ...]
) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, bool]]]:
    """The file's tensors with zero columns for the new encoders' frames; the model's without their LayerNorms."""
    widths = {match[1]: len(tensor) for name, (tensor, _) in own.items() if (match := _STREAM_NORM.match(name))}
    known = torch.cat([torch.full((width,), name not in added) for name, width in widths.items()])  # [sum of D]
    widened = dict(state)
    for name, (tensor, _) in own.items():
        if _READS_FRAMES.match(name) and name in state and state[name].shape == (len(tensor), int(known.sum())):
            widened[name] = state[name].new_zeros(tensor.shape)
            widened[name][:, known] = state[name]
    fresh = tuple(f"connector.norms.{name}." for name in added)
    return widened, {name: entry for name, entry in own.items() if not name.startswith(fresh)}


def _misfit(path: Path, report: LoadReport) -> str:
    lines = [f"{path} does not fit the model; nothing was loaded."]
    for kind in ("missing", "unexpected", "misshapen"):
        names = getattr(report, kind)
        if names:
            more = f", and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
            lines.append(f"  {kind} ({len(names)}): {', '.join(names[:NAMES_SHOWN])}{more}")
    lines.append("  " + _likely_cause(report))
    return "\n".join(lines)


def _likely_cause(report: LoadReport) -> str:
    if any(".lora_" in name for name in (*report.missing, *report.unexpected, *report.misshapen)):
        return "Set model.lora, lora_rank and lora_target_modules as when the adapter was trained."
    if report.misshapen:
        return "Use the encoders, the language model and the Q-Former sizes that the adapter was trained with."
    return "Use the model section of the config.yaml that lies beside the adapter."


def _adapter_file(source: Path) -> Path:
    """The adapter's file in `source`, checked against the folder's manifest."""
    if source.suffix in LEGACY_SUFFIXES:
        raise CheckpointError(
            f"{source}: adapters in {source.suffix} files, as the SALMONN family released them, are not supported yet; "
            f"expected a folder that training wrote here, with {ADAPTER_FILE} in it, or that file."
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
    """The checkpoint that `source` means: itself, or of a run's folder its `best`, else its `last`."""
    _recover(source)
    if source.is_dir() and not (source / ADAPTER_FILE).exists():
        for name in RUN_POINTERS:
            if (source / name / ADAPTER_FILE).is_file():
                logger.info("%s is a run's folder: taking its %s checkpoint", source, name)
                return source / name
    return source


def verify_folder(folder: Path, names: tuple[str, ...] = (ADAPTER_FILE, CONFIG_FILE, METRICS_FILE)) -> None:
    """Check files against the manifest beside them; a folder without a manifest, put together by hand, passes.

    Raises:
        CheckpointError: a file is absent, truncated or altered.
    """
    manifest_file = folder / MANIFEST_FILE
    if not manifest_file.is_file():
        return
    try:
        listed: dict[str, dict] = json.loads(manifest_file.read_text(encoding="utf-8"))["files"]
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{manifest_file} is damaged ({error}); use another checkpoint.") from error
    for name in names:
        if name not in listed:
            continue
        path, expected = folder / name, listed[name]
        if not path.is_file():
            raise CheckpointError(f"{path} is missing, though the manifest lists it; use another checkpoint.")
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise CheckpointError(
                f"{path} has {size} bytes, the manifest says {expected['bytes']}: it is truncated or was altered; "
                "use another checkpoint."
            )
        if _sha256(path) != expected["sha256"]:
            raise CheckpointError(f"{path} is damaged: its checksum is not the manifest's; use another checkpoint.")


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
        raise CheckpointError(
            f"{path} cannot be read as safetensors ({error}); it is truncated or another format."
        ) from error


def _read_legacy(path: Path) -> dict[str, Tensor]:
    """The state dict of a SALMONN `.pth`. Only tensors and plain containers are read: such a file may not run code."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; expected a .pth file of trained parameters.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged pickle
        raise CheckpointError(f"{path} cannot be read as a checkpoint of tensors: {error}") from error
    state = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds no state dict; expected {{'model': {{name: tensor}}}}.")
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}


def _put_in_place(draft: Path, folder: Path) -> None:
    """Give the draft its name. Where the name is taken the two are exchanged in one step, if the system can."""
    if not folder.exists():
        os.replace(draft, folder)
    elif not _exchange(draft, folder):
        aside = _aside(folder)  # a kill between the next two lines leaves it there, whole; `_recover` puts it back
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(folder, aside)
        os.replace(draft, folder)
        shutil.rmtree(aside, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names atomically (Linux' renameat2). False where system or file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    at_cwd, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2(at_cwd, os.fsencode(first.absolute()), at_cwd, os.fsencode(second.absolute()), exchange) == 0


def _aside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.previous")


def _recover(folder: Path) -> None:
    """Undo a replacement that was killed halfway."""
    if not folder.exists() and _aside(folder).is_dir():
        with suppress(FileNotFoundError):  # another process of the same run was first
            os.replace(_aside(folder), folder)


def _sync(path: Path) -> None:
    """Have a file, or a folder's list of names, on disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
