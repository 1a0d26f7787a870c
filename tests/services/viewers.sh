#!/usr/bin/env bash
# Installs the readers of viewers for tests/out/test_viewers.py: dcmqi (3D Slicer) and SimpleITK (ITK-SNAP) into a Python,
# and OHIF's libraries beside their test's script. Whatever cannot be installed is said, and its tests are skipped.
#   tests/services/viewers.sh .venv/bin/python
set -u
here="$(cd "$(dirname "$0")" && pwd)"
"$1" -m pip install --quiet --disable-pip-version-check --constraint "$here/../../constraints.txt" dcmqi SimpleITK ||
  echo "tests/services: dcmqi or SimpleITK could not be installed"
if command -v npm >/dev/null; then
  npm install --prefix "$here/ohif" --silent --no-audit --no-fund --no-package-lock --ignore-scripts ||
    echo "tests/services: OHIF's libraries could not be installed"
else
  echo "tests/services: npm is not installed, and so OHIF's libraries are not"
fi
