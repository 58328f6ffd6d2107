"""Samples that callers give: every form of the same sound is read alike, everything else is refused in words."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data.audio import AudioError, load_waveform
from support.waveforms import WaveformError, as_clips, as_waveform
from tests.encoded import TONE, encoded

TENSOR = torch.from_numpy(np.round(TONE * 32_768)) / 32_768
FORMS = {
    "float32 tensor": TENSOR,
    "float64 tensor": TENSOR.double(),
    "int16 tensor": (TENSOR * 32_768).to(torch.int16),
    "int32 tensor": (TENSOR * 32_768).to(torch.int32) * 65_536,
    "float32 array": TENSOR.numpy(),
    "float64 array": TENSOR.double().numpy(),
    "int16 array": (TENSOR * 32_768).numpy().astype(np.int16),
    "reversed view": TENSOR.flip(0).numpy()[::-1],
    "big-endian array": TENSOR.numpy().astype(">f4"),
    "one channel": TENSOR[None],
    "one channel array": TENSOR.numpy()[None],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_alike(form: str) -> None:
    waveform = as_waveform(FORMS[form])
    assert waveform.dtype == torch.float32 and torch.equal(waveform, TENSOR)
    clips, lengths = as_clips(
        np.atleast_2d(FORMS[form]) if "array" in form or "view" in form else FORMS[form].reshape(1, -1), 8000
    )
    assert torch.equal(clips, TENSOR[None]) and lengths.tolist() == [8000]


def test_half_precision() -> None:
    for value in (TENSOR.half(), TENSOR.half().numpy(), TENSOR.bfloat16()):
        assert (as_waveform(value) - TENSOR).abs().max() < 2e-3


REFUSED = {
    "NaN": (np.where(np.arange(800) == 7, np.nan, 0.1), "NaN or infinite"),
    "infinite": (torch.tensor([0.0, float("inf")]), "NaN or infinite"),
    "16 bits in floats": (TENSOR * 32_768, "reach 1.311e\\+04; expected"),
    "16 bits in float64": (TENSOR.double().numpy() * 32_768, "divide them by full scale"),
    "empty": (torch.zeros(0), "has no samples"),
    "empty array": (np.zeros((1, 0), np.float32), "has no samples"),
    "stereo": (torch.zeros(2, 800), r"shape \[2, 800\]; expected \[T\], one channel: average"),
    "stereo, samples first": (np.zeros((800, 2), np.float32), r"shape \[800, 2\]; expected \[T\], one channel"),
    "three dimensions": (torch.zeros(1, 1, 800), r"shape \[1, 1, 800\]"),
    "a number": (torch.tensor(0.5), r"shape \[\]"),
    "bytes in numbers": (np.zeros(800, np.uint8), "uint8; expected float32"),
    "int64": (torch.zeros(800, dtype=torch.long), "int64; expected float32"),
    "bool": (torch.zeros(800, dtype=torch.bool), "bool; expected float32"),
    "complex": (np.zeros(800, np.complex64), "complex64; expected float32"),
    "text": (np.array(["a"]), "expected float32"),
    "uint16": (np.zeros(800, np.uint16), "uint16; expected float32"),
    "a list": ([0.1] * 800, "is a list; expected a torch tensor or numpy array"),
    "a path": ("clip.wav", "is a str; .*load_waveform reads a file"),
    "nothing": (None, "is a NoneType"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    value, message = REFUSED[case]
    with pytest.raises(WaveformError, match=message) as caught:
        as_waveform(value, "clip 3")
    assert str(caught.value).startswith("clip 3") and "\n" not in str(caught.value)


def test_a_little_beyond_full_scale_is_scaled_as_in_a_file() -> None:
    loud = 4 * TENSOR
    waveform = as_waveform(loud)
    assert waveform.abs().max() == 1 and torch.allclose(waveform, loud / loud.abs().max())
    assert torch.allclose(waveform, load_waveform(encoded(loud.numpy(), subtype="FLOAT")), atol=1e-6)
    clips, _ = as_clips(torch.stack([loud, TENSOR]), [8000, 8000])
    assert torch.equal(clips[1], TENSOR) and torch.equal(clips[0], waveform)
    with pytest.raises(AudioError, match="divide them by full scale"):
        load_waveform(encoded(32_768 * TENSOR.numpy(), subtype="FLOAT"))


@pytest.mark.parametrize("lengths", [torch.tensor([800, 500]), [800, 500], (800, 500), np.array([800, 500])])
def test_lengths(lengths: object) -> None:
    assert as_clips(torch.zeros(2, 800), lengths)[1].tolist() == [800, 500]
    assert as_clips(torch.zeros(2, 800), None)[1].tolist() == [800, 800]


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (800, "got waveforms"),
        (True, "bool"),
        ([0.5, 0.5], "whole numbers of samples, not seconds"),
        ([800, 801], "1 to 800"),
        ([800, 0], "1 to 800"),
        ([800, -5], "1 to 800"),
        ([[800, 500]], "lengths \\[1, 2\\]"),
        ("800", "expected the number of samples"),
        ([None, 3], "expected the number of samples"),
        (object(), "expected the number of samples"),
    ],
)
def test_lengths_that_are_refused(lengths: object, message: str) -> None:
    with pytest.raises(WaveformError, match=message):
        as_clips(torch.zeros(2, 800), lengths)


def test_a_batch_names_the_clip() -> None:
    clips = torch.zeros(3, 800)
    clips[1, 5] = float("nan")
    with pytest.raises(WaveformError, match="waveforms, clip 1: samples are NaN"):
        as_clips(clips, None)


def test_gradients_pass() -> None:
    clips = torch.zeros(1, 800, requires_grad=True)
    assert as_clips(clips, 800)[0] is clips


def test_short_whole_numbers_are_counted_in_long_ones() -> None:
    assert as_clips(np.zeros((2, 200), np.float32), np.array([200, 100], np.uint8))[1].dtype == torch.int64


def test_a_sparse_tensor_is_refused() -> None:
    with pytest.raises(WaveformError, match="to_dense"):
        as_clips(torch.eye(2).to_sparse(), None)
