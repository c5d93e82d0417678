"""Every error that keras_private raises on purpose.

Each message has three parts: what was wrong, what was expected, and what to do about it.
"""

from __future__ import annotations


class PrivacyError(Exception):
    """Base of all errors of this package.

    Args:
        problem: What was wrong, with the value or name that came.
        expected: What would have been right.
        remedy: What the reader can do now.
    """

    # Lets the error through tf.function's tracing as it is, instead of being rebuilt as another type.
    ag_pass_through = True

    def __init__(self, problem: str, *, expected: str = "", remedy: str = "") -> None:
        self.problem = problem
        self.expected = expected
        self.remedy = remedy
        super().__init__(problem, expected, remedy)

    def __str__(self) -> str:
        parts = [self.problem]
        if self.expected:
            parts.append(f"Expected: {self.expected}")
        if self.remedy:
            parts.append(f"What to do: {self.remedy}")
        return "\n".join(parts)


class ConfigurationError(PrivacyError, ValueError):
    """An argument has a value that cannot be used."""


class UnsupportedModelError(PrivacyError, ValueError):
    """The training step cannot be proven private as it stands."""


class UnsupportedOpError(UnsupportedModelError):
    """A trainable variable is used by an operation that has no per-example rule."""


class GradientSourceError(PrivacyError, RuntimeError):
    """Gradients reached the optimizer that its own compute_gradients did not make in this trace."""


class BudgetExhaustedError(PrivacyError, RuntimeError):
    """No step of the requested kind is left in the privacy budget."""


class LedgerError(PrivacyError, RuntimeError):
    """A privacy ledger is missing, truncated, altered, foreign, or behind the optimizer."""


class BackendError(PrivacyError, ImportError):
    """A package or native library is missing or does not fit; the message carries the remedy."""


class EncodingError(PrivacyError, ValueError):
    """A number cannot be represented in the fixed point of the ring, or a result could leave it."""


class OverflowPreflightError(EncodingError):
    """A layer's results could leave the ring, by its weights and the declared range of inputs."""


class UnsupportedLayerError(PrivacyError, ValueError):
    """A layer, or one of its arguments, has no rule for computing on shares."""


class PartiesError(PrivacyError, LookupError):
    """The parties that a layer or model wants to compute with are not known to this process."""


class ShareFileError(PrivacyError, OSError):
    """A saved model of shares is missing, altered, or belongs to another model."""


class RandomnessError(PrivacyError, RuntimeError):
    """No secure source of randomness can serve the request."""


class TransportError(PrivacyError, ConnectionError):
    """A connection between processes broke, came too late, or brought what was not expected."""


class AccessError(PrivacyError, PermissionError):
    """A value was to be opened to somebody who is none of its readers."""


class ExposureError(PrivacyError, TypeError):
    """A secret was to be printed, copied, written down, or turned into a public number."""


class ClientDataError(PrivacyError, ValueError):
    """A client's data are missing, damaged, or of another form than those of the other clients."""


class AggregationError(PrivacyError, RuntimeError):
    """The updates of a round cannot be aggregated; the model is as it was before the round."""


class WorkerError(PrivacyError, RuntimeError):
    """A worker that does the clients' work ended, cannot be reached, or took too long."""


class ReportError(PrivacyError, ValueError):
    """A privacy report cannot be read: it is no report, incomplete, or of a newer schema."""


class CheckpointError(PrivacyError, OSError):
    """A checkpoint cannot be written, or those that are there belong to another training."""
