#!/bin/sh
# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
#
# Make this checkout usable: system packages (as root, on Debian 12 and 13) and a virtual environment in .venv.
#
#   sh tools/setup.sh            what cvmtool needs
#   sh tools/setup.sh --tests    and what its tests need
#   sh tools/setup.sh --system   the system packages alone (for root, before an ordinary user goes on)
#
# It says each thing it installs and why, changes nothing that is there already, and takes about a second then.
# It starts no service and needs no systemd. Exit 3: something is missing that it may not install; it is listed.

set -eu
cd "$(dirname "$0")/.."

tests=no
system_only=no
for option in "$@"; do
    case $option in
    --tests) tests=yes ;;
    --system) system_only=yes ;;
    *)
        echo "usage: sh tools/setup.sh [--tests] [--system]" >&2
        exit 2
        ;;
    esac
done

PATH=$PATH:/usr/sbin:/sbin
export LC_ALL=C.UTF-8

say() { printf 'setup: %s\n' "$*"; }

# ---- what is needed: package | least version | why ------------------------------------------------------------------

needs() {
    cat <<EOF
qemu-system-x86|1:9.2|runs the guests
libvirt-daemon|11.0|starts and stops them
libvirt-daemon-driver-qemu|11.0|lets libvirt drive QEMU
libvirt-dev|11.0|the binding libvirt-python is compiled against it
openssh-client|-|lets libvirt reach remote hosts
gcc|-|compiles that binding
libc6-dev|-|compiles that binding
pkg-config|-|finds libvirt for that binding
squashfs-tools|-|makes the file system of an input pack
cryptsetup-bin|-|encrypts an input pack and seals it with dm-verity
dpkg|-|unpacks the packages of a guest image
apt|-|fetches them, and checks Debian's signature
debian-archive-keyring|-|holds the keys of that signature
ca-certificates|-|lets pip reach the package index
EOF
    if [ "$tests" = yes ]; then
        cat <<EOF
openssh-server|-|tests: the guest's SSH configuration, on the loopback (the service stays off)
nftables|-|tests: the guest's packet filter, in namespaces of its own
iproute2|-|tests: those namespaces
skopeo|-|tests: reads our OCI images with somebody else's code
age|-|tests: opens what we seal to recipients with somebody else's code, and the other way
cpio|-|tests: unpacks our initrd with somebody else's code
libvirt-clients|11.0|tests: checks our domain against libvirt's own schema
EOF
    fi
}

# ---- system packages ------------------------------------------------------------------------------------------------

version_of() { # of an installed package, else nothing
    dpkg-query -W -f '${db:Status-Abbrev}${Version}\n' "$1" 2>/dev/null | sed -n 's/^ii *//p' | head -n 1
}

candidate_of() { apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: //p' | grep -v '^(none)$' || true; }

missing_packages() { # prints: package|least version|why
    needs | while IFS='|' read -r package least why; do
        have=$(version_of "$package")
        if [ -z "$have" ]; then
            echo "$package|$least|$why"
        elif [ "$least" != - ] && ! dpkg --compare-versions "$have" ge "$least"; then
            echo "$package|$least|$why (installed: $have)"
        fi
    done
}

backports_missing() { # a candidate is older than what is needed
    printf '%s\n' "$1" | while IFS='|' read -r package least why; do
        [ "$least" = - ] && continue
        candidate=$(candidate_of "$package")
        if [ -z "$candidate" ] || ! dpkg --compare-versions "$candidate" ge "$least"; then
            # Backports have a low priority: they are no candidate unless asked for.
            apt-cache madison "$package" | grep -q bookworm-backports || echo "$package"
        fi
    done
}

add_backports() {
    file=/etc/apt/sources.list.d/cvmtool-backports.sources
    # The mirror is this machine's own choice.
    uri=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' |
        sed -n 's/ bookworm$//p' | grep -i debian | head -n 1)
    if [ -z "$uri" ]; then
        say "apt on this machine has no source for bookworm, so the address of bookworm-backports is unknown" >&2
        exit 3
    fi
    say "adding bookworm-backports to apt ($file): Debian 12 itself has QEMU 7.2 and libvirt 9"
    cat >"$file" <<EOF
# Added by cvmtool's tools/setup.sh: QEMU >= 9.2 and libvirt >= 11 for Debian 12.
Types: deb
URIs: $uri
Suites: bookworm-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
EOF
}

apt_install() {
    log=$(mktemp)
    if ! DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends -o Dpkg::Use-Pty=0 install "$@" >"$log" 2>&1; then
        tail -n 30 "$log" >&2
        say "apt-get could not install: $* (the whole log: $log)" >&2
        exit 3
    fi
    rm -f "$log"
}

install_packages() { # $1: lines of missing_packages
    target=
    say "updating apt's package lists"
    apt-get -qq update || say "apt-get update failed; going on with the lists that are there" >&2
    if [ "$debian" = 12 ]; then
        if [ -n "$(backports_missing "$1")" ]; then
            add_backports
            apt-get -qq update
        fi
        target=bookworm-backports
    fi
    plain=
    newer=
    had_sshd=$(version_of openssh-server)
    # No pipe here: the lists are needed after the loop.
    while IFS='|' read -r package least why; do
        say "installing $package: $why"
        if [ "$least" = - ]; then plain="$plain $package"; else newer="$newer $package"; fi
    done <<EOF
$1
EOF
    # Debian's way to say that nothing is started during an installation.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod 755 $policy
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT INT TERM HUP
    fi
    # shellcheck disable=SC2086  # lists of words
    if [ -n "$newer" ]; then
        apt_install ${target:+-t $target} $newer
    fi
    # shellcheck disable=SC2086
    if [ -n "$plain" ]; then
        apt_install $plain
    fi
    if [ "$tests" = yes ] && [ -z "$had_sshd" ] && [ -d /run/systemd/system ]; then
        systemctl -q disable --now ssh.service ssh.socket 2>/dev/null || true
    fi
}

