"""How cost grows: SAC's compiled update with seeds and with width, the whole loop with the replay ratio.

    python -m benchmarks.growth [blocks=5] [seconds=0.6] [keep=true]

With `keep` the table goes to benchmarks/RESULTS.md, and its log-log plot to benchmarks/results/growth.png.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks import cases, peers
from benchmarks.loops import Loop
from benchmarks.speed import RESULTS, machine, markdown
from benchmarks.timing import interleaved

SEEDS, WIDTHS, RATIOS = (1, 2, 4, 8, 16), (256, 512, 1024), (1, 4, 32)
Curve = dict[int, float]  # what grows -> milliseconds


def measured(blocks: int, seconds: float) -> dict[str, Curve]:
    """Milliseconds per update of all seeds, per update, and per agent step."""
    seeds = {n: cases.update_of(cases.sac(), n) for n in SEEDS}
    widths = {w: cases.update_of(cases.sac(w)) for w in WIDTHS[1:]} | {WIDTHS[0]: seeds[1]}
    still = ["agent=sac", f"env={peers.register()}", "warmup=300"]
    loops = {ratio: Loop([*still, f"replay_ratio={ratio}"], max(4, 64 // ratio)) for ratio in RATIOS}
    for loop in loops.values():
        loop.warm_up()
    found = interleaved(
        {f"seeds {n}": run for n, run in seeds.items()}
        | {f"width {w}": run for w, run in widths.items()}
        | {f"replay ratio {r}": loop.block for r, loop in loops.items()},
        blocks,
        seconds,
    )
    return {
        "seeds": {n: found[f"seeds {n}"].ms for n in SEEDS},
        "width": {w: found[f"width {w}"].ms for w in WIDTHS},
        "replay ratio": {r: found[f"replay ratio {r}"].ms / loops[r].turns for r in RATIOS},
    }


def table(curves: dict[str, Curve]) -> list[list[str]]:
    rows = [["what grows", "to", "ms", "times the first", "growth of cost / growth"]]
    for name, curve in curves.items():
        (low, base), *_ = curve.items()
        for value, ms in curve.items():
            growth = f"{ms / base / (value / low):.2f}"
            rows.append([name, str(value), f"{ms:.2f}", f"{ms / base:.2f}", growth])
    return rows


def plot(curves: dict[str, Curve], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 4))
    for name, curve in curves.items():
        first = next(iter(curve))
        axes.loglog([value / first for value in curve], [ms / curve[first] for ms in curve.values()], "o-", label=name)
    axes.loglog([1, 32], [1, 32], ":", color="gray", label="in proportion")
    axes.set(xlabel="times as many, or as wide", ylabel="times as long")
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main(argv: list[str]) -> int:
    given = dict(argument.partition("=")[::2] for argument in argv)
    curves = measured(int(given.get("blocks", 5)), float(given.get("seconds", 0.6)))
    text = f"## {machine()}\n\n    python -m benchmarks.growth {' '.join(argv)}\n\n{__doc__.splitlines()[0]}\n\n"
    text += markdown(table(curves)) + "\n"
    print(text)
    if given.get("keep") == "true":
        plot(curves, RESULTS.parent / "results" / "growth.png")
        RESULTS.write_text(RESULTS.read_text() + "\n" + text + "\n![growth of cost](results/growth.png)\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
