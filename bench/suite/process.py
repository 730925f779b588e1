"""Processes: started in a session of their own, ended by pid, waited for by event."""
import ctypes
import os
import signal
import subprocess
import time

WAIT_SECONDS = 90  # longer than anything here takes that does not hang
PR_SET_CHILD_SUBREAPER = 36
CHILDREN = set()  # pids of Popen objects, which must not be reaped behind their backs


class Failed(Exception):
	"""A measurement that could not be made; the text says why. The others go on."""


class Lacking(Failed):
	"""What the host has too little of; no failure of the run."""


def adopt_orphans():
	"""What daemonizes below us becomes our child, so that its end can be seen and reaped."""
	ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def tail(text, lines=4):
	return " | ".join(line for line in text.strip().splitlines()[-lines:])


def run(*command, timeout=WAIT_SECONDS, cwd=None, output_on_failure=None):
	"""The command's standard output; Failed with the end of what it said where it fails."""
	command = [str(word) for word in command]
	try:
		done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, cwd=cwd)
	except subprocess.TimeoutExpired:
		raise Failed(f"{command[0]}: no end after {timeout} s") from None
	except OSError as error:
		raise Failed(f"{command[0]}: {error.strerror}") from None
	if done.returncode:
		said = done.stderr + done.stdout
		if output_on_failure and os.path.exists(output_on_failure):
			said += open(output_on_failure, errors="replace").read()
		raise Failed(f"{os.path.basename(command[0])} {' '.join(command[1:3])}: {tail(said) or done.returncode}")
	return done.stdout


def wait_for(what, condition, seconds=WAIT_SECONDS, step=0.005):
	"""Polls until the condition gives something true, and gives that."""
	deadline = time.monotonic() + seconds
	while True:
		value = condition()
		if value:
			return value
		if time.monotonic() > deadline:
			raise Failed(f"waited {seconds} s for {what}")
		time.sleep(step)


def start(stack, *command, log=None, cwd=None, pass_fds=()):
	"""A process of its own session, ended when the stack unwinds."""
	output = open(log, "wb") if log else subprocess.DEVNULL
	process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
				   start_new_session=True, cwd=cwd, pass_fds=pass_fds)
	CHILDREN.add(process.pid)
	if log:
		output.close()
	stack.callback(end, process)
	return process


def end(process, patience=10):
	"""Asks, then insists."""
	CHILDREN.discard(process.pid)
	for number in (signal.SIGTERM, signal.SIGKILL):
		if process.poll() is not None:
			return
		process.send_signal(number)
		try:
			process.wait(patience)
		except subprocess.TimeoutExpired:
			continue


def state_of(pid):
	try:
		text = open(f"/proc/{pid}/stat").read()
	except OSError:
		return ""
	return text.rsplit(")", 1)[1].split()[0]


def alive(pid):
	return state_of(pid) not in ("", "Z", "X")


def kill(pid):
	"""Ends a process that is not a direct child perhaps, and waits for its end."""
	try:
		os.kill(pid, signal.SIGKILL)
	except ProcessLookupError:
		return
	wait_for(f"the end of process {pid}", lambda: not alive(pid))
	reap()


def parent_of(pid):
	try:
		return int(open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[1])
	except (OSError, IndexError, ValueError):
		return 0


def processes():
	return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def reap():
	"""Zombies of orphans that we adopted. Those of subprocess.Popen are its own to wait for."""
	for pid in processes():
		if pid not in CHILDREN and state_of(pid) == "Z" and parent_of(pid) == os.getpid():
			try:
				os.waitpid(pid, os.WNOHANG)
			except ChildProcessError:
				pass


def cpu_ns(pid):
	"""CPU time of all threads of a process so far, by the scheduler's own clock; a clock tick would be far too coarse."""
	total = 0
	try:
		for task in os.listdir(f"/proc/{pid}/task"):
			total += int(open(f"/proc/{pid}/task/{task}/schedstat").read().split()[0])
	except OSError:
		pass
	return total


def resident_bytes(pid):
	"""Proportional set size."""
	for line in open(f"/proc/{pid}/smaps_rollup"):
		if line.startswith("Pss:"):
			return int(line.split()[1]) * 1024
	raise Failed(f"process {pid} has no memory")
