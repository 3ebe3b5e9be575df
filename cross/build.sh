#!/usr/bin/env bash
# Static binaries for boards: stripped dunlin-agent, dunlin-hub and dunlin, without an interpreter or a dynamic section.
#
#   cross/build.sh [-t TARGET] [-b auto|debian|zig] [-i] [-n] [-r]
#
# TARGET: aarch64-unknown-linux-musl (default), x86_64-unknown-linux-musl, or `all`.
# debian  Debian's packages and crates.io only (what CI uses): rustc-web cargo-web rust-web-src gcc gcc-aarch64-linux-gnu
#         libc6-dev-arm64-cross musl-tools musl-dev:arm64; `-b debian -i` installs them (root).
# zig     rustup and internet: rustup target add, and `pip install ziglang cargo-zigbuild`.
# auto    debian where its compiler is there, else zig.
# -n      dunlin-nvml too: dynamic, as it loads the driver's library, and for glibc 2.27 or newer (JetPack 4), which takes zig
#         as the linker: pip install ziglang cargo-zigbuild.
# -r      builds the static programs a second time, from nothing and in another directory, and compares each byte.
# Writes target/dist/TARGET/{the programs, PROGRAM.crates.txt} and target/dist/SHA256SUMS. Exit codes: 0 built and verified; 1 not; 64 usage.
set -euo pipefail
cd "$(dirname "$0")/.."

target=aarch64-unknown-linux-musl
way=auto
install=no
nvml=no
again=no
while getopts t:b:inrh opt; do
    case $opt in
        t) target=$OPTARG ;;
        b) way=$OPTARG ;;
        i) install=yes ;;
        n) nvml=yes ;;
        r) again=yes ;;
        h) sed -n '2,14p' "$0" | cut -c3-; exit 0 ;;
        *) exit 64 ;;
    esac
done
programs=(dunlin-agent dunlin-hub dunlin)
# Bytes that a stripped agent may have: boards have small flash, and updates travel over links paid by the megabyte.
agent_max=$((3 * 1024 * 1024))
# The newest glibc that the helper may need: JetPack 4's.
glibc=2.27

# No path of this machine in what is shipped.
remap="--remap-path-prefix=$PWD=. --remap-path-prefix=$HOME=~"
flags="-C target-feature=+crt-static -C force-unwind-tables=no $remap"

die() { echo "cross/build.sh: $*" >&2; exit "${2:-1}"; }

packages() {
    local wanted=(rustc-web cargo-web rust-web-src gcc gcc-aarch64-linux-gnu libc6-dev-arm64-cross musl-tools musl-dev:amd64
        musl-dev:arm64 binutils)
    ! dpkg -s "${wanted[@]}" >/dev/null 2>&1 || return 0
    [ "$(id -u)" = 0 ] || die "-i installs Debian's packages, as root: sudo cross/build.sh -b debian -i"
    dpkg --add-architecture arm64
    apt-get update -qq || die "apt-get update failed: is there a mirror? See above"
    apt-get install -y -qq --no-install-recommends "${wanted[@]}" || die "apt-get install failed; see above"
}

# Debian's compiler builds std itself, for musl, with Debian's gcc. Its std wants libunwind.a: gcc's own unwinder serves,
# but glibc's _dl_find_object, which that asks first, is not there: "not found" makes it walk the program headers.
build_debian() {
    local to=$1 target arch gcc lib under
    local settings=() targets=()
    shift
    for target in "$@"; do
        arch=${target%%-*} gcc=${target%%-*}-linux-musl-gcc lib=$to/${target%%-*}
        for tool in "$gcc" "$arch-linux-gnu-gcc" /usr/bin/cargo /usr/bin/rustc; do
            command -v "$tool" >/dev/null || die "$tool is missing; run as root: cross/build.sh -b debian -i"
        done
        mkdir -p "$lib"
        echo 'int _dl_find_object(void *pc, void *result) { (void)pc; (void)result; return -1; }' >"$lib/find.c"
        "$arch-linux-gnu-gcc" -Os -c "$lib/find.c" -o "$lib/find.o"
        cp "$("$arch-linux-gnu-gcc" -print-file-name=libgcc_eh.a)" "$lib/libunwind.a"
        "$arch-linux-gnu-ar" r "$lib/libunwind.a" "$lib/find.o" 2>/dev/null
        under=${target//-/_}
        # From where it is looked for, the workspace's root: a path of this machine would make other bytes.
        settings+=("CARGO_TARGET_${under^^}_LINKER=$gcc" "CC_$under=$gcc" "AR_$under=$arch-linux-gnu-ar"
            "CARGO_TARGET_${under^^}_RUSTFLAGS=$flags -C relocation-model=static -C link-self-contained=no -L native=$lib")
        targets+=(--target "$target")
    done
    # All targets at once: while one program is linked, which takes one processor a minute, others are compiled.
    env "${settings[@]}" RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 "CARGO_TARGET_DIR=$to" \
        /usr/bin/cargo build --locked --profile dist "${targets[@]}" -Zbuild-std=std,panic_abort -p dunlin-agent -p dunlin-hub
}

build_zig() {
    local to=$1 target
    shift
    command -v cargo-zigbuild >/dev/null || die "cargo-zigbuild is missing; run: pip install ziglang cargo-zigbuild"
    command -v rustup >/dev/null || die "rustup is missing; see https://rustup.rs, or run as root: cross/build.sh -b debian -i"
    for target in "$@"; do
        rustup target add "$target" || die "rustup cannot get $target; on Debian: cross/build.sh -b debian -i"
        CARGO_TARGET_DIR=$to RUSTFLAGS="$flags" cargo zigbuild --locked --profile dist --target "$target" -p dunlin-agent -p dunlin-hub
    done
}

# The helper is glibc's: zig links it as for an old one, whichever compiler made its code.
build_nvml() {
    local gnu=${1%-musl}-gnu to=$2
    command -v cargo-zigbuild >/dev/null || die "cargo-zigbuild is missing; run: pip install ziglang cargo-zigbuild"
    local flags="-C force-unwind-tables=no $remap"
    case $way in
        debian)
            env RUSTC=/usr/bin/rustc CARGO=/usr/bin/cargo RUSTC_BOOTSTRAP=1 "CARGO_TARGET_DIR=$to" RUSTFLAGS="$flags" \
                cargo-zigbuild zigbuild --locked --profile dist --target "$gnu.$glibc" -Zbuild-std=std,panic_abort -p dunlin-nvml
            ;;
        zig)
            rustup target add "$gnu"
            CARGO_TARGET_DIR=$to RUSTFLAGS="$flags" cargo zigbuild --locked --profile dist --target "$gnu.$glibc" -p dunlin-nvml
            ;;
    esac
}

