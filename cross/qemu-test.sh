#!/usr/bin/env bash
# The arm64 binaries of cross/build.sh on a real arm64 kernel, emulated as a whole machine (LMDB needs more of a kernel than
# qemu's user mode has): hub and agent in the guest, the guest's agent with this machine's hub, and a power cut amid a task.
#
#   cross/qemu-test.sh [-k KERNEL.deb] [-w DIR]
#
# -k: another kernel package for arm64 (16 KiB pages: linux-image-*-arm64-16k); default: Debian's linux-image-cloud-arm64,
# downloaded. -w: where downloads are kept; default target/qemu. It needs Debian's qemu-system-arm, cpio, kmod, e2fsprogs,
# `dpkg --add-architecture arm64`, and cross/build.sh -t all before. No root. Exit codes: 0 all held; 1 something did not.
set -euo pipefail
cd "$(dirname "$0")/.."
die() { echo "cross/qemu-test.sh: $*" >&2; exit 1; }
kernel=
work=target/qemu
while getopts k:w:h opt; do
    case $opt in
        k) kernel=$(realpath "$OPTARG") ;;
        w) work=$OPTARG ;;
        h) sed -n '2,10p' "$0" | cut -c3-; exit 0 ;;
        *) exit 64 ;;
    esac
done
guest=$PWD/target/dist/aarch64-unknown-linux-musl
host=$PWD/target/dist/$(uname -m)-unknown-linux-musl
[ -x "$guest/dunlin-agent" ] && [ -x "$host/dunlin-hub" ] || die "nothing to test; run: cross/build.sh -t all"
mkdir -p "$work"
cd "$work"

package() { ls "$1"_*.deb 2>/dev/null | tail -1; }
fetch() { [ -n "$(package "$1")" ] || apt-get download -qq "$1:arm64" >/dev/null || die "cannot download $1:arm64"; package "$1"; }
busybox=$(fetch busybox-static)
if [ -z "$kernel" ]; then
    newest=$(apt-cache depends linux-image-cloud-arm64:arm64 | sed -n 's/.*Depends: \(linux-image[^:]*\).*/\1/p' | head -1)
    kernel=$(fetch "$newest")
fi

# What the guest sees: an initramfs with busybox, our programs, and the kernel's drivers for disk and network.
rm -rf root kernel.d && mkdir -p root/{bin,proc,sys,dev,data,tmp,modules,run/dunlin,usr/local/bin,etc/dunlin,var/lib}
dpkg-deb -x "$kernel" kernel.d
dpkg-deb -x "$busybox" busybox.d
cp busybox.d/bin/busybox root/bin/
for name in sh mount sleep uname ip insmod poweroff cat grep mkdir sed tr; do ln -s busybox "root/bin/$name"; done
cp "$guest"/dunlin* root/usr/local/bin/
[ -d kernel.d/lib ] || ln -s usr/lib kernel.d/lib
modules=kernel.d/lib/modules
version=$(ls "$modules")
find "$modules" -name '*.ko.xz' -exec unxz {} +
/sbin/depmod -b kernel.d "$version"
n=100
for name in virtio_pci virtio_blk virtio_net ext4; do
    # A driver that is built in needs no file.
    /sbin/modprobe -d kernel.d -S "$version" --show-depends $name | sed -n 's/^insmod \([^ ]*\).*/\1/p'
done | awk '!seen[$0]++' >modules.list
while read -r file; do
    cp "$file" "root/modules/$((n++)).ko"
done <modules.list
printf 'root:x:0:0::/:/bin/sh\ndunlin-agent:x:990:990::/:/bin/false\ndunlin-job0:x:991:991::/:/bin/false\ndunlin-job1:x:992:992::/:/bin/false\n' >root/etc/passwd
printf 'root:x:0:\ndunlin-agent:x:990:\ndunlin-job0:x:991:\ndunlin-job1:x:992:\n' >root/etc/group
cat >root/etc/dunlin/policy.toml <<'EOF'
schema = 1
[slots]
users = ["dunlin-job0", "dunlin-job1"]
[signing]
require = "never"
[[rule]]
id = "selftest"
program = "/usr/local/bin/dunlin-agent"
args = ["--version"]
[[rule]]
id = "sleep"
program = "/bin/busybox"
launcher = true
args = ["sleep", { int = [1, 100] }]
timeout = "2m"
EOF
cat >root/init <<'EOF'
#!/bin/sh
# Does what the kernel's command line says, and says how that ended.
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mount -t cgroup2 cgroup /sys/fs/cgroup
# As systemd leaves it: who makes a cgroup here can bound it.
echo '+memory +pids +cpu' >/sys/fs/cgroup/cgroup.subtree_control
for module in /modules/*.ko; do insmod $module; done
ip link set lo up; ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; ip route add default via 10.0.2.2
mount -t ext4 /dev/vda /data || echo "GUEST: no disk"
export PATH=/usr/local/bin:/bin
finish() { echo "GUEST-EXIT $1"; poweroff -f; }
if [ -z "$(sed -n 's/.*do=\([a-z]*\).*/\1/p' /proc/cmdline | grep self)" ]; then
    # The uplink of an enrolled board, and its executor, until the power is cut.
    dunlin-agent exec --data /data/exec --peer root 2>&1 &
    while [ ! -S /run/dunlin/exec.sock ]; do sleep 0.1; done
    [ -e /data/agent/enrolment.toml ] || dunlin-agent join - --data /data/agent </ticket || finish 1
    exec dunlin-agent run --data /data/agent 2>&1
