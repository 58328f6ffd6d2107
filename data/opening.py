"""A path or bytes → the open file, or in its place the pieces that hold all its sound; an `AudioError` names the clip.

libsndfile opens; `data.integrity` compares what it believes with what the file holds.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import soundfile

from data.chunks import stated_rate_hz
from data.file_names import near_name
from data.findings import Decoded, Finding
from data.integrity import HEAD_BYTES, inspect
from data.remarks import LENGTH, Remark
from support.command_line import UserError
from support.file_kinds import mistaken

LOWEST_RATE_HZ, HIGHEST_RATE_HZ = 1_000, 768_000  # outside, a header is wrong
UNKNOWN_LENGTH_FRAMES = 1 << 62  # libsndfile's answer where a header gives no length is 2^63 - 1
NOT_THERE = "File does not exist or is not a regular file"
"""What libsndfile says as well where its mp3 decoder finds nothing."""
MOST_REPAIRS = 3  # a piece of a file may need one itself
SAMPLE_BYTES = {
    "PCM_S8": 1, "PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8, "ULAW": 1, "ALAW": 1,
}  # fmt: skip
"""Of a sample, by libsndfile's name of its type; compressed ones are absent."""

Source = str | Path | bytes

MOST_CHECKED = 1024
_checked: set[tuple[str, int, int]] = set()
"""Path, size and time of recordings that are as their headers say."""


class AudioError(UserError):
    """A clip that cannot be used.

    Attributes:
        clip: its path, or `<N bytes>`.
        reason: what was found, and how to fix it.
    """

    def __init__(self, clip: str, reason: str) -> None:
        super().__init__(clip, reason)
        self.clip = clip
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.clip}: {self.reason}"


def header_duration_s(path: str | Path) -> float:
    """Length in seconds as the header has it: a few hundred bytes are read, where `probe_duration_s` reads all of a
    compressed file. Where the header has none, that of the sound; raises `AudioError` if it cannot be read."""
    with suppress(RuntimeError, TypeError), soundfile.SoundFile(str(path)) as sound:
        if 0 < sound.frames < UNKNOWN_LENGTH_FRAMES and LOWEST_RATE_HZ <= sound.samplerate <= HIGHEST_RATE_HZ:
            return sound.frames / sound.samplerate
    return probe_duration_s(path)


def probe_duration_s(source: Source) -> float:
    """Length in seconds of the sound that is there, without decoding it; raises `AudioError` if it cannot be read."""
    return sum(sound.frames / sound.samplerate for _, sound in sounds_of(source, clip_name(source), []))


def probe_rate_hz(source: Source) -> int:
    """The sample rate, from the header; raises `AudioError` if it cannot be read."""
    return next(sound.samplerate for _, sound in sounds_of(source, clip_name(source), []))


def open_sounds(source: Source, remarks: list[Remark] | None = None) -> Iterator[soundfile.SoundFile]:
    """The open file, or in its place the pieces that hold all its sound, each closed when the next is asked for; what
    was found is appended to `remarks`. Raises `AudioError` if it cannot be read."""
    for _, sound in sounds_of(source, clip_name(source), [] if remarks is None else remarks):
        with sound:
            yield sound


def clip_name(source: Source) -> str:
    """The clip's name in errors."""
    return f"<{len(source)} bytes>" if isinstance(source, bytes) else str(source)


def sounds_of(
    source: Source, name: str, remarks: list[Remark], repairs: int = 0
) -> Iterator[tuple[Source, soundfile.SoundFile]]:
    """The open file, after the checks; in its place, where it would be read in part, pieces that hold all its sound."""
    _check_there(source, name)
    try:
        sound = soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else str(source))
        failure = ""
    except (RuntimeError, TypeError) as error:  # LibsndfileError is a RuntimeError; TypeError: '*.raw' has no header
        sound, failure = None, detail_of(error)
    try:
        finding = _inspect(source, name, sound)
        if finding.damage:
            raise AudioError(name, f"{finding.damage}; copy or encode it again")
        if not finding.pieces or repairs == MOST_REPAIRS:
            if sound is None:
                raise AudioError(name, _not_opened(source, failure))
            _check_header(name, sound)
            yield finding.content or source, sound
            return
    finally:
        if sound is not None:
            sound.close()
    if finding.note and not any(remark.kind == LENGTH and remark.clip == name for remark in remarks):
        remarks.append(Remark(LENGTH, name, finding.note))
    for piece in finding.pieces:
        yield from sounds_of(piece, name, remarks, repairs + 1)


