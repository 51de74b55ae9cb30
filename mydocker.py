#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""mydocker: a container engine in one file, for Linux, in nothing but Python.

    sudo python3 mydocker.py run -it /bin/sh

A container is no thing of the kernel's.  It is a process that has been put on its own side of a
few walls, one kernel call each, and this file is those calls in their order.  The life of `run`:

    outside (run)                              inside (init)
    cmd_run: options become one dict, the
        spec, in the form of the OCI's config.json
    start_init: unshare(CLONE_NEWPID), fork ─▶ reexec_as_init: unshare the other namespaces,
                                                   execvp this file again, as `init`
    send the spec ────────── sync 1 ─────────▶ container_main: mounts, root, hostname, terminal
    keep the terminal ◀───── sync 2 ────────── the pty's master end
                                               user, limits, signals; execvp(the command)
    end of file: it runs ◀── sync 3 ────────── (closed by the exec), or (status, message, hint)
    supervise: carry bytes and signals,
        wait, pass on the exit status

Read it from top to bottom: nothing is used before it was explained.  `grep '^# ── '` lists the
chapters, and `run --explain` prints every call as it is made, with the reason from its line here.

Needs Linux 5.4, Python 3.8 and root.  Only modules that `run` needs at once are imported on top:
each costs every container milliseconds, so the others are imported where they are used.
"""

# ── 1. Imports and settings ────────────────────────────────────────────────
# _ctypes, _signal and _socket are the C halves of ctypes, signal and socket.  The Python halves add
# enums and data types that nothing here needs, for 10 ms at the two starts that each container
# takes (README, "Where the time goes").  Whatever init needs must be imported before it changes its
# root: afterwards an `import` would find the container's files, and run them.

import errno
import fcntl
import marshal
import os
import select
import stat
import struct
import sys
import time

import _ctypes
import _signal
import _socket

VERSION = "0.1.0"
STATE_ROOT = "/var/lib/mydocker"  # MYDOCKER_ROOT overrides
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LEVELS = ("debug", "info", "warning", "error")
SMALL_FILE = 1 << 20  # bytes read at most of a file that should be small and may be hostile

# ── 2. Kernel numbers ──────────────────────────────────────────────────────
# Names and values as in the kernel's headers, so that a search there finds them; only those in
# use.  System calls from 424 on have the same number on every architecture that matters here.

# linux/sched.h
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# linux/mount.h
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_SYNCHRONOUS = 16
MS_REMOUNT = 32
MS_DIRSYNC = 128
MS_NOSYMFOLLOW = 256
MS_NOATIME = 1024
MS_NODIRATIME = 2048
MS_BIND = 4096
MS_REC = 16384
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24
MNT_DETACH = 2

# linux/fcntl.h, linux/openat2.h, linux/memfd.h
AT_FDCWD = -100
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOVE_MOUNT_T_SYMLINKS = 0x10
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_IN_ROOT = 0x10
MFD_NOEXEC_SEAL = 8

# linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4

# asm-generic/ioctls.h, linux/sockios.h, linux/if.h, linux/netlink.h, linux/nf_tables.h
TIOCSCTTY = 0x540E
TIOCGWINSZ = 0x5413
TIOCSWINSZ = 0x5414
TIOCSPTLCK = 0x40045431
TIOCGPTPEER = 0x5441
SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
IFF_UP = 1
NETLINK_NETFILTER = 12
NLM_F_REQUEST = 1
NFNL_SUBSYS_NFTABLES = 10
NFT_MSG_GETGEN = 16

# linux/magic.h
PROC_SUPER_MAGIC = 0x9FA0

# ── 3. System calls ────────────────────────────────────────────────────────
# One binder makes a Python function of a libc function: text goes in as str, -1 comes out as
# OSError, and the error carries the call as C would write it.  A new call is one line below.
# An argument is TEXT, INT, LONG, BYTES or, for flags, the prefix of their names ("MS_").
#
# --explain hangs here: it puts a printing shell around these functions and around those of `os`
# in OS_CALLS.  What the call is for is the comment behind the line that makes it, so a reader of
# the file and a reader of the output are told the same.

def encode(text):
    """The bytes of a path or argument; undecodable ones travel as surrogates (PEP 383)."""
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text

class INT(_ctypes._SimpleCData):
    """C's int: ctypes.c_int."""

    _type_ = "i"

class LONG(_ctypes._SimpleCData):
    """C's unsigned long, for flags and the unused arguments of variadic calls: ctypes.c_ulong."""

    _type_ = "L"

class Kind:
    """An argument that isn't a number: convert(value) gives what C receives."""

    def __init__(self, convert):
        self.from_param = convert

class CFunction(_ctypes.CFuncPtr):
    """A function of libc that returns an int and keeps errno: what ctypes.CDLL makes."""

    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = INT

TEXT = Kind(encode)
BYTES = Kind(lambda value: value)
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
    if isinstance(value, dict):
        value = [encode(key) + b"=" + encode(text) for key, text in value.items()]
    if isinstance(value, (list, tuple)):
        return "{" + ", ".join(map(c_value, value)) + "}"
    if kind is BYTES:
        return "{...}"
    if kind is TEXT and encode(value).startswith(b"/proc/self/fd/") and os.path.islink(value):
        value = os.readlink(value)
    if isinstance(value, (str, bytes)):
        return '"' + encode(value).decode("utf-8", "backslashreplace").replace('"', '\\"') + '"'
    return str(value)

def c_flags(value, prefix):
    """The names of the bits of VALUE, from the constants that start with PREFIX."""
    known = {name: bits for name, bits in globals().items() if name.startswith(prefix)}
    exact = [name for name, bits in known.items() if bits == value]
    names = exact or [n for n, bits in known.items() if bits & value == bits]
    return "|".join(names) if value and names else hex(value) if value else "0"

mount = kernel("mount", TEXT, TEXT, TEXT, "MS_", TEXT)  # mount(2)
umount2 = kernel("umount2", TEXT, "MNT_")  # umount(2)
sethostname = kernel("sethostname", TEXT, LONG)  # sethostname(2)
pivot_root = kernel("pivot_root", TEXT, TEXT)  # pivot_root(2)
prctl = kernel("prctl", "PR_", LONG, LONG, LONG, LONG)  # prctl(2)
signalfd = kernel("signalfd", INT, BYTES, INT)  # signalfd(2)
statfs = kernel("statfs", TEXT, BYTES)  # statfs(2)
openat2 = kernel("openat2", INT, TEXT, BYTES, LONG, number=437)  # openat2(2), since 5.6
pidfd_open = kernel("pidfd_open", INT, LONG, number=434)  # pidfd_open(2), since 5.3
open_tree = kernel("open_tree", INT, TEXT, "OPEN_TREE_", number=428)  # since 5.2
move_mount = kernel("move_mount", INT, TEXT, INT, TEXT, "MOVE_MOUNT_", number=429)  # since 5.2
mount_setattr = kernel("mount_setattr", INT, TEXT, "AT_", BYTES, LONG, number=442)  # since 5.12

if not hasattr(os, "unshare"):  # before Python 3.12
    os.unshare = kernel("unshare", "CLONE_")
    os.setns = kernel("setns", INT, "CLONE_")

# What --explain shows of the os module, with the kinds of arguments where they are flags.
OS_CALLS = {
    "unshare": ("CLONE_",), "setns": (None, "CLONE_"), "fork": (), "execvp": (), "execve": (),
    "chdir": (), "fchdir": (), "setsid": (), "dup2": (), "mknod": (), "symlink": (),
    "setgroups": (), "setresgid": (), "setresuid": (), "fchown": (),
}

def explain_calls():
    """From here on print each kernel call before it is made, and what it is for, on stderr."""
    reasons, stderr = source_comments(), fcntl.fcntl(2, fcntl.F_DUPFD_CLOEXEC, 3)
    for name, kinds in OS_CALLS.items():
        setattr(os, name, explained(getattr(os, name), name, kinds, reasons, stderr))
    for name, value in list(globals().items()):
        if hasattr(value, "kinds"):
            globals()[name] = explained(value, value.__name__, value.kinds, reasons, stderr)

def explained(call, name, kinds, reasons, stderr):
    """CALL behind a line on stderr: who calls, the call in C's notation, why."""
    def shell(*args, **more):
        why = reasons.get(sys._getframe(1).f_lineno) or reasons.get(sys._getframe(2).f_lineno, "")
        who = "init" if os.getpid() == 1 else "run"
        print_line(f"{who:4}  {c_call(name, args, kinds):60}  {why}".rstrip(), stderr)
        return call(*args, **more)

    return shell

def source_comments():
    """What stands behind the lines of this file: {line number: comment}; {} without the source."""
    try:
        with open(sys._getframe().f_code.co_filename, encoding="utf-8") as source:
            lines = [line.rstrip("\n").partition("  # ") for line in source]
    except (OSError, UnicodeDecodeError):
        return {}
    return {number: why for number, (code, _, why) in enumerate(lines, 1) if why and code.strip()}


# ── 4. Failing ─────────────────────────────────────────────────────────────
# Two kinds of error and no third: Failure says that what was asked for can't be done; OSError,
# that the kernel refused.  Nothing below prints or exits: `main` turns both into one line,
# `mydocker: what, on what: why`, with a hint where the cause is known.  An OSError doesn't say
# what was being done, but the function that it came out of does, by its name.

class Failure(Exception):
    """What the user asked for can't be done: one sentence, an exit status, perhaps a hint."""

    def __init__(self, message, status=125, hint=""):
        super().__init__(message)
        self.message, self.status, self.hint = message, status, hint

def reason(error):
    """The kernel's word for an errno, as a clause: "no such file or directory"."""
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]

def describe(error):
    """An error as what Failure is made of: (message, status, hint)."""
    if isinstance(error, Failure):
        return error.message, error.status, error.hint
    step = error.__traceback__
    while step.tb_next and step.tb_next.tb_frame.f_code.co_name not in ("call", "shell", "kernel"):
        step = step.tb_next
    what = step.tb_frame.f_code.co_name.replace("_", " ")
    if not isinstance(error, OSError):
        return f"{what}, line {step.tb_lineno}: {error!r}", 125, "this is a bug in mydocker"
    on = f", on {os.fsdecode(error.filename)}" if error.filename else ""
    return f"{what}{on}: {reason(error)}", 125, hint_for(error, what)

def hint_for(error, what):
    """What to look at after an error of the kernel's, or ""."""
    call = str(error.filename).partition("(")[0]  # the os module doesn't name its calls
    unshared = call == "unshare" or what in ("start init", "reexec as init")
    if error.errno == errno.ENOSPC and unshared:
        limits = [f"user.{name}" for name in sorted(os.listdir("/proc/sys/user"))
                  if name.endswith("_namespaces") and read_all(f"/proc/sys/user/{name}") == "0\n"]
        return f"no more namespaces are allowed, see sysctl {' '.join(limits) or 'user'}"
    if error.errno == errno.EPERM and (unshared or call in ("mount", "pivot_root", "setns")):
        return "CAP_SYS_ADMIN is missing, or a seccomp filter forbids it: inside a container?"
    return ""

def show(text):
    """Print a command's answer; an output that is full or closed is a Failure."""
    try:
        print(text, flush=True)
    except OSError as error:
        raise Failure(f"write, on standard output: {reason(error)}") from None

def print_line(text, fd=2):
    """Write one line on stderr in a single write, so that two processes' lines don't mix."""
    line = encode(text.replace("\n", "\\n")).decode("utf-8", "backslashreplace")
    try:
        os.write(fd, (line + "\n").encode())
    except OSError:  # nobody can be told; the exit status still says it
        pass

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
    if loud("warning"):
        print_line(f"mydocker: warning: {message}")


# ── 5. Small tools ─────────────────────────────────────────────────────────
# Plain answers: no function here changes anything.

def read_text(path):
    """A small file's text; bytes that are not UTF-8 come as surrogates.

    Safe on what a container made: no FIFO blocks it, no device is read, 1 MiB at most.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Failure(f"read, on {path}: not a regular file")
        return file.read(SMALL_FILE).decode("utf-8", "surrogateescape")

def parse_size(text, option):
    """A size as docker reads it, 64m, 1.5g, 1024, in bytes."""
    number, unit = text.rstrip("bkmgtBKMGTiI"), text.lower().lstrip("0123456789.")
    power = {"": 0, "b": 0, "k": 1, "m": 2, "g": 3, "t": 4}.get(unit[:1] if unit in (
        "", "b", *(letter + end for letter in "kmgt" for end in ("", "b", "ib"))) else "?")
    if power is None or not number.isascii() or not number.replace(".", "", 1).isdigit():
        raise Failure(f"{option}, on {text or chr(39) * 2}: not a size, such as 64m or 1g")
    return int(float(number) * 1024 ** power)

def humane_size(size):
    """Bytes for people: 12.3MB."""
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
    """How long ago a time was, in words: 3 minutes ago."""
    seconds = int(time.time() - moment)
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} seconds ago"

def exit_status(wait_status):
    """The shell's number for how a process ended: its own status, or 128 + the signal."""
    if os.WIFSIGNALED(wait_status):
        return 128 + os.WTERMSIG(wait_status)
    return os.WEXITSTATUS(wait_status)

def columns(rows):
    """Rows of text as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["   ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip() for row in rows]


# ── 6. Files and locks ─────────────────────────────────────────────────────
# A path inside a container is attacker input: its links are the container's, and may change while
# we look.  So it is resolved by the kernel with the container's root as "/", and what comes back
# is a descriptor; all further work is on that, never on the path again.

def open_in_root(root, path, flags=os.O_PATH, resolve=0):
    """Open PATH with the directory ROOT (a descriptor) as "/": neither ".." nor a link leaves it.

    Raises OSError, ELOOP for a link under RESOLVE_NO_SYMLINKS.  See openat2(2); CVE-2021-30465.
    """
    resolve |= RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, 0, resolve)
    for attempts_left in range(99, -1, -1):
        try:
            return openat2(root, path, how, len(how))  # by descriptor: no link can lead it out
        except OSError as error:
            if error.errno == errno.EAGAIN and attempts_left:  # something was renamed on ".."'s way
                continue
            if error.errno not in (errno.ENOSYS, errno.EPERM):  # old kernel; a container's seccomp
                raise
            return walk_in_root(root, path, flags, resolve)

def walk_in_root(root, path, flags, resolve):
    """What openat2 does, for kernels before 5.6: a component at a time, links followed by hand."""
    todo, trail, links = os.fsdecode(path).split("/")[::-1], [os.dup(root)], 0
    try:
        while todo:
            name = todo.pop()
            if name == "..":
                os.close(trail.pop()) if len(trail) > 1 else None
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
    above = make_in_root(root, parent or "/", True, resolve)
    try:
        if directory:
            os.mkdir(name, 0o755, dir_fd=above)
        else:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=above))
    except FileExistsError:  # a link that leads nowhere yet, or somebody was faster
        target = link_target(above, name)
        if target:
            place = os.path.join(parent, target)
            return make_in_root(root, place, directory, resolve, links + 1)
    finally:
        os.close(above)
    return open_in_root(root, path, os.O_PATH, resolve)

def link_target(directory, name):
    """Where a symbolic link points, or None if NAME is no link."""
    try:
        return os.readlink(name, dir_fd=directory)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise
        return None

def write_file(path, data, durable=False):
    """Replace a file in one step: a reader, or a crash, finds the old bytes or the new, never both.

    See rename(2).  DURABLE: the bytes are on disk before the name is; needs milliseconds.
    """
    make_dirs(os.path.dirname(path))
    temporary = f"{path}.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(encode(data))
            file.flush()
            os.fsync(fd) if durable else None
        os.rename(temporary, path)
    except OSError:  # a full disk: nothing half written stays
        unlink_if_there(temporary)
        raise

def read_json(path):
    """The value in a JSON file of ours."""
    import json
    return json.loads(read_all(path))

def to_json(value):
    """A value as JSON; strings that are not UTF-8 survive as \\udcXX escapes.

    Importing json would cost each container 5 ms: its decoder needs re, which needs enum.
    """
    if isinstance(value, dict):
        return "{" + ", ".join(f"{to_json(str(k))}: {to_json(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(to_json, value)) + "]"
    if isinstance(value, str):
        from _json import encode_basestring_ascii
        return encode_basestring_ascii(value)
    return "null" if value is None else repr(value).lower()  # true, false, 17, 1.5

def write_json(path, value, durable=False):
    """Replace a JSON file."""
    write_file(path, to_json(value) + "\n", durable)

def unlink_if_there(path):
    """Remove a file that another process may be removing, too."""
    try:
        os.unlink(path)
    except FileNotFoundError:  # it was faster
        pass

class Descriptor(int):
    """A file descriptor that is closed after a `with`."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self)

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
    """This process's mounts in order: [(mount point, file system type, options, device)].

    See proc_pid_mountinfo(5); its octal escapes are undone.
    """
    rows = []
    for line in read_all("/proc/self/mountinfo").split("\n")[:-1]:
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
            fields[4] = fields[4].replace(code, character)
        rows.append((fields[4], after.split(" ")[0], fields[5].split(","), fields[2]))
    return rows

def read_all(path):
    """The whole text of a file of the host's, such as one in /proc that grows with the box."""
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


# ── 7. Containers on disk ──────────────────────────────────────────────────
# One directory for each container, containers/<id>/ below the state root:
#
#   config.json   the spec: all that init was told, in the OCI's form
#   state.json    the record: id, name, image, created, command; pid while it runs, status after
#   lock          held by the container's monitor for as long as that lives
#   upper, work   what the container wrote over its image's layers (overlayfs)
#   rootfs        where its root is mounted, seen from inside only
#   hosts, hostname, resolv.conf    bind-mounted over the image's
#
# Whether a container runs is never read from a file: a lock that can be had belongs to a dead one.
# No pid is guessed from.  running/<id> only marks where to look: it is there from before the
# directory is made until after the monitor has tidied up, so whatever a killed monitor left has a
# mark, and sweeping costs what runs, not what is on record.  Whoever makes or sweeps holds
# containers/ itself for that moment, shared or alone, so nobody meets a half-made directory.

