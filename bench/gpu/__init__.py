"""The steps of `make gpu-report` (bench/gpu_report.py), each a process of its own."""
