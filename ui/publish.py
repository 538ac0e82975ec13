"""Publishing a checkpoint on the Hub, the same in every tab: whose, under what name, and what is there already."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from huggingface_hub import get_token

from bdh import card as cards
from bdh import checkpoint, hub, publish
from bdh.errors import CheckpointError, HatcheryError

from .limits import Limits
from .markup import bar
from .owner import identify
from .registry import Owner, size_text
from .steps import Tell, in_steps, whole

CSS = """
.publish-who p, .publish-told p { margin: 0; overflow-wrap: anywhere; }
"""
"""The looks, for the page's style sheet."""
AT_ONCE = 4
"""Checkpoints published at the same time, for all visitors together."""
_TELL_S = 0.4
_PUBLISH, _REPLACE, _FILL = "Publish", "Replace what is there", "Fill it as it is"
_SIGN_IN = "Publishing from a public page needs your own account"
_turns: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
"""By repository: who sends to it."""
Take = Callable[..., tuple[Path, str]]
"""Gives the folder of the checkpoint that is chosen, and what it is called, to its owner alone."""


class Asked(NamedTuple):
    """Something is there already: whether it is to be replaced, or filled though others see it, is asked."""

    mark: str
    """What is there, as it is now; said again, it is agreed to."""
    words: str
    deed: str
    """What a second press does."""


class Published(NamedTuple):
    """It has arrived."""

    repo_id: str
    address: str


def signs_in() -> bool:
    """Whether visitors can sign in with Hugging Face: this is a Space that says so in its front matter.

    Anywhere else Gradio would only pretend, and hand out the machine's own login.
    """
    names = ("SPACE_ID", "OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET")
    return os.environ.get("SYSTEM") == "spaces" and all(os.environ.get(name) for name in names)


def token_of(account: gr.OAuthToken | None, limits: Limits) -> str | None:
    """Whose token the Hub is asked with: the visitor's; at home this machine's; else nobody's.

    The machine's own login is not for strangers.
    """
    if account is not None:
        return account.token
    return None if limits.public or os.environ.get("SPACE_ID") else get_token()


def who(token: str | None, limits: Limits) -> tuple[str, str]:
    """The account that would publish, and what to tell; the account is empty if there is none."""
    if token is None:
        if signs_in():
            return "", f"{_SIGN_IN}: sign in with Hugging Face at the top of this page, or download it."
        if limits.public or os.environ.get("SPACE_ID"):
            return "", f"{_SIGN_IN}, and this page has no sign-in: download it, and use `python -m bdh push` at home."
        return "", "This machine is not logged in to the Hub: run `hf auth login` first."
    try:
        user = publish.account(token)
    except HatcheryError as error:
        return "", cards.line(error, 400)
    return user, f"It will be published as **{cards.line(user)}**. Nobody else sees the token, and it is not kept here."


def sending(
    take: Callable[[], tuple[Path, str]], repo: str, token: str | None, limits: Limits, *, private: bool, license: str,
    agreed: str = "",
) -> Iterator[tuple[float, str] | Asked | Published]:  # fmt: skip
    """Send a checkpoint to the Hub: how far it is, and at the end that it arrived, or what is there already.

    Args:
        take: gives the folder.
        agreed: the mark of what may be replaced.

    Raises:
        HatcheryError: nobody is signed in, or what the Hub says.
    """
    repo = hub.without_address(repo.strip()) if isinstance(repo, str) else ""
    if not cards.is_hub_id(repo):
        raise CheckpointError(f"the repository is {repo!r:.80}; give it as user/name")
    if token is None:
        raise CheckpointError(who(None, limits)[1].removesuffix("."))
    folder, _ = take()

    def work(tell: Tell, give: Callable[[Any], None]) -> None:
        turn = _turns.setdefault(repo.lower(), threading.Lock())
        while not turn.acquire(timeout=_TELL_S):  # one that was stopped takes back what it began
            tell(0.0, "waiting for another upload to this repository to end")
        try:
            send(tell, give)
        finally:
            turn.release()

    def send(tell: Tell, give: Callable[[Any], None]) -> None:
        tell(0.0, "looking at what is there")
        there = publish.look(repo, token=token)
        if there.to_be_agreed(private) and agreed != there.mark:
            give(Asked(there.mark, there.words(), _REPLACE if there.files else _FILL))
            return
        begun = told = time.monotonic()

        def progress(done: int, total: int) -> None:
            nonlocal told
            now = time.monotonic()
            if now - told >= _TELL_S:  # a page that is drawn anew all the time does nothing else
                told = now
                tell(done / total, pace(done, total, now - begun))

        address = publish.upload(
            folder, repo, private=private, token=token, license=license,
            replace=agreed == there.mark, seen=there, progress=progress,
        )  # fmt: skip
        give(Published(repo, address))

    yield from in_steps(work)