def state_path(*names):
    """A path below the state root."""
    return os.path.join(os.environ.get("MYDOCKER_ROOT") or STATE_ROOT, *names)

def make_dirs(path):
    """Make a directory of the state root's, with what is above it, closed to others."""
    umask = os.umask(0o077)  # CVE-2021-41091: nobody but root walks into images' files
    os.makedirs(path, exist_ok=True)
    os.umask(umask)
    return path

def make_container_dir(record, named):
    """Make a container's directory, marked and locked; returns the descriptor of the lock.

    NAMED: the name was chosen by the user, so it must be well-formed and still free.
    """
    top, path = make_dirs(state_path("containers")), state_path("containers", record["id"])
    guard = hold(top, fcntl.LOCK_EX if named else fcntl.LOCK_SH)
    name = record["name"]
    if named and any(other["name"] == name for other in container_records()):
        raise Failure(f"--name, on {name}: a container of that name exists",
                      hint=f"mydocker rm {name}")
    os.close(os.open(make_dirs(state_path("running")) + "/" + record["id"], os.O_CREAT, 0o600))
    os.mkdir(path, 0o700)
    lock = hold(path + "/lock")
    if named:
        write_json(path + "/state.json", record)  # before anybody else looks for the name
    os.close(guard)
    return lock

def end_container(record, status=None):
    """Tidy up after a container: keep what is to be kept, with its exit status, else remove all."""
    path = state_path("containers", record["id"])
    if record["keep"] and "started" in record:
        record.update(pid=0, status=status, finished=time.time())
        write_json(path + "/state.json", record)
    else:
        remove_container_dir(path)
        for name in record.get("own_volumes", []):
            remove_tree(state_path("volumes", name))
    unlink_if_there(state_path("running", record["id"]))

def remove_container_dir(path):
    """Remove a container's directory with all that the container wrote.

    Volumes are not there: they were mounted inside, and went with the last process.
    """
    for name in sorted(os.listdir(path), key="lock".__eq__):  # the lock last
        try:
            (os.rmdir if os.path.isdir(f"{path}/{name}") else os.unlink)(f"{path}/{name}")
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            import shutil  # 10 ms, and most containers on the host's root need none of it
            shutil.rmtree(f"{path}/{name}")  # by descriptors: no link leads it out
    os.rmdir(path)

def sweep_containers():
    """Tidy up after killed monitors; every command that makes or shows containers does it."""
    guard = hold(make_dirs(state_path("containers")))  # nothing is half made now
    for container_id in os.listdir(make_dirs(state_path("running"))):
        path = state_path("containers", container_id)
        if not os.path.isdir(path):
            unlink_if_there(state_path("running", container_id))
        elif os.path.exists(path + "/lock") and not is_running(path):
            record = read_record(path) or {"id": container_id, "keep": False}
            end_container(record, 128 + _signal.SIGKILL)  # with its monitor: PR_SET_PDEATHSIG
    os.close(guard)

def is_running(path):
    """True while the monitor of the container at PATH lives: its lock can't be had."""
    try:
        lock = os.open(path + "/lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:  # its monitor is about to remove it all
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False

def read_record(path):
    """The record of the container in the directory PATH, or None while it has none."""
    try:
        return read_json(path + "/state.json")
    except FileNotFoundError:  # being made or removed
        return None

def container_records():
    """All containers' records, the newest first, with "running" as it is now."""
    top, records = state_path("containers"), []
    for container_id in os.listdir(top) if os.path.isdir(top) else []:
        record = read_record(f"{top}/{container_id}")
        if record:
            records.append(dict(record, running=is_running(f"{top}/{container_id}")))
    return sorted(records, key=lambda record: record["created"], reverse=True)

def check_new_name(name, what):
    """Refuse a name that isn't made as docker's names are; it is going to be a path."""
    plain = name.replace("_", "a").replace(".", "a").replace("-", "a")
    if not (name[:1].isalnum() and plain.isalnum() and name.isascii() and len(name) < 129):
        raise Failure(f"{what}, on {name or chr(39) * 2}: a name has letters, digits and _ . -, "
                      "and starts with one of the first two")
    return name

def find_container(text):
    """The record of the container that a name, an id or the unique beginning of one means."""
    records = container_records()
    found = [record for record in records if text in (record["name"], record["id"])] or [
        record for record in records if text and record["id"].startswith(text)]
    if len(found) != 1:
        why = "more than one container's id begins so" if found else "no such container"
        raise Failure(f"container, on {text or chr(39) * 2}: {why}")
    return found[0]

def volume_path(name):
    """Where a named volume's files are."""
    return state_path("volumes", check_new_name(name, "volume"), "_data")


# ── 8. Images ──────────────────────────────────────────────────────────────
# An image is three kinds of files, each named after its own sha256 (OCI image-spec):
#
#   index.json ──name──▶ manifest ──▶ config   what to run; its digest is the image's id
#                               └───▶ layers   tar archives, bottom first, mostly compressed
#
# images/ is an OCI image layout, which other tools read and write in place, `skopeo inspect
# oci:/var/lib/mydocker/images:docker.io/library/alpine:latest`.  A layer is also unpacked, once,
# in layers/<diff id>, the digest of the plain tar, for overlayfs to stack.  A "whiteout", which
# hides a lower file, is ".wh.NAME" in a tar and a 0/0 character device in overlayfs.
#
# All of it comes from strangers.  A digest is checked for its form before it becomes a path, and
# against the bytes before they count; JSON is small and of the right shape or refused; a layer is
# unpacked by descriptors in a directory that no name and no link leads out of, and gets its real
# name by one rename at the very end.  Nothing is counted: what index.json and the containers reach
# stays, the rest is swept.  Who adds or uses holds images.lock shared, who sweeps holds it alone.
#
# Bytes travel as iterables of chunks, and stages stack up: read, measure, save, decompress, unpack.
# A new source (a registry) is a function that yields chunks; a new compression, a row in MAGIC.

JSON_LIMIT = 4 << 20  # bytes of one manifest, config or index; registries use the same limit
CHUNK = 1 << 18
OCI_TYPE = "application/vnd.oci.image."
MANIFEST_TYPE = OCI_TYPE + "manifest.v1+json"
REF_NAME = "org.opencontainers.image.ref.name"
DOCKER_NAME = "io.containerd.image.name"  # docker's and containerd's place for the full name
MAGIC = {  # how compressed bytes begin → the module whose open() reads them
    b"\x1f\x8b": "gzip", b"\xfd7zXZ\0": "lzma", b"\x28\xb5\x2f\xfd": "compression.zstd"}
LAYER_TYPES = {"plain": OCI_TYPE + "layer.v1.tar", "gzip": OCI_TYPE + "layer.v1.tar+gzip",
               "compression.zstd": OCI_TYPE + "layer.v1.tar+zstd"}  # others are stored plain
PLATFORMS = {  # what a machine can run, best first; unlisted ones are called as by uname -m
    "x86_64": "amd64 386", "i686": "386", "aarch64": "arm64/v8 arm/v8 arm/v7 arm/v6 arm/v5",
    "armv7l": "arm/v7 arm/v6 arm/v5", "armv6l": "arm/v6 arm/v5"}
SAME_PLATFORM = {"arm64": "arm64/v8", "arm": "arm/v7", "amd64/v1": "amd64"}
OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
OPEN_ENTRY = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
OPEN_CHILD = OPEN_ENTRY | os.O_DIRECTORY
OPEN_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

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
        raise Failure(f"image name, on {text!r:.300}: not [HOST[:PORT]/]PATH[:TAG][@sha256:DIGEST]",
                      hint="a path is lower-case letters and digits, separated by / . _ __ or -")
    name, tag, digest = found.groups()
    tag = f":{tag or 'latest'}" if tag or not digest else ""
    return name + tag + (f"@{digest}" if digest else "")

def short_name(name):
    """An image name as it is typed: without docker.io/ and library/."""
    for prefix in ("docker.io/", "library/"):
        name = name[len(prefix):] if name.startswith(prefix) else name
    return name

def check_digest(digest, what):
    """Refuse what isn't exactly "sha256:" and 64 hex digits: it is going to be a path."""
    import re
    if not (isinstance(digest, str) and re.fullmatch("sha256:[0-9a-f]{64}", digest)):
        raise Failure(f"{what}: bad digest {digest!r:.100}")  # CVE-2014-9357
    return digest

def blob_member(digest):
    """Where a blob is in an OCI layout."""
    return "blobs/sha256/" + check_digest(digest, "blob")[7:]

def blob_path(digest):
    """Where a blob is in the store."""
    return state_path("images", blob_member(digest))

def layer_path(diff_id):
    """Where a layer is unpacked."""
    return state_path("layers", check_digest(diff_id, "layer")[7:])

# Documents: their shapes, as far as they matter here.  A shape is a type, [SHAPE] or {key: SHAPE}.

DIGEST = "sha256:"  # the shape of what check_digest accepts
DESCRIPTOR = {"digest": DIGEST, "size": int, "mediaType": str,
              "annotations": {REF_NAME: str, DOCKER_NAME: str},
              "platform": {"architecture": str, "variant": str}}
MANIFEST = {"manifests": [DESCRIPTOR],  # an index
            "layers": [DESCRIPTOR], "config": DESCRIPTOR, "mediaType": str}
RUN_CONFIG = {"Entrypoint": [str], "Cmd": [str], "Env": [str], "WorkingDir": str, "User": str,
              "StopSignal": str, "Volumes": dict, "Labels": dict, "ExposedPorts": dict}
CONFIG = {"config": RUN_CONFIG, "rootfs": {"diff_ids": [DIGEST]}, "history": [dict], "created": str}
DOCKER_ARCHIVE = [{"Config": str, "Layers": [str], "RepoTags": [str]}]

def parse_json(data, what, shape):
    """The value in DATA if it has that SHAPE; whoever wrote it is not trusted."""
    import json
    try:
        return check(json.loads(data), shape, what)
    except (ValueError, RecursionError) as why:
        raise Failure(f"image, on {what}: bad JSON: {why}") from None

def check(value, shape, what):
    """Return VALUE if it has that SHAPE; null is nothing, but for a digest or a size."""
    kind = shape if isinstance(shape, type) else type(shape)
    if shape == DIGEST:
        return check_digest(value, f"image, on {what}")
    if not isinstance(value, kind) or kind is int and (isinstance(value, bool) or value < 0):
        raise Failure(f"image, on {what}: {kind.__name__} wanted, found {value!r:.60}")
    if isinstance(shape, list):
        for item in value:
            check(item, shape[0], what)
    elif isinstance(shape, dict):
        for key, inner in shape.items():
            if value.get(key) is not None or inner in (int, DIGEST):
                check(value.get(key), inner, f"{what}: {key}")
    return value

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

def read_document(layout, path, digest="", size=None):
    """The bytes of a small file of a layout, checked against what is known of them."""
    data = b""
    for chunk in measure(read_member(layout, path), {}, digest, size):
        data += chunk
        if len(data) > JSON_LIMIT:
            raise Failure(f"image, on {path}: larger than {humane_size(JSON_LIMIT)}")
    return data

def read_blob(layout, descriptor):
    """The bytes of a small blob of a layout."""
    digest = descriptor["digest"]
    return read_document(layout, blob_member(digest), digest, descriptor["size"])

def read_index(layout=None):
    """The descriptors in the index.json of a layout, of the store if none is named."""
    layout, what = layout or state_path("images"), "index.json"
    if not os.path.exists(os.path.join(layout, what)):
        return []
    return parse_json(read_document(layout, what), what, MANIFEST).get("manifests") or []

def read_image(layout, descriptor):
    """The image that DESCRIPTOR leads to, through an index to the one for this machine.

    It is a dict; layers holds descriptors, bottom first, and raw the documents' own bytes.
    """
    for _ in range(3):
        data, what = read_blob(layout, descriptor), descriptor["digest"]
        manifest = parse_json(data, what, dict)
        if "manifests" in manifest and ("layers" in manifest or "config" in manifest):
            raise Failure(f"image, on {what}: manifest and index in one")  # CVE-2021-41190
        if "manifests" not in check(manifest, MANIFEST, what):
            break
        descriptor = choose_platform(manifest["manifests"] or (), what)
    else:
        raise Failure(f"image, on {what}: an index in an index in an index")
    if not manifest.get("config") or "layers" not in manifest:
        raise Failure(f"image, on {what}: not an image manifest of OCI or Docker's schema 2")
    layers, image_id = manifest["layers"] or [], manifest["config"]["digest"]
    config_data = read_blob(layout, manifest["config"])
    config, diff_ids = parse_config(config_data, image_id, len(layers))
    return {"id": image_id, "digest": what, "layers": layers, "diff_ids": diff_ids,
            "config": config, "raw": (config_data, data), "descriptor": {
                "mediaType": manifest.get("mediaType") or MANIFEST_TYPE,
                "digest": what, "size": len(data)}}

def parse_config(data, what, count):
    """An image's config and the digests of its COUNT unpacked layers, bottom first."""
    config = parse_json(data, what, CONFIG)
    diff_ids = (config.get("rootfs") or {}).get("diff_ids") or []
    if len(diff_ids) != count:
        raise Failure(f"image, on {what}: {count} layers, but {len(diff_ids)} diff ids")
    return config, diff_ids

def platforms():
    """What this machine can run, best first."""
    machine = os.uname().machine
    return PLATFORMS.get(machine, machine).split()

def choose_platform(manifests, what):
    """The descriptor, of those in an index, that suits this machine best."""
    found = {}
    for entry in manifests:
        platform = entry.get("platform") or {}
        name = "/".join(filter(None, map(platform.get, ("architecture", "variant"))))
        if platform.get("os", "linux") == "linux":
            found.setdefault(SAME_PLATFORM.get(name, name), entry)
    for name in (*platforms(), ""):
        if name in found:
            return found[name]
    there = ", ".join(found) or "nothing for linux"
    raise Failure(f"image, on {what}: not for this machine ({platforms()[0]}): {there}")

def image_config(image):
    """What the image wants run: Entrypoint, Cmd, Env, ...; what isn't there is empty."""
    config = image["config"].get("config") or {}
    return {key: config.get(key) or (shape if isinstance(shape, type) else list)()
            for key, shape in RUN_CONFIG.items()}

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

def read_path(path):
    """The bytes of a file (or a descriptor) in chunks; FileNotFoundError comes at once."""
    return read_chunks(open(path, "rb", buffering=0, closefd=path != 0))

def read_chunks(file):
    """Yield a file's bytes; a terminal shows how many so far, if it takes long."""
    passed, drawn = 0, time.monotonic() if sys.stderr.isatty() else 1e99
    size, clear = os.fstat(file.fileno()).st_size, ""
    while chunk := file.read(CHUNK):
        passed += len(chunk)
        if time.monotonic() > drawn + 0.1:
            drawn, clear = time.monotonic(), "\r\033[K"
            bar = f"[{'=' * (20 * passed // size):20.20}] " if size else ""
            print(f"{clear}{bar}{humane_size(passed)}", end="", file=sys.stderr, flush=True)
        yield chunk
    print(clear, end="", file=sys.stderr, flush=True)

def save_chunks(chunks, path):
    """Write what passes to a file."""
    with open(path, "wb") as file:
        for chunk in chunks:
            file.write(chunk)
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

def decompress(kind, chunks):
    """Yield CHUNKS decompressed, a piece at a time, so that a bomb needs no memory."""
    from importlib import import_module
    if kind == "plain":
        yield from chunks
        return
    source = Stream(chunks)
    try:
        with import_module(kind).open(source) as file:
            yield from iter(lambda: file.read(CHUNK), b"")
    except Failure:
        raise
    except ImportError:
        raise Failure(f"layer, on its {kind} data: a compression that this Python can't read",
                      hint="zstd needs Python 3.14, or: skopeo copy --dest-compress-format gzip")
    except Exception as why:  # each module has its own
        raise Failure(f"layer, on its {kind} data: damaged: {why}") from None
    for _ in source.chunks:  # the digest covers what is behind, too
        pass

# Reading tar.  POSIX.1-2017 pax, "ustar Interchange Format"; GNU: tar manual, "Basic Tar Format".
# The library takes a header block apart.  From block to block we go ourselves: what Ubuntu 20.04's
# library does with extended headers that lie takes all memory, or for ever (CVE-2019-20907,
# CVE-2024-6232, CVE-2025-8194), and a damaged header is the end to it.

class Stream:
    """A file to read from, made of chunks."""

    def __init__(self, chunks):
        self.chunks, self.rest, self.offset = iter(chunks), memoryview(b""), 0

    def read(self, size):
        """1 to SIZE bytes; none at the end only."""
        while not self.rest and (chunk := next(self.chunks, None)) is not None:
            self.rest = memoryview(chunk)
        piece, self.rest = bytes(self.rest[:size]), self.rest[size:]
        self.offset += len(piece)
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
        """Exactly SIZE bytes; it had better be few."""
        return b"".join(self.pieces(size))

def read_tar(stream, strict=False):
    """Yield a TarInfo per member; who wants its data reads it from STREAM before the next one.

    Names are bytes; mtime is in nanoseconds; sparse says where the data belongs, and how much.
    strict: the end mark (two blocks of zeros) must be there; a layer needs none, it has a digest.
    """
    import tarfile
    common, once = {}, {}
    while True:
        block = stream.read(512)
        if not block and not strict:
            return
        block += stream.take(512 - len(block))
        if block == bytes(512):
            return
        try:
            entry = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            if entry.type in (b"x", b"X", b"g", b"L", b"K"):
                read_extension(stream, entry, common, once)
                continue
            extend(entry, {**common, **once})
            if entry.type == b"S" or b"GNU.sparse.major" in once or b"GNU.sparse.map" in once:
                read_sparse_map(stream, block, entry)
        except (tarfile.HeaderError, ValueError, OverflowError, KeyError) as why:
            raise Failure(f"archive: bad header before byte {stream.offset}: {why}") from None
        end = stream.offset + (stored(entry) + 511) // 512 * 512
        yield entry
        for _ in stream.pieces(end - stream.offset):
            pass
        once = {}

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
    """Put what extra headers say into an entry, all in the form that read_tar promises."""
    entry.name = pax.get(b"GNU.sparse.name") or pax.get(b"path") or encode(entry.name)
    entry.linkname = pax.get(b"linkpath") or encode(entry.linkname)
    entry.size, entry.uid, entry.gid = (int(pax.get(key) or number) for key, number in (
        (b"size", entry.size), (b"uid", entry.uid), (b"gid", entry.gid)))
    whole, _, fraction = (pax.get(b"mtime") or b"%d" % entry.mtime).partition(b".")
    entry.mtime = int(whole + fraction[:9].ljust(9, b"0"))  # a float would lose some
    entry.mode, entry.pax_headers = entry.mode & 0o7777, pax
    if entry.type in b"\0" b"07":
        entry.type = b"5" if entry.name.endswith(b"/") else b"0"
    # No data follows some kinds, whatever the size says: as every reader but one has it.
    entry.sparse = [] if entry.type in b"123456" else [(0, entry.size)]
    if min(entry.size, entry.uid, entry.gid) < 0:
        raise ValueError(f"{shown(entry.name)}: negative size or owner")

def read_sparse_map(stream, block, entry):
    """Find where the data of a sparse file belongs: GNU's old form and PAX 0.0, 0.1, 1.0."""
    from tarfile import nti  # a number of a header, octal or binary
    start, pax, words, rest = stream.offset, entry.pax_headers, [], b""
    if entry.type == b"S":
        fields, more, start = block[386:482], block[482], None
        while more and len(fields) < SMALL_FILE:
            extra = stream.take(512)
            fields, more = fields + extra[:504], extra[504]
        numbers = [fields[at:at + 12] for at in range(0, len(fields), 12)]
        words, real = [nti(field) for field in numbers if field.strip(b"\0")], nti(block[483:495])
    elif pax.get(b"GNU.sparse.major") == b"1":
        while (not words or len(words) <= 2 * words[0]) and stream.offset - start < SMALL_FILE:
            *lines, rest = (rest + stream.take(512)).split(b"\n")
            words += map(int, lines)
        words, real = words[1:2 * words[0] + 1], int(pax[b"GNU.sparse.realsize"])
    else:
        words = [int(word) for word in pax[b"GNU.sparse.map"].split(b",") if word]
        real = int(pax[b"GNU.sparse.size"])
    size = entry.size - (0 if start is None else stream.offset - start)
    entry.type, entry.size, entry.sparse = b"0", real, list(zip(words[::2], words[1::2]))
    ends = [end for offset, length in entry.sparse for end in (offset, offset + length)]
    if [0, *ends, real] != sorted([0, *ends, real]) or size != stored(entry):
        raise ValueError("a sparse map out of order, or that doesn't fit its data")

def stored(entry):
    """How many bytes of data follow an entry's header."""
    return sum(length for _, length in entry.sparse)

def shown(name):
    """A name from an archive so that it can't play with the terminal."""
    text = repr(name.decode("utf-8", "backslashreplace"))[1:-1]
    return text if len(text) < 120 else f"{text[:80]}...{text[-30:]}"

# Unpacking

KINDS = {b"0": stat.S_IFREG, b"2": stat.S_IFLNK, b"3": stat.S_IFCHR, b"4": stat.S_IFBLK,
         b"6": stat.S_IFIFO}
OPAQUE = b".wh..wh..opq"  # the whiteout of all that lower layers have in a directory

def unpack_layer(chunks, layer_fd, strict=False, **how):
    """Unpack a plain tar into a directory, and nowhere else, by default in overlayfs' form."""
    stream, tree, mask, name = Stream(chunks), Tree(layer_fd, **how), os.umask(0), b"/"
    try:
        for entry in read_tar(stream, strict):
            name = entry.name
            tree.place(entry, stream)
        tree.finish()
    except (OSError, ValueError, OverflowError, RecursionError) as why:
        because = reason(why) if isinstance(why, OSError) else why
        raise Failure(f"unpack, on {shown(name)}: {because}") from why
    finally:
        os.umask(mask)
        os.close(tree.fd)
    for _ in stream.chunks:  # the digest covers the padding too
        pass

class Tree:
    """A layer's directory while it fills up.

    The only links in it are its own, and a name that leads through one is followed as if the layer
    were the whole root, as docker does.  Whiteouts, and mode, owner and time of directories come
    last: until then each can be written to, and nothing changes its time any more.
    """

    def __init__(self, root, whiteouts="mark", owned_by=None):
        self.root, self.path, self.fd = root, b"", os.dup(root)  # fd: of path, where we are
        self.whiteouts, self.owned_by = whiteouts, owned_by  # mark, apply or keep; (uid, gid)
        self.dirs, self.marks = {}, []

    def place(self, entry, stream):
        """Make ENTRY; what is in its place goes: the last one of a name counts."""
        parts = split_name(entry.name)
        if self.whiteouts != "keep" and any(part.startswith(b".wh.") for part in parts):
            self.white_out(parts)
            return
        if self.owned_by:
            entry.uid, entry.gid = self.owned_by
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
        """Open PATH as if the layer were the root."""
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
            try:
                if os.path.samestat(info, os.stat(name, dir_fd=parent, follow_symlinks=False)):
                    return
                remove_tree(name, parent)
            except FileNotFoundError:  # the name is free
                pass
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
    """The components of a name from an archive."""
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if b".." in parts or b"\0" in name:
        raise ValueError('".." or NUL in a name')
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
    remove_tree(name, parent)
    with open(os.open(name, OPEN_NEW, 0o600, dir_fd=parent), "wb", buffering=0) as file:
        for offset, length in entry.sparse:
            if offset:
                file.seek(offset)
            for piece in stream.pieces(length):
                while piece:  # write(2) may take less
                    piece = piece[file.write(piece):]
        if len(entry.sparse) != 1:
            file.truncate(entry.size)
        dress(file.fileno(), entry)

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
        warn(f"unpack, on {shown(entry.name)}: no right to make devices, ignoring")
        return
    os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
    os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)

