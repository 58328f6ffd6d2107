"""Lines of predictions: what every JSON reader can read."""

import json

from evaluation.predictions import PREDICTIONS, Prediction, PredictionStore


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def test_an_annotations_nan_is_null_in_its_line(tmp_path):
    """Python reads NaN from an annotation file; what it writes must be read by others."""
    extra = {"score": float("nan"), "levels": [1.0, float("inf")]}
    prediction = Prediction(index=0, id="a", path="a.wav", task="asr", prompt="p", hypothesis="h", extra=extra)
    store = PredictionStore(tmp_path)
    store.append([prediction])
    for write in (lambda: None, lambda: store.finish([prediction])):
        write()
        row = json.loads((tmp_path / PREDICTIONS).read_text(), parse_constant=refuse)
        assert (row["score"], row["levels"]) == (None, [1.0, None])
