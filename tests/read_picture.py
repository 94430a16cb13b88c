"""Prints as JSON what independent readers find in picture files: Pillow (EXIF, XMP and a digest of the pixels) and exiftool."""

import hashlib
import json
import subprocess
import sys

from PIL import Image
from PIL.ExifTags import IFD, Base


def pillow(path):
    with Image.open(path) as picture:
        exif = picture.getexif()
        tags = {**exif, **exif.get_ifd(IFD.Exif)}
        return {
            "format": picture.format,
            "size": picture.size,
            "pixels": hashlib.sha256(picture.convert("RGB").tobytes()).hexdigest(),
            "exif": {Base(tag).name: str(value) for tag, value in tags.items()},
            "xmp": picture.getxmp(),
        }


def exiftool(paths):
    command = ["exiftool", "-json", "-struct", "-a", "-G1", "-all:all", "-validate", *paths]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    paths = sys.argv[1:]
    print(json.dumps([{"pillow": pillow(path), "exiftool": tags} for path, tags in zip(paths, exiftool(paths))]))