fi
echo "GUEST: $(uname -rm), pages of $(sed -n 's/^KernelPageSize: *//p' /proc/self/smaps | sed 1q)"
mkdir -p /data/agent
dunlin-agent doctor --with-exec --data /data/agent | grep -E 'landlock|cgroup|sandbox|fsync'
printf 'data = "/data/hub"\nadvertise = ["127.0.0.1:7443"]\nquic = "127.0.0.1:7443"\n' >/etc/dunlin/hub.toml
dunlin-hub serve >/data/hub.log 2>&1 &
export DUNLIN_TOKEN_FILE=/data/hub/owner.token
while ! dunlin nodes >/dev/null 2>&1; do sleep 0.1; done
dunlin node invite heron >/ticket || finish 1
dunlin-agent exec --data /data/exec --peer root >/data/exec.log 2>&1 &
while [ ! -S /run/dunlin/exec.sock ]; do sleep 0.1; done
dunlin-agent up --no-service --socket /run/dunlin/exec.sock --data /data/agent - </ticket 2>/dev/null || finish 1
dunlin-agent run --data /data/agent >/data/agent.log 2>&1 &
dunlin submit --wait -- /usr/local/bin/dunlin-agent --version || { cat /data/*.log; finish 1; }
echo "GUEST: shut in with $(dunlin tasks --json | sed -n '/"sandbox"/,/]/s/.*"\([a-z_]*\)",*$/\1/p' | tr '\n' ' ')"
finish 0
EOF
chmod +x root/init
(cd root && find . | cpio -o -H newc --quiet -R 0:0 | gzip -1) >initrd

# boot WHAT DISK LOG: starts the machine; its console goes to LOG.
boot() {
    # Not under timeout(1): what is killed must be the machine itself.
    qemu-system-aarch64 -M virt -cpu max -smp 2 -m 768 -nographic -no-reboot -kernel kernel.d/boot/vmlinuz-* \
        -initrd "${4:-initrd}" -append "console=ttyAMA0 quiet panic=-1 do=$1" -netdev user,id=net -device virtio-net-pci,netdev=net,romfile= \
        -drive "file=$2,if=virtio,format=raw,cache=directsync" >"$3" 2>&1 </dev/null &
    machine=$!
}
disk() { rm -f "$1"; truncate -s 256M "$1"; /sbin/mkfs.ext4 -q "$1"; }
# until WHAT COMMAND...: within two minutes.
until_() {
    local what=$1 n
    shift
    for n in $(seq 600); do "$@" && return 0; sleep 0.2; done
    die "waited in vain: $what"
}
cleanup() { kill -9 ${hub:-} ${machine:-} 2>/dev/null || true; }
trap cleanup EXIT

disk self.img
begun=$SECONDS
boot self self.img self.log
until_ "the guest is done" grep -aqs GUEST-EXIT self.log
grep -a '^GUEST\|^green\|^yellow\|^red\|^ok\|^dunlin-agent' self.log | tr -d '\r' || true
grep -aq 'GUEST-EXIT 0' self.log || die "in the guest it did not work; see $work/self.log"
echo "hub, agent and a job in the guest: $((SECONDS - begun)) s from power on to power off"

# The native hub, the guest's agent, and a cut.
rm -rf hub && mkdir hub
port=$((20000 + RANDOM % 20000))
printf 'data = "%s/hub"\nquic = "127.0.0.1:%s"\nhttp = "127.0.0.1:%s"\nadvertise = ["10.0.2.2:%s"]\n' "$PWD" $port $((port + 1)) $port >hub.toml
"$host/dunlin-hub" serve --config hub.toml >hub.log 2>&1 </dev/null &
hub=$!
export DUNLIN_HUB=http://127.0.0.1:$((port + 1)) DUNLIN_TOKEN_FILE=$PWD/hub/owner.token
api() { "$host/dunlin" "$@"; }
until_ "the hub answers" eval 'api nodes >/dev/null 2>&1'
api node invite heron >ticket
{ cat initrd; echo ticket | cpio -o -H newc --quiet | gzip -1; } >initrd.board
disk board.img
boot board board.img board1.log initrd.board
until_ "the guest's agent is healthy" eval 'api nodes | grep -q healthy'
api submit --wait -- /usr/local/bin/dunlin-agent --version
task=$(api submit -- /bin/busybox sleep 20)
until_ "the task runs" eval 'api tasks | grep "$task" | grep -q running'
kill -9 $machine
wait $machine 2>/dev/null || true
echo "power cut while $task ran"
boot board board.img board2.log initrd.board
until_ "the task is done" eval 'api tasks | grep "$task" | grep -q done'
api task show "$task" --json >task.json 2>/dev/null || api tasks --json >task.json
grep -q '"power_loss"' task.json || die "the first attempt did not end as interrupted(power_loss); see $work/task.json"
echo "after the cut: the first attempt is interrupted(power_loss), the second ran to its end"
