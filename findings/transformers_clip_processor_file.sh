#!/usr/bin/env bash
# guess: a CLIP processor writes preprocessor_config.json, as releases before 5 did and as most folders on the Hub hold.
# seen: CLIPProcessor.save_pretrained writes processor_config.json alone and puts mean and deviation into a nested
#   "image_processor"; the image processor by itself still writes preprocessor_config.json, with the keys at the top.
#   AutoImageProcessor looks into both files; where they differ, the nested one counts.
# version: transformers 5.23.0 (processing_utils.py, save_pretrained; image_processing_base.py, get_image_processor_dict).
# why here: who reads preprocessor_config.json alone finds no mean in a folder of release 5, or the one that does not count.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check transformers==5.23.0 tokenizers==0.23.3 pillow==13.0.0 numpy==2.2.6
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error env/bin/python - <<'PY'
import json
from pathlib import Path

import tokenizers
import transformers
from transformers import CLIPImageProcessor, CLIPProcessor, CLIPTokenizer, AutoImageProcessor

print(f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}")
print("guess: both folders hold preprocessor_config.json with image_mean")
words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}
images = CLIPImageProcessor()
CLIPProcessor(image_processor=images, tokenizer=CLIPTokenizer(vocab=words, merges=[])).save_pretrained("whole")
images.save_pretrained("images")
files = {name: sorted(path.name for path in Path(name).glob("*processor_config.json")) for name in ("whole", "images")}
nested = json.loads(Path("whole/processor_config.json").read_text())["image_processor"]["image_mean"]
for name, found in files.items():
    print(f"seen: {name} holds {found}")
other = {**json.loads(Path("images/preprocessor_config.json").read_text()), "image_mean": [0.5, 0.5, 0.5]}
Path("whole/preprocessor_config.json").write_text(json.dumps(other))
read = list(AutoImageProcessor.from_pretrained("whole").image_mean)
print(f"seen: of {nested} nested and {other['image_mean']} in preprocessor_config.json, {read} is read")
is_so = files == {"whole": ["processor_config.json"], "images": ["preprocessor_config.json"]} and read == nested
raise SystemExit(0 if is_so else 1)
PY
