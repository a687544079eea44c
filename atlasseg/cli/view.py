"""``atlasseg view``: view the reports of a run in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("view")(view)


def view(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The output folder of a run, or a target's folder in it.")],
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on. 0: any free port.")] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
) -> None:
    """Open the reports of a run in a browser, from a local web server that runs until Ctrl+C.

    The pages can also be opened as files. Use this command on a machine without a screen: start it there, and connect
    with `ssh -L PORT:127.0.0.1:PORT machine`. Other users of the machine cannot read the pages, because the printed
    address contains a new token each time.

    **Examples**

    - `atlasseg view out/quickstart`
    - `atlasseg view out/quickstart --port 8000 --no-browser`
    """
    import webbrowser
    from contextlib import suppress

    from atlasseg.report.server import Server, first_page

    page = first_page(out)
    with Server(out, port=port) as server, suppress(KeyboardInterrupt):
        typer.echo(f"{server.url(page)} (Ctrl+C to stop)")
        if browser:
            webbrowser.open(server.url(page))
        server.serve_forever()
