"""The kubelet's part of .ci/kubernetes: containerd, and pods on two runtimes through its CRI.

Each case is a generator that makes pods and yields facts: (name, what was seen[, what it must be]).
It is run on runc first, then on mydocker; a fact that isn't what it must be is a failure of that
runtime, and one that is another than runc's is a failure of mydocker, unless OURS says why.
"""
import base64
import concurrent.futures
import contextlib
import difflib
import glob
import hashlib
import io
import itertools
import json
import os
import re
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tarfile
import time

import cri_pb2 as cri
import cri_pb2_grpc
import grpc

IMAGE = "localhost/bb:1"
PATIENCE = float(os.environ.get("PATIENCE", "60"))  # seconds that any single event may take
HANDLERS = ("runc", "mydocker")
POD, OWN, NODE, TARGET = cri.POD, cri.CONTAINER, cri.NODE, cri.TARGET

OURS = (  # what mydocker's pods see otherwise than runc's: (regular expression, instead of it, why)
    (r"^unified\n|^.* /sys/fs/cgroup/unified .*\n", "", "on a host with both versions of cgroups "
     "a container's /sys/fs/cgroup has the tree of version 2, too"),
    (r" /sys/fs/cgroup r[ow],(.*) tmpfs (cgroup|tmpfs) ", r" /sys/fs/cgroup \1 tmpfs ",
     "its tmpfs is as read-only as the spec asks for, not only the trees that it holds"),
)


# ── The node ───────────────────────────────────────────────────────────────

CONFIG = """
version = 2
root = "{scratch}/containerd"
state = "/run/containerd"
oom_score = 0
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{scratch}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    snapshotter = "{snapshotter}"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.mydocker]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.mydocker.options]
        BinaryName = "{scratch}/prefix/bin/mydocker"
"""

NETWORK = {
    "cniVersion": "0.4.0", "name": "ci", "plugins": [
        {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": False, "ipam": {
            "type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}]],
            "dataDir": "/run/leases", "routes": [{"dst": "0.0.0.0/0"}]}},
        {"type": "loopback"}]}

PASSWD = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000:ann:/home/ann:/bin/sh\n"
GROUP = "root:x:0:\nann:x:1000:\nteam:x:2000:ann\n"