def pace(done: int, total: int, elapsed_s: float) -> str:
    """How far an upload is, how fast, and how long it will take."""
    text = f"{size_text(done)} of {size_text(total)}"
    if elapsed_s < 0.5 or not done:
        return text
    rate = done / elapsed_s
    left = f" · {(total - done) / rate:,.0f} s left" if done < total else " · the Hub is putting it in its place"
    return f"{text} · {size_text(int(rate))}/s{left}"


class PublishForm:
    """The form, laid out where this is made; `suggest_on` says when it is to be filled in."""

    def __init__(
        self, name: str, owner: gr.BrowserState, limits: Limits, subject: Sequence[gr.components.Component], take: Take
    ) -> None:
        """Lay it out and wire it.

        Args:
            name: what its elements' ids begin with.
            subject: the components that say what is published.
            take: called with the owner and the values of `subject`.
        """
        self._owner, self._limits, self._subject, self._take = owner, limits, list(subject), take
        self._stopped: dict[str, threading.Event] = {}
        with gr.Column():
            self._who = gr.Markdown(elem_classes="publish-who", elem_id=f"{name}-who")
            with gr.Row():
                self._repo = gr.Textbox(
                    label="Repository", info="made if there is none", placeholder="user/name", max_lines=1, scale=3,
                    min_width=240, elem_id=f"{name}-repo",
                )  # fmt: skip
                self._license = gr.Dropdown(
                    list(cards.LICENSES), value=cards.UNKNOWN, label="Licence", info="of these weights",
                    allow_custom_value=True, min_width=150, elem_id=f"{name}-license",
                )  # fmt: skip
                self._private = gr.Checkbox(
                    True, label="Only I can see it", info="of a new one", min_width=160, elem_id=f"{name}-private"
                )
            with gr.Row():
                self._push = gr.Button(_PUBLISH, variant="primary", scale=2, min_width=140, elem_id=f"{name}-push")
                self._stop = gr.Button(
                    "Stop", variant="stop", interactive=False, min_width=90, elem_id=f"{name}-push-stop"
                )
            self._progress = gr.HTML(elem_classes="flush", elem_id=f"{name}-progress")
            self._told = gr.Markdown(elem_classes="publish-told", elem_id=f"{name}-pushed")
        self._user, self._suggested, self._agreed = gr.State(""), gr.State(""), gr.State("")
        self._wire()

    def suggest_on(self, opened: Sequence[Any], changed: Sequence[Any] = ()) -> None:
        """Fill the form in when it is opened, and anew when another checkpoint is chosen."""
        quick: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "hidden"}
        filled = [self._repo, self._license, self._suggested]
        gr.on(
            list(opened), self._on_open, [self._owner, self._repo, self._suggested, *self._subject],
            [self._who, self._user, *filled], **quick,
        )  # fmt: skip
        if changed:
            gr.on(
                list(changed), self._on_change,
                [self._owner, self._user, self._repo, self._suggested, *self._subject],
                [*filled, self._told, self._push, self._agreed], **quick,
            )  # fmt: skip

    def _wire(self) -> None:
        quick: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "hidden"}
        shown = [self._progress, self._told, self._push, self._stop, self._agreed]
        sent = gr.on(
            [self._push.click, self._repo.submit], self._on_publish,
            [self._owner, self._repo, self._license, self._private, self._agreed, *self._subject], shown,
            api_visibility="private", concurrency_limit=AT_ONCE, concurrency_id="publishing", show_progress="hidden",
        )  # fmt: skip
        sent.failure(lambda: resting(), None, shown, **quick)
        # Not by Gradio's `cancels`: what was under way would be told after what is told of the end.
        self._stop.click(self._on_stop, None, None, **quick)
        self._repo.input(lambda: (gr.Button(_PUBLISH), ""), None, [self._push, self._agreed], **quick)

    def _suggestion(self, user: str, whose: Owner, repo: str, before: str, values: Sequence[Any]) -> tuple[Any, ...]:
        """Repository, licence and what was suggested, for what is chosen."""
        try:
            folder, title = self._take(whose, *values)
            license = cards.license_of(checkpoint.read_card(folder)) or cards.UNKNOWN
        except (HatcheryError, OSError):  # there is nothing yet
            return gr.skip(), gr.skip(), before
        name = publish.suggested(user, title)
        untouched = not repo or repo == before
        return (name if untouched and name else gr.skip()), license, name

    def _on_open(
        self, request: gr.Request, account: gr.OAuthToken | None, secret: str, repo: str, before: str, *values: Any
    ) -> tuple[Any, ...]:
        user, told = who(token_of(account, self._limits), self._limits)
        return told, user, *self._suggestion(user, identify(secret, request), repo, before, values)

    def _on_change(
        self, request: gr.Request, secret: str, user: str, repo: str, before: str, *values: Any
    ) -> tuple[Any, ...]:
        whose = identify(secret, request)
        return *self._suggestion(user, whose, repo, before, values), "", gr.Button(_PUBLISH), ""

    @whole
    def _on_publish(
        self, request: gr.Request, account: gr.OAuthToken | None, secret: str, repo: str, license: str, hidden: bool,
        agreed: str, *values: Any,
    ) -> Iterator[tuple[Any, ...]]:  # fmt: skip
        whose = identify(secret, request)
        token = token_of(account, self._limits)
        yield bar(0.0, "getting ready"), "", gr.Button(interactive=False), gr.Button(interactive=True), gr.skip()
        session = request.session_hash or ""
        stopped = self._stopped[session] = threading.Event()
        try:
            steps = sending(
                lambda: self._take(whose, *values), repo, token, self._limits, private=hidden, license=license or "",
                agreed=agreed,
            )  # fmt: skip
            with closing(steps) as going:  # type: ignore[type-var]
                for step in going:
                    if isinstance(step, Asked):
                        again = "replace its files of the same names" if step.deed == _REPLACE else "fill it as it is"
                        yield (
                            *resting(f"{step.words}. Choose another name, or press again to {again}.")[:2],
                            gr.Button(step.deed, interactive=True),
                            gr.Button(interactive=False),
                            step.mark,
                        )
                    elif isinstance(step, Published):
                        page = step.address.partition("/commit/")[0]
                        yield resting(f"Published: [{step.repo_id}]({page}). Your copy stays here.")
                    elif stopped.is_set():
                        yield resting("Stopped. What had arrived is not sent twice; your copy stays here.")
                        return
                    else:
                        yield bar(*step), *[gr.skip()] * 4
        except HatcheryError as error:
            yield resting(
                f"**It was not published**: {cards.line(error, 1000)}. Your copy stays here; you can try again."
            )
        finally:
            self._stopped.pop(session, None)

    def _on_stop(self, request: gr.Request) -> None:
        if (stopped := self._stopped.get(request.session_hash or "")) is not None:
            stopped.set()


def resting(words: str = "") -> tuple[Any, ...]:
    """The form when nothing is under way."""
    return "", words, gr.Button(_PUBLISH, interactive=True), gr.Button(interactive=False), ""
