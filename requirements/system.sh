#!/usr/bin/env bash
# What the make targets need from the system. Installs it through apt where that needs no password, else says what to type.
#
#   system.sh python    prints the path of a Python 3.11 that can make virtual environments
#   system.sh compiler  a C++ compiler and OpenSSL's headers
#   system.sh dataset   the Fashion-MNIST images; never fails, since the demo knows other data
#   system.sh browser   Chromium and its driver; never fails, since tests of pages are skipped without
set -euo pipefail

say() { echo "$@" >&2; }

apt_install() {
  command -v apt-get >/dev/null || return 1
  local as_root=()
  if [ "$(id -u)" != 0 ]; then
    sudo -n true 2>/dev/null || return 1
    as_root=(sudo -n)
  fi
  say "Installing with apt: $*"
  local options=(-qq -o DPkg::Lock::Timeout=120)
  "${as_root[@]}" apt-get "${options[@]}" update >&2 || true
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get "${options[@]}" install -y --no-install-recommends "$@" >/dev/null
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.11 /usr/bin/python3.11 /usr/local/bin/python3.11 python3 python}; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1; then
      command -v "$candidate"
      return 0
    fi
  done
  return 1
}

need_python() {
  if find_python; then return 0; fi
  if [ -n "${PYTHON:-}" ]; then
    say "error: PYTHON=$PYTHON is not a Python 3.11 with the modules venv and ensurepip."
    say "Expected: the path of a Python 3.11, or PYTHON unset."
    exit 1
  fi
  apt_install python3.11 python3.11-venv || true
  if find_python; then return 0; fi
  say "error: no Python 3.11 with the modules venv and ensurepip was found."
  say "Expected: Python 3.11; TensorFlow 2.14, which all packages here share, runs on no later one."
  say "What to do, then run make again:"
  say "  Debian 12, Ubuntu 22.04:  sudo apt-get install -y python3.11 python3.11-venv"
  say "  later Ubuntu:             sudo add-apt-repository -y ppa:deadsnakes/ppa && sudo apt-get install -y python3.11 python3.11-venv"
  say "  elsewhere:                install Python 3.11, then: make demo PYTHON=/path/to/python3.11"
  exit 1
}

can_compile() {
  local compiler="${CXX:-g++}"
  command -v "${compiler%% *}" >/dev/null &&
    echo '#include <openssl/evp.h>' | $compiler -x c++ -fsyntax-only - >/dev/null 2>&1
}

need_compiler() {
  if can_compile; then return 0; fi
  apt_install g++ libssl-dev || true
  if can_compile; then return 0; fi
  say "error: the native operations cannot be compiled: a C++ compiler or OpenSSL's headers are missing."
  say "What to do, then run make again:"
  say "  Debian, Ubuntu:  sudo apt-get install -y g++ libssl-dev"
  say "  Fedora:          sudo dnf install gcc-c++ openssl-devel"
  exit 1
}

need_dataset() {
  if dpkg -s dataset-fashion-mnist >/dev/null 2>&1; then return 0; fi
  if apt_install dataset-fashion-mnist; then return 0; fi
  say "Fashion-MNIST was not installed; the demo will look for other data. To add it:"
  say "  sudo apt-get install -y dataset-fashion-mnist && make dataset"
}

need_browser() {
  if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then return 0; fi
  if apt_install chromium chromium-driver; then return 0; fi
  say "No Chromium was installed; the tests that look at pages in a browser will be skipped. To add it:"
  say "  sudo apt-get install -y chromium chromium-driver"
}

case "${1:-}" in
  python | compiler | dataset | browser) "need_$1" ;;
  *)
    say "usage: system.sh python|compiler|dataset|browser"
    exit 2
    ;;
esac
