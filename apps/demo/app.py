"""The Gradio page: its tabs, and how it is launched."""

import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

from ..allowed_hosts import AllowedHosts, accepted_hosts, listen
from .api import add_endpoints
from .ask_tab import AskTab
from .body_limit import MAX_UPLOAD, BodyLimit
from .components import PAGE_JS, Update, gr, theme
from .create_tab import CreateTab
from .gallery import stored_settings
from .history import EXAMPLES
from .image_form import without_style
from .jobs import Jobs
from .locate_tab import LocateTab
from .models import LoadedModel
from .suggestions import phrase_of

RUNNING = 24
"""Jobs that may run or wait for their model at the same time; each takes a thread."""
QUEUE = 48
"""Clicks that may wait beyond these."""
_TUNNEL = "*.gradio.live"
"""Hosts of the public addresses of `share`."""
_KEEP_SECONDS = 6 * 3600
_STOP_SECONDS = 6.0
"""Time for jobs to end after SIGTERM or Ctrl-C: they stop between two steps."""


class Page:
    """The page for some loaded models. `jobs` holds what is running; `blocks` is the Gradio app."""

    def __init__(self, models: Sequence[LoadedModel], folder: Path) -> None:
        self.models, self.jobs = list(models), Jobs()
        self.create: CreateTab | None = None
        self.find: LocateTab | None = None
        # Gradio checks its own file cache every ten minutes and deletes what is older than some hours.
        with gr.Blocks(
            title="Bifrons", delete_cache=(600, _KEEP_SECONDS), analytics_enabled=False
        ) as self.blocks:
            gr.HTML(_head(self.models), elem_classes="bf-head")
            with gr.Tabs() as self.tabs:
                if any(loaded.paints for loaded in models):
                    with gr.Tab("Create", id="create"):
                        self.create = CreateTab(models, self.jobs, folder)
                with gr.Tab("Ask" if any(loaded.sees for loaded in models) else "Chat", id="ask"):
                    self.ask = AskTab(models, self.jobs, folder)
                if any(loaded.locates for loaded in models):
                    with gr.Tab("Find", id="find"):
                        self.find = LocateTab(models, self.jobs, folder)
            self._connect()
            add_endpoints(self.models, self.jobs)
        self.blocks.queue(max_size=QUEUE, default_concurrency_limit=RUNNING)

    def _connect(self) -> None:
        self.blocks.unload(self.leave)
        if self.create is None:
            return
        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        picture = [self.create.files, self.create.chosen]
        self.blocks.load(
            self.create.history.show, [self.create.history.state], [self.create.history.view], **quick
        )
        asked = [self.tabs, self.ask.model, self.ask.box]
        self.create.ask.click(self.ask_about, [*picture, self.ask.box, self.ask.model], asked, **quick)
        if self.find is not None:
            shown = [self.find.upload, self.find.phrase, self.find.drawn, self.find.table, self.find.status]
            shown += self.find.opened
            opened = self.create.find.click(self.find_in, picture, [self.tabs, *shown], **quick)
            self.find.search_after(opened)

    def ask_about(self, files: list[str], chosen: int, box: dict[str, Any], model: str) -> Update:
        """Put an image into the tab *Ask*, for a model that reads it; a question begun there stays."""
        if not files:
            return {self.tabs: gr.update()}
        seeing = [loaded.name for loaded in self.models if loaded.sees]
        value = {"text": box.get("text") or "", "files": [files[chosen]]}
        updates = {self.tabs: gr.update(selected="ask"), self.ask.box: gr.update(value=value)}
        return updates if model in seeing else updates | {self.ask.model: seeing[0]}

    def find_in(self, files: list[str], chosen: int) -> Update:
        """Put an image into the tab *Find*, with the first thing that its sentence names as the phrase."""
        assert self.find is not None
        if not files:
            return {self.tabs: gr.update()}
        prompt = without_style(stored_settings(files[chosen])["prompt"])
        phrase = phrase_of(prompt, self.find.models[0].pipe.vocabulary)
        return {self.tabs: gr.update(selected="find")} | self.find.open(files[chosen], phrase)

    def leave(self, request: gr.Request) -> None:
        """Stop the jobs of a visitor who has closed the page."""
        self.jobs.leave(request.session_hash)

    def launch(self, host: str, port: int, share: bool = False, allowed_hosts: Sequence[str] = ()) -> str:
        """Serve in background threads; returns the address. `allowed_hosts` as in `accepted_hosts`.

        Raises `OptionError` where the port is taken.
        """
        middleware, hosts = [Middleware(BodyLimit)], accepted_hosts(host, allowed_hosts)
        if hosts is not None:
            hosts += (_TUNNEL,) * share
            refuse = partial(PlainTextResponse, status_code=421)
            middleware.insert(0, Middleware(AllowedHosts, hosts=hosts, refuse=refuse))
        listen(host, port).close()
        _, address, public = self.blocks.launch(
            server_name=host,
            server_port=port,
            share=share,
            quiet=True,
            prevent_thread_lock=True,
            app_kwargs={"middleware": middleware},
            max_file_size=MAX_UPLOAD,
            max_threads=RUNNING + 16,
            ssr_mode=False,
            enable_monitoring=False,
            mcp_server=False,
            theme=theme(),
            css_paths=Path(__file__).parent / "page.css",
            js=PAGE_JS,
            allowed_paths=[str(EXAMPLES)],
            footer_links=[],
        )
        return public or address

    def close(self) -> bool:
        """Stop the jobs and the server; returns whether all jobs have ended."""
        from gradio.tunneling import CURRENT_TUNNELS

        ended = self.jobs.close(_STOP_SECONDS)
        if self.blocks.is_running:  # tabs of browsers keep connections open; uvicorn logs an error for each
            logging.getLogger("uvicorn.error").disabled = True
            self.blocks.server.config.timeout_graceful_shutdown = 1
        self.blocks.close(verbose=False)
        for tunnel in CURRENT_TUNNELS:
            tunnel.kill()
        return ended


def _head(models: Sequence[LoadedModel]) -> str:
    does = ["paint pictures"] if any(loaded.paints for loaded in models) else []
    if any(loaded.sees for loaded in models):
        does.append("ask about them" if does else "ask about pictures")
    if not all(loaded.sees for loaded in models):
        does.append("chat")
    if any(loaded.locates for loaded in models):
        does.append("find things in them")
    words = ", ".join(does[:-1]) + " and " * (len(does) > 1) + does[-1]
    return f"<h1>Bifrons</h1><p>{words[0].upper()}{words[1:]}. All of it is computed on this server.</p>"


def serve(
    models: Sequence[LoadedModel], host: str, port: int, share: bool, allowed_hosts: Sequence[str] = ()
) -> None:
    """Serve the page until Ctrl-C or SIGTERM; then stop its jobs, and delete uploads and images."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="bifrons-demo-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "cache")
        page = Page(models, Path(folder))
        try:
            address = page.launch(host, port, share, allowed_hosts)
            if share and not page.blocks.share_url:
                print("There is no public address: the tunnel can't be reached from here.", file=sys.stderr)
            print(f"Bifrons is at {address} (Ctrl-C ends it)", file=sys.stderr)
            while page.blocks.is_running:
                time.sleep(0.1)
        except KeyboardInterrupt:
            pass
        finally:
            for kind in (signal.SIGTERM, signal.SIGINT):
                signal.signal(kind, signal.SIG_IGN)  # what follows is bounded in time
            ended = page.close()
    if not ended:
        # A thread that computes in C++ would abort the process when the interpreter shuts down.
        sys.stderr.flush()
        os._exit(0)
