"""Files that are not what their names say."""

import gzip
import io
import tarfile
import zipfile

import numpy as np
import pytest
import torch

from support.file_kinds import mistaken, mistaken_in, of_another_program

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456\n"


def archive(kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("model.bin", b"1234")
    elif kind == "tar":
        with tarfile.open(fileobj=buffer, mode="w") as file:
            file.addfile(tarfile.TarInfo("model.bin"))
    else:
        buffer.write(gzip.compress(b"1234"))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (POINTER, "git lfs pull"),
        (b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>" + b" " * 2000, "web page"),
        (b"<html><head><title>404</title>", "web page"),
        (b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>", "answer of a server"),
        (b"Entry not found", "Entry not found"),
        (b"", "empty"),
        (b"/annex/objects/SHA256E-s123--0123.wav\n", "git annex get"),
        (b"../blobs/0123456789", "short text"),
        (b"GGUF\x03\x00\x00\x00" + b"\x00" * 2000, "GGUF"),
        (archive("zip"), "zip archive"),
        (archive("gz"), "gzip archive"),
        (archive("tar"), "tar archive"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_stands_under_another_name(tmp_path, content, words):
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    assert words in mistaken(file)
    assert mistaken_in(tmp_path, ["*.safetensors"]).startswith(f"{file} is ") or "holds only" in mistaken(file)


def test_right_files_pass(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "weights.bin")
    np.savez(tmp_path / "arrays.npz", np.zeros(3))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    (tmp_path / "clip.wav").write_bytes(b"RIFF\x24\x00\x00\x00WAVEfmt ")
    assert mistaken_in(tmp_path, ["*.bin", "*.json", "*.wav"]) is None
    assert mistaken(tmp_path / "absent") is None


def test_models_of_other_programs_are_named(tmp_path):
    (tmp_path / "ggml.bin").write_bytes(b"lmgg" + bytes(100))
    assert "a ggml file of whisper.cpp; expected a folder" in of_another_program(tmp_path / "ggml.bin")
    assert "python -m tools.convert" in of_another_program(str(tmp_path / "ggml.bin"))
    torch.save({}, tmp_path / "x.pt")
    assert "a file of torch.save" in of_another_program(tmp_path / "x.pt")
    assert of_another_program(tmp_path) is None and of_another_program("openai/whisper-tiny") is None
    (tmp_path / "model.bin").write_bytes(b"\x06\0\0\0\x0c\0WhisperSpec\0" + bytes(20))
    assert "is a model of CTranslate2" in of_another_program(tmp_path)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"\0\0\0\x20ftypM4A \0\0\0\0", "MPEG-4"),
        (b"\0\0\0\x18ftyp3gp4\0\0\0\0", "MPEG-4"),
        (b"\x1a\x45\xdf\xa3\x9fB\x86\x81\x01", "WebM"),
        (bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"), "Windows Media"),
        (b"#!AMR\n\x3c\x91", "AMR"),
        (b"\x02#!SILK_V3", "SILK"),
        (bytes.fromhex("fff15080"), "AAC"),
        (b"wvpk", "WavPack"),
    ],
)
def test_sound_that_is_not_read_is_named_with_a_remedy(tmp_path, start, words):
    file = tmp_path / "clip.wav"
    file.write_bytes(start + b"\x21\x00\xff" * 600)
    assert words in mistaken(file) and "ffmpeg" in mistaken(file)
