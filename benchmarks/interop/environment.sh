#!/bin/sh
# An environment for one trainer: sh benchmarks/interop/environment.sh llamafactory FOLDER [PYTHON]
# torch first, else CUDA builds are pulled in; torchvision is not needed and would bring them too.
set -eu
to=$1 folder=$2 python=${3:-python3.11}
"$python" -m venv "$folder"
pip="$folder/bin/python -m pip install -q"
$pip torch==2.13.0
case $to in
  llamafactory)
    $pip llamafactory==0.9.5
    "$folder/bin/python" -m pip uninstall -q -y torchvision
    ;;
  axolotl)
    $pip --no-deps axolotl==0.19.0
    # What it asks for, without the kernels that need a GPU to install.
    "$folder/bin/python" - <<'PY' > "$folder/asks.txt"
from importlib.metadata import requires
gpu = ("torch", "torchvision", "torchao", "bitsandbytes", "triton", "xformers", "liger", "flash", "mamba", "autoawq", "deepspeed")
for line in requires("axolotl") or ():
    if "extra ==" not in line and not line.lower().startswith(gpu):
        print(line.split(";")[0].strip())
PY
    $pip -r "$folder/asks.txt"
    ;;
  *) echo "known are llamafactory and axolotl, not $to" >&2; exit 2 ;;
esac
"$folder/bin/python" -m pip freeze > "$folder/versions.txt"
