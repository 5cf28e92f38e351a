"""Reports of the benchmark's results: the targets, the tables, and the README's."""

from __future__ import annotations

import re

import figures
import networks
import pytest
import report
import run
import targets


def gpu_rows(ours: float, memory: float = 1) -> list[targets.Row]:
    """Rows as a GPU's results file would have them: everything takes 1 ms, and ours ``ours``."""
    blank = dict.fromkeys((*report.TEXT, *report.ABOUT), "") | dict.fromkeys(report.NUMBERS)
    rows, names = [], {"published": 1.0, "plain, compiled": 1.0, "eager": 1.0, "compiled": ours}
    for shape in ("128x56x56x64/G32", "128x28x28x128/G32", "128x14x14x320/G80", "128x7x7x512/G64"):
        for what in ("forward", "forward+backward"):
            of = dict(section="operator", name="token_mix", what=what, shape=shape, dtype="bfloat16", batch="128")
            rows += [blank | of | dict(implementation=name, p50_ms=ms, share_of_limit=0.05 / ms) for name, ms in names.items()]
    for shape, batch in (("800x1280", 6), ("224x224", 128), ("384x384", 48), ("512x2048", 6)):
        for what in ("inference", "training step"):
            of = dict(section="network", what=what, shape=shape, dtype="bfloat16", batch=str(batch), name="atmnet_t", peak_mib=2)
            for name, ms in (names | dict.fromkeys(networks.OTHERS, 1.0)).items():
                rows.append(blank | of | dict(implementation=name, p50_ms=ms, images_per_s=1e3 * batch / ms, share_of_limit=0.05 / ms))
                rows[-1]["peak_mib"] = memory if name in report.LABELS else 2
    return [*rows, blank | dict(section="first step", note="0")]


def test_gpu_targets():
    judged = targets.judge(gpu_rows(ours=0.05))
    assert len(judged) == 21 and [met for *_, met in judged] == ["yes"] * 21
    met = [met for *_, met in targets.judge(gpu_rows(ours=0.5, memory=2))]
    no, yes = "**no**", "yes"
    assert met == [yes, no, no, yes, no, no, yes, no, no, no, *[yes] * 11]
    assert "not measured" in [met for *_, met in targets.judge(gpu_rows(ours=0.5)[1:])]
    assert "published" in report.markdown(gpu_rows(ours=0.05), "gpu")


def test_one_slow_stage_or_size_misses_its_target():
    rows = gpu_rows(ours=0.05)
    for row in rows:
        slow = row["what"] in ("forward", "inference") and row["shape"] in ("128x7x7x512/G64", "512x2048")
        if slow and row["implementation"] == "compiled":
            row["p50_ms"], row["images_per_s"] = 1.2, 1
    missed = [target for target, _, met in targets.judge(rows) if met == "**no**"]
    assert missed == [
        "token_mix, every row: at most 1.03× the time of plain PyTorch, compiled",
        "token_mix forward, bf16, batch 128, stages 3 and 4, against plain, compiled: at least 1.3×",
        "inference, bfloat16, compiled, tokens/s at 512x2048 against 224x224: at least 0.9×",
    ]


def test_block_of_the_page(tmp_path):
    """Figures are of 224 x 224, in whichever order that was measured."""
    report.write(tmp_path / "gpu-2026-01-01.csv", gpu_rows(ours=0.05))
    block = report.block(report.newest(tmp_path).values())
    assert "ATMNet-T, 224 × 224, batch 128, on " in block and "| 800" not in block
    assert "| what | dtype | published | plain, compiled | ours, eager | ours, compiled | Swin-T, compiled |" in block
    assert "| training step | bfloat16 | 1 ms |" in block
    page = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    assert report.with_block(page, block) == page.replace("old", block)


def test_block_of_several_batches(tmp_path):
    rows = gpu_rows(ours=0.05)
    other = [row | dict(shape="6x200x320x64/G32", batch="6") for row in rows if row["shape"] == "128x56x56x64/G32"]
    report.write(tmp_path / "gpu-2026-01-01.csv", [*rows, *other])
    files = report.newest(tmp_path).values()
    assert "`token_mix`, time, on " in report.block(files)
    assert "6x200" not in report.short_block(files)


def test_missed_targets_stand_on_the_page(tmp_path):
    report.write(tmp_path / "gpu-2026-01-01.csv", gpu_rows(ours=0.5, memory=2))
    block = report.block(report.newest(tmp_path).values())
    assert "Targets: 14 met, 7 missed, 0 not measured." in block
    assert "- token_mix forward, bf16, batch 128, stages 1 and 2, against published: at least 17×; measured: 2.00× (2.00×, 2.00×)." in block


