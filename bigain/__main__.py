"""`python -m bigain`."""

from bigain.cli import program

if __name__ == "__main__":
    program()
