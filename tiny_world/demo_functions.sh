# Functions of demo.sh and demo_russell.sh. Both set $out, their output folder, before they source this file.

export ANTHROPIC_API_KEY=none-needed WANDB_API_KEY=

# Print a command, and run it.
show() {
    printf '\n$ %s\n' "$*"
    "$@"
}

# Start the stand-in for the Claude API, which stops with the script. Sets $judge_url. A second start uses the port of the
# first, because judged.parquet and the verdict store belong to one address.
start_judge() {
    local port
    port=$(cat "$out/judge.port" 2>/dev/null || echo 0)
    rm -f "$out/judge.up"
    python -m tiny_world.claude_stand_in --port "$port" --port-file "$out/judge.up" >"$out/judge.log" 2>&1 &
    judge=$!
    # Wait for it to end, so that the port is free for the next start.
    trap '{ kill $judge && wait $judge; } 2>/dev/null || true' EXIT
    until [ -s "$out/judge.up" ]; do
        if ! kill -0 $judge 2>/dev/null; then
            echo "error: the judge cannot use port $port of 127.0.0.1 (see $out/judge.log): stop the process that uses it, or choose another folder" >&2
            exit 1
        fi
        sleep 0.1
    done
    cp "$out/judge.up" "$out/judge.port"
    judge_url=http://127.0.0.1:$(cat "$out/judge.port")
}
