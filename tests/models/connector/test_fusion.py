"""Several encoders' frames at one rate."""

from __future__ import annotations

import torch

from models.connector.fusion import align_outputs
from models.frames import Frames


def test_outputs_are_aligned_in_time() -> None:
    fast = Frames(torch.ones(2, 5, 1), torch.tensor([5, 2]))
    slow = Frames(torch.tensor([[1.0, 2.0, 3.0], [4.0, 9.0, 9.0]])[..., None], torch.tensor([3, 1]))
    (first, second), lengths = align_outputs([fast, slow], [50.0, 25.0])
    assert lengths.tolist() == [6, 2]
    assert first[..., 0].tolist() == [[1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0]]
    assert second[..., 0].tolist() == [[1, 1, 2, 2, 3, 3], [4, 4, 0, 0, 0, 0]]


def test_odd_rates_keep_lengths_of_a_batch_and_alone_equal() -> None:
    counts = torch.arange(1, 40)
    slow = Frames(torch.arange(40.0).expand(39, 40)[..., None], counts)
    fast = Frames(torch.zeros(39, 1, 1), torch.ones(39, dtype=torch.long))
    (_, together), lengths = align_outputs([fast, slow], [50.0, 12.3])
    for row, count in enumerate(counts.tolist()):
        one = [Frames(s.frames[row : row + 1, : s.lengths[row]], s.lengths[[row]]) for s in (fast, slow)]
        (_, alone), length = align_outputs(one, [50.0, 12.3])
        assert torch.equal(together[row, : length[0]], alone[0])
        assert lengths[row] == length[0] == max(1, round(count * 50 / 12.3))
        assert alone[0, -1, 0] == count - 1