def dress(fd, entry):
    """Give owner, mode, attributes, time, in this order: chown clears two, all set the time."""
    os.fchown(fd, entry.uid, entry.gid)
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
    """Mark the directory NAME: what lower layers have in it stays hidden."""
    with Descriptor(os.open(name, OPEN_CHILD, dir_fd=parent)) as fd:
        os.setxattr(fd, "trusted.overlay.opaque", b"y")

def is_whiteout(info):
    """True for overlayfs' sign that a lower file is hidden."""
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0

def keeps_xattr(name):
    """True if an attribute belongs to an image; overlayfs' own would steer the mount."""
    return (name == b"security.capability" or name.startswith(b"system.posix_acl_")
            or name.startswith(b"user.") and not name.startswith(b"user.overlay."))

def remove_tree(name, dir_fd=None):
    """Remove NAME, whatever it is, if it is there.

    Its directories are laid flat, so that none is too deep, and ".." isn't used: in a running
    container, it could lead anywhere by now.
    """
    try:
        os.unlink(name, dir_fd=dir_fd)
        return
    except FileNotFoundError:
        return
    except IsADirectoryError:
        top = Descriptor(os.open(name, OPEN_CHILD, dir_fd=dir_fd))
    with top:
        folders = ["."]
        for folder in folders:  # it grows meanwhile
            with Descriptor(os.open(folder, OPEN_CHILD, dir_fd=top)) as fd:
                for entry in list(os.scandir(fd)):
                    if not entry.is_dir(follow_symlinks=False):
                        os.unlink(entry.name, dir_fd=fd)
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

# Writing tar

def tar_header(name, kind, info=None, size=0, link=b"", pax=()):
    """The header of one member, with PAX records before it for what ustar can't hold."""
    import tarfile
    from decimal import Decimal
    entry = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
    entry.type, entry.size, entry.pax_headers = kind, size, dict(pax)
    entry.linkname = link.decode("utf-8", "surrogateescape")
    if info:
        entry.mode, entry.uid, entry.gid = info.st_mode & 0o7777, info.st_uid, info.st_gid
        entry.mtime = info.st_mtime_ns // 10**9
        if info.st_mtime_ns % 10**9:  # a float would lose some
            entry.pax_headers["mtime"] = f"{Decimal(info.st_mtime_ns).scaleb(-9):f}"
        if kind in b"34":
            entry.devmajor, entry.devminor = os.major(info.st_rdev), os.minor(info.st_rdev)
    return entry.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")

def tar_file(name, size, pieces, info=None, pax=()):
    """Yield a regular file as a member."""
    yield tar_header(name, b"0", info, size, pax=pax)
    yield from pieces
    yield bytes(-size % 512)

def pack_tree(root_fd, as_layer=False, path=b""):
    """Yield the tree at root_fd as a tar, sorted by name; PATH stands in front of each.

    as_layer: overlayfs' whiteouts become an image's; "stored": those of mark_whiteout, too.
    """
    from itertools import islice
    try:
        pieces = pack_directory(root_fd, path, as_layer, {})
        while chunk := b"".join(islice(pieces, 16)):  # each hand-over costs
            yield chunk
    except RecursionError:
        raise Failure("pack: directories are nested too deeply") from None
    yield bytes(1024)

def pack_directory(fd, path, as_layer, seen):
    """Yield a directory and all below it; SEEN: {inode: its first name}, for hard links."""
    yield tar_header(path or b"./", b"5", os.fstat(fd), pax=pack_xattrs(fd))
    marks = os.listxattr(fd) if as_layer else ()
    if "trusted.overlay.redirect" in marks:
        raise Failure(f"commit, on {shown(path)}: a renamed directory (overlayfs redirect_dir)")
    if "trusted.overlay.opaque" in marks and os.getxattr(fd, "trusted.overlay.opaque") == b"y":
        yield tar_header(path + OPAQUE, b"0")  # "x" would be something else
    for name in sorted(map(os.fsencode, os.listdir(fd))):
        try:
            info = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:  # gone meanwhile; or a whiteout, itself on an overlay
            if as_layer == "stored":
                yield tar_header(path + b".wh." + name, b"0")
            continue
        if stat.S_ISDIR(info.st_mode):
            with Descriptor(os.open(name, OPEN_CHILD, dir_fd=fd)) as child:
                yield from pack_directory(child, path + name + b"/", as_layer, seen)
        elif as_layer is True and name.startswith(b".wh."):
            warn(f"commit, on {shown(path + name)}: the name would mean a whiteout, ignoring")
        elif as_layer and is_whiteout(info):
            yield tar_header(path + b".wh." + name, b"0")
        else:
            yield from pack_file(fd, name, path + name, info, seen)