def _check_there(source: Source, name: str) -> None:
    """Whether there is a file with something in it."""
    try:
        if isinstance(source, bytes):
            size = len(source)
        else:
            path = Path(source)
            size = path.stat().st_size
            if path.is_dir():
                raise AudioError(name, "is a folder; expected an audio file")
    except AudioError:
        raise
    except FileNotFoundError:
        near = near_name(str(source))
        meant = f" ({near} is there)" if near else ""
        raise AudioError(name, f"no such file{meant}; check the annotation's path and datasets.prefix") from None
    except UnicodeEncodeError as error:
        raise AudioError(
            name,
            f"its name cannot be written in this system's encoding, {error.encoding}: set the environment variable "
            "PYTHONUTF8=1, or rename the file",
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise AudioError(name, f"cannot be opened ({error}); check its path and permissions") from None
    if size == 0:
        raise AudioError(name, "is empty (0 bytes); copy or download it again")


def _inspect(source: Source, name: str, sound: soundfile.SoundFile | None) -> Finding:
    decoded = None
    if sound is not None:
        sample_bytes = SAMPLE_BYTES.get(sound.subtype)
        decoded = Decoded(sound.frames, sample_bytes and sample_bytes * sound.channels)
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb", buffering=0) as file:
            return inspect(file, decoded)
    except OSError as error:
        raise AudioError(name, f"cannot be read ({error}); check its permissions and the disk") from None


def _not_opened(source: Source, failure: str) -> str:
    """Why libsndfile does not open a file that is there and is not damaged."""
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        rate_hz = stated_rate_hz(file.read(HEAD_BYTES))
    if rate_hz is not None and not LOWEST_RATE_HZ <= rate_hz <= HIGHEST_RATE_HZ:
        return _wrong_rate(rate_hz)
    found = None if isinstance(source, bytes) else mistaken(source)
    if found:
        return f"is not audio: it {found}"
    return (
        f"is not audio that libsndfile {soundfile.__libsndfile_version__} reads ({failure}); "
        "expected wav, flac, mp3, ogg or opus"
    )


def _check_header(name: str, sound: soundfile.SoundFile) -> None:
    if sound.frames == 0:
        raise AudioError(name, "has 0 samples; remove it or record it again")
    if sound.frames >= UNKNOWN_LENGTH_FRAMES:
        raise AudioError(name, "its header has no length; encode it again from a file")
    if not LOWEST_RATE_HZ <= sound.samplerate <= HIGHEST_RATE_HZ:
        raise AudioError(name, _wrong_rate(sound.samplerate))


def _wrong_rate(rate_hz: int) -> str:
    return (
        f"its header gives a rate of {rate_hz} Hz; expected {LOWEST_RATE_HZ} to {HIGHEST_RATE_HZ} Hz: write the true "
        "rate into it, or convert it again"
    )


def detail_of(error: Exception) -> str:
    said = str(getattr(error, "error_string", error)).strip().rstrip(".")
    return "no frames of sound found" if said.startswith(NOT_THERE) else said  # the file was looked for before


def sounds_checked_once(
    source: Source, name: str, remarks: list[Remark]
) -> Iterator[tuple[Source, soundfile.SoundFile]]:
    """`sounds_of`; a recording with many parts is checked once, not once a part, if there is nothing to say of it."""
    if isinstance(source, bytes):
        yield from sounds_of(source, name, remarks)
        return
    _check_there(source, name)
    state = Path(source).stat()
    key = (str(source), state.st_size, state.st_mtime_ns)
    if key in _checked:
        with soundfile.SoundFile(str(source)) as sound:
            yield source, sound
        return
    for readable, sound in sounds_of(source, name, remarks):
        if sound.name == str(source):  # else it is read from bytes that the check has put right
            if len(_checked) == MOST_CHECKED:
                _checked.clear()
            _checked.add(key)
        yield readable, sound
