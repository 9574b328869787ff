"""Joins the JSON of `gfocal bench` and of bench.py into one table: join.py FILE.json..."""

import json
import sys

CASE = ("device", "op", "pass", "dtype", "rows", "columns")
HEADER = ("case", "size", "impl", "median us", "GB/s", "% copy", "x gfocal")


def load(paths):
    records = []
    for path in paths:
        with open(path, encoding="utf-8") as file:
            records += json.load(file)
    return records


def table(records):
    cases = {}
    for record in records:
        cases.setdefault(tuple(record[field] for field in CASE), []).append(record)
    rows = [HEADER]
    for case, records in cases.items():
        device, op, passed, dtype, height, width = case
        ours = next((r["median_us"] for r in records if r.get("impl", "gfocal") == "gfocal"), None)
        for i, record in enumerate(sorted(records, key=lambda r: r["median_us"])):
            ratio = "-" if ours is None else f"{record['median_us'] / ours:.2f}"
            percent = record.get("percent_of_copy")
            rows.append((
                f"{op} {passed} {dtype} {device}" if i == 0 else "",
                f"{height}x{width}" if i == 0 else "",
                record.get("impl", "gfocal"),
                f"{record['median_us']:.1f}",
                f"{record['gbytes_per_s']:.4g}",
                "-" if percent is None else f"{percent:.1f}",
                ratio,
            ))
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    left = (0, 2)
    lines = []
    for row in rows:
        cells = (c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths)))
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "-" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(lines)


def main():
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: join.py FILE.json...")
    try:
        print(table(load(sys.argv[1:])))
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"join.py: cannot read the records: {error!r}; give files of gfocal bench --format json or bench.py")


if __name__ == "__main__":
    main()
