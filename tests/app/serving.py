"""A release served to a test: in a thread, at a free port of this machine."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from dpldm.app.server import application


@contextmanager
def served(release: Path) -> Iterator[str]:
    """Its address, while the block runs."""
    server = uvicorn.Server(uvicorn.Config(application(release, ["127.0.0.1"]), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        for _ in range(200):
            if server.started:
                break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
