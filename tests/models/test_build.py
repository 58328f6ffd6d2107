"""Models from a configuration and from folders: what a checkpoint sets, and encoders added to one."""

from dataclasses import asdict, replace

import pytest
import torch

from configs.schema import load_config
from models import build_model, load_model
from models.checkpoint.adapter_folder import load_adapter, save_adapter
from models.checkpoint.adapter_tensors import CheckpointError
from models.frames import Frames
from tests.clips import PROMPTS, TEXTS, alone, mixed_clips


def test_a_checkpoint_generates_as_it_says(model, shared_tiny_project, tmp_path):
    options = {"max_new_tokens": 5, "min_length": 5, "num_beams": 2, "repetition_penalty": 1.3}
    overrides = [f"generate.{name}={value}" for name, value in options.items()]
    save_adapter(model, tmp_path / "adapter", config=load_config(shared_tiny_project.config, overrides), metrics={})
    loaded = load_model(tmp_path / "adapter", "cpu")
    assert asdict(loaded.generate_defaults).items() >= options.items()
    waveforms, lengths = mixed_clips()
    (clip, length), prompts = alone(waveforms, lengths, 4), [PROMPTS[4]]
    (found,) = loaded.generate(clip, length, prompts, return_details=True)
    (expected,) = model.generate(clip, length, prompts, return_details=True, **options)
    assert (found.tokens, found.text) == (expected.tokens, expected.text) and len(found.tokens) == 5
    (other,) = loaded.generate(clip, length, prompts, return_details=True, max_new_tokens=3, min_length=0)
    assert len(other.tokens) <= 3
    assert "".join(loaded.stream(clip[0], PROMPTS[4]))  # beams of the checkpoint are not for streaming


def test_a_saved_adapter_loads_again(model, shared_tiny_project, tmp_path):
    save_adapter(model, tmp_path / "adapter", config=load_config(shared_tiny_project.config), metrics={})
    again = load_model(tmp_path / "adapter", device="cpu")
    waveforms, lengths = mixed_clips()
    heard = [m.generate(waveforms, lengths, PROMPTS, num_beams=1, max_new_tokens=6) for m in (model, again)]
    losses = [m(waveforms, lengths, PROMPTS, TEXTS).loss_sum for m in (model, again)]
    assert heard[0] == heard[1]
    assert torch.equal(losses[0], losses[1])


@pytest.mark.parametrize("kept", ["whisper", "beats"])
def test_an_added_encoder_is_not_heard_until_trained(config, tmp_path, caplog, kept):
    """Whether the new encoder comes before or after those that the adapter was trained with."""
    paths = {name: None for name in ("whisper_path", "beats_path") if not name.startswith(kept)}
    torch.manual_seed(5)
    before = build_model(replace(config, **paths))
    folder = save_adapter(before, tmp_path / "adapter")
    both = build_model(config)
    with pytest.raises(CheckpointError, match=r"missing.*connector\.norms"):  # unless it is asked for
        load_adapter(both, folder)
    caplog.clear()
    after = build_model(replace(config, ckpt=str(folder)))
    new = "beats" if kept == "whisper" else "whisper"
    assert f"{new}: new to this adapter" in caplog.text
    assert torch.equal(after.connector.norms[new].weight, torch.ones_like(after.connector.norms[new].weight))
    waveforms, lengths = mixed_clips()
    with torch.no_grad():
        streams = after.encode_frames(waveforms, lengths)
        old = streams[list(after.encoders.encoders).index(kept)]
        counts = torch.stack([stream.lengths for stream in streams]).amin(dim=0)
        frames = [Frames(stream.frames[:, : counts.max()], counts) for stream in streams]  # of equal length
        alone = Frames(old.frames[:, : counts.max()], counts)
        (tokens, mask), (expected, _) = after.connector(frames), before.connector([alone])
    torch.testing.assert_close(tokens[mask], expected[mask], atol=1e-5, rtol=0)
    after.train()(waveforms, lengths, PROMPTS, TEXTS).loss.backward()
    key = after.connector.qformer.layers[0].cross_attention.key.weight
    zeros = key == 0
    assert zeros.any() and (key.grad[zeros] != 0).any()


def test_an_encoder_is_added_neither_to_another_fusion_nor_in_exchange(config, tmp_path):
    before = build_model(replace(config, beats_path=None, fusion="project"))
    folder = save_adapter(before, tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=r"unexpected.*connector\.projections\.whisper"):
        build_model(replace(config, ckpt=str(folder)))
    other = save_adapter(build_model(replace(config, beats_path=None)), tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"missing.*connector\.projections\.whisper"):
        build_model(replace(config, fusion="project", ckpt=str(other)))
    with pytest.raises(CheckpointError, match=r"unexpected.*connector\.norms\.whisper"):  # exchanged, not added
        build_model(replace(config, whisper_path=None, ckpt=str(other)))


def test_a_runs_folder_stands_for_its_best_checkpoint(config, model, tmp_path, shared_tiny_project):
    run = tmp_path / "run"
    save_adapter(model, run / "checkpoint_000002", config=load_config(shared_tiny_project.config))
    (run / "last").symlink_to("checkpoint_000002")
    expected = dict(model.named_parameters())
    for found in (build_model(replace(config, ckpt=str(run))), load_model(run, "cpu")):
        assert all(torch.equal(p, expected[name]) for name, p in found.named_parameters())