def pack_xattrs(fd):
    """A file's attributes as PAX records."""
    return {"SCHILY.xattr." + name: os.getxattr(fd, name).decode("utf-8", "surrogateescape")
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
        pax.update({"GNU.sparse.major": "1", "GNU.sparse.minor": "0",
                    "GNU.sparse.name": path.decode("utf-8", "surrogateescape"),
                    "GNU.sparse.realsize": str(info.st_size)})
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

def copy_entry(source, name, target, new_name, owner=None):
    """Copy NAME in the directory SOURCE to NEW_NAME in TARGET (descriptors), with all below.

    By way of a tar that never exists as a whole: no link is followed on either side, whatever
    somebody swaps meanwhile (CVE-2018-15664).  OWNER: (uid, gid) instead of theirs.
    """
    name, new_name = encode(name), encode(new_name)
    info = os.stat(name, dir_fd=source, follow_symlinks=False)
    if stat.S_ISDIR(info.st_mode):
        inner = os.open(name, OPEN_CHILD, dir_fd=source)
        chunks = pack_tree(inner, path=b"" if new_name == b"." else new_name + b"/")
    else:
        chunks = pack_file(source, name, new_name, info, {})
    unpack_layer(chunks, target, whiteouts="keep", owned_by=owner)

# The store

def using_images():
    """Hold the images: none goes while the lock is held.  To find one and to record its use."""
    return hold(make_dirs(state_path()) + "/images.lock", fcntl.LOCK_SH)

class ImageAdder(Descriptor):
    """The lock of using_images; behind what was added under it, what nothing needs is swept up."""

    def __exit__(self, *why):
        super().__exit__(*why)
        try:
            with hold(state_path("images.lock"), fcntl.LOCK_EX | fcntl.LOCK_NB):
                sweep_images()
        except BlockingIOError:  # somebody is at work: the last one sweeps
            pass

def sweep_images():
    """Remove what no image and no container needs; the caller holds images.lock alone."""
    import re
    records, needed = container_records(), set()
    todo = [entry["digest"] for entry in read_index()]
    todo += [record.get("image") or "" for record in records]
    while todo:  # what a document mentions is needed, too: rather too much than less
        digest = todo.pop()
        path = state_path("images", "blobs", "sha256", digest[7:])
        if digest not in needed and os.path.isfile(path) and os.path.getsize(path) <= JSON_LIMIT:
            found = re.findall(rb"sha256:[0-9a-f]{64}", b"".join(read_path(path)))
            todo += map(bytes.decode, found)
        needed.add(digest)
    needed.update(*(record.get("layers") or () for record in records))
    for folder in (state_path("images", "blobs", "sha256"), state_path("layers")):
        for name in os.listdir(folder) if os.path.isdir(folder) else ():
            if "sha256:" + name not in needed:
                gone = temporary_path("layers")  # never half a layer under a whole one's name
                os.rename(os.path.join(folder, name), gone)
                remove_tree(gone)

def write_index(entries):
    """Replace the store's index.json."""
    write_file(state_path("images", "oci-layout"), b'{"imageLayoutVersion": "1.0.0"}', durable=True)
    write_json(state_path("images", "index.json"), {
        "schemaVersion": 2, "mediaType": OCI_TYPE + "index.v1+json", "manifests": entries}, True)

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
            warn(f"{why}, ignoring")

def name_image(name, descriptor):
    """Let NAME (full, or "" for none) mean an image; what lost its last name stays without one."""
    with hold(make_dirs(state_path("images")) + "/index.lock"):
        entries = [{**entry, "annotations": {}} if name and ref_name(entry) == name else entry
                   for entry in read_index()]
        entries.append({**descriptor, "annotations": {REF_NAME: name} if name else {}})
        named = [*filter(ref_name, entries)]
        digests = {entry["digest"] for entry in named}
        nameless = {entry["digest"]: entry for entry in entries if entry["digest"] not in digests}
        write_index([*named, *nameless.values()])

def find_image(text):
    """The image that TEXT names: a name, NAME@DIGEST, or the beginning of an id."""
    import re
    name, hexes = full_name(text), re.fullmatch("(?:sha256:)?([0-9a-f]+)", text)
    repository, _, digest = name.partition("@")
    for image in stored_images(lambda entry: ref_name(entry) == name or entry["digest"] == digest
                               and ref_name(entry).rpartition(":")[0] == repository):
        return image
    start = "sha256:" + hexes[1] if hexes else "none"
    found = {image["id"]: {**image, "name": ""} for image in stored_images()
             if image["id"].startswith(start) or image["digest"] == start}
    if len(found) != 1:
        why = f"{len(found)} ids begin like this" if found else "no such image"
        raise Failure(f"image, on {text}: {why}", hint="images lists those that are there")
    return found.popitem()[1]

def image_layers(image):
    """The directories of an image's layers, bottom first and each once, as overlayfs wants it."""
    store_layers(image, state_path("images"))  # others may have put it there
    paths = []
    for path in map(layer_path, reversed(image["diff_ids"])):
        if path not in paths:
            paths.insert(0, path)
        if "trusted.overlay.opaque" in os.listxattr(path):  # it hides all below
            break
    return paths

def temporary_path(*parts):
    """A name that nobody else uses, and that is swept up if we are killed."""
    return os.path.join(make_dirs(state_path(*parts)), f"tmp.{os.getpid()}.{os.urandom(8).hex()}")

def unpack_new(path, chunks, strict=False, **how):
    """Unpack a plain tar into a new directory."""
    os.mkdir(path)
    with Descriptor(os.open(path, OPEN_DIR)) as fd:
        os.fchmod(fd, 0o755)  # whatever the umask is
        unpack_layer(read_ahead(chunks), fd, strict, **how)

def store_blob(data):
    """Store a small blob; return its digest."""
    import hashlib
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    write_file(blob_path(digest), data, durable=True)
    return digest

def store_layer(chunks, diff_id="", descriptor=None, strict=False):
    """Store a layer, packed and unpacked, or nothing of it; return its descriptor and diff id."""
    kind, chunks = sniff(chunks)
    if not descriptor and kind not in LAYER_TYPES:
        kind, chunks = "plain", decompress(kind, chunks)
    blob, layer = temporary_path("images", "blobs", "sha256"), temporary_path("layers")
    packed, plain = {}, {}
    known = (descriptor["digest"], descriptor["size"]) if descriptor else ()
    chunks = save_chunks(measure(chunks, packed, *known), blob)
    if kind != "plain":
        chunks = measure(decompress(kind, chunks), plain)
    try:
        unpack_new(layer, chunks, strict)
        plain = plain or packed
        if diff_id not in ("", plain["digest"]):
            raise Failure(f"layer, on {diff_id}: damaged or forged: the data is {plain['digest']}")
        os.rename(blob, blob_path(packed["digest"]))
        try:
            os.rename(layer, layer_path(plain["digest"]))
        except OSError:  # the same is there already
            if not os.path.isdir(layer_path(plain["digest"])):
                raise
    finally:
        remove_tree(blob)
        remove_tree(layer)
    return descriptor or {"mediaType": LAYER_TYPES[kind], **packed}, plain["digest"]

def store_layers(image, layout):
    """Unpack those layers of an image that aren't there, and store their blobs."""
    for descriptor, diff_id in zip(image["layers"], image["diff_ids"]):
        digest = descriptor["digest"]
        if (descriptor.get("mediaType") or "").endswith("+encrypted"):
            raise Failure(f"layer, on {digest}: encrypted")
        if not (os.path.isdir(layer_path(diff_id)) and os.path.exists(blob_path(digest))):
            store_layer(read_member(layout, blob_member(digest)), diff_id, descriptor)

def store_manifest(config, layers, names):
    """Store an image's config (bytes) and manifest, and give it names; return its id."""
    image_id = store_blob(config)
    data = to_json({
        "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "layers": layers,
        "config": {"mediaType": OCI_TYPE + "config.v1+json", "digest": image_id,
                   "size": len(config)}}).encode()
    for name in names or [""]:
        name_image(name, {"mediaType": MANIFEST_TYPE, "digest": store_blob(data),
                          "size": len(data)})
    return image_id

# Images in and out

def import_image(source, name="", changes=()):
    """Make an image of one layer from a root file system: a tar, "-" for stdin, or a directory."""
    platform = zip(("architecture", "variant"), platforms()[0].split("/"))
    image = {"config": {"os": "linux", **dict(platform)}, "layers": [], "diff_ids": []}
    if os.path.isdir(source):
        chunks = pack_tree(os.open(source, OPEN_DIR))
    else:
        chunks = read_path(0 if source == "-" else source)
    return add_layer(image, chunks, name, changes, f"imported from {source}")

def add_layer(image, chunks, name, changes, comment, author=""):
    """Store IMAGE with one layer more on top, CHUNKS; return its id."""
    name = full_name(name) if name else ""
    config = {**image["config"], **({"author": author} if author else {})}
    config["config"] = dict(config.get("config") or {})
    for change in changes:
        apply_change(config["config"], change)
    with ImageAdder(using_images()):
        layer, diff_id = store_layer(chunks, strict=True)
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        step = {"created": created, "comment": comment, "created_by": "mydocker"}
        config.update(created=created, history=[*(config.get("history") or ()), step],
                      rootfs={"type": "layers", "diff_ids": [*image["diff_ids"], diff_id]})
        return store_manifest(to_json(config).encode(), [*image["layers"], layer], [name])

CHANGES = {  # a Dockerfile's word → the config's
    "CMD": "Cmd", "ENTRYPOINT": "Entrypoint", "ENV": "Env", "EXPOSE": "ExposedPorts",
    "LABEL": "Labels", "STOPSIGNAL": "StopSignal", "USER": "User", "VOLUME": "Volumes",
    "WORKDIR": "WorkingDir"}

def apply_change(config, text):
    """Apply one instruction in a Dockerfile's words to an image's config."""
    import json, shlex
    word, _, rest = text.strip().partition(" ")
    key, rest = CHANGES.get(word.upper()), rest.strip()
    try:
        listed = check(json.loads(rest), [str], text) if rest.startswith("[") else None
        words = listed or shlex.split(rest)
    except ValueError as why:
        raise Failure(f"change, on {text!r}: {why}") from None
    if not key or not words:
        raise Failure(f"change, on {text!r}: not one of {', '.join(CHANGES)} with a value")
    old = config.get(key) or {}
    if key in ("Cmd", "Entrypoint"):
        config[key] = ["/bin/sh", "-c", rest] if listed is None else listed
    elif key in ("Env", "Labels"):
        pairs = words if "=" in words[0] else [rest.replace(" ", "=", 1)]
        old = dict(pair.partition("=")[::2] for pair in old) if key == "Env" else old
        new = {**old, **dict(pair.partition("=")[::2] for pair in pairs)}
        config[key] = [*map("=".join, new.items())] if key == "Env" else new
    elif key in ("ExposedPorts", "Volumes"):
        end = "/tcp" if key == "ExposedPorts" else ""
        config[key] = {**old, **{word if "/" in word else word + end: {} for word in words}}
    else:
        config[key] = rest

def load(source):
    """Store the images of a docker-archive, OCI archive or OCI layout; return [(name, id)]."""
    with ImageAdder(using_images()):
        if os.path.isdir(source):
            return load_layout(source)
        folder, chunks = temporary_path("layers"), read_path(0 if source == "-" else source)
        try:  # what is asked for first may come last: all is laid down
            unpack_new(folder, decompress(*sniff(chunks)), whiteouts="keep",
                       owned_by=(os.geteuid(), os.getegid()))
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

def save(names, form):
    """Yield images as a tar: an OCI layout and, in docker's FORM, docker's manifest.json too."""
    index, archive, digests = [], [], set()
    with using_images():
        for image in map(find_image, names):
            name, layers = image["name"], [layer["digest"] for layer in image["layers"]]
            index.append({**image["descriptor"], "annotations": {
                REF_NAME: name, DOCKER_NAME: name} if name else {}})
            archive.append({"Config": blob_member(image["id"]), "Layers": [
                *map(blob_member, layers)], "RepoTags": [short_name(name)] if name else []})
            digests.update((image["id"], image["digest"], *layers))
        documents = [("oci-layout", {"imageLayoutVersion": "1.0.0"}), ("manifest.json", archive),
                     ("index.json", {"schemaVersion": 2, "manifests": index})]
        for name, value in documents if form == "docker" else documents[::2]:
            data = to_json(value).encode()
            yield from tar_file(name.encode(), len(data), [data])
        for digest in sorted(digests):
            size, name = os.path.getsize(blob_path(digest)), blob_member(digest)
            chunks = read_member(state_path("images"), name)
            yield from tar_file(name.encode(), size, measure(chunks, {}, digest, size))
        yield bytes(1024)

def remove_image(text, force=False):
    """Take a name from an image, and with the last one the image; return lines that say so."""
    with hold(make_dirs(state_path()) + "/images.lock"):
        image, entries = find_image(text), read_index()
        mine = [entry for entry in entries if entry["digest"] == image["digest"]]
        gone = [entry for entry in mine if not image["name"] or ref_name(entry) == image["name"]]
        if len(gone) > 1 and not force:
            raise Failure(f"rmi, on {text}: it has {len(gone)} names", hint="name one, or -f")
        users = [record for record in container_records() if record["image"] == image["digest"]]
        if users and len(gone) == len(mine) and not force:
            raise Failure(f"rmi, on {text}: container {users[0]['id'][:12]} uses it")
        write_index([entry for entry in entries if entry not in gone])
        lines = [f"Untagged: {short_name(ref_name(entry))}" for entry in gone if ref_name(entry)]
        sweep_images()
    return lines + ([f"Deleted: {image['id']}"] if len(gone) == len(mine) and not users else [])

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


# ── 9. Root file system ────────────────────────────────────────────────────
# What a container sees of files is a list of mounts, applied in order in a mount namespace of its
# own, so that the host never sees one and the kernel removes them all with the last process.  A
# mount is a row {destination, type, source, options} as in the OCI's config.json: adding one means
# adding a row outside; nothing here needs to change.
#
# On the host's own root ("/") the rows are put over the host's directories and that is all.  A
# root of the container's own is built from below, while the host's paths can still be reached,
# then pivot_root swaps it for the host's, which is detached: there is no way back because there
# is nothing to go back to.

MOUNT_FLAGS = {  # mount(8)'s words: (flag, set it?)
    "defaults": (0, True), "ro": (MS_RDONLY, True), "rw": (MS_RDONLY, False),
    "nosuid": (MS_NOSUID, True), "suid": (MS_NOSUID, False),
    "nodev": (MS_NODEV, True), "dev": (MS_NODEV, False),
    "noexec": (MS_NOEXEC, True), "exec": (MS_NOEXEC, False),
    "sync": (MS_SYNCHRONOUS, True), "async": (MS_SYNCHRONOUS, False),
    "dirsync": (MS_DIRSYNC, True), "remount": (MS_REMOUNT, True),
    "noatime": (MS_NOATIME, True), "atime": (MS_NOATIME, False),
    "nodiratime": (MS_NODIRATIME, True), "diratime": (MS_NODIRATIME, False),
    "relatime": (MS_RELATIME, True), "norelatime": (MS_RELATIME, False),
    "strictatime": (MS_STRICTATIME, True), "nostrictatime": (MS_STRICTATIME, False),
    "nosymfollow": (MS_NOSYMFOLLOW, True), "symfollow": (MS_NOSYMFOLLOW, False),
    "bind": (MS_BIND, True), "rbind": (MS_BIND | MS_REC, True),
}
BIND_FLAGS = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC  # what a bind mount can have of its own
PROPAGATION = {
    "private": MS_PRIVATE, "rprivate": MS_PRIVATE | MS_REC, "slave": MS_SLAVE,
    "rslave": MS_SLAVE | MS_REC, "shared": MS_SHARED, "rshared": MS_SHARED | MS_REC,
    "unbindable": MS_UNBINDABLE, "runbindable": MS_UNBINDABLE | MS_REC,
}
NOT_FILES = {  # file systems that show the kernel's state: a throw-away copy makes no sense
    "autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts",
    "devtmpfs", "efivarfs", "fusectl", "hugetlbfs", "mqueue", "nsfs", "proc", "pstore",
    "rpc_pipefs", "securityfs", "selinuxfs", "sysfs", "tracefs",
}
DEVICES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9),
           ("tty", 5, 0))
DEV_LINKS = (("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1"),
             ("stderr", "/proc/self/fd/2"), ("ptmx", "pts/ptmx"))

def mount_row(destination, kind, *options, source=None):
    """A mount as the OCI's config.json writes it."""
    return {"destination": destination, "type": kind, "source": source or kind,
            "options": list(options)}

def kernel_mounts(shm_size=64 << 20):
    """The rows that give a container its own view of the kernel: Docker's, in Docker's order."""
    return [
        mount_row("/proc", "proc", "nosuid", "noexec", "nodev"),
        mount_row("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        mount_row("/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666",
                  "mode=0620", "gid=5"),
        mount_row("/sys", "sysfs", "nosuid", "noexec", "nodev", "ro"),
        mount_row("/sys/fs/cgroup", "cgroup", "nosuid", "noexec", "nodev", "ro"),
        mount_row("/dev/mqueue", "mqueue", "nosuid", "noexec", "nodev"),
        mount_row("/dev/shm", "tmpfs", "nosuid", "noexec", "nodev", "mode=1777",
                  f"size={shm_size}"),
    ]

def host_mounts(rows):
    """Those rows that fit over the host's own root: /dev stays the host's, the rest doesn't."""
    return [row for row in rows
            if row["destination"] != "/dev" and os.path.isdir(row["destination"])]

def layers_row(destination, layers, path):
    """A row for directories one over the other, the top one first; PATH/upper takes the writes."""
    return mount_row(destination, "layers", *[f"lowerdir={layer}" for layer in layers],
                     f"upperdir={path}/upper", f"workdir={path}/work")

def image_row(layers, path):
    """The row for an image's root: its layers under the container's own, or else a copy of them."""
    row = layers_row("/", layers, path)
    return dict(row, fallback=dict(row, type="copy", source=path + "/copy"))

def ephemeral_mounts(scratch):
    """The rows that put a throw-away layer over the host's root and each file system on it.

    SCRATCH is where init mounts the tmpfs that takes what is written.  What can't lie under an
    overlay (a single file, a case-insensitive file system) is shown read-only instead.
    """
    points = {"/"} | {
        point for point, kind, _, _ in mounts_here() if kind not in NOT_FILES
        and not point.startswith(("/proc/", "/sys/", "/dev/")) and os.path.exists(point)}
    rows = []
    for number, point in enumerate(sorted(points)):
        as_it_is = mount_row(point, "bind", "rbind", "ro", source=point)
        layered = dict(layers_row(point, [point], f"{scratch}/{number}"), fallback=as_it_is)
        rows.append(layered if os.path.isdir(point) else as_it_is)
    return rows

def parse_mount_options(options):
    """Mount options as (flags, propagation, data): data is what the file system itself reads."""
    flags, propagation, data = 0, [], []
    for option in options:
        if option in PROPAGATION:
            propagation.append(PROPAGATION[option])
        elif option in MOUNT_FLAGS:
            bits, wanted = MOUNT_FLAGS[option]
            flags = flags | bits if wanted else flags & ~bits
        else:
            data.append(option)
    return flags, propagation, ",".join(data)

def mount_one(root, row):
    """Make one row's mount below ROOT, a descriptor that stands for the container's "/"."""
    flags, propagation, data = parse_mount_options(row["options"])
    directory = not flags & MS_BIND or os.path.isdir(row["source"])
    target = mount_point(root, row, directory)
    if row.get("copyUp"):
        copy_up(target, row["source"])
    mounter = mount_bind if flags & MS_BIND else MOUNTERS.get(row["type"], mount_new)
    mounted = mounter(f"/proc/self/fd/{target}", row, flags, data)
    os.close(target)
    if row["type"] == "proc":
        check_proc(root, row["destination"])
    for change in propagation:
        mounted = mounted or f"/proc/self/fd/{open_in_root(root, row['destination'])}"
        mount(None, mounted, None, change, None)  # who sees mounts made below it later

def copy_up(target, volume):
    """Fill a new volume with what the image has at its place, as docker does."""
    below = os.open(volume, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    if not os.listdir(below):
        above = os.open(f"/proc/self/fd/{target}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        copy_entry(above, ".", below, ".")
        os.close(above)
    os.close(below)

def mount_point(root, row, directory):
    """Open the place of a row's mount, which is made if need be; neither can be fooled with links.

    /proc, /sys and /dev must be directories: CVE-2019-19921, CVE-2026-41579.  Nothing but proc goes
    onto or under /proc, where it could pass for the kernel's: CVE-2019-16884.
    """
    where = "/" + os.path.normpath(row["destination"]).lstrip("/")
    kernels = row["type"] in ("proc", "sysfs") or where == "/dev"
    try:
        fd = make_in_root(root, where, directory, RESOLVE_NO_SYMLINKS if kernels else 0)
    except OSError as error:
        raise Failure(f"mount, on {where}: {reason(error)}") from None
    if kernels and not stat.S_ISDIR(os.fstat(fd).st_mode):
        raise Failure(f"mount, on {where}: it must be a directory")
    if row["type"] != "proc" and is_proc(fd):
        raise Failure(f"mount, on {where}: nothing can be mounted on or under /proc")
    return fd

def is_proc(fd):
    """True if a descriptor is of a file in a proc file system: statfs(2)."""
    buffer = (INT * 64)()  # a struct statfs, whose first field is f_type
    statfs(f"/proc/self/fd/{fd}", buffer)  # what kind of file system is this?
    return buffer[0] == PROC_SUPER_MAGIC

def check_proc(root, where):
    """Make sure that proc is still where it was mounted: CVE-2023-27561."""
    fd = open_in_root(root, where, os.O_PATH, RESOLVE_NO_SYMLINKS)
    if not is_proc(fd):
        raise Failure(f"mount, on {where}: it was moved while proc was being mounted")
    os.close(fd)

def mount_new(target, row, flags, data):
    """Mount a file system that has no files yet but the kernel's."""
    mount(row["source"], target, row["type"], flags, data or None)  # the container's own

def mount_bind(target, row, flags, _):
    """Show files of the host's at TARGET; returns the mount as a path that can't be moved.

    The copy of the mount is finished before it is put in place: its path is never looked up a
    second time (CVE-2021-30465), and it's never writable for a moment.
    """
    whole = AT_RECURSIVE if flags & MS_REC else 0
    try:
        tree = row["tree"] if "tree" in row else open_tree(
            AT_FDCWD, row["source"], OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | whole)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM):
            raise
        mount(row["source"], target, None, flags & (MS_BIND | MS_REC), None)  # the same files here
        tree = os.open(os.path.realpath(target), os.O_PATH | os.O_CLOEXEC)
        target = None
    here = f"/proc/self/fd/{tree}"
    if target:
        move_mount(tree, "", AT_FDCWD, target,  # the same files, now here
                   MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_SYMLINKS)
    if flags & BIND_FLAGS:
        set_mount_flags(here, flags & BIND_FLAGS)
    return here

def mount_layers(target, row, flags, _):
    """Stack directories with overlayfs.

    The directories go in as numbers of open descriptors: 500 of them, the kernel's limit, fit
    into the one page that mount(2) takes, and no character in a name can mean anything.
    """
    number = {"lowerdir": []}
    for option in row["options"]:
        key, _, path = option.partition("=")
        if key in ("upperdir", "workdir"):
            os.makedirs(path, 0o755, exist_ok=True)
        number.setdefault(key, []).append(os.open(path, os.O_PATH | os.O_CLOEXEC))
    here = os.open(".", os.O_PATH | os.O_CLOEXEC)
    os.chdir("/proc/self/fd")  # where descriptors have short names
    data = ",".join(f"{key}={':'.join(map(str, fds))}" for key, fds in number.items())
    data += ",redirect_dir=off,metacopy=off"  # the upper directory stays what commit understands
    mount("overlay", target, "overlay", flags, data)  # layers below, what is written on top
    os.fchdir(here)  # back again
    for fd in [here, *sum(number.values(), [])]:
        os.close(fd)

def mount_cgroups(target, _, flags, __):
    """Show the container its own cgroup, in the form that the host has: v2, or v1's directories."""
    kinds = own_cgroups()
    if list(kinds) == [""]:
        mount("cgroup", target, "cgroup2", flags, None)  # the namespace's own part of the tree
        return
    place = os.path.realpath(target)  # on the fresh /sys: nobody can have put a link there
    mount("cgroup", place, "tmpfs", flags & ~MS_RDONLY, "mode=755")  # a directory for each one
    for name in kinds:
        path = f"{place}/{name.split('=')[-1] or 'unified'}"
        os.mkdir(path)
        kind = "cgroup" if name else "cgroup2"
        data = "none," + name if name.startswith("name=") else name or None
        mount("cgroup", path, kind, flags, data)  # the namespace's own part of this hierarchy
        for alias in name.split(",") if "," in name else ():
            os.symlink(name, f"{place}/{alias}")  # as distributions have it
    mount(None, place, None, flags | MS_REMOUNT | MS_BIND, None)  # now as read-only as asked for

def own_cgroups():
    """The cgroup of this process in each mounted hierarchy: {controllers: path}; "" is v2's.

    See cgroups(7), "/proc files".
    """
    rows = [line.split(":", 2)[1:] for line in read_all("/proc/self/cgroup").split("\n") if line]
    mounted = {row[1] for row in mounts_here()}
    return {name: path for name, path in rows if ("cgroup" if name else "cgroup2") in mounted}

def mount_copy(target, row, flags, data):
    """Where overlayfs can't stack the layers, copy them one over the other, once."""
    if not os.path.isdir(row["source"]):
        warn("overlay, on the image's layers: the kernel can't stack them (does the state root "
             "lie on an overlay?): copying them")
        new = row["source"] + ".new"
        remove_tree(new)
        os.mkdir(new, 0o755)
        with Descriptor(os.open(new, OPEN_DIR)) as below:
            for option in reversed(row["options"]):
                key, _, layer = option.partition("=")
                if key == "lowerdir":
                    with Descriptor(os.open(layer, OPEN_DIR)) as above:
                        unpack_layer(pack_tree(above, "stored"), below, whiteouts="apply")
        os.rename(new, row["source"])
    return mount_bind(target, row, flags | MS_BIND, data)

MOUNTERS = {"layers": mount_layers, "cgroup": mount_cgroups, "copy": mount_copy}

def set_mount_flags(path, flags):
    """Set MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC on the mount at PATH and on all below it.

    Before mount_setattr(2) (kernel 5.12) each mount is changed by itself; its other flags stay.
    """
    attributes = struct.pack("QQQQ", flags, 0, 0, 0)  # MOUNT_ATTR_ has the same four bits
    try:
        mount_setattr(AT_FDCWD, path, AT_RECURSIVE, attributes, len(attributes))  # with all below
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM):
            raise
        above = os.path.realpath(path)
        for point, _, options, _ in mounts_here():
            if point == above or point.startswith(above.rstrip("/") + "/"):
                kept = parse_mount_options(options)[0] | MS_REMOUNT | MS_BIND
                mount(None, point, None, kept | flags, None)  # from here on with this, too

