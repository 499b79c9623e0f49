#!/usr/bin/env python3
"""test_store_s3.py: the store against a real S3 server that checks signatures (moto), and through a proxy that breaks
things: bytes come back equal whatever happens, a killed upload is finished by the next process, nothing is left behind,
and every error is one line that says what to do and never shows a secret. Seeds are printed."""
import os
import random
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import s3_server  # noqa: E402

BUILD = os.environ.get("BUILD", "build")
TOOL = os.path.join(BUILD, "test", "store_tool")
PART = 5 << 20
failures = []
spoken = []  # all that the tool ever printed: no secret may be in it


def check(condition, what):
    if not condition:
        failures.append(what)
        print("FAILED:", what)


class Lab:
    def __init__(self, server, folder):
        self.server, self.folder, self.seed = server, folder, random.randrange(1 << 32)
        print("seed", self.seed)
        self.place = f"s3://bucket/r{self.seed}/a"  # a server that is not ours may hold those of earlier tests
        self.rng = random.Random(self.seed)

    def close(self):
        pass

    def path(self, name):
        return os.path.join(self.folder, name)

    def file(self, name, size):
        with open(self.path(name), "wb") as f:
            f.write(self.rng.randbytes(size))
        return self.path(name)

    def env(self, url=None, **extra):
        info = self.server.info
        env = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "TOROID_"))}
        env.update(AWS_ENDPOINT_URL=url or info["url"], AWS_ACCESS_KEY_ID=info["aws_access_key_id"],
                   AWS_SECRET_ACCESS_KEY=info["aws_secret_access_key"], STORE_BACKOFF="0.02", STORE_PART=str(PART),
                   AWS_CONFIG_FILE=self.path("no_config"), no_proxy="127.0.0.1")
        env["AWS_SHARED_CREDENTIALS_FILE"] = self.path("no_credentials")
        for name in ("no_config", "no_credentials"):
            open(self.path(name), "a").close()
        env.update(extra)
        return {k: v for k, v in env.items() if v is not None}

    def tool(self, *args, place=None, url=None, **extra):
        p = subprocess.run([TOOL, place or self.place, *map(str, args)], env=self.env(url, **extra), capture_output=True, text=True,
                           timeout=120)
        spoken.append(p.stdout + p.stderr)
        return p

    def must(self, *args, **kwargs):
        p = self.tool(*args, **kwargs)
        check(p.returncode == 0, f"{args}: exit {p.returncode}: {p.stderr.strip()}")
        return p.stdout

    def same(self, key, name, **kwargs):
        out = self.path("out")
        if os.path.exists(out):
            os.unlink(out)
        self.must("get", key, out, **kwargs)
        try:
            with open(out, "rb") as a, open(self.path(name), "rb") as b:
                check(a.read() == b.read(), f"{key}: other bytes than were put")
        except OSError as e:
            check(False, str(e))

    def no_orphans(self, what):
        check(self.must("orphans", "", 0).strip() == "0", f"{what}: an upload was left open")


def test_round_trips(lab):
    sizes = [0, 1, PART - 1, PART, PART + 1, 2 * PART, 2 * PART + 1, lab.rng.randrange(1, 4 * PART)]
    for i, size in enumerate(sizes):
        lab.file("data", size)
        lab.must("put", f"r/{i}", lab.path("data"), lab.path("resume"))
        lab.same(f"r/{i}", "data")
        check(not os.path.exists(lab.path("resume")), "the resume file is left")
    listed = lab.must("list", "r/").split("\n")[:-1]
    check(listed == [f"{size} r/{i}" for i, size in enumerate(sizes)], f"list: {listed}")
    lab.file("data", 100 << 20)
    lab.must("put", "r/large", lab.path("data"), STORE_PART=str(16 << 20))
    lab.same("r/large", "data")
    for i in range(len(sizes)):
        lab.must("delete", f"r/{i}")
    lab.must("delete", "r/large")
    lab.must("delete", "r/large")
    check(lab.must("list") == "", "deleted objects are listed")
    check("absent" in lab.must("stat", "r/0"), "a deleted object is found")
    lab.no_orphans("round trips")


