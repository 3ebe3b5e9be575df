#!/usr/bin/env bash
# The arm64 binaries of cross/build.sh on a real arm64 kernel, emulated as a whole machine (LMDB needs more of a kernel than
# qemu's user mode has) whose cgroups are v2 only. Hub and agent in the guest do the main job, a job is held by its limits and
# killed whatever it does, a native agent works for the guest's hub and the guest's agent for a native hub; and twice the
# power is cut under work. cross/qemu-guest.sh is the guest's end.
#
#   cross/qemu-test.sh [-k KERNEL.deb | -6] [-w DIR] [-i]
#
# -k: another kernel package for arm64; -6: Debian's newest with 16 KiB pages; default: Debian's linux-image-cloud-arm64.
# -w: where downloads are kept; default target/qemu. -i: installs what is missing here (root). It needs Debian's
# qemu-system-arm, cpio, kmod, e2fsprogs, `dpkg --add-architecture arm64`, and cross/build.sh -t all before. Without root.
# Exit codes: 0 all held; 1 something did not; 64 usage.
set -euo pipefail
cd "$(dirname "$0")/.."
here=$PWD
die() { echo "cross/qemu-test.sh: $*" >&2; exit 1; }
kernel='' pages=4 work=target/qemu install=no
while getopts k:w:6ih opt; do
    case $opt in
        k) kernel=$(realpath "$OPTARG") ;;
        w) work=$OPTARG ;;
        6) pages=16 ;;
        i) install=yes ;;
        h) sed -n '2,14p' "$0" | cut -c3-; exit 0 ;;
        *) exit 64 ;;
    esac
done
if [ $install = yes ] && ! command -v qemu-system-aarch64 >/dev/null; then
    dpkg --add-architecture arm64
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends qemu-system-arm ipxe-qemu- cpio kmod e2fsprogs xz-utils
fi
for tool in qemu-system-aarch64 cpio /sbin/depmod /sbin/mkfs.ext4; do
    command -v $tool >/dev/null || die "$tool is missing; run: cross/qemu-test.sh -i (root)"
done
guest=$here/target/dist/aarch64-unknown-linux-musl
host=$here/target/dist/$(uname -m)-unknown-linux-musl
[ -x "$guest/dunlin-agent" ] && [ -x "$host/dunlin-hub" ] || die "nothing to test; run: cross/build.sh -t all"
mkdir -p "$work"
cd "$work"

package() { ls "$1"_*.deb 2>/dev/null | tail -1; }
fetch() { [ -n "$(package "$1")" ] || apt-get download -qq "$1:arm64" >/dev/null || die "cannot download $1:arm64"; package "$1"; }
depends() { apt-cache depends "$1:arm64" | sed -n 's/.*Depends: \(linux-image[^:]*\).*/\1/p' | head -1; }
if [ -z "$kernel" ]; then
    case $pages in
        4) kernel=$(fetch "$(depends linux-image-cloud-arm64)") ;;
        16) kernel=$(fetch "$(apt-cache pkgnames linux-image-6 | grep -E '^linux-image-[0-9.+deb-]*-arm64-16k$' | sort -V | tail -1)") ;;
    esac
fi

# What the guest sees: an initramfs with busybox, perl for jobs that misbehave, our programs, and drivers for disk and network.
rm -rf root kernel.d && mkdir -p root/{proc,sys,dev,data,tmp,modules,run/dunlin,usr/local/bin,etc/dunlin,var/lib}
for name in busybox-static perl-base libc6 libcrypt1; do dpkg-deb -x "$(fetch $name)" root; done
# Of what they bring, nothing but what perl loads.
rm -rf root/usr/share root/usr/lib/aarch64-linux-gnu/{gconv,audit} root/lib/aarch64-linux-gnu/gconv root/etc/ld.so.conf.d
dpkg-deb -x "$kernel" kernel.d
cp "$guest"/dunlin{,-agent,-hub} root/usr/local/bin/
[ -d kernel.d/lib ] || ln -s usr/lib kernel.d/lib
version=$(ls kernel.d/lib/modules)
find kernel.d/lib/modules -name '*.ko.xz' -exec unxz {} +
/sbin/depmod -b kernel.d "$version"
n=100
for name in virtio_pci virtio_blk virtio_net ext4; do
    # A driver that is built in needs no file.
    /sbin/modprobe -d kernel.d -S "$version" --show-depends $name | sed -n 's/^insmod \([^ ]*\).*/\1/p'
