"""Training speed by how OpenMP's waiting threads behave, on idle cores and beside other work; images/s.

python benchmarks/busy_cores.py [--rounds 3]                                         about 5 minutes on two idle cores

Each measurement is a process of its own that trains on random images, two threads on two cores. Beside it runs either
nothing, or one busy process for each core. The policies take turns, so that a machine that changes its speed treats
them alike; of the rounds the median counts. Losses are the same under every policy.
"""

import argparse
import os
import statistics
import subprocess
import sys

MODELS = {"test_resnet": (64, 64), "resnet18": (64, 32)}  # image size in px, batch size
POLICIES: dict[str, dict[str, str]] = {
    "torch's default": {},
    "spin 1,000 times": {"GOMP_SPINCOUNT": "1000"},
    "PASSIVE (recipes)": {"OMP_WAIT_POLICY": "PASSIVE"},
}
CHOSEN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
TRAIN = """
import sys, time
import timm, torch
arch, size, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.manual_seed(0)
model = timm.create_model(arch, num_classes=10).to(memory_format=torch.channels_last)
optimizer = torch.optim.AdamW(model.parameters())
images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
labels = torch.arange(batch) % 10
def step():
    loss = torch.nn.functional.cross_entropy(model(images), labels)
    loss.backward(); optimizer.step(); optimizer.zero_grad()
    return loss
for _ in range(3): loss = step()
started, steps = time.perf_counter(), 0
while steps < 5 or time.perf_counter() - started < 5: step(); steps += 1
print(batch * steps / (time.perf_counter() - started), loss.item())
"""


def measure(arch: str, policy: dict[str, str]) -> tuple[float, float]:
    """Images/s of a process, and the loss after its first steps."""
    kept = {name: value for name, value in os.environ.items() if name not in CHOSEN}
    words = [sys.executable, "-c", TRAIN, arch, *map(str, MODELS[arch])]
    done = subprocess.run(words, env={**kept, **policy}, capture_output=True, text=True, check=True)
    speed, loss = map(float, done.stdout.split())
    return speed, loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    print("| model | beside it | " + " | ".join(POLICIES) + " | the last over the first |")
    print("|---|---|" + "---|" * (len(POLICIES) + 1))
    for arch in MODELS:
        losses = set()
        for beside, count in {"nothing": 0, "a busy process per core": len(os.sched_getaffinity(0))}.items():
            busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
            try:
                speeds: dict[str, list[float]] = {name: [] for name in POLICIES}
                for _ in range(rounds):
                    for name, policy in POLICIES.items():
                        speed, loss = measure(arch, policy)
                        speeds[name].append(speed)
                        losses.add(loss)
            finally:
                for process in busy:
                    process.kill()
                    process.wait()
            medians = [statistics.median(found) for found in speeds.values()]
            cells = " | ".join(f"{median:.0f}" for median in medians)
            print(f"| {arch} | {beside} | {cells} | {medians[-1] / medians[0]:.2f}x |", flush=True)
        if len(losses) > 1:
            sys.exit(f"{arch}: the policies changed the loss: {losses}")


if __name__ == "__main__":
    main()
