"""A model of the hub that two processes load at once, from a server on this machine that speaks the hub's protocol."""

import importlib
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub.constants

from forks import needs_fork, run_in_forks
from model_folders import save_model
from sememe import VideoAsPromptPipeline
from sememe.checkpoints.fingerprint import fingerprint_model
from sememe.checkpoints.zoo import find_folder
from sememe.files import hash_file

COMMIT = "0123456789012345678901234567890123456789"


def load(hub: dict[str, str], output: Path) -> None:
    """Load the model and write what it is; the client of the hub reads its environment when it is imported."""
    os.environ |= hub
    importlib.reload(huggingface_hub.constants)
    pipe = VideoAsPromptPipeline.from_pretrained("owner/model")
    found = fingerprint_model(find_folder("owner/model", local_files_only=True))
    num_parameters = sum(each.numel() for each in pipe.transformer.parameters())
    output.write_text(json.dumps([found.sha256, found.revision, num_parameters]))


@contextmanager
def serve(folder: Path, num_clients: int) -> Iterator[tuple[str, Counter[str]]]:
    """Serves a folder as owner/model; all clients are answered once all have asked. Counts files that were sent."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    sent, together = Counter[str](), threading.Barrier(num_clients, timeout=300)

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            if path.startswith("/api/models/owner/model/tree/"):
                entries = [
                    {"type": "file", "path": name, "size": path.stat().st_size, "oid": hash_file(path)[:40]}
                    for name, path in files.items()
                ]
                self.answer(json.dumps(entries).encode())
            elif path.startswith("/api/models/owner/model"):
                together.wait()
                about = {"id": "owner/model", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
                self.answer(json.dumps(about).encode())
            else:
                name = path.removeprefix(f"/owner/model/resolve/{COMMIT}/")
                self.answer(files[name].read_bytes(), hash_file(files[name]))
                sent[name] += self.command == "GET"

        def answer(self, content: bytes, etag: str | None = None) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-Repo-Commit", COMMIT)
            if etag is not None:
                self.send_header("ETag", f'"{etag}"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the stock signature)
            """Nothing on standard error."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", sent
    finally:
        server.shutdown()
        server.server_close()


@needs_fork
def test_two_processes_load_a_model_of_the_hub_at_once(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    outputs = [tmp_path / "first.json", tmp_path / "second.json"]
    with serve(folder, num_clients=2) as (address, sent):
        hub = {"HF_ENDPOINT": address, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
        hub |= {"HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
        run_in_forks([partial(load, hub, output) for output in outputs], tmp_path)
    first, second = (json.loads(output.read_text()) for output in outputs)
    assert first == second
    assert first[:2] == [fingerprint_model(folder).sha256, COMMIT]
    # Each file went over the wire once, and none that loading does not read.
    assert set(sent.values()) == {1}
    assert {"model_index.json", "transformer/diffusion_pytorch_model.safetensors"} <= sent.keys()
    assert "README.md" not in sent
