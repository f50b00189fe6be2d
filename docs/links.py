"""Sphinx extension: what the pages' Markdown says for a reader of the repository, put right for one of the site."""

import re
from functools import partial
from pathlib import Path

LAST = "guide/security\n"  # of the lists of guides in the index


def prepare(app, name, text):
    """Make links out of docs/ work, and put every guide that no list of the index names into the last one."""
    guides = Path(app.srcdir) / "guide"
    text[0] = re.sub(r"\[([^]]+)\]\((\.\./\.\./[^)#]+)\)", partial(link_out, guides), text[0])
    text[0] = re.sub(r"\((\.\./)?tutorial/(\w+)\.py\)", r"(/_tutorial/\2.rst)", text[0])
    if name == "index":
        others = {f"guide/{page.stem}" for page in guides.glob("*.md")}
        others -= set(re.findall(r"^guide/\w+$", text[0], re.MULTILINE))
        text[0] = text[0].replace(LAST, LAST + "".join(f"{page}\n" for page in sorted(others)))


def link_out(guides, link):
    """A file of the repository is a download; a folder is its name alone."""
    words, target = link.groups()
    if (guides / target).is_dir():
        return words
    return f"[{words}](path:{target})" if target.endswith(".md") else link[0]


def setup(app):
    """Have it done whenever a page is read."""
    app.connect("source-read", prepare)
    return {"parallel_read_safe": True}
