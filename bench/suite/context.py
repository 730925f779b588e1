"""What the benchmarks share: the run's directory, pools, snapshots, instances, and the processes in them."""
import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time

from .process import Failed, Lacking, end, kill, reap, run, start, wait_for
from .host import meminfo

KEY_BYTES = 1200     # what a record of 1000 bytes takes in Redis
VALUE_BYTES = 1000
FIRST_KEY = 4242
PIPE_LIMIT = pathlib.Path("/proc/sys/fs/pipe-max-size")


def free_port():
	with socket.socket() as probe:
		probe.bind(("127.0.0.1", 0))
		return probe.getsockname()[1]


def port_open(port):
	with socket.socket() as probe:
		return probe.connect_ex(("127.0.0.1", int(port))) == 0


class Touch:
	"""The line to a touch-pages process: one question, one answer."""

	def __init__(self, port, shared=False):
		self.connection = None
		# Instances that share a port: what another one has taken off its list is reset, so ask until one answers.
		for _ in range(200 if shared else 20):
			try:
				self.connection = socket.create_connection(("127.0.0.1", int(port)), timeout=120)
				self.lines = self.connection.makefile("rw")
				self.id = json.loads(self.ask("id"))
				return
			except (OSError, ValueError):
				self.close()
				time.sleep(0.02)
		raise Failed(f"no touch-pages answers on port {port}")

	def ask(self, text):
		self.lines.write(text + "\n")
		self.lines.flush()
		return self.lines.readline()

	def run(self, pattern, seconds=0.0, touches=0, writes=0.0, seed=1, beat=False):
		self.begin(pattern, seconds, touches, writes, seed, beat)
		return self.finish()

	def begin(self, pattern, seconds=0.0, touches=0, writes=0.0, seed=1, beat=False):
		try:
			self.lines.write(f"run pattern={pattern} seconds={seconds} touches={touches} writes={writes} seed={seed} beat={int(beat)}\n")
			self.lines.flush()
		except OSError as error:
			raise Failed(f"touch-pages: {error}") from None

	def finish(self):
		try:
			text = self.lines.readline()
		except OSError as error:
			raise Failed(f"touch-pages: {error}") from None
		if not text:
			raise Failed("touch-pages has ended")
		answer = json.loads(text)
		if answer.get("error") or answer.get("wrong"):
			raise Failed(f"touch-pages: {answer.get('error') or 'WRONG CONTENT in %d pages' % answer['wrong']}")
		return answer

	def close(self):
		if self.connection:
			self.connection.close()
			self.connection = None


class Pool:
	"""A pool server on a Unix socket and on TCP."""

	def __init__(self, context, stack, name, store="memory:"):
		self.context = context
		self.socket = context.work / f"{name}.sock"
		self.port = free_port()
		self.process = start(stack, context.host.distri_proc, "pool", "serve", "--store", store, "--listen", f"unix://{self.socket}",
				     "--listen", f"tcp://127.0.0.1:{self.port}", log=context.work / f"{name}.log")
		wait_for("the pool", lambda: self.socket.exists() and port_open(self.port), 20)

	def uri(self, snapshot, transport="unix"):
		return f"dp+unix://{self.socket}#{snapshot}" if transport == "unix" else f"dp://127.0.0.1:{self.port}/{snapshot}"


class Instance:
	"""A restored instance of ours."""

	def __init__(self, context, name):
		self.context, self.name = context, name
		self.pid = int((context.work / f"{name}.pid").read_text())

	def stats(self):
		return json.loads(run(self.context.host.distri_proc, "stats", "--json", self.name))

	def stop(self):
		done = subprocess.run([self.context.host.distri_proc, "stop", self.name], stdin=subprocess.DEVNULL, capture_output=True)
		wait_for(f"the end of {self.name}", lambda: done.returncode or not (self.context.registry / self.name).exists(), 20)
		reap()


