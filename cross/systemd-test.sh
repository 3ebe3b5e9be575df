#!/usr/bin/env bash
# The services under a real systemd, in a container of systemd-nspawn: installed, killed, restarted, rejoined, taken away.
#
#   cross/systemd-test.sh [DIR]    DIR: where the Debian is made and kept for the next time; default: a temporary one
#
# As root; it needs debootstrap, systemd-container, a mirror, and cross/build.sh for this machine before. The container sees
# this machine's network: ports 7443 and 7080 must be free. Exit codes: 0 all held; 1 something did not.
set -euo pipefail
cd "$(dirname "$0")/.."
die() { echo "cross/systemd-test.sh: $*" >&2; exit 1; }
bin=target/dist/$(uname -m)-unknown-linux-musl
[ -x "$bin/dunlin-agent" ] || die "nothing to test; run: cross/build.sh -t $(uname -m)-unknown-linux-musl"
root=${1:-}
keep=yes
[ -n "$root" ] || { root=$(mktemp -d); keep=no; }
[ -x "$root/usr/bin/dpkg" ] || debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus bookworm "$root" >/dev/null
root=$(realpath "$root")
rm -rf "$root"/etc/systemd/system/dunlin* "$root"/etc/dunlin "$root"/var/lib/dunlin* "$root"/usr/local/bin/dunlin*
find "$root"/etc/systemd/system "$root"/usr/lib/systemd/system "$root"/usr/lib/sysusers.d "$root"/etc/sysusers.d -name 'dunlin*' -delete
install "$bin/dunlin-agent" "$bin/dunlin-hub" "$bin/dunlin" "$root/root/"

SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 systemd-nspawn -q -D "$root" --boot --register=no --keep-unit --console=read-only \
    >/dev/null 2>&1 </dev/null &
nspawn=$!
cleanup() {
    # SIGTERM lets the container's systemd power off.
    kill $nspawn 2>/dev/null || true
    wait $nspawn 2>/dev/null || true
    [ $keep = yes ] || rm -rf "$root"
}
trap cleanup EXIT
# The container's init is known by its root directory: nothing here may ever run outside.
init=
for _ in $(seq 100); do
    for pid in $(pgrep -x systemd); do
        [ "$(stat -Lc %d:%i "/proc/$pid/root/" 2>/dev/null)" != "$(stat -Lc %d:%i "$root/")" ] || init=$pid
    done
    [ -z "$init" ] || break
    sleep 0.2
done
[ -n "$init" ] || die "the container does not start"
inside() {
    timeout 120 nsenter -t "$init" -m -u -i -n -p -C env -i PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin HOME=/root \
        DUNLIN_TOKEN_FILE=/var/lib/dunlin-hub/owner.token bash -euc "cd /root; $*"
}
for _ in $(seq 100); do ! inside 'systemctl is-system-running' 2>/dev/null | grep -q 'running\|degraded' || break; sleep 0.2; done

# What it would do, and for an image, before anything is here.
inside './dunlin-agent install-service --dry-run' >"$root/root/steps"
grep -q 'dunlin-exec.service' "$root/root/steps" || die "--dry-run does not say what it would write"
inside '[ -z "$(find /etc /usr/lib/systemd -name "dunlin*")" ]' || die "--dry-run wrote something"
inside './dunlin-agent install-service --root /tmp/image; ls /tmp/image/etc/systemd/system/dunlin-exec.service' >/dev/null
inside '[ -z "$(find /etc /usr/lib/systemd -name "dunlin*")" ]' || die "--root wrote outside of the image"
inside 'cp dunlin-agent /tmp/; setpriv --reuid 65534 --clear-groups /tmp/dunlin-agent install-service 2>&1 || true' >"$root/root/refused"
grep -q 'sudo' "$root/root/refused" || die "without root: $(cat "$root/root/refused")"
inside './dunlin-hub install-service' >/dev/null
# A ticket that the container itself can use; and a certificate's reload that has none must not end the hub.
inside 'echo "advertise = [\"127.0.0.1:7443\"]" >/etc/dunlin/hub.toml; systemctl restart dunlin-hub; systemctl reload dunlin-hub'
begun=$(date +%s%N)
inside './dunlin node invite heron >t; ./dunlin-agent up - <t' | grep '^ok'
echo "up: $((($(date +%s%N) - begun) / 1000000)) ms"
inside 'for n in $(seq 100); do ./dunlin nodes | grep -q healthy && break; sleep 0.1; done
    [ "$(./dunlin submit --wait -- /usr/local/bin/dunlin-agent --version)" = "$(./dunlin-agent --version)" ]'
