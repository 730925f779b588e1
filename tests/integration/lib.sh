# lib.sh: what every integration test needs. Source it first; then `check NAME COMMAND...` per point, `finish` last.
#
# Each test gets a directory of its own ($T), ends only what it started (by pid), waits for events and never for time, and
# checks at the end that nothing of its own is left. Output is TAP.
#   DP_BUILD    the build directory (default: build)         DP_CRIU   the criu to use (default: as scripts/setup-criu finds it)
#   DP_SECONDS  how long a long part runs (default 4)       DP_KEEP=1 leaves $T for a look
set -uo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
BUILD=${DP_BUILD:-$ROOT/build}
PROGRAMS=$BUILD/tests/programs
DP=$BUILD/distri-proc
SECONDS_LONG=${DP_SECONDS:-4}
TEST_NAME=$(basename "$0")
WAIT_SECONDS=${DP_WAIT:-60} # longer than anything here takes that does not hang

# CRIU wants the files it needs on a disk; Unix socket paths must stay short.
T=$(mktemp -d /var/tmp/dp-XXXXXX)
export DISTRI_PROC_ROOT=$T/instances
STARTED=()     # pids to end, in order of their start
test_count=0
failed_count=0

note() { printf '# %s\n' "$*"; }

ok() { # [0|1] name: one TAP line
	test_count=$((test_count + 1))
	if [ "$1" -eq 0 ]; then
		echo "ok $test_count - $2"
	else
		failed_count=$((failed_count + 1))
		echo "not ok $test_count - $2"
	fi
	return "$1"
}

# Runs a command; it passes where the command exits with 0, and shows the end of its output where not.
check() { # name command...
	local name=$1 output=$T/check.log status=0 start=$SECONDS
	shift
	"$@" >"$output" 2>&1 || status=1
	[ $((SECONDS - start)) -lt 10 ] || note "$((SECONDS - start)) s:"
	ok $status "$name" || tail -n 20 "$output" | sed 's/^/#   /'
	return $status
}

equal() { # name got expected
	local status=0
	[ -n "$2" ] && [ "$2" = "$3" ] || status=1
	ok $status "$1" || note "  got '$2', expected '$3'"
	return $status
}

skip_all() { # reason
	echo "1..0 # SKIP $*"
	exit 0 # the trap cleans
}

finish() {
	local left
	stop_started
	for _ in $(seq 50); do # a captive pool ends two seconds after its last user
		left=$(ours_left)
		[ -z "$left" ] && break
		sleep 0.1
	done
	equal "nothing of ours is left" "left:$left" "left:"
	echo "1..$test_count"
	[ $failed_count -eq 0 ]
	exit $?
}

