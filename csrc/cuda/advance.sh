#!/bin/sh
# Compiles advance.cu to advance.ptx.inl, with any nvcc from 12.4 on. Run it when advance.cu has changed: its checksum is
# written beside the code, and a test compares them.
#   -rdc=true : cudaGraphSetConditional stays a name, for the driver to fill in
#   .version  : nvcc writes its own, which older drivers refuse; nothing in here needs more than 8.0
set -eu
cd "$(dirname "$0")"
ptx=$(mktemp)
trap 'rm -f "$ptx"' EXIT
nvcc -ptx -rdc=true -arch=compute_80 -std=c++17 advance.cu -o "$ptx"
{
  echo "// Made by advance.sh from advance.cu with sha256 $(sha256sum advance.cu | cut -d ' ' -f 1)"
  echo 'R"ptx('
  sed -e '/^\/\//d' -e '/^[[:space:]]*\/\/ \.globl/d' -e '/^$/d' -e 's/^\.version .*/.version 8.0/' "$ptx"
  echo ')ptx"'
} > advance.ptx.inl
