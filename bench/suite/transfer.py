"""e. Moving whole memories: the fill in the background, and checkpoints."""
import contextlib
import json
import shutil
import time

from . import process
from .context import StockRestore
from .plots import draw, panel_of
from .process import Failed, wait_for

NAME, TITLE = "transfer", "e. Background fill and checkpoint"
STOCK_LOCAL, STOCK_TCP = "criu lazy-pages, local images", "criu lazy-pages, page server (TCP)"
OUR_DAEMON_LOCAL, OUR_DAEMON_TCP = "distri-proc lazy-pages, local images", "distri-proc lazy-pages, page server (TCP)"
OUR_UNIX, OUR_TCP, OUR_IN = "ours, restore --migrate, Unix socket", "ours, restore --migrate, TCP", "ours, migrate-in later, TCP"
MIGRATE_DONE = 4  # of enum migrate_state
DUMP_DISK, DUMP_TMPFS = "criu dump to disk", "criu dump to tmpfs"
TO_UNIX, TO_TCP, TO_DIR = "ours, pool in memory, Unix socket", "ours, pool in memory, TCP", "ours, directory (dir:)"


def fill_by_daemon(context, snapshot, mode, daemon):
	with contextlib.ExitStack() as stack:
		stock = StockRestore(context, stack, snapshot, mode, daemon)
		_, pid = context.first_answer(stack, snapshot, stock.command, stock.log)
		stack.callback(stock.stop, pid)
		began, ended = stock.times(2)[:2]
		return (ended - began) / 1e9


def all_local(instance):
	"""true when the transfer is done; the pager leaves then, and says so in its last statistics."""
	stats = instance.stats()
	return stats["left_ns"] or stats["migrate_state"] == MIGRATE_DONE


def fill_by_pool(context, snapshot, transport, later):
	with contextlib.ExitStack() as stack:
		instance = context.restore(snapshot.uri(transport), *([] if later else ["--migrate"]))
		stack.callback(instance.stop)
		began = time.monotonic()
		if later:
			process.run(context.host.distri_proc, "migrate-in", instance.name)
		left_ns = wait_for("the fill", lambda: all_local(instance), 120, 0.002)
		return (left_ns / 1e9 if left_ns > 1 else time.monotonic()) - began  # the same clock


def fills(context, snapshot):
	table = context.report.table("fill", "Whole memory filled in the background", "way", ["rate", "time"],
				     {"rate": "GB/s", "time": "s"}, baseline_row=STOCK_TCP,
				     rows=[STOCK_LOCAL, STOCK_TCP, OUR_DAEMON_LOCAL, OUR_DAEMON_TCP, OUR_UNIX, OUR_TCP, OUR_IN],
				     note=f"{snapshot.rss_bytes / 1e9:.2f} GB, from the end of the restore until all is local.")
	own = context.host.distri_proc
	ways = {STOCK_LOCAL: lambda: fill_by_daemon(context, snapshot, "lazy", None),
		STOCK_TCP: lambda: fill_by_daemon(context, snapshot, "page-server", None),
		OUR_DAEMON_LOCAL: lambda: fill_by_daemon(context, snapshot, "lazy", own),
		OUR_DAEMON_TCP: lambda: fill_by_daemon(context, snapshot, "page-server", own)}
	for row, transport, later in ((OUR_UNIX, "unix", False), (OUR_TCP, "tcp", False), (OUR_IN, "tcp", True)):
		reason = context.host.lacks_option("migrate-in", None) if later else context.host.lacks_option("restore", "--migrate")
		if reason:
			for column in table.columns:
				table.skip(row, column, reason)
		else:
			ways[row] = lambda t=transport, l=later: fill_by_pool(context, snapshot, t, l)
	for _ in range(context.runs):
		for row, way in ways.items():
			with context.attempt(f"fill, {row}", *[(table, row, column) for column in table.columns]):
				seconds = way()
				table.add(row, "rate", snapshot.rss_bytes / seconds / 1e9)
				table.add(row, "time", seconds)
	return table


