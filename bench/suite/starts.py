"""h. Many instances of one snapshot: the first and the later starts, spares, a hundred at once."""
import contextlib
import json
import os
import pathlib
import time

from .context import Snapshot, StockRestore, port_open
from .process import end, kill, reap, run as run_command, start, wait_for

NAME, TITLE = "starts", "h. Many starts of one snapshot"
MEGABYTES = 100
FIRST, LATER, SET, SPARE = "first start", "later: recorded order", "later: working set", "spare"
EAGER, COLD = "CRIU eager", "redis-server, RDB"
RUNS, ANSWERS = "tree runs", "first answer"
PEERS_MOST = 10  # each of them has all of its memory


class Source:
	"""A filled Redis in every form that a start can begin with: two snapshots, of which one gets a recorded order, images, an RDB."""

	def __init__(self, context):
		context.say(f"starts: Redis with {MEGABYTES} MB: fill, checkpoint, dump, save")
		self.keys = MEGABYTES * 10**6 // 1200
		with contextlib.ExitStack() as stack:
			process, port = context.start_redis(stack, "starts")
			model = context.work / "starts.model"
			context.fill_redis(port, self.keys, model)
			first = ["--model", model, "--index", 4242, "--value-bytes", 1000]
			self.directory = context.work / "starts"
			run_command("redis-cli", "-p", port, "save", timeout=120)
			images = context.work / "starts.images"
			images.mkdir()
			self.plain = Snapshot(context, "starts-plain", port, first, images, 0)
			self.ordered = Snapshot(context, "starts-ordered", port, first, images, 0)
			for snapshot in (self.plain, self.ordered):
				run_command(context.host.distri_proc, "checkpoint", "--pid", process.pid, "--leave-running", snapshot.uri("unix"),
					    timeout=600)
			run_command(context.host.criu, "dump", "-t", process.pid, "-D", images, "-o", "dump.log", "-v1", timeout=600)
			end(process)
			wait_for("the source's end", lambda: not port_open(port))


def answer(context, snapshot, network, command):
	"""ms from before the command's start to the first right answer inside the network namespace, and the command's pid."""
	pidfile, log = context.work / "first.pid", context.work / "first.log"
	pidfile.unlink(missing_ok=True)
	ns = run_command("nsenter", f"--net={network}", context.host.test_programs / "first-get", "--port", snapshot.port, *snapshot.first,
			 "--pidfile", pidfile, "--timeout-ms", 60000, "--command-log", log, "--", *command, output_on_failure=log, timeout=90)
	return int(ns) / 1e6, int(pidfile.read_text())


def said(context):
	"""What the command that was measured printed: often after the first answer."""
	log = context.work / "first.log"
	return json.loads(wait_for("the command's word", lambda: log.read_text().endswith("\n") and log.read_text()).strip().splitlines()[-1])


def network_of(context, stack):
	"""A network namespace with nothing but a loopback, as a file."""
	path = context.work / context.unique("net")
	path.touch()
	run_command("unshare", f"--net={path}", "ip", "link", "set", "lo", "up")
	stack.callback(run_command, "umount", path)
	return path


def restore_command(context, snapshot, name, *options):
	return [context.host.distri_proc, "restore", snapshot.uri("unix"), "--name", name, "--json", *options]


def one_restore(context, table, way, count):
	snapshot = context.starts.plain if way == FIRST else context.starts.ordered
	options = {FIRST: ["--record=no"], LATER: [], SET: ["--prefetch", "working-set"]}[way]
	with contextlib.ExitStack() as stack:
		stack.callback(context.stop_instances)
		network = network_of(context, stack)
		name = context.unique("h")
		ms, _ = answer(context, snapshot, network, restore_command(context, snapshot, name, "--network", network, *options))
		told = said(context)
		if count:
			table.add(way, RUNS, told["elapsed_ns"] / 1e6)
			table.add(way, ANSWERS, ms)


