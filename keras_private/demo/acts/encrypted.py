"""Act 4: the trained model is published on shares to three parties, and a client in another process asks them."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ...encrypted.cluster.cluster import Cluster
from ...encrypted.serving import serve
from ...errors import TransportError
from ..data import Images
from ..outcome import Outcome
from ..progress import waiting
from ..recipes import Recipe

CLIENT, CONFIG = "client", "cluster.json"


def play(images: Images, recipe: Recipe, model: Any) -> Outcome:
    begun = time.perf_counter()
    asked = images.x_test[: recipe.queries]
    with contextlib.ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="keras-private-demo-")))
        with waiting("starting three parties"):
            cluster = running.enter_context(Cluster.local(verbose=False))
        print(f"Three parties run, as processes {', '.join(map(str, cluster.process_ids().values()))}.", flush=True)
        with waiting("each party traces its own program, and gets shares of the weights"), warnings.catch_warnings():
            # The story says so itself, at its end.
            warnings.filterwarnings("ignore", "The three parties run on this machine")
            service = running.enter_context(
                serve(model, cluster, batch_sizes=(recipe.rows,), input_range=(0, 1))
            )
        print(f"{service.model!r} is served. Another process asks about {len(asked)} images.", flush=True)
        with waiting("the client encodes and shares images, and adds up the answers' shares"):
            answers = _answers(cluster.folder, folder, asked)
        requests = service.answered
        report = service.privacy_report()
    plain = model.predict(asked, batch_size=1000, verbose=0)
    same = int((answers.argmax(1) == plain.argmax(1)).sum())
    print(
        f"{len(asked)} images in {requests} requests: {same} of {len(asked)} answers as in plaintext, largest "
        f"difference of a probability {np.abs(answers - plain).max():.1e}.",
        flush=True,
    )
    return Outcome(
        "encrypted queries",
        float((answers.argmax(1) == images.y_test[: recipe.queries]).mean()),
        "nothing learnt",
        time.perf_counter() - begun,
        sent=service.bytes_per_run[recipe.rows] * requests,
        sent_by="between the parties",
        report=report,
    )


def _answers(cluster: Path, folder: Path, asked: np.ndarray) -> np.ndarray:
    """What `keras-private query` gets, in a process that holds the client's certificate and no other."""
    shutil.copy(cluster / CONFIG, folder)
    shutil.copytree(cluster / CLIENT, folder / CLIENT)
    np.save(folder / "images.npy", asked)
    command = [sys.executable, "-m", "keras_private", "query", str(folder / "images.npy")]
    command += ["--cluster", str(folder / CONFIG), "--client", CLIENT, "--output", str(folder / "answers.npy")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    # An exception here, an interrupt included, ends it.
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TransportError(
            f"The client ended with code {done.returncode}: {done.stderr.strip()[-500:]}",
            expected="predictions",
            remedy="Look at what it says; `keras-private doctor` checks the installation.",
        )
    return np.load(folder / "answers.npy")
