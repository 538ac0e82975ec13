"""Buttons that take away what cost work ask to be pressed twice: on a touch screen a wrong press is easy.

Browsers do not show dialogs to a page inside another one, as a Space is; so the button asks by itself.
"""

BUTTONS = ("runs-delete", "merge-delete")
"""By elem_id."""
_PRESSED = ", ".join(f"#{name}.sure" for name in BUTTONS)
CSS = f"""
:is({_PRESSED}) {{ font-size: 0 !important; color: var(--error-text-color) !important; }}
:is({_PRESSED})::after {{ content: "Press again to delete"; font-size: var(--text-sm); }}
"""
SCRIPT = """
() => document.addEventListener("click", (event) => {
  const button = event.target.closest?.("BUTTONS");
  if (!button) return;
  if (button.classList.contains("sure")) {
    button.classList.remove("sure");
    return;
  }
  event.stopImmediatePropagation();
  event.preventDefault();
  button.classList.add("sure");
  setTimeout(() => button.classList.remove("sure"), 5000);
}, true)
""".replace("BUTTONS", ", ".join(f"#{name}" for name in BUTTONS))