verify_nvml() {
    local file=$1 newest
    readelf -lW "$file" | grep -q INTERP || die "$file is static: it could not load the driver's library"
    newest=$(readelf -VW "$file" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -1)
    [ "$(printf '%s\n' "GLIBC_$glibc" "$newest" | sort -V | tail -1)" = "GLIBC_$glibc" ] || die "$file needs $newest"
    echo "$file: dynamic, needs $newest, $(stat -c %s "$file") bytes"
}

# Every crate that went into a program, with its licence: from the lock file, so it is what was built.
crates() {
    cargo tree --locked --edges normal --target "$1" -p "$2" --prefix none --format '{p} {l}' | sed 's/ ([^)]*\/[^)]*)//; s/ (\*)$//' | sort -u
}

# A build can succeed and still not be static: each file is looked at.
verify() {
    local file=$1 machine
    case $2 in aarch64-*) machine=AArch64 ;; x86_64-*) machine=X86-64 ;; esac
    readelf -h "$file" | grep -q "Machine:.*$machine" || die "$file is not for $machine"
    readelf -d "$file" | grep -q 'no dynamic section' || die "$file has a dynamic section"
    if readelf -lW "$file" | grep -q INTERP; then die "$file has an interpreter"; fi
    local bytes
    bytes=$(stat -c %s "$file")
    case $file in
        */dunlin-agent) [ "$bytes" -le $agent_max ] || die "$file has $bytes bytes, over $agent_max" ;;
    esac
    echo "$file: static, $machine, $bytes bytes"
}

[ $install = no ] || packages
case $way in
    auto) if [ -x /usr/bin/rustc ] && [ -d /usr/lib/rustlib/src ]; then way=debian; else way=zig; fi ;;
    debian | zig) ;;
    *) die "-b must be auto, debian or zig, not $way" 64 ;;
esac
case $target in
    all) targets=(aarch64-unknown-linux-musl x86_64-unknown-linux-musl) ;;
    aarch64-unknown-linux-musl | x86_64-unknown-linux-musl) targets=("$target") ;;
    *) die "-t must be aarch64-unknown-linux-musl, x86_64-unknown-linux-musl or all, not $target" 64 ;;
esac
command -v readelf >/dev/null || die "readelf is missing; run as root: apt-get install binutils"
"build_$way" target/cross "${targets[@]}"
for target in "${targets[@]}"; do
    mkdir -p "target/dist/$target"
    for program in "${programs[@]}"; do
        cp "target/cross/$target/dist/$program" "target/dist/$target/$program"
        verify "target/dist/$target/$program" "$target"
    done
    crates "$target" dunlin-agent >"target/dist/$target/dunlin-agent.crates.txt"
    crates "$target" dunlin-hub >"target/dist/$target/dunlin-hub.crates.txt"
    if [ $nvml = yes ]; then
        build_nvml "$target" target/cross
        cp "target/cross/${target%-musl}-gnu/dist/dunlin-nvml" "target/dist/$target/"
        verify_nvml "target/dist/$target/dunlin-nvml"
        crates "${target%-musl}-gnu" dunlin-nvml >"target/dist/$target/dunlin-nvml.crates.txt"
    fi
done
if [ $again = yes ]; then
    # From another checkout: neither its path nor an earlier build may show.
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    git ls-files -z | xargs -0 cp --parents -t "$work"
    (cd "$work" && flags=${flags/$OLDPWD=/$work=} && "build_$way" target/cross "${targets[@]}")
    for target in "${targets[@]}"; do
        for program in "${programs[@]}"; do
            cmp "$work/target/cross/$target/dist/$program" "target/dist/$target/$program" || die "$program is not the same again"
        done
    done
    echo "built again elsewhere: each byte is the same"
fi
(cd target/dist && sha256sum ./*/dunlin* >SHA256SUMS && cat SHA256SUMS)
