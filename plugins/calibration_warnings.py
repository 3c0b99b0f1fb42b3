"""Warnings of missing or few calibration tokens, and of a Hessian that needs more damping; each is given once."""

import logging

log = logging.getLogger(__name__)
given: set[tuple[str, str, object]] = set()
"""Warnings that were given: compressor, kind, and component or width."""


def warn_once(compressor: str, kind: str, of: object, text: str) -> None:
    """Log a warning once, however often a component is compressed."""
    if (compressor, kind, of) not in given:
        given.add((compressor, kind, of))
        log.warning("%s: %s", compressor, text)


def warn_of_tokens(compressor: str, component: str, tokens: int, fallback: str) -> None:
    """Warn if no token reached any of the components that are compressed; only for the first of them."""
    if tokens == 0:
        text = f"no calibration token reached `{component}`, so it is {fallback}; raise data.prefixes"
        warn_once(compressor, "unreached", None, text)


def warn_of_few_tokens(compressor: str, component: str, tokens: int, width: int) -> None:
    """Warn if the Hessian is of fewer tokens than inputs; only for the first component of each width."""
    if 0 < tokens < width:
        text = f"`{component}` has only {tokens} calibration tokens for {width} inputs, so damping has a large effect"
        warn_once(compressor, "few", width, f"{text}; raise data.prefixes or data.continuation_tokens")
