"""Where the public sets are fetched from: archives with size and digest, and the folder each becomes.

Sources. URLs and MD5 of VOC: torchvision 0.29.1, datasets/voc.py. URLs and MD5 of COCO: PaddlePaddle/PaddleDetection,
ppdet/utils/download.py at 005e0ff8. Sizes: tensorflow/datasets, url_checksums/voc.txt and coco.txt at 333639b3 (VOC's
there are those of a mirror's files of the same names).
"""

from __future__ import annotations

from dataclasses import dataclass

_VOC = "https://thor.robots.ox.ac.uk/pascal/VOC"
_COCO = "http://images.cocodataset.org"


@dataclass(frozen=True)
class Archive:
    """One file to fetch.

    Attributes:
        url: where it is published.
        bytes: its size.
        md5: its digest, in hex.
    """

    url: str
    bytes: int
    md5: str

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rsplit("/", 1)[1]


@dataclass(frozen=True)
class Folder:
    """A folder of the data root that appears as a whole.

    Attributes:
        target: its path below the data root.
        inside: where its content lies inside the archives.
        archives: what it is unpacked from, one over the other.
    """

    target: str
    inside: str
    archives: tuple[Archive, ...]


PUBLIC: dict[str, tuple[Folder, ...]] = {
    "voc2007": (
        Folder(
            "VOC2007",
            "VOCdevkit/VOC2007",
            (
                Archive(f"{_VOC}/voc2007/VOCtrainval_06-Nov-2007.tar", 460032000, "c52e279531787c972589f7e41ab4ae64"),
                Archive(f"{_VOC}/voc2007/VOCtest_06-Nov-2007.tar", 451020800, "b6e924de25625d8de591ea690078ad9f"),
            ),
        ),
    ),
    "voc2012": (
        Folder(
            "VOC2012",
            "VOCdevkit/VOC2012",
            (Archive(f"{_VOC}/voc2012/VOCtrainval_11-May-2012.tar", 1999639040, "6cd6e144f989b92b3379bac3b3de84fd"),),
        ),
    ),
    "coco": (
        Folder(
            "coco/annotations",
            "annotations",
            (
                Archive(
                    f"{_COCO}/annotations/annotations_trainval2017.zip", 252907541, "f4bbac642086de4f52a3fdda2de5fa2c"
                ),
            ),
        ),
        Folder(
            "coco/val2017",
            "val2017",
            (Archive(f"{_COCO}/zips/val2017.zip", 815585330, "442b8da7639aecaf257c1dceb8ba8c80"),),
        ),
        Folder(
            "coco/train2017",
            "train2017",
            (Archive(f"{_COCO}/zips/train2017.zip", 19336861798, "cced6f7f71b7629ddf16f17bbcfab6b2"),),
        ),
    ),
}
"""What `tools/data.py download` knows, by the name it is asked for."""