done | awk '!seen[$0]++' >modules.list
while read -r file; do cp "$file" "root/modules/$((n++)).ko"; done <modules.list
for user in root:0 dunlin-agent:990 dunlin-job0:991 dunlin-job1:992; do
    echo "${user%:*}:x:${user#*:}:${user#*:}::/:/bin/sh" >>root/etc/passwd
    echo "${user%:*}:x:${user#*:}:" >>root/etc/group
done
cat >root/etc/dunlin/policy.toml <<'END'
schema = 1
[ceilings]
grace = "500ms"
[slots]
users = ["dunlin-job0", "dunlin-job1"]
[signing]
require = "never"
[[rule]]
id = "selftest"
program = "/usr/local/bin/dunlin-agent"
args = ["--version"]
[[rule]]
id = "tools"
program = "/bin/busybox"
launcher = true
args = [{ one_of = ["sleep", "echo"] }, { int = [1, 100] }]
timeout = "2m"
limits = { memory = "64MiB", pids = 50, cpu = "50%" }
[[rule]]
id = "spin"
program = "/bin/busybox"
launcher = true
args = ["sh", "-c", "while :; do :; done"]
timeout = "5s"
limits = { cpu = "50%" }
[[rule]]
id = "perl"
program = "/usr/bin/perl"
launcher = true
args = ["-e", { re = '.*' }]
timeout = "8s"
limits = { memory = "64MiB", pids = 50 }
END
cp "$here/cross/qemu-guest.sh" root/init
for name in sh mount sleep uname ip insmod poweroff cat grep mkdir sed tr find wc sort sync; do ln -s busybox "root/bin/$name"; done
chmod +x root/init
(cd root && find . | cpio -o -H newc --quiet -R 0:0 | gzip -1) >initrd

port=$((20000 + RANDOM % 20000))
# boot WHAT DISK LOG [INITRD]: starts the machine; its console goes to LOG. The guest's hub is at our PORT + 2.
boot() {
    # Not under timeout(1): what is killed must be the machine itself.
    qemu-system-aarch64 -M virt -cpu max -smp 2 -m 768 -nographic -no-reboot -kernel kernel.d/boot/vmlinuz-* \
        -initrd "${4:-initrd}" -append "console=ttyAMA0 quiet panic=-1 $1" -device virtio-net-pci,netdev=net,romfile= \
        -netdev "user,id=net,hostfwd=udp:127.0.0.1:$((port + 2))-:7443" \
        -drive "file=$2,if=virtio,format=raw,cache=directsync" >"$3" 2>&1 </dev/null &
    machine=$!
}
cut_power() { kill -9 "$machine"; wait "$machine" 2>/dev/null || true; machine=; }
disk() { rm -f "$1"; truncate -s 256M "$1"; /sbin/mkfs.ext4 -q "$1"; }
# until_ WHAT COMMAND...: within three minutes, and while the machine is on.
until_() {
    local what=$1 on=yes
    shift
    for _ in $(seq 900); do
        [ -z "${machine:-}" ] || kill -0 "$machine" 2>/dev/null || on=no
        "$@" && return 0
        [ $on = yes ] || die "the machine went off: no $what; see the logs in $work"
        sleep 0.2
    done
    die "waited in vain: $what"
}
# reaches LOG WORD: the guest says it, or that it failed.
reaches() {
    until_ "$2 in $work/$1" grep -aqs "^$2\|GUEST-EXIT" "$1"
    grep -a '^GUEST\|^green\|^yellow\|^red\|^ok\|^dunlin-agent' "$1" | tr -d '\r' || true
    grep -aq "^$2" "$1" || die "in the guest it did not work; see $work/$1"
}
cleanup() { kill -9 ${hub:-} ${egret:-} ${machine:-} 2>/dev/null || true; }
trap cleanup EXIT
begun=$SECONDS

