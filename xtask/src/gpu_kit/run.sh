#!/usr/bin/env bash
# Tests and times gfocal on this machine's GPU.
#
#   ./run.sh lease        for a machine that is lent for minutes: every stage, small, within 480 s in all
#   ./run.sh [STAGE]...   these stages, or every one, with more to do and 480 s for each
#
#   load      how long the driver takes for the kernels, the first time and the second
#   check     every operation in every type, against its formula
#   bench     gfocal against a copy and a read, beside what `cargo xtask model` foretold
#   tests     every test of the CUDA path
#   sanitize  races and accesses out of bounds, by compute-sanitizer
#   profile   what bounds the main kernels, by Nsight Compute
#   peers     PyTorch's operations, Triton and (not in a lease) torch.compile on the same kind of data
#   python    the Python package on PyTorch's CUDA tensors: graphs, streams, mixed precision
#   variants  the kernels compiled in other ways, against those that ship
#   repeat    the same bits, 1000 times
#
# Stages run in this order, the most telling first. After every item three files in $OUT (default: out
# beside this script) are brought up to date: summary.txt for people, gfocal.json, and kit.tar.gz with all
# logs. What cannot run here is named with the reason. On the emulator only what checks is run, smaller.
set -uo pipefail
export LC_ALL=C # a decimal point is a point
[[ ${OUT:-/} == /* ]] || OUT=$PWD/$OUT
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 2
readonly STAGES=(load check bench tests sanitize profile peers python variants repeat)
# What a lease gives each stage at most, in seconds: together more than there is, since few need all of theirs.
readonly -A SHARE=([load]=75 [check]=35 [bench]=85 [tests]=100 [sanitize]=75 [profile]=90 [peers]=60 [python]=45
    [variants]=45 [repeat]=480)
readonly MOST=${GFOCAL_KIT_SECONDS:-480} # seconds
logs=$PWD/logs OUT=${OUT:-$PWD/out}
export RUST_BACKTRACE=1 CARGO_MANIFEST_DIR=$PWD CUDA_CACHE_PATH=$PWD/cache CUDA_CACHE_MAXSIZE=1073741824
for folder in /usr/local/cuda*/bin; do PATH+=:$folder; done
source ./items.sh
source ./summary.sh

# The first time nothing is cached, so that the driver assembles the kernels.
load() {
    rm -rf cache
    mkdir -p cache
    item load-first 60 bin/gfocal info --load
    item load-second 60 bin/gfocal info --load
    info=$(<"$logs/load-first.log")
    if [[ $info != *"chooses cuda:"* ]]; then
        printf '%s\nthere is no GPU here that gfocal can use, so nothing else is run\n' "$info" >&2
        exit 2
    fi
    [[ $info == *"not a GPU"* ]] && emulated="the emulator is no GPU"
    foretell
    if nvidia-smi -q -d CLOCK >"$logs/clock.log" 2>&1; then
        nvidia-smi --query-gpu=timestamp,clocks.sm,clocks.mem,power.draw,temperature.gpu --format=csv -lms 1000 \
            >"$logs/clocks.csv" 2>&1 &
        sampler=$!
        disown "$sampler" # it ends with this script, and nobody waits for it
    fi
}

check() {
    local rows=2100x80,4096x17,4096x16 head=22300x80,8525x20,1021x3
    if [[ $emulated ]]; then rows=100x80,130x17,130x16 head=341x3; fi
    jobs=2
    spawn check-rows 60 bin/gfocal bench --device cuda --check-only --ops qfl,dfl,integral --sizes $rows
    spawn check-head 120 bin/gfocal bench --device cuda --check-only --ops head --sizes $head
    finish
}

# timed CASE OPTIONS...: a process for each, so that one that is stopped takes no other figures with it.
timed() {
    item "bench-${1/:/-}" 60 bin/gfocal bench --device cuda --format json --ops "${1%:*}" --sizes "${1#*:}" "${@:2}"
}

# The largest sizes first: the goals are for these. To check their results would take the host longer than all
# else here; `check` has done it on small ones.
bench() {
    local without=$emulated case seconds=1
    local large=(qfl:672000x80 dfl:2949120x17 head:356800x80)
    local others=(qfl:134400x80 dfl:262144x17 qfl:33600x80 qfl:8400x80 dfl:4096x17 head:22300x80)
    if [[ $lease ]]; then seconds=0.2; else others+=(dfl:33600x17 head:89200x80 integral:262144x17); fi
    item spin 10 bin/gfocal bench --device cuda --no-check --ops qfl --sizes 134400x80 --dtype f32 --passes forward
    for case in "${large[@]}"; do timed "$case" --seconds $seconds --no-check; done
    for case in "${others[@]}"; do timed "$case" --seconds $seconds; done
}

# A process for each module: the names of `graph` without those of `head_graph`, for a name is looked for
# anywhere in another.
tests() {
    local module repeats=1000
    local modules=(graph head_graph golden semantics corners dfl_tiles gfl head_cuda head_backward head_classes
        head_golden head_layouts head_options head_errors head assign assign_edges assign_graph assign_head assign_reports fcos boxes decode rounding rounded_once found_inf shapes
        raw overlaps borrowed scale handles loading loading_graph errors exhaustive gradcheck head_gradcheck properties large)
    [[ $lease ]] && repeats=50
    jobs=4
    # There it is the one stage that takes long.
    if [[ $emulated ]]; then repeats=2 jobs=2 stage_end=$((deadline - 60)); fi
    for module in "${modules[@]}"; do
        spawn "tests-$module" 300 env GFOCAL_REPEATS=$repeats bin/kit "$module::" --skip "_$module::"
    done
    finish
}

sanitize() {
    local without=$emulated module sanitizer=(compute-sanitizer --error-exitcode 1 --tool)
    local rows=(bin/gfocal bench --device cuda --check-only --sizes "2100x80,4096x17,4096x16" --ops)
    local head=(bin/gfocal bench --device cuda --check-only --sizes 22300x80 --ops head --dtype)
    [[ $without ]] || probe compute-sanitizer --error-exitcode 1 "${SMALL[@]}"
    export GFOCAL_REPEATS=1
    jobs=2
    spawn memcheck-rows 60 "${sanitizer[@]}" memcheck "${rows[@]}" qfl,dfl,integral --dtype f32,bf16
    spawn memcheck-head 60 "${sanitizer[@]}" memcheck "${head[@]}" bf16
    spawn racecheck-dfl 40 "${sanitizer[@]}" racecheck "${rows[@]}" dfl --dtype f16
    spawn racecheck-qfl 40 "${sanitizer[@]}" racecheck "${rows[@]}" qfl --dtype f32
    spawn synccheck-head 40 "${sanitizer[@]}" synccheck "${head[@]}" f16
    if [[ ! $lease ]]; then
        spawn initcheck-rows 60 "${sanitizer[@]}" initcheck "${rows[@]}" qfl,dfl,integral
        spawn initcheck-head 60 "${sanitizer[@]}" initcheck "${head[@]}" f16
        spawn racecheck-head 60 "${sanitizer[@]}" racecheck "${head[@]}" f16
        for module in golden semantics head_cuda; do
            spawn "memcheck-$module" 90 "${sanitizer[@]}" memcheck bin/kit "$module::" --skip "_$module::"
        done
    fi
    finish
}

# profiled NAME COUNT OP SIZE DTYPE PASS: the first COUNT launches of it.
profiled() {
    local sections=(--set full)
    [[ $lease ]] && sections=(--section SpeedOfLight --section MemoryWorkloadAnalysis --section Occupancy
        --section LaunchStats --section WarpStateStats)
    item "ncu-$1" 60 ncu --clock-control none "${sections[@]}" --kernel-name-base function --kernel-name "regex:^$3_" \
        --launch-count "$2" bin/gfocal bench --device cuda --no-check --seconds 0.001 \
        --ops "$3" --sizes "$4" --dtype "$5" --passes "$6"
}

profile() {
    local without=$emulated
    [[ $without ]] || probe ncu --section SpeedOfLight --launch-count 1 "${SMALL[@]}"
    profiled qfl-f32 1 qfl 134400x80 f32 forward_backward
    profiled qfl-bf16 1 qfl 134400x80 bf16 forward_backward
    profiled qfl-bf16-forward 1 qfl 134400x80 bf16 forward
    profiled dfl-bf16 1 dfl 262144x17 bf16 forward_backward
    profiled head-bf16 2 head 356800x80 bf16 forward_backward # both launches
    [[ $lease ]] && return
    profiled qfl-f32-forward 1 qfl 134400x80 f32 forward
    profiled dfl-f32 1 dfl 262144x17 f32 forward_backward
    profiled head-f32 2 head 356800x80 f32 forward_backward
}

peers() {
    local without=$emulated impls=triton,copy,mmdet-eager case seconds=0.1
    local cases=(qfl:134400x80 dfl:262144x17)
    if [[ ! $lease ]]; then
        impls+=,torch.compile seconds=0.3
        cases+=(qfl:8400x80 dfl:4096x17 head:356800x80 head:22300x80)
    fi
    [[ $without ]] || probe python3 -c 'import torch; torch.zeros(1).cuda()'
    for case in "${cases[@]}"; do
        item "peers-${case/:/-}" 110 python3 benches/peers/bench.py --device cuda --impls $impls --seconds $seconds \
            --budget 80 --ops "${case%:*}" --sizes "${case#*:}" --dtype f32,bf16
    done
}

python() {
    local without=$emulated
    [[ $without ]] || probe python3 -c 'import torch; torch.zeros(1).cuda()'
    item python 60 env PYTHONPATH="$PWD/python" python3 python/gpu.py
}

# A folder of variants holds PTX that takes the place of what ships under the same name; the names say
# whose it is. Before and after them the kernels that ship, for the noise; a variant must be right, too.
variants() {
    local without=$emulated case op size small folder name seconds=0.1
    [[ $lease ]] || seconds=0.5
    if ! compgen -G "variants/*/*.ptx" >/dev/null; then
        verdict "left out" variants "the kit has none"
    elif [[ ! $without ]] && [[ $(bin/gfocal bench --help 2>&1) != *--kernels* ]]; then
        without="this gfocal has no --kernels"
    fi
    for case in qfl:134400x80:2100x80 dfl:262144x17:4096x17 head:356800x80:8525x20; do
        IFS=: read -r op size small <<<"$case"
        local timed=(bin/gfocal bench --device cuda --format json --no-check --seconds $seconds --ops "$op" --sizes "$size"
            --dtype f32,bf16)
        compgen -G "variants/*/$op*.ptx" >/dev/null || continue
        item "variant-$op-shipped" 20 "${timed[@]}"
        for folder in variants/*/; do
            compgen -G "$folder$op*.ptx" >/dev/null || continue
            name=variant-$op-$(basename "$folder")
            item "check-$name" 20 bin/gfocal bench --device cuda --check-only --ops "$op" --sizes "$small" --kernels "$folder"
            item "$name" 20 "${timed[@]}" --kernels "$folder"
        done
        item "variant-$op-shipped-again" 20 "${timed[@]}"
    done
}

repeat() {
    local repeats=1000
    [[ $emulated ]] && repeats=4
    item repeat 300 env GFOCAL_REPEATS=$repeats bin/kit determinism:: --skip _determinism::
}

declare -A foretold=()
lease='' emulated='' info='' prediction='' sampler='' stages=("$@")
if [[ $* == lease ]]; then lease=1 stages=("${STAGES[@]}"); fi
for stage in "${stages[@]}"; do
    if [[ " ${STAGES[*]} " != *" $stage "* ]]; then
        echo "there is no stage $stage; there are: ${STAGES[*]}; and lease, for all of them in a hurry" >&2
        exit 2
    fi
done
[[ $lease ]] || stages=(load $(printf '%s\n' "${stages[@]:-${STAGES[@]}}" | grep -vx load))
begin
for stage in "${stages[@]}"; do
    echo "== $stage, after $SECONDS s"
    [[ $lease ]] || deadline=$((SECONDS + MOST))
    stage_end=$((SECONDS + ${SHARE[$stage]}))
    [[ $lease ]] && ((stage_end < deadline)) || stage_end=$deadline
    jobs=1
    "$stage"
done
! grep -q '^FAILED' "$logs/verdicts"
