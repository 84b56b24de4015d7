#!/bin/sh
# An environment for one trainer: sh benchmarks/interop/environment.sh llamafactory FOLDER [PYTHON]
# megatron wants Python 3.12; where the package index has no torch without CUDA for it, 6 GB, though nothing needs a GPU.
# torch first, then the trainer without what it asks for, then that, but for what would bring a CUDA build of torch or
# needs a GPU to be installed, and for web pages.
set -eu
to=$1 folder=$2 python=${3:-python3.11}
case $to in
  llamafactory) package=llamafactory version=0.9.5 ;;
  axolotl) package=axolotl version=0.19.0 ;;
  ms_swift) package=ms-swift version=4.6.0 ;;
  megatron) package=megatron-bridge version=0.6.2 ;;
  *) echo "known are llamafactory, axolotl, ms_swift and megatron, not $to" >&2; exit 2 ;;
esac
"$python" -m venv "$folder"
pip="$folder/bin/python -m pip install -q --no-compile"
$pip torch==2.13.0
$pip --no-deps "$package==$version"
if [ "$to" = megatron ]; then  # of what it asks for, what its data sets and Megatron-Core's model need
  $pip --no-deps megatron-core==0.19.2
  $pip "transformers>=5.8,<=5.12.1" peft datasets accelerate einops "omegaconf>=2.3" tensorboard rich six regex pyyaml \
    tqdm "hydra-core<1.4,>=1.3.4" sentencepiece tiktoken packaging pyarrow
  "$folder/bin/python" -m pip freeze > "$folder/versions.txt"
  exit
fi
"$folder/bin/python" - "$package" <<'PY' > "$folder/asks.txt"
import sys
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement
without = ("torch", "torchvision", "torchaudio", "torchao", "xformers", "liger-kernel",
           "flash-attn", "flash-linear-attention", "mamba-ssm", "causal-conv1d", "autoawq", "deepspeed", "gradio")
for one in map(Requirement, requires(sys.argv[1]) or ()):
    if one.name.lower().replace("_", "-") not in without and (one.marker is None or one.marker.evaluate({"extra": ""})):
        print(f"{one.name}{'[' + ','.join(one.extras) + ']' if one.extras else ''}{one.specifier}")
PY
$pip -r "$folder/asks.txt"
# LLaMA-Factory imports torchaudio, whose wheel loads CUDA libraries only; rows of text never reach it.
if [ "$to" = llamafactory ]; then : > "$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torchaudio.py"; fi
"$folder/bin/python" -m pip freeze > "$folder/versions.txt"
