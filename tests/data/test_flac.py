"""wav -> flac: sample for sample, continued, and never at the wav's cost."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data import flac
from tools import to_flac

RATE_HZ = 16_000


def write(path: Path, subtype: str = "PCM_16", channels: int = 1, frames: int = 4_000, rate_hz: int = RATE_HZ) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(frames).uniform(-1, 1, (frames, channels))
    soundfile.write(path, samples, rate_hz, subtype=subtype, format="WAV")
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = to_flac.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "ULAW", "ALAW"])
@pytest.mark.parametrize(("channels", "rate_hz"), [(1, 8_000), (2, 44_100), (6, 48_000)])
def test_every_sample_is_the_same(tmp_path: Path, subtype: str, channels: int, rate_hz: int) -> None:
    wav = write(tmp_path / "a.wav", subtype, channels, rate_hz=rate_hz)
    flac.convert(wav, tmp_path / "out" / "a.flac")
    before, rate = soundfile.read(wav, dtype="int32")
    after, rate_after = soundfile.read(tmp_path / "out" / "a.flac", dtype="int32")
    assert rate == rate_after == rate_hz and np.array_equal(before, after)


def test_blocks_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flac, "BLOCK", 1_000)
    wav = write(tmp_path / "a.wav", frames=4_321)
    flac.convert(wav, tmp_path / "a.flac")
    assert np.array_equal(soundfile.read(wav)[0], soundfile.read(tmp_path / "a.flac")[0])


@pytest.mark.parametrize("subtype", ["PCM_32", "FLOAT", "DOUBLE"])
def test_samples_that_flac_cannot_hold_are_refused_or_rounded(tmp_path: Path, capsys, subtype: str) -> None:
    wav = write(tmp_path / "in" / "a.wav", subtype)
    status, _, err = run(capsys, tmp_path / "in", tmp_path / "out")
    assert status == 1 and f"its samples are {subtype}, which flac cannot hold; --round allows 24 bits" in err
    assert not (tmp_path / "out" / "a.flac").exists()
    status, *_ = run(capsys, tmp_path / "in", tmp_path / "out", "--round")
    assert status == 0
    assert np.abs(soundfile.read(wav)[0] - soundfile.read(tmp_path / "out" / "a.flac")[0]).max() <= 2.0**-22


@pytest.mark.parametrize("bad", [1.5, np.nan, -np.inf])
def test_floats_that_flac_would_cut_are_refused(tmp_path: Path, capsys, bad: float) -> None:
    samples = np.zeros(100)
    samples[50] = bad
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "a.wav", samples, RATE_HZ, subtype="FLOAT")
    status, _, err = run(capsys, tmp_path / "in", tmp_path / "out", "--round")
    assert status == 1 and "float samples beyond [-1, 1]" in err and list((tmp_path / "out").iterdir()) == []


def test_folders_are_kept_and_a_second_run_has_nothing_to_do(tmp_path: Path, capsys) -> None:
    for name in ("a.wav", "deep/er/b.WAV", "deep/c.wav"):
        write(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("not audio")
    status, out, err = run(capsys, tmp_path / "in", tmp_path / "out")
    assert (status, err) == (0, "") and "3 files converted, 0 there already" in out
    made = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.flac"))
    assert made == ["a.flac", "deep/c.flac", "deep/er/b.flac"]
    before = (tmp_path / "out" / "a.flac").stat().st_mtime_ns
    assert "0 files converted, 3 there already" in run(capsys, tmp_path / "in", tmp_path / "out")[1]
    assert (tmp_path / "out" / "a.flac").stat().st_mtime_ns == before


def test_a_changed_wav_and_half_a_flac_are_converted_again(tmp_path: Path, capsys) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    wavs = [write(source / f"{name}.wav") for name in "abc"]
    run(capsys, source, target)
    write(wavs[0], frames=5_000)
    os.utime(wavs[1], ns=(2**62, 2**62))  # of the same length, but newer
    (target / "c.flac").write_bytes((target / "c.flac").read_bytes()[:30])
    (target / ".c.flac.tmp").write_bytes(b"left by a kill")
    assert "3 files converted, 0 there already" in run(capsys, source, target)[1]
    assert soundfile.info(target / "a.flac").frames == 5_000 and soundfile.info(target / "c.flac").frames == 4_000


def test_a_damaged_file_stops_no_other(tmp_path: Path, capsys) -> None:
    for name in "abc":
        write(tmp_path / "in" / f"{name}.wav")
    whole = (tmp_path / "in" / "b.wav").read_bytes()
    (tmp_path / "in" / "b.wav").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in" / "text.wav").write_text("<html>")
    (tmp_path / "in" / "empty.wav").touch()
    write(tmp_path / "in" / "silent.wav", frames=0)
    status, out, err = run(capsys, tmp_path / "in", tmp_path / "out")
    assert status == 1 and "2 files converted" in out and "4 not converted" in out
    lines = err.splitlines()
    assert len(lines) == 4 and all(line.startswith(f"not converted: {tmp_path / 'in'}") for line in lines)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.flac", "c.flac"]
    assert (tmp_path / "in" / "b.wav").stat().st_size == len(whole) // 2


def test_two_files_of_one_name_are_not_mixed(tmp_path: Path, capsys) -> None:
    write(tmp_path / "in" / "a.wav")
    write(tmp_path / "in" / "a.WAV")
    if len(list((tmp_path / "in").iterdir())) < 2:
        pytest.skip("this file system takes both for one file")
    status, out, err = run(capsys, tmp_path / "in", tmp_path / "out")
    assert status == 1 and "1 files converted" in out and "has the same name as flac" in err


def test_next_to_the_wav_files(tmp_path: Path, capsys) -> None:
    wav = write(tmp_path / "a.wav")
    content = wav.read_bytes()
    assert run(capsys, tmp_path, tmp_path)[0] == 0
    assert wav.read_bytes() == content and (tmp_path / "a.flac").is_file()


@pytest.mark.parametrize("case", ["absent", "file", "empty", "target"])
def test_mistakes_are_one_sentence(tmp_path: Path, capsys, case: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    write(tmp_path / "target" / "a.wav")
    to = tmp_path / "file" / "below" if case == "target" else tmp_path / "out"
    status, _, err = run(capsys, tmp_path / case, to)
    assert status == 1 and err.startswith("error: ") and err.count("\n") == 1 and str(tmp_path) in err


def test_a_disk_that_writes_other_bytes_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wav = write(tmp_path / "a.wav")
    real = soundfile.SoundFile.write
    monkeypatch.setattr(soundfile.SoundFile, "write", lambda self, block: real(self, np.roll(block, 1)))
    with pytest.raises(flac.ConversionError, match="other samples"):
        flac.convert(wav, tmp_path / "a.flac")
    assert list(tmp_path.iterdir()) == [wav]


def test_all_sound_is_converted_whatever_the_header_says(tmp_path: Path, capsys) -> None:
    """As a program that was killed while it recorded leaves a file: the header says less than is there."""
    wav = write(tmp_path / "in" / "a.wav", frames=40_000)
    content = bytearray(wav.read_bytes())
    samples = soundfile.read(wav, dtype="int16")[0]
    at = content.index(b"data") + 4
    content[at : at + 4] = (8_000).to_bytes(4, "little")
    wav.write_bytes(content)
    status, out, _ = run(capsys, tmp_path / "in", tmp_path / "out")
    assert status == 0 and f"note: {wav}" in out
    assert np.array_equal(soundfile.read(tmp_path / "out" / "a.flac", dtype="int16")[0], samples)
    assert "1 there already" in run(capsys, tmp_path / "in", tmp_path / "out")[1]


@pytest.mark.parametrize("same", [True, False])
def test_a_file_behind_a_file_is_not_lost(tmp_path: Path, capsys, same: bool) -> None:
    first, second = write(tmp_path / "1.wav", frames=9_000), write(tmp_path / "2.wav", channels=1 if same else 2)
    wav = tmp_path / "in" / "a.wav"
    wav.parent.mkdir()
    wav.write_bytes(first.read_bytes() + second.read_bytes())
    status, _, err = run(capsys, tmp_path / "in", tmp_path / "out")
    flac_file = tmp_path / "out" / "a.flac"
    assert soundfile.info(flac_file).frames == 13_000 if status == 0 else "one after another" in err
    assert status == int(not same)
