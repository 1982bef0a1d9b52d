"""Pictures are read in processes of their own, which die of what a picture does to them; the pool goes on."""

import asyncio
import io
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from bifrons.apps import picture_pool
from bifrons.apps.picture_pool import PicturePool, PicturesFull, PicturesStopped
from bifrons.blocks.errors import PictureError
from bifrons.blocks.image_io import open_image
from bifrons.janus.image_transform import ImageTransform
from bifrons.vl2.tiles import candidate_resolutions, cut_best_tiles
from PIL import Image

LIMIT = 60
FIT = ImageTransform(96).fit
TILE = partial(cut_best_tiles, candidates=candidate_resolutions(9, 32), tile=32, background=(127, 127, 127))


def _saved(size=(40, 30), kind="PNG", mode="RGB"):
    shape, stream = (size[1], size[0], 3), io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(stream, kind)
    return stream.getvalue()


def _slow(evil_jpeg):
    """Just within the limit of scans, and seconds of work for each of the two tries below."""
    data = evil_jpeg((4000, 4000))
    scan = data.rindex(b"\xff\xda")
    return data[: -2 - (len(data) - scan - 2) * 6_520] + data[-2:]


def _run(test, **options):
    """Run a coroutine of a new pool, and end its workers."""

    async def main():
        pool = PicturePool(**options)
        try:
            async with asyncio.timeout(LIMIT):
                return await test(pool)
        finally:
            await pool.close()

    return asyncio.run(main())


def test_paths_of_a_subclass_of_text_are_sent_as_text(tmp_path):
    """Gradio's paths are; to read one as it is a worker would have to import Gradio, which takes seconds."""

    class Named(str):  # a local class can't be pickled
        __slots__ = ()

    (tmp_path / "a.png").write_bytes(_saved())
    fitted = _run(lambda pool: pool.read(Named(tmp_path / "a.png"), FIT, local_files=True))
    assert fitted.size == (40, 30)


def test_closing_ends_calls_that_run(evil_jpeg):
    async def main():
        pool = PicturePool()
        call = asyncio.create_task(pool.read(_slow(evil_jpeg), FIT))
        await asyncio.sleep(1)
        await pool.close()
        return await asyncio.gather(call, return_exceptions=True)

    (error,) = asyncio.run(main())
    assert isinstance(error, PicturesStopped)