def test_the_readme_shows_a_gpu_if_there_is_one(tmp_path):
    about = dict(torch="2.11", triton="3.6", commit="abc")
    assert report.short_block([]) == "Not measured yet."
    for name, device in (("gpu-9-2026-01-01", "GPU 9"), ("gpu-8-2025-01-01", "GPU 8"), ("cpu-2026-02-02", "x86_64, 2 threads")):
        report.write(tmp_path / f"{name}.csv", [row | about | dict(device=device) for row in gpu_rows(ours=0.05)])
    block = report.short_block(report.newest(tmp_path).values())
    assert block.startswith("![token_mix, bfloat16, batch 128, on GPU 9, 2026-01-01, by stage: ") and "speed-gpu-9.png" in block
    assert "| stage 3, 128x14x14x320/G80, forward | 1 ms | 1 ms | 0.05 ms | 0.05 ms |" in block
    assert "| whole atmnet_t, inference, bfloat16 | 1 ms | 1 ms | 0.05 ms |  |" in block and "GPU 8" not in block and "threads" not in block


def test_the_plot_of_what_is_compared(tmp_path):
    rows = gpu_rows(ours=0.05)
    assert {what: list(by) for what, by in figures.stages(rows).items()} == {what: [1, 2, 3, 4] for what in ("forward", "forward+backward")}
    partly = [row for row in rows if row["shape"] not in ("128x7x7x512/G64", "128x14x14x320/G80") or row["implementation"] != "published"]
    assert [*figures.stages(partly)["forward"]] == [1, 2]
    assert figures.draw_comparison(partly, tmp_path / "plot.png", "title") and (tmp_path / "plot.png").stat().st_size > 10_000
    assert not figures.draw_comparison(rows[-1:], tmp_path / "no.png", "title") and not (tmp_path / "no.png").exists()


def test_every_results_file_is_explained():
    text = (report.RESULTS / "README.md").read_text()
    assert [file.name for file in report.RESULTS.glob("*.csv") if f"| `{file.name}` |" not in text] == []
    assert [name for name in re.findall(r"^\| `(.*?)` \|", text, re.M) if not (report.RESULTS / name).exists()] == []


def test_newest(tmp_path):
    for name in ("cpu-2026-01-31", "cpu-2026-02-01", "cpu-2026-02-01-2", "cpu-2026-02-01-10", "gpu-9-2026-01-01", "machine-code"):
        (tmp_path / f"{name}.csv").touch()
    assert report.newest(tmp_path) == {"cpu": tmp_path / "cpu-2026-02-01-10.csv", "gpu-9": tmp_path / "gpu-9-2026-01-01.csv"}
    assert run.results_file(tmp_path, "cpu", resume=True).name == "cpu-2026-02-01-10.csv"
    assert not run.results_file(tmp_path, "cpu", resume=False).exists()


def test_block_of_a_gpu(tmp_path):
    """Says what was measured, on what, and when; in eager mode too, but that does not fit in."""
    about = dict(device="GPU 9", torch="2.11", triton="3.6", commit="abc", mode="default", configs="none")
    training = dict(
        section="training", what="imagenet.py, 30 updates", name="atmnet_b", batch="128", images_per_s=900, note="data wait 3 %"
    )
    blank = dict.fromkeys((*report.TEXT, *report.ABOUT), "") | dict.fromkeys(report.NUMBERS)
    report.write(tmp_path / "gpu-9-2026-01-02.csv", [row | about for row in [*gpu_rows(ours=0.05), blank | training]])
    block = report.block(report.newest(tmp_path).values())
    assert block.count("on GPU 9, torch 2.11, Triton 3.6, mode default, commit abc, 2026-01-02:") == 3
    assert "| 128x14x14x320/G80 | forward | bfloat16 | 1 ms | 1 ms | 0.05 ms |" in block
    assert "| imagenet.py, 30 updates | atmnet_b |" in block


PAGES = [report.README, report.PAGE]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_time_stands_there_by_hand(page):
    by_hand = report.with_block(page.read_text(), "")
    assert not re.findall(r"\d\s?(?:ms|µs|GiB|TFLOP/s|GB/s)\b", by_hand)


@pytest.mark.parametrize("page,block", [(report.README, report.short_block), (report.PAGE, report.block)])
def test_pages_have_the_newest_figures(page, block):
    text = page.read_text()
    assert report.with_block(text, block(report.newest(report.RESULTS).values())) == text, "run: python bench/report.py"
    for name in re.findall(r"assets/([\w.-]+)", text):
        assert (report.FIGURES / name).is_file(), name


def test_the_readme_is_short():
    assert len(report.README.read_text().split()) <= 900
