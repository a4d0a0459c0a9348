"""Templates with `{placeholders}`: parsed once, filled in one pass, so that filled-in text is never read again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from string import Formatter

from sdpo_plugins.errors import ConfigError

__all__ = ["Template", "parse_template"]


@dataclass(frozen=True)
class Template:
    """A parsed template: literal texts and the placeholders between them.

    Args:
        pieces: (literal, placeholder) pairs in order; the placeholder is None where only a literal stands.

    Example:
        >>> parse_template("{{x}} {prompt}").fill(prompt="{y}")
        '{x} {y}'
    """

    pieces: tuple[tuple[str, str | None], ...]

    def fill(self, **values: str) -> str:
        """Return the text with each placeholder replaced by its value, braces in values left alone.

        Args:
            values: One text for each placeholder; others are not needed and not read.

        Returns:
            The filled text.

        Raises:
            KeyError: A placeholder has no value.
        """
        return "".join(literal + (values[name] if name is not None else "") for literal, name in self.pieces)

    def around(self, name: str, **values: str) -> tuple[str, str]:
        """Return the filled text before and after the first `{name}`, for values that are more than text.

        Args:
            name: The placeholder to leave open; it must stand in the template.
            values: As in `fill`, `name` included, for where it stands again.

        Returns:
            (text before, text after).

        Example:
            >>> parse_template("a{x}b{y}").around("x", x="", y="2")
            ('a', 'b2')
        """
        texts = ["", ""]
        side = 0
        for literal, placeholder in self.pieces:
            texts[side] += literal
            if placeholder == name and side == 0:
                side = 1
            elif placeholder is not None:
                texts[side] += values[placeholder]
        return texts[0], texts[1]


@lru_cache(maxsize=64)
def parse_template(text: str) -> Template:
    """Parse a template text; a doubled brace stands for a literal one.

    Args:
        text: Text with `{name}` placeholders.

    Returns:
        The template.

    Raises:
        ConfigError: Unbalanced braces, or a placeholder with more than a name, such as `{prompt!r}`.

    Example:
        >>> parse_template("{prompt}{solution}").fill(prompt="1+1?", solution=" 2")
        '1+1? 2'
    """
    return Template(tuple(_pieces(text)))


def _pieces(text: str) -> Iterator[tuple[str, str | None]]:
    try:
        parsed = list(Formatter().parse(text))
    except ValueError as error:
        raise ConfigError(
            f"{text!r} is no valid template ({error}); write a literal brace twice: '{{{{' or '}}}}'."
        ) from error
    for literal, name, spec, conversion in parsed:
        if name is not None and (spec or conversion or not name.isidentifier()):
            raise ConfigError(
                f"A placeholder of a template is a plain name such as {{prompt}}; {text!r} has {{{name}"
                f"{'!' + conversion if conversion else ''}{':' + spec if spec else ''}}}."
            )
        yield literal, name
