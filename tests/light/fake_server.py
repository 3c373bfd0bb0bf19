"""A small server that speaks vLLM's and SGLang's forms: its steps take as long as a law says, its drafts are accepted as a curve says."""

import json
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "org/model"


class FakeServer(ThreadingHTTPServer):
    """`lookahead` 0: without a draft. A step of n requests takes `step_s` · (1 + n/16) · (1 + lookahead/8) seconds."""

    daemon_threads = True

    def __init__(
        self,
        lookahead: int = 0,
        survival: tuple[float, ...] = (0.7, 0.5, 0.3),
        engine: str = "vllm",
        step_s: float = 0.001,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lookahead, self.survival, self.engine, self.step_s = lookahead, survival, engine, step_s
        self.lock, self.rng = threading.Lock(), random.Random(0)
        self.running = self.posts = self.generated = self.requests = self.prompts = self.drafts = self.accepted = 0
        self.by_position = [0] * lookahead
        self.metrics = True
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is its own affair."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> "FakeServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def page(self) -> str:
        if self.engine == "sglang":
            tau = 1 + self.accepted / self.drafts if self.drafts else 0.0
            values = {
                "generation_tokens_total": self.generated, "num_requests_total": self.requests, "prompt_tokens_total": self.prompts,
                "num_running_reqs": self.running, "num_queue_reqs": 0, "spec_accept_length": tau,
            }  # fmt: skip
            return "".join(f'sglang:{name}{{model_name="{MODEL}"}} {float(value)}\n' for name, value in values.items())
        values = {
            "generation_tokens_total": self.generated, "request_success_total": self.requests, "prompt_tokens_total": self.prompts,
            "num_requests_running": self.running, "num_requests_waiting": 0,
        }  # fmt: skip
        if self.lookahead:
            values |= {
                "spec_decode_num_drafts_total": self.drafts, "spec_decode_num_draft_tokens_total": self.drafts * self.lookahead,
                "spec_decode_num_accepted_tokens_total": self.accepted,
            }  # fmt: skip
        lines = [f'vllm:{name}{{engine="0"}} {float(value)}' for name, value in values.items()]
        for i, value in enumerate(self.by_position):
            lines.append(
                f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",position="{i}"}} {float(value)}'
            )
        return "\n".join(lines) + "\n"

    def step(self) -> int:
        """Tokens of one request's step, counted."""
        with self.lock:
            running, level = self.running, self.rng.random()
            accepted = sum(level < share for share in self.survival[: self.lookahead])
            if self.lookahead:
                self.drafts, self.accepted = self.drafts + 1, self.accepted + accepted
                for i in range(accepted):
                    self.by_position[i] += 1
        time.sleep(self.step_s * (1 + running / 16) * (1 + self.lookahead / 8))
        return accepted + 1


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        fake = self.server
        card = {"id": MODEL, "object": "model", "owned_by": fake.engine, "root": MODEL}
        pages: dict[str, Any] = {"/v1/models": {"object": "list", "data": [card]}}
        if fake.engine == "vllm":
            pages["/version"] = {"version": "0.32.0"}
        else:
            pages["/server_info"] = {
                "version": "0.5.12", "model_path": MODEL, "tp_size": 1, "speculative_algorithm": "EAGLE3" if fake.lookahead else None,
                "speculative_num_steps": fake.lookahead or None, "speculative_eagle_topk": 1,
                "speculative_num_draft_tokens": fake.lookahead + 1,
            }  # fmt: skip
        if self.path == "/metrics" and fake.metrics:
            self._reply(fake.page().encode())
        elif self.path in pages:
            self._reply(json.dumps(pages[self.path]).encode())
        else:
            self._reply(b"{}", 404)

    def _reply(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        fake = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with fake.lock:
            fake.running, fake.posts = fake.running + 1, fake.posts + 1
        most, done, counts = body["max_tokens"], 0, [0, 0, 0]
        while done < most:
            tokens = min(fake.step(), most - done)
            done += tokens
            counts = [counts[0] + 1, counts[1] + fake.lookahead, counts[2] + tokens - 1]
            key = {"delta": {"content": "word " * tokens}} if "messages" in body else {"text": "word " * tokens}
            self._event({"choices": [{"index": 0, **key}]})
            with fake.lock:
                fake.generated += tokens
        with fake.lock:
            fake.running, fake.requests, fake.prompts = fake.running - 1, fake.requests + 1, fake.prompts + 20
        if fake.engine == "sglang" and fake.lookahead:
            told = {
                "spec_verify_ct": counts[0],
                "spec_num_proposed_drafts": counts[1],
                "spec_num_correct_drafts": counts[2],
            }
            self._event({"choices": [], "sglext": {"spec_tokens_details": told}})
        self._event({"choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": done}})
        self._chunk(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, event: dict[str, Any]) -> None:
        self._chunk(b"data: " + json.dumps(event).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
