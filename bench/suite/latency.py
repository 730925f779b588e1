"""b. What a fault costs the thread that waits for it."""
import contextlib
import json

from .context import StockRestore, Touch
from .plots import draw, panel_of
from .process import run as run_command
from .swap import Swap

NAME, TITLE = "latency", "b. Fault latency"
QUANTILES = ["p50", "p99", "p99.9"]
STOCK = {"CRIU lazy, local images": "lazy", "CRIU lazy, page server (TCP)": "page-server"}
TRANSPORTS = {"dir": "ours, embedded store (dir:)", "unix": "ours, Unix socket", "tcp": "ours, TCP"}
FILL = ", while all is filled"
NO_GUESSES = {"--prefetch-policy": ["--prefetch-policy", "none"], "--record": ["--record=no"]}  # a fault is to be a fault
FLOORS = {"tcp": "floor: a message and a page, TCP", "unix": "floor: a message and a page, Unix socket",
	  "fault": "floor: userfaultfd, the page at hand"}
FRESH_BASE = "CRIU lazy, page server (TCP)"


def add(table, row, answer):
	for column, field in zip(QUANTILES, ("slow_p50_us", "slow_p99_us", "slow_p999_us")):
		table.add(row, column, answer[field])
	table.add(row, "touches that waited", 100 * answer["slow"] / answer["touches"])


def fresh_stock(context, snapshot, mode, touches):
	with contextlib.ExitStack() as stack:
		stock = StockRestore(context, stack, snapshot, mode)
		_, pid = context.first_answer(stack, snapshot, stock.command, stock.log)
		stack.callback(stock.stop, pid)
		line = Touch(snapshot.port)
		stack.callback(line.close)
		return line.run("uniform", touches=touches, seed=context.counter)


def fresh_ours(context, snapshot, transport, touches, options):
	with contextlib.ExitStack() as stack:
		instance = context.restore(snapshot.uri(transport), *options)
		stack.callback(instance.stop)
		line = Touch(snapshot.port)
		stack.callback(line.close)
		return line.run("uniform", touches=touches, seed=context.counter)


def floors(context, table):
	"""What the host itself takes: no pager, no pool."""
	for line in run_command(context.host.programs / "floor", 4000 if context.quick else 20000, timeout=60).splitlines():
		figure = json.loads(line)
		for column, field in zip(QUANTILES, ("p50_us", "p99_us", "p999_us")):
			table.add(FLOORS[figure["what"]], column, figure[field])


def fresh(context, mib):
	touches = 4000 if context.quick else 20000
	table = context.report.table("fresh", "Random touches right after restore", "peer", [*QUANTILES, "touches that waited"],
				     {**dict.fromkeys(QUANTILES, "us"), "touches that waited": "%"}, baseline_row=FRESH_BASE, better="lower",
				     rows=[*STOCK, *TRANSPORTS.values(), *FLOORS.values()],
				     note=f"{mib} MiB, {touches} touches at random pages; latencies of those that took more than 1 us. Stock "
				     "CRIU always brings all memory in the background; ours only where it says so. Ours fetches nothing ahead here "
				     "(--prefetch-policy none), and no recorded order. Floors: what a message with its "
				     "answer, or a fault alone, costs here without us (bench/programs/floor.c).")
	ways = {name: lambda mode=mode: fresh_stock(context, context.touch_snapshot(mib), mode, touches) for name, mode in STOCK.items()}
	reason = context.host.lacks_option("restore", "--migrate")
	plain = [word for option, words in NO_GUESSES.items() if not context.host.lacks_option("restore", option) for word in words]
	for transport, name in TRANSPORTS.items():
		ways[name] = lambda t=transport: fresh_ours(context, context.touch_snapshot(mib), t, touches, plain)
	for transport in ("unix", "tcp"):
		row = TRANSPORTS[transport] + FILL
		if reason:
			for column in table.columns:
				table.skip(row, column, reason)
		else:
			ways[row] = lambda t=transport: fresh_ours(context, context.touch_snapshot(mib), t, touches, ["--migrate", *plain])
	for row in FLOORS.values():
		table.skip(row, "touches that waited", "not of a process")
	for _ in range(context.runs):
		with context.attempt("floors", *[(table, row, column) for row in FLOORS.values() for column in QUANTILES]):
			floors(context, table)
		for row, way in ways.items():
			with context.attempt(f"fault latency, {row}", *[(table, row, column) for column in table.columns]):
				add(table, row, way())
	return table


