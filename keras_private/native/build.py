"""Builds the native TensorFlow ops against the installed TensorFlow.

Stands alone: setup.py and the Makefile run it before the package is installed.

    python keras_private/native/build.py [target_dir]
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
from typing import Any

LIBRARY_NAME = "_keras_private_ops.so"
STAMP_NAME = "_keras_private_ops.json"
SOURCE_DIR = pathlib.Path(__file__).resolve().parent / "src"

# No -march=native: a wheel travels. No contraction: rounding must be the same on every machine. The two -fno
# flags change no result; without them comparisons of doubles do not vectorise.
COMPILE_FLAGS = (
    "-O3",
    "-fPIC",
    "-DNDEBUG",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-fstack-protector-strong",
    "-Wall",
    "-Wno-sign-compare",
)
LINK_FLAGS = ("-shared", "-Wl,--exclude-libs,ALL", "-Wl,-Bsymbolic", "-Wl,-z,noexecstack,-z,relro,-z,now")
_TENSORFLOW_PACKAGES = ("tensorflow", "tensorflow-cpu", "tensorflow-intel", "tensorflow-cpu-aws")
_APT_REMEDY = "install with: apt-get install g++ libssl-dev"


class BuildError(RuntimeError):
    """The native ops cannot be built here; the message says what is missing and the command that adds it."""


def tensorflow_version() -> str:
    """Version of the installed TensorFlow, read without importing it.

    Raises:
        BuildError: No TensorFlow is installed.
    """
    for package in _TENSORFLOW_PACKAGES:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    raise BuildError(
        "TensorFlow is not installed for this Python; install with: pip install tensorflow==2.14.1"
    )


def source_digest() -> str:
    """SHA-256 over the names and contents of all sources and the flags they are compiled with."""
    digest = hashlib.sha256(" ".join(COMPILE_FLAGS + LINK_FLAGS).encode())
    for path in sorted(SOURCE_DIR.iterdir()):
        if path.suffix in (".cc", ".h"):
            content = path.read_bytes()
            digest.update(f"\n{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def build_library(target_dir: pathlib.Path | None = None) -> pathlib.Path:
    """Compiles every src/*.cc into one library, or keeps the one there when nothing changed.

    Args:
        target_dir: Folder that receives the library and its stamp; by default this file's own folder.

    Returns:
        The library's path.

    Raises:
        BuildError: A compiler, OpenSSL's headers or TensorFlow is missing, or the compiler refused the
            sources.
    """
    target_dir = pathlib.Path(target_dir) if target_dir is not None else SOURCE_DIR.parent
    library, stamp_path = target_dir / LIBRARY_NAME, target_dir / STAMP_NAME
    wanted = {
        "tensorflow": tensorflow_version(),
        "sources_sha256": source_digest(),
        "machine": platform.machine(),
    }
    if library.is_file() and _read_stamp(stamp_path).items() >= wanted.items():
        return library

    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if not compiler:
        raise BuildError(f"no C++ compiler (g++) was found; {_APT_REMEDY}")
    flags = _tensorflow_flags()
    _check_openssl(compiler)
    target_dir.mkdir(parents=True, exist_ok=True)
    # In the target folder, so that the final rename stays on one file system and is atomic.
    with tempfile.TemporaryDirectory(dir=target_dir, prefix=".build-") as scratch:
        made = _compile(compiler, flags, pathlib.Path(scratch))
        stamp = dict(
            wanted,
            compiler=_run([compiler, "--version"]).splitlines()[0],
            cxx11_abi=next(
                (int(flag[-1]) for flag in flags["compile"] if "_GLIBCXX_USE_CXX11_ABI=" in flag), None
            ),
        )
        made_stamp = pathlib.Path(scratch) / STAMP_NAME
        made_stamp.write_text(json.dumps(stamp, indent=2, sort_keys=True) + "\n")
        # Killed between the two renames, the old stamp does not fit the new sources and the next build
        # repeats.
        os.replace(made, library)
        os.replace(made_stamp, stamp_path)
    return library


def _read_stamp(path: pathlib.Path) -> dict[str, Any]:
    try:
        stamp = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def _run(command: list[str], **kwargs: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **kwargs)
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command[:2])} ... failed:\n{done.stderr[-4000:]}")
    return done.stdout


def _tensorflow_flags() -> dict[str, list[str]]:
    # In a process of its own: a build step must not hold TensorFlow in memory while the compiler runs.
    code = (
        "import json, tensorflow as tf; print('FLAGS' + json.dumps("
        "{'compile': tf.sysconfig.get_compile_flags(), 'link': tf.sysconfig.get_link_flags()}))"
    )
    output = _run([sys.executable, "-c", code], env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"})
    line = next((line for line in output.splitlines() if line.startswith("FLAGS")), None)
    if line is None:
        raise BuildError(
            "TensorFlow did not tell its compile flags; reinstall it with: pip install tensorflow==2.14.1"
        )
    return json.loads(line[len("FLAGS") :])


def _check_openssl(compiler: str) -> None:
    probe = "#include <openssl/evp.h>\nint main() { return EVP_MAX_KEY_LENGTH == 0; }\n"
    done = subprocess.run(
        [compiler, "-x", "c++", "-fsyntax-only", "-"],
        input=probe,
        text=True,
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        if "openssl/evp.h" in done.stderr:
            raise BuildError(f"OpenSSL's header openssl/evp.h was not found; {_APT_REMEDY}")
        raise BuildError(f"the C++ compiler does not work; {_APT_REMEDY}\n{done.stderr[-2000:]}")


def _crypto_link_flags(compiler: str) -> list[str]:
    # Static where possible: TensorFlow exports BoringSSL's functions under OpenSSL's names, and a dynamic
    # reference could bind to those. The library then also needs no libcrypto on the machine it travels to.
    # Where only the shared library exists, it stands before TensorFlow's, and the self-test at load checks.
    archive = _run([compiler, "-print-file-name=libcrypto.a"]).strip()
    return [archive, "-ldl", "-pthread"] if os.path.isabs(archive) else ["-lcrypto", "-pthread"]


def _compile(compiler: str, flags: dict[str, list[str]], scratch: pathlib.Path) -> pathlib.Path:
    sources = sorted(SOURCE_DIR.glob("*.cc"))
    objects = [scratch / f"{source.stem}.o" for source in sources]
    # TensorFlow's headers are not ours to warn about.
    includes = ["-isystem" + flag[2:] if flag.startswith("-I") else flag for flag in flags["compile"]]

    def compile_one(source: pathlib.Path, target: pathlib.Path) -> None:
        _run([compiler, *COMPILE_FLAGS, *includes, "-c", str(source), "-o", str(target)])

    with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        for future in [pool.submit(compile_one, *pair) for pair in zip(sources, objects)]:
            future.result()
    made = scratch / LIBRARY_NAME
    _run(
        [
            compiler,
            *LINK_FLAGS,
            *map(str, objects),
            *_crypto_link_flags(compiler),
            *flags["link"],
            "-o",
            str(made),
        ]
    )
    return made


if __name__ == "__main__":
    try:
        print(build_library(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else None))
    except BuildError as error:
        sys.exit(f"keras_private: the native ops were not built: {error}")
