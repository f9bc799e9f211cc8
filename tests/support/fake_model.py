"""A model on loopback that does what the prompt says, line by line, for real agent programs.

    RUN: command        the agent's shell runs it
    WRITE: path text    the agent's tool writes the file
    SAY: text           the answer, at the end
    STATUS: 529         every request is answered with this status

What was done already is read off the conversation, so that it keeps no state: any number of agents
may talk to it at once. It speaks Anthropic's messages, OpenAI's responses and chat completions.
"""

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

STEP = re.compile(r"^(RUN|WRITE): (.+)$", re.MULTILINE)
COST = {"input_tokens": 1000, "output_tokens": 100}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "FakeModel"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(200, {})

    def do_GET(self) -> None:
        self.answer(200, {"data": [], "models": [], "object": "list"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or b"{}")
        path = self.path.partition("?")[0]
        self.server.requests.append((path, body))
        if path.endswith("count_tokens"):
            self.answer(200, {"input_tokens": 10})
            return
        text = json.dumps(body, ensure_ascii=False).replace("\\n", "\n").replace('\\"', '"')
        if status := re.findall(r"^.*STATUS: (\d+)", text, re.MULTILINE):
            error = {"type": "overloaded_error", "message": "Overloaded"}
            if status[0] == "401":
                error = {"type": "authentication_error", "message": "invalid x-api-key"}
            self.answer(int(status[0]), {"type": "error", "error": error})
            return
        if path.endswith("/messages"):
            self.answer_messages(body)
        elif path.endswith("/responses"):
            self.answer_responses(body)
        elif path.endswith("/chat/completions"):
            self.answer_completions(body)
        elif "enerateContent" in path:
            self.answer_contents(path, body)
        else:
            self.answer(200, {})

    def answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def stream(
        self, events: list[dict[str, Any]], *, names: bool = True, done: bool = True
    ) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for event in events:
            head = f"event: {event['type']}\n" if names else ""
            self.wfile.write(f"{head}data: {json.dumps(event)}\n\n".encode())
        if done and not names:
            self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    # Anthropic

    def answer_messages(self, body: dict[str, Any]) -> None:
        prompt, done = "", 0
        for message in body["messages"]:
            content = message["content"]
            for part in (
                [{"type": "text", "text": content}] if isinstance(content, str) else content
            ):
                done += part["type"] == "tool_result"
                if part["type"] == "text" and message["role"] == "user":
                    prompt += part["text"] + "\n"
        step = next_step(prompt, done) if body.get("tools") else None
        block: dict[str, Any] = {"type": "text", "text": ""}
        delta = {"type": "text_delta", "text": reply_to(prompt)}
        if step:
            system = json.dumps(body.get("system"))
            names = [tool.get("name") for tool in body["tools"]]
            given = anthropic_tool(step, system + prompt, names)
            block = {"type": "tool_use", "id": f"toolu_{done}", "name": given[0], "input": {}}
            delta = {"type": "input_json_delta", "partial_json": json.dumps(given[1])}
        head = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": COST,
        }
        stop = "tool_use" if step else "end_turn"
        if not body.get("stream"):
            text = [{"type": "text", "text": reply_to(prompt)}]
            self.answer(200, {**head, "content": text, "stop_reason": "end_turn"})
            return
        self.stream(
            [
                {"type": "message_start", "message": head},
                {"type": "content_block_start", "index": 0, "content_block": block},
                {"type": "content_block_delta", "index": 0, "delta": delta},
                {"type": "content_block_stop", "index": 0},
                {
                    "type": "message_delta",
                    "delta": {"stop_reason": stop, "stop_sequence": None},
                    "usage": {"output_tokens": 100},
                },
                {"type": "message_stop"},
            ]
        )

    # OpenAI

    def answer_responses(self, body: dict[str, Any]) -> None:
        prompt, done = "", 0
        for item in body["input"] if isinstance(body["input"], list) else []:
            done += str(item.get("type", "")).endswith("call_output")
            if item.get("role") == "user":
                prompt += "".join(part.get("text", "") for part in item["content"]) + "\n"
        step = next_step(prompt, done)
        if step:
            item = openai_call(step, [tool.get("name") for tool in body.get("tools", [])], done)
        else:
            text = {"type": "output_text", "text": reply_to(prompt), "annotations": []}
            item = {"type": "message", "role": "assistant", "id": "msg_1", "content": [text]}
        usage = {
            **COST,
            "total_tokens": 1100,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        }
        response = {"id": "resp_1", "object": "response", "status": "completed", "output": [item]}
        self.stream(
            [
                {"type": "response.created", "response": {"id": "resp_1"}},
                {"type": "response.output_item.done", "output_index": 0, "item": item},
                {"type": "response.completed", "response": {**response, "usage": usage}},
            ]
        )

    def answer_completions(self, body: dict[str, Any]) -> None:
        prompt, done = "", 0
        for message in body["messages"]:
            done += message["role"] == "tool"
            if message["role"] == "user":
                content = message["content"]
                parts = content if isinstance(content, list) else [{"text": content}]
                prompt += "".join(part.get("text", "") for part in parts) + "\n"
        tools = [tool["function"]["name"] for tool in body.get("tools", [])]
        step = next_step(prompt, done) if tools else None
        delta: dict[str, Any] = {"role": "assistant", "content": reply_to(prompt)}
        if step:
            # A tool that it may not use is not offered to it by qwen: it asks for it all the same.
            name = "bash" if "bash" in tools else "run_shell_command"
            values = {"command": as_shell(step), "description": "as told"}
            if name == "run_shell_command":
                values["is_background"] = False  # type: ignore[assignment]
            function = {"name": name, "arguments": json.dumps(values)}
            call = {"index": 0, "id": f"call_{done}", "type": "function", "function": function}
            delta = {"role": "assistant", "content": None, "tool_calls": [call]}
        usage = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
        if not body.get("stream"):
            message = {"role": "assistant", "content": reply_to(prompt)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self.answer(200, {**chunk, "choices": [choice], "usage": usage})
            return
        reason = "tool_calls" if step else "stop"
        self.stream(
            [
                {**chunk, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]},
                {**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]},
                {**chunk, "choices": [], "usage": usage},
            ],
            names=False,
        )

    # Google

    def answer_contents(self, path: str, body: dict[str, Any]) -> None:
        prompt, done = "", 0
        for content in body["contents"]:
            for part in content["parts"]:
                done += "functionResponse" in part
                if content.get("role") == "user":
                    prompt += part.get("text", "") + "\n"
        step = next_step(prompt, done) if body.get("tools") else None
        part = {"text": reply_to(prompt)}
        if step:
            part = {"functionCall": {"name": "run_shell_command", "args": {}}}
            part["functionCall"]["args"] = {"command": as_shell(step)}
        candidate = {"index": 0, "finishReason": "STOP", "content": {"role": "model"}}
        candidate["content"]["parts"] = [part]  # type: ignore[index]
        usage = {"promptTokenCount": 1000, "candidatesTokenCount": 100, "totalTokenCount": 1100}
        answer = {"candidates": [candidate], "usageMetadata": usage}
        if "stream" in path:
            self.stream([answer], names=False, done=False)
        else:
            self.answer(200, answer)


