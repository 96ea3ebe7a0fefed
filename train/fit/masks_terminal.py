"""``jaxwrap train mask-…`` as a terminal shows it: progress with an ETA, the file that results."""

from __future__ import annotations

from pathlib import Path

from jaxwrap.train.datasets.data import TaskData
from jaxwrap.train.datasets.open import open_task_data
from jaxwrap.train.fit.loop import Progress
from jaxwrap.train.fit.masks import SUFFIX, MaskFitConfig, fit_mask_head
from jaxwrap.train.memory import keep_memory
from jaxwrap.train.networks import load_detector
from jaxwrap.train.runs import console, progress_bar


def run_fit_masks(config: MaskFitConfig, out: Path) -> None:
    """Reads the data, trains, and says what came of it. Errors as in `masks_to_train_on` and `fit_mask_head`."""
    data = masks_to_train_on(config.data, config.annotations)
    detector = load_detector(config.network, config.weights or None)
    keep_memory()
    with progress_bar() as bar:
        task = bar.add_task("train", total=config.steps, note="features of the pictures")

        def report(progress: Progress) -> None:
            m = progress.metrics
            if "validation_loss" in m:
                bar.console.print(
                    f"step {progress.step}: validation loss {m['validation_loss']:.3f}, overlap with the truth "
                    f"{m['validation_iou']:.3f}",
                    highlight=False,
                )
                return
            bar.update(task, completed=progress.step, note="loss {loss:.3f}  overlap {iou:.3f}".format(**m))

        fit_mask_head(config, detector, data, out, report=report)
    console.print(
        f"mask head: {out}/best{SUFFIX} (largest overlap on held-out pictures)", highlight=False, soft_wrap=True
    )
    console.print(f"log: {out}/log.csv", highlight=False, soft_wrap=True)


def masks_to_train_on(data: str, annotations: str = "") -> TaskData:
    """The pictures and masks that ``data=`` and ``annotations=`` name, see `MaskFitConfig`.

    Raises `ValueError` where none are named, and as `open_task_data` does.
    """
    if not data:
        raise ValueError("no pictures were named: give --data COCO_DIR, or a folder of pictures and annotations=FILE")
    folder = Path(data)
    if annotations or not (folder / "train2017").is_dir():
        return open_task_data([folder], "segmentation", annotations or None)
    names = [folder / place / "instances_train2017.json" for place in (".", "annotations")]
    file = next((name for name in names if name.is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{folder} has train2017, but neither {names[0]} nor {names[1]}; give annotations=FILE")
    return open_task_data([folder / "train2017"], "segmentation", file)
