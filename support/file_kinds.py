"""What a file really is, where it is not what its name says: a pointer, a web page, an archive, another format."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

START_BYTES = 1024  # enough for every mark below
SHORT_NOTE_BYTES = 300  # "Entry not found": what a server answers in place of a file

_ARCHIVES = {
    b"PK\x03\x04": "a zip archive",
    b"PK\x05\x06": "an empty zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"\xfd7zXZ\x00": "an xz archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a rar archive",
    b"BZh": "a bzip2 archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
}
_FORMATS = {
    b"GGUF": "a GGUF file (of llama.cpp); make a folder of it: python -m tools.convert FILE FOLDER",
    b"\x89HDF": "an HDF5 file (of Keras); take the model in safetensors",
    b"\x93NUMPY": "a numpy array",
    b"%PDF": "a PDF document",
}
_PROGRAMS = {
    b"lmgg": "a ggml file of whisper.cpp",
    b"GGUF": "a GGUF file of llama.cpp",
    b"PK\x03\x04": "a file of torch.save, or another archive",
}
"""Files in the place of a folder of transformers."""
_SPECIFICATION = re.compile(rb"[^\0]\0{3}.\0[A-Za-z0-9]{1,40}Spec\0", re.DOTALL)  # version, length, kind: CTranslate2
_SOUNDS = {
    b"\x1a\x45\xdf\xa3": "a WebM or Matroska file",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "a Windows Media file (wma, asf)",
    b"#!AMR": "AMR audio",
    b"#!SILK": "SILK audio",
    b"\x02#!SILK": "SILK audio",
    b"FLV\x01": "a Flash video",
    b"ADIF": "AAC audio",
    b"MAC ": "Monkey's Audio (ape)",
    b"wvpk": "WavPack audio",
    b"DSD ": "DSD audio",
    b"TTA1": "TTA audio",
    b".RMF": "a RealMedia file",
    b"MThd": "a MIDI file, which holds no sound",
    b"\x00\x00\x01\xba": "an MPEG video",
}
"""Sound in containers that few audio libraries read."""
_ANSWERS = ("not found", "access denied", "accessdenied", "unauthorized", "forbidden", "rate limit", "invalid username")


def mistaken(path: str | Path, *, zip_is_right: bool = False, text_is_right: bool = False) -> str | None:
    """'is …; what to do', where a file is something that often stands under another file's name; else None.

    Args:
        zip_is_right: the expected format is itself a zip (`torch.save`).
        text_is_right: the expected format is text (JSON, YAML), of which only pointers and web pages are told apart.
    """
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            start = file.read(START_BYTES)
    except OSError:
        return None  # opening it tells why
    if not size:
        return "is empty (0 bytes); copy or download it again"
    text = start.decode("utf-8", errors="replace").lstrip("\ufeff \t\r\n")
    lower = text.lower()
    if lower.startswith("version https://git-lfs"):
        return "is a git-lfs pointer, not the file itself; run 'git lfs pull' in its repository, or download the file"
    if size < START_BYTES and "annex/objects/" in lower:
        return "is a git-annex pointer, not the file itself; run 'git annex get' in its repository"
    if lower.startswith(("<!doctype html", "<html", "<head", "<?xml", "<error")):
        kind = "a web page (HTML)" if "html" in lower else "an XML answer of a server"
        return f"is {kind}, often an error or a login page; download the file itself"
    if size <= SHORT_NOTE_BYTES and "\ufffd" not in text and any(answer in lower for answer in _ANSWERS):
        return f"holds only {text.strip()!r}, a server's answer; download it again"
    for mark, what in _ARCHIVES.items():
        if start.startswith(mark) and not (zip_is_right and mark.startswith(b"PK")):
            return f"is {what}; unpack it and name the file inside"
    if start[257:262] == b"ustar":
        return "is a tar archive; unpack it and name the file inside"
    for mark, what in _FORMATS.items():
        if start.startswith(mark):
            return f"is {what}"
    sound = _unread_sound(start)
    if sound:
        return f"is {sound}; convert it to wav or flac, as by: ffmpeg -i FILE FILE.wav"
    if not text_is_right and size < START_BYTES and "\ufffd" not in text and "\x00" not in text:
        first = text.strip().splitlines()[0][:60] if text.strip() else ""
        return f"is a short text ({first!r}), not data; copy or download the file again"
    return None


def of_another_program(path: str | Path) -> str | None:
    """'is …; what to do', for a model in another program's format where a folder of transformers is expected."""
    path = Path(path)
    weights = path / "model.bin" if path.is_dir() else path
    try:
        with open(weights, "rb") as file:
            start = file.read(START_BYTES)
    except (OSError, ValueError):  # a hub name, or a folder of transformers
        return None
    found = "a model of CTranslate2" if _SPECIFICATION.match(start) else None
    if not path.is_dir():
        found = found or next((what for mark, what in _PROGRAMS.items() if start.startswith(mark)), None)
    convert = f"'python -m tools.convert {path} FOLDER' makes one of it, if it is a model that is known"
    return f"is {found}; expected a folder of transformers: {convert}" if found else None


def _unread_sound(start: bytes) -> str | None:
    """What kind of sound or video a file is by its start; None where it is none of these."""
    if start[4:8] == b"ftyp":
        return "an MPEG-4 file (m4a, mp4, 3gp)"
    if start[:2] in (b"\xff\xf1", b"\xff\xf9"):  # 12 bits that are set, layer 0
        return "AAC audio (ADTS)"
    return next((what for mark, what in _SOUNDS.items() if start.startswith(mark)), None)


def mistaken_in(folder: str | Path, names: Iterable[str]) -> str | None:
    """'FILE is …; what to do' for the first of a folder's files (glob patterns) that is not what its name says."""
    for pattern in names:
        for file in sorted(Path(folder).glob(pattern)):
            is_text = file.suffix in (".json", ".txt", ".jinja")
            found = mistaken(file, zip_is_right=file.suffix in (".bin", ".pt", ".pth"), text_is_right=is_text)
            if found and not (is_text and "0 bytes" in found):
                return f"{file} {found}"
    return None