def next_step(prompt: str, done: int) -> tuple[str, str] | None:
    steps = STEP.findall(prompt)
    return steps[done] if done < len(steps) else None


def reply_to(prompt: str) -> str:
    found = re.findall(r"^SAY: (.+)$", prompt, re.MULTILINE)
    return found[-1] if found else "Done."


def as_shell(step: tuple[str, str]) -> str:
    kind, words = step
    path, _, text = words.partition(" ")
    return words if kind == "RUN" else f"printf '%s\\n' '{text}' > {path}"


def anthropic_tool(
    step: tuple[str, str], context: str, tools: list[str | None]
) -> tuple[str, dict[str, str]]:
    kind, words = step
    if kind == "RUN" or "Write" not in tools:
        name = "Bash" if "Bash" in tools else "bash"
        return name, {"command": as_shell(step), "description": "as told"}
    path, _, text = words.partition(" ")
    place = re.findall(r"[Ww]orking directory: ([^\s\\\"]+)", context)
    return "Write", {"file_path": f"{place[0] if place else ''}/{path}", "content": text + "\n"}


def openai_call(step: tuple[str, str], tools: list[str | None], done: int) -> dict[str, Any]:
    command = as_shell(step)
    name, given = "shell", {"command": ["bash", "-c", command]}
    if "exec_command" in tools:
        name, given = "exec_command", {"cmd": command}  # type: ignore[dict-item]
    elif "shell_command" in tools:
        name, given = "shell_command", {"command": command}  # type: ignore[dict-item]
    return {
        "type": "function_call",
        "id": f"fc_{done}",
        "call_id": f"call_{done}",
        "name": name,
        "arguments": json.dumps(given),
    }


class FakeModel(ThreadingHTTPServer):
    """What was asked is in `requests`, as (path, body)."""

    daemon_threads = True
    requests: list[tuple[str, dict[str, Any]]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextlib.contextmanager
def fake_model() -> Iterator[FakeModel]:
    model = FakeModel(("127.0.0.1", 0), Handler)
    model.requests = []
    thread = threading.Thread(target=model.serve_forever, daemon=True)
    thread.start()
    try:
        yield model
    finally:
        model.shutdown()
        model.server_close()
        thread.join()
