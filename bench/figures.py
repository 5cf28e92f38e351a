"""Plots of a results file, and the measures that they share with its tables."""

from __future__ import annotations

import re
from pathlib import Path

from targets import CHANNELS, Row

LABELS = {"eager": "ours, eager", "compiled": "ours, compiled"}
COMPARED = {"published": "published", "plain, compiled": "plain PyTorch, compiled", "compiled": LABELS["compiled"]}
STAGES = {(56 >> stage, 56 >> stage, C): stage + 1 for stage, C in enumerate(CHANNELS)}  # by height, width and channels


# ---- measures


def pixels(row: Row) -> int:
    height, width = map(int, row["shape"].split("x"))
    return height * width


def per_token(row: Row) -> float:
    """Nanoseconds per token of the first stage."""
    return 1e6 * row["p50_ms"] / (int(row["batch"]) * pixels(row) / 16)


def resolution(rows: list[Row]) -> list[Row]:
    """Rows of networks measured at several sizes, by size."""
    timed = [row for row in rows if row["section"] == "network" and row["p50_ms"]]
    groups = ("what", "dtype", "implementation")
    sizes: dict[tuple[str, ...], set[str]] = {}
    for row in timed:
        sizes.setdefault(tuple(row[g] for g in groups), set()).add(row["shape"])
    return sorted((row for row in timed if len(sizes[tuple(row[g] for g in groups)]) > 1), key=pixels)


def limit_ms(row: Row) -> float:
    return row["share_of_limit"] * row["p50_ms"]


def stages(rows: list[Row]) -> dict[str, dict[int, dict[str, Row]]]:
    """Rows of token_mix at the stages of ATMNet-T for 224 x 224, in its first dtype: by what was timed, stage and implementation."""
    found: dict[str, dict[int, dict[str, Row]]] = {}
    mixers = [row for row in rows if row["section"] == "operator" and row["name"] == "token_mix" and row["p50_ms"]]
    for row in mixers:
        _, *tokens, _ = map(int, re.split("x|/G", row["shape"]))
        if row["dtype"] == mixers[0]["dtype"] and row["implementation"] in COMPARED and (stage := STAGES.get(tuple(tokens))):
            found.setdefault(row["what"], {}).setdefault(stage, {})[row["implementation"]] = row
    whole = {what: {stage: of for stage, of in sorted(by.items()) if len(of) == len(COMPARED)} for what, by in found.items()}
    return {what: by for what, by in whole.items() if by}


# ---- plots


def charts_of(rows: list[Row], number: str) -> dict[str, list[Row]]:
    """Rows of ours that have ``number``, by what was timed."""
    charts: dict[str, list[Row]] = {}
    for row in rows:
        if row[number] and row["implementation"] in LABELS:
            charts.setdefault(row["what"], []).append(row)
    return charts


def plots(rows: list[Row], stem: Path) -> list[Path]:
    """Draw speed-ups, share of the limit, and cost against resolution, where there is something to show."""
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
    if several := resolution(rows):
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


def draw_comparison(rows: list[Row], file: Path, title: str) -> bool:
    """Draw how many times as fast as the published formulation token_mix is at each stage, and what the limit allows.

    Returns:
        Whether it was drawn: there must be such rows, and Matplotlib.
    """
    panels = stages(rows)
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
    except ImportError:
        return False
    if not panels:
        return False
    figure = Figure(figsize=(max(4.6, 1.4 * max(map(len, panels.values()))) * len(panels), 4.6), layout="constrained")
    figure.suptitle(title, fontsize=11)
    colours = dict(zip(COMPARED, ("#b8b8b8", "#7f9fc9", "#c8452f"), strict=True))
    top = 1.0
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (what, by) in zip(axes, panels.items(), strict=True):
        for place, of in enumerate(by.values()):
            published = of["published"]["p50_ms"]
            for offset, name in zip((-0.3, 0, 0.3), COMPARED, strict=True):
                times = published / of[name]["p50_ms"]
                axis.bar(place + offset, times, 0.28, color=colours[name], label=COMPARED[name] if not place else None, zorder=2)
                bold = "bold" if name == "compiled" else "normal"
                axis.annotate(
                    f"{times:.1f}×", (place + offset, times), (0, 2), textcoords="offset points", ha="center", fontsize=7.5, weight=bold
                )
            limit = published / limit_ms(of["compiled"])
            axis.plot([place - 0.42, place + 0.42], [limit, limit], color="black", lw=1.4, label="limit" if not place else None)
            axis.annotate(
                f"{limit:.{0 if limit >= 10 else 1}f}×", (place, limit), (0, 3), textcoords="offset points", ha="center", fontsize=8
            )
            top = max(top, limit)
        axis.axhline(1, color="black", lw=0.8, ls=":", zorder=1)
        axis.set(yscale="log", title=what, xticks=range(len(by)))
        sizes = ["×".join(re.split("x|/G", of["compiled"]["shape"])[1:4]) for of in by.values()]
        took = [f"{of['published']['p50_ms']:.3g} ms" for of in by.values()]
        axis.set_xticklabels([f"stage {stage}\n{size}\n1× = {ms}" for stage, size, ms in zip(by, sizes, took, strict=True)], fontsize=8.5)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("times as fast as published (log scale)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    axis = axes[0]
    axis.set_ylim(0.6, 1.5 * top)
    axis.yaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 50, 100]))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    figure.savefig(file, dpi=130)
    return True
