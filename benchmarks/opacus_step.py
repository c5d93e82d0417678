"""Times Opacus on the benchmark networks; runs in an environment of its own and prints one JSON line.

python -m venv peer && peer/bin/pip install torch==2.13.0 opacus==1.6.0
python benchmarks/step_time.py --opacus peer/bin/python
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import warnings

warnings.filterwarnings("ignore")

import opacus  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

BATCH = 256
SHAPES = {"mlp": (784,), "cnn": (1, 28, 28)}


def network(name: str) -> nn.Module:
    if name == "mlp":
        return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    return nn.Sequential(
        nn.Conv2d(1, 16, 8, 2, padding=3),
        nn.ReLU(),
        nn.MaxPool2d(2, 1),
        nn.Conv2d(16, 32, 4, 2),
        nn.ReLU(),
        nn.MaxPool2d(2, 1),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def milliseconds(name: str, mode: str) -> float:
    """Median step time; mode "ghost" or "hooks"."""
    x, y = torch.randn(BATCH, *SHAPES[name]), torch.randint(0, 10, (BATCH,))
    model = network(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=BATCH)
    criterion = nn.CrossEntropyLoss()
    made = opacus.PrivacyEngine().make_private(
        module=model,
        optimizer=optimizer,
        data_loader=loader,
        criterion=criterion,
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
        grad_sample_mode=mode,
    )
    model, optimizer = made[0], made[1]
    criterion = made[2] if mode == "ghost" else criterion
    times = []
    for _ in range(60):
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[10:])


if __name__ == "__main__":
    modes = {"mlp": "ghost", "cnn": "hooks"}
    found = {name: {mode: milliseconds(name, mode)} for name, mode in modes.items()}
    json.dump({"opacus": opacus.__version__, "torch": torch.__version__, "milliseconds": found}, sys.stdout)
