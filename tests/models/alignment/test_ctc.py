"""The CTC head: its loss against a sum over all paths, its best path, and what must change nothing."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from models.alignment.ctc import BLANK, Alignment, fits

WIDTH, PIECES = 6, 4


def head(seed: int = 0, pieces: int = PIECES) -> Alignment:
    torch.manual_seed(seed)
    alignment = Alignment(torch.arange(10, 10 + pieces), torch.randn(pieces, WIDTH) * 0.3 + 2)
    with torch.no_grad():
        alignment.blank.add_(0.1 * torch.randn(WIDTH))
        alignment.scale.fill_(1.7)
    return alignment


def tokens_of(counts: list[int], seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Audio tokens with garbage after each clip's end, and their mask."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(len(counts), max(counts), WIDTH, generator=generator) * 0.5 + 2
    return tokens, torch.arange(max(counts)) < torch.tensor(counts)[:, None]


def collapsed(path) -> list[int]:
    return [label - 1 for label, _ in itertools.groupby(path) if label != BLANK]


def summed_over_paths(alignment: Alignment, tokens: torch.Tensor, spelling: list[int]) -> float:
    """Minus the log of the probability of all paths of one clip `[A, H]` that give the spelling."""
    probabilities = alignment.logits(tokens).softmax(dim=-1).tolist()
    total = 0.0
    for path in itertools.product(range(1 + PIECES), repeat=len(tokens)):
        if collapsed(path) == spelling:
            total += math.prod(row[label] for row, label in zip(probabilities, path, strict=True))
    return -math.log(total) if total else math.inf


SPELLINGS = [[0], [1, 1], [3, 0, 2], [], [2, 2, 2]]
COUNTS = [1, 4, 5, 3, 5]


def test_the_loss_is_the_sum_over_all_paths():
    alignment = head()
    tokens, mask = tokens_of(COUNTS)
    expected = [
        summed_over_paths(alignment, tokens[row, :count], spelling)
        for row, (count, spelling) in enumerate(zip(COUNTS, SPELLINGS, strict=True))
    ]
    spellings = [torch.tensor(spelling, dtype=torch.long) for spelling in SPELLINGS]
    assert alignment.loss(tokens, mask, spellings).item() == pytest.approx(sum(expected), rel=1e-5)
    for row, count in enumerate(COUNTS):
        alone = alignment.loss(tokens[row : row + 1, :count], mask[row : row + 1, :count], [spellings[row]])
        assert alone.item() == pytest.approx(expected[row], rel=1e-5)


def test_padding_gets_no_gradient_and_changes_nothing():
    alignment = head()
    spellings = [torch.tensor(spelling, dtype=torch.long) for spelling in SPELLINGS]
    gradients, losses = [], []
    for garbage in (0.0, 1e3):
        tokens, mask = tokens_of(COUNTS)
        tokens[~mask] = garbage
        tokens.requires_grad_(True)
        loss = alignment.loss(tokens, mask, spellings)
        loss.backward()
        losses.append(loss.item())
        gradients.append(tokens.grad)
        assert torch.isfinite(tokens.grad).all() and not tokens.grad[~mask].any() and tokens.grad[mask].any()
    assert losses[0] == losses[1]
    torch.testing.assert_close(*gradients)
    assert torch.isfinite(alignment.blank.grad).all() and alignment.blank.grad.any()
    assert torch.isfinite(alignment.scale.grad) and alignment.scale.grad != 0


@pytest.mark.parametrize(("spelling", "tokens", "possible"), [
    ([0, 1], 2, True), ([0, 1, 2], 2, False), ([1, 1], 2, False), ([1, 1], 3, True), ([], 1, True),
    ([0, 0, 0], 4, False),
])  # fmt: skip
def test_a_clip_without_a_path_counts_as_nothing(spelling, tokens, possible):
    assert fits(spelling, tokens) == possible
    alignment = head()
    audio, mask = tokens_of([tokens])
    audio.requires_grad_(True)
    loss = alignment.loss(audio, mask, [torch.tensor(spelling, dtype=torch.long)])
    loss.backward()
    assert math.isfinite(summed_over_paths(alignment, audio[0].detach(), spelling)) == possible
    assert (loss.item() > 0) == possible
    assert torch.isfinite(audio.grad).all() and audio.grad.any() == possible


def test_an_impossible_clip_does_not_spoil_its_batch():
    alignment = head()
    tokens, mask = tokens_of([4, 2])
    both = alignment.loss(tokens, mask, [torch.tensor([0, 1]), torch.tensor([1, 2, 3])])
    alone = alignment.loss(tokens[:1], mask[:1], [torch.tensor([0, 1])])
    assert both.item() == pytest.approx(alone.item(), rel=1e-6)


def test_the_nearest_embedding_is_the_most_likely_piece():
    alignment = head()
    logits = alignment.logits(alignment.table)
    assert logits.argmax(dim=-1).tolist() == [1, 2, 3, 4]
    assert alignment.logits(alignment.blank).argmax() == BLANK
    tokens, _ = tokens_of([7])
    points = torch.cat([alignment.blank[None], alignment.table])
    squared = torch.cdist(tokens[0], points).square() * (alignment.scale / alignment.variance)
    expected = (-squared).log_softmax(dim=-1)
    torch.testing.assert_close(alignment.logits(tokens[0]).log_softmax(dim=-1), expected, atol=1e-4, rtol=1e-4)


def test_the_best_path_has_no_blanks_or_repeats_and_ends_with_its_clip():
    alignment = head()
    points = torch.cat([alignment.blank[None], alignment.table]).detach()
    tokens = torch.stack([points[[1, 1, 0, 1, 3, 3]], points[[0, 2, 0, 4, 4, 4]], points[[0, 0, 0, 0, 0, 1]]])
    mask = torch.tensor([[True] * 6, [True, True, True, False, False, False], [True] * 5 + [False]])
    assert alignment.best_path(tokens, mask) == [[0, 0, 2], [1], []]


@pytest.mark.parametrize(("factor", "shift"), [(100.0, 0.0), (0.01, 0.0), (1.0, 30.0), (50.0, -7.0)])
def test_the_embeddings_scale_and_place_change_nothing(factor, shift):
    """Gemma's embeddings are fifty times as long as Llama's, and the same settings suit both."""
    alignment = head()
    other = Alignment(alignment.ids, alignment.table * factor + shift)
    with torch.no_grad():
        other.blank.copy_(alignment.blank * factor + shift)
        other.scale.copy_(alignment.scale)
    tokens, _ = tokens_of([5])
    found = other.logits(tokens * factor + shift).log_softmax(dim=-1)
    torch.testing.assert_close(found, alignment.logits(tokens).log_softmax(dim=-1), atol=2e-3, rtol=1e-3)


def test_half_precision_tokens_are_compared_in_float32():
    """Under autocast too: squared distances are a small difference of large numbers."""
    alignment = head()
    tokens, _ = tokens_of([5])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = alignment.logits(tokens)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, alignment.logits(tokens), atol=1e-6, rtol=0)


def test_its_state_is_ids_blank_and_scale():
    """The pieces' embeddings are in the language model's files."""
    assert set(head().state_dict()) == {"ids", "blank", "scale"}
    alignment = Alignment(torch.arange(2), torch.randn(2, WIDTH).half())
    assert alignment.table.dtype == alignment.blank.dtype == torch.float32
    assert not alignment.table.requires_grad


def test_the_distance_is_that_to_the_likely_class_and_leaves_padding_out():
    table = torch.randn(6, 8, generator=torch.Generator().manual_seed(3))
    alignment = Alignment(torch.arange(6), table)
    with torch.no_grad():
        alignment.blank.add_(5.0)
        alignment.scale.fill_(1e4)  # no doubt about the class
    tokens = torch.stack([table[2] + 0.1, table[4] - 0.2, torch.full((8,), 99.0)])[None].requires_grad_()
    mask = torch.tensor([[True, True, False]])
    distance = alignment.distance(tokens, mask)
    expected = (8 * 0.1**2 + 8 * 0.2**2) / alignment.variance
    torch.testing.assert_close(distance, expected, rtol=1e-3, atol=1e-5)
    distance.backward()
    assert tokens.grad[0, 0].mean() > 0 > tokens.grad[0, 1].mean()  # back to the pieces
    assert not tokens.grad[0, 2].any()
