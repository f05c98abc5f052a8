# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
Copies the tables of `benchmarks/results` into the pages that quote them, so that nobody types a figure.

A page marks the place with `<!-- results: NAME -->` and `<!-- end of results -->`, each on its own line; between them
comes the newest file of that name, without its title. `<!-- results: NAME, rows: START -->` copies only those rows of
its tables that begin with START.

    python benchmarks/quote_results.py
"""

import re
from pathlib import Path


ROOT = Path(__file__).parent.parent
MARK = re.compile(r"(<!-- results: ([^\s,]+)(?:, rows: (.+?))? -->\n).*?(<!-- end of results -->)", re.DOTALL)


def pages() -> list[Path]:
    """All pages that quote results."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("unept_hf/checkpoints/*/*.md")]
    return [page for page in sorted(found) if MARK.search(page.read_text(encoding="utf-8"))]


def newest(name: str) -> Path:
    """The results file of a name (`ablations-cpu`) with the latest date."""
    dated = re.compile(re.escape(name) + r"-\d{4}-\d\d-\d\d")
    files = [file for file in (ROOT / "benchmarks" / "results").glob("*.md") if dated.fullmatch(file.stem)]
    if not files:
        raise ValueError(f"benchmarks/results has no {name}-<date>.md: run its benchmark first.")
    return max(files, key=lambda file: file.stem)


def with_rows(body: str, start: str) -> str:
    """The text, with only those rows of its tables that begin with `start`, below their headers."""
    lines = body.split("\n")
    return "\n".join(
        line
        for line, following in zip(lines, [*lines[1:], ""])
        if not line.startswith("|") or line.startswith((f"| {start}", "| ---")) or following.startswith("| ---")
    )


def with_results(text: str) -> str:
    """The text of a page, with the results as they are now."""

    def quote(match: re.Match) -> str:
        body = newest(match[2]).read_text(encoding="utf-8").split("\n", 1)[1].strip()
        if match[3] is not None:
            body = with_rows(body, match[3])
        # One level below the heading that the page gives it.
        return f"{match[1]}\n{re.sub('^## ', '### ', body, flags=re.MULTILINE)}\n\n{match[4]}"

    return MARK.sub(quote, text)


def main() -> None:
    for page in pages():
        page.write_text(with_results(page.read_text(encoding="utf-8")), encoding="utf-8")
        print(page.relative_to(ROOT))


if __name__ == "__main__":
    main()
