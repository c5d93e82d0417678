"""The proof: what each tensor of the traced training step owes to which example."""

from .analysis import StepProof
from .dims import BATCH, Dim
from .facts import Fact, Kind
from .loss import LossTerm, LossTerms, take_apart
from .remedies import remedy_for

__all__ = [
    "BATCH",
    "Dim",
    "Fact",
    "Kind",
    "LossTerm",
    "LossTerms",
    "StepProof",
    "remedy_for",
    "take_apart",
]
