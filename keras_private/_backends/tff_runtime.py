"""TensorFlow Federated's worker: where its binary is, and computations run on one."""

from __future__ import annotations

import contextlib
import pathlib
from typing import Any, Callable

from .tff_learning import package

_OPTIONS = (
    ("grpc.max_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),
)


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
        deadline: Seconds for each call to the worker.
    """

    def __init__(self, target: str, deadline: float) -> None:
        import grpc
        from tensorflow_federated.python.core.backends.native import compiler
        from tensorflow_federated.python.core.environments.tensorflow_frontend import tensorflow_computation

        framework = package().framework
        self._channel = grpc.insecure_channel(target, _OPTIONS)
        self._framework = framework
        channel = self._channel

        def stack(cardinalities: Any) -> Any:
            cardinalities.setdefault(package().CLIENTS, 0)
            stub = framework.RemoteExecutorGrpcStub(_Unwatched(channel))
            stub._stub = _Calls(stub._stub, deadline, grpc)
            executor = framework.RemoteExecutor(stub)
            executor.set_cardinalities(cardinalities)
            return executor

        self._context = framework.SyncExecutionContext(
            executor_fn=framework.ResourceManagingExecutorFactory(stack),
            compiler_fn=compiler.desugar_and_transform_to_native,
            transform_args=tensorflow_computation.transform_args,
            transform_result=tensorflow_computation.transform_result,
        )

    def run(self, computation: Callable[..., Any], *arguments: Any) -> Any:
        """Runs a computation on this worker.

        Raises:
            LostWorker: The worker ended, cannot be reached, or did not answer in time.
            FailedWork: The worker answered with an error.
        """
        with self._framework.get_context_stack().install(self._context):
            return computation(*arguments)

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._channel.close()


class _Unwatched:
    """A gRPC channel whose connectivity nobody polls: the thread that does so fails when the channel is closed."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    def subscribe(self, callback: Callable[..., Any], try_to_connect: bool = False) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)


class _Calls:
    """Calls of a gRPC stub, each with a deadline, and with errors that nobody retries."""

    def __init__(self, stub: Any, deadline: float, grpc: Any) -> None:
        self._stub, self._deadline, self._grpc = stub, deadline, grpc

    def __getattr__(self, name: str) -> Callable[[Any], Any]:
        method = getattr(self._stub, name)

        def call(request: Any) -> Any:
            try:
                return method(request, timeout=self._deadline)
            except self._grpc.RpcError as error:
                code = error.code()
                codes = self._grpc.StatusCode
                text = f"{code.name.lower()}: {error.details()}"
                if code in (codes.UNAVAILABLE, codes.DEADLINE_EXCEEDED, codes.CANCELLED):
                    raise LostWorker(text) from error
                raise FailedWork(text) from error

        return call
