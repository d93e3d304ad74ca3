#!/usr/bin/env bash
# Generates the stubs in OUT (default: protos/octavo/v1) from protos/*.proto with the pinned toolchain in .venv-protos.
# The toolchain is old on purpose: generated code must not be newer than the oldest protobuf and grpcio we support.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-protos}
[ -x .venv-protos/bin/python ] || python3 -m venv .venv-protos
.venv-protos/bin/python -c 'import grpc_tools, mypy_protobuf' 2>/dev/null ||
    .venv-protos/bin/pip install -q -r ops/protos/requirements.txt
mkdir -p "$out/octavo/v1"
PATH="$PWD/.venv-protos/bin:$PATH" .venv-protos/bin/python -m grpc_tools.protoc \
    -Ioctavo/v1=protos \
    --python_out="$out" --grpc_python_out="$out" --mypy_out="$out" --mypy_grpc_out="$out" \
    octavo/v1/types.proto octavo/v1/inference.proto octavo/v1/engine.proto octavo/v1/admin.proto
