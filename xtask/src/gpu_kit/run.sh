#!/usr/bin/env bash
# Tests and times gfocal on this machine's GPU: ./run.sh [STAGE]...
#
#   check      what the device computes, against the references; every test of the CUDA path
#   sanitize   the same under compute-sanitizer, as far as there is time
#   bench      gfocal against a copy and a read: table, JSON and a plot
#   peers      PyTorch eager, torch.compile and Triton on the same kind of data, beside gfocal
#   profile    Nsight Compute on the main kernels
#   criterion  the benches of `cargo bench`
#
# Each stage ends within 8 minutes and can be run alone; without arguments all run in this order. What they
# print also goes to the folder $OUT (default: out beside this script), with the results as JSON. A tool
# that is not there is named, and its stage left out.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 2
here=$PWD
export OUT=${OUT:-$here/out} CARGO_MANIFEST_DIR=$here RUST_BACKTRACE=1
STAGES=(check sanitize bench peers profile criterion)
STAGE_SECONDS=460
failures=0

# run NAME SECONDS COMMAND...: within its limit and the stage's; what it prints goes to $OUT/NAME.log.
run() {
    local name=$1 limit=$2 start=$SECONDS status
    local left=$((stage_end - SECONDS))
    shift 2
    if ((left < 5)); then
        failures=$((failures + 1))
        echo "$name: not run, the stage's $STAGE_SECONDS s are over"
        return 1
    fi
    ((limit < left)) || limit=$left
    timeout --kill-after 5 "$limit" "$@" >"$OUT/$name.log" 2>&1
    status=$?
    if ((status == 0)); then
        echo "$name: good, $((SECONDS - start)) s"
        return 0
    fi
    failures=$((failures + 1))
    if ((status == 124 || status == 137)); then
        echo "$name: FAILED, stopped after $limit s; $OUT/$name.log ends with"
    else
        echo "$name: FAILED with exit status $status; $OUT/$name.log ends with"
    fi
    tail -n 25 "$OUT/$name.log"
    return 1
}

has() {
    command -v "$1" >/dev/null 2>&1 && return 0
    echo "$stage: left out, there is no $1 in PATH ($2)"
    return 1
}

# One module of the tests in a process: 1000 bitwise equal repeats, fewer where the driver is emulated;
# graph replays; every f16 and bf16 logit.
check() {
    local repeats=1000 module
    [[ $info == *"not a GPU"* ]] && repeats=4
    echo "$info"
    run check-bench 60 bin/gfocal bench --device cuda --check-only --ops qfl,dfl,integral --sizes 2100x80,4096x17,4096x16
    run check-bench-head 120 bin/gfocal bench --device cuda --check-only --ops head --sizes 22300x80,8525x20,1021x3
    for module in golden semantics dfl_tiles gfl graph errors gradcheck exhaustive head_classes head_cuda head_graph head_errors head head_golden head_gradcheck boxes assign assign_graph properties large determinism; do
        # Those of graph without those of head_graph: a name is looked for anywhere in another.
        GFOCAL_REPEATS=$repeats run "check-$module" 200 bin/kit "$module::" --skip "_$module::"
    done
}

# Out-of-bounds and misaligned accesses, races in shared memory, reads of what was never written.
sanitize() {
    has compute-sanitizer "it comes with the CUDA toolkit" || return 0
    local sanitizer=(compute-sanitizer --error-exitcode 1 --tool)
    export GFOCAL_REPEATS=1
    local rows=(bin/gfocal bench --device cuda --check-only --ops qfl,dfl,integral --sizes 2100x80,4096x17,4096x16)
    local head=(bin/gfocal bench --device cuda --check-only --ops head --sizes 22300x80)
    run sanitize-memcheck-bench 60 "${sanitizer[@]}" memcheck "${rows[@]}"
    run sanitize-racecheck-bench 60 "${sanitizer[@]}" racecheck "${rows[@]}"
    run sanitize-initcheck-bench 40 "${sanitizer[@]}" initcheck "${rows[@]}"
    run sanitize-memcheck-head 50 "${sanitizer[@]}" memcheck "${head[@]}" --dtype f32,bf16
    run sanitize-racecheck-head 50 "${sanitizer[@]}" racecheck "${head[@]}" --dtype f16
    run sanitize-initcheck-head 30 "${sanitizer[@]}" initcheck "${head[@]}" --dtype f16
    run sanitize-memcheck-golden 60 "${sanitizer[@]}" memcheck bin/kit golden:: --skip _golden::
    run sanitize-memcheck-semantics 50 "${sanitizer[@]}" memcheck bin/kit semantics:: --skip _semantics::
    run sanitize-memcheck-head_cuda 60 "${sanitizer[@]}" memcheck bin/kit head_cuda:: --skip _head_cuda::
}

