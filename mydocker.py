#!/usr/bin/env python3
# -*- coding: utf-8 -*-
# SPDX-License-Identifier: MIT
"""mydocker: a container engine in one file, for Linux, in nothing but Python.

    sudo python3 mydocker.py run -it /bin/sh

A container is no thing of the kernel's.  It is a process that has been put on its own side of a
few walls, one kernel call each, and this file is those calls in their order.  The life of `run`:

    outside (run)                                 inside (init)
    Birth: unshare(CLONE_NEWPID), fork ─────────▶ reexec_inside: mounts of its own, execvp this
    cmd_run: options and image become one dict,       file again, as `init`; the interpreter boots
        the spec, in the form of config.json
    start_container: cgroups, limits
    tell_place ────────────── sync 0 ───────────▶ take_place: unshare host name, IPC, network
    connect_container: address, cable ◀── sync 0 ─
    send the spec ─────────── sync 1 ───────────▶ container_main: build_root, enter_root
    keep the terminal ◀────── sync 2 ──────────── the pty's master end
                                                  confine: filter, user, capabilities
    end of file: it runs ◀─── sync 3 ──────────── become_command: execve; else (status, message)
    supervise: carry bytes and signals, wait,
        start it again or tidy up, pass on the exit status

These functions are the story; read them first, in this order.  `grep '^# ── '` lists the chapters:
Part I (1 to 9) is one container; then come its walls (10 to 20), its life (21 to 30), files and
images (31 to 43), networks (44 to 48), and what is around it.  A chapter holds its constants,
options, what it plans outside and does inside, and its commands.  It uses constants and classes of
earlier chapters only; a later one is met by calling a function of it.  `run --explain` prints every
kernel call as it is made, with the reason from its line here.

Needs Linux 5.4, Python 3.8, and root or a kernel that lets anyone make user namespaces.  It
protects the host from what runs inside as Docker does by default: not from a hole in the kernel,
and not from --privileged.  Only modules that `run` needs at once are imported on top: each costs
every container milliseconds, so the others are imported where they are used.
"""

# ── 1. Imports and settings ──────────────────────────────────────────────────
# _ctypes, _signal and _socket are the C halves of ctypes, signal and socket.  The Python halves add
# enums and data types that nothing here needs, for 10 ms at the two starts that each container
# takes (README, "Numbers").  Whatever init needs must be imported before it changes its
# root: afterwards an `import` would find the container's files, and run them.
#
# The dicts that flow through the program, and who makes them:
#
#   options   what was typed: {long name of an option: value, [value...] or bool}; parse_options
#   plan      what `run` decided: id, path, root (None: the host's own), layers, image, reference,
#             digest, diff_ids, keep, guard, network, wants; plan_root
#   spec      the container in the form of the OCI's config.json; make_spec, load_bundle.  Of our
#             own in it: annotations mydocker.*; a mount's volume, copyUp, chown, fallback, refused,
#             anonymous, lender; root.mapped, see "Ids of its own"
#   record    what is on disk of a container: id, name, reference, image, layers, created, keep,
#             args, cgroups, network, wants, volumes, own_volumes, labels, restart, restarts,
#             stop_signal, stop_timeout, log, health; while it runs pid, pid_start, monitor,
#             monitor_start, started; then status, finished, oom, error, delay; of an engine's
#             container engine, bundle, rootfs, annotations, cache; of some details.  make_record,
#             create_container, changed by change_record
#   monitor   what only a living monitor has: spec, record, lock, attached, interactive, logged,
#             stdin, typist, program, pid, master, outputs, typed, ports, before, helper,
#             check_at, checker, door, front, leave, hidden, deaf; cmd_run, relaunch

import sys
assert (LEAST := (3, 8)) <= sys.version_info  # mydocker needs Python 3.8 or later: see python3 -V

def standard_paths():
    """What of sys.path is the standard library's: its zip, its directory, that of its C parts."""
    major, minor = sys.version_info[:2]
    library, paths = f"python{major}.{minor}", set()
    for prefix in (sys.base_prefix, sys.base_exec_prefix):
        for lib in ("lib", "lib64"):
            top = f"{prefix}/{lib}"
            paths |= {f"{top}/python{major}{minor}.zip", f"{top}/{library}",
                      f"{top}/{library}/lib-dynload"}
    return [path for path in sys.path if path in paths]

sys.path[:] = standard_paths()
import errno
import fcntl
import marshal
import os
import select
import stat
import struct
import time

try:
    import _ctypes
    import _signal
    import _socket
except ImportError as missing:
    sys.stderr.write(f"mydocker: python, on {missing.name}: it was built without that\n")
    sys.exit(125)

VERSION = "0.1.0"
OCI_VERSION = "1.3.0"  # of the runtime-spec
STATE_ROOT = "/var/lib/mydocker"  # MYDOCKER_ROOT overrides
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
GRACE = 10  # seconds between a hang-up, or the stop signal, and SIGKILL: Docker's
LINGER = 1  # seconds without a byte after which output isn't waited for when PID 1 is gone
PF_EXITING = 0x4  # linux/sched.h
LEVELS = ("debug", "info", "warning", "error")
SMALL_FILE = 1 << 20  # bytes read at most of a file that should be small and may be hostile
SIGNALS = _signal.valid_signals()  # but those that the C library keeps to itself: musl's are three

# ── 2. Kernel calls, and --explain ───────────────────────────────────────────
# Numbers have the names and values of the kernel's headers, so that a search there finds them; a
# chapter holds those that only it uses.  System calls from 424 on have the same number on every
# architecture that matters here.
#
# One binder makes a Python function of a libc function: text goes in as str, -1 comes out as
# OSError, and the error carries the call as C would write it.  A new call is one line below.
# An argument is TEXT, INT, LONG, BYTES or, for flags, the prefix of their names ("MS_").
#
# --explain hangs here: the narrator's chapter puts a printing shell around these functions.  What a
# call is for is the comment behind the line that makes it, so a reader of the file and a reader of
# the output are told the same.

# linux/sched.h
CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS = 0x00020000, 0x02000000, 0x04000000
CLONE_NEWIPC, CLONE_NEWUSER = 0x08000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET, CLONE_NEWTIME = 0x20000000, 0x40000000, 0x80

# linux/mount.h
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_SYNCHRONOUS, MS_REMOUNT = 1, 2, 4, 8, 16, 32
MS_MANDLOCK, MS_DIRSYNC, MS_NOSYMFOLLOW, MS_NOATIME, MS_NODIRATIME = 64, 128, 256, 1024, 2048
MS_SILENT, MS_I_VERSION, MS_LAZYTIME = 1 << 15, 1 << 23, 1 << 25
MS_BIND, MS_REC, MS_UNBINDABLE, MS_PRIVATE = 1 << 12, 1 << 14, 1 << 17, 1 << 18
MS_MOVE = 1 << 13
MS_SLAVE, MS_SHARED, MS_RELATIME, MS_STRICTATIME = 1 << 19, 1 << 20, 1 << 21, 1 << 24
MNT_DETACH, MOUNT_ATTR_RDONLY, MOUNT_ATTR_IDMAP = 2, 1, 0x100000

# linux/fcntl.h, linux/openat2.h, linux/memfd.h
AT_FDCWD, AT_RECURSIVE, AT_EMPTY_PATH = -100, 0x8000, 0x1000
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_SYMLINKS = 0x04, 0x10
RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_IN_ROOT = 0x02, 0x04, 0x10

# linux/prctl.h, linux/seccomp.h, linux/capability.h
LINUX_CAPABILITY_VERSION_3, CAP_SETGID, CAP_SYS_CHROOT, CAP_SYS_ADMIN = 0x20080522, 6, 18, 21
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_SET_CHILD_SUBREAPER = 1, 4, 8, 36
PR_SET_NAME = 15

# The binder

def encode(text):  # the bytes of a path or argument; undecodable ones are surrogates, PEP 383
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text

class INT(_ctypes._SimpleCData):
    _type_ = "i"  # ctypes.c_int

class LONG(_ctypes._SimpleCData):
    _type_ = "L"  # ctypes.c_ulong, for flags and the unused arguments of variadic calls

class TEXT:
    from_param = encode

class BYTES:
    from_param = lambda value: value

class CFunction(_ctypes.CFuncPtr):
    """A function of libc that returns an int and keeps errno: what ctypes.CDLL makes."""

    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = INT

LIBC = _ctypes.dlopen(None, os.RTLD_NOW)

def kernel(name, *kinds, number=None):
    """Bind libc's NAME, or the system call NUMBER, so that a result of -1 raises OSError."""
    function = CFunction(_ctypes.dlsym(LIBC, "syscall" if number else name))
    types = [LONG if isinstance(kind, str) else kind for kind in kinds]
    function.argtypes = [LONG] * bool(number) + types
    first = (number,) if number else ()

    def call(*args):
        result = function(*first, *args)
        if result == -1:
            code = _ctypes.get_errno()
            raise OSError(code, os.strerror(code), c_call(name, args, kinds))
        return result

    call.kinds, call.__name__ = kinds, name
    return call

mount = kernel("mount", TEXT, TEXT, TEXT, "MS_", TEXT)  # mount(2)
umount2 = kernel("umount2", TEXT, "MNT_")  # umount(2)
sethostname = kernel("sethostname", TEXT, LONG)  # sethostname(2)
setdomainname = kernel("setdomainname", TEXT, LONG)  # setdomainname(2)
pivot_root = kernel("pivot_root", TEXT, TEXT)  # pivot_root(2)
prctl = kernel("prctl", "PR_", LONG, LONG, LONG, LONG)  # prctl(2)
prctl_text = kernel("prctl", "PR_", TEXT)  # prctl(2)
signalfd = kernel("signalfd", INT, BYTES, INT)  # signalfd(2)
fstatfs = kernel("fstatfs", INT, BYTES)  # statfs(2)
syncfs = kernel("syncfs", INT)  # syncfs(2)
capget = kernel("capget", BYTES, BYTES)  # capget(2)
capset = kernel("capset", BYTES, BYTES)  # capset(2)
getsockopt = kernel("getsockopt", INT, INT, INT, BYTES, BYTES)  # getsockopt(2)
prlimit = kernel("prlimit", INT, INT, BYTES, BYTES)  # prlimit(2)
bpf = kernel("bpf", INT, BYTES, LONG,  # bpf(2), older than the numbers that are all the same
             number={"x86_64": 321, "i686": 357, "armv7l": 386}.get(os.uname().machine, 280))
keyctl = kernel("keyctl", INT, TEXT,  # keyctl(2)
                number={"x86_64": 250, "i686": 288, "armv7l": 311}.get(os.uname().machine, 219))
openat2 = kernel("openat2", INT, TEXT, BYTES, LONG, number=437)  # openat2(2), since 5.6
pidfd_send_signal = kernel("pidfd_send_signal", INT, INT, LONG, LONG, number=424)  # since 5.1
pidfd_open = kernel("pidfd_open", INT, LONG, number=434)  # pidfd_open(2), since 5.3
open_tree = kernel("open_tree", INT, TEXT, "OPEN_TREE_", number=428)  # since 5.2
move_mount = kernel("move_mount", INT, TEXT, INT, TEXT, "MOVE_MOUNT_", number=429)  # since 5.2
mount_setattr = kernel("mount_setattr", INT, TEXT, "AT_", BYTES, LONG, number=442)  # since 5.12

def naming(function, *kinds):
    """FUNCTION of the os module, but its errors carry the call, as those of kernel() do."""
    def call(*args):
        try:
            return function(*args)
        except OSError as error:
            error.filename = c_call(function.__name__, args, kinds)
            raise

    return call

if hasattr(os, "unshare"):  # since Python 3.12
    os.unshare = naming(os.unshare, "CLONE_")
    os.setns = naming(os.setns, INT, "CLONE_")
else:
    os.unshare = kernel("unshare", "CLONE_")
    os.setns = kernel("setns", INT, "CLONE_")

def place_of(target):  # a path or a descriptor, as a path
    return f"/proc/self/fd/{target}" if isinstance(target, int) else target

def read_xattr(call, target, *name):
    """What listxattr(2) or getxattr(2) say of a path or descriptor: no more than 64 KiB."""
    room = (INT * (1 << 14))()
    length = call(place_of(target), *name, room, 1 << 16)
    return bytes(memoryview(room).cast("B")[:length])

if not hasattr(os, "listxattr"):  # many a Python with musl: CPython asked for glibc here
    list_xattr = kernel("listxattr", TEXT, BYTES, LONG)
    get_xattr = kernel("getxattr", TEXT, TEXT, BYTES, LONG)
    set_xattr = kernel("setxattr", TEXT, TEXT, BYTES, LONG, INT)
    os.listxattr = lambda target: [
        os.fsdecode(name) for name in read_xattr(list_xattr, target).split(b"\0") if name]
    os.getxattr = lambda target, name: read_xattr(get_xattr, target, name)
    os.setxattr = lambda target, name, value: set_xattr(
        place_of(target), name, value, len(value), 0)

# What power we have

FIRST_USER_NAMESPACE = 0xEFFFFFFD  # its inode: linux/proc_ns.h, PROC_USER_INIT_INO
NS_GET_USERNS = 0xB701  # linux/nsfs.h

def has_power(capability=CAP_SYS_ADMIN):
    """True with this capability: making namespaces and mounts takes CAP_SYS_ADMIN."""
    sets = (INT * 6)()
    capget(struct.pack("Ii", LINUX_CAPABILITY_VERSION_3, 0), sets)
    return bool(sets[0] >> capability & 1)

def in_user_namespace():
    """True where our root is not the kernel's: some of its power ends at the namespace."""
    return os.stat("/proc/self/ns/user").st_ino != FIRST_USER_NAMESPACE

def is_guest(kind):
    """True if the namespace of that kind around us isn't our user namespace's, but one's above."""
    if not in_user_namespace():
        return False
    fd = os.open(f"/proc/self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.close(fcntl.ioctl(fd, NS_GET_USERNS))
        return False
    except PermissionError:  # we aren't told who is above us: ioctl_nsfs(2)
        return True
    finally:
        os.close(fd)

# --explain

def c_call(name, args, kinds=()):
    """A call as C would write it: mount("proc", "/proc", "proc", MS_NOSUID, NULL)."""
    kinds = (*kinds, *[None] * len(args))
    return f"{name}({', '.join(c_value(arg, kind) for arg, kind in zip(args, kinds))})"

def c_value(value, kind=None):
    """One argument of a call as C would write it, by its kind; /proc/self/fd/N by its real name."""
    if value is None:
        return "NULL"
    if isinstance(kind, str):
        return c_flags(value, kind)
    if kind is BYTES:
        return "{...}"
    if isinstance(value, dict):
        value = [encode(key) + b"=" + encode(text) for key, text in value.items()]
    if isinstance(value, (list, tuple)):
        return "{" + ", ".join(map(c_value, value)) + "}"
    if kind is TEXT and encode(value).startswith((b"/proc/self/fd/", b"self/fd/")) and (
            os.path.islink(value)):
        value = os.readlink(value)
    if isinstance(value, (str, bytes)):
        return '"' + encode(value).decode("utf-8", "backslashreplace").replace('"', '\\"') + '"'
    return str(value)

def c_flags(value, prefix):
    """The names of the bits of VALUE, from the constants that start with PREFIX."""
    if not value:
        return "0"
    known = {name: bits for name, bits in globals().items() if name.startswith(prefix)}
    names = [name for name, bits in known.items() if bits == value]
    if not names:
        names = [name for name, bits in known.items() if bits & value == bits]
    return "|".join(names) or hex(value)

# ── 3. Failing ───────────────────────────────────────────────────────────────
# Two kinds of error and no third: Failure says that what was asked for can't be done; OSError,
# that the kernel refused.  Nothing below prints or exits: `main` turns both into one line,
# `mydocker: what, on what: why`, with a hint where the cause is known.

class Failure(Exception):
    """What the user asked for can't be done: one sentence, an exit status, perhaps a hint."""
    def __init__(self, message, status=125, hint=""):
        super().__init__(message)
        self.message, self.status, self.hint = message, status, hint

class NotFound(Failure):
    """There is nothing of the name that was given."""

class Interrupted(Failure):
    """Something from outside broke in: a signal, the network, a server.  What has come so far is
    good, for another try."""
    def __init__(self, message, status=125, hint="", http_status=0):
        super().__init__(message, status, hint)
        self.http_status = http_status

def as_typed(text):
    """What somebody typed, as a message shows it: also when it is nothing."""
    return text or "''"

def reason(error):
    """The kernel's word for an errno, as a clause: "no such file or directory"."""
    text = error.strerror or str(error)
    if error.errno in (errno.ENOENT, errno.ESRCH) and isinstance(error.filename, str):
        text = what_ended(error.filename) or text
    return text[:1].lower() + text[1:]

def what_ended(path):
    """Why there is no PATH any more: somebody has ended or removed whose it was; else ""."""
    root, pid = os.environ.get("MYDOCKER_ROOT", ""), path[len("/proc/"):].partition("/")[0]
    if path.startswith("/proc/") and pid.isdecimal() and is_exiting(pid):
        return "the process has just ended"
    for top in f"{root}/containers/", f"{root}/oci/":
        name = path[len(top):].partition("/")[0]
        if path.startswith(top) and name and not os.path.exists(top + name):
            return "the container has just been removed"
    return ""

class tolerate:
    """A `with` that ends quietly at an OSError of these numbers, or of any if there are none."""
    def __init__(self, *numbers):
        self.numbers = numbers
    def __enter__(self):
        return self
    def __exit__(self, _, error, __):
        return isinstance(error, OSError) and (not self.numbers or error.errno in self.numbers)

class blame:
    """A `with` that makes a Failure of an OSError: WHAT, and the kernel's word for why."""
    def __init__(self, what):
        self.what = what
    def __enter__(self):
        return self
    def __exit__(self, _, error, __):
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            raise Failure(f"{self.what}: {reason(error)}", hint=hint_for(error)) from None

NOT_TO_BE_HAD = errno.ENOSYS, errno.EPERM  # an old kernel; a seccomp filter around us

def describe(error, what):
    """An error as what Failure is made of: (message, status, hint).  WHAT was being done, for an
    error of the kernel's, which doesn't say: a command, an option, a step, in the user's words."""
    if isinstance(error, Failure):
        return error.message, error.status, error.hint
    if isinstance(error, ImportError):  # such as _ssl, zlib: parts that a build may leave out
        return f"python, on {error.name}: it was built without that", 125, "another one may have it"
    if not isinstance(error, OSError):
        where = error.__traceback__
        while where.tb_next:
            where = where.tb_next
        return f"{what}, line {where.tb_lineno}: {error!r}", 125, "this is a bug in mydocker"
    on = ""
    if error.filename is not None:
        on = ", on " + str(error.filename)
        if isinstance(error.filename, bytes):
            on = ", on " + os.fsdecode(error.filename)
    return f"{what}{on}: {reason(error)}", 125, hint_for(error)

def hint_for(error):
    """What to look at after an error of the kernel's, or ""."""
    call = str(error.filename).partition("(")[0]
    if error.errno == errno.ENOSPC and call in ("unshare", "fork"):
        limits = [f"user.{name}" for name in sorted(os.listdir("/proc/sys/user"))
                  if name.endswith("_namespaces") and read_all(f"/proc/sys/user/{name}") == "0\n"]
        return f"no more namespaces are allowed, see sysctl {' '.join(limits) or 'user'}"
    if error.errno == errno.EACCES and (
            call == "execvp" or f'"{os.path.realpath(sys.executable)}"' in str(error.filename)):
        return "the user namespace's root can't reach this Python: one in /usr/bin can be reached"
    if error.errno == errno.EPERM and '"proc"' in str(error.filename) and proc_is_covered():
        return ("parts of /proc are covered, as in a container of others: there the kernel lets no "
                "user namespace have a whole one; docker run --security-opt systempaths=unconfined")
    if error.errno == errno.EROFS and str(error.filename).startswith(state_path()):
        return "--root DIR or MYDOCKER_ROOT: where the state can be written"
    if error.errno not in (errno.EPERM, errno.EACCES):
        return ""
    hint = lacking_power(error)
    if not hint and error.errno == errno.EPERM and call in (
            "unshare", "mount", "pivot_root", "setns"):
        return "a seccomp filter forbids it: inside a container?"
    return hint

class call_named:
    """A `with` that gives an OSError of the os module, which doesn't know its call, that CALL."""
    def __init__(self, call):
        self.call = call
    def __enter__(self):
        return self
    def __exit__(self, _, error, __):
        if isinstance(error, OSError) and error.filename is None:
            error.filename = self.call

class Unread(Failure):
    """Nobody reads the answer any more: a quiet end, as of a program that SIGPIPE ends."""
    def __init__(self):
        super().__init__("", 128 + _signal.SIGPIPE)

def show(text):
    """Print a command's answer, on a terminal with nothing in it that would steer that; in UTF-8
    whatever PYTHONIOENCODING says of print(). An output that is full is a Failure, too."""
    if os.isatty(1):
        text = "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))
    try:
        with blame("write, on standard output"):
            write_all(1, encode(text + "\n"))
    except BrokenPipeError:
        raise Unread() from None

def print_line(text, fd=2):
    """Write one line on stderr in a single write, so that two processes' lines don't mix."""
    with tolerate():  # nobody can be told; the exit status still says it
        os.write(fd, (printable(text) + "\n").encode())

def printable(text):
    """TEXT with all that would steer a terminal as escapes: images and registries word it, too."""
    text = encode(text).decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

def loud(level):
    """True if messages of this level are wanted; --log-level travels as MYDOCKER_LOG."""
    wanted = os.environ.get("MYDOCKER_LOG", "warning")
    return LEVELS.index(level) >= LEVELS.index(wanted if wanted in LEVELS else "warning")

def narrate(message, level="info"):
    """Tell a step of a container's life as the tutorial does: one JSON line on stderr."""
    if loud(level):
        from _json import encode_basestring_ascii as quoted  # json itself would cost 5 ms
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        print_line(f'{{"level":"{level}","msg":{quoted(message)},"time":"{now[:-2]}:{now[-2:]}"}}')

def warn(message):
    """Say that something asked for, but not essential, is not to be had."""
    if loud("warning") and not log_for_engine("warning", message):
        print_line(f"mydocker: warning: {message}")

def open_log(options):
    """Let --log, --log-format and --debug travel: in the environment.  A log that nobody could read
    is told now, not when there is something to write to it."""
    form = given(options, "log-format", "text")
    if form not in ("text", "json"):
        raise Failure(f"--log-format, on {as_typed(form)}: not text or json")
    if options["log"] is not None:
        with blame(f"--log, on {as_typed(options['log'])}"):
            os.close(open_named(options["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND))
        os.environ["MYDOCKER_ERRORS"] = f"{form} {os.path.abspath(options['log'])}"
    if options["debug"]:
        os.environ["MYDOCKER_DEBUG"] = "1"

def log_for_engine(level, message):
    """Write a message where an engine reads it, a line in the file of --log, JSON or as runc has
    it; False if there is none.  What stands on stderr would be the container's words."""
    form, _, path = os.environ.get("MYDOCKER_ERRORS", "").partition(" ")
    if not path:
        return False
    now = log_time(time.time_ns())
    line = to_json({"level": level, "msg": message, "time": now})
    if form == "text":
        line = f'time="{now}" level={level} msg={to_json(message)}'
    with tolerate(), open(open_named(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "a") as file:
        file.write(line + "\n")
    return True

def note(message):
    """Tell a step to whoever asked for that by --debug: in the file of --log, or else on stderr."""
    if os.environ.get("MYDOCKER_DEBUG") and not log_for_engine("debug", message):
        print_line(f"mydocker: debug: {message}")

# ── 4. Files, locks, processes, channels ─────────────────────────────────────
# A path inside a container is attacker input: its links are the container's, and may change while
# we look.  So it is resolved by the kernel with the container's root as "/", and what comes back
# is a descriptor; all further work is on that, never on the path again.
#
# A process is only known by its pid together with the time it started: pids are used again.

OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
OPEN_ENTRY = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
OPEN_CHILD = OPEN_ENTRY | os.O_DIRECTORY
OPEN_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

# Files

class Descriptor(int):
    """A file descriptor that is closed after a `with`."""
    def __enter__(self):
        return self
    def __exit__(self, *_):
        os.close(self)

def read_all(path):
    """A file's text, lines ended as in any other; open() would take three times as long, and each
    container's start reads fifty small ones."""
    with call_named(path), Descriptor(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as fd:
        data = b"".join(iter(lambda: os.read(fd, 1 << 16), b""))  # malloc has no mmap for these
    text = data.decode("utf-8", "surrogateescape")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text

def read_text(path):
    """A small file's text.  Safe on what a container made: no FIFO blocks, no device is read."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Failure(f"read, on {path}: not a regular file")
        return file.read(SMALL_FILE).decode("utf-8", "surrogateescape")

def open_in_root(root, path, flags=os.O_PATH, resolve=0):
    """Open PATH with the directory ROOT (a descriptor) as "/": neither ".." nor a link leaves it.
    Raises OSError, ELOOP for a link under RESOLVE_NO_SYMLINKS.  See openat2(2); CVE-2021-30465."""
    resolve |= RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, 0, resolve)
    with tolerate(*NOT_TO_BE_HAD):
        for attempts_left in range(99, -1, -1):
            try:
                return openat2(root, path, how, len(how))  # by descriptor: no link can lead it out
            except OSError as error:
                error.filename = path  # what a user knows
                if error.errno != errno.EAGAIN or not attempts_left:
                    raise  # else something was renamed on ".."'s way
    return walk_in_root(root, path, flags, resolve)

def walk_in_root(root, path, flags, resolve):
    """What openat2 does, for kernels before 5.6: a component at a time, links followed by hand."""
    todo, trail, links = os.fsdecode(path).split("/")[::-1], [os.dup(root)], 0
    try:
        while todo:
            name = todo.pop()
            if name == ".." and len(trail) > 1:
                os.close(trail.pop())
            if name in ("", ".", ".."):
                continue
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=trail[-1])
            trail.append(fd)
            if stat.S_ISLNK(os.fstat(fd).st_mode) and (todo or not flags & os.O_NOFOLLOW):
                links += 1
                if links > 40 or resolve & RESOLVE_NO_SYMLINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                target = os.readlink("", dir_fd=fd)
                todo += target.split("/")[::-1]
                for fd in trail[1 if target.startswith("/") else -1:]:
                    os.close(trail.pop())
        return os.open(f"/proc/self/fd/{trail[-1]}", flags & ~os.O_NOFOLLOW | os.O_CLOEXEC)
    finally:
        for fd in trail:
            os.close(fd)

def make_in_root(root, path, directory=True, resolve=0, links=0):
    """Open PATH below ROOT, making it, and the directories on the way, where they are missing."""
    if links > 40:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
    try:
        return open_in_root(root, path, os.O_PATH, resolve)
    except FileNotFoundError:
        parent, _, name = path.rstrip("/").rpartition("/")
    with Descriptor(make_in_root(root, parent or "/", True, resolve)) as above:
        with tolerate(errno.EEXIST):  # a link that leads nowhere yet, or somebody was faster
            if directory:
                os.mkdir(name, 0o755, dir_fd=above)
            else:
                os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=above))
        target = link_target(above, name)
    if target:
        return make_in_root(root, os.path.join(parent, target), directory, resolve, links + 1)
    return open_in_root(root, path, os.O_PATH, resolve)

def link_target(directory, name):
    """Where a symbolic link points, or None if NAME is no link."""
    with tolerate(errno.EINVAL, errno.ENOENT):
        return os.readlink(name, dir_fd=directory)
    return None

def write_file(path, data, durable=False, like_folder=False, mode=0o600):
    """Replace a file in one step: a reader, or a crash, finds the old bytes or the new, never both.
    See rename(2).  DURABLE: the bytes are on disk before the name is; needs milliseconds.
    The directory may be another user's: no name there can be foreseen, no link is followed, and the
    owner, with LIKE_FOLDER the directory's, is set by descriptor."""
    folder, name = os.path.split(path)
    make_dirs(folder or ".")
    temporary = f"{name}.{os.urandom(8).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with Descriptor(os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as above:
        try:
            with open(os.open(temporary, flags, 0o600, dir_fd=above), "wb") as file:
                file.write(encode(data))
                file.flush()
                if like_folder:
                    os.fchown(file.fileno(), *os.fstat(above)[4:6])
                if mode != 0o600:
                    os.fchmod(file.fileno(), mode)
                if durable:
                    os.fsync(file.fileno())
                else:  # start it: once it has begun, ext4 lets no name be there before the bytes
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            os.rename(temporary, name, src_dir_fd=above, dst_dir_fd=above)
        except OSError as error:  # a full disk: nothing half written stays
            with tolerate(errno.ENOENT):
                os.unlink(temporary, dir_fd=above)
            error.filename, error.filename2 = path, None  # which the user knows
            raise

def open_named(path, flags):
    """Open a file that the user named, perhaps in a directory of somebody else's: a link there that
    others made is not followed, it would have us write, or read, root's files for them."""
    for _ in range(40):
        try:
            return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
        with Descriptor(os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)) as link:
            if os.fstat(link).st_uid not in (0, os.geteuid()):
                raise OSError(errno.ELOOP, "a link that another user made", path)
            if is_proc(link):  # such as /dev/stdout: it has no path
                return os.open(path, flags | os.O_CLOEXEC)
            path = os.path.join(os.path.dirname(path), os.readlink("", dir_fd=link))
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)

def listing(path):
    """The names in a directory, in order; none where it doesn't exist."""
    return sorted(os.listdir(path)) if os.path.isdir(path) else []

def unlink_if_there(path):
    """Remove a file that another process may be removing, too."""
    with tolerate(errno.ENOENT):  # it was faster
        os.unlink(path)

def touch_if_there(path):
    """Make an empty file in a directory that may go any moment; on a full disk it does without."""
    with tolerate(errno.ENOENT, errno.ENOSPC, errno.EDQUOT):
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))

def tree_size(path):
    size = 0
    for top, _, names in os.walk(path):
        for name in names:
            with tolerate(errno.ENOENT):  # it has just been removed
                size += os.lstat(os.path.join(top, name)).st_size
    return size

def readable(fd):
    try:
        return os.open(f"/proc/self/fd/{fd}", OPEN_DIR)
    finally:
        os.close(fd)

def remove_tree(name, dir_fd=None):
    """Remove NAME, whatever it is, if it is there; what is mounted in it is an error and stays. Its
    directories are laid flat, so that none is too deep, and ".." isn't used: in a running
    container, it could lead anywhere by now."""
    if remove_entry(name, dir_fd):
        return
    with Descriptor(os.open(name, OPEN_CHILD, dir_fd=dir_fd)) as top:
        folders = ["."]
        for folder in folders:  # it grows meanwhile
            with Descriptor(os.open(folder, OPEN_CHILD, dir_fd=top)) as fd:
                for entry in list(os.scandir(fd)):
                    if remove_entry(entry.name, fd):
                        continue
                    flat = os.urandom(16).hex()
                    try:
                        os.rename(entry.name, flat, src_dir_fd=fd, dst_dir_fd=top)
                        folders.append(flat)
                    except OSError:  # EXDEV: overlayfs doesn't move a lower layer's
                        remove_tree(entry.name, fd)
        for folder in folders[1:]:
            os.rmdir(folder, dir_fd=top)
    os.rmdir(name, dir_fd=dir_fd)

def remove_entry(name, dir_fd):
    """Remove anything but a directory with something in it: False. Both calls refuse what a file
    system is mounted on before they look at what is in it: EBUSY, see rmdir(2)."""
    try:
        try:
            os.unlink(name, dir_fd=dir_fd)
        except IsADirectoryError:
            os.rmdir(name, dir_fd=dir_fd)
    except FileNotFoundError:
        pass  # it's gone already
    except OSError as why:
        if why.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        if why.errno == errno.EBUSY:
            above = "" if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}") + "/"
            raise Failure(f"remove, on {above}{os.fsdecode(name)}: something is mounted there"
                          ) from None
        raise
    return True

def write_all(fd, data):
    while data:
        data = data[os.write(fd, data):]  # write(2) may take less


# The state root, locks

def state_path(*names):
    return os.path.join(os.environ["MYDOCKER_ROOT"], *names)

def make_dirs(path):
    """Make a directory of the state root's, with what is above it, closed to others."""
    if not os.path.isdir(path):
        make_dirs(os.path.dirname(path) or ".")
        with tolerate(errno.EEXIST):  # somebody was faster; if it isn't a directory, that's found
            os.mkdir(path, 0o700)  # CVE-2021-41091: nobody but root walks into images' files
    return path

def temporary_path(*parts):
    return os.path.join(make_dirs(state_path(*parts)), f"tmp.{os.getpid()}.{os.urandom(8).hex()}")

def hold(path, mode=fcntl.LOCK_EX):
    """Lock a file or directory until the descriptor that is returned is closed: flock(2)."""
    flags = os.O_RDONLY if os.path.isdir(path) else os.O_RDWR | os.O_CREAT
    fd = Descriptor(os.open(path, flags | os.O_CLOEXEC, 0o600))
    try:
        fcntl.flock(fd, mode)
    except OSError:
        os.close(fd)
        raise
    return fd

def mounts_here():
    """This process's mounts: [(place, type, options, the type's own, what of it is mounted there,
    id)].  See proc_pid_mountinfo(5)."""
    rows = []
    for line in read_all("/proc/self/mountinfo").split("\n")[:-1]:
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
            fields[4] = fields[4].replace(code, character)
        kind, *_, more = after.split(" ")
        rows.append((fields[4], kind, fields[5].split(","), more.split(","), fields[3], fields[0]))
    return rows

def mount_id(fd):
    """The number of the mount that a descriptor is on: proc_pid_fdinfo(5)."""
    return read_all(f"/proc/self/fdinfo/{fd}").partition("mnt_id:")[2].split()[0]

def is_same_place(fd, other):
    """True if two descriptors are of one file on one mount."""
    return mount_id(fd) == mount_id(other) and os.path.samestat(os.fstat(fd), os.fstat(other))

def mount_id_at(path):
    """The number of the mount that PATH leads to, the last of those there; None if to none."""
    with tolerate(), Descriptor(os.open(path, os.O_PATH | os.O_CLOEXEC)) as fd:
        return mount_id(fd)
    return None

# Processes

def open_fds():
    return [int(name) for name in os.listdir("/proc/self/fd")  # whose own is closed by then
            if int(name) > 2 and os.path.exists(f"/proc/self/fd/{name}")]

def process_state(pid):
    """A process's state, a letter, and when it started, in clock ticks since boot: with its pid
    that names it for good.  (None, None) if it is gone."""
    with tolerate(errno.ENOENT, errno.ESRCH):
        fields = read_all(f"/proc/{pid}/stat").rpartition(")")[2].split()
        return fields[0], int(fields[19]) - clock_shift()
    return None, None

def is_exiting(pid):
    """True of a process that ends, or has ended: its flags say so before its state does."""
    with tolerate(errno.ENOENT, errno.ESRCH):
        return bool(int(read_all(f"/proc/{pid}/stat").rpartition(")")[2].split()[6]) & PF_EXITING)
    return True

def clock_shift():
    """How many clock ticks since boot are not the host's but of our time namespace: what is kept on
    disk of a process must be the same for all who ask.  See time_namespaces(7)."""
    with tolerate(errno.ENOENT):  # before Linux 5.6
        if os.readlink("/proc/self/ns/time") == os.readlink("/proc/self/ns/time_for_children"):
            seconds, rest = map(int, read_all("/proc/self/timens_offsets").split()[-2:])
            return (seconds * 10**9 + rest) * os.sysconf("SC_CLK_TCK") // 10**9
    return 0  # else these are the next child's, which is somebody else's

def process_start(pid):
    return process_state(pid)[1]

def process_fd(pid, start):
    """A pidfd of the process that has that PID and started then; None if it is gone."""
    try:
        fd = Descriptor(pidfd_open(pid or -1, 0))
    except OSError as error:
        if error.errno not in (errno.ESRCH, errno.EINVAL):
            raise
        return None
    if process_start(pid) == start:  # it is that one, and no later one with its pid
        return fd
    os.close(fd)
    return None

def send_signal(pid, start, number):
    """Send a signal to that process; False if it is gone."""
    with tolerate(errno.ESRCH):
        try:
            fd = process_fd(pid, start)
            if fd is None:
                return False
            with fd:
                pidfd_send_signal(fd, number, 0, 0)
        except OSError as error:
            if error.errno not in NOT_TO_BE_HAD:
                raise
            if process_start(pid) != start:
                return False
            os.kill(pid, number)  # in between, it could become another's pid: once in 4 million
        return True
    return False

def wait_process(pid, start, seconds):
    """Wait for that process to end, at most so long; False if it has not."""
    try:
        fd = process_fd(pid, start)
        if fd is None:
            return True
        with fd:
            return bool(readable_fds([fd], seconds))
    except OSError as error:
        if error.errno not in NOT_TO_BE_HAD:
            raise
    end = time.monotonic() + seconds
    while lives(pid, start) and time.monotonic() < end:
        time.sleep(0.01)
    return not lives(pid, start)

def lives(pid, start):
    """True until that process has ended, whether somebody has waited for it or not."""
    state, started = process_state(pid)
    return started == start and state not in ("Z", "X", None)

def readable_fds(fds, seconds=None):
    """Wait until one of the descriptors can be read, or for that time; returns those that can."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return [fd for fd, _ in poll_until(poll, seconds and time.monotonic() + seconds)]

def poll_until(poll, deadline):
    """What poll says when something is ready, or at the DEADLINE, a time.monotonic(); None: never,
    0: at once.  It may be farther away than poll(2) can count, an int of milliseconds."""
    while True:
        left = None
        if deadline is not None:
            left = min(max(0, deadline - time.monotonic()) * 1000 + 1, (1 << 31) - 1)
        ready = poll.poll(left)
        if ready or left is not None and time.monotonic() >= deadline:
            return ready

def pairs_of(texts):
    """NAME=VALUE texts as {name: value}."""
    return dict(text.partition("=")[::2] for text in texts)

def exit_status(wait_status):
    signal = os.WTERMSIG(wait_status)
    return 128 + signal if signal else os.WEXITSTATUS(wait_status)

# Channels: the outside and the inside of a container talk by them

def send(channel, message, fds=()):
    """Send a value to the other side, and descriptors with it (unix(7), SCM_RIGHTS)."""
    data = marshal.dumps(message)
    data = struct.pack("I", len(data)) + data
    rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))]
    # Of all calls a system call filter is the least likely to forbid write(2).
    sent = channel.sendmsg([data], rights) if fds else os.write(channel.fileno(), data)
    if data[sent:]:  # nothing at all is sent, too, and refused when the other side is done
        channel.sendall(data[sent:])

def receive(channel):
    """The next value and descriptors from the other side: (message, fds); (None, []) at its end."""
    with tolerate(errno.ECONNRESET):  # that didn't read all we had sent
        header, ancillary, _, _ = channel.recvmsg(
            4, _socket.CMSG_SPACE(4 * 253), _socket.MSG_WAITALL | _socket.MSG_CMSG_CLOEXEC)
        if len(header) < 4:
            return None, []
        fds = [fd for _, _, data in ancillary for fd in struct.unpack(f"{len(data) // 4}i", data)]
        data, size = b"", struct.unpack("I", header)[0]
        while len(data) < size and (more := channel.recv(size - len(data))):
            data += more
        if len(data) == size:
            return marshal.loads(data), fds
    return None, []

def tell(channel, message, fds=()):
    """Send what the other side may not be there for any more; why, it has sent itself."""
    with tolerate(errno.EPIPE):
        send(channel, message, fds)

# ── 5. The command line ──────────────────────────────────────────────────────
# One function for each command, below its row: usage, summary, options.  The parser and the help
# are both driven by the row, so they can't drift apart.  An option is (names, argument, help): no
# argument makes it a switch, "..." at the end of the argument lets it be repeated, and "[=X|Y]" is
# one of these words, or none.
# Docker's conventions: options end at the first positional or at `--`; -it is -i -t; --name=x is
# --name x.  The tutorial's: every long option may have one dash only.

# {name: its row, see `command`}, {name of a command: {the names of an option: its row}}.  What says
# these rows is left out of an installed copy's chapters: it has them from the start, see row_of.
COMMANDS, OPTIONS = globals().get("KNOWN_COMMANDS", {}), {}
QUICK = set("run exec create start state kill delete init join".split())  # no garbage in so short
HIDDEN = "not for typing"  # the summary of what the program starts as by itself
NONE, ONE, SOME, ANY = (0, 0), (1, 1), (1, 1 << 30), (0, 1 << 30)  # how many words there may be

def command(usage, summary, *rows, takes=NONE, many=False, mixed=True):
    """Make a function cmd_NAME the command NAME; cmd_GROUP_NAME is GROUP NAME.  It gets its options
    and words, TAKES of them.  MANY: it is called for every word, and what it returns is printed, or
    else the word.  MIXED: options may follow words, as docker has it where no command follows."""
    def register(function):
        name = function.__name__[4:].replace("_", " ")
        offer(name, *rows)
        COMMANDS.setdefault(name, {}).update(
            usage=usage, summary=summary, takes=SOME if many else takes, many=many, mixed=mixed,
            function=function.__name__)
        return function

    return register

def offer(name, *rows):
    """Add options to the command of that name: each chapter has those that it carries out."""
    OPTIONS.setdefault(name, {}).update({row[0]: row for row in rows})

def also_called(alias, name):
    """Give a command a second name."""
    COMMANDS[alias], OPTIONS[alias] = COMMANDS[name], OPTIONS[name]

def row_of(name):
    """The row of a command, and those of its options; an installed copy has bytes of them, as most
    starts need those of one command."""
    row = COMMANDS[name]
    return marshal.loads(row) if isinstance(row, bytes) else (row, OPTIONS[name])

def run_command(name, options, words):
    """Carry out a command that was typed; returns the exit status."""
    row = row_of(name)[0]
    engine = is_for_engine(row, options, words)
    function = globals()[row["engine" if engine else "function"]]
    for option in () if engine else row.get("theirs", ()):
        if options[option]:  # it may be a protection: never ignored
            raise Failure(f"{name}, on --{option}: that is for an engine's container, "
                          f"which {words[0] if words else 'this'} is not")
    if name not in QUICK:
        import gc
        gc.enable()
    if options.get("explain") or options.get("step"):
        explain_calls(options["explain"] == "all", options["step"])

    def call(word):
        said = function(options, word)
        return word if said is None else said

    if row["many"] and not engine:
        each(name, words, call)
        return 0
    try:
        return function(options, words) or 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # where what buffers still hold goes
        raise Unread() from None
    except OSError as error:  # the kernel's errors don't say what was being done
        raise Failure(*describe(error, name)) from None

def parse_options(rows, words, where, anywhere=False):
    """Split WORDS by an option table: ({name: value}, the positional words). ANYWHERE: options may
    follow positional words, too, as docker has it where no command follows."""
    by_name = {name.lstrip("-"): row for row in rows for name in row[0].split()}
    options = {long_name(row): default_of(row) for row in rows}
    words, rest = list(words), []
    while words and (anywhere or not rest):
        word = words.pop(0)
        if word == "--":
            break
        if not word.startswith("-") or word == "-":
            rest.append(word)
            continue
        for row, value in split_option(by_name, word, where):
            name = long_name(row)
            if row[1].startswith("[="):
                known = row[1][2:-1].split("|")
                if value not in (None, "true", "false", *known):
                    raise Failure(f"{where}, on --{name}={value}: not {row[1][2:-1]}")
                options[name] = value or "true"
                if value == "false" and value not in known:
                    options[name] = None
                continue
            if not row[1] and value not in (None, "true", "false"):
                raise Failure(f"{where}, on --{name}={value}: it takes no value")
            if row[1] and value is None and not words:
                raise Failure(f"{where}, on {word}: it needs a value, {row[1].rstrip('.')}")
            if row[1]:
                value = words.pop(0) if value is None else value
                options[name] = options[name] + [value] if row[1].endswith("...") else value
            else:
                options[name] = value != "false"
    return options, rest + words

def default_of(row):
    """What an option is when it isn't typed: a list, a value or a switch."""
    if row[1].endswith("..."):
        return []
    return None if row[1] else False

def split_option(by_name, word, where):
    """The options in one word as [(row, value)]; the value is None where it isn't in the word.
    Grammar: -name, --name, --name=value (one dash will do) | -abc | -abVALUE"""
    name, equals, value = word.lstrip("-").partition("=")
    if name in by_name and (len(name) > 1 or equals or len(word) == 2):
        return [(by_name[name], value if equals else None)]
    found = []
    for end, letter in enumerate(word[1:], 2):
        if letter not in by_name:
            raise Failure(f"{where}, on {word}: unknown option",
                          hint=missing_option(name, by_name) or f"see {where} --help")
        row = by_name[letter]
        if row[1]:
            return found + [(row, word[end:] or None)]
        found.append((row, None))
    return found

def long_name(row):
    """The name of an option in a table, by which the parsed options have it."""
    return next(name[2:] for name in row[0].split() if name.startswith("--"))

def option_lines(rows):
    return columns([(f"  {', '.join(names.split())} {argument}".rstrip(), text)
                    for names, argument, text in rows])

def help_text(name):
    row, options = row_of(name)
    lines = [f"Usage: mydocker {name} {row['usage']}".rstrip(), "",
             row["summary"][0].upper() + row["summary"][1:] + "."]
    if options:
        lines += ["", "Options (one dash is as good as two):", *option_lines(options.values())]
    return "\n".join(lines)

def given(options, name, default):
    return default if options[name] is None else options[name]

def each(name, words, action):
    """Do something for every word, and print what comes of it.  All are tried: what fails is said,
    and the last one's failure is raised at the end.  NAME: of the command."""
    failed = None
    for word in words:
        try:
            answer = action(word)
            if answer:
                show(answer)
        except (Failure, OSError) as error:
            if failed and failed.message:
                print_line(f"mydocker: {failed.message}")
            failed = Failure(*describe(error, f"{name}, on {word}"))
    if failed:
        raise failed

# What is typed

def to_number(text, end=1 << 63):
    """The number that TEXT is, if it's nothing but ASCII's digits, and below END; else None."""
    if text.isascii() and text.isdigit() and len(text) < 4300 and int(text) < end:  # int()'s limit
        return int(text)
    return None

def parse_signal(text, option):
    """A signal's number, from that or its name with or without SIG."""
    number = to_number(text) or signal_named(text.upper())
    if not 0 < number < 65:
        raise Failure(f"{option}, on {as_typed(text)}: there is no such signal")
    return int(number)

def signal_named(name):
    """The number of the signal of that name, or 0; RTMIN+3 and RTMAX-1 are names, too: systemd's,
    which means the C library's, glibc's, in the container.  See signal(7)."""
    name = name[3:] if name.startswith("SIG") else name
    for base, number in (("RTMIN+", 34), ("RTMAX-", 64)):
        step = to_number(name[len(base):], 31)
        if name == base[:-1]:
            return number
        if name.startswith(base) and step is not None:
            return number + step if base == "RTMIN+" else number - step
    return 0 if name.startswith("_") else getattr(_signal, "SIG" + name, 0)  # SIG_IGN is none

def parse_number(text, option, least=0):
    number = to_number(text[1:] if text[:1] == "-" else text)
    number = -number if number and text[:1] == "-" else number
    if number is None or number < least:
        raise Failure(f"{option}, on {as_typed(text)}: not a number from {least} up")
    return number

def apply_log_options(options):
    """Let --log-level travel to init: in the environment."""
    level = options["log-level"] or os.environ.get("MYDOCKER_LOG") or (
        "info" if options["tty"] and options["interactive"] and not options["detach"]
        else "warning")
    if level not in LEVELS:
        raise Failure(f"--log-level, on {level}: not one of {', '.join(LEVELS)}")
    os.environ["MYDOCKER_LOG"] = level

offer("run", ("--log-level", "LEVEL", "debug, info, warning or error (default: info with -it)"))

# What is shown

def columns(rows):
    """The lines of a table; what steers a terminal is shown as escapes, wherever it goes."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["   ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip() for row in rows]

# ── 6. Outside the container ─────────────────────────────────────────────────
# `run` makes the child, does what must be done outside, says go, and then only carries signals and
# bytes until the child is gone.  From the child's first moment it holds that PR_SET_PDEATHSIG kills
# it when this process dies: no container outlives its monitor.
#
# `run` itself is the monitor, and passes signals on.  With -d it forks first, and a child in a
# session of its own is; the parent leaves when it hears that the command runs.  TERM and HUP tell
# that one to stop its container: a host that goes down says so.  What a monitor needs is one dict,
# so that it can execute itself again, smaller, and hand that on.

MFD_NOEXEC_SEAL = 8  # linux/memfd.h
NAMESPACES = {  # the OCI's names, in the order to enter them: (flag, name in /proc/PID/ns)
    "user": (CLONE_NEWUSER, "user"), "pid": (CLONE_NEWPID, "pid"), "time": (CLONE_NEWTIME, "time"),
    "uts": (CLONE_NEWUTS, "uts"), "ipc": (CLONE_NEWIPC, "ipc"), "network": (CLONE_NEWNET, "net"),
    "cgroup": (CLONE_NEWCGROUP, "cgroup"), "mount": (CLONE_NEWNS, "mnt")}
OWN_NAMESPACES = "pid", "mount", "uts", "ipc", "network", "cgroup"  # Docker's
FOR_CHILDREN = CLONE_NEWPID | CLONE_NEWTIME  # a process makes these for its next child
FORWARDED = SIGNALS - {getattr(_signal, "SIG" + name) for name in (
    "CHLD PIPE URG TSTP TTIN TTOU CONT KILL STOP SYS SEGV BUS ILL FPE TRAP ABRT").split()}
DEADLY = {_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP, _signal.SIGQUIT}

# Namespaces

def has_namespace(spec, kind):
    """True if the container gets a namespace of this kind of its own."""
    return any(row["type"] == kind and not row.get("path") for row in spec["linux"]["namespaces"])

def pipe_device():
    """The device, the kernel's own, on which all pipes without a name are."""
    ends = os.pipe()
    device = os.fstat(ends[0]).st_dev
    for end in ends:
        os.close(end)
    return device

def new_namespaces(spec):
    """The flags of the namespaces that are made for a container before it is in its cgroup."""
    return sum(flag for kind, (flag, _) in NAMESPACES.items()
               if kind != "cgroup" and has_namespace(spec, kind))

NS_GET_NSTYPE = 0xB703  # linux/nsfs.h

def joined_namespaces(spec):
    """The namespaces that are somebody else's, open: [(descriptor, flag)]."""
    paths, found = {row["type"]: row.get("path") for row in spec["linux"]["namespaces"]}, []
    for kind, (flag, _) in NAMESPACES.items():
        if paths.get(kind):
            found.append((open_namespace(paths[kind]), flag))
            is_one = False
            with tolerate(errno.ENOTTY):  # another kind of file
                is_one = fcntl.ioctl(found[-1][0], NS_GET_NSTYPE) == flag
            if not is_one:
                raise Failure(f"namespace, on {paths[kind]}: it is no {kind} namespace")
    return found

def open_namespace(path):
    with blame(f"namespace, on {path}"):
        return Descriptor(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

def back_to_own_pids():
    """Have threads again, and children that outlive a container's PID 1; False where a user
    namespace around us has no say in its PID namespace."""
    with tolerate(errno.EPERM), open_namespace("/proc/self/ns/pid") as own:
        os.setns(own, CLONE_NEWPID)  # the next child is a neighbour again
        return True
    return False

# Birth

INIT_NAME = "mydocker:init"  # until it becomes the command: proc_pid_comm(5)

class Birth:
    """A process on its way inside: init, or join for `exec`.  Its interpreter boots while we find
    out what it is to be; before that only its PID and mount namespaces are made.  A user or time
    namespace, or another's PID namespace, must be known first: then SPEC is given.
    OUTLIVE: it may live longer than we.  `with` kills it if something fails."""
    def __init__(self, role, outlive=False, program=None, spec=None):
        self.role, self.outlive, self.program = role, outlive, program or own_bytecode()
        self.joins, self.flags, self.offsets = [], CLONE_NEWPID if role == "init" else 0, ""
        if spec:
            self.offsets = time_offsets(spec["linux"])
            self.joins, self.flags = joined_namespaces(spec), new_namespaces(spec)
        self.guest = is_guest("pid")  # then another makes the PID namespace: there's no way back
        self.mapped = CLONE_NEWUSER in (self.flags & CLONE_NEWUSER, *(f for _, f in self.joins))
        self.channel, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)  # ignored, it would take the exit status
        before = _signal.pthread_sigmask(_signal.SIG_BLOCK, FORWARDED | {_signal.SIGCHLD})
        self.pid = self.fork(theirs)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, before)
        theirs.close()
        if self.mapped:
            self.pid = map_ids(self.pid, self.channel, spec["linux"])
        elif self.guest and self.flags & FOR_CHILDREN:
            self.pid = inherit(self.pid, self.channel)
            tell(self.channel, "go")  # see fork_inside

    def fork(self, channel):
        """Make the process; what belongs to a user namespace is made when it is in that."""
        early = 0 if self.mapped or self.guest else FOR_CHILDREN
        if not early:
            prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # the child's child becomes ours
        for fd, flag in self.joins:
            if flag & early:
                os.setns(fd, flag)  # the next child is in another's
        if self.flags & early:
            os.unshare(self.flags & early)  # the next child is PID 1 of a new PID namespace
        if self.offsets:
            write_value("/proc/self/timens_offsets", self.offsets)  # before anybody is in it
        with call_named("fork"):
            pid = os.fork()  # this process goes on outside, the child inside
        if pid:
            back_to_own_pids()
            expect_moves()
            return pid
        first = ~early & (FOR_CHILDREN | CLONE_NEWUSER | self.lent())
        try:
            for fd, flag in self.joins:
                if flag & first:
                    os.setns(fd, flag)
            if self.mapped:
                become_mapped(channel, self.flags)
            elif self.flags & FOR_CHILDREN & ~early:
                os.unshare(self.flags & FOR_CHILDREN)  # the next child is PID 1 of a new one
                fork_inside(channel)
            reexec_inside(self.role, channel, self.program, self.outlive)
        except Exception as error:
            send(channel, describe(error, "container"))
        finally:
            os._exit(125)

    def lent(self):
        """The namespaces of others that it joins before it makes a user namespace, whose root has
        no power over them."""
        return CLONE_NEWNET | CLONE_NEWIPC if self.flags & CLONE_NEWUSER else 0

    def tell_place(self, stdin, spec=None, preserved=0, report=False):
        """Tell it what it starts with: its fd 0, the namespaces that are left to make or to join,
        and how many descriptors from 3 on are the command's.  It is to REPORT when there is a
        network namespace."""
        flags, joins, others = 0, [], []
        if spec:
            elsewhere = FOR_CHILDREN | CLONE_NEWUSER | CLONE_NEWNS  # made or joined at other times
            flags = new_namespaces(spec) & ~elsewhere
            self.joins = self.joins or joined_namespaces(spec)
            joins = [row for row in self.joins if not row[1] & (elsewhere | self.lent())]
            if not has_namespace(spec, "mount"):
                others = open_others_mounts(spec)
        message = flags, [flag for _, flag in joins], preserved, report
        tell(self.channel, message, [stdin, *(fd for fd, _ in joins), *others])  # sync 0
        for fd in [*others, *(fd for fd, _ in self.joins)]:
            os.close(fd)

    def tell_spec(self, spec, ends):
        """Tell it what it is to be, with what of its files must be opened outside, and ENDS."""
        trees = []
        if spec["root"].get("mapped") or tree_rows(spec):
            trees = open_trees(spec)
        tell(self.channel, spec, [*trees, *ends])  # sync 1
        for fd in trees:
            os.close(fd)

    def take_terminal(self):
        """The master end of the terminal that comes next: sync 2."""
        message, fds = receive(self.channel)
        if not fds:
            message = message or (f"{self.role}: it was killed before the command started", 137)
            raise Failure(*message)
        return fds[0]

    def await_command(self):
        """Wait until the command runs; returns its terminal's master end, or None.  Raises what
        stopped it.  That it runs is said, not concluded from silence."""
        master, executes = None, False
        with Descriptor(watch_signals()) as signals:
            while True:
                if self.channel.fileno() in readable_fds([signals, self.channel.fileno()]):
                    message, fds = receive(self.channel)
                    if message is None:
                        if executes and self.has_executed():
                            return master  # sync 3: closed by the exec
                        wait_status = os.waitpid(self.pid, 0)[1]
                        raise Failure(f"{self.role}: it was killed before the command started",
                                      exit_status(wait_status) or 125)
                    if fds:
                        master = fds[0]  # sync 2
                    elif message == "executes":
                        executes = True
                    elif isinstance(message, tuple):
                        raise Failure(*message)
                for number in set(take_signals(signals)) & DEADLY:
                    raise Interrupted("run: interrupted before the command started", 128 + number)

    def has_executed(self):
        """True if init's name went with its program: an exec gives a process a new one."""
        with tolerate(errno.ENOENT, errno.ESRCH):
            return read_all(f"/proc/{self.pid}/comm") != INIT_NAME + "\n"
        return True

    def end(self):
        """Let it be nothing."""
        self.channel.close()
        kill_child(self.pid)

    def __enter__(self):
        _signal.pthread_sigmask(_signal.SIG_BLOCK, FORWARDED | {_signal.SIGCHLD})
        return self

    def __exit__(self, kind, *_):
        self.channel.close()
        if kind:
            kill_child(self.pid)

def start_early(role, outlive=False):
    """A Birth that begins before the spec is known; None where we couldn't do the rest then."""
    possible = role == "join" or is_guest("pid") or back_to_own_pids()
    return Birth(role, outlive) if possible else None

def start_init(spec, birth=None, **how):
    """A Birth that fits a spec: the one that has begun, or one that is begun with it."""
    kinds = {row["type"] for row in spec["linux"]["namespaces"]}
    if has_namespace(spec, "pid") and not kinds & {"user", "time"}:
        return birth or Birth("init", **how)
    if birth:
        birth.end()
    return Birth("init", spec=spec, **how)

def time_offsets(linux):
    """What a time namespace's clocks are ahead of the host's, as proc(5) has it."""
    rows = linux.get("timeOffsets") or {}
    return "".join(f"{clock} {row.get('secs', 0)} {row.get('nanosecs', 0)}\n"
                   for clock, row in rows.items())

def own_bytecode():
    """A sealed memfd with this program, compiled: init starts from it. It compiles nothing a second
    time, reads no file that somebody could have changed since, and finds its code with any root.
    See memfd_create(2), fcntl(2) "File Sealing"."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create("mydocker", flags | MFD_NOEXEC_SEAL)
    except OSError:  # before Linux 6.3
        fd = os.memfd_create("mydocker", flags)
    book = globals().get("BOOK")  # the installed bytecode's descriptor
    if book is None:
        write_all(fd, memoryview(whole_bytecode()))
    else:
        copy_file(book, fd)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK
                | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
    return fd

def copy_file(source, target):
    """Copy what is in a file to another one, in the kernel: sendfile(2)."""
    at, size = 0, os.fstat(source).st_size
    while at < size:
        at += os.sendfile(target, source, at, size - at)

def whole_bytecode():
    """This program as a .pyc, where it was compiled at its start."""
    from _frozen_importlib_external import MAGIC_NUMBER  # importlib.util would cost 3 ms
    frame = sys._getframe()
    while frame.f_code.co_name != "<module>":
        frame = frame.f_back
    return MAGIC_NUMBER + bytes(12) + marshal.dumps(frame.f_code)

def inherit(pid, channel):
    """Inherit the child that a process has made in a PID namespace: see fork_inside; its pid."""
    answer = receive(channel)[0]
    if not isinstance(answer, int):
        raise Failure(*answer or ("exec: it was killed before the command started", 137))
    os.waitpid(pid, 0)
    return answer

def reexec_inside(role, channel, program, outlive):
    """In the child: execute this file again, as `init` or `join`, with mounts of its own.  Nothing
    inside must overwrite what it maps of the host: CVE-2019-5736.  OUTLIVE: it may live longer than
    we."""
    python = own_python()  # in a chroot it has another name afterwards
    if not outlive:
        prctl(PR_SET_PDEATHSIG, _signal.SIGKILL, 0, 0, 0)  # if run dies, however it dies, so do we
    os.unshare(CLONE_NEWNS)  # a mount table of its own
    leave_chroot()
    mount(None, "/", None, MS_REC | MS_SLAVE, None)  # what we mount, the host must not see
    places = mapped_places(python)
    for path in places:
        mount(path, path, None, MS_BIND, None)  # a mount for the next line to act on
        set_read_only(path)  # so nobody inside can open it for writing
    for fd in (channel.fileno(), program):
        os.set_inheritable(fd, True)
    words = [python, "-I", "-S", "-X", "utf8", f"/proc/self/fd/{program}"]
    for name in {*os.environ} - {"LD_LIBRARY_PATH", "MYDOCKER_LOG", "MYDOCKER_EXPLAIN"}:
        del os.environ[name]  # nothing of the caller's is to be seen inside
    with call_named("execvp"):
        os.execvp(python, [*words, role, str(channel.fileno()), *places])  # this file again

def own_python():
    """This Python's file, by a name that it has here: the kernel doesn't know any after a change of
    the mount namespace, if the file isn't on the root's own mount."""
    python = os.readlink("/proc/self/exe")
    if os.path.exists(python) and os.path.samefile(python, "/proc/self/exe"):
        return python
    return os.path.realpath(sys.executable)

def mapped_places(python):
    """Where on the host lies what this program maps: PYTHON itself, its libraries and modules."""
    rows = [row for row in read_all("/proc/self/maps").split("\n") if ".so" in row]
    files = {"/" + row.partition("/")[2] for row in rows} - {python}
    found = {path for path in files if os.path.exists(path)}  # see own_python
    folders = {os.path.dirname(path) for path in found}
    if files != found:
        folders.add(sys.exec_prefix + "/lib")
    folders |= {path for path in sys.path if path.endswith("/lib-dynload")}
    places = {python} | {path for path in folders if os.path.isdir(path)} - {"/"}
    return [path for path in places  # without those that another one holds
            if not any(path.startswith(other + "/") for other in places)]

def set_read_only(path):
    """Make the mount at PATH, alone, read-only."""
    attributes = struct.pack("QQQQ", MOUNT_ATTR_RDONLY, 0, 0, 0)
    with tolerate(*NOT_TO_BE_HAD):
        mount_setattr(AT_FDCWD, path, 0, attributes, len(attributes))  # read-only, the rest stays
        return
    set_mount_flags(path, MS_RDONLY, whole=0)

def kill_child(pid):
    """Kill a container's PID 1, and with it all of its processes, and wait for it."""
    with tolerate(errno.ESRCH, errno.ECHILD):  # it has been waited for already
        os.kill(pid, _signal.SIGKILL)
        os.waitpid(pid, 0)

# Life

def watch_signals():
    """A descriptor that becomes readable when one of the blocked signals arrives: signalfd(2)."""
    mask = bytearray(128)  # sigset_t of both C libraries
    for number in FORWARDED | {_signal.SIGCHLD}:
        mask[(number - 1) // 8] |= 1 << (number - 1) % 8
    return signalfd(-1, bytes(mask), os.O_CLOEXEC | os.O_NONBLOCK)  # signals as bytes to read

def take_signals(signals):
    """The numbers of the signals that have arrived: signalfd_siginfo's first field, ssi_signo."""
    data = b""
    with tolerate(errno.EAGAIN):
        data = os.read(signals, 128 * 64)
    return [struct.unpack_from("I", data, start)[0] for start in range(0, len(data), 128)]

def start_container(monitor, birth=None):
    """Start the container of MONITOR, and add to that what is needed to watch it."""
    spec, record = monitor["spec"], monitor["record"]
    pipes = output_pipes(spec["process"], monitor["attached"],
                         monitor.get("hidden") or monitor.get("deaf"))
    if "uidMappings" in spec["linux"]:
        give_pipes(spec["linux"], [monitor["stdin"], *([end for _, end in pipes] or (1, 2))])
    spec, lent = borrow_namespaces(spec, record)
    try:
        with start_init(spec, birth, program=monitor.get("program")) as birth:
            monitor["program"] = birth.program
            birth.tell_place(monitor["stdin"], spec, report=has_cable(record))
            record["cgroups"] = make_cgroups(record["cgroups"], spec["linux"]["resources"],
                                             birth.pid)
            if has_cable(record):
                connect_container(monitor, birth.pid, birth.channel)
            prepare_container(spec, record)
            spec = dict(spec, filter=filter_of(spec["linux"]))
            birth.tell_spec(spec, [end for _, end in pipes])  # sync 1
            if has_cable(record):
                introduce(record)  # while init works
            master = birth.await_command()
            change_record(record, pid=birth.pid, pid_start=process_start(birth.pid),
                          started=time.time(), cgroups=record["cgroups"])
            note_container(record, "start")
            if record.get("health"):
                begin_checks(monitor)
            if master is not None or not monitor["attached"]:
                open_door(monitor)
    except (Failure, OSError):
        for end in read_ends(pipes):  # one, where 1 and 2 are one file
            os.close(end)
        raise
    finally:
        for fd in {*lent, *[end for _, end in pipes]}:
            os.close(fd)
    wanted = record.get("log", True) is not None  # see plan_log
    monitor.update(pid=birth.pid, master=master, outputs=read_ends(pipes), typed=b"",
                   logged=wanted and (record["keep"] or not monitor["attached"]))

def in_background(work, what):
    """Call work(report) in a child in a session of its own; returns when it calls report(). Raises
    what it raises before that; WHAT is the command's name."""
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    child = os.fork()  # the monitor
    if child:
        theirs.close()
        message = receive(ours)[0]
        ours.close()
        if message != "ready":
            raise Failure(*message or ("run: the monitor was killed", 137))
        return

    def leave_caller():
        """Keep nothing of the parent's terminal and directory, and tell it that all is well."""
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.chdir("/")
        tell(theirs, "ready")
        theirs.close()

    try:
        os.setsid()
        for fd in open_fds():
            if os.get_inheritable(fd):  # the caller's: ours close on exec
                os.close(fd)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        work(leave_caller)
    except Exception as error:
        send(theirs, describe(error, what))
    finally:
        os._exit(0)

# ── 7. Inside the container ──────────────────────────────────────────────────
# What runs on this side is `init`: this file again, started by `run` in the new namespaces, and
# soon to be replaced by the command.  It knows nothing but the spec.  Each step says why it
# stands where it does; if one fails, the command never starts.
#
# `exec` starts this file as `join`, which enters namespaces that are there and takes the same last
# steps.  It fails closed: a namespace that can't be entered ends it, long before the command.

TIOCSCTTY = 0x540E  # asm-generic/ioctls.h

@command("FD", HIDDEN, takes=ANY)
def cmd_init(_, words):
    go_inside("init", words, container_main)

@command("FD", HIDDEN, takes=ANY)
def cmd_join(_, words):
    go_inside("join", words, joined_main)

def go_inside(role, words, become):
    """Let BECOME replace this process; whatever stops it is told to the other side."""
    try:
        channel = _socket.socket(fileno=int(words[0]))
    except (IndexError, ValueError, OSError):
        raise Failure(f"{role}: it can't be typed, only `run` starts it, inside the new namespaces",
                      hint="mydocker run -it /bin/sh") from None
    os.set_inheritable(channel.fileno(), False)
    if os.environ.get("MYDOCKER_EXPLAIN"):
        explain_calls()
    try:
        become(channel, take_place(channel), words[1:])
    except Exception as error:
        if channel.fileno() < 0:  # `create` has left
            message, status, _ = describe(error, "container")
            print_line(f"mydocker: {message}")
            os._exit(status)
        tell(channel, describe(error, "container"))
    finally:
        os._exit(125)  # nothing of the outside's clean-up may run twice

def take_place(channel):
    """Go where the outside says, with its descriptors and no others (CVE-2024-21626); returns those
    of mounts that are somebody else's."""
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # nobody inside may look into this process: CVE-2016-9962
    prctl_text(PR_SET_NAME, INIT_NAME)  # what `ps` shows, until it becomes the command
    message, fds = receive(channel)  # sync 0: the outside knows what this is to be
    if message is None:
        os._exit(125)  # it died meanwhile
    flags, joins, preserved, report = message
    stdin, *others = fds
    os.dup2(stdin, 0)  # the caller's with -i, else /dev/null
    os.close(stdin)
    for fd in open_fds():
        if fd > 2 + preserved and os.get_inheritable(fd):  # ours close on exec
            os.close(fd)
    for flag in joins:
        with Descriptor(others.pop(0)) as fd:
            os.setns(fd, flag)  # a namespace that is there already
    if flags:
        os.unshare(flags)  # a host name, IPC and network of its own
    if report:
        with open_namespace("/proc/self/ns/net") as own:  # others take CAP_SYS_PTRACE to see it
            send(channel, "apart", [own])  # there is a network namespace to lay a cable to
    return others

def container_main(channel, others, places):
    """Turn this process into the container's command, in runc's order.  Returns only by raising."""
    narrate("init come on")
    spec, outputs = receive(channel)  # sync 1: the outside has done its part
    if spec is None:
        os._exit(125)  # it died meanwhile
    own_mounts, dev = has_namespace(spec, "mount"), None
    for row in [spec["root"], *spec["mounts"]]:
        if row.get("opened"):
            row["tree"] = outputs.pop(0)
            row["source"] = f"/proc/self/fd/{row['tree']}"
    process, gate = spec["process"], None
    if spec.get("gate"):
        gate = outputs.pop()
    narrate("command: " + " ".join(process["args"]))
    narrate("command:" + process["args"][0])
    own_root = spec["root"]["path"] != "/"
    for path in places:
        umount2(path, MNT_DETACH)  # out of sight, and still read-only
    if has_namespace(spec, "network"):
        bring_up_loopback()
    if has_namespace(spec, "cgroup"):
        os.unshare(CLONE_NEWCGROUP)  # after run chose our cgroup: it becomes the namespace's "/"
    if own_mounts:
        dev = build_root(spec)
    if spec.get("hooks"):
        import subprocess  # for all of them: soon it would be the container's, CVE-2019-14271
        send(channel, "hooks")  # the outside runs its own now
        receive(channel)
        root = spec["root"]["path"]
        run_hooks(spec, spec["states"]["creating"], "createContainer", environment={},
                  directory=root if os.path.isdir(root) else None)
    if not own_mounts:
        enter_others_mounts(spec, others)
    elif own_root:
        enter_root(spec)
    set_sysctls(spec["linux"].get("sysctl") or {})  # through the container's own /proc
    hide_paths(spec)
    name_host(spec)
    user = find_user(process["user"])  # by the container's files
    for row in spec["mounts"]:
        if row.get("chown"):
            chown_tree(os.open("/", os.O_PATH | os.O_CLOEXEC), row["destination"][1:], *user[:2])
    slave = hand_out_terminal(channel, process, user[0])
    fresh = dev is not None and os.path.samestat(dev, os.stat("/dev"))  # as we made it
    if slave is not None and own_root and fresh:
        os.close(os.open("/dev/console", os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        mount(f"/proc/self/fd/{slave}", "/dev/console", None, MS_BIND, None)  # for boot messages
    if fresh:
        close_dev(spec)
    enter_workdir(process["cwd"])
    pipes = pipe_device()
    limit_process(process)  # not before: these are init's limits, too; CAP_SYS_RESOURCE is there
    set_label(process)
    take_traits(process)
    if not process["terminal"]:
        give_streams([0, *(outputs or (1, 2))], user[0], pipes, gate is not None)
    confine(process, user, spec["filter"], channel)
    if gate is None:
        prctl(PR_SET_PDEATHSIG, _signal.SIGKILL, 0, 0, 0)  # the change of ids cleared it
    if spec["annotations"].get("mydocker.init") or (
            gate is None and loses_death_signal(process, user[0])):
        become_reaper(channel, slave, outputs)  # returns in the child; PID 1 stays behind
    take_session(slave, outputs)
    if gate is not None:
        wait_at_gate(channel, gate, process)
    try:
        if gate is not None:
            run_hooks(spec, spec["states"]["created"], "startContainer",
                      environment=read_environment(process["env"]))
        become_command(channel, process, user[3])
    finally:
        if gate is not None:
            os.write(gate, b"!")  # for start_created

def name_host(spec):
    """Give the container's UTS namespace its names: not the host's."""
    if "uts" not in {row["type"] for row in spec["linux"]["namespaces"]}:
        return
    for call, name in ((sethostname, "hostname"), (setdomainname, "domainname")):
        if spec.get(name):
            call(spec[name], len(encode(spec[name])))  # the UTS namespace's, not the host's

def joined_main(channel, *_):
    """Turn this process into one more command of a running container.  Returns only by raising."""
    (process, outlive, program, outputs, flags, engine, rooted), namespaces = receive(
        channel)  # sync 1
    if outputs == "piped":
        outputs = [namespaces.pop(-2), namespaces.pop()]
    root = namespaces.pop() if rooted else None
    pipes = pipe_device()
    set_label(process)  # while /proc is the host's: a container's can be a fake, CVE-2025-52881
    join_namespaces(namespaces, flags)
    if root is not None:
        change_root(root)
    for fd in namespaces:
        os.close(fd)  # nothing of the host's is to be seen inside but the channel
    user = find_user(process["user"])
    enter_workdir(process["cwd"])
    take_traits(process)
    if not process["terminal"]:
        give_streams([0, *(outputs or (1, 2))], user[0], pipes, engine)
    # Nor can it be seen yet: with CAP_SYS_PTRACE it could be used.
    confine(process, user, program, channel)
    slave = hand_out_terminal(channel, process, user[0])  # sync 2: there may be no descriptor later
    fork_inside(channel)  # the outside limits what comes of it
    if not outlive:
        prctl(PR_SET_PDEATHSIG, _signal.SIGKILL, 0, 0, 0)  # `exec` takes it along when it dies
    take_session(slave, outputs)
    limit_process(dict(process, oomScoreAdj=None))  # where the outside may not; that it always may
    become_command(channel, process, user[3])

def fork_inside(channel):
    """Fork into a PID namespace, as only a new process can be in it; returns in the child, when the
    outside has inherited it."""
    child = os.fork()  # into the PID namespace
    if child:
        send(channel, child)
        os._exit(0)
    if receive(channel)[0] is None:  # sync 1, once more: it has
        os._exit(125)

def join_namespaces(fds, flags):
    """Enter namespaces, all or none by the pidfd that FDS may start with, or else one by one."""
    if len(fds) > len(flags):
        with tolerate(errno.EINVAL):  # before Linux 5.8 a pidfd is no namespace
            os.setns(fds[0], sum(flags))  # where the container is, in one step
            return
    for fd, flag in zip(fds[-len(flags):], flags):
        os.setns(fd, flag)  # where the container is

def take_traits(process):
    """What a process is besides its user and its limits."""
    leave_keyring(process)
    if {"personality", "memoryPolicy"} & {*process}:
        set_personality(process)

def enter_workdir(path):
    """Change to the command's working directory."""
    with blame(f"--workdir, on {path}"):
        os.chdir(path)  # where the command starts
    if not os.getcwd().startswith("/"):  # CVE-2024-21626: "(unreachable)" is outside
        raise Failure(f"--workdir, on {path}: it lies outside of the container")

def take_session(slave, outputs):
    """Leave the caller's session, and its descriptors where the container has its own."""
    os.setsid()  # away from the caller's session: its terminal can't be ours
    if slave is not None:
        fcntl.ioctl(slave, TIOCSCTTY, 0)  # job control works from the first line on
    take_descriptors(slave, outputs)

def take_descriptors(slave, outputs):
    """Make the container's terminal, or the pipes to its log, the standard descriptors."""
    for source, fd in zip(outputs or [slave] * 3, (1, 2) if outputs else (0, 1, 2)):
        if source is not None:
            os.dup2(source, fd)  # the caller's own descriptor is gone with this

def give_streams(fds, uid, pipes, engine):
    """Let the command's user open /dev/stdout and the like, which is to open what they are anew.
    PIPES: see pipe_device().  ENGINE: files are the container's, too, as with runc.  A device never
    is: it could be the host's /dev/null or somebody's terminal."""
    for fd in fds:
        info = os.fstat(fd)
        theirs = engine and not (stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode))
        if info.st_uid != uid and (theirs or info.st_dev == pipes):
            with tolerate(errno.EPERM, errno.EINVAL, errno.EROFS):  # a user namespace; runc does so
                os.fchown(fd, uid, -1)  # its user's, who may open /dev/stdout

def loses_death_signal(process, uid):
    """True if the command's program changes ids or gains capabilities: with its exec the kernel
    would forget what takes it along when `run` dies, so that it can't be PID 1.  See prctl(2),
    PR_SET_PDEATHSIG.  Of a later exec nobody hears: there the next command sweeps."""
    if not uid or process["noNewPrivileges"]:
        return False
    path = read_environment(process["env"]).get("PATH", DEFAULT_PATH)
    with tolerate():  # whatever is wrong with it, the exec will say
        program = find_program(process["args"][0], path)
        if os.stat(program).st_mode & (stat.S_ISUID | stat.S_ISGID):
            return True
        return bool(os.getxattr(program, "security.capability"))
    return False

def become_reaper(channel, slave, outputs):
    """Fork; the child goes on to be the command, PID 1 passes signals to it and buries the dead."""
    prctl_text(PR_SET_NAME, "mydocker-reaper")  # it is past what INIT_NAME stands for
    end, hold = os.pipe()
    child = os.fork()  # --init: the command is not PID 1 and needn't act like it
    if not child:
        os.close(hold)
        os.read(end, 1)  # until PID 1 has closed what is the host's: the command may look into it
        os.close(end)
        return
    channel.close()  # its end of file must mean that the child has executed
    take_descriptors(slave, outputs)  # nor does PID 1 keep the caller's
    for fd in {*open_fds()} - {hold}:
        os.close(fd)
    os.close(hold)
    _signal.pthread_sigmask(_signal.SIG_BLOCK, SIGNALS)
    while True:
        number = _signal.sigwait(SIGNALS)
        if number != _signal.SIGCHLD:
            os.kill(child, number)
            continue
        while (gone := os.waitpid(-1, os.WNOHANG))[0]:
            if gone[0] == child:
                os._exit(exit_status(gone[1]))

# The last steps

def become_command(channel, process, home):
    """The last steps, the same for every process of a container."""
    environment = read_environment(process["env"])
    environment["HOME"] = environment.get("HOME") or home
    if channel.fileno() >= 0:  # `create` has left long ago
        send(channel, "executes")
    forget_signals()
    execute(process["args"], environment)

def read_environment(rows):
    """An environment in the specification's form, ["NAME=value"], as a dict."""
    return pairs_of(rows)

def forget_signals():
    """Give the command the signals of a fresh process: Python ignores two, `run` blocks most."""
    for number in SIGNALS - {_signal.SIGKILL, _signal.SIGSTOP}:
        _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())

def find_program(name, path):
    """Where a command's file is, by PATH as execvp(3) does; 127 if nowhere, 126 if unusable."""
    if "/" in name:
        return name
    found = [f"{directory or '.'}/{name}" for directory in path.split(":")]
    found = [program for program in found if os.path.isfile(program)]
    if not found:
        raise Failure(f"exec, on {as_typed(name)}: executable file not found in $PATH", 127)
    return next((program for program in found if os.access(program, os.X_OK)), found[0])

def execute(args, environment):
    """Become the command: execve(2).  Raises Failure with Docker's statuses, 126 and 127."""
    program = find_program(args[0], environment.get("PATH", DEFAULT_PATH))
    try:
        os.execve(encode(program), list(map(encode, args)),  # from here on it's the command's
                  {encode(key): encode(value) for key, value in environment.items()})
    except OSError as error:
        missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
        why = reason(error)  # "permission denied" for a directory, too: engines look for that
        if missing and os.path.exists(program):
            why += f" (its interpreter, {interpreter_of(program)})"
        raise Failure(f"exec, on {program}: {why}", 127 if missing else 126) from None

def interpreter_of(program):
    """The program that a script or an ELF file names as its interpreter, for an error message."""
    with open(program, "rb") as file:
        head = file.read(4096)
    if head.startswith(b"#!"):
        return os.fsdecode(head[2:].split(b"\n")[0].strip())
    start = head.find(b"/", 64)  # PT_INTERP's text lies in the first page
    return os.fsdecode(head[start:].split(b"\0")[0]) if start > 0 else "?"

# ── 8. Root file system ──────────────────────────────────────────────────────
# What a container sees of files is a list of mounts, applied in order in a mount namespace of its
# own, so that the host never sees one and the kernel removes them all with the last process.  A
# mount is a row {destination, type, source, options} as in the OCI's config.json: adding one means
# adding a row outside; nothing here needs to change.
#
# On the host's own root ("/") the rows are put over the host's directories and that is all.  A
# root of the container's own is built from below, while the host's paths can still be reached,
# then pivot_root swaps it for the host's, which is detached: there is no way back because there
# is nothing to go back to.

# linux/magic.h
PROC_SUPER_MAGIC = 0x9FA0
MOUNT_ATTR__ATIME, MOUNT_ATTR_NOATIME, MOUNT_ATTR_STRICTATIME = 0x70, 0x10, 0x20
MOUNT_FLAGS = {  # mount(8)'s words, the one that sets a flag and its opposite: (flag, set it?)
    word: (flag, wanted) for words, flag in (
        ("defaults", 0), ("ro rw", MS_RDONLY), ("nosuid suid", MS_NOSUID), ("nodev dev", MS_NODEV),
        ("noexec exec", MS_NOEXEC), ("sync async", MS_SYNCHRONOUS), ("dirsync", MS_DIRSYNC),
        ("remount", MS_REMOUNT), ("noatime atime", MS_NOATIME), ("bind", MS_BIND),
        ("nodiratime diratime", MS_NODIRATIME), ("relatime norelatime", MS_RELATIME),
        ("strictatime nostrictatime", MS_STRICTATIME), ("rbind", MS_BIND | MS_REC),
        ("nosymfollow symfollow", MS_NOSYMFOLLOW), ("silent loud", MS_SILENT),
        ("mand nomand", MS_MANDLOCK), ("iversion noiversion", MS_I_VERSION),
        ("lazytime nolazytime", MS_LAZYTIME))
    for word, wanted in zip(words.split(), (True, False))}
MOUNT_ATTRS = {  # what each mount has of its own, a bind mount too: {flag: mount_setattr(2)'s}
    MS_RDONLY: 1, MS_NOSUID: 2, MS_NODEV: 4, MS_NOEXEC: 8, MS_NODIRATIME: 0x80,
    MS_NOSYMFOLLOW: 0x200000, MS_NOATIME: MOUNT_ATTR_NOATIME,
    MS_STRICTATIME: MOUNT_ATTR_STRICTATIME, MS_RELATIME: 0}
ATIMES = MS_NOATIME | MS_STRICTATIME | MS_RELATIME  # one of the three
RECURSIVE = {  # the OCI's words for a mount with all below it
    "r" + word: bits for word, bits in MOUNT_FLAGS.items() if bits[0] in MOUNT_ATTRS}
PROC_FILES = ["/proc/" + name for name in (  # what lxcfs and the like give a container of its own
    "cpuinfo diskstats meminfo stat swaps uptime loadavg slabinfo kernel/ns_last_pid "
    "sys/crypto/fips_enabled").split()]
PROPAGATION = {
    prefix + word: flag | more for prefix, more in (("", 0), ("r", MS_REC)) for word, flag in (
        ("private", MS_PRIVATE), ("slave", MS_SLAVE), ("shared", MS_SHARED),
        ("unbindable", MS_UNBINDABLE))}
OWN_MOUNTS = "layers", "copy"  # types that only our own specs have
offer("run",
      ("--rootfs", "DIR", "use this directory as the root, as it is"),
      ("--read-only", "", "let nothing be written to the root file system"),
      ("--ephemeral", "", "on the host's root: let everything be written, then throw it away"),
      ("--tmpfs", "PLACE[:OPTS]...", "mount an empty file system in memory"),
      ("--shm-size", "SIZE", "size of /dev/shm (default: 64m)"))

# Outside: the rows

def mount_row(destination, kind, *options, source=None):
    return {"destination": destination, "type": kind, "source": source or kind,
            "options": list(options)}

def kernel_mounts(shm_size=64 << 20):
    """The rows that give a container its own view of the kernel: Docker's, in Docker's order."""
    return [mount_row(*words.split()) for words in (
        "/proc proc nosuid noexec nodev",
        "/dev tmpfs nosuid strictatime mode=755 size=65536k",
        "/dev/pts devpts nosuid noexec newinstance ptmxmode=0666 mode=0620 gid=5",
        "/sys sysfs nosuid noexec nodev ro",
        "/sys/fs/cgroup cgroup nosuid noexec nodev ro",
        "/dev/mqueue mqueue nosuid noexec nodev",
        f"/dev/shm tmpfs nosuid noexec nodev mode=1777 size={shm_size}")]

def layers_row(destination, layers, path):
    return mount_row(destination, "layers", *[f"lowerdir={layer}" for layer in layers],
                     f"upperdir={path}/upper", f"workdir={path}/work")

def image_row(layers, path):  # an image's layers, or else a copy of them, under what is written
    row = layers_row("/", layers, path)
    return dict(row, fallback=dict(row, type="copy", source=path + "/copy"))

def tree_rows(spec):
    """The rows whose files are opened outside: those that stay the host's peers, those that show
    other owners, and what root in a user namespace couldn't reach."""
    mapped = any(row["type"] == "user" for row in spec["linux"]["namespaces"])
    rows = []
    for row in spec["mounts"]:
        words = {*row["options"]}
        special = words & {"shared", "rshared", "idmap", "ridmap"} or row.get("uidMappings")
        special = special or "lender" in row
        if words & {"bind", "rbind"} and (special or mapped and not is_open_to_all(row["source"])):
            rows.append(row)
    return rows

# Inside: the mounts

def build_root(spec):
    """Make the container's root file system, with the host's still there; returns what the /dev is
    that was made, os.stat's, or None."""
    path, own = spec["root"]["path"], spec["root"]["path"] != "/"
    scratch = spec["annotations"].get("mydocker.scratch")
    if scratch:
        mount("tmpfs", scratch, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")  # takes what is written
    if "tree" in spec["root"]:
        path = spec["root"]["path"] = spec["root"]["source"]
        move_mount(spec["root"]["tree"], "", AT_FDCWD, "/",  # where everybody may go; no path's "/"
                   MOVE_MOUNT_F_EMPTY_PATH)
    elif own:
        mount(path, path, None, MS_BIND | MS_REC, None)  # pivot_root(2) wants a mount as new root
    if (scratch or spec["root"].get("readonly")) and not spec["linux"].get("rootfsPropagation"):
        keep_peers(spec["mounts"])
        mount(None, path, None, MS_REC | MS_PRIVATE, None)  # what comes later would be writable
    if not own and spec["root"].get("readonly"):
        set_mount_flags("/", MS_RDONLY)
    for row in spec["mounts"]:
        if row["type"] == "cgroup":
            row["trees"] = hierarchies()  # on the host's own root they are soon covered by /sys
            row["copies"] = {} if own else {
                point: open_tree(AT_FDCWD, place, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)
                for point, place in row["trees"].values() if place != point}  # for later
    dev, fresh = dev_row(spec), None
    for row in spec["mounts"]:
        fill = row is dev
        if fill:  # first: see close_dev
            row = dict(row, options=[word for word in row["options"] if word != "ro"])
        with Descriptor(os.open(path, OPEN_DIR)) as root:  # what lies on top by now
            mount_if_there(root, row)
            if fill:
                fresh = make_devices(root, spec)
    if own and not dev_rows(spec):
        with Descriptor(os.open(path, OPEN_DIR)) as root:
            add_devices(root, spec)
    return fresh

def keep_peers(rows):
    """Copy what is to get the host's later mounts, while its place still gets them."""
    for row in rows:
        flags, propagation, _ = parse_mount_options(row["options"])
        if flags & MS_BIND and MS_SLAVE in {kind & ~MS_REC for kind in propagation}:
            with tolerate(*NOT_TO_BE_HAD, errno.ENOENT):  # mount_bind() will say it
                row["tree"] = open_tree(AT_FDCWD, row["source"],  # a copy of the mount
                                        OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE)

def enter_root(spec):
    """Make what was built the root; no directory in it is needed for the old one: pivot_root(2)."""
    path = spec["root"]["path"]
    make_workdir(path, spec["process"]["cwd"])
    if spec["root"].get("readonly"):
        set_mount_flags(path, MS_RDONLY, whole=0)  # after its last directory
    os.chdir(path)  # the new root, by its old name
    if spec["root"].get("moved"):
        move_root(path)
        return
    pivot_root(".", ".")  # the new root is "/"; the old one lies on top of it
    umount2(".", MNT_DETACH)  # and is gone, with every path of the host
    os.chdir("/")  # the top of what is left: the new root
    for word in filter(None, [spec["linux"].get("rootfsPropagation")]):
        mount(None, "/", None, PROPAGATION[word], None)  # who sees mounts made in it
        for row in spec["mounts"]:
            keep_propagation(row)

def change_root(fd):
    """Have an open directory as the root; it is closed."""
    with Descriptor(fd):
        os.fchdir(fd)
        os.chroot(".")  # "/" is this directory, but the mounts are as they were
        os.chdir("/")

def mount_if_there(root, row):
    """Make one row's mount, or what it falls back on.  A place that was SEEN on the host, whose
    mounts come and go, may not be there any more: what could be protected has gone, too."""
    try:
        try:
            mount_one(root, row)
        except OSError as error:  # the kernel can't
            if "fallback" not in row:
                raise
            mount_one(root, dict(row["fallback"], refused=error))
    except (OSError, Failure) as error:
        if "seen" in row and not os.path.exists(row["seen"]):
            return
        refused = str(getattr(error, "filename", "")).startswith("mount(")  # by the kernel
        if refused and row["type"] not in OWN_MOUNTS:
            raise Failure(f"mount, on {row['source']} at {row['destination']}: {reason(error)}",
                          hint=hint_for(error)) from None
        raise

def mount_one(root, row):
    """Make one row's mount below ROOT, a descriptor that stands for the container's "/"."""
    flags, propagation, data = parse_mount_options(row["options"])
    if flags & MS_REMOUNT:
        return remount(root, row, flags, data)
    whole = [RECURSIVE[word] for word in row["options"] if word in RECURSIVE]
    directory = not flags & MS_BIND or os.path.isdir(row["source"])
    if row["type"] == "tmpfs" and "mode=" not in data:
        with tolerate(errno.ENOENT), Descriptor(open_in_root(root, row["destination"])) as fd:
            data += f",mode={stat.S_IMODE(os.fstat(fd).st_mode):o}"  # that of what is covered
    if flags & MS_BIND and "tree" not in row:
        with blame(f"mount, on {row['source']}"):
            os.stat(row["source"])  # else its place would be made, and stay
    target = mount_point(root, row, directory)
    if flags & MS_BIND and directory != stat.S_ISDIR(os.fstat(target).st_mode):
        raise Failure(f"mount, on {row['source']} at {row['destination']}: not a directory")
    place = f"/proc/self/fd/{target}"
    if row.get("copyUp") and is_of_image(root, target, row):
        fill_volume(place, row["source"])
    mounted = mounter_of(row)(place, row, flags, data)
    if not mounted and (propagation or whole or "tmpcopyup" in row["options"]):
        mounted = f"/proc/self/fd/{open_in_root(root, row['destination'])}"
    if "tmpcopyup" in row["options"]:
        copy_up(place, mounted, os.listdir(f"{place}/."))
    os.close(target)
    if row["type"] == "proc":  # is it still where it was mounted?  CVE-2023-27561
        with Descriptor(open_in_root(root, row["destination"], resolve=RESOLVE_NO_SYMLINKS)) as fd:
            if not is_proc(fd):
                raise Failure(f"mount, on {row['destination']}: it was moved meanwhile")
    if whole:
        set_mount_flags(mounted, *(sum(bits for bits, wanted in whole if wanted == want)
                                   for want in (True, False)))
    for change in propagation:
        mount(None, mounted, None, change, None)  # who sees mounts made below it later
    if mounted:
        os.close(int(mounted.rpartition("/")[2]))  # there may be a thousand more

def remount(root, row, flags, data):
    """Give what is mounted at a row's place other flags; of a bind mount, its own."""
    with blame(f"mount, on {row['destination']}: remount"), Descriptor(
            open_in_root(root, row["destination"])) as place:
        mount(None, f"/proc/self/fd/{place}", None, flags, data or None)  # what is there, changed

def parse_mount_options(options):
    """Mount options as (flags, propagation, data): data is what the file system itself reads."""
    flags, propagation, data = 0, [], []
    for option in options:
        if option in PROPAGATION:
            propagation.append(PROPAGATION[option])
        elif option in MOUNT_FLAGS:
            bits, wanted = MOUNT_FLAGS[option]
            flags = flags | bits if wanted else flags & ~bits
        elif option not in RECURSIVE and option != "tmpcopyup":
            data.append(option)
    return flags, propagation, ",".join(data)

def mount_point(root, row, directory):
    """Open, or make, the place of a row's mount.  /proc, /sys and /dev must be directories
    (CVE-2019-19921, CVE-2026-41579), and nothing else goes under /proc (CVE-2019-16884)."""
    where = "/" + os.path.normpath(row["destination"]).lstrip("/")
    kernels = row["type"] in ("proc", "sysfs") or where == "/dev"
    with blame(f"mount, on {where}"):
        fd = make_in_root(root, where, directory, RESOLVE_NO_SYMLINKS if kernels else 0)
    if kernels and not stat.S_ISDIR(os.fstat(fd).st_mode):
        raise Failure(f"mount, on {where}: it must be a directory")
    if row["type"] != "proc" and is_proc(fd) and where not in PROC_FILES:
        raise Failure(f"mount, on {where}: nothing can be mounted on or under /proc")
    return fd

def is_proc(fd):
    buffer = (INT * 64)()  # a struct statfs, whose first field is f_type
    fstatfs(fd, buffer)  # what kind of file system is this?  Not by /proc, which may be a fake
    return buffer[0] == PROC_SUPER_MAGIC

def mount_new(target, row, flags, data):
    mount(row["source"], target, row["type"], flags, data or None)  # the container's own

def mount_terminals(target, row, flags, data):
    """Mount a devpts; a user namespace may not have the group, tty, that terminals are given to."""
    words = data.split(",")
    gid = next((word[4:] for word in words if word.startswith("gid=")), "0")
    if is_id(gid) and in_user_namespace() and not has_id("gid", int(gid)):
        words.remove("gid=" + gid)
    mount_new(target, row, flags, ",".join(words))

def mount_bind(target, row, flags, _):
    """Show files of the host's at TARGET; returns the mount as a path that can't be moved, for it's
    never looked up a second time: CVE-2021-30465."""
    tree, whole = row.get("tree"), AT_RECURSIVE if flags & MS_REC else 0
    with tolerate(*NOT_TO_BE_HAD):
        tree = tree or open_tree(AT_FDCWD, row["source"],  # a copy of the mount
                                 OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | whole)
    if tree:
        move_mount(tree, "", AT_FDCWD, target,  # the same files, now here
                   MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_SYMLINKS)
    else:
        mount(row["source"], target, None, flags & (MS_BIND | MS_REC), None)  # the same files here
        tree = os.open(os.path.realpath(target), os.O_PATH | os.O_CLOEXEC)
    here = f"/proc/self/fd/{tree}"
    if any(flags & flag for flag in MOUNT_ATTRS):
        set_mount_flags(here, flags, whole=0)
    return here

def mount_layers(target, row, flags, _):
    """Stack directories with overlayfs, as numbers of open descriptors: 500, the kernel's limit,
    fit into the one page that mount(2) takes, and no character in a name can mean anything."""
    number = {"lowerdir": []}
    for option in row["options"]:
        key, _, path = option.partition("=")
        if key in ("upperdir", "workdir"):
            os.makedirs(path, 0o755, exist_ok=True)
        number.setdefault(key, []).append(os.open(path, os.O_PATH | os.O_CLOEXEC))
    here = os.open(".", os.O_PATH | os.O_CLOEXEC)
    os.chdir("/proc/self/fd")  # where descriptors have short names
    data = ",".join(f"{key}={':'.join(map(str, fds))}" for key, fds in number.items())
    if in_user_namespace():
        data += ",userxattr"  # its marks are user.overlay.*, and these are off
    else:
        data += ",redirect_dir=off,metacopy=off"  # so that commit understands what is written
    mount("overlay", target, "overlay", flags, data)  # layers below, what is written on top
    os.fchdir(here)  # back again
    for fd in [here, *sum(number.values(), [])]:
        os.close(fd)

def mounter_of(row):
    """The function that makes a row's mount; most kinds are the kernel's."""
    if parse_mount_options(row["options"])[0] & MS_BIND:
        return mount_bind
    if row["type"] == "cgroup":
        return mount_cgroups
    if row["type"] == "devpts":
        return mount_terminals
    own = dict(zip(OWN_MOUNTS, (mount_layers, mount_copy)))
    return own.get(row["type"], mount_new)

def keep_propagation(row):
    """Let a mount have its own propagation again, if it has one, after the root's went over it."""
    for change in parse_mount_options(row["options"])[1]:
        with Descriptor(os.open("/", os.O_PATH | os.O_CLOEXEC)) as root, Descriptor(
                open_in_root(root, row["destination"])) as place:
            mount(None, f"/proc/self/fd/{place}", None, change, None)  # as the row says

def make_workdir(root, path):
    """Make the command's working directory where it is missing, as Docker and runc do."""
    with Descriptor(os.open(root, OPEN_DIR)) as top, blame(f"--workdir, on {path}"):
        os.close(make_in_root(top, path))

def close_dev(spec):
    """Make /dev read-only if the spec wants it so: now all that belongs there is there."""
    row = dev_row(spec)
    if row and parse_mount_options(row["options"])[0] & MS_RDONLY:
        set_mount_flags("/dev", MS_RDONLY, whole=0)

def set_mount_flags(path, flags, clear=0, whole=AT_RECURSIVE):
    """Set some of MOUNT_ATTRS on the mount at PATH, and on all below it, and take others away."""
    to_set, to_clear = (sum(MOUNT_ATTRS[flag] for flag in MOUNT_ATTRS if bits & flag)
                        for bits in (flags, clear))
    to_clear |= MOUNT_ATTR__ATIME if (flags | clear) & ATIMES else 0
    attributes = struct.pack("QQQQ", to_set, to_clear, 0, 0)
    with tolerate(*NOT_TO_BE_HAD):
        mount_setattr(AT_FDCWD, path, whole, attributes, len(attributes))  # with all below
        return
    above = os.path.realpath(path)  # before Linux 5.12: one by one
    for point, _, options, *_ in mounts_here():
        if point == above or whole and point.startswith(above.rstrip("/") + "/"):
            kept = parse_mount_options(options)[0] & ~clear | MS_REMOUNT | MS_BIND
            mount(None, point, None, kept | flags & sum(MOUNT_ATTRS), None)  # now with this, too

# ── 9. `run` ─────────────────────────────────────────────────────────────────
# The options and the image's config become one document, the spec, in the form of the OCI's
# config.json: make_spec is the list of the plan_ calls, one for each chapter.

DETACH_KEYS = ("--detach-keys", "KEYS",
               "what to type to leave it running (default: ctrl-p,ctrl-q; '': nothing)")
PROCESS_OPTIONS = (  # of run and exec
    ("-i --interactive", "", "keep standard input open"),
    ("-t --tty", "", "give the command a terminal of its own"),
    ("-d --detach", "", "leave when the command runs (`run`: and print its id)"),
    ("-e --env", "K=V...", "set a variable; K alone takes the caller's value"),
    ("--env-file", "FILE...", "read variables from a file"),
    ("-u --user", "USER[:GROUP]", "run as this user, by name or number"),
    ("-w --workdir", "DIR", "start in this directory"),
    DETACH_KEYS,
)
NETWORK_WORDS = ("network publish publish-all ip mac-address network-alias add-host dns "
                 "dns-search dns-option link").split()  # without any the host's own root has none
HELPERS = {  # what gives a network without root: (its package, where a name server is asked)
    "pasta": ("passt", "169.254.1.1"),  # podman's choice, too
    "slirp4netns": ("slirp4netns", "10.0.2.3")}
APART = "none", "host", *HELPERS  # networks by which a container has no cable to others

@command("[OPTIONS] IMAGE [COMMAND] [ARG...]  or  run [OPTIONS] /PROGRAM [ARG...]",
         "run a command in a new container, from an image or on the host's own root",
         *PROCESS_OPTIONS,
         ("--entrypoint", "PROGRAM", "instead of the image's entrypoint"),
         ("-h --hostname", "NAME", "the container's host name"),
         ("--domainname", "NAME", "its NIS domain name"),
         ("--group-add", "GROUP...", "one more group for the user, by name or number"),
         ("--annotation", "K=V...", "a note in its config.json"),
         ("--pid", "host|container:ID", "see and signal the host's processes, or another's"),
         ("--ipc", "host|private|shareable|container:ID|none", "share the host's System V IPC and "
          "/dev/shm, or those of another, which is shareable; none: no /dev/shm"),
         ("--uts", "host", "share the host's name"),
         ("--cgroupns", "host|private", "see the host's cgroups as they are"),
         ("--init", "", "run a small init as PID 1 that passes signals on and reaps"),
         ("--cidfile", "FILE", "write the container's id to a new file"),
         ("-a --attach", "STREAM...", "only stdin, stdout or stderr, not all; the log has them"),
         ("--sig-proxy", "[=true|false]", "pass signals on (the default); false: leave it running"),
         takes=ANY, mixed=False)
def cmd_run(options, words):
    """Make a container and stay with it until it ends, or leave that to another process."""
    apply_log_options(options)
    leave, front = parse_keys(options["detach-keys"]), None
    deaf = options["sig-proxy"] == "false" and not options["tty"]
    if (deaf or options["tty"] and options["interactive"]) and not options["detach"]:
        front = keep_caller(deaf)
    late = options["detach"] or options["pid"] or wants_ids(options)
    birth = None if late else start_early("init")
    plan, words = plan_root(options, words)
    plan["network"], plan["wants"] = plan_network(options, plan)
    spec = make_spec(options, words, plan)
    if in_user_namespace() and has_limits(spec):
        have_cgroup(birth)
    state = {"spec": spec, "record": make_record(options, plan, spec),
             "attached": not options["detach"], "interactive": options["interactive"],
             "front": front, "leave": leave, "deaf": deaf}
    if options["attach"]:
        return launch_apart(state, plan, options, birth)
    if not options["detach"]:
        return launch(state, plan["guard"], options["cidfile"], birth)
    in_background(lambda ready: launch(state, plan["guard"], options["cidfile"], ready=ready),
                  "run")
    try:
        show(plan["id"])
    except Failure:  # nobody knows its id: what fails leaves nothing
        cmd_rm({"force": True, "volumes": True}, plan["id"])
        if options["cidfile"]:
            unlink_if_there(options["cidfile"])
        raise

def plan_network(options, plan):
    """The name of a container's first network, and what is wanted of them."""
    if plan["reference"] or any(options[word] for word in NETWORK_WORDS):
        return network_wanted(options, plan)
    return "none", {"endpoints": [], "ports": [], "dns": [], "hosts": [], "search": [],
                    "options": []}

def plan_root(options, words):
    """What the container's root is, by the options and the first word: (plan, the other words)."""
    container_id = os.urandom(32).hex()
    path = state_path("containers", container_id)
    plan = {"id": container_id, "path": path, "root": path + "/rootfs", "layers": [], "image": {},
            "reference": "", "digest": "", "diff_ids": [], "keep": not options["rm"],
            "guard": None}  # a lock
    if options["rootfs"]:
        plan["root"] = os.path.abspath(options["rootfs"])
        if not os.path.isdir(plan["root"]):
            raise Failure(f"--rootfs, on {plan['root']}: no such directory")
    elif not words:
        raise Failure("run: no image and no command given", hint="mydocker run -it /bin/sh")
    elif words[0].startswith(("/", ".")):  # no image can be called so
        plan.update(root=path + "/rootfs" if options["ephemeral"] else None,
                    keep=options["detach"] and not options["rm"])
    else:
        check_pull(options)
        plan["guard"] = using_images()
        try:
            image = find_or_pull(words[0], options)
        except Failure as failure:
            if failure.hint and not isinstance(failure, NotFound):
                raise
            failure.hint = ("an image: run IMAGE [COMMAND...] (see images); a program of the host: "
                            f"run /bin/{os.path.basename(words[0]) or 'sh'}")
            raise
        plan.update(layers=image_layers(image)[::-1], image=image["config"].get("config") or {},
                    reference=words.pop(0), digest=image["digest"], diff_ids=image["diff_ids"])
    if options["ephemeral"] and (options["rootfs"] or plan["layers"]):
        raise Failure("run, on --ephemeral: it is for the host's own root")
    return plan, words

def name_rows(plan, on_host_root):
    """The mounts of a container's own files in /etc.  On the host's root its host name and, without
    a network of its own, all of them are the host's."""
    names = ["hosts", "hostname", "resolv.conf"]
    if on_host_root:
        names = []
        if has_cable(plan):
            names = [name for name in ("hosts", "resolv.conf") if os.path.exists(f"/etc/{name}")]
    return [mount_row(f"/etc/{name}", "bind", "rbind", "rprivate", source=f"{plan['path']}/{name}")
            for name in names]

def check_host_name(text, option):
    """Refuse what would be more than one word of a line in /etc/hosts."""
    if not text.isprintable() or set(text) & set(" #") or len(encode(text)) > 64:
        raise Failure(f"{option}, on {as_typed(text)}: not a host's name, such as web-1")

def make_spec(options, words, plan):
    """The spec of a container, in the form of the OCI's config.json; for PLAN see plan_root."""
    own_root, image, path = plan["root"] is not None, plan["image"], plan["path"]
    hostname = options["hostname"] or (
        plan["id"][:12] if own_root and plan["network"] != "host" else os.uname().nodename)
    for option in ("hostname", "domainname"):
        check_host_name(options[option] or "", f"--{option}")
    devices = wanted_devices(options, own_root)
    cgroups_path = os.path.join(options["cgroup-parent"] or "", "mydocker", plan["id"])
    spec = {
        "ociVersion": OCI_VERSION,
        "process": {
            "terminal": options["tty"],
            "consoleSize": caller_size(),
            "user": {"username": given(options, "user", image.get("User") or "0")},
            "args": command_of(options, words, image),
            "env": environment_of(options, [f"PATH={DEFAULT_PATH}", f"HOSTNAME={hostname}",
                                            *(image.get("Env") or [])]),
            "cwd": working_directory(options["workdir"] or "", image, own_root),
        },
        "root": {"path": plan["root"] or "/", "readonly": options["read-only"]},
        "hostname": hostname,
        "mounts": kernel_mounts(parse_size(given(options, "shm-size", "64m"), "--shm-size")),
        "annotations": {"mydocker.init": "true"} if options["init"] else {},
        "linux": {"namespaces": [{"type": kind} for kind in OWN_NAMESPACES
                                 if (kind, plan["network"]) != ("network", "host")],
                  "devices": devices, "cgroupsPath": cgroups_path,
                  "sysctl": pairs_of(options["sysctl"]),
                  "resources": {**resources_of(options),
                                "devices": [] if options["privileged"] else device_rules(devices)}},
    }
    if is_guest("net") and plan["network"] == "host":
        spec["mounts"] = [guest_sys(row) if row["type"] == "sysfs" else row
                          for row in spec["mounts"]]
    if plan["layers"]:
        spec["mounts"].insert(0, image_row(plan["layers"], path))
    if options["ephemeral"]:
        spec["annotations"]["mydocker.scratch"] = path + "/scratch"
        spec["mounts"] = ephemeral_mounts(path + "/scratch") + spec["mounts"]
    elif not own_root:
        spec["mounts"] = [row for row in spec["mounts"] if row["destination"] != "/dev"
                          and os.path.isdir(row["destination"])]  # /dev stays the host's
    spec["mounts"] += name_rows(plan, options["ephemeral"] or not own_root)
    spec["mounts"] += volume_rows(options, image, own_root)
    plan_confinement(spec, options)
    plan_sharing(spec, options)
    if wants_ids(options):
        plan_ids(spec, options)
    return spec

# The process

def environment_of(options, start):
    """A command's environment, [K=V]: clean but for START and what the options say."""
    values = {"TERM": "xterm"} if options["tty"] else {}
    values.update(pairs_of(start))
    for item in [*sum(map(env_file_items, options["env-file"]), []), *options["env"]]:
        key, equals, value = item.partition("=")
        if not key or "\0" in item:
            raise Failure(f"--env, on {as_typed(item)}: a variable must have a name")
        if equals:
            values[key] = value
        elif key in os.environ:
            values[key] = os.environ[key]
    return [f"{key}={value}" for key, value in values.items()]

def env_file_items(path):
    """The lines of an --env-file, each K=V or K; empty ones and # comments are skipped."""
    with blame(f"--env-file, on {path}"):
        text = read_foreign(path)
    if text.startswith("\ufeff"):  # the byte order mark of Windows' editors
        text = text[1:]
    lines = [line.lstrip() for line in text.split("\n")]
    for number, line in enumerate(lines, 1):
        if " " in line.split("=")[0].strip() and not line.startswith("#"):
            raise Failure(f"--env-file, on {path} line {number}: white space in a variable's name")
    return [line for line in lines if line and not line.startswith("#")]

def command_of(options, words, image):
    """The arguments to execute, from the image's Entrypoint and Cmd and what was typed."""
    entrypoint, cmd = image.get("Entrypoint") or [], image.get("Cmd") or []
    if options["entrypoint"] is not None:
        entrypoint, cmd = [options["entrypoint"]] if options["entrypoint"] else [], []
    args = entrypoint + (words or cmd)
    if not args:
        raise Failure("run: no command given, and the image has none",
                      hint="mydocker run -it IMAGE /bin/sh")
    return args

def working_directory(typed, image, own_root):
    """Where the command starts; what was typed may be relative to here on the host's own root."""
    if not own_root and typed.startswith("/"):
        return os.path.normpath(typed)
    if not own_root:
        with blame("run, on the current directory"):
            return os.path.normpath(os.path.join(os.getcwd(), typed))
    if typed and not typed.startswith("/"):
        raise Failure(f"--workdir, on {typed}: it needs to be an absolute path")
    return os.path.normpath(os.path.join("/", image.get("WorkingDir") or "", typed))

SHARED = {  # options: (namespace, what there is to say but container:ID)
    "pid": ("pid", ("host", "private")), "uts": ("uts", ("host", "private")),
    "ipc": ("ipc", ("host", "private", "shareable", "none")),
    "cgroupns": ("cgroup", ("host", "private"))}

def plan_memory_files(spec, word):
    """Write into the spec what its /dev/shm is: it goes with System V IPC."""
    if word == "shareable":
        spec["annotations"]["mydocker.shareable"] = "true"
    if word in ("private", "shareable"):
        return
    spec["mounts"] = [row for row in spec["mounts"] if row["destination"] != "/dev/shm"]
    if word == "none":
        return
    row = mount_row("/dev/shm", "bind", "rbind", "rprivate", source="/dev/shm")
    lender = spec["annotations"].get("mydocker.ipc")
    if lender:
        row["lender"] = lender
        theirs = read_json(state_path("containers", lender, "config.json"))["annotations"]
        if not {"mydocker.shareable", "mydocker.ipc"} & {*theirs}:
            raise Failure(f"--ipc, on {word}: it isn't shareable",
                          hint="start that one with --ipc shareable")
    spec["mounts"].append(row)

def plan_process_limits(process, options):
    """Write into the spec what each process may use, beside what all of them may."""
    process["rlimits"] = [ulimit(text) for text in options["ulimit"]]
    if options["oom-score-adj"]:
        process["oomScoreAdj"] = parse_number(options["oom-score-adj"], "--oom-score-adj", -1000)

# From the spec to a running container

def launch(state, guard, cidfile, birth=None, ready=lambda: None):
    """Make a new container, start it and stay with it; returns its exit status. GUARD keeps its
    image from being removed until it is on record."""
    record = state["record"]
    if cidfile:
        with blame(f"--cidfile, on {cidfile}"), open(cidfile, "x") as file:
            file.write(record["id"])
    try:
        state["lock"] = int(make_container_dir(record))
        write_config(record, state["spec"])
        if guard is not None:
            os.close(guard)
        state["stdin"] = choose_stdin(state)
        start_container(state, birth)
    except (Failure, OSError):
        close_ports(state)
        with tolerate():  # the next command sweeps; what went wrong first is what counts
            if "lock" in state:
                end_container(record)
            if cidfile:
                unlink_if_there(cidfile)
        raise
    ready()
    return supervise(state, False)

def choose_stdin(state):
    """What the command reads: the caller's input with -i; in the background nothing ever comes."""
    if state["attached"] and state["interactive"]:
        end = None if state["spec"]["process"]["terminal"] else input_pipe(state)
        return 0 if end is None else end
    if not state["interactive"]:
        return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    stdin, state["typist"] = os.pipe()
    return stdin

def prepare_places(spec, record):
    """Make the directories that a container's mounts need."""
    path = container_path(record)
    for row in spec["mounts"]:
        source = row["source"]
        if "volume" in row:
            make_volume(source)
        elif row["type"] == "bind" and not source.startswith(path) and not os.path.exists(source):
            os.makedirs(source, exist_ok=True)
    for place in (spec["root"]["path"], spec["annotations"].get("mydocker.scratch", "")):
        if place.startswith(path + "/"):
            make_dirs(place)

def prepare_container(spec, record):
    """Put on disk what init and the other commands need; init is booting meanwhile."""
    path = container_path(record)
    prepare_places(spec, record)
    for row in spec["mounts"]:
        if row["type"] == "copy" and not os.path.isdir(row["source"]):
            copy_layers(row, mapped=id_functions(spec["linux"]))
    mounted = any(row["source"] == f"{path}/hosts" for row in spec["mounts"])
    if not mounted and not has_cable(record):
        return  # on the host's own root its own files are as good, and no neighbour reads these
    write_hosts(spec, record)
    for name, text in (("hostname", spec["hostname"] + "\n"), ("resolv.conf", resolv_conf(record))):
        write_file(f"{path}/{name}", text)
        os.chmod(f"{path}/{name}", 0o644)

@command("[OPTIONS] IMAGE [COMMAND] [ARG...]  or  create [OPTIONS] ID",
         "make a container that `start` starts, as `run` would, or one from an OCI bundle",
         takes=SOME, mixed=False)
def cmd_create(options, words):
    """All that `run -d` does before there is a process."""
    options["detach"] = True
    plan, words = plan_root(options, words)
    plan["network"], plan["wants"] = plan_network(options, plan)
    plan["keep"] = not options["rm"]
    spec = make_spec(options, words, plan)
    record = make_record(options, plan, spec)
    cidfile = options["cidfile"]
    if cidfile:
        with blame(f"--cidfile, on {cidfile}"), open(cidfile, "x") as file:
            file.write(record["id"])
    with Descriptor(make_container_dir(record)):
        write_config(record, spec)
        unlink_if_there(state_path("running", record["id"]))
    show(record["id"])

# ── 10. Privileges ───────────────────────────────────────────────────────────
# Who the command runs as, and what that may do.  Root's power is some forty capabilities
# (capabilities(7)): a container gets Docker's fourteen.  A filter (seccomp(2)) takes away the calls
# that are for the others, or seldom needed and often broken.  What tells of the host in /proc and
# /sys, or changes it, is covered.  The outside writes that into the spec (plan_confinement), the
# inside carries it out (hide_paths, confine).  Names are looked up in the container's own files, as
# text: the C library would load what the container's nsswitch.conf names (CVE-2019-14271).

KEYCTL_JOIN_SESSION_KEYRING = 1  # linux/keyctl.h
PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 22, 24, 38, 47
PR_CAP_AMBIENT_RAISE, SECCOMP_MODE_FILTER = 2, 2
CAPABILITIES = ["CAP_" + name for name in """
CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE
NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT
SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE
AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ
PERFMON BPF CHECKPOINT_RESTORE""".split()]  # linux/capability.h, in its order
DEFAULT_CAPABILITIES = 0xa80425fb  # Docker's fourteen of them, as bits
MASKED_PATHS = """/proc/acpi /proc/asound /proc/interrupts /proc/kcore /proc/keys
/proc/latency_stats /proc/sched_debug /proc/scsi /proc/timer_list /proc/timer_stats
/sys/devices/virtual/powercap /sys/firmware""".split()
CPUS = "/sys/devices/system/cpu"
READ_ONLY_PATHS = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
SECURITY_OPTIONS = (  # those that end in "=" or ":" take any value
    "seccomp=", "apparmor=", "label=user:", "label=role:", "label=type:", "label=level:",
    "label=disable", "systempaths=unconfined", "no-new-privileges=true", "no-new-privileges=false")
offer("run",
      ("--cap-add", "CAP...", "give a capability that Docker's 14 don't have; ALL for all"),
      ("--cap-drop", "CAP...", "take a capability away; ALL for all"),
      ("--privileged", "", "all that the host can give: capabilities, devices, no filter"),
      ("--security-opt", "OPT...", "seccomp=FILE, no-new-privileges and others, see README"))

def plan_confinement(spec, options):
    """Write into the spec what the command may do, and what of the host it may see."""
    process, linux, free = spec["process"], spec["linux"], options["privileged"]
    asked = security_options(options["security-opt"])
    process["capabilities"], process["user"]["added"] = plan_capabilities(
        options["cap-add"], options["cap-drop"], free)
    process["noNewPrivileges"] = "no-new-privileges=true" in asked
    process["apparmorProfile"] = asked.get("apparmor=", "unconfined")
    label = [asked.get(f"label={key}:", default) for key, default in (
        ("user", "system_u"), ("role", "system_r"), ("type", "container_t"), ("level", "s0"))]
    labelled = any(name.startswith("label=") for name in asked) and "label=disable" not in asked
    process["selinuxLabel"] = ":".join(label) if labelled else ""
    if not free and "systempaths=unconfined" not in asked:
        linux["maskedPaths"] = MASKED_PATHS + [f"{CPUS}/{name}/thermal_throttle"
                                               for name in listing(CPUS) if name[3:].isdigit()]
        linux["readonlyPaths"] = READ_ONLY_PATHS
    for row in spec["mounts"]:
        if free and row["type"] in ("sysfs", "cgroup"):
            row["options"].remove("ro")
    profile = asked.get("seccomp=", "unconfined" if free else "builtin")
    if profile != "unconfined":
        held = process["capabilities"]["bounding"]
        linux["seccomp"] = (default_seccomp(held) if profile == "builtin"
                            else read_seccomp(profile, held))

def security_options(words):
    """The --security-opt words, NAME, NAME=VALUE or NAME:VALUE, as {one of the above: value}."""
    found = {}
    for word in words:
        text = word if "=" in word else word.replace(":", "=", 1)
        if text == "no-new-privileges":
            text += "=true"
        name = max(name for name in ("", *SECURITY_OPTIONS) if text.startswith(name))
        if not name or name[-1] not in "=:" and text != name:
            raise Failure(f"--security-opt, on {word}: no such option or value")
        found[name] = text[len(name):]
    return found

def own_capabilities():
    """The capabilities that this process could give away: permitted, and in the bounding set."""
    rows = read_all("/proc/self/status").split("\n")
    sets = [int(row.split()[1], 16) for row in rows if row.startswith(("CapPrm", "CapBnd"))]
    return names_of_bits(sets[0] & sets[1])

def names_of_bits(bits):
    return {name for number, name in enumerate(CAPABILITIES) if bits >> number & 1}

def wanted_capabilities(added, dropped, free):
    every = {*CAPABILITIES}
    if free:
        return every
    if "CAP_ALL" in added:
        return every - dropped
    if "CAP_ALL" in dropped:
        return added
    return names_of_bits(DEFAULT_CAPABILITIES) - dropped | added

def plan_capabilities(add=(), drop=(), free=False):
    """The spec's process.capabilities, and which of them are added: what is asked for (FREE: all),
    as far as the host has it itself.  Inheritable and ambient stay empty: CVE-2022-29162."""
    added, dropped = ({"CAP_" + text.upper().replace("CAP_", "", 1) for text in words}
                      for words in (add, drop))
    for name in (added | dropped) - {*CAPABILITIES, "CAP_ALL"}:
        raise Failure(f"--cap-add or --cap-drop, on {name}: there is no such capability")
    own, wanted = own_capabilities(), wanted_capabilities(added, dropped, free)
    for name in sorted(added & {*CAPABILITIES} - own):
        warn(f"--cap-add, on {name}: this host doesn't have it itself, ignoring")
    held = [name for name in CAPABILITIES if name in wanted & own]
    sets = {**dict.fromkeys(("bounding", "effective", "permitted"), held), "inheritable": [],
            "ambient": []}
    return sets, [name for name in held if {name, "CAP_ALL"} & added]

def held_capabilities(sets):
    """The spec's process.capabilities, as far as this host has them itself."""
    own, names = own_capabilities(), {name for kind in sets for name in sets[kind]}
    if names - own:
        warn(f"capabilities, on {', '.join(sorted(names - own))}: this host doesn't have them "
             "itself, ignoring")
    return {kind: [name for name in CAPABILITIES if name in own and name in sets.get(kind, ())]
            for kind in ("bounding", "effective", "permitted", "inheritable", "ambient")}

# What we lack ourselves: inside a container of others, or in a unit

POWERS = {  # our own capabilities, and what they are for
    "SYS_ADMIN": "all of it, without a user namespace", "NET_ADMIN": "networks, but the host's",
    "CHOWN": "owners of files: images, cp -a", "DAC_OVERRIDE": "files of others: images, cp",
    "FOWNER": "modes and times of others' files: images, cp", "FSETID": "set-id bits in images",
    "MKNOD": "devices in images", "SETFCAP": "programs with capabilities in images",
    "SETGID": "groups, also none", "SETUID": "users other than root",
    "SETPCAP": "taking capabilities away", "SYS_CHROOT": "exec, start in a chroot",
    "SYS_PTRACE": "exec, cp where others than root run", "SYS_RESOURCE": "raising limits",
    "KILL": "signals to who isn't root", **dict.fromkeys(
        ("NET_BIND_SERVICE", "NET_RAW", "AUDIT_WRITE"), "containers, which have it by default")}
CALL_POWERS = {  # the calls that take more than what a file takes
    **dict.fromkeys(("unshare", "mount", "umount2", "pivot_root", "sethostname", "setdomainname",
                     "move_mount", "open_tree", "mount_setattr", "bpf"), "SYS_ADMIN"),
    "setns": "SYS_ADMIN SYS_CHROOT", "prctl": "SETPCAP", "capset": "SETPCAP",
    "prlimit": "SYS_RESOURCE", "pidfd_send_signal": "KILL"}

def missing_powers(names):
    """Those of our own capabilities, NAMES as in POWERS, that we lack and could not take back."""
    sets = (INT * 6)()
    capget(struct.pack("Ii", LINUX_CAPABILITY_VERSION_3, 0), sets)
    return ["CAP_" + name for name in names
            if not sets[1] >> CAPABILITIES.index("CAP_" + name) & 1]

def lacking_power(error):
    """Which capability it takes that we lack, where the kernel forbids something: a hint, or "".
    An ordinary user, who has none, knows that."""
    path, denied = str(error.filename), error.errno == errno.EACCES
    names = getattr(error, "takes", None) or CALL_POWERS.get(path.partition("(")[0])
    if not names:
        names = "" if denied else "CHOWN FOWNER MKNOD SETFCAP KILL SETGID SETUID"
    if denied and path.startswith("/proc/"):
        if is_guest("pid"):
            return "its process isn't in our user namespace: it takes CAP_SYS_ADMIN"
        names += " SYS_PTRACE"
    elif denied:
        names += " DAC_OVERRIDE"
    missing = missing_powers(names.split())
    if not missing or len(missing_powers(POWERS)) == len(POWERS):
        return ""
    return f"{' or '.join(missing)} is missing: inside a container?"

# Who: users and groups

def account_lines(path):
    """The rows of /etc/passwd or /etc/group: none where it is missing, masked, or else no file."""
    if not os.path.isfile(path):
        return []
    try:
        return [line.split(":") for line in read_text(path).split("\n") if line.count(":") >= 3]
    except (Failure, FileNotFoundError):  # it was one, a moment ago
        return []

ID = range(1 << 31)  # of a user or group, as runc has it: -1, and what C makes -1 of, is no id

def is_id(text):
    return to_number(text, ID.stop) is not None

def parse_id(text, what, option="--user"):
    """A user or group id, or an error, never 0.  See CVE-2024-40635, CVE-2026-30892."""
    if not is_id(text):
        raise Failure(f"{option}, on {as_typed(text)}: there is no such {what} in the container")
    return int(text)

def find_user(user):
    """Who the spec's process.user is: (uid, gid, supplementary gids, home)."""
    if "username" in user:
        uid, gid, more, home = resolve_user(user["username"])
        rows = account_lines("/etc/group") if user.get("groups") else ()
        for name in user.get("groups") or ():
            row = find_account(rows, name)
            more.append(parse_id(row[2] if row else name, "group", "--group-add"))
        return uid, gid, more, home
    uid, gid, more = (user.get(key) or 0 for key in ("uid", "gid", "additionalGids"))
    homes = [row[5] for row in account_lines("/etc/passwd") if len(row) > 5 and row[2] == str(uid)]
    return uid, gid, more or [], (homes + ["/"])[0] or "/"

def find_account(rows, name):
    """The row of passwd(5) or group(5) for a name; digits are the number, never somebody's name."""
    if name.isascii() and name.isdigit():
        name, place = name.lstrip("0") or "0", 2
    else:
        place = 0
    return next((row for row in rows if row[place] == name), None)

def resolve_user(wanted):
    """NAME|UID[:GROUP|GID], as in Docker's USER: (uid, gid, supplementary gids, home)."""
    name, colon, group = wanted.partition(":")
    account = find_account([row for row in account_lines("/etc/passwd") if len(row) > 5], name)
    uid = parse_id(account[2] if account else name, "user")
    groups = account_lines("/etc/group")
    if colon:
        row = find_account(groups, group)
        return uid, parse_id(row[2] if row else group, "group"), [], account[5] if account else "/"
    if not account:
        return uid, 0, [], "/"
    more = [int(row[2]) for row in groups if account[0] in row[3].split(",") and is_id(row[2])]
    return uid, parse_id(account[3], "group"), more, account[5] or "/"

MORE_IDS = ("newuidmap (package uidmap) and a row for the caller in /etc/subuid and in /etc/subgid "
            "give more ids than one")

def set_groups(gids):
    """Have these supplementary groups and no others; but in a user namespace of one id nobody can
    lay off what the caller has."""
    try:
        os.setgroups(gids)
    except PermissionError:
        if not has_power(CAP_SETGID):
            raise

# What may be seen

def hide_paths(spec):
    """Cover the spec's maskedPaths and make its readonlyPaths read-only, all by descriptor. None
    stays open: --workdir could lead through it to what is covered, as in CVE-2024-21626."""
    linux = spec["linux"]
    with Descriptor(os.open("/", os.O_PATH | os.O_CLOEXEC)) as root, Descriptor(
            kernels_proc(spec, root)) as proc:
        os.fchdir(proc)  # what is moved now changes nothing for these paths
        for place in places_to_hide(root, proc, linux.get("readonlyPaths", [])):
            here = f"self/fd/{place}"
            if is_same_place(place, root):
                set_mount_flags(here, MS_RDONLY, whole=0)  # what lies over the root nobody sees
                continue
            here = mount_bind(here, {"source": here}, MS_BIND | MS_REC | MS_RDONLY, None)
            os.close(int(os.path.basename(here)))
        for place in places_to_hide(root, proc, linux.get("maskedPaths", [])):  # of both: masked
            if not is_same_place(place, root):
                mask_path(root, f"self/fd/{place}")
        os.chdir("/")  # back to the root

def kernels_proc(spec, root):
    """Open the container's /proc, which somebody with the same files may be moving: CVE-2023-27561.
    What is to be hidden in it is looked for in what was opened."""
    with tolerate(errno.ENOENT, errno.ENOTDIR):
        proc = open_in_root(root, "/proc")
        if is_proc(proc):
            return proc
        os.close(proc)
    if any(row["type"] == "proc" and os.path.normpath(row["destination"]).strip("/") == "proc"
           for row in spec["mounts"]):
        raise Failure("mount, on /proc: it was moved meanwhile")
    return Descriptor(os.open("/", os.O_PATH | os.O_CLOEXEC))

def places_to_hide(root, proc, paths):
    """Yield each of the paths that is there, open, by a /proc that is known to be the kernel's."""
    for path in paths:
        above, path = root, os.path.normpath(path).lstrip("/")
        if path.startswith("proc/") and is_proc(proc):
            above, path = proc, path[len("proc/"):]
        try:
            place = Descriptor(open_in_root(above, path or "."))
        except (FileNotFoundError, NotADirectoryError):
            continue
        with place:
            if not is_proc(proc):
                raise Failure(f"hide, on /{path}: it takes a /proc in the container")
            yield place

def mask_path(root, place):
    """Cover a directory with an empty one, a file with /dev/null, if that is what it says.  We are
    in /proc.  A container could have put another file there, or a link to one: CVE-2025-31133."""
    if os.path.isdir(place):
        mount("tmpfs", place, "tmpfs", MS_RDONLY, "nr_blocks=1,nr_inodes=1")  # empty, over it
        return
    with Descriptor(open_in_root(root, "/dev/null", os.O_PATH | os.O_NOFOLLOW)) as null:
        info = os.fstat(null)
        if not stat.S_ISCHR(info.st_mode) or info.st_rdev != os.makedev(1, 3):
            raise Failure("mask, on /dev/null: it isn't the null device")
        mount(f"self/fd/{null}", place, None, MS_BIND, None)  # nothing to read

def set_label(process):
    """Tell AppArmor or SELinux what the exec is to run as: proc_pid_attr(5)."""
    label = process["selinuxLabel"] or "exec " + process["apparmorProfile"]
    if label != "exec unconfined":
        what = f"--security-opt or process, on {label.replace('exec ', '')}"
        with blame(what), open("/proc/self/attr/exec", "wb") as file:
            file.write(encode(label))

def leave_keyring(process):
    """Have a session keyring of its own: the caller's keys are not the container's to be used, or
    seen in /proc/keys.  See session-keyring(7)."""
    if not process.get("callersKeyring"):
        with tolerate(*NOT_TO_BE_HAD):  # a filter around us, under which nobody can use a key
            keyctl(KEYCTL_JOIN_SESSION_KEYRING, None)  # none of the caller's keys comes along

def confine(process, user, program, channel):
    """Become USER and give up, for good, what the spec's PROCESS doesn't have. PROGRAM, the filter,
    is last; but first without no_new_privs, as loading it takes that or CAP_SYS_ADMIN: runc's.
    The CHANNEL is for a filter that tells somebody of calls."""
    (uid, gid, groups, _), sets, locked = user, process["capabilities"], process["noNewPrivileges"]
    os.umask(process["user"].get("umask", 0o022))  # all that we make has been made
    if locked:
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)  # no set-user-id program helps any more
    elif program:
        apply_filter(program, channel)
    if uid and "added" in process["user"]:  # another than root has that, and keeps it at the exec
        kept = [name for name in process["user"]["added"] if name in sets["bounding"]]
        sets = dict(sets, effective=kept, permitted=kept, inheritable=kept, ambient=kept)
    bits = {kind: {CAPABILITIES.index(name) for name in sets[kind]} for kind in sets}
    with tolerate(errno.EINVAL):  # no capability of this kernel has such a number
        for number in sorted({*range(64)} - bits["bounding"]):
            prctl(PR_CAPBSET_DROP, number, 0, 0, 0)  # not even a file can give it back
    prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)  # a change from root takes all otherwise
    try:
        set_groups(groups)  # none of root's groups stay
        os.setresgid(gid, gid, gid)  # real, effective and saved: no way back
        os.setresuid(uid, uid, uid)  # from here on without root's power, unless it is root
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise Failure(f"--user, on {uid}:{gid}: the user namespace has no such id",
                          hint="--uidmap and --gidmap give it some; without root "
                               + MORE_IDS) from None
        error.takes = "SETGID SETUID"
        raise Failure(f"--user, on {uid}:{gid}: {reason(error)}",
                      hint=lacking_power(error)) from None
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # as before: sysctl fs.suid_dumpable may say otherwise
    halves = [sum(1 << bit for bit in bits[kind]) >> shift & 0xffffffff for shift in (0, 32)
              for kind in ("effective", "permitted", "inheritable")]
    header = struct.pack("Ii", LINUX_CAPABILITY_VERSION_3, 0)
    capset(header, struct.pack("6I", *halves))  # what the command may do
    for number in bits["ambient"]:
        prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number, 0, 0)  # one that outlasts the exec
    if locked and program:
        apply_filter(program, channel)

# ── 11. The system call filter ───────────────────────────────────────────────
# A filter is a small program that the kernel runs before each system call: seccomp(2).  It is made
# outside, while init starts: a search tree over ranges of numbers that meet the same end.  A call
# costs eight comparisons, or none: Linux 5.11 and later note what is allowed.
#
# System calls by number; where some are missing, the next one's is given.  See syscall_64.tbl and,
# for arm64, scripts/syscall.tbl.  LOCKED_CALLS: what Docker refuses, behind what unlocks it.

# System calls by number; where some are missing, the next one's is given.  See syscall_64.tbl and,
# for arm64, scripts/syscall.tbl.  LOCKED_CALLS: what Docker refuses, behind what unlocks it.
X86_64_CALLS = """0 read write open close stat fstat lstat poll lseek mmap mprotect munmap brk
rt_sigaction rt_sigprocmask rt_sigreturn ioctl pread64 pwrite64 readv writev access pipe select
sched_yield mremap msync mincore madvise shmget shmat shmctl dup dup2 pause nanosleep getitimer
alarm setitimer getpid sendfile socket connect accept sendto recvfrom sendmsg recvmsg shutdown bind
listen getsockname getpeername socketpair setsockopt getsockopt clone fork vfork execve exit wait4
kill uname semget semop semctl shmdt msgget msgsnd msgrcv msgctl fcntl flock fsync fdatasync
truncate ftruncate getdents getcwd chdir fchdir rename mkdir rmdir creat link unlink symlink
readlink chmod fchmod chown fchown lchown umask gettimeofday getrlimit getrusage sysinfo times
ptrace getuid syslog getgid setuid setgid geteuid getegid setpgid getppid getpgrp setsid setreuid
setregid getgroups setgroups setresuid getresuid setresgid getresgid getpgid setfsuid setfsgid
getsid capget capset rt_sigpending rt_sigtimedwait rt_sigqueueinfo rt_sigsuspend sigaltstack utime
mknod uselib personality ustat statfs fstatfs sysfs getpriority setpriority sched_setparam
sched_getparam sched_setscheduler sched_getscheduler sched_get_priority_max sched_get_priority_min
sched_rr_get_interval mlock munlock mlockall munlockall vhangup modify_ldt pivot_root _sysctl prctl
arch_prctl adjtimex setrlimit chroot sync acct settimeofday mount umount2 swapon swapoff reboot
sethostname setdomainname iopl ioperm create_module init_module delete_module get_kernel_syms
query_module quotactl nfsservctl getpmsg putpmsg afs_syscall tuxcall security gettid readahead
setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr
removexattr lremovexattr fremovexattr tkill time futex sched_setaffinity sched_getaffinity
set_thread_area io_setup io_destroy io_getevents io_submit io_cancel get_thread_area lookup_dcookie
epoll_create epoll_ctl_old epoll_wait_old remap_file_pages getdents64 set_tid_address
restart_syscall semtimedop fadvise64 timer_create timer_settime timer_gettime timer_getoverrun
timer_delete clock_settime clock_gettime clock_getres clock_nanosleep exit_group epoll_wait
epoll_ctl tgkill utimes vserver mbind set_mempolicy get_mempolicy mq_open mq_unlink mq_timedsend
mq_timedreceive mq_notify mq_getsetattr kexec_load waitid add_key request_key keyctl ioprio_set
ioprio_get inotify_init inotify_add_watch inotify_rm_watch migrate_pages openat mkdirat mknodat
fchownat futimesat newfstatat unlinkat renameat linkat symlinkat readlinkat fchmodat faccessat
pselect6 ppoll unshare set_robust_list get_robust_list splice tee sync_file_range vmsplice
move_pages utimensat epoll_pwait signalfd timerfd_create eventfd fallocate timerfd_settime
timerfd_gettime accept4 signalfd4 eventfd2 epoll_create1 dup3 pipe2 inotify_init1 preadv pwritev
rt_tgsigqueueinfo perf_event_open recvmmsg fanotify_init fanotify_mark prlimit64 name_to_handle_at
open_by_handle_at clock_adjtime syncfs sendmmsg setns getcpu process_vm_readv process_vm_writev kcmp
finit_module sched_setattr sched_getattr renameat2 seccomp getrandom memfd_create kexec_file_load
bpf execveat userfaultfd membarrier mlock2 copy_file_range preadv2 pwritev2 pkey_mprotect pkey_alloc
pkey_free statx io_pgetevents rseq uretprobe"""
GENERIC_CALLS = """0 io_setup io_destroy io_submit io_cancel io_getevents setxattr lsetxattr
fsetxattr getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr removexattr lremovexattr
fremovexattr getcwd lookup_dcookie eventfd2 epoll_create1 epoll_ctl epoll_pwait dup dup3 fcntl
inotify_init1 inotify_add_watch inotify_rm_watch ioctl ioprio_set ioprio_get flock mknodat mkdirat
unlinkat symlinkat linkat renameat umount2 mount pivot_root nfsservctl statfs fstatfs truncate
ftruncate fallocate faccessat chdir fchdir chroot fchmod fchmodat fchownat fchown openat close
vhangup pipe2 quotactl getdents64 lseek read write readv writev pread64 pwrite64 preadv pwritev
sendfile pselect6 ppoll signalfd4 vmsplice splice tee readlinkat newfstatat fstat sync fsync
fdatasync sync_file_range timerfd_create timerfd_settime timerfd_gettime utimensat acct capget
capset personality exit exit_group waitid set_tid_address unshare futex set_robust_list
get_robust_list nanosleep getitimer setitimer kexec_load init_module delete_module timer_create
timer_gettime timer_getoverrun timer_settime timer_delete clock_settime clock_gettime clock_getres
clock_nanosleep syslog ptrace sched_setparam sched_setscheduler sched_getscheduler sched_getparam
sched_setaffinity sched_getaffinity sched_yield sched_get_priority_max sched_get_priority_min
sched_rr_get_interval restart_syscall kill tkill tgkill sigaltstack rt_sigsuspend rt_sigaction
rt_sigprocmask rt_sigpending rt_sigtimedwait rt_sigqueueinfo rt_sigreturn setpriority getpriority
reboot setregid setgid setreuid setuid setresuid getresuid setresgid getresgid setfsuid setfsgid
times setpgid getpgid getsid setsid getgroups setgroups uname sethostname setdomainname getrlimit
setrlimit getrusage umask prctl getcpu gettimeofday settimeofday adjtimex getpid getppid getuid
geteuid getgid getegid gettid sysinfo mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify
mq_getsetattr msgget msgctl msgrcv msgsnd semget semctl semtimedop semop shmget shmctl shmat shmdt
socket socketpair bind listen accept connect getsockname getpeername sendto recvfrom setsockopt
getsockopt shutdown sendmsg recvmsg readahead brk munmap mremap add_key request_key keyctl clone
execve mmap fadvise64 swapon swapoff mprotect msync mlock munlock mlockall munlockall mincore
madvise remap_file_pages mbind get_mempolicy set_mempolicy migrate_pages move_pages
rt_tgsigqueueinfo perf_event_open accept4 recvmmsg 260 wait4 prlimit64 fanotify_init fanotify_mark
name_to_handle_at open_by_handle_at clock_adjtime syncfs setns sendmmsg process_vm_readv
process_vm_writev kcmp finit_module sched_setattr sched_getattr renameat2 seccomp getrandom
memfd_create bpf execveat userfaultfd membarrier mlock2 copy_file_range preadv2 pwritev2
pkey_mprotect pkey_alloc pkey_free statx io_pgetevents rseq kexec_file_load"""
LATER_CALLS = """ 424 pidfd_send_signal io_uring_setup io_uring_enter io_uring_register open_tree
move_mount fsopen fsconfig fsmount fspick pidfd_open clone3 close_range openat2 pidfd_getfd
faccessat2 process_madvise epoll_pwait2 mount_setattr quotactl_fd landlock_create_ruleset
landlock_add_rule landlock_restrict_self memfd_secret process_mrelease futex_waitv
set_mempolicy_home_node cachestat fchmodat2 map_shadow_stack futex_wake futex_wait futex_requeue
statmount listmount lsm_get_self_attr lsm_set_self_attr lsm_list_modules mseal setxattrat getxattrat
listxattrat removexattrat open_tree_attr file_getattr file_setattr listns"""
LOCKED_CALLS = """NOTHING: _sysctl add_key afs_syscall create_module file_getattr file_setattr
get_kernel_syms getpmsg io_uring_enter io_uring_register io_uring_setup kexec_file_load kexec_load
keyctl listns migrate_pages move_pages nfsservctl open_tree_attr pivot_root putpmsg query_module
request_key security swapoff swapon sysfs tuxcall uselib userfaultfd ustat vserver; SYS_ADMIN: bpf
clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr
lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl
quotactl_fd setdomainname sethostname setns syslog umount2 unshare; BPF: bpf; DAC_READ_SEARCH:
open_by_handle_at; PERFMON: perf_event_open; SYSLOG: syslog; SYS_BOOT: reboot; SYS_CHROOT: chroot;
SYS_MODULE: delete_module finit_module init_module; SYS_NICE: get_mempolicy mbind set_mempolicy
set_mempolicy_home_node; SYS_PACCT: acct; SYS_PTRACE: kcmp pidfd_getfd process_madvise; SYS_RAWIO:
ioperm iopl; SYS_TIME: clock_settime settimeofday; SYS_TTY_CONFIG: vhangup"""
SECCOMP_ARCHES = {  # by uname(2)'s machine: Docker's name, linux/audit.h's number, the calls
    "x86_64": ("amd64", 0xC000003E, X86_64_CALLS + LATER_CALLS),
    "aarch64": ("arm64", 0xC00000B7, GENERIC_CALLS + LATER_CALLS)}
SECCOMP_ACTIONS = {  # linux/seccomp.h; to two of them an errno is added
    "ALLOW": 0x7fff0000, "LOG": 0x7ffc0000, "NOTIFY": 0x7fc00000, "TRACE": 0x7ff00000,
    "ERRNO": 0x50000, "TRAP": 0x30000,
    "KILL": 0, "KILL_THREAD": 0, "KILL_PROCESS": 1 << 31}  # with SCMP_ACT_ in front
SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER = 1, 8
SECCOMP_FLAGS = {"SECCOMP_FILTER_FLAG_" + name: bit for name, bit in (
    ("TSYNC", 1), ("LOG", 2), ("SPEC_ALLOW", 4), ("WAIT_KILLABLE_RECV", 32))}
SECCOMP_CALL = {"x86_64": 317, "i686": 354, "armv7l": 383}.get(os.uname().machine, 277)
OCI_SECCOMP = {  # the shape of a filter's rules: with more bits an errno would be another verdict
    "defaultAction": str, "defaultErrnoRet": (range(1 << 16),), "listenerPath": str,
    "listenerMetadata": str, "flags": [str], "syscalls": [{
        "names": [str], "action": str, "errnoRet": (range(1 << 16),), "args": [{
            "index": range(6), "value": range(1 << 64), "valueTwo": (range(1 << 64),),
            "op": str}]}]}
BPF_LD, BPF_AND, BPF_RET, BPF_JA = 0x20, 0x54, 0x06, 0x05  # linux/bpf_common.h, put together
BPF_JEQ, BPF_JGT, BPF_JGE = 0x15, 0x25, 0x35

def call_numbers():
    """The machine's system calls: {name: number}."""
    numbers, number, machine = {}, 0, os.uname().machine
    if machine not in SECCOMP_ARCHES:
        raise Failure(f"seccomp, on {machine}: mydocker doesn't know this machine's system calls",
                      hint="--security-opt seccomp=unconfined")
    for word in SECCOMP_ARCHES[machine][2].split():
        number = int(word) if word.isdigit() else numbers.setdefault(word, number) + 1
    return numbers

def default_seccomp(held):
    """Docker's own profile, github.com/moby/profiles, with what the capabilities HELD unlock."""
    groups = [part.split() for part in LOCKED_CALLS.split(";")]
    open_to = {name for key, *names in groups if "CAP_" + key[:-1] in held for name in names}
    locked = {"personality", "socket"}.union(*groups) - open_to
    rules = [("personality", "EQ", n) for n in (0, 8, 0x20000, 0x20008, 0xffffffff)]
    # All families but AF_ALG, 38, and AF_VSOCK, 40.  By the allowed ones: the kernel cuts the
    # argument to 32 bits, so "not 40" would let 40 + 2^32 pass
    rules += [("socket", "LT", 38)] + [("socket", "EQ", n) for n in (39, *range(41, 46))]
    rules += [("clone", "MASKED_EQ", 0x7e020000)]  # with no flag of sched.h's CLONE_NEW*
    allow = {"action": "SCMP_ACT_ALLOW"}
    rows = [dict(allow, names=[name for name in call_numbers() if name not in locked])]
    rows += [dict(allow, names=[name], args=[{"index": 0, "op": "SCMP_CMP_" + op, "value": value}])
             for name, op, value in rules]
    if "clone3" in locked:  # its flags are where no filter sees them; ENOSYS: use clone
        rows.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS})
    return {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rows}

def read_seccomp(path, held):
    """A profile in Docker's form as the spec's: the rules whose conditions hold on this host."""
    try:
        profile = check(from_json(read_foreign(path)), OCI_SECCOMP,
                        f"--security-opt, on {path}: not a seccomp profile")
        profile["syscalls"] = [dict(row, names=row.get("names") or [row["name"]])
                               for row in profile["syscalls"]
                               if all(conditions(row.get("includes") or {}, held))
                               and not any(conditions(row.get("excludes") or {}, held))]
        assemble_filter({"seccomp": profile})
        if notifies(profile):
            raise ValueError("SCMP_ACT_NOTIFY is for engines' containers")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, struct.error) as error:
        why = reason(error) if isinstance(error, OSError) else f"not a seccomp profile: {error!r}"
        raise Failure(f"--security-opt, on {path}: {why}") from None
    return profile

def conditions(row, held):
    """Which conditions of a rule hold: [bool]."""
    host, arches, least = os.uname(), row.get("arches"), row.get("minKernel")
    here = [int(part) for part in host.release.split("-")[0].split(".")[:2]]
    return ([name in held for name in row.get("caps") or ()]
            + ([SECCOMP_ARCHES[host.machine][0] in arches] if arches else [])
            + ([here >= [int(part) for part in least.split(".")]] if least else []))

def step(code, value, yes=0, no=0):
    """One instruction, a struct sock_filter; a jump skips YES or NO others."""
    return struct.pack("HBBI", code, yes, no, value & 0xffffffff)

def verdict(action, code):
    """The instruction that ends the filter."""
    word = action.partition("SCMP_ACT_")[2]
    if word not in SECCOMP_ACTIONS:
        raise ValueError(f"{action} is no action that is known here")
    return step(BPF_RET, SECCOMP_ACTIONS[word] | (code if word in ("ERRNO", "TRACE") else 0))

def compare(argument, no):
    """Instructions that skip NO others unless a comparison holds: arguments have twice 32 bits."""
    value, place, op = argument["value"], 16 + 8 * argument["index"], argument["op"][9:]
    mask, value = (value, argument.get("valueTwo", 0)) if op == "MASKED_EQ" else (-1, value)
    yes, no = (no, 0) if op in ("NE", "LT", "LE") else (0, no)  # not EQ, GE, GT
    order = {"GT": BPF_JGT, "LE": BPF_JGT, "GE": BPF_JGE, "LT": BPF_JGE,
             "EQ": 0, "NE": 0, "MASKED_EQ": 0}[op]
    return (step(BPF_LD, place + 4) + step(BPF_AND, mask >> 32)
            + (step(BPF_JGT, value >> 32, yes + 4) if order else b"")
            + step(BPF_JEQ, value >> 32, 0, no + 3) + step(BPF_LD, place) + step(BPF_AND, mask)
            + step(order or BPF_JEQ, value, yes, no))

def rules_by_number(rows, otherwise):
    """The instructions for each call that a rule is about: {number: code}. Two comparisons of one
    argument are alternatives, as for runc; a name that this machine doesn't have is skipped."""
    numbers, plain, guarded = call_numbers(), {}, {}  # a rule without arguments beats those with
    for row in rows:
        code, args = verdict(row["action"], row.get("errnoRet", errno.EPERM)), row.get("args") or []
        known = [numbers[name] for name in row["names"] if name in numbers]
        alike, rules = len({each["index"] for each in args}) < len(args), guarded if args else plain
        for group in [[each] for each in args] if alike else [args]:
            part = code
            for argument in reversed(group):
                part = compare(argument, len(part) // 8) + part
            rules.update({number: rules.get(number, b"") + part for number in known})
    return {**{number: code + otherwise for number, code in guarded.items()}, **plain}

def search_tree(ranges):
    """Find a call's instructions: RANGES is [(first number, instructions)] in order."""
    middle = len(ranges) // 2
    if not middle:
        return ranges[0][1]
    below, above = search_tree(ranges[:middle]), search_tree(ranges[middle:])
    skip, first = len(below) // 8, ranges[middle][0]
    if skip < 256:
        return step(BPF_JGE, first, skip) + below + above
    return step(BPF_JGE, first, 0, 1) + step(BPF_JA, skip) + below + above

def assemble_filter(linux):
    """The program for the spec's linux.seccomp; None without one. Calls that are newer than its
    rules get ENOSYS: unlike EPERM it makes programs fall back to older ones.  runc has it so."""
    if "seccomp" not in linux:
        return None
    seccomp, missing = linux["seccomp"], verdict("SCMP_ACT_ERRNO", errno.ENOSYS)
    otherwise = verdict(seccomp["defaultAction"], seccomp.get("defaultErrnoRet") or errno.EPERM)
    rules = rules_by_number(seccomp["syscalls"], otherwise)
    codes = [rules.get(number, otherwise) for number in range(max(rules, default=-1) + 1)]
    ranges = [(n, code) for n, code in enumerate(codes) if not n or code != codes[n - 1]]
    lenient = seccomp["defaultAction"] in ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE")
    ranges.append((len(codes), otherwise if lenient else missing))
    ranges.append((0x40000000, missing))  # x32's: the same calls, under other numbers
    ours = step(BPF_JEQ, SECCOMP_ARCHES[os.uname().machine][1], 1)  # not i386's: others there
    return step(BPF_LD, 4) + ours + missing + step(BPF_LD, 0) + search_tree(ranges)

def notifies(seccomp):
    """True if somebody is to be told of calls, and decides."""
    return any(row["action"] == "SCMP_ACT_NOTIFY" for row in seccomp["syscalls"])

def filter_of(linux):
    """What apply_filter() wants, for the spec's linux.seccomp: (flags, program), or None."""
    if "seccomp" not in linux:
        return None
    flags = sum({SECCOMP_FLAGS[word] for word in linux["seccomp"].get("flags", ())})
    flags &= ~SECCOMP_FLAGS["SECCOMP_FILTER_FLAG_TSYNC"]  # of one thread there is nothing to sync
    if notifies(linux["seccomp"]):
        flags |= SECCOMP_FILTER_FLAG_NEW_LISTENER
    else:
        flags &= ~SECCOMP_FLAGS["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]
    return flags, assemble_filter(linux)

def apply_filter(program, channel):
    """Load a filter; the outside takes the descriptor by which calls are told, if it has one, and
    we none of it: until that is done, only write(2) and read(2) are sure to return."""
    flags, steps = program
    listener = load_filter(steps, flags)
    if flags & SECCOMP_FILTER_FLAG_NEW_LISTENER:
        send(channel, ["listener", listener])
        os.read(channel.fileno(), 1)
        os.close(listener)

def load_filter(steps, flags=0):
    """Put a filter over this process and all that come of it: seccomp(2)."""
    code = (INT * (len(steps) // 4)).from_buffer_copy(steps)
    fprog = (LONG * 2).from_buffer_copy(struct.pack("HP", len(steps) // 8, _ctypes.addressof(code)))
    if not flags:
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, _ctypes.addressof(fprog), 0, 0)  # call filter
        return None
    seccomp = kernel("seccomp", INT, LONG, LONG, number=SECCOMP_CALL)
    with blame(f"linux.seccomp, on flags {flags:#x}"):
        return seccomp(SECCOMP_SET_MODE_FILTER, flags, _ctypes.addressof(fprog))  # call filter

# ── 12. Cgroups ──────────────────────────────────────────────────────────────
# A cgroup is a directory: mkdir makes it, a pid written to its cgroup.procs puts a process in, for
# good and with all its children, and a limit is a file in it.  v2 is one tree of them, with all
# controllers; v1 is a tree for each controller or two; a hybrid host has both, and its v2 has no
# controllers but can still freeze and kill.  So a container has one cgroup, mydocker/<id>, in every
# tree that can be written to (also in one that limits nothing: else it would see the host's there),
# and which file is where is found by looking.  It is in them before its first instruction runs, and
# they are on record before they are made.  See cgroups(7), and cgroup-v2.rst and cgroup-v1/ of the
# kernel.

V2_CONTROLLERS = {"cpu", "cpuset", "io", "memory", "pids"}
ASIDE = "/mydocker.aside"  # where processes go that are in the way of a v2 cgroup's children
INNER = "/container"  # below a scope that systemd doesn't know: see "systemd"
NOT_OURS = errno.EROFS, errno.EACCES, errno.EPERM  # a tree that we may not change, in a container
LEAVING = errno.ENOENT, errno.ENODEV  # from a cgroup that is removed at this moment
NO_SUCH_PLACE = errno.ENOTDIR, errno.ENAMETOOLONG  # where no cgroup can ever have been

def cgroup_dirs(path, asks=False):
    """The cgroups that a container is to have, by its spec's cgroupsPath: /PATH in every tree, PATH
    below our own cgroups, but where systemd manages those and gave them to nobody at the top, or
    SLICE:PREFIX:NAME where systemd has it, if one ASKS it for that.  What may be ours begins behind
    the "/./"."""
    dirs, systemd, trees = [], os.path.isdir("/run/systemd/system"), hierarchies()
    if ".." in path.split("/"):
        raise Failure(f"--cgroup-parent or cgroupsPath, on {path}: it must not contain ..")
    if not {*path.split("/")} - {"", "."}:  # the root of the trees, with all that runs here
        raise Failure(f"cgroupsPath, on {as_typed(path)}: it names no cgroup of its own")
    if path.count(":") == 2 and "/" not in path:
        path = scope_path(path)
        if systemd and list(trees) == [""] and not asks:
            path += INNER
    for point, own in trees.values():
        own = own[:-len(ASIDE)] if own.endswith(ASIDE) else own
        if path[0] == "/" or systemd and not is_delegated(own):
            own = point
        dirs.append(f"{own}/./{os.path.normpath(path).strip('/')}")
    return dirs

def scope_path(path):
    """Where systemd would have the scope SLICE:PREFIX:NAME; a-b.slice lies in a.slice."""
    slice_name, prefix, name = path.split(":")
    words = (slice_name or "system.slice")[:-len(".slice")].split("-")
    slices = ["-".join(words[:end]) + ".slice" for end in range(1, len(words) + 1)]
    if slice_name == "-.slice":  # the root of all: systemd.slice(5)
        slices = []
    return "/".join(["", *slices, f"{prefix}-{name}.scope"])

def is_delegated(path):
    """True if systemd leaves what is below this cgroup to others: systemd's CGROUP_DELEGATION.md.
    In a user namespace that can't be read, but what isn't ours can't be written to either."""
    return in_user_namespace() or "trusted.delegate" in os.listxattr(path)

def hierarchies():
    """The cgroup trees mounted here by their controllers, "" for v2: {controllers: (mount point,
    directory of this process's own cgroup)}.  See cgroups(7)."""
    rows = [line.split(":", 2)[1:] for line in read_all("/proc/self/cgroup").split("\n") if line]
    found, ranks = {}, {}
    for point, kind, _, words, root, number in mounts_here():
        if kind not in ("cgroup", "cgroup2") or mount_id_at(point) != number:
            continue  # it is covered by a later mount: what is there is no file of this tree
        for name, own in rows:
            mine = kind == "cgroup" and name and set(name.split(",")) <= set(words)
            if not mine and (kind == "cgroup" or name):
                continue
            below = os.path.relpath(own, root)  # inside a container the root isn't "/"
            apart = below.startswith("..")  # it shows another's part: perhaps of a container
            rank = apart, len(root)  # the whole tree before a part of it
            if name not in ranks or rank < ranks[name]:
                place = os.path.normpath(f"{point}/{'.' if apart else below}")
                found[name], ranks[name] = (point, place), rank
    return found

def mount_cgroups(target, row, flags, _):
    """Show the container its own cgroup, in the form that the host has: v2, or v1's directories."""
    kinds, guest = row["trees"], is_guest("cgroup")  # then only what is mounted can be shown
    if list(kinds) == [""] and guest:
        os.close(int(os.path.basename(mount_bind(target, {"source": kinds[""][1]},
                                                 flags | MS_BIND, None))))
        return
    if list(kinds) == [""]:
        mount("cgroup", target, "cgroup2", flags, None)  # the namespace's own part of the tree
        return
    place = os.path.realpath(target)  # on the fresh /sys: nobody can have put a link there
    mount("cgroup", place, "tmpfs", flags & ~MS_RDONLY, "mode=755")  # a directory for each one
    for name, (point, own) in kinds.items():
        path = f"{place}/{name.split('=')[-1] or 'unified'}"
        os.mkdir(path)
        if own != point or guest:  # no namespace of its own: its own part all the same, as in runc
            copy = row["copies"].get(point)
            mount_bind(path, {"source": own, "tree": copy}, flags | MS_BIND, None)
            continue
        kind = "cgroup" if name else "cgroup2"
        data = "none," + name if name.startswith("name=") else name or None
        mount("cgroup", path, kind, flags, data)  # the namespace's own part of this hierarchy
        for alias in name.split(",") if "," in name else ():
            os.symlink(name, f"{place}/{alias}")  # as distributions have it
    mount(None, place, None, flags | MS_REMOUNT | MS_BIND, None)  # now as read-only as asked for

def make_cgroups(dirs, resources, pid, found=None):
    """Make those of DIRS that can be made, with limits, the OCI's RESOURCES, and put a process into
    them before it does anything; returns them.  FOUND: the list of those that were there already;
    one that somebody else has made since then is no more ours than these, and is added."""
    made, before = [], list(found or ())
    try:
        found_cgroups(before)  # who had just made them may be in them by now
        for path in dirs:
            for attempts_left in range(99, -1, -1):
                with tolerate(*LEAVING if attempts_left else [0]):  # mydocker/ is being removed
                    new = found is not None and path not in before
                    made += [path] if make_cgroup(path, new) else []
                    break
    except (Failure, FileExistsError) as error:
        if found is not None:
            found += [each for each in dirs if each not in made]
        if isinstance(error, Failure):
            raise
        why = "somebody else has just made it" if os.path.isdir(path) else "not a directory"
        raise Failure(f"cgroupsPath, on {path}: {why}") from None
    limit_cgroups(made, resources)
    try:
        limit_devices(made, resources.get("devices") or ())
    except PermissionError:
        if not in_user_namespace():
            raise Failure("device rules: the kernel takes none from us, but devices could be made",
                          hint="a filter around us forbids bpf(2)? --privileged has no rules"
                          ) from None  # in another user namespace nobody can make one
    enter_cgroups(made, pid)
    return made

def make_cgroup(path, new=False):
    """Make the cgroup at PATH, and what is missing above it; False if its tree isn't ours.  A NEW
    one must not be there."""
    above, _, below = path.partition("/./")
    whole = f"{above}/{below}"
    with tolerate(*NOT_OURS):
        for name in below.split("/"):
            path = f"{above}/{name}"
            hand_down(above)
            try:
                os.mkdir(path)  # a new cgroup
            except FileExistsError:
                if new and path == whole:
                    raise
            if os.path.exists(path + "/cpuset.memory_migrate"):  # v1's starts without processors
                for file in ("/cpuset.cpus", "/cpuset.mems"):
                    if not read_all(path + file).strip():
                        write_value(path + file, read_all(above + file))
            above = path
        return True
    return False

def hand_down(path):
    """Let the cgroups in PATH have the controllers that PATH has; in v1 they do anyway."""
    if not os.path.exists(path + "/cgroup.subtree_control"):
        return
    more = V2_CONTROLLERS & set(read_all(path + "/cgroup.controllers").split())
    more -= set(read_all(path + "/cgroup.subtree_control").split())
    if not more:
        return
    try:
        write_value(path + "/cgroup.subtree_control", "+" + " +".join(more))
    except OSError as error:
        pids = read_all(path + "/cgroup.procs").split()
        if error.errno != errno.EBUSY or not pids:
            raise
        os.makedirs(path + ASIDE, exist_ok=True)  # v2: no processes beside children with limits
        for pid in pids:
            enter_cgroups([path + ASIDE], pid)
        hand_down(path)

def write_value(path, value):
    """Write one value to a file of the kernel's, which takes or refuses it as a whole."""
    with Descriptor(os.open(path, os.O_WRONLY | os.O_CLOEXEC)) as fd:
        try:
            os.write(fd, encode(str(value)))
        except OSError as error:
            error.filename = path  # write(2) doesn't know it
            raise

def cgroup_file(dirs, *names):
    """The first of these files that is in one of the cgroups, or None: v1 and v2 differ in them."""
    return next(filter(os.path.exists, (f"{path}/{name}" for name in names for path in dirs)), None)

def read_number(dirs, *names):
    """The number in the first of these files; 0 where there is none, or it says "max"."""
    path, text = cgroup_file(dirs, *names), ""
    with tolerate(*LEAVING):
        text = read_all(path).strip() if path else ""
    return int(text) if text.isdigit() else 0

def read_sums(dirs, *names):
    """The sums of the numbers that stand after each word in the first of these files."""
    path, words, sums = cgroup_file(dirs, *names), [], {}
    with tolerate(*LEAVING):
        words = read_all(path).replace("=", " ").split() if path else []
    for word, number in zip(words, words[1:]):
        if number.isdigit():
            sums[word] = sums.get(word, 0) + int(number)
    return sums

def usage_of(dirs):
    """What the processes in cgroups use, or have used, and their limits; 0: not known, or none."""
    cpu, memory = read_sums(dirs, "cpu.stat"), read_sums(dirs, "memory.stat")
    disk = read_sums(dirs, "blkio.throttle.io_service_bytes", "io.stat")
    return {
        "cpu_ns": read_number(dirs, "cpuacct.usage") or 1000 * cpu.get("usage_usec", 0),
        "memory": read_number(dirs, "memory.usage_in_bytes", "memory.current"),
        "memory_limit": read_number(dirs, "memory.limit_in_bytes", "memory.max"),
        "cache": memory.get("total_inactive_file") or memory.get("inactive_file", 0),
        "read": disk.get("Read", 0) + disk.get("rbytes", 0),
        "written": disk.get("Write", 0) + disk.get("wbytes", 0),
        "pids": len(cgroup_pids(dirs[:1])), "pids_limit": read_number(dirs, "pids.max")}

def enter_cgroups(dirs, pid):
    for path in dirs:
        with tolerate(errno.ESRCH):  # it has ended
            write_value(path + "/cgroup.procs", pid)

def expect_moves():
    """Have the kernel wait already, in a thread, for what the first of several moves between
    cgroups takes, a grace period of some ten milliseconds: we move to where we are.  If that can't
    be, the first move waits for itself."""
    import _thread
    with tolerate():
        words = read_all("/proc/self/cgroup").partition("\n")[0].split(":", 2)
        if len(words) < 3:
            return  # a kernel without
        tree, own = words[1].replace("name=", ""), words[2]
        fd = Descriptor(os.open(f"/sys/fs/cgroup/{tree}{own}/cgroup.procs",  # there it is mostly
                                os.O_WRONLY | os.O_CLOEXEC))
        try:
            _thread.start_new_thread(move_in_place, (fd,))
        except RuntimeError:  # no more processes are allowed
            os.close(fd)

def move_in_place(fd):
    with tolerate(), fd:
        os.write(fd, b"0")

def cgroup_pids(dirs):
    """The pids of all processes in cgroups and below them."""
    pids = set()
    for path in (path for top in dirs for path, _, _ in os.walk(top)):
        with tolerate(*LEAVING):
            pids.update(map(int, read_all(path + "/cgroup.procs").split()))
    return pids - {0}  # 0: in no PID namespace of ours

def found_cgroups(dirs):
    """Those of DIRS that are there already: they are used as they are, but never killed or removed.
    One in use is a Failure: what runs there would get the container's limits, and its end."""
    outer = [os.path.dirname(path) for path in dirs if path.endswith(".scope" + INNER)]
    found = [path for path in dirs + outer if os.path.isdir(path)]
    for path in found:
        what = f"cgroupsPath, on {path}: it is there already, and"
        for place, _, _ in os.walk(path):
            with tolerate(*LEAVING):
                if read_all(place + "/cgroup.procs"):
                    raise Failure(f"{what} has processes in it")
        if is_paused([path]):
            raise Failure(f"{what} is frozen")
    return found

def own_cgroups(record):
    """The cgroups that are a container's alone."""
    found = record.get("found_cgroups", [])
    return [path for path in record.get("cgroups", []) if path not in found]

# Standing still, and the end

class Freezer:
    """What stops all processes in cgroups: a file, the words for it by whether it is to stop them,
    and where it says that it has, in which lines."""
    def __init__(self, path):
        self.path, self.shown_in = path, path
        self.words = self.states = "THAWED", "FROZEN"
        if path.endswith("/cgroup.freeze"):  # v2's, since 5.2
            self.shown_in = os.path.dirname(path) + "/cgroup.events"
            self.words, self.states = ("0", "1"), ("frozen 0", "frozen 1")

def freezer_of(dirs):
    path = cgroup_file(dirs, "cgroup.freeze", "freezer.state")
    return Freezer(path) if path else None

def is_paused(dirs):
    """True if the processes in cgroups are frozen, or about to be."""
    freezer = freezer_of(dirs)
    if freezer:
        with tolerate(*LEAVING):
            return read_all(freezer.path).strip() != freezer.words[False]
    return False

def freeze(dirs, frozen):
    """Stop all processes in cgroups, which don't notice, or let them go on."""
    freezer, end = freezer_of(dirs), time.monotonic() + GRACE
    if not freezer:
        raise Failure("pause: the container has no cgroup with a freezer",
                      hint=why_no_cgroup() or "mydocker info")
    write_value(freezer.path, freezer.words[frozen])
    while freezer.states[frozen] not in read_all(freezer.shown_in).split("\n"):
        if time.monotonic() > end:
            raise Failure(f"pause, on {freezer.path}: a process can't be stopped")
        time.sleep(0.001)
        write_value(freezer.path, freezer.words[frozen])  # v1: for what was forked in between

def thaw(dirs):
    """Let go on what may be frozen, in cgroups below, too, which a container in this one may have
    paused, by v1's freezer or by v2's where there are both: nothing frozen takes a signal."""
    for top in dirs:
        for path, _, _ in os.walk(top if freezer_of([top]) else ""):
            with tolerate(*LEAVING):
                if is_paused([path]):
                    freeze([path], False)

def kill_cgroups(dirs):
    """Kill all in cgroups, even if it forks faster than it can be counted."""
    killer, freezer = cgroup_file(dirs, "cgroup.kill"), freezer_of(dirs)  # the first: since 5.14
    if killer:
        write_value(killer, 1)
        return
    try:
        if freezer:
            freeze(dirs, True)
        for pid in cgroup_pids(dirs):
            with tolerate(errno.ESRCH):
                os.kill(pid, _signal.SIGKILL)
    finally:
        thaw(dirs)  # what v1 has frozen doesn't even die

def was_out_of_memory(record):
    """True if the kernel has killed something in a container because of its memory limit."""
    sums = read_sums(record.get("cgroups", []), "memory.events", "memory.oom_control")
    return sums.get("oom_kill", 0) > 0

def remove_cgroups(record):
    """Kill what is left in a container's cgroups, and remove them with those that it made in
    them."""
    dirs, end = own_cgroups(record), time.monotonic() + GRACE
    for path in dirs:
        with tolerate(errno.EBUSY, *NO_SUCH_PLACE, *LEAVING):  # most have nothing in them any more
            os.rmdir(path)  # the cgroup goes
        while os.path.isdir(path):
            with tolerate(*LEAVING, time.monotonic() < end and errno.EBUSY):
                for directory, _, _ in os.walk(path, topdown=False):
                    os.rmdir(directory)
                break
            with tolerate(*LEAVING):
                kill_cgroups([path for path in dirs if os.path.isdir(path)])
            time.sleep(0.001)  # the dead leave a little later
        above = os.path.dirname(path)
        with tolerate(errno.EBUSY, errno.ENOTEMPTY, *NO_SUCH_PLACE, *NOT_OURS, *LEAVING):  # others'
            made = path.endswith(".scope" + INNER) and above not in record.get("found_cgroups", [])
            if made:
                os.rmdir(above)
            while "mydocker" in above.split("/")[-2:]:  # mydocker/ itself, or a state root's in it
                os.rmdir(above)  # the cgroup goes
                above = os.path.dirname(above)

# Devices.  Rules as in the OCI's linux.resources.devices: of those that fit, the last one counts.
# In v2 they are compiled: see bpf.h, bpf_cgroup_dev_ctx, and bpf/standardization/ of the kernel.

# linux/bpf.h
BPF_PROG_LOAD, BPF_PROG_ATTACH, BPF_PROG_TYPE_CGROUP_DEVICE = 5, 8, 15
BPF_CGROUP_DEVICE, BPF_F_ALLOW_MULTI = 6, 2

def device(text):
    """A --device argument as the spec's linux.devices has it, and what access is allowed."""
    path, _, rest = text.partition(":")
    place, _, access = rest.partition(":") if rest.startswith("/") else ("", "", rest)
    if set(access) - set("rwm"):
        raise Failure(f"--device, on {text}: it is HOST[:PLACE][:rwm]")
    return device_at(path, place or path, access or "rwm")

def device_at(path, place, access):
    info = os.stat(path)
    kind = stat.filemode(info.st_mode)[0]
    if kind not in "bc":
        raise Failure(f"--device, on {path}: not a device")
    return {"path": place, "type": kind, "access": access,
            "major": os.major(info.st_rdev), "minor": os.minor(info.st_rdev),
            "fileMode": stat.S_IMODE(info.st_mode), "uid": info.st_uid, "gid": info.st_gid}

def wanted_devices(options, own_root):
    """What --device asks for, and with --privileged all that the host has."""
    found = [device(text) for text in options["device"]]
    if options["privileged"] and own_root:
        found += host_devices()
    return found

def host_devices():
    """The host's devices as the spec has them, without terminals in /dev/pts and what init makes,
    and without those that go just now."""
    found = []
    for top, _, names in os.walk("/dev"):
        for path in (f"{top}/{name}" for name in names if name not in ("console", "ptmx")):
            with tolerate(errno.ENOENT):
                if top != "/dev/pts" and stat.filemode(os.lstat(path).st_mode)[0] in "bc":
                    found.append(device_at(path, path, "rwm"))
    return found

def limit_devices(dirs, rules):
    """Let a container use what RULES allow: by v1's controller, or by a BPF program in v2."""
    path, group = cgroup_file(dirs, "devices.allow"), cgroup_file(dirs, "cgroup.events")
    for rule in rules if path else ():
        pair = ":".join(str(rule.get(key, -1)).replace("-1", "*") for key in ("major", "minor"))
        file = "/devices.allow" if rule["allow"] else "/devices.deny"
        write_value(os.path.dirname(path) + file,
                    f"{rule.get('type', 'a')} {pair} {rule['access']}")
    if path or not group or allows_all(rules):
        return
    code = device_program(rules)
    place, words = [(INT * (len(data) // 4)).from_buffer_copy(data) for data in (code, b"MIT\0")]
    load = struct.pack("=IIQQ", BPF_PROG_TYPE_CGROUP_DEVICE, len(code) // 8,
                       _ctypes.addressof(place), _ctypes.addressof(words)).ljust(72, b"\0")
    program = bpf(BPF_PROG_LOAD, load, len(load))  # the kernel checks it
    with Descriptor(program), Descriptor(os.open(os.path.dirname(group), OPEN_DIR)) as target:
        attach = struct.pack("=IIII", target, program, BPF_CGROUP_DEVICE, BPF_F_ALLOW_MULTI)
        bpf(BPF_PROG_ATTACH, attach, len(attach))  # the program lives as long as the cgroup

def allows_all(rules):
    """True if these device rules, of which the last that fits counts, forbid nothing."""
    for rule in reversed(rules):
        if not rule["allow"]:
            return False
        anything = rule.get("type") in (None, "a") and rule["access"] == "rwm"
        if anything and {rule.get("major", -1), rule.get("minor", -1)} == {-1}:
            return True
    return not rules

def device_program(rules):
    """The BPF program for the rules: r1 → access << 16 | type, major, minor; r0 says yes or no."""
    def operation(code, target, source=0, offset=0, value=0):
        return struct.pack("=BBhi", code, source << 4 | target, offset, value)

    load, copy, shift, mask, equal, unequal, answer, leave = (
        0x61, 0xBF, 0x77, 0x57, 0x15, 0x55, 0xB7, 0x95)
    program = operation(load, 2, 1) + operation(copy, 3, 2) + operation(mask, 2, value=0xFFFF)
    program += operation(shift, 3, value=16) + operation(load, 4, 1, 4) + operation(load, 5, 1, 8)
    for rule in reversed([{"allow": False, "access": "rwm"}, *rules]):
        bits = sum({"m": 1, "r": 2, "w": 4}[letter] for letter in rule["access"])
        facts = ((unequal, 2, {"b": 1, "c": 2}.get(rule.get("type"), -1)),
                 (unequal, 4, rule.get("major", -1)), (unequal, 5, rule.get("minor", -1)))
        tests = [fact for fact in facts if fact[2] != -1]
        if bits != 7:  # to be allowed, all that is wanted must be; to be denied, any
            program += operation(copy, 0, 3)
            program += operation(mask, 0, value=7 & ~bits if rule["allow"] else bits)
            tests.append((unequal if rule["allow"] else equal, 0, 0))
        for left, (code, register, value) in zip(range(len(tests), 0, -1), tests):
            program += operation(code, register, offset=left + 1, value=value)  # to the next rule
        program += operation(answer, 0, value=int(rule["allow"])) + operation(leave, 0)
        if not tests:  # the kernel takes no program with a part that is never reached
            return program

# ── 13. systemd ──────────────────────────────────────────────────────────────
# On a host with v2 alone systemd looks after the one tree of cgroups.  What lies in a slice of its
# own that it doesn't know, it leaves alone, but when a unit comes or goes there it may switch the
# slice's controllers off, and limits vanish with them.  So an engine that names a SLICE:PREFIX:NAME
# gets what it means: systemd is asked, over D-Bus, for a scope, a unit of processes that it hasn't
# started, with PID 1 in it and the limits as its properties; and Delegate=yes says that what is
# below is ours.  Where nobody can be asked, the container's cgroup is one below that of the scope:
# no controller can be switched off that a cgroup further down has handed on.
#
# Our own containers lie in mydocker/ at the top of the tree, or in our unit if that is delegated:
# for the same reason nothing can be taken from them there, it works without a bus, and whoever
# stops the unit that a monitor runs in means the container, too (see Watch.stop).
#
# D-Bus (dbus.freedesktop.org/doc/dbus-specification.html; systemd's side is
# org.freedesktop.systemd1(5)): a message is a header and values, each of a type that one letter or
# a few stand for.  A new property is a row in scope_limits.

BUS_SOCKET = "/run/systemd/private"  # root's alone; on it are no others, and no names
BUS_ALIGN = {"b": 4, "u": 4, "s": 4, "o": 4, "a": 4, "t": 8, "(": 8}  # bytes; the others' is 1
BUS_NUMBERS = {"y": "=B", "b": "=I", "u": "=I", "t": "=Q", "g": "=B"}  # of strings the length
BUS_CALL, BUS_ERROR, BUS_SIGNAL = 1, 3, 4
BUS_FIELDS = {3: "member", 4: "error", 5: "answer_to", 8: "signature"}  # those that we ask for
BUS_PATIENCE = 30  # seconds for an answer
UNLIMITED = (1 << 64) - 1
SYSTEMD = "org.freedesktop.systemd1"

# Messages

def put_value(out, kind, value):
    """Append a value of this type to the bytearray OUT; a variant is (type, value)."""
    out += bytes(-len(out) % BUS_ALIGN.get(kind[0], 1))
    if kind in ("s", "o", "g"):
        data = encode(value)
        out += struct.pack(BUS_NUMBERS.get(kind, "=I"), len(data)) + data + b"\0"
    elif kind in BUS_NUMBERS:
        out += struct.pack(BUS_NUMBERS[kind], value)
    elif kind == "v":
        put_value(out, "g", value[0])
        put_value(out, *value)
    elif kind[0] == "(":
        for letter, each in zip(kind[1:-1], value):
            put_value(out, letter, each)
    else:
        place = len(out)
        out += bytes(4)  # its length, when that is known
        out += bytes(-len(out) % BUS_ALIGN.get(kind[1], 1))
        start = len(out)
        for each in value:
            put_value(out, kind[1:], each)
        struct.pack_into("=I", out, place, len(out) - start)

def take_values(data, kinds, at=0):
    """Values of simple types from the bytes of a message, and where they end."""
    values = []
    for kind in kinds:
        at += -at % BUS_ALIGN.get(kind, 1)
        form = BUS_NUMBERS.get(kind, "=I")
        value, at = struct.unpack_from(form, data, at)[0], at + struct.calcsize(form)
        if kind in "sog":
            value, at = data[at:at + value].decode("utf-8", "replace"), at + value + 1
        values.append(value)
    return values, at

def take_fields(data, size):
    """What stands in a message's header, SIZE bytes of numbers with variants: {field: value}."""
    found, at = {}, 16
    while at < 16 + size:
        (code, kind), at = take_values(data, "yg", at + -at % 8)
        (found[BUS_FIELDS.get(code)],), at = take_values(data, kind, at)
    return found

class BusError(Failure):
    """systemd says no; NAME is the D-Bus name of its why."""
    def __init__(self, name, message):
        super().__init__(message)
        self.name = name

class Bus:
    """A connection to systemd; `with` closes it."""
    def __init__(self, path=BUS_SOCKET):
        self.socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        self.serial, self.unread = 0, []
        try:
            self.socket.settimeout(BUS_PATIENCE)
            self.socket.connect(path)
            self.log_in()
        except (Failure, OSError):
            self.socket.close()
            raise

    def __enter__(self):
        return self
    def __exit__(self, *_):
        self.socket.close()

    def log_in(self):
        """Say who we are; the kernel vouches for it.  All in one piece, as systemd's own clients do
        it: a message that comes together with BEGIN isn't seen before the next one."""
        peer = self.socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
        if struct.unpack("=iII", peer)[:2] < (1, 0):  # its pids aren't ours: it is another host's
            raise OSError(errno.EACCES, "it doesn't see our processes", "systemd")
        number = os.geteuid()
        if in_user_namespace() and struct.unpack("=iII", peer)[1] == number:
            number = outer_id()  # to a systemd of our user's, outside
        user = str(number).encode().hex()
        self.socket.sendall(b"\0AUTH EXTERNAL %s\r\nBEGIN\r\n" % user.encode())
        answer = b""
        while not answer.endswith(b"\r\n"):
            answer += self.bytes(1)
        if not answer.startswith(b"OK "):
            raise OSError(errno.EACCES, "it doesn't let us in", "systemd")

    def bytes(self, size):
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            if not more:
                raise Failure("systemd: it has hung up")
            data += more
        return data

    def call(self, member, kinds, *values):
        """Call a method of systemd's manager; returns its answer's values, or raises BusError."""
        body, self.serial = bytearray(), self.serial + 1
        for kind, value in zip(kinds, values):
            put_value(body, kind, value)
        fields = [(1, ("o", "/org/freedesktop/systemd1")), (2, ("s", SYSTEMD + ".Manager")),
                  (3, ("s", member)), (8, ("g", "".join(kinds)))]
        order = ord("l" if sys.byteorder == "little" else "B")
        head = bytearray(struct.pack("=BBBBII", order, BUS_CALL, 0, 1, len(body), self.serial))
        put_value(head, "a(yv)", fields)
        self.socket.sendall(head + bytes(-len(head) % 8) + body)
        while True:
            kind, fields, answer = self.message()
            if kind == BUS_SIGNAL:
                self.unread.append((fields, answer))
            elif fields.get("answer_to") == self.serial:
                if kind == BUS_ERROR:
                    raise BusError(fields["error"], f"systemd, on {member}: {answer[0]}")
                return answer

    def message(self):
        """Wait for the next message: its type, its header's fields, and its values if simple."""
        start = self.bytes(16)
        size, _, fields_size = struct.unpack_from("=III", start, 4)
        fields = take_fields(start + self.bytes(fields_size + -fields_size % 8), fields_size)
        body, kinds = self.bytes(size), fields.get("signature", "")
        return start[1], fields, take_values(body, kinds)[0] if set(kinds) <= set("ybutso") else []

    def finish(self, unit, member, kinds, *values):
        """Call a method that begins a job, and wait until that is done."""
        job = self.call(member, kinds, *values)[0]
        while True:
            fields, answer = self.unread.pop(0) if self.unread else self.message()[1:]
            if fields.get("member") == "JobRemoved" and answer[1] == job:
                if answer[3] != "done":
                    raise Failure(f"systemd, on {unit}: its job is {answer[3]}")
                return

# Scopes

def open_bus(unit=None):
    """A Bus; None on a host without one: no systemd, or v1, where it takes nothing away.  Where it
    was there a moment ago, for this UNIT, that is a Failure."""
    if os.path.isdir("/run/systemd/system") and list(hierarchies()) == [""]:
        with tolerate(errno.ENOENT, errno.ECONNREFUSED, errno.EACCES):
            return Bus()
    if unit:
        raise Failure(f"systemd, on {unit}: it can't be asked any more")
    return None

def scope_name(path):
    """The scope and its slice in a cgroupsPath, SLICE:PREFIX:NAME; None if it is another."""
    parts = path.split(":")
    if len(parts) != 3 or "/" in path:
        return None
    return f"{parts[1]}-{parts[2]}.scope", parts[0] or "system.slice"

def asks_systemd(path):
    """True if a cgroupsPath names a scope, and there is somebody to be asked for it."""
    bus = open_bus() if scope_name(path) else None
    if bus:
        bus.socket.close()
    return bus is not None

def start_scope(spec, record, pid):
    """Have a scope made with this process in it; where it lies is put on record."""
    unit, slice_name = scope_name(spec["linux"]["cgroupsPath"])
    rows = [("Description", ("s", f"mydocker container {record['id']}")),
            ("Slice", ("s", slice_name)), ("PIDs", ("au", [pid])), ("Delegate", ("b", True)),
            ("DefaultDependencies", ("b", False)), ("CollectMode", ("s", "inactive-or-failed"))]
    rows += [(f"{name}Accounting", ("b", True)) for name in ("CPU", "Memory", "IO", "Tasks")]
    rows += scope_limits(spec["linux"]["resources"])
    with open_bus(unit) as bus:
        kinds = "s", "s", "a(sv)", "a(sa(sv))"
        bus.finish(unit, "StartTransientUnit", kinds, unit, "replace", rows, [])
    point, own = hierarchies()[""]
    place = read_all(f"/proc/{pid}/cgroup").partition("0::")[2].split("\n")[0]
    mine = read_all("/proc/self/cgroup").partition("0::")[2].split("\n")[0]
    place = os.path.normpath(f"{own}/{os.path.relpath(place, mine)}")
    record.update(scope=unit, cgroups=[f"{point}/./{os.path.relpath(place, point)}"])

def scope_limits(resources):
    """The OCI's resources as properties of a unit: systemd.resource-control(5)."""
    memory, cpu, pids = (resources.get(group) or {} for group in ("memory", "cpu", "pids"))
    numbers = {"MemoryMax": memory.get("limit"), "MemoryLow": memory.get("reservation"),
               "TasksMax": pids.get("limit") or -1}  # its own default is a few thousand
    if memory.get("swap"):
        numbers["MemorySwapMax"] = limit_text("memory.swap.max", memory["swap"], cpu, memory)
    if cpu.get("shares"):
        numbers["CPUWeight"] = limit_text("cpu.weight", cpu["shares"], cpu, memory)
    if cpu.get("quota"):
        period = cpu.get("period") or 100000
        a_second = -(-cpu["quota"] * 100 // period) * 10000  # it knows whole percents
        numbers["CPUQuotaPerSecUSec"] = a_second if cpu["quota"] > 0 else -1
        numbers["CPUQuotaPeriodUSec"] = period
    rows = []
    for name, value in numbers.items():
        if value == "max" or value and not 0 <= value < UNLIMITED:
            value = UNLIMITED
        if value or name == "MemorySwapMax" and value == 0:
            rows.append((name, ("t", value)))
    for name, key in (("AllowedCPUs", "cpus"), ("AllowedMemoryNodes", "mems")):
        if cpu.get(key):
            rows.append((name, ("ay", bits_of(cpu[key]))))
    return rows

def bits_of(text):
    """A list such as 0-2,5 as a mask in bytes, the lowest first."""
    mask = 0
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        first, last = to_number(first, 1 << 16), to_number(last or first, 1 << 16)
        if first is None or last is None:
            raise Failure(f"cpus or mems, on {text}: not a list, such as 0-2,5")
        mask |= (1 << last + 1) - (1 << first) if first <= last else 0
    return mask.to_bytes((mask.bit_length() + 7) // 8, "little")

def limit_scope(record, resources):
    """Tell systemd of other limits: it would write the old ones again."""
    with open_bus(record["scope"]) as bus:
        rows = scope_limits(resources)
        bus.call("SetUnitProperties", ("s", "b", "a(sv)"), record["scope"], True, rows)

def stop_scope(record):
    """Have systemd forget a container's scope; it may have, as nothing is in it."""
    unit = record["scope"]
    with open_bus(unit) as bus:
        try:
            bus.finish(unit, "StopUnit", "ss", unit, "replace")
            bus.call("ResetFailedUnit", "s", unit)
        except BusError as error:
            if error.name != SYSTEMD + ".NoSuchUnit":
                raise

def outer_id():
    """What our root is outside, by the user namespace's own word."""
    return ids_here("uid")[0][1]

def have_cgroup(*births):
    """Have a cgroup where limits can be: the caller's own systemd makes a scope around this process
    and what it has begun, and leaves what is below to us.  Nothing is said where there is none:
    what needs it will."""
    trees = hierarchies()
    if list(trees) != [""] or os.access(trees[""][1], os.W_OK):
        return
    unit = f"mydocker-{os.urandom(8).hex()}.scope"
    pids = [os.getpid(), *(birth.pid for birth in births if birth)]
    rows = [("Description", ("s", "mydocker")), ("PIDs", ("au", pids)), ("Delegate", ("b", True)),
            ("CollectMode", ("s", "inactive-or-failed"))]
    top = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{outer_id()}"
    with tolerate(errno.ENOENT, errno.ECONNREFUSED, errno.EACCES), Bus(
            top + "/systemd/private") as bus:
        kinds = "s", "s", "a(sv)", "a(sa(sv))"
        bus.finish(unit, "StartTransientUnit", kinds, unit, "replace", rows, [])
        narrate(f"cgroup: {unit}, which systemd has made for it")

# ── 14. Limits ───────────────────────────────────────────────────────────────
# What a container may use is written into the files of its cgroups, what each process of it may use
# is the process's own (getrlimit(2)).  A new limit is a row in LIMITS.

LIMITS = (
    ("memory.limit", "-m --memory --mem", "SIZE", "memory", "memory.limit_in_bytes", "memory.max"),
    ("memory.swap", "--memory-swap", "SIZE", "memory and swap together (default: twice --memory)",
     "memory.memsw.limit_in_bytes", "memory.swap.max"),
    ("memory.reservation", "--memory-reservation", "SIZE", "what it keeps when the host runs short",
     "memory.soft_limit_in_bytes", "memory.low"),
    ("cpu.period", "--cpu-period", "USEC", "what --cpu-quota is a part of (default: 100000)",
     "cpu.cfs_period_us", "cpu.max"),
    ("cpu.quota", "--cpu-quota", "USEC", "processor time a period", "cpu.cfs_quota_us", "cpu.max"),
    ("cpu.quota", "--cpus", "NUMBER", "the same in processors: 0.5", "cpu.cfs_quota_us", "cpu.max"),
    ("cpu.quota", "--cpu", "PERCENT", "the same in percent of one", "cpu.cfs_quota_us", "cpu.max"),
    ("cpu.shares", "-c --cpu-shares", "N", "weight (default: 1024)", "cpu.shares", "cpu.weight"),
    ("cpu.cpus", "--cpuset-cpus --cpuset", "LIST", "processors: 0-2,5", "cpuset.cpus", ""),
    ("cpu.mems", "--cpuset-mems", "LIST", "memory nodes: 0,1", "cpuset.mems", ""),
    ("pids.limit", "--pids-limit", "N", "processes and threads", "pids.max", ""))
LIMIT_OPTIONS = tuple(row[1:4] for row in LIMITS)
MORE_LIMITS = (  # the last is the OCI's name
    ("--cpu-burst", "USEC", "what a period may save up for later ones", "cpu.burst"),
    ("--cpu-idle", "0|1", "only when nobody else wants to run", "cpu.idle"),
    ("--cpu-rt-period", "USEC", "what --cpu-rt-runtime is a part of", "cpu.realtimePeriod"),
    ("--cpu-rt-runtime", "USEC", "real time a period", "cpu.realtimeRuntime"),
    ("--blkio-weight", "N", "weight of reads and writes: 10 to 1000", "blockIO.weight"),
    ("--memory-swappiness", "N", "0 to 100: how readily its memory is swapped out, with v1",
     "memory.swappiness"),
    ("--oom-kill-disable", "", "what goes over --memory stands still, with v1",
     "memory.disableOOMKiller"))
DEVICE_LIMITS = (
    ("--blkio-weight-device", "DEVICE:N...", "the weight at one device", "weightDevice"),
    ("--device-read-bps", "DEVICE:SIZE...", "bytes a second from it", "throttleReadBpsDevice"),
    ("--device-write-bps", "DEVICE:SIZE...", "bytes a second to it", "throttleWriteBpsDevice"),
    ("--device-read-iops", "DEVICE:N...", "reads a second", "throttleReadIOPSDevice"),
    ("--device-write-iops", "DEVICE:N...", "writes a second", "throttleWriteIOPSDevice"))
OF_PERIOD = {"NUMBER": 100000, "PERCENT": 1000}  # microseconds of a usual period
PLAIN_LIMITS = (  # without an option: the OCI's name, v1's file, v2's
    ("memory.kernel", "memory.kmem.limit_in_bytes", ""),
    ("memory.kernelTCP", "memory.kmem.tcp.limit_in_bytes", ""),
    ("memory.swappiness", "memory.swappiness", ""),
    ("memory.disableOOMKiller", "memory.oom_control", ""),
    ("memory.useHierarchy", "memory.use_hierarchy", ""),
    ("cpu.realtimePeriod", "cpu.rt_period_us", ""),
    ("cpu.realtimeRuntime", "cpu.rt_runtime_us", ""),
    ("cpu.burst", "cpu.cfs_burst_us", "cpu.max.burst"),
    ("cpu.idle", "cpu.idle", "cpu.idle"),
    ("blockIO.weight", "blkio.bfq.weight", "io.bfq.weight"),
    ("network.classID", "net_cls.classid", ""))
THROTTLES = {  # the OCI's name: (v1's file, v2's key in io.max)
    "throttleReadBpsDevice": ("blkio.throttle.read_bps_device", "rbps"),
    "throttleWriteBpsDevice": ("blkio.throttle.write_bps_device", "wbps"),
    "throttleReadIOPSDevice": ("blkio.throttle.read_iops_device", "riops"),
    "throttleWriteIOPSDevice": ("blkio.throttle.write_iops_device", "wiops")}
NO_LIMIT = {  # for a device that has none; 0 in other files
    "io.max": "rbps=max wbps=max riops=max wiops=max", "io.bfq.weight": "default",
    "rdma.max": "hca_handle=max hca_object=max"}
RDMA = {"hcaHandles": "hca_handle", "hcaObjects": "hca_object"}  # the OCI's: rdma.max's
PROCESS_LIMITS = (
    ("--oom-score-adj", "N", "-1000 to 1000: the higher, the sooner killed when memory is short"),
    ("--ulimit", "NAME=SOFT[:HARD]...", "a limit of each process: nofile=1024"),
    ("--sysctl", "NAME=VALUE...", "a setting of the container's own network or IPC"),
    ("--cgroup-parent", "PATH", "where in the cgroup trees the container's cgroups go"))
ULIMITS = ("cpu fsize data stack core rss nproc nofile memlock as locks sigpending msgqueue nice "
           "rtprio rttime").split()  # by resource.h's numbers
SYSCTLS = (  # those of a namespace: (how they start, its kind)
    ("net.", "network"), ("fs.mqueue.", "ipc"), ("kernel.msg", "ipc"), ("kernel.sem", "ipc"),
    ("kernel.shm", "ipc"), ("kernel.domainname", "uts"))
offer("run", *LIMIT_OPTIONS, *[row[:3] for row in MORE_LIMITS + DEVICE_LIMITS], *PROCESS_LIMITS,
      ("--device", "HOST[:PLACE][:rwm]...", "add a device of the host's"))

# Cgroups' limits

def limit_value(text, unit, option):
    """An option's value as the OCI has it: a list as it is, or a number, -1 for no limit."""
    if unit == "LIST":
        if not text or set(text) - set("0123456789-,"):
            raise Failure(f"{option}, on {as_typed(text)}: not a list, such as 0-2,5")
        return text
    if unit in OF_PERIOD:
        return quota_of(text, OF_PERIOD[unit], option)
    if unit == "SIZE" and text != "-1":
        return parse_size(text, option)
    number = parse_number(text, option, -1)
    return -1 if option == "--pids-limit" and number == 0 else number  # docker's 0

def quota_of(text, microseconds, option):
    """So many times MICROSECONDS of processor time."""
    if to_number(text.replace(".", "", 1)) is None:
        raise Failure(f"{option}, on {as_typed(text)}: not a number, such as 1.5")
    quota, there = int(float(text) * microseconds), os.cpu_count() or 1
    if quota > there * OF_PERIOD["NUMBER"]:
        raise Failure(f"{option}, on {text}: more than this host's processors, {there}")
    return quota

def resources_of(options):
    """What the options say about limits, as the OCI's linux.resources; 0 says nothing."""
    resources = {"memory": {}, "cpu": {}, "pids": {}}
    for name, *row, _, _ in LIMITS:
        (group, key), option = name.split("."), long_name(row)
        text, found = options[option], resources[group]
        value = 0 if text is None else limit_value(text, row[1], "--" + option)
        if value:
            if key in found or row[1] in OF_PERIOD and "period" in found:
                raise Failure(f"--{option}, on {text}: not with another limit of processor time")
            found[key] = value
    memory = resources["memory"]
    if 0 <= memory.get("limit", -1) < 6 << 20:
        raise Failure(f"--memory, on {options['memory']}: less than 6m, no program starts in that")
    if "limit" in memory:
        memory.setdefault("swap", max(-1, min(2 * memory["limit"], (1 << 63) - 1)))
    for row in MORE_LIMITS:
        group, key = row[3].split(".")
        value = options[long_name(row)]
        if value and row[1]:
            value = parse_number(value, row[0], -1)
        if value or value == 0 and key == "swappiness":
            resources.setdefault(group, {})[key] = value
    if not -2 < memory.get("swappiness", 0) < 101:
        raise Failure(f"--memory-swappiness, on {memory['swappiness']}: not from 0 to 100")
    for row in DEVICE_LIMITS:
        if options.get(long_name(row)):
            resources.setdefault("blockIO", {})[row[3]] = [
                device_limit(row, text) for text in options[long_name(row)]]
    return resources

def device_limit(row, text):
    """What an option of DEVICE_LIMITS says of a device, as the OCI has it."""
    option, kind = row[0], row[1].rpartition(":")[2]
    path, _, value = text.rpartition(":")
    with blame(f"{option}, on {as_typed(text)}"):
        info = os.stat(path)
    if not stat.S_ISBLK(info.st_mode):
        raise Failure(f"{option}, on {path}: it is no block device")
    number = parse_size(value, option) if kind == "SIZE..." else parse_number(value, option, 1)
    return {"major": os.major(info.st_rdev), "minor": os.minor(info.st_rdev),
            "weight" if row[3] == "weightDevice" else "rate": number}

def has_limits(spec):
    """True if a container has any but on devices."""
    return any(value for key, value in spec["linux"]["resources"].items() if key != "devices")

def limit_text(file, value, cpu, memory):
    """A limit's value as its file has it: v2 has some in other ways than v1 and the OCI."""
    if file == "cpu.max":
        return f"{cpu['quota'] if cpu.get('quota', -1) >= 0 else 'max'} {cpu.get('period', 100000)}"
    if file == "cpu.weight":  # the OCI's published curve: 2 → 1, 1024 → 100, 262144 → 10000
        from math import ceil, log2
        power = log2(min(max(value, 2), 262144))
        return ceil(10 ** ((power * power + 125 * power) / 612 - 7 / 34) - 1e-9)
    if file == "memory.swap.max" and value > 0:  # alone, not together with the memory
        return value - memory.get("limit", 1 << 63)
    return "max" if value == -1 and "max" in file else value

class Limit:
    """A value for the first of two files that is there, v1's or v2's; "" where one has none."""
    def __init__(self, what, v1, v1_text, v2="", v2_text=""):
        self.what, self.texts = what, [(v1, v1_text), (v2, v2_text)]

    def place(self, dirs):
        """How to set it in these cgroups: (file, text, what to say if that isn't taken)."""
        for name, text in self.texts:
            path = cgroup_file(dirs, name) if name else None
            if path:
                return path, text, f"{self.what}, on {text}"
        name, text = next(row for row in self.texts if row[0])
        raise Failure(f"{self.what}, on {text}: there is no cgroup with {name} here",
                      hint=why_no_cgroup())

def limit_cgroups(dirs, resources, undo=None):
    """Set the limits of the OCI's RESOURCES; one that the kernel doesn't take is a Failure.  UNDO,
    a list, gets what put_back needs."""
    usual = [*usual_limits(dirs, resources)]
    others = [limit.place(dirs) for limit in other_limits(dirs, resources)]
    for path, text, _ in usual:
        with tolerate():  # some only fit if others are there, or gone: so all are written twice
            set_limit(path, text, undo)
    for path, text, what in usual + others:
        with blame(what):
            set_limit(path, text, undo)

def set_limit(path, text, undo):
    """Write a limit to a file; UNDO, if it is a list, gets the file and what it has said before."""
    before = None if undo is None else text_before(path, str(text))
    write_value(path, text)
    if before is not None:
        undo.append((path, before))

def text_before(path, text):
    """What undoes the writing of TEXT to the file at PATH; None if that can only be written to."""
    name, (first, _, rest) = os.path.basename(path), text.partition(" ")
    with tolerate():
        lines = read_all(path).split("\n")
        if rest and name != "cpu.max":  # a line for each device
            same = [line for line in lines if line.partition(" ")[0] == first]
            return same[0] if same else f"{first} {NO_LIMIT.get(name, 0)}"
        return lines[0].rpartition(" ")[2] if name == "memory.oom_control" else lines[0]
    return None

def put_back(undo):
    """Undo what limit_cgroups has done, the last first."""
    for path, text in reversed(undo):
        try:
            write_value(path, text + "\n")
        except OSError as error:  # the container has more memory by now, or is gone
            warn(f"update, on {path}: {text} can't be put back: {reason(error)}")

def usual_limits(dirs, resources):
    """Yield how to set each limit that has an option, as Limit.place has it."""
    groups = {group: resources.get(group) or {} for group in ("memory", "cpu", "pids")}
    rows = {row[0]: row for row in reversed(LIMITS)}  # of an option with two names the first
    for name, option, _, _, v1, v2 in rows.values():
        group, key = name.split(".")
        value = groups[group].get(key)
        if not value:  # 0 means nothing
            continue
        path = cgroup_file(dirs, v1, v2 or v1)
        what = f"--{long_name((option,))}, on {value}"
        if not path and value == -1:
            continue  # nothing limits it
        if path:
            text = limit_text(os.path.basename(path), value, groups["cpu"], groups["memory"])
            yield path, text, what
        elif name == "memory.swap":
            warn("--memory: the kernel doesn't count swap: only memory is limited")
        else:
            raise Failure(f"{what}: there is no cgroup with {v1} here", hint=why_no_cgroup())

def other_limits(dirs, resources):
    """Yield a Limit for each of the OCI's that isn't a usual one; 0 is one of swapping alone."""
    for name, v1, v2 in PLAIN_LIMITS:
        group, key = name.split(".")
        found = resources.get(group) or {}
        value = int(found.get(key) or 0)
        wanted = value != 0
        if key == "swappiness":
            wanted = value > 0 or value == 0 and key in found and cgroup_file(dirs, v1)
        if wanted:
            yield Limit(name, v1, value, v2, value)
    yield from device_limits(resources.get("blockIO") or {})
    for row in resources.get("hugepageLimits") or ():
        if row["limit"]:
            if "/" in row["pageSize"]:
                raise Failure(f"hugepageLimits, on {row['pageSize']}: not a size of pages")
            file = f"hugetlb.{row['pageSize']}."
            yield Limit("hugepageLimits", file + "limit_in_bytes", row["limit"],
                        file + "max", row["limit"])
    for row in (resources.get("network") or {}).get("priorities") or ():
        yield Limit("network.priorities", "net_prio.ifpriomap", f"{row['name']} {row['priority']}")
    for device, row in (resources.get("rdma") or {}).items():
        words = [f"{file}={row[key]}" for key, file in RDMA.items() if key in row]
        text = " ".join([device, *words])
        yield Limit("rdma", "rdma.max", text, "rdma.max", text)
    for file, text in (resources.get("unified") or {}).items():
        if "/" in file or not file:
            raise Failure(f"unified, on {file}: not a file's name")
        yield Limit("unified", "", "", file, text)

def device_limits(block_io):
    """Yield a Limit for each device with a weight or a rate of its own: blkio-controller.rst, and
    cgroup-v2.rst "IO Interface Files"."""
    for row in block_io.get("weightDevice") or ():
        weight = f"{row['major']}:{row['minor']} {row['weight']}"
        yield Limit("blockIO.weightDevice", "blkio.bfq.weight_device", weight,
                    "io.bfq.weight", weight)
    for key, (v1_file, v2_key) in THROTTLES.items():
        for row in block_io.get(key) or ():
            device = f"{row['major']}:{row['minor']}"
            yield Limit(f"blockIO.{key}", v1_file, f"{device} {row['rate']}",
                        "io.max", f"{device} {v2_key}={row['rate'] or 'max'}")

def limits_there(dirs):
    """What the kernel has made of the limits: {file: its text}."""
    paths = {cgroup_file(dirs, v1, v2 or v1) for *_, v1, v2 in LIMITS} - {None}
    return {os.path.basename(path): read_all(path).strip() for path in sorted(paths)}

@command("[OPTIONS] CONTAINER...", "change the limits of containers, at once if they run",
         *LIMIT_OPTIONS, *[row[:3] for row in MORE_LIMITS],
         ("-r --resources", "FILE|-", "limits as the OCI's resources"),
         ("--restart", "POLICY", "start it again: no, on-failure[:N], always or unless-stopped"),
         many=True)
def cmd_update(options, name):
    record, policy, file = find_container(name), options["restart"], options["resources"]
    if policy is not None:
        check_restart(policy)
        if not record["keep"]:
            raise Failure(f"update, on --restart: {name} is removed when it has ended")
    wanted = read_resources(file) if file else resources_of(options)
    with hold(container_path(record)):
        change_limits(record, wanted)
    if policy is not None:
        change_record(record, restart=policy)

def change_limits(record, wanted):
    """Change what a container may use, on disk and in the kernel, or neither: WANTED is the OCI's
    resources, and what isn't in it stays as it is."""
    path, undo = container_path(record, "config.json"), []
    spec = read_json(path)
    resources = spec["linux"]["resources"]
    for group, values in wanted.items():
        if isinstance(values, dict):
            more = {key: value for key, value in values.items() if value}  # 0: leave it
            resources.setdefault(group, {}).update(more)
        elif values:
            resources[group] = values
    try:
        dirs = record["cgroups"]
        if record["running"] and (not dirs or any(map(os.path.isdir, dirs))):  # not between starts
            limit_cgroups(dirs, resources, undo)
            if "scope" in record:
                limit_scope(record, resources)
        write_json(path, spec)
    except (Failure, OSError):
        put_back(undo)
        if "scope" in record:
            limit_scope(record, read_json(path)["linux"]["resources"])
        raise

# Limits of a process, settings of a namespace

def ulimit(text):
    """A --ulimit argument, NAME=SOFT[:HARD], as the spec's process.rlimits has it."""
    name, _, values = text.partition("=")
    soft, _, hard = values.replace("unlimited", "-1").partition(":")
    for value in (soft, hard or soft):
        if name not in ULIMITS or value != "-1" and to_number(value, 1 << 64) is None:
            raise Failure(f"--ulimit, on {text}: it is NAME=SOFT[:HARD], with {' '.join(ULIMITS)}")
    return {"type": "RLIMIT_" + name.upper(), "soft": int(soft) % (1 << 64),
            "hard": int(hard or soft) % (1 << 64)}

def limit_process(process, pid=0):
    """Give this process, or another, its limits: getrlimit(2), proc_pid_oom_score_adj(5).  Another
    user's can be refused: it is to take them itself, too."""
    for row in process.get("rlimits") or ():
        name, soft, hard = row["type"][7:].lower(), row["soft"], row["hard"]
        limits = struct.pack("QQ", soft, hard)
        grant(f"--ulimit, on {name}={soft}:{hard}", prlimit, pid, ULIMITS.index(name), limits, None,
              quiet=pid != 0)
    score = process.get("oomScoreAdj")
    if score is not None:
        path = f"/proc/{pid or 'self'}/oom_score_adj"
        grant(f"--oom-score-adj, on {score}", write_value, path, score)
    if {"scheduler", "ioPriority"} & {*process}:
        schedule(process, pid)

def grant(what, call, *args, quiet=False):
    """Make a call that may take CAP_SYS_RESOURCE; root in a container may not have that."""
    try:
        call(*args)  # a limit of this process, and of what it becomes
    except PermissionError:
        if not quiet:
            warn(f"{what}: CAP_SYS_RESOURCE is missing, ignoring")
    except OSError as error:
        raise Failure(f"{what}: {reason(error)}") from None

def sysctl_parts(name):
    """The directories and the file of a setting: as sysctl(8) has it, what comes first, "." or "/",
    parts them, and the other one is the "." of a name, such as eth0.100."""
    if "/" not in name.partition(".")[0]:
        return [part.replace("/", ".") for part in name.split(".")]
    return name.split("/")

def set_sysctls(sysctls):
    """Set {name: value} in this process's namespaces, and nothing else, by no name or link."""
    for name, value in sysctls.items():
        what, parts = f"--sysctl, on {name}={value}", sysctl_parts(name)
        path, starts = "/proc/sys/" + "/".join(parts), tuple(start for start, _ in SYSCTLS)
        if not ".".join(parts).startswith(starts) or {"", ".", ".."} & {*parts}:
            raise Failure(f"{what}: only the container's own can be set: {'* '.join(starts)}*")
        with blame(what), Descriptor(os.open("/", OPEN_DIR)) as root, Descriptor(
                open_in_root(root, path, os.O_WRONLY, RESOLVE_NO_SYMLINKS)) as fd:
            if not is_proc(fd):  # CVE-2025-52881
                raise Failure(f"{what}: {path} isn't the kernel's")
            os.write(fd, encode(value))

# ── 15. Devices ──────────────────────────────────────────────────────────────
# A container's /dev is a fresh tmpfs with a few devices, and what --device or an engine adds.  A
# node is made with mknod(2); in a user namespace, where that can't be, the host's is shown.  That
# there is a node doesn't mean that it may be opened: see limit_devices.

DEVICES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9),
           ("tty", 5, 0))
DEV_LINKS = (("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1"),
             ("stderr", "/proc/self/fd/2"), ("ptmx", "pts/ptmx"))

def device_rules(devices):
    """Docker's rules, and DEVICES: a node of any can be made, but few can be used."""
    usual = [*(row[1:] for row in DEVICES), (5, 1), (5, 2), (136, -1)]  # -1: all; terminals
    rules = [("c", -1, -1, "m"), ("b", -1, -1, "m"), *(("c", *pair, "rwm") for pair in usual)]
    rules += [(row["type"], row["major"], row["minor"], row["access"]) for row in devices]
    return [{"allow": False, "access": "rwm"}] + [
        dict(zip(("type", "major", "minor", "access"), rule), allow=True) for rule in rules]

def dev_rows(spec):
    return [row for row in spec["mounts"]
            if os.path.normpath(row["destination"]).strip("/") in ("dev", "", ".")]

def dev_row(spec):
    """The row that makes /dev, if it is ours to be filled: empty, and nobody else's."""
    rows = [row for row in dev_rows(spec) if "dev" in row["destination"]]
    if rows and rows[-1]["type"] == "tmpfs" and not {"bind", "rbind"} & set(rows[-1]["options"]):
        return rows[-1]
    return None

def make_devices(root, spec):
    """Fill the fresh /dev: what any program expects, and what --device added; returns what it is,
    os.stat's.  A device may be elsewhere in the root, but nothing makes room for it there."""
    rows = {f"/dev/{name}": {"path": f"/dev/{name}", "type": "c", "major": major, "minor": minor}
            for name, major, minor in DEVICES}
    rows.update((row["path"], row) for row in spec["linux"].get("devices") or [])
    umask = os.umask(0)
    with Descriptor(open_in_root(root, "/dev", OPEN_DIR | os.O_NOFOLLOW)) as dev:
        for path, row in rows.items():
            if path.startswith("/dev/") and path[5:] in dict(DEV_LINKS):
                continue  # the host's ptmx may be among the devices
            with Descriptor(make_device_folder(root, path, dev)) as above:
                if mount_id(above) == mount_id(dev):
                    remove_tree(os.path.basename(path), above)  # what tmpcopyup put there
                make_device(row, above, os.path.basename(path))
        for name, target in DEV_LINKS:
            remove_tree(name, dev)
            os.symlink(target, name, dir_fd=dev)  # as every program expects them
        os.umask(umask)
        return os.fstat(dev)

def add_devices(root, spec):
    """Add what is missing to a root's own /dev, where nothing is mounted: nothing makes room there,
    and where nothing can be written what any program expects may be there already."""
    with blame("device, on /dev"):
        dev = Descriptor(make_in_root(root, "/dev", True, RESOLVE_NO_SYMLINKS))
    with dev:
        place, rows, umask = f"/proc/self/fd/{dev}", [], os.umask(0)
        if os.access(place, os.W_OK):
            rows = [{"path": f"/dev/{name}", "type": "c", "major": major, "minor": minor}
                    for name, major, minor in DEVICES if not os.path.lexists(f"{place}/{name}")]
            for name, target in DEV_LINKS:
                with tolerate(errno.EEXIST):
                    os.symlink(target, name, dir_fd=dev)  # as every program expects them
        for row in rows + (spec["linux"].get("devices") or []):
            with Descriptor(make_device_folder(root, row["path"], dev)) as above:
                make_device(row, above, os.path.basename(row["path"]))
        os.umask(umask)

def make_device_folder(root, path, dev):
    """Open, or make, the directory of a device: in DEV, or in what is the root itself, but not in
    anything else that is mounted there: it could be the host's."""
    there = folder = os.path.dirname(path)
    with blame(f"device, on {path}"):
        while True:
            try:
                place = Descriptor(open_in_root(root, there, resolve=RESOLVE_NO_SYMLINKS))
                break
            except FileNotFoundError:
                there = os.path.dirname(there)
        with place:
            if mount_id(place) not in (mount_id(dev), mount_id(root)):
                raise Failure(f"device, on {path}: {there} is on another mount")
        return make_in_root(root, folder, True, RESOLVE_NO_SYMLINKS)

def make_device(row, above, name):
    """Make a device's node, or where none can be made, in a user namespace, show the host's."""
    kind = {"b": stat.S_IFBLK, "p": stat.S_IFIFO}.get(row["type"], stat.S_IFCHR)
    number = os.makedev(row.get("major") or 0, row.get("minor") or 0)
    mode = 0o666
    if row.get("fileMode") is not None:
        mode = stat.S_IMODE(row["fileMode"])  # docker's holds the kind, too
    with blame(f"device, on {row['path']}"):
        try:
            os.mknod(name, kind | mode, number, dir_fd=above)  # a device
            os.chown(name, row.get("uid") or 0, row.get("gid") or 0, dir_fd=above,
                     follow_symlinks=False)  # who has the same root may have changed it
            return
        except FileExistsError:  # elsewhere than in /dev, from an earlier container with that root
            there = os.stat(name, dir_fd=above, follow_symlinks=False)
            if stat.S_IFMT(there.st_mode) != kind or there.st_rdev != number:
                raise
            return
        except PermissionError:
            info = os.stat(row["path"])
        if stat.S_IFMT(info.st_mode) != kind or info.st_rdev != number:
            raise Failure(f"device, on {row['path']}: it is another one on the host")
        os.close(os.open(name, OPEN_NEW, 0o600, dir_fd=above))
        mount(row["path"], f"/proc/self/fd/{above}/{name}", None, MS_BIND, None)  # the host's own

# ── 16. Other roots ──────────────────────────────────────────────────────────
# What is done where a root can't be made as usual: a throw-away layer over the host's own root, a
# kernel or a file system without overlays, a ramdisk, a chroot around us, somebody else's mounts.

NOT_FILES = (  # file systems that show the kernel's state: a throw-away copy makes no sense
    "autofs binfmt_misc bpf cgroup cgroup2 configfs debugfs devpts devtmpfs efivarfs fusectl "
    "hugetlbfs mqueue nsfs proc pstore rpc_pipefs securityfs selinuxfs sysfs tracefs").split()

def guest_sys(row):
    """The /sys row of a container in a network that isn't our user namespace's: only the host's own
    can be shown."""
    bound = mount_row("/sys", "bind", "rbind", "nosuid", "noexec", "nodev", "rro", source="/sys")
    return dict(row, fallback=bound)

def ephemeral_mounts(scratch):
    """The rows that put a throw-away layer, in SCRATCH, over the host's root and each file system
    on it.  What can't lie under an overlay (a single file, say) is shown read-only instead.  /proc,
    /sys and /dev, whatever they are, are covered by rows of their own."""
    points = {"/"} | {
        point for point, kind, *_ in mounts_here() if kind not in NOT_FILES
        and not f"{point}/".startswith(("/proc/", "/sys/", "/dev/")) and os.path.exists(point)}
    if is_guest("mnt"):  # what lies below other mounts stays hidden, so "/" is in no overlay
        points |= {f"/{name}" for name in os.listdir("/") if name not in ("proc", "sys", "dev")
                   and stat.S_ISDIR(os.lstat(f"/{name}").st_mode)}
    rows = []
    for number, point in enumerate(sorted(points)):
        as_it_is = dict(mount_row(point, "bind", "rbind", "rro", source=point), seen=point)
        layered = dict(layers_row(point, [point], f"{scratch}/{number}"), seen=point,
                       fallback=as_it_is)
        rows.append(layered if os.path.isdir(point) else as_it_is)
    return rows

def is_open_to_all(path):
    """False if a directory above PATH can't be entered by everybody, or nothing is there."""
    try:
        while path != "/":
            path = os.path.dirname(path)
            if not os.stat(path).st_mode & stat.S_IXOTH:
                return False
    except OSError:
        pass  # init says what is wrong with it
    return True

def open_others_mounts(spec):
    """What init needs to go where the mounts are somebody else's: their namespace, open, and where
    that is the host's the root directory in it."""
    paths = {row["type"]: row.get("path") for row in spec["linux"]["namespaces"]}
    if "mount" in paths:
        return [open_namespace(paths["mount"])]
    root = spec["root"]["path"]
    with blame(f"root.path, on {root}"):
        return [Descriptor(os.open(root, OPEN_DIR)), open_namespace("/proc/self/ns/mnt")]

def leave_chroot():
    """Make the root of a chroot(2) that we may be in that of our mount namespace, a new one.  Its
    own is the host's: who has CAP_SYS_CHROOT inside could climb there, and whoever joins a
    container would start there.  See setns(2)."""
    if not has_power(CAP_SYS_CHROOT):  # a chroot can be left by who has it
        return
    here, root = (Descriptor(os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in (".", "/"))
    with here, root, Descriptor(os.open("/proc/self/fd", OPEN_DIR)) as fds:
        with open_namespace("/proc/self/ns/mnt") as own:
            os.setns(own, CLONE_NEWNS)  # to the root of these mounts: in a chroot it is another
        path, work = (os.readlink(str(fd), dir_fd=fds) for fd in (root, here))
        os.fchdir(root)
        if path == "/":
            os.chroot(".")  # not what was mounted over it since
            os.fchdir(here)
        else:
            turn_to_root(root, path)
            with tolerate(errno.ENOENT):
                os.chdir("/" + os.path.relpath(work, path))

def turn_to_root(root, path):
    """Make the directory ROOT, at PATH and where we are, the only root that there is."""
    mount(None, "/", None, MS_REC | MS_SLAVE, None)  # the next ones the host must not see
    mount(".", ".", None, MS_BIND | MS_REC, None)  # the chroot's directory, as a mount
    os.chdir(path)  # what lies there now
    if not os.path.samestat(os.stat("."), os.fstat(root)):
        raise Failure(f"chroot, on {path}: it was moved meanwhile")
    try:
        pivot_root(".", ".")  # it is "/"; the host's root lies on top of it
        umount2(".", MNT_DETACH)  # and is gone
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        move_root(path)  # the host's is a ramdisk
    os.chdir("/")

def enter_others_mounts(spec, fds):
    """Go where the mounts are somebody else's, in a root there.  Nothing is mounted: that would be
    theirs, too.  See open_others_mounts."""
    with Descriptor(fds.pop()) as namespace, blame("linux.namespaces, on mount"):
        os.setns(namespace, CLONE_NEWNS)  # from here on, paths are theirs
    if fds:
        change_root(fds.pop())
        make_workdir("/", spec["process"]["cwd"])
        return
    path = spec["root"]["path"]
    with blame(f"root.path, on {path}, in the mount namespace that is joined"):
        change_root(os.open(path, OPEN_DIR))

def move_root(path):
    """Enter the root at PATH, where we are, without pivot_root(2), which a ramdisk has not.  The
    host's proc and sysfs go first: who could unmount things would find them below."""
    for point, kind, *_ in mounts_here():
        if kind in ("proc", "sysfs") and not (point + "/").startswith(path + "/"):
            with tolerate(errno.EINVAL, errno.ENOENT):  # it went with another one
                umount2(point, MNT_DETACH)  # out of reach
    mount(path, "/", None, MS_MOVE, None)  # the new root lies over the old one
    os.chroot(".")  # and is "/" from here on
    os.chdir("/")

def mount_copy(target, row, flags, data):
    """Where overlayfs can't stack the layers, copy them one over the other, once."""
    if not os.path.isdir(row["source"]):
        warn(f"overlay, on the image's layers: {why_no_overlay(row)}: copying them")
        copy_layers(row)
    return mount_bind(target, row, flags | MS_BIND, data)

def why_no_overlay(row):
    """What the kernel said when it was to stack a row's layers, and what that means."""
    error = row.get("refused")
    if error is None:
        return "they can't be stacked with other ids"
    if error.errno == errno.EINVAL:  # what else there is, only its log says
        return f"{reason(error)} (does the state root lie on an overlay?)"
    if error.errno in (errno.ENODEV, errno.ENOENT):
        return f"{reason(error)} (module overlay)"
    hint = hint_for(error)
    return reason(error) + (hint and f" ({hint})")

def copy_layers(row, **how):
    """Unpack the layers of a "layers" row, one over the other, where its "copy" has them."""
    new = row["source"] + ".new"
    remove_tree(new)
    os.mkdir(new, 0o755)
    with Descriptor(os.open(new, OPEN_DIR)) as below:
        for option in reversed(row["options"]):
            key, _, layer = option.partition("=")
            if key == "lowerdir":
                with Descriptor(os.open(layer, OPEN_DIR)) as above:
                    unpack_layer(pack_tree(above, "stored"), below, whiteouts="apply", **how)
        syncfs(below)  # its name is trusted from here on, also after a power loss
    os.rename(new, row["source"])

# ── 17. What is shared ───────────────────────────────────────────────────────
# Namespaces of the host's, or of another container's, in place of ones of its own: --pid, --ipc,
# --uts, --cgroupns and --network container:X.  Another's are looked up anew at each start.

def plan_sharing(spec, options):
    """Write into the spec what it shares with the host or other containers, and what else was asked
    for by name."""
    for option, (kind, words) in SHARED.items():
        word = options[option] or "private"
        lends = option in ("pid", "ipc") and word.startswith("container:")
        if word not in words and not lends:
            raise Failure(f"--{option}, on {word}: not {', '.join(words)}",
                          hint="another container's are shared by --pid, --ipc and --network "
                               "container:X")
        if word == "host":
            rows = spec["linux"]["namespaces"]
            spec["linux"]["namespaces"] = [row for row in rows if row["type"] != kind]
        if lends:
            spec["annotations"][f"mydocker.{kind}"] = find_container(word.partition(":")[2])["id"]
    plan_memory_files(spec, options["ipc"] or "private")
    if options["uts"] == "host":
        if options["hostname"] or options["domainname"]:
            raise Failure("--hostname: it can't go with --uts host")
        spec["hostname"] = os.uname().nodename
    elif options["domainname"]:
        spec["domainname"] = options["domainname"]
    for text in options["annotation"]:
        key, equals, value = text.partition("=")
        if not key or not equals or key.startswith("mydocker."):
            raise Failure(f"--annotation, on {text}: it is KEY=VALUE, and mydocker.* is taken")
        spec["annotations"][key] = value
    if options["group-add"]:
        spec["process"]["user"]["groups"] = options["group-add"]
    plan_process_limits(spec["process"], options)

def borrow_namespaces(spec, record):
    """Let a container join what --network, --pid and --ipc container:ID name; returns the spec with
    that, and the descriptors that it needs."""
    lent = {kind: spec["annotations"][f"mydocker.{kind}"] for kind in ("pid", "ipc")
            if f"mydocker.{kind}" in spec["annotations"]}
    if ":" in record["network"]:
        lent["network"] = record["network"].partition(":")[2]
    rows, fds = [row for row in spec["linux"]["namespaces"] if row["type"] not in lent], []
    for kind, lender in lent.items():
        fds.append(lent_namespace(find_container(lender), NAMESPACES[kind][1]))
        rows.append({"type": kind, "path": f"/proc/self/fd/{fds[-1]}"})
    return dict(spec, linux=dict(spec["linux"], namespaces=rows)), fds

def lent_namespace(lender, name):
    """A descriptor of a running container's namespace of that name in /proc/PID/ns."""
    fd = os.open(f"/proc/{live_pid(lender)}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
    live_pid(lender)  # the pid wasn't used again before it was open
    return fd

def lent_tree(row):
    """A copy of another container's mount.  Only in its mount namespace the kernel makes one; and
    as there is no way back from there, a child enters it."""
    space = lent_namespace(find_container(row["lender"]), "mnt")
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    child = os.fork()  # to enter it
    if not child:
        try:
            os.setns(space, CLONE_NEWNS)
            tree = open_tree(AT_FDCWD, row["source"],  # a copy of the mount
                             OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)
            send(theirs, "tree", [tree])
        except Exception as error:
            send(theirs, describe(error, "--ipc"))
        finally:
            os._exit(0)
    theirs.close()
    os.close(space)
    message, fds = receive(ours)
    os.waitpid(child, 0)
    if not fds:
        raise Failure(*message or ("--ipc: interrupted",))
    return Descriptor(fds[0])

# ── 18. Terminal and logs ────────────────────────────────────────────────────
# With -t the command gets a terminal that is made inside, in the container's own devpts.  Only
# its master end comes out, and `run` copies bytes between that and the caller's terminal, which
# is in raw mode meanwhile: every key, Ctrl-C too, is for the terminal inside to interpret.  The
# caller's terminal itself never enters, so nothing can be typed into it (TIOCSTI, CVE-2017-5226).
#
# Without -t the command has the caller's own descriptors where those are pipes, or /dev/null, and
# nothing is copied.  A file or a terminal of the caller's stays outside, as by /dev/stdout and the
# like it could be opened anew, and emptied, written or read: there `run` copies, by pipes.  In the
# background, and where bytes are copied anyway, what a container says is kept in its log.
#
# The log has the form of Kubernetes' CRI, a line of it for each line that was said:
#
#   2026-01-08T01:32:52.123456789Z stdout F text       F: the line is complete
#   2026-01-08T01:32:53.123456789Z stderr P text       P: it goes on in this stream's next one
#
# It is written as it comes, so nothing is lost with the monitor.  A full file moves out of the way,
# container.log to container.log.1 and so on.  A full disk stops no container: what couldn't be
# written is counted, and said in the first line that can be.

# asm-generic/ioctls.h
TIOCGWINSZ, TIOCSWINSZ = 0x5413, 0x5414
TIOCSPTLCK, TIOCGPTPEER = 0x40045431, 0x5441
FIONREAD = 0x541B

def caller_size():
    for fd in (0, 1, 2):
        with tolerate():  # ENOTTY
            return struct.unpack("HHHH", fcntl.ioctl(fd, TIOCGWINSZ, b"\0" * 8))[:2]
    return None

def resize(terminal):
    size = caller_size()
    if size:
        fcntl.ioctl(terminal, TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))

def raw_mode(fd):
    """Put a terminal in raw mode, what was typed ahead is kept; returns its attributes before."""
    import termios, tty
    before = termios.tcgetattr(fd)
    tty.setraw(fd, termios.TCSADRAIN)
    return before

def set_terminal(fd, attributes):
    """Change a terminal's attributes; it may have gone meanwhile."""
    import termios
    try:
        termios.tcsetattr(fd, termios.TCSADRAIN, attributes)
    except termios.error as error:
        if error.args[0] != errno.EIO:
            raise OSError(*error.args) from None

def end_of_file_key(master, last):
    """What to type for end-of-file after the bytes LAST: ^D, twice if a line is unfinished."""
    import termios
    key = termios.tcgetattr(master)[6][termios.VEOF]
    return key if last.endswith(b"\n") or not last else key + key

def hand_out_terminal(channel, process, uid):
    """Make the container's terminal, if it's to have one, and send run its master end: sync 2."""
    if not process["terminal"]:
        return None
    flags = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
    with Descriptor(os.open("/dev/pts/ptmx", flags)) as master:
        fcntl.ioctl(master, TIOCSPTLCK, struct.pack("i", 0))
        # By descriptor, as a name in /dev/pts could lead elsewhere: CVE-2025-52565
        slave = fcntl.ioctl(master, TIOCGPTPEER, flags)
        if process.get("consoleSize"):
            fcntl.ioctl(slave, TIOCSWINSZ, struct.pack("HHHH", *process["consoleSize"], 0, 0))
        os.fchown(slave, uid, -1)  # the container's own terminal is its user's
        send(channel, "terminal", [master])
    return slave

def output_pipes(process, attached, hidden=None):
    """The pipes by which a command's output comes to us, [(read end, write end)] for 1 and 2.
    In the foreground it has the caller's own 1 and 2 if both are pipes, or /dev/null.  A file could
    be emptied by /dev/stdout, a terminal read, and another user than root couldn't open either; and
    a pipe can be given away."""
    if process["terminal"] or attached and not (hidden or needs_pipe(1) or needs_pipe(2)):
        return []
    pipe, (one, two) = os.pipe(), map(os.fstat, (1, 2))
    if attached and not hidden and os.path.samestat(one, two):
        return [pipe, pipe]  # in one, what is said keeps its order
    return [pipe, os.pipe()]

def needs_pipe(fd):
    """True for files, sockets, fifos with a name and terminals: neither a pipe nor /dev/null."""
    info = os.fstat(fd)
    return info.st_dev != pipe_device() and (os.isatty(fd) or not stat.S_ISCHR(info.st_mode))

def input_pipe(monitor):
    """The read end of a pipe by which the caller's input goes to a command, or None if it gets the
    caller's 0 itself.  A file could be written by /dev/stdin; and from a terminal we read
    ourselves, so that job control can stop it."""
    mode = os.fstat(0).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode) or os.isatty(0)):
        return None
    if stat.S_ISREG(mode):
        monitor["begin"] = os.lseek(0, 0, os.SEEK_CUR)
    end, monitor["feed"] = os.pipe()
    return end

def read_ends(pipes):
    return sorted({end for end, _ in pipes}, key=[end for end, _ in pipes].index)

def give_back(monitor, left):
    """What a command hasn't read of a file is the next one's, which may have the same 0: what is in
    its pipe, where it may write itself, and LEFT bytes that aren't yet."""
    if "begin" not in monitor:
        return
    unread = struct.unpack("i", fcntl.ioctl(monitor["stdin"], FIONREAD, b"\0" * 4))[0]
    if unread:
        left += len(os.read(monitor["stdin"], unread))
    os.lseek(0, max(monitor["begin"], os.lseek(0, 0, os.SEEK_CUR) - left), os.SEEK_SET)

def is_file(fd):
    return stat.S_ISREG(os.fstat(fd).st_mode)

def log_relays(monitor, write):
    """The streams for what comes by pipes, to the log and, in the foreground, to the caller."""
    streams = []
    for fd, name, sink in zip(monitor["outputs"], ("stdout", "stderr"), (1, 2)):
        log = None
        if monitor["logged"]:
            log = lambda data, name=name: write(name, data)
        shown = monitor["attached"] and sink not in monitor.get("hidden", ())
        streams.append(Relay(fd, sink if shown else None, log=log,
                             at_once=1 << 16 if is_file(sink) else 4096))
    return streams

def relays(monitor):
    """The streams that a container's monitor has to carry: (outputs, inputs)."""
    terminal, attached, record = monitor["master"], monitor["attached"], monitor["record"]
    write = Log(container_path(record, "container.log"), *record.get("log") or (0, 1)).write
    if terminal is None:
        return log_relays(monitor, write), feeds(monitor)
    os.set_blocking(terminal, False)
    shown, log = None, None
    if attached:
        resize(terminal)
        shown = None if 1 in monitor.get("hidden", ()) else 1
    if monitor["logged"]:
        log = lambda data: write("stdout", data)
    outputs = [Relay(terminal, shown, log=log)]
    if not attached or not monitor["interactive"]:
        return outputs, []
    leave = b"" if monitor.get("front") is None else monitor["leave"]
    keys = Keys(0, terminal, leave, lambda last: end_of_file_key(terminal, last))
    keys.last, keys.open = monitor["typed"] or b"", monitor["typed"] is not None
    return outputs, [keys]

def feeds(monitor):
    """The stream for what comes from the caller's file or terminal, if it goes by a pipe: [it]."""
    feed = monitor.get("feed")
    if feed is None:
        return []
    source = 0
    if os.isatty(0):  # in the background a read stops us, and it may have nothing left to read then
        with tolerate():
            source = os.open("/proc/self/fd/0", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
                             | os.O_CLOEXEC)
    os.set_blocking(feed, False)

    def end(_):
        os.close(feed)
        monitor["feed"] = None
        return b""

    return [Relay(source, feed, end, at_once=1 << 16)]

class Relay:
    """Bytes on their way from SOURCE to SINK, if any, and to log(bytes); neither blocks us."""
    ears, held, left = (), b"", False  # see Visits, Keys
    def __init__(self, source, sink, at_end=lambda last: b"", log=None, at_once=4096):
        self.source, self.sink, self.at_end, self.log = source, sink, at_end, log
        self.at_once = at_once  # a pipe that is ready takes 4096 bytes without blocking: pipe(7)
        self.waiting, self.last, self.open = b"", b"", True
    def wants(self):  # (descriptor, events) for poll; room is made before more is taken
        return (self.sink, select.POLLOUT) if self.waiting else (self.source, select.POLLIN)
    def move(self):
        """Read or write once, after poll said that the descriptor is ready."""
        if self.waiting:
            with tolerate(errno.EAGAIN):  # a visitor's keys took the room
                self.waiting = self.waiting[os.write(self.sink, self.waiting[:self.at_once]):]
            return
        data = b""
        with tolerate(errno.EIO):  # the last process let go of the terminal
            try:
                data = os.read(self.source, 1 << 16)
            except BlockingIOError:  # somebody else has read it
                return
        self.last, self.open = data or self.last, bool(data)
        if self.log and data:
            self.log(data)
        for ear in self.ears:
            ear.take(data)
        if self.sink is not None:
            self.waiting = self.passed(data) if data else self.at_end(self.last)
    def passed(self, data):
        return data
    def stop(self):
        """Nobody will read it: nor do we, so that whoever writes here is told by SIGPIPE."""
        with Descriptor(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)) as nothing:
            os.dup2(nothing, self.source)
        self.waiting, self.sink, self.log = b"", None, None
    def busy(self):  # until everything up to the source's end has been delivered
        return bool(self.open or self.waiting)

class Keys(Relay):
    """What is typed, on its way; the keys LEAVE, if any, mean that the caller goes."""
    def __init__(self, source, sink, leave, at_end=lambda last: b""):
        super().__init__(source, sink, at_end)
        self.leave = leave
    def passed(self, data):
        """What of it goes on: what may be the beginning of those keys is held until the next."""
        data, size = self.held + data, 0
        before, found, _ = data.partition(self.leave or b"\0none")
        if self.leave and found:
            self.held, self.left = b"", True
            return before
        for length in range(1, len(self.leave)):
            if data.endswith(self.leave[:length]):
                size = length
        data, self.held = data[:len(data) - size], data[len(data) - size:]
        return data

def parse_keys(text):
    """--detach-keys' value, such as a,ctrl-b, as what these keys send; None: docker's."""
    keys, words = b"", given({"keys": text}, "keys", "ctrl-p,ctrl-q").split(",")
    for word in words if text != "" else ():
        control = word[5:].upper() if word.startswith("ctrl-") else ""
        if len(control) == 1 and "@" <= control <= "_":
            keys += bytes([ord(control) & 0x1f])
        elif len(word) == 1 and word.isascii():
            keys += word.encode()
        else:
            raise Failure(f"--detach-keys, on {as_typed(word)}: not a letter or ctrl- and one of "
                          "a-z @ [ \\ ] ^ _")
    return keys

# Who types may leave, and what runs stays: the process that he waits for is another one than the
# monitor then, and does nothing but wait, too.

GONE_ON = "mydocker: it goes on without you"

def keep_caller(always=False):
    """Where the caller may leave, by typing keys or ALWAYS, let a child do all that follows, and
    be what he waits for.  Returns in the child: what go_behind() needs, or None if nobody types."""
    if not os.isatty(0) and not always:
        return None
    (ours, theirs), parent = os.pipe(), os.getpid()
    child = os.fork()
    if child == 0:
        os.close(ours)
        prctl(PR_SET_PDEATHSIG, _signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(137)
        return theirs
    os.close(theirs)
    _signal.pthread_sigmask(_signal.SIG_BLOCK, FORWARDED | {_signal.SIGCHLD})
    os._exit(wait_in_front(child, ours, False))

def wait_in_front(child, ours, small):
    """Pass signals on to a child until it ends, or says by OURS that the caller has left it;
    returns the exit status.  SMALL: this process has compiled nothing; else it starts anew."""
    with Descriptor(watch_signals()) as signals:
        while True:
            ready = readable_fds([signals, ours], None if small else LINGER)
            if not ready:
                small = True
                program = own_bytecode()
                for fd in (program, ours):
                    os.set_inheritable(fd, True)
                with tolerate():  # then it stays as large as it is
                    os.execv("/proc/self/exe", [
                        own_python(), "-I", "-S", "-X", "utf8", f"/proc/self/fd/{program}",
                        "front", str(child), str(ours), *sys.argv])
            if ours in ready:
                if not os.read(ours, 1):
                    return exit_status(os.waitpid(child, 0)[1])
                print_line(GONE_ON)
                return 0
            for number in signals_of_others(signals):
                with tolerate(errno.ESRCH):
                    os.kill(child, number)

def signals_of_others(signals):
    """The signals that have arrived from processes: a terminal's own reach all in front of it."""
    data = b""
    with tolerate(errno.EAGAIN):
        data = os.read(signals, 128 * 64)
    rows = [struct.unpack_from("Iii", data, start) for start in range(0, len(data), 128)]
    return [number for number, _, code in rows if code <= 0]  # SI_USER: sigaction(2)

@command("PID FD [ARG...]", HIDDEN, takes=ANY, mixed=False)
def cmd_front(_, words):
    numbers = [to_number(word, 1 << 31) for word in words[:2]]
    if len(numbers) < 2 or None in numbers:
        raise Failure("front: it can't be typed, only `run` becomes it")
    return wait_in_front(*numbers, True)

def go_behind(front):
    """The caller leaves: be in the background from now on.  FRONT: keep_caller()'s."""
    prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0)
    os.setsid()
    with Descriptor(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) as null:
        for fd in (0, 1, 2):
            os.dup2(null, fd)
    os.chdir("/")
    os.write(front, b"!")
    os.close(front)

offer("run", (
    "--log-opt", "K=V...", "max-size=10m: turn the log over then; max-file=3: keep so many; "
    "labels=L,L, env=E,E: for details in `logs`"), (
    "--log-driver", "NAME", "none: keep nothing; json-file and k8s-file are both ours"))

# Logs

MOST_LOGS = 1000  # of one container: each is renamed when the log is turned over

def plan_log(options):
    """What is kept of a container's words: [bytes of a file, number of files], or None."""
    driver, texts = given(options, "log-driver", "k8s-file"), options["log-opt"]
    texts = [text for text in texts if not text.startswith(("labels=", "env="))]
    if driver not in ("none", "json-file", "k8s-file", "local"):
        raise Failure(f"--log-driver, on {as_typed(driver)}: not none, json-file or k8s-file")
    if driver != "none":
        return parse_log_options(texts)
    if texts:
        raise Failure("--log-opt: it can't go with --log-driver none")
    return None

def log_details(options, labels, env):
    """What `logs --details` shows of a container: the labels and variables that --log-opt names."""
    known, found = {"labels": labels, "env": pairs_of(env)}, []
    for kind, _, names in (text.partition("=") for text in options["log-opt"]):
        found += [f"{name}={known[kind][name]}" for name in names.split(",")
                  if name in known.get(kind, {})]
    return ",".join(found)

def parse_log_options(texts):
    """--log-opt's values as [bytes of a file, number of files]."""
    found = pairs_of(pair for text in texts for pair in text.split(","))
    size, count = found.pop("max-size", "10m"), found.pop("max-file", "3")
    if found:
        raise Failure(f"--log-opt, on {min(found)}: not max-size or max-file")
    number = parse_number(count, "--log-opt max-file", 1)
    if number > MOST_LOGS:
        raise Failure(f"--log-opt max-file, on {count}: more than {MOST_LOGS}")
    return [parse_size(size, "--log-opt max-size"), number]

def log_names(path, max_file):
    return [path] + [f"{path}.{number}" for number in range(1, max_file)]  # the newest first

class Log:
    """A container's log: MAX_FILE files of MAX_SIZE bytes."""
    def __init__(self, path, max_size, max_file):
        self.path, self.max_size, self.max_file = path, max_size, max_file
        self.fd, self.size, self.lost = None, 0, 0
    def write(self, stream, data):
        """Add what came on a stream, a line for each line of it and for what is left over."""
        start = f"{log_time(time.time_ns())} {stream} ".encode()
        lines, newline, rest = data.rpartition(b"\n")
        entry = b""
        if newline:
            entry += start + b"F " + lines.replace(b"\n", b"\n" + start + b"F ") + b"\n"
        if rest:
            entry += start + b"P " + rest + b"\n"
        if self.lost:
            note = f" stderr F mydocker: {self.lost} bytes of output could not be logged\n"
            entry = start.partition(b" ")[0] + note.encode() + entry
        try:
            self.put(entry)
            self.lost = 0
        except OSError:  # a full disk: half a line is taken back
            self.lost += len(data)
            if self.fd is not None:
                os.ftruncate(self.fd, self.size)
    def put(self, entry):
        """Write whole lines, into as many files as they need."""
        while entry:
            if self.fd is None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                self.fd = os.open(self.path, flags, 0o600)
                self.size = os.fstat(self.fd).st_size
            end = entry.rfind(b"\n", 0, max(self.max_size - self.size, 0)) + 1  # what still fits
            if not end and self.size:
                self.turn_over()
                continue
            end = end or entry.index(b"\n") + 1
            if os.write(self.fd, entry[:end]) < end:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
            self.size += end
            entry = entry[end:]
    def turn_over(self):
        """Let the next file begin; the oldest one goes."""
        os.close(self.fd)
        self.fd, names = None, log_names(self.path, self.max_file)
        for older, newer in zip(names[:0:-1], names[-2::-1]):
            if os.path.exists(newer):
                os.rename(newer, older)
        unlink_if_there(self.path)

def read_log(path, max_file, more):
    """Yield a log's lines, the oldest first, and a None at each end; it goes on while more()."""
    file, rest, told = None, b"", False
    while True:
        expected, there = more(), []  # asked first: what was written until then is read
        for name in log_names(path, max_file):
            with tolerate(errno.ENOENT):
                there.append((os.stat(name).st_ino, name))
        inode = os.fstat(file.fileno()).st_ino if file else None
        ours = next((n for n, (found, _) in enumerate(there) if found == inode), None)
        for line in file or ():
            rest += line
            if rest.endswith(b"\n"):
                yield rest
                rest = b""
        if ours == 0 or not there:
            yield None
            if not expected:
                return
            time.sleep(0.05)
            continue
        if file and ours is None and not told:
            warn("logs: lines were turned over before they could be read")
            told = True
        with tolerate(errno.ENOENT):  # on with the next one, or the oldest if ours is gone
            number, name = there[ours - 1 if ours else -1]
            following = open(name, "rb")
            if os.fstat(following.fileno()).st_ino == number:  # else: turned over once more
                file = following

def log_lines(path, max_file, more):
    """Yield a log's pieces of lines: (when, stream, does a line start here, text)."""
    fresh = {b"stdout": True, b"stderr": True}
    for line in read_log(path, max_file, more):
        if line:
            when, stream, tag, text = line.split(b" ", 3)
            yield when, stream, fresh[stream], text if tag == b"F" else text[:-1]
            fresh[stream] = tag == b"F"
        else:
            yield None, None, False, None

@command("[OPTIONS] CONTAINER", "show what a container has said",
         ("-f --follow", "", "and go on with what it says"),
         ("-n --tail", "N", "only the last N lines"),
         ("--since", "TIME", "only from then on: 2026-01-08T09:32:52Z, 1767835972 or 10m ago"),
         ("--until", "TIME", "only up to then"),
         ("-t --timestamps", "", "with the time in front of each line"),
         ("--details", "", "with what --log-opt labels=L,L or env=E,E names"), takes=ONE)
def cmd_logs(options, words):
    """What came on stdout goes to stdout, stderr to stderr, byte for byte."""
    record = find_container(words[0])
    if not record["log"]:
        raise Failure(f"logs, on {words[0]}: it has --log-driver none: nothing was kept")
    path, (_, count) = container_path(record), record["log"]
    since, end = (parse_moment(options[name], f"--{name}") if options[name] else default
                  for name, default in (("since", ""), ("until", "~")))
    log, number, skip = path + "/container.log", 0, 0
    tail = to_number(given(options, "tail", "all"))
    if tail is not None:  # docker takes anything else for all
        skip = sum(line[2] for line in log_lines(log, count, bool)) - tail
    outs, before = {b"stdout": open(1, "wb", closefd=False),
                    b"stderr": open(2, "wb", closefd=False)}, None
    def more():
        return options["follow"] and is_running(path) and log_time(time.time_ns()) <= end

    for when, stream, first, text in log_lines(log, count, more):
        if before not in (None, stream):  # both may be the same terminal
            outs[before].flush()
        before, number = stream, number + first
        if stream and number > skip and since.encode() <= when <= end.encode():
            if first and options["details"]:
                text = encode(record.get("details", "")) + b" " + text
            outs[stream].write((when + b" " if options["timestamps"] and first else b"") + text)

# ── 19. Without root ─────────────────────────────────────────────────────────
# A user namespace gives whoever makes it root's power over what belongs to it: its own ids, and the
# other namespaces that are made in it.  What its ids mean outside is written once, from outside, to
# /proc/PID/uid_map and gid_map.  See user_namespaces(7).
#
# Whoever has no power over the kernel's first user namespace makes one, before anything else, and
# the whole program goes on in it, as its root: all other chapters are as they are.  Root there is
# the caller; the other ids are those that /etc/subuid and /etc/subgid give to him, if newuidmap and
# newgidmap are there to write them down.  Nobody else may, so else there is but one id.
#
# What belongs to a container belongs to the namespace that it was made in.  So there is one at a
# time for a state root: its file `inhabitants` has the pids of those who went into it, running/ has
# the monitors'; the next command goes where one of these is.

PROGRAMS = "/usr/bin", "/usr/local/bin", "/bin", "/usr/sbin"  # where the host's helpers may lie
SLIRP_GUEST = "10.0.2.100"  # slirp4netns(1)

def enter_own_user_namespace():
    """Go on as root of a user namespace.  Our mounts stay the host's: in a mount namespace of our
    own /proc/self/exe would name no place that is there."""
    try:
        lock = hold(make_dirs(state_path()) + "/inhabitants")
    except PermissionError:
        raise Failure(f"--root, on {state_path()}: it is another user's",
                      hint="sudo, or without MYDOCKER_ROOT and --root") from None
    os.environ["MYDOCKER_ENTERED"] = "true"
    with lock:
        here = [row for row in inhabitants(lock) if process_start(row[0]) == row[1]]
        if not any(join_user_namespace(pid) for pid, _ in here):
            make_user_namespace()
        rows = [f"{pid} {start}\n" for pid, start in {*here, (os.getpid(), process_start("self"))}]
        os.ftruncate(lock, 0)
        os.pwrite(lock, "".join(rows).encode(), 0)
    if kernel_says("kernel.apparmor_restrict_unprivileged_userns", "1"):
        if not attempt(lambda: os.unshare(CLONE_NEWNS)):  # it is one without power
            raise refused(OSError(errno.EACCES, os.strerror(errno.EACCES)))

def inhabitants(lock):
    """Yield the processes of ours that were seen in a user namespace: (pid, start)."""
    texts = [os.pread(lock, SMALL_FILE, 0).decode()]
    for name in listing(state_path("running")):
        with tolerate(errno.ENOENT):  # it is done
            texts.append(read_text(state_path("running", name)))
    for words in map(str.split, "\n".join(texts).split("\n")):
        if len(words) == 2 and all(map(str.isdigit, words)):
            yield tuple(map(int, words))

def join_user_namespace(pid):
    """Go where the process is; False if that can't be."""
    with tolerate(errno.ENOENT, errno.ESRCH, errno.EACCES, errno.EPERM, errno.EINVAL):
        with Descriptor(os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)) as there:
            os.setns(there, CLONE_NEWUSER)  # as its maker we are its root
            return True
    return False

def make_user_namespace():
    """Become root of a new user namespace, with all ids that we may have.  A child, which stays
    outside, writes down what they are."""
    rows = {kind: ids_of_ours(kind) for kind in ("uid", "gid")}
    alone = {"uid": f"0 {os.geteuid()} 1", "gid": f"0 {os.getegid()} 1"}
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    pid, helper = os.getpid(), os.fork()  # the child, to write the ids from outside
    if not helper:
        try:
            ours.close()
            if receive(theirs)[0] == "map":
                for kind in rows:
                    with tolerate():  # then it goes on with one id
                        write_ids(pid, kind, rows[kind])
        finally:
            os._exit(0)
    theirs.close()
    try:
        os.unshare(CLONE_NEWUSER)  # root in it has no power outside
    except OSError as error:
        raise refused(error) from None
    tell(ours, "map")
    os.waitpid(helper, 0)
    ours.close()
    for kind in rows:
        if not read_all(f"/proc/self/{kind}_map"):
            if kind == "gid":
                write_value("/proc/self/setgroups", "deny")  # user_namespaces(7)
            write_value(f"/proc/self/{kind}_map", alone[kind])

def ids_of_ours(kind):
    """What ids a user namespace of ours can have: [(id in it, id of ours, how many)].  Root, even
    without power, has all those that it sees."""
    if os.geteuid() == 0:
        return [(first, first, size) for first, _, size in ids_here(kind)]
    rows = [(0, os.geteuid() if kind == "uid" else os.getegid(), 1)]
    for first, size in given_ids(kind, caller_names()):
        rows.append((rows[-1][0] + rows[-1][2], first, size))
    return rows

def caller_names():
    """What subuid(5) may call the caller: his number, and his name if he has one."""
    import pwd
    from contextlib import suppress
    names = {str(os.geteuid())}
    with suppress(KeyError):
        names.add(pwd.getpwuid(os.geteuid()).pw_name)
    return names

def given_ids(kind, owners):
    """The ranges of ids that subuid(5) or subgid(5) gives to one of OWNERS, names or numbers."""
    with tolerate():
        for owner, *numbers in (line.split(":")
                                for line in read_text(f"/etc/sub{kind}").split("\n")):
            if owner in owners and len(numbers) == 2 and all(map(is_id, numbers)):
                yield tuple(map(int, numbers))

def write_ids(pid, kind, rows):
    """Say what the ids in that process's user namespace are, if somebody lets us."""
    if os.geteuid() == 0:
        write_value(f"/proc/{pid}/{kind}_map", "\n".join("%d %d %d" % row for row in rows))
        return
    found = [path for path in (f"{top}/new{kind}map" for top in PROGRAMS) if os.path.exists(path)]
    if found and len(rows) > 1:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # without what it says, one id will do
        words = [str(number) for row in rows for number in row]
        os.spawnv(os.P_WAIT, found[0], [found[0], str(pid), *words])

def squash_owner(entry):
    """Let an entry of an archive belong to an owner that our user namespace has; said once."""
    if not os.environ.get("MYDOCKER_SQUASHED"):
        os.environ["MYDOCKER_SQUASHED"] = "true"
        warn(f"owners, on {entry.uid}:{entry.gid} and others: the user namespace has no such ids; "
             f"they are root's: {MORE_IDS}")
    for kind in ("uid", "gid"):
        if not has_id(kind, getattr(entry, kind)):
            setattr(entry, kind, 0)

def has_id(kind, number):
    """True if our user namespace has that user's or group's id."""
    return any(first <= number < first + size for first, _, size in ids_here(kind))

def see_from_inside(linux, what):
    """Make the ids of a bundle's user namespace those that the caller's ids are in the namespace
    that was made for him: he wrote down what he sees."""
    for kind in ("uid", "gid"):
        for row in linux.get(f"{kind}Mappings", ()) if os.environ.get("MYDOCKER_ENTERED") else ():
            first, end = row["hostID"], row["hostID"] + row["size"]
            found = [inside + first - outside for inside, outside, size in ids_here(kind)
                     if outside <= first and end <= outside + size]
            if not found:
                raise Failure(f"{what}: linux.{kind}Mappings: {first}: the caller has no such ids",
                              hint=MORE_IDS)
            row["hostID"] = found[0]

def ids_here(kind):
    """The ids that our user namespace has: [(first, what that is outside, how many)]."""
    rows = read_all(f"/proc/self/{kind}_map").split("\n")[:-1]
    return [tuple(map(int, row.split())) for row in rows]

def why_no_cgroup():
    """What stands between us and a cgroup, and what helps, or ""."""
    if not in_user_namespace():
        places = [place for _, place in hierarchies().values()]
        if places and not any(os.access(place, os.W_OK) for place in places):
            return "the cgroup trees are mounted read-only: inside a container?"
        if places:
            return ""
        return ("no cgroup tree is mounted here: mount -t sysfs sysfs /sys; "
                "mount -t cgroup2 cgroup2 /sys/fs/cgroup")
    return ("limits take a cgroup that is the caller's: of a systemd of his own, which `loginctl "
            "enable-linger` gives him, or: systemd-run --user --scope -p Delegate=yes mydocker ...")

# The network

def usual_network():
    """The network that a container gets where nothing is said."""
    if not is_guest("net"):
        return "bridge"
    found, lacks = [kind for kind in HELPERS if helper_program(kind)], "/dev/net/tun"
    if found and os.access(lacks, os.R_OK | os.W_OK):
        return found[0]
    if not found:
        lacks = "pasta (package passt) or slirp4netns"
    narrate(f"network: none, for without root it takes {lacks}, which the caller doesn't have")
    return "none"

def hint_for_no_way(kind):
    """A hint for who has no network without root, and wants something of one."""
    if kind == "none" and is_guest("net"):
        return "without root ports take pasta (package passt) or slirp4netns, and /dev/net/tun"
    return ""

def helper_program(kind):
    """Where on this host a program is that gives a network namespace a way out without root: it
    makes its connections as an ordinary one does.  "" if it isn't there."""
    return next((path for path in (f"{top}/{kind}" for top in PROGRAMS) if os.path.exists(path)),
                "")

def check_guest(kind):
    """Refuse networks that take power over the host's network namespace, and those that need none
    where it is there."""
    if kind in HELPERS and (not is_guest("net") or not helper_program(kind)):
        raise Failure(f"--network, on {kind}: it is for those without root, on a host that has it",
                      hint=f"package {HELPERS[kind][0]}")
    if kind != "host" and missing_powers(["NET_ADMIN"]):
        raise Failure(f"--network, on {kind}: CAP_NET_ADMIN is missing: inside a container?",
                      hint="--network host takes no power over networks")
    if kind not in (*APART, "container") and is_guest("net"):
        raise Failure(f"--network, on {kind}: only root can lay cables to this host",
                      hint="--network pasta, slirp4netns, none, host and container:ID are possible")

def await_helper(kind, child, ready, log):
    """Wait until the helper has written to its file, which it does when all is connected."""
    while not os.path.exists(ready) or not os.path.getsize(ready):
        if os.waitpid(child, os.WNOHANG)[0]:
            lines = [line for line in read_text(log).strip().split("\n")
                     if not line.endswith(" to syslog")]  # pasta's, where nobody listens there
            said = ": ".join(lines[-2:])  # slirp4netns: why, and that
            raise Failure(f"network, on {kind}: {said or 'it has ended'}",
                          hint="--network none and host go without it")
        time.sleep(0.001)

def helper_words(kind, place, ready, ports):
    """The arguments of a helper for the network namespace mounted at PLACE.  In its directory the
    last one makes a socket, which takes ports: its name must be short, unix(7)."""
    if kind == "pasta":
        return [*pasta_words(place, ports), "--pid", ready]
    return ["--configure", "--mtu=65520", "--disable-host-loopback", "--enable-sandbox",
            "--ready-fd=3", "--api-socket=slirp.sock", "--netns-type=path", place, "tap0"]

def pasta_words(place, ports):
    """The arguments of pasta for the network namespace mounted at PLACE: pasta(1)."""
    words = ["--foreground", "--config-net", "--quiet", "--no-map-gw", "--dns-forward",
             HELPERS["pasta"][1], "-T", "none", "-U", "none", "--no-netns-quit"]
    for option, protocol in (("-t", "tcp"), ("-u", "udp")):
        found = [f"{address + '/' if address else ''}{taken}:{port}"
                 for address, taken, port, kind in ports if kind == protocol]
        for text in found or ["none"]:
            words += [option, text]
    return [*words, "--netns", place]

def helper_servers(kind):
    """The name servers of a container where none of the host's can be reached but by a helper."""
    return [HELPERS[kind][1]]

def become_helper(kind, words, log, ready):
    """In the child: execute a helper, with nothing of ours but two files for what it says."""
    prctl(PR_SET_PDEATHSIG, _signal.SIGKILL, 0, 0, 0)  # when its container's monitor dies, it does
    os.setsid()  # away from the terminal, and its ^C
    forget_signals()
    os.chdir(os.path.dirname(log))
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    for fd in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), fd)
    if kind == "slirp4netns":
        os.dup2(os.open(ready, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 3)
    for fd in open_fds():
        if fd > 2:
            os.set_inheritable(fd, fd == 3 and kind == "slirp4netns")
    os.execv(helper_program(kind), [kind, *words])  # as the only program but ours

def ask_for_ports(folder, ports):
    """Let slirp4netns, whose socket is in FOLDER, forward ports: slirp4netns(1), "API SOCKET"."""
    for address, taken, port, protocol in ports:
        asked = {"proto": protocol, "host_addr": address or "0.0.0.0", "host_port": taken,
                 "guest_addr": SLIRP_GUEST, "guest_port": port}
        answer = ask_slirp(folder, to_json({"execute": "add_hostfwd", "arguments": asked}))
        if '"return"' not in answer:
            raise Failure(f"--publish, on {address or '0.0.0.0'}:{taken}/{protocol}: slirp4netns "
                          f"can't: {answer.strip()}")

def ask_slirp(folder, text):
    """What slirp4netns answers, both in JSON."""
    channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        with Descriptor(os.open(folder, OPEN_DIR)) as here:  # its own name is too long
            channel.connect(f"/proc/self/fd/{here}/slirp.sock")
        channel.sendall(text.encode())
        channel.shutdown(_socket.SHUT_WR)
        return channel.recv(SMALL_FILE).decode("utf-8", "replace")
    finally:
        channel.close()

def home_outside():
    """The home directory of whoever is root in this user namespace, made by an engine: that doesn't
    always pass on its environment."""
    import pwd
    from contextlib import suppress
    with suppress(KeyError):  # it has no account
        return pwd.getpwuid(ids_here("uid")[0][1]).pw_dir
    return "~"

def refused(error):
    """What a user is told whom the kernel doesn't let make a user namespace."""
    return Failure(f"user namespace, as user {os.geteuid()}: {reason(error)}", hint=why_refused())

def proc_is_covered():
    """True if not all of /proc can be seen: the kernel's mount_too_revealing(), fs/namespace.c."""
    return in_user_namespace() and any(row[0].startswith("/proc/") for row in mounts_here())

def kernel_says(name, text):
    """True if the sysctl of that name is there, and says that."""
    with tolerate():
        return read_all("/proc/sys/" + name.replace(".", "/")).strip() == text
    return False

def why_refused():
    """What may forbid an ordinary user to make a user namespace, and what allows it."""
    for name, value in (("kernel.unprivileged_userns_clone", "0"),
                        ("user.max_user_namespaces", "0")):
        if kernel_says(name, value):
            return f"root can allow it: sysctl {name}={15000 if 'max' in name else 1}"
    if kernel_says("kernel.apparmor_restrict_unprivileged_userns", "1"):
        program = os.path.realpath(sys.executable)
        return ("root can allow it with a profile in /etc/apparmor.d/mydocker: abi <abi/4.0>, "
                f"profile mydocker {program} flags=(unconfined) {{ userns, }}; then "
                "apparmor_parser -r /etc/apparmor.d/mydocker")
    if "Seccomp:\t2" in read_all("/proc/self/status"):
        return "a system call filter around us may forbid it: inside a container?"
    return "sudo mydocker ..., or a kernel with CONFIG_USER_NS, and no chroot(2) around us"

# ── 20. Ids of its own ───────────────────────────────────────────────────────
# A container in a user namespace of its own has root's id inside, and outside that of an ordinary
# user: what gets out of it is nobody.  The kernel gives it power over nothing but its own mounts,
# network and host name.
#
# On disk its files have the ids that they have inside, as those of any other container: a layer is
# shared, and commit, cp and volumes need no change.  What makes them look like others is the mount:
# mount_setattr(2), "ID-mapped mounts".  Only root may have it so, and only since Linux 5.19 for an
# overlay's layers; else the container has a copy whose owners are what they are outside.
#
# Its root can't enter the state root.  So the outside makes the mount of its root, and opens what
# else it gets of the host's files; init puts them in their places.

ALL_IDS, MOST_MAPPINGS = 4294967295, 340  # user_namespaces(7)
FREE_IDS = 0x70000000, 0x7FFF0000  # what systemd gives to nobody: UIDS-GIDS.md
RANGE, NOBODY = 65536, 65534  # how many `auto` gives to a container; the last but one
FEW_IDS = 4096  # and how many without root, who has no more than RANGE for all
PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP = 28, 1 << 2  # linux/prctl.h, linux/securebits.h
UNABLE = (  # what is said by a kernel, or a file system, that can't show layers with other owners
    errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EOVERFLOW)
setfsuid = kernel("setfsuid", LONG)  # setfsuid(2)
setfsgid = kernel("setfsgid", LONG)  # setfsgid(2)
offer("run",
      ("--userns", "MODE", "whose ids it has: host, ours; auto[:size=N], a range that no other "
                           "container has; keep-id, the caller has the same inside (default: "
                           "host)"),
      ("--uidmap", "INSIDE:OUTSIDE[:COUNT]...", "what the ids of its users are on the host"),
      ("--gidmap", "INSIDE:OUTSIDE[:COUNT]...", "and those of its groups (default: the same)"))

def plan_ids(spec, options):
    """Write into the spec what its ids are.  Without root an image's files can't have two owners:
    the container gets a copy of them."""
    linux, mode, guest = spec["linux"], options["userns"] or "", is_guest("pid")
    rows = wanted_ids(options, mode)
    for kind in ("uid", "gid"):
        linux[kind + "Mappings"] = sorted(rows[kind], key=lambda row: row["containerID"])
        check_ids(linux[kind + "Mappings"], f"--{kind}map")
    linux["namespaces"].insert(0, {"type": "user"})
    if {"mydocker.pid", "mydocker.ipc"} & {*spec["annotations"]}:
        raise Failure("--pid and --ipc, on container:X: they can't go with ids of its own")
    if mode == "keep-id" and guest and options["user"] is None:
        own = [str(linux[kind + "Mappings"][1]["containerID"]) for kind in ("uid", "gid")]
        spec["process"]["user"]["username"] = ":".join(own)
    ours = any(row["hostID"] == 0 for row in linux["uidMappings"])  # it goes where we may go
    if options["ephemeral"] and not (guest and ours):
        raise Failure("--ephemeral: it can't go with ids of its own")
    if guest and ours:
        spec["mounts"] = [row["fallback"] if row["type"] == "layers" else row
                          for row in spec["mounts"]]
    elif spec["root"]["path"] != "/":
        spec["root"]["mapped"] = True
    own = {row["type"] for row in linux["namespaces"]}
    if any(text.startswith("container:") for text in options["network"]):
        own.remove("network")
    spec["mounts"] = [*filter(None, (as_ours(row, own) for row in spec["mounts"]))]

def as_ours(row, own):
    """A row of what only its namespace's maker may mount: if the container has none of its OWN, it
    falls back on what we have."""
    place, kind = row["destination"], None
    if row["type"] in ("proc", "sysfs", "mqueue"):
        kind = {"/proc": "pid", "/sys": "network", "/dev/mqueue": "ipc"}.get(place)
    if kind is None or kind in own:
        return row
    if kind == "network":
        return guest_sys(row)
    if not os.path.ismount(place):
        return None
    return dict(row, fallback=mount_row(place, "bind", "rbind", *row["options"], source=place))

def wanted_ids(options, mode):
    """The OCI's mappings for what was typed: {"uid": rows, "gid": rows}."""
    typed = {kind: options[kind + "map"] for kind in ("uid", "gid")}
    if any(typed.values()):
        if mode not in ("", "private"):
            raise Failure(f"--uidmap: it can't go with --userns {mode}")
        return {kind: [parse_ids(text, kind) for text in typed[kind] or typed[other]]
                for kind, other in (("uid", "gid"), ("gid", "uid"))}
    if mode == "keep-id":
        return {kind: kept_ids(kind) for kind in ("uid", "gid")}
    word, _, rest = mode.partition(":")
    size = to_number(rest[len("size="):], RANGE << 4) if rest.startswith("size=") else None
    if word != "auto" or ":" in mode and not size:
        raise Failure(f"--userns, on {mode}: it is host, keep-id or auto[:size=N]")
    if not size:
        size = FEW_IDS if is_guest("pid") else RANGE
    return {kind: [{"containerID": 0, "hostID": None, "size": size}]  # see choose_ids
            for kind in ("uid", "gid")}

def parse_ids(text, kind):
    """An --uidmap argument, INSIDE:OUTSIDE[:COUNT], as the OCI has it."""
    option = f"--{kind}map, on {as_typed(text)}"
    numbers = [to_number(word, ALL_IDS) for word in text.split(":")]
    if len(numbers) not in (2, 3) or None in numbers:
        raise Failure(f"{option}: it is INSIDE:OUTSIDE[:COUNT], ids and how many")
    inside, outside, size = (*numbers, 1)[:3]
    if not size or max(inside, outside) + size > ALL_IDS:
        raise Failure(f"{option}: ids are from 0 to {ALL_IDS - 1}, and one at least")
    if not has_id(kind, outside) or not has_id(kind, outside + size - 1):
        raise Failure(f"{option}: these ids aren't ours to give", hint=MORE_IDS)
    return {"containerID": inside, "hostID": outside, "size": size}

def check_ids(rows, option):
    """Refuse what the kernel would, with a word: user_namespaces(7)."""
    if rows[0]["containerID"]:
        raise Failure(f"{option}: nothing is 0 inside, as which a container begins")
    if len(rows) > MOST_MAPPINGS:
        raise Failure(f"{option}: {len(rows)} ranges, and the kernel takes {MOST_MAPPINGS}")
    for start in ("containerID", "hostID"):
        ranges = sorted((row[start], row["size"]) for row in rows if row[start] is not None)
        for (first, size), (following, _) in zip(ranges, ranges[1:]):
            if first + size > following:
                raise Failure(f"{option}: two ranges have {following}, one side or the other")

def kept_ids(kind):
    """Mappings that let the caller be the id inside that he is outside.  Without root that is our
    root; for root it is all that there is, as podman has it."""
    rows = ids_here(kind)
    own, size = rows[0][1], sum(row[2] for row in rows)
    if not is_guest("pid"):
        return [{"containerID": first, "hostID": first, "size": count} for first, _, count in rows]
    if not own:
        raise Failure("--userns, on keep-id: root without power has no ids but its own")
    if size == 1:
        raise Failure("--userns, on keep-id: there are no ids for its root and others",
                      hint=MORE_IDS)
    below = min(own, size - 1)
    found = [(0, 1, below), (own, 0, 1), (own + 1, below + 1, size - 1 - below)]
    return [{"containerID": inner, "hostID": outer, "size": count}
            for inner, outer, count in found if count]

def choose_ids(spec, path):
    """Write a new container's spec to PATH; ids that it is to have alone are chosen in that moment,
    and are its own as long as it is there."""
    with hold(state_path("containers")):  # nobody else chooses now
        for kind in ("uid", "gid"):
            for row in spec["linux"][kind + "Mappings"]:
                if row["hostID"] is None:
                    row["hostID"] = free_ids(kind, row["size"])
        write_json(path, spec)

def free_ids(kind, size):
    """The first of SIZE ids that no container has: of those that /etc/subuid gives to the user
    `containers`, as with podman, or else of those that nobody has; without root of ours."""
    pools = [(first, first + count) for first, count in given_ids(kind, {"containers"})]
    hint = ("containers that are gone (rm) free theirs; or more for the user `containers` in "
            "/etc/subuid and /etc/subgid")
    if is_guest("pid"):
        pools, hint = [(1, sum(count for _, _, count in ids_here(kind)))], MORE_IDS
    taken = sorted(taken_ids(kind))
    for start, end in pools or [FREE_IDS]:
        for first, count in taken:
            if first + count > start and first < start + size:
                start = first + count
        if start + size <= end:
            return start
    raise Failure(f"--userns, on auto: no {size} ids in a row are free", hint=hint)

def taken_ids(kind):
    """Yield the ids that containers have: (first, how many)."""
    for top in (state_path("containers"), state_path("oci")):
        for name in listing(top):
            with tolerate(errno.ENOENT):  # half made, half gone
                text = read_all(f"{top}/{name}/config.json")
                for row in mappings_in(text, kind):
                    yield row["hostID"], row["size"]

def mappings_in(text, kind):
    """What a config.json says of ids; a damaged one says nothing."""
    if '"user"' not in text:
        return []
    try:
        rows = from_json(text)["linux"].get(kind + "Mappings") or ()
    except (ValueError, KeyError):
        return []
    if any(row["hostID"] in (0, None) for row in rows):
        return []  # ours, with most of them; or not chosen yet
    return rows

def id_functions(linux, back=False):
    """What the ids of a container with mappings are among ours, or BACK from there: {"uid":
    function, "gid": ...}.  Ids that it hasn't are its root's, and BACK nobody's."""
    start, end = ("hostID", "containerID") if back else ("containerID", "hostID")

    def mapper(rows):
        def of(number):
            for row in rows:
                if 0 <= number - row[start] < row["size"]:
                    return number - row[start] + row[end]
            return NOBODY if back else rows[0]["hostID"]
        return of
    return {kind: mapper(linux[kind + "Mappings"]) for kind in ("uid", "gid")}

def is_shifted(linux):
    """True if ids mean something else inside."""
    return any(row["containerID"] != row["hostID"] for kind in ("uid", "gid")
               for row in linux.get(kind + "Mappings") or ())

def ids_seen(record):
    """The mappings of a container, an object with uidMappings and gidMappings, if container_root()
    shows its files as they are outside, else None."""
    path = container_path(record)
    spec = read_json(path + "/config.json")
    if not is_shifted(spec["linux"]) or spec["root"]["path"] == "/":
        return None
    seen = record["running"] or os.path.isdir(path + "/copy")
    return spec["linux"] if seen else None

def write_as(linux):
    """Let what this process makes belong to a container's root; it keeps its power over files."""
    root = [of(0) for of in id_functions(linux).values()]
    prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
    setfsgid(root[1])  # files are made by that group
    setfsuid(root[0])  # and user
    return tuple(root)

def give_pipes(linux, fds):
    """Let a container's root have the pipes that it reads from and writes to: give_streams()."""
    root = [of(0) for of in id_functions(linux).values()]
    for fd in {*fds}:
        if os.fstat(fd).st_dev == pipe_device():
            os.fchown(fd, *root)

def become_mapped(channel, flags):
    """Become root of a user namespace, as whom the other namespaces are to be made."""
    if flags & CLONE_NEWUSER:
        os.unshare(CLONE_NEWUSER)  # whoever is root in it has no power outside
    send(channel, "map")
    receive(channel)  # the ids in it mean something now
    set_groups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    if flags & FOR_CHILDREN:
        os.unshare(flags & FOR_CHILDREN)  # the next child is PID 1 of a new PID namespace
    fork_inside(channel)

def write_mappings(pid, maps):
    """Say what the ids in a process's new user namespace mean, as the OCI has it."""
    for kind in ("uid", "gid"):
        rows = [f"{row['containerID']} {row['hostID']} {row['size']}"
                for row in maps.get(f"{kind}Mappings") or ()]
        if rows:
            with blame(f"--{kind}map or {kind}Mappings, on {', '.join(rows[:3])}"):
                write_value(f"/proc/{pid}/{kind}_map", "\n".join(rows))

def map_ids(pid, channel, linux):
    """Let the ids in a process's new user namespace mean ids of ours; returns its child's pid."""
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # the child's child becomes ours
    try:
        message = receive(channel)[0]
        if message != "map":
            raise Failure(*message or ("create: init was killed",))
        write_mappings(pid, linux)
        send(channel, "mapped")
        child = inherit(pid, channel)
        tell(channel, "go")  # see fork_inside
        return child
    except (Failure, OSError):
        kill_child(pid)
        raise

# Files for a user namespace

def open_trees(spec):
    """Open what init couldn't, by the host's paths and root's power: the root of a container of
    ours, and what rows show; init puts it where it belongs."""
    linux, guest = spec["linux"], is_guest("mnt")  # then without root's power: init can do as much
    trees, mapped = [], spec["root"].get("mapped")
    if mapped:
        trees.append(open_mapped_root(spec))
        spec["root"]["opened"] = True
    for row in tree_rows(spec):
        words = {*row["options"]}
        if "lender" in row:
            row["opened"] = True
            trees.append(lent_tree(row))
            continue
        if guest and not mapped and not {"shared", "rshared", "idmap", "ridmap"} & words:
            continue
        whole = AT_RECURSIVE if {"rbind", "shared", "rshared"} & words else 0
        with blame(f"mount, on {row['source']}"):
            tree = clone_tree(row["source"], whole, guest and mapped)
        if {"idmap", "ridmap"} & words or row.get("uidMappings"):
            map_tree(tree, row, linux)
        elif mapped and row["source"].startswith(state_path() + "/") and (
                can_shift(spec) and not guest):
            map_tree(tree, row, linux)
        row["opened"] = True
        trees.append(tree)
    return trees

def clone_tree(path, whole, guest=False):
    """A copy of a mount, open; as a GUEST we may make one only among mounts of our own."""
    def clone():
        return open_tree(AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | whole)  # for init
    if not guest:
        return Descriptor(clone())
    tree = apart(clone)
    if isinstance(tree, str):
        raise Failure(f"mount, on {path}: {tree}")
    return tree

def can_shift(spec):
    """True if what is the container's alone is shown with its ids, not copied."""
    return is_shifted(spec["linux"]) and not spec["root"].get("copied")

def map_tree(tree, row, linux):
    """Let the owners of a mount's files look like others, by its own mappings or the container's:
    mount_setattr(2), "ID-mapped mounts"."""
    maps = row if row.get("uidMappings") else linux
    if not maps.get("uidMappings"):
        raise Failure(f"mount, on {row['source']}: idmap: the container has our ids",
                      hint="--userns auto gives it some of its own")
    whole = AT_RECURSIVE if "ridmap" in row["options"] else 0
    with blame(f"mount, on {row['source']}: idmap"), namespace_of(maps) as namespace:
        shift(tree, namespace, whole)

def shift(tree, namespace, whole=0):
    attributes = struct.pack("QQQQ", MOUNT_ATTR_IDMAP, 0, 0, namespace)
    mount_setattr(tree, "", AT_EMPTY_PATH | whole, attributes, len(attributes))  # other owners

def namespace_of(maps):
    """A user namespace with these mappings, in which nobody is."""
    ready, go = os.pipe(), os.pipe()
    pid = os.fork()  # somebody must be in it while its mappings are written
    if not pid:
        try:
            os.unshare(CLONE_NEWUSER)
            os.write(ready[1], b"1")
            os.close(go[1])
            os.read(go[0], 1)  # until the outside is gone, or done
        finally:
            os._exit(0)
    os.close(ready[1])
    try:
        if os.read(ready[0], 1):
            write_mappings(pid, maps)
        return open_namespace(f"/proc/{pid}/ns/user")
    finally:
        kill_child(pid)
        for fd in (ready[0], *go):
            os.close(fd)

def open_mapped_root(spec):
    """Open the root of a container with ids of its own, as it is to be seen inside."""
    top, linux, guest = spec["root"]["path"], spec["linux"], is_guest("mnt")
    rows = [row for row in spec["mounts"] if row["type"] in OWN_MOUNTS]
    tree = open_stacked(spec, rows[0]) if rows and not guest else None
    if tree:
        return tree
    if rows:
        top = copied_root(spec, rows[0])
    else:
        fill_volumes(spec, top)
    tree = clone_tree(top, AT_RECURSIVE, guest)
    if can_shift(spec) and not guest:
        map_tree(tree, {"source": top, "options": []}, linux)
    return tree

def open_stacked(spec, row):
    """Let a child stack the layers.  None if the kernel can't show them with other owners, or
    couldn't the last time."""
    if os.path.isdir(row["fallback"]["source"]):
        return None
    tree = apart(lambda: stack_mapped(spec, row))
    if isinstance(tree, str):
        warn(f"overlay, on the image's layers: they can't be shown with other owners ({tree}): "
             "copying them")
        return None
    if wants_filling(spec):
        done = apart(lambda: fill_from_layers(spec, row))
        if isinstance(done, str):
            raise Failure(f"volumes: they can't be filled from the image: {done}")
        os.close(done)
    for mounted in spec["mounts"]:
        mounted.pop("copyUp", None)  # it has filled them
    spec["mounts"] = [other for other in spec["mounts"] if other is not row]
    return tree

def apart(work):
    """Let a child with mounts of its own work: the host never sees them.  Returns the descriptor
    that it returns, or why it's not to be had on this host, in a word."""
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    pid = os.fork()  # the child, to mount what init can't
    if not pid:
        try:
            ours.close()
            os.unshare(CLONE_NEWNS)  # mounts of its own
            mount(None, "/", None, MS_REC | MS_SLAVE, None)  # what we mount, the host must not see
            send(theirs, "done", [work()])
        except Exception as error:
            unable = getattr(error, "errno", 0) in UNABLE
            send(theirs, reason(error) if unable else describe(error, "root"))
        finally:
            os._exit(0)
    theirs.close()
    message, fds = receive(ours)
    ours.close()
    os.waitpid(pid, 0)
    if isinstance(message, str):
        return Descriptor(fds[0]) if fds else message
    raise Failure(*message or ("root: who made it was killed",))

def stack_mapped(spec, row):
    """Stack layers whose files look as the container's ids are; returns the tree.  What is written
    is written by its root, with power: overlayfs does it as whoever mounts it."""
    linux, top = spec["linux"], spec["root"]["path"]
    path = os.path.dirname(top)
    for name in ("upper", "work"):
        os.makedirs(f"{path}/{name}", 0o755, exist_ok=True)
    if is_shifted(linux):
        lower = [option.partition("=")[2] for option in row["options"]
                 if option.startswith("lowerdir=")]
        with namespace_of(linux) as namespace:
            for place in {path, *lower}:
                cover(place, namespace)
        write_as(linux)
    mount_layers(top, row, 0, "")
    return open_tree(AT_FDCWD, top, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)  # for init

def fill_from_layers(spec, row):
    """Fill new volumes from an image's layers, as they are on disk; returns where they are."""
    lower = [option for option in row["options"] if option.startswith("lowerdir=")]
    top = lower[0].partition("=")[2]
    if len(lower) > 1:
        top = spec["root"]["path"]
        mount_layers(top, dict(row, options=lower), 0, "")
    fill_volumes(spec, top)
    return os.open(top, OPEN_DIR)

def cover(path, namespace):
    """Let a directory hide itself, with other owners."""
    with Descriptor(open_tree(AT_FDCWD, path,  # the same files
                              OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)) as tree:
        shift(tree, namespace)
        move_mount(tree, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH)  # here, too

def copied_root(spec, row):
    """Copy the layers, if that isn't done yet, for owners as they are outside; returns where."""
    path, functions = row["fallback"]["source"], id_functions(spec["linux"])
    if not os.path.isdir(path):
        copy_layers(row["fallback"], mapped=functions)
    for volume in spec["mounts"]:
        if "volume" in volume and not os.stat(volume["source"]).st_uid:
            os.chown(volume["source"], functions["uid"](0), functions["gid"](0))
    fill_volumes(spec, path)
    spec["root"]["copied"] = True
    spec["mounts"] = [other for other in spec["mounts"] if other is not row]
    return path

def wants_filling(spec):
    """True if one of a container's volumes may be new."""
    return any(row.get("copyUp") and (not os.listdir(row["source"]) or os.path.exists(
        os.path.dirname(row["source"]) + "/filling")) for row in spec["mounts"])

def fill_volumes(spec, top):
    """Fill new volumes from the root at TOP, in which nothing is mounted: see fill_volume()."""
    with Descriptor(os.open(top, OPEN_DIR)) as root:
        for row in spec["mounts"]:
            if row.pop("copyUp", False):
                with tolerate(errno.ENOENT, errno.ENOTDIR), Descriptor(
                        open_in_root(root, row["destination"], OPEN_DIR)) as place:
                    fill_volume(f"/proc/self/fd/{place}", row["source"])

def wants_ids(options):
    """True if a container is to have other ids than ours."""
    return bool(options["uidmap"] or options["gidmap"] or options["userns"] not in (None, "host"))

# ── 21. Documents ────────────────────────────────────────────────────────────
# JSON as it comes from outside has an end, no NaN, no text that can't be handed on, and a shape: a
# type, [SHAPE], {key: SHAPE}, {str: SHAPE} for whatever keys there are, or the range in which a
# number must lie: C's types would make another of it.  An int or a range must be there, (int,)
# needn't.  Files that a user names are read and written here, too.

JSON_LIMIT = 4 << 20  # bytes of one manifest, config or index; registries use the same limit
DIGEST = "sha256:"  # the shape of what check_digest accepts

def read_json(path):
    return from_json(read_all(path))

def from_json(text):
    """The value of a text, or of bytes, in JSON; raises ValueError, RecursionError.  All JSON is
    read here, by json's C half: json itself would cost each start 5 ms."""
    from _json import make_scanner

    def context():  # what make_scanner looks up in a JSONDecoder
        pass

    text = (text if isinstance(text, str) else text.decode("utf-8-sig")).strip(" \t\r\n")
    vars(context).update(strict=True, object_hook=None, object_pairs_hook=None, parse_int=int,
                         parse_float=finite, parse_constant=finite)
    try:
        value, end = make_scanner(context)(text, 0)
    except (StopIteration, SystemError, ValueError):  # the error would be of json's
        value, end = None, -1
    if end != len(text):
        import json
        return json.loads(text, parse_float=finite, parse_constant=finite)  # says what is wrong
    return value

def finite(text):
    """A number of JSON with a fraction or an exponent; Python would take NaN and infinities, too,
    which nobody could read again when they were written."""
    number = float(text)
    if number - number != 0:
        raise ValueError(f"{text:.20} is no number")
    return number

def plain_texts(value):
    """Return a value of JSON if all texts in it can be given to the kernel, and written again."""
    if isinstance(value, dict):
        plain_texts([*value, *value.values()])
    elif isinstance(value, list):
        for each in value:
            plain_texts(each)
    elif isinstance(value, str):
        if "\0" in value:
            raise ValueError("a NUL in a text")  # for the kernel the text would end there
        try:
            encode(value)
        except UnicodeEncodeError:
            raise ValueError("half a character in a text (a lone surrogate)") from None
    return value

def to_json(value):
    """A value as JSON; strings that are not UTF-8 survive as \\udcXX escapes.  All JSON is written
    here, by json's C half, as it is read by that."""
    from _json import encode_basestring_ascii, make_encoder
    encoder = make_encoder(None, repr, encode_basestring_ascii, None, ": ", ", ",
                           False, False, True)
    return "".join(encoder(value, 0))

def write_json(path, value, durable=False):
    write_file(path, to_json(value) + "\n", durable)

def parse_json(data, what, shape):
    """The value in DATA if it has that SHAPE; whoever wrote it is not trusted."""
    try:
        return check(from_json(data), shape, f"image, on {what}")
    except (ValueError, RecursionError) as why:
        raise Failure(f"image, on {what}: bad JSON: {why}") from None

def check(value, shape, what):
    """Return VALUE if it has that SHAPE; null is nothing, but for a digest or a size."""
    shape = shape[0] if isinstance(shape, tuple) else shape
    kind = shape if isinstance(shape, type) else type(shape)
    if shape == DIGEST:
        return check_digest(value, what)
    if kind is range:
        if type(value) is not int or value not in shape:
            raise Failure(f"{what}: a number from {shape[0]} to {shape[-1]} wanted, "
                          f"found {value!r:.60}")
        return value
    if not isinstance(value, kind) or kind is int and (
            isinstance(value, bool) or not 0 <= value < 1 << 63):
        raise Failure(f"{what}: {kind.__name__} wanted, found {value!r:.60}")
    if isinstance(shape, list):
        for item in value:
            check(item, shape[0], what)
    elif isinstance(shape, dict):
        if str in shape:
            shape = dict.fromkeys(value, shape[str])
        for key, inner in shape.items():
            if value.get(key) is not None or inner in (int, DIGEST) or isinstance(inner, range):
                check(value.get(key), inner, f"{what}: {key:.60}")
    return value

def check_environment(items, what):
    """Refuse a variable without a name: execve(2) would take it, nobody could read or unset it."""
    for item in items or ():
        if item[:1] in ("", "="):
            raise Failure(f"{what}, on {as_typed(item)}: a variable must have a name")

def read_foreign(path):
    """The text of a file that somebody else may have written; of one without an end there is none:
    EFBIG.  It may be a pipe, or a descriptor."""
    with open(path, "rb", closefd=isinstance(path, str)) as file:
        data = file.read(JSON_LIMIT + 1)
    if len(data) > JSON_LIMIT:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
    return data.decode("utf-8", "surrogateescape")

def write_named(path, data):
    """Write a file that the user named: in one step, but into what a device or a link is, such as
    /dev/stdout; another user's link is replaced.  The directory must be there: one that isn't has
    been mistyped."""
    os.stat(os.path.dirname(path) or ".")
    there = os.lstat(path) if os.path.lexists(path) else None
    if not there or stat.S_ISREG(there.st_mode) or (
            stat.S_ISLNK(there.st_mode) and there.st_uid not in (0, os.geteuid())):
        write_file(path, data)
        return
    with open(open_named(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
        file.write(encode(data))

# ── 22. Sizes, times and tables ──────────────────────────────────────────────
# What people type and read: 64m, 1h30m, a time as RFC 3339 has it; columns, JSON or a template.

def parse_size(text, option):
    """A size as docker reads it, 64m, 1.5g, 1024, in bytes."""
    number, unit = text.rstrip("bkmgtBKMGTiI"), text.lower().lstrip("0123456789.")
    power = {"": 0, "b": 0, "k": 1, "m": 2, "g": 3, "t": 4}.get(unit[:1] if unit in (
        "", "b", *(letter + end for letter in "kmgt" for end in ("", "b", "ib"))) else "?")
    if power is None or not number.isascii() or not number.replace(".", "", 1).isdigit():
        raise Failure(f"{option}, on {as_typed(text)}: not a size, such as 64m or 1g")
    size = float(number) * 1024 ** power
    if size >= 1 << 63:
        raise Failure(f"{option}, on {text}: more than the kernel can count")
    return int(size)

def parse_moment(text, option):
    """A time as docker's --since has it, RFC 3339, seconds since 1970 or 1h30m ago, as logs do."""
    import datetime
    import re
    span = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?", text or "-", re.ASCII)
    try:
        if span:
            ago = sum(float(n or 0) * unit for n, unit in zip(span.groups(), (3600, 60, 1)))
            return log_time(int((time.time() - ago) * 10**9))
        head, part, zone = re.fullmatch(r"(.+?)(?:\.(\d*))?(Z|z|[+-]\d\d:\d\d)?", text,
                                         re.ASCII).groups()
        moment = to_number(head)
        if moment is None or zone:
            zone = (zone or "").upper().replace("Z", "+00:00")
            moment = datetime.datetime.fromisoformat(head + zone).timestamp()
        return log_time(int(moment) * 10**9 + int((part or "")[:9].ljust(9, "0")))
    except (AttributeError, ValueError, OverflowError, OSError):
        raise Failure(f"{option}, on {text}: not a time, such as 2026-01-08T09:32:52Z, 1767835972 "
                      "or 10m") from None

def nanoseconds_of(text):
    """A duration as Go has it, 1m30s or 500ms, in nanoseconds; None if it is none."""
    import re
    units = {"h": 3600 * 10**9, "m": 60 * 10**9, "s": 10**9, "ms": 10**6, "us": 1000, "ns": 1}
    parts = re.findall(r"(\d{1,18}(?:\.\d{1,18})?)(ms|us|ns|h|m|s)", text, re.ASCII)
    if text != "0" and (not parts or "".join(map("".join, parts)) != text):
        return None
    return sum(int(float(number) * units[unit]) for number, unit in parts)

def log_time(moment):
    seconds, rest = divmod(moment, 10**9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest:09}Z"

def log_time_of(moment):
    return log_time(int(moment * 10**9)) if moment else "0001-01-01T00:00:00Z"

def humane_size(size):
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g}{unit}"
        size /= 1000
    return f"{size:.3g}TB"

def shorten(text, width):
    """Text cut to WIDTH, as docker shows commands, and safe to print."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    return f'"{text if len(text) <= width else text[:width - 1] + "…"}"'

def age_of(moment):
    seconds = max(0, int(time.time() - moment))
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} seconds"

def show_rows(rows, headers, form):
    """Print dicts as --format says: a table, json, a template, or "table" and a template."""
    if form == "json":
        lines = map(to_json, rows)
    elif form in (None, "table"):
        lines = columns([[*headers.values()]] + [[row[key] for key in headers] for row in rows])
    elif form.startswith("table "):
        titles = {key: headers.get(key, key.upper()) for row in rows or [headers] for key in row}
        lines = columns([render(form[6:], row).split("\t") for row in [titles, *rows]])
    else:
        of_template(form, list)  # what is wrong in it is wrong without any row
        lines = [render(form, row) for row in rows]
    for line in lines:
        show(line)

def show_json(words, look_up, template=None):
    """Print an array of what LOOK_UP finds for each name."""
    import json
    found = []
    try:
        each("inspect", words, lambda name: found.append(look_up(name)))
    finally:
        if template and found:
            show("\n".join(render(template, value) for value in found))
        elif found:
            show(json.dumps(found, indent=4))

# What --filter keeps

FILTER_WORDS = {  # keys that have no other values
    "status": "created running paused restarting exited removing dead".split(),
    "health": "starting healthy unhealthy none".split(),
    "dangling": "true false 1 0".split(),
}

def filtered(rows, texts, known):
    """Those of ROWS that --filter's TEXTS, KEY=VALUE, keep: as docker has it, of one key any value
    will do, but labels must all be there.  KNOWN: {key: (row, value) -> bool}."""
    wanted = {}
    for key, equals, value in (text.partition("=") for text in texts):
        if key not in known or not equals:
            raise Failure(f"--filter, on {as_typed(key + equals + value)}: not one of "
                          f"{', '.join(known)}, such as label=K=V")
        if value not in FILTER_WORDS.get(key, [value]):
            raise Failure(f"--filter, on {as_typed(key + equals + value)}: not one of "
                          f"{', '.join(FILTER_WORDS[key])}")
        wanted.setdefault(key, []).append(value)
    for key, values in wanted.items():
        enough = all if key.startswith("label") else any
        rows = [row for row in rows if enough(known[key](row, value) for value in values)]
    return rows

def has_label(labels, wanted):
    """True if there is a label K, or K=V, as --filter label=... wants it."""
    key, equals, value = wanted.partition("=")
    return key in labels and (not equals or labels[key] == value)

def fits_name(name, pattern):
    """True if a name has a match of a regular expression, as --filter name=... wants it; docker's
    names of containers begin with a slash."""
    import re
    try:
        return bool(re.search(pattern, name) or re.search(pattern, "/" + name))
    except (re.error, RecursionError, OverflowError):
        raise Failure(f"--filter, on name={pattern}: not a regular expression") from None

def is_older(seconds, value):
    """True if what was made at that time is older than --filter until=... wants it."""
    return log_time(int(seconds * 10**9)) < parse_moment(value, "--filter until")

def prune_filters(labels_of, seconds_of=None):
    """What --filter knows where things are removed, by what their labels and, if that says anything
    of their use, their age are."""
    known = {"label": lambda row, value: has_label(labels_of(row), value),
             "label!": lambda row, value: not has_label(labels_of(row), value)}
    if seconds_of:
        known["until"] = lambda row, value: is_older(seconds_of(row), value)
    return known

PRUNE_FILTER = ("--filter", "K=V...", "only some: label=K[=V], label!=K[=V], until=24h or a time")

# ── 23. The monitor ──────────────────────────────────────────────────────────
# Whoever started a container stays with it: carries signals and bytes, starts it again if its
# restart policy says so, tidies up when it has ended, and passes on its exit status.  It holds the
# container's lock as long as it lives, and the container lives no longer than it.

def supervise(monitor, small):
    """Stay with a container, start it again as its restart policy says, then tidy up. Returns its
    exit status.  SMALL: this process has compiled nothing."""
    record, status = monitor["record"], None
    try:
        status = attend(monitor, small)
        read_again(record)
        while restarts(record, status) and back_off(record, status):
            status = None
            remove_cgroups(record)
            monitor["spec"] = read_json(container_path(record, "config.json"))
            start_container(monitor)
            status = attend(monitor, small)
            read_again(record)
        return status
    except Exception as error:
        record["error"], status, _ = describe(error, "run")
        raise
    finally:
        if status is None:
            status = 125
        write_status(monitor["lock"], status)  # for `wait`
        end_container(record, status)
        for fd in [*monitor.get("ports", []), monitor["lock"]]:
            os.close(fd)
        sweep_containers()  # what killed commands left

def attend(monitor, small):
    """Carry signals and bytes until a container's PID 1 is gone; returns its exit status."""
    status, attached = None, monitor["attached"]
    if monitor["master"] is not None and attached and monitor["interactive"] and os.isatty(0):
        if not monitor.get("before"):
            monitor["before"] = raw_mode(0)
    try:
        watch = Watch(monitor, small)
        with Descriptor(watch_signals()) as signals:
            status = watch.carry(signals)
        watch.end_visits()
        return status
    finally:
        if monitor.get("before"):
            set_terminal(0, monitor.pop("before"))
        if status is None:  # something failed here: no container outlives that
            kill_child(monitor["pid"])
        if monitor.get("checker"):
            kill_child(monitor.pop("checker"))
        for fd in monitor["outputs"]:
            os.close(fd)
        if monitor["master"] is not None:
            os.close(monitor["master"])

class Watch:
    """The loop in which a monitor carries signals and bytes while a container runs."""
    def __init__(self, monitor, small):
        self.monitor, self.pid, self.terminal = monitor, monitor["pid"], monitor["master"]
        self.visits = None if monitor.get("door") is None else visits_at(monitor)
        self.take_up()
        self.status = self.kill_at = self.make_room_at = None  # times are time.monotonic()'s
        if not small:
            self.make_room_at = time.monotonic() + (1 if monitor["attached"] else 0)
    def take_up(self):
        """Carry what there is to carry, by who is attached."""
        self.outputs, self.inputs = relays(self.monitor)
        if self.visits:
            self.visits.hear(self.outputs)
    def end_visits(self):
        if self.visits:
            self.visits.close()
    def carry(self, signals):
        """Go on until PID 1 is gone and all that it said is delivered; returns its exit status."""
        arrived = [_signal.SIGCHLD]  # it may be gone already, and its signal taken as it started
        while True:
            for number in arrived:
                self.on_signal(number)
            if self.status is not None and not any(stream.busy() for stream in self.outputs):
                return self.status
            self.act_in_time()
            ready = wait_ready(signals, self.streams(), self.next_deadline())
            if self.status is not None and self.is_idle() and not ready:
                return self.status  # somebody outside holds the other end: no end of file will come
            hung_up = not all([moved(stream) for stream in ready])
            arrived = take_signals(signals)
            if any(keys.left and not keys.waiting for keys in self.inputs):
                self.leave_caller()
            if hung_up or _signal.SIGHUP in arrived:
                self.hang_up()
    def on_signal(self, number):
        """Bury PID 1, or pass a signal on to it."""
        if self.status is not None:
            return
        if number == _signal.SIGCHLD:
            if self.monitor.get("checker"):
                end_check(self.monitor)
            gone, wait_status = os.waitpid(self.pid, os.WNOHANG)
            if gone:
                self.status = exit_status(wait_status)
                give_back(self.monitor, sum(len(keys.waiting) for keys in self.inputs))
        elif number == _signal.SIGWINCH and self.terminal is not None and self.monitor["attached"]:
            resize(self.terminal)
        elif number in (_signal.SIGTERM, _signal.SIGHUP) and not self.monitor["attached"] and (
                "lock" in self.monitor):  # else it is of `exec`
            self.stop()
        elif number in DEADLY and self.monitor.get("deaf"):
            self.leave_caller()
        else:
            os.kill(self.pid, number)
    def stop(self):
        """End the container for good, in the time that it has for that: somebody ends us, as a
        host does that goes down."""
        record = self.monitor["record"]
        stopped = container_path(record, "stop")
        if not os.path.exists(stopped):  # else it is `stop` that ends us
            touch_if_there(stopped)
            touch_if_there(container_path(record, "halt"))
        thaw(record["cgroups"])  # nothing frozen takes a signal
        os.kill(self.pid, record["stop_signal"])
        if self.kill_at is None and record["stop_timeout"] >= 0:
            self.kill_at = time.monotonic() + record["stop_timeout"]
        self.make_room_at = None  # a second monitor wouldn't know
    def act_in_time(self):
        """Do what was to be done at a certain time."""
        now = time.monotonic()
        if self.status is not None:
            return
        if self.kill_at and now > self.kill_at:
            self.kill_at = None
            thaw(self.monitor["record"]["cgroups"])
            os.kill(self.pid, _signal.SIGKILL)
        if self.monitor.get("check_at") and now > self.monitor["check_at"]:
            begin_check(self.monitor)
        if self.make_room_at is not None and now > self.make_room_at and self.can_make_room():
            self.make_room_at = None
            keys = self.inputs[0] if self.inputs else None
            self.monitor["typed"] = keys.last if keys and keys.open else None
            make_room(self.monitor)
    def streams(self):
        if self.status is not None:
            return self.outputs
        streams = self.outputs + self.inputs
        return streams + [self.visits, *self.visits.streams()] if self.visits else streams
    def is_idle(self):  # no byte is on its way
        return not any(stream.waiting for stream in self.streams())
    def can_make_room(self):  # nor a key that may be the first of those to leave, nor a visitor
        return self.is_idle() and not any(keys.held for keys in self.inputs) and not (
            self.visits and self.visits.guests)
    def next_deadline(self):
        """When to look again without any event, or None."""
        if self.status is None:
            room_at = self.make_room_at if self.can_make_room() else None
            times = self.kill_at, room_at, self.monitor.get("check_at")
            return min(filter(None, times), default=None)
        return time.monotonic() + LINGER if self.is_idle() else None
    def leave_caller(self):
        """The caller has typed the keys to leave, or sent us away: go on in the background."""
        monitor = self.monitor
        if monitor.get("before"):
            set_terminal(0, monitor.pop("before"))
        logged = "lock" in monitor and monitor["record"].get("log", ()) is not None
        monitor.update(attached=False, logged=logged, deaf=False)
        go_behind(monitor["front"])
        monitor["front"] = None
        if "lock" in monitor:
            note_container(monitor["record"], "detach")
        self.take_up()
    def hang_up(self):
        """The caller's terminal is gone: so is the one inside, and PID 1 has GRACE seconds."""
        if self.terminal is None or not self.monitor["attached"]:
            return
        os.close(self.terminal)  # the kernel tells all inside: SIGHUP, and end of file
        self.outputs, self.inputs, self.terminal, self.make_room_at = [], [], None, None
        self.monitor["master"] = None
        self.kill_at = time.monotonic() + GRACE

def moved(stream):
    """Let a stream move; False if the terminal at its end is gone."""
    try:
        stream.move()
    except OSError as error:
        if error.errno == errno.EPIPE:
            if os.isatty(stream.source):
                raise Unread() from None
            stream.stop()
            return True
        if error.errno != errno.EIO:
            raise Failure(f"write, on standard output: {reason(error)}") from None
        stream.waiting, stream.sink = b"", None
        return False
    return True

def wait_ready(signals, streams, deadline):
    """Wait for a signal or for bytes to move; returns the streams that can."""
    poll, wanted = select.poll(), {}
    poll.register(signals, select.POLLIN)
    busy = [stream for stream in streams if stream.busy()]
    for stream in busy:
        fd, events = stream.wants()
        wanted[fd] = wanted.get(fd, 0) | events
        poll.register(fd, wanted[fd])
    ready = dict(poll_until(poll, deadline))
    ended = select.POLLHUP | select.POLLERR
    return [stream for stream in busy
            if ready.get(stream.wants()[0], 0) & (stream.wants()[1] | ended)]

def restarts(record, status):
    """True if a container that has ended so is to be started again."""
    policy, _, most = record["restart"].partition(":")
    if os.path.exists(container_path(record, "stop")) or policy == "no":
        return False
    if policy != "on-failure":
        return True
    return status != 0 and record["restarts"] < int(most or 1 << 63)

def back_off(record, status):
    """Wait before a restart, 0.1 s and then each time twice as long; False if told to end. As
    docker has it: a minute at most, and from the start again after a run of 10 seconds."""
    now, delay = time.time(), 0.1
    if now < record["started"] + 10:
        delay = min(2 * record.get("delay", 0.05), 60)
    note_death(record, status, was_out_of_memory(record))
    change_record(record, pid=0, status=status, finished=now, delay=delay,
                  restarts=record["restarts"] + 1)
    with Descriptor(watch_signals()) as signals:
        while time.time() < now + delay:
            readable_fds([signals], now + delay - time.time())
            if DEADLY & set(take_signals(signals)):
                return False
    return not os.path.exists(container_path(record, "stop"))

def make_room(monitor):
    """Execute this program again, from its bytecode, as `monitor`: compiling took 15 MB. The
    process stays the same: its child, its blocked signals and its locks come along."""
    carried = os.memfd_create("monitor", 0)
    os.write(carried, marshal.dumps(monitor))
    names = "lock", "program", "master", "stdin", "typist", "feed", "door", "front"
    for fd in map(monitor.get, names):
        if fd is not None:
            os.set_inheritable(fd, True)
    for fd in monitor["outputs"] + monitor.get("ports", []):
        os.set_inheritable(fd, True)
    words = [own_python(), "-I", "-S", "-X", "utf8",
             f"/proc/self/fd/{monitor['program']}", "monitor", str(carried)]
    try:
        os.execv("/proc/self/exe", words + sys.argv)  # the last for those who read ps
    except OSError:  # then it stays as large as it is
        os.close(carried)

@command("FD [ARG...]", HIDDEN, takes=ANY, mixed=False)
def cmd_monitor(_, words):
    try:
        with open(int(words[0]), "rb") as file:
            file.seek(0)
            monitor = marshal.loads(file.read())
    except (IndexError, ValueError, OSError, EOFError, TypeError):
        raise Failure("monitor: it can't be typed, only `run` becomes it") from None
    return supervise(monitor, True)

def await_end(record):
    """Wait until a container's monitor has ended, or its PID 1; a moment if that has, or isn't
    there yet.  A lock would be waited for for ever if somebody stopped the monitor."""
    try:
        monitor, first = process_fd(record["monitor"], record["monitor_start"]), None
    except OSError as error:
        if error.errno not in NOT_TO_BE_HAD:
            raise
        time.sleep(0.05)
        return
    if monitor is None:
        return
    with monitor:
        if is_alive(record):
            first = process_fd(record["pid"], record["pid_start"])
        if first is None:
            readable_fds([monitor], 0.1)
            return
        with first:
            readable_fds([monitor, first])

# ── 24. Containers on disk ───────────────────────────────────────────────────
# One directory for each container, containers/<id>/ below the state root:
#
#   config.json   the spec: all that init was told, in the OCI's form
#   record.json   the record: id, name, image, created, command; pid while it runs, status after
#   lock          held by the container's monitor for as long as that lives; its status at the end
#   stop          there when somebody asked it to end: its restart policy doesn't count
#   halt          there, too, when that was the host, which went down
#   container.log, .1, .2    what it said, the oldest last
#   health.json   what its last health checks said
#   door          the fifo by which `attach` comes to its monitor
#   upper, work   what the container wrote over its image's layers (overlayfs)
#   rootfs        where its root is mounted, seen from inside only
#   hosts, hostname, resolv.conf    bind-mounted over the image's
#
# names/<name> is a link with the id for target: a name is taken and looked up in one step.
#
# Whether a container runs is never read from a file: a lock that can be had belongs to a dead one.
# No pid is guessed from.  running/<id> only marks where to look: it is there from before the
# directory is made until after the monitor has tidied up, so whatever a killed monitor left has a
# mark, and sweeping costs what runs, not what is on record.  Whoever makes or sweeps holds
# containers/ itself for that moment, shared or alone, so nobody meets a half-made directory.

ADJECTIVES = "bold brave bright calm clever eager fair fond glad happy keen kind lucky wise".split()
NOUNS = "badger beaver bison crane crow duck eagle falcon fox hare heron otter owl wolf".split()
offer("run",
      ("--name", "NAME", "the container's name (default: one is made up)"),
      ("-l --label", "K=V...", "a note for whoever looks at it"),
      ("--label-file", "FILE...", "read labels from a file"),
      ("--rm", "", "remove the container when it ends (on the host's root always, but with -d)"),
      ("--restart", "POLICY", "start it again: no, on-failure[:N], always or unless-stopped"),
      ("--stop-signal", "SIGNAL", "what `stop` sends (default: the image's, or TERM)"),
      ("--stop-timeout", "SECONDS", "how long `stop` waits before it kills (default: 10)"))

def container_path(record, *names):
    return state_path("oci" if record.get("engine") else "containers", record["id"], *names)

def is_name(text):
    plain = text.replace("_", "a").replace(".", "a").replace("-", "a")
    return text[:1].isalnum() and plain.isalnum() and text.isascii() and len(text) < 129

def check_new_name(name, what):
    if not is_name(name):
        raise Failure(f"{what}, on {as_typed(name)}: a name has letters, digits and _ . -, "
                      "and starts with one of the first two")
    return name

def make_record(options, plan, spec):
    """The record of a new container."""
    cgroups = cgroup_dirs(spec["linux"]["cgroupsPath"])
    policy, image = given(options, "restart", "no"), plan["image"]
    check_restart(policy)
    if options["rm"] and policy != "no":
        raise Failure("run, on --rm: it can't go with --restart")
    if options["name"] is not None:
        check_new_name(options["name"], "--name")
    signal = given(options, "stop-signal", image.get("StopSignal") or "TERM")
    labels = pairs_of(sum(map(label_lines, options["label-file"]), []) + options["label"])
    return {"id": plan["id"], "engine": False, "name": options["name"],
            "reference": plan["reference"],
            "image": plan["digest"], "layers": plan["diff_ids"], "created": time.time(),
            "keep": plan["keep"], "args": spec["process"]["args"], "cgroups": cgroups,
            "network": plan["network"], "wants": plan["wants"],
            "volumes": [row["volume"] for row in spec["mounts"] if "volume" in row],
            "own_volumes": [row["volume"] for row in spec["mounts"] if row.get("anonymous")],
            "labels": {**(image.get("Labels") or {}), **labels}, "restart": policy, "restarts": 0,
            "stop_signal": parse_signal(signal, "--stop-signal"),
            "stop_timeout": parse_number(given(options, "stop-timeout", str(GRACE)),
                                         "--stop-timeout", -1),
            "log": plan_log(options),
            "details": log_details(options, {**(image.get("Labels") or {}), **labels},
                                   spec["process"]["env"]),
            "health": plan_health(options, image) if checks_wanted(options, image) else None}

def checks_wanted(options, image):
    """True if a container may have health checks: most have none, and load nothing for it."""
    return bool(options["health-cmd"] or image.get("Healthcheck"))

def label_lines(path):
    """The lines of a --label-file, each K=V; empty ones and # comments are skipped."""
    with blame(f"--label-file, on {path}"):
        lines = [line.strip() for line in read_foreign(path).split("\n")]
    return [line for line in lines if line and not line.startswith("#")]

def check_restart(policy):
    kind, _, most = policy.partition(":")
    if kind not in ("no", "always", "unless-stopped", "on-failure") or (
            ":" in policy and (kind != "on-failure" or to_number(most) is None)):
        raise Failure(f"--restart, on {policy}: not no, on-failure[:N], always or unless-stopped")

def make_container_dir(record):
    """Make a container's directory, marked and locked, and name it; returns the lock."""
    path = container_path(record)
    with hold(make_dirs(state_path("containers")), fcntl.LOCK_SH):
        mark_running(record)
        os.mkdir(path, 0o700)
        lock = hold(path + "/lock")
    write_status(lock, "")
    try:
        record["name"] = take_name(record["name"], record["id"])
        write_json(path + "/record.json", record)
    except (Failure, OSError):
        end_container(record)
        raise
    note_container(record, "create")
    return lock

def write_config(record, spec):
    """Put a new container's spec on disk."""
    path = container_path(record, "config.json")
    if "uidMappings" in spec["linux"]:
        choose_ids(spec, path)
    else:
        write_json(path, spec)

def write_status(lock, status):
    """Leave an exit status in a container's lock: there is room for it on a full disk, too."""
    os.pwrite(lock, b"%-8s" % str(status).encode(), 0)

def read_status(lock):
    """The exit status in a container's lock; without one its monitor was killed, and so was it."""
    said = os.pread(lock, 8, 0).split()
    return int(said[0]) if said else 128 + _signal.SIGKILL  # PR_SET_PDEATHSIG

def mark_running(record):
    """Leave word that this process is a container's monitor, before anything is made for it."""
    path = make_dirs(state_path("running")) + "/" + record["id"]
    record.update(monitor=os.getpid(), monitor_start=process_start("self"))
    with Descriptor(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)) as mark:
        os.pwrite(mark, b"%-11d %-22d" % (record["monitor"], record["monitor_start"]), 0)

def take_name(wanted, container_id):
    """Make a name mean a container; without one, a free one is made up.  Returns it."""
    top = make_dirs(state_path("names"))
    for extra in range(1 if wanted else 1000):
        name = wanted or "_".join(words[os.urandom(1)[0] % len(words)]
                                  for words in (ADJECTIVES, NOUNS)) + str(extra or "")
        with tolerate(errno.EEXIST):
            os.symlink(container_id, f"{top}/{name}")  # the name is taken, or was, in one step
            return name
    raise Failure(f"--name, on {wanted}: a container of that name exists",
                  hint=f"mydocker rm {wanted}")

def end_container(record, status=None):
    """Tidy up after a container: keep what is to be kept, with its exit status, else remove all.
    Where nothing can be written, on a full disk, each later command tries again."""
    kept = "started" in record and (record["keep"]
                                    or os.path.exists(container_path(record, "stay")))
    out_of_memory = (kept or record.get("pid")) and was_out_of_memory(record)
    remove_cgroups(record)
    if record.get("pid"):
        note_death(record, status, out_of_memory)
    try:
        if not record.get("network") or has_cable(record):
            disconnect_container(record)
        if kept:
            change_record(record, pid=0, status=status, finished=time.time(), oom=out_of_memory)
    except OSError as error:
        warn(describe(error, f"container {record.get('name')}: its end can't be written")[0])
        if kept:
            return
    if not kept:
        remove_container_dir(record)
        note_container(record, "destroy")
        for name in record.get("own_volumes", []):
            remove_tree(state_path("volumes", name))
            note_event("volume", "destroy", name, {})
    unlink_if_there(state_path("running", record["id"]))

def change_record(record, **changes):
    """Change something of a container's record, here and on disk.  What other processes have
    changed there meanwhile stays: nobody writes back what he read long ago."""
    record.update(changes)
    path = container_path(record)
    with hold(path):
        write_json(path + "/record.json", {**read_json(record_file(path)), **changes})

def read_again(record):
    """Take over what other processes have changed in a container's record."""
    record.update(read_json(record_file(container_path(record))))

def record_file(path):
    """Where the record of the container at PATH is; versions before 0.2 called it otherwise."""
    old = path + "/state.json"
    return old if os.path.exists(old) and not os.path.exists(path + "/record.json") else (
        path + "/record.json")

def remove_container_dir(record):
    """Remove a container's name and directory.  No volume is there: they were mounted inside."""
    path = container_path(record)
    for name in [record["name"]] if record.get("name") else listing(state_path("names")):
        if link_target(AT_FDCWD, state_path("names", name)) == record["id"]:
            unlink_if_there(state_path("names", name))
    unlink_if_there(record_file(path))  # it is no container from here on; a sweep goes on
    for name in set(listing(path)) - {"lock"}:
        remove_tree(f"{path}/{name}")
    with hold(state_path("containers"), fcntl.LOCK_SH):
        unlink_if_there(path + "/lock")
        while os.path.isdir(path):
            with tolerate(errno.ENOTEMPTY):  # somebody just asked it to stop
                remove_tree(path)

def sweep_containers():
    """Tidy up after killed monitors; every command that makes or shows containers does it."""
    dead = []
    with hold(make_dirs(state_path("containers"))):  # nothing is half made or half gone now
        for container_id in listing(make_dirs(state_path("running"))):
            path = state_path("containers", container_id)
            if not os.path.exists(path + "/lock"):
                remove_tree(path)
                unlink_if_there(state_path("running", container_id))
            elif not is_running(path):
                dead.append(container_id)
    for container_id in dead:
        path = state_path("containers", container_id)
        lock = lock_container(path)
        if lock is not None and os.path.exists(state_path("running", container_id)):
            record = read_record(path)
            if record or not os.path.exists(record_file(path)):
                end_container(record or {"id": container_id, "keep": False}, read_status(lock))
            else:  # a damaged one is kept as it is
                remove_cgroups({"cgroups": cgroup_dirs(f"mydocker/{container_id}")})
        if lock is not None:
            os.close(lock)

def lock_container(path):
    """Lock a container: returns the lock, or None if a monitor has it or the container is gone."""
    with tolerate(errno.ENOENT):
        lock = os.open(path + "/lock", os.O_RDWR | os.O_CLOEXEC)
        with tolerate(errno.EAGAIN):
            while True:
                with tolerate(errno.EAGAIN):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return lock
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # else it was is_running's
        os.close(lock)
    return None

def wake_monitor(record):
    """Let a monitor go on that was stopped (SIGSTOP) while its container ended: it is to tidy up,
    or to start it again, which is awaited for a moment.  False if there is none such."""
    if is_alive(record) or process_state(record["monitor"])[0] != "T":
        return False
    send_signal(record["monitor"], record["monitor_start"], _signal.SIGCONT)
    wait_process(record["monitor"], record["monitor_start"], LINGER)
    return True

def is_running(path):
    """True while the monitor of the container at PATH lives: its lock can't even be shared."""
    try:
        with Descriptor(os.open(path + "/lock", os.O_RDWR | os.O_CLOEXEC)) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except (FileNotFoundError, BlockingIOError) as error:  # all of it goes; the monitor has it
        return isinstance(error, BlockingIOError)

def read_record(path):
    """The record of the container at PATH, with "running" as it is now; None while it has none."""
    with tolerate(errno.ENOENT):  # being made or removed
        try:
            record = read_json(record_file(path))
        except ValueError:  # the host lost its power: what the container wrote may be well
            return warn(f"container, on {path}: its record is damaged, ignoring")
        marked = os.path.exists(state_path("running", record["id"]))
        running = marked and is_running(path)
        if running and wake_monitor(record):
            record, running = read_json(record_file(path)), is_running(path)
        if record.get("pid") and not running:  # see end_container
            with Descriptor(os.open(path + "/lock", os.O_RDONLY | os.O_CLOEXEC)) as lock:
                record.update(pid=0, status=read_status(lock), finished=os.fstat(lock).st_mtime)
        return {"cgroups": [], "engine": False, **record, "running": running}
    return None

def container_records():
    top = state_path("containers")
    found = map(read_record, [f"{top}/{name}" for name in listing(top)])
    return sorted(filter(None, found), key=lambda record: record["created"], reverse=True)

def find_container(text):
    """The record of the container that a name, an id or the unique beginning of one means."""
    found = [*filter(None, map(read_record, found_paths(text)))]
    if not found:
        raise NotFound(f"container, on {as_typed(text)}: no such container")
    if len(found) > 1:
        raise Failure(f"container, on {text}: more than one container's id begins so")
    return found[0]

def found_paths(text):
    """The directories of the containers that a text may mean."""
    top = state_path("containers")
    if not is_name(text):
        return []
    if os.path.isdir(f"{top}/{text}"):
        return [f"{top}/{text}"]
    named = link_target(AT_FDCWD, state_path("names", text))
    if named:
        return [f"{top}/{named}"]
    return [f"{top}/{name}" for name in listing(top) if name.startswith(text)]

def has_cable(record):
    """True if a container has a network of its own that leads somewhere."""
    return record["network"] not in ("none", "host") and ":" not in record["network"]

def is_alive(record):
    """True if a container's first process is there, and no zombie: that can stay for seconds."""
    state, start = process_state(record.get("pid"))
    return start is not None and start == record["pid_start"] and state not in "ZX"

def live_pid(record):
    """The pid of a running container's PID 1, made sure of by its start time."""
    if not is_alive(record):
        raise Failure(f"container, on {record['name']}: it is not running")
    return record["pid"]

class while_running:
    """A `with` that makes one Failure, NOT_RUNNING, of all that goes wrong with a container because
    it ends meanwhile; while its first process ends, those beside it can't be forked any more."""
    def __init__(self, record, not_running):
        self.record, self.not_running = record, not_running
    def __enter__(self):
        return self
    def __exit__(self, _, error, __):
        if isinstance(error, (Failure, OSError)) and (
                not is_alive(self.record) or is_exiting(self.record["pid"])):
            raise Failure(self.not_running) from None

def container_state(record):
    """Docker's word for what a container does, asked of the kernel, also for an engine's."""
    if not record["running"]:
        return "exited" if "started" in record else "created"
    if not is_alive(record):
        if record.get("restarts"):
            return "restarting"
        return "running" if record.get("pid") else "created"  # just tidied up, or not there yet
    if os.path.exists(container_path(record, "exec.fifo")):
        return "created"  # init waits at its gate
    return "paused" if is_paused(record["cgroups"]) else "running"

def comes_back(record):
    """True if a container that doesn't run is to be started when the host has started."""
    path, policy = container_path(record), record["restart"]
    stopped = os.path.exists(path + "/stop") and not os.path.exists(path + "/halt")
    return not record["running"] and "started" in record and (
        policy == "always" or policy == "unless-stopped" and not stopped)

@command("CONTAINER NAME", "give a container another name", takes=(2, 2))
def cmd_rename(_, words):
    record = find_container(words[0])
    check_new_name(words[1], "rename")
    take_name(words[1], record["id"])
    old = record["name"]
    change_record(record, name=words[1])
    unlink_if_there(state_path("names", old))
    if record["running"] and has_cable(record):
        for endpoint in read_wiring(record)["endpoints"]:
            part_neighbours(record["id"], endpoint)
        introduce(record)
    note_container(record, "rename", oldName=old)

# ── 25. Events ───────────────────────────────────────────────────────────────
# What happens to containers, images, volumes and networks is noted by whoever does it, a command or
# a monitor: no daemon is there to be asked.  A note is a line of JSON in events.log of the state
# root, written under that file's lock, so that lines don't mix and their times only grow.  A full
# file becomes events.log.1, in place of the one before: two files are the most.
#
# A new event is a call of note_event; docker's names for them are at docs.docker.com, "docker
# system events".

EVENTS_SIZE = 1 << 20  # bytes of a file
LABELS_SIZE = 4096  # characters: an image with more has its containers' events without labels

def open_events(path):
    """The file that notes go to, locked."""
    make_dirs(os.path.dirname(path))
    while True:
        fd = hold(path)
        with tolerate(errno.ENOENT):
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                return fd
        os.close(fd)  # it was full, and moved before we had the lock

def note_event(kind, action, name, attributes):
    """Note what has happened to a thing of that id or NAME.  A note that can't be written is lost,
    on a full disk without a word, and nothing else is."""
    row = {"time": 0, "kind": kind, "action": action, "id": name, "attributes": attributes}
    try:
        write_note(state_path("events.log"), row)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            warn(describe(error, "events")[0])

def write_note(path, row):
    """Write a line, now, or nothing."""
    with open_events(path) as fd:
        size = os.fstat(fd).st_size
        line = (to_json({**row, "time": time.time_ns()}) + "\n").encode()
        try:
            if os.pwrite(fd, line, size) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        except OSError:
            os.ftruncate(fd, size)
            raise
        if size + len(line) >= EVENTS_SIZE:
            os.rename(path, path + ".1")

def note_container(record, action, **attributes):
    """Note what has happened to a container of ours; an engine notes by itself."""
    if record.get("engine") or not record.get("name"):
        return
    labels = record.get("labels") or {}
    if len(str(labels)) > LABELS_SIZE:
        labels = {}
    image = {"image": record["reference"]} if record["reference"] else {}
    note_event("container", action, record["id"],
               {**labels, **image, "name": record["name"], **attributes})

def note_signal(record, number):
    """Note that a container's first process gets a signal, if it is there."""
    if is_alive(record):
        note_container(record, "kill", signal=str(int(number)))

def note_death(record, status, out_of_memory):
    """Note how a container has ended."""
    if out_of_memory:
        note_container(record, "oom")
    note_container(record, "die", exitCode=str(status))

def note_exec(record, args):
    """Note that one more command runs in a container; returns the attributes of its end."""
    execution, command = {"execID": os.urandom(32).hex()}, " ".join(args)[:LABELS_SIZE]
    for action in ("exec_create", "exec_start"):
        note_container(record, f"{action}: {command}", **execution)
    return execution

NOTE = {"time": range(1 << 62), "kind": str, "action": str, "id": str, "attributes": {str: str}}
EVENT_KINDS = "container", "image", "volume", "network"

def matches_event(row, key, value):
    """True if a filter KEY=VALUE of `events` keeps a note."""
    kind, name, attributes = row["kind"], row["id"], row["attributes"]
    names = [name, attributes.get("name", "")]
    if key == "type":
        return kind == value
    if key == "event":
        return row["action"].partition(":")[0] == value or row["action"] == value
    if key == "label":
        wanted, equals, text = value.partition("=")
        return wanted in attributes and (not equals or attributes[wanted] == text)
    if key == "image":
        return value in (attributes.get("image"), *(names if kind == "image" else ()))
    if key == "container" and kind == "network":
        return attributes.get("container", "").startswith(value)
    return kind == key and (value in names or key == "container" and name.startswith(value))

def event_filters(texts):
    """`events --filter`'s values as {key: [value]}: see filtered()."""
    filters = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not value or key not in (*EVENT_KINDS, "type", "event", "label"):
            raise Failure(f"--filter, on {text}: not one of {', '.join(EVENT_KINDS)}, type, event, "
                          "label, =VALUE")
        filters.setdefault(key, []).append(value)
    return filters

def event_shown(row):
    """A note in docker's words."""
    moment, name, attributes = row["time"], row["id"], row["attributes"]
    return {"status": row["action"], "id": name, "from": attributes.get("image", ""),
            "Type": row["kind"], "Action": row["action"],
            "Actor": {"ID": name, "Attributes": attributes}, "scope": "local",
            "time": moment // 10**9, "timeNano": moment}

def event_line(row):
    """A note as a line, as docker has it."""
    pairs = ", ".join(f"{key}={value}" for key, value in sorted(row["attributes"].items()))
    return (f"{log_time(row['time'])} {row['kind']} {row['action']} {row['id']}"
            + (f" ({pairs})" if pairs else ""))

def read_events(since, until):
    """Yield the notes between two times, as they come; "~" is later than any."""
    def more():
        return log_time(time.time_ns()) <= until

    for line in read_log(state_path("events.log"), 2, more):
        try:
            row = check(from_json(line), NOTE, "events") if line else None
        except (ValueError, RecursionError, Failure):
            continue  # the host lost its power as it was written
        if row and since <= log_time(row["time"]) <= until:
            yield row

@command("[OPTIONS]  or  events [--stats] ID",
         "show what happens to containers, images, volumes and networks, as it happens",
         ("--since", "TIME", "from then on, not from now: as of `logs`"),
         ("--until", "TIME", "up to then, and leave"),
         ("-f --filter", "K=V...", "only some, by container, image, volume, network, type, event, "
                                   "label"),
         ("--format", "FORMAT", "json or a template, such as '{{.Action}} {{.Actor.ID}}'"),
         takes=ANY)
def cmd_events(options, _):
    """Lines in docker's form; those that are there already with --since only."""
    since, until = log_time(time.time_ns()), "~"
    if options["since"]:
        since = parse_moment(options["since"], "--since")
    elif options["until"]:
        since = ""
    if options["until"]:
        until = parse_moment(options["until"], "--until")
    filters, form = event_filters(options["filter"]), options["format"]
    for row in read_events(since, until):
        if not all((all if key == "label" else any)(matches_event(row, key, value)
                                                     for value in values)
                   for key, values in filters.items()):
            continue
        shown = event_shown(row)
        if form == "json":
            show(to_json(shown))
        elif form:
            show(render(form, {**shown, "ID": shown["id"], "Status": shown["status"],
                               "From": shown["from"], "Time": shown["time"],
                               "TimeNano": shown["timeNano"], "Scope": "local"}))
        else:
            show(event_line(row))

# ── 26. Living with containers ───────────────────────────────────────────────
# What a container does is asked of the kernel each time: its lock says whether it is watched, its
# first process and that one's start time whether it runs, its cgroups whether it is frozen.

STOP_OPTIONS = (
    ("-t --time --timeout", "SECONDS", "how long to wait before they are killed, -1: for ever"),
    ("-s --signal", "SIGNAL", "instead of the container's own"),
)

# Starting and ending

@command("[OPTIONS] CONTAINER...", "start containers that have ended, as they were, or one that "
         "`create` made",
         ("-a --attach", "", "stay with it"), ("-i --interactive", "", "with -a: pass input on"),
         DETACH_KEYS,
         ("--all-restarting", "", "those that --restart brings back after a reboot"),
        takes=ANY)
def cmd_start(options, words):
    sweep_containers()
    if options["all-restarting"]:
        words = [record["id"] for record in container_records()[::-1] if comes_back(record)]
    elif not words:
        raise Failure("start: it takes CONTAINER...", hint="mydocker start --help")
    if options["attach"] and len(words) == 1:
        record, leave = find_container(words[0]), parse_keys(options["detach-keys"])
        if record["running"]:
            return visit(record, options["interactive"], leave, True)
        front = keep_caller() if options["interactive"] else None
        return relaunch(record, {**options, "front": front, "leave": leave})
    each("start", words, lambda name: start_again(find_container(name)) or name)

def start_again(record):
    if not record["running"]:
        in_background(lambda ready: relaunch(record, None, ready), "start")

def relaunch(record, options, ready=lambda: None):
    """Start an ended container and stay with it; OPTIONS: attached, with input or without."""
    path = container_path(record)
    with hold(state_path("containers"), fcntl.LOCK_SH):
        lock = lock_container(path)
        if lock is None:
            raise Failure(f"start, on {record['name']}: it runs, or is gone")
        record = {key: value for key, value in read_record(path).items()
                  if key not in ("running", "delay", "error", "oom")}
        spec = read_json(path + "/config.json")
        spec["process"]["capabilities"] = held_capabilities(spec["process"]["capabilities"])
        if in_user_namespace() and has_limits(spec):
            have_cgroup()
        record.update(restarts=0, cgroups=cgroup_dirs(spec["linux"]["cgroupsPath"]))
        record.setdefault("started", 0)  # `create` has made it: it stays, also if this fails
        mark_running(record)
        write_json(path + "/record.json", record)
    for name in ("/stop", "/halt", "/stay"):
        unlink_if_there(path + name)
    write_status(lock, "")
    state = {"spec": spec, "record": record, "lock": lock, "attached": options is not None,
             "interactive": bool(options and options["interactive"]),
             "front": options and options["front"], "leave": options and options["leave"]}
    state["stdin"] = choose_stdin(state)
    try:
        start_container(state)
    except (Failure, OSError) as error:
        close_ports(state)
        with tolerate():  # the next command sweeps; what went wrong first is what counts
            end_container(record, describe(error, "start")[1])
        raise
    ready()
    return supervise(state, False)

@command("[OPTIONS] CONTAINER...", "stop containers and start them again", *STOP_OPTIONS, many=True)
def cmd_restart(options, name):
    """Also of one with --rm: it goes when it ends by itself, or by `stop`."""
    record = find_container(name)
    stay = container_path(record, "stay")
    touch_if_there(stay)
    try:
        cmd_stop(options, record["id"])
    except (Failure, OSError):
        unlink_if_there(stay)
        raise
    start_again(find_container(record["id"]))
    note_container(find_container(name), "restart")

@command("[OPTIONS] CONTAINER...", "end containers: with their stop signal, then with SIGKILL",
         *STOP_OPTIONS, many=True)
def cmd_stop(options, name):
    record = find_container(name)
    number, seconds = record["stop_signal"], given(options, "time", str(record["stop_timeout"]))
    if options["signal"] is not None:
        number = parse_signal(options["signal"], "--signal")
    stop_container(record, number, parse_number(seconds, "--time", -1))
    if record["running"]:
        note_container(record, "stop")

def stop_container(record, number, seconds):
    """Send a container a signal, and SIGKILL after SECONDS (-1: never); returns when it is swept.
    Between two starts, or before the first, it is the monitor that is told."""
    path, end = container_path(record), time.monotonic() + (seconds if seconds >= 0 else 1 << 63)
    while is_running(path):
        touch_if_there(path + "/stop")
        record = read_record(path) or record
        left = end - time.monotonic()
        thaw(record["cgroups"])
        pid, start = record.get("pid"), record.get("pid_start")
        sent = number if left > 0 else _signal.SIGKILL
        note_signal(record, sent)
        if send_signal(pid, start, sent) and not (
                wait_process(pid, start, left if left > 0 else GRACE)):
            continue
        tell_monitor(record, _signal.SIGTERM if left > -GRACE else _signal.SIGKILL)
        if left < -3 * GRACE:
            raise Failure(f"container, on {record['name']}: its monitor, process "
                          f"{record['monitor']}, can't be killed")

def tell_monitor(record, number):
    """Send a container's monitor a signal, and wait a moment for its end."""
    send_signal(record["monitor"], record["monitor_start"], number)
    wait_process(record["monitor"], record["monitor_start"], 0.1)

@command("[OPTIONS] CONTAINER...  or  kill [--all] ID [SIGNAL]",
         "send containers' first process a signal",
         ("-s --signal", "SIGNAL", "by name or number (default: KILL; of an engine's: TERM)"),
         takes=SOME)
def cmd_kill(options, words):
    number = parse_signal(given(options, "signal", "KILL"), "--signal")
    each("kill", words, lambda name: kill_container(find_container(name), number) or name)

def kill_container(record, number):
    """Send a container's PID 1 a signal.  If that is to end it, its restart policy is over with it;
    between two starts it is the monitor that is told."""
    path, ending = container_path(record), number in (_signal.SIGKILL, record["stop_signal"])
    if not (ending and record["running"]):
        live_pid(record)
    if ending:
        touch_if_there(path + "/stop")
    if number == _signal.SIGKILL:
        thaw(record["cgroups"])
    note_signal(record, number)
    while not send_signal(record.get("pid"), record.get("pid_start"), number):
        if not (ending and is_running(path)):
            return
        tell_monitor(record, _signal.SIGTERM)
        record = read_record(path) or record

@command("CONTAINER...", "freeze all processes of containers", many=True)
def cmd_pause(_, name):
    pause_container(find_container(name), True)

@command("CONTAINER...", "let the processes of paused containers go on", many=True)
def cmd_unpause(_, name):
    pause_container(find_container(name), False)

def pause_container(record, frozen):
    live_pid(record)
    if is_paused(record["cgroups"]) == frozen:
        raise Failure(f"container, on {record['name']}: it is {'already' if frozen else 'not'} "
                      "paused")
    with while_running(record, f"container, on {record['name']}: it is not running"):
        freeze(record["cgroups"], frozen)
    note_container(record, "pause" if frozen else "unpause")

@command("CONTAINER...", "wait for containers to end, and print their exit statuses", many=True)
def cmd_wait(_, name):
    """Its lock can be shared when it has ended; who starts it again at once has another start."""
    record = find_container(name)
    path, first = container_path(record), record["monitor_start"]
    try:
        with Descriptor(os.open(path + "/lock", os.O_RDWR | os.O_CLOEXEC)) as lock:
            while record["monitor_start"] == first:
                with tolerate(errno.EAGAIN):
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    return str(read_status(lock) if "started" in record else 0)
                await_end(record)
                record = read_record(path) or record
            return str(record["status"])  # of the run before: it was started again at once
    except FileNotFoundError:  # it is gone since
        return "0"

@command("[OPTIONS] CONTAINER...", "remove containers, with what they wrote",
         ("-f --force", "", "also if it runs: it's killed first"),
         ("-v --volumes", "", "with the volumes that were made for it"), many=True)
def cmd_rm(options, name):
    """Kill it if asked to, then remove all but bind mounts and named volumes."""
    try:
        record = find_container(name)
    except NotFound:
        if remove_damaged(name, options["force"]):
            return name
        if options["force"]:
            return ""  # that is what was wanted
        raise
    if record["running"] and not options["force"]:
        raise Failure(f"rm, on {record['name']}: it is running", hint="mydocker rm -f")
    stop_container(record, _signal.SIGKILL, 0)
    lock = lock_ended(record)
    if lock is not None:
        with tolerate(errno.ENOSPC, errno.EDQUOT):  # on a full disk it's not, but goes
            mark_running(record)  # if we are killed now, it is swept up
        unlink_if_there(container_path(record, "stay"))  # of a `restart` that was killed
        volumes = record["own_volumes"] if options["volumes"] else []
        end_container(dict(record, pid=0, keep=False, own_volumes=volumes))
        os.close(lock)
    return record["name"]

def lock_ended(record):
    """Lock a container that has ended, once nobody else tidies it up; None if it is removed then.
    Raises Failure if it was started again."""
    path, end = container_path(record), time.monotonic() + GRACE
    while True:
        lock = lock_container(path)
        if lock is not None or not os.path.exists(path + "/lock"):
            return lock
        record = read_record(path) or record
        if time.monotonic() > end or lives(record.get("monitor"), record.get("monitor_start")):
            raise Failure(f"rm, on {record['name']}: it was started again meanwhile")
        time.sleep(0.01)

def remove_damaged(name, force):
    """Remove an ended container whose record says nothing any more, so that its name is free again;
    False if there is none such."""
    paths = [path for path in found_paths(name) if os.path.exists(record_file(path))]
    lock = lock_container(paths[0]) if len(paths) == 1 else None
    if lock is None:
        return False
    with Descriptor(lock):
        if not force:
            raise Failure(f"rm, on {name}: its record is damaged, and what it wrote is in "
                          f"{paths[0]}", hint=f"mydocker rm -f {name}")
        container_id = os.path.basename(paths[0])
        end_container({"id": container_id, "keep": False,
                       "cgroups": cgroup_dirs(f"mydocker/{container_id}")})
    return True

@command("[OPTIONS]", "remove all containers that don't run", PRUNE_FILTER,
         ("-f --force", "", "without asking, as always"))
def cmd_prune(options, _):
    sweep_containers()
    known = prune_filters(lambda record: record["labels"], lambda record: record["created"])
    ended = [record for record in filtered(container_records(), options["filter"], known)
             if not record["running"]]
    freed = sum(tree_size(container_path(record)) for record in ended)
    each("prune", ended, prune_container)
    show(f"Total reclaimed space: {humane_size(freed)}")

def prune_container(record):
    try:
        return cmd_rm({"force": False, "volumes": False}, record["id"])
    except NotFound:  # somebody else was faster
        return ""

# One more command

@command("[OPTIONS] CONTAINER COMMAND [ARG...]  or  exec --process FILE ID",
         "run one more command in a running container", *PROCESS_OPTIONS,
         ("--privileged", "", "with all capabilities that the host can give, and no filter"),
         takes=SOME, mixed=False)
def cmd_exec(options, words):
    """The process is as the container's own, but for what the options say."""
    if not words[1:]:
        raise Failure("exec: it takes CONTAINER COMMAND", hint="mydocker exec --help")
    leave, front, detach = parse_keys(options["detach-keys"]), None, options["detach"]
    if options["tty"] and options["interactive"] and not detach:
        front = keep_caller()
    birth = Birth("join", detach)
    record = find_container(words[0])
    live_pid(record)
    if in_user_namespace() and record["cgroups"]:
        have_cgroup(birth)  # from outside of what is our user's nobody may go into it
    if is_paused(record["cgroups"]):
        raise Failure(f"exec, on {words[0]}: it is paused", hint=f"mydocker unpause {words[0]}")
    spec = read_json(container_path(record, "config.json"))
    process = exec_process(options, words[1:], spec["process"])
    state = {"record": record, "linux": {} if options["privileged"] else spec["linux"],
             "attached": True, "interactive": options["interactive"],
             "logged": False, "outputs": [], "typed": b"", "stdin": 0, "front": front,
             "leave": leave}
    if detach or not options["interactive"]:
        state["stdin"] = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    elif not process["terminal"]:
        state["stdin"] = input_pipe(state) or 0
    with while_running(record, f"container, on {record['name']}: it is not running"):
        start_process(state, birth, process, detach, (0, 0) if detach else ())
    execution = note_exec(record, words[1:])
    if detach:
        return None
    status = attend(state, True)
    note_container(record, "exec_die", **execution, exitCode=str(status))
    return status

def start_process(monitor, birth, process, detach=False, outputs=(), preserved=0):
    """Let a Birth be one more process in the container of MONITOR, and add to that what attend()
    needs.  DETACH: it doesn't end with this process."""
    record = monitor["record"]
    first = live_pid(record)
    # With the mounts of somebody else it has at most a root of its own.
    shared = record["engine"] and not has_namespace(monitor, "mount")
    joined = [row for kind, row in NAMESPACES.items() if kind != "time"  # nor one that we are in:
              and (os.readlink(f"/proc/{first}/ns/{row[1]}")
                   != os.readlink(f"/proc/self/ns/{row[1]}") or kind == "mount" and shared)]
    fds = [os.open(f"/proc/{first}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for _, name in joined]
    with tolerate(*NOT_TO_BE_HAD):  # the others do as well
        fds.insert(0, pidfd_open(first, 0))
    if shared:
        fds.append(os.open(f"/proc/{first}/root", OPEN_DIR))
    live_pid(record)  # the pid wasn't used again before all were open
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # the child of `join` becomes ours
    engine, pipes = record["engine"], []
    if not outputs and not engine:
        pipes = output_pipes(process, True)
    if CLONE_NEWUSER in [flag for flag, _ in joined] and not engine:
        spec = read_json(container_path(record, "config.json"))
        give_pipes(spec["linux"], [monitor["stdin"], *([end for _, end in pipes] or (1, 2))])
    with birth:
        birth.tell_place(monitor["stdin"], preserved=preserved)
        program = filter_of(monitor["linux"])
        tell(birth.channel, (process, detach, program, "piped" if pipes else outputs,
                             [flag for flag, _ in joined], engine, shared),
             fds + [end for _, end in pipes])  # sync 1
        if program and program[0] & SECCOMP_FILTER_FLAG_NEW_LISTENER:
            take_birth(monitor, birth, process["terminal"])
        else:
            monitor["master"] = birth.take_terminal() if process["terminal"] else None
            birth.pid = inherit(birth.pid, birth.channel)
        affinity = process.get("execCPUAffinity", {})
        pin(birth.pid, affinity.get("initial"))
        enter_cgroups(record["cgroups"], birth.pid)
        if "cache" in record:
            join_cache(record, birth.pid)
        pin(birth.pid, affinity.get("final"))
        limit_process(process, birth.pid)  # not before: the last process slot is the command's
        tell(birth.channel, "go")  # sync 1, once more
        birth.await_command()
        monitor.update(pid=birth.pid, outputs=read_ends(pipes))
    for fd in {*fds, *[end for _, end in pipes]}:
        os.close(fd)

def exec_process(options, args, old):
    """One more process as the options say, and otherwise as OLD."""
    named = {} if options["user"] is None else {"username": options["user"]}
    process = dict(old, args=args, consoleSize=caller_size(), user={**old["user"], **named},
                   terminal=options["tty"] and not options["detach"],
                   cwd=os.path.join(old["cwd"], given(options, "workdir", "")),
                   env=environment_of(options, old["env"]))
    if options["privileged"]:
        process.update(capabilities=plan_capabilities(free=True)[0], apparmorProfile="unconfined")
    else:
        process["capabilities"] = held_capabilities(process["capabilities"])
    return process

# ── 27. What can be seen of them ─────────────────────────────────────────────
# `ps`, `inspect`, `stats` and `top`: what is on record of a container, what its cgroups count, and
# what the kernel says of its processes.  A new column of `ps` is a key in ps_row.

PS_COLUMNS = {"ID": "CONTAINER ID", "Image": "IMAGE", "Command": "COMMAND",
              "RunningFor": "CREATED", "Status": "STATUS", "Ports": "PORTS", "Names": "NAMES"}
PS_FILTERS = {  # what `ps --filter KEY=VALUE` keeps
    "id": lambda record, value: record["id"].startswith(value),
    "name": lambda record, value: fits_name(record["name"], value),
    "status": lambda record, value: container_state(record) == value,
    "exited": lambda record, value: not record["running"] and (
        record.get("status") == parse_number(value, "--filter exited")),
    "label": lambda record, value: has_label(record["labels"], value),
    "ancestor": lambda record, value: value in (record["reference"], record["image"]) or (
        full_name(value) == full_name(record["reference"] or "none")),
    "volume": lambda record, value: value in record["volumes"],
    "health": lambda record, value: health_of(record) == value,
    "network": lambda record, value: value in network_names(
        record, read_wiring(record)).split(","),
    "publish": lambda record, value: has_port(record, value),
    "before": lambda record, value: record["created"] < find_container(value)["created"],
    "since": lambda record, value: record["created"] > find_container(value)["created"],
}

def has_port(record, value):
    """True if a container has a port PORT[/PROTOCOL], of its own or of the host."""
    number, _, protocol = value.partition("/")
    return any(port.partition("/")[2] == (protocol or "tcp")
               and number in (port.partition("/")[0], host.rpartition(":")[2])
               for port, host in published(read_wiring(record)))

@command("[OPTIONS] [ID]", "list the containers; with the ID of an engine's container its pids",
         ("-a --all", "", "also those that don't run"),
         ("-q --quiet", "", "ids only"),
         ("-l --latest", "", "the one that was made last"),
         ("-n --last", "N", "the N that were made last"),
         ("-s --size", "", "with the size of what each has written"),
         ("--no-trunc", "", "ids and commands in full"),
         ("-f --filter", "K=V...", f"only some, by {', '.join(PS_FILTERS)}"),
         ("--format", "FORMAT", "table, json or a template, such as '{{.ID}} {{.PID}}'"),
        takes=ANY, mixed=False)
def cmd_ps(options, _):
    """What runs is asked of the kernel, not read."""
    sweep_containers()
    records = filtered(container_records(), options["filter"], PS_FILTERS)
    last = 1 if options["latest"] else parse_number(given(options, "last", "-1"), "--last", -1)
    chosen = any(text.startswith(("status=", "exited=")) for text in options["filter"])
    if last < 0 and not options["all"] and not chosen:
        records = [record for record in records if record["running"]]
    rows = [ps_row(record, options) for record in (records if last < 0 else records[:last])]
    headers = dict(PS_COLUMNS, **{"Size": "SIZE"} if options["size"] else {})
    show_rows(rows, headers, "{{.ID}}" if options["quiet"] else options["format"])

def ps_row(record, options):
    """What `ps` can show of a container, by docker's field names and the tutorial's."""
    state, command = container_state(record), " ".join(record["args"])
    wiring = read_wiring(record)
    created = time.localtime(record["created"])
    status = {"running": "Up {up}", "paused": "Up {up} (Paused)", "created": "Created",
              "restarting": "Restarting ({status}) {ended} ago",
              "exited": "Exited ({status}) {ended} ago"}[state].format(
        up=age_of(record.get("started", 0)), ended=age_of(record.get("finished", 0)),
        status=record.get("status"))
    if state == "running" and record.get("health"):
        status += health_note(record)
    row = {"ID": record["id"] if options["no-trunc"] else record["id"][:12],
           "Image": record["reference"] or "-", "Names": record["name"], "State": state,
           "Command": shorten(command, len(command) if options["no-trunc"] else 20),
           "RunningFor": age_of(record["created"]) + " ago", "Status": status,
           "CreatedAt": time.strftime("%Y-%m-%d %H:%M:%S %z %Z", created),
           "PID": str(record.get("pid") or ""),
           "IP": next((own["ip"] for own in wiring["endpoints"] if "ip" in own), ""),
           "Ports": ", ".join(f"{host}->{port}" for port, host in published(wiring)),
           "Networks": network_names(record, wiring),
           "Labels": ",".join(f"{key}={text}" for key, text in record["labels"].items()),
           "Mounts": ",".join(record["volumes"]), "LocalVolumes": str(len(record["volumes"]))}
    if options["size"] or ".Size" in (options["format"] or ""):
        row["Size"] = humane_size(tree_size(container_path(record, "upper")))
    return row

@command("[OPTIONS] NAME...", "show all that is known of containers and images, as JSON",
         ("-f --format", "FORMAT", "a template, such as '{{.State.Pid}}', instead of all"),
         ("--type", "TYPE", "only of this kind: container, image, volume or network"),
        takes=SOME)
def cmd_inspect(options, words):
    sweep_containers()
    show_json(words, look_up_of(options["type"]), options["format"])

def look_up_of(kind):
    """The function that finds what is shown of something of that kind, by its name."""
    kinds = {None: inspected, "image": inspect_image, "volume": volume_info,
             "network": network_info,
             "container": lambda name: inspected(find_container(name)["id"])}
    if kind not in kinds:
        raise Failure(f"--type, on {kind}: not container, image, volume or network")
    return kinds[kind]

def limits_shown(resources):
    """A spec's limits by docker's names for them, such as "PidsLimit"."""
    shown = {}
    for row in LIMITS:
        group, key = row[0].split(".")
        name = "".join(map(str.capitalize, long_name(row[1:]).split("-")))
        if resources[group].get(key) is not None:
            shown[name] = resources[group][key]
    for row in MORE_LIMITS:
        group, key = row[3].split(".")
        if key in resources.get(group, {}):
            shown["".join(map(str.capitalize, long_name(row).split("-")))] = resources[group][key]
    if shown.pop("Cpus", -1) > 0:  # these are in what --cpu-quota counts
        period = resources["cpu"].get("period") or 100000
        shown["NanoCpus"] = shown["CpuQuota"] * 10**9 // period
    shown.pop("Cpu", None)
    return shown

def inspect_other(name):
    """What is called so and is no container, in docker's order."""
    try:
        return inspect_image(name)
    except Failure as failure:
        if is_name(name) and os.path.isdir(volume_path(name)):
            return volume_info(name)
        if is_name(name) and os.path.exists(state_path("networks", name + ".json")):
            return network_info(name)
        if not isinstance(failure, NotFound):
            raise
    raise NotFound(f"inspect, on {as_typed(name)}: no such container, image, volume or network")

def mounts_asked(record, spec):
    """The rows of a container's mounts that were asked for: not its /etc/hosts and such."""
    own = container_path(record) + "/"
    return [row for row in spec["mounts"] if row["type"] == "bind"
            and not row["source"].startswith(own) and row["destination"] != "/dev/shm"]

def mount_shown(row):
    """A mount in docker's words."""
    writable = not {"ro", "rro"} & {*row["options"]}
    shown = {"Type": "bind", "Source": row["source"], "Destination": row["destination"],
             "Mode": "" if writable else "ro", "RW": writable,
             "Propagation": next((word for word in row["options"] if word in PROPAGATION), "")}
    if "volume" in row:
        shown.update(Type="volume", Name=row["volume"], Driver="local", Propagation="")
    return shown

def host_config(record, spec):
    """What was asked for when a container was made, in docker's words."""
    policy, _, most = record["restart"].partition(":")
    bindings = {}
    for port, host in published(read_wiring(record)):
        address, _, number = host.rpartition(":")
        bindings.setdefault(port, []).append({"HostIp": address, "HostPort": number})
    binds = [f"{row.get('volume', row['source'])}:{row['destination']}"
             + (":ro" if {"ro", "rro"} & {*row["options"]} else "")
             for row in mounts_asked(record, spec)]
    return {"AutoRemove": not record["keep"], "NetworkMode": record["network"],
            "RestartPolicy": {"Name": policy, "MaximumRetryCount": to_number(most) or 0},
            "LogConfig": {"Type": "json-file" if record["log"] else "none", "Config": {}},
            "Binds": binds or None, "PortBindings": bindings,
            "ReadonlyRootfs": spec["root"]["readonly"]}

def inspected(name):
    """A container or something else, in docker's words; "Record" and "Spec" are our own."""
    try:
        record = find_container(name)
    except NotFound:
        return inspect_other(name)
    spec, state = read_json(container_path(record, "config.json")), container_state(record)
    process, linux = spec["process"], spec["linux"]
    return {
        "Id": record["id"], "Name": "/" + record["name"], "Created": log_time_of(record["created"]),
        "Path": record["args"][0], "Args": record["args"][1:], "Image": record["image"],
        "State": {"Status": state, "Running": state in ("running", "paused"),
                  "Paused": state == "paused", "Restarting": state == "restarting",
                  "OOMKilled": record.get("oom", False) or was_out_of_memory(record),
                  "Pid": record.get("pid") or 0,
                  "ExitCode": record.get("status") or 0, "Error": record.get("error", ""),
                  "StartedAt": log_time_of(record.get("started")),
                  "FinishedAt": log_time_of(record.get("finished")), **health_shown(record)},
        "RestartCount": record["restarts"], "LogPath": container_path(record, "container.log"),
        "Config": {"Hostname": spec["hostname"], "User": process["user"]["username"],
                   "Tty": process["terminal"], "Env": process["env"], "Cmd": record["args"],
                   "Image": record["reference"], "WorkingDir": process["cwd"],
                   "Labels": record["labels"], "StopSignal": str(record["stop_signal"]),
                   "Domainname": spec.get("domainname", ""), "Entrypoint": None,  # see Cmd
                   "Healthcheck": record.get("health")},
        "HostConfig": {**host_config(record, spec), **limits_shown(linux["resources"])},
        "Limits": limits_there(record["cgroups"]) if record["running"] else {},
        "Mounts": [mount_shown(row) for row in mounts_asked(record, spec)],
        "Driver": "overlay" if record["layers"] else "none", "Platform": "linux",
        "NetworkSettings": network_settings(record), "Record": record, "Spec": spec}

STATS = {"ID": "CONTAINER ID", "Name": "NAME", "CPUPerc": "CPU %", "MemUsage": "MEM USAGE / LIMIT",
         "MemPerc": "MEM %", "NetIO": "NET I/O", "BlockIO": "BLOCK I/O", "PIDs": "PIDS"}

IDLE_STATS = dict(zip(STATS, ["", "", "0.00%", "0B / 0B", "0.00%", "0B / 0B", "0B / 0B", "0"]))

@command("[OPTIONS] [CONTAINER...]", "show what running containers use",
         ("-a --all", "", "also those that don't run"),
         ("--no-stream", "", "once, not every second"), ("--no-trunc", "", "ids in full"),
         ("--format", "FORMAT", "table, json or a template, such as '{{.Name}} {{.CPUPerc}}'"),
        takes=ANY)
def cmd_stats(options, words):
    """A table every second; the processors' part is that of the second before."""
    before, clear = {}, os.isatty(1) and not options["no-stream"]
    while True:
        records = [*map(find_container, words)] if words else container_records()
        first, rows = not before, []
        for record in records:
            row = stats_row(record, before)
            if row or options["all"]:
                rows.append({**IDLE_STATS, "Name": record["name"], **(row or {}),
                             "ID": record["id"][:64 if options["no-trunc"] else 12]})
        if not first or not before:
            if clear:
                os.write(1, b"\033[H\033[J")  # from the top again
            show_rows(rows, STATS, options["format"])
            if options["no-stream"]:
                return
        time.sleep(1)

def stats_row(record, before):
    """What a container uses, by STATS' names, or None if it doesn't run; BEFORE, {id: (time,
    processor time)}, is kept up."""
    dirs, network, lines = record["cgroups"], [0] * 16, []
    with tolerate(errno.ENOENT, errno.ESRCH, errno.EINVAL):
        lines = read_all(f"/proc/{record.get('pid') or ''}/net/dev").split("\n")
    if not lines or container_state(record) not in ("running", "paused"):
        return None
    for name, _, counts in (line.partition(":") for line in lines[2:-1]):
        network = [a + int(b) * (name.strip() != "lo") for a, b in zip(network, counts.split())]
    usage = usage_of(dirs)
    now = time.monotonic(), usage["cpu_ns"] / 1e9
    last, before[record["id"]] = before.get(record["id"], (0, now[1])), now
    memory = max(0, usage["memory"] - usage["cache"])  # the cache could go at once
    limit = min(usage["memory_limit"] or 1 << 63, int(read_all("/proc/meminfo").split()[1]) << 10)
    disk = usage["read"], usage["written"]
    sizes = [" / ".join(map(humane_size, pair))
             for pair in ((memory, limit), (network[0], network[8]), disk)]
    busy = (now[1] - last[1]) / (now[0] - last[0])
    return dict(zip(STATS, [record["id"][:12], record["name"], f"{100 * busy:.2f}%", sizes[0],
                            f"{100 * memory / limit:.2f}%", *sizes[1:],
                            str(usage["pids"])]))

@command("CONTAINER [OPTION OF PS...]", "show the processes of a container", takes=SOME,
         mixed=False)
def cmd_top(_, words):
    show(process_table(container_pids(find_container(words[0])), words[1:]))

def container_pids(record):
    """The pids of a container's processes: what is in its cgroups, without any what is in its PID
    namespace; that it may share with the host or another one."""
    first, pids = live_pid(record), []
    namespace = os.readlink(f"/proc/{first}/ns/pid")
    inside = cgroup_pids(record["cgroups"])
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with tolerate():  # it is gone, or not ours to look at
            if int(pid) in inside or (
                    first not in inside and os.readlink(f"/proc/{pid}/ns/pid") == namespace):
                pids.append(pid)
    return pids

offer("run",
      ("-v --volume", "[SRC:]PLACE[:OPTS]...", "mount a host directory or a volume"),
      ("--mount", "SPEC...", "the same, spelled out: type=bind,source=...,target=..."),
      ("--volumes-from", "CONTAINER[:ro]...", "mount what another container has mounted"))

# ── 28. Health checks ────────────────────────────────────────────────────────
# A container may have a command that says whether it does its work, not only runs: --health-cmd, or
# the image's Healthcheck.  Its monitor has that run now and then, as `exec` would, by a process of
# its own: `health`, which waits for it, reads what it says and keeps the last results beside the
# record, in health.json.  The monitor itself only starts that, and hears of its end by a signal: no
# check, however long, delays what it carries.  What counts as healthy is docker's rule.

STARTING = 1  # the status of `health` while a container has time to start, and hasn't yet
HEALTH_DEFAULTS = {"Interval": 30 * 10**9, "Timeout": 30 * 10**9, "StartPeriod": 0,
                   "StartInterval": 5 * 10**9, "Retries": 3}  # nanoseconds, as images have them
HEALTH_OUTPUT = 4096  # bytes kept of what a check says
HEALTH_LOG = 5  # results kept
HEALTH_OPTIONS = (
    ("--health-cmd", "COMMAND", "a shell command that fails if it doesn't do its work"),
    ("--health-interval", "DURATION", "time between two checks: 1m30s (default: 30s)"),
    ("--health-timeout", "DURATION", "what takes longer has failed (default: 30s)"),
    ("--health-retries", "N", "it is unhealthy after so many failures in a row (default: 3)"),
    ("--health-start-period", "DURATION", "its time to start, in which no failure counts"),
    ("--health-start-interval", "DURATION", "time between two checks then (default: 5s)"))
offer("run", *HEALTH_OPTIONS, ("--no-healthcheck", "", "without the image's check"))

def plan_health(options, image):
    """How a container's health is checked, in the form of an image's Healthcheck; None if not."""
    typed = {name: options[name] for name, *_ in (row[0][2:].split() for row in HEALTH_OPTIONS)
             if options[name] is not None}
    if options["no-healthcheck"]:
        if typed:
            raise Failure(f"--no-healthcheck: it can't go with --{min(typed)}")
        return None
    row, command = dict(image.get("Healthcheck") or {}), typed.pop("health-cmd", "")
    if command:
        row["Test"] = ["CMD-SHELL", command]
    for name, text in typed.items():
        key = "".join(map(str.capitalize, name.split("-")[1:]))
        if key == "Retries":
            row[key] = parse_number(text, f"--{name}")
            continue
        row[key] = nanoseconds_of(text)
        if row[key] is None or 0 < row[key] < 10**6 or row[key] >= 1 << 62:
            raise Failure(f"--{name}, on {as_typed(text)}: not a duration from 1ms up, such as 30s")
    test = row.get("Test") or ["NONE"]
    if test[0] not in ("CMD", "CMD-SHELL") or len(test) < 2:
        return None
    shell = image.get("Shell") or ["/bin/sh", "-c"]
    return {"Test": test, "Shell": shell, **{
        key: row.get(key) or default for key, default in HEALTH_DEFAULTS.items()}}

# In the monitor

def begin_checks(monitor):
    """Let the checks of a container begin, that starts now."""
    record = monitor["record"]
    health = record["health"]
    write_json(container_path(record, "health.json"),
               {"Status": "starting", "FailingStreak": 0, "Log": []})
    wait = health["StartInterval" if health["StartPeriod"] else "Interval"]
    monitor.update(checker=None, check_at=time.monotonic() + wait / 10**9)

def begin_check(monitor):
    """Start a check; or end one that should have ended long ago by itself."""
    if monitor["checker"]:
        os.kill(monitor["checker"], _signal.SIGKILL)
        monitor["check_at"] = None
        return
    record, program = monitor["record"], monitor["program"]
    monitor["check_at"] = time.monotonic() + record["health"]["Timeout"] / 10**9 + GRACE
    os.set_inheritable(program, True)
    actions = [(os.POSIX_SPAWN_CLOSE, fd) for fd in open_fds()  # a lock, for one
               if fd != program and os.get_inheritable(fd)]
    actions += [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
    words = [own_python(), "-I", "-S", "-X", "utf8", f"/proc/self/fd/{program}", "health",
             record["id"]]
    with tolerate(errno.EAGAIN, errno.ENOMEM):  # the host is full: the next time
        monitor["checker"] = os.posix_spawn("/proc/self/exe", words, os.environ,
                                            file_actions=actions, setsigmask=())

def end_check(monitor):
    """Bury a check that has ended, and say when the next one is due."""
    gone, wait_status = os.waitpid(monitor["checker"], os.WNOHANG)
    if gone:
        health = monitor["record"]["health"]
        is_starting = exit_status(wait_status) == STARTING
        wait = health["StartInterval" if is_starting else "Interval"]
        monitor.update(checker=None, check_at=time.monotonic() + wait / 10**9)

# A check

@command("ID", HIDDEN, takes=ONE)
def cmd_health(_, words):
    """Check a container once, for its monitor: that one waits, and takes us along when it dies."""
    prctl(PR_SET_PDEATHSIG, _signal.SIGKILL, 0, 0, 0)
    record = find_container(words[0])
    if os.getppid() != record["monitor"] or not record.get("health"):
        raise Failure("health: it can't be typed, only a monitor does it")
    if is_paused(record["cgroups"]):
        return 0
    begin = time.time()
    status, said = probe(record, record["health"])
    return keep_result(record, {"Start": log_time_of(begin), "End": log_time_of(time.time()),
                                "ExitCode": status, "Output": said})

def probe(record, health):
    """Run a check's command in a container: (its status, what it said)."""
    spec = read_json(container_path(record, "config.json"))
    kind, *args = health["Test"]
    if kind == "CMD-SHELL":
        args = [*health["Shell"], *args]
    end, ours = os.pipe()
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in (1, 2):
        os.dup2(ours, fd)
    os.close(ours)
    state = {"record": record, "linux": spec["linux"], "stdin": null}
    try:
        start_process(state, Birth("join"), dict(spec["process"], args=args, terminal=False))
    except (Failure, OSError, ValueError) as error:
        message, status, _ = describe(error, "health")
        return status, message
    for fd in (1, 2):
        os.dup2(null, fd)
    return await_result(state["pid"], end, health["Timeout"])

def await_result(pid, end, timeout):
    """Wait for a check's command: (its status, what came from END); -1 if it takes too long."""
    deadline, said, streams = time.monotonic() + timeout / 10**9, b"", [end]
    os.set_blocking(end, False)
    with Descriptor(watch_signals()) as signals:
        while True:
            gone, wait_status = os.waitpid(pid, os.WNOHANG)
            left = deadline - time.monotonic()
            ready = readable_fds([signals, *streams], max(left, 0.001)) if not gone else streams
            if end in ready:
                with tolerate(errno.EAGAIN):
                    data = os.read(end, 1 << 16)
                    said = (said + data)[:HEALTH_OUTPUT]
                    streams = streams if data else []
            if gone:
                return exit_status(wait_status), said.decode("utf-8", "replace")
            if left <= 0:
                kill_child(pid)
                return -1, f"Health check exceeded timeout ({timeout / 10**9:g}s)"
            take_signals(signals)

def keep_result(record, row):
    """Add a check's result to what is known of a container's health: docker's rule."""
    path, health = container_path(record), record["health"]
    with hold(path):
        known = read_json(path + "/health.json")
        before, streak = known["Status"], known["FailingStreak"] + 1
        in_time = before == "starting" and (
            time.time() < record["started"] + health["StartPeriod"] / 10**9)
        if row["ExitCode"] == 0:
            known.update(Status="healthy", FailingStreak=0)
        elif not in_time:
            status = "unhealthy" if streak >= health["Retries"] else before
            known.update(Status=status, FailingStreak=streak)
        known["Log"] = [*known["Log"], row][-HEALTH_LOG:]
        write_json(path + "/health.json", known)
    if known["Status"] != before:
        note_container(record, f"health_status: {known['Status']}")
    return STARTING if in_time and row["ExitCode"] else 0

# What is shown of it

def health_of(record):
    """Docker's word for a container's health: none if nobody checks it."""
    if not record.get("health"):
        return "none"
    with tolerate(errno.ENOENT):
        return read_json(container_path(record, "health.json"))["Status"]
    return "none"  # it hasn't started yet

def health_note(record):
    """What `ps` adds to the status of a container that runs."""
    word = health_of(record)
    return {"none": "", "starting": " (health: starting)"}.get(word, f" ({word})")

def health_shown(record):
    """What `inspect` adds to the state of a container."""
    with tolerate(errno.ENOENT):
        return {"Health": read_json(container_path(record, "health.json"))}
    return {"Health": None}  # for {{if .State.Health}}

# ── 29. Attach ───────────────────────────────────────────────────────────────
# A container's monitor has its terminal, or the pipes by which it speaks.  Whoever comes later gets
# copies: `attach` makes fifos in the container's directory, which only root can enter, and writes
# their name into one more fifo there, the door, at which the monitor listens.  No socket is made
# that a container could reach.  A line at the door is NAME ROWS COLUMNS: with a new name it asks
# for a visit, with a known one for another size of the terminal; 0 0 is no size.
#
# A monitor waits for no visitor: who doesn't take what is said loses it, and is sent away.

VISITORS = 16  # at one time
HEARD_SIZE = 1 << 20  # bytes that wait for a visitor

# In the monitor

def open_door(monitor):
    """Make a container's door, if it hasn't one, in its new monitor."""
    path = container_path(monitor["record"], "door")
    if monitor.get("door") is not None:
        return
    unlink_if_there(path)  # of a run before
    with tolerate(errno.ENOSPC, errno.EDQUOT):
        os.mkfifo(path, 0o600)
        monitor["door"] = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

def visits_at(monitor):
    return Visits(monitor)

class Visits:
    """Those who have come to a container by its door, a stream for what is written there."""
    def __init__(self, monitor):
        self.monitor, self.rest, self.ears = monitor, b"", ([], [])  # ears: of 1 and 2
        self.guests = {}  # name: streams
        self.waiting, self.left = b"", False
        if monitor.get("typist") is not None:
            os.set_blocking(monitor["typist"], False)
    def hear(self, outputs):
        """Be told what comes on a monitor's outputs."""
        for stream, ears in zip(outputs, self.ears):
            stream.ears = ears
    def busy(self):
        return True
    def wants(self):
        return self.monitor["door"], select.POLLIN
    def move(self):
        *lines, self.rest = (self.rest + os.read(self.monitor["door"], 4096)).split(b"\n")
        for line in lines:
            words = line.decode("ascii", "replace").split(" ")
            sizes = [to_number(word, 1 << 16) for word in words[1:]]
            if len(words) == 3 and None not in sizes and is_visit(words[0]):
                self.let_in(words[0])
                if any(sizes) and self.monitor["master"] is not None:
                    fcntl.ioctl(self.monitor["master"], TIOCSWINSZ,
                                struct.pack("HHHH", *sizes, 0, 0))
        self.rest = self.rest[-64:]
    def streams(self):
        """All that has to be carried; who has left is forgotten."""
        for name, streams in list(self.guests.items()):
            ears = [stream for stream in streams if isinstance(stream, Ear)]
            if not ears or not all(ear.busy() for ear in ears):
                self.send_away(name)
        return [stream for streams in self.guests.values() for stream in streams]
    def let_in(self, name):
        """Open a new visitor's fifos: his ears, and what he types."""
        if name in self.guests:
            return
        path, streams = container_path(self.monitor["record"], name), []
        for number, end in enumerate((".out", ".err")):
            fd = open_fifo(path + end, os.O_WRONLY)
            if fd is not None:
                streams.append(Ear(fd))
                self.ears[number].append(streams[-1])
        sink = self.monitor["master"]
        if sink is None:
            sink = self.monitor.get("typist")
        fd = open_fifo(path + ".in", os.O_RDONLY)
        if fd is not None:
            streams.append(Voice(fd, sink))
        self.guests[name] = streams
        if len(self.guests) > VISITORS:
            self.send_away(name)
    def send_away(self, name):
        for stream in self.guests.pop(name):
            stream.close()
            for ears in self.ears:
                if stream in ears:
                    ears.remove(stream)
    def close(self):
        """Let all hear the end, and go: a second is enough for who still listens."""
        poll, deadline = select.poll(), time.monotonic() + LINGER
        for ear in sum(self.ears, []):
            while ear.busy() and ear.waiting and time.monotonic() < deadline:
                poll.register(ear.fd, select.POLLOUT)
                poll_until(poll, deadline)
                poll.unregister(ear.fd)
                ear.move()
        for name in list(self.guests):
            self.send_away(name)

class Ear:
    """What waits for a visitor of one output."""
    def __init__(self, fd):
        self.fd, self.waiting, self.left = fd, b"", False
    def busy(self):
        return self.fd is not None
    def wants(self):  # of nothing: to be told that he is gone
        return self.fd, select.POLLOUT if self.waiting else 0
    def take(self, data):
        self.waiting += data
        if len(self.waiting) > HEARD_SIZE:
            self.close()
    def move(self):
        if not self.waiting:
            return self.close()
        with tolerate(errno.EAGAIN):
            try:
                self.waiting = self.waiting[os.write(self.fd, self.waiting):]
            except BrokenPipeError:
                self.close()
    def close(self):
        if self.fd is not None:
            os.close(self.fd)
        self.fd, self.waiting = None, b""

class Voice(Relay):
    """What a visitor types, on its way to the container, if that reads anything."""
    def move(self):
        try:
            super().move()
        except OSError:  # nobody reads inside any more
            self.waiting, self.sink = b"", None
    def close(self):
        os.close(self.source)
        self.open = False

def is_visit(name):
    """True for the name of a visit, made by new_visit."""
    return name.startswith("visit.") and len(name) == 22 and name[6:].isalnum()

def open_fifo(path, flags):
    """One end of a visitor's fifo, whose name then goes; None if there is none, or he is gone."""
    with tolerate(errno.ENOENT, errno.ENXIO, errno.ELOOP):
        fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        unlink_if_there(path)
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
    unlink_if_there(path)
    return None

# The visitor

@command("[OPTIONS] CONTAINER", "be connected to what a running container reads and says",
         ("--no-stdin", "", "only listen"), DETACH_KEYS,
         ("--sig-proxy", "[=true|false]", "pass signals on, if it has no terminal (default: true)"),
         takes=ONE)
def cmd_attach(options, words):
    """Stay until it ends, with its exit status, or until the keys to leave are typed."""
    leave, record = parse_keys(options["detach-keys"]), find_container(words[0])
    return visit(record, not options["no-stdin"], leave, options["sig-proxy"] != "false")

def visit(record, talks, leave, proxy):
    """Be connected to a running container; LEAVE: what is typed to go.  Returns an exit status."""
    path = container_path(record)
    live_pid(record)
    if is_paused(record["cgroups"]):
        raise Failure(f"attach, on {record['name']}: it is paused",
                      hint=f"mydocker unpause {record['name']}")
    terminal = read_json(path + "/config.json")["process"]["terminal"]
    raw = terminal and talks and os.isatty(0)
    before = None
    with Descriptor(os.open(path + "/lock", os.O_RDWR | os.O_CLOEXEC)) as lock:
        _signal.pthread_sigmask(_signal.SIG_BLOCK, FORWARDED | {_signal.SIGCHLD})
        with Visit(record, terminal, talks) as visitor, Descriptor(watch_signals()) as signals:
            note_container(record, "attach")
            try:
                if raw:
                    before = raw_mode(0)
                status = visitor.stay(signals, leave if raw else b"", proxy and not terminal)
            finally:
                if before:
                    set_terminal(0, before)
        if any(keys.left for keys in visitor.keys):
            print_line(GONE_ON)
        if status is not None:
            return status
        if is_alive(record):
            raise Failure(f"attach, on {record['name']}: its monitor doesn't wait for who doesn't "
                          "take what is said", hint=f"mydocker logs {record['name']}")
        return status_of_end(record, lock)

class Visit:
    """The visitor's side: the fifos, and what goes through them."""
    def __init__(self, record, terminal, talks):
        self.record, self.terminal, self.talks = record, terminal, talks
        self.name = "visit." + os.urandom(8).hex()
        self.paths, self.outputs, self.keys, self.voice = [], [], [], None
    def __enter__(self):
        try:
            self.door = os.open(container_path(self.record, "door"),
                                os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENXIO):
                raise
            raise Failure(f"attach, on {self.record['name']}: it is in the foreground, without a "
                          "terminal: its caller alone has its ends") from None
        try:
            self.outputs.append(Relay(self.make(".out", os.O_RDONLY), 1))
            if not self.terminal:
                self.outputs.append(Relay(self.make(".err", os.O_RDONLY), 2))
            if self.talks:
                self.voice = self.make(".in", os.O_RDWR)
            self.tell_size(1)  # what fills the terminal is drawn anew when that changes
            self.tell_size(0)
            while os.path.exists(self.paths[0]):
                if not is_running(container_path(self.record)):
                    raise Failure(f"attach, on {self.record['name']}: it has ended")
                time.sleep(0.005)
        except (Failure, OSError):
            self.__exit__()
            raise
        return self
    def make(self, end, flags):
        path = container_path(self.record, self.name + end)
        os.mkfifo(path, 0o600)
        self.paths.append(path)
        return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    def __exit__(self, *_):
        for path in self.paths:
            unlink_if_there(path)
        for stream in self.outputs:
            os.close(stream.source)
        if self.voice is not None:
            os.close(self.voice)
        os.close(self.door)
    def tell_size(self, more):
        rows, columns = caller_size() or (0, 0)
        line = f"{self.name} {min(rows + more, 65535) if rows else 0} {columns}\n"
        with tolerate(errno.EAGAIN, errno.EPIPE):
            os.write(self.door, line.encode())
    def stay(self, signals, leave, proxy):
        """Carry bytes until the container has ended: None; or an exit status."""
        keys = self.keys
        if self.voice is not None:
            keys.append(Keys(0, self.voice, leave))
        while any(stream.busy() for stream in self.outputs):
            ready = wait_ready(signals, self.outputs + keys, None)
            if not all([moved(stream) for stream in ready]):
                return 128 + _signal.SIGHUP  # the caller's terminal is gone
            if keys and keys[0].left and not keys[0].waiting:
                note_container(self.record, "detach")
                return 0
            for number in take_signals(signals):
                if number == _signal.SIGWINCH and self.terminal:
                    self.tell_size(0)
                elif proxy and number not in (_signal.SIGCHLD, _signal.SIGWINCH):
                    send_signal(self.record["pid"], self.record["pid_start"], number)
                elif number in DEADLY:
                    return 128 + number
        if any(stream.sink is None for stream in self.outputs):
            raise Unread()
        return None

def status_of_end(record, lock):
    """The exit status of a container that has just ended; its monitor may start it again."""
    while True:
        with tolerate(errno.EAGAIN):
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return read_status(lock)
        now = read_record(container_path(record))
        if now and now.get("pid") != record["pid"]:
            return now.get("status") or 0
        time.sleep(0.01)

def launch_apart(state, plan, options, birth):
    """Stay with a container, but with some of its streams alone; without its words its id is."""
    if options["detach"]:
        raise Failure("--attach: it can't go with --detach")
    names = [name.lower() for name in options["attach"]]
    known = ["stdin", "stdout", "stderr"]
    for name in names:
        if name not in known:
            raise Failure(f"--attach, on {as_typed(name)}: not stdin, stdout or stderr")
    state["interactive"] = options["interactive"] and "stdin" in names
    state["hidden"] = [fd for fd, name in enumerate(known) if name not in names]

    def ready():
        if {1, 2} <= {*state["hidden"]}:
            show(plan["id"])

    return launch(state, plan["guard"], options["cidfile"], birth, ready)

# ── 30. Volumes ──────────────────────────────────────────────────────────────
# A volume is a directory, volumes/<name>/_data, that is bind-mounted where it is wanted; a new one
# is filled with what the image has at that place.  Labels of it stand beside that, in labels.json.

MOUNT_KEYS = {  # --mount's words, and what they are called below
    "type": "type", "source": "source", "src": "source", "target": "target", "dst": "target",
    "destination": "target", "readonly": "readonly", "ro": "readonly",
    "bind-propagation": "bind-propagation", "volume-nocopy": "volume-nocopy",
    "tmpfs-size": "tmpfs-size", "tmpfs-mode": "tmpfs-mode"}

def volume_path(name):
    return state_path("volumes", check_new_name(name, "volume"), "_data")

def volume_rows(options, image, own_root):
    """The mounts that -v, --mount, --tmpfs and the image's Volumes ask for, parents first."""
    rows, taken = [], set()
    for name, parse in (("volume", parse_volume), ("mount", parse_mount), ("tmpfs", parse_tmpfs)):
        for row in map(parse, options[name]):
            place = checked_place("--" + name, row["destination"], own_root)
            if place in taken:
                raise Failure(f"--{name}, on {row['destination']}: two mounts at one place")
            taken.add(place)
            rows.append(row)
    for row in sum(map(borrowed_rows, options["volumes-from"]), []):
        if os.path.normpath(row["destination"]) not in taken:
            taken.add(os.path.normpath(row["destination"]))
            rows.append(row)
    for text in image.get("Volumes") or {}:
        place = checked_place("image's volume", text, own_root)
        if place.split("/")[1] in ("proc", "sys"):
            raise Failure(f"image's volume, on {text}: that place is the kernel's")
        if place not in taken:
            rows.append(volume_row("", place, []))  # a place and no more: CVE-2022-23648
    return sorted(rows, key=lambda row: os.path.normpath(row["destination"]).count("/"))

def borrowed_rows(text):
    """The mounts of another container, CONTAINER[:ro|rw], that were asked for by its options."""
    name, _, mode = text.partition(":")
    if mode not in ("", "ro", "rw"):
        raise Failure(f"--volumes-from, on {text}: not CONTAINER[:ro|rw]")
    record = find_container(name)
    rows = []
    for row in read_json(container_path(record, "config.json"))["mounts"]:
        files = row["source"].startswith(container_path(record) + "/")  # its /etc/hosts and such
        if row["type"] == "bind" and not files and row["destination"] != "/dev/shm":
            row.pop("anonymous", None)  # it isn't ours to remove
            rows.append(dict(row, options=row["options"] + ["ro"] * (mode == "ro")))
    return rows

def checked_place(what, text, own_root):
    """A place in the container where something can be mounted, in its one form."""
    place = os.path.normpath("/" + text.lstrip("/"))
    if not text.startswith("/"):
        raise Failure(f"{what}, on {text}: the place in the container must be an absolute path")
    if place == "/":
        raise Failure(f"{what}, on {text}: it can't be the container's root")
    if not own_root and not os.path.exists(place):
        raise Failure(f"{what}, on {text}: there is no such place on this host, and it won't be "
                      "made on the host's own root")
    return place

def parse_tmpfs(text):
    """A --tmpfs argument, PLACE[:OPTIONS], as a mount row."""
    place, _, words = text.partition(":")
    words = [word for word in words.split(",") if word]
    known = {*MOUNT_FLAGS, *PROPAGATION, *TMPFS_WORDS}
    for word in words:
        if word.partition("=")[0] not in known:
            raise Failure(f"--tmpfs, on {as_typed(text)}: unknown mount option {word}")
    return mount_row(place, "tmpfs", "nosuid", "nodev", "noexec", *[
        tmpfs_option(word, "--tmpfs") for word in words])

TMPFS_WORDS = ("size nr_blocks nr_inodes uid gid mode huge mpol inode32 inode64 noswap tmpcopyup "
               "notmpcopyup").split()  # tmpfs(5), and podman's two

def tmpfs_option(text, option):
    """An option of tmpfs's, its number within bounds: the kernel takes 16E for no limit at all."""
    name, _, value = text.partition("=")
    if name in ("size", "nr_blocks", "nr_inodes"):
        if value.endswith("%") and name == "size" and to_number(value[:-1], 101) is not None:
            return text
        return f"{name}={parse_size(value, f'{option} {name}')}"
    if name in ("uid", "gid") and not is_id(value):
        raise Failure(f"{option} {name}, on {as_typed(value)}: not an id")
    if name == "mode" and (not value or value.strip("01234567") or len(value) > 5):
        raise Failure(f"{option} mode, on {as_typed(value)}: not a mode, such as 1777")
    return text

def parse_volume(text):
    """A -v argument, [HOST:|NAME:]PLACE[:OPTIONS], as a mount row."""
    parts = text.split(":")
    if len(parts) > 3 or not all(parts):
        raise Failure(f"--volume, on {as_typed(text)}: it is [HOST-DIR:|NAME:]PLACE[:OPTIONS]")
    if len(parts) == 1 or len(parts) == 2 and not parts[1].startswith("/"):
        parts.insert(0, "")
    source, place, *rest = parts
    words = rest[0].split(",") if rest else []
    for word in words:
        if word not in (*PROPAGATION, *MOUNT_FLAGS, "z", "Z", "U", "nocopy", "idmap"):
            raise Failure(f"--volume, on {text}: unknown option {word}")
    return volume_row(source, place, words)

def volume_row(source, place, words):
    """A row for a host path, a named volume or, without a source, a new one."""
    kept = []
    for word in words:
        if word == "ro":
            kept.append("rro")  # with all below, as docker has it
        elif word in PROPAGATION or word in MOUNT_FLAGS or word == "idmap":
            kept.append(word)
    if not any(word in PROPAGATION for word in kept):
        kept.append("rprivate")
    if source.startswith(("/", ".")):
        row = mount_row(place, "bind", "rbind", *kept, source=os.path.abspath(source))
        return dict(row, chown="U" in words)
    name = source or os.urandom(32).hex()
    row = mount_row(place, "bind", "rbind", *kept, source=volume_path(name))
    return dict(row, copyUp="nocopy" not in words, chown="U" in words, volume=name,
                anonymous=not source)

def parse_mount(text):
    """A --mount argument, type=bind|volume|tmpfs,source=...,target=...[,readonly], as a row."""
    pairs = {"type": "volume", "source": ""}
    for field in csv_fields(text):
        key, _, value = field.partition("=")
        if key not in MOUNT_KEYS:
            raise Failure(f"--mount, on {text}: unknown key {key}")
        pairs[MOUNT_KEYS[key]] = value
    kind, source, place = pairs["type"], pairs["source"], pairs.get("target")
    if kind not in ("bind", "volume", "tmpfs") or not place:
        raise Failure(f"--mount, on {text}: type or target is missing")
    words = []
    for key, word in (("readonly", "ro"), ("volume-nocopy", "nocopy")):
        value = pairs.get(key, "false")
        if value in ("", "true", "1"):
            words.append(word)
        elif value not in ("false", "0"):
            raise Failure(f"--mount, on {text}: {key} is true or false")
    if "bind-propagation" in pairs:
        if pairs["bind-propagation"] not in PROPAGATION:
            raise Failure(f"--mount, on {text}: unknown propagation {pairs['bind-propagation']}")
        words.append(pairs["bind-propagation"])
    if kind == "tmpfs":
        for key in ("tmpfs-size", "tmpfs-mode"):
            if key in pairs:
                words.append(tmpfs_option(f"{key[len('tmpfs-'):]}={pairs[key]}", "--mount tmpfs"))
        return mount_row(place, "tmpfs", "nosuid", "nodev", "noexec", *words)
    if kind == "bind":
        if not os.path.exists(source):
            raise Failure(f"--mount, on {source or text}: no such file or directory")
        source = os.path.abspath(source)
    return volume_row(source, place, words)

def csv_fields(text):
    """The fields of one line of CSV, as docker reads --mount: one in "..." may hold commas, and
    "" for a quote (RFC 4180)."""
    import csv
    try:
        rows = list(csv.reader([text], strict=True))
    except csv.Error as why:
        raise Failure(f"--mount, on {text}: {why}") from None
    return rows[0] if rows else []

def make_volume(path):
    """Make a volume's directory, for every user in a container; those above it are closed."""
    make_dirs(os.path.dirname(path))
    with tolerate(errno.EEXIST):
        os.mkdir(path, 0o755)
        note_event("volume", "create", os.path.basename(os.path.dirname(path)), {})

def is_of_image(root, target, row):
    """Can a new volume get what the image has at its place, as with docker?  What is mounted there,
    such as /dev or, by a link, the kernel's /sys, is not the image's."""
    top, here = os.stat(f"/proc/self/fd/{root}"), os.fstat(target)
    if os.path.samestat(top, here):
        raise Failure(f"mount, on {row['destination']}: it leads to the container's root")
    return top.st_dev == here.st_dev and stat.S_ISDIR(here.st_mode)

def fill_volume(source, path):
    """Give a volume what is in SOURCE, and that directory's owner and mode, if nothing is in it.
    A mark beside it stays until all is on disk: if that is cut short, by a power loss even, the
    next container begins again."""
    top = os.path.dirname(path)
    mark = top + "/filling"
    if os.listdir(path) and not os.path.exists(mark):
        return
    with hold(top) as lock:  # of containers that start at once, one does it
        begun = os.path.exists(mark)
        if begun or os.listdir(source):
            os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            os.fsync(lock)  # the mark's name, before any other
        copy_up(source, path, ["."], begun)
        if os.path.exists(mark):
            syncfs(lock)  # what was copied, before the mark goes
            os.unlink(mark)
            os.fsync(lock)

def copy_up(source, target, names, again=False):
    """Fill the directory TARGET, if it is empty, with what is in SOURCE by these names."""
    with Descriptor(os.open(target, OPEN_DIR)) as below:
        if again or not os.listdir(below):
            with Descriptor(os.open(source, OPEN_DIR)) as above:
                for name in names:
                    copy_entry(above, name, below)

def chown_tree(directory, name, uid, gid):
    """Give a file, and all below it, to a user (-v ...:U); no link is followed."""
    os.chown(name, uid, gid, dir_fd=directory, follow_symlinks=False)
    if stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
        with Descriptor(os.open(name, OPEN_CHILD, dir_fd=directory)) as inner:
            for entry in os.listdir(inner):
                chown_tree(inner, entry, uid, gid)

# The commands

def volume_info(name):
    """What `volume inspect` shows of a volume."""
    path, made = volume_path(name), None
    with tolerate(errno.ENOENT):
        made = time.gmtime(os.stat(os.path.dirname(path)).st_mtime)
    if made is None or not os.path.isdir(path):
        raise NotFound(f"volume, on {name}: no such volume")
    return {"Name": name, "Mountpoint": path, "Driver": "local", "Scope": "local",
            "UsedBy": volume_users(name), "Labels": volume_labels(name), "Options": None,
            "CreatedAt": time.strftime("%Y-%m-%dT%H:%M:%SZ", made)}

def volume_users(name):
    return [record["name"] for record in container_records() if name in record["volumes"]]

def volume_labels(name):
    with tolerate(errno.ENOENT):
        return read_json(state_path("volumes", name, "labels.json"))
    return {}

def labels_text(labels):
    return ",".join(f"{key}={value}" for key, value in labels.items())

VOLUME_FILTERS = {
    "name": fits_name, "driver": lambda _, value: value == "local",
    "label": lambda name, value: has_label(volume_labels(name), value),
    "dangling": lambda name, value: (value in ("true", "1")) == (not volume_users(name))}

@command("[OPTIONS]", "list the volumes",
         ("-q --quiet", "", "names only"),
         ("-f --filter", "K=V...", f"only some, by {', '.join(VOLUME_FILTERS)}"),
         ("--format", "FORMAT", "table, json or a template"))
def cmd_volume_ls(options, _):
    names = filtered(listing(state_path("volumes")), options["filter"], VOLUME_FILTERS)
    rows = [{"Driver": "local", "Name": name, "Scope": "local", "Mountpoint": volume_path(name),
             "Labels": labels_text(volume_labels(name))} for name in names]
    show_rows(rows, {"Driver": "DRIVER", "Name": "VOLUME NAME"},
              "{{.Name}}" if options["quiet"] else options["format"])

@command("[OPTIONS] [NAME]", "make an empty volume; one that is there is left as it is",
         ("--name", "NAME", "its name, too"), ("-l --label", "K=V...", "a note for `volume ls -f`"),
         ("-d --driver", "local", "the only kind"), takes=(0, 1))
def cmd_volume_create(options, words):
    if given(options, "driver", "local") != "local":
        raise Failure(f"--driver, on {as_typed(options['driver'])}: there is no other than local")
    if options["name"] and words:
        raise Failure(f"volume create, on {words[0]}: --name says it, too")
    name = given(options, "name", words[0] if words else os.urandom(32).hex())
    path = volume_path(name)
    is_new = not os.path.isdir(path)
    make_volume(path)
    if is_new and options["label"]:
        write_json(os.path.dirname(path) + "/labels.json", pairs_of(options["label"]))
    show(name)

@command("[OPTIONS] NAME...", "remove volumes that no container uses, with what is in them",
         ("-f --force", "", "no error if there is none of that name"), many=True)
def cmd_volume_rm(options, name):
    """Remove a volume, unless a container, running or not, or a mount on this host needs it."""
    path, users = os.path.dirname(volume_path(name)), volume_users(name)
    if users:
        raise Failure(f"volume rm, on {name}: container {users[0]} uses it")
    if not os.path.isdir(path):
        if options["force"]:
            return
        raise NotFound(f"volume, on {name}: no such volume")
    for place, *_ in mounts_here():  # asked before anything is gone
        if place.startswith(os.path.realpath(path) + "/"):
            raise Failure(f"volume rm, on {name}: something is mounted on {place}")
    with tolerate(errno.ENOENT):  # somebody else removes it, too
        remove_tree(path)
        note_event("volume", "destroy", name, {})

@command("[OPTIONS] NAME...", "show volumes as JSON", ("-f --format", "FORMAT", "a template"),
         takes=SOME)
def cmd_volume_inspect(options, words):
    show_json(words, volume_info, options["format"])

@command("[OPTIONS]", "remove the volumes without a name that no container uses, and say which",
         ("-a --all", "", "named ones, too"), ("-f --force", "", "without asking, as always"),
         ("--filter", "K=V...", "only some: label=K[=V], label!=K[=V]; all=true is -a"))
def cmd_volume_prune(options, _):
    known = prune_filters(volume_labels)
    known["all"] = lambda *_: True
    names = filtered(listing(state_path("volumes")), options["filter"], known)
    every = options["all"] or {"all=true", "all=1"} & {*options["filter"]}
    unused = [name for name in names
              if (every or len(name) == 64) and not volume_users(name)]
    each("volume prune", unused, lambda name: cmd_volume_rm({"force": True}, name) or name)

# ── 31. Unpacking tar ────────────────────────────────────────────────────────
# POSIX.1-2017 pax, "ustar Interchange Format"; GNU: tar manual, "Basic Tar Format".
# What the library does with extended headers that lie takes all memory, or for ever
# (CVE-2019-20907, CVE-2024-6232, CVE-2025-8194), so headers are taken apart here.
#
# An archive is a stranger's: it is unpacked by descriptors in a directory that no name and no link
# leads out of.  A "whiteout", which hides a lower file, is ".wh.NAME" in a tar and a 0/0 character
# device in overlayfs.

CHUNK = 1 << 18
TAR_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")  # a block of 512 bytes
EXTRA_HEADERS = (b"x", b"X", b"g", b"L", b"K")  # they say more about the entry behind them
GNU_MAGIC = b"ustar  \0"
NO_ID = 0xFFFFFFFF  # for chown(2) it means: leave it as it is

# Reading

class Stream:
    """A file to read from, made of chunks."""
    def __init__(self, chunks):
        self.chunks, self.data, self.at, self.passed = iter(chunks), b"", 0, 0
    @property
    def offset(self):
        return self.passed + self.at
    def read(self, size):
        """1 to SIZE bytes; none at the end only."""
        while self.at == len(self.data):
            chunk = next(self.chunks, None)
            if chunk is None:
                return b""
            self.passed += len(self.data)
            self.data, self.at = chunk, 0
        piece = self.data[self.at:self.at + size]
        self.at += len(piece)
        return piece
    def pieces(self, size):
        """Yield exactly SIZE bytes, as they come."""
        while size > 0:
            piece = self.read(size)
            if not piece:
                raise Failure(f"archive, on byte {self.offset}: breaks off")
            size -= len(piece)
            yield piece
    def take(self, size):
        piece = self.read(size) if size > 0 else b""
        if len(piece) < size:
            piece += b"".join(self.pieces(size - len(piece)))
        return piece
    def skip(self, size):
        for _ in self.pieces(size):
            pass

class Entry:
    """A member of an archive.  Names are bytes; mtime is in nanoseconds; pax_headers has what extra
    headers say; sparse, where the data belongs, as (offset, length); stored, how much of it there
    is.  type is the letter of the header, but a plain file is always 0."""
    __slots__ = ("name", "linkname", "type", "mode", "uid", "gid", "size", "mtime", "devmajor",
                 "devminor", "pax_headers", "sparse", "stored")

def read_tar(stream, strict=False):
    """Yield an Entry per member; who wants its data reads it from STREAM before the next one.
    strict: the end mark (two blocks of zeros) must be there; a layer needs none, it has a
    digest."""
    common, once, zeros = {}, {}, bytes(512)
    while True:
        block = stream.read(512)
        if not block and not strict:
            return
        if len(block) < 512:
            block += stream.take(512 - len(block))
        if block == zeros:
            return
        try:
            entry = read_header(block)
            if entry.type in EXTRA_HEADERS:
                read_extension(stream, entry, common, once)
                continue
            if common or once:
                extend(entry, {**common, **once})
            settle(entry)
            if entry.type == b"S" or b"GNU.sparse.major" in once or b"GNU.sparse.map" in once:
                read_sparse_map(stream, block, entry)
        except (ValueError, OverflowError, KeyError) as why:
            raise Failure(f"archive: bad header before byte {stream.offset}: {why}") from None
        end = stream.offset + entry.stored + -entry.stored % 512
        yield entry
        stream.skip(end - stream.offset)
        once = {}

def read_header(block):
    """The Entry that a header block is: POSIX's, GNU's or an older one."""
    entry = Entry()
    (name, mode, uid, gid, size, mtime, checksum, entry.type, link, magic, _, _, major, minor,
     prefix) = TAR_HEADER.unpack(block)
    wanted, total = tar_number(checksum), sum(block) - sum(checksum) + 8 * ord(" ")
    if wanted != total:
        large = sum(byte > 127 for byte in block[:148] + block[156:])
        if wanted != total - 256 * large:  # some writers took the bytes for signed ones
            raise ValueError("its checksum is wrong")
    name, prefix = name.partition(b"\0")[0], prefix.partition(b"\0")[0]
    if prefix and has_prefix(magic, prefix):
        name = prefix + b"/" + name
    entry.name, entry.linkname, entry.pax_headers = name, link.partition(b"\0")[0], {}
    entry.mode, entry.uid, entry.gid = tar_number(mode) & 0o7777, tar_number(uid), tar_number(gid)
    entry.size, entry.mtime = tar_number(size), tar_number(mtime) * 10**9
    entry.devmajor = entry.devminor = 0
    if entry.type in (b"3", b"4"):
        entry.devmajor, entry.devminor = tar_number(major), tar_number(minor)
    return entry

def tar_number(field):
    """A number in a header: octal digits, or, marked by the top bit, binary with a sign."""
    if field[0] & 0x80:
        bits = 8 * len(field) - 1
        number = int.from_bytes(field, "big") - (1 << bits)
        return number - (1 << bits) if number >> (bits - 1) else number
    digits = field.partition(b"\0")[0].strip(b" ")
    if digits and not digits.isdigit():
        raise ValueError(f"{digits!r} is no number")
    return int(digits or b"0", 8)

def has_prefix(magic, prefix):
    """True if a header's last field is the front of the name.  GNU's has times there, in octal;
    Docker's early images, by an old Go, have GNU's magic and a front of the name all the same."""
    if magic == GNU_MAGIC:
        return not prefix[:11].isdigit() and not prefix[0] & 0x80
    return magic.startswith(b"ustar")

def read_extension(stream, entry, common, once):
    """Read what an extra header says about the next entry (x, L, K) or about all (g)."""
    if not 0 <= entry.size <= SMALL_FILE:
        raise ValueError(f"an extended header of {entry.size} bytes")
    data = stream.take(entry.size + -entry.size % 512)[:entry.size]
    records, start = common if entry.type == b"g" else once, 0
    if entry.type in b"LK":
        records[b"path" if entry.type == b"L" else b"linkpath"] = data.partition(b"\0")[0]
        return
    while start < len(data):
        length = int(data[start:start + 20].partition(b" ")[0])
        record, start = data[start:start + length], start + length
        key, equals, value = record[:-1].partition(b" ")[2].partition(b"=")
        if length < 5 or not equals or not record.endswith(b"\n"):
            raise ValueError("a malformed PAX record")
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):  # 0.0, rewritten as 0.1
            key, value = b"GNU.sparse.map", records.get(b"GNU.sparse.map", b"") + b"," + value
        records[key] = value
    if sum(map(len, [*records, *records.values()])) > SMALL_FILE:
        raise ValueError("too many extended headers")

def extend(entry, pax):
    """Put what extra headers say into an entry."""
    entry.pax_headers = pax
    entry.name = pax.get(b"GNU.sparse.name") or pax.get(b"path") or entry.name
    entry.linkname = pax.get(b"linkpath") or entry.linkname
    entry.size = int(pax.get(b"size") or entry.size)
    entry.uid = int(pax.get(b"uid") or entry.uid)
    entry.gid = int(pax.get(b"gid") or entry.gid)
    if pax.get(b"mtime"):
        whole, _, fraction = pax[b"mtime"].partition(b".")
        entry.mtime = int(whole + fraction[:9].ljust(9, b"0"))  # a float would lose some

def settle(entry):
    """What is true of an entry however its header said it, and within which limits."""
    if entry.type in (b"\0", b"0", b"7"):
        entry.type = b"5" if entry.name.endswith(b"/") else b"0"
    entry.name = entry.name.rstrip(b"/")
    # No data follows some kinds, whatever the size says: as every reader but one has it.
    entry.stored = 0 if entry.type in b"123456" else entry.size
    entry.sparse = [(0, entry.stored)]
    if entry.size < 0:
        raise ValueError(f"{shown(entry.name)}: a negative size")
    if not (0 <= entry.uid < NO_ID and 0 <= entry.gid < NO_ID):
        raise ValueError(f"{shown(entry.name)}: owner {entry.uid}:{entry.gid} can't be")
    if not (0 <= entry.devmajor < 1 << 12 and 0 <= entry.devminor < 1 << 20):
        raise ValueError(f"{shown(entry.name)}: there is no such device number")

def read_sparse_map(stream, block, entry):
    """Find where the data of a sparse file belongs: GNU's old form, or one of its three in PAX."""
    start = stream.offset
    if entry.type == b"S":
        numbers, real = read_old_map(stream, block)
        in_data = 0  # its map is part of the header
    elif entry.pax_headers.get(b"GNU.sparse.major") == b"1":
        numbers, real = read_new_map(stream), int(entry.pax_headers[b"GNU.sparse.realsize"])
        in_data = stream.offset - start
    else:
        words = entry.pax_headers[b"GNU.sparse.map"].split(b",")
        numbers = [int(word) for word in words if word]
        real, in_data = int(entry.pax_headers[b"GNU.sparse.size"]), 0
    left = entry.size - in_data
    entry.type, entry.size, entry.sparse = b"0", real, list(zip(numbers[::2], numbers[1::2]))
    entry.stored = end = 0
    for offset, length in entry.sparse:
        if offset < end or length < 0:
            raise ValueError("a sparse map out of order")
        entry.stored, end = entry.stored + length, offset + length
    if end > real or entry.stored != left:
        raise ValueError("a sparse map that doesn't fit its data")

def read_old_map(stream, block):
    """GNU's old form: four pairs in the header, more in the blocks behind; and the real size."""
    fields, more = block[386:482], block[482]
    while more and len(fields) < SMALL_FILE:
        extra = stream.take(512)
        fields, more = fields + extra[:504], extra[504]
    words = [fields[at:at + 12] for at in range(0, len(fields), 12)]
    return [tar_number(word) for word in words if word.strip(b"\0")], tar_number(block[483:495])

def read_new_map(stream):
    """PAX 1.0: numbers in lines, how many pairs and then those, in blocks before the data."""
    numbers, rest, start = [], b"", stream.offset
    while (not numbers or len(numbers) <= 2 * numbers[0]) and stream.offset - start < SMALL_FILE:
        *lines, rest = (rest + stream.take(512)).split(b"\n")
        numbers += map(int, lines)
    return numbers[1:2 * numbers[0] + 1]

def shown(name):
    """A name from an archive so that it can't play with the terminal."""
    text = repr(name.decode("utf-8", "backslashreplace"))[1:-1]
    return text if len(text) < 120 else f"{text[:80]}...{text[-30:]}"

# Unpacking

KINDS = {b"0": stat.S_IFREG, b"2": stat.S_IFLNK, b"3": stat.S_IFCHR, b"4": stat.S_IFBLK,
         b"6": stat.S_IFIFO}
OPAQUE = b".wh..wh..opq"  # the whiteout of all that lower layers have in a directory

def unpack_layer(chunks, layer_fd, strict=False, seen=None, **how):
    """Unpack a plain tar into a directory, and nowhere else, by default in overlayfs' form."""
    stream, tree, mask, name = Stream(chunks), Tree(layer_fd, **how), os.umask(0), b"/"
    try:
        for entry in read_tar(stream, strict):
            name = entry.name
            tree.place(entry, stream)
            if seen is not None:
                seen.append(name)
        tree.finish()
    except OSError as why:
        raise Failure(f"unpack, on {shown(name)}: {reason(why)}", hint=hint_for(why)) from why
    except (ValueError, OverflowError, RecursionError) as why:
        raise Failure(f"unpack, on {shown(name)}: {why}") from why
    finally:
        os.umask(mask)
        os.close(tree.fd)
    for _ in stream.chunks:  # the digest covers the padding too
        pass

class Tree:
    """A layer's directory while it fills up. The only links in it are its own, and a name that
    leads through one is followed as if the layer were the whole root, as docker does.  Whiteouts,
    and mode, owner and time of directories come last: until then each can be written to, and
    nothing changes its time any more."""
    def __init__(self, root, whiteouts="mark", owned_by=None, mapped=None):
        self.mapped = mapped  # {"uid": the function of an id in the archive, "gid": ...}
        self.root, self.path, self.fd = root, b"", os.dup(root)  # fd: of path, where we are
        self.whiteouts, self.owned_by = whiteouts, owned_by  # mark, apply or keep; (uid, gid)
        self.dirs, self.marks = {}, []
    def place(self, entry, stream):
        """Make ENTRY; what is in its place goes: the last one of a name counts."""
        parts = split_name(entry.name)
        if self.whiteouts != "keep" and b".wh." in entry.name:
            if any(part.startswith(b".wh.") for part in parts):
                self.white_out(parts)
                return
        if self.owned_by:
            entry.uid, entry.gid = self.owned_by
        if self.mapped:
            entry.uid, entry.gid = self.mapped["uid"](entry.uid), self.mapped["gid"](entry.gid)
        path = b"/".join(parts)
        if entry.type == b"5":
            self.dirs[path] = entry
        if not parts:
            return
        parent, name = self.parent(path.rpartition(b"/")[0]), parts[-1]
        if entry.type == b"5":
            make_dir(name, parent)
        elif entry.type == b"1":
            self.make_link(entry, name, parent)
        elif entry.type == b"0":
            make_file(entry, name, parent, stream)
        elif entry.type in KINDS:
            make_node(entry, name, parent)
        elif entry.type != b"V":  # V: GNU's label of a volume
            raise ValueError(f"unknown kind of entry {entry.type!r}")
    def open(self, path, flags=OPEN_DIR):
        return open_in_root(self.root, path.decode("utf-8", "surrogateescape") or ".", flags)
    def parent(self, path):
        """A descriptor for the directory PATH, made if need be; that of the last entry is kept."""
        from contextlib import suppress
        if path != self.path:
            try:
                fd = self.open(path)
            except FileNotFoundError:
                above = b""
                for name in path.split(b"/"):
                    with suppress(FileExistsError):
                        os.mkdir(name, 0o755, dir_fd=self.parent(above))
                    above += b"/" + name
                fd = self.open(path)
            os.close(self.fd)
            self.path, self.fd = path, fd
        return self.fd
    def make_link(self, entry, name, parent):
        """Make a hard link; its target is a name in this layer, and isn't followed itself."""
        *above, old = split_name(entry.linkname) or [b"."]
        with Descriptor(self.open(b"/".join(above))) as source:
            info = os.stat(old, dir_fd=source, follow_symlinks=False)
            if stat.S_ISDIR(info.st_mode):
                raise ValueError(f"a hard link to {shown(entry.linkname)}, a directory")
            with tolerate(errno.ENOENT):  # the name is free
                if os.path.samestat(info, os.stat(name, dir_fd=parent, follow_symlinks=False)):
                    return
                remove_tree(name, parent)
            os.link(old, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
    def white_out(self, parts):
        """Hide what lower layers have (image-spec layer.md, "Whiteouts"; kernel overlayfs.rst)."""
        *above, name = parts
        if any(part.startswith(b".wh..wh.") and part != OPAQUE for part in parts):
            return  # aufs' private entries; containerd and containers/storage skip them too
        if any(part.startswith(b".wh.") for part in above) or name[4:] in (b"", b".", b".."):
            raise ValueError("not a valid whiteout")
        if self.whiteouts == "mark":
            self.marks.append((b"/".join(above), name))
            return
        parent = self.parent(b"/".join(above))
        for hidden in os.listdir(parent) if name == OPAQUE else [name[4:]]:
            remove_tree(hidden, parent)
    def finish(self):
        """Do what was kept back; a directory may have lost its name to something else."""
        for path, name in sorted(self.marks, reverse=True):  # what is deeper first
            mark_whiteout(name, self.parent(path))
        for path, entry in self.dirs.items():
            try:
                fd = self.open(path, OPEN_CHILD)
            except OSError:  # a later entry replaced it
                continue
            with Descriptor(fd):
                dress(fd, entry)

def split_name(name):
    """The components of a name from an archive; ".." takes the one before it away, as docker does,
    whether that is a link or not."""
    parts = []
    for part in name.split(b"/"):
        if part == b"..":
            if not parts:
                raise ValueError('".." that leads out in a name')
            parts.pop()
        elif part not in (b"", b"."):
            parts.append(part)
    if b"\0" in name:
        raise ValueError("NUL in a name")
    return parts

def make_dir(name, parent):
    """Make a directory, or keep the one that is there."""
    try:
        os.mkdir(name, 0o755, dir_fd=parent)
    except FileExistsError:
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=parent)
            os.mkdir(name, 0o755, dir_fd=parent)

def make_file(entry, name, parent, stream):
    """Make a regular file, with its holes."""
    try:
        fd = os.open(name, OPEN_NEW, 0o600, dir_fd=parent)
    except FileExistsError:
        remove_tree(name, parent)
        fd = os.open(name, OPEN_NEW, 0o600, dir_fd=parent)
    fill_file(fd, entry, stream)

def fill_file(fd, entry, stream):
    """Write an entry's data, with its holes, and all else that a file has; closes FD."""
    with Descriptor(fd):
        for offset, length in entry.sparse:
            if offset:
                os.lseek(fd, offset, os.SEEK_SET)
            for piece in stream.pieces(length):
                write_all(fd, piece)
        if entry.stored != entry.size:
            os.ftruncate(fd, entry.size)
        dress(fd, entry)

def make_node(entry, name, parent):
    """Make a symbolic link, fifo or device; mknod(2) may be denied, and /dev is ours."""
    remove_tree(name, parent)
    try:
        if entry.type == b"2":
            os.symlink(entry.linkname, name, dir_fd=parent)
        else:
            device = os.makedev(entry.devmajor, entry.devminor) if entry.type in b"34" else 0
            os.mknod(name, KINDS[entry.type] | entry.mode, device, dir_fd=parent)
    except PermissionError:
        if entry.type not in (b"3", b"4"):
            raise
        warn(f"unpack, on {shown(entry.name)}: no right to make devices, ignoring")
        return
    give_owner(entry, name, dir_fd=parent, follow_symlinks=False)
    os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)

def give_owner(entry, target, **how):
    """Give a file the entry's owner; one whom our user namespace doesn't have is its root."""
    try:
        os.chown(target, entry.uid, entry.gid, **how)
    except OSError as error:
        if error.errno != errno.EINVAL or not in_user_namespace():
            raise
        squash_owner(entry)
        os.chown(target, entry.uid, entry.gid, **how)

def dress(fd, entry):
    """Give owner, mode, attributes, time, in this order: chown clears two, all set the time."""
    give_owner(entry, fd)
    os.fchmod(fd, entry.mode)
    for key, value in entry.pax_headers.items():
        name = key[len(b"SCHILY.xattr."):]
        try:
            if key.startswith(b"SCHILY.xattr.") and keeps_xattr(name):
                os.setxattr(fd, name, value)
        except OSError as why:  # the file system has none, or a user namespace may not
            warn(f"unpack, on {shown(entry.name)}: {shown(name)}: {reason(why)}, ignoring")
    os.utime(fd, ns=(entry.mtime, entry.mtime))

def mark_whiteout(name, parent):
    """Turn a tar's whiteout into overlayfs'; what the layer itself has under that name stays."""
    try:
        if name == OPAQUE:
            hide_lower(b".", parent)
        else:
            os.mknod(name[4:], stat.S_IFCHR, 0, dir_fd=parent)
    except PermissionError:  # on an overlay, where no other can lie on: mount_copy reads these
        os.close(os.open(name, OPEN_NEW, 0o600, dir_fd=parent))
    except FileExistsError:
        if stat.S_ISDIR(os.stat(name[4:], dir_fd=parent, follow_symlinks=False).st_mode):
            hide_lower(name[4:], parent)

def hide_lower(name, parent):
    with Descriptor(os.open(name, OPEN_CHILD, dir_fd=parent)) as fd:
        os.setxattr(fd, overlay_mark("opaque"), b"y")

def overlay_mark(name):
    """The extended attribute that overlayfs marks a directory with: overlayfs.rst, "userxattr"."""
    return ("user" if in_user_namespace() else "trusted") + ".overlay." + name

def keeps_xattr(name):
    return (name == b"security.capability" or name.startswith(b"system.posix_acl_")
            or name.startswith(b"user.") and not name.startswith(b"user.overlay."))

# ── 32. Writing tar ──────────────────────────────────────────────────────────
# What is packed is read by descriptors, in the order of names, so that the same tree is the same
# archive; what ustar can't hold stands in PAX records.

def tar_header(name, kind, info=None, size=0, link=b"", pax=()):
    """The header of one member, with PAX records before it for what ustar can't hold."""
    pax, owner, mode, seconds, devices = dict(pax), [0, 0], 0o644, 0, (b"", b"")
    if info:
        mode, owner = info.st_mode & 0o7777, [info.st_uid, info.st_gid]
        seconds = info.st_mtime_ns // 10**9
        if info.st_mtime_ns % 10**9:
            pax[b"mtime"] = decimal_seconds(info.st_mtime_ns)
    if kind in (b"3", b"4"):
        devices = tar_octal(os.major(info.st_rdev), 8), tar_octal(os.minor(info.st_rdev), 8)
    name, link = tar_text(name, b"path", pax), tar_text(link, b"linkpath", pax)
    numbers = [tar_octal(mode, 8)]
    for key, number, width in ((b"uid", owner[0], 8), (b"gid", owner[1], 8), (b"size", size, 12),
                               (b"mtime", seconds, 12)):
        if not 0 <= number < 8 ** (width - 1):
            pax.setdefault(key, b"%d" % number)
            number = 0
        numbers.append(tar_octal(number, width))
    return pax_header(pax) + ustar_block(name, numbers, kind, link, devices)

def decimal_seconds(nanoseconds):
    """A time as PAX has it, to the last digit: a float would lose some."""
    whole, rest = divmod(abs(nanoseconds), 10**9)
    return b"%b%d.%09d" % (b"-" if nanoseconds < 0 else b"", whole, rest)

def tar_octal(number, width):
    return b"%0*o\0" % (width - 1, number)

def tar_text(text, key, pax):
    """A name for the header; where it doesn't fit, or isn't ASCII, the whole of it goes to PAX."""
    if len(text) > 100 or not text.isascii():
        pax.setdefault(key, text)
    return text.decode("utf-8", "surrogateescape").encode("ascii", "replace")

def pax_header(pax):
    """An extra header with these records, {key: value} in bytes; nothing if there are none."""
    if not pax:
        return b""
    try:
        b"".join(pax.values()).decode()
        records = []
    except UnicodeDecodeError:
        records = [pax_record(b"hdrcharset", b"BINARY")]
    data = b"".join(records + [pax_record(*pair) for pair in pax.items()])
    numbers = [tar_octal(0, 8)] * 3 + [tar_octal(len(data), 12), tar_octal(0, 12)]
    return ustar_block(b"././@PaxHeader", numbers, b"x") + data + bytes(-len(data) % 512)

def pax_record(key, value):
    rest = b" %b=%b\n" % (key, value)
    length = len(rest) + len(str(len(rest)))
    return b"%d%b" % (len(rest) + len(str(length)), rest)  # the length counts itself

def ustar_block(name, numbers, kind, link=b"", devices=(b"", b"")):
    fields = [name, *numbers, b" " * 8, kind, link, b"ustar\x0000", b"", b"", *devices, b""]
    total = sum(TAR_HEADER.pack(*fields))
    fields[6] = b"%06o\0 " % total
    return TAR_HEADER.pack(*fields)

def tar_file(name, size, pieces, info=None, pax=()):
    """Yield a regular file as a member."""
    yield tar_header(name, b"0", info, size, pax=pax)
    yield from pieces
    yield bytes(-size % 512)

def pack_tree(root_fd, as_layer=False, path=b"", apart=()):
    """Yield the tree at root_fd as a tar, sorted by name; PATH stands in front of each. as_layer:
    overlayfs' whiteouts become an image's; "stored": those of mark_whiteout, too.  APART: the
    devices of file systems that are left out where they are mounted."""
    from itertools import islice
    try:
        pieces = pack_directory(root_fd, path, as_layer, {}, apart)
        while chunk := b"".join(islice(pieces, 16)):  # each hand-over costs
            yield chunk
    except RecursionError:
        raise Failure("pack: directories are nested too deeply") from None
    yield bytes(1024)

def pack_directory(fd, path, as_layer, seen, apart=()):
    """Yield a directory and all below it; SEEN: {inode: its first name}, for hard links."""
    here = os.fstat(fd)
    yield tar_header(path or b"./", b"5", here, pax=pack_xattrs(fd))
    marks = os.listxattr(fd) if as_layer else ()
    if "trusted.overlay.redirect" in marks:
        raise Failure(f"commit, on {shown(path)}: a renamed directory (overlayfs redirect_dir)")
    opaque = overlay_mark("opaque") if marks else ""
    if opaque in marks and os.getxattr(fd, opaque) == b"y":
        yield tar_header(path + OPAQUE, b"0")  # "x" would be something else
    for name in sorted(map(os.fsencode, os.listdir(fd))):
        try:
            info = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:  # gone meanwhile; or a whiteout, itself on an overlay
            if as_layer == "stored":
                yield tar_header(path + b".wh." + name, b"0")
            continue
        if stat.S_ISDIR(info.st_mode) and is_apart(info, here, apart):
            yield tar_header(path + name + b"/", b"5", info)
        elif stat.S_ISDIR(info.st_mode):
            with Descriptor(os.open(name, OPEN_CHILD, dir_fd=fd)) as child:
                yield from pack_directory(child, path + name + b"/", as_layer, seen, apart)
        elif as_layer is True and name.startswith(b".wh."):
            warn(f"commit, on {shown(path + name)}: the name would mean a whiteout, ignoring")
        elif as_layer and stat.S_ISCHR(info.st_mode) and info.st_rdev == 0:  # overlayfs' whiteout
            yield tar_header(path + b".wh." + name, b"0")
        else:
            yield from pack_file(fd, name, path + name, info, seen)

def is_apart(info, here, apart):
    """True where, below the directory HERE, another file system is mounted that is left out."""
    return info.st_dev in apart and info.st_dev != here.st_dev

def pack_xattrs(fd):
    return {b"SCHILY.xattr." + os.fsencode(name): os.getxattr(fd, name)
            for name in os.listxattr(fd) if keeps_xattr(os.fsencode(name))}

def pack_file(dir_fd, name, path, info, seen):
    """Yield anything but a directory; the second name of an inode becomes a hard link."""
    kind = next((kind for kind in KINDS if KINDS[kind] == stat.S_IFMT(info.st_mode)), None)
    first = seen.setdefault((info.st_dev, info.st_ino), path) if info.st_nlink > 1 else path
    if kind is None:  # a socket is nothing without its server: left out
        return
    if first != path:
        yield tar_header(path, b"1", info, link=first)
    elif kind == b"0":
        with Descriptor(os.open(name, OPEN_ENTRY, dir_fd=dir_fd)) as fd:
            yield from pack_data(fd, path)
    else:
        link = os.readlink(name, dir_fd=dir_fd) if kind == b"2" else b""
        yield tar_header(path, kind, info, link=link)

def pack_data(fd, path):
    """Yield a regular file; one with holes in the form (PAX sparse 1.0) that all readers know."""
    info, pax, front = os.fstat(fd), pack_xattrs(fd), b""
    whole = [(0, info.st_size)]
    extents = data_extents(fd, info.st_size) if info.st_blocks * 512 < info.st_size else whole
    if extents != whole:
        front = b"".join([b"%d\n" % len(extents), *(b"%d\n%d\n" % extent for extent in extents)])
        front += bytes(-len(front) % 512)
        pax.update({b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0",
                    b"GNU.sparse.name": path, b"GNU.sparse.realsize": b"%d" % info.st_size})
        path = b"GNUSparseFile.0/" + path.rpartition(b"/")[2]
    size = len(front) + sum(length for _, length in extents)
    yield from tar_file(path, size, read_extents(fd, front, extents), info, pax)

def data_extents(fd, size):
    """Where a file has data, as (offset, length); an empty one ends it (lseek(2))."""
    extents, end = [], 0
    while end < size:
        try:
            start = min(os.lseek(fd, end, os.SEEK_DATA), size)
            end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        except OSError:  # ENXIO: only a hole is left
            return [*extents, (size, 0)]
        extents.append((start, end - start))
    return extents

def read_extents(fd, front, extents):
    """Yield FRONT and these bytes of a file; one that shrinks meanwhile goes on as zeros."""
    yield front
    for offset, length in extents:
        for at in range(offset, offset + length, CHUNK):
            size = min(CHUNK, offset + length - at)
            yield os.pread(fd, size, at).ljust(size, b"\0")

def open_output():
    """Standard output, for an archive; only if it's no terminal."""
    if os.isatty(1):
        raise Failure("--output: not given, and standard output is a terminal", hint="-o FILE")
    return open(1, "wb", closefd=False)

def write_archive(path, chunks):
    """Write an archive to the file that the user named, or to standard output.  The file has its
    name when all is written: what was there stays until then, half an archive never has it."""
    if not path:
        with open_output() as out:
            out.writelines(chunks)
        return
    folder, name = os.path.split(path)
    with blame(f"--output, on {path}"):
        above = os.open(folder or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    with Descriptor(above):
        fd = open_unnamed(above, name)
        begin, is_named = next(chunks), fd is None  # what can't be had is said before that
        if is_named:
            fd = open_named(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            with open(fd, "wb") as out:
                out.write(begin)
                out.writelines(chunks)
                out.flush()
                if not is_named:
                    name_file(fd, above, name)
        except OSError as error:
            if error.filename is None:
                error.filename = path
            raise

def open_unnamed(above, name):
    """A new file without a name, of the mode of the one that it is to replace in a directory; None
    if that is no file of ours alone, or there are no such files.  See open(2), O_TMPFILE."""
    if not name:
        return None
    there, mode = look_at(name, above), 0o644
    if there:
        flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
        with Descriptor(os.open(name, flags, dir_fd=above)) as fd:
            if not stat.S_ISREG(there.st_mode) or there.st_uid != os.geteuid() or (
                    there.st_nlink > 1 or mount_id(fd) != mount_id(above)):
                return None
        mode = stat.S_IMODE(there.st_mode)
    with tolerate(errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT):
        fd = os.open(".", os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=above)
        os.fchmod(fd, mode)
        return fd
    return None

def name_file(fd, above, name):
    """Give a file without one a name in a directory, in place of what has it."""
    temporary = f".{os.urandom(8).hex()}"
    os.link(f"/proc/self/fd/{fd}", temporary, dst_dir_fd=above, follow_symlinks=True)
    try:
        os.rename(temporary, name, src_dir_fd=above, dst_dir_fd=above)
    except OSError:
        os.unlink(temporary, dir_fd=above)
        raise

# ── 33. Copying files ────────────────────────────────────────────────────────
# `cp` reads and writes a container's tree, living or not, by descriptors that no link leads out of.
# A living tree is no layer: nothing in it is removed to make room, and no mount is crossed.

KIND_NAMES = {stat.S_IFDIR: "directory", stat.S_IFREG: "file", stat.S_IFLNK: "link",
              stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device",
              stat.S_IFBLK: "device"}

class CopyEnd:
    """One of the two things that `cp` was given: a word, the container in it or None for the host,
    and a path below that one's root."""
    def __init__(self, word):
        local = word.startswith(("/", ".")) or ":" not in word
        self.word, self.ids = word, None  # ids: if they aren't as inside
        self.apart = ()  # devices: what the kernel, or a container's own /dev, shows there
        self.container, path = (None, word) if local else word.split(":", 1)
        if not word or "\0" in path:
            raise Failure(f"cp, on {as_typed(word)}: not a path")
        start = os.getcwd() if local and not path.startswith("/") else "/"
        path = os.path.join(start, path)
        self.path = without_dots(path)  # how it ends says what must be there, and what is meant
        self.is_directory = path != self.path or path.endswith("/..")
        self.is_content = path.endswith("/.") or self.path == "/"
        self.name = os.path.basename(os.path.normpath(path)) or "."
    def open_root(self):
        if self.container is None:
            return os.open("/", OPEN_DIR)
        record = find_container(self.container)
        self.ids = ids_seen(record)
        if record["running"]:
            self.apart = devices_apart(live_pid(record))
        return container_root(record)
    def show(self, path):
        """A path below this end's root as the user would write it."""
        path = os.path.normpath(path)
        return path if self.container is None else f"{self.container}:{path}"
    def no(self, why):
        return Failure(f"cp, on {self.word}: {why}")

@command("[OPTIONS] PATH|CONTAINER:PATH|- PATH|CONTAINER:PATH|-",
         "copy files out of a container or into it; - is a tar archive on stdin or stdout",
         ("-a --archive", "", "keep owner and group"),
         ("-L --follow-link", "", "if the first path is a link, copy what it leads to"),
         ("-q --quiet", "", "say nothing, as always"), takes=(2, 2))
def cmd_cp(options, words):
    """Which of the two ends is a container's, or a pipe, says which way it goes."""
    source, target = map(CopyEnd, words)
    if (source.container is None) == (target.container is None):
        raise Failure("cp: exactly one of the two paths must be CONTAINER:PATH")
    owner = None if options["archive"] else (os.geteuid(), os.getegid())
    try:
        if source.word == "-":
            receive_archive(target, owner)
        elif target.word == "-":
            send_archive(source, options["follow-link"])
        else:
            copy_between(source, target, options["follow-link"], owner)
    except RecursionError:
        raise Failure(f"cp, on {source.word}: directories are nested too deeply") from None

def container_root(record, volumes=True):
    """A descriptor of a container's root directory, running or not, with its VOLUMES or without. Of
    one that doesn't run the root is mounted again, in a mount namespace of this process's own."""
    path = container_path(record)
    if record["running"]:
        return os.open(f"/proc/{live_pid(record)}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    spec = read_json(path + "/config.json")
    if "started" not in record:
        prepare_places(spec, record)  # `create` has left that to its first start
    os.unshare(CLONE_NEWNS)
    leave_chroot()
    mount(None, "/", None, MS_REC | MS_PRIVATE, None)  # what is mounted here the host won't see
    top = spec["root"]["path"]
    if record["layers"]:
        copied = os.path.isdir(path + "/copy")
        row = spec["mounts"][0]["fallback"] if copied else spec["mounts"][0]
        try:
            mounter_of(row)(top, row, 0, "")
        except OSError as error:  # the kernel can't, nor will it at the first start
            if "started" in record or "fallback" not in row:
                raise
            row = dict(row["fallback"], refused=error)
            mounter_of(row)(top, row, 0, "")
    for row in spec["mounts"] if volumes else []:
        if row["type"] == "bind" and not row["source"].startswith(path):
            with Descriptor(os.open(top, os.O_PATH | os.O_CLOEXEC)) as root:
                mount_one(root, row)
    return os.open(top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

def devices_apart(pid):
    """The devices of a process's /dev and of what isn't files but the kernel's word: with a whole
    root nobody means to copy them, and reading some would take for ever."""
    found = set()
    for line in read_all(f"/proc/{pid}/mountinfo").split("\n")[:-1]:
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        kinds = "proc", "sysfs", "cgroup", "cgroup2", "mqueue", "devpts"
        if fields[4] == "/dev" or after.split(" ")[0] in kinds:
            found.add(os.makedev(*map(int, fields[2].split(":"))))
    return found

def copy_between(source, target, follow, owner):
    """Copy from one CopyEnd to the other."""
    roots = source.open_root(), target.open_root()
    from_fd, name = find_source(source, roots[0], follow)
    info = os.stat(name, dir_fd=from_fd, follow_symlinks=False)
    into_fd, new_name, path = find_place(target, roots[1], source, stat.S_ISDIR(info.st_mode))
    devices = target.container is not None
    if stat.S_ISSOCK(info.st_mode) or not devices and is_device(info.st_mode):
        raise source.no("it is a socket or a device, and those are not copied")
    where = target.show(os.path.join(path, new_name))
    if target.container is not None:  # what it writes is on the host, too
        above = os.path.realpath(container_path(find_container(target.container)))
        while above != "/":
            above = os.path.dirname(above)
            if os.path.samestat(info, os.stat(above)):
                raise source.no("the container's own files are in there: it would be copied into "
                                "itself")
    check_room(from_fd, name, into_fd, new_name, where, os.fstat(into_fd), source.apart)
    tree = LiveTree(into_fd, target.show(path), owner, devices)
    tree.translate(source, target)
    tree.fill(pack_entry(from_fd, encode(name), encode(new_name), source.apart))

def send_archive(source, follow):
    """Write what is to be copied to stdout, as a tar."""
    from_fd, name = find_source(source, source.open_root(), follow)
    new_name = "." if source.is_content else source.name
    if os.isatty(1):
        raise Failure("cp, on -: standard output is a terminal", hint="cp CONTAINER:PATH - > FILE")
    with open_output() as out:
        out.writelines(pack_entry(from_fd, encode(name), encode(new_name), source.apart))

def receive_archive(target, owner):
    """Unpack the tar on stdin into a directory."""
    above, name = find_entry(target.open_root(), target, target.path, True)
    with blame(f"cp, on {target.word}"):
        into_fd = os.open(name, OPEN_CHILD, dir_fd=above)
    kind, chunks = sniff(iter(lambda: os.read(0, CHUNK), b""))
    tree = LiveTree(into_fd, target.show(target.path), owner)
    tree.translate(None, target)
    tree.fill(decompress(kind, chunks), strict=True)

def without_dots(path):
    """An absolute path without any "/" and "/." at its end."""
    while path.endswith(("/", "/.")):
        path = path[:-1] if path.endswith("/") else path[:-2]
    return path or "/"

def find_source(source, root, follow):
    """What to copy: (descriptor of its directory, name).  A link is copied as such, unless
    something behind it says that a directory is meant, or -L was given."""
    above, name = find_entry(root, source, source.path, follow or source.is_directory)
    info = look_at(name, above)
    if not info:
        raise source.no("no such file or directory")
    if source.is_directory and not stat.S_ISDIR(info.st_mode):
        raise source.no("not a directory")
    return above, name

def find_place(target, root, source, directory):
    """Where to copy to: (descriptor of a directory, name in it or "." to merge into it, the
    directory's path).  Docker's rules: into a directory by the source's name, onto a file, or to a
    name that is free."""
    above, name = find_entry(root, target, target.path, True)
    there = look_at(name, above)
    if there and stat.S_ISDIR(there.st_mode):
        into = os.open(name, OPEN_CHILD, dir_fd=above)
        if source.is_content or source.name == ".":
            return into, ".", target.path
        if target.container is None:  # a link there may be of an earlier copy: the container's
            return into, source.name, target.path
        path = f"{target.path}/{source.name}"
        return (*find_entry(root, target, path, True), target.path)
    if there and (directory or target.is_directory):
        raise target.no("not a directory")
    if not there and target.is_directory and not directory:
        raise target.no("no such directory")
    return above, name, os.path.dirname(target.path)

def find_entry(root, end, path, follow):
    """Open the directory that holds PATH below ROOT: (descriptor, the entry's name in it), "." for
    the directory itself.  FOLLOW a link there, which may lead to nothing yet."""
    with blame(f"cp, on {end.word}"):
        for _ in range(41):
            parent, _, name = path.rstrip("/").rpartition("/")
            if name in ("", ".", ".."):
                return readable(open_in_root(root, path)), "."
            above = readable(open_in_root(root, parent or "/"))
            aim = link_target(above, name) if follow else None
            if aim is None:
                return above, name
            os.close(above)
            path = os.path.join(parent or "/", aim)
    raise end.no("too many links, one behind the other")

def look_at(name, directory):
    """What lstat(2) says of NAME, or None if it isn't there."""
    with tolerate(errno.ENOENT):
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    return None

def is_device(mode):
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)

def check_room(source, name, target, new_name, path, goal, apart):
    """Raise Failure where a copy would have to replace something, or would be part of itself:
    below GOAL, what is known of the directory that it is for."""
    info, there = look_at(name, source), None
    if info and is_apart(info, os.fstat(source), apart):
        return
    if target is not None:
        there = look_at(new_name, target)
    if not info or stat.S_ISSOCK(info.st_mode):
        return
    if there:
        check_kind(info.st_mode, info.st_rdev, there, path)
        if os.path.samestat(info, there):
            raise Failure(f"cp, on {path}: it would be copied onto itself")
    if not stat.S_ISDIR(info.st_mode) or not there and info.st_dev != goal.st_dev:
        return
    if os.path.samestat(info, goal):
        raise Failure(f"cp, on {path}: a directory can't be copied into itself")
    with Descriptor(os.open(name, OPEN_CHILD, dir_fd=source)) as inner:
        below = Descriptor(os.open(new_name, OPEN_CHILD, dir_fd=target)) if there else None
        try:
            for entry in os.listdir(inner):
                inner_path = f"{path.rstrip('/')}/{entry}"
                check_room(inner, entry, below, entry, inner_path, goal, apart)
        finally:
            if there:
                os.close(below)

def check_kind(mode, device, there, path):
    """Raise Failure unless what is THERE is of the kind that MODE has."""
    if stat.S_IFMT(mode) == stat.S_IFMT(there.st_mode) and (
            not is_device(mode) or device == there.st_rdev):
        return
    old, new = (KIND_NAMES[stat.S_IFMT(bits)] for bits in (there.st_mode, mode))
    raise Failure(f"cp, on {path}: a {old} is there, which a {new} can't replace")

class LiveTree:
    """A directory that others use, into which a tar's entries are put.  Nothing is removed there
    and no link in it is followed.  Mode, owner and time of directories come last, as in a Tree."""
    def __init__(self, top, where, owner=None, devices=True):
        self.top, self.where, self.owner, self.devices = top, where, owner, devices
        self.path, self.fd, self.dirs = b"", os.dup(top), {}  # fd: of path, where we are
        self.ids = None  # {"uid": function, "gid": function} of what ids are here
    def translate(self, source, target):
        """Let owners be what they are in the TARGET, if one of the two shows them as outside."""
        if target.ids:
            self.ids = id_functions(target.ids)
            write_as(target.ids)
            self.owner = self.owner and (self.ids["uid"](0), self.ids["gid"](0))
        elif source and source.ids:
            self.ids = id_functions(source.ids, back=True)
    def fill(self, chunks, strict=False):
        """Put what a tar holds, which comes in chunks, in its places."""
        stream, mask, name = Stream(chunks), os.umask(0), b""
        try:
            for entry in read_tar(stream, strict):
                name = entry.name
                self.place(entry, stream)
            for name, entry in self.dirs.items():
                with Descriptor(self.open_dir(name)) as fd:
                    dress(fd, entry)
        except OSError as why:
            raise Failure(f"cp, on {self.shown(name)}: {reason(why)}",
                          hint=hint_for(why)) from None
        except (ValueError, OverflowError) as why:
            raise Failure(f"cp, on {self.shown(name)}: {why}") from None
        finally:
            os.umask(mask)
        for _ in stream.chunks:  # who writes to a pipe may fill up its last block
            pass
    def shown(self, name):
        return f"{self.where.rstrip('/')}/{shown(name).strip('/')}"
    def place(self, entry, stream):
        """Put ENTRY where it belongs; the top itself stays as it is."""
        parts = split_name(entry.name)
        if not parts or entry.type == b"V":  # V: GNU's label of a volume
            return
        path, name = b"/".join(parts), parts[-1]
        parent = self.parent(b"/".join(parts[:-1]))
        there = look_at(name, parent)
        self.give(entry)
        if entry.type == b"1":
            self.link(entry, name, parent, there)
            return
        mode = stat.S_IFDIR if entry.type == b"5" else KINDS.get(entry.type)
        if mode is None:
            raise ValueError(f"unknown kind of entry {entry.type!r}")
        device = os.makedev(entry.devmajor, entry.devminor) if is_device(mode) else 0
        if is_device(mode) and not self.devices:
            warn(f"cp, on {self.shown(entry.name)}: a device, ignoring")
            return
        if there:
            check_kind(mode, device, there, self.shown(entry.name))
        if mode == stat.S_IFDIR:
            if not there:
                os.mkdir(name, 0o700, dir_fd=parent)
            self.dirs[path] = entry
        elif mode == stat.S_IFREG:
            fill_file(open_file(name, parent), entry, stream)
        else:
            self.make_node(entry, mode, device, name, parent, there)
    def parent(self, path):
        """A descriptor for the directory PATH, made if need be; that of the last entry is kept."""
        if path != self.path:
            fd = self.open_dir(path)
            os.close(self.fd)
            self.path, self.fd = path, fd
        return self.fd
    def open_dir(self, path):
        try:
            return readable(make_in_root(self.top, os.fsdecode(path) or ".", True,
                                         RESOLVE_NO_SYMLINKS))
        except OSError as why:
            if why.errno != errno.ELOOP:
                raise
            raise Failure(f"cp, on {self.shown(path)}: a link is there, or on the way, which "
                          "a directory can't replace") from None
    def give(self, entry):
        """Give an entry the owner that it gets.  What runs as its owner, or with capabilities, was
        meant for the old one: chown(2) clears these, too."""
        if not self.owner and self.ids:
            entry.uid, entry.gid = self.ids["uid"](entry.uid), self.ids["gid"](entry.gid)
        if not self.owner or (entry.uid, entry.gid) == self.owner:
            return
        entry.uid, entry.gid = self.owner
        if entry.type != b"5":
            entry.mode &= ~(stat.S_ISUID | stat.S_ISGID)
            entry.pax_headers = {key: value for key, value in entry.pax_headers.items()
                                 if key != b"SCHILY.xattr.security.capability"}
    def link(self, entry, name, parent, there):
        """Make a hard link to an entry before; a file that is there gets the same content."""
        *above, old = split_name(entry.linkname) or [b"."]
        with Descriptor(self.open_dir(b"/".join(above))) as source:
            info = os.stat(old, dir_fd=source, follow_symlinks=False)
            if stat.S_ISDIR(info.st_mode):
                raise ValueError(f"a hard link to {shown(entry.linkname)}, a directory")
            if there and os.path.samestat(info, there):
                return
            if there:
                check_kind(info.st_mode, info.st_rdev, there, self.shown(entry.name))
            else:
                with tolerate(errno.EXDEV):  # a mount lies between the two
                    os.link(old, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
                    return
            twin = LiveTree(parent, self.where, None, self.devices)
            twin.fill(pack_entry(source, old, name))
    def make_node(self, entry, mode, device, name, parent, there):
        """Make a link, fifo or device, or keep it; a link's text is what is written into it."""
        try:
            if mode != stat.S_IFLNK:
                if not there:
                    os.mknod(name, mode | 0o600, device, dir_fd=parent)
            elif not there:
                os.symlink(entry.linkname, name, dir_fd=parent)
            elif os.readlink(name, dir_fd=parent) != entry.linkname:
                new = b".%s" % os.urandom(16).hex().encode()
                os.symlink(entry.linkname, new, dir_fd=parent)
                os.rename(new, name, src_dir_fd=parent, dst_dir_fd=parent)
        except PermissionError:
            if not is_device(mode):
                raise
            warn(f"cp, on {self.shown(entry.name)}: no right to make devices, ignoring")
            return
        with open_checked(name, parent, mode) as fd:
            here = f"/proc/self/fd/{fd}"  # the link itself, if it is one
            os.chown(here, entry.uid, entry.gid)
            if mode != stat.S_IFLNK:
                os.chmod(here, entry.mode)
            os.utime(here, ns=(entry.mtime, entry.mtime))

def open_file(name, parent):
    """Open a regular file to write it anew: the same file, if there is one, so that it stays
    mounted and linked where it is."""
    with tolerate(errno.EEXIST):
        return os.open(name, OPEN_NEW, 0o600, dir_fd=parent)
    with open_checked(name, parent, stat.S_IFREG) as fd:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)

def open_checked(name, parent, mode):
    """Open NAME without doing anything to it, and make sure that it is of this kind: whoever works
    in the tree may just have put a device there."""
    fd = Descriptor(os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent))
    if stat.S_IFMT(os.fstat(fd).st_mode) != mode:
        os.close(fd)
        raise ValueError("it was replaced meanwhile")
    return fd

def copy_entry(source, name, target):
    """Copy NAME in the directory SOURCE to TARGET (descriptors), with all below; nothing is there
    yet.  By way of a tar that never exists as a whole: no link is followed on either side."""
    name = encode(name)
    unpack_layer(pack_entry(source, name, name), target, whiteouts="keep")

def pack_entry(source, name, new_name, apart=()):
    """Yield NAME in the directory SOURCE (a descriptor), with all below, as a tar in which it is
    called NEW_NAME; "." for what is in it alone.  APART: see pack_tree()."""
    info = os.stat(name, dir_fd=source, follow_symlinks=False)
    if stat.S_ISDIR(info.st_mode):
        with Descriptor(os.open(name, OPEN_CHILD, dir_fd=source)) as inner:
            path = b"" if new_name == b"." else new_name + b"/"
            yield from pack_tree(inner, path=path, apart=apart)
    else:
        yield from pack_file(source, name, new_name, info, {})
        yield bytes(1024)

# ── 34. What an image is ─────────────────────────────────────────────────────
# An image is three kinds of files, each named after its own sha256 (OCI image-spec):
#
#   index.json ──name──▶ manifest ──▶ config   what to run; its digest is the image's id
#                               └───▶ layers   tar archives, bottom first, mostly compressed
#
# All of it comes from strangers.  A digest is checked for its form before it becomes a path, and
# against the bytes before they count; JSON is small and of the right shape or refused.
#
# Bytes travel as iterables of chunks, and stages stack up: read, measure, save, decompress, unpack.
# A new source (a registry) is a function that yields chunks; a new compression, a row in MAGIC.

OCI_TYPE = "application/vnd.oci.image."
MANIFEST_TYPE = OCI_TYPE + "manifest.v1+json"
DOCUMENT_TYPES = (  # the first two: an index
    OCI_TYPE + "index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json",
    MANIFEST_TYPE, "application/vnd.docker.distribution.manifest.v2+json")
CONFIG_TYPES = (OCI_TYPE + "config.v1+json", "application/vnd.docker.container.image.v1+json",
                "application/octet-stream")  # the last: old builders'
REF_NAME = "org.opencontainers.image.ref.name"
DOCKER_NAME = "io.containerd.image.name"  # docker's and containerd's place for the full name
MAGIC = {  # how compressed bytes begin → the module whose open() reads them
    b"\x1f\x8b": "gzip", b"\xfd7zXZ\0": "lzma", b"\x28\xb5\x2f\xfd": "compression.zstd"}
LAYER_TYPES = {"plain": OCI_TYPE + "layer.v1.tar", "gzip": OCI_TYPE + "layer.v1.tar+gzip",
               "compression.zstd": OCI_TYPE + "layer.v1.tar+zstd"}  # others are stored plain
PLATFORMS = {  # what a machine can run, best first; unlisted ones are called as by uname -m
    "x86_64": "amd64 386", "i686": "386", "aarch64": "arm64/v8 arm/v8 arm/v7 arm/v6 arm/v5",
    "armv7l": "arm/v7 arm/v6 arm/v5", "armv6l": "arm/v6 arm/v5"}
SAME_PLATFORM = {"arm64": "arm64/v8", "arm": "arm/v7", "amd64/v1": "amd64", "x86_64": "amd64",
                 "aarch64": "arm64/v8"}

# Names

WORD = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])(?::[0-9]+)?"
TAG = "[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
NAME = rf"({HOST}(?:/{WORD})+)(?::({TAG}))?(?:@(sha256:[0-9a-f]{{64}}))?"

def full_name(text):
    """An image name with docker.io/, library/ and, unless there is a digest, :latest put in."""
    import re
    host, slash, path = text.partition("/")
    if not slash or not ("." in host or ":" in host or host == "localhost"):
        host, path = "docker.io", text
    if host in ("docker.io", "index.docker.io"):
        host, path = "docker.io", path if "/" in path else "library/" + path
    found = re.fullmatch(NAME, f"{host}/{path}")
    if not found or len(found[1]) > 255:
        rest, _, digest = path.partition("@")
        folder, _, last = rest.rpartition("/")
        last, _, tag = last.partition(":")
        words = [*folder.split("/"), last] if folder else [last]
        bad = next((word for word in words if not re.fullmatch(WORD, word)), digest or tag or host)
        raise Failure(f"image name, on {text!r:.300}: {bad!r:.300} can't stand there", hint="it is "
                      "[HOST[:PORT]/]PATH[:TAG][@sha256:DIGEST], PATH of lower-case words")
    name, tag, digest = found.groups()
    tag = f":{tag or 'latest'}" if tag or not digest else ""
    return name + tag + (f"@{digest}" if digest else "")

def short_name(name):
    for prefix in ("docker.io/", "library/"):
        name = name[len(prefix):] if name.startswith(prefix) else name
    return name

def name_parts(name):  # (host, repository, tag or digest)
    host, _, path = name.partition("/")
    path, _, digest = path.partition("@")
    path, _, tag = path.partition(":")
    return host, path, digest or tag

def check_digest(digest, what):
    """Refuse what isn't exactly "sha256:" and 64 hex digits: it is going to be a path."""
    import re
    if not (isinstance(digest, str) and re.fullmatch("sha256:[0-9a-f]{64}", digest)):
        raise Failure(f"{what}: bad digest {digest!r:.100}")  # CVE-2014-9357
    return digest

def blob_member(digest):
    return "blobs/sha256/" + check_digest(digest, "blob")[7:]

def blob_path(digest):
    return state_path("images", blob_member(digest))

def layer_path(diff_id):
    return state_path("layers", check_digest(diff_id, "layer")[7:])

# Documents, as far as they matter here

DESCRIPTOR = {"digest": DIGEST, "size": int, "mediaType": str,
              "annotations": {REF_NAME: str, DOCKER_NAME: str},
              "platform": {"architecture": str, "variant": str, "os": str}}
MANIFEST = {"manifests": [DESCRIPTOR],  # an index
            "layers": [DESCRIPTOR], "config": DESCRIPTOR, "mediaType": str}
RUN_CONFIG = {"Entrypoint": [str], "Cmd": [str], "Env": [str], "WorkingDir": str, "User": str,
              "StopSignal": str, "Volumes": {str: dict}, "Labels": {str: str},
              "ExposedPorts": {str: dict}, "Shell": [str],
              "Healthcheck": {"Test": [str], "Interval": (int,), "Timeout": (int,),
                              "StartPeriod": (int,), "StartInterval": (int,), "Retries": (int,)}}
HISTORY = {"created": str, "created_by": str, "author": str, "comment": str, "empty_layer": bool}
CONFIG = {"config": RUN_CONFIG, "rootfs": {"diff_ids": [DIGEST]}, "history": [HISTORY],
          "created": str, "author": str, **DESCRIPTOR["platform"]}
DOCKER_ARCHIVE = [{"Config": str, "Layers": [str], "RepoTags": [str]}]

def read_member(layout, path):
    """The bytes of a file in an OCI layout or the like, in chunks; no link leads out of it."""
    try:
        with Descriptor(os.open(layout, OPEN_DIR)) as root, Descriptor(
                open_in_root(root, path)) as fd:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise Failure(f"image, on {path}: not a regular file")
            return read_path(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        raise Failure(f"image, on {path}: it isn't there") from None

def read_document(layout, path, digest="", size=None, chunks=None):
    """The bytes of a small file of a layout, or CHUNKS, checked against what is known of them."""
    data = b""
    for chunk in measure(chunks or read_member(layout, path), {}, digest, size):
        data += chunk
        if max(len(data), size or 0) > JSON_LIMIT:
            raise Failure(f"image, on {path}: larger than {humane_size(JSON_LIMIT)}")
    return data

def read_blob(source, descriptor):
    digest = descriptor["digest"]
    chunks = None if isinstance(source, str) else source.read(descriptor)  # a registry
    return read_document(source, blob_member(digest), digest, descriptor["size"], chunks)

def read_index(layout=None):
    """The descriptors in the index.json of a layout, of the store if none is named."""
    layout, what = layout or state_path("images"), "index.json"
    if not os.path.exists(os.path.join(layout, what)):
        return []
    return parse_json(read_document(layout, what), what, MANIFEST).get("manifests") or []

def read_image(source, descriptor, wanted=None):
    """The image that DESCRIPTOR leads to, through an index to the one for this machine or WANTED.
    It is a dict; layers holds descriptors, bottom first, and raw the documents' own bytes."""
    for _ in range(3):
        data, what = read_blob(source, descriptor), descriptor["digest"]
        manifest = parse_json(data, what, dict)
        is_index, told = "manifests" in manifest, descriptor.get("mediaType")
        if is_index and ("layers" in manifest or "config" in manifest) or (
                told in DOCUMENT_TYPES and is_index != (told in DOCUMENT_TYPES[:2])):
            raise Failure(f"image, on {what}: manifest and index in one")  # CVE-2021-41190
        if "manifests" not in check(manifest, MANIFEST, f"image, on {what}"):
            break
        descriptor = choose_platform(manifest["manifests"] or (), what, wanted)
    else:
        raise Failure(f"image, on {what}: an index in an index in an index")
    kind = (manifest.get("config") or {}).get("mediaType") or CONFIG_TYPES[0]
    if kind not in CONFIG_TYPES:  # a chart, a signature, ...
        raise Failure(f"image, on {what}: an artifact, not an image: {kind!r:.99}")
    if not manifest.get("config") or "layers" not in manifest:
        raise Failure(f"image, on {what}: not an image manifest of OCI or Docker's schema 2")
    layers, image_id = manifest["layers"] or [], manifest["config"]["digest"]
    config_data = read_blob(source, manifest["config"])
    config, diff_ids = parse_config(config_data, image_id, len(layers))
    return {"id": image_id, "digest": what, "layers": layers, "diff_ids": diff_ids,
            "config": config, "raw": (config_data, data), "descriptor": {
                "mediaType": manifest.get("mediaType") or MANIFEST_TYPE,
                "digest": what, "size": len(data)}}

def parse_config(data, what, count):
    """An image's config and the digests of its COUNT unpacked layers, bottom first."""
    config = parse_json(data, what, CONFIG)
    try:
        plain_texts(config)
    except ValueError as why:
        raise Failure(f"image, on {what}: {why}") from None
    check_environment((config.get("config") or {}).get("Env"), f"image, on {what}: Env")
    diff_ids = (config.get("rootfs") or {}).get("diff_ids") or []
    if len(diff_ids) != count:
        raise Failure(f"image, on {what}: {count} layers, but {len(diff_ids)} diff ids")
    return config, diff_ids

def platforms():
    machine = os.uname().machine
    return PLATFORMS.get(machine, machine).split()

def choose_platform(manifests, what, wanted=None):
    """The descriptor, of those in an index, that suits this machine, or [linux/]WANTED, best."""
    found, names = {}, [*platforms(), ""]
    if wanted and wanted != "linux":
        names = [platform_name(*wanted.lower().split("/"))]
    for entry in manifests:
        platform, notes = entry.get("platform") or {}, entry.get("annotations") or {}
        name = platform_name(platform.get("os") or "linux", platform.get("architecture") or "",
                             platform.get("variant") or "")
        if name != "unknown" and "vnd.docker.reference.type" not in notes:  # not an attestation
            found.setdefault(name, entry)
    for name in names:
        if name in found:
            return found[name]
    there = ", ".join(name for name in found if name) or "no image at all, nor for linux"
    raise Failure(f"image, on {what}: not for {wanted or f'this machine ({names[0]})'}: {there}")

def platform_name(*words):
    """OS, architecture and variant as one name, without linux, and one for what has several."""
    name = "/".join(filter(None, words))
    if name.startswith("unknown"):
        return "unknown"
    if name == "linux" or name.startswith("linux/"):
        name = name[6:]
    return SAME_PLATFORM.get(name, name)

# Bytes on the move

def measure(chunks, found, digest="", size=None):
    """Pass CHUNKS on; at their end refuse what isn't what was promised, else fill FOUND in."""
    import hashlib
    sha256, passed = hashlib.sha256(), 0
    for chunk in chunks:
        passed += len(chunk)
        if size is not None and passed > size:
            raise Failure(f"blob, on {digest}: longer than its {size} bytes")
        sha256.update(chunk)
        yield chunk
    found.update(digest="sha256:" + sha256.hexdigest(), size=passed)
    if size not in (None, passed) or digest not in ("", found["digest"]):
        raise Failure(f"blob, on {digest}: cut off, damaged or forged: {passed} bytes of "
                      f"{size}, {found['digest']}")

def read_path(path, seen=()):
    """Yield the bytes of a file (or a descriptor); a terminal shows how far it is, if that takes
    long: how many, how fast, and how many entries an unpacker has SEEN in them."""
    return read_chunks(open(path, "rb", buffering=0, closefd=path != 0), seen)

def read_chunks(file, seen):
    """What read_path does when the file is open, which it is at once."""
    passed, begin, size = 0, time.monotonic(), os.fstat(file.fileno()).st_size
    watched, drawn = sys.stderr.isatty(), begin
    while chunk := file.read(CHUNK):
        passed, now = passed + len(chunk), time.monotonic()
        if watched and now > drawn + 0.1:
            drawn = now
            entries = f", {len(seen)} entries" if seen else ""
            draw(how_far(passed, size, now - begin) + entries)
        yield chunk
    if drawn > begin:
        draw("")

def draw(text):
    """Show TEXT in place of the terminal's last line."""
    print(end="\r\033[K" + text, file=sys.stderr, flush=True)

def how_far(passed, size, seconds):
    bar = f"[{'=' * (20 * passed // size):20.20}] " if size else ""
    return f"{bar}{humane_size(passed)}, {humane_size(passed / max(seconds, 0.001))}/s"

def save_chunks(chunks, path):
    """Write what passes to a new file."""
    with Descriptor(os.open(path, OPEN_NEW, 0o644)) as fd:
        for chunk in chunks:
            write_all(fd, chunk)
            yield chunk

def read_ahead(chunks):
    """Run CHUNKS in a thread, a little ahead: hashing and inflating use a second processor."""
    import queue, threading
    pipe = queue.Queue(16)

    def feed():
        try:
            for chunk in chunks:
                pipe.put(chunk)
            pipe.put(None)
        except BaseException as why:  # to be raised where the bytes are wanted
            pipe.put(why)

    threading.Thread(target=feed, daemon=True).start()  # it ends with the process at the latest
    while isinstance(item := pipe.get(), bytes):
        yield item
    if item:
        raise item

def sniff(chunks):
    """How CHUNKS are compressed, and chunks again."""
    from itertools import chain
    head, chunks = b"", iter(chunks)
    while len(head) < 512 and (more := next(chunks, b"")):
        head += more
    kind = next((MAGIC[magic] for magic in MAGIC if head.startswith(magic)), "plain")
    return "plain" if head[257:262] == b"ustar" else kind, chain([head], chunks)

def opener_of(kind):
    """The function that opens compressed data of this KIND, a module's name, for reading."""
    from importlib import import_module
    try:
        return import_module(kind).open
    except ImportError:
        if kind == "compression.zstd" and Zstd.find_library():
            return Zstd
    hint = "another one may, or: skopeo copy --dest-compress-format gzip"
    if kind == "compression.zstd":
        hint = ("zstd needs Python 3.14 or the host's libzstd.so.1, or: skopeo copy "
                "--dest-compress-format gzip")
    raise Failure(f"layer, on its {kind} data: a compression that this Python can't read",
                  hint=hint)

class Zstd:
    """What compression.zstd.open gives from Python 3.14 on, by the host's own libzstd: zstd.h,
    "Streaming decompression - HowTo".  A frame that wants more than 128 MB at once is an error."""
    library = None

    @classmethod
    def find_library(cls):
        """Load the library, once; False if the host has none."""
        import ctypes
        with tolerate():
            library = cls.library = cls.library or ctypes.CDLL("libzstd.so.1")
            library.ZSTD_createDStream.restype = ctypes.c_void_p
            library.ZSTD_freeDStream.argtypes = [ctypes.c_void_p]
            library.ZSTD_decompressStream.argtypes = [ctypes.c_void_p] * 3
            library.ZSTD_decompressStream.restype = ctypes.c_size_t
            library.ZSTD_isError.argtypes = library.ZSTD_getErrorName.argtypes = [ctypes.c_size_t]
            library.ZSTD_getErrorName.restype = ctypes.c_char_p
        return cls.library is not None

    def __init__(self, source):
        import ctypes
        self.ctypes, self.source, self.packed = ctypes, source, b""
        self.stream, self.unfinished, self.full = self.library.ZSTD_createDStream(), 0, False
        self.plain, buffer = ctypes.create_string_buffer(CHUNK), ctypes.c_size_t * 3
        self.input = buffer()  # a ZSTD_inBuffer: where it is, its size, how far it is read
        self.output = buffer(ctypes.addressof(self.plain), CHUNK)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.library.ZSTD_freeDStream(self.stream)

    def read(self, _):
        """Some plain bytes; none at the end only."""
        self.output[2] = 0
        while not self.output[2]:
            if self.input[2] == self.input[1] and not self.full and not self.fill():
                return b""
            left = self.library.ZSTD_decompressStream(self.stream, self.output, self.input)
            if self.library.ZSTD_isError(left):
                raise ValueError(self.library.ZSTD_getErrorName(left).decode())
            self.unfinished = left  # 0 at the end of a frame; another may follow
            self.full = left and self.output[2] == CHUNK
        return self.ctypes.string_at(self.plain, self.output[2])

    def fill(self):
        """Get more of the input; False at its end."""
        self.packed = self.source.read(CHUNK)
        if self.unfinished and not self.packed:
            raise EOFError("it breaks off")
        where = self.ctypes.cast(self.ctypes.c_char_p(self.packed), self.ctypes.c_void_p)
        self.input[:] = where.value, len(self.packed), 0
        return bool(self.packed)

def decompress(kind, chunks):
    """Yield CHUNKS decompressed, a piece at a time, so that a bomb needs no memory."""
    if kind == "plain":
        yield from chunks
        return
    source, open_packed = Stream(chunks), opener_of(kind)
    try:
        with open_packed(source) as file:
            yield from iter(lambda: file.read(CHUNK), b"")
    except Failure:
        raise
    except Exception as why:  # each module has its own
        if getattr(why, "errno", None):  # a full disk, where the bytes pass
            raise
        raise Failure(f"layer, on its {kind} data: damaged: {why}") from None
    for _ in source.chunks:  # the digest covers what is behind, too
        pass

# ── 35. The store ────────────────────────────────────────────────────────────
# images/ is an OCI image layout, which other tools read and write in place, `skopeo inspect
# oci:/var/lib/mydocker/images:docker.io/library/alpine:latest`.  A layer is also unpacked, once,
# in layers/<diff id>, the digest of the plain tar, for overlayfs to stack.
#
# A layer gets its real name by one rename at the very end, when its data is on disk.  Nothing is
# counted: what index.json and the containers reach stays, the rest is swept.  Who adds or uses
# holds images.lock shared, who sweeps holds it alone.

def using_images():
    return hold(make_dirs(state_path()) + "/images.lock", fcntl.LOCK_SH)

class ImageAdder(Descriptor):
    """The lock of using_images; behind what was added or removed under it, what nothing needs is
    swept up."""
    def __exit__(self, *why):
        super().__exit__(*why)
        with tolerate(errno.EWOULDBLOCK):  # somebody is at work: the last one sweeps
            with hold(state_path("images.lock"), fcntl.LOCK_EX | fcntl.LOCK_NB):
                sweep_images()

def sweep_images():
    """Remove what no image and no container needs; the caller holds images.lock alone."""
    records = container_records()
    needed = mentioned([entry["digest"] for entry in read_index()] + pulls_begun()
                       + [record.get("image") or "" for record in records])
    for record in records:
        needed.update(record.get("layers") or ())
    for folder in (state_path("images", "blobs", "sha256"), state_path("layers")):
        for name in listing(folder):
            if "sha256:" + name not in needed:
                gone = temporary_path("layers")  # never half a layer under a whole one's name
                os.rename(os.path.join(folder, name), gone)
                remove_tree(gone)
    sweep_halves(state_path("built"))

def pulls_begun():
    """What to keep for the next pull where one broke off; after a week nobody comes for it."""
    folder, digests = state_path("images", "pulls"), []
    for name in listing(folder):
        digests.append("sha256:" + name)
        if time.time() - os.stat(f"{folder}/{name}").st_mtime > 7 * 86400:
            os.unlink(f"{folder}/{name}")
    return digests

def mentioned(digests):
    """These digests, and all that the documents under them mention: rather too many than less."""
    import re
    todo, found = list(digests), set()
    while todo:
        digest = todo.pop()
        path = state_path("images", "blobs", "sha256", digest[7:])
        if digest not in found and os.path.isfile(path) and os.path.getsize(path) <= JSON_LIMIT:
            with open(path, "rb") as file:
                todo += map(bytes.decode, re.findall(rb"sha256:[0-9a-f]{64}", file.read()))
        found.add(digest)
    return found

SPARE = 64 << 10  # bytes that are kept, for the index of one image less on a disk that is full

def write_index(entries):
    """Replace the store's index, when all that it names is on disk, and its name, too."""
    for folder in (state_path("images", "blobs", "sha256"), state_path("layers")):
        if os.path.isdir(folder):
            sync_names(folder)
    mark = state_path("images", "oci-layout")
    if not os.path.exists(mark):
        write_file(mark, b'{"imageLayoutVersion": "1.0.0"}', durable=True)
    document = {"schemaVersion": 2, "mediaType": DOCUMENT_TYPES[0], "manifests": entries}
    path, spare = state_path("images", "index.json"), state_path("spare")
    try:
        write_json(path, document, True)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or len(entries) >= len(read_index()):
            raise
        unlink_if_there(spare)  # an image goes, and makes room
        write_json(path, document, True)
    sweep_halves(state_path("images"), "index.json.")
    sync_names(state_path("images"))
    with tolerate(errno.ENOSPC, errno.EDQUOT, errno.EOPNOTSUPP), Descriptor(
            os.open(spare, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)) as fd:
        if not os.fstat(fd).st_size:
            os.posix_fallocate(fd, 0, SPARE)

def sweep_halves(folder, of=""):
    """Remove what a write_file that was killed has left in a directory, beside the file OF or any.
    The caller holds the lock under which they are written."""
    for name in listing(folder):
        end = name[-17:]
        if name.startswith(of) and end[:1] == "." and not end[1:].strip("0123456789abcdef"):
            unlink_if_there(os.path.join(folder, name))

def sync_names(folder):
    """Bring the names in a directory to disk: fsync(2) of a file doesn't."""
    with Descriptor(os.open(folder, OPEN_DIR)) as fd:
        os.fsync(fd)

def sync_data(*paths):
    """Bring what is at PATHS to disk, with all that lies on the same file systems: syncfs(2).
    One call does for a layer what thousands of fsyncs would."""
    disks = {os.stat(path).st_dev: path for path in paths}
    for path in disks.values():
        with Descriptor(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as fd:
            syncfs(fd)  # to disk, before it has a name

def ref_name(entry):
    """The full name in an index entry; "" if it has none, or only a tag."""
    notes = entry.get("annotations") or {}
    name = notes.get(DOCKER_NAME) or notes.get(REF_NAME) or ""
    try:
        return full_name(name) if name else ""
    except Failure:
        return ""

def stored_images(wanted=lambda entry: True):
    """Yield the images that wanted entries of the index lead to, with their names."""
    for entry in filter(wanted, read_index()):
        try:
            yield {**read_image(state_path("images"), entry), "name": ref_name(entry)}
        except Failure as why:  # put there by others, and not for this machine
            if entry in read_index():  # else it has just been removed
                warn(f"{why}, ignoring")

def name_image(name, descriptor):
    """Let NAME (full, or "" for none) mean an image; what lost its last name stays without one."""
    new = {**descriptor, "annotations": {REF_NAME: name} if name else {}}
    with hold(make_dirs(state_path("images")) + "/index.lock"):
        named, nameless = [], {}
        for entry in [*read_index(), new]:
            if ref_name(entry) and (entry is new or ref_name(entry) != name):
                named.append(entry)
            else:
                nameless[entry["digest"]] = {**entry, "annotations": {}}
        for entry in named:
            nameless.pop(entry["digest"], None)
        write_index([*named, *nameless.values()])

def find_image(text):
    """The image that TEXT names: a name, NAME@DIGEST, or the beginning of an id."""
    import re
    name, hexes = full_name(text), re.fullmatch("(?:sha256:)?([0-9a-f]+)", text)
    repository, _, digest = name.partition("@")

    def is_meant(entry):
        known = ref_name(entry)
        return known == name or (
            entry["digest"] == digest and known.rpartition(":")[0] == repository)

    for image in stored_images(is_meant):
        return image
    found = {}
    for image in stored_images() if hexes else ():
        start = "sha256:" + hexes[1]
        if image["id"].startswith(start) or image["digest"] == start:
            found[image["id"]] = {**image, "name": ""}
    if not found:
        raise NotFound(f"image, on {text}: no such image", hint="images lists those that are there")
    if len(found) > 1:
        raise Failure(f"image, on {text}: {len(found)} ids begin like this",
                      hint="images lists those that are there")
    return found.popitem()[1]

def image_layers(image):
    """The directories of an image's layers, bottom first and each once, as overlayfs wants it."""
    store_layers(image, state_path("images"))  # others may have put it there
    paths = []
    for path in map(layer_path, reversed(image["diff_ids"])):
        if path not in paths:
            paths.insert(0, path)
        if overlay_mark("opaque") in os.listxattr(path):  # it hides all below
            break
    return paths

def unpack_new(path, chunks, **how):
    """Unpack a plain tar into a new directory."""
    os.mkdir(path)
    with Descriptor(os.open(path, OPEN_DIR)) as fd:
        os.fchmod(fd, 0o755)  # whatever the umask is
        unpack_layer(read_ahead(chunks), fd, **how)

def store_blob(data):
    """Store a small blob; return its digest."""
    found, blob = {}, temporary_path("images", "blobs", "sha256")
    try:
        for _ in save_chunks(measure([data], found), blob):
            pass
        with Descriptor(os.open(blob, os.O_RDONLY | os.O_CLOEXEC)) as fd:
            os.fsync(fd)  # a name in the store is trusted: the data comes first
        name_blob(blob, found["digest"])  # it is whole, and on disk
    finally:
        unlink_if_there(blob)
    return found["digest"]

def store_layer(chunks, diff_id="", descriptor=None, part="", **how):
    """Store a layer, packed and unpacked, or nothing of it; return its descriptor and diff id.
    PART: a file that CHUNKS go to by themselves, and where they stay if it fails."""
    kind, chunks = sniff(chunks)
    if not descriptor and kind not in LAYER_TYPES:
        kind, chunks = "plain", decompress(kind, chunks)
    blob, layer = part or temporary_path("images", "blobs", "sha256"), temporary_path("layers")
    packed, plain, known = {}, {}, ()
    if descriptor:
        known = descriptor["digest"], descriptor["size"]
    chunks = measure(chunks, packed, *known)
    if not part:
        chunks = save_chunks(chunks, blob)
    if kind != "plain":
        chunks = measure(decompress(kind, chunks), plain)
    try:
        unpack_new(layer, chunks, **how)
        plain = plain or packed
        if diff_id not in ("", plain["digest"]):
            raise Failure(f"layer, on {diff_id}: damaged or forged: the data is {plain['digest']}")
        sync_data(blob, layer)  # before the names: they are trusted, also after a power loss
        name_blob(blob, packed["digest"])  # it is whole, and on disk
        name_layer(layer, plain["digest"])  # and what it is unpacked
    finally:
        if not part:
            unlink_if_there(blob)
        remove_tree(layer)
    return descriptor or {"mediaType": LAYER_TYPES[kind], **packed}, plain["digest"]

def name_blob(path, digest):
    os.chmod(path, 0o644)  # as in every OCI layout, whatever the umask is
    os.rename(path, blob_path(digest))

def name_layer(path, diff_id):
    """Give an unpacked layer its name, unless somebody has been faster."""
    try:
        os.rename(path, layer_path(diff_id))
    except OSError:
        if not os.path.isdir(layer_path(diff_id)):
            raise

def store_layers(image, source, show_note=lambda *_: None):
    """Unpack those layers of an image that aren't there, and store their blobs."""
    jobs = {}
    for descriptor, diff_id in zip(image["layers"], image["diff_ids"]):
        digest, kind = descriptor["digest"], descriptor.get("mediaType") or ""
        if kind.endswith("+encrypted"):
            raise Failure(f"layer, on {digest}: encrypted")
        if os.path.isdir(layer_path(diff_id)) and os.path.exists(blob_path(digest)):
            show_note(digest, True, "is here")
        elif isinstance(source, str):
            store_layer(read_member(source, blob_member(digest)), diff_id, descriptor)
        else:
            if kind.endswith("zstd"):
                opener_of("compression.zstd")  # before anything is fetched
            jobs[digest] = lambda note, of=(descriptor, diff_id): fetch_layer(source, *of, note)
    in_parallel(jobs, show_note)

def store_manifest(config, layers, names):
    """Store an image's config (bytes) and manifest, and give it names; return its id."""
    image_id, descriptor = store_documents(config, layers)
    for name in names or [""]:
        name_image(name, descriptor)
    return image_id

def store_documents(config, layers):
    """Store an image's config (bytes) and manifest; return its id, and what the index calls it."""
    image_id = store_blob(config)
    data = to_json({
        "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "layers": layers,
        "config": {"mediaType": OCI_TYPE + "config.v1+json", "digest": image_id,
                   "size": len(config)}}).encode()
    return image_id, {"mediaType": MANIFEST_TYPE, "digest": store_blob(data), "size": len(data)}

# ── 36. In and out ───────────────────────────────────────────────────────────
# What becomes an image, and what an image becomes: archives of docker's and the OCI's, a root file
# system, a container's changes.

CHANGE = ("-c --change", "INSTRUCTION...", "set CMD, ENTRYPOINT, ENV, WORKDIR, USER, ... in it")
CHANGES = {  # a Dockerfile's word → the config's
    "CMD": "Cmd", "ENTRYPOINT": "Entrypoint", "ENV": "Env", "EXPOSE": "ExposedPorts",
    "LABEL": "Labels", "STOPSIGNAL": "StopSignal", "USER": "User", "VOLUME": "Volumes",
    "WORKDIR": "WorkingDir"}

def import_image(source, name="", changes=(), comment=None):
    """Make an image of one layer from a root file system: a tar, "-" for stdin, or a directory."""
    platform = dict(zip(("architecture", "variant"), platforms()[0].split("/")))
    image, seen = {"config": {"os": "linux", **platform}, "layers": [], "diff_ids": []}, []
    if os.path.isdir(source):
        chunks = pack_tree(os.open(source, OPEN_DIR))
    else:
        chunks = read_path(0 if source == "-" else source, seen)
    if comment is None:
        comment = f"imported from {source}"
    return add_layer(image, chunks, name, changes, comment, seen=seen)

@command("[OPTIONS] FILE|DIR|- [NAME[:TAG]]", "make an image from a root file system", CHANGE,
         ("-m --message", "TEXT", "a comment"), takes=(1, 2))
def cmd_import(options, words):
    if words[0].startswith(("http://", "https://")):
        raise Failure(f"import, on {words[0]}: not a file",
                      hint="curl URL | mydocker import - NAME")
    image_id = import_image(words[0], "".join(words[1:]), options["change"], options["message"])
    note_event("image", "import", image_id, {"name": "".join(words[1:])})
    show(image_id)

def add_layer(image, chunks, name, changes, comment, author="", seen=None):
    """Store IMAGE with one layer more on top, CHUNKS; return its id."""
    name = full_name(name) if name else ""
    config = dict(image["config"])
    if author:
        config["author"] = author
    config["config"] = dict(config.get("config") or {})
    for change in changes:
        apply_change(config["config"], change)
    with ImageAdder(using_images()):
        layer, diff_id = store_layer(chunks, strict=True, seen=seen)
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        step = {"created": created, "comment": comment, "created_by": "mydocker"}
        config.update(created=created, history=[*(config.get("history") or ()), step],
                      rootfs={"type": "layers", "diff_ids": [*image["diff_ids"], diff_id]})
        return store_manifest(to_json(config).encode(), [*image["layers"], layer], [name])

def apply_change(config, text):
    """Apply one instruction in a Dockerfile's words to an image's config."""
    word, _, rest = text.strip().partition(" ")
    key, rest = CHANGES.get(word.upper()), rest.strip()
    words, is_list = change_words(rest, text)
    if not key or not words:
        raise Failure(f"change, on {text!r}: not one of {', '.join(CHANGES)} with a value")
    old = config.get(key) or {}
    if key in ("Cmd", "Entrypoint"):
        config[key] = words if is_list else ["/bin/sh", "-c", rest]
    elif key == "Env":
        new = {**pairs_of(old), **changed_pairs(words, rest)}
        config[key] = [f"{name}={value}" for name, value in new.items()]
        check_environment(config[key], f"change, on {text}")
    elif key == "Labels":
        config[key] = {**old, **changed_pairs(words, rest)}
    elif key == "Volumes":
        config[key] = {**old, **{word: {} for word in words}}
    elif key == "ExposedPorts":
        ports = [word if "/" in word else word + "/tcp" for word in words]
        config[key] = {**old, **{port: {} for port in ports}}
    else:
        config[key] = rest

def change_words(rest, text):
    """The words of an instruction, and whether they stand there as a JSON list."""
    import shlex
    try:
        if rest.startswith("["):
            return check(plain_texts(from_json(rest)), [str], text), True
        return plain_texts(shlex.split(rest)), False
    except ValueError as why:
        raise Failure(f"change, on {text!r}: {why}") from None

def changed_pairs(words, rest):
    """{name: value} of NAME=VALUE... or, as old Dockerfiles have it, NAME VALUE."""
    return pairs_of(words if "=" in words[0] else [rest.replace(" ", "=", 1)])

def load(source):
    """Store the images of a docker-archive, OCI archive or OCI layout; return [(name, id)]."""
    with ImageAdder(using_images()):
        if os.path.isdir(source):
            return load_layout(source)
        folder, seen = temporary_path("layers"), []
        chunks = read_path(0 if source == "-" else source, seen)
        try:  # what is asked for first may come last: all is laid down
            unpack_new(folder, decompress(*sniff(chunks)), whiteouts="keep",
                       owned_by=(os.geteuid(), os.getegid()), seen=seen)
            return load_layout(folder)
        finally:
            remove_tree(folder)

def load_layout(layout):
    """Load the images in a directory."""
    for name, load_all in (("index.json", load_oci), ("manifest.json", load_docker)):
        if name in os.listdir(layout):
            return load_all(layout)
    raise Failure("load: no image archive: neither index.json nor manifest.json is there",
                  hint="import makes an image from a root file system")

def load_oci(layout):
    """Load from an OCI layout: the images in its index, each for this machine's platform."""
    groups, loaded = {}, []
    for entry in read_index(layout):
        key = ref_name(entry) or ("" if entry.get("platform") else entry["digest"])
        groups.setdefault(key, []).append(entry)
    for entries in groups.values():
        entry = entries[0] if len(entries) == 1 else choose_platform(entries, "index.json")
        image, name = read_image(layout, entry), ref_name(entry)
        store_layers(image, layout)
        for document in image["raw"]:
            store_blob(document)
        name_image(name, image["descriptor"])
        loaded.append((name, image["id"]))
    return loaded

def load_docker(layout):
    """Load from a docker-archive: a list of configs, their layers' files and names."""
    loaded, what = [], "manifest.json"
    for entry in parse_json(read_document(layout, what), what, DOCKER_ARCHIVE):
        path, paths = entry.get("Config") or "", entry.get("Layers") or []
        names = [full_name(name) for name in entry.get("RepoTags") or ()]
        config = read_document(layout, path)
        diff_ids = parse_config(config, path, len(paths))[1]
        layers = [store_layer(read_member(layout, layer), diff_id)[0]
                  for layer, diff_id in zip(paths, diff_ids)]
        image_id = store_manifest(config, layers, names)
        loaded += [(name, image_id) for name in names or [""]]
    return loaded

@command("[OPTIONS]", "load images from an archive of docker's or of the OCI's",
         ("-i --input", "FILE|DIR", "the archive, or an OCI layout (default: standard input)"),
         ("-q --quiet", "", "no progress, as always"))
def cmd_load(options, _):
    for name, image_id in load(options["input"] or "-"):
        note_event("image", "load", image_id, {"name": short_name(name)})
        show(f"Loaded image: {short_name(name) or image_id}")

def save(names, form):
    """Yield images as a tar: an OCI layout and, in docker's FORM, docker's manifest.json too."""
    with ImageAdder(using_images()):
        images = [find_image(name) for name in names]
        index = {"schemaVersion": 2, "manifests": [saved_entry(image) for image in images]}
        documents = {"oci-layout": {"imageLayoutVersion": "1.0.0"}}
        if form == "docker":
            documents["manifest.json"] = [docker_entry(image) for image in images]
        documents["index.json"] = index
        for name, value in documents.items():
            data = to_json(value).encode()
            yield from tar_file(name.encode(), len(data), [data])
        digests = set()
        for image in images:
            digests.update((image["id"], image["digest"]))
            digests.update(layer["digest"] for layer in image["layers"])
        for digest in sorted(digests):
            size, name = os.path.getsize(blob_path(digest)), blob_member(digest)
            chunks = read_member(state_path("images"), name)
            yield from tar_file(name.encode(), size, measure(chunks, {}, digest, size))
        yield bytes(1024)

def saved_entry(image):
    """An image in an archive's index.json; docker and containerd read the name elsewhere."""
    notes = {REF_NAME: image["name"], DOCKER_NAME: image["name"]} if image["name"] else {}
    return {**image["descriptor"], "annotations": notes}

def docker_entry(image):
    """An image in docker's manifest.json."""
    return {"Config": blob_member(image["id"]),
            "Layers": [blob_member(layer["digest"]) for layer in image["layers"]],
            "RepoTags": [short_name(image["name"])] if image["name"] else []}

@command("[OPTIONS] IMAGE...", "write images to an archive",
         ("-o --output", "FILE", "where to (default: standard output)"),
         ("--format", "FORMAT", "docker (which is an OCI archive, too) or oci"), takes=SOME)
def cmd_save(options, words):
    form = options["format"] or "docker"
    if form not in ("docker", "oci"):
        raise Failure(f"--format, on {form}: not docker or oci")
    write_archive(options["output"], save(words, form))

@command("[OPTIONS] CONTAINER", "write a container's files to a tar archive",
         ("-o --output", "FILE", "where to (default: standard output)"), takes=ONE)
def cmd_export(options, words):
    record = find_container(words[0])
    root = container_root(dict(record, running=False), volumes=False)
    write_archive(options["output"], pack_tree(readable(root)))

@command("[OPTIONS] CONTAINER [NAME[:TAG]]", "make an image of a container's changes", CHANGE,
         ("-m --message", "TEXT", "a comment"), ("-a --author", "NAME", "who made it"),
         ("-p --pause", "[=true|false]", "false: let it go on meanwhile (default: true)"),
        takes=(1, 2))
def cmd_commit(options, words):
    """What the container wrote becomes a layer; it stands still meanwhile."""
    record = find_container(words[0])
    path = container_path(record)
    if not record["image"]:
        raise Failure(f"commit, on {words[0]}: it has no image to build on")
    if os.path.isdir(path + "/copy"):
        raise Failure(f"commit, on {words[0]}: its root is a copy, not layers: what changed is not "
                      "known", hint="export, then import")
    image = find_image(record["image"])
    frozen = (record["running"] and options["pause"] != "false"
              and not is_paused(record["cgroups"]))
    if frozen and not freezer_of(record["cgroups"]):
        frozen = warn(f"commit, on {words[0]}: it has no cgroup with a freezer: what it writes "
                      "meanwhile may be there, or half there")
    with StandingStill(record["cgroups"] if frozen else ()):
        with Descriptor(os.open(upper_dir(record), OPEN_DIR)) as fd:
            show(add_layer(image, pack_tree(fd, as_layer=True), "".join(words[1:]),
                           options["change"], options["message"] or "", options["author"] or ""))
    note_container(record, "commit")

def upper_dir(record):
    """The directory of what a container has written: before its first start, nothing."""
    path = container_path(record, "upper")
    if "started" not in record:
        os.makedirs(path, 0o755, exist_ok=True)
    return path

def image_labels(image):
    return (image["config"].get("config") or {}).get("Labels") or {}

def image_seconds(image):
    """When an image was made, in seconds since 1970, by what it says itself: 0 if it doesn't."""
    import datetime
    text = image_created(image)
    try:
        moment = datetime.datetime.fromisoformat(text[:19] + "+00:00")
        return max(0, moment.timestamp())
    except (ValueError, OverflowError):
        return 0

def refers_to(image, pattern):
    """True if an image's name is as `images NAME` or --filter reference=... wants it."""
    import fnmatch
    host, path, tag = name_parts(image["name"])
    name = short_name(f"{host}/{path}") if host else "<none>"
    return any(fnmatch.fnmatchcase(text, pattern) for text in (name, f"{name}:{tag}"))

IMAGE_FILTERS = {
    "dangling": lambda image, value: (value in ("true", "1")) == (not image["name"]),
    "label": lambda image, value: has_label(image_labels(image), value),
    "reference": refers_to,
    "before": lambda image, value: image_seconds(image) < image_seconds(find_image(value)),
    "since": lambda image, value: image_seconds(image) > image_seconds(find_image(value)),
    "until": lambda image, value: is_older(image_seconds(image), value)}

class StandingStill:
    """A `with` in which what is in cgroups is frozen, if there are any.  A process of its own lets
    it go on, however this one ends: a commit that is killed is the end of no service."""
    def __init__(self, dirs):
        self.dirs, self.guard = dirs, None
    def __enter__(self):
        if not self.dirs:
            return
        end, self.ours = os.pipe()
        self.guard = os.fork()
        if self.guard == 0:
            self.let_go_on(end)
        os.close(end)
        freeze(self.dirs, True)
    def __exit__(self, *_):
        if self.guard:
            os.close(self.ours)
            if os.waitpid(self.guard, 0)[1] and freezer_of(self.dirs):
                freeze(self.dirs, False)  # it couldn't: this says why
    def let_go_on(self, end):
        """In that process: wait until the other is done, or dead."""
        try:
            os.setsid()  # what is sent to all of a terminal or of a shell's job isn't for us
            for number in DEADLY:
                _signal.signal(number, _signal.SIG_IGN)
            os.close(self.ours)
            os.read(end, 1)
            freeze(self.dirs, False)
            os._exit(0)
        finally:
            os._exit(1)

@command("[OPTIONS] [NAME]", "list the images by name, newest first",
         ("-q --quiet", "", "ids only"),
         ("-a --all", "", "also those without a name that `build` keeps for the next time"),
         ("--no-trunc", "", "ids in full"), ("--digests", "", "with the digests"),
         ("-f --filter", "K=V...", f"only some, by {', '.join(IMAGE_FILTERS)}"),
         ("--format", "FORMAT", "table, json or a template"), takes=(0, 1))
def cmd_images(options, words):
    """A row for each name of an image, the newest first."""
    rows = []
    wanted = [*options["filter"], *(f"reference={word}" for word in words)]
    found = filtered([*stored_images()], wanted, IMAGE_FILTERS)
    for image in sorted(found, key=image_created, reverse=True):
        steps = image["config"].get("history") or [{}]
        if not options["all"] and not image["name"] and steps[-1].get("comment") == BUILT:
            continue
        host, path, tag = name_parts(image["name"])
        rows.append({
            "Repository": short_name(f"{host}/{path}") if host else "<none>",
            "Tag": tag if tag and ":" not in tag else "<none>", "Digest": image["digest"],
            "ID": image["id"] if options["no-trunc"] else image["id"][7:19],
            "CreatedAt": image_created(image)[:19],
            "Size": humane_size(sum(layer["size"] for layer in image["layers"]))})
    headers = {"Repository": "REPOSITORY", "Tag": "TAG", "Digest": "DIGEST", "ID": "IMAGE ID",
               "CreatedAt": "CREATED", "Size": "SIZE"}
    if not options["digests"]:
        del headers["Digest"]
    show_rows(rows, headers, "{{.ID}}" if options["quiet"] else options["format"])

BUILT = "mydocker build"  # the comment of a step in an image's history

def image_created(image):
    return image["config"].get("created") or ""

@command("[OPTIONS] IMAGE...", "remove images",
         ("-f --force", "", "also with several names, or used"), many=True)
def cmd_rmi(options, name):
    try:
        return "\n".join(remove_image(name, options["force"]))
    except NotFound:
        if options["force"]:
            return ""  # that is what was wanted
        raise

def remove_image(text, force=False):
    """Take a name from an image, and with the last one the image; return lines that say so.  That
    waits for no build, pull or save: what they need of it goes when they are over."""
    with ImageAdder(using_images()), hold(make_dirs(state_path("images")) + "/index.lock"):
        image, entries = find_image(text), read_index()
        mine = [entry for entry in entries if entry["digest"] == image["digest"]]
        gone = mine  # an id means the image, so all its names
        if image["name"]:
            gone = [entry for entry in mine if ref_name(entry) == image["name"]]
        is_last = len(gone) == len(mine)
        users = [record for record in container_records() if record["image"] == image["digest"]]
        if len(gone) > 1 and not force:
            raise Failure(f"rmi, on {text}: it has {len(gone)} names", hint="name one, or -f")
        if is_last and users and not force:
            raise Failure(f"rmi, on {text}: container {users[0]['id'][:12]} uses it")
        write_index([entry for entry in entries if entry not in gone])
    untagged = [short_name(ref_name(entry)) for entry in gone if ref_name(entry)]
    for name in untagged:
        note_event("image", "untag", image["id"], {"name": name})
    lines = [f"Untagged: {name}" for name in untagged]
    if is_last and not users:
        lines.append(f"Deleted: {image['id']}")
        note_event("image", "delete", image["id"], {})
    return lines

@command("IMAGE NEW-NAME", "give an image another name", takes=(2, 2))
def cmd_tag(_, words):
    with using_images():
        image, name = find_image(words[0]), full_name(words[1])
        name_image(name, image["descriptor"])
    note_event("image", "tag", image["id"], {"name": short_name(name)})

def inspect_image(text):
    """What is known of an image, in docker's words."""
    image = find_image(text)
    names = [ref_name(entry) for entry in read_index() if entry["digest"] == image["digest"]]
    config = image["config"]
    return {"Id": image["id"], "RepoTags": [short_name(name) for name in names if name],
            "Digest": image["digest"], "Created": config.get("created"),
            "Author": config.get("author", ""), "Architecture": config.get("architecture"),
            "Variant": config.get("variant", ""), "Os": config.get("os"),
            "Config": config.get("config"), "History": config.get("history"),
            "Size": sum(layer["size"] for layer in image["layers"]),
            "RootFS": {"Type": "layers", "Layers": image["diff_ids"]}}

@command("[OPTIONS]", "remove the images that have no name and that no container uses",
         ("-a --all", "", "also those with a name"), PRUNE_FILTER,
         ("-f --force", "", "without asking, as always"))
def cmd_image_prune(options, _):
    sweep_containers()
    before = tree_size(state_path("images")) + tree_size(state_path("layers"))
    used = {record["image"] for record in container_records()}
    known = {"dangling": lambda *_: True, **prune_filters(image_labels, image_seconds)}
    found = filtered([*stored_images()], options["filter"], known)
    every = options["all"] or {"dangling=false", "dangling=0"} & {*options["filter"]}
    idle = [image["id"] for image in found if image["digest"] not in used
            and (every or not image["name"])]
    each("image prune", dict.fromkeys(idle), prune_image)
    after = tree_size(state_path("images")) + tree_size(state_path("layers"))
    show(f"Total reclaimed space: {humane_size(max(0, before - after))}")

def prune_image(name):
    try:
        return "\n".join(remove_image(name, True))
    except NotFound:  # somebody else was faster
        return ""

STEP_COLUMNS = {"ID": "IMAGE", "CreatedSince": "CREATED", "CreatedBy": "CREATED BY",
                "Size": "SIZE", "Comment": "COMMENT"}

@command("[OPTIONS] IMAGE", "show of which steps an image was made, the last one first",
         ("-q --quiet", "", "ids only"), ("--no-trunc", "", "ids and commands in full"),
         ("--format", "FORMAT", "table, json or a template"), takes=ONE)
def cmd_history(options, words):
    """A row for each step, the last first; those that made a layer have its size."""
    image, rows = find_image(words[0]), []
    sizes = [layer["size"] for layer in image["layers"]]
    for step in image["config"].get("history") or [{} for _ in sizes]:
        size = 0 if step.get("empty_layer") or not sizes else sizes.pop(0)
        text, created = str(step.get("created_by") or ""), str(step.get("created") or "")
        rows.insert(0, {"ID": "<missing>", "CreatedAt": created, "CreatedSince": age_since(created),
                        "CreatedBy": shorten(text, len(text) if options["no-trunc"] else 45)[1:-1],
                        "Size": humane_size(size), "Comment": printable(str(step.get("comment")
                                                                          or ""))})
    if rows:
        rows[0]["ID"] = image["id"] if options["no-trunc"] else image["id"][7:19]
    show_rows(rows, STEP_COLUMNS, "{{.ID}}" if options["quiet"] else options["format"])

def age_since(created):
    """How long ago a time is as an image has it, RFC 3339, or what it says instead of one."""
    import calendar
    try:
        return age_of(calendar.timegm(time.strptime(created[:19], "%Y-%m-%dT%H:%M:%S"))) + " ago"
    except ValueError:
        return created[:19]

@command("CONTAINER", "show what a container has added (A) to its image, changed (C) and deleted "
         "(D)", takes=ONE)
def cmd_diff(_, words):
    record = find_container(words[0])
    path = container_path(record)
    if not record["image"] or os.path.isdir(path + "/copy"):
        raise Failure(f"diff, on {words[0]}: what it writes isn't kept apart from what was there")
    layers = [Descriptor(os.open(layer_path(diff_id), OPEN_DIR))
              for diff_id in dict.fromkeys(reversed(record["layers"]))]
    with Descriptor(os.open(upper_dir(record), OPEN_DIR)) as upper:
        for kind, name in differences(upper, layers, ()):
            show(f"{kind} /{printable('/'.join(name))}")
    for layer in layers:
        os.close(layer)

def differences(fd, layers, above):
    """Yield what a directory of a container's layer changes: (A, C or D, the names that lead
    there).  LAYERS: those below, the top one first."""
    hides = is_opaque(fd)
    for name in sorted({*os.listdir(fd), *(names_below(layers, above) if hides else ())}):
        place = (*above, name)
        info = entry_at(fd, (name,))
        if info is None or is_whiteout(info):
            if is_below(layers, place):
                yield "D", place
            continue
        yield "C" if is_below(layers, place) else "A", place
        if stat.S_ISDIR(info.st_mode):
            with Descriptor(os.open(name, OPEN_CHILD, dir_fd=fd)) as inner:
                yield from differences(inner, layers, place)

def is_opaque(fd):
    """True if a directory of a layer hides what the layers below have there."""
    mark = overlay_mark("opaque")
    return mark in os.listxattr(fd) and os.getxattr(fd, mark) == b"y"

def is_whiteout(info):
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0

def entry_at(fd, names):
    """What is at a place below a directory, no link followed; None if nothing."""
    with tolerate(errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
        with Descriptor(open_in_root(fd, "/" + "/".join(names), os.O_PATH | os.O_NOFOLLOW,
                                     RESOLVE_NO_SYMLINKS)) as place:
            return os.fstat(place)
    return None

def is_below(layers, names):
    """True if the layers have something at that place; the first that says anything counts."""
    for layer in layers:
        for end in range(1, len(names) + 1):
            info = entry_at(layer, names[:end])
            if info is None:
                break
            if is_whiteout(info) or end < len(names) and not stat.S_ISDIR(info.st_mode):
                return False
            if end == len(names):
                return True
            with Descriptor(open_in_root(layer, "/" + "/".join(names[:end]), OPEN_DIR)) as inside:
                if is_opaque(inside) and entry_at(layer, names) is None:
                    return False
    return False

def names_below(layers, names):
    """What the layers have in that directory."""
    found = set()
    for layer in layers:
        with tolerate(errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            with Descriptor(open_in_root(layer, "/" + "/".join(names), OPEN_DIR,
                                         RESOLVE_NO_SYMLINKS)) as inside:
                found.update(os.listdir(inside))
    return found

# ── 37. Speaking to registries ───────────────────────────────────────────────
# OCI distribution-spec 1.1; Docker's registry documentation, "Token Authentication".
#
# What servers say is untrusted, each word with its bounds.  A secret is shown to whom it is for,
# and to nobody that he redirects to (CVE-2020-15157).

ATTEMPTS = 5  # requests in a row that may come to nothing
HOPS = 10  # redirects in a row
LONGEST_WAIT = 60  # seconds, whatever Retry-After says
PIECE = 16 << 20  # bytes of an upload's piece, where a registry wants pieces
ACCEPT = {"Accept": ", ".join((*DOCUMENT_TYPES, "*/*")), "User-Agent": "mydocker"}
HUB = "index.docker.io"  # where docker.io's images are, and what docker's config.json calls it
NO_HEAD = 400, 403, 404, 405, 410, 411, 501  # what a GET may yet be good for
WANTS_PIECES = 404, 405, 411, 413, 415, 416, 501  # answers to an upload in one piece
GENERIC_TYPES = "", "application/json", "application/octet-stream", "text/plain"
REGISTRY_OPTIONS = (
    ("--insecure", "", "trust the registry without https, or with any certificate"),
    ("--cacert", "FILE", "trust also this authority's certificates"))

class Trouble(Failure):
    """One request came to nothing: does that pass, and after how many seconds, if it is said?"""
    def __init__(self, why, hint="", passes=False, after=None, status=0):
        super().__init__(why, hint=hint)
        self.passes, self.after, self.http_status = passes, after, status

class Site:
    """A registry or mirror: how it is spoken to, and what it is shown of who we are."""
    def __init__(self, host, repository, options):
        import re
        address = host.partition("://")[2] or host  # HOST[:PORT], a mirror's with /PREFIX
        user, _, address = address.rstrip("/").rpartition("@")
        self.host = HUB if address == "docker.io" else address
        self.repository, self.auth, self.pushes = repository, "", False
        self.login = login_of(*user.partition(":")[::2]) if user else None
        self.near = bool(re.match(r"(localhost|127(\.\d+){3}|\[::1\])(:|/|$)", address))
        self.insecure, self.schemes = options["insecure"], ["https"]  # the first is in use
        if self.near:
            self.schemes = ["http", "https"]
        elif self.insecure:
            self.schemes = ["https", "http"]
        self.opener = make_opener(options, self.near)

    def base(self):
        return f"{self.schemes[0]}://{self.host}/v2/{self.repository}/".replace("/v2//", "/v2/")

    def answer(self, method, path, headers=(), body=None, allowed=()):
        """The response to a request, tried again after troubles that pass.  PATH is below the
        repository, or a whole URL; BODY a function that makes the bytes or chunks to send."""
        return self.persist(path, lambda: self.request(method, path, headers, body, allowed))

    def persist(self, what, attempt):
        """Attempt something until it succeeds; its last trouble becomes Interrupted."""
        failed = 0
        while True:
            try:
                return attempt()
            except Trouble as trouble:
                failed += 1
                untried = failed == 1 and len(self.schemes) > 1
                if failed == ATTEMPTS or not (trouble.passes or untried):
                    where = what if "://" in what else f"{self.repository}/{what}"
                    raise Interrupted(f"registry {self.host}, on {where.partition('?')[0]:.300}: "
                                      f"{trouble.message}", hint=trouble.hint,
                                      http_status=trouble.http_status) from None
                self.schemes.reverse()  # https where http was wanted, or so
                if trouble.passes:
                    self.wait(trouble, failed)

    def wait(self, trouble, failed):
        if trouble.after is None:
            time.sleep(0.1 * 2 ** failed)
            return
        warn(f"registry {self.host}: {trouble.message}, waiting")
        time.sleep(trouble.after)

    def request(self, method, path, headers=(), body=None, allowed=()):
        """The response to one request, with a token if that is asked for; else raises Trouble."""
        from http.client import responses
        for is_last in (False, True):
            base = self.base()
            url = join_url(base, path)
            secret = self.auth if origin(url) == origin(base) else ""
            response = self.follow(method, url, headers, body, secret)
            status, ours = response.status, origin(response.url) == origin(base)
            if ours and status != 400:  # which is what http gets where https is spoken
                self.schemes = self.schemes[:1]
            if status < 300 or status in allowed:
                return response
            if status != 401 or not ours or is_last or not self.authorize(response):
                break
        hint = f"mydocker login {self.host}" if status in (401, 403) else ""
        if status == 401 and self.login and self.login.get("missing"):
            hint = f"{self.login['missing']}, or: {hint}"
        raise Trouble(f"{status} {responses.get(status, '')}".rstrip(), hint,
                      status in (408, 429) or status >= 500,
                      retry_after(response.headers["Retry-After"]), status)

    def follow(self, method, url, headers=(), body=None, secret=""):
        """The response to a request after redirects; 307 and 308 take the body along (RFC 9110,
        15.4). SECRET is for this server, not for whom it redirects to (CVE-2020-15157)."""
        home = origin(url)
        for _ in range(HOPS):
            response = self.send(method, url, headers, body, secret if origin(url) == home else "")
            place, moved = response.headers["Location"], (301, 302, 303, 307, 308)
            if response.status not in (moved[3:] if body else moved) or not place:
                return response
            url = join_url(url, place)
            if home[0] == "https" and origin(url)[0] != "https" and not self.insecure:
                raise Trouble(f"it redirects to {origin(url)[0]}, not https", "--insecure")
        raise Trouble(f"more than {HOPS} redirects")

    def send(self, method, url, headers, body, secret):
        from http.client import HTTPException
        from urllib.request import Request
        try:
            request = Request(url, body and body(), {**ACCEPT, **dict(headers)}, method=method)
            if secret:
                request.add_header("Authorization", secret)
            return self.opener.open(request, timeout=30)
        except (OSError, HTTPException, ValueError) as error:
            raise trouble_of(error) from None

    def authorize(self, response):
        """Get what a 401 asks for, user and password or a token; False if there is nothing."""
        asked = challenges(response.headers.get_all("WWW-Authenticate") or ())
        if self.login is None:
            self.login = credentials_of(f"{self.host}/{self.repository}".rstrip("/"))
        if "bearer" in asked:
            self.auth = "Bearer " + (self.login.get("registrytoken") or
                                     self.get_token(asked["bearer"], response.url))
        elif "basic" in asked:
            self.auth = basic_auth(self.login)
        return bool(self.auth) and bool(asked)

    def get_token(self, challenge, url):
        """A token from the server that a challenge names: Docker's "Token Authentication", and its
        "OAuth2" where what we have is a refresh token."""
        from urllib.parse import urlencode
        if not challenge.get("realm"):
            raise Failure(f"registry {self.host}: it wants a token, but doesn't say from where")
        realm = join_url(url, challenge["realm"])
        if self.schemes[0] == "https" and origin(realm)[0] != "https":
            raise Failure(f"registry {self.host}: tokens from {realm.partition('?')[0]!r:.200}, "
                          "not by https")
        scopes = challenge.get("scope", "").split()
        if self.repository and (self.pushes or not scopes):
            scopes.append(f"repository:{self.repository}:pull{',push' if self.pushes else ''}")
        scopes = [*dict.fromkeys(scopes)]
        words = {"service": challenge.get("service", ""), "scope": " ".join(scopes)}
        method, body, secret = "GET", None, basic_auth(self.login)
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        if self.login.get("identitytoken"):
            words.update(grant_type="refresh_token", client_id="mydocker",
                         refresh_token=self.login["identitytoken"])
            data = urlencode(words).encode()
            method, body, secret = "POST", lambda: data, ""
        else:
            pairs = [("service", words["service"]), *(("scope", scope) for scope in scopes)]
            realm += ("&" if "?" in realm else "?") + urlencode([pair for pair in pairs if pair[1]])
        answer = self.persist(realm, lambda: self.ask_token(method, realm, headers, body, secret))
        token = answer.get("token") or answer.get("access_token") or ""
        if not is_token(token):
            raise Failure(f"registry {self.host}: its token server gives no token")
        return token

    def ask_token(self, method, realm, headers, body, secret):
        """What the realm's answer holds of a token; Trouble if there is none."""
        from http.client import HTTPException, responses
        response = self.follow(method, realm, headers if body else (), body, secret)
        if response.status != 200:
            hint = f"mydocker login {self.host}" if response.status in (400, 401, 403) else ""
            raise Trouble(f"{response.status} {responses.get(response.status, '')}", hint,
                          response.status == 429 or response.status >= 500,
                          retry_after(response.headers["Retry-After"]))
        try:
            data = response.read(JSON_LIMIT)
        except (OSError, HTTPException, ValueError) as error:
            raise trouble_of(error) from None
        return strings_in(data, ("token", "access_token"), f"registry {self.host}, on its token")

def origin(url):
    """(scheme, host and port) of a URL."""
    scheme, _, rest = url.partition("?")[0].lower().partition("://")
    return scheme, rest.partition("/")[0]

def join_url(base, place):
    """The URL that PLACE, which a server wrote, means on the page BASE."""
    from urllib.parse import urljoin
    try:
        return urljoin(base, place)
    except ValueError:
        raise Failure(f"registry {origin(base)[1]}: it names an address that is none") from None

def challenges(lines):
    """What WWW-Authenticate headers ask for: {scheme: {key: value}}, RFC 9110, 11.6.1.  There may
    be several in a line, keys in any case, and values without quotes."""
    import re
    asked, values = {}, {}
    for line in lines:
        for name, equals, value in re.findall(
                r"""([\w!#$%&'*+.^`|~-]+)(?:\s*(=)\s*("(?:[^"\\]|\\.)*"|[^\s,]*))?""", line):
            if not equals:
                values = {}
                asked.setdefault(name.lower(), values)
                continue
            if value.startswith('"'):
                value = re.sub(r"\\(.)", r"\1", value[1:-1])
            values.setdefault(name.lower(), value)
    return asked

def retry_after(text):
    """The seconds that Retry-After means, a number or a date, at most LONGEST_WAIT; or None."""
    import re
    from email.utils import parsedate_tz, mktime_tz
    text = (text or "").strip()
    if re.fullmatch("[0-9]+", text):
        return LONGEST_WAIT if len(text) > 9 else min(int(text), LONGEST_WAIT)
    try:
        date = parsedate_tz(text)
        return max(0, min(mktime_tz(date) - time.time(), LONGEST_WAIT)) if date else None
    except (ValueError, OverflowError, TypeError):
        return None

def told_digest(headers):
    """The sha256 that Docker-Content-Digest tells, or "": some leave it out, or have another."""
    import re
    digest = (headers["Docker-Content-Digest"] or "").strip().lower()
    return digest if re.fullmatch("sha256:[0-9a-f]{64}", digest) else ""

def trouble_of(error):
    """The Trouble that an error of the network's is: why, a hint, whether another try may help."""
    if isinstance(getattr(error, "reason", None), OSError):  # an URLError
        error = error.reason
    if isinstance(error, OSError):
        why = reason(error)
    elif isinstance(error, ValueError):
        why = "an address or header that can't be used"  # it would show it
    else:
        why = repr(error)[:200]
    hint = "--cacert FILE, or --insecure" if "CERTIFICATE_VERIFY" in why else ""
    final = type(error).__name__ in ("ConnectionRefusedError", "gaierror") or isinstance(
        error, ValueError)
    return Trouble(why, hint, not (hint or final))

# The way there: TLS, proxies, early answers

def make_opener(options, near):
    """An opener of URLs by http and https that follows no redirects and raises no statuses."""
    import http.client, ssl, urllib.request
    trust = ssl.create_default_context()  # it knows SSL_CERT_FILE and SSL_CERT_DIR
    trust.verify_flags &= ~ssl.VERIFY_X509_STRICT  # 3.13's: few private authorities meet it
    if options["cacert"]:
        with blame(f"--cacert, on {options['cacert']}"):
            trust.load_verify_locations(options["cacert"])
    if options["insecure"]:
        trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE

    def patient(connection):
        """A connection that reads an answer, such as a redirect, also before all is sent."""
        class Patient(connection):
            def request(self, *words, **more):
                try:
                    super().request(*words, **more)
                except (BrokenPipeError, ConnectionResetError):
                    if not self.sock:  # it didn't come to that
                        raise
        return Patient

    class Http(urllib.request.HTTPHandler):
        def http_open(self, request):
            return self.do_open(patient(http.client.HTTPConnection), request)

    class Https(urllib.request.HTTPSHandler):
        def https_open(self, request):
            return self.do_open(patient(http.client.HTTPSConnection), request, context=trust)

    class Proxy(urllib.request.ProxyHandler):
        def proxy_open(self, request, proxy, type):
            if bypasses_proxy(request):
                return None
            return super().proxy_open(request, proxy, type)

    opener = urllib.request.OpenerDirector()
    for handler in (Proxy({} if near else None), urllib.request.UnknownHandler(), Http(),
                    Https(context=trust)):
        opener.add_handler(handler)
    return opener

def bypasses_proxy(request):
    """True if no_proxy has the host: by name, domain, address, network (CIDR), each perhaps with a
    port.  urllib knows some of these only."""
    import ipaddress
    from urllib.parse import urlsplit
    place = urlsplit(request.full_url)
    host, port = (place.hostname or "").rstrip("."), place.port or 443
    if not place.port and place.scheme == "http":
        port = 80
    for entry in (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(","):
        entry = entry.strip().lower()
        name, colon, number = entry.rpartition(":")
        if colon and to_number(number) is not None and ("]" in name or ":" not in name):
            if number != str(port):
                continue
            entry = name
        entry = entry.strip("[]").lstrip("*")
        if entry and (host == entry.lstrip(".") or host.endswith("." + entry.lstrip("."))):
            return True
        try:
            if ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False):
                return True
        except ValueError:  # one is a name
            pass
    return False

# Who we are: docker's config.json, ours too

def strings_in(data, keys, what):
    """The strings at KEYS of a JSON object, which may be bytes; no message shows one."""
    import json
    try:
        found = json.loads(data) if isinstance(data, bytes) else data
    except (ValueError, RecursionError):
        raise Failure(f"{what}: bad JSON") from None
    if not isinstance(found, dict):
        raise Failure(f"{what}: not an object of JSON")
    for key in keys:
        if not isinstance(found.get(key) or "", str):
            raise Failure(f"{what}: {key}: not a string")
    return {key: found[key] for key in keys if found.get(key)}

def is_token(text):
    """True for what can stand in a header: visible ASCII."""
    return bool(text) and text.isascii() and text.isprintable() and " " not in text

def login_of(user, password):
    from urllib.parse import unquote
    return {"username": unquote(user), "password": unquote(password)}

def basic_auth(login):
    """The Authorization of a user and password, or "" where there is none: RFC 7617."""
    import base64
    if not login.get("username"):
        return ""
    pair = f"{login['username']}:{login.get('password', '')}"
    return "Basic " + base64.b64encode(encode(pair)).decode()

def config_json():
    """The path of docker's config.json, and what it holds.  The directory may be another user's: no
    link of his is followed, and nothing of it but a file is read."""
    import json
    folder = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    path, config = os.path.join(folder, "config.json"), {}
    try:
        with open(open_named(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY), "rb") as file:
            path = os.readlink(f"/proc/self/fd/{file.fileno()}")  # where our own link leads
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Failure(f"{path}: not a regular file")
            config = json.loads(file.read(JSON_LIMIT))
    except FileNotFoundError:
        pass  # nobody has logged in
    except (ValueError, RecursionError):
        raise Failure(f"{path}: bad JSON") from None
    if not isinstance(config, dict):
        raise Failure(f"{path}: not an object of JSON")
    for key in ("auths", "credHelpers"):
        if not isinstance(config.get(key) or {}, dict):
            raise Failure(f"{path}: {key}: not an object")
        config[key] = config.get(key) or {}
    return path, config

def auth_place(key):
    """What a key of auths stands for, HOST[:PORT][/NAMESPACE...], however it was written."""
    import re
    place = (key.partition("://")[2] or key).rstrip("/")
    host, slash, path = re.sub("/v[12]$", "", place).partition("/")
    host = host.lower()
    return (HUB if host in ("docker.io", "registry-1.docker.io") else host) + slash + path

def auth_key(host):
    """The key of auths that docker writes for a registry."""
    return f"https://{HUB}/v1/" if host in (HUB, "docker.io", "") else host

def credentials_of(place):
    """Who we are at HOST[/PATH], as {key: value}, by the entry of config.json for most of it, or by
    the helper that is named there; {} for nobody."""
    path, config = config_json()
    auths = {}
    for key, entry in config["auths"].items():
        if auth_place(key) not in auths or key == auth_key(auth_place(key)):
            auths[auth_place(key)] = key, entry
    host, above = place.partition("/")[0], auth_place(place)
    while above not in auths and "/" in above:
        above = above.rpartition("/")[0]
    key, entry = auths.get(above, ("", None))
    found = read_auth(entry or {}, f"{path}: auths, on {key}")
    helper = config["credHelpers"].get(host) or config.get("credsStore")
    if found or not helper:
        return found
    return ask_helper(helper, auth_key(host))

def read_auth(entry, what):
    """An entry of auths as {username, password, identitytoken, registrytoken}, what it has."""
    import base64
    found = strings_in(entry, ("auth", "username", "password", "identitytoken", "registrytoken"),
                       what)
    packed = found.pop("auth", "").strip(" \t\r\n\0")
    try:
        pair = base64.b64decode(packed, validate=True).decode("utf-8", "surrogateescape")
    except ValueError:
        pair = "?"
    user, colon, password = pair.partition(":")
    if packed and not colon:
        raise Failure(f"{what}: auth: not base64 of USER:PASSWORD")
    if packed:
        found.update(username=user, password=password.strip("\r\n\0"))
    for key in ("identitytoken", "registrytoken"):
        found[key] = found.get(key, "").strip()
        if found[key] and not is_token(found[key]):
            raise Failure(f"{what}: {key}: not a token")
    return {key: value for key, value in found.items() if value}

def ask_helper(helper, key):
    """Who we are by docker-credential-HELPER; {"missing": why} if it can't be had."""
    import re, subprocess
    if not isinstance(helper, str) or not re.fullmatch(r"[\w.-]+", helper):
        raise Failure("config.json: credsStore or credHelpers: not a helper's name")
    name = f"docker-credential-{helper}"
    try:
        done = subprocess.run([name, "get"], stdout=subprocess.PIPE, input=encode(key), check=False)
    except OSError as error:
        return {"missing": f"{name}: {reason(error)}"}
    if done.returncode:  # it knows nobody there
        return {}
    found = strings_in(done.stdout, ("Username", "Secret"), name)
    if found.get("Username") == "<token>":
        return {"identitytoken": found.get("Secret", "")}
    return {"username": found.get("Username", ""), "password": found.get("Secret", "")}

def change_auths(host, entry):
    """Put an entry into docker's config.json, or take all out that mean that registry."""
    import json
    path, config = config_json()
    key = auth_key(host)
    for old in [*config["auths"]]:
        if auth_place(old) == auth_place(key):
            del config["auths"][old]
    if entry:
        config["auths"][key] = entry
    if not config["credHelpers"]:
        del config["credHelpers"]
    with blame(f"write, on {path}"):  # with sudo it may be somebody's home
        write_file(path, json.dumps(config, indent=4), like_folder=True)

@command("[OPTIONS] [REGISTRY]", "keep user and password for a registry, in docker's config.json",
         *REGISTRY_OPTIONS, ("-u --username", "USER", "who (default: asks)"),
         ("-p --password", "PASSWORD", "better not: others see it in the list of processes"),
         ("--password-stdin", "", "read the password from standard input (default: asks)"),
         takes=(0, 1))
def cmd_login(options, words):
    """What was typed is kept when the registry has accepted it, not before."""
    import base64
    site = Site("".join(words) or "docker.io", "", options)
    user, password = ask_login(options)
    if not user or ":" in user:
        raise Failure("--username: empty, or with a colon")
    if not password:
        raise Failure("login: the password is empty")
    site.login = {"username": user, "password": password}
    site.answer("GET", "")
    auth = base64.b64encode(encode(f"{user}:{password}")).decode()
    change_auths(site.host, {"auth": auth})
    show("Login Succeeded")

def ask_login(options):
    """User and password, by the options, or by asking on the terminal."""
    import getpass
    user, password = options["username"], options["password"]
    if password is not None:
        warn("Using --password via the CLI is insecure. Use --password-stdin.")  # docker's words
        if options["password-stdin"]:
            raise Failure("--password, with --password-stdin: only one of them")
    if options["password-stdin"]:
        if not user:
            raise Failure("--password-stdin: it needs --username")
        with open(0, encoding="utf-8", errors="surrogateescape", closefd=False) as file:
            return user, file.read(SMALL_FILE).rstrip("\r\n")
    if not (user and password is not None or os.isatty(0)):
        raise Failure("login: standard input is no terminal to ask on",
                      hint="--username USER --password-stdin")
    user = user or input("Username: ")
    return user, getpass.getpass() if password is None else password

@command("[REGISTRY]", "forget user and password for a registry", takes=(0, 1))
def cmd_logout(_, words):
    change_auths("".join(words), None)

# ── 38. Pull and push ────────────────────────────────────────────────────────
# A layer's bytes are kept while they come, in images/pulls/DIGEST, also the lock of whoever is
# fetching it: the next pull goes on where one broke off.  An empty file there, called after a
# manifest, keeps the layers that its pull has finished, until its end or for a week.  Three layers
# at once have a process each: they use all processors, and can be killed whatever they wait for.

PULL_OPTIONS = (*REGISTRY_OPTIONS, ("--registry-mirror", "HOST[:PORT]...",
                "ask there first for docker.io's images (default: MYDOCKER_MIRRORS)"))
offer("run", *PULL_OPTIONS,
      ("--pull", "WHEN", "fetch the image if it's missing (the default), always or never"),
      ("--platform", "OS/ARCH[/VARIANT]", "an image of this platform, not the host's own"),
      ("-q --quiet", "", "say nothing while the image is fetched"))

class Registry:
    """A repository at a registry, and at the mirrors that are asked before it."""
    def __init__(self, host, repository, options, mirrors=()):
        self.sites = [Site(place, repository, options) for place in (*mirrors, host)]
        self.repository, self.documents = repository, {}  # {digest: bytes}

    def answer(self, *words, **more):
        """The response to a request, of the first site that gives one; who fails isn't asked again.
        See Site.answer."""
        while True:
            try:
                return self.sites[0].answer(*words, **more)
            except Failure:
                if len(self.sites) == 1:
                    raise
                self.sites.pop(0)

    def find(self, reference):
        """The descriptor of the document that a tag or a digest means, by its own bytes.

        HEAD spares the GET of one that is here (and a share of the hub's limit); no answer of it is
        believed further: many registries lack it, or its headers."""
        head = self.answer("HEAD", "manifests/" + reference, allowed=NO_HEAD)
        digest = told_digest(head.headers)
        if head.status == 200 and digest and os.path.exists(blob_path(digest)):
            data = b"".join(read_member(state_path("images"), blob_member(digest)))
        else:
            head = self.answer("GET", "manifests/" + reference)
            data, digest = self.read_whole(head, reference), told_digest(head.headers)
        descriptor = describe_document(data, head.headers.get_content_type(), reference)
        known = reference.lower() if ":" in reference else digest
        if known not in ("", descriptor["digest"]):
            raise Failure(f"image, on {reference}: cut off, damaged or forged: not {known:.100}, "
                          f"but {descriptor['digest']}")
        self.documents[descriptor["digest"]] = data
        return descriptor

    def read_whole(self, response, reference):
        """A document's bytes, if they aren't too many and all come."""
        from http.client import HTTPException
        data = b""
        try:
            while len(data) <= JSON_LIMIT and (chunk := response.read(CHUNK)):
                data += chunk
        except (OSError, HTTPException, ValueError) as error:
            raise Interrupted(f"registry {self.sites[0].host}, on {self.repository}/manifests/"
                              f"{reference}: {trouble_of(error).message}") from None
        if len(data) > JSON_LIMIT:
            raise Failure(f"image, on {reference}: larger than {humane_size(JSON_LIMIT)}")
        return data

    def read(self, descriptor, passed=0):
        """Yield a blob or document from byte PASSED on, over as many connections as it takes."""
        digest, size, idle = descriptor["digest"], descriptor["size"], 0
        if digest in self.documents:
            yield self.documents[digest]
            return
        if not passed and os.path.exists(blob_path(digest)):
            yield from read_member(state_path("images"), blob_member(digest))
            return
        kind = "manifests" if descriptor.get("mediaType") in DOCUMENT_TYPES else "blobs"
        while passed < size and idle < ATTEMPTS:
            begin = passed
            for chunk in self.read_once(f"{kind}/{digest}", passed):
                passed += len(chunk)
                yield chunk
            idle = 0 if passed > begin else idle + 1
            if idle == ATTEMPTS and len(self.sites) > 1:
                self.sites.pop(0)
                idle = 0
        if idle:
            raise Interrupted(f"registry {self.sites[0].host}, on {self.repository}/{kind}/{digest}"
                              f": breaks off at byte {passed} of {size}")

    def read_once(self, path, passed):
        """Yield what one connection gives of a file, from byte PASSED on."""
        from http.client import HTTPException
        headers = {"Range": f"bytes={passed}-"} if passed else {}
        response = self.answer("GET", path, headers)
        skip = 0 if response.status == 206 else passed  # 200: it starts from the beginning
        while True:
            try:
                chunk = response.read1(CHUNK)
            except (OSError, HTTPException, ValueError):  # it breaks off
                return
            if not chunk:
                return
            if len(chunk) > skip:
                yield chunk[skip:]
            skip = max(0, skip - len(chunk))

def describe_document(data, kind, what):
    """The descriptor of a manifest or index that a registry calls a KIND."""
    import hashlib
    if kind in GENERIC_TYPES:  # so the document's own word counts
        document = parse_json(data, what, MANIFEST)
        kind = document.get("mediaType") or DOCUMENT_TYPES[0 if "manifests" in document else 2]
    if kind not in DOCUMENT_TYPES:
        raise Failure(f"image, on {what}: not an image: {kind!r:.99}")
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    return {"digest": digest, "size": len(data), "mediaType": kind}

# Layers side by side

def in_parallel(jobs, show_note):
    """Do {title: job}, three at a time, each in a process of its own; SHOW_NOTE gets what they note
    and, at the end, True. The first failure ends them all."""
    todo, running = [*jobs.items()][::-1], {}  # {channel: (title, pid)}
    try:
        while todo or running:
            while todo and len(running) < 3:
                title, job = todo.pop()
                channel, pid = start_job(job)
                running[channel] = title, pid
                show_note(title, 0)
            for channel in select.select([*running], [], [])[0]:
                (title, pid), said = running[channel], receive(channel)[0]
                if said is None:  # it has ended
                    del running[channel]
                    if os.waitpid(pid, 0)[1]:
                        raise Failure(f"{title}: its process was killed")
                    said = True
                if isinstance(said, tuple):
                    raise Failure(*said)
                show_note(title, said)
    finally:
        for _, pid in running.values():
            os.kill(pid, _signal.SIGKILL)
            os.waitpid(pid, 0)

def start_job(job):
    """Start a process that does a job; returns the channel to hear it by, and its pid."""
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    pid = os.fork()  # to do it beside us
    if pid == 0:
        do_job(job, theirs)
    theirs.close()
    return ours, pid

def do_job(job, channel):
    """In a process of its own: do a job, send what it notes, and why it failed."""
    try:
        prctl(PR_SET_PDEATHSIG, _signal.SIGKILL, 0, 0, 0)
        _signal.signal(_signal.SIGINT, _signal.SIG_IGN)  # the parent gets it, too, and kills us
        job(lambda note: send(channel, note))
        os._exit(0)
    except Exception as error:
        send(channel, describe(error, "layer"))
    finally:
        os._exit(1)

class Progress:
    """On stderr, what layers are done, and on a terminal how far the others are."""
    def __init__(self, image, quiet):
        self.sizes = {layer["digest"]: layer["size"] for layer in image["layers"]}
        self.quiet, self.live = quiet, {}  # {digest: (since when, how many bytes)}

    def show_note(self, digest, note, done="unpacked"):
        """NOTE: how many bytes of a layer have come, or True: it is DONE."""
        text = f"\033[{len(self.live)}A\033[J" if self.live else ""  # back over the living lines
        if not sys.stderr.isatty():
            text = ""
        if note is True:
            self.live.pop(digest, None)
            text += f"{digest[7:19]}: {done}, {humane_size(self.sizes[digest])}\n"
        else:
            begin = self.live.get(digest, (time.monotonic(), 0))[0]
            self.live[digest] = begin, note
        if sys.stderr.isatty():
            text += "".join(map(self.line, self.live))
        if text and not self.quiet:
            print(end=text, file=sys.stderr, flush=True)

    def line(self, digest):
        (begin, passed), size = self.live[digest], self.sizes[digest]
        far = how_far(passed, size, time.monotonic() - begin)
        return f"{digest[7:19]}: {far} of {humane_size(size)}\n"

# Pull and push

def check_pull(options):
    """When to fetch an image, of missing, always or never."""
    when = given(options, "pull", "missing")
    if when not in ("missing", "always", "never"):
        raise Failure(f"--pull, on {as_typed(when)}: not missing, always or never")
    return when

def find_or_pull(text, options):
    """The image that TEXT names, fetched first if --pull has it so."""
    when = check_pull(options)
    wanted = options.get("platform")
    try:
        if when != "always":
            image = find_image(text)
            if not wanted or is_of_platform(image, wanted):
                return image
            if when == "never":
                raise Failure(f"--platform, on {wanted}: {text} is of another one")
    except NotFound:
        if when == "never":
            raise
    import gc
    gc.enable()  # see QUICK
    pull(text, options, options.get("quiet", False))
    return find_image(text)

def pull(text, options, quiet=False):
    """Fetch an image, or what isn't here of it; returns the digest that its name stands for."""
    name, wanted = full_name(text), options.get("platform")
    host, repository, reference = name_parts(name)
    mirrors = ()
    if host == "docker.io":
        mirrors = options["registry-mirror"] or os.environ.get("MYDOCKER_MIRRORS", "").split()
    registry = Registry(host, repository, options, mirrors)
    with ImageAdder(using_images()):
        top = registry.find(reference)
        image = read_image(registry, top, wanted)
        if wanted and image["digest"] == top["digest"]:  # no index had to choose
            choose_platform([{"platform": image["config"]}], text, wanted)
        for document in image["raw"]:
            store_blob(document)
        if not quiet:
            print_line(f"{reference}: pulling from {host}/{repository}")
        mark = state_path("images", "pulls", image["digest"][7:])
        write_file(mark, "")
        store_layers(image, registry, Progress(image, quiet).show_note)
        name_image(name, image["descriptor"])
        unlink_if_there(mark)
    note_event("image", "pull", short_name(name), {"name": short_name(name)})
    return top["digest"]

@command("[OPTIONS] NAME[:TAG|@DIGEST]", "fetch an image from a registry", *PULL_OPTIONS,
         ("--platform", "OS/ARCH[/VARIANT]", "of this platform, not the host's own"),
         ("-q --quiet", "", "print the digest only"), takes=ONE)
def cmd_pull(options, words):
    show(pull(words[0], options, options["quiet"]))

def fetch_layer(registry, descriptor, diff_id, note):
    """Fetch a layer and unpack it meanwhile, if no other pull has been faster."""
    part = state_path("images", "pulls", descriptor["digest"][7:])
    with hold(part) as lock, open(lock, "r+b", closefd=False) as file:
        if not os.path.exists(part):  # it has its real name
            return
        try:
            store_layer(download(registry, descriptor, file, note), diff_id, descriptor, part)
        except Interrupted:
            raise  # what is there is good
        except Failure:
            file.close()  # the thread that reads ahead adds nothing more
            os.ftruncate(lock, 0)
            raise

def download(registry, descriptor, file, note):
    """Yield a layer's bytes: those that a file has already, then the others, which go there too."""
    yield from iter(lambda: file.read(CHUNK), b"")
    for chunk in registry.read(descriptor, file.tell()):
        file.write(chunk)
        note(file.tell())
        yield chunk
    file.flush()

def push(text, options):
    """Bring an image to its registry, what isn't there of it; returns its digest."""
    name, image = full_name(text), find_image(text)
    if image["name"] != name:
        raise Failure(f"push, on {text}: no image has that name", hint="mydocker tag IMAGE NAME")
    host, repository, reference = name_parts(name)
    site = Site(host, repository, options)
    site.pushes = True
    homes, believed = other_homes(host, repository), []
    print_line(f"{reference}: pushing to {host}/{repository}")
    for blob in ({"digest": image["id"], "size": len(image["raw"][0])}, *image["layers"]):
        if is_there(site, blob["digest"]):
            believed.append(blob)
        else:
            push_blob(site, blob, homes.get(blob["digest"]))
        print_line(f"{blob['digest'][7:19]}: pushed, {humane_size(blob['size'])}")
    try:
        push_manifest(site, reference, image)
    except Interrupted as failure:
        if not believed or failure.http_status not in (400, 404):
            raise
        for blob in believed:  # it said that it had them
            push_blob(site, blob)
        push_manifest(site, reference, image)
    return image["digest"]

@command("[OPTIONS] NAME[:TAG]", "bring an image to its registry", *REGISTRY_OPTIONS, takes=ONE)
def cmd_push(options, words):
    digest, name = push(words[0], options), short_name(full_name(words[0]))
    note_event("image", "push", name, {"name": name})
    show(digest)

def other_homes(host, repository):
    """In which other repository there blobs are, as far as is known: {digest: repository}."""
    homes = {}
    for image in stored_images():
        there, home, _ = name_parts(image["name"])
        if there == host and home != repository:
            homes.update((layer["digest"], home) for layer in image["layers"])
    return homes

def is_there(site, digest):
    """True if a registry says that it has a blob, without a doubt."""
    response = site.answer("HEAD", "blobs/" + digest, allowed=NO_HEAD)
    return response.status == 200 and told_digest(response.headers) in ("", digest)

def push_manifest(site, reference, image):
    document, kind = image["raw"][1], image["descriptor"]["mediaType"]
    site.answer("PUT", "manifests/" + reference, {"Content-Type": kind}, lambda: document)

def push_blob(site, descriptor, home=None):
    """Upload a blob, unless it can be had from another repository there, HOME: in one piece, or in
    pieces where the registry wants them.  distribution-spec, "Pushing blobs"."""
    digest, path = descriptor["digest"], blob_path(descriptor["digest"])
    query = f"?mount={digest}&from={home}" if home else ""
    response = site.answer("POST", "blobs/uploads/" + query, body=lambda: b"")
    if response.status == 201:  # mounted
        return
    if not response.headers["OCI-Chunk-Min-Length"]:
        headers = {"Content-Length": descriptor["size"], "Content-Type": "application/octet-stream"}
        answer = site.answer("PUT", upload_place(response, digest), headers,
                             lambda: read_path(path), WANTS_PIECES)
        if answer.status < 300:
            return
        response = site.answer("POST", "blobs/uploads/", body=lambda: b"")
    place = push_pieces(site, response, path, descriptor["size"])
    site.answer("PUT", upload_place(place, digest), {"Content-Length": 0}, lambda: b"")

def push_pieces(site, response, path, size):
    """Upload a file in pieces, each to the place that the answer before tells; the last answer."""
    wanted = response.headers["OCI-Chunk-Min-Length"] or ""
    piece = PIECE
    if wanted.isascii() and wanted.isdigit():
        piece = size if len(wanted) > 12 else max(PIECE, int(wanted))
    for begin in range(0, size, max(piece, 1)):
        end = min(begin + piece, size)
        headers = {"Content-Length": end - begin, "Content-Range": f"{begin}-{end - 1}",
                   "Content-Type": "application/octet-stream"}
        response = site.answer("PATCH", upload_place(response), headers,
                               lambda begin=begin, end=end: read_range(path, begin, end))
    return response

def read_range(path, begin, end):
    with open(path, "rb") as file:
        file.seek(begin)
        while begin < end:
            chunk = file.read(min(CHUNK, end - begin))
            begin += len(chunk)
            yield chunk

def upload_place(response, digest=""):
    """Where an upload goes on: the Location of an answer, relative to where that came from."""
    place = join_url(response.url, response.headers["Location"] or "").partition("#")[0]
    if digest:
        place += ("&" if "?" in place else "?") + "digest=" + digest
    return place

# ── 39. Build: the file ──────────────────────────────────────────────────────
# A Dockerfile is read line by line: an instruction is a line with those that it goes on in, and the
# here-documents that it names stand behind it.  Nothing in this chapter acts: it makes instructions
# of the text, words of those, and answers what a pattern means.  Docker's "Dockerfile reference".
#
# A new instruction is a function in STEPS, in the next chapter; if it has flags, a row here.

FLAGS = {  # what may stand before an instruction's words, as --FLAG=VALUE
    "FROM": ("platform",), "RUN": ("mount", "network", "security"),
    "COPY": ("from", "chown", "chmod", "link"),
    "ADD": ("chown", "chmod", "link", "checksum", "keep-git-dir"),
    "HEALTHCHECK": ("interval", "timeout", "start-period", "start-interval", "retries")}
SWITCHES = ("link", "keep-git-dir")  # those that need no value

class StepFailure(Failure):
    """An instruction can't be carried out, and the message says which; or no more of them is."""

class Instruction:
    """One instruction of a Dockerfile: its NAME, its flags as [(name, value)], what stands behind
    those, and its here-documents as [(name, is it expanded?, text)]."""
    def __init__(self, file, line, text):
        import re
        self.file, self.line, self.documents, self.flags = file, line, [], []
        self.name, self.rest = re.fullmatch(r"(\S+)\s*(.*)", text.strip(), re.S).groups()
        self.name = self.name.upper()
        self.text = f"{self.name} {' '.join(self.rest.split())}"
        for flag, value, end in iter(self.next_flag, None):
            if flag not in FLAGS[self.name]:
                raise self.no(f"unknown flag --{flag}")
            if value is None and flag not in SWITCHES and flag != "mount":
                raise self.no(f"--{flag} needs a value")
            self.flags.append((flag, value or ""))
            self.rest = self.rest[end:]
    def next_flag(self):
        """The next flag as (name, value, where it ends); None if there is none."""
        import re
        found = None
        if self.name in FLAGS:
            found = re.match(r"""--([a-z][a-z-]*)(?:=((?:"[^"]*"|'[^']*'|[^\s"'])*))?(?:\s+|$)""",
                             self.rest)
        return found and (found[1], found[2], found.end())
    def flag(self, name, default=None):
        return next((value for flag, value in self.flags if flag == name), default)
    def no(self, why, status=125, hint=""):
        return StepFailure(f"build, on {self.file} line {self.line}, {self.name}: {why}", status,
                           hint)
    def list(self):
        """The words of an instruction in its exec form, a list in JSON, or None."""
        if self.rest.startswith("["):
            try:
                return check(plain_texts(from_json(self.rest)), [str], self.name)
            except (ValueError, RecursionError, Failure):
                pass  # docker takes it for a command then
        return None

def read_dockerfile_text(name, chunks):
    """A Dockerfile's text, of the chunks of bytes that it comes in."""
    data = b""
    for chunk in chunks:
        data += chunk
        if len(data) > SMALL_FILE:
            raise Failure(f"build, on {name}: that is too long for a Dockerfile, or it is no tar")
    return data.decode("utf-8", "surrogateescape")

def parse_dockerfile(text, path):
    """The instructions of a Dockerfile, and the character that escapes in it."""
    lines, at = text.lstrip("\ufeff").replace("\r\n", "\n").split("\n"), 0
    for number, line in enumerate(lines, 1):
        if "\0" in line:  # nothing of it could be given to the kernel, nor kept in a config
            raise Failure(f"build, on {path} line {number}: there is a NUL in it")
    escape, found = read_directives(lines, path), []
    while at < len(lines):
        if not lines[at].strip() or lines[at].lstrip().startswith("#"):
            at += 1
            continue
        first = at + 1
        line, at = join_lines(lines, at, escape)
        if not line.strip():
            continue
        step = Instruction(path, first, line)
        for name, tabs, expanded in heredocs_of(step):
            body, at = read_heredoc(lines, at, name, tabs)
            if body is None:
                raise step.no(f"the here-document <<{name} has no end")
            step.documents.append((name, expanded, body))
        found.append(step)
    if not found:
        raise Failure(f"build, on {path}: there is no instruction in it")
    return found, escape

def read_directives(lines, path):
    """The escape character, from the comments at the very top: # escape=`"""
    import re
    escape = "\\"
    for number, line in enumerate(lines, 1):
        found = re.fullmatch(r"#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(.+?)\s*", line)
        if not found:
            break
        if found[1].lower() == "escape":
            escape = found[2]
            if escape not in ("\\", "`"):
                raise Failure(f"build, on {path} line {number}: escape is \\ or `")
    return escape

def join_lines(lines, at, escape):
    """The line AT with those that it goes on in: (text, where the next one is).  Comments and empty
    lines in between don't count."""
    text = lines[at].lstrip()
    at += 1
    while text.rstrip(" \t").endswith(escape):
        text = text.rstrip(" \t")[:-1]
        while at < len(lines) and (not lines[at].strip() or lines[at].lstrip().startswith("#")):
            at += 1
        if at == len(lines):
            break
        text += lines[at]
        at += 1
    return text, at

def heredocs_of(step):
    """The here-documents that an instruction names: [(name, strip tabs?, expand?)]."""
    import re
    rest = step.rest
    if step.name == "ONBUILD":
        name, rest = [*rest.split(None, 1), "", ""][:2]
        if name.upper() not in ("RUN", "COPY", "ADD"):
            return []
    elif step.name not in ("RUN", "COPY", "ADD"):
        return []
    found = re.finditer(r"""'[^']*'|"(?:\\.|[^"\\])*"|\\.|(?:^|(?<=\s))\d*<<(-?)(["']?)"""
                        r"""([^\s<>|;&()"'-][^\s<>|;&()"']*)\2""", rest, re.S)
    return [(match[3], match[1] == "-", not match[2]) for match in found if match[3]]

def read_heredoc(lines, at, name, tabs):
    """A here-document's text, or None if it has no end, and where the next line is."""
    body = []
    while at < len(lines):
        line = lines[at].lstrip("\t") if tabs else lines[at]
        at += 1
        if line == name:
            return "".join(text + "\n" for text in body), at
        body.append(line)
    return None, at

# Words

class Expansion:
    """A text with its variables, ${NAME:-WORD} and the like, filled in as a shell would do it; with
    QUOTES, those go.  Raises ValueError."""
    def __init__(self, text, values, escape, quotes=True):
        self.text, self.values, self.escape, self.quotes, self.at = text, values, escape, quotes, 0
    def word(self, end=""):
        """All up to one of the letters END, or to the text's end, with what its variables mean."""
        out = []
        while self.at < len(self.text) and self.text[self.at] not in end:
            letter = self.text[self.at]
            self.at += 1
            if letter == "$":
                out.append(self.variable())
            elif letter == "'" and self.quotes:
                out.append(self.until("'"))
            elif letter == '"' and self.quotes:
                out.append(self.quoted())
            elif letter == self.escape and self.at < len(self.text):
                kept = "" if self.quotes or self.text[self.at] == "$" else letter
                out.append(kept + self.text[self.at])
                self.at += 1
            else:
                out.append(letter)
        return "".join(out)
    def until(self, end):
        close = self.text.find(end, self.at)
        if close < 0:
            raise ValueError(f"a {end} has no second one")
        piece, self.at = self.text[self.at:close], close + 1
        return piece
    def quoted(self):
        """What stands between two ", of which the first was read."""
        out = []
        while self.at < len(self.text):
            letter = self.text[self.at]
            self.at += 1
            if letter == '"':
                return "".join(out)
            if letter == "$":
                letter = self.variable()
            elif letter == self.escape and self.text[self.at:self.at + 1] in ('"', "$", letter):
                letter = self.text[self.at]
                self.at += 1
            out.append(letter)
        raise ValueError('a " has no second one')
    def variable(self):
        """What stands behind a $."""
        import re
        found = re.compile(r"(\{?)(\w+|[@*#?$!-])").match(self.text, self.at)
        if not found or not found[1] and found[2] in "@*#?$!-":
            if self.text[self.at:self.at + 1] == "{":
                raise ValueError("bad substitution: ${ without a name")
            return "$"
        self.at = found.end()
        name, value = found[2], self.values.get(found[2])
        if not found[1]:
            if name[0].isdigit():
                self.at = found.start() + 1
            return value or ""
        how = re.compile(r"\}|:?[-+?]|##?|%%?|//?").match(self.text, self.at)
        if not how:
            raise ValueError(f"bad substitution of {name}")
        self.at = how.end()
        if how[0] == "}":
            return value or ""
        word = self.word("/}" if "/" in how[0] else "}")
        other = ""
        if "/" in how[0] and self.text[self.at:self.at + 1] == "/":
            self.at += 1
            other = self.word("}")
        if self.text[self.at:self.at + 1] != "}":
            raise ValueError(f"${{{name} has no end")
        self.at += 1
        return changed_value(name, value, how[0], word, other)

def changed_value(name, value, how, word, other):
    """${NAME HOW WORD}, of a VALUE that is None if it isn't set; OTHER: what replaces."""
    if how[-1] in "-+?":
        there = value if how[0] == ":" else value is not None
        if how[-1] == "+":
            return word if there else ""
        if not there and how[-1] == "?":
            raise ValueError(f"{name}: {word or 'it is not set'}")
        return value if there else word
    value = value or ""
    if how[0] == "/":
        import re
        most = 1 if how == "/" else 0  # 0: all
        return re.sub(path_pattern(word, ".*"), lambda _: other, value, count=most)
    from fnmatch import fnmatchcase
    ends = range(len(value) + 1)
    if how in ("##", "%"):
        ends = reversed(ends)  # the longest front; the shortest end
    for end in ends:
        front, back = value[:end], value[end:]
        if how[0] == "#" and fnmatchcase(front, word):
            return back
        if how[0] == "%" and fnmatchcase(back, word):
            return front
    return value

def split_words(text, escape):
    """The words of a text, each with its quotes and escapes."""
    import re
    e = re.escape(escape)
    return re.findall(rf"""(?:'[^']*'|"(?:{e}.|[^"{e}])*"|{e}.|[^\s'"{e}]|['"{e}])+""", text, re.S)

def split_pairs(step, escape):
    """The NAME=VALUE... of ENV and LABEL, or their old form NAME VALUE, as pairs."""
    words = split_words(step.rest, escape)
    if not words:
        raise step.no("a name and a value are missing")
    if "=" not in words[0]:
        name, _, value = step.rest.replace("\t", " ").partition(" ")
        if not value.strip():
            raise step.no(f"{name} has no value")
        return [(name, value.strip())]
    for word in words:
        if "=" not in word or word.startswith("="):
            raise step.no(f"{word} is not NAME=VALUE")
    return [word.partition("=")[::2] for word in words]

def parse_duration(text, step, flag):
    """A duration of Go's, 1m30s, in nanoseconds."""
    duration = nanoseconds_of(text)
    if duration is None:
        raise step.no(f"--{flag}={text} is no duration, such as 30s")
    if duration >= 1 << 63:
        raise step.no(f"--{flag}={text} is longer than a config can say")
    return duration

# Modes

PERMISSIONS = {"u": 6, "g": 3, "o": 0}  # who: how far left of the others' rwx his own stand
SPECIAL = {"u": 0o4000, "g": 0o2000, "o": 0}  # what s means for whom

def parse_mode(text):
    """What 755, or u=rwX,go=rX as for chmod(1), makes of a mode: a function of that; None if the
    text is neither.  Where nobody is named, group and others get no w: the umask is 022."""
    import re
    if re.fullmatch("0*[0-7]{1,4}", text):
        return lambda _: int(text, 8)
    changes = []
    for clause in text.split(","):
        found = re.fullmatch("([ugoa]*)((?:[-+=](?:[rwxXst]*|[ugo]))+)", clause)
        if not found:
            return None
        for sign, what in re.findall("([-+=])([a-zX]*)", found[2]):
            changes.append((found[1], sign, what))
    return lambda mode: changed_mode(mode, changes)

def changed_mode(mode, changes):
    """A file's mode after CHANGES: [(who, one of -+=, what)]."""
    is_directory, mode = stat.S_ISDIR(mode), stat.S_IMODE(mode)
    for who, sign, what in changes:
        runs = "x" in what or "X" in what and (is_directory or mode & 0o111)
        rwx = 4 * ("r" in what) + 2 * ("w" in what) + bool(runs)
        if what in PERMISSIONS:  # as for them
            rwx = mode >> PERMISSIONS[what] & 7
        everybody = not who or "a" in who
        bits, mask = 0, 0
        for one, shift in PERMISSIONS.items():
            if everybody or one in who:
                mask |= 7 << shift | (0 if is_directory else SPECIAL[one])
                bits |= rwx << shift | (SPECIAL[one] if "s" in what else 0)
        if everybody or "o" in who:
            mask |= 0o1000
            bits |= 0o1000 if "t" in what else 0
        if not who:
            bits &= ~0o022
        if sign == "=":
            mode &= ~mask
        mode = mode & ~bits if sign == "-" else mode | bits
    return mode

# Patterns

def path_pattern(text, star="[^/]*"):
    """A regular expression for a pattern of Go's filepath.Match, and ** for any directories."""
    import re
    out, at = "", 0
    while at < len(text):
        letter = text[at]
        at += 1
        if letter == "*" and text[at:at + 1] == "*":
            at += 1
            out += ".*"
            if text[at:at + 1] == "/":
                out, at = out[:-2] + "(?:.*/)?", at + 1
        elif letter == "*":
            out += star
        elif letter == "?":
            out += "[^/]"
        elif letter == "[" and "]" in text[at + 1:]:
            end = text.index("]", at + 1)
            out, at = out + letter_class(text[at:end]), end + 1
        elif letter == "\\" and at < len(text):
            out, at = out + re.escape(text[at]), at + 1
        else:
            out += re.escape(letter)
    return out

def letter_class(text):
    """A regular expression for what stands between [ and ] of a pattern.  A range that runs
    backwards holds nothing, as in Go's and in a shell's."""
    import re
    no, text = text[0] in "!^", text.lstrip("!^")
    letters, at = "", 0
    while at < len(text):
        if text[at + 1:at + 2] == "-" and at + 2 < len(text):
            if text[at] <= text[at + 2]:
                letters += f"{re.escape(text[at])}-{re.escape(text[at + 2])}"
            at += 3
        else:
            letters, at = letters + re.escape(text[at]), at + 1
    if not letters:
        return "." if no else "(?!)"
    return f"[{'^' if no else ''}{letters}]"

class Ignored:
    """What a .dockerignore hides: call it with a path.  The last line that fits a path, or what it
    is in, counts; ! takes it back."""
    def __init__(self, text=""):
        import re
        self.rules = []
        for line in text.lstrip("\ufeff").split("\n"):
            line = line.strip()
            hides = not line.startswith("!")
            if line.startswith("#") or not line.lstrip("!"):
                continue
            line = os.path.normpath(line.lstrip("!").strip()).lstrip("/")
            if line != ".":
                rule = re.compile(rf"{path_pattern(line)}(?:/.*)?", re.S)
                self.rules.insert(0, (rule.fullmatch, hides))
        self.has_exceptions = not all(hides for _, hides in self.rules)
    def __call__(self, path):
        return next((hides for fits, hides in self.rules if fits(path)), False)

def find_paths(root, pattern, ignored):
    """The paths below the directory ROOT that a pattern of COPY's means; there may be none."""
    import re
    found = [""]
    for part in os.path.normpath("/" + pattern).split("/")[1:]:
        if not part:
            continue
        if not set(part) & set("*?[\\"):
            found = [os.path.join(folder, part) for folder in found]
            continue
        fits, folders, found = re.compile(path_pattern(part), re.S).fullmatch, found, []
        for folder in folders:
            with tolerate(errno.ENOENT, errno.ENOTDIR), Descriptor(
                    open_in_root(root, folder or ".", OPEN_DIR)) as fd:
                found += [os.path.join(folder, name) for name in sorted(os.listdir(fd))
                          if fits(name)]
    plain = pattern.strip("/")
    return [path for path in found if is_in_context(root, path, ignored, path != plain)]

def is_in_context(root, path, ignored, is_guess):
    """Is that something to copy?  What is hidden isn't, whatever link leads to it; nor is a link to
    nothing, which is an error if it was a pattern that found it, is_guess."""
    with tolerate(errno.ENOENT, errno.ENOTDIR):
        os.close(open_in_root(root, path or ".", os.O_PATH | os.O_NOFOLLOW))
        place, info = place_in(root, path)
        if (path and ignored(path) or place != "/" and ignored(place[1:])) and not (
                ignored.has_exceptions and info and stat.S_ISDIR(info.st_mode)):
            return False  # of a directory `walk` shows what isn't
        if not info and is_guess:
            raise Failure(f"copy, on {path}: that link leads to nothing")
        return bool(info)
    return False

def walk(fd, top, ignored):
    """Yield (directory's descriptor, name, path, lstat) of all that is in a directory, in the order
    of names, without what is IGNORED; a directory that is, only if something in it is not."""
    for name in sorted(os.listdir(fd)):
        path = f"{top}/{name}" if top else name
        info, hidden = os.stat(name, dir_fd=fd, follow_symlinks=False), ignored(path)
        if not hidden:
            yield fd, name, path, info
        if not stat.S_ISDIR(info.st_mode) or hidden and not ignored.has_exceptions:
            continue
        with Descriptor(os.open(name, OPEN_CHILD, dir_fd=fd)) as inner:
            for row in walk(inner, path, ignored):
                if hidden:
                    yield fd, name, path, info
                    hidden = False
                yield row

# ── 40. Build: config and files ──────────────────────────────────────────────
# These instructions change the config of a stage, or put a layer on it that is made of files, as
# the tar that they are going to be.  Where a path leads in the image is asked of the image, by
# descriptors that no link leads out of; so is where it leads in the context.

DEFAULT_SHELL = "/bin/sh", "-c"

def key_of(*things):
    """What a step and all before it are known by."""
    import hashlib
    return hashlib.sha256(to_json(things).encode()).hexdigest()

# The config

def step_env(stage, step):
    values, old = stage.values(), pairs_of(stage.run.get("Env") or ())
    for name, value in split_pairs(step, stage.build.escape):
        old[stage.build.expand(step, name, values)] = stage.build.expand(step, value, values)
    rows = [f"{name}={value}" for name, value in old.items()]
    check_environment(rows, step.name)
    stage.change(step, Env=rows)

def step_label(stage, step):
    labels = dict(stage.run.get("Labels") or {})
    for name, value in split_pairs(step, stage.build.escape):
        labels[stage.expand(step, name)] = stage.expand(step, value)
    stage.change(step, Labels=labels)

def step_arg(stage, step):
    build = stage.build
    for name, value in build.read_arguments(step, stage.values(), build.globals):
        if value is not None:
            stage.arguments[name] = value
    stage.change(step)

def step_expose(stage, step):
    ports = dict(stage.run.get("ExposedPorts") or {})
    for word in stage.expand(step, step.rest).split():
        span, _, kind = word.partition("/")
        first, _, last = span.partition("-")
        first, last = to_number(first, 1 << 16), to_number(last or first, 1 << 16)
        if None in (first, last) or first > last or kind.lower() not in ("", "tcp", "udp", "sctp"):
            raise step.no(f"{word} is no port, such as 80 or 53/udp")
        ports.update({f"{port}/{kind.lower() or 'tcp'}": {} for port in range(first, last + 1)})
    stage.change(step, ExposedPorts=ports)

def step_volume(stage, step):
    words = step.list()
    if words is None:
        words = split_words(step.rest, stage.build.escape)
    places = {stage.expand(step, word): {} for word in words}
    if not places or "" in places:
        raise step.no("a place is missing")
    stage.change(step, Volumes={**(stage.run.get("Volumes") or {}), **places})

def step_text(key):
    """The function of an instruction whose whole text becomes the config's KEY."""
    def step_it(stage, step):
        value = stage.expand(step, step.rest)
        if not value:
            raise step.no("a value is missing")
        if key == "StopSignal":
            parse_signal(value, step.name)
        stage.change(step, **{key: value})
    return step_it

def step_maintainer(stage, step):
    stage.top["author"] = step.rest
    stage.change(step)

def command_words(stage, step):
    """The command of CMD and the like: a list as it is, a line for the shell."""
    words = step.list()
    if words is None and step.rest:
        words = [*(stage.run.get("Shell") or DEFAULT_SHELL), step.rest]
    return words or []

def step_cmd(stage, step):
    stage.has_command = True
    stage.change(step, Cmd=command_words(stage, step))

def step_entrypoint(stage, step):
    changes = {"Entrypoint": command_words(stage, step)}
    if not stage.has_command:
        changes["Cmd"] = None  # it was meant for the base's entrypoint
    stage.change(step, **changes)

def step_shell(stage, step):
    words = step.list()
    if not words:
        raise step.no('it is a list, ["/bin/bash", "-c"]')
    stage.change(step, Shell=words)

def step_healthcheck(stage, step):
    """What `run` checks a container's health by; the flags are Docker's names in other letters."""
    kind, rest = [*step.rest.split(None, 1), "", ""][:2]
    check_row, step.rest = {}, rest.strip()
    if kind.upper() == "NONE":
        check_row["Test"] = ["NONE"]
    elif kind.upper() == "CMD" and step.rest:
        words = step.list()
        check_row["Test"] = ["CMD", *words] if words else ["CMD-SHELL", step.rest]
    else:
        raise step.no("it is NONE, or CMD and a command")
    for flag, value in step.flags:
        key = "".join(word.capitalize() for word in flag.split("-"))
        if flag == "retries":
            check_row[key] = parse_number(value, "--retries")
        else:
            check_row[key] = parse_duration(value, step, flag)
    stage.change(step, Healthcheck=check_row)

def step_onbuild(stage, step):
    word = "".join(step.rest.split(None, 1)[:1]).upper()
    if not stage.build.knows(word) or word in ("ONBUILD", "FROM", "MAINTAINER"):
        raise step.no(f"{word or 'nothing'} can't be put off")
    text = step.rest + "".join(f"\n{body}{name}" for name, _, body in step.documents)
    stage.change(step, OnBuild=[*(stage.run.get("OnBuild") or []), text])

def step_workdir(stage, step):
    """Change the directory; one that isn't there is a layer, and the user's."""
    word = stage.expand(step, step.rest)
    if not word:
        raise step.no("a directory is missing")
    path = os.path.normpath(os.path.join("/", stage.run.get("WorkingDir") or "", word))
    path = "/" + path.lstrip("/")
    user = stage.run.get("User") or ""
    stage.run["WorkingDir"] = path
    key = stage.key = key_of(stage.key, "WORKDIR", path, user)
    if stage.build.take_cached(stage, key):
        stage.build.progress.cached()
        return
    root = stage.open_root()
    place, info = place_in(root, path)
    if info and not stat.S_ISDIR(info.st_mode):
        raise step.no(f"{path} is not a directory")
    if info:
        stage.note(step, True)
        return
    owner = owner_in(root, user, step) if user else None
    copy = Copying(stage.build, root, owner)
    stage.add_layer(step, key, lambda: as_tar(copy.directories(place)))

# Files

class FileInfo:
    """What a tar's header says of a file, as lstat(2) has it."""
    def __init__(self, info, owner=None, mode=None, moment=None):
        self.st_uid, self.st_gid = owner or (info.st_uid, info.st_gid)
        self.st_mode, self.st_rdev = info.st_mode, info.st_rdev
        self.st_mtime_ns = info.st_mtime_ns if moment is None else moment
        if mode and not stat.S_ISLNK(info.st_mode):
            self.st_mode = stat.S_IFMT(info.st_mode) | mode(info.st_mode)

class Piece:
    """Something that is copied: a path below a directory (a descriptor), what is IGNORED there, and
    whose it becomes, or None for whose it is."""
    def __init__(self, root, path, ignored=None, owner=(0, 0)):
        self.root, self.ignored, self.owner = root, ignored or Ignored(), owner
        self.path, self.info = place_in(root, path)  # the link's, if it is one, as docker has it
        self.path = self.path.lstrip("/")
        self.is_directory = stat.S_ISDIR(self.info.st_mode)
        self.name = os.path.basename(path.rstrip("/"))
    def rows(self):
        """Yield all of it as `walk` does, a directory itself first; paths are below it."""
        if self.is_directory:
            with Descriptor(open_in_root(self.root, self.path or ".", OPEN_DIR)) as fd:
                yield fd, ".", "", self.info
                skip = len(self.path) + 1 if self.path else 0
                for above, name, path, info in walk(fd, self.path, self.ignored):
                    yield above, name, path[skip:], info
            return
        folder, name = os.path.split(self.path)
        with Descriptor(open_in_root(self.root, folder or ".", OPEN_DIR)) as fd:
            yield fd, name, "", self.info

def digest_of(pieces):
    """A digest of all that counts in what is copied: names, kinds, owners, modes, content."""
    import hashlib
    sha256 = hashlib.sha256()
    for piece in pieces:
        sha256.update(b"%d" % piece.is_directory + encode(piece.name))
        for above, name, path, info in piece.rows():
            uid, gid = piece.owner or (info.st_uid, info.st_gid)
            data = b"%b\0%o %d:%d " % (encode(path), info.st_mode, uid, gid)
            if stat.S_ISREG(info.st_mode):
                with Descriptor(os.open(name, OPEN_ENTRY, dir_fd=above)) as fd:
                    data += b"%d " % info.st_size + repr(pack_xattrs(fd)).encode()
                    sha256.update(data)
                    while data := os.read(fd, CHUNK):
                        sha256.update(data)
            elif stat.S_ISLNK(info.st_mode):
                data += encode(os.readlink(name, dir_fd=above))
            elif not stat.S_ISDIR(info.st_mode):
                data += b"%d" % info.st_rdev
            sha256.update(data + b"\0")
    return sha256.hexdigest()

def place_in(root, path, links=0):
    """Where a path below ROOT leads: (the path without links, what stat(2) says of it or None)."""
    path = os.path.normpath("/" + path.lstrip("/"))
    try:
        with Descriptor(open_in_root(root, path)) as fd:
            top, here = os.readlink(f"/proc/self/fd/{root}"), os.readlink(f"/proc/self/fd/{fd}")
            return here[len(top):] or "/", os.fstat(fd)
    except FileNotFoundError:
        above, name = os.path.split(path)
    above, info = place_in(root, above, links)
    if info:
        with Descriptor(open_in_root(root, above)) as fd:
            aim = link_target(fd, name)
        if aim:  # a link that leads to nothing yet
            if links > 40:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            return place_in(root, os.path.join(above, aim), links + 1)
    return os.path.join(above, name), None

def as_tar(pieces):
    """Pieces of a tar as larger ones, each hand-over costs, and its end."""
    from itertools import islice
    pieces = iter(pieces)
    while chunk := b"".join(islice(pieces, 32)):
        yield chunk
    yield bytes(1024)

class Copying:
    """What COPY puts into a stage, as a tar.  A directory that the image has keeps its links: what
    is copied into it goes where they lead."""
    def __init__(self, build, root, owner=None, mode=None):
        self.root, self.owner, self.mode = root, owner, mode
        self.moment, self.new = build.moment, build.created_ns
        self.made, self.links = set(), {}
    def directories(self, path):
        """Yield headers of a directory and of all above: as they are, or new ones."""
        parts = path.strip("/").split("/") if path != "/" else []
        for count in range(len(parts) + 1):
            here = "/".join(parts[:count])
            if here in self.made:
                continue
            self.made.add(here)
            pax = {}
            try:
                with Descriptor(open_in_root(self.root, here or ".", OPEN_DIR)) as fd:
                    info, pax = FileInfo(os.fstat(fd), moment=self.moment), pack_xattrs(fd)
            except FileNotFoundError:
                info = self.new_directory()
            yield tar_header(encode(here or ".") + b"/", b"5", info, pax=pax)
    def new_directory(self):
        return FileInfo(os.fstat(self.root), self.owner or (0, 0), lambda _: 0o755, self.new)
    def pack(self, pieces, place, into):
        """Yield PIECES below PLACE, or as it; INTO: files go into it."""
        for piece in pieces:
            target, info = place_in(self.root, place)
            if not piece.is_directory and (into or info and stat.S_ISDIR(info.st_mode)):
                target = os.path.join(target, piece.name)
                info = self.look(target)
            if info and piece.is_directory != stat.S_ISDIR(info.st_mode):
                kind = "a directory" if piece.is_directory else "a file"
                raise Failure(f"copy, on {place}: {kind} can't replace what is there")
            above = target if piece.is_directory else os.path.dirname(target)
            yield from self.directories(above)  # a new one is nobody's copy, as docker has it
            yield from self.pack_piece(piece, target, bool(info))
    def look(self, path):
        """What lstat(2) says of a path in the image, or None."""
        with tolerate(errno.ENOENT, errno.ENOTDIR), Descriptor(
                open_in_root(self.root, os.path.dirname(path))) as fd:
            return look_at(os.path.basename(path), fd)
        return None
    def pack_piece(self, piece, target, there):
        """Yield one piece; PLACES: where each directory of it goes, and whether that is there."""
        places, self.links = {"": (target, there)}, {}  # a piece may replace another's files
        for above, name, path, info in piece.rows():
            folder, base = os.path.split(path)
            goal, exists = target, there
            if path:
                upper, known = places[folder]
                goal, exists = os.path.join(upper, base), False
                if known:
                    goal, exists = self.merge(goal, info)
            is_directory = stat.S_ISDIR(info.st_mode)
            if is_directory:
                places[path] = goal, exists
            if is_directory and not path:
                continue
            if base.startswith(".wh."):
                warn(f"copy, on {printable(path)}: the name would mean a whiteout, ignoring")
                continue
            if goal.strip("/") not in self.made or not is_directory:
                yield from self.pack_entry(above, name, goal.strip("/"), info, piece)
    def merge(self, goal, info):
        """Where something goes in a directory that the image has, and whether that is there."""
        there = self.look(goal)
        if there and stat.S_ISDIR(info.st_mode):
            goal, found = place_in(self.root, goal)
            if found and not stat.S_ISDIR(found.st_mode):
                raise Failure(f"copy, on {goal}: a directory can't replace a file")
            return goal, bool(found)
        if there and stat.S_ISDIR(there.st_mode):
            raise Failure(f"copy, on {goal}: a file can't replace a directory")
        return goal, False
    def pack_entry(self, above, name, goal, info, piece):
        """Yield one file or directory as a member."""
        target, owner = encode(goal), self.owner or piece.owner
        dressed = FileInfo(info, owner, self.mode, self.moment)
        if stat.S_ISDIR(info.st_mode):
            self.made.add(goal)
            with Descriptor(os.open(name, OPEN_CHILD, dir_fd=above)) as fd:
                yield tar_header(target + b"/", b"5", dressed, pax=pack_xattrs(fd))
            return
        kind = next((kind for kind in KINDS if KINDS[kind] == stat.S_IFMT(info.st_mode)), None)
        if kind is None:
            return  # a socket
        if info.st_nlink > 1:
            first = self.links.setdefault((info.st_dev, info.st_ino), target)
            if first != target:
                yield tar_header(target, b"1", dressed, link=first)
                return
        if kind == b"0":
            with Descriptor(os.open(name, OPEN_ENTRY, dir_fd=above)) as fd:
                size = os.fstat(fd).st_size
                yield from tar_file(target, size, read_extents(fd, b"", [(0, size)]), dressed,
                                    pack_xattrs(fd))
        else:
            link = encode(os.readlink(name, dir_fd=above)) if kind == b"2" else b""
            yield tar_header(target, kind, dressed, link=link)

def owner_in(root, text, step):
    """USER[:GROUP] by the files of an image, as (uid, gid); a number alone is the group's, too."""
    user, _, group = text.partition(":")
    rows = {}
    for path in ("/etc/passwd", "/etc/group"):
        rows[path] = []
        with tolerate(errno.ENOENT, errno.ENOTDIR), Descriptor(open_in_root(root, path)) as fd:
            rows[path] = account_lines(f"/proc/self/fd/{fd}")
    people = [row for row in rows["/etc/passwd"] if len(row) > 5]
    account = None if is_id(user) else find_account(people, user)
    uid, gid = (account[2], account[3]) if account else (user, user)
    if group:
        row = None if is_id(group) else find_account(rows["/etc/group"], group)
        gid = row[2] if row else group
    for number in (uid, gid):
        if not is_id(number):
            raise step.no(f"{text}: there is no {number} in the image")
    return int(uid), int(gid)

def step_copy(stage, step):
    """COPY and ADD: what is copied counts for the key, and is read again for the layer."""
    words, build = step.list() or step.rest.split(), stage.build
    words = [stage.expand(step, word) if "<<" not in word else word for word in words]
    if len(words) < 2:
        raise step.no("it needs what to copy, and where to")
    text = stage.expand(step, step.flag("chmod", ""))
    mode = parse_mode(text) if text else None
    if text and not mode:
        raise step.no(f"--chmod={text} is no mode, such as 755 or u=rwX,go=rX")
    if step.flag("checksum") and any(is_git(word) or "://" not in word for word in words[:-1]):
        raise step.no("--checksum is for what is fetched by http or https")
    pieces = find_pieces(stage, step, words[:-1])
    place, into = words[-1], words[-1].endswith("/") or words[-1] in (".", "..")
    into = into or place.endswith(("/.", "/.."))
    place = os.path.join("/", stage.run.get("WorkingDir") or "", place)
    flags = [stage.expand(step, value) for _, value in step.flags]
    key = key_of(stage.key, step.name, words, flags, [name for name, _ in step.flags],
                 digest_of(pieces))
    if build.take_cached(stage, key):
        build.progress.cached()
        return
    root = stage.open_root()
    if len(pieces) > 1 and not into:
        info = place_in(root, place)[1]
        if not info or not stat.S_ISDIR(info.st_mode):
            raise step.no(f"several things are copied, so {words[-1]} must end with /")
    owner = stage.expand(step, step.flag("chown", "")) or None
    if owner:
        owner = owner_in(root, owner, step)
    copy = Copying(build, root, owner, mode)
    stage.add_layer(step, key, lambda: as_tar(copy.pack(pieces, place, into)))

def find_pieces(stage, step, words):
    """What COPY or ADD is to copy, as Pieces."""
    build, pieces, documents = stage.build, [], {}
    for name, expanded, text in step.documents:
        documents[name] = text
        if expanded:
            documents[name] = build.expand(step, text, stage.values(), quotes=False)
    root, owner, ignored = build.context, (0, 0), build.ignored
    if step.flag("from"):
        root, owner, ignored = stage.find_root(step, step.flag("from")), None, Ignored()
    for word in words:
        name = word.partition("<<")[2].lstrip("-").strip("\"'")
        if "<<" in word and name in documents:
            folder = write_document(build, step, name, documents[name], 0o644)
            pieces.append(Piece(os.open(folder, OPEN_DIR), name))
        elif step.name == "ADD" and is_git(word):
            keep = step.flag("keep-git-dir", "false") in ("", "true", "1")
            pieces.append(Piece(os.open(clone(build, word, keep), OPEN_DIR), ""))
        elif step.name == "ADD" and word.startswith(("http://", "https://")):
            pieces.append(fetch(stage, step, word))
        elif step.name == "ADD" and "://" in word:
            raise step.no(f"{word}: only git, http and https are fetched")
        else:
            found = find_paths(root, word, ignored)
            if not found:
                raise step.no(f"{word}: no such file or directory" + (
                    "" if step.flag("from") else " in the context"))
            found = [Piece(root, path, ignored, owner) for path in found]
            if step.name == "ADD":
                found = [unpacked(build, piece) for piece in found]
            pieces += found
    return pieces

def write_document(build, step, name, text, mode):
    """Write a here-document as a file of its name in a new directory; returns the directory."""
    if "/" in name or name in (".", ".."):
        raise step.no(f"the here-document <<{name} is to be a file, and that is no file's name")
    folder = build.temporary()
    with Descriptor(os.open(folder, OPEN_DIR)) as above, Descriptor(
            os.open(name, OPEN_NEW, mode, dir_fd=above)) as fd:
        write_all(fd, encode(text))
        os.fchmod(fd, mode)
    return folder

def unpacked(build, piece):
    """What is in an archive of the context, or the piece as it is if it is none."""
    if not stat.S_ISREG(piece.info.st_mode):
        return piece
    with Descriptor(open_in_root(piece.root, piece.path, os.O_RDONLY)) as fd:
        kind, chunks = sniff(read_path(os.dup(fd)))
        try:
            next(read_tar(Stream(decompress(kind, chunks))))
        except (Failure, StopIteration, EOFError):
            return piece
        os.lseek(fd, 0, os.SEEK_SET)
        folder = build.temporary("files")
        with Descriptor(os.open(folder, OPEN_DIR)) as into:
            os.fchmod(into, 0o755)
            unpack_layer(decompress(*sniff(read_path(os.dup(fd)))), into, whiteouts="keep")
    return Piece(os.open(folder, OPEN_DIR), "", owner=None)

def fetch(stage, step, url):
    """Download a file for ADD, a Piece; --checksum says what it must be."""
    import hashlib
    from email.utils import parsedate_to_datetime
    build, wanted = stage.build, stage.expand(step, step.flag("checksum", ""))
    name = os.path.basename(url.partition("?")[0].partition("#")[0].partition("://")[2])
    folder = build.temporary()
    path = f"{folder}/{name or 'index'}"
    found, moment = save_url(build, url, path)
    if wanted not in ("", f"sha256:{found}"):
        raise step.no(f"{url}: its sha256 is {found}, not {wanted}")
    os.utime(path, (moment, moment))
    return Piece(os.open(folder, OPEN_DIR), name or "index")

def save_url(build, url, path):
    """Download a file: (its sha256, the time that the server says it is of, or 0)."""
    import hashlib
    from email.utils import parsedate_to_datetime
    site, sha256 = Site(origin(url)[1], "", build.run_options), hashlib.sha256()
    response = site.persist(url, lambda: site.follow("GET", url))
    if response.status != 200:
        raise Failure(f"fetch, on {hide_password(url)}: the server says {response.status}")
    with blame(f"fetch, on {hide_password(url)}"), open(path, "xb") as file:
        os.fchmod(file.fileno(), 0o600)
        while chunk := response.read(CHUNK):
            sha256.update(chunk)
            file.write(chunk)
    try:
        return sha256.hexdigest(), parsedate_to_datetime(
            response.headers["Last-Modified"]).timestamp()
    except (TypeError, ValueError, OverflowError, IndexError):
        return sha256.hexdigest(), 0  # it doesn't say

# ── 41. Build: RUN ───────────────────────────────────────────────────────────
# RUN's container is `run`'s own, with the same walls.  It writes into a directory of ours, which
# becomes the layer.  Its monitor is a process that dies with this one, and the container with it,
# and all that is left then is swept: there is nothing of it on record.

PROXIES = [name for word in ("HTTP", "HTTPS", "FTP", "NO", "ALL") for name in (
    f"{word}_PROXY", f"{word.lower()}_proxy")]  # arguments that need no ARG, and no key has
RUN_MOUNT_KEYS = {  # --mount's words, and what they are called below
    "type": "type", "target": "target", "dst": "target", "destination": "target",
    "source": "source", "src": "source", "from": "from", "id": "id", "mode": "mode", "uid": "uid",
    "gid": "gid", "sharing": "sharing", "size": "size", "required": "required", "env": "env",
    "readonly": "ro", "ro": "ro", "rw": "rw", "readwrite": "rw"}
RUN_MOUNT_MODES = {"cache": "755", "secret": "400", "ssh": "600"}

def step_run(stage, step):
    """Run a command on the stage as it is; what it wrote becomes the layer on top."""
    build, arguments = stage.build, dict(stage.arguments)
    mounts = [value for flag, value in step.flags if flag == "mount"]
    mounts = [parse_run_mount(stage, step, *pair) for pair in enumerate(mounts)]
    words, script = run_words(stage, step)
    network = step.flag("network", "default")
    if network not in ("default", "none", "host"):
        raise step.no(f"--network={network}: not default, none or host")
    if step.flag("security", "sandbox") != "sandbox":
        raise step.no("--security: RUN is confined, always", hint="build --cap-add, --security-opt")
    pieces = [find_piece(stage, step, row) for row in mounts]
    told = [digest_of([piece]) for piece in pieces if piece]
    key = key_of(stage.key, "RUN", words, script, step.flags, sorted(arguments.items()), told)
    if build.take_cached(stage, key):
        build.progress.cached()
        return
    for name in PROXIES:
        if name in build.given:
            arguments.setdefault(name, build.given[name])
    held = []  # locks
    try:
        rows = [mount_for_run(build, step, row, piece, held) for row, piece in zip(mounts, pieces)]
        for row in mounts:
            if row["type"] == "secret" and "env" in row and row["id"] in build.secrets:
                if b"\0" in build.secrets[row["id"]]:
                    raise step.no(f"--mount: a NUL is in the secret {row['id']}: env can't be")
                arguments[row["env"]] = os.fsdecode(build.secrets[row["id"]])
            if row["type"] == "ssh" and row["id"] in build.agents:
                arguments.setdefault("SSH_AUTH_SOCK", row["target"])
        if script:
            rows.append(script_row(build, step, *script))
        folder = run_container(stage, step, words, arguments, [*filter(None, rows)], network)
    finally:
        for lock in held:
            os.close(lock)
    with Descriptor(os.open(folder + "/upper", OPEN_DIR)) as upper:
        if build.moment is not None:
            set_times(upper, build.moment)
        stage.add_layer(step, key, lambda: pack_tree(upper, as_layer=True))

def run_words(stage, step):
    """The command of a RUN; and, where its here-document is a program, that: (name, text)."""
    words, shell = step.list(), [*(stage.run.get("Shell") or DEFAULT_SHELL)]
    if not step.rest:
        raise step.no("a command is missing")
    if words is not None and not step.documents:
        return words, None
    name, _, text = step.documents[0] if step.documents else ("", False, "")
    if len(step.documents) == 1 and step.rest.replace("-", "").strip("<\"'") == name.replace(
            "-", "") and len(step.rest.split()) == 1:
        if text.startswith("#!"):
            return [f"/dev/pipes/{name}"], (name, text)
        return [*shell, text], None
    return [*shell, step.rest + "".join(f"\n{body}{end}" for end, _, body in step.documents)], None

def script_row(build, step, name, text):
    folder = write_document(build, step, name, text, 0o755)
    return mount_row(f"/dev/pipes/{name}", "bind", "rbind", "ro", source=f"{folder}/{name}")

# Mounts

def parse_run_mount(stage, step, number, text):
    """A --mount of RUN's as a dict; NUMBER: how many stand before it."""
    row = {"type": "bind"}
    for field in csv_fields(text):
        key, equals, value = field.partition("=")
        if key not in RUN_MOUNT_KEYS:
            raise step.no(f"--mount={text}: unknown key {key}")
        row[RUN_MOUNT_KEYS[key]] = stage.expand(step, value) if equals else "true"
    if row["type"] not in ("bind", "cache", "tmpfs", "secret", "ssh"):
        raise step.no(f"--mount={text}: type is bind, cache, tmpfs, secret or ssh")
    read_run_numbers(step, row)
    if row["type"] == "secret":
        row.setdefault("id", os.path.basename(row.get("source") or row.get("target") or ""))
        if "env" not in row:
            row.setdefault("target", f"/run/secrets/{row['id']}")
    if row["type"] == "ssh":
        row.setdefault("id", "default")
        row.setdefault("target", f"/run/buildkit/ssh_agent.{number}")
    if not row.get("target") and "env" not in row:
        raise step.no(f"--mount={text}: target is missing")
    if row.get("target"):
        row["target"] = os.path.join("/", stage.run.get("WorkingDir") or "", row["target"])
        if not os.path.normpath(row["target"]).strip("/"):
            raise step.no(f"--mount={text}: target is /, which is the image's")
    return row

def read_run_numbers(step, row):
    """Make numbers of what a --mount says of mode and owner, within what they can be."""
    for key, usual in (("mode", RUN_MOUNT_MODES.get(row["type"])), ("uid", "0"), ("gid", "0")):
        text = row.get(key, usual)
        fits = parse_mode(text) if key == "mode" and text and text.isdigit() else None
        if key != "mode" and is_id(text):
            row[key] = int(text)
        elif fits:
            row[key] = fits(0)
        elif text is not None:
            raise step.no(f"--mount: {key}={text} is no {'mode' if key == 'mode' else 'id'}")

def find_piece(stage, step, row):
    """What a mount shows of the context or of another stage, as a Piece, or None."""
    if row["type"] != "bind" and not (row["type"] == "cache" and row.get("from")):
        return None
    build = stage.build
    root, ignored = build.context, build.ignored
    if row.get("from"):
        root, ignored = stage.find_root(step, row["from"]), Ignored()
    found = find_paths(root, row.get("source") or "/", ignored)
    if len(found) != 1:
        raise step.no(f"--mount: {row.get('source')}: no such file or directory")
    return Piece(root, found[0], ignored, None if row.get("from") else (0, 0))

def mount_for_run(build, step, row, piece, held):
    """The row of the spec for a mount of RUN's; HELD: what to let go of afterwards."""
    kind = row["type"]
    if kind == "tmpfs":
        more = []
        if row.get("size"):
            more = [f"size={parse_size(row['size'], '--mount size')}"]
        return mount_row(row["target"], "tmpfs", "nosuid", "nodev", *more)
    if kind == "secret":
        return secret_row(build, step, row)
    if kind == "ssh":
        return ssh_row(build, step, row, held)
    if kind == "bind":
        source = copied(build, piece)
        return mount_row(row["target"], "bind", "rbind", "rw" if "rw" in row else "ro",
                         source=source)
    name = key_of("cache", row.get("id") or row["target"])
    path = volume_path(name)  # as one without a name: `volume prune` removes it
    if row.get("sharing") == "private":
        path = build.temporary("cache")
    elif not os.path.isdir(path):
        make_volume(path)
        os.chmod(path, row["mode"])
        os.chown(path, row["uid"], row["gid"])
        if piece:
            source = copied(build, piece)
            copy_up(source, path, os.listdir(source))
    if row.get("sharing") == "locked":
        held.append(hold(os.path.dirname(path)))
    cache = mount_row(row["target"], "bind", "rbind", "ro" if "ro" in row else "rw", source=path)
    if row.get("sharing") != "private":
        cache["volume"] = name  # on record, so that nobody prunes it meanwhile
    return cache

def copied(build, piece):
    """A copy of a Piece in a directory that goes with the build; returns its path."""
    folder = build.temporary("copy")
    with Descriptor(os.open(folder, OPEN_DIR)) as into:
        os.fchmod(into, 0o755)
        copy = Copying(build, into)
        unpack_layer(as_tar(copy.pack([piece], "/it", False)), into, whiteouts="keep")
    return folder + "/it"

def parse_secret(text):
    """A --secret argument, as (id, its bytes)."""
    row = dict(field.partition("=")[::2] for field in csv_fields(text))
    name = row.get("id") or os.path.basename(row.get("src") or row.get("source") or "")
    if not name or "/" in name:
        raise Failure(f"build, on --secret {text}: it is id=NAME[,src=FILE] or "
                      "id=NAME,env=VARIABLE")
    path = row.get("src") or row.get("source")
    if row.get("env") or not path:
        variable = row.get("env") or name
        if variable not in os.environ:
            raise Failure(f"build, on --secret {text}: there is no variable {variable}")
        return name, encode(os.environ[variable])
    with blame(f"build, on --secret {text}"), open(path, "rb") as file:
        data = file.read(SMALL_FILE + 1)
    if len(data) > SMALL_FILE:
        raise Failure(f"build, on --secret {text}: {path} is longer than {SMALL_FILE} bytes")
    return name, data

def secret_row(build, step, row):
    """The row that shows a secret, which is nowhere on disk; None if it needn't be there."""
    data = build.secrets.get(row["id"])
    if data is None:
        if row.get("required") in ("true", "1"):
            raise step.no(f"--mount: there is no secret {row['id']}", hint="build --secret")
        return None
    if "target" not in row:
        return None  # it's a variable
    folder = build.temporary("secret")
    mount("tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=700")
    path = folder + "/it"
    with Descriptor(os.open(path, OPEN_NEW, 0o600)) as fd:
        write_all(fd, data)
        os.fchown(fd, row["uid"], row["gid"])
        os.fchmod(fd, row["mode"])
    return mount_row(row["target"], "bind", "rbind", "ro", source=path)

# The container

def run_container(stage, step, words, arguments, rows, network):
    """Run a command in a container on the stage as it is; returns the directory whose "upper" holds
    what it wrote."""
    build, root = stage.build, stage.open_root()
    folder, options = os.path.dirname(build.temporary("upper")), dict(build.run_options)
    with Descriptor(os.open(folder + "/upper", OPEN_DIR)) as upper:
        dress(upper, tar_entry_of(root))
    if network != "default":
        options["network"] = [network]
    env = {**arguments, **pairs_of(stage.run.get("Env") or ())}
    container_id = os.urandom(32).hex()
    path = state_path("containers", container_id)
    plan = {"id": container_id, "path": path, "root": path + "/rootfs", "reference": "",
            "layers": image_layers(stage.image)[::-1] or [build.temporary()], "digest": "",
            "image": {"Env": [f"{name}={value}" for name, value in env.items()],
                      "WorkingDir": stage.run.get("WorkingDir"), "User": stage.run.get("User")},
            "diff_ids": stage.image["diff_ids"], "keep": False, "guard": None}
    plan["network"], plan["wants"] = network_wanted(options, plan)
    spec = make_spec(options, words, plan)
    spec["mounts"][0] = layers_row("/", plan["layers"], folder)  # no copy: what changed is wanted
    spec["mounts"] += rows
    stubs = missing_places(root, spec["mounts"][1:])
    status = watch_container(build, spec, make_record(options, plan, spec))
    if status:
        shown_words = words[-1] if len(words) == 3 else " ".join(words)
        raise step.no(f"{shorten(shown_words, 200)} ended with {status}", status)
    with Descriptor(os.open(folder + "/upper", OPEN_DIR)) as upper:
        remove_stubs(root, upper, stubs)
    return folder

def watch_container(build, spec, record):
    """Start a container in a process of its own and show what it says; returns its status."""
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    end, output = os.pipe()
    monitor = os.fork()  # the container's monitor
    if monitor == 0:
        be_monitor(spec, record, theirs, output)
    theirs.close()
    os.close(output)
    try:
        with open(end, "rb", buffering=0) as file:
            rest = b""
            while chunk := file.read(CHUNK):
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > CHUNK:  # a line without an end
                    lines, rest = [*lines, rest], b""
                for line in lines:
                    build.progress.line(line.decode(errors="replace"))
            if rest:
                build.progress.line(rest.decode(errors="replace"))
        status = exit_status(os.waitpid(monitor, 0)[1])
        monitor = None
    finally:
        if monitor:  # interrupted
            os.kill(monitor, _signal.SIGKILL)
            os.waitpid(monitor, 0)
            sweep_containers()
    message = receive(ours)[0]
    if message:
        raise Failure(*message)
    return status

def be_monitor(spec, record, channel, output):
    """In a process of its own: stay with the container until it ends."""
    try:
        prctl(PR_SET_PDEATHSIG, _signal.SIGKILL, 0, 0, 0)  # the build's end is its end
        for number in (_signal.SIGTERM, _signal.SIGHUP):
            _signal.signal(number, _signal.SIG_DFL)
        for fd in (1, 2):
            os.dup2(output, fd)  # what it says is the build's to show
        state = {"spec": spec, "record": record, "attached": True, "interactive": False}
        os._exit(launch(state, None, None))
    except Exception as error:
        send(channel, describe(error, "build"))
    finally:
        os._exit(125)

def tar_entry_of(fd):
    """A directory as the Entry that would make it."""
    info, entry = os.fstat(fd), Entry()
    entry.uid, entry.gid, entry.mode = info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)
    entry.mtime, entry.pax_headers = info.st_mtime_ns, pack_xattrs(fd)
    return entry

def missing_places(root, rows):
    """The places that a container's mounts need and an image lacks, the deepest first."""
    places = set()
    for row in rows:
        path = place_in(root, row["destination"])[0]
        while path != "/" and not place_in(root, path)[1]:
            places.add(path)
            path = os.path.dirname(path)
    return sorted(places, reverse=True)

def remove_stubs(root, upper, places):
    """Remove what was made for mounts to lie on, and was not used: it is nothing of the image's."""
    for path in places:
        folder, name = os.path.split(path)
        with tolerate(errno.ENOENT, errno.ENOTDIR), Descriptor(
                open_in_root(upper, folder, OPEN_DIR, RESOLVE_NO_SYMLINKS)) as above:
            there = look_at(name, above)
            if there and stat.S_ISDIR(there.st_mode):
                with tolerate(errno.ENOTEMPTY, errno.EEXIST):
                    os.rmdir(name, dir_fd=above)
            elif there and stat.S_ISREG(there.st_mode) and not there.st_size:
                os.unlink(name, dir_fd=above)
            info = place_in(root, folder)[1]
            if info and folder != "/" and not os.listdir(above):  # overlayfs' copy of it alone
                here = os.fstat(above)
                if (here.st_mode, here.st_uid, here.st_gid) == (
                        info.st_mode, info.st_uid, info.st_gid):
                    remove_tree(folder.lstrip("/"), upper)

def set_times(fd, moment):
    """Give all in a directory, and itself, one time."""
    for above, name, _, _ in walk(fd, "", Ignored()):
        os.utime(name, ns=(moment, moment), dir_fd=above, follow_symlinks=False)
    os.utime(fd, ns=(moment, moment))

# What is said

class BuildProgress:
    """What a build says on stderr: docker's plain form, or a living line a step."""
    def __init__(self, options):
        self.quiet, self.number, self.title, self.begun = options["quiet"], 0, "", 0
        self.live = not self.quiet and options["progress"] != "plain" and sys.stderr.isatty()
        self.is_cached, self.said, self.owner = False, [], None

    def say(self, text):
        if not self.quiet:
            print_line(text)

    def begin(self, title, step=None):
        self.number, self.title, self.begun = self.number + 1, title, time.monotonic()
        self.is_cached, self.said, self.owner = False, [], step
        if self.live:
            self.redraw()
        else:
            self.say(f"#{self.number} {title}")
        return self

    step = begin

    def line(self, text):
        self.said = [*self.said[-19:], text]
        if self.live:
            self.redraw(text)
        else:
            self.say(f"#{self.number} {time.monotonic() - self.begun:.3f} {text}")

    def redraw(self, text=""):
        width = os.get_terminal_size(2).columns or 80
        line = f"{self.title} {time.monotonic() - self.begun:.1f}s {text}"
        draw(printable(line)[:width - 1])

    def cached(self):
        self.is_cached = True

    def end(self):
        seconds = f"{time.monotonic() - self.begun:.1f}s"
        if self.live:
            draw("")
            self.say(f"{self.title} {'CACHED' if self.is_cached else seconds}")
        else:
            self.say(f"#{self.number} {'CACHED' if self.is_cached else f'DONE {seconds}'}")

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        """A step is over; what went wrong in it is said with its place in the file."""
        if kind is None:
            self.end()
            return
        if self.live:
            draw("")
        if self.live or self.quiet:
            for line in self.said:
                print_line(line)
        else:
            self.say(f"#{self.number} ERROR")
        if self.owner and isinstance(error, RecursionError):
            raise self.owner.no("directories are nested too deeply") from None
        if self.owner and isinstance(error, (Failure, OSError)) and not isinstance(
                error, StepFailure):
            message, status, hint = describe(error, self.owner.name)
            raise self.owner.no(message, status, hint) from None

# ── 42. Build: git and ssh ───────────────────────────────────────────────────
# What others hold: sources in a repository, which the host's own git fetches, and keys in an agent,
# which RUN may ask to sign.  A repository is an attacker's: git is told to run nothing that it
# names, and to speak to nothing but servers.  So is RUN: its agent is a process of ours, which
# passes on what asks, and nothing that would change what the real one holds.

GIT_ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", "HOME": "/nonexistent",
    "GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "true", "LC_ALL": "C",
    "GIT_ALLOW_PROTOCOL": "https:http:git:ssh",  # no file, no ext: CVE-2022-39253
    "GIT_SSH_COMMAND": "ssh -o BatchMode=yes"}
GIT_INHERITS = ("PATH", "SSH_AUTH_SOCK", "GIT_SSL_CAINFO", "GIT_SSL_CAPATH", *PROXIES)
GIT_SETTINGS = "core.hooksPath=/dev/null", "init.templateDir=", "core.fsmonitor=false"
AGENT_ASKS = 11, 13  # list the keys, sign with one: SSH_AGENTC_... of OpenSSH's PROTOCOL.agent
AGENT_FAILURE = b"\5"
AGENT_MESSAGE = 256 << 10  # bytes at most, as OpenSSH has it
AGENT_TALKS = 64  # that one RUN may have at a time

# git

def is_git(place):
    """Is that the address of a repository?  Docker's rule."""
    import re
    return bool(re.match(r"(git|ssh)://|github\.com/|[\w.-]+@[\w.-]+:|https?://[^#?]+\.git(#|$)",
                         place))

def hide_password(url):
    import re
    return re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", url)

def clone(build, place, keep=False):
    """What is in a repository, URL[#REF[:DIRECTORY]], in a directory of ours; KEEP: its .git,
    too.  Returns the directory's path."""
    import shutil
    url, _, rest = place.partition("#")
    ref, _, inner = rest.partition(":")
    shown = hide_password(place)
    if not shutil.which("git"):
        raise Failure(f"build, on {shown}: there is no git on this host, which would fetch it",
                      hint="clone it elsewhere, and build the directory or a tar of it")
    folder = build.temporary("tree")
    git = git_for(build, folder, url if "://" in url or "@" in url else f"https://{url}", shown)
    fetch_commit(git, ref or "HEAD")
    git("submodule", "-q", "update", "--init", "--recursive", "--depth=1")
    if not keep:
        remove_tree(f"{folder}/.git")
        for top, _, names in os.walk(folder):
            if ".git" in names:  # a submodule's: no repository can hold one itself
                os.unlink(f"{top}/.git")
    with blame(f"build, on {shown}"), Descriptor(os.open(folder, OPEN_DIR)) as top, \
            Descriptor(open_in_root(top, inner or ".", OPEN_DIR)) as fd:
        return os.readlink(f"/proc/self/fd/{fd}")

def git_for(build, folder, url, shown):
    """A function that runs git in a new repository of ours, whose origin is at URL.  All on the
    host see a command's arguments: a password is in a file instead."""
    import re, subprocess
    above, settings = os.path.dirname(folder), [*GIT_SETTINGS]
    env = {name: os.environ[name] for name in GIT_INHERITS if name in os.environ}
    env.update(GIT_ENVIRONMENT)
    if "default" in build.agents:
        env["SSH_AUTH_SOCK"] = build.agents["default"]
    login = re.fullmatch(r"(https?://)([^/@:]*:[^/@]*@)(([^/]*).*)", url)
    if login:
        write_file(f"{above}/login", f"{login[1]}{login[2]}{login[4]}\n")
        settings.append(f"credential.helper=store --file={above}/login")
        url = login[1] + login[3]
    words = ["git", "-C", folder]
    for setting in settings:
        words += ["-c", setting]

    def git(*more):
        with open(f"{above}/said", "wb") as said:
            done = subprocess.run([*words, *more], env=env, stdin=subprocess.DEVNULL,
                                  stdout=said, stderr=said, check=False)
        if done.returncode:
            lines = [line for line in read_text(f"{above}/said").split("\n") if line.strip()]
            fatal = [line for line in lines if line.startswith(("fatal: ", "error: "))]
            raise Failure(f"build, on {shown}: git {more[0]}: "
                          f"{[*fatal, *lines[-1:], f'status {done.returncode}'][0]:.300}")

    git("init", "-q")
    git("remote", "add", "--", "origin", url)
    return git

def fetch_commit(git, ref):
    """Check out REF: a branch, a tag or a commit, alone; all of them where a server gives no such
    thing alone."""
    import re
    try:
        git("fetch", "-q", "--depth=1", "--no-tags", "--", "origin", ref)
    except Failure as failure:
        wanted = "FETCH_HEAD"
        try:
            if re.fullmatch("[0-9a-f]{7,64}", ref):
                git("fetch", "-q", "--tags", "--", "origin", "+refs/heads/*:refs/remotes/origin/*")
                wanted = ref
            else:
                git("fetch", "-q", "--no-tags", "--", "origin", ref)
            git("checkout", "-q", "--detach", wanted)
        except Failure:
            raise failure from None
    else:
        git("checkout", "-q", "--detach", "FETCH_HEAD")

# ssh

def parse_ssh(text):
    """A --ssh argument, as (id, the path of an agent's socket)."""
    name, _, path = text.partition("=")
    path = path or os.environ.get("SSH_AUTH_SOCK", "")
    if not name or not path:
        raise Failure(f"build, on --ssh {as_typed(text)}: there is no SSH_AUTH_SOCK",
                      hint="--ssh default=$SSH_AUTH_SOCK, which sudo doesn't pass on")
    with blame(f"build, on --ssh {text}"):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise Failure(f"build, on --ssh {text}: {path} is no agent's socket",
                          hint="a key is given to an agent: ssh-add, and --ssh default")
    return name, os.path.abspath(path)

def ssh_row(build, step, row, held):
    """The row that shows an agent, and a process that answers there until what is HELD is let go;
    None if it needn't be there."""
    agent = build.agents.get(row["id"])
    if agent is None:
        if row.get("required") in ("true", "1"):
            raise step.no(f"--mount: there is no agent {row['id']}", hint="build --ssh")
        return None
    folder = build.temporary("agent")
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    with Descriptor(os.open(folder, OPEN_DIR)) as fd:
        listener.bind(f"/proc/self/fd/{fd}/it")  # short, wherever the state root is
    os.chown(f"{folder}/it", row["uid"], row["gid"])
    os.chmod(f"{folder}/it", row["mode"])
    listener.listen(AGENT_TALKS)
    theirs, ours = os.pipe()
    if os.fork() == 0:
        be_agent(listener, agent, theirs, ours)
    listener.close()
    os.close(theirs)
    held.append(ours)
    return mount_row(row["target"], "bind", "rbind", "rw", source=f"{folder}/it")

def be_agent(listener, agent, end, ours):
    """In a process of its own: answer RUN for the agent, until the build lets go of END's other
    end."""
    try:
        import threading
        prctl(PR_SET_PDEATHSIG, _signal.SIGKILL, 0, 0, 0)
        for number in (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP):
            _signal.signal(number, _signal.SIG_DFL)
        os.close(ours)
        places = threading.BoundedSemaphore(AGENT_TALKS)
        threading.Thread(target=take_calls, args=(listener, agent, places), daemon=True).start()
        os.read(end, 1)
    finally:
        os._exit(0)

def take_calls(listener, agent, places):
    import socket, threading
    while True:
        places.acquire()
        fd, _ = listener._accept()
        talk = threading.Thread(target=answer_call, daemon=True,
                                args=(socket.socket(fileno=fd), agent, places))
        talk.start()

def answer_call(caller, path, places):
    """Pass a caller's questions on to the agent, and the answers back, one after the other."""
    import socket
    try:
        with tolerate(), caller, socket.socket(socket.AF_UNIX) as agent:
            agent.connect(path)
            while (question := read_agent_message(caller)) is not None:
                answer = AGENT_FAILURE
                if question[:1] and question[0] in AGENT_ASKS:
                    agent.sendall(struct.pack(">I", len(question)) + question)
                    answer = read_agent_message(agent)
                    if answer is None:
                        break
                caller.sendall(struct.pack(">I", len(answer)) + answer)
    finally:
        places.release()

def read_agent_message(channel):
    """The next message, without its length; None at the end, or if that isn't one."""
    header = channel.recv(4, _socket.MSG_WAITALL)
    size = struct.unpack(">I", header)[0] if len(header) == 4 else AGENT_MESSAGE + 1
    if size > AGENT_MESSAGE:
        return None
    data = channel.recv(size, _socket.MSG_WAITALL) if size else b""
    return data if len(data) == size else None

# ── 43. Build ────────────────────────────────────────────────────────────────
# A build is stages, a stage an image on its way.  Each image with a new layer is kept without a
# name, and built/KEY says which it is.  The key is a digest of all that counts: the key of the step
# before, the instruction, what its variables mean, what is in its files, but not their times.  So a
# build that breaks off goes on where it was, and `image prune` forgets it all.
#
# A stage is read by an overlay in a mount namespace of our own.  An instruction is a row in STEPS.

STEPS = {
    "FROM": None, "ADD": step_copy, "ARG": step_arg, "CMD": step_cmd, "COPY": step_copy,
    "ENTRYPOINT": step_entrypoint, "ENV": step_env, "EXPOSE": step_expose,
    "HEALTHCHECK": step_healthcheck, "LABEL": step_label, "MAINTAINER": step_maintainer,
    "ONBUILD": step_onbuild, "RUN": step_run, "SHELL": step_shell,
    "STOPSIGNAL": step_text("StopSignal"), "USER": step_text("User"), "VOLUME": step_volume,
    "WORKDIR": step_workdir}
YEAR_10000 = 253402300800  # seconds: RFC 3339 has no later times, nor has an image's config
BUILD_RUN = (  # what RUN's containers share with run's
    *LIMIT_OPTIONS, PROCESS_LIMITS[1], PROCESS_LIMITS[3], *PULL_OPTIONS,
    ("--add-host", "NAME:IP...", "a line in RUN's /etc/hosts"),
    ("--shm-size", "SIZE", "size of RUN's /dev/shm (default: 64m)"),
    ("--cap-add", "CAP...", "give RUN a capability"), ("--cap-drop", "CAP...", "take one away"),
    ("--security-opt", "OPT...", "for RUN, as run has it"))

@command("[OPTIONS] DIR|TAR|URL|-", "make an image as a Dockerfile says", *BUILD_RUN,
         ("-t --tag", "NAME[:TAG]...", "what the image is to be called"),
         ("-f --file", "FILE", "the Dockerfile, - for standard input (default: the context's "
                               "Containerfile or Dockerfile)"),
         ("--build-arg", "K=V...", "set an ARG; K alone takes the caller's variable"),
         ("--target", "STAGE", "build this stage, not the last"),
         ("--platform", "OS/ARCH[/VARIANT]", "of base images, not the host's own"),
         ("--pull", "", "fetch base images again"), ("--no-cache", "", "do every step anew"),
         ("--label", "K=V...", "add a label"),
         ("--network --net", "NAME", "RUN's network: none, host, bridge or another"),
         ("--secret", "id=ID[,src=FILE|,env=NAME]...", "what RUN --mount=type=secret shows"),
         ("--ssh", "ID[=SOCKET]...", "an agent that RUN --mount=type=ssh may ask to sign"),
         ("--iidfile", "FILE", "write the image's id there"),
         ("--progress", "FORM", "auto or plain"), ("-q --quiet", "", "print the id only"),
         takes=ONE)
def cmd_build(options, words):
    """In mounts of our own, and with the images kept from a sweep until the names are given."""
    if options["progress"] not in (None, "auto", "plain"):
        raise Failure(f"--progress, on {options['progress']}: not auto or plain")
    names = [full_name(name) for name in options["tag"]]
    for number in (_signal.SIGTERM, _signal.SIGHUP):
        _signal.signal(number, stop_build)
    os.unshare(CLONE_NEWNS)  # mounts of the build's own
    leave_chroot()
    mount(None, "/", None, MS_REC | MS_PRIVATE, None)  # what is mounted here the host won't see
    with ImageAdder(using_images()):
        build = Build(options)
        try:
            build.open_context(words[0])
            image_id = build.finish(names)
        except RecursionError:
            raise Failure("build: stages on stages, too deep") from None
        finally:
            build.tidy_up()
    if options["iidfile"]:
        with blame(f"--iidfile, on {options['iidfile']}"):
            write_named(options["iidfile"], image_id)
    show(image_id)

def stop_build(number, _):
    raise StepFailure("build: interrupted", 128 + number)

class Build:
    """One `build`: its context and instructions, its stages, and what is to go at its end."""
    def __init__(self, options):
        self.options = dict(options, platform=checked_platform(options["platform"], "--platform"))
        self.folders, self.done, self.bases = [], {}, {}
        self.known = {entry["digest"] for entry in read_index()}
        self.progress = BuildProgress(options)
        self.run_options, _ = parse_options(row_of("run")[1].values(), [], "build")
        for row in BUILD_RUN:
            self.run_options[long_name(row)] = options[long_name(row)]
        self.run_options["network"] = [*filter(None, [options["network"]])]
        self.run_options.update(pull="always" if options["pull"] else None, hostname="build")
        self.secrets = dict(map(parse_secret, options["secret"]))
        self.agents = dict(map(parse_ssh, options["ssh"]))
        self.given = {}  # arguments
        for text in options["build-arg"]:
            name, equals, value = text.partition("=")
            if equals or name in os.environ:
                self.given[name] = value if equals else os.environ[name]
        self.moment, epoch = None, os.environ.get("SOURCE_DATE_EPOCH")
        seconds = int(time.time())
        if epoch:
            seconds = parse_number(epoch, "SOURCE_DATE_EPOCH")
            if seconds >= YEAR_10000:
                raise Failure(f"SOURCE_DATE_EPOCH, on {epoch}: that is after the year 9999")
            self.moment = seconds * 10**9  # what all files get
        self.created_ns = seconds * 10**9
        self.created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))

    def temporary(self, name=""):
        """A new directory that goes with the build: a sweep would take it, too."""
        self.folders.append(os.path.realpath(temporary_path("layers")))
        os.mkdir(self.folders[-1], 0o700)
        path = os.path.join(self.folders[-1], name).rstrip("/")
        os.makedirs(path, exist_ok=True)
        return path

    def tidy_up(self):
        """Leave nothing but images; what led to one that is gone, goes."""
        for place, *_ in mounts_here()[::-1]:
            if any(place.startswith(folder) for folder in self.folders):
                umount2(place, MNT_DETACH)
        for folder in self.folders:
            remove_tree(folder)
        here = {entry["digest"] for entry in read_index()}
        for name in listing(state_path("built")):
            if "." in name:
                continue  # another build is writing it
            with tolerate(errno.ENOENT):
                if read_json(state_path("built", name))["digest"] not in here:
                    unlink_if_there(state_path("built", name))

    # What is to be built

    def open_context(self, place):
        """Open what COPY copies from, and read what is to be done."""
        wanted, text = self.options["file"], None
        if wanted == "-":
            if place == "-":
                raise Failure("build, on -f -: standard input is the context already")
            wanted, text = "stdin", read_dockerfile_text("stdin", read_path(0))
        inside, folder = not os.path.isdir(place), place
        if inside and (is_git(place) or "://" in place):
            folder, text, place = self.fetch_context(place, text)
        elif inside:
            folder = self.temporary()
            text = text or self.unpack_context(place, folder)
        if text and not wanted:
            wanted = "stdin" if place == "-" else place
        with blame(f"build, on {place}"):
            self.context = os.open(folder, OPEN_DIR)
        if text is None:
            wanted, text = self.read_dockerfile(wanted, place, inside)
        steps, self.escape = parse_dockerfile(text, wanted)
        self.ignored = Ignored(self.read_ignore(wanted, inside))
        own = os.path.relpath(os.path.realpath(state_path()), os.path.realpath(folder))
        self.ignored.rules.insert(0, (lambda path: path == own, True))  # it grows while we copy
        self.split_stages(steps)

    def fetch_context(self, place, text):
        """Fetch a context: (its directory, the Dockerfile's TEXT, what to call it)."""
        shown = hide_password(place)
        with self.progress.step(f"[internal] load {shown}"):
            if is_git(place):
                return clone(self, place), text, shown
            if not place.startswith(("http://", "https://")):
                raise Failure(f"build, on {shown}: only git, http and https are fetched")
            path, folder = f"{self.temporary()}/it", self.temporary()
            save_url(self, place, path)
            return folder, self.unpack_context(path, folder, shown) or text, shown

    def unpack_context(self, place, folder, shown=None):
        """Unpack a context that is a tar; what came from elsewhere, on stdin or as what is SHOWN,
        and is none, is the Dockerfile's text."""
        from itertools import chain
        with blame(f"build, on {shown or place}"):
            kind, chunks = sniff(read_path(0 if place == "-" else place))
        start = next(chunks, b"")
        chunks = chain([start], chunks)
        if kind == "plain" and start[257:262] != b"ustar":
            if place != "-" and not shown:
                raise Failure(f"build, on {place}: neither a directory nor a tar archive")
            return read_dockerfile_text(shown or "stdin", chunks)
        with Descriptor(os.open(folder, OPEN_DIR)) as fd:
            unpack_layer(decompress(kind, chunks), fd, whiteouts="keep",
                         owned_by=(os.geteuid(), os.getegid()))
        return None

    def read_dockerfile(self, wanted, place, inside):
        """The path and the text of the Dockerfile: where -f says, or in the context."""
        for name in [wanted] if wanted else ["Containerfile", "Dockerfile"]:
            if wanted and not inside and os.path.exists(name) and not os.path.isdir(name):
                with blame(f"build, on {name}"):  # it may be a pipe
                    return name, read_dockerfile_text(name, read_path(name))
            with tolerate(errno.ENOENT):
                return name, self.read_context(name)
        raise Failure(f"build, on {wanted or place}: no such file" if wanted else
                      f"build, on {place}: no Containerfile or Dockerfile in it", hint="-f FILE")

    def read_context(self, name):
        with Descriptor(open_in_root(self.context, name)) as fd:
            return read_text(f"/proc/self/fd/{fd}")

    def read_ignore(self, path, inside):
        """The text of what hides files from COPY: the Dockerfile's own, or the context's."""
        own = path + ".dockerignore"
        if not inside and os.path.isfile(own):
            return read_text(own)
        for name in (own, ".containerignore", ".dockerignore"):
            with tolerate(errno.ENOENT, errno.ENOTDIR):
                return self.read_context(name)
        return ""

    def knows(self, name):
        return name in STEPS

    def split_stages(self, steps):
        """Set the values of the ARGs before the first FROM, and the stages, [FROM, step...]."""
        self.globals, self.stages = platform_arguments(self.options["platform"]), []
        for step in steps:
            if step.name not in STEPS:
                raise step.no("there is no such instruction")
            if step.name == "FROM":
                self.stages.append([])
            if self.stages:
                self.stages[-1].append(step)
            elif step.name != "ARG":
                raise step.no("it can't stand before the first FROM")
            else:
                for name, value in self.read_arguments(step, dict(self.globals)):
                    self.globals[name] = value or ""
        if not self.stages:
            raise steps[-1].no("no FROM comes after it")

    def read_arguments(self, step, values, outer=()):
        """Yield what an ARG declares, (name, value): the given value, its own, the OUTER one, or
        None."""
        for word in split_words(step.rest, self.escape):
            name, equals, value = word.partition("=")
            default = self.expand(step, value, values) if equals else dict(outer).get(name)
            yield name, self.given.get(name, default)

    def expand(self, step, text, values, quotes=True):
        try:
            return Expansion(text, values, self.escape, quotes).word()
        except ValueError as why:
            raise step.no(str(why)) from None
        except RecursionError:
            raise step.no("variables in variables, too deep") from None

    def find_stage(self, word, before):
        """The number of the stage, of those BEFORE one, that a name or a number means, or None."""
        for number in reversed(range(before)):
            if stage_name(self.stages[number][0]) == word.lower():
                return number
        return to_number(word, before)

    # Stages

    def finish(self, names):
        """Build the wanted stage, name its image and return the id."""
        target = len(self.stages) - 1
        if self.options["target"]:
            target = self.find_stage(self.options["target"], len(self.stages))
            if target is None:
                raise Failure(f"build, on --target {self.options['target']}: no such stage")
        stage = self.build_stage(target)
        self.progress.begin("exporting to image")
        for text in self.options["label"]:
            name, _, value = text.partition("=")
            stage.run["Labels"] = {**(stage.run.get("Labels") or {}), name: value}
        if stage.pending or self.options["label"] or not stage.descriptor:
            key = key_of(stage.key, "image", self.options["label"])
            if not self.take_cached(stage, key):
                self.store(stage, key)
        for name in names:
            name_image(name, stage.descriptor)
            self.progress.line(f"naming to {name}")
        if not names and stage.descriptor["digest"] not in {row["digest"] for row in read_index()}:
            name_image("", stage.descriptor)  # somebody pruned it meanwhile
        self.progress.end()
        return stage.image_id

    def build_stage(self, number):
        """Build a stage, and before it those that it needs, each once."""
        if number in self.done:
            return self.done[number]
        first, *steps = self.stages[number]
        for word in (word for step in steps for word in sources_of(step)):
            needed = self.find_stage(word, number)
            if needed is not None:
                self.build_stage(needed)
        words = split_words(first.rest, self.escape)
        if len(words) not in (1, 3) or len(words) == 3 and words[1].upper() != "AS":
            raise first.no("it is FROM IMAGE [AS NAME]")
        base = self.expand(first, words[0], self.globals)
        platform = self.expand(first, first.flag("platform", ""), self.globals)
        if not base:
            raise first.no(f"{words[0]} is nothing: no ARG before it has a value")
        below = self.find_stage(base, number)
        if below is not None:
            below = self.build_stage(below)
        label = stage_name(first)
        if not label and len(self.stages) > 1:
            label = f"stage-{number}"
        title = f"{label} {{}}/{len(steps) + 1}".strip()
        with self.progress.step(f"[{title.format(1)}] FROM {base}", first):
            platform = checked_platform(platform, "--platform")
            stage = Stage(self, number, below, base, platform)
            triggers = [parse_dockerfile(text, f"ONBUILD of {base}")[0][0]
                        for text in stage.run.pop("OnBuild", None) or ()]
        for at, step in enumerate([*triggers, *steps], 2 - len(triggers)):
            with self.progress.step(f"[{title.format(max(at, 1))}] {step.text}", step):
                if step.name not in STEPS or step.name in ("FROM", "ONBUILD") and at < 2:
                    raise step.no("there is no such instruction")
                STEPS[step.name](stage, step)
        self.done[number] = stage
        return stage

    def find_base(self, text, platform=""):
        """The image of that name, of that platform if one is said."""
        if (text, platform) not in self.bases:
            wanted = platform or self.options["platform"]
            options = dict(self.run_options, platform=wanted)
            image = find_or_pull(text, options)
            if wanted and not is_of_platform(image, wanted):
                pull(text, options)
                image = find_image(text)
            self.bases[text, platform] = image
        return self.bases[text, platform]

    # The cache

    def take_cached(self, stage, key):
        """Let a stage be at the image that KEY stands for, if that is there."""
        descriptor = None
        with tolerate(errno.ENOENT):
            descriptor = read_json(state_path("built", key))
        if not descriptor or descriptor["digest"] not in self.known or (
                self.options["no-cache"] and key not in self.known):
            return False
        stage.take(read_image(state_path("images"), descriptor), key)
        return True

    def store(self, stage, key, layer=None):
        """Store a stage's image as it is now, with one LAYER more, (descriptor, diff id)."""
        layers, diff_ids = list(stage.image["layers"]), list(stage.image["diff_ids"])
        if layer:
            layers.append(layer[0])
            diff_ids.append(layer[1])
        config = {**stage.image["config"], **stage.top, "config": stage.run,
                  "created": self.created, "rootfs": {"type": "layers", "diff_ids": diff_ids},
                  "history": [*(stage.image["config"].get("history") or ()), *stage.pending]}
        image_id, descriptor = store_documents(to_json(config).encode(), layers)
        if descriptor["digest"] not in self.known:
            name_image("", descriptor)
        write_json(state_path("built", key), descriptor)
        self.known |= {descriptor["digest"], key}
        stage.take({"config": config, "layers": layers, "diff_ids": diff_ids, "id": image_id,
                    "descriptor": descriptor}, key)

class Stage:
    """An image on its way: the last one that was stored, the config as it is by now, the history
    that is pending since, and the key of it all."""
    def __init__(self, build, number, below, base, platform):
        self.build, self.number, self.arguments, self.has_command = build, number, {}, False
        self.root = None  # open_root opens it
        if below:
            self.take(below.image, below.key)
            self.run, self.pending, self.top = dict(below.run), [*below.pending], dict(below.top)
        elif base == "scratch":
            words = (platform or build.options["platform"] or platforms()[0]).split("/")
            words = [word for word in words if word != "linux"]
            config = {**dict(zip(("architecture", "variant"), words)), "os": "linux"}
            self.take({"config": config, "layers": [], "diff_ids": [], "id": "",
                       "descriptor": None}, key_of("scratch", config, build.moment))
        else:
            image = build.find_base(base, platform)
            self.take(image, key_of(image["id"], build.moment))
        check(self.run, {"OnBuild": [str], "Shell": [str]}, f"image, on {base}")
        env = self.run.get("Env") or []
        if "PATH" not in pairs_of(env):
            self.run["Env"] = [f"PATH={DEFAULT_PATH}", *env]

    def take(self, image, key):
        """Be at an image."""
        self.image, self.key, self.pending, self.top = image, key, [], {}
        self.descriptor, self.image_id = image["descriptor"], image["id"]
        self.run = dict(image["config"].get("config") or {})
        if self.root is not None:
            os.close(self.root)
        self.root = None

    def values(self):
        """What variables mean: what ENV says, or else ARG."""
        return {**self.arguments, **pairs_of(self.run.get("Env") or ())}

    def expand(self, step, text):
        return self.build.expand(step, text, self.values())

    def change(self, step, **changes):
        """Take changes of the config, and put them on record."""
        self.run.update(changes)
        self.run = {key: value for key, value in self.run.items() if value is not None}
        self.note(step, True)
        self.key = key_of(self.key, step.name, changes or step.rest)

    def note(self, step, empty=False):
        entry = {"created": self.build.created, "created_by": step.text, "comment": BUILT}
        if empty:
            entry["empty_layer"] = True
        self.pending.append(entry)

    def open_root(self):
        """A descriptor of the stage's root as it is, to read from."""
        if self.root is None:
            self.root = open_layers(self.build, image_layers(self.image)[::-1])
        return self.root

    def find_root(self, step, word):
        """A descriptor of the root of another stage, or of an image."""
        number = self.build.find_stage(self.expand(step, word), self.number)
        if number is not None:
            return self.build.build_stage(number).open_root()
        image = self.build.find_base(self.expand(step, word))
        return open_layers(self.build, image_layers(image)[::-1])

    def add_layer(self, step, key, make_chunks):
        """Put what MAKE_CHUNKS packs on top."""
        layer = store_layer(make_chunks(), strict=True)
        self.note(step)
        self.build.store(self, key, layer)

def open_layers(build, layers):
    """A descriptor of layers, top first, one over the other, read-only."""
    layers = [*layers, build.temporary("empty")]  # overlayfs wants two
    if len(layers) == 1:
        return os.open(layers[0], OPEN_DIR)
    top = build.temporary("root")
    row = mount_row("/", "layers", *[f"lowerdir={path}" for path in layers])
    try:
        mount_layers(top, row, MS_RDONLY, "")
    except OSError:  # overlayfs can't stack them here
        row["source"] = build.temporary() + "/copy"
        os.close(int(os.path.basename(mount_copy(top, row, 0, ""))))
    return os.open(top, OPEN_DIR)

def stage_name(step):
    """The name that a FROM gives its stage, or ""."""
    words = step.rest.split()
    return words[2].lower() if len(words) == 3 else ""

def sources_of(step):
    """The stages or images that an instruction copies from."""
    found = []
    for flag, value in step.flags:
        if flag == "from":
            found.append(value)
        elif flag == "mount":
            found += [field[5:] for field in csv_fields(value) if field.startswith("from=")]
    return found

def platform_arguments(wanted):
    """The arguments that say what is built for, and where."""
    found = {}
    for prefix, text in (("BUILD", platforms()[0]), ("TARGET", wanted or platforms()[0])):
        words = [word for word in text.split("/") if word != "linux"] + [""]
        found.update({f"{prefix}PLATFORM": "/".join(filter(None, ["linux", *words])),
                      f"{prefix}OS": "linux", f"{prefix}ARCH": words[0],
                      f"{prefix}VARIANT": words[1]})
    return found

def checked_platform(text, what):
    """A platform, or "" for this host's, if it can be one: it ends in the config of an image."""
    import re
    if text and not re.fullmatch(r"linux|(linux/)?(?!linux|windows|darwin)[\w.-]+(/[\w.-]+)?", text,
                                 re.ASCII | re.IGNORECASE):
        raise Failure(f"{what}, on {text}: not [linux/]ARCHITECTURE[/VARIANT]")
    return "" if not text or text.lower() == "linux" else text

def is_of_platform(image, wanted):
    config = image["config"]
    return platform_name(*wanted.lower().split("/")) == platform_name(
        "linux", config.get("architecture") or "", config.get("variant") or "")

# ── 44. Netlink ──────────────────────────────────────────────────────────────
# Links, addresses, routes and rules are asked for by netlink(7): a message is a header, a second
# one of its kind, and attributes (u16 length, u16 type, value, padding to 4 bytes), whose value may
# be attributes again.

# linux/netlink.h
NETLINK_ROUTE, NETLINK_NETFILTER, SOL_NETLINK, NETLINK_CAP_ACK = 0, 12, 270, 10
NLMSG_ERROR, NLMSG_DONE, NLA_F_NESTED, NLA_TYPE_MASK = 2, 3, 0x8000, 0x3FFF
NLM_F_REQUEST, NLM_F_ACK, NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 1, 4, 0x100, 0x200, 0x400
NLM_F_APPEND, NLM_F_DUMP = 0x800, 0x300
SO_SNDBUFFORCE = 32  # asm-generic/socket.h

# linux/if.h, linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/veth.h
IFF_UP, RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 1, 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR, RTM_NEWROUTE = 20, 21, 22, 24
RTN_UNICAST, RTN_LOCAL, RTPROT_BOOT, RT_TABLE_MAIN = 1, 2, 3, 254
RTA_OIF, RTA_GATEWAY, IFA_LOCAL = 4, 5, 2
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_LINKINFO = 1, 3, 4, 10, 18
IFLA_IFALIAS, IFLA_NET_NS_FD, IFALIASZ, IFNAMSIZ = 20, 28, 256, 16
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA, IFLA_BRPORT_MODE = 4, 5, 4
MAKE = NLM_F_CREATE | NLM_F_EXCL

def attributes(values, order="="):
    """Netlink attributes of {type: value}, or of a list, each of type 1. A value is bytes, text, a
    u32 in byte ORDER, or attributes again."""
    rows = values.items() if isinstance(values, dict) else [(1, value) for value in values]
    parts = []
    for kind, value in rows:
        if isinstance(value, (dict, list)):
            kind, value = kind | NLA_F_NESTED, attributes(value, order)
        elif isinstance(value, str):
            value = value.encode() + b"\0"
        elif isinstance(value, int):
            value = struct.pack(order + "I", value & 0xFFFFFFFF)
        parts.append(struct.pack("HH", len(value) + 4, kind) + value + bytes(-len(value) % 4))
    return b"".join(parts)

def parse_attributes(data):
    """The attributes in an answer: {type: bytes}; those may be attributes again."""
    found, at = {}, 0
    while at + 4 <= len(data):
        size, kind = struct.unpack_from("HH", data, at)
        found[kind & NLA_TYPE_MASK] = data[at + 4:at + size]
        at += max(size + 3 & ~3, 4)
    return found

def netlink(protocol, what, messages):
    """Send messages (type, flags, body) as one, and wait until all with NLM_F_ACK are done; returns
    the other answers' bodies.  Its OSError names WHAT was being made.  See netlink(7)."""
    packet = b"".join(struct.pack("IHHQ", 16 + len(body), kind, flags | NLM_F_REQUEST, 0) + body
                      for kind, flags, body in messages)
    answers, left = [], sum(1 for _, flags, _ in messages if flags & NLM_F_ACK)
    link = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW, protocol)
    link.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)  # an error needn't repeat the message
    if len(packet) > 1 << 16:
        link.setsockopt(_socket.SOL_SOCKET, SO_SNDBUFFORCE, 2 * len(packet))
    with Descriptor(link.detach()) as fd:
        os.write(fd, packet)
        while left:
            for kind, body in split_messages(os.read(fd, 1 << 16)):
                if kind not in (NLMSG_ERROR, NLMSG_DONE):
                    answers.append(body)
                    continue
                code = struct.unpack_from("i", body)[0]
                if code:
                    error = OSError(-code, os.strerror(-code), what)
                    error.takes = "NET_ADMIN"
                    raise error
                left -= 1  # an acknowledgement is an error, too: number 0
    return answers

netlink.kinds = None, TEXT, BYTES  # --explain shows it, too

def split_messages(data):
    """The messages in what was read at once: [(type, body)]."""
    found, at = [], 0
    while at + 16 <= len(data):
        size, kind = struct.unpack_from("IH", data, at)
        found.append((kind, data[at + 16:at + size]))
        at += size + 3 & ~3
    return found

def packed(address):
    """An IP address, text or number, as the bytes in a packet."""
    if isinstance(address, int):
        return address.to_bytes(4, "big")
    return _socket.inet_pton(_socket.AF_INET, address)

def subnet_range(subnet):
    """The first and the last address of a subnet, 10.9.1.0/24, as numbers."""
    address, _, bits = subnet.partition("/")
    first = int.from_bytes(packed(address), "big")
    return first, first | (1 << 32 - int(bits)) - 1

# Links, addresses and routes

def link_message(name, more={}, flags=0, up=0, kind=RTM_NEWLINK):
    """A message to rtnetlink(7) about the link of that name."""
    head = struct.pack("BxHiII", 0, 0, 0, up, up)
    return kind, NLM_F_ACK | flags, head + attributes({IFLA_IFNAME: name, **more})

def address_message(index, address, bits, kind=RTM_NEWADDR):
    """A message to rtnetlink(7) that gives the link of that index an address, or takes it."""
    head = struct.pack("4BI", _socket.AF_INET, bits, 0, 0, index)
    return kind, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, head + attributes(
        {IFA_LOCAL: packed(address)})

def route_message(index, gateway):
    """A message to rtnetlink(7) that makes a gateway, by the link of that index, the way out."""
    head = struct.pack("8BI", _socket.AF_INET, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, 0, RTN_UNICAST,
                       0)
    return RTM_NEWROUTE, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, head + attributes(
        {RTA_GATEWAY: packed(gateway), RTA_OIF: index})

def read_link(name):
    """What the kernel knows of a link: its index, flags, mac and alias; None if there is none."""
    with tolerate(errno.ENODEV):
        answer = netlink(NETLINK_ROUTE, name, [link_message(name, kind=RTM_GETLINK)])[0]  # is it up
        index, flags = struct.unpack_from("iI", answer, 4)
        found = parse_attributes(answer[16:])
        return {"index": index, "flags": flags, "mac": found.get(IFLA_ADDRESS, b""),
                "alias": os.fsdecode(found.get(IFLA_IFALIAS, b"").rstrip(b"\0"))}
    return None

def has_cables(index):
    """True if a link is plugged into the bridge of that index."""
    dump = RTM_GETLINK, NLM_F_ACK | NLM_F_DUMP, struct.pack("BxHiII", 0, 0, 0, 0, 0)
    links = netlink(NETLINK_ROUTE, "links", [dump])  # who is plugged in
    master = struct.pack("I", index)
    return any(parse_attributes(link[16:]).get(IFLA_MASTER) == master for link in links)

def host_addresses():
    """The IPv4 addresses of all links: [(index, address, bits)]."""
    dump = RTM_GETADDR, NLM_F_ACK | NLM_F_DUMP, struct.pack("4BI", _socket.AF_INET, 0, 0, 0, 0)
    rows = []
    for answer in netlink(NETLINK_ROUTE, "addresses", [dump]):  # which are this host's
        _, bits, _, _, index = struct.unpack_from("4BI", answer)
        address = parse_attributes(answer[8:]).get(IFA_LOCAL)
        if address:
            rows.append((index, _socket.inet_ntop(_socket.AF_INET, address), bits))
    return rows

def bring_up_loopback():
    """Set lo up: 127.0.0.1 works inside, and nothing else does."""
    netlink(NETLINK_ROUTE, "lo", [link_message("lo", up=IFF_UP)])  # the only link it has

# ── 45. The packet filter ────────────────────────────────────────────────────
# The rules are the same for all, in one table.  What differs is in its sets: a network is one
# element in two, a published port is one in a map, a container without ports is none:
#
#   ports     protocol . port of the host : address . port of a container
#   ports_of  the same, with the host's address in front
#   bridges   the name of each, twice, so that "in by this one, out by the same" is an element, too
#   subnets   the addresses that may go out; those of internal networks aren't there
#
# IPv4 is in the table's family, in FIELDS' offsets and in packed(): IPv6 will be a second table of
# the same rules, and a second subnet in a network's file.

# linux/netfilter.h, linux/netfilter/nfnetlink.h
NF_DROP, NF_ACCEPT, NFPROTO_UNSPEC, NFPROTO_INET, NFPROTO_IPV4 = 0, 1, 0, 1, 2
NF_INET_PRE_ROUTING, NF_INET_FORWARD, NF_INET_LOCAL_OUT, NF_INET_POST_ROUTING = 0, 2, 3, 4
NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END = 16, 17
NFNL_SUBSYS_CTNETLINK, NFNL_SUBSYS_NFTABLES = 1, 10

# linux/netfilter/nf_tables.h: messages
NFT_MSG_NEWTABLE, NFT_MSG_DELTABLE, NFT_MSG_NEWCHAIN, NFT_MSG_GETCHAIN = 0, 2, 3, 4
NFT_MSG_NEWRULE, NFT_MSG_GETRULE, NFT_MSG_DELRULE = 6, 7, 8
NFT_MSG_NEWSET, NFT_MSG_NEWSETELEM, NFT_MSG_DELSETELEM = 9, 12, 14

# linux/netfilter/nf_tables.h: attributes of tables, chains, rules, sets and elements
NFTA_ANY_TABLE = 1  # NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE, NFTA_SET_TABLE, ...
NFTA_TABLE_USERDATA = 6
NFTA_CHAIN_NAME, NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY, NFTA_CHAIN_TYPE = 3, 4, 5, 7
NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY = 1, 2
NFTA_RULE_CHAIN, NFTA_RULE_HANDLE, NFTA_RULE_EXPRESSIONS, NFTA_RULE_USERDATA = 2, 3, 4, 7
NFTA_SET_NAME, NFTA_SET_FLAGS, NFTA_SET_KEY_TYPE, NFTA_SET_KEY_LEN = 2, 3, 4, 5
NFTA_SET_DATA_TYPE, NFTA_SET_DATA_LEN, NFTA_SET_ID = 6, 7, 10
NFT_SET_INTERVAL, NFT_SET_MAP, NFT_SET_ELEM_INTERVAL_END = 4, 8, 1
NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_ELEMENTS = 2, 3
NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_DATA, NFTA_SET_ELEM_FLAGS = 1, 2, 3
NFTA_DATA_VALUE, NFTA_DATA_VERDICT, NFTA_VERDICT_CODE = 1, 2, 1

# linux/netfilter/nf_tables.h: expressions, what a rule is made of
NFTA_EXPR_NAME, NFTA_EXPR_DATA, NFT_REG_VERDICT, NFT_REG32_00 = 1, 2, 0, 8
NFTA_ANY_DREG = 1  # NFTA_META_DREG, NFTA_CT_DREG, NFTA_FIB_DREG, NFTA_PAYLOAD_DREG
NFTA_META_KEY, NFT_META_IIFNAME, NFT_META_OIFNAME, NFT_META_L4PROTO = 2, 6, 7, 16
NFTA_CT_KEY, NFT_CT_STATE, NFT_CT_STATUS, IPS_DST_NAT = 2, 0, 2, 1 << 5
NFTA_FIB_RESULT, NFTA_FIB_FLAGS, NFT_FIB_RESULT_ADDRTYPE, NFTA_FIB_F_DADDR = 2, 3, 3, 2
NFTA_PAYLOAD_BASE, NFTA_PAYLOAD_OFFSET, NFTA_PAYLOAD_LEN = 2, 3, 4
NFT_PAYLOAD_NETWORK_HEADER, NFT_PAYLOAD_TRANSPORT_HEADER = 1, 2
NFTA_BITWISE_SREG, NFTA_BITWISE_DREG, NFTA_BITWISE_LEN = 1, 2, 3
NFTA_BITWISE_MASK, NFTA_BITWISE_XOR = 4, 5
NFTA_CMP_SREG, NFTA_CMP_OP, NFTA_CMP_DATA, NFT_CMP_EQ, NFT_CMP_NEQ = 1, 2, 3, 0, 1
NFTA_LOOKUP_SET, NFTA_LOOKUP_SREG, NFTA_LOOKUP_DREG, NFTA_LOOKUP_FLAGS = 1, 2, 3, 5
NFT_LOOKUP_F_INV, NFTA_IMMEDIATE_DREG, NFTA_IMMEDIATE_DATA = 1, 1, 2
NFTA_NAT_TYPE, NFTA_NAT_FAMILY, NFTA_NAT_REG_ADDR_MIN, NFTA_NAT_REG_PROTO_MIN = 1, 2, 3, 5
NFT_NAT_DNAT = 1

# linux/netfilter/nfnetlink_conntrack.h
IPCTNL_MSG_CT_GET, IPCTNL_MSG_CT_DELETE, CTA_TUPLE_ORIG, CTA_ID, CTA_ZONE = 1, 2, 1, 12, 18
CTA_TUPLE_IP, CTA_TUPLE_PROTO, CTA_IP_V4_DST, CTA_PROTO_NUM, CTA_PROTO_DST_PORT = 1, 2, 2, 1, 3
CTA_FILTER, CTA_FILTER_ORIG_FLAGS, CTA_FILTER_REPLY_FLAGS = 25, 1, 2
CTA_FILTER_F_CTA_PROTO_NUM = 1 << 3  # net/netfilter/nf_conntrack_netlink.c

# linux/netfilter_ipv4/ip_tables.h
IPT_SO_GET_INFO, IPT_SO_GET_ENTRIES = 64, 65
PROTOCOLS = {"tcp": _socket.IPPROTO_TCP, "udp": _socket.IPPROTO_UDP}

def meta(key):
    return "meta", {NFTA_META_KEY: key}

def header(base, offset, size):
    return "payload", {NFTA_PAYLOAD_BASE: base, NFTA_PAYLOAD_OFFSET: offset, NFTA_PAYLOAD_LEN: size}

FIELDS = {  # what a rule looks at: (expression, its attributes but the register), 32-bit registers
    "iifname": (meta(NFT_META_IIFNAME), 4),
    "oifname": (meta(NFT_META_OIFNAME), 4),
    "l4proto": (meta(NFT_META_L4PROTO), 1),
    "state": (("ct", {NFTA_CT_KEY: NFT_CT_STATE}), 1),
    "status": (("ct", {NFTA_CT_KEY: NFT_CT_STATUS}), 1),
    "daddr-type": (("fib", {NFTA_FIB_RESULT: NFT_FIB_RESULT_ADDRTYPE,
                            NFTA_FIB_FLAGS: NFTA_FIB_F_DADDR}), 1),
    "saddr": (header(NFT_PAYLOAD_NETWORK_HEADER, 12, 4), 1),  # RFC 791, 3.1
    "saddr/8": (header(NFT_PAYLOAD_NETWORK_HEADER, 12, 1), 1),
    "daddr": (header(NFT_PAYLOAD_NETWORK_HEADER, 16, 4), 1),
    "daddr/8": (header(NFT_PAYLOAD_NETWORK_HEADER, 16, 1), 1),
    "dport": (header(NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2), 1),
}
VALUES = {  # what a field is compared with; other words are links' names
    "127": b"\x7f",
    "local": struct.pack("I", RTN_LOCAL),
    "dnat": struct.pack("I", IPS_DST_NAT),
    "established": struct.pack("I", 2 | 4),  # or related to that
}

def verdict_expression(code):
    return "immediate", {NFTA_IMMEDIATE_DREG: NFT_REG_VERDICT, NFTA_IMMEDIATE_DATA: {
        NFTA_DATA_VERDICT: {NFTA_VERDICT_CODE: code}}}

VERDICTS = {
    "accept": verdict_expression(NF_ACCEPT),
    "drop": verdict_expression(NF_DROP),
    "masquerade": ("masq", {}),
    "dnat": ("nat", {NFTA_NAT_TYPE: NFT_NAT_DNAT, NFTA_NAT_FAMILY: NFPROTO_IPV4,
                     NFTA_NAT_REG_ADDR_MIN: NFT_REG32_00,
                     NFTA_NAT_REG_PROTO_MIN: NFT_REG32_00 + 1}),
}
CHAINS = {  # type, hook, priority: as every NAT's, but raw comes before all
    "raw": ("filter", NF_INET_PRE_ROUTING, -300),
    "prerouting": ("nat", NF_INET_PRE_ROUTING, -100),
    "output": ("nat", NF_INET_LOCAL_OUT, -100),
    "forward": ("filter", NF_INET_FORWARD, 0),
    "postrouting": ("nat", NF_INET_POST_ROUTING, 100),
}

# Types as nft(8) counts them, six bits for each part of a concatenation: datatype.h
TYPE_ADDRESS, TYPE_PROTOCOL, TYPE_PORT, TYPE_NAME = 7, 12, 13, 41
TARGET = {NFTA_SET_DATA_TYPE: TYPE_ADDRESS << 6 | TYPE_PORT, NFTA_SET_DATA_LEN: 8}
SETS = (  # name, flags, type and bytes of a key, type and bytes of a value
    ("ports", NFT_SET_MAP, TYPE_PROTOCOL << 6 | TYPE_PORT, 8, TARGET),
    ("ports_of", NFT_SET_MAP, TYPE_ADDRESS << 12 | TYPE_PROTOCOL << 6 | TYPE_PORT, 12, TARGET),
    ("bridges", 0, TYPE_NAME << 6 | TYPE_NAME, 32, {}),
    ("subnets", NFT_SET_INTERVAL, TYPE_ADDRESS, 4, {}),
)
RULES = (
    # The bridges have route_localnet, but 127.0.0.1 is for this host alone: CVE-2020-8558
    "raw iifname != lo, daddr/8 == 127, drop",
    "prerouting daddr-type == local, daddr.l4proto.dport map ports_of, dnat",
    "prerouting daddr-type == local, l4proto.dport map ports, dnat",
    "output daddr-type == local, daddr.l4proto.dport map ports_of, dnat",
    "output daddr-type == local, l4proto.dport map ports, dnat",
    "postrouting oifname != lo, oifname.oifname not bridges, saddr in subnets, masquerade",
    # A neighbour would answer past us to who is on the same bridge, and nobody to 127.0.0.1
    "postrouting oifname.oifname in bridges, status & dnat, saddr in subnets, masquerade",
    "postrouting oifname.oifname in bridges, saddr/8 == 127, masquerade",
    "forward iifname.oifname in bridges, accept",
    "forward iifname.iifname in bridges, saddr not subnets, drop",  # internal, or forged
    "forward state & established, accept",
    "forward status & dnat, accept",
    "forward oifname.oifname in bridges, drop",  # from other networks and from outside
)

# The table

def nft(table, messages, flags=NLM_F_APPEND):
    """Change a table, all or nothing: [(message, attributes but the table's name)]. FLAGS: 0 puts
    rules in front of the others."""
    edge, subsystem = struct.pack(">BBH", 0, 0, NFNL_SUBSYS_NFTABLES), NFNL_SUBSYS_NFTABLES << 8
    head = struct.pack(">BBH", NFPROTO_IPV4, 0, 0)
    batch = [(subsystem | kind, NLM_F_CREATE | flags,
              head + attributes({NFTA_ANY_TABLE: table, **values}, ">"))
             for kind, values in messages]
    if not batch:
        return
    kind, flags, body = batch.pop()  # of the others only errors are of interest
    netlink(NETLINK_NETFILTER, "nf_tables", [  # in one step: rules, names, ports
        (NFNL_MSG_BATCH_BEGIN, 0, edge), *batch, (kind, flags | NLM_F_ACK, body),
        (NFNL_MSG_BATCH_END, 0, edge)])

def nft_list(kind, family=NFPROTO_IPV4, table=None):
    """All chains or rules that there are, or those of a table: [(family, attributes)]."""
    wanted = attributes({NFTA_ANY_TABLE: table}) if table else b""
    dump = (NFNL_SUBSYS_NFTABLES << 8 | kind, NLM_F_ACK | NLM_F_DUMP,
            struct.pack(">BBH", family, 0, 0) + wanted)
    return [(answer[0], parse_attributes(answer[4:]))
            for answer in netlink(NETLINK_NETFILTER, "nf_tables", [dump])]  # what is there

def comment(text):
    """A comment as nft(8) keeps it with a rule or a table: libnftnl's udata.h, at most 128 bytes"""
    data = encode(text)[:127] + b"\0"
    return bytes([0, len(data)]) + data

def expressions(step):
    """A step of RULES for nf_tables: [(name, attributes)]; fields go through registers."""
    if step in VERDICTS:
        return [VERDICTS[step]]
    fields, test, value = step.split(" ")
    found, register = [], NFT_REG32_00
    for field in fields.split("."):
        (name, more), size = FIELDS[field]
        found.append((name, {NFTA_ANY_DREG: register, **more}))
        register += size
    if test in ("in", "not", "map"):
        return [*found, lookup(test, value)]
    wanted, operator = VALUES.get(value, encode(value).ljust(16, b"\0")), NFT_CMP_EQ
    if test == "&":  # not zero, when all other bits are
        found.append(("bitwise", {
            NFTA_BITWISE_SREG: NFT_REG32_00, NFTA_BITWISE_DREG: NFT_REG32_00, NFTA_BITWISE_LEN: 4,
            NFTA_BITWISE_MASK: {NFTA_DATA_VALUE: wanted},
            NFTA_BITWISE_XOR: {NFTA_DATA_VALUE: bytes(4)}}))
        wanted = bytes(4)
    if test != "==":
        operator = NFT_CMP_NEQ
    return [*found, ("cmp", {NFTA_CMP_SREG: NFT_REG32_00, NFTA_CMP_OP: operator,
                             NFTA_CMP_DATA: {NFTA_DATA_VALUE: wanted}})]

def lookup(test, name):
    """The expression that looks for the registers in a set, or what a map has for them."""
    values = {NFTA_LOOKUP_SET: name, NFTA_LOOKUP_SREG: NFT_REG32_00, NFTA_LOOKUP_FLAGS: 0}
    if test == "not":
        values[NFTA_LOOKUP_FLAGS] = NFT_LOOKUP_F_INV
    if test == "map":
        values[NFTA_LOOKUP_DREG] = NFT_REG32_00
    return "lookup", values

def rule_message(rule, note=None):
    """A message that makes a rule of RULES' form, with a comment, by default the rule itself."""
    chain, _, steps = rule.partition(" ")
    return NFT_MSG_NEWRULE, {
        NFTA_RULE_CHAIN: chain, NFTA_RULE_USERDATA: comment(note or rule),
        NFTA_RULE_EXPRESSIONS: [{NFTA_EXPR_NAME: name, NFTA_EXPR_DATA: more}
                                for step in steps.split(", ") for name, more in expressions(step)]}

def table_messages(note):
    """Messages that make our table, or what it lacks, and all of its rules anew."""
    chains = [(NFT_MSG_NEWCHAIN, {
        NFTA_CHAIN_NAME: name, NFTA_CHAIN_TYPE: kind,
        NFTA_CHAIN_HOOK: {NFTA_HOOK_HOOKNUM: hook, NFTA_HOOK_PRIORITY: priority}})
        for name, (kind, hook, priority) in CHAINS.items()]
    sets = [(NFT_MSG_NEWSET, {
        NFTA_SET_NAME: name, NFTA_SET_FLAGS: flags, NFTA_SET_KEY_TYPE: kind, NFTA_SET_KEY_LEN: size,
        NFTA_SET_ID: number, **values})
        for number, (name, flags, kind, size, values) in enumerate(SETS)]
    return [(NFT_MSG_NEWTABLE, {NFTA_TABLE_USERDATA: comment(note)}), *chains, *sets,
            (NFT_MSG_DELRULE, {}), *map(rule_message, RULES)]

def rules_standing(table):
    """True if a table has all of our rules, in their order, and no other. So it has the chains that
    they are in and the sets that they name: the kernel removes none that is used."""
    found = {}
    for _, rule in nft_list(NFT_MSG_GETRULE, NFPROTO_IPV4, table):
        chain = rule[NFTA_RULE_CHAIN].rstrip(b"\0").decode()
        found.setdefault(chain, []).append(rule.get(NFTA_RULE_USERDATA))
    wanted = {}
    for rule in RULES:
        wanted.setdefault(rule.partition(" ")[0], []).append(comment(rule))
    return found == wanted

def element_messages(kind, name, elements):
    """Messages that put elements into a set, or take them out; a list's length has 16 bits."""
    return [(kind, {NFTA_SET_ELEM_LIST_SET: name,
                    NFTA_SET_ELEM_LIST_ELEMENTS: elements[start:start + 500]})
            for start in range(0, len(elements), 500)]

def bridge_elements(kind, link, subnet):
    """Messages that put a bridge, and the SUBNET that may go out by it, or none, into the sets, or
    take them out."""
    name = encode(link).ljust(16, b"\0")
    messages = element_messages(kind, "bridges", [
        {NFTA_SET_ELEM_KEY: {NFTA_DATA_VALUE: name + name}}])
    if subnet:
        first, last = subnet_range(subnet)
        messages += element_messages(kind, "subnets", [
            {NFTA_SET_ELEM_KEY: {NFTA_DATA_VALUE: packed(first)}},
            {NFTA_SET_ELEM_KEY: {NFTA_DATA_VALUE: packed(last + 1)},
             NFTA_SET_ELEM_FLAGS: NFT_SET_ELEM_INTERVAL_END}])
    return messages

def port_elements(kind, ports, target):
    """Messages that lead ports, [address or "", port, inner port, protocol], to the address TARGET,
    or no longer."""
    elements = {"ports": [], "ports_of": []}
    for address, taken, port, protocol in ports:
        key = struct.pack(">B3xH2x", PROTOCOLS[protocol], taken)
        name = "ports"
        if address:
            name, key = "ports_of", packed(address) + key
        elements[name].append({
            NFTA_SET_ELEM_KEY: {NFTA_DATA_VALUE: key},
            NFTA_SET_ELEM_DATA: {NFTA_DATA_VALUE: struct.pack(">4sH2x", packed(target), port)}})
    return [message for name, rows in elements.items()
            for message in element_messages(kind, name, rows)]

def remove_elements(table, messages):
    """Take elements out of sets, as far as they, and the sets, are there."""
    with tolerate(errno.EPROTONOSUPPORT):  # there is no nf_tables: none was made
        try:
            nft(table, messages)
        except FileNotFoundError:  # somebody flushed all, or a few
            for kind, values in messages:
                for element in values[NFTA_SET_ELEM_LIST_ELEMENTS]:
                    with tolerate(errno.ENOENT):
                        nft(table, [(kind, {**values, NFTA_SET_ELEM_LIST_ELEMENTS: [element]})])

def forget_flows(ports):
    """Make the kernel forget the flows of UDP to ports of this host, [address or "", port, ...], so
    that their next packets find the rules as they are now."""
    wanted = {(address, taken) for address, taken, _, protocol in ports if protocol == "udp"}
    if not wanted:
        return
    local = {address for _, address, _ in host_addresses()}
    head = struct.pack(">BBH", NFPROTO_IPV4, 0, 0)
    only_udp = attributes({  # older kernels than 5.8 list all: flow_goes_to looks again
        CTA_FILTER: {CTA_FILTER_ORIG_FLAGS: CTA_FILTER_F_CTA_PROTO_NUM, CTA_FILTER_REPLY_FLAGS: 0},
        CTA_TUPLE_ORIG: {CTA_TUPLE_PROTO: {CTA_PROTO_NUM: bytes([_socket.IPPROTO_UDP])}}})
    kind = NFNL_SUBSYS_CTNETLINK << 8
    with tolerate(errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT):  # no ctnetlink
        for answer in netlink(NETLINK_NETFILTER, "conntrack", [  # old decisions of NAT
                (kind | IPCTNL_MSG_CT_GET, NLM_F_ACK | NLM_F_DUMP, head + only_udp)]):
            flow = parse_attributes(answer[4:])
            if not flow_goes_to(flow, wanted, local):
                continue
            named = {CTA_TUPLE_ORIG | NLA_F_NESTED: flow[CTA_TUPLE_ORIG], CTA_ID: flow[CTA_ID]}
            if CTA_ZONE in flow:
                named[CTA_ZONE] = flow[CTA_ZONE]
            with tolerate(errno.ENOENT):  # it has just ended
                netlink(NETLINK_NETFILTER, "conntrack", [
                    (kind | IPCTNL_MSG_CT_DELETE, NLM_F_ACK, head + attributes(named))])

def flow_goes_to(flow, wanted, local):
    """True if a flow's first packet was of UDP and for one of the WANTED, (address or "", port), at
    an address of the LOCAL ones."""
    way = parse_attributes(flow.get(CTA_TUPLE_ORIG, b""))
    ends = parse_attributes(way.get(CTA_TUPLE_PROTO, b""))
    target = parse_attributes(way.get(CTA_TUPLE_IP, b"")).get(CTA_IP_V4_DST)
    if target is None or ends.get(CTA_PROTO_NUM) != bytes([_socket.IPPROTO_UDP]):
        return False
    address = _socket.inet_ntop(_socket.AF_INET, target)
    port = int.from_bytes(ends.get(CTA_PROTO_DST_PORT, b""), "big")
    if address not in local and not address.startswith("127."):
        return False
    return ("", port) in wanted or (address, port) in wanted

# Other firewalls.  What one table accepts, another may still drop

def list_chains():
    """The chains of IPv4: [(family, table, name, hook or None, True if its policy is to drop)]."""
    rows = []
    for family, chain in nft_list(NFT_MSG_GETCHAIN, NFPROTO_UNSPEC):
        if family not in (NFPROTO_INET, NFPROTO_IPV4):
            continue
        table, name = (chain[kind].rstrip(b"\0").decode("utf-8", "replace")
                       for kind in (NFTA_ANY_TABLE, NFTA_CHAIN_NAME))
        hook = parse_attributes(chain.get(NFTA_CHAIN_HOOK, b"")).get(NFTA_HOOK_HOOKNUM)
        if hook is not None:
            hook = int.from_bytes(hook, "big")
        rows.append((family, table, name, hook,
                     chain.get(NFTA_CHAIN_POLICY) == struct.pack(">I", NF_DROP)))
    return rows

def table_names_link(family, table, link):
    """True if a rule of that table speaks of a link: then somebody has seen to it."""
    name = encode(link) + b"\0"
    return any(name in rule.get(NFTA_RULE_EXPRESSIONS, b"")
               for _, rule in nft_list(NFT_MSG_GETRULE, family, table))

def old_iptables():
    """The entries of iptables' own filter table, of before nf_tables, if its FORWARD drops; else
    b"". See struct ipt_getinfo and ipt_get_entries in linux/netfilter_ipv4/ip_tables.h."""
    with tolerate(errno.ENOENT):
        if "filter" not in read_all("/proc/net/ip_tables_names").split():  # asking would make it
            return b""
        raw = _socket.socket(_socket.AF_INET, _socket.SOCK_RAW, _socket.IPPROTO_RAW)
        with Descriptor(raw.detach()) as fd:
            info = read_option(fd, IPT_SO_GET_INFO, 84)
            policy, = struct.unpack_from("I", info, 56 + 4 * NF_INET_FORWARD)  # underflow[]
            size, = struct.unpack_from("I", info, 80)
            entries = read_option(fd, IPT_SO_GET_ENTRIES, 40 + size)[40:]
        target, = struct.unpack_from("H", entries, policy + 88)  # ipt_entry's target_offset
        verdict, = struct.unpack_from("i", entries, policy + target + 32)
        if verdict == -NF_DROP - 1:
            return entries
    return b""

def read_option(fd, number, size):
    """What getsockopt(2) says of iptables' table "filter"; that it is asked for stands in front."""
    words = (INT * (size // 4))()  # all of it is counted in these
    asked = b"filter".ljust(32, b"\0") + struct.pack("I", max(size - 40, 0))
    memoryview(words).cast("B")[:len(asked)] = asked
    length = (INT * 1)(size)
    getsockopt(fd, _socket.IPPROTO_IP, number, words, length)
    return bytes(words)

# ── 46. Networks ─────────────────────────────────────────────────────────────
# A network namespace has links, addresses, routes and a packet filter of its own; a new one holds
# lo, and that is down.  A veth pair is a cable into it, a bridge the switch where cables end:
#
#   container │ host
#   eth0 ─────┼─ veth1a2b3c ─┐
#   eth0 ─────┼─ veth4d5e6f ─┴─ bridge, with the gateway's address ── routing, nf_tables ── uplink
#
# A network is networks/<name>.json; its bridge has its name.  A lease is networks/<name>/<ip>, a
# link to "ID NAME ALIAS...": taken in one step, given back by whoever tidies up the container.

NEEDS = "it needs the kernel's modules nf_tables, nft_chain_nat, nft_masq and nft_fib_ipv4"

class Full(Failure):
    """A network has no free address; some may be of dead containers."""

def mac_of(address):
    """The MAC address that goes with an IP address, so that neighbours' ARP caches stay true."""
    return b"\x02\x42" + packed(address)

def link_mark():
    """The alias of our links: whose they are."""
    return os.fsdecode(encode(f"mydocker {state_path()}")[:IFALIASZ - 1])

def own_table():
    """The name of this state root's table in nf_tables: no two roots share one."""
    if state_path() == STATE_ROOT:
        return "mydocker"
    from binascii import crc32
    return f"mydocker-{crc32(encode(state_path())):08x}"

def is_ours(link, network):
    """True if a link carries our mark, or is one of before there were marks."""
    return link["alias"] == link_mark() or (
        not link["alias"] and link["mac"] == mac_of(network["gateway"]))

def is_leftover(link):
    """True if a link may be taken: ours, or of a state root that is gone, and nobody uses it."""
    owner = link["alias"].partition("mydocker ")[2]
    if not link["alias"].startswith("mydocker /") or len(encode(link["alias"])) == IFALIASZ - 1:
        return False  # another's, or not the whole name
    if link["alias"] == link_mark():
        return True
    return not os.path.isdir(owner) and not has_cables(link["index"])

def refuse_link(name, link):
    """Say whose a link is that isn't ours, and what helps."""
    owner = link["alias"].partition("mydocker ")[2]
    if link["alias"].startswith("mydocker /"):
        raise Failure(f"network, on {name}: that link is of the state root {owner}",
                      hint=f"another name, or mydocker --root {owner} network rm {name}")
    raise Failure(f"network, on {name}: that link is not mydocker's",
                  hint=f"another name, or ip link delete {name}")

def own_link(network):
    """A network's bridge, see read_link, or None; a Failure if the link is another's."""
    link = read_link(network["link"])
    if link and not is_ours(link, network):
        refuse_link(network["link"], link)
    return link

def choose_link(name):
    """The name of a new network's bridge; one that an earlier life of ours left there is taken."""
    used = {network["link"]: network["name"] for network in networks()}
    if name != "bridge":
        link = read_link(name)
        if name in used:
            raise Failure(f"network, on {name}: that link is network {used[name]}'s")
        if link and not is_leftover(link):
            refuse_link(name, link)
        return name
    for number in range(100):  # the default network takes what is free
        link = read_link(f"mydocker{number}")
        if f"mydocker{number}" not in used and (not link or is_leftover(link)):
            return f"mydocker{number}"
    raise Failure("network, on bridge: the links mydocker0 to mydocker99 are not ours")

def make_bridge(network):
    """Make a network's bridge, or what is missing of it; it is up when all is done."""
    name, bits = network["link"], int(network["subnet"].partition("/")[2])
    settings = {IFLA_ADDRESS: mac_of(network["gateway"]), IFLA_MTU: network["mtu"]}
    if not read_link(name):
        netlink(NETLINK_ROUTE, name, [link_message(name, {  # the switch of a network
            **settings, IFLA_LINKINFO: {IFLA_INFO_KIND: "bridge"}}, MAKE)])
    netlink(NETLINK_ROUTE, name, [link_message(name, {  # ours, by its alias
        **settings, IFLA_IFALIAS: encode(link_mark())})])
    for setting, value in (("accept_ra", "0"), ("disable_ipv6", "1")):  # CVE-2020-13401
        with tolerate(errno.ENOENT):  # a kernel without IPv6
            write_value(f"/proc/sys/net/ipv6/conf/{name}/{setting}", value)
    if not network["internal"]:
        write_value(f"/proc/sys/net/ipv4/conf/{name}/route_localnet", "1")  # for 127.0.0.1:PORT
        if read_all("/proc/sys/net/ipv4/ip_forward") == "0\n":
            write_value("/proc/sys/net/ipv4/ip_forward", "1")
            warn("net.ipv4.ip_forward was 0 and is 1 now: this host passes on packets")
    index = read_link(name)["index"]
    old = [address_message(index, address, prefix, RTM_DELADDR)
           for other, address, prefix in host_addresses()
           if other == index and (address, prefix) != (network["gateway"], bits)]
    netlink(NETLINK_ROUTE, name, [  # the gateway's address, then up
        *old, address_message(index, network["gateway"], bits), link_message(name, up=IFF_UP)])

def restore_network(network, ports=()):
    """Put back what is missing of a network: its bridge after a reboot, rules after a flush.
    Without rules its containers can have no PORTS."""
    link = own_link(network)
    if not link or not link["flags"] & IFF_UP:
        with hold(state_path("networks")):
            make_bridge(network)
            make_dirs(network_path(network["name"]))
    try:
        restore_rules()
        if not network["internal"]:
            pass_firewalls(network["link"])
    except OSError as error:
        if ports:
            raise Failure(f"--publish: {NEEDS}: {reason(error)}") from None
        warn(f"network, on {network['link']}: it reaches nothing outside, {NEEDS} "
             f"({reason(error)})")

def restore_rules(with_ports=False):
    """Put back what somebody took of our rules and of the networks' elements; where rules were
    missing, or WITH_PORTS, also the ports of all that runs."""
    table, messages, ports = own_table(), [], []
    standing = rules_standing(table)
    if not standing:
        messages = table_messages(f"mydocker's, of {state_path()}")
    for network in networks():
        messages += network_elements(NFT_MSG_NEWSETELEM, network)
    nft(table, messages)
    if not standing or with_ports:
        ports = [message for wiring in map(read_wiring, running_records())
                 for message in leading_ports(wiring)]
    try:
        nft(table, ports)
    except FileExistsError:  # of a dead one's, and another has that port now
        for message in ports:
            with tolerate(errno.EEXIST):
                nft(table, [message])

def network_elements(kind, network):
    subnet = None
    if not network["internal"]:
        subnet = network["subnet"]
    return bridge_elements(kind, network["link"], subnet)

def restore_networks():
    """Put back what is missing of the rules, if a network's bridge stands."""
    with tolerate():  # it is said when a container is connected
        if any(read_link(network["link"]) for network in networks()):
            restore_rules(True)

def pass_firewalls(link):
    """Let a bridge's packets pass Docker's rules, which leave DOCKER-USER to others; of another
    firewall that would drop them say what helps."""
    chains = list_chains()
    names = [row[2] for row in chains if row[:2] == (NFPROTO_IPV4, "filter")]
    if "DOCKER-USER" in names and not docker_rules(link):
        ways = [f"DOCKER-USER {way} == {link}, accept" for way in ("iifname", "oifname")]
        nft("filter", [rule_message(rule, link_mark()) for rule in ways], 0)
    for family, table, chain, hook, drops in chains:
        # firewalld's policy is to accept, but its last rule rejects
        if hook != NF_INET_FORWARD or table == own_table() or not (drops or table == "firewalld"):
            continue
        if not table_names_link(family, table, link):
            warn(f"network, on {link}: {table}'s chain {chain} stops what it sends out, unless: "
                 f"{firewall_command(family, table, chain, link, names)}")
    old = old_iptables()
    if old and encode(link) + b"\0" not in old:
        chain = "FORWARD"
        if b"DOCKER-USER\0" in old:
            chain = "DOCKER-USER"
        warn(f"network, on {link}: iptables' FORWARD stops what it sends out, unless: "
             f"{iptables_commands('iptables-legacy', chain, link)}")

def iptables_commands(program, chain, link):
    return "; ".join(f"{program} -I {chain} {way} {link} -j ACCEPT" for way in ("-i", "-o"))

def firewall_command(family, table, chain, link, names):
    """What makes a firewall let a bridge's packets pass; NAMES: iptables' chains."""
    if table == "firewalld":
        return f"firewall-cmd --zone=trusted --add-interface={link}"
    if (family, table, chain) == (NFPROTO_IPV4, "filter", "FORWARD"):
        if "ufw-user-forward" in names:
            return f"ufw route allow in on {link}; ufw route allow out on {link}"
        return iptables_commands("iptables", chain, link)
    kind = "ip"
    if family == NFPROTO_INET:
        kind = "inet"
    return "; ".join(f"nft insert rule {kind} {table} {chain} {way} {link} accept"
                     for way in ("iifname", "oifname"))

def docker_rules(link):
    """The rules of ours for a bridge in Docker's chain: messages that remove them."""
    return [(NFT_MSG_DELRULE, {NFTA_RULE_CHAIN: "DOCKER-USER",
                               NFTA_RULE_HANDLE: rule[NFTA_RULE_HANDLE]})
            for _, rule in nft_list(NFT_MSG_GETRULE, NFPROTO_IPV4, "filter")
            if rule[NFTA_RULE_CHAIN] == b"DOCKER-USER\0"
            and rule.get(NFTA_RULE_USERDATA) == comment(link_mark())
            and encode(link) + b"\0" in rule[NFTA_RULE_EXPRESSIONS]]

def networks():
    found = []
    for name in listing(state_path("networks")):
        if name.endswith(".json"):
            with tolerate(errno.ENOENT):  # it has just been removed
                found.append(read_json(state_path("networks", name)))
    return found

def network_path(name, suffix=""):
    if name in ("none", "host"):
        raise Failure(f"network, on {name}: that is none of its own, but a word of run --network")
    if not is_name(name) or "." in name or len(name) > 15 or name in (
            "all", "default", "container", *APART):  # the kernel's, --network's
        raise Failure(f"network, on {as_typed(name)}: its name, a link's too, has at most 15 "
                      "letters, digits, _ and -")
    return state_path("networks", name + suffix)

def find_network(name):
    """A network's record; the default one is made when it is first asked for."""
    try:
        return known_network(name)
    except NotFound:
        if name != "bridge":
            raise
        return create_network(name)

def known_network(name):
    with tolerate(errno.ENOENT):
        return read_json(network_path(name, ".json"))
    raise NotFound(f"network, on {name}: no such network", hint=f"mydocker network create {name}")

def choose_subnet(wanted, gateway, link):
    """The subnet that is wanted, or the first of docker's that is free, and its gateway. The routes
    of LINK, a bridge that was left there, are no obstacle."""
    import ipaddress
    taken = [(network["subnet"], f"network {network['name']}") for network in networks()]
    for row in map(str.split, read_all("/proc/net/route").split("\n")[1:-1]):  # proc_net_route(5)
        bits = bin(int(row[7], 16)).count("1")
        if bits >= 8 and row[0] != link:  # a shorter one is a default route, perhaps in halves
            first = _socket.inet_ntoa(struct.pack("=I", int(row[1], 16)))
            taken.append((f"{first}/{bits}", f"this host's route to {row[0]}"))
    choices = [wanted]
    if wanted is None:
        choices = [f"172.{number}.0.0/16" for number in range(17, 32)]
        choices += [f"192.168.{number}.0/20" for number in range(0, 256, 16)]
    for text in choices:
        subnet, own = parse_subnet(text, gateway)
        whose = [name for other, name in taken if subnet.overlaps(ipaddress.ip_network(other))]
        if not whose:
            return str(subnet), str(own)
    raise Failure(f"--subnet, on {wanted or 'all'}: it overlaps {whose[0]}", hint="--subnet CIDR")

def parse_subnet(text, gateway):
    """A subnet and the gateway in it, by default its first address, as ipaddress has them."""
    import ipaddress
    wrong = Failure(f"--subnet, on {as_typed(text)}: not a subnet, such as 10.9.1.0/24")
    address, _, bits = text.partition("/")
    if not 8 <= (to_number(bits) or 0) <= 30:
        wrong.message += ", with 8 to 30 bits"
        raise wrong
    check_address(address, "--subnet", _socket.AF_INET)
    subnet = ipaddress.IPv4Network(text, strict=False)
    if str(subnet.network_address) != address:
        wrong.message = f"--subnet, on {text}: the subnet of that address is {subnet}"
        raise wrong
    if subnet.is_loopback or subnet.is_multicast or subnet.is_reserved or address.startswith("0."):
        wrong.message = f"--subnet, on {text}: no host can have addresses in it"
        raise wrong
    own = subnet[1]
    if gateway:
        check_address(gateway, "--gateway", _socket.AF_INET)
        own = ipaddress.IPv4Address(gateway)
    if own not in subnet or own in (subnet[0], subnet[-1]):
        raise Failure(f"--gateway, on {own}: it can't be the gateway in {subnet}")
    return subnet, own

def create_network(name, subnet=None, gateway=None, internal=False, mtu=1500, labels=()):
    """Make a network and its bridge."""
    path = network_path(name)
    with hold(make_dirs(state_path("networks"))):
        if os.path.exists(path + ".json"):
            if name == "bridge":  # another `run` was faster
                return read_json(path + ".json")
            raise Failure(f"network, on {name}: it exists")
        link = choose_link(name)
        subnet, gateway = choose_subnet(subnet, gateway, link)
        network = {"name": name, "link": link, "driver": "bridge", "subnet": subnet,
                   "gateway": gateway, "mtu": mtu, "internal": internal, "created": time.time(),
                   "labels": dict(labels)}
        make_bridge(network)
        make_dirs(path)
        write_json(path + ".json", network)
        sweep_halves(state_path("networks"))
    restore_network(network)
    note_event("network", "create", name, {"name": name, "type": "bridge"})
    return network

def remove_network(name):
    """Remove a network that no container is in: its directory, empty then, goes in one step."""
    path = network_path(name)
    with hold(make_dirs(state_path("networks"))):
        network = known_network(name)
        with tolerate(errno.ENOENT):  # an earlier removal was cut short
            users = network_users(network)
            if users:
                raise Failure(f"network, on {name}: {users[0][2]} is in it",
                              hint=f"mydocker network disconnect {name} {users[0][2]}")
            os.rmdir(path)
        link = read_link(network["link"])
        if link and is_ours(link, network):
            netlink(NETLINK_ROUTE, name, [link_message(network["link"], kind=RTM_DELLINK)])
        with tolerate():  # the rules may be gone, or never have been
            nft("filter", docker_rules(network["link"]), 0)
        with tolerate():
            nft(own_table(), network_elements(NFT_MSG_DELSETELEM, network))
        unlink_if_there(path + ".json")
        if not networks():
            with tolerate():
                nft(own_table(), [(NFT_MSG_DELTABLE, {})])
    note_event("network", "destroy", name, {"name": name, "type": "bridge"})

# Leases

def network_users(network):
    """The leases of a network: [(address, container's id, its name, alias...)]."""
    path = state_path("networks", network["name"])
    leases = [(address, link_target(AT_FDCWD, f"{path}/{address}")) for address in listing(path)]
    return [(address, *lease.split(" ")) for address, lease in leases if lease]

def take_address(network, record, endpoint):
    """Lease an address in a network, the one that is wanted or the first that is free."""
    path, (first, last) = network_path(network["name"]), subnet_range(network["subnet"])
    lease, wanted = " ".join([record["id"], record["name"], *endpoint["aliases"]]), None
    choices = range(first + 1, last)
    if endpoint["wanted_ip"]:
        wanted = int.from_bytes(packed(endpoint["wanted_ip"]), "big")
        choices = [wanted] if wanted in choices else []
    taken = {network["gateway"], *os.listdir(path)}
    for number in choices:
        address = _socket.inet_ntop(_socket.AF_INET, packed(number))
        if address not in taken:
            with tolerate(errno.EEXIST):  # another `run` was faster
                os.symlink(lease, f"{path}/{address}")  # it is taken, or was, in one step
                return address
    if wanted is None:
        raise Full(f"network, on {network['name']}: it is full, all {last - first - 1} addresses "
                   f"of {network['subnet']} are taken")
    raise Full(f"--ip, on {endpoint['wanted_ip']}: not to be had in {network['subnet']}")

def give_back_addresses(container_id, name):
    """End a container's leases in a network: all, for it may have been killed as it took one."""
    for address, owner, *_ in network_users({"name": name}):
        if owner == container_id:
            unlink_if_there(state_path("networks", name, address))

# The commands

@command("[OPTIONS] NAME", "make a network, with a bridge of that name",
         ("-d --driver", "bridge", "the only kind"), ("--subnet", "CIDR", "such as 10.9.1.0/24"),
         ("--gateway", "IP", "the host's address in it (default: the first)"),
         ("--internal", "", "nothing leaves it or comes in, but from the host"),
         ("--mtu", "BYTES", "the largest packet (default: 1500)"),
         ("--label", "K=V...", "a note for `network ls -f`"), takes=ONE)
def cmd_network_create(options, words):
    """Make a network with its bridge, which is there from now on."""
    gateway, driver = options["gateway"], given(options, "driver", "bridge")
    if driver != "bridge":
        raise Failure(f"--driver, on {as_typed(driver)}: there is no other than bridge",
                      hint="run --network host or none need no network")
    if gateway and not options["subnet"]:
        raise Failure(f"--gateway, on {as_typed(gateway)}: it needs --subnet")
    if is_guest("net"):
        raise Failure(f"network create, on {words[0]}: only root can lay cables to this host",
                      hint="without root containers meet by --network container:ID")
    create_network(words[0], options["subnet"], gateway, options["internal"],
                   parse_number(given(options, "mtu", "1500"), "--mtu", 68),
                   pairs_of(options["label"]))
    show(words[0])

NETWORK_FILTERS = {
    "name": lambda network, value: fits_name(network["name"], value),
    "driver": lambda network, value: value == network["driver"],
    "label": lambda network, value: has_label(network.get("labels", {}), value)}

@command("[OPTIONS]", "list the networks", ("-q --quiet", "", "names only"),
         ("-f --filter", "K=V...", f"only some, by {', '.join(NETWORK_FILTERS)}"),
         ("--format", "FORMAT", "table, json or a template"))
def cmd_network_list(options, _):
    """IpRange is the gateway's address and the subnet's size, as in the tutorial."""
    restore_networks()
    rows = [{"Name": network["name"], "Driver": network["driver"], "Internal": network["internal"],
             "IpRange": network["gateway"] + "/" + network["subnet"].partition("/")[2],
             "Labels": labels_text(network.get("labels", {}))}
            for network in filtered(networks(), options["filter"], NETWORK_FILTERS)]
    show_rows(rows, {"Name": "NAME", "IpRange": "IpRange", "Driver": "Driver"},
              "{{.Name}}" if options["quiet"] else options["format"])

@command("[OPTIONS] NAME...", "remove networks that no running container is in",
         ("-f --force", "", "no error if there is none of that name"), many=True)
def cmd_network_remove(options, name):
    sweep_containers()
    try:
        remove_network(name)
    except NotFound:
        if not options["force"]:
            raise

@command("[OPTIONS] NAME...", "show networks as JSON", ("-f --format", "FORMAT", "a template"),
        takes=SOME)
def cmd_network_inspect(options, words):
    sweep_containers()
    restore_networks()
    show_json(words, network_info, options["format"])

def network_info(name):
    """A network and who is in it, in docker's words and ours."""
    network = find_network(name)
    return {**network, "Name": name, "Driver": network["driver"], "Internal": network["internal"],
            "Labels": network.get("labels", {}),
            "IPAM": {"Config": [{"Subnet": network["subnet"], "Gateway": network["gateway"]}]},
            "Containers": {user[1]: {"Name": user[2], "IPv4Address": user[0]}
                           for user in network_users(network)}}

@command("[OPTIONS]", "remove the networks that no running container is in, and say which",
         ("-f --force", "", "without asking, as always"),
         PRUNE_FILTER)
def cmd_network_prune(options, _):
    sweep_containers()
    restore_networks()
    known = prune_filters(lambda network: network.get("labels", {}),
                          lambda network: network.get("created", 0))
    found = filtered(networks(), options["filter"], known)
    unused = [network["name"] for network in found
              if network["name"] != "bridge" and not network_users(network)]
    each("network prune", unused, lambda name: cmd_network_remove({"force": True}, name) or name)

also_called("network ls", "network list")
also_called("network rm", "network remove")

# ── 47. A container's networks ───────────────────────────────────────────────
# `run` makes the cables from outside while init boots; the kernel removes them with the container's
# namespace.  Where a container is plugged in stands in a file of its own, wiring.json, which its
# monitor and the commands read and change under its lock.

NETWORK_OPTIONS = (  # of run
    ("--network --net", "NAME...", "none, host, bridge, container:ID, a network, or name=NETWORK,"
                                   "ip=IP,alias=NAME (default: bridge, on the host's own root "
                                   "none)"),
    ("-p --publish", "[[IP:]HOST:]PORT[/udp]...", "lead a port of the host's, or more, to it"),
    ("-P --publish-all", "", "lead free ports to all that the image names"),
    ("--ip", "IP", "its address in the first network"), ("--mac-address", "MAC", "its eth0's"),
    ("--network-alias", "NAME...", "one more name for its neighbours in the first network"),
    ("--add-host", "NAME:IP...", "a line in its /etc/hosts"),
    ("--dns", "IP...", "a name server, instead of the host's"),
    ("--dns-search", "DOMAIN...", "where to look for short names"),
    ("--dns-option --dns-opt", "OPTION...", "how to ask: ndots:2, instead of the host's options"),
    ("--expose", "PORT[/udp]...", "a port for -P, as if the image named it"),
    ("--link", "CONTAINER...", "no: in a network of their own containers know each other's names"),
)
offer("run", *NETWORK_OPTIONS)
RLIMIT_NOFILE = 7  # asm-generic/resource.h

# What is asked for

def network_wanted(options, plan):
    """A container's network by the options, its first one's name, and what is wanted of it."""
    if options["link"]:
        raise Failure(f"--link, on {options['link'][0]}: mydocker doesn't have that",
                      hint="instead: mydocker network create NET, then run --network NET for both, "
                           "and each has the other's name")
    wants = parse_networks(options, plan)
    check_networks(options, wants)
    first = wants["endpoints"][0]
    kind, _, other = first["network"].partition(":")
    if kind == "container":
        return "container:" + find_container(other)["id"], {**wants, "endpoints": []}
    check_guest(kind)
    if kind in APART:
        return kind, {**wants, "endpoints": []}
    return kind, wants

def parse_networks(options, plan):
    """What the options say of networks, in the record's form, as far as it can be read."""
    default = "none"
    if plan["reference"]:
        default = os.environ.get("MYDOCKER_NETWORK") or usual_network()
    endpoints = [parse_network(text) for text in options["network"] or [default]]
    for number, endpoint in enumerate(endpoints):
        endpoint["device"] = f"eth{number}"
    first = endpoints[0]
    for option, key in (("ip", "wanted_ip"), ("mac-address", "wanted_mac"),
                        ("network-alias", "aliases")):
        if options[option] and first[key]:
            raise Failure(f"--{option}: --network says it, too")
        first[key] = options[option] or first[key]
    first["wanted_mac"] = first["wanted_mac"].lower()
    texts = [*options["publish"]]
    if options["publish-all"]:
        texts += plan["image"].get("ExposedPorts") or ()
        texts += [text for text in options["expose"] if not {text, text + "/tcp"} & {*texts}]
    for text in options["expose"]:
        if not is_exposed(text):
            raise Failure(f"--expose, on {as_typed(text)}: it is PORT[-RANGE][/tcp|udp]")
    ports = [row for text in texts for row in parse_publish(text)]
    return {"endpoints": endpoints, "ports": ports, "dns": options["dns"],
            "hosts": [parse_host(text) for text in options["add-host"]],
            "search": options["dns-search"], "options": options["dns-option"]}

def is_exposed(text):
    """True for PORT[-RANGE][/PROTOCOL], a port of the container's alone."""
    try:
        return not {*text} & {*":."} and bool(parse_publish(text))
    except Failure:
        return False

def parse_network(text):
    """A --network argument, NAME or name=NAME,ip=IP,alias=NAME,mac-address=MAC, as an endpoint."""
    endpoint = {"network": text, "wanted_ip": "", "wanted_mac": "", "aliases": []}
    if "=" not in text:
        return endpoint
    endpoint["network"] = ""
    keys = {"name": "network", "ip": "wanted_ip", "mac-address": "wanted_mac"}
    for key, _, value in (pair.partition("=") for pair in text.split(",")):
        if key == "alias":
            endpoint["aliases"].append(value)
        elif key in keys:
            endpoint[keys[key]] = value
        else:
            raise Failure(f"--network, on {text}: unknown key {as_typed(key)}, it is "
                          "name=NETWORK[,ip=IP][,alias=NAME]...[,mac-address=MAC]")
    return endpoint

def check_networks(options, wants):
    """Refuse what can't be, or can't go together, before anything is made."""
    kinds = [endpoint["network"].partition(":")[0] for endpoint in wants["endpoints"]]
    alone = [kind for kind in kinds if kind in (*APART, "container")]
    if alone and len(kinds) > 1:
        raise Failure(f"--network, on {alone[0]}: it can't go with other networks")
    sysctls = [text for text in options["sysctl"] if sysctl_parts(text)[0] == "net"]
    for endpoint, kind in zip(wants["endpoints"], kinds):
        if kind in APART and kind != endpoint["network"]:
            raise Failure(f"--network, on {as_typed(endpoint['network'])}: {kind} takes no options")
        named = not alone and kind != "bridge"
        for option, asked, possible in (
                ("--ip", endpoint["wanted_ip"], not alone),
                ("--mac-address", endpoint["wanted_mac"], not alone),
                ("--publish", wants["ports"], not alone or kind in HELPERS),
                ("--network-alias", endpoint["aliases"], named),
                ("--sysctl", sysctls, kind not in ("host", "container"))):  # not another's
            if asked and not possible:
                raise Failure(f"{option}: it can't go with --network {kind}",
                              hint=hint_for_no_way(kind))
        check_endpoint(endpoint, "--ip", "--network-alias")
        if not alone:
            network_path(endpoint["network"])
            if kinds.count(kind) > 1:
                raise Failure(f"--network, on {kind}: it is there twice")
    for address in wants["dns"]:
        check_address(address, "--dns", _socket.AF_INET, _socket.AF_INET6)
    for domain in wants["search"]:
        if not domain or not domain.isprintable() or " " in domain:
            raise Failure(f"--dns-search, on {as_typed(domain)}: not a domain, such as "
                          "example.org")
    for text in wants["options"]:
        if not text or not text.isprintable() or " " in text:
            raise Failure(f"--dns-option, on {as_typed(text)}: not one of resolv.conf(5), such as "
                          "ndots:2")

def check_endpoint(endpoint, ip_option, alias_option):
    """Refuse an address or names that can't be."""
    if endpoint["wanted_ip"]:
        check_address(endpoint["wanted_ip"], ip_option, _socket.AF_INET)
    for alias in endpoint["aliases"]:
        check_new_name(alias, alias_option)
    mac = endpoint["wanted_mac"]
    parts = mac.split(":")
    right = len(parts) == 6 and all(len(part) == 2 and {*part} <= {*"0123456789abcdef"}
                                    for part in parts)
    if mac and (not right or int(parts[0], 16) & 1 or mac == "00:00:00:00:00:00"):  # a group's
        raise Failure(f"--mac-address, on {mac}: not one of a link, such as 02:42:0a:09:01:02")

def check_address(text, option, *families):
    """Refuse what is no IP address of one of these families."""
    for family in families:
        with tolerate():
            return _socket.inet_pton(family, text if text.isascii() else "")
    example = "10.9.1.2"
    if _socket.AF_INET6 in families:
        example += " or fd00::2"
    raise Failure(f"{option}, on {as_typed(text)}: not an IP address, such as {example}")

def parse_host(text):
    """An --add-host argument, NAME:IP or NAME=IP, as NAME:IP; IP may be host-gateway."""
    at = min([index for index in map(text.find, ":=") if index >= 0], default=-1)
    name, address = text[:max(at, 0)], text[at + 1:].strip("[]")
    if at < 0 or not name.replace("-", "a").replace(".", "a").replace("_", "a").isalnum():
        raise Failure(f"--add-host, on {as_typed(text)}: it is NAME:IP")
    if address != "host-gateway":
        check_address(address, "--add-host", _socket.AF_INET, _socket.AF_INET6)
    return f"{name}:{address}"

# Cables

def read_wiring(record):
    """A container's network.json; before it is first connected, what was asked for."""
    with tolerate(errno.ENOENT, errno.ENOTDIR):
        return read_json(container_path(record, "network.json"))
    wants, endpoints = record.get("wants", {}), []
    if "endpoints" in wants:
        endpoints = wants["endpoints"]
    elif record.get("network", "none") not in ("none", "host") and ":" not in record["network"]:
        endpoints = [{"network": record["network"], "device": "eth0",  # of an older mydocker
                      "wanted_ip": wants["ip"], "wanted_mac": wants["mac"],
                      "aliases": wants["aliases"], **record.get("endpoint", {})}]
    ports = record.get("endpoint", {}).get("ports", [])
    return {"pid": 0, "pid_start": None, "ports": ports, "endpoints": endpoints}

class changed_wiring:
    """A `with` in which a container's network.json is ours to change; written at its end, also by
    an error: what was taken by then stands there."""
    def __init__(self, record):
        self.record = record
    def __enter__(self):
        self.lock = hold(container_path(self.record, "network.lock"))
        self.wiring = read_wiring(self.record)
        return self.wiring
    def __exit__(self, *_):
        with self.lock:
            write_json(container_path(self.record, "network.json"), self.wiring)

def is_wired(wiring):
    """True while the process lives whose network namespace the cables lead into."""
    return bool(wiring["pid"]) and process_start(wiring["pid"]) == wiring["pid_start"]

def running_records():
    """The records of the containers that may run, without asking whether they do."""
    paths = [state_path("containers", name) for name in listing(state_path("running"))]
    return filter(None, map(read_record, paths))

def way_out(wiring):
    """The endpoint that leads out: the first in a network that isn't internal; or None."""
    for endpoint in wiring["endpoints"]:
        if endpoint.get("ip") and not endpoint.get("internal"):
            return endpoint
    return None

def connect_container(state, pid, channel):
    """Give a container its addresses, ports and cables; init is booting meanwhile.  One that its
    policy starts again keeps the first two."""
    record = state["record"]
    message, fds = receive(channel)
    if message != "apart":  # sync 0
        raise Failure(*message or ("run: it was killed before the command started", 137))
    with Descriptor(fds[0]) as theirs:
        if record["network"] in HELPERS:
            return connect_by_helper(state, pid, guest_ports(state))
        taken = None
        if record["wants"]["ports"] and not state.get("ports"):
            taken = hold_ports(state)
        try:
            wire(record, pid, taken, theirs)
        except Full:
            sweep_containers()  # the dead give back theirs
            wire(record, pid, taken, theirs)

def connect_by_helper(state, pid, ports):
    """Let a program connect a container's network namespace, and forward its ports.  It dies with
    us, and we with the container."""
    record, old = state["record"], state.pop("helper", None)
    kind = record["network"]
    if old:
        kill_child(old)
    log, ready, place = (container_path(record, f"{kind}.{name}")
                         for name in ("log", "pid", "netns"))
    for path in (ready, container_path(record, "slirp.sock")):
        unlink_if_there(path)
    for path in (place, log):
        write_file(path, "")
    words = helper_words(kind, place, ready, ports)
    state["helper"] = child = os.fork()  # to become pasta or slirp4netns
    if not child:
        try:
            os.unshare(CLONE_NEWNS)  # for the next line
            mount(f"/proc/{pid}/ns/net", place, None, MS_BIND, None)  # as a file it may be opened
            become_helper(kind, words, log, ready)
        finally:
            os._exit(127)
    await_helper(kind, child, ready, log)
    if kind == "slirp4netns":
        ask_for_ports(container_path(record), ports)

def guest_ports(state):
    """The ports on the host of a container that has no cable; they are free for its helper."""
    with changed_wiring(state["record"]) as wiring:
        if state["record"]["wants"]["ports"] and not wiring["ports"]:
            wiring["ports"] = hold_ports(state)
            close_ports(state)
        return wiring["ports"]

def wire(record, pid, taken, theirs):
    """Connect a container whose PID 1 is that, and whose network namespace is THEIRS, to all of its
    networks; TAKEN: its new ports."""
    with changed_wiring(record) as wiring:
        wiring.update(pid=pid, pid_start=process_start(pid))
        if taken is not None:
            wiring["ports"] = taken
        found = [join_network(record, endpoint, wiring["ports"])
                 for endpoint in wiring["endpoints"]]
        if wiring["ports"] and not way_out(wiring):
            raise Failure(f"--publish: the network {found[0]['name']} is internal" if found
                          else "--publish: the container is in no network")
        write_json(container_path(record, "network.json"), wiring)  # so that all can be swept
        for endpoint, network in zip(wiring["endpoints"], found):
            plug_in(wiring, endpoint, network, theirs)
        with blame(f"--publish: {NEEDS}"):
            nft(own_table(), leading_ports(wiring))
        forget_flows(wiring["ports"])

def join_network(record, endpoint, ports):
    """Give an endpoint its address in its network, which is returned, as it should be. With PORTS
    it must have rules."""
    network = find_network(endpoint["network"])
    restore_network(network, ports)
    if not endpoint.get("ip"):
        endpoint["ip"] = take_address(network, record, endpoint)
        endpoint["mac"] = endpoint["wanted_mac"] or mac_of(endpoint["ip"]).hex(":")
    endpoint["prefix"] = int(network["subnet"].partition("/")[2])
    endpoint["gateway"] = network["gateway"]
    endpoint["internal"] = network["internal"]
    return network

def open_network(wiring):
    """A descriptor of the network namespace that a container's cables lead into."""
    fd = Descriptor(os.open(f"/proc/{wiring['pid']}/ns/net", os.O_RDONLY | os.O_CLOEXEC))
    if not is_wired(wiring):  # else the pid wasn't used again before that was open
        os.close(fd)
        raise Failure("network: the container has just ended")
    return fd

class inside_network:
    """A `with` in a network namespace, of which there is a descriptor."""
    def __init__(self, theirs):
        self.theirs = theirs
    def __enter__(self):
        self.own = Descriptor(os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        os.setns(self.theirs, CLONE_NEWNET)  # where the cable's other end is
    def __exit__(self, *_):
        with self.own:
            os.setns(self.own, CLONE_NEWNET)  # back to the host's

def plug_in(wiring, endpoint, network, theirs):
    """Make the veth pair between a network's bridge and a container; then, for a moment in its
    network namespace, THEIRS, its address and route."""
    veth, mtu = "veth" + os.urandom(5).hex(), network["mtu"]  # an old one may be there a bit longer
    endpoint["link"], device = veth, endpoint["device"]
    bridge = own_link(network)
    if not bridge:
        raise Failure(f"network, on {network['name']}: its bridge has just been removed")
    peer = link_message(device, {
        IFLA_NET_NS_FD: int(theirs), IFLA_MTU: mtu,
        IFLA_ADDRESS: bytes.fromhex(endpoint["mac"].replace(":", ""))})[2]
    messages = [link_message(veth, {
        IFLA_MASTER: bridge["index"], IFLA_MTU: mtu,
        IFLA_LINKINFO: {IFLA_INFO_KIND: "veth", IFLA_INFO_DATA: {VETH_INFO_PEER: peer}}},
        MAKE, IFF_UP)]
    if wiring["ports"]:  # what it sends to its own comes back by this cable (br_netfilter)
        messages.append(link_message(veth, {IFLA_LINKINFO: {
            IFLA_INFO_SLAVE_KIND: "bridge", IFLA_INFO_SLAVE_DATA: {IFLA_BRPORT_MODE: b"\1"}}}))
    netlink(NETLINK_ROUTE, veth, messages)  # a cable from the bridge to its eth0
    with inside_network(theirs):
        index = _socket.if_nametoindex(device)
        messages = [link_message(device, up=IFF_UP),
                    address_message(index, endpoint["ip"], endpoint["prefix"])]
        if way_out(wiring) is endpoint:
            messages.append(route_message(index, endpoint["gateway"]))
        netlink(NETLINK_ROUTE, device, messages)  # up, with its address and the way out
        with tolerate(errno.ENOENT):  # no neighbour is its router: CVE-2020-13401
            write_value(f"/proc/sys/net/ipv6/conf/{device}/disable_ipv6", "1")

def disconnect_container(record):
    """Give back a container's ports and addresses; the kernel removes its cables."""
    if not os.path.isdir(container_path(record)):
        return
    with changed_wiring(record) as wiring:
        if record.get("network") not in HELPERS:
            remove_elements(own_table(), leading_ports(wiring, NFT_MSG_DELSETELEM))
            forget_flows(wiring["ports"])
        for endpoint in wiring["endpoints"]:
            leave_network(record, endpoint)
        if not record.get("network"):  # it was killed before it was on record
            for network in networks():
                give_back_addresses(record["id"], network["name"])
        wiring.update(pid=0, pid_start=None, ports=[])

def leave_network(record, endpoint):
    """Give back an endpoint's address, and let the neighbours know."""
    give_back_addresses(record["id"], endpoint["network"])
    if endpoint.get("ip"):
        part_neighbours(record["id"], endpoint)
    for key in ("ip", "mac", "prefix", "gateway", "internal", "link"):
        endpoint.pop(key, None)

def connect_later(record, endpoint):
    """Put a container that was made long ago into one more network: now, if it runs."""
    if record["network"] in APART or ":" in record["network"]:
        raise Failure(f"network connect, on {record['name']}: it was started with --network "
                      f"{record['network'][:22]}")
    network = find_network(endpoint["network"])
    with changed_wiring(record) as wiring:
        if any(there["network"] == network["name"] for there in wiring["endpoints"]):
            raise Failure(f"network connect, on {record['name']}: it is in {network['name']}")
        used = {there["device"] for there in wiring["endpoints"]}
        endpoint["device"] = next(f"eth{number}" for number in range(len(used) + 1)
                                  if f"eth{number}" not in used)
        if not is_wired(wiring):
            wiring["endpoints"].append(endpoint)
            return
        join_network(record, endpoint, wiring["ports"])
        before = leading_ports(wiring, NFT_MSG_DELSETELEM)
        wiring["endpoints"].append(endpoint)
        write_json(container_path(record, "network.json"), wiring)  # so that it can be swept
        try:
            with open_network(wiring) as theirs:
                plug_in(wiring, endpoint, network, theirs)
        except (Failure, OSError):
            wiring["endpoints"].remove(endpoint)
            leave_network(record, endpoint)
            raise
        lead_ports(wiring, before)
        meet_neighbours(record, endpoint, own_line=True)

def disconnect_now(record, name):
    """Take a container out of a network: now, if it runs."""
    with changed_wiring(record) as wiring:
        found = [there for there in wiring["endpoints"] if there["network"] == name]
        if not found:
            raise Failure(f"network disconnect, on {record['name']}: it is not in {name}")
        before = leading_ports(wiring, NFT_MSG_DELSETELEM)
        wiring["endpoints"].remove(found[0])
        if not found[0].get("ip"):
            return
        lead_ports(wiring, before)
        if is_wired(wiring):
            with tolerate(errno.ENODEV):  # it has removed its end
                netlink(NETLINK_ROUTE, found[0]["link"], [  # with its other end, inside
                    link_message(found[0]["link"], kind=RTM_DELLINK)])
            lead_out(wiring)
            forget_network(record, found[0])
        leave_network(record, found[0])

@command("[OPTIONS] NETWORK CONTAINER", "put a container into one more network, now if it runs",
         ("--ip", "IP", "its address there"),
         ("--alias", "NAME...", "one more name for its neighbours"), takes=(2, 2))
def cmd_network_connect(options, words):
    endpoint = {**parse_network(""), "network": words[0], "wanted_ip": options["ip"] or "",
                "aliases": options["alias"]}
    check_endpoint(endpoint, "--ip", "--alias")
    if endpoint["aliases"] and words[0] == "bridge":
        raise Failure("--alias: it can't go with the network bridge")
    sweep_containers()
    record = find_container(words[1])
    connect_later(record, endpoint)
    note_event("network", "connect", words[0], {"name": words[0], "container": record["id"]})

@command("[OPTIONS] NETWORK CONTAINER", "take a container out of a network, now if it runs",
         ("-f --force", "", "as always"), takes=(2, 2))
def cmd_network_disconnect(_, words):
    sweep_containers()
    record = find_container(words[1])
    disconnect_now(record, words[0])
    note_event("network", "disconnect", words[0], {"name": words[0], "container": record["id"]})

# Ports

def network_names(record, wiring):
    """What `ps` calls a container's networks."""
    if record["network"] in APART or ":" in record["network"]:
        return record["network"]
    return ",".join(endpoint["network"] for endpoint in wiring["endpoints"])

def network_settings(record):
    """A container's place in its networks, in docker's words."""
    wiring, ports, places = read_wiring(record), {}, {}
    for port, host in published(wiring):
        address, _, number = host.rpartition(":")
        ports.setdefault(port, []).append({"HostIp": address, "HostPort": number})
    for own in wiring["endpoints"]:
        places[own["network"]] = {
            "IPAddress": own.get("ip", ""), "IPPrefixLen": own.get("prefix", 0),
            "Gateway": own.get("gateway", ""), "MacAddress": own.get("mac", ""),
            "Aliases": own["aliases"]}
    first = {"IPAddress": "", "IPPrefixLen": 0, "Gateway": "", "MacAddress": ""}
    for place in [*places.values()][:1]:
        first = {key: place[key] for key in first}
    if not places:
        places[record["network"]] = {**first, "Aliases": []}
    return {**first, "Ports": ports, "Networks": places}

# ── 48. Ports and names ──────────────────────────────────────────────────────
# A published port is a socket of the host's that the monitor holds: as long as it is open no other
# program can have it.  Packets take another way, by the packet filter.
#
# Who is who stands in each container's own /etc/hosts, which is bind-mounted: it is written in
# place.

NEIGHBOUR = "\t# neighbour"  # marks our lines in a container's /etc/hosts

def hosts_line(address, names):
    return f"{address}\t{' '.join(dict.fromkeys(names))}"

def own_lines(spec, record, wiring):
    """A container's own lines: one for each network."""
    rows = []
    for endpoint in wiring["endpoints"]:
        names = [spec["hostname"], *endpoint["aliases"]]
        if endpoint["network"] != "bridge":
            names.append(record["name"])
        if endpoint.get("ip"):
            rows.append(hosts_line(endpoint["ip"], names))
    return rows

def neighbour_lines(container_id, endpoint):
    """The others in an endpoint's network: {id: line}; none in the default one, as with docker."""
    if endpoint["network"] == "bridge" or not endpoint.get("ip"):
        return {}
    return {user[1]: hosts_line(user[0], user[2:]) + NEIGHBOUR
            for user in network_users({"name": endpoint["network"]}) if user[1] != container_id}

def hosts_file(spec, record):
    """A container's /etc/hosts when it starts; who shares a network has that one's."""
    wiring, kind = read_wiring(record), record["network"].partition(":")[0]
    if kind in ("host", "container"):
        path = "/etc/hosts"
        if kind == "container":
            path = state_path("containers", record["network"][10:], "hosts")
            if not os.path.exists(path):  # it has the host's
                path = "/etc/hosts"
        rows = read_text(path).rstrip("\n").split("\n")
    else:
        rows = [hosts_line(address, names.split(" ")) for address, names in (
            ("127.0.0.1", "localhost"), ("::1", "localhost ip6-localhost ip6-loopback"),
            ("fe00::", "ip6-localnet"), ("ff00::", "ip6-mcastprefix"),
            ("ff02::1", "ip6-allnodes"), ("ff02::2", "ip6-allrouters"))]
        rows += own_lines(spec, record, wiring) or [hosts_line("127.0.1.1", [spec["hostname"]])]
    gateway = next((endpoint["gateway"] for endpoint in wiring["endpoints"]), "127.0.0.1")
    for name, _, address in (entry.partition(":") for entry in record["wants"]["hosts"]):
        rows.append(hosts_line(address.replace("host-gateway", gateway), [name]))
    for endpoint in wiring["endpoints"]:
        rows += neighbour_lines(record["id"], endpoint).values()
    return "\n".join(rows) + "\n"

def write_hosts(spec, record):
    """Write a container's /etc/hosts; who gets a lease after this was read adds its own line."""
    path = container_path(record)
    with hold(path):
        write_file(path + "/hosts", hosts_file(spec, record))
        os.chmod(path + "/hosts", 0o644)

def change_hosts(container_id, change):
    """Change the bytes of a container's /etc/hosts by change(bytes), in place."""
    path = state_path("containers", container_id)
    with tolerate(errno.ENOENT), Descriptor(os.open(path, OPEN_DIR)) as folder:  # it may just go
        fcntl.flock(folder, fcntl.LOCK_EX)  # not the file: the container could hold that lock
        with Descriptor(os.open("hosts", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC,
                                dir_fd=folder)) as fd:
            old = os.read(fd, SMALL_FILE)
            new = change(old)
            if new == old or len(old) == SMALL_FILE:  # that large the container has made it
                return
            if new.startswith(old):
                os.pwrite(fd, new[len(old):], len(old))
            else:
                os.ftruncate(fd, os.pwrite(fd, new, 0))

def with_lines(old, lines):
    """The bytes of a hosts file, and at their end the lines that aren't there."""
    if old and not old.endswith(b"\n"):
        old += b"\n"
    more = [encode(line) + b"\n" for line in lines]
    return old + b"".join(line for line in more if b"\n" + line not in old)

def without_neighbour(old, address):
    """The bytes of a hosts file without the line of the neighbour who had an address."""
    start = old.find(encode(f"\n{address}\t"))
    while start >= 0:
        end = old.find(b"\n", start + 1)
        if end >= 0 and old.endswith(encode(NEIGHBOUR), start, end):
            return old[:start] + old[end:]
        start = old.find(encode(f"\n{address}\t"), start + 1)
    return old

def introduce(record):
    """Let a container's neighbours know it, in all of its networks; it is about to run."""
    for endpoint in read_wiring(record)["endpoints"]:
        meet_neighbours(record, endpoint)

def meet_neighbours(record, endpoint, own_line=False):
    """Put a container's line into its neighbours' /etc/hosts; with OWN_LINE also into its own what
    is missing there, when a network is new to it."""
    others = neighbour_lines(record["id"], endpoint)
    if own_line:
        spec = read_json(container_path(record, "config.json"))
        mine = own_lines(spec, record, {"endpoints": [endpoint]})
        change_hosts(record["id"], lambda old: with_lines(old, [*mine, *others.values()]))
    if endpoint["network"] == "bridge":
        return
    line = hosts_line(endpoint["ip"], [record["name"], *endpoint["aliases"]]) + NEIGHBOUR
    for other in others:
        change_hosts(other, lambda old: with_lines(old, [line]))

def part_neighbours(container_id, endpoint):
    """Take a container's line out of its neighbours' /etc/hosts."""
    for other in neighbour_lines(container_id, endpoint):
        change_hosts(other, lambda old: without_neighbour(old, endpoint["ip"]))

def forget_network(record, endpoint):
    """Take the lines of a network out of the /etc/hosts of a container that has left it."""
    spec = read_json(container_path(record, "config.json"))
    gone = {*map(encode, own_lines(spec, record, {"endpoints": [endpoint]})),
            *map(encode, neighbour_lines(record["id"], endpoint).values())}
    change_hosts(record["id"], lambda old: b"\n".join(
        line for line in old.split(b"\n") if line not in gone))

def resolv_conf(record):
    """A container's resolv.conf: the host's by Docker's rules, and what the options say."""
    wants, kind = record["wants"], record["network"].partition(":")[0]
    servers, search, options = host_resolver(record, kind)
    if wants["dns"]:
        servers = wants["dns"]
    if wants["search"]:
        search = [] if wants["search"] == ["."] else ["search " + " ".join(wants["search"])]
    if wants.get("options"):
        options = [line for line in options if not line.startswith("options ")]
        options.append("options " + " ".join(wants["options"]))
    return "\n".join([*(f"nameserver {server}" for server in servers), *search, *options, ""])

def host_resolver(record, kind):
    """What a container can use of the host's resolv.conf: its servers' addresses, and the lines of
    search and of options. Servers that only the host's lo, or only IPv6, can reach are none; where
    systemd has nothing but its stub there, its other file has the real ones."""
    paths = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"]
    if kind == "container":
        paths.insert(0, state_path("containers", record["network"][10:], "resolv.conf"))
    servers, search, options = [], [], []
    for path in paths:
        if servers or not os.path.isfile(path):
            continue
        rows = [line.split() for line in read_text(path).split("\n")]
        servers = [row[1] for row in rows if row[:1] == ["nameserver"] and len(row) > 1]
        if kind != "host":
            servers = [server for server in servers
                       if ":" not in server and not server.startswith("127.")]
        lines = [(row[0], " ".join(row)) for row in rows if len(row) > 1]
        search = search or [text for word, text in lines if word in ("search", "domain")][-1:]
        options = options or [text for word, text in lines if word in ("options", "sortlist")]
    if kind in HELPERS and not servers:
        servers = helper_servers(kind)
    return servers or ["8.8.8.8", "8.8.4.4"], search, options

# Ports

def parse_publish(text):
    """A -p argument as [[host address, first and last port of the host's (0: any that is free),
    container's port, protocol]]."""
    def port_range(text):
        first, _, last = text.partition("-")
        return parse_number(first, "", 0), parse_number(last or first, "", 0)

    rest, _, protocol = text.partition("/")
    rest, _, inner = rest.rpartition(":")
    address, _, outer = rest.rpartition(":")
    protocol = protocol or "tcp"
    try:
        (first, last), (low, high) = port_range(inner), port_range(outer or "0")
        if address:
            check_address(address, "--publish", _socket.AF_INET)
        right = 0 < first <= last < 1 << 16 and low <= high < 1 << 16 and protocol in PROTOCOLS
    except Failure:
        right = False
    if not right or (first != last and low and high - low != last - first):
        raise Failure(f"--publish, on {as_typed(text)}: it is "
                      "[[IP:]HOST[-RANGE]:]PORT[-RANGE][/tcp|udp]")
    rows = []
    for port in range(first, last + 1):
        if low:
            rows.append([address, low + port - first, high - last + port, port, protocol])
        else:
            rows.append([address, 0, 0, port, protocol])
    return rows

def leading_ports(wiring, kind=NFT_MSG_NEWSETELEM):
    """Messages that lead a container's ports to it, or no longer."""
    out = way_out(wiring)
    return port_elements(kind, wiring["ports"], out["ip"]) if out else []

def hold_ports(state):
    """Take a container's ports on the host: [host's address, port, container's, protocol]."""
    state["ports"], taken = [], []
    with more_descriptors() as limit:
        for address, first, last, port, protocol in state["record"]["wants"]["ports"]:
            fd, number = hold_port(address, first, last, protocol)
            state["ports"].append(limit.out_of_the_way(fd))
            taken.append([address, number, port, protocol])
            for signal in _signal.sigpending() & DEADLY:  # it may be about many thousands
                raise Failure("run: interrupted before the command started", 128 + signal)
    sweep_containers()  # the ports are ours: who had them is dead, but may have left elements
    return taken

def close_ports(state):
    """Let others have a container's ports, and this process their descriptors."""
    for fd in state.pop("ports", []):
        os.close(fd)

class more_descriptors:
    """A `with` in which this process may have as many descriptors as its hard limit allows; the
    containers that it starts later don't inherit that."""
    def __enter__(self):
        self.limits = (LONG * 2)()
        prlimit(0, RLIMIT_NOFILE, None, self.limits)
        prlimit(0, RLIMIT_NOFILE, (LONG * 2)(self.limits[1], self.limits[1]), None)
        return self
    def __exit__(self, *_):
        prlimit(0, RLIMIT_NOFILE, self.limits, None)
    def out_of_the_way(self, fd):
        """Move a descriptor above the usual limit, so that below it there is room for others."""
        if self.limits[0] >= self.limits[1]:
            return fd
        with Descriptor(fd):
            return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, self.limits[0])

def hold_port(address, first, last, protocol):
    """Take the first free of these ports of the host's: (descriptor, port). As long as that is open
    no other program can have it, by the kernel's word; no packet comes to it."""
    tcp = protocol == "tcp"
    for port in range(first, last + 1):
        with blame(f"--publish, on {address or '0.0.0.0'}:{port}/{protocol}"):
            held = _socket.socket(type=_socket.SOCK_STREAM if tcp else _socket.SOCK_DGRAM)
        try:
            held.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, tcp)  # TIME_WAIT is free
            held.bind((address or "0.0.0.0", port))
            if tcp:
                held.listen(1)  # from now on SO_REUSEADDR helps nobody
            taken = held.getsockname()[1]
            return held.detach(), taken
        except OSError as error:
            held.close()
            why = reason(error)
    if not last:
        why = "no port is free"
    raise Failure(f"--publish, on {address or '0.0.0.0'}:{port}/{protocol}: {why}")

def lead_ports(wiring, before):
    """Lead a container's ports by the network that is its way out now; BEFORE: not so any more."""
    now = leading_ports(wiring)
    if wiring["ports"] and before != leading_ports(wiring, NFT_MSG_DELSETELEM):
        remove_elements(own_table(), before)
        nft(own_table(), now)
        forget_flows(wiring["ports"])

def lead_out(wiring):
    """Let a container's packets leave by its way out, when the one before is gone."""
    endpoint = way_out(wiring)
    if endpoint:
        with open_network(wiring) as theirs, inside_network(theirs):
            index = _socket.if_nametoindex(endpoint["device"])
            netlink(NETLINK_ROUTE, endpoint["device"], [  # the way out
                route_message(index, endpoint["gateway"])])

def published(wiring):
    """A container's ports: [("80/tcp", "0.0.0.0:8080")]."""
    return [(f"{port}/{protocol}", f"{address or '0.0.0.0'}:{taken}")
            for address, taken, port, protocol in wiring["ports"]]

@command("CONTAINER [PORT[/PROTOCOL]]", "show a container's ports on the host", takes=(1, 2))
def cmd_port(_, words):
    wanted = words[1] if words[1:] else ""
    if wanted and "/" not in wanted:
        wanted += "/tcp"
    rows = [(port, host) for port, host in published(read_wiring(find_container(words[0])))
            if port == (wanted or port)]
    if wanted and not rows:
        raise Failure(f"port, on {words[0]}: {wanted} is not published")
    for port, host in rows:
        show(host if wanted else f"{port} -> {host}")

# ── 49. A process's traits ───────────────────────────────────────────────────
# What only an engine's config.json asks of a process: when it may run, what its reads and writes
# give way to, which kernel it takes this for, and where its memory comes from.  A new trait is a
# row in OCI_FIELDS, a check here, and a kernel call.

IO_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}  # ioprio.h
IOPRIO_WHO_PROCESS = 1
SCHEDULERS = {"SCHED_OTHER": 0, "SCHED_FIFO": 1, "SCHED_RR": 2, "SCHED_BATCH": 3, "SCHED_ISO": 4,
              "SCHED_IDLE": 5, "SCHED_DEADLINE": 6}  # linux/sched.h
SCHEDULER_FLAGS = {f"SCHED_FLAG_{name}": 1 << bit for bit, name in enumerate((
    "RESET_ON_FORK", "RECLAIM", "DL_OVERRUN", "KEEP_POLICY", "KEEP_PARAMS", "UTIL_CLAMP_MIN",
    "UTIL_CLAMP_MAX"))}
PERSONALITIES = {"LINUX": 0, "LINUX32": 8}  # linux/personality.h
MEMORY_POLICIES = {f"MPOL_{name}": number for number, name in enumerate((
    "DEFAULT", "PREFERRED", "BIND", "INTERLEAVE", "LOCAL", "PREFERRED_MANY",
    "WEIGHTED_INTERLEAVE"))}  # linux/mempolicy.h
MEMORY_FLAGS = {"MPOL_F_NUMA_BALANCING": 1 << 13, "MPOL_F_RELATIVE_NODES": 1 << 14,
                "MPOL_F_STATIC_NODES": 1 << 15}

def numbered(name, x86_64, i686, arm, others, *kinds):
    """Bind a system call that has another number on each architecture."""
    numbers = {"x86_64": x86_64, "i686": i686, "armv7l": arm}
    return kernel(name, *kinds, number=numbers.get(os.uname().machine, others))

def check_traits(process, what):
    """Refuse by name a word that the kernel's headers don't have."""
    scheduler, memory = process.get("scheduler", {}), process.get("memoryPolicy", {})
    for field, words, known in (
            ("process.ioPriority.class", [process.get("ioPriority", {}).get("class")], IO_CLASSES),
            ("process.scheduler.policy", [scheduler.get("policy")], SCHEDULERS),
            ("process.scheduler.flags", scheduler.get("flags", []), SCHEDULER_FLAGS),
            ("linux.personality.domain", [process.get("personality", {}).get("domain")],
             PERSONALITIES),
            ("linux.personality.flags", process.get("personality", {}).get("flags", []), {}),
            ("linux.memoryPolicy.mode", [memory.get("mode")], MEMORY_POLICIES),
            ("linux.memoryPolicy.flags", memory.get("flags", []), MEMORY_FLAGS)):
        top = field.split(".")[1]
        for word in words:
            if word not in known and (word is not None or top in process):
                raise Failure(f"{what}: {field}: {word}: unknown")
    lists = [memory.get("nodes"), *process.get("execCPUAffinity", {}).values()]
    for text in filter(None, lists):
        if not all(is_id(end) for part in text.split(",") for end in part.split("-", 1)):
            raise Failure(f"{what}: {text}: not a list, such as 0-2,5")

def schedule(process, pid):
    """Say when a process may run, and what its reads and writes give way to: sched(7),
    ioprio_set(2)."""
    row = process.get("ioPriority")
    if row:
        ioprio_set = numbered("ioprio_set", 251, 289, 314, 30, INT, INT, INT)
        value = IO_CLASSES[row["class"]] << 13 | row.get("priority", 0)
        with blame(f"process.ioPriority, on {row['class']}"):
            ioprio_set(IOPRIO_WHO_PROCESS, pid, value)  # before or after others' reads and writes
    row = process.get("scheduler")
    if row:
        sched_setattr = numbered("sched_setattr", 314, 351, 380, 274, INT, BYTES, INT)
        flags = sum({SCHEDULER_FLAGS[word] for word in row.get("flags", ())})
        times = [row.get(key, 0) for key in ("runtime", "deadline", "period")]
        attributes = struct.pack("IIQiIQQQ", 48, SCHEDULERS[row["policy"]], flags,
                                 row.get("nice", 0), row.get("priority", 0), *times)
        with blame(f"process.scheduler, on {row['policy']}"):
            sched_setattr(pid, attributes, 0)  # when it may run

def pin(pid, cpus):
    """Let a process run on these processors alone, a list such as 0-2,5; None: where it may."""
    if not cpus:
        return
    ranges = [part.partition("-")[::2] for part in cpus.split(",")]
    with blame(f"execCPUAffinity, on {cpus}"):
        os.sched_setaffinity(pid, {number for first, last in ranges for number in range(
            int(first), min(int(last or first), 1 << 16) + 1)})

def set_personality(process):
    """Say which kernel this process takes this one for, and where its memory comes from."""
    row = process.get("memoryPolicy")
    if row:
        set_mempolicy = numbered("set_mempolicy", 238, 276, 321, 237, INT, BYTES, LONG)
        bits = 0
        for part in filter(None, row.get("nodes", "").split(",")):
            first, _, last = part.partition("-")
            for number in range(int(first), min(int(last or first), 1023) + 1):
                bits |= 1 << number
        mode = MEMORY_POLICIES[row["mode"]]
        for word in row.get("flags", ()):
            mode |= MEMORY_FLAGS[word]
        nodes = bits.to_bytes(128, "little") if bits else None
        with blame(f"linux.memoryPolicy, on {row['mode']}"):
            set_mempolicy(mode, nodes, 1024 if bits else 0)  # which nodes its memory is of
    row = process.get("personality")
    if row:  # last: uname(2) says something else from here on
        personality = kernel("personality", LONG)
        personality(PERSONALITIES[row["domain"]])  # personality(2)

# ── 50. The OCI's config.json ────────────────────────────────────────────────
# What an engine wants is a document, config.md of the OCI's runtime-spec.  One table says for each
# of its fields what shape and bounds it has; what isn't carried out is refused by name.

USUAL_RULES = [  # what runc and crun add to an engine's: tun, but not the host's console
    rule for rule in device_rules([{"type": "c", "major": 10, "minor": 200, "access": "rwm"}])[1:]
    if (rule["major"], rule["minor"]) != (5, 1)]
U16, U32, U63, U64 = (range(1 << bits) for bits in (16, 32, 63, 64))
AMOUNT = range(-1, 1 << 63)  # -1: no limit
HOST_ID = range((1 << 32) - 1)
MAJOR, MINOR = range(1 << 12), range(1 << 20)  # linux/kdev_t.h, new_decode_dev
SECONDS = range((1 << 31) // 1000)  # poll(2) counts milliseconds in an int
REFUSED = ""
MOMENTS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart",
           "poststop")
ACTION_WORDS = [f"SCMP_ACT_{word}" for word in sorted(SECCOMP_ACTIONS)]
OPERATORS = [f"SCMP_CMP_{word}" for word in ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")]
CAPABILITY_SETS = "bounding", "effective", "permitted", "inheritable", "ambient"
NUMBERS = (("major", MAJOR), ("minor", MINOR))
MAPPING = (("containerID", HOST_ID), ("hostID", HOST_ID), ("size", range(1, 1 << 32)))
THROTTLES_OF = [f"throttle{way}Device" for way in ("ReadBps", "WriteBps", "ReadIOPS", "WriteIOPS")]
OCI_FIELDS = {  # {field: (its shape, who carries it out)}: [] for each of a list, {} of an object
    "ociVersion": (str, "load_bundle"),
    "root.path": (str, "build_root"),
    "root.readonly": (bool, "enter_root"),
    "hostname": (str, "name_host"),
    "domainname": (str, "name_host"),
    "annotations{}": (str, "oci_state"),
    "mounts[].destination": (str, "mount_point"),
    "mounts[].type": (str, "mounter_of"),
    "mounts[].source": (str, "mount_one"),
    "mounts[].options[]": (str, "parse_mount_options"),
    **{f"mounts[].{kind}Mappings[].{key}": (shape, "map_tree")
       for kind in ("uid", "gid") for key, shape in MAPPING},
    **{f"hooks.{moment}[].{key}": (shape, "run_hooks") for moment in MOMENTS for key, shape in (
        ("path", str), ("args[]", str), ("env[]", str), ("timeout", (SECONDS,)))},
    "process.terminal": (bool, "hand_out_terminal"),
    "process.consoleSize.height": ((U16,), "hand_out_terminal"),
    "process.consoleSize.width": ((U16,), "hand_out_terminal"),
    "process.args[]": (str, "execute"),
    "process.env[]": (str, "become_command"),
    "process.cwd": (str, "enter_workdir"),
    "process.user.uid": ((ID,), "find_user"),
    "process.user.gid": ((ID,), "find_user"),
    "process.user.additionalGids[]": (ID, "find_user"),
    "process.user.umask": ((range(0o10000),), "confine"),
    **{f"process.capabilities.{kind}[]": (str, "confine") for kind in CAPABILITY_SETS},
    "process.noNewPrivileges": (bool, "confine"),
    "process.rlimits[].type": (str, "limit_process"),
    "process.rlimits[].soft": (U64, "limit_process"),
    "process.rlimits[].hard": (U64, "limit_process"),
    "process.oomScoreAdj": ((range(-1000, 1001),), "limit_process"),
    "process.apparmorProfile": (str, "set_label"),
    "process.selinuxLabel": (str, "set_label"),
    "process.ioPriority.class": (str, "schedule"),
    "process.ioPriority.priority": ((range(8),), "schedule"),
    "process.scheduler.policy": (str, "schedule"),
    "process.scheduler.nice": ((range(-20, 20),), "schedule"),
    "process.scheduler.priority": ((range(100),), "schedule"),
    "process.scheduler.flags[]": (str, "schedule"),
    "process.scheduler.runtime": ((U63,), "schedule"),
    "process.scheduler.deadline": ((U63,), "schedule"),
    "process.scheduler.period": ((U63,), "schedule"),
    "process.execCPUAffinity.initial": (str, "pin"),
    "process.execCPUAffinity.final": (str, "pin"),
    "linux.namespaces[].type": (str, "new_namespaces"),
    "linux.namespaces[].path": (str, "joined_namespaces"),
    **{f"linux.{kind}Mappings[].{key}": (shape, "map_ids")
       for kind in ("uid", "gid") for key, shape in MAPPING},
    **{f"linux.timeOffsets.{clock}.{key}": (shape, "time_offsets")
       for clock in ("monotonic", "boottime")
       for key, shape in (("secs", (range(-1 << 33, 1 << 33),)), ("nanosecs", (range(10**9),)))},
    "linux.devices[].path": (str, "make_devices"),
    "linux.devices[].type": (str, "make_device"),
    "linux.devices[].major": ((MAJOR,), "make_device"),
    "linux.devices[].minor": ((MINOR,), "make_device"),
    "linux.devices[].fileMode": ((U16,), "make_device"),
    "linux.devices[].uid": ((ID,), "make_device"),
    "linux.devices[].gid": ((ID,), "make_device"),
    "linux.rootfsPropagation": (str, "enter_root"),
    "linux.sysctl{}": (str, "set_sysctls"),
    "linux.maskedPaths[]": (str, "hide_paths"),
    "linux.readonlyPaths[]": (str, "hide_paths"),
    "linux.mountLabel": (str, "refuse_unsupported"),  # where SELinux is off it means nothing
    "linux.personality.domain": (str, "set_personality"),
    "linux.personality.flags[]": (str, "set_personality"),
    "linux.memoryPolicy.mode": (str, "set_personality"),
    "linux.memoryPolicy.nodes": (str, "set_personality"),
    "linux.memoryPolicy.flags[]": (str, "set_personality"),
    "linux.seccomp": (OCI_SECCOMP, "assemble_filter"),
    "linux.cgroupsPath": (str, "cgroup_dirs"),
    "linux.resources.devices[].type": (str, "limit_devices"),
    "linux.resources.devices[].major": ((range(-1, MAJOR.stop),), "limit_devices"),
    "linux.resources.devices[].minor": ((range(-1, MINOR.stop),), "limit_devices"),
    "linux.resources.devices[].access": (str, "limit_devices"),
    "linux.resources.devices[].allow": (bool, "limit_devices"),
    **{f"linux.resources.memory.{key}": ((AMOUNT,), "limit_cgroups")
       for key in ("limit", "reservation", "swap", "kernel", "kernelTCP")},
    "linux.resources.memory.swappiness": ((range(201),), "limit_cgroups"),
    **{f"linux.resources.memory.{key}": (bool, "limit_cgroups")
       for key in ("disableOOMKiller", "useHierarchy", "checkBeforeUpdate")},
    **{f"linux.resources.cpu.{key}": ((U63,), "limit_cgroups")
       for key in ("shares", "burst", "period", "realtimePeriod")},
    "linux.resources.cpu.quota": ((AMOUNT,), "limit_cgroups"),
    "linux.resources.cpu.realtimeRuntime": ((AMOUNT,), "limit_cgroups"),
    "linux.resources.cpu.cpus": (str, "limit_cgroups"),
    "linux.resources.cpu.mems": (str, "limit_cgroups"),
    "linux.resources.cpu.idle": ((range(2),), "limit_cgroups"),
    "linux.resources.pids.limit": ((AMOUNT,), "limit_cgroups"),
    "linux.resources.hugepageLimits[].pageSize": (str, "limit_cgroups"),
    "linux.resources.hugepageLimits[].limit": (U64, "limit_cgroups"),
    "linux.resources.blockIO.weight": ((U16,), "limit_cgroups"),
    "linux.resources.blockIO.leafWeight": ((U16,), "limit_cgroups"),
    **{f"linux.resources.blockIO.weightDevice[].{key}": (shape, "limit_cgroups")
       for key, shape in (*NUMBERS, ("weight", (U16,)), ("leafWeight", (U16,)))},
    **{f"linux.resources.blockIO.{kind}[].{key}": (shape, "limit_cgroups")
       for kind in THROTTLES_OF for key, shape in (*NUMBERS, ("rate", U64))},
    "linux.resources.network.classID": ((U32,), "limit_cgroups"),
    "linux.resources.network.priorities[].name": (str, "limit_cgroups"),
    "linux.resources.network.priorities[].priority": (U32, "limit_cgroups"),
    "linux.resources.rdma{}.hcaHandles": ((U32,), "limit_cgroups"),
    "linux.resources.rdma{}.hcaObjects": ((U32,), "limit_cgroups"),
    "linux.resources.unified{}": (str, "limit_cgroups"),
    "linux.netDevices{}.name": (str, "move_devices"),
    **{f"linux.intelRdt.{key}": (str, "share_cache")
       for key in ("closID", "schemata[]", "l3CacheSchema", "memBwSchema")},
    **{f"linux.intelRdt.{key}": (bool, "share_cache")
       for key in ("enableMonitoring", "enableCMT", "enableMBM")},
    **{name: (dict, REFUSED) for name in ("vm", "windows",
                                          "solaris", "zos", "freebsd")},
}

NEEDED = (  # what a row, if it is there, must say
    "linux.seccomp.defaultAction", "linux.seccomp.syscalls[].names",
    "linux.seccomp.syscalls[].action", "linux.seccomp.syscalls[].args[].op",
    "linux.resources.hugepageLimits[].pageSize", "linux.resources.network.priorities[].name",
    "linux.resources.blockIO.weightDevice[].weight")

def nested(fields):
    """A table of fields as the shape that check() wants."""
    top = {}
    for path, (shape, who) in fields.items():
        *above, last = path.split(".") if who else [""]
        place = top
        for word in above:
            key = word[:-2] if word[-1] in "]}" else word
            if word.endswith("[]"):
                place = place.setdefault(key, [{}])[0]
            elif word.endswith("{}"):
                place = place.setdefault(key, {str: {}})[str]
            else:
                place = place.setdefault(key, {})
        if last.endswith("[]"):
            place[last[:-2]] = [shape]
        elif last.endswith("{}"):
            place[last[:-2]] = {str: shape}
        elif last:
            place[last] = shape
    return top

OCI_SPEC = nested(OCI_FIELDS)
OCI_PROCESS, OCI_RESOURCES = OCI_SPEC["process"], OCI_SPEC["linux"]["resources"]

def load_bundle(bundle, container_id):
    """The spec in a bundle's config.json, with what it leaves out; it is what init gets."""
    what = f"{bundle}/config.json"
    spec = {"root": {}, "mounts": [], "hostname": "", "linux": {}, "process": {},
            "annotations": {}, **read_shaped(what, OCI_SPEC)}
    linux = spec["linux"] = {"namespaces": [], "resources": {}, "devices": [], "sysctl": {},
                             "cgroupsPath": f"{cgroup_folder()}/{container_id}", **spec["linux"]}
    refuse_malformed(spec, what)
    refuse_lacking(spec, "", what)
    refuse_unsupported(spec, what)
    refuse_foreign_sysctls(linux, what)
    spec = known_fields(spec, OCI_SPEC)
    linux = spec["linux"]
    see_from_inside(linux, what)
    root = spec["root"]["path"] = os.path.realpath(os.path.join(bundle, spec["root"]["path"]))
    if not os.path.isdir(root) and not any(  # there it may be
            row["type"] == "mount" and row.get("path") for row in linux["namespaces"]):
        raise Failure(f"{what}: root.path: {root}: no such directory")
    spec["process"] = full_process(spec["process"], {}, what)
    for key in {"personality", "memoryPolicy"} & {*linux}:
        spec["process"][key] = linux[key]  # in one place for init
    check_traits(spec["process"], what)
    for row in spec["mounts"]:
        row.setdefault("options", [])
        row.setdefault("type", "bind" if {"bind", "rbind"} & set(row["options"]) else "none")
        row["source"] = row.get("source", row["type"])
        if {"bind", "rbind"} & set(row["options"]):
            row["source"] = os.path.join(bundle, row["source"])
    rules = engine_rules(linux["resources"], what)
    linux["resources"]["devices"] = [{"allow": False, "access": "rwm"}] + rules + USUAL_RULES
    if "seccomp" in linux:
        linux["seccomp"].setdefault("syscalls", [])
    return spec

def engine_rules(resources, what):
    """The rules for devices as limit_devices() wants them; letters nobody knows mean nothing, and
    a rule that doesn't allow denies: runc's."""
    rules = []
    for rule in resources.get("devices", []):
        access, kind = rule.get("access") or "rwm", rule.get("type") or "a"
        kept = "".join(letter for letter in "rwm" if letter in access)
        for key, word, known in ("access", access, kept), ("type", kind, kind in ("a", "b", "c")):
            if not known:
                raise Failure(f"{what}: linux.resources.devices: {key}: {as_typed(word)}: unknown")
        rules.append({"allow": False, **rule, "type": kind, "access": kept})
        if kind == "a":
            del rules[-1]["type"]
    return rules

def read_resources(path):
    """The OCI's resources in a file, or on standard input."""
    what = f"--resources, on {path}"
    with blame(what):
        text = read_foreign(0 if path == "-" else path)
    found = parse_shaped(text, OCI_RESOURCES, what)
    refuse_lacking(found, "linux.resources", what)
    if "devices" in found:
        found["devices"] = engine_rules(found, what)
    return found

def read_shaped(path, shape):
    """The value in somebody else's JSON file, if it has that SHAPE, without what is null."""
    return parse_shaped(read_foreign(path), shape, path)

def parse_shaped(text, shape, what):
    """The value that JSON says, if it has that SHAPE, without what is null."""
    try:
        return without_nulls(plain_texts(check(from_json(text), shape, what)))
    except (ValueError, RecursionError) as why:
        raise Failure(f"{what}: bad JSON: {why}") from None

def known_fields(value, shape):
    """VALUE without the keys that its SHAPE doesn't name: among them could be our own, by which
    chapters tell init things."""
    if isinstance(shape, dict) and str not in shape:
        return {key: known_fields(value[key], shape[key]) for key in shape if key in value}
    if isinstance(shape, dict):
        return {key: known_fields(each, shape[str]) for key, each in value.items()}
    if isinstance(shape, list):
        return [known_fields(each, shape[0]) for each in value]
    return value

def without_nulls(value):
    """A JSON value without what is null, as if it weren't there."""
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return [*map(without_nulls, value)] if isinstance(value, list) else value

def refuse_unsupported(spec, what):
    """Refuse by name what the spec asks for and we can't do, or what makes no sense."""
    for path in (path for path, (_, who) in OCI_FIELDS.items() if who == REFUSED):
        value = spec
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value:
            raise Failure(f"{what}: {path}: not supported")
    if "seccomp" in spec["linux"]:
        refuse_seccomp(spec["linux"]["seccomp"], f"{what}: linux.seccomp")
    kinds = {row["type"] for row in spec["linux"]["namespaces"]}
    refuse_twice(spec["linux"]["namespaces"], f"{what}: linux.namespaces")
    for kind in kinds - {*NAMESPACES}:
        raise Failure(f"{what}: linux.namespaces: {kind}: not supported")
    if not has_namespace(spec, "mount"):
        refuse_mounts(spec, kinds, what)
    if (spec["hostname"] or spec.get("domainname")) and "uts" not in kinds:
        raise Failure(f"{what}: hostname: it needs a uts namespace")
    if "intelRdt" in spec["linux"]:
        refuse_cache(spec["linux"]["intelRdt"], f"{what}: linux.intelRdt")
    refuse_devices(spec["linux"].get("netDevices", {}), kinds, f"{what}: linux.netDevices")
    for row in spec["mounts"]:
        words = {*(row.get("options") or ())}
        if row.get("uidMappings") or row.get("gidMappings") or {"idmap", "ridmap"} & words:
            maps = row if row.get("uidMappings") else spec["linux"]
            if not words & {"bind", "rbind"} or not all(
                    maps.get(f"{kind}Mappings") for kind in ("uid", "gid")):
                raise Failure(f"{what}: mounts: idmap: it needs a bind mount, uidMappings and "
                              "gidMappings")
        if row.get("type") in OWN_MOUNTS:  # with options that mean something to us alone
            raise Failure(f"{what}: mounts: type: {row['type']}: unknown")
    if spec["linux"].get("mountLabel") and os.path.exists("/sys/fs/selinux/enforce"):
        raise Failure(f"{what}: linux.mountLabel: not supported")
    if spec["linux"].get("timeOffsets") and ("user" in kinds or not has_namespace(spec, "time")):
        raise Failure(f"{what}: linux.timeOffsets: it needs a time namespace of its own, and no "
                      "user namespace")
    for key in ("uidMappings", "gidMappings"):
        if has_namespace(spec, "user") and not spec["linux"].get(key):
            raise Failure(f"{what}: linux.{key}: a user namespace of its own needs them")
        if has_namespace(spec, "user") and all(row["containerID"] for row in spec["linux"][key]):
            raise Failure(f"{what}: linux.{key}: id 0 in the container needs one")

def refuse_devices(devices, kinds, what):
    """Refuse names that no network device can have, or two can't, and a network that is the
    host's."""
    if devices and "network" not in kinds:
        raise Failure(f"{what}: it needs a network namespace")
    names = [row.get("name") or name for name, row in devices.items()]
    for name in [*devices, *names]:
        if not 0 < len(encode(name)) < IFNAMSIZ or name in (".", "..") or any(
                letter in "/:%" or letter.isspace() for letter in name):
            raise Failure(f"{what}: {as_typed(name)}: no device can have that name")
    for name in names:
        if names.count(name) > 1:
            raise Failure(f"{what}: {as_typed(name)}: it is there twice")

def refuse_lacking(value, above, what):
    """Refuse by name what lacks one of the fields NEEDED: VALUE is what the field ABOVE says."""
    if isinstance(value, list):
        for row in value:
            refuse_lacking(row, f"{above}[]", what)
    elif isinstance(value, dict):
        for path in NEEDED:
            place, _, key = path.rpartition(".")
            if place == above and key not in value:
                raise Failure(f"{what}: {path}: it is missing")
        for key in value:
            refuse_lacking(value[key], f"{above}.{key}" if above else key, what)

def refuse_twice(rows, what):
    """Refuse two rows of one type, which the specification calls an error: which one is meant?"""
    seen = set()
    for row in rows:
        if row.get("type") in seen:
            raise Failure(f"{what}: {row.get('type')}: it is there twice")
        seen.add(row.get("type"))

def refuse_mounts(spec, kinds, what):
    """Refuse what takes mounts, where these would be somebody else's."""
    linux = spec["linux"]
    asked = {"mounts": spec["mounts"], "root.readonly": spec["root"].get("readonly"),
             "linux.devices": linux["devices"],
             **{f"linux.{key}": linux.get(key) for key in (
                 "maskedPaths", "readonlyPaths", "rootfsPropagation")}}
    for field, value in asked.items():
        if value:
            raise Failure(f"{what}: {field}: it needs a mount namespace of its own")
    if "user" in kinds and ("mount" not in kinds or has_namespace(spec, "user")):
        raise Failure(f"{what}: linux.namespaces: user: with it, it needs a mount namespace of its "
                      "own")

def refuse_seccomp(seccomp, what):
    """Refuse words nobody knows, and notifications that nobody could get: runc's rules."""
    actions = [row["action"] for row in seccomp.get("syscalls", ())]
    compared = [each["op"] for row in seccomp.get("syscalls", ()) for each in row.get("args", ())]
    for field, words, known in (
            ("flags", seccomp.get("flags", ()), SECCOMP_FLAGS),
            ("defaultAction", [seccomp["defaultAction"]], ACTION_WORDS),
            ("syscalls: action", actions, ACTION_WORDS),
            ("syscalls: args: op", compared, OPERATORS)):
        for word in words:
            if word not in known:
                raise Failure(f"{what}.{field}: {as_typed(word)}: unknown")
    rows = [row for row in seccomp.get("syscalls", ()) if row.get("action") == "SCMP_ACT_NOTIFY"]
    if seccomp.get("defaultAction") == "SCMP_ACT_NOTIFY" or any(
            "write" in row.get("names", ()) for row in rows):
        raise Failure(f"{what}: SCMP_ACT_NOTIFY: not for all calls, and not for write")
    if rows and not seccomp.get("listenerPath"):
        raise Failure(f"{what}.listenerPath: SCMP_ACT_NOTIFY needs it")

def refuse_foreign_sysctls(linux, what):
    """Refuse a setting of a namespace that isn't the container's own, or another container's: it
    would be the host's.  As runc does; engines make some namespaces, and give their path."""
    paths = {row["type"]: row.get("path") for row in linux["namespaces"]}
    for name in linux["sysctl"]:
        dotted = ".".join(sysctl_parts(name))
        kind = next((kind for start, kind in SYSCTLS if dotted.startswith(start)), None)
        if kind is None:
            continue  # set_sysctls() refuses it
        own = kind in paths
        if own and paths[kind]:
            with blame(f"namespace, on {paths[kind]}"):
                own = not os.path.samestat(os.stat(paths[kind]),
                                           os.stat(f"/proc/self/ns/{NAMESPACES[kind][1]}"))
        if not own:
            raise Failure(f"{what}: linux.sysctl: {name}: it would be the host's: the container "
                          f"has no {kind} namespace of its own")

def refuse_malformed(spec, what):
    """Refuse by name what the specification wants and isn't there, or isn't what it knows."""
    linux, hooks = spec["linux"], sum((spec.get("hooks") or {}).values(), [])
    for name, rows, key in (
            ("root", [spec["root"]], "path"),
            ("mounts", spec["mounts"], "destination"), ("hooks", hooks, "path"),
            ("linux.namespaces", linux["namespaces"], "type"),
            *(("linux.devices", linux["devices"], key) for key in ("path", "type"))):
        if not all(key in row for row in rows):
            raise Failure(f"{what}: {name}: {key}: it is missing")
    for hook in hooks:
        if not hook["path"].startswith("/"):
            raise Failure(f"{what}: hooks: path: {as_typed(hook['path'])}: it must be absolute")
        check_environment(hook.get("env"), f"{what}: hooks: env")
    for row in linux["devices"]:
        numbers = row.get("major", 0), row.get("minor", 0)
        path, row["path"] = row["path"], os.path.normpath("/" + row["path"].lstrip("/"))
        if row["type"] not in ("b", "c", "p", "u") or row["path"] == "/" or not all(
                isinstance(number, int) and 0 <= number < 1 << 32 for number in numbers):
            raise Failure(f"{what}: linux.devices: {path}: no such device can be made")
    for key in ("hostname", "domainname"):
        if len(encode(spec.get(key, ""))) > 64:
            raise Failure(f"{what}: {key}: longer than 64 bytes")
    word = linux.get("rootfsPropagation")
    if word and word not in PROPAGATION:
        raise Failure(f"{what}: linux.rootfsPropagation: {word}: unknown")
    for kind in ("uidMappings", "gidMappings"):
        for row in linux.get(kind) or ():
            if max(row["containerID"], row["hostID"]) + row["size"] > HOST_ID.stop:
                raise Failure(f"{what}: linux.{kind}: ids above {HOST_ID[-1]}")

def full_process(process, default, what):
    """A process as confine() wants it: what isn't said is as in DEFAULT, or nothing; a capability
    that the host itself lacks is left out, as config.md asks for."""
    process = {"terminal": False, "env": [], "user": {}, "capabilities": {},
               "apparmorProfile": "unconfined", "selinuxLabel": "", "noNewPrivileges": False,
               **{key: default[key] for key in default if key != "terminal"}, **process}
    if not process.get("args"):
        raise Failure(f"{what}: process.args: it is missing")
    if not process.get("cwd", "").startswith("/"):
        raise Failure(f"{what}: process.cwd: it must be there, and absolute")
    check_environment(process["env"], f"{what}: process.env")
    for text in process["env"]:
        if "=" not in text:
            raise Failure(f"{what}: process.env: {as_typed(text)}: it has no value")
    process["user"] = {key: value for key, value in process["user"].items()
                       if key in OCI_PROCESS["user"]}  # no name, which would be taken for our own
    refuse_twice(process.get("rlimits", []), f"{what}: process.rlimits")
    for row in process.get("rlimits", []):
        if row.get("type", "")[7:].lower() not in ULIMITS:
            raise Failure(f"{what}: process.rlimits: {row.get('type')}: unknown")
    wanted = process["capabilities"] = held_capabilities(process["capabilities"])
    wanted["ambient"] = [name for name in wanted["ambient"]  # buildah asks for what can't be
                         if name in wanted["inheritable"] and name in wanted["permitted"]]
    process["apparmorProfile"] = process["apparmorProfile"] or "unconfined"
    size = process.get("consoleSize")
    if isinstance(size, dict):  # else it is the caller's terminal's
        process["consoleSize"] = [size.get(key, 0) for key in ("height", "width")]
    return process

def typed_process(options, args, old):
    """The process of `exec` as an engine's options say, and otherwise as OLD."""
    process = exec_process(dict(options, user=None), args, old)
    process["terminal"], user = options["tty"], process["user"]
    if options["user"] is not None:
        uid, _, gid = options["user"].partition(":")
        user.update(uid=parse_id(uid, "user"), gid=parse_id(gid or "0", "group"))
    more = [parse_id(text, "group") for text in options["additional-gids"]]
    user["additionalGids"] = (user.get("additionalGids") or []) + more
    if options["cwd"] is not None:
        process["cwd"] = options["cwd"]
    added = {"CAP_" + text.upper().replace("CAP_", "", 1) for text in options["cap"]}
    if added - {*CAPABILITIES}:
        raise Failure(f"--cap, on {' '.join(options['cap'])}: there is no such capability")
    sets = process["capabilities"]
    process["capabilities"] = {kind: [*sets[kind], *(added - {*sets[kind]})] if kind in (
        "bounding", "effective", "permitted") else sets[kind] for kind in sets}
    process.update(noNewPrivileges=process["noNewPrivileges"] or options["no-new-privs"],
                   apparmorProfile=options["apparmor"] or process["apparmorProfile"],
                   selinuxLabel=options["process-label"] or process["selinuxLabel"])
    return full_process(process, {}, "exec")

def one_more_process(options, args, old):
    """The process of `exec`: an engine's file has it, or it is OLD but for what the options say."""
    path = options["process"]
    if not path:
        if not args:
            raise Failure("exec: it takes ID COMMAND, or --process FILE")
        return typed_process(options, args, old)
    kept = ("capabilities", "apparmorProfile", "selinuxLabel", "oomScoreAdj", "personality",
            "execCPUAffinity", "callersKeyring")
    process = full_process(known_fields(read_shaped(path, OCI_PROCESS), OCI_PROCESS), {
        key: old[key] for key in kept if key in old}, path)
    check_traits(process, path)
    return process

# ── 51. What a bundle may ask for ────────────────────────────────────────────
# Two commands that need no container: what of the specification is carried out, as the tables say,
# and an example of a config.json, with root or without.

@command("", "show what of the OCI's runtime-spec is carried out, as JSON")
def cmd_features(*_):
    """features.md of the runtime-spec, made from the tables that carry it out."""
    refused = [name for name, (_, who) in OCI_FIELDS.items() if who == REFUSED]
    show(to_json({
        "ociVersionMin": "1.0.0", "ociVersionMax": OCI_VERSION, "hooks": [*OCI_SPEC["hooks"]],
        "mountOptions": sorted([*MOUNT_FLAGS, *PROPAGATION, *RECURSIVE, "tmpcopyup", "idmap",
                                "ridmap"]),
        "linux": {"namespaces": sorted(NAMESPACES), "capabilities": CAPABILITIES,
                  "cgroup": {"v1": True, "v2": True, "systemd": True, "systemdUser": False,
                             "rdma": True},
                  "seccomp": {"enabled": True,
                              "actions": ACTION_WORDS,
                              "knownFlags": [*SECCOMP_FLAGS], "supportedFlags": [*SECCOMP_FLAGS],
                              "operators": OPERATORS,
                              "archs": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"]},
                  "apparmor": {"enabled": True}, "selinux": {"enabled": True},
                  "intelRdt": {"enabled": True, "schemata": True, "monitoring": True},
                  "netDevices": {"enabled": True},
                  "memoryPolicy": {"modes": [*MEMORY_POLICIES], "flags": [*MEMORY_FLAGS]},
                  "mountExtensions": {"idmap": {"enabled": True}}},
        "annotations": {"mydocker.version": VERSION, "mydocker.refused": " ".join(refused)}}))

@command("[OPTIONS]", "write an example of a config.json",
         ("-b --bundle", "DIR", "where to (default: here)"),
         ("--rootless", "", "of one that its caller can run without root"))
def cmd_spec(options, _):
    """A new file: one that is there is somebody's."""
    import json
    spec = {"ociVersion": OCI_VERSION, "hostname": "mydocker", "process": {
        "terminal": True, "user": {"uid": 0, "gid": 0}, "args": ["sh"], "cwd": "/",
        "env": [f"PATH={DEFAULT_PATH}", "TERM=xterm"], "capabilities": plan_capabilities()[0],
        "noNewPrivileges": True}, "root": {"path": "rootfs", "readonly": True},
        "mounts": kernel_mounts(), "linux": {
            "namespaces": [{"type": kind} for kind in OWN_NAMESPACES],
            "maskedPaths": MASKED_PATHS, "readonlyPaths": READ_ONLY_PATHS}}
    if options["rootless"]:
        spec.update(rootless_parts(spec))
    path = os.path.join(given(options, "bundle", "."), "config.json")
    with blame(f"spec, on {path}"), open(path, "x") as file:
        file.write(json.dumps(spec, indent=4) + "\n")

def rootless_parts(spec):
    """The spec's parts as they must be without root: one id, the caller's, no group but his in
    /dev/pts, and the host's network, whose /sys only can be bound."""
    kinds = [kind for kind in OWN_NAMESPACES if kind != "network"] + ["user"]
    linux = {**spec["linux"], "namespaces": [{"type": kind} for kind in kinds],
             "uidMappings": [{"containerID": 0, "hostID": os.geteuid(), "size": 1}],
             "gidMappings": [{"containerID": 0, "hostID": os.getegid(), "size": 1}]}
    mounts = []
    for row in spec["mounts"]:
        words = [word for word in row["options"] if not word.startswith(("uid=", "gid="))]
        if row["type"] == "sysfs":
            row = dict(row, type="none", source="/sys")
            words.insert(0, "rbind")
        mounts.append(dict(row, options=words))
    return {"linux": linux, "mounts": mounts}

# ── 52. Commands that engines share ──────────────────────────────────────────
# `run`, `create`, `kill` and others mean one thing to docker's users and another to the engines
# that take us for runc.  Which one is meant is told by the id, by an option that only engines give,
# or by how it is typed.

def for_engines(name, *rows, only=(), typed=None):
    """Make a function carry out the command NAME where it is about an engine's container, and add
    options to it.  ONLY: those that only engines give, so that one of them tells.  TYPED: the name
    of a function that tells it from the words."""
    def register(function):
        offer(name, *rows)
        COMMANDS.setdefault(name, {}).update(engine=function.__name__, only=only, typed=typed,
                                             theirs=[*map(long_name, rows)])
        return function

    return register

def is_for_engine(row, options, words):
    """True if a command is about an engine's container: by its id, an option, or how it's typed."""
    if "engine" not in row:
        return False
    name = words[0] if words else ""
    return (any(options[key] for key in row["only"]) or (
        is_name(name.replace("+", "-")) and os.path.exists(state_path("oci", name))) or (
        row["typed"] is not None and globals()[row["typed"]](words)))

def names_signal(words):
    """True for `kill ID SIGNAL` as engines have it: Docker's has an option for that."""
    if len(words) != 2 or os.path.lexists(state_path("names", words[1])):
        return False
    try:
        return words[1] == "0" or parse_signal(words[1], "kill") > 0
    except Failure:
        return False

def names_any(words):
    """True for `ps ID`: there is only one of engines."""
    return bool(words)

def names_bundle(words):
    """True for `run ID` as engines have it, with the bundle in the current directory: many a
    program's own settings are in a config.json."""
    if len(words) != 1 or not is_name(words[0]) or not os.path.isfile("config.json"):
        return False
    with tolerate():
        if '"ociVersion"' not in read_text("config.json"):
            return False
    try:
        return not find_image(words[0])
    except Failure:
        return True  # no image of that name is meant

def creates_bundle(words):
    """True for `create ID` as engines have it, with the bundle in the current directory, unless an
    image is called so."""
    if len(words) != 1 or words[0].startswith("/") or not os.path.lexists("config.json"):
        return False
    try:
        return not find_image(words[0])
    except Failure:
        return True

# ── 53. The OCI runtime ──────────────────────────────────────────────────────
# Here an engine (podman, a shim of containerd) is the monitor: `create` makes the container and
# leaves, with init waiting at a gate, a fifo, before its last step; `start` writes a byte into
# that.  The engine inherits init, waits for it, and has its descriptors.  What `create` was told,
# and what must be tidied up, is in oci/<id>/, and no lock says whether it runs: its pid does, with
# its start time.  See runtime.md of the OCI's runtime-spec.

ENGINE_OPTIONS = (  # of the commands by which engines start processes
    ("--pid-file", "FILE", "write the process's pid to a file"),
    ("--console-socket", "SOCKET", "send the terminal's master end there"),
    ("--preserve-fds", "N", "leave N descriptors from 3 on open"))
CREATE_OPTIONS = (
    *ENGINE_OPTIONS,
    ("--no-pivot", "", "where the root can't be pivoted, on a ramdisk: move it, and chroot"),
    ("--no-new-keyring", "", "keep the caller's session keyring"))

# Their containers

def cgroup_folder():
    """Where the cgroups go of engines that don't say it: two state roots may have the same id."""
    if state_path() == STATE_ROOT:
        return "mydocker"
    from binascii import crc32
    return f"mydocker/{crc32(encode(state_path())):08x}"

def find_oci(name):
    """The record of the container that an engine calls NAME, or None."""
    if is_name(name.replace("+", "-")):
        with tolerate(errno.ENOENT):  # there is none, or it is just being removed
            record = read_json(record_file(state_path("oci", name)))
            return {**record, "engine": True, "running": is_alive(record)}
    return None

def known_oci(name):
    record = find_oci(name)
    if not record:
        raise Failure(f"container, on {as_typed(name)}: container does not exist")
    return record

def oci_status(record):
    """The OCI's word for what a container does: two of them aren't Docker's."""
    if not record["pid"]:
        return "creating"
    word = container_state(dict(record, running=is_alive(record), started=record["created"]))
    if word == "created" and is_paused(record["cgroups"]):  # no start would get through to it
        return "paused"
    return "stopped" if word == "exited" else word

def oci_state(record, status=None):
    """What `state` shows, and hooks get: runtime.md, "State"."""
    status = status or oci_status(record)
    return {"ociVersion": OCI_VERSION, "id": record["id"], "status": status,
            "pid": 0 if status == "stopped" else record["pid"], "bundle": record["bundle"],
            "rootfs": record["rootfs"], "created": log_time(int(record["created"] * 10**9)),
            "annotations": record["annotations"]}

def create_container(container_id, bundle, options, birth):
    """Make a container up to its last step; returns its record and its terminal's master end, if it
    has one and no --console-socket took it.  After a failure nothing of it is left."""
    if not is_name(container_id.replace("+", "-")):
        raise Failure(f"create, on {as_typed(container_id)}: not a container's id")
    check_pid_file(options)
    preserved = preserved_fds(options)
    spec = load_bundle(bundle, container_id)
    spec["root"]["moved"] = options["no-pivot"]
    spec["process"]["callersKeyring"] = options["no-new-keyring"]
    listening = listening_fds()
    if listening:
        spec["process"]["env"] += [f"LISTEN_FDS={listening}", "LISTEN_PID=1"]
    path = state_path("oci", container_id)
    theirs, spec["annotations"] = spec["annotations"], {}  # ours mean something to init
    record = {"id": container_id, "name": container_id, "engine": True, "bundle": bundle, "pid": 0,
              "pid_start": 0, "created": time.time(), "rootfs": spec["root"]["path"],
              "annotations": theirs, "cgroups": []}
    cgroups_path = spec["linux"]["cgroupsPath"]
    asks = ":" in cgroups_path and asks_systemd(cgroups_path)
    cgroups = cgroup_dirs(cgroups_path, asks)
    make_dirs(os.path.dirname(path))
    with blame(f"create, on {container_id}: container with given ID already exists"):
        os.mkdir(path, 0o700)
    try:
        record.update(found_cgroups=found_cgroups(cgroups), cgroups=cgroups)
        write_json(path + "/record.json", record)
        write_json(path + "/config.json", spec)
        os.mkfifo(path + "/exec.fifo", 0o600)
        note(f"create, on {container_id}: {bundle}, in {' '.join(cgroups) or 'no cgroup'}")
        with start_init(spec, birth, outlive=True) as birth:
            note(f"create, on {container_id}: init is process {birth.pid}")
            devices = spec["linux"].get("netDevices")
            birth.tell_place(0, spec, preserved + listening, report=bool(devices))
            if devices:
                move_devices(devices, birth)
            if "intelRdt" in spec["linux"]:
                share_cache(spec["linux"]["intelRdt"], record, birth.pid)
            if asks:
                start_scope(spec, record, birth.pid)
            master = bring_to_gate(spec, record, birth, options["console-socket"])
    except Exception as error:
        remove_groups(record)
        remove_tree(path)
        if isinstance(error, (Failure, OSError)):
            raise
        raise Failure(f"{bundle}/config.json: not as the specification has it: {error!r}") from None
    return record, master

def remove_groups(record):
    """Remove what counts and limits the processes of a container, or did: of each kind."""
    remove_cgroups(record)
    if "scope" in record:
        stop_scope(record)
    if "cache" in record:
        leave_cache(record)

def bring_to_gate(spec, record, birth, console):
    """Do for init what must be done outside, until it waits for `start`; its terminal or None."""
    path, master = container_path(record), None
    record.update(pid=birth.pid, pid_start=process_start(birth.pid))
    with hold(os.path.dirname(path)):  # until it is in them they look as if they were nobody's
        record["cgroups"] = make_cgroups(
            record["cgroups"], spec["linux"]["resources"], birth.pid,
            None if "scope" in record else record["found_cgroups"])  # systemd has made a scope's
    write_json(path + "/record.json", record)
    states = {status: to_json(oci_state(record, status)) for status in ("creating", "created")}
    with Descriptor(os.open(path + "/exec.fifo", os.O_RDWR | os.O_CLOEXEC)) as gate:
        birth.tell_spec(dict(spec, filter=filter_of(spec["linux"]), gate=True,
                             states=states), [gate])  # sync 1
    while True:
        message, fds = receive(birth.channel)
        if fds and console:
            send_descriptor(console, fds[0])  # sync 2
        elif fds:
            master = fds[0]
        elif isinstance(message, list):
            with take_listener(birth, message) as listener:
                send_listener(spec["linux"], listener, birth.pid, states["creating"])
            os.write(birth.channel.fileno(), b"1")  # see apply_filter
        elif message == "hooks":
            run_hooks(spec, states["creating"], "prestart", "createRuntime",
                      directory=record["bundle"])
            tell(birth.channel, "go")
        elif message == "ready":  # sync 3
            note(f"create, on {record['id']}: it waits for its start")
            return master
        else:
            raise Failure(*message or ("create: init was killed before it was ready",))

def wait_at_gate(channel, gate, process):
    """Tell `create` that all is ready, or that the command can't be, and wait for `start`."""
    path = pairs_of(process["env"]).get("PATH", DEFAULT_PATH)
    program = find_program(process["args"][0], path)
    try:
        os.stat(program)
    except OSError as error:
        missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
        raise Failure(f"exec, on {program}: {reason(error)}", 127 if missing else 126) from None
    if not os.path.isfile(program) or not os.access(program, os.X_OK):
        raise Failure(f"exec, on {program}: permission denied", 126)
    send(channel, "ready")
    channel.close()
    ends = _signal.SIGHUP, _signal.SIGINT, _signal.SIGTERM
    for number in ends:
        _signal.signal(number, lambda number, _: os._exit(128 + number))  # PID 1 has no default
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, ends)
    os.read(gate, 1)  # a fifo that is open for writing, too: only a byte ends this

def run_hooks(spec, state, *moments, environment=None, directory=None):
    """Run the hooks of these moments, STATE (JSON) is their input: config.md, "POSIX-platform
    Hooks".  One that fails, or takes more seconds than its timeout, is a Failure.  ENVIRONMENT:
    what one has that names none (None: ours).  DIRECTORY: where they start."""
    hooks = [hook for moment in moments for hook in (spec.get("hooks") or {}).get(moment) or ()]
    if not hooks:
        return
    import subprocess
    for hook in hooks:
        what = f"hook, on {hook['path']}"
        note(f"{what}: {' or '.join(moments)}")
        words = hook.get("args") or [hook["path"]]
        own = read_environment(hook["env"]) if "env" in hook else environment
        try:
            with blame(what):
                subprocess.run(words, executable=hook["path"], check=True, input=encode(state),
                               timeout=hook.get("timeout"), cwd=directory, env=own,
                               capture_output=True, preexec_fn=forget_signals)
        except subprocess.CalledProcessError as error:
            said = error.stderr.decode("utf-8", "replace").strip()
            raise Failure(f"{what}: exit status {error.returncode}: {said}") from None
        except subprocess.TimeoutExpired:
            raise Failure(f"{what}: it took more than {hook['timeout']} seconds") from None

def run_late_hooks(record, status, moment):
    """Run hooks whose failure changes nothing any more: it is only said."""
    spec, state = read_json(container_path(record, "config.json")), oci_state(record, status)
    bundle = record["bundle"] if os.path.isdir(record["bundle"]) else None
    for hook in (spec.get("hooks") or {}).get(moment) or ():
        try:
            run_hooks({"hooks": {moment: [hook]}}, to_json(state), moment, directory=bundle)
        except (Failure, OSError) as error:
            warn(describe(error, f"{moment} hook")[0])

def start_created(record):
    """Let a container that was created run: init goes through the gate."""
    path, status = container_path(record, "exec.fifo"), oci_status(record)
    if status != "created":
        raise Failure(f"start, on {record['id']}: cannot start a container that is {status}")
    with blame(f"start, on {record['id']}: container not running"), Descriptor(
            os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)) as gate:
        os.write(gate, b"0")
        unlink_if_there(path)
        closed = select.poll()
        closed.register(gate, 0)
        closed.poll()  # POLLERR: nobody reads it, as init has executed the command, or is gone
        note(f"start, on {record['id']}: init has executed its command, or is gone")
        with tolerate(errno.EAGAIN), Descriptor(os.open(
                f"/proc/self/fd/{gate}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)) as said:
            os.read(said, 1)  # what it says then, or hasn't taken; else there is nothing to read
            raise Failure(f"start, on {record['id']}: the command could not be executed",
                          hint="the container's standard error says why")
    run_late_hooks(record, "running", "poststart")

def delete_container(record, force):
    """Remove a container of an engine's, and all that it left, unless somebody else just does."""
    lock = hold_engine(record)
    if lock is not None:
        with lock:
            delete_held(record, force)

def hold_engine(record):
    """Lock an engine's container until the descriptor is closed: flock(2); None if it is gone, and
    if another one has its name by now."""
    with tolerate(errno.ENOENT):
        lock = Descriptor(os.open(container_path(record),
                                  os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = find_oci(record["id"])
        if found and found["created"] == record["created"]:
            return lock
        os.close(lock)
    return None

def delete_held(record, force):
    """Remove an engine's container whose lock we hold: its end, its cgroups, hooks, directory."""
    status = oci_status(record)
    if status == "running" and not force:  # who has just killed it needn't wait for that himself
        wait_process(record["pid"], record["pid_start"], LINGER)
        status = oci_status(record)
    if status in ("running", "paused") and not force:
        raise Failure(f"delete, on {record['id']}: cannot delete container that is not stopped: "
                      f"{status}")
    note(f"delete, on {record['id']}: it is {status}")
    thaw(record["cgroups"])
    if record["pid"]:
        send_signal(record["pid"], record["pid_start"], _signal.SIGKILL)
    remove_cgroups(record)
    if record["pid"]:
        wait_process(record["pid"], record["pid_start"], GRACE)
    run_late_hooks(record, "stopped", "poststop")
    remove_groups(record)
    remove_tree(container_path(record))

def send_descriptor(path, fd, what="--console-socket", data=b"/dev/ptmx"):
    """Hand a descriptor to whoever listens on a socket, with DATA; it's closed."""
    rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("i", fd))]
    with blame(f"{what}, on {path}"), Descriptor(fd):
        socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        socket.connect(path)
        sent = socket.sendmsg([data], rights)
        if sent < len(data):  # else who has it all may have hung up, and nothing is too much
            socket.sendall(data[sent:])
        socket.close()

def preserved_fds(options):
    """How many descriptors from 3 on are the command's; they must be open."""
    count = parse_number(given(options, "preserve-fds", "0"), "--preserve-fds")
    for fd in range(3, 3 + count):
        with blame(f"--preserve-fds, on {count}: descriptor {fd}"):
            os.fstat(fd)
    return count

def listening_fds():
    """How many sockets a service manager has handed to this process: sd_listen_fds(3)."""
    count = os.environ.get("LISTEN_FDS", "")
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or not is_id(count):
        return 0
    return min(int(count), len(open_fds()))

def check_pid_file(options):
    """Refuse a --pid-file that can't be written before there is a process."""
    if options["pid-file"]:
        with blame(f"--pid-file, on {options['pid-file']}"):
            os.stat(os.path.dirname(options["pid-file"]) or ".")

def hand_over(options, pid, master):
    """Give an engine what it asked for: the pid in a file, the terminal on a socket."""
    if options["pid-file"]:
        with blame(f"--pid-file, on {options['pid-file']}"):
            write_named(options["pid-file"], str(pid))
    if options["console-socket"] and master is not None:
        send_descriptor(options["console-socket"], Descriptor(master))

# The commands

@for_engines("create", *CREATE_OPTIONS,
             ("-b --bundle", "DIR",
              "make the OCI bundle there the container ID, up to its last step"),
             only=("bundle", *map(long_name, CREATE_OPTIONS)), typed="creates_bundle")
def oci_create(options, words):
    if len(words) != 1:
        raise Failure("create: it takes ID", hint="mydocker create --help")
    birth = start_early("init", outlive=True)
    bundle = os.path.abspath(given(options, "bundle", "."))
    record, master = create_container(words[0], bundle, options, birth)
    if master is not None:
        delete_container(record, True)
        raise Failure("create, on process.terminal: there is no --console-socket to send it to")
    hand_over(options, record["pid"], None)

@for_engines("run", *CREATE_OPTIONS, ("--keep", "", "don't delete it when it has ended"),
             ("--no-subreaper", "", "accepted: whoever has no parent left is the host's init's"),
             ("-b --bundle", "DIR", "run the OCI bundle there as the container ID"),
             only=("bundle",), typed="names_bundle")
def oci_run(options, words):
    """What create, start, waiting and delete do together; returns the exit status."""
    if len(words) != 1:
        raise Failure("run, on --bundle: it takes ID, and the command from config.json")
    apply_log_options(options)
    birth = start_early("init", outlive=True)
    if options["bundle"] is None:
        said = f"run, on {words[0]}: no image has that name: running the bundle in this directory"
        if not log_for_engine("info", said):
            print_line(f"mydocker: {said}")
    bundle = os.path.abspath(given(options, "bundle", "."))
    record, master = create_container(words[0], bundle, options, birth)
    try:
        if options["detach"] and master is not None:
            raise Failure("run, on process.terminal: there is no --console-socket to send it to")
        hand_over(options, record["pid"], None)
        start_created(record)
    except (Failure, OSError):
        delete_container(record, True)
        raise
    if options["detach"]:
        return None
    try:
        return attend({"record": record, "pid": record["pid"], "master": master, "outputs": [],
                       "attached": True, "interactive": True, "logged": False, "typed": b""}, True)
    finally:
        if not options["keep"] and find_oci(words[0]):  # or it's deleted
            delete_container(record, True)

@for_engines("start")
def oci_start(_, words):
    start_created(known_oci(words[0]))

@for_engines("exec", *ENGINE_OPTIONS,
             ("-p --process", "FILE", "the process in the OCI's form"),
             ("--cwd", "DIR", "start in this directory"),
             ("-g --additional-gids", "GID...", "a group more"),
             ("-c --cap", "CAP...", "a capability more"),
             ("--no-new-privs", "", "without a way to more privileges"),
             ("--apparmor", "PROFILE", "under this AppArmor profile"),
             ("--process-label", "LABEL", "with this SELinux label"),
             ("--cgroup", "[CONTROLLER,...:]PATH...", "in this cgroup below the container's"),
             ("--ignore-paused", "", "also if it is paused: it starts when that ends"),
             only=("process", "console-socket"))
def oci_exec(options, words):
    """The process is as the file says, or as the container's own but for what the options say."""
    detach = options["detach"]
    birth = start_early("join", outlive=detach)
    record = known_oci(words[0])
    note(f"exec, on {words[0]}: into process {record['pid']}")
    if not is_alive(record):
        raise Failure(f"exec, on {words[0]}: container not running")
    if is_paused(record["cgroups"]) and not options["ignore-paused"]:
        raise Failure(f"exec, on {words[0]}: it is paused", hint=f"mydocker resume {words[0]}")
    check_pid_file(options)
    record["cgroups"] = cgroups_below(record["cgroups"], options["cgroup"])
    spec = read_json(container_path(record, "config.json"))
    process = one_more_process(options, words[1:], spec["process"])
    if detach and process["terminal"] and not options["console-socket"]:
        raise Failure("exec, on --tty: there is no --console-socket to send it to")
    state = {"record": record, "linux": spec["linux"], "attached": True, "interactive": True,
             "logged": False, "outputs": [], "typed": b"", "stdin": 0}
    with while_running(record, f"exec, on {words[0]}: container not running"):
        start_process(state, birth, process, detach, (), preserved_fds(options))
    hand_over(options, state["pid"], state["master"])
    return None if detach else attend(state, True)

def cgroups_below(dirs, paths):
    """A container's cgroups, or those below them that PATHS name, for all controllers or for those
    before a colon."""
    for text in paths:
        words, colon, path = text.rpartition(":")
        if ".." in path.split("/"):
            raise Failure(f"--cgroup, on {text}: it must lie below the container's")
        wanted = {*words.split(",")}
        places = [point for name, (point, _) in hierarchies().items()
                  if not colon or wanted & {*name.replace("name=", "").split(",")}]
        chosen = [top for top in dirs if any(top.startswith(f"{place}/") for place in places)]
        below = {top: f"{top}/{path.strip('/')}".rstrip("/") for top in chosen}
        if not any(map(os.path.isdir, below.values())):
            raise Failure(f"--cgroup, on {text}: no such cgroup")
        dirs = [below[top] if os.path.isdir(below.get(top, "")) else top for top in dirs]
    return dirs

@for_engines("kill", ("-a --all", "", "of an engine's container: all processes"),
             only=("all",), typed="names_signal")
def oci_kill(options, words):
    """Send a signal to a container's first process, or to all in it; 0 sends none: kill(2)."""
    record, name = known_oci(words[0]), given(options, "signal", (words + ["TERM"])[1])
    number = 0 if name == "0" else parse_signal(name, "--signal")
    note(f"kill, on {words[0]}: signal {number} to process {record['pid']}")
    if not options["all"] and not is_alive(record):
        raise Failure(f"kill, on {words[0]}: container not running")
    if options["all"]:
        for pid in cgroup_pids(own_cgroups(record)):
            with tolerate(errno.ESRCH):
                os.kill(pid, number)
    if not options["all"] or record.get("found_cgroups"):
        send_signal(record["pid"], record["pid_start"], number)
    if number == _signal.SIGKILL:
        thaw(record["cgroups"])

@for_engines("pause")
def oci_pause(_, words):
    pause_container(known_oci(words[0]), True)

@for_engines("unpause")
def oci_unpause(_, words):
    pause_container(known_oci(words[0]), False)

@command("ID", "the same as unpause, for engines", takes=ONE)
def cmd_resume(_, words):
    pause_container(known_oci(words[0]), False)

@for_engines("update", ("--cpu-share", "N", "the same as --cpu-shares"))
def oci_update(options, words):
    """Engines give limits in a file, or by runc's words; what isn't named stays as it is."""
    record, file = known_oci(words[0]), options["resources"]
    if not record["running"]:
        raise Failure(f"update, on {words[0]}: container not running")
    if options["pids-limit"] == "0":  # engines leave a limit alone so
        options["pids-limit"] = None
    options["cpu-shares"] = given(options, "cpu-shares", options["cpu-share"])
    wanted = read_resources(file) if file else resources_of(options)
    note(f"update, on {words[0]}: {to_json(wanted)}")
    lock = hold_engine(record)
    if lock is None:
        raise Failure(f"container, on {words[0]}: container does not exist")
    with lock:
        change_limits(record, wanted)

@command("[OPTIONS] ID", "remove an engine's container, and all that it left",
         ("-f --force", "", "also if it runs, or isn't there"), takes=ONE)
def cmd_delete(options, words):
    record = (find_oci if options["force"] else known_oci)(words[0])
    if record:
        delete_container(record, options["force"])

# ── 54. What engines ask ─────────────────────────────────────────────────────
# What an engine's container is, which processes it has, and what it uses: the words and the forms
# are runc's.  Counters come from its cgroups, in v1's files or v2's, processes from /proc.

PS_FIELDS = {  # of ps(1): {name: (header, what of a process's facts)}
    "pid": ("PID", "pid"), "ppid": ("PPID", "ppid"), "pgid": ("PGID", "group"),
    "sid": ("SID", "session"), "uid": ("UID", "uid"), "user": ("USER", "user"),
    "gid": ("GID", "gid"), "s": ("S", "state"), "stat": ("STAT", "state"), "c": ("C", "percent"),
    "pcpu": ("%CPU", "percent"), "%cpu": ("%CPU", "percent"), "ni": ("NI", "nice"),
    "nlwp": ("NLWP", "threads"), "vsz": ("VSZ", "virtual"), "rss": ("RSS", "resident"),
    "stime": ("STIME", "began"), "start": ("START", "began"), "etimes": ("ELAPSED", "age"),
    "tty": ("TTY", "terminal"), "time": ("TIME", "time"), "comm": ("COMMAND", "name"),
    "args": ("COMMAND", "args"), "command": ("COMMAND", "args"), "cmd": ("CMD", "args")}
PS_FORMS = {  # what a letter asks for
    "": "uid,pid,ppid,time,cmd", "f": "uid=UID,pid,ppid,c,stime,tty,time,cmd",
    "u": "user,pid,pcpu,vsz,rss,tty,stat,start,time,command"}
LONGEST = 24 * 3600  # of an interval, in seconds
NO_END = (1 << 64) - 1  # runc's for a limit that there isn't

@command("ID", "show the state of an engine's container, in the OCI's form", takes=ONE)
def cmd_state(_, words):
    show(to_json(oci_state(known_oci(words[0]))))

@command("[OPTIONS]", "list the engines' containers",
         ("-f --format", "FORMAT", "table, json or a template"), ("-q --quiet", "", "ids only"))
def cmd_list(options, _):
    form = options["format"]
    if form not in (None, "table", "json") and "{{" not in form:
        raise Failure(f"--format, on {as_typed(form)}: not table, json or a template")
    records = filter(None, map(find_oci, listing(state_path("oci"))))
    rows = [{**oci_state(record), "owner": "root"} for record in records]
    if form == "json":
        return show(to_json(rows))
    show_rows([{key: str(value) for key, value in row.items()} for row in rows],
              {key: key.upper() for key in ("id", "pid", "status", "bundle", "created", "owner")},
              "{{.id}}" if options["quiet"] else form)

# Processes

@for_engines("ps", typed="names_any")
def oci_ps(options, words):
    """-f is the format here; what follows the ID is for ps(1), as runc has it."""
    forms = [given(options, "format", "table"), *options["filter"]]
    for form in forms:
        if form not in ("table", "json"):
            raise Failure(f"--format, on {as_typed(form)}: not table or json")
    pids = sorted(cgroup_pids(known_oci(words[0])["cgroups"][:1]))
    show(to_json(pids) if "json" in forms else process_table(pids, words[1:]))

def process_table(pids, words):
    """A table of processes, with the columns that options of ps(1) ask for."""
    chosen = ps_columns(words)
    rows = [[header for header, _ in chosen]]
    for pid in pids:
        with tolerate(errno.ENOENT, errno.ESRCH):  # it has ended
            facts = process_facts(pid)
            rows.append([facts[key] for _, key in chosen])
    return "\n".join(columns(rows))

def ps_columns(words):
    """The columns as [(header, name of a fact)]; -e, -a, -x and the like choose nothing here, all
    processes of the container are shown."""
    words, chosen = list(words), PS_FORMS[""]
    while words:
        word = words.pop(0)
        letters, has_list, rest = word.replace("--format", "o").lstrip("-").partition("o")
        if set(letters) - set("eAaxwfFu"):
            raise Failure(f"ps, on {word}: of ps only -e, -f, -u, aux and -o COLUMN,... are known")
        if has_list and not rest and not words:
            raise Failure(f"ps, on {word}: it needs columns, such as pid,args")
        for letter in letters.lower():
            chosen = PS_FORMS.get(letter, chosen)
        if has_list:
            chosen = rest.lstrip("=") or words.pop(0)
    found = []
    for name, equals, header in (text.partition("=") for text in chosen.split(",")):
        if name not in PS_FIELDS:
            raise Failure(f"ps, on {as_typed(name)}: not one of {', '.join(PS_FIELDS)}")
        found.append((header if equals else PS_FIELDS[name][0], PS_FIELDS[name][1]))
    return found

def process_facts(pid):
    """What can be said of a process, as ps(1) words it: proc_pid_stat(5)."""
    import pwd
    path, ticks = f"/proc/{pid}", os.sysconf("SC_CLK_TCK")
    name, fields = read_all(path + "/stat").rpartition(")")[::2]
    fields, args, owner = fields.split(), read_all(path + "/cmdline"), os.stat(path)
    began = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + int(fields[19]) / ticks
    used = (int(fields[11]) + int(fields[12])) // ticks
    age = max(1, int(time.time() - began))
    try:
        user = pwd.getpwuid(owner.st_uid).pw_name
    except KeyError:
        user = str(owner.st_uid)
    terminal = int(fields[4])
    major, minor = terminal >> 8 & 0xfff, terminal & 0xff | terminal >> 12 & 0xfff00
    minutes, seconds = divmod(used, 60)
    name = name.partition("(")[2]
    command = " ".join(args.split("\0")).strip() or f"[{name}]"
    return {"pid": str(pid), "ppid": fields[1], "group": fields[2], "session": fields[3],
            "uid": str(owner.st_uid), "user": user, "gid": str(owner.st_gid), "state": fields[0],
            "percent": str(100 * used // age), "nice": fields[16], "threads": fields[17],
            "virtual": str(int(fields[20]) >> 10), "age": str(age),
            "resident": str(int(fields[21]) * os.sysconf("SC_PAGE_SIZE") >> 10),
            "began": time.strftime("%H:%M" if age < 86400 else "%b%d", time.localtime(began)),
            "terminal": f"pts/{minor + (major - 136 << 20)}" if 136 <= major < 144 else "?",
            "time": f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02}", "name": name,
            "args": shorten(command, len(command))[1:-1]}

# What they use

@for_engines("events", ("--stats", "", "of an engine's container: what it uses, once, and leave"),
             ("--interval", "TIME", "how long to wait between two, such as 500ms (default: 5s)"),
             only=("stats", "interval"), typed="names_any")
def oci_events(options, words):
    """A line each time, until it ends; and one when the kernel has killed for want of memory."""
    if len(words) != 1:
        raise Failure("events: it takes ID", hint="mydocker events --help")
    pause, killed, record = parse_interval(given(options, "interval", "5s")), 0, None
    while True:
        before, record = record, find_oci(words[0]) if record else known_oci(words[0])
        if not before and not record["running"]:
            raise Failure(f"events, on {words[0]}: container not running")
        if not record:
            return
        now = read_sums(record["cgroups"], "memory.events", "memory.oom_control").get("oom_kill", 0)
        if before and now > killed:
            show(to_json({"type": "oom", "id": words[0]}))
        killed = now
        if not record["running"]:
            return
        show(to_json({"type": "stats", "id": words[0], "data": engine_stats(record["cgroups"])}))
        if options["stats"]:
            return
        wait_process(record["pid"], record["pid_start"], pause)

def parse_interval(text):
    """A duration as Go has it, 1m30s or 500ms, or a number of seconds."""
    duration = nanoseconds_of(text + "s" if text.isdecimal() else text)
    if duration is None or not 10**6 <= duration <= LONGEST * 10**9:
        raise Failure(f"--interval, on {as_typed(text)}: not a time, such as 500ms, 5s or 1m30s")
    return duration / 10**9

def engine_stats(dirs):
    """What cgroups count, in the form of runc's events."""
    usage = usage_of(dirs)
    return {"cpu": cpu_stats(dirs, usage), "cpuset": cpuset_stats(dirs),
            "memory": memory_stats(dirs),
            "pids": {"current": usage["pids"], "limit": usage["pids_limit"]},
            "blkio": disk_stats(dirs), "hugetlb": huge_page_stats(dirs), "intel_rdt": {},
            "network_interfaces": []}

def cpu_stats(dirs, usage):
    """Processor time in nanoseconds, in v1 also of each processor."""
    stat, ticks = read_sums(dirs, "cpu.stat"), read_sums(dirs, "cpuacct.stat")
    tick = 10**9 // os.sysconf("SC_CLK_TCK")
    times = {"total": usage["cpu_ns"],
             "kernel": tick * ticks.get("system", 0) or 1000 * stat.get("system_usec", 0),
             "user": tick * ticks.get("user", 0) or 1000 * stat.get("user_usec", 0)}
    rows = [line.split() for line in read_lines(dirs, "cpuacct.usage_all")[1:]]
    if rows:  # cpu user system
        times.update(percpu=[int(row[1]) + int(row[2]) for row in rows],
                     percpu_kernel=[int(row[2]) for row in rows],
                     percpu_user=[int(row[1]) for row in rows])
    throttled = stat.get("throttled_time") or 1000 * stat.get("throttled_usec", 0)
    return {"usage": times, "throttling": {
        "periods": stat.get("nr_periods", 0), "throttledPeriods": stat.get("nr_throttled", 0),
        "throttledTime": throttled}}

def read_lines(dirs, *names):
    """The lines of the first of these files; none where there is none."""
    path = cgroup_file(dirs, *names)
    with tolerate(*LEAVING):
        return read_all(path).splitlines() if path else []
    return []

def cpuset_stats(dirs):
    """Which processors and memory nodes; the rest are v1's switches."""
    found = {}
    for key in ("cpus", "mems"):
        text = "".join(read_lines(dirs, f"cpuset.{key}.effective", f"cpuset.{key}"))
        found[key] = [number for part in text.split(",") if part for number in range(
            int(part.partition("-")[0]), int(part.rpartition("-")[2]) + 1)]
    for key in ("cpu_exclusive", "mem_hardwall", "mem_exclusive", "memory_migrate",
                "memory_spread_page", "memory_spread_slab", "memory_pressure",
                "sched_load_balance"):
        found[key] = read_number(dirs, "cpuset." + key)
    level = "".join(read_lines(dirs, "cpuset.sched_relax_domain_level"))
    return {**found, "sched_relax_domain_level": int(level or -1)}

def memory_stats(dirs):
    """Memory, the same with swap, and of it what is the kernel's; in v2 a limit of the two
    together is their sum, and the kernel's has none of its own."""
    raw = read_sums(dirs, "memory.stat")
    found = {"cache": raw.get("cache") or raw.get("file", 0), "raw": raw}
    for key, kind in (("usage", ""), ("swap", "memsw."), ("kernel", "kmem."),
                      ("kernelTCP", "kmem.tcp.")):
        entry = found[key] = {
            name: read_number(dirs, f"memory.{kind}{file}") for name, file in (
                ("usage", "usage_in_bytes"), ("limit", "limit_in_bytes"),
                ("max", "max_usage_in_bytes"), ("failcnt", "failcnt"))}
        if key in ("usage", "swap") and cgroup_file(dirs, "memory.current"):
            kinds = ["memory", "memory.swap"][:1 + (key == "swap")]
            limits = ["".join(read_lines(dirs, name + ".max")) for name in kinds]
            entry.update(usage=sum(read_number(dirs, name + ".current") for name in kinds),
                         limit=NO_END if "max" in limits else sum(map(int, filter(None, limits))),
                         max=read_number(dirs, kinds[-1] + ".peak"))
    return found

def disk_stats(dirs):
    """Bytes and operations of each device: blkio-controller.rst, cgroup-v2.rst."""
    found = {"ioServiceBytesRecursive": [], "ioServicedRecursive": []}
    for key, file in (("ioServiceBytesRecursive", "io_service_bytes_recursive"),
                      ("ioServicedRecursive", "io_serviced_recursive")):
        for line in read_lines(dirs, f"blkio.throttle.{file}"):
            device, *words = line.split()
            if len(words) == 2:  # else a total
                found[key].append(disk_entry(device, *words))
    for line in read_lines(dirs, "io.stat"):
        device, *pairs = line.split()
        for name, number in (pair.split("=") for pair in pairs):
            if name[1:] in ("bytes", "ios") and name[0] in "rw":
                key = "ioServiceBytesRecursive" if name[1:] == "bytes" else "ioServicedRecursive"
                found[key].append(disk_entry(device, "Read" if name[0] == "r" else "Write", number))
    return found

def disk_entry(device, what, number):
    major, minor = map(int, device.split(":"))
    return {"major": major, "minor": minor, "op": what, "value": int(number)}

def huge_page_stats(dirs):
    """Huge pages of each size, 2MB and the like."""
    found = {}
    for name in sorted({name for path in dirs for name in listing(path)}):
        words = name.split(".")
        if words[0] == "hugetlb" and words[2:] in (["usage_in_bytes"], ["current"]):
            start = f"hugetlb.{words[1]}"
            found[words[1]] = {
                "usage": read_number(dirs, name),
                "max": read_number(dirs, start + ".max_usage_in_bytes"),
                "failcnt": read_number(dirs, start + ".failcnt") or read_sums(
                    dirs, start + ".events").get("max", 0)}
    return found

# ── 55. What engines are handed, and hand in ─────────────────────────────────
# A filter can tell somebody outside of a system call, who then decides what comes of it: an agent
# that listens on a socket, and gets a descriptor for that.  See seccomp_unotify(2) and, for what is
# sent, "The Container Process State" in the runtime-spec's config-linux.md.

#
# A network device of the host's can become the container's: it is moved to its network namespace,
# by another name if wanted, and has the addresses again that somebody gave it for good.  A real one
# comes back with the namespace's end, another one goes with it.

SECCOMP_IOCTL_NOTIF_RECV, SECCOMP_IOCTL_NOTIF_SEND = 0xC0502100, 0xC0182101  # linux/seccomp.h
SECCOMP_USER_NOTIF_FLAG_CONTINUE = 1
pidfd_getfd = kernel("pidfd_getfd", INT, INT, LONG, number=438)  # since 5.6

def take_listener(birth, message):
    """Take the descriptor of which init has told: it can't send it when calls wait for an answer
    that nobody can give yet."""
    with blame("linux.seccomp, on listenerPath"), Descriptor(pidfd_open(birth.pid, 0)) as init:
        return Descriptor(pidfd_getfd(init, message[1], 0))

def send_listener(linux, listener, pid, state):
    """Hand a listener to the agent, with what it is about; STATE is JSON."""
    seccomp, metadata = linux["seccomp"], ""
    if seccomp.get("listenerMetadata"):
        metadata = f', "metadata": {to_json(seccomp["listenerMetadata"])}'
    data = f'{{"ociVersion": "{OCI_VERSION}", "fds": ["seccompFd"], '
    data += f'"pid": {pid}{metadata}, "state": {state}}}'
    send_descriptor(seccomp["listenerPath"], Descriptor(os.dup(listener)),
                    "linux.seccomp.listenerPath", encode(data))

def take_birth(monitor, birth, terminal):
    """Do for `exec` what is done until we inherit the new process, whose pid the agent is told.
    Until then the calls that it would be told of are ours, and pass."""
    message, monitor["master"] = receive(birth.channel)[0], None
    if not isinstance(message, list):
        raise Failure(*message or ("exec: it was killed before the command started", 137))
    with take_listener(birth, message) as listener:
        os.write(birth.channel.fileno(), b"1")  # see apply_filter
        if terminal:
            let_pass(listener, birth.channel)
            monitor["master"] = birth.take_terminal()
        let_pass(listener, birth.channel)
        birth.pid = inherit(birth.pid, birth.channel)
        send_listener(monitor["linux"], listener, birth.pid, to_json(oci_state(monitor["record"])))

def let_pass(listener, channel):
    """Let calls pass that the filter tells of, until there is something on the channel."""
    while channel.fileno() not in (ready := readable_fds([channel.fileno(), listener])):
        if listener in ready:
            told = bytearray(80)  # struct seccomp_notif: its number is first
            with tolerate(errno.ENOENT, errno.EINTR):  # whose call it was has been killed
                fcntl.ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, told)
                number, = struct.unpack_from("Q", told)
                fcntl.ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, struct.pack(
                    "QqiI", number, 0, 0, SECCOMP_USER_NOTIF_FLAG_CONTINUE))

# Network devices

IFA_ADDRESS, IFA_BROADCAST, IFA_FLAGS = 1, 4, 8  # linux/if_addr.h
IFA_F_NODAD, IFA_F_PERMANENT, IFA_F_NOPREFIXROUTE = 0x02, 0x80, 0x200

def move_devices(devices, birth):
    """Let devices of the host's be those of init's network."""
    message = receive(birth.channel)[0]
    if message != "apart":  # sync 0
        raise Failure(*message or ("create: init was killed",))
    with open_namespace(f"/proc/{birth.pid}/ns/net") as theirs:
        for name, row in devices.items():
            with blame(f"linux.netDevices, on {name}"):
                move_device(name, row.get("name") or name, theirs)

def move_device(name, new, theirs):
    """Move one, and name it anew; its link-layer address and MTU go along by themselves."""
    link = read_link(name)
    if not link:
        raise Failure(f"linux.netDevices, on {name}: the host has no such device")
    addresses = lasting_addresses(link["index"])
    with inside_network(theirs):
        if read_link(new):
            raise Failure(f"linux.netDevices, on {name}: there is a {new} in the container already")
    head = struct.pack("BxHiII", 0, 0, link["index"], 0, IFF_UP)
    netlink(NETLINK_ROUTE, name, [(RTM_NEWLINK, NLM_F_ACK, head)])  # down: else it can't be renamed
    netlink(NETLINK_ROUTE, name, [(RTM_NEWLINK, NLM_F_ACK, head + attributes(
        {IFLA_IFNAME: new, IFLA_NET_NS_FD: int(theirs)}))])  # the container's now, not the host's
    with inside_network(theirs):
        index = _socket.if_nametoindex(new)
        messages = [(RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE,
                     struct.pack("4BI", *row, index) + attributes(values))
                    for row, values in addresses]
        netlink(NETLINK_ROUTE, new, [link_message(new, up=IFF_UP), *messages])  # as it was

def lasting_addresses(index):
    """The addresses of a link that somebody gave it for good, and for everywhere: [(the message's
    first fields, attributes)]."""
    dump = RTM_GETADDR, NLM_F_ACK | NLM_F_DUMP, struct.pack("4BI", 0, 0, 0, 0, 0)
    found = []
    for answer in netlink(NETLINK_ROUTE, "addresses", [dump]):  # of all links
        family, bits, flags, scope, of = struct.unpack_from("4BI", answer)
        values = parse_attributes(answer[8:])
        if IFA_FLAGS in values:
            flags, = struct.unpack("I", values[IFA_FLAGS])
        if of == index and flags & IFA_F_PERMANENT and not scope:
            kept = {kind: values[kind] for kind in (IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST)
                    if kind in values}
            kept[IFA_FLAGS] = flags & (IFA_F_NODAD | IFA_F_NOPREFIXROUTE)
            found.append(((family, bits, 0, scope), kept))
    return found

# The processor's caches

RDT_ID = "linux.intelRdt.closID"

def cache_tree():
    """Where the file system is that divides the processor's caches: resctrl.rst.  "" without it."""
    return next((point for point, kind, *_ in mounts_here() if kind == "resctrl"), "")

def refuse_cache(wanted, what):
    """Refuse a class of service that can't be: it is a directory's name, or the root itself."""
    if not cache_tree():
        raise Failure(f"{what}: no resctrl file system is mounted here",
                      hint="mount -t resctrl resctrl /sys/fs/resctrl, on a processor that has it")
    name = wanted.get("closID", "")
    if name != "/" and (name in (".", "..", "info", "mon_groups", "mon_data")
                        or "/" in name or "\n" in name):
        raise Failure(f"{what}.closID: {as_typed(name)}: no such class of service can be")

def share_cache(wanted, record, pid):
    """Put a process into its class of service, which is made if there is none; one without a name
    is the container's own, and goes with it: config-linux.md, "IntelRdt"."""
    top, name = cache_tree(), wanted.get("closID") or record["id"]
    group = top if name == "/" else f"{top}/{name}"
    lines = [*wanted.get("schemata", ()), wanted.get("l3CacheSchema", ""),
             wanted.get("memBwSchema", "")]
    lines = [line for text in lines for line in text.split("\n") if line]
    found = os.path.isdir(group)
    cache = record["cache"] = {"groups": [group], "made": []}
    if not found and wanted.get("closID") and not lines:
        raise Failure(f"{RDT_ID}, on {name}: there is none, and no schemata to make it of")
    if not found and not wanted.get("closID"):
        cache["made"].append(group)
    watches = any(wanted.get(f"enable{what}") for what in ("Monitoring", "CMT", "MBM"))
    watched = f"{group}/mon_groups/{record['id']}"
    if watches:
        cache["made"].insert(0, watched)
        cache["groups"].append(watched)
    write_json(container_path(record, "record.json"), record)  # so that it can be removed
    if not found:
        with blame(f"{RDT_ID}, on {name}"):
            os.mkdir(group)
    if lines and found and wanted.get("closID"):
        compare_schemata(lines, group, name)
    elif lines:
        write_schemata(lines, group, top, found)
    if watches:
        with blame(f"linux.intelRdt.enableMonitoring, on {record['id']}"):
            os.mkdir(watched)
    join_cache(record, pid)

def compare_schemata(lines, group, name):
    """Refuse a class of service that is there and differs: it is shared with others."""
    there = parse_schemata(read_text(group + "/schemata").split("\n"))
    for key, value in parse_schemata(lines).items():
        if there.get(key) != value:
            raise Failure(f"{RDT_ID}, on {name}: it is there, with {key[0]}:{key[1]}="
                          f"{there.get(key)}")

def parse_schemata(lines):
    """The rows "L3:0=ff;1=0f" as {(resource, its number): mask}."""
    found = {}
    for line in lines:
        resource, _, rows = line.partition(":")
        for number, _, mask in (row.partition("=") for row in rows.split(";")):
            found[resource.strip(), number.strip()] = mask.strip().lower().lstrip("0")
    return found

def write_schemata(lines, group, top, found):
    """Say what of the caches a class of service may use; one that wasn't FOUND goes if it can't."""
    try:
        write_value(group + "/schemata", "".join(line + "\n" for line in lines))
    except OSError as error:
        why = reason(error)
        with tolerate():
            why = read_text(top + "/info/last_cmd_status").strip() or why
        if not found:
            os.rmdir(group)
        raise Failure(f"linux.intelRdt.schemata, on {' '.join(lines)}: {why}") from None

def join_cache(record, pid):
    """Put one process more into a container's class of service."""
    for group in record["cache"]["groups"]:
        with blame(f"linux.intelRdt, on {group}"):
            write_value(group + "/tasks", pid)

def leave_cache(record):
    """Remove what was made for a container: its processes, if any, are in the class above again."""
    for path in record["cache"]["made"]:
        with tolerate(errno.ENOENT):
            os.rmdir(path)

# ── 56. This host ────────────────────────────────────────────────────────────
# What this host can do is tried, not looked up: each probe does the thing in a child process.
#
# Python compiles a script at each start, a tenth of a second for this one.  So what is installed is
# a launcher, which runs the bytecode beside the file if it is the file's (PEP 552,
# "Specification").  That is a book: a chapter is opened when a name of it is first needed, which
# gives its constants and classes; a function is read when it is first called.  MYDOCKER_LOG=debug
# tells which.

def attempt(action):
    """Do something in a child process, for a probe: True if nothing is raised, nor False said."""
    return why_not(action) is None

def why_not(action):
    """Do something in a child process: None if it went well, else what could be looked at, or ""
    where the error doesn't tell."""
    ends = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(action() is False)
        except (Failure, OSError) as error:
            os.write(ends[1], encode(describe(error, "info")[2]))
        finally:
            os._exit(1)
    os.close(ends[1])
    with open(ends[0], encoding="utf-8", errors="surrogateescape") as said:
        hint = said.read()
    return hint if os.waitpid(pid, 0)[1] else None

def try_overlay():
    """Mount an overlay, in a mount namespace of this process's own."""
    os.unshare(CLONE_NEWNS)
    leave_chroot()
    mount(None, "/", None, MS_REC | MS_PRIVATE, None)
    mount("tmpfs", "/proc", "tmpfs", 0, None)
    os.chdir("/proc")
    for name in ("lower", "upper", "work", "merged"):
        os.mkdir(name)
    mount("overlay", "merged", "overlay", 0, "lowerdir=lower,upperdir=upper,workdir=work")

def try_rootless():
    """Make a user namespace as somebody without any power."""
    if has_power():
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # else its files in /proc are root's
    make_user_namespace()
    os.unshare(CLONE_NEWNS)

def try_nf_tables():
    """Make our rules, in a network namespace of this process's own."""
    os.unshare(CLONE_NEWNET)
    nft("mydocker", table_messages("a probe"))

PROBES = (  # (name, try it, what it is needed for, where to look if it is missing)
    ("root", has_power, "all of it, without a user namespace", "sudo; capability CAP_SYS_ADMIN"),
    ("rootless", try_rootless, "containers of who isn't root", why_refused),
    *((name, lambda flag=flag: os.unshare(flag), use, f"sysctl user.max_{which}_namespaces")
      for name, flag, which, use in (
          ("mntns", CLONE_NEWNS, "mnt", "its mounts"), ("pidns", CLONE_NEWPID, "pid", "its pids"),
          ("utsns", CLONE_NEWUTS, "uts", "--hostname"),
          ("ipcns", CLONE_NEWIPC, "ipc", "System V IPC"),
          ("netns", CLONE_NEWNET, "net", "a network"),
          ("cgroupns", CLONE_NEWCGROUP, "cgroup", "/proc/self/cgroup that shows /"),
          ("userns", CLONE_NEWUSER, "user", "containers without root, and --userns"))),
    *((name, lambda kind=kind: any(row[1] == kind for row in mounts_here()),
       "limits (one is enough)", f"mount -t {kind}")
      for name, kind in (("cgroup-v1", "cgroup"), ("cgroup-v2", "cgroup2"))),
    ("overlay", try_overlay, "--ephemeral, images", "module overlay"),
    ("seccomp", lambda: (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), load_filter(verdict(
        "SCMP_ACT_ALLOW", 0))), "the system call filter", "kernel option CONFIG_SECCOMP_FILTER"),
    *((name, call, use, f"{since}; the seccomp filter around this host")
      for name, call, use, since in (
          ("openat2", lambda: openat2(AT_FDCWD, "/", bytes(24), 24),
           "safe paths (without: slower, just as safe)", "Linux 5.6"),
          ("pidfd", lambda: pidfd_open(os.getpid(), 0), "signals that hit no other process",
           "Linux 5.3"),
          ("mount_setattr", lambda: mount_setattr(AT_FDCWD, "/proc", 0, bytes(32), 32),
           "read-only trees in one step", "Linux 5.12"))),
    ("nf_tables", try_nf_tables, "-p, what leaves this host", "modules nf_tables nft_chain_nat"),
)

def about_host():
    """What the probes don't say: versions, cgroup controllers, room at the state root."""
    host, path = os.uname(), os.path.abspath(state_path())
    trees = hierarchies()
    v1, v2 = " ".join(sorted(name.split("=")[-1] for name in trees if name)), ""
    if "" in trees:
        v2 = read_all(trees[""][0] + "/cgroup.controllers").strip()
    layout = {(True, True): "hybrid", (True, False): "v1", (False, True): "v2"}.get(
        (bool(v1), "" in trees), "none")
    while not os.path.isdir(path):  # the nearest directory above it that is there
        path = os.path.dirname(path)
    room = os.statvfs(path)
    return (f"mydocker {VERSION}, Python {sys.version.split()[0]}, {host.sysname} {host.release} "
            f"{host.machine}\ncgroups {layout}: v1 {v1 or '-'}; v2 {v2 or '-'}\n"
            f"{state_path()}: {room.f_bavail * room.f_frsize >> 20} MiB free\n")

@command("[NAME...]", "show what this host can do, and what each is needed for; with names: "
                      "just those, and status 1 if one is missing", takes=ANY)
def cmd_info(_, words):
    """Probe everything, or what is named: then the status says whether all of it is there."""
    unknown = set(words) - {row[0] for row in PROBES}
    if unknown:
        raise Failure(f"info, on {' '.join(sorted(unknown))}: no such probe")
    if not words:
        show(about_host())
    lacks = {row: why_not(row[1]) for row in PROBES if not words or row[0] in words}
    lines = []
    for (name, _, use, where), hint in lacks.items():
        if hint is not None:
            use += f"; look at: {hint or (where() if callable(where) else where)}"
        lines.append((name, "yes" if hint is None else "no", use))
    if not words and os.geteuid() == 0:
        lines += [(name, "no", POWERS[name[4:]] + "; look at: the container or unit around us")
                  for name in missing_powers(POWERS)]
    show("\n".join(columns(lines)))
    return int(bool(words) and {*lacks.values()} != {None})

# Installing

LAUNCHER = """#!{python} -ISXutf8
import marshal, posix, sys
from _frozen_importlib_external import MAGIC_NUMBER
SOURCE, front = {source!r}, b""
try:
    BOOK = posix.open(SOURCE + "c", posix.O_RDONLY | posix.O_CLOEXEC)
    front = posix.pread(BOOK, 1 << 14, 0)
except OSError:
    pass
if front[:4] == MAGIC_NUMBER:
    exec(marshal.loads(memoryview(front)[16:]))
posix.execv(sys.executable, [sys.executable, "-IS", "-Xno_debug_ranges", SOURCE, "renew", "--",
                             *sys.argv[1:]])  # the file or the Python has changed
"""

FRONT = "is_fresh", "above_standard", "open_book"  # what a launcher starts with

def is_fresh(front, info):
    """True if a book that begins so is of the source with this stat: see PEP 552."""
    return front[8:16] == b"".join((number & 0xffffffff).to_bytes(4, "little")
                                   for number in (int(info.st_mtime), info.st_size))

def above_standard(fd):
    """FD, or where that is a standard one, which was closed, another number for what it is."""
    import posix
    if fd > 2:
        return fd
    other = above_standard(posix.dup(fd))
    posix.close(fd)
    return other

def open_book(book, scope):
    """Give SCOPE what is needed at once of a BOOK, a descriptor of a compile_book(); all other
    functions are doors, which read a function when it is called, or all of its chapter before."""
    import gc, marshal, posix
    from _functools import partial
    from _thread import RLock
    gc.disable()  # run_command knows who needs it: others are done before there is much to collect
    loud, end = posix.environ.get(b"MYDOCKER_LOG") == b"debug", posix.fstat(book).st_size
    start = int.from_bytes(posix.pread(book, 8, end - 8), "little")
    chapters, known = marshal.loads(posix.pread(book, end - start, start))
    homes, pages, turn = {}, {}, RLock()  # threads may meet at a door, and fork only outside of one
    posix.register_at_fork(before=turn.acquire, after_in_parent=turn.release,
                           after_in_child=turn.release)

    def say(*words):
        if loud:
            posix.write(2, f"mydocker: {' '.join(words)}\n".encode())  # print() may hold it back

    def open_chapter(title):
        at, size, needs = chapters.pop(title, (0, 0, ()))
        for other in needs:
            open_chapter(other)
        if size:
            say("reads", title)
            code, own, others = marshal.loads(posix.pread(book, size, at))
            pages.update(own)
            homes.update(others)
            for name in [*own, *others]:
                if name not in scope:
                    scope[name] = partial(enter, name)
            exec(code, scope)

    def enter(name, /, *args, **named):
        with turn:
            open_chapter(homes.get(name))
            if name in pages:
                say("calls", name)
                exec(marshal.loads(pages.pop(name)), scope)
        return scope[name](*args, **named)

    def read_book():
        for title in [*chapters]:
            open_chapter(title)
        while pages:
            exec(marshal.loads(pages.popitem()[1]), scope)

    scope.update(BOOK=book, KNOWN_COMMANDS=known, read_book=read_book)
    open_chapter(next(reversed(chapters)))

def compile_book(text, path):
    """The program TEXT, from PATH, as bytecode in chapters: what own_bytecode() and the launcher
    start.  Docstrings stay behind."""
    import ast
    tree, chapters, homes, functions = ast.parse(text), {}, {}, {}
    titles = [line.strip("# ─") if line.startswith("# ── ") else "" for line in text.split("\n")]
    for node in tree.body[1:]:  # without the docstring
        title = next(filter(None, titles[node.lineno - 1::-1]))
        if tells_rows(node):
            continue  # the appendix has these rows, and those of what stands above functions
        chapters.setdefault(title, []).append(node)
        if isinstance(node, ast.FunctionDef):
            functions[node.name] = title
            node.decorator_list = []
        else:
            homes.update(dict.fromkeys(names_made(node), title))
    loader = [node for node in tree.body if getattr(node, "name", "") in FRONT]
    front = book_head(path) + marshal.dumps(compiled(loader + ast.parse(OPEN_BOOK).body, path))
    data, index = b"", {}
    for title, nodes in chapters.items():
        used = {name for node in nodes for name in names_used(node)}
        needs = {homes[name] for name in used if name in homes} - {title}
        if title == functions["main"]:  # it finds the commands' functions by name
            used |= names_told()
        others = {name: functions[name] for name in sorted(used & {*functions})
                  if functions[name] != title}
        chapter = marshal.dumps((*cut_chapter(nodes, path), others))
        index[title] = len(front) + len(data), len(chapter), sorted(needs, key=[*chapters].index)
        data += chapter
    appendix = marshal.dumps((index, {name: marshal.dumps(row_of(name)) for name in COMMANDS}))
    return front + data + appendix + (len(front) + len(data)).to_bytes(8, "little")

def cut_chapter(nodes, path):
    """A chapter as what is executed when it's opened, and its functions, each as bytes; but those
    that are needed for the former are part of it."""
    import ast
    at_once, own = [], {}
    used = {name for node in nodes for part in getattr(node, "body", [node])  # of a class, each
            if not isinstance(node, ast.FunctionDef) and not isinstance(part, ast.FunctionDef)
            for name in names_used(part)}
    for node in nodes:
        if isinstance(node, ast.FunctionDef) and node.name not in used:
            own[node.name] = marshal.dumps(compiled([node], path))
        else:
            at_once.append(node)
    return compiled(at_once, path), own

def tells_rows(node):
    """True if a top-level statement, or each in a loop, only adds rows to the commands' tables."""
    import ast
    body = node.body if isinstance(node, ast.For) else [node]
    calls = [getattr(getattr(inner, "value", None), "func", None) for inner in body]
    return all(getattr(call, "id", "") in ("offer", "also_called") for call in calls)

def names_used(node):
    import ast
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}

def names_told():
    """The names of functions that the rows of the commands tell."""
    return {name for row in COMMANDS.values() for key, name in row.items()
            if key in ("function", "engine", "typed") and name}

def compiled(nodes, path):
    """Top-level statements as bytecode."""
    import ast
    return compile(ast.Module(nodes, []), path, "exec", optimize=2)

def names_made(node):
    """The global names that a top-level statement makes: constants, classes, modules."""
    import ast
    if isinstance(node, ast.ClassDef):
        return [node.name]
    imports = [inner for inner in ast.walk(node) if isinstance(inner, ast.Import)]
    if imports:  # perhaps in a try
        return [alias.name for inner in imports for alias in inner.names]
    targets = [inner for target in getattr(node, "targets", ()) for inner in ast.walk(target)]
    return [inner.id for inner in targets if isinstance(inner, ast.Name)]

OPEN_BOOK = """
import posix, sys
if "BOOK" not in globals():  # it was started from a memfd
    open_book(posix.open(sys.argv[0], posix.O_RDONLY | posix.O_CLOEXEC), globals())
elif is_fresh(front, posix.stat(SOURCE)):
    open_book(above_standard(BOOK), globals())
"""

def book_head(path):
    """The first 16 bytes of a .pyc of the file at PATH."""
    from _frozen_importlib_external import MAGIC_NUMBER  # importlib.util would cost 3 ms
    info = os.stat(path)
    numbers = 0, int(info.st_mtime), info.st_size
    return MAGIC_NUMBER + b"".join(struct.pack("<I", number & 0xffffffff) for number in numbers)

def installed_files(words):
    """Where a command's PREFIX has the launcher and the program: (path, path)."""
    prefix = os.path.abspath(words[0] if words else "/usr/local")
    return f"{prefix}/bin/mydocker", f"{prefix}/lib/mydocker/mydocker.py"

UNIT = "/etc/systemd/system/mydocker.service"
WANTED = "/etc/systemd/system/multi-user.target.wants/mydocker.service"
UNIT_TEXT = """[Unit]
Description=mydocker's containers that come back after a reboot
After=network-online.target
Wants=network-online.target

[Service]
Type=oneshot
RemainAfterExit=yes
Delegate=yes
ExecStart={launcher} start --all-restarting

[Install]
WantedBy=multi-user.target
"""

@command("[PREFIX]", "put this file, and a launcher that compiles nothing, in place (/usr/local)",
         ("--systemd", "", "and a unit that starts after a reboot what has --restart always"),
         takes=(0, 1))
def cmd_install(options, words):
    """A copy and what starts it, tried once; with --systemd also the unit, and a link to it."""
    if options["systemd"] and not os.path.isdir(os.path.dirname(UNIT)):
        raise Failure(f"install, on --systemd: there is no {os.path.dirname(UNIT)}")
    launcher, source = installed_files(words)
    text, python = read_all(sys._getframe().f_code.co_filename), os.path.realpath(sys.executable)
    launch = LAUNCHER.format(python=python, source=source)
    for path, data, mode in ((source, text, 0o644), (launcher, launch, 0o755)):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_file(path, data, mode=mode)  # by its path, it might be a link by now
    unlink_if_there(source + "c")  # the launcher makes it anew
    if os.spawnv(os.P_WAIT, launcher, [launcher, "--version"]):
        raise Failure(f"install, on {launcher}: it doesn't start")
    if options["systemd"]:
        write_file(UNIT, UNIT_TEXT.format(launcher=launcher), mode=0o644)
        os.makedirs(os.path.dirname(WANTED), exist_ok=True)
        with tolerate(errno.EEXIST):
            os.symlink(UNIT, WANTED)

@command("COMMAND...", HIDDEN, takes=SOME, mixed=False)
def cmd_renew(_, words):
    """Compile what is installed once more, as Python or the file has changed, and go on."""
    source = sys._getframe().f_code.co_filename
    with tolerate():  # a read-only file system: it is slower, and no worse
        write_file(source + "c", compile_book(read_all(source), source), mode=0o644)
    sys.argv[1:] = words
    return dispatch(words)

@command("[PREFIX]", "take away what install put in place; images and containers stay",
         takes=(0, 1))
def cmd_uninstall(_, words):
    launcher, source = installed_files(words)
    paths = [launcher, source, source + "c"]
    if os.path.exists(UNIT) and f"={launcher} " in read_all(UNIT):
        paths += [WANTED, UNIT]
    for path in paths:
        unlink_if_there(path)
    with tolerate(errno.ENOENT, errno.ENOTEMPTY):
        os.rmdir(os.path.dirname(source))

# ── 57. The narrator ─────────────────────────────────────────────────────────
# --explain tells what is done as it is done: a heading for each stage, under it the kernel calls,
# and behind each what it is for, which is the comment behind the line of this file that makes it.
# Nothing else of the program knows of it: it puts a printing shell around the functions that
# kernel() has bound, around those of `os` in OS_CALLS and those of ours in OWN_CALLS, and finds
# the stage by the function that is being carried out: STAGES.  It is read only when it is wanted.
#
# Two processes tell at once, the outside (run) and the inside (init, join).  So that the story has
# one order, each time the same, the outside waits twice: until the child has executed this file
# again, and until that one waits for the spec.

# What is shown of the os module: the kinds of arguments where they are flags, and the functions
# that it is shown in, if not in all.
OS_CALLS = dict.fromkeys("fork execvp execve chdir fchdir setsid dup2 mknod symlink setgroups "
                         "setresgid setresuid fchown".split(), ((), ()))
OS_CALLS.update(unshare=(("CLONE_",), ()), setns=((None, "CLONE_"), ()),
                mkdir=((), ("make_cgroup",)), rmdir=((), ("remove_cgroups",)))
OWN_CALLS = {"write_value": "write", "netlink": "netlink", "name_blob": "rename",
             "name_layer": "rename"}  # by the names to show
FILLING = "make_link make_node mark_whiteout hide_lower place fill dress finish".split()  # layers
DETAILS = set(  # --explain=all has them
    "openat2 statfs fstatfs signalfd fchdir fchown pidfd_open capget".split())
REPEATED = set("prctl mknod symlink mkdir rmdir write dup2".split())  # many alike become one line
FILE_REASONS = {  # what writing to a file of the kernel's does: by its name
    "cgroup.procs": "in it goes, with all the children that it will have",
    "cgroup.subtree_control": "what is in it may limit these, too",
    "cgroup.freeze": "1: all stand still, 0: they go on",
    "freezer.state": "all stand still, or go on",
    "cpuset.cpus": "version 1 starts without processors", "cpuset.mems": "and without memory",
    "devices.deny": "which devices it must not use", "devices.allow": "which devices it may use",
    "uid_map": "user ids: inside, outside, how many",
    "gid_map": "group ids: inside, outside, how many",
    "oom_score_adj": "who is killed first when memory is short"}
STAGES = {  # the function that is carried out: (what is made, what that means)
    "fork": ("a process tree of its own",
        "The next child is PID 1 of a new PID namespace, and sees no process but its own."),
    "fork shared": ("a process",
        "It stays among the processes of the host, or goes to those of another container."),
    "fork join": ("one more process",
        "It starts outside, with a mount table of its own until it enters the container."),
    "open_mapped_root": ("its root",
        "Who is root inside can't reach the image: the outside stacks it, shown with other owners, "
        "and hands it in."),
    "become_mapped": ("ids of its own",
        "Who is root in a user namespace has no power outside of it."),
    "map_ids": ("ids of its own",
        "From outside it is written once what the ids inside mean."),
    "reexec_inside": ("mounts of its own, and this file once more",
        "What is mounted from here on only it can see; then it executes this program again, "
        "as init."),
    "reexec_inside join": ("this file once more",
        "What is mounted from here on only it can see; then it executes this program again, "
        "as join."),
    "take_place join": ("apart from the caller",
        "It leaves what it has from the caller."),
    "make_container_dir": ("its name",
        "A name is a link to the container's id: taken in one step."),
    "take_place": ("apart from the host",
        "It leaves what it has from the caller. Host name, System V IPC and network, an empty "
        "one, are its own from here on, if it shares none of them."),
    "make_cgroups": ("its limits",
        "A cgroup is a directory: a limit is a file in it, and a pid written to cgroup.procs "
        "puts a process in."),
    "connect_container": ("its network",
        "A cable: one end in the host's bridge, one inside. It gets an address, a route, and "
        "rules for what leaves the host."),
    "build_root": ("its root",
        "A file system is a list of mounts; none of them is ever seen on the host, and all go "
        "with the last process."),
    "enter_root": ("the door closes",
        "The new root becomes /, and the host's is detached: no path leads back."),
    "hide_paths": ("what it must not see",
        "Files of the kernel's that tell of the host, or change it, are made read-only or "
        "covered."),
    "name_host": ("its host name",
        "The UTS namespace has a name of its own."),
    "hand_out_terminal": ("its terminal",
        "It is made in the container's own /dev/pts; the other end goes to the outside."),
    "confine": ("what it may do",
        "Its user, its capabilities, and a filter of system calls: from here on there is no "
        "way back."),
    "join_namespaces": ("into the container",
        "Nothing is made: it enters the namespaces that are there, all of them or none."),
    "take_session": ("the command",
        "Away from the caller's session, and the command takes the place of this program."),
    "end_container": ("the end",
        "The kernel has removed what was inside; what was outside is swept."),
    "create_network": ("a network",
        "A bridge with an address, and rules in one table for all."),
    "cmd_commit": ("a copy of what it wrote",
        "It stands still meanwhile: no file is half written."),
    "cmd_build": ("a build",
        "Each instruction that writes files does so in a container of its own, and what is "
        "written is one more layer."),
    "pull": ("an image from a registry",
        "First a list of what it is made of, then each part by its digest, which is checked."),
    "add_layer": ("one more layer",
        "A tar, unpacked once: on disk before it has its name, which is its digest."),
    "load": ("an image from a file",
        "Each part is unpacked once: on disk before it has its name, which is its digest."),
}
HTTP_REASONS = (("/manifests/", "what it is made of"), ("/blobs/", "a part, by its digest"),
                ("", "may we, and how"))  # what is in an address, and what that means

class Narrator:
    """What one process tells, where to, and what it told last."""
    def __init__(self, everything, step, turn=None):
        self.out = fcntl.fcntl(2, fcntl.F_DUPFD_CLOEXEC, 3)
        self.terminal, self.step, self.told = None, step, set()
        if step:
            with tolerate(errno.ENXIO, errno.ENOENT):
                self.terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
        self.everything, self.reasons, self.held = everything, source_comments(), []
        self.who = sys.argv[1] if sys.argv[1:2] in (["init"], ["join"]) else "run"
        self.turn, self.received = turn, 0  # a pipe's end that the other one waits for, or its own
        self.fork, self.leave, self.receive, self.tell = os.fork, os._exit, receive, tell
        import re  # soon it would be the container's: see chapter 1

    def say(self, call, args, kinds, frame):
        """Tell of a call that is about to be made in that frame."""
        detail = call in DETAILS or args[:1] == ("/proc/self/fd",) or (
            frame.f_code.co_name in ("back_to_own_pids", *FILLING) and call != "http") or (
            hides(frame) and call in ("open_tree", "move_mount", "chdir"))
        if self.out is None or detail and not self.everything:
            return
        args, kinds = named_arguments(call, args, kinds, frame)
        if args is None and not self.everything:
            return  # it only asks
        self.enter_stage(frame)
        why = self.reason_of(frame)
        if call == "http":
            why = next(why for part, why in HTTP_REASONS if part in args[1])
        elif call == "write" and not why:
            why = FILE_REASONS.get(os.path.basename(args[0])) or limit_reason(args[0])
        words = [c_value(arg, kind) for arg, kind in zip(
            args or (), (*kinds, *[None] * len(args or ())))]
        if not self.everything:
            words = [*map(shorter, words)]
        if self.held and self.held[0][::2] != (call, why):
            self.flush()
        self.held.append((call, words, why))
        alike = call in REPEATED or call == "mount" and args[0] == "cgroup"
        if not alike or self.everything:
            self.flush()

    def reason_of(self, frame):
        """The comment behind the line that makes a call, or the line that called its function."""
        for _ in range(3):
            why = self.reasons.get(frame.f_lineno)
            if why or frame.f_back is None:
                return why
            frame = frame.f_back
        return ""

    def enter_stage(self, frame):
        """Print the heading of the stage that a frame belongs to, once."""
        while frame is not None:
            name, birth = frame.f_code.co_name, frame.f_locals.get("self")
            role = getattr(birth, "role", self.who)
            if name == "fork" and role == "init" and not (
                    getattr(birth, "flags", CLONE_NEWPID) & CLONE_NEWPID):
                role = "shared"
            if f"{name} {role}" in STAGES:
                name = f"{name} {role}"
            if name in STAGES:
                break
            frame = frame.f_back
        title, meaning = STAGES[name] if frame is not None else ("", "")
        if not title or title in self.told:
            return
        self.flush()
        self.told.add(title)
        bold, plain = ("\033[1m", "\033[0m") if os.isatty(self.out) else ("", "")
        with tolerate():
            os.write(self.out, encode(f"{bold}── {title}{plain}\n   {meaning}\n"))
        if self.terminal is not None:
            self.wait_for_reader()

    def flush(self):
        """Print what is held back: one call, or many that are alike as one line."""
        if not self.held or self.out is None:
            return
        call, words, why = self.held[0]
        if len(self.held) > 1:
            words, each_one = folded([row[1] for row in self.held])
            why = ", ".join([f"{len(self.held)} times", *each_one]) + (why and f": {why}")
        line = f"{self.who:4}  {call}({', '.join(words)})"
        print_line(f"{line:66}  {why}".rstrip(), self.out)
        self.held = []

    def wait_for_reader(self):
        """Stop before a stage: Enter goes on, s is a shell where this process is now."""
        while True:
            os.write(self.terminal, b"   [Enter: go on, s: a shell here] ")
            if os.read(self.terminal, 256).strip() != b"s":
                return
            child = self.fork()
            if not child:
                self.become_shell()
            os.waitpid(child, 0)

    def become_shell(self):
        """In a child: a shell on the terminal, in the namespaces as they are so far."""
        try:
            for fd in (0, 1, 2):
                os.dup2(self.terminal, fd)
            forget_signals()
            os.execv("/bin/sh", ["sh", "+m", "-i"])  # +m: these groups have no number outside
        except OSError as error:
            print_line(f"mydocker: --step, on /bin/sh: {reason(error)}", self.terminal)
        finally:
            self.leave(127)

    def fork_in_turn(self, frame):
        """fork(), but outside wait until the child has executed this file again."""
        birth = frame.f_locals.get("self")
        if frame.f_code.co_name != "fork" or birth.mapped or birth.guest:  # these wait for us
            return self.fork()
        executed, rest = os.pipe(), os.pipe()
        pid = self.fork()
        if pid:
            os.close(executed[1])
            os.close(rest[1])
            os.read(executed[0], 1)
            os.close(executed[0])
            self.turn = rest[0]
            return pid
        os.set_inheritable(rest[1], True)
        self.who = birth.role
        os.environ["MYDOCKER_EXPLAIN"] = " ".join(map(str, map(int, (
            self.everything, self.terminal is not None, rest[1]))))
        return pid

    def tell_in_turn(self, channel, message, fds=()):
        """tell(); then wait until the inside has come to rest, or be silent for good: the caller of
        `run -d` is about to leave."""
        self.flush()
        if message == "ready" and self.out is not None:
            os.close(self.out)
            self.out = None
        self.tell(channel, message, fds)
        if self.turn is not None and self.who == "run":
            os.read(self.turn, 1)
            os.close(self.turn)
            self.turn = None

    def receive_in_turn(self, channel):
        """receive(); the second time the inside comes to rest: it waits for the spec."""
        self.flush()
        self.received += 1
        if self.turn is not None and self.who != "run" and self.received == 2:
            os.close(self.turn)
            self.turn = None
        return self.receive(channel)

def hides(frame):
    """True where a path is being hidden: of each one line is told, what is made of it."""
    return "hide_paths" in (frame.f_code.co_name, frame.f_back.f_code.co_name)

def explain_calls(everything=False, step=False):
    """From here on tell on stderr of each kernel call before it is made, and what it is for."""
    globals().get("read_book", list)()  # a chapter that is read later would bring its own functions
    scope, words = globals(), os.environ.get("MYDOCKER_EXPLAIN", "").split()
    narrator = Narrator(everything, step)
    if len(words) == 3:  # init, or join
        narrator = Narrator(words[0] == "1", words[1] == "1", int(words[2]))
        os.set_inheritable(narrator.turn, False)

    def explained(call, name, kinds, places=()):
        def shell(*args, **more):
            frame = sys._getframe(1)
            if not places or frame.f_code.co_name in places:
                narrator.say(name, args, kinds, frame)
            if name == "fork":
                return narrator.fork_in_turn(frame)
            if name.startswith("exec"):
                narrator.flush()
            return call(*args, **more)
        return shell

    def leave(status):
        narrator.flush()
        narrator.leave(status)

    for name, value in list(scope.items()):
        if hasattr(value, "kinds") and name not in OWN_CALLS:
            scope[name] = explained(value, value.__name__, value.kinds)
    for name, (kinds, places) in OS_CALLS.items():
        setattr(os, name, explained(getattr(os, name), name, kinds, places))
    for name, shown in OWN_CALLS.items():
        scope[name] = explained(scope[name], shown, ())
    ask = Site.send

    def send(site, method, url, *more):
        narrator.say("http", (method, url), (), sys._getframe(1))
        return ask(site, method, url, *more)

    Site.send = send
    os._exit, scope["tell"], scope["receive"] = (
        leave, narrator.tell_in_turn, narrator.receive_in_turn)

def source_comments():
    """What stands behind the lines of this file: {line number: comment}; {} without the source."""
    try:
        lines = read_all(sys._getframe().f_code.co_filename).split("\n")
    except OSError:
        return {}
    lines = enumerate((line.partition("  # ") for line in lines), 1)
    return {number: why for number, (code, _, why) in lines if why and code.strip()}

# Arguments

class Word(int):
    """A number that is shown by its name."""
    def __new__(cls, value, name):
        word = int.__new__(cls, value if isinstance(value, int) else 0)
        word.name = name
        return word
    def __str__(self):
        return self.name

def named_arguments(call, args, kinds, frame):
    """A call's arguments as they are shown, with names for numbers: (args, kinds); (None, ()) for
    one that only asks."""
    args = list(args)
    if call == "prctl" and args[0] == PR_SET_SECCOMP:
        words = filter_words(frame.f_locals.get("steps") or b"")
        args[1:] = [Word(args[1], "SECCOMP_MODE_FILTER"), Word(0, words)]
    elif call == "prlimit":
        args[1:3] = (Word(0, "RLIMIT_" + ULIMITS[args[1]].upper()),
                     Word(0, "{{{}, {}}}".format(*struct.unpack("QQ", args[2]))))
        kinds = ()
    elif call == "prctl" and args[0] in (PR_CAPBSET_DROP, PR_CAP_AMBIENT):
        at = 1 if args[0] == PR_CAPBSET_DROP else 2
        number = args[at]
        if number > last_capability():
            return None, ()  # it only asks whether there are more
        args[at] = Word(number, CAPABILITIES[number] if number < len(CAPABILITIES) else str(number))
        if at == 2:
            args[1] = Word(args[1], "PR_CAP_AMBIENT_RAISE")
    elif call == "prctl" and args[0] == PR_SET_PDEATHSIG:
        args[1] = Word(args[1], signal_name(args[1]))
    elif call == "capset":
        args = [Word(0, "{_LINUX_CAPABILITY_VERSION_3}"), Word(0, capability_sets(args[1]))]
        kinds = ()
    elif call == "mount_setattr":
        args[3] = Word(0, attribute_words(args[3]))
        kinds = (*kinds[:3], None)
    elif call == "mknod":
        args[1] = Word(0, f"{'S_IFBLK' if stat.S_ISBLK(args[1]) else 'S_IFCHR'}"
                          f"|0{stat.S_IMODE(args[1]):o}") if args[1] & (
                              stat.S_IFCHR | stat.S_IFBLK) else args[1]
        args[2:] = [Word(0, f"makedev({os.major(args[2])}, {os.minor(args[2])})")]
    elif call == "netlink":
        words = netlink_words(args[0], args[2])
        protocol = "NETLINK_NETFILTER" if args[0] == NETLINK_NETFILTER else "NETLINK_ROUTE"
        return ([Word(0, protocol), args[1], Word(0, "{" + words + "}")] if words else None), ()
    args = [Word(arg, "AT_FDCWD") if arg is not None and arg == AT_FDCWD and kind is INT else arg
            for arg, kind in zip(args, (*kinds, *[None] * len(args)))]
    return args, kinds

def last_capability():
    """The number of the last capability that this kernel has."""
    with tolerate():
        return int(read_all("/proc/sys/kernel/cap_last_cap"))
    return 63

def signal_name(number):
    names = [name for name in dir(_signal) if name.startswith("SIG") and name[3] != "_"
             and getattr(_signal, name) == number]
    return names[0] if names else str(number)

def capability_sets(data):
    """What capset(2) gives: the effective set by names, or that there is none."""
    halves = struct.unpack("6I", data)
    bits = halves[0] | halves[3] << 32
    names = [name for bit, name in enumerate(CAPABILITIES) if bits >> bit & 1]
    return "{" + ("|".join(names) or "0") + "}"

def filter_words(code):
    """What a filter of system calls comes to: how long it is, and the answers that it has."""
    steps = [struct.unpack_from("HBBI", code, at) for at in range(0, len(code), 8)]
    answers = {value for kind, _, _, value in steps if kind == 0x06}  # BPF_RET
    names = {0x7FFF0000: "ALLOW", 0x7FFC0000: "LOG", 0x00030000: "TRAP", 0x7FF00000: "TRACE",
             0x00050000: "ERRNO", 0x80000000: "KILL_PROCESS", 0: "KILL_THREAD"}
    words = [names.get(value & 0xFFFF0000, hex(value)) + (
        f"({errno.errorcode.get(value & 0xFFFF, value & 0xFFFF)})" if value >> 16 == 5 else "")
             for value in sorted(answers, reverse=True)]
    return f"{{{len(steps)} steps: {', '.join(words)}}}"

def attribute_words(data):
    """A struct mount_attr, by what it sets."""
    bits, clear, propagation, _ = struct.unpack("QQQQ", data)
    known = "RDONLY", "NOSUID", "NODEV", "NOEXEC"
    names = ["MOUNT_ATTR_" + name for bit, name in enumerate(known) if bits >> bit & 1]
    parts = [f".attr_set={'|'.join(names) or hex(bits)}"] if bits else []
    parts += [f".attr_clr={clear:#x}"] if clear else []
    parts += [f".propagation={c_flags(propagation, 'MS_')}"] if propagation else []
    return "{" + ", ".join(parts) + "}"

def netlink_words(protocol, messages):
    """What netlink messages ask for, by their names and what matters in them; "" if they only
    ask."""
    prefix, words = ("NFT_MSG_", []) if protocol == NETLINK_NETFILTER else ("RTM_", [])
    known = {value: name for name, value in globals().items() if name.startswith(prefix)}
    for kind, flags, body in messages:
        name = known.get(kind & 0xFF if prefix == "NFT_MSG_" else kind, "")
        if not name or flags & NLM_F_DUMP == NLM_F_DUMP and "NEW" not in name or "_GET" in name:
            continue
        words.append(name if prefix == "NFT_MSG_" else name + route_words(kind, body))
    counts = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    return ", ".join(f"{count} x {word}" if count > 1 else word for word, count in counts.items())

def route_words(kind, body):
    """What matters in a message of rtnetlink(7)."""
    if kind in (RTM_NEWADDR, RTM_DELADDR):
        address = parse_attributes(body[8:]).get(IFA_LOCAL, b"")
        return f" {'.'.join(map(str, address))}/{body[1]}"
    if kind == RTM_NEWROUTE:
        gateway = parse_attributes(body[12:]).get(RTA_GATEWAY, b"")
        return " default via " + ".".join(map(str, gateway))
    found = parse_attributes(body[16:])
    kind = parse_attributes(found.get(IFLA_LINKINFO, b"")).get(IFLA_INFO_KIND, b"")
    words = [kind, found.get(IFLA_IFNAME, b""), b"up" if body[8] & IFF_UP else b""]
    return "".join(" " + os.fsdecode(word.rstrip(b"\0")) for word in words if word)

def limit_reason(path):
    """Which limit a file of a cgroup is: by the option for it."""
    name = os.path.basename(path)
    return next((f"{row[1].split()[-2] if len(row[1].split()) > 1 else row[1]}: {row[3]}"
                 for row in LIMITS if name in row[4:]), "")

def shorter(text):
    """A word of a call without what is the same in each path of a container, or by chance."""
    import re
    text = re.sub(r"/[^ \"=:]*/containers/[0-9a-f]{64}/", "…/", text).replace("/./", "/")
    return re.sub(r"[0-9a-f]{64}", "ID", re.sub(r"tmp\.[0-9]+\.[0-9a-f]+", "tmp", text))

def folded(rows):
    """Calls that differ in some words, as one: (its words, what differs in each)."""
    places = [at for at in range(len(rows[0])) if len({row[at] for row in rows}) > 1]
    words = [word if at not in places else "..." for at, word in enumerate(rows[0])]
    if not places:
        return words, []
    values = [row[places[0]] for row in rows]
    start = len(os.path.commonprefix(values))
    end = len(os.path.commonprefix([value[start:][::-1] for value in values]))
    if values[0][:start] == "CAP_":
        start = end = 0  # names that can be searched for
    paths = "/" in values[0][:start]
    if paths:  # whole names only
        start = values[0].rfind("/", 0, start) + 1
        end = max(0, len(values[0]) - values[0].find("/", len(values[0]) - end)) if (
            "/" in values[0][len(values[0]) - end:]) else 1
    words[places[0]] = values[0][:start] + "..." + values[0][len(values[0]) - end:]
    each_one = [value[start:len(value) - end] for value in values]
    return words, [*each_one[:4], "..."] if paths and len(each_one) > 4 else each_one

for told in [*"run exec start commit pull build load import".split(), "network create"]:
    offer(told, ("--explain", "[=all]", "tell each kernel call and why; all: the small ones, too"),
          ("--step", "", "tell, and stop before each stage; s is a shell there"))

# ── 58. Told from outside ────────────────────────────────────────────────────
# `explain` tells of any process what of a container it has, whoever made it: Docker, podman,
# Kubernetes, we, or nobody.  All of it stands in /proc/PID, in its cgroups and in its mount table;
# what is its own is what differs from the host's first process.

CAPABILITY_MEANS = dict(zip(CAPABILITIES, (
    "give files to others", "pass file permissions", "read any file by its handle",
    "act as any file's owner", "keep set-id bits", "signal anybody", "be any group", "be any user",
    "hand capabilities on", "change immutable files", "bind ports below 1024", "broadcast",
    "change links, routes, rules", "send raw packets", "lock memory", "pass IPC permissions",
    "LOAD KERNEL MODULES", "REACH HARDWARE", "chroot", "LOOK INTO OTHER PROCESSES", "accounting",
    "MOUNT AND NEARLY ALL ELSE", "REBOOT", "raise priorities", "pass resource limits",
    "SET THE CLOCK", "configure terminals", "make devices", "lease files", "write to the audit log",
    "control auditing", "give files capabilities", "PASS MAC RULES", "CHANGE MAC RULES",
    "read the kernel's log", "wake the host", "keep the host awake", "read the audit log",
    "observe all performance", "LOAD BPF PROGRAMS", "checkpoint processes")))
KERNEL_KINDS = "sysfs cgroup cgroup2 mqueue devpts securityfs debugfs bpf pstore tracefs".split()
ENGINES = (  # what stands in a cgroup's path, and whose it is
    ("/mydocker/", "mydocker"), ("libpod", "podman"), ("cri-containerd", "Kubernetes, containerd"),
    ("crio-", "Kubernetes, CRI-O"), ("kubepods", "Kubernetes"), ("docker", "Docker"),
    ("lxc", "LXC"), ("nspawn", "systemd-nspawn"))
ENGINE_FILES = "hostname", "hosts", "resolv.conf", "termination-log"  # in /etc, each engine's own

@command("CONTAINER|PID", "tell what of a container a process has, of any engine or none: its "
         "namespaces, root, rights, limits, and what is unusual", takes=ONE)
def cmd_explain(_, words):
    """A process is told by its pid and start: what ended meanwhile isn't mixed with another."""
    pid = find_process(words[0])
    start = process_start(pid)
    try:
        told = told_process(pid)
    except (FileNotFoundError, ProcessLookupError):
        told = []
    if start is None or process_start(pid) != start:
        raise Failure(f"explain, on {words[0]}: it has ended")
    import textwrap
    for title, text in told:
        lines = textwrap.wrap(printable(text), 86, break_on_hyphens=False) or ["-"]
        for line in lines:
            show(f"{title:12} {line}")
            title = ""

def find_process(text):
    """The pid that a number, a container of ours, or the id of anybody's container means."""
    if to_number(text) is not None and os.path.exists(f"/proc/{int(text)}/ns"):
        return int(text)
    with_id = []
    try:
        return live_pid(find_container(text))
    except Failure as failure:
        for pid in all_pids() if text else ():
            with tolerate():
                path = read_all(f"/proc/{pid}/cgroup")
                names = path.replace("-", "/").replace(":", "/").split("/")
                if len(text) > 5 and any(name.startswith(text) for name in names):
                    with_id.append(pid)
        if not with_id:
            raise failure
    return min(with_id)  # the first that was started

def all_pids():
    return sorted(map(int, filter(str.isdigit, os.listdir("/proc"))))

def told_process(pid):
    """All that is told of a process: [(title, text)]."""
    rows = read_all(f"/proc/{pid}/status").split("\n")
    status = dict(row.partition(":\t")[::2] for row in rows)
    spaces, mounts = namespaces_of(pid), mount_table(pid)
    dirs = cgroups_of(pid)
    host_root = "mnt" not in spaces or is_from_host(mounts["/"], host_places()) == "/"
    shared = [] if host_root else host_mounts(mounts)
    return [
        ("process", who_is(pid, status)),
        ("own", " ".join(sorted(spaces)) or "no namespace: it is no container"),
        *[("shared", text) for text in shared_namespaces(pid, spaces)],
        ("root", "the host's own" if host_root else root_words(mounts["/"])),
        *[("from host", text) for text in mount_lines(shared)],
        ("user", user_words(pid, status)),
        ("may", capability_words(status)),
        ("held back", held_back(pid, status)),
        ("limits", limit_words(dirs)),
        ("network", network_words(pid) if "net" in spaces else "the host's"),
        *[("unusual", text) for text in
          unusual(pid, status, spaces, host_root, mounts, shared, dirs) or ["nothing"]]]

def who_is(pid, status):
    """What a process is, and whose container it is the first of, by its cgroup."""
    import re
    args = read_all(f"/proc/{pid}/cmdline").replace("\0", " ").strip() or f"[{status['Name']}]"
    path = read_all(f"/proc/{pid}/cgroup")
    found = re.search(r"[0-9a-f]{64}", path)
    engine = next((name for word, name in ENGINES if word in path), "")
    text = f"{pid}, {args[:60]}"
    inside = status.get("NSpid", "").split()[1:]
    if inside:
        text += f"; inside it is {inside[-1]}"
    if engine:
        text += f"; of {engine}" + (f", container {found[0][:12]}" if found else "")
    return text

# Namespaces

def host_pid():
    """The process that stands for the host: the first, or we where nobody may look into that."""
    try:
        os.readlink("/proc/1/ns/mnt")
        return 1
    except OSError:
        return os.getpid()

def namespaces_of(pid):
    """The namespaces in which a process differs from the host's: {name: its number}."""
    found, host = {}, host_pid()
    for _, name in NAMESPACES.values():
        own, first = (link_target(AT_FDCWD, f"/proc/{each}/ns/{name}") for each in (pid, host))
        if own and own != first:
            found[name] = own
    return found

def shared_namespaces(pid, spaces):
    """With whom a process shares its namespaces: lines."""
    host = [name for _, name in NAMESPACES.values() if name not in spaces]
    lines, groups = [f"with the host: {' '.join(sorted(host))}"] if host else [], {}
    cgroup, others = read_all(f"/proc/{pid}/cgroup"), {}
    for other in all_pids():
        with tolerate():
            if other != pid and read_all(f"/proc/{other}/cgroup") != cgroup:
                for name in spaces:
                    if link_target(AT_FDCWD, f"/proc/{other}/ns/{name}") == spaces[name]:
                        others.setdefault(name, other)
    for name, other in others.items():
        groups.setdefault(other, []).append(name)
    for other, names in groups.items():
        with tolerate():
            comm = read_all(f"/proc/{other}/comm").strip()
            lines.append(f"with process {other}, {comm}: {' '.join(sorted(names))}")
    return lines

# Mounts

def mount_table(pid):
    """A process's mounts: {place: (device, what of it, type, options, the type's own)}."""
    rows = {}
    for line in read_all(f"/proc/{pid}/mountinfo").split("\n")[:-1]:
        before, _, after = line.partition(" - ")
        fields, (kind, _, more) = before.split(" "), after.split(" ", 2)
        place = fields[4].replace("\\040", " ")
        rows[place] = fields[2], fields[3].replace("\\040", " "), kind, fields[5].split(","), more
    return rows

def host_places():
    """Where each file system is mounted on the host: {device: [(what of it, place)]}, the shortest
    first."""
    places = {}
    for place, (device, top, *_) in mount_table(host_pid()).items():
        places.setdefault(device, []).append((top, place))
    return {device: sorted(rows, key=lambda row: len(row[1])) for device, rows in places.items()}

def is_from_host(row, places):
    """The path on the host of what a mount shows; None if it isn't there."""
    device, top, *_ = row
    for above, place in places.get(device, ()):
        below = os.path.relpath(top, above)
        if not below.startswith(".."):
            return "/" + os.path.normpath(f"{place}/{below}").lstrip("/")
    return None

def host_mounts(mounts):
    """What a container has of the host's files: [(path there, place, writable)]."""
    places, found = host_places(), []
    for place, row in mounts.items():
        path = is_from_host(row, places)
        if path and place != "/" and row[2] not in KERNEL_KINDS:
            found.append((path, place, "ro" not in row[3]))
    return found

def mount_lines(shared):
    """What comes from the host, in lines; an engine's files in /etc are one."""
    files = [place for _, place, _ in shared if os.path.basename(place) in ENGINE_FILES]
    lines = [f"{path} at {place}{', writable' if writable else ', read-only'}"
             for path, place, writable in shared if place not in files]
    if len(lines) > 8:
        lines[8:] = [f"and {len(lines) - 8} more"]
    return lines + ([f"the engine's own {' '.join(sorted(files))}"] if files else [])

def root_words(row):
    """What a container's root is."""
    _, top, kind, options, more = row
    way = "read-only" if "ro" in options else "writable"
    if kind != "overlay":
        return f"{kind}, {top} of it, {way}"
    lower = [word.partition("=")[2] for word in more.split(" ")[-1].split(",")
             if word.startswith("lowerdir")]
    count = sum(len([part for part in text.split(":") if part]) for text in lower)
    return f"overlay of {count} layer{'s' if count != 1 else ''}, {way}"

# Rights and limits

def user_words(pid, status):
    """Who a process is, inside and outside."""
    uid, gid = status["Uid"].split()[1], status["Gid"].split()[1]
    rows = [line.split() for line in read_all(f"/proc/{pid}/uid_map").split("\n") if line]
    text = f"{uid}:{gid} on the host, groups {status['Groups'].strip() or 'none'}"
    if rows and rows != [["0", "0", "4294967295"]]:
        return text + "; user ids inside are the host's: " + ", ".join(
            f"{first}-{int(first) + int(size) - 1} are {outside}-{int(outside) + int(size) - 1}"
            for first, outside, size in rows)
    return text + "; the ids inside are the host's"

def capability_names(status):
    bits = int(status["CapEff"], 16)
    return [name for bit, name in enumerate(CAPABILITIES) if bits >> bit & 1]

def has_all(status):
    """True if a process has all capabilities that the host has itself."""
    rows = read_all(f"/proc/{host_pid()}/status").partition("CapBnd:")[2].split()
    return int(status["CapEff"], 16) == int(rows[0], 16) > 0

def capability_words(status):
    names, bounds = capability_names(status), int(status["CapBnd"], 16)
    words = [f"{name[4:]} ({CAPABILITY_MEANS[name]})" for name in names]
    if has_all(status):
        return f"everything that the host can give: all of its {len(names)} capabilities"
    if not names:
        return "nothing: no capability" + ("" if bounds else ", and it can get none")
    return ", ".join(words)

def held_back(pid, status):
    """What holds a process back besides capabilities."""
    label = ""
    with tolerate():
        label = read_all(f"/proc/{pid}/attr/current").strip("\0\n")
    modes = {"0": "no filter of system calls", "1": "strict seccomp: read and write only",
             "2": "a filter of system calls"}
    return ", ".join([modes.get(status.get("Seccomp"), "seccomp not known"),
                      f"no_new_privs {'on' if status.get('NoNewPrivs') == '1' else 'off'}",
                      f"AppArmor or SELinux: {label or 'none'}"])

def cgroups_of(pid):
    """The directories of a process's cgroups, as far as they can be seen here."""
    points = {name: point for name, (point, _) in hierarchies().items()}
    dirs = []
    for line in read_all(f"/proc/{pid}/cgroup").split("\n")[:-1]:
        _, name, path = line.split(":", 2)
        place = os.path.normpath(points.get(name, "/nowhere") + path)
        if os.path.isdir(place):
            dirs.append(place)
    return dirs

def limits_of(dirs):
    """A cgroup's limits: (memory, pids, processors), each 0 if there is none."""
    usage, quota = usage_of(dirs), 0
    path = cgroup_file(dirs, "cpu.max")
    period = read_number(dirs, "cpu.cfs_period_us") or 100000
    if path:
        words = read_all(path).split()
        quota = int(words[0]) / int(words[1]) if words[0] != "max" else 0
    else:
        quota = read_number(dirs, "cpu.cfs_quota_us") / period
    memory = usage["memory_limit"] if usage["memory_limit"] < 1 << 60 else 0
    return memory, usage["pids_limit"], quota

def limit_words(dirs):
    usage, (memory, pids, processors) = usage_of(dirs), limits_of(dirs)
    return ", ".join((
        f"memory {humane_size(usage['memory'])} of {humane_size(memory) if memory else 'any'}",
        f"processes {usage['pids']} of {pids or 'any'}",
        f"processors {f'{processors:.3g}' if processors else 'any'}"))

# Network

def network_words(pid):
    """A network's links, addresses and the ports that are listened at."""
    links = [line.partition(":")[0].strip()
             for line in read_all(f"/proc/{pid}/net/dev").split("\n")[2:-1]]
    addresses, last = [], ""
    for line in read_all(f"/proc/{pid}/net/fib_trie").split("\n"):
        words = line.split()
        if words[:1] in (["|--"], ["+--"]):
            last = words[1]
        elif words[:3] == ["/32", "host", "LOCAL"] and last not in addresses:
            addresses.append(last)
    ports = set()
    for name in ("tcp", "tcp6", "udp", "udp6"):
        with tolerate(errno.ENOENT):
            for line in read_all(f"/proc/{pid}/net/{name}").split("\n")[1:-1]:
                words = line.split()
                if words[3] == ("0A" if name[:3] == "tcp" else "07"):
                    ports.add((int(words[1].rpartition(":")[2], 16), name[:3]))
    heard = ", ".join(f"{port}/{name}" for port, name in sorted(ports)[:12]) or "no port"
    return f"{' '.join(links)}: {' '.join(addresses) or 'no address'}; listens at {heard}"

# What is unusual

SOCKETS = "docker.sock containerd.sock crio.sock podman.sock buildkitd.sock".split()
MIGHTY = "SYS_ADMIN SYS_MODULE SYS_RAWIO SYS_PTRACE SYS_BOOT SYS_TIME BPF MAC_ADMIN MAC_OVERRIDE " \
         "DAC_READ_SEARCH NET_ADMIN".split()

def unusual(pid, status, spaces, host_root, mounts, shared, dirs):
    """What a container seldom has, or lacks, and should be known of: phrases."""
    names = [name[4:] for name in capability_names(status)]
    mighty = [name for name in MIGHTY if name in names]
    found = []
    if has_all(status) and "user" not in spaces:
        found.append("all capabilities: privileged")
    elif mighty and "user" not in spaces:
        found.append(f"it has {' '.join(mighty)}")
    if status.get("Seccomp") == "0":
        found.append("unconfined: no filter of system calls")
    found += [f"it shares the host's {use}" for name, use in (
        ("mnt", "mounts"), ("pid", "processes"), ("net", "network"), ("ipc", "System V IPC"))
        if name not in spaces]
    if host_root:
        found.append("its root is the host's own")
    found += unusual_mounts(mounts, shared) if not host_root else []
    disks = [] if host_root else block_devices(pid)
    if disks:
        found.append(f"block devices in its /dev: {' '.join(disks[:6])}")
    memory, pids, _ = limits_of(dirs)
    missing = [what for what, limit in (("memory", memory), ("processes", pids)) if not limit]
    if missing:
        found.append(f"no limit of {' and '.join(missing)}")
    return found

def unusual_mounts(mounts, shared):
    """What of the host's files a container should not have."""
    found = [f"{os.path.basename(path)} of the host: who speaks to it is root there"
             for path, _, _ in shared if os.path.basename(path) in SOCKETS]
    found += [f"the host's {path} is at {place}, {'writable' if writable else 'read-only'}"
              for path, place, writable in shared
              if path in ("/", "/etc", "/proc", "/dev", "/root", "/var", "/run", "/usr", "/boot",
                          "/home", "/var/run", "/var/lib")]
    kernel = mounts.get("/proc/sys") or mounts.get("/proc")
    if kernel and kernel[2] == "proc" and "ro" not in kernel[3]:
        found.append("/proc/sys is writable")
    sysfs = mounts.get("/sys")
    if sysfs and sysfs[2] == "sysfs" and "ro" not in sysfs[3]:
        found.append("/sys is writable")
    return found

def block_devices(pid):
    """The block devices in a process's /dev."""
    with tolerate(), Descriptor(os.open(f"/proc/{pid}/root", os.O_PATH | os.O_CLOEXEC)) as root:
        with Descriptor(open_in_root(root, "/dev", OPEN_DIR)) as fd:
            return [name for name in sorted(os.listdir(fd))
                    if stat.S_ISBLK(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode)]
    return []

# ── 59. Templates ────────────────────────────────────────────────────────────
# --format takes what docker's users know: a small part of Go's text/template.  A template is text
# with actions in {{ }}: a pipeline, whose value is printed, or `if`, `range` and `with` up to their
# `end`.  An action becomes a tuple whose first word names it, and is carried out in a scope, which
# has what "." is, "$", where it all began, and the variables.  What isn't known is an error that
# names it.  A new function is a row in FUNCTIONS.

# What may be known by a name that isn't there: docker's maps, other than its structures.
TEMPLATE_MAPS = "Labels Ports Networks Containers Options annotations sysctl unified".split()
TOKENS = (r'"(?:\\.|[^"\\])*"|`[^`]*`|\$\w*(?:\.\w+)*|\.[\w.]*|\)(?:\.\w+)*|-?\d+(?:\.\d+)?|'
          r"\w+|:=|[(|,]|\S")
TEXT_END = 1 << 12  # no template makes fields wider than this

def render(template, value):
    """A template filled in.  Without braces it is one name, whose value is text, or as JSON."""
    if template.startswith(".") and "{{" not in template:
        found = fields_of(value, [name for name in template.split(".") if name], template)
        return found if isinstance(found, str) else to_json(found)
    return of_template(template, lambda nodes: fill_in(nodes, {".": value, "$": value}))

def of_template(template, use):
    """What USE makes of a template's nodes; what is wrong is named, where nothing is shown, too."""
    try:
        return use(parse_template(template))
    except RecursionError:
        raise Failure(f"--format, on {template}: nested too deeply") from None
    except Failure as failure:
        raise Failure(f"--format, on {template}: {failure.message}", 125, failure.hint) from None

# Parsing

def parse_template(text):
    """A template as a list of nodes."""
    import re
    parts, at = [], 0
    inside = r'((?:"(?:\\.|[^"\\])*"|`[^`]*`|/\*.*?\*/|[^"`])*?)'
    for match in re.finditer(r"\{\{(-\s)?" + inside + r"(\s-)?\}\}", text, re.DOTALL):
        before = text[at:match.start()]
        parts += [plain_text(before.rstrip() if match[1] else before), match[2].strip()]
        at = match.end()
        if match[3]:
            at += len(text[at:]) - len(text[at:].lstrip())
    if "{{" in text[at:]:
        raise Failure("{{ without }}")
    actions = [*parts, plain_text(text[at:])]
    return parse_block(actions)[0]

def plain_text(text):
    return text.replace("\\t", "\t").replace("\\n", "\n")

def parse_block(parts, opened=""):
    """The nodes up to the action that ends what OPENED began, and the words of that.  PARTS, text
    and actions in turn, are used up."""
    import re
    nodes = []
    while parts:
        nodes.append(("text", parts.pop(0)))
        words = re.findall(TOKENS, parts.pop(0)) if parts else []
        if not words or words[:2] == ["/", "*"]:  # a comment
            continue
        if words[0] in ("end", "else"):
            if not opened:
                raise Failure(f"{words[0]} without if, range or with")
            return nodes, words
        if words[0] in ("if", "range", "with"):
            nodes.append(parse_branch(words, parts))
        else:
            nodes.append(("print", *parse_pipeline(words)))
    if opened:
        raise Failure(f"{opened} without end")
    return nodes, []

def parse_branch(words, parts):
    """An if, range or with: (which, variables, commands, the nodes of it, of its else)."""
    names, commands = parse_pipeline(words[1:])
    then, end = parse_block(parts, words[0])
    otherwise = []
    if end[:2] in (["else", "if"], ["else", "with"]):
        otherwise = [parse_branch(end[1:], parts)]
    elif end == ["else"]:
        otherwise, end = parse_block(parts, words[0])
    if end[1:] and not otherwise or len(names) > (2 if words[0] == "range" else 1):
        raise Failure(f"{' '.join([words[0], *names, *end])} isn't known")
    return words[0], names, commands, then, otherwise

def parse_pipeline(words):
    """A pipeline as (the variables that it is for, its commands)."""
    names = []
    if ":=" in words:
        at = words.index(":=")
        names, words = [word for word in words[:at] if word != ","], words[at + 1:]
        if not names or not all(name[0] == "$" and name[1:].isidentifier() for name in names):
            raise Failure(f"{' '.join(names)} :=: a variable is $NAME")
    return names, parse_commands([*words])[0]

def parse_commands(words, inside=False):
    """Commands up to the end of WORDS, which are used up, or INSIDE to the closing parenthesis:
    ([[operand...]...], the names of what is wanted of the last one's value)."""
    commands, names, closed = [[]], [], not inside
    while words:
        word = words.pop(0)
        if word.startswith(")"):
            if not inside:
                raise Failure(") without (")
            closed, names = True, word.split(".")[1:]
            break
        if word == "|":
            commands.append([])
        elif word == "(":
            commands[-1].append(("pipe", *parse_commands(words, True)))
        else:
            commands[-1].append(parse_operand(word))
    if not closed:
        raise Failure("( without )")
    if not all(commands):
        raise Failure("an action without a value")
    return commands, names

def parse_operand(word):
    """A word of a command as (its kind, what it is, the names of what is wanted of it)."""
    if word[0] == '"':
        import re
        ends = {"n": "\n", "t": "\t"}
        return "value", re.sub(r"\\(.)", lambda found: ends.get(found[1], found[1]), word[1:-1]), []
    if word[0] == "`":
        return "value", word[1:-1], []
    if word[0] in ".$":
        first, *names = word.split(".")
        return "name", first or ".", [name for name in names if name]
    if word in ("true", "false", "nil"):
        return "value", {"true": True, "false": False}.get(word), []
    number = word[1:] if word[0] == "-" else word
    if to_number(number.replace(".", "", 1)) is not None:
        return "value", float(word) if "." in word else int(word), []
    if word not in FUNCTIONS and word not in ("and", "or"):
        raise Failure(f"{word} isn't known", hint=f"known are {' '.join(FUNCTIONS)}")
    return "call", word, []

# Filling in

def fill_in(nodes, scope):
    """The text of nodes; what they set is SCOPE's."""
    text = ""
    for kind, *node in nodes:
        if kind == "text":
            text += node[0]
        elif kind == "print":
            names, commands = node
            value = pipe_value(commands, scope)
            if names:
                scope.update(dict.fromkeys(names, value))
            else:
                text += go_text(value)
        else:
            text += fill_branch(kind, node, scope)
    return text

def fill_branch(kind, node, scope):
    """The text of an if, range or with."""
    names, commands, then, otherwise = node
    value = pipe_value(commands, scope)
    if not value:
        return fill_in(otherwise, dict(scope))
    if kind != "range":
        dot = value if kind == "with" else scope["."]
        return fill_in(then, {**scope, **dict.fromkeys(names, value), ".": dot})
    if not isinstance(value, (list, dict)):
        raise Failure(f"range: {go_text(value)} is no list")
    rows = sorted(value.items()) if isinstance(value, dict) else enumerate(value)
    return "".join(fill_in(then, {**scope, **dict(zip(names[::-1], (inner, key))), ".": inner})
                   for key, inner in rows)

def pipe_value(commands, scope):
    """The value of a pipeline: each command's is the next one's last operand."""
    piped = []
    for command in commands:
        piped = [command_value(command, piped, scope)]
    return piped[0]

def command_value(command, piped, scope):
    """The value of one command."""
    (kind, name, names), *operands = command
    rest = [*operands, *(("value", value, []) for value in piped)]
    if kind == "call" and name in ("and", "or"):
        value = None
        for operand in rest:  # no further than it takes
            value = operand_value(operand, scope)
            if bool(value) == (name == "or"):
                break
        return value
    values = [operand_value(operand, scope) for operand in rest]
    if kind == "call":
        return call_function(name, values)
    if kind == "name" and names[-1:] == ["Label"] and len(values) == 1:  # docker ps' own
        pairs = [text.partition("=") for text in scope["."].get("Labels", "").split(",")]
        return {key: label for key, _, label in pairs}.get(values[0], "")
    if values:
        raise Failure(f"{go_text(operand_value(command[0], scope))} is no function")
    return operand_value(command[0], scope)

def operand_value(operand, scope):
    """The value of one operand."""
    kind, what, names = operand
    if kind == "value":
        return what
    if kind == "call":
        return call_function(what, [])
    if kind == "pipe":
        return fields_of(pipe_value(what, scope), names)
    if what not in scope:
        raise Failure(f"there is no variable {what}")
    return fields_of(scope[what], names)

def fields_of(value, names, template=None):
    """What is found in VALUE by these names, one after the other."""
    above = ""
    for name in names:
        if isinstance(value, dict) and name not in value and above in TEMPLATE_MAPS:
            return None
        try:
            value = value[int(name) if isinstance(value, list) else name]
        except (KeyError, IndexError, ValueError, TypeError):
            where = f"--format, on {template}: " if template else ""
            raise Failure(f"{where}there is no .{'.'.join(names)}") from None
        above = name
    return value

def go_text(value):
    """A value as Go prints it."""
    if isinstance(value, str):
        return value
    if value is None:
        return "<no value>"
    if isinstance(value, dict):
        return f"map[{' '.join(f'{key}:{go_text(value[key])}' for key in sorted(value))}]"
    if isinstance(value, list):
        return f"[{' '.join(map(go_text, value))}]"
    return to_json(value)

# Functions

def call_function(name, values):
    """What a function makes of its operands."""
    least, function = FUNCTIONS[name]
    most = function.__code__.co_argcount or len(values)
    if not least <= len(values) <= most:
        raise Failure(f"{name}: not with {len(values)} operand{'s' * (len(values) != 1)}")
    try:
        return function(*values)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise Failure(f"{name}: not with {' '.join(map(go_text, values))}") from None

def go_index(*values):
    """index: what is in a list or a map by these keys; nothing if a map doesn't have one."""
    value, *keys = values
    for key in keys:
        if isinstance(value, dict):
            value = value.get(key, "")
        elif isinstance(key, int) and 0 <= key < len(value):
            value = value[key]
        else:
            raise Failure(f"index: there is no {go_text(key)} in {go_text(value)}")
    return value

def go_slice(text, first=0, last=None):
    """slice: a part of a text or list."""
    end = len(text) if last is None else last
    if not 0 <= first <= end <= len(text):
        raise Failure(f"slice: {first} to {end} of {len(text)}")
    return text[first:end]

def kind_of(value):
    """A value's type, where all numbers are of one."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float
    return type(value)

def same_kind(one, other):
    """True if two values can be compared as Go does it: text with text, a number with a number."""
    if kind_of(one) != kind_of(other) and None not in (one, other):
        raise Failure(f"{go_text(one)} can't be compared with {go_text(other)}")
    return True

def go_equal(*values):
    """eq: the first is one of the others."""
    return any(same_kind(values[0], value) and values[0] == value for value in values[1:])

def go_words(*values):
    """print: a space between two of which none is text."""
    text = ""
    for at, value in enumerate(values):
        if at and not isinstance(value, str) and not isinstance(values[at - 1], str):
            text += " "
        text += go_text(value)
    return text

def go_printf(*values):
    """printf: %s %v %q %d %x %f %t, with a width, a precision, - and 0."""
    import re
    form, *rest = values

    def fill(match):
        flags, width, precision, verb = match.groups()
        if verb == "%":
            return "%"
        if verb not in "svqdxft" or not rest:
            raise Failure(f"printf: {match[0]} " + ("isn't known" if rest else "has no operand"))
        if max(to_number(width or "0") or 0, to_number(precision or "0") or 0) > TEXT_END:
            raise Failure(f"printf: {match[0]} is too wide")
        text = formatted(verb, rest.pop(0), precision)
        if "-" in flags:
            return text.ljust(int(width or 0))
        return text.zfill(int(width or 0)) if "0" in flags else text.rjust(int(width or 0))

    text = re.sub(r"%([-0]*)(\d*)(?:\.(\d+))?(.)", fill, form, flags=re.DOTALL | re.ASCII)
    if rest:
        raise Failure(f"printf: {form} has nothing for {go_text(rest[0])}")
    return text

def formatted(verb, value, precision):
    """One value as printf's VERB has it."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if verb == "f" and number:
        return f"{value:.{precision or 6}f}"
    if verb in "dx" and isinstance(value, int) and number:
        return format(value, verb)
    if verb == "x" and isinstance(value, str):
        return encode(value).hex()
    if verb in "fdx" or verb == "t" and not isinstance(value, bool):
        raise Failure(f"printf: %{verb} isn't for {go_text(value)}")
    text = go_text(value)
    if precision:
        text = text[:int(precision)]
    return to_json(text) if verb == "q" else text

def go_title(text):
    """title: each word with a capital."""
    return "".join(letter.upper() if at == 0 or text[at - 1].isspace() else letter
                   for at, letter in enumerate(text))

FUNCTIONS = {  # name: (how many operands it takes at least, what it does)
    "json": (1, lambda value: to_json(value)),
    "join": (2, lambda texts, between: between.join(texts)),
    "split": (2, lambda text, between: text.split(between)),
    "index": (1, go_index), "slice": (1, go_slice), "len": (1, lambda value: len(value)),
    "upper": (1, lambda text: text.upper()), "lower": (1, lambda text: text.lower()),
    "title": (1, go_title), "truncate": (2, lambda text, size: text[:max(0, size)]),
    "pad": (3, lambda text, before, after: " " * min(before, TEXT_END) + text
            + " " * min(after, TEXT_END) if text else text),
    "print": (0, go_words), "printf": (1, go_printf),
    "println": (0, lambda *values: " ".join(map(go_text, values)) + "\n"),
    "eq": (2, go_equal), "ne": (2, lambda one, other: same_kind(one, other) and one != other),
    "lt": (2, lambda one, other: same_kind(one, other) and one < other),
    "le": (2, lambda one, other: same_kind(one, other) and one <= other),
    "gt": (2, lambda one, other: same_kind(one, other) and one > other),
    "ge": (2, lambda one, other: same_kind(one, other) and one >= other),
    "not": (1, lambda value: not value), "and": (1, None), "or": (1, None)}

# ── 60. Docker's words ───────────────────────────────────────────────────────
# What a docker user types without thinking and what is no command of ours by that name: groups of
# commands, near misses, and what stays out, which answers with what to use instead.

GROUPS = {  # group: {word: command}; "" is the group alone
    "container": {"ls": "ps", "list": "ps", "ps": "ps", "prune": "prune", "": "ps", **{
        name: name for name in "attach commit cp create diff exec export inspect kill logs pause "
        "port rename restart rm run start stats stop top unpause update wait".split()}},
    "image": {"": "images", "ls": "images", "list": "images", "rm": "rmi", "remove": "rmi",
              "inspect": "inspect", **{name: name for name in
                                       "build history import load pull push save tag".split()}},
    "network": {"": "network list"}, "system": {"info": "info", "events": "events"},
    "volume": {"": "volume ls", "list": "volume ls", "remove": "volume rm"},
    "builder": {"build": "build", "prune": "image prune"}}
ELSEWHERE = {  # what isn't here: what to use instead
    "compose": "a shell script of `mydocker run --network ...` lines",
    "swarm": "one host is all it knows: Kubernetes, with mydocker as its runtime",
    "service": "systemd units that start `mydocker run`", "stack": "systemd units",
    "node": "Kubernetes, with mydocker as its runtime",
    "secret": "a file, mounted by `run -v FILE:PLACE:ro`",
    "config": "a file, mounted by `run -v FILE:PLACE:ro`",
    "plugin": "nothing is loaded from outside", "buildx": "`mydocker build`, or buildah",
    "bake": "`mydocker build`, or buildah", "scout": "a scanner of what `save` writes, as trivy",
    "trust": "a digest in the name, NAME@sha256:...", "context": "ssh HOST mydocker ...",
    "manifest": "skopeo, or buildah", "checkpoint": "criu", "restore": "criu",
    "search": "the registry's web page",
    "debug": "mydocker explain CONTAINER, or run --step", "model": "an image that has one"}

NO_OPTIONS = {  # docker's options that there aren't: what to use instead
    "gpus": "--device for each of the card's devices, and -v for its driver's files",
    "runtime": "mydocker runs containers itself",
    "isolation": "namespaces, as always",
    "storage-opt": "a quota of the file system that the state is on",
    "volume-driver": "-v with what is mounted on the host",
    "device-cgroup-rule": "--device for each device",
    "disable-content-trust": "a digest in the name, NAME@sha256:...",
    "kernel-memory": "--memory, which counts what the kernel needs, too",
    "ip6": "networks here have IPv4 alone", "link-local-ip": "networks here have IPv4 alone",
    "ipv6": "networks here have IPv4 alone",
    "attachable": "networks of one host are", "ip-range": "--subnet, or run --ip",
    "H": "ssh HOST mydocker ...", "host": "ssh HOST mydocker ...",
    "context": "ssh HOST mydocker ...", "config": "the variable DOCKER_CONFIG",
    "D": "--debug", "l": "MYDOCKER_LOG, or run --log-level",
}

def docker_word(words):
    """What docker's words mean here that are no command of ours: (command, the words after it)."""
    group = GROUPS.get(words[0], {})
    after = [word for word in words[1:2] if not word.startswith("-")]
    name = group.get(after[0] if after else "", "")
    if name in COMMANDS:
        kind = ["--type", words[0]] if name == "inspect" else []
        return name, kind + words[1 + len(after):]
    if words[0] in ELSEWHERE:
        raise Failure(f"mydocker, on {words[0]}: mydocker doesn't have that",
                      hint=f"instead: {ELSEWHERE[words[0]]}")
    if not group:
        near = near_miss(words[0], [*COMMANDS, *GROUPS])
        raise Failure(f"mydocker, on {words[0]}: no such command", hint=near or "mydocker --help")
    known = {word for word, name in group.items() if word and name in COMMANDS}
    known.update(name.partition(" ")[2] for name in COMMANDS if name.startswith(words[0] + " "))
    why = "no such command" if after else "it takes one more word"
    raise Failure(f"mydocker, on {' '.join(words[:1] + after)}: {why}",
                  hint=f"{words[0]} {', '.join(sorted(known))}")

def missing_option(name, known):
    """A hint for who has typed an option that there isn't: docker's that stays out, or a slip."""
    if name in NO_OPTIONS:
        return f"instead: {NO_OPTIONS[name]}"
    return near_miss(name, known, "--") if len(name) > 1 else ""

def near_miss(word, known, before=""):
    """A hint with what was probably meant by WORD, or ""; BEFORE it stands what all begin with."""
    import difflib
    found = difflib.get_close_matches(word, [name for name in known if len(name) > 1], 1, 0.6)
    return f"did you mean {before}{found[0]}?" if found else ""

def group_help(group):
    """What the words of a group mean."""
    words = {word: name for word, name in GROUPS[group].items() if word and name in COMMANDS}
    words.update((name.partition(" ")[2], name) for name in COMMANDS
                 if name.startswith(group + " "))
    rows = [(f"  {word}", row_of(words[word])[0]["summary"]) for word in sorted(words)]
    return "\n".join([f"Usage: mydocker {group} COMMAND ...", "", "Commands:", *columns(rows), "",
                      f"mydocker {group} COMMAND --help shows a command's own options."])

def help_about(words):
    """What `help` says, of everything or of one command."""
    if not words:
        return overview()
    if words[0] in GROUPS and not words[1:]:
        return group_help(words[0])
    for name in (" ".join(words[:2]), words[0]):
        if name in COMMANDS:
            return help_text(name)
    return help_text(docker_word(words)[0])

@command("[OPTIONS]", "show the version of this program and of what it runs on",
         ("-f --format", "FORMAT", "json or a template, such as '{{.Version}}'"))
def cmd_version(options, _):
    host = os.uname()
    row = {"Version": VERSION, "OCI": OCI_VERSION, "Python": sys.version.split()[0],
           "Os": host.sysname.lower(), "Arch": host.machine, "KernelVersion": host.release}
    if options["format"] is not None:
        return show_rows([{**row, "Client": row, "Server": row}], {}, options["format"])
    show("\n".join(columns([(f"{key}:", value) for key, value in row.items()])))

@command("[OPTIONS]", "show what images, containers and volumes take on the disk",
         ("--format", "FORMAT", "table, json or a template"))
def cmd_system_df(options, _):
    """A row for each kind of thing: how many, how many in use, their size, what could go."""
    records, images = container_records(), [*stored_images()]
    running = [record for record in records if record["running"]]
    used = {record["image"] for record in records}
    volumes = listing(state_path("volumes"))
    mounted = {name for record in records for name in record["volumes"]}
    sizes = {record["id"]: tree_size(container_path(record)) for record in records}
    idle = sum(size for each_id, size in sizes.items()
               if each_id not in [record["id"] for record in running])
    whole = tree_size(state_path("images")) + tree_size(state_path("layers"))
    unused = sum(layer["size"] for image in images if image["digest"] not in used
                 for layer in image["layers"])
    rows = [("Images", len(images), len([1 for image in images if image["digest"] in used]), whole,
             min(unused, whole)),
            ("Containers", len(records), len(running), sum(sizes.values()), idle),
            ("Local Volumes", len(volumes), len(mounted & {*volumes}),
             tree_size(state_path("volumes")),
             sum(tree_size(state_path("volumes", name)) for name in {*volumes} - mounted))]
    names = {"Type": "TYPE", "TotalCount": "TOTAL", "Active": "ACTIVE", "Size": "SIZE",
             "Reclaimable": "RECLAIMABLE"}
    show_rows([dict(zip(names, (kind, str(total), str(active), humane_size(size),
                                humane_size(free)))) for kind, total, active, size, free in rows],
              names, options["format"])

@command("[OPTIONS]", "remove containers that don't run, networks and images that nobody uses",
         ("-a --all", "", "also images with a name"), ("--volumes", "", "also volumes"),
         PRUNE_FILTER, ("-f --force", "", "without asking, as always"))
def cmd_system_prune(options, _):
    if options["volumes"] and any(text.startswith("until=") for text in options["filter"]):
        raise Failure("--filter, on until: it can't go with --volumes, whose age isn't known")
    cmd_network_prune(options, [])
    cmd_prune(options, [])
    if options["volumes"]:
        cmd_volume_prune({**options, "all": False}, [])
    cmd_image_prune(options, [])

offer("create", *(row for row in OPTIONS["run"].values() if row[0] not in OPTIONS["create"]
                  and row[0] not in ("-d --detach", "--keep", "--no-subreaper")))

# ── 61. Main ─────────────────────────────────────────────────────────────────
# Dispatch on argv[1], as the Go version does; and the one place that prints errors.

GLOBAL_OPTIONS = (
    ("--root", "DIR", f"where the state is kept (default: MYDOCKER_ROOT, or {STATE_ROOT}; without "
                      "root: ~/.local/share/mydocker)"),
    ("-h --help", "", "show this help"),
    ("-v --version", "", "show the version"),
    ("--log", "FILE", "write errors there, too, for engines"),
    ("--log-format", "FORMAT", "text or json (default: text)"),
    ("--debug", "", "write the steps of an engine's commands to the log, else to stderr, too"),
    ("--systemd-cgroup", "", "accepted: a cgroupsPath says whether systemd is asked"),
    ("--rootless", "true|false|auto", "accepted: it is found out"),
)

# Commands that need no power over anything: no user namespace is made for them.
POWERLESS = "version info install uninstall renew login logout spec features".split()

def overview():
    return "\n".join(
        ["Usage: mydocker [OPTIONS] COMMAND ...", "", "Containers in one file.  Commands:",
         *columns([(f"  {name}", row["summary"]) for name, (row, _) in
                   zip(COMMANDS, map(row_of, COMMANDS)) if row["summary"] != HIDDEN]),
         "", "Options:", *option_lines(GLOBAL_OPTIONS),
         "", "mydocker COMMAND --help shows a command's own options."])

def usual_root():
    """Where the state is kept if nothing else is said: a user has his own."""
    if os.geteuid() == 0 and (not os.path.exists("/proc/self/ns/user")  # see check_proc
                              or not in_user_namespace()
                              or os.access(os.path.dirname(STATE_ROOT), os.W_OK)):
        return STATE_ROOT
    own = "~/.local/share"
    if os.geteuid() == 0:
        own = home_outside() + "/.local/share"
    elif os.environ.get("XDG_DATA_HOME"):
        own = os.environ["XDG_DATA_HOME"]
    return os.path.join(os.path.expanduser(own), "mydocker")

def dispatch(words):
    """Carry out one command line; returns the exit status."""
    options, words = parse_options(GLOBAL_OPTIONS, words, "mydocker")
    root = options["root"] or os.environ.get("MYDOCKER_ROOT") or usual_root()
    os.environ["MYDOCKER_ROOT"] = os.path.abspath(root)  # a monitor changes its directory
    if options["rootless"] not in (None, "true", "false", "auto"):
        raise Failure(f"--rootless, on {as_typed(options['rootless'])}: not true, false or auto")
    open_log(options)
    if options["version"]:  # in the form by which engines know runc and crun, as `docker` has it
        return show(f"mydocker version {VERSION}\nspec: {OCI_VERSION}") or 0
    if options["help"] or words[:1] in ([], ["help"]):
        return show(help_about(words[1:])) or 0
    if words[0] in GROUPS and words[1:2] in (["--help"], ["-h"]):
        return show(group_help(words[0])) or 0
    name = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]
    if name in COMMANDS:
        words = words[len(name.split()):]
    else:
        name, words = docker_word(words)
    row, rows = row_of(name)
    rows = (GLOBAL_OPTIONS[1], *rows.values())  # `run -h NAME` is its own
    options, words = parse_options(rows, words, name, row["mixed"])
    if options["help"]:
        return show(help_text(name)) or 0
    least, most = row["takes"]
    if not least <= len(words) <= most:
        raise Failure(f"{name}: it takes {row['usage']}", hint=f"mydocker {name} --help")
    if name not in POWERLESS or name == "info":
        check_proc()
    if name not in POWERLESS and not has_power():
        enter_own_user_namespace()
    return run_command(name, options, words)

def check_proc():
    """In a chroot(2) it may be missing, or be that of other processes: nothing goes without it."""
    if not os.path.exists("/proc/self/fd"):
        why = "it must be mounted"
        if os.path.exists("/proc/mounts") or os.path.exists("/proc/uptime"):
            why = "it is another PID namespace's, and must be mounted anew"
        raise Failure(f"start, on /proc: {why}", hint="mount -t proc proc /proc")

def fill_descriptors():
    """Make closed standard descriptors /dev/null, for us and for the command: the next file that is
    opened would get the number of one."""
    try:
        while (fd := os.open(os.devnull, os.O_RDWR)) < 3:
            os.set_inheritable(fd, True)
        why = "" if stat.S_ISCHR(os.fstat(fd).st_mode) else "it is no device"
        os.close(fd)
    except OSError as error:
        why = reason(error)
    if why:
        raise Failure(f"start, on {os.devnull}: {why}", hint="mount -t devtmpfs dev /dev")
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # it was closed when Python started
            setattr(sys, name, open(fd, "w" if fd else "r", closefd=False))

def main():
    """Run the program and exit; the status is Docker's: 125 if the trouble is mydocker's own."""
    os.umask(0o022)  # at every start: with a caller's 077 no user inside would find a thing
    if sys.getfilesystemencoding() != "utf-8":  # such as GBK: bytes must come and go unchanged
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.argv])
    try:
        fill_descriptors()
        status = dispatch(sys.argv[1:])
    except KeyboardInterrupt:
        status = 128 + _signal.SIGINT
    except Exception as error:
        message, status, hint = describe(error, "mydocker")
        if message:  # else see Unread
            print_line(f"mydocker: {message}")
            log_for_engine("error", message)
        if hint:
            print_line(f"hint: {hint}")
    os._exit(status)  # at once: nothing is left to tidy up, and the interpreter's own takes 2 ms

if __name__ == "__main__":
    main()