def test_small_objects(lab):
    lab.file("a", 4096), lab.file("b", 4096)
    check(lab.must("put-new", "s/COMMIT", lab.path("a")) == "put\n", "put-new of a new object")
    check(lab.must("put-new", "s/COMMIT", lab.path("a")) == "put\n", "the same bytes again are ours")
    check(lab.must("put-new", "s/COMMIT", lab.path("b")) == "existed\n", "put-new of another object")
    lab.same("s/COMMIT", "a")
    p = lab.tool("get", "s/COMMIT", lab.path("out"), 4090, 10)
    check(p.returncode == 1 and "ends before" in p.stderr and "attempts" not in p.stderr, f"behind the end: {p.stderr}")
    lab.must("get", "s/COMMIT", lab.path("out"), 4000, 96)
    check(open(lab.path("out"), "rb").read() == open(lab.path("a"), "rb").read()[4000:], "a range at the end")
    for i in range(3):
        lab.file("c", 3000)
        for plan in ("lost", "503", "reset"):
            faults = iter([None, plan])  # after the HEAD, at the PUT
            proxy = s3_server.Proxy(lab.server.port, lambda request: next(faults, None))
            check(lab.must("put-new", f"s/{plan}{i}", lab.path("c"), url=proxy.url) == "put\n", f"put-new, {plan}")
            lab.same(f"s/{plan}{i}", "c")
            check(proxy.faults == [plan], f"{plan}: {proxy.faults}")
            proxy.close()


