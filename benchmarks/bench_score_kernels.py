"""State what the compiled Triton kernels use: registers, spills, width of loads, bytes per element.

Compiled ahead of time, so no GPU is needed and nothing is timed. The headline is that of the cache
update with dot product and norms; every variant has its row.

`python benchmarks/bench_score_kernels.py` writes `benchmarks/results/score_kernels.json`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from _harness import require_tests, write_result

HEADLINE_KERNEL = "cache_update_dot/update_score"


def tables(result: dict[str, Any]) -> dict[str, str]:
    """Return the Markdown table, made from the result alone."""
    by_kernel: dict[str, list[dict[str, Any]]] = {}
    for row in result["rows"]:
        by_kernel.setdefault(row["kernel"], []).append(row)
    targets = [row["target"] for row in next(iter(by_kernel.values()))]
    lines = [
        "| kernel and variant | bytes per element | load width | spills | registers "
        f"{' / '.join(targets)} |",
        "|---" * 5 + "|",
    ]
    for kernel, rows in by_kernel.items():
        n_bytes = sorted({row["bytes_per_element"] or 0 for row in rows})
        cells = [
            f"`{kernel}`",
            " / ".join(f"{n:g}" if n else "-" for n in n_bytes),
            " / ".join(f"{bits} bit" for bits in sorted({row["load_bits"] for row in rows})),
            str(max(row["spills"] for row in rows)),
            " / ".join(str(row["registers"]) for row in rows),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return {"resources": "\n".join(lines)}


def main() -> None:
    """Compile every variant for every target and write the result."""
    require_tests("packages/bsgal-score/tests/test_kernel_resources.py")
    # In a process without the interpreter, which would take the place of the compiler.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    output = subprocess.run(
        [sys.executable, "-m", "bsgal_score.kernels.resources"],
        env=environment, check=True, stdout=subprocess.PIPE, text=True,
    ).stdout  # fmt: skip
    rows = [json.loads(line) for line in output.splitlines()]
    headline = {
        f"{row['target']}_{key}": row[key]
        for row in rows
        if row["kernel"] == HEADLINE_KERNEL
        for key in ("spills", "bytes_per_element", "load_bits")
    }
    write_result("score_kernels", rows=rows, headline=headline, libraries=("torch", "triton"))


if __name__ == "__main__":
    main()
