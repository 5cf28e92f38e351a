"""Reports of a results file: Markdown tables, plots, and the figures of the README and of docs/speed.md.

python bench/report.py             these figures, from the newest results file of each device
python bench/report.py FILE.csv    FILE.md and FILE-*.png
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from cost_model import predicted_ms
from figures import COMPARED, LABELS, draw_comparison, limit_ms, per_token, plots, resolution, stages
from targets import SQUARE, Row, judge

from atm_triton.files import replaced

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
README, PAGE = ROOT / "README.md", ROOT / "docs/speed.md"
FIGURES = ROOT / "docs/assets"
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


def read(file: Path) -> list[Row]:
    """Read a results file; older ones lack some columns."""
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
    """Line of a table."""
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
    """Rows of all that was measured of ours, of the faster where eager and compiled were timed."""
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


def _cost(row: Row) -> str:
    return f"{per_token(row):.4g}" if row["p50_ms"] else ""


def about(rows: list[Row]) -> str:
    commits, configs = (", ".join(dict.fromkeys(row[name] for row in rows)) for name in ("commit", "configs"))  # what resuming may change
    first = rows[0]
    versions = f"torch {first['torch']}, Triton {first['triton'] or 'not installed'}"
    configs = "" if configs.startswith("none") else f", launch configurations: {configs}"
    mode = f", mode {first['mode']}" if first["mode"] else ""
    return f"{first['device']}, {versions}{configs}{mode}, commit {commits}"


def _predicted(rows: list[Row]) -> Iterator[str]:
    """Yield, beside what was measured, what the cost model makes of our compiled token_mix, where it knows the kernels."""
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
    """Tables of all that is in a results file."""
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
        if several := [row for row in resolution(rows) if row["what"] == what]:
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


def render(file: Path) -> list[Path]:
    """Writes the tables and plots beside ``file``."""
    rows = read(file)
    text = file.with_suffix(".md")
    text.write_text(markdown(rows, file.stem))
    return [text, *plots(rows, file.with_suffix(""))]


# ---- the README and the documentation's page


def _time_and_memory(row: Row) -> str:
    return _time(row) + (f", {_memory(row)} GiB" if row["peak_mib"] else "")


def date_of(file: Path) -> str:
    return re.findall(r"\d{4}-\d\d-\d\d", file.stem)[0]


def figure_of(file: Path) -> Path:
    """The plot of the newest results file of a device, which README and documentation show."""
    return FIGURES / f"speed-{file.stem.partition('-' + date_of(file))[0]}.png"


def is_cpu(rows: list[Row]) -> bool:
    return "threads" in rows[0]["device"]


def leading(files: Iterable[Path]) -> Path | None:
    """The results file that the README shows: the newest of a GPU, else of a CPU."""
    return max(files, key=lambda file: (not is_cpu(read(file)), date_of(file)), default=None)


def _title(what: str, rows: list[Row], date: str) -> list[str]:
    batches = {row["batch"] for row in rows}
    batch = f", batch {batches.pop()}" if len(batches) == 1 else ""
    return ["", f"{what}{batch}, on {about(rows)}, {date}:", ""]


def _networks(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["section"] == "network" and row["shape"] == SQUARE]


def headline(rows: list[Row], date: str) -> str:
    """The title of the plot, and what the README says of its table."""
    first = next(iter(next(iter(stages(rows).values())).values()))["compiled"]
    return f"token_mix, {first['dtype']}, batch {first['batch']}, on {first['device']}, {date}"


def short_block(files: Iterable[Path]) -> str:
    """Text between the README's markers: one plot and one table, of one device."""
    file = leading(files)
    rows = read(file) if file else []
    if not file or not (panels := stages(rows)):
        return "Not measured yet."
    title = headline(rows, date_of(file))
    lines = [f"![{title}, by stage: times as fast as the published formulation](docs/assets/{figure_of(file).name})", ""]
    first, networks = rows[0], _networks(rows)
    lines += [
        f"{title.replace('token_mix', '`token_mix`')}, torch {first['torch']}, Triton {first['triton']}, commit {first['commit']}:",
        "",
    ]
    lines += head(["", *COMPARED.values(), "limit"])
    for what, by in panels.items():
        for stage, of in by.items():
            texts = [_time(of[name]) for name in COMPARED]
            lines.append(line([f"stage {stage}, {of['compiled']['shape']}, {what}", *texts, _ms(limit_ms(of["compiled"]))]))
    for what, dtype in dict.fromkeys((row["what"], row["dtype"]) for row in networks):
        of = {row["implementation"]: row for row in networks if (row["what"], row["dtype"]) == (what, dtype)}
        if "compiled" in of:
            cells = [_time(of[name]) if name in of else "" for name in COMPARED]
            lines.append(line([f"whole {of['compiled']['name']}, {what}, {dtype}", *cells, ""]))
    return "\n".join(lines)


def block(files: Iterable[Path]) -> str:
    """Text between the markers of docs/speed.md: of each device plot, networks at 224 x 224, token_mix, training, missed targets."""
    parts = []
    for file in sorted(files, key=lambda file: is_cpu(read(file))):
        rows, date = read(file), date_of(file)
        parts += ["", f"### {rows[0]['device']}", ""]
        if stages(rows):
            parts += [f"![{headline(rows, date)}](assets/{figure_of(file).name})"]
        if networks := _networks(rows):
            name = networks[0]["name"].replace("atmnet_t", "ATMNet-T")
            parts += [*_title(f"{name}, {SQUARE.replace('x', ' × ')}", networks, date), *_table(networks, ("what", "dtype"), _time)]
        if mixers := [row for row in rows if row["section"] == "operator" and row["name"] == "token_mix"]:
            parts += _title("`token_mix`, time" + (" and peak memory" if any(row["peak_mib"] for row in mixers) else ""), mixers, date)
            parts += _table([row for row in mixers if row["implementation"] != "eager"], ("shape", "what", "dtype"), _time_and_memory)
        if training := [row for row in rows if row["section"] == "training"]:
            parts += ["", f"Training programs on generated images, on {about(training)}, {date}:", "", *_training(training)]
        judged = judge(rows)
        missed = [f"- {target}; measured: {measured}." for target, measured, met in judged if met == "**no**"]
        counts = [sum(met == word for *_, met in judged) for word in ("yes", "**no**", "not measured")]
        parts += ["", f"Targets: {counts[0]} met, {counts[1]} missed, {counts[2]} not measured."]
        parts += ["", "Missed:", "", *missed] if missed else []
    return "\n".join(parts[1:]) or "Not measured yet."


def with_block(page: str, text: str) -> str:
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def write_pages() -> None:
    """Write the plots of the newest results, and the figures of README and documentation."""
    files = list(newest(RESULTS).values())
    for file in files:
        rows = read(file)
        if stages(rows) and not draw_comparison(rows, figure_of(file), headline(rows, date_of(file))):
            print(f"{figure_of(file)} is as it was: drawing needs Matplotlib")
    for page, text in ((README, short_block(files)), (PAGE, block(files))):
        page.write_text(with_block(page.read_text(), text))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?")
    args = parser.parse_args()
    if args.file:
        print(*render(args.file), sep="\n")
    else:
        write_pages()


if __name__ == "__main__":
    main()
