"""NeMo manifests, Lhotse cuts and Kaldi folders are read, or named with the remedy."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from data.annotations import AnnotationError, load_annotations
from data.parts import Part


def lines(path: Path, *entries: dict) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return path


def refused(path: Path) -> str:
    with pytest.raises(AnnotationError) as caught:
        load_annotations(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


# -- NeMo ------------------------------------------------------------------------------------------------------------

NEMO = {"audio_filepath": "a.wav", "text": "one", "duration": 0.5, "offset": 2.0}


@pytest.mark.parametrize("name", ["manifest.json", "manifest.jsonl"])
def test_a_nemo_manifest(tmp_path: Path, name: str) -> None:
    whole = {"audio_filepath": "b.wav", "text": "two", "duration": 3.0, "lang": "en"}
    first, second = load_annotations(lines(tmp_path / name, NEMO, whole))
    assert (first.path, first.text, first.task, first.part) == (str(tmp_path / "a.wav"), "one", "asr", Part(2.0, 2.5))
    assert (second.part, second.extra) == (None, {"duration": 3.0, "lang": "en"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shard_id": 3}, "field 'shard_id': the clips of a tarred NeMo manifest"),
        ({"audio_filepath": ["a.wav", "b.wav"]}, "expected the path of one file"),
        ({"offset": "2.0"}, "field 'offset': expected seconds as a number"),
        ({"text": None}, "field 'text' is null"),
    ],
)
def test_nemo_manifests_that_cannot_be_read(tmp_path: Path, fields: dict, message: str) -> None:
    assert message in refused(lines(tmp_path / "m.jsonl", NEMO | fields))


# -- Lhotse ----------------------------------------------------------------------------------------------------------

SAID = {"id": "s1", "recording_id": "r", "start": 0.0, "duration": 0.5, "channel": 0, "text": "one", "speaker": "amy"}
RECORDING = {
    "id": "r", "sources": [{"type": "file", "channels": [0], "source": "r.flac"}], "sampling_rate": 16_000,
    "num_samples": 160_000, "duration": 10.0, "channel_ids": [0],
}  # fmt: skip
CUT = {"id": "c1", "start": 2.0, "duration": 0.5, "channel": 0, "supervisions": [SAID], "recording": RECORDING,
       "type": "MonoCut"}  # fmt: skip


def test_lhotse_cuts(tmp_path: Path) -> None:
    whole = CUT | {"id": "c2", "start": 0, "duration": 10.0}
    stereo = CUT | {
        "id": "c3",
        "channel": 1,
        "recording": RECORDING | {"channel_ids": [0, 1]},
        "supervisions": [SAID | {"start": 0.3, "text": "three"}, SAID | {"text": "two", "speaker": "bo"}],
        "custom": {"task": "asr_zh"},
    }
    plain = lines(tmp_path / "cuts.jsonl", CUT, stereo)
    packed = tmp_path / "cuts.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    for file in (plain, packed):
        first, third = load_annotations(file)
        assert (first.path, first.text, first.task) == (str(tmp_path / "r.flac"), "one", "asr")
        assert (first.part, first.testset_id, first.extra["speaker"]) == (Part(2.0, 2.5), "c1", "amy")
        assert (third.part, third.text, third.task) == (Part(2.0, 2.5, 1), "two three", "asr_zh")
        assert "speaker" not in third.extra
    (annotation,) = load_annotations(lines(tmp_path / "whole.jsonl", whole))
    assert (annotation.part, annotation.extra["duration"], annotation.testset_id) == (None, 10.0, "c2")


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (CUT | {"type": "MixedCut", "tracks": []}, "mixed from several; save its audio first"),
        ({**CUT, "recording": None}, "without its recording"),
        (CUT | {"recording": RECORDING | {"transforms": [{"name": "Speed", "kwargs": {"factor": 1.1}}]}}, "transforms"),
        (CUT | {"recording": RECORDING | {"sources": [{"type": "command", "source": "sox"}]}}, "is not one file"),
        (CUT | {"duration": "long"}, "field 'duration'"),
        (CUT | {"channel": [0, 1]}, "field 'channel'"),
        (SAID, "a Lhotse supervision, which has only half"),
        (RECORDING, "a Lhotse recording, which has only half"),
    ],
)
def test_lhotse_manifests_that_cannot_be_read(tmp_path: Path, cut: dict, message: str) -> None:
    assert message in refused(lines(tmp_path / "cuts.jsonl", cut))


def test_a_damaged_gzip_file(tmp_path: Path) -> None:
    file = tmp_path / "cuts.jsonl.gz"
    file.write_bytes(gzip.compress(json.dumps(CUT).encode())[:-12])
    assert "a damaged gzip file" in refused(file)


# -- Kaldi -----------------------------------------------------------------------------------------------------------


def kaldi(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    content = {
        "wav.scp": "rec1 /data/rec1.wav\nrec2\trec2.flac\n",
        "segments": "u1 rec1 0.0 1.5\nu2 rec1 1.5 -1\nu3 rec2 2 2.5\n",
        "text": "u1 one two\nu2 three\nu3\n",
    } | {name.replace("_", "."): text for name, text in files.items()}
    for name, text in content.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_a_kaldi_folder(tmp_path: Path) -> None:
    folder = kaldi(tmp_path / "train")
    for given in (folder, folder / "segments", folder / "wav.scp"):
        first, second, third = load_annotations(given)
        assert (first.path, first.text, first.testset_id) == ("/data/rec1.wav", "one two", "u1")
        assert [one.part for one in (first, second, third)] == [Part(0.0, 1.5), Part(1.5), Part(2.0, 2.5)]
        assert (third.path, third.text, third.task) == (str(folder / "rec2.flac"), "", "asr")


def test_a_kaldi_folder_of_whole_recordings(tmp_path: Path) -> None:
    folder = kaldi(tmp_path / "train", text="rec1 one\n")
    (folder / "segments").unlink()
    first, second = load_annotations(folder, require_text=False)
    assert (first.text, first.part, second.texts) == ("one", None, ())
    assert "field 'text' is missing" in refused(folder)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"wav_scp": "rec1 sph2pipe -f wav a.sph |\n"}, "wav.scp, line 1: a command in place of a file"),
        ({"segments": "u1 rec9 0 1\n"}, "segments, line 1: recording 'rec9' is not in"),
        ({"segments": "u1 rec1 0\n"}, "segments, line 1: expected 4 columns"),
        ({"segments": "u1 rec1 0 one\n"}, "expected a time in seconds, found 'one'"),
        ({"segments": "u1 rec1 2 1\n", "text": "u1 a\n"}, "ends before it starts"),
        ({"text": "u1 one\nu9 nine\n"}, "text: utterance 'u9' is not in"),
        ({"text": "u1 one\nu2 two\nu1 other\n"}, "text, line 3: 'u1' is there twice, first in line 1"),
        ({"segments": "u1 rec1 0 1\nu1 rec1 1 2\n"}, "segments, line 2: 'u1' is there twice"),
        ({"wav_scp": "rec1 a.wav\nrec1 b.wav\n"}, "wav.scp, line 2: 'rec1' is there twice"),
    ],
)
def test_kaldi_folders_that_cannot_be_read(tmp_path: Path, files: dict, message: str) -> None:
    assert message in refused(kaldi(tmp_path / "train", **files))
