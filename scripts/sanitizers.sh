# What both scripts that run Python over sanitized kernels need; to be sourced.

# The libraries to load before Python: preload_of CXX. libstdc++ is named because the sanitizers must find its exceptions
# before Python loads any extension.
preload_of() {
  local preload="" library path
  for library in libasan.so libubsan.so libstdc++.so; do
    path="$("$1" -print-file-name="$library")"
    [ -e "$path" ] || { echo "$1 has no $library; install gcc's sanitizers" >&2; return 1; }
    preload+="${preload:+:}$(realpath "$path")"
  done
  echo "$preload"
}

# Ends with an error if vpgfast._C is not the one that was built into this folder: is_ours PYTHON
is_ours() {
  "$1" -c '
import os
import torch
import vpgfast._C as library
assert library.__file__.startswith(os.getcwd()), f"{library.__file__} is not the library that was just built"
'
}
