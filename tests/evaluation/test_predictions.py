"""Lines of predictions: what every JSON reader can read."""

import json
import time
from pathlib import Path

from data.parts import Part
from evaluation.predictions import PREDICTIONS, Prediction, PredictionStore, row_ids
from tests.evaluations import annotation


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def test_an_annotations_nan_is_null_in_its_line(tmp_path):
    """Python reads NaN from an annotation file; what it writes must be read by others."""
    extra = {"score": float("nan"), "levels": [1.0, float("inf")]}
    prediction = Prediction(index=0, id="a", path="a.wav", task="asr", prompt="p", hypothesis="h", extra=extra)
    store = PredictionStore(tmp_path, ["d"])
    store.append([prediction])
    for write in (lambda: None, lambda: store.finish([prediction])):
        write()
        row = json.loads((tmp_path / PREDICTIONS).read_text(), parse_constant=refuse)
        assert (row["score"], row["levels"]) == (None, [1.0, None])


def test_other_processes_lines_are_read_too(tmp_path: Path) -> None:
    def prediction(index: int, **fields) -> Prediction:
        return Prediction(index=index, id=str(index), path="a.wav", task="asr", prompt="p", hypothesis="h", **fields)

    digests = ["d0", "d1", "d2"]
    first, second = PredictionStore(tmp_path, digests), PredictionStore(tmp_path, digests, rank=1)
    assert first.open_run({"adapter": "1"}) == []
    first.append([prediction(0, references=("a", "b"), extra={"speaker": "x"})])
    second.append([prediction(1), prediction(2, error="broken")])
    first.close(), second.close()
    again = PredictionStore(tmp_path, digests)
    assert again.open_run({"adapter": "1"}) == []
    done = again.done()
    assert sorted(done) == [0, 1] and done[0].extra == {"speaker": "x"} and done[0].references == ("a", "b")
    assert PredictionStore(tmp_path, ["d0"]).done().keys() == {0}
    assert PredictionStore(tmp_path, ["other", "d1", "d0", "d0"]).done().keys() == {1, 2, 3}  # another order


def test_an_annotations_own_audio_path_stays_its_own() -> None:
    line = Prediction(
        index=0, id="a", path="a.wav", task="asr", prompt="p", hypothesis="h", extra={"audio_path": "theirs"}
    ).to_json()
    assert line["annotation_audio_path"] == "theirs"
    assert Prediction.from_json(line).audio_path is None
    assert Prediction.from_json(line).to_json() == line


def test_names_of_rows() -> None:
    clips = [
        annotation("a/x.wav", "", testset_id="7"),
        annotation("a/y.wav", ""),
        annotation("a/z.wav", ""),
        annotation("b/z.wav", ""),
        annotation("c/7.wav", ""),
        annotation("d/w.wav", ""),
        annotation("d/w.wav", "", "QA"),
    ]
    assert row_ids(clips) == ["7", "y", "a/z.wav", "b/z.wav", "c/7.wav", "d/w.wav#5", "d/w.wav#6"]


def test_names_of_parts_of_one_recording() -> None:
    parts = [Part(0.0, 1.5), Part(1.5), Part(1.5)]
    clips = [annotation("r/long.wav", "", part=part) for part in parts] + [annotation("r/alone.wav", "", part=parts[0])]
    assert row_ids(clips) == [
        "r/long.wav [0-1.5 s]", "r/long.wav [1.5-end s]#1", "r/long.wav [1.5-end s]#2", "alone",
    ]  # fmt: skip


def test_names_of_rows_that_two_files_share() -> None:
    clips = [
        annotation("a.wav", "", testset_id="0", source="data/asr.json#0"),
        annotation("b.wav", "", testset_id="1", source="data/asr.json#1"),
        annotation("c.wav", "", testset_id="0", source="data/aac.json#0"),
    ]
    assert row_ids(clips) == ["asr/0", "1", "aac/0"]
    clips[2] = annotation("c.wav", "", testset_id="0", source="more/asr.json#0")
    assert row_ids(clips) == ["data/asr.json/0", "1", "more/asr.json/0"]


def test_many_lines_that_are_made_anew_are_counted_at_once(tmp_path: Path) -> None:
    clips = 20_000
    before = PredictionStore(tmp_path, [f"old {n}" for n in range(clips)])
    before.open_run({"adapter": "1", "program": "a"})
    shared = {"path": "a.wav", "task": "asr", "prompt": "p", "hypothesis": "h"}
    before.append(Prediction(index=n, id=str(n), **shared) for n in range(clips))
    before.close()
    started = time.process_time()
    (note,) = PredictionStore(tmp_path, [f"new {n}" for n in range(clips)]).open_run({"adapter": "1", "program": "b"})
    assert "starting from the beginning" in note and "another program" in note
    assert time.process_time() - started < 5  # a set a line took half a minute
