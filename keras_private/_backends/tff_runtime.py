"""TensorFlow Federated's worker: where its binary is, and computations run on one."""

from __future__ import annotations

import contextlib
import pathlib
import time
from collections.abc import Sequence
from typing import Any, Callable, Optional

from .tff_learning import package

_OPTIONS = (
    ("grpc.max_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),
)
_DISPOSE_SECONDS = 5.0
"""For a call that frees what a worker holds: nobody waits long for it."""


class LostWorker(Exception):
    """The worker ended, cannot be reached, or did not answer in time."""


class FailedWork(Exception):
    """The worker answered that the computation failed."""


def binary() -> pathlib.Path:
    """The worker's program.

    Raises:
        FileNotFoundError: The package came without it.
    """
    found = pathlib.Path(package().__file__).parent / "data" / "worker_binary"
    if not found.is_file():
        raise FileNotFoundError(found)
    return found


class Connection:
    """A connection to one worker.

    TensorFlow Federated would try for ever to reach a worker that is gone; here each call ends.

    Args:
        target: Address as gRPC takes it.
    """

    def __init__(self, target: str) -> None:
        import grpc
        from tensorflow_federated.python.core.backends.native import compiler
        from tensorflow_federated.python.core.environments.tensorflow_frontend import tensorflow_computation

        framework = package().framework
        self._channel = grpc.insecure_channel(target, _OPTIONS)
        self._framework = framework
        self._end: Callable[[], float] = _end_in(0.0)

        def stack(cardinalities: Any) -> Any:
            cardinalities.setdefault(package().CLIENTS, 0)
            stub = framework.RemoteExecutorGrpcStub(_Unwatched(self._channel))
            stub._stub = _Calls(stub._stub, lambda: self._end(), grpc)
            executor = framework.RemoteExecutor(stub)
            executor.set_cardinalities(cardinalities)
            return executor

        self._context = framework.SyncExecutionContext(
            executor_fn=framework.ResourceManagingExecutorFactory(stack),
            compiler_fn=compiler.desugar_and_transform_to_native,
            transform_args=tensorflow_computation.transform_args,
            transform_result=tensorflow_computation.transform_result,
        )

    def run(self, computation: Callable[..., Any], arguments: Sequence[Any], deadline: float) -> Any:
        """Runs a computation on this worker; one at a time.

        Args:
            computation: Of TensorFlow Federated.
            arguments: Its arguments.
            deadline: Seconds from the first question to the worker to the last answer; compiling comes before.

        Raises:
            LostWorker: The worker ended, cannot be reached, or did not answer in time.
            FailedWork: The worker answered with an error.
        """
        self._end = _end_in(deadline)
        with self._framework.get_context_stack().install(self._context):
            return computation(*arguments)

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._channel.close()


def _end_in(seconds: float) -> Callable[[], float]:
    """The time that is so many seconds after it is first asked for."""
    end: Optional[float] = None

    def found() -> float:
        nonlocal end
        if end is None:
            end = time.monotonic() + seconds
        return end

    return found


class _Unwatched:
    """A gRPC channel whose connectivity nobody polls: the thread that does so fails when the channel is closed."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    def subscribe(self, callback: Callable[..., Any], try_to_connect: bool = False) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)


class _Calls:
    """Calls of a gRPC stub, each with a time by which it ends, and with errors that nobody retries."""

    def __init__(self, stub: Any, end: Callable[[], float], grpc: Any) -> None:
        self._stub, self._end, self._grpc = stub, end, grpc

    def __getattr__(self, name: str) -> Callable[[Any], Any]:
        method = getattr(self._stub, name)

        def call(request: Any) -> Any:
            left = max(self._end() - time.monotonic(), 1e-3)
            try:
                return method(request, timeout=left)
            except self._grpc.RpcError as error:
                raise self._of(error) from error
            except ValueError as error:
                if "closed channel" not in str(error):
                    raise
                raise LostWorker("the connection was closed") from error

        def forget(request: Any) -> None:
            # Asked for by finalizers and in cleaning up: there it is no news that the worker is gone.
            with contextlib.suppress(self._grpc.RpcError, ValueError):
                method(request, timeout=_DISPOSE_SECONDS)

        return forget if name in ("Dispose", "DisposeExecutor") else call

    def _of(self, error: Any) -> Exception:
        codes = self._grpc.StatusCode
        code, details = error.code(), str(error.details())
        lost = code in (codes.UNAVAILABLE, codes.DEADLINE_EXCEEDED, codes.CANCELLED)
        # A worker that took the place of another under the same address does not know what that one was told.
        lost = lost or (code == codes.FAILED_PRECONDITION and "No executor found" in details)
        return (LostWorker if lost else FailedWork)(f"{code.name.lower()}: {details}")