report_missing() { # $1: lines of missing_packages
    say "missing on this machine:" >&2
    printf '%s\n' "$1" | while IFS='|' read -r package least why; do
        [ "$least" = - ] && least= || least=" (>= $least)"
        printf '  %-28s %s\n' "$package$least" "$why" >&2
    done
}

check_other_system() { # not Debian: programs instead of packages
    lacking=$(
        for row in \
            'qemu-system-x86_64|QEMU >= 9.2 for x86: runs the guests' \
            'virsh|libvirt >= 11 with its QEMU driver: starts and stops them' \
            'gcc|compiles libvirt-python' \
            'pkg-config|finds libvirt for libvirt-python' \
            'mksquashfs|squashfs-tools >= 4.5: makes the file system of an input pack' \
            'cryptsetup|encrypts an input pack' \
            'veritysetup|seals it with dm-verity' \
            'dpkg-deb|unpacks the Debian packages of a guest image' \
            'apt-get|fetches them, and checks Debian'"'"'s signature'; do
            command -v "${row%%|*}" >/dev/null 2>&1 || printf '  %-28s %s\n' "${row%%|*}" "${row#*|}"
        done
        if command -v pkg-config >/dev/null 2>&1 && ! pkg-config --exists 'libvirt >= 11.0'; then
            printf '  %-28s %s\n' "libvirt >= 11, development" "libvirt-python is compiled against it"
        fi
        [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] ||
            printf '  %-28s %s\n' debian-archive-keyring "the keys that sign Debian's packages"
    )
    if [ -n "$lacking" ]; then
        say "this system is $system; packages are installed on Debian 12 and 13 only. Missing here:" >&2
        printf '%s\n' "$lacking" >&2
        exit 3
    fi
}

debian=
system=unknown
if [ -r /etc/os-release ]; then
    system=$(. /etc/os-release && echo "${PRETTY_NAME:-unknown}")
    debian=$(. /etc/os-release && [ "${ID:-}" = debian ] && echo "${VERSION_ID:-}" || true)
fi
if [ "$(uname -m)" != x86_64 ]; then
    say "this machine is $(uname -m); SEV-SNP guests, and the tools that build their image, are x86_64" >&2
    exit 3
fi
case $debian in
12 | 13)
    missing=$(missing_packages)
    if [ -n "$missing" ] && [ "$(id -u)" = 0 ]; then
        install_packages "$missing"
        missing=$(missing_packages)
    fi
    if [ -n "$missing" ]; then
        report_missing "$missing"
        extra=
        [ "$tests" = yes ] && extra=' --tests'
        say "install it with: sudo sh tools/setup.sh --system$extra" >&2
        exit 3
    fi
    ;;
*) check_other_system ;;
esac
if [ "$system_only" = yes ]; then
    say "system packages are complete"
    exit 0
fi

# ---- the virtual environment ----------------------------------------------------------------------------------------

usable() { # a Python >= 3.11 with venv and pip's wheel, and with its headers
    "$1" - 2>/dev/null <<'EOF'
import ensurepip, os, sys, sysconfig, venv
header = os.path.join(sysconfig.get_path("include"), "Python.h")
sys.exit(not (sys.version_info >= (3, 11) and os.path.exists(header)))
EOF
}

find_python() {
    for candidate in ${PYTHON:-} python3 /usr/bin/python3 python3.14 python3.13 python3.12 python3.11; do
        if command -v "$candidate" >/dev/null 2>&1 && usable "$candidate"; then
            echo "$candidate"
            return
        fi
    done
}

stamp=.venv/.cvmtool-setup
# What the environment was made from, and whether its Python still runs.
wanted=$(sha256sum pyproject.toml)
if [ -f $stamp ] && [ "$(cat $stamp)" = "$wanted" ] && .venv/bin/python -c '' 2>/dev/null; then
    say "everything is there"
    exit 0
fi
python=$(find_python)
if [ -z "$python" ] && [ -n "$debian" ] && [ "$(id -u)" = 0 ]; then
    say "installing python3, python3-venv and python3-dev: cvmtool is written in Python, and a binding is compiled for it"
    apt_install python3 python3-venv python3-dev
    python=$(find_python)
fi
if [ -z "$python" ]; then
    say "missing: Python >= 3.11 with venv and headers (Debian: apt-get install python3 python3-venv python3-dev)" >&2
    exit 3
fi
if ! .venv/bin/python -c '' 2>/dev/null; then
    say "making .venv with $("$python" -c 'import sys; print(sys.executable, sys.version.split()[0])')"
    "$python" -m venv --clear .venv
fi
say "installing cvmtool and what it is developed with into .venv (editable)"
.venv/bin/python -m pip --disable-pip-version-check -q install -e '.[dev,host]'
printf '%s\n' "$wanted" >$stamp
say "done: .venv/bin/cvmtool"
