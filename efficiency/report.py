"""The efficiency report as tables on the terminal, with the published systems' figures."""

from __future__ import annotations

import json
from pathlib import Path

from support.tables import format_table
from support.units import MIB

PUBLISHED = Path(__file__).resolve().parent / "published.json"


def published_rows(path: Path = PUBLISHED) -> list[dict]:
    """Published figures of the family's systems, as their authors gave them, or those of a file in the same form."""
    return json.loads(path.read_text(encoding="utf-8"))["rows"]


def published_variants() -> list[dict]:
    """Published memory and latency of a system's variants: the cases of the memory plan, with what to plan."""
    variants = json.loads(PUBLISHED.read_text(encoding="utf-8"))["variants"]
    return [{"device": variants["device"], "source": variants["source"], **row} for row in variants["rows"]]


def comparison(report: dict) -> str:
    """The published systems and this measurement; theirs are in GB, on other machines and by the contest's clock."""
    rows = []
    for row in published_rows():
        together = row["ttft_plus_tpot_s"]
        ttft = f"{together} with TPOT" if together is not None else row["ttft_s"]
        captions = "; ".join(f"{score['metric']} {score['value']}" for score in row["aac"]) or None
        rows.append([row["name"], row["device"], row["asr"]["value"], captions, row["peak_gb"], ttft, row["tpot_s"]])
    ours = [f"{report['peak_gib']:.3f} GiB", f"{report['contest_ttft_s']:.4f}", f"{report['contest_tpot_s']:.4f}"]
    rows.append([report["model"], report["machine"]["name"], None, None, *ours])
    header = ["system", "machine", "WER %", "captions", "peak GB", "contest TTFT s", "contest TPOT s"]
    return format_table(header, rows)


def summary(report: dict) -> str:
    """This measurement alone, figure by figure."""
    spread = report["spread"]
    rows = [
        [name, f"{spread[name]['median']:.4f}", f"{spread[name]['p90']:.4f}"]
        for name in ("ttft_s", "tpot_s", "generate_s", "contest_ttft_s", "contest_tpot_s")
    ]
    parts = report["spread_of_parts"]
    rows[1:1] = [[f"  {part}", f"{parts[part]['median']:.4f}", f"{parts[part]['p90']:.4f}"] for part in parts]
    limits = report["limits"]["figures"]
    rows = [[*row, *_limit_cells(limits.get(row[0].strip()))] for row in rows]
    rows += [
        [name, f"{report[name]:.3f}", None, None, None] for name in ("peak_gib", "load_peak_gib", "loaded_gib", "rtfx")
    ]
    sizes = {row["part"]: row["bytes"] / MIB for row in report["parts"]}
    rows += [[f"{part}: weights, MiB", f"{size:.2f}", None, None, None] for part, size in sizes.items()]
    return format_table(["figure", "median", "p90", "device's limit", "times"], rows)


def _limit_cells(limit: dict | None) -> list[str | None]:
    return [None, None] if limit is None else [f"{limit['limit_s']:.4f}", f"{limit['ratio']:.1f}"]
