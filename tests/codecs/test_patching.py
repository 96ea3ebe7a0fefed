"""Insertions into source trees, compared with Python's own diff of the two versions, and undone byte for byte."""

from __future__ import annotations

import difflib
import hashlib
import os
from pathlib import Path

import pytest

from jaxwrap.codecs.reference import patching
from jaxwrap.codecs.reference.patching import Patch, apply, insert, load_patch, next_step, parse_patch, patch_tree

BEFORE = {
    "src/a.c": "one\ntwo\nthree\nfour\n",
    "src/b.c": "alpha\n\nbeta\n",
}
AFTER = {
    "src/a.c": "first\nsecond\none\ntwo\nbetween\nthree\nfour\nlast\n",
    "src/b.c": "alpha\n\ninserted ä\nbeta\n",
}
HEADERS = {"own.h": b"// ours\n"}


def diff_of(before: dict[str, str], after: dict[str, str]) -> bytes:
    """A patch as a diff program without context makes it."""
    lines = ["# demo 1.0"]
    lines += [f"# sha256 {path} {hashlib.sha256(text.encode()).hexdigest()}" for path, text in before.items()]
    for path in before:
        old, new = before[path].splitlines(), after[path].splitlines()
        lines += difflib.unified_diff(old, new, f"a/{path}", f"b/{path}", n=0, lineterm="")
    return "\n".join(lines).encode() + b"\n"


def demo_patch() -> Patch:
    return parse_patch(diff_of(BEFORE, AFTER), HEADERS)


def tree_of(folder: Path, texts: dict[str, str], *, end: str = "\n") -> Path:
    for path, text in texts.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(text.replace("\n", end).encode())
    (folder / "inc").mkdir(exist_ok=True)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_tree_is_patched_with_its_own_line_ends_and_restored_byte_for_byte(tmp_path, end):
    tree = tree_of(tmp_path, BEFORE, end=end)
    original = content(tree)
    assert apply(demo_patch(), tree, "inc") == ("inc/own.h", "src/a.c", "src/b.c")
    wanted = {path: text.replace("\n", end).encode() for path, text in AFTER.items()}
    assert content(tree) == {**wanted, "inc/own.h": HEADERS["own.h"]}
    assert apply(demo_patch(), tree, "inc") == ()
    assert apply(demo_patch(), tree, "inc", reverse=True) == ("inc/own.h", "src/a.c", "src/b.c")
    assert content(tree) == original
    assert apply(demo_patch(), tree, "inc", reverse=True) == ()


def test_line_ends_that_change_within_a_file_survive(tmp_path):
    tree = tree_of(tmp_path, BEFORE)
    (tree / "src/a.c").write_bytes(b"one\r\ntwo\nthree\r\nfour\r\n")
    original = content(tree)
    apply(demo_patch(), tree, "inc")
    assert (tree / "src/a.c").read_bytes().split() == AFTER["src/a.c"].encode().split()
    apply(demo_patch(), tree, "inc", reverse=True)
    assert content(tree) == original


@pytest.mark.parametrize("reverse", [False, True])
def test_another_version_is_named_and_nothing_is_changed(tmp_path, reverse):
    tree = tree_of(tmp_path, BEFORE)
    (tree / "src/b.c").write_text(BEFORE["src/b.c"] + "gamma\n")
    (tree / "inc/own.h").write_text("another")
    before = content(tree)
    with pytest.raises(
        ValueError, match=r"(?s)demo 1\.0.*nothing was changed.*src/b\.c is another.*inc/own\.h is"
    ) as e:
        apply(demo_patch(), tree, "inc", reverse=reverse)
    assert "a.c" not in str(e.value)
    assert content(tree) == before


def test_a_tree_of_something_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"(?s)src/a\.c is missing.*src/b\.c is missing"):
        apply(demo_patch(), tmp_path, "inc")
    with pytest.raises(ValueError, match="is no folder"):
        apply(demo_patch(), tmp_path / "absent", "inc")


@pytest.mark.parametrize("changed", [{"src/a.c": "five\n"}, {"src/a.c": "first\n"}])
def test_a_patched_file_that_was_edited_is_not_taken_for_ours(tmp_path, changed):
    tree = tree_of(tmp_path, BEFORE)
    apply(demo_patch(), tree, "inc")
    for path, text in changed.items():
        (tree / path).write_text((tree / path).read_text() + text)
    with pytest.raises(ValueError, match=r"src/a\.c is another version"):
        apply(demo_patch(), tree, "inc", reverse=True)


def test_an_interrupted_run_is_completed_by_the_next_in_either_direction(tmp_path):
    for reverse, wanted in ((False, {**AFTER, "inc/own.h": "// ours\n"}), (True, BEFORE)):
        tree = tree_of(tmp_path / str(reverse), {"src/a.c": AFTER["src/a.c"], "src/b.c": BEFORE["src/b.c"]})
        apply(demo_patch(), tree, "inc", reverse=reverse)
        assert content(tree) == {path: text.encode() for path, text in wanted.items()}


def test_a_write_that_fails_leaves_the_tree_as_it_was(tmp_path, monkeypatch):
    tree = tree_of(tmp_path, BEFORE)
    before = content(tree)
    writes = 0

    def fail_at_the_third(path: Path, new: bytes) -> None:
        nonlocal writes
        writes += 1
        if writes == 3:
            raise OSError(28, "No space left on device")
        path.write_bytes(new)

    monkeypatch.setattr(patching, "write_atomically", fail_at_the_third)
    with pytest.raises(OSError, match=r"b\.c cannot be written: No space left on device; the tree is as it was"):
        apply(demo_patch(), tree, "inc")
    assert content(tree) == before


