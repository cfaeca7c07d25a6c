#!/usr/bin/env bash
# guess: resizing a picture gives the same pixels under every release of Pillow, or nearly.
# seen: Pillow 12 resizes along the width first, then along the height. Pillow 13 begins with the height where that shrinks
#   and the width does not. Pixels are rounded and clipped in between, so on fine patterns 17 of 255 lie between them.
# version: pillow 12.0.0 and 13.0.0, Image.resize; pull request 9549 of python-pillow/Pillow, src/libImaging/Resample.c.
# why here: decoded pictures that are kept on disk must not be read under another release, or one checkpoint gives other
#   vectors of the same items.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
for release in 12.0.0 13.0.0; do
  python3 -m venv "env-$release"
  "env-$release/bin/pip" install --quiet --disable-pip-version-check "pillow==$release"
done
cat > resize.py <<'PY'
import random

import PIL
from PIL import Image

draw, size = random.Random(0), (224, 224)
print(f"pillow {PIL.__version__}")
for name, (width, height) in {"landscape": (300, 200), "portrait": (200, 300)}.items():
    picture = Image.frombytes("RGB", (width, height), draw.randbytes(3 * width * height))
    whole = picture.resize(size, Image.Resampling.BICUBIC)
    by_width = picture.resize((224, height), Image.Resampling.BICUBIC).resize(size, Image.Resampling.BICUBIC)
    by_height = picture.resize((width, 224), Image.Resampling.BICUBIC).resize(size, Image.Resampling.BICUBIC)
    order = {by_width.tobytes(): "width first", by_height.tobytes(): "height first"}.get(whole.tobytes(), "neither")
    print(f"seen: a {name} picture is resized {order}")
    with open(f"{name}-{PIL.__version__}", "wb") as file:
        file.write(whole.tobytes())
PY
echo "guess: both releases give the same pixels"
for release in 12.0.0 13.0.0; do "env-$release/bin/python" resize.py; done
python3 - <<'PY'
far = {}
for name in ("landscape", "portrait"):
    old, new = (open(f"{name}-{release}", "rb").read() for release in ("12.0.0", "13.0.0"))
    far[name] = max(abs(a - b) for a, b in zip(old, new))
    print(f"seen: the pixels of the {name} picture differ by up to {far[name]} of 255")
raise SystemExit(not (far["landscape"] == 0 and far["portrait"] > 5))
PY
