"""What the README, CONTRIBUTING and the YAML headers name exists: files, make targets, scripts and their options."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
DOCUMENTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md")}


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, flags=re.MULTILINE))


def shell_lines(text: str) -> list[str]:
    """Lines of the text's bash blocks, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.split(" # ")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_linked_files_exist(name: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", DOCUMENTS[name]) if not link.startswith("http")]
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing, f"{name} links to files that are not there: {missing}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_make_targets_exist(name: str) -> None:
    named = set(re.findall(r"`make ([a-z-]+)", DOCUMENTS[name]))
    named |= {line.split()[1] for line in shell_lines(DOCUMENTS[name]) if line.startswith("make ")}
    assert named, f"{name} names no make target"
    assert named <= make_targets(), f"{name} names make targets that are not there: {sorted(named - make_targets())}"


def test_the_two_first_commands_are_demo_and_test() -> None:
    assert [line.split()[:2] for line in shell_lines(README)[:2]] == [["make", "demo"], ["make", "test"]]


def test_every_make_target_is_phony_and_explained() -> None:
    phony = set(re.search(r"^\.PHONY: (.*)$", MAKEFILE, flags=re.MULTILINE)[1].split())
    assert phony == make_targets()
    explained = set(re.findall(r"^([a-z-]+):.*## \S", MAKEFILE, flags=re.MULTILINE))
    assert explained == make_targets()


@pytest.mark.parametrize("line", [line for line in shell_lines(README) if line.startswith("python ")])
def test_python_commands_parse(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each script exists and knows each option that the README gives it."""
    words = shlex.split(line)
    script = ROOT / words[1]
    assert script.is_file(), f"the README calls {words[1]}, which is not there"
    module = importlib.import_module(script.stem)
    with pytest.raises(SystemExit) as stopped:
        module.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for option in (word for word in words[2:] if word.startswith("--")):
        assert re.search(rf"{re.escape(option)}\b", text), f"{words[1]} has no option {option}"
    if "--mode" in words:
        assert words[words.index("--mode") + 1] in text


def test_yaml_of_the_readme_loads(tmp_path: Path) -> None:
    from configs.schema import load_config

    (block,) = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    path = tmp_path / "mine.yaml"
    path.write_text(block, encoding="utf-8")
    config = load_config(path)
    assert config.run.output_dir == yaml.safe_load(block)["run"]["output_dir"]
    assert not config.ignored


def test_annotations_of_the_readme_load(tmp_path: Path) -> None:
    from data.annotations import load_annotations

    block = next(block for block in re.findall(r"```json\n(.*?)```", README, flags=re.DOTALL))
    path = tmp_path / "mine.json"
    path.write_text(block, encoding="utf-8")
    annotations = load_annotations(str(path))
    tasks = [annotation.task for annotation in annotations]
    assert tasks == [entry["task"] for entry in json.loads(block)["annotation"]]
    for prompts in ("train.json", "test.json"):
        assert set(tasks) <= set(json.loads((ROOT / "prompts" / prompts).read_text(encoding="utf-8")))


def test_the_first_screen_shows_recordings_of_the_demo() -> None:
    """The excerpt of `make demo PART=hear` is of recordings that are there, with their texts."""
    from data.annotations import load_annotations

    (excerpt,) = re.findall(r"<!-- hear -->\n```text\n(.*?)```", README, flags=re.DOTALL)
    texts = {Path(clip.path).name: clip.text for clip in load_annotations(ROOT / "assets/clips/annotation.json")}
    shown = re.findall(r"^\d+\. ([^,]+), .*\n   expected +(.*)$", excerpt, flags=re.MULTILINE)
    assert shown and all(texts[name] == text for name, text in shown)
    assert "WER %" in excerpt and "| step" in excerpt
    assert README.index("<!-- hear -->") < README.index("| system | machine |")


def test_published_figures_stand_in_the_readme() -> None:
    rows = json.loads((ROOT / "efficiency" / "published.json").read_text(encoding="utf-8"))["rows"]
    assert len(rows) == 7
    for row in rows:
        line = next(line for line in README.splitlines() if line.startswith(f"| {row['name']} "))
        figures = [row["asr"]["value"], row["peak_gb"], row["ttft_s"], row["tpot_s"], row["ttft_plus_tpot_s"]]
        figures += [score["value"] for score in row["aac"]]
        cells = set(re.findall(r"\d+\.?\d*", line.split("|", 2)[2]))
        for figure in figures:
            assert figure is None or any(float(cell) == figure for cell in cells), (
                f"{row['name']}: {figure} not in {line}"
            )
        assert row["source"], row["name"]


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/**/*.yaml")), ids=lambda path: str(path.relative_to(ROOT)))
def test_recipe_headers_hold_their_command(path: Path) -> None:
    header = path.read_text(encoding="utf-8").split("\n\n")[0]
    assert header.startswith("#"), f"{path} has no header"
    assert str(path.relative_to(ROOT)) in header or "make " in header, f"{path}: the header does not say how to run it"
