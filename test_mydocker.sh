#!/usr/bin/env bash
# Tests and measurements of mydocker.py. Run as root on any Linux host or in a VM:
#
#   sudo bash test_mydocker.sh [-v] [PATTERN]   all tests, or those whose name or title matches
#   sudo bash test_mydocker.sh [-v] smoke       the first ten, some of the life cycle, and that
#                                               nothing is left behind
#   sudo bash test_mydocker.sh [-v] security    those about privileges, and one or more for each CVE
#   sudo bash test_mydocker.sh bench [PATTERN]  times beside those of other programs
#
# Needs bash, the base system's tools (coreutils, grep, sed) and python3. What else a test needs
# it asks for with `need`, and is skipped where that is missing. The output is TAP, the last
# line "N passed, N failed, N skipped"; of a failed test the trace is shown (-v: of each).
#
# Environment: PYTHON   the interpreter under test (default: /usr/bin/python3)
#              STRICT=1 a skipped test is a failed one
#              TMPDIR   where the scratch directory goes (default: /tmp)
#              ROUNDS   runs of each program in the bench (default: 21)
#              COMPILED=1 run what `install` puts in place: the same, not compiled at each start
#              SHARE=I/N only every Nth test, from the Ith (0 is the first) on, and the last
#              FULL=1   the tests of many containers and of kill -9 in their whole length: minutes
#
# A new test is a function `test_x() { # area: what is true` at the end of its chapter; it is found
# by its first line (a long title goes on in the comment lines right below), runs in a directory of
# its own under `set -ex`, and fails by the first command that does. A new measurement is a
# `bench_x() { # area: program` likewise.
# shellcheck disable=SC2016 # what stands in single quotes is for a shell in a container
set -u

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
self=$here/${BASH_SOURCE[0]##*/}
[[ ${PYTHON-} || ! -x /usr/bin/python3 ]] || PYTHON=/usr/bin/python3
: "${PYTHON:=$(command -v python3)}"
mydocker=("$PYTHON" "$here/mydocker.py")
patience=${PATIENCE:-60} # seconds that any single event may take; only a failure waits so long
smoke=(test_detach test_pause) # with the first ten and the last the smoke set
host=() lan=() # set by `namespace`: what stands before a command that is to run in there
power_flags=(2 1) # at once; after the journal's next commit, which brings names to disk, no data

# ── Helpers ──────────────────────────────────────────────────────────────────

fail() { # fail WHY
  printf 'FAILED: %s\n' "$*" >&2
  exit 1
}

skip() { # skip WHY
  printf '%s\n' "$*" >"$scratch/why"
  exit 77
}

for name in cmp diff; do # of diffutils, which not every base system has
  # shellcheck disable=SC2139 # now
  command -v "$name" >/dev/null || eval "$name() { skip 'needs $name'; }"
done

need() { # need NAME...: go on only with these; a probe of `mydocker info`, a program, or a file
  local name got
  for name; do
    got=0
    case $name in
      root | *ns | cgroup-v[12] | overlay | seccomp | openat2 | pidfd | nf_tables)
        "${mydocker[@]}" info "$name" >"$scratch/stdout" || got=$? ;;
      /*) [[ -e $name ]] || got=1 ;;
      *) command -v "$name" >"$scratch/stdout" || got=1 ;;
    esac
    ((got < 2)) || fail "info $name ended with $got"
    ((got == 0)) || skip "needs $name"
  done
}

is() { # is GOT WANT
  local -
  set +x
  [[ $1 == "$2" ]] || fail "$(printf 'got  %q\n        want %q' "$1" "$2")"
}

like() { # like GOT REGEX
  local -
  set +x
  [[ $1 =~ $2 ]] || fail "$(printf 'got  %q\n        want something like %s' "$1" "$2")"
}

unlike() { # unlike GOT REGEX
  local -
  set +x
  [[ ! $1 =~ $2 ]] || fail "$(printf 'got  %q\n        want nothing like %s' "$1" "$2")"
}

wait_for() { # wait_for COMMAND...: until it succeeds
  local - end=$((SECONDS + patience))
  set +x
  until "$@"; do
    ((SECONDS < end)) || fail "waited in vain for: $*$(cat some 2>/dev/null)"
    sleep 0.02
  done
}

has() { # has FILE REGEX
  grep -qE -e "$2" "$1"
}

gone() { # gone PID...: none of these is a process, unless a dead one
  local pid state
  for pid; do
    if state=$(sed 's/.*) //' "/proc/$pid/stat" 2>/dev/null) && [[ $state != [ZX]* ]]; then
      return 1
    fi
  done
}

children() { # children PID: of which it is the parent
  local - stat line words
  set +x
  for stat in /proc/[0-9]*/stat; do
    { read -r line <"$stat"; } 2>/dev/null || continue
    read -ra words <<<"${line##*) }"
    [[ ${words[1]} != "$1" ]] || echo "${line%% *}"
  done
}

run() { # run STATUS ARG...: `mydocker ARG...` ends so; fills $out and $err
  local - want=$1 got=0
  set +x
  shift
  timeout -k 5 "$patience" "${mydocker[@]}" "$@" >"$scratch/stdout" 2>"$scratch/stderr" || got=$?
  read_output
  is "status $got" "status $want"
}

read_output() { # into $out and $err, and into the trace
  local -
  set +x
  { out=$(<"$scratch/stdout") err=$(<"$scratch/stderr"); } 2>/dev/null # says that NULs are dropped
  printf 'stdout: %s\nstderr: %s\n' "${out:0:2000}" "${err:0:4000}" >&2
}

one_line() { # one_line REGEX: $err is one line of mydocker's, or two with a hint, and matches
  local -
  set +x
  like "$err"$'\n' $'^mydocker: [^\n]+: [^\n]+\n(hint: [^\n]+\n)?$'
  like "$err" "$1"
}

fails() { # fails STATUS REGEX ARG...: `mydocker ARG...` fails as it should
  local regex=$2
  run "$1" "${@:3}"
  is "$out" ''
  one_line "$regex"
}

engine_cgroup() { # engine_cgroup ID: where the cgroups of an engine's container lie in each tree
  "$PYTHON" -c 'import os, sys, zlib
root = os.fsencode(os.path.abspath(os.environ["MYDOCKER_ROOT"]))
print("mydocker/%08x/%s" % (zlib.crc32(root), sys.argv[1]))' "$1"
}

start() { # start ARG...: `mydocker ARG...` as process $pid; its output is in ./out and ./err
  rm -f out err
  set -m # else bash starts it with INT and QUIT ignored
  "${mydocker[@]}" "$@" >out 2>err &
  pid=$!
  set +m
}

ended() { # ended STATUS: process $pid ends so
  local got=0
  wait_for gone "$pid"
  wait "$pid" || got=$?
  is "status $got" "status $1"
}

# tty STATUS [REGEX TEXT]... -- COMMAND...: the command on a terminal of its own, 24x80. When the
# output has come to match REGEX (since the match before), TEXT is typed; or it is one of
# "@size ROWS COLUMNS", "@do SHELL-COMMAND", "@hangup". Fills $out, without carriage returns. The
# command must leave the terminal's modes as they were.
tty() {
  local want=$1 got=0
  shift
  LIMIT=$patience "$PYTHON" - "$@" >"$scratch/stdout" 2>"$scratch/stderr" <<'PYTHON' || got=$?
import fcntl, os, re, select, signal, struct, subprocess, sys, termios, time

at = sys.argv.index("--")
steps, command = list(zip(sys.argv[1:at:2], sys.argv[2:at:2])), sys.argv[at + 1:]
master, slave = os.openpty()
seen, matched, limit = b"", 0, float(os.environ.pop("LIMIT"))
deadline = time.monotonic() + limit


def resize(rows, columns):
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def give_up(why):
    os.write(2, ("tty: " + why + "\n").encode())
    finish(124)


def finish(status):
    os.write(1, seen.replace(b"\r", b"")[-100000:])
    try:
        os.kill(child, signal.SIGKILL)
    except ProcessLookupError:
        pass
    os._exit(status)


def modes_now():  # the kernel fills in 19 of the special characters, musl leaves the rest as it was
    *modes, special = termios.tcgetattr(slave)
    return modes, special[:19]


resize(24, 80)
modes = modes_now()
child = os.fork()
if child == 0:
    os.setsid()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    for fd in 0, 1, 2:
        os.dup2(slave, fd)
    os.closerange(3, 100)
    for number in signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGQUIT:
        signal.signal(number, signal.SIG_DFL)
    os.environ.setdefault("TERM", "xterm")
    os.execvp(command[0], command)
status = None
while True:
    while steps:
        found = re.compile(steps[0][0].encode(), re.M).search(seen.replace(b"\r", b""), matched)
        if not found:
            break
        matched, (what, *words) = found.end(), steps.pop(0)[1].split(" ")
        deadline = time.monotonic() + limit
        if what == "@size":
            resize(*map(int, words))
        elif what == "@do":
            subprocess.run(" ".join(words), shell=True, check=True)
        elif what == "@hangup":
            os.close(slave)
            os.close(master)
            slave = master = None
        else:
            os.write(master, " ".join((what, *words)).encode())
    if time.monotonic() > deadline:
        give_up("waited in vain for %r" % steps[0][0] if steps else "the command does not end")
    if status is None:
        pid, state = os.waitpid(child, os.WNOHANG)
        if pid:
            status = 128 + os.WTERMSIG(state) if os.WIFSIGNALED(state) else os.WEXITSTATUS(state)
            if slave is None:
                finish(status)
            changed = modes_now() != modes
            os.close(slave)
    if master is None:
        time.sleep(0.02)
    elif select.select([master], [], [], 0.02)[0]:
        try:
            seen += os.read(master, 65536)
        except OSError:  # EIO: nobody has the other end any more, and everything is read
            break
if steps:
    give_up("ended before %r" % steps[0][0])
if changed:
    give_up("the terminal's modes are not as before")
finish(status)
PYTHON
  read_output
  is "status $got" "status $want"
}

# A full listing of directories, to compare what was there before and after.
listing() {
  "$PYTHON" -I - "$@" <<'PYTHON'
import hashlib, os, stat, sys
for top in sys.argv[1:]:
    for path, _, names in os.walk(top):
        for name in [path] + sorted(os.path.join(path, name) for name in names):
            s = os.lstat(name)
            what = ""
            if stat.S_ISLNK(s.st_mode):
                what = os.readlink(name)
            elif stat.S_ISREG(s.st_mode):
                with open(name, "rb") as file:
                    what = hashlib.sha256(file.read()).hexdigest()
            print(repr(name), oct(s.st_mode), s.st_uid, s.st_gid, s.st_rdev, s.st_mtime_ns, what)
PYTHON
}

# ── Helpers: images, roots and containers ────────────────────────────────────

own_state() { # the images, volumes and containers of this test alone
  export MYDOCKER_ROOT=$PWD/state
}

nothing_on_record() { # no container of this test is on record, runs or has a name
  is "$(find state/containers state/running state/names -mindepth 1)" ''
}

# own_mounts SCRIPT ARG...: bash, with SCRIPT and "$@" = mydocker ARG..., where mounts are its own.
own_mounts() {
  need unshare mount
  unshare -m bash -ec "$1" bash "${mydocker[@]}" "${@:2}"
}

small_root() { # small_root DIR: a root file system of the host's own programs
  local - tool file busybox='' tools=(sh cat chmod id ln ls mkdir mv readlink rm rmdir sleep touch)
  set +x
  mkdir -p "$1/bin" "$1/etc" "$1/root" "$1/tmp"
  chmod 1777 "$1/tmp"
  printf 'root:x:0:0::/root:/bin/sh\nuser:x:1234:5678::/home:/bin/sh\n' >"$1/etc/passwd"
  printf 'root:x:0:\nuser:x:5678:\n' >"$1/etc/group"
  if [[ ! ${NO_BUSYBOX-} ]] && busybox=$(type -P busybox); then
    with_libraries "$busybox" "$1" busybox
    for tool in "${tools[@]}"; do ln -s busybox "$1/bin/$tool"; done
  else
    for tool in "${tools[@]}"; do with_libraries "$(type -P "$tool")" "$1" "$tool"; done
  fi
}

with_libraries() { # with_libraries PROGRAM ROOT NAME: copy it to ROOT/bin/NAME,
  # with what it is linked to
  local file
  cp -L "$1" "$2/bin/$3"
  while read -r file; do
    mkdir -p "$2${file%/*}"
    cp -nL "$file" "$2$file"
  done < <(ldd "$1" 2>/dev/null | grep -o '/[^ )]*' || :)
}

make_image() { # make_image NAME [OPTION...]: import ./root, a small one unless it is there
  own_state
  [[ -d root ]] || small_root root
  run 0 import "${@:2}" root "$1"
}

set_config() { # set_config NAME JSON [STATUS]: put these keys into the image's config,
  # as a hostile builder would
  if [[ ! -d layout ]]; then
    mkdir layout
    run 0 save --format oci -o layout.tar "$1"
    tar -C layout -xf layout.tar
    rm -f layout/manifest.json
  fi
  change_config "$2"
  run "${3-0}" load -i layout
}

change_config() { # change_config JSON [TOP]: put the keys of JSON into the "config" of ./layout's
  # config, those of TOP beside it
  "$PYTHON" -I - "$1" "${2-{\}}" <<'PYTHON'
import hashlib, json, os, sys
os.chdir("layout")
index = json.load(open("index.json"))

def path(of):
    return "blobs/sha256/" + of["digest"][7:]

def store(of, value):
    data = json.dumps(value).encode()
    of["digest"], of["size"] = "sha256:" + hashlib.sha256(data).hexdigest(), len(data)
    open(path(of), "wb").write(data)

manifest = json.load(open(path(index["manifests"][0])))
config = json.load(open(path(manifest["config"])))
config.setdefault("config", {}).update(json.loads(sys.argv[1]))
config.update(json.loads(sys.argv[2]))
store(manifest["config"], config)
store(index["manifests"][0], manifest)
json.dump(index, open("index.json", "w"))
PYTHON
}

add_layers() { # add_layers LAYOUT NUMBER: put so many layers more on the saved image
  "$PYTHON" -I - "$@" <<'PYTHON'
import hashlib, io, json, os, sys, tarfile
os.chdir(sys.argv[1])
index = json.load(open("index.json"))

def path(of):
    return "blobs/sha256/" + of["digest"][7:]

def store(of, data):
    of["digest"], of["size"] = "sha256:" + hashlib.sha256(data).hexdigest(), len(data)
    open(path(of), "wb").write(data)
    return of

manifest = json.load(open(path(index["manifests"][0])))
config = json.load(open(path(manifest["config"])))
for number in range(int(sys.argv[2])):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in "layer%d" % number, "top":
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"%03d\n" % number))
    data = out.getvalue()
    config["rootfs"]["diff_ids"].append("sha256:" + hashlib.sha256(data).hexdigest())
    manifest["layers"].append(store({"mediaType": "application/vnd.oci.image.layer.v1.tar"}, data))
config.pop("history", None)
store(manifest["config"], json.dumps(config).encode())
store(index["manifests"][0], json.dumps(manifest).encode())
json.dump(index, open("index.json", "w"))
if os.path.exists("manifest.json"):
    os.unlink("manifest.json")
PYTHON
}

unpack_saved() { # unpack_saved NAME: what save writes of it as ./a.tar, and its layout in ./layout
  run 0 save --format oci -o a.tar "$1"
  mkdir layout
  tar -C layout -xf a.tar
}

layer_of() { # layer_of NAME: the directory of an image's top layer, into $layer
  run 0 inspect "$1"
  layer=$MYDOCKER_ROOT/layers/$("$PYTHON" -I -c '
import json, sys
print(json.load(sys.stdin)[0]["RootFS"]["Layers"][-1][7:])' <"$scratch/stdout")
}

id_of() { # id_of NAME: an image's id, into $id
  run 0 inspect "$1"
  id=$("$PYTHON" -I -c 'import json, sys; print(json.load(sys.stdin)[0]["Id"])' <"$scratch/stdout")
}

nothing_half_done() { # no unfinished blob, layer or image is left
  is "$(find "$MYDOCKER_ROOT"/{images,images/blobs/sha256,layers} -maxdepth 1 -name '*tmp*' \
    2>/dev/null)" ''
}

nothing_kept() { # no blob and no layer is left
  nothing_half_done
  is "$(find "$MYDOCKER_ROOT/images/blobs" -type f)" ''
  is "$(find "$MYDOCKER_ROOT/layers" -mindepth 1 -maxdepth 1)" ''
}

# All that a tree is: types, modes, owners, sizes, times, links, xattrs, hard links, contents.
tree_of() { # tree_of DIR
  "$PYTHON" -I - "$1" <<'PYTHON'
import hashlib, os, stat, sys
os.chdir(sys.argv[1])
first = {}
for path, dirs, names in os.walk(b"."):
    dirs.sort()
    for name in [path] * (path != b".") + sorted(os.path.join(path, name) for name in names + dirs
                                                 if not os.path.isdir(os.path.join(path, name))
                                                 or os.path.islink(os.path.join(path, name))):
        s, what = os.lstat(name), b""
        if stat.S_ISLNK(s.st_mode):
            what = os.readlink(name)
        elif stat.S_ISREG(s.st_mode):
            with open(name, "rb") as file:
                what = hashlib.sha256(file.read()).hexdigest()
        twin = first.setdefault(s.st_ino, name) if not stat.S_ISDIR(s.st_mode) else name
        xattrs = [(x, os.getxattr(name, x, follow_symlinks=False))
                  for x in sorted(os.listxattr(name, follow_symlinks=False)) if "overlay" not in x]
        print(name, oct(s.st_mode), s.st_uid, s.st_gid, s.st_rdev, s.st_mtime_ns, what, twin,
              xattrs, s.st_size if stat.S_ISREG(s.st_mode) else 0)
PYTHON
}

rich_root() { # rich_root DIR: a small tree of whatever a file system can hold
  local -
  set +x
  mkdir -p "$1/sub/deep" "$1/times"
  echo text >"$1/file"
  ln "$1/file" "$1/sub/twin"
  ln -s ../file "$1/sub/link"
  ln -s /nowhere "$1/sub/dangling"
  mkfifo "$1/sub/fifo"
  mknod "$1/sub/null" c 1 3
  echo suid >"$1/suid"
  chown 12:34 "$1/suid"
  chmod 6755 "$1/suid"
  chmod 1733 "$1/sub/deep"
  truncate -s 3M "$1/sparse"
  echo end >>"$1/sparse"
  echo odd >"$1/sub/"$'\xff\x80 \n"name'
  "$PYTHON" -I -c '
import os, sys
os.setxattr(sys.argv[1], "security.capability", b"\1\0\0\2\0\x20\0\0" + bytes(12))
os.setxattr(sys.argv[2], "user.colour", b"blue\0\xff") if os.statvfs(".") else 0
' "$1/suid" "$1/file" || :
  touch -h -d '1999-01-01 01:02:03.456789123' "$1/file" "$1/times" "$1/sub/link"
}

hostile_tar() { # hostile_tar FILE 'TYPE NAME [TARGET|DATA]'...: by hand,
  # since tar(1) would not do it
  "$PYTHON" -I - "$@" <<'PYTHON'
import io, sys, tarfile
tar = tarfile.open(sys.argv[1], "w", format=tarfile.GNU_FORMAT)
for line in sys.argv[2:]:
    kind, name, rest = (line.split(" ", 2) + [""])[:3]
    info = tarfile.TarInfo(name)
    info.type = dict(f=b"0", h=b"1", l=b"2", c=b"3", b=b"4", d=b"5", p=b"6")[kind]
    info.mode, info.linkname = 0o755, rest if kind in "hl" else ""
    info.size = len(rest) if kind == "f" else 0
    if kind in "cb":
        info.devmajor, info.devminor = 1, 3
    tar.addfile(info, io.BytesIO(rest.encode()))
tar.close()
PYTHON
}

make_canary() { # ./canary, a part of the host that nothing may touch, and what it looks like
  mkdir -p canary/dir
  echo secret >canary/file
  echo secret >canary/dir/file
  listing canary >canary.before
  cp /proc/self/mountinfo mountinfo.before
}

canary_lives() { # the canary and the host's mounts are as they were
  listing canary | diff canary.before -
  diff mountinfo.before /proc/self/mountinfo
}

flipper() { # flipper A B: swap two names as fast as it goes, from a container; process $flipper
  start run "$PYTHON" -I -c '
import ctypes, os, sys
swap = ctypes.CDLL(None, use_errno=True).renameat2
a, b = map(os.fsencode, sys.argv[1:])
if swap(-100, a, -100, b, 2):
    print("cannot", os.strerror(ctypes.get_errno()), flush=True)
print("ready", flush=True)
while True:
    swap(-100, a, -100, b, 2)' "$1" "$2"
  wait_for has out ready
  if has out cannot; then skip "renameat2: $(<out)"; fi
  flipper=$pid
}

# `podman run` as it works here: without a log, and without limits that the host doesn't grant.
podman_limits=(--ulimit nofile=1024:1024 --ulimit nproc=1024:1024)
podman_run=(run --rm --log-driver none "${podman_limits[@]}")

peer_podman() { # podman with a storage of its own below this directory; arguments into $podman
  need podman
  podman=(podman --root "$PWD/podman" --runroot "$PWD/run" --tmpdir "$PWD/podman-tmp"
    --storage-driver vfs --cgroup-manager cgroupfs --events-backend none)
}

background() { # background ARG...: `mydocker run -d ARG...`; its id is in $id
  run 0 run -d "$@"
  like "$out" '^[0-9a-f]{64}$'
  is "$err" ''
  id=$out
}

at_once() { # at_once "WORD..."...: each of these by mydocker, begun hardly apart; ./errors has what
  # went wrong
  local words jobs=()
  for words; do
    # shellcheck disable=SC2086 # words
    { "${mydocker[@]}" $words >>said 2>>errors || :; } &
    jobs+=("$!")
    sleep 0.0$((RANDOM % 4))
  done
  wait "${jobs[@]}"
}

only_said() { # only_said KNOWN: nothing else is in ./errors; a regular expression a line
  grep -vE "^hint: |^mydocker: (${1//$'\n'/|})$" errors >strange || :
  is "$(<strange)" ''
}

state_of() { # state_of NAME: docker's word
  "${mydocker[@]}" inspect -f '{{.State.Status}}' "$1"
}

has_state() { # has_state NAME WORD
  [[ $(state_of "$1") == "$2" ]]
}

pid_of() { # pid_of NAME: its PID 1, seen from here
  "${mydocker[@]}" inspect -f '{{.State.Pid}}' "$1"
}

monitor_of() { # monitor_of NAME: the process outside that waits for it
  "${mydocker[@]}" inspect -f '{{.Record.monitor}}' "$1"
}

made_room() { # made_room PID: the monitor has executed itself again by now, to be smaller
  tr '\0' ' ' <"/proc/$1/cmdline" | grep -qE ' monitor [0-9]+ '
}

pss() { # pss PID: its memory in kB, of which it shares with others in equal parts
  sed -n 's/^Pss: *\([0-9]*\) kB$/\1/p' "/proc/$1/smaps_rollup"
}

said() { # said NAME REGEX: it has said so by now
  "${mydocker[@]}" logs "$1" 2>&1 | grep -qE -e "$2"
}

# ── The first ten: the smoke set ─────────────────────────────────────────────

test_tutorial_ls() { # run: -it /bin/ls tells the tutorial's three lines, then lists the directory
  mkdir dir && cd dir && touch LICENSE Makefile 'two words'
  run 0 run -it /bin/ls
  "$PYTHON" -I - "$scratch/stderr" <<'PYTHON'
import json, re, sys
lines = [json.loads(line) for line in open(sys.argv[1])]
assert [list(line) for line in lines] == [["level", "msg", "time"]] * 3, lines
assert [line["level"] for line in lines] == ["info"] * 3, lines
assert [line["msg"] for line in lines] == ["init come on", "command: /bin/ls", "command:/bin/ls"]
for line in lines:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d([+-]\d\d:\d\d|Z)", line["time"]), line
PYTHON
  like "$out" 'LICENSE.*Makefile.*two words'
}

test_tutorial_sh() { # run: -it /bin/sh on a terminal is PID 1 and sees no process but its own
  tty 3 '[#$] $' $'echo "pid <$$>"\r' 'pid <1>\n[^\n]*[#$] $' \
    $'echo /proc/[0-9]*; ps -e; exit 3\r' -- \
    "${mydocker[@]}" run -it /bin/sh
  like "$out" '^\{"level":"info","msg":"init come on","time":"[^"]+"\}'
  like "$out" $'\n/proc/1\n'
  if [[ $out =~ 'PID TTY' ]]; then
    like "$out" $'\n *1 pts/[0-9]+ +[0-9:]+ sh\n *[0-9]+ pts/[0-9]+ +[0-9:]+ ps$'
  fi
}

test_exit_status() { # run: the exit status is the command's own, or 128 and the signal's number
  local status
  run 0 run /bin/true
  is "$out$err" ''
  for status in 1 7 125 127 255; do run "$status" run /bin/sh -c "exit $status"; done
  # PID 1 can only kill itself by way of a child, a shell that isn't PID 1 dies of its own signal
  run 137 run --init /bin/sh -c "kill -KILL \$\$"
  run 143 run --init /bin/sh -c "kill -TERM \$\$"
  is "$out$err" ''
}

test_arguments() { # run: the command gets its arguments untouched
  local args=('' ' ' 'two words' "'" '"' "\\" $'a\nb' $'\xff\xfe\x80' 中文 -it --rm -- --help -e x=y
    "\$HOME" '*' '')
  run 0 run /bin/sh -c "printf '%s\\0' \"\$@\"" sh "${args[@]}"
  printf '%s\0' "${args[@]}" | cmp - "$scratch/stdout"
  run 0 run -- /bin/echo -n -- -x
  is "$out" '-- -x'
  run 0 run -e A=1 --rm -- /bin/sh -c "echo \$A \$1" sh --hostname
  is "$out" '1 --hostname'
}

test_namespaces() { # run: PID, mount, UTS, IPC, network and cgroup namespaces are new,
  # others the host's
  local kind
  run 0 run /bin/sh -c "cd /proc/self/ns; for n in *; do echo \"\$n \$(readlink \$n)\"; done"
  for kind in pid mnt uts ipc net cgroup; do
    [[ $kind != cgroup || -e /proc/self/ns/cgroup ]] || continue
    like "$out" "(^|"$'\n'")$kind $kind:\[[0-9]+\]"
    unlike "$out" "$kind $(readlink "/proc/self/ns/$kind" | sed 's/[][]/\\&/g')"
  done
  like "$out" "user $(readlink /proc/self/ns/user | sed 's/[][]/\\&/g')"
}

test_mount_table() { # run: the host's mount table is the same before, while a container runs,
  # and after
  cp /proc/self/mountinfo before
  start run /bin/sh -c 'echo ready; exec sleep 1000'
  wait_for has out ready
  cp /proc/self/mountinfo during
  kill -KILL "$pid"
  ended 137
  cmp before during
  run 0 run -it /bin/true
  run 127 run /no/such/program
  cmp before /proc/self/mountinfo
  [[ -e /proc/$$/stat ]]
}

test_own_proc() { # run: /proc is the container's own
  run 0 run /bin/sh -c "read -r pid rest </proc/self/stat; echo \$\$ \$pid; cat /proc/1/comm
      echo /proc/[0-9]*"
  is "$out" $'1 1\nsh\n/proc/1'
  run 0 run /bin/cat /proc/self/mountinfo
  like "$out" ' /proc rw,nosuid,nodev,noexec[^ ]* [^-]*- proc '
}

test_signals() { # run: signals to the outside process reach the container's PID 1
  local signals=(TERM HUP QUIT USR1 USR2 WINCH ALRM IO VTALRM RTMAX INT) signal # musl keeps RTMIN
  start run /bin/bash -c "for s in ${signals[*]}; do trap \"echo got \$s\" \$s; done
    trap 'echo got INT; exit 3' INT
    echo ready; while :; do sleep 0.05; done"
  wait_for has out ready
  for signal in "${signals[@]}"; do
    kill -"$signal" "$pid"
    wait_for has out "^got $signal$"
  done
  ended 3
  is "$(<err)" ''
}

test_kill_9() { # run: kill -9 of the outside process ends the container at once
  local inside
  start run /bin/sh -c "trap '' TERM HUP; sleep 1000 & sleep 1001 & echo ready; wait"
  wait_for has out ready
  inside=$(children "$pid")
  like "$inside" '^[0-9]+$'
  inside+=" $(children "$inside")"
  read -ra inside <<<"$(tr '\n' ' ' <<<"$inside")"
  is ${#inside[@]} 3
  kill -KILL "$pid"
  ended 137
  wait_for gone "${inside[@]}"
}

test_cannot_start() { # run: 127 for a program that is not there, 126 for one that can't be run,
  # 125 for the rest
  fails 127 '^mydocker: .*/no/such/program: no such file' run /no/such/program
  fails 126 '^mydocker: .*/etc: ' run /etc
  fails 125 '^mydocker: .*--nope' run --nope /bin/true
  fails 125 '^mydocker: run: no .*command' run
  fails 125 'init' init /bin/true
}

# ── Kernel calls and --explain ───────────────────────────────────────────────

test_explain() { # calls: --explain prints the calls of both processes in C's notation, with reasons
  local call line
  run 5 run --explain /bin/sh -c 'echo hello; exit 5'
  is "$out" hello
  for call in 'run +unshare\(CLONE_NEWPID\)' 'run +fork\(\)' 'init +unshare\([A-Z_|]*CLONE_NEWNS' \
    'init +execve?p?\(.*"init"' \
    'init +mount\("proc", "/proc", "proc", MS_NOSUID\|MS_NODEV\|MS_NOEXEC, NULL\)' \
    'init +mount\([^)]*MS_REC\|MS_(PRIVATE|SLAVE)' \
    'init +execve?p?\("/bin/sh", \{"/bin/sh", "-c", '; do
    like $'\n'"$err" $'\n'"$call"
  done
  while IFS= read -r line; do # a stage, what it means, or: who, the call, some words on why
    like "$line" '^(── [a-z]|   [A-Z].*\.$|(run|init) +[a-z0-9_]+\(.*\)  +[^ ]+ [^ ]+)'
  done <<<"$err"
  run 0 run -it --log-level warning --explain --ephemeral --hostname box /bin/true
  for call in overlay sethostname 'pivot_root\("\.", "\."\)' setsid; do
    like "$err" "init +[^ ]*.*$call"
  done
  run 0 run /bin/true
  is "$err" ''
}

test_explain_stages() { # calls: --explain has headings in one order, folds what repeats, has names
  # for numbers and shows what the outside does; --explain=all leaves nothing out
  need root cgroup-v2
  local stages='a process tree of its own, mounts of its own, apart from the host, its limits,'
  run 0 run --explain --ephemeral -m 64m --pids-limit 99 /bin/true
  stages+=' its root, the door closes, what it must not see, what it may do, the command, the end,'
  is "$(sed -n 's/^── //p' <<<"$err" | sed 's/, and this file.*//' |
    grep -vx -e 'its name' -e 'its host name' | sed 's/$/,/' | paste -sd' ')" "$stages"
  is "$(grep -c PR_CAPBSET_DROP <<<"$err")" 1
  like "$err" 'PR_CAPBSET_DROP.* times, .*CAP_SYS_ADMIN.*: not even a file can give it back'
  like "$err" 'run +write\("[^"]*mydocker/ID/memory[a-z._]*", 67108864\) +--memory: '
  like "$err" 'run +write\("[^"]*mydocker/ID/pids.max", 99\)'
  like "$err" 'init +prctl\(PR_SET_PDEATHSIG, SIGKILL, '
  like "$err" 'init +mount_setattr\(AT_FDCWD, "[^"]*", 0, \{\.attr_set=MOUNT_ATTR_RDONLY\}'
  like "$err" 'PR_SET_SECCOMP, SECCOMP_MODE_FILTER, \{[0-9]+ steps: ALLOW, .*ERRNO\(EPERM\)'
  like "$err" 'init +capset\(.*CAP_CHOWN\|'
  unlike "$err" 'openat2|statfs|signalfd|capget|"self/fd/|CAP_CHECKPOINT_RESTORE, [0-9]'
  # one line for each path that is hidden, with its name, and one for all cgroup mounts
  is "$(sed -n '/must not see/,/^── its host/p' <<<"$err" |
    grep -oE '"/(proc|sys)/[a-z_/]+"' | sort | uniq -d)" ''
  like "$err" 'init +mount\("/dev/null", "/proc/(keys|kcore|timer_list)", NULL, MS_BIND, NULL\) +no'
  is "$(grep -c 'the namespace.s own part' <<<"$err")" 1
  run 0 run --explain --pid host --ephemeral /bin/true
  like "$err" $'\n── a process\n   It stays among the processes of the host'
  unlike "$err" 'process tree of its own'
  run 0 run --explain=all --ephemeral /bin/true
  like "$err" 'openat2'
  is "$(($(grep -c PR_CAPBSET_DROP <<<"$err") > 20))" 1
}

test_explain_others() { # calls: --explain with -d, exec, start and network create; it holds nothing
  # of the caller's
  need root
  local id
  id=$("${mydocker[@]}" run -d --explain --name "t$n" /bin/sleep 1000 2>err | cat)
  like "$id" '^[0-9a-f]{64}$'
  like "$(<err)" $'\n── the command\n.*init +execve\\("/bin/sleep"'
  run 0 exec --explain "t$n" /bin/true
  like "$err" 'join +setns\(.*join +execve\("/bin/true"'
  unlike "$err" $'\n''init '
  run 0 stop -t 0 "t$n"
  run 0 start --explain "t$n"
  like "$err" 'execve\("/bin/sleep"'
  run 0 rm -f "t$n"
  run 0 network create --explain --subnet 10.222.33.0/24 "x$$"
  like "$err" 'run +netlink\(NETLINK_ROUTE, "[^"]+", \{RTM_NEWLINK bridge '
  like "$err" 'RTM_NEWADDR 10.222.33.1/24.*NFT_MSG_NEWSETELEM'
  run 0 network rm "x$$"
  fails 125 '--explain=some' run --explain=some /bin/true
}

test_step() { # calls: --step stops before each stage, where a shell may look around
  need root
  local go='here\] $' steps=() stage
  for stage in 'apart from the host' 'its limits' 'its root' 'door closes' 'must not see' \
    'its host name' 'may do' 'the command'; do
    steps+=("${stage}[^]]*$go" $'\r')
  done
  tty 0 "process tree[^]]*$go" $'\r' "mounts of its own[^]]*$go" $'s\r' '# $' \
    $'echo in-$((6 * 7))\r' '^in-42' '' '# $' $'exit\r' "$go" $'\r' "its name[^]]*$go" $'\r' \
    "${steps[@]}" '^hello-there$' '' "the end[^]]*$go" $'\r' -- \
    "${mydocker[@]}" run --step --ephemeral /bin/echo hello-there
}

test_explain_images() { # calls: --explain with import, commit, build and pull
  need overlay
  own_state
  small_root root
  tar -C root -cf root.tar .
  run 0 import --explain root.tar "t$n:1"
  like "$err" $'── one more layer\n.*run +syncfs\\([^\n]*name\n.*run +rename\\('
  unlike "$err" 'symlink|mknod|fchown'
  run 0 run --name "t$n" "t$n:1" /bin/sh -c 'echo new >/new'
  run 0 commit --explain "t$n" "t$n:2"
  like "$err" $'── one more layer\n.*run +rename\\('
  printf 'FROM t%s:1\nRUN echo x >/x\n' "$n" | tee Dockerfile
  run 0 build --explain -t "t$n:3" .
  like "$err" '^── a build'
  like "$err" $'\n''── a process tree of its own'
  like "$err" 'init +execve\("/bin/sh"'
  run 125 pull --explain --insecure "127.0.0.1:1/t$n:1"
  like "$err" \
    'run +http\("(GET|HEAD)", "https?://127.0.0.1:1/v2/.*/manifests/1"\) +what it is made of'
}

test_explain_container() { # calls: `explain` tells of a container what it has and what is unusual,
  # of a privileged one, and of a process that is no engine's
  need root overlay /mnt
  local pid
  run 0 run -d --name "t$n" -m 64m --pids-limit 99 -v "$PWD:/mnt:ro" --ephemeral /bin/sleep 1000
  run 0 explain "t$n"
  like "$err$out" \
    $'process +[0-9]+, /bin/sleep 1000; inside it is 1; of mydocker, container [0-9a-f]'
  like "$out" $'\nown +cgroup ipc mnt net pid uts\nshared +with the host: [^\n]*user'
  like "$out" $'\nroot +overlay of [0-9]+ layers?, writable\n'
  like "$out" $'\nfrom host +'"[^ ]*${PWD##*/} at /mnt, read-only"
  like "$out" 'CHOWN \(give files to others\)'
  unlike "$out" 'SYS_ADMIN'
  like "$out" $'\nheld back +a filter of system calls, no_new_privs off'
  like "$out" $'\nlimits +memory [^ ]+ of 67.1MB, processes 1 of 99, processors any\n'
  like "$out" $'\nnetwork +lo: 127.0.0.1; listens at no port\nunusual +nothing$'
  pid=$("${mydocker[@]}" inspect -f '{{.State.Pid}}' "t$n")
  is "$("${mydocker[@]}" explain "$pid")" "$out"
  run 0 rm -f "t$n"
  fails 125 'no such container' explain "t$n"
  run 0 run -d --name "t$n" --privileged -v /etc:/mnt --ephemeral /bin/sleep 1000
  run 0 explain "t$n"
  for pid in 'all capabilities' 'no filter' '/etc is at /mnt, writable' '/proc/sys is writable' \
    'no limit of memory and processes'; do
    like "$out" $'\nunusual +[^\n]*'"$pid"
  done
  run 0 rm -f "t$n"
  run 0 explain $$
  like "$out" $'\nroot +the host.s own\n'
}

test_explain_is_true() { # calls: --explain tells what strace sees
  need strace
  local call seen told
  strace -f -qq -o trace -e trace=unshare,mount,umount2,pivot_root,sethostname,setsid \
    "${mydocker[@]}" run --explain --hostname box --read-only -t /bin/true >out 2>err
  cat trace err >&2
  for call in unshare mount umount2 pivot_root sethostname setsid; do
    seen=$(grep -cE "^[0-9]+ +$call\\(" trace || :)
    told=$(sed -nE "/^(run|init) +$call\\(/{s/.*  ([0-9]+) times, .*/\\1/;/^[0-9]/!s/.*/1/;p}" err |
      awk '{sum += $1} END {print sum + 0}')
    is "$call $seen" "$call $told"
  done
}

test_reexec() { # calls: run executes this same file again, as init, inside the new namespaces
  need strace
  strace -f -qq -v -s 200 -o trace -e trace=execve,unshare "${mydocker[@]}" run /bin/true
  cat trace >&2
  # the file itself, then itself as init, then the command
  "$PYTHON" -I - trace <<'PYTHON'
import re, sys
calls = re.findall(r"^(\d+) +(?:execve\(\"(.*?)\", \[(.*?)\], .*|unshare\((.*?)\)) += 0",
                   open(sys.argv[1]).read(), re.M)
outside = calls[0][0]
inside = next(pid for pid, *_ in calls if pid != outside)
assert all(pid in (outside, inside) for pid, *_ in calls), calls
mine = [path or flags for pid, path, _, flags in calls if pid == inside]
again = next(args for pid, path, args, _ in calls if pid == inside and path)
assert '"init"' in again and "python" in again, again
assert mine[-1] == "/bin/true" and "CLONE_NEWNS" in mine[0], mine
theirs = [flags for pid, _, _, flags in calls if pid == outside and flags]
assert theirs == ["CLONE_NEWPID"], calls
PYTHON
}

test_the_owners_way() { # calls: the core is os.unshare, os.fork, os.execvp,
  # a ctypes mount and argv[1]
  local word
  for word in 'os\.unshare\(' 'os\.fork\(' 'os\.execvp\(' 'ctypes' '(^|[^_])mount\(' \
    'sys\.argv\[1'; do
    has "$here/mydocker.py" "$word"
  done
}

# ── Failing ──────────────────────────────────────────────────────────────────

test_not_executable() { # fail: directory, file without x, bad interpreter line,
  # no program: 126 and the name
  echo 'echo hello' >plain
  printf '#!/no/such/interpreter\n' >script && chmod +x script
  printf '\x7fELF\x02\x01\x01 but no more' >garbage && chmod +x garbage
  printf 'echo hello\n' >noline && chmod +x noline
  mkdir dir
  fails 126 "/plain: permission denied" run "$PWD/plain"
  fails 126 "dir: " run ./dir
  fails 126 'garbage: exec format error' run ./garbage
  fails 126 'noline: exec format error' run ./noline
  fails 127 'script: .*/no/such/interpreter' run ./script
  fails 127 './missing: no such file' run ./missing
  fails 127 'plain/x' run ./plain/x
  fails 127 '\\xff' run $'/no/\xff\xfe'
  fails 126 '/plain: permission denied' run -it --log-level error "$PWD/plain"
  fails 127 'missing' run --init ./missing
}

test_read_only_state() { # fail: where the state can't be written, the hint says where else it
  # may be
  mkdir state
  mydocker=(unshare -m bash -ec 'mount -t tmpfs -o ro none state; exec "$@"' bash "${mydocker[@]}")
  fails 125 'state.*: read-only file system' --root "$PWD/state" run /bin/true
  like "$err" 'hint: --root DIR'
}

test_failure_one_file() { # fail: what went wrong is said as well where 1 and 2 are one file
  local got=0
  "${mydocker[@]}" run /no/such/program >said 2>&1 || got=$?
  is "$got" 127
  like "$(<said)" '/no/such/program: no such file'
}

test_forbidden_namespaces() { # fail: with namespaces forbidden the hint names the sysctl
  need unshare userns
  local kind got
  unshare -Ur true || skip 'no user namespace in here'
  for kind in pid mnt uts ipc net; do
    got=0
    unshare -Ur bash -c "echo 0 >/proc/sys/user/max_${kind}_namespaces && exec \"\$@\"" bash \
      "${mydocker[@]}" run /bin/touch started >"$scratch/stdout" 2>"$scratch/stderr" || got=$?
    read_output
    is "$got" 125
    one_line "hint: .*user.max_${kind}_namespaces"
    [[ ! -e started ]]
  done
}

test_output_closed() { # fail: output that nobody reads any more ends the command,
  # without a traceback
  set -o pipefail
  local status=0 command
  "${mydocker[@]}" run --init /usr/bin/seq 1000000 2>err | head -n 1 >out || status=$?
  is "$status $(<out) $(<err)" '141 1 '
  status=0 # PID 1 doesn't die of SIGPIPE, it sees the error
  "${mydocker[@]}" run /usr/bin/seq 1000000 2>err | head -n 1 >out || status=$?
  is "$status $(<out) $(<err)" '1 1 /usr/bin/seq: write error: Broken pipe'
  own_state
  background --name a /bin/echo hello
  run 0 wait a
  # head is gone before anything is said
  for command in 'run -t /usr/bin/seq 1000000' info 'run --help' --help --version 'ps -a' \
    'inspect a' 'logs a' 'run -d --name b /bin/sleep 1000'; do
    status=0
    # shellcheck disable=SC2086 # several words
    { sleep 0.1; "${mydocker[@]}" $command 2>err; } | head -c 0 || status=$?
    is "$status $(<err)" '141 '
  done
  run 0 ps -aq
  is "$out" "${id:0:12}" # b, whose id nobody has read, is no more
}

test_disk_full() { # fail: a full disk is one line, wherever it is
  need /mnt
  : >"$scratch/stdout"
  local status=0
  "${mydocker[@]}" info >/dev/full 2>"$scratch/stderr" || status=$?
  read_output
  is "$status" 125
  one_line 'no space left'
  status=0
  "${mydocker[@]}" run -t /bin/echo hello >/dev/full 2>"$scratch/stderr" || status=$?
  read_output
  is "$status" 125
  one_line 'no space left'
  "${mydocker[@]}" run /nosuch 2>/dev/full || status=$?
  is "$status" 127
  own_state # what says 125 leaves nothing
  status=0
  "${mydocker[@]}" run -d -v /mnt --cidfile id /bin/sleep 1000 >/dev/full 2>"$scratch/stderr" ||
    status=$?
  read_output
  is "$status" 125
  one_line 'no space left'
  nothing_on_record
  run 0 volume ls -q
  is "$out" ''
  [[ ! -e id ]]
}

test_odd_descriptors() { # fail: without /dev/null nothing starts, and says why; the encoding of
  # Python's streams is not that of our answers
  need unshare mount
  local status=0
  own_mounts 'mount -t tmpfs tmpfs /dev; exec "$@" 2>err' ps -a || status=$?
  err=$(<err)
  is "$status" 125
  one_line '^mydocker: start, on /dev/null: no such file'
  own_state
  background --name a --label x=ü /bin/echo grün
  run 0 wait a
  export PYTHONIOENCODING=ascii
  run 0 ps -a --format '{{.Command}} {{.Labels}}'
  is "$out" '"/bin/echo grün" x=ü'
  run 0 inspect -f .Config.Labels.x a
  is "$out" ü
  run 0 logs a
  is "$out" grün
}

test_failed_step() { # fail: when a step inside fails the command never starts
  mkdir sub
  fails 125 'mount' run --tmpfs "$PWD/sub:nonsense=1" /bin/touch started
  [[ ! -e started ]]
}

test_python_built_without() { # fail: a part that this Python was built without is named in one
  # line, and only when needed
  local without='import runpy, sys; sys.modules[sys.argv[1]] = None; sys.argv[:2] = []
runpy.run_path(sys.argv[0], run_name="__main__")'
  lacks() { # lacks MODULE STATUS REGEX ARG...
    local got=0
    "$PYTHON" -S -c "$without" "$1" "$here/mydocker.py" "${@:4}" >"$scratch/stdout" \
      2>"$scratch/stderr" || got=$?
    read_output
    is "status $got" "status $2"
    ((got == 0)) || one_line "$3"
  }
  lacks _ctypes 125 'python, on _ctypes: ' run /bin/true
  lacks _socket 125 'python, on _socket: ' ps
  lacks _ssl 125 'python, on _ssl: ' pull registry.invalid/a
  lacks _ssl 0 '' run /bin/true
  printf '\x1f\x8b' >packed
  lacks zlib 125 "gzip data: .* this Python can't read" import packed name
  printf '\xfd7zXZ\0' >packed
  lacks _lzma 125 "lzma data: .* this Python can't read" import packed name
}

# ── Files, locks, processes, channels ────────────────────────────────────────

test_state_root_full() { # fail: a full disk under the state root means that the command never
  # starts
  need unshare mount
  local got
  mkdir full
  MYDOCKER_ROOT=$PWD/full/state own_mounts 'mount -t tmpfs -o size=64k,nr_inodes=10 tmpfs full
    head -c 1000000 /dev/zero >full/fill || :
    for i in {1..20}; do mkdir full/$i || break; done
    exec "$@" >out 2>err' run /bin/touch started || got=$?
  out=$(<out) err=$(<err)
  is "$got" 125
  one_line 'full/state.*: no space left'
  [[ ! -e started ]]
}

test_state_root_bad() { # fail: a state root that can't be made is named
  touch file
  MYDOCKER_ROOT=$PWD/file fails 125 'file.*: ' run /bin/true
  MYDOCKER_ROOT=/proc/nosuch fails 125 '/proc/nosuch.*: ' run /bin/true
}

test_relative_root() { # life: a state root that is named from here is the same one for the monitor
  local MYDOCKER_ROOT=state
  export MYDOCKER_ROOT
  background --name r /bin/sleep 1000
  run 0 --root ./state stop -t 0 r
  is "$(find / -maxdepth 1 -name state)" ''
  is "$(state_of r)" exited
  run 0 exec --help
  like "$out" '--privileged'
  run 0 rm r
}

test_no_trace_on_disk() { # main: no file is left beside the program, the state root is root's alone
  [[ ! -e $here/__pycache__ ]]
  run 0 run /bin/true
  [[ ! -e $MYDOCKER_ROOT ]] || is "$(stat -c %a:%u "$MYDOCKER_ROOT")" 700:0
}

test_no_abstract_sockets() { # security: mydocker has no socket that a container could reach,
  # CVE-2020-15257
  local process inode
  run 0 run -d -it --rm --name "t$n" /bin/sh
  start run /bin/sh -c 'echo ready; exec sleep 1000'
  wait_for has out ready
  for process in "$pid" $(children "$pid") "$(monitor_of "t$n")" "$(pid_of "t$n")"; do
    for inode in $(find "/proc/$process/fd" -lname 'socket:*' -printf '%l\n' | tr -dc '0-9\n'); do
      unlike "$(grep -w "$inode" /proc/net/unix)" '@|/'
    done
  done
  run 0 rm -f "t$n"
  kill -KILL "$pid"
  ended 137
}

test_state_is_roots() { # security: nobody but root reaches what images and containers have,
  # CVE-2021-41091
  make_image "t$n:1"
  run 0 run --name "t$n" "t$n:1" /bin/sh -c :
  is "$(stat -c %a "$MYDOCKER_ROOT")" 700
  is "$(find "$MYDOCKER_ROOT" -mindepth 1 -maxdepth 1 -type d -perm /077)" ''
  run 0 rm "t$n"
}

# ── The command line ─────────────────────────────────────────────────────────

test_usage_errors() { # fail: a wrong command line is one line that names what is wrong
  run 0
  like "$out" '^Usage: mydocker'
  fails 125 'nosuch' nosuch
  fails 125 '--nope' --nope
  fails 125 'no .*command' run -it
  fails 125 'no .*command' run -it --
  fails 125 '--nope' run --nope=5 /bin/true
  fails 125 'nope' run -nope /bin/true
  fails 125 'itz' run -itz /bin/true
  fails 125 '-w|--workdir' run -w
  fails 125 '--workdir' run --workdir
  fails 125 '-e' run -it -e
  fails 125 '-hostname' run -hostname
  fails 125 '--env' run -e =x /bin/true
  fails 125 'loud' run --log-level loud /bin/true
  fails 125 'nosuchprobe' info nosuchprobe
  fails 125 "image name, on ''" run ''
}

test_image_or_command() { # fail: a name that is no image gets both ways to write it
  fails 125 'busybox' run busybox
  like "$err" $'\nhint: .*IMAGE.*/bin/'
  fails 125 'ls' run -it ls -l
  like "$err" '/bin/ls'
}

test_init_by_hand() { # fail: init typed by hand is refused
  fails 125 '^mydocker: init: ' init
  fails 125 '^mydocker: init: ' init /bin/ls
  fails 125 '^mydocker: init: ' init 0
  fails 125 '^mydocker: init: ' init 99
}

test_env_file_mark() { # env: a byte order mark is no part of the first variable's name
  printf '\xef\xbb\xbfA=1\nB=\xef\xbb\xbf2\n' >file
  run 0 run --env-file file /bin/sh -c 'echo "$A$B"'
  is "$out" $'1\ufeff2'
}

test_env_file_errors() { # fail: an env file that can't be read is named
  mkdir dir
  printf 'A=1\nb c=2\n' >bad
  fails 125 '--env-file, on missing: no such file' run --env-file missing /bin/true
  fails 125 '--env-file, on dir: is a directory' run --env-file dir /bin/true
  fails 125 'bad' run --env-file bad /bin/true
}

test_options_refused() { # life: options of the life cycle that make no sense are refused by name
  own_state
  fails 125 '--restart, on sometimes' run -d --restart sometimes /bin/true
  fails 125 '--restart, on on-failure:x' run -d --restart on-failure:x /bin/true
  fails 125 'on --rm: .*--restart' run -d --rm --restart always /bin/true
  fails 125 '--stop-signal, on NONE' run -d --stop-signal NONE /bin/true
  fails 125 '--stop-timeout, on soon' run -d --stop-timeout soon /bin/true
  fails 125 '--log-opt, on compress' run -d --log-opt compress=true /bin/true
  fails 125 '--log-opt max-file, on 0' run -d --log-opt max-file=0 /bin/true
  fails 125 '--log-opt max-file, on 4294967296: more than' run --log-opt max-file=4294967296 \
    /bin/true
  fails 125 '--signal, on 99' kill -s 99 x
  fails 125 '--filter, on colour' ps --filter colour=blue
  touch there
  fails 125 '--cidfile, on there: file exists' run -d --cidfile there /bin/true
  is "$(find state -path '*/containers/*' -o -path '*/names/*')" ''
}

test_version() { # cli: --version is as docker has it, and in the form that engines read of runc
  run 0 --version
  like "$out" $'^mydocker version [0-9]+\\.[0-9]+\\.[0-9]+\nspec: 1\\.[0-9]+\\.[0-9]+$'
  is "$err" ''
}

test_help() { # cli: --help shows the commands, COMMAND --help its options
  local name option
  run 0 --help
  like "$out" $'\n +run '
  like "$out" $'\n +info '
  sed -n 's/^  \([a-z]*\)  .*/\1/p' "$scratch/stdout" >names
  while read -r name; do
    run 0 "$name" --help
    like "$out" "^Usage: mydocker ${name}[ "$'\n]'
    is "$err" ''
  done <names
  run 0 run --help
  for option in '-i, --interactive' '-t, --tty' '-e, --env' --env-file --hostname '-w, --workdir' \
    '-u, --user' --init \
    --read-only --rm --ephemeral --log-level --explain; do
    like "$out" "$option"
  done
  is "$("${mydocker[@]}" help run)" "$out"
}

test_options() { # cli: every long option takes one dash or two, its value behind = or a space
  local option value
  touch vars
  for option in init read-only rm ephemeral explain; do
    run 0 run "-$option" /bin/echo one
    is "$out" one
    run 0 run "--$option" /bin/echo two
    is "$out" two
  done
  run 0 run -interactive -tty -log-level error /bin/echo one
  is "$out" $'one\r'
  while read -r option value; do
    run 0 run "-$option" "$value" /bin/echo one
    run 0 run "--$option" "$value" /bin/echo two
    run 0 run "-$option=$value" /bin/echo three
    run 0 run "--$option=$value" /bin/echo four
    is "$out" four
  done <<<'env A=1
env-file vars
hostname box
workdir /
user 0
log-level error'
  run 0 run -itw /usr --log-level error /bin/pwd
  is "$out" $'/usr\r'
  run 0 run -w/usr /bin/pwd
  is "$out" /usr
  run 0 run -u0 -eA=1 -e B=2 /bin/sh -c "echo \$A\$B"
  is "$out" 12
  # every option that the help names exists
  run 0 run --help
  grep -oE -- '--[a-z-]+' "$scratch/stdout" | sort -u >options
  while read -r option; do
    timeout -k 5 "$patience" "${mydocker[@]}" run "$option" >out 2>err || is $? 125
    unlike "$(<err)" 'unknown'
  done <options
  run 125 run --nope
  like "$err" 'unknown'
}

# A table of README.md whose first heading has the word "option" is about the commands that the
# heading names in backquotes; below the heading "command" what stands in backquotes is a command
# with its options. An option is there by any of its names.
readme_tables='
import os, re, sys

def names(text):
    return set(re.findall(r"(?<![\w\]-])--?([a-z][\w-]*|[A-Z]\b)", text))

offered, told = {}, {}
for command in os.listdir("help"):
    with open("help/" + command) as file:
        rows = file.read().partition("\nOptions")[2].split("\n")
    offered[command] = [names(row.split("  ")[1]) for row in rows if row.startswith("  -")]
with open(sys.argv[1]) as file:
    cells = [re.split(r"(?<!\\)\|", line)[1].replace("\\|", "|") if line[0] == "|" else ""
             for line in file]
kind, owners = "", []
for cell, below in zip(cells, cells[1:] + [""]):
    quoted = re.findall("`([^`]+)`", cell)
    if not cell:
        kind = ""
    elif set(below) == {"-"}:
        kind, owners = re.sub(".*(option).*", r"\1", cell).strip(), quoted
    elif kind == "option" and set(cell) > {"-"}:
        known = set().union(*(option for owner in owners for option in offered[owner]))
        for name in names(cell) - known:
            print("README.md has an option that there is not:", *owners, name)
        for owner in owners:
            told.setdefault(owner, set()).update(names(cell))
    elif kind == "command":
        for text in quoted:
            first, _, rest = re.match(r"([a-z]+)( ([a-z|]+)(?= |$))?", text).group(1, 2, 3)
            rest = rest if first in ("network", "volume", "system", "image") else None
            for command in [f"{first} {word}" for word in rest.split("|")] if rest else [first]:
                told.setdefault(command, set()).update(names(text))
                for name in names(text) - set().union(*offered.get(command, [])):
                    print("README.md has an option that there is not:", command, name)
told["create"] = told.get("create", set()) | told["run"]  # the same options
for command in told:
    told[command] |= told["run"] & {"explain", "step"}
for command in sorted({*told} - {*offered}):
    print("README.md has a command that there is not:", command)
for command in sorted({*offered} - {*told}):
    print("README.md lacks the command", command)
for command, options in offered.items():
    for option in options:
        if command in told and not option & told[command]:
            print("README.md lacks the option", command, *option)
'

test_readme() { # cli: README.md's tables have all commands and options, and none that there isn't
  local name
  [[ -e $here/README.md ]] || skip 'README.md is not beside the program'
  run 0 --help
  mkdir help
  cp "$scratch/stdout" help/mydocker
  sed -n '/Commands:$/,/^$/s/^  \([a-z]\+\( [a-z]\+\)\?\)  .*/\1/p' help/mydocker >names
  while read -r name; do
    # shellcheck disable=SC2086 # NETWORK LIST is two words
    run 0 $name --help
    cp "$scratch/stdout" "help/$name"
  done <names
  "$PYTHON" -I -c "$readme_tables" "$here/README.md" >differences
  is "$(<differences)" ''
}

test_dockers_words() { # command line: groups, help and version as docker has them, near misses, and
  # what is not here says what to use instead
  own_state
  run 0
  like "$out" '^Usage: mydocker .*'
  run 0 help image ls
  like "$out" '^Usage: mydocker images '
  run 0 container ls -a
  like "$out" '^CONTAINER ID '
  run 0 image ls -q
  run 0 network
  like "$out" '^NAME '
  run 0 volume
  like "$out" '^DRIVER '
  run 0 version -f '{{.Version}}'
  is "mydocker version $out" "$("${mydocker[@]}" --version | head -n 1)"
  run 0 system df
  like "$out" $'\nContainers +0 +0 +0B'
  fails 125 'mydocker, on rnu: no such command' rnu
  like "$err" 'hint: did you mean run\?'
  fails 125 'images, on --quite: unknown option' images --quite
  like "$err" 'hint: did you mean --quiet\?'
  fails 125 'on compose: mydocker' compose up
  like "$err" 'hint: instead: '
  fails 125 'on container fly: no such command' container fly
  like "$err" 'hint: container .*prune'
  run 0 rm -f nosuch
  is "$out$err" ''
  fails 125 nosuch rm nosuch
  run 0 rmi -f nosuch
  is "$out$err" ''
  fails 125 nosuch rmi nosuch
  fails 125 'on system: it takes one more word' system
  run 0 builder prune
  # the group says what is meant by a name
  run 0 volume create box
  run 0 inspect -f '{{.Mountpoint}}' box
  like "$out" /volumes/box/_data
  run 0 create --name box --rootfs / /bin/true
  run 0 container inspect -f '{{.Path}}' box
  is "$out" /bin/true
  fails 125 '^mydocker: image, on box: no such image' image inspect box
  fails 125 '^mydocker: container, on nosuch: no such container' container inspect nosuch
  fails 125 '^mydocker: inspect, on nosuch: no such container, image, volume or network' inspect \
    nosuch
}

test_templates() { # command line: --format takes Go's range, if, with, variables, pipes, functions,
  # and names what it doesn't know
  local template want
  own_state
  run 0 create --name box -l a=b -l x.y=z --rootfs / /bin/echo hello
  while IFS= read -r template && IFS= read -r want; do
    run 0 inspect -f "$template" box
    is "$out" "$want"
  done <<'END'
{{.Name}} {{ .State.Running }} {{.RestartCount}}{{/* no more */}}
/box false 0
{{.Config.Cmd}} {{.Config.Labels}}
[/bin/echo hello] map[a:b x.y:z]
{{json .Config.Labels}} {{index .Config.Labels "x.y"}}
{"a": "b", "x.y": "z"} z
.Config.Labels
{"a": "b", "x.y": "z"}
{{index .Config.Labels "no"}}{{.Config.Labels.no}}
<no value>
{{range .Config.Cmd}}<{{.}}>{{end}}{{range .Spec.annotations}}x{{else}}none{{end}}
</bin/echo><hello>none
{{range $k, $v := .Config.Labels}}{{$k}}={{$v}}{{$.RestartCount}};{{end}}
a=b0;x.y=z0;
{{$x := len .Path}}{{range $w := .Config.Cmd}}{{$w}}{{$x}},{{end}}
/bin/echo9,hello9,
{{if eq .State.Status "paused" "created"}}yes{{else}}no{{end}}
yes
{{if .State.Pid}}a{{else if and .Config.Cmd (not .State.Pid)}}b{{else}}c{{end}}
b
{{with .Config}}{{len .Cmd}}{{index .Cmd 1}}{{end}}
2hello
{{if or (gt .RestartCount 0) (ne .Path "x")}}{{(index .Config.Labels).a}}{{end}}
b
{{.Path | upper | printf "%-12s|" | print "<"}}
</BIN/ECHO   |
{{join .Config.Cmd " "}} {{"aB c" | title}} {{index (split "a,b" ",") 1}} {{slice .Path 1 4}}
/bin/echo hello AB C b bin
{{printf "%05d %.2s %q %v %% %-4s|" .RestartCount .Path "a" .Config.Cmd `b`}}
00000 /b "a" [/bin/echo hello] % b   |
x  {{- "  y" -}}  z{{print 1 "a"}}{{"}}"}}{{len "a\"b"}}\t!
x  yz1a}}3	!
END
  run 0 inspect -f '{{println .Path .RestartCount}}{{.Name}}' box
  is "$out" $'/bin/echo 0\n/box'
  while IFS= read -r template && IFS= read -r want; do
    fails 125 "^mydocker: --format, on .*: $want" inspect -f "$template" box
    unlike "$err" 'bug in'
  done <<'END'
{{.Nothing}}
there is no .Nothing
{{.Config.Nothing.a}}
there is no .Config.Nothing.a
{{html .Name}}
html isn't known
{{template "x"}}
template isn't known
{{if .Name}}
if without end
{{end}}
end without if, range or with
{{.Name
\{\{ without \}\}
{{(.Name}}
\( without \)
{{.Name |}}
an action without a value
{{printf "%d" .Name}}
printf: %d isn't for /box
{{printf "%9999999s" .Name}}
printf: %9999999s is too wide
{{eq .RestartCount "0"}}
0 can't be compared with 0
{{join .Config.Cmd}}
join: not with 1 operand
{{index .Config.Cmd 7}}
index: there is no 7
{{$x}}
there is no variable \$x
{{.Name "x"}}
/box is no function
END
  run 0 ps -a --format 'table {{.Names}}\t{{upper .State}}'
  is "$out" $'NAMES   STATE\nbox     CREATED'
  run 0 ps -a --format '{{if eq .State "created"}}{{.Label "x.y"}}{{end}}{{.Label "no"}}'
  is "$out" z
  fails 125 '\{\{ without' volume ls --format '{{.Name' # of which there is none
  for want in if range '('; do # 3,000 in each other
    printf -v template '%.0s{{'"$want"' .ID}}' {1..3000}
    [[ $want != '(' ]] || printf -v template '%.0s(' {1..3000}
    [[ $want != '(' ]] || template="{{${template}1${template//(/)}}}"
    fails 125 'nested too deeply|without end' ps -a --format "$template"
    like "${err: -200}" 'nested too deeply$'
  done
}

test_docker_options_elsewhere() { # command line: docker's options that there aren't say what to use
  # instead, a slip what it was near to; a group's help has its words; what is wrong is named
  own_state
  run 0 container --help
  like "$out" '^Usage: mydocker container COMMAND .*'$'\n''  ls  .*'$'\n''  wait  '
  is "$("${mydocker[@]}" help network)" "$("${mydocker[@]}" network -h)"
  run 0 system --help
  like "$out" $'\n  df  '
  fails 125 'run, on --gpus: unknown option.hint: instead: --device' run --gpus all x
  fails 125 'mydocker, on -H: unknown option.hint: instead: ssh' -H tcp://x ps
  fails 125 'on --nam: unknown option.hint: did you mean --name\?' run --nam x x
  fails 125 'on --no-such: unknown option.hint: see run --help' run --no-such x
  fails 125 '^mydocker: --pull, on bogus: not missing, always or never$' run --pull=bogus "x$n"
  fails 125 "image name, on 'Big': .*hint: it is " run Big
  fails 125 "image, on x$n: no such image.hint: an image: run IMAGE" run --pull=never "x$n"
  fails 125 '^mydocker: --tmpfs, on rel: the place' run --rm --tmpfs rel --rootfs / /bin/sh
  fails 125 '^mydocker: --mount, on rel: the place' \
    run --rm --mount type=tmpfs,dst=rel --rootfs / /bin/sh
  fails 125 '^mydocker: --tmpfs, on /tmp:foo: unknown mount option foo' \
    run --rm --tmpfs /tmp:foo --rootfs / /bin/sh
  fails 125 '^mydocker: --driver, on overlay: there is no other than bridge' \
    network create -d overlay x
  fails 125 '^mydocker: --gateway, on 10.9.1.1: it needs --subnet' \
    network create --gateway 10.9.1.1 x
  fails 127 "exec, on '': executable file not found" run --rm --rootfs / ''
}

# ── Outside ──────────────────────────────────────────────────────────────────

test_killed_while_starting() { # monitor: killed at any moment of the start, it leaves no process
  need strace
  local point outside inside
  own_state
  # At each of these calls one process stops itself, inside or (at rename, poll) outside.
  for point in prctl:1 mount:1 renameat:2 mount:4 poll:1 sethostname:1 capset:1 setsid:1; do
    rm -f trace
    strace -f -q -o trace -e "trace=execve,${point%:*}" \
      -e "inject=${point%:*}:signal=STOP:when=${point#*:}" \
      "${mydocker[@]}" run --hostname box /bin/sleep 1000 >out 2>err &
    wait_for has trace 'stopped by SIGSTOP'
    outside=$(children $!)
    inside=$(children "$outside")
    [[ $inside ]] || fail "$point comes before there is a process inside"
    kill -KILL "$outside"
    wait_for gone "$inside"
    wait $! || :
    # It was in the middle of the start; while the outside polls, the inside may just get there
    [[ $point == poll:* ]] || unlike "$(<trace)" 'execve\("/bin/sleep"'
  done
  run 0 ps -a --format '{{.Status}}'
  unlike "$out" $'(^|\n)(Up|Created)'
  run 0 prune
  nothing_on_record
}

test_settled() { # monitor: after it has executed itself again, too, it carries status, signals,
  # input and size
  local inside
  cat >settled <<'END'
until pid=$(cat id) && child=$(cat "/proc/$pid/task/$pid/children") &&
  cat "/proc/$pid/cmdline" "/proc/${child% }/cmdline" | tr '\0' ' ' |
    grep -qE ' front [0-9]+ .* monitor [0-9]+ '
do sleep 0.02; done
touch there
END
  start run /bin/sh -c 'echo ready; until [ -e go ]; do sleep 0.05; done; echo out; exit 7'
  wait_for made_room "$pid"
  touch go
  ended 7
  is "$(<out)$(<err)" $'ready\nout'
  start run /bin/sh -c "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done"
  wait_for has out ready
  wait_for made_room "$pid"
  kill -TERM "$pid"
  ended 9
  tty 5 '^here$' "@do timeout $patience sh settled" '^ready$' '@size 33 44' \
    '' $'until [ "$(stty size)" = "33 44" ]; do :; done; exit 5\r' -- \
    bash -c 'echo $$ >id; exec "$@"' bash "${mydocker[@]}" run -it /bin/sh -c \
    'echo here; until [ -e there ]; do sleep 0.05; done; echo ready; exec /bin/sh'
  mkfifo keys
  exec 8<>keys
  "${mydocker[@]}" run -it /bin/cat <keys >out 2>err 8>&- &
  pid=$!
  echo one >&8
  wait_for has out one
  wait_for made_room "$pid"
  printf two >&8
  exec 8>&-
  ended 0
  like "$(<out)" 'one.*two'
  start run --init /bin/sh -c 'echo ready; exec sleep 1000'
  wait_for has out ready
  wait_for made_room "$pid"
  inside=$(children "$pid")
  kill -KILL "$pid"
  ended 137
  wait_for gone "$inside"
}

test_small_monitor() { # monitor: while it waits it takes a fraction of the program's memory
  [[ -e /proc/self/smaps_rollup ]] || skip 'needs smaps_rollup'
  local large part=2
  [[ ! ${COMPILED-} ]] || part=1 # where nothing was compiled there is less to give back
  own_state
  background --name m /bin/sleep 1000
  wait_for made_room "$(monitor_of m)"
  start exec m /bin/sh -c 'echo ready; exec sleep 1000' # this one stays what it is
  wait_for has out ready
  large=$(pss "$pid")
  is "$(made_room "$pid" && echo small)" ''
  (($(pss "$(monitor_of m)") * part < large))
  kill -KILL "$pid"
  ended 137
  start run /bin/sleep 1000
  wait_for made_room "$pid"
  (($(pss "$pid") * part < large))
  kill -KILL "$pid"
  ended 137
  run 0 rm -f m
}

test_many_at_once() { # monitor: containers started at once don't disturb each other
  local i
  for i in {1..12}; do
    "${mydocker[@]}" run --hostname "box$i" /bin/sh -c "echo \$HOSTNAME; exit $i" >"out$i" &
    eval "pid$i=$!"
  done
  for i in {1..12}; do
    pid=pid$i
    pid=${!pid}
    ended "$i"
    is "$(<"out$i")" "box$i"
  done
}

test_ignored_child_signal() { # monitor: a caller that ignores SIGCHLD still gets the status
  local got=0
  "$PYTHON" -I -c 'import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.execv(sys.argv[1], sys.argv[1:])' "${mydocker[@]}" run /bin/sh -c 'exit 7' || got=$?
  is "$got" 7
}

test_large_command() { # monitor: a megabyte of arguments and a large environment arrive
  local i args=()
  for i in {1..100}; do args+=("$(printf '%010000d' "$i")"); done
  run 0 run -e "BIG=${args[1]}${args[2]}" /bin/sh -c "echo \$# \${#BIG}
      printf '%s\\n' \"\$@\" | sha256sum" sh "${args[@]}"
  is "$out" "100 20000"$'\n'"$(printf '%s\n' "${args[@]}" | sha256sum)"
}

test_locale() { # monitor: bytes stay what they are in any locale
  local locale got
  # of a locale that isn't there Python makes C
  if localedef -i zh_CN -f GBK ./zh_CN.GBK; then export LOCPATH=$PWD; fi
  for locale in C C.UTF-8 zh_CN.GBK nosuch; do
    env "LC_ALL=$locale" "${mydocker[@]}" run -e $'V=\xe9中' /bin/sh -c "printf %s \"\$1\$V\"" sh \
      $'\xff中' >out
    is "$(<out)" $'\xff中\xe9中'
    got=0
    env "LC_ALL=$locale" "${mydocker[@]}" run $'/nosuch/\xff中' 2>err || got=$?
    is "$got" 127
    is "$(<err)" 'mydocker: exec, on /nosuch/\xff中: no such file or directory'
  done
  env LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 "${mydocker[@]}" run /bin/echo -n $'\xff中' >out
  is "$(<out)" $'\xff中'
}

# ── Inside ───────────────────────────────────────────────────────────────────

test_workdir_errors() { # fail: a working directory that isn't there is an error on the host's root
  touch file
  fails 125 "/no/such/dir: no such file" run -w /no/such/dir /bin/true
  [[ ! -e /no/such ]]
  fails 125 'file: not a directory' run -w "$PWD/file" /bin/true
  mkdir gone && cd gone && rmdir ../gone
  fails 125 '(current|working|workdir).*no such file' run /bin/true
  run 0 run -w / /bin/pwd
  is "$out" /
}

test_workdir() { # root: the command starts where the caller is, or where -w says
  mkdir 'a dir' && ln -s 'a dir' link && cd 'a dir'
  run 0 run /bin/pwd
  is "$out" "$PWD"
  run 0 run -w /usr /bin/pwd
  is "$out" /usr
  run 0 run --workdir=/usr/bin/.. /bin/pwd
  is "$out" /usr
  run 0 run -w "${PWD%/*}/link" /bin/pwd
  is "$out" "$PWD"
}

test_hostname() { # root: the host name is the host's, or what --hostname says,
  # in the container only
  local before
  before=$(</proc/sys/kernel/hostname)
  run 0 run /bin/sh -c "cat /proc/sys/kernel/hostname; echo \$HOSTNAME"
  is "$out" "$before"$'\n'"$before"
  run 0 run --hostname box7 /bin/sh -c "cat /proc/sys/kernel/hostname; echo \$HOSTNAME"
  is "$out" $'box7\nbox7'
  is "$(</proc/sys/kernel/hostname)" "$before"
  fails 125 'hostname' run --hostname "$(printf '%065d' 0)" /bin/true
}

test_environment() { # user: the environment is clean but for what the options say
  printf '# comment\n\nF1=one\n  F2=two words "quoted"\nSECRET\nNOSUCH\nA=file\n' >vars
  export SECRET=s3cret LD_LIBRARY_PATH=/nowhere OTHER=other
  run 0 run /usr/bin/env
  is "$(sort <<<"$out")" \
    "HOME=/root"$'\n'"HOSTNAME=$(</proc/sys/kernel/hostname)"$'\n'"$(grep ^PATH= "$scratch/stdout")"
  like "$out" '(^|'$'\n'')PATH=/[^'$'\n'']*/bin'
  run 0 run -e A=1 -e 'B=x  "y"' -e C= -e OTHER -e NOSUCH -e D==a=b --env-file vars /usr/bin/env -0
  tr '\0' '\n' <"$scratch/stdout" | grep -vE '^(PATH|HOME|HOSTNAME)=' | LC_ALL=C sort >got
  printf '%s\n' A=1 'B=x  "y"' C= D==a=b F1=one 'F2=two words "quoted"' OTHER=other SECRET=s3cret |
    cmp - got
  run 0 run -e $'A=\xff\n\x01' -e PATH=/bin -e HOME=/x -e $'K\xff=1' /usr/bin/env -0
  has "$scratch/stdout" HOME=/x
  tr '\0' '@' <"$scratch/stdout" >got
  LC_ALL=C has got $'PATH=/bin@'
  LC_ALL=C grep -qa $'A=\xff$' got
  LC_ALL=C grep -qa $'K\xff=1@' got
  run 0 run -t /usr/bin/env
  like "$out" 'TERM=[a-z]'
  env -i "${mydocker[@]}" run /usr/bin/env >got
  has got '^HOME=/root$'
}

test_descriptors() { # user: no open file of the caller's or of mydocker's reaches the container,
  # CVE-2024-21626
  local fd
  run 0 run /bin/sh -c 'echo /proc/self/fd/*' 8</dev/null 9</etc 20<>file
  is "$out" '/proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 /proc/self/fd/3'
  run 0 run -it --log-level error /bin/sh -c 'echo /proc/self/fd/*' 9</etc
  is "$out" $'/proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 /proc/self/fd/3\r'
  run 0 run --init --cap-add SYS_PTRACE /bin/sh -c 'echo /proc/1/fd/* /proc/self/fd/*
      ls -l /proc/1/fd' 9</etc
  unlike "$out" '/etc|socket:|memfd|/proc/1/fd/3'
  like "$out" ' /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 /proc/self/fd/3'$'\n'
  for ((fd = 3; fd < 13; fd++)); do
    fails 125 "/proc/self/fd/$fd: " run -w "/proc/self/fd/$fd" /bin/true 9</etc 11</
  done
}

test_clean_process() { # user: the command starts with no signal blocked or ignored
  run 0 run /bin/grep -E '^(SigIgn|SigBlk|Threads):' /proc/self/status
  is "$out" $'Threads:\t1\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000000'
  run 0 run -it --init --log-level error /bin/grep -E '^(SigIgn|SigBlk):' /proc/self/status
  is "$out" $'SigBlk:\t0000000000000000\r\nSigIgn:\t0000000000000000\r'
}

test_init_option() { # init: --init puts a reaper before the command
  run 7 run --init /bin/sh -c "echo \$\$; exit 7"
  like "$out" '^[2-9]$'
  run 0 run --init /bin/sh -c "for i in 1 2 3 4 5; do (sleep 0.0\$i & exec true) & done; wait
    i=0; while [ \$i -lt 100 ] &&
      grep -qE '^(State:.Z|Name:.sleep)' /proc/[0-9]*/status 2>/dev/null; do
      sleep 0.1; i=\$((i+1))
    done
    grep -h '^State:.Z' /proc/[0-9]*/status; :"
  is "$out$err" ''
  # the end of the command is the end of the container
  run 0 run --init /bin/sh -c 'sleep 1000 & exit 0'
  run 143 run --init /bin/sh -c "kill -TERM \$\$"
  tty 0 '[#$] $' $'sh -c "echo b""usy; exec sleep 1000"\r' '^busy$' $'\x1a' 'Stopped|Suspended' '' \
    '[#$] $' $'exit 0\r' 'stopped jobs' $'exit 0\r' -- \
    "${mydocker[@]}" run -it --init /bin/sh
}

test_init_signals() { # init: --init passes signals on to the command
  local signal
  for signal in TERM INT HUP QUIT USR1 USR2; do
    start run --init /bin/sh -c "trap 'echo got; exit 3' $signal; echo ready
        while :; do sleep 0.05; done"
    wait_for has out ready
    kill -"$signal" "$pid"
    ended 3
    has out got
  done
  start run --init /bin/sleep 1000 # which as PID 1 would ignore it
  wait_for eval '[[ $(cat "/proc/$(children "$(children "$pid")")/comm") == sleep ]]'
  kill -TERM "$pid"
  ended 143
}

# ── Root file system ─────────────────────────────────────────────────────────

test_shared_root() { # root: nothing reaches a host whose mounts are shared, as systemd makes them
  need unshare mount /mnt
  unshare -m --propagation unchanged bash -exc "mount --make-rshared /
    cp /proc/self/mountinfo before
    \"\$@\" run /bin/true
    \"\$@\" run -it --read-only --ephemeral --hostname x /bin/true
    \"\$@\" run --privileged /bin/sh -c 'mount -t tmpfs none /mnt'
    cmp before /proc/self/mountinfo; [[ -e /proc/\$\$/stat ]]" bash "${mydocker[@]}"
}

test_chroot() { # root: from a chroot(2), whose directory is a mount point or isn't, no way leads to
  # the root around it: not out of a container, and not by exec
  need unshare mount chroot overlay
  own_state
  small_root root
  touch root/inside
  cat >climb.py <<'END'
import os
top = os.open("/", os.O_RDONLY)
os.chroot("/tmp")
os.fchdir(top)
for _ in range(50):
    os.chdir("..")
print(*os.listdir("."))
END
  PYTHON=$PYTHON own_mounts '
    for top in bound plain; do
      mkdir "$top"
      [ "$top" = plain ] || mount --bind "$top" "$top"
      touch "$top/around"
      for path in "/$(cut -d/ -f2 <<<"$PWD")" /*; do
        if [ -L "$path" ]; then
          cp -a "$path" "$top"
        elif [ -d "$path" ] && [ ! -d "$top$path" ]; then
          mkdir "$top$path"
          mount --rbind "$path" "$top$path"
        fi
      done
      words=(chroot "$PWD/$top" "$@")
      [ "$("${words[@]}" run /bin/sh -c "cd /; echo ar*")" = around ]
      [ "$("${words[@]}" run "$PYTHON" -I "$PWD/climb.py" | tr " " "\n" | grep around)" = around ]
      "${words[@]}" import "$PWD/root" "$top" >/dev/null
      [ "$("${words[@]}" run --rm "$top" /bin/sh -c "cd /; echo in*; cd tmp; pwd")" = "inside
/tmp" ]
      "${words[@]}" run -d --name c --network none "$top" sleep 1000 >/dev/null
      [ "$("${words[@]}" exec c /bin/sh -c "cd /; echo in*")" = inside ]
      "${words[@]}" cp c:/inside "$PWD/out"
      "${words[@]}" stop -t 0 c >/dev/null
      "${words[@]}" cp c:/inside "$PWD/out"
      "${words[@]}" rm c >/dev/null
      "${words[@]}" info overlay >/dev/null
      umount -R "$top/proc"
      status=0
      env -u MYDOCKER_ROOT "${words[@]}" ps >out 2>err || status=$?
      [ "$status $(cat out err)" = "125 mydocker: start, on /proc: it must be mounted
hint: mount -t proc proc /proc" ]
      mount --bind /sys "$top/dev" # something that has no null
      status=0
      "${words[@]}" ps >out 2>err || status=$?
      [ "$status" = 125 ]
      grep "^mydocker: start, on /dev/null: no such file or directory" err
      grep "^hint: mount -t devtmpfs" err
    done'
  nothing_on_record
}

test_twenty_runs() { # root: twenty runs in a row leave nothing
  local i
  export MYDOCKER_ROOT=$PWD/state # a fresh one
  cp /proc/self/mountinfo before
  for ((i = 0; i < 20; i++)); do run 0 run /bin/true; done
  cmp before /proc/self/mountinfo
  is "$(find state -mindepth 2)" ''
}

test_read_only() { # root: --read-only lets nothing be written
  local name=.mydocker-test.$unique place
  for place in "$here" "$PWD" /etc / /dev; do
    run 0 run --read-only /bin/sh -c "echo >'$place/$name' || :"
    like "$err" 'Read-only file system'
    [[ ! -e $place/$name ]] || { rm "$place/$name"; fail "it wrote to $place"; }
  done
  run 1 run --read-only /bin/touch "$PWD/x"
  like "$err" 'Read-only file system'
  touch x
  run 0 run --read-only /bin/sh -c 'echo hello >/dev/null; cat /proc/version'
}

test_ephemeral() { # root: --ephemeral lets anything be written, and the host keeps every byte
  need overlay
  # for the trap they outlive the function
  canary=/etc/mydocker-test.$unique shm=/dev/shm/mydocker-test.$unique
  trap 'rm -f "$canary" "$shm"' EXIT
  run 0 run --ephemeral /bin/sh -c "echo new >$canary; cat $canary"
  is "$out" new
  [[ ! -e $canary ]] # else the rest would do harm
  touch keep "$shm"
  listing /etc "$PWD" >../earlier
  run 0 run --ephemeral /bin/sh -c "set -e
    echo >>/etc/passwd; rm '$PWD/keep'; echo >'$PWD/new'
    mkdir /mydocker-test; rm -f $shm; chmod 777 /etc; chown 1:1 /etc/passwd"
  listing /etc "$PWD" | cmp - ../earlier
  [[ -e $shm && ! -e /mydocker-test ]]
  run 0 run --ephemeral /bin/sh -c "rm -rf /etc; ls /etc 2>&1; echo still
      ls /mydocker-test $canary 2>&1; :"
  like "$out" $'No such file.*\nstill\n.*No such file.*\n.*No such file'
  listing /etc "$PWD" | cmp - ../earlier
  run 0 run --ephemeral --read-only /bin/sh -c "touch /x 2>/dev/null || echo no"
  is "$out" no
}

test_ephemeral_mounts() { # root: --ephemeral protects the other mounted file systems too
  need overlay
  mkdir sub
  own_mounts 'mount -t tmpfs -o mode=755 tmpfs sub
    echo precious >sub/file; mkdir sub/dir
    "$@" run --ephemeral /bin/sh -c "rm -rf sub/file sub/dir; echo >sub/new
      rm -rf /run/* /home/* /boot/*; :"
    [[ $(cat sub/file) == precious && -d sub/dir && ! -e sub/new ]]'
}

test_ephemeral_devices() { # root: --ephemeral has devices, a /proc and a /sys of its own
  need overlay
  run 0 run --ephemeral /bin/sh -c "set -e; echo x >/dev/null
    head -c 3 /dev/zero | wc -c; head -c 3 /dev/urandom | wc -c
    rm -f /dev/null; ls /sys >/dev/shm/x; echo /proc/[0-9]*"
  is "$out" $'3\n3\n/proc/1'
  [[ -c /dev/null ]]
  run 0 run --ephemeral /usr/bin/env -i "$PYTHON" -I -c 'import os
os.openpty()
print(os.getpid())'
  is "$out" 1
}

test_ephemeral_nested() { # root: --ephemeral works in a privileged container, whose /dev is no
  # host's
  need overlay
  own_mounts 'mount -t tmpfs -o mode=755 tmpfs /dev; mkdir /dev/shm /dev/pts
    for row in "null 3" "zero 5" "full 7" "random 8" "urandom 9"; do
      mknod -m 666 "/dev/${row% *}" c 1 "${row#* }"
    done
    "$@" >out' run --ephemeral /bin/sh -c 'echo x >/dev/null; head -c 3 /dev/zero | wc -c
      ls -l /dev/urandom'
  like "$(<out)" $'^3\ncrw-rw-rw-[^\n]* /dev/urandom$'
}

test_ephemeral_race() { # root: --ephemeral leaves out a mount that is gone when its turn comes
  need overlay flock unshare mount
  mkdir sub other
  touch other/file
  export MYDOCKER_ROOT=$PWD/state
  run 0 ps # makes the state root
  own_mounts 'mount -t tmpfs tmpfs sub
    touch sub-file
    mount --bind other/file sub-file
    mkfifo go
    flock state/containers cat go & # run waits for this when it has looked at the mounts
    while flock -n state/containers true; do sleep 0.05; done
    "$@" >out 2>err &
    until grep -q -- "-> FLOCK .* $! " /proc/locks; do sleep 0.05; done
    umount sub sub-file
    rmdir sub
    rm sub-file
    echo >go
    wait $!' run --ephemeral /bin/sh -c 'echo hello'
  is "$(<out)$(<err)" hello
}

test_image_kernel_files() { # root: a container from an image has Docker's /proc, /sys and /dev
  make_image "t$n:1"
  run 0 run --rm "t$n:1" /bin/cat /proc/self/mountinfo
  like "$out" ' / rw[^ ]* '
  like "$out" ' /proc rw,nosuid,nodev,noexec[^ ]* [^-]*- proc '
  like "$out" ' /sys ro,nosuid,nodev,noexec[^ ]* [^-]*- sysfs '
  like "$out" ' /sys/fs/cgroup ro,nosuid,nodev,noexec'
  like "$out" ' /dev rw,nosuid[^ ]* [^-]*- tmpfs [^ ]+ rw,size=65536k,mode=755'
  like "$out" ' /dev/pts rw,nosuid,noexec[^ ]* [^-]*- devpts [^ ]+ rw,gid=5,mode=620,ptmxmode=666'
  like "$out" ' /dev/shm rw,nosuid,nodev,noexec[^ ]* [^-]*- tmpfs [^ ]+ rw,size=65536k'
  like "$out" ' /dev/mqueue rw,nosuid,nodev,noexec[^ ]* [^-]*- mqueue '
  unlike "$out" "$PWD/(host|root)"
  run 0 run --rm "t$n:1" /bin/sh -c 'ls /dev; ls -l /dev
    for d in /sys /sys/fs/cgroup; do mkdir $d/x 2>/dev/null && echo $d; done
    echo x >/dev/null; cat /dev/null; echo x 2>/dev/null >/dev/full || echo full
    [ -t 0 ] || echo </dev/tty || echo none' 2>/dev/null
  like "$out" \
    $'^fd\nfull\nmqueue\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n'
  like "$out" $'crw-rw-rw- [^\n]*1, +3 [^\n]* null\n'
  like "$out" 'fd -> /proc/self/fd'
  like "$out" 'ptmx -> pts/ptmx'
  like "$out" $'\nfull\n'
  unlike "$out" $'\n/sys'
  run 0 run --rm -t "t$n:1" /bin/sh -c 'ls -l /dev/console; [ -t 0 ] && echo terminal
      id -u >/dev/tty'
  like "$out" 'crw[^ ]* .*/dev/console'
  like "$out" terminal
}

test_image_root_is_all() { # root: nothing of the host's root is left inside,
  # the working directory is inside
  make_image "t$n:1"
  run 0 run --rm "t$n:1" /bin/sh -c "ls /; pwd; ls -d '$PWD' /.pivot_root /.old 2>/dev/null; cd ..
      pwd; ls / | cat"
  like "$(sort -u <<<"$out" | tr '\n' ' ')" '^/ bin dev etc (lib[0-9]* )*proc root sys tmp (usr )?$'
  run 0 run --rm "t$n:1" /bin/sh -c 'ls -l /proc/self/fd/ | cat; cat /proc/mounts'
  unlike "$out" 'unreachable|/(home|boot) '
}

test_etc_files() { # root: /etc/hosts, hostname and resolv.conf are the container's own
  small_root root
  echo image >root/etc/hosts
  make_image "t$n:1"
  run 0 run --rm --hostname box "t$n:1" \
    /bin/sh -c 'cat /etc/hosts /etc/hostname /proc/sys/kernel/hostname; echo $HOSTNAME'
  like "$out" $'^127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n'
  like "$out" $'\tbox\nbox\nbox\nbox$'
  run 0 run --name "c$n" "t$n:1" /bin/sh -c 'cat /etc/hostname; cat /etc/resolv.conf >&2
      echo x >>/etc/hosts'
  like "$out" '^[0-9a-f]{12}$'
  like "$err" 'nameserver'
  unlike "$err" 'nameserver (127\.|::1)'
  run 0 export -o "$PWD/e.tar" "c$n"
  mkdir e
  tar -C e -xf e.tar
  is "$(<e/etc/hosts)" image
}

test_image_mount_table() { # root: the host's mount table never shows a container from an image,
  # or what it wrote
  make_image "t$n:1"
  cp /proc/self/mountinfo before
  start run --name "c$n" -v "v$n:/v" --tmpfs /mem "t$n:1" /bin/sh -c 'echo ready; exec sleep 1000'
  wait_for has out ready
  cmp before /proc/self/mountinfo
  is "$(find "$MYDOCKER_ROOT"/containers/*/rootfs -mindepth 1)" ''
  run 0 cp "c$n:/etc/passwd" "$PWD"
  cmp before /proc/self/mountinfo
  kill -KILL "$pid"
  ended 137
  cmp before /proc/self/mountinfo
  run 0 cp "c$n:/etc/passwd" "$PWD"
  run 0 export -o "$PWD/e.tar" "c$n"
  run 0 rm "c$n"
  cmp before /proc/self/mountinfo
}

test_kernel_place_is_a_link() { # root: /proc, /sys or /dev as a link or a file is refused,
  # CVE-2019-19921, CVE-2023-28642, CVE-2026-41579, CVE-2026-47766
  local name target
  make_canary
  for name in proc sys dev; do
    for target in "$PWD/canary" ../../../../..; do
      rm -rf root state
      small_root root
      ln -s "$target" "root/$name"
      mkdir -p "root/$PWD/canary"
      make_image "t$n:1"
      fails 125 "/$name.*(link|directory)" run --rm "t$n:1" /bin/sh -c 'echo started'
      canary_lives
      fails 125 "/$name.*(link|directory)" run --rootfs root /bin/sh -c 'echo started'
      canary_lives
    done
    rm -rf root state
    small_root root
    echo file >"root/$name"
    make_image "t$n:1"
    fails 125 "/$name" run --rm "t$n:1" /bin/sh -c 'echo started'
  done
}

test_kernel_place_below() { # root: links at /sys/fs/cgroup, /dev/shm, /dev/pts, /dev/null,
  # /dev/console lead nowhere, CVE-2025-31133, CVE-2025-52565
  make_canary
  small_root root
  mkdir -p root/sys/fs root/dev root/proc
  ln -s "$PWD/canary" root/sys/fs/cgroup
  ln -s "$PWD/canary" root/dev/shm
  ln -s ../../../../../../../../"$PWD/canary" root/dev/pts
  ln -s /proc/sys/kernel/core_pattern root/dev/null # CVE-2025-31133
  ln -s /proc/sysrq-trigger root/dev/console        # CVE-2025-52565
  mkdir -p "root/$PWD/canary"
  make_image "t$n:1"
  run 0 run --rm "t$n:1" /bin/sh -c "ls -l /dev/null /dev/zero; ls '$PWD/canary'; echo x >/dev/null"
  like "$out" 'crw-rw-rw-.* 1, +3 .*/dev/null'
  run 0 run --rm -t "t$n:1" /bin/ls -l /dev/console
  like "$out" '^crw.* /dev/console'
  canary_lives
  # a plain file as /dev/null
  rm root/dev/null
  echo file >root/dev/null
  run 0 import root "t$n:2"
  run 0 run --rm "t$n:2" /bin/ls -l /dev/null
  like "$out" '^crw-rw-rw-.* 1, +3 '
}

test_etc_is_a_link() { # root: /etc, or a file in it, as a link out of the image leads to no file of
  # the host's
  local target
  make_canary
  for target in "$PWD/canary" "../../../../../../../../$PWD/canary" / /proc/1 /nowhere/else; do
    rm -rf root state
    small_root root
    rm -r root/etc
    ln -s "$target" root/etc
    make_image "t$n:1"
    timeout -k 5 "$patience" "${mydocker[@]}" run --rm "t$n:1" /bin/sh -c ':' 2>err ||
      is "$? $(grep -c '^mydocker: ' err)" '125 1'
    canary_lives
  done
  rm -rf root state
  small_root root
  ln -s "$PWD/canary/file" root/etc/hosts
  ln -s "../../../../../../../../../$PWD/canary/new" root/etc/hostname
  ln -s hosts root/etc/resolv.conf
  make_image "t$n:1"
  timeout -k 5 "$patience" "${mydocker[@]}" run --rm "t$n:1" /bin/sh -c ':' || is "$?" 125
  canary_lives
}

test_destination_is_a_link() { # root: a volume's place that is a link stays inside the container,
  # CVE-2021-30465
  local target
  make_canary
  mkdir volume
  echo mine >volume/mine
  for target in / ../../../../../.. "../../../../../../../$PWD/canary" /proc/1/root; do
    rm -rf root state
    small_root root
    ln -s "$target" root/data
    make_image "t$n:1"
    timeout -k 5 "$patience" "${mydocker[@]}" run --rm -v "$PWD/volume:/data/in/it" "t$n:1" \
      /bin/sh -c ':' || is "$?" 125
    timeout -k 5 "$patience" "${mydocker[@]}" run --rm -v "$PWD/volume:/data" "t$n:1" \
      /bin/sh -c ':' || [[ $? -ge 125 ]]
    timeout -k 5 "$patience" "${mydocker[@]}" run --rm -v "new:/data/new" --tmpfs /data/mem \
      -w /data/work "t$n:1" /bin/sh -c ':' || is "$?" 125
    canary_lives
    is "$(ls volume)" mine
  done
  [[ ! -e /in && ! -e /new && ! -e /mem ]]
}

test_pivot_root_planted() { # root: names that engines use for the old root can be in the image
  make_canary
  small_root root
  ln -s "$PWD/canary" root/.pivot_root
  mkdir root/.old
  echo x >root/.pivot_root_file
  make_image "t$n:1"
  run 0 run --rm "t$n:1" /bin/sh -c 'readlink /.pivot_root; ls /.old'
  is "$out" "$PWD/canary"
  canary_lives
}

test_mount_on_proc() { # root: nothing is mounted on or under /proc, CVE-2019-16884, CVE-2025-52881
  local place
  small_root root
  mkdir root/proc volume
  ln -s /proc root/link
  ln -s /proc/self root/self
  make_image "t$n:1"
  for place in /proc /proc/self/attr /proc/sys ../proc /x/../proc/ //proc/sys; do
    run 125 run --rm -v "$PWD/volume:$place" "t$n:1" /bin/sh -c 'echo started'
    is "$out" ''
  done
  for place in /proc /proc/self/attr; do
    fails 125 '/proc' run --rm -v "v$n:$place" "t$n:1" /bin/sh -c 'echo started'
    fails 125 '/proc' run --rm --tmpfs "$place" "t$n:1" /bin/sh -c 'echo started'
    fails 125 '/proc' run --rm --mount "type=tmpfs,target=$place" "t$n:1" /bin/sh -c 'echo started'
    set_config "t$n:1" "{\"Volumes\": {\"$place\": {}}}"
    fails 125 '/proc' run --rm "t$n:1" /bin/sh -c 'echo started'
    set_config "t$n:1" '{"Volumes": {}}'
  done
}

test_mount_on_proc_by_link() { # root: nor by way of a link in the image
  local place
  small_root root
  mkdir root/proc volume
  ln -s /proc root/link
  ln -s proc root/relative
  rm -r root/tmp
  ln -s /proc/sys root/tmp
  make_image "t$n:1"
  for place in /link /link/sys /relative/self/attr /tmp /tmp/kernel; do
    fails 125 "$place|proc" run --rm -v "$PWD/volume:$place" "t$n:1" /bin/sh -c 'echo started'
  done
  rm -rf root/etc/hosts
  ln -s /proc/sys/kernel/core_pattern root/etc/hosts
  run 0 import root "t$n:2"
  fails 125 'hosts|proc' run --rm "t$n:2" /bin/sh -c 'echo started'
}

test_image_volumes_hostile() { # root: an image's Volumes are places inside it and nothing else,
  # CVE-2022-23648
  local json
  make_canary
  make_image "t$n:1"
  while read -r json; do
    set_config "t$n:1" "{\"Volumes\": {\"${json//CANARY/$PWD/canary}\": {}}}"
    timeout -k 5 "$patience" "${mydocker[@]}" run --rm "t$n:1" /bin/sh -c \
      'cat /proc/mounts; for d in /seen /seen/dir /data; do cat $d/file; echo bad >$d/file; done' \
      >out 2>&1 || [[ $? -eq 125 || $? -eq 1 ]]
    if has out secret; then fail "the container saw the host's files by $json"; fi
    canary_lives
  done <<'END'
/../../../../../../../../CANARY
/../../../../etc
CANARY:/seen
CANARY:/seen:rw
../../CANARY
..
/
data
END
}

test_image_user_and_dir_hostile() { # root: an image's WorkingDir and User are no way out,
  # CVE-2024-21626
  local number json
  make_image "t$n:1"
  for number in 3 5 9; do
    set_config "t$n:1" "{\"WorkingDir\": \"/proc/self/fd/$number\"}"
    run 125 run --rm "t$n:1" /bin/sh -c 'pwd; ls ..' 9</etc
    is "$out" ''
  done
  for json in '"4294967296"' '"-1"' '":"'; do
    set_config "t$n:1" "{\"WorkingDir\": \"/\", \"User\": $json}"
    run 125 run --rm "t$n:1" /bin/sh -c 'id -u'
    is "$out" ''
  done
}

test_rootfs_race() { # root: /proc or /etc flipped by one container while another starts never
  # reaches the host, CVE-2023-27561
  local i
  own_state
  make_canary
  small_root root
  mkdir root/proc root/bad
  ln -s "$PWD/canary" root/link
  flipper "$PWD/root/proc" "$PWD/root/link"
  for i in {1..10}; do
    timeout -k 5 "$patience" "${mydocker[@]}" run --rm --rootfs root /bin/sh -c ':' || is "$?" 125
    canary_lives
  done
  kill -KILL "$flipper"
}

test_volume_race() { # root: links flipped by one container while another starts on the same volume,
  # CVE-2021-30465, CVE-2024-45310
  local i
  make_canary
  mkdir shared shared/place source
  echo mine >source/mine
  ln -s "../../../../../../../../../../$PWD/canary" shared/link
  make_image "t$n:1"
  flipper "$PWD/shared/place" "$PWD/shared/link"
  for i in {1..20}; do
    timeout -k 5 "$patience" "${mydocker[@]}" run --rm -v "$PWD/shared:/v" \
      -v "$PWD/source:/v/place/new$i" -v "v$n:/v/place/dir/x" "t$n:1" \
      /bin/sh -c ':' || is "$?" 125
    canary_lives
  done
  kill -KILL "$flipper"
  is "$(ls source)" mine
}

test_rootfs_option() { # root: --rootfs runs on a directory as it is, writes and all
  own_state
  small_root root
  run 0 run --rootfs root /bin/sh -c 'echo new >/new; ls -d /bin; pwd; echo /proc/[0-9]*
      echo $HOSTNAME'
  like "$out" $'^/bin\n/\n/proc/1\n[0-9a-f]{12}$'
  is "$(<root/new)" new
  run 3 run --rm --rootfs root --read-only /bin/sh -c 'echo bad >/new; exit 3'
  is "$(<root/new)" new
  fails 125 'none' run --rootfs "$PWD/none" /bin/ls
}

test_image_read_only() { # root: --read-only leaves only volumes, /dev and tmpfs mounts to write to
  make_image "t$n:1"
  run 0 run --rm --read-only -v "v$n:/v" --tmpfs /mem "t$n:1" /bin/sh -c '
    for d in / /etc /tmp /root /v /mem /dev/shm; do touch $d/x 2>/dev/null && echo $d; done
    echo x 2>/dev/null >/etc/hosts || :'
  is "$out" $'/v\n/mem\n/dev/shm'
}

test_read_only_later() { # root: what the host mounts later on a read-only root isn't writable
  # inside, but a slave volume gets it
  need unshare mount
  local how
  mkdir later root
  small_root root
  mkdir root/later
  for how in --read-only "--read-only --rootfs $PWD/root" --ephemeral; do
    rm -f go out
    mkfifo go
    HOW=$how own_mounts '
      mount --make-rshared /
      if [[ $HOW == *--rootfs* ]]; then top=/later; else top=$PWD/later; fi
      "$@" run --rm -i $HOW -v "$PWD/later:/etc:rslave" /bin/sh -c "
        echo up; read x
        (: >$top/file) && echo written; ls -d $top/seen /etc/seen; read x" <go >out 2>&1 &
      exec 3>go
      until grep -q up out; do sleep 0.02; done
      mount -t tmpfs tmpfs later
      touch later/seen
      mount --bind later root/later
      echo >&3
      until grep -q "/etc/seen" out; do sleep 0.02; done
      cat out
      [[ ! -e later/file ]]
      exec 3>&-
      wait'
    unlike "$(<out)" '/later/seen$'
    like "$(<out)" $'\n/etc/seen'
  done
}

test_tmpfs_option() { # root: --tmpfs mounts an empty file system in memory, with the options given
  local option
  make_image "t$n:1"
  run 0 run --rm --tmpfs /etc --tmpfs /a/b:size=1m,mode=1770,exec \
    --mount type=tmpfs,target=/c,tmpfs-size=2m "t$n:1" \
    /bin/sh -c 'ls /etc/passwd 2>/dev/null; ls -ld /a/b; cat /proc/mounts'
  unlike "$out" passwd
  like "$out" 'drwxrwx--T'
  like "$out" ' /a/b tmpfs rw,nosuid,nodev,relatime,size=1024k,mode=1770'
  like "$out" ' /c tmpfs rw,nosuid,nodev,noexec[^ ]*size=2048k'
  like "$out" ' /etc tmpfs rw,nosuid,nodev,noexec'
  fails 125 '/x' run --rm --tmpfs /x:nonsense=1 "t$n:1" /bin/sh -c :
  for option in size=16E nr_blocks=18446744073709551616 nr_inodes=² size=-1 size=101% mode=99 \
    mode= uid=4294967295; do # to the kernel the first two are no limit at all
    fails 125 "^mydocker: --tmpfs ${option%=*}, on ${option#*=}" \
      run --rm --tmpfs "/x:$option" "t$n:1" /bin/sh -c :
  done
  for option in size=1P mode=8; do
    fails 125 "^mydocker: --mount tmpfs ${option%=*}, on ${option#*=}: " \
      run --rm --mount "type=tmpfs,target=/c,tmpfs-$option" "t$n:1" /bin/sh -c :
  done
  run 0 run --rm --tmpfs /x:size=10% "t$n:1" /bin/sh -c :
}

test_shm_size() { # root: --shm-size is the size of /dev/shm
  local size
  make_image "t$n:1"
  run 0 run --rm --shm-size 1m "t$n:1" /bin/cat /proc/mounts
  like "$out" '/dev/shm tmpfs [^ ]*size=1024k'
  for size in much '' ² 1.2.3m m; do
    fails 125 'shm-size' run --rm --shm-size "$size" "t$n:1" /bin/sh -c :
  done
}

test_device_option() { # root: --device adds a device of the host's, there or elsewhere
  make_image "t$n:1"
  run 0 run --rm --device /dev/null:/dev/hole --device /dev/full:/dev/sub/full "t$n:1" \
    /bin/sh -c 'ls -l /dev/hole; ls -l /dev/sub/full'
  like "$out" $'^c.* 1, +3 .*/dev/hole\nc.* 1, +7 .*/dev/sub/full$'
  run 0 run --rm --device /dev/null "t$n:1" /bin/ls -l /dev/null # one that is there anyway
  like "$out" '^c.* 1, +3 '
  fails 125 '/dev/none' run --rm --device /dev/none "t$n:1" /bin/sh -c :
  fails 125 '/etc/passwd' run --rm --device /etc/passwd "t$n:1" /bin/sh -c :
}

test_root_copied() { # root: where overlayfs doesn't work the layers are copied, with one warning
  need unshare
  make_image "t$n:1"
  run 0 run --name "c$n" "t$n:1" /bin/sh -c 'rm /etc/group; echo new >/new'
  timeout -k 5 "$patience" "${mydocker[@]}" commit "c$n" "t$n:2"
  # a state root on an overlay: the kernel refuses an upper directory there
  mkdir lower upper work merged
  mv state lower/state
  local merge='mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged
    export MYDOCKER_ROOT=$PWD/merged/state'
  own_mounts "$merge"'; "$@"' run --name "d$n" "t$n:2" \
    /bin/sh -c 'ls /etc; cat /new; echo more >/more' >out 2>err || cat err >&2
  is "$(<out)" $'hostname\nhosts\npasswd\nresolv.conf\nnew'
  is "$(grep -c '^mydocker: ' err)" 1
  NAME=d$n own_mounts "$merge"'
    "$@" export -o "$PWD/e.tar" "$NAME"
    "$@" rm "$NAME"'
  tar -tf e.tar | sort >names
  has names '^(\./)?more$'
}

# ── run ──────────────────────────────────────────────────────────────────────

test_image_config() { # images: the image's Entrypoint, Cmd, Env, WorkingDir and User are honoured
  make_image "t$n:1"
  set_config "t$n:1" '{
    "Entrypoint": ["/bin/sh", "-c", "echo $A $B $HOME; pwd; id -u; id -g; echo \"$@\"", "sh"],
    "Cmd": ["one", "two words"], "Env": ["A=1", "B=2 3", "HOME=/set"],
    "WorkingDir": "/made/here", "User": "user"}'
  run 0 run --rm "t$n:1"
  is "$out" $'1 2 3 /set\n/made/here\n1234\n5678\none two words'
  run 0 run --rm -e A=x -w /tmp -u 0 "t$n:1" other
  is "$out" $'x 2 3 /set\n/tmp\n0\n0\nother'
  fails 125 '--workdir, on sub: it needs to be an absolute path' run --rm -w sub "t$n:1"
  run 0 run --rm -e HOME= "t$n:1" # empty is as good as none, as with runc
  is "$(head -n 1 <<<"$out")" '1 2 3 /home'
}

test_entrypoint() { # images: --entrypoint takes the place of the image's,
  # whose Cmd then doesn't count
  make_image "t$n:1" -c 'ENTRYPOINT ["/bin/sh","-c","echo image"]' -c 'CMD ["arg"]'
  run 0 run --rm "t$n:1"
  is "$out" image
  run 0 run --rm --entrypoint /bin/ls "t$n:1" -d /etc
  is "$out" /etc
  fails 125 'command' run --rm --entrypoint '' "t$n:1"
  run 0 run --rm --entrypoint '' "t$n:1" /bin/sh -c 'echo none'
  is "$out" none
  fails 127 'nothing' run --rm --entrypoint /nothing "t$n:1"
  make_image "t$n:2"
  fails 125 'command' run --rm "t$n:2"
}

test_image_status() { # images: exit statuses and the environment are those of any container
  make_image "t$n:1"
  run 7 run --rm "t$n:1" /bin/sh -c 'exit 7'
  fails 127 '/none' run --rm "t$n:1" /none
  fails 127 'none' run --rm "t$n:1" none
  fails 126 '/etc' run --rm "t$n:1" /etc
  fails 125 'no such image' run --pull never "none$n"
  run 0 run --rm "t$n:1" sh -c 'echo $PATH $HOME; id -u'
  is "$out" $'/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin /root\n0'
  run 0 ps -a -q
  is "$out" ''
}

test_containers_stay() { # images: a container keeps what it wrote until rm, and no other sees it
  make_image "t$n:1"
  run 0 run --name "a$n" "t$n:1" /bin/sh -c 'echo mine >/etc/mine; rm /etc/group'
  run 0 run --rm "t$n:1" /bin/ls /etc
  like "$out" 'group'
  unlike "$out" 'mine'
  run 0 ps -a
  like "$out" "Exited \(0\).* a$n"
  fails 125 "a$n" run --name "a$n" "t$n:1" /bin/ls
  run 0 cp "a$n:/etc/mine" "$PWD"
  is "$(<mine)" mine
  run 0 rm "a$n"
  run 0 ps -aq
  is "$out" ''
  is "$(find "$MYDOCKER_ROOT/containers" -mindepth 1)" ''
}

test_shared_with_host() { # run: --pid, --ipc, --uts and --cgroupns host share what they say, and
  # -h, --domainname, --group-add, --annotation and --label-file are as docker has them
  local name
  for name in pid ipc uts cgroup; do
    is "$("${mydocker[@]}" run "--${name/cgroup/cgroupns}" host --ephemeral \
      /bin/readlink "/proc/self/ns/$name")" "$(readlink "/proc/self/ns/$name")"
    [[ $("${mydocker[@]}" run --ephemeral /bin/readlink "/proc/self/ns/$name") != \
      "$(readlink "/proc/self/ns/$name")" ]]
  done
  run 0 run --cgroupns host --ipc host /bin/sh -c 'ls /sys/fs/cgroup' # on the host's own root, too
  fails 125 'on container:x: not host, private' run --uts container:x /bin/true
  fails 125 'on x: no such container' run --pid container:x /bin/true
  fails 125 "can't go with --uts host" run --uts host -h x /bin/true
  printf '# a comment\na=b\n\n' >labels
  run 0 run -d --name "t$n" -h box --domainname dom --group-add 4711 --annotation x=y \
    --label-file labels --ephemeral /bin/sh -c 'hostname; cat /proc/sys/kernel/domainname; id -G
      sleep 1000'
  wait_for has_logs "t$n" 4711
  run 0 logs "t$n"
  is "$out" $'box\ndom\n0 4711'
  is "$("${mydocker[@]}" inspect -f '{{.Config.Labels.a}} {{.Spec.annotations.x}}' "t$n")" 'b y'
  run 0 rm -f "t$n"
  fails 125 'mydocker.. is taken' run --annotation mydocker.init=true /bin/true
  for name in $'a\n192.0.2.1 b' 'a b' $'a\tb' 'a#' "$(printf 'x%.0s' {1..65})"; do
    fails 125 '^mydocker: --hostname, on .*: not a host.s name' run --hostname "$name" /bin/true
    fails 125 '^mydocker: --domainname, on .*: not a host.s name' run --domainname "$name" /bin/true
  done
  fails 125 '^mydocker: --group-add, on nosuch: there is no such group' \
    run --ephemeral --group-add nosuch /bin/true
}

test_shared_with_container() { # run: --pid, --ipc and --network container:X join those of another
  # one, again after a restart; its IPC only if that is shareable
  local name a
  own_state
  make_image "t$n:1"
  run 0 run -d --name a --ipc shareable "t$n:1" /bin/sh -c 'echo here >/dev/shm/x; sleep 1000'
  a=$(pid_of a)
  wait_for test -e "/proc/$a/root/dev/shm/x"
  run 0 run -d --name b --pid container:a --ipc container:a --network container:a "t$n:1" \
    /bin/sh -c 'read -r x </dev/shm/x; echo "$x $$"; echo there >/dev/shm/y; sleep 1000'
  wait_for has_logs b here
  unlike "$("${mydocker[@]}" logs b)" ' 1$' # the other one's is PID 1 there
  is "$(cat "/proc/$a/root/dev/shm/y")" there
  for name in pid ipc net; do
    is "$(readlink "/proc/$(pid_of b)/ns/$name")" "$(readlink "/proc/$a/ns/$name")"
  done
  for name in mnt uts cgroup; do
    [[ $(readlink "/proc/$(pid_of b)/ns/$name") != "$(readlink "/proc/$a/ns/$name")" ]]
  done
  run 0 exec b /bin/sh -c 'kill -0 1; ls /dev/shm'
  is "$out" $'x\ny'
  run 0 run --rm --ipc container:b "t$n:1" /bin/ls /dev/shm
  is "$out" $'x\ny'
  run 0 run --rm --read-only --ipc container:a -u 1000 "t$n:1" /bin/sh -c 'echo z >/dev/shm/z'
  run 0 restart -t 0 a
  run 0 restart -t 0 b
  is "$(readlink "/proc/$(pid_of b)/ns/ipc")" "$(readlink "/proc/$(pid_of a)/ns/ipc")"
  run 0 run -d --name c "t$n:1" /bin/sleep 1000
  fails 125 "^mydocker: --ipc, on container:c: it isn't shareable" run --ipc container:c \
    "t$n:1" /bin/true
  run 0 run --rm --pid container:c "t$n:1" /bin/sh -c 'kill -0 1; echo $$'
  unlike "$out" '^1$'
  run 0 run --rm --ipc none "t$n:1" /bin/sh -c '[ ! -e /dev/shm ]'
  run 0 stop -t 0 a b
  fails 125 'on a: it is not running' start b
  run 0 rm -f a b c
}

has_logs() { # has_logs CONTAINER REGEX
  "${mydocker[@]}" logs "$1" | grep -E -e "$2" >"$scratch/found"
}

test_run_attach() { # run: -a names the streams that are the caller's, the log has the others
  own_state
  run 3 run --name a -a stdout --rootfs / /bin/sh -c 'echo one; echo two >&2; exit 3'
  is "$out" one
  is "$err" ''
  run 0 logs a
  is "$out$err" onetwo
  run 0 run --name b -a STDERR --rootfs / /bin/sh -c 'echo one; echo two >&2'
  is "$out" ''
  is "$err" two
  run 0 run --name c -a stdout -a stderr --rootfs / /bin/sh -c 'echo one; echo two >&2'
  is "$out$err" onetwo
  echo typed | "${mydocker[@]}" run --name d -i -a stdin --rootfs / /bin/cat >id
  is "$(<id)" "$("${mydocker[@]}" inspect -f .Id d)"
  run 0 logs d
  is "$out" typed
  echo typed | "${mydocker[@]}" run -i -a stdout --rootfs / /bin/cat >out # its input has an end
  is "$(<out)" ''
  tty 0 -- "${mydocker[@]}" run --name e -t -a stderr --log-level error --rootfs / /bin/echo quiet
  unlike "$out" quiet
  run 0 logs e
  like "$out" quiet
  fails 125 '--attach, on x: not stdin, stdout or stderr' run -a x /bin/true
  fails 125 "--attach: it can't go with --detach" run -d -a stdout /bin/true
}

test_sig_proxy() { # run: with --sig-proxy=false a signal leaves the container running,
  # else it gets it
  local signal
  own_state
  for signal in INT TERM; do
    rm -f out
    "${mydocker[@]}" run --name "c$signal" --sig-proxy=false --rootfs / \
      /bin/sh -c 'echo one; while [ ! -e '"$PWD"'/on ]; do sleep 0.05; done; echo two' \
      >out 2>err </dev/null &
    wait_for has out one
    kill -s "$signal" "$!"
    wait "$!"
    is "$(<err)" 'mydocker: it goes on without you'
    is "$(state_of "c$signal")" running
  done
  touch on
  for signal in INT TERM; do
    run 0 wait "c$signal"
    is "$out" 0
    run 0 logs "c$signal"
    is "$out" $'one\ntwo'
  done
  is "$(<out)" one
  run 3 run --name d --sig-proxy=false --rootfs / /bin/sh -c 'echo x; exit 3'
  is "$out" x
  start run --sig-proxy --rootfs / /bin/sh -c 'trap "exit 4" TERM; echo ready
    while :; do sleep 0.05; done'
  wait_for has out ready
  kill -TERM "$pid"
  ended 4
}

# ── Privileges ───────────────────────────────────────────────────────────────

test_user_errors() { # fail: a user or group that isn't known, or makes no sense, is named
  local user
  fails 125 'nosuchuser' run -u nosuchuser /bin/true
  fails 125 'nosuchgroup' run -u root:nosuchgroup /bin/true
  for user in '' : 0: :0 -1 1x 4294967295 4294967296 2147483648 ' 0' 0:-1 0:4294967296 \
    99999999999999999999; do
    fails 125 'user' run "--user=$user" /bin/true
  done
}

test_user() { # user: -u takes names and numbers, group and all, from the container's files
  run 0 run /bin/sh -c 'id -u; id -g; id -G'
  is "$out" $'0\n0\n0'
  run 0 run -u 12345 /bin/sh -c "id -u; id -g; id -G; echo \$HOME"
  is "$out" $'12345\n0\n0\n/'
  run 0 run --user=12345:23456 /bin/sh -c 'id -u; id -g; id -G'
  is "$out" $'12345\n23456\n23456'
  run 0 run -u nobody /bin/sh -c "id -un; echo \$HOME
      grep -E 'Cap(Eff|Prm|Amb|Inh)' /proc/self/status"
  like "$out" "^nobody"$'\n'"$(grep ^nobody: /etc/passwd | cut -d: -f6)"$'\n'
  unlike "$out" $'Cap(Eff|Prm|Amb|Inh):\t0*[1-9a-f]'
  run 0 run -u nobody:daemon /usr/bin/id -gn
  is "$out" daemon
  run 0 run -u 0:daemon /usr/bin/id -gn
  is "$out" daemon
  run 0 run -it --log-level error -u nobody /bin/sh -c 'id -un; echo >/dev/tty'
  like "$out" ^nobody
}

test_supplementary_groups() { # user: a named user's supplementary groups are those of the
  # container's files
  need unshare mount
  printf '%s\n' root:x:0:0::/root:/bin/sh jane:x:4001:4002:Jane:/home/jane:/bin/sh 'bad line' \
    short:x:1 >passwd
  printf '%s\n' root:x:0: jane:x:4002: red:x:4003:joe,jane blue:x:4004:jane green:x:4005:janet '' \
    bad:x:many:jane big:x:99999999999:jane odd:x:²:jane >group
  own_mounts 'mount --bind passwd /etc/passwd
    mount --bind group /etc/group
    for user in jane 4001 jane:green 4001:4009; do
      "$@" run -u $user /bin/sh -c "echo \$(id -u) \$(id -g) \$(id -G) \$HOME"
    done' >out
  is "$(<out)" '4001 4002 4002 4003 4004 /home/jane
4001 4002 4002 4003 4004 /home/jane
4001 4005 4005 /home/jane
4001 4009 4009 /home/jane'
}

sets() { # sets ARG...: the five capability sets that a container started so has,
  # as "Inh Prm Eff Bnd Amb" without zeros in front
  run 0 run "$@" /bin/grep -E '^Cap' /proc/self/status
  out=$(tr -d '\r' <<<"$out" | sed -E 's/.*:\t0*(.)/\1/' | tr '\n' ' ')
}

test_capabilities() { # security: root has Docker's 14 capabilities,
  # none of them inheritable or ambient, CVE-2022-29162, CVE-2022-24769, CVE-2022-27650
  need overlay
  local options
  for options in '-t --log-level error' '--init --read-only' '--ephemeral -u 0:0'; do
    # shellcheck disable=SC2086 # several words
    sets $options
    is "$out" '0 a80425fb a80425fb a80425fb 0 '
  done
  make_image "t$n:1"
  run 0 run --rm "t$n:1" /bin/cat /proc/self/status
  is "$(grep -c $'^Cap\\(Prm\\|Eff\\|Bnd\\):\t00000000a80425fb$\\|^Cap\\(Inh\\|Amb\\):\t0*$' \
    <<<"$out")" 5
  run 0 run "$PYTHON" -I -c '
import os, socket
os.chroot("/")
socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)
for forbidden, *words in ((os.nice, -1),
                          (os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1))):
    try:
        forbidden(*words)
    except PermissionError:
        print("forbidden")'
  is "$out" $'forbidden\nforbidden'
}

own_capabilities() { # those that mydocker has here, and can give, as a number
  local bounding permitted
  bounding=$(sed -n 's/^CapBnd:\t/0x/p' /proc/self/status)
  permitted=$(sed -n 's/^CapPrm:\t/0x/p' /proc/self/status)
  echo $((bounding & permitted))
}

test_capability_options() { # security: --cap-add and --cap-drop take names with and without CAP_,
  # and ALL, as docker's
  local grants
  grants=$(own_capabilities)
  sets --cap-add NET_ADMIN --cap-add cap_sys_time
  is "$out" '0 aa0435fb aa0435fb aa0435fb 0 '
  sets --cap-drop mknod --cap-drop=CAP_CHOWN
  is "$out" '0 a00425fa a00425fa a00425fa 0 '
  sets --cap-drop ALL
  is "$out" '0 0 0 0 0 '
  sets --cap-drop all --cap-add kill
  is "$out" '0 20 20 20 0 '
  sets --cap-drop kill --cap-add kill # what is added wins
  is "$out" '0 a80425fb a80425fb a80425fb 0 '
  sets --cap-add ALL
  like "$out" "^0 ($(printf %x "$grants")) \\1 \\1 0 $"
  sets --cap-add ALL --cap-drop sys_admin
  like "$out" "^0 ($(printf %x $((grants & ~(1 << 21))))) \\1 \\1 0 $"
  sets --privileged
  like "$out" "^0 ($(printf %x "$grants")) \\1 \\1 0 $"
  fails 125 NO_SUCH run --cap-add no_such /bin/true
  fails 125 'no such capability' run --cap-drop '' /bin/true
}

test_capability_lacking() { # security: a capability that the host lacks is a warning,
  # and needs none for the rest
  need setpriv
  setpriv --bounding-set -sys_time,-mknod "${mydocker[@]}" run --cap-add SYS_TIME \
    --cap-add SYS_NICE /bin/grep CapBnd /proc/self/status >out 2>err
  is "$(<out)" $'CapBnd:\t00000000a08425fb'
  is "$(<err)" \
    "mydocker: warning: --cap-add, on CAP_SYS_TIME: this host doesn't have it itself, ignoring"
  setpriv --bounding-set -sys_time,-mknod "${mydocker[@]}" run --privileged /bin/true >out 2>&1
  is "$(<out)" ''
}

weak() { # weak CAP[,CAP] STATUS REGEX ARG...: without these capabilities mydocker says such a thing
  local got=0
  setpriv --bounding-set "-${1//,/,-}" --inh-caps "-${1//,/,-}" "${mydocker[@]}" "${@:4}" \
    >"$scratch/stdout" 2>"$scratch/stderr" </dev/null || got=$?
  read_output
  is "status $got" "status $2"
  like "$err" "$3"
}

test_few_powers() { # security: an error that comes of a capability that we lack ourselves names it,
  # and info has a line for each; who has fewer than a container still goes into it
  need setpriv overlay
  small_root root
  touch root/owned
  chown 7:7 root/owned
  make_image box
  [[ $(own_capabilities) == \
    $(($(own_capabilities) | 0xa80425fb | 1 << 21 | 1 << 19 | 1 << 12)) ]] ||
    skip 'capabilities are missing here'
  run 0 run -d --network none --name one box sleep 1000
  run 0 run -d --network none --name two -u 1234 box sleep 1000
  weak net_admin 125 'hint: CAP_NET_ADMIN is missing' run /bin/true
  weak net_admin 125 'on bridge: CAP_NET_ADMIN is missing' run --network bridge -p 80:80 box ls
  weak net_admin 0 '^$' run --network host --rm box ls
  weak setuid 125 'hint: CAP_SETUID is missing' run -u 1234 --network none --rm box sh
  weak setgid 125 'hint: CAP_SETGID is missing' run /bin/true
  weak setpcap 125 'hint: CAP_SETPCAP is missing' run /bin/true
  weak chown 125 'hint: CAP_CHOWN is missing' import root none
  weak chown 125 'hint: CAP_CHOWN is missing' cp -a root/owned one:/
  weak fowner,chown 125 'hint: CAP_CHOWN or CAP_FOWNER is missing' import root none
  weak dac_override 0 '^$|overlay, on .*: permission denied .CAP_DAC_OVERRIDE is missing' \
    run --network none --rm box ls
  weak sys_chroot 125 'hint: CAP_SYS_CHROOT is missing' exec one ls
  weak sys_ptrace 125 'hint: CAP_SYS_PTRACE is missing' exec two ls
  weak sys_ptrace 0 '^$' exec one ls
  weak kill 125 'hint: CAP_KILL is missing' kill two
  weak mknod,kill 0 'warning: capabilities, on CAP_KILL, CAP_MKNOD: this host' exec one cat \
    /proc/self/status
  like "$out" $'\nCapBnd:\t00000000a00425db\n'
  weak mknod 0 '^$' stop -t 0 one
  weak mknod 0 'warning: capabilities, on CAP_MKNOD: this host' start one
  weak sys_admin 1 '^$' info mntns
  like "$out" 'mntns +no .*CAP_SYS_ADMIN is missing'
  weak net_admin,mknod 0 '^$' info
  like "$out" $'\nCAP_NET_ADMIN +no +networks'
  like "$out" $'\nCAP_MKNOD +no +devices'
  like "$out" $'\nnf_tables +no .*CAP_NET_ADMIN is missing'
  unlike "$out" 'CAP_CHOWN'
  run 0 rm -f one two
}

test_few_powers_network() { # security: a container gets its network also without CAP_SYS_PTRACE
  need setpriv ip
  namespace host
  make_image box
  mydocker=("${host[@]}" setpriv --bounding-set -sys_ptrace --inh-caps -sys_ptrace "${mydocker[@]}")
  run 0 run --rm --network bridge box cat /proc/net/route
  like "$out" $'\neth0\t00000000'
}

test_capabilities_of_users() { # security: another user than root has no capabilities but those that
  # are added
  sets -u nobody
  is "$out" '0 0 0 a80425fb 0 '
  sets -u 12345:12345 --init --privileged
  like "$out" '^0 0 0 [0-9a-f]+ 0 $'
  sets -u nobody --cap-add NET_ADMIN --cap-add KILL
  is "$out" '1020 1020 1020 a80435fb 1020 '
  run 125 run -u nobody "$(command -v chroot)" / /bin/true
  like "$err" '^[^ ]*chroot: .*not permitted'
}

test_no_new_privileges() { # security: --security-opt no-new-privileges,
  # and set-user-id programs don't help
  local option
  cp /usr/bin/id suid
  chmod 4755 suid .
  for option in no-new-privileges no-new-privileges:true; do
    run 0 run -u 12345 --security-opt "$option" \
      /bin/sh -c "grep -E '^(NoNewPrivs|Seccomp|CapBnd):' /proc/self/status; $PWD/suid -u"
    is "$out" $'CapBnd:\t00000000a80425fb\nNoNewPrivs:\t1\nSeccomp:\t2\n12345'
  done
  run 0 run -u 12345 --security-opt no-new-privileges=false \
    /bin/sh -c "grep NoNewPrivs /proc/self/status; $PWD/suid -u"
  is "$out" $'NoNewPrivs:\t0\n0'
  for option in no-new-privileges=perhaps no-new-privilegesx nonsense systempaths=x ''; do
    fails 125 "on $option: no such option" run --security-opt "$option" /bin/true
  done
}

test_labels() { # security: an AppArmor profile or SELinux label that can't be had is an error,
  # "unconfined" and "disable" are none
  run 0 run --security-opt apparmor=unconfined --security-opt label=disable \
    --security-opt label:type:x /bin/true
  fails 125 no-such-profile run --security-opt apparmor=no-such-profile /bin/true
  fails 125 'on label' run --security-opt label=kind:x /bin/true
  fails 125 'system_u:system_r:no_such_type_t:s0:c1' run --security-opt label=type:no_such_type_t \
    --security-opt label=level:s0:c1 /bin/true
}

# Every system call inside: prints "NAME OUTCOME", OUTCOME one of allowed, EPERM, ENOSYS; by the
# test's own copy of what Docker allows. A call without sense gets arguments that the kernel
# refuses.
try_calls='
import ctypes, errno, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
bad = [ctypes.c_long(-1)] * 6

def outcome(number):
    """What the filter returns comes before the kernel looks at the arguments."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read)
        signal.alarm(2)
        result = libc.syscall(ctypes.c_long(number), *bad)
        os.write(write, b"%d" % (ctypes.get_errno() if result == -1 else 0))
        os._exit(0)
    os.close(write)
    answer = os.read(read, 10)
    os.close(read)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return int(answer) if answer else 0

for word in sys.stdin.read().split():
    number = int(word)
    print(number, outcome(number), flush=True)
'

test_every_call() { # security: every system call by its number is allowed or refused as in Docker's
  # profile
  need seccomp
  local machine
  machine=$(uname -m)
  [[ $machine == x86_64 || $machine == aarch64 ]] || skip "no list for $machine"
  # The same calls, by the host's kernel, without a filter and with it. What differs is what the
  # filter did
  unfit=$(call_numbers fork vfork clone exit exit_group pause rt_sigreturn restart_syscall sync)
  seq 0 480 | grep -vxE "$unfit" >numbers
  "${mydocker[@]}" run -i --security-opt seccomp=unconfined "$PYTHON" -I -c "$try_calls" \
    <numbers >free
  "${mydocker[@]}" run -i "$PYTHON" -I -c "$try_calls" <numbers >filtered
  "$PYTHON" -I - "$here/mydocker.py" <<'PYTHON'
import sys
# Docker's default (moby/profiles, seccomp/default.json) for the 14 capabilities: what it doesn't
# list
denied = set("""_sysctl acct add_key afs_syscall bpf clock_settime create_module delete_module
fanotify_init finit_module fsconfig fsmount fsopen fspick get_kernel_syms get_mempolicy getpmsg
init_module io_uring_enter io_uring_register io_uring_setup ioperm iopl kcmp kexec_file_load
kexec_load keyctl lookup_dcookie mbind migrate_pages mount mount_setattr move_mount move_pages
nfsservctl open_by_handle_at open_tree perf_event_open pidfd_getfd pivot_root process_madvise
putpmsg query_module quotactl quotactl_fd reboot request_key security set_mempolicy
set_mempolicy_home_node setdomainname sethostname setns settimeofday swapoff swapon sysfs syslog
tuxcall umount2 unshare uselib userfaultfd ustat vhangup vserver lsm_get_self_attr
lsm_set_self_attr lsm_list_modules""".split())
space = {"__name__": "mydocker"}
exec(compile(open(sys.argv[1]).read(), sys.argv[1], "exec"), space)
names = {number: name for name, number in space["call_numbers"]().items()}
free, filtered = ({int(n): int(code) for n, code in map(str.split, open(name))}
                  for name in ("free", "filtered"))
EPERM, ENOSYS = 1, 38
wrong = []
for number, code in filtered.items():
    name = names.get(number, "?")
    if number in (335, 336):  # uretprobe and uprobe: Linux lets them past any filter
        continue
    if name == "clone3" or number > 466:
        right = code == ENOSYS
    elif name in denied or name == "?" or name in ("socket", "personality"):  # -1 is neither
        right = code == EPERM
    else:  # the filter lets it pass: the outcome is the kernel's own
        right = code == free[number]
    if not right:
        wrong.append((number, name, code, free[number]))
assert not wrong, wrong
refused = [names.get(n, "?") for n in filtered if filtered[n] == EPERM != free[n]]
assert len(filtered) > 440 and len(refused) > 40, (len(filtered), len(refused))
print("as it should be:", len(filtered), "calls,", len(refused), "refused by the filter alone")
PYTHON
}

call_numbers() { # call_numbers NAME...: their numbers as one regular expression
  "$PYTHON" -I - "$here/mydocker.py" "$@" <<'PYTHON'
import sys
space = {"__name__": "mydocker"}
exec(compile(open(sys.argv[1]).read(), sys.argv[1], "exec"), space)
numbers = space["call_numbers"]()
print("|".join(str(numbers[name]) for name in sys.argv[2:] if name in numbers))
PYTHON
}

test_call_table() { # security: the names and numbers of system calls are those of the host's own
  # headers
  local header
  header=/usr/include/$(uname -m)-linux-gnu/asm/unistd_64.h
  [[ -e $header ]] || header=/usr/include/asm-generic/unistd.h
  [[ -e $header ]] || skip 'needs the headers of the kernel'
  "$PYTHON" -I - "$here/mydocker.py" "$header" <<'PYTHON'
import re, sys
space = {"__name__": "mydocker"}
exec(compile(open(sys.argv[1]).read(), sys.argv[1], "exec"), space)
headers = {"x86_64": sys.argv[2], "aarch64": "/usr/include/asm-generic/unistd.h"}
for machine, header in headers.items():
    space["os"].uname = lambda: type("", (), {"machine": machine})
    mine = {number: name for name, number in space["call_numbers"]().items()}
    try:
        pairs = re.findall(r"#define __NR(3264)?_(\w+)\s+(\d+)", open(header).read())
    except OSError:
        continue
    theirs = {int(number): name for _, name, number in pairs
              if not 243 < int(number) < 260 or machine == "x86_64"}
    wrong = [(number, name, mine.get(number)) for number, name in theirs.items()
             if mine.get(number) != name and (number < 403 or number > 423)
             and name not in ("syscalls", "fstatat", "arch_specific_syscall")]
    assert not wrong and len(theirs) > 300, (machine, wrong, len(theirs))
PYTHON
}

call() { # call ARG... -- CALL...: each CALL, a Python expression of a name or number and arguments,
  # as "result or errno's name"
  local - options=()
  set +x
  while [[ $1 != -- ]]; do options+=("$1"); shift; done
  shift
  [[ -e table ]] || "$PYTHON" -I -c '
import sys
space = {"__name__": "mydocker"}
exec(compile(open(sys.argv[1]).read(), sys.argv[1], "exec"), space)
print(space["call_numbers"]())' "$here/mydocker.py" >table
  run 0 run "${options[@]}" "$PYTHON" -I -c "
import ctypes, errno, os, sys
nr = $(<table)
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
for text in sys.argv[1:]:
    name, *args = eval(text)
    result = libc.syscall(ctypes.c_long(nr.get(name, name)), *map(ctypes.c_long, args))
    if name == 'clone' and result == 0: os._exit(0)
    print('allowed' if result != -1 else errno.errorcode[ctypes.get_errno()])" "$@"
  out=${out//$'\n'/ }
}

test_call_arguments() { # security: clone, socket and personality are filtered by their arguments,
  # in all 64 bits
  local flag family flags=() families=()
  call -- "('personality', 0)" "('personality', 8)" "('personality', 0x20000)" \
    "('personality', 0x20008)" \
    "('personality', 0xffffffff)" "('personality', 0x40000)" "('personality', 0x100000008)" \
    "('personality', 1)"
  is "$out" 'allowed allowed allowed allowed allowed EPERM EPERM EPERM'
  for flag in 0x02000000 0x04000000 0x08000000 0x10000000 0x20000000 0x40000000 0x00020000; do
    flags+=("('clone', 17 | $flag, 0, 0, 0, 0)")
  done
  call -- "${flags[@]}" "('clone', 17, 0, 0, 0, 0)" "('clone3', 0, 0)" "('unshare', 0x10000000)" \
    "('setns', 0, 0)"
  is "$out" 'EPERM EPERM EPERM EPERM EPERM EPERM EPERM allowed ENOSYS EPERM EPERM'
  # the kernel's answer, not the filter's
  for family in 10 17 39 41 42 43 44 45; do families+=("('socket', $family, 99, 0)"); done
  call -- "('socket', 1, 1, 0)" "('socket', 2, 2, 0)" "('socket', 16, 3, 0)" \
    "('socket', 38, 5, 0)" "('socket', 40, 1, 0)" \
    "('socket', 38 | 1 << 32, 5, 0)" "('socket', 40 | 1 << 40, 1, 0)" "${families[@]}"
  like "$out" '^allowed allowed allowed EPERM EPERM EPERM EPERM '
  unlike "${out#*EPERM EPERM EPERM EPERM}" EPERM
}

test_call_other_abi() { # security: x32's and i386's system calls don't exist
  [[ $(uname -m) == x86_64 ]] || skip 'needs x86_64'
  call -- '(0x40000000 | 39,)' '(0x40000000 | 520, 0, 0, 0)' '(520, 0, 0, 0)' '(-1,)' '(467, 0)' \
    '(1000,)' '(39,)'
  is "$out" 'ENOSYS ENOSYS ENOSYS ENOSYS ENOSYS ENOSYS allowed'
  # mov eax, 20 (getpid); int 0x80; cdqe; ret
  run 0 run "$PYTHON" -I -c '
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=7)
page.write(b"\xb8\x14\0\0\0\xcd\x80\x48\x98\xc3")
print(ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))())'
  is "$out" -38
}

test_calls_unlocked() { # security: a capability unlocks the system calls that need it,
  # as Docker's profile has it
  call --cap-add SYS_ADMIN -- "('unshare', 0)" "('setns', -1, 0)" "('clone3', 0, 0)" \
    "('mount', 0, 0, 0, 0, 0)" "('keyctl', 0, 0)" \
    "('clone', 17 | 0x04000000, 0, 0, 0, 0)"
  is "$out" 'allowed EBADF EINVAL EFAULT EPERM allowed'
  call --cap-add SYS_PTRACE --cap-add SYSLOG --cap-add SYS_NICE --cap-drop SYS_CHROOT \
    -- "('kcmp', 1, 1, 99, 0, 0)" \
    "('syslog', 10, 0, 0)" "('mbind', 1, 0, 0, 0, 0, 0)" "('bpf', 99, 0, 0)" "('acct', 1)" \
    "('chroot', 0)"
  is "$out" 'EINVAL allowed EINVAL EPERM EPERM EPERM'
  call --security-opt seccomp=builtin --privileged -- "('chroot', 0)" "('keyctl', 99, 0)"
  is "$out" 'EFAULT EPERM'
  call --security-opt seccomp=unconfined -- "('keyctl', 99, 0)"
  like "$out" 'ENOTSUP|EOPNOTSUPP'
}

test_seccomp_file() { # security: --security-opt seccomp=FILE takes Docker's JSON: names, arguments,
  # errnos, conditions
  cat >deny.json <<'JSON'
{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [
  {"names": ["mkdir", "mkdirat", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28,
   "args": [], "includes": {}, "excludes": {}},
  {"name": "sethostname", "action": "SCMP_ACT_ERRNO", "args": null},
  {"names": ["getpgid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 11,
   "args": [{"index": 0, "value": 7, "op": "SCMP_CMP_GE"},
            {"index": 1, "value": 3, "op": "SCMP_CMP_NE"}]},
  {"names": ["getsid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 12,
   "args": [{"index": 0, "value": 4294967297, "op": "SCMP_CMP_LT"},
            {"index": 1, "value": 5, "op": "SCMP_CMP_GT"},
            {"index": 2, "value": 9, "op": "SCMP_CMP_LE"}]},
  {"names": ["alarm", "getitimer"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13,
   "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"},
            {"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}]},
  {"names": ["umask"], "action": "SCMP_ACT_ERRNO", "errnoRet": 14,
   "args": [{"index": 0, "value": 240, "valueTwo": 16, "op": "SCMP_CMP_MASKED_EQ"}]},
  {"names": ["times"], "action": "SCMP_ACT_ERRNO", "errnoRet": 15,
   "includes": {"caps": ["CAP_SYS_TIME"]}},
  {"names": ["getpriority"], "action": "SCMP_ACT_ERRNO", "errnoRet": 16,
   "excludes": {"caps": ["CAP_CHOWN"]}},
  {"names": ["sysinfo"], "action": "SCMP_ACT_ERRNO", "errnoRet": 17,
   "includes": {"arches": ["amd64", "arm64"], "minKernel": "4.8"}},
  {"names": ["getppid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 17,
   "includes": {"arches": ["s390x"]}},
  {"names": ["getuid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 17,
   "includes": {"minKernel": "99.1"}},
  {"names": ["getgid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 17,
   "excludes": {"minKernel": "4.8"}}]}
JSON
  call --security-opt seccomp=deny.json -- "('mkdirat', 0, 0, 0)" "('sethostname', 0, 0)" \
    "('getpgid', 7, 0)" "('getpgid', 7, 3)" "('getpgid', 6, 0)" "('getpgid', 1 << 32, 0)"
  is "$out" 'ENOSPC EPERM EAGAIN ESRCH ESRCH EAGAIN'
  call --security-opt seccomp=deny.json -- "('getsid', 0, 6, 9)" "('getsid', 1 << 32, 6, 9)" \
    "('getsid', 1 + (1 << 32), 6, 9)" "('getsid', 0, 5, 9)" "('getsid', 0, 6, 10)" \
    "('getsid', 0, 6, 1 << 32)"
  is "$out" 'ENOMEM ENOMEM allowed allowed allowed allowed'
  call --security-opt seccomp=deny.json -- "('getitimer', 1, 0)" "('getitimer', 2, 0)" \
    "('getitimer', 3, 0)" "('umask', 0o22)" "('umask', 0o377)" "('umask', 0o400)"
  is "$out" 'EACCES EACCES EINVAL EFAULT allowed allowed'
  call --security-opt seccomp=deny.json -- "('times', 0)" "('getpriority', 0, 0)" \
    "('sysinfo', 0)" "('getppid',)" "('getuid',)" "('getgid',)" "(9999,)"
  is "$out" 'allowed allowed EEXIST allowed allowed allowed ENOSYS'
  call --cap-add SYS_TIME --cap-drop CHOWN --security-opt seccomp=deny.json \
    --security-opt no-new-privileges -- "('times', 0)" "('getpriority', 0, 0)"
  is "$out" 'ENOTBLK EBUSY'
  local text openat='"syscalls": [{"names": ["openat"], "action": "SCMP_ACT_ALLOW"}]'
  echo "{\"defaultAction\": \"SCMP_ACT_ERRNO\", \"defaultErrnoRet\": 5, $openat}" >strict.json
  # it can't even say why
  timeout "$patience" "${mydocker[@]}" run --security-opt seccomp=strict.json /bin/touch made || :
  [[ ! -e made ]]
  echo "{\"defaultAction\": \"SCMP_ACT_KILL_PROCESS\", $openat}" >kill.json
  run 159 run --security-opt seccomp=kill.json /bin/true
  fails 125 'nowhere.json: no such file' run --security-opt seccomp=nowhere.json /bin/true
  for text in '' '[]' '{"defaultAction": "SCMP_ACT_WHAT", "syscalls": []}' \
    '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"],
      "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_X"}]}]}'; do
    echo "$text" >bad.json
    fails 125 'bad.json: not a seccomp profile' run --security-opt seccomp=bad.json /bin/true
  done
}

test_seccomp_large_file() { # security: a profile with more rules than a short jump reaches,
  # as podman's and Docker's own files have
  local file
  "$PYTHON" -I -c '
import json
rules = [{"names": ["getpgid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1 + n % 100,
          "args": [{"index": 0, "value": n, "op": "SCMP_CMP_EQ"}]} for n in range(100, 500)]
rules.append({"names": ["times"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7})
print(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}))' >large.json
  call --security-opt seccomp=large.json -- "('getpgid', 100)" "('getpgid', 499)" \
    "('getpgid', 500)" "('times', 0)" "('getppid',)" "('sync_file_range', -1, 0, 0, 0)"
  is "$out" 'EPERM ENETDOWN ESRCH E2BIG allowed EBADF'
  for file in /usr/share/containers/seccomp.json /etc/containers/seccomp.json; do
    [[ ! -e $file ]] || run 0 run --security-opt "seccomp=$file" /bin/sh -c 'ls / >/dev/null
        (exit 3) | cat; ! unshare -m true 2>/dev/null'
  done
}

test_masked_paths() { # security: what tells of the host in /proc and /sys is covered,
  # CVE-2017-16539, CVE-2018-10892
  local path image script='' want=''
  make_image "t$n:1"
  for path in /proc/{acpi,asound,interrupts,kcore,keys,latency_stats,sched_debug,scsi} \
    /proc/{timer_list,timer_stats} \
    /sys/devices/virtual/powercap /sys/firmware /sys/devices/system/cpu/cpu0/thermal_throttle; do
    [[ -e $path ]] || continue
    script+="echo $path; if [ ! -d $path ]; then cat $path
      else ls -A $path; mkdir $path/x 2>/dev/null && echo made; fi; "
    want+=$path$'\n'
  done
  for image in '' "t$n:1"; do # on the host's root, and from an image
    run 0 run --rm ${image:+"$image"} /bin/sh -c "$script:"
    is "$out"$'\n' "$want"
  done
  run 0 run --security-opt systempaths=unconfined /bin/sh -c 'head -c 1 /proc/interrupts
      cat /proc/self/mountinfo'
  like "$out" '^ '
  unlike "$out" ' /proc/(interrupts|sys|keys) '
}

test_read_only_paths() { # security: what changes the host in /proc is read-only,
  # and so is all of /sys
  local path paths=()
  make_image "t$n:1"
  for path in /proc/sys/kernel/core_pattern /proc/sys/vm/drop_caches /proc/sysrq-trigger \
    /proc/irq/default_smp_affinity \
    /sys/kernel/mm/ksm/run; do
    [[ ! -e $path ]] || paths+=("$path")
  done
  run 0 run /bin/sh -c 'for path; do true >>$path || echo refused $path; done' sh "${paths[@]}"
  is "$out" "$(printf 'refused %s\n' "${paths[@]}")"
  run 0 run --rm "t$n:1" /bin/sh -c 'true >>/proc/sys/kernel/core_pattern || echo refused'
  is "$out" refused
  like "$err" 'ead-only file system'
  run 0 run --security-opt systempaths=unconfined \
    /bin/sh -c 'true >>/proc/sys/kernel/domainname && echo open'
  is "$out" open
}

test_fake_null() { # security: masks are never made of a file that only pretends to be /dev/null,
  # CVE-2025-31133
  own_state
  small_root root
  echo canary >canary
  run 0 import root "t$n:1"
  fails 125 'null device' run --rm -v "$PWD/canary:/dev/null" "t$n:1" /bin/cat /proc/keys
  mkdir dev
  ln -s /proc/sys/kernel/core_pattern dev/null
  fails 125 'file exists|null device' run --rm -v "$PWD/dev:/dev" "t$n:1" /bin/true
  mknod zero c 1 5
  fails 125 'null device' run --rm -v "$PWD/zero:/dev/null" "t$n:1" /bin/true
  is "$(<canary)" canary
  run 0 run --rm "t$n:1" /bin/cat /proc/keys
  is "$out" ''
}

test_masks_stay() { # security: a mask can't be taken off,
  # nor looked under by a descriptor of PID 1's
  run 0 run --init --cap-add SYS_PTRACE /bin/sh -c 'ls /proc/1/fd
      umount /proc/keys 2>/dev/null || echo kept'
  is "$out" $'0\n1\n2\nkept'
}

test_privileged() { # security: --privileged gives devices, a writable /sys and /proc/sys,
  # and no filter
  need /mnt
  local device
  run 0 run --privileged /bin/sh -c 'grep -E "^(Seccomp|NoNewPrivs):" /proc/self/status
    mount -t tmpfs none /mnt && echo mounted
    true >>/proc/sys/kernel/core_pattern && echo written
    cat /proc/self/mountinfo'
  like "$out" $'^NoNewPrivs:\t0\nSeccomp:\t0\nmounted\nwritten\n'
  like "$out" ' /sys rw,'
  unlike "$out" ' (/proc/keys|/proc/sys|/sys/firmware) '
  make_image "t$n:1"
  run 0 run --rm --privileged "t$n:1" /bin/ls -l /dev
  for device in $(find /dev -maxdepth 1 \( -type c -o -type b \) -printf '%f\n' |
    grep -vE '^(console|ptmx)$'); do
    like "$out" "[cb]r.* $device"
  done
  run 0 run --rm "t$n:1" /bin/ls /dev
  unlike "$out" 'kmsg|mem|vda|loop'
}

confined='grep -E "^(Cap|NoNewPrivs|Seccomp:)" /proc/self/status
  cat /proc/self/attr/current 2>/dev/null | tr -d "\\0"; :'

test_exec_confined() { # security: exec, too, gives no more than the container has;
  # -u nothing but what was added, --privileged all, CVE-2022-29162
  local grants options own
  own_state
  grants=$(own_capabilities)
  run 0 run -d --name c --cap-add NET_ADMIN --cap-drop MKNOD --security-opt no-new-privileges \
    /bin/sh -c "$confined; exec sleep 1000"
  wait_for said c Seccomp
  run 0 logs c
  own=$out
  like "$own" $'CapInh:\t0+\nCapPrm:\t0+a00435fb\nCapEff:\t0+a00435fb\nCapBnd:\t0+a00435fb\n'
  like "$own" $'\nCapAmb:\t0+\nNoNewPrivs:\t1\nSeccomp:\t2'
  for options in -i -t; do
    run 0 exec "$options" c /bin/sh -c "$confined"
    is "${out//$'\r'/}" "$own"
  done
  run 0 exec -d c /bin/sh -c "{ $confined; } >>/proc/1/fd/1; echo all >>/proc/1/fd/1"
  wait_for said c all
  run 0 logs c
  is "$out" "$own"$'\n'"$own"$'\nall'
  run 0 exec -u nobody c /bin/grep ^Cap /proc/self/status
  is "$(sed -E 's/.*:\t0*(.)/\1/' <<<"$out" | tr '\n' ' ')" '1000 1000 1000 a00435fb 1000 '
  run 0 exec c "$PYTHON" -I -c '
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print(libc.unshare(0), ctypes.get_errno(), libc.sethostname(b"x", 1), ctypes.get_errno())'
  is "$out" '-1 1 -1 1'
  run 0 exec --privileged c /bin/sh -c "$confined"
  grants=$(printf %x "$grants")
  like "$out" "CapInh:.0+"$'\n'"CapPrm:.0*($grants)"$'\n'"CapEff:.0*\\1"$'\n'"CapBnd:.0*\\1"
  like "$out" $'CapAmb:\t0+\nNoNewPrivs:\t1\nSeccomp:\t0'
  run 0 exec --privileged -u nobody c /bin/grep -E '^Cap(Prm|Amb)' /proc/self/status
  is "$(sed -E 's/.*:\t0*(.)/\1/' <<<"$out" | tr '\n' ' ')" '1000 1000 '
  run 0 rm -f c
}

test_confined_again() { # security: start, restart and a restart policy give a container the same
  # confinement as before
  local own
  own_state
  run 0 run -d --name a --cap-drop ALL --cap-add CHOWN -u nobody \
    /bin/sh -c "$confined; exec sleep 1000"
  run 0 run -d --name b --restart on-failure:2 --init /bin/sh -c "$confined; exit 1"
  wait_for said a Seccomp
  run 0 logs a
  own=$out
  like "$own" $'CapEff:\t0+1\nCapBnd:\t0+1\nCapAmb:\t0+1\nNoNewPrivs:\t0\nSeccomp:\t2'
  is "$(grep -c '"filter"' "$MYDOCKER_ROOT"/containers/*/config.json | cut -d: -f2 | sort -u)" 0
  run 0 restart -t 0 a
  run 0 exec a /bin/grep -c Seccomp:.2 /proc/1/status
  run 0 stop -t 0 a
  run 0 start a
  run 0 exec a /bin/grep -c Seccomp:.2 /proc/1/status
  is "$("${mydocker[@]}" logs a)" "$own"$'\n'"$own"$'\n'"$own"
  run 0 wait b
  run 0 logs b
  is "$(sort <<<"$out" | uniq -c | sed 's/^ *\([0-9]*\).*/\1/' | sort -u)" 3
  like "$out" $'CapEff:\t00000000a80425fb'
  run 0 rm -f a b
}

test_fake_proc() { # security: exec sets its label by no /proc but the host's, CVE-2019-16884,
  # CVE-2025-52881
  own_state
  run 0 run -d --name c --cap-add SYS_ADMIN /bin/sh -c 'mount -t tmpfs none /proc
    mkdir -p /proc/self/attr /proc/sys/kernel
    echo 0 >/proc/sys/kernel/cap_last_cap; : >/proc/self/attr/exec; echo ready; exec sleep 1000'
  wait_for said c ready
  run 0 exec c /bin/echo ran
  "$PYTHON" -I -c '
import glob, json, sys
path, = glob.glob(sys.argv[1] + "/containers/*/config.json")
spec = json.load(open(path))
spec["process"]["apparmorProfile"] = "no-such-profile"
json.dump(spec, open(path, "w"))' "$MYDOCKER_ROOT"
  fails 125 "no-such-profile: " exec c /bin/echo ran
  run 0 rm -f c
}

test_exec_never_free() { # security: nothing inside ever sees a process of exec's that has more
  # power than its own, CVE-2016-9962
  local seen
  own_state
  run 0 run -d --name c --cap-add SYS_PTRACE "$PYTHON" -I -c '
import glob
seen = set()
while True:
    for path in glob.glob("/proc/[0-9]*/status"):
        try:
            with open(path) as file:
                facts = dict(line.rstrip("\n").split(":\t") for line in file if ":\t" in line)
        except OSError:
            continue
        fact = facts["CapPrm"], facts["CapBnd"], facts["Seccomp"]
        if fact not in seen:
            print("seen", *fact, flush=True)
        seen.add(fact)'
  for seen in {1..8}; do run 0 exec -t c /bin/true; done
  run 0 logs c
  is "$out" 'seen 00000000a80c25fb 00000000a80c25fb 2'
  run 0 rm -f c
}

test_new_namespaces_refused() { # security: no new namespace from inside, and no release_agent,
  # CVE-2022-0492, CVE-2023-25809
  need unshare
  run 0 run /bin/sh -c '
    for what in -U -m -C -UrmC -n -p; do unshare $what true || echo refused; done
    find /sys/fs/cgroup -name release_agent -writable
    for place in /sys/fs/cgroup /sys/fs/cgroup/*; do
      mkdir $place/x 2>/dev/null && rmdir $place/x && echo made
    done
    exit 0'
  is "$out" "$(printf 'refused\n%.0s' {1..6})"
  is "$(grep -c 'ot permitted' <<<"$err")" 6
}

test_interpreter() { # security: the interpreter that init runs in can't be overwritten from inside,
  # CVE-2019-5736
  local real before
  real=$(readlink -f "$PYTHON") before=$(sha256sum "$real")
  make_image "t$n:1"
  # by a descriptor, as the exploit does; nothing is written, and ETXTBSY alone would only last
  # until nobody runs it
  run 0 run /proc/self/exe -I -S -c '
import os
fd = os.open("/proc/self/exe", os.O_RDONLY)
print("read-only" if os.fstatvfs(fd).f_flag & os.ST_RDONLY else "writable")
try:
    os.chmod(fd, os.fstat(fd).st_mode)
except OSError as error:
    print(error.strerror)'
  is "$out" $'read-only\nRead-only file system'
  # an image whose entrypoint is the interpreter, whatever comes of it, and a script with it
  timeout "$patience" "${mydocker[@]}" run --rm --entrypoint /proc/self/exe "t$n:1" -c pass || :
  printf '#!/proc/self/exe\n' >root/script
  chmod +x root/script
  run 0 import root "t$n:2"
  timeout "$patience" "${mydocker[@]}" run --rm "t$n:2" /script || :
  is "$(sha256sum "$real")" "$before"
}

test_reaper_closed() { # security: a process of mydocker's inside can't be looked into,
  # CVE-2016-9962
  run 0 run --init /bin/sh -c 'cat /proc/1/environ; ls -l /proc/1/exe /proc/1/cwd /proc/1/root
      cat /proc/1/mem; echo tried'
  is "$(grep -cE 'ermission denied' <<<"$err")" 5
  unlike "$out" ' -> '
}

test_uid_overflow() { # security: a user id that overflows or doesn't parse is an error, never root,
  # CVE-2024-40635, CVE-2026-30892
  local user
  own_state
  run 0 run -d --name "t$n" /bin/sleep 1000
  for user in 4294967296 2147483648 1x '' :; do
    fails 125 user exec "--user=$user" "t$n" /bin/sh -c 'id -u'
  done
  for user in -1 ' 0' 18446744073709551616; do
    fails 125 user run "--user=$user" /bin/sh -c 'id -u'
  done
  run 0 rm -f "t$n"
}

test_only_the_command_runs() { # security: nothing of an image is executed but the command,
  # nor a fixed name in /tmp used, CVE-2022-1227, CVE-2020-27534
  need strace
  make_image "t$n:1"
  strace -f -qq -o trace -e trace=execve,openat,mkdir,open,creat "${mydocker[@]}" run --rm "t$n:1" \
    /bin/sh -c : >out 2>err
  unlike "$(grep -E 'O_CREAT|mkdir' trace | grep -vF "$PWD" || :)" '"/(var/)?tmp/'
  is "$(sed -nE 's/.*execve\("([^"]*)".*/\1/p' trace | grep -v python | sort -u)" /bin/sh
}

test_no_push_back_plain() { # security: nothing can be typed into the caller's terminal without -t
  # either, CVE-2017-5226, CVE-2016-2568
  tty 1 tried '' -- bash -c "\"\$1\" \"\$2\" run -i \"\$1\" -I -c \"\$3\"
      IFS= read -r -t 1 line && echo \"typed \$line\"; exit 1" \
    bash "${mydocker[@]}" "$push_back"
  unlike "$out" typed
}

# What a container sees of itself and of the host, a line for each fact, in words that don't depend
# on numbers.
facts='
grep -E "^(Cap|NoNewPrivs|Seccomp:)" /proc/self/status
for kind in cgroup ipc mnt net pid user uts; do
  echo "namespace $kind $(readlink /proc/self/ns/$kind)"
done
while read -r id parent device root point words rest; do
  set -- ${rest##*- }
  flags=""
  for flag in ro rw nosuid nodev noexec; do
    case ",$words," in *,$flag,*) flags="$flags $flag" ;; esac
  done
  echo "mount $point $1$flags"
done </proc/self/mountinfo
for file in /dev/*; do echo "device $file $(stat -c "%F %t:%T %a" $file)"; done
find /proc /sys -path "/proc/[0-9]*" -prune -o -type f -writable -print 2>/dev/null |
  sed "s/^/writable /"'

beside_podman() { # what podman's default container shows,
  # then ours: into ./podman.facts and ./mydocker.facts
  need podman runc find stat
  local tool
  NO_BUSYBOX=1 small_root root
  for tool in grep find stat sed; do with_libraries "$(type -P $tool)" root $tool; done
  mkdir -p root/proc root/sys root/dev
  podman --root "$PWD/store" --runroot "$PWD/run" --storage-driver vfs --cgroup-manager cgroupfs \
    --events-backend none --runtime runc \
    "${podman_run[@]}" --net none \
    --rootfs "$PWD/root" /bin/sh -c "$facts" >podman.facts
  own_state
  run 0 run --rm --rootfs root /bin/sh -c "$facts"
  cp "$scratch/stdout" mydocker.facts
}

test_beside_podman() { # security: what a container sees is what podman's default container sees,
  # but for the list in README.md
  local kind documented='^< mount /(dev|proc/(keys|timer_list)|run/.containerenv|sys/dev/block) '
  documented+='|^< mount /sys/fs/cgroup[^ ]* '
  documented+='|^> mount /(dev|proc/(interrupts|keys|timer_list)) tmpfs rw( nosuid)?$'
  documented+='|^> mount /etc/resolv.conf [^ ]+ rw( nosuid)?$'
  documented+='|^> mount /sys/fs/cgroup[^ ]* (tmpfs|cgroup2?) ro nosuid nodev noexec$'
  beside_podman
  for kind in ipc mnt net pid uts; do # neither has the host's
    like "$(cat podman.facts mydocker.facts)" "namespace $kind "
    unlike "$(cat podman.facts mydocker.facts)" \
      "namespace $kind $(readlink /proc/self/ns/$kind | tr -d '[]')"
  done
  sed -i '/^namespace/d; s/^Cap[BEP][a-z]*:.*/capabilities/' podman.facts mydocker.facts
  sort -o podman.facts podman.facts
  sort -o mydocker.facts mydocker.facts
  diff podman.facts mydocker.facts | grep '^[<>]' >differences || :
  cat differences >&2
  is "$(grep -vE "$documented" differences)" ''
}

# ── Limits ───────────────────────────────────────────────────────────────────
# What holds on this host: cgroup v1, v2 or both. The limits are read where the kernel keeps them.

limit_file() { # limit_file CONTAINER NAME...: the path of the first of these files that its cgroups
  # have
  local - path name
  set +x
  for name in "${@:2}"; do
    for path in $(MYDOCKER_LOG=error "${mydocker[@]}" inspect -f .Record.cgroups "$1" |
      tr -d '[],"'); do
      if [[ -e $path/$name ]]; then echo "$path/$name"; return; fi
    done
  done
  fail "container $1 has none of the files ${*:2}"
}

need_limits() { # need_limits NAME...: these controllers, in v1 or v2
  local name
  for name; do
    grep -qE "[:,]${name}[:,]" /proc/self/cgroup ||
      grep -qsw "$name" /sys/fs/cgroup/cgroup.controllers ||
      skip "needs the cgroup controller $name"
  done
}

hog='x = bytearray(200 << 20); print("had it")'

test_limit_memory() { # limits: a 64 MB limit kills an allocation of 200 MB, and only that container
  need_limits memory
  start run /bin/sh -c 'echo ready; exec sleep 1000'
  wait_for has out ready
  run 137 run -m 64m "$PYTHON" -I -c "$hog"
  is "$out" ''
  run 137 run -mem 64m "$PYTHON" -I -c "$hog"
  run 0 run --memory=400m "$PYTHON" -I -c "$hog"
  is "$out" 'had it'
  run 0 run "$PYTHON" -I -c "$hog"
  if gone "$pid"; then fail 'the other container is gone, too'; fi
}

test_limit_oom() { # limits: inspect says OOMKilled of a container that went over its memory,
  # and of no other
  need_limits memory
  own_state
  small_root root
  run 0 import root box
  run 137 run -m 32m --name hog box /bin/sh -c 'x=aaaaaaaa; while :; do x=$x$x; done'
  run 0 inspect hog
  like "$out" '"OOMKilled": true'
  run 137 run --init --name killed box /bin/sh -c 'kill -KILL $$'
  run 0 inspect killed
  like "$out" '"OOMKilled": false'
}

test_limit_cpus() { # limits: --cpus 0.5 and -cpu 50 let a busy loop have half a processor
  need_limits cpu
  local option share throttled used quota busy='
import os, time
for top in "/sys/fs/cgroup/cpu/", "/sys/fs/cgroup/cpu,cpuacct/", "/sys/fs/cgroup/":
    if os.path.exists(top + "cpu.stat"):
        break
def throttled():
    return int(dict(line.split() for line in open(top + "cpu.stat"))["nr_throttled"])
begin, used, before = time.monotonic(), time.process_time(), throttled()
while time.monotonic() < begin + 4:
    pass
used = time.process_time() - used
print(round(100 * used / (time.monotonic() - begin)), throttled() - before, round(1000 * used),
      *open(top + ("cpu.max" if os.path.exists(top + "cpu.max") else "cpu.cfs_quota_us")))'
  for option in --cpus=0.5 -cpu=50; do
    run 0 run "$option" "$PYTHON" -I -c "$busy"
    read -r share throttled used quota <<<"$out"
    ((share <= 60)) || fail "$option: $share % of a processor"
    # a busy host gives less than is allowed: then what counts is that no period was cut short
    # before its 50 ms
    ((share >= 40 || used >= 40 * throttled)) || fail "$option: only $share % of a processor"
    like "$quota" '^50000( 100000)?$'
  done
}

test_limit_exec() { # limits: they hold for exec's processes, and again after a restart,
  # under the device rules, too
  need_limits pids
  local count='import os
for count in range(1, 1000):
    try:
        if not os.fork():
            os.read(os.pipe()[0], 1)
    except OSError:
        break
print(count)'
  own_state
  run 0 run -d --name box --pids-limit 10 --ulimit nofile=99:100 --oom-score-adj 300 \
    /bin/sh -c 'trap "exit 3" TERM; while :; do sleep 1000 & wait; done'
  run 0 exec box /bin/sh -c 'ulimit -Hn; cat /proc/self/oom_score_adj'
  is "$out" $'100\n300'
  run 0 exec box "$PYTHON" -I -c "$count"
  is "$out" 8
  for _ in 1 2; do
    run 0 restart -t 5 box
    is "$(<"$(limit_file box pids.max)")" 10
    run 0 exec box /bin/sh -c '(: </dev/kmsg) 2>&1 || :'
    [[ ! -e /dev/kmsg ]] || like "$out" 'not permitted'
  done
  run 0 inspect --format '{{.HostConfig.PidsLimit}} {{.State.OOMKilled}}' box
  is "$out" '10 false'
  run 0 inspect box
  like "$out" '"pids.max": "10"'
  run 0 rm -f box
}

test_limit_pids() { # limits: --pids-limit stops a fork bomb, and teardown kills all of it
  need_limits pids
  local procs freezer
  own_state
  run 0 run --pids-limit 20 "$PYTHON" -I -c '
import os
count = 1
try:
    while os.fork():
        count += 1
    os.read(os.pipe()[0], 1)
except OSError:
    print(count)'
  is "$out" 20
  start run --name bomb --pids-limit 100 /bin/bash -c 'bomb() { bomb | bomb & }; echo ready; bomb
      while :; do :; done' 2>err
  wait_for has out ready
  procs=$(limit_file bomb pids.current)
  wait_for bombed "$procs"
  sleep 1000 & # one that doesn't die with the container's PID 1
  echo "$!" >"${procs%/*}/cgroup.procs"
  freezer=$(limit_file bomb cgroup.freeze freezer.state)
  echo "$!" >"${freezer%/*}/cgroup.procs"
  kill -KILL "$pid" # the monitor: the next command tidies up
  ended 137
  run 0 ps -q
  is "$out" ''
  [[ ! -e ${procs%/*} && ! -e ${freezer%/*} ]]
  wait_for gone "$!"
}
bombed() { # bombed FILE: 90 processes are there
  (($(<"$1") >= 90))
}

test_limit_cpuset() { # limits: -cpuset pins
  need_limits cpuset
  local last
  last=$(sed -n 's/^Cpus_allowed_list:.*[^0-9]\([0-9]*\)$/\1/p' /proc/self/status)
  run 0 run -cpuset "$last" --cpuset-mems 0 /bin/sed -n 's/^\(Cpus\|Mems\)_allowed_list:\t//p' \
    /proc/self/status
  is "$out" "$last"$'\n0'
}

test_limits_apart() { # limits: two containers don't touch each other's, update changes those of one
  need_limits memory pids cpu
  start run --name one -m 64m --pids-limit 50 -c 2048 /bin/sh -c 'echo ready; exec sleep 1000'
  wait_for has out ready
  start run --name two -m 128m --memory-swap 200m --memory-reservation 32m --cpus 1.5 \
    /bin/sh -c 'echo ready; exec sleep 1000'
  wait_for has out ready
  is "$(<"$(limit_file one memory.limit_in_bytes memory.max)")" 67108864
  is "$(<"$(limit_file two memory.limit_in_bytes memory.max)")" 134217728
  is "$(<"$(limit_file two memory.soft_limit_in_bytes memory.low)")" 33554432
  is "$(<"$(limit_file one pids.max)") $(<"$(limit_file two pids.max)")" '50 max'
  like "$(<"$(limit_file two cpu.cfs_quota_us cpu.max)")" '^150000( 100000)?$'
  like "$(<"$(limit_file one cpu.shares cpu.weight)")" '^(2048|174)$'
  run 0 update -m 256m --pids-limit 60 --cpu-period 50000 --cpu-quota 20000 two
  is "$out" two
  run 0 inspect \
    --format '{{.HostConfig.Memory}} {{.HostConfig.PidsLimit}} {{.HostConfig.CpuQuota}}' two
  is "$out" '268435456 60 20000'
  is "$(<"$(limit_file two memory.limit_in_bytes memory.max)")" 268435456
  like "$(<"$(limit_file two cpu.cfs_quota_us cpu.max)")" '^20000( 50000)?$'
  is "$(<"$(limit_file one pids.max)") $(<"$(limit_file two pids.max)")" '50 60'
  run 0 update --memory 32m two # less than before: swap must not be in the way
  fails 125 '^mydocker: --cpuset-cpus, on 9999: ' update --cpuset-cpus 9999 two
  fails 125 'no such container' update -m 64m three
  kill -KILL "$pid"
  ended 137
  is "$(<"$(limit_file one memory.limit_in_bytes memory.max)") $(<"$(limit_file one pids.max)")" \
    '67108864 50'
}

test_update_whole() { # limits: update changes all that it was told, or nothing: not in the kernel,
  # and not on disk; --pids-limit 0 is no limit, --restart is another policy
  need_limits memory pids cpu cpuset
  local before
  own_state
  background --name t -m 64m --pids-limit 20 --cpus 0.5 --restart always /bin/sleep 1000
  before=$(all_limits t)
  like "$before" '67108864.*20'
  fails 125 '^mydocker: --cpuset-cpus, on 9999: ' update -m 128m --pids-limit 30 --cpus 0.2 \
    --cpuset-cpus 9999 t
  is "$(all_limits t)" "$before"
  fails 125 '^mydocker: unified, on x: there is no cgroup with nosuch.file here$' update -r - t \
    <<<'{
    "memory": {"limit": 33554432}, "unified": {"nosuch.file": "x"}}'
  fails 125 '^mydocker: hugepageLimits, on .*' update -r - t <<<'{
    "pids": {"limit": 7}, "hugepageLimits": [{"pageSize": "3MB", "limit": 1}]}'
  is "$(all_limits t)" "$before"
  run 0 update --pids-limit 0 --restart no t
  is "$(<"$(limit_file t pids.max)")" max
  run 0 inspect --format '{{.HostConfig.RestartPolicy.Name}}' t
  is "$out" no
  fails 125 '^mydocker: --restart, on nosuch: ' update --restart nosuch t
  fails 125 '^mydocker: --cpus, on 100000: more than this host'\''s processors, ' update \
    --cpus 100000 t
  fails 125 '^mydocker: --cpu, on 10000000: more than' run --cpu 10000000 /bin/true
  kill -KILL "$(pid_of t)"
  run 0 wait t # no policy starts it again
  run 0 run --pids-limit 0 /bin/echo free
  is "$out" free
}
all_limits() { # all_limits CONTAINER: what the kernel says, and what is on record
  cat "$(limit_file "$1" memory.limit_in_bytes memory.max)" "$(limit_file "$1" pids.max)" \
    "$(limit_file "$1" cpu.cfs_quota_us cpu.max)" "$(limit_file "$1" cpuset.cpus)"
  run 0 inspect --format '{{json .HostConfig}}' "$1"
  echo "$out"
}

test_limit_values() { # limits: a bad value is an error that names option and value,
  # and nothing starts
  local words
  while read -ra words; do
    fails 125 "^mydocker: ${words[0]}, on .*${words[1]/#[*]/\\*}" run "${words[0]}" "${words[1]}" \
      /bin/echo started
  done <<'END'
--memory 1m
--memory -5
--memory-swap 1x
--memory-reservation lots
--cpus half
--cpus -1.5
--cpu-shares 1.5
--cpu-quota 1e6
--cpuset-cpus 9999
--cpuset-cpus 0-
--cpuset-cpus ../0
--cpuset-mems 77
--pids-limit many
--oom-score-adj 2000
--oom-score-adj x
--ulimit files=1
--ulimit nofile
--ulimit nofile=5:x
--ulimit nofile=9:5
--sysctl net.ipv4.nosuch=1
--sysctl kernel.panic=1
--sysctl vm.swappiness=1
--sysctl net.ipv4/../../kernel/panic=1
--sysctl net./../../kernel.panic=1
--sysctl net..ipv4=1
--sysctl net/../kernel/panic=1
--sysctl net.//.panic=1
--sysctl vm/swappiness=1
--sysctl net.ipv4.ip_forward=x
END
  fails 125 '^mydocker: --cgroup-parent.*, on /../x' run --cgroup-parent /../x /bin/true
  need_limits cpu memory
  fails 125 '^mydocker: --cpu.*, on (0.5|50000): not with' run --cpus 0.5 --cpu-quota 5000 /bin/true
  fails 125 '^mydocker: --memory-swap, on 67108864: invalid' run --memory-swap 64m -m 128m /bin/true
}

test_limit_sysctl() { # limits: --sysctl sets the container's own network and IPC, not the host's
  local before other
  before=$(cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax)
  other=$((! $(</proc/sys/net/ipv4/ip_forward)))
  run 0 run --sysctl "net.ipv4.ip_forward=$other" --sysctl kernel.msgmax=4242 \
    /bin/cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax
  is "$out" "$other"$'\n4242'
  is "$(cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax)" "$before"
}

test_limit_process() { # limits: --ulimit and --oom-score-adj;
  # what the host doesn't grant is a warning
  run 0 run --ulimit nofile=99:100 --ulimit core=0 --oom-score-adj 500 -u 1 /bin/sh -c \
    'ulimit -Sn; ulimit -Hn; ulimit -Sc; cat /proc/self/oom_score_adj'
  is "$out$err" $'99\n100\n0\n500'
  ulimit -n 1000
  run 0 run --ulimit nofile=1000:2000 --oom-score-adj -900 /bin/sh -c 'ulimit -Hn
      cat /proc/self/oom_score_adj'
  if [[ $err ]]; then
    like "$err" \
      '^mydocker: warning: --ulimit, on nofile.*CAP_SYS_RESOURCE.*warning: --oom-score-adj, on -900'
  else
    is "$out" $'2000\n-900'
  fi
}

test_limit_devices() { # limits: a container can use the usual devices and those of --device,
  # no others
  own_state
  small_root root
  run 0 import root box
  mknod kmsg c 1 11
  run 0 run --rm box /bin/sh -c 'set -e; echo x >/dev/null; : </dev/zero; : </dev/urandom
      : </dev/full; : <>/dev/ptmx'
  run 0 run --rm --cap-add SYSLOG --device "$PWD/kmsg:/dev/probe" box \
    /bin/sh -c '(: </dev/probe) || :'
  unlike "$err" 'Operation not permitted'
  run 0 run --rm --cap-add SYSLOG --device "$PWD/kmsg:/dev/probe:w" box /bin/sh -c ': >/dev/probe
      (: </dev/probe) || :'
  like "$err" '^[^'$'\n'']*probe: Operation not permitted$'
  [[ ! -c /dev/kmsg ]] || { run 0 run --cap-add SYSLOG /bin/sh -c '(: </dev/kmsg) || :'
    like "$err" 'kmsg: Operation not permitted'; }
}

test_limit_devices_forbidden() { # limits: where a filter around us forbids device rules, nothing
  # starts without them, but what is to have none
  need cgroup-v2 unshare umount
  own_state # what others have left is swept where its cgroups can be seen
  cat >filtered.py <<'END'
import ctypes, os, struct, sys

number = {"x86_64": 321, "aarch64": 280}[os.uname().machine]  # bpf(2)
rows = (0x20, 0, 0, 0), (0x15, 0, 1, number), (6, 0, 0, 0x50001), (6, 0, 0, 0x7FFF0000)
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *row) for row in rows))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 4, ctypes.addressof(code)))
assert ctypes.CDLL(None).prctl(22, 2, program, 0, 0) == 0  # PR_SET_SECCOMP
os.execv(sys.argv[1], sys.argv[1:])
END
  PYTHON=$PYTHON own_mounts '
    umount $(awk "/ - cgroup / {print \$5}" /proc/self/mountinfo) || : # v1 needs no bpf(2)
    "$@" run /bin/true
    status=0
    "$PYTHON" -I filtered.py "$@" run /bin/echo started >out 2>err || status=$?
    [ "$status $(cat out)" = "125 " ]
    grep "^mydocker: device rules: the kernel takes none from us" err
    [ "$("$PYTHON" -I filtered.py "$@" run --privileged /bin/echo started)" = started ]'
}

test_limit_no_trees() { # limits: where the cgroup trees are read-only, or not mounted, the hint
  # says so
  need unshare mount umount
  own_state # what others have left is swept where its cgroups can be seen
  own_mounts '
    trees=$(grep -E " - cgroup2? " /proc/self/mountinfo | cut -d " " -f 5)
    for path in $trees; do mount -o remount,bind,ro "$path"; done
    "$@" run /bin/true
    ! "$@" run -m 50m /bin/true 2>err
    grep "^hint: the cgroup trees are mounted read-only" err
    umount $trees || umount -l $trees # one may hold others
    "$@" run /bin/true
    ! "$@" run --pids-limit 9 /bin/true 2>err
    grep "^hint: no cgroup tree is mounted here: mount -t" err'
}

test_limit_view() { # limits: the container sees its own cgroup alone, read-only,
  # and no release_agent
  run 0 run -m 64m /bin/sh -c 'cat /proc/self/cgroup; find /sys/fs/cgroup -name release_agent
    for f in $(find /sys/fs/cgroup -name cgroup.procs); do { echo $$ >$f; } 2>&1; done; :'
  unlike "$out" ':/[^'$'\n'']'
  unlike "$out" 'release_agent'
  like "$out" 'cgroup.procs: Read-only file system'
  is "$(grep -v ':/$' <<<"$out" | grep -cv 'Read-only file system')" 0
}

test_limit_parent() { # limits: --cgroup-parent is where the container's cgroups go
  local parent=mydocker-test.$unique path
  start run --name child --cgroup-parent "/$parent" /bin/sh -c 'echo ready; exec sleep 1000'
  wait_for has out ready
  path=$(limit_file child cgroup.procs)
  like "$path" "/$parent/mydocker/[0-9a-f]{64}/cgroup.procs$"
  has "$path" .
  kill -KILL "$pid"
  ended 137
  run 0 ps
  [[ ! -e ${path%/*} ]]
  find /sys/fs/cgroup -depth -type d -path "*/$parent*" -exec rmdir {} +
}

test_limit_nested() { # limits: they hold in a v2 cgroup with processes in it, as in a container
  need unshare mount
  need_limits memory
  own_state # what others have left is swept where its cgroups can be seen
  local top=/sys/fs/cgroup/mydocker-test.$unique got=0
  [[ -e /sys/fs/cgroup/cgroup.subtree_control ]] || return 0 # v1 knows no such rule
  echo '+memory +pids' >/sys/fs/cgroup/cgroup.subtree_control
  mkdir "$top"
  cat >inside <<'END'
umount -l /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup # in a cgroup namespace: its own part is the top
"$@" run /bin/true || exit 1
grep -x 0::/mydocker.aside /proc/self/cgroup || exit 2
"$@" run -m 64m "$PYTHON" -I -c 'x = bytearray(200 << 20)'
END
  PYTHON=$PYTHON bash -c 'echo $$ >"$0/cgroup.procs"; exec "$@"' "$top" unshare \
    --cgroup --mount bash -x inside "${mydocker[@]}" || got=$?
  rmdir "$top"/mydocker* "$top"
  is "$got" 137
}

test_limit_covered() { # limits: a cgroup tree that is covered by another mount isn't believed,
  # and one mounted whole comes before a part of it, another container's say
  need unshare awk mount
  need_limits pids
  own_state
  own_mounts '
    mount -t tmpfs none /sys/fs/cgroup
    "$@" run /bin/true
    [ -z "$(ls -A /sys/fs/cgroup)" ]
    status=0
    "$@" run --pids-limit 5 /bin/true 2>err || status=$?
    [ "$status" = 125 ] && grep "there is no cgroup with pids.max here" err
    umount /sys/fs/cgroup
    tree=$(awk "/ - cgroup2? / && (/ - cgroup .*pids/ || \$5 == \"/sys/fs/cgroup\") {print \$5}" \
      /proc/self/mountinfo)
    part=$tree/mydocker-test-$unique
    mkdir "$part" part whole
    mount --bind "$part" part
    mount --bind "$tree" whole
    umount -l "$tree"
    "$@" run --pids-limit 5 /bin/true
    rmdir whole/mydocker-test-$unique # and nothing is in it
    id=$("$@" run -d --name t --pids-limit 5 /bin/sleep 1000)
    [ -d "whole/mydocker/$id" ]
    "$@" rm -f t'
}

test_stats() { # limits: stats shows what a container uses, as a table, as JSON and by template
  need_limits memory pids
  start run --name busy -m 64m /bin/sh -c 'echo ready; while :; do :; done'
  wait_for has out ready
  run 0 stats --no-stream busy
  like "$(sed -n 1p <<<"$out")" \
    '^CONTAINER ID +NAME +CPU % +MEM USAGE / LIMIT +MEM % +NET I/O +BLOCK I/O +PIDS$'
  like "$(sed -n 2p <<<"$out")" "^[0-9a-f]{12} +busy +[0-9.]+% +[0-9.]+[kM]?B / 67\\.1MB +[0-9.]+% "
  like "$out" '% +0B / 0B +[^ ]+ / [^ ]+ +1$'
  run 0 stats --no-stream --format '{{.Name}} {{.PIDs}} {{.CPUPerc}}'
  like "$out" '^busy 1 [0-9.]*[1-9][0-9.]*%$'
  run 0 stats --no-stream --format json
  like "$out" '^\{"ID": "[0-9a-f]{12}", "Name": "busy", "CPUPerc": .*"PIDs": "1"\}$'
  run 0 create --name "idle$n" --rootfs / /bin/true
  run 0 stats --no-stream -a --no-trunc
  like "$out" $'\n[0-9a-f]{64} +busy '
  like "$out" $'\n[0-9a-f]{64} +'"idle$n"' +0.00% +0B / 0B +0.00% +0B / 0B +0B / 0B +0($|'$'\n'')'
  run 0 stats --no-stream
  unlike "$out" idle
  run 0 rm "idle$n"
  fails 125 '^mydocker: --format, on ' stats --no-stream --format '{{.Nosuch}}' busy
  timeout -k 5 20 "${mydocker[@]}" stats --format '{{.Name}}' >many & # a line a second
  wait_for has_lines many 2
  kill "$!"
  kill -KILL "$pid"
  ended 137
}
has_lines() { # has_lines FILE COUNT
  (($(wc -l <"$1") >= $2))
}

test_limit_exec_tight() { # limits: exec needs no more than its command does, and what the memory
  # limit kills of it is said
  need_limits pids memory
  own_state
  local terminal
  background --name p --pids-limit 2 /bin/sleep 1000
  background --name f --ulimit nofile=4 /bin/sleep 1000
  background --name u --ulimit nproc=2 --ulimit nofile=5 -u "$((60000 + RANDOM % 5000))" \
    /bin/sleep 1000
  background --name m -m 6m /bin/sleep 1000
  for terminal in '' -t; do
    for name in p f u m; do
      # shellcheck disable=SC2086 # one word, or none
      run 0 exec $terminal "$name" /bin/echo "hello $name"
      is "${out%$'\r'}" "hello $name"
    done
  done
  run 0 exec u /bin/sh -c 'ulimit -Hn' # it can't be set from outside without CAP_SYS_RESOURCE
  is "$out" 5
  run 0 inspect -f .State.OOMKilled m
  is "$out" false
  run 137 exec m /bin/sh -c 'x=x; while :; do x=$x$x; done'
  run 0 inspect -f .State.OOMKilled m
  is "$out" true
  is "$(state_of m)" running
  run 0 rm -f p f u m
}

test_limit_restarted() { # limits: what update has changed holds when a restart policy starts the
  # container again
  need_limits memory
  local before file
  own_state
  background --name u --restart always -m 64m /bin/sleep 1000
  run 0 update -m 128m u
  before=$(pid_of u)
  kill -KILL "$before"
  wait_for eval '[[ $(state_of u) == running && $(pid_of u) != "$before" ]]'
  file=$(limit_file u memory.limit_in_bytes memory.max)
  is "$(<"$file")" "$((128 << 20))"
  run 0 inspect -f .HostConfig.Memory u
  is "$out" "$((128 << 20))"
  run 0 rm -f u
}

test_limit_more() { # limits: docker's other ones, of disks, swapping and the out-of-memory killer,
  # are written to the kernel by run and update, or refused by their names
  local device numbers option file value
  need_limits memory
  own_state
  for option in '--device-read-bps /dev/null:1m' '--device-read-bps nosuch:1m' \
    '--device-read-iops /dev/nosuch:1' '--device-write-bps 1m' '--memory-swappiness 101' \
    '--blkio-weight x' '--cpu-burst -2'; do
    # shellcheck disable=SC2086 # they are two words
    fails 125 "^mydocker: ${option%% *}, on " run $option /bin/true
  done
  if device=$(find /dev -maxdepth 1 -type b -name '[vs]d?' -print -quit) && [[ $device ]]; then
    numbers=$(stat -c '%Hr:%Lr' "$device")
    if run 0 run -d --name disk --device-read-bps "$device:2m" --device-write-iops "$device:70" \
      /bin/sleep 1000; then
      like "$(<"$(limit_file disk blkio.throttle.read_bps_device io.max)")" "^$numbers .*2097152"
      like "$(<"$(limit_file disk blkio.throttle.write_iops_device io.max)")" "^$numbers .*70"
    fi
  fi
  run 0 run -d --name box -m 64m /bin/sleep 1000
  file=$(limit_file box memory.swappiness)
  if [[ $file ]]; then
    run 0 update --memory-swappiness 7 --oom-kill-disable box
    is "$(<"$file")" 7
    like "$(<"$(limit_file box memory.oom_control)")" 'oom_kill_disable 1'
    run 0 inspect -f '{{.HostConfig.MemorySwappiness}} {{.HostConfig.OomKillDisable}}' box
    is "$out" '7 true'
    run 0 run -d --name none --memory-swappiness 0 /bin/sleep 1000
    is "$(<"$(limit_file none memory.swappiness)")" 0
  else
    fails 125 'memory.swappiness, on 7: there is no cgroup with memory.swappiness here' update \
      --memory-swappiness 7 box
  fi
  file=$(limit_file box cpu.cfs_burst_us cpu.max.burst)
  if [[ $file ]]; then
    run 0 update --cpus 0.5 box
    run 0 update --cpu-burst 20000 box
    is "$(<"$file")" 20000
  fi
}

# ── Terminal and logs ────────────────────────────────────────────────────────

test_narration() { # tty: only -it tells the steps, --log-level and MYDOCKER_LOG say otherwise
  local options
  for options in '' -i -t '-it --log-level warning' '-it --log-level=error'; do
    # shellcheck disable=SC2086 # several words
    run 0 run $options /bin/true
    is "$err" ''
  done
  for options in -it '-i -t' '-ti' '--interactive --tty' '--log-level info' '--log-level debug'; do
    # shellcheck disable=SC2086
    run 0 run $options /bin/true
    like "$err" '"msg":"init come on".*"msg":"command: /bin/true".*"msg":"command:/bin/true"'
    is "$out" ''
  done
  MYDOCKER_LOG=info run 0 run /bin/true
  like "$err" '"msg":"init come on"'
  MYDOCKER_LOG=warning run 0 run -it /bin/true
  is "$err" ''
  MYDOCKER_LOG=warning run 0 run --log-level info /bin/true
  like "$err" '"msg":"init come on"'
  run 0 run --log-level info /bin/echo $'a"b\\\n\xff'
  "$PYTHON" -I -c 'import json, sys
for line in sys.stdin.buffer.read().decode().splitlines():
    json.loads(line)' <"$scratch/stderr"
}

test_caller_descriptors() { # tty: without -t pipes are the caller's own, files and terminals stay
  # outside
  local what \
    say='echo more; echo evil 2>/dev/null >/proc/self/fd/0; : >/proc/self/fd/1; : >/proc/self/fd/2'
  exec 5< <(echo one; echo two)
  what=$(readlink /proc/self/fd/5)
  is "$("${mydocker[@]}" run -i /usr/bin/readlink /proc/self/fd/0 <&5)" "$what"
  is "$("${mydocker[@]}" run -i /bin/cat <&5)" $'one\ntwo'
  is "$("${mydocker[@]}" run /bin/ls -l /proc/self/fd 2>&1 | grep -c 'pipe:')" 2 # 0 is /dev/null
  make_image "t$n:1"
  background --name "d$n" "t$n:1" /bin/sleep 1000
  for what in "run -i" "run -i --rm t$n:1" "exec -i d$n"; do
    # shellcheck disable=SC2086 # they are words
    {
      printf 'one\ntwo\n' >in
      echo log >out
      echo err >err
      "${mydocker[@]}" $what /bin/sh -c "read x; echo \$x; $say" <in >>out 2>>err
      is "$(<in) $(<out) $(<err)" $'one\ntwo log\none\nmore err'
      # what isn't read is the next one's
      { "${mydocker[@]}" $what /bin/sh -c : && cat; } <in >out
      cmp in out
      tty 0 -- sh -c '"$@" </dev/null' sh "${mydocker[@]}" ${what/-i/} /bin/sh -c \
        'for fd in 0 1 2; do [ ! -t $fd ] || echo "$fd is a terminal"; done; ls -l /proc/self/fd/1'
      unlike "$out" 'terminal|/dev/(pts|tty)'
    }
  done
  # a reader that leaves ends who writes, by the signal, also where bytes are copied
  {
    "${mydocker[@]}" run --init /bin/sh -c 'while :; do echo y; done' 2>err || echo "$?" >status
  } | head -n 1 >out
  is "$(<out) $(<status)" 'y 141'
  run 0 rm -f "d$n"
}

test_job_control_outside() { # tty: with -i and no -t, Ctrl-Z and & leave what is typed next to the
  # shell
  local command="${mydocker[*]} run -i /bin/sh -c 'echo r\"\"eady; exec cat'"
  tty 0 'P> ' "$command &"$'\n' 'ready\n' $'echo o""ne\n' 'one\n' $'echo t""wo\n' 'two\n' \
    $'echo th""ree\n' 'three\n' $'kill -KILL %1; exec true\n' -- env PS1='P> ' \
    bash --norc --noediting -i
  tty 0 'P> ' "$command"$'\n' 'ready\n' $'abc\n' 'abc\nabc' $'\x1a' 'Stopped' $'echo o""ne\n' \
    'one\n' $'echo t""wo\n' 'two\n' $'fg\n' 'cat' $'def\n' 'def\ndef' $'\x04' 'P> ' $'exit 0\n' \
    -- env PS1='P> ' bash --norc --noediting -i
}

test_no_interactive() { # tty: without -i standard input is empty
  is "$(echo hello | "${mydocker[@]}" run /bin/cat)" ''
  is "$(echo hello | "${mydocker[@]}" run /usr/bin/readlink /proc/self/fd/0)" /dev/null
  is "$(echo hello | { "${mydocker[@]}" run /bin/cat; cat; })" hello
}

test_interactive_pipe() { # tty: -i without -t passes bytes and the end of file
  head -c 3000000 /dev/urandom >data
  "${mydocker[@]}" run -i /bin/cat <data >out
  cmp out data
  # shellcheck disable=SC2002 # a pipe is the point
  cat data | "${mydocker[@]}" run -i /usr/bin/wc -c >out
  is "$(<out)" 3000000
}

test_tty_modes() { # tty: -t gives a terminal, with both output streams on it
  run 0 run -t /bin/sh -c 'test -t 0; echo $?; test -t 1; echo $?; test -t 2; echo $?
      echo oops >&2; tty'
  like "${out//$'\r'/}" $'^0\n0\n0\noops\n/dev/(pts/[0-9]+|console)$'
  is "$err" ''
  run 7 run -t /bin/sh -c 'exec </dev/tty; echo hello; exit 7'
  is "$out" $'hello\r'
}

test_tty_without_input() { # tty: -t without -i leaves the caller's input unread and its Ctrl-C
  # working
  tty 0 '^ready$' $'hello\r' hello '@do touch typed' -- bash -c "
    \"\$@\" run -t /bin/sh -c 'echo ready; until [ -e typed ]; do sleep 0.05; done'
    read -r x; [[ \$x == hello ]]" bash "${mydocker[@]}"
  tty 3 '^ready$' $'\x03' -- "${mydocker[@]}" run -t /bin/sh -c \
    'trap "echo got; exit 3" INT; echo ready; while :; do sleep 0.05; done'
}

test_input_is_a_pipe() { # tty: -it relays an input that isn't a terminal, and its end
  local got=0
  printf 'echo h""i\nexit 5\n' | "${mydocker[@]}" run -it /bin/sh >out 2>err || got=$?
  is "$got" 5
  has out 'hi'
  printf 'whole line\nhalf a line' | timeout -k 5 "$patience" "${mydocker[@]}" run -it /bin/cat \
    >out 2>err
  local half='half a line'
  like "$(<out)" "whole line.*$half.*whole line.*$half|whole line.*whole line.*$half$half"
  timeout -k 5 "$patience" "${mydocker[@]}" run -it /bin/cat </dev/null >out 2>err
  is "$(<out)" ''
  seq 60000 | timeout -k 5 "$patience" "${mydocker[@]}" run -it /usr/bin/wc -l >out 2>err
  is "$(tail -n 1 out)" $'60000\r'
}

test_size() { # tty: the size is right before the command starts, and follows
  tty 0 '^24 80$' '@size 31 97' '^31 97$' '@size 5 7' '^5 7$' $'\r' -- \
    "${mydocker[@]}" run -it "$PYTHON" -I -c '
import os, signal
def show():
    os.write(1, b"%d %d\n" % tuple(reversed(os.get_terminal_size(0))))
resized = {signal.SIGWINCH}  # blocked, so that none is lost between two waits
signal.pthread_sigmask(signal.SIG_BLOCK, resized)
show()
for _ in range(2):
    signal.sigwait(resized)
    show()
input()'
  tty 0 'now' '@size 50 132' -- bash -c 'echo now; until [[ $(stty size) == "50 132" ]]; do :; done
    "$@" run -it /bin/stty size; "$@" run -t /bin/stty size
    "$@" run -it /bin/stty size <&1 | cat
    "$@" run -it /bin/stty size </dev/null' bash "${mydocker[@]}"
  is "$(grep -c '^50 132$' <<<"$out")" 4
}

test_job_control() { # tty: Ctrl-C, Ctrl-Z, fg, Ctrl-\ and Ctrl-D work in a shell as they do outside
  local prompt='[#$] $' busy='sh -c "echo b""usy; exec sleep 1000"'$'\r'
  tty 4 "$prompt" "$busy" '^busy$' $'\x03' "$prompt" $'echo s""tatus $?\r' '^status 130$' '' \
    "$prompt" $'cat\r' 'cat$' $'abc\r' 'abc\nabc$' $'\x1a' 'Stopped|Suspended' '' \
    "$prompt" $'fg\r' 'cat$' $'def\r' 'def\ndef$' $'\x04' \
    "$prompt" "$busy" '^busy$' $'\x1c' 'Quit' '' "$prompt" $'(exit 4)\r' '[#$] $' $'\x04' \
    -- "${mydocker[@]}" run -it /bin/sh
  unlike "$out" "can't access tty|no job control"
}

test_keys_to_pid_1() { # tty: Ctrl-C reaches the command itself, Ctrl-D ends its input
  tty 3 '^ready$' $'\x03' -- "${mydocker[@]}" run -it /bin/sh -c \
    'trap "echo got; exit 3" INT; echo ready; while :; do sleep 0.05; done'
  tty 0 'command:/bin/cat' $'hello\r' 'hello\nhello\n' $'\x04' -- "${mydocker[@]}" run -it /bin/cat
  tty 130 '^ready$' $'\x03' -- "${mydocker[@]}" run -it --init /bin/sh -c 'echo ready
      exec sleep 1000'
}

test_modes_restored() { # tty: the terminal's modes are restored on every way out
  tty 127 -- "${mydocker[@]}" run -it /no/such/program
  # `tty` compares them itself; raw mode is on when the command says ready
  tty 9 '^ready$' '@do touch go' -- bash -c '
    "$@" run -it /bin/sh -c "trap \"exit 9\" TERM; echo ready; while :; do sleep 0.05; done" &
    until [[ -e go ]]; do sleep 0.05; done; kill $!; wait $!' bash "${mydocker[@]}"
  tty 137 '^ready$' '@do touch gone' -- "${mydocker[@]}" run -it --init /bin/sh -c \
    "echo ready; until [ -e gone ]; do sleep 0.05; done; kill -KILL \$\$"
  tty 0 '^ready$' 'xyz' -- "${mydocker[@]}" run -it /bin/sh -c 'stty raw -echo; echo ready
      head -c 3 >/dev/null'
}

test_hangup() { # tty: a terminal that goes away ends the container's shell
  tty 0 '[#$] $' @hangup -- bash -c "trap '' HUP; \"\$@\" 2>err; echo \$? >status; :" bash env \
    --default-signal=HUP "${mydocker[@]}" run -it /bin/sh
  is "$(grep -v '^{"level"' err)" ''
  like "$(<status)" '^(0|1|2|129)$'
}

test_100_mb() { # tty: 100 MB arrive through the terminal complete
  local size=104857600 want
  want=$(seq 100000000 | head -c $size | sha256sum)
  is "$("${mydocker[@]}" run -t /bin/sh -c "stty raw; seq 100000000 | head -c $size" | sha256sum)" \
    "$want"
  want=$(seq 2000000 | sha256sum)
  is "$("${mydocker[@]}" run -t /bin/sh -c 'stty raw; seq 2000000' | { sleep 0.5; sha256sum; })" \
    "$want"
}

test_last_words() { # tty: what the command printed last is never lost
  local i
  for ((i = 0; i < 20; i++)); do
    run 0 run -t /bin/sh -c 'echo first; echo last'
    is "$out" $'first\r\nlast\r'
  done
  # a process left behind in the container keeps nobody waiting
  run 0 run -t /bin/sh -c 'sleep 1000 & echo done'
  run 0 run /bin/sh -c 'sleep 1000 & echo done'
  is "$out" 'done'
}

# Tries to type into the caller's terminal: by every descriptor there is, and by /dev/tty
push_back='
import fcntl, glob, os
for path in ["/dev/tty"] + glob.glob("/proc/[0-9]*/fd/*"):
    try:
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY)
        for key in b"echo pushed\r":
            fcntl.ioctl(fd, 0x5412, bytes([key]))
    except OSError as error:
        pass
print("tried")'

test_no_push_back() { # tty: nothing can be typed into the caller's terminal from inside, TIOCSTI,
  # CVE-2017-5226
  local options
  for options in -it -t '-it --init'; do
    tty 1 tried '' -- bash -c "\"\$1\" \"\$2\" run $options \"\$1\" -I -c \"\$3\"
        IFS= read -r -t 1 line && echo \"typed \$line\"; exit 1" \
      bash "${mydocker[@]}" "$push_back"
    unlike "$out" 'typed'
  done
}

test_closed_descriptors() { # tty: closed standard descriptors do no harm
  "${mydocker[@]}" run /bin/sh -c 'echo one >1' <&-
  "${mydocker[@]}" run -i /bin/sh -c 'echo two >2' <&- >&- 2>&-
  "${mydocker[@]}" run -it /bin/sh -c 'echo three >3' <&- >&- 2>&-
  "${mydocker[@]}" run -t /bin/sh -c 'echo four >4' >&-
  is "$(cat 1 2 3 4)" $'one\ntwo\nthree\nfour'
  "${mydocker[@]}" run /bin/sh -c 'x=$(readlink /proc/$$/fd/[012]); echo "$x" >five' \
    <&- >&- 2>&-
  is "$(<five)" $'/dev/null\n/dev/null\n/dev/null'
  "${mydocker[@]}" run --init /bin/sh -c 'x=$(readlink /proc/$$/fd/[012])
    echo "$x" >five' >&- 2>/dev/null
  is "$(sed -n 2p five)" /dev/null
}

# A real terminal: a pane of tmux, 100x30, with a shell in it that runs `mydocker run -it /bin/sh`
in_tmux() {
  tmux -S tmux -f /dev/null "$@"
}
shows() { # shows REGEX: the pane's text matches
  local text
  text=$(in_tmux capture-pane -p -t 0:0)
  [[ $text =~ $1 ]]
}
pane() {
  need tmux
  trap '{ in_tmux capture-pane -p -t 0:0; in_tmux kill-server; } || :' EXIT
  printf '#!/bin/sh\nexec "%s" "%s" run -it /bin/sh\n' "${mydocker[@]}" >begin
  echo "PS1='host> '" >rc
  env -u TMUX TERM=xterm LC_ALL=C.UTF-8 tmux -S tmux -f /dev/null new-session -d -x 100 -y 30 \
    'exec bash --rcfile rc'
  in_tmux set -g status off
  in_tmux resize-window -t 0 -x 100 -y 30
  wait_for shows 'host>'
  keys 'sh begin' Enter
  wait_for shows $'\n[^\n]*[#$] *\n*$'
}
keys() {
  in_tmux send-keys -t 0:0 "$@"
}
prompted() { # the shell waits: what is typed before a program has given the terminal back is lost
  wait_for shows $'(^|\n)# *$'
}
leave() { # back to a shell outside whose terminal works
  prompted
  keys "exit" Enter
  wait_for shows $'host> *\n*$'
  keys 'echo b""ack; stty -a | grep -c " icanon"' Enter
  wait_for shows $'back\n1\nhost>'
}

test_editor() { # tty: an editor works in a real terminal
  need vi
  pane
  keys 'vi -u NONE file' Enter
  wait_for shows $'~\n~\n~\n'
  keys i 'hello' Enter 'world' Escape
  wait_for shows $'hello\nworld\n~'
  keys ':wq' Enter
  wait_for has file '^world$'
  is "$(<file)" $'hello\nworld'
  leave
}

test_pager() { # tty: a pager works in a real terminal
  need less
  seq 5000 >numbers
  pane
  keys 'less numbers' Enter
  wait_for shows $'1\n2\n.*29\n'
  keys G
  wait_for shows $'4999\n5000\n'
  keys '?^4242' Enter
  wait_for shows $'^4242\n'
  keys q
  leave
}

test_top() { # tty: top works in a real terminal, and follows its size
  need top
  pane
  keys 'top' Enter
  wait_for shows ' PID .*COMMAND'
  wait_for shows '1 root .* sh'
  in_tmux resize-window -t 0 -x 60 -y 15
  wait_for shows ' PID '
  keys q
  prompted
  in_tmux resize-window -t 0 -x 120 -y 40
  keys 'clear; until [ "$(stty size)" = "40 120" ]; do :; done; echo r""ight' Enter
  wait_for shows 'right'
  leave
}

test_keys_in_terminal() { # tty: Ctrl-C, Ctrl-Z and Ctrl-D typed in a real terminal
  pane
  keys 'clear; sh -c "echo b""usy; exec sleep 1000"' Enter
  wait_for shows 'busy'
  keys C-c
  keys "echo s''tatus \$?" Enter
  wait_for shows 'status 130'
  keys 'clear; echo r""eady; cat' Enter
  wait_for shows 'ready'
  keys 'abc' Enter
  wait_for shows $'abc\nabc'
  keys C-z
  wait_for shows 'Stopped|Suspended'
  keys 'fg' Enter
  wait_for shows $'fg\ncat'
  keys 'def' Enter
  wait_for shows $'def\ndef'
  keys C-d
  keys "clear; echo d''one" Enter
  wait_for shows 'done'
  leave
}

test_logs() { # logs: both streams apart and byte for byte, with times,
  # from the end or from a time on
  own_state
  run 0 run -d --name l /bin/sh -c 'echo one; echo two >&2; printf "half "; sleep 0.2
      printf "line\n\n\377\0bin\r\n"; printf end'
  run 0 wait l
  is "$out" 0
  "${mydocker[@]}" logs l >got 2>errors
  printf 'one\nhalf line\n\n\377\0bin\r\nend' | cmp - got
  printf 'two\n' | cmp - errors
  like "$(head -n 1 state/containers/*/container.log)" \
    '^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{9}Z std(out|err) F (one|two)$'
  run 0 logs -t l
  is "$(grep -acE '^[0-9-]{10}T[0-9:]{8}\.[0-9]{9}Z ' "$scratch/stdout")" 5
  like "$out" 'Z half line'
  run 0 logs --tail 2 l
  is "$(wc -l <"$scratch/stdout")" 1
  like "$out$err" 'end$'
  run 0 logs -n 0 l
  is "$out$err" ''
  run 0 logs --until 1h l
  is "$out$err" ''
  run 0 logs --since 1h --until 2100-01-01T00:00:00+08:00 l
  is "$(wc -c <"$scratch/stdout") $err" '25 two'
  run 0 logs --since "$(date +%s -d '+1 hour')" l
  is "$out$err" ''
  fails 125 '--since, on yesterday: not a time' logs --since yesterday l
  own_root_logs
}

own_root_logs() { # of a container in the foreground what comes by way of its terminal,
  # else nothing where pipes take it: it isn't copied
  make_image "t$n:1"
  run 3 run -t --name f "t$n:1" /bin/sh -c 'echo out; echo err >&2; exit 3'
  run 0 logs f
  is "$out $err" $'out\r\nerr\r '
  run 0 start f
  wait_for eval '[[ $("${mydocker[@]}" logs f | tr -d "\r" | tr "\n" " ") == "out err out err " ]]'
  is "$("${mydocker[@]}" run --name g "t$n:1" /bin/sh -c 'echo out' 2>&1 | cat)" out
  run 0 logs g
  is "$out$err" ''
}

test_logs_follow() { # logs: -f goes on over turned files, to the container's end and not beyond
  local follower
  own_state
  # not faster than it is followed: else a file goes before it was read
  background --name l --log-opt max-size=2k,max-file=3 \
    /bin/sh -c 'i=0
      while [ $i -lt 300 ]; do
        echo "line $i"; i=$((i+1))
        [ $((i % 10)) != 0 ] || until grep -sqx "line $((i-1))" got; do sleep 0.02; done
      done'
  "${mydocker[@]}" logs -f l >got 2>errors &
  follower=$!
  run 0 wait l
  wait "$follower"
  seq -f 'line %g' 0 299 | cmp - got
  is "$(<errors)" ''
  is "$(cd state/containers/* && ls container.log*)" \
    $'container.log\ncontainer.log.1\ncontainer.log.2'
  is "$(find state -name 'container.log*' -size +2048c)" ''
  run 0 logs l
  like "$out" '^line [0-9]+'$'\n.*\nline 299$'
  "${mydocker[@]}" logs -f l | tail -n 1 | grep -qx 'line 299' # at once
}

test_logs_never_block() { # logs: neither a full disk nor a reader who sleeps stops a container;
  # what is lost is said
  need unshare mount /mnt
  mkdir full
  MYDOCKER_ROOT=$PWD/full/state own_mounts 'mount -t tmpfs -o size=700k tmpfs full
    "$@" run -d --name l -v "$PWD:/mnt" /bin/sh -c "head -c 900000 /dev/zero | tr \"\0\" x
      until [ -e /mnt/go ]; do sleep 0.1; echo; echo full; done"
    until "$@" logs l 2>errors | tail -n 1 | grep -qx full; do sleep 0.1; done
    touch go; "$@" wait l >status; "$@" logs l >got 2>errors'
  is "$(<status)" 0
  is "$(tail -n 1 got)" full
  is "$(sed 's/^mydocker: [0-9]* bytes of output could not be logged$//' errors | tr -d '\n')" ''
  is "$(($(tr -dc x <got | wc -c) + $(grep -o '[0-9]*' errors | paste -sd + -)))" 900000
  own_state
  background --name y /bin/sh -c 'yes | head -n 3000000; echo done >&2'
  mkfifo pipe
  exec 8<>pipe
  "${mydocker[@]}" logs -f y >pipe 2>&1 8>&- & # nobody reads what it says
  run 0 wait y
  exec 8>&-
  wait $! || :
  run 0 logs --tail 5 y
  is "$err" 'done'
}

test_logs_turned_over() { # logs: a reader who is too slow is told so once
  own_state
  background --name l --log-opt max-size=1k --log-opt max-file=2 /bin/sh -c '
    i=0; while [ $i -lt 20000 ]; do echo "line $i"; i=$((i+1)); done'
  run 0 logs -f l
  (($(grep -c 'lines were turned over' <<<"$err") <= 1))
  like "$out" $'\nline 19999$'
}

# outsider [FIRST:COUNT]: from here on mydocker is run by an ordinary user, 23456, whose state is in
# ./home/mydocker; /etc/subuid and /etc/subgid give these ids to it. Nothing of that stays.
outsider() {
  need unshare mount setpriv
  own_state
  unset MYDOCKER_ROOT
  mkdir home
  cp "${mydocker[-1]}" home/program
  ln -s home/mydocker state # for finish
  export XDG_DATA_HOME=$PWD/home HOME=$PWD/home
  printf '%s' "${1:+outsider:$1}" >subid
  { cat /etc/passwd; echo 'outsider:x:23456:23456::/:/bin/sh'; } >passwd
  { cat /etc/group; echo 'outsider:x:23456:'; } >group
  chown 23456:23456 home home/program
  user=(unshare -m --propagation private bash -ec '
    for file in passwd group; do mount --bind "$0/$file" "/etc/$file"; done
    for file in subuid subgid; do
      [[ ! -e /etc/$file ]] || mount --bind "$0/subid" "/etc/$file"
    done
    [[ ! -c $0/tun ]] || mount --bind "$0/tun" /dev/net/tun
    prefix=${1%/bin/*} top=/${1#/} top=${top%"${top#/*/}"}
    shift
    if ! setpriv --reuid=23456 --clear-groups test -x "$prefix/bin"; then # in a home of root
      mkdir -p "$0/prefix"
      mount --bind "$prefix" "$0/prefix"
      mount -t tmpfs -o mode=755 none "$top"
      mkdir -p "$prefix"
      mount --move "$0/prefix" "$prefix"
    fi
    exec setpriv --reuid=23456 --regid=23456 --clear-groups --inh-caps=-all "$@"' \
    "$PWD" "$PYTHON")
  "${user[@]}" "$PYTHON" -c '' || skip 'an ordinary user can not reach this Python'
  "${user[@]}" unshare -U true || skip 'an ordinary user can not make a user namespace'
  if [[ ${1-} ]]; then need newuidmap newgidmap; fi
  mydocker=("${user[@]}" "$PYTHON" "$PWD/home/program")
}

test_rootless() { # rootless: an ordinary user is root in a container, and only there
  outsider
  run 7 run /bin/sh -c 'id -u; id -g; echo $$; cat /proc/self/uid_map
    : >"$1/home/made"; exit 7' sh "$PWD"
  is "$(head -n 3 <<<"$out")" $'0\n0\n1'
  like "$out" '0 +23456 +1$'
  is "$(stat -c %u:%g home/made)" 23456:23456
  is "$err" ''
  small_root root
  chown -R 23456:23456 root
  run 0 run --rootfs root --read-only /bin/sh -c 'ls /; ls -l /dev/null
    read -r name </proc/1/comm; echo "$name"'
  like "$out" $'\nproc\n'
  is "${out##*$'\n'}" sh
  run 0 run --ephemeral /bin/sh -c 'echo lost >/usr/lost; cat /usr/lost'
  is "$out" lost
  [[ ! -e /usr/lost ]]
  tty 3 '[#$] ' $'test -t 0 && echo is a $((1))\n' '^is a 1' $'exit 3\n' -- \
    "${mydocker[@]}" run -it /bin/sh
  is "$(stat -c %a:%u home/mydocker)" 700:23456
  is "$(find home -mindepth 1 -maxdepth 1 | sort | tr '\n' ' ')" \
    'home/made home/mydocker home/program '
  run 0 run --network host --rootfs root /bin/sh -c 'ls -d /sys/class/net
    touch /sys/kernel/x || echo no'
  is "$out" $'/sys/class/net\nno'
  run 0 run -d --name h --network host --rootfs root /bin/sleep 1000
  run 0 exec h id -u
  is "$out" 0
  run 0 rm -f h
  run 125 run -m 64m /bin/true
  like "$err" 'memory.*cgroup.*hint: .*Delegate'
}

test_rootless_one_id() { # rootless: without more ids owners are squashed, said once, with the cure
  outsider
  small_root root
  mkdir root/home root/srv
  chown 1234:5678 root/home root/srv
  tar -C root -cf home/root.tar .
  run 0 import home/root.tar one
  is "$(grep -c 'warning' <<<"$err")" 1
  like "$err" 'uidmap.*/etc/subuid'
  run 0 run --rm one sh -c 'ls -lnd /home; id -u'
  like "$out" ' 0 +0 .*/home'
  run 0 run -d --name first one sleep 1000
  run 0 exec first id -u
  is "$out" 0
  run 0 rm -f first
  run 125 run --rm -u user one id
  like "$err" '1234.*hint: .*uidmap'
}

test_rootless_life() { # rootless: the whole life of a container, with the ids of /etc/subuid
  outsider 300000:65536
  small_root root
  mkdir root/home root/srv
  touch root/home/old root/srv/old
  chown 1234:5678 root/home root/home/old
  tar -C root -cf home/root.tar .
  run 0 import home/root.tar one
  is "$err" ''
  run 0 run -d --name first one sh -c 'echo said; exec sleep 1000'
  wait_for eval '"${mydocker[@]}" logs first | grep -x said'
  run 0 exec first sh -c 'ls -ln /home; rm -r /home /srv; mkdir /home; echo 1 >/home/new
    chmod 700 /home'
  like "$out" ' 1234 +5678 .*old'
  run 0 exec -u user first sh -c 'id -u; id -g; echo mine >/tmp/f; exec cat /proc/self/setgroups'
  is "$out" $'1234\n5678\nallow'
  run 0 cp first:/tmp/f home/f
  is "$(cat home/f)" mine
  is "$(stat -c %u home/f)" 23456
  is "$(stat -c %u home/mydocker/containers/*/upper/tmp/f)" 301233
  run 0 cp home/f first:/root/f
  run 0 commit first two
  run 0 run --rm two sh -c 'ls /home /root; test -e /srv || echo no srv'
  is "$out" $'/home:\nnew\n\n/root:\nf\nno srv'
  run 0 ps
  like "$out" 'Up .* first'
  run 0 top first
  like "$out" 'sleep 1000'
  run 0 stop -t 0 first
  run 0 start first
  run 0 kill first
  run 0 wait first
  is "$out" 137
  run 0 export -o home/all.tar first
  has <(tar tvf home/all.tar --numeric-owner) '1234/5678 .*tmp/f'
  run 0 rm first
  run 0 rmi one two
  is "$(find home/mydocker/{containers,layers,running,names} -mindepth 1)" ''
}

test_rootless_together() { # rootless: containers that start at once share a user namespace; each
  # can lend its network, be built from, and start again
  local k pids=()
  outsider 300000:65536
  small_root root
  tar -C root -cf home/root.tar .
  run 0 import home/root.tar one
  for k in 1 2 3; do
    "${mydocker[@]}" run -d --name "c$k" one sleep 1000 &
    pids+=("$!")
  done
  wait "${pids[@]}"
  for k in 1 2 3; do
    run 0 exec "c$k" readlink /proc/self/ns/user
    echo "$out" >>users
  done
  is "$(sort -u users | wc -l)" 1
  run 0 run --rm --network container:c1 one id -u
  is "$out" 0
  run 0 rm -f c1 c2 c3
  printf '%s\n' 'FROM one' 'RUN echo built >/made' 'USER user' 'CMD ["id", "-u"]' >home/Dockerfile
  run 0 build -t two home
  run 0 run --rm two
  is "$out" 1234
  run 0 run -d --name again --restart on-failure:2 one sh -c 'echo once; exit 3'
  run 0 wait again
  is "$out" 3
  run 0 logs again
  is "$out" $'once\nonce\nonce'
}

test_rootless_keep_id() { # rootless: with --userns keep-id the caller is the same user inside
  outsider 300000:65536
  small_root root
  mkdir root/home home/shared
  chown 1234:5678 root/home
  chown 23456:23456 home/shared
  tar -C root -cf home/root.tar .
  run 0 import home/root.tar one
  run 0 run -d --name c --userns keep-id -v "$PWD/home/shared:/shared" one sh -c '
    id -u; id -g; touch /shared/mine; exec sleep 1000'
  wait_for test -e home/shared/mine
  run 0 logs c
  is "$out" $'23456\n23456'
  is "$(stat -c %u home/shared/mine)" 23456
  run 0 exec -u 0 c sh -c 'ls -lnd /home /bin; touch /shared/roots /root/it; id -u'
  like "$out" ' 1234 +5678 .*/home'
  like "$out" ' 0 +0 .*/bin'
  is "$(stat -c %u home/shared/roots)" 300000
  run 0 exec c sh -c 'id -u; test -w /root || echo closed'
  is "$out" $'23456\nclosed'
  run 0 rm -f c
  is "$(find home/mydocker/containers -mindepth 1)" ''
  fails 125 '--userns, on strange' run --userns strange one true
}

test_rootless_refused() { # rootless: where no user namespace can be had, the cause is named
  need unshare setpriv
  unshare -Ur true || skip 'no user namespace in here'
  local weak='exec setpriv --bounding-set -sys_admin --inh-caps -all "$@"' got=0
  # with root's ids, but without CAP_SYS_ADMIN
  unshare -Ur bash -c "echo 0 >/proc/sys/user/max_user_namespaces; $weak" bash \
    "${mydocker[@]}" run /bin/true >"$scratch/stdout" 2>"$scratch/stderr" || got=$?
  read_output
  is "$got" 125
  one_line 'user namespace'
  like "$err" 'hint: .*sysctl user.max_user_namespaces'
  got=0
  unshare -Ur bash -c "echo 0 >/proc/sys/user/max_user_namespaces; $weak" bash \
    "${mydocker[@]}" info root rootless >"$scratch/stdout" || got=$?
  read_output
  is "$got" 1
  like "$out" 'root +no .*CAP_SYS_ADMIN'
  like "$out" 'rootless +no .*user.max_user_namespaces'
}

outsider_on_lan() { # see outsider; the image "one", and a server in a LAN beside the host
  outsider
  mknod -m 666 tun c 10 200
  make_lan
  "${host[@]}" ip route add default via 10.77.0.2
  mydocker=("${host[@]}" "${mydocker[@]}")
  small_root root
  tar -C root -cf home/root.tar .
  run 0 import home/root.tar one
  serve outside "${lan[@]}" -- tcp:7000
}

test_rootless_pasta() { # rootless: pasta leads out of a container, and to its ports
  need pasta nsenter ip
  [[ -c /dev/net/tun ]] || skip 'needs /dev/net/tun'
  outsider_on_lan
  unset MYDOCKER_NETWORK
  run 0 run -d --name c -p 8080:80 -p 81 one sleep 1000
  run 0 exec c cat /proc/net/route
  like "$out" $'\nlan0\t00000000'
  run 0 port c 80
  is "$out" 0.0.0.0:8080
  run 0 port c 81
  like "$out" '^0.0.0.0:[0-9]+$'
  run 0 ps --format '{{.PID}}'
  inside=(nsenter --net="/proc/$out/ns/net")
  serve inside "${inside[@]}" -- tcp:80
  says 'tcp 10.77.0.2 hello' "${lan[@]}" -- tcp 10.77.0.1 8080
  says 'tcp 10.77.0.1 hello' "${inside[@]}" -- tcp 10.77.0.2 7000
  pasta=$(cat home/mydocker/containers/*/pasta.pid)
  run 0 restart -t 0 c
  wait_for gone "$pasta"
  pasta=$(cat home/mydocker/containers/*/pasta.pid)
  kill -KILL "$(sed -n 's/.*"monitor": \([0-9]*\).*/\1/p' home/mydocker/containers/*/record.json)"
  wait_for gone "$pasta"
  fails 125 'bridge.*root' run --network bridge one true
}

test_rootless_slirp() { # rootless: so does slirp4netns, with UDP as well; it ends with its monitor
  local slirp
  need nsenter ip pgrep
  command -v slirp4netns || skip 'needs slirp4netns'
  [[ -c /dev/net/tun ]] || skip 'needs /dev/net/tun'
  outsider_on_lan
  run 0 run -d --name c --network slirp4netns -p 8080:80 -p 8081:81/udp one sleep 1000
  run 0 exec c cat /proc/net/route /etc/resolv.conf
  like "$out" $'\ntap0\t00000000'
  run 0 port c 80
  is "$out" 0.0.0.0:8080
  run 0 ps --format '{{.PID}}'
  inside=(nsenter --net="/proc/$out/ns/net")
  serve inside "${inside[@]}" -- tcp:80 udp:81
  # who asked, not every version shows
  like "$("${lan[@]}" "$PYTHON" -I net.py ask 5 tcp 10.77.0.1 8080)" '^tcp [0-9.]+ hello$'
  like "$("${lan[@]}" "$PYTHON" -I net.py ask 5 udp 10.77.0.1 8081)" '^udp [0-9.]+ hello$'
  says 'tcp 10.77.0.1 hello' "${inside[@]}" -- tcp 10.77.0.2 7000
  slirp=$(pgrep -f "^slirp4netns .*$PWD/home/mydocker") # its own words have the container's path
  run 0 restart -t 0 c
  wait_for gone "$slirp"
  slirp=$(pgrep -f "^slirp4netns .*$PWD/home/mydocker")
  kill -KILL "$(sed -n 's/.*"monitor": \([0-9]*\).*/\1/p' home/mydocker/containers/*/record.json)"
  wait_for gone "$slirp"
}

test_rootless_podman() { # rootless: podman runs containers with it, and goes into them
  need podman runc busybox
  outsider 300000:65536
  export XDG_RUNTIME_DIR=$PWD/home/run
  small_root root
  mkdir -p home/run root/{dev,proc,sys,run}
  printf '#!/bin/sh\nexec %q %q --root %q "$@"\n' "$PYTHON" "$PWD/home/program" \
    "$PWD/home/mydocker" >home/runtime
  chmod 755 home/runtime
  chown -R 23456:23456 home root
  local top=$PWD podman=("${user[@]}" podman --root "$PWD/home/store" --runroot "$PWD/home/run/root"
    --storage-driver vfs --cgroup-manager cgroupfs --runtime)
  local run=("${podman_run[@]}" --net none)
  (cd home && "${podman[@]}" /usr/sbin/runc "${run[@]}" --rootfs "$top/root" /bin/sh -c :) ||
    skip 'podman without root does not work here'
  cd home
  is "$("${podman[@]}" "$top/home/runtime" "${run[@]}" --rootfs "$top/root" /bin/sh -c 'id -u')" 0
  "${podman[@]}" "$top/home/runtime" run -d "${run[@]:2}" --name "p$n" --rootfs "$top/root" \
    sleep 1000
  is "$("${podman[@]}" "$top/home/runtime" exec "p$n" id -u)" 0
  is "$("${podman[@]}" "$top/home/runtime" exec -u 1234 "p$n" id -u)" 1234
  "${podman[@]}" "$top/home/runtime" rm -f -t 0 "p$n"
}

test_rootless_hidden() { # rootless: where /proc is covered, or missing, the hint says so
  outsider
  small_root root
  chown -R 23456:23456 root
  mydocker=(unshare -m bash -ec 'mount --bind /dev/null /proc/interrupts; exec "$@"' bash
    "${mydocker[@]}")
  fails 125 'mount' run --rootfs root /bin/sh -c :
  like "$err" 'hint: parts of /proc are covered'
  mydocker=(unshare -m bash -ec 'mount -t tmpfs none /proc; exec "$@"' bash "${program[@]}")
  fails 125 'on /proc: it must be mounted' run /bin/true
  like "$err" 'hint: mount -t proc'
}

test_weak_root() { # rootless: root without CAP_SYS_ADMIN has all ids that it sees
  need setpriv
  weak=(setpriv --bounding-set -sys_admin --inh-caps -all)
  "${weak[@]}" unshare -U true || skip 'no user namespace in here'
  mydocker=("${weak[@]}" "${mydocker[@]}")
  run 0 run /bin/sh -c 'cat /proc/self/uid_map'
  is "$out" "$(cat /proc/self/uid_map)"
  run 0 run -u 1234:5678 /bin/sh -c 'id -u; id -g'
  is "$out" $'1234\n5678'
}

test_log_driver() { # logs: --log-driver none keeps nothing, json-file and k8s-file are ours
  local driver
  own_state
  for driver in json-file k8s-file; do
    run 0 run -d --name "$driver" --log-driver "$driver" --rootfs / /bin/echo hello
    run 0 wait "$driver"
    run 0 logs "$driver"
    is "$out" hello
  done
  run 0 run -d --name n --log-driver none --rootfs / /bin/sh -c 'echo hello; exec sleep 1000'
  wait_for made_room "$(monitor_of n)"
  fails 125 '^mydocker: logs, on n: it has --log-driver none' logs n
  run 0 restart -t 0 n
  is "$(find state/containers -name 'container.log*' -path "*/$("${mydocker[@]}" inspect \
    -f .Id n)/*")" ''
  run 0 run -d --name d --log-opt labels=a,none,b --log-opt env=E -l a=1 -l b= -l c=3 -e E=x \
    --log-opt max-size=1m --rootfs / /bin/sh -c 'echo one; echo two'
  run 0 wait d
  run 0 logs --details d
  is "$out" $'a=1,b=,E=x one\na=1,b=,E=x two'
  run 0 logs --details -n 1 k8s-file
  is "$out" ' hello'
  fails 125 '--log-driver, on syslog: not none, json-file or k8s-file' run --log-driver syslog \
    /bin/true
  fails 125 "--log-opt: it can't go with" run --log-driver none --log-opt max-size=1m /bin/true
}

# for_all: from here on others than root can execute Python, too, wherever it lies
for_all() {
  need userns
  chmod 755 .
  if reachable; then return; fi
  mydocker=(unshare -m --propagation private bash -ec '
    prefix=$(readlink -f "$1") prefix=${prefix%/bin/*} top=/${1#/} top=${top%"${top#/*/}"}
    shift
    mkdir -p "$0/prefix"
    mount --bind "$prefix" "$0/prefix"
    mount -t tmpfs -o mode=755 none "$top"
    mkdir -p "$prefix"
    mount --move "$0/prefix" "$prefix"
    exec "$@"' "$PWD" "$PYTHON" "${mydocker[@]}")
}

mapped_image() { # mapped_image: the image `one` and, in $first, what --userns auto begins with
  for_all
  small_root root
  mkdir root/home root/data
  touch root/data/old
  chown -R 1234:5678 root/home root/data
  make_image one
  run 0 run --rm --userns auto one sh -c 'read -r _ first _ </proc/self/uid_map; echo "$first"'
  unlike "$err" 'copying' || skip 'layers can not be shown with other owners here'
  first=$out
}

test_ids_private_python() { # ids: where only root reaches the Python, the error says that
  local python
  mapped_image
  mkdir -m 700 private
  python=$("$PYTHON" -c 'import os, sys; print(os.path.realpath(sys.executable))')
  cp "$python" private/python3
  mydocker=("$PWD/private/python3" "$here/mydocker.py")
  fails 125 'permission denied.*hint: .* this Python' run --rm --userns auto one true
}

test_ids_auto() { # ids: with --userns auto root inside is nobody outside; no two have the same ids
  local first
  mapped_image
  mkdir -m 700 secret
  run 0 run -d --name a --userns auto -v "$PWD/secret:/secret" one sleep 1000
  run 0 run -d --name b --userns auto:size=1000 one sleep 1000
  run 0 run --rm --userns auto one cat /proc/self/gid_map
  like "$out" "^ *0 +$((first + 65536 + 1000)) +65536\$"
  run 0 exec b cat /proc/self/uid_map
  like "$out" "^ *0 +$((first + 65536)) +1000\$"
  is "$(stat -c %u:%g "/proc/$(pid_of a)")" "$first:$first"
  run 0 exec a sh -c 'id -u; ls -ln / /data; ls /secret || :; mount -o remount,rw /sys || echo no'
  like "$out" ' 0 +0 .* bin'
  like "$out" ' 1234 +5678 .* home'
  like "$out" ' 1234 +5678 .* old'
  like "$out" 'no$'
  like "$err" 'ermission denied'
  run 0 exec -u user a sh -c 'echo said >/dev/stdout; echo mine >/home/f; id -u'
  is "$out" $'said\n1234'
  run 0 rm -f b
  run 0 run --rm --userns auto:size=1000 one cat /proc/self/uid_map
  like "$out" "^ *0 +$((first + 65536)) +1000\$" # they are free again
  run 0 rm -f a
  nothing_on_record
}

test_ids_files() { # ids: on disk files have the ids that they have inside: volumes, cp, commit,
  # export and start are as ever
  local first
  mapped_image
  run 0 run -d --name a --userns auto -v vol:/data one sh -c 'touch /data/new; exec sleep 1000'
  wait_for test -e state/volumes/vol/_data/new
  is "$(stat -c '%n %u:%g' state/volumes/vol/_data/*)" \
    "state/volumes/vol/_data/new 0:0"$'\n'"state/volumes/vol/_data/old 1234:5678"
  run 0 run --rm --userns auto:size=9999 -v vol:/data one ls -ln /data
  like "$out" ' 0 +0 .* new'
  echo text >file
  chown 7:8 file
  run 0 cp file a:/root/plain
  run 0 cp -a file a:/home/kept
  tar -cf file.tar --owner=1234 --group=5678 --numeric-owner file
  run 0 cp -a - a:/home <file.tar
  run 0 exec a ls -ln /root /home
  like "$out" ' 0 +0 .* plain'
  like "$out" ' 7 +8 .* kept'
  like "$out" ' 1234 +5678 .* file'
  run 0 cp -a a:/home/kept back
  is "$(stat -c %u:%g back)" 7:8
  is "$(stat -c %u:%g state/containers/*/upper/home/kept)" 7:8
  run 0 commit a two
  run 0 run --rm two ls -ln /home
  like "$out" ' 7 +8 .* kept'
  run 0 restart -t 0 a
  run 0 exec a ls -ln /home
  like "$out" ' 7 +8 .* kept'
  run 0 stop -t 0 a
  run 0 cp -a file a:/home/late
  run 0 export -o all.tar a
  has <(tar tvf all.tar --numeric-owner) '7/8 .*home/late'
  run 0 start a
  run 0 exec a ls -ln /home
  like "$out" ' 7 +8 .* late'
  mkdir shared
  chown 7:8 shared
  run 0 run --rm --userns auto -v "$PWD/shared:/x:idmap" one sh -c 'ls -ln /; touch /x/made'
  like "$out" ' 7 +8 .* x'
  is "$(stat -c %u:%g shared/made)" 0:0
  fails 125 'shared: idmap: the container has our ids' run --rm -v "$PWD/shared:/x:idmap" one id
  mkdir root/own
  run 0 run --rm --userns auto --rootfs root sh -c 'ls -ln /; touch /own/made'
  like "$out" ' 1234 +5678 .* home'
  is "$(stat -c %u root/own/made)" 0
  run 0 rm -f a
  nothing_on_record
}

test_ids_maps() { # ids: --uidmap and --gidmap say what ids are outside; what can't be is refused
  local first
  mapped_image
  run 0 run --rm --uidmap 0:200000:1000 --uidmap 1234:300000 --gidmap 0:400000:6000 -u user one \
    sh -c 'id -u; cat /proc/self/uid_map /proc/self/gid_map'
  is "$(tr -s ' ' <<<"$out")" $'1234\n 0 200000 1000\n 1234 300000 1\n 0 400000 6000'
  run 0 run --rm --uidmap 0:200000:10 one cat /proc/self/gid_map
  like "$out" '^ *0 +200000 +10$'
  run 0 run --rm --userns keep-id one cat /proc/self/uid_map
  is "$out" "$(cat /proc/self/uid_map)"
  fails 125 '--user, on 1234:5678: .*no such id' run --rm --uidmap 0:200000:10 -u user one id
  fails 125 'nothing is 0 inside' run --uidmap 1:200000:10 one id
  fails 125 'two ranges have 5' run --uidmap 0:200000:10 --uidmap 5:1 one id
  fails 125 'two ranges have 200005' run --uidmap 0:200000:10 --uidmap 10:200005 one id
  fails 125 '--gidmap, on 0:x:10: it is' run --uidmap 0:200000:10 --gidmap 0:x:10 one id
  fails 125 'ids are from 0 to' run --uidmap 0:4294967294:2 one id
  fails 125 'ids are from 0 to' run --uidmap 0:1:0 one id
  fails 125 "can't go with --userns auto" run --userns auto --uidmap 0:1:2 one id
  fails 125 '--userns, on auto:size=0' run --userns auto:size=0 one id
  fails 125 '--ephemeral' run --userns auto --ephemeral /bin/true
  [[ -e /etc/subuid && -e /etc/subgid ]] || return 0
  echo 'containers:500000:70000' >subid # podman's user for them
  mydocker=(unshare -m --propagation private bash -ec 'for file in subuid subgid; do
    mount --bind "$0" "/etc/$file"; done; exec "$@"' "$PWD/subid" "${mydocker[@]}")
  run 0 run --name a --userns auto one cat /proc/self/uid_map
  like "$out" '^ *0 +500000 +65536$'
  fails 125 '--userns, on auto: no 65536 ids .*hint: .*subuid' run --userns auto one true
  run 0 rm a
  nothing_on_record
}

test_ids_shared() { # ids: what others have can be shared: network, processes, the host's own root
  local first
  mapped_image
  run 0 run -d --name a --userns auto one sleep 1000
  run 0 run --rm --userns auto --network container:a one id -u
  is "$out" 0
  run 0 run --rm --network container:a one readlink /proc/self/ns/net
  is "$out" "$(readlink "/proc/$(pid_of a)/ns/net")"
  run 0 run --rm --userns auto --network host --pid host --ipc host --uts host one \
    readlink /proc/self/ns/net
  is "$out" "$(readlink /proc/self/ns/net)"
  mkdir -m 700 closed
  run 0 run --rm --userns auto /bin/sh -c 'id -u; cd /; ls "$1" || echo closed' sh "$PWD/closed"
  is "$out" $'0\nclosed'
  run 0 rm -f a
}

test_rootless_no_bridge() { # rootless: bridges, options of networks that have none and a helper
  # that can't are refused with a word
  outsider
  mknod -m 600 tun c 10 200
  fails 125 'network create, on x: only root .*hint: .*container:ID' network create x
  fails 125 '--network, on mine: only root' run --network mine --rootfs / /bin/true
  fails 125 '--network, on none:x: none takes no options' run --network none:x --rootfs / /bin/true
  command -v slirp4netns || skip 'needs slirp4netns'
  [[ -c /dev/net/tun ]] || skip 'needs /dev/net/tun'
  fails 125 'network, on slirp4netns: .*/dev/net/tun.*ermission denied' \
    run --network slirp4netns --rootfs / /bin/true
  unset MYDOCKER_NETWORK # nor is it a container's network where nothing was said
  small_root root
  tar -C root -cf home/root.tar .
  run 0 import home/root.tar one
  run 0 run --rm one ls -A /sys/class/net
  is "$out" lo
  run 0 create one sh
  run 0 ps -a --format '{{.Networks}}'
  is "$out" none
  fails 125 "--publish: it can't go with --network none.hint: .*/dev/net/tun" run -p 80 one sh
}

test_rootless_ids() { # ids: without root a container has of the caller's ids what is asked for, or
  # as many as no other one has; its image is copied
  outsider 300000:65536
  small_root root
  mkdir root/home root/data
  touch root/data/old
  chown -R 1234:578 root/home root/data
  tar -C root -cf home/root.tar .
  run 0 import home/root.tar one
  run 0 run -d --name a --userns auto -v vol:/data one sleep 1000
  run 0 run --rm --userns auto one cat /proc/self/uid_map
  like "$out" '^ *0 +4097 +4096$'
  run 0 exec a sh -c 'ls -ln / /data; touch /root/made /data/new; cat /proc/self/gid_map'
  like "$out" ' 0 +0 .* bin'
  like "$out" ' 1234 +578 .* home'
  like "$out" ' 1234 +578 .* old'
  like "$out" '0 +1 +4096$'
  is "$(stat -c %u:%g home/mydocker/containers/*/copy/root/made)" 300000:300000
  echo text >home/file
  run 0 cp home/file a:/root/file
  run 0 exec a ls -ln /root
  like "$out" ' 0 +0 .* file'
  run 0 restart -t 0 a
  run 0 exec -u 1234:578 a sh -c 'id -u; echo x >/dev/stdout'
  is "$out" $'1234\nx'
  run 0 rm -f a
  run 0 run --rm --uidmap 0:10:5000 one cat /proc/self/uid_map
  like "$out" '^ *0 +10 +5000$'
  fails 125 "--uidmap, on 0:1:70000: these ids aren't ours.*hint: .*subuid" run --uidmap 0:1:70000 \
    one id
  fails 125 'no 65537 ids in a row' run --userns auto:size=65537 one id
  is "$(find home/mydocker/containers -mindepth 1)" ''
}

test_ids_copied() { # ids: where layers can't be shown with other owners they are copied, said once
  for_all
  need overlay unshare mount
  small_root root
  mkdir root/home root/data lower upper work merged
  touch root/data/old
  chown -R 1234:5678 root/home root/data
  MYDOCKER_ROOT=$PWD/merged/state own_mounts '
    mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work none merged
    "$@" import root one
    "$@" run --name a --userns auto -v vol:/data one sh -c "ls -ln / /data; touch /data/new" >out
    "$@" start -a a >again 2>errors
    cp -a merged/state/volumes/vol/_data/. volume
    "$@" rm a' 2>warnings
  is "$(grep -c 'copying them$' warnings)" 1
  like "$(<out)" ' 1234 +5678 .* home'
  like "$(<out)" ' 1234 +5678 .* old'
  like "$(<again)" ' 0 +0 .* new'
  is "$(<errors)" ''
  is "$(($(stat -c %u volume/old) - $(stat -c %u volume/new)))" 1234
}

# ── Without root ─────────────────────────────────────────────────────────────

test_not_root() { # fail: another user than root is told so
  need setpriv
  local got=0
  # the interpreter and the file may lie where only root can look
  setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=+dac_read_search \
    --ambient-caps=+dac_read_search \
    "${mydocker[@]}" run /bin/true >"$scratch/stdout" 2>"$scratch/stderr" || got=$?
  read_output
  is "$got" 125
  one_line 'root'
  like "$err" 'hint: .*sudo'
}

test_rootless_visits() { # rootless: health checks, events, a terminal that is left and come back to
  outsider
  small_root root
  tar -C root -cf home/root.tar .
  run 0 import home/root.tar one
  tty 0 '^ready' $'one\n' '^got one$' $'\x10\x11' -- "${mydocker[@]}" run -it --name left \
    --net none --log-level error --health-interval 100ms --health-cmd 'echo well' one \
    sh -c 'echo ready; while read -r line; do echo "got $line"; [ "$line" != end ] || exit 4; done'
  wait_for health_is left healthy
  tty 4 '^' $'end\n' -- "${mydocker[@]}" attach left
  run 0 rm left
  noted type=container
  is "$(sed -n 's/container //p' noted | tr '\n' ,)" \
    'create,start,detach,health_status: healthy,attach,die,destroy,'
}

# ── Containers on disk ───────────────────────────────────────────────────────

test_pidfd_forbidden() { # life: where a filter around us forbids pidfds, signals find their way,
  # and what has ended is noticed
  cat >filtered.py <<'END'
import ctypes, os, struct, sys

rows = ((0x20, 0, 0, 0), (0x15, 1, 0, 434), (0x15, 0, 1, 424),  # pidfd_open, pidfd_send_signal
        (6, 0, 0, 0x50001), (6, 0, 0, 0x7FFF0000))
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *row) for row in rows))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 5, ctypes.addressof(code)))
assert ctypes.CDLL(None).prctl(22, 2, program, 0, 0) == 0  # PR_SET_SECCOMP
os.execv(sys.argv[1], sys.argv[1:])
END
  own_state
  mydocker=("$PYTHON" -I "$PWD/filtered.py" "${mydocker[@]}")
  run 1 info pidfd
  like "$out" 'pidfd +no '
  run 0 run -d --name one /bin/sh -c 'trap "exit 5" TERM; touch ready; while :; do sleep 0.05; done'
  wait_for test -e ready
  run 0 exec one /bin/true
  run 0 kill -s CONT one
  run 0 stop one
  run 0 wait one
  is "$out" 5
  run 0 run -d --name two /bin/sleep 1000
  start wait two
  run 0 kill two
  ended 0
  is "$(<out)" 137
  run 0 rm one two
}

test_names() { # life: a name means one container, by itself or made up;
  # so do an id and its beginning
  own_state
  background --cidfile cid --label a=b --label c --name one /bin/sleep 1000
  is "$(<cid)" "$id"
  fails 125 '--name, on one: a container of that name exists' run -d --name one /bin/true
  for name in "$id" "${id:0:12}" "${id:0:4}" one; do
    run 0 inspect -f '{{.Id}} {{json .Config.Labels}}' "$name"
    is "$out" "$id {\"a\": \"b\", \"c\": \"\"}"
  done
  fails 125 'container, on two: no such container' stop two
  fails 125 'container, on ../one: no such container' stop ../one
  fails 125 "container, on '': no such container" stop ''
  fails 125 'no such container' stop "$(printf 'x%.0s' {1..5000})"
  background /bin/sleep 1000
  run 0 ps --format '{{.Names}}'
  like "$out" '^[a-z]+_[a-z]+[0-9]*'$'\n''one$'
  run 125 rm nobody nothing
  like "$err" 'on nobody: .*'$'\n''.*on nothing: '
  run 0 rm -f nobody one nothing
  is "$out" one
  run 0 rm -f "$id"
}

test_killed_monitor() { # images: a container whose monitor was killed is on record as killed,
  # and can be removed
  make_image "t$n:1"
  start run --name "c$n" "t$n:1" /bin/sh -c 'echo ready; exec sleep 1000'
  wait_for has out ready
  kill -KILL "$pid"
  ended 137
  run 0 ps -a
  like "$out" "Exited \\(137\\) [0-9]+ seconds ago +c$n"
  run 0 rm "c$n"
}

test_truth() { # life: ps tells the truth after kill -9, after a reboot,
  # and when a pid is used again
  local pid
  own_state
  background --name a /bin/sleep 1000
  background --name b --rm /bin/sleep 1000
  pid=$(pid_of a)
  kill -KILL "$(monitor_of a)" "$(monitor_of b)"
  wait_for gone "$pid"
  run 0 ps -a --format '{{.Names}} {{.State}} {{.Status}}'
  like "$out" '^a exited Exited \(137\) [0-9]+ seconds ago$'
  is "$(find state/containers -mindepth 1 -maxdepth 1 | wc -l)" 1 # b had --rm
  is "$(find state/running -mindepth 1)" ''
  run 0 start a
  kill -KILL "$(pid_of a)"
  wait_for eval '[[ $(state_of a) == exited ]]'
  run 0 inspect -f '{{.State.ExitCode}}' a
  is "$out" 137
  # a host that lost its power: marks and records say that it runs, and nobody holds the lock
  run 0 start a
  cp -a state after
  run 0 rm -f a
  MYDOCKER_ROOT=$PWD/after run 0 ps -a --format '{{.State}}'
  is "$out" exited
  # half a state file is never there: a write that was cut off left its temporary file alone
  run 0 run -d --name c /bin/sleep 1000
  echo '{"id' >"state/containers/$out/record.json.1"
  run 0 ps -q
  run 0 rm -f c
  run 0 run -d --name e /bin/sleep 1000
  id=$out
  kill -KILL "$(monitor_of e)"
  : >"state/containers/$id/record.json" # and what wasn't on the disk in time
  run 0 ps -a
  unlike "$out" "${id:0:12}"
  like "$err" "^mydocker: warning: container, on [^ ]*$id: its record is damaged, ignoring"
  [[ -e state/containers/$id/lock ]] # it is there for whoever wants to look
  rm "state/containers/$id/record.json"
  run 0 ps -a
  is "$(find state after -path '*/running/*')" ''
}

test_damaged_record() { # life: a container whose record is damaged can be removed, by its name, too
  own_state
  background --name d /bin/sleep 1000
  kill -KILL "$(monitor_of d)"
  wait_for eval '! pid_of d || [[ $(state_of d) == exited ]]'
  : >"state/containers/$id/record.json"
  fails 125 '--name, on d: a container of that name exists' run --name d -d /bin/true
  run 125 rm d
  like "$err" 'rm, on d: its record is damaged, and what it wrote is in .*'$'\n''hint: .* rm -f d$'
  run 0 rm -f d
  nothing_on_record
  background --name d /bin/sleep 1000
  run 0 rm -f d
}

test_concurrent() { # life: many at once on one state root, with run -d, exec, stop and rm:
  # none is lost, none is there twice
  local round i many=10 rounds=1 started
  if [[ ${FULL-} ]]; then many=50 rounds=10; fi
  own_state
  for ((round = 0; round < rounds; round++)); do
    started=()
    for ((i = 0; i < many; i++)); do
      ( "${mydocker[@]}" run -d --name "c$i" /bin/sleep 1000 >"id$i" 2>"err$i" &&
        "${mydocker[@]}" exec "c$i" /bin/sh -c "echo said $i" >"said$i" 2>>"err$i" &&
        "${mydocker[@]}" stop -t 0 "c$i" >"gone$i" 2>>"err$i" && "${mydocker[@]}" rm "c$i" \
          >>"gone$i" 2>>"err$i" ||
        echo "status $?" >>"err$i" ) &
      started+=($!)
    done
    wait "${started[@]}"
    is "$(cat err*)" ''
    is "$(sort id* | uniq | wc -l)" "$many"
    for ((i = 0; i < many; i++)); do
      is "$(<"said$i") $(tr '\n' ' ' <"gone$i")" "said $i c$i c$i "
    done
    nothing_on_record
  done
  for ((i = 0; i < many; i++)); do
    "${mydocker[@]}" run -d --name same /bin/sleep 1000 >"id$i" 2>"err$i" &
  done
  wait
  is "$(grep -lE '^[0-9a-f]{64}$' id* | wc -l) $(grep -c 'of that name exists' err* |
    grep -c ':1$')" "1 $((many - 1))"
  run 0 rm -f same
}

ours() { # the processes of this test's state root
  local - dir
  set +x
  for dir in /proc/[0-9]*; do
    if { tr '\0' '\n' <"$dir/environ"; } 2>/dev/null | grep -xF "MYDOCKER_ROOT=$MYDOCKER_ROOT" \
      >/dev/null && [[ $(readlink "$dir/exe") == *python* ]]; then
      echo "${dir#/proc/}"
    fi
  done
}

test_killed_anywhere() { # life: kill -9 of every process at any point leaves nothing that the next
  # command doesn't sweep
  local times=6 i before ids id
  if [[ ${FULL-} ]]; then times=200; fi
  own_state
  before=$(wc -l </proc/self/mountinfo)
  for ((i = 0; i < times; i++)); do
    set -m
    ( "${mydocker[@]}" run -d --name k /bin/sh -c 'sleep 1000 & exec sleep 1000'
      "${mydocker[@]}" exec k /bin/true
      "${mydocker[@]}" restart -t 0 k
      "${mydocker[@]}" stop -t 0 k
      "${mydocker[@]}" start k
      "${mydocker[@]}" rm -f k ) >log 2>&1 &
    set +m
    sleep "0.$(printf %03d $((RANDOM % 700)))"
    # shellcheck disable=SC2046 # a list
    { kill -KILL -- "-$!" $(ours) || :; } 2>/dev/null
    wait $! 2>/dev/null || :
    ids=$(ls state/running 2>/dev/null || :)
    run 0 ps -a
    mapfile -t left < <("${mydocker[@]}" ps -aq)
    ((${#left[@]} == 0)) || run 0 rm -f "${left[@]}"
    nothing_on_record
    for id in $ids; do is "$(find /sys/fs/cgroup -name "$id")" ''; done
  done
  is "$(wc -l </proc/self/mountinfo)" "$before"
}

test_faults() { # life: a system call that fails, or a kill at it,
  # leaves nothing that the next command doesn't sweep
  need strace
  local call when what ids id calls=(rename flock mkdir symlink)
  if [[ ${FULL-} ]]; then
    calls+=(unlink write openat mount socketpair memfd_create unshare rmdir)
  fi
  own_state
  for call in "${calls[@]}"; do
    for when in 1 2; do
      for what in error=EIO signal=KILL; do
        timeout -k 5 "$patience" strace -f -qq -o trace -e "trace=$call" \
          -e "inject=$call:$what:when=$when" \
          "${mydocker[@]}" run --name f /bin/true >said 2>&1 || :
        unlike "$(<said)" 'Traceback|bug in mydocker'
        ids=$(ls state/running 2>/dev/null || :)
        run 0 ps -a
        [[ ! $(ls state/containers) ]] || run 0 rm -f f
        nothing_on_record
        for id in $ids; do is "$(find /sys/fs/cgroup -name "$id")" ''; done
      done
    done
  done
}

noted() { # noted FILTER...: what `events` has of that, an action a line, without ids, into ./noted
  "${mydocker[@]}" events --since 1h --until 0s --format '{{.Type}} {{.Action}}' \
    "${@/#/--filter=}" >noted
}

test_events() { # events: what happens to containers, images, volumes and networks is noted
  local name=t$n
  own_state
  background --name "$name" --label colour=red /bin/sh -c 'exec sleep 1000'
  run 0 exec "$name" /bin/echo two words
  run 3 exec "$name" /bin/sh -c 'exit 3'
  run 0 pause "$name"
  run 0 unpause "$name"
  run 0 rename "$name" other
  run 0 kill -s WINCH other
  run 0 stop -t 0 other
  run 0 start other
  run 0 restart -t 0 other
  run 0 rm -f other
  noted "container=$id"
  is "$(grep -v exec_ noted | tr -d '\n')" "$(printf 'container %s' create start pause unpause \
    rename kill kill die stop start kill die stop start restart kill die destroy)"
  is "$(sed -n 's/^container exec_//p' noted | tr '\n' ,)" "$(printf '%s,' \
    'create: /bin/echo two words' 'start: /bin/echo two words' die \
    'create: /bin/sh -c exit 3' 'start: /bin/sh -c exit 3' die)"
  run 7 run --rm --name "$name" /bin/sh -c 'exit 7' # gone by itself
  run 0 events --since 1h --until 0s --filter event=die --filter "container=$name"
  like "$out" "^20[0-9TZ:.-]+Z container die [0-9a-f]{64} \(exitCode=7, name=$name\)$"
  noted event=exec_die label=colour=red
  is "$(wc -l <noted)" 2
  noted event=exec_die label=colour=blue
  is "$(<noted)" ''
  run 0 volume create "v$n"
  run 0 volume rm "v$n"
  make_image "t$n:1"
  run 0 tag "t$n:1" "t$n:2"
  run 0 rmi "t$n:1"
  run 0 rmi "t$n:2"
  noted type=volume
  is "$(<noted)" $'volume create\nvolume destroy'
  noted type=image
  is "$(tr '\n' , <noted)" 'image import,image tag,image untag,image untag,image delete,'
  run 0 events --since 1h --until 0s --filter "image=t$n:2" --format json
  "$PYTHON" -I -c 'import json, sys
for line in sys.argv[1].split("\n"):
    row = json.loads(line)
    print(row["Type"], row["Action"], row["Actor"]["Attributes"]["name"], row["timeNano"] > 1e18)
' "$out" >shown
  is "$(<shown)" "image tag t$n:2 True"$'\n'"image untag t$n:2 True"
  fails 125 'colour' events --filter colour=red
  fails 125 'soon' events --until soon
}

test_events_killed() { # events: the end of one whose monitor was killed is noted by who sweeps it
  own_state
  background --name "t$n" /bin/sleep 1000
  kill -KILL "$(monitor_of "t$n")"
  wait_for has_state "t$n" exited
  run 0 ps
  noted event=die
  is "$(<noted)" 'container die'
  run 0 rm "t$n"
}

test_events_oom() { # events: that the kernel killed one for its memory limit is noted
  need_limits memory
  own_state
  run 137 run --rm -m 24m "$PYTHON" -I -S -c 'bytearray(200 << 20)'
  noted
  is "$(sed -n 's/container //p' noted | tr '\n' ,)" 'create,start,oom,die,destroy,'
}

another_shown() { # a volume more each time: what came before the command listens isn't shown
  "${mydocker[@]}" volume create "after$RANDOM" >/dev/null && [[ -s out ]]
}

test_events_follow() { # events: they are shown as they come, until --until or for ever
  local follower
  own_state
  run 0 volume create before
  start events --filter type=volume --format '{{.Action}} {{.Actor.ID}}'
  follower=$pid
  wait_for another_shown
  run 0 volume create last
  wait_for has out '^create last$'
  is "$(grep -c before out)" 0
  kill -INT "$follower"
  ended 130
  start events --since 1h --until "$(($(date +%s) + 2))" --format '{{.Actor.ID}}'
  run 0 volume create later
  ended 0
  is "$(head -n 1 out)" before
}

test_events_bounded() { # events: two files of a megabyte are the most, and writers don't mix
  local number=0 file
  own_state
  file=$MYDOCKER_ROOT/events.log
  for _ in 1 2; do
    run 0 volume create "before$number"
    "$PYTHON" -I -c 'import sys
with open(sys.argv[1], "a") as file:
    while file.tell() < (1 << 20) - 500:  # room for some of the next lines
        text = "x" * min(50000, (1 << 20) - 400 - file.tell())
        file.write("{\"time\": %d, \"kind\": \"volume\", \"action\": \"fill\", \"id\": \"%s\", "
                   "\"attributes\": {}}\n" % (10**18, text))' "$file"
    for _ in 1 2 3 4 5 6; do
      number=$((number + 1))
      "${mydocker[@]}" volume create "v$number" >/dev/null &
    done
    wait
  done
  is "$(find "$MYDOCKER_ROOT" -maxdepth 1 -name 'events*' | wc -l)" 2
  like "$(stat -c '%s %a' "$file" "$file.1")" '^[0-9]{1,6} 600
10[0-9]{5} 600$'
  echo '{"half a line' >>"$file" # the host lost its power
  run 0 volume create healed
  run 0 events --since 1h --until 0s --format '{{.Action}} {{.Actor.ID}}'
  is "$(grep -c '^create v[7-9]$\|^create v1[0-2]$' <<<"$out")" 6
  is "$(grep -c 'before0$' <<<"$out")" 0
  like "$out" 'create healed$'
}

# ── Living with them ─────────────────────────────────────────────────────────

test_detach() { # life: run -d prints the id when the command runs,
  # and its monitor keeps nothing of the caller's
  local monitor fd
  own_state
  exec 9<"$scratch"
  background --name d /bin/sh -c 'echo ready; exec sleep 1000'
  exec 9<&-
  is "$(state_of d)" running
  wait_for eval '[[ $(cat "/proc/$(pid_of d)/comm") == sleep ]]'
  monitor=$(monitor_of d)
  is "$(sed 's/.*) //' "/proc/$monitor/stat" | cut -d' ' -f4)" "$monitor" # its own session
  is "$(sed 's/.*) //' "/proc/$monitor/stat" | cut -d' ' -f5)" 0          # no terminal
  is "$(readlink "/proc/$monitor/cwd")" /
  for fd in 0 1 2; do is "$(readlink "/proc/$monitor/fd/$fd")" /dev/null; done
  # nor an open file: who reads its output would wait for the container's end
  is "$(readlink /proc/"$monitor"/fd/* | grep -cxE "$scratch(/std.*)?" || :)" 0
  is "$(tr '\0' '\n' <"/proc/$(pid_of d)/environ" | grep -c TMPDIR)" 0
  tty 0 '^[0-9a-f]{64}$' '' -- "${mydocker[@]}" run -dit --name t /bin/sh
  run 0 exec t /bin/sh -c 'cat /proc/1/comm; readlink /proc/1/fd/0'
  is "$out" $'sh\n/dev/pts/0'
  background -i --name i /bin/cat # whose input never ends
  run 0 ps -q
  is "$(wc -l <<<"$out")" 3
  run 0 rm -f d t i
  is "$out" $'d\nt\ni'
  nothing_on_record
}

test_detach_fails() { # life: a command that can't start fails run -d as it fails run,
  # and nothing stays
  own_state
  fails 127 'exec, on /no/such: no such file' run -d --name x /no/such
  fails 127 'exec, on nothing: executable file not found' run -d --rootfs / nothing
  fails 126 'exec, on /etc/passwd: permission denied' run -d /etc/passwd
  fails 125 'workdir|enter' run -d -w /etc/passwd /bin/true
  nothing_on_record
  background --name x --rm /bin/true # the name is free
  wait_for eval '[[ ! $(ls state/containers) ]]'
}

test_exec() { # exec: joins all namespaces and takes arguments, status, input, environment,
  # user and directory
  local kind pid
  own_state
  background --name e -e A=1 --hostname h /bin/sh -c 'exec sleep 1000'
  for kind in pid mnt uts ipc net cgroup; do
    run 0 exec e readlink "/proc/self/ns/$kind"
    is "$out" "$(readlink "/proc/$(pid_of e)/ns/$kind")"
  done
  run 0 exec -d e /bin/sleep 999
  wait_for eval '"${mydocker[@]}" top e | grep -q "sleep 999$"'
  pid=$("${mydocker[@]}" top e | awk '/sleep 999$/ {print $2}')
  cmp "/proc/$(pid_of e)/cgroup" "/proc/$pid/cgroup"
  is "$(readlink "/proc/$pid"/fd/{0,1,2} | sort -u)" /dev/null # nothing of the caller's
  run 7 exec e /bin/sh -c 'exit 7'
  run 137 exec e /bin/sh -c 'kill -9 $$'
  run 127 exec e nothing
  run 126 exec e /etc
  run 0 exec -e B=2 -e A=3 -w /usr -u 1234:5678 e \
    /bin/sh -c 'echo $A $B $PWD $(id -u) $(id -g) $(hostname) "$1"' sh ' two  words'
  is "$out" '3 2 /usr 1234 5678 h  two  words'
  is "$(echo input | "${mydocker[@]}" exec -i e /bin/cat)" input
  is "$(echo input | "${mydocker[@]}" exec e /bin/cat)" ''
  tty 5 '^31 97$' '' '[#$] $' $'test -t 0 && stty size; exit 5\r' -- bash -c 'stty rows 31 cols 97
      stty size; "$@" exec -it e /bin/sh' bash "${mydocker[@]}"
  like "$out" $'exit 5\n31 97'
  fails 125 'chdir|workdir' exec -w /no/such e /bin/true
  fails 125 'exec: it takes' exec e
  run 0 kill e
  wait_for eval '[[ $(state_of e) == exited ]]'
  fails 125 'on e: it is not running' exec e /bin/true
  fails 125 'on nobody: no such container' exec nobody /bin/true
}

test_exec_closed() { # exec: a pid that was used again, or a namespace that can't be joined,
  # runs nothing at all
  own_state
  background --name e /bin/sleep 1000
  run 0 kill -s KILL e
  wait_for eval '[[ $(state_of e) == exited ]]'
  background --name f /bin/sleep 1000
  sleep 1000 &
  # the record says that e is the host's sleep, started when another process was; f's monitor lives
  "$PYTHON" -I - state/containers/"$id"/record.json $! <<'PYTHON'
import json, sys
record = json.load(open(sys.argv[1]))
record["pid"] = int(sys.argv[2])
json.dump(record, open(sys.argv[1], "w"))
PYTHON
  fails 125 'on f: it is not running' exec f /bin/sh -c "echo escaped >$PWD/escaped"
  fails 125 'on f: it is not running' kill -s USR1 f
  fails 125 'on f: it is not running' top f
  kill -0 $! # it is still there
  kill -KILL "$(monitor_of f)"
  [[ ! -e escaped ]]
  # what join is told by a hand that isn't exec's leads nowhere
  fails 125 "join: it can't be typed" join 0
  fails 125 "join: it can't be typed" join
}

test_exec_hidden() { # exec: CVE-2016-9962, CVE-2024-21626: who joins can't be looked into and
  # brings no descriptor
  local seen
  own_state
  background --name e /bin/sh -c 'while :; do
      for p in /proc/[0-9]*; do
        case $p in /proc/1 | /proc/$$) continue ;; esac
        [ -r $p/comm ] && read name <$p/comm || continue
        case $name in python*)
          ls -l $p/fd $p/exe $p/cwd $p/root 2>&1; stat -c "%u %n" $p/fd ;;
        esac
      done
    done 2>&1'
  for seen in {1..15}; do run 0 exec e /bin/true; done
  run 0 logs e
  unlike "$out" 'memfd|/state|pidfd|mnt:|socket:'
  exec 9<"$scratch"
  run 0 exec e /bin/sh -c 'ls /proc/self/fd'
  exec 9<&-
  is "$(tr '\n' ' ' <<<"$out")" '0 1 2 3 '
  for seen in 7 8 9 10; do
    run 125 exec -w "/proc/self/fd/$seen" e /bin/sh -c 'pwd; ls'
    is "$out" ''
  done
}

test_stop() { # life: stop sends the stop signal, waits, kills, and returns when all is swept
  local begin=$SECONDS
  own_state
  background --name a /bin/sh -c 'trap "echo term; exit 3" TERM
    echo ready; while :; do sleep 0.05; done'
  background --name b --stop-signal USR1 /bin/sh -c 'trap "echo usr1; exit 4" USR1
    echo ready; while :; do sleep 0.05; done'
  background --name c --stop-timeout 0 /bin/sleep 1000 # PID 1 without a handler
  wait_for said a ready
  wait_for said b ready
  run 0 stop a b c
  is "$out" $'a\nb\nc'
  is "$(find state/running -mindepth 1)" ''
  run 0 ps -a --format '{{.Names}} {{.Status}}'
  like "$out" '^c Exited \(137\) .*'$'\n''b Exited \(4\) .*'$'\n''a Exited \(3\) '
  run 0 logs a
  is "$out" $'ready\nterm'
  run 0 stop a # as docker does
  run 0 rm a b c
  background --rm --name d /bin/sleep 1000
  run 0 stop -t 0 d
  run 0 ps -aq
  is "$out" ''
  ((SECONDS < begin + patience)) || fail 'it took too long'
}

test_start() { # life: start and restart bring a container back with its root and configuration
  make_image "t$n:1"
  background --name s -e A=1 -v "v$n:/v" "t$n:1" /bin/sh -c 'echo x >>/v/runs
      echo "run $(cat /v/runs /here 2>/dev/null)" $A; touch /here; exec sleep 1000'
  wait_for said s 'run x 1'
  run 0 start s # it runs: nothing happens
  run 0 stop -t 0 s
  run 0 start s
  is "$(state_of s)" running
  run 0 restart -t 0 s
  wait_for said s $'^x 1$'
  run 0 exec s /bin/sh -c 'ls /here; cat /v/runs'
  is "$out" $'/here\nx\nx\nx'
  run 0 rm -f -v s
  run 3 run -i --name f "t$n:1" /bin/sh -c 'read -r x; echo "got $x"; exit 3'
  is "$(echo hello | "${mydocker[@]}" start -ai f || echo "status $?")" $'got hello\nstatus 3'
  run 0 rm f
}

test_restart_policy() { # life: --restart starts a container again,
  # as often as it should and until it's stopped
  need /mnt
  own_state
  background --name a --restart on-failure:2 /bin/sh -c 'echo run; exit 3'
  run 0 wait a
  is "$out" 3
  run 0 logs a
  is "$out" $'run\nrun\nrun'
  run 0 inspect -f '{{.RestartCount}} {{.State.ExitCode}}' a
  is "$out" '2 3'
  run 0 start a # counts from the start again
  run 0 wait a
  is "$("${mydocker[@]}" logs a | grep -c run)" 6
  background --name b --restart on-failure /bin/sh -c 'echo run; exit 0'
  run 0 wait b
  run 0 logs b
  is "$out" run
  background --name c --restart always -v "$PWD:/mnt" \
    /bin/sh -c 'echo run; [ ! -e /mnt/stay ] || exec sleep 1000'
  wait_for eval '[[ $("${mydocker[@]}" logs c | wc -l) -ge 3 ]]'
  touch stay
  wait_for eval '[[ $(state_of c) == running ]] && "${mydocker[@]}" top c | grep -q sleep'
  run 0 kill c
  wait_for eval '[[ $(state_of c) == exited ]]' # killed on purpose: it stays down
  rm stay
  run 0 start c
  wait_for eval '[[ $(state_of c) == restarting ]]'
  run 0 stop c # between two starts, too
  is "$(state_of c)" exited
  background --name d --restart unless-stopped /bin/false
  wait_for eval '[[ $(state_of d) == restarting ]]'
  run 0 rm -f a b c d
  nothing_on_record
}

test_monitor_told() { # life: TERM and HUP tell a background container's monitor to stop it, for
  # good and in the time that it has for that: so a host goes down without waiting
  local number
  own_state
  background --name deaf --restart always --stop-timeout 1 /bin/sh -c 'trap "" TERM HUP
    echo ready; while :; do sleep 0.1; done'
  background --name polite --restart always --stop-signal INT /bin/sh -c 'trap "exit 5" INT
    echo ready; while :; do sleep 0.1; done'
  background --name still /bin/sh -c 'trap "exit 6" TERM; echo ready; while :; do sleep 0.1; done'
  for name in deaf polite still; do wait_for said "$name" ready; done
  run 0 pause still
  kill -TERM "$(monitor_of deaf)" "$(monitor_of still)"
  kill -HUP "$(monitor_of polite)"
  run 0 wait deaf polite still
  is "$out" $'137\n5\n6'
  run 0 ps -q
  is "$out" ''
  run 0 start polite # its policy counts again
  kill -KILL "$(pid_of polite)"
  wait_for eval '[[ $(state_of polite) == running && $("${mydocker[@]}" inspect \
    -f "{{.RestartCount}}" polite) == 1 ]]'
  run 0 rm -f deaf polite still
}

test_kill() { # life: kill sends PID 1 any signal, and says when there's nobody to get it
  own_state
  background --name k /bin/sh -c 'trap "echo hup" HUP; echo ready; while :; do sleep 0.05; done'
  wait_for said k ready
  run 0 kill -s HUP k
  wait_for said k hup
  run 0 kill --signal 1 k
  is "$(state_of k)" running
  run 0 kill k
  run 0 wait k
  is "$out" 137
  fails 125 'on k: it is not running' kill k
  fails 125 '--signal, on NONE: there is no such signal' kill -s NONE k
}

test_pause() { # life: pause freezes all processes, unpause lets them go on;
  # a paused one can be stopped
  own_state
  background --name p /bin/sh -c 'while :; do echo x; sleep 0.01; done'
  wait_for said p x
  run 0 pause p
  is "$(state_of p)" paused
  run 0 ps
  like "$out" 'Up .* \(Paused\)'
  local before state
  state=$(limit_file p cgroup.events freezer.state)
  like "$(<"$state")" 'FROZEN|frozen 1'
  run 0 exec --help # by now what it wrote before is in its log, and after
  before=$("${mydocker[@]}" logs p | wc -l)
  run 0 ps
  is "$("${mydocker[@]}" logs p | wc -l)" "$before"
  fails 125 'on p: it is already paused' pause p
  fails 125 'exec, on p: it is paused' exec p /bin/true
  run 0 unpause p
  wait_for eval '[[ $("${mydocker[@]}" logs p | wc -l) -gt $before ]]'
  fails 125 'on p: it is not paused' unpause p
  run 0 pause p
  run 0 stop -t 1 p
  run 0 start p
  run 0 pause p
  run 0 rm -f p
  fails 125 'no such container' pause p
}

test_wait() { # life: wait blocks until each has ended, and prints its status, of removed ones too
  need /mnt
  own_state
  background --name w --rm -v "$PWD:/mnt" /bin/sh -c 'until [ -e /mnt/go ]; do sleep 0.05; done
      exit 5'
  background --name x /bin/sh -c 'exit 6'
  "${mydocker[@]}" wait w x >got &
  wait_for eval 'readlink /proc/$!/fd/* | grep -q "/lock$"'
  touch go
  wait $!
  is "$(<got)" $'5\n6'
  run 0 wait x
  is "$out" 6
  background --name y /bin/sleep 1000
  "${mydocker[@]}" wait y >got &
  kill -KILL "$(monitor_of y)"
  wait $!
  is "$(<got)" 137
}

test_top_command() { # life: top shows the processes of a container alone, exec'd ones too
  own_state
  background --name t /bin/sh -c 'sleep 998 & exec sleep 997'
  run 0 exec -d t /bin/sleep 996
  wait_for eval '[[ $("${mydocker[@]}" top t | grep -c "sleep 99[678]$") == 3 ]]'
  run 0 top t
  is "$(wc -l <<<"$out")" 4
  like "$out" '^UID +PID +PPID +TIME +CMD'
  # of a container that shares the host's processes, or another's, its own
  background --name h --pid host --rootfs / /bin/sleep 995
  run 0 top h -o args
  is "$out" $'COMMAND\n/bin/sleep 995'
}

test_ps() { # ps: docker's columns, filters and formats, and the tutorial's PID and IP
  make_image "t$n:1"
  background --name a --label x=y "t$n:1" /bin/sleep 1000
  run 3 run --name b "t$n:1" /bin/sh -c 'echo 12345 >/file; exit 3'
  run 0 ps
  like "$out" '^CONTAINER ID +IMAGE +COMMAND +CREATED +STATUS +PORTS +NAMES'$'\n[^\n]*$'
  like "$(tail -n 1 <<<"$out")" \
    "^[0-9a-f]{12} +t$n:1 +\"/bin/sleep 1000\" +[0-9]+ seconds ago +Up [0-9]+ seconds +a$"
  run 0 ps -a --format '{{.Names}}|{{.State}}|{{.Image}}'
  is "$out" "b|exited|t$n:1"$'\n'"a|running|t$n:1"
  run 0 ps -l --format '{{.Names}} {{.Status}}'
  like "$out" '^b Exited \(3\) [0-9]+ seconds ago$'
  run 0 ps -n 5 -q
  is "$(wc -l <<<"$out")" 2
  run 0 ps -a --no-trunc -q
  like "$out" '^[0-9a-f]{64}'
  run 0 ps -as --filter name=b
  like "$out" ' +SIZE'$'\n.* 6B$'
  run 0 ps --format '{{.PID}}:{{.IP}}'
  is "$out" "$(pid_of a):"
  run 0 ps -a --format json
  "$PYTHON" -I -c 'import json, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
assert [row["Names"] for row in rows] == ["b", "a"], rows' "$scratch/stdout"
  run 0 ps -a --format 'table {{.Names}}\t{{.State}}'
  is "$out" $'NAMES   STATE\nb       exited\na       running'
  local filter
  for filter in name=a "id=$id" label=x label=x=y status=running "ancestor=t$n:1"; do
    run 0 ps --filter "$filter" --format '{{.Names}}'
    is "$out" a
  done
  run 0 ps --filter exited=3 --format '{{.Names}}'
  is "$out" b
  run 0 ps -a --filter label=x=z -q
  is "$out" ''
  fails 125 '--format, on .*: there is no .Nothing' ps --format '{{.Nothing}}'
  fails 125 '--last, on many' ps -n many
  run 0 prune
  like "$out" $'^b\nTotal reclaimed space: '
  run 0 ps -aq
  is "$out" "${id:0:12}"
  run 0 inspect -f '.State.Running' a
  is "$out" true
}

test_rm_force() { # images: rm -f ends a running container, also one that removes itself
  make_image "t$n:1"
  start run --rm --name "c$n" -v /place "t$n:1" /bin/sh -c 'echo ready; exec sleep 1000'
  wait_for has out ready
  run 0 rm -f -v "c$n"
  ended 137
  run 0 ps -aq
  is "$out" ''
  run 0 volume ls -q
  is "$out" ''
}

test_long_times() { # life: any number of seconds is a time, and -1 is for ever
  local seconds
  own_state
  for seconds in -1 2147484 9223372036854775807; do
    background --name t --stop-timeout "$seconds" /bin/sh -c 'trap "exit 3" TERM; echo ready
      while :; do sleep 0.05; done'
    wait_for said t ready
    run 0 stop t
    run 0 wait t
    is "$out" 3
    run 0 start t
    wait_for said t $'^ready\n?$'
    wait_for eval '[[ $("${mydocker[@]}" logs t | grep -c ready) == 2 ]]'
    run 0 restart -t "$seconds" t
    wait_for eval '[[ $("${mydocker[@]}" logs t | grep -c ready) == 3 ]]'
    run 0 stop -t "$seconds" t
    run 0 rm t
  done
  background --name t /bin/sleep 1000
  fails 125 '--time, on -2: not a number' stop -t -2 t
  run 0 rm -f t
}

test_signal_names() { # life: the real-time signals have names, and what is no signal has none
  local name
  own_state
  background --name s --stop-signal SIGRTMIN+3 "$PYTHON" -I -c '
import signal, sys
for number in 34, 36, 63, 64:
    signal.signal(number, lambda got, _: print("got", got, flush=True))
signal.signal(37, lambda *_: sys.exit(7))
print("ready", flush=True)
while True:
    signal.pause()'
  wait_for said s ready
  for name in RTMIN rtmin+2 RTMAX-1 SIGRTMAX; do run 0 kill -s "$name" s; done
  wait_for eval '[[ $("${mydocker[@]}" logs s | sort) == \
    "got 34"$'"'\n'"'"got 36"$'"'\n'"'"got 63"$'"'\n'"'"got 64"$'"'\n'"'ready ]]'
  for name in _IGN _DFL SIG_DFL SIG_UNBLOCK _SETMASK RTMIN+ RTMIN-1 RTMIN+31 RTMAX+1 RTMAX-99 \
    RTMINX ² ٣ +3 65 0 ''; do
    fails 125 "--signal, on .*: there is no such signal" kill -s "$name" s
  done
  run 0 stop s
  run 0 wait s
  is "$out" 7
  run 0 rm s
  make_image "t$n:1" --change 'STOPSIGNAL SIGRTMIN+3'
  run 0 run --rm "t$n:1" /bin/sh -c :
  fails 125 '--restart, on on-failure:²' run --restart on-failure:² -d /bin/true
  background --name l /bin/echo one
  fails 125 '--since, on ٣: not a time' logs --since ٣ l
  run 0 wait l
  run 0 logs --tail ² l # as docker: what is no number is all
  is "$out" one
}

test_frozen_below() { # life: stop and rm -f end a container whose own cgroups are frozen, too,
  # as those of a paused container in it
  own_state
  top='' # for the trap it outlives the function
  freeze_below() { # freeze_below NAME: its PID 1, in a cgroup below its own
    # else a failure would leave a process that nothing can kill
    trap '[[ ! -e $top/below/freezer.state ]] || echo THAWED >"$top/below/freezer.state"' EXIT
    top=$("${mydocker[@]}" inspect -f '{{json .Record.cgroups}}' "$1" | tr -d '[]",' |
      tr ' ' '\n' | while read -r dir; do
        [[ ! -e $dir/freezer.state && ! -e $dir/cgroup.freeze ]] || echo "$dir"
      done | head -n 1)
    [[ $top ]] || skip 'no freezer here'
    mkdir "$top/below"
    pid_of "$1" >"$top/below/cgroup.procs"
    if [[ -e $top/freezer.state ]]; then
      echo FROZEN >"$top/below/freezer.state"
      wait_for has "$top/below/freezer.state" FROZEN
    else
      echo 1 >"$top/below/cgroup.freeze"
      wait_for has "$top/below/cgroup.events" 'frozen 1'
    fi
  }
  background --name s /bin/sh -c 'trap "exit 3" TERM; echo ready; while :; do sleep 0.05; done'
  wait_for said s ready
  freeze_below s
  run 0 stop -t "$patience" s
  run 0 wait s
  is "$out" 3
  [[ ! -e $top ]]
  background --name r /bin/sleep 1000
  freeze_below r
  run 0 rm -f r
  [[ ! -e $top ]]
  background --name k /bin/sleep 1000
  freeze_below k
  run 0 kill k
  run 0 wait k
  is "$out" 137
}

test_end_between_restarts() { # life: stop, kill and rm -f end a restart policy at any moment
  local how moment
  own_state
  for how in 'kill' 'kill -s TERM' 'stop' 'stop -t -1' 'rm -f'; do
    for moment in 1 2 3 4; do # at once, and while it waits longer and longer
      background --name p --restart always /bin/false
      wait_for eval '(($("${mydocker[@]}" inspect -f .RestartCount p) >= '"$moment"'))'
      # shellcheck disable=SC2086 # several words
      run 0 $how p
      if [[ $how != rm* ]]; then
        wait_for eval '[[ $(state_of p) == exited && ! $(find state/running -mindepth 1) ]]'
        run 0 rm p
      fi
      nothing_on_record
    done
  done
  background --name p --restart always /bin/false
  wait_for eval '[[ $(state_of p) == restarting ]]'
  fails 125 'on p: it is not running' kill -s HUP p # nobody is there to get it
  run 0 rm -f p
}

test_stopped_monitor() { # life: whatever stops a monitor, its container can be ended, and all
  # commands say the same of it
  local how
  own_state
  for how in 'stop -t 0' 'rm -f' 'kill' 'restart -t 0'; do
    background --name s /bin/sleep 1000
    kill -STOP "$(monitor_of s)"
    is "$(state_of s)" running
    # shellcheck disable=SC2086 # several words
    run 0 $how s
    case $how in
      rm*) ;;
      restart*)
        is "$(state_of s)" running
        run 0 rm -f s ;;
      *)
        run 0 wait s
        is "$out" 137
        is "$(state_of s)" exited
        fails 125 'on s: it is not running' kill s
        run 0 rm s ;;
    esac
    nothing_on_record
  done
  background --name w /bin/sh -c 'until [ -e end ]; do sleep 0.05; done; exit 4'
  kill -STOP "$(monitor_of w)"
  "${mydocker[@]}" wait w >got &
  touch end
  wait $!
  is "$(<got)" 4
  run 0 start w # it ends at once: there is an end
  run 0 wait w
  background --name r --restart always /bin/false
  wait_for eval '[[ $(state_of r) == restarting ]]'
  kill -STOP "$(monitor_of r)"
  run 0 kill r
  run 0 wait r
  is "$(state_of r)" exited
}

test_time_namespace() { # life: a monitor and who asks for it may be in different time namespaces
  local early=(unshare --time --boottime 864000 --fork)
  own_state
  "${early[@]}" true || skip 'no time namespaces'
  id=$("${early[@]}" "${mydocker[@]}" run -d --name e /bin/sleep 1000)
  is "$(state_of e)" running
  run 0 exec e /bin/true
  run 0 stop -t 0 e
  background --name l /bin/sleep 1000
  is "$("${early[@]}" "${mydocker[@]}" ps --format '{{.Names}} {{.State}}')" 'l running'
  "${early[@]}" "${mydocker[@]}" rm -f l e
  nothing_on_record
}

test_full_disk_ends() { # life: on a full disk, containers that end are shown, and can be removed
  need unshare mount
  own_state
  mkdir state
  own_mounts 'mount -t tmpfs -o size=1m tmpfs state
    "$@" run -d --name a /bin/sh -c "until [ -e end ]; do sleep 0.05; done; exit 3"
    "$@" run -d --name b /bin/sleep 1000
    cat /dev/zero >state/fill || :
    touch end
    "$@" wait a
    "$@" kill b
    "$@" wait b
    "$@" ps -a --format "{{.Names}} {{.State}} {{.Status}}" 2>err
    "$@" inspect -f .State.ExitCode a
    for name in a b; do
      ! "$@" start "$name" 2>>errs || exit 1
    done
    "$@" rm a
    "$@" prune' >out
  like "$(<out)" $'\n3\nb\n137\nb exited Exited \\(137\\) [^\n]* ago\n'\
$'a exited Exited \\(3\\) [^\n]* ago\n3\na\nb\nT'
  like "$(<err)" \
    "^mydocker: warning: container [ab]: its end can't be written, on [^ ]*: no space left"
  like "$(<errs)" 'mydocker: start, on [^ ]*: .*no space left'
}

test_images_full_disk() { # images: on a full disk they can be removed; a save that fails leaves
  # what was there, and no half an archive
  need unshare mount
  own_state
  mkdir state files
  small_root root
  own_mounts 'mount -t tmpfs -o size=16m tmpfs state
    mount -t tmpfs -o size=1m tmpfs files
    for name in a b c; do echo $name >root/which; tar -C root -c . | "$@" import - $name:1; done
    echo old >files/old
    for name in old new; do ! "$@" save -o files/$name a:1 2>>saved || exit 1; done
    echo old | cmp - files/old
    ls files
    cat /dev/zero >state/fill || :
    ! "$@" tag a:1 d:1 2>tagged || exit 1
    "$@" rmi a:1
    rm state/fill
    cat /dev/zero >state/fill || :
    "$@" image prune -af
    "$@" images -q' >out
  like "$(<out)" $'\nold\nUntagged: a:1\nDeleted: [^\n]*\nUntagged: [^z]*reclaimed space: [^\n]*$'
  like "$(<saved)" '^mydocker: save, on files/old: no space left.*save, on files/new: no space left'
  like "$(<tagged)" '^mydocker: tag, on .*index.json: no space left'
  echo keep >archive
  ln -s archive link
  for n in archive link; do
    fails 125 'no such image' save -o "$n" nosuch
    is "$(<archive)" keep
  done
}

test_create() { # life: create makes what `run` would, and start starts it; what fails to start
  # stays
  need overlay
  own_state
  small_root root
  make_image "t$n:1"
  run 0 create --name "t$n" -e A=b --hostname h "t$n:1" /bin/sh -c 'echo "$A $(hostname)"; exit 3'
  like "$out" '^[0-9a-f]{64}$'
  is "$("${mydocker[@]}" ps -a --format '{{.Names}} {{.State}} {{.Status}}')" "t$n created Created"
  run 3 start -a "t$n"
  is "$out" 'b h'
  run 3 start -a "t$n"
  run 0 rm "t$n"
  run 0 create --name "t$n" "t$n:1" /nonexistent
  fails 127 'no such file' start "t$n"
  is "$("${mydocker[@]}" ps -a --format '{{.Names}}')" "t$n"
  run 0 rm "t$n"
  run 0 create --name "t$n" --rm "t$n:1" /bin/sh -c :
  run 0 start -a "t$n"
  is "$("${mydocker[@]}" ps -aq)" ''
  mkdir bundle && cd bundle
  echo '{}' >config.json
  fails 125 'config.json' create x
  fails 125 'no command given' create --name "t$n" "t$n:1" # an image, though there is a bundle
}


health_is() { # health_is NAME WORD: of docker's
  [[ $("${mydocker[@]}" inspect -f '{{.State.Health.Status}}' "$1") == "$2" ]]
}

checked() { # checked NAME COUNT: so many results are kept
  [[ $("${mydocker[@]}" inspect -f '{{json .State.Health.Log}}' "$1" | grep -o ExitCode |
    wc -l) -ge $2 ]]
}

test_health() { # health: the monitor has --health-cmd run again and again; ps, inspect and events
  # show what comes of it, by docker's rules
  local name=t$n monitor
  own_state
  mkdir shared
  background --name "$name" -v "$PWD/shared:/mnt" --health-interval 50ms --health-retries 2 \
    --health-start-period 1h --health-start-interval 50ms --health-cmd \
    'echo tried; test -e /mnt/well' /bin/sh -c 'trap "exit 5" TERM; while :; do sleep 0.1; done'
  run 0 ps
  like "$out" 'Up [^(]*\(health: starting\)'
  wait_for checked "$name" 5
  run 0 ps -q --filter health=starting # an hour's failures don't count
  like "$out" '^[0-9a-f]{12}$'
  touch shared/well
  wait_for health_is "$name" healthy
  run 0 ps --filter health=healthy
  like "$out" 'Up [^(]*\(healthy\)'
  rm shared/well
  wait_for health_is "$name" unhealthy # but when it has been well once, they do
  run 0 ps --filter health=unhealthy
  like "$out" 'Up [^(]*\(unhealthy\)'
  run 0 inspect "$name"
  "$PYTHON" -I -c 'import json, sys
found, = json.load(sys.stdin)
health, log = found["State"]["Health"], found["State"]["Health"]["Log"]
print(health["FailingStreak"] > 1, len(log), log[-1]["ExitCode"], log[-1]["Output"].strip(),
      log[-1]["Start"] < log[-1]["End"], found["Config"]["Healthcheck"]["Test"])
' <"$scratch/stdout" >found
  is "$(<found)" "True 5 1 tried True ['CMD-SHELL', 'echo tried; test -e /mnt/well']"
  monitor=$(monitor_of "$name")
  wait_for made_room "$monitor"
  run 0 restart -t 0 "$name"
  run 0 ps
  like "$out" 'Up [^(]*\(health: starting\)'
  touch shared/well
  wait_for health_is "$name" healthy
  run 0 stop "$name"
  is "$(state_of "$name")" exited
  run 0 rm "$name"
  run 0 events --since 1h --until 0s --filter event=health_status --format '{{.Action}}'
  is "$(tr '\n' , <<<"$out")" \
    'health_status: healthy,health_status: unhealthy,health_status: healthy,'
  nothing_on_record
  fails 125 'it can.t go with --health-cmd' run --no-healthcheck --health-cmd x /bin/true
  fails 125 '--health-interval, on soon' run --health-interval soon --health-cmd x /bin/true
  fails 125 '--health-timeout, on 1us' run --health-timeout 1us --health-cmd x /bin/true
  fails 125 '--health-retries, on -1' run --health-retries -1 --health-cmd x /bin/true
}

has_children() { # has_children PID COUNT
  [[ $(children "$1" | wc -l) == "$2" ]]
}

test_health_slow() { # health: a check that hangs is ended in time, and holds up nothing of its
  # monitor
  local name=t$n monitor
  own_state
  background --name "$name" --health-interval 50ms --health-timeout 300ms --health-retries 1 \
    --health-cmd 'echo begun; exec sleep 1000' /bin/sh -c 'exec sleep 1000'
  wait_for health_is "$name" unhealthy
  run 0 inspect -f '{{json .State.Health.Log}}' "$name"
  like "$out" '"ExitCode": -1, "Output": "Health check exceeded timeout \(0.3s\)"'
  run 0 rm -f "$name"
  background --name "$name" --health-interval 50ms --health-cmd 'exec sleep 1000' \
    /bin/sh -c 'while :; do echo x; sleep 0.01; done' # and no time-out to come
  monitor=$(monitor_of "$name")
  wait_for has_children "$monitor" 2
  run 0 logs -n 1 "$name"
  is "$out" x
  run 0 rm -f "$name"
  wait_for gone "$monitor"
  is "$(grep -laE "health.$id" /proc/[0-9]*/cmdline 2>/dev/null || :)" ''
  nothing_on_record
}

test_health_image() { # health: an image's own check is carried out, unless the command line has
  # another; a strange one is refused
  make_image "t$n:1"
  printf 'FROM t%s:1\n%s\n' "$n" \
    'HEALTHCHECK --interval=50ms --retries=1 CMD ["/bin/ls", "/none"]' >Dockerfile
  run 0 build --network none -t "t$n:2" .
  background --name a --network none "t$n:2" /bin/sh -c 'exec sleep 1000'
  wait_for health_is a unhealthy
  run 0 inspect -f '{{json .State.Health.Log}}' a
  like "$out" '"ExitCode": [12], "Output": "[^"]*none'
  background --name b --network none --no-healthcheck "t$n:2" /bin/sh -c 'exec sleep 1000'
  background --name c --network none --health-cmd true "t$n:2" /bin/sh -c 'exec sleep 1000'
  wait_for health_is c healthy
  run 0 ps --filter health=none --format '{{.Names}} {{.Status}}'
  like "$out" '^b Up [^(]*$'
  run 0 rm -f a b c
  printf 'FROM t%s:2\nHEALTHCHECK NONE\n' "$n" >Dockerfile
  run 0 build --network none -t "t$n:3" .
  background --name d --network none "t$n:3" /bin/sh -c 'exec sleep 1000'
  run 0 inspect -f '{{json .State}}' d
  unlike "$out" '"Health": {'
  run 0 rm -f d
  set_config "t$n:1" '{"Healthcheck": {"Test": ["CMD-SHELL", "true"], "Interval": -1}}' 125
  set_config "t$n:1" '{"Healthcheck": {"Test": ["CMD-SHELL", 5]}}' 125
  set_config "t$n:1" '{"Healthcheck": {"Test": ["CMD", "/nonesuch"], "Interval": 50000000,
                                       "Timeout": 9223372036854775807, "Retries": 1}}'
  background --name e --network none "t$n:1" /bin/sh -c 'exec sleep 1000'
  wait_for health_is e unhealthy
  run 0 inspect -f '{{json .State.Health.Log}}' e
  like "$out" '"ExitCode": 127, "Output": "[^"]*nonesuch'
  run 0 rm -f e
}

test_health_attached() { # health: in the foreground a check reads nothing of the caller's, nor says
  # anything there
  own_state
  mkdir shared
  tty 0 '^ready$' $'end\n' -- "${mydocker[@]}" run -it --rm -v "$PWD/shared:/mnt" \
    --health-interval 50ms --health-cmd 'cat; echo seen | tee -a /mnt/said' \
    /bin/sh -c 'until [ -s /mnt/said ]; do sleep 0.1; done; echo ready; read line; echo "got $line"'
  like "$out" 'got end'
  unlike "$out" seen
}

attaches() { # attaches NUMBER ARG...: `mydocker attach ARG...` with ./in<NUMBER>, a fifo that is
  # held open, as its input; out<NUMBER> and err<NUMBER>; its pid is in ${visitors[NUMBER]}
  local hold
  mkfifo "in$1"
  exec {hold}<>"in$1" # for as long as the test runs, by this number:
  [[ $hold ]]
  "${mydocker[@]}" attach "${@:2}" <"in$1" >"out$1" 2>"err$1" &
  visitors[$1]=$!
}

attached() { # attached COUNT: so many have come by now
  noted event=attach
  [[ $(wc -l <noted) == "$1" ]]
}

test_attach() { # attach: what a container in the background reads and says, for several at once;
  # its end is theirs, with its status
  local name=t$n visitors=() got=0 script='trap "echo trapped" HUP
    while :; do if read -r line; then echo "out $line"; echo "err $line" >&2; fi
    [ "$line" != end ] || exit 7; done'
  own_state
  background --name "$name" -i /bin/sh -c "$script"
  attaches 1 "$name"
  attaches 2 --no-stdin "$name"
  attaches 3 --sig-proxy=false "$name"
  wait_for attached 3
  echo first >in1
  echo unheard >in2
  wait_for has out1 '^out first$'
  wait_for has out2 '^out first$'
  wait_for has err2 '^err first$'
  is "$(<out1)|$(<err1)" 'out first|err first'
  kill -HUP "${visitors[1]}" # is the container's
  echo again >in3
  wait_for has out3 '^out again$'
  has out1 trapped
  kill -TERM "${visitors[3]}" # is its own
  wait_for gone "${visitors[3]}"
  wait "${visitors[3]}" || got=$?
  is "$got" 143
  is "$(state_of "$name")" running
  run 0 pause "$name"
  fails 125 'it is paused' attach "$name"
  run 0 unpause "$name"
  echo end >in1
  for number in 1 2; do
    wait_for gone "${visitors[number]}"
    got=0
    wait "${visitors[number]}" || got=$?
    is "$got" 7
    like "$(<"out$number")" 'out end$'
  done
  unlike "$(<out1)" unheard
  run 0 logs "$name"
  like "$out" 'out first'
  fails 125 'not running' attach "$name"
  run 0 rm "$name"
  fails 125 'no such container' attach "$name"
  start run --name "$name" /bin/sh -c 'echo ready; exec sleep 1000'
  wait_for has out ready
  fails 125 'in the foreground, without a terminal' attach "$name"
  run 0 kill "$name"
  ended 137
  is "$(find state/containers -name 'visit.*')" ''
}

test_attach_slow() { # attach: who doesn't take what is said is sent away, and holds up nobody
  local name=t$n visitors=() got=0
  own_state
  background --name "$name" -i /bin/sh -c 'read -r line; i=0; while [ $i -lt 60000 ]; do
    i=$((i + 1)); echo "a line of fifty characters or so, number $i"; done; echo done; sleep 1000'
  attaches 1 "$name"
  attaches 2 "$name"
  wait_for attached 2
  kill -STOP "${visitors[1]}"
  echo go >in2
  wait_for has out2 '^done$'
  is "$(wc -l <out2)" 60001
  kill -CONT "${visitors[1]}"
  wait_for gone "${visitors[1]}"
  wait "${visitors[1]}" || got=$?
  is "$got" 125
  like "$(<err1)" "doesn't take what is said"
  kill -KILL "${visitors[2]}" # without a word
  run 0 exec "$name" /bin/true
  run 0 rm -f "$name"
}

test_attach_terminal() { # attach: a terminal in the background is kept, its size follows, and the
  # keys to leave it leave it
  local name=t$n
  own_state
  background --name "$name" -it /bin/sh -c \
    'while read -r line; do
    until [ "$line" != two ] || [ "$(stty size)" = "30 100" ]; do sleep 0.05; done
    stty size; echo "got $line"; [ "$line" != end ] || exit 3; done'
  tty 0 '^' $'one\n' '^24 80\ngot one$' '@size 30 100' '^' $'two\n' \
    '^30 100\ngot two$' $'\x10' '^' '@do sleep 0.3' '^' $'\x11' -- "${mydocker[@]}" attach "$name"
  like "$out" 'it goes on without you'
  tty 0 '^' $'three\n' '^got three$' $'\x10x\x11\x10\x7f\x7f\x7f\x7f\n' '^got $' $'\x18y' \
    -- "${mydocker[@]}" attach --detach-keys ctrl-x,y "$name"
  is "$(state_of "$name")" running
  wait_for made_room "$(monitor_of "$name")"
  tty 3 '^' $'end\n' -- "${mydocker[@]}" attach "$name"
  like "$out" 'got end'
  is "$(state_of "$name")" exited
  run 0 rm "$name"
  fails 125 '--detach-keys, on ctrl-1' attach --detach-keys ctrl-1 "$name"
  fails 125 '--detach-keys, on ab' run --detach-keys a,ab /bin/true
}

test_detach_keys() { # attach: the keys to leave work on run -it, start -ai and exec -it: what runs
  # goes on in the background, and can be come back to
  local name=t$n monitor
  make_image "t$n:1"
  tty 0 '^ready' $'one\n' '^got one$' $'\x10\x11' -- "${mydocker[@]}" run -it --name "$name" \
    --network none --log-level error "t$n:1" /bin/sh -c \
    'echo ready; while read -r line; do echo "got $line"; [ "$line" != end ] || exit 4; done'
  like "$out" 'it goes on without you'
  is "$(state_of "$name")" running
  monitor=$(monitor_of "$name")
  wait_for made_room "$monitor"
  is "$(readlink "/proc/$monitor/fd/0" "/proc/$monitor/fd/1" | tr '\n' ,)" '/dev/null,/dev/null,'
  tty 0 '^' $'two\n' '^got two$' $'\x10\x11' -- "${mydocker[@]}" start -ai "$name" # as it runs
  tty 0 '^# ' $'echo again$((1 + 1))\n' '^again2' $'\x10\x11' -- \
    "${mydocker[@]}" exec -it -e PS1='# ' "$name" /bin/sh
  run 0 top "$name"
  is "$(grep -c '/bin/sh' <<<"$out")" 2
  tty 4 '^' $'end\n' -- "${mydocker[@]}" attach "$name"
  run 0 logs "$name"
  like "$out" 'got two'
  tty 0 '^ready' $'three\n' '^got three$' ab -- \
    "${mydocker[@]}" start -ai --detach-keys a,b "$name"
  is "$(state_of "$name")" running
  kill -TERM "$(monitor_of "$name")" # as of any in the background
  wait_for has_state "$name" exited
  tty 4 '^ready' $'\x10\x11\x7f\x7fend\n' '^got .*end$' '' -- \
    "${mydocker[@]}" start -ai --detach-keys '' "$name"
  run 0 rm -f "$name"
}

test_leave_unlogged() { # attach: what --log-driver none has said isn't kept when its caller has
  # left
  local name=t$n
  own_state
  tty 0 '^ready' $'one\n' '^got one$' $'\x10\x11' -- "${mydocker[@]}" run -it --rm --name "$name" \
    --log-driver none --log-level error /bin/sh -c \
    'echo ready; while read -r line; do echo "got $line"; done'
  tty 0 '^' $'two\n' '^got two$' $'\x10\x11' -- "${mydocker[@]}" attach "$name"
  is "$(find state/containers -name 'container.log*')" ''
  run 0 rm -f "$name"
}

test_keep_caller() { # attach: with -it the process that the caller knows passes signals on, is made
  # small, and no container outlives its kill -9
  local script
  own_state
  script='modes=$(stty -g) got=0
    bash -c '\''echo "$$" >caller; exec "$@" run -it --log-level error /bin/sh -c "
      trap \"echo trapped\" USR1; echo ready; while :; do sleep 0.1; done"'\'' bash "$@" || got=$?
    while [[ $("$@" ps -q) ]]; do sleep 0.1; done # no hang-up of the terminal ends it
    stty "$modes"
    exit "$got"'
  tty 137 '^ready' '@do kill -USR1 $(cat caller)' \
    '^trapped' '@do until grep -qa front /proc/$(cat caller)/cmdline; do sleep 0.1; done' \
    '^' '@do kill -USR1 $(cat caller)' '^trapped' '@do kill -KILL $(cat caller)' -- \
    bash -c "$script" bash "${mydocker[@]}"
  nothing_on_record
}

test_filters() { # ps: --filter as docker has it: of one key any value, of labels all; names are
  # regular expressions; what is no value is said; the prunes take until= and label!=
  need overlay
  own_state
  small_root root
  make_image "t$n:1" -c "LABEL i=m"
  make_image "u$n:1"
  run 3 run --name web -l a=1 -l b "t$n:1" /bin/sh -c 'exit 3'
  run 0 run --name web2 -l a=1 "t$n:1" /bin/sh -c :
  run 0 create --name made "t$n:1" /bin/sh
  local filter names
  while IFS='|' read -r names filter; do
    read -ra filter <<<"$filter"
    run 0 ps -a "${filter[@]/#/--filter=}" --format '{{.Names}}'
    is "${out//$'\n'/ }" "$names"
  done <<'END'
web|name=^web$
web|name=^/web$
made web|name=^web$ name=made
made web2 web|status=exited status=created
web|label=a label=b
web2 web|exited=3 exited=0
made|since=web2
web|before=web2
|publish=80
END
  fails 125 '--filter, on status=bogus: not one of created, ' ps -f status=bogus
  fails 125 '--filter, on dangling=maybe: not one of true, ' images -f dangling=maybe
  fails 125 '--filter exited, on x: not a number' ps -f exited=x
  fails 125 '--filter, on name=.: not a regular expression' ps -f 'name=('
  fails 125 'on nosuch: no such container' ps -a -f since=nosuch
  is "$("${mydocker[@]}" images --format '{{.Repository}}' -f "reference=t$n" \
    -f 'reference=none' -f label=i)" "t$n"
  run 0 image prune -a --filter until=24h
  is "$out" 'Total reclaimed space: 0B'
  run 0 image prune -a --filter 'label!=i'
  is "$("${mydocker[@]}" images --format '{{.Repository}}')" "t$n"
  run 0 container prune -f --filter until=24h
  is "$out" 'Total reclaimed space: 0B'
  run 0 container prune -f --filter 'label!=a'
  like "$out" $'^made\nTotal'
  run 0 events --since 1h --until 0s --filter label=a=1 --filter label=b --filter event=die \
    --format '{{.Actor.Attributes.name}}'
  is "$out" web
  fails 125 'until: it can.t go with --volumes' system prune --volumes --filter until=1h
  run 0 system prune -af --filter until=24h
  is "$("${mydocker[@]}" ps -a --format '{{.Names}}')" $'web2\nweb'
  run 0 system prune -af --filter until=0s
  is "$("${mydocker[@]}" ps -aq)$("${mydocker[@]}" images -q)" ''
}

test_stop_timeout_word() { # life: --timeout is --time, as docker has it by now; restart keeps what
  # has --rm; logs -f ends at --until; no letter is a near miss
  make_image "t$n:1"
  background --rm "t$n:1" /bin/sh -c 'echo said; trap : TERM; while :; do sleep 0.1; done'
  wait_for says_in_log "$id" said
  run 0 logs -f --until 0s "$id"
  is "$out" said
  run 0 restart --timeout=0 "$id" # it stays, for all its --rm
  is "$("${mydocker[@]}" ps -q --no-trunc)" "$id"
  fails 125 '--time, on x' restart -t x "$id"
  run 0 stop --timeout 0 "$id"
  is "$("${mydocker[@]}" ps -aq)" ''
  fails 125 '^mydocker: inspect, on -y: unknown option.hint: see inspect --help' inspect -y x
}

says_in_log() { # says_in_log ID TEXT
  [[ $("${mydocker[@]}" logs "$1") == "$2" ]]
}

test_docker_inspect() { # ps: inspect has docker's fields that scripts ask for, and as mounts what
  # was asked for; ps counts the size where it is named; load -q, import -m, commit --pause=false
  need overlay
  own_state
  make_image "t$n:1"
  run 0 create --name c --network none --restart on-failure:3 -v v:/data -v /tmp:/mnt:ro "t$n:1" \
    /bin/sh
  run 0 inspect -f '{{range .Mounts}}{{.Type}} {{.Destination}} {{.Mode}} {{end}}' c
  is "$out" 'volume /data  bind /mnt ro '
  run 0 inspect -f '{{.HostConfig.NetworkMode}} {{.HostConfig.RestartPolicy.MaximumRetryCount}}
{{range .HostConfig.Binds}}{{.}} {{end}}{{.HostConfig.LogConfig.Type}} {{.Driver}}' c
  is "$out" $'none 3\nv:/data /tmp:/mnt:ro json-file overlay'
  run 0 inspect -f '{{if .State.Health}}{{.State.Health.Status}}{{else}}none{{end}}' c
  is "$out" none
  run 0 wait c # it doesn't run
  is "$out" 0
  run 0 ps -a --format '{{.Size}} {{.LocalVolumes}}'
  is "$out" '0B 1'
  run 0 version -f '{{.Server.Version}}'
  is "$out" "$("${mydocker[@]}" version -f '{{.Client.Version}}')"
  run 0 save "t$n:1" -o x.tar
  run 0 load -q -i x.tar
  run 0 import -m 'a word' root "u$n:1"
  run 0 history --format '{{.Comment}}' "u$n:1"
  is "$out" 'a word'
  run 0 commit --pause=false c "u$n:2"
  fails 125 'import, on http://x/y: not a file' import http://x/y
  fails 125 'network, on host: that is none of its own' network create host
  run 0 rm c
}

# ── Volumes and cp ───────────────────────────────────────────────────────────

test_bind_mounts() { # volumes: -v shows directories and files of the host's;
  # a directory that isn't there is made
  mkdir dir
  echo one >dir/file
  echo two >single
  make_image "t$n:1"
  run 0 run --rm -v "$PWD/dir:/a/b" -v ./single:/etc/single -v "$PWD/made/deep:/made" "t$n:1" \
    /bin/sh -c 'cat /a/b/file /etc/single; echo three >>/etc/single; echo four >/made/file
      rm /a/b/file'
  is "$out" $'one\ntwo'
  is "$(<single)" $'two\nthree'
  is "$(<made/deep/file)" four
  [[ ! -e dir/file ]]
  fails 125 'nonsense' run --rm -v "$PWD/dir:/a:nonsense" "t$n:1" /bin/sh -c :
  fails 125 '' run --rm -v "$PWD/dir:relative" "t$n:1" /bin/sh -c :
  fails 125 '' run --rm -v '' "t$n:1" /bin/sh -c :
}

test_bind_over_wrong_kind() { # volumes: a file over a directory, or the other way,
  # is an error that names the place
  echo file >file
  mkdir dir
  make_image "t$n:1"
  fails 125 '/etc' run --rm -v "$PWD/file:/etc" "t$n:1" /bin/sh -c :
  fails 125 '/etc/passwd' run --rm -v "$PWD/dir:/etc/passwd" "t$n:1" /bin/sh -c :
}

test_read_only_volume() { # volumes: ro really is, for what is mounted below as well
  mkdir dir
  make_image "t$n:1"
  own_mounts 'mkdir dir/inner; mount -t tmpfs inner dir/inner; "$@"' \
    run --rm -v "$PWD/dir:/v:ro" -v "n$n:/w:ro" "t$n:1" /bin/sh -c '
      for d in /v /v/inner /w; do touch $d/x && echo $d; done
      [ -d /v/inner ] && echo seen' >out 2>err
  is "$(<out)" seen
  is "$(grep -c 'ead-only' err)" 3
  run 1 run --rm --mount "type=bind,source=$PWD/dir,target=/v,readonly" "t$n:1" \
    /bin/sh -c 'rmdir /v/inner || exit 1'
  [[ -d dir/inner ]]
}

test_mount_option() { # volumes: --mount says the same in words, and refuses what it doesn't know
  mkdir dir
  echo one >dir/file
  make_image "t$n:1"
  run 0 run --rm --mount "type=bind,src=$PWD/dir,dst=/a" \
    --mount "type=volume,source=v$n,target=/b" --mount type=volume,target=/c \
    "t$n:1" /bin/sh -c 'cat /a/file; touch /b/x /c/x'
  is "$out" one
  run 0 volume ls -q
  is "$out" "v$n"
  fails 125 "$PWD/none" run --rm --mount "type=bind,source=$PWD/none,target=/a" "t$n:1" /bin/sh -c :
  [[ ! -e none ]]
  fails 125 'nonsense' run --rm --mount type=nonsense,target=/a "t$n:1" /bin/sh -c :
  fails 125 'nonsense' run --rm --mount nonsense=1,target=/a "t$n:1" /bin/sh -c :
  fails 125 'target' run --rm --mount "type=bind,source=$PWD/dir" "t$n:1" /bin/sh -c :
}

test_named_volume() { # volumes: a named volume is filled from the image at first,
  # then stays as it is
  small_root root
  mkdir root/data
  echo image >root/data/file
  chown 12:34 root/data
  chmod 2750 root/data
  make_image "t$n:1"
  run 0 run --rm -v "v$n:/data" "t$n:1" /bin/sh -c 'cat /data/file; ls -ldn /data
      echo mine >/data/file; touch /data/new'
  like "$out" $'^image\ndrwxr-s--- +2 12 +34 '
  run 0 run --rm -v "v$n:/data" "t$n:1" /bin/sh -c 'cat /data/file; ls /data'
  is "$out" $'mine\nfile\nnew'
  run 0 run --rm -v "v$n:/data:ro" "t$n:1" /bin/sh -c 'touch /data/x 2>/dev/null || echo refused'
  is "$out" refused
  run 0 run --rm -v "w$n:/data:nocopy" "t$n:1" /bin/ls /data
  is "$out" ''
  fails 125 'no/such|no' run --rm -v 'no/such:/data' "t$n:1" /bin/sh -c :
}

test_volume_power_loss() { # volumes: a new one is whole after a power loss, or filled again
  need mkfs.ext4 mount unshare
  local flag place
  powered_root
  make_image "t$n:1"
  run 0 run --rm -v "v$n:/data" "t$n:1" /bin/sh -c :
  place=$MYDOCKER_ROOT/volumes/v$n
  [[ ! -e $place/filling ]]
  rm "$place/_data/20"
  : >"$place/_data/30"
  echo >"$place/filling" # as it is when the power goes
  run 0 run --rm -v "v$n:/data" "t$n:1" /bin/sh -c 'cat /data/*; echo mine >/data/10'
  cmp "$scratch/stdout" want
  run 0 run --rm -v "v$n:/data" "t$n:1" /bin/cat /data/10
  is "$out" mine
  tar -C root -cf root.tar .
  export MYDOCKER_ROOT=$PWD/disk/state
  for flag in "${power_flags[@]}"; do
    new_disk
    powered '' import root.tar "t$n:1"
    powered "$flag" run -v "v$n:/data" "t$n:1" /bin/sh -c 'echo ready; exec sleep 1000'
    is_whole -v "v$n:/data" "t$n:1"
  done
}

test_anonymous_volume() { # volumes: an anonymous one goes with rm -v and --rm, a named one doesn't
  make_image "t$n:1" -c 'VOLUME /data'
  run 0 run --name "c$n" -v "v$n:/named" -v /more "t$n:1" /bin/sh -c 'touch /data/x /more/x'
  run 0 volume ls -q
  is "$(wc -l <<<"$out")" 3
  run 0 rm -v "c$n"
  run 0 volume ls -q
  is "$out" "v$n"
  run 0 run --rm "t$n:1" /bin/sh -c 'touch /data/x'
  run 127 run --rm "t$n:1" /none
  run 0 volume ls -q
  is "$out" "v$n"
  run 0 run --name "c$n" "t$n:1" /bin/sh -c 'touch /data/x'
  run 0 rm "c$n"
  run 0 volume ls -q
  is "$(wc -l <<<"$out")" 2
  # a place that -v names is no anonymous volume
  run 0 run --name "c$n" -v "v$n:/data/" "t$n:1" /bin/sh -c :
  run 0 rm -v "c$n"
  run 0 volume ls -q
  is "$(wc -l <<<"$out")" 2
}

test_volumes_untouched() { # volumes: removing a container touches no byte of what was mounted in it
  local how
  mkdir -p dir/sub
  echo one >dir/file
  echo two >dir/sub/file
  echo three >single
  make_image "t$n:1"
  run 0 run --rm -v "v$n:/v" "t$n:1" /bin/sh -c 'echo named >/v/file'
  listing dir single "$MYDOCKER_ROOT/volumes/v$n" >before
  for how in rm 'rm -v' 'rm -f' 'rm -f -v'; do
    start run --name "c$n" -v "$PWD/dir:/dir" -v "$PWD/single:/single" -v "v$n:/v" \
      -v "$PWD/dir/sub:/v/sub" "t$n:1" \
      /bin/sh -c 'echo ready; [ "$1" ] || exec sleep 1000' sh "${how/rm -f*/}"
    wait_for has out ready
    if [[ $how == rm\ -f* ]]; then fails 125 "c$n" rm "c$n"; else ended 0; fi
    # shellcheck disable=SC2086 # words
    run 0 $how "c$n"
    listing dir single "$MYDOCKER_ROOT/volumes/v$n" | grep -v "/_data/sub'\|/_data'" >after
    grep -v "/_data/sub'\|/_data'" before | diff - after
  done
  run 0 run --rm -v "$PWD/dir:/dir" "t$n:1" /bin/sh -c :
  listing dir | diff <(grep "'dir" before) -
}

test_volume_command() { # volumes: volume create, ls, inspect, rm and prune do what docker's do
  make_image "t$n:1"
  run 0 volume create "a$n"
  is "$out" "a$n"
  run 0 volume create "b$n"
  run 0 volume create
  like "$out" '^[0-9a-f]{64}$'
  run 0 volume rm "$out"
  run 0 volume ls -q
  is "$out" "a$n"$'\n'"b$n"
  run 0 volume ls
  is "$out" "DRIVER   VOLUME NAME"$'\n'"local    a$n"$'\n'"local    b$n"
  run 0 volume inspect "a$n"
  like "$out" "\"Mountpoint\": \"$MYDOCKER_ROOT/volumes/a$n/_data\""
  like "$out" "\"Name\": \"a$n\""
  like "$out" '"Driver": "local"'
  run 0 run --name "c$n" -v "a$n:/a" "t$n:1" /bin/sh -c 'touch /a/x'
  fails 125 "c$n" volume rm "a$n"
  fails 125 "none$n" volume rm "none$n"
  fails 125 "none$n" volume inspect "none$n"
  fails 125 '\.\.' volume create ../x
  run 0 volume create "b$n" # is there
  run 0 rm "c$n"
  run 0 volume rm "a$n"
  is "$out" "a$n"
}

test_volume_prune() { # volumes: volume prune removes those that no container uses
  make_image "t$n:1"
  run 0 run --name "c$n" -v "used$n:/a" -v /anonymous "t$n:1" /bin/sh -c :
  run 0 run --rm -v "kept$n:/a" "t$n:1" /bin/sh -c :
  run 0 volume create "free$n"
  run 0 volume ls -q
  is "$(wc -l <<<"$out")" 4
  run 0 volume prune -a -f
  like "$out" "free$n"
  like "$out" "kept$n"
  unlike "$out" "used$n"
  run 0 volume ls -q
  like "$out" "used$n"
  is "$(wc -l <<<"$out")" 2
  # without -a only volumes without a name go, as docker does it
  run 0 volume create "free$n"
  run 0 rm "c$n"
  run 0 volume prune -f
  run 0 volume ls -q
  is "$(sort <<<"$out")" "free$n"$'\n'"used$n"
}

with_mount() { # with_mount PLACE STATUS ARG...: `mydocker ARG...` ends so where ./canary is mounted
  # on PLACE, into ./err
  WANT=$2 unshare -m bash -exc 'mount --bind canary "$1"
    got=0
    "${@:2}" 2>err || got=$?
    ((got == WANT))' bash "$1" "${mydocker[@]}" "${@:3}"
  canary_lives
}

test_volume_labels() { # volumes: labels of volumes and networks, and the filters that ask for them
  local filter
  own_state
  run 0 volume create --label a=b --label c "x$n"
  run 0 volume create --name "y$n" -d local
  run 0 volume inspect -f '{{.Name}} {{json .Labels}} {{index .Labels "a"}}' "x$n"
  is "$out" "x$n {\"a\": \"b\", \"c\": \"\"} b"
  run 0 volume create --label z=z "y$n" # it is there: nothing of it changes
  run 0 volume ls --format '{{.Name}} {{.Labels}}'
  is "$out" "x$n a=b,c="$'\n'"y$n "
  for filter in label=a label=a=b label=c name=x; do
    run 0 volume ls -q --filter "$filter" --filter driver=local
    is "$out" "x$n"
  done
  run 0 volume ls -q -f label=a=c
  is "$out" ''
  run 0 create --name "c$n" -v "y$n:/mnt" --rootfs / /bin/true
  run 0 volume ls -q -f dangling=true
  is "$out" "x$n"
  run 0 volume ls -q -f dangling=false
  is "$out" "y$n"
  fails 125 '--filter, on size=1: not one of name, ' volume ls -f size=1
  run 0 rm -f "c$n"
  run 0 volume prune -a --filter label=none
  is "$out" ''
  run 0 volume prune -a --filter label=a
  is "$out" "x$n"
  fails 125 '--driver, on nfs' volume create -d nfs
}

test_remove_across_mounts() { # volumes: what is mounted in a volume or a container's directory
  # stays, and is named
  local place
  make_canary
  make_image "t$n:1"
  run 0 run --name "c$n" -v "v$n:/v" "t$n:1" \
    /bin/sh -c 'mkdir -p /v/sub/place /sub/place; echo file >/v/file'
  with_mount "$(echo "$PWD/state/containers"/*/upper/sub/place)" 125 rm "c$n"
  like "$(<err)" \
    "^mydocker: remove, on $PWD/state/containers/.*/place: something is mounted there\$"
  run 0 ps -a
  place=$PWD/state/volumes/v$n/_data
  for what in "rm v$n" 'prune -a'; do
    # shellcheck disable=SC2086 # words
    with_mount "$place/sub/place" 125 volume $what
    is "$(<err)" "mydocker: volume rm, on v$n: something is mounted on $place/sub/place"
    is "$(ls "$place")" $'file\nsub'
  done
  run 0 volume rm "v$n"
}

test_mount_words() { # volumes: --mount takes docker's CSV quotes; a word that means nothing is
  # refused, not ignored
  mkdir 'a,b' 'q"q' dir
  echo comma >'a,b/file'
  echo quote >'q"q/file'
  make_image "t$n:1"
  run 0 run --rm --mount "type=bind,\"source=$PWD/a,b\",target=/a" \
    --mount "type=bind,\"src=$PWD/q\"\"q\",dst=/q,readonly=true" \
    --mount "type=bind,source=$PWD/dir,target=/d,ro=0" "t$n:1" \
    /bin/sh -c 'cat /a/file /q/file; touch /q/x 2>/dev/null || touch /d/x'
  is "$out" $'comma\nquote'
  [[ -e dir/x ]]
  fails 125 'mount' run --rm --mount "type=bind,\"source=$PWD/a,b,target=/a" "t$n:1" /bin/ls
  fails 125 'readonly' run --rm --mount "type=bind,source=$PWD/dir,target=/a,ro=yes" "t$n:1" /bin/ls
  fails 125 'sideways' run \
    --rm --mount "type=bind,source=$PWD/dir,target=/a,bind-propagation=sideways" "t$n:1" /bin/ls
}

test_two_mounts_at_one_place() { # volumes: two mounts at one place are refused, however they are
  # written
  local second
  mkdir dir
  make_image "t$n:1" -c 'VOLUME /data'
  for second in '-v /data' "-v v$n:/data/" "--mount type=tmpfs,target=/x/../data" '--tmpfs //data' \
    "-v $PWD/dir:/./data"; do
    # shellcheck disable=SC2086 # words
    fails 125 'data/?: two mounts at one place' run --rm -v "$PWD/dir:/data" $second "t$n:1" /bin/ls
  done
  run 0 volume ls -q
  is "$out" ''
  run 0 run --rm -v "$PWD/dir://data" "t$n:1" /bin/sh -c 'touch /data/x'
  [[ -e dir/x ]]
}

test_volume_places_of_the_kernel() { # volumes: the root, /proc and /sys are no volumes of an
  # image's, and nothing of the kernel's gets into one
  local place
  small_root root
  mkdir root/proc root/sys
  ln -s /sys/kernel root/lsys
  ln -s /proc/sys root/lproc
  ln -s . root/self
  make_image "t$n:1"
  for place in / // /x/.. /proc /proc/sys //proc /sys /sys/kernel /x/../sys /self; do
    set_config "t$n:1" "{\"Volumes\": {\"$place\": {}}}"
    fails 125 "$place" run --rm "t$n:1" /bin/sh -c 'echo started'
  done
  set_config "t$n:1" '{"Volumes": {"/lproc": {}}}'
  fails 125 lproc run --rm "t$n:1" /bin/sh -c 'echo started'
  set_config "t$n:1" '{"Volumes": {"/lsys": {}, "/dev/shm": {}}}'
  run 0 run --name "c$n" "t$n:1" /bin/sh -c 'ls /lsys/'
  is "$out" ''
  is "$(find state/volumes -mindepth 3)" ''
  fails 125 'root' run --rm -v "v$n:/" "t$n:1" /bin/ls
  fails 125 'root' run --rm -v "v$n:/self" "t$n:1" /bin/ls
}

test_volume_modes() { # volumes: every user may look into a new volume, whatever the caller's umask
  # is
  local place
  make_image "t$n:1"
  run 0 run --name "c$n" -u 1234 -v "c$n:/c" -v /d -v "e$n:/e:nocopy" "t$n:1" /bin/ls /c /d /e
  umask 077
  run 0 volume create "a$n"
  run 0 run --rm -v "b$n:/b:nocopy" "t$n:1" /bin/ls /b
  for place in state/volumes/*/_data; do is "$(stat -c '%a %u' "$place")" '755 0'; done
}

test_cp() { # cp: files and trees go both ways, running or stopped
  local state
  make_image "t$n:1"
  rich_root rich
  tree_of rich >want
  for state in running stopped; do
    start run --name "c$n" "t$n:1" /bin/sh -c 'echo inside >/tmp/inside; echo ready
        [ "$1" = stopped ] || exec sleep 1000' sh "$state"
    wait_for has out ready
    [[ $state == running ]] || ended 0
    run 0 cp "c$n:/tmp/inside" "$PWD/got"
    is "$(<got)" inside
    rm got
    mkdir got
    run 0 cp "c$n:/tmp/inside" "$PWD/got"
    run 0 cp "c$n:tmp/inside" "$PWD/got/again"
    is "$(cat got/inside got/again)" $'inside\ninside'
    rm -r got
    run 0 cp -a "$PWD/rich" "c$n:/tmp"
    run 0 cp -a "c$n:/tmp/rich" "$PWD/got"
    like "$err" 'sub/null: a device, ignoring' # none is made on the host
    tree_of got | diff <(grep -v /null want) -
    rm -r got
    run 0 cp -a "$PWD/rich/." "c$n:/tmp"
    run 0 cp "c$n:/tmp/file" "$PWD/c$n.file"
    is "$(<"c$n.file")" text
    run 0 cp "c$n:/tmp/suid" "$PWD/mine"
    is "$(stat -c %u:%g mine)" 0:0
    fails 125 'none' cp "c$n:/none" .
    fails 125 'none' cp "$PWD/none" "c$n:/"
    fails 125 'none' cp "$PWD/got" "none:/"
    fails 125 'cp' cp "c$n:/tmp/inside" "c$n:/tmp/other"
    run 0 rm -f "c$n"
    [[ $state == stopped ]] || ended 137
  done
}

test_cp_volumes() { # cp: what is mounted in a container can be copied, running or stopped
  mkdir host
  echo host >host/file
  make_image "t$n:1"
  start run --name "c$n" -v "$PWD/host:/bind" -v "v$n:/named" "t$n:1" \
    /bin/sh -c 'echo named >/named/file; echo ready; exec sleep 1000'
  wait_for has out ready
  run 0 cp "c$n:/bind/file" "$PWD/one"
  run 0 cp "c$n:/named/file" "$PWD/two"
  is "$(cat one two)" $'host\nnamed'
  kill -KILL "$pid"
  ended 137
  run 0 cp "c$n:/bind/file" "$PWD/three"
  run 0 cp "c$n:/named/file" "$PWD/four"
  is "$(cat three four)" $'host\nnamed'
}

test_cp_read_only() { # cp: nothing is copied into a read-only volume or root
  mkdir host
  make_image "t$n:1"
  start run --name "c$n" --read-only -v "$PWD/host:/v:ro" "t$n:1" \
    /bin/sh -c 'echo ready; exec sleep 1000'
  wait_for has out ready
  echo x >x
  fails 125 'read-only file system' cp x "c$n:/v/x"
  fails 125 'read-only file system' cp x "c$n:/etc/x"
  is "$(ls host)" ''
  kill -KILL "$pid"
  ended 137
}

test_cp_links() { # cp: a link in the container leads to nothing of the host's,
  # nor changes its modes, CVE-2021-41089
  local path state
  make_canary
  make_image "t$n:1"
  for state in running stopped; do
    start run --name "c$n" "t$n:1" /bin/sh -c 'ln -s "$2" /tmp/abs
      ln -s "../../../../../../../../../../../$2" /tmp/up
      ln -s "$2/file" /tmp/to; ln -s / /tmp/root; ln -s /proc/1/root /tmp/magic; echo ready
      [ "$1" = stopped ] || exec sleep 1000' \
      sh "$state" "$PWD/canary"
    wait_for has out ready
    [[ $state == running ]] || ended 0
    echo bad >bad
    for path in /tmp/abs/file /tmp/up/file /tmp/to "/tmp/magic$PWD/canary/file" \
      "/../../../../../..$PWD/canary/file"; do
      rm -rf got
      timeout -k 5 "$patience" "${mydocker[@]}" cp "c$n:$path" "$PWD/got" || is "$?" 125
      [[ ! -e got || -L got ]]
      timeout -k 5 "$patience" "${mydocker[@]}" cp "$PWD/bad" "c$n:$path" || is "$?" 125
      canary_lives
    done
    run 0 rm -f "c$n"
    [[ $state == stopped ]] || ended 137
  done
}

test_cp_race() { # cp: safe against a container that swaps links under it, CVE-2018-15664
  local i container
  make_canary
  mkdir shared shared/dir
  echo shared >shared/dir/file
  ln -s "../../../../../../../../../../$PWD/canary" shared/link
  make_image "t$n:1"
  mkdir other
  cd other
  start run --name "c$n" -v "$OLDPWD/shared:/s" "t$n:1" /bin/sh -c 'echo ready; exec sleep 1000'
  wait_for has out ready
  container=$pid
  cd ..
  flipper "$PWD/shared/dir" "$PWD/shared/link"
  echo bad >bad
  mkdir -p tree/dir/dir
  echo bad | tee tree/dir/other >tree/dir/dir/file
  for i in {1..7}; do
    rm -rf got
    timeout -k 5 "$patience" "${mydocker[@]}" cp "c$n:/s/dir/file" "$PWD/got" || is "$?" 125
    if [[ -e got ]]; then is "$(<got)" shared; fi
    rm -rf got
    timeout -k 5 "$patience" "${mydocker[@]}" cp "c$n:/s/dir" "$PWD/got" || is "$?" 125
    if [[ ! -L got && -e got/file ]]; then is "$(<got/file)" shared; fi
    timeout -k 5 "$patience" "${mydocker[@]}" cp "$PWD/bad" "c$n:/s/dir/new" || is "$?" 125
    timeout -k 5 "$patience" "${mydocker[@]}" cp tree "c$n:/s" || is "$?" 125
    timeout -k 5 "$patience" "${mydocker[@]}" cp -a tree/. "c$n:/s" || is "$?" 125
    timeout -k 5 "$patience" "${mydocker[@]}" cp -L "c$n:/s/dir/file" - >out.tar || is "$?" 125
    canary_lives
  done
  kill -KILL "$flipper" "$container"
  pid=$container
  ended 137
}

test_cp_runs_nothing() { # cp: no program, library or module of the container's is loaded,
  # CVE-2019-14271
  need strace
  # cp enters no root but looks in from outside: there's nothing to take out of it that would make
  # this fail, only something to add. What enters one, a hook, has a test of its own.
  local place
  small_root root
  make_image "t$n:1"
  run 0 run --name "c$n" "t$n:1" /bin/sh -c '
    for d in /lib /usr/lib /etc; do mkdir -p $d; echo bad >$d/libnss_files.so.2; done
    echo passwd: bad >/etc/nsswitch.conf; echo text >/tmp/file'
  strace -f -qq -o trace -e trace=execve,open,openat,openat2 "${mydocker[@]}" cp "c$n:/tmp/file" \
    "$PWD"
  is "$(<file)" text
  has trace 'openat2?\('
  for place in nsswitch.conf libnss; do
    grep -F "$place" trace >found || continue
    fail "$(<found)"
  done
  is "$(grep -c execve trace)" 1
}

# cp_rules: SOURCE TARGET WHAT... what `cp [-L] SOURCE TARGET` does to the tree of cp_target: 125
# and nothing, or the changes.  A line of podman's: where that one differs from docker's rules.
cp_rules() {
  cat <<'END'
f new new=new
f new/ 125
f new/. 125
f none/x 125
f file file=new
f file/ 125
f file/. 125
f dir dir/f=new
f dir/ dir/f=new
f dir/. dir/f=new
f ldir dir/f=new
f ldir/ dir/f=new
f lfile file=new
f lfile/ 125
f lnone none=new
f fifo 125
f null 125
f/ new 125
f/. new 125
none new 125
d new new=dir new/f=new new/n=new
d new/ new=dir new/f=new new/n=new
d new/. new=dir new/f=new new/n=new
d/. new new=dir new/f=new new/n=new
d none/x 125
d dir dir/d/f=new dir/d/n=new
d/ dir/ dir/d/f=new dir/d/n=new
d dir/. dir/d/f=new dir/d/n=new
d/. dir dir/f=new dir/n=new
d/. dir/. dir/f=new dir/n=new
d ldir dir/d/f=new dir/d/n=new
d/. ldir/ dir/f=new dir/n=new
d file 125
d/. file 125
d lfile 125
d lnone none=dir none/f=new none/n=new
d fifo 125
d null 125
e/. dir 125
e new new=dir new/a=new new/d=new
lf new new=->f
lf dir dir/lf=->f
lf file 125
lf lfile 125
lf/ new 125
lx new new=->/none
ld new new=->d
ld/ new new=dir new/f=new new/n=new
ld/ dir dir/ld=dir dir/ld/f=new dir/ld/n=new
ld/. dir dir/f=new dir/n=new
l/. dir dir/l=->f
-L,lf new new=new
-L,lf dir dir/lf=new
-L,ld dir dir/ld=dir dir/ld/f=new dir/ld/n=new
-L,lx new 125
p new new=fifo
p dir dir/p=fifo
p file 125
p fifo
END
}

cp_source() { # cp_source DIR: a file, directories, links and a fifo to copy
  rm -rf "$1"
  mkdir -p "$1/d" "$1/e" "$1/l"
  tee "$1/f" "$1/d/f" "$1/d/n" "$1/e/a" "$1/e/d" <<<new >"$scratch/stdout"
  ln -s f "$1/lf"
  ln -s d "$1/ld"
  ln -s f "$1/l/l"
  ln -s /none "$1/lx"
  mkfifo "$1/p"
}

cp_target() { # cp_target DIR: empty it, and put there what to copy onto
  rm -rf "${1:?}"/*
  mkdir -p "$1/dir/d"
  tee "$1/file" "$1/dir/d/f" "$1/dir/d/old" <<<old >"$scratch/stdout"
  ln -s old "$1/dir/l"
  ln -s dir "$1/ldir"
  ln -s file "$1/lfile"
  ln -s none "$1/lnone"
  mkfifo "$1/fifo"
  mknod "$1/null" c 1 3
}

cp_tree() { # cp_tree DIR: a line for each name
  local - path what
  set +x
  (cd "$1" && find . -mindepth 1 -printf '%P\n') | while read -r path; do
    if [[ -L $1/$path ]]; then what="->$(readlink "$1/$path")"
    elif [[ -d $1/$path ]]; then what=dir
    elif [[ -f $1/$path ]]; then what=$(<"$1/$path")
    elif [[ -p $1/$path ]]; then what=fifo
    else what=$(stat -c '%F' "$1/$path" | tr ' ' -); fi
    echo "$path $what"
  done | LC_ALL=C sort
}

cp_result() { # cp_result STATUS DIR: what cp_rules has for it, by ./before
  local - got gone
  set +x
  cp_tree "$2" >after
  got=$(LC_ALL=C comm -13 before after | sed 's/ /=/' | paste -sd' ')
  gone=$(sed 's/ .*//' after | grep -vxF -f - <(sed 's/ .*//' before) | sed 's/^/-/' | paste -sd' ')
  [[ $1 == 0 ]] || got="$1${got:+ $got}"
  echo "$got${gone:+ $gone}"
}

test_cp_rules() { # cp: docker's rules for each kind onto each kind, both ways, running or stopped
  local state source target want got option rows=0
  make_image "t$n:1"
  mkdir inside inside/s inside/w w
  cp_source s
  cp_source inside/s
  cp_target w
  cp_tree w >before
  for state in running stopped; do
    start run --name "c$n" -v "$PWD/inside:/i" "t$n:1" \
      /bin/sh -c 'echo ready; [ "$1" = stopped ] || exec sleep 1000' sh "$state"
    wait_for has out ready
    [[ $state == running ]] || ended 0
    while read -r source target want; do
      ((rows = rows + 1))
      # there only the root is opened another way
      [[ $state == running || $((rows % 4)) == 0 ]] || continue
      option=(-q)
      [[ $source != -L,* ]] || option=(-L)
      source=${source#-L,}
      cp_target inside/w
      got=0
      timeout -k 5 "$patience" "${mydocker[@]}" cp "${option[@]}" "s/$source" "c$n:/i/w/$target" \
        2>err || got=$?
      is "$source $target $(cp_result "$got" inside/w)" "$source $target $want"
      ((got == 0)) || like "$(<err)" "^mydocker: cp, on [^:]+.*: [a-z ,']+\$"
      cp_target w
      got=0
      timeout -k 5 "$patience" "${mydocker[@]}" cp "${option[@]}" "c$n:/i/s/$source" "w/$target" \
        2>err || got=$?
      is "out $source $target $(cp_result "$got" w)" "out $source $target $want"
    done < <(cp_rules)
    run 0 rm -f "c$n"
    [[ $state == stopped ]] || ended 137
  done
}

test_cp_rules_peer() { # cp: where podman keeps docker's rules, the same tree comes of it as with
  # podman
  local source target want peer place
  peer_podman
  mkdir root inside
  cp_source s
  cp_source root/s
  mkdir root/w w
  cp_target w
  cp_target root/w
  cp_tree w >before
  tar -C root -c . | "${podman[@]}" import -q - localhost/peer:1
  peer=$("${podman[@]}" create localhost/peer:1 /bin/sh)
  place=$("${podman[@]}" mount "$peer")
  while read -r source target want; do
    # podman wants a new directory without "/", follows the host's links, replaces what isn't a
    # directory, and copies half of a tree before it sees that the rest has no room
    case "$source $target" in
      'd new/' | 'd new/.' | 'e/. dir' | -L,* | lf* | l[dx]\ * | l/* | *' fifo' | *' null' | \
        f*' lfile' | f*' lnone') continue ;;
      p*) continue ;; # it reads a fifo of the host's, for ever
    esac
    cp_target "$place/w"
    got=0
    timeout -k 5 "$patience" "${podman[@]}" cp "s/$source" "$peer:/w/$target" || got=$?
    is "$source $target $(cp_result "$got" "$place/w")" "$source $target $want"
  done < <(cp_rules)
  "${podman[@]}" rm -f "$peer"
}

test_cp_in_place() { # cp: a file that is there stays the same file, mounted or linked where it is;
  # directories merge
  local state inode
  small_root root
  mkdir root/srv root/srv/data host s s/data s/kept
  echo old >root/srv/file
  make_image "t$n:1"
  echo host >host/file
  echo single >single
  echo new | tee s/data/new s/file s/hosts s/single s/kept/new >s/data/file
  for state in running stopped; do
    start run --name "c$n" -v "$PWD/host:/srv/data" -v "$PWD/single:/srv/single" "t$n:1" \
      /bin/sh -c 'ln /srv/file /srv/twin; echo ready; [ "$1" = stopped ] || exec sleep 1000' \
      sh "$state"
    wait_for has out ready
    [[ $state == running ]] || ended 0
    inode=$(stat -c %i single)
    run 0 cp s/data "c$n:/srv/"
    is "$(cat host/file host/new)" $'new\nnew'
    run 0 cp s/single "c$n:/srv/single"
    is "$(<single) $(stat -c %i single)" "new $inode"
    run 0 cp s/file "c$n:/srv/"
    run 0 cp "c$n:/srv/twin" got
    is "$(<got)" new
    # of another kind: nothing happens to what is mounted there
    fails 125 'srv/data/new/: not a directory' cp s/file "c$n:/srv/data/new/"
    fails 125 "c$n:/srv/single" cp s/data "c$n:/srv/single"
    mkdir -p s/all/data s/all/single
    echo first >s/all/aaa
    fails 125 "c$n:/srv/single: a file is there, which a directory can't replace" cp s/all/. \
      "c$n:/srv"
    rm -r s/all
    fails 125 'aaa' cp "c$n:/srv/aaa" got
    is "$(ls host)" $'file\nnew'
    if [[ $state == running ]]; then
      run 0 cp s/hosts "c$n:/etc/hosts"
      run 0 exec "c$n" /bin/sh -c 'cat /etc/hosts
        while read -r a b c d place e; do
          [ "$place" != /etc/hosts ] || echo mounted
        done </proc/self/mountinfo'
      is "$out" $'new\nmounted'
      kill -KILL "$pid"
      ended 137
    fi
    echo host >host/file
    rm host/new
    echo single >single
    run 0 rm "c$n"
  done
}

test_cp_onto_itself() { # cp: nothing is copied onto or into itself, by whatever way
  mkdir -p data/sub
  echo text >data/file
  make_image "t$n:1"
  start run --name "c$n" -v "$PWD/data:/d" -v "$PWD/data/sub:/s" "t$n:1" \
    /bin/sh -c 'echo ready; exec sleep 1000'
  wait_for has out ready
  cp_tree data >before
  fails 125 'd/file: .* itself' cp data/file "c$n:/d/file"
  fails 125 'd/file: .* itself' cp data/file "c$n:/d"
  fails 125 'itself' cp data/. "c$n:/d"
  fails 125 'itself' cp data "c$n:/d"
  fails 125 'itself' cp data "c$n:/d/sub"
  fails 125 'itself' cp data "c$n:/s"
  fails 125 'itself' cp data "c$n:/s/new"
  fails 125 'itself' cp "c$n:/d" data/sub
  fails 125 'itself' cp . "c$n:/new" # what the container writes is in ./state
  fails 125 'itself' cp state/containers/ "c$n:/new"
  fails 125 'c[0-9]*:/new' cp "c$n:/new" .
  is "$(cp_result 0 data)" ''
  run 0 cp data/sub "c$n:/d/new"
  kill -KILL "$pid"
  ended 137
}

test_cp_out_safely() { # cp: nothing of the container's becomes set-id root, a device or a link to
  # write through on the host
  small_root root
  mkdir root/s
  echo program | tee root/s/mine root/s/user root/s/group >root/s/link
  chown 1000:1000 root/s/user
  chown 0:1000 root/s/group
  chmod 4755 root/s/mine
  chmod 6755 root/s/user root/s/group
  "$PYTHON" -I -c 'import os, sys
os.setxattr(sys.argv[1], "security.capability", b"\1\0\0\2\0\x20\0\0" + bytes(12))' root/s/user || :
  mknod root/s/device c 1 3
  make_canary
  make_image "t$n:1"
  run 0 run --name "c$n" "t$n:1" /bin/sh -c :
  fails 125 "c$n:/s/device" cp "c$n:/s/device" new
  [[ ! -e new ]]
  run 0 cp "c$n:/s" .
  is "$err" "mydocker: warning: cp, on $PWD/s/device: a device, ignoring"
  is "$(stat -c '%a %u:%g' s/mine s/user s/group | paste -sd,)" '4755 0:0,755 0:0,755 0:0'
  is "$("$PYTHON" -I -c 'import os; print(os.listxattr("s/user"))')" '[]'
  [[ ! -e s/device ]]
  run 0 cp -a "c$n:/s/." s
  is "$(stat -c '%a %u:%g' s/mine s/user s/group | paste -sd,)" \
    '4755 0:0,6755 1000:1000,6755 0:1000'
  # a link that an earlier copy may have brought
  ln -sf "$PWD/canary/file" s/link
  fails 125 's/link: a link is there' cp "c$n:/s/link" s
  fails 125 's/link: a link is there' cp "c$n:/s" .
  canary_lives
  # the other way too
  cp -p s/user user
  chown 1000:1000 user
  chmod 4755 user
  run 0 cp user "c$n:/user"
  run 0 cp "c$n:/user" back
  is "$(stat -c '%a %u:%g' back)" '755 0:0'
}

test_cp_streams() { # cp: - is a tar archive, written to stdout or unpacked from stdin
  local what names
  small_root root
  rich_root root/rich
  mkdir root/w
  echo old >root/w/file
  ln -s /etc root/w/link
  make_image "t$n:1"
  run 0 run --name "c$n" "t$n:1" /bin/sh -c :
  while read -r what names; do
    "${mydocker[@]}" cp "c$n:/$what" - | tar -t >list
    is "$what $(paste -sd' ' list)" "$what $names"
  done <<'END'
etc/passwd passwd
bin/ls ls
w w/ w/file w/link
w/. ./ file link
w/link/passwd passwd
END
  "${mydocker[@]}" cp -L "c$n:/w/link" - | tar -x --wildcards --no-anchored -O '*passwd' |
    cmp - root/etc/passwd
  # what comes out goes in again, as it was
  tar --format=pax --xattrs --xattrs-include='*' -C root -cf a.tar rich
  tree_of root/rich >want
  "${mydocker[@]}" cp -a - "c$n:/w" <a.tar
  gzip -c a.tar | "${mydocker[@]}" cp -a - "c$n:/tmp/"
  "${mydocker[@]}" cp "c$n:/w/rich" - >b.tar
  mkdir got
  tar --xattrs --xattrs-include='*' -C got -xf b.tar
  tree_of got/rich | sed 's/\.[0-9]* //' >have
  sed 's/\.[0-9]* //' want | diff - have
  # missing directories are made, files are written into, other kinds and no directory refused
  hostile_tar new.tar 'f a/b/c text' 'f file new'
  "${mydocker[@]}" cp - "c$n:/w" <new.tar
  run 0 cp "c$n:/w/." w
  is "$(cat w/a/b/c w/file)" textnew
  for what in /w/file /none; do fails 125 "c$n:$what" cp - "c$n:$what" <new.tar; done
  fails 125 'cp: exactly one' cp - - <new.tar
  tty 125 -- "${mydocker[@]}" cp "c$n:/w" -
  like "$out" 'cp, on -: standard output is a terminal'
  head -c 700 new.tar >short.tar
  fails 125 'breaks off' cp - "c$n:/w" <short.tar
  echo nonsense >bad.tar
  fails 125 'archive' cp - "c$n:/w" <bad.tar
}

test_cp_hostile_archive() { # cp: an archive on stdin gets neither out of its directory nor through
  # a link, CVE-2018-15664
  local line
  make_canary
  small_root root
  mkdir root/w root/w/dir
  ln -s /etc root/w/link
  ln -s dir root/w/to
  make_image "t$n:1"
  start run --name "c$n" -v "$PWD/canary:/canary" "t$n:1" /bin/sh -c 'echo ready; exec sleep 1000'
  wait_for has out ready
  while read -r line; do
    hostile_tar a.tar "${line%%;*}" "${line##*;}"
    fails 125 "cp, on c$n:/w/" cp - "c$n:/w" <a.tar
    canary_lives
  done <<END
f ../etc/passwd bad
f a/../../canary/file bad
f link/passwd bad
f link bad
d link
f to/file bad
f dir bad
d x;f x bad
l x /canary;f x/file bad
l x ../canary;f x bad
h x link/passwd;f x bad
h x ../etc/passwd;f x bad
h x dir
END
  run 0 exec "c$n" /bin/sh -c 'cat /etc/passwd; ls /w/dir; readlink /w/link'
  is "$out" "$(<root/etc/passwd)"$'\n/etc'
  kill -KILL "$pid"
  ended 137
}

test_cp_whole_root() { # cp: a running container's whole root comes without what the kernel shows in
  # it, as often as one likes
  make_image "t$n:1"
  background --rm "t$n:1" /bin/sleep 1000
  local round
  for round in 1 2; do
    run 0 cp "$id:/" .
    is "$err" ''
    is "$(cat etc/passwd)" "$("${mydocker[@]}" exec "$id" /bin/cat /etc/passwd)"
    is "$(ls -A proc sys dev)" $'dev:\n\nproc:\n\nsys:'
  done
  "${mydocker[@]}" cp "$id:/" - >all.tar
  is "$(tar tf all.tar | grep -E '^(\./)?(proc|sys|dev)/' | sort | tr -d ./ | tr '\n' ' ')" \
    'dev proc sys '
  run 0 rm -f "$id"
}

test_created_files() { # cp: before its first start a container has its image's files: cp, export,
  # diff and commit find them, what is copied in is there at its start, in volumes, too
  need overlay
  own_state
  small_root root
  mkdir root/data
  touch root/data/image
  for_all
  make_image "t$n:1"
  local options
  run 0 run --rm --userns auto "t$n:1" /bin/sh -c :
  unlike "$err" copying || skip 'layers can not be shown with other owners here'
  for options in --rm '--userns auto'; do
    # shellcheck disable=SC2086 # two words
    run 0 create $options --name c -v "v$n:/data" "t$n:1" /bin/sh -c 'cat /tmp/word; ls /data'
    run 0 diff c
    is "$out" ''
    if [[ $options == --rm ]]; then
      run 0 commit c "u$n:1"
      run 0 export -o tree.tar c
      like "$(tar tf tree.tar)" 'etc/passwd'
    fi
    run 0 cp c:/etc/passwd .
    is "$(<passwd)" "$(<root/etc/passwd)"
    echo copied >word
    run 0 cp word c:/tmp/
    run 0 cp word c:/data/more
    run 0 start -a c
    is "$out" $'copied\nimage\nmore'
    run 0 rm -f c
    run 0 volume rm "v$n"
  done
  run 0 run --rm "u$n:1" /bin/sh -c 'ls /tmp /data'
  like "$out" 'image'
  run 0 create --name c "t$n:1" /bin/sh
  run 0 commit c "u$n:2"
  run 0 rm c
  nothing_on_record
  # where layers can't be stacked, they are copied for it, once
  mkdir lower upper work merged
  echo copied >word
  unshare -m --propagation private bash -exc '
    mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged
    export MYDOCKER_ROOT=$PWD/merged/state
    "$@" import root one
    "$@" create --name c one /bin/sh -c "cat /tmp/word"
    "$@" cp word c:/tmp/
    "$@" start -a c' bash "${mydocker[@]}" >out 2>err
  is "$(tail -n 1 out)" copied
  is "$(grep -c '^mydocker: warning: overlay, .* copying them' err)" 1
}

# ── Tar ──────────────────────────────────────────────────────────────────────

test_import_compressions() { # images: tar, tar.gz and tar.xz, from a file or stdin,
  # give one and the same layer
  local file digest
  own_state
  rich_root root
  tar --format=pax --xattrs --xattrs-include='*' -C root -cf a.tar .
  gzip -k a.tar
  "$PYTHON" -I -c 'import lzma, sys
sys.stdout.buffer.write(lzma.compress(sys.stdin.buffer.read()))' <a.tar >a.tar.xz
  digest=$(sha256sum <a.tar)
  tree_of root >want
  for file in a.tar a.tar.gz a.tar.xz; do
    run 0 import "$file" "t$n/$file"
    layer_of "t$n/$file"
    is "${layer##*/}" "${digest%% *}"
    tree_of "$layer" | diff want -
    run 0 import - "t$n/stdin" <"$file"
    layer_of "t$n/stdin"
    is "${layer##*/}" "${digest%% *}"
  done
}

without_libzstd() { # without_libzstd ARG...: `mydocker ARG...` fails where the library is no file;
  # fills $err
  local got=0
  unshare -m bash -c 'for file in $(ldconfig -p | sed -n "s/.*libzstd.so.1 .*=> //p"); do
    mount --bind /dev/null "$(readlink -f "$file")"; done; exec "$@"' bash "${mydocker[@]}" "$@" \
      >"$scratch/stdout" 2>"$scratch/stderr" || got=$?
  read_output
  is "status $got" 'status 125'
  like "$err" "layer.*zstd data: a compression that this Python can't read"$'\n''hint: .*libzstd'
}

test_import_zstd() { # images: zstd is read by Python or the host's libzstd, else refused by name
  local digest file
  need zstd
  own_state
  small_root root
  head -c 3000000 /dev/zero >root/zeros # frames end with and without a full buffer
  head -c 262144 /dev/urandom >root/random
  tar -C root -cf a.tar .
  digest=$(sha256sum <a.tar)
  zstd -q a.tar
  {
    head -c 100000 a.tar | zstd -q
    printf '\x50\x2a\x4d\x18\x03\0\0\0abc'
    tail -c +100001 a.tar | zstd -q --long=27
  } >frames
  for file in a.tar.zst frames; do
    if "$PYTHON" -c 'import ctypes; ctypes.CDLL("libzstd.so.1")' 2>/dev/null; then
      run 0 import "$file" "t$n"
      layer_of "t$n"
      is "${layer##*/}" "${digest%% *}"
      run 0 rmi "t$n"
    fi
  done
  head -c 300000 a.tar.zst >part
  fails 125 'zstd data: damaged: it breaks off|archive' import part "t$n"
  { head -c 200000 a.tar.zst; head -c 10000 /dev/urandom; } >wrong
  fails 125 'zstd data: damaged|archive' import wrong "t$n"
  nothing_half_done
  "$PYTHON" -c 'import compression.zstd' 2>/dev/null || without_libzstd import a.tar.zst "t$n"
  nothing_half_done
}

test_import_cut_off() { # images: an archive that breaks off anywhere is refused,
  # and nothing of it is kept
  local size part
  own_state
  mkdir root
  head -c 200000 /dev/urandom >root/data
  tar -C root -cf a.tar .
  gzip -k a.tar
  size=$(stat -c %s a.tar.gz)
  for part in 1 100 5000 $((size / 2)) $((size - 1)); do
    head -c "$part" a.tar.gz >cut.tar.gz
    fails 125 'breaks off|ended before' import cut.tar.gz "t$n"
    nothing_kept
  done
  head -c 102400 a.tar >cut.tar
  fails 125 'breaks off' import cut.tar "t$n"
  nothing_kept
  run 125 inspect "t$n"
}

test_hostile_layers() { # images: no name and no link in a layer leads out of it, CVE-2014-9356,
  # CVE-2014-9357, CVE-2007-4559
  local status members list
  own_state
  make_canary
  while IFS='|' read -r status members; do
    IFS=';' read -ra list <<<"${members//CANARY/$PWD/canary}"
    hostile_tar hostile.tar "${list[@]}"
    run "$status" import hostile.tar "t$n:h"
    if ((status)); then one_line .; nothing_half_done; fi
    canary_lives
  done <<'END'
125|f ../canary/file bad
125|f a/../../../canary/file bad
0|f CANARY/file bad
125|l up CANARY;f up/file bad
125|l up ../../../../../../../../../../../../../CANARY;f up/file bad
125|h hard ../../../etc/passwd
125|h hard CANARY/file
125|l up CANARY;h hard up/file
0|l to CANARY/file;f to bad
0|l up CANARY;d up;f up/file bad
0|d up;f up/file x;l up CANARY
125|d up;l up CANARY;f up/file bad
125|l a b;l b a;f a/f bad
125|f .wh.. bad
125|f .wh... bad
125|f .wh. bad
125|f .wh.x/f bad
125|l dir CANARY;f dir/.wh.file x
125|l dir CANARY;f dir/.wh..wh..opq x
0|f .wh..wh.plnk/f x
0|c null;b disk;p pipe
END
}

test_hostile_long_paths() { # images: links that are longer in full than PATH_MAX are no way out,
  # CVE-2024-12718, CVE-2025-4138, CVE-2025-4330, CVE-2025-4435, CVE-2025-4517
  own_state
  make_canary
  "$PYTHON" -I - hostile.tar "$PWD/canary" <<'PYTHON'
import io, sys, tarfile
tar = tarfile.open(sys.argv[1], "w")

def add(name, kind, target="", data=b""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.mode = kind, target, len(data), 0o777
    tar.addfile(info, io.BytesIO(data))

path, long = "", "d" * 247
for letter in "abcdefghijklmnop":  # each link stands for a directory with a long name
    add(path + long, tarfile.DIRTYPE)
    add(path + letter, tarfile.SYMTYPE, long)
    path += long + "/"
short = "/".join("abcdefghijklmnop") + "/" + "l" * 254
add(short, tarfile.SYMTYPE, "../" * 40)
add("escape", tarfile.SYMTYPE, short + "/" + "../" * 40 + sys.argv[2])
add("hard", tarfile.LNKTYPE, "escape/file")
add("hard", tarfile.REGTYPE, data=b"bad")
add("escape/new", tarfile.REGTYPE, data=b"bad")
tar.close()
PYTHON
  timeout -k 5 "$patience" "${mydocker[@]}" import hostile.tar "t$n:h" || is "$?" 125
  canary_lives
}

test_hostile_second_layer() { # images: a lower layer's link is no way out for the layers above it,
  # CVE-2014-6407, CVE-2014-6408
  local members list
  make_canary
  own_state
  "$PYTHON" -I - "$PWD/canary" <<'PYTHON'
import hashlib, io, json, os, sys, tarfile
canary = sys.argv[1]

def layer(*members):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for kind, name, rest in members:
            info = tarfile.TarInfo(name)
            info.type, info.mode = kind, 0o755
            if kind == tarfile.SYMTYPE:
                info.linkname = rest
            elif kind == tarfile.REGTYPE:
                info.size = len(rest)
            tar.addfile(info, io.BytesIO(rest if kind == tarfile.REGTYPE else b""))
    return out.getvalue()

os.makedirs("l/blobs/sha256")

def store(data, kind):
    digest = hashlib.sha256(data).hexdigest()
    open("l/blobs/sha256/" + digest, "wb").write(data)
    return {"mediaType": kind, "digest": "sha256:" + digest, "size": len(data)}

layers = [layer((tarfile.SYMTYPE, "up", canary), (tarfile.SYMTYPE, "f", canary + "/file")),
          layer((tarfile.REGTYPE, "up/file", b"bad"), (tarfile.REGTYPE, "f", b"bad"),
                (tarfile.REGTYPE, "up/.wh.dir", b""))]
config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {
    "type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(x).hexdigest() for x in layers]}}
oci = "application/vnd.oci.image."
manifest = {"schemaVersion": 2, "mediaType": oci + "manifest.v1+json",
            "config": store(json.dumps(config).encode(), oci + "config.v1+json"),
            "layers": [store(x, oci + "layer.v1.tar") for x in layers]}
index = store(json.dumps(manifest).encode(), oci + "manifest.v1+json")
index["annotations"] = {"org.opencontainers.image.ref.name": "hostile:1"}
json.dump({"schemaVersion": 2, "manifests": [index]}, open("l/index.json", "w"))
open("l/oci-layout", "w").write('{"imageLayoutVersion":"1.0.0"}')
PYTHON
  run 0 load -i l
  canary_lives
  nothing_half_done
  # Two defences hold: each layer has a directory of its own, where the lower one's links aren't;
  # and a name is resolved with that as "/". Where layers are copied over one another, the second
  # does.
  need overlay
  mkdir lower upper work merged
  unshare -m --propagation private bash -exc '
    mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged
    MYDOCKER_ROOT=$PWD/merged/state "$@" load -i l
    MYDOCKER_ROOT=$PWD/merged/state "$@" run hostile:1 /bin/sh' bash "${mydocker[@]}" 2>err || :
  has err 'copying them'
  canary_lives
  # an archive of images is unpacked, too, before anybody knows what is in it
  for members in "l up $PWD/canary;f up/file bad" "l index.json $PWD/canary/file;f index.json bad" \
    "l up /;f up$PWD/canary/file bad" "h index.json ../../../../../../$PWD/canary/file"; do
    IFS=';' read -ra list <<<"$members"
    hostile_tar hostile.tar "${list[@]}"
    run 125 load -i hostile.tar
    one_line .
    canary_lives
    nothing_half_done
  done
}

test_hostile_headers() { # images: pax headers, sparse maps and lengths that lie are refused
  own_state
  make_canary
  "$PYTHON" -I - <<'PYTHON'
import io, tarfile
for number, (name, kind, headers) in enumerate((
        ("f", b"0", {"path": "../canary/file"}), ("f", b"1", {"linkpath": "../canary/file"}),
        ("f", b"0", {"path": "a\0b"}),
        ("f", b"0", {"size": "-5"}), ("f", b"0", {"size": "99999999999"}),
        ("f", b"0", {"GNU.sparse.major": "1", "GNU.sparse.minor": "0",
                     "GNU.sparse.name": "../canary/file", "GNU.sparse.realsize": "3"}),
        ("f", b"0", {"GNU.sparse.map": "0,-1", "GNU.sparse.size": "3"}),
        ("a" * 300, b"0", {}), ("../\x1b[2Jx", b"0", {}),
        ("/".join(["d" * 200] * 30) + "/../../../x", b"0", {}))):
    with tarfile.open("h%02d.tar" % number, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo(name)
        info.type, info.size, info.linkname = kind, 3 * (kind == b"0"), "x" * (kind == b"1")
        info.pax_headers = headers
        tar.addfile(info, io.BytesIO(b"bad"))
PYTHON
  for file in h??.tar; do
    timeout -k 5 "$patience" "${mydocker[@]}" import "$file" "t$n:h" >out 2>err &&
      is "$file" 'refused'
    err=$(<err)
    one_line .
    unlike "$err" $'\e'
    nothing_half_done
    canary_lives
  done
}

test_tar_headers() { # images: headers are read as all writers make them; what no writer makes is
  # refused
  own_state
  tar_headers
  run 0 import good.tar "t$n:1"
  layer_of "t$n:1"
  is "$(stat -c '%u:%g %Y' "$layer/binary")" '3000000:4000000 8589934592'
  is "$(stat -c '%Y' "$layer/before")" -5
  is "$(<"$layer/signed"$'\xe9')" data # its checksum is a sum of signed bytes
  is "$(<"$layer/times")" data # GNU's header has a time where others have the front of the name
  is "$(<"$layer/front/go")" data # an early Go's has the front of the name
  is "$(<"$layer/old")" data # from before POSIX
  is "$(<"$layer/inner")$(<"$layer/hard")" datadata # a/../inner, and a hard link to a/../old
  is "$(stat -c %i "$layer/hard")" "$(stat -c %i "$layer/old")"
  for file in bad?.tar; do
    fails 125 'archive|unpack' import "$file" "t$n:2"
    nothing_half_done
  done
}

tar_headers() { # makes good.tar, and bad0.tar ...: headers that tarfile doesn't write
  "$PYTHON" -I - <<'PYTHON'
import io, tarfile

def member(name, **fields):
    """A header with some of its fields (at offset: bytes) replaced, and four bytes of data."""
    info = tarfile.TarInfo("x")
    info.type = fields.pop("type", b"0")
    info.linkname = fields.pop("link", "")
    info.size = 4 if info.type == b"0" else 0
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    block[0:100] = name.ljust(100, b"\0")
    checksum = fields.pop("checksum", sum)
    for at, value in fields.items():
        at = int(at[2:])
        block[at:at + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % checksum(block)
    return bytes(block) + (b"data" + bytes(508) if info.size else b"")

def binary(number, width):
    return (number & (1 << 8 * width) - 1 | 1 << 8 * width - 1).to_bytes(width, "big")

def signed(block):
    return sum(byte - 256 if byte > 127 else byte for byte in block)

with open("good.tar", "wb") as out:
    out.write(member(b"binary", at108=binary(3000000, 8), at116=binary(4000000, 8),
                     at136=binary(1 << 33, 12)))
    out.write(member(b"before", at136=binary(-5, 12)))
    out.write(member(b"signed\xe9", checksum=signed))
    out.write(member(b"times", at257=b"ustar  \0", at345=b"13726746407\0"))
    out.write(member(b"go", at257=b"ustar  \0", at345=b"front"))
    out.write(member(b"old", at257=bytes(8), at345=b"junk"))
    out.write(member(b"a/../inner"))
    out.write(member(b"hard", type=b"1", link="a/../old"))
    out.write(bytes(1024))
for number, data in enumerate((
        member(b"f", checksum=lambda block: sum(block) + 1), member(b"f", at108=b"99999999"),
        member(b"f", at108=b"0x1f"), member(b"f", at108=binary(-1, 8)),
        member(b"f", at108=binary((1 << 32) - 1, 8)), member(b"f", at124=binary(-4, 12)),
        member(b"f", type=b"3", at329=b"10000\0\0\0"), member(b"f", type=b"4", at337=b"4000000\0"),
        member(b"f", type=b"1", link="a/../../f"), member(b"f", at136=binary(1 << 80, 12)))):
    with open("bad%d.tar" % number, "wb") as out:
        out.write(data + bytes(1024))
PYTHON
}

test_whiteouts() { # images: whiteouts become overlayfs' own, and hide what they should
  own_state
  hostile_tar w.tar 'd a' 'f a/.wh.gone' 'f b/.wh..wh..opq'
  run 0 import w.tar "t$n:w"
  layer_of "t$n:w"
  is "$(stat -c '%F %t:%T' "$layer/a/gone")" 'character special file 0:0'
  is "$("$PYTHON" -I -c 'import os, sys
print(os.getxattr(sys.argv[1], "trusted.overlay.opaque").decode())' "$layer/b")" y
}

test_sparse_layers() { # images: a file of 10 GB without data takes no space, in all of tar's forms
  local form
  own_state
  mkdir s
  truncate -s 10G s/big
  echo end >>s/big
  for form in gnu 'pax --sparse-version=0.0' 'pax --sparse-version=0.1' \
    'pax --sparse-version=1.0'; do
    # shellcheck disable=SC2086 # two words
    tar --format=$form -S -C s -cf a.tar .
    run 0 import a.tar "t$n:1"
    layer_of "t$n:1"
    is "$(stat -c %s "$layer/big") $(tail -c 4 "$layer/big")" '10737418244 end'
    (($(stat -c %b "$layer/big") < 1000))
  done
}

test_odd_names() { # images: names that are long or no UTF-8 come through, at any depth
  local form deep
  own_state
  deep=$(printf 'd%.0s' {1..250})
  mkdir -p "r/$deep/${deep//d/e}/${deep//d/f}"
  touch "r/"$'\xff\x80x' "r/$deep/${deep//d/e}/${deep//d/f}/x" $'r/new\nline' "r/ "
  tree_of r >want
  for form in gnu pax; do
    tar --format=$form -C r -cf a.tar .
    run 0 import a.tar "t$n:$form"
    layer_of "t$n:$form"
    tree_of "$layer" | sed 's/\([0-9]\{10\}\)[0-9]\{9\} /\1 /' >got
    sed 's/\([0-9]\{10\}\)[0-9]\{9\} /\1 /' want | diff - got
  done
}

# ── The store ────────────────────────────────────────────────────────────────

test_load_wrong_digest() { # images: a blob that isn't what its digest says is refused,
  # and nothing is kept
  local blob
  make_image "t$n:1"
  unpack_saved "t$n:1"
  run 0 rmi "t$n:1"
  for blob in layout/blobs/sha256/*; do
    cp "$blob" blob
    "$PYTHON" -I -c 'import sys
with open(sys.argv[1], "r+b") as f:
    data = bytearray(f.read())
    data[-9] ^= 1
    f.seek(0)
    f.write(data)' "$blob"
    fails 125 '[0-9a-f]{12}' load -i layout
    nothing_kept
    cp blob "$blob"
  done
  run 0 load -i layout
}

test_load_ambiguous_document() { # images: a document that is manifest and index at once is refused,
  # CVE-2021-41190
  local digest
  own_state
  mkdir -p l/blobs/sha256
  echo '{"imageLayoutVersion":"1.0.0"}' >l/oci-layout
  printf '{"schemaVersion":2,"config":{},"layers":[],"manifests":[]}' >doc
  digest=$(sha256sum <doc)
  digest=${digest%% *}
  cp doc "l/blobs/sha256/$digest"
  echo "{\"manifests\":[{\"digest\":\"sha256:$digest\",\"size\":$(stat -c %s doc)}]}" >l/index.json
  fails 125 'manifest and index' load -i l
  # a digest that is a path, CVE-2014-9357
  echo '{"manifests":[{"digest":"sha256:../../../../etc/passwd","size":5}]}' >l/index.json
  fails 125 'digest' load -i l
}

test_config_nonsense() { # images: a config that makes no sense is refused in one line,
  # CVE-2021-21285
  local json got
  make_image "t$n:1"
  cp -a state good
  while read -r json; do
    rm -rf state layout
    cp -a good state
    if (set_config "t$n:1" "$json" 125 2>/dev/null); then # refused by load, or else by run
      read_output
      one_line .
      unlike "$err" bug
      continue
    fi
    got=0
    timeout -k 5 "$patience" "${mydocker[@]}" run --rm "t$n:1" /bin/sh -c : >"$scratch/stdout" \
      2>"$scratch/stderr" || got=$?
    read_output
    ((got == 0)) || one_line .
    unlike "$err" 'Traceback|bug' # one is what a value that nobody has looked at ends in
  done <<'END'
{"Volumes": 5}
{"Env": 5}
{"Env": ["A\u0000=b"]}
{"Cmd": "text", "Entrypoint": 5}
{"User": 5}
{"WorkingDir": "/a\u0000b"}
{"WorkingDir": "\ud800"}
{"Labels": 7, "ExposedPorts": "x", "StopSignal": []}
END
}

test_config_shapes() { # images: each part of a config has its shape, or is refused by its name
  local json key
  make_image "t$n:1"
  while IFS='|' read -r key json; do
    set_config "t$n:1" "$json" 125
    one_line "image, on sha256:[0-9a-f]{64}: .*$key.* (wanted|must)"
  done <<'END'
Volumes|{"Volumes": ["/data"]}
Volumes: /data|{"Volumes": {"/data": "x"}}
ExposedPorts: 80/tcp|{"Volumes": null, "ExposedPorts": {"80/tcp": 5}}
Labels: a|{"ExposedPorts": null, "Labels": {"a": 1.5}}
Labels: b|{"Labels": {"a": "x", "b": {}}}
Labels|{"Labels": [["a", "x"]]}
Env|{"Labels": null, "Env": {"A": "b"}}
Env|{"Env": ["A=b", 5]}
Cmd|{"Env": null, "Cmd": "sh"}
Entrypoint|{"Cmd": null, "Entrypoint": [["sh"]]}
User|{"Entrypoint": null, "User": 0}
WorkingDir|{"User": null, "WorkingDir": ["/"]}
StopSignal|{"WorkingDir": null, "StopSignal": 9}
END
  set_config "t$n:1" \
    '{"StopSignal": null, "Volumes": {"/data": null, "/new": {}}, "Labels": {"a": "x"}}'
  nothing_half_done
  while IFS='|' read -r key json; do
    change_config '{}' "$json"
    fails 125 "image, on sha256:[0-9a-f]{64}: .*$key.* wanted" load -i layout
  done <<'END'
history|{"history": {"created": "now"}}
history: created_by|{"history": [{"created_by": ["sh"]}]}
history: empty_layer|{"history": [{"empty_layer": "no"}]}
author|{"history": null, "author": 5}
created|{"author": null, "created": 1700000000}
architecture|{"created": null, "architecture": {}}
END
}

test_tag_rmi() { # images: an image goes with its last name,
  # a layer with the last image that needs it
  local first
  make_image "t$n:1"
  layer_of "t$n:1"
  first=$layer
  run 0 tag "t$n:1" "t$n:2"
  run 0 rmi "t$n:1"
  is "$out" "Untagged: t$n:1"
  fails 125 'no such image' rmi "t$n:1"
  run 0 import --change 'ENV A=1' root "t$n:3" # another image of the same layer
  layer_of "t$n:3"
  is "$layer" "$first"
  run 0 rmi "t$n:2"
  like "$out" 'Deleted: sha256:'
  [[ -d $first ]]
  run 0 rmi "t$n:3"
  nothing_kept
}

test_rmi_used() { # images: an image that a container uses stays, with its layers
  make_image "t$n:1"
  run 0 run --name "c$n" "t$n:1" /bin/sh -c :
  fails 125 "c$n|use" rmi "t$n:1"
  run 0 run --rm "t$n:1" /bin/sh -c 'echo hello'
  start run --name "d$n" "t$n:1" /bin/sh -c 'echo ready; exec sleep 1000'
  wait_for has out ready
  run 0 rm "c$n"
  fails 125 "d$n|use" rmi "t$n:1"
  kill -KILL "$pid"
  ended 137
  run 0 rm "d$n"
  run 0 rmi "t$n:1"
  nothing_kept
}

test_rmi_force_running() { # images: not even rmi -f takes the layers from under a container
  make_image "t$n:1"
  start run --name "c$n" "t$n:1" /bin/sh -c 'echo ready
    while [ ! -e /tmp/go ]; do sleep 0.05; done
    ls -d /bin/sh /etc'
  wait_for has out ready
  layer_of "t$n:1"
  timeout -k 5 "$patience" "${mydocker[@]}" rmi -f "t$n:1" || : # refused, or only the name goes
  run 0 run /bin/true # which sweeps
  run 0 images
  [[ -e $layer/bin/sh ]]
  echo >go
  run 0 cp go "c$n:/tmp/go"
  ended 0
  has out '^/bin/sh$'
  run 0 rm "c$n"
}

test_images_table() { # images: images shows a row for each name, -q ids alone;
  # inspect has what docker's has
  make_image "t$n/x:1"
  id_of "t$n/x:1"
  run 0 images
  like "$out" '^REPOSITORY +TAG +IMAGE ID +CREATED +SIZE'
  like "$out" $'\n'"t$n/x +1 +${id:7:12} "
  run 0 images -q
  is "$out" "${id:7:12}"
  run 0 inspect "t$n/x:1"
  "$PYTHON" -I - "$scratch/stdout" <<'PYTHON'
import json, sys
(image,) = json.load(open(sys.argv[1]))
for key in "Id", "RepoTags", "Created", "Architecture", "Os", "Config", "RootFS", "Size":
    assert key in image, key
assert image["Os"] == "linux" and len(image["RootFS"]["Layers"]) == 1
PYTHON
}

test_imports_at_once() { # images: commands at the same time don't disturb each other
  local i jobs=()
  own_state
  for i in 1 2 3 4 5 6; do
    mkdir "r$i"
    echo "$((i / 2))" >"r$i/file"
    touch -d 2020-01-01 "r$i/file" "r$i"
    "${mydocker[@]}" import "r$i" "t$n:$i" >"log$i" 2>&1 &
    jobs+=("$!")
  done
  for i in "${jobs[@]}"; do wait "$i"; done
  for i in 1 2 3 4 5 6; do
    layer_of "t$n:$i"
    is "$(<"$layer/file")" "$((i / 2))"
  done
  nothing_half_done
}

test_import_killed() { # images: an import killed at any moment leaves nothing that the next command
  # doesn't sweep
  local delay
  own_state
  mkdir root
  head -c 20000000 /dev/urandom >root/data
  for delay in 0.1 0.2 0.3 0.4; do
    timeout -s KILL "$delay" "${mydocker[@]}" import root "t$n:1" >out 2>&1 || :
    run 0 images
    [[ $out != *"t$n"* ]] || run 0 rmi "t$n:1"
    run 0 run /bin/true
  done
  run 0 import root "t$n:1"
  run 0 rmi "t$n:1"
  nothing_kept
}

test_killed_writing() { # images: what a killed command had half written, the next one sweeps
  need overlay strace
  local call line words
  own_networks
  make_image base:1
  echo FROM base:1 >Dockerfile
  echo COPY Dockerfile / >>Dockerfile
  while read -r call line; do
    read -ra words <<<"$line"
    timeout -k 5 "$patience" strace -f -qq -o trace -e "trace=$call" \
      -e "inject=$call:signal=KILL:when=1" "${mydocker[@]}" "${words[@]}" >said 2>&1 </dev/null || :
    run 0 "${words[@]}"
    is "$(find state -name '*.????????????????')" ''
  done <<'COMMANDS'
renameat tag base:1 other:1
fsync tag base:1 other:1
renameat build -q .
fsync build -q .
renameat network create n
COMMANDS
  run 0 network rm n
  printf '{' | tee state/built/x.0123456789abcdef >state/images/index.json.0123456789abcdef
  built -q .
  run 0 tag base:1 again:1
  is "$(find state -name '*.????????????????')" ''
}

test_power_loss() { # images: what import, load and commit stored is whole after a power loss
  need mkfs.ext4 mount unshare
  local flag
  powered_root
  make_image "t$n:1"
  run 0 save -o saved.tar "t$n:1"
  tar -C root -cf root.tar .
  export MYDOCKER_ROOT=$PWD/disk/state
  for flag in "${power_flags[@]}"; do
    new_disk
    powered "$flag" import root.tar "t$n:1"
    is_whole "t$n:1"
    powered '' import root.tar "t$n:2"
    is_whole "t$n:2"
    powered '' run --name "c$n" "t$n:2" /bin/sh -c 'echo >/new
      for f in /data/*; do cat $f >$f.new; mv $f.new $f; done'
    powered "$flag" commit "c$n" "t$n:3"
    is_whole "t$n:3"
    powered '' run "t$n:3" /bin/cat /new
    new_disk
    powered "$flag" load -i saved.tar
    is_whole "t$n:1"
  done
}

powered_root() { # makes ./root with a directory /data, and ./want with all that is in that
  local i
  small_root root
  mkdir root/data disk
  for i in {10..60}; do head -c 6000 /dev/urandom >"root/data/$i"; done
  cat root/data/* >want
}

new_disk() { # an empty file system in ./disk.img
  rm -f disk.img
  truncate -s 200M disk.img
  mkfs.ext4 -q disk.img
}

# powered FLAG ARG...: `mydocker ARG...` with disk.img at ./disk, until it ends or says "ready";
# then the disk loses its power, unless FLAG is empty, and the host its cgroups
powered() {
  local got=0 id
  : >stdout # of the one before
  unshare -m --propagation private --pid --fork --kill-child --mount-proc bash -exc '
    mount -o loop disk.img disk
    "${@:3}" >stdout &
    while kill -0 "$!" && ! grep -q "^ready$" stdout; do sleep 0.02; done 2>/dev/null
    grep -q "^ready$" stdout || wait "$!"
    ls disk/state/containers >ids || :
    [[ ! $1 ]] || "$2" -I -c "import fcntl, os, struct, sys
disk, flag = os.open(\"disk\", os.O_RDONLY), int(sys.argv[1])
fcntl.ioctl(disk, 0x8004587d, struct.pack(\"I\", flag))" "$1"' \
    bash "$1" "$PYTHON" "${mydocker[@]}" "${@:2}" || got=$?
  is "$got" 0
  [[ $1 ]] || return 0
  while IFS= read -r id; do # of which the next start may know nothing
    find /sys/fs/cgroup -depth -path "*/mydocker/$id*" -type d -exec rmdir {} +
  done <ids
}

is_whole() { # is_whole [OPTION...] NAME: the image on ./disk runs, and has all that was in it
  powered '' run --rm "$@" /bin/sh -c 'cat /data/*'
  cmp stdout want
}

test_power_loss_records() { # life: after a power loss a container is there as a whole, or not at
  # all
  need mkfs.ext4 mount unshare
  local flag
  own_state
  small_root root
  export MYDOCKER_ROOT=$PWD/disk/state
  mkdir -p disk
  for flag in "${power_flags[@]}"; do
    new_disk
    powered '' import root "t$n:1"
    powered "$flag" run -d --name c -v vol:/v "t$n:1" /bin/sh -c 'echo hello; exec sleep 1000'
    powered '' ps -a --format '{{.Names}} {{.State}}' 2>err
    unlike "$(<err)" damaged
    if [[ $flag == 1 || -s stdout ]]; then
      is "$(<stdout)" 'c exited'
      powered '' inspect -f '{{.Config.Cmd}}' c
      powered '' start c
      powered '' rm c
    fi
    powered '' run --name c "t$n:1" /bin/sh -c 'echo again'
    is "$(<stdout)" again
  done
}

test_image_names() { # images: a bad name is refused with the part that is bad
  local name bad
  own_state
  mkdir root
  while IFS='|' read -r name bad; do
    fails 125 "$bad" import root "$name"
  done <<'END'
Upper/x|Upper
x:bad tag|bad tag
a//b|a//b|empty
a/../b|\.\.
x@sha256:12|sha256:12
END
  fails 125 'a' import root $'a\e[2J'
  unlike "$err" $'\e'
}

test_many_layers() { # images: 120 layers are no problem, the top one wins
  need overlay
  make_image "t$n:1"
  unpack_saved "t$n:1"
  run 0 rmi "t$n:1"
  add_layers layout 120
  run 0 load -i layout
  run 0 run --name "c$n" "t$n:1" /bin/sh -c 'cat /top /layer0 /layer77; echo x >/top'
  is "$out" $'119\n000\n077'
  run 0 commit "c$n" "t$n:2"
  run 0 run --rm "t$n:2" /bin/cat /top
  is "$out" x
}

test_output_planted() { # security: no file that root writes follows a link that another user made,
  # CVE-2015-3627
  own_state
  small_root root
  run 0 import root "t$n:1"
  mkdir theirs
  echo precious >victim
  ln -s "$PWD/victim" theirs/link
  chown -h 1234:5678 theirs theirs/link
  run 0 run --name "c$n" "t$n:1" /bin/sh -c :
  fails 125 'on theirs/link: a link that another user made' save -o theirs/link "t$n:1"
  fails 125 'on theirs/link: a link that another user made' export -o theirs/link "c$n"
  run 125 --log theirs/link rm none
  run 125 run --cidfile theirs/link "t$n:1" /bin/true
  is "$(<victim)" precious
  is "$(stat -c %U victim)" root
  ln -s "$PWD/ours.tar" mine # root's own leads where it should, and into /proc
  run 0 save -o mine "t$n:1"
  [[ -s ours.tar && -L mine ]]
  run 0 save -o /dev/stdout "t$n:1"
  cmp ours.tar "$scratch/stdout"
}

# ── In and out ───────────────────────────────────────────────────────────────

test_import_directory() { # images: import of a directory keeps the tree as it is
  own_state
  rich_root root
  run 0 import root "t$n/dir:1"
  like "$out" '^sha256:[0-9a-f]{64}$'
  layer_of "t$n/dir:1"
  tree_of root >want
  tree_of "$layer" | diff want -
}

test_import_without_name() { # images: an image without a name goes by its id,
  # or the beginning of it
  local id
  own_state
  small_root root
  run 0 import root
  id=${out#sha256:}
  run 0 run --rm "${id:0:12}" /bin/sh -c 'echo hello'
  is "$out" hello
  run 0 rmi "${id:0:12}"
  run 125 inspect "$id"
}

test_import_change() { # images: import --change sets Cmd, Entrypoint, Env, WorkingDir,
  # User and more
  local want
  make_image "t$n" --change 'CMD ["a","b c"]' --change 'ENV X=1 Y="2 3"' \
    --change 'ENTRYPOINT echo hi' --change 'WORKDIR /tmp' -c 'USER 5:6' -c 'VOLUME /data' \
    -c 'LABEL k=v' -c 'EXPOSE 80' -c 'STOPSIGNAL SIGINT'
  run 0 inspect "t$n"
  for want in '"b c"' '"X=1"' '"Y=2 3"' '"echo hi"' '"WorkingDir": "/tmp"' '"User": "5:6"' \
    '"/data": ' '"k": "v"' \
    '"80/tcp": ' '"StopSignal": "SIGINT"'; do
    like "$out" "$want"
  done
  fails 125 'FROM x' import --change 'FROM x' root "t$n:2"
}

test_save_load() { # images: what save writes, load reads back with the same id;
  # the same image gives the same bytes
  local format want
  make_image "t$n:1"
  id_of "t$n:1"
  want=$id
  for format in docker oci; do
    run 0 save --format "$format" -o "$format.tar" "t$n:1"
    "${mydocker[@]}" save --format "$format" "t$n:1" | cmp - "$format.tar"
    run 0 rmi "t$n:1"
    nothing_kept
    run 0 load -i "$format.tar"
    is "$out" "Loaded image: t$n:1"
    id_of "t$n:1"
    is "$id" "$want"
  done
  run 0 run --rm "t$n:1" /bin/sh -c 'echo hello'
  is "$out" hello
  layer_of "t$n:1"
  is "$(tree_of "$layer")" "$(tree_of root)"
}

test_blob_modes() { # images: whatever the umask is, blobs are files as in every OCI layout
  small_root root
  own_state
  tar -C root -cf root.tar .
  (umask 077; run 0 import root.tar "t$n:1"; run 0 save -o saved.tar "t$n:1")
  (umask 0; run 0 import --change 'ENV A=1' root "t$n:2"; run 0 load -i saved.tar)
  is "$(stat -c %a state/images/blobs/sha256/* | sort -u)" 644
}

test_closed_stderr() { # images: with stderr, or all three, closed they come and go as ever
  make_image "t$n:1"
  tar -C root -cf root.tar .
  "${mydocker[@]}" import root.tar "t$n:2" >out 2>&-
  like "$(<out)" '^sha256:'
  "${mydocker[@]}" save -o saved.tar "t$n:2" <&- >&- 2>&-
  run 0 rmi "t$n:2"
  "${mydocker[@]}" load -i saved.tar >out 2>&-
  is "$(<out)" "Loaded image: t$n:2"
  "${mydocker[@]}" load -i saved.tar <&- >&- 2>&-
  "${mydocker[@]}" run --rm "t$n:2" /bin/sh -c 'echo hello' >out 2>&-
  is "$(<out)" hello
}

test_save_several() { # images: several images go into one archive, with all their names
  make_image "t$n/a:1"
  run 0 tag "t$n/a:1" "t$n/b:2"
  echo other >root/other
  run 0 import root "t$n/c:3"
  run 0 save -o all.tar "t$n/a:1" "t$n/b:2" "t$n/c:3"
  run 0 rmi "t$n/a:1" "t$n/b:2" "t$n/c:3"
  nothing_kept
  run 0 load -i all.tar
  is "$(sort <<<"$out")" \
    "Loaded image: t$n/a:1"$'\n'"Loaded image: t$n/b:2"$'\n'"Loaded image: t$n/c:3"
}

test_load_layout() { # images: load reads an OCI layout, and an archive compressed or from stdin
  make_image "t$n:1"
  unpack_saved "t$n:1"
  gzip -k a.tar
  run 0 rmi "t$n:1"
  run 0 load -i layout
  run 0 load -i a.tar.gz
  run 0 load <a.tar
  run 0 run --rm "t$n:1" /bin/sh -c 'echo hello'
  is "$out" hello
}

test_load_platform() { # images: an index with images for several machines gives this machine's
  make_image "t$n:1"
  unpack_saved "t$n:1"
  run 0 rmi "t$n:1"
  "$PYTHON" -I - layout <<'PYTHON'
import hashlib, json, os, platform, sys
os.chdir(sys.argv[1])
index = json.load(open("index.json"))
mine = index["manifests"][0]
arch = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
other = dict(mine, digest="sha256:" + "0" * 64,
             platform={"os": "linux", "architecture": "s390x-no"})
kind = "application/vnd.oci.image.index.v1+json"
inner = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": [
    other, dict(mine, platform={"os": "linux", "architecture": arch})]}).encode()
digest = hashlib.sha256(inner).hexdigest()
open("blobs/sha256/" + digest, "wb").write(inner)
index["manifests"] = [{"mediaType": kind, "digest": "sha256:" + digest, "size": len(inner),
                       "annotations": mine["annotations"]}]
json.dump(index, open("index.json", "w"))
if os.path.exists("manifest.json"):
    os.unlink("manifest.json")
PYTHON
  run 0 load -i layout
  run 0 run --rm "t$n:1" /bin/sh -c 'echo hello'
  is "$out" hello
}

test_commit() { # images: commit makes a layer of what a container made, changed,
  # deleted and replaced
  need overlay
  small_root root
  mkdir root/old root/gone
  touch root/old/a root/gone/x
  make_image "t$n:1"
  run 0 run --name "c$n" "t$n:1" /bin/sh -c '
    echo new >/new; rm /etc/passwd; rm -r /old /gone; mkdir /old; echo b >/old/b; ln /new /tmp/hard
    echo user >>/etc/group; chmod 700 /root; ln -s nowhere /link; touch "/tmp/two words"'
  run 0 commit -m why -a me -c 'CMD ["/bin/ls","/old"]' "c$n" "t$n:2"
  like "$out" '^sha256:[0-9a-f]{64}$'
  run 0 run --rm "t$n:2"
  is "$out" b
  run 0 run --rm "t$n:2" /bin/sh -c 'cat /new /tmp/hard; ls -d /gone /etc/passwd 2>/dev/null
      readlink /link; ls /tmp'
  is "$out" $'new\nnew\nnowhere\nhard\ntwo words'
  # the same tree as the container's own, which has no mount points left of the other
  run 0 export -o "$PWD/one.tar" "c$n"
  run 0 run --name "d$n" "t$n:2" /bin/ls
  run 0 export -o "$PWD/two.tar" "d$n"
  mkdir one two
  tar -C one -xf one.tar
  tar -C two -xf two.tar
  tree_of one >want
  tree_of two | diff want -
  fails 125 'container [0-9a-f]{12} uses it' rmi "t$n:1"
  run 0 rm "c$n" "d$n"
  run 0 rmi "t$n:2" "t$n:1"
  nothing_kept
}

test_images_filters() { # images: a name, --filter, --no-trunc and --digests; inspect --type;
  # --volumes-from
  need overlay
  own_state
  small_root root
  make_image "t$n:1" -c 'LABEL a=b'
  make_image "u$n:2"
  is "$("${mydocker[@]}" images --format '{{.Repository}}' "t$n")" "t$n"
  is "$("${mydocker[@]}" images --format '{{.Tag}}' -f label=a=b)" 1
  is "$("${mydocker[@]}" images --format '{{.Tag}}' -f 'reference=u*')" 2
  is "$("${mydocker[@]}" images -qf dangling=true)" ''
  like "$("${mydocker[@]}" images -q --no-trunc "t$n")" '^sha256:[0-9a-f]{64}$'
  like "$("${mydocker[@]}" images --digests)" 'DIGEST .*sha256:'
  fails 125 'on colour=red: not one of dangling' images -f colour=red
  run 0 inspect --type image "t$n:1"
  fails 125 'no such container' inspect --type container "t$n:1"
  run 0 run --name "t$n" -v "v$n:/data" -v "$PWD:/here:ro" "t$n:1" /bin/sh -c 'echo x >/data/file'
  run 0 run --rm --volumes-from "t$n:ro" "u$n:2" /bin/sh -c '
    cat /data/file; ls /here; echo >/data/y || echo read-only'
  like "$out" $'^x\n.*root.*read-only$'
  run 0 inspect --type volume "v$n"
  run 0 rm -v "t$n"
  run 0 volume rm "v$n"
}

test_history_and_diff() { # images: history has the steps, diff what a container added, changed and
  # deleted; rename; image prune removes what has no name, or what nobody uses
  need overlay
  own_state
  small_root root
  mkdir -p root/old root/gone/in root/kept
  touch root/old/a root/gone/x root/kept/y
  make_image "t$n:1"
  run 0 run --name "t$n" "t$n:1" /bin/sh -c 'echo new >/new; rm -r /gone /old/a; rm -r /old
    mkdir /old; echo b >/old/b; chmod 700 /kept'
  run 0 diff "t$n"
  is "$(grep -v -e ' /dev' -e ' /etc' -e ' /proc' -e ' /sys' <<<"$out")" \
    $'D /gone\nC /kept\nA /new\nC /old\nD /old/a\nA /old/b'
  fails 125 'no such container' diff "t$n:1"
  run 0 commit -m why "t$n" "t$n:2"
  run 0 history "t$n:2"
  like "$out" $'^IMAGE .*COMMENT\n[0-9a-f]{12} .* why\n<missing> '
  run 0 rename "t$n" "u$n"
  is "$("${mydocker[@]}" ps -a --format '{{.Names}}')" "u$n"
  fails 125 'no such' inspect "t$n"
  run 0 start -a "u$n"
  run 0 rm "u$n"
  run 0 image prune
  like "$out" 'Total reclaimed space: '
  run 0 images -q
  [[ $out ]]
  run 0 image prune -a
  like "$out" $'Deleted: sha256:.*\nTotal reclaimed space: [1-9]'
  run 0 images -q
  is "$out" ''
}

test_commit_keeps() { # images: a commit keeps owners, times, xattrs, hard links and holes
  need overlay
  make_image "t$n:1"
  run 0 run --name "c$n" "t$n:1" /bin/ls
  rich_root rich
  run 0 cp -a "$PWD/rich" "c$n:/"
  run 0 commit "c$n" "t$n:2"
  layer_of "t$n:2"
  tree_of rich >want
  tree_of "$layer/rich" | diff want -
  (($(stat -c %b "$layer/rich/sparse") < 1000))
}

test_commit_without_volumes() { # images: volumes and what is mounted stay out of a commit and of an
  # export
  need overlay
  local name
  mkdir host
  echo host >host/file
  make_image "t$n:1"
  run 0 run --name "c$n" -v "$PWD/host:/bind" -v "v$n:/named" --tmpfs /mem "t$n:1" /bin/sh -c '
    for d in bind named mem dev/shm; do echo x >/$d/x; done; echo own >/own'
  run 0 commit "c$n" "t$n:2"
  run 0 run --rm "t$n:2" /bin/sh -c 'ls /bind /named /mem /own'
  is "$out" $'/own\n\n/bind:\n\n/mem:\n\n/named:'
  run 0 export -o "$PWD/e.tar" "c$n"
  tar -tf e.tar >names
  for name in bind/x bind/file named/x mem/x dev/null etc/hosts/x; do
    has names "^(\./)?$name$" && is "$name" 'left out'
  done
  has names '^(\./)?own$'
}

test_commit_running() { # images: a running container is committed as of one moment, and goes on
  need overlay
  make_image "t$n:1"
  start run --name "c$n" "t$n:1" /bin/sh -c '
    i=0
    while [ ! -e /tmp/stop ]; do
      i=$((i + 1)); echo $i >>/a; echo $i >>/b; [ $i != 9 ] || echo ready
    done
    echo done'
  wait_for has out ready
  run 0 commit "c$n" "t$n:2"
  layer_of "t$n:2"
  (($(wc -l <"$layer/a") - $(wc -l <"$layer/b") < 2 && $(wc -l <"$layer/b") > 7))
  is "$(tail -n 1 "$layer/a")" "$(wc -l <"$layer/a")"
  echo >stop
  run 0 cp stop "c$n:/tmp/"
  ended 0
  has out 'done'
}

test_images_busy() { # images: one goes while a build, a pull or a save is at work, which sweeps up
  need flock
  make_image a:1
  echo other >root/other
  make_image b:1
  ls state/layers >layers
  exec 9>state/images.lock
  flock -s 9 # as they do
  run 0 rmi a:1
  like "$out" 'Untagged: a:1.*Deleted: '
  is "$(ls state/layers)" "$(<layers)"
  run 0 tag b:1 c:1
  exec 9>&-
  run 0 save -o archive b:1
  is "$(wc -w <<<"$(ls state/layers)")" 1
  run 0 image prune -af
  is "$(ls state/layers)" ''
}

state_is() { # state_is CONTAINER STATE
  [[ $("${mydocker[@]}" inspect -f '{{.State.Status}}' "$1") == "$2" ]]
}

test_commit_killed() { # images: a container goes on when the commit that it stands still for is
  # killed, by whatever signal
  local signal committing
  need overlay flock
  make_image base:1
  background --network none --name c base:1 /bin/sh -c 'while :; do sleep 0.01; done'
  for signal in TERM KILL; do
    exec 9>state/images.lock
    flock -x 9 # so the commit can't end
    "${mydocker[@]}" commit c made:1 >some 2>&1 9>&- &
    committing=$!
    wait_for state_is c paused
    kill -s "$signal" "$committing"
    exec 9>&-
    wait_for state_is c running
  done
  run 0 rm -f c
  nothing_on_record
}

test_relative_paths() { # images: export -o and cp take paths relative to where the caller is
  local name
  make_image "t$n:1"
  run 0 run --name "c$n" "t$n:1" /bin/sh -c 'echo text >/mydocker-test-a'
  for name in /mydocker-test-*; do [[ ! -e $name ]] || fail "$name is there"; done
  trap 'rm -f /mydocker-test-[abe]; kill -KILL $(jobs -p) 2>/dev/null || :' EXIT
  run 0 export -o mydocker-test-e "c$n"
  run 0 cp "c$n:/mydocker-test-a" .
  run 0 cp "c$n:/mydocker-test-a" mydocker-test-b
  is "$(cat mydocker-test-a mydocker-test-b)" $'text\ntext'
  [[ -s mydocker-test-e ]]
  echo more >other
  run 0 cp other "c$n:/other"
  run 0 cp "c$n:/other" ./back
  is "$(<back)" more
}

test_export() { # images: export gives the tree that the container sees; imported again it runs
  make_image "t$n:1" -c 'ENV A=1'
  run 0 run --name "c$n" "t$n:1" /bin/sh -c 'echo new >/new; rm /etc/group'
  run 0 export -o "$PWD/e.tar" "c$n"
  "${mydocker[@]}" export "c$n" | cmp - e.tar
  run 0 import e.tar "t$n:2"
  run 0 run --rm "t$n:2" /bin/sh -c 'cat /new; ls /etc/group 2>/dev/null || echo gone; id -u'
  is "$out" $'new\ngone\n0'
}

# ── Registries ───────────────────────────────────────────────────────────────

door='' gate='' slow='' dying='' proxy='' holes='' store='' thief='' # fronts, see below

free_port() {
  "$PYTHON" -I -c 'import socket
s = socket.socket()
s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])'
}

answers() { # answers HOST:PORT: somebody listens there
  { : <"/dev/tcp/${1%:*}/${1#*:}"; } 2>/dev/null
}

registry() { # registry [HTTP-CONFIG [AUTH-CONFIG]]: Debian's docker-registry with a storage of its
  # own, at $reg
  need docker-registry skopeo
  own_state
  reg=127.0.0.1:$(free_port)
  cat >"registry-$reg.yml" <<YAML
version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: $PWD/registry-$reg}, delete: {enabled: true}}
http: {addr: "$reg"${1+, $1}}
${2-}
YAML
  docker-registry serve "registry-$reg.yml" >"registry-$reg.log" 2>&1 &
  wait_for answers "$reg"
}

# front NAME HOST:PORT [KEY=VALUE...]: a reverse proxy before a registry, at $NAME; what it is asked
# goes to NAME.log, as "METHOD PATH STATUS range=... auth=...".  tokens=N: it wants Bearer tokens,
# each is good for N requests; user=U:P: only to him.  redirect=HOST:PORT: for blobs.  rate=N: bytes
# a second.  cut=N: blobs break off after N bytes.  busy=N: 429 to so many requests, with
# after=RETRY-AFTER.  chaos=SEED: all that can go wrong, at random.  dir=DIR: files there come
# first, FILE.type with them.  head=STATUS: what HEAD gets, without headers.
# digest=none|upper|wrong: what it says of one.  type=TYPE, length=N: of manifests.
# challenge=LINE|LINE: instead of its own, with REALM.  key=KEY: of the token in JSON.
# refresh=TOKEN: POST /token wants it.  moved=STATUS: uploads are redirected first.  relative=1:
# uploads' places are.  most=N: bytes of a PUT, else 413.  least=N: bytes of an upload's piece.
# tls=FILE: it speaks TLS, with that key and certificate.
front() {
  local -n address=$1
  local name=$1 port
  port=$(free_port)
  address=127.0.0.1:$port
  "$PYTHON" -I - "$name.log" "$port" "${@:2}" <<'PYTHON' 2>"$name.err" &
import base64, hashlib, http.client, http.server, os, random, sys, threading, time, urllib.parse
log, port, upstream, *words = sys.argv[1:]
opt = dict(word.split("=", 1) for word in words)
lock, tokens, busy = threading.Lock(), {}, [int(opt.get("busy", 0))]
dice = random.Random(opt.get("chaos"))

class Front(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        auth = self.headers.get("Authorization", "")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.path = self.path.replace("http://box.test", "", 1)  # asked as an HTTP proxy
        status, headers, data = self.answer(auth, body)
        if opt.get("chaos") and self.path.startswith("/v2/"):
            status, headers, data = self.spoil(status, headers, data)
        with lock, open(log, "a") as file:
            proxies = self.headers.get_all("Proxy-Authorization", [])
            print(self.command, self.path, status, "range=" + self.headers.get("Range", ""),
                  "auth=" + auth, *("proxy=" + text for text in proxies), file=file)
        self.send_response(status)
        for key, value in headers:
            self.send_header(key, value)
        self.end_headers()
        step = int(opt.get("rate", 1 << 30)) // 10
        if "cut" in opt and "/blobs/" in self.path:
            data = data[:int(opt["cut"])]
        for at in range(0, len(data) if self.command != "HEAD" else 0, step):
            self.wfile.write(data[at:at + step])
            self.wfile.flush()
            time.sleep(0.1 if "rate" in opt else 0)
        self.close_connection = True
    do_HEAD = do_POST = do_PUT = do_PATCH = do_GET

    def answer(self, auth, body):
        path, _, query = self.path.partition("?")
        file = opt.get("dir", "/none") + path
        with lock:
            if path.startswith("/v2/") and busy[0] > 0:
                busy[0] -= 1
                return 429, [("Retry-After", opt.get("after", "1"))], b""
        if path == "/token":
            return self.token(auth, urllib.parse.parse_qs(query), body.decode())
        if self.command == "HEAD" and "head" in opt and path != "/v2/":
            return int(opt["head"]), [], b""
        if self.command in ("POST", "PUT", "PATCH"):
            if "moved" in opt and "moved=1" not in query:
                return int(opt["moved"]), [("Location", "?%s&moved=1" % query)], b""
            self.path = self.path.replace("&moved=1", "")
            if self.command == "PUT" and "/blobs/" in path and len(body) > int(
                    opt.get("most", 1 << 40)):
                return 413, [], b""
        if "tokens" in opt and not self.good(auth):
            scope = "repository:%s:%s" % (
                path[4:].split("/blobs/")[0].split("/manifests/")[0],
                "pull" if self.command in ("GET", "HEAD") else "pull,push")
            realm = "http://127.0.0.1:%s/token" % port
            if "challenge" in opt:
                lines = opt["challenge"].replace("REALM", realm).split("|")
                return 401, [("WWW-Authenticate", line) for line in lines], b""
            return 401, [("WWW-Authenticate", 'Bearer realm="%s",service="s",scope="%s"' % (
                realm, scope))], b""
        if "redirect" in opt and "/blobs/sha256" in path:
            return 307, [("Location", "http://" + opt["redirect"] + path)], b""
        if os.path.isfile(file):
            data, kind = open(file, "rb").read(), "application/octet-stream"
            if os.path.exists(file + ".type"):
                kind = open(file + ".type").read().strip()
            digest = "sha256:" + hashlib.sha256(data).hexdigest()
            return 200, [("Content-Type", kind), ("Content-Length", str(len(data))),
                         ("Docker-Content-Digest", digest)], data
        server = http.client.HTTPConnection(upstream)
        passed = "Accept", "Range", "Content-Type", "Content-Length", "Content-Range"
        headers = {key: self.headers[key] for key in passed if self.headers[key]}
        if "tokens" not in opt and auth:
            headers["Authorization"] = auth
        server.request(self.command, self.path, body, {**headers, "Host": "127.0.0.1:%s" % port})
        reply = server.getresponse()
        headers = {key.lower(): text for key, text in reply.getheaders()
                   if key.lower() != "transfer-encoding"}
        if "relative" in opt and "location" in headers and self.command != "PUT":
            headers["location"] = headers["location"].rpartition("/")[2]
        if "digest" in opt and "docker-content-digest" in headers:
            kind, digest = headers.pop("docker-content-digest").split(":")
            if opt["digest"] != "none":
                headers["Docker-Content-Digest"] = kind + ":" + (
                    digest.upper() if opt["digest"] == "upper" else "0" * 64)
        if "/manifests/" in path and reply.status == 200:
            headers["content-type"] = opt.get("type", headers["content-type"])
            headers["content-length"] = opt.get("length", headers["content-length"])
        if self.command == "POST" and "least" in opt:
            headers["OCI-Chunk-Min-Length"] = opt["least"]
        return reply.status, list(headers.items()), reply.read()

    def good(self, auth):
        with lock:
            left, actions = tokens.get(auth, (0, ""))
            tokens[auth] = left - 1, actions
        return left > 0 and (self.command in ("GET", "HEAD") or "push" in actions)

    def token(self, auth, query, body):
        if "refresh" in opt:
            query = urllib.parse.parse_qs(body)
            if query.get("refresh_token") != [opt["refresh"]] or query.get("grant_type") != [
                    "refresh_token"]:
                return 401, [], b""
        wanted = "Basic " + base64.b64encode(opt.get("user", "").encode()).decode()
        if auth != wanted and ("user" in opt or auth):
            return 401, [("WWW-Authenticate", 'Basic realm="tokens"')], b""
        token = "t%d" % dice.getrandbits(64)
        with lock:
            tokens["Bearer " + token] = int(opt["tokens"]), " ".join(query.get("scope", []))
        return 200, [], ('{"%s": "%s", "expires_in": 60}' % (
            opt.get("key", "token"), token)).encode()

    def spoil(self, status, headers, data):
        with lock:
            what = dice.choice(("well",) * 6 + ("cut", "429", "500", "swap", "cut"))
            at = dice.randrange(len(data) + 1)
        if what == "cut":
            data = data[:at]
        elif what in ("429", "500"):
            status, headers, data = int(what), [("Retry-After", "0")] * (what == "429"), b"busy"
        elif what == "swap" and at < len(data):
            data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1:]
        return status, headers, data

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer.request_queue_size = 50
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Front)
if "tls" in opt:
    import ssl
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trust.load_cert_chain(opt["tls"])
    server.socket = trust.wrap_socket(server.socket, server_side=True,
                                      do_handshake_on_connect=False)
server.serve_forever()
PYTHON
  wait_for answers "$address"
}

# publish NAME [OPTION...]: an image of podman's, one layer over another, to the registry at $reg;
# its id is in $id
publish() {
  local - place=$1
  shift
  peer_podman
  if [[ ! -e $scratch/made.tar ]]; then # once for all tests
    small_root "$scratch/made/root"
    head -c 300000 /dev/urandom >"$scratch/made/root/random"
    echo more >"$scratch/made/more"
    printf '%s\n' 'FROM scratch' 'COPY root /' 'COPY more /more' 'ENV MADE=here' \
      'CMD ["/bin/sh", "-c", "echo $MADE; cat /more"]' >"$scratch/made/Containerfile"
    "${podman[@]}" build -q --isolation chroot --timestamp 1700000000 -t localhost/made:1 \
      "$scratch/made" >"$scratch/made/id"
    "${podman[@]}" save -q --format oci-archive -o "$scratch/made.tar" localhost/made:1
  fi
  skopeo copy -q --dest-tls-verify=false "$@" "oci-archive:$scratch/made.tar" "docker://$reg/$place"
  id=sha256:$(<"$scratch/made/id")
}

test_registry_round_trip() { # registry: what podman made is pulled and runs;
  # what is pushed skopeo and podman read, ids and all
  need overlay
  local format made
  registry
  for format in oci v2s2; do
    publish "box/made:$format" --format "$format"
    run 0 pull "$reg/box/made:$format"
    like "$out" '^sha256:[0-9a-f]{64}$'
    is "$out" \
      "$(skopeo inspect --tls-verify=false --format '{{.Digest}}' "docker://$reg/box/made:$format")"
    like "$err" \
      "$format: pulling from $reg/box/made"$'\n([0-9a-f]{12}: (unpacked|is here), [^\n]*B\n?){2}$'
    [[ $format != oci ]] || made=$id
    id_of "$reg/box/made:$format"
    is "$id" "$(skopeo inspect --tls-verify=false --raw "docker://$reg/box/made:$format" |
      grep -oE 'sha256:[0-9a-f]{64}' | head -n 1)"
    run 0 run --rm "$reg/box/made:$format"
    is "$out" $'here\nmore'
  done
  nothing_half_done
  is "$(ls "$MYDOCKER_ROOT/images/pulls")" ''
  run 0 run --name "c$n" "$reg/box/made:oci" /bin/sh -c 'echo changed >/more'
  run 0 commit "c$n" "$reg/box/other/name:2"
  run 0 push "$reg/box/other/name:2"
  is "$out" "$(skopeo inspect --tls-verify=false --format '{{.Digest}}' \
    "docker://$reg/box/other/name:2")"
  id_of "$reg/box/other/name:2"
  "${podman[@]}" pull -q --tls-verify=false "$reg/box/other/name:2"
  is "$("${podman[@]}" images --no-trunc -q "$reg/box/other/name:2")" "$id"
  skopeo copy -q --src-tls-verify=false "docker://$reg/box/other/name:2" oci:copy:x
  run 0 rmi "$reg/box/other/name:2"
  run 0 run --rm "$reg/box/other/name:2" # which fetches it
  is "$out" $'here\nchanged'
  run 0 tag "$reg/box/made:oci" "$reg/box/made:again"
  run 0 push "$reg/box/made:again"
  is "$(skopeo inspect --tls-verify=false --raw "docker://$reg/box/made:again" |
    grep -oE 'sha256:[0-9a-f]{64}' | head -n 1)" "$made"
}

make_index() { # make_index LAYOUT: its image for amd64, arm64 and arm/v7,
  # each with its name in MADE, under an index called all
  "$PYTHON" -I - "$1" <<'PYTHON'
import hashlib, json, os, sys
os.chdir(sys.argv[1])
oci = "application/vnd.oci.image.%s.v1+json"

def load(of):
    return json.load(open("blobs/sha256/" + of["digest"][7:]))

def store(value, kind):
    data = json.dumps(value).encode()
    digest = hashlib.sha256(data).hexdigest()
    open("blobs/sha256/" + digest, "wb").write(data)
    return {"digest": "sha256:" + digest, "size": len(data), "mediaType": oci % kind}

top, rows = json.load(open("index.json")), []
manifest = load(top["manifests"][0])
config = load(manifest["config"])
for name in "arm64/v8", "amd64", "arm/v7":
    platform = dict(zip(("architecture", "variant"), name.split("/")))
    config.update(platform)
    config["config"] = {"Env": ["MADE=" + name], "Cmd": ["/bin/sh", "-c", "echo $MADE"]}
    manifest["config"] = store(config, "config")
    rows.append({**store(manifest, "manifest"), "platform": {"os": "linux", **platform}})
index = {"schemaVersion": 2, "mediaType": oci % "index", "manifests": rows}
top["manifests"] = [{**store(index, "index"),
                     "annotations": {"org.opencontainers.image.ref.name": "all"}}]
json.dump(top, open("index.json", "w"))
PYTHON
}

test_registry_platforms() { # registry: of an index the image for this machine comes,
  # or the one that --platform names
  need overlay
  local name index
  registry
  make_image "t$n:1"
  unpack_saved "t$n:1"
  make_index layout
  skopeo copy -q --all --dest-tls-verify=false oci:layout:all "docker://$reg/box/many:1"
  run 0 pull "$reg/box/many:1"
  index=$out
  is "$index" "sha256:$(skopeo inspect --raw --tls-verify=false "docker://$reg/box/many:1" |
    sha256sum | cut -d' ' -f1)"
  [[ $(uname -m) != x86_64 ]] || { run 0 run --rm "$reg/box/many:1"; is "$out" amd64; }
  for name in arm64:arm64/v8 arm/v7:arm/v7; do
    run 0 pull -q --platform "linux/${name%:*}" "$reg/box/many:1"
    is "$out" "$index"
    is "$err" ''
    run 0 inspect -f '{{json .Config.Env}}' "$reg/box/many:1"
    is "$out" "[\"MADE=${name#*:}\"]"
  done
  # run takes the image that is there if it is of that platform, else it is fetched
  run 125 run --rm --pull never --platform linux/arm64 "$reg/box/many:1"
  like "$err" '--platform, on linux/arm64: .* is of another one'
  run 0 run --rm -q --platform linux/arm64 "$reg/box/many:1"
  is "$out$err" arm64/v8
  run 0 run --rm --pull never --platform linux/arm64 "$reg/box/many:1"
  is "$out$err" arm64/v8
  fails 125 'not for linux/s390x: arm64/v8, amd64, arm/v7' pull --platform linux/s390x \
    "$reg/box/many:1"
  fails 125 'not for windows/amd64: arm64/v8, amd64' pull --platform windows/amd64 "$reg/box/many:1"
  skopeo copy -q --dest-tls-verify=false oci-archive:a.tar "docker://$reg/box/one:1"
  fails 125 'not for linux/s390x' pull --platform linux/s390x "$reg/box/one:1"
  run 0 pull -q "$reg/box/many@$index" # by digest
  is "$out" "$index"
  run 0 images --format '{{.Repository}} {{.Tag}}'
  like "$out" "$reg/box/many 1"$'\n'"$reg/box/many <none>"
  run 0 pull -q "$reg/box/many:1@$index"
  run 0 run --rm --pull never --entrypoint /bin/sh "$reg/box/many@$index" -c 'echo $MADE'
  fails 125 '404' pull "$reg/box/many@sha256:$(printf '0%.0s' {1..64})"
  fails 125 "registry $reg, on box/many/manifests/none: 404 Not Found" pull "$reg/box/many:none"
  fails 125 "'Many' can't stand there" pull "$reg/Many:1"
}

test_registry_layers() { # registry: 60 layers come, each once, and zstd where Python or the host
  # reads it, else nothing is fetched
  need overlay
  registry
  front door "$reg"
  make_image "t$n:1"
  unpack_saved "t$n:1"
  add_layers layout 59
  skopeo copy -q --dest-tls-verify=false "oci:layout:docker.io/library/t$n:1" \
    "docker://$reg/box/tall:1"
  run 0 rmi "t$n:1"
  run 0 pull "$door/box/tall:1"
  is "$(grep -c unpacked <<<"$err")" 60
  is "$(grep -c /blobs/ door.log)" 61
  run 0 run --rm "$door/box/tall:1" /bin/sh -c 'cat /top /layer0 /layer33'
  is "$out" $'058\n000\n033'
  run 0 pull "$door/box/tall:1"
  is "$(grep -c 'is here' <<<"$err")" 60
  is "$(grep -c /blobs/ door.log)" 61
  head -c 100000 /dev/urandom >root/random # else skopeo remembers a gzip of it
  make_image "t$n:2"
  run 0 save --format oci -o b.tar "t$n:2"
  run 0 rmi "t$n:2"
  skopeo copy -q --dest-tls-verify=false --dest-compress-format zstd oci-archive:b.tar \
    "docker://$reg/box/tall:zstd"
  : >door.log
  if ! "$PYTHON" -c 'import compression.zstd' 2>/dev/null; then
    without_libzstd pull "$door/box/tall:zstd"
    is "$(grep -c /blobs/ door.log)" 1 # the config
  fi
  if "$PYTHON" -c 'import ctypes; ctypes.CDLL("libzstd.so.1")' 2>/dev/null; then
    run 0 pull "$door/box/tall:zstd"
    run 0 run --rm "$door/box/tall:zstd" /bin/ls /random
  fi
}

HTPASSWD='user:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a' # secret

test_registry_login() { # registry: user and password come from login, config.json or a helper,
  # and are checked
  echo "$HTPASSWD" >htpasswd
  registry '' "auth: {htpasswd: {realm: box, path: $PWD/htpasswd}}"
  export DOCKER_CONFIG=$PWD/docker
  publish box/made:1 --dest-creds user:secret
  fails 125 "$reg, on box/made/manifests/1: 401 Unauthorized.*hint: mydocker login $reg" pull \
    "$reg/box/made:1"
  echo wrong >word
  got=0; "${mydocker[@]}" login -u user --password-stdin "$reg" <word 2>err || got=$?
  is "$got" 125
  has err '^mydocker: registry .*: 401'
  [[ ! -e docker/config.json ]]
  mkdir docker
  echo '{"auths": {"other:1": {"auth": "eDp5"}}, "x": 1}' >docker/config.json
  echo secret >word
  is "$("${mydocker[@]}" login -u user --password-stdin "$reg" <word)" 'Login Succeeded'
  is "$(stat -c %a docker/config.json)" 600
  run 0 pull -q "$reg/box/made:1"
  skopeo inspect --tls-verify=false "docker://$reg/box/made:1" >got # it reads the same file
  run 0 tag "$reg/box/made:1" "$reg/box/new:1"
  run 0 push "$reg/box/new:1"
  run 0 logout "$reg"
  has docker/config.json '"x": 1'
  has docker/config.json '"other:1"'
  fails 125 401 pull "$reg/box/made:1"
  mkdir bin
  printf '#!/bin/sh\nread server; echo "$1 $server" >>%s/asked\necho %s\n' "$PWD" \
    '{\"Username\": \"user\", \"Secret\": \"secret\"}' >bin/docker-credential-box
  chmod 755 bin/docker-credential-box
  echo "{\"credHelpers\": {\"$reg\": \"box\"}}" >docker/config.json
  PATH=$PWD/bin:$PATH run 0 pull -q "$reg/box/made:1"
  is "$(sort -u asked)" "get $reg"
  fails 125 'docker-credential-box' pull "$reg/box/made:1"
  tty 0 'Username: $' $'user\r' 'assword: $' $'secret\r' -- "${mydocker[@]}" login "$reg"
  unlike "$out" secret
  unset DOCKER_CONFIG
  HOME=$PWD/home fails 125 401 pull "$reg/box/made:1"
  mkdir -p home
  mv docker home/.docker
  HOME=$PWD/home run 0 pull -q "$reg/box/made:1"
}

test_registry_tokens() { # registry: tokens are fetched, and again when they expire;
  # the password goes to their server only
  registry
  publish box/made:1
  front door "$reg" tokens=2
  run 0 pull -q "$door/box/made:1"
  (($(grep -c '^GET /token?service=s&scope=repository%3Abox%2Fmade%3Apull ' door.log) > 1))
  run 0 rmi "$door/box/made:1"
  front gate "$reg" tokens=3 user=user:secret
  export DOCKER_CONFIG=$PWD/docker
  fails 125 "$gate, on .*: 401.*hint: mydocker login" pull "$gate/box/made:1"
  "${mydocker[@]}" login -u user --password-stdin "$gate" <<<secret
  run 0 pull -q "$gate/box/made:1"
  run 0 tag "$gate/box/made:1" "$gate/box/new:1"
  run 0 push "$gate/box/new:1"
  has gate.log '^PUT /v2/box/new/manifests/1 201 '
  is "$(grep 'auth=Basic' gate.log | grep -v '^GET /token')" ''
}

test_registry_redirect() { # registry: who is redirected to sees no Authorization,
  # even if he asks for it
  registry
  publish box/made:1
  front store "$reg"
  front door "$reg" tokens=100 "redirect=$store"
  run 0 pull -q "$door/box/made:1"
  is "$(grep -c ' 307 ' door.log)" 3
  is "$(sed 's/.*auth=//' store.log | sort -u)" ''
  run 0 rmi "$door/box/made:1"
  front thief "$reg" tokens=100 user=user:secret
  front gate "$reg" tokens=100 user=user:secret "redirect=$thief"
  export DOCKER_CONFIG=$PWD/docker
  "${mydocker[@]}" login -u user --password-stdin "$gate" <<<secret
  fails 125 '401' pull "$gate/box/made:1"
  unlike "$(<thief.log)" 'auth=.'
}

test_registry_tls() { # registry: its certificate must be good: by --cacert, by SSL_CERT_FILE,
  # or --insecure
  need openssl
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 \
    -subj /CN=authority -keyout ca.key -out ca.crt
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=box -keyout key \
    -out csr
  openssl x509 -req -in csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -out crt \
    -extfile <(echo subjectAltName=IP:127.0.0.1)
  registry "tls: {certificate: $PWD/crt, key: $PWD/key}"
  publish box/made:1
  fails 125 'certificate verify failed.*hint: --cacert' pull "$reg/box/made:1"
  fails 125 '^mydocker: --cacert, on none: no such file' pull --cacert none "$reg/box/made:1"
  run 0 pull -q --cacert ca.crt "$reg/box/made:1"
  fails 125 "doesn't match|mismatch|not valid for" pull --cacert ca.crt \
    "localhost:${reg#*:}/box/made:1"
  SSL_CERT_FILE=$PWD/ca.crt run 0 pull -q "$reg/box/made:1"
  run 0 pull -q --insecure "localhost:${reg#*:}/box/made:1"
  run 0 run --rm --pull always --cacert ca.crt "$reg/box/made:1"
  run 0 tag "$reg/box/made:1" "$reg/box/new:1"
  run 0 push --cacert ca.crt "$reg/box/new:1"
}

test_registry_proxy() { # registry: HTTP(S)_PROXY and NO_PROXY count, for loopback none does;
  # no plain http elsewhere without --insecure
  registry
  publish box/made:1
  front proxy "$reg"
  http_proxy=http://$proxy https_proxy=http://$proxy run 0 pull -q "$reg/box/made:1"
  [[ ! -s proxy.log ]]
  http_proxy=http://$proxy fails 125 'box.test.*refused' pull box.test/box/made:1
  [[ ! -s proxy.log ]]
  http_proxy=http://$proxy run 0 pull -q --insecure box.test/box/made:1
  has proxy.log '^HEAD /v2/box/made/manifests/1 200'
  : >proxy.log
  http_proxy=http://$proxy no_proxy=box.test fails 125 'box.test' pull \
    --insecure box.test/box/made:1
  [[ ! -s proxy.log ]]
  https_proxy=http://$proxy fails 125 'box.test' pull box.test/box/made:1
}

test_registry_mirrors() { # registry: mirrors are asked first for docker.io's images,
  # and for no others; what fails is passed over
  local dead
  registry
  publish library/made:1
  publish box/made:1
  front door "$reg"
  dead=127.0.0.1:$(free_port)
  run 0 pull -q --registry-mirror "http://$door" made:1
  has door.log '/library/made/manifests/1 200'
  run 0 run --rm --pull never made:1
  is "$out" $'here\nmore'
  run 0 rmi made:1
  MYDOCKER_MIRRORS="$dead $door" run 0 run --rm docker.io/library/made:1
  is "$out" $'here\nmore'
  run 0 rmi made:1
  front holes "$reg" cut=1000
  run 0 pull -q --registry-mirror "$holes" --registry-mirror "$door" made:1
  fails 125 'registry index.docker.io, on library/none/manifests/latest: .*refused' pull \
    --registry-mirror "$door" none
  : >door.log
  MYDOCKER_MIRRORS=$door run 0 pull -q "$reg/box/made:1"
  [[ ! -s door.log ]]
}

part_size() { # how much of its largest layer a pull has
  find "$MYDOCKER_ROOT/images/pulls" -type f -printf '%s\n' 2>/dev/null | sort -n | tail -n 1
}

part_over() { # part_over BYTES
  (($(part_size) + 0 > $1))
}

test_registry_resume() { # registry: a connection that breaks is made again from there,
  # by the next pull too; none comes twice
  need overlay
  local size front_pid
  registry
  publish box/made:1
  front holes "$reg" cut=250000
  run 0 pull -q "$holes/box/made:1"
  run 0 run --rm --pull never "$holes/box/made:1"
  is "$out" $'here\nmore'
  grep -oE ' 206 range=bytes=[0-9]+' holes.log | grep -oE '[0-9]+$' | sort -nu >offsets
  is "$(head -n 2 offsets)" $'250000\n500000'
  run 0 rmi "$holes/box/made:1"
  front slow "$reg" rate=500000
  start pull "$slow/box/made:1"
  wait_for part_over 300000
  kill -KILL "$pid"
  ended 137
  size=$(part_size)
  mkdir empty
  run 0 import empty x
  run 0 rmi x # whose sweep keeps what a pull left
  is "$(part_size)" "$size"
  front dying "$reg" rate=500000
  front_pid=$!
  start pull "$dying/box/made:1"
  wait_for part_over $((size + 200000))
  kill -KILL "$front_pid"
  ended 125
  has err 'box/made/blobs/sha256:[0-9a-f]*: connection refused'
  size=$(part_size)
  front door "$reg"
  run 0 pull "$door/box/made:1"
  has door.log "blobs/.* 206 range=bytes=$size-"
  like "$err" 'is here, 105B' # the finished layer was kept
  run 0 run --rm --pull never "$door/box/made:1"
  is "$out" $'here\nmore'
  nothing_half_done
  is "$(ls state/images/pulls)" ''
}

test_registry_once() { # registry: pulls at the same time fetch no layer twice,
  # and each has the image
  local number
  registry
  publish box/made:1
  front slow "$reg" rate=1000000
  for number in 1 2 3; do
    "${mydocker[@]}" pull -q "$slow/box/made:1" >"out$number" 2>&1 & pids[number]=$!
  done
  wait "${pids[@]}"
  is "$(sort -u out?)" "$(<out1)"
  like "$(<out1)" '^sha256:[0-9a-f]*$'
  # $id: the config
  is "$(grep '^GET.*/blobs/' slow.log | grep -v "$id" | cut -d' ' -f2 | sort | uniq -d)" ''
  nothing_half_done
  is "$(ls state/images/pulls)" ''
}

broken() { # broken REGEX ARG...: fails as it should, with or without lines of the layers before
  run 125 "${@:2}"
  is "$out" ''
  like "$err" "(^|"$'\n'")mydocker: $1"
  unlike "$err" 'bug in mydocker'
}

test_registry_chaos() { # registry: whatever breaks, a pull is right or refused,
  # and the next one goes on; what is there is whole
  need overlay
  local number right=0 rounds=12 status door digest
  [[ ! ${FULL-} ]] || rounds=100
  registry
  make_image "t$n:1"
  unpack_saved "t$n:1"
  add_layers layout 4
  skopeo copy -q --dest-tls-verify=false "oci:layout:docker.io/library/t$n:1" \
    "docker://$reg/box/made:1"
  run 0 rmi "t$n:1"
  nothing_kept
  run 0 pull -q "$reg/box/made:1"
  digest=$out
  run 0 rmi "$reg/box/made:1"
  for ((number = 1; number <= rounds; number++)); do
    front door "$reg" "chaos=$number"
    status=0
    timeout "$patience" "${mydocker[@]}" pull "$door/box/made:1" >out 2>err || status=$?
    cat out err
    unlike "$(<err)" 'bug in'
    nothing_half_done
    (cd state/images/blobs/sha256 && sha256sum -- * | awk '$1 != $2 {exit 1}')
    if ((status == 0)); then
      right=$((right + 1))
      is "$(<out)" "$digest"
      run 0 run --rm --pull never "$door/box/made:1" /bin/sh -c 'cat /layer0 /layer3'
      is "$out" $'000\n003'
      run 0 rmi "$door/box/made:1"
    else
      is "$status" 125
      has err '^mydocker: (registry|image|blob|layer|archive)'
    fi
  done
  ((right > 0))
  run 0 pull -q "$reg/box/made:1"
  run 0 rmi "$reg/box/made:1"
}

test_registry_hostile() { # registry: what lies about its kind, its size or its digest is refused;
  # nothing of it is kept
  local digest type=application/vnd.oci.image.manifest.v1+json v2=$PWD/fake/v2/box/made
  registry
  publish box/made:1
  mkdir -p "$v2/manifests" "$v2/blobs"
  front door "$reg" "dir=$PWD/fake"
  skopeo inspect --raw --tls-verify=false "docker://$reg/box/made:1" >manifest
  serve_digest() { # the manifest also by its digest
    digest=sha256:$(sha256sum <"$v2/manifests/1" | cut -d' ' -f1)
    cp "$v2/manifests/1" "$v2/manifests/$digest"
    cp "$v2/manifests/1.type" "$v2/manifests/$digest.type"
  }
  lie() { # lie STATUS-REGEX JSON-EDIT [TYPE]: the manifest so changed is refused
    "$PYTHON" -I -c 'import json, sys
m = json.load(open("manifest"))
exec(sys.argv[1])
print(json.dumps(m))' "$2" >"$v2/manifests/1"
    echo "${3-$type}" >"$v2/manifests/1.type"
    serve_digest
    broken "$1" pull "$door/box/made:1"
    nothing_half_done
  }
  lie '.*manifest and index in one' 'm["manifests"] = []' application/vnd.oci.image.index.v1+json
  lie '.*manifest and index in one' '' application/vnd.oci.image.index.v1+json
  lie '.*not an image: .*v1.json' 'm = {"schemaVersion": 1}' \
    application/vnd.docker.distribution.manifest.v1+json
  lie '.*larger than 4.19MB' 'm["x"] = "x" * (4 << 20)'
  lie '.*larger than 4.19MB' 'm["config"]["size"] = 5 << 20'
  lie ".*bad digest" 'm["config"]["digest"] = "sha256:../../x"'
  lie '.*bad digest' 'm["layers"][0]["digest"] = "md5:" + "0" * 32'
  lie '.*longer than its 1000 bytes' 'm["layers"][0]["size"] = 1000'
  lie '.*registry .*: [4r]' 'm["layers"][0]["size"] += 1000'
  lie '.*404 Not Found' 'm["layers"][0]["digest"] = "sha256:" + "0" * 64'
  nothing_half_done
  cp manifest "$v2/manifests/1"
  serve_digest
  digest=$(grep -oE 'sha256:[0-9a-f]{64}' manifest | sed -n 2p) # the first layer
  rm "$MYDOCKER_ROOT"/images/pulls/* # it has the whole layer by now
  head -c 1400000 /dev/urandom >"$v2/blobs/$digest"
  broken '(blob|archive|layer).*' pull "$door/box/made:1"
  truncate -s "$("$PYTHON" -I -c 'import json
print(json.load(open("manifest"))["layers"][0]["size"])')" "$v2/blobs/$digest"
  broken '(layer|blob|archive)' pull "$door/box/made:1"
  rm "$v2/blobs/$digest"
  skopeo inspect --config --raw --tls-verify=false "docker://$reg/box/made:1" |
    sed s/MADE=here/MADE=hare/ >"$v2/blobs/$id"
  MYDOCKER_ROOT=$PWD/fresh broken "blob, on $id: cut off, damaged or forged" pull "$door/box/made:1"
  rm "$v2/blobs/$id"
  run 0 pull -q "$door/box/made:1"
  nothing_half_done
}

test_registry_busy() { # registry: 429 is obeyed, as Retry-After says;
  # what stays so ends with its status
  registry
  publish box/made:1
  front door "$reg" busy=2
  SECONDS=0
  run 0 pull -q "$door/box/made:1"
  ((SECONDS >= 2))
  like "$err" 'warning: registry .*: 429 Too Many Requests, waiting'
  front gate "$reg" busy=100
  broken "registry $gate, on box/made/manifests/1: 429" pull "$gate/box/made:1"
  fails 125 'refused' pull "127.0.0.1:$(free_port)/x"
}

test_registry_interrupt() { # registry: Ctrl-C ends a pull within a second,
  # with 130 and nothing half done
  local begin
  registry
  publish box/made:1
  front slow "$reg" rate=100000
  start pull "$slow/box/made:1"
  wait_for part_over 10000
  begin=${EPOCHREALTIME/[.,]/}
  kill -INT "$pid"
  ended 130
  ((${EPOCHREALTIME/[.,]/} - begin < 1000000))
  nothing_half_done
  unlike "$(<err)" 'mydocker'
  is "$(pgrep -f "pull $slow" || :)" ''
  tty 130 's of 1.39MB' $'\003' -- "${mydocker[@]}" pull "$slow/box/made:1"
  nothing_half_done
}

test_registry_full_disk() { # registry: a full disk is said, nothing half done is left,
  # and with room the pull goes on
  registry
  publish box/made:1
  mkdir full
  mount -t tmpfs -o size=2m none full
  MYDOCKER_ROOT=$PWD/full broken '.*no space left on device' pull "$reg/box/made:1"
  MYDOCKER_ROOT=$PWD/full nothing_half_done
  mount -o remount,size=20m full
  MYDOCKER_ROOT=$PWD/full run 0 pull -q "$reg/box/made:1"
  MYDOCKER_ROOT=$PWD/full run 0 images -q
  like "$out" '^[0-9a-f]{12}$'
  umount full
}

test_registry_progress() { # registry: on a terminal each layer has a line while it comes,
  # elsewhere when it is there
  registry
  publish box/made:1
  front slow "$reg" rate=1000000
  tty 0 -- "${mydocker[@]}" pull "$slow/box/made:1"
  like "$out" $'1: pulling from [^\n]*\n'
  like "$out" $'[0-9a-f]{12}: \\[=* *\\] [0-9.]+kB, [0-9.]+[kM]B/s of 1.39MB\n'
  like "$out" $'[0-9a-f]{12}: unpacked, 1.39MB\n'
  like "$out" $'\nsha256:[0-9a-f]{64}$'
  run 0 rmi "$slow/box/made:1"
  tty 0 -- "${mydocker[@]}" pull -q "$slow/box/made:1"
  like "$out" '^sha256:[0-9a-f]{64}$'
}

test_registry_run_pull() { # registry: run --pull missing, always and never
  need overlay
  registry
  publish box/made:1
  front door "$reg"
  fails 125 'no such image' run --pull never "$door/box/made:1"
  [[ ! -s door.log ]]
  fails 125 "not missing, always or never" run --pull often "$door/box/made:1"
  run 0 run --rm "$door/box/made:1"
  is "$out" $'here\nmore'
  like "$err" 'pulling from'
  : >door.log
  run 0 run --rm "$door/box/made:1"
  is "$out$err" $'here\nmore'
  [[ ! -s door.log ]]
  run 0 run --rm --pull always "$door/box/made:1"
  has door.log '/manifests/1 200'
  fails 125 'registry .*404.*hint: an image' run "$door/box/none:1"
  run 0 run -d --pull always "$door/box/made:1" /bin/sleep 1000
}

test_registry_push() { # registry: what it has is not sent again,
  # what another repository there has is mounted; a bad name is refused
  need overlay
  registry
  publish box/made:1
  front door "$reg"
  run 0 pull -q "$door/box/made:1"
  run 0 tag "$door/box/made:1" "$door/box/copy:1"
  : >door.log
  run 0 push "$door/box/copy:1"
  like "$err" $'^1: pushing to [^\n]*\n([0-9a-f]{12}: pushed, [^\n]*\n?){3}$'
  is "$(grep -cE '^POST .*mount=sha256:[0-9a-f]{64}&from=box/made 201' door.log)" 2
  is "$(grep -c '^PUT .*/blobs/' door.log)" 1 # the config
  : >door.log
  run 0 push "$door/box/copy:1"
  is "$(grep -c '^POST' door.log || :)" 0
  fails 125 'no image has that name' push "${id#sha256:}"
  fails 125 'no such image' push "$door/none:1"
}

test_registry_headers() { # registry: what HEAD and optional headers say is needed for nothing, and
  # no lie of theirs believed
  need overlay
  local words digest
  registry
  publish box/made:1
  digest=$(skopeo inspect --tls-verify=false --format '{{.Digest}}' "docker://$reg/box/made:1")
  for words in head=405 head=404 head=403 head=200 digest=none digest=upper type=application/json \
    "length=$(printf '9%.0s' {1..5000})"; do
    front door "$reg" "$words"
    run 0 pull -q "$door/box/made:1"
    is "$out" "$digest"
    run 0 rmi "$door/box/made:1"
  done
  run 0 pull -q "$door/box/made@$digest"
  front gate "$reg" digest=wrong
  broken 'image, on 1: cut off, damaged or forged' pull "$gate/box/made:1"
  front store "$reg" type=text/html
  broken "image, on 1: not an image: 'text/html'" pull "$store/box/made:1"
  run 0 pull "$reg/box/made:1"
  for words in head=405 head=404 head=200 digest=wrong digest=upper; do
    front door "$reg" "$words"
    run 0 tag "$reg/box/made:1" "$door/box/${words/=/-}:1"
    run 0 push "$door/box/${words/=/-}:1"
    is "$out" \
      "$(skopeo inspect --tls-verify=false --format '{{.Digest}}' \
      "docker://$reg/box/${words/=/-}:1")"
  done
}

test_registry_challenges() { # registry: whatever form a challenge has: schemes, keys, quotes,
  # scope, the token's name
  local line
  registry
  publish box/made:1
  for line in 'Bearer realm="REALM",service="s",scope="repository:box/made:pull"' \
    'Bearer realm=REALM,service=s' \
    'Basic realm="x", Bearer realm="REALM", service="s"' \
    'Bearer Realm="REALM" , SERVICE=s, Basic realm="x"' \
    'Negotiate|Basic realm="x, Bearer realm=\"no\""|bearer RealM="REALM"' \
    'Digest qop="auth,auth-int", nonce=ab==, BEARER realm=REALM'; do
    front door "$reg" tokens=100 "challenge=$line" key=access_token
    run 0 pull -q "$door/box/made:1"
    has door.log '^GET /token.*scope=repository%3Abox%2Fmade%3Apull'
    run 0 tag "$door/box/made:1" "$door/box/new:1"
    run 0 push "$door/box/new:1"
    run 0 rmi "$door/box/made:1" "$door/box/new:1"
    rm door.log
  done
  front door "$reg" tokens=100 key=x
  fails 125 'its token server gives no token' pull "$door/box/made:1"
  front door "$reg" tokens=100 challenge=Bearer
  fails 125 'wants a token, but' pull "$door/box/made:1"
  front door "$reg" tokens=100 'challenge=Negotiate YII='
  fails 125 '401' pull "$door/box/made:1"
  mkdir docker
  export DOCKER_CONFIG=$PWD/docker
  echo '{"credsStore": "nobody"}' >docker/config.json # its helper isn't there: so as nobody
  front door "$reg" tokens=100
  run 0 pull -q "$door/box/made:1"
}

test_registry_config() { # registry: config.json's keys and entries in all forms, the longest match;
  # none is ever shown
  local entry key base secret=c2VjcmV0
  echo "$HTPASSWD" >htpasswd
  registry '' "auth: {htpasswd: {realm: box, path: $PWD/htpasswd}}"
  export DOCKER_CONFIG=$PWD/docker
  mkdir docker
  publish box/made:1 --dest-creds user:secret
  base=$(printf user:secret | base64)
  good='"auth": "'$base'"' plain='{"username": "user", "password": "secret"}'
  for entry in "\"$reg\": {$good}" "\"http://$reg\": {$good}" "\"https://$reg/v1/\": {$good}" \
    "\"$reg/v2/\": {$good}" "\"$reg/\": {$good}" "\"$reg/box\": {$good}" \
    "\"$reg\": {\"auth\": \"eDp5\"}, \"$reg/box/made\": {$good}" \
    "\"$reg/other\": {\"auth\": \"eDp5\"}, \"$reg\": $plain" \
    "\"$reg\": {\"auth\": \"$base\\n\"}" \
    "\"$reg\": {\"auth\": \"$(printf 'user:secret\0' | base64)\"}"; do
    echo "{\"auths\": {$entry}}" >docker/config.json
    run 0 pull -q "$reg/box/made:1"
  done
  for entry in "{\"auth\": \"$secret\"}" "{\"auth\": \"\\n$secret:\"}" "{\"auth\": [\"$secret\"]}" \
    "{\"password\": {\"$secret\": 1}}" \
    "{\"identitytoken\": \"$secret\\r\\nX: $secret\"}" "\"$secret\"" "[\"$secret\"]" \
    "{\"registrytoken\": \"$secret \\n$secret\"}" "{\"auth\": \"$secret"; do
    echo "{\"auths\": {\"$reg\": $entry}}" >docker/config.json
    fails 125 "docker/config.json: " pull "$reg/box/made:1"
    unlike "$err" "$secret|secret|bug in"
  done
  for entry in "{\"auths\": \"$secret\"}" "[\"$secret\"]" "{\"credsStore\": \"../$secret\"}" \
    "{\"credsStore\": [\"$secret\"]}"; do
    echo "$entry" >docker/config.json
    fails 125 'config.json: ' pull "$reg/box/made:1"
    unlike "$err" "$secret|bug in"
  done
  for key in "http://$reg" "$reg/v2/"; do
    echo "{\"auths\": {\"$key\": {$good}, \"other\": {}}}" >docker/config.json
    run 0 logout "$reg"
    is "$(tr -d ' \n' <docker/config.json)" '{"auths":{"other":{}}}'
  done
  front gate "$reg" tokens=100 refresh=again
  echo "{\"auths\": {\"$gate\": {\"auth\": \"\", \"identitytoken\": \"never\"}}}" \
    >docker/config.json
  fails 125 "token: 401.*hint: mydocker login" pull "$gate/box/made:1"
  unlike "$err" never
  is "$(grep -c 'never' gate.log || :)" 0 # no secret in an address
  front door "$reg" busy=100
  broken ".*registry index" pull --registry-mirror "http://user:$secret@$door" none
  unlike "$err" "$secret"
}

test_registry_upload() { # registry: uploads follow 307 and 308 with their bytes, relative places,
  # and go in pieces where wanted
  need overlay
  local words number=0
  registry
  publish box/made:1
  run 0 pull -q "$reg/box/made:1"
  for words in moved=307 moved=308 relative=1 'moved=307 relative=1 most=200000' least=1000 \
    least=99999999999999999999 most=200000; do
    number=$((number + 1))
    # shellcheck disable=SC2086 # a list
    front door "$reg" $words
    run 0 tag "$reg/box/made:1" "$door/fresh$number/made:1"
    run 0 push "$door/fresh$number/made:1"
    skopeo copy -q --src-tls-verify=false "docker://$reg/fresh$number/made:1" "oci:copy$number:x"
    if [[ $words == *[tm]*[t]=* ]]; then has door.log '^PATCH .* 202'; fi
  done
  front door "$reg" moved=303
  run 0 tag "$reg/box/made:1" "$door/last/made:1"
  broken "registry $door, on last/made/blobs/uploads/: 303" push "$door/last/made:1"
}

test_registry_no_proxy() { # registry: no_proxy knows names, domains, ports, addresses and networks;
  # a proxy gets its password
  need ip
  local place entry
  registry
  publish box/made:1
  front proxy "$reg"
  http_proxy=http://user:se%40cret@$proxy run 0 pull -q --insecure box.test/box/made:1
  has proxy.log ' 200 .*proxy=Basic dXNlcjpzZUBjcmV0$'
  http_proxy=http://user:secret@nowhere:x fails 125 'registry box.test' pull \
    --insecure box.test/box/made:1
  unlike "$err" secret
  # where only lo is: all else is unreachable
  mydocker=(unshare -n sh -c 'ip link set lo up; exec "$@"' sh "${mydocker[@]}")
  export https_proxy=http://127.0.0.1:1
  for entry in 10.9.8.7 10.9.0.0/16 10.9.8.7/32:443 10.9.8.7:443 '*' 'x, 10.9.8.0/24'; do
    no_proxy=$entry fails 125 'registry 10.9.8.7, .*: network is unreachable' pull \
      10.9.8.7/box/made:1
  done
  for entry in 10.9.8.6 10.8.0.0/16 10.9.8.7:80 10.9.8.7:444 0.9.8.7 nonsense/x ''; do
    no_proxy=$entry fails 125 'registry 10.9.8.7, .*: connection refused' pull 10.9.8.7/box/made:1
  done
  no_proxy='[fd00::]/8' NO_PROXY='' fails 125 ': connection refused' pull '[fe00::1]:5/box/made:1'
  no_proxy=fd00::/8 fails 125 'unreachable|cannot assign' pull '[fd00::1]:5/box/made:1'
  for entry in .example.com:444 example.com '*.example.com' box.example.com:444; do
    no_proxy=$entry fails 125 'resolution|not known' pull box.example.com:444/box/made:1
  done
  for entry in ample.com example.com:443 x.example.com; do
    no_proxy=$entry fails 125 'connection refused' pull box.example.com:444/box/made:1
  done
}

test_registry_certificates() { # registry: SSL_CERT_DIR has authorities, too
  need openssl
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 \
    -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1 -keyout key -out crt
  registry "tls: {certificate: $PWD/crt, key: $PWD/key}"
  publish box/made:1
  mkdir certs
  cp crt "certs/$(openssl x509 -hash -noout -in crt).0"
  SSL_CERT_DIR=$PWD/certs run 0 pull -q "$reg/box/made:1"
  SSL_CERT_DIR=$PWD fails 125 'certificate verify failed' pull "$reg/box/made:1"
}

test_registry_https() { # registry: over https the token, and what is redirected, come over https as
  # well; bad addresses are said
  local place
  need openssl
  registry
  publish box/made:1
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 \
    -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1 -keyout key -out crt
  cat key crt >pem
  front gate "$reg" tls=pem tokens=100 'challenge=Bearer realm="/token"' # relative: by https, too
  run 0 pull -q --cacert crt "$gate/box/made:1"
  front door "$reg" tls=pem tokens=100
  fails 125 "tokens from 'http://[^']*/token', not by https" pull --cacert crt "$door/box/made:1"
  front store "$reg"
  front door "$reg" tls=pem "redirect=$store"
  run 0 rmi "$gate/box/made:1"
  fails 125 'it redirects to http, not https.*hint: --insecure' pull --cacert crt "$door/box/made:1"
  run 0 pull -q --insecure "$door/box/made:1"
  run 0 rmi "$door/box/made:1"
  for place in '[' '[x]:y' 'x:99999999' $'\xff'; do
    front door "$reg" "redirect=$place"
    broken 'registry' pull "$door/box/made:1"
    front door "$reg" tokens=1 "challenge=Bearer realm=\"http://$place/token\""
    broken 'registry' pull "$door/box/made:1"
  done
}

test_registry_login_planted() { # security: login and logout write where another user may write, and
  # follow none of his links
  local number
  registry
  export DOCKER_CONFIG=$PWD/theirs
  mkdir theirs
  echo precious >victim
  for number in {2..3000}; do ln -s "$PWD/victim" "theirs/config.json.$number"; done
  chown -h 1234:5678 theirs theirs/*
  "${mydocker[@]}" login -u user --password-stdin "$reg" <<<secret
  is "$(<victim) $(stat -c '%u %a' victim)" 'precious 0 644'
  is "$(stat -c '%F %u %g %a' theirs/config.json)" 'regular file 1234 5678 600'
  run 0 logout "$reg"
  is "$(stat -c '%F %u %g %a' theirs/config.json)" 'regular file 1234 5678 600'
  unlike "$(<theirs/config.json)" "$reg"
  is "$(<victim) $(stat -c '%u %a' victim)" 'precious 0 644'
  echo '{"auths": {"x": {"auth": "eDp5"}}}' >victim
  ln -sf "$PWD/victim" theirs/config.json
  chown -h 1234:5678 theirs/config.json
  fails 125 'theirs/config.json: a link that another user made' logout "$reg"
  rm theirs/config.json
  mkfifo theirs/config.json
  fails 125 'theirs/config.json: not a regular file' logout "$reg"
  mkdir mine
  ln -s ../victim mine/config.json # root's own link leads where it should
  DOCKER_CONFIG=$PWD/mine run 0 login -u user --password secret "$reg"
  is "$err" 'mydocker: warning: Using --password via the CLI is insecure. Use --password-stdin.'
  has victim "$reg"
  has victim '"x"'
  [[ -L mine/config.json ]]
  fails 125 'no terminal to ask on' login "$reg"
  fails 125 'needs --username' login --password-stdin "$reg"
  DOCKER_CONFIG=$PWD/mine broken 'warning: .*--username: .* with a colon' login -u us:er -p x "$reg"
}

test_registry_words() { # registry: artifacts, odd platforms and hostile words: each is said
  # clearly, and steers no terminal
  local v2=$PWD/fake/v2/box/made index=application/vnd.oci.image.index.v1+json
  registry
  publish box/made:1
  mkdir -p "$v2/manifests" "$v2/blobs"
  front door "$reg" "dir=$PWD/fake"
  skopeo inspect --raw --tls-verify=false "docker://$reg/box/made:1" >manifest
  serve() { # serve PYTHON: with m, the manifest, and row, its descriptor, it makes d, the document
    rm -f "$v2"/manifests/*
    "$PYTHON" -I - "$v2/manifests/" "$1" <<'PYTHON'
import hashlib, json, sys
raw = open("manifest", "rb").read()
m = json.loads(raw)
row = {"mediaType": m["mediaType"], "digest": "sha256:" + hashlib.sha256(raw).hexdigest(),
       "size": len(raw)}
exec(sys.argv[2])
data = json.dumps(d).encode()
kind = "application/vnd.oci.image.index.v1+json" if "manifests" in d else m["mediaType"]
for name in "1", "sha256:" + hashlib.sha256(data).hexdigest():
    open(sys.argv[1] + name, "wb").write(data)
    open(sys.argv[1] + name + ".type", "w").write(kind)
PYTHON
  }
  serve 'd = {**m, "config": {
    **m["config"], "mediaType": "application/vnd.cncf.helm.config.v1+json"}}'
  broken "image, on sha256:[0-9a-f]*: an artifact, not an image: 'application/vnd.cncf.helm" pull \
    "$door/box/made:1"
  serve 'd = {"schemaVersion": 2, "artifactType": "x/y", "config": {
    **m["config"], "mediaType": "application/vnd.oci.empty.v1+json"}, "layers": []}'
  broken 'image, .*: an artifact, not an image' pull "$door/box/made:1"
  serve 'd = {"schemaVersion": 2, "manifests": [
    {**row, "platform": {"os": "unknown", "architecture": "unknown"}}]}'
  broken 'image, on .*: not for this machine \([^)]*\): no image at all' pull "$door/box/made:1"
  serve 'd = {"schemaVersion": 2, "manifests": []}'
  broken 'image, on .*: not for linux/arm64: no image at all' pull --platform linux/arm64 \
    "$door/box/made:1"
  serve 'd = {"schemaVersion": 2, "manifests": [
    {**row, "platform": {"os": "linux", "architecture": "\x1b[31m\x9b2J\u202e"}}]}'
  broken 'image, on .*: not for this machine.*: \\x1b\[31m\\x9b2J\\u202e' pull "$door/box/made:1"
  unlike "$err" $'[\x1b\x9b]'
  serve 'd = {"schemaVersion": 2, "manifests": [
    {**row, "platform": {"os": "linux", "architecture": "unknown"}}, {**row, "size": 1 << 70}]}'
  broken '.*int wanted' pull "$door/box/made:1"
  serve 'd = {"schemaVersion": 2, "manifests": [
    {**row, "platform": {"os": "linux", "architecture": "mips"}}, {**row, "platform": None},
    {**row, "digest": "sha256:" + "0" * 64, "platform": {"os": "linux", "architecture": "amd64"},
     "annotations": {"vnd.docker.reference.type": "attestation-manifest"}}]}'
  run 0 pull -q "$door/box/made:1"
  serve 'd = {"schemaVersion": 2, "manifests": [
    {**row, "platform": {"os": "linux", "architecture": "arm64"}}]}'
  run 0 pull -q --platform AArch64 "$door/box/made:1"
}

test_registry_retry_after() { # registry: Retry-After may be a date or nonsense, and is obeyed for a
  # minute at most
  local after
  registry
  publish box/made:1
  for after in 0 -5 x '٣' 'Thu, 01 Jan 1970 00:00:00 GMT' 'Thu, 99 Jan 99999 99:99:99 GMT'; do
    front door "$reg" busy=1 "after=$after"
    run 0 pull -q "$door/box/made:1"
  done
  for after in "$(printf '9%.0s' {1..5000})" \
    "$(LC_ALL=C date -u -d '+2 days' '+%a, %d %b %Y %H:%M:%S GMT')"; do
    front door "$reg" busy=1 "after=$after"
    start pull -q "$door/box/made:1"
    wait_for has err waiting
    kill -INT "$pid"
    ended 130
    is "$(wc -l <err)" 1
  done
}

# built ARG...: `mydocker build --network none ARG...` succeeds; $out is the id, $err what it says.
built() {
  run 0 build --network none "$@"
  like "$out" '^sha256:[0-9a-f]{64}$'
}

nothing_of_build() { # no container, no half a layer and no mount is left
  nothing_on_record
  is "$(find state/layers -maxdepth 1 -name 'tmp*')" ''
  is "$(grep -F "$PWD/state" /proc/self/mountinfo || :)" ''
}

test_build_cache() { # build: what is the same is taken from the cache, times don't count; stages
  # that aren't needed are left out
  need overlay
  local first
  make_image base:1
  mkdir dir
  echo one >dir/file
  printf '%s\n' 'FROM base:1 AS first' 'ARG WHO=me' 'ENV A=b' 'COPY dir /dir' \
    'RUN echo "$WHO $A"; echo "$WHO" >/who' 'FROM base:1 AS unused' 'RUN false' 'FROM first' \
    'COPY --from=first /who /copy' >Dockerfile
  built -t app:1 .
  first=$out
  like "$err" '#[0-9]+ [0-9.]+ me b'
  like "$err" 'naming to docker.io/library/app:1'
  unlike "$err" 'CACHED|unused'
  touch dir/file dir
  built -t app:1 .
  is "$out" "$first"
  is "$(grep -c CACHED <<<"$err")" 3
  built --build-arg WHO=you -t app:1 .
  is "$(grep -c CACHED <<<"$err")" 1
  like "$err" '[0-9.]+ you b'
  run 0 run --rm --network none app:1 cat /copy
  is "$out" you
  chmod 600 dir/file
  built .
  unlike "$err" CACHED
  echo two >dir/file
  built -q .
  is "$err" ''
  built --no-cache .
  unlike "$err" CACHED
  fails 1 'build, on Dockerfile line 7, RUN: "false" ended with 1' build -q --target unused .
  nothing_of_build
  run 0 build -q --network none -t app:1 --iidfile id --label x=y --target FIRST .
  is "$(<id)" "$out"
  run 0 inspect -f '{{json .Config.Labels}}' app:1
  is "$out" '{"x": "y"}'
  run 0 images -q
  is "$(wc -l <<<"$out")" 2
  run 0 images -aq
  (($(wc -l <<<"$out") > 6))
  run 0 image prune
  run 0 images -aq
  is "$(wc -l <<<"$out")" 2
  built --target first .
  unlike "$err" CACHED
}

test_build_failures() { # build: a failure names file, line and instruction, has docker's status,
  # and leaves nothing but the cache
  local line status why
  need overlay
  make_image base:1
  touch file
  while IFS='|' read -r status line why; do
    printf 'FROM base:1\n# comment\n\n%b\n' "$line" >Dockerfile
    fails "$status" "build, on Dockerfile line 4, $why" build --network none -q .
    one_line "$why"
  done <<'CASES'
3|RUN exit 3|RUN: "exit 3" ended with 3
127|RUN ["/nosuch"]|RUN: exec, on /nosuch: no such file or directory
125|COPY missing /x|COPY: missing: no such file or directory in the context
125|COPY mis* /x|COPY: mis\*: no such file or directory
125|COPY file|COPY: it needs what to copy, and where to
125|COPY --from=base:nosuch file /x|COPY: .*base
125|COPY --chown=nobody file /x|COPY: nobody: there is no nobody in the image
125|COPY --what=1 file /x|COPY: unknown flag --what
125|COPY file /etc/passwd/|COPY: .*not a directory
125|COPY . /etc/passwd|COPY: .*a directory can't replace what is there
125|COPY file Dockerfile /new|COPY: several things are copied, so /new must end with /
125|NONSENSE x|NONSENSE: there is no such instruction
125|ENV A=${B|ENV: bad substitution of B
125|ENV A="${B:?is needed}"|ENV: B: is needed
125|RUN <<END\nfoo|RUN: the here-document <<END has no end
125|RUN --mount=type=ssh,required=true true|RUN: --mount: there is no agent default
125|RUN --mount=type=cache,target=/c,mode=9 true|RUN: --mount: mode=9 is no mode
125|RUN --mount=type=cache,target=/c,uid=4294967295 true|RUN: --mount: uid=4294967295 is no id
125|RUN --mount=type=bind,target=. true|RUN: --mount=type=bind,target=.: target is /, which is
125|RUN --mount=type=tmpfs,target=//.. true|RUN: --mount=.*: target is /, which is
125|RUN --mount=type=secret,id=x,gid=-1 true|RUN: --mount: gid=-1 is no id
125|RUN --mount=type=tmpfs,"size=1m,uid=7",target=/t true|RUN: .* on 1m,uid=7: not a size
125|RUN --mount=type=tmpfs,target=/t,size=lots true|RUN: .* on lots: not a size
125|COPY --chmod=u=rwz file /x|COPY: --chmod=u=rwz is no mode
125|COPY --chmod=² file /x|COPY: --chmod=.* is no mode
125|RUN --mount=type=secret,id=x,required=true true|RUN: --mount: there is no secret x
125|EXPOSE abc|EXPOSE: abc is no port
125|HEALTHCHECK --interval=soon CMD x|HEALTHCHECK: --interval=soon is no duration
125|WORKDIR /etc/passwd|WORKDIR: /etc/passwd is not a directory
125|COPY [z-a]* /x/|COPY: .z-a..: no such file
125|ENV N=${NO:?${PATH/[z-a]/x}}|ENV: NO: /usr/local
125|HEALTHCHECK --interval=2562048h CMD x|HEALTHCHECK: --interval=2562048h is longer than
125|HEALTHCHECK --timeout=٣s CMD x|HEALTHCHECK: --timeout=.*s is no duration
125|HEALTHCHECK --retries=٣ CMD x|HEALTHCHECK: .* not a number
125|EXPOSE 5-1|EXPOSE: 5-1 is no port
125|ADD --checksum=sha256:0 file /x|ADD: --checksum is for what is fetched
125|FROM --platform=windows/x base:1|FROM: --platform, on windows/x: not .linux
CASES
  printf 'FROM base:1\nENV A=%s\n' "$(printf '${A:-%.0s' {1..3000})x$(printf '}%.0s' {1..3000})" \
    >Dockerfile
  fails 125 'build, on Dockerfile line 2, ENV: variables in variables, too deep' build -q .
  printf 'FROM base:1\nLABEL A=b\0c\n' >Dockerfile
  fails 125 'build, on Dockerfile line 2: there is a NUL in it' build -q .
  printf 'FROM base:1\nCOPY . /x/\n' >Dockerfile
  printf '[z-a]\n[\n[^z-a]\n' >.dockerignore
  built -q --platform linux .
  rm .dockerignore
  fails 125 '--platform, on windows/amd64: not ' build --platform windows/amd64 .
  fails 125 '--platform, on .x1b/x: not ' build --platform $'\e/x' .
  SOURCE_DATE_EPOCH=253402300800 fails 125 'SOURCE_DATE_EPOCH, on .*: that is after' build .
  head -c 2000000 /dev/zero >zeros
  run 125 build -q - <zeros
  like "$err" 'mydocker: build, on stdin: that is too long for a Dockerfile'
  run 125 build -q -f zeros .
  like "$err" 'mydocker: build, on zeros: that is too long'
  nothing_of_build
  SSH_AUTH_SOCK='' fails 125 'build, on --ssh default: there is no SSH_AUTH_SOCK' \
    build --ssh default .
  fails 125 'build, on --ssh x=file: file is no agent.s socket' build --ssh x=file .
  fails 125 'build, on nosuch: no such file or directory' build nosuch
  run 125 build ftp://x.example/y.tar
  like "$err" 'build, on ftp://x.example/y.tar: only git, http and https are fetched'
  fails 125 'build, on nosuch: no such file' build -f nosuch .
  fails 125 'build, on --target nosuch: no such stage' build --target nosuch .
  printf 'RUN x\n' >Dockerfile
  fails 125 "Dockerfile line 1, RUN: it can't stand before the first FROM" build .
}

test_build_interrupted() { # build: a build that is interrupted leaves nothing but its cache
  local signal
  need overlay
  make_image base:1
  printf '%s\n' 'FROM base:1' 'RUN echo made >/made' 'RUN echo sleeps; sleep 1000' >Dockerfile
  for signal in 2 15; do
    start build --network none .
    wait_for has err '[0-9.]+ sleeps'
    kill "-$signal" "$pid"
    ended $((128 + signal))
    nothing_of_build
  done
}

test_build_hostile() { # build: no link of the context, of a base image or of an archive leads out
  need overlay tar
  echo secret >secret
  mkdir outside context
  small_root root
  ln -s "$PWD/outside" root/out
  ln -s / root/top
  make_image base:1
  ln -s "$PWD/secret" context/link
  ln -s .. context/up
  ln -s "$PWD/outside" context/out
  printf 'FROM base:1\nCOPY link /x\n' >context/Dockerfile
  fails 125 'link: no such file or directory in the context' build -q context
  printf 'FROM base:1\nCOPY up/secret /x\n' >context/Dockerfile
  fails 125 'up/secret: no such file' build -q context
  printf 'FROM base:1\nCOPY ../secret /x\n' >context/Dockerfile
  fails 125 'secret: no such file' build -q context
  echo here >context/file
  printf '%s\n' 'FROM base:1' 'COPY file /out/' 'COPY file /top/../top/etc/new' 'WORKDIR /out/dir' \
    'RUN echo x >/out/y' 'ADD evil.tar /evil/' >context/Dockerfile
  "$PYTHON" -I - context/evil.tar "$PWD/outside" <<'PYTHON'
import io, sys, tarfile
with tarfile.open(sys.argv[1], "w") as file, tarfile.open(sys.argv[1] + "2", "w") as worse:
    link = tarfile.TarInfo("l")
    link.type, link.linkname = tarfile.SYMTYPE, sys.argv[2]
    file.addfile(link)
    worse.addfile(link)
    worse.addfile(tarfile.TarInfo("l/planted"), io.BytesIO())
    file.addfile(tarfile.TarInfo("/absolute"), io.BytesIO())
PYTHON
  built -t app:1 context
  is "$(ls outside)" ''
  run 0 run --rm --network none app:1 /bin/sh -c 'cat /etc/new; ls /evil'
  is "$out" $'here\nabsolute\nl'
  printf 'FROM base:1\nADD evil.tar2 /evil/\n' >context/Dockerfile
  fails 125 'ADD: unpack, on l/planted: no such file' build -q context
  is "$(ls outside)" ''
  tar -C outside -cPf context/evil.tar2 --transform 's,^,../../,' ../secret
  fails 125 'ADD: .*".." that leads out' build -q context
  for n in '../../../outside/x' "$PWD/outside/x" '..' 'file/../../../../outside/x'; do
    printf 'FROM base:1\nCOPY <<%s /x\n#!/bin/sh\n%s\n' "$n" "$n" >context/Dockerfile
    fails 125 "COPY: the here-document <<.* is to be a file" build -q context
    sed -i 's,COPY \(.*\) /x,RUN \1,' context/Dockerfile
    fails 125 "RUN: the here-document <<.* is to be a file" build -q --network none context
  done
  is "$(ls outside)" ''
  nothing_of_build
}

test_build_words() { # build: here-documents, variables, mounts and secrets are as docker has them
  need overlay
  make_image base:1
  echo sesame >token
  cat >Dockerfile <<'FILE'
# escape=`
FROM base:1
ARG A=x
ENV E=/usr/local/bin/tool.tar.gz
LABEL l1=${E#*/} l2=${E##*/} l3=${E%.*} l4=${E%%.*} l5=${E/tool/other} l6=${E//l/L} `
  # in between
  l7=${N:-${A}y} l8=${N-none} l9=${A:+"q r"} l10='$A' l11=`$A
RUN <<END
echo one >/one
echo $A >>/one
END
RUN <<-'END'
	#!/bin/sh
	echo "$0 $A" >/two
	END
RUN cat <<X >/three && cat <<Y >>/three
first
X
second
Y
COPY --chmod=600 <<expanded <<'raw' /docs/
$A ${E}
expanded
$A
raw
RUN --mount=type=secret,id=token,mode=0444 cat /run/secrets/token >/four
RUN --mount=type=secret,id=token,env=TOKEN echo $TOKEN >/five
RUN --mount=type=cache,target=/c,id=shared echo x >>/c/log; cat /c/log >/six
RUN --mount=type=cache,target=/d,id=shared echo y >>/d/log; cat /d/log >/seven
RUN --mount=target=/b,rw cat /b/token >/eight && echo changed >/b/token
FILE
  built --secret id=token,src=token -t app:1 .
  run 0 run --rm --network none app:1 /bin/sh -c 'cd / && cat one two three docs/expanded docs/raw \
    four five six seven eight; ls -d /c /d /b /run || :'
  is "$out" "$(printf '%s\n' one x '/dev/pipes/END x' first second 'x /usr/local/bin/tool.tar.gz' \
    '$A' sesame sesame x x y sesame)"
  is "$(<token)" sesame
  run 0 inspect -f '{{json .Config.Labels}}' app:1
  is "$out" \
    '{"l1": "usr/local/bin/tool.tar.gz", "l2": "tool.tar.gz", "l3": "/usr/local/bin/tool.tar", '"$(
    )"'"l4": "/usr/local/bin/tool", "l5": "/usr/local/bin/other.tar.gz", '"$(
    )"'"l6": "/usr/LocaL/bin/tooL.tar.gz", "l7": "xy", "l8": "none", "l9": "q r", "l10": "$A", '"$(
    )"'"l11": "$A"}'
  grep -rqF sesame state/layers state/built state/volumes || fail 'the layers have it'
  is "$(grep -rlF sesame state/built state/volumes || :)" ''
}

test_build_sources() { # build: the context is a directory, a tar or nothing, the Dockerfile
  # anywhere
  local first
  need overlay
  make_image base:1
  mkdir context
  echo kept | tee context/{a,b,ignored} >context/c
  echo ignored >context/.dockerignore
  printf '%s\n' 'FROM base:1' 'COPY . /all/' >context/Dockerfile
  built -q context
  first=$out
  built -q -f - context <context/Dockerfile
  is "$out" "$first"
  tar -C context -czf context.tar.gz .
  built -q context.tar.gz
  is "$out" "$first"
  built -q - <context.tar.gz
  is "$out" "$first"
  mv context/Dockerfile other
  echo '[ab]' >other.dockerignore
  built -q -t other:1 -f other context
  run 0 run --rm --network none other:1 /bin/sh -c 'echo /all/* /all/.d*'
  is "$out" '/all/c /all/ignored /all/.dockerignore'
  run 0 build -q - <<<$'FROM base:1\nENV A=b'
  like "$out" '^sha256:'
}

test_build_reproducible() { # build: with SOURCE_DATE_EPOCH the same context has the same ids,
  # anywhere
  need overlay
  local ids=()
  small_root root
  find root -exec touch -h -d @1500000000 {} +
  tar -cf root.tar --sort=name -C root .
  printf '%s\n' 'FROM base:1' 'RUN echo new >/new; mkdir /dir' 'COPY file /etc/' 'WORKDIR /w' \
    >Dockerfile
  for n in 1 2; do
    export MYDOCKER_ROOT=$PWD/state$n SOURCE_DATE_EPOCH=1700000000
    echo content >file
    if ((n == 1)); then
      run 0 import root.tar base:1
      run 0 save -o base.tar base:1
    else
      run 0 load -i base.tar
    fi
    built -q -t app:1 .
    ids+=("$out")
    rm file
  done
  is "${ids[0]}" "${ids[1]}"
  run 0 inspect -f '{{.Created}}' app:1
  is "$out" 2023-11-14T22:13:20Z
  run 0 run --rm --network none app:1 \
    /bin/sh -c 'ls -ln --full-time /new /etc/file 2>/dev/null || :'
}

test_build_url() { # build: ADD fetches by http, and --checksum says what it must be
  need overlay
  local sum
  make_image base:1
  mkdir web context
  echo payload >web/file.txt
  sum=$(sha256sum web/file.txt)
  "$PYTHON" -I -c '
import functools, http.server, sys
serve = functools.partial(http.server.SimpleHTTPRequestHandler, directory="web")
server = http.server.HTTPServer(("127.0.0.1", 0), serve)
print(server.server_port, flush=True)
server.serve_forever()' >port 2>log &
  wait_for test -s port
  printf '%s\n' 'FROM base:1' \
    "ADD --checksum=sha256:${sum%% *} http://127.0.0.1:$(<port)/file.txt /x/" >context/Dockerfile
  built -q -t app:1 context
  run 0 run --rm --network none app:1 cat /x/file.txt
  is "$out" payload
  echo changed >web/file.txt
  fails 125 'its sha256 is' build -q context
  sed -i 's/file.txt/nosuch/' context/Dockerfile
  fails 125 'the server says 404' build -q context
}

test_build_modes() { # build: COPY --chmod takes chmod's words, and means by them what chmod does
  local mode want='' n=0
  need overlay
  make_image base:1
  mkdir -p context/d
  touch context/{plain,runs}
  chmod 640 context/plain
  chmod 4751 context/runs
  chmod 2750 context/d
  echo FROM base:1 >Dockerfile
  for mode in 04755 00644 u=rwX,go=rX +x a-rwx,u+s g=u-w,o= -w o+t,ug=o =rw u+rw+x,o-x+X; do
    echo "COPY --chmod=$mode . /m/$((++n))/" >>Dockerfile
    cp -a context changed
    chmod -- "$mode" changed/{plain,runs,d}
    want+=$(cd changed && stat -c '%A %n' d plain runs)$'\n'
    rm -rf changed
  done
  built -q -t app:1 -f Dockerfile context
  run 0 run --rm --network none app:1 /bin/sh -c \
    'for i in 1 2 3 4 5 6 7 8 9 10; do cd /m/$i && ls -dln d plain runs; done'
  is "$(sed -E 's/[.+]? .* / /' <<<"$out")" "${want%$'\n'}"
}

test_build_ssh() { # build: RUN may ask an agent of --ssh to list keys and to sign, and no more; it
  # is nowhere in the image
  need overlay ssh-agent ssh-add ssh-keygen
  eval "$(ssh-agent -a "$PWD/agent.sock")"
  trap 'kill "$SSH_AGENT_PID"' EXIT
  ssh-keygen -q -t ed25519 -N '' -C my-key -f key
  ssh-add -q key
  small_root root
  with_libraries "$(command -v ssh-add)" root ssh-add
  cp key.pub root/
  make_image base:1
  cat >Dockerfile <<'FILE'
FROM base:1
RUN --mount=type=ssh ssh-add -L && ssh-add -T /key.pub && ! ssh-add -D && ! ssh-add -x </dev/null
RUN --mount=type=ssh --mount=type=ssh,id=other,target=/tmp/a,uid=1234,mode=0604 \
    ls -ln $SSH_AUTH_SOCK /tmp/a
RUN --mount=type=ssh,id=nosuch echo "<$SSH_AUTH_SOCK>"
USER user
RUN --mount=type=ssh,uid=1234 ssh-add -L
RUN ls -R /run /tmp 2>&1 || :
FILE
  built -t app:1 --ssh default --ssh "other=$PWD/agent.sock" .
  is "$(grep -cE '[0-9.]+ ssh-ed25519 .* my-key' <<<"$err")" 2
  like "$err" '[0-9.]+ srw------- +1 0 +0 .* /run/buildkit/ssh_agent.0'
  like "$err" '[0-9.]+ srw----r-- +1 1234 +0 .* /tmp/a'
  like "$err" '[0-9.]+ <>'
  unlike "${err##*RUN ls -R}" 'ssh_agent|a$'
  like "$(ssh-add -l)" my-key
  run 0 inspect app:1
  unlike "$out" 'SSH_AUTH_SOCK=|agent.sock'
  printf 'FROM base:1\nRUN --mount=type=ssh ls $SSH_AUTH_SOCK; sleep 1000\n' >Dockerfile
  start build --network none --ssh default .
  wait_for has err '#2 [0-9.]+ /run/buildkit/ssh_agent.0'
  agents=$(children "$pid")
  is "$(wc -w <<<"$agents")" 2
  kill -9 "$pid"
  # shellcheck disable=SC2086 # two words
  wait_for gone $agents
  run 0 ps -q
  built -q - <<<'FROM base:1'
  nothing_of_build
}

test_build_files() { # build: a file that is named has an end, what is none is written into, and a
  # line without an end is shown in pieces
  need overlay mknod
  make_image base:1
  ulimit -v 4000000 # what reads on and on fails here, not the host
  echo FROM base:1 >Dockerfile
  mknod device c 1 3
  ln -s device link
  for n in device link; do
    built -q --iidfile "$n" .
    is "$(stat -c %F,%N device link)" "$(printf '%s\n' "character special file,'device'" \
      "symbolic link,'link' -> 'device'")"
  done
  fails 125 '--iidfile, on nosuch/id: no such file' build -q --iidfile nosuch/id .
  [[ ! -e nosuch ]]
  fails 125 '--iidfile, on .: is a directory' build -q --iidfile . .
  ln -s /proc/self/fd/2 said # as /dev/stderr is one
  built -q --iidfile said .
  like "$err" '^sha256:'
  ln -s id far
  built -q --iidfile far .
  is "$(<id),$(readlink far)" "$out,id"
  fails 125 '--secret id=x,src=/dev/zero: /dev/zero is longer than' \
    build --secret id=x,src=/dev/zero .
  head -c 2000000 /dev/zero | tr '\0' x >xs
  printf 'FROM base:1\nCOPY xs /\nRUN cat /xs\n' >Dockerfile
  built .
  (($(grep -cE '^#3 [0-9.]+ x+$' <<<"$err") > 4))
}

test_named_documents() { # cli: no file that is named is read without an end
  local option
  own_state
  ulimit -v 4000000
  for option in --env-file --label-file --security-opt=seccomp; do
    fails 125 "${option%=*}, on /dev/zero: file too large" run "$option=/dev/zero" /bin/true
  done
  mkdir bundle
  ln -s /dev/zero bundle/config.json
  fails 125 'on .*/bundle/config.json: file too large' create --bundle bundle t
  run 0 run -d --name t --network none /bin/sleep 1000
  fails 125 '--resources, on /dev/zero: file too large' update -r /dev/zero t
  run 125 update -r - t </dev/zero
  like "$err" '--resources, on -: file too large'
  run 0 rm -f t
  rm bundle/config.json
  "$PYTHON" -I -c 'print("[" * 5000000)' >bundle/config.json
  fails 125 'on .*/bundle/config.json: file too large' create --bundle bundle t
}

# git_server: serve the repositories in ./repos at git://$reg, and by the old, plain http at $plain.
git_server() {
  "$PYTHON" -I - >ports 2>log <<'PYTHON' &
import functools, http.server, socketserver, subprocess, threading
class Git(socketserver.BaseRequestHandler):
    def handle(self):
        subprocess.run(["git", "daemon", "--inetd", "--export-all", "--base-path=repos", "repos"],
                       stdin=self.request, stdout=self.request)
class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words):
        pass
git = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Git)
web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory="repos"))
print("git=127.0.0.1:%d plain=127.0.0.1:%d" % (git.server_address[1], web.server_port), flush=True)
threading.Thread(target=web.serve_forever, daemon=True).start()
git.serve_forever()
PYTHON
  wait_for test -s ports
  eval "$(<ports)"
}

commit_in() { # commit_in DIR: all that is in there
  git -C "$1" add -A
  git -C "$1" -c user.name=x -c user.email=x@x.example commit -qm commit
}

test_build_git() { # build: the context, or what ADD adds, is a repository's branch, tag or commit,
  # and what is in that runs nothing
  local first git plain
  need overlay git
  export GIT_CONFIG_GLOBAL=/dev/null
  make_image base:1
  git init -q -b main repos/part.git
  echo part >repos/part.git/piece
  commit_in repos/part.git
  git init -q -b main repos/app.git
  mkdir repos/app.git/inner
  printf 'FROM base:1\nCOPY . /all/\nRUN cd /all && echo .[a-z]* * */* && cat file\n' |
    tee repos/app.git/Dockerfile >repos/app.git/inner/Containerfile
  echo first | tee repos/app.git/file >repos/app.git/inner/file
  git -C repos/app.git -c protocol.file.allow=always submodule -q add ../part.git part
  commit_in repos/app.git
  first=$(git -C repos/app.git rev-parse HEAD)
  git -C repos/app.git tag v1
  echo second >repos/app.git/file
  commit_in repos/app.git
  git -C repos/part.git update-server-info
  git_server
  built -t app:1 "git://$git/app.git"
  like "$err" '#1 \[internal\] load git://'
  is "$(sed -n 's/^#4 [0-9.]* //p' <<<"$err")" \
    $'.gitmodules Dockerfile file inner part inner/Containerfile inner/file part/piece\nsecond'
  built "git://$git/app.git#v1"
  like "$err" '[0-9.]+ first'
  built "git://$git/app.git#$first:inner"
  like "$err" '[0-9.]+ first'
  mkdir hooks
  printf '#!/bin/sh\ntouch %q\n' "$PWD/ran" >hooks/post-checkout
  chmod 755 hooks/post-checkout
  printf '[core]\nhooksPath = %s\n' "$PWD/hooks" >.gitconfig
  cat >other <<FILE
FROM base:1
ADD git://$git/app.git#v1 /x/
ADD --keep-git-dir=true git://$git/app.git#main:inner/.. /y/
ADD http://$plain/part.git/.git#main /z/
RUN cat /x/file /y/file /z/piece && ls -d /?/.git /?/part/.git 2>/dev/null || :
FILE
  HOME=$PWD GIT_CONFIG_GLOBAL=$PWD/.gitconfig built -f other -t app:1 root
  is "$(sed -n 's/^#5 [0-9.]* //p' <<<"$err")" $'first\nsecond\npart\n/y/.git\n/y/part/.git'
  [[ ! -e ran ]]
  run 125 build "git://$git/app.git#nosuch"
  like "$err" "mydocker: build, on git://$git/app.git#nosuch: git fetch: fatal: .*nosuch"
  run 125 build "git://$git/app.git#:../../../../etc"
  like "$err" "mydocker: build, on git://$git/app.git#:.*: no such file or directory"
  run 125 build "http://me:sesame@$plain/nosuch.git"
  like "$err" "mydocker: build, on http://me:\*\*\*@$plain/nosuch.git: git fetch: fatal: "
  unlike "$err" sesame
  is "$(grep -rl sesame state)" ''
  echo 'FROM base:1' >repos/file
  built "http://$plain/file"
  tar -C repos/app.git -cf repos/context.tar Dockerfile file inner
  built "http://$plain/context.tar"
  like "$err" '[0-9.]+ second'
  run 125 build "http://$plain/nosuch"
  like "$err" 'mydocker: fetch, on .*: the server says 404'
  nothing_of_build
  mydocker=(env PATH=/nosuch "${mydocker[@]}")
  run 125 build "git://$git/app.git"
  like "$err" "mydocker: build, on git://$git/app.git: there is no git on this host"
}

# build_context DIR: files as projects have them, for the Dockerfiles of build_files.
build_context() {
  mkdir -p "$1"/{src/deep/er,conf.d,'with space',empty,node_modules/x,rootfs/{usr/bin,lib,etc}}
  (
    cd "$1" || exit
    printf '{"name": "app"}\n' | tee package.json >package-lock.json
    echo 'print("app")' >src/app.py
    echo module >src/deep/er/mod.py
    for file in a b c; do echo "$file=1" >"conf.d/$file.conf"; done
    echo notes >conf.d/README.md
    echo spaced >'with space/two words.txt'
    echo 'ä' >'ünïcode.txt'
    echo dependency >node_modules/x/index.js
    printf '#!/bin/sh\necho entry "$@"\n' >entrypoint.sh
    chmod 755 entrypoint.sh
    chmod 700 conf.d
    ln -s app.py src/link.py
    ln -s /etc/passwd src/absolute
    ln -s missing src/dangling
    ln src/app.py src/hard.py
    echo tool >rootfs/usr/bin/tool
    echo lib >rootfs/lib/libx.so
    echo motd >rootfs/etc/motd
    echo secret >.env
    printf '%s\n' '# what needn'"'"'t be there' '*.md' '!keep.md' 'node_modules' '.env' '**/*.pyc' \
      'ignored/**' '!ignored/but/this' '/cache?' >.dockerignore
    mkdir -p ignored/but/this ignored/other cache1 sub/cache1
    echo this | tee ignored/but/this/file ignored/other/file sub/cache1/x >cache1/x
    echo kept | tee keep.md >drop.md
    touch src/a.pyc src/deep/b.pyc
    truncate -s 1M sparse
    tar -czf src.tar.gz --owner=7 --group=8 -C src deep app.py
    tar -cf plain.tar -C conf.d a.conf
    find . -exec touch -h -d @1600000000 {} +
  )
}

# build_files: Dockerfiles shaped like the real world's, each behind a line "=== NAME".
build_files() {
  cat <<'FILES'
=== python-app
FROM base:1
ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=off \
    # a comment in between
    APP_HOME=/srv/app
WORKDIR $APP_HOME
COPY package.json package-lock.json ./
RUN mkdir -p /var/lib/app && cat package.json > /var/lib/app/installed && chmod 750 /var/lib/app
COPY src/ ./src/
EXPOSE 8000 9000/udp
CMD ["python", "src/app.py"]
=== node-app
FROM base:1
WORKDIR /usr/src/app
COPY package*.json ./
RUN mkdir node_modules && echo built > node_modules/built
COPY . .
USER user
ENTRYPOINT ["./entrypoint.sh"]
CMD ["start"]
=== go-multistage
ARG BASE=base
FROM ${BASE}:1 AS builder
WORKDIR /build
COPY src src
RUN mkdir out && cat src/app.py > out/app && chmod 755 out/app
FROM scratch AS unused
COPY src /nowhere
FROM scratch
COPY --from=builder /build/out/app /app
COPY --from=0 /etc/passwd /etc/passwd
USER 65532:65532
ENTRYPOINT ["/app"]
=== arg-in-from
ARG TAG=1
ARG NAME=base
FROM $NAME:$TAG AS first
ARG TAG
ARG OTHER=${TAG}-other
RUN echo "$TAG $OTHER" > /args
FROM first
ARG OTHER=new
RUN echo "$OTHER" > /args2
=== chown-by-name
FROM base:1
COPY --chown=user:root conf.d /conf/
COPY --chown=user src/app.py /home/user/app/
COPY --chown=12:34 package.json /n/
COPY --chown=user:user --chmod=600 package.json /m/p.json
=== wildcards
FROM base:1
COPY conf.d/*.conf /etc/conf.d/
COPY conf.d/?.con[f] /etc/q/
COPY src/*.py entrypoint.sh /py/
=== linked-directories
FROM base:1
RUN mkdir -p /data/real /srv && ln -s /data/real /srv/link && ln -s ../data /srv/up
COPY package.json /srv/link/
COPY src /srv/link/src
COPY conf.d/a.conf /srv/up/real/
WORKDIR /srv/link
COPY conf.d/b.conf .
=== copy-contents
FROM base:1
WORKDIR /w
COPY src/ .
COPY src/deep ./deep2
COPY empty/ ./empty/
=== dockerignore
FROM base:1
COPY . /all/
=== workdir-chain
FROM base:1
WORKDIR /a
WORKDIR b
COPY package.json .
WORKDIR ../c/./d
ENV SUB=e
WORKDIR $SUB/${NONE:-f}
RUN pwd > pwd
=== unicode
FROM base:1
COPY ünïcode.txt /tmp/übung/
COPY ["with space/two words.txt", "/spaced dir/"]
LABEL "größe"="zwölf" plain=yes
=== labels
FROM base:1
LABEL a=1 b="two words" c='single $A'
LABEL old style label
LABEL multi="one \
two"
MAINTAINER Some One <one@example.com>
=== env-forms
FROM base:1
ENV A=1 B="x  y" C=x\ y D='$A'
ENV E=$A F=${A}b G=${Z:-dflt} H=${A:+alt} I="${A}" J=\$A
ENV K  legacy value with  spaces
ENV L=${B} M="a'b"
RUN echo "$A|$B|$C|$D|$E|$F|$G|$H|$I|$J|$K|$L|$M" > /env
=== shell
FROM base:1
SHELL ["/bin/sh", "-ec"]
RUN echo one > /one; \
    echo two >> /one
ENTRYPOINT ["sh"]
=== entrypoint-resets
FROM base:1
CMD ["one"]
ENTRYPOINT ["/bin/sh"]
CMD ["two"]
=== volume-user
FROM base:1
RUN mkdir /data /more "/json list"
VOLUME /data /more
VOLUME ["/json list"]
USER 1234:5678
RUN echo mine > /tmp/mine
STOPSIGNAL SIGQUIT
=== healthcheck
FROM base:1
HEALTHCHECK --interval=5m --timeout=3s --start-period=1m --retries=4 CMD cat /etc/passwd || exit 1
=== add-archives
FROM base:1
ADD src.tar.gz /tarred/
ADD plain.tar /tarred/more/
COPY plain.tar /untouched.tar
ADD package.json /added/
=== deletions
FROM base:1
RUN mkdir -p /d/x /e && echo 1 > /d/x/1 && echo 2 > /d/2 && echo 3 > /e/3
RUN rm -r /d/x /e/3 && mkdir /d/x && echo new > /d/x/new
RUN rm -r /e && chmod 700 /d && mv /d/2 /d/3
=== cache-mount
FROM base:1
RUN mkdir /tmp/pkg
RUN --mount=type=cache,target=/tmp/pkg echo x > /tmp/pkg/x && cat /tmp/pkg/x > /got
RUN --mount=type=tmpfs,target=/scratch touch /scratch/x && ls /scratch > /listing
=== bind-mount
FROM base:1 AS tools
RUN mkdir /tools && echo tool > /tools/tool
FROM base:1
RUN mkdir /tmp/tools
RUN --mount=type=bind,from=tools,source=/tools,target=/tmp/tools cat /tmp/tools/tool > /used
=== links-and-modes
FROM base:1
RUN ln -s /etc/passwd /link && ln /etc/group /hard && mkdir -m 1777 /sticky && touch /f && \
    chmod 2755 /f
COPY --from=base:1 /tmp /tmp2
COPY src/link.py /followed
=== rootfs-overlay
FROM base:1
COPY rootfs /
COPY rootfs/etc /etc
=== comments
# syntax=docker/dockerfile:1

# a comment
FROM base:1
# another
RUN echo a \
# in the middle

  && echo b > /ab
    COPY package.json /indented
run echo lower > /case
=== escape
# escape=`
FROM base:1
RUN echo back\\slash > /e && `
    echo two >> /e
=== scratch-only
FROM scratch
COPY package.json /a/b/
COPY src/app.py /
WORKDIR /w
COPY src/app.py .
ENV A=b
CMD ["/a"]
=== onbuild-child
FROM onbuild:1
RUN echo child > /child
FILES
  local i
  printf '=== many-instructions\nFROM base:1\n'
  for i in {1..30}; do
    printf 'ENV N%d=%d\nLABEL l%d=%d\nCOPY package.json /many/%d\n' "$i" "$i" "$i" "$i" "$i"
  done
  echo 'RUN echo $N1$N30 > /many/all'
}

# like_peer NAME: our image of that name and podman's hold the same tree and the same config.
like_peer() {
  "$PYTHON" -I - "$PWD/ours/$1" "$PWD/theirs/$1" <<'PYTHON'
import hashlib, json, os, stat, sys

def tree(top):
    found, top = {}, os.path.realpath(top)
    for folder, names, files in os.walk(top):
        for name in [folder] + [os.path.join(folder, name) for name in names + files]:
            info, what = os.lstat(name), ""
            if stat.S_ISREG(info.st_mode):
                with open(name, "rb") as file:
                    what = info.st_size, hashlib.sha256(file.read()).hexdigest()
            elif stat.S_ISLNK(info.st_mode):
                what = os.readlink(name)
            xattrs = {key: os.getxattr(name, key, follow_symlinks=False).hex()
                      for key in os.listxattr(name, follow_symlinks=False)
                      if key.startswith(("user.", "security.capability"))}
            found[os.path.relpath(name, top)] = (
                oct(info.st_mode), info.st_uid, info.st_gid, info.st_rdev, what, xattrs)
    return found

def config(path):
    with open(path) as file:
        value = json.load(file)
    known = ("Env Cmd Entrypoint User WorkingDir Labels ExposedPorts Volumes Healthcheck "
             "StopSignal Shell OnBuild").split()
    found = {key: value.get(key) or None for key in known}
    found["Env"] = sorted(found["Env"] or [])
    found["Labels"] = {key: text for key, text in (found["Labels"] or {}).items()
                       if not key.startswith("io.buildah")}
    return found

bad = 0
for what, read, end in (("tree", tree, "/root"), ("config", config, "/config")):
    ours, theirs = (read(top + end) for top in sys.argv[1:])
    for key in sorted({*ours, *theirs}):
        if ours.get(key) != theirs.get(key):
            bad = 1
            print(what, repr(key), "\n  ours  ", ours.get(key), "\n  theirs", theirs.get(key))
sys.exit(bad)
PYTHON
}

compared() { # compared NAME: mount both, ours loaded by podman, and compare
  local name=$1 got=0
  mkdir -p "ours/$name" "theirs/$name"
  "${mydocker[@]}" save -o ours.tar "$name:1"
  "${podman[@]}" load -q -i ours.tar >loaded
  ln -s "$("${podman[@]}" image mount "docker.io/library/$name:1")" "ours/$name/root"
  ln -s "$("${podman[@]}" image mount "localhost/$name:1")" "theirs/$name/root"
  "${podman[@]}" image inspect -f '{{json .Config}}' "docker.io/library/$name:1" \
    >"ours/$name/config"
  "${podman[@]}" image inspect -f '{{json .Config}}' "localhost/$name:1" >"theirs/$name/config"
  like_peer "$name" >differences || got=1
  sed "s/^/$name: /" differences >&2
  "${podman[@]}" image umount -f "docker.io/library/$name:1" "localhost/$name:1" >umounted
  return "$got"
}

test_build_peers() { # build: trees and configs are podman's, for Dockerfiles shaped like the real
  # world's
  local name line different=''
  need overlay
  peer_podman
  podman=("${podman[@]/vfs/overlay}")
  small_root root
  mkdir root/{dev,proc,run,sys} # what the two need for mounts, they needn't make
  touch root/etc/{hosts,hostname,resolv.conf}
  make_image base:1
  tar -C root -c . | "${podman[@]}" import -q - localhost/base:1
  build_context context
  mkdir files ours theirs
  while IFS= read -r line; do
    if [[ $line == '=== '* ]]; then
      name=${line#=== }
    else
      printf '%s\n' "$line" >>"files/$name"
    fi
  done < <(build_files)
  printf '%s\n' 'FROM base:1' 'ONBUILD COPY package.json /onbuild/' \
    'ONBUILD RUN echo trigger > /triggered' >files/onbuild
  for name in onbuild $(cd files && printf '%s\n' * | grep -vx onbuild); do
    run 0 build -q --network none -f "files/$name" -t "$name:1" context
    "${podman[@]}" build -q --format docker --isolation chroot -f "files/$name" \
      -t "localhost/$name:1" context >id 2>err || fail "podman: $name: $(<err)"
    compared "$name" || different+=" $name"
  done
  is "$different" ''
}

test_build_hidden() { # build: what .dockerignore hides isn't copied by its name either, nor by a
  # pattern, a link or a mount, though other lines have a !; a pattern's dangling link is no success
  local words
  need overlay
  make_image base:1
  mkdir -p context/d/e
  touch context/{a.log,keep.log,secret,d/k,d/e/keep.log}
  ln -s secret context/link
  ln -s d context/folder
  printf '%s\n' '*.log' secret d '!keep.log' '!d/e/keep.log' >context/.dockerignore
  while IFS= read -r words; do
    printf 'FROM base:1\n%s\n' "$words" >context/Dockerfile
    fails 125 'line 2, .*: no such file or directory' build -q --network none context
  done <<'CASES'
COPY secret /x
COPY secre? /x
ADD d/k /x
COPY link /x
COPY folder/k /x
COPY a.log keep.log /x/
RUN --mount=type=bind,source=secret,target=/x true
CASES
  printf '%s\n' 'FROM base:1' 'COPY *.log d folder /x/' 'RUN cd /x && ls . e' >context/Dockerfile
  run 0 build --progress plain --network none context
  like "$err" $'keep.log\n.*keep.log'
  unlike "$err" 'a.log'
  printf '*\n' >context/.dockerignore
  printf 'FROM base:1\nCOPY . /x/\n' >context/Dockerfile
  built -q context
  rm context/.dockerignore
  ln -s nowhere context/d/dangling
  printf 'FROM base:1\nCOPY d/* /x/\n' >context/Dockerfile
  fails 125 'COPY: copy, on d/dangling: that link leads to nothing' build -q context
  nothing_of_build
}

test_build_cache_kept() { # build: the cache of a RUN isn't pruned while that uses it
  need overlay
  make_image base:1
  printf '%s\n' 'FROM base:1' \
    $'RUN --mount=type=cache,target=/c echo kept >/c/a; echo begun; \\' \
    'until [ -e /c/go ]; do sleep 0.05; done; echo is $(cat /c/a)' >Dockerfile
  start build --network none --no-cache --progress plain .
  wait_for has err '[0-9.]+ begun'
  run 0 volume prune -af
  is "$out" ''
  touch "$(find state/volumes -name _data)/go"
  ended 0
  has err 'is kept'
  run 0 volume prune -af
  like "$out" '^[0-9a-f]{64}$'
  nothing_of_build
}

test_build_odd() { # build: an empty line that goes on, tabs, a NUL in a secret, hard links to what
  # another source replaces, and stages without an end
  local words
  need overlay
  small_root root
  ln -s loop root/loop
  make_image base:1
  mkdir a b
  echo one >a/x
  ln a/x b/y
  echo two >b/x
  printf '%s\n' 'FROM base:1' 'COPY a/ b/ /x/' $'ONBUILD\tCOPY\t<<END /put' off END \
    $'HEALTHCHECK CMD\ttrue' $'\\' >Dockerfile
  built -q -t app:1 .
  run 0 run --rm --network none app:1 /bin/sh -c 'cat /x/x /x/y'
  is "$out" $'two\none'
  printf 'FROM app:1\n\\\n\\\n' >Dockerfile
  built -q -t app:2 .
  run 0 run --rm --network none app:2 /bin/sh -c 'cat /put'
  is "$out" off
  printf 'FROM base:1\nRUN --mount=type=secret,id=s,env=S true\n' >Dockerfile
  printf 'a\0b' >secret
  fails 125 'line 2, RUN: --mount: a NUL is in the secret s' \
    build -q --network none --secret id=s,src=secret .
  ln -s loop loop
  for words in 'COPY loop /x' 'COPY loop/y /x' 'COPY --from=app:2 /loop /x' 'WORKDIR /loop/x'; do
    printf 'FROM app:2\n%s\n' "$words" >Dockerfile
    fails 125 'line 2, ([A-Z]*): \1, on /?loop[^ ]*: too many levels of symbolic links' build -q .
  done
  printf 'FROM base:1 AS s0\n' >Dockerfile
  for ((n = 1; n < 3000; n++)); do echo "FROM s$((n - 1)) AS s$n"; done >>Dockerfile
  fails 125 'build: stages on stages, too deep' build -q .
  nothing_of_build
}

# ── Networks ─────────────────────────────────────────────────────────────────

# A test of networks has a host of its own, and a LAN: network namespaces, which go with the test.
# "$1"s below are their names; "${host[@]}" in front of a command runs it in the one called host.
namespace() { # namespace NAME: make one
  local fd
  rm -f ready
  unshare --net bash -c 'echo >ready; exec sleep 1000' &
  wait_for test -s ready
  exec {fd}<"/proc/$!/ns/net"
  kill "$!"
  eval "$1=(nsenter --net=/proc/self/fd/$fd) $1_fd=/proc/self/fd/$fd"
  nsenter --net="/proc/self/fd/$fd" ip link set lo up
}

cable() { # cable NAME DEVICE ADDRESS OTHER-NAME DEVICE ADDRESS: lay one between two
  local one=$1_fd other=$4_fd
  nsenter --net="${!one}" ip link add "$2" type veth peer name "$5" netns "${!other}"
  nsenter --net="${!one}" ip addr add "$3" dev "$2"
  nsenter --net="${!other}" ip addr add "$6" dev "$5"
  nsenter --net="${!one}" ip link set "$2" up
  nsenter --net="${!other}" ip link set "$5" up
}

own_networks() { # from here on mydocker runs on a host with a LAN
  need unshare nsenter ip nf_tables
  own_state
  unset MYDOCKER_NETWORK
  make_lan
  mydocker=("${host[@]}" "${program[@]}")
}

make_lan() { # host is 10.77.0.1, lan 10.77.0.2; ./net.py asks and answers
  namespace host
  namespace lan
  cable host lan0 10.77.0.1/24 lan eth0 10.77.0.2/24
  "${host[@]}" bash -c 'echo 1 >/proc/sys/net/ipv4/ip_forward
    echo 1 >/proc/sys/net/ipv4/conf/all/rp_filter' # strict: what fails it with these, fails nowhere
  cat >net.py <<'PYTHON'
import hashlib, os, socket, sys, threading, time

def kind(protocol):
    return socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM

def listen(protocol, port, address="0.0.0.0"):
    server = socket.socket(socket.AF_INET, kind(protocol))
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((address, port))
    protocol == "tcp" and server.listen(50)
    return server

def serve_tcp(server):  # says who asks, and what; or takes many bytes, with their sum or without
    while True:
        client, address = server.accept()
        word = client.recv(4096)
        if word.startswith(b"take "):
            count, digest = int(word.split()[1]), hashlib.sha256()
            client.sendall(b"go")
            while count:
                data = client.recv(min(1 << 18, count))
                count -= len(data)
                digest.update(data)
            client.sendall(digest.hexdigest().encode())
        elif word.startswith(b"drink"):
            while client.recv(1 << 18):
                pass
        else:
            client.sendall(b"tcp %s %s" % (address[0].encode(), word))
        client.close()

def serve_udp(server):
    while True:
        word, address = server.recvfrom(4096)
        server.sendto(b"udp %s %s" % (address[0].encode(), word), address)

def serve_dns(server):  # every name is 192.0.2.80
    while True:
        query, address = server.recvfrom(4096)
        end = query.index(b"\0", 12) + 5
        is_a = query[end - 4:end - 2] == b"\0\1"
        count = b"\0\1" if is_a else b"\0\0"
        answer = query[:2] + b"\x81\x80\0\1" + count + bytes(4) + query[12:end]
        if is_a:
            answer += b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4\xc0\0\2\x50"
        server.sendto(answer, address)

def ask(seconds, protocol, address, port, word="hello", source=None):
    client = socket.socket(socket.AF_INET, kind(protocol))
    client.settimeout(float(seconds))
    try:
        source and client.bind((source, 0))
        client.connect((address, int(port)))
        client.send(word.encode())
        if word.startswith("take "):
            count, digest = int(word.split()[1]), hashlib.sha256()
            block = os.urandom(1 << 20)
            client.settimeout(60)
            client.recv(2)
            for number in range(count >> 20):
                data = number.to_bytes(8, "big") + block[8:]
                digest.update(data)
                client.sendall(data)
            return "same" if client.recv(64).decode() == digest.hexdigest() else "different"
        if word == "drink":  # 4 GB, answers MB/s
            begin, block = time.monotonic(), bytes(1 << 20)
            for _ in range(4096):
                client.sendall(block)
            return "%d" % ((4096 << 20) / 1e6 / (time.monotonic() - begin))
        return client.recv(4096).decode()
    except OSError as error:
        return "refused" if isinstance(error, ConnectionRefusedError) else "nothing"

what, *words = sys.argv[1:]
if what == "ask":
    print(ask(*words))
else:  # serve PROTOCOL:PORT[:ADDRESS]...
    for word in words:
        name, port, *address = word.split(":")
        serve = globals()["serve_" + name]
        server = listen("tcp" if name == "tcp" else "udp", int(port), *address)
        threading.Thread(target=serve, args=(server,), daemon=True).start()
    open(what, "w").close()
    time.sleep(1000)
PYTHON
}

serve() { # serve NAME PREFIX... -- WHAT...: start a server with a command before it,
  # wait until it's ready
  local - name=$1 prefix=()
  set +x
  shift
  while [[ $1 != -- ]]; do
    prefix+=("$1")
    shift
  done
  "${prefix[@]}" "$PYTHON" -I "$PWD/net.py" "$PWD/$name" "${@:2}" >"$name.id" 2>"$name.err" &
  wait_for test -e "$name"
}

says() { # says ANSWER COMMAND... -- PROTOCOL ADDRESS PORT [WORD]: what is asked by way of a command
  # is answered so
  local - want=$1 prefix=() seconds=5
  set +x
  [[ $want != nothing ]] || seconds=0.3
  shift
  while [[ $1 != -- ]]; do
    prefix+=("$1")
    shift
  done
  is "$("${prefix[@]}" "$PYTHON" -I "$PWD/net.py" ask "$seconds" "${@:2}")" "$want"
}

links() { # the host's links but lo and its cable
  "${host[@]}" ip -o link | sed 's/^[0-9]*: //; s/[:@].*//' | grep -vxE 'lo|lan0' | sort |
    tr '\n' ' '
}

links_are() { # links_are LINKS: the kernel removes a container's a moment after its last process
  [[ $(links) == "$1" ]]
}

test_network_commands() { # net: networks are made, listed as in the tutorial, shown and removed
  own_networks
  "${host[@]}" bash -c 'echo 0 >/proc/sys/net/ipv4/ip_forward'
  run 0 network create --driver bridge --subnet 10.9.1.0/24 n1
  is "$out" n1
  like "$err" '^mydocker: warning: net.ipv4.ip_forward was 0'
  run 0 network create --internal --mtu 1400 n2
  is "$err" ''
  run 0 network list
  is "$out" 'NAME   IpRange         Driver
n1     10.9.1.1/24     bridge
n2     172.17.0.1/16   bridge'
  is "$(links)" 'n1 n2 '
  like "$("${host[@]}" ip -o addr show n1)" 'inet 10.9.1.1/24 '
  like "$("${host[@]}" ip -o link show n2)" 'mtu 1400 '
  run 0 network inspect -f '{{.IPAM.Config.0.Subnet}} {{.Internal}}' n1 n2
  is "$out" $'10.9.1.0/24 false\n172.17.0.0/16 true'
  run 0 network rm n1
  run 0 network create --label a=b n3
  run 0 network inspect -f '{{index .Labels "a"}}' n3
  is "$out" b
  run 0 network ls -q -f label=a
  is "$out" n3
  run 0 network ls -q --filter name=n --filter label=a=c
  is "$out" ''
  run 0 network prune --filter label=a=b
  is "$out" n3
  run 0 network prune
  is "$out" n2
  is "$(links)" ''
  run 0 network ls -q
  is "$out" ''
  is "$(ls state/networks)" ''
}

test_removed_meanwhile() { # net: networks, volumes and images that somebody else just removes
  # aren't there, in a user's words; two who remove the same don't hurt each other
  local round known='image, on (img|other): no such image
volume, on v: no such volume
network, on n: no such network'
  own_networks
  small_root root
  for round in 1 2 3; do
    run 0 network create n
    run 0 volume create v
    run 0 import root img
    at_once 'network rm n' 'network inspect n' 'network ls' 'volume rm v' 'volume ls' \
      'volume inspect v' 'volume ls -f dangling=true' 'rmi img' 'images' 'history img' \
      'image inspect img' 'tag img other' 'system df' 'network prune' 'volume prune -a' \
      'image prune -a' 'system prune' 'network rm n' 'volume rm v' 'rmi img' 'rmi other'
    run 0 network rm -f n
    run 0 volume rm -f v
  done
  only_said "$known"
  fails 125 '^mydocker: volume, on v: no such volume$' volume rm v
  fails 125 '^mydocker: network, on n: no such network' network rm n
}

test_network_errors() { # net: foreign links, bad subnets and names,
  # and used networks are errors that change nothing
  own_networks
  "${host[@]}" ip link add docker0 type bridge
  run 0 network create --subnet 10.9.1.0/24 n1
  run 0 run -d --name user --net n1 /bin/sleep 1000
  "${host[@]}" ip -o -4 addr >before
  ls -R state/networks >>before
  fails 125 'lo: .*not mydocker' network create lo
  fails 125 'docker0: .*not mydocker' network create docker0
  fails 125 'n1: it exists' network create n1
  fails 125 'overlaps network n1' network create --subnet 10.9.0.0/16 n2
  fails 125 'overlaps this host.s route to lan0' network create --subnet 10.77.0.128/25 n2
  for subnet in '' 10.9.2.0 10.9.2.1/24 10.9.2.0/33 10.9.2.0/32 127.0.0.0/8 224.0.0.0/8 fd00::/64 \
    x; do
    fails 125 '--subnet, on ' network create --subnet "$subnet" n2
  done
  fails 125 'gateway' network create --subnet 10.9.2.0/24 --gateway 10.9.3.1 n2
  fails 125 'gateway' network create --subnet 10.9.2.0/24 --gateway 10.9.2.255 n2
  fails 125 'mtu' network create --mtu 5 n2
  for name in ../n2 a.b n2/x a-name-too-long- all default ''; do
    fails 125 'network, on ' network create "$name"
  done
  for name in none host container; do fails 125 'network, on ' network create "$name"; done
  fails 125 'driver' network create --driver overlay n2
  fails 125 'n1: user is in it' network rm n1
  fails 125 'no such network' network rm n2
  fails 125 'no such network' run --net n2 /bin/true
  fails 125 'not to be had' run --net n1 --ip 10.9.1.1 /bin/true
  fails 125 'not to be had' run --net n1 --ip 10.9.1.2 /bin/true
  fails 125 'not to be had' run --net n1 --ip 10.9.2.2 /bin/true
  fails 125 'publish' run --net n1 -p 80:80/sctp /bin/true
  fails 125 'publish' run --net n1 -p 1-3:1-2 /bin/true
  fails 125 'publish' run --net n1 -p 65536:1 /bin/true
  fails 125 'can.t go with --network none' run -p 80:80 /bin/true
  fails 125 'can.t go with --network host' run --net host --sysctl net.ipv4.ip_forward=1 /bin/true
  fails 125 'can.t go with --network bridge' run --net bridge --network-alias x /bin/true
  fails 125 'network-alias' run --net n1 --network-alias $'x\n1.2.3.4 y' /bin/true
  fails 125 'network, on bridge:x' run --net bridge:x /bin/true
  fails 125 'mac-address' run --net n1 --mac-address 02:42 /bin/true
  { "${host[@]}" ip -o -4 addr; ls -R state/networks; } >after
  diff before after
  run 0 rm -f user
  run 0 network rm n1
  wait_for links_are 'docker0 '
}

test_network_inside() { # net: eth0 with address, route and MTU; hosts, resolv.conf,
  # and what --ip and the others ask for
  make_image box
  own_networks
  run 0 network create --subnet 10.9.1.0/24 --gateway 10.9.1.254 --mtu 1400 n1
  run 0 run --net n1 /bin/sh -c "ip -o addr show eth0; ip route; ip -o link"
  like "$out" 'inet 10.9.1.1/24 '
  like "$out" 'default via 10.9.1.254 dev eth0'
  like "$out" 'eth0.* mtu 1400 .* state UP .* 02:42:0a:09:01:01 '
  unlike "$out" 'inet6 fe80'
  run 0 run --net n1 --ip 10.9.1.77 --mac-address 02:00:00:00:00:07 \
    /bin/sh -c 'ip -o addr show eth0; ip -o link show eth0'
  like "$out" 'inet 10.9.1.77/24 '
  like "$out" ' 02:00:00:00:00:07 '
  run 0 run --rm --net n1 --name c1 --network-alias db --hostname me --add-host up:192.0.2.1 \
    --add-host gw:host-gateway \
    --dns 192.0.2.53 --dns-search example.org box cat /etc/hosts /etc/resolv.conf /etc/hostname
  like "$out" $'127.0.0.1\tlocalhost\n'
  like "$out" $'\n10.9.1.1\tme db c1\n192.0.2.1\tup\n10.9.1.254\tgw\n'
  like "$out" $'\nnameserver 192.0.2.53\nsearch example.org\n'
  like "$out" $'\nme$'
  run 0 run --rm box cat /proc/net/route # the default network, made when first used
  wait_for links_are 'mydocker0 n1 '
  run 0 network ls
  like "$out" $'bridge +172.17.0.1/16 +bridge\n'
}

ports_answer() { # ports_answer PROTOCOL...: the ports of test_network_ports, by way of everyone
  local kind
  for kind; do
    says "$kind 10.77.0.2 hello" "${lan[@]}" -- "$kind" 10.77.0.1 8080 # the source address is kept
    says "$kind 10.9.1.1 hello" "${host[@]}" -- "$kind" 127.0.0.1 8080
    says "$kind 10.77.0.1 hello" "${host[@]}" -- "$kind" 10.77.0.1 8080
    says "$kind 10.9.1.1 hello" "${mydocker[@]}" exec user -- "$kind" 10.77.0.1 8080
    says "$kind 10.9.1.1 hello" "${mydocker[@]}" exec user -- "$kind" 10.9.1.1 8080
    says "$kind 10.9.1.1 hello" "${mydocker[@]}" exec web -- "$kind" 10.77.0.1 8080 # its own
    says "$kind 10.9.1.3 hello" "${mydocker[@]}" exec user -- "$kind" 10.9.1.2 80
  done
}

test_network_ports() { # net: published ports answer the LAN, the host,
  # neighbours and the container itself, TCP and UDP
  local nf=/proc/sys/net/bridge/bridge-nf-call-iptables
  own_networks
  run 0 network create --subnet 10.9.1.0/24 n1
  serve web "${mydocker[@]}" run -d --name web --net n1 -p 8080:80 -p 8080:80/udp -- tcp:80 udp:80
  run 0 run -d --name user --net n1 /bin/sleep 1000
  ports_answer tcp udp
  if "${host[@]}" test -e $nf; then # bridged packets pass the rules, too, or not
    "${host[@]}" bash -c "echo \$((! \$(<$nf))) >$nf"
    ports_answer tcp
  fi
  run 0 rm -f web
  says refused "${lan[@]}" -- tcp 10.77.0.1 8080
  says refused "${host[@]}" -- tcp 127.0.0.1 8080
}

test_network_port_options() { # net: one host address, ranges, free ports, what the image names;
  # port and ps show them
  make_image box -c 'EXPOSE 80/tcp 53/udp'
  own_networks
  "${host[@]}" ip addr add 10.77.0.9/24 dev lan0
  serve web "${mydocker[@]}" run -d --name web --net bridge -p 127.0.0.1:81:80 -p 10.77.0.1:82:80 \
    -p 10.77.0.9:82:81 \
    -p 9000-9001:80-81 -p 9000-9005:81 -p 81 -- tcp:80 tcp:81
  says 'tcp 172.17.0.1 hello' "${host[@]}" -- tcp 127.0.0.1 81
  says refused "${lan[@]}" -- tcp 10.77.0.1 81
  says 'tcp 10.77.0.2 hello' "${lan[@]}" -- tcp 10.77.0.1 82
  says 'tcp 10.77.0.2 hello' "${lan[@]}" -- tcp 10.77.0.9 82
  says refused "${host[@]}" -- tcp 127.0.0.1 82
  says 'tcp 10.77.0.2 hello' "${lan[@]}" -- tcp 10.77.0.1 9001
  says 'tcp 10.77.0.2 hello' "${lan[@]}" -- tcp 10.77.0.1 9002
  run 0 port web 80
  is "$out" $'127.0.0.1:81\n10.77.0.1:82\n0.0.0.0:9000'
  run 0 port web
  like "$out" '81/tcp -> 10.77.0.9:82
80/tcp -> 0.0.0.0:9000
81/tcp -> 0.0.0.0:9001
81/tcp -> 0.0.0.0:9002
81/tcp -> 0.0.0.0:[0-9]+$'
  says 'tcp 10.77.0.2 hello' "${lan[@]}" -- tcp 10.77.0.1 "${out##*:}"
  fails 125 '8080/tcp is not published' port web 8080
  run 0 ps --format '{{.Ports}}|{{.IP}}|{{.Networks}}'
  like "$out" '^127.0.0.1:81->80/tcp, .*, 0.0.0.0:[0-9]+->81/tcp\|172.17.0.2\|bridge$'
  run 0 inspect web
  like "$out" '"HostIp": "127.0.0.1",'$'\n *''"HostPort": "81"'
  run 0 run -d --name all -P box sleep 1000
  run 0 port all
  like "$out" $'^80/tcp -> 0.0.0.0:[0-9]+\n53/udp -> 0.0.0.0:[0-9]+$'
  run 0 run -d --name more -P --expose 80 --expose 7/udp box sleep 1000
  run 0 port more
  like "$out" $'^80/tcp -> [0-9.:]+\n53/udp -> [0-9.:]+\n7/udp -> 0.0.0.0:[0-9]+$'
  local kind
  for kind in 8080:80 99999 1-0 x ''; do
    fails 125 "--expose, on ${kind:-''}: it is PORT" run --expose "$kind" box true
  done
}

test_network_port_conflict() { # net: a port in use is an error before the command starts,
  # for other programs, too
  own_networks
  serve host "${host[@]}" -- tcp:90 udp:91
  fails 125 '0.0.0.0:90/tcp: address already in use' run --net bridge -p 90:80 /bin/touch started
  fails 125 '10.77.0.1:91/udp: address already in use' run --net bridge -p 10.77.0.1:91:80/udp \
    /bin/touch started
  fails 125 'cannot assign|can.t assign' run --net bridge -p 10.66.0.1:91:80 /bin/touch started
  run 0 run -d --name web --net bridge -p 80:80 -p 80:80/udp /bin/sleep 1000
  wait_for made_room "$(monitor_of web)" # and keeps them
  for port in 80:80 127.0.0.1:80:1 70-80:70-80 80:80/udp; do
    fails 125 ':80/.*: address already in use' run --net bridge -p $port /bin/touch started
  done
  is "$("${host[@]}" "$PYTHON" -I -c '
import socket
for kind in socket.SOCK_STREAM, socket.SOCK_DGRAM:
    server = socket.socket(socket.AF_INET, kind)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, kind == socket.SOCK_STREAM)
    try:
        server.bind(("0.0.0.0", 80))
        print("taken")
    except OSError:
        print("in use")')" $'in use\nin use'
  [[ ! -e started ]]
  is "$(ls state/networks/bridge)" 172.17.0.2
  run 0 rm -f web
  run 0 run --net bridge -p 80:80 /bin/true
}

test_network_localnet() { # net: the LAN and containers can't reach 127.0.0.1: CVE-2020-8558;
  # no router is believed: CVE-2020-13401
  own_networks
  namespace evil
  run 0 network create --subnet 10.9.1.0/24 n1
  run 0 run -d --name keep --net n1 -p 127.0.0.1:8080:80 /bin/sleep 1000
  serve secret "${host[@]}" -- tcp:7:127.0.0.1 udp:7:127.0.0.1
  cable evil eth0 10.9.1.66/24 host evil0 10.66.66.66/32
  "${host[@]}" ip link set evil0 master n1
  says 'tcp 127.0.0.1 hello' "${host[@]}" -- tcp 127.0.0.1 7
  for name in evil lan; do # a neighbour of the containers, and of the host
    at=(nsenter "--net=$(eval "echo \$${name}_fd")")
    via='10.77.0.1 dev eth0 src 10.77.0.2'
    [[ $name != evil ]] || via='10.9.1.1 dev eth0 src 10.9.1.66'
    "${at[@]}" bash -c "echo 1 >/proc/sys/net/ipv4/conf/eth0/route_localnet
      ip route add 10.9.1.0/24 via 10.77.0.1 2>/dev/null
      ip rule add prio 1 to 127.0.0.2/31 table local; ip rule del prio 0
      ip rule add prio 2 table 100
      ip rule add prio 3 to 10.0.0.0/8 table local; ip rule add prio 3 iif eth0 table local
      ip route add 127.0.0.1 via $via table 100"
    for kind in tcp udp; do
      says nothing "${at[@]}" -- $kind 127.0.0.1 7
    done
    says nothing "${at[@]}" -- tcp 127.0.0.1 8080
  done
  is "$("${host[@]}" cat /proc/sys/net/ipv4/conf/{n1,lan0,all}/route_localnet)" $'1\n0\n0'
  if [[ -e /proc/sys/net/ipv6 ]]; then
    is "$("${host[@]}" cat /proc/sys/net/ipv6/conf/n1/accept_ra)" 0
    run 0 exec keep cat /proc/sys/net/ipv6/conf/eth0/disable_ipv6
    is "$out" 1
  fi
}

test_network_isolation() { # net: two networks, and the LAN, can't get in but by ports;
  # an internal one gets nowhere; forged sources don't
  own_networks
  run 0 network create --subnet 10.9.1.0/24 n1
  run 0 network create --subnet 10.9.2.0/24 n2
  run 0 network create --subnet 10.9.3.0/24 --internal n3
  serve one "${mydocker[@]}" run -d --name one --net n1 -p 8080:80 -- tcp:80 udp:80
  serve two "${mydocker[@]}" run -d --name two --cap-add NET_ADMIN --net n2 -- tcp:80 udp:80
  serve inner "${mydocker[@]}" run -d --name inner --net n3 -- tcp:80 udp:80
  run 0 run -d --name inner2 --cap-add NET_ADMIN --net n3 /bin/sleep 1000
  serve away "${lan[@]}" -- tcp:80 udp:80
  serve host "${host[@]}" -- tcp:70
  "${lan[@]}" ip route add 10.9.0.0/16 via 10.77.0.1
  for kind in tcp udp; do
    says "$kind 10.77.0.1 hello" "${mydocker[@]}" exec two -- $kind 10.77.0.2 80 # masqueraded
    says "$kind 10.9.1.1 hello" "${host[@]}" -- $kind 10.9.1.2 80
    says "$kind 10.9.3.3 hello" "${mydocker[@]}" exec inner2 -- $kind 10.9.3.2 80
    says "$kind 10.9.3.1 hello" "${host[@]}" -- $kind 10.9.3.2 80
  done
  says 'tcp 10.9.2.2 hello' "${mydocker[@]}" exec two -- tcp 10.77.0.1 70
  says 'tcp 10.9.1.1 hello' "${mydocker[@]}" exec two -- tcp 10.77.0.1 8080 # ports are public
  run 0 exec inner2 ip route add default via 10.9.3.1
  "${host[@]}" ip route add 10.44.0.0/16 via 10.77.0.2
  "${lan[@]}" ip addr add 10.44.0.1/16 dev lo
  run 0 exec two ip addr add 10.44.7.7/32 dev eth0
  for kind in tcp udp; do
    says nothing "${mydocker[@]}" exec two -- $kind 10.9.1.2 80
    says nothing "${mydocker[@]}" exec one -- $kind 10.9.2.2 80
    says nothing "${mydocker[@]}" exec one -- $kind 10.9.3.2 80
    says nothing "${lan[@]}" -- $kind 10.9.1.2 80
    says nothing "${lan[@]}" -- $kind 10.9.3.2 80
    says nothing "${mydocker[@]}" exec inner2 -- $kind 10.77.0.2 80
    says nothing "${mydocker[@]}" exec inner2 -- $kind 10.9.1.2 80
    says nothing "${mydocker[@]}" exec two -- $kind 10.77.0.2 80 hello 10.44.7.7
  done
  says nothing "${mydocker[@]}" exec inner2 -- tcp 10.77.0.1 8080
  fails 125 'n3 is internal' run --net n3 -p 80:80 /bin/true
}

test_network_bytes() { # net: 64 MB (FULL=1: 1 GB) through a published port arrive as they are,
  # with MTU 1400, too
  own_networks
  local bytes=$((64 << 20)) name
  [[ ! ${FULL-} ]] || bytes=$((1 << 30))
  run 0 network create --mtu 1400 n1
  for name in bridge n1; do
    serve "at_$name" "${mydocker[@]}" run -d --name "at_$name" --net "$name" -p 8080:80 -- tcp:80
    says same "${lan[@]}" -- tcp 10.77.0.1 8080 "take $bytes"
    run 0 rm -f "at_$name"
  done
}

test_network_dns() { # net: containers ask the name server they are given, and find names by it
  need getent
  small_root root
  with_libraries "$(type -P getent)" root getent
  # named by no ELF header
  for file in /lib/x86_64-linux-gnu /lib/aarch64-linux-gnu /lib64 /usr/lib64; do
    for lib in "$file"/libnss_{dns,files}.so.2 "$file"/libresolv.so.2; do
      if [[ -e $lib ]]; then mkdir -p "root$file" && cp -L "$lib" "root$file/"; fi
    done
  done
  echo 'hosts: files dns' >root/etc/nsswitch.conf
  make_image box
  own_networks
  run 0 network create n1
  serve dns "${lan[@]}" -- dns:53
  run 0 run --rm --net n1 --name c1 --dns 10.77.0.2 box getent ahostsv4 some.example
  like "$out" '^192.0.2.80 '
  run 0 run --rm --net n1 --name c1 --dns 10.77.0.2 box getent hosts c1
  like "$out" '^172.17.0.2 '
}

test_network_neighbours() { # net: /etc/hosts knows the neighbours by name and alias while they run,
  # and keeps own lines
  make_image box
  own_networks
  run 0 network create --subnet 10.9.1.0/24 n1
  run 0 run -d --name one --net n1 box sleep 1000
  run 0 exec one sh -c 'echo 192.0.2.9 mine >>/etc/hosts'
  run 0 run -d --name two --net n1 --network-alias db --network-alias cache box sleep 1000
  run 0 run -d --name other --net bridge box sleep 1000
  run 0 exec one cat /etc/hosts
  like "$out" $'\n10.9.1.2\t[0-9a-f]{12} one\n192.0.2.9 mine\n10.9.1.3\ttwo db cache\t# neighbour$'
  run 0 exec two cat /etc/hosts
  like "$out" $'\n10.9.1.3\t[0-9a-f]{12} db cache two\n10.9.1.2\tone\t# neighbour$'
  run 0 exec other cat /etc/hosts
  unlike "$out" neighbour
  run 0 stop -t 0 two
  run 0 exec one cat /etc/hosts
  like "$out" $'192.0.2.9 mine$'
  run 0 start two
  run 0 exec one cat /etc/hosts
  like "$out" 'two db cache'
  kill -KILL "$(monitor_of two)"
  wait_for gone "$(monitor_of two)"
  run 0 ps -q
  run 0 exec one cat /etc/hosts
  unlike "$out" two
  run 0 run --rm --net n1 box sh -c 'echo >/etc/hosts'
}

test_network_modes() { # net: host, none and container:ID; what each has of names
  make_image box
  own_networks
  run 0 network create n1
  run 0 run --rm --net host box cat /proc/net/dev /etc/hostname /etc/hosts
  like "$out" 'lan0:'
  like "$out" $'\n'"$(hostname)"$'\n'
  is "$("${mydocker[@]}" run --net host /bin/readlink /proc/self/ns/net)" \
    "$("${host[@]}" readlink /proc/self/ns/net)"
  run 0 run --net none /bin/sh -c 'ip -o link'
  is "$(wc -l <<<"$out")" 1
  serve web "${mydocker[@]}" run -d --name web --net n1 -p 8080:80 -- tcp:80
  says 'tcp 127.0.0.1 hello' "${mydocker[@]}" run --net container:web -- tcp 127.0.0.1 80
  run 0 run -d --name with --net container:web box sleep 1000
  run 0 exec with cat /etc/hosts
  like "$out" $'\n172.17.0.2\t[^\n]*web$'
  is "$(readlink "/proc/$("${mydocker[@]}" inspect -f .State.Pid with)/ns/net")" \
    "$(readlink "/proc/$("${mydocker[@]}" inspect -f .State.Pid web)/ns/net")"
  run 0 restart -t 0 web with
  run 0 exec with cat /proc/net/dev
  like "$out" eth0:
  run 0 rm -f web
  fails 125 'not running|no such container' restart -t 0 with
  fails 125 'no such container' run --net container:nobody /bin/true
  export MYDOCKER_NETWORK=n1
  run 0 run --rm box cat /proc/net/dev
  like "$out" eth0:
}

test_network_reboot() { # net: after a reboot, or a flush of all rules,
  # a network comes back when it's next used
  own_networks
  run 0 network create --subnet 10.9.1.0/24 n1
  serve web "${mydocker[@]}" run -d --name web --net n1 -p 8080:80 --label x -- tcp:80
  run 0 stop -t 0 web
  rm web
  own_networks # new namespaces, old state
  is "$(links)" ''
  run 0 start web
  wait_for test -e web
  is "$(links | sed 's/veth[0-9a-f]* /veth /')" 'n1 veth '
  says 'tcp 10.77.0.2 hello' "${lan[@]}" -- tcp 10.77.0.1 8080
  "${host[@]}" ip link del n1 # or somebody removes it
  run 0 run --net n1 -p 8081:80 /bin/true
  is "$("${host[@]}" ip -o -4 addr show n1 | wc -l)" 1
}

test_network_restart() { # net: a policy's restart keeps address and port;
  # a killed monitor's are free again for the next
  own_networks
  run 0 network create --subnet 10.9.1.0/29 n1
  serve web "${mydocker[@]}" run -d --name web --restart always --net n1 -p 8080:80 -- tcp:80
  rm web
  kill -KILL "$("${mydocker[@]}" inspect -f .State.Pid web)"
  wait_for test -e web
  says 'tcp 10.77.0.2 hello' "${lan[@]}" -- tcp 10.77.0.1 8080
  run 0 inspect -f .NetworkSettings.IPAddress web
  is "$out" 10.9.1.2
  monitor=$(monitor_of web)
  kill -KILL "$monitor"
  wait_for gone "$monitor"
  run 0 run -d --name next --net n1 -p 8080:81 --ip 10.9.1.2 /bin/sleep 1000
  run 0 rm -f next
  for n in 1 2 3 4 5; do run 0 run -d --name "c$n" --net n1 /bin/sleep 1000; done
  fails 125 'it is full, all 6 addresses of 10.9.1.0/29 are taken' run --net n1 /bin/true
  kill -KILL "$(monitor_of c3)"
  wait_for gone "$(monitor_of c3)"
  run 0 run --net n1 /bin/sh -c 'ip -o -4 addr show eth0'
  like "$out" 'inet 10.9.1.4/29'
  run 0 rm -f c1 c2 c4 c5
  run 0 network rm n1
}

test_network_many() { # net: 24 containers (FULL=1: 200) 8 at a time, a third killed:
  # no address twice, none lost, nothing left
  own_networks
  local count=24 n
  [[ ! ${FULL-} ]] || count=200
  run 0 network create --subnet 10.9.0.0/22 n1
  seq "$count" | xargs -P 8 -I %N% "${mydocker[@]}" run -d --name c%N% --net n1 \
    -p 127.0.0.1:1%N%:80 /bin/sleep 1000 >ids
  is "$(wc -l <ids)" "$count"
  "${mydocker[@]}" ps --format '{{.IP}} {{.ID}}' | sort >addresses
  is "$(cut -d' ' -f1 addresses | sort -u | wc -l)" "$count"
  is "$(ls state/networks/n1)" "$(cut -d' ' -f1 addresses)"
  is "$(links | tr ' ' '\n' | grep -c veth)" "$count"
  # everybody knows everybody
  grep -c '# neighbour$' state/containers/*/hosts | sed 's/.*://' | sort -u >known
  is "$(<known)" "$((count - 1))"
  for ((n = 3; n <= count; n += 3)); do kill -KILL "$(monitor_of "c$n")"; done
  seq "$((count + 1))" "$((count + count / 3))" | xargs -P 8 -I %N% "${mydocker[@]}" run \
    -d --name c%N% --net n1 /bin/sleep 1000 >later
  is "$(wc -l <later)" "$((count / 3))"
  "${mydocker[@]}" ps --format '{{.IP}} {{.ID}}' | sort >addresses
  is "$(wc -l <addresses) $(cut -d' ' -f1 addresses | sort -u | wc -l)" "$count $count"
  is "$(ls state/networks/n1)" "$(cut -d' ' -f1 addresses)"
  "${mydocker[@]}" ps -q --no-trunc | sed 's,.*,state/containers/&/hosts,' |
    xargs grep -c '# neighbour$' | sed 's/.*://' | sort -u >known
  is "$(<known)" "$((count - 1))"
  # shellcheck disable=SC2046 # a list
  run 0 rm -f $("${mydocker[@]}" ps -aq)
  wait_for is_empty_box
  run 0 network inspect -f .Containers n1
  is "$out" '{}'
  run 0 run --net n1 -p 127.0.0.1:11-34:80 /bin/true # no port is left in the map
  run 0 network rm n1
}
is_empty_box() { # nothing but the network's bridge is there
  [[ $(links) == 'n1 ' && ! $(ls state/networks/n1) ]]
}

test_network_without_nf_tables() { # net: without it containers have addresses;
  # what can't work is a warning or an error, and says why
  own_networks
  "$PYTHON" -I - >blocked <<'PYTHON'
import struct, sys
# socket(AF_NETLINK, ..., NETLINK_NETFILTER) fails with EPROTONOSUPPORT, as without the module
machine = __import__("os").uname().machine
number = {"x86_64": 41, "aarch64": 198}[machine]
filter = [(0x20, 0, 0, 0), (0x15, 0, 5, number), (0x20, 0, 0, 16), (0x15, 0, 3, 16),
          (0x20, 0, 0, 32), (0x15, 0, 1, 12), (0x06, 0, 0, 0x50000 | 93), (0x06, 0, 0, 0x7fff0000)]
print("""import ctypes, os, sys
libc = ctypes.CDLL(None)
code = bytes.fromhex(%r)
buffer = ctypes.create_string_buffer(code)
class prog(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
p = prog(len(code) // 8, ctypes.addressof(buffer))
assert libc.prctl(22, 2, ctypes.byref(p), 0, 0) == 0
os.execvp(sys.argv[1], sys.argv[1:])
""" % b"".join(struct.pack("HBBI", *row) for row in filter).hex())
PYTHON
  mydocker=("$PYTHON" -I "$PWD/blocked" "${mydocker[@]}")
  run 1 info nf_tables
  run 0 network create --subnet 10.9.1.0/24 n1
  is "$out" n1
  one_line 'nothing outside, it needs the kernel.s modules nf_tables.*protocol not supported'
  serve web "${mydocker[@]}" run -d --name web --net n1 -- tcp:80
  says 'tcp 10.9.1.1 hello' "${host[@]}" -- tcp 10.9.1.2 80
  says 'tcp 10.9.1.3 hello' "${mydocker[@]}" run --net n1 -- tcp 10.9.1.2 80
  fails 125 'publish: it needs the kernel.s modules nf_tables' run --net n1 -p 80:80 /bin/true
  is "$(ls state/networks/n1)" 10.9.1.2
  run 0 rm -f web
  run 0 network rm n1
}

test_network_docker() { # net: where Docker's rules drop what is forwarded,
  # its chain for others' rules lets containers through
  need iptables-nft
  own_networks
  "${host[@]}" bash -ec 'iptables-nft -P FORWARD DROP
    iptables-nft -N DOCKER-USER; iptables-nft -A DOCKER-USER -j RETURN
    iptables-nft -I FORWARD -j DOCKER-USER'
  "${lan[@]}" ip route add 172.17.0.0/16 via 10.77.0.1
  serve away "${lan[@]}" -- tcp:80
  serve web "${mydocker[@]}" run -d --name web --net bridge -p 8080:80 -- tcp:80
  says 'tcp 10.77.0.1 hello' "${mydocker[@]}" exec web -- tcp 10.77.0.2 80
  says 'tcp 10.77.0.2 hello' "${lan[@]}" -- tcp 10.77.0.1 8080
  says nothing "${lan[@]}" -- tcp 172.17.0.2 80
  "${host[@]}" iptables-nft -S DOCKER-USER >rules # iptables still understands its table
  has rules '^-A DOCKER-USER -i mydocker0 .*--comment "mydocker /.*" -j ACCEPT$'
  has rules '^-A DOCKER-USER -o mydocker0 .*--comment "mydocker /.*" -j ACCEPT$'
  [[ ! -s web.err ]] # no warning: nothing is stopped
  run 0 run --net bridge /bin/true
  "${host[@]}" iptables-nft -S DOCKER-USER | diff rules -
  run 0 rm -f web
  run 0 network rm bridge
  is "$("${host[@]}" iptables-nft -S DOCKER-USER)" $'-N DOCKER-USER\n-A DOCKER-USER -j RETURN'
}

test_network_flush() { # net: whatever is lost of the rules comes back with the next container, or
  # `network ls`
  need nft
  own_networks
  local table loss
  run 0 network create --subnet 10.9.1.0/24 n1
  run 0 network create --subnet 10.9.2.0/24 n2
  table=$("${host[@]}" nft list tables | sed -n 's/^table ip mydocker/mydocker/p')
  serve away "${lan[@]}" -- tcp:80
  serve web "${mydocker[@]}" run -d --name web --net n1 -p 8080:80 -- tcp:80
  for loss in 'flush ruleset' "flush chain ip $table forward" "flush chain ip $table postrouting
    delete chain ip $table postrouting" "flush set ip $table subnets" \
    "flush set ip $table bridges" "insert rule ip $table forward accept"; do
    "${host[@]}" nft "$loss"
    says 'tcp 10.77.0.1 hello' "${mydocker[@]}" run --net n2 -- tcp 10.77.0.2 80 # masqueraded
    says nothing "${mydocker[@]}" run --net n2 -- tcp 10.9.1.2 80 # and isolated
    says 'tcp 10.77.0.2 hello' "${lan[@]}" -- tcp 10.77.0.1 8080 # the port of who runs, too
  done
  "${host[@]}" nft "flush set ip $table subnets; flush set ip $table bridges"
  run 0 network ls
  says 'tcp 10.77.0.1 hello' "${mydocker[@]}" exec web -- tcp 10.77.0.2 80
  "${host[@]}" nft "flush map ip $table ports"
  run 0 network inspect n1
  says 'tcp 10.77.0.2 hello' "${lan[@]}" -- tcp 10.77.0.1 8080
  "${host[@]}" nft flush ruleset
  kill -KILL "$("${mydocker[@]}" inspect -f .State.Pid web)"
  run 0 wait web
  rm web
  run 0 start web
  wait_for test -e web
  says 'tcp 10.77.0.1 hello' "${mydocker[@]}" exec web -- tcp 10.77.0.2 80
  says 'tcp 10.77.0.2 hello' "${lan[@]}" -- tcp 10.77.0.1 8080
  run 0 rm -f web
  run 0 network rm n1 n2
  is "$("${host[@]}" nft list ruleset)" ''
}

test_network_udp_flow() { # net: who sends UDP before the container is there, or across a restart,
  # is served; other flows stay
  own_networks
  local client
  "${lan[@]}" "$PYTHON" -I -c '
import socket, time
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.connect(("10.77.0.1", 8053))
client.settimeout(0.05)
while True:
    try:
        client.send(b"x")
        print(client.recv(99).decode(), flush=True)
    except OSError:
        time.sleep(0.02)' >>flow 2>flow.err &
  client=$!
  run 0 network create --subnet 10.9.1.0/24 n1 # from now on flows are tracked
  if [[ -e /proc/net/nf_conntrack ]]; then
    wait_for "${host[@]}" grep -q dport=8053 /proc/net/nf_conntrack
  fi
  serve web "${mydocker[@]}" run -d --name web --net n1 -p 8053:80/udp -- udp:80
  wait_for has flow 'udp 10.77.0.2 x'
  run 0 stop -t 0 web
  run 0 run -d --name other --net n1 --ip 10.9.1.2 /bin/sleep 1000 # web's next address is another
  rm web
  : >flow
  sleep 0.2 # it goes on sending meanwhile, to nobody
  run 0 start web
  wait_for has flow 'udp 10.77.0.2 x'
  kill "$client"
}

test_network_firewalls() { # net: a firewall that stops what is forwarded is named, with the command
  # that helps
  need nft
  own_networks
  local table
  run 0 network create --subnet 10.9.1.0/24 n1
  run 0 network create --internal --subnet 10.9.2.0/24 inner
  "${host[@]}" nft \
    'add table inet fw; add chain inet fw way { type filter hook forward priority 5; policy drop; }'
  run 0 run --net n1 /bin/true
  one_line "^mydocker: warning: network, on n1: fw's chain way stops what it sends out, unless: \
nft insert rule inet fw way iifname n1 accept; nft insert rule inet fw way oifname n1 accept"
  run 0 run --net inner /bin/true
  is "$err" ''
  serve away "${lan[@]}" -- tcp:80
  says nothing "${mydocker[@]}" run --net n1 -- tcp 10.77.0.2 80
  run 0 run --net n1 /bin/true
  "${host[@]}" sh -ec "${err##*unless: }"
  run 0 run --net n1 /bin/true
  is "$err" ''
  says 'tcp 10.77.0.1 hello' "${mydocker[@]}" run --net n1 -- tcp 10.77.0.2 80
  "${host[@]}" nft 'delete table inet fw; add table inet firewalld
    add chain inet firewalld filter_FORWARD {
      type filter hook forward priority 10; policy accept; }'
  run 0 run --net n1 /bin/true
  one_line ': firewall-cmd --zone=trusted --add-interface=n1$'
  "${host[@]}" nft 'flush ruleset; add table ip filter; add chain ip filter ufw-user-forward
    add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }'
  run 0 run --net n1 /bin/true
  one_line ': ufw route allow in on n1; ufw route allow out on n1$'
  "${host[@]}" nft 'delete chain ip filter ufw-user-forward'
  run 0 run --net n1 /bin/true
  one_line ': iptables -I FORWARD -i n1 -j ACCEPT; iptables -I FORWARD -o n1 -j ACCEPT$'
  "${host[@]}" nft 'flush ruleset'
  run 0 run --net n1 /bin/true
  is "$err" ''
}

test_network_old_iptables() { # net: iptables from before nf_tables is asked, too
  need iptables-legacy
  own_networks
  "${host[@]}" iptables-legacy -P FORWARD DROP || skip 'the kernel has no such tables'
  run 0 network create --subnet 10.9.1.0/24 n1
  one_line ": iptables' FORWARD stops what it sends out, unless: \
iptables-legacy -I FORWARD -i n1 -j ACCEPT; iptables"
  "${host[@]}" sh -ec "${err##*unless: }"
  run 0 run --net n1 /bin/true
  is "$err" ''
  "${host[@]}" sh -ec 'iptables-legacy -F FORWARD; iptables-legacy -N DOCKER-USER
    iptables-legacy -A FORWARD -j DOCKER-USER'
  run 0 run --net n1 /bin/true
  one_line ': iptables-legacy -I DOCKER-USER -i n1 -j ACCEPT; '\
'iptables-legacy -I DOCKER-USER -o n1 -j ACCEPT$'
  "${host[@]}" iptables-legacy -P FORWARD ACCEPT
  run 0 run --net n1 /bin/true
  is "$err" ''
}

test_network_several() { # net: run in several networks; connect and disconnect, running or not:
  # names, ports, the way out
  make_image box
  own_networks
  local n
  for n in 1 2 3; do run 0 network create --subnet 10.9.$n.0/24 n$n; done
  run 0 network create --subnet 10.9.4.0/24 --internal n4
  serve away "${lan[@]}" -- tcp:80
  run 0 run -d --name two --net n2 box sleep 1000
  serve web "${mydocker[@]}" run -d --name web --net n4 --net name=n1,ip=10.9.1.9,alias=db \
    -p 8080:80 -- tcp:80
  run 0 inspect \
    -f '{{.NetworkSettings.Networks.n4.IPAddress}} {{.NetworkSettings.Networks.n1.IPAddress}}' web
  is "$out" '10.9.4.2 10.9.1.9'
  run 0 ps --format '{{.Networks}}' --filter name=web
  is "$out" n4,n1
  says 'tcp 10.77.0.2 hello' "${lan[@]}" -- tcp 10.77.0.1 8080
  says 'tcp 10.77.0.1 hello' "${mydocker[@]}" exec web -- tcp 10.77.0.2 80
  run 0 network connect --ip 10.9.2.8 --alias cache n2 web
  run 0 exec web ip -o -4 addr show eth2
  like "$out" 'inet 10.9.2.8/24 '
  run 0 exec two cat /etc/hosts
  like "$out" $'\n10.9.2.8\tweb cache\t# neighbour$'
  says 'tcp 10.9.2.3 hello' "${mydocker[@]}" run --net n2 -- tcp 10.9.2.8 80
  fails 125 'web: it is in n2' network connect n2 web
  run 0 network disconnect n1 web # its way out, and its port's way in
  says 'tcp 10.77.0.2 hello' "${lan[@]}" -- tcp 10.77.0.1 8080
  says 'tcp 10.77.0.1 hello' "${mydocker[@]}" exec web -- tcp 10.77.0.2 80
  fails 125 'web: it is not in n1' network disconnect n1 web
  is "$(ls state/networks/n1)" ''
  run 0 network rm n1
  fails 125 'n2: (two|web) is in it' network rm n2
  rm web
  ln -s "$(readlink state/networks/n2/10.9.2.8)" state/networks/n2/10.9.2.99 # killed as it took one
  kill -KILL "$("${mydocker[@]}" inspect -f .State.Pid web)"
  run 0 wait web
  is "$(ls state/networks/n2)" 10.9.2.2
  run 0 exec two cat /etc/hosts
  unlike "$out" neighbour
  run 0 network disconnect n2 web
  run 0 network connect --alias later n3 web # for its next start
  is "$(ls state/networks/n3)" ''
  run 0 start web
  wait_for test -e web
  like "$(cat state/containers/*/hosts)" $'\n10.9.4.2\t[^\n]*\n10.9.3.2\t[^\n]* later web'
  says 'tcp 10.77.0.2 hello' "${lan[@]}" -- tcp 10.77.0.1 8080
  run 0 network connect n2 web
  n=$(monitor_of web)
  kill -KILL "$n"
  wait_for gone "$n"
  run 0 ps -q
  is "$(ls state/networks/{n2,n3,n4})" \
    $'state/networks/n2:\n10.9.2.2\n\nstate/networks/n3:\n\nstate/networks/n4:'
  fails 125 'two: it is not in n9' network disconnect n9 two
  fails 125 'no such network' network connect n9 two
  run 0 run -d --name alone --net none box sleep 1000
  fails 125 'alone: it was started with --network none' network connect n2 alone
}

test_network_restart_connected() { # net: what was connected while it ran is there when a policy
  # starts it again
  make_image box
  own_networks
  run 0 network create --subnet 10.9.1.0/24 n1
  run 0 network create --subnet 10.9.2.0/24 n2
  run 0 run -d --name again --restart always --net n1 box sh -c 'cat /proc/net/dev; exec sleep 1000'
  run 0 network connect --ip 10.9.2.7 n2 again
  run 0 network disconnect n1 again
  kill -KILL "$("${mydocker[@]}" inspect -f .State.Pid again)"
  wait_for logs_of again 'eth0.*eth1'
  run 0 inspect -f .NetworkSettings.Networks.n2.IPAddress again
  is "$out" 10.9.2.7
  run 0 inspect -f .NetworkSettings.Networks again
  unlike "$out" n1
}

test_network_options() { # net: what can't be an address, a name or a subnet is refused in words
  own_networks
  local text
  run 0 network create --subnet 10.9.1.0/30 n1
  for text in foo foo:bar : :1.2.3.4 foo: 'a b:1.2.3.4' $'a\tb:1.2.3.4' foo:1.2.3 foo:1.2.3.4.5; do
    fails 125 '^mydocker: --add-host, on .*: (it is NAME:IP|not an IP address)' run --net n1 \
      --add-host "$text" /bin/touch made
  done
  for text in x '' 1.2.3 300.1.1.1 1.2.3.4/24; do
    fails 125 '^mydocker: --dns, on .*: not an IP address' run --net n1 --dns "$text" /bin/touch \
      made
    [[ ! $text ]] || fails 125 '^mydocker: --ip, on .*: not an IP address' run --net n1 \
      --ip "$text" /bin/touch made
  done
  fails 125 '^mydocker: --ip, on fd00::2: not an IP address' run --net n1 --ip fd00::2 /bin/touch \
    made
  fails 125 '^mydocker: --dns-search, on .*: not a domain' run --net n1 \
    --dns-search $'a\nnameserver 1.1.1.1' /bin/touch made
  for text in 01:00:00:00:00:01 02:42:0a:09:01 :::::::::::::::::; do
    fails 125 '^mydocker: --mac-address, on ' run --net n1 --mac-address "$text" /bin/touch made
  done
  for text in 0.0.0.0/8 240.0.0.0/8 255.0.0.0/8 10.9.2.0/255.255.255.0 10.9.2.1/24 10.0.0.0/7 \
    10.9.2.0/31; do
    fails 125 '^mydocker: --subnet, on .*: (not a subnet|no host|the subnet of)' network create \
      --subnet "$text" n2
  done
  fails 125 '^mydocker: --gateway, on x: not an IP address' network create --subnet 10.9.2.0/24 \
    --gateway x n2
  fails 125 'it is there twice' run --net n1 --net n1 /bin/touch made
  fails 125 "can't go with other networks" run --net n1 --net host /bin/touch made
  fails 125 'unknown key frob' run --net name=n1,frob=1 /bin/touch made
  fails 125 -- '--ip: --network says it' run --net name=n1,ip=10.9.1.2 --ip 10.9.1.2 /bin/touch made
  run 0 run -d --net n1 /bin/sleep 1000
  fails 125 '^mydocker: network, on n1: it is full, all 2 addresses of 10.9.1.0/30 are taken$' run \
    --net n1 /bin/touch made
  [[ ! -e made ]]
}

test_network_resolv_conf() { # net: search and options survive a stub; servers that only IPv6
  # reaches aren't handed on
  make_image box
  own_networks
  with_resolver() { # with_resolver TEXT: what a container makes of that
    printf %b "$1" >resolv
    run 0 run --rm --network none box cat /etc/resolv.conf
  }
  mydocker=(unshare -m sh -c 'mount --bind resolv /etc/resolv.conf
    [ ! -d /run/systemd/resolve ] || mount -t tmpfs none /run/systemd/resolve
    exec "$@"' sh "${mydocker[@]}")
  with_resolver 'nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch example.org\n'
  is "$out" $'nameserver 8.8.8.8\nnameserver 8.8.4.4\nsearch example.org\noptions edns0 trust-ad'
  with_resolver '# x\nnameserver fd00::53\nnameserver  192.0.2.53\nsearch a.example\n'\
'search b.example c.example\n'
  is "$out" $'nameserver 192.0.2.53\nsearch b.example c.example'
  with_resolver 'nameserver fe80::1%eth0\nnameserver fd00::53\ndomain example.org'
  is "$out" $'nameserver 8.8.8.8\nnameserver 8.8.4.4\ndomain example.org'
  run 0 run --rm --network none --dns 192.0.2.1 --dns fd00::1 --dns-search . box cat \
    /etc/resolv.conf
  is "$out" $'nameserver 192.0.2.1\nnameserver fd00::1'
  run 0 run --rm --network host box cat /etc/resolv.conf
  like "$out" $'^nameserver fe80::1%eth0\nnameserver fd00::53\n'
  with_resolver 'nameserver 192.0.2.53\noptions edns0\n'
  run 0 run --rm --network none --dns-option ndots:2 --dns-opt rotate box cat /etc/resolv.conf
  is "$out" $'nameserver 192.0.2.53\noptions ndots:2 rotate'
  fails 125 '--dns-option, on a b: not one of' run --dns-option 'a b' box true
  fails 125 '--link, on db: mydocker doesn.t have that' run --link db box true
  like "$err" 'hint: instead: mydocker network create'
}

test_network_host_root() { # net: on the host's own root, too, a network has its own names
  own_networks
  run 0 network create n1 --subnet 10.9.2.0/24
  run_there() { # run_there ARG...: in the network's host
    out=$("${mydocker[@]}" run --net n1 "$@")
  }
  run_there --dns 192.0.2.7 --add-host db:10.9.2.9 /bin/sh -c 'cat /etc/resolv.conf /etc/hosts'
  like "$out" $'^nameserver 192.0.2.7\n'
  like "$out" $'\n10.9.2.9\tdb(\n|$)'
  run_there --ephemeral --dns 192.0.2.7 /bin/cat /etc/resolv.conf
  like "$out" '^nameserver 192.0.2.7'
  run 0 run --net none /bin/cat /etc/hosts
  is "$out" "$(</etc/hosts)"
}

test_network_roots() { # net: two state roots; bridges say whose they are, and one that was left is
  # taken
  own_networks
  run 0 run -d --name keep --net bridge /bin/sleep 1000
  run 0 --root "$PWD/other" run -d --name away --net bridge /bin/sleep 1000
  wait_for links_are_but_veth 'mydocker0 mydocker1 '
  like "$("${host[@]}" ip -d link show mydocker1)" "alias mydocker $PWD/other"
  run 0 network create --subnet 10.9.1.0/24 n1
  fails 125 "on n1: that link is of the state root $PWD/state" --root "$PWD/other" network create n1
  like "$err" "hint: .*mydocker --root $PWD/state network rm n1"
  "${host[@]}" ip link add theirs type bridge
  fails 125 "on theirs: that link is not mydocker's" network create theirs
  like "$err" 'hint: .*ip link delete theirs'
  fails 125 "mydocker0: that link is network bridge's" network create mydocker0
  run 0 --root "$PWD/other" rm -f away
  run 0 rm -f keep
  wait_for links_are 'mydocker0 mydocker1 n1 theirs '
  rm -r state other
  run 0 network create --subnet 10.9.5.0/24 n1
  is "$("${host[@]}" ip -o -4 addr show n1 | sed 's/.*inet \([^ ]*\).*/\1/')" 10.9.5.1/24
  run 0 run --net n1 /bin/sh -c 'ip -o -4 addr show eth0'
  like "$out" 'inet 10.9.5.2/24 '
  run 0 run --net bridge /bin/sh -c 'ip -o -4 addr show eth0'
  like "$out" 'inet 172.17.0.2/16 '
  run 0 --root "$PWD/third" run --net bridge /bin/sh -c 'ip -o -4 addr show eth0'
  like "$out" 'inet 172.18.0.2/16 '
  wait_for links_are 'mydocker0 mydocker1 n1 theirs '
  run 0 network rm n1 bridge
  run 0 --root "$PWD/third" network rm bridge
  wait_for links_are 'theirs '
}

links_are_but_veth() {
  [[ "$(links | tr ' ' '\n' | grep -v veth | tr '\n' ' ')" == "$1 " ||
    "$(links | sed 's/veth[0-9a-f]* //g')" == "$1" ]]
}

test_network_many_ports() { # net: 1,200 ports at ulimit -n 1024 are held; the container's limit
  # stays; the first error is the one that is said
  own_networks
  ulimit -Sn 1024
  (($(ulimit -Hn) > 2000)) || skip 'needs a hard limit of more descriptors'
  make_image box
  run 0 run -d --name many --restart always --net bridge -p 3001-4200:3001-4200 box \
    sh -c 'ulimit -n; sleep 0.2'
  wait_for logs_of many $'^1024\n1024\n'
  run 0 port many 4200
  is "$out" 0.0.0.0:4200
  run 0 rm -f many
  ulimit -Hn 1024
  fails 125 '^mydocker: --publish, on 0.0.0.0:[0-9]*/tcp: too many open files$' run --net bridge \
    -p 3001-4200:3001-4200 box touch /made
  run 0 ps -aq
  is "$out" ''
  run 0 run --net bridge -p 3001-3100:3001-3100 box sh -c :
}

logs_of() { # logs_of NAME REGEX: what it has said is like that
  local - text
  set +x
  text=$("${mydocker[@]}" logs "$1")
  [[ $text =~ $2 ]]
}

test_network_ports_interrupted() { # net: TERM ends a run that takes all ports at once
  make_image box -c 'EXPOSE 1-65535/tcp'
  own_networks
  run 0 run --rm --net bridge box sh -c :
  start run --name all --net bridge -P box sleep 1000
  wait_for holds_ports "$pid"
  kill -TERM "$pid"
  ended 143
  has err 'interrupted before the command started'
  run 0 ps -aq
  is "$out" ''
}

holds_ports() { # holds_ports PID: a process below it, or it, has many sockets
  local - one
  set +x
  for one in "$1" $(children "$1"); do
    (($(find "/proc/$one/fd" -lname 'socket:*' 2>/dev/null | wc -l) < 50)) || return 0
  done
  return 1
}

test_loopback() { # net: the container has its own loopback, which is up
  run 0 run "$PYTHON" -I -c '
import socket
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname(), 5)
server.accept()[0].sendall(b"hello")
names = [name for _, name in socket.if_nameindex()]
print(client.recv(9).decode(), [n for n in names if n.startswith(("e", "w", "v", "docker"))])'
  is "$out" 'hello []'
}

test_rename_neighbour() { # net: a container's neighbours know it by its new name after rename
  local name
  own_networks
  make_image "t$n:1"
  run 0 network create "n$n"
  run 0 network create "m$n"
  run 0 run -d --name a --network "n$n" --network "m$n" --network-alias al "t$n:1" /bin/sleep 1000
  run 0 run -d --name b --network "n$n" "t$n:1" /bin/sleep 1000
  run 0 run -d --name c --network "m$n" "t$n:1" /bin/sleep 1000
  run 0 rename a new
  for name in b c; do
    run 0 exec "$name" /bin/cat /etc/hosts
    like "$out" $'[0-9.]+\tnew[^\n]*# neighbour'
    unlike "$out" $'[0-9.]+\ta( [^\n]*)?\t# neighbour'
  done
  run 0 stop -t 0 new
  run 0 rename new old
  run 0 exec b /bin/cat /etc/hosts
  unlike "$out" '# neighbour'
  run 0 rm -f old b c
}

# ── The OCI runtime ──────────────────────────────────────────────────────────

oci_bundle() { # a root of the host's own programs in ./root, and a config.json around it
  own_state
  [[ -d root ]] || small_root root
  rm -f config.json
  run 0 spec
  configure 'c["process"]["terminal"] = False'
}

configure() { # configure PYTHON [ARG...]: change config.json, c, and with ARGs its command
  "$PYTHON" -I - "$@" <<'PYTHON'
import json, sys
c = whole = json.load(open("config.json"))
c["root"]["path"] = "root"
p, l = c["process"], c["linux"]


def sh(script, **more):  # a hook
    return {"path": "/bin/sh", "args": ["sh", "-c", script], **more}


exec(sys.argv[1])
if sys.argv[2:]:
    p["args"] = sys.argv[2:]
json.dump(c, open("config.json", "w"))
PYTHON
}

bundle_says() { # bundle_says WANT PYTHON ARG...: the bundle, changed so, says that
  oci_bundle
  configure "${@:2}"
  run 0 run --bundle . t
  is "$out" "$1"
}

field() { # field NAME: of the state in $out
  sed -nE 's/.*"'"$1"'": "?([^",}]*).*/\1/p' <<<"$out"
}

test_oci_life() { # oci: create, start, state, ps, kill and delete,
  # with the words that engines look for
  oci_bundle
  configure '' /bin/sh -c 'echo started; trap "exit 7" TERM; while :; do sleep 0.05; done'
  "${mydocker[@]}" create --pid-file pid t >said 2>&1 </dev/null
  run 0 state t
  is "$(field status) $(field pid) $(field bundle)" "created $(<pid) $PWD"
  is "$(<"/proc/$(<pid)/comm")" mydocker:init # not the command yet
  is "$(<said)" ''
  fails 125 'container with given ID already exists' create t
  run 0 ps --format json t
  is "$out" "[$(<pid)]"
  run 0 list --format json
  like "$out" '"id": "t", "status": "created"'
  run 0 list -q
  is "$out" t
  run 0 start t
  run 0 state t
  is "$(field status)" running
  wait_for has said started
  run 0 kill t 0 # is it there?
  fails 125 'cannot start a container that is running' start t
  fails 125 'not stopped: running' delete t
  run 0 pause t
  run 0 state t
  is "$out" "${out/running/paused}"
  is "$(field status)" paused
  run 0 resume t
  run 0 events --stats t
  like "$out" '"pids": \{"current": [12],'
  run 0 kill t 15
  wait_for gone "$(<pid)"
  run 0 state t
  is "$(field status) $(field pid)" 'stopped 0'
  fails 125 'container not running' kill t 15
  run 0 kill --all t 9
  fails 125 'container not running' update --resources - t </dev/null
  fails 125 'container not running' events --stats t
  fails 125 'container not running' exec t true
  run 0 delete t
  fails 125 '^mydocker: container, on t: container does not exist$' kill t TERM
  fails 125 '^mydocker: container, on t: container does not exist$' kill --all t
  fails 125 'container does not exist' ps t
  fails 125 'container does not exist' state t
  fails 125 'container does not exist' delete t
  run 0 delete --force t
  run 0 --log log --log-format json create --bundle . t
  timeout 60 "${mydocker[@]}" --log log --log-format=json create --bundle . t 2>err &&
    fail 'made it twice'
  like "$(<log)" '^\{"level": "error", "msg": "create, on t: container with given ID already exists'
  like "$(<log)" '", "time": "20[^"]*Z"\}$'
  run 0 delete --force t
  is "$(find state/oci -mindepth 1)" ''
  is "$(find /sys/fs/cgroup -path "*/$(engine_cgroup t)")" ''
}

test_oci_create_fails() { # oci: what can't start fails create with the engines' words,
  # and nothing of it stays
  local before
  oci_bundle
  before=$(wc -l </proc/self/mountinfo)
  configure '' /nonexistent
  fails 127 '^mydocker: exec, on /nonexistent: no such file or directory' create t
  configure '' /etc/passwd/x
  fails 127 '^mydocker: exec, on /etc/passwd/x: not a directory' create t
  configure '' /etc
  fails 126 '^mydocker: exec, on /etc: permission denied' create t
  configure '' nonexistent
  fails 127 'executable file not found in \$PATH' create t
  configure '' /etc/passwd
  fails 126 'permission denied' create t
  configure 'p["cwd"] = "/etc/passwd/x"' /bin/true
  fails 125 'passwd' create t
  configure 'p["cwd"] = "/"; l["resources"] = {"hugepageLimits": [{"pageSize": "3MB", "limit": 1}]}'
  fails 125 'hugepageLimits' create t
  configure 'l["resources"] = {}
c["hooks"] = {"createRuntime": [sh("echo oops >&2; exit 3")]}'
  fails 125 '^mydocker: hook, on /bin/sh: exit status 3: oops$' create t
  configure 'c["hooks"] = {"createContainer": [sh("exec sleep 1000", timeout=1)]}'
  fails 125 'took more than 1 seconds' create t
  is "$(find state/oci -mindepth 1)$(find /sys/fs/cgroup -path "*/$(engine_cgroup t)")" ''
  is "$(wc -l </proc/self/mountinfo)" "$before"
}

test_oci_refused() { # oci: a config.json that is wrong, or asks for what we can't do,
  # is refused by name
  local change
  oci_bundle
  while IFS=' ' read -r want change; do
    cp config.json good
    configure "def seccomp(**row):
    return {'defaultAction': 'SCMP_ACT_LOG', 'syscalls': [row]}

$change"
    fails 125 "config.json.*$want" create t
    mv good config.json
  done <<'END'
hooks c["hooks"] = {"prestart": [{"path": "bin/sh"}]}
uidMappings l["namespaces"].append({"type": "user"})
root: c["root"].pop("path")
root.path: c["root"]["path"] = "nonesuch"
hostname: c["hostname"] = "a" * 65
vm c["vm"] = {"kernel": {"path": "/k"}}
linux.personality.domain l["personality"] = {"domain": "MOON"}
linux.personality.flags l["personality"] = {"domain": "LINUX", "flags": ["x"]}
process.scheduler.policy p["scheduler"] = {"policy": "SCHED_MOON"}
process.scheduler.flags p["scheduler"] = {"policy": "SCHED_BATCH", "flags": ["x"]}
process.ioPriority.class p["ioPriority"] = {"priority": 1}
linux.memoryPolicy.mode l["memoryPolicy"] = {"mode": "MPOL_MOON"}
list p["execCPUAffinity"] = {"initial": "x"}
linux.timeOffsets l["timeOffsets"] = {"monotonic": {"secs": 1}}
idmap c["mounts"][0]["options"].append("idmap")
namespaces l["namespaces"].append({"type": "moon"})
mount l["namespaces"] = [{"type": "pid"}]
hostname l["namespaces"] = [{"type": "mount"}]
rootfsPropagation l["rootfsPropagation"] = "everywhere"
process.args p["args"] = []
args p["args"] = "sh"
args p["args"] = [1]
mounts c["mounts"] = {}
destination c["mounts"][0]["destination"] = 7
user p["user"]["uid"] = -1
uid p["user"]["uid"] = "root"
linux c["linux"] = []
env p["env"].append("=x")
destination c["mounts"].append({"type": "tmpfs"})
namespaces l["namespaces"].append({})
devices l["devices"] = [{"path": "/dev/x"}]
hooks c["hooks"] = {"prestart": [{"args": ["x"]}]}
rlimits p["rlimits"] = [{"type": "RLIMIT_MOON", "soft": 1, "hard": 1}]
cwd p["cwd"] = "tmp"
cwd del p["cwd"]
process.env p["env"].append("A")
twice l["namespaces"].append({"type": "pid", "path": "/proc/self/ns/pid"})
twice p["rlimits"] = [{"type": "RLIMIT_CORE", "soft": n, "hard": 2} for n in (1, 2)]
sysctl l["sysctl"] = {"net.ipv4.ip_forward": 1}
NUL p["args"] = ["a\u0000b"]
memory l["resources"] = {"memory": [1]}
devices:.type:.p: l["resources"] = {"devices": [{"type": "p", "access": "rwm", "allow": True}]}
limit l["resources"] = {"hugepageLimits": [{}]}
pageSize: l["resources"] = {"hugepageLimits": [{"limit": 1}]}
priorities..?.name: l["resources"] = {"network": {"priorities": [{"priority": 1}]}}
weight: l["resources"] = {"blockIO": {"weightDevice": [{"major": 7, "minor": 0}]}}
defaultAction:.SCMP_ACT_MOON: l["seccomp"] = {"defaultAction": "SCMP_ACT_MOON"}
defaultAction: l["seccomp"] = {"syscalls": []}
action: l["seccomp"] = seccomp(names=["read"])
names: l["seccomp"] = seccomp(action="SCMP_ACT_LOG")
op: l["seccomp"] = seccomp(names=[], action="SCMP_ACT_LOG", args=[dict(index=0, value=1)])
op:.X: l["seccomp"] = seccomp(names=[], action="SCMP_ACT_LOG",args=[dict(index=0, value=1, op="X")])
containerID l["uidMappings"] = [{}]; l["namespaces"].append({"type": "user"})
limit l["resources"] = {"memory": {"limit": "much"}}
END
  if ! grep -qs resctrl /proc/mounts; then
    cp config.json good
    configure 'l["intelRdt"] = {"closID": "x"}'
    fails 125 'config.json: linux.intelRdt: no resctrl file system is mounted here' create t
    mv good config.json
  fi
  echo '{' >config.json
  fails 125 'config.json: bad JSON' create t
  rm config.json
  fails 125 'config.json' create --bundle . t
  fails 125 'not a container.s id' create --bundle . ../t
  fails 125 'not a container.s id' run --bundle . ../t
  is "$(find state -mindepth 2)" ''
}

test_oci_process() { # oci: user, groups, umask, cwd, environment, limits and names are the config's
  bundle_says $'uid=5 gid=6 groups=6,7\n0077 /tmp A=b\n77\ndom.x hostess' '
p["user"] = {"uid": 5, "gid": 6, "additionalGids": [7], "umask": 63}
p.update(cwd="/tmp", env=p["env"] + ["A=b"])
p["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88}]
c.update(hostname="hostess", domainname="dom.x")' \
    /bin/sh -c 'id | sed "s/groups=7/groups=6,7/"; echo $(umask) $PWD A=$A; ulimit -n
      echo $(cat /proc/sys/kernel/domainname /proc/sys/kernel/hostname)' ||
    skip 'needs sed in the root'
}

test_oci_namespaces() { # oci: namespaces are new, the host's, or somebody's by path;
  # a cgroup is where cgroupsPath says
  need unshare
  local other
  unshare --net --ipc --uts sleep 1000 &
  other=$!
  wait_for other_namespace "$other"
  bundle_says "$(readlink /proc/"$other"/ns/{net,ipc,uts} /proc/self/ns/pid)" "
for row in l['namespaces']:
    kind = {'network': 'net', 'ipc': 'ipc', 'uts': 'uts'}.get(row['type'])
    if kind:
        row['path'] = '/proc/$other/ns/' + kind
l['namespaces'] = [row for row in l['namespaces'] if row['type'] != 'pid']
c.pop('hostname')" /bin/sh -c 'for kind in net ipc uts pid; do readlink /proc/self/ns/$kind; done'
  kill "$other"
  wait "$other" || :
  fails 125 'namespace, on /proc/.*/ns/' run --bundle . t
  oci_bundle
  configure 'l["cgroupsPath"] = "mydocker'"$unique"'-test.slice:pre:t"
l["namespaces"] = [row for row in l["namespaces"] if row["type"] != "cgroup"]' \
    /bin/cat /proc/self/cgroup
  run 0 run --bundle . t
  like "$out" ":/mydocker$unique.slice/mydocker$unique-test.slice/pre-t.scope"
  find /sys/fs/cgroup -depth -type d -path "*/mydocker$unique*" -exec rmdir {} +
  is "$(find /sys/fs/cgroup -name 'pre-t.scope')" ''
}

test_oci_namespace_kinds() { # oci: a path that is no namespace of its kind, and a mapping that
  # can't be, are errors that name them
  local map path
  for path in /proc/self/ns/uts /etc/passwd; do
    oci_bundle
    configure "l['namespaces'] = [
    row for row in l['namespaces'] if row['type'] != 'network'] + [
    {'type': 'network', 'path': '$path'}]" /bin/true
    fails 125 "^mydocker: namespace, on $path: it is no network namespace\$" create t
  done
  for map in '0, 100000, 10), (5, 200000, 10' '1000, 100000, 1'; do
    oci_bundle
    configure "l['namespaces'].append({'type': 'user'})
l['uidMappings'] = l['gidMappings'] = [
    {'containerID': inside, 'hostID': host, 'size': size} for inside, host, size in [($map)]]" \
      /bin/true
    fails 125 'uidMappings(: id 0 in the container|, on 0 100000 10, 5 200000 10: invalid)' create t
  done
  is "$(find state/oci -mindepth 1)" ''
}

test_oci_killed_early() { # oci: that init is killed for want of memory is said
  need_limits memory
  oci_bundle
  configure 'l["resources"] = {"memory": {"limit": 4096}}' /bin/true
  fails 125 'init was killed|memory, on 4096' create t
  is "$(find state/oci -mindepth 1)" ''
}

other_namespace() { # other_namespace PID: it isn't in our network any more
  [[ $(readlink "/proc/$1/ns/net") != "$(readlink /proc/self/ns/net)" ]]
}

test_oci_user_namespace() { # oci: in a user namespace root is nobody's root, and /dev,
  # /proc and /sys are there all the same
  need userns
  local base=100000
  reachable || base=0 # a Python below /root is for root alone
  chmod 755 .
  small_root root
  mkdir root/proc root/sys root/dev # the root of the user namespace can't make them
  bundle_says "0 $base 65536"$'\nwritten\n/proc/self/fd' "
l['namespaces'].append({'type': 'user'})
l['uidMappings'] = l['gidMappings'] = [{'containerID': 0, 'hostID': $base, 'size': 65536}]" \
    /bin/sh -c 'read a b c </proc/self/uid_map; echo $a $b $c; echo x >/dev/null && echo written
      ls /sys/class/net/lo/mtu >/dev/null; readlink /dev/fd'
  configure '' /bin/sh -c 'read x; echo x >/etc/new'
  run 0 create --pid-file pid t </dev/null
  is "$(stat -c %u "/proc/$(<pid)")" "$base"
  run 0 exec t /bin/sh -c 'id -u; read a b c </proc/self/uid_map; echo $b'
  is "$out" "0"$'\n'"$base"
  run 0 delete --force t
}
reachable() { # others than root can run $PYTHON
  local path
  path=$(readlink -f "$PYTHON")
  while [[ $path != / ]]; do
    [[ $(stat -c %A "$path") == *x ]] || return 1
    path=$(dirname "$path")
  done
}

test_oci_mounts() { # oci: mount options apply to one mount or, with r in front, to all below it;
  # so does propagation
  mkdir -p source/below
  mount -t tmpfs none source/below
  mkdir source/below/there
  bundle_says $'ro,nosuid,noatime\nro,nosuid,noatime\nro\nrw' "
for place, options in (('/m', 'rbind rro rnosuid rnoatime rslave'), ('/n', 'rbind ro')):
    c['mounts'].append({'destination': place, 'type': 'none', 'source': '$PWD/source',
                        'options': options.split()})
l['rootfsPropagation'] = 'private'" /bin/sh -c '
while read -r _ _ _ _ place words _; do
  case $place in
    /m*) echo "${words%,relatime}" ;;
    /n*) echo "${words%%,*}" ;;
  esac
done </proc/self/mountinfo'
  umount source/below
  mkdir root/full
  echo kept >root/full/file
  bundle_says $'kept\nmydocker' "c['mounts'].append({'destination': '/full', 'type': 'tmpfs',
                    'options': ['tmpcopyup', 'size=1m']})" \
    /bin/sh -c 'cat /full/file; cat /proc/sys/kernel/hostname'
}

test_oci_masked() { # oci: a path that is to be masked and read-only is both; a masked passwd has no
  # accounts
  small_root root
  echo 'root:x:0:0:root:/root:/bin/sh' >root/etc/passwd
  bundle_says '/' "
l['maskedPaths'] = ['/proc/sys', '/etc/passwd', '/none']
l['readonlyPaths'] = ['/proc/sys', '/etc', '/none']
c['root']['readonly'] = False" /bin/sh -c '
set -- /proc/sys/*; if [ -e "$1" ]; then echo seen; fi
cat /etc/passwd; if (echo x >/etc/new) 2>/dev/null; then echo written; fi; cd /; echo ~'
}

test_oci_read_only_root_path() { # oci: a path that is to be read-only and is the root makes that so
  local path
  small_root root
  ln -s / root/here
  for path in / /etc/.. /here; do
    bundle_says 'no yes' "l['readonlyPaths'] = ['$path']
l['maskedPaths'] = []
c['root']['readonly'] = False" /bin/sh -c '
a=no b=no; if (echo x >/new) 2>/dev/null; then a=yes; fi
if (echo x >/dev/shm/new) 2>/dev/null; then b=yes; fi; echo $a $b'
  done
}

test_oci_propagation() { # oci: each mount keeps its own propagation, whatever it is and whatever
  # the root's is
  own_state
  bundle_says $'/ shared\n/a shared\n/b -\n/c unbindable\n/d shared' "
for place, *options in (
        ('/a', 'nosuid', 'shared'), ('/b', 'rprivate'), ('/c', 'unbindable'), ('/d',)):
    c['mounts'].append({'destination': place, 'type': 'tmpfs', 'options': options})
l['rootfsPropagation'] = 'rshared'" /bin/sh -c '
while read -r _ _ _ _ place _ word _; do
  case $place in /|/[a-d]) echo "$place ${word%%:*}" ;; esac
done </proc/self/mountinfo'
}

test_oci_remount() { # oci: a remount changes the flags of what is there, also of /proc
  oci_bundle
  mkdir source
  configure "
c['mounts'] += [
    {'destination': '/proc', 'source': '/proc', 'options': ['bind', 'remount', 'ro']},
    {'destination': '/m', 'type': 'bind', 'source': '$PWD/source', 'options': ['bind', 'nosuid']},
    {'destination': '/m', 'source': '$PWD/source', 'options': ['remount', 'bind', 'nodev']},
    {'destination': '/n', 'type': 'tmpfs'},
    {'destination': '/n', 'type': 'tmpfs', 'options': ['remount', 'size=16k']}]" /bin/sh -c '
while read -r _ _ _ _ place words _ more; do
  case $place in /proc | /[mn]) echo "$place ${words%,relatime} ${more##*size=}" ;; esac
done </proc/self/mountinfo'
  run 0 run --bundle . t
  like "$out" $'^/proc ro .*\n/m rw,nodev .*\n/n rw 16k'
  configure "c['mounts'].append({'destination': '/none', 'type': 'bind', 'source': '/proc',
      'options': ['bind', 'remount']})"
  fails 125 '^mydocker: mount, on /none: remount: no such file or directory$' create t
}

test_oci_dev_read_only() { # oci: a /dev that is to be read-only is filled first
  bundle_says $'ro\nchar' "
for row in c['mounts']:
    if row['destination'] == '/dev': row['options'].append('ro')" /bin/sh -c '
while read -r _ _ _ _ place words _; do
  case $place in /dev) echo "${words%%,*}" ;; esac
done </proc/self/mountinfo
[ -c /dev/null ] && echo char; if (echo x >/dev/new) 2>/dev/null; then echo written; fi'
  configure 'p["terminal"] = True' # its console is put there, too
  tty 0 -- "${mydocker[@]}" run --bundle . t
  like "$out" char
}

test_oci_mount_kinds() { # oci: a file over a directory, or the reverse, is no directory; a missing
  # source leaves nothing
  local source target
  oci_bundle
  mkdir -p directory root/over
  touch file root/below
  for source in "file /over" "directory /below"; do
    read -r source target <<<"$source"
    configure "c['mounts'] = c['mounts'][:7] + [{
      'destination': '$target', 'type': 'bind', 'source': '$PWD/$source', 'options': ['rbind']}]"
    fails 125 "^mydocker: mount, on $PWD/$source at $target: not a directory\$" create t
  done
  configure "c['mounts'][-1].update(source='$PWD/none', destination='/new')"
  fails 125 "^mydocker: mount, on $PWD/none: no such file or directory\$" create t
  [[ ! -e root/new ]]
}

test_oci_mounts_refused() { # oci: a mount that the kernel refuses is named by its source and place
  local change why
  while IFS=';' read -r change why; do
    oci_bundle
    configure "c['mounts'].append({'destination': '/m', $change})" /bin/true
    fails 125 "^mydocker: mount, on $why\$" create t
  done <<'END'
'type': 'nofs', 'source': 'x';x at /m: no such device
'type': 'tmpfs', 'options': ['size=much'];tmpfs at /m: invalid argument
'type': 'tmpfs', 'destination': '/bin/sh';tmpfs at /bin/sh: not a directory
END
  is "$(find state/oci -mindepth 1)" ''
}

test_oci_devices() { # oci: devices are made as they are written, and those that runc always allows
  # can be used
  local rule
  bundle_says $'con not permitted\nlog not permitted\n660 /dev/log\n0 /dev/none\n0' "
c['root']['readonly'] = False
l['resources'] = {'devices': [
    {'allow': False, 'access': 'rwm'},
    {'allow': True, 'type': 'c', 'major': 1, 'minor': 11, 'access': 'wa'}]}
l['devices'] = [
    {'path': '/dev/' + name, 'type': 'c', 'major': major, 'minor': minor, 'fileMode': mode}
    for name, major, minor, mode in (('net/tun/', 10, 200, 0o666), ('con', 5, 1, 0o666),
                                     ('log', 1, 11, 0o20660), ('none', 1, 3, 0))]" \
    /bin/sh -c '
for name in net/tun con log; do
  case $( (: </dev/$name) 2>&1) in *"not permitted"*) echo "$name not permitted" ;; esac
done
busybox stat -c "%a %n" /dev/log /dev/none
(: >/dev/log); echo $?'
  for rule in "'/dev/x', 'type': 'z'" "'/', 'type': 'c'" "'/dev/x', 'type': 'c', 'major': -1"; do
    configure "l['devices'] = [{'path': $rule}]"
    fails 125 'config.json: linux(.devices: /(dev/x)?: no such device|: devices: major: a number)' \
      create t
  done
  configure "l['devices'] = []; l['resources']['devices'][1]['access'] = 'x'"
  fails 125 'linux.resources.devices: access: x: unknown' create t
  configure \
    "l['resources'] = {'blockIO': {'weightDevice': [{'major': 0, 'minor': 0, 'weight': 300}]}}"
  fails 125 'blockIO.weightDevice, on 0:0 300: ' create t
}

test_oci_devices_of_root() { # oci: where nothing is mounted on /dev the root's own has the devices,
  # and what is there already stays
  local bare='
c["mounts"] = [row for row in c["mounts"] if not row["destination"].startswith("/dev")]
c["root"]["readonly"] = True
l["devices"] = [{"path": "/dev/x", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600}]'
  own_state
  small_root root
  mkdir -p root/dev
  echo kept >root/dev/zero
  echo kept >root/dev/fd
  for _ in 1 2; do
    bundle_says $'kept\nkept\nhere' "$bare" /bin/sh -c 'cat /dev/zero /dev/fd; echo x >/dev/null
      if [ -c /dev/null ] && [ -c /dev/x ] && [ -c /dev/tty ] && [ -L /dev/stdin ]; then
        echo here; fi'
  done
  is "$(stat -c '%t:%T %a' root/dev/null root/dev/x)" $'1:3 666\n1:3 600'
  rm root/dev/x
  echo kept >root/dev/x
  oci_bundle
  configure "$bare" /bin/true
  fails 125 '^mydocker: device, on /dev/x: file exists' create t
  is "$(<root/dev/x)" kept
  rm -r root/dev
  ln -s /tmp root/dev
  fails 125 '^mydocker: device, on /dev: too many levels of symbolic links' create t
  is "$(find state/oci -mindepth 1)" ''
}

test_oci_workdir() { # oci: a working directory that isn't there is made, in a read-only root, too
  bundle_says '/made/up' "p['cwd'] = '/made/up'; c['root']['readonly'] = True" /bin/sh -c pwd
  bundle_says '/m/a' \
    "p['cwd'] = '/m/a'; c['mounts'].append({'destination': '/m', 'type': 'tmpfs'})" /bin/sh -c pwd
  [[ ! -e root/m/a ]]
  configure 'p["cwd"] = "/proc/nothing"'
  fails 125 '^mydocker: --workdir, on /proc/nothing: no such file or directory$' create t
}

test_oci_hooks() { # oci: every hook runs at its moment, with the state on its input
  oci_bundle
  configure "
moments = 'prestart', 'createRuntime', 'createContainer', 'poststart', 'poststop'
c['hooks'] = {moment: [sh('read -r s; echo \"' + moment + ' \$s\" >>$PWD/hooks')]
              for moment in moments}
c['hooks']['startContainer'] = [sh('read -r s; echo \"\$s\" >/tmp/state', env=['X=y'])]
c['hooks']['poststop'].insert(0, {'path': '/nonexistent'})
c['root']['readonly'] = False" /bin/cat /tmp/state
  run 0 create t >said
  like "$(<hooks)" '^prestart .*createRuntime .*createContainer .*"status": "creating"'
  unlike "$(<hooks)" 'poststart'
  run 0 start t
  run 0 delete --force t
  like "$err" 'warning: .*nonexistent'
  is "$(sed 's/ .*//' hooks | tr '\n' ' ')" \
    'prestart createRuntime createContainer poststart poststop '
  like "$(sed -n 's/^poststop //p' hooks)" \
    '"id": "t", "status": "stopped", "pid": 0, "bundle": "'"$PWD"'"'
  run 0 run --bundle . t
  like "$out" '"id": "t"'
}

test_oci_hook_surroundings() { # oci: where a hook starts, what environment it has, and the status
  # in its state
  oci_bundle
  echo 'read -r s; s=${s#*status\": \"}; echo "$1 $PWD $MARK $OWN ${s%%\"*}" >>"$2"' |
    tee root/tmp/hook.sh >hook.sh
  configure "
def hook(moment, where='$PWD', **more):
    return {'path': '/bin/sh', 'args': ['sh', where + '/hook.sh', moment, where + '/hooks'], **more}
c['hooks'] = {moment: [hook(moment), hook(moment, env=['OWN=own'])]
              for moment in ('prestart', 'createRuntime', 'createContainer', 'poststart',
                             'poststop')}
c['hooks']['startContainer'] = [hook('startContainer', '/tmp')]
p['env'].append('MARK=inside')
c['root']['readonly'] = False" /bin/sh -c :
  export MARK=outside
  run 0 create --bundle . t >said
  (cd / && "${mydocker[@]}" start t)
  wait_for has root/tmp/hooks .
  run 0 delete --force t
  is "$(<hooks)" "prestart $PWD outside  creating
prestart $PWD  own creating
createRuntime $PWD outside  creating
createRuntime $PWD  own creating
createContainer $PWD/root   creating
createContainer $PWD/root  own creating
poststart $PWD outside  running
poststart $PWD  own running
poststop $PWD outside  stopped
poststop $PWD  own stopped"
  is "$(<root/tmp/hooks)" 'startContainer / inside  created'
}

test_oci_hook_imports() { # oci: for a hook inside nothing of the container's is imported,
  # CVE-2019-14271
  local module
  module=$("$PYTHON" -I -c 'import subprocess; print(subprocess.__file__)')
  small_root root
  mkdir -p "root${module%/*}"
  echo 'open("/tmp/imported", "w").close()' >"root$module"
  bundle_says hooked "
c['hooks'] = {'startContainer': [sh('echo hooked >/tmp/hooked')]}
c['root']['readonly'] = False" /bin/cat /tmp/hooked
  [[ ! -e root/tmp/imported ]]
}

test_oci_traits() { # oci: when a process may run, what its reads give way to, which kernel it
  # takes this for, where its memory is from and what its clocks say are the config's
  need busybox
  bundle_says $'5 3\nidle\ni686\nbind\n1000000 5' "
p['scheduler'] = {'policy': 'SCHED_BATCH', 'nice': 5}
p['ioPriority'] = {'class': 'IOPRIO_CLASS_IDLE', 'priority': 2}
l['personality'] = {'domain': 'LINUX32'}
l['memoryPolicy'] = {'mode': 'MPOL_BIND', 'nodes': '0'}
l['namespaces'].append({'type': 'time'})
l['timeOffsets'] = {'monotonic': {'secs': 1000000, 'nanosecs': 5}}" /bin/sh -c '
read -r line </proc/self/stat
set -- ${line##*) }
echo "${17} ${39}"
busybox ionice -p $$
busybox uname -m
read -r _ policy _ </proc/self/numa_maps
echo "${policy%:*}"
read -r _ seconds more </proc/self/timens_offsets
echo $seconds $more'
  configure 'l["namespaces"].append({"type": "user"})'
  fails 125 'linux.timeOffsets: it needs a time namespace' create t
}

test_oci_options_of_others() { # oci: what is for an engine's container is never ignored for another
  local option
  own_state
  run 0 run -d --name "t$n" --network none /bin/sleep 1000
  for option in --no-new-privs --cap=SYS_ADMIN --cwd=/tmp --additional-gids=7 --apparmor=x \
    --process-label=x --cgroup=x --ignore-paused --pid-file=pid --preserve-fds=1; do
    fails 125 "exec, on ${option%=*}: that is for an engine's container" \
      exec "$option" "t$n" /bin/true
  done
  fails 125 "update, on --cpu-share: that is for an engine's container" update --cpu-share 1 "t$n"
  for option in --no-pivot --no-new-keyring --keep --pid-file=pid --preserve-fds=1; do
    fails 125 "run, on ${option%=*}: that is for an engine's container" run "$option" /bin/true
  done
  [[ ! -e pid ]]
  run 0 rm -f "t$n"
}

test_oci_options() { # oci: the options of create, run, exec, update and ps that people and clients
  # pass
  need busybox
  oci_bundle
  configure '' /bin/busybox ls /..
  run 0 run --no-pivot --bundle . t
  is "$out" "$(ls root)"
  configure '' /bin/sleep 1000
  run 0 create --pid-file pid t
  run 0 start t
  run 0 exec --cwd /tmp -g 7 -g 8 -u 5:6 -e A=b --no-new-privs t \
    /bin/sh -c 'echo $PWD $A; busybox id; busybox grep NoNewPrivs /proc/self/status'
  is "$out" $'/tmp b\nuid=5 gid=6 groups=7,8\nNoNewPrivs:\t1'
  run 0 exec -c SYS_ADMIN t /bin/busybox grep CapEff /proc/self/status
  (((0x${out##*[[:space:]]} >> 21) & 1)) || fail "no CAP_SYS_ADMIN in $out"
  fails 125 'no such cgroup' exec --cgroup nowhere t /bin/sh
  fails 125 'there is no such capability' exec -c MOON t /bin/sh
  run 0 ps t
  like "$out" "UID +PID +PPID +TIME +CMD.*$(<pid) .*sleep 1000"
  run 0 ps -f json t
  is "$out" "[$(<pid)]"
  run 0 update --cpu-share 512 t
  run 0 pause t
  "${mydocker[@]}" exec --ignore-paused t /bin/sh -c 'echo late' >late &
  run 0 resume t
  wait_for has late late
  "${mydocker[@]}" events --interval 1s t >told &
  wait_for has told '"type": "stats"'
  run 0 kill t KILL
  wait # events ends with it
  run 0 delete t
  configure '' /bin/sh -c :
  run 0 run --keep --bundle . t
  run 0 state t
  is "$(field status)" stopped
  run 0 delete t
  run 0 features
  like "$out" '"mydocker.refused": "vm windows'
}

test_oci_trees() { # oci: in a user namespace a bind's source may lie where its root can't go,
  # and a mount may show other owners
  need userns
  local base=100000
  reachable || base=0
  oci_bundle
  chmod 755 .
  mkdir -p private/below mapped root/proc root/sys root/dev root/private root/mapped
  echo secret >private/below/file
  echo mine >mapped/file
  chown "$((base + 5))" mapped/file
  chmod 700 private
  configure "
l['namespaces'].append({'type': 'user'})
l['uidMappings'] = l['gidMappings'] = [{'containerID': 0, 'hostID': $base, 'size': 65536}]
c['mounts'] += [{'destination': '/private', 'type': 'bind', 'source': '$PWD/private/below',
                 'options': ['rbind', 'ro']}]" \
    /bin/sh -c 'cat /private/file; if (echo x >/private/new) 2>/dev/null; then echo written; fi'
  run 0 run --bundle . t
  is "$out" secret
  oci_bundle
  configure "
maps = [{'containerID': $base, 'hostID': 70000, 'size': 10}]
c['mounts'] += [{'destination': '/mapped', 'type': 'bind', 'source': '$PWD/mapped',
                 'options': ['bind', 'idmap'], 'uidMappings': maps, 'gidMappings': maps}]" \
    /bin/busybox stat -c %u /mapped/file
  if ! "${mydocker[@]}" run --bundle . t >out 2>err; then
    has err 'idmap: ' && skip 'needs a file system that can be mapped'
  fi
  is "$(<out)" 70005
}

test_keyring() { # security: the caller's session keyring stays outside
  local code='
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
number = 250 if os.uname().machine == "x86_64" else 219
if sys.argv[1:] and libc.syscall(number, 1, None) < 0:  # KEYCTL_JOIN_SESSION_KEYRING
    sys.exit(3)
print(libc.syscall(number, 0, -3, 0), flush=True)  # the session keyring: KEYCTL_GET_KEYRING_ID
if sys.argv[1:]:
    os.execvp(sys.argv[1], sys.argv[1:])'
  own_state
  "$PYTHON" -c "$code" "${mydocker[@]}" run --security-opt seccomp=unconfined \
    "$PYTHON" -c "$code" >ids || skip 'needs keyctl'
  is "$(wc -l <ids) $(sort -u ids | wc -l)" '2 2'
}

test_oci_exec() { # oci: exec takes a process in a file, and the engine gets its pid,
  # terminal and status
  local status=0
  oci_bundle
  configure 'p["capabilities"]["bounding"].remove("CAP_KILL")' /bin/sleep 1000
  run 0 create --pid-file pid t
  run 0 start t
  echo '{"args": ["/bin/sh", "-c",
    "echo $A; id -u; pwd; read -r _ b </proc/self/loginuid; echo x; exit 9"],
    "cwd": "/tmp", "env": ["A=b"], "user": {"uid": 3, "gid": 4}}' >process
  run 9 exec --process process t
  is "$out" $'b\n3\n/tmp\nx'
  run 5 exec t /bin/sh -c 'exit 5'
  echo '{"args": ["/bin/sleep", "1000"], "cwd": "/"}' >process
  run 0 exec --detach --pid-file pid2 --process process t
  is "$(readlink /proc/"$(<pid2)"/ns/{pid,mnt})" "$(readlink /proc/"$(<pid)"/ns/{pid,mnt})"
  is "$(grep -E '^(Cap(Bnd|Eff)|Seccomp:)' "/proc/$(<pid2)/status")" \
    "$(grep -E '^(Cap(Bnd|Eff)|Seccomp:)' "/proc/$(<pid)/status")"
  run 0 ps --format json t
  is "$out" "[$(<pid), $(<pid2)]"
  echo '{"args": "x"}' >process
  fails 125 '^mydocker: process: args: list wanted' exec --process process t
  run 0 kill --all t KILL
  wait_for gone "$(<pid)" "$(<pid2)"
  fails 125 'not running' exec t /bin/true
  run 0 delete t
}

console='
import array, os, socket, subprocess, sys
server = socket.socket(socket.AF_UNIX)
server.bind("socket")
server.listen()
command = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
connection, _ = server.accept()
_, rights, _, _ = connection.recvmsg(64, socket.CMSG_SPACE(4))
master = array.array("i", rights[0][2])[0]
connection.close()  # as engines do: what is sent is no stream
assert command.wait() == 0
subprocess.run([*sys.argv[1:3], "start", "t"], check=True)
data = b""
try:
    while b"end" not in data:
        data += os.read(master, 4096)
except OSError:
    pass
os.write(1, data.replace(b"\r", b""))'

test_oci_console() { # oci: the terminal is sent to the console socket, with its size;
  # without one create fails
  oci_bundle
  configure 'p["terminal"] = True; p["consoleSize"] = {"height": 33, "width": 77}' "$PYTHON" -c 0
  configure '' /bin/sh -c 'readlink /proc/self/fd/0; [ -c /dev/console ] && echo console; echo end'
  fails 125 'no --console-socket' create t
  fails 125 'no --console-socket' run -d --bundle . t
  is "$(find state/oci -mindepth 1)" ''
  for _ in 1 2 3 4 5; do
    is "$("$PYTHON" -c "$console" "${mydocker[@]}" create --console-socket socket t)" \
      $'/dev/pts/0\nconsole\nend'
    run 0 delete --force t
    rm socket
  done
  tty 0 -- "${mydocker[@]}" run --bundle . t
  is "$out" $'/dev/pts/0\nconsole\nend'
}

test_oci_descriptors() { # oci: descriptors from 3 on are the command's only as far as
  # --preserve-fds says
  oci_bundle
  configure '' /bin/sh -c 'echo /proc/self/fd/*; cat <&4'
  echo given >given
  run 0 run --bundle . --preserve-fds 2 t 3</dev/null 4<given 5</etc
  # 5 is what the shell reads the list from
  is "$out" "$(echo /proc/self/fd/{0..5})"$'\ngiven'
  fails 125 'preserve-fds, on 9: descriptor' run --bundle . --preserve-fds 9 t
}

test_oci_listen() { # oci: a service manager's sockets are the command's, an empty HOME is filled
  oci_bundle
  configure 'p["env"].append("HOME=")' /bin/sh -c 'echo $HOME $LISTEN_FDS $LISTEN_PID
    read -r line <&3; echo $line; if (echo <&4) 2>/dev/null; then echo more; fi'
  echo passed >file
  is "$(sh -c 'exec 3<file 4<file; export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@"' \
    sh "${mydocker[@]}" run --bundle . t)" $'/root 1 1\npassed'
  is "$(sh -c 'exec 3<file; export LISTEN_FDS=1 LISTEN_PID=1; exec "$@"' \
    sh "${mydocker[@]}" run --bundle . t 2>/dev/null)" '/root'
}

test_oci_delete_killed() { # oci: delete waits for who has just been killed, and refuses who hasn't
  oci_bundle
  configure '' /bin/sh -c 'trap "" TERM; while :; do sleep 0.1; done'
  run 0 create t >said
  run 0 start t
  fails 125 'cannot delete container that is not stopped: running' delete t
  run 0 kill t KILL
  run 0 delete t
  for _ in 1 2 3; do # two at once
    run 0 create t >said
    "${mydocker[@]}" delete -f t &
    run 0 delete -f t
    wait $!
  done
  is "$(find state/oci -mindepth 1)" ''
}

test_oci_ends_meanwhile() { # oci: what is asked of a container that somebody else just ends or
  # deletes is refused in a user's words: no path of its, no call
  local round known='exec, on t: container not running
container, on t: (container does not exist|it is not running|it is not paused|no such container)
exec, on t: it is paused
kill, on t: container not running
(update|events), on t: container not running
start, on t: cannot start a container that is (stopped|paused)'
  oci_bundle
  configure '' /bin/sleep 1000
  for round in 1 2 3 4; do
    run 0 create t >said
    run 0 start t
    at_once 'exec t /bin/id' 'state t' 'pause t' 'resume t' 'ps t' 'events --stats t' \
      'update --pids-limit 90 t' 'exec t /bin/id' 'kill t KILL' 'list' 'exec t /bin/id' \
      'delete -f t' 'delete -f t' 'exec t /bin/id'
    run 0 delete -f t
  done
  only_said "$known"
  is "$(find state/oci -mindepth 1)" ''
}

test_ends_meanwhile() { # exec: what is asked of a container that somebody just removes is refused
  # in a user's words
  local round known='container, on t: (it is not (running|paused)|no such container)
(exec, on t: it is paused|container, on t: it is already paused)
[a-z]+, on .*: the container has just been removed
[a-z]+, on .*: the process has just ended
inspect, on t: no such container, image, volume or network
(start|restart), on t: it runs, or is gone'
  own_state
  small_root root
  run 0 import root box
  for round in 1 2 3 4; do
    background --name t box /bin/sleep 1000
    at_once 'exec t /bin/id' 'inspect t' 'top t' 'pause t' 'unpause t' 'logs t' \
      'exec -d t /bin/id' 'update --pids-limit 90 t' 'rm -f t' 'exec t /bin/id' 'rm -f t' \
      'cp t:/bin/sh -' 'diff t' 'export t' 'stats --no-stream t' 'ps -a' 'prune' \
      'exec t /bin/id' 'prune'
    run 0 rm -f t
  done
  only_said "$known"
}

test_oci_update() { # oci: update takes resources in the OCI's form, and zero leaves a limit alone
  need_limits pids memory
  local dir
  oci_bundle
  configure 'l["resources"] = {"pids": {"limit": 20}, "memory": {"limit": 0},
                  "cpu": {"shares": 0}}' /bin/sleep 1000
  run 0 create t
  dir=$(find /sys/fs/cgroup -path "*/$(engine_cgroup t)/pids.max")
  is "$(<"$dir")" 20
  echo '{"pids": {"limit": 30}, "memory": {"limit": 67108864, "swap": 0},
    "blockIO": {"weight": 0}}' >resources
  run 0 update --resources=resources t
  is "$(<"$dir")" 30
  run 0 update --resources - t <<<'{"pids": {"limit": 40}}'
  is "$(<"$dir") $(cat "$(find /sys/fs/cgroup -path "*/$(engine_cgroup t)/memory.limit_in_bytes" \
    -o -path "*/$(engine_cgroup t)/memory.max" | head -n 1)")" '40 67108864'
  run 0 delete --force t
}

test_oci_update_lacks() { # oci: resources that lack what they need are refused by its name, in
  # update too, and a rule for devices that doesn't allow denies
  need_limits pids
  local change
  oci_bundle
  configure 'l["resources"] = {"devices": [{"type": "b", "major": 7}]}' /bin/sleep 1000
  run 0 create t
  while IFS=' ' read -r want change; do
    echo "$change" >resources
    fails 125 "^mydocker: --resources, on resources: linux.resources.$want: " \
      update --resources resources t
  done <<'END'
hugepageLimits...pageSize {"hugepageLimits": [{"limit": 1}]}
network.priorities...name {"network": {"priorities": [{"priority": 1}]}}
devices:.type {"devices": [{"type": "x", "access": "r"}]}
END
  fails 125 '^mydocker: --resources, on -: bad JSON: ' update --resources - t <<<'{'
  fails 125 '^mydocker: --resources, on -: pids: limit: ' update --resources - t \
    <<<'{"pids": {"limit": "x"}}'
  fails 125 'hugepageLimits, on x/../../y: not a size' update --resources - t \
    <<<'{"hugepageLimits": [{"pageSize": "x/../../y", "limit": 1}]}'
  run 0 delete --force t
}

test_oci_devices_elsewhere() { # oci: a device is made in the container's own /dev or root, and
  # nothing is removed for it
  local where
  oci_bundle
  mkdir -p tree/deep/er
  echo precious | tee tree/deep/file root/file >/dev/null
  configure "
c['mounts'].insert(0, {
    'destination': '/bound', 'type': 'bind', 'source': '$PWD/tree',
    'options': ['rbind']})" /bin/true
  for where in /bound/deep /bound/new /bound/made/up /file /etc; do
    configure "l['devices'] = [{'path': '$where', 'type': 'c', 'major': 1, 'minor': 3}]"
    fails 125 "^mydocker: device, on $where: (/bound is on another mount|file exists)$" create t
  done
  ln -s ../bound root/etc/by # nor by a link
  configure "l['devices'] = [{'path': '/etc/by/new', 'type': 'c', 'major': 1, 'minor': 3}]"
  fails 125 '^mydocker: device, on /etc/by/new: ' create t
  is "$(find tree | sort | xargs)" 'tree tree/deep tree/deep/er tree/deep/file'
  is "$(cat tree/deep/file root/file)" $'precious\nprecious'
  configure "l['devices'] = [{'path': path, 'type': 'c', 'major': 1, 'minor': 7}
  for path in ('/null0', '/dev/a/full', '/dev/zero', '/dev/ptmx')]" \
    /bin/ls -l /null0 /dev/a/full /dev/zero /dev/ptmx
  run 0 run --bundle . t
  is "$(grep -c ' 1, *7 ' <<<"$out")" 3
  like "$out" '/dev/ptmx -> pts/ptmx'
  run 0 run --bundle . t # with /null0 there already
  configure "l['devices'][0]['minor'] = 3"
  fails 125 '^mydocker: device, on /null0: file exists$' create t
  rm root/null0
  # a /dev that is somebody else's is not filled, nor is its console made
  mkdir empty
  configure "l['devices'], l['maskedPaths'] = [], []
c['mounts'].append({
    'destination': '/dev/.', 'type': 'bind', 'source': '$PWD/empty',
    'options': ['bind']})" /bin/ls /dev
  run 0 run --bundle . t
  is "$out$(ls empty)" ''
}

test_oci_foreign_sysctls() { # oci: a setting of a namespace that is the host's is refused, in
  # whatever way it is the host's
  local name kind file before
  before=$(cat /proc/sys/kernel/{msgmax,domainname} /proc/sys/net/ipv4/ip_forward)
  while read -r name kind file; do
    oci_bundle
    configure "
c['hostname'] = ''
l['sysctl'] = {'$name': '1'}
l['namespaces'] = [row for row in l['namespaces'] if row['type'] != '$kind']" /bin/true
    fails 125 "config.json: linux.sysctl: $name: it would be the host's" create t
    configure "l['namespaces'].append({'type': '$kind', 'path': '/proc/self/ns/$file'})"
    fails 125 "config.json: linux.sysctl: $name: it would be the host's" create t
  done <<'END'
kernel.msgmax ipc ipc
kernel.shm_rmid_forced ipc ipc
fs.mqueue.msg_max ipc ipc
net.ipv4.ip_forward network net
net/ipv4/ip_forward network net
kernel.domainname uts uts
END
  is "$(cat /proc/sys/kernel/{msgmax,domainname} /proc/sys/net/ipv4/ip_forward)" "$before"
  bundle_says $'moon\n4242' "l['sysctl'] = {'kernel.domainname': 'moon', 'kernel.msgmax': '4242'}" \
    /bin/cat /proc/sys/kernel/domainname /proc/sys/kernel/msgmax
  run 0 run --sysctl kernel.domainname=moon /bin/cat /proc/sys/kernel/domainname
  is "$out" moon
}

test_sysctl_slashes() { # oci: a setting's name has dots or slashes between its parts, and the other
  # one as a name's own dot, as with sysctl(8)
  need unshare ip
  local name said
  for name in net/ipv4/conf/tva.7/proxy_arp net.ipv4.conf.tva/7.proxy_arp; do
    oci_bundle
    configure "l['netDevices'] = {'tva.7': {}}
l['sysctl'] = {'$name': '1'}" /bin/cat /proc/sys/net/ipv4/conf/{tva.7,lo}/proxy_arp
    said=$(unshare --net bash -ec 'ip link add tva.7 type veth peer name tvb; "$@"' bash \
      "${mydocker[@]}" run --bundle . t)
    is "$said" $'1\n0'
  done
}

test_oci_private_keys() { # oci: what chapters tell init by keys of their own a bundle can't tell it
  local row
  make_canary
  for row in "'tree': 3" "'fallback': {'type': 'copy'}" "'copyUp': True" "'chown': True" \
    "'volume': 'v'"; do
    bundle_says fine "c['mounts'].append({'destination': '/x', 'type': 'tmpfs', $row})" \
      /bin/sh -c 'echo fine'
    bundle_says fine "c['mounts'].append({
      'destination': '/x', 'type': 'bind', 'source': '$PWD/canary', 'options': ['rbind'], $row})" \
      /bin/sh -c 'echo fine'
    rm -rf root
  done
  bundle_says fine "c['root'].update(mapped=True, opened=True, tree=3, source='/', copied=True)" \
    /bin/sh -c 'echo fine'
  rm -rf root
  bundle_says fine "p['user'].update(username='no:body', added=7)
p['capabilities']['made_up'] = ['CAP_X']
c.update(gate=3, states=4, filter=5)
c['annotations'] = {'mydocker.init': 'true', 'mydocker.scratch': '/etc'}" \
    /bin/sh -c 'echo fine'
  for row in copy layers; do
    oci_bundle
    configure "c['mounts'].append({
      'destination': '/x', 'type': '$row', 'source': '$PWD/canary',
      'options': ['lowerdir=/etc']})" /bin/true
    fails 125 "config.json: mounts: type: $row: unknown" create t
  done
  canary_lives
}

test_oci_start_says() { # oci: start fails where the command can't be executed after all
  oci_bundle
  printf '#!/bin/nothing\n' >root/bin/script
  printf 'no program' >root/bin/data
  chmod +x root/bin/script root/bin/data
  for file in script data; do
    configure '' "/bin/$file"
    run 0 create t
    fails 125 '^mydocker: start, on t: the command could not be executed' start t
    run 0 delete t
  done
  configure 'c["hooks"] = {"startContainer": [sh("exit 3")]}' /bin/sh -c :
  run 0 create t
  fails 125 '^mydocker: start, on t: the command could not be executed' start t
  run 0 delete t
  configure 'c["hooks"] = {}' /bin/sh -c :
  run 0 create t
  run 0 start t
  run 0 delete --force t
}

test_passwd_no_file() { # user: an /etc/passwd or /etc/group that is no file is an empty one, in
  # whatever way it came to be
  local kind file
  make_image "t$n:1"
  for kind in mkdir mkfifo zero_device 'ln -s /etc/nowhere' 'ln -s passwd' \
    'ln -s /proc/self/fd/0'; do
    for file in passwd group; do
      [[ $kind != *passwd || $file == passwd ]] || continue
      rm -rf root "d$n"
      small_root root
      rm root/etc/$file
      $kind "root/etc/$file"
      run 0 run --rootfs root -u 7:8 /bin/cat /proc/self/status # `id` would read the file
      like "$out" $'Uid:\t7\t.*Gid:\t8\t'
      fails 125 '^mydocker: --user, on nobody: ' run --rootfs root -u nobody:nobody /bin/true
      fails 125 '^mydocker: --user, on nobody: ' run -d --rootfs root -u nobody:nobody /bin/true
      background --name "d$n" --rootfs root -u 7:8 /bin/sleep 1000
      run 0 exec "d$n" /bin/cat /proc/self/status
      like "$out" $'Uid:\t7\t.*Gid:\t8\t'
      fails 125 '^mydocker: --user, on nobody: ' exec -u nobody "d$n" /bin/true
      run 0 rm -f "d$n"
    done
  done
  # made later
  background --name "d$n" "t$n:1" /bin/sh -c 'rm /etc/passwd; mkdir /etc/passwd; exec sleep 1000'
  wait_for eval 'timeout 9 "${mydocker[@]}" exec "d$n" /bin/sh -c "[ -d /etc/passwd ]"'
  fails 125 '^mydocker: --user, on user: ' exec -u user "d$n" /bin/true
  run 0 stop -t 0 "d$n"
  run 0 start "d$n" # its user is a number
  run 0 rm -f "d$n"
}

zero_device() { # zero_device FILE: one that never ends
  mknod "$1" c 1 5
}

test_terminal_escapes() { # main: nothing that images and labels say steers a terminal
  local esc=$'\e]0;evil\a' field
  make_image "t$n:1"
  for field in User WorkingDir StopSignal; do
    set_config "t$n:1" "{\"$field\": \"/x\\u001b]0;evil\\u0007\"}"
    run_any run --rm "t$n:1" /bin/true
    unlike "$out$err" $'[\e\a]'
  done
  set_config "t$n:1" '{"User": "", "WorkingDir": "", "StopSignal": ""}'
  fails 127 '\\x1b\]0;evil\\x07' run --rm "t$n:1" "$esc"
  background --name "d$n" --label "a=$esc" "t$n:1" /bin/sh -c ": $esc; exec sleep 1000"
  run 0 ps --no-trunc --format 'table {{.Names}} {{.Labels}} {{.Command}}'
  unlike "$out" $'[\e\a]'
  like "$out" 'a=\\x1b\]0;evil\\x07'
  tty 0 -- "${mydocker[@]}" ps --format '{{.Names}} {{.Labels}}'
  unlike "$out" $'[\e\a]'
  tty 0 -- "${mydocker[@]}" inspect --format '{{.Config.Labels.a}}' "d$n"
  unlike "$out" $'[\e\a]'
  run 0 inspect --format '{{.Config.Labels.a}}' "d$n" # for a program it is as it is
  is "$out" "$esc"
  run 0 rm -f "d$n"
}

run_any() { # run_any ARG...: whatever its status is
  timeout -k 5 "$patience" "${mydocker[@]}" "$@" >"$scratch/stdout" 2>"$scratch/stderr" || :
  read_output
}

test_killed_monitor_setuid() { # run: kill -9 of the monitor ends a set-user-ID command, too,
  # or else the next command does
  local pid
  need busybox
  small_root root
  mkdir root/set
  cp "$(type -P busybox)" root/set/sleep
  chmod 4755 root/set/sleep
  make_image "t$n:1"
  start run --rm -u 1234 "t$n:1" /set/sleep 1000
  wait_for runs_command /set/sleep
  kill -KILL "$pid"
  wait_for none runs_command /set/sleep
  ended 137
  start run --rm -u 1234 "t$n:1" /bin/sh -c 'exec /set/sleep 1000'
  wait_for runs_command /set/sleep
  kill -KILL "$pid"
  ended 137
  run 0 ps
  wait_for none runs_command /set/sleep
}

runs_command() { # runs_command PROGRAM: somebody does; prints the pids
  local - file line found=1
  set +x
  for file in /proc/[0-9]*/cmdline; do
    { IFS= read -r -d '' line <"$file"; } 2>/dev/null || continue
    if [[ $line == "$1" ]]; then
      echo "$file"
      found=0
    fi
  done
  return "$found"
}

test_oci_moved_proc() { # oci: a /proc that is moved while the container is made isn't left
  # unmasked, CVE-2023-27561
  oci_bundle # two defences hold: it is looked for right after the mount, and opened once for all
  # that is hidden in it; this is about the second, test_rootfs_race about both
  mkdir root/proc root/other
  configure "c['hooks'] = {'createRuntime': [
    sh('mv $PWD/root/proc $PWD/root/real; mv $PWD/root/other $PWD/root/proc')]}" \
    /bin/sh -c 'ls -l /real/kcore'
  fails 125 '^mydocker: mount, on /proc: it was moved meanwhile' run --bundle . t
  [[ -d root/real ]]
}

test_oci_planted_terminal() { # oci: a name in /dev/pts that leads elsewhere is no terminal,
  # CVE-2025-52565
  local number
  oci_bundle
  mkdir pts
  echo precious >precious
  chmod 600 precious
  touch root/precious
  ln -s /own/ptmx pts/ptmx
  for number in {0..20}; do ln -s /precious "pts/$number"; done
  configure "
p['terminal'], p['user'] = True, {'uid': 1234, 'gid': 0}
c['mounts'] += [
    {'destination': '/own', 'type': 'devpts',
     'options': ['newinstance', 'ptmxmode=0666', 'mode=0620']},
    {'destination': '/precious', 'type': 'bind', 'source': '$PWD/precious', 'options': ['bind']},
    {'destination': '/dev/pts', 'type': 'bind', 'source': '$PWD/pts', 'options': ['bind']}]" \
    /bin/sh -c '[ -t 0 ] && echo "a terminal"; ls -l /dev/console; cat /precious || :'
  tty 0 -- "${mydocker[@]}" run --bundle . t
  like "$out" $'^a terminal\nc.* /dev/console\n.*Permission denied$'
  is "$(<precious) $(stat -c '%u %a' precious)" 'precious 0 600'
}

test_oci_shared_mounts() { # oci: without a mount namespace of its own, or in somebody else's, a
  # container has its root and nothing is mounted; exec finds the same
  need unshare mount
  local other before row
  oci_bundle
  mkdir there
  before=$(wc -l </proc/self/mountinfo)
  configure 'c["mounts"] = l["maskedPaths"] = l["readonlyPaths"] = []
c["root"]["readonly"] = False
l["namespaces"] = [row for row in l["namespaces"] if row["type"] != "mount"]
p["cwd"] = "/tmp/made"' /bin/sh -c 'pwd; for name in /proc/* /there; do [ ! -e "$name" ]; done
    while [ ! -e /stop ]; do sleep 0.05; done'
  run 0 create --pid-file pid t >said
  run 0 start t
  is "$(readlink "/proc/$(<pid)/ns/mnt")" "$(readlink /proc/self/ns/mnt)"
  is "$(readlink "/proc/$(<pid)/root")" "$PWD/root"
  run 0 exec t /bin/sh -c 'pwd; cd ..; cd ..; cd ..; ls; : >/stop'
  is "$out" "/tmp/made"$'\n'"$(ls -I stop root)"
  wait_for gone "$(<pid)"
  run 0 delete t
  is "$(wc -l </proc/self/mountinfo)" "$before"
  for row in 'c["mounts"] = [{"destination": "/proc", "type": "proc"}]' \
    'l["maskedPaths"] = ["/etc"]' 'c["root"]["readonly"] = True' \
    'l["namespaces"].append({"type": "user"})'; do
    cp config.json good
    configure "$row"
    fails 125 "it needs a mount namespace of its own\$" create t
    mv good config.json
  done
  rm root/stop
  unshare --mount bash -ec 'mount -t tmpfs none there; cp -a root there; touch there/root/only
    exec sleep 1000' &
  other=$!
  wait_for test -e "/proc/$other/root$PWD/there/root/only"
  configure "c['root']['path'] = '$PWD/there/root'; p['cwd'] = '/'
l['namespaces'].append({'type': 'mount', 'path': '/proc/$other/ns/mnt'})" \
    /bin/sh -c 'ls /only; while [ ! -e /stop ]; do sleep 0.05; done'
  run 0 create --pid-file pid t
  is "$(readlink "/proc/$(<pid)/ns/mnt")" "$(readlink "/proc/$other/ns/mnt")"
  run 0 start t
  run 0 exec t /bin/sh -c 'ls /only; : >/stop'
  is "$out" /only
  wait_for gone "$(<pid)"
  run 0 delete t
  configure "c['root']['path'] = '/nonesuch'"
  fails 125 '^mydocker: root.path, on /nonesuch, in the mount namespace that is joined: ' create t
  kill "$other"
  wait "$other" || :
}

test_oci_notify() { # oci: who listens for system calls gets the descriptor and what it is about,
  # and decides, of the container's command and of exec's
  local locked agent want change
  oci_bundle
  configure "
c['root']['readonly'] = False
l['seccomp'] = {
    'defaultAction': 'SCMP_ACT_ALLOW', 'listenerPath': '$PWD/socket', 'listenerMetadata': 'm\"1',
    'flags': ['SECCOMP_FILTER_FLAG_' + name for name in ('LOG', 'TSYNC', 'SPEC_ALLOW')],
    'syscalls': [{'action': 'SCMP_ACT_NOTIFY', 'names': [
        'mkdir', 'mkdirat', 'setgroups', 'setresuid', 'capset', 'sendmsg', 'recvmsg', 'openat',
        'prctl', 'close', 'execve']}]}" \
    /bin/sh -c 'mkdir /no 2>/said || :; mkdir /yes; exec sleep 1000'
  for locked in True False; do
    configure "p['noNewPrivileges'] = $locked"
    fails 125 "^mydocker: linux.seccomp.listenerPath, on $PWD/socket: no such file" create t
    seccomp_agent >heard &
    agent=$!
    wait_for test -e socket
    run 0 create --pid-file pid t >said
    run 0 start t
    run 0 exec --pid-file other t /bin/sh -c 'mkdir /no || :; mkdir /other'
    like "$err" 'No medium found'
    tty 0 -- "${mydocker[@]}" exec -t --pid-file third t /bin/sh -c 'mkdir /no || :'
    like "$out" 'No medium found'
    wait_for test -e root/yes
    like "$(<root/said)" 'No medium found'
    [[ -e root/other && ! -e root/no ]]
    run 0 delete --force t
    wait "$agent"
    is "$(<heard)" "['seccompFd'] m\"1 $(<pid) t creating True
['seccompFd'] m\"1 $(<other) t running False
['seccompFd'] m\"1 $(<third) t running False"
    rm -r socket root/yes root/other
  done
  while IFS=' ' read -r want change; do
    cp config.json good
    configure "s = l['seccomp']; $change"
    fails 125 "config.json: linux.seccomp$want" create t
    mv good config.json
  done <<'END'
.listenerPath: del s["listenerPath"]
.flags: s["flags"] = ["SECCOMP_FILTER_FLAG_MOON"]
: s["defaultAction"] = "SCMP_ACT_NOTIFY"
: s["syscalls"][0]["names"].append("write")
END
}

seccomp_agent() { # listens on ./socket for three filters; directories named /no can't be made
  "$PYTHON" -I - <<'PYTHON'
import array, fcntl, json, os, platform, select, socket, struct, threading
MKDIR = {"x86_64": {83: 0, 258: 1}}.get(platform.machine(), {34: 1})  # which argument the name is


def answer(fd):
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while poll.poll()[0][1] & select.POLLIN:
        told = bytearray(80)
        try:
            fcntl.ioctl(fd, 0xC0502100, told)
            number, pid, _, call, _, _, *words = struct.unpack_from("QIIiIQQQ", told)
            error, flags = 0, 1  # as if nobody had asked
            if call in MKDIR:
                with open("/proc/%d/mem" % pid, "rb") as memory:
                    memory.seek(words[MKDIR[call]])
                    if memory.read(4) == b"/no\0":
                        error, flags = -123, 0
            fcntl.ioctl(fd, 0xC0182101, struct.pack("QqiI", number, 0, error, flags))
        except (FileNotFoundError, ProcessLookupError):
            pass  # it has been killed meanwhile


threads, server = [], socket.socket(socket.AF_UNIX)
server.bind("new")
server.listen(5)
os.rename("new", "socket")
for _ in range(3):
    client, _ = server.accept()
    data, ancillary, _, _ = client.recvmsg(1 << 16, socket.CMSG_SPACE(64))
    said, (fd,) = json.loads(data), array.array("i", ancillary[0][2])
    state = said["state"]
    print(said["fds"], said["metadata"], said["pid"], state["id"], state["status"],
          state["pid"] == said["pid"], flush=True)
    threads.append(threading.Thread(target=answer, args=(fd,)))
    threads[-1].start()
PYTHON
}

test_oci_net_devices() { # oci: a device of the host's becomes the container's, by another name and
  # with its lasting addresses
  need unshare ip busybox
  local name change
  oci_bundle
  for name in tvx tve; do
    configure "l['netDevices'] = {'$name': {'name': 'lo'}}"
    cp config.json $name
  done
  configure 'l["netDevices"] = {"tva": {"name": "eth7"}, "tvc": {}}' /bin/sh -c '
    busybox ip -o addr; busybox ip link show eth7; echo shown; sleep 1000'
  unshare --net bash -exc '
ip link add tva mtu 1400 address 02:00:00:00:00:07 type veth peer name tvb
ip link add tvc type veth peer name tvd
ip link set tva up
ip link set tvb up
ip link set tvd up
ip addr add 10.9.8.7/24 brd 10.9.8.255 dev tva
ip addr add 169.254.9.9/16 scope link dev tva
ip addr add fd00:9::7/64 nodad dev tva
ip addr add fd00:9::8/64 nodad valid_lft 1000 preferred_lft 1000 dev tva
"$@" create --pid-file pid t >said
ip -o link >left
"$@" start t
timeout 60 sh -c "until grep -q shown said; do sleep 0.1; done"
"$@" delete --force t
ip link add tve type veth peer name tvf
for name in tvx tve; do
  mv $name config.json
  "$@" create t 2>>failed && exit 1
done
ip -o link show tve >>failed' bash "${mydocker[@]}" >trace 2>&1 || fail "$(<trace)"
  unlike "$(<left)" 'tv[ac]'
  like "$(<said)" $'eth7 +inet 10.9.8.7/24 brd 10.9.8.255 '
  like "$(<said)" $'eth7 +inet6 fd00:9::7/64 '
  like "$(<said)" $'eth7(@[^:]*)?: <[^>]*[<,]UP[,>].* mtu 1400 .*\n.*02:00:00:00:00:07'
  like "$(<said)" 'tvc +inet6 fe80'
  unlike "$(<said)" '169.254|fd00:9::8'
  like "$(<failed)" '^mydocker: linux.netDevices, on tvx: the host has no such device'
  like "$(<failed)" $'\nmydocker: linux.netDevices, on tve: there is a lo in the container '
  like "$(<failed)" ': tve'
  while read -r change; do
    configure "l['netDevices'] = $change"
    fails 125 'config.json: linux.netDevices: ' create t
  done <<'END'
{"a": {"name": "b"}, "b": {}}
{"a": {"name": "a/b"}}
{"a234567890123456": {}}
{"..": {}}
{"a%d": {}}
END
  configure 'l["netDevices"] = {"a": {}}
l["namespaces"] = [row for row in l["namespaces"] if row["type"] != "network"]'
  fails 125 'config.json: linux.netDevices: it needs a network namespace' create t
}

test_systemd_scope() { # oci: with systemd a cgroupsPath SLICE:PREFIX:NAME is a scope of its, with
  # the limits for properties; without a bus the container lies below, where nothing can be taken
  # from it
  need cgroup-v2 unshare umount awk systemctl
  local tree top got=0
  [[ -x /lib/systemd/systemd ]] || skip 'needs /lib/systemd/systemd'
  tree=$(awk '/ - cgroup2 / {print $5; exit}' /proc/self/mountinfo)
  top=$tree/mydocker-test.$unique
  own_state
  oci_bundle
  configure 'l["cgroupsPath"] = "ci.slice:check:t"; l["resources"] = {}' /bin/sleep 1000
  if grep -qw pids "$tree/cgroup.controllers"; then
    echo '+memory +pids +cpu' >"$tree/cgroup.subtree_control"
    configure 'l["resources"] = {"pids": {"limit": 20}, "memory": {"limit": 67108864},
      "cpu": {"quota": 50000, "period": 100000}}'
  fi
  cat >beside <<'END' # a manager of a user's is systemd, too
umount -l $(awk '/ - cgroup2? / {print $5}' /proc/self/mountinfo | tac)
umount -l /sys/fs/cgroup || :
mount -t cgroup2 none /sys/fs/cgroup
mkdir /sys/fs/cgroup/init
echo "$$" >/sys/fs/cgroup/init/cgroup.procs
mount -t tmpfs none /run
mkdir -p /run/systemd/system home
export HOME=$PWD/home XDG_RUNTIME_DIR=/run
unset DBUS_SESSION_BUS_ADDRESS
/lib/systemd/systemd --user >log 2>&1 &
until systemctl --user show -p Version; do
  kill -0 "$!"
  sleep 0.1
done
show() { # show PROPERTY: of the scope
  systemctl --user show check-t.scope --value -p "$1"
}
"$@" create --pid-file pid t </dev/null
grep '^0::/.*/ci.slice/check-t.scope$' "/proc/$(cat pid)/cgroup"
[ "$(show ActiveState) $(show Delegate) $(show Slice)" = 'active yes ci.slice' ]
"$@" start t
group=/sys/fs/cgroup$(sed -n s/^0:://p "/proc/$(cat pid)/cgroup")
if [ -e "$group/pids.max" ]; then
  [ "$(show TasksMax) $(show MemoryMax) $(show CPUQuotaPerSecUSec)" = '20 67108864 500ms' ]
  echo '{"pids": {"limit": 30}}' | "$@" update -r - t
  [ "$(show TasksMax)" = 30 ]
  systemd-run --user --quiet --scope --slice ci.slice -p TasksMax=50 true
  systemctl --user daemon-reload
  [ "$(cat "$group/pids.max" "$group/memory.max")" = $'30\n67108864' ]
fi
systemctl --user stop ci.slice # ends what is in it
"$@" state t | grep '"stopped"'
"$@" delete t
"$@" create t </dev/null
[ "$(show ActiveState)" = active ]
"$@" delete --force t
[ "$(show ActiveState)" = inactive ]
mv /run/systemd/private /run/systemd/away
"$@" create --pid-file pid t </dev/null
grep '^0::/ci.slice/check-t.scope/container$' "/proc/$(cat pid)/cgroup"
"$@" delete --force t
[ -d /sys/fs/cgroup/ci.slice ]
[ ! -e /sys/fs/cgroup/ci.slice/check-t.scope ]
END
  mkdir "$top"
  bash -c 'echo $$ >"$0/cgroup.procs"; exec "$@"' "$top" unshare --cgroup --mount --pid --fork \
    --kill-child --mount-proc bash -ex beside "${mydocker[@]}" || got=$?
  wait_for eval 'find "$top" -depth -type d -exec rmdir {} +'
  is "$got" 0
}

test_systemd_user() { # rootless: where limits are wanted the systemd of the user is asked for a
  # scope, which goes with the container
  need cgroup-v2 unshare umount awk systemctl
  local tree top got=0
  [[ -x /lib/systemd/systemd ]] || skip 'needs /lib/systemd/systemd'
  outsider 300000:65536
  tree=$(awk '/ - cgroup2 / {print $5; exit}' /proc/self/mountinfo)
  top=$tree/mydocker-test.$unique
  small_root root
  tar -C root -cf home/root.tar .
  mkdir -m 700 home/run
  chown 23456:23456 home/run
  export XDG_RUNTIME_DIR=$PWD/home/run
  printf '%s\n' "$(declare -p user mydocker)" >words
  cat >beside <<'END' # his session is root's, what is around both is his, as with a login
umount -l $(awk '/ - cgroup2? / {print $5}' /proc/self/mountinfo | tac)
umount -l /sys/fs/cgroup || :
mount -t cgroup2 none /sys/fs/cgroup
cd /sys/fs/cgroup
mkdir session
echo "$$" >session/cgroup.procs
chown 23456 . cgroup.procs cgroup.subtree_control cgroup.threads
cd "$1"
mount -t tmpfs none /run
mkdir -p /run/systemd/system
. ./words
unset DBUS_SESSION_BUS_ADDRESS
(
  mkdir /sys/fs/cgroup/init
  chown -R 23456 /sys/fs/cgroup/init
  sh -c 'echo "$$" >/sys/fs/cgroup/init/cgroup.procs; exec "$@"' sh \
    "${user[@]}" /lib/systemd/systemd --user >log 2>&1 &
  echo "$!" >systemd
)
until [ -S home/run/systemd/private ]; do
  kill -0 "$(cat systemd)"
  sleep 0.1
done
"${mydocker[@]}" import home/root.tar one
# there may be no controllers here: then the limit can't be had, but the scope was there
"${mydocker[@]}" run --log-level info --rm --pids-limit 20 one cat /proc/self/cgroup >out 2>err ||
  grep 'no cgroup with pids.max' err
grep 'cgroup: mydocker-[0-9a-f]*.scope' err
"${mydocker[@]}" run --log-level info --rm one id 2>err # what wants no limit asks for none
if grep 'cgroup: ' err; then exit 1; fi
until [ -z "$(find /sys/fs/cgroup -name 'mydocker-*.scope')" ]; do sleep 0.1; done
kill "$(cat systemd)"
END
  mkdir "$top"
  bash -c 'echo $$ >"$0/cgroup.procs"; exec "$@"' "$top" unshare --cgroup --mount --pid --fork \
    --kill-child --mount-proc bash -ex beside "$PWD" || got=$?
  wait_for eval 'find "$top" -depth -type d -exec rmdir {} +'
  is "$got" 0
}

# ── The OCI runtime under engines ────────────────────────────────────────────
# Real ones, each private to its test; they use the launcher of `install`. What they say must be
# what they say on runc.

test_oci_log() { # oci: --log has errors, with --debug the steps, too, as text or JSON; one that
  # can't be had is refused before anything is done
  oci_bundle
  configure '' /bin/sh -c 'echo said >&2'
  fails 125 '^mydocker: --log, on none/log: no such file or directory' --log none/log create t
  fails 125 '^mydocker: --log-format, on xml: not text or json' --log log --log-format xml create t
  fails 125 '^mydocker: --rootless, on maybe: ' --rootless maybe create t
  is "$(find state/oci -mindepth 1 2>/dev/null; ls log 2>/dev/null || :)" ''
  run 0 --rootless=auto --log log --debug run --bundle . t
  is "$err" said
  like "$(<log)" '^time="20[^"]*Z" level=debug msg="create, on t: .*debug msg="delete, on t: it is'
  rm log
  fails 125 'container does not exist' --log log --debug --log-format json kill t 15
  like "$(<log)" '^\{"level": "error", "msg": "container, on t: container does not exist", "time'
  run 0 --debug run --bundle . t
  like "$err" $'^mydocker: debug: create, on t: .*\nsaid\n'
}

test_oci_asked() { # oci: ps has options of ps, events all that runc's have and an end, exec a
  # cgroup of one controller; of a form that there isn't nothing is shown
  need runc
  local dir
  oci_bundle
  configure '' /bin/sleep 1000
  run 0 create t
  run 0 start t
  run 0 ps t -ef
  like "$out" $'^UID +PID +PPID +C +STIME +TTY +TIME +CMD\n0 .* sleep 1000$|/bin/sleep 1000$'
  run 0 ps t aux
  like "$out" $'^USER +PID .* COMMAND\n[^\n]* /bin/sleep 1000$'
  run 0 ps -f table t -eo comm,pid=NUMBER
  like "$out" $'^COMMAND +NUMBER\nsleep +[0-9]+$'
  fails 125 '^mydocker: ps, on moon: not one of pid' ps t -o moon
  fails 125 '^mydocker: ps, on -z: of ps only' ps t -z
  fails 125 '^mydocker: --format, on xml: not table' ps -f xml t
  fails 125 '^mydocker: --format, on xml: not table' list -f xml
  run 0 events --stats t
  cp "$scratch/stdout" mine
  configure 'l.pop("cgroupsPath", None); p["apparmorProfile"] = ""'
  mkdir peer
  runc --root peer run -d "peer-$unique" >said 2>&1 </dev/null || fail "$(<said)"
  runc --root peer events --stats "peer-$unique" >theirs
  runc --root peer delete -f "peer-$unique"
  "$PYTHON" -c '
import json
def lacks(theirs, ours, path):
    for key, value in theirs.items():
        if key not in ours:
            print("lacks", path, key)
        elif isinstance(value, dict) and key != "raw":
            lacks(value, ours[key], f"{path}.{key}")
lacks(json.load(open("theirs")), json.load(open("mine")), "")' >lacking
  is "$(<lacking)" ''
  dir=$(find /sys/fs/cgroup -path "*/$(engine_cgroup t)/pids.max" -printf '%h\n' | head -n 1)
  [[ $dir ]] || skip 'needs the pids controller'
  mkdir "$dir/below"
  if [[ $dir == */pids/* ]]; then
    run 0 exec --cgroup pids:/below t /bin/cat /proc/self/cgroup
    like "$out" $'pids:[^\n]*/below'
    unlike "$out" $'memory:[^\n]*/below'
  fi
  run 0 exec --cgroup below t /bin/cat /proc/self/cgroup
  like "$out" /below
  fails 125 '^mydocker: --cgroup, on moon:/x: no such cgroup' exec --cgroup moon:/x t /bin/id
  fails 125 '^mydocker: --interval, on 0s: not a time' events --interval 0s t
  fails 125 '^mydocker: --interval, on 1x: not a time' events --interval 1x t
  "${mydocker[@]}" events --interval 20ms t >told &
  wait_for has told $'stats'
  run 0 kill t KILL
  wait $!
  run 0 delete t
}

test_oci_oom_event() { # oci: events tells that the kernel has killed for want of memory
  need_limits memory
  oci_bundle
  configure 'l["resources"] = {"memory": {"limit": 33554432, "swap": 33554432}}' /bin/sleep 1000
  run 0 create t
  run 0 start t
  "${mydocker[@]}" events --interval 20ms t >told &
  wait_for has told stats
  run 137 exec t /bin/sh -c 'x=aaaaaaaa; while :; do x=$x$x; done'
  wait_for has told '^\{"type": "oom", "id": "t"\}$'
  run 0 delete -f t
  wait $!
}

test_oci_bundle_here() { # oci: run ID is the bundle in this directory, which it says, where no
  # image has that name and config.json is a bundle's
  oci_bundle
  configure '' /bin/sh -c 'echo bundle'
  run 0 run t
  is "$out" bundle
  is "$err" 'mydocker: run, on t: no image has that name: running the bundle in this directory'
  make_image t:latest
  run 0 run --rm t /bin/sh -c 'echo image'
  is "$out" image
  run 0 rmi t
  echo '{"port": 80}' >config.json
  run 125 run --pull never t
  unlike "$err" 'config.json|bundle'
}

test_oci_rootless() { # rootless: spec writes a bundle that its caller can run without root, whose
  # ids in it are those that he sees
  outsider
  small_root home/bundle/root
  mkdir home/bundle/root/{dev,proc,sys} # so that only its user namespace's own can make them
  chown -R 23456:23456 home/bundle
  cd home/bundle
  run 0 spec --rootless
  configure 'p["terminal"] = False; c["root"]["readonly"] = False' \
    /bin/sh -c 'id -u; : >/made; readlink /proc/self/ns/net'
  chmod 644 config.json
  run 0 run --bundle . t
  is "$out" $'0\n'"$(readlink /proc/self/ns/net)"
  is "$(stat -c %u:%g root/made)" 23456:23456
  configure 'l["uidMappings"][0]["hostID"] = 0'
  fails 125 'linux.uidMappings: 0: the caller has no such ids' run --bundle . t
}

test_oci_created() { # oci: before its start a container ends by TERM, and no start hangs that pause
  # would stop; a pid file goes into a directory that is there
  oci_bundle
  configure '' /bin/sleep 1000
  run 0 create --pid-file pid t
  run 0 kill t TERM
  wait_for gone "$(<pid)"
  run 0 delete t
  run 0 create t
  run 0 pause t
  run 0 state t
  is "$(field status)" paused
  fails 125 'cannot start a container that is paused' start t
  run 0 resume t
  run 0 state t
  is "$(field status)" created
  run 0 start t
  fails 125 '^mydocker: --pid-file, on none/pid: no such file' exec --pid-file none/pid t /bin/true
  fails 125 '^mydocker: exec, on --tty: there is no --console-socket' exec -t -d t /bin/sleep 1
  fails 125 '^mydocker: run, on --bundle: it takes ID' run --bundle . u /bin/sh
  run 0 delete -f t
  fails 125 '^mydocker: --pid-file, on none/pid: no such file' create --pid-file none/pid t
  is "$(find state/oci -mindepth 1; find none 2>/dev/null || :)" ''
  "${mydocker[@]}" run --no-subreaper --bundle . t >said 2>&1 &
  wait_for "${mydocker[@]}" exec t /bin/sleep 0 >"$scratch/log" 2>&1
  run 0 delete -f t
  wait $! || is "$? $(<said)" '137 '
}

engine_root() { # the runtime in ./runtime, and a root of busybox in ./root and ./root.tar
  need busybox tar
  own_state
  run 0 install top
  printf '#!/bin/sh\nexec %q --root %q "$@"\n' "$PWD/top/bin/mydocker" "$PWD/state" >runtime
  chmod 755 runtime
  mkdir -p root/bin root/etc root/tmp source
  cp "$(command -v busybox)" root/bin/busybox
  for name in sh cat echo env grep head hostname id ls mkdir ps pwd sleep stat stty touch true; do
    ln -s busybox "root/bin/$name"
  done
  printf 'root:x:0:0::/root:/bin/sh\nuser:x:1234:5678::/home:/bin/sh\n' >root/etc/passwd
  printf 'root:x:0:\nuser:x:5678:\n' >root/etc/group
  tar -C root -cf root.tar .
  echo source >source/file
}

# What a container started with $many shows of itself, in one go.
many=(-e A=b -u 1234:5678 -w /tmp --hostname hostess --read-only --tmpfs /t:size=1m
  --cap-add SYS_TIME --cap-drop CHOWN --sysctl kernel.msgmax=4242 --device /dev/null:/dev/probe
  --pids-limit 20 --cpus 0.5 --memory 64m --oom-score-adj 500)
many_facts='echo $A $(id -u) $(id -g) $(pwd) $(hostname)
cat /proc/sys/kernel/msgmax /proc/self/oom_score_adj
touch /x 2>&1; touch /t/x && echo tmpfs; cat /v/file; touch /v/x 2>&1
[ -c /dev/probe ] && echo device
grep -E "^(Cap|Seccomp:|NoNew)" /proc/self/status
cd /sys/fs/cgroup
cat pids/pids.max cpu/cpu.cfs_quota_us memory/memory.limit_in_bytes 2>&1 ||
  cat pids.max cpu.max memory.max
cat /proc/keys; ls /proc/kcore /sys/firmware; true'

same_as_runc() { # same_as_runc COMMAND...: it says and ends the same on both runtimes;
  # RUNTIME in it is replaced
  local - words runtime got=() status
  for runtime in "$PWD/runtime" runc; do
    words=("${@//RUNTIME/$runtime}") status=0
    timeout -k 5 "$patience" "${words[@]}" >"$scratch/stdout" 2>"$scratch/stderr" </dev/null ||
      status=$?
    read_output
    got+=("$status: $out"$'\n'"$err")
  done
  is "${got[0]}" "${got[1]}"
}

gives() { # gives STATUS WANT COMMAND...: it ends so, and its output is like that
  local - status=0
  set +x
  timeout -k 5 "$patience" "${@:3}" >"$scratch/stdout" 2>"$scratch/stderr" </dev/null || status=$?
  read_output
  is "status $status" "status $1"
  like "$out$err" "$2"
}

engine_life() { # engine_life ENGINE...: detach, exec, pause, update, stop, start, restart,
  # kill and rm of its container cc
  local term='trap "echo got; exit 3" TERM; echo started; while :; do sleep 0.05; done'
  gives 0 '^[0-9a-f]{64}' "$@" run "${run[@]}" --name cc -d "$image" /bin/sh -c "$term"
  wait_for logged started "$@"
  gives 5 '^in 1234 /tmp y$' "$@" exec -u user -w /tmp -e X=y cc \
    /bin/sh -c 'echo in $(id -u) $(pwd) $X; exit 5'
  gives "$missing" 'executable file not found' "$@" exec cc nonexistent
  tty 0 -- "$@" exec -it cc /bin/sh -c '
    until [ "$(stty size 2>/tmp/no)" = "24 80" ]; do sleep 0.05; done
    [ -c /dev/tty ] && echo tty'
  like "$out" tty
  gives 0 '' "$@" exec -d cc /bin/touch /tmp/touched
  gives 0 'sleep|sh' "$@" top cc -eo pid,comm
  gives 0 '' "$@" update --cpus 0.3 cc
  gives 0 '' "$@" pause cc
  gives 0 'Paused|paused' "$@" ps -a --format '{{.Status}}'
  gives 0 '' "$@" unpause cc
  gives 0 '' "$@" exec cc /bin/ls /tmp/touched
  gives 0 c "$@" stop cc
  gives 0 '^3' "$@" wait cc
  gives 0 $'started\ngot' "$@" logs cc
  gives 0 c "$@" start cc
  gives 0 c "$@" restart -t 0 cc
  gives 0 running "$@" inspect --format '{{.State.Status}}' cc
  gives 0 c "$@" kill -s KILL cc
  gives 0 '^137' "$@" wait cc
  gives 0 '' "$@" rm -f cc
}
logged() { # logged TEXT ENGINE...
  "${@:2}" logs cc 2>&1 | grep -q "$1"
}

engine_runs() { # engine_runs ENGINE...: what its containers see, and how they end, is as on runc
  gives 7 '^outerr$' "$@" run "${run[@]}" --rm "$image" /bin/sh -c 'echo out; echo err >&2; exit 7'
  gives 127 'no such file' "$@" run "${run[@]}" --rm "$image" /nonexistent
  gives 127 'executable file not found' "$@" run "${run[@]}" --rm "$image" nonexistent
  gives 126 'permission denied' "$@" run "${run[@]}" --rm "$image" /etc/passwd
  tty 0 -- "$@" run "${run[@]}" --rm -it "$image" \
    /bin/sh -c '
    until [ "$(stty size 2>/tmp/no)" = "24 80" ]; do sleep 0.05; done
    [ -c /dev/console ] && echo console'
  like "$out" console
  gives 0 $'Seccomp:\t0' "$@" run "${run[@]}" --rm --security-opt seccomp=unconfined --ipc host \
    --pid host --uts host "$image" \
    /bin/sh -c "grep Seccomp: /proc/self/status; [ \$(hostname) = '$(uname -n)' ]"
  gives 0 $'CapEff:\t0000.{12}' "$@" run "${run[@]}" --rm --privileged "$image" grep CapEff \
    /proc/self/status
  gives 137 '' "$@" run "${run[@]}" --name oom --memory 32m --memory-swap 32m "$image" \
    /bin/sh -c 'x=aaaaaaaa; while :; do x=$x$x; done'
  gives 0 "$oom 137" "$@" inspect --format '{{.State.OOMKilled}} {{.State.ExitCode}}' oom
  gives 0 '' "$@" rm oom
}

no_engine_cgroups() { # what engines made in the cgroup trees for these tests goes
  find /sys/fs/cgroup -depth -type d \( -path '*/libpod_parent*' -o -path '*/conmon*' \
    -o -path '*/docker/*' -o -path '*/mdtest/*' -o -name docker -o -name mdtest \) \
    -exec rmdir {} + 2>/dev/null || :
}

start_containerd() { # containerd, as process $daemon, at ./c.sock
  cat >config.toml <<END
version = 2
root = "$PWD/containerd"
state = "$PWD/cstate"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
oom_score = 0
[grpc]
  address = "$PWD/c.sock"
[ttrpc]
  address = "$PWD/t.sock"
END
  containerd -c config.toml >log 2>&1 &
  daemon=$!
  wait_for test -S c.sock
}

start_docker() { # Docker's daemon, as process $daemon, at ./d.sock,
  # with the runtime ./runtime as "my"; arguments into $docker
  docker=(/usr/bin/docker -H "unix://$PWD/d.sock")
  [[ -x ${docker[0]} ]] || docker[0]=docker
  dockerd --data-root "$PWD/data" --exec-root "$PWD/exec" -H "unix://$PWD/d.sock" \
    --pidfile "$PWD/pid" --storage-driver vfs --iptables=false \
    --ip6tables=false --bridge=none --ip-forward=false --ip-masq=false --userland-proxy=false \
    --exec-opt native.cgroupdriver=cgroupfs \
    --oom-score-adjust 0 --add-runtime "my=$PWD/runtime" --default-runtime my >log 2>&1 &
  daemon=$!
  wait_for "${docker[@]}" version >"$scratch/log" 2>&1
}

test_engine_podman() { # engines: podman runs, execs, stops, pauses,
  # limits and builds with this runtime as with runc
  need podman conmon runc
  local podman image=localhost/bb:1 run=(--log-driver k8s-file) n
  engine_root
  printf '%s\n' '[containers]' 'netns = "none"' \
    'default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]' >conf
  export CONTAINERS_CONF=$PWD/conf
  podman=(podman --root "$PWD/podman" --runroot "$PWD/run" --tmpdir "$PWD/podman-tmp"
    --storage-driver vfs --cgroup-manager cgroupfs --events-backend file)
  "${podman[@]}" import -q root.tar "$image"
  same_as_runc "${podman[@]}" --runtime RUNTIME run "${run[@]}" --rm "${many[@]}" \
    -v "$PWD/source:/v:ro" "$image" /bin/sh -c "$many_facts"
  podman+=(--runtime "$PWD/runtime")
  missing=127 oom='(true|false)' # on hybrid hosts conmon doesn't see it, with no runtime
  engine_runs "${podman[@]}"
  engine_life "${podman[@]}"
  gives 0 '' "${podman[@]}" pod create --infra=false --name pod
  gives 0 '^in a pod$' "${podman[@]}" run "${run[@]}" --rm --pod pod "$image" echo in a pod
  gives 0 '' "${podman[@]}" pod rm -f pod
  printf 'FROM %s\nRUN echo built >/built && id\nCMD ["/bin/cat", "/built"]\n' "$image" >Dockerfile
  gives 0 'uid=0' "${podman[@]}" build --network none --isolation oci -t localhost/built:1 .
  gives 0 '^built$' "${podman[@]}" run "${run[@]}" --rm localhost/built:1
  n=10
  if [[ ${FULL-} ]]; then n=50; fi
  for ((i = 0; i < n; i++)); do "${podman[@]}" run "${run[@]}" --rm "$image" echo "number $i" \
    >"out$i" 2>&1 & done
  wait
  is "$(cat out* | sort)" "$(for ((i = 0; i < n; i++)); do echo "number $i"; done | sort)"
  is "$(find state/oci -mindepth 1)" ''
  no_engine_cgroups
}

test_engine_containerd() { # engines: containerd's ctr runs, execs,
  # signals and pauses with this runtime
  need containerd ctr podman runc
  local ctr run image=localhost/bb:1 term='trap "exit 4" TERM; while :; do sleep 0.05; done'
  engine_root
  peer_podman
  "${podman[@]}" import -q root.tar "$image"
  "${podman[@]}" save -q --format docker-archive -o bb.tar "$image"
  start_containerd
  ctr=(ctr -a c.sock -n mdtest)
  run=(run --runc-binary "$PWD/runtime" --rm)
  gives 0 '' "${ctr[@]}" image import bb.tar
  gives 7 '^outerr' "${ctr[@]}" "${run[@]}" "$image" t /bin/sh -c 'echo out; echo err >&2; exit 7'
  gives 1 'no such file or directory' "${ctr[@]}" "${run[@]}" "$image" t /nonexistent
  gives 0 '^0 /tmp b' "${ctr[@]}" "${run[@]}" --env A=b --cwd /tmp \
    --read-only --seccomp --memory-limit 67108864 "$image" t /bin/sh -c 'echo $(id -u) $(pwd) $A'
  gives 0 $'CapEff:\t0' "${ctr[@]}" "${run[@]}" --privileged "$image" t grep CapEff \
    /proc/self/status
  gives 137 '' "${ctr[@]}" "${run[@]}" --memory-limit 33554432 "$image" t \
    /bin/sh -c 'x=aaaaaaaa; while :; do x=$x$x; done'
  tty 0 -- "${ctr[@]}" "${run[@]}" -t "$image" t /bin/sh -c '[ -c /dev/console ] && echo console'
  like "$out" console
  gives 0 '' "${ctr[@]}" run --runc-binary "$PWD/runtime" -d "$image" t2 /bin/sh -c "$term"
  gives 5 '^exec' "${ctr[@]}" task exec --exec-id e t2 /bin/sh -c 'echo exec; exit 5'
  gives 1 'executable file not found' "${ctr[@]}" task exec --exec-id f t2 nonexistent
  gives 0 '[0-9]' "${ctr[@]}" task ps t2
  gives 0 '' "${ctr[@]}" task pause t2
  gives 0 PAUSED "${ctr[@]}" task ls
  gives 0 '' "${ctr[@]}" task resume t2
  gives 0 '' "${ctr[@]}" task kill -s SIGTERM t2
  wait_for stopped t2
  gives 1 'not found|finished|not running' "${ctr[@]}" task kill -s SIGTERM t2 || :
  gives 0 'exit code 4' "${ctr[@]}" task rm t2
  gives 0 '' "${ctr[@]}" container rm t2
  kill "$daemon"
  wait "$daemon" || :
  no_engine_cgroups
}
stopped() { # stopped TASK
  "${ctr[@]}" task ls | grep "$1" | grep -q STOPPED
}

test_engine_docker() { # engines: Docker runs, execs, stops,
  # pauses and limits with this runtime as with runc
  need dockerd runc docker-registry
  local docker image=bb:1 run id
  engine_root
  start_docker
  gives 0 sha256 "${docker[@]}" import root.tar "$image"
  run=(--network none --runtime my)
  same_as_docker "${docker[@]}"
  missing=126 oom=true
  engine_runs "${docker[@]}"
  engine_life "${docker[@]}"
  printf 'FROM %s\nRUN echo built >/built && id\nCMD ["/bin/cat", "/built"]\n' "$image" >Dockerfile
  gives 0 'uid=0' env DOCKER_BUILDKIT=0 "${docker[@]}" build --network none -t built:1 \
    -f Dockerfile source
  gives 0 '^built$' "${docker[@]}" run "${run[@]}" --rm built:1
  registry # and what push brings to a registry, Docker gets as it is
  run 0 import root "$reg/box/pushed:1"
  id=$out
  run 0 push "$reg/box/pushed:1"
  gives 0 "Digest: $out" "${docker[@]}" pull "$reg/box/pushed:1"
  gives 0 "^$id\$" "${docker[@]}" images --no-trunc -q "$reg/box/pushed:1"
  kill "$daemon"
  wait "$daemon" || :
  no_engine_cgroups
}
same_as_docker() { # same_as_docker ENGINE...
  local mine
  gives 0 . "$@" run "${run[@]}" --rm "${many[@]}" -v "$PWD/source:/v:ro" "$image" \
    /bin/sh -c "$many_facts"
  mine=$out$err
  gives 0 . "$@" run --network none --runtime runc --rm "${many[@]}" -v "$PWD/source:/v:ro" \
    "$image" /bin/sh -c "$many_facts"
  is "$mine" "$out$err"
  gives 0 '^my [0-9]+[.]' "$@" version --format \
    '{{range .Server.Components}}{{if eq .Name "my"}}{{.Name}} {{.Version}}{{end}}{{end}}'
}

# ── This host ────────────────────────────────────────────────────────────────

test_info() { # cli: info tells what the host can do; with names it answers by its status
  local name
  run 0 info
  like "$out" "$(uname -r)"
  like "$out" "$("$PYTHON" -c 'import platform; print(platform.python_version())')"
  like "$out" "$MYDOCKER_ROOT"
  for name in root rootless pidns mntns utsns ipcns netns cgroupns userns cgroup-v1 cgroup-v2 \
    overlay seccomp openat2 pidfd nf_tables; do
    like "$out" $'\n'"$name +(yes|no)  "
  done
  run 0 info root pidns
  run 0 info mntns
  is "$err" ''
}

test_info_cgroups_twice() { # cli: info lists a cgroup tree once, however often it is mounted
  need unshare mount
  run 0 info
  own_mounts 'mkdir twice
    grep -E " - cgroup2? " /proc/self/mountinfo | cut -d " " -f 5 | while read -r path; do
      mkdir -p "twice$path"
      mount --bind "$path" "twice$path"
    done
    "$@" info' >out
  is "$(grep ^cgroups out)" "$(grep ^cgroups <<<"$out")"
}

test_info_probes() { # cli: info tries things out instead of guessing
  need unshare setpriv
  local kind got
  unshare -Ur true || skip 'no user namespace in here'
  for kind in pid mnt uts ipc net; do
    got=0
    unshare -Ur bash -c "echo 0 >/proc/sys/user/max_${kind}_namespaces && exec \"\$@\"" bash \
      "${mydocker[@]}" info "${kind}ns" >out || got=$?
    is "$got" 1
    has out "^${kind}ns +no .*user.max_${kind}_namespaces"
  done
  got=0
  setpriv --reuid=65534 --clear-groups --inh-caps=+dac_read_search --ambient-caps=+dac_read_search \
    "${mydocker[@]}" info root >out || got=$?
  is "$got" 1
  has out '^root +no .*sudo'
}

test_copied_file() { # root: the file works wherever it is copied to, under any name
  mkdir 'a dir' && cp "$here/mydocker.py" 'a dir/my docker' && chmod 400 'a dir/my docker' &&
    ln -s 'a dir/my docker' link
  cp "$here/mydocker.py" $'\xff.py'
  is "$("$PYTHON" 'a dir/my docker' run /bin/echo 1)" 1
  is "$("$PYTHON" link run -it --log-level error /bin/echo 2)" $'2\r'
  is "$("$PYTHON" $'\xff.py' run /bin/echo 3)" 3
  is "$(cd / && "$PYTHON" "$here/mydocker.py" run /bin/pwd)" /
  is "$("$PYTHON" "$here/mydocker.py" run /bin/sh -c 'ls -a')" $'.\n..\na dir\nlink\n'$'\xff.py'
}

test_restart_after_reboot() { # install: --systemd writes a unit that starts what --restart brings
  # back after a reboot, which is not what somebody stopped; uninstall takes it away
  need root
  own_state
  local name
  for name in always unless-stopped on-failure; do
    run 0 run -d --name "$name" --restart "$name" --ephemeral /bin/sleep 1000
  done
  run 0 run -d --name stopped --restart unless-stopped --ephemeral /bin/sleep 1000
  run 0 stop -t 0 stopped always
  for name in unless-stopped on-failure; do # as a host does that goes down
    kill -TERM "$("${mydocker[@]}" inspect -f '{{.Record.monitor}}' "$name")"
    run 0 wait "$name"
  done
  fails 125 'it takes CONTAINER' start
  run 0 start --all-restarting
  is "$("${mydocker[@]}" ps --format '{{.Names}}' | sort | xargs)" 'always unless-stopped'
  run 0 start --all-restarting
  is "$out" ''
  run 0 rm -f always unless-stopped on-failure stopped
  unshare --mount --propagation private bash -ec '
    mkdir -p /etc/systemd; mount -t tmpfs none /etc/systemd
    if "$@" install --systemd top; then exit 1; fi 2>err
    mkdir /etc/systemd/system
    "$@" install --systemd top
    cat /etc/systemd/system/multi-user.target.wants/mydocker.service >unit
    "$@" uninstall top
    ls /etc/systemd/system/*' unit "${mydocker[@]}" >out
  has err 'install, on --systemd: there is no /etc/systemd/system'
  has unit "^ExecStart=$PWD/top/bin/mydocker start --all-restarting\$"
  unlike "$(<out)" 'mydocker.service'
}

test_install() { # install: a launcher that compiles nothing, until the file or the Python changes;
  # uninstall takes it away
  local launcher=$PWD/top/bin/mydocker code=$PWD/top/lib/mydocker/mydocker.pyc before
  own_state
  run 0 install top
  is "$("$launcher" --version)" "$("${mydocker[@]}" --version)"
  is "$("$launcher" run /bin/echo hello)" hello
  before=$(stat -c %i "$code")
  is "$("$launcher" run --explain /bin/true 2>&1 | grep -c pivot_root)" 0
  is "$(stat -c %i "$code")" "$before"
  sed -i 's/^VERSION = .*/VERSION = "changed"/' "${code%c}"
  is "$("$launcher" --version | head -n 1)" 'mydocker version changed'
  [[ $(stat -c %i "$code") != "$before" ]]
  head -c 1000 "$code" >short
  cp short "$code"
  is "$(stat -c %a "$launcher" "$code")" $'755\n644'
  run 0 install top
  is "$("$launcher" run /bin/echo hello)" hello
  run 0 uninstall top
  is "$(find top -type f)" ''
}

test_install_planted() { # security: what install writes gets its mode before its name, which may be
  # another user's link by then
  need strace
  own_state
  mkdir theirs
  chown 1234 theirs
  strace -f -qq -o trace -e trace=chmod,fchmod,fchmodat "${mydocker[@]}" install theirs
  is "$(grep -E '(^|[^f])chmod\(|chmodat' trace || :)" ''
  is "$(stat -c %a theirs/bin/mydocker theirs/lib/mydocker/*)" $'755\n644\n644'
}

test_install_chapters() { # install: what is installed reads only the chapters that it needs, and of
  # those the functions that it calls
  local launcher=$PWD/top/bin/mydocker
  own_state
  run 0 install top
  MYDOCKER_LOG=debug "$launcher" run /bin/true >out 2>err
  like "$(<err)" 'reads 7. Inside'
  unlike "$(<err)" \
    'reads [^ ]+ [^:]*([Tt]ar|store|image|[Rr]egistr|Pull|Build|[Nn]etworks|OCI|host$)'
  MYDOCKER_LOG=debug "$launcher" state nonesuch >out 2>err || :
  unlike "$(<err)" \
    'reads [^ ]+ (Inside|`run`|The monitor|Privileges|Volumes|[Nn]et|[A-Z][^:]*egistr)'
  like "$(<err)" 'calls known_oci' # of its chapter, no function more than it needs
  unlike "$(<err)" 'calls (create_container|run_hooks|cmd_list)'
  MYDOCKER_LOG=debug "$launcher" images >out 2>err
  like "$(<err)" 'reads [^ ]+ The store'
}

# ── Beside other programs ────────────────────────────────────────────────────

test_skopeo_reads_store() { # peers: skopeo reads the store in place, and what it puts there runs
  need skopeo
  make_image "t$n/x:1" -c 'ENV A=1'
  skopeo inspect "oci:$MYDOCKER_ROOT/images:docker.io/t$n/x:1" >got
  has got '"A=1"'
  run 0 save --format oci -o a.tar "t$n/x:1"
  run 0 save -o b.tar "t$n/x:1"
  skopeo copy -q oci-archive:a.tar "dir:$PWD/one"
  skopeo copy -q docker-archive:b.tar "dir:$PWD/two"
  id_of "t$n/x:1"
  has one/manifest.json "${id#sha256:}"
  has two/manifest.json "${id#sha256:}"
  skopeo copy -q oci-archive:a.tar "oci:$PWD/layout:t$n/y:1"
  skopeo copy -q oci-archive:a.tar "docker-archive:$PWD/c.tar:t$n/z:1"
  run 0 rmi "t$n/x:1"
  run 0 load -i layout
  run 0 load -i c.tar
  run 0 run --rm "t$n/z:1" /bin/sh -c 'echo $A'
  is "$out" 1
}

test_podman_loads_saved() { # peers: podman loads both formats of save with the same id,
  # and sees the same tree
  local format place
  peer_podman
  small_root root
  rich_root root/rich
  make_image "t$n:1"
  id_of "t$n:1"
  tree_of root >want
  for format in docker oci; do
    run 0 save --format "$format" -o a.tar "t$n:1"
    "${podman[@]}" load -q -i a.tar
    is "$("${podman[@]}" images --no-trunc -q "t$n:1")" "$id"
    place=$("${podman[@]}" image mount "t$n:1")
    tree_of "$place" | diff want -
    "${podman[@]}" image umount "t$n:1"
    "${podman[@]}" rmi -f "t$n:1"
  done
}

test_podman_image_runs() { # peers: an image of podman's runs here with the same id and the same
  # tree, however it is saved
  local format want
  peer_podman
  own_state
  small_root root
  rich_root root/rich
  tar --format=pax --xattrs --xattrs-include='*' -C root -cf root.tar .
  "${podman[@]}" import -q -c 'CMD ["/bin/sh", "-c", "echo hello"]' root.tar "localhost/t$n:1"
  want=$("${podman[@]}" images --no-trunc -q "localhost/t$n:1")
  tree_of root >tree
  for format in docker-archive oci-archive oci-dir; do
    rm -rf saved
    "${podman[@]}" save -q --format "$format" -o saved "localhost/t$n:1"
    run 0 load -i saved
    id_of "localhost/t$n:1"
    is "$id" "$want"
    run 0 run --rm "localhost/t$n:1"
    is "$out" hello
    layer_of "localhost/t$n:1"
    tree_of "$layer" | diff tree -
    run 0 rmi "localhost/t$n:1"
  done
}

test_podman_sees_commit() { # peers: what commit makes has the same tree in podman as here
  local place
  need overlay
  peer_podman
  small_root root
  mkdir -p root/old/deep root/gone
  touch root/old/a root/gone/x
  make_image "t$n:1"
  run 0 run --name "c$n" "t$n:1" /bin/sh -c 'rm -r /old /gone /etc/group; mkdir /old
      echo b >/old/b; echo x >>/etc/passwd'
  rich_root rich
  run 0 cp -a "$PWD/rich" "c$n:/"
  run 0 commit "c$n" "t$n:2"
  run 0 export -o "$PWD/e.tar" "c$n"
  mkdir here
  tar --xattrs --xattrs-include='*' -C here -xf e.tar
  run 0 save -o a.tar "t$n:2"
  "${podman[@]}" load -q -i a.tar
  place=$("${podman[@]}" image mount "t$n:2")
  tree_of here >want
  tree_of "$place" | diff want -
  "${podman[@]}" image umount "t$n:2"
}

test_podman_runs_saved() { # peers: podman runs an image that was made here
  peer_podman
  need runc
  make_image "t$n:1" -c 'CMD ["/bin/sh","-c","echo hello from $A"]' -c 'ENV A=here'
  run 0 save -o a.tar "t$n:1"
  "${podman[@]}" load -q -i a.tar
  is "$("${podman[@]}" --runtime runc "${podman_run[@]}" --net none "t$n:1" 2>err || cat err)" \
    'hello from here'
}

test_umoci() { # peers: umoci unpacks what save writes to the same tree, and what it makes runs here
  need umoci
  local -
  small_root root
  rich_root root/rich
  make_image "t$n:1"
  unpack_saved "t$n:1"
  umoci unpack --image "layout:$(umoci ls --layout layout)" bundle
  tree_of root >want
  tree_of bundle/rootfs | diff want -
  umoci init --layout made
  umoci new --image "made:t$n-umoci:2"
  umoci unpack --image "made:t$n-umoci:2" other
  cp -a root/. other/rootfs
  umoci repack --image "made:t$n-umoci:2" other
  umoci config --image "made:t$n-umoci:2" --config.cmd /bin/sh --config.cmd -c --config.cmd \
    'echo umoci'
  run 0 load -i made
  run 0 run --rm "t$n-umoci:2"
  is "$out" umoci
}

test_debootstrap() { # peers: a Debian of debootstrap's is a system: packages, su, useradd, python
  need debootstrap
  [[ ${DEBIAN_ROOT-} ]] || skip 'needs DEBIAN_ROOT=DIR, a root that debootstrap made'
  own_state
  run 0 import "$DEBIAN_ROOT" debian
  mkdir -p p/DEBIAN p/usr/bin
  printf 'Package: t\nVersion: 1\nArchitecture: all\nMaintainer: t <t@t>\nDescription: t\n' \
    >p/DEBIAN/control
  echo 'echo installed' >p/usr/bin/t
  chmod 755 p/usr/bin/t
  dpkg-deb -b p t.deb
  run 0 run --rm -v "$PWD/t.deb:/t.deb" debian /bin/bash -ec '
    apt-get install -y /t.deb >/dev/null; t
    useradd -m someone; su someone -c "id -un; cd; pwd"
    perl -e "print qq(perl\n)"; dpkg -l | grep -c ^ii >/dev/null'
  is "$out" $'installed\nsomeone\n/home/someone\nperl'
}

# ── Main ─────────────────────────────────────────────────────────────────────

test_no_warnings() { # main: it starts without a warning of Python's
  local got=0
  is "$("$PYTHON" -W error "$here/mydocker.py" --version 2>&1 | grep -c '^mydocker ')" 1
  "$PYTHON" -W error -X dev "$here/mydocker.py" run /bin/echo hello >out 2>err || got=$?
  is "$got $(<out)$(<err)" '0 hello'
  "$PYTHON" -W error -X dev "$here/mydocker.py" run -it --init --log-level error /bin/echo hello \
    >out 2>err || got=$?
  is "$got $(<out)$(<err)" $'0 hello\r'
  "$PYTHON" -W error "$here/mydocker.py" info >out 2>err
  is "$(<err)" ''
}

strays() { # processes of ours, or of containers whose monitor is dead
  local - dir pid parent
  set +x
  for dir in /proc/[0-9]*; do
    pid=${dir#/proc/}
    [[ $pid != "$BASHPID" && $pid != "$$" ]] || continue
    if { tr '\0' '\n' <"$dir/environ"; } 2>/dev/null | grep -xF "MYDOCKER_ROOT=$MYDOCKER_ROOT" \
      >/dev/null; then
      parent=$(sed -n 's/^PPid:\t//p' "$dir/status" 2>/dev/null)
      [[ $parent == "$BASHPID" || $parent == "$$" || ! $parent ]] || ps_line "$pid"
    elif grep -qE $'^NSpid:\t[0-9]+\t1$' "$dir/status" 2>/dev/null; then
      parent=$(sed -n 's/^PPid:\t//p' "$dir/status" 2>/dev/null)
      [[ ! $parent || $parent -gt 1 ]] ||
        grep -qF "$(readlink "$dir/ns/pid")" "$scratch/at_start/pidns" || ps_line "$pid"
    fi
  done
}
ps_line() {
  printf '%s %s\n' "$1" "$(tr '\0' ' ' <"/proc/$1/cmdline")"
}
none() { # none COMMAND...: it prints nothing; what it printed last is in ./some
  "$@" >some
  [[ ! -s some ]]
}

survey() { # survey DIRECTORY: what of this host a run of the tests could leave something of
  mkdir "$1"
  cp /proc/self/mountinfo "$1/mounts"
  printf '%s\n' /sys/class/net/* >"$1/links"
  nft list tables >"$1/tables" 2>/dev/null || :
  readlink /proc/[0-9]*/ns/pid | sort -u >"$1/pidns"
  # what a test of another run has for a systemd of its own is that one's
  find /sys/fs/cgroup -path '*mydocker*' -type d ! -name mydocker \
    ! \( -path '*/mydocker-test.*' ! -path "*/mydocker-test.$unique*" \) 2>/dev/null |
    sort >"$1/cgroups"
}

still_empty() { # those of "${empty[@]}" that are there and without one now, of whatever namespace
  local - dir
  set +x
  for dir in "${empty[@]}"; do
    [[ ! -d $dir || $(cat "$dir"{,/*}/cgroup.procs 2>/dev/null) ]] || grep -qsvxF 0 \
      {"$dir",/sys/fs/cgroup/pids/mydocker/"${dir#*/mydocker/}"}/pids.current || echo "$dir"
  done
}

test_reserved_signals() { # run: the C library's own signals are left alone, musl's too, which are
  # three
  { # this program as it is on musl, where 34 is one of them
    cat <<'PYTHON'
import _signal
plain = _signal.valid_signals() - {34}, _signal.signal, _signal.pthread_sigmask
_signal.valid_signals = lambda: plain[0]
def signal(number, action):
    if number == 34:
        raise OSError(22, "Invalid argument")
    return plain[1](number, action)
def pthread_sigmask(how, numbers):
    if 34 in numbers:
        raise ValueError("signal number 34 out of range")
    return plain[2](how, numbers)
_signal.signal, _signal.pthread_sigmask = signal, pthread_sigmask
PYTHON
    cat "$here/mydocker.py"
  } >musl.py
  local mydocker=("$PYTHON" musl.py)
  run 0 run /bin/echo plain
  is "$out$err" plain
  run 143 run --init /bin/sh -c 'kill -TERM $$'
  is "$err" ''
}

planted() { # planted DIR NAME...: modules there that tell of it, in $top, when they are imported
  local name
  mkdir -p "$1"
  for name in "${@:2}"; do echo "print('$name from $1', file=open('$top/imported', 'a'))" \
    >"$1/$name.py"; done
}

imports_nothing() { # imports_nothing [ENV...] PYTHON WORD...: so started it runs, and no planted
  # file does
  local words
  own_state
  for words in --version images 'volume ls' 'ps --format json' 'run /bin/true' \
    'run --rm --explain /bin/true'; do
    read -ra words <<<"$words"
    env "$@" "${words[@]}" </dev/null >out 2>err || fail "$* ${words[*]}: $(<err)"
    [[ ! -e $top/imported ]] || fail "$* ${words[*]}: $(<"$top/imported")"
  done
}

test_planted_imports() { # main: files beside it, in the current directory or in PYTHONPATH are
  # never imported
  local top=$PWD modules=(errno fcntl select struct _struct _ctypes ctypes _socket socket json \
    _json hashlib _hashlib
    termios datetime zlib tarfile shlex subprocess math signal base64 secrets)
  planted "$PWD/beside" "${modules[@]}"
  planted "$PWD/path" "${modules[@]}"
  # what Python imports by itself is not ours
  while PYTHONPATH=$PWD/path "$PYTHON" -c '' && [[ -e imported ]]; do
    sed 's,^,path/,; s, .*,.py,' imported | xargs rm -f imported
  done
  cp "$here/mydocker.py" beside/
  ln -s beside/mydocker.py link.py
  imports_nothing "$PYTHON" beside/mydocker.py
  imports_nothing PYTHONSAFEPATH=1 "PYTHONPATH=$PWD/path" "$PYTHON" "$PWD/beside/mydocker.py"
  cd beside
  imports_nothing "$PYTHON" mydocker.py
  imports_nothing "$PYTHON" -m mydocker
  imports_nothing PYTHONPATH= \
    "$PYTHON" -c 'exec(compile(open("mydocker.py").read(), "mydocker.py", "exec"))'
  cd ..
  cp path/*.py .
  imports_nothing PYTHONPATH=. "$PYTHON" link.py
  run 0 --version
}

test_umask() { # main: a caller's umask changes nothing for the users in containers, nor what commit
  # makes
  local mask c='stat -c "%a %n" / /etc /etc/hosts /work /vol /made /empty
    read -r x </etc/hostname; ls /vol; umask'
  small_root root
  with_libraries "$(type -P stat)" root stat
  make_image "t$n:1"
  for mask in 022 077 027; do
    umask "$mask"
    run 0 run -u 1000 -w /work -v "v$mask:/vol" -v "$PWD/made$mask:/made" \
      -v "e$mask:/empty:nocopy" "t$n:1" /bin/sh -c "$c"
    is "$out" $'755 /\n755 /etc\n644 /etc/hosts\n755 /work\n755 /vol\n755 /made\n755 /empty\n0022'
    run 0 run --name "c$mask" "t$n:1" /bin/sh -c 'mkdir /new; echo x >/new/file'
    run 0 commit "c$mask" "made$mask"
    run 0 run --rm -u 1000 "made$mask" /bin/sh -c 'stat -c "%a %n" / /new /new/file'
    is "$out" $'755 /\n755 /new\n644 /new/file'
    is "$(stat -c %a state state/containers state/volumes)" $'700\n700\n700'
    find /sys/fs/cgroup -maxdepth 3 -name mydocker ! -perm 755 >closed
    is "$(<closed)" ''
  done
  oci_bundle
  configure 'p["user"] = {"uid": 5, "gid": 6, "umask": 63}
c["root"]["readonly"] = False
p["cwd"] = "/made/by us"' /bin/sh -c 'umask; stat -c %a . /made'
  run 0 run --bundle . t
  is "$out" $'0077\n755\n755'
}

test_number_ends() { # oci: a number that C would make another of is refused by its field's name,
  # and ids are runc's
  local want path values value
  oci_bundle
  configure 'l["resources"] = {}; l["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW"}'
  cp config.json good
  while read -r want path values; do
    for value in $values; do
      configure "
ERRNO = 'SCMP_ACT_ERRNO'
*keys, last = '$path'.split('.')
for key in keys:
    c = c.setdefault(key, {})
c[last] = $value
c = whole"
      fails 125 "config.json: .*$want: a number from " create t
      cp good config.json
    done
  done <<'END'
uid process.user.uid 4294967295 2147483648 -1 1.0 True
gid process.user.gid 4294967295 2147483648
additionalGids process.user.additionalGids [4294967295] [0,-1]
umask process.user.umask -1 4294967296
oomScoreAdj process.oomScoreAdj 1001 -4294967295
height process.consoleSize {"height":65537}
soft process.rlimits [{"type":"RLIMIT_NOFILE","soft":18446744073709551616,"hard":1}]
hard process.rlimits [{"type":"RLIMIT_NOFILE","soft":1,"hard":-1}]
timeout hooks.prestart [{"path":"/bin/true","timeout":2147484000}]
hostID linux.uidMappings [{"containerID":0,"hostID":4294967296,"size":1}]
containerID linux.gidMappings [{"containerID":4294967295,"hostID":0,"size":1}]
size linux.gidMappings [{"containerID":0,"hostID":0,"size":0}]
major linux.devices [{"path":"/dev/x","type":"c","major":4294967297,"minor":3}]
minor linux.devices [{"path":"/dev/x","type":"c","major":1,"minor":1048576}]
fileMode linux.devices [{"path":"/dev/x","type":"c","major":1,"minor":3,"fileMode":65536}]
uid linux.devices [{"path":"/dev/x","type":"c","major":1,"minor":3,"uid":4294967295}]
gid linux.devices [{"path":"/dev/x","type":"c","major":1,"minor":3,"gid":-1}]
minor linux.resources.devices [{"allow":True,"type":"c","major":1,"minor":4294967299}]
limit linux.resources.memory.limit 18446744073709551616 -2
swap linux.resources.memory.swap 9223372036854775808
quota linux.resources.cpu.quota 18446744073709551616
shares linux.resources.cpu.shares -1
limit linux.resources.pids.limit 9223372036854775808
rate linux.resources.blockIO.throttleReadBpsDevice [{"major":8,"minor":0,"rate":-1}]
classID linux.resources.network.classID 4294967296
hcaHandles linux.resources.rdma.mlx {"hcaHandles":-1}
errnoRet linux.seccomp.syscalls [{"names":["mkdir"],"action":ERRNO,"errnoRet":2147090432}]
defaultErrnoRet linux.seccomp.defaultErrnoRet 65536
index linux.seccomp.syscalls [{"names":["mkdir"],"action":ERRNO,"args":[{"index":6,"value":1}]}]
END
  configure 'l["uidMappings"] = [{"containerID": 0, "hostID": 4294967294, "size": 2}]'
  fails 125 'uidMappings: ids above 4294967294' create t
  cp good config.json
  # of a user only what is the OCI's: a name or capabilities would be taken for our own
  configure 'p["user"] = {
    "uid": 2147483647, "gid": 2147483647, "username": "root", "added": ["CAP_KILL"]}' \
    /bin/sh -c 'id -u; id -g
      while read -r name caps; do
        [ "$name" != CapEff: ] || echo "$caps"
      done </proc/self/status'
  run 0 run --bundle . t
  is "$out" $'2147483647\n2147483647\n0000000000000000'
  is "$(find state -mindepth 2)" ''
}

test_number_ends_exec() { # oci: so it is in the file of exec --process, in update's resources and
  # in a seccomp profile
  oci_bundle
  configure '' /bin/sleep 1000
  run 0 create --pid-file pid t </dev/null
  run 0 start t
  echo '{"args": ["/bin/id"], "cwd": "/", "user": {"uid": 4294967295, "gid": 0}}' >process.json
  fails 125 'process.json: user: uid: a number from 0 to 2147483647 wanted, found 4294967295' exec \
    --process process.json t
  echo '{"args": ["/bin/id", "-u"], "cwd": "/", "user": {"uid": 5, "gid": 0, "username": "root"}}' \
    >process.json
  run 0 exec --process process.json t
  is "$out" 5
  echo '{"memory": {"limit": 18446744073709551616}}' >resources
  fails 125 'memory: limit: a number from' update --resources resources t
  run 0 delete --force t
  echo '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{
    "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 2147090432}]}' >profile
  fails 125 'profile: .*errnoRet: a number from' run --security-opt seccomp=profile /bin/true
}

test_number_ends_options() { # limits: sizes and numbers on the command line have an upper end, too
  local many words
  many=$(printf '9%.0s' {1..5000})
  for words in '-m 17179869184g' "-m $many" "-m $many.${many}k" '--shm-size 9223372036854775808' \
    '--log-opt max-size=8388608t' "--pids-limit $many" '--pids-limit 9223372036854775808' \
    '--pids-limit --3' \
    "--cpu-shares $many" "--cpus $many" '--ulimit nofile=18446744073709551616' \
    "--ulimit nofile=1:$many" \
    '-u 2147483648' "-u $many" "-u 0:$many" "--stop-timeout $many" "--oom-score-adj -$many"; do
    # shellcheck disable=SC2086 # they are two words
    fails 125 '^mydocker: --(memory|shm-size|log-opt max-size|pids-limit|cpu-shares|cpus|ulimit|'\
'user|stop-timeout|oom-score-adj), on ' run $words /bin/true
    unlike "$err" 'bug in mydocker'
  done
}

test_user_digits() { # user: a name of digits is the number, whoever has it for a name
  local many user
  small_root root
  many=$(printf '9%.0s' {1..5000})
  printf '%s\n' 1000:x:0:0::/root:/bin/sh root:x:0:0::/root:/bin/sh "far:x:$many:0::/:/bin/sh" \
    joe:x:1000:7::/home/joe:/bin/sh >root/etc/passwd
  printf '%s\n' 50:x:0: root:x:0: staff:x:50: "far:x:$many:joe" >root/etc/group
  make_image "t$n:1"
  for user in 1000 01000 joe; do
    run 0 run -u "$user" "t$n:1" /bin/sh -c 'echo $(id -u) $(id -g) $HOME'
    is "$out" '1000 7 /home/joe'
  done
  run 0 run -u joe:50 "t$n:1" /bin/sh -c 'echo $(id -u) $(id -g) $(id -G)'
  is "$out" '1000 50 50'
  run 0 run -u 2000:0050 "t$n:1" /bin/sh -c 'echo $(id -u) $(id -g)'
  is "$out" '2000 50'
  fails 125 'no such user' run -u far "t$n:1" /bin/true
  fails 125 'no such group' run -u 0:far "t$n:1" /bin/true
  background -u 0 "t$n:1" /bin/sleep 1000
  run 0 exec -u 1000 "$id" /bin/id -u
  is "$out" 1000
  run 0 exec -u 0:50 "$id" /bin/id -g
  is "$out" 50
  run 0 rm -f "$id"
  set_config "t$n:1" '{"User": "1000", "Cmd": ["/bin/sh", "-c", "echo $(id -u) $(id -g)"]}'
  run 0 run "t$n:1"
  is "$out" '1000 7'
}

test_json_numbers() { # images: NaN and infinities are no JSON, in an image, a bundle or any other
  # document
  local number
  make_image "t$n:1"
  set_config "t$n:1" '{}'
  cp -r layout pristine
  oci_bundle
  cp config.json good
  for number in NaN Infinity -Infinity 1e999 -1e999; do
    rm -rf layout && cp -r pristine layout
    set_config "t$n:1" "{\"Labels\": {\"x\": $number}}" 125
    one_line 'bad JSON: .*is no number'
    rm -rf layout && cp -r pristine layout
    set_config "t$n:1" "{\"Healthcheck\": {\"Interval\": [$number]}}" 125
    one_line 'bad JSON: .*is no number'
    sed "s/\"linux\"/\"annotations\": {\"x\": $number}, &/" good >config.json
    fails 125 'config.json: bad JSON: .*is no number' create t
    echo "{\"defaultAction\": \"SCMP_ACT_ALLOW\", \"syscalls\": [], \"more\": $number}" >profile
    fails 125 'profile: .*is no number' run --security-opt seccomp=profile /bin/true
  done
  cp good config.json
  configure 'c["annotations"] = {"x": "1e999", "y": "NaN"}; c["more"] = 1.5e3' /bin/sh -c :
  run 0 run --bundle . t
  run 0 run --rm "t$n:1" /bin/sh -c :
  run 0 ps -a
  is "$(find state/oci state/containers -mindepth 1)" ''
}

test_json_texts() { # images: a text that can't be handed on or written back is refused where it is
  # read
  local text key
  make_image "t$n:1"
  set_config "t$n:1" '{}'
  cp -r layout pristine
  for text in 'a\u0000b' '\ud800'; do
    for key in '"Cmd": ["/bin/true", "@"]' '"User": "@"' '"Env": ["A=@"]' '"Env": ["@=b"]' \
      '"Labels": {"x": "@"}' \
      '"Labels": {"@": "x"}' '"WorkingDir": "/@"' '"Entrypoint": ["@"]' '"Volumes": {"/@": {}}' \
      '"StopSignal": "@"'; do
      rm -rf layout && cp -r pristine layout
      set_config "t$n:1" "{${key//@/$text}}" 125
      one_line '(a NUL in a text|a lone surrogate)'
    done
    fails 125 '(a NUL in a text|a lone surrogate)' import --change "CMD [\"$text\"]" root "t$n:2"
  done
  for key in '["=x"]' '[""]'; do
    rm -rf layout && cp -r pristine layout
    set_config "t$n:1" "{\"Env\": $key}" 125
    one_line 'Env, on .*: a variable must have a name'
  done
  fails 125 'a variable must have a name' import --change "ENV =x" root "t$n:2"
  rm -rf layout && cp -r pristine layout
  set_config "t$n:1" '{"Labels": {"x": 1}}' 125
  one_line 'Labels: x: str wanted, found 1'
  oci_bundle
  cp config.json good
  while read -r want change; do
    configure "$change"
    fails 125 "config.json: .*$want" create t
    cp good config.json
  done <<'END'
surrogate p["args"] = ["/bin/echo", "\ud800"]
surrogate p["env"] = ["A=\udfff"]
surrogate c["annotations"] = {"\ud800": "x"}
NUL c["hostname"] = "a\0b"
NUL c["annotations"] = {"a\0": "x"}
name p["env"] = ["=x"]
name c["hooks"] = {"poststop": [{"path": "/bin/true", "env": ["=x"]}]}
annotations c["annotations"] = {"x": 1}
unified l["resources"] = {"unified": {"memory.max": 1}}
path c["root"] = {}
path c["root"] = {"path": 7}
bounding p["capabilities"]["bounding"] = "CAP_KILL"
END
  # what isn't UTF-8 stays what it is, also by way of an image
  run 0 run --name "c$n" "t$n:1" /bin/sh -c :
  run 0 commit --change $'ENV B=\xfe' "c$n" "t$n:3"
  run 0 run --rm "t$n:3" /bin/sh -c 'echo "$B"'
  printf '\376\n' | cmp - "$scratch/stdout"
}

cgroup_trees() { # the places of the cgroup trees
  awk '/ - cgroup2? / {print $5}' /proc/self/mountinfo
}

test_cgroups_path_root() { # oci: a cgroupsPath that is the root of the trees is refused, before
  # anything is made or killed
  need unshare awk mount
  # whatever goes wrong, no process or cgroup of others can go with it
  local path mydocker=(unshare --mount --propagation private --pid --fork --kill-child \
    --mount-proc bash -ec '
    awk "/ - cgroup2? / {print \$5}" /proc/self/mountinfo | while read -r place; do
      mount -o remount,bind,ro "$place"
    done
    "$@"' bash "${mydocker[@]}")
  oci_bundle
  for path in / . '' /. ./. // /.. a/.. ../mydocker /a/../..; do
    configure "l['cgroupsPath'] = '$path'" /bin/sh -c :
    fails 125 '^mydocker: (--cgroup-parent or )?cgroupsPath, on .*: it '\
'(names no cgroup of its own|must not contain \.\.)' create t
    fails 125 cgroupsPath run --bundle . t
    is "$(find state -mindepth 2)" ''
  done
}

test_cgroups_path_race() { # oci: of those who make one cgroup at once one gets it, and the end of
  # the others isn't its own
  local round id jobs name=mydocker-race-$$-$n
  oci_bundle
  configure "l['cgroupsPath'] = '/$name'" /bin/sh -c 'while :; do sleep 0.05; done'
  for round in {1..8}; do
    jobs=()
    for id in a b c d; do
      "${mydocker[@]}" create --pid-file "$id" $id >"$id.said" 2>&1 </dev/null &
      jobs+=($!)
    done
    wait "${jobs[@]}" || :
    run 0 list -q
    [[ $out == ? ]] || fail "round $round: they share it: $out"
    gone "$(<"$out")" && fail "round $round: $out was killed"
    run 0 delete --force "$out"
  done
  cat ./?.said >said
  like "$(<said)" '^mydocker: cgroupsPath, on .*: (it is there already, and|somebody else has just)'
  is "$(find /sys/fs/cgroup -name "$name")" ''
}

test_cgroups_path_file() { # oci: a cgroupsPath that is a file, or below one, or too long, is an
  # error after which nothing is left
  local path
  oci_bundle
  for path in /cgroup.procs /cgroup.procs/x "/$(printf 'a%.0s' {1..5000})"; do
    configure "l['cgroupsPath'] = '$path'" /bin/true
    fails 125 'not a directory|file name too long' create t
    is "$(find state/oci -mindepth 1)" ''
  done
}

test_cgroups_path_found() { # oci: a cgroup that was there is refused if it's in use, and else
  # neither killed nor removed
  local tree place other name=mydocker-allowed-$$-$n
  oci_bundle
  # v1's cpuset takes no process before it has processors
  for tree in $(cgroup_trees | grep freezer) $(cgroup_trees); do
    [[ $tree != *cpuset* ]] && mkdir "$tree/$name" 2>/dev/null && break
  done
  place=$tree/$name
  [[ -d $place ]] || skip 'needs a cgroup tree that can be written to'
  configure "l['cgroupsPath'] = '/$name'" /bin/sh -c 'while :; do sleep 0.05; done'
  sleep 1000 &
  other=$!
  mkdir "$place/below"
  echo "$other" >"$place/below/cgroup.procs"
  fails 125 "^mydocker: cgroupsPath, on .*$name: it is there already, and has processes in it$" \
    create t
  gone "$other" && fail 'it was killed'
  is "$(find state -mindepth 2)" ''
  kill "$other"
  wait "$other" || :
  rmdir "$place/below"
  run 0 create --pid-file pid t </dev/null
  run 0 start t
  grep -qx "$(<pid)" "$place/cgroup.procs"
  sleep 1000 &
  other=$!
  echo "$other" >"$place/cgroup.procs"
  run 0 kill --all t KILL
  wait_for gone "$(<pid)"
  run 0 delete --force t
  gone "$other" && fail 'it was killed'
  [[ -d $place ]]
  kill "$other"
  wait "$other" || :
  if [[ -e $place/cgroup.freeze ]]; then echo 1 >"$place/cgroup.freeze"; fi
  if [[ -e $place/freezer.state ]]; then echo FROZEN >"$place/freezer.state"; fi
  if [[ -e $place/cgroup.freeze || -e $place/freezer.state ]]; then
    fails 125 'it is there already, and is frozen' create t
  fi
  wait_for rmdir "$place"
}

test_cgroups_path_allow() { # limits: a cgroup whose path holds the word "allow" has its device
  # rules like any other
  run 0 run --cgroup-parent "/mydocker-allowed-$n" /bin/sh -c 'echo x >/dev/null && echo written'
  is "$out" written
  find /sys/fs/cgroup -depth -type d -path "*/mydocker-allowed-$n*" -exec rmdir {} +
}

test_streams_of_users() { # run: another user than root can open /dev/stdout and /dev/stderr, and
  # nothing of the caller's is given away
  local say='echo out >/dev/stdout; echo err >/dev/stderr; echo more >&1' null command status
  null=$(stat -c '%u %a %t:%T' /dev/null)
  make_image "t$n:1"
  # its pipes are mydocker's
  background --name "d$n" -u 1234 "t$n:1" /bin/sh -c "$say; exec sleep 1000"
  wait_for said "d$n" more
  run 0 logs "d$n"
  is "$out" $'out\nmore'
  is "$err" err
  for command in "run --rm -u 1234 t$n:1" "run --rm -u user t$n:1" "run --rm --init -u 1234 t$n:1" \
    "exec -u 1234 d$n" "run -u 1234"; do
    # shellcheck disable=SC2086 # they are words
    {
      "${mydocker[@]}" $command /bin/sh -c "$say" 2>err | cat >out # a pipe and a file
      is "$(<out) $(<err)" $'out\nmore err'
      # a file for both: what is said keeps its order
      "${mydocker[@]}" $command /bin/sh -c "$say" >both 2>&1
      is "$(<both)" $'out\nerr\nmore'
      is "$(stat -c %u both err)" $'0\n0'
      "${mydocker[@]}" $command /bin/sh -c 'read x </dev/stdin; echo "$x" >/dev/stdout; exit 7' \
        </dev/null >out 2>&1 || status=$?
      is "$status" 7
      "${mydocker[@]}" $command /bin/sh -c "$say" >/dev/null 2>&1
      tty 0 -- sh -c 'before=$(stat -c %u $(tty)); "$@"; [ "$(stat -c %u $(tty))" = "$before" ]' \
        sh "${mydocker[@]}" $command /bin/sh -c "$say"
      is "$out" $'out\nerr\nmore'
    }
  done
  echo typed | "${mydocker[@]}" run --rm -i -u 1234 "t$n:1" \
    /bin/sh -c 'read -r x </dev/stdin; echo "$x"' >out
  is "$(<out)" typed
  mkfifo fifo
  cat fifo >out &
  "${mydocker[@]}" run --rm -u 1234 "t$n:1" /bin/sh -c "$say" >fifo 2>&1
  wait "$!"
  is "$(<out) $(stat -c %u fifo)" $'out\nerr\nmore 0'
  head -c 3000000 /dev/zero >zeros
  "${mydocker[@]}" run --rm -i -u 1234 "t$n:1" /bin/cat <zeros >out
  cmp zeros out
  run 0 rm -f "d$n"
  is "$(stat -c '%u %a %t:%T' /dev/null)" "$null"
}

test_streams_of_engines() { # oci: an engine's pipes, files and sockets are the container user's,
  # its devices are not
  local null say='echo out >/dev/stdout; echo err >/dev/stderr'
  null=$(stat -c '%u %a %t:%T' /dev/null)
  oci_bundle
  configure 'p["user"] = {"uid": 1234, "gid": 5678}' /bin/sh -c "$say; exec sleep 1000"
  run 0 create t </dev/null # its output is files
  is "$(stat -c %u "$scratch/stdout" "$scratch/stderr")" $'1234\n1234'
  run 0 start t

  echo '{"args": ["/bin/sh", "-c", "'"$say"'"], "cwd": "/", "user": {"uid": 4321, "gid": 0}}' \
    >process.json
  "${mydocker[@]}" exec --process process.json t >out 2>err </dev/null
  is "$(<out) $(<err) $(stat -c %u out err)" $'out err 4321\n4321'
  "${mydocker[@]}" exec --process process.json t </dev/null 2>&1 | cat >piped
  is "$(<piped)" $'out\nerr'
  "${mydocker[@]}" exec --process process.json t </dev/null >/dev/null 2>&1
  run 0 delete --force t
  is "$(stat -c '%u %a %t:%T' /dev/null)" "$null"
}

# fuzzed COMMAND...: in PID, network, IPC and mount namespaces and cgroups of its own, and nothing
# but this directory can be written: whatever is asked for by accident hurts nobody
fuzzed() {
  local place name=mydocker-fuzz$$ status=0
  mkdir -p here
  for place in $(cgroup_trees); do
    mkdir "$place/$name" || skip 'needs cgroups that can be made'
    for file in cpuset.cpus cpuset.mems; do # v1's start empty
      [[ ! -e $place/$file ]] || cat "$place/$file" >"$place/$name/$file"
    done
  done
  (
    for place in $(cgroup_trees); do echo "$BASHPID" >"$place/$name/cgroup.procs"; done
    exec unshare --cgroup --mount --propagation private --pid --net --ipc --uts --fork \
      --kill-child --mount-proc bash -ec '
      for place in $1; do mount --bind "$place/$2" "$place"; done
      mount --bind . .
      awk "{print \$5}" /proc/self/mountinfo | while read -r place; do
        case $place in "$PWD" | /proc* | /sys/fs/cgroup*) continue ;; esac
        mount -o remount,bind,ro "$place" 2>/dev/null || :
      done
      cd .; cd "$PWD"
      "${@:3}"' bash "$(cgroup_trees)" "$name" "$@"
  ) || status=$?
  for place in $(cgroup_trees); do
    find "$place/$name" -depth -type d -exec rmdir {} + || status=1
  done
  is "$status" 0
}

test_fuzz() { # oci: 15 bundles and 5 images (FULL=1: 300 and 100) with something wrong in them end
  # in words of ours, and leave nothing
  local bundles=15 images=5
  if [[ ${FULL-} ]]; then bundles=300 images=100; fi
  need unshare mount awk busybox
  make_image "t$n:1"
  unpack_saved "t$n:1"
  oci_bundle
  fuzzed "$PYTHON" -I - "$n" "$bundles" "$images" "${mydocker[@]}" <<'PYTHON'
import copy, hashlib, json, os, random, shutil, subprocess, sys, time

name, bundles, images, *mydocker = sys.argv[1:]
image = f"t{name}:1"
dice = random.Random(15)
bad = 0
NASTY = [
    None, True, False, 0, 1, -1, 7, 1 << 15, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32,
    (1 << 63) - 1, 1 << 63, 1 << 64, -(1 << 63), 1.5, 1e300, 10 ** 400, "", " ", ".", "..", "/",
    "//", "../..", "/etc", "/proc", "/proc/self/fd/3", "/dev", "/dev/null", "rootfs", "x" * 5000,
    "/x" * 2000, "a\0b", "\ud800", "\x1b[2J", "\u202e", "\udcff", "0", "-1", "4294967296", "root",
    "CAP_SYS_ADMIN", "SCMP_ACT_KILL", "user", "pid", "network", "bind", "tmpfs", "proc", "devtmpfs",
    "overlay", "copy", "layers", "cgroup", "rw", "shared", "rslave", "sha256:" + "0" * 64,
    "sha256:../../etc/passwd", "text/plain", "2026-01-08T09:32:52Z", [], {}, [[]], [None], [""],
    {"": ""}, {"path": "/x"}, {"type": "user"}, {"destination": "/x"}, ["a", 1], [{}] * 50]
KEYS = ["tree", "fallback", "copyUp", "chown", "volume", "gate", "filter", "username", "added",
        "", "x", "path", "type", "\0", "\ud800"]


def nodes(value, found, way=()):
    if way:
        found.append(way)
    for key in value if isinstance(value, dict) else range(
            len(value) if isinstance(value, list) else 0):
        nodes(value[key], found, (*way, key))
    return found


def at(value, way):
    for key in way:
        value = value[key]
    return value


def mutate(document):
    document = copy.deepcopy(document)
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        ways = nodes(document, [])
        if not ways:
            break
        *above, key = dice.choice(ways)
        place = at(document, above)
        what = dice.randrange(8)
        if what < 4:
            place[key] = copy.deepcopy(dice.choice(NASTY))
        elif what == 4:
            del place[key]
        elif what == 5:
            place[key] = copy.deepcopy(at(document, dice.choice(ways)))
        elif what == 6:
            place[key] = [place[key]] * dice.choice((1, 2))
        elif isinstance(place, dict):
            place[dice.choice(KEYS)] = copy.deepcopy(dice.choice(NASTY))
        else:
            place.append(copy.deepcopy(dice.choice(place)))
    return document


def left():
    found = [pid for pid in os.listdir("/proc") if pid.isdigit() and pid != "1"
             and int(pid) != os.getpid() and alive(pid)]
    for top in "oci", "running", "names", "containers":
        if os.path.isdir("state/" + top):
            found += [f"{top}/{each}" for each in os.listdir("state/" + top)]
    return found


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def tried(what, *words):
    global bad
    try:
        done = subprocess.run([*mydocker, *words], stdin=subprocess.DEVNULL, timeout=60,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        status, said = done.returncode, done.stdout.decode("utf-8", "backslashreplace")
    except subprocess.TimeoutExpired:
        status, said = "hangs", ""
    for _ in range(500):  # an init that nobody needs finds that out when it has started
        if not left():
            break
        time.sleep(0.02)
    wrong = status == "hangs" or "Traceback" in said or "bug in" in said or "\x1b" in said
    if wrong or left():
        bad += 1
        print(what, status, said[-2000:], left(), flush=True)
    return status


config = json.load(open("config.json"))
config["process"].update(
    args=["/bin/sh", "-c", ":"], oomScoreAdj=100,
    rlimits=[{"type": "RLIMIT_NOFILE", "soft": 64, "hard": 64}])
config["process"]["user"] = {"uid": 7, "gid": 8, "additionalGids": [9, 10], "umask": 18}
config.update(annotations={"a": "b"}, domainname="moon", hooks={
    moment: [{"path": "/bin/sh", "args": ["sh", "-c", ":"], "env": ["A=b"], "timeout": 9}]
    for moment in ("prestart", "createRuntime", "createContainer", "startContainer", "poststop")})
config["mounts"] += [
    {"destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "size=64k"]},
    {"destination": "/b", "type": "bind", "source": "here", "options": ["rbind", "ro", "rprivate"]}]
config["linux"].update(
    resources={"memory": {"limit": 1 << 28, "swap": -1}, "pids": {"limit": 99},
               "cpu": {"shares": 512, "quota": 50000, "period": 100000},
               "devices": [{"allow": False, "access": "rwm"}]},
    devices=[{"path": "/dev/x", "type": "c", "major": 1, "minor": 3, "fileMode": 438, "uid": 0}],
    sysctl={"net.ipv4.ip_forward": "1", "kernel.msgmax": "4242"}, rootfsPropagation="rslave",
    uidMappings=[{"containerID": 0, "hostID": 0, "size": 65536}],
    gidMappings=[{"containerID": 0, "hostID": 0, "size": 65536}],
    seccomp={"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["chroot"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1,
         "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]}]})
config["root"]["readonly"] = False
for number in range(int(bundles) + 1):  # the first one is good
    with open("config.json", "w") as file:
        json.dump(config if number == 0 else mutate(config), file)
    status = tried(f"bundle {number}", "run", "--bundle", ".", f"f{number}")
    if number == 0 and status != 0:
        bad += 1
        print("the first bundle ended with", status)
    if bad > 5:
        break


def path(of):
    return "layout/blobs/sha256/" + of["digest"][7:]


def store(of, data):
    of["digest"], of["size"] = "sha256:" + hashlib.sha256(data).hexdigest(), len(data)
    with open(path(of), "wb") as file:
        file.write(data)


shutil.move("layout", "good")
for number in range(int(images) + 1):
    shutil.rmtree("layout", ignore_errors=True)
    shutil.copytree("good", "layout")
    index = json.load(open("layout/index.json"))
    manifest = json.load(open(path(index["manifests"][0])))
    setup = json.load(open(path(manifest["config"])))
    where = dice.randrange(4) if number else 4
    try:
        if where == 3:  # bytes of the layer, which is no archive any more, or another one
            import gzip
            packed = open(path(manifest["layers"][0]), "rb").read()
            layer = bytearray(gzip.decompress(packed) if packed[:2] == b"\x1f\x8b" else packed)
            for _ in range(dice.randrange(1, 9)):
                block = 512 * dice.randrange(len(layer) // 512)
                layer[block + dice.randrange(512)] = dice.randrange(256)
            setup["rootfs"]["diff_ids"][0] = "sha256:" + hashlib.sha256(layer).hexdigest()
            store(manifest["layers"][0], gzip.compress(bytes(layer), 1)
                  if packed[:2] == b"\x1f\x8b" else bytes(layer))
        setup = mutate(setup) if where == 0 else setup
        store(manifest["config"], json.dumps(setup).encode())
        manifest = mutate(manifest) if where == 1 else manifest
        store(index["manifests"][0], json.dumps(manifest).encode())
        index = mutate(index) if where == 2 else index
    except (KeyError, IndexError, TypeError):
        pass
    with open("layout/index.json", "w") as file:
        json.dump(index, file)
    status = tried(f"image {number} load", "load", "-i", "layout")
    if status == 0:
        ran = tried(f"image {number} run", "run", "--rm", image, "/bin/sh", "-c", ":")
        if number == 0 and ran != 0:
            bad += 1
            print("the first image ended with", ran)
        tried(f"image {number} images", "images")
        tried(f"image {number} inspect", "inspect", image)
    tried(f"image {number} rmi", "rmi", image)
    if bad > 9:
        break
sys.exit(bad > 0)
PYTHON
}

test_old_python() { # main: a Python that is too old shows the line that says which one is needed
  local old
  has "$here/mydocker.py" '^assert .*# mydocker needs Python 3.8 or later'
  for old in python2.7 python3.6 python3.7 \
    "${PYENV_ROOT:-$HOME/.pyenv}"/versions/{2.7,3.6,3.7}*/bin/python; do
    "$old" -c pass || continue # it isn't there, or a name only
    ! "$old" "$here/mydocker.py" --version 2>err || fail "$old took it"
    has err 'mydocker needs Python 3.8 or later'
    is "$(wc -l <err)" 4
  done
}

test_defined_once() { # main: no name of the program's is defined twice, the second hiding the first
  "$PYTHON" -I - "$here/mydocker.py" <<'PYTHON' >twice
import ast, collections, sys
with open(sys.argv[1], encoding="utf-8") as file:
    body = ast.parse(file.read()).body
names = collections.Counter(node.name for node in body if hasattr(node, "name"))
for node in body:
    if isinstance(node, ast.Assign):
        names.update(name.id for target in node.targets for name in ast.walk(target)
                     if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store))
print(*[name for name, count in names.items() if count > 1], sep="\n")
PYTHON
  is "$(<twice)" ''
}

test_nothing_left() { # main: nothing is left behind on this host
  local what
  run 0 run /bin/true # which sweeps up after the killed ones
  wait_for none strays
  survey after
  for what in mounts links tables; do diff "$scratch/at_start/$what" "after/$what"; done
  # other tests may be running beside these: their cgroups fill up, or go
  mapfile -t empty < <(comm -13 "$scratch/at_start/cgroups" after/cgroups)
  wait_for none still_empty
  is "$(find "$MYDOCKER_ROOT"/{containers,running} -mindepth 1)" ''
}

# ── Measurements ─────────────────────────────────────────────────────────────
# Each bench_* sets $row to a command, or skips. The rows of an area are run in turn, and compared
# with the area's first row; prepare_AREA, where there is one, comes before.

prepare_unpack() { # a 300 MB layer of 30,000 files, as tar and as images
  big_root big 30000 10000
  tar --format=pax -C big -cf big.tar .
  MYDOCKER_ROOT=$PWD/made "${mydocker[@]}" import big.tar big:1
  MYDOCKER_ROOT=$PWD/made "${mydocker[@]}" save -o saved.tar big:1
  rm -rf big layout made
  mkdir layout
  tar -C layout -xf saved.tar # for umoci
}

big_root() { # big_root DIR FILES BYTES: so many files of this mean size, half of each compressible
  "$PYTHON" -I - "$@" <<'PYTHON'
import os, random, sys
top, files, mean = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
random.seed(1)
for number in range(files):
    path = "%s/dir%d/sub%d" % (top, number % 50, number // 50 % 50)
    if number < 2500:
        os.makedirs(path)
    size = min(int(random.expovariate(1 / mean)), 400000)
    with open("%s/file%d" % (path, number), "wb") as file:
        file.write(random.randbytes(size // 2) + b"text " * (size // 10))
PYTHON
}

bench_unpack_tar() { # unpack: tar -x of the layer (300 MB, 30,000 files), then rm -r
  row=(unpack_and_remove rm -rf out -- tar -C out -xf big.tar)
}

bench_unpack_load() { # unpack: mydocker.py load of the layer's image, then rm -r of all
  row=(unpack_and_remove rm -rf out -- env "MYDOCKER_ROOT=$PWD/out/state" "${mydocker[@]}" load
    -i saved.tar)
}

bench_unpack_import() { # unpack: mydocker.py import of the layer, then rm -r of all
  row=(unpack_and_remove rm -rf out -- env "MYDOCKER_ROOT=$PWD/out/state" "${mydocker[@]}" import
    big.tar big:1)
}

bench_unpack_umoci() { # unpack: umoci unpack of the layer's image, then rm -r
  need umoci
  row=(unpack_and_remove rm -rf out -- umoci unpack
    --image "layout:$(umoci ls --layout layout | head -n 1)" out/bundle)
}

bench_unpack_podman() { # unpack: podman load of the layer's image, then podman rmi
  need podman
  peer_podman
  row=(unpack_and_remove "${podman[@]}" rmi -af -- "${podman[@]}" load -q -i saved.tar)
}

bench_unpack_podman_import() { # unpack: podman import (overlay) of the layer, then podman rmi
  need podman
  peer_podman
  podman=("${podman[@]/vfs/overlay}")
  row=(unpack_and_remove "${podman[@]}" rmi -af -- "${podman[@]}" import -q big.tar)
}

bench_unpack_pack() { # unpack: the other way, mydocker.py import of the layer's tree, then rm -r of
  # all
  [[ -d packed ]] || { mkdir packed && tar -C packed -xf big.tar; }
  row=(unpack_and_remove rm -rf out -- env "MYDOCKER_ROOT=$PWD/out/state" "${mydocker[@]}" import \
    packed big:1)
}

bench_unpack_pack_tar() { # unpack: tar -c of the layer's tree and tar -x of that, then rm -r
  [[ -d packed ]] || { mkdir packed && tar -C packed -xf big.tar; }
  row=(unpack_and_remove rm -rf out -- sh -c 'tar -C packed -c . | tee out/blob | tar -C out -x')
}

prepare_build() { # the context of builds: ten steps of small files, and 20,000 files
  peer_podman
  small_root root
  own_state
  "${mydocker[@]}" import root base:1
  tar -C root -c . | "${podman[@]/vfs/overlay}" import -q - localhost/base:1
  mkdir -p small large
  printf 'FROM base:1\n' | tee small/Dockerfile >large/Dockerfile
  for n in {1..8}; do
    echo "$n" >"small/$n"
    printf 'COPY %d /copied/\n' "$n" >>small/Dockerfile
  done
  printf '%s\n' 'RUN echo one >/one' 'RUN echo two >/two' >>small/Dockerfile
  big_root large/files 20000 2000
  echo 'COPY files /files' >>large/Dockerfile
}

by_podman() { # by_podman ARG...: `podman build`, on overlay, with its cache
  need podman
  peer_podman
  row=("${podman[@]/vfs/overlay}" build -q --layers --isolation chroot "$@")
}

by_buildah() { # by_buildah ARG...: `buildah build`, on overlay, with its cache
  need buildah
  peer_podman
  row=(buildah --root "$PWD/podman" --runroot "$PWD/run" --storage-driver overlay
    build -q --layers --isolation chroot "$@")
}

bench_build() { # build: mydocker.py build of ten steps, cold
  row=(env "MYDOCKER_ROOT=$PWD/state" "${mydocker[@]}" build -q --no-cache --network none small)
}

bench_build_podman() { # build: podman build of the ten steps, cold
  by_podman --no-cache small
}

bench_build_buildah() { # build: buildah build of the ten steps, cold
  by_buildah --no-cache small
}

bench_build_cached() { # build: mydocker.py build of the ten steps, all in its cache
  row=(env "MYDOCKER_ROOT=$PWD/state" "${mydocker[@]}" build -q --network none small)
}

bench_build_cached_podman() { # build: podman build of the ten steps, all in its cache
  by_podman small
}

bench_build_cached_buildah() { # build: buildah build of the ten steps, all in its cache
  by_buildah small
}

bench_build_copy() { # build: mydocker.py build that copies 20,000 files, cold
  row=(env "MYDOCKER_ROOT=$PWD/state" "${mydocker[@]}" build -q --no-cache large)
}

bench_build_copy_podman() { # build: podman build that copies 20,000 files, cold
  by_podman --no-cache large
}

bench_build_copy_buildah() { # build: buildah build that copies 20,000 files, cold
  by_buildah --no-cache large
}

unpack_and_remove() { # unpack_and_remove COMMAND... -- COMMAND...: the second with an empty ./out,
  # then the first
  local remove=()
  while [[ $1 != -- ]]; do remove+=("$1"); shift; done
  shift
  mkdir -p out
  "$@" && "${remove[@]}"
}

prepare_pull() { # once for pull to export: ./moved, an image of 300 MB and 20,000 files, and
  # containers that wrote as much
  [[ ! -e moved/registry ]] || return 0
  mkdir -p moved/empty
  cd moved || return
  registry
  echo "$reg" >registry
  big_root root 20000 15000
  tar --format=pax -C root -cf big.tar .
  export MYDOCKER_ROOT=$PWD/state
  "${mydocker[@]}" import big.tar big:1
  "${mydocker[@]}" save -o saved.tar big:1
  skopeo copy -q oci-archive:saved.tar oci:layout:1
  skopeo copy -q --dest-tls-verify=false oci:layout:1 "docker://$reg/big:1"
  "${mydocker[@]}" run --name c big:1 /none || : # it fails, and stays
  "${mydocker[@]}" cp root c:/copy
  peer_podman
  podman=("${podman[@]/vfs/overlay}")
  "${podman[@]}" load -q -i saved.tar
  "${podman[@]}" create --name c big:1 /none
  "${podman[@]}" cp root c:/copy
  umoci unpack --image layout:1 bundle
  cp -a root bundle/rootfs/copy
  cd ..
}

prepare_push() { prepare_pull; }

prepare_load() { prepare_pull; }

prepare_import() { prepare_pull; }

prepare_commit() { prepare_pull; }

prepare_export() { prepare_pull; }

moved_podman() { # podman with a storage of its own, with overlay; with ours: the one that has the
  # image and the container
  need podman
  peer_podman
  podman=("${podman[@]/vfs/overlay}")
  if [[ ${1-} ]]; then podman=("${podman[@]/$PWD/$PWD/moved}"); fi
}

emptied() { # emptied COMMAND...: with nothing in the registry
  rm -rf "moved/registry-$(<moved/registry)/docker"
  "$@"
}

bench_pull() { # pull: mydocker.py pull of a 300 MB image (20,000 files) from a registry on
  # loopback, then rm -r
  row=(unpack_and_remove rm -rf out -- env "MYDOCKER_ROOT=$PWD/out/state" "${mydocker[@]}" pull \
    "$(<moved/registry)/big:1")
}

bench_pull_podman() { # pull: podman pull (overlay) of it, then podman rmi
  moved_podman
  row=(unpack_and_remove "${podman[@]}" rmi -af -- "${podman[@]}" pull \
    -q --tls-verify=false "$(<moved/registry)/big:1")
}

bench_pull_umoci() { # pull: skopeo copy of it to a layout and umoci unpack, then rm -r
  need skopeo umoci
  row=(unpack_and_remove rm -rf out -- \
    sh -c 'skopeo copy -q --src-tls-verify=false "docker://$1/big:1" oci:out/l:1 &&
    umoci unpack --image out/l:1 out/bundle' sh "$(<moved/registry)")
}

bench_push() { # push: mydocker.py tag, push of it to an empty registry, rmi
  row=(emptied env "MYDOCKER_ROOT=$PWD/moved/state" \
    sh -c '"$@" tag big:1 "$0" && "$@" push "$0"; "$@" rmi "$0"'
    "$(<moved/registry)/new:1" "${mydocker[@]}")
}

bench_push_podman() { # push: podman push of it
  moved_podman ours
  row=(emptied "${podman[@]}" push -q --tls-verify=false big:1 "$(<moved/registry)/new:1")
}

bench_push_skopeo() { # push: skopeo copy of it from a layout
  need skopeo
  row=(emptied skopeo copy -q --dest-tls-verify=false oci:moved/layout:1 \
    "docker://$(<moved/registry)/new:1")
}

bench_load() { # load: mydocker.py load of it, then rm -r
  row=(unpack_and_remove rm -rf out -- env "MYDOCKER_ROOT=$PWD/out/state" "${mydocker[@]}" load \
    -i moved/saved.tar)
}

bench_load_podman() { # load: podman load (overlay), then podman rmi
  moved_podman
  row=(unpack_and_remove "${podman[@]}" rmi -af -- "${podman[@]}" load -q -i moved/saved.tar)
}

bench_load_umoci() { # load: skopeo copy of it to a layout and umoci unpack, then rm -r
  need skopeo umoci
  row=(unpack_and_remove rm -rf out -- sh -c '
    skopeo copy -q oci-archive:moved/saved.tar oci:out/l:1 &&
      umoci unpack --image out/l:1 out/bundle')
}

bench_import() { # import: mydocker.py import of its plain tar, then rm -r
  row=(unpack_and_remove rm -rf out -- env "MYDOCKER_ROOT=$PWD/out/state" "${mydocker[@]}" import \
    moved/big.tar big:1)
}

bench_import_podman() { # import: podman import (overlay), then podman rmi
  moved_podman
  row=(unpack_and_remove "${podman[@]}" rmi -af -- "${podman[@]}" import -q moved/big.tar big:1)
}

bench_import_tar() { # import: tar -x of it, then rm -r
  row=(unpack_and_remove rm -rf out -- tar -C out -xf moved/big.tar)
}

bench_commit() { # commit: mydocker.py commit of a container that wrote 20,000 files, 300 MB; then
  # rmi
  row=(env "MYDOCKER_ROOT=$PWD/moved/state" sh -c '"$@" commit c new:1 && "$@" rmi new:1' \
    sh "${mydocker[@]}")
}

bench_commit_podman() { # commit: podman commit (overlay) of such a one, then podman rmi
  moved_podman ours
  row=(sh -c '"$@" commit -q c new:1 && "$@" rmi new:1' sh "${podman[@]}")
}

bench_commit_umoci() { # commit: umoci repack of a bundle with these files
  need umoci
  row=(umoci repack --image moved/layout:new moved/bundle)
}

bench_export() { # export: mydocker.py export of the container, 40,000 files, 600 MB
  row=(env "MYDOCKER_ROOT=$PWD/moved/state" "${mydocker[@]}" export -o exported.tar c)
}

bench_export_podman() { # export: podman export (overlay) of it
  moved_podman ours
  row=("${podman[@]}" export -o exported.tar c)
}

bench_export_tar() { # export: tar -c of the bundle's root
  row=(tar -C moved/bundle/rootfs -cf exported.tar .)
}

prepare_images() { # images that differ in one thing: files, layers
  local number
  own_state
  rm -rf root big layout
  small_root root
  run 0 import root "layers:1"
  small_root big
  big_root big/many 30000 200
  run 0 import big files:1
  for number in 10 100; do
    run 0 import root "layers:$number"
    rm -rf layout
    run 0 save --format oci -o layers.tar "layers:$number"
    mkdir layout
    tar -C layout -xf layers.tar
    add_layers layout $((number - 1))
    run 0 load -i layout
  done
}

bench_image_1() { # images: run --rm of a small image, 1 layer
  row=(env "MYDOCKER_ROOT=$PWD/state" "${mydocker[@]}" run --rm layers:1 /bin/sh -c :)
}

bench_image_files() { # images: run --rm of an image of 30,000 files
  row=(env "MYDOCKER_ROOT=$PWD/state" "${mydocker[@]}" run --rm files:1 /bin/sh -c :)
}

bench_image_10() { # images: run --rm of an image of 10 layers
  row=(env "MYDOCKER_ROOT=$PWD/state" "${mydocker[@]}" run --rm layers:10 /bin/sh -c :)
}

bench_image_100() { # images: run --rm of an image of 100 layers
  row=(env "MYDOCKER_ROOT=$PWD/state" "${mydocker[@]}" run --rm layers:100 /bin/sh -c :)
}

podman_on_runc() { # podman with a storage of its own, over runc; arguments into $podman
  podman=(podman --root "$PWD/podman" --runroot "$PWD/podman-run" --storage-driver vfs
    --cgroup-manager cgroupfs --events-backend none --runtime runc)
}

bundle() { # a root file system of busybox in ./root, and an OCI bundle around it
  need busybox
  local name
  mkdir -p root/bin
  cp "$(command -v busybox)" root/bin/busybox
  for name in true sh sleep cat; do ln -sf busybox "root/bin/$name"; done
}

oci_config() { # oci_config RUNTIME: its own default, with another command and without a terminal
  [[ -e config.json ]] || "$1" spec
  "$PYTHON" -I - <<'PYTHON'
import json
config = json.load(open("config.json"))
config["process"].update(terminal=False, args=["/bin/true"])
config["process"].pop("rlimits", None)
config["root"].update(path="root")
json.dump(config, open("config.json", "w"))
PYTHON
}

prepare_start() {
  if command -v busybox; then bundle; fi
}

two_interpreters() {
  "$PYTHON" -I -S -c pass
  "$PYTHON" -I -S -c pass
}

bench_two_interpreters() { # start: two bare python3 -I -S -c pass
  row=(two_interpreters)
}

bench_run() { # start: mydocker.py run /bin/true
  row=("${mydocker[@]}" run /bin/true)
}

bench_run_tty() { # start: mydocker.py run -t /bin/true
  row=("${mydocker[@]}" run -t /bin/true)
}

bench_run_ephemeral() { # start: mydocker.py run --ephemeral /bin/true
  row=("${mydocker[@]}" run --ephemeral /bin/true)
}

compiled() { # compiled ARG...: a row of the installed copy
  "${mydocker[@]}" install "$PWD/top"
  row=("$PWD/top/bin/mydocker" "$@")
}

bench_run_compiled() { # start: the same by the installed copy
  compiled run /bin/true
}

bench_run_privileged() { # start: mydocker.py run --privileged /bin/true: without the confinement
  row=("${mydocker[@]}" run --privileged /bin/true)
}

bench_unshare() { # start: unshare(1) with the same namespaces
  need unshare
  row=(unshare --pid --fork --mount --mount-proc --uts --ipc --net /bin/true)
}

bench_bwrap() { # start: bwrap with the same namespaces
  need bwrap
  row=(bwrap --unshare-pid --unshare-uts --unshare-ipc --unshare-net --dev-bind / / --proc /proc
    /bin/true)
}

bench_runc() { # start: runc run, busybox bundle
  need runc busybox
  oci_config runc
  row=(runc --root "$PWD/runc" run mydocker-bench)
}

bench_crun() { # start: crun run, busybox bundle
  need crun busybox
  oci_config crun
  row=(crun --root "$PWD/crun" run mydocker-bench)
}

bench_podman() { # start: podman run --rootfs, busybox
  need podman busybox runc
  podman_on_runc
  row=("${podman[@]}" "${podman_run[@]}" --net none --rootfs "$PWD/root" /bin/true)
}

by_outsider() { # by_outsider NAME: in ./NAME, from here on ${user[@]} is an ordinary user; see
  # there
  mkdir "$1"
  chmod 755 . "$1"
  if [[ -d root ]]; then cp -a root "$1"; fi
  cd "$1"
  outsider 300000:65536
  mkdir -m 700 home/run
  chown -R 23456:23456 home
  if [[ -d root ]]; then chown -R 23456:23456 root; fi
  user=(env "HOME=$HOME" "XDG_DATA_HOME=$HOME" "XDG_RUNTIME_DIR=$HOME/run" "${user[@]}")
}

prepare_user() {
  if command -v busybox; then bundle; fi
}

bench_user_true() { # start as an ordinary user: /bin/true, what it takes to be that user here
  by_outsider true
  row=("${user[@]}" /bin/true)
}

bench_user_run() { # start as an ordinary user: mydocker.py run /bin/true
  by_outsider source
  row=("${user[@]}" "$PYTHON" "$PWD/home/program" run /bin/true)
}

bench_user_compiled() { # start as an ordinary user: the same by the installed copy
  by_outsider installed
  "$PYTHON" home/program install home/top
  row=("${user[@]}" "$PWD/home/top/bin/mydocker" run /bin/true)
}

bench_user_bwrap() { # start as an ordinary user: bwrap with the same namespaces
  need bwrap
  by_outsider bwrap
  row=("${user[@]}" bwrap --unshare-user --unshare-pid --unshare-uts --unshare-ipc --unshare-net
    --dev-bind / / --proc /proc /bin/true)
}

bench_user_podman() { # start as an ordinary user: podman run --rootfs, busybox
  need podman runc busybox
  by_outsider podman
  mkdir root/{dev,proc,sys,run} "$scratch/run" # podman wants a short name for the last
  chown 23456:23456 root/* "$scratch/run"
  row=("${user[@]}" podman --root "$PWD/home/store" --runroot "$scratch/run" --storage-driver vfs
    --cgroup-manager cgroupfs --runtime "$(command -v runc)" "${podman_run[@]}" --net none
    --rootfs "$PWD/root" /bin/true)
}

prepare_network() { # a host of our own, with a state and networks of its own
  if command -v busybox; then bundle; fi
  if command -v unshare nsenter ip; then
    make_lan
    bridged=("${host[@]}" env -u MYDOCKER_NETWORK "${mydocker[@]}" --root "$PWD/networked")
    "${bridged[@]}" run --net bridge /bin/true
  fi
}

bench_net_none() { # network: mydocker.py run --net none /bin/true
  need unshare nsenter ip
  row=("${bridged[@]}" run --net none /bin/true)
}

bench_net_bridge() { # network: the same with --net bridge
  need unshare nsenter ip
  row=("${bridged[@]}" run --net bridge /bin/true)
}

bench_net_port() { # network: the same with --net bridge -p 8080:80
  need unshare nsenter ip
  row=("${bridged[@]}" run --net bridge -p 8080:80 /bin/true)
}

bench_net_podman_none() { # network: podman run --net none --rootfs, busybox
  need podman busybox runc
  podman_on_runc
  row=("${host[@]}" "${podman[@]}" "${podman_run[@]}" --net none --rootfs "$PWD/root" /bin/true)
}

bench_net_podman_bridge() { # network: the same with --net bridge
  need podman busybox runc
  podman_on_runc
  row=("${host[@]}" "${podman[@]}" "${podman_run[@]}" --net bridge
    --rootfs "$PWD/root" /bin/true)
}

measure_throughput() { # TCP from a container to the host, beside a plain veth pair, in turn
  local n
  rm -f sink
  serve sink "${host[@]}" -- tcp:5000
  "${bridged[@]}" run -d --name c --net bridge /bin/sleep 1000
  for n in 1 2 3; do
    echo "TCP to the host, MB/s: by a plain veth pair $("${lan[@]}" "$PYTHON" -I net.py ask 60 tcp \
      10.77.0.1 5000 drink)," \
      "from a container $("${bridged[@]}" exec c "$PYTHON" -I "$PWD/net.py" ask 60 tcp 10.77.0.1 \
      5000 drink)" >&4
  done
  "${bridged[@]}" rm -f c
}

prepare_logged() {
  if command -v busybox; then bundle; fi
}

bench_log_run() { # lines logged: mydocker.py run -d, wait, rm; 20 million lines of yes, 40 MB
  row=(env "MYDOCKER_ROOT=$PWD/logs"
    bash -c '"$@" run -d --name y /bin/sh -c "yes | head -n 20000000"; "$@" wait y; "$@" rm y' bash
    "${mydocker[@]}")
}

bench_log_podman() { # lines logged: podman run -d with k8s-file, wait, rm; the same
  need podman busybox runc
  podman_on_runc
  row=(bash -c '"${@:3}" run -d --name y --net none --log-driver k8s-file \
      --log-opt max-size=10mb $2 --rootfs "$1" \
      /bin/sh -c "/bin/busybox yes | /bin/busybox head -n 20000000"
    "${@:3}" wait y; "${@:3}" rm y' bash "$PWD/root" "${podman_limits[*]}" "${podman[@]}")
}

prepare_record() { # state roots with 1, 100 and 1000 containers on record
  local count
  for count in 1 100 1000; do
    MYDOCKER_ROOT=$PWD/of$count "${mydocker[@]}" run -d --name first /bin/true
    MYDOCKER_ROOT=$PWD/of$count "${mydocker[@]}" wait first
    "$PYTHON" -I - "$PWD/of$count" "$count" <<'PYTHON'
import json, os, shutil, sys
os.chdir(sys.argv[1])
first = os.listdir("containers")[0]
for number in range(1, int(sys.argv[2])):
    name = os.urandom(32).hex()
    shutil.copytree("containers/" + first, "containers/" + name)
    record = json.load(open("containers/" + name + "/record.json"))
    record.update(id=name, name="c%d" % number)
    json.dump(record, open("containers/" + name + "/record.json", "w"))
    os.symlink(name, "names/" + record["name"])
PYTHON
  done
}

bench_ps_1() { # on record: ps -a of 1 container
  row=(env "MYDOCKER_ROOT=$PWD/of1" "${mydocker[@]}" ps -a)
}

bench_ps_100() { # on record: ps -a of 100
  row=(env "MYDOCKER_ROOT=$PWD/of100" "${mydocker[@]}" ps -a)
}

bench_ps_1000() { # on record: ps -a of 1000
  row=(env "MYDOCKER_ROOT=$PWD/of1000" "${mydocker[@]}" ps -a)
}

bench_run_1() { # on record: run -d and rm -f, beside 1
  row=(env "MYDOCKER_ROOT=$PWD/of1" bash -c '"$@" run -d --name x /bin/sleep 1000; "$@" rm -f x'
    bash "${mydocker[@]}")
}

bench_run_1000() { # on record: run -d and rm -f, beside 1000
  row=(env "MYDOCKER_ROOT=$PWD/of1000" bash -c '"$@" run -d --name x /bin/sleep 1000; "$@" rm -f x'
    bash "${mydocker[@]}")
}

limited_bundle() { # limited_bundle DIR RESOURCES: a bundle for runc with these linux.resources
  need runc busybox
  mkdir -p "$1"
  cd "$1" || exit
  bundle
  oci_config runc
  "$PYTHON" -I -c 'import json, sys
config = json.load(open("config.json"))
config["linux"]["resources"].update(json.loads(sys.argv[1]))
json.dump(config, open("config.json", "w"))' "$2"
  row=(runc --root "$PWD/runc" run --bundle "$PWD" "mydocker-bench-$1")
}

bench_limits_without() { # limits: mydocker.py run, installed copy, without
  compiled run /bin/true
}

bench_limits_with() { # limits: the same with -m 64m --cpus 1 --pids-limit 100
  compiled run -m 64m --cpus 1 --pids-limit 100 /bin/true
}

bench_limits_runc_without() { # limits: runc run, busybox bundle, without
  limited_bundle free '{}'
}

bench_limits_runc() { # limits: the same with the same
  limited_bundle limited '{"memory": {"limit": 67108864, "swap": 134217728},
    "cpu": {"quota": 100000, "period": 100000}, "pids": {"limit": 100}}'
}

prepare_calls() { # a program that makes a million system calls, in C where there is a compiler
  bundle
  mkdir -p root/proc
  printf '%s\n' '#include <unistd.h>' '#include <sys/syscall.h>' \
    'int main(void) { for (int i = 0; i < 1000000; i++) syscall(SYS_getppid); }' >calls.c
  gcc -O2 -static -o root/bin/calls calls.c
}

bench_calls_free() { # a million calls: mydocker.py run --privileged: no filter
  need gcc busybox
  row=("${mydocker[@]}" run --rm --privileged --rootfs "$PWD/root" /bin/calls)
}

bench_calls_filtered() { # a million calls: mydocker.py run, with its default filter
  need gcc busybox
  row=("${mydocker[@]}" run --rm --rootfs "$PWD/root" /bin/calls)
}

bench_calls_podman() { # a million calls: podman run (runc, libseccomp), with its default filter
  need gcc podman runc busybox
  podman_on_runc
  row=("${podman[@]}" "${podman_run[@]}" --net none --rootfs "$PWD/root" /bin/calls)
}

prepare_exec() { # a bundle and the launcher
  if command -v busybox; then bundle; fi
  "${mydocker[@]}" install "$PWD/top"
}

end_exec() { # nothing runs on
  "$PWD/top/bin/mydocker" --root "$PWD/oci" delete --force in
  ! command -v runc || runc --root "$PWD/runc" delete --force in
}

prepare_oci() { # the same, and daemons with an image of it
  prepare_exec
  tar -C root -cf root.tar .
  printf '#!/bin/sh\nexec %q --root %q "$@"\n' "$PWD/top/bin/mydocker" "$PWD/oci" >runtime
  chmod 755 runtime
  if command -v containerd ctr podman runc; then
    mkdir image
    (
      cd image
      peer_podman
      "${podman[@]}" import -q ../root.tar localhost/bb:1
      "${podman[@]}" save -q --format docker-archive -o ../bb.tar localhost/bb:1
    )
    start_containerd
    ctr -a "$PWD/c.sock" -n mdtest image import bb.tar
  fi
  if command -v dockerd runc; then
    start_docker
    "${docker[@]}" import root.tar bb:1
  fi
}

oci_cycle() { # oci_cycle RUNTIME...: a row that creates, starts and deletes
  need busybox
  oci_config "$PWD/top/bin/mydocker"
  row=(bash -c 'cd "$1"; shift
    "$@" create bench </dev/null >/dev/null && "$@" start bench && "$@" delete --force bench' \
    bash "$PWD" "$@")
}

bench_oci_mydocker() { # oci: create, start, delete of a busybox bundle: installed mydocker
  oci_cycle "$PWD/top/bin/mydocker" --root "$PWD/oci"
}

bench_oci_runc() { # oci: the same: runc
  need runc
  oci_cycle runc --root "$PWD/runc"
}

bench_oci_crun() { # oci: the same: crun
  need crun
  oci_cycle crun --root "$PWD/crun"
}

bench_oci_podman() { # oci: podman run --rm on installed mydocker
  need podman runc
  podman_on_runc
  row=("${podman[@]/#runc/$PWD/top/bin/mydocker}" "${podman_run[@]}" --net none
    --rootfs "$PWD/root" /bin/true)
}

bench_oci_podman_runc() { # oci: podman run --rm on runc
  need podman runc
  podman_on_runc
  row=("${podman[@]}" "${podman_run[@]}" --net none --rootfs "$PWD/root" /bin/true)
}

engine_row() { # engine_row ENGINE RUNTIME: run --rm of it by ctr or docker
  case $1 in
    ctr) need containerd ctr podman runc
      row=(ctr -a "$PWD/c.sock" -n mdtest run --runc-binary "$2" --rm localhost/bb:1 bench
        /bin/true) ;;
    docker) need dockerd runc
      row=("${docker[@]}" run --runtime "$2" --network none --rm bb:1 /bin/true) ;;
  esac
}

bench_oci_ctr() { # oci: ctr run --rm on installed mydocker
  engine_row ctr "$PWD/top/bin/mydocker"
}

bench_oci_ctr_runc() { # oci: ctr run --rm on runc
  engine_row ctr runc
}

bench_oci_docker() { # oci: docker run --rm on installed mydocker
  engine_row docker my
}

bench_oci_docker_runc() { # oci: docker run --rm on runc
  engine_row docker runc
}

exec_in() { # exec_in RUNTIME...: a row that executes /bin/true in a container that it has started
  need busybox
  oci_config "$PWD/top/bin/mydocker"
  sed -i 's|"/bin/true"|"/bin/sleep", "1000"|' config.json
  "$@" delete --force in
  "$@" create in </dev/null >/dev/null
  "$@" start in
  row=("$@" exec in /bin/true)
}

bench_exec_mydocker() { # exec: /bin/true in a running container: installed mydocker
  exec_in "$PWD/top/bin/mydocker" --root "$PWD/oci"
}

bench_exec_runc() { # exec: the same: runc
  need runc
  exec_in runc --root "$PWD/runc"
}

measure_create() { # what `create` takes at most, its children included, in MB
  local words
  for words in "$PWD/top/bin/mydocker --root $PWD/oci" "runc --root $PWD/runc" \
    "crun --root $PWD/crun"; do
    # shellcheck disable=SC2086 # words
    "$PYTHON" -I -c 'import resource, subprocess, sys
subprocess.run([*sys.argv[1:], "create", "peak"], check=True, stdin=0, stdout=2)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
print("%-52s %6.1f MB" % ("peak of create, " + sys.argv[1].rpartition("/")[2], peak))
subprocess.run([*sys.argv[1:], "delete", "--force", "peak"])' $words </dev/null >&4 || :
  done
}

prepare_terminal() {
  head -c 104857600 <(seq 100000000) >data
}

bench_terminal_script() { # 100 MB through a terminal: script -qc
  need script
  row=(drained script -qc 'stty raw; cat data' /dev/null)
}

bench_terminal_run() { # 100 MB through a terminal: mydocker.py run -t
  row=(drained "${mydocker[@]}" run -t /bin/sh -c 'stty raw; cat data')
}

drained() { # the program's whole output through a pipe
  set -o pipefail
  [[ $("$@" </dev/null | wc -c) -ge 104857600 ]]
}

measure_memory() { # what the waiting outside process holds, in MB
  export MYDOCKER_ROOT=$PWD/memory
  start run /bin/sh -c 'echo ready; exec sleep 1000'
  wait_for has out ready
  wait_for made_room "$pid"
  memory "outside process of run, waiting" "$pid"
  start run -it /bin/sh -c 'exec sleep 1000' </dev/null
  wait_for made_room "$pid"
  memory "outside process of run -it, waiting" "$pid"
  "${mydocker[@]}" run -d --name m /bin/sleep 1000
  wait_for made_room "$(monitor_of m)"
  memory "monitor of run -d" "$(monitor_of m)"
  "${mydocker[@]}" rm -f m
  if command -v podman runc conmon && [[ -e root/bin/sleep ]]; then
    podman_on_runc
    "${podman[@]}" run -d --conmon-pidfile conmon --name m --net none --log-driver k8s-file \
      "${podman_limits[@]}" --rootfs "$PWD/root" /bin/sleep 1000
    memory "podman's conmon" "$(<conmon)"
    "${podman[@]}" rm -f -t 0 m
  fi
  if [[ -e top/bin/mydocker ]]; then measure_create; fi
  if command -v containerd ctr containerd-shim-runc-v2 runc && [[ -e root/bin/sleep ]]; then
    measure_shim
  fi
}

memory() { # memory TITLE PID: one line; PSS counts what processes share in equal parts
  awk -v which="$1" '/^Pss:/ {pss = $2 / 1024}
    /^(Private_Clean|Private_Dirty):/ {own += $2 / 1024}
    /^Rss:/ {rss = $2 / 1024}
    END {printf "%-52s %6.1f MB proportional (PSS), %.1f MB resident, %.1f MB its own\n",
      which, pss, rss, own}' "/proc/$2/smaps_rollup" >&4
}

measure_shim() { # of a containerd of our own
  local address=$PWD/containerd.sock containerd pid
  printf '%s\n' 'version = 2' "root = \"$PWD/shim\"" "state = \"$PWD/shim-run\"" \
    'disabled_plugins = ["io.containerd.grpc.v1.cri"]' '[grpc]' "address = \"$address\"" \
    >containerd.toml
  containerd -c containerd.toml >containerd.log 2>&1 &
  containerd=$!
  wait_for ctr -a "$address" version
  ctr -a "$address" run -d --rootfs "$PWD/root" m /bin/sleep 1000
  for pid in /proc/[0-9]*; do
    [[ $(tr '\0' ' ' <"$pid/cmdline") != *containerd-shim*"-address $address"* ]] ||
      memory "containerd-shim-runc-v2" "${pid#/proc/}"
  done
  ctr -a "$address" task kill -s KILL m
  wait_for ctr -a "$address" container rm m
  kill "$containerd"
}

measure() { # measure AREA NAME...: the table of one area
  local area=$1 name round begin end i base='' median times=()
  local names=() rows=() row
  shift
  printf '\n%-52s %9s %9s %9s  %s\n' "$area" median fastest slowest ratio
  for name; do # once before it counts: is it there, does it work
    row=()
    rm -f "$scratch/why"
    ( set -e; "$name"; printf '%q ' "${row[@]}" >"$scratch/row"; "${row[@]}" ) >"$scratch/log" 2>&1
    case $? in
      0) names+=("$name") rows+=("$(<"$scratch/row")") ;;
      77) printf '%-52s %s\n' "$(title "$name")" "$(<"$scratch/why")" ;;
      *) printf '%-52s does not work here: %s\n' "$(title "$name")" "$(tail -n 1 "$scratch/log")" ;;
    esac
  done
  for ((round = 0; round < ROUNDS; round++)); do
    for i in "${!names[@]}"; do
      eval "row=(${rows[i]})"
      begin=${EPOCHREALTIME/[.,]/}
      "${row[@]}" >"$scratch/log" 2>&1
      end=${EPOCHREALTIME/[.,]/}
      times[i]+="$((end - begin)) "
    done
  done
  for i in "${!names[@]}"; do
    # shellcheck disable=SC2086 # a list
    mapfile -t sorted < <(printf '%s\n' ${times[i]} | sort -n)
    median=${sorted[${#sorted[@]} / 2]}
    : "${base:=$median}"
    printf '%-52s %9s %9s %9s  %s\n' "$(title "${names[i]}")" "$(ms "$median")" \
      "$(ms "${sorted[0]}")" "$(ms "${sorted[-1]}")" \
      "$((median * 100 / base / 100)).$(printf %02d $((median * 100 / base % 100)))"
  done
}

ms() { # microseconds as milliseconds
  printf '%d.%d' $(($1 / 1000)) $(($1 % 1000 / 100))
}

bench() { # bench [PATTERN]
  local area
  : "${ROUNDS:=21}"
  program=("${mydocker[@]}")
  printf 'milliseconds, %s rounds in turn; %s, %s, Linux %s, %s processors\n' "$ROUNDS" \
    "$("$PYTHON" -V)" \
    mydocker.py "$(uname -r)" "$(nproc)"
  mkdir "$scratch/bench"
  cd "$scratch/bench" || exit
  while IFS= read -r area; do
    mapfile -t rows < <(functions bench | while read -r name; do [[ $(title "$name" area) != \
      "$area" ]] || echo "$name"; done)
    if [[ $(type -t "prepare_${area##* }") ]]; then
      "prepare_${area##* }" >"$scratch/log" 2>&1 </dev/null
    fi
    measure "$area" "${rows[@]}" </dev/null # else one of the programs eats the other areas' names
    if [[ $(type -t "end_${area##* }") ]]; then
      "end_${area##* }" >"$scratch/log" 2>&1 </dev/null
    fi
  done < <(functions bench | while read -r name; do title "$name" area; done | uniq |
    grep -E -e "$1")
  echo
  ( trap 'kill -KILL $(jobs -p); wait' EXIT; measure_memory ) 4>&1 >"$scratch/log" 2>&1
  if [[ ${bridged-} ]]; then
    ( trap 'kill -KILL $(jobs -p); wait' EXIT; measure_throughput ) 4>&1 >"$scratch/log" 2>&1
  fi
}

# ── Runner ───────────────────────────────────────────────────────────────────

functions() { # functions KIND: the names of this file's KIND_* functions, in order
  sed -n "s/^\\($1_[a-z0-9_]*\\)() { # .*: .*/\\1/p" "$self"
}

declare -A titles # of all functions, from one reading: a process for each costs minutes in a VM
read_titles() { # NAME and the words behind its first line, and in the comment lines that follow
  local name words
  while read -r name words; do titles[$name]=$words; done < <(
    sed -n '/^\([a-z0-9_]*\)() { # /{s//\1 /;:more;N;s/\n  # / /;tmore;s/\n.*//;p;}' "$self")
}

title() { # title NAME [area]: its title; of bench rows the half asked for
  local words=${titles[$1]}
  case $1,${2-} in
    *,area) echo "${words%%: *}" ;;
    bench_*) echo "${words#*: }" ;;
    *) echo "$words" ;;
  esac
}

finish() { # the end of a test: nothing of it runs on
  local - running=(state/running/*)
  set +x
  # shellcheck disable=SC2046 # a list
  { kill -KILL $(jobs -p) || :; } 2>/dev/null
  if [[ -e ${running[0]} ]]; then
    MYDOCKER_ROOT=$PWD/state timeout "$patience" "${mydocker[@]}" rm -f "${running[@]##*/}" || :
  fi
}

run_test() { # run_test NAME: as number $n
  local name=$1 status begin=$EPOCHREALTIME words
  words=${titles[$name]}
  mkdir "$scratch/$n"
  rm -f "$scratch/why"
  ( # not behind an if or ||, where -e does nothing
    cd "$scratch/$n" || exit
    trap 'finish' EXIT
    set -ex
    "$name"
  ) >"$scratch/log" 2>&1 </dev/null
  status=$?
  if ((status == 0)); then
    passed=$((passed + 1))
    echo "ok $n - $words"
  elif ((status == 77)) && [[ -e $scratch/why && ! ${STRICT-} ]]; then
    skipped=$((skipped + 1))
    echo "ok $n - $words # SKIP $(<"$scratch/why")"
  else
    failed=$((failed + 1))
    echo "not ok $n - $words"
  fi
  if [[ $verbose || ($status != 0 && ! (-e $scratch/why && ! ${STRICT-})) ]]; then
    echo "# $name, ${SECONDS} s, ended with $status after $begin - $EPOCHREALTIME"
    tail -n "$((verbose ? 1000 : 60))" "$scratch/log" |
      sed '/^+* \(local -.*\|set +x\)$/d; s/^/#   /'
  fi
}

main() {
  local n=0 turn=0 passed=0 failed=0 skipped=0 verbose='' pattern=. name names
  if [[ ${1-} == -v ]]; then verbose=1; shift; fi
  read_titles
  case ${1-} in
    -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$self"; return ;;
    bench) bench "${2-.}"; return ;;
    ?*) pattern=$1 ;;
  esac
  mapfile -t names < <(functions test)
  if [[ $pattern == smoke ]]; then
    names=("${names[@]:0:10}" "${smoke[@]}" "${names[-1]}") pattern=.
  fi
  [[ $pattern != security ]] || pattern='security: |CVE-'
  survey "$scratch/at_start"
  if ! "${mydocker[@]}" info root pidns mntns utsns ipcns netns >"$scratch/log" 2>&1; then
    sed 's/^/# /' "$scratch/log"
    echo 'Bail out! this needs root and these namespaces'
    return 1
  fi
  if [[ ${COMPILED-} ]]; then
    "${mydocker[@]}" install "$scratch/installed" >"$scratch/log"
    mydocker=("$PYTHON" "$scratch/installed/bin/mydocker")
  fi
  program=("${mydocker[@]}")
  for name in "${names[@]}"; do
    [[ "$name ${titles[$name]}" =~ $pattern ]] || continue
    [[ ! ${SHARE-} || $name == "${names[-1]}" ]] || ((turn++ % ${SHARE#*/} == ${SHARE%/*})) ||
      continue
    n=$((n + 1))
    run_test "$name"
  done
  echo "1..$n"
  echo "$passed passed, $failed failed, $skipped skipped"
  ((failed == 0 && passed > 0))
}

sweep() { # the end: what killed monitors left, their cgroups above all, goes with the next command
  local mark patience=3 jobs
  mapfile -t jobs < <(jobs -p) # what the bench started, and left mounted
  if ((${#jobs[@]})); then
    kill "${jobs[@]}"
    ( wait_for gone "${jobs[@]}" ) || kill -KILL "${jobs[@]}"
    wait
  fi 2>"$scratch/log"
  sed -n "s|^\([^ ]* \)\{4\}\($scratch/[^ ]*\) .*|\2|p" /proc/self/mountinfo | sort -r |
    while IFS= read -r mark; do umount -l "$mark"; done
  for mark in "$scratch"{,/bench,/[0-9]*}/{state,memory}/running/*; do
    [[ ! -e $mark ]] || timeout "$patience" "${mydocker[@]}" --root "${mark%/running/*}" ps \
      >"$scratch/log" 2>&1 || :
  done
  rm -rf "$scratch"
}

unset MYDOCKER_LOG MYDOCKER_EXPLAIN MYDOCKER_MIRRORS DOCKER_CONFIG SSL_CERT_FILE
unset http_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY no_proxy
# nobody listens there: whatever a test names, it reaches nothing but this host
export https_proxy=http://127.0.0.1:1
export MYDOCKER_NETWORK=none # only the tests of networks make any, on a host of their own
umask 022
scratch=$(mktemp -d "${TMPDIR:-/tmp}/mydocker-test.XXXXXX") || exit
trap sweep EXIT
chmod 755 "$scratch" # for tests as another user
export unique=${scratch##*.} # of this run of the tests: others may go on beside it, each as PID 1
export MYDOCKER_ROOT=$scratch/state
main "$@"
