"""The package: its kernels, trunk, index and files."""
