"""What a results file says: as Markdown tables, as plots, and as the README's table.

python bench/report.py             the README's table from the newest results file of each device
python bench/report.py FILE.csv    FILE.md and FILE-*.png
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from cost_model import predicted_ms
from targets import SQUARE, Row, judge

from atm_triton.files import replaced

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
README = ROOT / "README.md"
BEGIN, END = "<!-- speed:begin -->", "<!-- speed:end -->"
TEXT = ("job", "section", "name", "what", "shape", "dtype", "batch", "implementation", "note")
NUMBERS = (
    "p20_ms",
    "p50_ms",
    "p80_ms",
    "images_per_s",
    "gb_per_s",
    "tflop_per_s",
    "limit_ms",
    "share_of_limit",
    "peak_mib",
    "kept_mib",
    "speedup",
)
ABOUT = ("device", "torch", "triton", "configs", "commit", "model", "mode")  # mode: of torch.compile
LABELS = {"eager": "ours, eager", "compiled": "ours, compiled"}


def read(file: Path) -> list[Row]:
    """Older files lack some columns."""
    with file.open(newline="") as stream:
        rows: list[Row] = list(csv.DictReader(stream))
    texts = [{name: row.get(name) or "" for name in (*TEXT, *ABOUT)} for row in rows]
    return [text | {name: float(row[name]) if row.get(name) else None for name in NUMBERS} for text, row in zip(texts, rows, strict=True)]


def write(file: Path, rows: Iterable[Row]) -> None:
    with replaced(file) as partial, partial.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [*TEXT, *NUMBERS, *ABOUT])
        writer.writeheader()
        for row in rows:
            writer.writerow(row | {name: f"{row[name]:.5g}" for name in NUMBERS if row.get(name) is not None})


def newest(folder: Path) -> dict[str, Path]:
    """The newest results file of each device: <device>-<date>.csv, or the last of that day's, as <device>-<date>-2.csv."""
    files: dict[str, tuple[str, int, Path]] = {}
    for file in folder.glob("*.csv"):
        if match := re.fullmatch(r"(.+)-(\d{4}-\d\d-\d\d)(?:-(\d+))?", file.stem):
            dated = match[2], int(match[3] or 1), file
            files[match[1]] = max(files.get(match[1], dated), dated)
    return {device: files[device][2] for device in sorted(files)}


# ---- Markdown


