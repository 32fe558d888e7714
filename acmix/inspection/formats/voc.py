"""Objects in Pascal VOC's layout, for detection."""

from acmix.inspection.formats._contract import Format


class Voc(Format):
    """Images, an XML file for each, and lists of their names by split."""

    name = "voc"
    task = "detection"
    layout = frozenset({"JPEGImages", "Annotations", "ImageSets", "SegmentationObject", "SegmentationClass"})
    expected = (
        "JPEGImages/<name>.jpg, Annotations/<name>.xml and ImageSets/Main/train.txt with a name a line;\n"
        "val.txt and test.txt if there are such splits; with the option masks SegmentationObject/<name>.png too"
    )