def build_root(spec):
    """Make the container's root file system and step into it."""
    path, own = spec["root"]["path"], spec["root"]["path"] != "/"
    read_only = spec["root"].get("readonly")
    scratch = spec["annotations"].get("mydocker.scratch")
    if scratch:
        mount("tmpfs", scratch, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")  # takes what is written
    if own:
        mount(path, path, None, MS_BIND | MS_REC, None)  # pivot_root(2) wants a mount as new root
    elif read_only:
        set_mount_flags("/", MS_RDONLY)
    for row in spec["mounts"]:
        root = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)  # what lies on top by now
        mount_or_fall_back(root, row)
        if own and row["destination"] == "/dev":
            make_devices(root, spec)
        os.close(root)
    if own and read_only:
        mount(None, path, None, MS_REMOUNT | MS_BIND | MS_RDONLY, None)  # after its last directory
    if own:
        swap_root(path)

def mount_or_fall_back(root, row):
    """Mount a row, or what the row says to mount if the kernel can't."""
    try:
        mount_one(root, row)
    except OSError:
        if "fallback" not in row:
            raise
        mount_one(root, row["fallback"])

def make_devices(root, spec):
    """Fill the fresh /dev: what any program expects, and what --device added."""
    dev = open_in_root(root, "/dev", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    os.fchdir(dev)  # the names below are in the fresh /dev
    umask = os.umask(0)
    for name, major, minor in DEVICES:
        os.mknod(name, stat.S_IFCHR | 0o666, os.makedev(major, minor))  # a device of the kernel's
    for device in spec["linux"].get("devices", []):
        kind = stat.S_IFBLK if device["type"] == "b" else stat.S_IFCHR
        directory, _, name = device["path"].rpartition("/")
        above = make_in_root(root, directory or "/")
        remove_tree(name, above)  # one of the six may be asked for, too
        os.mknod(name, kind | device.get("fileMode", 0o666),
                 os.makedev(device["major"], device["minor"]), dir_fd=above)  # from --device
        os.chown(name, device.get("uid", 0), device.get("gid", 0), dir_fd=above)
    os.umask(umask)
    for name, target in DEV_LINKS:
        os.symlink(target, name)  # as every program expects them
    os.close(dev)

def swap_root(path):
    """Make PATH the root of this mount namespace and let the old root go.

    The old root ends up mounted over the new one and is detached: no directory is needed for it
    (the Go original's is in the image's hands).  See pivot_root(2), NOTES.
    """
    os.chdir(path)  # the new root, by its old name
    pivot_root(".", ".")  # the new root is "/"; the old one lies on top of it
    umount2(".", MNT_DETACH)  # and is gone, with every path of the host
    os.chdir("/")  # the top of what is left: the new root


# ── 11. Privileges ─────────────────────────────────────────────────────────
# Who the command runs as.  Names are looked up in the container's own /etc/passwd and /etc/group,
# after its root has become ours, as text: the C library would ask the container's nsswitch.conf
# which of the container's libraries to load into this process (CVE-2019-14271).

def account_lines(path):
    """The rows of a file in the form of passwd(5) or group(5); [] where there is none."""
    try:
        return [line.split(":") for line in read_text(path).split("\n") if line.count(":") >= 3]
    except (FileNotFoundError, NotADirectoryError):
        return []

def is_id(text):
    """True if a text is a user or group id as the kernel counts them."""
    return text.isascii() and text.isdigit() and int(text) < 1 << 31

def parse_id(text, what):
    """A user or group id; anything but a number up to 2^31 - 1 is an error, never 0.

    See CVE-2024-40635, CVE-2026-30892.
    """
    if not is_id(text):
        raise Failure(f"--user, on {text or chr(39) * 2}: there is no such {what} in the container")
    return int(text)

def resolve_user(wanted):
    """NAME|UID[:GROUP|GID] by the container's files: (uid, gid, supplementary gids, home).

    Without a group it's the account's own, with the groups that list it.  See Docker's USER.
    """
    name, colon, group = wanted.partition(":")
    accounts = [row for row in account_lines("/etc/passwd") if len(row) >= 6]
    account = next((row for row in accounts if row[0] == name), None) or next(
        (row for row in accounts if row[2] == name), None)
    uid = parse_id(account[2] if account else name, "user")
    groups = account_lines("/etc/group")
    if colon:
        row = next((row for row in groups if row[0] == group), None)
        return uid, parse_id(row[2] if row else group, "group"), [], account[5] if account else "/"
    if not account:
        return uid, 0, [], "/"
    more = [int(row[2]) for row in groups if account[0] in row[3].split(",") and is_id(row[2])]
    return uid, parse_id(account[3], "group"), more, account[5] or "/"

def become_user(uid, gid, groups):
    """Change to the user for good: groups before gid before uid, each needs the one before."""
    os.setgroups(groups)  # none of root's groups stay
    os.setresgid(gid, gid, gid)  # real, effective and saved: no way back
    os.setresuid(uid, uid, uid)  # from here on without root's power, unless it is root
    prctl(PR_SET_PDEATHSIG, _signal.SIGKILL, 0, 0, 0)  # the change of ids cleared it


# ── 12. Network ────────────────────────────────────────────────────────────
# A new network namespace holds one link, lo, and that is down.

def bring_up_loopback():
    """Set lo up: 127.0.0.1 works inside, and nothing else does.  See netdevice(7)."""
    link = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    request = fcntl.ioctl(link.fileno(), SIOCGIFFLAGS, struct.pack("16sH22x", b"lo", 0))
    flags = struct.unpack_from("H", request, 16)[0] | IFF_UP
    fcntl.ioctl(link.fileno(), SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", flags))
    link.close()


# ── 13. Terminal and logs ──────────────────────────────────────────────────
# With -t the command gets a terminal that is made inside, in the container's own devpts.  Only
# its master end comes out, and `run` copies bytes between that and the caller's terminal, which
# is in raw mode meanwhile: every key, Ctrl-C too, is for the terminal inside to interpret.  The
# caller's terminal itself never enters, so nothing can be typed into it (TIOCSTI, CVE-2017-5226).
#
# Without -t nothing is copied: the command has the caller's own descriptors.

def make_terminal(size):
    """Open a new pty of the container's: (master, slave).  SIZE is (rows, columns) or None."""
    master = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    fcntl.ioctl(master, TIOCSPTLCK, struct.pack("i", 0))
    # By descriptor, as a name in /dev/pts could lead elsewhere: CVE-2025-52565
    slave = fcntl.ioctl(master, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    if size:
        fcntl.ioctl(slave, TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    return master, slave

def show_console(slave):
    """Make /dev/console the container's terminal; /dev is still as we made it."""
    os.close(os.open("/dev/console", os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    mount(f"/proc/self/fd/{slave}", "/dev/console", None, MS_BIND, None)  # where boot messages go

def window_size(fd):
    """A terminal's (rows, columns), or None if FD is no terminal.  See ioctl_tty(2)."""
    try:
        rows, width, _, _ = struct.unpack("HHHH", fcntl.ioctl(fd, TIOCGWINSZ, b"\0" * 8))
    except OSError:  # ENOTTY
        return None
    return rows, width

def caller_size():
    """The (rows, columns) of the caller's terminal, or None if it has none."""
    return next(filter(None, map(window_size, (0, 1, 2))), None)

def raw_mode(fd):
    """Put a terminal in raw mode, what was typed ahead is kept; returns its attributes before."""
    import termios
    import tty
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

class Relay:
    """Bytes on their way from one descriptor to another; neither end ever blocks the monitor."""

    def __init__(self, source, sink, at_end=lambda last: b""):
        self.source, self.sink, self.at_end = source, sink, at_end
        self.waiting, self.last, self.open = b"", b"", True

    def wants(self):
        """What to poll for: (descriptor, events); room is made before more is taken."""
        return (self.sink, select.POLLOUT) if self.waiting else (self.source, select.POLLIN)

    def move(self):
        """Read or write once, after poll said that the descriptor is ready."""
        if self.waiting:
            # A pipe that is ready takes 4096 bytes without blocking: PIPE_BUF, pipe(7)
            self.waiting = self.waiting[os.write(self.sink, self.waiting[:4096]):]
            return
        try:
            self.waiting = os.read(self.source, 4096)
        except OSError as error:
            if error.errno != errno.EIO:  # the last process let go of the terminal
                raise
        self.last = self.waiting or self.last
        if not self.waiting:
            self.open, self.waiting = False, self.at_end(self.last)

    def busy(self):
        """True until everything up to the source's end has been delivered."""
        return bool(self.open or self.waiting)


# ── 14. Inside the container ───────────────────────────────────────────────
# What runs on this side is `init`: this file again, started by `run` in the new namespaces, and
# soon to be replaced by the command.  It knows nothing but the spec.  Each step says why it
# stands where it does; if one fails, the command never starts.

def send(channel, message, fds=()):
    """Send a value to the other side, and descriptors with it (unix(7), SCM_RIGHTS)."""
    data = marshal.dumps(message)
    data = struct.pack("I", len(data)) + data
    rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))]
    sent = channel.sendmsg([data], rights if fds else [])
    channel.sendall(data[sent:])

def receive(channel):
    """The next value and descriptors from the other side: (message, fds); (None, []) at its end."""
    header, ancillary, _, _ = channel.recvmsg(4, _socket.CMSG_SPACE(16), _socket.MSG_WAITALL
                                              | _socket.MSG_CMSG_CLOEXEC)
    if len(header) < 4:
        return None, []
    fds = [fd for _, _, data in ancillary for fd in struct.unpack(f"{len(data) // 4}i", data)]
    data, size = b"", struct.unpack("I", header)[0]
    while len(data) < size:
        more = channel.recv(size - len(data))
        if not more:
            return None, []
        data += more
    return marshal.loads(data), fds

def container_main(channel, trees):
    """Turn this process into the container's command.  Returns only by raising.

    The order is that of runc and bubblewrap; STYLE: a recital, in a straight line.
    """
    narrate("init come on")
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # nobody inside may look into this process: CVE-2016-9962
    spec, _ = receive(channel)  # sync 1: the outside has done its part
    if spec is None:
        os._exit(125)  # it died meanwhile
    for row, tree in zip(shared_rows(spec), trees):
        row["tree"] = tree
    process, terminal = spec["process"], spec["process"]["terminal"]
    narrate("command: " + " ".join(process["args"]))
    narrate("command:" + process["args"][0])
    own_root = spec["root"]["path"] != "/"
    umount2(os.readlink("/proc/self/exe"), MNT_DETACH)  # out of sight, and still read-only
    if namespace_flags(spec) & CLONE_NEWNET:
        bring_up_loopback()
    if has_namespace(spec, "cgroup"):
        os.unshare(CLONE_NEWCGROUP)  # after run chose our cgroup: it becomes the namespace's "/"
    build_root(spec)
    name = spec.get("hostname", "")
    if name:
        sethostname(name, len(encode(name)))  # the UTS namespace's, not the host's
    os.umask(process["user"].get("umask", 0o022))
    uid, gid, groups, home = resolve_user(process["user"]["username"])  # by the container's files
    for row in spec["mounts"]:
        if row.get("chown"):
            chown_tree(os.open("/", os.O_PATH | os.O_CLOEXEC), row["destination"][1:], uid, gid)
    slave = None
    if terminal:
        master, slave = make_terminal(process.get("consoleSize"))
        os.fchown(slave, uid, -1)  # the container's own terminal is its user's
        if own_root:
            show_console(slave)
        send(channel, "terminal", [master])  # sync 2: run keeps the other end
        os.close(master)
    enter_workdir(process["cwd"], own_root)
    become_user(uid, gid, groups)
    if spec["annotations"].get("mydocker.init"):
        become_reaper(channel, slave)  # returns in the child; PID 1 stays behind
    os.setsid()  # away from the caller's session: its terminal can't be ours
    if terminal:
        fcntl.ioctl(slave, TIOCSCTTY, 0)  # job control works from the first line on
        take_terminal(slave)
    environment = dict(item.partition("=")[::2] for item in process["env"])
    environment.setdefault("HOME", home)
    forget_signals()
    execute(process["args"], environment)

def chown_tree(directory, name, uid, gid):
    """Give a file, and all below it, to a user (-v ...:U); no link is followed."""
    os.chown(name, uid, gid, dir_fd=directory, follow_symlinks=False)
    if stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
        inner = os.open(name, OPEN_CHILD, dir_fd=directory)
        for entry in os.listdir(inner):
            chown_tree(inner, entry, uid, gid)
        os.close(inner)

def close_all_but(*kept):
    """Close every descriptor above the standard three except KEPT, and keep those from the command.

    What init itself opens later is close-on-exec from birth.
    """
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept:
            try:
                os.close(int(name))
            except OSError as error:
                if error.errno != errno.EBADF:  # the listing's own descriptor
                    raise
    for fd in kept:
        os.set_inheritable(fd, False)

def enter_workdir(path, make):
    """Change to the command's working directory; MAKE it where it is missing, as Docker does."""
    if make:
        os.close(make_in_root(os.open("/", os.O_PATH | os.O_CLOEXEC), path))
    os.chdir(path)  # where the command starts
    if not os.getcwd().startswith("/"):  # CVE-2024-21626: "(unreachable)" is outside
        raise Failure(f"--workdir, on {path}: it lies outside of the container")

def take_terminal(slave):
    """Make the container's terminal the three standard descriptors."""
    for fd in (0, 1, 2):
        os.dup2(slave, fd)  # the caller's own descriptor is gone with this

def become_reaper(channel, slave):
    """Fork; the child goes on to be the command, PID 1 passes signals to it and buries the dead."""
    child = os.fork()  # --init: the command is not PID 1 and needn't act like it
    if not child:
        return
    channel.close()  # its end of file must mean that the child has executed
    if slave is not None:
        take_terminal(slave)  # nor does PID 1 keep the caller's
    everything = set(range(1, _signal.NSIG)) - {32, 33}  # the C library's own
    _signal.pthread_sigmask(_signal.SIG_BLOCK, everything)
    while True:
        number = _signal.sigwait(everything)
        if number != _signal.SIGCHLD:
            os.kill(child, number)
            continue
        pid, status = os.waitpid(-1, os.WNOHANG)
        while pid:
            if pid == child:
                os._exit(exit_status(status))
            pid, status = os.waitpid(-1, os.WNOHANG)

def forget_signals():
    """Give the command the signals of a fresh process: Python ignores two, `run` blocks most."""
    for number in range(1, _signal.NSIG):
        if number not in (_signal.SIGKILL, _signal.SIGSTOP, 32, 33):
            _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())

def find_program(name, path):
    """Where a command's file is, by PATH as execvp(3) does; 127 if nowhere, 126 if unusable."""
    if "/" in name:
        return name
    found = [f"{directory or '.'}/{name}" for directory in path.split(":")]
    found = [program for program in found if os.path.isfile(program)]
    if not found:
        raise Failure(f"exec, on {name}: executable file not found in $PATH", 127)
    return next((program for program in found if os.access(program, os.X_OK)), found[0])

def execute(args, environment):
    """Become the command: execve(2).  Raises Failure with Docker's statuses, 126 and 127."""
    program = find_program(args[0], environment.get("PATH", DEFAULT_PATH))
    try:
        os.execve(encode(program), list(map(encode, args)),  # from here on it's the command's
                  {encode(key): encode(value) for key, value in environment.items()})
    except OSError as error:
        missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
        why = "is a directory" if os.path.isdir(program) else reason(error)
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


# ── 15. Outside the container ──────────────────────────────────────────────
# The other side of chapter 14: `run` makes the child, does what must be done outside, says go,
# and then only carries signals and bytes until the child is gone.  From the child's first moment
# it holds that PR_SET_PDEATHSIG kills it when this process dies: no container outlives `run`.

NAMESPACES = {"pid": CLONE_NEWPID, "mount": CLONE_NEWNS, "uts": CLONE_NEWUTS, "ipc": CLONE_NEWIPC,
              "network": CLONE_NEWNET}  # those made before init starts, by their OCI names
NOT_FORWARDED = {_signal.SIGCHLD, _signal.SIGPIPE, _signal.SIGURG, _signal.SIGTSTP, _signal.SIGTTIN,
                 _signal.SIGTTOU, _signal.SIGCONT, _signal.SIGKILL, _signal.SIGSTOP, _signal.SIGSYS,
                 _signal.SIGSEGV, _signal.SIGBUS, _signal.SIGILL, _signal.SIGFPE, _signal.SIGTRAP,
                 _signal.SIGABRT, 32, 33}
FORWARDED = set(range(1, _signal.NSIG)) - NOT_FORWARDED
DEADLY = {_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP, _signal.SIGQUIT}
GRACE = 10  # seconds between a hang-up and SIGKILL, as for `docker stop`

def has_namespace(spec, kind):
    """True if the spec asks for a new namespace of this kind."""
    return any(row["type"] == kind for row in spec["linux"]["namespaces"])

def namespace_flags(spec):
    """The CLONE_ flags of the new namespaces in the spec."""
    return sum(flag for kind, flag in NAMESPACES.items() if has_namespace(spec, kind))

def own_bytecode():
    """A sealed memfd with this program, compiled: init starts from it.

    It compiles nothing a second time, reads no file that somebody could have changed since, and
    finds its code with any root.  See memfd_create(2), fcntl(2) "File Sealing".
    """
    from _frozen_importlib_external import MAGIC_NUMBER  # importlib.util would cost 3 ms
    frame = sys._getframe()
    while frame.f_back:
        frame = frame.f_back
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create("mydocker", flags | MFD_NOEXEC_SEAL)
    except OSError:  # before Linux 6.3
        fd = os.memfd_create("mydocker", flags)
    data = memoryview(MAGIC_NUMBER + bytes(12) + marshal.dumps(frame.f_code))
    while data:
        data = data[os.write(fd, data):]
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd

def shared_rows(spec):
    """The mounts that the host is to see mounts in, too: -v ...:rshared."""
    return [row for row in spec["mounts"] if {"shared", "rshared"} & set(row["options"])]

def start_init(spec, stdin):
    """Start `init` in the spec's namespaces: (pid, channel to it, this program compiled)."""
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    flags, program = namespace_flags(spec), own_bytecode()
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)  # ignored, it would take the exit status
    _signal.pthread_sigmask(_signal.SIG_BLOCK, FORWARDED | {_signal.SIGCHLD})
    os.unshare(flags & CLONE_NEWPID)  # the next child is PID 1 of a new PID namespace
    pid = os.fork()  # this process goes on outside, the child inside
    if pid == 0:
        try:
            reexec_as_init(theirs, program, flags & ~CLONE_NEWPID, stdin, shared_rows(spec))
        except Exception as error:
            send(theirs, describe(error))
        finally:
            os._exit(125)
    theirs.close()
    return pid, ours, program

def reexec_as_init(channel, program, flags, stdin, shared):
    """In the child: make the other namespaces and execute this file again, as `init`.

    Mounts to be shared with the host are copied while they still are its peers.
    """
    prctl(PR_SET_PDEATHSIG, _signal.SIGKILL, 0, 0, 0)  # if run dies, however it dies, so do we
    os.unshare(flags)  # a mount table, host name, IPC and network of its own
    trees = [open_tree(AT_FDCWD, row["source"], OPEN_TREE_CLONE | AT_RECURSIVE) for row in shared]
    mount(None, "/", None, MS_REC | MS_SLAVE, None)  # what we mount, the host must not see
    python = os.readlink("/proc/self/exe")
    mount(python, python, None, MS_BIND, None)  # a mount for the next line to act on
    lock = MS_REMOUNT | MS_BIND | MS_RDONLY
    mount(None, python, None, lock, None)  # so that nobody inside overwrites it: CVE-2019-5736
    os.dup2(stdin, 0)  # the caller's with -i, else /dev/null
    os.set_inheritable(channel.fileno(), True)
    os.set_inheritable(program, True)
    kept = [str(fd) for fd in (channel.fileno(), *trees)]
    python_words = [python, "-I", "-S", "-X", "utf8", f"/proc/self/fd/{program}"]
    os.execvp(python, [*python_words, "init", *kept])  # this file again

def watch_signals():
    """A descriptor that becomes readable when one of the blocked signals arrives: signalfd(2)."""
    mask = bytearray(128)  # sigset_t of both C libraries
    for number in FORWARDED | {_signal.SIGCHLD}:
        mask[(number - 1) // 8] |= 1 << (number - 1) % 8
    return signalfd(-1, bytes(mask), os.O_CLOEXEC | os.O_NONBLOCK)  # signals as bytes to read

def take_signals(signals):
    """The numbers of the signals that have arrived: signalfd_siginfo's first field, ssi_signo."""
    try:
        data = os.read(signals, 128 * 64)
    except BlockingIOError:
        return []
    return [struct.unpack_from("I", data, start)[0] for start in range(0, len(data), 128)]

def start_container(spec, record, stdin, guard):
    """Start the container of SPEC; returns what is needed to watch it, once its command runs."""
    pid, channel, program = start_init(spec, stdin)
    signals = watch_signals()
    try:
        prepare_container(spec, record, guard)
        try:
            send(channel, spec)  # sync 1
        except BrokenPipeError:  # init has failed, and has said why
            pass
        master = await_exec(pid, channel, signals)
        record.update(pid=pid, pid_start=process_start(pid), started=time.time())
        write_json(state_path("containers", record["id"], "state.json"), record)
    except (Failure, OSError):
        kill_child(pid)
        raise
    finally:
        channel.close()
        os.close(signals)
    return {"pid": pid, "master": master, "program": program, "record": record, "before": None}

def kill_child(pid):
    """Kill a container's PID 1, and with it all of its processes, and wait for it."""
    try:
        os.kill(pid, _signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):  # it has been waited for already
        pass

def await_exec(pid, channel, signals):
    """Wait until the command runs; returns the terminal's master end or None.

    Raises what stopped init, as a Failure.
    """
    master, poll = None, select.poll()
    poll.register(signals, select.POLLIN)
    poll.register(channel.fileno(), select.POLLIN)
    while True:
        ready = [fd for fd, _ in poll.poll()]
        if channel.fileno() in ready:
            message, fds = receive(channel)
            if message is None:
                return master  # sync 3: closed by the exec
            if not fds:
                raise Failure(*message)
            master = fds[0]  # sync 2
        for number in set(take_signals(signals)) & DEADLY:
            raise Failure("run: interrupted before the command started", 128 + number)

def watch(state, small):
    """Stay with a running container to its end, then tidy up; returns its exit status.

    STATE: start_container's, with lock, interactive and typed (the last bytes).  SMALL: this
    process has compiled nothing; else it makes room after a second.
    """
    status, master = None, state["master"]
    if master is not None and state["interactive"] and not small and os.isatty(0):
        state["before"] = raw_mode(0)
    try:
        status = carry(state, watch_signals(), None if small else time.monotonic() + 1)
        return status
    finally:
        if state["before"]:
            set_terminal(0, state["before"])
        if status is None:  # something failed here: no container outlives that
            kill_child(state["pid"])
        end_container(state["record"], status)
        os.close(state["lock"])
        sweep_containers()  # what killed commands left

def make_room(state):
    """Execute this program again, from its bytecode, as `monitor`: compiling took 15 MB.

    The process stays the same: its child, its blocked signals and its locks come along.
    """
    carried = os.memfd_create("state", 0)
    os.write(carried, marshal.dumps(state))
    for fd in (state["lock"], state["program"], state["master"]):
        if fd is not None:
            os.set_inheritable(fd, True)
    words = [os.readlink("/proc/self/exe"), "-I", "-S", "-X", "utf8",
             f"/proc/self/fd/{state['program']}", "monitor", str(carried)]
    try:
        os.execv("/proc/self/exe", words + sys.argv)  # the last for those who read ps
    except OSError:  # then it stays as large as it is
        os.close(carried)

def resize(master):
    """Give the terminal inside the size of the caller's."""
    size = caller_size()
    if size:
        fcntl.ioctl(master, TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))

def carry(state, signals, crowded):
    """The monitor's loop; returns the exit status when PID 1 is gone and all output delivered.

    If the caller's terminal hangs up, the one inside does too, and PID 1 has GRACE seconds.
    CROWDED: when to make room, a time.monotonic(), or None.
    """
    pid, terminal, outputs, inputs = state["pid"], state["master"], [], []
    if terminal is not None:
        os.set_blocking(terminal, False)
        outputs.append(Relay(terminal, 1))
        resize(terminal)
    if terminal is not None and state["interactive"]:
        inputs.append(Relay(0, terminal, lambda last: end_of_file_key(terminal, last)))
        inputs[0].last, inputs[0].open = state["typed"], state["typed"] is not None
    status = killing = None
    arrived = [_signal.SIGCHLD]  # it may be gone already, and its signal taken while it started
    while True:
        for number in arrived:
            status = pass_on(number, pid, terminal, status)
        if status is not None and not any(stream.busy() for stream in outputs):
            return status
        now = time.monotonic()
        if killing and now > killing and status is None:
            os.kill(pid, _signal.SIGKILL)
        idle = status is None and not any(each.waiting for each in outputs + inputs)
        if crowded and now > crowded and idle:
            state["typed"] = inputs[0].last if inputs and inputs[0].open else None
            make_room(state)
            crowded = None
        streams = outputs + inputs if status is None else outputs
        ready = wait_ready(signals, streams, killing or crowded)
        hung_up = not all([moved(stream) for stream in ready])
        arrived = take_signals(signals)
        if terminal is not None and (hung_up or _signal.SIGHUP in arrived):
            os.close(terminal)  # the kernel tells all inside: SIGHUP, and end of file
            outputs, inputs, terminal, crowded = [], [], None, None
            killing = time.monotonic() + GRACE

def pass_on(number, pid, terminal, status):
    """Act on a signal that the monitor got; returns the exit status if PID 1 is gone."""
    if status is not None:
        return status
    if number == _signal.SIGCHLD:
        gone, wait_status = os.waitpid(pid, os.WNOHANG)
        return exit_status(wait_status) if gone else None
    if number == _signal.SIGWINCH and terminal is not None:
        resize(terminal)
    else:
        os.kill(pid, number)
    return None

def moved(stream):
    """Let a stream move; False if the terminal at its end is gone."""
    try:
        stream.move()
    except OSError as error:
        if error.errno != errno.EIO:
            raise Failure(f"write, on standard output: {reason(error)}") from None
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
    left = None if deadline is None else max(0, deadline - time.monotonic()) * 1000 + 1
    ready = dict(poll.poll(left))
    ended = select.POLLHUP | select.POLLERR
    return [stream for stream in busy
            if ready.get(stream.wants()[0], 0) & (stream.wants()[1] | ended)]


# ── 16. Commands ───────────────────────────────────────────────────────────
# One function for each subcommand, below its row: usage, summary, options.  The parser and the
# help are both driven by the row, so they can't drift apart.  An option is (names, argument,
# help): no argument makes it a switch, "..." at the end of the argument lets it be repeated.
# Docker's conventions: options end at the first positional or at `--`; -it is -i -t; --name=x is
# --name x.  The tutorial's: every long option may have one dash only.

COMMANDS = {}
HIDDEN = "not for typing"  # the summary of what the program starts as by itself

def command(usage, summary, *rows):
    """Make a function cmd_NAME the subcommand NAME; cmd_GROUP_NAME is GROUP NAME."""
    def register(function):
        COMMANDS[function.__name__[4:].replace("_", " ")] = (function, usage, summary, rows)
        return function

    return register

def long_name(row):
    """The name an option goes by: its first long one, without dashes."""
    return next(name[2:] for name in row[0].split() if name.startswith("--"))

def parse_options(rows, words, where, anywhere=False):
    """Split WORDS by an option table: ({name: value}, the positional words).

    ANYWHERE: options may follow positional words, too, as docker has it where no command follows.
    """
    by_name = {name.lstrip("-"): row for row in rows for name in row[0].split()}
    options = {long_name(row): [] if row[1].endswith("...") else None if row[1] else False
               for row in rows}
    words, rest = list(words), []
    while words:
        word = words.pop(0)
        if word == "--":
            break
        if not word.startswith("-") or word == "-":
            rest.append(word)
            if anywhere:
                continue
            break
        for row, value in split_option(by_name, word, where):
            if value is None and row[1] and not words:
                raise Failure(f"{where}, on {word}: it needs a value, {row[1].rstrip('.')}")
            store_option(options, row, words.pop(0) if value is None and row[1] else value, where)
    return options, rest + words

def split_option(by_name, word, where):
    """The options in one word as [(row, value)]; the value is None where it isn't in the word.

    Grammar: -name, --name, --name=value (one dash will do) | -abc | -abVALUE
    """
    name, equals, value = word.lstrip("-").partition("=")
    if name in by_name and (len(name) > 1 or equals or len(word) == 2):
        return [(by_name[name], value if equals else None)]
    letters, found = word[1:], []
    while letters and not word.startswith("--"):
        row = by_name.get(letters[0])
        letters = letters[1:]
        if not row:
            break
        if row[1]:
            return found + [(row, letters or None)]
        found.append((row, None))
        if not letters:
            return found
    raise Failure(f"{where}, on {word}: unknown option", hint=f"see {where} --help")

def store_option(options, row, value, where):
    """Put one option's value where the table says."""
    name = long_name(row)
    if row[1].endswith("..."):
        options[name].append(value)
    elif row[1]:
        options[name] = value
    elif value in (None, "true", "false"):
        options[name] = value != "false"
    else:
        raise Failure(f"{where}, on --{name}={value}: it takes no value")

def help_text(name):
    """The help of one subcommand, from its row."""
    _, usage, summary, rows = COMMANDS[name]
    lines = columns([("  " + ", ".join(names.split()) + (" " + argument).rstrip(), text)
                     for names, argument, text in rows]) if rows else []
    return "\n".join([f"Usage: mydocker {name} {usage}".rstrip(), "", summary.capitalize() + "."]
                     + (["", "Options (one dash is as good as two):"] + lines if lines else []))

def given(options, name, default):
    """An option's value, which may be empty, or DEFAULT where it wasn't given."""
    return default if options[name] is None else options[name]

def require_root(what):
    """Only root makes namespaces here."""
    if os.geteuid():
        raise Failure(f"{what}, as user {os.geteuid()}: only root can make containers",
                      hint=f"sudo python3 {sys.argv[0]} {what} ...")

def environment_of(options, hostname, image):
    """The container's environment, [K=V]: clean but for what the image and the options say."""
    values = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname}
    if options["tty"]:
        values["TERM"] = "xterm"
    items = [item for path in options["env-file"] for item in env_file_items(path)]
    for item in image.get("Env") or []:
        values[item.partition("=")[0]] = item.partition("=")[2]
    for item in items + options["env"]:
        key, equals, value = item.partition("=")
        if not key or "\0" in item:
            raise Failure(f"--env, on {item or chr(39) * 2}: a variable must have a name")
        if equals:
            values[key] = value
        elif key in os.environ:
            values[key] = os.environ[key]
    return [f"{key}={value}" for key, value in values.items()]

