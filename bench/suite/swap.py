"""The kernel's own way to run with less memory: a memory cgroup (v1) with a limit, and swap to zram or to a file.

Swap belongs to the whole host, so only one of the two is on at a time, with the highest priority; `turn_on` changes over: limits are
lifted, all pages come back, then the other takes its place. Devices, files, limits and groups go when the stack unwinds."""
import os
import threading
import time

from .host import MEMORY_CGROUP, ZRAM_CONTROL
from .process import Failed, run, wait_for

PRIORITY = 32767  # before any swap that the host has


class Group:
	"""A memory cgroup. Processes enter by its wrapper, before they have memory."""

	def __init__(self, stack, name):
		self.path = MEMORY_CGROUP / name
		self.path.mkdir()
		self.wrapper = ["sh", "-c", f'echo $$ >{self.path}/cgroup.procs && exec "$@"', "sh"]
		self.limit_bytes = -1
		self.closing = False
		(self.path / "memory.swappiness").write_text("100")  # as is advised for zram; there is nothing but anonymous memory
		self.rescued = 0
		stack.callback(self.remove)
		self.watch_for_want()

	def watch_for_want(self):
		"""On Linux 6.18 a small group that swaps to zram is told about once in 50 000 faults that nothing can be reclaimed, with
		most of the swap free, and the kernel kills its process. Instead the process waits, the group gets a few pages more for a
		moment, and goes on; `rescued` counts it."""
		self.event = os.eventfd(0, os.EFD_CLOEXEC)
		control = os.open(self.path / "memory.oom_control", os.O_RDWR | os.O_CLOEXEC)
		try:
			(self.path / "cgroup.event_control").write_text(f"{self.event} {control}")
			os.write(control, b"1")
		finally:
			os.close(control)
		threading.Thread(target=self.rescue, daemon=True).start()

	def rescue(self):
		while not self.closing:
			try:
				os.eventfd_read(self.event)
				if self.closing or self.limit_bytes < 0:
					continue
				self.rescued += 1
				(self.path / "memory.limit_in_bytes").write_text(str(self.limit_bytes + (1 << 20)))
				self.set_limit(self.limit_bytes)
			except (OSError, Failed):
				break
		os.close(self.event)

	def set_limit(self, limit_bytes):
		"""The kernel reclaims while the limit is written, and gives up when that is slow: so again, for a while."""
		for _ in range(100):
			try:
				(self.path / "memory.limit_in_bytes").write_text(str(limit_bytes))
				return
			except OSError:
				time.sleep(0.05)
		raise Failed(f"no limit of {limit_bytes} bytes: the kernel could not reclaim so much")

	def remove(self):
		self.closing = True
		for _ in range(200):  # until the last process is gone
			try:
				self.path.rmdir()  # the kernel then wakes the event a last time
				return
			except OSError:
				time.sleep(0.02)


class Swap:
	def __init__(self, context, stack, size_bytes):
		self.context, self.size_bytes = context, size_bytes
		self.on = None      # the kind that is on
		self.devices = {}
		self.zram_number = None
		self.groups = []
		stack.callback(self.clear)

	def group(self, stack, name):
		group = Group(stack, f"dp-bench-{os.getpid()}-{name}")
		self.groups.append(group)
		return group

	def device(self, kind):
		if kind not in self.devices:
			if kind == "zram":
				path = self.make_zram()
			else:
				path = self.context.work / "swap"
				run("dd", "if=/dev/zero", f"of={path}", "bs=1M", f"count={self.size_bytes >> 20}", timeout=300)
				path.chmod(0o600)
			run("mkswap", path)
			self.devices[kind] = path
		return self.devices[kind]

	def make_zram(self):
		self.zram_number = int((ZRAM_CONTROL / "hot_add").read_text())
		settings = f"/sys/block/zram{self.zram_number}"
		try:
			open(f"{settings}/comp_algorithm", "w").write("lz4")
		except OSError:
			pass  # the kernel's default then
		open(f"{settings}/disksize", "w").write(str(self.size_bytes))
		path = f"/dev/zram{self.zram_number}"
		wait_for(path, lambda: os.path.exists(path), 5)
		return path

	def turn_on(self, kind):
		if self.on == kind:
			return
		self.turn_off()
		run("swapon", "-p", PRIORITY, self.device(kind))
		self.on = kind
		for group in self.groups:
			if group.path.exists() and group.limit_bytes > 0:
				group.set_limit(group.limit_bytes)

	def turn_off(self):
		if not self.on:
			return
		for again in range(3):
			for group in self.groups:
				if group.path.exists():
					group.set_limit(-1)  # a watcher may have set it once more meanwhile: then swapoff has no room
			try:
				run("swapoff", self.devices[self.on], timeout=300)
				break
			except Failed:
				if again == 2:
					raise
				time.sleep(0.2)
		self.on = None

	def clear(self):
		try:
			self.turn_off()
		except Failed as failure:
			self.context.say(f"swap stays on: {failure}")
			return
		if self.zram_number is not None:
			try:
				open(f"/sys/block/zram{self.zram_number}/reset", "w").write("1")
				(ZRAM_CONTROL / "hot_remove").write_text(str(self.zram_number))
			except OSError as error:
				self.context.say(f"zram{self.zram_number} stays: {error.strerror}")
		if "file" in self.devices:
			os.unlink(self.devices["file"])
