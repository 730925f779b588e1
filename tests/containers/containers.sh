# containers.sh: what the tests of containers share. Source it behind lib.sh.
RUNTIME=$BUILD/distri-proc-runtime
CONTAINERS=$ROOT/tests/containers

make_root() { # name program...: $T/NAME.root
	"$CONTAINERS/make-rootfs" "$T/$1.root" "${@:2}" >"$T/make-root.log" 2>&1
}

# A bundle $T/NAME over a root filesystem of its own; /data of it is $T/NAME/data.
bundle() { # name root cgroup [options of make-bundle...] -- program...
	local name=$1 root=$2 cgroup=$3
	shift 3
	mkdir -p "$T/$name/data"
	cp -a "$T/$root.root" "$T/$name/rootfs"
	"$CONTAINERS/make-bundle" "$T/$name" "$cgroup" --volume "$T/$name/data:/data" "$@"
}

fails() { ! "$@"; }

group_directory() { # cgroup
	local directory
	for directory in "/sys/fs/cgroup/memory$1" "/sys/fs/cgroup$1" "/sys/fs/cgroup/unified$1"; do
		[ -e "$directory/memory.usage_in_bytes" ] || [ -e "$directory/memory.current" ] || continue
		echo "$directory"
		return
	done
}
memory_of() { # cgroup: bytes
	cat "$(group_directory "$1")/memory.usage_in_bytes" 2>/dev/null || cat "$(group_directory "$1")/memory.current"
}
set_limit() { # cgroup bytes
	local directory
	directory=$(group_directory "$1")
	if [ -e "$directory/memory.limit_in_bytes" ]; then
		echo "$2" >"$directory/memory.limit_in_bytes"
	else
		echo "$2" >"$directory/memory.max"
	fi
}
