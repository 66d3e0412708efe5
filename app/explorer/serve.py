"""`interp app`: starts the explorer on this machine alone."""

from pathlib import Path

from streamlit import config
from streamlit.web import bootstrap

from interp.app.explorer import stores
from interp.app.explorer.server import Settings, configure
from interp.viz import theme

SCRIPT = Path(__file__).with_name("script.py")
LOCALHOST = "127.0.0.1"


def serve(settings: Settings, port: int, *, browser: bool) -> None:
    """Serve the explorer until it is interrupted.

    Args:
        settings: Stores, model and memory.
        port: Of the address.
        browser: Open a browser window.

    Raises:
        StorageError: A store is missing, foreign or damaged.
    """
    for path in settings.stores:
        stores.open_store(path)
    configure(settings)
    options = flags(port, browser=browser)
    for name, value in options.items():
        config.set_option(name, value)
    bootstrap.run(str(SCRIPT), False, [], options)


def flags(port: int, *, browser: bool) -> dict[str, object]:
    """Options of Streamlit: this machine alone, no reports to anybody, our colors."""
    found: dict[str, object] = {
        "server.address": LOCALHOST,
        "server.port": port,
        "server.headless": not browser,
        "server.enableXsrfProtection": True,
        "server.enableCORS": True,
        "server.enableStaticServing": False,
        "server.fileWatcherType": "none",
        "server.runOnSave": False,
        "server.maxUploadSize": stores.UPLOAD_MB,
        "browser.gatherUsageStats": False,
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        "client.showErrorLinks": False,
        "runner.magicEnabled": False,
        # A full collection takes longer with a model in memory than pages wait between
        # looks at a job, which then starves; Python collects by itself.
        "runner.postScriptGC": False,
        "global.developmentMode": False,
    }
    for name, palette in theme.PALETTES.items():
        colors = {
            "primaryColor": palette.accent,
            "backgroundColor": palette.card,
            "secondaryBackgroundColor": palette.paper,
            "textColor": palette.ink,
            "linkColor": palette.accent,
            "borderColor": palette.rule,
        }
        found |= {f"theme.{name}.{key}": color for key, color in colors.items()}
    return found
