"""c. How fast a process touches its memory when only a share of it is local, and how well the next page is foreseen."""
import contextlib

from .context import Touch
from .plots import Panel, draw, panel_of
from .swap import Swap

NAME, TITLE = "touches", "c. Touches per second with a share of the memory local"
LOCAL, OURS, ZRAM, FILE = "all local", "ours", "swap to zram", "swap to a file"
PEERS = [LOCAL, OURS, ZRAM, FILE]
PATTERNS = {  # name: pattern, share of writes
	"sequential": ("seq", 0), "stride 7": ("stride:7", 0), "stride -5": ("stride:-5", 0), "two streams": ("two", 0),
	"uniform": ("uniform", 0), "Zipf 0.99": ("zipf", 0), "uniform, 10 % writes": ("uniform", 0.1)}
FORESEEN = ["without a fault", "accuracy", "coverage", "extra traffic"]


def foreseen(before, after, touches):
	"""What prefetching did between two looks at the statistics, in percent."""
	def grown(field):
		return after[field] - before[field]

	faults = sum(after["faults"][kind] - before["faults"][kind] for kind in after["faults"] if kind != "zero")
	remote = after["faults"]["remote"] - before["faults"]["remote"]
	fetched, used, wasted = grown("prefetched_pages"), grown("prefetch_used_pages"), grown("prefetch_wasted_pages")
	values = {"without a fault": 100 * (1 - min(1, faults / touches)),
		  "coverage": 100 * used / (used + remote) if used + remote else 0,
		  "extra traffic": 100 * wasted / (used + remote) if used + remote else 0}
	if fetched:
		values["accuracy"] = 100 * min(1, used / fetched)
	return values


class Peers:
	"""The four processes of one share, side by side; each is idle while another is measured."""

	def __init__(self, context, stack, mib, share):
		self.mib, self.share = mib, share
		self.lines, self.skips, self.groups = {}, {}, {}
		snapshot = context.touch_snapshot(mib, shared=True)
		_, port = context.start_touch(stack, context.unique("local"), mib)
		self.lines[LOCAL] = Touch(port)
		self.instance = context.restore(snapshot.uri("unix"), local=f"{share}%")
		stack.callback(self.instance.stop)
		self.lines[OURS] = Touch(snapshot.port, shared=True)
		self.swap = Swap(context, stack, 2 * mib << 20)
		for kind, name in (("zram", ZRAM), ("file", FILE)):
			if context.host.lacks(kind):
				self.skips[name] = context.host.lacks(kind)
				continue
			self.groups[name] = self.swap.group(stack, kind)
			process, port = context.start_touch(stack, context.unique(kind), mib, wrapper=self.groups[name].wrapper)
			self.groups[name].limit_bytes = context.rss_bytes(process.pid) * share // 100
			self.lines[name] = Touch(port)
		for line in self.lines.values():
			stack.callback(line.close)

	def ready(self, name):
		if name in self.groups:
			self.swap.turn_on("zram" if name == ZRAM else "file")


def one_share(context, share, mib, seconds):
	title = f"{share} % local"
	speed = context.report.table(f"touches {share}", f"Touches/s, {title}", "pattern", PEERS, "1/s", baseline_column=LOCAL)
	sight = context.report.table(f"prefetch {share}", f"Ours: touches served without a fault, {title}", "pattern", FORESEEN, "%")
	with contextlib.ExitStack() as stack:
		peers = Peers(context, stack, mib, share)
		for name, reason in peers.skips.items():
			for pattern in PATTERNS:
				speed.skip(pattern, name, reason)
		for turn in range(1, context.runs + 1):
			for name in list(peers.lines):
				for row in PATTERNS:
					one_figure(context, peers, name, row, turn, seconds, (speed, sight))
	return speed, sight


