"""Can a small size answer for a large one? What a cascade saves on the built-in data, and what it costs.

Trains at two sizes (or takes a finished RUN), chooses sizes and confidence on val, and reports on test. The images are
96 px here: at half of that their textures can still be seen, as with photos at 112 of 224 px; of those at 64 px, which
the demo draws, a half shows little (82% against 98.5%), and no confidence makes up for what cannot be seen.
"""

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TRAIN = ("--synthetic-size", "96", "--scales", "48,96", "--epochs", "10", "--seed", "0", "--log-with", "none")
MAX_LOSS = 0.0  # points of top-1, on val; with more, 48 px alone is cheapest and nothing goes up


def call(script: str, *words: str) -> None:
    subprocess.run([sys.executable, str(ROOT / "recipes" / script), *words], check=True)


def evaluated(run: Path, sizes: tuple[int, ...], max_loss: float) -> dict[str, Any]:
    """The cascade through these sizes, as recipes/evaluate.py reports it."""
    folder = run / "cascade" / "-".join(map(str, sizes))
    words = ["--cascade", ",".join(map(str, sizes)), "--max-loss", str(max_loss), "--output-dir", str(folder)]
    call("evaluate.py", str(run), "--scales", ",".join(map(str, sizes)), *words)
    return json.loads((folder / "evaluation.json").read_text())["cascade"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/cascade"), help="trained there if it is new")
    parser.add_argument("--max-loss", type=float, default=MAX_LOSS, help="points of top-1 that may be lost on val")
    options = parser.parse_args()
    if not (options.run / "summary.json").exists():
        call("multiscale.py", *TRAIN, "--output-dir", str(options.run))
    summary = json.loads((options.run / "summary.json").read_text())
    sizes = sorted(int(name.removesuffix("px")) for name in summary["test"])
    smaller = [part for count in range(1, len(sizes)) for part in itertools.combinations(sizes[:-1], count)]
    found = {(*part, sizes[-1]): evaluated(options.run, (*part, sizes[-1]), options.max_loss) for part in smaller}
    best = max(found, key=lambda ladder: found[ladder]["splits"]["val"]["times_less_compute"])
    print("| sizes, px | confidence | val: compute, top-1 | test: compute, top-1 | chosen |")
    print("|---|---|---|---|---|")
    for ladder, cascade in found.items():
        cells = [
            f"{split['times_less_compute']:.2f}x less, {split['top1'] - split['alone_top1']:+.2f} points"
            for split in (cascade["splits"][name] for name in ("val", "test"))
        ]
        name = ", ".join(map(str, ladder))
        print(f"| {name} | {cascade['confidence']:g} | {' | '.join(cells)} | {'yes' if ladder == best else ''} |")


if __name__ == "__main__":
    main()