def test_killed(lab):
    """SIGKILL anywhere; the next process goes on, and sends again only what was under way."""
    lab.file("data", 12 * PART + 777)
    proxy = s3_server.Proxy(lab.server.port)
    kills = 0
    for attempt in range(40):
        env = lab.env(proxy.url, STORE_RATE=str(20 << 20) if attempt < 4 else None, STORE_PARTS="3")
        p = subprocess.Popen([TOOL, lab.place, "put", "k/data", lab.path("data"), lab.path("resume")], env=env,
                             stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        # the first before, at or just after the upload gets its id; the others anywhere in it
        time.sleep(lab.rng.uniform(0, 0.1) if attempt == 0 else lab.rng.uniform(0.2, 1.2))
        if p.poll() is None and attempt < 4:
            p.send_signal(signal.SIGKILL)
            kills += 1
        errors = p.stderr.read().decode()
        if p.wait(120) == 0:
            break
        check(p.returncode == -signal.SIGKILL, f"exit {p.returncode}: {errors}")
    lab.same("k/data", "data")
    lab.no_orphans("killed uploads")
    check(not os.path.exists(lab.path("resume")), "the resume file is left")
    parts = [size for kind, size in proxy.requests if kind == "part"]
    sent = sum(parts) / (12 * PART + 777)
    print(f"killed {kills} times, {len(parts)} parts sent for 13, {sent:.2f} times the bytes")
    check(len(parts) <= 13 + 3 * kills, f"{len(parts)} parts were sent: finished ones were sent again")
    proxy.close()


def test_resume_after_loss(lab):
    """The server forgot the upload; the resume file is garbage; the object is complete but the file remained."""
    lab.file("data", 3 * PART)
    proxy = s3_server.Proxy(lab.server.port, lambda r: "503" if r.kind == "complete" else None)
    p = lab.tool("put", "l/data", lab.path("data"), lab.path("resume"), url=proxy.url, STORE_ATTEMPTS="2")
    check(p.returncode == 1 and "503" in p.stderr and os.path.exists(lab.path("resume")), f"no resume: {p.stderr}")
    resume = open(lab.path("resume"), "rb").read()
    age = str(10**12)  # moto says that every upload began in 2010
    check(lab.must("orphans", "", age).strip() == "0", "a young upload was aborted")
    check(lab.must("orphans", "", 0).strip() == "1", "the upload was not found")
    proxy.plan = None
    lab.must("put", "l/data", lab.path("data"), lab.path("resume"), url=proxy.url)
    lab.same("l/data", "data")
    open(lab.path("resume"), "wb").write(resume)  # as if killed between Complete and unlink
    proxy.requests.clear()
    lab.must("put", "l/data", lab.path("data"), lab.path("resume"), url=proxy.url)
    check(proxy.requests and not any(kind == "part" for kind, _ in proxy.requests), "what was complete was sent again")
    proxy.close()
    open(lab.path("resume"), "wb").write(b"garbage\n" + resume)
    lab.must("put", "l/data", lab.path("data"), lab.path("resume"))
    lab.same("l/data", "data")
    lab.no_orphans("resume after loss")


def test_faults(lab):
    """Each fault alone at each kind of request, then storms of all of them."""
    lab.file("data", 2 * PART + 1)
    for kind, faults in (("part", ("503", "500", "slowdown", "early", "reset", "lost", "stall")),
                         ("begin", ("503", "lost")), ("complete", ("503", "lost", "error200", "truncate"))):
        for fault in faults:
            once = [fault]
            proxy = s3_server.Proxy(lab.server.port, lambda r: once.pop() if r.kind == kind and once else None)
            lab.must("put", "f/data", lab.path("data"), lab.path("resume"), url=proxy.url, STORE_TIMEOUT="1.5")
            check(proxy.faults == [fault], f"{kind}, {fault}: did not happen")
            lab.same("f/data", "data")
            lab.must("delete", "f/data")
            proxy.close()
    lab.no_orphans("faults")
    lab.must("put", "f/data", lab.path("data"))
    for fault in ("503", "reset", "truncate", "stall", "lost"):
        once = [fault]
        proxy = s3_server.Proxy(lab.server.port, lambda r: once.pop() if r.kind == "get" and once else None)
        lab.same("f/data", "data", url=proxy.url, STORE_TIMEOUT="1.5")
        proxy.close()
    lab.file("data", 6 * PART + 12345)
    faults = ["503", "500", "slowdown", "early", "reset", "lost", "truncate", "error200"]
    injected = 0
    for share in (0.2, 0.5):
        proxy = s3_server.Proxy(lab.server.port, s3_server.storm(lab.rng.random(), share, faults))
        lab.must("put", "f/storm", lab.path("data"), lab.path("resume"), url=proxy.url)
        lab.same("f/storm", "data", url=proxy.url)
        print(f"storm {share}: {len(proxy.faults)} faults")
        injected += len(proxy.faults)
        proxy.close()
    check(injected > 0, "no storm")
    lab.must("delete", "f/storm")
    lab.must("put", "f/storm", lab.path("data"), lab.path("resume"))  # ends what a storm made unknown
    lab.no_orphans("storms")


def test_down(lab):
    lab.file("data", 100)
    down = s3_server.Proxy(lab.server.port, lambda r: "503")
    p = lab.tool("put", "d/data", lab.path("data"), url=down.url, STORE_ATTEMPTS="3")
    check(p.returncode == 1 and "after 3 attempts" in p.stderr and "503" in p.stderr, p.stderr)
    check(len(down.faults) == 3, f"{len(down.faults)} attempts")
    down.close()
    p = lab.tool("put", "d/data", lab.path("data"), url=down.url, STORE_ATTEMPTS="2")
    check(p.returncode == 1 and "AWS_ENDPOINT_URL" in p.stderr, p.stderr)
    lab.file("data", 8 * PART)
    proxy = s3_server.Proxy(lab.server.port)
    p = subprocess.Popen([TOOL, lab.place, "put", "d/slow", lab.path("data"), lab.path("resume")],
                         env=lab.env(proxy.url, STORE_RATE="2000000"), stderr=subprocess.PIPE, text=True)
    while not os.path.exists(lab.path("resume")) and p.poll() is None:
        time.sleep(0.05)
    p.send_signal(signal.SIGTERM)
    errors = p.stderr.read()
    check(p.wait(60) == 1 and "stopped" in errors, f"a stopped upload: {errors}")
    check(os.path.exists(lab.path("resume")), "a stopped upload cannot be resumed")
    lab.must("put", "d/slow", lab.path("data"), lab.path("resume"))
    lab.same("d/slow", "data")
    lab.no_orphans("stopped")
    proxy.close()


def test_keys_and_clock(lab):
    info, shared = lab.server.info, lab.path("credentials")

    def write_keys(secret):
        with open(shared, "w") as f:
            f.write(f"[default]\naws_access_key_id = {info['aws_access_key_id']}\naws_secret_access_key = {secret}\n")

    write_keys("old-secret-of-yesterday")

    def renew(request):
        if write_keys.done:
            return None
        write_keys.done = True
        write_keys(info["aws_secret_access_key"])
        return "expired"

    write_keys.done = False
    proxy = s3_server.Proxy(lab.server.port, renew)
    none = dict(AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None)
    lab.must("check", url=proxy.url, AWS_SHARED_CREDENTIALS_FILE=shared, **none)
    check(proxy.faults == ["expired"], "renewed keys")
    proxy.close()
    once = ["skewed"]
    proxy = s3_server.Proxy(lab.server.port, lambda r: once.pop() if once else None)
    p = lab.tool("check", url=proxy.url)
    check(p.returncode == 0 and p.stderr.count("warning") == 1 and "set the clock" in p.stderr, f"clock: {p.stderr}")
    proxy.close()
    skewed = s3_server.Proxy(lab.server.port, lambda r: "skewed")
    p = lab.tool("check", url=skewed.url)
    check(p.returncode == 1 and "RequestTimeTooSkewed" in p.stderr and len(skewed.faults) == 2, p.stderr)
    skewed.close()


def test_errors(lab):
    lines = [
        (dict(place="s3://no-such-bucket/x"), "make the bucket"),
        (dict(AWS_SECRET_ACCESS_KEY="wrong-secret-in-clear"), "does not belong to"),
        (dict(AWS_ACCESS_KEY_ID="AKIANOBODY"), "AWS_ACCESS_KEY_ID"),
        (dict(AWS_ACCESS_KEY_ID=None), "set both"),
        (dict(AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None), "no keys for S3"),
        (dict(url="http://no-such-host.invalid", STORE_ATTEMPTS="2"), "check AWS_ENDPOINT_URL"),
        (dict(url="ftp://x"), "neither http"),
        (dict(place="s3://x"), "bucket"),
    ]
    for kwargs, expected in lines:
        p = lab.tool("check", **kwargs)
        check(p.returncode == 1 and expected in p.stderr and p.stderr.count("\n") == 1, f"{kwargs}: {p.stderr!r}")
    p = lab.tool("get", "nothing/here", lab.path("out"), 0, 10)
    check(p.returncode == 1 and "there is no" in p.stderr, p.stderr)
    everything = "".join(spoken)
    for secret in (lab.server.info["aws_secret_access_key"], "wrong-secret-in-clear", "old-secret-of-yesterday"):
        check(secret not in everything, "a secret was printed")


def main(tools, make_lab, tests):
    """Runs tests(lab) one after the other against a server; what to exit with."""
    for tool in tools:
        subprocess.run(["make", f"BUILD={BUILD}", tool], check=True, stdout=subprocess.DEVNULL)
    p = subprocess.run([TOOL, "s3://bucket", "check"], capture_output=True, text=True)
    if "needs libcurl" in p.stderr:
        print("built without libcurl")
        return 77
    try:
        import moto.server  # noqa: F401
    except ImportError:
        print("no moto (pip install 'moto[server]')")
        return 77
    server = s3_server.open_server()
    try:
        with tempfile.TemporaryDirectory() as folder:
            lab = make_lab(server, folder)
            for test in tests:
                start = time.monotonic()
                test(lab)
                print(f"{test.__name__}: {time.monotonic() - start:.1f} s")
            lab.close()
    finally:
        server.close()
    print(f"{len(failures)} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main([TOOL], Lab, (test_round_trips, test_small_objects, test_killed, test_resume_after_loss, test_faults, test_down,
                                test_keys_and_clock, test_errors)))
