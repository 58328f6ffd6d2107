"""How large each part of a model is said to be."""

import pytest

from configs.schema import load_config
from models import build_model
from models.sizes import part_sizes


def test_every_parameter_and_buffer_counts_once(shared_tiny_project):
    model = build_model(load_config(shared_tiny_project.config).model)
    rows = {row.part: row for row in part_sizes(model)}
    assert list(rows) == ["whisper", "beats", "connector", "llm", "lora", "total"]
    assert rows["total"].parameters == sum(p.numel() for p in model.parameters())
    assert rows["whisper"].trainable == rows["llm"].trainable == 0
    assert rows["lora"].trainable == rows["lora"].parameters > 0
    assert rows["total"].bytes == sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def test_packed_weights_count_as_what_they_stand_for(shared_tiny_project):
    pytest.importorskip("bitsandbytes")
    plain = load_config(shared_tiny_project.config).model
    options = ["model.quantization=nf4", "model.allow_slow_kernels=true"]
    packed = load_config(shared_tiny_project.config, options).model
    rows = [{row.part: row for row in part_sizes(build_model(config))} for config in (plain, packed)]
    assert rows[0]["llm"].parameters == rows[1]["llm"].parameters
    assert rows[0]["llm"].bytes > rows[1]["llm"].bytes
