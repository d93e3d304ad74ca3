"""Lets gateways that speak vLLM's gRPC service `vllm.grpc.engine.VllmEngine` drive this engine; off by default."""
