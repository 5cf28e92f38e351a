"""The operators, each with its kernels: one file or one folder an operator."""
