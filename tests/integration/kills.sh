# shellcheck shell=bash
# kills.sh: something dies, or the network parts, in the middle of a migration. Source it after hosts.sh, with the hosts and agents there.
#
#   scenario WHAT PHASE SIDE   a migration of a process of 8 MiB, its pages coming slowly; at a phase of a side something happens; then
#                              exactly one copy runs, and what it wrote says that there never were two
#   MIGRATE_OPTIONS            what else `migrate` is told
#   start_subject NUMBER       starts the process on host 1, with $T/lines.NUMBER for its lines; sets SUBJECT (a caller may have its own)
MIGRATE_OPTIONS=()
MODE=post-copy # for the tests' names

pids_on() { dp "$1" ps --json | sed 's/},/},\n/g' | sed -n 's/.*"pid": *\([0-9]*\).*/\1/p'; } # host: of its instances
runs() { # pid: it is not stopped, not frozen, not gone
	local state
	state=$(sed 's/.*) //; s/ .*//' "/proc/$1/stat" 2>/dev/null) || return 1
	case $state in R | S | D) return 0 ;; *) return 1 ;; esac
}
copies() { # pid of the source: how many run
	local count=0 pid
	runs "$1" && count=1
	for pid in $(pids_on 2); do
		runs "$pid" && count=$((count + 1))
	done
	echo $count
}
settled() { # pid: no migration is under way any more, and one copy runs
	[ -z "$(ls "$(root_of 2)/.agent/in" 2>/dev/null)" ] && [ "$(copies "$1")" = 1 ] && sleep 0.1 && [ "$(copies "$1")" = 1 ]
}
offerer_of() { pgrep -f -P "$1" . 2>/dev/null | head -n 1; } # pid of the ferry out
kill_agent() { # host: and starts another
	local name=AGENT_$1
	kill -KILL "${!name}"
	wait_for "the end of an agent" gone "${!name}"
	start_agent "$1"
}
cut() { on 0 ip link set port2 down; }
mend() { on 0 ip link set port2 up; }

number=0
start_subject() { # number
	setsid nsenter -t "${HOST_PIDS[1]}" -n "$PROGRAMS/exclusive" "$T/lines.$1" 8 </dev/null >/dev/null 2>&1 &
	SUBJECT=$!
	disown $SUBJECT
	started $SUBJECT
	wait_for "the process" test -s "$T/lines.$1"
}
landings() { # of ours: each notes its pid
	sed -s 's/ .*//' "$(root_of 2)"/.agent/in/*/landing 2>/dev/null
}
child_named() { # pid name: a descendant's pid
	local child
	for child in $(pgrep -P "$1" 2>/dev/null); do
		[ "$(cat "/proc/$child/comm" 2>/dev/null)" = "$2" ] && echo "$child" && return
		child_named "$child" "$2" && return
	done
	return 1
}
kill_child() { # pid name
	local child
	child=$(child_named "$1" "$2") && kill -KILL "$child"
}

scenario() { # what phase side
	local what=$1 phase=$2 side=$3 pid ferry_out ferry_in status=0
	number=$((number + 1))
	rm -f "$(root_of 1)/.agent/events" "$(root_of 2)/.agent/events"
	start_subject $number
	pid=$SUBJECT
	DISTRI_PROC_ROOT=$(root_of 1) on 1 "$DP" migrate --pid $pid --to 10.77.0.2 --lease 700ms --rate "${RATE:-8M}" "${MIGRATE_OPTIONS[@]}" --json \
		>"$T/migrate.$number" 2>&1 &
	local migration=$!
	process_at "$side" "$phase" >"$T/at"
	ferry_out=$(process_at 1 "${FIRST_PHASE:-freezing}")
	case $what in
	source-agent) kill_agent 1 ;;
	destination-agent) kill_agent 2 ;;
	source-ferry) kill -KILL "$ferry_out" ;;
	destination-ferry) ferry_in=$(process_at 2 restoring) && kill -KILL "$ferry_in" ;;
	criu) kill_child "$ferry_out" criu ;;
	landing) kill -KILL $(landings) ;;
	common-pool) restart_pool ;;
	pool) kill -KILL "$(offerer_of "$ferry_out")" ;;
	both-ferries) ferry_in=$(process_at 2 restoring) && kill -KILL "$ferry_out" "$ferry_in" ;;
	connection) cut && sleep 0.3 && mend ;;
	partition) cut && sleep 2.5 && mend ;;
	tree) kill -KILL $(pids_on 2) ;;
	esac 2>/dev/null
	wait_for "$what at $phase: one copy" settled $pid || status=1
	wait $migration
	sleep 0.2
	"$PROGRAMS/exclusive" --check "$T/lines.$number" >"$T/runs" || status=1
	ok $status "$MODE, $what at $phase: one copy runs, and never two" ||
		{ cat "$T/runs" "$T/migrate.$number" && events_of 1 && events_of 2 && dp 2 ps && cat /proc/$pid/stat; } 2>&1 | sed 's/^/#   /'
	note "$(runs $pid && echo "runs on here" || echo "runs there"): $(tr '\n' ' ' <"$T/runs")"
	kill -KILL $pid $(pids_on 2) 2>/dev/null
	wait_for "the end of what ran" eval "[ \"\$(copies $pid)\" = 0 ]"
	[ $status = 0 ] || stop_hosts
}

