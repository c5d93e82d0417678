"""Privacy reports: values -> joint ledger -> JSON, text, page. Knows nothing of training: the pillars fill it."""

from .content import Cost, Protocol, Series, Sight, Spending, View
from .document import PrivacyReport

__all__ = ["Cost", "PrivacyReport", "Protocol", "Series", "Sight", "Spending", "View"]