def spare_of(context):
	instances = json.loads(run_command(context.host.distri_proc, "ps", "--json"))["instances"]
	return next((instance for instance in instances if instance["state"] == "spare"), None)


def one_spare(context, table, count):
	snapshot = context.starts.ordered
	with contextlib.ExitStack() as stack:
		stack.callback(context.stop_instances)
		stack.callback(run_command, context.host.distri_proc, "spares", "--stop")
		run_command(context.host.distri_proc, "run", snapshot.uri("unix"), "--count", 0, "--pre-created", 1)
		spare = wait_for("a spare", lambda: spare_of(context))
		time.sleep(0.2)  # so that it is idle, as one that has waited is
		name = context.unique("h")
		ms, _ = answer(context, snapshot, f"/proc/{spare['init_pid']}/ns/net",
			       restore_command(context, snapshot, name, "--network", "none"))
		told = said(context)
		if count and told["id"] == spare["id"]:
			table.add(SPARE, RUNS, told["elapsed_ns"] / 1e6)
			table.add(SPARE, ANSWERS, ms)


def cold_command(context):
	snapshot = context.starts.plain
	return ["redis-server", "--bind", "127.0.0.1", "--port", snapshot.port, "--dir", context.starts.directory, "--save", "",
		"--daemonize", "no", "--logfile", "", "--pidfile", "", "--loglevel", "warning"]


def one_peer(context, table, way, count):
	snapshot = context.starts.plain
	with contextlib.ExitStack() as stack:
		network = network_of(context, stack)
		stock = StockRestore(context, stack, snapshot, "eager") if way == EAGER else None
		began = time.time_ns()
		ms, pid = answer(context, snapshot, network, stock.command if stock else cold_command(context))
		stack.callback(kill, pid)
		runs = (stock.times(1)[0] - began) / 1e6 if stock else None  # it may answer before CRIU returns
		if count:
			if stock:
				table.add(way, RUNS, runs)
			table.add(way, ANSWERS, ms)


def ways(context):
	table = context.report.table("ways", f"One start of a Redis with {MEGABYTES} MB", "", [RUNS, ANSWERS], "ms", baseline_row=FIRST,
				     better="lower", note="Tree runs: as the command itself tells it; of CRIU until it returns. First answer: from before "
				     "the command's start. Pool in memory on a Unix socket; images and RDB in the page cache. First: nothing is known of "
				     "the snapshot; later: in the order that an earlier run recorded; spare: restored beforehand but for the first "
				     "instruction (`run --pre-created`).")
	context.say(f"starts: {context.runs} runs of six ways")
	with contextlib.ExitStack() as stack:  # the run that records the order: it is stored at its end at the latest
		stack.callback(context.stop_instances)
		network = network_of(context, stack)
		answer(context, context.starts.ordered, network,
		       restore_command(context, context.starts.ordered, context.unique("h"), "--network", network))
	table.skip(COLD, RUNS, "it runs at once and loads then")
	for turn in range(context.runs + 1):  # the first does not count
		for way in (FIRST, LATER, SET):
			with context.attempt(f"{way}", (table, way, RUNS), (table, way, ANSWERS)):
				one_restore(context, table, way, turn)
		with context.attempt(SPARE, (table, SPARE, RUNS), (table, SPARE, ANSWERS)):
			one_spare(context, table, turn)
		for way in (EAGER, COLD):
			with context.attempt(way, (table, way, RUNS), (table, way, ANSWERS)):
				one_peer(context, table, way, turn)


# ---- many at once ----
RATE, EACH, TREE, OURS, FILES = "starts a second", "memory of each", "of that the tree", "our processes", "files in memory"


def many_of_ours(context, table, row, count, options):
	with contextlib.ExitStack() as stack:
		stack.callback(run_command, context.host.distri_proc, "stop", "--group", "many", "--kill", timeout=300)
		summary = json.loads(run_command(context.host.distri_proc, "run", context.starts.ordered.uri("unix"), "--count", count, "--name",
						 "many", "--json", *options, timeout=600).strip().splitlines()[-1])
		memory = {name: size / 2**20 for name, size in summary["memory_per_instance"].items()}
		table.add(row, RATE, summary["starts_per_second"])
		table.add(row, EACH, sum(memory.values()))
		table.add(row, TREE, memory["tree_bytes"])
		table.add(row, OURS, memory["ours_bytes"])
		table.add(row, FILES, memory["files_bytes"])
	reap()


