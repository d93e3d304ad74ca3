"""Generated messages and services of octavo.v1. Do not edit; run `make protos`."""
