# What a run has found, for people and as JSON: a part of run.sh. gfocal, its peers and the model write a
# record a line, so that bash can read them.

# field NAME LINE: what a record says, into $REPLY.
field() {
    [[ $2 =~ \"$1\":\ *\"?([^,\"}]*) ]] && REPLY=${BASH_REMATCH[1]} || REPLY=-
}

# case_of LINE: operation, pass, type and size, into $REPLY.
case_of() {
    local name words=()
    for name in op pass dtype rows columns; do
        field $name "$1"
        words+=("$REPLY")
    done
    REPLY="${words[*]:0:3} ${words[3]}x${words[4]}"
}

# records LOG...: the records in them, as a JSON array.
records() {
    local lines
    lines=$(cat "$@" 2>/dev/null | grep '^{"impl"' | sed 's/,$//; $!s/$/,/')
    printf '[\n%s\n]\n' "$lines"
}

# rounded NAME LINE: a field with a decimal, as wide as a column.
rounded() {
    field "$1" "$2"
    if [[ $REPLY == *[0-9]* ]]; then printf -v REPLY '%9.1f' "$REPLY"; else printf -v REPLY '%9s' -; fi
}

# figures LOG...: a line for each record; how long, in how many times gfocal's time in the stage bench, and
# what the model foretold.
figures() {
    local line key row name expected
    printf '%-42s %-13s %9s %9s %9s %9s %8s  %s\n' case impl us GB/s "% copy" "% read" "x bench" foretold
    while read -r line; do
        case_of "$line"
        key=$REPLY
        field impl "$line"
        printf -v row '%-42s %-13s' "$key" "$REPLY"
        for name in median_us gbytes_per_s percent_of_copy percent_of_read; do
            rounded $name "$line"
            row+=" $REPLY"
        done
        field median_us "$line"
        ratio "$REPLY" "${benched[$key]:-}"
        expected=${foretold[$key]:-}
        [[ $line == '{"impl":"gfocal"'* ]] || expected=''
        printf '%s %8s  %s\n' "$row" "$REPLY" "$expected"
    done < <(cat "$@" 2>/dev/null | grep '^{"impl"')
}

# ratio A B: in hundredths, with whole nanoseconds: bash has no fractions.
ratio() {
    local a b
    if [[ -z $2 ]]; then REPLY=-; return; fi
    printf -v a %.3f "$1"
    printf -v b %.3f "$2"
    a=$((10#${a/./})) b=$((10#${b/./}))
    if ((b == 0)); then REPLY=-; return; fi
    printf -v REPLY '%d.%02d' $((a / b)) $((a * 100 / b % 100))
}

# Reads the model's prediction for this GPU into $foretold, if the kit has one: its name is in the GPU's.
foretell() {
    local file line name numbers low=${info,,}
    for file in prediction/*.json; do
        name=$(basename "$file" .json)
        [[ ${low//[ _-]/} == *"$name"* ]] && prediction=$file
    done
    [[ $prediction ]] || return 0
    while read -r line; do
        numbers=()
        for name in least_us most_us least_percent_of_copy most_percent_of_copy; do
            field $name "$line"
            numbers+=("$REPLY")
        done
        case_of "$line"
        printf -v "foretold[$REPLY]" '%.1f to %.1f us, %.0f to %.0f %%' "${numbers[@]}"
    done < <(grep '^{"op"' "$prediction")
}

# section TITLE COMMAND...: what a command prints, if it prints anything, and the last line is not its header.
section() {
    local text
    text=$("${@:2}" 2>/dev/null)
    [[ $(wc -l <<<"$text") -gt 1 ]] && printf '\n== %s\n%s\n' "$1" "$text"
}

# Verdicts of a kind, one a line.
verdicts() {
    grep "^$1" "$logs/verdicts" | while IFS=$'\t' read -r _ name why; do printf '%-28s %s\n' "$name" "$why"; done
}

# What Nsight Compute says of the launches that it has seen.
counters() {
    local file
    for file in "$logs"/ncu-*.log; do
        basename "$file" .log
        grep -E '^  [a-z_0-9]+ \(|Duration|SM Frequency|DRAM Throughput|Memory Throughput|Compute \(SM\)|Registers Per|Grid Size|(Theoretical|Achieved) Occupancy|Waves Per|Warp Cycles Per Issued|L2 Hit|Shared Memory Config' "$file"
    done 2>/dev/null
}

summary() {
    local -A benched=()
    local line failed name
    while read -r line; do
        case_of "$line"
        name=$REPLY
        field median_us "$line"
        benched[$name]=$REPLY
    done < <(cat "$logs"/bench-*.log 2>/dev/null | grep '^{"impl"')
    echo "gfocal, ${lease:+lease: }${stages[*]}; after $SECONDS of ${MOST} s${lease:+ in all}"
    date -u +%F
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null
    cat "$logs/load-first.log" 2>/dev/null
    printf '\n== %s\n' "$(cut -f 1 "$logs/verdicts" | sort | uniq -c | tr -s '\n ' ' ')"
    verdicts FAILED
    verdicts "left out"
    printf '\n== good, with seconds; load-first is the driver with an empty cache, load-second with a full one\n'
    verdicts good
    section "speed, beside ${prediction:-no prediction: the kit has none for this GPU}" figures "$logs"/bench-*.log
    section "variants, in the order in which they ran" variant_figures
    section "peers" figures "$logs"/peers-*.log
    section "Nsight Compute" counters
    section "clocks while it ran" tail -n 8 "$logs/clocks.csv"
    while IFS=$'\t' read -r _ failed _; do
        printf '\n== %s failed; its log ends with\n' "$failed"
        tail -n 20 "$logs/$failed.log"
    done < <(grep '^FAILED' "$logs/verdicts")
}

variant_figures() {
    local file
    for file in $(ls -tr "$logs"/variant-*.log 2>/dev/null); do
        basename "$file" .log
        figures "$file" | tail -n +2
    done
}
