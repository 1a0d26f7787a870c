#!/usr/bin/env bash
# Installs what the tests of tests/pacs talk to: Orthanc with its DICOMweb plugin, and dcmtk (Debian, Ubuntu).
# Nothing is left running: the tests start what they need on loopback, in folders of their own, and stop it.
# Ends with 0 where they are there, with 1 where they cannot be installed; then those tests are skipped.
set -u
there() { command -v Orthanc >/dev/null && command -v storescp >/dev/null && ls /usr/share/orthanc/plugins/libOrthancDicomWeb* >/dev/null 2>&1; }
PATH="$PATH:/usr/sbin"
there && exit 0
if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
  echo "tests/services: no apt-get, or not root: the tests against a real archive will be skipped"
  exit 1
fi
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then # keeps the package from starting a server of its own
  printf '#!/bin/sh\nexit 101\n' > "$policy" && chmod 755 "$policy"
  trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
options="-o DPkg::Lock::Timeout=120 -o Acquire::http::Timeout=20 -o Acquire::Retries=1 -qq"
# shellcheck disable=SC2086
timeout 90 apt-get $options update >/dev/null 2>&1
# shellcheck disable=SC2086
timeout 240 apt-get $options install -y --no-install-recommends orthanc orthanc-dicomweb dcmtk >/dev/null 2>&1
if there; then exit 0; fi
echo "tests/services: the packages could not be installed: the tests against a real archive will be skipped"
exit 1
