"""The helpers behind every command: all-or-nothing writing, and errors as one line."""

from pathlib import Path

import pytest

from ratlip_hf.utils.errors import CommandParser, UserError, command_line, one_line
from ratlip_hf.utils.files import (
    append_line,
    atomic_directory,
    atomic_write,
    check_appendable,
    is_free,
    link_files,
    read_json,
    staged_files,
)


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = atomic_write(tmp_path / "deep" / "file", "one")
    atomic_write(path, b"two")
    assert path.read_text() == "two"
    with pytest.raises(TypeError):
        atomic_write(path, 3)
    assert path.read_text() == "two"
    assert list(path.parent.iterdir()) == [path]


def test_a_directory_appears_complete_or_not_at_all(tmp_path):
    target = tmp_path / "model"
    with atomic_directory(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    with pytest.raises(RuntimeError), atomic_directory(target) as folder:
        (folder / "a").write_text("2")
        raise RuntimeError
    assert (target / "a").read_text() == "1"
    with atomic_directory(target) as folder:
        (folder / "b").write_text("3")
    assert [path.name for path in target.iterdir()] == ["b"]
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_killed_writer_left_goes_and_an_old_folder_comes_back(tmp_path):
    for name in (".model.abcdefgh", ".model.partial", ".model.ABC"):
        (tmp_path / name).mkdir()
    (tmp_path / ".model.12345678.old").mkdir()
    (tmp_path / ".model.12345678.old" / "a").write_text("1")
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "model"):
        raise RuntimeError
    assert (tmp_path / "model" / "a").read_text() == "1"
    assert {path.name for path in tmp_path.iterdir()} == {"model", ".model.partial", ".model.ABC"}


def test_staged_files_join_a_folder_only_on_success(tmp_path):
    target = tmp_path / "out"
    with pytest.raises(RuntimeError), staged_files(target) as folder:
        (folder / "a").write_text("1")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    for name in ("a", "b"):
        with staged_files(target) as folder:
            assert folder.parent == target  # the same file system, and no need to write beside it
            (folder / name).write_text(name)
    assert sorted(path.name for path in target.iterdir()) == ["a", "b"]
    with pytest.raises(OSError), staged_files(target / "a"):
        pass


@pytest.mark.parametrize("error", [UserError("one\n  line"), ValueError("one line"), OSError("one line")])
def test_mistakes_are_one_line_and_code_2(error, capsys):
    @command_line
    def main():
        raise error

    assert main() == 2
    assert capsys.readouterr().err == "error: one line\n"


def test_an_interruption_is_one_line_as_well(capsys):
    @command_line
    def main():
        raise KeyboardInterrupt

    assert main() == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_defects_keep_their_traceback_and_success_is_0():
    @command_line
    def main(fail):
        if fail:
            raise KeyError("defect")

    assert main(False) == 0
    with pytest.raises(KeyError):
        main(True)


def test_options_have_no_short_forms():
    parser = CommandParser(prog="tool")
    parser.add_argument("--num_images")
    with pytest.raises(UserError, match="tool --help"):
        parser.parse_args(["--num", "3"])


@pytest.mark.parametrize("source, copy", [("folder", "folder/deep/file"), ("folder/deep/file", "file")])
def test_linked_files_keep_their_content_when_the_first_ones_are_replaced(tmp_path, source, copy):
    file = atomic_write(tmp_path / "folder/deep/file", "one")
    link_files(tmp_path / source, tmp_path / "links" / Path(copy).parts[0])
    assert (tmp_path / "links" / copy).samefile(file)
    atomic_write(file, "two")
    assert (tmp_path / "links" / copy).read_text() == "one"
    with pytest.raises(FileNotFoundError):
        link_files(tmp_path / "missing", tmp_path / "links" / "missing")


def test_what_another_library_says_becomes_one_line():
    assert one_line(ValueError("  one\n\n  two ")) == "one two"
    assert one_line(KeyError()) == "KeyError"
    assert len(one_line(ValueError("word " * 1000))) <= 300


def test_a_line_is_added_to_whatever_was_there(tmp_path):
    path = tmp_path / "new" / "lines.txt"
    check_appendable(path)
    assert not path.parent.exists()
    append_line(path, "one")
    append_line(path, "two")
    assert path.read_text() == "one\ntwo\n"
    path.write_text("no end of line")
    append_line(path, "three")
    assert path.read_text() == "no end of line\nthree\n"


def test_a_folder_may_be_made_where_nothing_or_an_empty_one_is(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    assert is_free(tmp_path / "new") and is_free(tmp_path / "empty") and not is_free(tmp_path)
    for place in (tmp_path / "link", Path("/")):
        with pytest.raises(UserError, match="a link or a mount point"):
            is_free(place, UserError)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, b"\xff\xfe"])
def test_what_is_no_json_is_a_value_error(text, tmp_path):
    with pytest.raises(ValueError):
        read_json(atomic_write(tmp_path / "damaged.json", text))
    with pytest.raises(OSError):
        read_json(tmp_path / "absent.json")