def env_file_items(path):
    """The lines of an --env-file, each K=V or K; empty ones and # comments are skipped."""
    try:
        lines = read_all(path).split("\n")
    except OSError as error:
        raise Failure(f"--env-file, on {path}: {reason(error)}") from None
    for number, line in enumerate(lines, 1):
        if " " in line.split("=")[0].strip() and not line.lstrip().startswith("#"):
            raise Failure(f"--env-file, on {path} line {number}: white space in a variable's name")
    return [line.lstrip() for line in lines if line.strip() and not line.lstrip().startswith("#")]

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

def volume_rows(options, image, own_root):
    """The mounts that -v, --mount, --tmpfs and the image's Volumes ask for: (rows, [new volume]).

    A new volume is one without a name: it belongs to this container.
    """
    rows = [parse_volume(text) for text in options["volume"]]
    rows += [parse_mount(text) for text in options["mount"]]
    for text in options["tmpfs"]:
        path, _, more = text.partition(":")
        rows.append(mount_row(path, "tmpfs", "nosuid", "nodev", "noexec",
                              *filter(None, more.split(","))))
    taken = {os.path.normpath(row["destination"]) for row in rows}
    rows += [volume_row("", path, []) for path in image.get("Volumes") or {}
             if os.path.normpath(path) not in taken]  # a place and no more: CVE-2022-23648
    for row in rows:
        if not row["destination"].startswith("/"):
            raise Failure(f"--volume, on {row['destination']}: the place in the container must be "
                          "an absolute path")
        if not own_root and not os.path.exists(row["destination"]):
            raise Failure(f"--volume, on {row['destination']}: there is no such place on this box, "
                          "and it won't be made on the host's own root")
    return sorted(rows, key=lambda row: os.path.normpath(row["destination"]).count("/"))

