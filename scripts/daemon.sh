# For scripts that run a daemon of their own, which read this file: how it is started, waited for and stopped.

daemon=
as_root=

# Whoever is not root needs sudo for the mount.
become_root() {
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || { echo "fakebinderd mounts its devices: run this as root" >&2; exit 1; }
        as_root=sudo
    fi
}

# Has the function stop end the script, however it ends; `status` is what it exits with.
stop_at_the_end() {
    trap 'status=$?; trap "" INT TERM; trap - EXIT; stop; exit "$status"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

# ready PID LOG PATTERN NAME: waits until a program has said so in its log, or says why it does not.
ready() {
    tries=0
    until grep -q "$3" "$2"; do
        tries=$((tries + 1))
        if [ "$tries" -gt 200 ] || ! kill -0 "$1" 2>/dev/null; then
            echo "$4 did not start:" >&2
            cat "$2" >&2
            exit 1
        fi
        sleep 0.05
    done
}

# start_daemon LOG FLAG...
start_daemon() {
    log=$1
    shift
    $as_root target/release/fakebinderd "$@" >"$log" 2>&1 &
    daemon=$!
    ready "$daemon" "$log" '^fakebinderd: ready' fakebinderd
}

stop_daemon() {
    if [ -n "$daemon" ]; then
        $as_root kill "$daemon" 2>/dev/null || true
        wait "$daemon" 2>/dev/null || true
    fi
}
