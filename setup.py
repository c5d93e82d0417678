"""Build hook: compiles the native TensorFlow operations into the package. Metadata: pyproject.toml.

Environment:
    KERAS_PRIVATE_REQUIRE_NATIVE=1  A build without the native operations fails instead of warning.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib
import sys
from typing import Any

from setuptools import Distribution, setup
from setuptools.command.build_ext import build_ext

ROOT = pathlib.Path(__file__).resolve().parent
NATIVE = pathlib.PurePath("keras_private", "native")


def load_builder() -> Any:
    """The module keras_private/native/build.py, by path: the package itself is not importable while it is built."""
    spec = importlib.util.spec_from_file_location("_keras_private_native_build", ROOT / NATIVE / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def warn(message: str) -> None:
    """Says it where it can be seen: pip swallows what a build prints, so the terminal is told as well."""
    text = f"\n{'*' * 100}\nkeras_private: {message}\n{'*' * 100}\n"
    print(text, file=sys.stderr, flush=True)
    if not sys.stderr.isatty():
        with contextlib.suppress(OSError), open("/dev/tty", "w") as terminal:
            terminal.write(text)


class BuildNative(build_ext):
    """Compiles the operations into the build folder, or into the source tree for an editable install."""

    def run(self) -> None:
        root = ROOT if self.inplace else pathlib.Path(self.build_lib)
        builder = load_builder()
        try:
            builder.build_library(root / NATIVE)
        except builder.BuildError as error:
            self._without_native(builder, root / NATIVE, error)

    def _without_native(self, builder: Any, folder: pathlib.Path, error: Exception) -> None:
        if os.environ.get("KERAS_PRIVATE_REQUIRE_NATIVE") == "1":
            raise SystemExit(f"keras_private: the native operations were not built: {error}") from error
        # A library of an earlier build must not travel with sources it was not made from.
        for name in (builder.LIBRARY_NAME, builder.STAMP_NAME):
            (folder / name).unlink(missing_ok=True)
        warn(
            f"installed WITHOUT its native operations: {error}\n"
            "Random numbers will come from the portable source: as secure, but several times slower.\n"
            "To add the native ones later: python -m keras_private.native.build"
        )

    def get_outputs(self) -> list[str]:
        folder = (ROOT if self.inplace else pathlib.Path(self.build_lib)) / NATIVE
        builder = load_builder()
        paths = (folder / name for name in (builder.LIBRARY_NAME, builder.STAMP_NAME))
        return [str(path) for path in paths if path.exists()]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class BinaryDistribution(Distribution):
    """A wheel for one platform, although no Python extension module is in it."""

    def has_ext_modules(self) -> bool:
        return True


setup(distclass=BinaryDistribution, ext_modules=[], cmdclass={"build_ext": BuildNative})
