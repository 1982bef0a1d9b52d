"""A load client in a process of its own: `python -m bifrons.eval.bench.client URL`.

Reads jobs from stdin, one JSON object a line, and writes the outcome of each as a line to stdout. A job:

    {"calls": [[path, body], ...], "at_once": 16, "lead": [path, body] or null}

`lead` is a stream that is sent first; the calls start when its first text is there. An outcome:

    {"seconds": from the first call to the end of the last, "replies": [...], "lead": a reply or null}

with a reply `{"status", "start", "end", "arrivals", "tokens", "retries"}`: times in seconds since the job
began, `arrivals` those of a stream's pieces with text, `tokens` the length of an answer.
"""

import asyncio
import json
import re
import ssl
import sys
import time
from typing import Any

import httpx

Call = tuple[str, dict[str, Any]]
"""Path and body of a request."""
_USAGE = re.compile(rb'"completion_tokens": ?(\d+)')
_TAIL = 4096  # bytes at the end of a stream that hold its token counts


async def send(client: httpx.AsyncClient, call: Call, began: float, arrivals: list[float]) -> dict[str, Any]:
    """Send one request, again while the server says that it is busy; returns the reply."""
    path, body = call
    reply: dict[str, Any] = {"start": time.perf_counter() - began, "arrivals": arrivals, "retries": 0}
    while True:
        async with client.stream("POST", path, json=body) as response:
            tail = await _read(response, arrivals if body.get("stream") else None, began)
        if response.status_code != 429:
            break
        reply["retries"] += 1
        await asyncio.sleep(float(response.headers.get("retry-after", 1)))
    reply["status"], reply["end"] = response.status_code, time.perf_counter() - began
    counts = _USAGE.findall(tail)
    reply["tokens"] = int(counts[-1]) if counts else 0
    return reply


async def _read(response: httpx.Response, arrivals: list[float] | None, began: float) -> bytes:
    """Read a whole response; returns its end. Notes in `arrivals` when pieces of a stream arrive."""
    tail, events = b"", 0
    async for piece in response.aiter_raw():
        tail = (tail + piece)[-_TAIL:]
        if arrivals is not None:
            events += piece.count(b"data: ")
            if events > 1:  # the first event only names the role
                arrivals.append(time.perf_counter() - began)
    return tail


class Clients:
    """As many clients as are needed at once, each with a connection of its own.

    A client with many connections looks at all of them for every request, and would itself be the limit.
    """

    def __init__(self, url: str) -> None:
        self._url, self._tls = url, ssl.create_default_context()
        self._clients: list[httpx.AsyncClient] = []

    async def take(self, count: int) -> list[httpx.AsyncClient]:
        """The first `count` clients, connected: what a client does once is no part of a latency."""
        while len(self._clients) < count:
            client = httpx.AsyncClient(base_url=self._url, timeout=None, verify=self._tls, trust_env=False)
            await client.get("/health")
            self._clients.append(client)
        return self._clients[:count]

    async def close(self) -> None:
        """Close all connections."""
        for client in self._clients:
            await client.aclose()


async def run_job(clients: Clients, job: dict[str, Any]) -> dict[str, Any]:
    """The outcome of a job."""
    first, *rest = await clients.take(1 + job["at_once"])
    began, waiting, replies = time.perf_counter(), list(enumerate(job["calls"]))[::-1], {}

    async def send_in_turn(client: httpx.AsyncClient) -> None:
        while waiting:
            index, call = waiting.pop()
            replies[index] = await send(client, call, began, [])

    lead, arrivals = None, list[float]()
    if job["lead"]:
        lead = asyncio.ensure_future(send(first, job["lead"], began, arrivals))
        while not arrivals and not lead.done():
            await asyncio.sleep(0.005)
    started = time.perf_counter()
    await asyncio.gather(*map(send_in_turn, rest))
    seconds = time.perf_counter() - started
    in_order = [replies[index] for index in range(len(job["calls"]))]
    return {"seconds": seconds, "replies": in_order, "lead": await lead if lead else None}


async def main(url: str) -> None:
    """Run jobs from stdin until it ends."""
    clients = Clients(url)
    while line := await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(await run_job(clients, json.loads(line))), flush=True)
    await clients.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
