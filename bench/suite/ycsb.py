"""d. Redis under YCSB with a share of its memory local."""
import contextlib
import json

from .context import VALUE_BYTES
from .plots import Panel, draw, panel_of
from .process import run as run_command
from .swap import Swap

NAME, TITLE = "ycsb", "d. Redis under YCSB with a share of its memory local"
LOCAL, OURS, ZRAM, FILE = "all local", "ours", "swap to zram", "swap to a file"
WORKLOADS = {"A": "A, half updates", "B": "B, 5 % updates", "C": "C, reads", "F": "F, half read-modify-write", "U": "uniform reads"}
SHORT = {row: row.split(",")[0].removesuffix(" reads") for row in WORKLOADS.values()}  # in plots
OFFERED = 0.4  # of what all-local Redis reaches in the same run


class Peers:
	def __init__(self, context, stack, megabytes):
		self.context, self.stack = context, stack
		self.ports, self.skips, self.groups = {}, {}, {}
		self.snapshot = context.redis_snapshot(megabytes)
		self.keys = self.snapshot.keys
		self.local = self.add(LOCAL)
		self.rss = context.rss_bytes(self.local.pid)
		self.swap = Swap(context, stack, 2 * self.rss)
		for kind, name in (("zram", ZRAM), ("file", FILE)):
			if context.host.lacks(kind):
				self.skips[name] = context.host.lacks(kind)
				continue
			self.groups[name] = self.swap.group(stack, kind)
			self.add(name, self.groups[name].wrapper)

	def add(self, name, wrapper=()):
		process, self.ports[name] = self.context.start_redis(self.stack, self.context.unique("ycsb"), wrapper)
		self.context.fill_redis(self.ports[name], self.keys, self.context.work / self.context.unique("model"))
		return process

	def share(self, stack, percent):
		"""All peers at this share; ours is restored anew."""
		for group in self.groups.values():
			group.limit_bytes = self.rss * percent // 100 if percent < 100 else -1
		self.swap.turn_off()
		instance = self.context.restore(self.snapshot.uri("unix"), local=f"{percent}%")
		stack.callback(instance.stop)
		self.ports[OURS] = self.snapshot.port

	def ask(self, name, workload, seconds, seed, rate=0):
		if name in self.groups:
			self.swap.turn_on("zram" if name == ZRAM else "file")
		return json.loads(run_command(self.context.host.programs / "ycsb", "--server", self.ports[name], "--workload", workload,
					      "--keys", self.keys, "--value-bytes", VALUE_BYTES, "--seconds", seconds, "--rate", rate, "--seed", seed,
					      timeout=seconds * 20 + 90))


def one_share(context, peers, percent, tables, workloads, seconds):
	speed, half, tail = tables
	with contextlib.ExitStack() as stack:
		peers.share(stack, percent)
		names = [LOCAL, OURS] + [name for name in (ZRAM, FILE) if name in peers.groups]
		for turn in range(1, context.runs + 1):
			offered = {}  # by workload, from what all-local reaches in this turn
			for name in names:  # a change of swap takes seconds, so all workloads of a peer follow each other
				for workload in workloads:
					row = WORKLOADS[workload]
					with context.attempt(f"YCSB {workload}, {percent} %, {name}", *[(table, row, name) for table in tables]):
						if name != LOCAL:
							peers.ask(name, workload, seconds, 1000 + turn)  # into its steady state
						closed = peers.ask(name, workload, seconds, turn)
						offered.setdefault(workload, closed["per_second"] * OFFERED)
						opened = peers.ask(name, workload, seconds, 100 + turn, offered[workload])
						speed.add(row, name, closed["per_second"])
						half.add(row, name, opened["p50_us"])
						tail.add(row, name, opened["p99_us"])


def plot(context, results, file, title, unit, number, log_y):
	if len(results) < 3:  # too few for lines: the workloads beside each other
		panels = [panel_of(tables[number], f"{percent} % local", rename=SHORT) for percent, tables in results.items()]
		draw(context, file, title, panels, y_label=unit, log_y=log_y)
		return
	panels = []
	for row in WORKLOADS.values():
		series = {}
		for percent, tables in results.items():
			for name in (LOCAL, OURS, ZRAM, FILE):
				cell = tables[number].cells.get((row, name))
				if cell and cell.values:
					series.setdefault(name, {})[str(percent)] = (cell.median, min(cell.values), max(cell.values))
		panels.append(Panel(row, [str(percent) for percent in results], series, "lines"))
	draw(context, file, title, panels, y_label=unit, x_label="% local", log_y=log_y)


def targets(context, results):
	def of_local(percent, workload):
		ratio = percent in results and results[percent][0].ratio(WORKLOADS[workload], OURS)
		return 100 * ratio if ratio else None

	def of_zram(percent):
		ratio = percent in results and results[percent][0].ratio(WORKLOADS["U"], ZRAM)
		return 100 * ratio if ratio else None

	for percent in (50, 25 if 25 in results else 30):
		context.report.target(f"Redis uniform GET, {percent} % local, share of all-local (zram beside it)", of_local(percent, "U"), ">=",
				      of_zram(percent) or (49 if percent == 50 else 34), "%")
	for workload, share in (("C", 90), ("B", 85), ("A", 75)):
		context.report.target(f"YCSB {workload}, 50 % local, share of all-local", of_local(50, workload), ">=", share, "%")
		tail = results[50][2].ratio(WORKLOADS[workload], OURS) if 50 in results else None
		context.report.target(f"YCSB {workload}, 50 % local, p99 against all-local", tail, "<=", 2, "x")


def run(context):
	reason = context.host.lacks("redis")
	percents = [25, 50] if context.quick else [10, 25, 30, 50, 70, 100]
	megabytes, seconds = (100, 0.25) if context.quick else (500, 0.5)
	results = {}
	if reason:
		table = context.report.table("ycsb", "Throughput", "workload", [OURS], "1/s")
		return table.skip("all", OURS, reason)
	with contextlib.ExitStack() as stack, context.attempt("YCSB"):
		context.say("YCSB: four Redis are filled")
		peers = Peers(context, stack, megabytes)
		for percent in percents:
			context.say(f"YCSB with {percent} % local: closed and open loop, {context.runs} runs")
			columns = [LOCAL, OURS, ZRAM, FILE]
			tables = (context.report.table(f"ycsb {percent}", f"Most operations/s, {percent} % local (closed loop, 16 connections)",
						       "workload", columns, "1/s", baseline_column=LOCAL),
				  context.report.table(f"ycsb {percent} p50", f"p50 at {OFFERED:.0%} of all-local's most, {percent} % local (open loop)",
						       "workload", columns, "us", baseline_column=LOCAL, better="lower"),
				  context.report.table(f"ycsb {percent} p99", f"p99 at the same, {percent} % local", "workload", columns, "us",
						       baseline_column=LOCAL, better="lower"))
			for table in tables:
				for name, why in peers.skips.items():
					for row in WORKLOADS.values():
						table.skip(row, name, why)
			results[percent] = tables
			workloads = ["U"] if percent == 25 else list(WORKLOADS)  # what the target at 25 % is about
			with context.attempt(f"YCSB, {percent} %"):
				one_share(context, peers, percent, tables, workloads, seconds)
	plot(context, results, "ycsb-throughput", "Redis, most operations per second", "1/s", 0, False)
	plot(context, results, "ycsb-p99", f"Redis, p99 at {OFFERED:.0%} of all-local's most", "us", 2, True)
	targets(context, results)
