"""What every benchmark writes beside its figures: the machine and the versions."""

from __future__ import annotations

import json
import os
import platform
import statistics
from datetime import date
from pathlib import Path
from typing import Any

from keras_private._backends import installed

RESULTS = Path(__file__).parent / "results"


def describe() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "date": date.today().isoformat(),
        "versions": {each.name: each.version for each in installed() if each.version is not None},
    }


def write(name: str, figures: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({**describe(), "figures": figures}, indent=2) + "\n")


def median_ratio(times: list[float], reference: list[float]) -> float:
    """Median of the ratios of paired measurements: what drifts on the machine cancels."""
    return statistics.median(mine / other for mine, other in zip(times, reference))
