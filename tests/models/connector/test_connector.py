"""The windowed connector: partial windows, padding, several queries, fusion."""

import pytest
import torch

from models.connector.qformer import MultiHeadAttention, QFormer
from models.frames import Frames
from tests.parts import connector_of, qformer_config

DIMS = [24, 16]


def build(**options):
    torch.manual_seed(0)
    settings = {"hidden_size": 32, "num_heads": 4, "intermediate_size": 64, **options}
    return connector_of(["whisper", "beats"], DIMS, [50.0, 50.0], 48, **settings).eval()


def streams_of(lengths, seed=0):
    """Random frames for clips of (speech, audio) lengths, garbage after each clip's end."""
    generator = torch.Generator().manual_seed(seed)
    return [
        Frames(
            torch.randn(len(lengths), max(pair[i] for pair in lengths), dim, generator=generator),
            torch.tensor([pair[i] for pair in lengths]),
        )
        for i, dim in enumerate(DIMS)
    ]


def row_alone(streams, row):
    return [Frames(s.frames[row : row + 1, : s.lengths[row]], s.lengths[row : row + 1]) for s in streams]


@pytest.mark.parametrize(
    "options",
    [{}, {"num_queries": 3}, {"stride_s": 0.1}, {"window_s": None}, {"fusion": "project"}],
    ids=["default", "queries", "overlap", "one window", "project"],
)
def test_padding_is_neutral(options):
    connector = build(**options)
    streams = streams_of([(3, 8), (40, 40), (150, 144), (17, 16), (34, 40), (18, 0), (120, 112), (1, 0)])
    tokens, mask = connector(streams)
    for row in range(len(mask)):
        alone, alone_mask = connector(row_alone(streams, row))
        assert alone_mask.all()
        assert mask[row].sum() == alone.shape[1] and mask[row, : alone.shape[1]].all()
        torch.testing.assert_close(tokens[row, : alone.shape[1]], alone[0], atol=1e-5, rtol=0)


def test_partial_window_is_heard():
    """A digit of half a second is 25 frames: one full window and eight frames that must count."""
    connector = build()
    streams = streams_of([(25, 24)])
    tokens, _ = connector(streams)
    assert tokens.shape[1] == 2 == connector.token_count(25)
    streams[0].frames[0, 24] *= -1.0
    changed, _ = connector(streams)
    assert torch.equal(changed[:, 0], tokens[:, 0])
    assert not torch.allclose(changed[:, 1], tokens[:, 1])


def test_full_windows_only_when_asked():
    connector = build(keep_partial_window=False)
    _, mask = connector(streams_of([(40, 40), (20, 16)]))
    assert mask.sum(dim=1).tolist() == [2, 1]
    with pytest.raises(ValueError, match="shorter than one window"):
        connector(streams_of([(10, 8)]))


def test_gradients_reach_every_parameter():
    connector = build(fusion="project").train()
    tokens, mask = connector(streams_of([(40, 40), (20, 16)]))
    tokens[mask].square().sum().backward()
    assert not [name for name, parameter in connector.named_parameters() if parameter.grad is None]


def test_a_stride_longer_than_a_window_is_refused():
    with pytest.raises(ValueError, match="second_stride"):
        build(stride_s=1.0)


def test_a_frozen_qformer_stays_in_eval():
    connector = build(dropout=0.5).train()
    assert connector.qformer.training
    connector.qformer.requires_grad_(False)
    connector.train()
    assert connector.training and not any(module.training for module in connector.qformer.modules())


@pytest.mark.parametrize(("queries", "frames", "masked"), [(1, 17, True), (1, 17, False), (3, 9, True)])
def test_frames_need_not_be_projected(monkeypatch, queries, frames, masked):
    """Two orders of the same sums: outputs and gradients agree."""
    torch.manual_seed(0)
    config = qformer_config(
        encoder_width=24,
        hidden_size=16,
        num_heads=4,
        num_layers=2,
        intermediate_size=32,
        num_queries=queries,
        dropout=0,
    )
    qformer = QFormer(config)
    for parameter in qformer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    memory, weights = torch.randn(5, frames, 24, requires_grad=True), torch.randn(5, queries, 16)
    mask = torch.arange(frames) < torch.tensor([frames, 1, 4, 5, frames])[:, None] if masked else None
    found = {}
    for unprojected in (False, True):
        monkeypatch.setattr(MultiHeadAttention, "_is_cheaper_unprojected", lambda *_, chosen=unprojected: chosen)
        outputs = qformer(memory, mask)
        inputs = [memory, *qformer.parameters()]
        found[unprojected] = [outputs, *torch.autograd.grad((outputs * weights).sum(), inputs)]
    for expected, value in zip(*found.values(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


def test_a_window_of_many_frames_and_few_queries_is_read_unprojected():
    attention = MultiHeadAttention(qformer_config(encoder_width=2048), memory_width=2048)
    assert attention._is_cheaper_unprojected(torch.empty(1, 1, 768), torch.empty(1, 17, 2048))
    assert not attention._is_cheaper_unprojected(torch.empty(1, 32, 768), torch.empty(1, 17, 2048))
    assert not attention._is_cheaper_unprojected(torch.empty(1, 1, 768), torch.empty(1, 1, 768))


def test_jitter_moves_windows_in_training_alone_and_loses_no_frame(monkeypatch):
    torch.manual_seed(0)
    options = {"hidden_size": 16, "num_heads": 2, "num_layers": 1, "window_s": 0.1, "stride_s": 0.1, "dropout": 0.0}
    plain, moving = (connector_of(["a"], [8], [50.0], 12, window_jitter=jitter, **options) for jitter in (False, True))
    moving.load_state_dict(plain.state_dict())
    streams = [Frames(torch.randn(2, 23, 8, requires_grad=True), torch.tensor([23, 4]))]
    torch.testing.assert_close(moving.eval()(streams)[0], plain.eval()(streams)[0], rtol=0, atol=0)
    drawn = []
    for early in range(5):  # the stride is five frames
        monkeypatch.setattr(torch, "randint", lambda *_, chosen=early: torch.tensor(chosen))
        tokens, mask = moving.train()(streams)
        assert mask.sum(1).tolist() == [-(-(23 + early) // 5), -(-(4 + early) // 5)]
        (gradient,) = torch.autograd.grad(tokens.square().sum(), streams[0].frames)
        assert (gradient[0].abs().sum(-1) > 0).all(), early
        assert (gradient[1, :4].abs().sum(-1) > 0).all(), early
        assert not gradient[1, 4:].any(), early
        drawn.append(tokens[0, 0])
    assert all((drawn[0] - other).abs().max() > 1e-6 for other in drawn[1:])
