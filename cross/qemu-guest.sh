#!/bin/busybox sh
# Init of the machine that qemu-test.sh boots, on busybox and our programs; `do=` of the kernel's command line says what.
#   self    hub, executor and uplink here: the main job, what a job may not do, a job on the other side, then work to lose
#   again   the same disk after the cut: what was acknowledged must be there, and end
#   board   executor and uplink only, for a hub on the other side, until the power is cut
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mount -t cgroup2 cgroup /sys/fs/cgroup
# As systemd leaves it: who makes a cgroup here can bound it.
echo '+memory +pids +cpu' >/sys/fs/cgroup/cgroup.subtree_control
for module in /modules/*.ko; do insmod $module; done
ip link set lo up; ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; ip route add default via 10.0.2.2
mount -t ext4 /dev/vda /data || echo "GUEST: no disk"
export PATH=/usr/local/bin:/bin DUNLIN_TOKEN_FILE=/data/hub/owner.token
mkdir -p /data/agent
what=$(sed -n 's/.*do=\([a-z]*\).*/\1/p' /proc/cmdline)
finish() { [ "$1" = 0 ] || cat /data/*.log; sync; echo "GUEST-EXIT $1"; poweroff -f; }
fail() { echo "GUEST: FAILED: $*"; finish 1; }
version=/usr/local/bin/dunlin-agent

hub() {
    printf 'data = "/data/hub"\nadvertise = ["127.0.0.1:7443"]\nquic = "0.0.0.0:7443"\n' >/etc/dunlin/hub.toml
    dunlin-hub serve >/data/hub.log 2>&1 &
    while ! dunlin nodes >/dev/null 2>&1; do sleep 0.1; done
}
executor() {
    dunlin-agent exec --data /data/exec --peer root >/data/exec.log 2>&1 &
    while [ ! -S /run/dunlin/exec.sock ]; do sleep 0.1; done
}
# ended WANTED COMMAND...: the job ends so, by its exit code.
ended() {
    wanted=$1; shift
    dunlin submit --wait --max-attempts 1 --node heron -- "$@" >/tmp/out 2>&1
    got=$?
    [ $got = "$wanted" ] || { cat /tmp/out; fail "$* ended with $got, not $wanted"; }
}
# newest FIELD: of the newest task's only attempt.
newest() {
    id=$(dunlin tasks --json --limit 1 | sed -n 's/.*"taskId": *"\([^"]*\)".*/\1/p' | sed 1q)
    dunlin task show --json "$id" | tr -d ' \n' | sed -n 's/.*"'"$1"'":\([0-9a-z]\{1,\}\|\[[^]]*\]\).*/\1/p'
}
# Processes of the jobs' users.
left() { grep -l '^Uid:[^0-9]*99[12]' /proc/[0-9]*/status 2>/dev/null; }

