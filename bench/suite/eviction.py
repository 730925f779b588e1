"""f. What it costs to move pages out: processor time, bytes, and the target's stillness."""
import contextlib

from .context import Touch
from .plots import draw, panel_of
from .process import cpu_ns, parent_of, processes

NAME, TITLE = "eviction", "f. Eviction"
COLUMNS = {"CPU": "us", "of it warden": "us", "written back": "bytes", "all CPU of the pager": "us", "second chances": "%",
	   "stood still": "ms/s", "longest": "us", "stalls": "1/1000 faults"}
MIXES = {"reads": 0, "10 % writes": 0.1, "all writes": 1}
ALONE = "a local process"


def warden_of(target):
	"""The helper in the target's memory: a child of it (or of its parent) by the name dp-warden."""
	for pid in processes():
		try:
			if open(f"/proc/{pid}/comm").read().strip() == "dp-warden" and parent_of(pid) in (target, parent_of(target)):
				return pid
		except OSError:
			continue
	return None


def look(instance):
	stats = instance.stats()
	warden = warden_of(instance.pid)
	return stats, cpu_ns(stats["pager_pid"]), cpu_ns(warden) if warden else 0


def steady_cost(line, instance, row, seconds, seed, table):
	before = look(instance)
	line.run("uniform", seconds=seconds, writes=MIXES[row], seed=seed)
	after = look(instance)

	def grown(field):
		return after[0][field] - before[0][field]

	evicted = max(1, grown("evicted_pages"))
	pager, warden = (after[1] - before[1]) / 1000, (after[2] - before[2]) / 1000
	faults = sum(after[0]["faults"].values()) - sum(before[0]["faults"].values())
	table.add(row, "CPU", (grown("evict_cpu_ns") / 1000 + warden) / evicted)
	table.add(row, "of it warden", warden / evicted)
	table.add(row, "written back", grown("written_back_pages") * 4096 / evicted)
	table.add(row, "all CPU of the pager", pager / evicted)
	table.add(row, "second chances", 100 * grown("second_chance_pages") / max(1, grown("moved_pages")))
	table.add(row, "stalls", 1000 * grown("stalls") / max(1, faults))
	# the second thread takes a processor for itself, so it is a run of its own
	add_stillness(table, row, line.run("uniform", seconds=seconds, writes=MIXES[row], seed=seed + 100, beat=True))


def add_stillness(table, row, answer):
	table.add(row, "stood still", answer["beat_gap_ms"] / answer["beat_seconds"])
	table.add(row, "longest", answer["beat_longest_us"])


def run(context):
	mib, seconds = (96, 0.4) if context.quick else (512, 2)
	table = context.report.table("eviction", "A process at 50 % local, random touches", "touches", list(COLUMNS), dict(COLUMNS),
				     better="lower",
				     note=f"{mib} MiB, pool in memory on a Unix socket; CPU, bytes and all CPU are for each page evicted. CPU: what the "
				     "pager spent on moving pages out (evict_cpu_ns of its statistics) and all of the warden. All CPU of the pager "
				     "is beside it, fetching included. Stood still: gaps above 100 us of a second thread of the target that touches "
				     "nothing but its stack; other processes of the host cause them too, so a local process under the same touches "
				     "stands beside it.")
	context.say("eviction")
	with contextlib.ExitStack() as stack, context.attempt("eviction"):
		snapshot = context.touch_snapshot(mib, shared=True)
		_, port = context.start_touch(stack, context.unique("still"), mib)
		local = Touch(port)
		stack.callback(local.close)
		instance = context.restore(snapshot.uri("unix"), local="50%")
		stack.callback(instance.stop)
		line = Touch(snapshot.port, shared=True)
		stack.callback(line.close)
		for turn in range(context.runs):
			add_stillness(table, ALONE, local.run("uniform", seconds=seconds, seed=turn, beat=True))
			for row in MIXES:
				line.run("uniform", seconds=seconds * 2, touches=mib * 512, writes=MIXES[row], seed=turn + 50)
				steady_cost(line, instance, row, seconds, turn, table)
	draw(context, "eviction", "Eviction: CPU of pager and warden, us a page evicted",
	     [panel_of(table, columns=["CPU", "of it warden", "all CPU of the pager"], rows=list(MIXES))], y_label="us")
	context.report.target("eviction of clean pages, CPU", table.median("reads", "CPU"), "<=", 1.5, "us a page")
