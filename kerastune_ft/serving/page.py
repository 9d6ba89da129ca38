"""The page at `/`: tries the model in a browser, through the same REST API that others use.

It is one answer without anything beside it, and a Content-Security-Policy allows nothing else: its
own script and style by a number used once, pictures that the user chose, requests to this server.

    response(service)                                # HTML
"""

from __future__ import annotations

import contextlib
import functools
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from starlette.responses import Response

from kerastune_ft.serving.refusals import RefusedError

if TYPE_CHECKING:
    from kerastune_ft.serving.service import Service

_FACTS = ("task", "modality", "classes", "thresholds", "text_inputs", "tokenizer_inside", "run")


def response(service: Service) -> Response:
    """Returns the page for the newest version."""
    nonce = secrets.token_urlsafe(18)
    text = _template().render(nonce=nonce, facts=facts(service))
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
        "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cache-Control": "no-store",
    }
    return Response(text, media_type="text/html", headers=headers)


def facts(service: Service) -> dict[str, Any]:
    """Returns what the page knows of the model: what `kft.json` says, and its signatures."""
    registry = service.registry
    known: dict[str, Any] = {"name": registry.name, "version": None, "signatures": {}}
    known["request_bytes"] = service.bounds.request_bytes
    # Without a version that answers, the page says so.
    with contextlib.suppress(RefusedError), registry.borrow() as version:
        model = version.model
        known["version"] = version.number
        known.update({key: model.facts[key] for key in _FACTS if key in model.facts})
        known["signatures"] = {
            name: {key: str(tensor) for key, tensor in signature.inputs.items()}
            for name, signature in model.signatures.items()
        }
    known["form"] = _form(known)
    return known


def _form(known: Mapping[str, Any]) -> str:
    """Returns what can be entered: `pictures`, `texts`, or `none` and why not."""
    signature = known["signatures"].get("serving_default", {})
    modality = known.get("modality")
    if modality == "image" and set(signature) == {"image_bytes"}:
        return "pictures"
    if modality == "text" and signature and set(signature) <= {"text", "pair"}:
        return "texts"
    return "none"


@functools.cache
def _template() -> jinja2.Template:
    where = jinja2.FileSystemLoader(Path(__file__).parents[1] / "templates")
    return jinja2.Environment(loader=where, autoescape=True).get_template("serving.html")
