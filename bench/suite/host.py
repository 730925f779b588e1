"""What this host is and has. Each peer that it lacks has a reason, which goes into the table in its place."""
import os
import pathlib
import platform
import shutil
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MEMORY_CGROUP = pathlib.Path("/sys/fs/cgroup/memory")
ZRAM_CONTROL = pathlib.Path("/sys/class/zram-control")


def meminfo(field):
	for line in open("/proc/meminfo"):
		if line.startswith(field + ":"):
			return int(line.split()[1]) * 1024
	return 0


class Host:
	def __init__(self):
		self.build = pathlib.Path(os.environ.get("DP_BUILD", ROOT / "build")).resolve()
		self.distri_proc = self.build / "distri-proc"
		self.test_programs = self.build / "tests" / "programs"
		self.programs = self.build / "bench" / "programs"
		self.criu = self.find_criu()
		self.helps = {}

	@staticmethod
	def find_criu():
		prefix = os.environ.get("DISTRI_PROC_PREFIX", "/opt/distri-proc")
		for candidate in (os.environ.get("DP_CRIU"), f"{prefix}/criu/bin/criu", shutil.which("criu")):
			if candidate and os.access(candidate, os.X_OK):
				return candidate
		return None

	def missing(self):
		"""Why nothing at all can be measured here, or None."""
		if os.geteuid() != 0:
			return "needs root, for CRIU: run it with sudo"
		for path in (self.distri_proc, self.test_programs / "first-get", self.programs / "touch-pages"):
			if not os.access(path, os.X_OK):
				return f"{path} is not built: run `make`, or name the build directory in DP_BUILD"
		if not self.criu:
			return "needs CRIU 4.2: scripts/setup-criu"
		return None

	def lacks(self, what):
		"""The reason why a peer or a program cannot be used here, or None."""
		if what == "redis":
			if not shutil.which("redis-server"):
				return "no redis-server: scripts/setup installs it"
			if not (self.programs / "ycsb").exists():
				return "built without hiredis: install libhiredis-dev and build again"
		if what in ("zram", "file"):
			if not (MEMORY_CGROUP / "memory.limit_in_bytes").exists():
				return "no memory controller of cgroup v1"
			if not all(map(shutil.which, ("mkswap", "swapon", "swapoff"))):
				return "no mkswap and swapon (util-linux, mount)"
		if what == "zram" and not (ZRAM_CONTROL / "hot_add").exists():
			return "no zram in this kernel"
		if what == "unshare" and not shutil.which("unshare"):
			return "no unshare (util-linux)"
		if what == "gnuplot" and not shutil.which("gnuplot"):
			return "no gnuplot: apt-get install gnuplot-nox"
		return None

	def lacks_option(self, command, option):
		"""The reason why an option of distri-proc cannot be measured yet, or None."""
		if command not in self.helps:
			done = subprocess.run([self.distri_proc, *command.split(), "--help"], stdin=subprocess.DEVNULL, capture_output=True,
					      text=True, timeout=20)
			self.helps[command] = done.stdout if done.returncode == 0 else ""
		if not self.helps[command]:
			return f"this build has no `distri-proc {command}`"
		if option and option not in self.helps[command]:
			return f"this build's `distri-proc {command}` has no {option.strip()}"
		return None

	def facts(self):
		def first_line(*command):
			try:
				done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, cwd=ROOT)
			except OSError:
				return ""
			return done.stdout.strip().splitlines()[0] if done.stdout.strip() else ""

		cpu = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "unknown")
		return {
			"kernel": platform.release(), "machine": platform.machine(), "cpu": cpu, "cpus": os.cpu_count(),
			"memory_bytes": meminfo("MemTotal"), "criu": first_line(self.criu, "--version").removeprefix("Version: "),
			"redis": first_line("redis-server", "--version").split(" sha")[0].removeprefix("Redis server "),
			"distri_proc": first_line(str(self.distri_proc), "--version"),
			"commit": first_line("git", "rev-parse", "--short", "HEAD"),
			"transparent_hugepage": open("/sys/kernel/mm/transparent_hugepage/enabled").read().strip()
			if os.path.exists("/sys/kernel/mm/transparent_hugepage/enabled") else "unknown",
			"load_before": os.getloadavg()[0],
		}
