"""A folder of wav files as flac files, sample for sample, without ever changing a wav.

Half the bytes on a disk, and nothing lost: the flac file is decoded and compared before it gets its name. A conversion
that was interrupted continues where it stopped; a wav that has changed since is converted again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile

from data.opening import AudioError, open_sounds
from data.remarks import Remark
from support.command_line import UserError
from support.files import write_whole

SUBTYPES = {
    "PCM_U8": "PCM_S8",
    "PCM_S8": "PCM_S8",
    "PCM_16": "PCM_16",
    "PCM_24": "PCM_24",
    "ULAW": "PCM_16",
    "ALAW": "PCM_16",
}
"""Samples of a wav file -> those of the flac file that holds them exactly."""
ROUNDED = {"PCM_32": "PCM_24", "FLOAT": "PCM_24", "DOUBLE": "PCM_24"}
"""Samples that flac cannot hold: rounded to 24 bits where that is allowed."""
BLOCK = 1 << 20  # frames in memory at once


class ConversionError(UserError):
    """A file that was not converted; the message names it and says why."""


@dataclass
class Conversion:
    """What became of a folder."""

    converted: int = 0
    kept: int = 0
    """There already, from an earlier run."""
    wav_bytes: int = 0
    flac_bytes: int = 0
    failed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Of files whose header does not say what is there; what is there was converted."""


def wav_files(folder: Path) -> list[Path]:
    """Every `.wav` under a folder, in order, hidden ones left out; a link to a folder is not followed."""
    return sorted(
        Path(place) / name
        for place, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(".wav") and not name.startswith(".")
    )


def convert_folder(
    source: Path,
    target: Path,
    *,
    rounded: bool = False,
    threads: int = 4,
    progress: Callable[[Iterator[Conversion], int], Iterator[Conversion]] = lambda steps, total: steps,
) -> Conversion:
    """Convert every wav file under `source` to the same place under `target`; a file that fails stops no other."""
    files = wav_files(source)
    outcome = Conversion()
    targets: dict[Path, Path] = {}
    for wav in files:
        flac = (target / wav.relative_to(source)).with_suffix(".flac")
        first = targets.setdefault(flac, wav)
        if first is not wav:
            outcome.failed.append(f"{wav}: {first} has the same name as flac; rename one of them")

    def one(pair: tuple[Path, Path]) -> Conversion:
        flac, wav = pair
        try:
            new = not _is_done(wav, flac)
            notes = convert(wav, flac, rounded=rounded) if new else []
            sizes = {"wav_bytes": wav.stat().st_size, "flac_bytes": flac.stat().st_size}
            return Conversion(converted=new, kept=not new, notes=notes, **sizes)
        except (ConversionError, AudioError, OSError) as error:
            return Conversion(failed=[str(error)])

    with ThreadPoolExecutor(threads) as pool:
        for step in progress(pool.map(one, targets.items()), len(targets)):
            outcome.converted += step.converted
            outcome.kept += step.kept
            outcome.wav_bytes += step.wav_bytes
            outcome.flac_bytes += step.flac_bytes
            outcome.failed += step.failed
            outcome.notes += step.notes
    return outcome


def convert(wav: Path, flac: Path, *, rounded: bool = False) -> list[str]:
    """Write one flac file, whole and compared with its wav, or not at all; what is to be said of the wav's header.

    Raises:
        ConversionError, AudioError: no wav file, a damaged one, or samples that flac cannot hold (32 bits, floats:
            `rounded` allows 24 bits).
    """
    remarks: list[Remark] = []
    flac.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_whole(flac, lambda draft: _write(wav, draft, rounded, remarks))
    except soundfile.LibsndfileError as error:
        raise ConversionError(f"{wav}: not converted: {error.error_string.strip().rstrip('.')}") from None
    return [str(remark) for remark in remarks]


def _samples_of(wav: Path, kind: str, rounded: bool) -> tuple[str, str]:
    """The flac file's kind of samples, and the type they are read as."""
    if kind in SUBTYPES:
        return SUBTYPES[kind], "int32"
    if kind not in ROUNDED:
        raise ConversionError(f"{wav}: its samples are {kind}; expected PCM, floats, u-law or A-law")
    if not rounded:
        raise ConversionError(f"{wav}: its samples are {kind}, which flac cannot hold; --round allows 24 bits")
    return ROUNDED[kind], "int32" if kind == "PCM_32" else "float64"


def _write(wav: Path, draft: Path, rounded: bool, remarks: list[Remark]) -> None:
    out: soundfile.SoundFile | None = None
    try:
        for sound in open_sounds(wav, remarks):  # several where one file stands behind another
            subtype, dtype = _samples_of(wav, sound.subtype, rounded)
            shape = (sound.samplerate, sound.channels, subtype)
            if out is None:
                out = soundfile.SoundFile(str(draft), "w", *shape, format="FLAC")
            elif (out.samplerate, out.channels, out.subtype) != shape:
                raise ConversionError(f"{wav}: parts of different form stand one after another in it; take them apart")
            for block in sound.blocks(BLOCK, dtype=dtype):
                if dtype == "float64" and not np.abs(block).max() <= 1.0:  # NaN is not either
                    raise ConversionError(f"{wav}: float samples beyond [-1, 1], or no numbers; flac would cut them")
                out.write(block)
    finally:
        if out is not None:
            out.close()
    if not _are_same(wav, draft, subtype, dtype):
        raise ConversionError(f"{wav}: the flac file has other samples; nothing was kept of it. Try another disk")


def _are_same(wav: Path, flac: Path, subtype: str, dtype: str) -> bool:
    """Whether both decode to the same samples; floats to the nearest of 24 bits, 32 bits to their upper 24."""
    step = 1 << 8 if subtype == "PCM_24" else 1
    with soundfile.SoundFile(str(flac)) as new:
        for old in open_sounds(wav):
            for block in old.blocks(BLOCK, dtype=dtype):
                again = new.read(len(block), dtype=dtype)
                if again.shape != block.shape:
                    return False
                if dtype == "float64":
                    equal = np.abs(again - block).max() <= 2.0**-22  # full scale itself is one step above the highest
                else:
                    equal = np.array_equal(again // step, block // step)
                if not equal:
                    return False
        return new.tell() == new.frames


def _is_done(wav: Path, flac: Path) -> bool:
    """Whether the flac file is this wav's: as long, of its rate and channels, and not older."""
    if not flac.is_file() or flac.stat().st_mtime_ns < wav.stat().st_mtime_ns:
        return False
    try:
        new = soundfile.info(str(flac))
    except soundfile.LibsndfileError:
        return False
    frames, shapes = 0, set()
    for sound in open_sounds(wav):
        frames += sound.frames
        shapes.add((sound.samplerate, sound.channels))
    return frames == new.frames and shapes == {(new.samplerate, new.channels)}
