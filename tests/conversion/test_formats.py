"""Every format of another program: recognised by content, converted to one model, refused in words where broken."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, WhisperForConditionalGeneration, WhisperModel

from conversion.formats import FORMATS, convert, format_of
from models.encoders.whisper import WhisperEncoder
from support.command_line import UserError
from tests import tiny
from tests.whisper_sources import (
    VOCABULARY,
    State,
    state_of,
    tiny_whisper,
    write_ctranslate2,
    write_ggml,
    write_openai,
)


def silent(_: str) -> None:
    """In place of print."""


def write(kind: str, folder: Path, state: State) -> Path:
    """A source of a kind, float16 and under a name that says nothing."""
    folder.mkdir(exist_ok=True)
    if kind == "ctranslate2":
        return write_ctranslate2(folder / "source", state)[0]
    if kind == "openai":
        return write_openai(folder / "source", {name: tensor.half() for name, tensor in state.items()})
    return write_ggml(folder / "source", state)[0]


KINDS = ("ctranslate2", "openai", "ggml")
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
def test_the_whole_model_comes_back(kind: str, tmp_path: Path) -> None:
    model = tiny_whisper()
    said: list[str] = []
    folder = convert(write(kind, tmp_path / "s", state_of(model)), tmp_path / "out", report=said.append)
    again, report = WhisperForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(report[part] for part in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert again.dtype == torch.float16 and AutoConfig.from_pretrained(folder).dtype == torch.float16
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name].float(), tensor), name
    assert again.proj_out.weight.data_ptr() == again.model.decoder.embed_tokens.weight.data_ptr()
    assert "proj_out.weight" not in load_file(folder / "model.safetensors")
    assert "Whisper with 2 + 1 layers, width 32, 80 mel bins, 96 tokens, float16" in said[0]
    features = torch.randn(1, 80, 120, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[1, 5, 7]])
    with torch.inference_mode():
        ours = again.float()(input_features=features, decoder_input_ids=ids).logits
        theirs = model(input_features=features, decoder_input_ids=ids).logits
    assert torch.equal(ours, theirs)


@every_kind
def test_the_encoder_is_read_by_this_program(kind: str, tmp_path: Path) -> None:
    model = tiny_whisper()
    folder = convert(write(kind, tmp_path / "s", state_of(model)), tmp_path / "out", report=silent)
    encoder = WhisperEncoder.from_pretrained(folder)
    for name, tensor in model.model.encoder.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], tensor), name
    frames, lengths = encoder(torch.zeros(1, 8000), torch.tensor([8000]))
    assert frames.shape == (1, 25, 32) and lengths.tolist() == [25]
    assert (folder / "preprocessor_config.json").is_file()


@every_kind
def test_weights_take_the_dtype_asked_for(kind: str, tmp_path: Path) -> None:
    source = write(kind, tmp_path / "s", state_of(tiny_whisper()))
    for dtype in ("float32", "bfloat16"):
        folder = convert(source, tmp_path / dtype, dtype=dtype, report=silent)
        kinds = {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()}
        assert kinds == {getattr(torch, dtype)} == {AutoConfig.from_pretrained(folder).dtype}


@every_kind
def test_a_source_cut_at_any_place_is_refused_and_nothing_is_left(kind: str, tmp_path: Path) -> None:
    source = write(kind, tmp_path / "s", state_of(tiny_whisper()))
    file = source / "model.bin" if source.is_dir() else source
    whole = file.read_bytes()
    for share in (0.0001, 0.01, 0.3, 0.7, 0.999):
        file.write_bytes(whole[: max(1, int(share * len(whole)))])
        with pytest.raises(UserError) as raised:
            convert(source, tmp_path / "out", report=silent)
        assert str(source) in str(raised.value)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["s"]


@every_kind
def test_flipped_bytes_never_crash(kind: str, tmp_path: Path) -> None:
    """Where the damage is in a value of a weight nobody can tell; everywhere else it is an error of the user's kind."""
    source = write(kind, tmp_path / "s", state_of(tiny_whisper()))
    file = source / "model.bin" if source.is_dir() else source
    whole = file.read_bytes()
    generator = torch.Generator().manual_seed(1)
    places = [*range(0, 120, 5), *torch.randint(len(whole), (16,), generator=generator).tolist()]
    for place in places:
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            convert(source, tmp_path / "out", overwrite=True, report=silent)
        except UserError:
            continue


@every_kind
def test_values_that_are_not_finite_are_refused(kind: str, tmp_path: Path) -> None:
    state = state_of(tiny_whisper())
    state["model.encoder.conv1.weight"] = state["model.encoder.conv1.weight"].clone()
    state["model.encoder.conv1.weight"][0, 0, 0] = float("nan")
    source = write(kind, tmp_path / "s", state)
    with pytest.raises(UserError, match=r"damaged: model\.encoder\.conv1\.weight holds NaN"):
        convert(source, tmp_path / "out", report=silent)
    assert not (tmp_path / "out").exists()