# Processes that have our directory in their command line. They may end while we look.
ours_left() {
	local file pid command
	for file in /proc/[0-9]*/cmdline; do
		pid=${file#/proc/}
		pid=${pid%/cmdline}
		command=$({ tr '\0' ' ' <"$file"; } 2>/dev/null)
		[ "$pid" -ne $$ ] && [[ $command == *"$T/"* ]] && printf '%s:%s ' "$pid" "${command:0:60}"
	done
	return 0
}

alive() { # pid: runs, and is no zombie; one whose first thread only has ended runs too
	local state threads
	state=$(sed 's/.*) //; s/ .*//' "/proc/$1/stat" 2>/dev/null) || return 1
	threads=("/proc/$1/task/"*)
	[ -n "$state" ] && { [ "$state" != Z ] || [ ${#threads[@]} -gt 1 ]; } && [ "$state" != X ]
}
gone() { ! alive "$1"; }

# Polls until the command is true. The event may come from anywhere, so looking every 20 ms is all there is.
wait_for() { # what command...
	local what=$1 deadline=$((SECONDS + WAIT_SECONDS))
	shift
	until "$@" >/dev/null 2>&1; do
		if [ $SECONDS -ge $deadline ]; then
			note "gave up after $WAIT_SECONDS s waiting for: $what"
			return 1
		fi
		sleep 0.02
	done
}

started() { STARTED+=("$1"); } # pid

end_process() { # pid: asks, then insists
	local i
	kill -TERM "$1" 2>/dev/null || return 0
	for ((i = 0; i < 250; i++)); do
		gone "$1" && return 0
		sleep 0.02
	done
	kill -KILL "$1" 2>/dev/null
	wait_for "end of process $1" gone "$1"
}

stop_started() {
	local i
	stop_instances
	for ((i = ${#STARTED[@]} - 1; i >= 0; i--)); do
		end_process "${STARTED[$i]}"
	done
	STARTED=()
}

# Every instance in our registry, whoever started it; our registry is a directory of this test alone.
stop_instances() {
	local directory
	[ -x "$DP" ] && [ -d "$DISTRI_PROC_ROOT" ] || return 0
	for directory in "$DISTRI_PROC_ROOT"/*/; do
		[ -e "$directory/state.json" ] || continue
		timeout 30 "$DP" stop "$(basename "$directory")" >/dev/null 2>&1
	done
}

BEFORE_CLEAN_UP=
before_clean_up() { BEFORE_CLEAN_UP=$1; } # command: what a script has to put back, however it ends
clean_up() {
	local status=$? pid
	trap - EXIT
	eval "$BEFORE_CLEAN_UP"
	stop_started
	for pid in $(ours_left | grep -oE '(^| )[0-9]+:'); do # what a failed test left behind; ours by its command line
		kill -KILL "${pid%:}" 2>/dev/null
	done
	if [ -z "${DP_KEEP:-}" ]; then
		for pid in "$DISTRI_PROC_ROOT"/*; do # an instance's directory may be a link to one in memory
			[ -L "$pid" ] && case $(readlink "$pid") in /dev/shm/*) rm -rf "$(readlink "$pid")" ;; esac
		done
		rm -rf "$T"
	else
		note "kept: $T"
	fi
	exit $status
}
trap clean_up EXIT
trap 'exit 130' INT TERM

find_criu() {
	local candidate
	for candidate in "${DP_CRIU:-}" "${DISTRI_PROC_PREFIX:-/opt/distri-proc}/criu/bin/criu" "$(command -v criu)"; do
		[ -n "$candidate" ] && [ -x "$candidate" ] && CRIU=$candidate && return 0
	done
	return 1
}

need() { # what the test needs, or skip: root criu redis
	local what
	for what in "$@"; do
		case $what in
		root) [ "$(id -u)" -eq 0 ] || skip_all "needs root" ;;
		criu) find_criu || skip_all "needs CRIU 4.2: scripts/setup-criu" ;;
		redis) command -v redis-server >/dev/null && [ -x "$PROGRAMS/redis-load" ] || skip_all "needs redis-server and hiredis" ;;
		distri-proc) [ -x "$DP" ] || skip_all "needs $DP: build first" ;;
		esac
	done
}

# ---- servers ----

free_port() { # a TCP port that nobody has now, outside the range from which the kernel gives ports to clients
	local port
	for ((i = 0; i < 200; i++)); do
		port=$((10000 + RANDOM % 20000))
		(: </dev/tcp/127.0.0.1/$port) 2>/dev/null || { echo $port && return 0; }
	done
	return 1
}

# Detached as a service is: own session, no terminal, no descriptor of the test's. Sets DETACHED_PID.
detach() { # command...
	setsid "$@" </dev/null >/dev/null 2>&1 &
	DETACHED_PID=$!
	disown $DETACHED_PID # the shell has no need to say that a checkpoint killed it
	started $DETACHED_PID
}

# A Redis of our own in $T/NAME; sets REDIS_PORT, REDIS_SOCKET, REDIS_PID. No saving unless asked for.
start_redis() { # name [redis options...]
	local directory=$T/$1
	mkdir -p "$directory"
	shift
	REDIS_PORT=$(free_port) || return 1
	REDIS_SOCKET=$directory/redis.sock
	detach redis-server --bind 127.0.0.1 --port "$REDIS_PORT" --unixsocket "$REDIS_SOCKET" --dir "$directory" --save "" \
		--daemonize no --enable-debug-command yes --logfile "$directory/redis.log" --pidfile "" --loglevel warning "$@"
	REDIS_PID=$DETACHED_PID
	wait_for "Redis on port $REDIS_PORT" redis_up "$REDIS_PORT"
}
redis_up() { redis-cli -p "$1" ping 2>/dev/null | grep -q PONG; } # port
redis_info() { redis-cli -p "$1" info "$2" | tr -d '\r' | sed -n "s/^$3://p"; } # port section field
redis_digest() { "$PROGRAMS/redis-load" digest --server "$1"; } # port

# A pool in memory on a Unix socket; sets POOL (a URI to which "#repo:tag" is added).
start_pool() { # [store]
	local store=${1:-memory:}
	"$DP" pool serve --listen "unix://$T/pool.sock" --store "$store" </dev/null >"$T/pool.log" 2>&1 &
	POOL_PID=$!
	started $POOL_PID
	POOL=dp+unix://$T/pool.sock
	wait_for "the pool's socket" test -S "$T/pool.sock"
}

# ---- instances ----

# Restores a snapshot detached. Sets INSTANCE_PID, the root's pid in our numbering.
restore() { # snapshot name [restore options...]
	local snapshot=$1 name=$2
	shift 2
	rm -f "$T/$name.pid"
	"$DP" restore "$POOL#$snapshot" --detach --name "$name" --pidfile "$T/$name.pid" "$@" </dev/null >"$T/$name.restore.log" 2>&1 || {
		sed 's/^/#   /' "$T/$name.restore.log"
		return 1
	}
	INSTANCE_PID=$(cat "$T/$name.pid")
}

stat_of() { # instance field: a number of `stats --json`
	"$DP" stats "$1" --json | sed -n "s/.*\"$2\": *\([0-9]*\).*/\1/p"
}

# What the tree may have at most, in bytes: the budget and the reserve the pager states.
limit_of() { # instance
	echo $((($(stat_of "$1" budget_pages) + $(stat_of "$1" reserve_pages)) * 4096))
}

# Samples the tree's proportional set size in the background. Sets SAMPLER_PID.
start_sampler() { # pid limit_bytes name
	"$PROGRAMS/pss-sampler" --pid "$1" --limit "$2" --csv "$T/$3.csv" >"$T/$3.pss" 2>&1 &
	SAMPLER_PID=$!
}
sampler_good() { # pid name: ends it; true where no sample was above the limit
	local status=0
	kill -TERM "$1" 2>/dev/null
	wait "$1" || status=1
	cat "$T/$2.pss"
	return $status
}
