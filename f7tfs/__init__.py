"""f7tfs: an HPC cluster behind the FirecREST REST API, mounted as a drive."""

__version__ = "0.1.0"
