"""`python -m f7tfs`."""

from f7tfs.cli import main

if __name__ == "__main__":
    main(prog_name="f7tfs")
