"""The leaderboard: the documented formula, the rules on what may be compared, and dashes for what is missing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks import leaderboard
from benchmarks.leaderboard import Row


def suite(folder: Path, name: str, **systems: dict) -> None:
    content = {"suite": "gpu_suite", "shapes": "full, random weights", "machine": {"name": name}, "systems": systems}
    (folder / f"{name}.json").write_text(json.dumps(content))


def side(ttft: float, tpot: float, peak: float) -> dict:
    return {"contest_ttft_s": ttft, "contest_tpot_s": tpot, "peak_with_loading_gib": peak}


def test_published_systems_are_ranked_by_the_formula() -> None:
    entries = {entry.row.system: entry for entry in leaderboard.ranked(leaderboard.published_rows())}
    base, cv03 = entries["salmonn_3b"], entries["cv03"]
    assert base.score == pytest.approx(1.0)
    terms = (6.34 / 6.42, 0.3049 / 0.2027, (9.1761 / 5.3169) ** 2, (0.2511 / 0.4627) ** 2)
    assert cv03.score == pytest.approx(math.prod(terms) ** (1 / 6))
    assert entries["nlp07"].missing == ("captions",) and entries["nlp07"].rank is None  # an unstated metric
    assert entries["nlp07"].light == pytest.approx(((9.1761 / 3.83) * (0.2511 / 0.2102)) ** 0.5)
    ranks = [entry.rank for entry in leaderboard.ranked(leaderboard.published_rows())]
    assert ranks == [1, 2, 3, 4, None, None, None]


@pytest.mark.parametrize(
    ("system", "terms"),
    [
        ("cv16", {"asr": 6.34 / 5.3, "captions": 35.49 / 27.84, "memory": 9.1761 / 4.0938, "latency": 0.4795 / 0.3641}),
        ("nlp12", {"asr": 6.34 / 7.7, "captions": 0.3304 / 0.2029, "memory": 9.3242 / 4.05, "latency": 1.272 / 0.8458}),
        ("recsys08", {"asr": 6.41 / 7.3, "memory": 9.1 / 5.87, "latency": 0.252 / 0.198}),
    ],
)
def test_a_system_is_compared_with_the_baseline_that_its_authors_measured(system: str, terms: dict) -> None:
    (entry,) = (e for e in leaderboard.ranked(leaderboard.published_rows()) if e.row.system == system)
    assert entry.terms == pytest.approx(terms)


def test_a_file_of_further_rows_may_have_a_baseline_too(tmp_path: Path) -> None:
    score = {"asr": {"metric": "WER %", "value": 5.0}, "aac": [], "ttft_plus_tpot_s": 0.1}
    row = {"name": "mine", "parts": "a", "device": "gpu", "peak_gb": 2.0, "ttft_s": None, "tpot_s": None, **score}
    plain = {**row, "name": "plain"}
    with_own = {**row, "baseline": {"parts": "b", "peak_gb": 8.0, **score}}
    (tmp_path / "mine.json").write_text(json.dumps({"about": "test", "rows": [with_own, plain]}))
    rows = [*leaderboard.published_rows(), *leaderboard.result_rows(tmp_path)]
    found = {entry.row.system: entry.terms for entry in leaderboard.ranked(rows)}
    assert found["mine"] == {"asr": 1.0, "memory": 4.0, "latency": 1.0}
    assert set(found["plain"]) == {"asr"}  # no baseline on that machine


def test_measured_rows_are_compared_on_their_own_machine(tmp_path: Path) -> None:
    suite(tmp_path, "gpu a", salmonn_3b={"reference": side(0.2, 0.02, 10.0), "ours": side(0.05, 0.005, 7.0)})
    suite(tmp_path, "gpu b", nlp07={"ours": side(0.01, 0.002, 2.0), "reference": {"error": "stopped"}})
    (tmp_path / "loader.json").write_text('{"ratios": {}}')
    rows = [*leaderboard.published_rows(), *leaderboard.result_rows(tmp_path)]
    found = {(entry.row.system, entry.row.source): entry for entry in leaderboard.ranked(rows)}
    ours = found["salmonn_3b", "gpu a.json, ours"]
    assert ours.terms == {"memory": pytest.approx(10 / 7), "latency": pytest.approx(4.0)} and ours.score is None
    assert ours.missing == ("asr", "captions") and ours.light == pytest.approx((4 * 10 / 7) ** 0.5)
    assert found["nlp07", "gpu b.json, ours"].terms == {}  # no baseline there
    assert ("nlp07", "gpu b.json, reference") not in found


def test_every_configured_system_has_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "board.json"
    assert leaderboard.main(["--out", str(out), "--results", str(tmp_path)]) == 0
    report = json.loads(out.read_text())
    systems = {entry["row"]["system"] for entry in report["rows"]}
    assert {"cv03", "cv16", "nlp07", "salmonn_3b", "salmonn_7b", "salmonn_13b"} <= systems
    (row,) = (entry for entry in report["rows"] if entry["row"]["system"] == "salmonn_13b")
    assert row["row"]["source"] == "configs" and row["row"]["peak_gb"] is None and row["rank"] is None
    printed = capsys.readouterr().out
    assert "| –" in printed and "unstated 35.93" in printed and "a formula of ours" in printed
    assert report["weights"] == {"asr": 1, "captions": 1, "memory": 2, "latency": 2}


def test_a_row_of_ours_with_scores_is_ranked() -> None:
    rows = leaderboard.published_rows()
    row = Row(
        system="smolt",
        source="published",
        device=rows[0].device,
        wer=3.17,
        captions=(("SPIDEr", 0.4054),),
        peak_gb=9.1761 / 2,
        latency_s=0.2511 / 2,
    )
    best = leaderboard.ranked([*rows, row])[0]
    assert best.row.system == "smolt" and best.rank == 1 and best.score == pytest.approx(2.0)
