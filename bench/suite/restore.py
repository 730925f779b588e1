"""a. From the start of the restore to the first answered request."""
import contextlib

from .context import StockRestore
from .plots import draw, panel_of

NAME, TITLE = "restore", "a. Restore to the first answered request"
LAZY, SERVER = "CRIU lazy", "CRIU page server"
SERVER_MEGABYTES = 1000
STOCK = {LAZY: "lazy", "CRIU eager": "eager", SERVER: "page-server"}
OURS = {"ours, unix": ("unix", []), "ours, tcp": ("tcp", []), "ours, dir:": ("dir", []),
	"ours, 50 %": ("unix", ["--local-memory", "50%"]),
	"ours, 50 %, working set": ("unix", ["--local-memory", "50%", "--prefetch", "working-set"])}


def one(context, snapshot, column):
	with contextlib.ExitStack() as stack:
		if column in STOCK:
			stock = StockRestore(context, stack, snapshot, STOCK[column])
			ns, pid = context.first_answer(stack, snapshot, stock.command, stock.log)
			stack.callback(stock.stop, pid)
			stock.times(1)
			return ns
		transport, options = OURS[column]
		name = context.unique("a")
		command = [context.host.distri_proc, "restore", snapshot.uri(transport), "--name", name, "--pidfile",
			   context.work / f"{name}.pid", *options]
		stack.callback(context.stop_instances)
		ns, _ = context.first_answer(stack, snapshot, command, context.work / "first.log")
		return ns


def measure(context, table, row, make_snapshot, columns):
	with context.attempt(f"restore of {row}", *[(table, row, column) for column in columns]):
		snapshot = make_snapshot()
		context.say(f"restore of {row}: {context.runs} runs of {len(columns)} ways")
		for turn in range(context.runs + 1):  # the first warms caches on all sides and does not count
			for column in columns:
				with context.attempt(f"restore of {row}, {column}", (table, row, column)):
					ns = one(context, snapshot, column)
					if turn:
						table.add(row, column, ns / 1e6)


def run(context):
	columns = [*STOCK, *OURS]
	table = context.report.table("first answer", "First answered request", "what", columns, "ms", baseline_column=LAZY, better="lower",
				     note="The clock starts before the command does. Stock CRIU: images in the page cache. Ours: a pool in "
				     "memory by Unix socket or TCP, or a directory (embedded store). Tree: every process has answered.")
	reason = context.host.lacks_option("restore", "--prefetch ")
	usable = [column for column in columns if not (reason and "working set" in column)]
	redis_sizes = [1000, 100] if context.quick else [10000, 4000, 1000, 100]  # the largest while memory is free
	rows = [f"tree of {processes}, 128 MiB" for processes in (1, 20)] + [f"Redis {megabytes / 1000:g} GB" for megabytes in redis_sizes]
	for megabytes in redis_sizes:
		row = f"Redis {megabytes / 1000:g} GB"
		if context.host.lacks("redis"):
			for column in columns:
				table.skip(row, column, context.host.lacks("redis"))
			continue
		if megabytes > SERVER_MEGABYTES:
			table.skip(row, SERVER, "CRIU's page server holds all pages in pipes of 4 MiB: too many descriptors for this size")
		measure(context, table, row, lambda: context.redis_snapshot(megabytes),
			[column for column in usable if column != SERVER or megabytes <= SERVER_MEGABYTES])
		if megabytes > 1000:
			context.forget(f"redis{megabytes}")  # gives its memory back
	for processes in (1, 20):
		measure(context, table, f"tree of {processes}, 128 MiB", lambda: context.touch_snapshot(128, processes), usable)
	for row in rows:
		if reason:
			table.skip(row, "ours, 50 %, working set", reason)
	draw(context, "restore", "Restore to the first answered request", [panel_of(table, by_column=True)], y_label="ms", log_y=True)
	for megabytes in (1000, 10000):
		row = f"Redis {megabytes / 1000:g} GB"
		context.report.target(f"restore to first GET, {row}", table.median(row, "ours, unix"), "<=", 15, "ms")
