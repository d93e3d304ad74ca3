#!/usr/bin/env bash
# Fails when the committed stubs differ from what the .proto files give, or when buf lint finds something.
set -euo pipefail
cd "$(dirname "$0")/../.."
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
ops/protos/generate.sh "$stage/out"
diff -ru --exclude=__pycache__ --exclude=__init__.py --exclude=py.typed "$stage/out/octavo/v1" protos/octavo/v1 ||
    { echo "stubs are stale: run make protos" >&2; exit 1; }
mkdir -p "$stage/lint/octavo/v1"
cp protos/*.proto "$stage/lint/octavo/v1/"
cp protos/buf.yaml "$stage/lint/"
"${BUF:-buf}" lint "$stage/lint"
