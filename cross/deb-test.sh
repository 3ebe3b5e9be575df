#!/usr/bin/env bash
# Installs the packages of this machine's architecture in a fresh Debian and purges them again, as root.
#
#   cross/deb-test.sh [DIR]        DIR: where the Debian is made and kept for the next time; default: a temporary one
#
# It needs debootstrap and a mirror. In the chroot no systemd runs: what a unit does when it runs is another test.
# Exit codes: 0 all held; 1 something did not.
set -euo pipefail
cd "$(dirname "$0")/.."
die() { echo "cross/deb-test.sh: $*" >&2; exit 1; }
arch=$(dpkg --print-architecture)
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
root=${1:-}
keep=yes
[ -n "$root" ] || { root=$(mktemp -d); keep=no; }
cleanup() {
    umount "$root/proc" 2>/dev/null || true
    [ $keep = yes ] || rm -rf "$root"
}
trap cleanup EXIT
[ -x "$root/usr/bin/dpkg" ] || debootstrap --variant=minbase --include=systemd bookworm "$root" >/dev/null
# The programs look for themselves in /proc.
mount -t proc proc "$root/proc"
inside() { chroot "$root" "$@"; }
# What an earlier test left there.
inside dpkg --purge dunlin-agent dunlin-hub >/dev/null 2>&1 || true
rm -rf "$root"/etc/dunlin "$root"/var/lib/dunlin* "$root"/usr/local/bin/dunlin* "$root"/etc/sysusers.d/dunlin*
find "$root/etc/systemd/system" -name 'dunlin*' -delete
cp target/dist/dunlin-{agent,hub}_"${version}_$arch".deb "$root/"

inside dpkg -i "/dunlin-agent_${version}_$arch.deb" "/dunlin-hub_${version}_$arch.deb"
for user in dunlin-agent dunlin-hub dunlin-job0 dunlin-job3; do
    inside getent passwd $user >/dev/null || die "no user $user after the installation"
done
for unit in dunlin-agent dunlin-exec dunlin-hub; do
    inside systemd-analyze verify --man=no "$unit.service" || die "$unit.service is not in order"
    ! inside systemctl is-enabled --quiet $unit || die "$unit was enabled before anybody asked"
done
inside dunlin-agent --version
inside dunlin-hub --version
inside dunlin --version
inside dunlin-agent policy check || die "the first policy is not in order"
inside dunlin-hub check
# What the packages brought is not written a second time.
steps=$(inside dunlin-agent install-service --dry-run)
grep -q 'packaged   /usr/lib/systemd/system/dunlin-exec.service' <<<"$steps" || die "install-service: $steps"
# What the owner changed stays.
echo '# mine' >>"$root/etc/dunlin/policy.toml"
inside dpkg -i --force-confold "/dunlin-agent_${version}_$arch.deb" >/dev/null
grep -q '# mine' "$root/etc/dunlin/policy.toml" || die "an upgrade wrote over the policy"
mkdir -p "$root/var/lib/dunlin-agent"
echo secret >"$root/var/lib/dunlin-agent/identity.key"
inside dpkg --purge dunlin-agent dunlin-hub
[ -e "$root/var/lib/dunlin-agent/identity.key" ] || die "a purge took a key"
left=$(inside find /usr /etc -name '*dunlin*')
[ -z "$left" ] || die "left behind: $left"
rm -rf "$root/var/lib/dunlin-agent" "$root"/dunlin-*.deb
echo "installed, upgraded and purged on $(inside cat /etc/debian_version) $arch: all as it should be"