disk self.img
boot do=self self.img self.log
# A native agent for the guest's hub.
rm -rf egret hub && mkdir egret hub
until_ "the guest's ticket" grep -aqs '^TICKET\|GUEST-EXIT' self.log
if ticket=$(sed -n 's/^TICKET //p' self.log | tr -d '\r' | grep .); then
    printf '[[uplink]]\nurl = "127.0.0.1:%s"\n' $((port + 2)) >egret.toml
    printf 'schema = 1\n[[rule]]\nid = "uname"\nprogram = "/usr/bin/uname"\nargs = ["-m"]\n' >policy.toml
    "$host/dunlin-agent" join - --data egret --config egret.toml <<<"$ticket" >/dev/null
    "$host/dunlin-agent" run --with-exec --data egret --config egret.toml --policy policy.toml >egret.log 2>&1 </dev/null &
    egret=$!
fi
reaches self.log CUT
cut_power
kill -9 $egret
wait $egret 2>/dev/null || true
ids=$(sed -n 's/^CUT //p' self.log | tr -d '\r' | sed 's/ *$//; s/ /,/g')
boot "do=again ids=$ids" self.img again.log
reaches again.log 'GUEST-EXIT 0'
wait "$machine"
machine=
# Acknowledged before the cut: one was running and is tried again, five waited and ran once.
[ "$(grep -ac '^GUEST: t-[a-z0-9]* ok *.\?$' again.log)" = 5 ] || die "not each of five ran once; see $work/again.log"
[ "$(grep -ac '^GUEST: t-[a-z0-9]* interrupted power_loss ok *.\?$' again.log)" = 1 ] || die "see $work/again.log"
echo "power cut under hub and agent: six acknowledged tasks, none lost, none doubled"

# The native hub, the guest's agent, and a cut.
printf 'data = "%s/hub"\nquic = "127.0.0.1:%s"\nhttp = "127.0.0.1:%s"\nadvertise = ["10.0.2.2:%s"]\n' "$PWD" $port $((port + 1)) $port >hub.toml
"$host/dunlin-hub" serve --config hub.toml >hub.log 2>&1 </dev/null &
hub=$!
export DUNLIN_HUB=http://127.0.0.1:$((port + 1)) DUNLIN_TOKEN_FILE=$PWD/hub/owner.token
api() { "$host/dunlin" "$@"; }
until_ "the hub answers" eval 'api nodes >/dev/null 2>&1'
api node invite heron >ticket
{ cat initrd; echo ticket | cpio -o -H newc --quiet | gzip -1; } >initrd.board
disk board.img
boot do=board board.img board1.log initrd.board
until_ "the guest's agent is healthy" eval 'api nodes | grep -q healthy'
api submit --wait -- /usr/local/bin/dunlin-agent --version
task=$(api submit -- /bin/busybox sleep 10)
until_ "the task runs" eval 'api tasks | grep "$task" | grep -q running'
cut_power
boot do=board board.img board2.log initrd.board
until_ "the task is done" eval 'api tasks | grep "$task" | grep -q done'
api task show "$task" --json >task.json
grep -q '"power_loss"' task.json || die "the first attempt did not end as interrupted(power_loss); see $work/task.json"
echo "power cut under the guest's agent of a native hub: the first attempt is interrupted(power_loss), the second ran to its end"
echo "all of it on pages of $pages KiB took $((SECONDS - begun)) s"
