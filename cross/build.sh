#!/usr/bin/env bash
# Static binaries for boards: stripped dunlin-agent, dunlin-hub and dunlin, without an interpreter or a dynamic section.
#
#   cross/build.sh [-t TARGET] [-b auto|debian|zig]
#
# TARGET: aarch64-unknown-linux-musl (default), x86_64-unknown-linux-musl, or `all`.
# debian  Debian's packages and crates.io only (what CI uses): rustc-web cargo-web rust-web-src gcc gcc-aarch64-linux-gnu
#         libc6-dev-arm64-cross musl-tools musl-dev:arm64; `-b debian -i` installs them (root).
# zig     rustup and internet: rustup target add, and `pip install ziglang cargo-zigbuild`.
# auto    debian where its compiler is there, else zig.
# Writes target/dist/TARGET/{the three} and target/dist/SHA256SUMS. Exit codes: 0 built and verified; 1 not; 64 usage.
set -euo pipefail
cd "$(dirname "$0")/.."

target=aarch64-unknown-linux-musl
way=auto
install=no
while getopts t:b:ih opt; do
    case $opt in
        t) target=$OPTARG ;;
        b) way=$OPTARG ;;
        i) install=yes ;;
        h) sed -n '2,13p' "$0" | cut -c3-; exit 0 ;;
        *) exit 64 ;;
    esac
done
programs=(dunlin-agent dunlin-hub dunlin)
# Bytes that a stripped agent may have: boards have small flash, and updates travel over links paid by the megabyte.
agent_max=$((3 * 1024 * 1024))

die() { echo "cross/build.sh: $*" >&2; exit "${2:-1}"; }

packages() {
    dpkg --add-architecture arm64
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends rustc-web cargo-web rust-web-src gcc gcc-aarch64-linux-gnu \
        libc6-dev-arm64-cross musl-tools musl-dev:amd64 musl-dev:arm64 binutils
}

# Debian's compiler builds std itself, for musl, with Debian's gcc. Its std wants libunwind.a: gcc's own unwinder serves,
# but glibc's _dl_find_object, which that asks first, is not there: "not found" makes it walk the program headers.
build_debian() {
    local arch=${1%%-*} gcc=$1
    gcc=$arch-linux-musl-gcc
    command -v "$gcc" >/dev/null || die "$gcc is missing; run: cross/build.sh -b debian -i"
    local lib=target/cross/$arch
    mkdir -p "$lib"
    echo 'int _dl_find_object(void *pc, void *result) { (void)pc; (void)result; return -1; }' >"$lib/find.c"
    "$arch-linux-gnu-gcc" -Os -c "$lib/find.c" -o "$lib/find.o"
    cp "$("$arch-linux-gnu-gcc" -print-file-name=libgcc_eh.a)" "$lib/libunwind.a"
    "$arch-linux-gnu-ar" r "$lib/libunwind.a" "$lib/find.o" 2>/dev/null
    local under=${1//-/_}
    env "CARGO_TARGET_${under^^}_LINKER=$gcc" "CC_$under=$gcc" "AR_$under=$arch-linux-gnu-ar" \
        RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=target/cross \
        RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static -C link-self-contained=no -C force-unwind-tables=no -L native=$PWD/$lib --remap-path-prefix=$PWD=. --remap-path-prefix=$HOME=~" \
        /usr/bin/cargo build --locked --profile dist --target "$1" -Zbuild-std=std,panic_abort -p dunlin-agent -p dunlin-hub
}

build_zig() {
    command -v cargo-zigbuild >/dev/null || die "cargo-zigbuild is missing; run: pip install ziglang cargo-zigbuild"
    rustup target add "$1"
    CARGO_TARGET_DIR=target/cross cargo zigbuild --locked --profile dist --target "$1" -p dunlin-agent -p dunlin-hub
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
for target in "${targets[@]}"; do
    "build_$way" "$target"
    mkdir -p "target/dist/$target"
    for program in "${programs[@]}"; do
        cp "target/cross/$target/dist/$program" "target/dist/$target/$program"
        verify "target/dist/$target/$program" "$target"
    done
done
(cd target/dist && sha256sum ./*/dunlin* >SHA256SUMS && cat SHA256SUMS)
