"""The public names, listed once. A change here is a change for users: it belongs in CHANGELOG.md."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys

import pytest

PUBLIC = {
    "keras_private": """
        Client Cluster DPOptimizer EncryptedModel FederatedModel PoissonSampler PrivacyBudget PrivacyReport
        PrivateTensor SecureAggregation __version__ dp encrypt encrypted errors federated fix layers make_private
        serve validate
    """,
    "keras_private.dp": """
        Charge DPOptimizer GaussianMechanism Ledger PoissonSampler PrivacyBudget PrivateFunctional PrivateModel
        PrivateTraining Validation calibrate_noise epsilon fix make_private max_steps privacy_report report_of_ledger
        validate
    """,
    "keras_private.federated": """
        Clients DPAggregator FedAvg FedProx FedSGD FederatedModel LocalWorkers Mean Median MimeLite RemotePadParty
        RemoteWorker SecureAggregation Trimmed Yogi Zeroing local_pad_parties pad_parties partition
    """,
    "keras_private.encrypted": """
        EmbeddedParties EncryptedModel FixedPoint Horizontal Owned Rule Vertical layers register_parties register_rule
    """,
    "keras_private.encrypted.layers": """
        EncryptedActivation EncryptedConv2D EncryptedDense EncryptedDepthwiseConv2D EncryptedEmbedding
    """,
    "keras_private.report": "Cost PrivacyReport Protocol Series Sight Spending View",
    "keras_private.errors": """
        AccessError AggregationError BackendError BudgetExhaustedError CheckpointError ClientDataError
        ConfigurationError EncodingError ExposureError GradientSourceError LedgerError
        OverflowPreflightError PartiesError PrivacyError RandomnessError ReportError ShareFileError TransportError
        UnsupportedLayerError UnsupportedModelError UnsupportedOpError WorkerError
    """,
}
COMMANDS = "doctor demo party cluster serve query worker pads report"


def names_of(module: str) -> list[str]:
    found = importlib.import_module(module)
    listed = getattr(found, "__all__", None)
    if listed is not None:
        return sorted(listed)
    return sorted(
        name for name, value in vars(found).items() if inspect.isclass(value) and value.__module__ == found.__name__
    )


@pytest.mark.parametrize("module", PUBLIC)
def test_these_and_no_others_are_public(module: str) -> None:
    assert names_of(module) == sorted(PUBLIC[module].split())


@pytest.mark.parametrize("module", PUBLIC)
def test_each_is_documented(module: str) -> None:
    found = importlib.import_module(module)
    for name in names_of(module):
        value = getattr(found, name)
        assert name == "__version__" or (inspect.getdoc(value) or "").strip(), f"{module}.{name} has no docstring"


def test_one_name_is_one_thing_wherever_it_stands() -> None:
    found: dict[str, object] = {}
    for module in PUBLIC:
        for name in names_of(module):
            value = getattr(importlib.import_module(module), name)
            assert found.setdefault(name, value) is value, f"{name} is two things"


def test_the_commands_are_these() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "keras_private", "--help"], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    listed = printed[printed.index("  command") : printed.index("options:")].splitlines()[1:]
    assert [line.split()[0] for line in listed if line.strip()] == COMMANDS.split()