bench() {
    run bench-json 330 bash -c 'bin/gfocal bench --device cuda --format json --plot "$OUT/gfocal.svg" >"$OUT/gfocal.json"'
    run bench-integral 100 bash -c 'bin/gfocal bench --device cuda --ops integral --seconds 0.3 >"$OUT/integral.txt"'
}

# The largest sizes, since torch.compile takes its time for each.
peers() {
    has python3 "the peers need it, and PyTorch" || return 0
    if ! python3 -c 'import torch' 2>/dev/null; then
        echo "peers: left out, python3 has no torch (pip install torch)"
        return 0
    fi
    run peers-qfl 170 bash -c 'python3 benches/peers/bench.py --device cuda --seconds 0.3 --budget 120 --ops qfl --sizes 134400x80,8400x80 >"$OUT/peers-qfl.json"'
    run peers-dfl 130 bash -c 'python3 benches/peers/bench.py --device cuda --seconds 0.3 --budget 90 --ops dfl --sizes 262144x17,4096x17 >"$OUT/peers-dfl.json"'
    run peers-head 150 bash -c 'python3 benches/peers/bench.py --device cuda --seconds 0.3 --budget 90 --ops head --sizes 356800x80,22300x80 --dtype f32,bf16 --passes forward_backward >"$OUT/peers-head.json"'
    local results=("$OUT"/peers-*.json)
    if [[ -s $OUT/gfocal.json ]]; then results+=("$OUT/gfocal.json"); else echo "peers: without gfocal, run the stage bench first"; fi
    python3 benches/peers/join.py "${results[@]}" | tee "$OUT/bench.txt"
}

# profiled NAME COUNT KERNELS COMMAND...: the first COUNT launches of the kernels whose names match, within 40 s.
profiled() {
    local name=$1 count=$2 kernels=$3
    shift 3
    run "profile-$name" 40 ncu --clock-control none --set full --kernel-name-base function \
        --kernel-name "regex:$kernels" --launch-count "$count" "$@"
    if grep -q ERR_NVGPUCTRPERM "$OUT/profile-$name.log" 2>/dev/null; then
        echo "profile: this driver gives its counters to root only: run as root, or load nvidia with NVreg_RestrictProfilingToAdminUsers=0"
        return 1
    fi
    return 0
}

# What bounds the main kernels: the calls of forward, loss and gradient, and gradient alone; of the head both
# launches of the first two, for 16 images of COCO. A check runs them in this order before anything else. The
# assigner's are those of the tests, and small.
profile() {
    has ncu "it comes with the CUDA toolkit" || return 0
    local op size dtype
    for op in qfl dfl; do
        if [[ $op == qfl ]]; then size=134400x80; else size=262144x17; fi
        for dtype in f32 f16 bf16; do
            profiled "$op-$dtype" 3 "^${op}_" \
                bin/gfocal bench --device cuda --check-only --ops "$op" --sizes "$size" --dtype "$dtype" || return 0
        done
    done
    for dtype in f32 f16 bf16; do
        profiled "head-$dtype" 4 "^head_" \
            bin/gfocal bench --device cuda --check-only --ops head --sizes 356800x80 --dtype "$dtype" || return 0
    done
    profiled atss 2 "^atss_" bin/kit --test-threads 1 assign::as_mmdetection_does
}

criterion() {
    run criterion 450 bin/losses --bench --warm-up-time 0.3 --measurement-time 1 /cuda/
}

stages=("$@")
((${#stages[@]})) || stages=("${STAGES[@]}")
for stage in "${stages[@]}"; do
    if [[ " ${STAGES[*]} " != *" $stage "* ]]; then
        echo "there is no stage $stage; there are: ${STAGES[*]}" >&2
        exit 2
    fi
done
if ! mkdir -p "$OUT"; then
    echo "\$OUT cannot be made: set it to a folder that can be written" >&2
    exit 2
fi
if ! info=$(bin/gfocal info 2>&1) || [[ $info != *"chooses cuda:"* ]]; then
    printf '%s\nthere is no GPU here that gfocal can use, so nothing is run\n' "$info" >&2
    exit 2
fi
echo "$info" >"$OUT/info.txt"
for stage in "${stages[@]}"; do
    echo "== $stage"
    stage_end=$((SECONDS + STAGE_SECONDS))
    "$stage"
done
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | tee "$OUT/machine.txt"
date -u +%F >>"$OUT/machine.txt"
if ((failures)); then
    echo "$failures failed"
    exit 1
fi
echo "all that was run is good"
