"""Files: paths that users give, files and sets of files that appear whole or not at all, reading in bounds."""

from volseg.files.paths import (
    access_to,
    common_folder,
    folders_below,
    given_path,
    is_hidden,
    require_disk_space,
    require_writable,
    utf8_path,
)
from volseg.files.reading import (
    append_to,
    as_tuples,
    open_no_link,
    open_regular,
    open_to_read,
    read_json_lines,
    require_regular,
    sha256_of,
)
from volseg.files.sets import (
    finish_files,
    whole_files,
)
from volseg.files.whole import (
    LEFTOVERS,
    as_json,
    discard,
    remove_leftovers,
    remove_leftovers_of,
    temporary_path,
    whole_file,
    write_json,
    write_text,
    writing,
)

__all__ = [
    "LEFTOVERS",
    "access_to",
    "append_to",
    "as_json",
    "as_tuples",
    "common_folder",
    "discard",
    "finish_files",
    "folders_below",
    "given_path",
    "is_hidden",
    "open_no_link",
    "open_regular",
    "open_to_read",
    "read_json_lines",
    "remove_leftovers",
    "remove_leftovers_of",
    "require_disk_space",
    "require_regular",
    "require_writable",
    "sha256_of",
    "temporary_path",
    "utf8_path",
    "whole_file",
    "whole_files",
    "write_json",
    "write_text",
    "writing",
]
