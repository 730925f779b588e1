"""g. A pool far away, and many instances on one pool."""
import contextlib
import json
import statistics
import time

from .context import Touch
from .plots import draw, panel_of
from .process import resident_bytes, run as run_command, start, wait_for

NAME, TITLE = "wan", "g. A long thin link; many instances"
LINKS = {"10 ms, 100 Mbit/s": (10, 100), "10 ms, 1 Gbit/s": (10, 1000), "50 ms, 100 Mbit/s": (50, 100), "50 ms, 1 Gbit/s": (50, 1000)}
FIRST, FIRST_SET, FIRST_PLAIN = "first answer", "with the working set", "not packed"
FILL, FILL_PLAIN = "fill", "fill, not packed"


def far_port(context, stack, rtt_ms, mbit):
	port_file = context.work / f"{context.unique('wan')}.port"
	start(stack, context.host.programs / "wan-proxy", "--to", f"127.0.0.1:{context.pool.port}", "--port-file", port_file,
	      "--rtt-ms", rtt_ms, "--mbit", mbit)
	wait_for("the proxy", lambda: port_file.exists() and port_file.read_text().endswith("\n"), 10)
	return int(port_file.read_text())


def first_answer(context, snapshot, uri, options):
	with contextlib.ExitStack() as stack:
		name = context.unique("g")
		stack.callback(context.stop_instances)
		command = [context.host.distri_proc, "restore", uri, "--name", name, "--pidfile", context.work / f"{name}.pid", *options]
		return context.first_answer(stack, snapshot, command, context.work / "first.log")[0] / 1e6


def fill_share(context, snapshot, uri, mbit, options):
	"""Whole memory over the link: how much of its bandwidth is used, in percent of the uncompressed bytes a second."""
	with contextlib.ExitStack() as stack:
		instance = context.restore(uri, *options)
		stack.callback(instance.stop)
		wait_for("the pager's first figures", lambda: instance.stats()["remote_pages"] or instance.stats()["left_ns"], 5)
		before, began = instance.stats(), time.monotonic()
		# until all is there, the link's slow beginning included; of a slow link a part of the way is enough to see its speed
		deadline = began + (2.0 if context.quick else 4.0)
		while (after := instance.stats())["remote_pages"] and not after["left_ns"] and time.monotonic() < deadline:
			time.sleep(0.02)
		took = time.monotonic() - began
		return 100 * (after["installed_pages"] - before["installed_pages"]) * 4096 * 8 / took / (mbit * 1e6)


def links(context):
	columns = [FIRST, FIRST_SET, FIRST_PLAIN, FILL, FILL_PLAIN]
	table = context.report.table("links", "Restore of a Redis over the link", "round trip, bandwidth", columns,
				     {FIRST: "ms", FIRST_SET: "ms", FIRST_PLAIN: "ms", FILL: "% of link", FILL_PLAIN: "% of link"},
				     note="Redis with 0.1 GB in a pool behind bench/programs/wan_proxy.c. Fill: bytes of memory a second by the link's "
				     "bandwidth; packed pages (the default on such links) may exceed it. Not packed: --compress off.")
	reasons = {FIRST_SET: context.host.lacks_option("restore", "--prefetch "),
		   FIRST_PLAIN: context.host.lacks_option("restore", "--compress"),
		   FILL: context.host.lacks_option("restore", "--migrate"),
		   FILL_PLAIN: context.host.lacks_option("restore", "--migrate") or context.host.lacks_option("restore", "--compress")}
	if context.host.lacks("redis"):
		reasons = dict.fromkeys(columns, context.host.lacks("redis"))
	options = {FIRST: [], FIRST_SET: ["--prefetch", "working-set"], FIRST_PLAIN: ["--compress", "off"], FILL: ["--migrate"],
		   FILL_PLAIN: ["--migrate", "--compress", "off"]}
	usable = [column for column in columns if not reasons.get(column)]
	snapshot = context.redis_snapshot(100) if usable else None
	for row, (rtt_ms, mbit) in LINKS.items():
		for column in columns:
			if reasons.get(column):
				table.skip(row, column, reasons[column])
		with contextlib.ExitStack() as stack, context.attempt(f"link of {row}", *[(table, row, column) for column in usable]):
			uri = f"dp://127.0.0.1:{far_port(context, stack, rtt_ms, mbit)}/{snapshot.name}" if usable else ""
			for _ in range(1 if context.quick else min(context.runs, 2)):
				for column in usable:
					with context.attempt(f"link of {row}, {column}", (table, row, column)):
						table.add(row, column, fill_share(context, snapshot, uri, mbit, options[column]) if column in (FILL, FILL_PLAIN)
							  else first_answer(context, snapshot, uri, options[column]))
	return table


