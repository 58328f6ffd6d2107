"""Model folders whose files are not what their names say, and folders of another model."""

import gzip

import pytest

from configs.schema import load_config
from models import build_model
from support.command_line import UserError
from tests import tiny

OTHER_KINDS = {
    "pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123\n",
        "git lfs pull",
    ),
    "page": (b"<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
    "answer": (b"Entry not found", "not found"),
    "archive": (gzip.compress(b"weights" * 1000), "gzip archive"),
}
"""Content by kind, and what an error about it says."""


@pytest.fixture
def project(tmp_path):
    return tiny.write_project(tmp_path)


@pytest.mark.parametrize(("kind", "words"), [(kind, words) for kind, (_, words) in OTHER_KINDS.items()])
@pytest.mark.parametrize(
    "file", ["llm/model.safetensors", "llm/config.json", "llm/tokenizer.json", "whisper/model.safetensors", "beats.pt"]
)
def test_a_file_that_is_something_else_is_named(project, file, kind, words):
    path = project.root / file
    assert path.exists()
    path.write_bytes(OTHER_KINDS[kind][0])
    with pytest.raises(UserError, match=words) as error:
        build_model(load_config(project.config).model)
    assert path.name in str(error.value) or str(path.parent) in str(error.value)


def test_a_truncated_file_is_one_sentence(project):
    weights = project.llm / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.llama_path: cannot load the weights of"):
        build_model(load_config(project.config).model)


def test_another_models_folder_is_named_before_its_weights_are_read(project, capfd):
    with pytest.raises(UserError, match=r"model\.whisper_path: .*is a model of type 'llama'; expected 'whisper'"):
        build_model(load_config(project.config, [f"model.whisper_path={project.llm}"]).model)
    assert "MISSING" not in capfd.readouterr().err


def test_a_packed_adapter_is_named(project, tmp_path):
    packed = tmp_path / "salmonn.pth"
    packed.write_bytes(gzip.compress(b"weights" * 1000))
    with pytest.raises(UserError, match="gzip archive; unpack it"):
        build_model(load_config(project.config, [f"model.ckpt={packed}"]).model)
