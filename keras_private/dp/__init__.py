"""Differential privacy: proof -> plan -> clipping -> mechanism -> optimizer, with accounting and callbacks beside."""

from .accounting import Charge, calibrate_noise, epsilon, max_steps
from .callbacks import PrivacyBudget
from .ledger import Ledger
from .mechanisms import GaussianMechanism
from .model import PrivateFunctional, PrivateModel, PrivateTraining, make_private
from .optimizer import DPOptimizer
from .reporting import privacy_report, report_of_ledger
from .sampling import PoissonSampler
from .validation import Validation, fix, validate

__all__ = [
    "Charge",
    "DPOptimizer",
    "GaussianMechanism",
    "Ledger",
    "PoissonSampler",
    "PrivacyBudget",
    "PrivateFunctional",
    "PrivateModel",
    "PrivateTraining",
    "Validation",
    "calibrate_noise",
    "epsilon",
    "fix",
    "make_private",
    "max_steps",
    "privacy_report",
    "report_of_ledger",
    "validate",
]
