"""Every code block of README.md and docs/ runs: the blocks of a page in order, as a reader would type them."""

import pytest

from tests.docs.pages import EXTEND, LANGUAGES, PAGES, ROOT, blocks_of, page_id, shell_lines, without_comment
from tests.docs.running import NOT_RUN, run_page

WITH_BLOCKS = [page for page in PAGES if blocks_of(page)]


def test_there_are_pages_of_all_four_kinds():
    kinds = {page.parent.name for page in PAGES} - {ROOT.name, "docs"}
    assert kinds == {"tutorial", "how-to", "explanation", "reference"}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_fence_is_a_block_of_a_known_language(page):
    fences = [line for line in page.read_text(encoding="utf-8").splitlines() if line.lstrip().startswith("```")]
    blocks = blocks_of(page)
    assert len(fences) == 2 * len(blocks)
    assert {block.language for block in blocks} <= LANGUAGES


def test_every_command_that_is_not_run_stands_on_a_page():
    shells = [block for page in PAGES for block in blocks_of(page) if block.language == "sh"]
    commands = {without_comment(line) for block in shells for line in shell_lines(block)}
    assert set(NOT_RUN) <= commands


# test_extend.py runs that page, and looks at what it has made.
@pytest.mark.parametrize("page", [page for page in WITH_BLOCKS if page != EXTEND], ids=page_id)
def test_the_blocks_of_a_page_run_in_order(page, workplace, small_budgets):
    run_page(page)
