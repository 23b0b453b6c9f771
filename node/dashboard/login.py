"""The form that asks a visitor for a key: plain HTML."""

from __future__ import annotations

from html import escape

from node.dashboard.kept_chat import PREFIX

STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
main { max-width: 24rem; margin: 15vh auto 0; padding: 0 1rem }
label, input, button { display: block; width: 100%; box-sizing: border-box; font: inherit; margin-top: .5rem }
input, button { padding: .6rem; border-radius: .4rem; border: 1px solid #767676 }
button { background: #0b57d0; color: #fff; border-color: #0b57d0; font-weight: 600; cursor: pointer }
.wrong { color: #b3261e } @media (prefers-color-scheme: dark) { .wrong { color: #f2b8b5 } }
"""

FORGET = f"Object.keys(sessionStorage).filter(n => n.startsWith('{PREFIX}')).forEach(n => sessionStorage.removeItem(n))"
"""A conversation that the tab keeps ends with the visitor's key."""


def login_page(home: str, is_wrong: bool = False) -> str:
    """The document. home: the address of the page, with a slash at its end."""
    wrong = '<p class="wrong" role="alert">This key is not known here, or was revoked.</p>' if is_wrong else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Murmuration: key</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body><main>'
        f"<h1>Murmuration</h1><p>This gateway has keys. Its operator gives you one.</p>{wrong}"
        f'<form method="post" action="{escape(home)}login"><label for="key">Key</label>'
        '<input id="key" name="key" type="password" required autofocus autocomplete="current-password" maxlength="200">'
        f"<button>Enter</button></form></main><script>{FORGET}</script></body></html>"
    )