def test_a_file_that_refuses_to_be_written_does_not_keep_the_others_from_being_put_back(tmp_path, monkeypatch):
    tree = tree_of(tmp_path, BEFORE)
    before = content(tree)

    def refuse_one(path: Path, new: bytes) -> None:
        if path.name == "b.c":
            raise PermissionError(13, "Permission denied")
        path.write_bytes(new)

    monkeypatch.setattr(patching, "write_atomically", refuse_one)
    with pytest.raises(OSError, match="Permission denied; the tree is as it was"):
        apply(demo_patch(), tree, "inc")
    assert content(tree) == before


def test_modes_of_files_and_links_are_kept(tmp_path):
    tree = tree_of(tmp_path / "tree", BEFORE)
    (tree / "src/a.c").chmod(0o754)
    (tree / "src/b.c").rename(tmp_path / "real.c")
    (tree / "src/b.c").symlink_to(tmp_path / "real.c")
    apply(demo_patch(), tree, "inc")
    assert os.stat(tree / "src/a.c").st_mode & 0o777 == 0o754
    assert (tree / "src/b.c").is_symlink()
    assert (tmp_path / "real.c").read_text() == AFTER["src/b.c"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"+between", b"-two", "1 inserted lines were announced"),
        (b"+between", b" two", "1 inserted lines were announced"),
        (b"+between", b"+between\n context", "a patch only inserts, without context"),
        (b"@@ -2,0 +5 @@", b"@@ -2,1 +5,1 @@", "a patch only inserts"),
        (b"@@ -2,0 +5 @@", b"@@ -2,0 +5,1 @@ int f()", "a patch only inserts"),
        (b"@@ -2,0 +5 @@", b"@@ -2,0 +6,1 @@", "does not follow from what was inserted above"),
        (b"@@ -2,0 +5 @@", b"@@ -2,0 +5,2 @@", "2 inserted lines were announced"),
        (b"# sha256 src/b.c", b"# sha256 src/c.c", r"hashes are given for \['src/a.c', 'src/c.c'\]"),
        (b"src/b.c", b"../b.c", r"\.\./b\.c is outside the tree"),
    ],
)
def test_a_patch_that_does_more_than_insert_is_refused(old, new, message):
    text = diff_of(BEFORE, AFTER)
    assert old in text
    with pytest.raises(ValueError, match=message):
        parse_patch(text.replace(old, new))


def test_insertions_below_the_end_and_after_an_unfinished_line_are_refused():
    file = demo_patch().files["src/a.c"]
    with pytest.raises(ValueError, match="after line 4 was wanted; the file has 2 lines"):
        insert(b"one\ntwo\n", file)
    with pytest.raises(ValueError, match="line 4 has no end"):
        insert(b"one\ntwo\nthree\nfour", file)


@pytest.mark.parametrize("name", ["hm", "jm"])
def test_the_shipped_patches_are_insertions_with_hashes_and_bring_their_headers(name):
    patch = load_patch(name)
    assert patch.title.split()[0] == name
    assert "jaxwrap_weights.h" in patch.headers
    assert len(patch.files) > 5
    assert all(len(file.sha256) == 64 and file.after for file in patch.files.values())
    included = b"\n".join(line for file in patch.files.values() for new in file.after.values() for line in new)
    assert any(header.encode() in included for header in patch.headers)


def test_an_encoder_without_a_patch_is_refused(tmp_path):
    with pytest.raises(ValueError, match="encoder 'vtm' was given; patches are there for: hm, jm"):
        patch_tree("vtm", tmp_path)


def test_the_user_is_told_what_to_do_next():
    assert "2 files changed: HM 18.0 is patched. Next: build TAppEncoder" in next_step("hm", ("a", "b"))
    assert "set JAXWRAP_JM" in next_step("jm", ())
    assert next_step("jm", ()).startswith("Nothing to do: JM 19.0 is patched. Next: ")
    assert next_step("hm", ("a",), reverse=True) == "1 file changed: HM 18.0 has no patch in it."


@pytest.mark.reference
@pytest.mark.parametrize("name", ["hm", "jm"])
def test_an_unchanged_tree_is_patched_and_restored(name, tmp_path):
    variable = f"JAXWRAP_{name.upper()}_TREE"
    if variable not in os.environ:
        pytest.skip(f"set {variable} to an unpatched source tree of {name}; it is copied, not changed")
    patch, source = load_patch(name), Path(os.environ[variable])
    for path in patch.files:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes((source / path).read_bytes())
    (tmp_path / {"hm": "source/Lib/TLibCommon", "jm": "lencod/inc"}[name]).mkdir(parents=True, exist_ok=True)
    before = content(tmp_path)
    patch_tree(name, tmp_path)
    after = content(tmp_path)
    for path in patch.files:  # what an independent diff finds between the two versions is insertions alone
        old, new = (text[path].decode("latin-1").split("\n") for text in (before, after))
        opcodes = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
        assert {tag for tag, *_ in opcodes} == {"equal", "insert"}, path
    patch_tree(name, tmp_path, reverse=True)
    assert content(tmp_path) == before
