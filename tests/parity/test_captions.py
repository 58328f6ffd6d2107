"""Caption scores against pycocoevalcap's and aac-metrics' figures; the tokenizer against Stanford's."""

import json
from pathlib import Path

import pytest

import metrics
from tests.vectors import cases, matches

TOLERANCE = 1e-8  # the vectors carry ten decimals
TOLERANCE_METEOR = 1e-6


@pytest.fixture(scope="module")
def captions(parity_dir: Path) -> dict:
    return json.loads((parity_dir / "captions" / "captions.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def expected(parity_dir: Path) -> dict:
    return json.loads((parity_dir / "captions" / "scores.json").read_text(encoding="utf-8"))


def _lists(folder: Path) -> list[str]:
    """The lists of texts that have their tokens too."""
    return matches("(.+)_ptb", list(json.loads((folder / "captions.json").read_text(encoding="utf-8"))))


def _counts(folder: Path) -> list[int]:
    """How many references a clip has in each of the corpus scores."""
    return [int(n) for n in matches(r"refs(\d+)", list(json.loads((folder / "scores.json").read_text())))]


@cases("name", "captions", _lists)
def test_tokens_equal_stanfords(captions: dict, name: str) -> None:
    texts, tokens = captions[name], captions[f"{name}_ptb"]
    if "refs" in name:
        texts, tokens = ([text for several in nested for text in several] for nested in (texts, tokens))
    assert metrics.ptb_tokenize(texts) == tokens


@cases("count", "captions", _counts)
def test_corpus_scores(captions: dict, expected: dict, count: int) -> None:
    references = [several[:count] for several in captions["refs"]]
    got = {
        "cider_d": metrics.cider_d(references, captions["hyps"]),
        "rouge_l": metrics.rouge_l(references, captions["hyps"]),
        **metrics.bleu(references, captions["hyps"])._asdict(),
    }
    want = dict(expected[f"refs{count}"]["pycocoevalcap_after_ptb"])
    want.pop("meteor")
    assert got == pytest.approx(want, abs=TOLERANCE)


@cases("count", "captions", _counts)
def test_each_clips_cider_d(captions: dict, parity_dir: Path, count: int) -> None:
    per_item = json.loads((parity_dir / "captions" / "per_item.json").read_text(encoding="utf-8"))
    got = metrics.cider_d_per_clip([several[:count] for several in captions["refs"]], captions["hyps"])
    assert got == pytest.approx(per_item[f"refs{count}"]["coco_ptb"]["cider_d"], abs=TOLERANCE)


def test_empty_hypotheses(captions: dict, expected: dict) -> None:
    references, hypotheses = captions["edge_refs"], captions["edge_hyps"]
    got = {
        "cider_d": metrics.cider_d(references, hypotheses),
        "rouge_l": metrics.rouge_l(references, hypotheses),
        **metrics.bleu(references, hypotheses)._asdict(),
    }
    assert got == pytest.approx(expected["edge"]["pycocoevalcap"], abs=TOLERANCE)


def test_the_figure_some_print_as_spider(captions: dict, expected: dict) -> None:
    printed = expected["nota_main_hyps_lowercased_as_its_script_does"]["cider_d_corpus"]
    got = metrics.cider_d_x100(captions["refs"], captions["hyps"])
    assert got == pytest.approx(100 * printed, abs=100 * TOLERANCE)


@pytest.mark.slow
@cases("count", "captions", _counts)
def test_meteor(captions: dict, expected: dict, count: int) -> None:
    if metrics.unavailable("meteor"):
        pytest.skip(metrics.unavailable("meteor"))
    got = metrics.meteor([several[:count] for several in captions["refs"]], captions["hyps"])
    want = expected[f"refs{count}"]["pycocoevalcap_after_ptb"]["meteor"]
    assert got == pytest.approx(want, abs=TOLERANCE_METEOR)


def test_published_examples(real_dir: Path) -> None:
    published = json.loads((real_dir / "metric_expected" / "published_small.json").read_text())
    example = published["aac_metrics_readme"]
    assert metrics.bleu(example["references"], example["candidates"]).bleu_1 == pytest.approx(
        example["bleu_1"], abs=5e-5
    )
    assert metrics.cider_d(example["references"], example["candidates"]) == pytest.approx(example["cider_d"], abs=5e-5)
    assert metrics.cider_d_per_clip(example["references"], example["candidates"]) == pytest.approx(
        example["cider_d_per_item"], abs=5e-5
    )

    example = published["nlg_eval_individual"]
    got = metrics.bleu([example["reference"]], [example["hyp"]])
    assert got == pytest.approx([example[f"Bleu_{n}"] for n in range(1, 5)], abs=1e-6)
    assert metrics.rouge_l([example["reference"]], [example["hyp"]]) == pytest.approx(example["ROUGE_L"], abs=1e-6)
    assert metrics.cider_d([example["reference"]], [example["hyp"]]) == 0.0


def test_a_published_corpus(real_dir: Path) -> None:
    corpus = json.loads((real_dir / "metric_expected" / "aac_metrics_example_1.json").read_text(encoding="utf-8"))
    references = [item["references_tok"] for item in corpus["items"]]
    hypotheses = [item["candidate_tok"] for item in corpus["items"]]
    got = {
        "cider_d": metrics.cider_d(references, hypotheses),
        "rouge_l": metrics.rouge_l(references, hypotheses),
        **metrics.bleu(references, hypotheses)._asdict(),
    }
    assert got == pytest.approx(corpus["corpus_scores"], abs=TOLERANCE)
