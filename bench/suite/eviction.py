"""f. What it costs to move pages out: processor time, bytes, and the target's stillness."""
import contextlib

from .context import Touch
from .plots import draw, panel_of
from .process import cpu_ns, parent_of, processes

NAME, TITLE = "eviction", "f. Eviction"
COLUMNS = {"CPU a page fetched": "us", "CPU a page fetched and evicted": "us", "eviction alone": "us", "of it warden": "us",
	   "written back a page evicted": "bytes", "stood still": "ms/s", "longest": "us", "stalls": "1/1000 faults"}
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


def fetch_cost(context, snapshot, touches):
	"""CPU of the pager for a page that is only fetched: no budget, so nothing leaves. Microseconds a page."""
	with contextlib.ExitStack() as stack:
		instance = context.restore(snapshot.uri("unix"))
		stack.callback(instance.stop)
		line = Touch(snapshot.port, shared=True)
		stack.callback(line.close)
		before = look(instance)
		line.run("uniform", touches=touches)
		after = look(instance)
		pages = after[0]["installed_pages"] - before[0]["installed_pages"]
		return (after[1] - before[1]) / 1000 / max(1, pages)


def steady_cost(line, instance, row, seconds, seed, fetch, table):
	before = look(instance)
	answer = line.run("uniform", seconds=seconds, writes=MIXES[row], seed=seed, beat=True)
	after = look(instance)
	evicted = max(1, after[0]["evicted_pages"] - before[0]["evicted_pages"])
	fetched = max(1, after[0]["installed_pages"] - before[0]["installed_pages"])
	pager, warden = (after[1] - before[1]) / 1000, (after[2] - before[2]) / 1000
	faults = sum(after[0]["faults"].values()) - sum(before[0]["faults"].values())
	table.add(row, "CPU a page fetched", fetch)
	table.add(row, "CPU a page fetched and evicted", (pager + warden) / evicted)
	table.add(row, "eviction alone", (pager + warden - fetched * fetch) / evicted)
	table.add(row, "of it warden", warden / evicted)
	table.add(row, "written back a page evicted",
		  (after[0]["written_back_pages"] - before[0]["written_back_pages"]) * 4096 / evicted)
	table.add(row, "stalls", 1000 * (after[0]["stalls"] - before[0]["stalls"]) / max(1, faults))
	add_stillness(table, row, answer)


def add_stillness(table, row, answer):
	table.add(row, "stood still", answer["beat_gap_ms"] / answer["beat_seconds"])
	table.add(row, "longest", answer["beat_longest_us"])


def run(context):
	mib, seconds = (96, 0.4) if context.quick else (512, 2)
	table = context.report.table("eviction", "A process at 50 % local, random touches", "touches", list(COLUMNS), dict(COLUMNS), better="lower",
				     note=f"{mib} MiB, pool in memory on a Unix socket. CPU is that of pager and warden by the scheduler's clock; "
				     "eviction alone is what is left after the pages that were fetched, each at its cost without a budget. Stood "
				     "still: gaps above 100 us of a second thread of the target that touches nothing but its stack; on a busy "
				     "host other processes cause most of them, so a local process under the same touches stands beside it.")
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
			fetch = fetch_cost(context, snapshot, mib * 100)  # beside what it is taken from: load comes and goes
			add_stillness(table, ALONE, local.run("uniform", seconds=seconds, seed=turn, beat=True))
			for row in MIXES:
				line.run("uniform", seconds=seconds * 2, touches=mib * 512, writes=MIXES[row], seed=turn + 50)
				steady_cost(line, instance, row, seconds, turn, fetch, table)
	draw(context, "eviction", "CPU of pager and warden, us a page",
	     [panel_of(table, columns=["CPU a page fetched", "CPU a page fetched and evicted", "eviction alone", "of it warden"], rows=list(MIXES))],
	     y_label="us")
	context.report.target("eviction of clean pages, CPU", table.median("reads", "eviction alone"), "<=", 1.5, "us a page")
