"""Signals: a run saves a checkpoint, and continues from it exactly."""

import json
import os
import signal

import pytest

from runner import Runner
from tests.runs import kill_after, log_of, losses_of, make_runner
from training.stopping import StopRequest


@pytest.mark.parametrize(("number", "step"), [(signal.SIGTERM, 2), (signal.SIGINT, 3)])
def test_a_signal_saves_and_the_run_goes_on_exactly(lively_project, uninterrupted, tmp_path, monkeypatch, number, step):
    """Mid-epoch, and in an epoch's last step: its validation is then left, and done after resuming."""
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        kill_after(patch, step - 1, lambda: os.kill(os.getpid(), number))
        result = make_runner(lively_project.config, f"run.output_dir={folder}").train()
    assert result.stopped_by == number
    assert result.step == step
    assert result.last == folder / f"checkpoint_{result.step:06d}"
    make_runner(lively_project.config, f"run.output_dir={folder}", resume=result.last).train()
    assert losses_of(folder) == losses_of(uninterrupted)
    validations = [[line for line in log_of(path) if "valid/loss" in line] for path in (folder, uninterrupted)]
    assert validations[0] == validations[1]


def test_a_stop_right_after_a_checkpoint_leaves_its_scores(lively_project, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    finish = Runner._finish_epoch

    def finish_and_stop(self):
        finished = finish(self)
        os.kill(os.getpid(), signal.SIGTERM)
        return finished

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "_finish_epoch", finish_and_stop)
        assert make_runner(lively_project.config, f"run.output_dir={folder}").train().step == 3
    assert "loss" in json.loads((folder / "best" / "metrics.json").read_text())["scores"]


def test_the_first_signal_is_noted_and_the_second_ends_the_process():
    class Ended(Exception):
        pass

    def end(number, frame):
        raise Ended

    before, said = signal.signal(signal.SIGTERM, end), []
    try:
        request = StopRequest()
        assert not request
        with request.noted(said.append):
            os.kill(os.getpid(), signal.SIGTERM)
            assert request and request.signal == signal.SIGTERM
            assert "SIGTERM" in said[0] and len(said) == 1
            with pytest.raises(Ended):
                os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is end
    finally:
        signal.signal(signal.SIGTERM, before)