def parse_volume(text):
    """A -v argument, [HOST:|NAME:]PLACE[:OPTIONS], as a mount row."""
    parts = text.split(":")
    if len(parts) > 3 or not all(parts):
        raise Failure(f"--volume, on {text or chr(39) * 2}: it is [HOST-DIR:|NAME:]PLACE[:OPTIONS]")
    if len(parts) == 1 or len(parts) == 2 and parts[1][0] != "/":
        parts.insert(0, "")
    source, place, words = parts[0], parts[1], parts[2].split(",") if len(parts) > 2 else []
    unknown = [word for word in words if word not in PROPAGATION and word not in MOUNT_FLAGS
               and word not in ("z", "Z", "U", "nocopy")]
    if unknown:
        raise Failure(f"--volume, on {text}: unknown option {unknown[0]}")
    return volume_row(source, place, words)

def volume_row(source, place, words):
    """A row for a host path, a named volume or, without a source, a new one."""
    kept = [word for word in words if word in PROPAGATION or word in MOUNT_FLAGS]
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
    pairs = dict(word.partition("=")[::2] for word in text.split(","))
    alias = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}
    pairs = {alias.get(key, key): value for key, value in pairs.items()}
    unknown = set(pairs) - {"type", "source", "target", "readonly", "bind-propagation",
                            "volume-nocopy", "tmpfs-size", "tmpfs-mode"}
    kind = pairs.get("type", "volume")
    if unknown or kind not in ("bind", "volume", "tmpfs") or not pairs.get("target"):
        raise Failure(f"--mount, on {text}: "
                      + (f"unknown key {min(unknown)}" if unknown else "type or target is missing"))
    words = ["ro"] if pairs.get("readonly", "false") in ("", "true", "1") else []
    words += [pairs["bind-propagation"]] if pairs.get("bind-propagation") else []
    words += ["nocopy"] if pairs.get("volume-nocopy", "false") in ("", "true", "1") else []
    if kind == "tmpfs":
        data = [f"{key[6:]}={pairs[key]}" for key in ("tmpfs-size", "tmpfs-mode") if key in pairs]
        return mount_row(pairs["target"], "tmpfs", "nosuid", "nodev", "noexec", *words, *data)
    if kind == "bind" and not os.path.exists(pairs.get("source", "")):
        raise Failure(f"--mount, on {pairs.get('source', '')}: no such file or directory")
    source = os.path.abspath(pairs["source"]) if kind == "bind" else pairs.get("source", "")
    return volume_row(source, pairs["target"], words)

def working_directory(typed, image, own_root):
    """Where the command starts; on the host's own root that is where the caller is."""
    if own_root or typed.startswith("/"):
        return os.path.normpath(os.path.join("/", image.get("WorkingDir") or "", typed))
    try:
        return os.path.normpath(os.path.join(os.getcwd(), typed))
    except OSError as error:
        raise Failure(f"run, on the current directory: {reason(error)}") from None

def device_of(text):
    """A --device argument, HOST[:PLACE[:rwm]], as the spec's linux.devices has it."""
    path, _, rest = text.partition(":")
    try:
        info = os.stat(path)
    except OSError as error:
        raise Failure(f"--device, on {path}: {reason(error)}") from None
    if not (stat.S_ISBLK(info.st_mode) or stat.S_ISCHR(info.st_mode)):
        raise Failure(f"--device, on {path}: not a device")
    return {"path": rest.partition(":")[0] or path,
            "type": "b" if stat.S_ISBLK(info.st_mode) else "c",
            "major": os.major(info.st_rdev), "minor": os.minor(info.st_rdev),
            "fileMode": stat.S_IMODE(info.st_mode), "uid": info.st_uid, "gid": info.st_gid}

def make_spec(options, words, plan):
    """The spec of a container, in the form of the OCI's config.json.

    PLAN: {id, path (its directory), root (None: the host's own), layers, image (its config)}.
    """
    own_root, image, path = plan["root"] is not None, plan["image"], plan["path"]
    hostname = options["hostname"] or (plan["id"][:12] if own_root else os.uname().nodename)
    spec = {
        "ociVersion": "1.2.0",
        "process": {
            "terminal": options["tty"],
            "consoleSize": caller_size(),
            "user": {"username": given(options, "user", image.get("User") or "0")},
            "args": command_of(options, words, image),
            "env": environment_of(options, hostname, image),
            "cwd": working_directory(options["workdir"] or "", image, own_root),
        },
        "root": {"path": plan["root"] or "/", "readonly": options["read-only"]},
        "hostname": hostname,
        "mounts": kernel_mounts(parse_size(given(options, "shm-size", "64m"), "--shm-size")),
        "annotations": {"mydocker.init": "true"} if options["init"] else {},
        "linux": {"namespaces": [{"type": kind} for kind in (*NAMESPACES, "cgroup")],
                  "devices": [device_of(text) for text in options["device"]]},
    }
    if plan["layers"]:
        spec["mounts"].insert(0, image_row(plan["layers"], path))
    if options["ephemeral"]:
        spec["annotations"]["mydocker.scratch"] = path + "/scratch"
        spec["mounts"] = ephemeral_mounts(path + "/scratch") + spec["mounts"]
    elif own_root:
        spec["mounts"] += [mount_row(f"/etc/{name}", "bind", "rbind", "rprivate",
                                     source=f"{path}/{name}")
                           for name in ("hosts", "hostname", "resolv.conf")]
    else:
        spec["mounts"] = host_mounts(spec["mounts"])
    spec["mounts"] += volume_rows(options, image, own_root)
    return spec

def write_network_files(path, hostname):
    """Write what lies over the image's /etc/hosts, /etc/hostname and /etc/resolv.conf."""
    write_file(path + "/hosts", f"""127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::\tip6-localnet
ff00::\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
127.0.1.1\t{hostname}
""")
    write_file(path + "/hostname", hostname + "\n")
    write_file(path + "/resolv.conf", resolv_conf())
    for name in ("hosts", "hostname", "resolv.conf"):
        os.chmod(f"{path}/{name}", 0o644)

def process_start(pid):
    """When a process started, in clock ticks since boot: with its pid it names it for good."""
    try:
        return int(read_all(f"/proc/{pid}/stat").rpartition(")")[2].split()[19])
    except FileNotFoundError:
        return None

def resolv_conf():
    """The host's resolv.conf by Docker's rules: no server that only the host's lo can reach."""
    for path in ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"):
        try:
            lines = read_text(path).split("\n")
        except OSError:
            lines = []
        kept = [line for line in lines if line.split()[:1] != ["nameserver"] or not
                (line.split() + [""])[1].startswith(("127.", "::1"))]
        if any(line.startswith("nameserver") for line in kept):
            return "\n".join(kept)
    return "\n".join([*filter(None, kept), "nameserver 8.8.8.8", "nameserver 8.8.4.4", ""])

def find_image_to_run(name):
    """The image that a name means; a program of the box could have been meant as well."""
    try:
        return find_image(name)
    except Failure as failure:
        if "no such image" not in failure.message:
            raise
        program = f"run /bin/{os.path.basename(name) or 'sh'}"
        raise Failure(failure.message.replace("image,", "run,", 1), hint="an image: run IMAGE "
                      f"[COMMAND...] (see images); a program of this box: {program}") from None

def plan_root(options, words):
    """What the container's root is, by the options and the first word: (plan, the other words)."""
    container_id = os.urandom(32).hex()
    path = state_path("containers", container_id)
    plan = {"id": container_id, "path": path, "root": path + "/rootfs", "layers": [], "image": {},
            "reference": "", "digest": "", "diff_ids": [], "keep": not options["rm"],
            "guard": None}
    if options["rootfs"]:
        plan["root"] = os.path.abspath(options["rootfs"])
        if not os.path.isdir(plan["root"]):
            raise Failure(f"--rootfs, on {plan['root']}: no such directory")
    elif not words:
        raise Failure("run: no image and no command given", hint="mydocker run -it /bin/sh")
    elif words[0].startswith(("/", ".")):  # no image can be called so
        plan.update(root=path + "/rootfs" if options["ephemeral"] else None, keep=False)
    else:
        plan["guard"] = using_images()
        image = find_image_to_run(words[0])
        plan.update(layers=image_layers(image)[::-1], image=image_config(image),
                    reference=words[0], digest=image["digest"], diff_ids=image["diff_ids"])
        words = words[1:]
    if options["ephemeral"] and (options["rootfs"] or plan["layers"]):
        raise Failure("run, on --ephemeral: it is for the host's own root")
    return plan, words

@command("[OPTIONS] IMAGE [COMMAND] [ARG...]  or  run [OPTIONS] /PROGRAM [ARG...]",
         "run a command in a new container, from an image or on the host's own root",
         ("-i --interactive", "", "keep standard input open"),
         ("-t --tty", "", "give the command a terminal of its own"),
         ("--name", "NAME", "the container's name (default: the beginning of its id)"),
         ("-e --env", "K=V...", "set a variable; K alone takes the caller's value"),
         ("--env-file", "FILE...", "read variables from a file"),
         ("-u --user", "USER[:GROUP]", "run as this user, by name or number"),
         ("-w --workdir", "DIR", "start in this directory"),
         ("-v --volume", "[SRC:]PLACE[:OPTS]...", "mount a host directory or a volume"),
         ("--mount", "SPEC...", "the same, spelled out: type=bind,source=...,target=..."),
         ("--tmpfs", "PLACE[:OPTS]...", "mount an empty file system in memory"),
         ("--shm-size", "SIZE", "size of /dev/shm (default: 64m)"),
         ("--device", "HOST[:PLACE]...", "add a device of the host's"),
         ("--entrypoint", "PROGRAM", "instead of the image's entrypoint"),
         ("--rootfs", "DIR", "use this directory as the root, as it is"),
         ("--hostname", "NAME", "the container's host name"),
         ("--init", "", "run a small init as PID 1 that passes signals on and reaps"),
         ("--read-only", "", "let nothing be written to the root file system"),
         ("--ephemeral", "", "on the host's root: let everything be written, then throw it away"),
         ("--rm", "", "remove the container when it ends (on the host's root always)"),
         ("--log-level", "LEVEL", "debug, info, warning or error (default: info with -it)"),
         ("--explain", "", "print each kernel call that makes the container, and why"))
def cmd_run(options, words):
    """Run a command in a new container and wait for it; the status is the command's."""
    require_root("run")
    apply_log_options(options)
    plan, words = plan_root(options, words)
    spec = make_spec(options, words, plan)
    record = {"id": plan["id"], "name": options["name"] or plan["id"][:12],
              "reference": plan["reference"], "image": plan["digest"], "layers": plan["diff_ids"],
              "created": time.time(), "keep": plan["keep"],
              "args": spec["process"]["args"],
              "volumes": [row["volume"] for row in spec["mounts"] if "volume" in row],
              "own_volumes": [row["volume"] for row in spec["mounts"] if row.get("anonymous")]}
    if options["name"] is not None:
        check_new_name(options["name"], "--name")
    lock = make_container_dir(record, options["name"] is not None)
    stdin = 0 if options["interactive"] else os.open(os.devnull, os.O_RDWR)
    try:
        state = start_container(spec, record, stdin, plan["guard"])
    except (Failure, OSError):
        end_container(record)
        os.close(lock)
        raise
    return watch(dict(state, lock=int(lock), interactive=options["interactive"], typed=b""), False)

@command("FD [ARG...]", HIDDEN)
def cmd_monitor(_, words):
    """Go on watching the container whose state is in the memfd words[0]."""
    try:
        with open(int(words[0]), "rb") as file:
            file.seek(0)
            state = marshal.loads(file.read())
    except (IndexError, ValueError, OSError, EOFError, TypeError):
        raise Failure("monitor: it can't be typed, only `run` becomes it") from None
    return watch(state, True)

def prepare_container(spec, record, guard):
    """Put on disk what init and the other commands need; init is booting meanwhile.

    GUARD keeps the image from being removed until the container is on record.
    """
    path = state_path("containers", record["id"])
    for row in spec["mounts"]:
        if row.get("volume"):
            make_dirs(row["source"])
        elif row["type"] == "bind" and not row["source"].startswith(path):
            os.makedirs(row["source"], exist_ok=True) if not os.path.exists(row["source"]) else None
    for name in ("rootfs", "scratch"):
        os.mkdir(f"{path}/{name}")
    write_network_files(path, spec["hostname"])
    write_json(path + "/config.json", spec)
    write_json(path + "/state.json", record)
    if guard is not None:
        os.close(guard)

def apply_log_options(options):
    """Let --log-level and --explain travel to init: in the environment."""
    level = options["log-level"] or os.environ.get("MYDOCKER_LOG") or (
        "info" if options["tty"] and options["interactive"] else "warning")
    if level not in LEVELS:
        raise Failure(f"--log-level, on {level}: not one of {', '.join(LEVELS)}")
    os.environ["MYDOCKER_LOG"] = level
    if options["explain"]:
        os.environ["MYDOCKER_EXPLAIN"] = "1"
        explain_calls()

@command("[OPTIONS] CONTAINER...", "remove containers, with what they wrote",
         ("-f --force", "", "also if it runs: it's killed first"),
         ("-v --volumes", "", "with the volumes that were made for it"))
def cmd_rm(options, words):
    """Remove containers; never a byte of a bind mount or of a named volume."""
    require_root("rm")
    each("rm", words, lambda name: remove_container(find_container(name), options))

def remove_container(record, options):
    """Remove one container by its record."""
    path = state_path("containers", record["id"])
    if record["running"] and not options["force"]:
        raise Failure(f"rm, on {record['name']}: it is running", hint="mydocker rm -f")
    if record["running"]:
        kill_container(record)
    try:
        with hold(path + "/lock"):  # the monitor, if there was one, is done
            remove_container_dir(path) if os.path.isdir(path) else None
    except FileNotFoundError:  # --rm: it has removed all by itself
        pass
    for volume in record["own_volumes"] if options["volumes"] else []:
        remove_tree(state_path("volumes", volume))
    show(record["name"])

