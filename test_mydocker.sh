#!/usr/bin/env bash
# Tests and measurements of mydocker.py. Run as root on any Linux box or in a VM:
#
#   sudo bash test_mydocker.sh [-v] [PATTERN]   all tests, or those whose name or title matches
#   sudo bash test_mydocker.sh [-v] smoke       the first ten, and that nothing is left behind
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
#
# A new test is a function `test_x() { # area: what is true` at the end of its chapter; it is
# found by its first line, runs in a directory of its own under `set -ex`, and fails by the first
# command that does. A new measurement is a `bench_x() { # area: program` likewise.
set -u

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
self=$here/${BASH_SOURCE[0]##*/}
self=$here/${BASH_SOURCE[0]##*/}
[[ ${PYTHON-} || ! -x /usr/bin/python3 ]] || PYTHON=/usr/bin/python3
: "${PYTHON:=$(command -v python3)}"
mydocker=("$PYTHON" "$here/mydocker.py")
patience=${PATIENCE:-60} # seconds that any single event may take; only a failure waits so long
smoke=10    # so many tests from the first on are the smoke set

# ── Helpers ────────────────────────────────────────────────────────────────

fail() { # fail WHY
  printf 'FAILED: %s\n' "$*" >&2
  exit 1
}

skip() { # skip WHY
  printf '%s\n' "$*" >"$scratch/why"
  exit 77
}

need() { # need NAME...: go on only with these; a probe of `mydocker info`, or a program
  local name got
  for name; do
    got=0
    case $name in
      root | *ns | cgroup-v[12] | overlay | seccomp | openat2 | pidfd | nf_tables)
        "${mydocker[@]}" info "$name" >"$scratch/stdout" || got=$? ;;
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
    ((SECONDS < end)) || fail "waited in vain for: $*"
    sleep 0.02
  done
}

has() { # has FILE REGEX
  grep -qE -e "$2" "$1"
}

gone() { # gone PID...: none of these is a process, unless a dead one
  local pid state
  for pid; do
    if state=$(sed 's/.*) //' "/proc/$pid/stat" 2>/dev/null) && [[ $state != [ZX]* ]]; then return 1; fi
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


resize(24, 80)
modes = termios.tcgetattr(slave)
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
            changed = termios.tcgetattr(slave) != modes
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

# ── The first ten: the smoke set ───────────────────────────────────────────

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
  tty 3 '[#$] $' $'echo "pid <$$>"\r' 'pid <1>\n[^\n]*[#$] $' $'echo /proc/[0-9]*; ps -e; exit 3\r' -- \
    "${mydocker[@]}" run -it /bin/sh
  like "$out" '^\{"level":"info","msg":"init come on","time":"[^"]+"\}'
  like "$out" $'\n/proc/1\n'
  if [[ $out =~ 'PID TTY' ]]; then like "$out" $'\n *1 pts/[0-9]+ +[0-9:]+ sh\n *[0-9]+ pts/[0-9]+ +[0-9:]+ ps$'; fi
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
  local args=('' ' ' 'two words' "'" '"' "\\" $'a\nb' $'\xff\xfe\x80' 中文 -it --rm -- --help -e x=y "\$HOME" '*' '')
  run 0 run /bin/sh -c "printf '%s\\0' \"\$@\"" sh "${args[@]}"
  printf '%s\0' "${args[@]}" | cmp - "$scratch/stdout"
  run 0 run -- /bin/echo -n -- -x
  is "$out" '-- -x'
  run 0 run -e A=1 --rm -- /bin/sh -c "echo \$A \$1" sh --hostname
  is "$out" '1 --hostname'
}

test_namespaces() { # run: PID, mount, UTS, IPC, network and cgroup namespaces are new, others the host's
  local kind
  run 0 run /bin/sh -c "cd /proc/self/ns; for n in *; do echo \"\$n \$(readlink \$n)\"; done"
  for kind in pid mnt uts ipc net cgroup; do
    [[ $kind != cgroup || -e /proc/self/ns/cgroup ]] || continue
    like "$out" "(^|"$'\n'")$kind $kind:\[[0-9]+\]"
    unlike "$out" "$kind $(readlink "/proc/self/ns/$kind" | sed 's/[][]/\\&/g')"
  done
  like "$out" "user $(readlink /proc/self/ns/user | sed 's/[][]/\\&/g')"
}

test_mount_table() { # run: the host's mount table is the same before, while a container runs, and after
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
  run 0 run /bin/sh -c "read -r pid rest </proc/self/stat; echo \$\$ \$pid; cat /proc/1/comm; echo /proc/[0-9]*"
  is "$out" $'1 1\nsh\n/proc/1'
  run 0 run /bin/cat /proc/self/mountinfo
  like "$out" ' /proc rw,nosuid,nodev,noexec[^ ]* [^-]*- proc '
}

test_signals() { # run: signals to the outside process reach the container's PID 1
  local signals=(TERM HUP QUIT USR1 USR2 WINCH ALRM IO VTALRM RTMIN INT) signal
  start run /bin/bash -c "for s in ${signals[*]}; do trap \"echo got \$s\" \$s; done; trap 'echo got INT; exit 3' INT
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

test_cannot_start() { # run: 127 for a program that is not there, 126 for one that can't be run, 125 for the rest
  fails 127 '^mydocker: .*/no/such/program: no such file' run /no/such/program
  fails 126 '^mydocker: .*/etc: ' run /etc
  fails 125 '^mydocker: .*--nope' run --nope /bin/true
  fails 125 '^mydocker: run: no .*command' run
  fails 125 'init' init /bin/true
}

# ── 3. System calls ────────────────────────────────────────────────────────

test_explain() { # calls: --explain prints the calls of both processes in C's notation, with reasons
  local call line
  run 5 run --explain /bin/sh -c 'echo hello; exit 5'
  is "$out" hello
  for call in 'run +unshare\(CLONE_NEWPID\)' 'run +fork\(\)' 'init +unshare\([A-Z_|]*CLONE_NEWNS' \
    'init +execve?p?\(.*"init"' 'init +mount\("proc", "/proc", "proc", MS_NOSUID\|MS_NODEV\|MS_NOEXEC, NULL\)' \
    'init +mount\([^)]*MS_REC\|MS_(PRIVATE|SLAVE)' 'init +execve?p?\("/bin/sh", \{"/bin/sh", "-c", '; do
    like $'\n'"$err" $'\n'"$call"
  done
  while IFS= read -r line; do # who, the call, at least three words on why
    like "$line" '^(run|init) +[a-z0-9_]+\(.*\)  +[^ ]+ [^ ]+ [^ ]+'
  done <<<"$err"
  run 0 run -it --log-level warning --explain --ephemeral --hostname box /bin/true
  for call in overlay sethostname 'pivot_root\("\.", "\."\)' setsid; do like "$err" "init +[^ ]*.*$call"; done
  run 0 run /bin/true
  is "$err" ''
}

test_explain_is_true() { # calls: --explain tells what strace sees
  need strace
  local call
  strace -f -qq -o trace -e trace=unshare,mount,umount2,pivot_root,sethostname,setsid \
    "${mydocker[@]}" run --explain --hostname box --read-only -t /bin/true >out 2>err
  cat trace err >&2
  for call in unshare mount umount2 pivot_root sethostname setsid; do
    is "$call $(grep -cE "^[0-9]+ +$call\\(" trace)" "$call $(grep -cE "^(run|init) +$call\\(" err)"
  done
}

test_reexec() { # calls: run executes this same file again, as init, inside the new namespaces
  need strace
  strace -f -qq -v -s 200 -o trace -e trace=execve,unshare "${mydocker[@]}" run /bin/true
  cat trace >&2
  # the file itself, then itself as init, then the command
  "$PYTHON" -I - trace <<'PYTHON'
import re, sys
calls = re.findall(r"^(\d+) +(?:execve\(\"(.*?)\", \[(.*?)\], .*|unshare\((.*?)\)) += 0", open(sys.argv[1]).read(), re.M)
outside = calls[0][0]
inside = next(pid for pid, *_ in calls if pid != outside)
assert all(pid in (outside, inside) for pid, *_ in calls), calls
mine = [path or flags for pid, path, _, flags in calls if pid == inside]
again = next(args for pid, path, args, _ in calls if pid == inside and path)
assert '"init"' in again and "python" in again, again
assert mine[-1] == "/bin/true" and "CLONE_NEWNS" in mine[0], mine
assert ("CLONE_NEWPID",) == tuple(flags for pid, _, _, flags in calls if pid == outside and flags), calls
PYTHON
}

test_the_owners_way() { # calls: the core is os.unshare, os.fork, os.execvp, a ctypes mount and argv[1]
  local word
  for word in 'os\.unshare\(' 'os\.fork\(' 'os\.execvp\(' 'ctypes' '(^|[^_])mount\(' 'sys\.argv\[1'; do
    has "$here/mydocker.py" "$word"
  done
}

# ── 4. Failing ─────────────────────────────────────────────────────────────

test_usage_errors() { # fail: a wrong command line is one line that names what is wrong
  fails 125 'hint: .*--help'
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
  fails 125 . run ''
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

test_not_executable() { # fail: directory, file without x, bad interpreter line, no program: 126 and the name
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

test_env_file_errors() { # fail: an env file that can't be read is named
  mkdir dir
  printf 'A=1\nb c=2\n' >bad
  fails 125 '--env-file, on missing: no such file' run --env-file missing /bin/true
  fails 125 '--env-file, on dir: is a directory' run --env-file dir /bin/true
  fails 125 'bad' run --env-file bad /bin/true
}

test_user_errors() { # fail: a user or group that isn't known, or makes no sense, is named
  local user
  fails 125 'nosuchuser' run -u nosuchuser /bin/true
  fails 125 'nosuchgroup' run -u root:nosuchgroup /bin/true
  for user in '' : 0: :0 -1 1x 4294967295 4294967296 2147483648 ' 0' 0:-1 0:4294967296 99999999999999999999; do
    fails 125 'user' run "--user=$user" /bin/true
  done
}

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

test_not_root() { # fail: another user than root is told so
  need setpriv
  local got=0
  # the interpreter and the file may lie where only root can look
  setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=+dac_read_search --ambient-caps=+dac_read_search \
    "${mydocker[@]}" run /bin/true >"$scratch/stdout" 2>"$scratch/stderr" || got=$?
  read_output
  is "$got" 125
  one_line 'root'
  like "$err" 'hint: .*sudo'
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

test_output_closed() { # fail: output that nobody reads any more ends the command, without a traceback
  set -o pipefail
  local status=0 command
  "${mydocker[@]}" run --init /usr/bin/seq 1000000 2>err | head -n 1 >out || status=$?
  is "$status $(<out) $(<err)" '141 1 '
  status=0 # PID 1 doesn't die of SIGPIPE, it sees the error
  "${mydocker[@]}" run /usr/bin/seq 1000000 2>err | head -n 1 >out || status=$?
  is "$status $(<out) $(<err)" '1 1 /usr/bin/seq: write error: Broken pipe'
  for command in 'run -t /usr/bin/seq 1000000' info 'run --help' --help --version; do
    # shellcheck disable=SC2086 # several words
    "${mydocker[@]}" $command 2>err | head -c 0 || status=$?
    unlike "$(<err)" 'Traceback|Error'
    is "$(grep -vc '^mydocker: .*broken pipe' err)" 0
  done
}

test_disk_full() { # fail: a full disk is one line, wherever it is
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
}

test_state_root_full() { # fail: a full disk under the state root means that the command never starts
  need unshare mount
  local got
  mkdir full
  unshare -m bash -ec "mount -t tmpfs -o size=64k,nr_inodes=10 tmpfs full; shift 0
    head -c 1000000 /dev/zero >full/fill || :; for i in {1..20}; do mkdir full/\$i || break; done
    MYDOCKER_ROOT=\$PWD/full/state \"\$@\" >\"$scratch/stdout\" 2>\"$scratch/stderr\"" \
    bash "${mydocker[@]}" run /bin/touch started || got=$?
  read_output
  is "$got" 125
  one_line 'full/state.*: no space left'
  [[ ! -e started ]]
}

test_state_root_bad() { # fail: a state root that can't be made is named
  touch file
  MYDOCKER_ROOT=$PWD/file fails 125 'file.*: ' run /bin/true
  MYDOCKER_ROOT=/proc/nosuch fails 125 '/proc/nosuch.*: ' run /bin/true
}

test_failed_step() { # fail: when a step inside fails the command never starts
  need unshare mount
  local got=0
  unshare -Urm true || skip 'no user namespace in here'
  # where a proc can't be mounted, as a part of the visible one is hidden, or a devpts with the group 5
  unshare -Urm --propagation private bash -ec "mount -t tmpfs none /proc/sys; exec \"\$@\"" bash \
    "${mydocker[@]}" run /bin/touch started >"$scratch/stdout" 2>"$scratch/stderr" || got=$?
  read_output
  is "$got" 125
  one_line 'mount'
  [[ ! -e started ]]
}

# ── 9. Root file system ────────────────────────────────────────────────────

test_shared_root() { # root: nothing reaches a host whose mounts are shared, as systemd makes them
  need unshare mount
  unshare -m --propagation unchanged bash -exc "mount --make-rshared /; cp /proc/self/mountinfo before
    \"\$@\" run /bin/true
    \"\$@\" run -it --read-only --ephemeral --hostname x /bin/true
    \"\$@\" run /bin/sh -c 'mount -t tmpfs none /mnt'
    cmp before /proc/self/mountinfo; [[ -e /proc/\$\$/stat ]]" bash "${mydocker[@]}"
}

test_twenty_runs() { # root: twenty runs in a row leave nothing
  local i
  export MYDOCKER_ROOT=$PWD/state # a fresh one
  cp /proc/self/mountinfo before
  for ((i = 0; i < 20; i++)); do run 0 run /bin/true; done
  cmp before /proc/self/mountinfo
  is "$(find state -mindepth 2)" ''
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

test_read_only() { # root: --read-only lets nothing be written
  local file=$here/.written-by-a-test
  run 0 run --read-only /bin/sh -c "for f in '$file' '$PWD/x' /etc/x /x /dev/x; do (echo >\$f) 2>/dev/null && echo \$f; done; :"
  is "$out" ''
  [[ ! -e $file && ! -e x && ! -e /etc/x ]]
  run 1 run --read-only /bin/touch "$PWD/x"
  like "$err" 'Read-only file system'
  touch x
  run 0 run --read-only /bin/sh -c 'echo hello >/dev/null; cat /proc/version'
}

test_ephemeral() { # root: --ephemeral lets anything be written, and the host keeps every byte
  need overlay
  touch keep /dev/shm/mydocker-test
  trap 'rm -f /dev/shm/mydocker-test' RETURN
  listing /etc "$PWD" >../before
  run 0 run --ephemeral /bin/sh -c "set -e
    echo new >/etc/mydocker-test; cat /etc/mydocker-test; echo >>/etc/passwd; rm '$PWD/keep'; echo >'$PWD/new'
    mkdir /mydocker-test; rm -f /dev/shm/mydocker-test; chmod 777 /etc; chown 1:1 /etc/passwd"
  is "$out" new
  listing /etc "$PWD" | cmp - ../before # only if it could be trusted so far
  [[ -e /dev/shm/mydocker-test && ! -e /mydocker-test ]]
  run 0 run --ephemeral /bin/sh -c "rm -rf /etc; ls /etc 2>&1; echo still; ls /mydocker-test 2>&1; :"
  like "$out" $'No such file.*\nstill\n.*No such file'
  listing /etc "$PWD" | cmp - ../before
  rm /dev/shm/mydocker-test
  run 0 run --ephemeral --read-only /bin/sh -c "touch /x 2>/dev/null || echo no"
  is "$out" no
}

test_ephemeral_mounts() { # root: --ephemeral protects the other mounted file systems too
  need overlay unshare mount
  mkdir sub
  unshare -m --propagation private bash -exc "mount -t tmpfs -o mode=755 tmpfs sub; echo precious >sub/file; mkdir sub/dir
    \"\$@\" run --ephemeral /bin/sh -c 'rm -rf sub/file sub/dir; echo >sub/new; rm -rf /run/* /home/* /boot/*; :'
    [[ \$(cat sub/file) == precious && -d sub/dir && ! -e sub/new ]]" bash "${mydocker[@]}"
}

test_ephemeral_devices() { # root: --ephemeral has devices, a /proc and a /sys of its own
  need overlay
  run 0 run --ephemeral /bin/sh -c "set -e; echo x >/dev/null; head -c 3 /dev/zero | wc -c; head -c 3 /dev/urandom | wc -c
    rm -f /dev/null; ls /sys >/dev/shm/x; echo /proc/[0-9]*"
  is "$out" $'3\n3\n/proc/1'
  [[ -c /dev/null ]]
  run 0 run --ephemeral /usr/bin/env -i "$PYTHON" -I -c 'import os; os.openpty(); print(os.getpid())'
  is "$out" 1
}

test_hostname() { # root: the host name is the host's, or what --hostname says, in the container only
  local before
  before=$(</proc/sys/kernel/hostname)
  run 0 run /bin/sh -c "cat /proc/sys/kernel/hostname; echo \$HOSTNAME"
  is "$out" "$before"$'\n'"$before"
  run 0 run --hostname box7 /bin/sh -c "cat /proc/sys/kernel/hostname; echo \$HOSTNAME"
  is "$out" $'box7\nbox7'
  is "$(</proc/sys/kernel/hostname)" "$before"
  fails 125 'hostname' run --hostname "$(printf '%065d' 0)" /bin/true
}

test_copied_file() { # root: the file works wherever it is copied to, under any name
  mkdir 'a dir' && cp "$here/mydocker.py" 'a dir/my docker' && chmod 400 'a dir/my docker' && ln -s 'a dir/my docker' link
  cp "$here/mydocker.py" $'\xff.py'
  is "$("$PYTHON" 'a dir/my docker' run /bin/echo 1)" 1
  is "$("$PYTHON" link run -it --log-level error /bin/echo 2)" $'2\r'
  is "$("$PYTHON" $'\xff.py' run /bin/echo 3)" 3
  is "$(cd / && "$PYTHON" "$here/mydocker.py" run /bin/pwd)" /
  is "$("$PYTHON" "$here/mydocker.py" run /bin/sh -c 'ls -a')" $'.\n..\na dir\nlink\n'$'\xff.py'
}

# ── 11. Privileges ─────────────────────────────────────────────────────────

test_environment() { # user: the environment is clean but for what the options say
  printf '# comment\n\nF1=one\n  F2=two words "quoted"\nSECRET\nNOSUCH\nA=file\n' >vars
  export SECRET=s3cret LD_LIBRARY_PATH=/nowhere OTHER=other
  run 0 run /usr/bin/env
  is "$(sort <<<"$out")" "HOME=/root"$'\n'"HOSTNAME=$(</proc/sys/kernel/hostname)"$'\n'"$(grep ^PATH= "$scratch/stdout")"
  like "$out" '(^|'$'\n'')PATH=/[^'$'\n'']*/bin'
  run 0 run -e A=1 -e 'B=x  "y"' -e C= -e OTHER -e NOSUCH -e D==a=b --env-file vars /usr/bin/env -0
  tr '\0' '\n' <"$scratch/stdout" | grep -vE '^(PATH|HOME|HOSTNAME)=' | LC_ALL=C sort >got
  printf '%s\n' A=1 'B=x  "y"' C= D==a=b F1=one 'F2=two words "quoted"' OTHER=other SECRET=s3cret | cmp - got
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

test_user() { # user: -u takes names and numbers, group and all, from the container's files
  run 0 run /bin/sh -c 'id -u; id -g; id -G'
  is "$out" $'0\n0\n0'
  run 0 run -u 12345 /bin/sh -c "id -u; id -g; id -G; echo \$HOME"
  is "$out" $'12345\n0\n0\n/'
  run 0 run --user=12345:23456 /bin/sh -c 'id -u; id -g; id -G'
  is "$out" $'12345\n23456\n23456'
  run 0 run -u nobody /bin/sh -c "id -un; echo \$HOME; grep -E 'Cap(Eff|Prm|Amb|Inh)' /proc/self/status"
  like "$out" "^nobody"$'\n'"$(grep ^nobody: /etc/passwd | cut -d: -f6)"$'\n'
  unlike "$out" $'Cap(Eff|Prm|Amb|Inh):\t0*[1-9a-f]'
  run 0 run -u nobody:daemon /usr/bin/id -gn
  is "$out" daemon
  run 0 run -u 0:daemon /usr/bin/id -gn
  is "$out" daemon
  run 0 run -it --log-level error -u nobody /bin/sh -c 'id -un; echo >/dev/tty'
  like "$out" ^nobody
}

test_supplementary_groups() { # user: a named user's supplementary groups are those of the container's files
  need unshare mount
  printf 'root:x:0:0::/root:/bin/sh\njane:x:4001:4002:Jane:/home/jane:/bin/sh\nbad line\nshort:x:1\n' >passwd
  printf 'root:x:0:\njane:x:4002:\nred:x:4003:joe,jane\nblue:x:4004:jane\ngreen:x:4005:janet\n\nbad:x:many:jane\n' >group
  unshare -m --propagation private bash -ec "mount --bind passwd /etc/passwd; mount --bind group /etc/group
    for user in jane 4001 jane:green 4001:4009; do
      \"\$@\" run -u \$user /bin/sh -c 'echo \$(id -u) \$(id -g) \$(id -G) \$HOME'
    done" bash "${mydocker[@]}" >out
  is "$(<out)" '4001 4002 4002 4003 4004 /home/jane
4001 4002 4002 4003 4004 /home/jane
4001 4005 4005 /home/jane
4001 4009 4009 /home/jane'
}

test_descriptors() { # user: no open file of the caller's or of mydocker's reaches the container
  local fd
  run 0 run /bin/sh -c 'echo /proc/self/fd/*' 8</dev/null 9</etc 20<>file
  is "$out" '/proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 /proc/self/fd/3'
  run 0 run -it --log-level error /bin/sh -c 'echo /proc/self/fd/*' 9</etc
  is "$out" $'/proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 /proc/self/fd/3\r'
  run 0 run --init /bin/sh -c 'echo /proc/1/fd/* /proc/self/fd/*; ls -l /proc/1/fd' 9</etc
  unlike "$out" '/etc|socket:|memfd'
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

# ── 12. Network ────────────────────────────────────────────────────────────

test_loopback() { # net: the container has its own loopback, which is up
  run 0 run "$PYTHON" -I -c '
import socket
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname(), 5)
server.accept()[0].sendall(b"hello")
print(client.recv(9).decode(), [name for _, name in socket.if_nameindex() if name.startswith(("e", "w", "v", "docker"))])'
  is "$out" 'hello []'
}

# ── 13. Terminal and logs ──────────────────────────────────────────────────

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
  "$PYTHON" -I -c 'import json, sys; [json.loads(line) for line in sys.stdin.buffer.read().decode().splitlines()]' <"$scratch/stderr"
}

test_descriptors_are_the_callers() { # tty: without -t the command has the caller's own descriptors, nothing is copied
  local what
  "${mydocker[@]}" run /usr/bin/stat -L -c %d:%i /proc/self/fd/1 >file
  is "$(<file)" "$(stat -c %d:%i file)"
  "${mydocker[@]}" run /bin/sh -c 'readlink /proc/self/fd/2 >&2' 2>>err
  is "$(<err)" "$PWD/err"
  exec 5< <(echo one; echo two)
  what=$(readlink /proc/self/fd/5)
  is "$("${mydocker[@]}" run -i /usr/bin/readlink /proc/self/fd/0 <&5)" "$what"
  is "$("${mydocker[@]}" run -i /bin/cat <&5)" $'one\ntwo'
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
  run 0 run -t /bin/sh -c 'test -t 0; echo $?; test -t 1; echo $?; test -t 2; echo $?; echo oops >&2; tty'
  like "${out//$'\r'/}" $'^0\n0\n0\noops\n/dev/(pts/[0-9]+|console)$'
  is "$err" ''
  run 7 run -t /bin/sh -c 'exec </dev/tty; echo hello; exit 7'
  is "$out" $'hello\r'
}

test_tty_without_input() { # tty: -t without -i leaves the caller's input unread and its Ctrl-C working
  tty 0 '^ready$' $'hello\r' hello '@do touch typed' -- bash -c "
    \"\$@\" run -t /bin/sh -c 'echo ready; until [ -e typed ]; do sleep 0.05; done'; read -r x; [[ \$x == hello ]]" \
    bash "${mydocker[@]}"
  tty 3 '^ready$' $'\x03' -- "${mydocker[@]}" run -t /bin/sh -c \
    'trap "echo got; exit 3" INT; echo ready; while :; do sleep 0.05; done'
}

test_input_is_a_pipe() { # tty: -it relays an input that isn't a terminal, and its end
  local got=0
  printf 'echo h""i\nexit 5\n' | "${mydocker[@]}" run -it /bin/sh >out 2>err || got=$?
  is "$got" 5
  has out 'hi'
  printf 'whole line\nhalf a line' | timeout "$patience" "${mydocker[@]}" run -it /bin/cat >out 2>err
  like "$(<out)" 'whole line.*half a line.*whole line.*half a line|whole line.*whole line.*half a linehalf a line'
  timeout "$patience" "${mydocker[@]}" run -it /bin/cat </dev/null >out 2>err
  is "$(<out)" ''
  seq 60000 | timeout "$patience" "${mydocker[@]}" run -it /usr/bin/wc -l >out 2>err
  is "$(tail -n 1 out)" $'60000\r'
}

test_size() { # tty: the size is right before the command starts, and follows
  tty 0 '^24 80$' '@size 31 97' '^31 97$' '@size 5 7' '^5 7$' $'\r' -- "${mydocker[@]}" run -it "$PYTHON" -I -c '
import os, signal
def show(*_):
    os.write(1, b"%d %d\n" % tuple(reversed(os.get_terminal_size(0))))
signal.signal(signal.SIGWINCH, show)
show()
input()'
  tty 0 'now' '@size 50 132' -- bash -c "echo now; until [[ \$(stty size) == '50 132' ]]; do :; done; \"\$@\" run -it /bin/stty size;
    \"\$@\" run -t /bin/stty size; \"\$@\" run -it /bin/stty size <&1 | cat; \"\$@\" run -it /bin/stty size </dev/null" bash "${mydocker[@]}"
  is "$(grep -c '^50 132$' <<<"$out")" 4
}

test_job_control() { # tty: Ctrl-C, Ctrl-Z, fg, Ctrl-\ and Ctrl-D work in a shell as they do outside
  local prompt='[#$] $' busy='sh -c "echo b""usy; exec sleep 1000"'$'\r'
  tty 4 "$prompt" "$busy" '^busy$' $'\x03' "$prompt" $'echo s""tatus $?\r' '^status 130$' '' \
    "$prompt" $'cat\r' 'cat$' $'abc\r' 'abc\nabc$' $'\x1a' 'Stopped|Suspended' '' \
    "$prompt" $'jobs; fg\r' 'cat$' $'def\r' 'def\ndef$' $'\x04' \
    "$prompt" "$busy" '^busy$' $'\x1c' 'Quit' '' "$prompt" $'(exit 4)\r' '[#$] $' $'\x04' -- "${mydocker[@]}" run -it /bin/sh
  unlike "$out" "can't access tty|no job control"
}

test_keys_to_pid_1() { # tty: Ctrl-C reaches the command itself, Ctrl-D ends its input
  tty 3 '^ready$' $'\x03' -- "${mydocker[@]}" run -it /bin/sh -c \
    'trap "echo got; exit 3" INT; echo ready; while :; do sleep 0.05; done'
  tty 0 'command:/bin/cat' $'hello\r' 'hello\nhello\n' $'\x04' -- "${mydocker[@]}" run -it /bin/cat
  tty 130 '^ready$' $'\x03' -- "${mydocker[@]}" run -it --init /bin/sh -c 'echo ready; exec sleep 1000'
}

test_modes_restored() { # tty: the terminal's modes are restored on every way out
  # the helper compares them itself; raw mode is on when the command says ready
  tty 127 -- "${mydocker[@]}" run -it /no/such/program
  tty 9 '^ready$' '@do touch go' -- bash -c "\"\$@\" run -it /bin/sh -c 'trap \"exit 9\" TERM; echo ready; while :; do sleep 0.05; done' &
    until [[ -e go ]]; do sleep 0.05; done; kill \$!; wait \$!" bash "${mydocker[@]}"
  tty 137 '^ready$' '@do touch gone' -- "${mydocker[@]}" run -it --init /bin/sh -c \
    "echo ready; until [ -e gone ]; do sleep 0.05; done; kill -KILL \$\$"
  tty 0 '^ready$' 'xyz' -- "${mydocker[@]}" run -it /bin/sh -c 'stty raw -echo; echo ready; head -c 3 >/dev/null'
}

test_hangup() { # tty: a terminal that goes away ends the container's shell
  tty 0 '[#$] $' @hangup -- bash -c "trap '' HUP; \"\$@\" 2>err; echo \$? >status; :" bash env --default-signal=HUP "${mydocker[@]}" run -it /bin/sh
  is "$(grep -v '^{"level"' err)" ''
  like "$(<status)" '^(0|1|129)$'
}

test_100_mb() { # tty: 100 MB arrive through the terminal complete
  local size=104857600 want
  want=$(seq 100000000 | head -c $size | sha256sum)
  is "$("${mydocker[@]}" run -t /bin/sh -c "stty raw; seq 100000000 | head -c $size" | sha256sum)" "$want"
  want=$(seq 2000000 | sha256sum)
  is "$("${mydocker[@]}" run -t /bin/sh -c 'stty raw; seq 2000000' | { sleep 0.5; sha256sum; })" "$want"
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

test_no_push_back() { # tty: nothing can be typed into the caller's terminal from inside, TIOCSTI
  local options
  for options in -it -t '-it --init'; do
    tty 1 tried '' -- bash -c "\"\$1\" \"\$2\" run $options \"\$1\" -I -c \"\$3\"; IFS= read -r -t 1 line && echo \"typed \$line\"; exit 1" \
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
  env -u TMUX TERM=xterm LC_ALL=C.UTF-8 tmux -S tmux -f /dev/null new-session -d -x 100 -y 30 'exec bash --rcfile rc'
  in_tmux set -g status off
  in_tmux resize-window -t 0 -x 100 -y 30
  wait_for shows 'host>'
  keys 'sh begin' Enter
  wait_for shows $'\n[^\n]*[#$] *\n*$'
}
keys() {
  in_tmux send-keys -t 0:0 "$@"
}
leave() { # back to a shell outside whose terminal works
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
  in_tmux resize-window -t 0 -x 120 -y 40
  # shellcheck disable=SC2016 # not yet
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
  keys 'clear; cat' Enter
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

# ── 14. Inside the container ───────────────────────────────────────────────

test_init_option() { # init: --init puts a reaper before the command
  run 7 run --init /bin/sh -c "echo \$\$; exit 7"
  like "$out" '^[2-9]$'
  run 0 run --init /bin/sh -c "for i in 1 2 3 4 5; do (sleep 0.0\$i & exec true) & done; wait; sleep 0.1
    i=0; while grep -q '^State:.Z' /proc/[0-9]*/status && [ \$i -lt 100 ]; do sleep 0.1; i=\$((i+1)); done
    grep -h '^State:.Z' /proc/[0-9]*/status; :"
  is "$out$err" ''
  run 0 run --init /bin/sh -c 'sleep 1000 & exit 0' # the end of the command is the end of the container
  run 143 run --init /bin/sh -c "kill -TERM \$\$"
  tty 0 '[#$] $' $'sh -c "echo b""usy; exec sleep 1000"\r' '^busy$' $'\x1a' 'Stopped|Suspended' '' '[#$] $' $'exit 0\r' 'stopped jobs' $'exit 0\r' -- \
    "${mydocker[@]}" run -it --init /bin/sh
}

test_init_signals() { # init: --init passes signals on to the command
  local signal
  for signal in TERM INT HUP QUIT USR1 USR2; do
    start run --init /bin/sh -c "trap 'echo got; exit 3' $signal; echo ready; while :; do sleep 0.05; done"
    wait_for has out ready
    kill -"$signal" "$pid"
    ended 3
    has out got
  done
  start run --init /bin/sleep 1000 # which as PID 1 would ignore it
  # shellcheck disable=SC2016 # not yet
  wait_for eval '[[ $(cat "/proc/$(children "$(children "$pid")")/comm") == sleep ]]'
  kill -TERM "$pid"
  ended 143
}

# ── 15. Outside the container ──────────────────────────────────────────────

test_killed_while_starting() { # monitor: killed at any moment of the start, it leaves no process
  local i inside
  for i in 000 002 004 006 008 010 012 014 016 018 020 025 030 035 040 050; do
    start run /bin/sleep 1000
    sleep "0.$i"
    inside=$(children "$pid")
    kill -KILL "$pid"
    ended 137
    # shellcheck disable=SC2086 # no word, or one
    wait_for gone $inside
  done
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
  "$PYTHON" -I -c 'import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])' \
    "${mydocker[@]}" run /bin/sh -c 'exit 7' || got=$?
  is "$got" 7
}

test_large_command() { # monitor: a megabyte of arguments and a large environment arrive
  local i args=()
  for i in {1..100}; do args+=("$(printf '%010000d' "$i")"); done
  run 0 run -e "BIG=${args[1]}${args[2]}" /bin/sh -c "echo \$# \${#BIG}; printf '%s\\n' \"\$@\" | sha256sum" sh "${args[@]}"
  is "$out" "100 20000"$'\n'"$(printf '%s\n' "${args[@]}" | sha256sum)"
}

test_locale() { # monitor: bytes stay what they are in any locale
  local locale
  for locale in C C.UTF-8 en_US.ISO-8859-1 zh_CN.GBK nosuch; do
    LC_ALL=$locale run 0 run -e $'V=\xe9中' /bin/sh -c "printf %s \"\$1\$V\"" sh $'\xff中'
    is "$out" $'\xff中\xe9中'
    LC_ALL=$locale fails 127 'no such file' run $'/nosuch/\xff中'
  done
}

# ── 16. Commands ───────────────────────────────────────────────────────────

test_version() { # cli: --version is one line
  run 0 --version
  like "$out" '^mydocker [0-9]+\.[0-9]+\.[0-9]+$'
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
    like "$out" "^Usage: mydocker $name "
    is "$err" ''
  done <names
  run 0 run --help
  for option in '-i, --interactive' '-t, --tty' '-e, --env' --env-file --hostname '-w, --workdir' '-u, --user' --init \
    --read-only --rm --ephemeral --log-level --explain; do
    like "$out" "$option"
  done
  is "$("${mydocker[@]}" run -h)" "$out"
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
    timeout "$patience" "${mydocker[@]}" run "$option" >out 2>err || is $? 125
    unlike "$(<err)" 'unknown'
  done <options
  run 125 run --nope
  like "$err" 'unknown'
}

test_info() { # cli: info tells what the box can do; with names it answers by its status
  local name
  run 0 info
  like "$out" "$(uname -r)"
  like "$out" "$("$PYTHON" -c 'import platform; print(platform.python_version())')"
  like "$out" "$MYDOCKER_ROOT"
  for name in root pidns mntns utsns ipcns netns cgroupns userns cgroup-v1 cgroup-v2 overlay seccomp openat2 pidfd nf_tables; do
    like "$out" $'\n'"$name +(yes|no)  "
  done
  run 0 info root pidns
  run 0 info mntns
  is "$err" ''
}

test_info_probes() { # cli: info tries things out instead of guessing
  need unshare setpriv
  local kind got
  unshare -Ur true || skip 'no user namespace in here'
  for kind in pid mnt uts ipc net; do
    got=0
    unshare -Ur bash -c "echo 0 >/proc/sys/user/max_${kind}_namespaces && exec \"\$@\"" bash "${mydocker[@]}" info "${kind}ns" >out || got=$?
    is "$got" 1
    has out "^${kind}ns +no .*user.max_${kind}_namespaces"
  done
  got=0
  setpriv --reuid=65534 --clear-groups --inh-caps=+dac_read_search --ambient-caps=+dac_read_search "${mydocker[@]}" info root >out || got=$?
  is "$got" 1
  has out '^root +no .*sudo'
}

# ── 17. Main, and the end ──────────────────────────────────────────────────

test_no_warnings() { # main: it starts without a warning of Python's
  local got=0
  is "$("$PYTHON" -W error "$here/mydocker.py" --version 2>&1 | grep -c '^mydocker ')" 1
  "$PYTHON" -W error -X dev "$here/mydocker.py" run /bin/echo hello >out 2>err || got=$?
  is "$got $(<out)$(<err)" '0 hello'
  "$PYTHON" -W error -X dev "$here/mydocker.py" run -it --init --log-level error /bin/echo hello >out 2>err || got=$?
  is "$got $(<out)$(<err)" $'0 hello\r'
  "$PYTHON" -W error "$here/mydocker.py" info >out 2>err
  is "$(<err)" ''
}

test_no_trace_on_disk() { # main: no file is left beside the program, the state root is root's alone
  [[ ! -e $here/__pycache__ ]]
  run 0 run /bin/true
  [[ ! -e $MYDOCKER_ROOT ]] || is "$(stat -c %a:%u "$MYDOCKER_ROOT")" 700:0
}

strays() { # processes of ours, or of containers whose monitor is dead
  local - dir pid parent
  set +x
  for dir in /proc/[0-9]*; do
    pid=${dir#/proc/}
    [[ $pid != "$BASHPID" && $pid != "$$" ]] || continue
    if { tr '\0' '\n' <"$dir/environ"; } 2>/dev/null | grep -xF "MYDOCKER_ROOT=$MYDOCKER_ROOT" >/dev/null; then
      parent=$(sed -n 's/^PPid:\t//p' "$dir/status" 2>/dev/null)
      [[ $parent == "$BASHPID" || $parent == "$$" || ! $parent ]] || ps_line "$pid"
    elif grep -qE $'^NSpid:\t[0-9]+\t1$' "$dir/status" 2>/dev/null; then
      parent=$(sed -n 's/^PPid:\t//p' "$dir/status" 2>/dev/null)
      [[ ! $parent || $parent -gt 1 ]] || grep -qF "$(readlink "$dir/ns/pid")" "$scratch/pidns" || ps_line "$pid"
    fi
  done
}
ps_line() {
  printf '%s %s\n' "$1" "$(tr '\0' ' ' <"/proc/$1/cmdline")"
}
none() { # none COMMAND...: it prints nothing
  [[ ! $("$@") ]]
}

test_nothing_left() { # main: nothing is left behind on this box
  run 0 run /bin/true # which sweeps up after the killed ones
  diff "$scratch/mountinfo" /proc/self/mountinfo
  wait_for none strays
  is "$(find /sys/fs/cgroup -type d -name '*mydocker*' 2>/dev/null)" ''
  diff "$scratch/links" <(printf '%s\n' /sys/class/net/*)
  is "$(find "$MYDOCKER_ROOT"/{containers,running} -mindepth 1)" ''
}

# ── Measurements ───────────────────────────────────────────────────────────
# Each bench_* sets $row to a command, or skips. The rows of an area are run in turn, and compared
# with the area's first row; prepare_AREA, where there is one, comes before.

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

bench_run_compiled() { # start: the same from a compiled copy, python3 -I -S mydocker.pyc
  "$PYTHON" -c 'import py_compile, sys; py_compile.compile(sys.argv[1], "mydocker.pyc")' "${mydocker[1]}"
  row=("$PYTHON" -I -S "$PWD/mydocker.pyc" run /bin/true)
}

bench_unshare() { # start: unshare(1) with the same namespaces
  need unshare
  row=(unshare --pid --fork --mount --mount-proc --uts --ipc --net /bin/true)
}

bench_bwrap() { # start: bwrap with the same namespaces
  need bwrap
  row=(bwrap --unshare-pid --unshare-uts --unshare-ipc --unshare-net --dev-bind / / --proc /proc /bin/true)
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
  need podman busybox
  row=(podman --root "$PWD/podman" --runroot "$PWD/podman-run" --storage-driver vfs --cgroup-manager cgroupfs
    --events-backend none)
  ! command -v runc || row+=(--runtime runc)
  row+=(run --rm --net none --log-driver none --ulimit nofile=1024:1024 --ulimit nproc=1024:1024
    --rootfs "$PWD/root" /bin/true)
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
  start run /bin/sh -c 'echo ready; exec sleep 1000'
  wait_for has out ready
  sleep 0.2 # what it does while it waits
  awk -v which="outside process of run, waiting" '/^(VmRSS|RssAnon|RssFile):/ {size[$1] = $2 / 1024}
    END {printf "%-52s %6.1f MB resident, of it %.1f MB its own\n", which, size["VmRSS:"], size["RssAnon:"]}' "/proc/$pid/status"
  start run -it /bin/sh -c 'exec sleep 1000' </dev/null
  wait_for has err command:/bin/sh
  awk -v which="outside process of run -it, waiting" '/^(VmRSS|RssAnon|RssFile):/ {size[$1] = $2 / 1024}
    END {printf "%-52s %6.1f MB resident, of it %.1f MB its own\n", which, size["VmRSS:"], size["RssAnon:"]}' "/proc/$pid/status"
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
    printf '%-52s %9s %9s %9s  %s\n' "$(title "${names[i]}")" "$(ms "$median")" "$(ms "${sorted[0]}")" "$(ms "${sorted[-1]}")" \
      "$((median * 100 / base / 100)).$(printf %02d $((median * 100 / base % 100)))"
  done
}

ms() { # microseconds as milliseconds
  printf '%d.%d' $(($1 / 1000)) $(($1 % 1000 / 100))
}

bench() { # bench [PATTERN]
  local area
  : "${ROUNDS:=21}"
  printf 'milliseconds, %s rounds in turn; %s, %s, Linux %s, %s processors\n' "$ROUNDS" "$("$PYTHON" -V)" \
    "${mydocker[1]##*/}" "$(uname -r)" "$(nproc)"
  mkdir "$scratch/bench"
  cd "$scratch/bench" || exit
  while IFS= read -r area; do
    mapfile -t rows < <(functions bench | while read -r name; do [[ $(title "$name" area) != "$area" ]] || echo "$name"; done)
    if [[ $(type -t "prepare_${area##* }") ]]; then "prepare_${area##* }" >"$scratch/log" 2>&1 </dev/null; fi
    measure "$area" "${rows[@]}" </dev/null # else one of the programs eats the other areas' names
  done < <(functions bench | while read -r name; do title "$name" area; done | uniq | grep -E -e "$1")
  echo
  ( trap 'kill -KILL $(jobs -p)' EXIT; measure_memory ) 2>"$scratch/log"
}

# ── Runner ─────────────────────────────────────────────────────────────────

functions() { # functions KIND: the names of this file's KIND_* functions, in order
  sed -n "s/^\\($1_[a-z0-9_]*\\)() { # .*: .*/\\1/p" "$self"
}

title() { # title NAME [area]: the words behind a function's first line; of bench rows the half asked for
  local words
  words=$(sed -n "s/^$1() { # //p" "$self")
  case $1,${2-} in
    *,area) echo "${words%%: *}" ;;
    bench_*) echo "${words#*: }" ;;
    *) echo "$words" ;;
  esac
}

run_test() { # run_test NAME: as number $n
  local name=$1 status begin=$EPOCHREALTIME words
  words=$(title "$name")
  mkdir "$scratch/$n"
  rm -f "$scratch/why"
  ( # not behind an if or ||, where -e does nothing
    cd "$scratch/$n" || exit
    trap '{ kill -KILL $(jobs -p) || :; } 2>/dev/null' EXIT
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
    tail -n "$((verbose ? 1000 : 60))" "$scratch/log" | sed '/^+* \(local -.*\|set +x\)$/d; s/^/#   /'
  fi
}

main() {
  local n=0 passed=0 failed=0 skipped=0 verbose='' pattern=. name names
  if [[ ${1-} == -v ]]; then verbose=1; shift; fi
  case ${1-} in
    -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$self"; return ;;
    bench) bench "${2-.}"; return ;;
    ?*) pattern=$1 ;;
  esac
  mapfile -t names < <(functions test)
  if [[ $pattern == smoke ]]; then
    names=("${names[@]:0:smoke}" "${names[-1]}") pattern=.
  fi
  cp /proc/self/mountinfo "$scratch/mountinfo"
  printf '%s\n' /sys/class/net/* >"$scratch/links"
  readlink /proc/[0-9]*/ns/pid | sort -u >"$scratch/pidns"
  if ! "${mydocker[@]}" info root pidns mntns utsns ipcns netns >"$scratch/log" 2>&1; then
    sed 's/^/# /' "$scratch/log"
    echo 'Bail out! this needs root and these namespaces'
    return 1
  fi
  for name in "${names[@]}"; do
    [[ "$name $(title "$name")" =~ $pattern ]] || continue
    n=$((n + 1))
    run_test "$name"
  done
  echo "1..$n"
  echo "$passed passed, $failed failed, $skipped skipped"
  ((failed == 0 && passed > 0))
}

unset MYDOCKER_LOG MYDOCKER_EXPLAIN
umask 022
scratch=$(mktemp -d "${TMPDIR:-/tmp}/mydocker-test.XXXXXX") || exit
trap 'rm -rf "$scratch"' EXIT
chmod 755 "$scratch" # for tests as another user
export MYDOCKER_ROOT=$scratch/state
main "$@"