def one_figure(context, peers, name, row, turn, seconds, tables):
	speed, sight = tables
	pattern, writes = PATTERNS[row]
	with context.attempt(f"{peers.share} % local, {name}, {row}", (speed, row, name)):
		peers.ready(name)
		line = peers.lines[name]
		evicted = peers.instance.stats()["evicted_pages"]
		# into the pattern's own steady state: all pages once, or one and a half of the measured time; ours until all pages that
		# were local have left once, for how those of the pattern before were foreseen shows only then
		line.run(pattern, seconds=seconds * 1.5, touches=peers.mib * 256, writes=writes, seed=turn + 50)
		for again in range(6 if name == OURS else 0):
			if peers.instance.stats()["evicted_pages"] - evicted >= peers.mib * 256 * peers.share / 100:
				break
			line.run(pattern, seconds=seconds, writes=writes, seed=turn + 60 + again)
		before = peers.instance.stats() if name == OURS else None
		answer = line.run(pattern, seconds=seconds, writes=writes, seed=turn)
		speed.add(row, name, answer["touches_per_second"])
		if name == OURS:
			for column, value in foreseen(before, peers.instance.stats(), answer["touches"]).items():
				sight.add(row, column, value)


def policies(context, mib, seconds):
	"""The prefetchers beside each other, where this build lets one choose."""
	columns = ["adaptive", "sequential", "stride", "trend", "recorded", "learned", "none"]
	table = context.report.table("policies", "Ours at 50 % local, by prefetch policy", "pattern", columns, "1/s",
				     baseline_column="adaptive")
	reason = context.host.lacks_option("restore", "--prefetch-policy")
	for column in columns:
		missing = reason or (None if column in context.host.helps["restore"] else f"no policy named {column}")
		if missing:
			for row in PATTERNS:
				table.skip(row, column, missing)
			continue
		with contextlib.ExitStack() as stack, context.attempt(f"policy {column}", *[(table, row, column) for row in PATTERNS]):
			snapshot = context.touch_snapshot(mib, shared=True)
			instance = context.restore(snapshot.uri("unix"), "--prefetch-policy", column, local="50%")
			stack.callback(instance.stop)
			line = Touch(snapshot.port, shared=True)
			stack.callback(line.close)
			for turn in range(context.runs):
				for row, (pattern, writes) in PATTERNS.items():
					line.run(pattern, seconds=seconds, touches=mib * 256, writes=writes, seed=turn + 50)
					table.add(row, column, line.run(pattern, seconds=seconds, writes=writes, seed=turn)["touches_per_second"])


def plot(context, speeds):
	if len(speeds) < 3:  # too few for lines: the patterns beside each other
		draw(context, "touches", "Touches per second", [panel_of(table, f"{share} % local") for share, table in speeds.items()],
		     y_label="touches/s", log_y=True)
		return
	panels = []
	for row in PATTERNS:
		series = {}
		for share, table in speeds.items():
			for name in PEERS:
				cell = table.cells.get((row, name))
				if cell and cell.values:
					series.setdefault(name, {})[str(share)] = (cell.median, min(cell.values), max(cell.values))
		panels.append(Panel(row, [str(share) for share in speeds], series, "lines"))
	draw(context, "touches", "Touches per second by the share of memory that is local", panels, y_label="touches/s", x_label="% local",
	     log_y=True)


def run(context):
	shares = [50] if context.quick else [10, 25, 50, 75]
	mib, seconds = (96, 0.15) if context.quick else (256, 0.4)
	speeds, sights = {}, {}
	for share in shares:
		context.say(f"touches with {share} % local: {len(PATTERNS)} patterns, 4 peers, {context.runs} runs")
		with context.attempt(f"touches with {share} % local"):
			speeds[share], sights[share] = one_share(context, share, mib, seconds)
	if not context.quick:
		context.say("prefetch policies")
		policies(context, mib, seconds / 2)
	plot(context, speeds)
	if 50 in sights:
		draw(context, "prefetch", "Ours at 50 % local: touches served without a fault",
		     [panel_of(sights[50], columns=FORESEEN)], y_label="%")
		target = context.report.target
		target("sequential touches without a fault, 50 % local", sights[50].median("sequential", "without a fault"), ">=", 98, "%")
		target("stride 7 touches without a fault, 50 % local", sights[50].median("stride 7", "without a fault"), ">=", 95, "%")
		target("uniform: extra traffic, 50 % local", sights[50].median("uniform", "extra traffic"), "<=", 5, "%")
		target("Zipf: extra traffic, 50 % local", sights[50].median("Zipf 0.99", "extra traffic"), "<=", 5, "%")