def windows(context):
	"""Reading a pool over the link with 1, 4, 16, ... pages asked for and not answered yet."""
	names = list(LINKS) if not context.quick else ["10 ms, 1 Gbit/s"]
	table = context.report.table("window", "Reading a pool over the link, by bytes in flight", "bytes in flight", names, "MB/s")
	for name in names:
		with contextlib.ExitStack() as stack, context.attempt(f"window, {name}"):
			rtt_ms, mbit = LINKS[name]
			port = far_port(context, stack, rtt_ms, mbit)
			for _ in range(1 if context.quick else min(context.runs, 2)):
				text = run_command(context.host.programs / "pool-bench", f"dp://127.0.0.1:{context.pool.port}", 49152,
						   f"dp://127.0.0.1:{port}", timeout=120)
				for line in text.strip().splitlines():
					figure = json.loads(line)
					table.add(str(figure["in_flight_bytes"]), name, figure["bytes_per_second"] / 1e6)
	return table


def crowd(context, count, table, mib, seconds):
	row = str(count)
	snapshot = context.touch_snapshot(mib, shared=True)
	with contextlib.ExitStack() as stack:
		before = resident_bytes(context.pool.process.pid)
		instances, times = [], []
		for _ in range(count):
			began = time.monotonic()
			instances.append(context.restore(snapshot.uri("unix"), local="50%"))
			times.append((time.monotonic() - began) * 1000)
			stack.callback(instances[-1].stop)
		lines = [Touch(snapshot.port, shared=True) for _ in instances]
		for line in lines:
			stack.callback(line.close)
		for line in lines:
			line.begin("uniform", seconds=seconds)
		answers = [line.finish() for line in lines]
		table.add(row, "restore", statistics.median(times))
		table.add(row, "touches/s, all", sum(answer["touches_per_second"] for answer in answers))
		table.add(row, "touches/s, slowest", min(answer["touches_per_second"] for answer in answers))
		table.add(row, "pool's memory", (resident_bytes(context.pool.process.pid) - before) / count / 1024)


def crowds(context):
	mib, seconds = 24, 1.0 if context.quick else 2.0
	counts = [1, 8, 32] if context.quick else [1, 2, 4, 8, 16, 32, 64]
	units = {"restore": "ms", "touches/s, all": "1/s", "touches/s, slowest": "1/s", "pool's memory": "KiB an instance"}
	table = context.report.table("crowd", "Instances of one snapshot on one pool", "instances", list(units), units,
				     note=f"{mib} MiB each, half of it local, random reads, all at the same time. Pool's memory: what it "
				     "grew by for each instance.")
	for _ in range(1 if context.quick else min(context.runs, 2)):
		for count in counts:
			with context.attempt(f"{count} instances", *[(table, str(count), column) for column in units]):
				crowd(context, count, table, mib, seconds)
	return table


def run(context):
	context.say("links")
	link = links(context)
	context.say("bytes in flight over the links")
	window = windows(context)
	context.say("many instances on one pool")
	many = crowds(context)
	draw(context, "wan-first", "Restore over a link: first answered request",
	     [panel_of(link, columns=[FIRST, FIRST_SET, FIRST_PLAIN])], y_label="ms")
	draw(context, "wan-window", "Reading a pool over a link, by bytes in flight",
	     [panel_of(window, kind="lines")], y_label="MB/s", x_label="bytes in flight", log_x=2, log_y=True)
	draw(context, "crowd", "Instances of one snapshot on one pool",
	     [panel_of(many, "touches/s, all together", "lines", ["touches/s, all"]), panel_of(many, "restore, ms", "lines", ["restore"])],
	     x_label="instances", log_x=2)
