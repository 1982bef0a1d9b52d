"""Load test of the server: `python -m bifrons.eval.bench.server [--requests 200] [--endurance 1000]`.

Starts `bifrons serve` with the embedded model and prints a table: throughput of 16 requests at once against
one after the other; mixed requests of 32 clients, each compared with its answer alone; clients that
disconnect midway; resident memory over many requests.
"""

import argparse
import asyncio
import base64
import hashlib
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

import httpx
from PIL import Image, ImageDraw

MODEL = "janus-nano"
QUESTIONS = ("How many circles are there?", "What colour is the square?", "Describe this image.")
SUBJECTS = ("a red circle", "two blue squares", "a green star", "a yellow triangle left of a red square")

Call = tuple[str, dict[str, Any]]
"""Path and body of a request."""


class ServerProcess:
    """`bifrons serve` in a process of its own, on a free port. `SystemExit` where it does not start."""

    def __init__(self, *options: str) -> None:
        command = [sys.executable, "-m", "bifrons.apps.cli.main", "serve", "--port", "0", *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if match := re.search(r"on (http://\S+)", line):
                self.url = match[1]
                return
        raise SystemExit("the server did not start")

    def resident(self) -> float:
        """Resident memory in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        match = re.search(r"VmRSS:\s+(\d+)", status)
        assert match is not None
        return int(match[1]) / 1000

    def stop(self) -> int:
        """Send SIGTERM; returns the exit status."""
        self.process.terminate()
        return self.process.wait()


def chat_call(seed: int) -> Call:
    """A question without an image, at temperature 1."""
    question = QUESTIONS[seed % len(QUESTIONS)] + " " + SUBJECTS[seed % len(SUBJECTS)]
    messages = [{"role": "user", "content": question}]
    body = {"model": MODEL, "messages": messages, "seed": seed, "temperature": 1.0, "max_tokens": 32}
    return "/v1/chat/completions", body


def vision_call(seed: int) -> Call:
    """A short question about an image that no other seed has."""
    rng, image = Random(seed), Image.new("RGB", (256, 256), "white")
    for _ in range(3):
        x, y, side = rng.randrange(180), rng.randrange(180), rng.randrange(30, 70)
        color = rng.choice(("red", "blue", "green", "yellow"))
        ImageDraw.Draw(image).ellipse((x, y, x + side, y + side), fill=color)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    url = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
    path, body = chat_call(seed)
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": QUESTIONS[seed % len(QUESTIONS)]},
    ]
    return path, {**body, "messages": [{"role": "user", "content": content}]}


def image_call(seed: int) -> Call:
    """An image to generate."""
    prompt = f"a photo of {SUBJECTS[seed % len(SUBJECTS)]}"
    return "/v1/images/generations", {"model": MODEL, "prompt": prompt, "seed": seed}


async def digest(client: httpx.AsyncClient, call: Call) -> str:
    """A hash of what a request returns, without its id and times; `status ...` where it fails.

    A 429 is retried after the time that the server names.
    """
    path, body = call
    while (reply := await client.post(path, json=body)).status_code == 429:
        await asyncio.sleep(float(reply.headers["retry-after"]))
    if reply.status_code != 200:
        return f"status {reply.status_code}: {reply.text[:100]}"
    content = reply.json()
    content = content.get("choices") or content["data"]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


async def gather(jobs: Iterable[Callable[[], Awaitable[str]]], clients: int) -> tuple[list[str], float]:
    """Results in order, and the seconds they took, with at most `clients` jobs running."""
    semaphore = asyncio.Semaphore(clients)

    async def run(job: Callable[[], Awaitable[str]]) -> str:
        async with semaphore:
            return await job()

    started = time.monotonic()
    results = await asyncio.gather(*(run(job) for job in jobs))
    return list(results), time.monotonic() - started


async def send(client: httpx.AsyncClient, calls: list[Call], clients: int) -> tuple[list[str], float]:
    """Digests of all calls in order, and the seconds they took."""
    return await gather([lambda call=call: digest(client, call) for call in calls], clients)


def row(what: str, result: str) -> None:
    """Print one row of the table."""
    print(f"| {what} | {result} |", flush=True)


async def mixed(client: httpx.AsyncClient, count: int) -> None:
    """Chats and images together, each compared with its answer alone."""
    calls = [image_call(i % 20) if i % 4 == 0 else chat_call(i) for i in range(count)]
    distinct = {json.dumps(call): call for call in calls}
    alone, _ = await send(client, list(distinct.values()), 1)
    expected = dict(zip(distinct, alone, strict=True))
    digests, seconds = await send(client, calls, 32)
    lost = sum(result.startswith("status") for result in digests)
    results = zip(calls, digests, strict=True)
    other = [call for call, result in results if result != expected[json.dumps(call)]]
    for path, body in other:
        print(f"other than alone: {path} {json.dumps(body)}", file=sys.stderr)
    text = f"{count - lost} answered, {lost} lost, {len(other)} other than alone; {seconds:.1f} s"
    row(f"32 clients, {count} requests, a quarter of them pictures", text)


async def throughput(client: httpx.AsyncClient) -> None:
    """16 requests of each kind, one after the other and at once."""
    loads = (("pictures", image_call), ("answers", chat_call), ("answers about a picture", vision_call))
    for name, make in loads:
        await digest(client, make(0))
        calls = [make(1000 + i) for i in range(16)]
        _, serial = await send(client, calls, 1)
        _, parallel = await send(client, calls, 16)
        text = f"{16 / serial:.2f} a second; at once {16 / parallel:.2f} a second: "
        row(f"16 {name}, one after the other", f"{text}{serial / parallel:.1f} times")


async def endurance(client: httpx.AsyncClient, server: ServerProcess, count: int) -> None:
    """Resident memory after each fifth of many requests."""
    sizes = []
    for part in range(5):
        numbers = range(part * count // 5, (part + 1) * count // 5)
        await send(client, [image_call(i) if i % 50 == 0 else chat_call(i) for i in numbers], 16)
        sizes.append(server.resident())
    row(f"memory after each fifth of {count} requests", ", ".join(f"{size:.0f}" for size in sizes) + " MB")


async def disconnects(client: httpx.AsyncClient, count: int) -> None:
    """Clients that give up midway: how soon their rows are free, and whether answers stay the same."""
    before = await digest(client, chat_call(1))

    async def give_up(number: int) -> str:
        path, body = image_call(number)
        try:
            await client.post(path, json=body, timeout=0.2 + number % 5 / 5)
        except httpx.TimeoutException:
            return "left"
        return "served"

    outcomes, _ = await gather([lambda i=i: give_up(i) for i in range(count)], 16)
    started = time.monotonic()
    while re.search(r"rows_promised\S+ [1-9]", (await client.get("/metrics")).text):
        await asyncio.sleep(0.01)
    seconds = time.monotonic() - started
    same = "same" if await digest(client, chat_call(1)) == before else "another"
    text = f"{outcomes.count('left')} left; all rows free {seconds:.2f} s later; {same} answer as before"
    row(f"{count} clients that leave midway", text)


async def measure(server: ServerProcess, options: argparse.Namespace) -> None:
    """Print the whole table."""
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=server.url, timeout=600, limits=limits) as client:
        print("| Load | Result |\n|---|---|")
        await throughput(client)
        await mixed(client, options.requests)
        await disconnects(client, 50)
        await endurance(client, server, options.endurance)


def main() -> int:
    """Run the load test; returns the server's exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--endurance", type=int, default=1000)
    options = parser.parse_args()
    server = ServerProcess()
    try:
        asyncio.run(measure(server, options))
    finally:
        status = server.stop()
    row("exit status after SIGTERM", str(status))
    return status


if __name__ == "__main__":
    sys.exit(main())