inside './dunlin-agent up - <t' | grep -q 'already joined' || die "a second run does not say that it has joined"
inside './dunlin-agent up --resume' | grep -q 'welcomed' || die "--resume"
# Tenths, as systemd-analyze wants them.
for unit in dunlin-agent:15 dunlin-exec:50 dunlin-hub:15; do
    inside "systemd-analyze verify --man=no ${unit%:*}.service" || die "${unit%:*} is not in order"
    inside "systemd-analyze security --offline=true --threshold=${unit#*:} --no-pager /etc/systemd/system/${unit%:*}.service" |
        grep 'Overall exposure' || die "${unit%:*} is exposed by more than ${unit#*:} tenths"
done
inside 'a=$(systemctl show -p MainPID --value dunlin-agent); ./dunlin-agent install-service >/dev/null
    [ $a = $(systemctl show -p MainPID --value dunlin-agent) ]' || die "installing again disturbed the uplink"

# again WHAT COMMAND: after it the uplink is another process, soon, and takes work.
again() {
    inside "pid() { systemctl show -p MainPID --value dunlin-agent; }; was=\$(pid); $2; t=\$(date +%s%N)
        for n in \$(seq 200); do [ \$(pid) != \$was ] && systemctl is-active -q dunlin-agent && break; sleep 0.05; done
        systemctl is-active -q dunlin-agent dunlin-exec
        echo \"$1: the uplink is back after \$(((\$(date +%s%N) - t) / 1000000)) ms\"
        ./dunlin submit --wait -- /usr/local/bin/dunlin-agent --version >/dev/null" || die "$1: the uplink is not back"
}
again "kill -9 of the uplink" 'kill -9 $was'
again "kill -9 of the executor" 'kill -9 $(systemctl show -p MainPID --value dunlin-exec)'
again "restart of the executor" 'systemctl restart dunlin-exec'
again "an executor that did not start for 4 s" 'cd /usr/local/bin; mv dunlin-agent x
    kill -9 $(systemctl show -p MainPID --value dunlin-exec); sleep 4; mv x dunlin-agent; cd /root'
inside 'systemctl reload dunlin-exec; systemctl is-active -q dunlin-exec'
inside 'kill -9 $(systemctl show -p MainPID --value dunlin-hub); sleep 2.5; systemctl is-active -q dunlin-hub' || die "the hub is not back"
inside 'for n in $(seq 100); do [ "$(./dunlin-agent status --json | grep -c "\"connected\": true")" = 1 ] && break; sleep 0.1; done
    ./dunlin-agent doctor >d || true; ! grep ^red d; ./dunlin-hub doctor >d || true; ! grep ^red d' || die "a doctor is red"
inside './dunlin node invite egret >t; ./dunlin-agent up --rejoin - <t' >/dev/null || die "rejoin"
inside './dunlin-agent install-service --uninstall; ./dunlin-hub install-service --uninstall' >/dev/null
inside '[ -z "$(find /etc /usr/lib/systemd -name "dunlin-*")" ]; [ -e /etc/dunlin/policy.toml ]' || die "left behind, or taken too much"
echo "installed, killed, restarted, rejoined and taken away: all as it should be"
