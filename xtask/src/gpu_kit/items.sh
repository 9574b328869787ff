# How items are run, and how their results get out: a part of run.sh.

# Kept of the time for an item that must be killed, and for the results of it.
readonly RESERVE=6
# A small run, to see whether a tool works.
readonly SMALL=(bin/gfocal bench --device cuda --check-only --ops integral --sizes 64x17 --dtype f32 --passes forward)

# Makes the folders, and sees to it that the results get out however this ends.
begin() {
    if ! mkdir -p "$OUT" || ! OUT=$(cd "$OUT" && pwd); then
        echo "\$OUT cannot be made: set it to a folder that can be written" >&2
        exit 2
    fi
    export OUT
    rm -rf "$logs" "$logs.fresh"
    mkdir -p "$logs" "$logs.fresh"
    : >"$logs/verdicts"
    deadline=$((SECONDS + MOST)) stage_end=$((SECONDS + MOST)) running=0 jobs=1
    trap end EXIT
    trap 'exit 130' INT TERM
}

end() {
    [[ -z $sampler ]] || kill "$sampler" 2>/dev/null
    update
    printf '\n'
    cat "$OUT/summary.txt"
}

# verdict WHAT NAME WHY: what has become of an item, for people and for the summary.
verdict() {
    echo "$2: $1, $3"
    printf '%s\t%s\t%s\n' "$1" "$2" "$3" >>"$logs/verdicts"
}

# left SECONDS: so many, or what is left of the stage for an item.
left() {
    local left=$((stage_end - SECONDS - RESERVE))
    echo $(($1 < left ? $1 : left < 0 ? 0 : left))
}

# spawn NAME SECONDS COMMAND...: begins an item when fewer than $jobs are running. It ends within its limit and
# what is left of the stage; what it prints goes to a log. Not, if $without says why.
spawn() {
    local name=$1 limit most=$2
    shift 2
    if [[ ${without:-} ]]; then
        verdict "left out" "$name" "$without"
        return
    fi
    while ((running >= jobs)); do reap; done
    limit=$(left "$most")
    if ((limit == 0)); then
        verdict "left out" "$name" "the time is over"
        return
    fi
    {
        start=${EPOCHREALTIME/./}
        timeout --kill-after 3 "$limit" "$@" >"$logs/$name.log" 2>&1 </dev/null
        status=$? took=$((${EPOCHREALTIME/./} - start))
        took=$(printf '%d.%03d s' $((took / 1000000)) $((took / 1000 % 1000)))
        case $status in
        0) verdict good "$name" "$took" ;;
        124 | 137) verdict FAILED "$name" "stopped after $limit s" ;;
        *) verdict FAILED "$name" "exit status $status after $took" ;;
        esac
        ((status == 0)) || tail -n 15 "$logs/$name.log" | sed 's/^/    /'
    } &
    running=$((running + 1))
}

# Waits for an item.
reap() {
    wait -n
    running=$((running - 1))
    update
}

# Waits for all items.
finish() {
    while ((running)); do reap; done
    jobs=1
}

# item NAME SECONDS COMMAND...: one that runs alone.
item() {
    spawn "$@"
    finish
}

# probe TOOL ARGUMENTS...: whether a tool works here, seen on something small. If not, sets $without.
probe() {
    local limit log=$logs/probe-$1.log
    limit=$(left 15)
    if ((limit == 0)); then
        return # the items of the stage will say that the time is over
    elif ! command -v "$1" >/dev/null; then
        without="there is no $1 in PATH"
    elif ! timeout --kill-after 2 "$limit" "$@" >"$log" 2>&1 </dev/null || grep -q '^==ERROR==' "$log"; then
        without="$1 does not work here: $(grep -m 1 'ERR\|rror' "$log" || tail -n 1 "$log")"
    fi
}

# Brings the three files up to date, each at once, so that whoever looks finds whole ones.
update() {
    local file
    records "$logs"/bench-*.log >"$logs.fresh/gfocal.json"
    records "$logs"/peers-*.log >"$logs/peers.json"
    summary >"$logs.fresh/summary.txt"
    # Another item may be writing its log: what is packed of it is what was there.
    tar --create --gzip --file "$logs.fresh/kit.tar.gz" --directory "${logs%/*}" "${logs##*/}" 2>/dev/null
    for file in gfocal.json summary.txt kit.tar.gz; do mv -f "$logs.fresh/$file" "$OUT/$file"; done
}