def recorded(context):
	"""The same touches of the same snapshot, three times: the first restore records its order."""
	columns = ["faults", "gone", "touches that waited"]
	first, stream, before_run = "first", "second, as a stream", "second, before it runs"
	table = context.report.table("recorded", "The recorded order of an earlier run", "restore", columns,
				     {"faults": "", "gone": "%", "touches that waited": "%"}, better="lower", rows=[first, stream, before_run],
				     note="64 MiB, 4000 touches at random pages, the same ones in each restore. Faults: those for which the "
				     "pool was asked.")
	reason = context.host.lacks_option("restore", "--record") or context.host.lacks_option("restore", "--prefetch ")
	if reason:
		for row in table.rows:
			for column in columns:
				table.skip(row, column, reason)
		return table
	for turn in range(context.runs):
		with context.attempt("recorded order", *[(table, row, column) for row in table.rows for column in columns]):
			counts = {}
			for row, options in ((first, ["--record"]), (stream, ["--prefetch", "stream"]), (before_run, ["--prefetch", "working-set"])):
				with contextlib.ExitStack() as stack:
					instance = context.restore(context.touch_snapshot(64).uri("unix"), *options)
					stack.callback(instance.stop)
					line = Touch(context.touch_snapshot(64).port)
					stack.callback(line.close)
					answer = line.run("uniform", touches=4000, seed=turn)
					counts[row] = instance.stats()["faults"]["remote"]
				table.add(row, "faults", counts[row])
				table.add(row, "touches that waited", 100 * answer["slow"] / answer["touches"])
				if row != first:
					table.add(row, "gone", 100 * (1 - counts[row] / max(1, counts[first])))
	context.report.target("recorded order, second restore: faults gone", table.median(before_run, "gone"), ">=", 97, "%")
	return table


def steady(context, mib):
	seconds = 0.5 if context.quick else 2
	table = context.report.table("steady", "In the steady state at 50 % local, pages coming and going", "peer",
				     [*QUANTILES, "touches that waited", "touches/s"],
				     {**dict.fromkeys(QUANTILES, "us"), "touches that waited": "%", "touches/s": "1/s"},
				     baseline_row="swap to zram", better="lower",
				     note=f"{mib} MiB, random touches, 10 % of them writes; latencies of those that took more than 1 us.")
	with contextlib.ExitStack() as stack:
		lines = {}
		snapshot = context.touch_snapshot(mib, shared=True)
		for transport, row in TRANSPORTS.items():
			with context.attempt(f"steady latency, {row}", *[(table, row, column) for column in table.columns]):
				instance = context.restore(snapshot.uri(transport), local="50%")
				stack.callback(instance.stop)
				lines[row] = Touch(snapshot.port, shared=True)
				stack.callback(lines[row].close)
		swap = Swap(context, stack, 2 * mib << 20)
		for kind in ("zram", "file"):
			row = f"swap to {'zram' if kind == 'zram' else 'a file'}"
			if context.host.lacks(kind):
				for column in table.columns:
					table.skip(row, column, context.host.lacks(kind))
				continue
			group = swap.group(stack, kind)
			_, port = context.start_touch(stack, f"steady-{kind}", mib, wrapper=group.wrapper)
			group.limit_bytes = mib << 19
			lines[row] = Touch(port)
			stack.callback(lines[row].close)
		for turn in range(context.runs + 1):  # the first reaches the steady state
			for row, line in lines.items():
				if row.startswith("swap"):
					swap.turn_on("zram" if "zram" in row else "file")
				with context.attempt(f"steady latency, {row}", *[(table, row, column) for column in table.columns]):
					if turn == 0 or row.startswith("swap"):
						line.run("uniform", seconds=0.5 if turn else 1.5, touches=mib * 512, writes=0.1, seed=99 + turn)
					answer = line.run("uniform", seconds=seconds, writes=0.1, seed=turn)
					if turn:
						add(table, row, answer)
						table.add(row, "touches/s", answer["touches_per_second"])
	return table


def run(context):
	mib = 96 if context.quick else 1024
	context.say("fault latency right after restore")
	first = fresh(context, mib)
	context.say("recorded order")
	recorded(context)
	context.say("fault latency in the steady state")
	second = steady(context, min(mib, 256))
	draw(context, "latency", "Fault latency, us (random touches)",
	     [panel_of(first, "right after restore", columns=QUANTILES, by_column=False),
	      panel_of(second, "steady state, 50 % local", columns=QUANTILES, by_column=False)], y_label="us", log_y=True)
	report = context.report
	report.target("fault over TCP loopback, p50", first.median(TRANSPORTS["tcp"], "p50"), "<=", 10, "us")
	report.target("fault over TCP loopback, p99", first.median(TRANSPORTS["tcp"], "p99"), "<=", 25, "us")
	report.target("fault, embedded store, p50", first.median(TRANSPORTS["dir"], "p50"), "<=", 6, "us")
