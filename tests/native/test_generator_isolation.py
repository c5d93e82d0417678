"""No stream is ever shared: not by threads, processes, nor forks, the fork handlers bypassed or not."""

from __future__ import annotations

import os
import pathlib
import platform
import subprocess
import sys
import threading

import pytest
import tensorflow as tf

from keras_private.random import NativeSource, PortableSource

ROOT = pathlib.Path(__file__).parents[2]
# Small eager ops run on the calling thread, the only one that outlives a fork.
SCRIPT = r"""
import ctypes, os, platform, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import tensorflow as tf
from keras_private import native

ops = native.load()
# A second draw within a block: its words already lie in the parent's buffer when it forks.
draw = lambda: ops.keras_private_uniform_full([4], dtype=tf.uint64).numpy().tobytes().hex()

def in_child(fork):
    read_end, write_end = os.pipe()
    if fork() == 0:
        os.write(write_end, draw().encode())
        os._exit(0)
    os.close(write_end)
    data = b""
    while chunk := os.read(read_end, 4096):
        data += chunk
    os.wait()
    return data.decode()

drawn = [draw(), in_child(os.fork), in_child(os.fork), draw()]
if platform.machine() == "x86_64" and sys.platform == "linux":
    library = ctypes.CDLL(None)
    SYS_clone, SIGCHLD = 56, 17
    raw = lambda: library.syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0)  # No pthread_atfork handler runs.
    drawn += [in_child(raw), in_child(raw), draw()]
print(*drawn, sep="\n")
"""


def start() -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> list[str]:
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    return [line for line in out.split() if len(line) == 64]


def test_processes_and_forks_never_share_a_stream() -> None:
    running = [start(), start()]
    drawn = [finish(process) for process in running]
    with_raw = platform.machine() == "x86_64" and sys.platform == "linux"
    assert [len(lines) for lines in drawn] == [7 if with_raw else 4] * 2
    # As 64-bit words: a stream shifted by a few words would share some.
    words = [line[i : i + 16] for lines in drawn for line in lines for i in range(0, 64, 16)]
    assert len(set(words)) == len(words)


@pytest.mark.parametrize("make", [NativeSource, PortableSource])
def test_threads_never_share_a_stream(make: type) -> None:
    source, drawn, errors = make(), [], []
    source.uniform_full([4], tf.uint64)

    def draw() -> None:
        try:
            for _ in range(8):
                drawn.extend(source.uniform_full([100], tf.uint64).numpy().tolist())
        except Exception as error:  # Shown below, on the main thread.
            errors.append(error)

    threads = [threading.Thread(target=draw) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(drawn) == 4800 and len(set(drawn)) == 4800
