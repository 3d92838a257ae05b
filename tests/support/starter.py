"""Processes that share a start: their imports take seconds, so they are forked after them.

JAX has no devices and no threads then; what it reads from its environment is set in each process.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import types
import warnings

WARM = ("ddpm_jax.cli.train", "ddpm_jax.experiment", "sklearn.datasets", "grain", "networks")
"""What is imported before the processes are forked."""


class Process:
    """One of them, with those methods of subprocess.Popen that the tests use."""

    def __init__(self, pid, status, stdout, stderr):
        self.pid, self.returncode = pid, None
        self._status, self.stdout, self.stderr = status, stdout, stderr

    def poll(self):
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout=None):
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(["starter"], timeout)
            self.returncode = os.waitstatus_to_exitcode(int(self._status.readline()))
        return self.returncode

    def communicate(self, timeout=None):
        texts = {}

        def read(stream):
            texts[stream] = stream.read()

        readers = [threading.Thread(target=read, args=(s,)) for s in (self.stdout, self.stderr)]
        for reader in readers:
            reader.start()
        try:
            self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            self.wait()
            raise
        finally:
            for reader in readers:
                reader.join()
            for stream in (self.stdout, self.stderr, self._status):
                stream.close()
        return texts[self.stdout], texts[self.stderr]

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def start(function, *arguments, **config):
    """A process that calls a function, "module:name", and ends with the exit code that it returns.

    `config` are values of jax.config.
    """
    request = json.dumps([function, arguments, config]).encode()
    pipes = [os.pipe() for _ in range(3)]
    socket.send_fds(_server(), [request], [write for _, write in pipes])
    for _, write in pipes:
        os.close(write)
    status, stdout, stderr = (os.fdopen(read) for read, _ in pipes)
    return Process(int(status.readline()), status, stdout, stderr)


@functools.cache
def _server():
    """The way to the process that forks the others; it ends when this process does."""
    here, there = socket.socketpair(type=socket.SOCK_SEQPACKET)
    server = subprocess.Popen(
        [sys.executable, __file__, str(there.fileno())],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"},
        pass_fds=[there.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    there.close()

    @atexit.register
    def end():
        here.close()
        server.wait()

    return here


# JAX lets process 0 alone write to its cache. On a CPU the others have programs of their own, which
# would be compiled anew in each test.
_CACHED = types.SimpleNamespace(global_state=types.SimpleNamespace(process_id=0, client=None))


def _fork():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of JAX, whose threads are not there yet
        return os.fork()


def _serve(requests):
    # A suite in the background of a shell is deaf to interrupts, one under nohup to SIGHUP, and so
    # are their children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    import jax
    import jax._src.compiler as compiler

    compiler.distributed = _CACHED
    for module in WARM:
        importlib.import_module(module)
    gc.freeze()  # no process goes through the objects of all these modules again, also at its end
    while True:
        request, pipes, *_ = socket.recv_fds(requests, 1 << 16, 3)
        if not request:
            return 0
        status, stdout, stderr = pipes
        watcher = _fork()
        if watcher:
            for number in pipes:
                os.close(number)
            os.waitpid(watcher, 0)
            continue
        if _fork():  # the watcher's child watches, so that the server need not wait for it
            os._exit(0)
        child = _fork()
        if child:
            os.close(stdout)
            os.close(stderr)
            requests.close()
            os.write(status, f"{child}\n".encode())
            os.write(status, f"{os.waitpid(child, 0)[1]}\n".encode())
            os._exit(0)
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        for number in pipes:
            os.close(number)
        requests.close()
        function, arguments, config = json.loads(request)
        for name, value in config.items():
            jax.config.update(name, value)
        module, _, name = function.partition(":")
        return getattr(importlib.import_module(module), name)(*arguments)


if __name__ == "__main__":
    sys.exit(_serve(socket.socket(fileno=int(sys.argv[1]))))
