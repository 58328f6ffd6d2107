"""NIST SPHERE files: cut ones are refused, and all of the sound of others is read."""

from __future__ import annotations

import pytest

from data.audio import AudioError, load_waveform
from tests.encoded import TONE, encoded


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "ULAW"])
def test_a_cut_file_is_refused(subtype: str) -> None:
    whole = encoded(format="NIST", subtype=subtype)
    assert len(load_waveform(whole)) == len(TONE)
    for kept in (len(whole) - 100, len(whole) // 2, 1030):
        with pytest.raises(AudioError, match="truncated: the header promises"):
            load_waveform(whole[:kept])


@pytest.mark.parametrize("count", ["2000", "0   ", "1   "])
def test_a_count_of_fewer_samples(count: str) -> None:
    whole = encoded(format="NIST")
    changed = whole.replace(b"sample_count -i 8000", f"sample_count -i {count}".encode())
    assert len(changed) == len(whole) and len(load_waveform(changed)) == len(TONE)