def line(cells: Iterable[str]) -> str:
    """Of a table."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|').replace(chr(10), ' ') for cell in cells)} |"


def head(columns: Collection[str]) -> list[str]:
    return [line(columns), "|" + "---|" * len(columns)]


def _table(rows: list[Row], keys: tuple[str, ...], cell: Callable[[Row], str]) -> Iterator[str]:
    """A line for each value of ``keys``, a column for each implementation."""
    columns = list(dict.fromkeys(row["implementation"] for row in rows))
    yield from head([*keys, *(LABELS.get(column, column) for column in columns)])
    for values in dict.fromkeys(tuple(row[key] for key in keys) for row in rows):
        found = {row["implementation"]: row for row in rows if tuple(row[key] for key in keys) == values}
        yield line([*values, *(cell(found[column]) if column in found else "" for column in columns)])


def _details(rows: list[Row]) -> Iterator[str]:
    """All that was measured of ours, of the faster where eager and compiled were timed."""
    keys, best = ("name", "what", "shape", "dtype", "batch"), {}
    for row in rows:
        if row["implementation"] in LABELS and row["p50_ms"]:
            values = tuple(row[key] for key in keys)
            best[values] = min(best.get(values, row), row, key=lambda row: row["p50_ms"])
    units = ("p20 ms", "p50 ms", "p80 ms", "images/s", "GB/s", "TFLOP/s", "of the limit", "peak MiB")
    yield from head([*keys, "ours", "timed as", *units])
    for values, row in best.items():
        numbers = [row[name] for name in ("p20_ms", "p50_ms", "p80_ms", "images_per_s", "gb_per_s", "tflop_per_s")]
        cells = [f"{number:.4g}" if number else "" for number in numbers] + [f"{row['share_of_limit']:.0%}"]
        peak = f"{row['peak_mib']:.0f}" if row["peak_mib"] else ""
        yield line([*values, row["implementation"], row["note"], *cells, peak])


def _ms(value: float) -> str:
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"


def _time(row: Row) -> str:
    if row["p50_ms"] is None:
        return row["note"].partition(":")[0]
    return _ms(row["p50_ms"]) + (f" ({row['speedup']:.1f}×)" if row["speedup"] else "")


def _throughput(row: Row) -> str:
    return f"{_time(row)}, {row['images_per_s']:.4g}/s" if row["images_per_s"] else _time(row)


def _memory(row: Row) -> str:
    return f"{row['peak_mib'] / 1024:.3g}" if row["peak_mib"] else row["note"].partition(":")[0]


def pixels(row: Row) -> int:
    height, width = map(int, row["shape"].split("x"))
    return height * width


def per_token(row: Row) -> float:
    """Nanoseconds per token of the first stage."""
    return 1e6 * row["p50_ms"] / (int(row["batch"]) * pixels(row) / 16)


def _cost(row: Row) -> str:
    return f"{per_token(row):.4g}" if row["p50_ms"] else ""


def about(rows: list[Row]) -> str:
    commits, configs = (", ".join(dict.fromkeys(row[name] for row in rows)) for name in ("commit", "configs"))  # what resuming may change
    first = rows[0]
    versions = f"torch {first['torch']}, Triton {first['triton'] or 'not installed'}"
    configs = "" if configs.startswith("none") else f", launch configurations: {configs}"
    mode = f", mode {first['mode']}" if first["mode"] else ""
    return f"{first['device']}, {versions}{configs}{mode}, commit {commits}"


def _resolution(rows: list[Row]) -> list[Row]:
    """Rows of networks measured at several sizes, by size."""
    timed = [row for row in rows if row["section"] == "network" and row["p50_ms"]]
    groups = ("what", "dtype", "implementation")
    sizes: dict[tuple[str, ...], set[str]] = {}
    for row in timed:
        sizes.setdefault(tuple(row[g] for g in groups), set()).add(row["shape"])
    return sorted((row for row in timed if len(sizes[tuple(row[g] for g in groups)]) > 1), key=pixels)


def _predicted(rows: list[Row]) -> Iterator[str]:
    """Beside what was measured, what the cost model makes of our compiled token_mix, where it knows the kernels."""
    columns = ("name", "what", "shape", "dtype", "measured", "predicted", "measured / predicted")
    found = []
    for row in rows:
        if row["name"] == "token_mix" and row["implementation"] == "compiled" and row["p50_ms"]:
            texts = [row[name] for name in ("name", "what", "shape", "dtype")]
            if ms := predicted_ms(row["shape"], row["dtype"], row["what"], row["device"], row["commit"]):
                ratio = f"{row['p50_ms'] / ms:.2f}"
                found.append(line([*texts, _ms(row["p50_ms"]), _ms(ms), ratio]))
    if found:
        yield from ("", "## Measured and predicted", "", "Ours, compiled; the prediction is bench/cost_model.py's, not a measurement.", "")
        yield from (*head(columns), *found)


def _training(rows: list[Row]) -> Iterator[str]:
    columns = ("program", "model", "shape", "dtype", "batch", "timed as", "images/s", "peak GiB", "")
    yield from head(columns)
    for row in rows:
        texts = [row[name] for name in ("what", "name", "shape", "dtype", "batch", "implementation")]
        peak = f"{row['peak_mib'] / 1024:.3g}" if row["peak_mib"] else ""
        speed = f"{row['images_per_s']:.0f}" if row["images_per_s"] else ""
        yield line([*texts, speed, peak, row["note"]])


def tables(rows: list[Row]) -> list[str]:
    """All that is in a results file."""
    operators, networks, training = ([row for row in rows if row["section"] == section] for section in ("operator", "network", "training"))
    lines = ["Medians; in brackets, how many times as fast as the published formulation.", ""]
    lines += ["A training step is forward and backward in the dtype named, without autocast and without an optimizer's step.", ""]
    lines += ["| ceiling | |", "|---|---|"]
    for row in rows:
        if row["section"] == "ceiling":
            rate = f"{row['gb_per_s']:.0f} GB/s" if row["gb_per_s"] else f"{row['tflop_per_s']:.3g} TFLOP/s"
            lines.append(line([f"{row['what']}, {row['dtype']}", rate]))
    if checked := [row for row in rows if row["section"] == "correctness"]:
        lines += ["", "## Correctness", "", *_table(checked, ("name", "what", "shape", "dtype"), lambda row: row["note"])]
    for what in dict.fromkeys(row["what"] for row in operators):
        lines += ["", f"## Operators, {what}", ""]
        group = [row for row in operators if row["what"] == what]
        lines += _table(group, ("name", "shape", "dtype"), _time)
        if any(row["peak_mib"] for row in group):
            lines += ["", "Peak memory, GiB:", "", *_table(group, ("name", "shape", "dtype"), _memory)]
        if any(row["kept_mib"] for row in group):
            lines += ["", "Kept for the backward besides the inputs, MiB:", ""]
            lines += _table(group, ("name", "shape", "dtype"), lambda row: f"{row['kept_mib']:.2g}" if row["p50_ms"] else "")
    for what in dict.fromkeys(row["what"] for row in networks):
        group = [row for row in networks if row["what"] == what]
        lines += ["", f"## {group[0]['name']}, {what}", ""]
        lines += _table(group, ("shape", "dtype", "batch"), _throughput)
        if any(row["peak_mib"] for row in group):
            lines += ["", "Peak memory, GiB:", "", *_table(group, ("shape", "dtype", "batch"), _memory)]
        if several := [row for row in _resolution(rows) if row["what"] == what]:
            lines += ["", "Cost against resolution, ns per token of stage 1:", "", *_table(several, ("shape", "dtype", "batch"), _cost)]
    lines += _predicted(operators)
    if training:
        lines += ["", "## Training programs, on generated images", "", *_training(training)]
    lines += ["", "## Ours in detail", "", *_details([*operators, *networks])]
    if failed := [row for row in rows if row["section"] == "failed"]:
        lines += ["", "## Failed", "", *(f"- {row['name']}: {row['note']}" for row in failed)]
    lines += ["", "## Targets", "", *head(["target", "measured", "met"])]
    return lines + [line(texts) for texts in judge(rows)]


def markdown(rows: list[Row], title: str) -> str:
    return "\n".join([f"# {title}", "", about(rows), "", *tables(rows)]) + "\n"


# ---- plots


def charts_of(rows: list[Row], number: str) -> dict[str, list[Row]]:
    """Ours of what has ``number``, by what was timed."""
    charts: dict[str, list[Row]] = {}
    for row in rows:
        if row[number] and row["implementation"] in LABELS:
            charts.setdefault(row["what"], []).append(row)
    return charts


def plots(rows: list[Row], stem: Path) -> list[Path]:
    """Speed-ups, share of the limit, and cost against resolution, where there is something to show."""
    try:
        import matplotlib
    except ImportError:  # the benchmark itself does without
        return []
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    written = []
    for name, number, unit in (("speedup", "speedup", "times as fast as published"), ("limit", "share_of_limit", "share of the limit")):
        if not (charts := charts_of(rows, number)):
            continue
        heights = [len(group) + 5 for group in charts.values()]  # with the title and the axis below
        size = dict(figsize=(9, 0.2 * sum(heights)), height_ratios=heights)
        figure, axes = plt.subplots(len(charts), squeeze=False, layout="constrained", **size)
        for axis, (what, group) in zip(axes[:, 0], charts.items(), strict=True):
            labels = [f"{row['name']} {row['shape']} {row['dtype']} {row['implementation']}" for row in group]
            axis.barh(range(len(group)), [row[number] for row in group])
            axis.set(yticks=range(len(group)), yticklabels=labels, xlabel=unit, title=what)
            axis.invert_yaxis()
        written.append(stem.with_name(f"{stem.name}-{name}.png"))
        figure.savefig(written[-1])
        plt.close(figure)
    if several := _resolution(rows):
        figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
        for label in dict.fromkeys((row["what"], row["dtype"], row["implementation"]) for row in several):
            line = [row for row in several if (row["what"], row["dtype"], row["implementation"]) == label]
            axis.plot([pixels(row) / 16 for row in line], [per_token(row) for row in line], "o-", label=", ".join(label))
        axis.set(xscale="log", xlabel="tokens of stage 1 in an image", ylabel="ns per token", title="cost against resolution")
        axis.set_ylim(0, 1.1 * max(map(per_token, several)))
        axis.legend(fontsize="small")
        written.append(stem.with_name(f"{stem.name}-resolution.png"))
        figure.savefig(written[-1])
        plt.close(figure)
    return written


def render(file: Path) -> list[Path]:
    """Writes the tables and plots beside ``file``."""
    rows = read(file)
    text = file.with_suffix(".md")
    text.write_text(markdown(rows, file.stem))
    return [text, *plots(rows, file.with_suffix(""))]


# ---- the README


def _time_and_memory(row: Row) -> str:
    return _time(row) + (f", {_memory(row)} GiB" if row["peak_mib"] else "")


def block(files: Iterable[Path]) -> str:
    """What stands between the README's markers: networks at 224 x 224, and what was measured on a GPU besides."""
    parts = []
    for file in files:
        rows, date = read(file), re.findall(r"\d{4}-\d\d-\d\d", file.stem)[0]

        def title(what: str, rows: list[Row], date: str = date) -> list[str]:
            batches = {row["batch"] for row in rows}
            batch = f", batch {batches.pop()}" if len(batches) == 1 else ""
            return ["", f"{what}{batch}, on {about(rows)}, {date}:", ""]

        if networks := [row for row in rows if row["section"] == "network" and row["shape"] == SQUARE]:
            name = networks[0]["name"].replace("atmnet_t", "ATMNet-T")
            parts += [*title(f"{name}, {SQUARE.replace('x', ' × ')}", networks), *_table(networks, ("what", "dtype"), _time)]
        if "threads" in rows[0]["device"]:
            continue
        if mixers := [row for row in rows if row["section"] == "operator" and row["name"] == "token_mix"]:
            parts += [*title("`token_mix`, time and peak memory", mixers)]
            parts += _table([row for row in mixers if row["implementation"] != "eager"], ("shape", "what", "dtype"), _time_and_memory)
        if training := [row for row in rows if row["section"] == "training"]:
            parts += ["", f"Training programs on generated images, on {about(training)}, {date}:", "", *_training(training)]
    return "\n".join(parts[1:]) or "Not measured yet."


def with_block(readme: str, text: str) -> str:
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?")
    args = parser.parse_args()
    if args.file:
        print(*render(args.file), sep="\n")
    else:
        README.write_text(with_block(README.read_text(), block(newest(RESULTS).values())))


if __name__ == "__main__":
    main()