class Snapshot:
	"""A process as it was checkpointed: in pools, and as CRIU's images."""

	def __init__(self, context, name, port, first, images, rss_bytes):
		self.context, self.name, self.port = context, name, port
		self.first = first  # arguments of first-get: what to ask, and the right answer
		self.images, self.rss_bytes = images, rss_bytes
		self.directory = None  # a dir: pool that holds it too
		self.keys = 0

	def uri(self, transport):
		if transport == "dir":
			return f"dir:{self.directory}#{self.name}"
		return self.context.pool.uri(self.name, transport)


class Context:
	def __init__(self, host, report, options, out):
		self.host, self.report, self.out = host, report, out
		self.quick, self.runs = options.quick, options.runs
		self.stack = contextlib.ExitStack()
		# CRIU wants the files it needs on a disk; names of Unix sockets must stay short
		self.work = pathlib.Path(tempfile.mkdtemp(prefix="dpb-", dir="/var/tmp"))
		self.stack.callback(shutil.rmtree, self.work, ignore_errors=True)
		self.registry = self.work / "instances"
		os.environ["DISTRI_PROC_ROOT"] = str(self.registry)
		os.environ["DISTRI_PROC"] = str(host.distri_proc)
		self.stack.callback(self.stop_instances)
		self.snapshots = {}
		self.counter = 0
		self.main_pool = None
		self.began = time.monotonic()

	def say(self, text):
		print(f"[{time.monotonic() - self.began:6.1f} s] {text}", flush=True)

	@contextlib.contextmanager
	def attempt(self, what, *cells):
		"""A measurement that may fail without ending the run: it is told, and stands in its cells (table, row, column)."""
		try:
			yield
		except Lacking as lacking:
			self.say(f"skipped {what}: {lacking}")
			for table, row, column in cells:
				table.skip(row, column, str(lacking))
		except Failed as failure:
			self.say(f"FAILED {what}: {failure}")
			self.report.fail(what, str(failure))
			for table, row, column in cells:
				table.skip(row, column, f"failed: {failure}")
			reap()

	def raise_pipe_limit(self):
		"""CRIU's page server wants pipes of 4 MiB. Put back at the end."""
		before = PIPE_LIMIT.read_text()
		if int(before) >= 4 << 20:
			return
		try:
			PIPE_LIMIT.write_text(str(4 << 20))
		except OSError as error:
			raise Failed(f"CRIU's page server needs {PIPE_LIMIT} of 4 MiB: {error.strerror}") from None
		self.stack.callback(PIPE_LIMIT.write_text, before)

	def unique(self, prefix):
		self.counter += 1
		return f"{prefix}{self.counter}"

	# ---- pools and instances ----
	@property
	def pool(self):
		if not self.main_pool:
			self.main_pool = Pool(self, self.stack, "pool")
		return self.main_pool

	def stop_instances(self):
		if self.registry.is_dir():
			for name in os.listdir(self.registry):
				if name != "logs":
					subprocess.run([self.host.distri_proc, "stop", name], stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
		for link in self.registry.glob("*"):  # an instance's directory may be a link to one in memory
			if link.is_symlink() and os.readlink(link).startswith("/dev/shm/"):
				shutil.rmtree(os.readlink(link), ignore_errors=True)
		reap()

	def restore(self, uri, *options, local=None):
		name = self.unique("i")
		command = [self.host.distri_proc, "restore", uri, "--name", name, "--pidfile", self.work / f"{name}.pid", *options]
		if local:
			command += ["--local-memory", local]
		run(*command)
		return Instance(self, name)

	def first_answer(self, stack, snapshot, command, log, timeout=60):
		"""Starts the command and waits for the restored tree's first right answer. Gives ns and the command's pid."""
		pidfile = self.work / "first.pid"
		pidfile.unlink(missing_ok=True)
		ns = run(self.host.test_programs / "first-get", "--port", snapshot.port, *snapshot.first, "--pidfile", pidfile,
			 "--timeout-ms", timeout * 1000, "--command-log", log, "--", *command, output_on_failure=log, timeout=timeout + 30)
		return int(ns), int(pidfile.read_text())

	# ---- the processes that are measured ----
	def need_memory(self, num_bytes):
		available = meminfo("MemAvailable")
		if num_bytes > available:
			raise Lacking(f"needs {num_bytes / 2**30:.1f} GiB of free memory, has {available / 2**30:.1f}")

	def start_redis(self, stack, name, wrapper=()):
		directory = self.work / name
		directory.mkdir()
		port = free_port()
		process = start(stack, *wrapper, "redis-server", "--bind", "127.0.0.1", "--port", port, "--dir", directory, "--save", "",
				"--daemonize", "no", "--logfile", directory / "redis.log", "--pidfile", "", "--loglevel", "warning")
		wait_for("Redis", lambda: port_open(port), 20)
		return process, port

	def fill_redis(self, port, keys, model):
		run(self.host.test_programs / "redis-load", "fill", "--server", port, "--model", model, "--keys", keys, "--value-bytes",
		    VALUE_BYTES, "--pipeline", 64, timeout=600)

	def redis_snapshot(self, megabytes):
		"""A filled Redis in the main pool, in a directory's pool and as CRIU's images; made once a size."""
		name = f"redis{megabytes}"
		if name in self.snapshots:
			return self.snapshots[name]
		# the source, the pool's copy, and what the page cache keeps of the directory and the images
		self.need_memory(megabytes * 10**6 * (3 if megabytes <= 4000 else 2.2))
		self.say(f"Redis with {megabytes} MB: fill, checkpoint, dump")
		keys = megabytes * 10**6 // KEY_BYTES
		with contextlib.ExitStack() as stack:
			process, port = self.start_redis(stack, name)
			model = self.work / f"{name}.model"
			self.fill_redis(port, keys, model)
			first = ["--model", model, "--index", FIRST_KEY, "--value-bytes", VALUE_BYTES]
			snapshot = self.take_snapshot(name, process, port, first)
			snapshot.keys = keys
		return snapshot

	def touch_snapshot(self, mib, processes=1, shared=False):
		name = f"touch{mib}p{processes}{'s' if shared else ''}"
		if name in self.snapshots:
			return self.snapshots[name]
		self.say(f"{mib} MiB in {processes} process{'es' if processes > 1 else ''}: checkpoint, dump")
		with contextlib.ExitStack() as stack:
			process, port = self.start_touch(stack, name, mib, processes, shared)
			return self.take_snapshot(name, process, port, ["--request", "first", "--answer", "ok"])

	def start_touch(self, stack, name, mib, processes=1, shared=False, wrapper=()):
		port_file = self.work / f"{name}.port"
		port_file.unlink(missing_ok=True)
		process = start(stack, *wrapper, self.host.programs / "touch-pages", "--mib", mib, "--processes", processes, "--port-file",
				port_file, *(["--one-connection"] if shared else []), cwd=self.work)
		wait_for("touch-pages", lambda: port_file.exists() and port_file.read_text().endswith("\n"), 60)
		return process, int(port_file.read_text())

	def take_snapshot(self, name, process, port, first):
		images = self.work / f"{name}.images"
		images.mkdir()
		snapshot = Snapshot(self, name, port, first, images, self.rss_bytes(process.pid))
		snapshot.directory = self.work / f"{name}.dir"
		for uri in (snapshot.uri("unix"), snapshot.uri("dir")):
			run(self.host.distri_proc, "checkpoint", "--pid", process.pid, "--leave-running", uri, timeout=600)
		run(self.host.criu, "dump", "-t", process.pid, "-D", images, "-o", "dump.log", "-v1", timeout=600,
		    output_on_failure=images / "dump.log")
		end(process)
		wait_for("the source's end", lambda: not port_open(port))
		self.snapshots[name] = snapshot
		return snapshot

	def forget(self, name):
		"""Gives back what a snapshot takes in the pool and on the disk."""
		snapshot = self.snapshots.pop(name, None)
		if snapshot:
			run(self.host.distri_proc, "pool", "rm", "--force", snapshot.uri("unix"))
			shutil.rmtree(snapshot.images, ignore_errors=True)
			wait_for("the directory's pool to let go", lambda: shutil.rmtree(snapshot.directory, ignore_errors=True) or
				 not snapshot.directory.exists(), 30, 0.5)

	def tmpfs(self, stack):
		"""A directory in memory, for peers that write to one."""
		path = pathlib.Path(tempfile.mkdtemp(prefix="dpb-", dir="/dev/shm"))
		stack.callback(shutil.rmtree, path, ignore_errors=True)
		return path

	@staticmethod
	def rss_bytes(root):
		"""Resident memory of a tree, each shared page counted by its share."""
		total, tree = 0, [root]
		for pid in tree:
			try:
				tree += map(int, open(f"/proc/{pid}/task/{pid}/children").read().split())
				total += sum(int(line.split()[1]) * 1024 for line in open(f"/proc/{pid}/smaps_rollup") if line.startswith("Pss:"))
			except OSError:
				continue
		return total


class StockRestore:
	"""What a user of CRIU alone does, in one shell, in a PID namespace as ours is: daemon, its socket, restore.

	mode: eager, lazy (local images) or page-server (lazy, from CRIU's page server over TCP). `daemon` stands in for criu
	lazy-pages where the program under test is ours. `stamps` has, in ns of CLOCK_REALTIME: the restore's end, the daemon's end."""

	def __init__(self, context, stack, snapshot, mode, daemon=None):
		self.context, self.snapshot = context, snapshot
		self.directory = context.work / context.unique("stock")
		(self.directory / "work").mkdir(parents=True)
		self.stamps = self.directory / "stamps"
		self.log = self.directory / "log"
		criu, images, work = context.host.criu, snapshot.images, self.directory / "work"
		server, lazy = "", ""
		if mode == "page-server":
			context.raise_pipe_limit()
			port = free_port()
			ready = self.directory / "ready"
			with open(ready, "wb") as ready_file:
				self.server = start(stack, criu, "page-server", "--lazy-pages", "-D", images, "-W", work, "--address", "127.0.0.1",
						    "--port", port, "-o", "page-server.log", "-v1", "--status-fd", ready_file.fileno(),
						    pass_fds=[ready_file.fileno()])
			wait_for("CRIU's page server", lambda: ready.stat().st_size > 0, 20)
			server = f"--page-server --address 127.0.0.1 --port {port}"
		if mode != "eager":
			lazy = "--lazy-pages"
		script = ["set -u"]
		if lazy:
			script += [f"{daemon or criu} lazy-pages {server} -D {images} -W {work} -o lazy.log -v0 & daemon=$!",
				   f"until [ -S {work}/lazy-pages.socket ]; do sleep 0.001; done"]
		script += [f"{criu} restore {lazy} -d -D {images} -W {work} -o restore.log -v0 --pidfile {work}/pid || exit 1",
			   f"date +%s%N >>{self.stamps}"]
		if lazy:
			script += ["wait $daemon || exit 1", f"date +%s%N >>{self.stamps}"]
		script += [f"tail --pid=$(cat {work}/pid) -f /dev/null"]
		(self.directory / "script").write_text("\n".join(script) + "\n")
		self.command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", self.directory / "script"]

	def times(self, count):
		wait_for("stock CRIU", lambda: self.stamps.exists() and len(self.stamps.read_text().split()) >= count, 120)
		return [int(word) for word in self.stamps.read_text().split()]

	def stop(self, pid):
		kill(pid)
		wait_for("the end of the restored tree", lambda: not port_open(self.snapshot.port))
		reap()
