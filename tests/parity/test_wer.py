"""`wer_nota` against the contest evaluator's figures; Whisper's normaliser and jiwer against published ones."""

import json
from pathlib import Path

import pytest

import metrics


@pytest.fixture(scope="module")
def pairs(parity_dir: Path) -> list[dict]:
    lines = (parity_dir / "wer" / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_every_pair_has_the_evaluators_distance(pairs: list[dict]) -> None:
    for pair in pairs:
        counted = metrics.wer_nota([pair["ref"]], [pair["hyp"]])
        assert counted.errors == pair["distance"], pair
        assert counted.reference_words == len(pair["ref_tokens"]), pair
        assert counted.hypothesis_words == len(pair["hyp_tokens"]), pair


def test_corpus_figure(pairs: list[dict], parity_dir: Path) -> None:
    expected = json.loads((parity_dir / "wer" / "result.json").read_text())["nota"]
    counted = metrics.wer_nota([pair["ref"] for pair in pairs], [pair["hyp"] for pair in pairs])
    assert counted.wer == expected["wer"]
    assert counted.errors == expected["distance"]
    assert counted.reference_words == expected["reference_words"]


def test_whisper_normaliser_cases(real_dir: Path) -> None:
    cases = json.loads((real_dir / "metric_expected" / "whisper_normalizer.json").read_text())["cases"]
    normalise = metrics.english_normalizer()
    assert [normalise(case["input"]) for case in cases] == [case["output"] for case in cases]


def test_published_word_error_rates(real_dir: Path) -> None:
    published = json.loads((real_dir / "metric_expected" / "published_small.json").read_text())
    for example in published["hf_evaluate_wer_readme"]:
        assert metrics.wer(example["references"], example["predictions"]).wer == example["wer"]


def test_never_more_errors_than_sclite(real_dir: Path) -> None:
    """sclite aligns with other costs, so that its sum of errors can only be larger. Phones are not normalised."""
    items = json.loads((real_dir / "metric_expected" / "sclite_csrnab.json").read_text())["items"]
    for item in items:
        counted = metrics.per([item["ref"]], [item["hyp"]])
        assert counted.errors <= item["S"] + item["D"] + item["I"], item["id"]
        assert counted.reference_words == item["C"] + item["S"] + item["D"], item["id"]
