#!/usr/bin/env bash
# Debian packages of what cross/build.sh made: dunlin-agent and dunlin-hub, for arm64 and amd64.
#
#   cross/deb.sh [-t TARGET]       TARGET: as of build.sh; default `all` that are there
#
# Writes target/dist/dunlin-{agent,hub}_VERSION_ARCH.deb. Nothing is started before it is enrolled (agent) or asked for
# (hub); purging keeps the data, which holds what nobody has a copy of. Exit codes: 0 built; 1 not; 64 usage.
set -euo pipefail
cd "$(dirname "$0")/.."
die() { echo "cross/deb.sh: $*" >&2; exit "${2:-1}"; }
targets=(aarch64-unknown-linux-musl x86_64-unknown-linux-musl)
while getopts t:h opt; do
    case $opt in
        t) [ "$OPTARG" = all ] || targets=("$OPTARG") ;;
        h) sed -n '2,7p' "$0" | cut -c3-; exit 0 ;;
        *) exit 64 ;;
    esac
done
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
# The same input gives the same bytes.
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# package NAME ARCH DESCRIPTION UNITS USERS: what is in $work/NAME becomes a package.
package() {
    local name=$1 arch=$2 about=$3 root=$work/$1 unit
    shift 3
    mkdir -p "$root/DEBIAN" "$root/usr/lib/systemd/system" "$root/usr/lib/sysusers.d" "$root/usr/share/doc/$name"
    for unit in "$@"; do
        sed 's|/usr/local/bin/|/usr/bin/|' "systemd/$unit.service" >"$root/usr/lib/systemd/system/$unit.service"
    done
    cp "systemd/$name.sysusers" "$root/usr/lib/sysusers.d/$name.conf"
    cp LICENSE "$root/usr/share/doc/$name/copyright"
    cat >"$root/DEBIAN/control" <<EOF
Package: $name
Version: $version
Architecture: $arch
Maintainer: The Dunlin authors <dunlin@example.org>
Section: admin
Priority: optional
Recommends: systemd
Description: $about
EOF
    # Running services are started anew with an upgrade; a new one waits for its owner.
    cat >"$root/DEBIAN/postinst" <<EOF
#!/bin/sh
set -e
if [ "\$1" = configure ] && command -v systemd-sysusers >/dev/null; then systemd-sysusers $name.conf; fi
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    [ -z "\$2" ] || systemctl try-restart $(printf '%s.service ' "$@")
fi
EOF
    cat >"$root/DEBIAN/prerm" <<EOF
#!/bin/sh
set -e
if [ "\$1" = remove ] && [ -d /run/systemd/system ]; then systemctl disable --now --quiet $(printf '%s.service ' "$@"); fi
EOF
    cat >"$root/DEBIAN/postrm" <<EOF
#!/bin/sh
set -e
[ ! -d /run/systemd/system ] || systemctl daemon-reload
if [ "\$1" = purge ]; then echo "$name: kept /var/lib/dunlin-*: it holds keys and results that nobody has a copy of"; fi
EOF
    chmod 0755 "$root"/DEBIAN/{postinst,prerm,postrm}
    find "$root" -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +
    dpkg-deb --root-owner-group -Zxz --build "$root" "target/dist/${name}_${version}_$arch.deb" >/dev/null
    echo "target/dist/${name}_${version}_$arch.deb: $(stat -c %s "target/dist/${name}_${version}_$arch.deb") bytes"
}

built=0
for target in "${targets[@]}"; do
    from=target/dist/$target
    [ -x "$from/dunlin-agent" ] || continue
    case $target in aarch64-*) arch=arm64 ;; x86_64-*) arch=amd64 ;; *) die "no such target: $target" 64 ;; esac
    rm -rf "${work:?}"/*
    install -D -m 0755 "$from/dunlin-agent" "$work/dunlin-agent/usr/bin/dunlin-agent"
    # Beside the agent, where that looks for it.
    [ ! -x "$from/dunlin-nvml" ] || install -m 0755 "$from/dunlin-nvml" "$work/dunlin-agent/usr/bin/dunlin-nvml"
    install -D -m 0644 systemd/policy.toml "$work/dunlin-agent/etc/dunlin/policy.toml"
    sed -i 's|/usr/local/bin/|/usr/bin/|' "$work/dunlin-agent/etc/dunlin/policy.toml"
    mkdir -p "$work/dunlin-agent/DEBIAN"
    echo /etc/dunlin/policy.toml >"$work/dunlin-agent/DEBIAN/conffiles"
    package dunlin-agent $arch "Runs jobs of a Dunlin hub on this board, as far as its policy allows" dunlin-exec dunlin-agent
    install -D -m 0755 "$from/dunlin-hub" "$work/dunlin-hub/usr/bin/dunlin-hub"
    install -m 0755 "$from/dunlin" "$work/dunlin-hub/usr/bin/dunlin"
    package dunlin-hub $arch "Hub of a Dunlin fleet, and its command line" dunlin-hub
    built=1
done
[ $built = 1 ] || die "nothing in target/dist; run: cross/build.sh -t all"