def container_root(record, volumes=True):
    """A descriptor of a container's root directory, running or not, with its VOLUMES or without.

    Of one that doesn't run the root is mounted again, in a mount namespace of this process's own.
    """
    path = state_path("containers", record["id"])
    if record["running"]:
        return os.open(f"/proc/{live_pid(record)}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    spec = read_json(path + "/config.json")
    os.unshare(CLONE_NEWNS)
    mount(None, "/", None, MS_REC | MS_PRIVATE, None)  # what is mounted here the host won't see
    top = spec["root"]["path"]
    if record["layers"]:
        copied = os.path.isdir(path + "/copy")
        row = spec["mounts"][0]["fallback"] if copied else spec["mounts"][0]
        MOUNTERS[row["type"]](top, row, 0, "")
    for row in spec["mounts"] if volumes else []:
        if row["type"] == "bind" and not row["source"].startswith(path):
            with Descriptor(os.open(top, os.O_PATH | os.O_CLOEXEC)) as root:
                mount_one(root, row)
    return os.open(top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

def live_pid(record):
    """The pid of a running container's PID 1, made sure of by its start time."""
    pid = record.get("pid")  # none while it starts
    if not pid or process_start(pid) != record["pid_start"]:
        raise Failure(f"container, on {record['name']}: it is not running")
    return pid

def kill_container(record):
    """Kill PID 1 of a running container, and so all of it."""
    try:
        os.kill(live_pid(record), _signal.SIGKILL)
    except ProcessLookupError:  # it has ended by itself
        pass

def each(command_name, words, action):
    """Do something for every name; all are tried, and the last failure is raised at the end."""
    need_words(command_name, words, 1)
    failed = None
    for word in words:
        try:
            action(word)
        except Failure as failure:
            print_line(f"mydocker: {failed.message}") if failed else None
            failed = failure
    if failed:
        raise failed

@command("[OPTIONS]", "list the containers",
         ("-a --all", "", "also those that have ended"),
         ("-q --quiet", "", "ids only"))
def cmd_ps(options, _):
    """List containers: what runs is asked of the kernel, not read."""
    sweep_containers()
    records = [record for record in container_records() if options["all"] or record["running"]]
    rows = [("CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "NAMES")]
    for record in records:
        age, words = age_of(record["created"]), " ".join(record["args"])
        status = "Up" if record["running"] else f"Exited ({record.get('status')})"
        rows.append((record["id"][:12], record["reference"] or "-", shorten(words, 20), age, status,
                     record["name"]))
    show("\n".join([record["id"][:12] for record in records] if options["quiet"]
                   else columns(rows)))

@command("[OPTIONS] FILE|DIR|- [NAME[:TAG]]", "make an image from a root file system",
         ("-c --change", "INSTRUCTION...", "set CMD, ENTRYPOINT, ENV, WORKDIR, USER, ... in it"))
def cmd_import(options, words):
    """Make an image of one layer from a tar, plain or compressed, or from a directory."""
    need_words("import", words, 1, 2)
    show(import_image(words[0], "".join(words[1:]), options["change"]))

@command("[OPTIONS]", "load images from an archive of docker's or of the OCI's",
         ("-i --input", "FILE|DIR", "the archive, or an OCI layout (default: standard input)"))
def cmd_load(options, _):
    """Load what `docker save`, `podman save`, skopeo and `save` write."""
    for name, image_id in load(options["input"] or "-"):
        show(f"Loaded image: {short_name(name) or image_id}")

@command("[OPTIONS] IMAGE...", "write images to an archive",
         ("-o --output", "FILE", "where to (default: standard output)"),
         ("--format", "FORMAT", "docker (which is an OCI archive, too) or oci"))
def cmd_save(options, words):
    """Write images so that podman, docker and skopeo load them with the same ids."""
    need_words("save", words, 1)
    form = options["format"] or "docker"
    if form not in ("docker", "oci"):
        raise Failure(f"--format, on {form}: not docker or oci")
    with open_output(options["output"]) as out:
        out.writelines(save(words, form))

def open_output(path):
    """A file to write an archive to; standard output only if it's no terminal."""
    if path:
        return open(path, "wb")
    if os.isatty(1):
        raise Failure("--output: not given, and standard output is a terminal", hint="-o FILE")
    return open(1, "wb", closefd=False)

@command("[OPTIONS] CONTAINER", "write a container's files to a tar archive",
         ("-o --output", "FILE", "where to (default: standard output)"))
def cmd_export(options, words):
    """Write the tree that the container sees, without its volumes."""
    need_words("export", words, 1, 1)
    record = find_container(words[0])
    root = container_root(dict(record, running=False), volumes=False)
    with open_output(options["output"]) as out:
        out.writelines(pack_tree(readable(root)))

@command("[OPTIONS] CONTAINER [NAME[:TAG]]", "make an image of a container's changes",
         ("-c --change", "INSTRUCTION...", "set CMD, ENTRYPOINT, ENV, WORKDIR, USER, ... in it"),
         ("-m --message", "TEXT", "a comment"), ("-a --author", "NAME", "who made it"))
def cmd_commit(options, words):
    """Add a layer to the container's image: what it wrote; volumes stay out."""
    need_words("commit", words, 1, 2)
    record = find_container(words[0])
    if not record["image"]:
        raise Failure(f"commit, on {words[0]}: it has no image to build on")
    if os.path.isdir(state_path("containers", record["id"], "copy")):
        raise Failure(f"commit, on {words[0]}: its root is a copy, not layers: what changed is not "
                      "known", hint="export, then import")
    name, stopped = "".join(words[1:]), stop_processes(record) if record["running"] else []
    try:
        with Descriptor(os.open(state_path("containers", record["id"], "upper"), OPEN_DIR)) as fd:
            show(add_layer(find_image(record["image"]), pack_tree(fd, as_layer=True), name,
                           options["change"], options["message"] or "", options["author"] or ""))
    finally:
        for pid in stopped:
            os.kill(pid, _signal.SIGCONT)

def stop_processes(record):
    """Stop all processes of a running container with SIGSTOP, until none is left that ran.

    Returns their pids.  (The freezer of chapter 10 will do it without their noticing.)
    """
    namespace, stopped = os.readlink(f"/proc/{live_pid(record)}/ns/pid"), []
    while True:
        found = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
                 if pid not in stopped and pid_namespace(pid) == namespace]
        if not found:
            return stopped
        for pid in found:
            os.kill(pid, _signal.SIGSTOP)
        stopped += found

def pid_namespace(pid):
    """The PID namespace of a process, or None if it is gone."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return None

@command("[OPTIONS]", "list the images", ("-q --quiet", "", "ids only"))
def cmd_images(options, _):
    """List the images by name, newest first."""
    rows = [("REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE")]
    for image in sorted(stored_images(), key=image_created, reverse=True):
        name, _, tag = short_name(image["name"]).partition("@")[0].rpartition(":")
        rows.append((name or "<none>", tag or "<none>", image["id"][7:19],
                     image_created(image)[:19].replace("T", " "),
                     humane_size(sum(layer["size"] for layer in image["layers"]))))
    show("\n".join([row[2] for row in rows[1:]] if options["quiet"] else columns(rows)))

def image_created(image):
    """When an image was made, as text."""
    return image["config"].get("created") or ""

@command("[OPTIONS] IMAGE...", "remove images",
         ("-f --force", "", "also with several names, or used"))
def cmd_rmi(options, words):
    """Take names from images, and remove what nothing needs any more."""
    each("rmi", words, lambda name: show("\n".join(remove_image(name, options["force"]))))

@command("IMAGE NEW-NAME", "give an image another name")
def cmd_tag(_, words):
    """Give an image another name."""
    need_words("tag", words, 2, 2)
    with using_images():
        name_image(full_name(words[1]), find_image(words[0])["descriptor"])

@command("NAME...", "show all that is known of containers and images, as JSON")
def cmd_inspect(_, words):
    """Print an array with one object for each name."""
    show_json("inspect", words, inspected)

def show_json(command_name, words, look_up):
    """Print an array of what LOOK_UP finds for each name."""
    import json
    found = []
    try:
        each(command_name, words, lambda name: found.append(look_up(name)))
    finally:
        if found:
            show(json.dumps(found, indent=4))

def inspected(name):
    """A container's record and spec, or an image, by name."""
    try:
        record = find_container(name)
    except Failure:
        return inspect_image(name)
    return dict(record, spec=read_json(state_path("containers", record["id"], "config.json")))

def need_words(name, words, least, most=None):
    """Fail unless there are as many arguments as a command takes."""
    if len(words) < least or most is not None and len(words) > most:
        raise Failure(f"{name}: it takes {COMMANDS[name][1]}", hint=f"mydocker {name} --help")

def volume_names():
    """The names of all volumes, in order."""
    top = state_path("volumes")
    return sorted(os.listdir(top)) if os.path.isdir(top) else []

def volume_users(name):
    """The names of the containers that use a volume."""
    return [record["name"] for record in container_records() if name in record["volumes"]]

def volume_info(name):
    """What `volume inspect` shows of a volume."""
    path = volume_path(name)
    if not os.path.isdir(path):
        raise Failure(f"volume, on {name}: no such volume")
    return {"Name": name, "Mountpoint": path, "Driver": "local", "Scope": "local",
            "UsedBy": volume_users(name)}

def remove_volume(name):
    """Remove a volume that no container uses."""
    info = volume_info(name)
    if info["UsedBy"]:
        raise Failure(f"volume rm, on {name}: container {info['UsedBy'][0]} uses it")
    remove_tree(os.path.dirname(volume_path(name)))

@command("[OPTIONS]", "list the volumes", ("-q --quiet", "", "names only"))
def cmd_volume_ls(options, _):
    """List the volumes by name."""
    rows = [("DRIVER", "VOLUME NAME")] + [("local", name) for name in volume_names()]
    show("\n".join(volume_names() if options["quiet"] else columns(rows)))

@command("[NAME]", "make a volume")
def cmd_volume_create(_, words):
    """Make an empty volume; one that is there is left as it is."""
    need_words("volume create", words, 0, 1)
    name = words[0] if words else os.urandom(32).hex()
    make_dirs(volume_path(name))
    show(name)

@command("NAME...", "remove volumes, with what is in them")
def cmd_volume_rm(_, words):
    """Remove volumes; one that a container uses stays."""
    each("volume rm", words, lambda name: (remove_volume(name), show(name)))

@command("NAME...", "show volumes as JSON")
def cmd_volume_inspect(_, words):
    """Print an array with one object for each name."""
    show_json("volume inspect", words, volume_info)

@command("[OPTIONS]", "remove the volumes without a name that no container uses",
         ("-a --all", "", "named ones, too"), ("-f --force", "", "without asking, as always"))
def cmd_volume_prune(options, _):
    """Remove unused volumes, and say which."""
    for name in volume_names():
        if not volume_users(name) and (options["all"] or len(name) == 64):
            remove_volume(name)
            show(name)

@command("CONTAINER:PATH PATH  or  cp PATH CONTAINER:PATH",
         "copy files out of a container or into it",
         ("-a --archive", "", "keep owner and group"))
def cmd_cp(options, words):
    """Copy a file or a tree between the host and a container, which may run and be hostile."""
    require_root("cp")
    if len(words) != 2:
        raise Failure("cp: it takes two paths, one of them CONTAINER:PATH")
    ends = [word.partition(":") if not word.startswith(("/", ".")) else (word, "", "")
            for word in words]
    if bool(ends[0][1]) == bool(ends[1][1]):
        raise Failure("cp: exactly one of the two paths must be CONTAINER:PATH")
    roots = [container_root(find_container(end[0])) if end[1] else os.open("/", os.O_PATH)
             for end in ends]
    paths = [os.path.join("/", end[2]) if end[1] else os.path.join(os.getcwd(), end[0])
             for end in ends]
    owner = None if options["archive"] else (os.geteuid(), os.getegid())
    source, name = split_entry(roots[0], paths[0])
    target, new_name = place_for(roots[1], paths[1], name if not paths[0].endswith("/.") else ".")
    copy_entry(source, name, target, new_name, owner)

def split_entry(root, path):
    """Open the directory that holds PATH below ROOT: (descriptor, the entry's name in it)."""
    parent, _, name = path.rstrip("/").rpartition("/")
    if name in ("", ".", ".."):
        return readable(open_in_root(root, path)), "."
    above = readable(open_in_root(root, parent or "/"))
    os.stat(name, dir_fd=above, follow_symlinks=False)
    return above, name

def place_for(root, path, name):
    """Where to copy to: into PATH if it is a directory, else to PATH itself."""
    try:
        return readable(open_in_root(root, path)), name
    except (FileNotFoundError, NotADirectoryError):
        if path.endswith("/") and name != ".":
            raise Failure(f"cp, on {path}: no such directory") from None
    parent, _, new_name = path.rstrip("/").rpartition("/")
    return readable(open_in_root(root, parent or "/")), new_name

def readable(fd):
    """A directory that was opened with O_PATH, for reading; NotADirectoryError if it is none."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(fd)

@command("FD...", HIDDEN)
def cmd_init(_, words):
    """Become the container whose spec comes over the socket in words[0]."""
    try:
        channel, trees = _socket.socket(fileno=int(words[0])), [int(word) for word in words[1:]]
    except (IndexError, ValueError, OSError):
        raise Failure("init: it can't be typed, only `run` starts it, inside the new namespaces",
                      hint="mydocker run -it /bin/sh") from None
    close_all_but(channel.fileno(), *trees)  # nothing of the caller's comes along: CVE-2024-21626
    if os.environ.get("MYDOCKER_EXPLAIN"):
        explain_calls()
    try:
        container_main(channel, trees)
    except Exception as error:
        send(channel, describe(error))
    finally:
        os._exit(125)  # nothing of the outside's clean-up may run twice

def attempt(action):
    """Do something in a child process, for a probe: True if the kernel lets it."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        except OSError:
            os._exit(1)
        finally:
            os._exit(2)
    return os.waitpid(pid, 0)[1] == 0

def try_overlay():
    """Mount an overlay, in a mount namespace of this process's own."""
    os.unshare(CLONE_NEWNS)
    mount(None, "/", None, MS_REC | MS_PRIVATE, None)
    mount("tmpfs", "/proc", "tmpfs", 0, None)
    os.chdir("/proc")
    for name in ("lower", "upper", "work", "merged"):
        os.mkdir(name)
    mount("overlay", "merged", "overlay", 0, "lowerdir=lower,upperdir=upper,workdir=work")

def try_nf_tables():
    """Ask the kernel's nf_tables for its generation, in a network namespace of this process's."""
    os.unshare(CLONE_NEWNET)
    netlink = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW, NETLINK_NETFILTER)
    kind = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN
    netlink.send(struct.pack("IHHII4x", 20, kind, NLM_F_REQUEST, 1, 0))
    answer = struct.unpack_from("H", netlink.recv(4096), 4)[0]
    netlink.close()
    if answer == 2:  # NLMSG_ERROR
        raise OSError(errno.EOPNOTSUPP, "nf_tables")

def try_seccomp():
    """Pass no filter: a kernel that knows filters finds the address bad, another the request."""
    try:
        prctl(22, 2, 0, 0, 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise

def need_mount(kind):
    """Fail unless a file system of this kind is mounted."""
    if not any(row[1] == kind for row in mounts_here()):
        raise OSError(errno.ENODEV, kind)

PROBES = (  # (name, try it, what it is needed for, where to look if it is missing)
    ("root", lambda: os.setuid(0), "all of it", "sudo"),
    ("mntns", lambda: os.unshare(CLONE_NEWNS), "its mounts", "sysctl user.max_mnt_namespaces"),
    ("pidns", lambda: os.unshare(CLONE_NEWPID), "its pids", "sysctl user.max_pid_namespaces"),
    ("utsns", lambda: os.unshare(CLONE_NEWUTS), "--hostname", "sysctl user.max_uts_namespaces"),
    ("ipcns", lambda: os.unshare(CLONE_NEWIPC), "System V IPC", "sysctl user.max_ipc_namespaces"),
    ("netns", lambda: os.unshare(CLONE_NEWNET), "a network", "sysctl user.max_net_namespaces"),
    ("cgroupns", lambda: os.unshare(CLONE_NEWCGROUP), "/proc/self/cgroup that shows /",
     "sysctl user.max_cgroup_namespaces"),
    ("userns", lambda: os.unshare(CLONE_NEWUSER), "nothing yet (rootless containers, later)",
     "sysctl user.max_user_namespaces kernel.unprivileged_userns_clone"),
    ("cgroup-v1", lambda: need_mount("cgroup"), "limits (one is enough)", "mount -t cgroup"),
    ("cgroup-v2", lambda: need_mount("cgroup2"), "limits (one is enough)", "mount -t cgroup2"),
    ("overlay", try_overlay, "--ephemeral, images", "module overlay"),
    ("seccomp", try_seccomp, "the system call filter", "kernel option CONFIG_SECCOMP_FILTER"),
    ("openat2", lambda: openat2(AT_FDCWD, "/", bytes(24), 24),
     "safe paths (without: slower, just as safe)", "Linux 5.6; the seccomp filter around this box"),
    ("pidfd", lambda: pidfd_open(os.getpid(), 0), "signals that hit no other process",
     "Linux 5.3; the seccomp filter around this box"),
    ("mount_setattr", lambda: mount_setattr(AT_FDCWD, "/proc", 0, bytes(32), 32),
     "read-only trees in one step", "Linux 5.12; the seccomp filter around this box"),
    ("nf_tables", try_nf_tables, "networks with -p (later)", "modules nf_tables nft_chain_nat"),
)

def cgroup_layout():
    """Which cgroup controllers this box has, and where, in words."""
    rows = [row for row in mounts_here() if row[1] in ("cgroup", "cgroup2")]
    v1 = sorted({os.path.basename(point) for point, kind, _, _ in rows if kind == "cgroup"})
    v2 = [point for point, kind, _, _ in rows if kind == "cgroup2"]
    layout = "hybrid" if v1 and v2 else "v1" if v1 else "v2" if v2 else "none"
    controllers = read_all(v2[0] + "/cgroup.controllers").split() if v2 else []
    return f"{layout}: v1 {' '.join(v1) or '-'}; v2 {' '.join(controllers) or '-'}"

def free_space():
    """The room at the state root, or at the nearest directory above it that is there."""
    path = os.path.abspath(state_path())
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    room = os.statvfs(path)
    return f"{state_path()}: {room.f_bavail * room.f_frsize >> 20} MiB free"

@command("[NAME...]", "show what this box can do, and what each is needed for; with names: "
                      "just those, and status 1 if one is missing")
def cmd_info(_, words):
    """Probe the kernel; every line is the outcome of a try, none is guessed from a version."""
    unknown = set(words) - {row[0] for row in PROBES}
    if unknown:
        raise Failure(f"info, on {' '.join(sorted(unknown))}: no such probe")
    rows = [(name, "yes" if attempt(action) else "no", use, where)
            for name, action, use, where in PROBES if not words or name in words]
    if not words:
        box = os.uname()
        show(f"mydocker {VERSION}, Python {sys.version.split()[0]}, {box.sysname} {box.release} "
             f"{box.machine}\ncgroups {cgroup_layout()}\n{free_space()}\n")
    show("\n".join(columns([(name, has, use + ("" if has == "yes" else f"; look at: {where}"))
                            for name, has, use, where in rows])))
    return int(any(row[1] == "no" for row in rows)) if words else 0


# ── 17. Main ───────────────────────────────────────────────────────────────
# Dispatch on argv[1], as the Go version does; and the one place that prints errors.

GLOBAL_OPTIONS = (
    ("--root", "DIR", f"where the state is kept (default: {STATE_ROOT}, or MYDOCKER_ROOT)"),
    ("-h --help", "", "show this help"),
    ("-v --version", "", "show the version"),
)
HELP_OPTION = ("-h --help", "", "show this help")

def overview():
    """The help of the whole program."""
    return "\n".join(
        ["Usage: mydocker [OPTIONS] COMMAND ...", "", "Containers in one file.  Commands:"]
        + columns([(f"  {name}", row[2]) for name, row in COMMANDS.items() if row[2] != HIDDEN])
        + ["", "Options:"]
        + columns([("  " + ", ".join(names.split()) + (" " + argument).rstrip(), text)
                   for names, argument, text in GLOBAL_OPTIONS])
        + ["", "mydocker COMMAND --help shows a command's own options."])

def dispatch(words):
    """Carry out one command line; returns the exit status."""
    options, words = parse_options(GLOBAL_OPTIONS, words, "mydocker")
    if options["root"]:
        os.environ["MYDOCKER_ROOT"] = os.path.abspath(options["root"])
    if options["version"]:
        show(f"mydocker {VERSION}")
        return 0
    if options["help"] or words[:1] == ["help"]:
        show(overview())
        return 0
    if not words:
        raise Failure("mydocker: no command given", hint="mydocker --help")
    name = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]
    if name not in COMMANDS:
        raise Failure(f"mydocker, on {' '.join(words[:2])}: no such command",
                      hint="mydocker --help")
    function, usage, _, rows = COMMANDS[name]
    words = words[len(name.split()):]
    options, rest = parse_options((*rows, HELP_OPTION), words, name, "[ARG...]" not in usage)
    if options["help"]:
        show(help_text(name))
        return 0
    return function(options, rest) or 0

def main():
    """Run the program and exit; the status is Docker's: 125 if the trouble is mydocker's own."""
    while os.open(os.devnull, os.O_RDWR) < 3:  # a closed standard descriptor must not be taken
        pass
    os.close(3)
    if sys.getfilesystemencoding() != "utf-8":  # such as GBK: bytes must come and go unchanged
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.argv])
    try:
        status = dispatch(sys.argv[1:])
    except (Failure, OSError) as error:
        message, status, hint = describe(error)
        print_line(f"mydocker: {message}")
        if hint:
            print_line(f"hint: {hint}")
    os._exit(status)  # at once: nothing is left to tidy up, and the interpreter's own takes 2 ms

if __name__ == "__main__":
    main()