def peer_script(context, way, number):
	"""One instance in namespaces of its own; makes the file `ready` when it runs."""
	ready = context.work / f"many{number}.ready"
	ready.unlink(missing_ok=True)
	inner = ["ip link set lo up"]
	if way == EAGER:
		work = pathlib.Path(context.work / f"many{number}.work")
		work.mkdir(exist_ok=True)
		inner += [f"{context.host.criu} restore -d -D {context.starts.plain.images} -W {work} -o restore.log -v0 || exit 1"]
	else:
		inner += [" ".join(map(str, cold_command(context))) + " &",
			  f"until [ \"$(redis-cli -p {context.starts.plain.port} dbsize)\" = {context.starts.keys} ]; do sleep 0.005; done"]
	inner += [f"touch {ready}", "exec tail -f /dev/null"]
	script = context.work / f"many{number}.sh"
	script.write_text("\n".join(inner) + "\n")
	return ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", script], ready


def many_of_a_peer(context, table, way, count):
	context.need_memory(count * MEGABYTES * 10**6 * 1.5)
	with contextlib.ExitStack() as stack:
		stack.callback(reap)
		processes, waiting = [], []
		began = time.monotonic()
		for number in range(count):
			while len(waiting) >= os.cpu_count():  # as many at a time as ours
				waiting = [ready for ready in waiting if not ready.exists()]
				time.sleep(0.001)
			command, ready = peer_script(context, way, number)
			processes.append(start(stack, *command))
			stack.callback(processes[-1].kill)  # unshare does not end by a SIGTERM
			waiting.append(ready)
		wait_for(f"{count} of {way}", lambda: all(ready.exists() for ready in waiting), 120, 0.001)
		table.add(way, RATE, count / (time.monotonic() - began))
		table.add(way, EACH, sum(context.rss_bytes(process.pid) for process in processes) / count / 2**20)


def many(context):
	counts = (20,) if context.quick else (20, 100)
	table = context.report.table("many", "Many at once", "", [RATE, EACH, TREE, OURS, FILES],
				     {RATE: "", EACH: "MiB", TREE: "MiB", OURS: "MiB", FILES: "MiB"}, note=f"As many starts at a time as processors; until "
				     f"the trees run (`redis-server`: until it has loaded). Each in a network and PID namespace of its own. Memory: "
				     f"proportional set sizes right after the last start. {PEERS_MOST} of each peer, since each has all its memory.")
	for count in counts:
		row = f"ours, {count}"
		with context.attempt(row, (table, row, RATE)):
			many_of_ours(context, table, row, count, [])
	row = f"ours, {counts[0]}, 20 spares ready"
	with context.attempt(row, (table, row, RATE)), contextlib.ExitStack() as stack:
		stack.callback(run_command, context.host.distri_proc, "spares", "--stop", timeout=120)
		run_command(context.host.distri_proc, "run", context.starts.ordered.uri("unix"), "--count", 0, "--pre-created", 20)
		wait_for("20 spares", lambda: '"ready":20' in run_command(context.host.distri_proc, "spares", "--json"), 120, 0.1)
		many_of_ours(context, table, row, counts[0], [])
	for way in (EAGER, COLD):
		with context.attempt(f"many: {way}", (table, way, RATE), (table, way, EACH)):
			many_of_a_peer(context, table, way, PEERS_MOST)


def run(context):
	reason = context.host.lacks("redis") or context.host.lacks("unshare") or context.host.lacks_option("run", "--pre-created")
	if reason:
		context.say(f"starts: skipped: {reason}")
		return
	context.starts = Source(context)
	ways(context)
	many(context)
