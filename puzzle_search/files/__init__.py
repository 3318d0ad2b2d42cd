"""Files read strictly and written whole: text, YAML, JSON, CSV, journals and content hashes."""

from puzzle_search.files.hashes import file_hash, value_hash
from puzzle_search.files.journal import Journal, resume_journal
from puzzle_search.files.reading import (
    check_keys,
    damage_told,
    parse_json,
    read_json,
    read_text,
    read_yaml,
)
from puzzle_search.files.records import (
    Flag,
    Record,
    Row,
    Text,
    check_line,
    check_record,
    read_rows,
    rows_as_csv,
)
from puzzle_search.files.writing import (
    check_own_folder,
    check_writable,
    folder_written_whole,
    full_disk_reported,
    is_stream,
    write_text,
    written_whole,
)

__all__ = [
    "Flag",
    "Journal",
    "Record",
    "Row",
    "Text",
    "check_keys",
    "check_line",
    "check_own_folder",
    "check_record",
    "check_writable",
    "damage_told",
    "file_hash",
    "folder_written_whole",
    "full_disk_reported",
    "is_stream",
    "parse_json",
    "read_json",
    "read_rows",
    "read_text",
    "read_yaml",
    "resume_journal",
    "rows_as_csv",
    "value_hash",
    "write_text",
    "written_whole",
]
