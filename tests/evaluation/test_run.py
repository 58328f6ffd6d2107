"""One mode of evaluation: its three files, and rows of clips that cannot be read."""

import json
from pathlib import Path

import soundfile

from tests import tiny
from tests.evaluations import entries, outputs, run


def test_captions_keep_all_references(project: tiny.TinyProject) -> None:
    assert run(project, "--mode", "submission_aac") == 0
    rows, lines, scores = outputs(project, "submission_aac")
    annotations = entries(project.test_aac)
    assert len(rows) == len(annotations)
    assert [line["references"] for line in lines] == [entry["texts"] for entry in annotations]
    assert lines[0]["scene"] == annotations[0]["scene"]
    assert scores["scores"]["cider_d"] is not None
    assert scores["scores"]["spider"] is not None or "spice" in scores["tasks"]["audiocaption"]["reasons"]["spider"]


def test_bad_clips_keep_their_rows(project: tiny.TinyProject) -> None:
    corpus = project.test_asr.parent
    (corpus / "empty.wav").touch()
    (corpus / "text.wav").write_text("no audio at all")
    soundfile.write(corpus / "silent.wav", [], 16_000)
    soundfile.write(corpus / "nan.wav", [0.0, float("nan")] * 800, 16_000, subtype="FLOAT")
    soundfile.write(corpus / "short.wav", [0.1] * 800, 16_000)  # 0.05 s
    names = ["absent.wav", "empty.wav", "text.wav", "silent.wav", "nan.wav", "short.wav"]
    bad = [{"path": name, "text": "one", "task": "asr", "testset_id": name} for name in names]
    tiny.write_annotations(project.test_asr, [*bad[:3], *entries(project.test_asr), *bad[3:]])
    assert run(project, "--mode", "submission_asr", "--options", "run.batch_size_eval=2") == 0
    rows, lines, scores = outputs(project, "submission_asr")
    assert len(rows) == 5 + len(names)
    failed = {line["id"]: line for line in lines if line["error"]}
    assert list(failed) == names[:5]
    assert all(not row["text"] for row in rows if row["testset_id"] in failed)
    assert scores["failed"] == 5 and [failure["id"] for failure in scores["failures"]] == names[:5]
    assert scores["tasks"]["asr"]["scores"]["deletions"] >= 5
    quarantined = (project.output / "eval/submission_asr/quarantine.jsonl").read_text().splitlines()
    assert [Path(json.loads(line)["path"]).name for line in quarantined] == names[:5]