confine() {
    echo "GUEST: shut in with $(newest sandbox)"
    # What was asked for is in the kernel's own files.
    job=$(dunlin submit --node heron -- /bin/busybox sleep 2)
    until dunlin task show --json "$job" | grep -q '"status": *"running"'; do sleep 0.1; done
    limits=
    for file in memory.max pids.max cpu.max; do
        limits="$limits $file $(cat $(find /sys/fs/cgroup -name $file) | grep -v '^max' | sort -n | sed 1q),"
    done
    echo "GUEST: cgroup v2 of a job:$limits kill $(find /sys/fs/cgroup -name cgroup.kill | wc -l)"
    [ "$limits" = " memory.max 67108864, pids.max 50, cpu.max 50000 100000," ] || fail "its limits are not in force"
    ended 137 /usr/bin/perl -e 'my @a; push @a, "x" x (1<<20) for 1..4096'
    echo "GUEST: a memory bomb is oom_killed at $(newest peakMemoryKib) KiB"
    ended 124 /usr/bin/perl -e '$SIG{TERM}="IGNORE"; for(;;){ fork }'
    echo "GUEST: a fork bomb is killed after $(newest durationMs) ms, left over $(newest leftoverKilled)"
    ended 124 /bin/busybox sh -c 'while :; do :; done'
    spent=$(($(newest userMs) + $(newest systemMs))) took=$(newest durationMs)
    echo "GUEST: a job of half a processor had $spent ms of $took"
    [ $((spent * 10)) -lt $((took * 8)) ] || fail "cpu.max does not hold"
    ended 124 /usr/bin/perl -e '$SIG{TERM}="IGNORE"; if(!fork){ for(;;){ my $p=fork; exit 0 if $p } } sleep 100'
    ended 124 /usr/bin/perl -e 'use POSIX; $SIG{TERM}="IGNORE"; if(!fork){ POSIX::setsid(); if(!fork){ sleep 100 } exit 0 } sleep 100'
    ended 0 /usr/bin/perl -e 'use POSIX; $SIG{TERM}="IGNORE"; if(!fork){ POSIX::setsid(); POSIX::close($_) for 0..63; if(!fork){ sleep 100 } POSIX::_exit(0) } sleep 1'
    ended 124 /usr/bin/perl -e 'kill "STOP", $$; sleep 100'
    ended 124 /usr/bin/perl -e '$SIG{TERM}="IGNORE"; kill "KILL", getppid; sleep 100'
    for n in 1 2 3 4 5 6 7 8 9 10; do [ -z "$(left)" ] && break; sleep 0.2; done
    [ -z "$(left)" ] || fail "something of a job is left: $(left)"
    echo "GUEST: fork-hopper, daemons, stopped, killer of its guard: all dead"
}

case $what in
board)
    executor
    [ -e /data/agent/enrolment.toml ] || dunlin-agent join - --data /data/agent </ticket || finish 1
    exec dunlin-agent run --data /data/agent 2>&1
    ;;
self)
    echo "GUEST: $(uname -rm), pages of $(sed -n 's/^KernelPageSize: *//p' /proc/self/smaps | sed 1q)"
    dunlin-agent doctor --with-exec --data /data/agent | grep -E 'landlock|cgroup|sandbox|fsync'
    hub
    dunlin node invite heron >/ticket || finish 1
    executor
    dunlin-agent up --no-service --data /data/agent - </ticket 2>/dev/null || finish 1
    dunlin-agent run --data /data/agent >/data/agent.log 2>&1 &
    ended 0 $version --version
    cat /tmp/out
    confine
    # A board of another architecture, on the other side.
    echo "TICKET $(dunlin node invite egret)"
    dunlin submit --wait --node egret -- /usr/bin/uname -m >/tmp/out 2>&1 || fail "the other side's board"
    echo "GUEST: a native agent says $(cat /tmp/out)"
    # Acknowledged, and one of them under way: then the power goes.
    first=$(dunlin submit --node heron -- /bin/busybox sleep 20)
    until dunlin task show --json "$first" | grep -q '"status": *"running"'; do sleep 0.1; done
    for n in 1 2 3 4 5; do dunlin submit --node heron -- /bin/busybox echo $n; done >/tmp/ids || fail "submit"
    echo "$first" >>/tmp/ids
    echo "CUT $(tr '\n' ' ' </tmp/ids)"
    sleep 1000
    ;;
again)
    hub
    executor
    dunlin-agent run --data /data/agent >/data/agent.log 2>&1 &
    ids=$(sed -n 's/.*ids=\([^ ]*\).*/\1/p' /proc/cmdline | tr , ' ')
    for id in $ids; do
        until dunlin task show --json "$id" >/tmp/task && grep -q '"status": *"\(done\|failed\)"' /tmp/task; do sleep 0.2; done
        # Each attempt's code and detail, in their order.
        echo "GUEST: $id $(grep -E '"(code|detail)"' /tmp/task | sed 's/.*: "\{0,1\}\([a-z_]*\).*/\1/' | tr '\n' ' ')"
    done
    [ "$(dunlin tasks --state done --json --limit 200 | grep -c '"taskId"')" -gt 5 ] || fail "tasks are gone"
    finish 0
    ;;
esac