def varint(data, at):
	value = shift = 0
	while True:
		value |= (data[at] & 0x7f) << shift
		shift += 7
		at += 1
		if data[at - 1] < 0x80:
			return value, at


def fields(data):
	"""A protobuf message's fields: numbers and byte strings."""
	at, found = 0, {}
	while at < len(data):
		key, at = varint(data, at)
		if key & 7 == 0:
			found[key >> 3], at = varint(data, at)
		elif key & 7 == 2:
			length, at = varint(data, at)
			found[key >> 3] = data[at:at + length]
			at += length
		else:
			raise Failed("stats-dump is not what CRIU 4.2 writes")
	return found


def criu_frozen_seconds(images):
	"""From CRIU's stats-dump: two magics, a length, then StatsEntry { dump = 1 { frozen_time = 2, in us } }."""
	content = (images / "stats-dump").read_bytes()
	entry = fields(content[12:12 + int.from_bytes(content[8:12], "little")])
	return fields(entry[1])[2] / 1e6


def dump_by_criu(context, pid, directory):
	directory.mkdir()
	try:
		began = time.monotonic()
		process.run(context.host.criu, "dump", "-t", pid, "-D", directory, "-o", "dump.log", "-v0", "--leave-running", timeout=300)
		return time.monotonic() - began, criu_frozen_seconds(directory)
	finally:
		shutil.rmtree(directory)


def checkpoint(context, pid, uri):
	answer = json.loads(process.run(context.host.distri_proc, "checkpoint", "--pid", pid, "--leave-running", "--force", "--json",
					uri, timeout=300))
	return answer["total_ns"] / 1e9, answer["frozen_ns"] / 1e9


def checkpoints(context, mib):
	table = context.report.table("checkpoint", "Checkpoint of a live process", "to", ["rate", "time", "frozen"],
				     {"rate": "GB/s", "time": "s", "frozen": "s"}, baseline_row=DUMP_TMPFS,
				     note=f"{mib} MiB, half of it incompressible; the source goes on afterwards. Rate: by the time of "
				     "the whole command.")
	with contextlib.ExitStack() as stack:
		source, _ = context.start_touch(stack, context.unique("source"), mib)
		size = context.rss_bytes(source.pid)
		tmpfs = context.tmpfs(stack)
		ways = {DUMP_DISK: lambda: dump_by_criu(context, source.pid, context.work / "dump"),
			DUMP_TMPFS: lambda: dump_by_criu(context, source.pid, tmpfs / "dump"),
			TO_UNIX: lambda: checkpoint(context, source.pid, context.pool.uri("transfer:a")),
			TO_TCP: lambda: checkpoint(context, source.pid, context.pool.uri("transfer:b", "tcp")),
			TO_DIR: lambda: checkpoint(context, source.pid, f"dir:{context.work}/transfer.dir#transfer:c")}
		for turn in range(context.runs + 1):  # the first lays out pools and files, and does not count
			for row, way in ways.items():
				with context.attempt(f"checkpoint, {row}", *[(table, row, column) for column in table.columns]):
					seconds, frozen = way()
					if turn:
						table.add(row, "rate", size / seconds / 1e9)
						table.add(row, "time", seconds)
						table.add(row, "frozen", frozen)
	return table


def run(context):
	mib = 384 if context.quick else 2048
	context.say("background fill")
	fill = save = None
	with context.attempt("fill"):
		fill = fills(context, context.touch_snapshot(mib))
	context.say("checkpoint")
	with context.attempt("checkpoint"):
		save = checkpoints(context, mib)
	panels = [panel_of(table, title, columns=["rate"], by_column=False, rename={"rate": " "})
		  for table, title in ((fill, "background fill"), (save, "checkpoint")) if table]
	draw(context, "transfer", "Whole memories", panels, y_label="GB/s")
	report = context.report
	report.target("fill over TCP loopback", fill and fill.median(OUR_TCP, "rate"), ">=", 2, "GB/s")
	report.target("checkpoint into the pool over TCP", save and save.median(TO_TCP, "rate"), ">=", 2.5, "GB/s")
