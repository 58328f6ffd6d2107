"""Rows of the embedding and of the head that the public trainers add."""

import torch
from safetensors.torch import save_file

from models.checkpoint.adapter_folder import load_adapter, save_adapter
from models.checkpoint.pad_rows import EMBEDDING_ROW, HEAD_ROW
from models.checkpoint.released import load_legacy
from tests import tiny
from tests.released import PROMPT, make, pad_rows, released_state, write


def test_pad_rows_enlarge_the_vocabulary_and_are_saved(project, model, file, tmp_path):
    rows = pad_rows(model)
    size = model.llm.vocab_size
    fresh, path = make(project), tmp_path / "rows.safetensors"
    save_file(rows, path)
    load_legacy(fresh, file, pad_rows=path)
    assert fresh.llm.vocab_size == size + 1
    assert torch.equal(fresh.llm.embed(torch.tensor([size])), rows["model.embed_tokens.weight"])
    assert torch.equal(fresh.llm.model.get_output_embeddings().weight[-1:], rows["lm_head.weight"])
    assert not any(parameter.requires_grad for name, parameter in fresh.llm.named_parameters() if "lora_" not in name)
    load_legacy(fresh, file, pad_rows=rows)
    assert fresh.llm.vocab_size == size + 1

    save_adapter(fresh, tmp_path / "adapter")
    again = make(project)
    load_adapter(again, tmp_path / "adapter")
    load_adapter(again, tmp_path / "adapter")
    assert again.llm.vocab_size == size + 1
    clip = torch.randn(1, 20_000) * 0.1, torch.tensor([20_000]), [PROMPT], ["a fish"]
    with torch.no_grad():
        assert torch.equal(again(*clip).loss, fresh(*clip).loss)


def test_a_tied_head_in_the_file_brings_its_pad_row(tmp_path):
    project = tiny.write_project(tmp_path / "tied", family="gemma2")
    model = make(project)
    embedding = model.llm.model.get_input_embeddings().weight
    assert embedding is model.llm.model.get_output_embeddings().weight
    size, row = len(embedding), torch.randn(1, model.llm.hidden_size)
    state = released_state(model)
    state["llama_model.base_model.model.lm_head.weight"] = torch.cat([embedding.detach().clone(), row])
    report = load_legacy(model, write(tmp_path / "x.pth", state))
    assert "llama_model.base_model.model.lm_head.weight" in report.matched
    assert model.llm.vocab_size == size + 1
    assert model.llm.model.get_input_embeddings().weight is model.llm.model.get_output_embeddings().weight
    assert torch.equal(model.llm.model.get_input_embeddings().weight[size:], row)


def test_names_of_pad_rows():
    assert (EMBEDDING_ROW, HEAD_ROW) == ("llm.pad_rows.embedding", "llm.pad_rows.head")
