"""What the scales of a model could teach each other, epoch by epoch of a simultaneous run without consistency.

python benchmarks/teaching.py [--share 0.5] [--seed 0]          prints Markdown; about 5 minutes on two cores

For each pair of a larger scale (the teacher) and a smaller one (the student), on validation images: how often the
teacher is right, how often it is wrong where the student is right, and the cosine between the gradients of the
student's two losses, labels and KL to the teacher, in the weights that the scales share. Below 0 the two losses pull
against each other. The model is in evaluation mode.
"""

import argparse
import tempfile
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from strategies import flags_of, train
from strategies_cases import ARMS, Arm, tasks
from torch import Tensor

from toolkit.data.images.views import views
from toolkit.data.loading.reader import ImageReader
from toolkit.data.sources.splits import open_splits
from toolkit.models.multiview import copy_state, state_tensors
from toolkit.strategies.consistency import Teaching
from toolkit.tools.loaded_run import load_run

IMAGES = 1280
TASK = "characters"


def gradient(loss: Tensor, weights: list[Tensor]) -> Tensor:
    found = torch.autograd.grad(loss, weights, retain_graph=True)
    return torch.cat([part.flatten() for part in found])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=0.0, help="consistency share of the run (default: 0)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    arm = Arm(("--consistency-share", str(options.share))) if options.share else ARMS["simultaneous"]
    with tempfile.TemporaryDirectory() as home:
        command = flags_of(tasks()[TASK], arm, options.seed, Path(home, "run"))
        command[command.index("--keep") + 1] = "1000"
        train(command, Path(home))
        loaded = load_run(Path(home, "run"))
        val = open_splits(loaded.settings, loaded.strategy.selection().sizes[-1]).val
        reader, ids = ImageReader(val), range(min(IMAGES, len(val)))
        pixels = torch.from_numpy(np.stack([reader.whole(i) for i in ids])).permute(0, 3, 1, 2)
        labels = torch.from_numpy(val.labels[: len(ids)].astype(np.int64))
        task, sizes = loaded.bound_task, loaded.strategy.norm().scales
        images = views(pixels, sizes, loaded.mean, loaded.std)
        normalizing = {name for name, _ in loaded.model.named_parameters() if ".norms." in name}
        shared = [weight for name, weight in loaded.model.named_parameters() if name not in normalizing]
        pairs = [*combinations(range(len(sizes)), 2)]
        named = [f"{sizes[large]} to {sizes[small]} px" for small, large in pairs]
        print("| epoch | " + " | ".join(f"{name}: right, misleads, cosine" for name in named) + " |")
        print("|---|" + "---|" * len(pairs))
        for epoch, folder in enumerate(sorted(Path(home, "run", "checkpoints").iterdir())):
            state = load_file(folder / "model.safetensors")
            copy_state({name: state[name] for name in state_tensors(loaded.model)}, loaded.model)
            logits = loaded.model(*images)
            right = [scale.argmax(1) == labels for scale in logits]
            cells = []
            for small, large in pairs:
                misled = (right[small] & ~right[large]).float().mean().item()
                taught = Teaching("kl").disagreement(logits[large].detach(), logits[small], labels, task)
                both = [gradient(loss, shared) for loss in (task.loss(logits[small], labels), taught)]
                cosine = torch.nn.functional.cosine_similarity(*both, dim=0).item()
                cells.append(f"{right[large].float().mean().item():.0%}, {misled:.1%}, {cosine:+.2f}")
            print(f"| {epoch} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
