"""whisper.cpp's files: every type of weights, the vocabulary, and what is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import WhisperProcessor

from conversion.formats import convert
from support.command_line import UserError
from tests.pieces import byte_pieces
from tests.whisper_sources import GGML_TYPES, state_of, tiny_whisper, write_ggml


def silent(_: str) -> None:
    """In place of print."""


@pytest.mark.parametrize("types", GGML_TYPES)
def test_every_type_gives_the_values_that_its_bytes_say(types: str, tmp_path: Path) -> None:
    state = state_of(tiny_whisper(half=types != "float32"))
    source, kept = write_ggml(tmp_path / "x", state, types=types, ftype=2007)
    said: list[str] = []
    weights = load_file(convert(source, tmp_path / "out", report=said.append) / "model.safetensors")
    assert weights.keys() == kept.keys() == state.keys()
    for name, tensor in weights.items():
        assert tensor.dtype == (torch.float16 if types == "float16" else torch.float32)
        assert torch.equal(tensor.float(), kept[name].float()), name
    assert said[0].endswith(f", {types}")


@pytest.mark.parametrize(("vocabulary", "count"), [(51_864, 50_256), (51_865, 50_257), (51_866, 50_257)])
def test_the_tokenizer_is_made_of_the_pieces(vocabulary: int, count: int, tmp_path: Path) -> None:
    pieces = byte_pieces(count, empty_last=vocabulary > 51_864)
    source, _ = write_ggml(tmp_path / "x", state_of(tiny_whisper(vocabulary)), pieces=pieces)
    folder = convert(source, tmp_path / "out", report=silent)
    tokenizer = WhisperProcessor.from_pretrained(folder).tokenizer
    end = count
    names = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|notimestamps|>", "<|0.00|>", "<|30.00|>"]
    ids = [end, end + 1, end + 2, vocabulary - 1502, vocabulary - 1501, vocabulary - 1]
    assert tokenizer.convert_tokens_to_ids(names) == ids
    text = " the cat's 12 naïve transcription"
    made = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(made) == text and b"".join(pieces[number] for number in made) == text.encode()
    assert tokenizer.decode([end + 1, vocabulary - 1502, *made, end], skip_special_tokens=True) == text
    settings = json.loads((folder / "generation_config.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    for found in (settings, config):
        assert (found["decoder_start_token_id"], found["eos_token_id"]) == (end + 1, end)
    assert settings["no_timestamps_token_id"] == vocabulary - 1502
    assert settings["is_multilingual"] == (vocabulary > 51_864) == ("lang_to_id" in settings)
    assert settings.get("lang_to_id", {}).get("<|yue|>") == (end + 101 if vocabulary == 51_866 else None)
    languages = vocabulary - 51_765 - (vocabulary > 51_864)
    assert settings["suppress_tokens"][-6:] == [end + 1, *range(end + 2 + languages, end + 7 + languages)]


def test_the_end_token_of_files_made_from_transformers_is_no_piece(tmp_path: Path) -> None:
    pieces = [*byte_pieces(50_256), b"<|endoftext|>"]
    source, _ = write_ggml(tmp_path / "x", state_of(tiny_whisper(51_864)), pieces=pieces)
    assert (convert(source, tmp_path / "out", report=silent) / "tokenizer.json").is_file()


def test_another_vocabulary_is_said_and_the_weights_are_written(tmp_path: Path) -> None:
    said: list[str] = []
    source, _ = write_ggml(tmp_path / "x", state_of(tiny_whisper(51_864)), pieces=[b"a"] * 50_256)
    folder = convert(source, tmp_path / "out", report=said.append)
    assert not (folder / "tokenizer.json").exists() and any("no tokenizer written" in line for line in said)


def test_what_the_file_states_must_be_so(tmp_path: Path) -> None:
    source, _ = write_ggml(tmp_path / "x", state_of(tiny_whisper()))
    whole = source.read_bytes()

    def problem(at: int, value: int) -> str:
        source.write_bytes(whole[:at] + struct.pack("<i", value) + whole[at + 4 :])
        with pytest.raises(UserError) as raised:
            convert(source, tmp_path / "out", report=silent)
        return str(raised.value)

    assert "states n_vocab = 97, but its tensors have 96" in problem(4, 97)
    assert "states n_audio_layer = 1000000000, but its tensors have 2" in problem(20, 10**9)
    assert "states n_text_state = -1; expected" in problem(28, -1)
    assert "5 heads of the encoder do not divide the width 32" in problem(16, 5)
    assert "mel filters of 80 x 201; expected 128 rows" in problem(40, 128)


def test_a_type_that_is_not_read_is_named(tmp_path: Path) -> None:
    source, _ = write_ggml(tmp_path / "x", state_of(tiny_whisper()))
    header = struct.pack("<iii", 2, len("decoder.token_embedding.weight"), 1)
    whole = source.read_bytes()
    assert whole.count(header) == 1
    source.write_bytes(whole.replace(header, header[:8] + struct.pack("<i", 26)))
    with pytest.raises(
        UserError, match=r"decoder\.token_embedding\.weight is of type i32; expected float32, float16, or"
    ):
        convert(source, tmp_path / "out", report=silent)


def test_a_tensor_stored_twice_is_refused(tmp_path: Path) -> None:
    source, _ = write_ggml(tmp_path / "x", state_of(tiny_whisper()))
    name = b"encoder.ln_post.bias"
    again = struct.pack("<iii", 1, len(name), 0) + struct.pack("<i", 32) + name + bytes(128)
    source.write_bytes(source.read_bytes() + again)
    with pytest.raises(UserError, match=r"holds encoder\.ln_post\.bias twice"):
        convert(source, tmp_path / "out", report=silent)


def test_other_mel_filters_are_said(tmp_path: Path) -> None:
    said: list[str] = []
    source, _ = write_ggml(tmp_path / "x", state_of(tiny_whisper()))
    whole = source.read_bytes()
    source.write_bytes(whole[:56] + struct.pack("<f", 3.0) + whole[60:])
    convert(source, tmp_path / "out", report=said.append)
    assert any("other mel filters" in line for line in said)
