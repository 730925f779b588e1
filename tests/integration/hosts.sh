# shellcheck shell=bash
# hosts.sh: two hosts and a client, as network namespaces joined by a bridge in the client's; an agent on each host. Source it
# after lib.sh.
#
#   start_hosts              sets HOST_1, HOST_2, CLIENT (pids that hold the namespaces); 10.77.0.1, .2 and .3
#   delay_hosts MICROSECONDS then each packet between a host and the bridge is held so long, each way (netem is not everywhere)
#   on HOST command...       runs a command there: 1, 2 or client
#   start_agent HOST         with a pre-shared key and a registry of its own; sets AGENT_1 or AGENT_2
#   dp HOST arguments...     distri-proc there, with that registry
HOSTS_ADDRESS=10.77.0.9 # what moves
HOSTS_ADDRESS_SIX=fd77::9 # and over IPv6, where there is such: fd77::1, ::2 and ::3
HOST_NAMESPACES=-n      # what nsenter enters
declare -a HOST_PIDS
AGENT_LISTENS=10.77.0.%s # an agent, by its host
HOSTS_SIX="" # set where the hosts have IPv6

# Reads all of its input, as `grep -q` does not: whoever writes into a pipe that is closed fails, and so does the pipeline.
has() { grep "$@" >/dev/null; }

start_namespace() { # sets NAMESPACE_PID
	setsid unshare -n "$BUILD/tests/programs/exclusive" "$T/namespace.$1" 1 </dev/null >/dev/null 2>&1 &
	NAMESPACE_PID=$!
	disown $NAMESPACE_PID
	started $NAMESPACE_PID
	wait_for "a network namespace" own_network "$NAMESPACE_PID"
}
own_network() { [ "$(readlink "/proc/$1/ns/net")" != "$(readlink /proc/self/ns/net)" ]; }

on() { # host command...
	local host=$1
	shift
	# shellcheck disable=SC2086
	nsenter -t "${HOST_PIDS[$host]}" $HOST_NAMESPACES "$@"
}
root_of() { echo "$T/host$1"; }
dp() { # host arguments...
	local host=$1
	shift
	DISTRI_PROC_ROOT=$(root_of "$host") on "$host" "$DP" "$@"
}

start_hosts() {
	local host
	for host in 0 1 2; do # 0: the client
		start_namespace $host
		HOST_PIDS[$host]=$NAMESPACE_PID
		on $host ip link set lo up
	done
	on 0 ip link add bridge type bridge
	on 0 ip addr add 10.77.0.3/24 dev bridge
	on 0 ip link set bridge up
	for host in 1 2; do
		on 0 ip link add port$host type veth peer name e0 netns "${HOST_PIDS[$host]}" || return 1
		on 0 ip link set port$host master bridge up
		on $host ip addr add 10.77.0.$host/24 dev e0
		on $host ip link set e0 up
	done
	on 1 ip addr add $HOSTS_ADDRESS/32 dev e0
	on 0 ip addr add fd77::3/64 dev bridge nodad && on 1 ip addr add fd77::1/64 dev e0 nodad && on 2 ip addr add fd77::2/64 dev e0 nodad &&
		on 1 ip addr add $HOSTS_ADDRESS_SIX/128 dev e0 nodad preferred_lft 0 && HOSTS_SIX=1
	"$DP" pool keygen hosts >"$T/psk" && chmod 600 "$T/psk"
	export DISTRI_PROC_PSK_FILE=$T/psk
	on 1 ip -br link show e0 up | has UP
}

delay_hosts() { # microseconds
	local host
	for host in 1 2; do
		on 0 ip link set port$host nomaster
		on 0 ip link add near$host type veth peer name far$host
		on 0 ip link set near$host up
		on 0 ip link set far$host master bridge up
		nsenter -t "${HOST_PIDS[0]}" -n "$PROGRAMS/delay-link" port$host near$host "$1" "$T/delay$host" </dev/null >"$T/delay$host.log" 2>&1 &
		started $!
		wait_for "the link of host $host" test -s "$T/delay$host" || return 1
	done
}

start_agent() { # host [options...]; sets AGENT_HOST
	local host=$1
	shift
	# shellcheck disable=SC2086
	DISTRI_PROC_ROOT=$(root_of "$host") setsid nsenter -t "${HOST_PIDS[$host]}" $HOST_NAMESPACES "$DP" agent --listen "tls://$(printf "$AGENT_LISTENS" "$host")" --verbose "$@" \
		</dev/null >>"$T/agent$host.log" 2>&1 &
	printf -v "AGENT_$host" %s $!
	disown $!
	started $!
	wait_for "the agent of host $host" dp "$host" agent --status
}

events_of() { cat "$(root_of "$1")/.agent/events" 2>/dev/null; } # host
# Waits for a phase and prints the process that told of it.
process_at() { # host phase [side]
	local line="" deadline=$((SECONDS + WAIT_SECONDS))
	while [ -z "$line" ] && [ $SECONDS -lt $deadline ]; do
		line=$(events_of "$1" | grep "\"phase\":\"$2\"" | tail -n 1)
	done
	sed -n 's/.*"process":\([0-9]*\).*/\1/p' <<<"$line"
}

# What the two hosts' registries have, and the instances' processes, besides lib.sh's.
stop_hosts() {
	local host directory
	for host in 1 2; do
		for directory in "$(root_of $host)"/*/; do
			[ -e "$directory/state.json" ] && DISTRI_PROC_ROOT=$(root_of $host) timeout 30 "$DP" stop --kill "$(basename "$directory")" >/dev/null 2>&1
		done
	done
	for directory in "$T"/host?/*; do
		[ -L "$directory" ] && case $(readlink "$directory") in /dev/shm/*) rm -rf "$(readlink "$directory")" ;; esac
	done
	return 0
}
