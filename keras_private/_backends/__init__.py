"""The packages underneath: which versions fit, which are here, and the one command that adds each.

The only folder that reaches private parts of TensorFlow and Keras, and the only place that imports TensorFlow
Privacy, TensorFlow Federated and TF Encrypted. Importing it imports none of them.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import pathlib
import sys
from types import ModuleType

from keras_private.errors import BackendError, ConfigurationError

FEDERATED_REQUIREMENTS = pathlib.Path(__file__).resolve().parent.parent / "requirements-federated.txt"


@dataclasses.dataclass(frozen=True)
class Requirement:
    """A package this project runs on.

    Attributes:
        name: Its name on the package index.
        module: What is imported.
        minimum: The first version that fits.
        below: The first version that no longer fits; empty when `minimum` alone fits.
        purpose: What it is for.
        needed_for_dp: Differential privacy cannot work without it.
        aliases: Other distributions that carry the same module.
    """

    name: str
    module: str
    minimum: str
    below: str
    purpose: str
    needed_for_dp: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def wanted(self) -> str:
        return f">={self.minimum},<{self.below}" if self.below else f"=={self.minimum}"

    @property
    def remedy(self) -> str:
        """The one command that installs a version that fits."""
        if self.module == "tensorflow_federated":
            # Its own pins cannot be resolved any more (docs/compatibility.md): a pinned list, taken as it is.
            return f'{sys.executable} -m pip install --no-deps -r "{FEDERATED_REQUIREMENTS}"'
        return f'{sys.executable} -m pip install "{self.name}{self.wanted}"'

    def fits(self, version: str) -> bool:
        if not self.below:
            return version == self.minimum
        return _key(self.minimum) <= _key(version) < _key(self.below)


@dataclasses.dataclass(frozen=True)
class Installed:
    """What is here of one requirement.

    Attributes:
        name: Package name.
        wanted: Versions that fit, as pip writes them.
        version: The version found, or None.
        fits: A version is here and it fits.
        purpose: What it is for.
        needed_for_dp: Differential privacy cannot work without it.
        remedy: The one command that installs a version that fits.
    """

    name: str
    wanted: str
    version: str | None
    fits: bool
    purpose: str
    needed_for_dp: bool
    remedy: str


TENSORFLOW_BUILDS = ("tensorflow-cpu", "tensorflow-intel", "tensorflow-macos", "tensorflow-cpu-aws")

REQUIREMENTS = (
    Requirement("tensorflow", "tensorflow", "2.14.1", "", "everything", True, TENSORFLOW_BUILDS),
    Requirement("keras", "keras", "2.14.0", "", "everything", True),
    Requirement("numpy", "numpy", "1.25", "2", "everything", True),
    Requirement("dp-accounting", "dp_accounting", "0.4.3", "", "differential privacy: epsilon and delta", True),
    Requirement("tensorflow-privacy", "tensorflow_privacy", "0.9.0", "", "attacks and auditing of trained models"),
    Requirement("tf-encrypted", "tf_encrypted", "0.9.1", "", "encrypted training and serving"),
    Requirement("tensorflow-federated", "tensorflow_federated", "0.87.0", "", "federated learning"),
)


def installed() -> list[Installed]:
    """What is here of each package, read from its metadata; nothing is imported."""
    found = []
    for each in REQUIREMENTS:
        version = _version(each)
        fits = version is not None and each.fits(version)
        found.append(Installed(each.name, each.wanted, version, fits, each.purpose, each.needed_for_dp, each.remedy))
    return found


def require(module: str) -> ModuleType:
    """Imports one of the packages underneath.

    Args:
        module: "tensorflow_privacy", "tensorflow_federated", "tf_encrypted", "dp_accounting", or another of
            REQUIREMENTS.

    Raises:
        BackendError: It is missing, has a version that does not fit, or cannot be imported; with the remedy.
        ConfigurationError: No such backend.
    """
    requirement = next((each for each in REQUIREMENTS if each.module == module), None)
    if requirement is None:
        raise ConfigurationError(
            f"{module!r} is no backend",
            expected=f"one of {', '.join(each.module for each in REQUIREMENTS)}",
            remedy="correct the name",
        )
    version = _version(requirement)
    expected, remedy = f"{requirement.name} {requirement.wanted}, for {requirement.purpose}", requirement.remedy
    if version is None:
        raise BackendError(f"{requirement.name} is not installed", expected=expected, remedy=remedy)
    if not requirement.fits(version):
        raise BackendError(f"{requirement.name} {version} is installed", expected=expected, remedy=remedy)
    try:
        if module == "tf_encrypted":
            completed: ModuleType = importlib.import_module("keras_private._backends.tf_encrypted").load()
            return completed
        return importlib.import_module(module)
    except ImportError as error:
        raise BackendError(
            f"{requirement.name} {version} cannot be imported: {error}",
            expected=expected,
            remedy=f"run `keras-private doctor`; to install it anew: {remedy}",
        ) from error


def _version(requirement: Requirement) -> str | None:
    for name in (requirement.name, *requirement.aliases):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _key(version: str) -> tuple[int, ...]:
    """Leading numbers of each part: enough to order releases."""
    numbers = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    # 2 and 2.0.0 are one version.
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
