"""Load on a server: `python -m bifrons.eval.bench.server [--requests 200] [--endurance 1000]`.

Starts `bifrons serve` with the embedded model and prints a table: mixed requests of 32 clients at once, each
compared with what the same request gives alone; throughput of 16 at once and one after the other; memory of
the server over many requests; clients that leave midway.
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
THINGS = ("a red circle", "two blue squares", "a green star", "a yellow triangle left of a red square")


class Process:
    """The server under test."""

    def __init__(self, *options: str) -> None:
        words = [sys.executable, "-m", "bifrons.apps.cli.main", "serve", "--port", "0", *options]
        self.process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if found := re.search(r"on (http://\S+)", line):
                self.url = found[1]
                return
        raise SystemExit("the server did not start")

    def resident(self) -> float:
        """Resident memory in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+)", status)
        assert found is not None
        return int(found[1]) / 1000

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait()


def chat(seed: int) -> tuple[str, dict[str, Any]]:
    question = QUESTIONS[seed % len(QUESTIONS)] + " " + THINGS[seed % len(THINGS)]
    messages = [{"role": "user", "content": question}]
    body = {"model": MODEL, "messages": messages, "seed": seed, "temperature": 1.0, "max_tokens": 32}
    return "/v1/chat/completions", body


def look(seed: int) -> tuple[str, dict[str, Any]]:
    """A short question about a picture of its own."""
    rng, drawn = Random(seed), Image.new("RGB", (256, 256), "white")
    for _ in range(3):
        x, y, side = rng.randrange(180), rng.randrange(180), rng.randrange(30, 70)
        colour = rng.choice(("red", "blue", "green", "yellow"))
        ImageDraw.Draw(drawn).ellipse((x, y, x + side, y + side), fill=colour)
    stream = io.BytesIO()
    drawn.save(stream, "PNG")
    url = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
    path, body = chat(seed)
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": QUESTIONS[seed % len(QUESTIONS)]},
    ]
    return path, {**body, "messages": [{"role": "user", "content": content}]}


def picture(seed: int) -> tuple[str, dict[str, Any]]:
    prompt = f"a photo of {THINGS[seed % len(THINGS)]}"
    return "/v1/images/generations", {"model": MODEL, "prompt": prompt, "seed": seed}


async def ask(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> str:
    """A digest of what a request gives, without its id and times. A refusal is waited out and tried again."""
    while True:
        reply = await client.post(path, json=body)
        if reply.status_code != 429:
            break
        await asyncio.sleep(float(reply.headers["retry-after"]))
    if reply.status_code != 200:
        return f"status {reply.status_code}: {reply.text[:100]}"
    found = reply.json()
    content = found.get("choices") or found["data"]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


async def at_once(work: Iterable[Callable[[], Awaitable[str]]], clients: int) -> tuple[list[str], float]:
    """Results in order, and the seconds they took, with at most so many under way."""
    gate = asyncio.Semaphore(clients)

    async def one(job: Callable[[], Awaitable[str]]) -> str:
        async with gate:
            return await job()

    started = time.monotonic()
    found = await asyncio.gather(*(one(job) for job in work))
    return list(found), time.monotonic() - started


def jobs(client: httpx.AsyncClient, requests: list[tuple[str, dict[str, Any]]]) -> list[Any]:
    return [lambda path=path, body=body: ask(client, path, body) for path, body in requests]


def row(what: str, result: str) -> None:
    print(f"| {what} | {result} |", flush=True)


async def mixed(client: httpx.AsyncClient, count: int) -> None:
    requests = [picture(i % 20) if i % 4 == 0 else chat(i) for i in range(count)]
    unique = {json.dumps(request): request for request in requests}
    alone, _ = await at_once(jobs(client, list(unique.values())), 1)
    wanted = dict(zip(unique, alone, strict=True))
    found, seconds = await at_once(jobs(client, requests), 32)
    lost = sum(digest.startswith("status") for digest in found)
    other = [r for r, digest in zip(requests, found, strict=True) if digest != wanted[json.dumps(r)]]
    for path, body in other:
        print(f"other than alone: {path} {json.dumps(body)}", file=sys.stderr)
    text = f"{count - lost} answered, {lost} lost, {len(other)} other than alone; {seconds:.1f} s"
    row(f"32 clients, {count} requests, a quarter of them pictures", text)


async def throughput(client: httpx.AsyncClient) -> None:
    loads = (("pictures", picture), ("answers", chat), ("answers about a picture", look))
    for name, make in loads:
        await ask(client, *make(0))
        requests = [make(1000 + i) for i in range(16)]
        _, serial = await at_once(jobs(client, requests), 1)
        _, shared = await at_once(jobs(client, requests), 16)
        text = f"{16 / serial:.2f} a second; at once {16 / shared:.2f} a second: {serial / shared:.1f} times"
        row(f"16 {name}, one after the other", text)


async def endurance(client: httpx.AsyncClient, server: Process, count: int) -> None:
    sizes = []
    for part in range(5):
        numbers = range(part * count // 5, (part + 1) * count // 5)
        requests = [picture(i) if i % 50 == 0 else chat(i) for i in numbers]
        await at_once(jobs(client, requests), 16)
        sizes.append(server.resident())
    row(f"memory after each fifth of {count} requests", ", ".join(f"{size:.0f}" for size in sizes) + " MB")


async def leaving(client: httpx.AsyncClient, count: int) -> None:
    before = await ask(client, *chat(1))

    async def leave(number: int) -> str:
        path, body = picture(number)
        try:
            await client.post(path, json=body, timeout=0.2 + number % 5 / 5)
        except httpx.TimeoutException:
            return "left"
        return "served"

    found, _ = await at_once([lambda i=i: leave(i) for i in range(count)], 16)
    started = time.monotonic()
    while re.search(r"rows_promised\S+ [1-9]", (await client.get("/metrics")).text):
        await asyncio.sleep(0.01)
    seconds = time.monotonic() - started
    same = "same" if await ask(client, *chat(1)) == before else "another"
    text = f"{found.count('left')} left; all rows free {seconds:.2f} s later; {same} answer as before"
    row(f"{count} clients that leave midway", text)


async def measure(server: Process, options: argparse.Namespace) -> None:
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=server.url, timeout=600, limits=limits) as client:
        print("| Load | Result |\n|---|---|")
        await throughput(client)
        await mixed(client, options.requests)
        await leaving(client, 50)
        await endurance(client, server, options.endurance)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--endurance", type=int, default=1000)
    options = parser.parse_args()
    server = Process()
    try:
        asyncio.run(measure(server, options))
    finally:
        status = server.stop()
    row("exit status after SIGTERM", str(status))
    return status


if __name__ == "__main__":
    sys.exit(main())
