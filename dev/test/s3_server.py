"""What the tests of S3 share: a moto server that checks signatures, and a proxy that injects faults.

run_server(port): moto in this process, behind an IAM user; its keys and URL as JSON on stdout. Started by Server as a
process of its own (python s3_server.py PORT).
Proxy(upstream): forwards requests; plan(request) names the fault of each, None for none:
  503 / 500 / slowdown  an error answer (slowdown: 503 with Retry-After: 0), the request read first
  early                 503 without reading the request's body, then the connection is closed
  reset                 the connection is reset in the middle of the request's body
  lost                  the server does it, the answer never arrives
  truncate              half of the answer's body, then the connection is closed
  stall                 no answer, until the client leaves
  error200              200 with an <Error>, as CompleteMultipartUpload may; nothing is done
  expired / skewed      403 ExpiredToken / RequestTimeTooSkewed (Date an hour ahead)
"""
import http.client
import json
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def run_server(port):
    import boto3
    from moto.iam import access_control
    from moto.server import ThreadedMotoServer

    # moto verifies what is left of the query after decoding it, so '/' in a parameter fails even for boto3
    def encode_again(self, *args, **kwargs):
        path, _, query = self._path.partition("?")
        if query:
            pairs = urllib.parse.parse_qsl(query, keep_blank_values=True)
            self._path = path + "?" + urllib.parse.urlencode(pairs, quote_via=urllib.parse.quote, safe="-_.~")
        return original(self, *args, **kwargs)

    original = access_control.IAMRequestBase._create_aws_request
    access_control.IAMRequestBase._create_aws_request = encode_again
    ThreadedMotoServer(port=port, verbose=False).start()
    url = f"http://127.0.0.1:{port}"
    for _ in range(300):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            time.sleep(0.1)
    common = dict(endpoint_url=url, region_name="us-east-1")
    iam = boto3.client("iam", aws_access_key_id="any", aws_secret_access_key="any", **common)
    iam.create_user(UserName="writer")
    key = iam.create_access_key(UserName="writer")["AccessKey"]
    allow = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
    iam.put_user_policy(UserName="writer", PolicyName="all", PolicyDocument=json.dumps(allow))
    keys = dict(aws_access_key_id=key["AccessKeyId"], aws_secret_access_key=key["SecretAccessKey"])
    boto3.client("s3", **keys, **common).create_bucket(Bucket="bucket")
    print(json.dumps({"url": url, "port": port, **keys}), flush=True)
    sys.stdin.read()  # until the parent closes it, or dies


class OtherServer:
    """The server that S3_LAB_ENV names, a file as dev/s3_lab writes it, in place of moto."""

    def __init__(self, path):
        import boto3
        from botocore.config import Config

        words = [word.partition("=") for word in open(path).read().split()]
        env = {name: value for name, _, value in words}
        self.info = {"url": env["AWS_ENDPOINT_URL"], "aws_access_key_id": env["AWS_ACCESS_KEY_ID"],
                     "aws_secret_access_key": env["AWS_SECRET_ACCESS_KEY"]}
        self.port = urllib.parse.urlsplit(self.info["url"]).port
        s3 = boto3.client("s3", endpoint_url=self.info["url"], region_name="us-east-1",
                          aws_access_key_id=self.info["aws_access_key_id"],
                          aws_secret_access_key=self.info["aws_secret_access_key"],
                          config=Config(s3={"addressing_style": "path"}, signature_version="s3v4"))
        if not any(b["Name"] == "bucket" for b in s3.list_buckets()["Buckets"]):
            s3.create_bucket(Bucket="bucket")

    def close(self):
        pass


def open_server():
    return OtherServer(os.environ["S3_LAB_ENV"]) if os.environ.get("S3_LAB_ENV") else Server()


class Server:
    def __init__(self):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        env = dict(os.environ, INITIAL_NO_AUTH_ACTION_COUNT="3", no_proxy="127.0.0.1")
        env.pop("AWS_PROFILE", None)
        self.process = subprocess.Popen([sys.executable, __file__, str(port)], env=env, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the moto server did not start")
        self.info = json.loads(line)
        self.port = port

    def close(self):
        self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Request:
    def __init__(self, handler):
        self.method, self.path, self.headers = handler.command, handler.path, handler.headers
        self.bytes = int(handler.headers.get("Content-Length") or 0)
        query = urllib.parse.urlsplit(self.path).query
        self.query = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        if self.method == "PUT" and "partNumber" in self.query:
            self.kind = "part"
        elif self.method == "POST":
            self.kind = "begin" if "uploads" in self.query else "complete"
        else:
            self.kind = self.method.lower()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def reset(self):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def answer_error(self, status, code, headers=(), close=False):
        body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>injected</Message></Error>'.encode()
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        if close:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def forward(self, body):
        connection = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def serve(self):
        request = Request(self)
        proxy = self.server.proxy
        fault = proxy.decide(request)
        if fault == "early":
            return self.answer_error(503, "SlowDown", close=True)
        if fault == "reset":
            self.rfile.read(request.bytes // 2)
            return self.reset()
        body = self.rfile.read(request.bytes)
        if len(body) < request.bytes:  # the client was killed
            return self.reset()
        proxy.count(request, len(body))
        if fault in ("503", "500"):
            return self.answer_error(int(fault), "ServiceUnavailable" if fault == "503" else "InternalError")
        if fault == "slowdown":
            return self.answer_error(503, "SlowDown", [("Retry-After", "0")])
        if fault == "expired":
            return self.answer_error(403, "ExpiredToken")
        if fault == "skewed":
            ahead = self.date_time_string(time.time() + 3600)
            return self.answer_error(403, "RequestTimeTooSkewed", [("Date", ahead)])
        if fault == "error200":
            return self.answer_error(200, "InternalError")
        if fault == "stall":
            self.connection.settimeout(30)
            try:
                self.connection.recv(1)
            except OSError:
                pass
            return self.reset()
        status, headers, data = self.forward(body)
        if fault == "lost":
            return self.reset()
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding", "content-length", "keep-alive"):
                self.send_header(name, value)
        length = dict((n.lower(), v) for n, v in headers).get("content-length", len(data))
        self.send_header("Content-Length", str(length if self.command == "HEAD" else len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return None
        if fault == "truncate" and data:
            self.wfile.write(data[:len(data) // 2])
            return self.reset()
        self.wfile.write(data)
        return None

    def serve_safely(self):
        try:
            self.serve()
        except OSError:
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = serve_safely


class HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request, client_address):
        pass


class Proxy:
    """plan: a function of a Request that names a fault; requests: (kind, bytes) of what was read whole."""

    def __init__(self, upstream, plan=None):
        self.plan, self.requests, self.faults = plan, [], []
        self.lock = threading.Lock()
        self.server = HttpServer(("127.0.0.1", 0), Handler)
        self.server.upstream, self.server.proxy = upstream, self
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def decide(self, request):
        with self.lock:
            fault = self.plan(request) if self.plan else None
            if fault:
                self.faults.append(fault)
            return fault

    def count(self, request, size):
        with self.lock:
            self.requests.append((request.kind, size))

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def storm(seed, share, faults):
    """A plan: this share of the requests fails, each with one of the faults, but never 5 times in a row."""
    rng, run = random.Random(seed), [0]

    def plan(request):
        if run[0] < 4 and rng.random() < share:
            run[0] += 1
            return rng.choice([f for f in faults if f != "error200" or request.kind == "complete"])
        run[0] = 0
        return None

    return plan


if __name__ == "__main__":
    run_server(int(sys.argv[1]))
