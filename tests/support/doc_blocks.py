"""The fenced blocks of the documentation, and the commands in them."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]
_MARK = re.compile(r"<!-- (?P<name>[\w-]+): (?P<value>.+?) -->\s*")
_ENDS = {"|", "||", "&&", ";", "&"}


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Args:
        page: Path of the document from the root of the repository.
        line: Of its first fence, from 1 on.
        info: What stands behind the fence: the language, and words on how to test it.
        text: The content.
        mark: (name, value) of a comment `<!-- name: value -->` right above it.
    """

    page: str
    line: int
    info: str
    text: str
    mark: tuple[str, str] | None

    @property
    def language(self) -> str:
        """The first word behind the fence, or ""."""
        return self.info.partition(" ")[0]

    @property
    def words(self) -> list[str]:
        """The others."""
        return self.info.split()[1:]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """Return every document of the repository."""
    folders = ("docs/**/*.md", "recipes/**/*.md", "tests/example_plugin/*.md", ".github/**/*.md", "*.md")
    return sorted({path for pattern in folders for path in ROOT.glob(pattern)})


@functools.cache
def blocks() -> tuple[Block, ...]:
    """Return the fenced blocks of every document."""
    return tuple(block for path in pages() for block in blocks_of(path.read_text("utf-8"), str(path.relative_to(ROOT))))


def blocks_of(text: str, page: str = "") -> Iterator[Block]:
    """Yield the fenced blocks of a text, and those that are only indented, whose language nobody can know."""
    before = ""
    for token in MarkdownIt().parse(text):
        if token.type in ("fence", "code_block"):
            mark = _MARK.fullmatch(before)
            found = (mark["name"], mark["value"]) if mark else None
            info = token.info.strip() if token.type == "fence" else ""
            yield Block(page, (token.map or [0])[0] + 1, info, token.content, found)
        before = token.content if token.type == "html_block" else ""


def of(*languages: str) -> list[Block]:
    """Return the blocks in one of these languages."""
    return [block for block in blocks() if block.language in languages]


@dataclass(frozen=True)
class Command:
    """A simple command.

    Args:
        block: Where it stands.
        words: Program and arguments, without variables before it and redirections behind it.
        target: File that its output goes to, or None.
    """

    block: Block
    words: tuple[str, ...]
    target: str | None = None

    @property
    def line(self) -> str:
        """The words as one text."""
        return shlex.join(self.words)

    def __str__(self) -> str:
        return f"{self.block}: {self.line}"


def commands() -> list[Command]:
    """Return every command of the blocks in bash and console."""
    return [command for block in of("bash", "console") for command in commands_of(block)]


def script_of(block: Block) -> str:
    """Return what a reader would type: the block itself, or its lines behind `$ `."""
    if block.language == "bash":
        return block.text
    typed, goes_on = [], False
    for line in block.text.splitlines():
        if line.startswith("$ ") or goes_on:
            typed.append(line if goes_on else line[2:])
            goes_on = line.endswith("\\")
    return "\n".join(typed) + "\n"


def commands_of(block: Block) -> Iterator[Command]:
    """Yield the simple commands of a block: no loops, no functions."""
    for line in script_of(block).replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word in _ENDS:
                if words:
                    yield _command(block, words)
                words = []
            else:
                words.append(word)


def _command(block: Block, words: list[str]) -> Command:
    while words and re.fullmatch(r"\w+=.*", words[0]):
        words = words[1:]
    if ">" in words:
        at = words.index(">")
        return Command(block, tuple(words[:at]), words[at + 1])
    return Command(block, tuple(words))
