"""transformers' encoders: as the library computes a clip alone, for every row of a batch, from folders as saved."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from models.encoders.huggingface import KINDS, ASTEncoder, HFEncoder
from models.encoders.long_clips import cut_points
from models.encoders.stack import EncoderStack
from tests import tiny

NAMES = list(tiny.HF_ENCODERS)
LONGEST = 32_000


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("hf")
    return {name: tiny.write_hf_encoder(folder / name.replace(" ", "_"), name) for name in NAMES}


def _clips(encoder: HFEncoder) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips of which the shortest is the shortest possible, garbage after each one's end."""
    lengths = torch.tensor([encoder.min_samples, 3_000, 5_441, 8_000, 12_345, LONGEST])
    return 0.1 * torch.randn(len(lengths), LONGEST, generator=torch.Generator().manual_seed(1)), lengths


def _library(folder: Path, waveform: torch.Tensor) -> torch.Tensor:
    """What the library's own feature extractor and network make of a clip alone, [N, D]."""
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    network = transformers.AutoModel.from_pretrained(folder).eval()
    inputs = extractor(waveform.numpy(), sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        return network(**inputs).last_hidden_state[0]


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_padding_is_neutral(folders: dict[str, Path], name: str) -> None:
    encoder = HFEncoder.from_pretrained(folders[name])
    waveforms, lengths = _clips(encoder)
    frames, counts = encoder(waveforms, lengths)
    assert frames.shape == (len(lengths), int(counts.max()), encoder.dim)
    for row, samples in enumerate(lengths.tolist()):
        alone, count = encoder(waveforms[row : row + 1, :samples], lengths[[row]])
        assert counts[row] == count[0] == alone.shape[1] == encoder.frame_count(samples)
        torch.testing.assert_close(frames[row, : counts[row]], alone[0], atol=1e-5, rtol=0)
        assert not frames[row, counts[row] :].any()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_clip_alone_is_as_the_library_has_it(folders: dict[str, Path], name: str) -> None:
    encoder = HFEncoder.from_pretrained(folders[name], window="full")
    waveforms, _ = _clips(encoder)
    for samples in (7_777, 16_240):  # an odd and an even number of fbank frames
        frames, counts = encoder(waveforms[:1, :samples], torch.tensor([samples]))
        expected = _library(folders[name], waveforms[0, :samples])
        if isinstance(encoder, ASTEncoder):  # two tokens of no patch, then the lowest band's time steps, and so on
            expected = expected[2:].unflatten(0, (encoder.bands, -1)).mean(dim=0)
            assert len(expected) == counts[0]
        # The library's means of Wav2Vec2-BERT's bins, taken in float32, are themselves 1e-5 off.
        tolerance = 5e-5 if name == "wav2vec2-bert" else 1e-5
        torch.testing.assert_close(frames[0], expected[: counts[0]], atol=tolerance, rtol=0)
        assert 0 <= len(expected) - counts[0] <= 1  # the library appends a masked frame here and there


@torch.no_grad()
def test_ast_at_a_clips_own_length_is_the_library_s_with_a_shorter_table(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    encoder = HFEncoder.from_pretrained(folders["ast"])
    samples = 17_500
    steps = encoder.frame_count(samples)
    length = encoder.patch + (steps - 1) * encoder.stride  # fbank frames that the steps' patches span
    for file in folders["ast"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for file in ("config.json", "preprocessor_config.json"):
        (tmp_path / file).write_text(json.dumps(json.loads((tmp_path / file).read_text()) | {"max_length": length}))
    weights = load_file(tmp_path / "model.safetensors")
    table = weights["embeddings.position_embeddings"]
    patches = table[:, 2:].unflatten(1, (encoder.bands, -1))[:, :, :steps].flatten(1, 2)
    weights["embeddings.position_embeddings"] = torch.cat([table[:, :2], patches], dim=1)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    waveforms, _ = _clips(encoder)
    frames, _ = encoder(waveforms[:1, :samples], torch.tensor([samples]))
    expected = _library(tmp_path, waveforms[0, :samples])[2:].unflatten(0, (encoder.bands, steps)).mean(dim=0)
    torch.testing.assert_close(frames[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_frame_counts_are_exact(folders: dict[str, Path], name: str) -> None:
    encoder = HFEncoder.from_pretrained(folders[name])
    first = encoder.min_samples
    lengths = torch.tensor([*range(first, first + 700, 37), *range(9_000, 10_900, 97)])
    waveforms = 0.1 * torch.randn(len(lengths), int(lengths.max()))
    assert encoder(waveforms, lengths)[1].tolist() == [encoder.frame_count(n) for n in lengths.tolist()]
    assert encoder.frame_count(first) >= 1
    if name != "parakeet":  # there a variance needs two spectrogram frames, where one would give a frame
        assert encoder.frame_count(first - 1) == 0
    seconds = encoder.max_samples / 16_000
    assert encoder.frame_count(encoder.max_samples) == pytest.approx(seconds * encoder.frame_rate_hz, abs=1)


@pytest.mark.parametrize("name", NAMES)
def test_training_drops_no_layer_and_reaches_every_weight(folders: dict[str, Path], name: str) -> None:
    encoder = HFEncoder.from_pretrained(folders[name])
    waveforms, lengths = _clips(encoder)
    waveforms, lengths = waveforms[2:4], lengths[2:4]
    expected = encoder(waveforms, lengths)[0]
    buffers = {key: value.clone() for key, value in encoder.named_buffers()}
    frames = encoder.train()(waveforms, lengths)[0]
    torch.testing.assert_close(frames, expected)
    assert all(torch.equal(value, buffers[key]) for key, value in encoder.named_buffers())
    (frames * torch.randn(frames.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    assert not [key for key, value in encoder.named_parameters() if value.grad is None or not value.grad.any()]


@pytest.mark.parametrize("name", NAMES)
def test_clips_out_of_range_are_errors(folders: dict[str, Path], name: str) -> None:
    encoder = HFEncoder.from_pretrained(folders[name])
    for samples in (encoder.min_samples - 1, encoder.max_samples + 1):
        with pytest.raises(ValueError, match=f"clip 0 of the batch has {samples} samples; expected"):
            encoder(torch.zeros(1, samples), torch.tensor([samples]))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_silence_and_half_precision_give_numbers(folders: dict[str, Path], name: str) -> None:
    encoder = HFEncoder.from_pretrained(folders[name], dtype=torch.bfloat16)
    frames, _ = encoder(torch.zeros(2, 8_000), torch.tensor([8_000, 6_000]))
    assert frames.dtype == torch.bfloat16
    assert frames.isfinite().all()


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("wavlm base", "WavLMForCTC"),
        ("hubert large", "HubertForCTC"),
        ("wav2vec2", "Wav2Vec2ForCTC"),
        ("wav2vec2-bert", "Wav2Vec2BertForCTC"),
        ("ast", "ASTForAudioClassification"),
        ("parakeet", "ParakeetForCTC"),
    ],
)
@torch.no_grad()
def test_models_with_heads_are_read_without(folders: dict[str, Path], tmp_path: Path, name: str, head: str) -> None:
    """Recognisers may also have layers behind the encoder that shorten its output."""
    config, extractor = tiny.hf_encoder_config(name)
    if name in ("wav2vec2", "wav2vec2-bert"):
        config.add_adapter = True
    if name == "parakeet":
        config = transformers.ParakeetCTCConfig(vocab_size=17, pad_token_id=16, encoder_config=config)
    else:
        config.vocab_size = config.num_labels = 5
    model = getattr(transformers, head)(config)
    model.save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    encoder = HFEncoder.from_pretrained(tmp_path)
    inside = getattr(model, model.base_model_prefix) if name != "parakeet" else model.encoder
    weights = inside.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in encoder.network.state_dict().items())
    waveforms, lengths = _clips(encoder)
    assert encoder(waveforms, lengths)[0].shape[1] == encoder.frame_count(LONGEST)


def test_fingerprints_know_weights_and_settings(folders: dict[str, Path], tmp_path: Path) -> None:
    encoder = HFEncoder.from_pretrained(folders["wavlm base"])
    assert encoder.fingerprint == HFEncoder.from_pretrained(folders["wavlm base"]).fingerprint
    assert encoder.fingerprint == copy.deepcopy(encoder).fingerprint
    for file in folders["wavlm base"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    settings["do_normalize"] = not settings["do_normalize"]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    assert HFEncoder.from_pretrained(tmp_path).fingerprint != encoder.fingerprint
    clip, full = (HFEncoder.from_pretrained(folders["ast"], window=window) for window in ("clip", "full"))
    assert clip.fingerprint != full.fingerprint


def test_a_folder_without_extractor_settings_takes_the_defaults_and_says_so(
    folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((folders["wavlm large"] / file).read_bytes())
    assert HFEncoder.from_pretrained(tmp_path).extractor.do_normalize
    assert "has no preprocessor_config.json: using Wav2Vec2FeatureExtractor's defaults" in caplog.text


def test_what_cannot_be_loaded_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    def refused(match: str, **options: object) -> None:
        with pytest.raises(ValueError, match=match):
            HFEncoder.from_pretrained(tmp_path, **options)

    with pytest.raises(ValueError, match="cannot load 'no/such folder'"):
        HFEncoder.from_pretrained("no/such folder")
    refused("cannot load .* of a model that transformers knows")
    for file in folders["hubert base"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    refused("is of type 'hubert'; expected wavlm", kinds=("wavlm",))

    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layers.1.layer_norm.weight"]
    weights["encoder.layers.0.layer_norm.weight"] = torch.zeros(3)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    refused(
        r"2 weights of the encoder: encoder\.layers\.1\.layer_norm\.weight is missing, .*layers\.0\.layer_norm\.weight"
    )
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 100)
    refused("cannot load the weights of")
    (tmp_path / "model.safetensors").unlink()
    refused("cannot load the weights of")

    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings | {"sampling_rate": 8_000}))
    (tmp_path / "model.safetensors").write_bytes((folders["hubert base"] / "model.safetensors").read_bytes())
    refused("its feature extractor has sampling_rate = 8000; expected 16000")


@torch.no_grad()
def test_parts_of_a_long_clip_keep_in_time(folders: dict[str, Path]) -> None:
    """AST's steps are 100 ms: parts that began between two of them would each lose some."""
    stack = EncoderStack({name: HFEncoder.from_pretrained(folders[name]) for name in ("wavlm base", "ast")})
    samples = 25 * 16_000 + 1_234
    streams = stack(0.1 * torch.randn(1, samples), torch.tensor([samples]))
    assert [int(stream.lengths[0]) for stream in streams] == [1253, 250]
    parts = cut_points(samples, stack.encoders["ast"].max_samples, stack.encoders["ast"].cut_grain)
    assert len(parts) == 4 and all(part % 1_600 == 0 for part in parts[:-1])


def test_names_in_files_of_older_versions_are_read(folders: dict[str, Path], tmp_path: Path) -> None:
    """As the hub has them: halves of a weight norm in a .bin, and AST's layers before they were renamed."""
    older = {
        "wavlm large": [
            ("parametrizations.weight.original0", "weight_g"),
            (".parametrizations.weight.original1", ".weight_v"),
        ],
        "ast": [
            ("layers.", "encoder.layer."),
            (".attention.o_proj", ".attention.output.dense"),
            (".mlp.fc1", ".intermediate.dense"),
            (".mlp.fc2", ".output.dense"),
            *(
                (f".attention.{short}_proj", f".attention.attention.{name}")
                for short, name in zip("qkv", ("query", "key", "value"), strict=True)
            ),
        ],
    }
    for name, renames in older.items():
        folder = tmp_path / name
        folder.mkdir()
        for file in folders[name].glob("*.json"):
            (folder / file.name).write_bytes(file.read_bytes())
        weights = {}
        for key, value in load_file(folders[name] / "model.safetensors").items():
            for new, old in renames:
                key = key.replace(new, old)
            weights[f"audio_spectrogram_transformer.{key}" if name == "ast" else key] = value
        torch.save(weights, folder / "pytorch_model.bin")
        encoder, original = HFEncoder.from_pretrained(folder), HFEncoder.from_pretrained(folders[name])
        waveforms, lengths = _clips(encoder)
        assert torch.equal(encoder(waveforms, lengths)[0], original(waveforms, lengths)[0])


@pytest.mark.parametrize("name", NAMES)
def test_unfrozen_encoders_train_under_autocast(folders: dict[str, Path], name: str) -> None:
    encoder = HFEncoder.from_pretrained(folders[name]).train()
    waveforms, lengths = _clips(encoder)
    with torch.autocast("cpu", torch.bfloat16):
        frames, _ = encoder(waveforms[2:4], lengths[2:4])
    frames.float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())


def test_an_unknown_kind_is_an_error_that_lists_the_known(tmp_path: Path) -> None:
    tiny.write_whisper(tmp_path)
    with pytest.raises(ValueError, match="is of type 'whisper', which is no known encoder; known are wavlm, hubert"):
        HFEncoder.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "wavelet"}))
    with pytest.raises(ValueError, match=r"cannot load .*wavelet"):
        HFEncoder.from_pretrained(tmp_path)
    assert set(KINDS) >= {"wavlm", "hubert", "wav2vec2", "wav2vec2-bert", "audio-spectrogram-transformer"}


def test_an_encoder_can_be_planned_without_its_weights() -> None:
    with torch.device("meta"):
        encoder = HFEncoder.from_config(transformers.ASTConfig())
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 86_187_264
    assert encoder.frame_count(160_000) == 100
