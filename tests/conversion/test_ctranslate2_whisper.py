"""CTranslate2's folders: types with scales, versions, vocabularies; and against CTranslate2 where it is installed."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from conversion.formats import convert
from conversion.whisper_tokenizer import CHARACTERS
from conversion.whisper_tokens import tokens_of_size
from support.command_line import UserError
from tests.pieces import byte_pieces
from tests.whisper_sources import state_of, tiny_whisper, write_ctranslate2, write_ggml, write_variables


def silent(_: str) -> None:
    """In place of print."""


@pytest.mark.parametrize("types", ["float32", "float16", "int8", "int16"])
@pytest.mark.parametrize("version", [5, 6])
def test_every_type_gives_the_values_that_its_bytes_say(types: str, version: int, tmp_path: Path) -> None:
    state = state_of(tiny_whisper(half=types == "float16"))
    source, kept = write_ctranslate2(tmp_path / "s", state, types=types, version=version)
    said: list[str] = []
    weights = load_file(convert(source, tmp_path / "out", report=said.append) / "model.safetensors")
    assert weights.keys() == state.keys()
    for name, tensor in weights.items():
        expected = kept[name] if tensor.dim() > 1 or types == "float32" else kept[name].half()
        if "embed_positions" in name and types.startswith("int"):
            expected = expected.half()
        assert tensor.dtype == (torch.float16 if types == "float16" else torch.float32)
        assert torch.equal(tensor.float(), expected.float()), name
    assert said[0].endswith(f", {types}") and f"CTranslate2 (format {version}, revision 3)" in said[0]


def test_the_model_file_may_be_named_instead_of_its_folder(tmp_path: Path) -> None:
    source, _ = write_ctranslate2(tmp_path / "s", state_of(tiny_whisper()))
    assert (convert(source / "model.bin", tmp_path / "out", report=silent) / "model.safetensors").is_file()


def listed(vocabulary: int, pieces: list[bytes]) -> list[str]:
    """All tokens of a released model, as vocabulary.json lists them."""
    names = list(tokens_of_size(vocabulary).ids)
    times = [f"<|{0.02 * step:.2f}|>" for step in range(1501)]
    return ["".join(CHARACTERS[value] for value in piece) for piece in pieces] + names + times


@pytest.mark.parametrize("text", [False, True])
def test_a_tokenizer_is_made_of_the_vocabulary(text: bool, tmp_path: Path) -> None:
    pieces = byte_pieces(50_257, empty_last=True)
    tokens = listed(51_865, pieces)
    source, _ = write_ctranslate2(tmp_path / "s", state_of(tiny_whisper(51_865)), vocabulary=tokens)
    if text:
        (source / "vocabulary.json").unlink()
        (source / "vocabulary.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    folder = convert(source, tmp_path / "out", report=silent)
    tokenizer = WhisperProcessor.from_pretrained(folder).tokenizer
    assert tokenizer.convert_ids_to_tokens(list(range(51_865))) == tokens
    assert tokenizer.encode(" the cat", add_special_tokens=False) == [pieces.index(b" the"), pieces.index(b" cat")]


def test_its_tokenizer_is_copied_and_checked(tmp_path: Path) -> None:
    pieces = byte_pieces(50_256)
    made, _ = write_ggml(tmp_path / "x", state_of(tiny_whisper(51_864)), pieces=pieces)
    folder = convert(made, tmp_path / "made", report=silent)
    tokens = listed(51_864, pieces)
    source, _ = write_ctranslate2(tmp_path / "s", state_of(tiny_whisper(51_864)), vocabulary=tokens)
    content = (folder / "tokenizer.json").read_bytes()
    (source / "tokenizer.json").write_bytes(content)
    again = convert(source, tmp_path / "out", report=silent)
    assert (again / "tokenizer.json").read_bytes() == content
    assert WhisperProcessor.from_pretrained(again).tokenizer.encode(" the cat")[-1] == 50_256
    (source / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json is no tokenizer"):
        convert(source, tmp_path / "broken", report=silent)
    assert not (tmp_path / "broken").exists()


def test_a_second_output_matrix_stays_apart(tmp_path: Path) -> None:
    state = state_of(tiny_whisper())
    source, _ = write_ctranslate2(tmp_path / "s", state)
    head = torch.randn(96, 32).half().numpy()
    write_variables(source / "model.bin", {**_variables(source), "decoder/projection/weight": head}, {})
    model = WhisperForConditionalGeneration.from_pretrained(convert(source, tmp_path / "out", report=silent))
    assert np.array_equal(model.proj_out.weight.detach().numpy(), head)
    assert torch.equal(model.model.decoder.embed_tokens.weight.float(), state["model.decoder.embed_tokens.weight"])


def _variables(source: Path) -> dict[str, np.ndarray]:
    from conversion.ctranslate2_file import read_variables

    stored = read_variables(source / "model.bin").stored
    return {name: np.array(raw).view(kind).reshape(shape) for name, (shape, kind, raw) in stored.items()}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"decoder/layer_0/extra/weight": np.ones((2, 2), np.float16)}, "extra/weight .* is no part of a Whisper"),
        ({"decoder/alibi": np.int8(1)}, "decoder/alibi is 1; expected 0"),
        ({"decoder/activation": np.int8(0)}, "decoder/activation is 0; expected 3"),
        ({"decoder/layer_norm/beta": None}, "lacks decoder/layer_norm/beta"),
        ({"encoder/num_heads": np.int16(5)}, "5 heads of the encoder do not divide the width 32"),
        ({"encoder/conv1/weight": np.ones((32, 80, 3), np.int8)}, "lacks encoder/conv1/weight_scale"),
        ({"encoder/conv1/bias": np.ones(32, np.int32)}, "conv1/bias is of type int32"),
        (
            {"encoder/layer_0/self_attention/linear_0/bias": np.ones(96, np.float16)},
            "has a bias of its keys, for which Whisper has no place",
        ),
        ({"encoder/layer_0/self_attention/linear_0/bias": np.ones(95, np.float16)}, "expected 3 equal parts"),
        ({"encoder/conv1/weight": np.int8(3)}, "is a single number; expected a tensor"),
    ],
)
def test_a_model_that_is_no_whisper_is_refused(changes: dict, problem: str, tmp_path: Path) -> None:
    source, _ = write_ctranslate2(tmp_path / "s", state_of(tiny_whisper()))
    variables = {name: value for name, value in {**_variables(source), **changes}.items() if value is not None}
    write_variables(source / "model.bin", variables, {})
    with pytest.raises(UserError, match=problem):
        convert(source, tmp_path / "out", report=silent)
    assert not (tmp_path / "out").exists()


def test_other_models_and_versions_are_named(tmp_path: Path) -> None:
    source, _ = write_ctranslate2(tmp_path / "s", state_of(tiny_whisper()))
    write_variables(source / "model.bin", {}, {}, kind="TransformerSpec")
    with pytest.raises(UserError, match="of the kind TransformerSpec; expected WhisperSpec"):
        convert(source, tmp_path / "out", report=silent)
    write_variables(source / "model.bin", {}, {}, version=7)
    with pytest.raises(UserError, match="version 7 of CTranslate2's format; expected 4 to 6"):
        convert(source, tmp_path / "out", report=silent)
    write_variables(source / "model.bin", {}, {"a": "b"})
    with pytest.raises(UserError, match="a stands for b, which is not there"):
        convert(source, tmp_path / "out", report=silent)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("config.json", "{", "is no JSON"),
        ("config.json", "[]", "expected a JSON object"),
        ("config.json", '{"suppress_ids": [96]}', "expected a list of ids below 96"),
        ("vocabulary.json", '{"a": 1}', "expected a list of texts"),
        ("vocabulary.json", json.dumps(["a"] * 97), "lists 97 tokens, and model.bin has 96"),
        ("config.json", "version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
    ],
)
def test_broken_files_next_to_the_model_are_named(name: str, content: str, problem: str, tmp_path: Path) -> None:
    source, _ = write_ctranslate2(tmp_path / "s", state_of(tiny_whisper()))
    (source / name).write_text(content)
    with pytest.raises(UserError, match=problem):
        convert(source, tmp_path / "out", report=silent)


# --- against CTranslate2 ---------------------------------------------------------------------------------------------


@pytest.fixture
def ctranslate2() -> ModuleType:
    """The library, which is not needed for anything else."""
    return pytest.importorskip("ctranslate2", reason="ctranslate2 is not installed; pip install ctranslate2")


@pytest.mark.parametrize("types", ["float32", "int8"])
def test_encoder_outputs_are_ctranslate2s(ctranslate2: ModuleType, types: str, tmp_path: Path) -> None:
    source, _ = write_ctranslate2(tmp_path / "s", state_of(tiny_whisper(half=False)), types=types)
    model = WhisperForConditionalGeneration.from_pretrained(convert(source, tmp_path / "out", report=silent))
    features = torch.randn(2, 80, 120, generator=torch.Generator().manual_seed(0))
    theirs = ctranslate2.models.Whisper(str(source), compute_type="float32")
    storage = ctranslate2.StorageView.from_array(features.numpy())
    frames = torch.from_numpy(np.array(theirs.encode(storage, to_cpu=True)))
    with torch.inference_mode():
        ours = model.model.encoder(features).last_hidden_state
    assert (ours - frames).abs().max() < 2e-3 * frames.abs().max()


@pytest.mark.parametrize("types", ["float32", "float16", "int8", "int8_float16", "bfloat16", "int16"])
def test_what_its_own_converter_writes_comes_back(ctranslate2: ModuleType, types: str, tmp_path: Path) -> None:
    model = tiny_whisper()
    state = {name: tensor.clone() for name, tensor in state_of(model).items()}  # its rounding overwrites the model
    spec = ctranslate2.converters.transformers.WhisperLoader().get_model_spec(model)
    spec.register_vocabulary([f"t{number}" for number in range(96)])
    spec.validate()
    spec.optimize(quantization=types)
    (tmp_path / "s").mkdir()
    spec.save(str(tmp_path / "s"))
    weights = load_file(convert(tmp_path / "s", tmp_path / "out", report=silent) / "model.safetensors")
    lost = {"float32": 0, "float16": 0, "bfloat16": 2**-8, "int8": 1 / 127, "int8_float16": 1 / 127, "int16": 2**-10}[
        types
    ]
    for name, tensor in state.items():
        assert (weights[name].float() - tensor).abs().max() <= lost * tensor.abs().max(), name
