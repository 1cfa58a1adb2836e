"""Links between the pages lead somewhere."""

import re

import pytest

from tests.docs.pages import PAGES, ROOT, page_id, without_blocks

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def links(page) -> list[str]:
    """The targets of all links and pictures of a page."""
    return LINK.findall(without_blocks(page))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_relative_links_exist(page):
    for link in links(page):
        if "://" in link:
            continue
        path, _, heading = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page_id(page)} links to {link}"
        if heading:
            assert heading in headings(target), f"{page_id(page)} links to {link}"


def headings(page) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", without_blocks(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_index_links_to_every_page():
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / link).resolve() for link in links(index)}
    assert {page for page in PAGES if page.parent.parent == index.parent} <= linked
