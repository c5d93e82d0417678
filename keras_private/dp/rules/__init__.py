"""Rules that turn one use of a variable into what each example adds to its gradient.

To add an operation: write one function here, register it with `op_rule`, and give it the shared test suite
in tests/contracts/op_rule.py. A transfer rule in dp/proof must exist for the operation too.
"""

from . import bias, conv, elementwise, matmul
from .registry import OP_RULES, Contribution, Factored, Instantiated, OpRule, Use

__all__ = [
    "OP_RULES",
    "Contribution",
    "Factored",
    "Instantiated",
    "OpRule",
    "Use",
    "bias",
    "conv",
    "elementwise",
    "matmul",
]