@pytest.mark.parametrize("fit", [FIT, TILE])
def test_pixels_are_those_of_the_same_process(fit):
    kinds = [("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "1"), ("GIF", "P"), ("JPEG", "CMYK"), ("WEBP", "RGB")]
    pictures = [_saved((300, 200), *kind) for kind in kinds]

    async def read(pool):
        return [await pool.read(picture, fit) for picture in pictures]

    for picture, found in zip(pictures, _run(read), strict=True):
        expected = fit(open_image(picture))
        assert found.size == expected.size
        assert np.array_equal(found.tiles, expected.tiles)


def test_workers_are_light():
    code = "import sys, bifrons.apps.picture_worker, bifrons.janus.image_transform, bifrons.vl2.tiles"
    check = f"{code}; sys.exit(bool({{'torch', 'gradio', 'fastapi'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], timeout=LIMIT).returncode == 0


def test_pictures_that_kill_a_worker_are_refused_and_the_next_is_read(monkeypatch, evil_jpeg):
    slow = _slow(evil_jpeg)

    async def read(pool):
        assert (await pool.read(_saved(), FIT)).size == (40, 30)
        with pytest.raises(PictureError, match="decoder crash"):
            await pool.read(_saved(), partial(os.kill, signal.SIGKILL))  # not something that fits a picture
        assert (await pool.read(_saved(), FIT)).size == (40, 30)
        monkeypatch.setattr(picture_pool, "SECONDS", 0.3)
        with pytest.raises(PictureError, match="seconds to decode"):
            await pool.read(slow, FIT)
        monkeypatch.setattr(picture_pool, "SECONDS", LIMIT)
        with pytest.raises(PictureError, match="not a picture"):
            await pool.read(b"hello", FIT)
        assert (await pool.read(_saved(), FIT)).size == (40, 30)

    _run(read)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of a process")
def test_memory_of_a_worker_is_limited():
    picture = _saved((4000, 4000), mode="L")

    async def read(pool):
        with pytest.raises(PictureError, match="memory"):
            await pool.read(picture, FIT)
        return await pool.read(_saved(), FIT)

    def limited(pool):
        pool.memory = 100_000_000
        return read(pool)

    assert _run(limited).size == (40, 30)


def test_limits_of_pixels_and_paths(tmp_path):
    (tmp_path / "a.png").write_bytes(_saved())

    async def read(pool):
        for source, message in ((_saved((50, 50)), "at most 2,000"), (str(tmp_path / "a.png"), "data: URL")):
            with pytest.raises(PictureError, match=message):
                await pool.read(source, FIT)
        assert (await pool.read(str(tmp_path / "a.png"), FIT, local_files=True)).size == (40, 30)

    _run(read, max_pixels=2_000)


def test_a_picture_is_written(tmp_path):
    (tmp_path / "a.jpg").write_bytes(_saved(kind="JPEG"))

    async def save(pool):
        await pool.save(str(tmp_path / "a.jpg"), str(tmp_path / "b.png"))

    with pytest.raises(PictureError, match="a path is not accepted"):
        _run(lambda pool: pool.read(str(tmp_path / "a.jpg"), FIT))
    _run(save)
    assert open_image(tmp_path / "b.png").tobytes() == open_image(tmp_path / "a.jpg").tobytes()


def test_a_cancelled_call_ends_its_worker_and_gives_its_place_to_the_next(evil_jpeg):
    slow = _slow(evil_jpeg)

    async def read(pool):
        calls = [asyncio.create_task(pool.read(slow, FIT)) for _ in range(9)]
        await asyncio.sleep(0.5)
        for call in calls:
            call.cancel()
        started = time.monotonic()
        assert (await pool.read(_saved(), FIT)).size == (40, 30)
        assert time.monotonic() - started < 10  # a try takes seconds
        assert await asyncio.gather(*calls, return_exceptions=True) != []
        assert all(call.cancelled() for call in calls)

    _run(read)


def test_a_pool_that_stops_gives_its_calls_little_time(evil_jpeg):
    slow = _slow(evil_jpeg)

    async def read(pool):
        calls = [asyncio.create_task(pool.read(slow, FIT)) for _ in range(9)]
        await asyncio.sleep(0.5)
        pool.stop(0.1)
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(error) for error in ended} == {PicturesStopped}

    _run(read)


def test_pictures_in_flight_have_a_budget(monkeypatch):
    monkeypatch.setattr(picture_pool, "BUDGET", 100_000)

    async def read(pool):
        held = [await pool.read(_saved(), FIT) for _ in range(3)]
        assert pool.held == 3 * 3 * 96 * 96
        held.append(await pool.read(_saved(), FIT))
        with pytest.raises(PicturesFull, match="too many pictures"):
            await pool.read(_saved(), FIT)
        held.clear()
        assert pool.held == 0
        assert (await pool.read(_saved(), FIT)).size == (40, 30)

    _run(read)


ORPHAN = """
import asyncio, sys
from bifrons.apps.picture_pool import PicturePool
from bifrons.janus.image_transform import ImageTransform

async def main():
    pool = PicturePool()
    await pool.read(open(sys.argv[1], "rb").read(), ImageTransform(96).fit)
    print(pool._idle[0].pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_workers_end_with_their_parent(tmp_path):
    (tmp_path / "a.png").write_bytes(_saved())
    command = [sys.executable, "-c", ORPHAN, str(tmp_path / "a.png")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = Path("/proc") / parent.stdout.readline().strip()
        parent.kill()
    until = time.monotonic() + LIMIT
    while worker.exists() and "zombie" not in (worker / "status").read_text():
        assert time.monotonic() < until
        time.sleep(0.05)
