"""MkDocs' hook: the pages are written to be read in the repository, and this makes a site of them.

Links that lead out of docs/, to runbooks, configurations and examples, lead to copies inside the site, so that it needs
no other server and no network. Pages that mkdocs.yml does not name are listed by its patterns.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
# Where copies of what is outside docs/ stand in the site.
COPIES = "repository"
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#|//)([^)\s#]+)(#[^)\s]*)?(?=\))")
# A bar in a table's cell is escaped for GitHub, inside code too, where Python-Markdown would show the backslash.
_CODE = re.compile(r"`[^`\n]*`")
_FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fills in what stands in mkdocs.yml as a pattern: the pages that are named nowhere else."""
    named = set(_mentioned(config.nav))
    config.nav = [_listed(item, named) for item in config.nav or []]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds copies of everything outside docs/ that the pages lead to, and that those lead to in their turn."""
    waiting = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    waiting += [path for path in _mentioned(config.nav) if not path.startswith("docs/")]
    seen: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        if not path.startswith("docs/"):
            files.append(File.generated(config, _in_site(path), abs_src_path=str(ROOT / path)))
        if path.endswith(".md"):
            text = (ROOT / path).read_text(encoding="utf-8")
            waiting += [target for target in _targets(path, text) if (ROOT / target).is_file()]
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Turns each link into one that is right in the site; MkDocs then says which lead nowhere."""
    path = _in_repository(page.file.src_uri)
    here = posixpath.dirname(page.file.src_uri)

    def replaced(match: re.Match[str]) -> str:
        target = _resolved(path, match[1])
        return posixpath.relpath(_in_site(target), here or ".") + (match[2] or "")

    def written(text: str) -> str:
        return _CODE.sub(lambda code: code[0].replace(r"\|", "|"), _LINK.sub(replaced, text))

    return "".join(part if _is_fence(part) else written(part) for part in _fences_apart(markdown))


def _fences_apart(text: str) -> list[str]:
    """The text in pieces: those between fenced blocks, and the blocks."""
    pieces, end = [], 0
    for fence in _FENCE.finditer(text):
        pieces += [text[end : fence.start()], fence[0]]
        end = fence.end()
    return [*pieces, text[end:]]


def _is_fence(part: str) -> bool:
    return part.lstrip().startswith("```")


def _targets(path: str, text: str) -> list[str]:
    """What a page links to, by paths in the repository."""
    return [
        _resolved(path, match[1])
        for part in _fences_apart(text)
        if not _is_fence(part)
        for match in _LINK.finditer(part)
    ]


def _resolved(path: str, target: str) -> str:
    """A folder is its README, as repositories show it."""
    found = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    return f"{found}/README.md" if (ROOT / found / "README.md").is_file() else found


def _in_site(path: str) -> str:
    return path.removeprefix("docs/") if path.startswith("docs/") else f"{COPIES}/{path}"


def _in_repository(uri: str) -> str:
    return uri.removeprefix(f"{COPIES}/") if uri.startswith(f"{COPIES}/") else f"docs/{uri}"


def _listed(item: Any, named: set[str]) -> Any:
    """An entry of the navigation, with a pattern such as `decisions/*.md` replaced by the files it names."""
    if isinstance(item, dict):
        return {title: _listed(below, named) for title, below in item.items()}
    if isinstance(item, list):
        return [
            entry
            for below in item
            for entry in (_matching(below, named) if isinstance(below, str) else [_listed(below, named)])
        ]
    return item


def _matching(uri: str, named: set[str]) -> list[str]:
    if "*" not in uri:
        return [uri]
    found = {path.relative_to(ROOT).as_posix() for path in ROOT.glob(_in_repository(uri))}
    return [_in_site(path) for path in sorted(found - named)]


def _mentioned(item: Any) -> list[str]:
    """The paths, in the repository, of all pages in the navigation."""
    if isinstance(item, dict):
        return [path for below in item.values() for path in _mentioned(below)]
    if isinstance(item, list):
        return [path for below in item for path in _mentioned(below)]
    return [_in_repository(item)] if isinstance(item, str) and not re.match(r"\w+:", item) else []
