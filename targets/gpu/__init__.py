"""NVIDIA GPUs: memory, streams, graphs and what NVML tells; shared by all runtimes on them."""