class Node:
    """A containerd of our own, and what is needed to ask it for pods."""

    def __init__(self, scratch):
        self.scratch = scratch
        self.cgroup = f"/mydocker-ci-{os.getpid()}-{os.path.basename(scratch)}"
        self.daemon = None
        os.makedirs(f"{scratch}/cni")
        with open(f"{scratch}/cni/10-ci.conflist", "w") as file:
            json.dump(NETWORK, file)
        snapshotter = os.environ.get("SNAPSHOTTER", "overlayfs")
        with open(f"{scratch}/config.toml", "w") as file:
            file.write(CONFIG.format(scratch=scratch, snapshotter=snapshotter))

    def start(self):
        """Start containerd, and wait until it says that it and its network are ready."""
        with open(f"{self.scratch}/containerd.log", "a") as log:
            self.daemon = subprocess.Popen(["containerd", "-c", f"{self.scratch}/config.toml"],
                                           stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        channel = grpc.insecure_channel("unix:///run/containerd/containerd.sock")
        self.cri = cri_pb2_grpc.RuntimeServiceStub(channel)

        def ready():
            try:
                return all(row.status for row in self.cri.Status(cri.Empty()).status.conditions)
            except grpc.RpcError:
                if self.daemon.poll() is not None:
                    sys.exit(f"containerd ended: see {self.scratch}/containerd.log")
                return False
        wait_for(ready, "containerd")

    def stop(self):
        self.daemon.terminate()
        self.daemon.wait()

    def load_images(self):
        """Make an image of busybox, and one of a pause, and import them."""
        layer = io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as tar:
            for path in ("bin", "etc", "proc", "sys", "dev", "tmp", "root", "home", "home/ann"):
                row = tarfile.TarInfo(path)
                row.type, row.mode = tarfile.DIRTYPE, 0o1777 if path == "tmp" else 0o755
                tar.addfile(row)
            for path, text in (("etc/passwd", PASSWD), ("etc/group", GROUP)):
                row = tarfile.TarInfo(path)
                row.size = len(text)
                tar.addfile(row, io.BytesIO(text.encode()))
            binary = subprocess.check_output(["sh", "-c", "command -v busybox"], text=True).strip()
            names = subprocess.check_output([binary, "--list"], text=True).split()
            tar.add(os.path.realpath(binary), "bin/busybox")
            for name in names:
                if name != "busybox":
                    row = tarfile.TarInfo(f"bin/{name}")
                    row.type, row.linkname = tarfile.SYMTYPE, "busybox"
                    tar.addfile(row)
        for name, command in ((IMAGE, ["/bin/sh"]),
                              ("localhost/pause:1", ["/bin/sleep", "100000000"])):
            path = f"{self.scratch}/image.tar"
            write_image(path, name, command, layer.getvalue())
            subprocess.run(["ctr", "-n", "k8s.io", "image", "import", path], check=True,
                           stdout=subprocess.DEVNULL)

    def leftovers(self):
        """What pods have left on this node, as lines."""
        found = [f"pod {row.id}" for row in self.cri.ListPodSandbox(cri.Empty()).items]
        found += [f"container {row.id}"
                  for row in self.cri.ListContainers(cri.Empty()).containers]
        for pattern in ("/run/containerd/runc/*/[!o]*", "/run/containerd/runc/*/oci/*",
                        "/run/containerd/io.containerd.runtime.v2*/*/*",
                        "/run/netns/*", "/run/leases/ci/10.*", "/run/mydocker/*/*",
                        f"/sys/fs/cgroup/*{self.cgroup}/*/*", f"/sys/fs/cgroup{self.cgroup}/*/*"):
            found += [path for path in glob.glob(pattern) if os.path.isdir(path)
                      or "cgroup" not in path]
        with open("/proc/self/mountinfo") as file:
            points = [line.split()[4] for line in file]
        found += [f"mount {point}" for point in points if "/io.containerd" in point
                  or point.startswith("/run/") and "/shm" in point]
        found += [f"link {name}" for name in os.listdir("/sys/class/net") if "veth" in name]
        for path in glob.glob("/proc/[0-9]*/cmdline"):
            with contextlib.suppress(OSError), open(path) as file:
                words = file.read().split("\0")
                if "shim" in words[0] or "/bin/sleep" in words[0]:
                    found.append(f"process {' '.join(words)}")
        return found

    def remove_cgroups(self):
        for top in glob.glob(f"/sys/fs/cgroup/*{self.cgroup}") + [f"/sys/fs/cgroup{self.cgroup}"]:
            for path, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(path)


def write_image(path, name, command, layer):
    """Write an image of one layer as `docker save` does."""
    digest = hashlib.sha256(layer).hexdigest()
    config = json.dumps({"architecture": "amd64" if os.uname().machine == "x86_64" else "arm64",
                         "os": "linux", "config": {"Cmd": command, "Env": ["PATH=/bin", "IMG=1"]},
                         "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]}}).encode()
    names = [f"{hashlib.sha256(config).hexdigest()}.json", f"{digest}.tar", "manifest.json"]
    manifest = json.dumps([{"Config": names[0], "RepoTags": [name], "Layers": [names[1]]}])
    with tarfile.open(path, "w") as tar:
        for entry, data in zip(names, (config, layer, manifest.encode())):
            row = tarfile.TarInfo(entry)
            row.size = len(data)
            tar.addfile(row, io.BytesIO(data))


def wait_for(condition, what):
    """Wait until CONDITION() is true, and return it."""
    end = time.monotonic() + PATIENCE
    while True:
        got = condition()
        if got:
            return got
        if time.monotonic() > end:
            raise AssertionError(f"waited in vain for {what}")
        time.sleep(0.02)


# ── Pods ───────────────────────────────────────────────────────────────────

class Kubelet:
    """Pods of one handler on a node; `with kubelet.pod() as pod` removes it at the end."""

    def __init__(self, node, handler):
        self.node, self.handler, self.numbers = node, handler, itertools.count(1)

    @contextlib.contextmanager
    def pod(self, **options):
        pod = Pod(self, **options)
        try:
            pod.start()
            yield pod
        finally:
            pod.remove()

    def directory(self, name):
        """A fresh directory on the host."""
        path = f"{self.node.scratch}/{self.handler}-{next(self.numbers)}-{name}"
        os.makedirs(path)
        return path


class Pod:
    def __init__(self, kubelet, network=POD, pid=OWN, ipc=POD, privileged=False, sysctls=None):
        self.kubelet, self.node, self.id, self.names = kubelet, kubelet.node, None, {}
        self.namespaces = cri.NamespaceOption(network=network, pid=pid, ipc=ipc)
        self.logs = kubelet.directory("logs")
        uid = os.path.basename(self.logs)
        self.config = cri.PodSandboxConfig(
            metadata=cri.PodSandboxMetadata(name=f"pod-{uid}", uid=uid, namespace="ci"),
            hostname="" if network == NODE else "pod", log_directory=self.logs,
            dns_config=cri.DNSConfig(servers=["10.0.0.10"], searches=["ci.svc"],
                                     options=["ndots:5"]),
            linux=cri.LinuxPodSandboxConfig(
                cgroup_parent=f"{self.node.cgroup}/{uid}", sysctls=sysctls,
                security_context=cri.LinuxSandboxSecurityContext(
                    namespace_options=self.namespaces, privileged=privileged)))

    def start(self):
        self.id = self.node.cri.RunPodSandbox(cri.RunPodSandboxRequest(
            config=self.config, runtime_handler=self.kubelet.handler)).pod_sandbox_id

    def status(self):
        return self.node.cri.PodSandboxStatus(cri.PodSandboxId(pod_sandbox_id=self.id)).status

    def create(self, name, *argv, security=None, resources=None, mounts=(), target=None, **fields):
        """Create a container; SECURITY and RESOURCES are dicts of the messages' fields."""
        namespaces = cri.NamespaceOption()
        namespaces.CopyFrom(self.namespaces)
        if target:
            namespaces.pid, namespaces.target_id = TARGET, target
        config = cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name=name, attempt=len(self.names)),
            image=cri.ImageSpec(image=IMAGE), command=argv, log_path=f"{name}.log", mounts=mounts,
            linux=cri.LinuxContainerConfig(
                resources=cri.LinuxContainerResources(**(resources or {})),
                security_context=cri.LinuxContainerSecurityContext(
                    namespace_options=namespaces, **(security or {}))), **fields)
        box = self.node.cri.CreateContainer(cri.CreateContainerRequest(
            pod_sandbox_id=self.id, config=config, sandbox_config=self.config)).container_id
        self.names[box] = name
        return box

    def begin(self, name, *argv, **options):
        """Create and start a container."""
        box = self.create(name, *argv, **options)
        self.node.cri.StartContainer(cri.ContainerId(container_id=box))
        return box

    def shell(self, name, script, **options):
        """Let a shell run SCRIPT as a container: (its exit code, what it wrote)."""
        box = self.begin(name, "/bin/sh", "-c", script, **options)
        return self.ended(box).exit_code, self.log(box)

    def container(self, box):
        return self.node.cri.ContainerStatus(
            cri.ContainerStatusRequest(container_id=box)).status

    def pid(self, box):
        """A container's process, from containerd's verbose answer."""
        info = self.node.cri.ContainerStatus(
            cri.ContainerStatusRequest(container_id=box, verbose=True)).info
        return json.loads(info["info"])["pid"]

    def ended(self, box):
        """Wait for the end of a container; returns its status."""
        def status():
            row = self.container(box)
            return row if row.state == cri.CONTAINER_EXITED else None
        return wait_for(status, f"the end of {self.names[box]}")

    def rows(self, box):
        """A container's log, as the kubelet reads it: (stream, tag, text) of each row."""
        with open(f"{self.logs}/{self.names[box]}.log") as file:
            return [tuple(line.rstrip("\n").split(" ", 3)[1:]) for line in file]

    def log(self, box):
        """What a container wrote: to stdout, then to stderr."""
        return "".join(text + ("\n" if tag == "F" else "") for _, tag, text in sorted(
            self.rows(box), key=lambda row: row[0] == "stderr"))

    def exec(self, box, *argv, timeout=0):
        """Run a command in a container: (exit code, stdout, stderr)."""
        got = self.node.cri.ExecSync(cri.ExecSyncRequest(container_id=box, cmd=argv,
                                                         timeout=timeout))
        return got.exit_code, got.stdout.decode(), got.stderr.decode()

    def out(self, box, script):
        """What a shell in a container writes."""
        return self.exec(box, "/bin/sh", "-c", script)[1]

    def stop(self, box, timeout=0):
        self.node.cri.StopContainer(cri.StopContainerRequest(container_id=box, timeout=timeout))

    def delete(self, box):
        self.node.cri.RemoveContainer(cri.ContainerId(container_id=box))
        del self.names[box]

    def remove(self):
        """Stop and remove all of it, in the kubelet's order."""
        if not self.id:
            return
        whole = cri.PodSandboxId(pod_sandbox_id=self.id)
        for box in self.names:
            self.stop(box)
        self.node.cri.StopPodSandbox(whole)
        for box in [*self.names]:
            self.delete(box)
        self.node.cri.RemovePodSandbox(whole)
        self.id = None


class Stream:
    """A stream of exec or attach, over WebSocket: RFC 6455, v4.channel.k8s.io."""

    def __init__(self, url):
        host, port, path = re.match(r"http://([^:/]+):(\d+)(/.*)", url).groups()
        self.socket = socket.create_connection((host, int(port)), PATIENCE)
        self.file = self.socket.makefile("rb")
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall((
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Origin: http://{host}\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n").encode())
        status = self.file.readline()
        if b" 101 " not in status:
            raise AssertionError(f"stream: {status!r}")
        while self.file.readline().strip():
            pass
        self.channels = {1: b"", 2: b"", 3: b""}

    def send(self, channel, data):
        data = bytes([channel]) + data
        mask = os.urandom(4)
        head = struct.pack("!BB", 0x82, 0x80 | len(data))  # at most 125 bytes
        self.socket.sendall(head + mask + bytes(
            byte ^ mask[i % 4] for i, byte in enumerate(data)))

    def receive(self):
        """Take one message in; False at the end."""
        head = self.file.read(2)
        if len(head) < 2 or head[0] & 15 == 8:
            return False
        length = head[1] & 127
        if length > 125:
            length = int.from_bytes(self.file.read(2 if length == 126 else 8), "big")
        data = self.file.read(length)
        if head[0] & 15 < 8 and data:
            self.channels[data[0]] = self.channels.get(data[0], b"") + data[1:]
        return True

    def until(self, text):
        """Take messages in until stdout has TEXT."""
        while text not in self.channels[1]:
            if not self.receive():
                raise AssertionError(f"stream ended without {text}: {self.channels}")

    def finish(self):
        """Take all in: (the status that the kubelet makes, stdout, stderr)."""
        while self.receive():
            pass
        self.socket.close()
        status = json.loads(self.channels[3] or b"{}")
        causes = [row["message"] for row in status.get("details", {}).get("causes", ())]
        return status.get("status"), causes, self.channels[1].decode(), self.channels[2].decode()


def value(message):
    return cri.Int64Value(value=message)


WORDS = ("executable file not found in $PATH", "no such file or directory", "permission denied",
         "not a directory", "is a directory", "no users found", "not running", "not found")


def refused(call, *words, **options):
    """The error of a call that must fail, as words on which programs hang."""
    try:
        call(*words, **options)
    except grpc.RpcError as error:
        return error.code().name, known_words(error.details())
    raise AssertionError("it succeeded")


def known_words(text):
    return [words for words in WORDS if words in text]


def plain(text):
    """TEXT without ids, pids and the place of the scratch directory."""
    return re.sub(r"/tmp/tmp\.\w+", "SCRATCH", re.sub(r"[0-9a-f]{64}", "ID", text))


def kernel(path):
    with open(path) as file:
        return file.read().strip()


def cgroup_file(pid, controller, v1, v2):
    """A file of the cgroup that process PID is in."""
    for line in kernel(f"/proc/{pid}/cgroup").split("\n"):
        _, names, path = line.split(":", 2)
        for place in (f"/sys/fs/cgroup/{controller}{path}/{v1}", f"/sys/fs/cgroup{path}/{v2}"):
            if (names in (controller, "") or controller in names.split(",")) and \
                    os.path.exists(place):
                return place
    raise AssertionError(f"no {v1} or {v2}")


# ── Cases ──────────────────────────────────────────────────────────────────

CASES = []
SLEEP = ("/bin/sleep", "100000")
TERM = "trap 'echo term; exit 4' TERM; echo ready; while :; do sleep 0.05; done"


def case(title):
    def keep(function):
        CASES.append((title, function))
        return function
    return keep


@case("a pod: two containers share network, host name and IPC, and have processes of their own")
def two_containers(kubelet):
    with kubelet.pod() as pod:
        a, b = pod.begin("a", *SLEEP), pod.begin("b", *SLEEP)
        yield "state", pod.status().state, cri.SANDBOX_READY
        yield "handler", pod.status().runtime_handler == kubelet.handler, True
        yield "hostname", pod.out(a, "hostname; cat /etc/hostname"), "pod\npod\n"
        names = [[os.readlink(f"/proc/{pod.pid(box)}/ns/{kind}") for box in (a, b)]
                 for kind in ("net", "ipc", "uts", "pid", "mnt")]
        yield "shared", [len(set(pair)) for pair in names], [1, 1, 1, 2, 2]
        own = [os.readlink(f"/proc/self/ns/{kind}") for kind in ("net", "ipc", "uts", "pid", "mnt")]
        yield "the host's", [pair[0] in own for pair in names], [False] * 5
        ip = pod.status().network.ip
        yield "address", ip in pod.out(b, "ip -4 -o addr show eth0"), True
        server = pod.begin("c", "/bin/sh", "-c", "mkdir /tmp/w; echo page >/tmp/w/p; "
                           "httpd -f -p 8080 -h /tmp/w & wait")
        wait_for(lambda: pod.out(b, "wget -qO- localhost:8080/p") == "page\n", "the server")
        yield "pids", pod.out(server, "grep -c page /proc/1/cmdline"), "1\n"
        with kubelet.pod() as other:
            yield "from another pod", other.shell("d", f"wget -qO- {ip}:8080/p"), (0, "page\n")
        yield "resolv.conf", pod.out(a, "cat /etc/resolv.conf"), \
            "search ci.svc\nnameserver 10.0.0.10\noptions ndots:5\n"
        yield "shm", pod.out(a, "echo x >/dev/shm/f") + pod.out(b, "cat /dev/shm/f"), "x\n"


PARTS = ("mounts", "devices", "status", "limits", "fds", "files", "keys")
FACTS = """
sed 's/^[0-9]* [0-9]* [0-9:]* //' /proc/self/mountinfo | sed -E 's/(master|shared):[0-9]+/\\1/'
echo; ls -l /dev | awk '{print $1, $3, $4, $5, $6, $NF}' | grep -v '^total'
echo; cd /proc; grep -E '^(Umask|Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp)' 1/status self/status
grep -E '^(Speculation|CoreDumping|THP|Sig(Blk|Ign|Cgt)|Mems_allowed)' 1/status
echo; cat /proc/1/limits; cat /proc/1/oom_score_adj; tr '\\0' '\\n' <1/environ | sort; env | sort
echo; ls -l /proc/1/fd | awk '{print $9, $11}' | sed 's/[0-9]*]$//'; readlink 1/cwd; umask
echo; ls /proc /sys | grep -v '^[0-9]'; ls -a / /proc/acpi /sys/firmware
cat /proc/sys/net/ipv4/ping_group_range /proc/sys/net/ipv4/ip_unprivileged_port_start
stat -c '%a %u:%g %n' / /dev /proc /sys /dev/shm /dev/pts /dev/mqueue /etc/hosts /etc/resolv.conf
grep -c . /proc/self/timerslack_ns; ls /proc/self/attr; cut -d: -f2- /proc/self/cgroup
echo; sed 's/.* //' /proc/keys | sort
"""


@case("a container: mounts, devices, limits, environment and all that it sees of itself")
def facts(kubelet):
    with kubelet.pod() as pod:
        for who, fields in (("root", {}), ("user", {"readonly_rootfs": True,
                                                    "run_as_user": value(1000)})):
            text = plain(pod.out(pod.begin(who, *SLEEP, security=fields), FACTS))
            for name, part in zip(PARTS, text.split("\n\n")):
                yield f"{who}: {name}", clean_mounts(part) if name == "mounts" else part


def clean_mounts(text):
    """mountinfo without the overlay's directories and the pod's own."""
    text = re.sub(r"lowerdir=\S+", "DIRS", text)
    text = re.sub(r"/(runc|mydocker)-\d+-logs", "/LOGS", text)
    return re.sub(r"/snapshots/\S*", "/X", text)


@case("exec: output, status, timeouts, and commands that aren't there")
def exec_sync(kubelet):
    with kubelet.pod() as pod:
        box = pod.begin("a", *SLEEP, envs=[cri.KeyValue(key="A", value="b c")],
                        working_dir="/made/up")
        yield "output", pod.exec(box, "/bin/sh", "-c", "echo out; echo err >&2; exit 7"), \
            (7, "out\n", "err\n")
        yield "env", pod.out(box, "env | sort"), \
            "A=b c\nHOME=/root\nHOSTNAME=pod\nIMG=1\nPATH=/bin\nPWD=/made/up\nSHLVL=1\n"
        yield "stdin", pod.exec(box, "wc", "-c"), (0, "0\n", "")
        yield "big", len(pod.exec(box, "head", "-c", "1000000", "/dev/zero")[1]), 1000000
        yield "signal", pod.out(box, "sh -c 'kill -9 $$'; echo $?"), "137\n"
        yield "killed", pod.exec(box, "/bin/sh", "-c", "kill -9 $$")[0], 137
        for words in (["nonexistent"], ["/nonexistent"], ["/etc/passwd"], ["/etc"]):
            yield words[0], refused(pod.exec, box, *words)
        yield "timeout", refused(pod.exec, box, *SLEEP, timeout=1)[0], "DEADLINE_EXCEEDED"
        wait_for(lambda: pod.out(box, "ps -o args | grep -c [s]leep") == "1\n",
                 "the end of the late one")
        yield "tree", pod.out(box, "sleep 1000 >/dev/null 2>&1 & echo $!").strip().isdigit(), True
    with kubelet.pod() as pod:
        box = pod.begin("b", "/bin/true")
        pod.ended(box)
        yield "ended", refused(pod.exec, box, "true")


@case("exec: 20 at once")
def exec_many(kubelet):
    with kubelet.pod() as pod, concurrent.futures.ThreadPoolExecutor(10) as pool:
        box = pod.begin("a", *SLEEP)
        got = list(pool.map(lambda i: pod.exec(box, "echo", str(i)), range(20)))
        yield "all", got, [(0, f"{i}\n", "") for i in range(20)]


@case("exec: streams, stdin, and a terminal with its size")
def exec_stream(kubelet):
    with kubelet.pod() as pod:
        box = pod.begin("a", *SLEEP)

        def stream(script, **fields):
            return Stream(pod.node.cri.Exec(cri.ExecRequest(
                container_id=box, cmd=["/bin/sh", "-c", script], stdout=True, **fields)).url)
        yield "streams", stream("echo out; echo err >&2; exit 3", stderr=True).finish(), \
            ("Failure", ["3"], "out\n", "err\n")
        asked = stream("read line; echo got $line", stdin=True, stderr=True)
        asked.send(0, b"hello\n")
        yield "stdin", asked.finish(), ("Success", [], "got hello\n", "")
        asked = stream('tty; until [ "$(stty size 2>/dev/null)" = "33 77" ]; do sleep 0.02; done; '
                       "echo sized; read x; echo $x", stdin=True, tty=True)
        asked.send(4, b'{"Width": 77, "Height": 33}')
        asked.until(b"sized")
        asked.send(0, b"typed\n")
        yield "tty", asked.finish(), \
            ("Success", [], "/dev/pts/0\r\nsized\r\ntyped\r\ntyped\r\n", "")


@case("attach: to a container's stdin, and to its terminal")
def attach(kubelet):
    with kubelet.pod() as pod:
        for tty in (False, True):
            box = pod.begin(f"a{tty}", "/bin/sh", "-c", "read x; echo got $x; test -t 0; echo $?; "
                            "ls -l /dev/console 2>&1 | cut -c1; sleep 1; exit 6", stdin=True, tty=tty)
            url = pod.node.cri.Attach(cri.AttachRequest(container_id=box, stdin=True, stdout=True,
                                                        stderr=not tty, tty=tty)).url
            asked = Stream(url)
            asked.send(0, b"line\n")
            yield f"attached {tty}", asked.finish()[2].replace("line\r\n", "")
            yield f"status {tty}", pod.ended(box).exit_code, 6


@case("logs: both streams, long and partial rows, and a log that is opened anew")
def logs(kubelet):
    with kubelet.pod() as pod:
        box = pod.begin("a", "/bin/sh", "-c", "echo out; echo err >&2; printf half; "
                        "head -c 20000 /dev/zero | tr '\\0' x >&2")
        pod.ended(box)
        rows = wait_for(lambda: len(pod.rows(box)) == 5 and pod.rows(box), "the log")
        yield "out", [row for row in rows if row[0] == "stdout"], \
            [("stdout", "F", "out"), ("stdout", "P", "half")]
        yield "err", [(*row[:2], len(row[2])) for row in rows if row[0] == "stderr"]
        box = pod.begin("b", "/bin/sh", "-c", "echo one; while [ ! -e /tmp/go ]; do sleep 0.02; "
                        "done; echo two; exec sleep 10000")
        wait_for(lambda: pod.log(box) == "one\n", "a row")
        os.rename(f"{pod.logs}/b.log", f"{pod.logs}/b.old")
        pod.node.cri.ReopenContainerLog(cri.ContainerId(container_id=box))
        pod.out(box, "touch /tmp/go")
        wait_for(lambda: pod.log(box) == "two\n", "a row in the new log")


@case("ends: statuses, and commands that can't be started")
def ends(kubelet):
    with kubelet.pod() as pod:
        for script in ("exit 0", "exit 3", "kill -9 $$", "kill -SEGV 1; exit 5"):
            row = pod.ended(pod.begin("a", "/bin/sh", "-c", script))
            yield script, (row.exit_code, row.reason)
        for number, words in enumerate((["nonexistent"], ["/nonexistent"], ["/etc/passwd"],
                                        ["/etc"])):
            box = pod.create(f"b{number}", *words)
            yield words[0], refused(pod.node.cri.StartContainer, cri.ContainerId(container_id=box))
            row = pod.container(box)
            yield f"{words[0]}'s status", (row.state, row.exit_code, row.reason,
                                           known_words(row.message))


@case("ends: a stop is TERM, then KILL after its time; a restart in the same pod")
def stops(kubelet):
    with kubelet.pod() as pod:
        box = pod.begin("a", "/bin/sh", "-c", TERM)
        wait_for(lambda: pod.log(box) == "ready\n", "the shell")
        pod.stop(box, 60)
        yield "term", (pod.container(box).exit_code, pod.log(box)), (4, "ready\nterm\n")
        box = pod.begin("b", "/bin/sh", "-c", "trap '' TERM; echo ready; "
                        "while :; do sleep 0.05; done")
        wait_for(lambda: pod.log(box) == "ready\n", "the shell")
        pod.stop(box, 1)
        yield "kill", pod.container(box).exit_code, 137
        pod.delete(box)
        os.unlink(f"{pod.logs}/b.log")
        yield "again", pod.shell("b", "echo new"), (0, "new\n")
        box = pod.begin("c", "/bin/sh", "-c", "sleep 100000 & sleep 100000 & exec sleep 100000")
        pod.stop(box)
        yield "children", pod.container(box).exit_code, 137
        created = pod.create("d", *SLEEP)
        yield "created", pod.container(created).state, cri.CONTAINER_CREATED
        pod.delete(created)


@case("limits: memory, CPU, CPUs, the OOM killer's score; and their change")
def limits(kubelet):
    with kubelet.pod() as pod:
        box = pod.begin("a", *SLEEP, resources={
            "cpu_period": 100000, "cpu_quota": 50000, "cpu_shares": 512, "oom_score_adj": 500,
            "memory_limit_in_bytes": 64 << 20, "cpuset_cpus": "0"})
        pid = pod.pid(box)

        def seen():
            return [kernel(cgroup_file(pid, *names)) for names in (
                ("memory", "memory.limit_in_bytes", "memory.max"),
                ("cpu", "cpu.cfs_quota_us", "cpu.max"), ("cpu", "cpu.shares", "cpu.weight"),
                ("cpuset", "cpuset.cpus", "cpuset.cpus"))]
        yield "limits", seen()
        yield "memory", seen()[0], str(64 << 20)
        yield "score", kernel(f"/proc/{pid}/oom_score_adj"), "500"
        path = os.path.dirname(cgroup_file(pid, "memory", "memory.limit_in_bytes", "memory.max"))
        yield "cgroup", path.endswith(f"{pod.config.linux.cgroup_parent}/{box}"), True
        yield "seen inside", pod.out(box, "ls /sys/fs/cgroup; cat /sys/fs/cgroup/memory/"
                                     "memory.limit_in_bytes /sys/fs/cgroup/memory.max; "
                                     "echo x >/sys/fs/cgroup/memory/x; echo $?")
        pod.node.cri.UpdateContainerResources(cri.UpdateContainerResourcesRequest(
            container_id=box, linux=cri.LinuxContainerResources(
                memory_limit_in_bytes=96 << 20, cpu_quota=70000, cpu_period=100000)))
        yield "updated", seen()
        yield "new memory", seen()[0], str(96 << 20)
        stats = pod.node.cri.ContainerStats(cri.ContainerId(container_id=box)).stats
        yield "stats", (stats.cpu.usage_core_nano_seconds.value > 0,
                        stats.memory.working_set_bytes.value > 0), (True, True)


@case("limits: who takes too much memory is killed, and the kubelet is told so")
def oom(kubelet):
    with kubelet.pod() as pod:
        box = pod.begin("a", "/bin/sh", "-c", "x=aaaaaaaa; while :; do x=$x$x; done",
                        resources={"memory_limit_in_bytes": 32 << 20})
        row = pod.ended(box)
        yield "end", (row.exit_code, row.reason), (137, "OOMKilled")
        yield "after it", pod.shell("b", "echo alive"), (0, "alive\n")


@case("volumes: read-write, read-only, subPath, the kubelet's own files, and on a read-only root")
def volumes(kubelet):
    source = kubelet.directory("volume")
    os.makedirs(f"{source}/sub/deep")
    for name in ("file", "hosts", "message"):
        with open(f"{source}/{name}", "w") as file:
            file.write(f"{name}\n")
    os.symlink("sub", f"{source}/link")
    mounts = [cri.Mount(container_path=path, host_path=f"{source}/{name}", readonly=readonly)
              for path, name, readonly in (
                  ("/rw", ".", False), ("/ro", ".", True), ("/sub/path", "sub", False),
                  ("/etc/one", "file", True), ("/etc/hosts", "hosts", False),
                  ("/dev/termination-log", "message", False), ("/by-link", "link", False),
                  ("/var/run/secrets/kubernetes.io/serviceaccount", "sub", True),
                  ("/rw/sub/deep", "sub", True))]
    script = ("echo new >/rw/new; cat /ro/new /etc/one /etc/hosts; echo x >/ro/x; echo x >/etc/one;"
              "echo s >/sub/path/s; cat /by-link/s /var/run/secrets/kubernetes.io/*/s; echo end >"
              "/dev/termination-log; ls /rw/sub/deep; echo x >/rw/sub/deep/x; touch /x; echo $?")
    with kubelet.pod() as pod:
        for readonly in (False, True):
            code, text = pod.shell(f"a{readonly}", script, mounts=mounts,
                                   security={"readonly_rootfs": readonly})
            yield f"seen {readonly}", (code, text)
            yield f"message {readonly}", kernel(f"{source}/message"), "end"
            yield f"on the host {readonly}", sorted(os.listdir(f"{source}/sub")), ["deep", "s"]
        for path, host in (("/etc", f"{source}/file"), ("/etc/passwd", f"{source}/sub")):
            yield f"odd {path}", refused(
                pod.begin, f"odd{len(path)}", "/bin/true",
                mounts=[cri.Mount(container_path=path, host_path=host)])


@case("volumes: mounts go from the host into a container, and from a container to the host")
def propagation(kubelet):
    source = kubelet.directory("shared")
    subprocess.run(["mount", "-t", "tmpfs", "--make-shared", "t", source], check=True)
    for name in ("in", "out"):
        os.mkdir(f"{source}/{name}")
    try:
        with kubelet.pod(privileged=True) as pod:
            rows = {mode: pod.begin(f"a{mode}", *SLEEP, security={"privileged": mode == 2}, mounts=[
                cri.Mount(container_path="/v", host_path=source, propagation=mode)])
                for mode in (0, 1, 2)}
            subprocess.run(["mount", "-t", "tmpfs", "in", f"{source}/in"], check=True)
            with open(f"{source}/in/f", "w"):
                pass
            yield "inwards", [pod.out(box, "ls /v/in") for box in rows.values()], ["", "f\n", "f\n"]
            yield "outwards", pod.exec(rows[2], "mount", "-t", "tmpfs", "out", "/v/out")[0], 0
            yield "seen", os.path.ismount(f"{source}/out"), True
    finally:
        subprocess.run(["umount", "-R", source], check=True)


IDS = "id -u; id -g; id -G; grep -E '^(Cap|NoNew|Seccomp:)' /proc/self/status; echo $HOME"


@case("security: user, group, groups of the image and more of them")
def users(kubelet):
    with kubelet.pod() as pod:
        for number, fields in enumerate((
                {}, {"run_as_user": value(1000)}, {"run_as_username": "ann"},
                {"run_as_user": value(1234), "run_as_group": value(55)},
                {"run_as_user": value(1000), "supplemental_groups": [7, 2000, 9]})):
            yield f"{number}", pod.shell(f"a{number}", IDS, security=fields)
        yield "files", pod.shell("b", "echo x >/tmp/f && stat -c %u:%g /tmp/f; echo x >/root/f; "
                                 "echo $?; echo o >/dev/stdout; echo e >/dev/stderr; ping -c1 "
                                 "127.0.0.1 >/dev/null; echo $?", security={
                                     "run_as_user": value(1000), "run_as_group": value(55)})
        box = pod.begin("c", *SLEEP, security={"run_as_user": value(1000), "run_as_group": value(5),
                                               "supplemental_groups": [7]})
        yield "exec", pod.out(box, IDS)
        yield "no such", refused(pod.create, "d", *SLEEP, security={"run_as_username": "nobody1"})


@case("security: capabilities, no_new_privs")
def capabilities(kubelet):
    with kubelet.pod() as pod:
        for number, fields in enumerate((
                {"capabilities": cri.Capability(drop_capabilities=["ALL"])},
                {"capabilities": cri.Capability(add_capabilities=["NET_ADMIN", "SYS_TIME"],
                                                drop_capabilities=["CHOWN"])},
                {"capabilities": cri.Capability(add_capabilities=["NET_ADMIN"]),
                 "run_as_user": value(1000), "no_new_privs": True})):
            yield f"{number}", pod.shell(f"a{number}", IDS + "; chown 1 /tmp; echo $?; "
                                         "ip link add d type dummy; echo $?; ip link del d",
                                         security=fields)
            box = pod.begin(f"b{number}", *SLEEP, security=fields)
            yield f"exec {number}", pod.out(box, IDS)


@case("security: seccomp, of the runtime, of a file, and none")
def seccomp(kubelet):
    profile = f"{kubelet.directory('seccomp')}/profile.json"
    with open(profile, "w") as file:
        json.dump({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}, file)
    kinds = cri.SecurityProfile
    with kubelet.pod() as pod:
        for name, fields in (("runtime's", {"profile_type": kinds.RuntimeDefault}),
                             ("none", {"profile_type": kinds.Unconfined}),
                             ("a file's", {"profile_type": kinds.Localhost,
                                           "localhost_ref": f"localhost/{profile}"})):
            yield name, pod.shell(name[:1], "grep Seccomp: /proc/self/status; mkdir /tmp/d; "
                                  "unshare -U true; echo $?",
                                  security={"seccomp": kinds(**fields)})


@case("security: read-only root, masked and read-only paths")
def read_only(kubelet):
    with kubelet.pod() as pod:
        yield "root", pod.shell("a", "touch /x; touch /tmp/x; echo x >/dev/shm/x; echo $?; "
                                "touch /dev/x; echo $?", security={"readonly_rootfs": True})
        script = ("ls /proc/acpi /sys/firmware | wc -l; head -c9 /proc/timer_list | wc -c; echo 1 >"
                  "/proc/sys/kernel/domainname; echo $?; ls /etc | wc -l; wc -c </etc/passwd")
        for name, fields in (("default", {}), ("empty", {"masked_paths": [], "readonly_paths": []}),
                             ("own", {"masked_paths": ["/etc/passwd", "/proc/sys", "/none"],
                                      "readonly_paths": ["/proc/sys", "/etc", "/none"]})):
            yield name, pod.shell(f"b{name}", script, security=fields)


@case("security: a privileged container")
def privileged(kubelet):
    with kubelet.pod(privileged=True) as pod:
        code, text = pod.shell("a", IDS + "; ls /dev | sort | head -50; mount -t tmpfs t /tmp; "
                               "echo $?; grep -E ' /(sys|proc) ' /proc/mounts; ls /sys/fs/cgroup; "
                               "echo 1 >/proc/sys/net/ipv4/ip_forward; echo $?",
                               security={"privileged": True})
        yield "seen", (code, text)
        yield "mounts", "\n0\n" in text, True


@case("namespaces: the host's network, processes and IPC")
def host_namespaces(kubelet):
    with kubelet.pod(network=NODE, pid=NODE, ipc=NODE) as pod:
        box = pod.begin("a", *SLEEP)
        own = [os.readlink(f"/proc/self/ns/{kind}") for kind in ("net", "pid", "ipc")]
        yield "same", [os.readlink(f"/proc/{pod.pid(box)}/ns/{kind}") == name
                       for kind, name in zip(("net", "pid", "ipc"), own)], [True] * 3
        yield "links", "cni0" in pod.out(box, "ls /sys/class/net; ip link"), True
        yield "hostname", pod.out(box, "hostname").strip() == os.uname().nodename, True
        yield "processes", "containerd" in pod.out(box, "ps"), True
        pod.stop(box)
        yield "end", pod.container(box).exit_code, 137
    with kubelet.pod(pid=NODE) as pod:  # no PID namespace whose end takes all with it
        box = pod.begin("b", "/bin/sh", "-c", "sleep 98765 & sleep 98765 & wait")
        wait_for(lambda: running("98765") == 2, "the children")
        pod.stop(box)
        wait_for(lambda: running("98765") == 0, "the end of the children")


def running(word):
    """How many processes have WORD in their command line."""
    found = 0
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        with contextlib.suppress(OSError), open(path) as file:
            found += file.read().split("\0")[1:2] == [word]
    return found


@case("namespaces: shareProcessNamespace, and a container that joins another one's processes")
def shared_pids(kubelet):
    with kubelet.pod(pid=POD) as pod:
        a, b = pod.begin("a", "/bin/sleep", "11111"), pod.begin("b", "/bin/sleep", "22222")
        yield "seen", pod.out(b, "ps -o args | grep [s]leep | sort"), \
            "/bin/sleep 100000000\n/bin/sleep 11111\n/bin/sleep 22222\n"
        yield "killed", pod.out(b, "kill -9 $(ps -o pid,args | awk '/1111[1]/ {print $1}'); "
                                "echo $?"), "0\n"
        yield "end", pod.ended(a).exit_code, 137
        pod.stop(b)
        yield "pod", pod.status().state, cri.SANDBOX_READY
        yield "again", pod.shell("c", "ps -o args | grep -c [s]leep"), (0, "1\n")
    with kubelet.pod() as pod:
        a = pod.begin("a", "/bin/sleep", "33333")
        yield "joined", pod.shell("b", "ps -o pid,args | grep 3333[3]", target=a), \
            (0, "    1 /bin/sleep 33333\n")
        yield "still", pod.container(a).state, cri.CONTAINER_RUNNING


@case("a pod's sysctls, and devices")
def sysctls_and_devices(kubelet):
    with kubelet.pod(sysctls={"net.ipv4.ip_local_port_range": "20000 30000",
                              "kernel.shm_rmid_forced": "1"}) as pod:
        yield "sysctls", pod.shell("a", "cd /proc/sys; cat net/ipv4/ip_local_port_range "
                                   "kernel/shm_rmid_forced"), (0, "20000\t30000\n1\n")
        for rights in ("r", "rw", "rwm"):
            script = ("stat -c '%F %t:%T %a %u:%g' /dev/x/y; head -c1 /dev/x/y | wc -c; echo x >"
                      "/dev/x/y; echo $?; mknod /tmp/n c 1 11; cat /tmp/n >/dev/null; echo $?")
            yield rights, pod.shell(f"b{rights}", script, devices=[cri.Device(
                container_path="/dev/x/y", host_path="/dev/zero", permissions=rights)])


def shim_of(pod):
    """The pid of the shim that a pod's processes have as parent."""
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        with contextlib.suppress(OSError), open(path) as file:
            words = file.read().split("\0")
            if "shim" in words[0] and pod.id in words:
                return int(path.split("/")[2])
    return None


@case("accidents: a shim that is killed takes its pod with it, and a new one can be made")
def killed_shim(kubelet):
    with kubelet.pod() as pod:
        box = pod.begin("a", "/bin/sleep", "44444")
        os.kill(shim_of(pod), signal.SIGKILL)
        row = pod.ended(box)
        yield "end", (row.exit_code, row.reason)
        wait_for(lambda: running("44444") == 0, "the end of its process")
        wait_for(lambda: pod.status().state == cri.SANDBOX_NOTREADY, "the pod's end")
    wait_for(lambda: not kubelet.node.leftovers(), "nothing to be left")
    with kubelet.pod() as pod:
        yield "new", pod.shell("a", "echo new"), (0, "new\n")


@case("accidents: containerd that is started anew finds its pods, and goes on with them")
def restarted(kubelet):
    with kubelet.pod() as pod:
        box = pod.begin("a", "/bin/sh", "-c", TERM)
        kubelet.node.stop()
        kubelet.node.start()
        yield "state", pod.container(box).state, cri.CONTAINER_RUNNING
        yield "exec", pod.exec(box, "echo", "here"), (0, "here\n", "")
        pod.stop(box, 60)
        yield "end", pod.container(box).exit_code, 4


@case("accidents: a container's process killed from outside; the pod's own process")
def killed_process(kubelet):
    with kubelet.pod() as pod:
        box = pod.begin("a", *SLEEP)
        os.kill(pod.pid(box), signal.SIGKILL)
        yield "end", (pod.ended(box).exit_code, pod.container(box).reason), (137, "Error")
        box = pod.begin("b", "/bin/sh", "-c", "echo $$; kill -STOP $$; exec sleep 100000")
        wait_for(lambda: pod.log(box), "the shell")
        pod.stop(box, 1)
        yield "stopped", pod.container(box).exit_code, 137


@case("ten pods at once, each with its own address, and nothing of them is left")
def ten_pods(kubelet):
    def life(number):
        with kubelet.pod() as pod:
            got = pod.shell("a", f"echo {number}; ip -4 -o addr show eth0 | wc -l")
            return got, pod.status().network.ip
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        got = list(pool.map(life, range(10)))
    yield "output", [row[0] for row in got], [(0, f"{i}\n1\n") for i in range(10)]
    yield "addresses", len({row[1] for row in got}), 10
    yield "left", kubelet.node.leftovers(), []


# ── The runs ───────────────────────────────────────────────────────────────

def run_case(function, kubelet):
    """Run a case on a handler: (its facts, what is wrong)."""
    found, wrong = {}, []
    try:
        for name, got, *want in function(kubelet):
            found[name] = got
            if want and got != want[0]:
                wrong.append(f"{name}: got {got!r}, want {want[0]!r}")
    except (grpc.RpcError, AssertionError, OSError, subprocess.SubprocessError) as error:
        words = error.details() if isinstance(error, grpc.RpcError) else error
        wrong.append(f"after {[*found][-1:]}: {type(error).__name__}: {words}")
    return found, wrong


def tolerated(fact):
    """A fact without what OURS says may differ."""
    if isinstance(fact, (tuple, list)):
        return [*map(tolerated, fact)]
    for regex, instead, _ in OURS:
        if isinstance(fact, str):
            fact = re.sub(regex, instead, fact, flags=re.MULTILINE)
    return fact


def differences(ours, theirs):
    """Yield what of a case's facts differs from runc's."""
    for name, want in theirs.items():
        if name in ours and tolerated(ours[name]) != tolerated(want):
            lines = [(got if isinstance(got, str) else str(got)).split("\n")
                     for got in (tolerated(ours[name]), tolerated(want))]
            yield f"{name}: not as runc:\n" + "\n".join(
                difflib.unified_diff(lines[1], lines[0], "runc", "mydocker", "", "", 0, ""))


def test(node, pattern):
    """Run the cases whose title or function matches; returns the number of failures."""
    count = failed = 0
    kubelets = [Kubelet(node, handler) for handler in HANDLERS]
    for title, function in CASES:
        if not re.search(pattern, title) and not re.search(pattern, function.__name__):
            continue
        theirs = {}
        for kubelet in kubelets:
            found, wrong = run_case(function, kubelet)
            handler = kubelet.handler
            if handler == "runc":
                theirs = found
            else:
                wrong += differences(found, theirs)
            count += 1
            failed += bool(wrong)
            print(f"{'not ok' if wrong else 'ok'} {count} - {handler}: {title}")
            for line in wrong:
                print("# " + line.replace("\n", "\n# "), flush=True)
    left = node.leftovers()
    count, failed = count + 1, failed + bool(left)
    print(f"{'not ok' if left else 'ok'} {count} - nothing is left")
    for line in left:
        print(f"# {line}")
    print(f"1..{count}\n{count - failed} passed, {failed} failed, 0 skipped")
    return failed


def bench(node, rounds):
    """Time pods on both handlers in turn, and print the medians."""
    def start(kubelet):
        pod = Pod(kubelet)
        pod.start()
        pod.begin("a", *SLEEP)
        return pod

    times = {}

    def timed(handler, what, action, *words):
        begin = time.perf_counter()
        result = action(*words)
        times.setdefault((what, handler), []).append(time.perf_counter() - begin)
        return result
    kubelets = [Kubelet(node, handler) for handler in HANDLERS]
    for kubelet in kubelets:  # warm
        start(kubelet).remove()
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        for number in range(rounds):
            for kubelet in kubelets[::1 if number % 2 else -1]:
                handler = kubelet.handler
                pod = timed(handler, "one pod: start to running", start, kubelet)
                timed(handler, "one pod: exec", pod.exec, [*pod.names][0], "/bin/true")
                timed(handler, "one pod: stop to removed", pod.remove)
                if number % 4 == 0:
                    pods = timed(handler, "20 pods: start to running", lambda k: list(
                        pool.map(lambda _: start(k), range(20))), kubelet)
                    timed(handler, "20 pods: stop to removed", lambda pods: list(
                        pool.map(Pod.remove, pods)), pods)
    for what in dict.fromkeys(what for what, _ in times):
        ours, theirs = (statistics.median(times[what, handler]) for handler in
                        ("mydocker", "runc"))
        print(f"{what:28} mydocker {ours * 1000:7.0f} ms  runc {theirs * 1000:7.0f} ms  "
              f"{ours / theirs:5.2f} times")
    return 0


def main(scratch, words):
    node = Node(scratch)
    try:
        node.start()
        node.load_images()
        if words[:1] == ["bench"]:
            return bench(node, int((words + ["21"])[1]))
        return test(node, (words + [""])[0])
    finally:
        if node.daemon:
            node.stop()
        node.remove_cgroups()
        if os.environ.get("KEEP"):
            subprocess.run(["cp", f"{scratch}/containerd.log", os.environ["KEEP"]], check=True)


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1], sys.argv[2:]), 1))