@every_kind
def test_a_missing_or_unknown_tensor_is_named(kind: str, tmp_path: Path) -> None:
    state = state_of(tiny_whisper())
    if kind != "ctranslate2":
        del state["model.encoder.layers.1.fc2.bias"]
        with pytest.raises(UserError, match=r"model\.encoder\.layers\.1\.fc2\.bias is missing"):
            convert(write(kind, tmp_path / "a", state), tmp_path / "out", report=silent)
        state = {**state_of(tiny_whisper()), "model.encoder.extra.weight": torch.ones(3)}
        with pytest.raises(UserError, match=r"extra\.weight is unknown"):
            convert(write(kind, tmp_path / "b", state), tmp_path / "out", report=silent)
        state = state_of(tiny_whisper())
        state["model.encoder.conv2.bias"] = torch.ones(31)
        with pytest.raises(UserError, match=r"conv2\.bias is \[31\], expected \[32\]"):
            convert(write(kind, tmp_path / "c", state), tmp_path / "out", report=silent)


def test_values_beyond_a_dtype_are_refused(tmp_path: Path) -> None:
    state = state_of(tiny_whisper(half=False))
    state["model.encoder.conv1.weight"] = state["model.encoder.conv1.weight"] * 1e6
    source = write_openai(tmp_path / "x.pt", state)
    with pytest.raises(UserError, match="more than float16 holds; convert with --dtype float32"):
        convert(source, tmp_path / "out", dtype="float16", report=silent)
    folder = convert(source, tmp_path / "out", report=silent)
    assert load_file(folder / "model.safetensors")["model.encoder.conv1.weight"].dtype == torch.float32


def test_a_folder_is_replaced_only_when_asked(tmp_path: Path) -> None:
    source = write("ggml", tmp_path / "s", state_of(tiny_whisper()))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(UserError, match="not empty; choose another folder, or add --overwrite"):
        convert(source, tmp_path / "out", report=silent)
    broken = tmp_path / "broken"
    broken.write_bytes(source.read_bytes()[:-1])
    with pytest.raises(UserError, match="truncated"):
        convert(broken, tmp_path / "out", overwrite=True, report=silent)
    assert (tmp_path / "out" / "mine").read_text() == "kept"
    convert(source, tmp_path / "out", overwrite=True, report=silent)
    assert not (tmp_path / "out" / "mine").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file; expected a folder"):
        convert(source, tmp_path / "file", overwrite=True, report=silent)


def test_the_source_is_never_replaced(tmp_path: Path) -> None:
    folder = write("ctranslate2", tmp_path / "s", state_of(tiny_whisper()))
    for out in (folder, folder / "inside", folder.parent):
        with pytest.raises(UserError, match="contain each other"):
            convert(folder, out, overwrite=True, report=silent)
    assert (folder / "model.bin").is_file()


def test_files_can_be_read_by_whoever_reads_the_folder(tmp_path: Path) -> None:
    folder = convert(write("ggml", tmp_path / "s", state_of(tiny_whisper())), tmp_path / "out", report=silent)
    modes = {stat.S_IMODE(os.stat(path).st_mode) for path in folder.iterdir()}
    assert len(modes) == 1


def test_what_is_no_model_is_called_what_it_is(tmp_path: Path) -> None:
    def problem(content: bytes) -> str:
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(UserError) as raised:
            format_of(tmp_path / "file")
        return str(raised.value)

    assert "git-lfs pointer" in problem(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "web page" in problem(b"<!DOCTYPE html><html>no</html>")
    assert "is empty (0 bytes)" in problem(b"")
    assert "is in no format that is read (it starts with b'" in problem(bytes(range(200)) * 20)
    assert all(known.name in problem(bytes(5000)) for known in FORMATS)
    with pytest.raises(UserError, match=r"is a file of safetensors; its folder"):
        format_of(tiny.write_whisper(tmp_path / "w") / "model.safetensors")
    with pytest.raises(UserError, match="does not exist"):
        format_of(tmp_path / "absent")
    with pytest.raises(UserError, match=r"a folder without a model\.bin"):
        format_of(tmp_path)
    with pytest.raises(UserError, match="a folder of transformers already"):
        format_of(tiny.write_whisper(tmp_path / "whisper"))
    (tmp_path / "deep" / "model").mkdir(parents=True)
    (tmp_path / "deep" / "model" / "model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match=rf"name what is in it: {tmp_path}/deep/model; expected"):
        format_of(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match="git-lfs pointer"):
        format_of(tmp_path)


def test_settings_of_generation_are_written(tmp_path: Path) -> None:
    folder = convert(write("ctranslate2", tmp_path / "s", state_of(tiny_whisper())), tmp_path / "out", report=silent)
    settings = json.loads((folder / "generation_config.json").read_text())
    assert settings["suppress_tokens"] == [1, 2] and settings["begin_suppress_tokens"] == [3]
    assert settings["alignment_heads"] == [[0, 1]] and settings["max_length"] == 12
    assert WhisperModel.from_pretrained(folder).config.vocab_size == VOCABULARY


@every_kind
def test_a_model_that_was_not_converted_is_named_where_it_is_loaded(kind: str, tmp_path: Path) -> None:
    source = write(kind, tmp_path / "s", state_of(tiny_whisper()))
    with pytest.raises(UserError, match=rf"{source} is a .*'python -m tools\.convert {source} FOLDER' makes one"):
        WhisperEncoder.from_pretrained(source)
