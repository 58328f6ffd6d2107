"""An adapter to hand on: 16 bits, no path of this machine, and the model that it was."""

import re
from pathlib import Path

import pytest
import torch

from configs.schema import load_config
from models.build import build_model, load_model
from models.checkpoint.adapter_folder import read_adapter, save_adapter
from tests.tiny import write_project
from tools import pack_adapter


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """An adapter folder as training writes it, whose LoRA has an effect."""
    project = write_project(tmp_path / "project")
    config = load_config(project.config)
    torch.manual_seed(0)
    model = build_model(config.model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    return save_adapter(model, tmp_path / "run" / "best", config=config, metrics={"asr.wer": 0.5})


def test_the_packed_adapter_is_half_as_large_and_gives_the_same_text(trained: Path, tmp_path: Path) -> None:
    assert pack_adapter.main([str(trained), str(tmp_path / "packed")]) == 0
    before, after = read_adapter(trained), read_adapter(tmp_path / "packed")
    assert before.keys() == after.keys()
    assert {tensor.dtype for tensor in after.values()} == {torch.float16}
    for name, tensor in before.items():
        torch.testing.assert_close(after[name].float(), tensor, rtol=1e-3, atol=1e-6)
    waveforms = torch.rand(1, 16_000, generator=torch.Generator().manual_seed(1)) * 0.2
    texts = [
        load_model(folder, "cpu").generate(waveforms, torch.tensor([16_000]), ["<SpeechHere> Write."], num_beams=1)
        for folder in (trained, tmp_path / "packed")
    ]
    assert texts[0] == texts[1]


def test_in_8_bits_the_connector_is_half_as_large_again_and_nearly_the_same(trained: Path, tmp_path: Path) -> None:
    assert pack_adapter.main([str(trained), str(tmp_path / "packed"), "--dtype", "int8"]) == 0
    before, after = read_adapter(trained), read_adapter(tmp_path / "packed")
    assert before.keys() == after.keys()
    large = [name for name, tensor in before.items() if name.startswith("connector.") and tensor.numel() >= 4096]
    assert large
    for name in large:
        step = before[name].abs().amax(dim=1, keepdim=True) / 127
        assert ((after[name] - before[name]).abs() <= 0.51 * step + 1e-6).all()
    load_model(tmp_path / "packed", "cpu")


def test_no_path_of_data_or_run_is_handed_on(trained: Path, tmp_path: Path) -> None:
    pack_adapter.main([str(trained), str(tmp_path / "packed")])
    before, after = load_config(trained / "config.yaml"), load_config(tmp_path / "packed" / "config.yaml")
    assert before.datasets.train_ann_path is not None
    assert after.datasets.train_ann_path is None
    assert after.model == before.model
    assert after.generate == before.generate
    text = (tmp_path / "packed" / "config.yaml").read_text(encoding="utf-8")
    assert not re.search(r"_ann_path\w*: (?!null)", text)


def test_options_change_the_model_and_a_card_is_kept(trained: Path, tmp_path: Path) -> None:
    target = tmp_path / "packed"
    pack_adapter.main([str(trained), str(target)])
    (target / "README.md").write_text("# a card\n", encoding="utf-8")
    assert pack_adapter.main([str(trained), str(target), "--options", "generate.num_beams=1"]) == 0
    assert load_config(target / "config.yaml").generate.num_beams == 1
    assert (target / "README.md").read_text(encoding="utf-8") == "# a card\n"


def test_a_number_that_float16_cannot_hold_is_named(trained: Path, tmp_path: Path, capsys) -> None:
    config = load_config(trained / "config.yaml")
    model = build_model(config.model)
    with torch.no_grad():
        model.connector.to_llm.bias[0] = 1e6
    save_adapter(model, tmp_path / "large", config=config)
    assert pack_adapter.main([str(tmp_path / "large"), str(tmp_path / "packed")]) != 0
    assert "connector.to_llm.bias" in capsys.readouterr().err
    assert pack_adapter.main([str(tmp_path / "large"), str(tmp_path / "packed"), "--dtype", "bfloat16"]) == 0


def test_another_folder_is_not_overwritten(trained: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "mine").mkdir()
    assert pack_adapter.main([str(trained), str(tmp_path / "mine")]) != 0
    assert "no adapter folder" in capsys.readouterr().err
