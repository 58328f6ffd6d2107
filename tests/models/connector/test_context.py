"""Context layers: what a token sees, padding, freezing, and a connector without them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models import build_model
from models.connector.context import KERNEL, Context
from models.frames import Frames
from tests.clips import alone, mixed_clips
from tests.parts import connector_of

WIDTH, HEADS = 32, 4


def build(layers: int = 2, **options):
    torch.manual_seed(0)
    settings = {"hidden_size": WIDTH, "num_heads": HEADS, "window_s": 0.16, "stride_s": 0.08, **options}
    return connector_of(["whisper"], [24], [50.0], 48, context_layers=layers, **settings).eval()


def frames_of(lengths: list[int], seed: int = 0) -> list[Frames]:
    generator = torch.Generator().manual_seed(seed)
    return [Frames(torch.randn(len(lengths), max(lengths), 24, generator=generator), torch.tensor(lengths))]


@pytest.mark.parametrize("options", [{}, {"num_queries": 3}, {"window_s": None, "num_queries": 5}])
def test_padding_and_neighbours_change_nothing(options):
    connector = build(**options)
    (frames,) = frames_of([3, 150, 40, 1, 77])
    tokens, mask = connector([frames])
    assert not tokens[~mask].any()
    for row, length in enumerate(frames.lengths.tolist()):
        own, own_mask = connector([Frames(frames.frames[row : row + 1, :length], frames.lengths[row : row + 1])])
        assert own_mask.all() and mask[row].sum() == own.shape[1]
        torch.testing.assert_close(tokens[row, : own.shape[1]], own[0], atol=1e-5, rtol=0)


def test_gradients_do_not_depend_on_the_batch():
    connector = build(dropout=0.0).train()
    (frames,) = frames_of([3, 60, 20])
    tokens, mask = connector([frames])
    tokens[mask].square().sum().backward()
    together = {name: parameter.grad.clone() for name, parameter in connector.named_parameters()}
    connector.zero_grad()
    for row, length in enumerate(frames.lengths.tolist()):
        own, _ = connector([Frames(frames.frames[row : row + 1, :length], frames.lengths[row : row + 1])])
        own.square().sum().backward()
    assert any(name.startswith("context.layers.1.") for name in together)
    for name, parameter in connector.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        torch.testing.assert_close(together[name], parameter.grad, atol=1e-3, rtol=1e-3, msg=name)


def test_a_token_sees_the_whole_clip_in_its_order():
    torch.manual_seed(0)
    context = Context(1, WIDTH, HEADS, 0.1).eval()
    hidden = torch.randn(1, 40, WIDTH)
    mask = torch.ones(1, 40, dtype=torch.bool)
    changed = hidden.clone()
    changed[0, 39] += 1
    assert (context(hidden, mask)[0, 0] != context(changed, mask)[0, 0]).any()  # by attention
    swapped = hidden.clone()
    swapped[0, [10, 12]] = hidden[0, [12, 10]]
    near = (context(hidden, mask) - context(swapped, mask))[0].abs().amax(dim=-1)
    assert near[11] > 1e-4  # by convolution, order counts within its kernel …
    assert near[12 + KERNEL // 2 + 1 :].max() < 1e-5  # … and attention alone has none


def test_dropout_in_training_only():
    connector = build(dropout=0.5)
    streams = frames_of([60])
    assert torch.equal(connector(streams)[0], connector(streams)[0])
    connector.train()
    connector.qformer.eval()  # whose dropout is not meant
    connector.window_jitter = False
    assert not torch.equal(connector(streams)[0], connector(streams)[0])


def test_no_layers_are_the_connector_of_before():
    """The same names, the same random numbers in the same order, the same tokens to the last bit."""
    plain = build(0)
    assert plain.context is None and not [name for name in plain.state_dict() if "context" in name]
    with_layers = build(2)
    added = set(with_layers.state_dict()) - set(plain.state_dict())
    assert added and all(name.startswith("context.") for name in added)
    streams = frames_of([40, 9])
    tokens, mask = plain(streams)
    windows, frame_mask = plain._windows(plain.fuse(streams))
    expected = plain.to_llm(plain.qformer(windows[mask], frame_mask[mask])).flatten(0, 1)
    assert torch.equal(tokens[mask], expected)
    assert not tokens[~mask].any()


@pytest.fixture(scope="module")
def aligned_config(config):
    return replace(config, context_layers=2, second_per_window=0.16, second_stride=0.08)


def test_a_whole_model_gives_a_clip_the_same_tokens_alone(aligned_config):
    torch.manual_seed(2)
    model = build_model(aligned_config)
    waveforms, lengths = mixed_clips()
    with torch.no_grad():
        tokens, mask = model.encode_audio(waveforms, lengths)
        for row in range(len(lengths)):
            own, own_mask = model.encode_audio(*alone(waveforms, lengths, row))
            torch.testing.assert_close(tokens[row][mask[row]], own[0][own_mask[0]], atol=1e-5, rtol=1e-4)
    assert model.audio_tokens(int(lengths[-1])) == mask[-1].sum()


def test_the_q_former_is_frozen_with_them(aligned_config):
    model = build_model(replace(aligned_config, freeze_speech_QFormer=True)).train()
    context = model.connector.context
    assert not any(parameter.requires_grad for parameter in context.parameters())
    assert not context.training and model.connector.to_llm.weight.requires_grad
    free = build_model(aligned_config).train()
    assert all(parameter.requires_grad for parameter in free.connector.context.parameters())
    assert free.connector.context.training
