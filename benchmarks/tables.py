"""Write the tables of READMEs and site from the committed results, or check that they are true.

A README, or a page in `docs`, holds an empty region for each table:

    <!-- table: score_cache/times -->
    <!-- end table -->

and `benchmarks/bench_score_cache.py` defines `tables(result)`, which makes the Markdown of each of
its parts (here `times`) from `benchmarks/results/score_cache.json` alone. So no number in a table
is typed by hand.

`python benchmarks/tables.py` fills all regions; with `--check` it changes nothing and fails where
a region is not what the results say.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
REGION = re.compile(
    r"(?P<start><!-- table: (?P<name>\w+)/(?P<part>[\w-]+) -->\n).*?(?P<end><!-- end table -->)",
    re.DOTALL,
)


@cache
def tables_of(name: str) -> dict[str, str]:
    """Return the tables of one benchmark by part; empty where it has no result yet.

    Raises:
        ValueError: there is no such benchmark, or it defines no `tables`.
    """
    result = RESULTS / f"{name}.json"
    try:
        benchmark = importlib.import_module(f"bench_{name}")
    except ModuleNotFoundError as error:
        if error.name != f"bench_{name}":
            raise
        raise ValueError(f"there is no benchmarks/bench_{name}.py") from None
    if not hasattr(benchmark, "tables"):
        raise ValueError(f"benchmarks/bench_{name}.py defines no `tables(result)`")
    if not result.is_file():
        return {}
    made: dict[str, str] = benchmark.tables(json.loads(result.read_text(encoding="utf-8")))
    return made


def filled(text: str) -> str:
    """Return a page's text with every region as the results say.

    Raises:
        ValueError: a region names a benchmark or a part that does not exist.
    """

    def fill(region: re.Match[str]) -> str:
        name, part = region["name"], region["part"]
        tables = tables_of(name)
        if not tables:
            return f"{region['start']}{region['end']}"
        if part not in tables:
            known = ", ".join(sorted(tables))
            raise ValueError(f"benchmark {name} has no table {part!r}; it has {known}")
        return f"{region['start']}\n{tables[part].strip()}\n\n{region['end']}"

    return REGION.sub(fill, text)


def main() -> int:
    """Fill or check the regions of every page; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="fail where a table is stale")
    arguments = parser.parse_args()
    stale = []
    places = ("README.md", "packages/*/README.md", "docs/**/*.md")
    for page in (found for place in places for found in sorted(ROOT.glob(place))):
        text = page.read_text(encoding="utf-8")
        try:
            wanted = filled(text)
        except ValueError as error:
            print(f"{page.relative_to(ROOT)}: {error}", file=sys.stderr)
            return 1
        if wanted == text:
            continue
        stale.append(str(page.relative_to(ROOT)))
        if not arguments.check:
            temporary = page.with_suffix(".md.tmp")
            temporary.write_text(wanted, encoding="utf-8")
            temporary.replace(page)
    if stale:
        print(f"{'stale' if arguments.check else 'filled'}: {', '.join(stale)}")
    return 1 if arguments.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
