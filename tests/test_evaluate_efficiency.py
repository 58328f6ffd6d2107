"""The command `evaluate_efficiency.py`; what it measures is tested in tests/efficiency/."""

import pytest

import evaluate_efficiency


def test_a_configuration_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture) -> None:
    assert evaluate_efficiency.main(["--cfg-path", "absent.yaml"]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error:") and "absent.yaml" in printed.err
    assert len(printed.err.splitlines()) == 1
