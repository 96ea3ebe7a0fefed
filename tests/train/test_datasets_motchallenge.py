"""MOTChallenge: the real sequences, pictures and video, and made-up folders with something missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxwrap.metrics.tracking import distractors, targets
from jaxwrap.train.datasets.motchallenge import mot_data, read_tracks, read_truth, write_rows

SIZE = (10, 16)


def sequence(folder: Path, truth: str = "1,1,2,2,4,4,1,1,1\n", *, frames: int = 3, first: int = 1) -> Path:
    """A sequence of numbered pictures with its ground truth."""
    (folder / "img1").mkdir(parents=True)
    (folder / "gt").mkdir()
    for n in range(first, first + frames):
        Image.fromarray(np.full((*SIZE, 3), n, np.uint8)).save(folder / "img1" / f"{n:06d}.png")
    (folder / "gt" / "gt.txt").write_text(truth)
    (folder / "seqinfo.ini").write_text(
        f"[Sequence]\nname={folder.name}\nimDir=img1\nframeRate=25\nseqLength={frames}\n"
        f"imWidth={SIZE[1]}\nimHeight={SIZE[0]}\nimExt=.png\n"
    )
    return folder


@pytest.mark.shared
def test_mot15_rows_of_flag_one_are_targets(shared_data: Path) -> None:
    data = mot_data(shared_data / "mot" / "TUD-Stadtmitte")
    (found,) = data.sequences
    assert (found.name, found.size, found.frames, found.fps, data.video) == (
        "TUD-Stadtmitte",
        (480, 640),
        120,
        25.0,
        True,
    )
    rows = data.truth[found.name]
    assert rows.shape == (815, 9)
    assert targets(rows).all()
    assert not distractors(rows).any()
    assert len(np.unique(rows[:, 1])) == 9
    picture = np.asarray(Image.open(shared_data / "mot" / "TUD-Stadtmitte" / "img1" / "000120.jpg"))
    np.testing.assert_array_equal(found.rgb(119), picture[None])


@pytest.mark.shared
def test_mot16_rows_of_other_classes_are_kept_and_told_apart(shared_data: Path) -> None:
    folder = shared_data / "mot" / "MOT16-09-640x360"
    data = mot_data(folder, shared_data / "video" / "mot16-09_640x360.mkv")
    assert mot_data(folder).sequences[0].files[0].samefile(data.sequences[0].files[0])  # imDir names the same video
    rows = data.truth["MOT16-09"]
    assert (len(rows), targets(rows).sum(), distractors(rows).sum()) == (794, 412, 262)
    assert data.sequences[0].rgb(58).shape == (2, 360, 640, 3)
    boxes = mot_data(folder, task="detection")
    crowd = [a["iscrowd"] for a in boxes.truth["annotations"]]
    assert (len(crowd) - sum(crowd), sum(crowd), len(boxes.truth["images"])) == (412, 262, 60)


def test_folders_of_sequences_are_read_together(tmp_path: Path) -> None:
    sequence(tmp_path / "A", frames=2)
    sequence(tmp_path / "B", "1,1,2,2,4,4,0,1,1\n2,5,1.5,2,4,4,1,1,0.5\n2,6,0,0,3,3,0,8,1\n2,7,0,0,9,9,0,3,1\n")
    data = mot_data(tmp_path)
    assert [(s.name, s.frames, s.image_ids[0]) for s in data.sequences] == [("A", 2, 1), ("B", 3, 1)]
    assert targets(data.truth["B"]).tolist() == [False, True, False, False]
    boxes = mot_data(tmp_path, task="detection").truth
    assert [i["id"] for i in boxes["images"]] == [1, 2, 3, 4, 5]
    assert [(a["image_id"], a["iscrowd"], a["bbox"]) for a in boxes["annotations"]] == [
        (1, 0, [2, 2, 4, 4]),
        (3, 1, [2, 2, 4, 4]),
        (4, 0, [1.5, 2, 4, 4]),
        (4, 1, [0, 0, 3, 3]),
    ]


def test_frames_are_numbered_as_their_pictures(tmp_path: Path) -> None:
    data = mot_data(sequence(tmp_path / "A", "5,1,2,2,4,4,1,1,1\n", first=4))
    assert data.truth["A"][0, 0] == 2
    assert data.sequences[0].rgb(1, 2)[0, 0, 0, 0] == 5


def test_truth_goes_through_a_file(tmp_path: Path) -> None:
    rows = np.array([[1, 3, 1.25, 2, 30.1, 4, 1, 1, 0.3], [2, 3, 1 / 3, 2, 3, 4, 0, 7, 1]])
    write_rows(tmp_path / "gt.txt", rows)
    np.testing.assert_array_equal(read_truth(tmp_path / "gt.txt"), rows)
    tracks = np.array([[1, 3, 1.25, 2, 3, 4, 0.9, -1, -1, -1.0]])
    write_rows(tmp_path / "tracks.txt", tracks)
    np.testing.assert_array_equal(read_tracks(tmp_path / "tracks.txt"), tracks)
    assert (tmp_path / "tracks.txt").read_text() == "1,3,1.25,2,3,4,0.9,-1,-1,-1\n"


def test_sequences_without_seqinfo_or_truth_are_listed_at_once(tmp_path: Path) -> None:
    (sequence(tmp_path / "A") / "seqinfo.ini").unlink()
    (sequence(tmp_path / "B") / "gt" / "gt.txt").unlink()
    sequence(tmp_path / "C")
    with pytest.raises(FileNotFoundError, match=r"3 sequences of .* lack: .*A/seqinfo\.ini, .*B/gt/gt\.txt; "):
        mot_data(tmp_path)
    with pytest.raises(FileNotFoundError, match="is no MOTChallenge sequence"):
        mot_data(tmp_path / "A" / "img1")


def test_a_picture_of_another_size_is_named_with_its_frame(tmp_path: Path) -> None:
    folder = sequence(tmp_path / "A")
    Image.fromarray(np.zeros((10, 18, 3), np.uint8)).save(folder / "img1" / "000002.png")
    with pytest.raises(ValueError, match=r"of A change size: frame 1 \(.*000002\.png\) is 18×10, the first is 16×10"):
        mot_data(folder)


def test_missing_frames_are_listed(tmp_path: Path) -> None:
    folder = sequence(tmp_path / "A", frames=5)
    for n in (2, 4):
        (folder / "img1" / f"{n:06d}.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"names 2 images .*000002\.png, .*000004\.png"):
        mot_data(folder)


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ("", "ground truth is empty"),
        ("1,1,2,2,4,4,0,1,1\n", "no row has flag 1 and class 1"),
        ("1,1,2,2,4,4,1,1,1\n9,1,2,2,4,4,1,1,1\n", "names 1 frame that .* does not have: 9; it has 3"),
        ("1,1,2,2,4,4,1,1,1\n1,1,2,2,4\n", "line 2: 5 columns; wanted 9"),
        ("1,1,2,2,4,x,1,1,1\n", "line 1: could not convert"),
        ("1,1,2,2,4,4,1,1,1\n1,1,3,2,4,4,1,1,1\n", "frame 1 has two rows of id 1"),
        ("1.5,1,2,2,4,4,1,1,1\n", "wanted whole, finite numbers"),
    ],
)
def test_bad_truth_is_refused(tmp_path: Path, truth: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mot_data(sequence(tmp_path / "A", truth))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[Sequence]", "[sequence]", r"wanted a section \[Sequence\]"),
        ("frameRate=25", "frameRate=fast", "wanted frameRate"),
        ("frameRate=25", "", "framerate.*wanted frameRate"),
        ("imWidth=16", "imWidth=32", "says 32×10: the boxes may be those of another size"),
    ],
)
def test_bad_seqinfo_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    folder = sequence(tmp_path / "A")
    info = folder / "seqinfo.ini"
    info.write_text(info.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        mot_data(folder)


@pytest.mark.shared
def test_a_video_shorter_than_its_truth_is_refused(tmp_path: Path, shared_data: Path) -> None:
    folder = sequence(tmp_path / "A")
    info = folder / "seqinfo.ini"
    info.write_text("[Sequence]\nframeRate=30\nseqLength=61\n")
    with pytest.raises(ValueError, match=r"mot16-09_640x360\.mkv has 60 frames; its truth is about 61"):
        mot_data(folder, shared_data / "video" / "mot16-09_640x360.mkv")
    info.write_text("[Sequence]\nframeRate=30\nimDir=away\n")
    with pytest.raises(FileNotFoundError, match=r"no pictures at .*away; copy them there, or give the video"):
        mot_data(folder)
    sequence(tmp_path / "B")
    with pytest.raises(ValueError, match="one video was given for the 2 sequences"):
        mot_data(tmp_path, shared_data / "video" / "mot16-09_640x360.mkv")
