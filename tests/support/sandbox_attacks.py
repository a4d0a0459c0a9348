"""Programs that try to break out of a sandbox. Each writes BREACH as soon as it has got hold of something.

What they are told on their standard input, as JSON: paths of a secret file and of a folder outside, the port of a
server on the host, and ids of processes outside.
"""

from __future__ import annotations

from typing import NamedTuple

BREACH = "BREACH"

_HEAD = """
import ctypes, errno, json, os, signal, socket, sys, threading, time
told = json.loads(input())
def breach(*what):
    print("BREACH", *what, flush=True)
def attempt(action, *arguments, **named):
    try:
        return action(*arguments, **named)
    except BaseException as error:
        return error
def failed(found):
    return isinstance(found, BaseException)
"""


class Attack(NamedTuple):
    """A program, and what may become of it."""

    name: str
    code: str
    kinds: str = "ok"
    bubblewrap_only: bool = False
    brief: bool = False  # what it leaves takes long to remove

    @property
    def seconds(self) -> float:
        """What it gets: little if it is to run out of time, and otherwise enough on a busy machine."""
        return 0.4 if self.kinds == "timeout" or self.brief else 1.0 if "timeout" in self.kinds else 4.0

    @property
    def program(self) -> str:
        return _HEAD + self.code


ATTACKS = (
    # time and memory
    Attack("endless loop", "while True: pass", "timeout"),
    Attack(
        "endless loop that catches all",
        "while True:\n  try:\n    while True: pass\n  except BaseException: pass",
        "timeout",
    ),
    Attack("sleep", "time.sleep(1000)", "timeout"),
    Attack("sleep at exit", "import atexit\natexit.register(time.sleep, 1000)", "timeout"),
    Attack("thread left behind", "threading.Thread(target=time.sleep, args=(1000,)).start()", "timeout"),
    Attack("daemon thread left behind", "threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()"),
    Attack(
        "ignored signals",
        """
for number in range(1, 65):
    attempt(signal.signal, number, signal.SIG_IGN)
attempt(signal.pthread_sigmask, signal.SIG_BLOCK, range(1, 65))
while True: pass
""",
        "timeout",
    ),
    Attack("stopped", "os.kill(os.getpid(), signal.SIGSTOP)\nbreach('goes on')", "timeout"),
    Attack("100 GB at once", "x = bytearray(100 << 30)\nbreach()", "memory"),
    Attack("100 GB in pieces", "x = []\nwhile True: x.append(bytearray(1 << 20))", "memory"),
    Attack(
        "100 GB that are caught",
        """
x = []
while True:
    try:
        x.append(bytearray(1 << 20))
    except MemoryError:
        pass
""",
        "timeout memory",
    ),
    Attack(
        "threads without end",
        """
threading.stack_size(1 << 16)
while True: threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
""",
        "error memory timeout",
    ),
    Attack(
        "shared memory",
        """
import mmap
kept = []
for _ in range(64): kept.append(mmap.mmap(-1, 64 << 20))
breach(len(kept))
""",
        "error memory",
    ),
    Attack(
        "memory files",
        """
if not failed(attempt(os.memfd_create, "x")): breach("memfd")
libc = ctypes.CDLL(None)
if libc.shmget(0, 1 << 20, 0o1777) != -1: breach("shmget")
""",
    ),
    Attack(
        "memory in pipes and sockets",
        """
import fcntl
held, kept = 0, []
def fill(end):
    global held
    os.set_blocking(end, False)
    try:
        while True: held += os.write(end, bytes(1 << 16))
    except BlockingIOError: pass
try:
    while True:
        kept.append(socket.socketpair())
        for one in kept[-1]:
            attempt(one.setsockopt, socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 30)
            fill(one.fileno())
except OSError: pass
kept.clear()
try:
    while True:
        end = os.pipe()[1]
        attempt(fcntl.fcntl, end, 1031, 1 << 20)
        fill(end)
except OSError: pass
if held > 64 << 20: breach(held >> 20, "MiB")
""",
    ),
    Attack("deep recursion", "sys.setrecursionlimit(10**8)\ndef f(n): return f(n + 1)\nf(0)", "error memory timeout"),
    Attack(
        "deep recursion in C",
        "sys.setrecursionlimit(10**8)\nx = []\nfor _ in range(10**6): x = [x]\nrepr(x)",
        "error memory timeout",
    ),
    Attack(
        "limits upwards",
        """
import resource
for name in ("AS", "CPU", "FSIZE", "NOFILE", "NPROC", "CORE"):
    which = getattr(resource, "RLIMIT_" + name)
    hard = resource.getrlimit(which)[1]
    if hard != resource.RLIM_INFINITY and not failed(attempt(resource.setrlimit, which, (hard + 1, hard + 1))):
        breach(name)
    if not failed(attempt(resource.prlimit, os.getppid(), which, (1, 1))): breach("prlimit")
""",
    ),
    # output
    Attack("gigabytes of output", "while True: os.write(1, b'x' * (1 << 20))", "output"),
    Attack("gigabytes of print", "while True: print('x' * 1000)", "output"),
    Attack("gigabytes of errors", "for _ in range(1000): os.write(2, b'x' * (1 << 20))", "ok timeout"),
    Attack("gigabytes of reports", "while True: os.write(3, b'x' * (1 << 20))", "output"),
    Attack("closed output", "os.close(1)\nos.close(2)\nsys.stdout.close()\ntime.sleep(1000)", "timeout"),
    Attack("closed files", "os.closerange(0, 100)\ntime.sleep(1000)", "timeout"),
    # processes
    Attack("fork bomb", "while True:\n  os.fork()\n", "error"),
    Attack(
        "new processes",
        """
import subprocess
for found in (attempt(os.fork), attempt(os.forkpty), attempt(subprocess.run, [sys.executable, "-c", "0"]),
              attempt(os.execv, sys.executable, ["python", "-c", "print('BREACH')"]),
              attempt(os.posix_spawn, sys.executable, ["python", "-c", "0"], {})):
    if not failed(found): breach(found)
libc = ctypes.CDLL(None, use_errno=True)
for flags in (0, 0x10000000, 0x20000000, 0x00020000, 0x40000000):  # none, then new namespaces
    process = libc.syscall(56 if os.uname().machine == "x86_64" else 220, flags | 17, 0, 0, 0, 0)
    if process == 0: os._exit(0)
    if process > 0: breach("clone", flags)
    if libc.unshare(flags) != -1 and flags: breach("unshare", flags)
if os.system("true") == 0: breach("system")
""",
    ),
    Attack(
        "signals to others",
        """
for process in (1, -1, 0, os.getppid(), -os.getppid(), told["parent"], *range(2, 30)):
    if process != os.getpid():
        for number in (0, signal.SIGKILL, signal.SIGSTOP):
            if not failed(attempt(os.kill, process, number)): breach(process)
if not failed(attempt(os.killpg, 0, 0)): breach("group")
if not failed(attempt(signal.pthread_kill, threading.main_thread().ident, 0)): pass
libc = ctypes.CDLL(None)
for process in (os.getppid(), told["parent"]):
    if libc.sigqueue(process, 9, 0) != -1: breach("sigqueue")
    if libc.ptrace(16, process, 0, 0) != -1: breach("ptrace")
    if not failed(attempt(os.pidfd_open, process)): breach("pidfd")
    if not failed(attempt(os.setpriority, os.PRIO_PROCESS, process, 19)): breach("priority")
    if not failed(attempt(os.sched_setaffinity, process, {0})): breach("affinity")
""",
    ),
    Attack(
        "signals through files",
        """
import fcntl
reading, writing = os.pipe()
if not failed(attempt(fcntl.fcntl, reading, fcntl.F_SETOWN, os.getppid())): breach("owner")
if not failed(attempt(fcntl.fcntl, reading, 10, 9)): breach("signal")
""",
    ),
    Attack(
        "session and group",
        """
attempt(os.setsid); attempt(os.setpgid, 0, 0)
if not failed(attempt(os.setpgid, os.getppid(), 0)): breach()
time.sleep(1000)
""",
        "timeout",
    ),
    Attack(
        "memory of the runner",
        """
runner = os.getppid()
for name in ("mem", "environ", "maps", "fd/0", "fd/1", "fd/2"):
    if not failed(attempt(open, "/proc/%d/%s" % (runner, name), "rb")): breach(name)
libc = ctypes.CDLL(None)
buffer = ctypes.create_string_buffer(64)
vector = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 64)
if libc.process_vm_readv(runner, vector, 1, vector, 1, 0) != -1: breach("readv")
""",
    ),
    Attack(
        "processes of the host",
        """
for path in ("/proc", "/proc/1", "/proc/%d" % told["parent"], "/proc/self"):
    if not failed(attempt(os.listdir, path)): breach(path)
""",
        bubblewrap_only=True,
    ),
    # rights
    Attack(
        "becoming root",
        """
for action in (os.setuid, os.seteuid, os.setgid):
    if os.getuid() and not failed(attempt(action, 0)): breach(action)
if os.getuid() and not failed(attempt(os.setgroups, [0])): breach("groups")
libc = ctypes.CDLL(None)
if libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) != -1: breach("mount")
if libc.umount2(b"/tmp", 2) != -1: breach("umount")
if not failed(attempt(os.chroot, ".")): breach("chroot")
if libc.prctl(39, 0, 0, 0, 0) != 1: breach("no_new_privs")
if libc.prctl(4, 1, 0, 0, 0) != -1: breach("dumpable")
if libc.prctl(1, 0, 0, 0, 0) != -1: breach("outlives its parent")
data = (ctypes.c_uint32 * 6)()
libc.capget((ctypes.c_uint32 * 2)(0x20080522, 0), data)
if any(data): breach("capabilities", list(data))
""",
    ),
    Attack(
        "other parts of the kernel",
        """
libc = ctypes.CDLL(None, use_errno=True)
x86 = os.uname().machine == "x86_64"
numbers = {"bpf": 321, "keyctl": 250, "perf_event_open": 298, "io_uring_setup": 425, "userfaultfd": 323} if x86 else {
    "bpf": 280, "keyctl": 219, "perf_event_open": 241, "io_uring_setup": 425, "userfaultfd": 282}
for name, number in numbers.items():
    if libc.syscall(number, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() != errno.EPERM: breach(name)
if libc.syscall(435, 0, 0) != -1 or ctypes.get_errno() != errno.ENOSYS: breach("clone3")
if x86 and (libc.syscall(0x40000000 + 39) != -1): breach("x32")
""",
    ),
    # the network
    Attack(
        "network",
        """
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, 16):
    if not failed(attempt(socket.socket, family)): breach(family)
if not failed(attempt(socket.create_connection, ("127.0.0.1", told["port"]), 2)): breach("loopback")
if not failed(attempt(socket.create_connection, ("192.0.2.1", 80), 2)): breach("beyond")
if not failed(attempt(socket.getaddrinfo, "example.org", 80)): breach("names")
import urllib.request
if not failed(attempt(urllib.request.urlopen, "http://127.0.0.1:%d/" % told["port"])): breach("http")
socket.socketpair()
""",
    ),
    # files
    Attack(
        "secrets in the environment",
        """
for name, value in os.environ.items():
    if "secret" in value: breach(name)
""",
    ),
    Attack(
        "files of the host",
        """
if not failed(attempt(open, told["secret"])): breach("secret")
for path in (told["home"], "/root", "/home", "/etc/passwd", "/etc/hostname", "/proc/self/environ", "/sys", "/var",
             "/usr/bin", "/bin/sh", os.path.dirname(told["secret"]), told["site"]):
    found = attempt(os.listdir, path) if not os.path.isfile(path) else ["x"]
    # What lies on the way to this Python is there, and nothing beside it.
    others = [] if failed(found) else [name for name in found if not name.startswith((".pyenv", "python"))]
    if others: breach(path, others)
os.symlink(told["secret"], "link")
if not failed(attempt(open, "link")): breach("symlink")
if not failed(attempt(open, "/tmp/../" + told["secret"])): breach("dots")
""",
        bubblewrap_only=True,
    ),
    Attack(
        "writing outside",
        """
for path in ("/x", "/dev/x", "/usr/x", "/lib/x", "/etc/x", os.path.join(told["outside"], "x"), os.__file__,
             os.path.join(os.path.dirname(os.__file__), "x"), sys.executable):
    if not failed(attempt(open, path, "ab")): breach(path)
if not failed(attempt(os.mkdir, "/x")): breach("folder")
if not failed(attempt(os.mknod, "x", 0o60666, 0x0801)): breach("device")
""",
        bubblewrap_only=True,
    ),
    Attack(
        "a file without end",
        """
with open("x", "wb") as file:
    while True: file.write(bytes(1 << 20))
""",
        "error",
    ),
    Attack(
        "many files without end",
        """
number = 0
while True:
    number += 1
    with open("x%d" % number, "wb") as file: file.write(bytes(1 << 20))
    if number > 100: breach("100 MB"); break
""",
        "error",
        bubblewrap_only=True,
    ),
    Attack(
        "empty files without end",
        "for number in range(10**6): os.close(os.open('%d' % number, os.O_CREAT))\nbreach('a million files')",
        "error timeout",
        bubblewrap_only=True,
    ),
    Attack("folders without end", "while True:\n  os.mkdir('x')\n  os.chdir('x')", "error timeout", brief=True),
    Attack(
        "without its folder",
        """
import shutil
here = os.getcwd()
open("x", "w").close()
attempt(os.chmod, here, 0)
attempt(shutil.rmtree, here)
attempt(os.rmdir, here)
""",
    ),
    Attack(
        "folders without rights",
        "os.makedirs('a/b/c')\nopen('a/b/c/d', 'w').close()\nos.chmod('a/b/c', 0)\nos.chmod('a', 0)",
    ),
    # what the interpreter is told
    Attack("os._exit", "os._exit(0)"),
    Attack("abort", "os.abort()", "error"),
    Attack("segmentation fault", "ctypes.string_at(0)", "error"),
    Attack("killed by itself", "os.kill(os.getpid(), signal.SIGKILL)", "error"),
    Attack(
        "evil error",
        """
class Evil(Exception):
    def __str__(self): raise SystemExit(0)
    __repr__ = __str__
raise Evil
""",
        "error",
    ),
    Attack("huge error", "raise ValueError('x' * 10**7)", "error"),
    Attack("error without end", "class E(Exception):\n  def __str__(self):\n    while True: pass\nraise E", "timeout"),
    Attack(
        "patched modules",
        """
import builtins, traceback
for module in (os, sys, json, builtins, traceback, threading):
    for name in list(vars(module)):
        if not name.startswith("__") and name not in ("setattr", "vars", "list"): attempt(setattr, module, name, None)
""",
        "ok error",
    ),
    Attack(
        "writing to every file",
        """
for number in range(256):
    attempt(os.write, number, b'17\\n{"kind": "ok"}\\n')
""",
        "ok error",
    ),
)
