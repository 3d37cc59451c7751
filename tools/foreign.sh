#!/bin/sh
# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
#
# Put somebody else's verifier of SEV-SNP reports (Google's go-sev-guest, from Debian sid) and a Go compiler into build/foreign.
#
# And OpenSSF's program that signs models (model-signing, from PyPI), with a Python environment of its own.
#
# For development alone: tests/foreign shows them what dry runs and `cvmtool model sign` make. Nothing is installed: apt checks Debian's signature with a
# state of its own, and the packages are unpacked below build/foreign/root. Takes about 450 MB.

set -eu
cd "$(dirname "$0")/.."
home=$PWD/build/foreign
mkdir -p "$home"

if [ ! -x "$home/models/bin/model_signing" ]; then
    echo "foreign: fetching model-signing 1.1.1 from PyPI"
    python3 -m venv "$home/models"
    # It needs pyOpenSSL without saying so.
    "$home/models/bin/pip" --disable-pip-version-check -q install model-signing==1.1.1 pyOpenSSL
fi

if [ -x "$home/verify" ] && [ "$home/verify" -nt tests/foreign/verify.go ]; then
    exit 0
fi
mkdir -p "$home/lists/partial" "$home/cache/archives/partial" "$home/parts" "$home/root"

if [ ! -x "$home/root/usr/lib/go-1.26/bin/go" ]; then
    # The mirror is this machine's own choice.
    uri=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' |
        sed -nE 's/ (bookworm|trixie|forky|sid)$//p' | head -n 1)
    if [ -z "$uri" ]; then
        echo "foreign: apt on this machine has no source for Debian, so the address of sid is unknown" >&2
        exit 3
    fi
    cat >"$home/parts/sid.sources" <<EOF
Types: deb
URIs: $uri
Suites: sid
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
EOF
    apt() {
        apt-get -qq -y -o Dir::State::lists="$home/lists" -o Dir::State::status=/dev/null -o Dir::Cache="$home/cache" \
            -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$home/parts" -o Acquire::Languages=none \
            -o APT::Install-Recommends=false -o Debug::NoLocking=true "$@"
    }
    echo "foreign: fetching go-sev-guest and Go 1.26 from Debian sid"
    apt update
    apt install --download-only golang-github-google-go-sev-guest-dev golang-1.26-go
    for package in "$home"/cache/archives/*.deb; do
        dpkg-deb -x "$package" "$home/root"
    done
    rm -rf "$home/cache" "$home/lists"
    # AMD's roots, which the library carries and Debian's package leaves out; the test gives its own roots all the same.
    cp "${CVMTOOL_VECTORS:-../shared/vectors}"/amd-roots/ask_ark_*.pem \
        "$home/root/usr/share/gocode/src/github.com/google/go-sev-guest/verify/trust/"
    # Debian links Go's sources from /usr/share; the links are absolute.
    find "$home/root/usr/lib/go-1.26" -type l | while read -r link; do
        target=$(readlink "$link")
        case $target in /*) ln -sfn "$home/root$target" "$link" ;; esac
    done
fi

echo "foreign: compiling tests/foreign/verify.go"
GOROOT="$home/root/usr/lib/go-1.26" GOPATH="$home/root/usr/share/gocode" GOCACHE="$home/go-cache" GO111MODULE=off \
    CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS= "$home/root/usr/lib/go-1.26/bin/go" build -o "$home/verify" tests/foreign/verify.go
