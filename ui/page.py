"""The page: its tabs, its looks, and how it is served."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder
from huggingface_hub.constants import HF_HUB_CACHE
from starlette.middleware import Middleware
from starlette.routing import Mount

from train.child import needed
from train.clock import Clock
from train.job import Jobs

from . import about, data_folder, inspect, kept, lineage, merge, models, publish, tint, train, twice
from .about import build_about
from .chat import build_chat
from .door import Door
from .endpoints import build_endpoints
from .inspect import build_inspect
from .limits import Limits
from .links import build_links
from .mcp import only_tools
from .merge import base_dropdown, build_merge, parents_dropdown
from .merges import Merger
from .models import build_models
from .openai import openai_api
from .opened import describe_once
from .owner import greet
from .queued import hold_within
from .registry import Registry
from .served import Served
from .sessions import Sessions
from .train import build_train
from .write import build_write
from .writing import ON_ZERO_GPU

TITLE = "BDH Hatchery"
CSS = """
.gradio-container { max-width: 1080px !important; width: 100% !important; margin: 0 auto !important; }
#chat-status p { font-size: var(--text-sm); }
#chat-head { align-items: end; }
#chat-log .example { border: 1px solid var(--border-color-primary); border-radius: var(--radius-lg); }
#chat-log .placeholder { padding: 0 var(--spacing-xxl); text-align: center; }
#chat-log .message { overflow-wrap: anywhere; }
#chat-log textarea { min-height: 6rem; }
#chat-message textarea { border: 1px solid var(--input-border-color); }
.tab-container button.selected { color: var(--primary-700); }
.dark .tab-container button.selected { color: var(--primary-400); }
.file-preview .filename { flex-wrap: wrap; }
.file-preview .filename .stem { white-space: normal !important; overflow-wrap: anywhere; }
.file-preview .download { width: auto !important; min-width: max-content !important; }
.secondary-wrap input { margin-right: 24px !important; text-overflow: ellipsis; }
@media (max-width: 500px) {
  .gradio-container { padding: var(--spacing-md) !important; }
  .gradio-container h1 { font-size: var(--text-xl) !important; }
  .tab-container button { padding-inline: 5px !important; }
}
"""
FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]


def open_registry(checkpoints: Path, data: Path, limits: Limits, device: str | None = None) -> Registry:
    """The models of the page, and of all that is served beside it.

    Args:
        checkpoints: folder of shipped checkpoints.
        data: folder for uploads, merged models and memories put aside; readable by the app alone.
    """
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    # On ZeroGPU the GPU is there only inside the calls that ask for it.
    # A stranger must not see what private models the owner of a Space has loaded.
    cache = None if limits.public else Path(HF_HUB_CACHE)
    clock = Clock(data_folder.last_seen(data))
    return Registry(checkpoints, data, limits, "cpu" if ON_ZERO_GPU else device, cache=cache, clock=clock)


def build_page(
    checkpoints: Path, data: Path, limits: Limits, device: str | None = None, *, registry: Registry | None = None
) -> gr.Blocks:
    """The whole page; its models are those of `registry`, or, if it is None, of one that is opened here."""
    registry = registry or open_registry(checkpoints, data, limits, device)
    clock = registry.clock
    sessions = Sessions(registry, data, limits, clock)
    jobs = Jobs(
        data / "runs",
        at_once=0 if ON_ZERO_GPU else limits.max_runs_at_once,
        most_waiting=limits.max_runs_waiting,
        most_each=limits.max_runs_each,
        most_kept=limits.max_runs_kept,
        keep_s=limits.runs_hours * 3600.0,
        most_bytes=limits.max_runs_bytes,
        environment=_of_runs(limits),
        clock=clock,
    )
    merger = Merger(registry, data, limits, clock)
    served_s = limits.served_hours * 3600.0
    data_folder.keep_tidy(
        data,
        [
            sessions.note_idle,
            sessions.sweep,
            registry.expire,
            merger.expire,
            lambda: data_folder.expire_temporary(served_s, clock),
        ],
        served_s,
    )
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, max(1, int(served_s)))) as page:
        owner = gr.BrowserState("", storage_key="bdh-owner", secret=_browser_secret(data))
        gr.Markdown(
            f"# {TITLE}\nBaby Dragon Hatchling models read and write single bytes, and remember in a state that "
            "never grows."
        )
        if publish.signs_in():  # elsewhere there is nothing that could be signed in to, and the page would not start
            gr.LoginButton(size="sm", elem_id="sign-in")
        greeting = page.load(
            greet, owner, owner, concurrency_limit=None, api_visibility="private", show_progress="hidden"
        )
        told = gr.HTML(visible=False, elem_id="link-told")
        with gr.Tabs() as tabs:
            with gr.Tab("Chat", id="chat"):
                chat = build_chat(registry, sessions, owner, limits, greeting)
            with gr.Tab("Write", id="write"):
                write = build_write(registry, owner, limits)
            parents, base = parents_dropdown(registry), base_dropdown(registry)
            shown = [chat.model, write.model, write.other, parents, base]
            tried = (shown, chat.model, write.model)
            with gr.Tab("Train", id="train") as tab:
                training = build_train(registry, jobs, owner, limits, *tried, parents, tabs, greeting, tab)
            with gr.Tab("Merge", id="merge") as tab:
                build_merge(registry, merger, jobs, owner, limits, parents, base, *tried, training, tabs, greeting, tab)
            with gr.Tab("Inspect", id="inspect"):
                inside = build_inspect(registry, owner, limits)
            with gr.Tab("Models", id="models") as tab:
                build_models(registry, owner, limits, [*shown, inside.model], greeting, tab)
        build_about(limits, data)
        build_links(registry, owner, limits, told, tabs, chat, write, inside, greeting)
        build_endpoints(registry, merger, limits)
    page.queue(max_size=limits.max_waiting, api_open=False)
    describe_once(page)
    hold_within(page, limits)
    return page


def _of_runs(limits: Limits) -> dict[str, str]:
    """The environment of training processes: where strangers come, what they need and no more."""
    return {**needed(os.environ), "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"} if limits.public else dict(os.environ)


def launch_options(limits: Limits, data: Path, registry: Registry | None = None) -> dict[str, Any]:
    """How the page is served: nothing of the disk is readable, inputs are not kept, errors stay short.

    Args:
        registry: the page's, of whose models there is an API in OpenAI's style beside it; None leaves that out.

    Raises:
        ConfigError: tools for MCP clients are asked for, and cannot be offered.
    """
    clock = None if registry is None else registry.clock
    served_s = limits.served_hours * 3600.0
    served = Served(Path(get_upload_folder()), limits.max_served_bytes, served_s, clock)
    data_folder.keep_tidy(data, [served.tidy_if_due], served_s)  # also while nobody comes
    return {
        "mcp_server": limits.mcp,
        "app_kwargs": {
            "middleware": [Middleware(Door, limits=limits, served=served)],
            "routes": [] if registry is None else [Mount("/v1", openai_api(registry, limits))],
            **({"lifespan": only_tools()} if limits.mcp else {}),
        },
        "theme": theme(),
        "css": CSS
        + "".join(part.CSS for part in (models, tint, train, lineage, kept, merge, inspect, publish, twice, about)),
        "js": twice.SCRIPT,
        "max_file_size": limits.max_upload_bytes,
        "blocked_paths": [str(data)],
        "show_error": False,
        "run_history": False,
        "state_session_capacity": 1000,
        "enable_monitoring": False,
        "max_threads": limits.max_at_once + 40,  # who waits for bytes holds one; others' presses need some too
        "footer_links": ["api", "gradio", "settings"],
        "ssr_mode": False,
        "share": False,
    }


def theme() -> gr.themes.Base:
    """Soft, with labels and buttons dark enough to be read by everybody (contrast above 4.5 to 1)."""
    plain = {"background_fill": "transparent", "text_color": "*neutral_700", "text_color_dark": "*neutral_200"}
    return gr.themes.Soft(primary_hue="emerald", neutral_hue="slate", font=FONT).set(
        **{f"block_{part}_{name}": value for part in ("title", "label") for name, value in plain.items()},
        block_title_background_fill_dark="transparent",
        block_label_background_fill_dark="transparent",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_border_width="1px",
        block_border_width_dark="1px",
        block_border_color="*neutral_200",
        block_border_color_dark="*neutral_700",
        checkbox_border_color="*neutral_400",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_300",
        input_border_width="1px",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_600",
        button_border_width="1px",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="*neutral_600",
        checkbox_label_background_fill_selected="*primary_700",
        checkbox_label_background_fill_selected_dark="*primary_700",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
        button_cancel_background_fill="#b91c1c",
        button_cancel_background_fill_hover="#991b1b",
        button_cancel_background_fill_dark="#b91c1c",
        button_cancel_background_fill_hover_dark="#991b1b",
        button_secondary_background_fill_hover_dark="*neutral_600",
        button_cancel_text_color="white",
        button_cancel_text_color_dark="white",
    )


def _browser_secret(data: Path) -> str:
    """The key that browsers' stored values are sealed with, kept so that they outlive a restart."""
    path = data / data_folder.KEY
    if not path.is_file():
        written = path.with_suffix(f".{os.getpid()}")
        written.touch(mode=0o600)
        written.write_text(secrets.token_urlsafe(32))
        os.replace(written, path)
    return path.read_text()
