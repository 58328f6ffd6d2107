"""models.encoders.features.kaldi_fbank against BEATs' own front-end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.encoders.features import kaldi_fbank
from tests.vectors import cases, matches, tensor_names


def _clips(folder: Path) -> list[str]:
    return matches("pcm_(.+)", tensor_names(folder / "input.safetensors"))


@pytest.fixture(scope="module")
def vectors(parity_dir: Path) -> dict[str, torch.Tensor]:
    folder = parity_dir / "kaldi_fbank"
    return load_file(folder / "input.safetensors") | load_file(folder / "output.safetensors")


def _fbank(pcm: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    waveform = pcm.to(dtype)[None] / 32768
    return kaldi_fbank(waveform, torch.tensor([len(pcm)]), dtype=dtype)[0]


@cases("name", "kaldi_fbank", _clips)
def test_float64(vectors: dict[str, torch.Tensor], name: str) -> None:
    ours = _fbank(vectors[f"pcm_{name}"], torch.float64)
    torch.testing.assert_close(ours, vectors[f"fbank_{name}"], atol=1e-4, rtol=0)


@cases("name", "kaldi_fbank", _clips)
def test_float32(vectors: dict[str, torch.Tensor], name: str) -> None:
    """Quiet bins of a clean tone are rounding of the FFT; such a clip has an output of its own (`f32in`)."""
    ours, tone = _fbank(vectors[f"pcm_{name}"], torch.float32), vectors.get(f"fbank_{name}_f32in")
    expected, atol = (vectors[f"fbank_{name}"], 2e-3) if tone is None else (tone, 1.0)
    torch.testing.assert_close(ours, expected, atol=atol, rtol=0)


def test_a_batch_gives_each_clip_its_own_values(parity_dir: Path, vectors: dict[str, torch.Tensor]) -> None:
    names = _clips(parity_dir / "kaldi_fbank")
    clips = [vectors[f"pcm_{name}"].double() / 32768 for name in names]
    lengths = torch.tensor([len(clip) for clip in clips])
    batch = kaldi_fbank(torch.nn.utils.rnn.pad_sequence(clips, batch_first=True), lengths, dtype=torch.float64)
    for row, name in enumerate(names):
        expected = vectors[f"fbank_{name}"]
        torch.testing.assert_close(batch[row, : len(expected)], expected, atol=1e-4, rtol=0)
        assert not batch[row, len(expected) :].any()
