#!/usr/bin/env bash
# Tests and times gfocal on this machine's GPU: ./run.sh [check|sanitize|bench|profile]...
#
# Each stage fits in 8 minutes and can be run alone; without arguments all four run in turn. What
# they print also goes to the folder $OUT (default: out beside this script), with the results as
# JSON. A tool that is not there is named, and its stage goes on without it.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
here=$PWD
export OUT=${OUT:-$here/out} CARGO_MANIFEST_DIR=$here RUST_BACKTRACE=1
mkdir -p "$OUT"
failures=0

# run NAME SECONDS COMMAND...: with a limit; what it prints goes to $OUT/NAME.log too.
run() {
    local name=$1 limit=$2 start=$SECONDS status
    shift 2
    timeout "$limit" "$@" >"$OUT/$name.log" 2>&1
    status=$?
    echo "$name: exit status $status after $((SECONDS - start)) s"
    if ((status != 0)); then
        failures=$((failures + 1))
        tail -n 25 "$OUT/$name.log"
    fi
}

has() { command -v "$1" >/dev/null 2>&1 || { echo "no $1 here: left out"; return 1; }; }

# The tests of what a device computes, on this machine's driver; 1000 bitwise equal repeats, fewer where an
# emulated driver runs them; graph replays; every f16 and bf16 logit.
check() {
    local repeats=1000
    has nvidia-smi || repeats=4
    bin/gfocal info
    for test in checks/*; do
        GFOCAL_REPEATS=$repeats run "check-$(basename "$test")" 240 "$test"
    done
}

# Out-of-bounds and misaligned accesses, races in shared memory, reads of what was never written.
sanitize() {
    has compute-sanitizer || return 0
    for tool in memcheck racecheck initcheck; do
        GFOCAL_REPEATS=1 run "sanitize-$tool-golden" 220 compute-sanitizer --tool "$tool" --error-exitcode 1 checks/golden
    done
    GFOCAL_REPEATS=1 run sanitize-memcheck-semantics 120 compute-sanitizer --tool memcheck --error-exitcode 1 checks/semantics
}

# gfocal against a copy and against its peers, on the same data.
bench() {
    run bench-gfocal 230 bash -c "bin/gfocal bench --device cuda --format json --plot '$OUT/gfocal.svg' >'$OUT/gfocal.json'"
    python3 -c 'import torch' 2>/dev/null || { echo "no PyTorch here: peers left out"; return 0; }
    run bench-peers 230 bash -c "python3 benches/peers/bench.py --device cuda >'$OUT/peers.json'"
    python3 benches/peers/join.py "$OUT/gfocal.json" "$OUT/peers.json" | tee "$OUT/bench.txt"
}

# What bounds the main kernels.
profile() {
    has ncu || return 0
    run profile 400 ncu --clock-control none --set full --launch-skip 20 --launch-count 12 \
        bin/gfocal bench --device cuda --sizes 134400x80 --ops qfl --dtype f32,bf16 --format json
}

stages=("$@")
((${#stages[@]})) || stages=(check sanitize bench profile)
for stage in "${stages[@]}"; do
    case $stage in
    check | sanitize | bench | profile) echo "== $stage"; "$stage" ;;
    *) echo "no stage $stage: check, sanitize, bench or profile" >&2; exit 2 ;;
    esac
done
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | tee "$OUT/machine.txt"
date -u +%F >>"$OUT/machine.txt"
if ((failures)); then
    echo "$failures failed"
    exit 1
fi
echo "all good"
