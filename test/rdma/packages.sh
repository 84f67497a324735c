#!/usr/bin/env bash
# usage: packages.sh PACKAGE...
# Installs those of Debian's packages that are missing, or says how.
set -euo pipefail
die() { echo >&2 "$*"; exit 1; }
command -v apt-get >/dev/null && command -v dpkg-query >/dev/null || die "this machine has no apt: install by hand what Debian has in $*"
missing=()
for p in "$@"; do
	dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
done
[ ${#missing[@]} -gt 0 ] || exit 0
install="apt-get install -y --no-install-recommends ${missing[*]}"
[ "$(id -u)" = 0 ] || die "packages are missing; as root: apt-get update && $install"
echo "installing ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
(apt-get update && DEBIAN_FRONTEND=noninteractive $install) >"$log" 2>&1 || { tail >&2 -5 "$log"; die "'$install' did not work"; }
